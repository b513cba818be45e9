//! Who can reach whom: reported by network and node, never as a list of pairs.
//!
//! In a network without access rules every joined node reaches every other, directly or through the hub, so
//! reachability is a set of nodes, and what a change gains or loses are nodes that enter or leave that set.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mesh;
use crate::scalars::{Name, NetworkName};
use crate::snapshot::ResourceId;

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
    /// The node, or `*` for every one; in both directions.
    pub to: String,
    /// Whether they gain or lose it.
    pub direction: Direction,
    /// How many ordered pairs of nodes that is.
    pub pairs: u64,
    /// The change that causes it; null unless it is a single one.
    pub because: Option<ResourceId>,
}

/// The nodes of a network that reach each other.
fn reaching(mesh: Option<&Mesh>) -> BTreeSet<Name> {
    let Some(mesh) = mesh else { return BTreeSet::new() };
    let cut = mesh.hub().is_some_and(|hub| !mesh.has(hub));
    if cut || mesh.len() < 2 { BTreeSet::new() } else { mesh.nodes().cloned().collect() }
}

/// The reachability that a change of one network gains and loses.
pub fn between(network: &NetworkName, before: Option<&Mesh>, after: Option<&Mesh>) -> Vec<ReachChange> {
    let (was, is) = (reaching(before), reaching(after));
    let mut changes = Vec::new();
    for (direction, some, other) in [(Direction::Lost, &was, &is), (Direction::Gained, &is, &was)] {
        let moved: Vec<_> = some.difference(other).collect();
        let count = moved.len() as u64;
        let all = some.len() as u64;
        let change = |from: String, pairs| {
            let network = network.clone();
            let to = "*".to_owned();
            ReachChange { network, from, to, direction, pairs, because: None }
        };
        if count > 0 && count == all {
            changes.push(change("*".into(), all * (all - 1)));
            continue;
        }
        // Each pair is reported once: with the first of its two nodes.
        for (place, node) in moved.into_iter().enumerate() {
            changes.push(change(node.to_string(), 2 * (all - 1 - place as u64)));
        }
    }
    changes
}
