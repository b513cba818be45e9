//! Where a node is reached from outside.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{DomainName, Scalar, decimal};

/// A host, with a port or without: `192.0.2.7`, `gw.example.net:51821`, `[2001:db8::7]:51821`.
///
/// Without a port the node's own listen port is meant. A name is resolved when it is used. An address is kept
/// in its canonical form: one that is IPv4 in IPv6 (RFC 4291, section 2.5.5.2) is the IPv4 address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address or name.
    pub host: EndpointHost,
    /// The UDP port, never 0; absent: the node's listen port.
    pub port: Option<u16>,
}

/// An address, or a name that resolves to one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointHost {
    /// An IP address, never one of IPv4 in IPv6.
    Address(IpAddr),
    /// A name of the DNS.
    Domain(DomainName),
}

impl Endpoint {
    /// The same endpoint with the port that it has, or else with this one.
    #[must_use]
    pub fn or_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port: self.port.or(Some(port)) }
    }

    /// The socket address, where the host is an address and the port is known.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match (&self.host, self.port) {
            (EndpointHost::Address(address), Some(port)) => Some(SocketAddr::new(*address, port)),
            (EndpointHost::Address(_) | EndpointHost::Domain(_), _) => None,
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(at: SocketAddr) -> Self {
        Self { port: Some(at.port()), ..Self::from(at.ip()) }
    }
}

impl From<IpAddr> for Endpoint {
    fn from(address: IpAddr) -> Self {
        Self { host: EndpointHost::Address(address.to_canonical()), port: None }
    }
}

impl Scalar for Endpoint {
    const NAME: &'static str = "an endpoint";
    const DOC: &'static str = "An address or a name, and a port if it is not the listen port; an IPv6 address with a port is written in brackets. `::ffff:192.0.2.7` is 192.0.2.7.";
    const GOOD: &'static [&'static str] = &[
        "gw.example.net:51821",
        "192.0.2.7",
        "192.0.2.7:51821",
        "[2001:db8::7]:51821",
        "2001:db8::7",
        "[2001:db8::7]",
    ];
    const BAD: &'static [&'static str] = &[
        "",
        "gw.example.net:0",
        "gw.example.net:65536",
        "gw.example.net:051821",
        "[2001:db8::7]:",
        "2001:db8::7:51821",
        "[192.0.2.7]:51821",
        "192.0.2.7:",
        "a b",
        "192.0.2.300",
    ];

    fn meant(text: &str) -> Option<String> {
        if !text.is_ascii() {
            let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            return Some(DomainName::meant(host)? + rest).filter(|meant| meant.parse::<Self>().is_ok());
        }
        let (host, port) = text.rsplit_once(':')?;
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let meant = match (bracketed, host.parse::<Ipv6Addr>()) {
            (Some(inner), _) => format!("{inner}:{port}"),
            (None, Ok(address)) => format!("[{address}]:{port}"),
            (None, Err(_)) => return None,
        };
        Some(meant).filter(|meant| meant.parse::<Self>().is_ok())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(address.into());
        }
        if let Some(rest) = text.strip_prefix('[') {
            return bracketed(rest);
        }
        match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                Err("an IPv6 address with a port is written in brackets, like [2001:db8::7]:51821".into())
            }
            Some((host, port)) => Ok(Self { host: host_of(host)?, port: Some(port_of(port)?) }),
            None => Ok(Self { host: host_of(text)?, port: None }),
        }
    }
}

/// Reads what follows an opening bracket: an IPv6 address, the closing one, and perhaps a port.
fn bracketed(rest: &str) -> Result<Endpoint, String> {
    let (address, rest) = rest.split_once(']').ok_or("its bracket is never closed")?;
    let address: Ipv6Addr = address.parse().map_err(|_| "the text in brackets is not an IPv6 address")?;
    let host = Endpoint::from(IpAddr::from(address));
    if rest.is_empty() {
        return Ok(host);
    }
    let port = rest.strip_prefix(':').ok_or("after the bracket only a colon and the port may follow")?;
    Ok(Endpoint { port: Some(port_of(port)?), ..host })
}

fn port_of(text: &str) -> Result<u16, String> {
    Ok(text.parse::<Port>()?.0)
}

/// The number of a TCP or UDP port that can be set, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(pub u16);

impl Port {
    /// What one is, wherever something else was given.
    pub const MEANS: &'static str = "a port is a number from 1 to 65535, without leading zeros";
}

impl FromStr for Port {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        decimal(text).filter(|port| *port != 0).map(Self).ok_or(Self::MEANS)
    }
}

fn host_of(text: &str) -> Result<EndpointHost, String> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(EndpointHost::Address(address.into()));
    }
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if numeric {
        return Err("it is neither an IP address nor a name".into());
    }
    Ok(EndpointHost::Domain(text.parse()?))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (host, None) => host.fmt(f),
            (EndpointHost::Address(IpAddr::V6(address)), Some(port)) => write!(f, "[{address}]:{port}"),
            (host, Some(port)) => write!(f, "{host}:{port}"),
        }
    }
}

impl fmt::Display for EndpointHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Domain(name) => name.fmt(f),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for EndpointHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, String> {
        text.parse::<Endpoint>().map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn an_ipv6_address_has_a_port_only_in_brackets() {
        for (text, meant) in [
            ("2001:db8::7:51821", Some("[2001:db8::7]:51821")),
            ("::1:51821", Some("[::1]:51821")),
            ("[192.0.2.7]:51821", Some("192.0.2.7:51821")),
            ("[2001:db8::7]51821", None),
            ("[2001:db8::7", None),
            ("[2001:db8::7]:051821", None),
            ("fe80::1%eth0", None),
            ("192.0.2.7:1:2", None),
            ("gw.example.net:+5", None),
            ("192.0.2.07", None),
        ] {
            assert!(parsed(text).is_err(), "{text}");
            assert_eq!(Endpoint::meant(text).as_deref(), meant, "{text}");
        }
        // It has 8 groups with the zeros that :: stands for: an address, and nothing else.
        assert_eq!(parsed("2001:db8::7:5182").as_deref(), Ok("2001:db8::7:5182"));
        assert_eq!(parsed("[2001:db8::7]").as_deref(), Ok("2001:db8::7"));
    }

    #[test]
    fn a_port_is_described_by_the_same_words_wherever_it_is_given() {
        for text in ["", "0", "65536", "051821", "-1", "+1", "x", " 1", "1.0"] {
            assert_eq!(text.parse::<Port>(), Err(Port::MEANS), "{text:?}");
        }
        assert_eq!(["1", "65535"].map(|text| text.parse()), [Ok(Port(1)), Ok(Port(65_535))]);
        assert_eq!(parsed("gw.example.net:0"), Err(Port::MEANS.into()));
        assert_eq!(parsed("[2001:db8::7]:65536"), Err(Port::MEANS.into()));
    }

    #[test]
    fn ipv4_in_ipv6_is_ipv4_wherever_it_comes_from() {
        for text in ["::ffff:192.0.2.7", "[::ffff:192.0.2.7]", "[::ffff:c000:207]"] {
            assert_eq!(parsed(text).as_deref(), Ok("192.0.2.7"), "{text}");
        }
        assert_eq!(parsed("[::ffff:192.0.2.7]:5").as_deref(), Ok("192.0.2.7:5"));
        let at: SocketAddr = "[::ffff:192.0.2.7]:5".parse().expect("good");
        assert_eq!(Endpoint::from(at).to_string(), "192.0.2.7:5");
    }
}
