//! The configuration of a WireGuard device and the operations on it, as values: decisions are made on these.
//!
//! Pure: nothing here accesses the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;
use schema::scalars::WireGuardKey;
use serde::{Deserialize, Serialize};

/// Where a device runs. It is chosen when a device is created ([`create`](super::create)), and holds while that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In the kernel.
    Kernel,
    /// In a process of its own.
    Userspace,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

impl FromStr for Kind {
    type Err = NotAKind;

    fn from_str(text: &str) -> Result<Self, NotAKind> {
        [Self::Kernel, Self::Userspace].into_iter().find(|kind| kind.to_string() == text).ok_or(NotAKind)
    }
}

/// A text that names no [`Kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use kernel or userspace, or leave it out: the kernel's if that has WireGuard")]
pub struct NotAKind;

/// A WireGuard device as it was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// The public half of the key in use; absent: no key is set.
    pub public_key: Option<WireGuardKey>,
    /// The UDP port in use; 0: none yet.
    pub listen_port: u16,
    /// The mark of the packets that carry the tunnel (SO_MARK; socket(7)); 0: none.
    pub mark: u32,
    /// The peers.
    pub peers: BTreeMap<WireGuardKey, PeerState>,
}

/// What a device knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerState {
    /// Its settings.
    pub settings: PeerSettings,
    /// When the last handshake was completed, in seconds of the Unix epoch; absent: never.
    pub last_handshake: Option<u64>,
    /// Bytes received since the device or the peer was created.
    pub received: u64,
    /// Bytes sent since the device or the peer was created.
    pub sent: u64,
}

/// The settings of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSettings {
    /// Where it is reached; absent: it must send first. WireGuard itself moves it to where the peer was last
    /// heard.
    pub endpoint: Option<SocketAddr>,
    /// The ranges that belong to it, without host bits. A range belongs to one peer: the one that is put
    /// last.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds between keepalives; 0: none.
    pub keepalive: u16,
}

/// One operation on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceStep {
    /// Sets the mark of the packets that carry the tunnel. It comes before the key, so that no packet goes
    /// without.
    SetMark(u32),
    /// Sets the private key. A device without one refuses every other step. A peer that has its public half
    /// is removed.
    SetPrivateKey(PrivateKey),
    /// Listens on this UDP port; 0: on any, which keeps the one in use. Sessions survive the move.
    SetListenPort(u16),
    /// Creates a peer, or changes it in place: its session and counters stay. An absent endpoint leaves the
    /// known one. A peer with the device's own key is not created.
    PutPeer(WireGuardKey, PeerSettings),
    /// Removes a peer, if there.
    RemovePeer(WireGuardKey),
}

/// A WireGuard private key: never printed, wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, zeroize::ZeroizeOnDrop)]
pub struct PrivateKey(pub [u8; 32]);

impl PrivateKey {
    /// The key that random bytes make. As wg(8) does: the bits that Curve25519 ignores are those that it
    /// would assume (RFC 7748, section 5).
    pub fn from_random(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Self(bytes)
    }

    /// The public half, which peers know (Curve25519; RFC 7748).
    pub fn public(&self) -> WireGuardKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        WireGuardKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_is_never_printed() {
        let step = DeviceStep::SetPrivateKey(PrivateKey([0xab; 32]));
        assert_eq!(format!("{step:?}"), "SetPrivateKey(PrivateKey(..))");
    }

    #[test]
    fn the_public_half_is_that_of_wg_pubkey() {
        // RFC 7748, section 6.1: Alice.
        let private = *b"\x77\x07\x6d\x0a\x73\x18\xa5\x7d\x3c\x16\xc1\x72\x51\xb2\x66\x45\
                         \xdf\x4c\x2f\x87\xeb\xc0\x99\x2a\xb1\x77\xfb\xa5\x1d\xb9\x2c\x2a";
        assert_eq!(PrivateKey(private).public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
