//! What a device is given for the tunnels of a View.
//!
//! Pure. The model says which tunnels there are ([`View::tunnels`](schema::view::View::tunnels)); here they
//! become settings, with what is known only on this host: what the names of endpoints resolve to right now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use schema::rules::endpoints::refused_everywhere;
use schema::scalars::{Endpoint, Seconds, WireGuardKey};
use schema::view::{Peer, Tunnel, View, ViewDelta, tunnel_changes};

use crate::addresses::{Addresses, choose};
use crate::device::state::{Kind, PeerSettings};
use crate::filter::FilterChanges;

/// Where the names of peers' endpoints lead: what is known is used at once, and what is looked up meanwhile
/// is a change of its own.
#[derive(Debug, Default)]
pub struct EndpointNames {
    known: Addresses,
    /// The tunnels whose endpoint is a name.
    named: BTreeMap<WireGuardKey, Tunnel>,
    /// What is to be looked up, and what is being looked up.
    due: BTreeSet<Endpoint>,
    asked: BTreeSet<Endpoint>,
}

impl EndpointNames {
    /// With what was known before.
    pub fn new(known: Addresses) -> Self {
        Self { known, ..Self::default() }
    }

    /// What is known, to be stored.
    pub fn known(&self) -> &Addresses {
        &self.known
    }

    /// These are all tunnels: each name is looked up anew, and others are forgotten.
    pub fn replace(&mut self, tunnels: &BTreeMap<WireGuardKey, Tunnel>) {
        self.named.clear();
        self.follow(&[], tunnels);
        let names: BTreeSet<String> =
            self.named.values().filter_map(|tunnel| Some(tunnel.endpoint.as_ref()?.to_string())).collect();
        self.known.retain(|name| names.contains(name));
    }

    /// These tunnels are gone, and these are new or differ.
    pub fn follow(&mut self, gone: &[WireGuardKey], put: &BTreeMap<WireGuardKey, Tunnel>) {
        for key in gone.iter().chain(put.keys()) {
            self.named.remove(key);
        }
        for (key, tunnel) in put {
            if let Some(endpoint) =
                tunnel.endpoint.as_ref().filter(|endpoint| endpoint.socket_addr().is_none())
            {
                self.due.insert(endpoint.clone());
                self.named.insert(*key, tunnel.clone());
            }
        }
    }

    /// Where peers are reached: addresses as they are, names as they resolved last. What the law for
    /// endpoints refuses is left out, as if the peer had no endpoint: it must send first.
    pub fn found(
        &self,
        tunnels: &BTreeMap<WireGuardKey, Tunnel>,
        view: &View,
    ) -> BTreeMap<WireGuardKey, SocketAddr> {
        let at = |endpoint: &Endpoint| {
            endpoint.socket_addr().or_else(|| self.known.of(&endpoint.to_string()).first().copied())
        };
        let found = tunnels.iter().filter_map(|(key, tunnel)| Some((*key, at(tunnel.endpoint.as_ref()?)?)));
        let mut found = found.collect();
        keep_endpoints(&mut found, view);
        found
    }

    /// What is to be looked up now: each counts as asked until [`EndpointNames::resolved`].
    pub fn take_due(&mut self) -> Vec<Endpoint> {
        let new: Vec<_> = std::mem::take(&mut self.due).difference(&self.asked).cloned().collect();
        self.asked.extend(new.iter().cloned());
        new
    }

    /// Takes in what a name resolves to; nothing, if it does not right now, which leaves what was known.
    /// Returns the tunnels that lead elsewhere by it.
    pub fn resolved(&mut self, endpoint: &Endpoint, found: &[SocketAddr]) -> BTreeMap<WireGuardKey, Tunnel> {
        self.asked.remove(endpoint);
        let name = endpoint.to_string();
        let before = self.known.of(&name).first().copied();
        let chosen = choose(found, before);
        if !self.known.learn(&name, chosen.as_slice()) {
            return BTreeMap::new();
        }
        let leads_there = |(_, tunnel): &(&_, &Tunnel)| tunnel.endpoint.as_ref() == Some(endpoint);
        let moved = self.named.iter().filter(leads_there);
        moved.map(|(key, tunnel)| (*key, tunnel.clone())).collect()
    }
}

/// Drops what is no endpoint by the law for endpoints ([`schema::rules::endpoints`]), as far as a View tells
/// it: what the name of a peer resolves to is known only on this host. A member's address would send the
/// tunnel through itself.
pub fn keep_endpoints(found: &mut BTreeMap<WireGuardKey, SocketAddr>, view: &View) {
    found.retain(|_, at| refused_everywhere(at.ip()).is_none());
    // Looking at every peer costs as much as the network is large, and no member has an address outside of
    // its ranges.
    let is_inside = |at: &SocketAddr| view.interface.addresses.iter().any(|range| range.contains(&at.ip()));
    if found.values().any(is_inside) {
        let own = view.interface.addresses.iter().map(IpNet::addr);
        let members: BTreeSet<IpAddr> =
            view.peers.values().flat_map(|peer| peer.addresses.iter().copied()).chain(own).collect();
        found.retain(|_, at| !members.contains(&at.ip()));
    }
}

/// What has changed in a View since it was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelChanges {
    /// The tunnels that are new or differ, and, as absent, those that are gone.
    pub tunnels: BTreeMap<WireGuardKey, Option<Tunnel>>,
    /// Whether names differ.
    pub names: bool,
    /// The addresses that other members have now (true), or have no longer.
    pub members: BTreeMap<IpAddr, bool>,
    /// What members may open at the node.
    pub filter: FilterChanges,
}

impl TunnelChanges {
    /// The changes from one View to another, at the cost of what differs; absent: more than tunnels and names
    /// differs, as where a range comes or goes. One that another peer carries is a matter of tunnels.
    pub fn between(before: &View, after: &View) -> Option<Self> {
        let delta = ViewDelta::between(before, after);
        let is_carried =
            |view: &View, range| view.routes.get(range).map(|route| (route.via.is_some(), route.carried));
        let rerouted = delta.routes.keys().any(|range| is_carried(before, range) != is_carried(after, range));
        if delta.interface.is_some() || rerouted || !delta.forwards.is_empty() {
            return None;
        }
        let named = |view: &View, name| {
            let peer = view.peers.get(name).filter(|peer: &&std::sync::Arc<Peer>| peer.named);
            peer.map(|peer| peer.addresses.clone())
        };
        let names = !delta.names.is_empty()
            || delta.peers.keys().any(|name| named(before, name) != named(after, name));
        let addresses = |view: &View| {
            let peers = delta.peers.keys().filter_map(|name| view.peers.get(name));
            peers.flat_map(|peer| peer.addresses.iter().copied()).collect::<BTreeSet<_>>()
        };
        let (had, has) = (addresses(before), addresses(after));
        let members =
            had.symmetric_difference(&has).map(|address| (*address, has.contains(address))).collect();
        let changes = tunnel_changes(before, after, &delta);
        let lost = changes.lost.into_iter().map(|key| (key, None));
        let tunnels = lost.chain(changes.put.into_iter().map(|(key, tunnel)| (key, Some(tunnel)))).collect();
        let filter = FilterChanges::between(before, after, &delta);
        Some(Self { tunnels, names, members, filter })
    }

    /// Takes out the tunnels that are gone, as changes of their own.
    #[must_use]
    pub fn split_gone(&mut self) -> Self {
        let gone = self.tunnels.extract_if(.., |_, tunnel| tunnel.is_none()).collect();
        Self { tunnels: gone, ..Self::default() }
    }

    /// Tunnels that lead elsewhere.
    pub fn of(moved: BTreeMap<WireGuardKey, Tunnel>) -> Self {
        let tunnels = moved.into_iter().map(|(key, tunnel)| (key, Some(tunnel))).collect();
        Self { tunnels, ..Self::default() }
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds tunnels that lead elsewhere; of one that has changed as well, that is known already.
    pub fn redirect(&mut self, moved: BTreeMap<WireGuardKey, Tunnel>) {
        for (key, tunnel) in moved {
            self.tunnels.entry(key).or_insert(Some(tunnel));
        }
    }

    /// Adds what has changed since.
    pub fn extend(&mut self, later: Self) {
        let Self { tunnels, names, members, filter } = later;
        self.filter.extend(filter);
        self.tunnels.extend(tunnels);
        self.members.extend(members);
        self.names |= names;
    }
}

/// The MTU of an interface whose device passes on packets of at most `largest` bytes; absent: of any size.
pub fn fitting_mtu(wanted: u16, largest: Option<u16>) -> u16 {
    largest.map_or(wanted, |largest| wanted.min(largest))
}

/// The message about an MTU that does not fit the device; nothing if it fits.
pub fn mtu_problem(declared: Option<u16>, largest: Option<u16>) -> Option<String> {
    let (declared, mtu) = (declared?, fitting_mtu(declared?, largest));
    (declared != mtu).then(|| {
        format!(
            "the network's mtu is {declared}, but WireGuard on this host is a process that passes on at most {mtu} bytes: the interface has mtu {mtu}"
        )
    })
}

/// The message about a device that is of another kind than a setting wants; nothing if it is of that kind, or
/// if any will do.
pub fn kind_problem(interface: &str, kind: Kind, wanted: Option<Kind>) -> Option<String> {
    let wanted = wanted.filter(|wanted| *wanted != kind)?;
    Some(format!(
        "the setting `device` (NETCLIENT_DEVICE) wants a {wanted} device, and {interface} is a {kind} device, since it \
         existed before; remove the setting, or, if this host can make a {wanted} device, have it made anew, which interrupts \
         the network for some seconds: ip link delete {interface}"
    ))
}

/// The settings of a device's peers for these tunnels; `found` says where they are reached, as far as that is
/// known.
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

#[cfg(test)]
pub(crate) mod tests {
    use schema::view::Interface;

    use super::*;

    /// A View without peers.
    pub(crate) fn view(network: &str, address: &str) -> View {
        let interface = Interface {
            addresses: [address.parse().expect("good")].into(),
            listen_port: 51_821,
            listen_port_fixed: false,
            mtu: None,
            keepalive: Seconds(20),
            check_in: Seconds(15),
            carrier: None,
            forward: false,
            restricted: false,
            class: Default::default(),
            named: true,
            resolvers: Default::default(),
        };
        View {
            network: network.parse().expect("good"),
            node: "a".parse().expect("good"),
            interface,
            peers: Default::default(),
            access: Default::default(),
            routes: Default::default(),
            forwards: Default::default(),
            guarded: Default::default(),
            names: Default::default(),
        }
    }

    fn named(number: u8, endpoint: &str) -> (WireGuardKey, Tunnel) {
        let tunnel = Tunnel {
            peer: format!("n{number}").parse().expect("good"),
            endpoint: Some(endpoint.parse().expect("good")),
            allowed_ips: BTreeSet::new(),
        };
        (WireGuardKey([number; 32]), tunnel)
    }

    #[test]
    fn a_name_is_looked_up_once_at_a_time_and_keeps_its_address_when_it_does_not_resolve() {
        let [gw, other, address] =
            ["gw.example.net:5", "other.example.net:5", "192.0.2.1:5"].map(|text| text.to_owned());
        let all = BTreeMap::from([named(1, &gw), named(2, &gw), named(3, &other), named(4, &address)]);
        let endpoint = |text: &str| text.parse::<Endpoint>().expect("good");
        let mut names = EndpointNames::default();
        names.replace(&all);
        assert_eq!(names.take_due(), [endpoint(&gw), endpoint(&other)]);
        names.replace(&all);
        assert_eq!(names.take_due(), [], "both are being looked up");
        let at = |number: u8| SocketAddr::from(([192, 0, 2, number], 5));
        let moved = names.resolved(&endpoint(&gw), &[at(7)]);
        assert_eq!(moved.len(), 2);
        assert_eq!(names.resolved(&endpoint(&other), &[]).len(), 0);
        names.replace(&all);
        assert_eq!(names.take_due().len(), 2, "and again");
        assert_eq!(names.resolved(&endpoint(&gw), &[at(8), at(7)]).len(), 0, "it leads there still");
        assert_eq!(names.resolved(&endpoint(&gw), &[]).len(), 0);
        assert_eq!(names.known().of(&gw), [at(7)]);
        names.follow(&[WireGuardKey([1; 32])], &BTreeMap::from([named(2, &address)]));
        assert_eq!(names.resolved(&endpoint(&gw), &[at(9)]).len(), 0, "no peer has it any more");
        names.replace(&BTreeMap::new());
        assert_eq!(*names.known(), Addresses::default());
    }

    #[test]
    fn an_mtu_that_the_device_cannot_pass_on_is_cut_and_reported() {
        assert_eq!(
            [fitting_mtu(8_920, Some(4_064)), fitting_mtu(1_420, Some(4_064)), fitting_mtu(8_920, None)],
            [4_064, 1_420, 8_920]
        );
        let problem = mtu_problem(Some(8_920), Some(4_064)).expect("it is cut");
        assert!(problem.contains("mtu is 8920") && problem.contains("has mtu 4064"), "{problem}");
        for (declared, largest) in [(Some(8_920), None), (Some(4_064), Some(4_064)), (None, Some(4_064))] {
            assert_eq!(mtu_problem(declared, largest), None, "{declared:?} and {largest:?}");
        }
    }

    #[test]
    fn a_peer_is_not_reached_where_no_other_host_is_or_where_a_member_is() {
        let peer = Peer {
            public_key: Some(WireGuardKey([1; 32])),
            endpoint: "gw.example.net:51821".parse().ok(),
            addresses: ["10.40.0.2".parse().expect("good")].into(),
            via: None,
            class: Default::default(),
            carries: false,
            named: true,
        };
        let mut view = view("corp", "10.40.0.1/24");
        view.peers.insert("b".parse().expect("good"), std::sync::Arc::new(peer));
        for (at, kept) in [
            ("192.0.2.7:5", true),
            ("10.40.0.9:5", true),
            ("10.40.0.1:5", false),
            ("10.40.0.2:5", false),
            ("127.0.0.1:5", false),
            ("[::ffff:127.0.0.1]:5", false),
            ("255.255.255.255:5", false),
        ] {
            let mut found = BTreeMap::from([(WireGuardKey([1; 32]), at.parse().expect("good"))]);
            keep_endpoints(&mut found, &view);
            assert_eq!(!found.is_empty(), kept, "{at}");
        }
    }
}
