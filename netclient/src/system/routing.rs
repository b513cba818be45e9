//! Routes and rules of an agent's own, which carry its protocol number: observe and apply.
//!
//! What should be is decided elsewhere (see [`outside`](crate::outside)); nothing without that number is
//! touched. The kernel is asked anew each time, in the network namespace of the calling thread.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use rustix::io::Errno;

use super::netlink::{connect, everything, exits, is, metric_of, name_of, range_of, table_of, to_io};
use super::rp_filter;
use crate::outside::{Act, LAST_METRIC, MAIN, METRIC, Place, Routing, RoutingStep, Rule, Slot, Way};

/// Why routes or rules could not be observed or changed.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// The kernel could not be asked.
    #[error("cannot read the {what} of this host")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A step failed.
    #[error("cannot {attempt}")]
    Step {
        /// What was attempted, as an infinitive.
        attempt: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Brings the routes and rules of an agent to what they should be, up to the first step that fails. A route
/// to an interface that is absent or down is passed over: whoever brings the interface up comes here again.
pub async fn bring(slot: Slot, wanted: &Routing) -> Result<(), RoutingError> {
    let handle = connect().map_err(|source| RoutingError::Read { what: "routes", source })?;
    let links = links(&handle).await?;
    let observed = observe(&handle, slot, &links).await?;
    wanted.rules.iter().filter_map(|rule| rule.from.as_deref()).for_each(rp_filter::set_loose);
    for step in crate::outside::routing_steps(wanted, &observed) {
        apply(&handle, slot, &links, &step)
            .await
            .map_err(|source| RoutingError::Step { attempt: attempt(&step), source })?;
    }
    Ok(())
}

/// The interfaces that routes of a slot lead to, whatever the interfaces are called.
pub async fn interfaces(slot: Slot) -> Result<BTreeSet<String>, RoutingError> {
    let handle = connect().map_err(|source| RoutingError::Read { what: "routes", source })?;
    let links = links(&handle).await?;
    let routes = observe(&handle, slot, &links).await?.routes;
    Ok(routes.values().filter_map(|way| Some(way.interface()?.to_owned())).collect())
}

/// Whether any routing rule of IPv4, whoever made it, asks for a packet's mark.
pub async fn asks_for_marks() -> Result<bool, RoutingError> {
    let handle = connect().map_err(|source| RoutingError::Read { what: "routing rules", source })?;
    let asks = |rule: &RuleMessage| {
        rule.attributes.iter().any(|it| matches!(it, RuleAttribute::FwMark(_) | RuleAttribute::FwMask(_)))
    };
    Ok(rules(&handle, IpVersion::V4).await.iter().any(asks))
}

/// The routing rules of a family; a kernel without policy routing, or without IPv6, has none.
async fn rules(handle: &Handle, version: IpVersion) -> Vec<RuleMessage> {
    handle.rule().get(version).execute().try_collect().await.unwrap_or_else(|error| {
        tracing::debug!(%error, "there are no routing rules");
        Vec::new()
    })
}

/// The interfaces of the host that are up, by index.
async fn links(handle: &Handle) -> Result<BTreeMap<u32, String>, RoutingError> {
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(unread("interfaces"))?;
    let up = links.iter().filter(|link| link.header.flags.contains(LinkFlags::Up));
    Ok(up.filter_map(|link| Some((link.header.index, name_of(link)?.to_owned()))).collect())
}

async fn observe(
    handle: &Handle,
    slot: Slot,
    links: &BTreeMap<u32, String>,
) -> Result<Routing, RoutingError> {
    let mut routing = Routing::default();
    for version in [IpVersion::V4, IpVersion::V6] {
        let all = match version {
            IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let routes: Vec<RouteMessage> =
            handle.route().get(all).execute().try_collect().await.map_err(unread("routes"))?;
        let ours = routes.iter().filter(|route| {
            let table = table_of(route);
            let made = table == slot.table() || table == MAIN && metric_of(route) == METRIC;
            made && u8::from(route.header.protocol) == slot.protocol()
        });
        routing.routes.extend(ours.filter_map(|route| read_route(route, links)));
        routing.rules.extend(rules(handle, version).await.iter().filter_map(|rule| read(slot, rule)));
    }
    Ok(routing)
}

/// A route of ours; absent: it leads to an interface that is down, or is not one that is ever made: then it is
/// not known, and stays.
fn read_route(route: &RouteMessage, links: &BTreeMap<u32, String>) -> Option<(Place, Way)> {
    let kind = route.header.kind;
    let way = if kind == RouteType::Unicast {
        Way::Into(links.get(exits(route).first()?)?.clone())
    } else if kind == RouteType::Unreachable {
        Way::Refused
    } else if kind == RouteType::Throw {
        Way::Aside
    } else {
        return None;
    };
    let last = metric_of(route) == LAST_METRIC;
    Some((Place { table: table_of(route), range: range_of(route)?, last }, way))
}

/// A rule of ours; absent: it is none, or not one that is ever made: then it is not known, and stays.
fn read(slot: Slot, message: &RuleMessage) -> Option<Rule> {
    // A rule for everything has no destination.
    let (mut preference, mut ours, mut unmarked) = (0, false, 0);
    let (mut suppresses, mut from) = (false, None);
    let mut to = everything(message.header.family).filter(|_| message.header.dst_len == 0);
    for attribute in &message.attributes {
        if let RuleAttribute::Priority(number) = attribute {
            preference = *number;
        } else if let RuleAttribute::Destination(address) = attribute {
            to = IpNet::new(*address, message.header.dst_len).ok();
        } else if let RuleAttribute::Protocol(protocol) = attribute {
            ours = u8::from(*protocol) == slot.protocol();
        } else if let RuleAttribute::FwMask(mask) = attribute {
            unmarked = *mask;
        } else if let RuleAttribute::Iifname(interface) = attribute {
            from = Some(interface.clone());
        } else if let RuleAttribute::SuppressPrefixLen(length) = attribute {
            // The kernel says -1 where nothing is suppressed.
            suppresses = *length != u32::MAX;
        }
    }
    let main = u32::from(message.header.table) == MAIN;
    let act = if message.header.action == RuleAction::Unreachable {
        Act::Unreachable
    } else if message.header.action == RuleAction::ToTable {
        match main {
            true if suppresses => Act::Main,
            true => Act::WholeMain,
            false => Act::Own,
        }
    } else {
        return None;
    };
    ours.then_some(Rule { preference, to: to?, act, unmarked, from })
}

async fn apply(
    handle: &Handle,
    slot: Slot,
    links: &BTreeMap<u32, String>,
    step: &RoutingStep,
) -> io::Result<()> {
    match step {
        RoutingStep::AddRule(rule) => {
            let mut request = handle.rule().add();
            *request.message_mut() = rule_message(slot, rule);
            absent_is_fine(request.execute().await, &with_no_ipv6(rule.to, Errno::EXIST))
        }
        RoutingStep::RemoveRule(rule) => {
            absent_is_fine(handle.rule().del(rule_message(slot, rule)).execute().await, &[Errno::NOENT])
        }
        RoutingStep::PutRoute(place, way) => {
            let mut message = route_message(slot, *place);
            message.header.kind = match way {
                Way::Into(_) => RouteType::Unicast,
                Way::Refused => RouteType::Unreachable,
                Way::Aside => RouteType::Throw,
            };
            if let Some(interface) = way.interface() {
                let Some((index, _)) = links.iter().find(|(_, name)| *name == interface) else {
                    return Ok(());
                };
                message.attributes.push(RouteAttribute::Oif(*index));
                if place.range.addr().is_ipv4() {
                    message.header.scope = RouteScope::Link;
                }
            }
            // It may go down, or away, at any moment.
            let outcome = handle.route().add(message).replace().execute().await;
            absent_is_fine(outcome, &with_no_ipv6(place.range, Errno::NETDOWN))
        }
        RoutingStep::RemoveRoute(place) => {
            // Of whatever kind and scope it is (ip-route(8) deletes like this).
            let mut message = route_message(slot, *place);
            message.header.kind = RouteType::Unspec;
            message.header.scope = RouteScope::NoWhere;
            absent_is_fine(handle.route().del(message).execute().await, &[Errno::SRCH, Errno::NOENT])
        }
    }
}

/// What is no failure: this, an interface that is gone, and for IPv6 that the host has it turned off. Then
/// the network works by IPv4 alone.
fn with_no_ipv6(range: IpNet, fine: Errno) -> Vec<Errno> {
    let mut all = vec![fine, Errno::NODEV];
    if let IpNet::V6(_) = range {
        all.extend([Errno::ACCESS, Errno::OPNOTSUPP, Errno::AFNOSUPPORT]);
    }
    all
}

fn absent_is_fine(outcome: Result<(), rtnetlink::Error>, fine: &[Errno]) -> io::Result<()> {
    match outcome.map_err(to_io) {
        Err(error) if fine.iter().any(|errno| is(&error, *errno)) => Ok(()),
        outcome => outcome,
    }
}

fn rule_message(slot: Slot, Rule { preference, to, act, unmarked, from }: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(to.addr());
    message.header.dst_len = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes = vec![
        RuleAttribute::Destination(to.network()),
        RuleAttribute::Priority(*preference),
        RuleAttribute::Protocol(RouteProtocol::from(slot.protocol())),
    ];
    message.attributes.extend(from.iter().map(|interface| RuleAttribute::Iifname(interface.clone())));
    let unmarked = [RuleAttribute::FwMark(0), RuleAttribute::FwMask(*unmarked)];
    match act {
        Act::Main => {
            message.header.action = RuleAction::ToTable;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message
                .attributes
                .push(RuleAttribute::SuppressPrefixLen(u32::from(to.prefix_len()).saturating_sub(1)));
        }
        Act::WholeMain => {
            message.header.action = RuleAction::ToTable;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
        }
        Act::Own => {
            message.header.action = RuleAction::ToTable;
            message.attributes.push(RuleAttribute::Table(slot.table()));
            message.attributes.extend(unmarked);
        }
        Act::Unreachable => {
            message.header.action = RuleAction::Unreachable;
            message.attributes.extend(unmarked);
        }
    }
    message
}

fn route_message(slot: Slot, Place { table, range, last }: Place) -> RouteMessage {
    let protocol = RouteProtocol::from(slot.protocol());
    let mut message = match range {
        IpNet::V4(range) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .table_id(table)
            .protocol(protocol)
            .build(),
        IpNet::V6(range) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .table_id(table)
            .protocol(protocol)
            .build(),
    };
    let metric = if last { Some(LAST_METRIC) } else { (table == MAIN).then_some(METRIC) };
    message.attributes.extend(metric.map(RouteAttribute::Priority));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn unread(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> RoutingError {
    move |error| RoutingError::Read { what, source: to_io(error) }
}

fn attempt(step: &RoutingStep) -> String {
    match step {
        RoutingStep::AddRule(rule) => {
            format!("add the routing rule for {} at preference {}", rule.to, rule.preference)
        }
        RoutingStep::RemoveRule(rule) => {
            format!("remove the routing rule for {} at preference {}", rule.to, rule.preference)
        }
        RoutingStep::PutRoute(Place { range, .. }, Way::Into(interface)) => {
            format!("route {range} to {interface}")
        }
        RoutingStep::PutRoute(Place { range, .. }, Way::Refused) => {
            format!("add the route that refuses {range}")
        }
        RoutingStep::PutRoute(Place { range, .. }, Way::Aside) => {
            format!("add the route that leaves {range} to the main table")
        }
        RoutingStep::RemoveRoute(Place { range, .. }) => format!("remove the route to {range}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_back_as_it_is_written() {
        let usual = std::path::Path::new("/etc/netclient");
        let slot_of =
            |directory: &str| Slot::candidates(std::path::Path::new(directory), usual, Default::default())[0];
        let slot = slot_of("/etc/netclient");
        for range in ["10.40.0.0/16", "fd40::/64", "0.0.0.0/0", "::/0"] {
            for (act, unmarked) in
                [(Act::Main, 0), (Act::WholeMain, 0), (Act::Own, 0x10), (Act::Unreachable, 0x100)]
            {
                for from in [None, Some("nm-corp".to_owned())] {
                    let to = range.parse().expect("a range");
                    let rule = Rule { preference: 4_748, to, act, unmarked, from };
                    let foreign = slot_of("/elsewhere");
                    assert_eq!(read(foreign, &rule_message(slot, &rule)), None, "another agent's");
                    assert_eq!(read(slot, &rule_message(slot, &rule)), Some(rule));
                }
            }
        }
    }

    #[test]
    fn a_route_reads_back_as_it_is_written() {
        let usual = std::path::Path::new("/etc/netclient");
        let slot = Slot::candidates(usual, usual, Default::default())[0];
        let links = BTreeMap::from([(7, "nm-corp".to_owned())]);
        for range in ["10.40.0.0/16", "fd40::/64", "0.0.0.0/0", "::/0"] {
            for (kind, last, way) in [
                (RouteType::Unicast, false, Way::Into("nm-corp".into())),
                (RouteType::Unreachable, true, Way::Refused),
                (RouteType::Throw, false, Way::Aside),
            ] {
                let place = Place { table: slot.table(), range: range.parse().expect("a range"), last };
                let mut message = route_message(slot, place);
                message.header.kind = kind;
                message.attributes.push(RouteAttribute::Oif(7));
                assert_eq!(read_route(&message, &links), Some((place, way)));
            }
        }
    }
}
