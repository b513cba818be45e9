//! The inventory after a change of the declarations: the server commits it, and a plan shows it, by the same
//! call.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::admission::let_in_approved;
use super::allocate::{Allocator, Claimant, Exhausted, ReservedAddresses};
use crate::inventory::{Away, ClientStatus, Inventory, Joined, NodeId};
use crate::kinds::{AccessKey, Egress, ExternalClient, Node};
use crate::scalars::{Name, NetworkName};
use crate::snapshot::Snapshot;

/// Returns the inventory that fits these declarations.
///
/// Nodes are removed with their network, and with their declaration if they claimed it; keys with theirs, and
/// their secrets are remembered while their network is there. A node whose address no longer fits gets the
/// reserved one, or the lowest that is free. External clients get theirs, in the order of their names, and
/// lose them while they are disabled, once they have expired, and with their declaration. A host that waits is
/// let in as the declared node that approves it, and nobody waits for a network that lets nobody wait. Addresses that are
/// given up are in quarantine from `now` on. No member is given one of the addresses of the `server`. Fails
/// if a range has too few addresses.
pub fn reconcile(
    inventory: &Inventory,
    declared: &Snapshot,
    server: &[IpAddr],
    now: Timestamp,
) -> Result<Inventory, Exhausted> {
    let mut reconciled = inventory.clone();
    for (id, _) in
        inventory.keys().filter(|(id, _)| declared.named::<AccessKey>(&id.network, &id.name).is_none())
    {
        reconciled.remove_key(id, now);
    }
    for (id, _) in reconciled.clone().former_keys().filter(|(id, _)| !is_declared(&id.network, declared)) {
        reconciled.forget_former_key(id);
    }
    for ((network, identity), _) in
        inventory.barred().filter(|((network, _), _)| !is_declared(network, declared))
    {
        reconciled.end_bar(network, identity);
    }
    let reserved =
        |network: &NetworkName| (network.clone(), ReservedAddresses::of(network, declared, server));
    let reserved: BTreeMap<_, _> = declared.networks().map(|(network, _)| reserved(network)).collect();
    let mut moving = Vec::new();
    for (id, joined) in inventory.nodes() {
        match fate(id, joined, declared, reserved.get(&id.network)) {
            Fate::Removed => drop(reconciled.remove_node(id, now)),
            Fate::Readdressed => moving.push((id, joined)),
            Fate::Kept => {}
        }
    }
    free_clients(&mut reconciled, declared, &reserved, now);
    readdress(&mut reconciled, &moving, declared, &reserved, now)?;
    let_in_approved(&mut reconciled, declared, &reserved, now)?;
    for (network, reserved) in &reserved {
        address_clients(&mut reconciled, network, declared, reserved, now)?;
    }
    forget(&mut reconciled, declared);
    Ok(reconciled)
}

/// Forgets what was known of networks and objects that are not declared any more.
fn forget(inventory: &mut Inventory, declared: &Snapshot) {
    let before = inventory.clone();
    for ((network, address), _) in before.quarantined().filter(|((of, _), _)| !is_declared(of, declared)) {
        inventory.end_quarantine(network, *address);
    }
    let egress = |network: &NetworkName, name: &Name| declared.named::<Egress>(network, name);
    for (id, away) in before.away() {
        let carries = |name: &&Name| egress(&id.network, name).is_some();
        let egress = away.egress.iter().filter(carries).cloned().collect();
        let stays = Away { everything: away.everything, egress };
        inventory.set_away(id.clone(), before.node(id).map(|_| stays).unwrap_or_default());
    }
    for id in before.carried() {
        if !egress(&id.network, &id.name).is_some_and(|egress| egress.is_default_route()) {
            inventory.set_carried(id.clone(), false);
        }
    }
}

/// Frees the addresses of external clients that have them no longer, and removes those that are not declared.
fn free_clients(
    inventory: &mut Inventory,
    declared: &Snapshot,
    reserved: &BTreeMap<NetworkName, ReservedAddresses>,
    now: Timestamp,
) {
    for (id, status) in inventory.clone().clients() {
        let client = declared.named::<ExternalClient>(&id.network, &id.name);
        let (Some(client), Some(reserved)) = (client, reserved.get(&id.network)) else {
            inventory.remove_client(id, now);
            continue;
        };
        let expired = status.expires(client).is_some_and(|end| end <= now);
        let keeps = |address: &&IpAddr| client.enabled && !expired && fits(id, **address, declared, reserved);
        let addresses = status.addresses.iter().filter(keeps).copied().collect();
        let next = ClientStatus { addresses, created: status.created, expired };
        if next != **status {
            inventory.put_client(id.clone(), next, now);
        }
    }
}

/// Gives the external clients of a network that are let in the addresses that they do not have, in the order of their
/// names; who is new is created now.
fn address_clients(
    inventory: &mut Inventory,
    network: &NetworkName,
    declared: &Snapshot,
    reserved: &ReservedAddresses,
    now: Timestamp,
) -> Result<(), Exhausted> {
    let mut allocator = Allocator::new(network, declared, reserved, inventory, now);
    for (id, client) in declared.all_in::<ExternalClient>(network) {
        let known = inventory.client(&id.node()).cloned();
        let created = known.as_ref().map_or(now, |status| status.created);
        let mut next = ClientStatus { addresses: BTreeSet::new(), created, expired: false };
        next.expired = next.expires(client).is_some_and(|end| end <= now);
        if client.enabled && !next.expired {
            let kept = known.as_ref().map(|status| status.addresses.clone()).unwrap_or_default();
            next.addresses = allocator.addresses(&id.name, &kept, inventory)?;
        }
        if known.is_none_or(|status| *status != next) {
            inventory.put_client(id.node(), next, now);
        }
    }
    Ok(())
}

/// How many nodes a network has, joined and expected together: what its `node-limit` counts.
pub fn joined_and_awaited(network: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> usize {
    let awaited = declared.all_in::<Node>(network).filter(|(id, _)| inventory.node(&id.node()).is_none());
    inventory.nodes_in(network).count() + awaited.count()
}

/// What becomes of a node.
enum Fate {
    Removed,
    Readdressed,
    Kept,
}

fn fate(id: &NodeId, joined: &Joined, declared: &Snapshot, reserved: Option<&ReservedAddresses>) -> Fate {
    let (Some(network), Some(reserved)) = (declared.network(&id.network), reserved) else {
        return Fate::Removed;
    };
    if joined.claimed && declared.named::<Node>(&id.network, &id.name).is_none() {
        return Fate::Removed;
    }
    let complete =
        network.ranges().all(|range| joined.addresses.iter().any(|address| range.contains(address)));
    let claimant = Claimant::of(&id.network, &id.name, declared);
    let fit = joined.addresses.iter().all(|address| claimant.keeps(*address, network, reserved));
    if complete && fit { Fate::Kept } else { Fate::Readdressed }
}

/// Frees the addresses that do not fit, of all nodes that move, then assigns new ones: reserved ones first,
/// so that they are not taken.
fn readdress(
    inventory: &mut Inventory,
    moving: &[(&NodeId, &Arc<Joined>)],
    declared: &Snapshot,
    reserved: &BTreeMap<NetworkName, ReservedAddresses>,
    now: Timestamp,
) -> Result<(), Exhausted> {
    for (id, joined) in moving {
        inventory.remove_node(id, now);
        let Some(reserved) = reserved.get(&id.network) else { continue };
        let kept = joined
            .addresses
            .iter()
            .copied()
            .filter(|address| fits(id, *address, declared, reserved))
            .collect();
        inventory.put_node((*id).clone(), Joined { addresses: kept, ..(***joined).clone() });
    }
    let reserves = |id: &NodeId| Claimant::of(&id.network, &id.name, declared).has_reserved();
    let (first, then): (Vec<_>, Vec<_>) = moving.iter().partition(|(id, _)| reserves(id));
    let mut allocators: BTreeMap<&NetworkName, Allocator<'_>> = BTreeMap::new();
    for (id, joined) in first.into_iter().chain(then) {
        let Some(reserved) = reserved.get(&id.network) else { continue };
        let kept = inventory.node(id).map(|joined| joined.addresses.clone()).unwrap_or_default();
        let new = || Allocator::new(&id.network, declared, reserved, inventory, now);
        let addresses =
            allocators.entry(&id.network).or_insert_with(new).addresses(&id.name, &kept, inventory)?;
        inventory.put_node((*id).clone(), Joined { addresses, ..(**joined).clone() });
    }
    Ok(())
}

fn is_declared(network: &NetworkName, declared: &Snapshot) -> bool {
    declared.network(network).is_some()
}

/// Whether a member may keep an address.
fn fits(id: &NodeId, address: IpAddr, declared: &Snapshot, others: &ReservedAddresses) -> bool {
    let claimant = Claimant::of(&id.network, &id.name, declared);
    declared.network(&id.network).is_some_and(|network| claimant.keeps(address, network, others))
}
