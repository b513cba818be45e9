//! Small random networks with packets: they pass exactly where the naive reading of the declarations lets them.
//!
//! ```text
//! nmserver ==== underlay ==== three or four nodes, of which one may be the hub
//! ```
//!
//! Networks and reading are those with which the compiler is compared without packets (`schema/tests/access.rs`).
//! A seed gives a few nodes, and what is declared of their network one after the other: each draw but the first
//! is a change of the one before it, too. `DRAWS` says how many draws there are, 20 by default; `SEED` repeats
//! those of one seed.
#![expect(clippy::print_stderr, reason = "figures of a run")]

#[path = "../../schema/tests/worlds/mod.rs"]
mod worlds;

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use end_to_end::matrix::{self, disagreements};
use end_to_end::{Mesh, eventually, in_runtime, text_of};
use nmplan::control::{ControlPlane, Rest};
use nmplan::lab::{Agent, Service, enter_test};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use schema::access::Protocol;
use schema::attribute::Ref;
use schema::kinds::{AccessKey, Kind, Network, Object};
use schema::scalars::{Name, Seconds};
use schema::snapshot::{Entry, ResourceId, Revision, Snapshot};
use schema::syntax::{Language, print};
use schema::world::World;

use worlds::reading::{Packet, Reading};
use worlds::small::{self, Member, Series, network};

/// How many draws a seed gives.
const LENGTH: usize = 5;
/// How many draws there are by default.
const DRAWS: usize = 20;

#[test]
fn packets_pass_exactly_where_the_naive_reading_of_the_declarations_lets_them() {
    if !enter_test("packets_pass_exactly_where_the_naive_reading_of_the_declarations_lets_them") {
        return;
    }
    in_runtime(async {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let mesh = Mesh::start().await;
        let draws = number("DRAWS").map_or(DRAWS, |draws| usize::try_from(draws).expect("not that many"));
        let seeds: Vec<u64> = match number("SEED") {
            Some(seed) => vec![seed],
            None => (0..draws.div_ceil(LENGTH)).map(|_| random()).collect(),
        };
        let mut tally = Tally::default();
        for (place, seed) in seeds.into_iter().enumerate() {
            eprintln!("SEED={seed}");
            let Series { members, declared } = draw(small::series(LENGTH), seed);
            let corp = Corp::start(&mesh, place, members, &declared[0]).await;
            for (number, declared) in (1..).zip(declared.iter().take(draws - place * LENGTH)) {
                let world = corp.declare(declared).await;
                let reading = Reading::of(network(), &world);
                let disagreements = corp.disagreements(&reading).await;
                let text = corp.text(declared);
                assert!(disagreements.is_empty(), "SEED={seed}, draw {number}:\n{text}{disagreements}");
                tally.add(&reading);
            }
            corp.leave().await;
        }
        eprintln!("{tally}");
        assert!(tally.draws < DRAWS || tally.shows_something(), "{tally}");
    });
}

/// What the draws of a run had.
#[derive(Default)]
struct Tally {
    draws: usize,
    /// Draws with a hub that has joined.
    hubs: usize,
    /// Those of them in which it carries for nodes with which it may not talk itself.
    aloof: usize,
    /// Packets from one node to another that may pass, and all.
    passing: usize,
    packets: usize,
}

impl Tally {
    fn add(&mut self, reading: &Reading<'_>) {
        let (members, packets) = (reading.members(), reading.packets());
        let others = |of| members.iter().filter(move |other| *other != of);
        let hub = reading.hub().filter(|hub| members.contains(*hub));
        let aloof = hub.is_some_and(|hub| {
            others(hub).any(|it| !reading.near(hub, it) && others(it).any(|other| reading.near(it, other)))
        });
        self.draws += 1;
        self.hubs += usize::from(hub.is_some());
        self.aloof += usize::from(aloof);
        for (from, to) in members.iter().flat_map(|from| others(from).map(move |to| (from, to))) {
            self.packets += packets.len();
            let passes = |packet: &&Packet| reading.carries(from, to) && reading.may(from, to, **packet);
            self.passing += packets.iter().filter(passes).count();
        }
    }

    fn shows_something(&self) -> bool {
        0 < self.passing && self.passing < self.packets
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { draws, hubs, aloof, passing, packets } = self;
        write!(
            f,
            "{draws} draws, {hubs} with a hub, {aloof} of which carries for nodes with which it may not talk; "
        )?;
        write!(f, "{passing} of {packets} packets may pass")
    }
}

/// A number that an environment variable gives.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|number| number.parse().expect("it is a number"))
}

/// A seed that no other run has.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// What a seed gives.
fn draw<S: Strategy>(strategy: S, seed: u64) -> S::Value {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    strategy.new_tree(&mut runner).expect("nothing is rejected").current()
}

/// The nodes of a seed, up.
struct Corp<'a> {
    mesh: &'a Mesh,
    server: Rest,
    nodes: Vec<Node>,
}

/// A node that is up.
struct Node {
    member: Member,
    /// The key that it joined with.
    key: ResourceId,
    agent: Agent,
}

impl<'a> Corp<'a> {
    /// Lets them join a network like that which is declared first.
    async fn start(mesh: &'a Mesh, place: usize, members: Vec<Member>, first: &Snapshot) -> Self {
        let variables = mesh.server.environment().map(|(name, value)| (name.to_owned(), value));
        let server = Rest::new(Some(&mesh.server.url()), &variables.into_iter().collect());
        let mut corp = Self { mesh, server: server.expect("it is known"), nodes: Vec::new() };
        for member in members {
            let host = format!("{}-{place}", member.name);
            let key = format!("corp/access-key/key-{host}").parse().expect("an id");
            let agent = Agent::new(&mesh.underlay, &mesh.programs, &host).await.expect("a host");
            corp.nodes.push(Node { member, key, agent });
        }
        let tokens = mesh.apply(&corp.text(&corp.joinable(first))).await;
        for Node { member, key, agent } in &mut corp.nodes {
            agent.join(&tokens[&key.to_string()], &["--name", member.name]).await.expect("it joins");
            agent.start_daemon(&[]).expect("the agent starts");
        }
        corp
    }

    /// So much of what is declared that all can join: the network, and the nodes whose names are claimed. Who
    /// claims none can join only while nobody declares its name.
    fn joinable(&self, declared: &Snapshot) -> Snapshot {
        let claimed: BTreeSet<_> = self
            .nodes
            .iter()
            .map(|node| &node.member)
            .filter(|it| it.claims_a_name())
            .map(|it| it.name)
            .collect();
        let stays = |id: &ResourceId| {
            id.kind == Kind::Network || id.kind == Kind::Node && claimed.contains(id.name.as_str())
        };
        let mut joinable = declared.clone();
        declared.entries().filter(|(id, _)| !stays(id)).for_each(|(id, _)| drop(joinable.delete(id)));
        put_network(&mut joinable, |settings| Network { hub: None, ..settings });
        joinable
    }

    /// What is declared as a file, with the keys of the members. Agents check in often, and addresses that
    /// were given up are given away at once: a small range has them for a few draws only.
    fn text(&self, declared: &Snapshot) -> String {
        let mut declared = declared.clone();
        put_network(&mut declared, |settings| Network {
            check_in: Seconds(1),
            address_quarantine: Seconds(0),
            ..settings
        });
        for Node { member, key, .. } in &self.nodes {
            let names = member.claims_a_name().then(|| Ref::new(name(member.name)));
            let tags = member.tags.iter().map(|tag| name(tag)).collect();
            let settings = AccessKey { uses: None, expires: None, tags, r#for: names.into_iter().collect() };
            put(&mut declared, key.clone(), Object::AccessKey(settings.into()));
        }
        print(&worlds::documents(&declared), Language::Kdl)
    }

    /// Declares something, and waits until every node has applied it; returns the world that it makes.
    async fn declare(&self, declared: &Snapshot) -> World {
        self.mesh.apply(&self.text(declared)).await;
        eventually("every node has applied it", Duration::from_secs(20), async || {
            let status = self.server.status().await.expect("the server answers");
            let newest = status.nodes.iter().filter(|node| node.acknowledged == Some(status.revision));
            let newest: BTreeSet<_> = newest.map(|node| node.name.as_str()).collect();
            self.nodes.iter().all(|node| newest.contains(node.member.name))
        })
        .await;
        let server = self.server.world().await.expect("the server answers");
        World { snapshot: declared.clone(), ..server.world().expect("it is of this version") }
    }

    /// A line for each pair and service of which packets show something else than the reading says.
    async fn disagreements(&self, reading: &Reading<'_>) -> String {
        let services: Vec<_> = reading.packets().into_iter().filter_map(service).collect();
        let everywhere = ["0.0.0.0", "::"].map(|any| any.parse().expect("an address"));
        let listen = |node: &Node| node.agent.host().listen(&everywhere, services.clone());
        let listeners: Result<Vec<_>, _> = self.nodes.iter().map(listen).collect();
        let listeners = listeners.expect("the ports are free");
        let nodes = self.nodes.iter().map(|Node { member, agent, .. }| {
            let joined = reading.joined(&name(member.name)).expect("it has joined");
            matrix::Node {
                name: member.name,
                host: agent.host(),
                addresses: joined.reachable().into_iter().collect(),
            }
        });
        let nodes: Vec<_> = nodes.collect();
        let disagreements = disagreements(&nodes, &services, |from, to, service| {
            let (from, to) = (name(from), name(to));
            reading.carries(&from, &to) && reading.may(&from, &to, packet(service))
        });
        let disagreements = disagreements.await;
        for listeners in listeners {
            listeners.close().await;
        }
        disagreements
    }

    async fn leave(self) {
        for Node { agent, .. } in self.nodes {
            let left = agent.netclient(&["leave", "--network", "corp"]).await.expect("it runs");
            assert!(left.status.success(), "{}", text_of(&left.stderr));
        }
    }
}

fn put_network(snapshot: &mut Snapshot, changed: impl Fn(Network) -> Network) {
    let settings = snapshot.network(&network()).expect("it is declared");
    let settings = changed((**settings).clone());
    put(snapshot, ResourceId::of_network(network()), Object::Network(settings.into()));
}

fn put(snapshot: &mut Snapshot, id: ResourceId, object: Object) {
    snapshot.put(id, Entry { object, revision: Revision(0), owner: None });
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// The packet that opens a service.
fn packet(service: Service) -> Packet {
    match service {
        Service::Tcp(port) => Packet { protocol: Some(Protocol::Tcp), port },
        Service::Udp(port) => Packet { protocol: Some(Protocol::Udp), port },
        Service::Icmp => Packet { protocol: Some(Protocol::Icmp), port: 0 },
    }
}

/// The service that a packet opens; none, where the lab has none.
fn service(packet: Packet) -> Option<Service> {
    match packet.protocol? {
        Protocol::Icmp => Some(Service::Icmp),
        _ if packet.port == 0 => None,
        Protocol::Tcp => Some(Service::Tcp(packet.port)),
        Protocol::Udp => Some(Service::Udp(packet.port)),
    }
}
