//! From what should be to what is: the smallest set of steps, in an order that loses no packet of a peer that stays.
//!
//! Pure. Peers that go are removed before others are put, since an address belongs to one peer at a time. An endpoint is
//! told once: WireGuard itself moves it to where the peer was last heard, and is right as long as it hears the peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use schema::scalars::{Name, PublicKey};
use schema::view::{Interface, Peer, View};

use crate::device::state::{DeviceState, DeviceStep, PeerSettings, PeerState, PrivateKey};
use crate::system::link::state::{LinkState, LinkStep};

/// A session lives this long without a new handshake (REJECT_AFTER_TIME of the WireGuard paper, section 6), in seconds.
const SESSION: u64 = 180;

/// What a device should do.
pub struct Wanted<'a> {
    /// What the server told.
    pub view: &'a View,
    /// The machine's key.
    pub private_key: &'a PrivateKey,
    /// The port to listen on.
    pub listen_port: u16,
    /// Where peers are reached, as far as that is known.
    pub endpoints: &'a BTreeMap<Name, SocketAddr>,
}

/// The endpoints that the device was told last, by peer. Empty for a device that another process told.
pub type ToldEndpoints = BTreeMap<PublicKey, SocketAddr>;

/// What a device lacks; `now` is in seconds of the Unix epoch.
pub fn device_steps(wanted: &Wanted<'_>, observed: &DeviceState, told: &ToldEndpoints, now: u64) -> Vec<DeviceStep> {
    let Wanted { view, private_key, listen_port, endpoints } = wanted;
    let mut steps = Vec::new();
    if observed.public_key != Some(private_key.public()) {
        steps.push(DeviceStep::SetPrivateKey((*private_key).clone()));
    }
    if observed.listen_port != *listen_port {
        steps.push(DeviceStep::SetListenPort(*listen_port));
    }
    let wanted: BTreeMap<_, _> = view.peers.iter().map(|(name, peer)| (peer.public_key, (name, peer))).collect();
    let gone = observed.peers.keys().filter(|key| !wanted.contains_key(key));
    steps.extend(gone.map(|key| DeviceStep::RemovePeer(*key)));
    for (key, (name, peer)) in wanted {
        let settings = settings(view, peer, endpoints.get(name).copied());
        let lacks = match observed.peers.get(&key) {
            None => true,
            Some(seen) => differs(&settings, seen) || moved(&settings, seen, told.get(&key), now),
        };
        if lacks {
            steps.push(DeviceStep::PutPeer(key, settings));
        }
    }
    steps
}

fn settings(view: &View, peer: &Peer, endpoint: Option<SocketAddr>) -> PeerSettings {
    let keepalive = u16::try_from(view.interface.keepalive.0).unwrap_or(u16::MAX);
    PeerSettings { endpoint, allowed_ips: peer.allowed_ips.iter().map(IpNet::trunc).collect(), keepalive }
}

fn differs(wanted: &PeerSettings, seen: &PeerState) -> bool {
    wanted.allowed_ips != seen.settings.allowed_ips || wanted.keepalive != seen.settings.keepalive
}

/// Whether the peer has to be told where it is: elsewhere than before, or elsewhere than where it falls silent.
fn moved(wanted: &PeerSettings, seen: &PeerState, told: Option<&SocketAddr>, now: u64) -> bool {
    let Some(endpoint) = wanted.endpoint.filter(|endpoint| seen.settings.endpoint != Some(*endpoint)) else {
        return false;
    };
    let heard = seen.last_handshake.is_some_and(|at| now < at + SESSION);
    told.is_some_and(|told| *told != endpoint) || !heard
}

/// What an interface lacks.
pub fn link_steps(wanted: &Interface, mtu: u16, observed: &LinkState) -> Vec<LinkStep> {
    let mut steps = Vec::new();
    if observed.mtu != u32::from(mtu) {
        steps.push(LinkStep::SetMtu(mtu));
    }
    // Up before the addresses: where the machine has no IPv6, the last of them fails, and the rest holds.
    if !observed.up {
        steps.push(LinkStep::Up);
    }
    steps.extend(observed.addresses.difference(&wanted.addresses).map(|address| LinkStep::RemoveAddress(*address)));
    steps.extend(wanted.addresses.difference(&observed.addresses).map(|address| LinkStep::AddAddress(*address)));
    steps
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use schema::scalars::Seconds;

    use super::*;
    use crate::device::Device;
    use crate::device::fake::Fake;

    const KEY: PrivateKey = PrivateKey([9; 32]);

    fn endpoint(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 51821))
    }

    /// A View with these peers: the number of the key, of the address, and of the endpoint.
    fn view(peers: &[(u8, u8, Option<u8>)], keepalive: u32) -> (View, BTreeMap<Name, SocketAddr>) {
        let name = |key: u8| format!("n{key}").parse::<Name>().expect("a good name");
        let peer = |address: u8, key: u8| Peer {
            public_key: PublicKey([key; 32]),
            endpoint: None,
            allowed_ips: [format!("10.0.0.{address}/32").parse().expect("a good range")].into(),
        };
        let interface = Interface {
            addresses: ["10.0.0.200/24".parse().expect("a good address")].into(),
            listen_port: 51821,
            listen_port_fixed: false,
            mtu: None,
            keepalive: Seconds(keepalive),
            check_in: Seconds(15),
            forward: false,
        };
        let view = View {
            network: "corp".parse().expect("a good name"),
            node: name(200),
            interface,
            peers: peers.iter().map(|(key, address, _)| (name(*key), Arc::new(peer(*address, *key)))).collect(),
            names: imbl::OrdMap::new(),
        };
        let endpoints = peers.iter().filter_map(|(key, _, at)| Some((name(*key), endpoint((*at)?))));
        (view, endpoints.collect())
    }

    fn lacking(fake: &mut Fake, told: &ToldEndpoints, peers: &[(u8, u8, Option<u8>)], now: u64) -> Vec<DeviceStep> {
        let (view, endpoints) = view(peers, 20);
        let wanted = Wanted { view: &view, private_key: &KEY, listen_port: 51821, endpoints: &endpoints };
        device_steps(&wanted, &fake.observe().expect("it is there"), told, now)
    }

    fn bring(fake: &mut Fake, peers: &[(u8, u8, Option<u8>)]) {
        let steps = lacking(fake, &ToldEndpoints::new(), peers, 0);
        fake.apply(&steps).expect("it takes the steps");
        fake.take_applied();
    }

    #[test]
    fn a_device_that_is_as_it_should_be_is_left_alone() {
        let mut fake = Fake::default();
        bring(&mut fake, &[(1, 1, Some(1)), (2, 2, None)]);
        assert_eq!(lacking(&mut fake, &ToldEndpoints::new(), &[(1, 1, Some(1)), (2, 2, None)], 0), []);
    }

    #[test]
    fn a_change_of_one_peer_is_one_step() {
        let mut fake = Fake::default();
        bring(&mut fake, &[(1, 1, None), (2, 2, None), (3, 3, None)]);
        let steps = lacking(&mut fake, &ToldEndpoints::new(), &[(1, 1, None), (2, 9, None), (3, 3, None)], 0);
        assert!(matches!(&*steps, [DeviceStep::PutPeer(key, _)] if key.0 == [2; 32]), "{steps:?}");
        let steps = lacking(&mut fake, &ToldEndpoints::new(), &[(1, 1, None), (3, 3, None)], 0);
        assert_eq!(steps, [DeviceStep::RemovePeer(PublicKey([2; 32]))]);
    }

    #[test]
    fn where_a_peer_was_heard_holds_until_it_is_told_elsewhere_or_falls_silent() {
        let mut fake = Fake::default();
        bring(&mut fake, &[(1, 1, Some(1))]);
        let key = PublicKey([1; 32]);
        let told = ToldEndpoints::from([(key, endpoint(1))]);
        fake.hear(&key, endpoint(7), 1_000);
        assert_eq!(lacking(&mut fake, &told, &[(1, 1, Some(1))], 1_179), [], "it roamed");
        assert_eq!(lacking(&mut fake, &told, &[(1, 1, Some(1))], 1_180).len(), 1, "it fell silent there");
        assert_eq!(lacking(&mut fake, &told, &[(1, 1, Some(2))], 1_001).len(), 1, "it was told elsewhere");
        assert_eq!(lacking(&mut fake, &ToldEndpoints::new(), &[(1, 1, Some(2))], 1_001), [], "a new agent trusts it");
        assert_eq!(lacking(&mut fake, &told, &[(1, 1, None)], 9_999), [], "nothing is known");
    }

    #[test]
    fn a_link_gets_what_it_lacks_and_keeps_what_fits() {
        let (view, _) = view(&[], 20);
        let fresh = LinkState { addresses: Default::default(), mtu: 1500, up: false };
        let wanted = view.interface.addresses.clone();
        let address = *wanted.first().expect("there is one");
        let steps = link_steps(&view.interface, 1420, &fresh);
        assert_eq!(steps, [LinkStep::SetMtu(1420), LinkStep::Up, LinkStep::AddAddress(address)]);
        let done = LinkState { addresses: wanted, mtu: 1420, up: true };
        assert_eq!(link_steps(&view.interface, 1420, &done), []);
        let old = "10.0.0.7/16".parse().expect("a good address");
        let other = LinkState { addresses: [old].into(), ..done };
        let steps = link_steps(&view.interface, 1420, &other);
        assert_eq!(steps, [LinkStep::RemoveAddress(old), LinkStep::AddAddress(address)]);
    }

    proptest! {
        /// Whatever a device had, one pass makes it what it should be, and a second pass finds nothing to do.
        #[test]
        fn one_pass_suffices(
            before in proptest::collection::btree_map(1u8..20, (1u8..20, proptest::option::of(1u8..9)), 0..12),
            after in proptest::collection::btree_map(1u8..20, (1u8..20, proptest::option::of(1u8..9)), 0..12),
        ) {
            // An address belongs to one peer, as in every View.
            let unique = |peers: BTreeMap<u8, (u8, Option<u8>)>| {
                let mut taken = std::collections::BTreeSet::new();
                let peers = peers.into_iter().filter(|(_, (address, _))| taken.insert(*address));
                peers.map(|(key, (address, at))| (key, address, at)).collect::<Vec<_>>()
            };
            let (before, after) = (unique(before), unique(after));
            let mut fake = Fake::default();
            bring(&mut fake, &before);
            bring(&mut fake, &after);
            prop_assert_eq!(lacking(&mut fake, &ToldEndpoints::new(), &after, 0), []);
            let state = fake.observe().expect("it is there");
            prop_assert_eq!(state.peers.len(), after.len());
            for (key, address, _) in after {
                let range = format!("10.0.0.{address}/32").parse().expect("a good range");
                prop_assert_eq!(&state.peers[&PublicKey([key; 32])].settings.allowed_ips, &[range].into());
            }
        }
    }
}
