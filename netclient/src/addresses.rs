//! What names resolved to, and which of the addresses is the one to use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use schema::rules::endpoints::refused_everywhere;
use serde::{Deserialize, Serialize};

/// What names resolved to last, by `name:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses(BTreeMap<String, Vec<SocketAddr>>);

impl Addresses {
    /// What a name resolved to last, the better first; empty: that is not known.
    pub fn of(&self, name: &str) -> &[SocketAddr] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Takes in what a name resolves to; whether that is new, apart from the order. Nothing, as when it does
    /// not resolve, changes nothing.
    pub fn learn(&mut self, name: &str, found: &[SocketAddr]) -> bool {
        if found.is_empty() {
            return false;
        }
        let set = |addresses: &[SocketAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
        let new = set(self.of(name)) != set(found);
        self.0.insert(name.to_owned(), found.to_vec());
        new
    }

    /// Forgets all names but these.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| keep(name));
    }
}

/// Where a peer is of what its name resolves to: where it was before, as long as its name leads there and the
/// first address that is usable is of the same family, else that one, else the first, for what runs on this
/// host. The resolver puts the family first that the host has now, which may have moved to a network without
/// the other.
pub fn choose(found: &[SocketAddr], before: Option<SocketAddr>) -> Option<SocketAddr> {
    let usable = |at: &&SocketAddr| refused_everywhere(at.ip()).is_none();
    let first = found.iter().find(usable).or(found.first()).copied()?;
    let stays = |before: &SocketAddr| {
        found.contains(before) && usable(&before) && before.is_ipv4() == first.is_ipv4()
    };
    Some(before.filter(stays).unwrap_or(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_addresses_of_a_name_one_that_other_hosts_have_goes_first_and_the_one_in_use_stays() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("good");
        let [loopback, link_local, public, other] =
            ["127.0.0.1:5", "169.254.1.1:5", "192.0.2.7:5", "192.0.2.8:5"].map(at);
        let ipv6 = at("[2606:4700::7]:5");
        for (found, before, chosen) in [
            (&[loopback, link_local, public, other][..], None, Some(public)),
            (&[loopback, public, other], Some(other), Some(other)),
            (&[loopback, public], Some(loopback), Some(public)),
            (&[public], Some(other), Some(public)),
            (&[loopback, link_local], None, Some(loopback)),
            (&[], Some(public), None),
            (&[public, ipv6], Some(ipv6), Some(public)),
            (&[ipv6, other, public], Some(public), Some(ipv6)),
            (&[loopback, ipv6, public], Some(ipv6), Some(ipv6)),
        ] {
            assert_eq!(choose(found, before), chosen, "{found:?} {before:?}");
        }
    }
}
