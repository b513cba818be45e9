//! Every configuration block in a document is parsed and decoded: what users copy works.

use std::path::PathBuf;

use schema::decode::decode;
use schema::kinds::Kind;
use schema::rules;
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;

/// The fenced blocks of a text, each with the language it names and its line.
fn blocks(text: &str) -> Vec<(Language, usize, String)> {
    let mut blocks = Vec::new();
    let mut open = None;
    for (number, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(""), Some(_)) => blocks.extend(open.take()),
            (Some("kdl"), None) => open = Some((Language::Kdl, number + 2, String::new())),
            (Some("yaml"), None) => open = Some((Language::Yaml, number + 2, String::new())),
            (Some(_), None) | (None, None) => {}
            (_, Some((_, _, block))) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}

#[test]
fn every_block_of_every_document_can_be_used() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seen = 0;
    for document in ["README.md", "ARCHITECTURE.md", "DECISIONS.md", "CHANGELOG.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for (language, line, block) in blocks(&text) {
            let source = Source { name: document.into(), text: block.into(), language };
            let (documents, mut report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
            let (declared, more) = decode(documents);
            report.append(more);
            report.append(rules::check(&declared.snapshot, &declared.source_map));
            let problems: Vec<_> = report.problems().map(|problem| &problem.message).collect();
            assert!(problems.is_empty(), "{document}, the block of line {line}: {problems:?}");
            seen += 1;
        }
    }
    assert!(seen >= 2, "the README shows both languages");
}
