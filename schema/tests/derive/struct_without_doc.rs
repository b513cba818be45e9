#[derive(schema_derive::Describe)]
#[describe(word = "thing", plural = "things")]
struct Thing {
    /// How large it is.
    size: u8,
}

fn main() {}
