//! What DNS entries resolve to, and who may know it: one that leads to a node is for those who may know that
//! node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use imbl::OrdSet;

use super::{Mesh, is_let_in, put, put_in, remove_from};
use crate::inventory::{Inventory, NodeId};
use crate::kinds::{Dns, ExternalClient};
use crate::scalars::{Name, NetworkName};
use crate::snapshot::Snapshot;
use crate::view::Resolution;

impl Mesh {
    /// Every name that resolves in the network and what it resolves to, by name, whoever may know it.
    pub fn resolutions(&self) -> BTreeMap<&Name, Resolution> {
        let named = self.members.values().flatten().filter(|(_, peer)| peer.named);
        let members = named.map(|(name, peer)| (name, Resolution::Addresses(peer.addresses.clone())));
        let others = self.names.iter().chain(self.names_of.values().flatten());
        members.chain(others.map(|(name, resolution)| (name, (**resolution).clone()))).collect()
    }

    /// Records where an entry leads; to nothing in the network if `target` is absent.
    pub(super) fn link_entry(&mut self, entry: &Name, target: Option<Name>) {
        if self.targets.get(entry) == target.as_ref() {
            return;
        }
        if let Some(old) = self.targets.remove(entry) {
            let mut entries = self.entries_to.remove(&old).unwrap_or_default();
            entries.remove(entry);
            if !entries.is_empty() {
                self.entries_to.insert(old, entries);
            }
        }
        if let Some(target) = target {
            self.entries_to.entry(target.clone()).or_default().insert(entry.clone());
            self.targets.insert(entry.clone(), target);
        }
    }

    /// The entries that lead to any of these names, directly or through other entries.
    pub(super) fn leading_to<'a>(&self, names: impl Iterator<Item = &'a Name>) -> OrdSet<Name> {
        let mut found = OrdSet::new();
        let mut open: Vec<Name> = names.cloned().collect();
        while let Some(name) = open.pop() {
            for entry in self.entries_to.get(&name).into_iter().flatten() {
                if found.insert(entry.clone()).is_none() {
                    open.push(entry.clone());
                }
            }
        }
        found
    }

    pub(super) fn put_entry(&mut self, entry: &Name, declared: &Snapshot, inventory: &Inventory) {
        if !self.is_entry(entry, declared) {
            return;
        }
        let resolves = self.network.name_service;
        let found = resolve(&self.name, entry, declared, inventory).filter(|_| resolves);
        let Some((resolution, node)) = found else { return self.forget_name(entry) };
        let home = node.filter(|_| self.policy.is_restricted()).and_then(|node| self.class_of(&node));
        if self.homes.get(entry) != home.as_ref() {
            self.forget_name(entry);
        }
        let Some(home) = home else { return put(&mut self.names, entry, resolution) };
        self.names.remove(entry);
        put_in(&mut self.names_of, home, entry, resolution);
        self.homes.insert(entry.clone(), home);
    }

    /// Forgets what a name resolves to.
    pub(super) fn forget_name(&mut self, name: &Name) {
        self.names.remove(name);
        if let Some(home) = self.homes.remove(name) {
            remove_from(&mut self.names_of, home, name);
        }
    }
}

/// Where an entry leads inside of its network: to a node, or to another entry.
pub(super) fn target(entry: &Dns, network: &NetworkName) -> Option<Name> {
    let node = entry.node.as_ref().map(|node| node.name.clone());
    node.or_else(|| entry.inner_cname(network))
}

/// What an entry resolves to, and the member that it ends at if it does not lead out of the network; nothing
/// while that is none.
fn resolve(
    network: &NetworkName,
    entry: &Name,
    declared: &Snapshot,
    inventory: &Inventory,
) -> Option<(Resolution, Option<Name>)> {
    let at = |member: Name| {
        let id = NodeId::of(network, &member);
        let addresses = match (inventory.node(&id), declared.named::<ExternalClient>(network, &member)) {
            (Some(joined), _) => joined.reachable(),
            (None, Some(client)) => {
                inventory.client(&id).filter(|status| is_let_in(client, status))?.addresses.clone()
            }
            (None, None) => return None,
        };
        Some((Resolution::Addresses(addresses), Some(member)))
    };
    let mut name = entry.clone();
    // The rules have refused cycles; one that slips through resolves to nothing.
    for _ in 0..=declared.len() {
        let Some(dns) = declared.named::<Dns>(network, &name) else { return at(name) };
        match target(dns, network) {
            // `node` leads past an entry of that name.
            Some(node) if dns.node.is_some() => return at(node),
            Some(target) => name = target,
            None => return Some((outer(dns), None)),
        }
    }
    None
}

/// What an entry resolves to that leads out of the network.
fn outer(entry: &Dns) -> Resolution {
    // The TTL is for name servers; agents replace what they wrote.
    let Dns { a, aaaa, node: _, cname, ttl: _ } = entry;
    match cname {
        Some(name) => Resolution::Alias(name.clone()),
        None => {
            let ipv4 = a.iter().copied().map(IpAddr::from);
            Resolution::Addresses(ipv4.chain(aaaa.iter().copied().map(IpAddr::from)).collect())
        }
    }
}
