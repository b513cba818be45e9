//! What is printed fits the published JSON Schemas.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use std::path::Path;

use nmplan::commands::schema::{events, lab, plan, show, status};
use schema::world::World;
use serde_json::Value;
use workspace::{Workspace, example, join, online, pending};

/// Where a value does not fit a schema.
fn misfits(schema: &Value, value: &Value) -> Vec<String> {
    let validator = jsonschema::draft202012::new(schema).unwrap();
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn fits(schema: &Value, value: &Value) {
    let wrong = misfits(schema, value);
    assert!(wrong.is_empty(), "{wrong:#?}\n{value:#}");
}

#[test]
fn the_published_schemas_are_fresh() {
    let all =
        [("plan", plan()), ("events", events()), ("lab", lab()), ("show", show()), ("status", status())];
    for (name, schema) in all {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schema/{name}.schema.json"));
        let fresh = format!("{schema:#}\n");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == fresh, "{} is stale: UPDATE=1 cargo test -p nmplan --test schemas", path.display());
    }
}

fn commit_all(workspace: &Workspace) {
    let repository = git2::Repository::open(workspace.path("")).unwrap();
    let mut index = repository.index().unwrap();
    index.add_all(["."], git2::IndexAddOption::DEFAULT, None).unwrap();
    let tree = repository.find_tree(index.write_tree().unwrap()).unwrap();
    let author = git2::Signature::new("Ann", "ann@example.org", &git2::Time::new(0, 0)).unwrap();
    repository.commit(Some("HEAD"), &author, &author, "declare", &tree, &[]).unwrap();
}

/// A workspace whose server has a network with joined nodes, and files that change everything about it.
fn workspace() -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    let before = "network \"corp\" {\n ipv4 \"10.40.0.0/16\"\n node \"gw\"\n node \"old\"\n dns \"api\" a=\"10.40.9.9\"\n}\n";
    workspace.write("before/corp.kdl", before);
    assert_eq!(workspace.nmplan("apply -C @before --project acme -y").exit, 0);
    join(&workspace.server, &[("gw", 1), ("old", 2), ("laptop", 4)]);
    let after = "network \"corp\" {\n ipv4 \"10.40.0.0/16\"\n node \"gw\" ipv4=\"10.40.0.7\"\n node \"laptop\"\n access-key \"k\"\n}\n";
    workspace.write("after/corp.kdl", after);
    workspace
}

/// A project file with a guard.
const GUARDED: &str =
    "project \"other\" schema=1\nguard max-delete=3 max-reach-lost=\"5% or 1\"\nenv \"default\"\n";

#[test]
fn a_saved_plan_fits_its_schema() {
    let plan = workspace().nmplan("plan -C @after --project acme --format json");
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    for part in ["changes", "binds", "impact", "reach"] {
        assert!(!plan[part].as_array().unwrap().is_empty(), "{part} is tried");
    }
    fits(&self::plan(), &plan);
    assert!(plan.get("provenance").is_none(), "there is no repository");
    let other = workspace();
    other.write("guarded/nmplan.kdl", GUARDED);
    other.write("guarded/a.kdl", "network \"lab\" ipv4=\"10.50.0.0/24\"");
    let plan: Value = serde_json::from_str(&other.nmplan("plan -C @guarded --format json").stdout).unwrap();
    assert_eq!(plan["guard"]["after"]["max-reach-lost"], "5% or 1");
    fits(&self::plan(), &plan);
    let quickstart = Workspace::new(World { epoch: 7, ..World::default() });
    git2::Repository::init(quickstart.path("")).unwrap();
    quickstart.write("corp.kdl", "network \"corp\" ipv4=\"10.40.0.0/16\"");
    commit_all(&quickstart);
    let plan: Value =
        serde_json::from_str(&quickstart.nmplan("plan -C @. --project acme --format json").stdout).unwrap();
    assert_eq!(plan["provenance"]["message"], "declare");
    fits(&self::plan(), &plan);
}

#[test]
fn every_event_fits_its_schema() {
    let workspace = workspace();
    workspace.write(
        "bad/a.kdl",
        "network \"corp\" {\n    ipv4 \"10.40.0.0/16\"\n    node \"x\"\n    node \"x\"\n    nod \"y\"\n}\n",
    );
    workspace.write(
        "judged/a.kdl",
        "network \"corp\" ipv4=\"10.40.0.0/16\" {\n node \"a\"; node \"b\"\n test \"t\" { reach from=\"a\" to=\"b\"; no-reach from=\"b\" to=\"a\" }\n}\n",
    );
    workspace.write(
        "carried/a.kdl",
        "network \"corp\" ipv4=\"10.40.0.0/16\" {\n node \"gw\"; node \"old\"\n egress \"exit\" via=\"gw\" { ranges \"0.0.0.0/0\" }\n ingress \"front\" via=\"gw\"\n external-client \"phone\" via=\"front\"\n}\n",
    );
    // A host waits, and is dropped with the network that lets it.
    workspace.server.change_elsewhere(|world| {
        let (identity, waits) = pending(9, "later");
        world.inventory.put_pending("corp".parse().unwrap(), identity, waits);
    });
    workspace.server.set_nodes(vec![online("gw", Some(schema::snapshot::Revision(99)))]);
    workspace.write("guarded/nmplan.kdl", GUARDED);
    workspace.write("guarded/a.kdl", "network \"lab\" ipv4=\"10.50.0.0/24\"");
    let known = events();
    let mut types = std::collections::BTreeSet::new();
    for line in [
        "validate -C @bad --json".to_owned(),
        format!("validate -C {} --json", example("quickstart")),
        "test -C @judged --json".into(),
        "plan -C @before -f /dev/null --project acme --json".into(),
        "plan -C @carried --project acme --json".into(),
        "plan -C @after --project acme --json".into(),
        "plan -C @guarded --json".into(),
        "apply -C @after --project acme --json -y --keys-to @keys.json --wait".into(),
        "plan -C @after --project acme --json --network nowhere".into(),
    ] {
        for event in workspace.nmplan(&line).events() {
            fits(&known, &event);
            types.insert(event["type"].as_str().unwrap().to_owned());
        }
    }
    for event in known["oneOf"].as_array().unwrap() {
        let name = event["properties"]["type"]["const"].as_str().unwrap();
        assert!(types.contains(name), "{name} is tried");
    }
}

#[test]
fn what_a_schema_does_not_describe_does_not_fit_it() {
    let schema = plan();
    let plan = workspace().nmplan("plan -C @after --project acme --format json");
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let changes: [fn(&mut Value); 8] = [
        |plan| plan["surprise"] = 1.into(),
        |plan| plan["format"] = "9.9".into(),
        |plan| plan["digest"] = "0123".into(),
        |plan| plan["changes"][0]["id"] = "Corp".into(),
        |plan| plan["changes"][0]["after"]["surprise"] = 1.into(),
        |plan| plan["changes"][0]["action"] = "explode".into(),
        |plan| plan["impact"][0]["peers_added"] = "two".into(),
        |plan| drop(plan.as_object_mut().unwrap().remove("digest")),
    ];
    fits(&schema, &plan);
    for change in changes {
        let mut changed = plan.clone();
        change(&mut changed);
        assert!(!misfits(&schema, &changed).is_empty(), "{changed:#}");
    }
}

#[test]
fn the_schema_of_the_files_is_the_one_of_the_reference() {
    let printed = workspace().nmplan("schema");
    let printed: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!(printed, schema::reference::file_schema(schema::kinds::Kind::DESCRIPTORS));
}
