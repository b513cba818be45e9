//! What the derive refuses, it reports at its place and with what to do.

#[test]
fn mistakes_in_a_description_are_compile_errors_at_their_place() {
    trybuild::TestCases::new().compile_fail("tests/derive/*.rs");
}
