//! Worlds of many nodes in memory, and what it costs to follow their changes: no server, no wire, one core.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use schema::compile::{Changed, Mesh};
use schema::inventory::{Endpoints, Joined, NodeId};
use schema::scalars::{Identity, Name, NetworkName, WireGuardKey};
use schema::world::{ResourceDocument, World};

/// How often each change is followed; the median counts.
pub const ROUNDS: usize = 101;

/// A number that an environment variable sets.
///
/// # Panics
///
/// When it is set to anything else.
pub fn number(variable: &str, otherwise: u32) -> u32 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// The network of these worlds.
pub fn network() -> NetworkName {
    "corp".parse().expect("a name")
}

/// The node of a number.
pub fn id(number: u32) -> NodeId {
    NodeId { network: network(), name: format!("n{number}").parse().expect("a name") }
}

/// Declares a resource, by its JSON body.
///
/// # Panics
///
/// When it is not valid.
pub fn declare(world: &mut World, id: &str, body: &str) {
    let text = format!(r#"{{"id":"{id}","body":{body}}}"#);
    let document: ResourceDocument = serde_json::from_str(&text).expect("a document");
    world.snapshot.put(document.id.clone(), document.entry().expect("it is valid"));
}

/// Lets the node of a number join with these tags.
pub fn put_node(world: &mut World, number: u32, tags: impl IntoIterator<Item = Name>) {
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
        tags: tags.into_iter().collect(),
        key: None,
        claimed: false,
        joined: Timestamp::UNIX_EPOCH,
        problems: Vec::new(),
        os: "linux".into(),
    };
    world.inventory.put_node(id(number), joined);
}

/// Compiles the network.
pub fn compile(world: &World) -> Mesh {
    Mesh::compile(&network(), &world.snapshot, &world.inventory).expect("it is declared")
}

/// The mesh after a change of the world.
pub fn follow(mesh: &Mesh, before: &World, after: &World) -> Mesh {
    let changed = Changed::between(before.parts(), after.parts());
    mesh.follow(&after.snapshot, &after.inventory, &changed).expect("it is declared")
}

/// The median of following one change of `before`, each round another one.
pub fn followed(mesh: &Mesh, before: &World, change: impl Fn(&mut World, usize)) -> Duration {
    let round = |round| {
        let mut after = before.clone();
        change(&mut after, round);
        let changed = Changed::between(before.parts(), after.parts());
        timed(|| mesh.follow(&after.snapshot, &after.inventory, &changed))
    };
    median((0..ROUNDS).map(round).collect())
}

/// How long something takes, without the end of what it made.
pub fn timed<T>(act: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let made = black_box(act());
    let took = start.elapsed();
    drop(made);
    took
}

/// The median of some times.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
