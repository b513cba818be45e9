//! What a device is given for the tunnels of a View.
//!
//! Pure. The model says which tunnels there are ([`View::tunnels`](schema::view::View::tunnels)); here they become
//! settings, with what is known only on this host: what the names of endpoints resolve to right now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use schema::scalars::{Seconds, WireGuardKey};
use schema::view::{Peer, Tunnel, View, ViewDelta, tunnel_changes};

use crate::device::state::PeerSettings;

/// What has changed in a View since it was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelChanges {
    /// The tunnels that are new or differ, and, as absent, those that are gone.
    pub tunnels: BTreeMap<WireGuardKey, Option<Tunnel>>,
    /// Whether names differ.
    pub names: bool,
    /// The addresses that other members have now (true), or have no longer.
    pub members: BTreeMap<IpAddr, bool>,
}

impl TunnelChanges {
    /// The changes from one View to another, at the cost of what differs; absent: more than tunnels and names differs.
    pub fn between(before: &View, after: &View) -> Option<Self> {
        let delta = ViewDelta::between(before, after);
        if delta.interface.is_some() {
            return None;
        }
        let named = |view: &View, name| {
            let peer = view.peers.get(name).filter(|peer: &&std::sync::Arc<Peer>| peer.named);
            peer.map(|peer| peer.addresses.clone())
        };
        let names = !delta.names.is_empty() || delta.peers.keys().any(|name| named(before, name) != named(after, name));
        let addresses = |view: &View| {
            let peers = delta.peers.keys().filter_map(|name| view.peers.get(name));
            peers.flat_map(|peer| peer.addresses.iter().copied()).collect::<BTreeSet<_>>()
        };
        let (had, has) = (addresses(before), addresses(after));
        let members = had.symmetric_difference(&has).map(|address| (*address, has.contains(address))).collect();
        let changes = tunnel_changes(before, after, &delta);
        let lost = changes.lost.into_iter().map(|key| (key, None));
        let tunnels = lost.chain(changes.put.into_iter().map(|(key, tunnel)| (key, Some(tunnel)))).collect();
        Some(Self { tunnels, names, members })
    }

    /// Adds what has changed since.
    pub fn extend(&mut self, later: Self) {
        let Self { tunnels, names, members } = later;
        self.tunnels.extend(tunnels);
        self.members.extend(members);
        self.names |= names;
    }
}

/// The settings of a device's peers for these tunnels; `found` says where they are reached, as far as that is known.
pub fn peer_settings(
    tunnels: &BTreeMap<WireGuardKey, Tunnel>,
    found: &BTreeMap<WireGuardKey, SocketAddr>,
    keepalive: Seconds,
) -> BTreeMap<WireGuardKey, PeerSettings> {
    let keepalive = u16::try_from(keepalive.0).unwrap_or(u16::MAX);
    let settings = |key: &WireGuardKey, tunnel: &Tunnel| PeerSettings {
        endpoint: found.get(key).copied(),
        allowed_ips: tunnel.allowed_ips.iter().map(IpNet::trunc).collect(),
        keepalive,
    };
    tunnels.iter().map(|(key, tunnel)| (*key, settings(key, tunnel))).collect()
}
