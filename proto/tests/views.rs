//! What a node is told survives the wire, whole and as a delta; and what is not exactly that is refused.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ed25519_dalek as ed25519;
use ipnet::IpNet;
use proptest::prelude::*;
use prost::Message;
use proto::convert::{Malformed, Position, Told, accept_update, encode_delta, encode_view};
use proto::sign;
use proto::wire::{self, Update, update::Body};
use schema::scalars::{Identity, Name, NetworkName, Seconds, WireGuardKey};
use schema::snapshot::Revision;
use schema::view::{Interface, Peer, Resolution, View, ViewDelta};

fn network() -> NetworkName {
    "corp".parse().unwrap()
}

fn node() -> Name {
    "n0".parse().unwrap()
}

fn server() -> ed25519::SigningKey {
    sign::from_seed(&[9; 32])
}

fn prefixes() -> impl Strategy<Value = BTreeSet<IpNet>> {
    let ipv4 = (any::<[u8; 4]>(), 0u8..=32).prop_map(|(at, length)| IpNet::new(IpAddr::from(at), length).unwrap());
    let ipv6 = (any::<[u8; 16]>(), 0u8..=128).prop_map(|(at, length)| IpNet::new(IpAddr::from(at), length).unwrap());
    prop::collection::btree_set(prop_oneof![ipv4, ipv6], 0..3)
}

/// The addresses of a machine: one of each family at most.
fn own() -> impl Strategy<Value = BTreeSet<IpNet>> {
    let ipv4 = (any::<[u8; 3]>(), 8u8..=32)
        .prop_map(|([b, c, d], length)| IpNet::new(IpAddr::from([10, b, c, d]), length).unwrap());
    let ipv6 = (any::<[u16; 7]>(), 16u8..=128).prop_map(|([b, c, d, e, f, g, h], length)| {
        IpNet::new(IpAddr::from([0xfd40, b, c, d, e, f, g, h]), length).unwrap()
    });
    (prop::option::of(ipv4), prop::option::of(ipv6)).prop_map(|(ipv4, ipv6)| ipv4.into_iter().chain(ipv6).collect())
}

fn names<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = BTreeMap<Name, Arc<T>>> {
    let name = (0u8..8).prop_map(|number| format!("n{number}").parse::<Name>().unwrap());
    prop::collection::btree_map(name, of.prop_map(Arc::new), 0..8)
}

fn peers() -> impl Strategy<Value = Peer> {
    let endpoint =
        prop::option::of(prop::sample::select(vec!["gw.example.net:1", "192.0.2.1:51821", "[2001:db8::1]:9"]));
    (any::<[u8; 32]>(), endpoint, prefixes()).prop_map(|(key, endpoint, allowed_ips)| Peer {
        public_key: WireGuardKey(key),
        endpoint: endpoint.map(|it| it.parse().unwrap()),
        allowed_ips,
    })
}

fn resolutions() -> impl Strategy<Value = Resolution> {
    let addresses = prop::collection::btree_set(any::<IpAddr>(), 0..3).prop_map(Resolution::Addresses);
    prop_oneof![addresses, Just(Resolution::Alias("www.example.net".parse().unwrap()))]
}

fn interfaces() -> impl Strategy<Value = Interface> {
    let numbers = (any::<u16>(), prop::option::of(1u16..), any::<u32>(), any::<u32>());
    (own(), numbers, any::<bool>(), any::<bool>()).prop_map(
        |(addresses, (listen_port, mtu, keepalive, check_in), listen_port_fixed, forward)| Interface {
            addresses,
            listen_port,
            listen_port_fixed,
            mtu,
            keepalive: Seconds(keepalive),
            check_in: Seconds(check_in),
            forward,
        },
    )
}

/// Views in which some names stand for what the peer of that name has, as most do.
fn views() -> impl Strategy<Value = View> {
    (interfaces(), names(peers()), names(resolutions()), any::<u8>()).prop_map(|(interface, peers, names, own)| {
        let (mut peers, mut names): (BTreeMap<Name, Arc<Peer>>, BTreeMap<Name, Arc<Resolution>>) = (peers, names);
        for (place, (name, peer)) in peers.iter_mut().enumerate() {
            if own & (1 << place) != 0 {
                let addresses: BTreeSet<IpAddr> = peer.allowed_ips.iter().map(IpNet::addr).collect();
                let allowed_ips = addresses.iter().copied().map(IpNet::from).collect();
                *peer = Arc::new(Peer { allowed_ips, ..(**peer).clone() });
                names.insert(name.clone(), Arc::new(Resolution::Addresses(addresses)));
            }
        }
        let (peers, names) = (peers.into_iter().collect(), names.into_iter().collect());
        View { network: network(), node: node(), interface, peers, names }
    })
}

fn signed(from: u64, to: u64, body: Body) -> Update {
    let mut update = Update { epoch: 5, from, to, body: Some(body), signature: Default::default() };
    sign::sign_update(&mut update, &network(), &node(), &server());
    update
}

fn accept(update: &Update, at: Option<(&View, u64)>) -> Result<View, Malformed> {
    let at = at.map(|(view, revision)| (view, Position { epoch: 5, revision: Revision(revision) }));
    let (network, node, server) = (network(), node(), sign::public_key(&server()));
    let (told, position) = accept_update(update, &network, &node, &Identity([1; 32]), &server, at)?;
    assert_eq!(position, Position { epoch: update.epoch, revision: Revision(update.to) });
    match told {
        Told::View(view) => Ok(view),
        Told::Removed => panic!("nothing here removes"),
    }
}

fn delta(before: &View, after: &View) -> Body {
    Body::Delta(encode_delta(&ViewDelta::between(before, after), after.peers.len()).into())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_view_comes_back_as_it_was_sent(view in views()) {
        prop_assert_eq!(accept(&signed(0, 3, Body::Whole(encode_view(&view).into())), None), Ok(view));
    }

    #[test]
    fn a_delta_leads_from_what_a_node_has_to_what_it_should_have(before in views(), after in views()) {
        let update = signed(3, 4, delta(&before, &after));
        prop_assert_eq!(accept(&update, Some((&before, 3))), Ok(after));
        prop_assert_eq!(accept(&update, Some((&before, 2))), Err(Malformed::OtherBase { from: 3, at: 2 }));
        prop_assert_eq!(accept(&update, None), Err(Malformed::OtherBase { from: 3, at: 0 }));
    }

    #[test]
    fn a_view_that_lost_a_peer_on_the_way_is_refused(view in views()) {
        let mut message = wire::View::decode(&*encode_view(&view)).unwrap();
        prop_assume!(message.peers.pop().is_some());
        let refused = accept(&signed(0, 3, Body::Whole(message.encode_to_vec().into())), None);
        prop_assert!(matches!(refused, Err(Malformed::PeerCount { .. })), "{:?}", refused);
    }

    #[test]
    fn a_flipped_bit_is_noticed(view in views(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
        let update = signed(0, 3, Body::Whole(encode_view(&view).into()));
        let mut bytes = update.encode_to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if let Ok(changed) = Update::decode(&*bytes) && changed != update {
            prop_assert!(accept(&changed, None).is_err());
        }
    }

    #[test]
    fn what_is_no_view_is_refused_and_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), view in views()) {
        let _ = accept(&signed(0, 3, Body::Whole(bytes.clone().into())), None);
        let _ = accept(&signed(3, 4, Body::Delta(bytes.into())), Some((&view, 3)));
    }
}

#[test]
fn a_machine_takes_no_address_that_no_mesh_has() {
    let with = |addresses: &[&str]| {
        let interface = Interface {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            listen_port: 1,
            listen_port_fixed: false,
            mtu: None,
            keepalive: Seconds(0),
            check_in: Seconds(1),
            forward: false,
        };
        let (peers, names) = Default::default();
        let view = View { network: network(), node: node(), interface, peers, names };
        accept(&signed(0, 1, Body::Whole(encode_view(&view).into())), None)
    };
    assert!(with(&["10.40.0.1/16", "fd40::1/64"]).is_ok());
    for bad in [
        &["128.0.0.1/1"][..],
        &["127.0.0.1/8"],
        &["169.254.169.254/32"],
        &["224.0.0.1/24"],
        &["fe80::1/64"],
        &["2000::1/3"],
        &["10.40.0.1/16", "10.41.0.1/16"],
    ] {
        assert_eq!(with(bad), Err(Malformed::Field("addresses")), "{bad:?}");
    }
}

#[test]
fn what_a_peer_is_called_is_said_once() {
    let name: Name = "a".repeat(63).parse().unwrap();
    let addresses: BTreeSet<IpAddr> = ["10.40.0.2".parse().unwrap(), "fd40::2".parse().unwrap()].into();
    let peer = Peer {
        public_key: WireGuardKey([7; 32]),
        endpoint: Some("[2001:db8::7]:51821".parse().unwrap()),
        allowed_ips: addresses.iter().copied().map(IpNet::from).collect(),
    };
    let delta = ViewDelta {
        peers: vec![(name.clone(), Arc::new(peer))],
        names: vec![(name.clone(), Arc::new(Resolution::Addresses(addresses)))],
        ..ViewDelta::default()
    };
    let body = encode_delta(&delta, 1);
    assert_eq!(String::from_utf8_lossy(&body).matches(name.as_str()).count(), 1);
    let update = signed(4_000_000_000, 4_000_000_001, Body::Delta(body.into()));
    assert!(update.encoded_len() <= 300, "{} bytes for the longest name and both families", update.encoded_len());
}
