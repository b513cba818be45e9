//! What connects the hosts of a lab?
//!
//! The lab's own network namespace is a router, with one veth pair to each host:
//!
//! ```text
//!  host db-1                      the lab                      host db-2
//!  eth0 198.18.0.2/32 ======== h2        h3 ======== 198.18.0.3/32 eth0
//!       2001:2::2/128             forwards               2001:2::3/128
//!                           lo 198.18.0.1, 2001:2::1
//! ```
//!
//! It is a router and not a bridge because the kernel keeps one table of at most 1024 neighbours
//! (`net.ipv4.neigh.default.gc_thresh3`) for all network namespaces together, and hosts on one bridge fill it
//! with the square of their number: with 33 hosts, sending begins to fail with ENOBUFS. Here each host has
//! one neighbour, its router. Both ends of a pair have the same hardware address and no ARP, so that nothing
//! has to be resolved.
//!
//! The addresses are those set aside for benchmarks (RFC 2544, RFC 5180), which no mesh declares. A program
//! in the lab itself, outside any host, reaches the hosts and is reached at [`Underlay::addresses`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rtnetlink::Handle;

use super::cable::{LOOPBACK, Port, connect, ipv4, ipv6, raise_loopback};
use super::host::Host;
use super::{DIRECTORY, Error, inside, network, system};

/// The network between the hosts of a lab; there is one of them at a time.
///
/// Dropping it takes nothing from hosts that exist.
#[derive(Debug)]
pub struct Underlay {
    links: Handle,
    names: Mutex<BTreeSet<String>>,
}

impl Underlay {
    /// Makes a network without hosts; needs a tokio runtime with I/O.
    ///
    /// It raises this process's limit of open files as far as permitted, because each host uses a few.
    ///
    /// # Errors
    ///
    /// [`Error::Outside`] outside of a lab, otherwise what the operating system refused.
    pub async fn new() -> Result<Self, Error> {
        if !inside() {
            return Err(Error::Outside);
        }
        let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        files.current = files.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, files)
            .map_err(|error| system("raise its limit of open files")(error.into()))?;
        for switch in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
            std::fs::write(switch, "1").map_err(system(format!("turn on {switch}")))?;
        }
        let links = connect().map_err(system("open a netlink socket"))?;
        raise_loopback(&links).await?;
        for (address, length) in [(IpAddr::V4(ipv4(1)), 32), (IpAddr::V6(ipv6(1)), 128)] {
            let added = links.address().add(LOOPBACK, address, length).replace().execute().await;
            added.map_err(network(format!("take the address {address}")))?;
        }
        Ok(Self { links, names: Mutex::default() })
    }

    /// The directory that the lab and all its hosts see at the same path and may write to. It is in memory,
    /// and ends with the lab.
    #[must_use]
    pub fn directory(&self) -> &Path {
        Path::new(DIRECTORY)
    }

    /// The lab's own addresses, at which hosts reach programs that run in none of them.
    #[must_use]
    pub fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        (ipv4(1), ipv6(1))
    }

    /// Makes a host and connects it.
    ///
    /// # Errors
    ///
    /// When the name is taken or not valid, or when the operating system refuses.
    pub async fn host(&self, name: &str) -> Result<Host, Error> {
        let number = self.register(name)?;
        let host = Host::new(name, ipv4(number), ipv6(number), Port::new(self.links.clone(), number))?;
        host.connect().await?;
        Ok(host)
    }

    /// Makes a host that nothing is connected to: it has no interface but the loopback, and its addresses in the
    /// underlay are nobody's.
    ///
    /// # Errors
    ///
    /// As [`Underlay::host`].
    pub async fn host_apart(&self, name: &str) -> Result<Host, Error> {
        let number = self.register(name)?;
        Host::new(name, ipv4(number), ipv6(number), Port::new(self.links.clone(), number))
    }

    fn register(&self, name: &str) -> Result<u16, Error> {
        let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(fit) || name.len() > 63
        {
            return Err(Error::Name(name.to_owned()));
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let number =
            u16::try_from(names.len() + 2).ok().filter(|&number| number < u16::MAX).ok_or(Error::Full)?;
        if !names.insert(name.to_owned()) {
            return Err(Error::Taken(name.to_owned()));
        }
        Ok(number)
    }
}
