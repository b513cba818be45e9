//! Hears what others do to what an agent stands on, or forwards to: links, addresses, routes, rules, the packet
//! filter.
//!
//! Of links, addresses, routes and rules it hears of the agent's own changes as well: an event only starts a
//! comparison, which finds nothing to do. Of the packet filter, whose tables are large, it distinguishes the agent's
//! own changes from others' ([`OwnTables`]). What the kernel could not queue is reported as everything at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use rtnetlink::packet_route::rule::RuleAttribute;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;

use super::link::address_of;
use super::netlink::{messages, name_of};
use super::own_tables::OwnTables;
use crate::outside::Slot;

/// What somebody did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An interface of this name is gone, went down, or lost an address.
    Link(String),
    /// An interface of this name may reach what it did not: it has a carrier and an address, one of them new.
    Connected(String),
    /// A route or a rule of the agent's is gone, or a rule of another program's came or went, which may lead
    /// packets elsewhere.
    Routing,
    /// An interface's carrier, or a route of the host's own, came or went: what an egress is behind may have.
    Surroundings,
    /// Somebody else changed something in a table of the packet filter that the agent has set.
    Filter,
}

/// What is watched of links and routes.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// Changes of the packet filter (NFNLGRP_NFTABLES; linux/netfilter/nfnetlink.h).
const NFTABLES: u32 = 7;
/// How many bytes of them the kernel may keep until they are read. The agent hears of what it sets itself, too:
/// a table of 10,000 members is 20,000 elements, each a message of less than 200 bytes.
const QUEUE: usize = 8 << 20;

/// Watches the network namespace of the calling thread for an agent, until the receiver is dropped; what `own`
/// is shared with for its changes of the packet filter is not reported of it. Needs a runtime.
pub fn watch(slot: Slot, own: OwnTables) -> io::Result<mpsc::UnboundedReceiver<HostEvent>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (connection, handle, messages) = new_multicast_connection(&GROUPS)?;
    tokio::spawn(connection);
    tokio::spawn(routing(slot, handle, messages, sender.clone()));
    // A kernel without nftables has nothing of it to watch.
    match filter_socket() {
        Ok(socket) => {
            own.watched();
            tokio::spawn(filter(own, socket, sender));
        }
        Err(error) => tracing::debug!(%error, "the packet filter is not watched"),
    }
    Ok(receiver)
}

type Messages = futures_util::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

async fn routing(
    slot: Slot,
    handle: Handle,
    messages: impl StreamExt<Item = (NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>
    + Send
    + 'static,
    events: mpsc::UnboundedSender<HostEvent>,
) {
    let mut links = Links::new(&handle).await;
    let mut messages: Messages = messages.map(|(message, _)| message).boxed();
    while let Some(message) = messages.next().await {
        let event = if let NetlinkPayload::InnerMessage(message) = message.payload {
            links.read(slot, message)
        } else if let NetlinkPayload::Overrun(_) = message.payload {
            // Some messages are lost, so what is known may be of before them.
            links = Links::new(&handle).await;
            Some(HostEvent::Routing)
        } else {
            None
        };
        if let Some(event) = event
            && events.send(event).is_err()
        {
            return;
        }
    }
}

/// The interfaces that there are.
#[derive(Default)]
struct Links {
    /// Their names, which most messages leave out.
    names: BTreeMap<u32, String>,
    /// Those with a carrier.
    running: BTreeSet<u32>,
    /// Their addresses, of which a router's announcements make a message again and again.
    addresses: BTreeSet<(u32, IpNet)>,
}

impl Links {
    async fn new(handle: &Handle) -> Self {
        let mut known = Self::default();
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.unwrap_or_default();
        for link in links {
            known.learn(&link);
        }
        let addresses: Vec<AddressMessage> =
            handle.address().get().execute().try_collect().await.unwrap_or_default();
        known.addresses = addresses.iter().filter_map(usable).collect();
        known
    }

    /// Its name, and whether it has come to have a carrier (true), or to have none.
    fn learn(&mut self, link: &LinkMessage) -> Option<(String, Option<bool>)> {
        let (index, name) = (link.header.index, name_of(link)?.to_owned());
        self.names.insert(index, name.clone());
        let runs = link.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
        let changed = if runs { self.running.insert(index) } else { self.running.remove(&index) };
        Some((name, changed.then_some(runs)))
    }

    fn read(&mut self, slot: Slot, message: RouteNetlinkMessage) -> Option<HostEvent> {
        if let RouteNetlinkMessage::NewLink(link) = message {
            let (name, carrier) = self.learn(&link)?;
            let has_address = self.addresses.iter().any(|&(index, _)| index == link.header.index);
            if carrier == Some(true) && has_address {
                return Some(HostEvent::Connected(name));
            }
            if !link.header.flags.contains(LinkFlags::Up) {
                return Some(HostEvent::Link(name));
            }
            carrier.map(|_| HostEvent::Surroundings)
        } else if let RouteNetlinkMessage::DelLink(link) = message {
            let index = link.header.index;
            self.running.remove(&index);
            self.addresses.retain(|&(of, _)| of != index);
            let known = self.names.remove(&index);
            Some(HostEvent::Link(known.or_else(|| name_of(&link).map(ToOwned::to_owned))?))
        } else if let RouteNetlinkMessage::NewAddress(address) = message {
            let index = address.header.index;
            let new = self.addresses.insert(usable(&address)?) && self.running.contains(&index);
            self.names.get(&index).filter(|_| new).cloned().map(HostEvent::Connected)
        } else if let RouteNetlinkMessage::DelAddress(address) = message {
            let index = address.header.index;
            self.addresses.retain(|&(of, known)| (of, Some(known)) != (index, address_of(&address)));
            self.names.get(&index).cloned().map(HostEvent::Link)
        } else if let RouteNetlinkMessage::DelRoute(route) = message {
            let ours = u8::from(route.header.protocol) == slot.protocol();
            if ours { Some(HostEvent::Routing) } else { surroundings(&route) }
        } else if let RouteNetlinkMessage::NewRoute(route) = message {
            let ours = u8::from(route.header.protocol) == slot.protocol();
            if ours { None } else { surroundings(&route) }
        } else if let RouteNetlinkMessage::DelRule(_) = message {
            Some(HostEvent::Routing)
        } else if let RouteNetlinkMessage::NewRule(rule) = message {
            let ours = |it: &RuleAttribute| matches!(it, RuleAttribute::Protocol(by) if u8::from(*by) == slot.protocol());
            (!rule.attributes.iter().any(ours)).then_some(HostEvent::Routing)
        } else {
            None
        }
    }
}

/// What a route of others says; nothing, if it leads to an address of the host itself.
fn surroundings(route: &RouteMessage) -> Option<HostEvent> {
    (route.header.kind == RouteType::Unicast).then_some(HostEvent::Surroundings)
}

/// The interface and the address, if connections may come from that: it is not the link's or the host's only,
/// and no other host has it.
fn usable(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    if message.header.scope != AddressScope::Universe || message.header.flags.intersects(unusable) {
        return None;
    }
    Some((message.header.index, address_of(message)?))
}

fn filter_socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    // Without the privilege there is less room: what is lost is reported as everything.
    if let Err(error) = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket.socket_mut(), QUEUE) {
        tracing::debug!(%error, "the queue for messages of the packet filter keeps its size");
    }
    socket.socket_mut().add_membership(NFTABLES)?;
    Ok(socket)
}

async fn filter(own: OwnTables, socket: TokioSocket, events: mpsc::UnboundedSender<HostEvent>) {
    loop {
        let changed = match socket.recv_from_full().await {
            // Each is taken in, whatever those before it said.
            Ok((bytes, _)) => messages(&bytes).filter(|message| own.hear(message)).count() > 0,
            Err(error) => {
                // More came than the kernel could queue: anything may have happened.
                tracing::debug!(%error, "messages of the packet filter were lost");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                true
            }
        };
        if changed && events.send(HostEvent::Filter).is_err() || events.is_closed() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::address::AddressAttribute;
    use rtnetlink::packet_route::link::LinkAttribute;

    use super::*;
    use crate::outside::Mark;

    #[test]
    fn a_new_address_or_carrier_connects_once_and_again_after_it_was_gone() {
        let slot = Slot::candidates("/d".as_ref(), "/d".as_ref(), Mark::default())[0];
        let link = |flags| {
            let mut link = LinkMessage::default();
            link.header.index = 2;
            link.header.flags = flags;
            link.attributes.push(LinkAttribute::IfName("eth0".to_owned()));
            RouteNetlinkMessage::NewLink(link)
        };
        let address = |scope, flags| {
            let mut address = AddressMessage::default();
            address.header.index = 2;
            address.header.scope = scope;
            address.header.flags = flags;
            address.attributes.push(AddressAttribute::Address([192, 0, 2, 1].into()));
            address
        };
        let new = |scope, flags| RouteNetlinkMessage::NewAddress(address(scope, flags));
        let plain = AddressHeaderFlags::empty();
        let gone = RouteNetlinkMessage::DelAddress(address(AddressScope::Universe, plain));
        let (up, running) = (LinkFlags::Up, LinkFlags::Up | LinkFlags::Running);
        let connected = Some(HostEvent::Connected("eth0".to_owned()));
        let changed = Some(HostEvent::Link("eth0".to_owned()));
        let mut links = Links::default();
        for (what, message, event) in [
            ("a carrier without an address", link(running), Some(HostEvent::Surroundings)),
            ("an address for the link only", new(AddressScope::Link, plain), None),
            ("one that may be another's", new(AddressScope::Universe, AddressHeaderFlags::Tentative), None),
            ("an address", new(AddressScope::Universe, plain), connected.clone()),
            ("the same, announced again", new(AddressScope::Universe, plain), None),
            ("it is gone", gone, changed.clone()),
            ("it is there again", new(AddressScope::Universe, plain), connected.clone()),
            ("the cable is out", link(up), Some(HostEvent::Surroundings)),
            ("it is in", link(running), connected),
            ("another message of that", link(running), None),
            ("the interface is down", link(LinkFlags::empty()), changed),
            ("an address without a carrier", new(AddressScope::Universe, plain), None),
        ] {
            assert_eq!(links.read(slot, message), event, "{what}");
        }
    }
}
