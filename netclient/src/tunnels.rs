//! From a View to what WireGuard gets: one tunnel for each peer that there is one to.
//!
//! Pure. Where peers are found by name, somebody else looks the name up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use schema::scalars::{Endpoint, Seconds, WireGuardKey};
use schema::view::View;

use crate::device::state::PeerSettings;

/// The tunnel to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Where the peer is reached; absent: it must speak first.
    pub endpoint: Option<Endpoint>,
    /// What is sent to it, and what it may send from.
    pub allowed_ips: BTreeSet<IpNet>,
}

/// The tunnels of a View, by the WireGuard key of the peer.
pub fn tunnels(view: &View) -> BTreeMap<WireGuardKey, Tunnel> {
    let tunnel = |peer: &schema::view::Peer| Tunnel {
        endpoint: peer.endpoint.clone(),
        allowed_ips: peer.allowed_ips.iter().map(IpNet::trunc).collect(),
    };
    view.peers.values().map(|peer| (peer.public_key, tunnel(peer))).collect()
}

/// How the peers of a device are set for these tunnels; `found` says where they are reached, as far as that is known.
pub fn peer_settings(
    tunnels: &BTreeMap<WireGuardKey, Tunnel>,
    found: &BTreeMap<WireGuardKey, SocketAddr>,
    keepalive: Seconds,
) -> BTreeMap<WireGuardKey, PeerSettings> {
    let keepalive = u16::try_from(keepalive.0).unwrap_or(u16::MAX);
    let settings = |key: &WireGuardKey, tunnel: &Tunnel| PeerSettings {
        endpoint: found.get(key).copied(),
        allowed_ips: tunnel.allowed_ips.clone(),
        keepalive,
    };
    tunnels.iter().map(|(key, tunnel)| (*key, settings(key, tunnel))).collect()
}
