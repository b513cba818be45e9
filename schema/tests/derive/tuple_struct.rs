/// A thing.
#[derive(schema_derive::Describe)]
#[describe(word = "thing", plural = "things")]
struct Thing(u8);

fn main() {}
