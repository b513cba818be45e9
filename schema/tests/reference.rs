//! The reference is fresh, every kind has an example that shows all of it, and the schemas fit what is written.
//!
//! `UPDATE=1 cargo test -p schema --test reference` writes the reference anew.
#![expect(clippy::unwrap_used, reason = "a test")]

mod worlds;

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use schema::decode::decode;
use schema::document::Document;
use schema::kinds::Kind;
use schema::reference::{components, file_schema, markdown};
use schema::rules;
use schema::syntax::{Language, Source, parse, print};
use schema::value::SourceId;

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
    assert!(text == Some(fresh), "{} is stale: UPDATE=1 cargo test -p schema --test reference", path.display());
}

#[test]
fn every_kind_has_an_example_that_shows_every_field() {
    for kind in Kind::ALL {
        let name = format!("{kind}.kdl");
        let (path, text) = example(&format!("kinds/{name}"));
        let text = text.unwrap_or_else(|| panic!("{} is missing", path.display()));
        let documents = parsed(&name, &text);
        let own = documents.iter().filter(|document| document.descriptor.word == kind.descriptor().word);
        let shown: BTreeSet<_> = own.flat_map(|document| document.fields.keys().map(|name| &**name)).collect();
        let all: BTreeSet<_> = kind.descriptor().fields.iter().map(|field| field.name).collect();
        assert_eq!(shown, all, "{name}");
        let (declared, mut report) = decode(documents.clone());
        report.append(rules::check(&declared.snapshot, &declared.source_map));
        assert!(report.is_empty(), "{name}: {report:#?}");
    }
}

/// As much of JSON Schema as ours use; any other keyword is refused.
fn fits(schema: &Json, root: &Json, value: &Json) -> bool {
    schema.as_object().unwrap().iter().all(|(keyword, rule)| match keyword.as_str() {
        "type" if rule.is_array() => rule.as_array().unwrap().iter().any(|one| is(one, value)),
        "type" => is(rule, value),
        "properties" => value.as_object().is_none_or(|it| {
            it.iter().all(|(name, inner)| rule.get(name).is_none_or(|schema| fits(schema, root, inner)))
        }),
        "additionalProperties" => value.as_object().is_none_or(|it| {
            let other = |name: &&String| schema["properties"].get(name).is_none();
            let mut others = it.keys().filter(other);
            others.all(|name| if rule.is_boolean() { rule == &json!(true) } else { fits(rule, root, &it[name]) })
        }),
        "required" => value
            .as_object()
            .is_none_or(|it| rule.as_array().unwrap().iter().all(|name| it.contains_key(name.as_str().unwrap()))),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| fits(rule, root, item))),
        "uniqueItems" => value
            .as_array()
            .is_none_or(|items| items.iter().enumerate().all(|(place, item)| !items[..place].contains(item))),
        "anyOf" => rule.as_array().unwrap().iter().any(|one| fits(one, root, value)),
        "minimum" => value.as_i64().is_none_or(|it| it >= rule.as_i64().unwrap()),
        "maximum" => value.as_i64().is_none_or(|it| it <= rule.as_i64().unwrap()),
        "$ref" => fits(root.pointer(rule.as_str().unwrap().strip_prefix('#').unwrap()).unwrap(), root, value),
        "description" | "title" | "examples" | "default" | "$schema" | "$defs" => true,
        other => panic!("the keyword {other} is not known here"),
    })
}

fn is(ty: &Json, value: &Json) -> bool {
    match ty.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the type {other} is not known here"),
    }
}

fn file_fits(text: &str) -> bool {
    let schema = file_schema(Kind::DESCRIPTORS);
    fits(&schema, &schema, &serde_yaml::from_str(text).unwrap())
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn every_body_and_every_file_fits_its_schema(snapshot in snapshots()) {
        let schemas = components(Kind::DESCRIPTORS);
        for (id, entry) in snapshot.entries() {
            let body = serde_json::to_value(entry.object.body()).unwrap();
            prop_assert!(fits(&schemas[id.kind.descriptor().word], &schemas, &body), "{id}: {body}");
        }
        let text = print(&documents(&snapshot), Language::Yaml);
        prop_assert!(file_fits(&text), "{text}");
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
    ] {
        assert!(file_fits(good), "{good}");
        parsed("good.yaml", good);
    }
    for bad in [
        "network: { corp: {} }",
        "networks: { corp: { acl: deny } }",
        "networks: { corp: { mtu: 1279 } }",
        "networks: { corp: { mtu: '1400' } }",
        "networks: { corp: { name-service: 'true' } }",
        "networks: { corp: { nodes: { a: { ip4: 10.40.0.9 } } } }",
        "networks: { corp: { nodes: { a: { tags: [1] } } } }",
        "networks: [corp, [lab]]",
    ] {
        assert!(!file_fits(bad), "{bad}");
    }
}

#[test]
fn the_quickstart_fits_the_schema_of_files() {
    let (_, text) = example("quickstart-yaml/mesh.yaml");
    assert!(file_fits(&text.unwrap()));
}
