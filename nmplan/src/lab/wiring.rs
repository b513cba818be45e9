//! How is what is around nodes connected to them?
//!
//! ```text
//!  gateway db-1                    the lab                        host lan_1
//!  lan_1 192.168.1.1/24 ======= bridge lan_1 ======= 192.168.1.254/24 eth0
//!  gateway db-2                     "                default route by the first gateway
//!  lan_1 192.168.1.2/24 =========== "
//!
//!  gateway fra
//!  eth0 198.18.0.2 ======= h2   forwards   h9 ======= 198.18.0.9 eth0 the_internet
//!  any other host ======== h3   forwards to all but h9
//! ```
//!
//! With commands of iproute2 and nftables, of which a user who entered the lab can undo each. What is connected
//! follows from [`Surroundings`].

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::process::Stdio;

use ipnet::IpNet;
use schema::scalars::NetworkName;
use schema::snapshot::{NodeId, Snapshot};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::surroundings::{Exit, INTERNET, Lan, Relayed, Surroundings};
use super::{Error, Host, Underlay, system};

/// The table of the lab's routes to the host beyond gateways, and the one of its routes back.
const THERE: u16 = 100;
const BACK: u16 = 101;

/// The hosts around the nodes of a lab.
#[derive(Debug, Default)]
pub struct Around {
    /// What is behind each range of an egress, in the order of [`Surroundings::lans`].
    pub lans: Vec<(Lan, Host)>,
    /// The host that gateways to the internet alone reach, if there are any.
    pub internet: Option<Host>,
}

impl Around {
    /// Makes the hosts and connects them to nodes that exist. `mesh` are the ranges of networks; `server` has to be
    /// reached by everybody.
    ///
    /// # Errors
    ///
    /// What the operating system refused.
    pub async fn connect<'a>(
        surroundings: &Surroundings,
        underlay: &Underlay,
        node: impl Fn(&NodeId) -> Option<&'a Host>,
        (server, mesh): (&Host, &BTreeSet<IpNet>),
    ) -> Result<Self, Error> {
        let mut around = Self::default();
        for lan in &surroundings.lans {
            let gateways: Vec<_> =
                lan.gateways.iter().filter_map(|(id, address)| Some((node(id)?, *address))).collect();
            around.lans.push((lan.clone(), connect_lan(lan, &gateways, underlay).await?));
        }
        if !surroundings.exits.is_empty() {
            let internet = underlay.host(INTERNET).await?;
            let gateways = surroundings.exits.iter().flat_map(|Exit { gateways, .. }| gateways);
            let gateways: Vec<_> = gateways.filter_map(&node).collect();
            hide_behind(&internet, &gateways, mesh).await?;
            around.internet = Some(internet);
        }
        // The server is reached by everybody, also where its host is a node.
        let apart = |id: &NodeId| node(id).filter(|host| host.cable() != server.cable());
        let relayed = surroundings.relayed.iter().filter_map(|Relayed { node: id, apart: others }| {
            Some((node(id)?, others.iter().filter_map(apart).collect::<Vec<_>>()))
        });
        let relayed = relayed.filter(|(_, others)| !others.is_empty());
        let relayed: Vec<_> = relayed.collect();
        if !relayed.is_empty() {
            isolate(&relayed).await?;
        }
        Ok(around)
    }

    /// Unplugs a node from the networks behind it, or plugs it in again.
    ///
    /// # Errors
    ///
    /// What the operating system refused.
    pub async fn plug(&self, node: &NodeId, plugged: bool) -> Result<(), Error> {
        let state = if plugged { "up" } else { "down" };
        let mut lines = String::new();
        for (lan, _) in &self.lans {
            let places = lan.gateways.iter().enumerate().filter(|(_, (gateway, _))| gateway == node);
            for (place, _) in places {
                let _ = writeln!(lines, "link set {} {state}", port(lan, place));
            }
        }
        ip(None, &lines).await
    }

    /// Has hosts send what is for others to the node that carries their range, as their routers would; what nobody
    /// carries goes where it went.
    ///
    /// # Errors
    ///
    /// What the operating system refused.
    pub async fn lead_back<'a>(
        &self,
        (exits, declared): (&[Exit], &Snapshot),
        carrier: impl Fn(&NetworkName, IpNet) -> Option<NodeId>,
        node: impl Fn(&NodeId) -> Option<&'a Host>,
    ) -> Result<(), Error> {
        for (lan, host) in &self.lans {
            let Some(carrying) = carrier(&lan.network, lan.range) else { continue };
            let mut gateways = (1..).zip(&lan.gateways);
            let found = gateways.find(|(_, (gateway, _))| *gateway == carrying);
            let Some((place, gateway)) =
                found.and_then(|(place, (id, address))| Some((place, (node(id)?, *address))))
            else {
                continue;
            };
            ip(Some(host), &routes(lan, place, gateway)).await?;
        }
        for Exit { network, gateways: _, ranges } in exits {
            for range in ranges {
                let Some(host) = carrier(network, *range).and_then(|id| node(&id)) else { continue };
                let mesh: BTreeSet<_> =
                    declared.network(network).into_iter().flat_map(|it| it.ranges()).collect();
                let is_ipv4 = range.addr().is_ipv4();
                let family = if is_ipv4 { "-4" } else { "-6" };
                fed(Command::new("ip").args([family, "-batch", "-"]), &routes_back(&mesh, is_ipv4, host))
                    .await?;
            }
        }
        Ok(())
    }

    /// All of them.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.lans.iter().map(|(_, host)| host).chain(&self.internet)
    }
}

/// Makes a bridge with the gateways and a host, which sends everything to the first of them.
async fn connect_lan(
    lan: &Lan,
    gateways: &[(&Host, Option<IpAddr>)],
    underlay: &Underlay,
) -> Result<Host, Error> {
    let Lan { network: _, range, host: name, addresses, inner: _, gateways: _ } = lan;
    let host = underlay.host_apart(name).await?;
    let mut here = format!("link add {name} type bridge mcast_snooping 0\nlink set {name} up\n");
    let ends = gateways.iter().map(|(gateway, _)| (*gateway, name.as_str())).chain([(&host, "eth0")]);
    for (place, (end, there)) in ends.enumerate() {
        let (port, network) = (port(lan, place), end.network_file());
        let _ = writeln!(here, "link add {port} type veth peer name {there} netns {network}");
        let _ = writeln!(here, "link set {port} master {name} up");
    }
    ip(None, &here).await?;
    let length = range.prefix_len();
    for (place, (gateway, address)) in (1..).zip(gateways) {
        let mut there = format!("link set {name} up\n");
        let _ = match address {
            Some(address) => writeln!(there, "addr add {address}/{length} dev {name}{}", no_dad(*address)),
            None => writeln!(there, "route add {range} dev {name}"),
        };
        // IPv6 asks for a neighbour by an address that its interface has.
        let _ = writeln!(there, "addr add {}/64 dev {name} nodad", link_local(place));
        ip(Some(gateway), &there).await?;
    }
    let mut own = "link set lo up\nlink set eth0 up\n".to_owned();
    for address in addresses {
        let _ = writeln!(own, "addr add {address}/{length} dev eth0{}", no_dad(*address));
    }
    if let Some((gateway, address)) = gateways.first() {
        own.push_str(&routes(lan, 1, (gateway, *address)));
    }
    ip(Some(&host), &own).await?;
    Ok(host)
}

/// The port of the bridge that leads to the gateway of that place, from 0, or to the host after them.
fn port(lan: &Lan, place: usize) -> String {
    format!("{}.{place}", lan.host)
}

/// The routes of a host through the gateway of that place, from 1, with its address in the range.
fn routes(lan: &Lan, place: usize, (gateway, address): (&Host, Option<IpAddr>)) -> String {
    let next = match (lan.range, address) {
        (IpNet::V6(_), _) => link_local(place),
        (IpNet::V4(_), Some(address)) => address.to_string(),
        (IpNet::V4(_), None) => gateway.ipv4().to_string(),
    };
    let there = lan.inner.iter().map(ToString::to_string).chain(["default".to_owned()]);
    there.map(|range| format!("route replace {range} via {next} dev eth0 onlink\n")).collect()
}

/// The link-local address of the gateway of that place, from 1.
fn link_local(place: usize) -> String {
    format!("fe80::{place:x}")
}

/// An address that IPv6 does not probe for before it is used.
fn no_dad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

/// Lets gateways alone reach a host, and the host reach members through the first of them.
async fn hide_behind(host: &Host, gateways: &[&Host], mesh: &BTreeSet<IpNet>) -> Result<(), Error> {
    // What members' own addresses have as a source comes from no cable of theirs.
    for switch in ["all", "default", &host.cable()]
        .into_iter()
        .map(str::to_owned)
        .chain(gateways.iter().map(|it| it.cable()))
    {
        let file = format!("/proc/sys/net/ipv4/conf/{switch}/rp_filter");
        std::fs::write(&file, "0").map_err(system(format!("turn off {file}")))?;
    }
    let cable = host.cable();
    for (family, address) in [("-4", IpAddr::from(host.ipv4())), ("-6", host.ipv6().into())] {
        let mut rules = format!(
            "route del {address} dev {cable}\nroute add {address} dev {cable} table {THERE}\n\
             rule add iif {cable} lookup {BACK}\n"
        );
        for gateway in gateways {
            let _ = writeln!(rules, "rule add iif {} lookup {THERE}", gateway.cable());
        }
        if let Some(first) = gateways.first() {
            rules.push_str(&routes_back(mesh, address.is_ipv4(), first));
        }
        fed(Command::new("ip").args([family, "-batch", "-"]), &rules).await?;
    }
    Ok(())
}

/// The routes by which the host beyond reaches members through a gateway, of one family.
fn routes_back(mesh: &BTreeSet<IpNet>, is_ipv4: bool, gateway: &Host) -> String {
    let same = mesh.iter().filter(|range| range.addr().is_ipv4() == is_ipv4);
    same.map(|range| format!("route replace {range} dev {} table {BACK}\n", gateway.cable())).collect()
}

/// Drops datagrams between hosts and those that are listed with each.
async fn isolate(relayed: &[(&Host, Vec<&Host>)]) -> Result<(), Error> {
    let mut rules =
        "add table inet lab\nadd chain inet lab forward { type filter hook forward priority 0; }\n"
            .to_owned();
    for (host, others) in relayed {
        let list = |address: fn(&Host) -> String| {
            others.iter().map(|other| address(other)).collect::<Vec<_>>().join(", ")
        };
        let cable = host.cable();
        for (family, list) in
            [("ip", list(|it| it.ipv4().to_string())), ("ip6", list(|it| it.ipv6().to_string()))]
        {
            let _ = writeln!(
                rules,
                "add rule inet lab forward iifname {cable} meta l4proto udp {family} daddr {{ {list} }} drop\n\
                 add rule inet lab forward oifname {cable} meta l4proto udp {family} saddr {{ {list} }} drop"
            );
        }
    }
    fed(Command::new("nft").args(["-f", "-"]), &rules).await
}

/// Runs commands of ip(8), one a line, on a host or in the lab itself.
pub(super) async fn ip(host: Option<&Host>, lines: &str) -> Result<(), Error> {
    let mut command = host.map_or_else(|| Command::new("ip"), |host| host.command("ip").into());
    fed(command.args(["-batch", "-"]), lines).await
}

/// Runs a command that reads its work from standard input.
async fn fed(command: &mut Command, input: &str) -> Result<(), Error> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let failed = || system(format!("run {name}"));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed())?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // One that ends early says why.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.map_err(failed())?;
    if output.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Refused(format!("{name} refused a part of the lab: {printed}\n{input}")))
}
