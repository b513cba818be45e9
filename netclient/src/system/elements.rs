//! Elements of a table's sets and maps, changed and listed by netlink: a change costs the same in a map of any
//! size, where a run of nft(8) reads the whole table first.
//!
//! One batch is one transaction in the kernel, which carries out all of it or nothing. It acts in the network
//! namespace of the calling thread and blocks until the kernel has answered.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementFlags, SetElementList,
    SetElementMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use schema::access::ClassId;

use super::netlink::messages;
use super::own_tables::OwnTables;
use crate::filter::{Element, Interval, MAPS, chain};

/// How many elements one attribute holds: its length is a number of 16 bits, and an element of IPv6 with the
/// chain of a class has less than 100 bytes.
const AT_ONCE: usize = 500;

/// What becomes of an element that is to be added and is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It stays.
    Stays,
    /// The table is not what the caller takes it for.
    Refused,
}

/// Takes elements out of the sets and maps of a table, and adds others. An error, if one of them is not there, or
/// one is there already and may not be, and the table is as it was.
/// `own` is shared with whoever watches the tables, if anybody does.
pub fn change(
    own: &OwnTables,
    table: &str,
    gone: &BTreeSet<Element>,
    new: &BTreeSet<Element>,
    known: Known,
) -> io::Result<()> {
    let exclusive = if known == Known::Refused { NLM_F_EXCL } else { 0 };
    let mut messages = Vec::new();
    for (set, elements) in by_set(gone, |_| None) {
        messages.push((NfTablesMessage::DeleteSetElement(of_set(table, set, elements)), 0));
    }
    for (set, elements) in by_set(new, |interval| interval.class.as_ref().map(jump)) {
        messages
            .push((NfTablesMessage::NewSetElement(of_set(table, set, elements)), NLM_F_CREATE | exclusive));
    }
    if messages.is_empty() {
        return Ok(());
    }
    let (socket, number) = open()?;
    own.begin(number);
    send(&socket, messages).inspect_err(|_| own.abandon(number))
}

/// The addresses in the maps of a table, each with the chain that it leads to; absent: it leads to none.
pub fn list(table: &str) -> io::Result<BTreeMap<IpAddr, Option<String>>> {
    let mut all = BTreeMap::new();
    for map in MAPS {
        all.extend(listed(table, map)?.into_iter().map(|Listed { address, chain, .. }| (address, chain)));
    }
    Ok(all)
}

/// What a set or map of intervals of a table holds, in order. An error also where it leads to what no filter
/// does.
pub fn intervals(table: &str, set: &str) -> io::Result<Vec<Interval>> {
    let mut listed = listed(table, set)?;
    // Where one ends and the next begins, the end comes first.
    listed.sort_by_key(|it| (it.address, !it.is_end));
    let mut all: Vec<Interval> = Vec::new();
    let mut open = false;
    for Listed { address, is_end, chain: to } in listed {
        if let Some(interval) = all.last_mut().filter(|_| open) {
            interval.last = before(address);
        }
        open = !is_end;
        if open {
            let class = to.map(|to| class_of(&to).ok_or_else(|| io::Error::other(to))).transpose()?;
            all.push(Interval { first: address, last: last_of_all(address), class });
        }
    }
    Ok(all)
}

/// The class of a chain; absent: it is of none.
fn class_of(chain: &str) -> Option<ClassId> {
    chain.strip_prefix("c_")?.parse().ok()
}

/// The address before another one, which is none of the first: an interval that begins there has no end.
fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address).saturating_sub(1)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address).saturating_sub(1)).into(),
    }
}

/// The address after another one; absent: it is the last of all.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(Ipv4Addr::from(u32::from(address).checked_add(1)?).into()),
        IpAddr::V6(address) => Some(Ipv6Addr::from(u128::from(address).checked_add(1)?).into()),
    }
}

/// The last address of a family.
fn last_of_all(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::BROADCAST.into(),
        IpAddr::V6(_) => Ipv6Addr::from(u128::MAX).into(),
    }
}

/// An element as the kernel lists it.
struct Listed {
    address: IpAddr,
    /// Whether it is the first address after an interval.
    is_end: bool,
    /// The chain that it leads to.
    chain: Option<String>,
}

/// The elements of a set or a map, in no order.
fn listed(table: &str, set: &str) -> io::Result<Vec<Listed>> {
    let mut all = Vec::new();
    let message = NfTablesMessage::GetSetElement(of_set(table, set, Vec::new()));
    let (socket, _) = open()?;
    socket.send(&encode(message.into(), NetfilterProtoFamily::Inet, 0, NLM_F_DUMP, 0), 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for answer in messages(&bytes) {
            let payload = decode(answer)?.payload;
            if let NetlinkPayload::InnerMessage(message) = payload {
                all.extend(elements(message));
            } else if let NetlinkPayload::Error(error) = payload {
                return Err(error.to_io());
            } else {
                return Ok(all);
            }
        }
    }
}

/// What a part of a listing holds.
fn elements(message: NetfilterMessage) -> Vec<Listed> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(message)) = message.inner else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for attribute in message.attributes {
        let SetElementList::Elements(elements) = attribute else { continue };
        for element in elements {
            let ListAttribute::Element(element) = element else { continue };
            let (mut address, mut chain, mut is_end) = (None, None, false);
            for attribute in element {
                if let SetElementAttribute::Key(DataAttribute::Value(octets)) = attribute {
                    let ipv4 = <[u8; 4]>::try_from(&octets[..]).map(IpAddr::from);
                    address = ipv4.or_else(|_| <[u8; 16]>::try_from(&octets[..]).map(IpAddr::from)).ok();
                } else if let SetElementAttribute::Data(DataAttribute::Verdict(verdict)) = attribute {
                    chain = verdict.into_iter().find_map(|it| {
                        if let VerdictAttribute::Chain(name) = it { Some(name) } else { None }
                    });
                } else if let SetElementAttribute::Flags(flags) = attribute {
                    is_end = flags.contains(SetElementFlags::IntervalEnd);
                }
            }
            all.extend(address.map(|address| Listed { address, is_end, chain }));
        }
    }
    all
}

/// An element as the kernel takes it.
type Attributes = Vec<SetElementAttribute>;

/// Elements, as many of one set at once as fit, each with what it leads to. Of an interval the kernel keeps the
/// first address, and the first one after it.
fn by_set(
    elements: &BTreeSet<Element>,
    data: impl Fn(&Interval) -> Option<SetElementAttribute>,
) -> impl Iterator<Item = (&str, Vec<Attributes>)> {
    let mut sets: BTreeMap<&str, Vec<Vec<Attributes>>> = BTreeMap::new();
    for Element { set, intervals, interval } in elements {
        let first = [key(&interval.first)].into_iter().chain(data(interval)).collect();
        let end = after(interval.last).filter(|_| *intervals);
        let end = end.map(|end| vec![key(&end), SetElementAttribute::Flags(SetElementFlags::IntervalEnd)]);
        for attributes in [first].into_iter().chain(end) {
            let parts = sets.entry(set).or_default();
            match parts.last_mut().filter(|part| part.len() < AT_ONCE) {
                Some(part) => part.push(attributes),
                None => parts.push(vec![attributes]),
            }
        }
    }
    sets.into_iter().flat_map(|(set, parts)| parts.into_iter().map(move |part| (set, part)))
}

fn key(address: &IpAddr) -> SetElementAttribute {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    SetElementAttribute::Key(DataAttribute::Value(octets))
}

fn jump(class: &ClassId) -> SetElementAttribute {
    let verdict = vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(chain(class))];
    SetElementAttribute::Data(DataAttribute::Verdict(verdict))
}

fn of_set(table: &str, set: &str, elements: Vec<Attributes>) -> SetElementMessage {
    let mut attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
    if !elements.is_empty() {
        let elements = elements.into_iter().map(ListAttribute::Element).collect();
        attributes.push(SetElementList::Elements(elements));
    }
    SetElementMessage { attributes }
}

/// Sends messages, each with its flags, as one transaction.
fn send(socket: &Socket, content: Vec<(NfTablesMessage, u16)>) -> io::Result<()> {
    let last = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let subsystem = u8::from(NetfilterSubsystem::NfTables).into();
    let border = |message: ControlMessage, number| {
        encode(message.into(), NetfilterProtoFamily::Unspec, subsystem, 0, number)
    };
    let mut bytes = border(ControlMessage::BatchBegin, 0);
    for (number, (message, flags)) in (1..).zip(content) {
        // The last one is answered once all are carried out; one that fails is answered in any case.
        let flags = if number == last { flags | NLM_F_ACK } else { flags };
        bytes.extend(encode(message.into(), NetfilterProtoFamily::Inet, 0, flags, number));
    }
    bytes.extend(border(ControlMessage::BatchEnd, last + 1));
    socket.send(&bytes, 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for answer in messages(&bytes) {
            let answer = decode(answer)?;
            let NetlinkPayload::Error(error) = answer.payload else { continue };
            if error.code.is_some() {
                return Err(error.to_io());
            }
            if answer.header.sequence_number == last {
                return Ok(());
            }
        }
    }
}

/// A socket, and its number.
fn open() -> io::Result<(Socket, u32)> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    let number = socket.bind_auto()?.port_number();
    // Without it an answer holds the whole message that failed.
    socket.set_cap_ack(true)?;
    Ok((socket, number))
}

fn encode(
    inner: NetfilterMessageInner,
    family: NetfilterProtoFamily,
    resource: u16,
    flags: u16,
    number: u32,
) -> Vec<u8> {
    let header = NetfilterHeader::new(family, 0, resource);
    let mut message = NetlinkMessage::from(NetfilterMessage::new(header, inner));
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = number;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}

fn decode(bytes: &[u8]) -> io::Result<NetlinkMessage<NetfilterMessage>> {
    NetlinkMessage::deserialize(bytes).map_err(io::Error::other)
}
