#[derive(schema_derive::Choice)]
enum Size {
    /// A small one.
    Small(u8),
}

fn main() {}
