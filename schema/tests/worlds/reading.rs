//! The naive reading of a network: who may open what at whom, by which nodes packets go, and who must know
//! whom.
//!
//! Straight from the declarations and from who is there, pair by pair and rule by rule. Nothing here is the
//! compiler's, so that the two agree only where both are right.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use schema::access::Protocol;
use schema::attribute::Ref;
use schema::inventory::{Joined, NodeId};
use schema::kinds::{Acl, Allow, Dns, Egress, ExternalClient, Group, Ingress, Network, Node, Relay};
use schema::scalars::{DomainName, Name, NetworkName, Selector, WireGuardKey};
use schema::view::Resolution;
use schema::world::World;

/// One network of a world, to be read.
pub struct Reading<'a> {
    network: NetworkName,
    world: &'a World,
    /// Whether nodes that are away may carry something all the same, where nobody else does.
    silent_may_carry: bool,
}

/// Who may open a connection, or have one opened at it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A member: a node, or an external client.
    Member(Name),
    /// A host outside of the network, which may be behind an egress.
    Host(IpAddr),
}

impl From<&Name> for Party {
    fn from(name: &Name) -> Self {
        Self::Member(name.clone())
    }
}

impl From<&Self> for Party {
    fn from(party: &Self) -> Self {
        party.clone()
    }
}

/// A range behind an egress that a host is in.
pub struct Outside<'a> {
    /// The egress.
    pub egress: &'a Egress,
    /// Its name.
    pub name: &'a Name,
    /// The range, as it is declared.
    pub range: IpNet,
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
        Self { network, world, silent_may_carry: true }
    }

    /// The same as plans have it: whoever is away carries nothing, so that what goes through him counts as lost.
    #[must_use]
    pub fn without_those_away(self) -> Self {
        Self { silent_may_carry: false, ..self }
    }

    pub fn name(&self) -> &NetworkName {
        &self.network
    }

    pub fn declaration(&self) -> &'a Network {
        self.world.snapshot.network(&self.network).unwrap()
    }

    /// Every member, by name: the nodes that have joined, and the external clients that are let in.
    pub fn members(&self) -> BTreeSet<Name> {
        let clients =
            self.world.snapshot.all_in::<ExternalClient>(&self.network).map(|(id, _)| id.name.clone());
        let clients = clients.filter(|name| self.client(name).is_some());
        self.nodes().into_iter().chain(clients).collect()
    }

    /// The nodes that have joined, by name.
    pub fn nodes(&self) -> BTreeSet<Name> {
        self.world.inventory.nodes_in(&self.network).map(|(name, _)| name.clone()).collect()
    }

    /// The name, if a node has joined under it.
    pub fn node(&self, name: &Name) -> Option<&'a Name> {
        let id = NodeId::of(&self.network, name);
        self.world.inventory.nodes().find(|(node, _)| **node == id).map(|(node, _)| &node.name)
    }

    /// An external client that is let in.
    pub fn client(&self, name: &Name) -> Option<&'a ExternalClient> {
        let client = self.world.snapshot.named::<ExternalClient>(&self.network, name)?;
        let status = self.world.inventory.client(&NodeId::of(&self.network, name))?;
        (client.enabled && client.public_key.is_some() && !status.expired).then_some(client)
    }

    /// The WireGuard key of a member.
    pub fn key(&self, member: &Name) -> Option<WireGuardKey> {
        self.joined(member).map(|joined| joined.public_key).or_else(|| self.client(member)?.public_key)
    }

    /// The addresses of a member that others reach; of nobody: none.
    pub fn addresses(&self, member: &Name) -> BTreeSet<IpAddr> {
        let client = || self.world.inventory.client(&NodeId::of(&self.network, member));
        match self.joined(member) {
            Some(joined) => joined.reachable(),
            None => {
                self.client(member).and_then(|_| client()).map(|it| it.addresses.clone()).unwrap_or_default()
            }
        }
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

    /// Whether anything has to be allowed: there are rules, or external clients that may not open everything.
    pub fn has_rules(&self) -> bool {
        let mut clients = self.world.snapshot.all_in::<ExternalClient>(&self.network);
        match self.declaration().acl {
            Acl::Allow => clients.any(|(_, client)| client.allow_to.is_some()),
            Acl::Deny => true,
        }
    }

    fn tags(&self, member: &Name) -> BTreeSet<&'a Name> {
        let declared = self.world.snapshot.named::<Node>(&self.network, member).map(|node| &node.tags);
        let tags = declared.or_else(|| Some(&self.client(member)?.tags));
        let joined = self.joined(member).map(|joined| &joined.tags);
        joined.into_iter().chain(tags).flatten().collect()
    }

    /// Whether a selector selects somebody.
    pub fn selects(&self, selector: &Selector, party: impl Into<Party>) -> bool {
        match party.into() {
            Party::Member(member) => self.selects_member(selector, &member),
            // Names, tags and `*` select members alone.
            Party::Host(host) => match selector {
                Selector::Range(range) if range.prefix_len() == 0 => {
                    self.outside(host).is_some_and(|outside| outside.range == *range)
                }
                Selector::Range(range) => range.contains(&host) && self.outside(host).is_some(),
                Selector::All | Selector::Tag(_) | Selector::Name(_) => false,
            },
        }
    }

    fn selects_member(&self, selector: &Selector, member: &Name) -> bool {
        match selector {
            Selector::All => true,
            Selector::Tag(tag) => self.tags(member).contains(tag),
            Selector::Range(range) => {
                let addresses = match self.joined(member) {
                    Some(joined) => joined.addresses.clone(),
                    None => self.addresses(member),
                };
                // A range of length 0 means the internet.
                range.prefix_len() > 0 && addresses.iter().any(|address| range.contains(address))
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
            || group.external_clients.iter().any(|client| client.name == *member)
            || group.tags.iter().any(|tag| self.tags(member).contains(tag))
            || group.groups.iter().any(|group| self.is_in(inner(&group.name), member))
    }

    fn is_on(&self, side: &BTreeSet<Selector>, party: &Party) -> bool {
        side.iter().any(|selector| self.selects(selector, party))
    }

    /// Which sides a member is on, in an order of its own: two that are on the same sides have the same rights.
    pub fn sides(&self, member: &Name) -> Vec<bool> {
        let member = Party::from(member);
        let mut sides = Vec::new();
        if self.declaration().acl == Acl::Deny {
            let ends = self.rules().flat_map(|rule| [&*rule.from, &*rule.to]);
            sides.extend(ends.map(|side| self.is_on(side, &member)));
        }
        let clients = self.world.snapshot.all_in::<ExternalClient>(&self.network);
        for (_, client) in clients {
            let Some(all) = &client.allow_to else { continue };
            sides.extend([self.bound(&member) == Some(all), self.is_on(all, &member)]);
        }
        let egress = self.world.snapshot.all_in::<Egress>(&self.network);
        sides.extend(egress.filter_map(|(_, egress)| Some(self.is_on(egress.r#for.as_deref()?, &member))));
        sides
    }

    /// All that somebody may open, if it is an external client of which that is said.
    fn bound(&self, party: &Party) -> Option<&'a BTreeSet<Selector>> {
        match party {
            Party::Member(name) => {
                let client = self.world.snapshot.named::<ExternalClient>(&self.network, name)?;
                client.allow_to.as_ref()
            }
            Party::Host(_) => None,
        }
    }

    /// Whether a party may open a connection to another with such a packet.
    pub fn may(&self, from: impl Into<Party>, to: impl Into<Party>, packet: Packet) -> bool {
        self.opens(from, to)(packet)
    }

    /// The packets with which a party may open a connection to another.
    pub fn opens<F: Into<Party>, T: Into<Party>>(
        &self,
        from: F,
        to: T,
    ) -> impl Fn(Packet) -> bool + use<'a, F, T> {
        let (from, to) = (from.into(), to.into());
        let (itself, judged) = (from == to, self.judged(&from, &to));
        move |packet| {
            let may = match &judged {
                Judged::Everything(all) => *all,
                Judged::Rules(rules) => rules.iter().any(|rule| covers(rule, packet)),
            };
            !itself && may
        }
    }

    /// What says whether one party may open a connection to another.
    fn judged(&self, from: &Party, to: &Party) -> Judged<'a> {
        match (self.bound(from), self.declaration().acl) {
            (Some(all), _) => Judged::Everything(self.is_on(all, to)),
            (None, Acl::Allow) => Judged::Everything(true),
            (None, Acl::Deny) => {
                let joins = |rule: &&Allow| self.is_on(&rule.from, from) && self.is_on(&rule.to, to);
                Judged::Rules(self.rules().filter(joins).collect())
            }
        }
    }

    /// Whether two parties may talk in either direction.
    pub fn near(&self, one: impl Into<Party>, other: impl Into<Party>) -> bool {
        let (one, other) = (one.into(), other.into());
        let may = |from: &Party, to: &Party| match self.judged(from, to) {
            Judged::Everything(all) => all,
            Judged::Rules(rules) => !rules.is_empty(),
        };
        one != other && (may(&one, &other) || may(&other, &one))
    }

    /// Whether one of two members is the hub.
    fn is_hub(&self, one: &Name, other: &Name) -> bool {
        self.hub().is_some_and(|hub| hub == one || hub == other)
    }

    /// Whether one member knows another where nobody but a hub carries others: by a rule, or since one of them
    /// carries the other's traffic.
    pub fn knows(&self, one: &Name, other: &Name) -> bool {
        one != other && (self.near(one, other) || self.is_hub(one, other))
    }

    /// Whether packets have a way between two members, one of which knows the other.
    pub fn carries(&self, one: &Name, other: &Name) -> bool {
        self.knows(one, other) && self.way(one, other).is_some()
    }

    /// Every egress with a range around a host.
    pub fn egresses_around(&self, host: IpAddr) -> impl Iterator<Item = &'a Egress> {
        let all = self.world.snapshot.all_in::<Egress>(&self.network).map(|(_, egress)| &**egress);
        all.filter(move |egress| egress.ranges.iter().any(|range| range.net().contains(&host)))
    }

    /// The declared range behind an egress that a host is in: the one with the longest prefix.
    pub fn outside(&self, host: IpAddr) -> Option<Outside<'a>> {
        if self.declaration().ranges().any(|own| own.contains(&host)) {
            return None;
        }
        let egress = self.world.snapshot.all_in::<Egress>(&self.network);
        let ranges = egress.flat_map(|(id, egress)| {
            egress.ranges.iter().map(move |range| Outside { egress, name: &id.name, range: range.net() })
        });
        ranges.filter(|it| it.range.contains(&host)).max_by_key(|it| it.range.prefix_len())
    }

    /// The node that carries the range that a host is in: the first that has joined and is not away; if there
    /// is none, the first that has joined, but for the way to everything.
    pub fn gateway(&self, host: IpAddr) -> Option<&'a Name> {
        let Outside { egress, name, range } = self.outside(host)?;
        let present = self.first_present(&egress.via, Some(name));
        present.or_else(|| self.first_joined(&egress.via).filter(|_| range.prefix_len() > 0))
    }

    /// The first that has joined, if those count that are away.
    fn first_joined(&self, via: &'a [Ref<Node>]) -> Option<&'a Name> {
        let mut nodes = via.iter().map(|node| &node.name);
        nodes.find(|node| self.silent_may_carry && self.joined(node).is_some())
    }

    fn first_present(&self, via: &'a [Ref<Node>], egress: Option<&Name>) -> Option<&'a Name> {
        let mut nodes = via.iter().map(|node| &node.name);
        nodes.find(|node| self.joined(node).is_some() && !self.is_away(node, egress))
    }

    fn is_away(&self, node: &Name, egress: Option<&Name>) -> bool {
        let away = self.world.inventory.away_of(&NodeId::of(&self.network, node));
        away.is_some_and(|away| away.everything || egress.is_some_and(|egress| away.egress.contains(egress)))
    }

    /// Whether an egress gives its routes to a member.
    pub fn is_for(&self, egress: &Egress, member: &Name) -> bool {
        egress.r#for.as_ref().is_none_or(|selectors| self.is_on(selectors, &member.into()))
    }

    /// The relay that is for a node: the first by name; none is for a node that relays, or for the hub.
    fn relay(&self, node: &Name) -> Option<&'a Relay> {
        let relays = self.world.snapshot.all_in::<Relay>(&self.network);
        let relays: Vec<&Relay> = relays.map(|(_, relay)| &**relay).collect();
        let never = relays.iter().any(|relay| relay.via.iter().any(|via| via.name == *node));
        if never || self.hub() == Some(node) || self.joined(node).is_none() {
            return None;
        }
        relays.into_iter().find(|relay| relay.r#for.iter().any(|selector| self.selects(selector, node)))
    }

    /// The nodes that may carry a member's traffic: of its ingress, or of its relay; otherwise the hub.
    pub fn carriers(&self, member: &Name) -> Vec<&'a Name> {
        if let Some(client) = self.client(member) {
            let ingress = self.world.snapshot.named::<Ingress>(&self.network, &client.via.name);
            return ingress.map(|ingress| &ingress.via.name).into_iter().collect();
        }
        match self.relay(member) {
            Some(relay) => relay.via.iter().map(|node| &node.name).collect(),
            None => self.hub().filter(|hub| *hub != member).into_iter().collect(),
        }
    }

    /// The one of them that does, there or not; absent: the member reaches others directly.
    pub fn carrier(&self, member: &Name) -> Option<&'a Name> {
        let first = self.carriers(member).first().copied();
        let Some(relay) = self.relay(member) else { return first };
        self.first_present(&relay.via, None).or_else(|| self.first_joined(&relay.via)).or(first)
    }

    /// Who carries a member's traffic other than a hub.
    pub fn via(&self, member: &Name) -> Option<&'a Name> {
        let carried = self.client(member).is_some() || self.relay(member).is_some();
        self.carrier(member).filter(|_| carried)
    }

    /// Whether a node may carry anything for others.
    pub fn may_carry(&self, node: &Name) -> bool {
        let names = |via: &[Ref<Node>]| via.iter().any(|via| via.name == *node);
        let snapshot = &self.world.snapshot;
        self.hub() == Some(node)
            || snapshot.all_in::<Relay>(&self.network).any(|(_, relay)| names(&relay.via))
            || snapshot.all_in::<Egress>(&self.network).any(|(_, egress)| names(&egress.via))
            || snapshot.all_in::<Ingress>(&self.network).any(|(_, ingress)| ingress.via.name == *node)
    }

    /// The nodes that a party's packets pass until one of them reaches others directly, that one included, and
    /// the party itself if it is a node; and whether all of them are there: otherwise those before the first that
    /// is not.
    fn chain(&self, party: &Party) -> (Vec<&'a Name>, bool) {
        let mut chain = Vec::new();
        let mut next = match party {
            Party::Member(name) => self.node(name).or_else(|| self.carrier(name)),
            Party::Host(host) => self.gateway(*host),
        };
        while let Some(node) = next {
            let is_end = matches!(party, Party::Member(name) if name == node);
            if self.joined(node).is_none() || !is_end && !self.silent_may_carry && self.is_away(node, None) {
                return (chain, false);
            }
            chain.push(node);
            next = self.carrier(node);
        }
        let complete = !chain.is_empty();
        (chain, complete)
    }

    /// The nodes that packets between two parties pass, in order, those that are nodes included; absent: there
    /// is no way.
    pub fn way(&self, from: impl Into<Party>, to: impl Into<Party>) -> Option<Vec<&'a Name>> {
        let ((mut out, complete), (mut back, also)) = (self.chain(&from.into()), self.chain(&to.into()));
        match out.iter().position(|node| back.contains(node)) {
            Some(place) => {
                out.truncate(place + 1);
                back.truncate(back.iter().position(|node| *node == out[place])?);
            }
            // The last of each reach each other: there is no hub, or they would have met there.
            None if complete && also => {}
            None => return None,
        }
        out.extend(back.into_iter().rev());
        Some(out)
    }

    /// The packets with which a party reaches another: by a rule, and as there are addresses of one family, routes
    /// from each to the other, and a way. What a gateway and what is behind it open at each other goes outside of
    /// the network, as it does between what is behind one gateway; and the internet opens nothing at anybody.
    pub fn reaches<F: Into<Party>, T: Into<Party>>(
        &self,
        from: F,
        to: T,
    ) -> impl Fn(Packet) -> bool + use<'a, F, T> {
        let (from, to) = (from.into(), to.into());
        let internet = matches!(&from, Party::Host(host) if self.is_internet(*host));
        let has_route = !internet && self.share_a_family(&from, &to) && !self.is_local(&from, &to);
        let has_route = has_route && self.gets_route(&from, &to) && self.gets_route(&to, &from);
        let (has_way, opens) = (has_route && self.way(&from, &to).is_some(), self.opens(from, to));
        move |packet| has_way && opens(packet)
    }

    /// Whether a host is in a default route's range.
    fn is_internet(&self, host: IpAddr) -> bool {
        self.outside(host).is_some_and(|outside| outside.range.prefix_len() == 0)
    }

    fn share_a_family(&self, one: &Party, other: &Party) -> bool {
        let addresses = |party: &Party| match party {
            Party::Member(name) => self.addresses(name),
            Party::Host(host) => BTreeSet::from([*host]),
        };
        let (ours, theirs) = (addresses(one), addresses(other));
        ours.iter().any(|one| theirs.iter().any(|other| one.is_ipv4() == other.is_ipv4()))
    }

    /// Whether one of the two may be the gateway of the other, or both may have the same.
    pub fn is_local(&self, one: &Party, other: &Party) -> bool {
        let gateways = |party: &Party| match party {
            Party::Member(name) => BTreeSet::from([name.clone()]),
            Party::Host(host) => {
                let via = self.outside(*host).map(|outside| &*outside.egress.via);
                via.into_iter().flatten().map(|node| node.name.clone()).collect()
            }
        };
        let is_host = |party: &Party| matches!(party, Party::Host(_));
        (is_host(one) || is_host(other)) && !gateways(one).is_disjoint(&gateways(other))
    }

    /// Whether a party has the route to another: what is behind a gateway goes by what is for that gateway.
    fn gets_route(&self, party: &Party, other: &Party) -> bool {
        let Party::Host(host) = other else { return true };
        let Some(Outside { egress, .. }) = self.outside(*host) else { return false };
        match party {
            Party::Member(name) => self.is_for(egress, name),
            Party::Host(behind) => self.gateway(*behind).is_some_and(|node| self.is_for(egress, node)),
        }
    }

    /// The ranges outside of the network that a host is in: declared ones, and those parts of them that something
    /// names; absent: it is in the network, or behind no egress.
    pub fn parts(&self, host: IpAddr) -> Option<BTreeSet<IpNet>> {
        self.outside(host)?;
        let snapshot = &self.world.snapshot;
        let egress = || snapshot.all_in::<Egress>(&self.network).map(|(_, egress)| egress);
        let declared: BTreeSet<IpNet> =
            egress().flat_map(|egress| egress.ranges.iter().map(|range| range.net())).collect();
        let rules = self.rules().filter(|_| self.declaration().acl == Acl::Deny);
        let clients = snapshot.all_in::<ExternalClient>(&self.network);
        let sides = rules.flat_map(|rule| [&*rule.from, &*rule.to]);
        let sides = sides.chain(egress().filter_map(|egress| egress.r#for.as_deref()));
        let sides = sides.chain(clients.filter_map(|(_, client)| client.allow_to.as_ref()));
        let named = sides.flatten().filter_map(|selector| match selector {
            Selector::Range(range) if range.prefix_len() > 0 => Some(*range),
            Selector::Range(_) | Selector::All | Selector::Tag(_) | Selector::Name(_) => None,
        });
        let is_part = |part: &IpNet| {
            let mut own = self.declaration().ranges();
            declared.iter().any(|range| range.contains(part)) && !own.any(|own| own.contains(part))
        };
        let parts: BTreeSet<IpNet> = named.filter(is_part).collect();
        Some(declared.union(&parts).copied().filter(|range| range.contains(&host)).collect())
    }

    /// What a name resolves to on a member; nothing if it does not: the name of a member does on itself, on
    /// those that a rule joins with it, and on the hub.
    pub fn resolves(&self, at: &Name, name: &Name) -> Option<Resolution> {
        let resolution = self.declaration().name_service.then(|| self.leads(name, 0))??;
        // Around a hub without rules a node is sent its own name like those of all others.
        let sent_alike = self.hub().is_some() && !self.has_rules();
        match resolution {
            // Its own name leads a host to all its addresses, also to those that others do not reach.
            Leads::To(node) if node == *at && node == *name && !sent_alike => {
                Some(Resolution::Addresses(self.joined(&node).unwrap().addresses.clone()))
            }
            Leads::To(node) => {
                let addresses = || Resolution::Addresses(self.addresses(&node));
                let may = node == *at || self.near(at, &node) || self.hub() == Some(at);
                may.then(addresses)
            }
            Leads::Out(resolution) => Some(resolution),
        }
    }

    /// What a name resolves to for those who may know it; nothing if it does for nobody.
    pub fn resolves_for_some(&self, name: &Name) -> Option<Resolution> {
        Some(match self.declaration().name_service.then(|| self.leads(name, 0))?? {
            Leads::To(member) => Resolution::Addresses(self.addresses(&member)),
            Leads::Out(resolution) => resolution,
        })
    }

    fn leads(&self, name: &Name, depth: usize) -> Option<Leads> {
        let member = |name: &Name| self.key(name).map(|_| Leads::To(name.clone()));
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

/// What says what one party may open at another.
enum Judged<'a> {
    /// Everything, or nothing.
    Everything(bool),
    /// What one of these rules lets it open, each of which does something.
    Rules(Vec<&'a Allow>),
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
