//! The endpoints of nodes that ranges hide: a host that has joined a network with a range around the endpoint of a peer
//! has a route into the mesh for it, and so has the peer's answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::compile::endpoint;
use crate::inventory::{Inventory, NodeId};
use crate::kinds::Node;
use crate::scalars::{EndpointHost, Identity, NetworkName};
use crate::snapshot::Snapshot;

/// The endpoints that ranges hide, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// The networks with a range around the endpoint of a node; a node that is absent can be seen by all.
    pub(super) behind: BTreeMap<NodeId, BTreeSet<NetworkName>>,
    /// Of these networks, those that a host has joined, by the identity of its agent.
    pub(super) inside: BTreeMap<Identity, BTreeSet<NetworkName>>,
    /// The identity of each node of a host that is in any of them.
    pub(super) identities: BTreeMap<NodeId, Identity>,
}

impl Hidden {
    /// The nodes whose endpoint is in a range of a network.
    pub fn behind<'a>(&'a self, network: &'a NetworkName) -> impl Iterator<Item = &'a NodeId> {
        self.behind.iter().filter(move |(_, networks)| networks.contains(network)).map(|(id, _)| id)
    }

    /// The networks in which anything is hidden.
    pub fn networks(&self) -> BTreeSet<&NetworkName> {
        self.behind.keys().chain(self.identities.keys()).map(|id| &id.network).collect()
    }
}

/// Finds the endpoints that ranges hide.
pub fn hidden(declared: &Snapshot, inventory: &Inventory) -> Hidden {
    let ranges: Vec<_> = declared
        .networks()
        .flat_map(|(name, network)| network.ranges().map(move |range| (name, range)))
        .collect();
    let around = |address: IpAddr| ranges.iter().filter(move |(_, range)| range.contains(&address));
    let mut hidden = Hidden::default();
    for (id, joined) in inventory.nodes() {
        let declaration = declared.named::<Node>(&id.network, &id.name);
        let endpoint = endpoint(declaration.and_then(|node| node.endpoint.as_ref()), joined);
        let Some(EndpointHost::Address(address)) = endpoint.map(|endpoint| endpoint.host) else { continue };
        let behind: BTreeSet<_> = around(address).map(|(name, _)| (*name).clone()).collect();
        if !behind.is_empty() {
            hidden.behind.insert(id.clone(), behind);
        }
    }
    let concerned: BTreeSet<_> = hidden.behind.values().flatten().cloned().collect();
    for network in &concerned {
        for (_, joined) in inventory.nodes_in(network) {
            hidden.inside.entry(joined.identity).or_default().insert(network.clone());
        }
    }
    let in_one = inventory.nodes().filter(|(_, joined)| hidden.inside.contains_key(&joined.identity));
    hidden.identities = in_one.map(|(id, joined)| (id.clone(), joined.identity)).collect();
    hidden
}
