//! The only place where messages become the model's types and back.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message;
use schema::access::{Access, ClassId, Ports};
use schema::scalars::{Identity, Ipv4Range, Ipv6Range, Name, NetworkName, Scalar, Seconds, SigningKey};
use schema::view::{Changes, Counts, Forward, Guarded, Interface, Peer, Resolution, Route, View, ViewDelta};

use crate::position::Position;
use crate::sign::{self, Invalid, verify_update};
use crate::wire::{self, Update, resolution::Target, update::Body};

/// Why a message is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is not a message.
    #[error("the body cannot be decoded")]
    Encoding,
    /// A field is missing or out of range.
    #[error("the field {0} is missing or out of range")]
    Field(&'static str),
    /// A key, by its name, is missing, of another length, or not in the one form that it has.
    #[error("{0} is missing, does not have 32 bytes, or is not in canonical form")]
    Key(&'static str),
    /// A View holds other numbers of entries than it announces.
    #[error("it holds {found:?}, but {announced:?} were announced")]
    Incomplete {
        /// What the sender counted.
        announced: Counts,
        /// What it holds.
        found: Counts,
    },
    /// The signature is not valid.
    #[error(transparent)]
    Signature(#[from] Invalid),
    /// A delta does not start at the View's position.
    #[error(
        "the delta starts at revision {} of epoch {} ({:?}), but the View is at {} of {} ({:?})",
        .from.revision, .from.epoch, .from.stamp, .at.revision, .at.epoch, .at.stamp
    )]
    OtherBase {
        /// Where it starts.
        from: Position,
        /// Where the View is.
        at: Position,
    },
}

/// A View as a message body.
pub fn encode_view(view: &View) -> Vec<u8> {
    let View { network: _, node: _, interface, peers, access, routes, forwards, guarded, names } = view;
    let message = wire::View {
        interface: Some(from_interface(interface)),
        peers: peers.iter().map(|(name, peer)| from_peer(name, peer)).collect(),
        names: names.iter().map(|(name, resolution)| from_resolution(name, resolution)).collect(),
        routes: routes.iter().map(|(range, route)| from_route(range, route)).collect(),
        access: access.iter().map(|(class, access)| from_access(class, access)).collect(),
        forwards: forwards.iter().map(|(name, forward)| from_forward(name, forward)).collect(),
        guarded: guarded.iter().map(|(class, guarded)| from_guarded(class, guarded)).collect(),
        counts: Some(from_counts(view.counts())),
    };
    message.encode_to_vec()
}

/// A delta as a message body; `after` is what the View holds afterwards.
pub fn encode_delta(delta: &ViewDelta, after: Counts) -> Vec<u8> {
    let ViewDelta { interface, peers, access, routes, forwards, guarded, names } = delta;
    let message = wire::Delta {
        interface: interface.as_ref().map(from_interface),
        peers: peers.put.iter().map(|(name, peer)| from_peer(name, peer)).collect(),
        lost_peers: peers.lost.iter().map(ToString::to_string).collect(),
        names: names.put.iter().map(|(name, resolution)| from_resolution(name, resolution)).collect(),
        lost_names: names.lost.iter().map(ToString::to_string).collect(),
        routes: routes.put.iter().map(|(range, route)| from_route(range, route)).collect(),
        lost_routes: routes.lost.iter().map(from_prefix).collect(),
        access: access.put.iter().map(|(class, access)| from_access(class, access)).collect(),
        lost_access: access.lost.iter().map(from_class).collect(),
        forwards: forwards.put.iter().map(|(name, forward)| from_forward(name, forward)).collect(),
        lost_forwards: forwards.lost.iter().map(ToString::to_string).collect(),
        guarded: guarded.put.iter().map(|(class, guarded)| from_guarded(class, guarded)).collect(),
        lost_guarded: guarded.lost.iter().map(from_class).collect(),
        counts: Some(from_counts(after)),
    };
    message.encode_to_vec()
}

/// What an update means for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodedUpdate {
    /// It has this View.
    View(Box<View>),
    /// It is not, or no longer, a node of the network.
    Removed,
}

/// Verifies and decodes an update that the server signed for a node.
///
/// `at` is the View that it has and its position; a delta applies to exactly that one.
pub fn accept_update(
    update: &Update,
    network: &NetworkName,
    node: &Name,
    identity: &Identity,
    server: &SigningKey,
    at: Option<(&View, Position)>,
) -> Result<(DecodedUpdate, Position), Malformed> {
    verify_update(update, network, node, server)?;
    let decoded = match update.body.as_ref().ok_or(Malformed::Field("body"))? {
        Body::Whole(body) => DecodedUpdate::View(Box::new(decode_view(body, network, node)?)),
        Body::Delta(body) => {
            let from = sign::from(update);
            let found = at.map(|(_, at)| at).unwrap_or_default();
            let base = at.filter(|(_, at)| *at == from);
            let (base, _) = base.ok_or(Malformed::OtherBase { from, at: found })?;
            let (delta, announced) = decode_delta(body)?;
            let mut view = base.clone();
            delta.apply(&mut view);
            DecodedUpdate::View(Box::new(counted(view, announced)?))
        }
        Body::Removed(of) if **of == identity.0 => DecodedUpdate::Removed,
        Body::Removed(_) => return Err(Malformed::Field("removed")),
    };
    Ok((decoded, sign::to(update)))
}

fn decode_view(body: &[u8], network: &NetworkName, node: &Name) -> Result<View, Malformed> {
    let wire::View { interface, peers, names, routes, access, forwards, guarded, counts } =
        wire::View::decode(body).map_err(|_| Malformed::Encoding)?;
    let view = View {
        network: network.clone(),
        node: node.clone(),
        interface: to_interface(interface.ok_or(Malformed::Field("interface"))?)?,
        peers: peers.into_iter().map(to_peer).collect::<Result<_, _>>()?,
        access: access.into_iter().map(to_access).collect::<Result<_, _>>()?,
        routes: routes.into_iter().map(to_route).collect::<Result<_, _>>()?,
        forwards: forwards.into_iter().map(to_forward).collect::<Result<_, _>>()?,
        guarded: guarded.into_iter().map(to_guarded).collect::<Result<_, _>>()?,
        names: names.into_iter().map(to_resolution).collect::<Result<_, _>>()?,
    };
    counted(view, to_counts(counts)?)
}

fn decode_delta(body: &[u8]) -> Result<(ViewDelta, Counts), Malformed> {
    let wire::Delta {
        interface,
        peers,
        lost_peers,
        names,
        lost_names,
        routes,
        lost_routes,
        access,
        lost_access,
        forwards,
        lost_forwards,
        guarded,
        lost_guarded,
        counts,
    } = wire::Delta::decode(body).map_err(|_| Malformed::Encoding)?;
    let delta = ViewDelta {
        interface: interface.map(to_interface).transpose()?,
        peers: Changes {
            put: peers.into_iter().map(to_peer).collect::<Result<_, _>>()?,
            lost: to_names(&lost_peers)?,
        },
        access: Changes {
            put: access.into_iter().map(to_access).collect::<Result<_, _>>()?,
            lost: lost_access.iter().map(|class| to_class(class)).collect::<Result<_, _>>()?,
        },
        routes: Changes {
            put: routes.into_iter().map(to_route).collect::<Result<_, _>>()?,
            lost: lost_routes.iter().map(to_prefix).collect::<Result<_, _>>()?,
        },
        forwards: Changes {
            put: forwards.into_iter().map(to_forward).collect::<Result<_, _>>()?,
            lost: to_names(&lost_forwards)?,
        },
        guarded: Changes {
            put: guarded.into_iter().map(to_guarded).collect::<Result<_, _>>()?,
            lost: lost_guarded.iter().map(|class| to_class(class)).collect::<Result<_, _>>()?,
        },
        names: Changes {
            put: names.into_iter().map(to_resolution).collect::<Result<_, _>>()?,
            lost: to_names(&lost_names)?,
        },
    };
    Ok((delta, to_counts(counts)?))
}

fn counted(view: View, announced: Counts) -> Result<View, Malformed> {
    let found = view.counts();
    if found == announced { Ok(view) } else { Err(Malformed::Incomplete { announced, found }) }
}

fn from_counts(Counts { peers, access, routes, forwards, guarded, names }: Counts) -> wire::Counts {
    wire::Counts { peers, access, routes, forwards, guarded, names }
}

fn to_counts(counts: Option<wire::Counts>) -> Result<Counts, Malformed> {
    let wire::Counts { peers, access, routes, forwards, guarded, names } =
        counts.ok_or(Malformed::Field("counts"))?;
    Ok(Counts { peers, access, routes, forwards, guarded, names })
}

fn to_names(names: &[String]) -> Result<Vec<Name>, Malformed> {
    names.iter().map(|name| to_name(name)).collect()
}

fn to_name(name: &str) -> Result<Name, Malformed> {
    name.parse().map_err(|_| Malformed::Field("name"))
}

/// A name that may be empty.
fn to_optional_name(name: &str) -> Result<Option<Name>, Malformed> {
    if name.is_empty() { Ok(None) } else { to_name(name).map(Some) }
}

fn from_interface(interface: &Interface) -> wire::Interface {
    let Interface {
        addresses,
        listen_port,
        listen_port_fixed,
        mtu,
        keepalive,
        check_in,
        carrier,
        forward,
        restricted,
        class,
        named,
        resolvers,
    } = interface;
    wire::Interface {
        addresses: addresses.iter().map(from_prefix).collect(),
        listen_port: u32::from(*listen_port),
        listen_port_fixed: *listen_port_fixed,
        mtu: u32::from(mtu.unwrap_or(0)),
        keepalive: keepalive.0,
        check_in: check_in.0,
        carrier: carrier.as_ref().map(ToString::to_string).unwrap_or_default(),
        forward: *forward,
        restricted: *restricted,
        class: from_class(class),
        named: *named,
        resolvers: resolvers.iter().map(from_address).collect(),
    }
}

fn to_interface(interface: wire::Interface) -> Result<Interface, Malformed> {
    let wire::Interface {
        addresses,
        listen_port,
        listen_port_fixed,
        mtu,
        keepalive,
        check_in,
        carrier,
        forward,
        restricted,
        class,
        named,
        resolvers,
    } = interface;
    let mtu = u16::try_from(mtu).map_err(|_| Malformed::Field("mtu"))?;
    let addresses: BTreeSet<IpNet> = addresses.iter().map(to_prefix).collect::<Result<_, _>>()?;
    if !may_be_a_mesh(&addresses) {
        return Err(Malformed::Field("addresses"));
    }
    Ok(Interface {
        addresses,
        listen_port: u16::try_from(listen_port).map_err(|_| Malformed::Field("listen_port"))?,
        listen_port_fixed,
        mtu: Some(mtu).filter(|mtu| *mtu > 0),
        keepalive: Seconds(keepalive),
        check_in: Seconds(check_in),
        carrier: to_optional_name(&carrier)?,
        forward,
        restricted,
        class: to_class(&class)?,
        named,
        resolvers: to_addresses(&resolvers)?.into(),
    })
}

/// Whether a node may have these addresses in a mesh: one of each family at most, in a range that a network
/// may have. So a compromised server cannot claim the loopback range or the whole Internet.
fn may_be_a_mesh(addresses: &BTreeSet<IpNet>) -> bool {
    let ranges = addresses.iter().map(|address| address.trunc().to_string());
    let (ipv4, ipv6): (Vec<_>, Vec<_>) = ranges.partition(|range| !range.contains(':'));
    let one_good = |ranges: &[String], good: fn(&str) -> bool| match ranges {
        [] => true,
        [range] => good(range),
        [_, _, ..] => false,
    };
    one_good(&ipv4, |range| range.parse::<Ipv4Range>().is_ok())
        && one_good(&ipv6, |range| range.parse::<Ipv6Range>().is_ok())
}

fn from_peer(name: &Name, peer: &Peer) -> wire::Peer {
    let Peer { public_key, endpoint, addresses, via, class, carries, named } = peer;
    wire::Peer {
        name: name.to_string(),
        public_key: public_key.map(|key| key.0.to_vec().into()).unwrap_or_default(),
        endpoint: endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
        addresses: addresses.iter().map(from_address).collect(),
        named: *named,
        via: via.as_ref().map(ToString::to_string).unwrap_or_default(),
        class: from_class(class),
        carries: *carries,
    }
}

fn to_peer(peer: wire::Peer) -> Result<(Name, Arc<Peer>), Malformed> {
    let wire::Peer { name, public_key, endpoint, addresses, named, via, class, carries } = peer;
    let endpoint = match &*endpoint {
        "" => None,
        endpoint => Some(endpoint.parse().map_err(|_| Malformed::Field("endpoint"))?),
    };
    let peer = Peer {
        public_key: if public_key.is_empty() { None } else { Some(to_key(&public_key)?) },
        endpoint,
        addresses: to_addresses(&addresses)?,
        via: to_optional_name(&via)?,
        class: to_class(&class)?,
        carries,
        named,
    };
    Ok((to_name(&name)?, Arc::new(peer)))
}

fn from_class(class: &ClassId) -> prost::bytes::Bytes {
    if *class == ClassId::default() { Default::default() } else { class.0.to_vec().into() }
}

fn to_class(bytes: &[u8]) -> Result<ClassId, Malformed> {
    if bytes.is_empty() {
        return Ok(ClassId::default());
    }
    bytes.try_into().map(ClassId).map_err(|_| Malformed::Field("class"))
}

fn from_access(class: &ClassId, Access { tcp, udp, icmp, others }: &Access) -> wire::Access {
    wire::Access {
        class: from_class(class),
        tcp: from_ports(tcp),
        udp: from_ports(udp),
        icmp: *icmp,
        others: *others,
    }
}

fn to_access(access: wire::Access) -> Result<(ClassId, Arc<Access>), Malformed> {
    let wire::Access { class, tcp, udp, icmp, others } = access;
    let access = Access { tcp: to_ports(&tcp)?, udp: to_ports(&udp)?, icmp, others };
    if access.is_nothing() {
        return Err(Malformed::Field("access"));
    }
    Ok((to_class(&class)?, Arc::new(access)))
}

fn from_ports(ports: &Ports) -> Vec<wire::Ports> {
    let range = |(first, last): (u16, u16)| wire::Ports { first: first.into(), last: last.into() };
    ports.ranges().map(RangeInclusive::into_inner).map(range).collect()
}

fn to_ports(ports: &[wire::Ports]) -> Result<Ports, Malformed> {
    let range = |wire::Ports { first, last }: &wire::Ports| {
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        (first <= last).then_some(first..=last)
    };
    ports.iter().map(|ports| range(ports).ok_or(Malformed::Field("ports"))).collect()
}

fn from_route(range: &IpNet, Route { via, class, carried }: &Route) -> wire::Route {
    wire::Route {
        range: Some(from_prefix(range)),
        via: via.as_ref().map(ToString::to_string).unwrap_or_default(),
        class: from_class(class),
        carried: *carried,
    }
}

fn to_route(route: wire::Route) -> Result<(IpNet, Arc<Route>), Malformed> {
    let wire::Route { range, via, class, carried } = route;
    let range = to_prefix(&range.ok_or(Malformed::Field("range"))?)?;
    Ok((range, Arc::new(Route { via: to_optional_name(&via)?, class: to_class(&class)?, carried })))
}

fn from_forward(name: &Name, Forward { ranges, interface, nat }: &Forward) -> wire::Forward {
    let range = |(range, class): (&IpNet, &ClassId)| wire::ClassedRange {
        range: Some(from_prefix(range)),
        class: from_class(class),
    };
    wire::Forward {
        name: name.to_string(),
        ranges: ranges.iter().map(range).collect(),
        interface: interface.as_ref().map(ToString::to_string).unwrap_or_default(),
        nat: *nat,
    }
}

fn to_forward(forward: wire::Forward) -> Result<(Name, Arc<Forward>), Malformed> {
    let wire::Forward { name, ranges, interface, nat } = forward;
    let range = |wire::ClassedRange { range, class }: wire::ClassedRange| {
        Ok((to_prefix(&range.ok_or(Malformed::Field("range"))?)?, to_class(&class)?))
    };
    let interface = match &*interface {
        "" => None,
        name => Some(name.parse().map_err(|_| Malformed::Field("interface"))?),
    };
    let ranges = ranges.into_iter().map(range).collect::<Result<_, Malformed>>()?;
    Ok((to_name(&name)?, Arc::new(Forward { ranges, interface, nat })))
}

fn from_guarded(class: &ClassId, guarded: &Guarded) -> wire::Guarded {
    let access = guarded.iter().map(|(class, access)| from_access(class, access)).collect();
    wire::Guarded { class: from_class(class), access }
}

fn to_guarded(guarded: wire::Guarded) -> Result<(ClassId, Arc<Guarded>), Malformed> {
    let wire::Guarded { class, access } = guarded;
    let access = access.into_iter().map(|access| to_access(access).map(|(class, it)| (class, (*it).clone())));
    Ok((to_class(&class)?, Arc::new(access.collect::<Result<_, _>>()?)))
}

/// 32 bytes as a key of the kind that the caller asks for.
pub fn to_key<K: Scalar + TryFrom<[u8; 32]>>(bytes: &[u8]) -> Result<K, Malformed> {
    let bytes = <[u8; 32]>::try_from(bytes).ok();
    bytes.and_then(|bytes| K::try_from(bytes).ok()).ok_or(Malformed::Key(K::NAME))
}

/// A range, as it is sent.
pub fn from_prefix(prefix: &IpNet) -> wire::Prefix {
    wire::Prefix { address: from_address(&prefix.addr()), length: u32::from(prefix.prefix_len()) }
}

/// A range that was sent.
pub fn to_prefix(prefix: &wire::Prefix) -> Result<IpNet, Malformed> {
    let wire::Prefix { address, length } = prefix;
    let length = u8::try_from(*length).map_err(|_| Malformed::Field("length"))?;
    IpNet::new(to_address(address)?, length).map_err(|_| Malformed::Field("length"))
}

fn from_address(address: &IpAddr) -> prost::bytes::Bytes {
    match address {
        IpAddr::V4(address) => address.octets().to_vec().into(),
        IpAddr::V6(address) => address.octets().to_vec().into(),
    }
}

fn to_address(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(four).into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(|sixteen| Ipv6Addr::from(sixteen).into())
        .map_err(|_| Malformed::Field("address"))
}

fn to_addresses(addresses: &[prost::bytes::Bytes]) -> Result<BTreeSet<IpAddr>, Malformed> {
    addresses.iter().map(|address| to_address(address)).collect()
}

fn from_resolution(name: &Name, resolution: &Resolution) -> wire::Resolution {
    let target = match resolution {
        Resolution::Addresses(addresses) => {
            Target::Addresses(wire::Addresses { address: addresses.iter().map(from_address).collect() })
        }
        Resolution::Alias(name) => Target::Alias(name.to_string()),
    };
    wire::Resolution { name: name.to_string(), target: Some(target) }
}

fn to_resolution(resolution: wire::Resolution) -> Result<(Name, Arc<Resolution>), Malformed> {
    let wire::Resolution { name, target } = resolution;
    let target = match target.ok_or(Malformed::Field("target"))? {
        Target::Addresses(wire::Addresses { address }) => Resolution::Addresses(to_addresses(&address)?),
        Target::Alias(name) => Resolution::Alias(name.parse().map_err(|_| Malformed::Field("alias"))?),
    };
    Ok((to_name(&name)?, Arc::new(target)))
}
