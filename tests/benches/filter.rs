//! What do access rules cost a node of a large network: setting its packet filter, following one more peer,
//! and each packet? Beside it the same node where everybody may open everything, and one without any table.
//!
//! ```text
//! a ==== underlay ==== b
//! ```
//!
//! The interface that b judges is that of the underlay, so that no tunnel's cost hides the filter's; what one
//! more peer costs the device is measured in `comms.rs`. `PEERS` (10000) and `CLASSES` (300) change the size.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use end_to_end::in_lab;
use end_to_end::meshes::{ROUNDS, compile, declare, id, median, number, put_node, timed};
use ipnet::Ipv4Net;
use netclient::host::{Host as _, System};
use netclient::outside::{Mark, Outside, Slot};
use netclient::tunnels::TunnelChanges;
use nmplan::lab::{Host, Underlay};
use schema::inventory::Joined;
use schema::view::{View, ViewDelta};
use schema::world::World;

const INTERFACE: &str = "eth0";
const PORT: u16 = 7;
/// How often a whole table is set; the median counts.
const TABLES: usize = 11;
/// How often each way is measured, in turns, and how many packets go there and back each time.
const TURNS: usize = 15;
const PACKETS: usize = 2_000;

fn main() {
    in_lab(measure());
}

/// The node that is measured, in a network with or without rules.
struct Node<'a> {
    host: &'a Host,
    world: World,
    view: View,
}

async fn measure() {
    let underlay = Underlay::new().await.expect("an underlay");
    let [a, b] = [underlay.host("a").await, underlay.host("b").await].map(|host| host.expect("a host"));
    let (peers, classes) = (number("PEERS", 10_000), number("CLASSES", 300));
    let nodes = ["allow", "deny"].map(|acl| Node::new(acl, &a, &b, (peers, classes)));
    assert_eq!(nodes[1].view.access.len(), usize::try_from(classes).expect("few"));
    println!("{} peers, {classes} classes\n", nodes[1].view.peers.len());
    println!("| | `acl \"allow\"` | `acl \"deny\"` |");
    println!("| --- | --- | --- |");
    let [allow, deny] = nodes.each_ref().map(|node| node.one_more(classes));
    row("one more peer: computing what changes", [Some(allow.computing), Some(deny.computing)]);
    row(
        "one more peer: its address in the table of the agent, by netlink",
        [Some(allow.own), Some(deny.own)],
    );
    row("one more peer: its class in the table of the network, by netlink", [None, deny.class]);
    row("the table of the agent, whole, by nft(8)", nodes.each_ref().map(|node| Some(node.own_table())));
    row("the table of the network, whole, by nft(8)", [None, Some(nodes[1].access_table())]);
    println!("\n| a packet there and back | |");
    println!("| --- | --- |");
    round_trips(&a, &nodes);
}

fn row(what: &str, times: [Option<Duration>; 2]) {
    let cell = |time: Option<Duration>| {
        time.map(|time| format!("{:.3} ms", time.as_secs_f64() * 1e3)).unwrap_or_default()
    };
    println!("| {what} | {} | {} |", cell(times[0]), cell(times[1]));
}

/// What following one more peer takes.
struct OneMore {
    computing: Duration,
    own: Duration,
    /// Absent: there are no rules.
    class: Option<Duration>,
}

impl<'a> Node<'a> {
    /// b, of whose many peers a is one; with rules, each class of them may open one port there.
    fn new(acl: &str, a: &Host, b: &'a Host, (peers, classes): (u32, u32)) -> Self {
        let mut world = World { epoch: 1, ..World::default() };
        let range = Ipv4Net::new(b.ipv4(), 8).expect("a range").trunc();
        declare(&mut world, "corp", &format!(r#"{{"ipv4":"{range}","acl":"{acl}"}}"#));
        for class in (0..classes).filter(|_| acl == "deny") {
            let body = format!(r#"{{"from":"tag:c{class}","to":"n0","proto":"udp","ports":[{PORT}]}}"#);
            declare(&mut world, &format!("corp/allow/r{class}"), &body);
        }
        put_node(&mut world, 0, []);
        (1..=peers).for_each(|number| put_peer(&mut world, number, classes));
        for (number, host) in [(0, b), (1, a)] {
            let joined = world.inventory.node(&id(number)).expect("it has joined").clone();
            let addresses = [host.ipv4().into()].into();
            world.inventory.put_node(id(number), Joined { addresses, ..(*joined).clone() });
        }
        let view = view_of(&world);
        Self { host: b, world, view }
    }

    fn system(&self) -> System {
        self.remove_tables();
        let system = System::default();
        self.host.within(|| {
            system.set_filter(slot(), &self.outside()).expect("it is set");
            if let Some(filter) = self.filter() {
                system.set_access(&filter).expect("it is set");
            }
        });
        system
    }

    fn remove_tables(&self) {
        let emptied = self.host.within(|| Command::new("nft").args(["flush", "ruleset"]).status());
        assert!(emptied.expect("nft is installed").success());
    }

    fn outside(&self) -> Outside {
        Outside::of([(INTERFACE, &self.view)])
    }

    fn filter(&self) -> Option<netclient::filter::Filter> {
        netclient::filter::Filter::of(INTERFACE, &self.view)
    }

    fn own_table(&self) -> Duration {
        self.table(|system| system.set_filter(slot(), &self.outside()).expect("it is set"))
    }

    fn access_table(&self) -> Duration {
        let filter = self.filter().expect("it has rules");
        self.table(|system| system.set_access(&filter).expect("it is set"))
    }

    /// The median of setting a table that is not there.
    fn table(&self, set: impl Fn(&System) + Sync) -> Duration {
        let one = |_| {
            self.remove_tables();
            let system = System::default();
            self.host.within(|| timed(|| set(&system)))
        };
        median((0..TABLES).map(one).collect())
    }

    /// The medians of what an agent does of one more peer, each round another one, but for its device.
    fn one_more(&self, classes: u32) -> OneMore {
        let system = self.system();
        let (mut computing, mut own, mut class) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let mut world = self.world.clone();
            put_peer(&mut world, 20_000 + u32::try_from(round).expect("few"), classes);
            let delta = ViewDelta::between(&self.view, &view_of(&world));
            let mut changes = None;
            computing.push(timed(|| {
                let mut after = self.view.clone();
                delta.clone().apply(&mut after);
                changes = TunnelChanges::between(&self.view, &after);
            }));
            let changes = changes.expect("the interface is as it was");
            let new: BTreeSet<IpAddr> = changes.members.keys().copied().collect();
            assert_eq!((new.len(), changes.tunnels.len()), (1, 1), "one more peer");
            self.host.within(|| {
                let change = || system.change_members(slot(), &BTreeSet::new(), &new).expect("it is added");
                own.push(timed(change));
                if self.view.interface.restricted {
                    assert_eq!(changes.filter.members.len(), 1, "one more element");
                    let change = || system.change_access(INTERFACE, &changes.filter).expect("it is added");
                    class.push(timed(change));
                }
            });
        }
        let class = (!class.is_empty()).then(|| median(class));
        OneMore { computing: median(computing), own: median(own), class }
    }
}

fn put_peer(world: &mut World, number: u32, classes: u32) {
    put_node(world, number, [format!("c{}", number % classes).parse().expect("a tag")]);
}

fn view_of(world: &World) -> View {
    compile(world).view(&id(0).name).expect("it has joined")
}

/// The names and numbers of most agents.
fn slot() -> Slot {
    let usual = Path::new("/var/lib/netclient");
    Slot::candidates(usual, usual, Mark::default())[0]
}

/// What a packet and its answer take, in turns: without any table, without rules, and with them.
fn round_trips(a: &Host, [allow, deny]: &[Node<'_>; 2]) {
    let ways = [("no table", None), ("`acl \"allow\"`", Some(allow)), ("`acl \"deny\"`", Some(deny))];
    let mut times = ways.each_ref().map(|_| Vec::new());
    for _ in 0..TURNS {
        for ((_, node), times) in ways.iter().zip(&mut times) {
            match node {
                Some(node) => drop(node.system()),
                None => allow.remove_tables(),
            }
            times.push(echo(a, deny.host));
        }
    }
    let times = times.map(median);
    for ((what, _), time) in ways.iter().zip(times) {
        let ratio = time.as_secs_f64() / times[0].as_secs_f64();
        println!("| {what} | {:.1} µs ({ratio:.2}) |", time.as_secs_f64() * 1e6);
    }
}

/// The mean time of a packet there and back.
fn echo(from: &Host, to: &Host) -> Duration {
    let at = SocketAddr::from((to.ipv4(), PORT));
    let answering = to.within(|| UdpSocket::bind(at)).expect("the port is free");
    answering.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            for _ in 0..PACKETS {
                let (length, whose) = answering.recv_from(&mut buffer).expect("it is let through");
                answering.send_to(&buffer[..length], whose).expect("it is sent");
            }
        });
        let asking = from.within(|| UdpSocket::bind((from.ipv4(), 0))).expect("a socket");
        asking.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
        asking.connect(at).expect("there is a route");
        let mut buffer = [0; 64];
        let start = Instant::now();
        for _ in 0..PACKETS {
            asking.send(&buffer).expect("it is sent");
            asking.recv(&mut buffer).expect("it is answered");
        }
        start.elapsed() / u32::try_from(PACKETS).expect("few")
    })
}
