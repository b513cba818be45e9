/// A thing.
#[derive(schema_derive::Describe)]
#[describe(word = "thing", plural = "things")]
enum Thing {
    /// A small one.
    Small,
}

fn main() {}
