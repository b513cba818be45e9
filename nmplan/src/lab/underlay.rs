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
//! (`net.ipv4.neigh.default.gc_thresh3`) for all network namespaces together, and hosts on one bridge fill it with the
//! square of their number: with 33 hosts, sending begins to fail with ENOBUFS. Here each host has one neighbour, its
//! router. Both ends of a pair have the same hardware address and no ARP, so that nothing has to be resolved.
//!
//! The addresses are those set aside for benchmarks (RFC 2544, RFC 5180), which no mesh declares.
//! A program in the lab itself, outside of any host, reaches the hosts and is reached at [`Underlay::addresses`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

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
    /// It raises this process's limit of open files to what is permitted, because a host takes a few.
    ///
    /// # Errors
    ///
    /// [`Error::Outside`] outside of a lab, otherwise what the machine refused.
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

    /// The directory that the lab and all its hosts see at the same path and may write to. It lies in memory, and ends
    /// with the lab.
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
    /// When the name is taken or unfit, or for what the machine refused.
    pub async fn host(&self, name: &str) -> Result<Host, Error> {
        let number = self.register(name)?;
        let host = Host::new(name, ipv4(number), ipv6(number), Port::new(self.links.clone(), number))?;
        host.connect().await?;
        Ok(host)
    }

    fn register(&self, name: &str) -> Result<u16, Error> {
        let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(fit) || name.len() > 63 {
            return Err(Error::Name(name.to_owned()));
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let number = u16::try_from(names.len() + 2).ok().filter(|&number| number < u16::MAX).ok_or(Error::Full)?;
        if !names.insert(name.to_owned()) {
            return Err(Error::Taken(name.to_owned()));
        }
        Ok(number)
    }
}

/// The lab's end of one host's cable.
#[derive(Clone, Debug)]
pub(super) struct Port {
    links: Handle,
    number: u16,
}

impl Port {
    fn new(links: Handle, number: u16) -> Self {
        Self { links, number }
    }

    /// Makes the veth pair: one end here, the other called eth0 in the given network namespace.
    pub(super) async fn attach(&self, network_namespace: BorrowedFd<'_>) -> Result<(), Error> {
        let [high, low] = self.number.to_be_bytes();
        let hardware = vec![0x02, 0x77, 0, 0, high, low];
        let there = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0")
            .address(hardware.clone())
            .setns_by_fd(network_namespace.as_raw_fd())
            .arp(false);
        let here = LinkMessageBuilder::<LinkVeth>::new(&self.name(), "eth0")
            .address(hardware)
            .arp(false)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(there.build())));
        let made = self.links.link().add(here.build()).execute().await;
        made.map_err(network(format!("make the interface {}", self.name())))
    }

    /// Puts the cable in; harmless when it is in.
    pub(super) async fn plug(&self) -> Result<(), Error> {
        self.set(LinkUnspec::new_with_name(&self.name()).up().build()).await?;
        let index = index_of(&self.name())?;
        let to_host =
            RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).destination_prefix(ipv4(self.number), 32);
        add_route(&self.links, to_host.build()).await?;
        let to_host =
            RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).destination_prefix(ipv6(self.number), 128);
        add_route(&self.links, to_host.build()).await
    }

    /// Pulls the cable out: the host loses its carrier, and keeps addresses and routes.
    pub(super) async fn unplug(&self) -> Result<(), Error> {
        self.set(LinkUnspec::new_with_name(&self.name()).down().build()).await
    }

    async fn set(&self, link: LinkMessage) -> Result<(), Error> {
        let done = self.links.link().set(link).execute().await;
        done.map_err(network(format!("change the interface {}", self.name())))
    }

    fn name(&self) -> String {
        format!("h{}", self.number)
    }
}

/// Gives the host that `links` belongs to its loopback, addresses and default routes.
pub(super) async fn configure_host(links: &Handle, index: u32, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<(), Error> {
    raise_loopback(links).await?;
    let up = links.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await;
    up.map_err(network("start a host's interface"))?;
    for (address, length) in [(IpAddr::V4(v4), 32), (IpAddr::V6(v6), 128)] {
        let added = links.address().add(index, address, length).execute().await;
        added.map_err(network(format!("give a host the address {address}")))?;
    }
    let anywhere = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(ipv4(1)).onlink();
    add_route(links, anywhere.build()).await?;
    let anywhere = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(ipv6(1)).onlink();
    add_route(links, anywhere.build()).await
}

/// Opens a netlink socket in the network namespace of the calling thread, served by the current tokio runtime.
pub(super) fn connect() -> std::io::Result<Handle> {
    let (connection, links, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(links)
}

/// The index of an interface of the calling thread's network namespace.
pub(super) fn index_of(name: &str) -> Result<u32, Error> {
    let failed = || system(format!("find the interface {name}"));
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    rustix::net::netdevice::name_to_index(&socket, name).map_err(|error| failed()(error.into()))
}

const LOOPBACK: u32 = 1;

async fn raise_loopback(links: &Handle) -> Result<(), Error> {
    let up = links.link().set(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await;
    up.map_err(network("start the loopback interface"))
}

async fn add_route(links: &Handle, route: RouteMessage) -> Result<(), Error> {
    links.route().add(route).replace().execute().await.map_err(network("add a route of the underlay"))
}

fn ipv4(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

fn ipv6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, number)
}
