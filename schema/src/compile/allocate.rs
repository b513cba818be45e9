//! Which addresses a node gets: pure, so that a plan shows what an apply will give.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::inventory::{Inventory, Rest};
use crate::kinds::{Dns, Node};
use crate::scalars::{Name, NetworkName, Seconds};
use crate::snapshot::Snapshot;

/// An address rests at least this long, however few are left.
const SHORTEST_REST: Seconds = Seconds(600);

/// A range has no address left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// The network.
    pub network: NetworkName,
    /// Its range.
    pub range: IpNet,
}

/// The addresses that the files of a network give away: reserved for a node, or meant by an entry.
#[derive(Debug)]
pub struct Spoken(BTreeMap<IpAddr, Option<Name>>);

/// Below what no address of a range is free, for allocations that follow each other: none is freed between them.
#[derive(Debug, Default)]
pub struct Cursor(BTreeMap<IpNet, u128>);

/// The addresses for a node: one of each range of its network.
///
/// The one that is reserved for it; else one that it has already (`kept`); else one that it left and that still rests;
/// else the lowest that is neither in use, nor reserved, nor an entry's, nor resting, nor the range's own first or (in
/// IPv4) last one; else the one that rested longest.
pub fn allocate(
    network: &NetworkName,
    node: &Name,
    kept: &BTreeSet<IpAddr>,
    declared: &Snapshot,
    spoken: &Spoken,
    inventory: &Inventory,
    cursor: &mut Cursor,
    now: Timestamp,
) -> Result<BTreeSet<IpAddr>, Exhausted> {
    let Some(settings) = declared.network(network) else { return Ok(BTreeSet::new()) };
    let declaration = declared.named::<Node>(network, node);
    let mut addresses = BTreeSet::new();
    for range in settings.ranges() {
        let same_family = |address: &IpAddr| address.is_ipv4() == range.network().is_ipv4();
        let reserved = declaration.and_then(|node| node.reserved().map(|(_, it)| it).find(same_family));
        let free = |address: &IpAddr| {
            let holder = inventory.holder(network, *address);
            settings.has_room_at(*address)
                && spoken.free_for(*address, node)
                && holder.is_none_or(|holder| holder == node)
        };
        let keeps = |address: &IpAddr| settings.has_room_at(*address) && spoken.leaves(*address, node);
        let kept = || kept.iter().copied().filter(same_family).find(keeps);
        let left = || {
            let rests = inventory.rests_in(network).filter(|(_, rest)| rest.node == *node);
            rests.map(|(address, _)| address).filter(same_family).find(free)
        };
        let rest = settings.address_rest;
        let resting = |address: IpAddr| inventory.rest(network, address).is_some_and(|it| age(it.since, now) < rest);
        let passed = |address: IpAddr| spoken.0.contains_key(&address) || resting(address);
        let lowest = || lowest(range, network, inventory, cursor, passed);
        let address = reserved.or_else(kept).or_else(left).or_else(lowest);
        let address = address.or_else(|| {
            let rests = inventory.rests_in(network).filter(|(address, _)| settings.has_room_at(*address));
            longest_rested(rests, range, spoken, now)
        });
        addresses.insert(address.ok_or_else(|| Exhausted { network: network.clone(), range })?);
    }
    Ok(addresses)
}

impl Spoken {
    /// What the files of a network give away.
    pub fn of(network: &NetworkName, declared: &Snapshot) -> Self {
        let reserved = declared
            .all_in::<Node>(network)
            .flat_map(|(id, node)| node.reserved().map(|(_, address)| (address, Some(id.name.clone()))));
        let entries = declared.all_in::<Dns>(network).flat_map(|(_, dns)| {
            dns.a.iter().copied().map(IpAddr::from).chain(dns.aaaa.iter().copied().map(IpAddr::from))
        });
        let mut spoken: BTreeMap<_, _> = entries.map(|address| (address, None)).collect();
        spoken.extend(reserved);
        Self(spoken)
    }

    /// Whether the files leave a node the address that it has: no other node's reservation takes it. An entry that stands
    /// for it may well mean that very node.
    pub fn leaves(&self, address: IpAddr, node: &Name) -> bool {
        !matches!(self.0.get(&address), Some(Some(of)) if of != node)
    }

    /// Whether the files leave an address that is free to this node.
    pub fn free_for(&self, address: IpAddr, node: &Name) -> bool {
        self.0.get(&address).is_none_or(|of| of.as_ref() == Some(node))
    }
}

/// The lowest address of a range that no node has and that is not to be passed by.
fn lowest(
    range: IpNet,
    network: &NetworkName,
    inventory: &Inventory,
    cursor: &mut Cursor,
    passed: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let last = number(range.broadcast()) - u128::from(range.network().is_ipv4());
    let candidate = cursor.0.entry(range).or_insert(number(range.network()) + 1);
    let used = inventory.addresses_from(network, address(*candidate, range));
    let mut used = used.map(|(address, _)| number(address)).peekable();
    while *candidate <= last {
        if used.next_if_eq(candidate).is_none() && !passed(address(*candidate, range)) {
            return Some(address(*candidate, range));
        }
        *candidate += 1;
    }
    None
}

/// The address that rested longest, if long enough and nobody speaks for it.
fn longest_rested<'a>(
    rests: impl Iterator<Item = (IpAddr, &'a Rest)>,
    range: IpNet,
    spoken: &Spoken,
    now: Timestamp,
) -> Option<IpAddr> {
    let rested = rests.filter(|(address, rest)| {
        range.contains(address) && !spoken.0.contains_key(address) && age(rest.since, now) >= SHORTEST_REST
    });
    rested.min_by_key(|(address, rest)| (rest.since, *address)).map(|(address, _)| address)
}

/// How long ago; nothing where the clock went back.
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
