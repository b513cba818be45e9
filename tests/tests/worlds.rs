//! Small random networks with packets: they pass exactly where the naive reading of the declarations lets them.
//!
//! ```text
//! nmserver ==== underlay ==== three or four nodes, of which one may be the hub
//!
//! of every other seed: a phone beside them, its key from `nmplan client conf`;
//!                      a, b, or both ---- lan ---- a host in no network
//! ```
//!
//! Networks and reading are those with which the compiler is compared without packets (`schema/tests/access.rs`).
//! A seed gives a few nodes, and what is declared of their network one after the other: each draw but the first
//! is a change of the one before it, too. Odd seeds have gateways: an egress to the lan, an ingress with the phone,
//! and a relay, without which a node exchanges no datagrams with some. `DRAWS` says how many draws there are, 20 by
//! default; `SEED` repeats those of one seed, and with `PROPTEST_RNG_SEED`, as in `make test`, each run has the same.
#![expect(clippy::print_stderr, reason = "figures of a run")]

#[path = "../../schema/tests/worlds/mod.rs"]
mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use end_to_end::matrix::{self, disagreements};
use end_to_end::{Mesh, eventually, in_runtime, text_of};
use nmplan::client::PrivateKey;
use nmplan::control::{ControlPlane, Rest};
use nmplan::lab::surroundings::{Lan, Surroundings, surroundings};
use nmplan::lab::{Agent, Around, Client, Host, Service, enter_test};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proto::secret::Secret;

use schema::access::Protocol;
use schema::attribute::Ref;
use schema::kinds::{AccessKey, ExternalClient, Kind, Network, Object};
use schema::scalars::{Name, Seconds};
use schema::snapshot::{Entry, NodeId, ResourceId, Revision, Snapshot};
use schema::syntax::{Language, print};
use schema::world::World;

use worlds::reading::{Packet, Party, Reading};
use worlds::small::{self, Member, Series, network};

/// The external client of networks with gateways.
const PHONE: &str = "phone";
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
            None => {
                let first = number("PROPTEST_RNG_SEED").unwrap_or_else(random) & !1;
                (0..draws.div_ceil(LENGTH) as u64).map(|place| first.wrapping_add(place)).collect()
            }
        };
        let mut tally = Tally::default();
        for (place, seed) in seeds.into_iter().enumerate() {
            eprintln!("SEED={seed}");
            let Series { members, declared } = match has_gateways(seed) {
                false => draw(small::series(LENGTH), seed),
                true => draw(small::sites(LENGTH), seed),
            };
            let mut corp = Corp::start(&mesh, place, members, &declared).await;
            for (number, declared) in (1..).zip(declared.iter().take(draws - place * LENGTH)) {
                let world = corp.declare(declared).await;
                let reading = Reading::of(network(), &world);
                corp.start_phone(&reading, number).await;
                let disagreements = corp.disagreements(&reading).await;
                let text = corp.text(declared);
                assert!(disagreements.is_empty(), "SEED={seed}, draw {number}:\n{text}{disagreements}");
                tally.add(&corp, &reading, has_gateways(seed));
            }
            corp.leave().await;
        }
        eprintln!("{tally}");
        assert!(tally.draws < DRAWS || tally.shows_something(), "{tally}");
    });
}

/// Whether the networks of a seed have gateways.
fn has_gateways(seed: u64) -> bool {
    seed % 2 == 1
}

/// What the draws of a run had.
#[derive(Default)]
struct Tally {
    draws: usize,
    /// Draws with gateways.
    sites: usize,
    /// Draws with a hub that has joined.
    hubs: usize,
    /// Those of them in which it carries for nodes with which it may not talk itself.
    aloof: usize,
    /// Packets of which something is said, and those of them that may pass.
    packets: usize,
    passing: usize,
    /// Those that may pass from or to a host behind a gateway, or a phone.
    beyond: usize,
}

impl Tally {
    fn add(&mut self, corp: &Corp<'_>, reading: &Reading<'_>, is_site: bool) {
        let (members, parties) = (reading.members(), corp.parties(reading));
        let others = |of| members.iter().filter(move |other| *other != of);
        let hub = reading.hub().filter(|hub| members.contains(*hub));
        let aloof = hub.is_some_and(|hub| {
            others(hub).any(|it| !reading.near(hub, it) && others(it).any(|other| reading.near(it, other)))
        });
        self.draws += 1;
        self.sites += usize::from(is_site);
        self.hubs += usize::from(hub.is_some());
        self.aloof += usize::from(aloof);
        let is_node = |party: &Party| matches!(party, Party::Member(name) if reading.node(name).is_some());
        for (from, to) in parties.iter().flat_map(|from| parties.iter().map(move |to| (from, to))) {
            let said =
                reading.packets().into_iter().filter_map(|packet| corp.says(reading, from, to, packet));
            let said: Vec<bool> = said.collect();
            let passing = said.iter().filter(|may| **may).count();
            self.packets += said.len();
            self.passing += passing;
            self.beyond += if is_node(from) && is_node(to) { 0 } else { passing };
        }
    }

    fn shows_something(&self) -> bool {
        0 < self.beyond && self.passing < self.packets
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { draws, sites, hubs, aloof, packets, passing, beyond } = self;
        write!(
            f,
            "{draws} draws, {sites} with gateways, {hubs} with a hub, {aloof} of which carries for nodes with which it may not talk; \
             {passing} of {packets} packets may pass, {beyond} of them beyond nodes"
        )
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

/// The nodes of a seed, up, and what is around them.
struct Corp<'a> {
    mesh: &'a Mesh,
    /// Which of the seeds it is.
    place: usize,
    server: Rest,
    nodes: Vec<Node>,
    /// What is behind gateways, or is at times.
    lans: Vec<(Lan, Host)>,
    /// The private key of the phone, and the file that has it.
    key: (PrivateKey, PathBuf),
    /// The phone, if it is let in.
    phone: Option<Client>,
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
    async fn start(mesh: &'a Mesh, place: usize, members: Vec<Member>, declared: &[Snapshot]) -> Self {
        let variables = mesh.server.environment().map(|(name, value)| (name.to_owned(), value));
        let server = Rest::new(Some(&mesh.server.url()), &variables.into_iter().collect());
        let (key, file) = (PrivateKey::make().expect("a key"), mesh.file(&format!("phone-{place}.key")));
        key.store(&file).expect("a file is written");
        let mut corp = Self {
            mesh,
            place,
            server: server.expect("it is known"),
            nodes: Vec::new(),
            lans: Vec::new(),
            key: (key, file),
            phone: None,
        };
        for member in members {
            let host = format!("{}-{place}", member.name);
            let key = format!("corp/access-key/key-{host}").parse().expect("an id");
            let agent = Agent::new(&mesh.underlay, &mesh.programs, &host).await.expect("a host");
            corp.nodes.push(Node { member, key, agent });
        }
        // Before they join, so that gateways find what they forward to: it is the same in all that is declared.
        let mut lans = declared.iter().map(|declared| surroundings(declared, &BTreeMap::new()).lans);
        if let Some(lans) = lans.find(|lans| !lans.is_empty()) {
            let lans = lans.into_iter().enumerate().map(|(number, lan)| {
                let hosts = small::HOSTS.iter().map(|host| host.parse().expect("an address"));
                let addresses = hosts.filter(|host| lan.range.contains(host)).collect();
                Lan { host: format!("lan{place}-{number}"), addresses, ..lan }
            });
            corp.lans =
                corp.connect(Surroundings { lans: lans.collect(), ..Surroundings::default() }).await.lans;
        }
        let tokens = mesh.apply(&corp.text(&corp.joinable(&declared[0]))).await;
        for Node { member, key, agent } in &mut corp.nodes {
            agent.join(&tokens[&key.to_string()], &["--name", member.name]).await.expect("it joins");
            agent.start_daemon(&[]).expect("the agent starts");
        }
        corp
    }

    /// Makes hosts around nodes.
    async fn connect(&self, around: Surroundings) -> Around {
        let node = |id: &NodeId| {
            let mut nodes = self.nodes.iter();
            nodes.find(|node| node.member.name == id.name.as_str()).map(|node| node.agent.host())
        };
        let Mesh { underlay, server, .. } = self.mesh;
        Around::connect(&around, underlay, node, (server.host(), &BTreeSet::new()))
            .await
            .expect("it is connected")
    }

    /// Lets nodes exchange datagrams with those alone that they reach directly, by what is declared.
    async fn isolate(&self, declared: &Snapshot) {
        // To add a table that is there does nothing.
        let mut nft = Command::new("nft");
        let emptied = nft.arg("add table inet lab; delete table inet lab").status().expect("nft runs");
        assert!(emptied.success(), "nft deletes a table of the lab");
        let nodes = self.nodes.iter().map(|node| NodeId::of(&network(), &name(node.member.name)));
        let nodes = nodes.map(|node| (node, BTreeSet::new())).collect();
        let Surroundings { relayed, .. } = surroundings(declared, &nodes);
        self.connect(Surroundings { relayed, ..Surroundings::default() }).await;
    }

    /// Connects the phone as `nmplan client conf` says, if it is let in.
    async fn start_phone(&mut self, reading: &Reading<'_>, number: usize) {
        self.phone = None;
        if reading.client(&name(PHONE)).is_none() {
            return;
        }
        let [key, file] = [&self.key.1, &self.mesh.file("mesh.kdl")].map(|path| path.display().to_string());
        let id = format!("{}/{PHONE}", network());
        let arguments = ["client", "conf", &id, "-q", "--key", &key, "--project", "test", "-f", &file];
        let printed = self.mesh.nmplan(&arguments).await;
        assert!(printed.status.success(), "{}", text_of(&printed.stderr));
        let configuration = Secret::new(text_of(&printed.stdout));
        let host = format!("{PHONE}-{}-{number}", self.place);
        let Mesh { underlay, programs, .. } = self.mesh;
        let phone = Client::start(underlay, programs, &host, &configuration).await;
        self.phone = Some(phone.expect("its device starts"));
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

    /// What is declared, with the key of the phone.
    fn with_key(&self, declared: &Snapshot) -> Snapshot {
        let mut declared = declared.clone();
        let phone = ResourceId { network: network(), kind: Kind::ExternalClient, name: name(PHONE) };
        if let Some(client) = declared.named::<ExternalClient>(&network(), &phone.name) {
            let public_key = Some(self.key.0.public());
            let client = ExternalClient { public_key, expires: None, ..(**client).clone() };
            put(&mut declared, phone, Object::ExternalClient(client.into()));
        }
        declared
    }

    /// What is declared as a file, with the keys of the members. Agents check in often, and addresses that
    /// were given up are given away at once: a small range has them for a few draws only. The phone is heard of
    /// soon.
    fn text(&self, declared: &Snapshot) -> String {
        let mut declared = self.with_key(declared);
        put_network(&mut declared, |settings| Network {
            check_in: Seconds(1),
            keepalive: Seconds(1),
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
        self.isolate(declared).await;
        self.mesh.apply(&self.text(declared)).await;
        eventually("every node has applied it", Duration::from_secs(20), async || {
            let status = self.server.status().await.expect("the server answers");
            let newest = status.nodes.iter().filter(|node| node.acknowledged == Some(status.revision));
            let newest: BTreeSet<_> = newest.map(|node| node.name.as_str()).collect();
            self.nodes.iter().all(|node| newest.contains(node.member.name))
        })
        .await;
        let server = self.server.world().await.expect("the server answers");
        World { snapshot: self.with_key(declared), ..server.world().expect("it is of this version") }
    }

    /// Who may send packets, and get them: members, and the addresses behind gateways.
    fn parties(&self, reading: &Reading<'_>) -> Vec<Party> {
        let hosts = self.lans.iter().flat_map(|(lan, _)| &lan.addresses).copied().map(Party::Host);
        reading.members().iter().map(Party::from).chain(hosts).collect()
    }

    /// Whether a packet may pass, by the reading; absent: it is not for the network alone to say, or does not show.
    fn says(&self, reading: &Reading<'_>, from: &Party, to: &Party, packet: Packet) -> Option<bool> {
        let lan = |party: &Party| match party {
            Party::Host(host) => self.lans.iter().map(|(lan, _)| lan).find(|lan| lan.range.contains(host)),
            Party::Member(_) => None,
        };
        // What a host sends has its first address.
        let sends = lan(from)
            .is_none_or(|lan| lan.addresses.first().copied().map(Party::Host).as_ref() == Some(from));
        // What passes between a gateway and what is behind it does so outside of the network, also where it goes
        // by another node that could be the gateway.
        let way = reading.way(from, to).unwrap_or_default();
        let is_local = [(from, to), (to, from)].into_iter().any(|(one, other)| {
            let gateway =
                |node: &Name| lan(one).is_some_and(|lan| lan.gateways.iter().any(|(id, _)| id.name == *node));
            let carrier = match one {
                Party::Host(host) => reading.gateway(*host),
                Party::Member(_) => None,
            };
            let is_other = match other {
                Party::Member(name) => gateway(name),
                Party::Host(_) => lan(one).is_some() && lan(other).is_some(),
            };
            is_other || way.iter().any(|node| gateway(node) && Some(*node) != carrier)
        });
        (sends && !is_local && from != to).then(|| reading.reaches(from, to)(packet))
    }

    /// A line for each pair and service of which packets show something else than the reading says.
    async fn disagreements(&self, reading: &Reading<'_>) -> String {
        let services: Vec<_> = reading.packets().into_iter().filter_map(service).collect();
        let everywhere = ["0.0.0.0", "::"].map(|any| any.parse().expect("an address"));
        let phone = self.phone.iter().map(Client::host);
        let hosts = self.nodes.iter().map(|node| node.agent.host()).chain(phone);
        let hosts = hosts.map(|host| (host, &everywhere[..]));
        // One of several addresses in a range answers as that which was asked.
        let hosts = hosts.chain(self.lans.iter().map(|(lan, host)| (host, &lan.addresses[..])));
        let listeners: Result<Vec<_>, _> =
            hosts.map(|(host, at)| host.listen(at, services.clone())).collect();
        let listeners = listeners.expect("the ports are free");
        let parties: BTreeMap<String, Party> =
            self.parties(reading).into_iter().map(|party| (shown(&party), party)).collect();
        let nodes = parties.iter().map(|(text, party)| matrix::Node {
            name: text,
            host: self.host(party),
            addresses: match party {
                Party::Member(name) => reading.addresses(name).into_iter().collect(),
                Party::Host(address) => vec![*address],
            },
        });
        let nodes: Vec<_> = nodes.collect();
        let disagreements = disagreements(&nodes, &services, |from, to, service| {
            self.says(reading, &parties[from], &parties[to], packet(service))
        });
        let disagreements = disagreements.await;
        for listeners in listeners {
            listeners.close().await;
        }
        disagreements
    }

    /// The host of somebody.
    fn host(&self, party: &Party) -> &Host {
        match party {
            Party::Member(name) => {
                let node = self.nodes.iter().find(|node| node.member.name == name.as_str());
                node.map(|node| node.agent.host()).or(self.phone.as_ref().map(Client::host))
            }
            Party::Host(at) => self.lans.iter().find(|(lan, _)| lan.range.contains(at)).map(|(_, host)| host),
        }
        .expect("it is there")
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

/// A member's name, or an address.
fn shown(party: &Party) -> String {
    match party {
        Party::Member(name) => name.to_string(),
        Party::Host(address) => address.to_string(),
    }
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
