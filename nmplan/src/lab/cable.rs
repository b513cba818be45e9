//! What connects the lab to one host?
//!
//! A veth pair, routed at both ends: [`Port`] is the lab's end, [`configure_host`] sets up the host's. The
//! underlay decides the numbers, and explains why there is no bridge.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::Output;
use std::time::Duration;

use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Error, network, system};

/// The lab's end of one host's cable.
#[derive(Clone, Debug)]
pub(super) struct Port {
    links: Handle,
    number: u16,
}

impl Port {
    pub(super) fn new(links: Handle, number: u16) -> Self {
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

    /// Plugs the cable in; does nothing if it is plugged in.
    pub(super) async fn plug(&self) -> Result<(), Error> {
        self.set(LinkUnspec::new_with_name(&self.name()).up().build()).await?;
        let index = index_of(&self.name())?;
        let to_host = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .destination_prefix(ipv4(self.number), 32);
        add_route(&self.links, to_host.build()).await?;
        let to_host = RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(index)
            .destination_prefix(ipv6(self.number), 128);
        add_route(&self.links, to_host.build()).await
    }

    /// Unplugs the cable: the host loses its carrier, and keeps addresses and routes.
    pub(super) async fn unplug(&self) -> Result<(), Error> {
        self.set(LinkUnspec::new_with_name(&self.name()).down().build()).await
    }

    /// Makes packets to the host fare as `impairment` says, or as well as ever.
    pub(super) async fn impair(&self, impairment: Option<&Impairment>) -> Result<(), Error> {
        let output =
            tokio::process::Command::new("tc").args(Impairment::command(impairment, &self.name())).output();
        Impairment::outcome(output.await)
    }

    /// Sets how large a packet on the cable may be, in bytes; `there` is the host's netlink socket.
    pub(super) async fn set_mtu(&self, there: &Handle, mtu: u32) -> Result<(), Error> {
        self.set(LinkUnspec::new_with_name(&self.name()).mtu(mtu).build()).await?;
        let done = there.link().set(LinkUnspec::new_with_name("eth0").mtu(mtu).build()).execute().await;
        done.map_err(network("change the interface of a host"))
    }

    async fn set(&self, link: LinkMessage) -> Result<(), Error> {
        let done = self.links.link().set(link).execute().await;
        done.map_err(network(format!("change the interface {}", self.name())))
    }

    /// The name of its interface.
    pub(super) fn name(&self) -> String {
        format!("h{}", self.number)
    }
}

/// What happens to packets on a cable, in each direction (tc-netem(8)). The kernel needs the module
/// `sch_netem`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impairment {
    /// How many of 100 packets are lost, 0 to 100.
    pub loss: u8,
    /// How much later each arrives.
    pub delay: Duration,
    /// How many of 100 packets overtake the delayed ones, 0 to 100; without a delay none does.
    pub reordered: u8,
}

impl Impairment {
    /// The arguments of tc(8) that bring an interface to this, or to none.
    pub(super) fn command(wanted: Option<&Self>, interface: &str) -> Vec<String> {
        let text = |words: &str| words.split_whitespace().map(str::to_owned).collect();
        let Some(Self { loss, delay, reordered }) = wanted else {
            return text(&format!("qdisc delete dev {interface} root"));
        };
        // The default of 1,000 packets would drop what waits for the end of a long delay.
        let mut words =
            format!("qdisc replace dev {interface} root netem limit 100000 delay {}us", delay.as_micros());
        if *loss > 0 {
            words += &format!(" loss {loss}%");
        }
        if *reordered > 0 && !delay.is_zero() {
            words += &format!(" reorder {reordered}%");
        }
        text(&words)
    }

    pub(super) fn outcome(output: io::Result<Output>) -> Result<(), Error> {
        let output = output.map_err(system("run tc"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Refused(format!("tc: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}

/// Gives the host that `links` belongs to its loopback, addresses and default routes.
pub(super) async fn configure_host(
    links: &Handle,
    index: u32,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
) -> Result<(), Error> {
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

/// Opens a netlink socket in the network namespace of the calling thread, served by the current tokio
/// runtime.
pub(super) fn connect() -> io::Result<Handle> {
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

/// The index of the loopback interface, in every network namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Starts the loopback interface of the network namespace that `links` belongs to.
pub(super) async fn raise_loopback(links: &Handle) -> Result<(), Error> {
    let up = links.link().set(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await;
    up.map_err(network("start the loopback interface"))
}

async fn add_route(links: &Handle, route: RouteMessage) -> Result<(), Error> {
    links.route().add(route).replace().execute().await.map_err(network("add a route of the underlay"))
}

/// The IPv4 address of the host of that number; 1 is the lab itself.
pub(super) fn ipv4(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// The IPv6 address of the host of that number; 1 is the lab itself.
pub(super) fn ipv6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, number)
}
