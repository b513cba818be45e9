//! Address ranges of a network, and addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Scalar, decimal};

/// An IPv4 range in CIDR notation, with no bit set beyond its prefix (RFC 4632).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Range(pub(crate) Ipv4Net);

/// An IPv6 range in CIDR notation, with no bit set beyond its prefix (RFC 4291).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv6Range(pub(crate) Ipv6Net);

macro_rules! range {
    ($type:ident, $net:ident, $address:ident) => {
        impl $type {
            /// The range as the address library's type.
            pub fn net(self) -> $net {
                self.0
            }

            /// An address, a slash and a prefix, each written as everywhere.
            fn written(text: &str) -> Option<$net> {
                let (address, prefix) = text.split_once('/')?;
                $net::new(address.parse::<$address>().ok()?, decimal(prefix)?).ok()
            }

            /// The range that is meant by one with bits beyond its prefix, or with leading zeros.
            fn meant_by(text: &str) -> Option<String> {
                let (address, prefix) = text.split_once('/')?;
                let zeros = |part: &str| match part.trim_start_matches('0') {
                    "" => "0".to_owned(),
                    rest => rest.to_owned(),
                };
                let address = address.split('.').map(zeros).collect::<Vec<_>>().join(".");
                let net = Self::written(&format!("{address}/{}", zeros(prefix)))?;
                Some(net.trunc().to_string()).filter(|meant| meant.parse::<Self>().is_ok())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let net =
                    Self::written(text).ok_or_else(|| format!("it is not written like {}", Self::GOOD[0]))?;
                if net.trunc() != net {
                    return Err(format!("bits are set beyond its prefix; the range is {}", net.trunc()));
                }
                match Self::RESERVED.iter().find(|(reserved, _)| overlap(reserved, &net.into())) {
                    Some((reserved, what)) => {
                        Err(format!("it holds addresses of {reserved}, which are {what}"))
                    }
                    None if net.prefix_len() < Self::SHORTEST => {
                        Err(format!("it is too large for a mesh; the shortest prefix is /{}", Self::SHORTEST))
                    }
                    None => Ok(Self(net)),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
range!(Ipv4Range, Ipv4Net, Ipv4Addr);
range!(Ipv6Range, Ipv6Net, Ipv6Addr);

impl Ipv4Range {
    /// The shortest prefix of a mesh: that of the largest private range (RFC 1918).
    const SHORTEST: u8 = 8;
    /// What no mesh may have (RFC 6890).
    const RESERVED: &'static [(IpNet, &'static str)] = &[
        (ipv4(0, 0, 8), "not addresses of hosts"),
        (ipv4(127, 0, 8), "each host's own"),
        (ipv4(169, 254, 16), "link-local addresses"),
        (ipv4(224, 0, 3), "not addresses of hosts"),
    ];
}

impl Ipv6Range {
    /// The shortest prefix of a mesh, far larger than what any registry assigns.
    const SHORTEST: u8 = 16;
    /// What no mesh may have (RFC 6890).
    const RESERVED: &'static [(IpNet, &'static str)] = &[
        (ipv6(0, 16), "not addresses of a mesh"),
        (ipv6(0xfe80, 10), "link-local addresses"),
        (ipv6(0xff00, 8), "not addresses of hosts"),
    ];
}

const fn ipv4(first: u8, second: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), prefix))
}

const fn ipv6(first: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), prefix))
}

/// Whether a range is everything of its family: its route is a default route.
pub fn is_default(range: &IpNet) -> bool {
    range.prefix_len() == 0
}

/// Whether two ranges have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl Scalar for Ipv4Range {
    const NAME: &'static str = "an IPv4 range";
    const DOC: &'static str = "An IPv4 range in CIDR notation; no bit may be set beyond the prefix.";
    const GOOD: &'static [&'static str] = &["10.40.0.0/16", "192.168.7.64/26", "10.0.0.0/8"];
    const BAD: &'static [&'static str] = &[
        "10.40.0.1/16",
        "10.40.0.0",
        "10.40.0.0/33",
        "0.0.0.0/0",
        "127.0.0.0/16",
        "fd40::/64",
        "",
        "010.040.0.0/16",
        "10.40.0.0/016",
    ];

    fn meant(text: &str) -> Option<String> {
        Self::meant_by(text)
    }
}

impl Scalar for Ipv6Range {
    const NAME: &'static str = "an IPv6 range";
    const DOC: &'static str = "An IPv6 range in CIDR notation; no bit may be set beyond the prefix.";
    const GOOD: &'static [&'static str] = &["fd40:40::/64", "fd00::/48"];
    const BAD: &'static [&'static str] =
        &["fd40:40::1/64", "fd40::", "fd40::/129", "fe80::/64", "::/0", "10.0.0.0/8", "", "fd40::/064"];

    fn meant(text: &str) -> Option<String> {
        Self::meant_by(text)
    }
}

/// A range outside of a mesh, of either family, with no bit set beyond its prefix: everything (`0.0.0.0/0`,
/// `::/0`), or addresses that hosts of other links may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OuterRange(IpNet);

impl OuterRange {
    /// The range as the address library's type.
    pub fn net(self) -> IpNet {
        self.0
    }
}

impl FromStr for OuterRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let written =
            Ipv4Range::written(text).map(IpNet::from).or_else(|| Ipv6Range::written(text).map(IpNet::from));
        let net = written.ok_or("it is not written like 192.168.10.0/24 or fd00:1::/64")?;
        if net.trunc() != net {
            return Err(format!("bits are set beyond its prefix; the range is {}", net.trunc()));
        }
        let reserved = Ipv4Range::RESERVED.iter().chain(Ipv6Range::RESERVED);
        match reserved.into_iter().find(|(reserved, _)| net.prefix_len() > 0 && overlap(reserved, &net)) {
            Some((reserved, what)) => Err(format!("it holds addresses of {reserved}, which are {what}")),
            None => Ok(Self(net)),
        }
    }
}

impl fmt::Display for OuterRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Scalar for OuterRange {
    const NAME: &'static str = "a range";
    const DOC: &'static str = "An IPv4 or IPv6 range in CIDR notation; no bit may be set beyond the prefix.";
    const GOOD: &'static [&'static str] =
        &["192.168.10.0/24", "fd00:1::/64", "0.0.0.0/0", "::/0", "203.0.113.7/32"];
    const BAD: &'static [&'static str] = &[
        "",
        "192.168.10.1/24",
        "192.168.10.1",
        "127.0.0.0/8",
        "fe80::/10",
        "0.0.0.0/8",
        "224.0.0.0/4",
        "::/8",
    ];

    fn meant(text: &str) -> Option<String> {
        let address = text.parse::<IpAddr>().ok().map(|address| IpNet::from(address).to_string());
        address.or_else(|| Ipv4Range::meant_by(text)).or_else(|| Ipv6Range::meant_by(text))
    }
}

impl Scalar for IpAddr {
    const NAME: &'static str = "an address";
    const DOC: &'static str = "An IPv4 or IPv6 address.";
    const GOOD: &'static [&'static str] = &["10.40.0.1", "fd40:40::1"];
    const BAD: &'static [&'static str] = &["", "10.40.0.256", "10.40.000.3", "fd40:::1", "host"];
}

impl Scalar for Ipv4Addr {
    const NAME: &'static str = "an IPv4 address";
    const DOC: &'static str = "An IPv4 address in dotted decimal notation.";
    const GOOD: &'static [&'static str] = &["10.40.0.1"];
    const BAD: &'static [&'static str] = &["10.40.0.256", "10.40.1", "fd40::1", "", "10.40.000.3"];
}

impl Scalar for Ipv6Addr {
    const NAME: &'static str = "an IPv6 address";
    const DOC: &'static str = "An IPv6 address (RFC 4291); it is shown in the form of RFC 5952.";
    const GOOD: &'static [&'static str] = &["fd40:40::1", "FD40:40:0:0::1"];
    const BAD: &'static [&'static str] = &["fd40:::1", "10.40.0.1", ""];
}
