/// A thing.
#[derive(schema_derive::Describe)]
#[describe(word = "thing", plurals = "things")]
struct Thing {
    /// How large it is.
    size: u8,
}

fn main() {}
