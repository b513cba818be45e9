//! What does a plan cost that changes something in a large network, with its impact on each node and with who reaches
//! whom?
//!
//! The whole program, against a running server: the fetch is in it. Two networks: 1,000 nodes, of which all have joined,
//! 2,000 objects and 100 rules; and 10,000 nodes that have joined, of which 1,000 are declared, with 100 rules. `RUNS` (5).
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::path::Path;
use std::process::Command;

use end_to_end::cost::{Costs, measure, median};
use end_to_end::load::{private_folder, seed_world};
use end_to_end::loopback::Server;
use end_to_end::meshes::{declare, number};
use end_to_end::roles::{rule, side, world};
use nmplan::lab::Programs;
use schema::document::{Document, Spanned};
use schema::snapshot::{Entry, Owner, ResourceId, Revision, Snapshot};
use schema::syntax::{Language, print};
use schema::value::{SourceId, Span};
use schema::world::World;

/// What the files say that the server does not have yet.
type Change = fn(&mut World);

fn main() {
    let programs = Programs::find().expect("the release build of the programs");
    println!("| | CPU | wall | memory | limit |\n| --- | --- | --- | --- | --- |");
    for (nodes, entries, limit) in [(1_000, 880, "300 ms"), (10_000, 0, "1.5 s")] {
        let mut before = world("deny", nodes, 100);
        for place in 0..entries {
            declare(&mut before, &format!("corp/dns/e{place}"), &format!(r#"{{"node":"n{place}"}}"#));
        }
        let objects = before.snapshot.len();
        let changes: [(&str, Change); 4] = [
            ("nothing", |_| {}),
            ("one more rule", |world| rule(world, "more", [&side(3), &side(33)], 7)),
            ("every rule for another port", |world| {
                (0..100).for_each(|place| {
                    rule(
                        world,
                        &format!("r{place}"),
                        [&side(place * 13 % 47), &side((place * 29 + 5) % 47)],
                        place + 1,
                    );
                });
            }),
            ("a hub", |world| {
                declare(world, "corp", r#"{"ipv4":"10.0.0.0/8","acl":"deny","hub":"n7"}"#);
            }),
        ];
        for (what, change) in changes {
            let folder = private_folder();
            let mut after = before.clone();
            change(&mut after);
            let data = folder.path().join("data");
            seed_world(&data, &managed(&before));
            let server = Server::start(&programs.nmserver, folder.path());
            write(folder.path(), &after.snapshot);
            for format in ["text", "json"] {
                let runs = number("RUNS", 5);
                let one = || {
                    let mut command = Command::new(&programs.nmplan);
                    command.args(["plan", "--project", "acme", "--format", format]);
                    command.arg("-f").arg(folder.path().join("corp.kdl")).envs(server.environment.clone());
                    measure(command)
                };
                // The first one warms the caches.
                let costs: Costs = (0..=runs).map(|_| one()).collect();
                let cost = median(&costs[1..]);
                println!(
                    "| {nodes} nodes, {objects} objects: {what}, as {format} | {:.0} ms | {:.0} ms | {} MiB | {limit} |",
                    cost.cpu.as_secs_f64() * 1e3,
                    cost.wall.as_secs_f64() * 1e3,
                    cost.memory >> 20
                );
            }
        }
    }
}

/// The same, managed by the project of the files.
fn managed(world: &World) -> World {
    let owner: Owner = "acme/default".parse().expect("good");
    let mut managed = world.clone();
    for (id, entry) in world.snapshot.entries() {
        let entry = Entry { owner: Some(owner.clone()), revision: Revision(1), ..entry.clone() };
        managed.snapshot.put(id.clone(), entry);
    }
    managed
}

fn write(folder: &Path, declared: &Snapshot) {
    let spanned = |text: &str| Spanned { text: text.into(), span: Span::default() };
    let document = |(id, entry): (&ResourceId, &Entry)| Document {
        descriptor: id.kind.descriptor(),
        source: SourceId(0),
        name: spanned(id.name.as_str()),
        parent: id.kind.descriptor().within.map(|_| spanned(id.network.as_str())),
        fields: entry.object.body().as_record().expect("bodies are records").clone(),
        whole: true,
    };
    let documents: Vec<Document> = declared.entries().map(document).collect();
    std::fs::write(folder.join("corp.kdl"), print(&documents, Language::Kdl)).expect("written");
}
