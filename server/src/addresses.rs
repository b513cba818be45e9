//! By which addresses this server is reached: a thin shell around the resolver and the kernel.
//!
//! A network that holds one of them would cut hosts off (the rule `cut-off`), and no member is given one.
//! What SERVER_HOST, PUBLIC_GRPC and PUBLIC_COMMS resolve to is asked once a minute, the interfaces of this
//! host then too, and whenever a plan is about to be made or applied. Nothing is asked while a change is
//! made: it is given what was known last. What cannot be asked right now stays as it was; a name that never
//! resolved is logged. Start at [`OwnAddresses`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netclient::system::link;
use schema::rules::endpoints::refused_everywhere;
use tokio::task::JoinSet;

use crate::config::Settings;

/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(2);

/// The addresses by which a server is reached.
#[derive(Debug, Default)]
pub struct OwnAddresses {
    names: BTreeSet<String>,
    /// Whether the interfaces of the host lead to the server.
    by_interfaces: bool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the name.
    resolved: BTreeMap<String, BTreeSet<IpAddr>>,
    listed: BTreeSet<IpAddr>,
    all: Arc<[IpAddr]>,
}

impl OwnAddresses {
    /// Those of a server with these settings; none is known yet.
    pub fn of(settings: &Settings) -> Self {
        // A server that only this host reaches is behind no address of it.
        let by_interfaces = !settings.bind.is_loopback() || settings.behind_proxy || settings.comms;
        Self { names: settings.public_hosts(), by_interfaces, known: Mutex::default() }
    }

    /// The addresses as they were last asked for, in order.
    pub fn now(&self) -> Arc<[IpAddr]> {
        self.known().all.clone()
    }

    /// Asks the resolver for the names, all at once. A name that does not resolve right now keeps its
    /// addresses.
    pub async fn resolve(&self) {
        let mut lookups = JoinSet::new();
        for name in self.names.iter().cloned() {
            lookups.spawn(async move {
                let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((name.as_str(), 0))).await;
                let addresses = usable(found.ok()?.ok()?.map(|at| at.ip())).collect();
                Some((name, addresses))
            });
        }
        while let Some(found) = lookups.join_next().await {
            if let Some((name, addresses)) = found.ok().flatten() {
                self.known().put(|known| drop(known.resolved.insert(name, addresses)));
            }
        }
    }

    /// The names that have never resolved.
    pub fn unknown(&self) -> Vec<&str> {
        let known = self.known();
        self.names.iter().filter(|name| !known.resolved.contains_key(*name)).map(String::as_str).collect()
    }

    /// Asks the kernel for the addresses of the interfaces.
    pub async fn list(&self) {
        if !self.by_interfaces {
            return;
        }
        match link::all_addresses().await {
            Ok(found) => self.known().put(|known| known.listed = of_interfaces(&found)),
            Err(error) => {
                tracing::warn!(%error, "cannot list the addresses of this host; the last known ones count")
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn put(&mut self, change: impl FnOnce(&mut Self)) {
        change(self);
        let all: BTreeSet<_> = self.resolved.values().flatten().chain(&self.listed).copied().collect();
        self.all = all.into_iter().collect();
    }
}

/// The addresses of these interfaces by which other hosts may reach this one, outside of every network.
fn of_interfaces(found: &[(String, IpAddr)]) -> BTreeSet<IpAddr> {
    usable(found.iter().map(|(_, address)| *address)).collect()
}

fn usable(addresses: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = IpAddr> {
    addresses.map(|address| address.to_canonical()).filter(|address| refused_everywhere(*address).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("good")
    }

    #[test]
    fn the_addresses_of_interfaces_count_unless_they_are_of_no_use_to_others() {
        let found = [
            ("lo", "127.0.0.1"),
            ("eth0", "192.0.2.11"),
            ("eth0", "fe80::1"),
            ("eth0", "2001:db8::11"),
            ("docker0", "172.17.0.1"),
            ("nm-bridge", "10.42.0.1"),
        ];
        let found = found.map(|(interface, text)| (interface.to_owned(), address(text)));
        let expected = ["10.42.0.1", "172.17.0.1", "192.0.2.11", "2001:db8::11"].map(address);
        assert_eq!(of_interfaces(&found), expected.into());
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_right_now_keeps_its_addresses_and_takes_none_from_the_others() {
        // RFC 6761, section 6.4: it never resolves.
        let names = ["192.0.2.7", "2001:db8::7", "127.0.0.1", "nm.invalid"].map(str::to_owned).into();
        let own = OwnAddresses { names, ..Default::default() };
        assert_eq!(own.unknown().len(), 4);
        own.resolve().await;
        assert_eq!(own.now()[..], ["192.0.2.7", "2001:db8::7"].map(address));
        assert_eq!(own.unknown(), ["nm.invalid"]);
        own.known()
            .put(|known| drop(known.resolved.insert("nm.invalid".into(), [address("192.0.2.9")].into())));
        own.resolve().await;
        assert_eq!(own.now()[..], ["192.0.2.7", "192.0.2.9", "2001:db8::7"].map(address));
    }
}
