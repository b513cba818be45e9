/// A thing.
#[derive(schema_derive::Describe)]
#[describe(word = "thing", plural = "things")]
struct Thing {
    /// How large it is.
    #[field(defualt = 7)]
    size: u8,
}

fn main() {}
