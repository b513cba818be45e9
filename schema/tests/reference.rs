//! The reference is fresh, every kind has an example that shows all of it, and the schemas fit what is
//! written.
//!
//! `UPDATE=1 cargo test -p schema --test reference` writes the reference anew.
#![expect(clippy::unwrap_used, reason = "a test")]

mod worlds;

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value as Json;

use schema::decode::decode;
use schema::descriptor::{Field, Fields};
use schema::document::Document;
use schema::kinds::Kind;
use schema::project;
use schema::reference::{components, file_schema, markdown, project_markdown};
use schema::rules;
use schema::syntax::{Language, Source, parse, print};
use schema::value::{Data, Record, SourceId};

use worlds::{cases, documents, snapshots};

fn example(path: &str) -> (PathBuf, Option<String>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples").join(path);
    let text = std::fs::read_to_string(&path).ok();
    (path, text)
}

fn parsed(name: &str, text: &str) -> Vec<Document> {
    let source = Source { name: name.into(), text: text.into(), language: Language::of(name).unwrap() };
    let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    assert!(report.is_empty(), "{name}: {report:#?}");
    documents
}

#[test]
fn the_reference_in_the_examples_is_fresh() {
    let (path, text) = example("kinds/README.md");
    let fresh = markdown(Kind::DESCRIPTORS);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &fresh).unwrap();
        return;
    }
    assert!(
        text == Some(fresh),
        "{} is stale: UPDATE=1 cargo test -p schema --test reference",
        path.display()
    );
}

#[test]
fn the_reference_of_the_project_file_is_fresh_and_its_example_shows_every_field() {
    let (path, text) = example("project/README.md");
    let fresh = project_markdown(project::DESCRIPTORS);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    } else {
        assert!(
            text == Some(fresh),
            "{} is stale: UPDATE=1 cargo test -p schema --test reference",
            path.display()
        );
    }
    let (_, text) = example("project/nmplan.kdl");
    let source = Source { name: "nmplan.kdl".into(), text: text.unwrap().into(), language: Language::Kdl };
    let (documents, mut report) = parse(&source, SourceId(0), project::DESCRIPTORS);
    let (file, more) = project::decode(&documents);
    report.append(more);
    for env in file.unwrap().envs.keys() {
        let (file, _) = project::decode(&documents);
        report.append(project::unset(&documents, &file.unwrap(), env, &BTreeSet::new()));
    }
    assert!(report.is_empty(), "{report:#?}");
    for kind in project::DESCRIPTORS {
        let own = documents.iter().filter(|document| document.descriptor.word == kind.word);
        let shown: BTreeSet<_> =
            own.flat_map(|document| document.fields.keys().map(|name| &**name)).collect();
        assert_eq!(shown, kind.fields.iter().map(|field| field.name).collect(), "{}", kind.word);
    }
}

/// Every field, and those of the records in it: `reach`, `reach from`...
fn all(fields: &Fields) -> Vec<String> {
    let inside = |field: &'static Field| {
        let inner = field.ty.record().map(all).unwrap_or_default();
        inner.into_iter().map(|name| format!("{} {name}", field.name)).chain([field.name.to_owned()])
    };
    fields.iter().flat_map(inside).collect()
}

/// The same, of those that are written.
fn shown(fields: &Fields, record: &Record) -> Vec<String> {
    let mut found = Vec::new();
    for (name, member) in record {
        found.push(name.to_string());
        let Some(inner) = fields.get(name).and_then(|field| field.ty.record()) else { continue };
        let items = if let Data::List(items) = &member.value.data {
            items.as_slice()
        } else {
            std::slice::from_ref(&member.value)
        };
        let records = items.iter().filter_map(|item| item.as_record());
        found.extend(records.flat_map(|record| shown(inner, record)).map(|it| format!("{name} {it}")));
    }
    found
}

#[test]
fn every_kind_has_an_example_that_shows_every_field() {
    for kind in Kind::ALL {
        let name = format!("{kind}.kdl");
        let (path, text) = example(&format!("kinds/{name}"));
        let text = text.unwrap_or_else(|| panic!("{} is missing", path.display()));
        let documents = parsed(&name, &text);
        let own = documents.iter().filter(|document| document.descriptor.word == kind.descriptor().word);
        let fields = kind.descriptor().fields;
        let shown: BTreeSet<_> = own.flat_map(|document| shown(fields, &document.fields)).collect();
        assert_eq!(shown, all(fields).into_iter().collect(), "{name}");
        let (declared, mut report) = decode(documents.clone());
        report.append(rules::check(&declared.snapshot, &declared.source_map));
        report.append(rules::selectors::check(&declared.snapshot, &declared.source_map));
        assert!(report.is_empty(), "{name}: {report:#?}");
    }
}

/// What of a value does not fit a schema.
fn misfits(schema: &Json, value: &Json) -> Vec<String> {
    let validator = jsonschema::draft202012::new(schema).unwrap();
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn file_misfits(text: &str) -> Vec<String> {
    misfits(&file_schema(Kind::DESCRIPTORS), &serde_yaml::from_str(text).unwrap())
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn every_body_and_every_file_fits_its_schema(snapshot in snapshots()) {
        let schemas = components(Kind::DESCRIPTORS);
        for (id, entry) in snapshot.entries() {
            let body = serde_json::to_value(entry.object.body()).unwrap();
            let wrong = misfits(&schemas[id.kind.descriptor().word], &body);
            prop_assert!(wrong.is_empty(), "{id}: {wrong:#?}\n{body}");
        }
        let text = print(&documents(&snapshot), Language::Yaml);
        let wrong = file_misfits(&text);
        prop_assert!(wrong.is_empty(), "{wrong:#?}\n{text}");
    }
}

#[test]
fn what_users_may_write_fits_the_schema_of_files_and_other_words_do_not() {
    for good in [
        "",
        "networks:\n",
        "networks: { corp: { ipv4: 10.40.0.0/16, keepalive: 20, nodes: [a, b], access-keys: { k: { uses: unlimited, tags: x } } } }",
        "networks: { corp: { ipv4: 10.40.0.0/16, nodes: a, dns: { www: { a: [10.40.0.9, 10.40.0.10] } } } }",
        "networks: { corp: { nodes: { a: } } }",
        "networks: { corp: { acl: deny, groups: { ops: { nodes: a, tags: [x, y] } }, allow: { a: { from: ops, to: ['*'], proto: tcp, ports: [80, 90-99] } } } }",
        "networks: { corp: { tests: { t: { reach: { from: x, to: y, port: 80 }, no-reach: [{ from: [x], to: y }], path: { from: x, to: y, via: [a, b] } } } } }",
    ] {
        assert_eq!(file_misfits(good), [""; 0], "{good}");
        parsed("good.yaml", good);
    }
    for bad in [
        "network: { corp: {} }",
        "networks: { corp: { acl: block } }",
        "networks: { corp: { udp-hole-punch: true } }",
        "networks: { corp: { allow: { a: { from: x } } } }",
        "networks: { corp: { allow: { a: { from: x, to: [] } } } }",
        "networks: { corp: { allow: { a: { from: x, to: y, ports: [1.5] } } } }",
        "networks: { corp: { tests: { t: { reach: { from: x, to: y, port: 0 } } } } }",
        "networks: { corp: { mtu: 1279 } }",
        "networks: { corp: { mtu: '1400' } }",
        "networks: { corp: { name-service: 'true' } }",
        "networks: { corp: { nodes: { a: { ip4: 10.40.0.9 } } } }",
        "networks: { corp: { nodes: { a: { tags: [1] } } } }",
        "networks: [corp, [lab]]",
    ] {
        assert!(!file_misfits(bad).is_empty(), "{bad}");
    }
}

#[test]
fn a_kind_without_a_name_is_written_alone_in_either_language() {
    let schema = file_schema(project::DESCRIPTORS);
    let misfits = |text: &str| misfits(&schema, &serde_yaml::from_str(text).unwrap());
    for (text, fits) in [
        ("guard: { max-delete: 5% or 3, max-nodes-changed: 25%, max-reach-lost: 0 }", true),
        ("guard:", true),
        ("guard: { one: { max-delete: 3 } }", false),
        ("guard: [one]", false),
        ("guard: { max-delete: [3] }", false),
    ] {
        assert_eq!(misfits(text).is_empty(), fits, "{text}");
    }
    let parsed = |text: &str, language| {
        let source = Source { name: "nmplan".into(), text: text.into(), language };
        let (documents, report) = parse(&source, SourceId(0), project::DESCRIPTORS);
        assert!(report.is_empty(), "{report:#?}");
        documents
    };
    let text = "project \"acme\" schema=1\nguard max-delete=\"5% or 3\" { max-reach-lost 0; }\nenv \"dev\"\n";
    let documents = parsed(text, Language::Kdl);
    let file = project::decode(&documents).0.unwrap();
    assert_eq!(serde_json::to_string(&file.guard).unwrap(), r#"{"max-delete":"5% or 3","max-reach-lost":0}"#);
    for language in [Language::Kdl, Language::Yaml] {
        let again = parsed(&print(&documents, language), language);
        assert_eq!(project::decode(&again).0.unwrap(), file, "{language:?}");
    }
    let without = parsed("project: { acme: { schema: 1 } }", Language::Yaml);
    assert!(project::decode(&without).0.unwrap().guard.is_empty());
}

#[test]
fn the_quickstart_fits_the_schema_of_files() {
    let (_, text) = example("quickstart-yaml/mesh.yaml");
    assert_eq!(file_misfits(&text.unwrap()), [""; 0]);
}
