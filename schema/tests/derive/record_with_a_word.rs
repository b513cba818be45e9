/// A thing.
#[derive(schema_derive::Record)]
#[describe(word = "thing")]
struct Thing {
    /// How large it is.
    size: bool,
}

fn main() {}
