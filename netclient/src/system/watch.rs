//! Hears what others do to what an agent stands on: links, addresses, routes, rules, the packet filter.
//!
//! It hears of the agent's own changes as well: an event only starts a comparison, which finds nothing to do.
//! What the kernel could not queue is reported as everything at once.

use std::collections::BTreeMap;
use std::io;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_route::rule::RuleAttribute;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;

use super::netlink::name_of;
use crate::outside::Slot;

/// What somebody did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An interface of this name is gone, went down, or lost an address.
    Link(String),
    /// A route or a rule of the agent's is gone, or a rule of another program's came or went, which may lead
    /// packets elsewhere.
    Routing,
    /// A table of the agent's, or a part of one, is gone from the packet filter.
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
/// The part of a message's type that says nftables, and the messages by which tables, chains and rules go
/// (linux/netfilter/nfnetlink.h, nf_tables.h).
const SUBSYSTEM: u16 = 10;
const GONE: [u16; 3] = [2, 5, 8];

/// Watches the network namespace of the calling thread for an agent, until the receiver is dropped. Needs a
/// runtime.
pub fn watch(slot: Slot) -> io::Result<mpsc::UnboundedReceiver<HostEvent>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (connection, handle, messages) = new_multicast_connection(&GROUPS)?;
    tokio::spawn(connection);
    tokio::spawn(routing(slot, handle, messages, sender.clone()));
    // A kernel without nftables has nothing of it to watch.
    match filter_socket() {
        Ok(socket) => drop(tokio::spawn(filter(slot, socket, sender))),
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

/// The names of the interfaces, which most messages leave out.
struct Links(BTreeMap<u32, String>);

impl Links {
    async fn new(handle: &Handle) -> Self {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.unwrap_or_default();
        Self(links.iter().filter_map(|link| Some((link.header.index, name_of(link)?.to_owned()))).collect())
    }

    fn read(&mut self, slot: Slot, message: RouteNetlinkMessage) -> Option<HostEvent> {
        if let RouteNetlinkMessage::NewLink(link) = message {
            let name = name_of(&link)?.to_owned();
            self.0.insert(link.header.index, name.clone());
            (!link.header.flags.contains(LinkFlags::Up)).then_some(HostEvent::Link(name))
        } else if let RouteNetlinkMessage::DelLink(link) = message {
            let known = self.0.remove(&link.header.index);
            Some(HostEvent::Link(known.or_else(|| name_of(&link).map(ToOwned::to_owned))?))
        } else if let RouteNetlinkMessage::DelAddress(address) = message {
            self.0.get(&address.header.index).cloned().map(HostEvent::Link)
        } else if let RouteNetlinkMessage::DelRoute(route) = message {
            (u8::from(route.header.protocol) == slot.protocol()).then_some(HostEvent::Routing)
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

fn filter_socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().add_membership(NFTABLES)?;
    Ok(socket)
}

async fn filter(slot: Slot, socket: TokioSocket, events: mpsc::UnboundedSender<HostEvent>) {
    let table = slot.filter();
    loop {
        let gone = match socket.recv_from_full().await {
            Ok((bytes, _)) => messages(&bytes).any(|message| takes_away(message, &table)),
            Err(error) => {
                // More came than the kernel could queue: anything may have happened.
                tracing::debug!(%error, "messages of the packet filter were lost");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                true
            }
        };
        if gone && events.send(HostEvent::Filter).is_err() || events.is_closed() {
            return;
        }
    }
}

/// The messages in what was received at once: each begins with its length, and is padded to four bytes
/// (netlink(7)).
fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let message = rest.get(..length.max(16))?;
        rest = rest.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Whether a message says that a table of this name, or a part of it, is gone.
fn takes_away(message: &[u8], table: &str) -> bool {
    let Some(kind) = message.get(4..6).and_then(|kind| Some(u16::from_ne_bytes(kind.try_into().ok()?)))
    else {
        return false;
    };
    // The name is an attribute, which ends with NUL.
    let name: Vec<u8> = table.bytes().chain([0]).collect();
    kind >> 8 == SUBSYSTEM
        && GONE.contains(&(kind & 0xff))
        && message[16..].windows(name.len()).any(|window| window == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_what_takes_a_table_of_ours_away_counts() {
        let of = |kind: u16, name: &str| {
            let bytes = message(SUBSYSTEM << 8 | kind, name.as_bytes());
            messages(&bytes).any(|message| takes_away(message, "nm-own"))
        };
        assert!(of(2, "xnm-own\0") && of(5, "nm-own\0") && of(8, "nm-own\0"));
        assert!(!of(0, "nm-own\0"), "it is made");
        assert!(!of(2, "nm-own-3\0"), "another agent's");
        assert!(!of(14, "nm-own\0"), "an element");
        let two =
            [message(SUBSYSTEM << 8 | 2, b"other\0"), message(SUBSYSTEM << 8 | 2, b"nm-own\0")].concat();
        assert_eq!(messages(&two).filter(|message| takes_away(message, "nm-own")).count(), 1);
        assert_eq!(messages(&[0; 7]).count(), 0);
    }
}
