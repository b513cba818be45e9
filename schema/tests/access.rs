//! What holds for all small networks with access rules, gateways, relays and external clients: what packets
//! pass, who knows whom, what a change costs.
//!
//! The compiler is compared with [`worlds::reading`], the naive reading of the same declarations. `CASES` says
//! how often each law is tried (1,000 times by default).

mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::Index;

use schema::access::{Access, ClassId, Protocol};
use schema::compile::paths;
use schema::compile::reach::Direction;
use schema::inventory::{Away, Joined, NodeId};
use schema::judge::explain::{Answer, Explanation, explain};
use schema::judge::present::{Passage, Present};
use schema::judge::{Outcome, Word, judge};
use schema::kinds::{Egress, Kind, NoReach, Object, Reach, Test};
use schema::scalars::{Name, Selector, WireGuardKey};
use schema::snapshot::{Entry, ResourceId, Revision};
use schema::view::{Resolution, Tunnel, View};
use schema::world::World;

use worlds::draws;
use worlds::following::{self, compiled, views};
use worlds::reading::{Packet, Party, Reading};
use worlds::reported::{reached, said};
use worlds::small::{self, histories, network};

fn views_of(world: &World) -> BTreeMap<Name, View> {
    views(compiled(&network(), world).as_ref())
}

/// The pairs of different members.
fn pairs(members: &BTreeSet<Name>) -> impl Iterator<Item = (&Name, &Name)> {
    members.iter().flat_map(|from| members.iter().map(move |to| (from, to))).filter(|(from, to)| from != to)
}

fn holds(access: &Access, packet: Packet) -> bool {
    match packet.protocol {
        Some(Protocol::Tcp) => access.tcp.contains(packet.port),
        Some(Protocol::Udp) => access.udp.contains(packet.port),
        Some(Protocol::Icmp) => access.icmp,
        None => access.others,
    }
}

/// What agents do of their Views: WireGuard, routes and the packet filter of each host.
struct Hosts<'a> {
    views: &'a BTreeMap<Name, View>,
    tunnels: BTreeMap<&'a Name, BTreeMap<WireGuardKey, Tunnel>>,
    /// Who has which key.
    keys: BTreeMap<WireGuardKey, Name>,
}

/// Where a packet leaves the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exit {
    /// At the node that has its destination.
    Node,
    /// From a node to the external client that it is for.
    Client(Name),
    /// From a gateway to a range behind it, of this class.
    Outside(ClassId),
}

/// What a host does with a packet.
enum Hop<'a> {
    Tunnel(&'a Name),
    Outside(ClassId),
}

impl<'a> Hosts<'a> {
    fn of(views: &'a BTreeMap<Name, View>, reading: &Reading<'_>) -> Self {
        let tunnels = views.iter().map(|(name, view)| (name, view.tunnels())).collect();
        let keys =
            reading.members().into_iter().filter_map(|name| Some((reading.key(&name)?, name))).collect();
        Self { views, tunnels, keys }
    }

    /// The ranges that WireGuard of a host takes for each of its peers.
    fn allowed(&self, host: &Name) -> impl Iterator<Item = (IpNet, &Name)> {
        let tunnels = self.tunnels[host].iter();
        tunnels.flat_map(|(key, tunnel)| tunnel.allowed_ips.iter().map(|range| (*range, &self.keys[key])))
    }

    /// From whom alone WireGuard of a host takes what has that source: the peer with the longest range around
    /// it.
    fn source(&self, host: &Name, address: IpAddr) -> Option<&Name> {
        let around = self.allowed(host).filter(|(range, _)| range.contains(&address));
        around.max_by_key(|(range, _)| range.prefix_len()).map(|(_, peer)| peer)
    }

    /// Where a host sends what is for an address; absent: nowhere. Of what it routes into the mesh, what it refuses
    /// and what it forwards to the longest prefix goes first; what is for the network's own ranges goes into the mesh
    /// alone. There the tunnel of the longest prefix has it, if there is one.
    fn next(&self, host: &Name, address: IpAddr) -> Option<Hop<'_>> {
        let view = &self.views[host];
        let longest = |range: &&(IpNet, Option<Option<ClassId>>)| range.0.prefix_len();
        let into = |range| (range, Some(None));
        let own = view.interface.addresses.iter().map(|own| into(own.trunc()));
        let routes = view.routes.iter().map(|(range, route)| (*range, route.via.is_some().then_some(None)));
        let outside = view.forwards.values().flat_map(|forward| &forward.ranges);
        let outside = outside.map(|(range, class)| (*range, Some(Some(*class))));
        let all: Vec<_> =
            own.chain(routes).chain(outside).filter(|(range, _)| range.contains(&address)).collect();
        let within = view.interface.addresses.iter().any(|own| own.trunc().contains(&address));
        let (_, way) = if within { &into(IpNet::from(address)) } else { all.iter().max_by_key(longest)? };
        match way.as_ref()? {
            Some(class) => Some(Hop::Outside(*class)),
            None => {
                let around = self.allowed(host).filter(|(range, _)| range.contains(&address));
                around.max_by_key(|(range, _)| range.prefix_len()).map(|(_, peer)| Hop::Tunnel(peer))
            }
        }
    }

    /// Whether what a host sends itself to an address is for the mesh, and not for where the host would send it
    /// without.
    fn enters(&self, host: &Name, address: IpAddr) -> bool {
        let view = &self.views[host];
        let own = view.interface.addresses.iter().map(IpNet::trunc);
        let routes = view.routes.iter().filter(|(_, route)| !route.carried).map(|(range, _)| *range);
        let forwarded = view.forwards.values().flat_map(|forward| forward.ranges.keys().copied());
        own.chain(routes).chain(forwarded).any(|range| range.contains(&address))
    }

    /// Where a packet leaves the mesh that enters it at a node: from the node itself or from what is behind it,
    /// or from an external client; and the node at which it leaves. Absent: it is lost.
    fn walk(
        &self,
        at: &Name,
        client: Option<&Name>,
        source: IpAddr,
        destination: IpAddr,
    ) -> Option<(Name, Exit)> {
        let (mut at, mut from) = (self.views.get_key_value(at)?.0, client);
        let own = |node: &Name, address: IpAddr| {
            self.views[node].interface.addresses.iter().any(|own| own.addr() == address)
        };
        if from.is_none() && own(at, source) && !self.enters(at, destination) {
            return None;
        }
        for _ in 0..20 {
            // A host takes nothing that has an address of its own as the source.
            if from.is_some_and(|from| self.source(at, source) != Some(from) || own(at, source)) {
                return None;
            }
            if own(at, destination) {
                return Some((at.clone(), Exit::Node));
            }
            let passes_on = from.is_some() || !own(at, source);
            if passes_on && !self.views[at].interface.forward {
                return None;
            }
            match self.next(at, destination)? {
                Hop::Outside(class) => return Some((at.clone(), Exit::Outside(class))),
                Hop::Tunnel(peer) => match self.views.get_key_value(peer) {
                    Some((peer, _)) => (at, from) = (peer, Some(at)),
                    None => {
                        let has = self.views[at].peers[peer].addresses.contains(&destination);
                        return has.then(|| (at.clone(), Exit::Client(peer.clone())));
                    }
                },
            }
        }
        // What is for a member that nobody reaches may go to and fro between gateways to wider ranges, each of which
        // takes the other for the way, until its TTL ends.
        let within = self.views[at].interface.addresses.iter().any(|own| own.trunc().contains(&destination));
        assert!(within, "from {source} to {destination} there is a loop at {at}");
        None
    }

    /// The packets that the filter of the node where a packet leaves the mesh lets open a connection, by the
    /// class of their source address: addresses of the network's own ranges are members' alone, whatever wider
    /// range a route is for.
    fn accepts(&self, at: &Name, exit: &Exit, source: IpAddr) -> impl Fn(Packet) -> bool {
        let view = &self.views[at];
        let own = view.interface.addresses.iter().any(|own| own.addr() == source);
        let own = own.then_some(view.interface.class);
        let peer = view.peers.values().find(|peer| peer.addresses.contains(&source)).map(|peer| peer.class);
        let routes = view.routes.iter().map(|(range, route)| (range, route.class));
        let behind = view.forwards.values().flat_map(|forward| &forward.ranges);
        let ranges = routes.chain(behind.map(|(range, class)| (range, *class)));
        let within = view.interface.addresses.iter().any(|own| own.trunc().contains(&source));
        let around = ranges.filter(|(range, _)| !within && range.contains(&source));
        let around = around.max_by_key(|(range, _)| range.prefix_len()).map(|(_, class)| class);
        let guard = match exit {
            Exit::Node => None,
            Exit::Client(client) => Some(view.peers[client].class),
            Exit::Outside(class) => Some(*class),
        };
        let access = own.or(peer).or(around).and_then(|class| match guard {
            None => view.access.get(&class).map(|access| &**access),
            Some(guard) => view.guarded.get(&guard)?.get(&class),
        });
        move |packet| !view.interface.restricted || access.is_some_and(|access| holds(access, packet))
    }
}

/// Somebody with an address, and the node at which the mesh begins for it.
struct End<'a> {
    party: Party,
    address: IpAddr,
    /// The node itself, that of a client's ingress, or the gateway; absent: there is none.
    node: Option<&'a Name>,
    /// The client, if it is one.
    client: Option<Name>,
}

/// Every member with each of its addresses, and the hosts outside.
fn ends<'a>(reading: &Reading<'a>) -> Vec<End<'a>> {
    let mut ends = Vec::new();
    for name in reading.members() {
        let client = reading.client(&name).map(|_| name.clone());
        let node = reading.node(client.as_ref().and_then(|client| reading.carrier(client)).unwrap_or(&name));
        for address in reading.addresses(&name) {
            ends.push(End { party: Party::from(&name), address, node, client: client.clone() });
        }
    }
    for address in small::HOSTS.iter().filter_map(|host| host.parse().ok()) {
        if reading.outside(address).is_some() {
            ends.push(End {
                party: Party::Host(address),
                address,
                node: reading.gateway(address),
                client: None,
            });
        }
    }
    ends
}

/// Whether packets have a way from one end to another and back; absent: that is not for the mesh alone to say,
/// since one of the two is a host, and the other, or who carries its packets, is another of its gateways or
/// does not get its route but that of a wider range.
fn have_way(reading: &Reading<'_>, from: &End<'_>, to: &End<'_>) -> Option<bool> {
    let way = reading.way(&from.party, &to.party);
    for (host, other) in [(from, to), (to, from)] {
        let Some(outside) = reading.outside(host.address) else { continue };
        let candidates: Vec<&Name> = outside.egress.via.iter().map(|node| &node.name).collect();
        let others = || way.iter().flatten().chain(&other.node).filter(|node| Some(**node) != host.node);
        if others().any(|node| candidates.contains(node)) || other.node == host.node && other.client.is_none()
        {
            return None;
        }
        let gets = match &other.party {
            Party::Member(name) => reading.is_for(outside.egress, name),
            Party::Host(_) => other.node.is_some_and(|node| reading.is_for(outside.egress, node)),
        };
        if !gets || host.node.is_none() {
            return None;
        }
    }
    Some(way.is_some())
}

/// Asserts that a packet passes, and its answer has a way back, exactly where a rule lets it and there is a way.
fn packets_pass_where_they_may(world: &World) -> Result<(), TestCaseError> {
    let reading = Reading::of(network(), world);
    let views = views_of(world);
    let hosts = Hosts::of(&views, &reading);
    let packets = reading.packets();
    let ends = ends(&reading);
    // What is behind a gateway may have ways that the gateway has not itself.
    let gateway = |name: &Name| !views[name].forwards.is_empty();
    let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
    for (from, to) in
        pairs.filter(|(from, to)| from.party != to.party && from.address.is_ipv4() == to.address.is_ipv4())
    {
        let walk = |from: &End<'_>, to: &End<'_>| {
            let (at, exit) = hosts.walk(from.node?, from.client.as_ref(), from.address, to.address)?;
            let there = match (&to.party, &exit) {
                (Party::Member(name), Exit::Node) => *name == at,
                (Party::Member(name), Exit::Client(client)) => name == client,
                (Party::Host(_), Exit::Outside(_)) => true,
                (_, _) => false,
            };
            there.then_some((at, exit))
        };
        let words = || format!("{:?} at {} to {:?} at {}", from.party, from.address, to.party, to.address);
        let (opens, near) = (reading.opens(&from.party, &to.party), reading.near(&from.party, &to.party));
        let arrives = walk(from, to);
        let way = have_way(&reading, from, to);
        if let Some(way) = way.filter(|_| near) {
            prop_assert_eq!(arrives.is_some(), way, "{} by their tunnels: {:?}", words(), arrives);
            prop_assert_eq!(walk(to, from).is_some(), way, "answers to {}", words());
        }
        let Some((at, exit)) = arrives else { continue };
        if let (Party::Member(name), None, Party::Host(_)) = (&from.party, &from.client, &to.party) {
            let own = reading.egresses_around(to.address).any(|egress| {
                reading.is_for(egress, name) || egress.via.iter().any(|node| node.name == *name)
            });
            prop_assert!(own || gateway(name), "{}: for itself it has no such way", words());
        }
        // What a host itself opens at what is behind it outside of the network is for its own rules.
        if from.node == Some(&at) && from.client.is_none() && matches!(exit, Exit::Outside(_)) {
            continue;
        }
        let accepts = hosts.accepts(&at, &exit, from.address);
        for packet in &packets {
            let passes = accepts(*packet);
            prop_assert!(!passes || opens(*packet), "{}: {:?} passes", words(), packet);
            prop_assert!(
                passes || !opens(*packet) || way.is_none(),
                "{}: {:?} does not pass",
                words(),
                packet
            );
        }
    }
    Ok(())
}

/// The parties of which plans and tests speak: members, and of each part of a range behind an egress one host,
/// where any of the readings tells it from the others.
fn parties(readings: &[&Reading<'_>]) -> Vec<Party> {
    let mut parts = BTreeMap::new();
    for host in small::HOSTS.iter().filter_map(|host| host.parse::<IpAddr>().ok()) {
        let within: Vec<_> = readings.iter().map(|reading| reading.parts(host)).collect();
        if within.iter().any(Option::is_some) {
            parts.entry(within).or_insert(Party::Host(host));
        }
    }
    let members: BTreeSet<Name> = readings.iter().flat_map(|reading| reading.members()).collect();
    members.iter().map(Party::from).chain(parts.into_values()).collect()
}

/// Everything that a party may open at another, packet by packet, and has a way for.
fn reached_in<'p>(
    reading: &Reading<'_>,
    parties: &'p [Party],
    packets: &BTreeSet<Packet>,
) -> BTreeSet<(Packet, &'p Party, &'p Party)> {
    let members = reading.members();
    let is_there = |party: &&Party| match party {
        Party::Member(name) => members.contains(name),
        Party::Host(host) => reading.outside(*host).is_some(),
    };
    let there: Vec<&Party> = parties.iter().filter(is_there).collect();
    let mut reached = BTreeSet::new();
    for (from, to) in there.iter().flat_map(|from| there.iter().map(move |to| (*from, *to))) {
        let reaches = reading.reaches(from, to);
        reached.extend(packets.iter().filter(|packet| reaches(**packet)).map(|packet| (*packet, from, to)));
    }
    reached
}

/// Asserts that a plan says of two worlds what differs between their readings: of what holds at once, and of what
/// holds once everybody is there who is awaited.
fn plans_say_what_differs(before: &World, after: &World) -> Result<(), TestCaseError> {
    let worlds = [before, after].map(|world| (world, worlds::completed(world)));
    let [was, is] = [0, 1].map(|at| {
        let (now, later): &(&World, World) = &worlds[at];
        [now, later].map(|world| Reading::of(network(), world).without_those_away())
    });
    let parties = parties(&[&was[0], &was[1], &is[0], &is[1]]);
    let packets: BTreeSet<Packet> = was[0].packets().union(&is[0].packets()).copied().collect();
    let reached_in = |reading: &Reading<'_>| reached_in(reading, &parties, &packets);
    let [was, is] = [was, is].map(|[now, later]| {
        let now = reached_in(&now);
        let later: BTreeSet<_> = reached_in(&later).difference(&now).copied().collect();
        [now, later]
    });
    let reported = reached(&network(), before, after);
    for once_joined in [false, true] {
        let at = usize::from(once_joined);
        let lost: BTreeSet<_> = was[at].difference(&is[at]).copied().collect();
        // What holds from now on need not be waited for.
        let lost = if once_joined { lost.difference(&is[0]).copied().collect() } else { lost };
        let gained = is[at].difference(&was[at]).copied().collect();
        for (direction, differs) in [(Direction::Lost, lost), (Direction::Gained, gained)] {
            for packet in &packets {
                let lines =
                    reported.iter().filter(|it| (it.direction, it.once_joined) == (direction, once_joined));
                let lines: Vec<_> = lines.filter(|line| holds(&said(&line.what), *packet)).collect();
                let pairs: Vec<_> =
                    differs.iter().filter(|(it, ..)| it == packet).map(|(_, from, to)| (from, to)).collect();
                let said = lines.iter().map(|line| line.pairs).sum::<u64>();
                prop_assert_eq!(
                    said,
                    pairs.len() as u64,
                    "{:?}, once joined {}: {:?} between {:?}, by {:#?}",
                    direction,
                    once_joined,
                    packet,
                    pairs,
                    lines
                );
            }
        }
    }
    Ok(())
}

/// The world as tests and questions see it: everybody is there, and no host has a problem.
fn as_tests_see_it(world: &World) -> World {
    without_problems(&worlds::completed(world))
}

/// The range that selects a party alone; absent: there was no room for it.
fn selector(reading: &Reading<'_>, party: &Party) -> Option<Selector> {
    let address = match party {
        Party::Member(name) => reading.addresses(name).first().copied(),
        Party::Host(host) => Some(*host),
    };
    Some(Selector::Range(address?.into()))
}

/// Asserts that the answer to a question about two parties is what the reading says, with the nodes on the way.
fn is_explained(world: &World, reading: &Reading<'_>, from: &Party, to: &Party) -> Result<(), TestCaseError> {
    let (Some(one), Some(other)) = (selector(reading, from), selector(reading, to)) else { return Ok(()) };
    let asked = Access::everything();
    let explained = explain(reading.name(), (&one, &other), &asked, &world.snapshot, &world.inventory);
    let Explanation { answer, opens, via, .. } = explained.expect("the network is declared");
    let reaches = reading.reaches(from, to);
    let mut any = false;
    for packet in reading.packets() {
        any |= reaches(packet);
        let opened = answer != Answer::No && holds(&opens, packet);
        prop_assert_eq!(opened, reaches(packet), "{:?} to {:?}: {:?} by {:?}", from, to, packet, opens);
    }
    let between = reading.way(from, to).filter(|_| any).unwrap_or_default();
    let ends = [from, to];
    let between = between.into_iter().filter(|node| !ends.contains(&&Party::from(*node)));
    prop_assert_eq!(via.iter().collect::<Vec<_>>(), between.collect::<Vec<_>>(), "{:?} to {:?}", from, to);
    Ok(())
}

/// The world without problems that hosts report: what these do to addresses is no matter here.
fn without_problems(world: &World) -> World {
    let mut world = world.clone();
    let nodes: Vec<_> =
        world.inventory.nodes().map(|(id, joined)| (id.clone(), (**joined).clone())).collect();
    for (id, joined) in nodes {
        world.inventory.put_node(id, Joined { problems: Vec::new(), ..joined });
    }
    world
}

/// Asserts that what a party reaches at another at present is what the reading says, with the nodes on the way.
fn is_present(
    present: &Present<'_>,
    reading: &Reading<'_>,
    from: &Party,
    to: &Party,
) -> Result<(), TestCaseError> {
    let party = |party: &Party| match party {
        Party::Member(name) => Some(paths::Party::Member(name.clone())),
        Party::Host(host) => present.range_of(*host).map(paths::Party::Range),
    };
    let passage = party(from).zip(party(to)).and_then(|(from, to)| present.between(&from, &to));
    let reaches = reading.reaches(from, to);
    let mut any = false;
    for packet in reading.packets() {
        any |= reaches(packet);
        let passes = |it: &Passage| it.via.is_some() && holds(&it.opens, packet);
        prop_assert_eq!(
            passage.as_ref().is_some_and(passes),
            reaches(packet),
            "{:?} to {:?}: {:?} by {:?}",
            from,
            to,
            packet,
            passage
        );
    }
    let (Some(via), true) = (passage.and_then(|passage| passage.via), any) else { return Ok(()) };
    let ends = [from, to];
    let between = reading.way(from, to).unwrap_or_default().into_iter();
    let between = between.filter(|node| !ends.contains(&&Party::from(*node)));
    prop_assert_eq!(via.iter().collect::<Vec<_>>(), between.collect::<Vec<_>>(), "{:?} to {:?}", from, to);
    Ok(())
}

/// What is asserted of two sides.
struct Assertion<'a> {
    from: &'a BTreeSet<Selector>,
    to: &'a BTreeSet<Selector>,
    except: &'a BTreeSet<Selector>,
    packets: BTreeSet<Packet>,
}

impl<'a> Assertion<'a> {
    /// What is asked for by a protocol and a port: a port alone is one of TCP, and port 0 is nobody's.
    fn new(
        reading: &Reading<'_>,
        (from, to, except): (&'a BTreeSet<Selector>, &'a BTreeSet<Selector>, &'a BTreeSet<Selector>),
        (protocol, port): (Option<Protocol>, Option<u16>),
    ) -> Self {
        let protocol = protocol.or(port.map(|_| Protocol::Tcp));
        let all = reading.packets().into_iter().chain(Packet::samples(port));
        let has_ports = |packet: &Packet| packet.protocol.is_some_and(Protocol::has_ports);
        let all = all.filter(|packet| protocol.is_none() || packet.protocol == protocol);
        let all = all
            .filter(|packet| !has_ports(packet) || port.map_or(packet.port > 0, |port| packet.port == port));
        Self { from, to, except, packets: all.collect() }
    }

    /// The pairs that it is about; absent: a side has nobody.
    fn pairs(&self, reading: &Reading<'_>) -> Option<Vec<(Party, Party)>> {
        let hosts = small::HOSTS.iter().filter_map(|host| host.parse().ok());
        let hosts = hosts.filter(|host| reading.outside(*host).is_some()).map(Party::Host);
        let all: Vec<Party> = reading.members().iter().map(Party::from).chain(hosts).collect();
        let on = |side: &BTreeSet<Selector>, party: &Party| side.iter().any(|it| reading.selects(it, party));
        let from: Vec<_> = all.iter().filter(|it| on(self.from, it) && !on(self.except, it)).collect();
        let to: Vec<_> = all.iter().filter(|it| on(self.to, it)).collect();
        let pairs = from.iter().flat_map(|from| to.iter().map(move |to| ((*from).clone(), (*to).clone())));
        let pairs = pairs.filter(|(from, to)| from != to && !reading.is_local(from, to));
        (!from.is_empty() && !to.is_empty()).then(|| pairs.collect())
    }

    /// Whether every pair is reached by every packet, also while any node is away that carries for others.
    fn is_reached(&self, world: &World, reading: &Reading<'_>, without_any_gateway: bool) -> Outcome {
        let Some(pairs) = self.pairs(reading) else { return Outcome::Fails };
        let reached = |reading: &Reading<'_>, (from, to): &(Party, Party)| {
            let reaches = reading.reaches(from, to);
            self.packets.iter().all(|packet| reaches(*packet))
        };
        let mut holds = pairs.iter().all(|pair| reached(reading, pair));
        let carrying =
            reading.nodes().into_iter().filter(|node| without_any_gateway && reading.may_carry(node));
        for node in carrying {
            let mut world = world.clone();
            let away = Away { everything: true, ..Away::default() };
            world.inventory.set_away(NodeId::of(reading.name(), &node), away);
            let reading = Reading::of(network(), &world).without_those_away();
            let is_end = |(from, to): &&(Party, Party)| [from, to].contains(&&Party::from(&node));
            holds &= pairs.iter().filter(|pair| !is_end(pair)).all(|pair| reached(&reading, pair));
        }
        if holds { Outcome::Holds } else { Outcome::Fails }
    }

    /// Whether no pair is reached by any packet.
    fn is_not_reached(&self, reading: &Reading<'_>) -> Outcome {
        let Some(pairs) = self.pairs(reading) else { return Outcome::Warns };
        let reached = |(from, to): &(Party, Party)| {
            let reaches = reading.reaches(from, to);
            self.packets.iter().any(|packet| reaches(*packet))
        };
        if pairs.iter().any(reached) { Outcome::Fails } else { Outcome::Holds }
    }
}

/// Asserts that what a test asserts holds exactly where the reading says so.
fn is_judged(world: &World, test: &Test) -> Result<(), TestCaseError> {
    let complete = as_tests_see_it(world);
    let reading = Reading::of(network(), &complete);
    let mut world = world.clone();
    let id = ResourceId { network: network(), kind: Kind::Test, name: "test".parse().expect("a name") };
    let object = Object::Test(test.clone().into());
    world.snapshot.put(id, Entry { object, revision: Revision(0), owner: None });
    let port = |port: Option<i64>| port.and_then(|port| u16::try_from(port).ok());
    for verdict in judge(&network(), &world.snapshot, &world.inventory) {
        let outcome = match verdict.word {
            Word::Reach => {
                let Reach { from, to, except, proto, port: at, without_any_gateway } =
                    &test.reach[verdict.place];
                let packets = (*proto, port(at.map(|at| at.number())));
                let asserted = Assertion::new(&reading, (from, to, except), packets);
                asserted.is_reached(&complete, &reading, *without_any_gateway)
            }
            Word::NoReach => {
                let NoReach { from, to, except, proto, port: at } = &test.no_reach[verdict.place];
                let packets = (*proto, port(at.map(|at| at.number())));
                Assertion::new(&reading, (from, to, except), packets).is_not_reached(&reading)
            }
            Word::Path => unreachable!("none is drawn"),
        };
        prop_assert_eq!(verdict.outcome, outcome, "{}: {:?}", verdict.name, verdict.message);
    }
    Ok(())
}

#[test]
fn relays_that_take_over_from_each_other_carry_packets_between_their_nodes() {
    for moment in small::relays_that_take_over_from_each_other().moments() {
        packets_pass_where_they_may(&moment.world).expect("it holds");
    }
}

proptest! {
    #![proptest_config(draws(1_000))]

    #[test]
    fn a_mesh_that_follows_equals_one_that_is_compiled_afresh(history in histories(6)) {
        following::a_mesh_that_follows_equals_one_that_is_compiled_afresh(&history.moments())?;
    }

    #[test]
    fn applying_what_differs_between_two_views_to_the_first_gives_the_second(history in histories(4)) {
        following::applying_what_differs_between_two_views_to_the_first_gives_the_second(&history.moments())?;
    }

    #[test]
    fn a_step_leads_every_node_from_its_view_of_one_mesh_to_that_of_the_next(history in histories(4)) {
        following::a_step_leads_every_node_from_its_view_of_one_mesh_to_that_of_the_next(&history.moments())?;
    }

    #[test]
    fn a_packet_passes_exactly_where_a_rule_lets_it(history in histories(3)) {
        packets_pass_where_they_may(&history.last())?;
    }

    #[test]
    fn a_node_knows_exactly_whom_a_rule_joins_it_with_and_who_carries(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        let views = views_of(&world);
        prop_assert_eq!(views.keys().cloned().collect::<BTreeSet<_>>(), reading.nodes());
        let hub = reading.hub();
        let ends = ends(&reading);
        for (name, view) in &views {
            let (up, all) = (reading.carrier(name), reading.members());
            prop_assert_eq!(view.interface.carrier.as_ref(), up, "of {}", name);
            // Those behind a hub without rules, and behind a relay with them, are sent one route for all.
            let whole = !reading.has_rules() && hub.is_some() && up.is_some();
            let directly = |other: &Name| reading.carriers(other).contains(&name) || hub == Some(name);
            let carried =
                |other: &Name| directly(other) || reading.carriers(other).into_iter().any(directly);
            let knows = |other: &Name| {
                let through = |end: &End<'_>| {
                    let egress = reading.outside(end.address).map(|outside| &outside.egress.via);
                    let mut gateways = egress.into_iter().flat_map(|via| via.iter()).map(|node| &node.name);
                    let is_carried = match &end.party {
                        Party::Member(member) => carried(member),
                        Party::Host(_) => gateways.any(|gateway| gateway == name || carried(gateway)),
                    };
                    is_carried && reading.near(&end.party, other)
                };
                reading.may_carry(other) || carried(other) || ends.iter().any(through)
            };
            for other in all.iter().filter(|other| *other != name) {
                let sent = view.peers.contains_key(other);
                let near = reading.near(name, other);
                prop_assert!(sent || !near || whole, "{} does not know {}", name, other);
                prop_assert!(!sent || near || knows(other), "{} knows {}", name, other);
            }
            for (other, peer) in &view.peers {
                prop_assert_eq!(peer.via.as_ref(), reading.via(other), "{} in the View of {}", other, name);
                prop_assert_eq!(peer.carries, reading.may_carry(other), "{} in the View of {}", other, name);
                let (mine, theirs) = (reading.carriers(name), reading.carriers(other));
                let direct = mine.contains(&other) || theirs.contains(&name) || mine.is_empty() && theirs.is_empty();
                let key = direct.then(|| reading.key(other).unwrap());
                prop_assert_eq!(peer.public_key, key, "the key of {} in the View of {}", other, name);
                prop_assert!(peer.public_key.is_some() || peer.endpoint.is_none(), "{} in the View of {}", other, name);
                prop_assert_eq!(&peer.addresses, &reading.addresses(other));
            }
        }
    }

    #[test]
    fn whose_key_is_known_knows_the_key(history in histories(3)) {
        let views = views_of(&history.last());
        for (name, view) in &views {
            let direct = view.peers.iter().filter(|(_, peer)| peer.public_key.is_some());
            // Who only may come to carry for a node is sent its key when it does.
            for (other, _) in direct.filter(|(_, peer)| !peer.carries) {
                let Some(there) = views.get(other) else { continue };
                let known = there.peers.get(name).map(|peer| peer.public_key.is_some());
                prop_assert_eq!(known, Some(true), "{} knows the key of {}", name, other);
            }
        }
    }

    #[test]
    fn only_who_carries_is_sent_what_it_carries(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        for (name, view) in &views_of(&world) {
            let egress = world.snapshot.all_in::<Egress>(reading.name());
            let own = egress.filter(|(_, egress)| egress.via.iter().any(|node| node.name == *name));
            let own: BTreeMap<&Name, &Egress> = own.map(|(id, egress)| (&id.name, &**egress)).collect();
            prop_assert_eq!(view.forwards.keys().collect::<Vec<_>>(), own.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(view.interface.forward, reading.may_carry(name), "{}", name);
            let mut guarded = BTreeSet::new();
            for (egress, forward) in &view.forwards {
                let declared = own[egress];
                let whole: BTreeSet<IpNet> = declared.ranges.iter().map(|range| range.net()).collect();
                prop_assert!(whole.iter().all(|range| forward.ranges.contains_key(range)), "{} at {}", egress, name);
                prop_assert!(forward.ranges.keys().all(|part| whole.iter().any(|range| range.contains(part))));
                prop_assert_eq!((forward.nat, &forward.interface), (declared.nat, &declared.interface));
                prop_assert!(whole.iter().all(|range| !view.routes.contains_key(range)), "{} of its own {}", name, egress);
                guarded.extend(forward.ranges.values().copied());
            }
            let carried = view.peers.iter().filter(|(other, _)| reading.client(other).is_some());
            guarded.extend(carried.filter(|(other, _)| reading.carrier(other) == Some(name)).map(|(_, peer)| peer.class));
            guarded.retain(|_| reading.has_rules());
            prop_assert_eq!(view.guarded.keys().copied().collect::<BTreeSet<_>>(), guarded, "guarded at {}", name);
            let nodes = reading.nodes();
            prop_assert!(view.routes.values().filter_map(|route| route.via.as_ref()).all(|via| nodes.contains(via) && via != name));
        }
    }

    #[test]
    fn every_member_is_in_one_class_with_all_that_are_on_the_same_sides(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        let mesh = compiled(&network(), &world).unwrap();
        let mut classes = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for (class, members) in mesh.classes() {
            prop_assert!(!members.is_empty() && ids.insert(class.id()), "{} is one class", class.id());
            for (name, peer) in members {
                prop_assert_eq!(classes.insert(name.clone(), class.id()), None, "{} is in one class", name);
                prop_assert_eq!((peer.class, mesh.class_of(name)), (class.id(), Some(class.id())));
            }
        }
        prop_assert_eq!(classes.keys().cloned().collect::<BTreeSet<_>>(), reading.members());
        for (one, other) in pairs(&reading.members()) {
            let same = reading.sides(one) == reading.sides(other);
            prop_assert_eq!(classes[one] == classes[other], same, "{} and {}", one, other);
        }
    }

    #[test]
    fn a_change_leaves_every_class_as_it_is_whose_members_it_is_not_about(history in histories(6)) {
        for pair in history.moments().windows(2) {
            let (before, after) = (&pair[0].world, &pair[1].world);
            let changed = following::changed(before, after);
            if changed.resources.iter().any(|id| matches!(id.kind, Kind::Network | Kind::Dns)) {
                continue;
            }
            let earlier = compiled(&network(), before).unwrap();
            let later = earlier.follow(&after.snapshot, &after.inventory, &changed).unwrap();
            let node = |id: &NodeId| id.name.clone();
            let declared = changed.resources.iter().filter(|id| matches!(id.kind, Kind::Node | Kind::ExternalClient)).map(|id| id.name.clone());
            let about: BTreeSet<Name> = changed.nodes.iter().map(node).chain(declared).collect();
            for (class, members) in later.classes() {
                let Some((_, had)) = earlier.classes().find(|(other, _)| *other == class) else { continue };
                let names: Vec<_> = members.keys().chain(had.keys()).collect();
                let moved = |name: &Name| about.contains(name) || earlier.class_of(name) != later.class_of(name);
                let same = members.ptr_eq(had);
                prop_assert!(same || members != had || names.iter().any(|name| moved(name)), "{:?} after {:?}", names, changed);
            }
        }
    }

    #[test]
    fn what_a_view_lets_classes_open_is_something_and_only_where_rules_hold(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        for (name, view) in &views_of(&world) {
            prop_assert_eq!(view.interface.restricted, reading.has_rules());
            prop_assert!(view.interface.restricted || view.access.is_empty(), "{} is not restricted", name);
            prop_assert!(view.access.values().all(|access| !access.is_nothing()), "at {}", name);
        }
    }

    #[test]
    fn in_a_network_without_rules_all_are_of_one_class_and_a_spoke_knows_its_hub_alone(history in histories(3)) {
        let world = history.without_rules().without_gateways().last();
        let reading = Reading::of(network(), &world);
        let views = views_of(&world);
        for (name, view) in &views {
            let hub = reading.hub();
            let spoke = hub.is_some_and(|hub| hub != name);
            let others = views.keys().filter(|other| *other != name && (!spoke || hub == Some(*other)));
            prop_assert_eq!(view.peers.keys().collect::<Vec<_>>(), others.collect::<Vec<_>>());
            prop_assert!(view.peers.values().all(|peer| peer.class == ClassId::default()));
            prop_assert!(view.access.is_empty() && !view.interface.restricted);
            let routes: BTreeSet<IpNet> = view.routes.keys().copied().collect();
            let led = spoke && hub.is_some_and(|hub| views.contains_key(hub));
            prop_assert_eq!(routes, if led { reading.declaration().ranges().collect() } else { BTreeSet::new() });
        }
    }

    #[test]
    fn a_name_resolves_exactly_for_those_who_may_know_whom_it_leads_to(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        let names = reading.names();
        for (at, view) in &views_of(&world) {
            let read = |name: &Name| Some((name.clone(), reading.resolves(at, name)?));
            let resolutions: BTreeMap<Name, _> = view.resolutions().into_iter().map(|(name, to)| (name.clone(), to)).collect();
            let expected: BTreeMap<Name, Resolution> = names.iter().filter_map(read).collect();
            if !reading.may_carry(at) {
                prop_assert_eq!(&resolutions, &expected, "on {}", at);
                continue;
            }
            // Who carries others knows whom those know.
            let addresses = |name: &Name| Resolution::Addresses(reading.addresses(name));
            let members: Vec<Resolution> = reading.members().iter().map(addresses).collect();
            for (name, to) in &resolutions {
                prop_assert!(expected.get(name).map_or(members.contains(to), |expected| expected == to), "{} on {}", name, at);
            }
            prop_assert!(expected.keys().all(|name| resolutions.contains_key(name)), "{:?} on {}", expected, at);
        }
    }
}

// What is said of pairs costs more to look at than what nodes are sent.
proptest! {
    #![proptest_config(draws(300))]

    #[test]
    fn what_a_plan_says_is_gained_and_lost_is_what_differs_between_the_readings(history in histories(3)) {
        for pair in history.moments().windows(2) {
            plans_say_what_differs(&pair[0].world, &pair[1].world)?;
        }
    }

    #[test]
    fn what_is_explained_of_two_ends_is_what_the_reading_says(history in histories(3), picked: Index) {
        let world = history.last();
        let complete = as_tests_see_it(&world);
        let reading = Reading::of(network(), &complete);
        let parties = parties(&[&reading]);
        let Some(one) = (!parties.is_empty()).then(|| picked.get(&parties)) else { return Ok(()) };
        for other in parties.iter().filter(|other| *other != one) {
            is_explained(&world, &reading, one, other)?;
            is_explained(&world, &reading, other, one)?;
        }
    }

    #[test]
    fn whom_those_reach_who_are_there_is_what_the_reading_says(history in histories(3)) {
        let world = without_problems(&history.last());
        let reading = Reading::of(network(), &world).without_those_away();
        let name = network();
        // The last change may have deleted the network.
        let Some(present) = Present::of(&name, &world.snapshot, &world.inventory) else { return Ok(()) };
        let parties = parties(&[&reading]);
        for (one, other) in parties.iter().flat_map(|one| parties.iter().map(move |other| (one, other))) {
            if one != other {
                is_present(&present, &reading, one, other)?;
            }
        }
    }

    #[test]
    fn what_a_test_asserts_holds_exactly_where_the_reading_says_so(history in histories(3), test in small::tests()) {
        is_judged(&history.last(), &test)?;
    }
}
