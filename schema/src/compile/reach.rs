//! Who can reach whom: reported by network and node, never as a list of pairs.
//!
//! In a network without access rules every joined node reaches every other, directly or through the hub, as
//! long as packets find the way: not while the hub has not joined, and not to an endpoint that a range hides.
//! A host that has joined a network with a range around the endpoint of a peer has a route into the mesh for
//! it, and so has the peer's answer; [`hidden`] finds those endpoints. Nodes that see and are seen alike are
//! one [`Standing`], so that a change is found on pairs of standings of before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mesh;
use crate::inventory::{Inventory, NodeId};
use crate::kinds::Node;
use crate::scalars::{EndpointHost, Identity, Name, NetworkName};
use crate::snapshot::{ResourceId, Snapshot};

/// Whether reachability is gained or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// It was not there before.
    Gained,
    /// It is not there afterwards.
    Lost,
}

/// Nodes of a network that gain or lose the ability to reach each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReachChange {
    /// The network.
    pub network: NetworkName,
    /// The node, or `*` for every one.
    pub from: String,
    /// `*`: every other node, or as many of them as `pairs` says; in both directions.
    pub to: String,
    /// Whether they gain or lose it.
    pub direction: Direction,
    /// How many ordered pairs of nodes that is.
    pub pairs: u64,
    /// The change that causes it; null unless it is a single one.
    pub because: Option<ResourceId>,
}

/// A network at one moment, and what hides its nodes from each other.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The network; absent: it is not declared.
    pub mesh: Option<&'a Mesh>,
    /// What is hidden then, in all networks.
    pub hidden: &'a Hidden,
}

/// The endpoints that ranges hide, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// The networks with a range around the endpoint of a node; a node that is absent can be seen by all.
    behind: BTreeMap<NodeId, BTreeSet<NetworkName>>,
    /// Of these networks, those that a host has joined, by the identity of its agent.
    inside: BTreeMap<Identity, BTreeSet<NetworkName>>,
    /// The identity of each node of a host that is in any of them.
    identities: BTreeMap<NodeId, Identity>,
}

impl Hidden {
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
        let endpoint = super::endpoint(declaration.and_then(|node| node.endpoint.as_ref()), joined);
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

/// What decides which other nodes of a network a node reaches: those of one standing reach the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    /// The networks with a range around its endpoint.
    behind: BTreeSet<NetworkName>,
    /// The networks of its host with a range around any endpoint.
    inside: BTreeSet<NetworkName>,
}

impl Standing {
    /// Whether packets between two nodes stay outside of every mesh: each has a way to the other's endpoint.
    fn sees(&self, other: &Self) -> bool {
        self.inside.is_disjoint(&other.behind) && other.inside.is_disjoint(&self.behind)
    }
}

/// The nodes of a network that reach any other, each with its standing.
fn reaching(network: &NetworkName, Moment { mesh, hidden }: Moment<'_>) -> BTreeMap<Name, Standing> {
    let Some(mesh) = mesh else { return BTreeMap::new() };
    let standing = |node: &Name| {
        let id = NodeId::of(network, node);
        let behind = hidden.behind.get(&id).cloned().unwrap_or_default();
        let inside = hidden.identities.get(&id).and_then(|identity| hidden.inside.get(identity));
        Standing { behind, inside: inside.cloned().unwrap_or_default() }
    };
    let mut nodes: BTreeMap<Name, Standing> =
        mesh.nodes().map(|node| (node.clone(), standing(node))).collect();
    if let Some(hub) = mesh.hub() {
        // All packets pass the hub, so that only the ways to it count.
        let at_hub = nodes.get(hub).cloned();
        nodes.retain(|node, standing| node == hub || at_hub.as_ref().is_some_and(|hub| hub.sees(standing)));
        nodes.values_mut().for_each(|standing| *standing = Standing::default());
        if at_hub.is_none() || nodes.len() < 2 {
            nodes.clear();
        }
    }
    nodes
}

/// Nodes that stand alike before, and alike after; absent: they reach nobody then.
type Group<'a> = (Option<&'a Standing>, Option<&'a Standing>);

/// The reachability that a change of one network gains and loses.
pub fn between(network: &NetworkName, before: Moment<'_>, after: Moment<'_>) -> Vec<ReachChange> {
    let (was, is) = (reaching(network, before), reaching(network, after));
    let mut groups: BTreeMap<Group<'_>, BTreeSet<&Name>> = BTreeMap::new();
    for node in was.keys().chain(is.keys()) {
        groups.entry((was.get(node), is.get(node))).or_default().insert(node);
    }
    let see = |one: Option<&Standing>, other: Option<&Standing>| {
        one.zip(other).is_some_and(|(one, other)| one.sees(other))
    };
    let saw = |one: &Group<'_>, other: &Group<'_>| see(one.0, other.0);
    let sees = |one: &Group<'_>, other: &Group<'_>| see(one.1, other.1);
    let mut changes = moved(network, Direction::Lost, &groups, &saw, &sees);
    changes.extend(moved(network, Direction::Gained, &groups, &sees, &saw));
    changes
}

/// Whether nodes of two groups reach each other at one moment.
type Sees<'a> = &'a dyn Fn(&Group<'_>, &Group<'_>) -> bool;

/// What is reached at one moment and not at the other.
fn moved(
    network: &NetworkName,
    direction: Direction,
    groups: &BTreeMap<Group<'_>, BTreeSet<&Name>>,
    here: Sees<'_>,
    there: Sees<'_>,
) -> Vec<ReachChange> {
    let change = |from: String, pairs| {
        let (network, to) = (network.clone(), "*".to_owned());
        ReachChange { network, from, to, direction, pairs, because: None }
    };
    // How many others a node of a group reaches only here.
    let others =
        |group: &Group<'_>, other: &Group<'_>| groups[other].len() as u64 - u64::from(group == other);
    let count = |holds: &dyn Fn(&Group<'_>, &Group<'_>) -> bool| {
        let all = |group: &Group<'_>| {
            groups.keys().filter(|other| holds(group, other)).map(|other| others(group, other)).sum::<u64>()
        };
        groups.iter().map(|(group, nodes)| nodes.len() as u64 * all(group)).sum::<u64>()
    };
    let only_here = |one: &Group<'_>, other: &Group<'_>| here(one, other) && !there(one, other);
    let pairs = count(&only_here);
    if pairs == 0 {
        return Vec::new();
    }
    if pairs == count(here) {
        return vec![change("*".into(), pairs)];
    }
    // Each pair is reported once, with the first of its two nodes; groups that move against most others go
    // first, so that few nodes are named.
    let mut left: Vec<_> = groups.keys().collect();
    let total = |group: &Group<'_>| {
        groups.keys().filter(|other| only_here(group, other)).map(|other| others(group, other)).sum::<u64>()
    };
    left.sort_by_key(|group| std::cmp::Reverse(total(group)));
    let mut done: BTreeSet<&Group<'_>> = BTreeSet::new();
    let mut lines = Vec::new();
    for group in left {
        let against: u64 = groups
            .keys()
            .filter(|other| *other != group && !done.contains(other) && only_here(group, other))
            .map(|other| groups[other].len() as u64)
            .sum();
        let within = if only_here(group, group) { groups[group].len() as u64 - 1 } else { 0 };
        done.insert(group);
        for (place, node) in groups[group].iter().enumerate() {
            let pairs = 2 * (against + within.saturating_sub(place as u64));
            if pairs > 0 {
                lines.push(change(node.to_string(), pairs));
            }
        }
    }
    lines.sort_by(|one, other| one.from.cmp(&other.from));
    lines
}
