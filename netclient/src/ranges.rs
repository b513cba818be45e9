//! Ranges that lie in each other, as intervals that do not overlap: the kernel's sets know no longest prefix.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use range_set_blaze::RangeMapBlaze;

/// What addresses belong to, each to the longest of the ranges that hold it, in order; absent: to nothing
/// that matters. To none of them belongs what is inside of `own`.
pub(crate) fn by_longest_prefix<T: Clone + Eq>(
    ranges: impl IntoIterator<Item = (IpNet, Option<T>)>,
    own: &BTreeSet<IpNet>,
) -> Vec<((IpAddr, IpAddr), T)> {
    let mut ranges: Vec<_> = ranges.into_iter().collect();
    ranges.sort_by_key(|(range, _)| range.prefix_len());
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        let mut belongs = RangeMapBlaze::new();
        let own = own.iter().map(|range| (*range, None));
        for (range, to) in ranges.iter().cloned().chain(own) {
            if range.addr().is_ipv6() == ipv6 {
                belongs.ranges_insert(number(range.network())..=number(range.broadcast()), to);
            }
        }
        let found = belongs.range_values().filter_map(|(range, to)| Some((range, to.clone()?)));
        all.extend(
            found.map(|(range, to)| ((address(*range.start(), ipv6), address(*range.end(), ipv6)), to)),
        );
    }
    all
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(number: u128, ipv6: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if !ipv6 => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}
