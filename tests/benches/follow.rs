//! What does it cost the compiler to follow a change of a large network, compared with compiling the network
//! again?
//!
//! Everything is in memory and on one core: no server, no wire. `NODES` (10000) and `ENTRIES` (1000) change
//! the size.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use schema::compile::{Changed, Mesh};
use schema::inventory::{Endpoints, Joined, NodeId};
use schema::scalars::{Identity, NetworkName, WireGuardKey};
use schema::world::{ResourceDocument, World};

/// How often each change is followed; the median is printed.
const ROUNDS: usize = 101;

fn main() {
    let nodes = number("NODES", 10_000);
    let entries = number("ENTRIES", 1_000);
    let world = world(nodes, entries);
    let network = network();
    println!("{nodes} nodes, {entries} DNS entries\n");
    println!("| what changes | median | against a join |");
    println!("| --- | --- | --- |");
    let mesh = compile(&world);
    let join = followed(&mesh, &world, |world, round| {
        put_node(world, nodes + u32::try_from(round).expect("few"));
    });
    row("a node joins", join, join);
    let endpoint = followed(&mesh, &world, |world, round| {
        let id = id(u32::try_from(round).expect("few"));
        let joined = world.inventory.node(&id).expect("it has joined").clone();
        world.inventory.put_node(id, Joined { listen_port: 4_000, ..(*joined).clone() });
    });
    row("a node's port", endpoint, join);
    let target = followed(&mesh, &world, |world, round| {
        declare_entry(world, 5, u32::try_from(round).expect("few") + 7)
    });
    row("where one DNS entry leads", target, join);
    let fresh = followed(&mesh, &world, |world, round| {
        declare_entry(world, entries + u32::try_from(round).expect("few"), 3);
    });
    row("one more DNS entry", fresh, join);
    let setting = followed(&mesh, &world, |world, round| declare_network(world, 21 + round));
    row("a setting of the network (keepalive)", setting, join);
    let again = median(
        (0..11).map(|_| timed(|| Mesh::compile(&network, &world.snapshot, &world.inventory))).collect(),
    );
    row("compiled again", again, join);
}

fn number(variable: &str, otherwise: u32) -> u32 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn network() -> NetworkName {
    "corp".parse().expect("a name")
}

fn id(number: u32) -> NodeId {
    NodeId { network: network(), name: format!("n{number}").parse().expect("a name") }
}

fn world(nodes: u32, entries: u32) -> World {
    let mut world = World { epoch: 1, ..World::default() };
    declare_network(&mut world, 20);
    for entry in 0..entries {
        declare_entry(&mut world, entry, entry * 7 % nodes);
    }
    (0..nodes).for_each(|number| put_node(&mut world, number));
    world
}

fn declare(world: &mut World, id: &str, body: &str) {
    let text = format!(r#"{{"id":"{id}","body":{body}}}"#);
    let document: ResourceDocument = serde_json::from_str(&text).expect("a document");
    world.snapshot.put(document.id.clone(), document.entry().expect("it is valid"));
}

fn declare_network(world: &mut World, keepalive: usize) {
    declare(world, "corp", &format!(r#"{{"ipv4":"10.0.0.0/8","keepalive":"{keepalive}s"}}"#));
}

fn declare_entry(world: &mut World, number: u32, target: u32) {
    declare(world, &format!("corp/node/n{target}"), "{}");
    declare(world, &format!("corp/dns/e{number}"), &format!(r#"{{"node":"n{target}"}}"#));
}

fn put_node(world: &mut World, number: u32) {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let joined = Joined {
        public_key: WireGuardKey(key),
        identity: Identity(key),
        addresses: [IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + number))].into(),
        endpoints: Endpoints {
            seen: Some(Ipv4Addr::from(0xc612_0000 | number & 0xffff).into()),
            ..Endpoints::default()
        },
        listen_port: 51_821,
        tags: Default::default(),
        key: None,
        claimed: false,
        joined: Timestamp::UNIX_EPOCH,
        problems: Vec::new(),
        os: "linux".into(),
    };
    world.inventory.put_node(id(number), joined);
}

fn compile(world: &World) -> Mesh {
    Mesh::compile(&network(), &world.snapshot, &world.inventory).expect("it is declared")
}

/// The median of following one change of `before`, each round another one.
fn followed(mesh: &Mesh, before: &World, change: impl Fn(&mut World, usize)) -> Duration {
    let round = |round| {
        let mut after = before.clone();
        change(&mut after, round);
        let changed = Changed::between(before.parts(), after.parts());
        timed(|| mesh.follow(&after.snapshot, &after.inventory, &changed))
    };
    median((0..ROUNDS).map(round).collect())
}

fn timed<T>(act: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(act());
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn row(what: &str, time: Duration, join: Duration) {
    let ratio = time.as_secs_f64() / join.as_secs_f64();
    println!("| {what} | {:.1} µs | {ratio:.1} |", time.as_secs_f64() * 1e6);
}
