//! Addresses, MTU and the up state of a network interface, and the MTU that the underlay leaves for a tunnel.
//!
//! It observes and applies; what should be is decided elsewhere. Start at [`observe`] and [`apply`]. The
//! kernel is asked anew each time, in the network namespace of the calling thread.

pub mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;
use schema::scalars::overlap;

pub use state::{LinkState, LinkStep};

use super::netlink::{destination, exits, is, metric_of, name_of, range_of, to_io};
use crate::gateways::Exit;
use crate::outside::{GROUP, Mark};

/// Whether the host sends redirects by all interfaces (Documentation/networking/ip-sysctl.rst). The kernel's WireGuard
/// turns it off for the whole host when an interface comes up (wg_open), and leaves it so. In our networks the packet
/// filter holds redirects back (see [`outside`](crate::outside)), so elsewhere the host goes on as before.
const SEND_REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/send_redirects";
/// What WireGuard adds to a packet at most, in bytes: IPv6 40, UDP 8, WireGuard 32.
const OVERHEAD: u32 = 80;
/// The smallest MTU of a tunnel: what IPv6 demands of every link (RFC 8200, section 5).
const SMALLEST: u32 = 1280;
/// The largest MTU of a tunnel that is derived: what an Ethernet underlay leaves.
const LARGEST: u32 = 1500 - OVERHEAD;

/// Why a network interface could not be observed or changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The interface does not exist.
    #[error("the interface {interface} does not exist")]
    Missing {
        /// The name.
        interface: String,
    },
    /// The host has IPv6 turned off, at least for this interface.
    #[error(
        "cannot add the address {address} to {interface}, because IPv6 is turned off there; see `sysctl \
         net.ipv6.conf.all.disable_ipv6`"
    )]
    NoIpv6 {
        /// The interface.
        interface: String,
        /// The address that was to be added.
        address: IpNet,
    },
    /// A step failed. For [`LinkStep::Up`] on a kernel WireGuard device, the source is of the kind
    /// [`io::ErrorKind::AddrInUse`] if the UDP port is taken: only then does the kernel listen.
    #[error("cannot {step} the interface {interface}")]
    Step {
        /// The interface.
        interface: String,
        /// The step.
        step: LinkStep,
        /// What the kernel returned.
        #[source]
        source: io::Error,
    },
    /// The kernel's state could not be read.
    #[error("cannot read the {what} of this host")]
    Read {
        /// What was to be read: `interfaces`, `addresses`, `routes`.
        what: &'static str,
        /// What the kernel returned.
        #[source]
        source: io::Error,
    },
}

impl LinkError {
    /// Whether another program has the UDP port of a WireGuard device of the kernel, which listens only once
    /// its link is up.
    pub fn is_port_taken(&self) -> bool {
        matches!(self, Self::Step { step: LinkStep::Up, source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// Observes an interface; absent: there is none of that name.
pub async fn observe(interface: &str) -> Result<Option<LinkState>, LinkError> {
    let handle = connect()?;
    let Some(link) = find(&handle, interface).await? else { return Ok(None) };
    let listed = handle.address().get().set_link_index_filter(link.header.index).execute();
    let listed: Vec<AddressMessage> = listed.try_collect().await.map_err(unread("addresses"))?;
    Ok(Some(LinkState {
        addresses: listed.iter().filter_map(address_of).filter(|address| !is_link_local(address)).collect(),
        mtu: mtu_of(&link),
        up: link.header.flags.contains(LinkFlags::Up),
        group: group_of(&link),
    }))
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>, LinkError> {
    handle.link().get().execute().try_collect().await.map_err(unread("interfaces"))
}

async fn addresses(handle: &Handle) -> Result<Vec<AddressMessage>, LinkError> {
    handle.address().get().execute().try_collect().await.map_err(unread("addresses"))
}

/// The interface of this host whose network contains an address, and that network; absent: none does.
pub async fn neighbours(address: IpAddr) -> Result<Option<(String, IpNet)>, LinkError> {
    let handle = connect()?;
    let (links, listed) = (links(&handle).await?, addresses(&handle).await?);
    let found = listed.iter().find_map(|message| {
        let range = address_of(message).filter(|range| range.contains(&address))?;
        let link = links.iter().find(|link| link.header.index == message.header.index)?;
        Some((name_of(link)?.to_owned(), range.trunc()))
    });
    Ok(found)
}

/// The networks that the interfaces of this host are connected to, except those that are `ours` or of the
/// group of agents and servers; without single addresses and those of one link.
pub async fn connected(ours: &BTreeSet<String>) -> Result<Vec<(String, IpNet)>, LinkError> {
    let handle = connect()?;
    let (links, listed) = (links(&handle).await?, addresses(&handle).await?);
    let connected = listed.iter().filter_map(|message| {
        let range =
            address_of(message).filter(|it| !is_link_local(it) && it.prefix_len() < it.max_prefix_len())?;
        let link = links.iter().find(|link| link.header.index == message.header.index)?;
        let loopback = link.header.flags.contains(LinkFlags::Loopback);
        let name = name_of(link).filter(|name| !ours.contains(*name) && !loopback)?;
        if group_of(link) == GROUP {
            return None;
        }
        Some((name.to_owned(), range.trunc()))
    });
    Ok(connected.collect())
}

/// The interface by which packets to an address leave this host, if they carry no mark and their sender does
/// not matter; absent: they are refused.
pub async fn exit(to: IpAddr) -> Result<Option<String>, LinkError> {
    let handle = connect()?;
    let question = match to {
        IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build(),
        IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build(),
    };
    // The kernel answers with an error where nothing leads there.
    let routes: Vec<RouteMessage> =
        handle.route().get(question).execute().try_collect().await.unwrap_or_default();
    let index = routes.first().and_then(|route| exits(route).first().copied());
    let links = links(&handle).await?;
    let link = links.iter().find(|link| Some(link.header.index) == index);
    Ok(link.and_then(name_of).map(ToOwned::to_owned))
}

/// The route by which packets to an address leave this host past every network; absent: they are refused.
pub async fn way_out(to: IpAddr, mark: Mark) -> Result<Option<Exit>, LinkError> {
    let handle = connect()?;
    let mut question = match to {
        IpAddr::V4(to) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).mark(mark.bits()).build()
        }
        IpAddr::V6(to) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).mark(mark.bits()).build()
        }
    };
    // The route itself, not what follows from it for one packet.
    question.header.flags = RouteFlags::FibMatch;
    let routes: Vec<RouteMessage> =
        handle.route().get(question).execute().try_collect().await.unwrap_or_default();
    let Some(route) = routes.first() else { return Ok(None) };
    let links = links(&handle).await?;
    let exits = exits(route);
    let link = links.iter().find(|link| exits.first() == Some(&link.header.index));
    let Some(interface) = link.and_then(name_of).map(ToOwned::to_owned) else { return Ok(None) };
    let range = range_of(route).unwrap_or_else(|| IpNet::from(to));
    let forwards = route.header.kind == RouteType::Unicast;
    Ok(Some(Exit { interface, range, forwards }))
}

/// The interfaces of this host, each with whether it is up and has a carrier.
pub async fn carriers() -> Result<BTreeMap<String, bool>, LinkError> {
    let handle = connect()?;
    let links = links(&handle).await?;
    let runs = |link: &LinkMessage| link.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
    Ok(links.iter().filter_map(|link| Some((name_of(link)?.to_owned(), runs(link)))).collect())
}

/// Every address of this host, each with the name of its interface, but for interfaces of agents and servers.
pub async fn all_addresses() -> Result<Vec<(String, IpAddr)>, LinkError> {
    let handle = connect()?;
    let (links, listed) = (links(&handle).await?, addresses(&handle).await?);
    let named = listed.iter().filter_map(|message| {
        let link = links.iter().find(|link| link.header.index == message.header.index)?;
        let named = (name_of(link)?.to_owned(), address_of(message)?.addr());
        (!is_of_mesh(link)).then_some(named)
    });
    Ok(named.collect())
}

/// What overlaps a range on this host, by an address or a route other than the default one, and its
/// interface; interfaces that are `ours` do not count. Absent: nothing.
pub async fn overlapping(
    range: IpNet,
    ours: impl Fn(&str) -> bool,
) -> Result<Option<(String, IpNet)>, LinkError> {
    let handle = connect()?;
    let (links, listed) = (links(&handle).await?, addresses(&handle).await?);
    let addresses =
        listed.iter().filter_map(|message| Some((message.header.index, address_of(message)?.trunc())));
    let main = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<RouteMessage> =
        handle.route().get(main).execute().try_collect().await.map_err(unread("routes"))?;
    let routes = routes.iter().filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN);
    let routes = routes.filter_map(|route| Some((*exits(route).first()?, destination(route)?)));
    let all = addresses.chain(routes).filter(|(_, other)| overlap(&range, other));
    let named = all.filter_map(|(index, other)| {
        let link = links.iter().find(|link| link.header.index == index)?;
        Some((name_of(link)?.to_owned(), other))
    });
    Ok(named.into_iter().find(|(interface, _)| !ours(interface)))
}

/// Carries out the steps in their order, up to the first that fails.
pub async fn apply(interface: &str, steps: &[LinkStep]) -> Result<(), LinkError> {
    let handle = connect()?;
    let link = find(&handle, interface).await?;
    let link = link.ok_or_else(|| LinkError::Missing { interface: interface.to_owned() })?;
    for step in steps {
        carry_out(&handle, link.header.index, step).await.map_err(|source| match step {
            LinkStep::AddAddress(address @ IpNet::V6(_)) if means_no_ipv6(&source) => {
                LinkError::NoIpv6 { interface: interface.to_owned(), address: *address }
            }
            LinkStep::AddAddress(_)
            | LinkStep::AddPointToPoint { .. }
            | LinkStep::RemoveAddress(_)
            | LinkStep::SetGroup(_)
            | LinkStep::SetMtu(_)
            | LinkStep::Up => LinkError::Step { interface: interface.to_owned(), step: *step, source },
        })?;
    }
    Ok(())
}

/// Whether the host sends redirects by all interfaces.
fn sends_redirects() -> bool {
    fs::read_to_string(SEND_REDIRECTS).is_ok_and(|value| value.trim() == "1")
}

/// Has the host do so again.
fn send_redirects() {
    if let Err(error) = fs::write(SEND_REDIRECTS, "1") {
        tracing::debug!(%error, "{SEND_REDIRECTS} stays off");
    }
}

/// The MTU for a tunnel over the links that carry the default routes: what the narrower of IPv4's and IPv6's
/// leaves after WireGuard's overhead, from 1280 to 1420. Without a default route: 1420.
///
/// What is `ours` by its name, an interface of the mesh, is never the underlay.
pub async fn underlay_mtu(ours: impl Fn(&str) -> bool) -> Result<u16, LinkError> {
    let handle = connect()?;
    let links = links(&handle).await?;
    let underlay = links.iter().filter(|link| name_of(link).is_some_and(|name| !ours(name)));
    let mtus: BTreeMap<u32, u32> = underlay.map(|link| (link.header.index, mtu_of(link))).collect();
    let families =
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    let mut paths = Vec::new();
    for family in families {
        let routes: Vec<RouteMessage> =
            handle.route().get(family).execute().try_collect().await.map_err(unread("routes"))?;
        paths.extend(default_path(&routes, &mtus));
    }
    Ok(tunnel_mtu(&paths))
}

/// The MTU of the preferred default route of one family; absent: there is none.
fn default_path(routes: &[RouteMessage], mtus: &BTreeMap<u32, u32>) -> Option<u32> {
    let paths = routes.iter().filter(|route| is_default(route)).filter_map(|route| {
        let links = exits(route);
        let narrowest = links.iter().filter_map(|index| mtus.get(index)).min()?;
        Some((metric_of(route), own_mtu(route).map_or(*narrowest, |own| own.min(*narrowest))))
    });
    // Of several with the same preference, any may carry a packet: the narrowest counts.
    paths.min().map(|(_, mtu)| mtu)
}

/// The MTU that these paths leave for a tunnel.
fn tunnel_mtu(paths: &[u32]) -> u16 {
    let room = paths.iter().min().map_or(LARGEST, |path| path.saturating_sub(OVERHEAD));
    u16::try_from(room.clamp(SMALLEST, LARGEST)).expect("the bounds are below 65,536")
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.table == RouteHeader::RT_TABLE_MAIN
}

fn own_mtu(route: &RouteMessage) -> Option<u32> {
    let metrics = |attribute: &RouteAttribute| {
        if let RouteAttribute::Metrics(metrics) = attribute { Some(metrics.clone()) } else { None }
    };
    let stated = |metric: RouteMetric| if let RouteMetric::Mtu(mtu) = metric { Some(mtu) } else { None };
    route.attributes.iter().find_map(metrics)?.into_iter().find_map(stated)
}

async fn carry_out(handle: &Handle, index: u32, step: &LinkStep) -> io::Result<()> {
    let link = || LinkUnspec::new_with_index(index);
    match step {
        LinkStep::AddAddress(address) => add_address(handle, index, address).await,
        LinkStep::AddPointToPoint { local, peer } => add_point_to_point(handle, index, *local, *peer).await,
        LinkStep::RemoveAddress(address) => remove_address(handle, index, address).await,
        LinkStep::SetGroup(group) => {
            handle.link().set(link().link_group(*group).build()).execute().await.map_err(to_io)
        }
        LinkStep::SetMtu(mtu) => {
            handle.link().set(link().mtu((*mtu).into()).build()).execute().await.map_err(to_io)
        }
        LinkStep::Up => {
            let redirects = sends_redirects();
            let outcome = handle.link().set(link().up().build()).execute().await.map_err(to_io);
            if redirects && !sends_redirects() {
                send_redirects();
            }
            outcome
        }
    }
}

async fn add_address(handle: &Handle, index: u32, address: &IpNet) -> io::Result<()> {
    let mut request = handle.address().add(index, address.addr(), address.prefix_len()).replace();
    let message = request.message_mut();
    // A tunnel has no broadcast; rtnetlink adds one.
    message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
    if address.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await.map_err(to_io)
}

async fn add_point_to_point(handle: &Handle, index: u32, local: Ipv4Addr, peer: Ipv4Addr) -> io::Result<()> {
    let mut request = handle.address().add(index, local.into(), 32).replace();
    let ends = [AddressAttribute::Local(local.into()), AddressAttribute::Address(peer.into())];
    request.message_mut().attributes = ends.to_vec();
    request.execute().await.map_err(to_io)
}

async fn remove_address(handle: &Handle, index: u32, address: &IpNet) -> io::Result<()> {
    let mut request = handle.address().add(index, address.addr(), address.prefix_len());
    let message = request.message_mut().clone();
    match handle.address().del(message).execute().await.map_err(to_io) {
        Err(error) if is(&error, Errno::ADDRNOTAVAIL) => Ok(()),
        outcome => outcome,
    }
}

fn connect() -> Result<Handle, LinkError> {
    super::netlink::connect().map_err(|source| LinkError::Read { what: "interfaces", source })
}

async fn find(handle: &Handle, interface: &str) -> Result<Option<LinkMessage>, LinkError> {
    let mut found = Box::pin(handle.link().get().match_name(interface).execute());
    match found.try_next().await.map_err(to_io) {
        Ok(link) => Ok(link),
        Err(error) if is(&error, Errno::NODEV) => Ok(None),
        Err(source) => Err(LinkError::Read { what: "interfaces", source }),
    }
}

fn mtu_of(link: &LinkMessage) -> u32 {
    let stated =
        |attribute: &LinkAttribute| if let LinkAttribute::Mtu(mtu) = attribute { Some(*mtu) } else { None };
    link.attributes.iter().find_map(stated).unwrap_or(0)
}

/// Whether an interface is an agent's or a server's: by its group, or, as those of earlier versions have none
/// until their agent is updated, a tunnel by its name.
fn is_of_mesh(link: &LinkMessage) -> bool {
    let kind = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Wireguard | InfoKind::Tun));
    let is_tunnel = link
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.iter().any(kind)));
    group_of(link) == GROUP || is_tunnel && name_of(link).is_some_and(|name| name.starts_with("nm-"))
}

fn group_of(link: &LinkMessage) -> u32 {
    let stated = |attribute: &LinkAttribute| {
        if let LinkAttribute::Group(group) = attribute { Some(*group) } else { None }
    };
    link.attributes.iter().find_map(stated).unwrap_or(0)
}

/// The address itself: `Local` where there is one, since `Address` is then the peer of a point-to-point link.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(local) = attribute {
            address = Some(*local);
        } else if let AddressAttribute::Address(other) = attribute {
            address = address.or(Some(*other));
        }
    }
    IpNet::new(address?, message.header.prefix_len).ok()
}

fn is_link_local(address: &IpNet) -> bool {
    matches!(address, IpNet::V6(address) if address.addr().is_unicast_link_local())
}

fn means_no_ipv6(error: &io::Error) -> bool {
    is(error, Errno::ACCESS) || is(error, Errno::OPNOTSUPP) || is(error, Errno::AFNOSUPPORT)
}

fn unread(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    move |error| LinkError::Read { what, source: to_io(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default_by(index: u32, priority: u32, own: Option<u32>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Priority(priority)];
        route.attributes.extend(own.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        route
    }

    fn network_by(index: u32) -> RouteMessage {
        let mut route = default_by(index, 0, None);
        route.header.destination_prefix_length = 16;
        route
    }

    #[tokio::test]
    async fn the_addresses_of_this_host_are_listed_with_their_interfaces() {
        let found = all_addresses().await.expect("the kernel answers");
        assert!(found.contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST.into())), "{found:?}");
    }

    #[test]
    fn an_interface_is_a_meshs_by_its_group_or_as_a_tunnel_of_an_earlier_version() {
        let link = |name: &str, kind, group| {
            let mut link = LinkMessage::default();
            let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
            link.attributes = vec![LinkAttribute::IfName(name.into()), info, LinkAttribute::Group(group)];
            link
        };
        let cases = [
            (link("nm-corp", InfoKind::Wireguard, 0), true),
            (link("nm-corp", InfoKind::Tun, 0), true),
            (link("mine", InfoKind::Wireguard, GROUP), true),
            (link("wg0", InfoKind::Wireguard, 0), false),
            (link("nm-bridge", InfoKind::Bridge, 0), false),
            (link("nm-eth", InfoKind::Veth, 0), false),
        ];
        for (link, expected) in cases {
            assert_eq!(is_of_mesh(&link), expected, "{link:?}");
        }
    }

    #[test]
    fn the_preferred_default_route_determines_the_path() {
        let mtus = BTreeMap::from([(1, 1500), (2, 1400), (3, 9000)]);
        let table: [(&str, Vec<RouteMessage>, Option<u32>); 6] = [
            ("none", vec![], None),
            ("only a network", vec![network_by(2)], None),
            ("the lower metric", vec![default_by(1, 100, None), default_by(2, 200, None)], Some(1500)),
            ("two alike", vec![default_by(1, 100, None), default_by(2, 100, None)], Some(1400)),
            ("its own MTU", vec![default_by(3, 0, Some(1450))], Some(1450)),
            ("by our own tunnel", vec![default_by(9, 0, None), default_by(1, 50, None)], Some(1500)),
        ];
        for (name, routes, expected) in table {
            assert_eq!(default_path(&routes, &mtus), expected, "{name}");
        }
    }

    #[test]
    fn a_tunnel_fits_every_path_within_its_bounds() {
        for (paths, expected) in [
            (&[][..], 1420),
            (&[1500], 1420),
            (&[9000], 1420),
            (&[1500, 1492], 1412),
            (&[1300], 1280),
            (&[68], 1280),
        ] {
            assert_eq!(tunnel_mtu(paths), expected, "{paths:?}");
        }
    }

    #[test]
    fn a_step_reads_as_a_sentence() {
        let address = "10.0.0.1/16".parse().expect("a good address");
        let error = LinkError::Step {
            interface: "nm".to_owned(),
            step: LinkStep::AddAddress(address),
            source: io::Error::from(io::ErrorKind::PermissionDenied),
        };
        assert_eq!(error.to_string(), "cannot add the address 10.0.0.1/16 to the interface nm");
    }
}
