//! What one node is told: its interface, its peers, the names that it resolves.
//!
//! A [`View`] is made by [`compile`](crate::compile) alone, travels whole or as a [`ViewDelta`], and is what an agent
//! reconciles its machine against. It holds no private key. Equal inputs give equal Views, and the Views of one network
//! share what they have in common, so that thousands of them cost little more than one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::scalars::{DomainName, Endpoint, Name, NetworkName, Seconds, WireGuardKey};

/// What one node of one network is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The network.
    pub network: NetworkName,
    /// The node that is told.
    pub node: Name,
    /// Its own side of the mesh.
    pub interface: Interface,
    /// The WireGuard peers, by the name of their node.
    pub peers: OrdMap<Name, Arc<Peer>>,
    /// The names that resolve in this network, each the part before `.network`.
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
    /// The largest packet, in bytes, that the interface takes; absent: derived by the agent from the underlay.
    pub mtu: Option<u16>,
    /// How often the node sends each peer a packet that keeps mappings open; 0: never (see wg(8), PersistentKeepalive).
    pub keepalive: Seconds,
    /// How often the agent checks in while nothing happens.
    pub check_in: Seconds,
    /// Whether the node passes packets on between its peers.
    pub forward: bool,
}

/// Another node, as WireGuard is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// Where it is reached; absent: it must speak first.
    pub endpoint: Option<Endpoint>,
    /// The addresses that it may send from, and that are sent to it.
    pub allowed_ips: BTreeSet<IpNet>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolution {
    /// These addresses.
    Addresses(BTreeSet<IpAddr>),
    /// Another name, outside this network.
    Alias(DomainName),
}

/// How one View differs from an earlier one of the same node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewDelta {
    /// The new own side, where it differs.
    pub interface: Option<Interface>,
    /// Peers that are new or differ.
    pub peers: Vec<(Name, Arc<Peer>)>,
    /// Peers that are gone.
    pub lost_peers: Vec<Name>,
    /// Names that are new or differ.
    pub names: Vec<(Name, Arc<Resolution>)>,
    /// Names that are gone.
    pub lost_names: Vec<Name>,
}

impl ViewDelta {
    /// What leads from `before` to `after`: at the cost of what differs, where the two share their maps.
    pub fn between(before: &View, after: &View) -> Self {
        let (peers, lost_peers) = entries_between(&before.peers, &after.peers);
        let (names, lost_names) = entries_between(&before.names, &after.names);
        let interface = (before.interface != after.interface).then(|| after.interface.clone());
        Self { interface, peers, lost_peers, names, lost_names }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let Self { interface, peers, lost_peers, names, lost_names } = self;
        interface.is_none() && peers.is_empty() && lost_peers.is_empty() && names.is_empty() && lost_names.is_empty()
    }

    /// Changes a View by what differs. Applying `between(a, b)` to `a` gives `b`.
    pub fn apply(self, view: &mut View) {
        let Self { interface, peers, lost_peers, names, lost_names } = self;
        if let Some(interface) = interface {
            view.interface = interface;
        }
        replace(&mut view.peers, peers, lost_peers);
        replace(&mut view.names, names, lost_names);
    }
}

type Entries<T> = (Vec<(Name, Arc<T>)>, Vec<Name>);

fn entries_between<T: PartialEq>(before: &OrdMap<Name, Arc<T>>, after: &OrdMap<Name, Arc<T>>) -> Entries<T> {
    let (mut put, mut lost) = (Vec::new(), Vec::new());
    for item in before.diff(after) {
        match item {
            DiffItem::Add(name, entry) | DiffItem::Update { new: (name, entry), .. } => {
                put.push((name.clone(), entry.clone()));
            }
            DiffItem::Remove(name, _) => lost.push(name.clone()),
        }
    }
    (put, lost)
}

fn replace<T>(map: &mut OrdMap<Name, Arc<T>>, put: Vec<(Name, Arc<T>)>, lost: Vec<Name>) {
    for name in lost {
        map.remove(&name);
    }
    map.extend(put);
}
