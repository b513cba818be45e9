//! The members of a network as tests see them, and plans: those that have joined, and those that will.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use super::allocate::{Allocator, ReservedAddresses};
use super::tags;
use crate::inventory::{Endpoints, Inventory, Joined, NodeId};
use crate::kinds::{AccessKey, Node};
use crate::scalars::{Identity, Name, NetworkName, Uses, WireGuardKey};
use crate::snapshot::Snapshot;

/// How many more nodes a key that claims no name stands for, so that rules from its tags to themselves are
/// judged.
const FOR_A_KEY: u32 = 2;

/// A member as tests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its tags.
    pub tags: BTreeSet<Name>,
    /// Its addresses; those that it would get if it joined next, where it has not joined.
    pub addresses: BTreeSet<IpAddr>,
    /// The key that it stands for; absent: it is declared, or has joined.
    pub key: Option<Name>,
}

/// The members of a network as tests see them: the nodes that have joined, the declared ones as if they had,
/// and two more for each key without `for`, with its tags (one for a key that may be used once).
pub fn members(network: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> BTreeMap<Name, Member> {
    let mut all = BTreeMap::new();
    for (name, joined) in inventory.nodes_in(network) {
        let tags = tags(Some(joined), declared.named::<Node>(network, name).map(|node| &**node));
        all.insert(name.clone(), Member { tags, addresses: joined.addresses.clone(), key: None });
    }
    let mut awaited = awaited(network, declared, &all);
    let samples = samples(network, declared, &all);
    awaited.extend(samples);
    join(network, declared, inventory, &mut awaited);
    all.extend(awaited);
    all
}

/// The declared nodes that have not joined: each will have the tags of the keys whose `for` names it as well.
fn awaited(
    network: &NetworkName,
    declared: &Snapshot,
    joined: &BTreeMap<Name, Member>,
) -> BTreeMap<Name, Member> {
    let mut by_key: BTreeMap<&Name, BTreeSet<Name>> = BTreeMap::new();
    for (_, key) in declared.all_in::<AccessKey>(network) {
        for node in &key.r#for {
            by_key.entry(&node.name).or_default().extend(key.tags.iter().cloned());
        }
    }
    let nodes = declared.all_in::<Node>(network).filter(|(id, _)| !joined.contains_key(&id.name));
    let member = |node: &Node, name: &Name| {
        let mut tags = tags(None, Some(node));
        tags.extend(by_key.get(name).into_iter().flatten().cloned());
        Member { tags, addresses: BTreeSet::new(), key: None }
    };
    nodes.map(|(id, node)| (id.name.clone(), member(node, &id.name))).collect()
}

/// The nodes that keys without `for` stand for, under names that nobody has.
fn samples(
    network: &NetworkName,
    declared: &Snapshot,
    joined: &BTreeMap<Name, Member>,
) -> BTreeMap<Name, Member> {
    let taken: BTreeSet<&Name> = declared.entries_in(network).map(|(id, _)| &id.name).collect();
    let mut samples = BTreeMap::new();
    let mut numbers = 1_u64..;
    for (id, key) in declared.all_in::<AccessKey>(network).filter(|(_, key)| key.r#for.is_empty()) {
        let count = match key.uses() {
            Uses::Count(uses) => uses.min(FOR_A_KEY),
            Uses::Unlimited => FOR_A_KEY,
        };
        let names = numbers.by_ref().filter_map(|number| format!("joins-later-{number}").parse().ok());
        let free = names.filter(|name| !taken.contains(name) && !joined.contains_key(name));
        for name in free.take(count as usize) {
            let key_name = Some(id.name.clone());
            samples
                .insert(name, Member { tags: key.tags.clone(), addresses: BTreeSet::new(), key: key_name });
        }
    }
    samples
}

/// Gives addresses to nodes as if they joined in the order of their names, each quarantine being over. A node
/// for which the network has no room has none.
fn join(
    network: &NetworkName,
    declared: &Snapshot,
    inventory: &Inventory,
    awaited: &mut BTreeMap<Name, Member>,
) {
    let mut inventory = inventory.clone();
    let reserved = ReservedAddresses::of(network, declared, &[]);
    let mut allocator = Allocator::new(network, declared, &reserved, &inventory, Timestamp::MAX);
    for (name, member) in awaited {
        let Ok(addresses) = allocator.addresses(name, &BTreeSet::new(), &inventory) else { continue };
        member.addresses = addresses.clone();
        inventory.put_node(NodeId::of(network, name), stand_in(addresses));
    }
}

/// A node of which only the addresses matter.
fn stand_in(addresses: BTreeSet<IpAddr>) -> Joined {
    Joined {
        public_key: WireGuardKey([0; 32]),
        identity: Identity([0; 32]),
        addresses,
        endpoints: Endpoints::default(),
        listen_port: 0,
        tags: BTreeSet::new(),
        key: None,
        claimed: false,
        joined: Timestamp::UNIX_EPOCH,
        problems: Vec::new(),
        os: Box::default(),
    }
}
