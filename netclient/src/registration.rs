//! A host's registration at a server: what it stores of the tunnel for control traffic (`netclient
//! register`).
//!
//! Pure, and the counterpart of [`Membership`](crate::membership::Membership): it is stored in the agent's
//! directory, and [`comms`](crate::comms) brings it up. Before the host has joined a network, a registration
//! has a deadline, which is a [`BootTime`].

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use schema::scalars::{Endpoint, WireGuardKey};
use serde::{Deserialize, Serialize};

use crate::device::state::PrivateKey;
use crate::membership::ServerAddress;

/// A host's registration at a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The server.
    pub server: ServerAddress,
    /// The interface.
    pub interface: String,
    /// The host's end of the tunnel.
    pub private_key: PrivateKey,
    /// What the server answered.
    pub terms: Terms,
    /// When it expires unless the host joins; absent: the host has joined.
    pub deadline: Option<BootTime>,
}

/// What a server answers to a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The server's end of the tunnel.
    pub public_key: WireGuardKey,
    /// Its UDP address.
    pub endpoint: Endpoint,
    /// The host's address in the tunnel.
    pub address: Ipv4Addr,
    /// The address of the agents' service in the tunnel.
    pub server: SocketAddrV4,
}

/// A moment during one boot of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTime {
    /// The boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// The time of `CLOCK_BOOTTIME`.
    pub at: Duration,
}

impl BootTime {
    /// A moment that has always passed.
    pub fn passed() -> Self {
        Self { boot: String::new(), at: Duration::ZERO }
    }

    /// The moment that is `span` later.
    pub fn after(self, span: Duration) -> Self {
        Self { at: self.at + span, ..self }
    }

    /// How far away it still is; absent: it has passed, as has every moment of an earlier boot.
    pub fn left(&self, now: &Self) -> Option<Duration> {
        self.at.checked_sub(now.at).filter(|left| !left.is_zero() && self.boot == now.boot)
    }
}

impl Registration {
    /// A new registration, which has no interface yet.
    pub fn new(
        server: ServerAddress,
        private_key: PrivateKey,
        terms: Terms,
        deadline: Option<BootTime>,
    ) -> Self {
        Self { server, interface: String::new(), private_key, terms, deadline }
    }

    /// Whether it is the same registration, whatever the server answered since.
    pub fn is(&self, other: &Self) -> bool {
        self.interface == other.interface && self.private_key == other.private_key
    }

    /// Whether its tunnel has the ends of these terms.
    pub fn same_link(&self, terms: &Terms) -> bool {
        self.terms.address == terms.address && self.terms.server == terms.server
    }

    /// Whether it has expired because the host did not join.
    pub fn has_expired(&self, now: &BootTime) -> bool {
        self.deadline.as_ref().is_some_and(|deadline| deadline.left(now).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_at_its_time_and_with_a_reboot() {
        let at = |boot: &str, seconds| BootTime { boot: boot.into(), at: Duration::from_secs(seconds) };
        let deadline = at("a", 100).after(Duration::from_secs(600));
        assert_eq!(deadline.left(&at("a", 100)), Some(Duration::from_secs(600)));
        assert_eq!(deadline.left(&at("a", 700)), None);
        assert_eq!(deadline.left(&at("b", 1)), None, "the host was started again");
        assert_eq!(BootTime::passed().left(&at("a", 0)), None);
    }
}
