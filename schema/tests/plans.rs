//! The saved form of a plan, and its digest: what a reviewer approves must mean the same to every later
//! version.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;

use jiff::Timestamp;

use schema::decode::{Declared, decode};
use schema::inventory::{Endpoints, Inventory, Joined, NodeId};
use schema::kinds::Kind;
use schema::plan::{Plan, plan};
use schema::rules;
use schema::scalars::{Identity, NetworkName, SigningKey, WireGuardKey};
use schema::snapshot::{Entry, Owner, Revision};
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;
use schema::world::{ServerInfo, World};

const BEFORE: &str = r#"
network "corp" {
    ipv4 "10.40.0.0/16"
    node "gw" ipv4="10.40.0.1"
    node "old"
    dns "api" a="10.40.9.9"
    dns "gone" cname="gw.corp"
}
"#;

const AFTER: &str = r#"
network "corp" {
    ipv4 "10.40.0.0/16"
    ipv6 "fd40:40::/64"
    hub "gw"
    node "gw" ipv4="10.40.0.2" { tags "fra" "gateway" }
    node "laptop"
    access-key "ci" uses=50 expires="30d"
    dns "api" a="10.40.0.3" ttl="5m"
}
"#;

fn declared(text: &str) -> Declared {
    let source = Source { name: "corp.kdl".into(), text: text.into(), language: Language::Kdl };
    let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    assert!(report.is_empty(), "{report:#?}");
    let (declared, mut report) = decode(documents);
    report.append(rules::check(&declared.snapshot, &declared.source_map));
    assert!(report.is_empty(), "{report:#?}");
    declared
}

fn owner() -> Owner {
    "acme/prod".parse().unwrap()
}

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn joined(number: u8, claimed: bool) -> Joined {
    Joined {
        public_key: WireGuardKey([number; 32]),
        identity: Identity([number + 100; 32]),
        addresses: BTreeSet::from([format!("10.40.0.{number}").parse().unwrap()]),
        endpoints: Endpoints { configured: "192.0.2.10:51821".parse().ok(), ..Endpoints::default() },
        listen_port: 51_821,
        tags: BTreeSet::new(),
        key: Some("first".parse().unwrap()),
        claimed,
        joined: now(),
        problems: Vec::new(),
        os: "linux".into(),
    }
}

fn world() -> World {
    let mut world = World { epoch: 1_795_000_000, revision: Revision(7), ..World::default() };
    for (id, entry) in declared(BEFORE).snapshot.entries() {
        world
            .snapshot
            .put(id.clone(), Entry { owner: Some(owner()), revision: Revision(5), ..entry.clone() });
    }
    let corp: NetworkName = "corp".parse().unwrap();
    let mut inventory = Inventory::default();
    for (name, number, claimed) in
        [("gw", 1, true), ("old", 2, true), ("laptop", 3, false), ("other", 4, false)]
    {
        inventory
            .put_node(NodeId { network: corp.clone(), name: name.parse().unwrap() }, joined(number, claimed));
    }
    World { inventory, ..world }
}

fn server(version: &str) -> ServerInfo {
    ServerInfo {
        id: "0f8fad5bd9cb469fa165".into(),
        epoch: 1_795_000_000,
        agent_addresses: vec!["198.51.100.1:50051".into()],
        signing_key: SigningKey([9; 32]),
        ca_pin: None,
        version: version.into(),
        comms_range: None,
        own_node: None,
        addresses: Vec::new(),
    }
}

fn planned() -> Plan {
    plan(&declared(AFTER), &owner(), None, &world(), &server("0.1.0"), now()).unwrap()
}

#[test]
fn the_saved_form_of_a_plan_and_its_digest_are_stable() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&planned()).unwrap());
}

#[test]
fn the_digest_follows_what_the_plan_does_and_nothing_else() {
    let plan = planned();
    let digest = |change: fn(&mut Plan)| {
        let mut changed = plan.clone();
        change(&mut changed);
        changed.digest_now()
    };
    let same: [fn(&mut Plan); 4] = [
        |plan| plan.format = "9.9".into(),
        |plan| plan.impact.clear(),
        |plan| plan.reach.clear(),
        |plan| plan.server.revision = Revision(9),
    ];
    for change in same {
        assert_eq!(digest(change), plan.digest);
    }
    let other: [fn(&mut Plan); 5] = [
        |plan| drop(plan.changes.pop()),
        |plan| plan.base_revisions.clear(),
        |plan| plan.binds.clear(),
        |plan| plan.env = "dev".parse().unwrap(),
        |plan| plan.server.id = "another".into(),
    ];
    for change in other {
        assert_ne!(digest(change), plan.digest);
    }
}

#[test]
fn the_digest_does_not_depend_on_the_time_the_version_or_the_order_of_the_file() {
    let turned: Vec<_> = AFTER.lines().filter(|line| line.starts_with("    ")).rev().collect();
    let turned = format!("network \"corp\" {{\n{}\n}}", turned.join("\n"));
    let later = "2027-01-01T00:00:00Z".parse().unwrap();
    let again = plan(&declared(&turned), &owner(), None, &world(), &server("0.2.0"), later).unwrap();
    assert_eq!(again.digest, planned().digest);
}
