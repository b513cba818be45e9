//! The names of a network as a name server reads them: a zone file (RFC 1035, section 5), and lines like those
//! of `/etc/hosts`.
//!
//! Both render what [`Mesh::resolutions`] says: which names there are, and what they lead to, is decided there
//! alone. A zone has a serial, which rises with each change of the file ([`next_serial`]); who writes the file
//! knows the one before.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;

use crate::compile::Mesh;
use crate::kinds::Dns;
use crate::scalars::{Name, NetworkName, Seconds};
use crate::snapshot::Snapshot;
use crate::view::Resolution;

/// How long resolvers may remember that a name does not exist: a node that joins is found soon (RFC 2308).
const NOT_FOUND: Seconds = Seconds(5);
/// When a secondary name server looks for a change, tries again, and gives up: the values that RFC 1912,
/// section 2.2, suggests for zones that change often.
const SECONDARY: &str = "1200 180 1209600";

/// The zone of a network, as the content of a file.
///
/// It has an A or AAAA record for each address of a name, and a CNAME where the entry has a `cname`: one inside
/// of the network leads straight to the last name of its chain, since a name server may follow fewer than the
/// rules allow (CoreDNS: 8). Names of members may be cached as long as those of entries by default. No name
/// server is named: `localhost` stands where a zone needs one, since nobody delegates to it.
pub fn zone(mesh: &Mesh, declared: &Snapshot, serial: u32) -> String {
    let network = mesh.name();
    let mut text = format!("$ORIGIN {network}.\n{}", head(serial));
    for (name, resolution) in mesh.resolutions() {
        let entry = declared.named::<Dns>(network, name);
        let ttl = entry.map_or(Dns::TTL, |entry| entry.ttl).0;
        let mut record = |what: &str, to: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{name} {ttl} IN {what} {to}");
        };
        let inside = entry.and_then(|entry| entry.inner_cname(network));
        match (resolution, inside) {
            (Resolution::Alias(to), _) => record("CNAME", &format_args!("{to}.")),
            (Resolution::Addresses(_), Some(next)) => {
                record("CNAME", &format_args!("{}.{network}.", last(next, network, declared)))
            }
            (Resolution::Addresses(addresses), None) => {
                addresses.iter().for_each(|address| record(record_type(address), address))
            }
        }
    }
    text
}

/// What a zone begins with, whatever its name is.
fn head(serial: u32) -> String {
    let (ttl, not_found) = (Dns::TTL.0, NOT_FOUND.0);
    let owner = "localhost. root.localhost.";
    format!("$TTL {ttl}\n@ IN SOA {owner} {serial} {SECONDARY} {not_found}\n@ IN NS localhost.\n")
}

/// A zone of any name in which there are no names, as the content of a file.
pub fn empty() -> String {
    head(1)
}

/// The zone of a network that takes the place of another one in its file; absent: that says the same. `before`
/// is empty where there was none.
pub fn replacement(before: &str, mesh: &Mesh, declared: &Snapshot, now: Timestamp) -> Option<String> {
    let last = serial(before);
    let is_same = last.is_some_and(|last| zone(mesh, declared, last) == before);
    (!is_same).then(|| zone(mesh, declared, next_serial(last, now)))
}

/// The name that a chain of aliases inside of a network ends at.
fn last(first: Name, network: &NetworkName, declared: &Snapshot) -> Name {
    let next = |name: &Name| declared.named::<Dns>(network, name)?.inner_cname(network);
    // The rules have refused cycles; one that slips through ends here.
    std::iter::successors(Some(first.clone()), next).take(declared.len()).last().unwrap_or(first)
}

fn record_type(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "A" } else { "AAAA" }
}

/// The line of a name in a file of hosts (hosts(5)), without its end.
pub fn hosts_line(address: &IpAddr, name: &Name, network: &NetworkName) -> String {
    format!("{address}\t{name}.{network}")
}

/// Every address of some networks with its names, as the content of a file of hosts: by address, one name a
/// line, members before entries that lead to them.
pub fn hosts<'a>(meshes: impl IntoIterator<Item = &'a Mesh>) -> String {
    let mut lines: BTreeMap<(IpAddr, &NetworkName, bool, &Name), String> = BTreeMap::new();
    for mesh in meshes {
        for (name, resolution) in mesh.resolutions() {
            let Resolution::Addresses(addresses) = resolution else { continue };
            for address in addresses {
                let line = hosts_line(&address, name, mesh.name());
                lines.insert((address, mesh.name(), mesh.class_of(name).is_none(), name), line);
            }
        }
    }
    lines.into_values().map(|line| line + "\n").collect()
}

/// The serial of a zone that [`zone`] wrote; absent: it did not.
pub fn serial(text: &str) -> Option<u32> {
    let soa = text.lines().find(|line| line.starts_with("@ IN SOA "))?;
    soa.split(' ').nth(5)?.parse().ok()
}

/// The serial of a zone that is written at a moment: its Unix time in seconds, so that it rises whatever became
/// of the file before; or the next after that file's, where the clock is not later (RFC 1982).
pub fn next_serial(before: Option<u32>, now: Timestamp) -> u32 {
    let now = u32::try_from(now.as_second().rem_euclid(1 << 32)).expect("it is less than 2^32");
    match before {
        Some(before) if !is_later(now, before) => before.wrapping_add(1),
        Some(_) | None => now,
    }
}

/// Whether a serial comes after another (RFC 1982, section 3.2).
fn is_later(one: u32, other: u32) -> bool {
    (1..1 << 31).contains(&one.wrapping_sub(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_rises_whatever_the_clock_and_the_file_before_say() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        for (before, now, expected) in [
            (None, 1_800_000_000, 1_800_000_000),
            (Some(7), 1_800_000_000, 1_800_000_000),
            (Some(1_800_000_000), 1_800_000_000, 1_800_000_001),
            (Some(1_800_000_000), 1_700_000_000, 1_800_000_001),
            (Some(u32::MAX), 4_294_967_295, 0),
            // Beyond the end of the numbers, and a file that somebody gave a serial of its own.
            (Some(u32::MAX), 4_294_967_300, 4),
            (Some(3_000_000_000), 1_800_000_000, 3_000_000_001),
        ] {
            assert_eq!(next_serial(before, at(now)), expected, "{before:?} at {now}");
            assert!(before.is_none_or(|before| is_later(expected, before)), "{before:?} at {now}");
        }
    }
}
