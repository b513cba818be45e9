//! What do access rules cost: compiling a large network, following its changes, what its nodes are sent, a
//! plan? Beside it the same network in which everybody may open everything.
//!
//! Everything is in memory and on one core. `NODES` (10000) and `RULES` (100) change the size.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::collections::BTreeMap;
use std::time::Duration;

use end_to_end::load::memory_of;
use end_to_end::meshes::{compile, declare, follow, followed, median, network, number, put_node, timed};
use end_to_end::roles::{GROUPS, ROLES, group, join, rule, side, tag, world};
use jiff::Timestamp;
use prost::Message as _;
use proto::convert::encode_delta;
use proto::position::{Position, Stamp};
use proto::sign::{Header, SignedBody, from_seed};
use schema::chain::ChainHash;
use schema::compile::Mesh;
use schema::compile::audience::ViewStep;
use schema::decode::Declared;
use schema::plan::plan;
use schema::scalars::{Name, SigningKey};
use schema::snapshot::{Entry, Owner, Revision};
use schema::source_map::SourceMap;
use schema::world::{ServerInfo, World};

/// How many changes a server remembers.
const REMEMBERED: u32 = 1_024;

/// Something that changes a world, each round another one.
type Change = fn(&mut World, u32);

fn main() {
    let (nodes, rules) = (number("NODES", 10_000), number("RULES", 100));
    // First, while no memory that was freed is there to be used again.
    let kept = remembered(&world("deny", nodes, rules));
    let networks = ["allow", "deny"].map(|acl| world(acl, nodes, rules));
    let meshes = networks.each_ref().map(compile);
    println!("{nodes} nodes, {rules} rules, {} classes\n", meshes[1].classes().count());
    println!("| | `acl \"allow\"` | `acl \"deny\"` | limit |");
    println!("| --- | --- | --- | --- |");
    let compiling = |world: &World| Some(median((0..11).map(|_| timed(|| compile(world))).collect()));
    row("compiling", networks.each_ref().map(compiling), "60 ms");
    let joins: Change = |world, round| join(world, 20_000 + round);
    let changes: [(&str, bool, &str, Change); 6] = [
        ("a node joins", true, "10 µs", joins),
        ("a node joins as the first of its class", false, "", |world, round| {
            put_node(world, 20_000 + round, [tag("role-0"), tag("role-1"), tag("role-2")]);
        }),
        ("a rule between known sides", false, "2 ms", |world, round| {
            rule(world, "more", [&side(3 + round % 20), &side(30 + round % 17)], 1);
        }),
        ("a rule with a side that is new", false, "", |world, round| {
            rule(world, "more", [&format!("n{round}"), &side(30 + round % 17)], 1);
        }),
        ("a group gets one more node", false, "", |world, round| group(world, round % GROUPS, Some(round))),
        ("a group gets one more role", false, "", |world, round| {
            let (place, role) = (round % GROUPS, (round * 3 + 7) % ROLES);
            let tags =
                [place * 3, place * 3 + 1, place * 3 + 2, role].map(|role| format!(r#""role-{role}""#));
            declare(world, &format!("corp/group/g{place}"), &format!(r#"{{"tags":[{}]}}"#, tags.join(",")));
        }),
    ];
    for (what, both, limit, change) in changes {
        let change = |world: &mut World, round: usize| change(world, u32::try_from(round).expect("few"));
        let cost = |place: usize| Some(followed(&meshes[place], &networks[place], change));
        row(&format!("following: {what}"), [both.then(|| cost(0)).flatten(), cost(1)], limit);
    }
    row("a plan of one more rule, with reachability", [None, Some(planned(&networks[1]))], "1 s");
    sent("every node's update after", &networks[1], &meshes[1], &changes);
    println!("\nKept for {REMEMBERED} remembered joins: {kept}");
}

fn row(what: &str, times: [Option<Duration>; 2], limit: &str) {
    let cell = |time: Option<Duration>| match time.map(|time| time.as_secs_f64() * 1e3) {
        Some(millis) if millis >= 1.0 => format!("{millis:.1} ms"),
        Some(millis) => format!("{:.1} µs", millis * 1e3),
        None => String::new(),
    };
    println!("| {what} | {} | {} | {limit} |", cell(times[0]), cell(times[1]));
}

/// The median CPU time of planning one more rule, from the two worlds in memory.
fn planned(world: &World) -> Duration {
    let owner: Owner = "acme/prod".parse().expect("good");
    let mut observed = world.clone();
    for (id, entry) in world.snapshot.entries() {
        let managed = Entry { owner: Some(owner.clone()), revision: Revision(1), ..entry.clone() };
        observed.snapshot.put(id.clone(), managed);
    }
    let mut desired = world.clone();
    rule(&mut desired, "more", [&side(3), &side(33)], 7);
    let declared = Declared { snapshot: desired.snapshot, source_map: SourceMap::default() };
    let server = ServerInfo {
        id: "bench".into(),
        epoch: 1,
        agent_addresses: vec!["192.0.2.1:50051".into()],
        signing_key: SigningKey([1; 32]),
        ca_pin: None,
        version: "0".into(),
        comms_range: None,
        own_node: None,
        addresses: Vec::new(),
    };
    let one = || {
        timed(|| plan(&declared, &owner, None, &observed, &server, Timestamp::UNIX_EPOCH).expect("it fits"))
    };
    median((0..11).map(|_| one()).collect())
}

/// Prints what nodes are sent after each change: how many hear of it, and the largest update as it travels,
/// signature included.
fn sent(what: &str, before: &World, mesh: &Mesh, changes: &[(&str, bool, &str, Change)]) {
    println!("\n| {what} | nodes that hear of it | bytes, median | bytes, at most | encoding all |");
    println!("| --- | --- | --- | --- | --- |");
    for (what, _, _, change) in changes {
        let mut after = before.clone();
        change(&mut after, 1);
        let later = follow(mesh, before, &after);
        let mut updates = Vec::new();
        let encoding = timed(|| updates = encoded(mesh, &later));
        let mut sizes: Vec<usize> = updates.iter().map(|(node, body)| signed(node, body.clone())).collect();
        sizes.sort_unstable();
        let [middle, most] =
            [sizes.len() / 2, sizes.len().saturating_sub(1)].map(|at| sizes.get(at).copied().unwrap_or(0));
        println!("| {what} | {} | {middle} | {most} | {:.1} ms |", sizes.len(), encoding.as_secs_f64() * 1e3);
    }
}

/// The update of every node that is sent one: encoded once for those that are sent the same.
fn encoded(earlier: &Mesh, later: &Mesh) -> Vec<(Name, SignedBody)> {
    let mut shared = BTreeMap::new();
    let nodes = later.nodes().filter_map(|node| {
        let encode = |delta: &schema::view::ViewDelta| {
            (!delta.is_empty()).then(|| SignedBody::delta(encode_delta(delta, later.counts(node))))
        };
        let body = match later.step(earlier, node)? {
            ViewStep::Whole => None,
            ViewStep::Own(delta) => encode(&delta),
            ViewStep::Shared(audience) => shared
                .entry(audience.clone())
                .or_insert_with(|| encode(&later.delta(earlier, &audience)))
                .clone(),
        };
        Some((node.clone(), body?))
    });
    nodes.collect()
}

/// How many bytes an update has, with its signature.
fn signed(node: &Name, body: SignedBody) -> usize {
    let stamp = Stamp::new(&ChainHash::start("bench"), &[9; 32]);
    let at = |revision| Position { epoch: 1, revision: Revision(revision), stamp };
    let header = Header { network: &network(), node, from: at(10_000), to: at(10_001) };
    body.sign(header, &from_seed(&[1; 32])).encoded_len()
}

/// What following joins one after the other adds to this program's memory, where each mesh is kept.
fn remembered(world: &World) -> String {
    let (mut world, mut meshes) = (world.clone(), vec![compile(world)]);
    let before = memory_of(std::process::id());
    for number in 0..REMEMBERED {
        let mut after = world.clone();
        join(&mut after, 30_000 + number);
        meshes.push(follow(&meshes[meshes.len() - 1], &world, &after));
        world = after;
    }
    let kept = memory_of(std::process::id()) - before;
    drop(meshes);
    let kibibytes = kept as f64 / 1024.0;
    format!("{:.1} MiB, {:.1} KiB for each", kibibytes / 1024.0, kibibytes / f64::from(REMEMBERED))
}
