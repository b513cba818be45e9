//! The only place where messages become the model's types and back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message;
use schema::scalars::{Identity, Ipv4Range, Ipv6Range, Name, NetworkName, Scalar, Seconds, SigningKey};
use schema::snapshot::Revision;
use schema::view::{Interface, Peer, Resolution, View, ViewDelta};

use crate::sign::{Invalid, verify_update};
use crate::wire::{self, Update, resolution::Target, update::Body};

/// A message does not hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is no message at all.
    #[error("the body cannot be decoded")]
    Encoding,
    /// A field is missing or out of range.
    #[error("the field {0} is missing or out of range")]
    Field(&'static str),
    /// A key, by its name, is missing or of another length.
    #[error("{0} is missing, or does not have 32 bytes")]
    Key(&'static str),
    /// A View came with another number of peers than it says.
    #[error("{found} peers came, {announced} were announced")]
    PeerCount {
        /// How many the sender counted.
        announced: u32,
        /// How many there are.
        found: usize,
    },
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] Invalid),
    /// A delta does not start where the View is.
    #[error("the delta starts at revision {from}, the View is at {at}")]
    OtherBase {
        /// Where it starts.
        from: u64,
        /// Where the View is.
        at: u64,
    },
}

/// How far a node has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The life of the server's database.
    pub epoch: u64,
    /// The revision in it.
    pub revision: Revision,
}

/// A View as a message body.
pub fn encode_view(view: &View) -> Vec<u8> {
    let View { network: _, node: _, interface, peers, names } = view;
    let peer = |name: &Name| peers.get(name).map(|peer| &**peer);
    let named = |name: &Name, peer: &Peer| names.get(name).is_some_and(|resolution| is_of(resolution, peer));
    let message = wire::View {
        interface: Some(from_interface(interface)),
        peer_count: u32::try_from(peers.len()).unwrap_or(u32::MAX),
        peers: peers.iter().map(|(name, peer)| from_peer(name, peer, named(name, peer))).collect(),
        names: from_resolutions(names.iter(), peer),
    };
    message.encode_to_vec()
}

/// A delta as a message body; `peers_after` is how many peers the View has then.
pub fn encode_delta(delta: &ViewDelta, peers_after: usize) -> Vec<u8> {
    let ViewDelta { interface, peers, lost_peers, names, lost_names } = delta;
    let (by_peer, by_name): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (peers.iter().map(|(name, peer)| (name, &**peer)).collect(), names.iter().map(|it| (&it.0, &*it.1)).collect());
    let named = |name: &Name, peer: &Peer| by_name.get(name).is_some_and(|resolution| is_of(resolution, peer));
    let message = wire::Delta {
        interface: interface.as_ref().map(from_interface),
        peers: peers.iter().map(|(name, peer)| from_peer(name, peer, named(name, peer))).collect(),
        lost_peers: lost_peers.iter().map(ToString::to_string).collect(),
        names: from_resolutions(names.iter().map(|(name, resolution)| (name, resolution)), |name| {
            by_peer.get(name).copied()
        }),
        lost_names: lost_names.iter().map(ToString::to_string).collect(),
        peer_count: u32::try_from(peers_after).unwrap_or(u32::MAX),
    };
    message.encode_to_vec()
}

/// Whether a name stands for exactly what a peer of that name has: most do, and then it is said with the peer.
fn is_of(resolution: &Resolution, peer: &Peer) -> bool {
    match resolution {
        Resolution::Addresses(addresses) => named_addresses(peer).as_ref() == Some(addresses),
        Resolution::Alias(_) => false,
    }
}

/// The addresses of a peer, if it has nothing but single ones.
fn named_addresses(peer: &Peer) -> Option<BTreeSet<IpAddr>> {
    let single = |range: &IpNet| range.prefix_len() == range.max_prefix_len();
    peer.allowed_ips.iter().map(|range| single(range).then(|| range.addr())).collect()
}

/// The names that are not said with a peer.
fn from_resolutions<'a, 'b>(
    names: impl Iterator<Item = (&'a Name, &'a Arc<Resolution>)>,
    peer: impl Fn(&Name) -> Option<&'b Peer>,
) -> Vec<wire::Resolution> {
    let rest = names.filter(|(name, resolution)| !peer(name).is_some_and(|peer| is_of(resolution, peer)));
    rest.map(|(name, resolution)| from_resolution(name, resolution)).collect()
}

/// What a node is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It has this View.
    View(View),
    /// It is no node of the network any more.
    Removed,
}

/// What a node is told by an update that the server signed for it.
///
/// `at` is the View that it has and where that stands; a delta applies to exactly there.
pub fn accept_update(
    update: &Update,
    network: &NetworkName,
    node: &Name,
    identity: &Identity,
    server: &SigningKey,
    at: Option<(&View, Position)>,
) -> Result<(Told, Position), Malformed> {
    verify_update(update, network, node, server)?;
    let position = Position { epoch: update.epoch, revision: Revision(update.to) };
    let view = match update.body.as_ref().ok_or(Malformed::Field("body"))? {
        Body::Whole(body) => decode_view(body, network, node)?,
        Body::Delta(body) => {
            let base = at.filter(|(_, at)| at.epoch == update.epoch && at.revision.0 == update.from);
            let found = at.map_or(0, |(_, at)| at.revision.0);
            let (view, _) = base.ok_or(Malformed::OtherBase { from: update.from, at: found })?;
            apply_delta(body, view.clone())?
        }
        Body::Removed(of) if **of == identity.0 => return Ok((Told::Removed, position)),
        Body::Removed(_) => return Err(Malformed::Field("removed")),
    };
    Ok((Told::View(view), position))
}

fn decode_view(body: &[u8], network: &NetworkName, node: &Name) -> Result<View, Malformed> {
    let wire::View { interface, peers, names, peer_count } =
        wire::View::decode(body).map_err(|_| Malformed::Encoding)?;
    let interface = to_interface(interface.ok_or(Malformed::Field("interface"))?)?;
    let (peers, names) = to_peers_and_names(peers, names)?;
    let (peers, names) = (peers.into_iter().collect(), names.into_iter().collect());
    let view = View { network: network.clone(), node: node.clone(), interface, peers, names };
    counted(view, peer_count)
}

fn apply_delta(body: &[u8], mut view: View) -> Result<View, Malformed> {
    let wire::Delta { interface, peers, lost_peers, names, lost_names, peer_count } =
        wire::Delta::decode(body).map_err(|_| Malformed::Encoding)?;
    let (peers, names) = to_peers_and_names(peers, names)?;
    let delta = ViewDelta {
        interface: interface.map(to_interface).transpose()?,
        peers,
        lost_peers: to_names(&lost_peers)?,
        names,
        lost_names: to_names(&lost_names)?,
    };
    delta.apply(&mut view);
    counted(view, peer_count)
}

type Entries<T> = Vec<(Name, Arc<T>)>;

fn to_peers_and_names(
    peers: Vec<wire::Peer>,
    names: Vec<wire::Resolution>,
) -> Result<(Entries<Peer>, Entries<Resolution>), Malformed> {
    let mut resolutions = names.into_iter().map(to_resolution).collect::<Result<Vec<_>, _>>()?;
    let mut entries = Vec::with_capacity(peers.len());
    for peer in peers {
        let named = peer.named;
        let (name, peer) = to_peer(peer)?;
        if named {
            let addresses = named_addresses(&peer).ok_or(Malformed::Field("named"))?;
            resolutions.push((name.clone(), Arc::new(Resolution::Addresses(addresses))));
        }
        entries.push((name, peer));
    }
    Ok((entries, resolutions))
}

fn counted(view: View, announced: u32) -> Result<View, Malformed> {
    let found = view.peers.len();
    if u32::try_from(found) == Ok(announced) { Ok(view) } else { Err(Malformed::PeerCount { announced, found }) }
}

fn to_names(names: &[String]) -> Result<Vec<Name>, Malformed> {
    names.iter().map(|name| to_name(name)).collect()
}

fn to_name(name: &str) -> Result<Name, Malformed> {
    name.parse().map_err(|_| Malformed::Field("name"))
}

fn from_interface(interface: &Interface) -> wire::Interface {
    let Interface { addresses, listen_port, listen_port_fixed, mtu, keepalive, check_in, forward } = interface;
    wire::Interface {
        addresses: addresses.iter().map(from_prefix).collect(),
        listen_port: u32::from(*listen_port),
        listen_port_fixed: *listen_port_fixed,
        mtu: u32::from(mtu.unwrap_or(0)),
        keepalive: keepalive.0,
        check_in: check_in.0,
        forward: *forward,
    }
}

fn to_interface(interface: wire::Interface) -> Result<Interface, Malformed> {
    let wire::Interface { addresses, listen_port, listen_port_fixed, mtu, keepalive, check_in, forward } = interface;
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
        forward,
    })
}

/// Whether a machine may have these addresses in a mesh: one of each family at most, in a range that a network may have.
/// A server that was taken over cannot take the loopback or the whole Internet along.
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

fn from_peer(name: &Name, peer: &Peer, named: bool) -> wire::Peer {
    let Peer { public_key, endpoint, allowed_ips } = peer;
    wire::Peer {
        name: name.to_string(),
        public_key: public_key.0.to_vec().into(),
        endpoint: endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
        allowed_ips: allowed_ips.iter().map(from_prefix).collect(),
        named,
    }
}

fn to_peer(peer: wire::Peer) -> Result<(Name, Arc<Peer>), Malformed> {
    let wire::Peer { name, public_key, endpoint, allowed_ips, named: _ } = peer;
    let endpoint = match &*endpoint {
        "" => None,
        endpoint => Some(endpoint.parse().map_err(|_| Malformed::Field("endpoint"))?),
    };
    let peer = Peer {
        public_key: to_key(&public_key)?,
        endpoint,
        allowed_ips: allowed_ips.iter().map(to_prefix).collect::<Result<_, _>>()?,
    };
    Ok((to_name(&name)?, Arc::new(peer)))
}

/// 32 bytes as a key of the kind that the caller asks for.
pub fn to_key<K: Scalar + From<[u8; 32]>>(bytes: &[u8]) -> Result<K, Malformed> {
    <[u8; 32]>::try_from(bytes).map(K::from).map_err(|_| Malformed::Key(K::NAME))
}

fn from_prefix(prefix: &IpNet) -> wire::Prefix {
    wire::Prefix { address: from_address(&prefix.addr()), length: u32::from(prefix.prefix_len()) }
}

fn to_prefix(prefix: &wire::Prefix) -> Result<IpNet, Malformed> {
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
    <[u8; 16]>::try_from(bytes).map(|sixteen| Ipv6Addr::from(sixteen).into()).map_err(|_| Malformed::Field("address"))
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
        Target::Addresses(wire::Addresses { address }) => {
            let addresses: BTreeSet<IpAddr> =
                address.iter().map(|address| to_address(address)).collect::<Result<_, _>>()?;
            Resolution::Addresses(addresses)
        }
        Target::Alias(name) => Resolution::Alias(name.parse().map_err(|_| Malformed::Field("alias"))?),
    };
    Ok((to_name(&name)?, Arc::new(target)))
}
