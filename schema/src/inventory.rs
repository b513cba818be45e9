//! What the server knows and no file says: which machines have joined, what is left of keys, which addresses rest.
//!
//! Users own the [`Snapshot`], the server owns this; nothing is written by both. [`Inventory::settled`] is what a change
//! of the declarations does to it: the server commits that, and a plan shows it, by the same call.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compile::allocate::{Allocator, Exhausted, Spoken};
use crate::kinds::{AccessKey, Node};
use crate::published::Time;
use crate::scalars::{Endpoint, Identity, Name, NetworkName, Verifier, WireGuardKey};
use crate::snapshot::{ResourceId, Snapshot};

/// A machine that has joined a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Joined {
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// What it identifies itself with.
    pub identity: Identity,
    /// Its addresses in the network: one of each family that the network has.
    pub addresses: BTreeSet<IpAddr>,
    /// Where it was last seen or said to be reached; absent: nowhere.
    pub endpoint: Option<Endpoint>,
    /// The UDP port that it listens on.
    pub listen_port: u16,
    /// The tags of the key that it joined with, as they were then.
    pub tags: BTreeSet<Name>,
    /// The key that it joined with.
    pub key: Option<Name>,
    /// Whether it claimed a declared name, through the `for` of its key; then it goes when its declaration goes.
    pub claimed: bool,
    /// When it joined.
    #[schemars(with = "Time")]
    pub joined: Timestamp,
    /// What it runs, as it says itself; shown to people, used for nothing.
    pub os: Box<str>,
}

/// What is left of an access key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyStatus {
    /// What verifies the signature of a holder of its token.
    pub verifier: Verifier,
    /// When it was made.
    #[schemars(with = "Time")]
    pub created: Timestamp,
    /// How many machines have joined with it.
    pub used: u32,
}

/// An address that a node has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rest {
    /// Since when it rests.
    #[schemars(with = "Time")]
    pub since: Timestamp,
    /// The node that had it, which may have it back at once.
    pub node: Name,
}

/// What a machine is called. In JSON it is written as `["network", "name"]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "(NetworkName, Name)", into = "(NetworkName, Name)")]
pub struct NodeId {
    /// Its network.
    pub network: NetworkName,
    /// Its name there.
    pub name: Name,
}

impl NodeId {
    /// The id of a name in a network.
    pub fn of(network: &NetworkName, name: &Name) -> Self {
        Self { network: network.clone(), name: name.clone() }
    }
}

impl From<(NetworkName, Name)> for NodeId {
    fn from((network, name): (NetworkName, Name)) -> Self {
        Self { network, name }
    }
}

impl From<NodeId> for (NetworkName, Name) {
    fn from(NodeId { network, name }: NodeId) -> Self {
        (network, name)
    }
}

/// Everything that the server knows and no file says. Clones share what they have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    nodes: OrdMap<NodeId, Arc<Joined>>,
    identities: OrdMap<(NetworkName, Identity), Name>,
    /// How many networks each identity has joined.
    joins: OrdMap<Identity, u32>,
    addresses: OrdMap<(NetworkName, IpAddr), Name>,
    keys: OrdMap<ResourceId, Arc<KeyStatus>>,
    rests: OrdMap<(NetworkName, IpAddr), Rest>,
}

/// What differs between two inventories.
pub struct Differences<'a> {
    /// Machines.
    pub nodes: Vec<DiffItem<'a, 'a, NodeId, Arc<Joined>>>,
    /// Keys.
    pub keys: Vec<DiffItem<'a, 'a, ResourceId, Arc<KeyStatus>>>,
    /// Addresses that rest.
    pub rests: Vec<DiffItem<'a, 'a, (NetworkName, IpAddr), Rest>>,
}

impl Inventory {
    /// The machine of that name.
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Joined>> {
        self.nodes.get(id)
    }

    /// Every machine of a network, by name.
    pub fn nodes_in<'a>(&'a self, network: &'a NetworkName) -> impl Iterator<Item = (&'a Name, &'a Arc<Joined>)> {
        self.nodes
            .range(NodeId::of(network, &Name::lowest())..)
            .take_while(move |(id, _)| id.network == *network)
            .map(|(id, joined)| (&id.name, joined))
    }

    /// Every machine of every network.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeId, &Arc<Joined>)> {
        self.nodes.iter()
    }

    /// The name under which an identity has joined a network.
    pub fn name_of(&self, network: &NetworkName, identity: &Identity) -> Option<&Name> {
        self.identities.get(&(network.clone(), *identity))
    }

    /// Whether an identity has joined any network.
    pub fn knows(&self, identity: &Identity) -> bool {
        self.joins.contains_key(identity)
    }

    /// The node that has an address.
    pub fn holder(&self, network: &NetworkName, address: IpAddr) -> Option<&Name> {
        self.addresses.get(&(network.clone(), address))
    }

    /// The addresses in use in a network from one on, in order, IPv4 before IPv6.
    pub fn addresses_from(&self, network: &NetworkName, first: IpAddr) -> impl Iterator<Item = (IpAddr, &Name)> {
        let network = network.clone();
        self.addresses
            .range((network.clone(), first)..)
            .take_while(move |((of, _), _)| *of == network)
            .map(|((_, address), name)| (*address, name))
    }

    /// How an address rests, if it does.
    pub fn rest(&self, network: &NetworkName, address: IpAddr) -> Option<&Rest> {
        self.rests.get(&(network.clone(), address))
    }

    /// The addresses that rest in a network.
    pub fn rests_in(&self, network: &NetworkName) -> impl Iterator<Item = (IpAddr, &Rest)> {
        let network = network.clone();
        self.rests
            .range((network.clone(), IpAddr::V4(0.into()))..)
            .take_while(move |((of, _), _)| *of == network)
            .map(|((_, address), rest)| (*address, rest))
    }

    /// What is left of a key.
    pub fn key(&self, id: &ResourceId) -> Option<&Arc<KeyStatus>> {
        self.keys.get(id)
    }

    /// Every key.
    pub fn keys(&self) -> impl Iterator<Item = (&ResourceId, &Arc<KeyStatus>)> {
        self.keys.iter()
    }

    /// Every address that rests.
    pub fn rests(&self) -> impl Iterator<Item = (&(NetworkName, IpAddr), &Rest)> {
        self.rests.iter()
    }

    /// Adds or replaces a machine.
    pub fn put_node(&mut self, id: NodeId, joined: Joined) {
        self.drop_indexes(&id);
        for address in &joined.addresses {
            self.addresses.insert((id.network.clone(), *address), id.name.clone());
            self.rests.remove(&(id.network.clone(), *address));
        }
        self.identities.insert((id.network.clone(), joined.identity), id.name.clone());
        *self.joins.entry(joined.identity).or_insert(0) += 1;
        self.nodes.insert(id, Arc::new(joined));
    }

    /// Takes a machine away; its addresses rest from now on.
    pub fn remove_node(&mut self, id: &NodeId, now: Timestamp) -> Option<Arc<Joined>> {
        self.drop_indexes(id);
        let joined = self.nodes.remove(id)?;
        for address in &joined.addresses {
            self.rests.insert((id.network.clone(), *address), Rest { since: now, node: id.name.clone() });
        }
        Some(joined)
    }

    fn drop_indexes(&mut self, id: &NodeId) {
        let Some(joined) = self.nodes.get(id).cloned() else { return };
        self.identities.remove(&(id.network.clone(), joined.identity));
        match self.joins.get(&joined.identity) {
            Some(1) | None => drop(self.joins.remove(&joined.identity)),
            Some(networks) => drop(self.joins.insert(joined.identity, networks - 1)),
        }
        for address in &joined.addresses {
            self.addresses.remove(&(id.network.clone(), *address));
        }
    }

    /// Adds or replaces a key.
    pub fn put_key(&mut self, id: ResourceId, status: KeyStatus) {
        self.keys.insert(id, Arc::new(status));
    }

    /// Takes a key away.
    pub fn remove_key(&mut self, id: &ResourceId) {
        self.keys.remove(id);
    }

    /// Lets an address rest, as it was stored.
    pub fn put_rest(&mut self, network: NetworkName, address: IpAddr, rest: Rest) {
        self.rests.insert((network, address), rest);
    }

    /// Ends the rest of an address.
    pub fn remove_rest(&mut self, network: &NetworkName, address: IpAddr) {
        self.rests.remove(&(network.clone(), address));
    }

    /// The machines that differ between this inventory and a later one.
    pub fn changed_nodes(&self, later: &Self) -> BTreeSet<NodeId> {
        let changed = self.nodes.diff(&later.nodes).map(|item| match item {
            DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. } => id.clone(),
        });
        changed.collect()
    }

    /// What differs between this inventory and a later one.
    pub fn differences<'a>(&'a self, later: &'a Self) -> Differences<'a> {
        Differences {
            nodes: self.nodes.diff(&later.nodes).collect(),
            keys: self.keys.diff(&later.keys).collect(),
            rests: self.rests.diff(&later.rests).collect(),
        }
    }

    /// What becomes of the inventory when the declarations change to these.
    ///
    /// Machines go with their network, and with their declaration if they claimed it; keys go with theirs; a machine
    /// whose address does not fit any more gets the reserved one, or the lowest that is free. Addresses that are given up
    /// rest from `now` on.
    pub fn settled(&self, declared: &Snapshot, now: Timestamp) -> Result<Self, Exhausted> {
        let mut settled = self.clone();
        for (id, _) in self.keys.iter().filter(|(id, _)| declared.named::<AccessKey>(&id.network, &id.name).is_none()) {
            settled.remove_key(id);
        }
        for (network, address) in self.rests.keys().filter(|(network, _)| declared.network(network).is_none()) {
            settled.remove_rest(network, *address);
        }
        let of = |network: &NetworkName| (network.clone(), Spoken::of(network, declared));
        let spoken: BTreeMap<_, _> = declared.networks().map(|(network, _)| of(network)).collect();
        let mut moving = Vec::new();
        for (id, joined) in &self.nodes {
            match stay(id, joined, declared, spoken.get(&id.network)) {
                Stay::Gone => {
                    settled.remove_node(id, now);
                    if declared.network(&id.network).is_none() {
                        joined.addresses.iter().for_each(|address| settled.remove_rest(&id.network, *address));
                    }
                }
                Stay::Moves => moving.push((id, joined)),
                Stay::Stays => {}
            }
        }
        settled.readdress(&moving, declared, &spoken, now)?;
        Ok(settled)
    }

    /// Frees what does not fit of all that move, then gives new addresses: reserved ones first, so that nobody takes them.
    fn readdress(
        &mut self,
        moving: &[(&NodeId, &Arc<Joined>)],
        declared: &Snapshot,
        spoken: &BTreeMap<NetworkName, Spoken>,
        now: Timestamp,
    ) -> Result<(), Exhausted> {
        for (id, joined) in moving {
            self.remove_node(id, now);
            let Some(spoken) = spoken.get(&id.network) else { continue };
            let kept =
                joined.addresses.iter().copied().filter(|address| fits(id, *address, declared, spoken)).collect();
            self.put_node((*id).clone(), Joined { addresses: kept, ..(***joined).clone() });
        }
        let reserves = |id: &NodeId| {
            declared.named::<Node>(&id.network, &id.name).is_some_and(|node| node.reserved().next().is_some())
        };
        let (first, then): (Vec<_>, Vec<_>) = moving.iter().partition(|(id, _)| reserves(id));
        let mut allocators: BTreeMap<&NetworkName, Allocator<'_>> = BTreeMap::new();
        for (id, joined) in first.into_iter().chain(then) {
            let Some(spoken) = spoken.get(&id.network) else { continue };
            let kept = self.node(id).map(|joined| joined.addresses.clone()).unwrap_or_default();
            let new = || Allocator::new(&id.network, declared, spoken, self, now);
            let addresses = allocators.entry(&id.network).or_insert_with(new).addresses(&id.name, &kept, self)?;
            self.put_node((*id).clone(), Joined { addresses, ..(**joined).clone() });
        }
        Ok(())
    }
}

enum Stay {
    Gone,
    Moves,
    Stays,
}

fn stay(id: &NodeId, joined: &Joined, declared: &Snapshot, spoken: Option<&Spoken>) -> Stay {
    let (Some(network), Some(spoken)) = (declared.network(&id.network), spoken) else { return Stay::Gone };
    if joined.claimed && declared.named::<Node>(&id.network, &id.name).is_none() {
        return Stay::Gone;
    }
    let complete = network.ranges().all(|range| joined.addresses.iter().any(|address| range.contains(address)));
    let fit = joined.addresses.iter().all(|address| fits(id, *address, declared, spoken));
    if complete && fit { Stay::Stays } else { Stay::Moves }
}

/// Whether an address of a node still is its own: in the range, not reserved or used for something else, and the one
/// that is reserved for it if one is.
fn fits(id: &NodeId, address: IpAddr, declared: &Snapshot, spoken: &Spoken) -> bool {
    let NodeId { network, name } = id;
    let own = declared.named::<Node>(network, name);
    let reserved = own.and_then(|node| node.reserved().find(|(_, own)| own.is_ipv4() == address.is_ipv4()));
    match reserved {
        Some((_, reserved)) => reserved == address,
        None => declared.network(network).is_some_and(|it| it.has_room_at(address)) && spoken.leaves(address, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_is_written_as_its_network_and_its_name() {
        let id = NodeId { network: "corp".parse().expect("good"), name: "db".parse().expect("good") };
        let json = r#"["corp","db"]"#;
        assert_eq!(serde_json::to_string(&id).expect("it can be written"), json);
        assert_eq!(serde_json::from_str::<NodeId>(json).expect("it reads back"), id);
    }
}
