#[derive(schema_derive::Choice)]
enum Size {
    Small,
}

fn main() {}
