//! What does it cost the compiler to follow a change of a large network, compared with compiling the network
//! again?
//!
//! Everything is in memory and on one core: no server, no wire. `NODES` (10000) and `ENTRIES` (1000) change
//! the size.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::time::Duration;

use end_to_end::meshes::{compile, declare, followed, id, median, number, put_node, timed};
use schema::inventory::Joined;
use schema::world::World;

fn main() {
    let nodes = number("NODES", 10_000);
    let entries = number("ENTRIES", 1_000);
    let world = world(nodes, entries);
    println!("{nodes} nodes, {entries} DNS entries\n");
    println!("| what changes | median | against a join |");
    println!("| --- | --- | --- |");
    let mesh = compile(&world);
    let join = followed(&mesh, &world, |world, round| {
        put_node(world, nodes + u32::try_from(round).expect("few"), []);
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
    let again = median((0..11).map(|_| timed(|| compile(&world))).collect());
    row("compiled again", again, join);
}

fn world(nodes: u32, entries: u32) -> World {
    let mut world = World { epoch: 1, ..World::default() };
    declare_network(&mut world, 20);
    for entry in 0..entries {
        declare_entry(&mut world, entry, entry * 7 % nodes);
    }
    (0..nodes).for_each(|number| put_node(&mut world, number, []));
    world
}

fn declare_network(world: &mut World, keepalive: usize) {
    declare(world, "corp", &format!(r#"{{"ipv4":"10.0.0.0/8","keepalive":"{keepalive}s"}}"#));
}

fn declare_entry(world: &mut World, number: u32, target: u32) {
    declare(world, &format!("corp/node/n{target}"), "{}");
    declare(world, &format!("corp/dns/e{number}"), &format!(r#"{{"node":"n{target}"}}"#));
}

fn row(what: &str, time: Duration, join: Duration) {
    let ratio = time.as_secs_f64() / join.as_secs_f64();
    println!("| {what} | {:.1} µs | {ratio:.1} |", time.as_secs_f64() * 1e6);
}
