//! Which addresses a member gets, be it a node or an external client: pure, so that a plan shows what an apply will assign.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::inventory::Inventory;
use crate::kinds::{ExternalClient, Ingress, Network, Node};
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
    /// Its range, or the pool of an ingress.
    pub range: IpNet,
}

/// The addresses that are not for everybody: those that the files of a network reserve, for a member or for an
/// entry, the pools of its ingress, and the addresses by which the server is reached.
#[derive(Debug)]
pub struct ReservedAddresses {
    /// Whom each address is for; absent: for nobody.
    single: BTreeMap<IpAddr, Option<Name>>,
    /// The pools, each with its ingress.
    pools: Vec<(IpNet, Name)>,
}

/// A member of a network, as far as its addresses are concerned.
#[derive(Clone, Debug)]
pub struct Claimant<'a> {
    name: &'a Name,
    /// The addresses that are reserved for it.
    reserved: Vec<IpAddr>,
    /// The ingress of an external client; absent: it is a node.
    ingress: Option<&'a Name>,
}

impl<'a> Claimant<'a> {
    /// The member of a name: an external client if one is declared, else a node, which need not be declared.
    pub fn of(network: &NetworkName, name: &'a Name, declared: &'a Snapshot) -> Self {
        if let Some(client) = declared.named::<ExternalClient>(network, name) {
            let reserved = client.reserved().map(|(_, address)| address).collect();
            return Self { name, reserved, ingress: Some(&client.via.name) };
        }
        let node = declared.named::<Node>(network, name);
        let reserved = node.iter().flat_map(|node| node.reserved()).map(|(_, address)| address).collect();
        Self { name, reserved, ingress: None }
    }

    /// The address that is reserved for it, of the family of another one.
    fn reserved_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.reserved.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4())
    }

    /// Whether any address is reserved for it.
    pub fn has_reserved(&self) -> bool {
        !self.reserved.is_empty()
    }

    /// Whether it may keep an address that it has: it is the one that is reserved for it if one is, and
    /// otherwise one of its network that is not for another.
    pub fn keeps(&self, address: IpAddr, network: &Network, others: &ReservedAddresses) -> bool {
        match self.reserved_like(address) {
            Some(reserved) => reserved == address,
            None => network.has_room_at(address) && others.leaves(address, self),
        }
    }
}

/// Assigns addresses of one network, to one member after the other; no address may be freed between them.
#[derive(Debug)]
pub struct Allocator<'a> {
    network: &'a NetworkName,
    declared: &'a Snapshot,
    reserved: &'a ReservedAddresses,
    now: Timestamp,
    /// The addresses that each member left and that are still in quarantine.
    left: BTreeMap<Name, Vec<IpAddr>>,
    /// The bound below which no address of a range, or of a pool, is free.
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

    /// The addresses for a member: one of each range of its network.
    ///
    /// The one that is reserved for it; else one that it has already (`kept`); else one that it left and that
    /// is still in quarantine; else the lowest that is neither in use, nor reserved, nor an entry's, nor the
    /// server's, nor in quarantine, nor in a pool, nor the range's own first or (in IPv4) last one; else the one
    /// longest in quarantine. An external client whose ingress has a pool gets the lowest of that.
    pub fn addresses(
        &mut self,
        member: &Name,
        kept: &BTreeSet<IpAddr>,
        inventory: &Inventory,
    ) -> Result<BTreeSet<IpAddr>, Exhausted> {
        let Some(settings) = self.declared.network(self.network) else { return Ok(BTreeSet::new()) };
        let claimant = Claimant::of(self.network, member, self.declared);
        let ranges = settings.ranges();
        ranges.map(|range| self.address(range, settings, &claimant, kept, inventory)).collect()
    }

    fn address(
        &mut self,
        range: IpNet,
        settings: &Network,
        claimant: &Claimant<'_>,
        kept: &BTreeSet<IpAddr>,
        inventory: &Inventory,
    ) -> Result<IpAddr, Exhausted> {
        let same_family = |address: &IpAddr| address.is_ipv4() == range.network().is_ipv4();
        let reserved = claimant.reserved_like(range.network());
        let keeps = |address: &IpAddr| claimant.keeps(*address, settings, self.reserved);
        let kept = || kept.iter().copied().filter(same_family).find(keeps);
        let free = |address: &IpAddr| {
            let holder = inventory.holder(self.network, *address);
            settings.has_room_at(*address)
                && self.reserved.free_for(*address, claimant)
                && holder.is_none_or(|holder| holder == claimant.name)
        };
        let left =
            || self.left.get(claimant.name).into_iter().flatten().copied().filter(same_family).find(free);
        if let Some(address) = reserved.or_else(kept).or_else(left) {
            return Ok(address);
        }
        let ingress = claimant.ingress.and_then(|name| self.declared.named::<Ingress>(self.network, name));
        let part = ingress.and_then(|ingress| ingress.pool_in(range)).unwrap_or(range);
        let lowest = self.lowest(part, settings, inventory);
        let longest = || self.longest_quarantined(part, settings, inventory);
        lowest.or_else(longest).ok_or_else(|| Exhausted { network: self.network.clone(), range: part })
    }

    /// The lowest address of a range or pool that is not in use, reserved, or in quarantine, nor in a pool
    /// inside of the range.
    fn lowest(&mut self, part: IpNet, settings: &Network, inventory: &Inventory) -> Option<IpAddr> {
        let last = number(part.broadcast()) - u128::from(part.network().is_ipv4());
        let candidate = self.lowest.entry(part).or_insert(number(part.network()) + 1);
        let used = inventory.addresses_from(self.network, address(*candidate, part));
        let mut used = used.map(|(address, _)| number(address)).peekable();
        while *candidate <= last {
            let address = address(*candidate, part);
            if let Some(pool) = self.reserved.pool_inside(part, address) {
                *candidate = number(pool.broadcast()) + 1;
                continue;
            }
            let quarantined = || {
                inventory
                    .quarantine_of(self.network, address)
                    .is_some_and(|it| age(it.since, self.now) < settings.address_quarantine)
            };
            while used.next_if(|used| *used < *candidate).is_some() {}
            if used.peek() != Some(&*candidate)
                && !self.reserved.single.contains_key(&address)
                && !quarantined()
            {
                return Some(address);
            }
            *candidate += 1;
        }
        None
    }

    /// The address longest in quarantine, if long enough and not in use or reserved.
    fn longest_quarantined(&self, part: IpNet, settings: &Network, inventory: &Inventory) -> Option<IpAddr> {
        let candidates = inventory.quarantined_in(self.network).filter(|(address, quarantined)| {
            part.contains(address)
                && settings.has_room_at(*address)
                && !self.reserved.single.contains_key(address)
                && self.reserved.pool_inside(part, *address).is_none()
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
        let mut single: BTreeMap<_, _> = server.iter().map(|address| (*address, None)).collect();
        let mut pools = Vec::new();
        for (id, entry) in declared.entries_in(network) {
            for (_, claim) in entry.object.claims() {
                match claim {
                    Claim::Reserved(address) => drop(single.insert(address, Some(id.name.clone()))),
                    Claim::Meant(address) => drop(single.entry(address).or_insert(None)),
                    Claim::Pool(range) => pools.push((range, id.name.clone())),
                    Claim::Range(_) | Claim::Route(_) | Claim::Endpoint(_) => {}
                }
            }
        }
        Self { single, pools }
    }

    /// Whether the files leave a member the address that it has: it is not reserved for another one. An entry
    /// for it may well mean that very member, and a node keeps what was put into a pool since; a client does
    /// not keep what is in the pool of another ingress, as after it moved from there.
    fn leaves(&self, address: IpAddr, member: &Claimant<'_>) -> bool {
        let for_another = matches!(self.single.get(&address), Some(Some(of)) if of != member.name);
        !for_another && (member.ingress.is_none() || self.is_in_no_pool_of_others(address, member))
    }

    /// Whether the files leave an address that is free to this member.
    fn free_for(&self, address: IpAddr, member: &Claimant<'_>) -> bool {
        self.single.get(&address).is_none_or(|of| of.as_ref() == Some(member.name))
            && self.is_in_no_pool_of_others(address, member)
    }

    fn is_in_no_pool_of_others(&self, address: IpAddr, member: &Claimant<'_>) -> bool {
        !self.pools.iter().any(|(pool, ingress)| pool.contains(&address) && member.ingress != Some(ingress))
    }

    /// The pool around an address of a range or pool, if that is a part of it.
    fn pool_inside(&self, part: IpNet, address: IpAddr) -> Option<IpNet> {
        let inside = |pool: &IpNet| *pool != part && pool.contains(&address);
        self.pools.iter().map(|(pool, _)| *pool).find(inside)
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
