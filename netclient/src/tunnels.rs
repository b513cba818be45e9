//! From a View to what WireGuard gets: one tunnel for each peer that there is one to.
//!
//! Pure. Where peers are found by name, somebody else looks the name up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use schema::scalars::{Endpoint, Seconds, WireGuardKey};
use schema::view::{Peer, View};

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
    view.peers.values().map(|peer| (peer.public_key, tunnel(peer))).collect()
}

fn tunnel(peer: &Peer) -> Tunnel {
    let allowed_ips = peer.allowed_ips.iter().map(IpNet::trunc).collect();
    Tunnel { endpoint: peer.endpoint.clone(), allowed_ips }
}

/// What has changed in a View since it was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The tunnels that are new or differ, and, as absent, those that are gone.
    pub tunnels: BTreeMap<WireGuardKey, Option<Tunnel>>,
    /// Whether names differ.
    pub names: bool,
}

impl Changes {
    /// What leads from one View to another, at the cost of what differs; absent: more than tunnels and names differs.
    pub fn between(before: &View, after: &View) -> Option<Self> {
        if before.interface != after.interface {
            return None;
        }
        let (mut put, mut tunnels) = (Vec::new(), BTreeMap::new());
        for item in before.peers.diff(&after.peers) {
            match item {
                DiffItem::Add(_, new) => put.push(new),
                DiffItem::Update { old: (_, old), new: (_, new) } => {
                    tunnels.insert(old.public_key, None);
                    put.push(new);
                }
                DiffItem::Remove(_, old) => drop(tunnels.insert(old.public_key, None)),
            }
        }
        // After those that are gone: a node may have come to have the key of another.
        tunnels.extend(put.into_iter().map(|peer| (peer.public_key, Some(tunnel(peer)))));
        Some(Self { tunnels, names: before.names.diff(&after.names).next().is_some() })
    }

    /// Adds what has changed since.
    pub fn extend(&mut self, later: Self) {
        let Self { tunnels, names } = later;
        self.tunnels.extend(tunnels);
        self.names |= names;
    }
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
