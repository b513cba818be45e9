//! What the packet filter lets through at a node of a network with access rules, or one that forwards to
//! outside of its network: one table for each such network.
//!
//! Pure. A [`Filter`] is what a View says of it: which member is of which class, what each class may open
//! here, and, at a gateway, what at whom it forwards to. Two maps, one for each family, lead from the address
//! of whoever opened a connection to the chain of its class, so that a packet costs one look-up however many
//! classes there are, and one more member is one more element; two more lead from ranges. What lies in a
//! range is of the class of the longest one, and in the network's own ranges are members alone.
//! [`Filter::step`] is what leads from a filter that stands to another one.
//!
//! Every packet of the network's interface is judged by the first packet of its connection, whichever way it
//! goes (`ct original`; nft(8)): so a connection ends with its permission, in both directions, with and
//! without NAT, and what is published of containers is judged by the port that was asked for. What is in no
//! map is dropped. What is let through without being judged is the answers to what this host, or what is
//! behind it, opened. A TCP connection of which nothing is known, since others emptied the kernel's table of
//! connections, is reset before this host sends more of it: nobody knows who opened it.
//!
//! What runs no agent is judged here: the external clients that the node carries, and the ranges that it
//! forwards to. A class has a rule for each class of those at which it may open anything. Everything else
//! that passes between members is judged where it arrives.
//!
//! Sets have names, since nft(8) lists ports that stand in such a rule itself in a form that it does not read.

mod rules;
mod script;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use schema::access::{Access, ClassId};
use schema::scalars::Name;
use schema::view::{Changes, Forward, Guarded, Interface, Peer, View, ViewDelta};

use rules::Rules;

/// What the names of all such tables begin with.
pub const TABLES: &str = "nm-access-";
/// How many elements change one by one at most; of more, the whole table costs less.
const MOST_ELEMENTS: usize = 1_000;

/// The table of the packet filter of an interface, which one agent of a host has, so that two never share a
/// table.
pub fn table(interface: &str) -> String {
    format!("{TABLES}{interface}")
}

/// The maps of a table, of IPv4 and of IPv6.
pub const MAPS: [&str; 2] = ["who4", "who6"];

/// The map that an address is in.
pub fn map(address: &IpAddr) -> &'static str {
    MAPS[usize::from(address.is_ipv6())]
}

/// The chain of a class.
pub fn chain(class: &ClassId) -> String {
    format!("c_{class}")
}

/// What one network's table lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// All but who the members are.
    rules: Rules,
    /// The addresses of members that may open anything here.
    members: BTreeMap<IpAddr, ClassId>,
}

/// How a filter differs from an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterChanges {
    /// What classes may open now; absent: nothing.
    pub access: BTreeMap<ClassId, Option<Arc<Access>>>,
    /// The classes of addresses now; absent: that of a member that may open nothing, or of no member.
    pub members: BTreeMap<IpAddr, Option<ClassId>>,
    /// The classes of ranges that others forward to now; absent: nobody does.
    pub routes: BTreeMap<IpNet, Option<ClassId>>,
    /// What the node forwards to now, by egress; absent: no such.
    pub forwards: BTreeMap<Name, Option<Arc<Forward>>>,
    /// What may be opened at classes of what runs no agent; absent: none such is here.
    pub guarded: BTreeMap<ClassId, Option<Arc<Guarded>>>,
    /// The classes of the addresses of external clients that the node carries; absent: it carries no such.
    pub clients: BTreeMap<IpAddr, Option<ClassId>>,
}

/// One transaction on a table: a packet meets what was before or what is after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterStep {
    /// Replaces the whole table.
    Table,
    /// Runs these commands of nft(8), all at once.
    Commands(String),
    /// Takes elements out of sets and maps, and adds others; an address that is in both changes its class.
    Elements {
        /// Those that are taken out.
        gone: BTreeSet<Element>,
        /// Those that are added.
        new: BTreeSet<Element>,
    },
}

/// An element of a set or a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The name of the set or map.
    pub set: String,
    /// Whether that holds intervals (`flags interval` in nft(8)), and not only addresses.
    pub intervals: bool,
    /// What it is.
    pub interval: Interval,
}

/// Addresses from one to another, both in it, and of a map the class whose chain it leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
    /// The class; absent in a set.
    pub class: Option<ClassId>,
}

impl Filter {
    /// The filter of a network on this interface; absent: everything may be opened at the node, it forwards
    /// nothing to outside, and it has none.
    pub fn of(interface: &str, view: &View) -> Option<Self> {
        let View { interface: own, access, routes, forwards, guarded, .. } = view;
        let sources = Sources::of(view);
        let rules = || Rules {
            interface: interface.to_owned(),
            own: own.addresses.clone(),
            class: own.class,
            forward: own.forward,
            restricted: own.restricted,
            access: access.clone(),
            routes: routes.iter().filter(|_| own.restricted).map(|(it, route)| (*it, route.class)).collect(),
            forwards: forwards.clone(),
            guarded: guarded.clone(),
            clients: view.peers.values().flat_map(|peer| carried(peer, view)).collect(),
        };
        let members = || view.peers.values().flat_map(|peer| sources.permitted(peer)).collect();
        (own.restricted || !forwards.is_empty()).then(|| Self { rules: rules(), members: members() })
    }

    /// The interface.
    pub fn interface(&self) -> &str {
        &self.rules.interface
    }

    /// The addresses of members that may open anything here, each with its class.
    pub fn members(&self) -> &BTreeMap<IpAddr, ClassId> {
        &self.members
    }

    /// What members of a class may open here; absent: nothing.
    pub fn access(&self, class: &ClassId) -> Option<&Access> {
        self.rules.access.get(class).map(|access| &**access)
    }

    /// What each set or map of addresses holds, besides the maps of members and the node's own addresses: in
    /// order.
    pub fn intervals(&self) -> BTreeMap<String, Vec<Interval>> {
        self.rules.intervals()
    }

    /// The content of the table, in nft(8)'s language.
    pub fn text(&self) -> String {
        self.rules.script().text(&self.members)
    }

    /// What leads from this filter to the one with these changes; absent: they change nothing.
    pub fn step(&self, changes: &FilterChanges) -> Option<FilterStep> {
        let mut gone = BTreeSet::new();
        let mut new = BTreeMap::new();
        for (address, class) in &changes.members {
            let had = self.members.get(address);
            if had != class.as_ref() {
                gone.extend(had.map(|_| *address));
                new.extend(class.map(|class| (*address, class)));
            }
        }
        if gone.len() + new.len() > MOST_ELEMENTS {
            return Some(FilterStep::Table);
        }
        let mut rules = Cow::Borrowed(&self.rules);
        if !changes.are_of_members() {
            rules.to_mut().apply(changes);
        }
        if let Some((mut less, mut more)) = self.rules.elements(&rules, changes) {
            let had = gone.iter().map(|address| (*address, self.members[address]));
            less.extend(had.map(|(address, class)| Element::member(address, class)));
            more.extend(new.into_iter().map(|(address, class)| Element::member(address, class)));
            let some = !less.is_empty() || !more.is_empty();
            return some.then_some(FilterStep::Elements { gone: less, new: more });
        }
        let table = table(self.interface());
        let commands = self.rules.script().commands(&rules.script(), &table, &gone, &new);
        (!commands.is_empty()).then_some(FilterStep::Commands(commands))
    }

    /// Takes the changes in.
    pub fn apply(&mut self, changes: &FilterChanges) {
        self.rules.apply(changes);
        for (address, class) in &changes.members {
            match class {
                Some(class) => drop(self.members.insert(*address, *class)),
                None => drop(self.members.remove(address)),
            }
        }
    }
}

impl Element {
    /// An address in a set of addresses, or that leads to the chain of a class in a map of them.
    pub fn address(set: &str, address: IpAddr, class: Option<ClassId>) -> Self {
        let interval = Interval { first: address, last: address, class };
        Self { set: set.to_owned(), intervals: false, interval }
    }

    fn member(address: IpAddr, class: ClassId) -> Self {
        Self::address(map(&address), address, Some(class))
    }
}

impl FilterChanges {
    /// The changes from one View to another of the same interface: at the cost of what differs, and a pass
    /// over all peers if a class comes to be allowed anything, or no longer is.
    pub fn between(before: &View, after: &View, delta: &ViewDelta) -> Self {
        let (had, has) = (Sources::of(before), Sources::of(after));
        let mut turned: BTreeSet<&ClassId> =
            delta.access.keys().filter(|it| had.hold(it) != has.hold(it)).collect();
        if !delta.guarded.is_empty() {
            turned.extend(had.guarding.symmetric_difference(&has.guarding));
        }
        let guards = |view: &View, class: &ClassId| view.guarded.contains_key(class);
        let guarding: BTreeSet<_> =
            delta.guarded.keys().filter(|it| guards(before, it) != guards(after, it)).collect();
        let peers = |view: &View| -> Vec<Arc<Peer>> {
            let named = delta.peers.keys().filter_map(|name| view.peers.get(name));
            let whole = (!turned.is_empty() || !guarding.is_empty()).then(|| view.peers.values());
            let all = whole.into_iter().flatten();
            let all = all.filter(|it| turned.contains(&it.class) || guarding.contains(&it.class));
            named.chain(all).cloned().collect()
        };
        let (peers_before, peers_after) = (peers(before), peers(after));
        let members = differences(
            peers_before.iter().flat_map(|peer| had.permitted(peer)).collect(),
            peers_after.iter().flat_map(|peer| has.permitted(peer)).collect(),
        );
        let clients = differences(
            peers_before.iter().flat_map(|peer| carried(peer, before)).collect(),
            peers_after.iter().flat_map(|peer| carried(peer, after)).collect(),
        );
        let classes = |view: &View| -> BTreeMap<IpNet, ClassId> {
            let ranges = delta.routes.keys().filter(|_| view.interface.restricted);
            ranges.filter_map(|range| Some((*range, view.routes.get(range)?.class))).collect()
        };
        Self {
            access: of_delta(&delta.access),
            members,
            routes: differences(classes(before), classes(after)),
            forwards: of_delta(&delta.forwards),
            guarded: of_delta(&delta.guarded),
            clients,
        }
    }

    /// Whether they are about members alone, none of which is a client that the node carries.
    fn are_of_members(&self) -> bool {
        self.clients.is_empty() && self.are_of_addresses()
    }

    /// Whether nobody may open anything else than before, but for those who come or go.
    fn are_of_addresses(&self) -> bool {
        let Self { access, members: _, routes, forwards, guarded, clients: _ } = self;
        access.is_empty() && routes.is_empty() && forwards.is_empty() && guarded.is_empty()
    }

    /// Adds what has changed since.
    pub fn extend(&mut self, later: Self) {
        let Self { access, members, routes, forwards, guarded, clients } = later;
        self.access.extend(access);
        self.members.extend(members);
        self.routes.extend(routes);
        self.forwards.extend(forwards);
        self.guarded.extend(guarded);
        self.clients.extend(clients);
    }
}

/// The classes that may open anything, as sources.
struct Sources<'a> {
    access: &'a OrdMap<ClassId, Arc<Access>>,
    /// Those that may at what runs no agent.
    guarding: BTreeSet<ClassId>,
}

impl<'a> Sources<'a> {
    fn of(view: &'a View) -> Self {
        let guarding = view.guarded.values().flat_map(|from| from.keys().copied()).collect();
        Self { access: &view.access, guarding }
    }

    fn hold(&self, class: &ClassId) -> bool {
        self.access.contains_key(class) || self.guarding.contains(class)
    }

    /// The addresses of a peer, if its class may open anything.
    fn permitted(&self, peer: &Peer) -> impl Iterator<Item = (IpAddr, ClassId)> + use<> {
        let class = peer.class;
        let addresses = if self.hold(&class) { peer.addresses.clone() } else { BTreeSet::new() };
        addresses.into_iter().map(move |address| (address, class))
    }
}

/// The addresses of a peer, if it is an external client that the node of a View carries.
fn carried<'a>(peer: &'a Peer, view: &View) -> impl Iterator<Item = (IpAddr, ClassId)> + use<'a> {
    let class = peer.class;
    let here = peer.via.as_ref() == Some(&view.node) && view.guarded.contains_key(&class);
    peer.addresses.iter().filter(move |_| here).map(move |address| (*address, class))
}

/// The values now of what differs; absent: it is gone.
fn differences<K: Ord + Copy, V: PartialEq + Copy>(
    had: BTreeMap<K, V>,
    has: BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let all: BTreeSet<_> = had.keys().chain(has.keys()).copied().collect();
    let differs = all.into_iter().filter(|key| had.get(key) != has.get(key));
    differs.map(|key| (key, has.get(&key).copied())).collect()
}

/// The same of a part of a View.
fn of_delta<K: Ord + Clone, V: Clone>(changes: &Changes<K, V>) -> BTreeMap<K, Option<V>> {
    let lost = changes.lost.iter().map(|key| (key.clone(), None));
    lost.chain(changes.put.iter().map(|(key, value)| (key.clone(), Some(value.clone())))).collect()
}

/// What is left of a View on a host that cannot judge what arrives: the peers that may open everything here,
/// and of ranges none, since nothing says who is in them. WireGuard is given nobody else, in neither
/// direction: what answers this host could not be told from what is opened at it. A node that carries for some
/// of them keeps its tunnel, by which nothing comes from its own addresses unless it may open everything as
/// well. What runs no agent is judged nowhere else, so a gateway passes nothing on.
pub fn without_filter(view: &View) -> View {
    if !view.interface.restricted {
        return view.clone();
    }
    let everything = |peer: &Peer| view.access.get(&peer.class).is_some_and(|it| it.is_everything());
    // WireGuard takes from a tunnel only what has an address of its allowed IPs.
    let silenced = |peer: &Peer| Peer { addresses: BTreeSet::new(), named: false, ..peer.clone() };
    let peers = view.peers.iter().map(|(name, peer)| {
        let kept = if everything(peer) { peer.clone() } else { Arc::new(silenced(peer)) };
        (name.clone(), kept)
    });
    let forward = view.interface.forward && view.forwards.is_empty() && view.guarded.is_empty();
    let left = View {
        peers: peers.collect(),
        routes: OrdMap::new(),
        forwards: OrdMap::new(),
        guarded: OrdMap::new(),
        interface: Interface { forward, ..view.interface.clone() },
        ..view.clone()
    };
    let tunnels = left.tunnels().into_values().filter(|tunnel| !tunnel.allowed_ips.is_empty());
    let carrying: BTreeSet<Name> = tunnels.map(|tunnel| tunnel.peer).collect();
    let peers = left.peers.into_iter();
    let peers = peers.filter(|(name, peer)| everything(peer) || carrying.contains(name)).collect();
    View { peers, ..left }
}

#[cfg(test)]
mod tests;
