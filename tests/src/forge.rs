//! Packets as an attacker forges them, byte for byte.
//!
//! A [`Segment`] is what an IP packet carries, with a checksum that is right for its addresses. It becomes one
//! packet ([`Segment::packet`]) or several ([`Segment::fragments`]), behind extension headers if that is wanted,
//! and [`send`] sends it from a host as it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6FragmentHeader, Ipv6Header, TcpHeader, UdpHeader,
};
use nmplan::lab::Host;
use socket2::{Domain, Protocol, Socket, Type};

/// The source and the destination of a packet, of one family.
#[derive(Clone, Copy, Debug)]
pub enum Ends {
    /// IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

impl Ends {
    /// Those of two addresses.
    ///
    /// # Panics
    ///
    /// When they are of different families.
    pub fn new(from: IpAddr, to: IpAddr) -> Self {
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Self::V4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => Self::V6(from, to),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("{from} and {to}"),
        }
    }

    fn to(self) -> IpAddr {
        match self {
            Self::V4(_, to) => to.into(),
            Self::V6(_, to) => to.into(),
        }
    }
}

/// What an IP packet carries.
#[derive(Clone, Debug)]
pub struct Segment {
    ends: Ends,
    protocol: IpNumber,
    bytes: Vec<u8>,
}

/// A TCP segment without data; `set` sets its flags.
pub fn tcp(from: SocketAddr, to: SocketAddr, set: impl FnOnce(&mut TcpHeader)) -> Segment {
    let ends = Ends::new(from.ip(), to.ip());
    let mut header = TcpHeader::new(from.port(), to.port(), 0x1234_5678, 4_096);
    set(&mut header);
    let sum = match ends {
        Ends::V4(from, to) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]),
        Ends::V6(from, to) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]),
    };
    header.checksum = sum.expect("it is short");
    Segment { ends, protocol: IpNumber::TCP, bytes: header.to_bytes().to_vec() }
}

/// A datagram.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Segment {
    let ends = Ends::new(from.ip(), to.ip());
    let length = u16::try_from(UdpHeader::LEN + payload.len()).expect("it is short");
    let mut header = UdpHeader { source_port: from.port(), destination_port: to.port(), length, checksum: 0 };
    let sum = match ends {
        Ends::V4(from, to) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload),
        Ends::V6(from, to) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload),
    };
    header.checksum = sum.expect("it is short");
    Segment { ends, protocol: IpNumber::UDP, bytes: [&header.to_bytes()[..], payload].concat() }
}

/// An echo reply to a request that nobody sent.
pub fn echo_reply(ends: Ends) -> Segment {
    let echo = IcmpEchoHeader { id: 7, seq: 1 };
    icmp(ends, Icmpv4Type::EchoReply(echo), Icmpv6Type::EchoReply(echo), b"payload.")
}

/// The error that a packet was too large for a link of the way (fragmentation needed, packet too big).
pub fn too_big(ends: Ends, packet: &[u8]) -> Segment {
    let v4 = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1_280 };
    let v4 = Icmpv4Type::DestinationUnreachable(v4);
    icmp(ends, v4, Icmpv6Type::PacketTooBig { mtu: 1_280 }, packet)
}

fn icmp(ends: Ends, v4: Icmpv4Type, v6: Icmpv6Type, payload: &[u8]) -> Segment {
    let (protocol, header) = match ends {
        Ends::V4(..) => (IpNumber::ICMP, Icmpv4Header::with_checksum(v4, payload).to_bytes().to_vec()),
        Ends::V6(from, to) => {
            let header = Icmpv6Header::with_checksum(v6, from.octets(), to.octets(), payload);
            (IpNumber::IPV6_ICMP, header.expect("it is short").to_bytes().to_vec())
        }
    };
    Segment { ends, protocol, bytes: [&header[..], payload].concat() }
}

impl Segment {
    /// The same behind an IPv6 extension header of 8 bytes: options of padding only, or a routing header of a
    /// type that nobody knows, which is ignored since no segments are left (RFC 8200, section 4.4).
    ///
    /// # Panics
    ///
    /// When the header is none of these.
    #[must_use]
    pub fn behind(self, header: IpNumber) -> Self {
        let rest = match header {
            IpNumber::IPV6_HEADER_HOP_BY_HOP | IpNumber::IPV6_DESTINATION_OPTIONS => [1, 4, 0, 0, 0, 0],
            IpNumber::IPV6_ROUTE_HEADER => [253, 0, 0, 0, 0, 0],
            _ => panic!("no extension header of 8 bytes: {header:?}"),
        };
        let bytes = [&[self.protocol.0, 0][..], &rest, &self.bytes].concat();
        Self { ends: self.ends, protocol: header, bytes }
    }

    /// The same with a checksum that is wrong.
    ///
    /// # Panics
    ///
    /// When it is neither TCP nor UDP.
    #[must_use]
    pub fn damaged(mut self) -> Self {
        let checksum = match self.protocol {
            IpNumber::TCP => 16,
            IpNumber::UDP => 6,
            other => panic!("no checksum of {other:?} is known here"),
        };
        self.bytes[checksum] ^= 0x55;
        self
    }

    /// The packet.
    pub fn packet(&self) -> Vec<u8> {
        self.part(None)
    }

    /// The packet in two parts, the first of which holds so many bytes, a multiple of 8.
    pub fn fragments(&self, first: usize) -> [Vec<u8>; 2] {
        [self.part(Some((0, first))), self.part(Some((first, self.bytes.len())))]
    }

    /// The packet, or one that has only some of the bytes.
    fn part(&self, range: Option<(usize, usize)>) -> Vec<u8> {
        const ID: u16 = 0x4242;
        let (start, end) = range.unwrap_or((0, self.bytes.len()));
        let bytes = &self.bytes[start..end];
        let more_fragments = end < self.bytes.len();
        let eighth = u16::try_from(start / 8).expect("it is short");
        let fragment_offset = IpFragOffset::try_new(eighth).expect("it is short");
        let length = |more: usize| u16::try_from(more + bytes.len()).expect("it is short");
        match self.ends {
            Ends::V4(from, to) => {
                let header = Ipv4Header::new(length(0), 64, self.protocol, from.octets(), to.octets());
                let mut header = header.expect("it is short");
                header.dont_fragment = false;
                (header.identification, header.more_fragments) = (ID, more_fragments);
                header.fragment_offset = fragment_offset;
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], bytes].concat()
            }
            Ends::V6(from, to) => {
                let fragment = range.map(|_| {
                    let next_header = self.protocol;
                    let identification = ID.into();
                    Ipv6FragmentHeader { next_header, fragment_offset, more_fragments, identification }
                });
                let fragment_bytes = fragment.as_ref().map(Ipv6FragmentHeader::to_bytes);
                let extension = fragment_bytes.as_ref().map_or(&[][..], |bytes| &bytes[..]);
                let header = Ipv6Header {
                    payload_length: length(extension.len()),
                    next_header: fragment.map_or(self.protocol, |_| IpNumber::IPV6_FRAGMENTATION_HEADER),
                    hop_limit: 64,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                [&header.to_bytes()[..], extension, bytes].concat()
            }
        }
    }
}

/// Sends packets from a host, by its route to where they go. Fragments arrive as such only if nothing on the
/// host tracks connections.
///
/// # Panics
///
/// When the kernel refuses one.
pub fn send(host: &Host, segment: &Segment, packets: &[Vec<u8>]) {
    let to = SocketAddr::new(segment.ends.to(), 0);
    host.within(|| {
        // IPPROTO_RAW: the packets have their IP headers; see raw(7).
        let socket =
            Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(nix::libc::IPPROTO_RAW)));
        let socket = socket.expect("a raw socket");
        for packet in packets {
            socket.send_to(packet, &to.into()).expect("it is sent");
        }
    });
}
