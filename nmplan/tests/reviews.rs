//! The plans of `examples/reviews`, as a reviewer reads them: each is a folder with what is declared before, of which
//! every node has joined, and after.
//!
//! The recorded text has to answer what changes, for whom, who reaches whom, what breaks, and what to watch.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use schema::compile::allocate::{Allocator, ReservedAddresses};
use schema::inventory::{Joined, NodeId};
use schema::kinds::Node;
use schema::scalars::Name;
use schema::world::World;
use workspace::{Workspace, example, joined};

/// Lets every declared node join, in the order of the file's networks and of their names.
fn join_all(world: &mut World) {
    let declared = world.snapshot.clone();
    let mut number = 0;
    for (network, _) in declared.networks() {
        for (id, node) in declared.all_in::<Node>(network) {
            number += 1;
            let reserved = ReservedAddresses::of(network, &declared, &[]);
            let inventory = world.inventory.clone();
            let mut allocator =
                Allocator::new(network, &declared, &reserved, &inventory, Timestamp::UNIX_EPOCH);
            let addresses: BTreeSet<IpAddr> =
                allocator.addresses(&id.name, &BTreeSet::new(), &inventory).unwrap();
            let key: Option<Name> =
                declared.all_in::<schema::kinds::AccessKey>(network).next().map(|(id, _)| id.name.clone());
            let one = Joined { addresses, claimed: true, key, tags: node.tags.clone(), ..joined(number) };
            world.inventory.put_node(NodeId::of(network, &id.name), one);
        }
    }
}

/// What is printed of the plan from one state of a review to the other, as wide as that.
fn review(folder: &str, columns: Option<usize>) -> String {
    let workspace = Workspace { columns, ..Workspace::new(World { epoch: 7, ..World::default() }) };
    let run = |verb: &str, state: &str| {
        let text = std::fs::read_to_string(format!("{folder}/{state}.kdl")).unwrap();
        workspace.write("corp.kdl", &text);
        workspace.nmplan(&format!("{verb} --project acme -f @corp.kdl"))
    };
    assert_eq!(run("apply -y --keys-to @keys.json", "1-before").exit, 0);
    workspace.server.change_elsewhere(join_all);
    let planned = run("plan", "2-after");
    planned.all().replace(&workspace.path("").display().to_string(), "")
}

#[test]
fn a_reviewer_reads_what_a_change_does() {
    let mut folders: Vec<_> =
        std::fs::read_dir(example("reviews")).unwrap().map(|it| it.unwrap().path()).collect();
    folders.sort();
    assert_eq!(folders.len(), 10);
    for folder in folders {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let after = std::fs::read_to_string(folder.join("2-after.kdl")).unwrap();
        let why = after.lines().next().unwrap().trim_start_matches("// ").to_owned();
        let text = review(folder.to_str().unwrap(), None);
        insta::assert_snapshot!(format!("review_{name}"), format!("{why}\n\n{text}"));
    }
}

#[test]
fn a_plan_fits_sixty_columns() {
    let text = review(&example("reviews/hub"), Some(60));
    let long = text.lines().filter(|line| line.chars().count() > 60).collect::<Vec<_>>();
    // What is copied stays in one piece.
    let is_whole = |line: &&str| line.starts_with("    nmplan ") || !line.trim_start().contains(' ');
    assert!(long.iter().all(is_whole), "{long:#?}");
    insta::assert_snapshot!("review_hub_in_60_columns", text);
}
