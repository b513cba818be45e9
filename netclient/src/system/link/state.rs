//! The configuration of a network interface and the operations on it, as values: decisions are made on these.
//!
//! Pure: nothing here accesses the kernel.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::IpNet;

/// A network interface as it was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Its addresses, each with the length of its network's prefix; without those of IPv6 that the kernel
    /// itself adds to every link (fe80::/10).
    pub addresses: BTreeSet<IpNet>,
    /// The largest packet it carries, in bytes.
    pub mtu: u32,
    /// Whether it is up, as the administrator sees it.
    pub up: bool,
    /// Its group; see [`GROUP`](crate::outside::GROUP).
    pub group: u32,
}

/// One operation on a network interface. Each may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkStep {
    /// Adds an address; while the link is up, the kernel routes the network of its prefix to the link. An
    /// IPv6 address is usable at once: it is not probed for a double (RFC 4862), since a tunnel has no
    /// neighbours.
    AddAddress(IpNet),
    /// Adds an address whose link leads to one other address only, which the kernel routes to it.
    AddPointToPoint {
        /// The address.
        local: Ipv4Addr,
        /// The other end's.
        peer: Ipv4Addr,
    },
    /// Removes an address, if there.
    RemoveAddress(IpNet),
    /// Puts it into a group.
    SetGroup(u32),
    /// Sets the largest packet, in bytes. Below 1280 the kernel takes all IPv6 addresses away.
    SetMtu(u16),
    /// Brings it up.
    Up,
}

impl fmt::Display for LinkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddAddress(address) => write!(f, "add the address {address} to"),
            Self::AddPointToPoint { local, peer } => {
                write!(f, "add the address {local} with the peer {peer} to")
            }
            Self::RemoveAddress(address) => write!(f, "remove the address {address} from"),
            Self::SetGroup(group) => write!(f, "set the group {group} of"),
            Self::SetMtu(mtu) => write!(f, "set an MTU of {mtu} on"),
            Self::Up => f.write_str("bring up"),
        }
    }
}
