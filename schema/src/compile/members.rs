//! The members of a network as tests see them, and plans: those that have joined, and those that will.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use super::allocate::{Allocator, ReservedAddresses};
use super::tags;
use crate::inventory::{Endpoints, Inventory, Joined, NodeId};
use crate::kinds::{AccessKey, ExternalClient, Node};
use crate::rules::selected;
use crate::scalars::{Identity, Name, NetworkName, Uses, WireGuardKey};
use crate::snapshot::{ResourceId, Snapshot};

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
/// the external clients that are enabled as if each had a key and none had expired, and two more nodes for
/// each key without `for`, with its tags (one for a key that may be used once).
pub fn members(network: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> BTreeMap<Name, Member> {
    let mut all = BTreeMap::new();
    for (name, joined) in inventory.nodes_in(network) {
        let tags = tags(Some(joined), declared.named::<Node>(network, name).map(|node| &**node));
        all.insert(name.clone(), Member { tags, addresses: joined.addresses.clone(), key: None });
    }
    let mut clients = clients(network, declared, inventory);
    let mut awaited = awaited(network, declared, &all);
    awaited.extend(samples(network, declared, &all));
    // An apply gives addresses to the clients that it creates, before anybody joins.
    address(network, declared, inventory, [&mut clients, &mut awaited]);
    all.extend(clients);
    all.extend(awaited);
    all
}

/// The external clients that are enabled. When one expires is no matter: a test that holds does not fail by
/// the passing of time.
fn clients(network: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> BTreeMap<Name, Member> {
    let clients = declared.all_in::<ExternalClient>(network).filter(|(_, client)| client.enabled);
    let member = |id: &ResourceId, client: &ExternalClient| {
        let status = inventory.client(&id.node());
        let addresses = status.map(|status| status.addresses.clone()).unwrap_or_default();
        Member { tags: client.tags.clone(), addresses, key: None }
    };
    clients.map(|(id, client)| (id.name.clone(), member(id, client))).collect()
}

/// The declared nodes that have not joined: each will have the tags of the keys whose `for` names it as well.
fn awaited(
    network: &NetworkName,
    declared: &Snapshot,
    joined: &BTreeMap<Name, Member>,
) -> BTreeMap<Name, Member> {
    let nodes = selected::nodes(network, declared).filter(|(id, ..)| !joined.contains_key(&id.name));
    let member = |tags| Member { tags, addresses: BTreeSet::new(), key: None };
    nodes.map(|(id, _, tags)| (id.name.clone(), member(tags))).collect()
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

/// Gives addresses to those who have none, as if they came one group after the other and in the order of their
/// names, each quarantine being over. A member for which the network has no room has none.
fn address(
    network: &NetworkName,
    declared: &Snapshot,
    inventory: &Inventory,
    groups: [&mut BTreeMap<Name, Member>; 2],
) {
    let mut inventory = inventory.clone();
    let reserved = ReservedAddresses::of(network, declared, &[]);
    let mut allocator = Allocator::new(network, declared, &reserved, &inventory, Timestamp::MAX);
    for (name, member) in groups.into_iter().flatten() {
        let Ok(addresses) = allocator.addresses(name, &member.addresses, &inventory) else { continue };
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
