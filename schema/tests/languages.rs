//! Both languages mean the same.
#![expect(clippy::unwrap_used, reason = "a test")]

use schema::decode::{Declared, decode};
use schema::kinds::Kind;
use schema::report::Report;
use schema::rules;
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;

fn read(text: &str, language: Language) -> (Declared, Report) {
    let source = Source { name: "test".into(), text: text.into(), language };
    let (documents, mut report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    let (declared, more) = decode(documents);
    report.append(more);
    report.append(rules::check(&declared.snapshot, &declared.source_map));
    (declared, report)
}

fn example(path: &str) -> (Declared, Report) {
    let path = format!("{}/../examples/{path}", env!("CARGO_MANIFEST_DIR"));
    read(&std::fs::read_to_string(&path).unwrap(), Language::of(&path).unwrap())
}

#[test]
fn the_quickstart_is_the_same_in_both_languages() {
    let (kdl, report) = example("quickstart/mesh.kdl");
    assert!(report.is_empty(), "{report:#?}");
    let (yaml, report) = example("quickstart-yaml/mesh.yaml");
    assert!(report.is_empty(), "{report:#?}");
    assert_eq!(kdl.snapshot.len(), 9);
    assert_eq!(kdl.snapshot, yaml.snapshot);
}
