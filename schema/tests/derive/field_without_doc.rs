/// A thing.
#[derive(schema_derive::Describe)]
#[describe(word = "thing", plural = "things")]
struct Thing {
    size: u8,
}

fn main() {}
