//! A host that asked to join a network without an access key: what it stores until somebody lets it in.
//!
//! Pure.

use jiff::Timestamp;
use schema::scalars::{Endpoint, Fingerprint, Identity, Name, NetworkName};
use serde::{Deserialize, Serialize};

use crate::device::state::PrivateKey;
use crate::membership::ServerAddress;

/// A host that waits to be let into a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The network.
    pub network: NetworkName,
    /// The name that it asked for.
    pub name: Name,
    /// The server of the network.
    pub server: ServerAddress,
    /// The identity by which it is known there, of which people compare the fingerprint.
    pub identity: Identity,
    /// The interface that the network will have on this host.
    pub interface: String,
    /// The WireGuard key, which never leaves the host.
    pub private_key: PrivateKey,
    /// The UDP port that was set; absent: none.
    pub port: Option<u16>,
    /// Where the others reach the host, as set; absent: where the server sees it.
    pub endpoint: Option<Endpoint>,
    /// Since when, by this host's clock.
    pub since: Timestamp,
    /// How it stands.
    pub state: WaitingState,
}

/// How a host stands that asked to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitingState {
    /// It waits, until then at most.
    Until(Timestamp),
    /// The server has dropped it: it waited for too long, somebody refused it, or the network lets nobody wait
    /// any more. It asks no more by itself.
    Dropped,
}

impl Waiting {
    /// The fingerprint of its identity.
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    /// Whether it asks again by itself.
    pub fn goes_on(&self) -> bool {
        match self.state {
            WaitingState::Until(_) => true,
            WaitingState::Dropped => false,
        }
    }
}
