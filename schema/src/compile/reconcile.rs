//! The inventory after a change of the declarations: the server commits it, and a plan shows it, by the same
//! call.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::allocate::{Allocator, Exhausted, ReservedAddresses};
use crate::inventory::{Inventory, Joined, NodeId};
use crate::kinds::{AccessKey, Node};
use crate::scalars::NetworkName;
use crate::snapshot::Snapshot;

/// Returns the inventory that fits these declarations.
///
/// Nodes are removed with their network, and with their declaration if they claimed it; keys with theirs, and
/// their secrets are remembered while their network is there. A node whose address no longer fits gets the
/// reserved one, or the lowest that is free. Addresses that are given up are in quarantine from `now` on. No
/// node is given one of the addresses of the `server`. Fails if a range has too few addresses.
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
    for ((network, address), _) in
        inventory.quarantined().filter(|((network, _), _)| !is_declared(network, declared))
    {
        reconciled.end_quarantine(network, *address);
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
            Fate::Removed => {
                reconciled.remove_node(id, now);
                if !is_declared(&id.network, declared) {
                    joined
                        .addresses
                        .iter()
                        .for_each(|address| reconciled.end_quarantine(&id.network, *address));
                }
            }
            Fate::Readdressed => moving.push((id, joined)),
            Fate::Kept => {}
        }
    }
    readdress(&mut reconciled, &moving, declared, &reserved, now)?;
    Ok(reconciled)
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
    let fit = joined.addresses.iter().all(|address| fits(id, *address, declared, reserved));
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
    let reserves = |id: &NodeId| {
        declared.named::<Node>(&id.network, &id.name).is_some_and(|node| node.reserved().next().is_some())
    };
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

/// Whether a node may keep an address: in the range, not reserved or used for something else, and the one
/// that is reserved for it if one is.
fn fits(id: &NodeId, address: IpAddr, declared: &Snapshot, others: &ReservedAddresses) -> bool {
    let NodeId { network, name } = id;
    let own = declared.named::<Node>(network, name);
    let reserved = own.and_then(|node| node.reserved().find(|(_, own)| own.is_ipv4() == address.is_ipv4()));
    match reserved {
        Some((_, reserved)) => reserved == address,
        None => {
            declared.network(network).is_some_and(|it| it.has_room_at(address))
                && others.leaves(address, name)
        }
    }
}
