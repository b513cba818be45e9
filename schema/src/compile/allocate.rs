//! Which addresses a node gets: pure, so that a plan shows what an apply will assign.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::inventory::Inventory;
use crate::kinds::{Network, Node};
use crate::rules::Claim;
use crate::scalars::{Name, NetworkName, Seconds};
use crate::snapshot::Snapshot;

/// An address is in quarantine for at least this long, however few are left.
const SHORTEST_QUARANTINE: Seconds = Seconds(600);

/// A range has no address left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// The network.
    pub network: NetworkName,
    /// Its range.
    pub range: IpNet,
}

/// The addresses that are not for everybody: those that the files of a network reserve, for a node or for an
/// entry, and those by which the server is reached.
#[derive(Debug)]
pub struct ReservedAddresses(BTreeMap<IpAddr, Option<Name>>);

/// Assigns addresses of one network, to one node after the other; no address may be freed between them.
#[derive(Debug)]
pub struct Allocator<'a> {
    network: &'a NetworkName,
    declared: &'a Snapshot,
    reserved: &'a ReservedAddresses,
    now: Timestamp,
    /// The addresses that each node left and that are still in quarantine.
    left: BTreeMap<Name, Vec<IpAddr>>,
    /// The bound below which no address of a range is free.
    lowest: BTreeMap<IpNet, u128>,
}

impl<'a> Allocator<'a> {
    /// An allocator for a network as it is declared, and for what is in quarantine in it.
    pub fn new(
        network: &'a NetworkName,
        declared: &'a Snapshot,
        reserved: &'a ReservedAddresses,
        inventory: &Inventory,
        now: Timestamp,
    ) -> Self {
        let mut left: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (address, quarantined) in inventory.quarantined_in(network) {
            left.entry(quarantined.node.clone()).or_default().push(address);
        }
        Self { network, declared, reserved, now, left, lowest: BTreeMap::new() }
    }

    /// The addresses for a node: one of each range of its network.
    ///
    /// The one that is reserved for it; else one that it has already (`kept`); else one that it left and that
    /// is still in quarantine; else the lowest that is neither in use, nor reserved, nor an entry's, nor the
    /// server's, nor in quarantine, nor the range's own first or (in IPv4) last one; else the one longest in
    /// quarantine.
    pub fn addresses(
        &mut self,
        node: &Name,
        kept: &BTreeSet<IpAddr>,
        inventory: &Inventory,
    ) -> Result<BTreeSet<IpAddr>, Exhausted> {
        let Some(settings) = self.declared.network(self.network) else { return Ok(BTreeSet::new()) };
        let ranges = settings.ranges();
        ranges.map(|range| self.address(range, settings, node, kept, inventory)).collect()
    }

    fn address(
        &mut self,
        range: IpNet,
        settings: &Network,
        node: &Name,
        kept: &BTreeSet<IpAddr>,
        inventory: &Inventory,
    ) -> Result<IpAddr, Exhausted> {
        let same_family = |address: &IpAddr| address.is_ipv4() == range.network().is_ipv4();
        let declaration = self.declared.named::<Node>(self.network, node);
        let reserved = declaration.and_then(|node| node.reserved().map(|(_, it)| it).find(same_family));
        let keeps = |address: &IpAddr| settings.has_room_at(*address) && self.reserved.leaves(*address, node);
        let kept = || kept.iter().copied().filter(same_family).find(keeps);
        let free = |address: &IpAddr| {
            let holder = inventory.holder(self.network, *address);
            settings.has_room_at(*address)
                && self.reserved.free_for(*address, node)
                && holder.is_none_or(|holder| holder == node)
        };
        let left = || self.left.get(node).into_iter().flatten().copied().filter(same_family).find(free);
        if let Some(address) = reserved.or_else(kept).or_else(left) {
            return Ok(address);
        }
        let lowest = self.lowest(range, settings.address_quarantine, inventory);
        let longest = || self.longest_quarantined(range, settings, inventory);
        lowest.or_else(longest).ok_or_else(|| Exhausted { network: self.network.clone(), range })
    }

    /// The lowest address of a range that is not in use, reserved, or in quarantine.
    fn lowest(&mut self, range: IpNet, quarantine: Seconds, inventory: &Inventory) -> Option<IpAddr> {
        let last = number(range.broadcast()) - u128::from(range.network().is_ipv4());
        let candidate = self.lowest.entry(range).or_insert(number(range.network()) + 1);
        let used = inventory.addresses_from(self.network, address(*candidate, range));
        let mut used = used.map(|(address, _)| number(address)).peekable();
        while *candidate <= last {
            let address = address(*candidate, range);
            let quarantined = || {
                inventory
                    .quarantine_of(self.network, address)
                    .is_some_and(|it| age(it.since, self.now) < quarantine)
            };
            if used.next_if_eq(candidate).is_none()
                && !self.reserved.0.contains_key(&address)
                && !quarantined()
            {
                return Some(address);
            }
            *candidate += 1;
        }
        None
    }

    /// The address longest in quarantine, if long enough and not in use or reserved.
    fn longest_quarantined(&self, range: IpNet, settings: &Network, inventory: &Inventory) -> Option<IpAddr> {
        let candidates = inventory.quarantined_in(self.network).filter(|(address, quarantined)| {
            range.contains(address)
                && settings.has_room_at(*address)
                && !self.reserved.0.contains_key(address)
                && age(quarantined.since, self.now) >= SHORTEST_QUARANTINE
        });
        candidates
            .min_by_key(|(address, quarantined)| (quarantined.since, *address))
            .map(|(address, _)| address)
    }
}

impl ReservedAddresses {
    /// The addresses that the files of a network reserve, and those of the `server`.
    pub fn of(network: &NetworkName, declared: &Snapshot, server: &[IpAddr]) -> Self {
        let mut reserved: BTreeMap<_, _> = server.iter().map(|address| (*address, None)).collect();
        for (id, entry) in declared.entries_in(network) {
            for (_, claim) in entry.object.claims() {
                match claim {
                    Claim::Reserved(address) => drop(reserved.insert(address, Some(id.name.clone()))),
                    Claim::Meant(address) => drop(reserved.entry(address).or_insert(None)),
                    Claim::Range(_) | Claim::Endpoint(_) => {}
                }
            }
        }
        Self(reserved)
    }

    /// Whether the files leave a node the address that it has: no other node's reservation takes it. An entry
    /// for it may well mean that very node.
    pub fn leaves(&self, address: IpAddr, node: &Name) -> bool {
        !matches!(self.0.get(&address), Some(Some(of)) if of != node)
    }

    /// Whether the files leave an address that is free to this node.
    pub fn free_for(&self, address: IpAddr, node: &Name) -> bool {
        self.0.get(&address).is_none_or(|of| of.as_ref() == Some(node))
    }
}

/// How long ago; 0 if the clock went back.
fn age(since: Timestamp, now: Timestamp) -> Seconds {
    let age = now.duration_since(since).max(SignedDuration::ZERO);
    Seconds(u32::try_from(age.as_secs()).unwrap_or(u32::MAX))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(number: u128, range: IpNet) -> IpAddr {
    match range {
        IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpNet::V6(_) => Ipv6Addr::from(number).into(),
    }
}
