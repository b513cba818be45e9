//! The registrations for tunnels to the server: pure.
//!
//! A registration belongs to an identity and has one WireGuard key and one address. Before the host joins,
//! and after it has left its last network, it expires; in between it does not. The cost of a call does not
//! depend on their number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use schema::scalars::{Identity, WireGuardKey};
use schema::snapshot::ResourceId;

/// How long a registration lasts if no join follows.
pub const LIFETIME: Duration = Duration::from_secs(600);
/// How long one lasts after the host's last network was left: what it is still sent travels through the
/// tunnel.
pub const GRACE: Duration = Duration::from_secs(10);
/// How many hosts may be registered by one key without having joined.
pub const UNJOINED: usize = 256;

/// A host's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredHost {
    /// Its end of the tunnel.
    pub public_key: WireGuardKey,
    /// Its address there.
    pub address: Ipv4Addr,
    /// The key that it showed; absent: it had joined.
    pub key: Option<ResourceId>,
    /// When it expires; absent: the host has joined.
    pub ends: Option<Instant>,
}

/// Why a host may not register.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unregistered {
    /// All addresses of the range are in use.
    #[error(
        "all {1} addresses of COMMS_RANGE {0} are in use, so there is no room for a tunnel; join without: netclient join -t TOKEN"
    )]
    Full(Ipv4Net, usize),
    /// Too many hosts have registered and not joined.
    #[error(
        "{1} hosts have registered with the access key {0} and not joined; let some of them join, or wait 10 minutes"
    )]
    Unjoined(ResourceId, usize),
    /// Another host has the WireGuard key.
    #[error("another host is registered with this WireGuard key; register again with another key")]
    PublicKeyTaken,
}

/// All registrations.
#[derive(Debug)]
pub struct Registry {
    range: Ipv4Net,
    all: BTreeMap<Identity, RegisteredHost>,
    identities: BTreeMap<WireGuardKey, Identity>,
    addresses: BTreeMap<Ipv4Addr, Identity>,
    /// The addresses below `next` that are free again.
    freed: BTreeSet<Ipv4Addr>,
    next: u32,
    ends: BTreeSet<(Instant, Identity)>,
    unjoined: BTreeMap<ResourceId, usize>,
}

impl Registry {
    /// An empty one.
    pub fn new(range: Ipv4Net) -> Self {
        Self {
            range,
            all: BTreeMap::new(),
            identities: BTreeMap::new(),
            addresses: BTreeMap::new(),
            freed: BTreeSet::new(),
            // The first is the range's own, the second the server's.
            next: u32::from(range.network()) + 2,
            ends: BTreeSet::new(),
            unjoined: BTreeMap::new(),
        }
    }

    /// The server's address in a range.
    pub fn server(range: Ipv4Net) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(range.network()) + 1)
    }

    /// Restores a stored registration, unless it no longer fits; whether it was restored.
    pub fn restore(&mut self, identity: Identity, registration: RegisteredHost) -> bool {
        let address = u32::from(registration.address);
        let inside = self.range.contains(&registration.address)
            && address > u32::from(self.range.network()) + 1
            && registration.address != self.range.broadcast();
        let new = !self.all.contains_key(&identity)
            && !self.identities.contains_key(&registration.public_key)
            && !self.addresses.contains_key(&registration.address);
        if !inside || !new {
            return false;
        }
        self.freed.extend((self.next..address).map(Ipv4Addr::from));
        self.freed.remove(&registration.address);
        self.next = self.next.max(address + 1);
        self.put(identity, registration);
        true
    }

    /// Registers a host: by the key that it shows, or, without one, because it has joined.
    ///
    /// One that is registered already with the same WireGuard key stays as it is.
    pub fn register(
        &mut self,
        identity: Identity,
        public_key: WireGuardKey,
        key: Option<ResourceId>,
        now: Instant,
    ) -> Result<RegisteredHost, Unregistered> {
        if self.identities.get(&public_key).is_some_and(|other| *other != identity) {
            return Err(Unregistered::PublicKeyTaken);
        }
        if let Some(there) = self.all.get(&identity).cloned() {
            if key.is_none() {
                self.joined(&identity);
            }
            let before = there.public_key;
            if before != public_key {
                self.identities.remove(&before);
                self.identities.insert(public_key, identity);
                self.all.entry(identity).and_modify(|it| it.public_key = public_key);
            }
            return Ok(self.all.get(&identity).cloned().unwrap_or(there));
        }
        if let Some(key) = &key {
            let waiting = self.unjoined.get(key).copied().unwrap_or(0);
            if waiting >= UNJOINED {
                return Err(Unregistered::Unjoined(key.clone(), waiting));
            }
        }
        let address = self.free_address().ok_or(Unregistered::Full(self.range, self.all.len()))?;
        let ends = key.is_some().then(|| now + LIFETIME);
        let registration = RegisteredHost { public_key, address, key, ends };
        self.put(identity, registration.clone());
        Ok(registration)
    }

    /// Records that a host has joined a network.
    pub fn joined(&mut self, identity: &Identity) {
        self.set_end(identity, None);
    }

    /// Records that a host has left its last network.
    pub fn left(&mut self, identity: &Identity, now: Instant) {
        self.set_end(identity, Some(now + GRACE));
    }

    /// Ends the registrations that have expired; returns them with their identities.
    pub fn expire(&mut self, now: Instant) -> Vec<(Identity, RegisteredHost)> {
        let mut ended = Vec::new();
        while let Some((at, identity)) = self.ends.first().copied().filter(|(at, _)| *at <= now) {
            self.ends.remove(&(at, identity));
            if let Some(registration) = self.all.remove(&identity) {
                self.uncount(&registration);
                self.identities.remove(&registration.public_key);
                self.addresses.remove(&registration.address);
                self.freed.insert(registration.address);
                ended.push((identity, registration));
            }
        }
        ended
    }

    /// The next expiry.
    pub fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(at, _)| *at)
    }

    /// The registration of an identity.
    pub fn of(&self, identity: &Identity) -> Option<&RegisteredHost> {
        self.all.get(identity)
    }

    /// The WireGuard key of the host that has an address.
    pub fn public_key_at(&self, address: Ipv4Addr) -> Option<WireGuardKey> {
        self.all.get(self.addresses.get(&address)?).map(|registration| registration.public_key)
    }

    /// Every registration.
    pub fn all(&self) -> impl Iterator<Item = (&Identity, &RegisteredHost)> {
        self.all.iter()
    }

    fn put(&mut self, identity: Identity, registration: RegisteredHost) {
        self.identities.insert(registration.public_key, identity);
        self.addresses.insert(registration.address, identity);
        if let Some(end) = registration.ends {
            self.ends.insert((end, identity));
            if let Some(key) = &registration.key {
                *self.unjoined.entry(key.clone()).or_default() += 1;
            }
        }
        self.all.insert(identity, registration);
    }

    fn set_end(&mut self, identity: &Identity, end: Option<Instant>) {
        let Some(mut registration) = self.all.get(identity).cloned() else { return };
        if let Some(before) = registration.ends {
            self.ends.remove(&(before, *identity));
        }
        self.uncount(&registration);
        // A host that has joined is not counted as waiting, even after it has left.
        (registration.ends, registration.key) = (end, None);
        self.put(*identity, registration);
    }

    /// Counts one host less that waits for its join.
    fn uncount(&mut self, registration: &RegisteredHost) {
        let Some(key) = registration.key.as_ref().filter(|_| registration.ends.is_some()) else { return };
        if let Some(count) = self.unjoined.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.unjoined.remove(key);
            }
        }
    }

    fn free_address(&mut self) -> Option<Ipv4Addr> {
        if let Some(address) = self.freed.pop_first() {
            return Some(address);
        }
        let address = Ipv4Addr::from(self.next);
        (address < self.range.broadcast()).then(|| {
            self.next += 1;
            address
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(range: &str) -> (Registry, Instant) {
        (Registry::new(range.parse().expect("a range")), Instant::now())
    }

    fn key<K: TryFrom<[u8; 32], Error: std::fmt::Debug>>(number: u16) -> K {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        bytes.try_into().expect("good")
    }

    /// The identities whose registrations expire.
    fn ended(registry: &mut Registry, now: Instant) -> Vec<Identity> {
        registry.expire(now).into_iter().map(|(identity, _)| identity).collect()
    }

    fn access(name: &str) -> Option<ResourceId> {
        Some(format!("corp/access-key/{name}").parse().expect("an id"))
    }

    #[test]
    fn each_gets_an_address_of_its_own_and_the_next_one_that_was_given_back() {
        let (mut registry, now) = registry("10.101.0.0/29");
        let mut given = Vec::new();
        for number in 0..5 {
            let registration =
                registry.register(key(number), key(100 + number), access("k"), now).expect("room");
            given.push(registration.address.octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6], "neither the range's own, nor the server's, nor the broadcast");
        let full = registry.register(key(9), key(109), access("k"), now).expect_err("it is full");
        assert!(full.to_string().contains("all 5 addresses of COMMS_RANGE 10.101.0.0/29"), "{full}");
        for number in [0, 1, 3, 4] {
            registry.joined(&key(number));
        }
        assert_eq!(ended(&mut registry, now + LIFETIME), [key(2)]);
        let again = registry.register(key(9), key(109), access("k"), now).expect("there is room");
        assert_eq!(again.address.octets()[3], 4);
    }

    #[test]
    fn one_that_does_not_join_expires_after_ten_minutes_and_one_that_leaves_at_once() {
        let (mut registry, now) = registry("10.101.0.0/16");
        registry.register(key(1), key(101), access("k"), now).expect("room");
        registry.register(key(2), key(102), access("k"), now).expect("room");
        registry.joined(&key(2));
        assert_eq!(registry.next_end(), Some(now + LIFETIME));
        assert_eq!(ended(&mut registry, now + LIFETIME - Duration::from_secs(1)), []);
        assert_eq!(ended(&mut registry, now + LIFETIME), [key(1)]);
        assert_eq!((registry.next_end(), registry.of(&key(1))), (None, None));
        registry.left(&key(2), now + LIFETIME);
        assert_eq!(ended(&mut registry, now + LIFETIME), [], "what it is still sent gets through");
        registry.joined(&key(2));
        assert_eq!(ended(&mut registry, now + LIFETIME * 9), [], "it joined another one meanwhile");
    }

    #[test]
    fn registering_twice_changes_nothing_and_another_key_takes_the_place_of_the_first() {
        let (mut registry, now) = registry("10.101.0.0/16");
        let first = registry.register(key(1), key(101), access("k"), now).expect("room");
        let later = now + Duration::from_secs(60);
        assert_eq!(registry.register(key(1), key(101), access("k"), later), Ok(first.clone()));
        let moved = registry.register(key(1), key(201), access("k"), later).expect("room");
        assert_eq!(
            (moved.address, moved.ends, registry.all().any(|(_, it)| it.public_key == key(101))),
            (first.address, first.ends, false)
        );
        let stolen = registry.register(key(2), key(201), access("k"), now);
        assert_eq!(stolen, Err(Unregistered::PublicKeyTaken));
        let joined = registry.register(key(1), key(201), None, later).expect("room");
        assert_eq!(joined.ends, None, "its identity has joined");
    }

    #[test]
    fn those_who_wait_for_their_join_are_capped_for_each_key() {
        let (mut registry, now) = registry("10.101.0.0/16");
        for number in 0..u16::try_from(UNJOINED).expect("it is small") {
            registry.register(key(number), key(1_000 + number), access("k"), now).expect("room");
        }
        let error = registry.register(key(900), key(1_900), access("k"), now).expect_err("too many");
        assert!(matches!(error, Unregistered::Unjoined(_, UNJOINED)), "{error}");
        registry.register(key(900), key(1_900), access("other"), now).expect("another key");
        registry.register(key(901), key(1_901), None, now).expect("one that has joined");
        registry.joined(&key(3));
        registry.register(key(902), key(1_902), access("k"), now).expect("one has joined");
        registry.left(&key(3), now);
        assert!(registry.register(key(903), key(1_903), access("k"), now).is_err());
    }

    #[test]
    fn what_was_stored_is_restored_in_any_order_and_what_does_not_fit_is_ignored() {
        let (mut registry, now) = registry("10.101.0.0/24");
        let kept = |last: u8, number: u16| RegisteredHost {
            public_key: key(number),
            address: Ipv4Addr::new(10, 101, 0, last),
            key: None,
            ends: None,
        };
        assert!(registry.restore(key(1), kept(9, 101)));
        assert!(registry.restore(key(2), kept(4, 102)));
        for (identity, registration) in
            [(1, kept(5, 105)), (3, kept(9, 103)), (4, kept(6, 101)), (5, kept(1, 104))]
        {
            assert!(!registry.restore(key(identity), registration.clone()), "{registration:?}");
        }
        let next = |registry: &mut Registry, number| {
            registry.register(key(number), key(500 + number), None, now).expect("room").address.octets()[3]
        };
        let given: Vec<u8> = (10..17).map(|number| next(&mut registry, number)).collect();
        assert_eq!(given, [2, 3, 5, 6, 7, 8, 10]);
    }
}
