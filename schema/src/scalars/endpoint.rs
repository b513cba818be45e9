//! Where a node is reached from outside.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{DomainName, Scalar};

/// A host, with a port or without: `192.0.2.7`, `gw.example.net:51821`, `[2001:db8::7]:51821`.
///
/// Without a port the node's own listen port is meant. A name is resolved when it is used.
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
    /// An IP address.
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
        Self { host: EndpointHost::Address(at.ip()), port: Some(at.port()) }
    }
}

impl From<IpAddr> for Endpoint {
    fn from(address: IpAddr) -> Self {
        Self { host: EndpointHost::Address(address), port: None }
    }
}

impl Scalar for Endpoint {
    const NAME: &'static str = "an endpoint";
    const DOC: &'static str = "An address or a name, and a port if it is not the listen port; an IPv6 address with a port is written in brackets.";
    const GOOD: &'static [&'static str] =
        &["gw.example.net:51821", "192.0.2.7", "192.0.2.7:51821", "[2001:db8::7]:51821", "2001:db8::7"];
    const BAD: &'static [&'static str] =
        &["", "gw.example.net:0", "gw.example.net:65536", "[2001:db8::7]:", "192.0.2.7:", "a b", "192.0.2.300"];
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { host: EndpointHost::Address(address), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port_of(port)?)),
            None => (text, None),
        };
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => {
                let address: Ipv6Addr = inner.parse().map_err(|_| "the text in brackets is not an IPv6 address")?;
                EndpointHost::Address(address.into())
            }
            None => host_of(host)?,
        };
        Ok(Self { host, port })
    }
}

fn port_of(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("its port is not a number from 1 to 65535".into()),
        Ok(port) => Ok(port),
    }
}

fn host_of(text: &str) -> Result<EndpointHost, String> {
    if let Ok(address) = text.parse() {
        return Ok(EndpointHost::Address(address));
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
