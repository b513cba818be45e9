//! The stories of `examples/stories`: each is a folder of desired states, applied one after the other.
//!
//! Each state is valid, without warnings; its plan equals the recorded one (so that a review shows what users
//! read), it applies, and a second plan is empty. Nodes join between states ([`JOINS`]), so that plans show how
//! they are affected.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use std::path::PathBuf;

use schema::inventory::{Joined, NodeId};
use schema::kinds::{AccessKey, Node};
use schema::scalars::{Name, NetworkName};
use schema::world::World;
use workspace::{Workspace, example, joined};

/// A node that joins: its name, the last part of its addresses, and the key that lets it join.
type Joining<'a> = (&'a str, u8, &'a str);

/// Which nodes join in a story once its state of that number is applied.
const JOINS: &[(&str, usize, &[Joining<'_>])] = &[
    ("first-mesh", 1, &[("gw", 1, "first"), ("db", 2, "first"), ("laptop", 3, "first")]),
    (
        "who-may-talk",
        1,
        &[
            ("db-1", 1, "first"),
            ("laptop-ana", 2, "first"),
            ("laptop-ben", 3, "first"),
            ("mon-1", 4, "first"),
            ("web-1", 5, "first"),
        ],
    ),
    ("who-may-talk", 5, &[("voice-1", 6, "voice"), ("runner-1", 7, "runner")]),
    ("two-offices", 1, &[("gw-fra", 1, "first"), ("gw-muc", 2, "first"), ("laptop-ana", 3, "first")]),
    ("two-offices", 3, &[("gw-fra-2", 4, "second")]),
    ("road-warriors", 1, &[("db-1", 1, "first"), ("gw-fra", 2, "first"), ("web-1", 3, "first")]),
    (
        "exit",
        1,
        &[
            ("exit-fra", 1, "first"),
            ("laptop-ana", 2, "first"),
            ("laptop-ben", 3, "first"),
            ("server-1", 4, "first"),
        ],
    ),
    ("exit", 3, &[("exit-muc", 5, "second")]),
    (
        "behind-nat",
        1,
        &[("hq-1", 1, "first"), ("hq-2", 2, "first"), ("till-1", 3, "first"), ("branches-1", 4, "branches")],
    ),
];

/// Lets nodes join the network corp, with addresses of its families and the tags of their keys.
fn join(world: &mut World, nodes: &[Joining<'_>]) {
    let corp: NetworkName = "corp".parse().unwrap();
    let (_, network) = world.snapshot.networks().find(|(name, _)| **name == corp).unwrap();
    let has_ipv6 = network.ipv6.is_some();
    for (name, number, key) in nodes {
        let id = NodeId { network: corp.clone(), name: name.parse().unwrap() };
        let key: Name = key.parse().unwrap();
        let tags = world.snapshot.named::<AccessKey>(&corp, &key).unwrap().tags.clone();
        let claimed = world.snapshot.named::<Node>(&corp, &id.name).is_some();
        let mut node = Joined { claimed, tags, key: Some(key), ..joined(*number) };
        let ipv6 = format!("fd40:40::{number:x}");
        node.addresses.extend(has_ipv6.then(|| ipv6.parse::<std::net::IpAddr>().unwrap()));
        world.inventory.put_node(id, node);
    }
}

fn sorted(folder: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn stem(path: &std::path::Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn every_story_is_planned_and_applied_state_by_state() {
    let stories = sorted(&example("stories"));
    assert!(!stories.is_empty());
    for story in stories {
        let workspace = Workspace::new(World { epoch: 7, ..World::default() });
        let mut plans = String::new();
        for (index, state) in sorted(&story.display().to_string()).iter().enumerate() {
            let file = state.display().to_string();
            let run = |verb: &str| workspace.nmplan(&format!("{verb} --project acme -f {file}"));
            let valid = run("validate").all();
            let warns = valid.contains("warning");
            assert!(valid.ends_with("[exit 0]") && !warns, "without problems and warnings: {valid}");
            let plan = run("plan").all().replace(&file, "FILE");
            plans.push_str(&format!("=== {}\n\n{plan}\n\n", stem(state)));
            let applied = run("apply -y --keys-to @keys.json");
            assert_eq!(applied.exit, 0, "{file}: {}", applied.all());
            let again = run("plan --detailed-exitcode");
            assert_eq!(again.exit, 0, "{file}: a plan after the apply is empty: {}", again.all());
            let joins = JOINS.iter().filter(|(of, number, _)| (*of, *number) == (&*stem(&story), index + 1));
            joins.for_each(|(.., nodes)| workspace.server.change_elsewhere(|world| join(world, nodes)));
        }
        insta::assert_snapshot!(format!("story_{}", stem(&story)), plans);
    }
}
