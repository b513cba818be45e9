//! WireGuard, as the agent sees it: observe a device, apply steps to it.
//!
//! Three implementations keep one contract: the kernel's ([`kernel`]), a userspace device in a process of its own
//! ([`userspace`], which speaks to [`process`]), and a map in memory for tests ([`fake`]). None decides anything; the
//! steps come from [`reconcile`](crate::reconcile). A device exists until [`Device::remove`], whatever happens to the
//! agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use schema::scalars::PublicKey;
use serde::{Deserialize, Serialize};

/// A WireGuard device that exists.
pub trait Device: Send {
    /// What the device does.
    fn observe(&mut self) -> Result<DeviceState, DeviceError>;
    /// Carries out the steps in their order. Each is repeatable; a peer that is put keeps its session and counters.
    fn apply(&mut self, steps: &[DeviceStep]) -> Result<(), DeviceError>;
    /// Ends the device and its interface.
    fn remove(&mut self) -> Result<(), DeviceError>;
}

/// A WireGuard device as it was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// The public half of the key in use; absent: no key is set.
    pub public_key: Option<PublicKey>,
    /// The UDP port in use; 0: none yet.
    pub listen_port: u16,
    /// The peers.
    pub peers: BTreeMap<PublicKey, PeerState>,
}

/// What a device knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerState {
    /// How it is set.
    pub settings: PeerSettings,
    /// When the last handshake was completed, in seconds of the Unix epoch; absent: never.
    pub last_handshake: Option<u64>,
    /// Bytes received since the device or the peer was made.
    pub received: u64,
    /// Bytes sent since the device or the peer was made.
    pub sent: u64,
}

/// How a peer is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSettings {
    /// Where it is reached; absent: it must speak first. WireGuard itself moves it to where the peer was last heard.
    pub endpoint: Option<SocketAddr>,
    /// The ranges that belong to it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds between keepalives; 0: none.
    pub keepalive: u16,
}

/// One operation on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceStep {
    /// Sets the private key.
    SetPrivateKey(PrivateKey),
    /// Listens on this UDP port.
    SetListenPort(u16),
    /// Makes a peer, or changes it in place: its session and counters stay. An absent endpoint leaves the known one.
    PutPeer(PublicKey, PeerSettings),
    /// Removes a peer, if there.
    RemovePeer(PublicKey),
}

/// A WireGuard private key: never printed, wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, zeroize::ZeroizeOnDrop)]
pub struct PrivateKey(pub [u8; 32]);

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Why a device could not be made, observed or changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Placeholder of the contract; the real variants follow STYLE 7.
    #[error("input or output failed")]
    Io(#[from] std::io::Error),
}
