//! From the observed to the desired state: the smallest set of steps, in an order that loses no packet of a
//! peer that stays.
//!
//! Pure, and the only place that computes them: the tunnels of networks, of agents to a server and of a
//! server to agents all come from [`device_steps`] and [`link_steps`]. Peers that go are removed before
//! others are put, since an address belongs to one peer at a time. An endpoint is applied once: WireGuard
//! itself moves it to where the peer was last heard, and is right as long as it hears the peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use schema::scalars::WireGuardKey;

use crate::device::state::{DeviceState, DeviceStep, PeerSettings, PeerState, PrivateKey};
use crate::outside::GROUP;
use crate::system::link::state::{LinkState, LinkStep};

/// A session lives this long without a new handshake (REJECT_AFTER_TIME of the WireGuard paper, section 6),
/// in seconds.
const SESSION: u64 = 180;
/// How far the time of a handshake may be ahead only because times are rounded, in seconds.
const CLOCKS: u64 = 2;

/// What a device should do.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The private key.
    pub private_key: &'a PrivateKey,
    /// The UDP port to listen on; absent: any will do.
    pub listen_port: Option<u16>,
    /// The mark of the packets that carry the tunnel.
    pub mark: u32,
    /// The peers, all of them.
    pub peers: &'a BTreeMap<WireGuardKey, PeerSettings>,
}

/// The endpoints that were last applied to a device, by peer. Empty for a device that another process
/// created.
pub type AppliedEndpoints = BTreeMap<WireGuardKey, SocketAddr>;

/// What a device lacks; `now` is in seconds of the Unix epoch.
pub fn device_steps(
    wanted: Wanted<'_>,
    observed: &DeviceState,
    applied: &AppliedEndpoints,
    now: u64,
) -> Vec<DeviceStep> {
    let Wanted { private_key, listen_port, mark, peers } = wanted;
    let mut steps = Vec::new();
    if observed.mark != mark {
        steps.push(DeviceStep::SetMark(mark));
    }
    if observed.public_key != Some(private_key.public()) {
        steps.push(DeviceStep::SetPrivateKey(private_key.clone()));
    }
    if let Some(port) = listen_port.filter(|port| observed.listen_port != *port) {
        steps.push(DeviceStep::SetListenPort(port));
    }
    let gone = observed.peers.keys().filter(|key| !peers.contains_key(key));
    steps.extend(gone.map(|key| DeviceStep::RemovePeer(*key)));
    for (key, settings) in peers {
        let lacks = match observed.peers.get(key) {
            None => true,
            Some(seen) => differs(settings, seen) || moved(settings, seen, applied.get(key), now),
        };
        if lacks {
            steps.push(DeviceStep::PutPeer(*key, settings.clone()));
        }
    }
    steps
}

/// What a device lacks that was up to date, if only these peers are gone, and only these are new or differ.
///
/// The device is not observed, so the cost is that of what has changed. An endpoint that was applied before
/// is not applied again: the peer may have been heard elsewhere since.
pub fn change_steps(
    gone: &[WireGuardKey],
    put: BTreeMap<WireGuardKey, PeerSettings>,
    applied: &AppliedEndpoints,
) -> Vec<DeviceStep> {
    let gone = gone.iter().map(|key| DeviceStep::RemovePeer(*key));
    let put = put.into_iter().map(|(key, settings)| {
        let endpoint = settings.endpoint.filter(|endpoint| applied.get(&key) != Some(endpoint));
        DeviceStep::PutPeer(key, PeerSettings { endpoint, ..settings })
    });
    gone.chain(put).collect()
}

fn differs(wanted: &PeerSettings, seen: &PeerState) -> bool {
    wanted.allowed_ips != seen.settings.allowed_ips || wanted.keepalive != seen.settings.keepalive
}

/// Whether the peer's endpoint has to be applied: it has changed, or the peer is silent at the current one.
fn moved(wanted: &PeerSettings, seen: &PeerState, applied: Option<&SocketAddr>, now: u64) -> bool {
    let Some(endpoint) = wanted.endpoint.filter(|endpoint| seen.settings.endpoint != Some(*endpoint)) else {
        return false;
    };
    // One that seems to be yet to come was made before the clock was set back, nobody knows how long ago.
    let heard = seen.last_handshake.is_some_and(|at| at <= now + CLOCKS && now < at + SESSION);
    applied.is_some_and(|applied| *applied != endpoint) || !heard
}

/// What an interface should have.
#[derive(Clone, Copy)]
pub struct WantedLink<'a> {
    /// The addresses, each with the prefix of its network.
    pub addresses: &'a BTreeSet<IpNet>,
    /// The one other address that an IPv4 address leads to; absent: it leads to the network of its prefix.
    pub peer: Option<Ipv4Addr>,
    /// The largest packet, in bytes.
    pub mtu: u16,
}

/// What an interface lacks.
pub fn link_steps(wanted: WantedLink<'_>, observed: &LinkState) -> Vec<LinkStep> {
    let WantedLink { addresses, peer, mtu } = wanted;
    let mut steps = Vec::new();
    if observed.group != GROUP {
        steps.push(LinkStep::SetGroup(GROUP));
    }
    if observed.mtu != u32::from(mtu) {
        steps.push(LinkStep::SetMtu(mtu));
    }
    // Up before the addresses: if the host has no IPv6, the last of them fails, and the rest works.
    if !observed.up {
        steps.push(LinkStep::Up);
    }
    let add = |address: &IpNet| match (peer, address.addr()) {
        (Some(peer), IpAddr::V4(local)) => LinkStep::AddPointToPoint { local, peer },
        (Some(_) | None, _) => LinkStep::AddAddress(*address),
    };
    steps.extend(observed.addresses.difference(addresses).map(|address| LinkStep::RemoveAddress(*address)));
    steps.extend(addresses.difference(&observed.addresses).map(add));
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::Device;
    use crate::device::fake::FakeDevice;
    use crate::outside::Mark;

    const KEY: PrivateKey = PrivateKey([9; 32]);

    fn endpoint(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 51821))
    }

    /// Peers by the number of the key, of the address, and of the endpoint.
    fn settings(peers: &[(u8, u8, Option<u8>)]) -> BTreeMap<WireGuardKey, PeerSettings> {
        let settings = |address: u8, at: Option<u8>| PeerSettings {
            endpoint: at.map(endpoint),
            allowed_ips: [format!("10.0.0.{address}/32").parse().expect("a good range")].into(),
            keepalive: 20,
        };
        peers.iter().map(|(key, address, at)| (WireGuardKey([*key; 32]), settings(*address, *at))).collect()
    }

    fn lacking(
        fake: &mut FakeDevice,
        applied: &AppliedEndpoints,
        peers: &[(u8, u8, Option<u8>)],
        now: u64,
    ) -> Vec<DeviceStep> {
        let wanted = Wanted {
            private_key: &KEY,
            listen_port: Some(51821),
            mark: Mark::default().bits(),
            peers: &settings(peers),
        };
        device_steps(wanted, &fake.observe().expect("it is there"), applied, now)
    }

    fn bring(fake: &mut FakeDevice, peers: &[(u8, u8, Option<u8>)]) {
        let steps = lacking(fake, &AppliedEndpoints::new(), peers, 0);
        fake.apply(&steps).expect("it takes the steps");
        fake.take_applied();
    }

    #[test]
    fn a_device_that_is_as_it_should_be_is_left_alone() {
        let mut fake = FakeDevice::default();
        bring(&mut fake, &[(1, 1, Some(1)), (2, 2, None)]);
        assert_eq!(lacking(&mut fake, &AppliedEndpoints::new(), &[(1, 1, Some(1)), (2, 2, None)], 0), []);
    }

    #[test]
    fn a_change_of_one_peer_is_one_step() {
        let mut fake = FakeDevice::default();
        bring(&mut fake, &[(1, 1, None), (2, 2, None), (3, 3, None)]);
        let steps =
            lacking(&mut fake, &AppliedEndpoints::new(), &[(1, 1, None), (2, 9, None), (3, 3, None)], 0);
        assert!(matches!(&*steps, [DeviceStep::PutPeer(key, _)] if key.0 == [2; 32]), "{steps:?}");
        let steps = lacking(&mut fake, &AppliedEndpoints::new(), &[(1, 1, None), (3, 3, None)], 0);
        assert_eq!(steps, [DeviceStep::RemovePeer(WireGuardKey([2; 32]))]);
    }

    #[test]
    fn where_a_peer_was_heard_holds_until_it_is_put_elsewhere_or_falls_silent() {
        let mut fake = FakeDevice::default();
        bring(&mut fake, &[(1, 1, Some(1))]);
        let key = WireGuardKey([1; 32]);
        let applied = AppliedEndpoints::from([(key, endpoint(1))]);
        fake.hear(&key, endpoint(7), 1_000);
        assert_eq!(lacking(&mut fake, &applied, &[(1, 1, Some(1))], 1_179), [], "it roamed");
        assert_eq!(lacking(&mut fake, &applied, &[(1, 1, Some(1))], 1_180).len(), 1, "it fell silent there");
        assert_eq!(lacking(&mut fake, &applied, &[(1, 1, Some(2))], 1_001).len(), 1, "it was put elsewhere");
        assert_eq!(
            lacking(&mut fake, &AppliedEndpoints::new(), &[(1, 1, Some(2))], 1_001),
            [],
            "a new agent trusts it"
        );
        assert_eq!(lacking(&mut fake, &applied, &[(1, 1, None)], 9_999), [], "nothing is known");
    }

    #[test]
    fn a_handshake_that_the_clock_was_set_back_behind_says_nothing() {
        let mut fake = FakeDevice::default();
        bring(&mut fake, &[(1, 1, Some(1))]);
        let key = WireGuardKey([1; 32]);
        let applied = AppliedEndpoints::from([(key, endpoint(1))]);
        fake.hear(&key, endpoint(7), 100_000);
        let put = |fake: &mut FakeDevice, now: u64| lacking(fake, &applied, &[(1, 1, Some(1))], now).len();
        assert_eq!([put(&mut fake, 100_000), put(&mut fake, 99_999)], [0, 0], "times are rounded");
        assert_eq!(put(&mut fake, 100_000 - 86_400), 1, "where it was heard may be long over");
    }

    #[test]
    fn a_link_gets_what_it_lacks_and_keeps_what_fits() {
        let address = "10.0.0.200/24".parse().expect("a good address");
        let wanted = WantedLink { addresses: &[address].into(), peer: None, mtu: 1420 };
        let fresh = LinkState { addresses: BTreeSet::new(), mtu: 1500, up: false, group: 0 };
        let steps = link_steps(wanted, &fresh);
        assert_eq!(
            steps,
            [LinkStep::SetGroup(GROUP), LinkStep::SetMtu(1420), LinkStep::Up, LinkStep::AddAddress(address)]
        );
        let done = LinkState { addresses: [address].into(), mtu: 1420, up: true, group: GROUP };
        assert_eq!(link_steps(wanted, &done), []);
        let old = "10.0.0.7/16".parse().expect("a good address");
        let steps = link_steps(wanted, &LinkState { addresses: [old].into(), ..done });
        assert_eq!(steps, [LinkStep::RemoveAddress(old), LinkStep::AddAddress(address)]);
    }

    #[test]
    fn a_link_of_two_ends_leads_to_the_other_one() {
        let (local, peer) = (Ipv4Addr::new(10, 101, 0, 5), Ipv4Addr::new(10, 101, 0, 1));
        let wanted = WantedLink { addresses: &[host(local)].into(), peer: Some(peer), mtu: 1280 };
        let moved = LinkState { addresses: [host(peer)].into(), mtu: 1280, up: true, group: GROUP };
        let steps = link_steps(wanted, &moved);
        assert_eq!(steps, [LinkStep::RemoveAddress(host(peer)), LinkStep::AddPointToPoint { local, peer }]);
        assert_eq!(link_steps(wanted, &LinkState { addresses: [host(local)].into(), ..moved }), []);
    }

    fn host(address: Ipv4Addr) -> IpNet {
        IpNet::from(IpAddr::V4(address))
    }

    /// Peers of which each has an address of its own, as in every View.
    fn unique(peers: BTreeMap<u8, (u8, Option<u8>)>) -> Vec<(u8, u8, Option<u8>)> {
        let mut taken = BTreeSet::new();
        let peers = peers.into_iter().filter(|(_, (address, _))| taken.insert(*address));
        peers.map(|(key, (address, at))| (key, address, at)).collect()
    }

    #[test]
    fn a_peer_that_changed_keeps_the_place_where_it_was_heard() {
        let mut fake = FakeDevice::default();
        bring(&mut fake, &[(1, 1, Some(1))]);
        let key = WireGuardKey([1; 32]);
        let applied = AppliedEndpoints::from([(key, endpoint(1))]);
        fake.hear(&key, endpoint(7), 1_000);
        let at = |fake: &mut FakeDevice| fake.observe().expect("it is there").peers[&key].settings.endpoint;
        for (wanted, heard) in [((1, 2, Some(1)), 7), ((1, 3, None), 7), ((1, 3, Some(2)), 2)] {
            let steps = change_steps(&[], settings(&[wanted]), &applied);
            fake.apply(&steps).expect("it takes the steps");
            assert_eq!(at(&mut fake), Some(endpoint(heard)), "{wanted:?}");
        }
    }

    proptest! {
        /// Whatever a device had, one pass makes it what it should be, and a second pass finds nothing to do.
        #[test]
        fn one_pass_suffices(
            before in proptest::collection::btree_map(1u8..20, (1u8..20, proptest::option::of(1u8..9)), 0..12),
            after in proptest::collection::btree_map(1u8..20, (1u8..20, proptest::option::of(1u8..9)), 0..12),
        ) {
            let (before, after) = (unique(before), unique(after));
            let mut fake = FakeDevice::default();
            bring(&mut fake, &before);
            bring(&mut fake, &after);
            prop_assert_eq!(lacking(&mut fake, &AppliedEndpoints::new(), &after, 0), []);
            let state = fake.observe().expect("it is there");
            prop_assert_eq!(state.peers.len(), after.len());
            for (key, address, _) in after {
                let range = format!("10.0.0.{address}/32").parse().expect("a good range");
                prop_assert_eq!(&state.peers[&WireGuardKey([key; 32])].settings.allowed_ips, &[range].into());
            }
        }

        /// A device that follows what changed has what one has that was compared as a whole.
        #[test]
        fn following_a_change_is_as_good_as_comparing_everything(
            before in proptest::collection::btree_map(1u8..12, (1u8..12, proptest::option::of(1u8..4)), 0..8),
            after in proptest::collection::btree_map(1u8..12, (1u8..12, proptest::option::of(1u8..4)), 0..8),
        ) {
            let (before, after) = (unique(before), unique(after));
            let mut fake = FakeDevice::default();
            bring(&mut fake, &before);
            let (before, wanted) = (settings(&before), settings(&after));
            let applied = before.iter().filter_map(|(key, peer)| Some((*key, peer.endpoint?))).collect();
            let gone: Vec<_> = before.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
            let put = wanted.into_iter().filter(|(key, peer)| before.get(key) != Some(peer)).collect();
            let steps = change_steps(&gone, put, &applied);
            fake.apply(&steps).expect("it takes the steps");
            prop_assert_eq!(lacking(&mut fake, &applied, &after, 0), []);
        }
    }
}
