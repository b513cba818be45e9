//! What a node is sent survives the wire, whole and as a delta; anything else is refused.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ed25519_dalek as ed25519;
use ipnet::IpNet;
use proptest::prelude::*;
use prost::Message;
use proto::convert::{DecodedUpdate, Malformed, accept_update, encode_delta, encode_view};
use proto::position::{Position, Stamp};
use proto::sign::{self, SignedBody};
use proto::wire::{self, Update};
use schema::access::{Access, ClassId, Ports};
use schema::chain::ChainHash;
use schema::scalars::{Identity, Name, NetworkName, Seconds, WireGuardKey};
use schema::snapshot::Revision;
use schema::view::{Changes, Counts, Forward, Guarded, Interface, Peer, Resolution, Route, View, ViewDelta};

fn network() -> NetworkName {
    "corp".parse().unwrap()
}

fn node() -> Name {
    "n0".parse().unwrap()
}

fn server() -> ed25519::SigningKey {
    sign::from_seed(&[9; 32])
}

fn ranges() -> impl Strategy<Value = IpNet> {
    let ipv4 =
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(at, length)| IpNet::new(IpAddr::from(at), length).unwrap());
    let ipv6 =
        (any::<[u8; 16]>(), 0u8..=128).prop_map(|(at, length)| IpNet::new(IpAddr::from(at), length).unwrap());
    prop_oneof![ipv4, ipv6]
}

fn name() -> impl Strategy<Value = Name> {
    (0u8..8).prop_map(|number| format!("n{number}").parse().unwrap())
}

fn routes() -> impl Strategy<Value = BTreeMap<IpNet, Arc<Route>>> {
    let route = (prop::option::weighted(0.8, name()), classes(), any::<bool>())
        .prop_map(|(via, class, carried)| Arc::new(Route { via, class, carried }));
    prop::collection::btree_map(ranges(), route, 0..3)
}

fn forwards() -> impl Strategy<Value = Forward> {
    let interface = prop::option::of(Just("eth1".parse().unwrap()));
    (prop::collection::btree_map(ranges(), classes(), 0..3), interface, any::<bool>())
        .prop_map(|(ranges, interface, nat)| Forward { ranges, interface, nat })
}

/// The addresses of a node: one of each family at most.
fn own() -> impl Strategy<Value = BTreeSet<IpNet>> {
    let ipv4 = (any::<[u8; 3]>(), 8u8..=32)
        .prop_map(|([b, c, d], length)| IpNet::new(IpAddr::from([10, b, c, d]), length).unwrap());
    let ipv6 = (any::<[u16; 7]>(), 16u8..=128).prop_map(|([b, c, d, e, f, g, h], length)| {
        IpNet::new(IpAddr::from([0xfd40, b, c, d, e, f, g, h]), length).unwrap()
    });
    (prop::option::of(ipv4), prop::option::of(ipv6))
        .prop_map(|(ipv4, ipv6)| ipv4.into_iter().chain(ipv6).collect())
}

fn names<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = BTreeMap<Name, Arc<T>>> {
    prop::collection::btree_map(name(), of.prop_map(Arc::new), 0..8)
}

fn peers() -> impl Strategy<Value = Peer> {
    let endpoint = prop::option::of(prop::sample::select(vec![
        "gw.example.net:1",
        "192.0.2.1:51821",
        "[2001:db8::1]:9",
    ]));
    let addresses = prop::collection::btree_set(any::<IpAddr>(), 0..3);
    let via = prop::option::weighted(0.2, name());
    // Below 2^254, and so a key in its one form.
    let key = any::<[u8; 32]>().prop_map(|mut key| {
        key[31] &= 0x3f;
        key
    });
    // Only what another node carries has no key.
    (prop::option::weighted(0.8, key), endpoint, addresses, via, classes(), any::<[bool; 2]>()).prop_map(
        |(key, endpoint, addresses, via, class, [carries, named])| Peer {
            public_key: key.or_else(|| via.is_none().then_some([7; 32])).map(WireGuardKey),
            endpoint: endpoint.map(|it| it.parse().unwrap()),
            addresses,
            via,
            class,
            carries,
            named,
        },
    )
}

fn classes() -> impl Strategy<Value = ClassId> {
    prop_oneof![Just(ClassId::default()), (1u8..5).prop_map(|number| ClassId([number; 16]))]
}

fn access() -> impl Strategy<Value = Access> {
    let ports = || {
        let ranges = prop::collection::vec((any::<u16>(), any::<u16>()), 0..4);
        let range = |(one, other): (u16, u16)| one.min(other)..=one.max(other);
        prop_oneof![Just(Ports::every()), ranges.prop_map(move |all| all.into_iter().map(range).collect())]
    };
    (ports(), ports(), any::<bool>(), any::<bool>())
        .prop_map(|(tcp, udp, icmp, others)| Access { tcp, udp, icmp, others })
        .prop_filter("a class that may open nothing has no entry", |access| !access.is_nothing())
}

fn by_class<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = BTreeMap<ClassId, T>> {
    prop::collection::btree_map(classes(), of, 0..4)
}

fn guarded() -> impl Strategy<Value = Guarded> {
    by_class(access())
}

fn resolutions() -> impl Strategy<Value = Resolution> {
    let addresses = prop::collection::btree_set(any::<IpAddr>(), 0..3).prop_map(Resolution::Addresses);
    prop_oneof![addresses, Just(Resolution::Alias("www.example.net".parse().unwrap()))]
}

fn interfaces() -> impl Strategy<Value = Interface> {
    let numbers = (any::<u16>(), prop::option::of(1u16..), any::<u32>(), any::<u32>());
    let resolvers = prop::collection::btree_set(any::<IpAddr>(), 0..3);
    (own(), numbers, prop::option::of(name()), classes(), any::<[bool; 4]>(), resolvers).prop_map(
        |(addresses, (listen_port, mtu, keepalive, check_in), carrier, class, flags, resolvers)| Interface {
            addresses,
            listen_port,
            listen_port_fixed: flags[0],
            mtu,
            keepalive: Seconds(keepalive),
            check_in: Seconds(check_in),
            carrier,
            forward: flags[1],
            restricted: flags[2],
            class,
            named: flags[3],
            resolvers: resolvers.into(),
        },
    )
}

fn views() -> impl Strategy<Value = View> {
    let rules = (by_class(access().prop_map(Arc::new)), by_class(guarded().prop_map(Arc::new)));
    (interfaces(), names(peers()), rules, routes(), names(forwards()), names(resolutions())).prop_map(
        |(interface, peers, (access, guarded), routes, forwards, names)| View {
            network: network(),
            node: node(),
            interface,
            peers: peers.into_iter().collect(),
            access: access.into_iter().collect(),
            routes: routes.into_iter().collect(),
            forwards: forwards.into_iter().collect(),
            guarded: guarded.into_iter().collect(),
            names: names.into_iter().collect(),
        },
    )
}

/// A revision of a history; 0: none.
fn at(history: &str, revision: u64) -> Position {
    if revision == 0 {
        return Position { epoch: 5, ..Position::default() };
    }
    let hash = ChainHash::start(history).next(&revision.to_string());
    Position { epoch: 5, revision: Revision(revision), stamp: Stamp::new(&hash, &[7; 32]) }
}

fn signed(from: u64, to: u64, body: SignedBody) -> Update {
    let network = network();
    let node = node();
    let (from, to) = (at("a", from), at("a", to));
    body.sign(sign::Header { network: &network, node: &node, from, to }, &server())
}

fn accept(update: &Update, base: Option<(&View, u64)>) -> Result<View, Malformed> {
    accept_at(update, base.map(|(view, revision)| (view, at("a", revision))))
}

fn accept_at(update: &Update, at: Option<(&View, Position)>) -> Result<View, Malformed> {
    let network = network();
    let node = node();
    let server = sign::public_key(&server());
    let (decoded, position) = accept_update(update, &network, &node, &Identity([1; 32]), &server, at)?;
    assert_eq!(position, self::at("a", update.to));
    match decoded {
        DecodedUpdate::View(view) => Ok(*view),
        DecodedUpdate::Removed => panic!("nothing here removes"),
    }
}

fn delta(before: &View, after: &View) -> SignedBody {
    SignedBody::delta(encode_delta(&ViewDelta::between(before, after), after.counts()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_view_comes_back_as_it_was_sent(view in views()) {
        prop_assert_eq!(accept(&signed(0, 3, SignedBody::whole(encode_view(&view))), None), Ok(view));
    }

    #[test]
    fn a_delta_leads_from_what_a_node_has_to_what_it_should_have(before in views(), after in views()) {
        let update = signed(3, 4, delta(&before, &after));
        prop_assert_eq!(accept(&update, Some((&before, 3))), Ok(after));
        let from = at("a", 3);
        for other in [at("a", 2), at("b", 3), Position { stamp: Stamp::default(), ..from }, Position { epoch: 4, ..from }] {
            let refused = accept_at(&update, Some((&before, other)));
            prop_assert_eq!(refused, Err(Malformed::OtherBase { from, at: other }));
        }
        prop_assert_eq!(accept(&update, None), Err(Malformed::OtherBase { from, at: Position::default() }));
    }

    #[test]
    fn a_view_that_lost_anything_on_the_way_is_refused(view in views(), which in 0u8..6) {
        let mut message = wire::View::decode(&*encode_view(&view)).unwrap();
        let lost = match which {
            0 => message.peers.pop().is_some(),
            1 => message.routes.pop().is_some(),
            2 => message.access.pop().is_some(),
            3 => message.forwards.pop().is_some(),
            4 => message.guarded.pop().is_some(),
            _ => message.names.pop().is_some(),
        };
        prop_assume!(lost);
        let refused = accept(&signed(0, 3, SignedBody::whole(message.encode_to_vec())), None);
        prop_assert!(matches!(refused, Err(Malformed::Incomplete { .. })), "{:?}", refused);
    }

    #[test]
    fn a_flipped_bit_is_noticed(view in views(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
        let update = signed(0, 3, SignedBody::whole(encode_view(&view)));
        let mut bytes = update.encode_to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if let Ok(changed) = Update::decode(&*bytes) && changed != update {
            prop_assert!(accept(&changed, None).is_err());
        }
    }

    #[test]
    fn bytes_that_are_not_an_update_are_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        view in views(),
    ) {
        // Bytes may be an update by chance: then they decode, and say how much the View holds.
        let whole = wire::View::decode(&*bytes).is_ok_and(|it| it.counts.is_some() && it.interface.is_some());
        let accepted = accept(&signed(0, 3, SignedBody::whole(bytes.clone())), None);
        prop_assert!(accepted.is_err() || whole, "{accepted:?}");
        let change = wire::Delta::decode(&*bytes).is_ok_and(|it| it.counts.is_some());
        let accepted = accept(&signed(3, 4, SignedBody::delta(bytes)), Some((&view, 3)));
        prop_assert!(accepted.is_err() || change, "{accepted:?}");
    }
}

#[test]
fn a_node_takes_no_address_that_no_mesh_has() {
    let with = |addresses: &[&str]| {
        let interface = Interface {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            listen_port: 1,
            listen_port_fixed: false,
            mtu: None,
            keepalive: Seconds(0),
            check_in: Seconds(1),
            carrier: None,
            forward: false,
            restricted: false,
            class: Default::default(),
            named: true,
            resolvers: Default::default(),
        };
        let (peers, access, routes, forwards, guarded, names) = Default::default();
        let (network, node) = (network(), node());
        let view = View { network, node, interface, peers, access, routes, forwards, guarded, names };
        accept(&signed(0, 1, SignedBody::whole(encode_view(&view))), None)
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
    let peer = Peer {
        public_key: Some(WireGuardKey([7; 32])),
        endpoint: Some("[2001:db8::7]:51821".parse().unwrap()),
        addresses: ["10.40.0.2".parse().unwrap(), "fd40::2".parse().unwrap()].into(),
        via: None,
        class: ClassId([7; 16]),
        carries: false,
        named: true,
    };
    let peers = Changes { put: vec![(name.clone(), Arc::new(peer))], lost: Vec::new() };
    let delta = ViewDelta { peers, ..ViewDelta::default() };
    let after = Counts { peers: 10_000, access: 50, routes: 2, forwards: 2, guarded: 10, names: 1_000 };
    let body = encode_delta(&delta, after);
    assert_eq!(String::from_utf8_lossy(&body).matches(name.as_str()).count(), 1);
    let update =
        Update { epoch: 4_000_000_000, ..signed(4_000_000_000, 4_000_000_001, SignedBody::delta(body)) };
    assert!(
        update.encoded_len() <= 320,
        "{} bytes for the longest name and both families",
        update.encoded_len()
    );
}
