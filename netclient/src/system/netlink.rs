//! What every conversation with the kernel about links and routes needs: opening one, and reading its
//! messages.

use std::io;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rustix::io::Errno;

/// Opens a conversation with the kernel, which ends when the handle is dropped.
pub(super) fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

pub(super) fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::IfName(name) = attribute { Some(name.as_str()) } else { None }
    })
}

pub(super) fn exits(route: &RouteMessage) -> Vec<u32> {
    let mut links = Vec::new();
    for attribute in &route.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            links.push(*index);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            links.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    links
}

/// The range that a route leads to; absent: it is a default route.
pub(super) fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = |attribute: &RouteAttribute| {
        let RouteAttribute::Destination(to) = attribute else { return None };
        if let RouteAddress::Inet(to) = to {
            return Some(IpAddr::V4(*to));
        }
        if let RouteAddress::Inet6(to) = to { Some(IpAddr::V6(*to)) } else { None }
    };
    IpNet::new(route.attributes.iter().find_map(address)?, route.header.destination_prefix_length).ok()
}

/// The range that a route leads to, a default route's as well.
pub(super) fn range_of(route: &RouteMessage) -> Option<IpNet> {
    destination(route).or_else(|| {
        everything(route.header.address_family).filter(|_| route.header.destination_prefix_length == 0)
    })
}

/// Every address of a family.
pub(super) fn everything(family: AddressFamily) -> Option<IpNet> {
    if family == AddressFamily::Inet {
        Some(Ipv4Net::default().into())
    } else if family == AddressFamily::Inet6 {
        Some(Ipv6Net::default().into())
    } else {
        None
    }
}

/// How far a route is preferred: the lower, the more. Absent in a message: 0.
pub(super) fn metric_of(route: &RouteMessage) -> u32 {
    let stated =
        |it: &RouteAttribute| if let RouteAttribute::Priority(metric) = it { Some(*metric) } else { None };
    route.attributes.iter().find_map(stated).unwrap_or(0)
}

/// The routing table that a route is in.
pub(super) fn table_of(route: &RouteMessage) -> u32 {
    let stated =
        |it: &RouteAttribute| if let RouteAttribute::Table(table) = it { Some(*table) } else { None };
    route.attributes.iter().find_map(stated).unwrap_or_else(|| route.header.table.into())
}

/// The messages in what was received at once: each begins with its length, and is padded to four bytes
/// (netlink(7)).
pub(super) fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let message = rest.get(..length.max(16))?;
        rest = rest.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

pub(super) fn to_io(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(message) = &error {
        message.to_io()
    } else {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_received_at_once_is_taken_apart_however_it_is_cut_off() {
        let message = |content: &[u8]| {
            let mut bytes = u32::try_from(16 + content.len()).expect("short").to_ne_bytes().to_vec();
            bytes.extend([0; 12]);
            bytes.extend(content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let both = [message(b"one"), message(b"other")].concat();
        let found: Vec<_> = messages(&both).map(|it| &it[16..]).collect();
        assert_eq!(found, [&b"one"[..], b"other"]);
        assert_eq!(messages(&both[..both.len() - 8]).count(), 1);
        assert_eq!(messages(&[0; 7]).count(), 0);
    }
}
