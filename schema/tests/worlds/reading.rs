//! The naive reading of a network: who may open what at whom, and who must know whom.
//!
//! Straight from the declarations and from who has joined, pair by pair and rule by rule. Nothing here is the
//! compiler's, so that the two agree only where both are right.

use std::collections::BTreeSet;
use std::net::IpAddr;

use schema::access::Protocol;
use schema::inventory::{Joined, NodeId};
use schema::kinds::{Acl, Allow, Dns, Group, Network, Node};
use schema::scalars::{DomainName, Name, NetworkName, Selector};
use schema::view::Resolution;
use schema::world::World;

/// One network of a world, to be read.
pub struct Reading<'a> {
    network: NetworkName,
    world: &'a World,
}

/// What a packet that opens a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    /// Absent: one that rules cannot name.
    pub protocol: Option<Protocol>,
    /// Of `tcp` and `udp`; otherwise 0.
    pub port: u16,
}

impl Packet {
    /// Packets of every protocol, to ports at both sides of every edge that a rule may have.
    pub fn samples(edges: impl IntoIterator<Item = u16>) -> BTreeSet<Self> {
        let around = |edge: u16| [edge.saturating_sub(1), edge, edge.saturating_add(1)];
        let ports: BTreeSet<u16> = edges.into_iter().chain([0, u16::MAX]).flat_map(around).collect();
        let of = |protocol| ports.iter().map(move |port| Self { protocol: Some(protocol), port: *port });
        let without_ports = [Some(Protocol::Icmp), None].map(|protocol| Self { protocol, port: 0 });
        of(Protocol::Tcp).chain(of(Protocol::Udp)).chain(without_ports).collect()
    }
}

impl<'a> Reading<'a> {
    pub fn of(network: NetworkName, world: &'a World) -> Self {
        Self { network, world }
    }

    pub fn declaration(&self) -> &'a Network {
        self.world.snapshot.network(&self.network).unwrap()
    }

    /// Every member, by name.
    pub fn members(&self) -> BTreeSet<Name> {
        self.world.inventory.nodes_in(&self.network).map(|(name, _)| name.clone()).collect()
    }

    pub fn joined(&self, member: &Name) -> Option<&'a Joined> {
        self.world.inventory.node(&NodeId::of(&self.network, member)).map(|joined| &**joined)
    }

    pub fn rules(&self) -> impl Iterator<Item = &'a Allow> {
        self.world.snapshot.all_in::<Allow>(&self.network).map(|(_, rule)| &**rule)
    }

    /// Packets to ports at both sides of every edge of the rules.
    pub fn packets(&self) -> BTreeSet<Packet> {
        let ranges = self.rules().flat_map(|rule| rule.ports.iter().flat_map(|ports| ports.iter()));
        Packet::samples(ranges.flat_map(|range| [*range.ports().start(), *range.ports().end()]))
    }

    /// The hub that is declared.
    pub fn hub(&self) -> Option<&'a Name> {
        self.declaration().hub.as_ref().map(|hub| &hub.name)
    }

    /// Every name that may resolve: of members and of entries.
    pub fn names(&self) -> BTreeSet<Name> {
        let entries = self.world.snapshot.all_in::<Dns>(&self.network).map(|(id, _)| id.name.clone());
        self.members().into_iter().chain(entries).collect()
    }

    /// Whether anything has to be allowed.
    pub fn has_rules(&self) -> bool {
        match self.declaration().acl {
            Acl::Allow => false,
            Acl::Deny => true,
        }
    }

    fn tags(&self, member: &Name) -> BTreeSet<&'a Name> {
        let declared = self.world.snapshot.named::<Node>(&self.network, member);
        let declared = declared.into_iter().flat_map(|node| &node.tags);
        self.joined(member).into_iter().flat_map(|joined| &joined.tags).chain(declared).collect()
    }

    /// Whether a selector selects a member.
    pub fn selects(&self, selector: &Selector, member: &Name) -> bool {
        match selector {
            Selector::All => true,
            Selector::Tag(tag) => self.tags(member).contains(tag),
            Selector::Range(range) => {
                let inside = |address: &IpAddr| range.contains(address);
                // A range of length 0 means the internet.
                range.prefix_len() > 0 && self.joined(member).unwrap().addresses.iter().any(inside)
            }
            Selector::Name(name) => match self.world.snapshot.named::<Group>(&self.network, name) {
                Some(group) => self.is_in(group, member),
                None => name == member,
            },
        }
    }

    fn is_in(&self, group: &Group, member: &Name) -> bool {
        let inner = |group: &Name| self.world.snapshot.named::<Group>(&self.network, group).unwrap();
        group.nodes.iter().any(|node| node.name == *member)
            || group.tags.iter().any(|tag| self.tags(member).contains(tag))
            || group.groups.iter().any(|group| self.is_in(inner(&group.name), member))
    }

    /// Whether a rule is about connections from one member to another.
    fn joins(&self, rule: &Allow, from: &Name, to: &Name) -> bool {
        rule.from.iter().any(|selector| self.selects(selector, from))
            && rule.to.iter().any(|selector| self.selects(selector, to))
    }

    /// Which sides of which rules a member is on, in the order of the rules: two that are on the same sides
    /// have the same rights.
    pub fn sides(&self, member: &Name) -> Vec<(bool, bool)> {
        let on = |side: &BTreeSet<Selector>| side.iter().any(|selector| self.selects(selector, member));
        if !self.has_rules() {
            return Vec::new();
        }
        self.rules().map(|rule| (on(&rule.from), on(&rule.to))).collect()
    }

    /// Whether one member may open a connection to another with such a packet.
    pub fn may(&self, from: &Name, to: &Name, packet: Packet) -> bool {
        self.opens(from, to)(packet)
    }

    /// The packets with which one member may open a connection to another.
    pub fn opens(&self, from: &Name, to: &Name) -> impl Fn(Packet) -> bool + use<'a> {
        let (itself, everything) = (from == to, !self.has_rules());
        let rules: Vec<&Allow> = self.rules().filter(|rule| self.joins(rule, from, to)).collect();
        move |packet| !itself && (everything || rules.iter().any(|rule| covers(rule, packet)))
    }

    /// Whether two members may talk in either direction.
    pub fn near(&self, one: &Name, other: &Name) -> bool {
        let either = |rule: &Allow| self.joins(rule, one, other) || self.joins(rule, other, one);
        one != other && (!self.has_rules() || self.rules().any(either))
    }

    /// Whether one of two members is the hub.
    fn is_hub(&self, one: &Name, other: &Name) -> bool {
        self.hub().is_some_and(|hub| hub == one || hub == other)
    }

    /// Whether one member knows another: by a rule, or since one of them carries the other's traffic.
    pub fn knows(&self, one: &Name, other: &Name) -> bool {
        one != other && (self.near(one, other) || self.is_hub(one, other))
    }

    /// Whether packets have a way between two members: directly, or by the hub if it has joined.
    pub fn carries(&self, one: &Name, other: &Name) -> bool {
        self.hub().is_none_or(|hub| self.joined(hub).is_some()) && self.knows(one, other)
    }

    /// What a name resolves to on a member; nothing if it does not: the name of a member does on itself, on
    /// those that a rule joins with it, and on the hub.
    pub fn resolves(&self, at: &Name, name: &Name) -> Option<Resolution> {
        let resolution = self.declaration().name_service.then(|| self.leads(name, 0))??;
        // Around a hub without rules a node is sent its own name like those of all others.
        let sent_alike = self.hub().is_some() && self.declaration().acl == Acl::Allow;
        match resolution {
            // Its own name leads a host to all its addresses, also to those that others do not reach.
            Leads::To(node) if node == *at && node == *name && !sent_alike => {
                Some(Resolution::Addresses(self.joined(&node).unwrap().addresses.clone()))
            }
            Leads::To(node) => {
                let addresses = || Resolution::Addresses(self.joined(&node).unwrap().reachable());
                let may = node == *at || self.near(at, &node) || self.hub() == Some(at);
                may.then(addresses)
            }
            Leads::Out(resolution) => Some(resolution),
        }
    }

    fn leads(&self, name: &Name, depth: usize) -> Option<Leads> {
        let member = |name: &Name| self.joined(name).map(|_| Leads::To(name.clone()));
        let Some(entry) = self.world.snapshot.named::<Dns>(&self.network, name) else { return member(name) };
        if let Some(node) = &entry.node {
            return member(&node.name);
        }
        let inside = |cname: &DomainName| {
            let (inner, network) = cname.in_network()?;
            (network == self.network.as_str()).then(|| inner.parse::<Name>().ok())?
        };
        match &entry.cname {
            // No entry leads through more than all.
            Some(cname) => match inside(cname) {
                Some(inner) if depth < 20 => self.leads(&inner, depth + 1),
                Some(_) => None,
                None => Some(Leads::Out(Resolution::Alias(cname.clone()))),
            },
            None => {
                let ipv4 = entry.a.iter().copied().map(IpAddr::from);
                let addresses = ipv4.chain(entry.aaaa.iter().copied().map(IpAddr::from));
                Some(Leads::Out(Resolution::Addresses(addresses.collect())))
            }
        }
    }
}

/// Where a name leads: to a member, or out of the network.
enum Leads {
    To(Name),
    Out(Resolution),
}

/// Whether a rule is about such packets.
fn covers(rule: &Allow, packet: Packet) -> bool {
    let Allow { from: _, to: _, proto, ports } = rule;
    let port = || {
        let mut ranges = ports.iter().flat_map(|ports| ports.iter()).map(|range| range.ports());
        ports.is_none() || ranges.any(|range| range.contains(&packet.port))
    };
    proto.is_none_or(|proto| packet.protocol == Some(proto) && (!proto.has_ports() || port()))
}
