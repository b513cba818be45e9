//! What one node is sent: its interface, its peers, the ranges that it reaches through them, the names that
//! it resolves.
//!
//! A [`View`] is made by [`compile`](crate::compile) alone, travels whole or as a [`ViewDelta`], and is what
//! an agent reconciles its host against. It holds no private key. A peer holds facts about itself only; what
//! WireGuard is given for it depends on the View's own node, and [`View::tunnels`] is the one function that
//! decides it. Equal inputs give equal Views, and the Views of one network share what they have in common, so
//! that thousands of them cost little more than one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::access::{Access, ClassId};
use crate::scalars::{DomainName, Endpoint, InterfaceName, Name, NetworkName, Seconds, WireGuardKey};

/// How many nodes that carry each other are followed: a client's is the node of its ingress, and that one's a
/// relay. A View in which more follow each other is not followed in a circle.
const MOST_CARRIERS: usize = 8;

/// What one node of one network is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The network.
    pub network: NetworkName,
    /// The node that is sent it.
    pub node: Name,
    /// Its own side of the mesh.
    pub interface: Interface,
    /// The other nodes that it knows, by name.
    pub peers: OrdMap<Name, Arc<Peer>>,
    /// What members of a class may open at it, of classes that may open anything; empty unless the interface
    /// is `restricted`.
    pub access: OrdMap<ClassId, Arc<Access>>,
    /// The ranges that it reaches through a peer, besides the peers' own addresses; of ranges that overlap the
    /// longest prefix goes first.
    pub routes: OrdMap<IpNet, Arc<Route>>,
    /// What it forwards to outside of the network, by egress.
    pub forwards: OrdMap<Name, Arc<Forward>>,
    /// What may be opened at what runs no agent, by the class of that: the external clients that it carries,
    /// and ranges that it forwards to. Only what is here may; empty unless the interface is `restricted`.
    pub guarded: OrdMap<ClassId, Arc<Guarded>>,
    /// The names that resolve in this network besides those that `named` says of nodes, each the part before
    /// `.network`.
    pub names: OrdMap<Name, Arc<Resolution>>,
}

/// The node's own side of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its addresses, each with the prefix of the network's range: at most one of each family.
    pub addresses: BTreeSet<IpNet>,
    /// The UDP port to listen on.
    pub listen_port: u16,
    /// Whether the port was asked for by name; otherwise the agent may take the next free one.
    pub listen_port_fixed: bool,
    /// The largest packet, in bytes, that the interface takes; absent: derived by the agent from the
    /// underlay.
    pub mtu: Option<u16>,
    /// How often the node sends each peer a packet that keeps mappings open; 0: never (see wg(8),
    /// PersistentKeepalive).
    pub keepalive: Seconds,
    /// How often the agent checks in while nothing happens.
    pub check_in: Seconds,
    /// The peer that all its packets to others go through: the hub, or the node's relay; absent: it reaches
    /// them directly.
    pub carrier: Option<Name>,
    /// Whether the node passes packets on: between its peers, or to ranges outside of the network.
    pub forward: bool,
    /// Whether only what `access` says may be opened at it; otherwise everything may.
    pub restricted: bool,
    /// Which members it is one of itself, for [`View::guarded`].
    pub class: ClassId,
    /// Whether its own name resolves to its addresses; otherwise `names` says what it resolves to, if
    /// anything.
    pub named: bool,
    /// The name servers that are asked for names of the network, and for no others; empty: the host keeps the
    /// names itself.
    #[serde(default)]
    pub resolvers: Arc<BTreeSet<IpAddr>>,
}

/// Another member: facts that are the same in every View, save that what only those need who reach it directly
/// (key, endpoint) is absent in those of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its WireGuard key; absent: another node carries its traffic.
    pub public_key: Option<WireGuardKey>,
    /// Where it is reached; absent: it must send first.
    pub endpoint: Option<Endpoint>,
    /// Its addresses in the network: at most one of each family.
    pub addresses: BTreeSet<IpAddr>,
    /// The node that carries its traffic: its relay, or the node of its ingress; absent: none does. To that
    /// node itself it is a direct peer.
    pub via: Option<Name>,
    /// Which members it is one of, for [`View::access`].
    pub class: ClassId,
    /// Whether it may carry the traffic of others: as hub, relay, or node of an ingress or egress.
    pub carries: bool,
    /// Whether its name resolves to its addresses; otherwise [`View::names`] says what it resolves to, if
    /// anything.
    pub named: bool,
}

/// A range that is reached through a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The peer; absent: what is sent there is refused, since nobody carries it at present, or since it lies in a
    /// wider range that this node reaches and is none that it does.
    pub via: Option<Name>,
    /// Which members its addresses count as, for [`View::access`]; of those in a range of the network's own, which
    /// are members' alone, none do: a member that this node does not know comes through a gateway to everything
    /// too.
    pub class: ClassId,
    /// Whether it is for what the node passes on alone: what the node sends itself goes where it went without it.
    pub carried: bool,
}

/// What a node forwards to outside of the network: an egress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The ranges, each with the class of its addresses for [`View::guarded`]; of those that overlap the
    /// longest prefix goes first.
    pub ranges: BTreeMap<IpNet, ClassId>,
    /// The interface that they are behind; absent: where the host routes them itself.
    pub interface: Option<InterfaceName>,
    /// Whether what leaves has the node's own address as its source.
    pub nat: bool,
}

/// What members of each class may open at addresses of one class; of classes that may open anything.
pub type Guarded = BTreeMap<ClassId, Access>;

/// What a name resolves to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolution {
    /// These addresses.
    Addresses(BTreeSet<IpAddr>),
    /// Another name, outside this network.
    Alias(DomainName),
}

/// What WireGuard is given for one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The peer's name.
    pub peer: Name,
    /// Where it is reached; absent: it must send first.
    pub endpoint: Option<Endpoint>,
    /// What may come from it, and what is sent to it (AllowedIPs in wg(8)).
    pub allowed_ips: BTreeSet<IpNet>,
}

impl View {
    /// What WireGuard is given: a tunnel for each peer whose key is known, by that.
    ///
    /// Each peer that is reached directly has its own addresses. The addresses of a peer that others carry are
    /// added to the tunnel of the first of them on the way, the range of a route to the tunnel that leads to its
    /// peer. What an absent peer carries is not reachable.
    pub fn tunnels(&self) -> BTreeMap<WireGuardKey, Tunnel> {
        let mut by_name: BTreeMap<&Name, (WireGuardKey, Tunnel)> = BTreeMap::new();
        for (name, peer) in &self.peers {
            if let Some(key) = peer.public_key {
                by_name.insert(name, (key, self.tunnel(name, peer)));
            }
        }
        for (name, peer) in &self.peers {
            let carried = self.next_hop(name).filter(|hop| *hop != name);
            if let Some((_, tunnel)) = carried.and_then(|hop| by_name.get_mut(hop)) {
                tunnel.allowed_ips.extend(peer.addresses.iter().copied().map(IpNet::from));
            }
        }
        for (range, route) in &self.routes {
            let hop = route.via.as_ref().and_then(|via| self.next_hop(via));
            if let Some((_, tunnel)) = hop.and_then(|hop| by_name.get_mut(hop)) {
                tunnel.allowed_ips.insert(*range);
            }
        }
        by_name.into_values().collect()
    }

    /// The peer whose tunnel leads to another one, which may be that one itself; absent: none does.
    ///
    /// What this node carries it reaches directly. Everything else goes to what carries this node, or if nothing
    /// does, to what carries the other. Who only may come to carry one of the two is no way between them: the
    /// other of its ends would not take what comes from there.
    pub fn next_hop<'a>(&'a self, name: &'a Name) -> Option<&'a Name> {
        let mut hop = name;
        // A carrier may be carried itself: a client is by the node of an ingress, and that by a relay.
        for _ in 0..MOST_CARRIERS {
            match self.peers.get(hop).and_then(|peer| peer.via.as_ref()) {
                Some(via) if *via == self.node => return Some(hop),
                Some(via) => hop = via,
                None => break,
            }
        }
        let hop = self.interface.carrier.as_ref().unwrap_or(hop);
        Some(hop).filter(|hop| self.peers.get(*hop).is_some_and(|peer| peer.public_key.is_some()))
    }

    /// The tunnel of a peer whose key is known, with the peer's own addresses alone, if it leads to these.
    fn tunnel(&self, name: &Name, peer: &Peer) -> Tunnel {
        let own = peer.addresses.iter().filter(|_| self.next_hop(name) == Some(name));
        Tunnel {
            peer: name.clone(),
            endpoint: peer.endpoint.clone(),
            allowed_ips: own.copied().map(IpNet::from).collect(),
        }
    }

    /// Every name that resolves and what it resolves to, by name: nodes' and others'.
    pub fn resolutions(&self) -> BTreeMap<&Name, Resolution> {
        let own = self.interface.named.then(|| {
            let addresses = self.interface.addresses.iter().map(IpNet::addr).collect();
            (&self.node, Resolution::Addresses(addresses))
        });
        let named = self.peers.iter().filter(|(_, peer)| peer.named);
        let peers = named.map(|(name, peer)| (name, Resolution::Addresses(peer.addresses.clone())));
        let names = self.names.iter().map(|(name, resolution)| (name, (**resolution).clone()));
        own.into_iter().chain(peers).chain(names).collect()
    }

    /// Whether what the node sends to an address goes through the network, or to itself in it.
    pub fn reaches(&self, address: IpAddr) -> bool {
        let own = self.interface.addresses.iter().any(|own| own.addr() == address);
        let routes = self.routes.iter().filter(|(range, route)| !route.carried && range.contains(&address));
        let longest = routes.max_by_key(|(range, _)| range.prefix_len());
        own || longest.is_some_and(|(_, route)| route.via.is_some())
            || self.peers.values().any(|peer| peer.addresses.contains(&address))
    }

    /// How much it holds; travels with each update, so that nothing is lost in transit unnoticed.
    pub fn counts(&self) -> Counts {
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        Counts {
            peers: count(self.peers.len()),
            access: count(self.access.len()),
            routes: count(self.routes.len()),
            forwards: count(self.forwards.len()),
            guarded: count(self.guarded.len()),
            names: count(self.names.len()),
        }
    }
}

/// How many entries each map of a View has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Peers.
    pub peers: u32,
    /// Classes that may open anything.
    pub access: u32,
    /// Routes.
    pub routes: u32,
    /// What is forwarded outside.
    pub forwards: u32,
    /// Classes of what runs no agent.
    pub guarded: u32,
    /// Names besides those of nodes.
    pub names: u32,
}

/// How one map differs from an earlier one: entries that are new or differ, and keys that are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<K, V> {
    /// Entries that are new or differ, by key.
    pub put: Vec<(K, V)>,
    /// Keys that are gone, in order.
    pub lost: Vec<K>,
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Self { put: Vec::new(), lost: Vec::new() }
    }
}

impl<K, V> Changes<K, V> {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.lost.is_empty()
    }

    /// Every key that differs.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.put.iter().map(|(key, _)| key).chain(&self.lost)
    }
}

impl<K: Ord + Clone, V: PartialEq> Changes<K, Arc<V>> {
    /// The changes from `before` to `after`: at the cost of what differs, if the two share their structure.
    pub fn between(before: &OrdMap<K, Arc<V>>, after: &OrdMap<K, Arc<V>>) -> Self {
        let mut changes = Self::default();
        if before.ptr_eq(after) {
            return changes;
        }
        for item in before.diff(after) {
            match item {
                DiffItem::Add(key, entry) | DiffItem::Update { new: (key, entry), .. } => {
                    changes.put.push((key.clone(), entry.clone()));
                }
                DiffItem::Remove(key, _) => changes.lost.push(key.clone()),
            }
        }
        changes
    }

    /// Applies the changes to a map. Applying `between(a, b)` to `a` results in `b`.
    pub fn apply(self, map: &mut OrdMap<K, Arc<V>>) {
        for key in self.lost {
            map.remove(&key);
        }
        map.extend(self.put);
    }
}

/// How one View differs from an earlier one of the same node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewDelta {
    /// The new own side, where it differs.
    pub interface: Option<Interface>,
    /// Peers.
    pub peers: Changes<Name, Arc<Peer>>,
    /// What classes may open.
    pub access: Changes<ClassId, Arc<Access>>,
    /// Routes.
    pub routes: Changes<IpNet, Arc<Route>>,
    /// What is forwarded outside.
    pub forwards: Changes<Name, Arc<Forward>>,
    /// What may be opened at what runs no agent.
    pub guarded: Changes<ClassId, Arc<Guarded>>,
    /// Names.
    pub names: Changes<Name, Arc<Resolution>>,
}

impl ViewDelta {
    /// The changes from `before` to `after`: at the cost of what differs, if the two share their maps.
    pub fn between(before: &View, after: &View) -> Self {
        Self {
            interface: (before.interface != after.interface).then(|| after.interface.clone()),
            peers: Changes::between(&before.peers, &after.peers),
            access: Changes::between(&before.access, &after.access),
            routes: Changes::between(&before.routes, &after.routes),
            forwards: Changes::between(&before.forwards, &after.forwards),
            guarded: Changes::between(&before.guarded, &after.guarded),
            names: Changes::between(&before.names, &after.names),
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let Self { interface, peers, access, routes, forwards, guarded, names } = self;
        interface.is_none()
            && peers.is_empty()
            && access.is_empty()
            && routes.is_empty()
            && forwards.is_empty()
            && guarded.is_empty()
            && names.is_empty()
    }

    /// Applies the changes to a View. Applying `between(a, b)` to `a` results in `b`.
    pub fn apply(self, view: &mut View) {
        let Self { interface, peers, access, routes, forwards, guarded, names } = self;
        if let Some(interface) = interface {
            view.interface = interface;
        }
        peers.apply(&mut view.peers);
        access.apply(&mut view.access);
        routes.apply(&mut view.routes);
        forwards.apply(&mut view.forwards);
        guarded.apply(&mut view.guarded);
        names.apply(&mut view.names);
    }
}

/// Which tunnels a delta changes, given the Views before and after it: `put` are new or differ, `lost` are
/// gone.
///
/// Costs what the delta names, and a pass over all peers if a tunnel that changes carries others. The result
/// equals that of comparing [`View::tunnels`] of the two, without computing either.
pub fn tunnel_changes(before: &View, after: &View, delta: &ViewDelta) -> Changes<WireGuardKey, Tunnel> {
    let [had, has] = changed_tunnels(before, after, delta);
    let mut changes = Changes::default();
    for (key, tunnel) in &has {
        if had.get(key) != Some(tunnel) {
            changes.put.push((*key, tunnel.clone()));
        }
    }
    changes.lost = had.into_keys().filter(|key| !has.contains_key(key)).collect();
    changes
}

/// The tunnels before and after a delta, but for some that it does not change.
pub fn changed_tunnels(
    before: &View,
    after: &View,
    delta: &ViewDelta,
) -> [BTreeMap<WireGuardKey, Tunnel>; 2] {
    if before.interface.carrier != after.interface.carrier {
        return [before.tunnels(), after.tunnels()];
    }
    let owners = owners_of(before, after, delta);
    [before.tunnels_of(&owners), after.tunnels_of(&owners)]
}

/// The peers whose tunnels a delta may change: those that it names, and those whose tunnels lead there.
fn owners_of<'a>(before: &'a View, after: &'a View, delta: &'a ViewDelta) -> BTreeSet<&'a Name> {
    let mut owners: BTreeSet<&Name> = delta.peers.keys().collect();
    let is_carrier = |view: &View, name: &Name| view.peers.get(name).is_some_and(|peer| peer.carries);
    // What a carrier carries moves where the carrier does.
    if owners.iter().any(|name| is_carrier(before, name) || is_carrier(after, name)) {
        return before.peers.keys().chain(after.peers.keys()).collect();
    }
    for view in [before, after] {
        owners.extend(delta.peers.keys().filter_map(|name| view.next_hop(name)));
        let routes = delta.routes.keys().filter_map(|range| view.routes.get(range)?.via.as_ref());
        owners.extend(routes.filter_map(|via| view.next_hop(via)));
    }
    owners
}

impl View {
    /// The tunnels of some peers, whole.
    fn tunnels_of(&self, owners: &BTreeSet<&Name>) -> BTreeMap<WireGuardKey, Tunnel> {
        let carries = |name: &&Name| self.peers.get(*name).is_some_and(|peer| peer.carries);
        if owners.iter().any(carries) {
            let all = self.tunnels().into_iter();
            return all.filter(|(_, tunnel)| owners.contains(&tunnel.peer)).collect();
        }
        let peers = owners.iter().filter_map(|name| Some((*name, self.peers.get(*name)?)));
        peers.filter_map(|(name, peer)| Some((peer.public_key?, self.tunnel(name, peer)))).collect()
    }
}
