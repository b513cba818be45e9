/// A thing.
#[derive(schema_derive::Describe)]
#[describe(plural = "things")]
struct Thing {
    /// How large it is.
    size: u8,
}

fn main() {}
