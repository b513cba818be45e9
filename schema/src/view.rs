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
use crate::scalars::{DomainName, Endpoint, Name, NetworkName, Seconds, WireGuardKey};

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
    /// The ranges that it reaches through a peer, besides the peers' own addresses.
    pub routes: OrdMap<IpNet, Arc<Route>>,
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
    /// Whether the node passes packets on between its peers.
    pub forward: bool,
    /// Whether only what `access` says may be opened at it; otherwise everything may.
    pub restricted: bool,
    /// Whether its own name resolves to its addresses; otherwise `names` says what it resolves to, if
    /// anything.
    pub named: bool,
}

/// Another node: facts that are the same in every View, save that what only its carrier needs (key, endpoint)
/// is absent in those of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its WireGuard key; absent: another node carries its traffic.
    pub public_key: Option<WireGuardKey>,
    /// Where it is reached; absent: it must send first.
    pub endpoint: Option<Endpoint>,
    /// Its addresses in the network: at most one of each family.
    pub addresses: BTreeSet<IpAddr>,
    /// The node that carries its traffic; absent: it is reached directly. To that node itself it is a direct
    /// peer.
    pub via: Option<Name>,
    /// Which members it is one of, for [`View::access`].
    pub class: ClassId,
    /// Whether its name resolves to its addresses; otherwise [`View::names`] says what it resolves to, if
    /// anything.
    pub named: bool,
}

/// A range that is reached through a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The peer.
    pub via: Name,
}

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
    /// What WireGuard is given: a tunnel for each peer that is reached directly, by its key.
    ///
    /// The addresses of a peer that another one carries are added to the carrier's tunnel, the range of a
    /// route to the tunnel of its peer. What an absent peer carries is not reachable.
    pub fn tunnels(&self) -> BTreeMap<WireGuardKey, Tunnel> {
        let mut by_name: BTreeMap<&Name, (WireGuardKey, Tunnel)> = BTreeMap::new();
        for (name, peer) in self.peers.iter().filter(|(_, peer)| self.carrier(peer).is_none()) {
            if let Some(key) = peer.public_key {
                by_name.insert(name, (key, self.tunnel(name, peer)));
            }
        }
        for peer in self.peers.values() {
            let carried = self.carrier(peer).and_then(|carrier| by_name.get_mut(carrier));
            if let Some((_, tunnel)) = carried {
                tunnel.allowed_ips.extend(peer.addresses.iter().copied().map(IpNet::from));
            }
        }
        for (range, route) in &self.routes {
            if let Some((_, tunnel)) = by_name.get_mut(&route.via) {
                tunnel.allowed_ips.insert(*range);
            }
        }
        by_name.into_values().collect()
    }

    /// The tunnel of a peer that is reached directly, with the peer's own addresses alone.
    fn tunnel(&self, name: &Name, peer: &Peer) -> Tunnel {
        Tunnel {
            peer: name.clone(),
            endpoint: peer.endpoint.clone(),
            allowed_ips: peer.addresses.iter().copied().map(IpNet::from).collect(),
        }
    }

    /// The other node that carries a peer's traffic, if one does.
    fn carrier<'a>(&self, peer: &'a Peer) -> Option<&'a Name> {
        peer.via.as_ref().filter(|via| **via != self.node)
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

    /// How much it holds; travels with each update, so that nothing is lost in transit unnoticed.
    pub fn counts(&self) -> Counts {
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        Counts {
            peers: count(self.peers.len()),
            access: count(self.access.len()),
            routes: count(self.routes.len()),
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
            names: Changes::between(&before.names, &after.names),
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let Self { interface, peers, access, routes, names } = self;
        interface.is_none() && peers.is_empty() && access.is_empty() && routes.is_empty() && names.is_empty()
    }

    /// Applies the changes to a View. Applying `between(a, b)` to `a` results in `b`.
    pub fn apply(self, view: &mut View) {
        let Self { interface, peers, access, routes, names } = self;
        if let Some(interface) = interface {
            view.interface = interface;
        }
        peers.apply(&mut view.peers);
        access.apply(&mut view.access);
        routes.apply(&mut view.routes);
        names.apply(&mut view.names);
    }
}

/// Which tunnels a delta changes, given the Views before and after it: `put` are new or differ, `lost` are
/// gone.
///
/// Costs what the delta names, and a pass over all peers if a tunnel that changes carries others. The result
/// equals that of comparing [`View::tunnels`] of the two, without computing either.
pub fn tunnel_changes(before: &View, after: &View, delta: &ViewDelta) -> Changes<WireGuardKey, Tunnel> {
    let owners = owners_of(before, after, delta);
    let mut keys = BTreeSet::new();
    for owner in &owners {
        keys.extend([before, after].into_iter().filter_map(|view| view.direct(owner)?.public_key));
    }
    let had = before.tunnels_of(&owners);
    let has = after.tunnels_of(&owners);
    let mut changes = Changes::default();
    for key in keys {
        match (had.get(&key), has.get(&key)) {
            (had, Some(tunnel)) if had != Some(tunnel) => changes.put.push((key, tunnel.clone())),
            (Some(_), None) => changes.lost.push(key),
            (_, Some(_)) | (None, None) => {}
        }
    }
    changes
}

/// The peers whose tunnels a delta may change: those that it names, and those that carry what it names.
fn owners_of(before: &View, after: &View, delta: &ViewDelta) -> BTreeSet<Name> {
    let mut owners = BTreeSet::new();
    for view in [before, after] {
        for name in delta.peers.keys() {
            let Some(peer) = view.peers.get(name) else { continue };
            owners.insert(view.carrier(peer).unwrap_or(name).clone());
        }
        let routes = delta.routes.keys().filter_map(|range| view.routes.get(range));
        owners.extend(routes.map(|route| route.via.clone()));
    }
    owners
}

impl View {
    /// A peer that is reached directly.
    fn direct(&self, name: &Name) -> Option<&Peer> {
        self.peers.get(name).map(|peer| &**peer).filter(|peer| self.carrier(peer).is_none())
    }

    /// The tunnels of some peers, whole.
    fn tunnels_of(&self, owners: &BTreeSet<Name>) -> BTreeMap<WireGuardKey, Tunnel> {
        let direct = owners.iter().filter_map(|name| Some((name.clone(), self.peers.get(name)?.clone())));
        let mut part = View {
            network: self.network.clone(),
            node: self.node.clone(),
            interface: self.interface.clone(),
            peers: direct.filter(|(_, peer)| self.carrier(peer).is_none()).collect(),
            access: OrdMap::new(),
            routes: OrdMap::new(),
            names: OrdMap::new(),
        };
        let carried =
            self.peers.iter().filter(|(_, peer)| self.carrier(peer).is_some_and(|via| owners.contains(via)));
        part.peers.extend(carried.map(|(name, peer)| (name.clone(), peer.clone())));
        let routes = self.routes.iter().filter(|(_, route)| owners.contains(&route.via));
        part.routes.extend(routes.map(|(range, route)| (*range, route.clone())));
        part.tunnels()
    }
}
