//! A network: one mesh, its addresses and what its nodes have in common.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use schema_derive::{Choice, Describe};

use super::{ExternalClient, Ingress, Node};
use crate::attribute::{Bounded, Ref};
use crate::report::{Code, Problem};
use crate::rules::top_level::{self, Standing};
use crate::rules::{Claim, Findings, Rules};
use crate::scalars::{Ipv4Range, Ipv6Range, NetworkName, Scalar, Seconds};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// A port number that can be set.
pub type ListenPort = Bounded<1, 65_535>;
/// A packet size that IPv6 allows (RFC 8200, section 5).
pub type Mtu = Bounded<1_280, 65_535>;

/// What members may open at each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Choice)]
pub enum Acl {
    /// Everything.
    Allow,
    /// Nothing but what its `allow` rules say. Members that may open nothing at each other, in neither
    /// direction, never learn of each other.
    Deny,
}

/// One WireGuard mesh: its address ranges, its shape, and what its nodes have in common.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "network", plural = "networks")]
pub struct Network {
    /// The IPv4 range that nodes get their addresses from. Absent: the network has no IPv4; then `ipv6` is
    /// needed.
    pub ipv4: Option<Ipv4Range>,
    /// The IPv6 range that nodes get their addresses from. Absent: the network has no IPv6; then `ipv4` is
    /// needed.
    pub ipv6: Option<Ipv6Range>,
    /// The node that all traffic passes: the others have it as their only peer. Absent: a full mesh, in which
    /// every node has every other as a peer. While the hub has not joined, no other node has a peer.
    pub hub: Option<Ref<Node>>,
    /// What members may open at each other.
    #[field(default = Acl::Allow)]
    pub acl: Acl,
    /// The UDP port that nodes listen on unless their own declaration sets one. If it is taken on a host, the
    /// agent takes the next free one.
    #[field(default = ListenPort::new(51_821))]
    pub listen_port: ListenPort,
    /// The largest packet, in bytes, that interfaces of this network take. Absent: each agent derives it from
    /// its own default route, 1280 to 1420. A host whose kernel has no WireGuard passes on at most 4064
    /// bytes: its interface gets no more, and `netclient status` says so.
    pub mtu: Option<Mtu>,
    /// How often nodes send each other a packet, so that a NAT between them keeps their mapping; `0s` turns
    /// it off, at most `18h`. See PersistentKeepalive in wg(8).
    #[field(default = Seconds(20))]
    pub keepalive: Seconds,
    /// Whether names of this network resolve on its nodes, as NAME.NETWORK.
    #[field(default = true)]
    pub name_service: bool,
    /// Whether hosts may ask to join without an access key (`netclient join --server HOST:PORT --pin
    /// sha256:... -n NETWORK`). Each waits, without an address, a name or peers, until `nmplan node approve` or
    /// `approved` of a declared node lets it in; at most 100 wait at once, each for 24 hours. When it becomes
    /// false, nobody waits any more, and who is in stays.
    #[field(default = false)]
    pub manual_approval: bool,
    /// How many nodes may be in the network, joined and expected together. Absent: as many as there are
    /// addresses.
    pub node_limit: Option<Bounded<1, 1_000_000>>,
    /// How often an agent checks in while nothing changes, `1s` to `1h`.
    #[field(default = Seconds(15))]
    pub check_in: Seconds,
    /// How long the address of a node that left is in quarantine before another node may get it. If no other
    /// address is free, the one longest in quarantine is taken, but not before 10 minutes.
    #[field(default = Seconds::hours(24))]
    pub address_quarantine: Seconds,
    /// Whether the network is kept from being deleted. A change that deletes it is refused, whoever makes it and
    /// whatever becomes of its block in the files: what counts is what the server has. To delete it, remove
    /// `protect` and apply first, or let it through once with `--allow protect=NAME`. Its objects can be deleted.
    #[field(default = false)]
    pub protect: bool,
}

impl Rules for Network {
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        if let Some(Standing::Taken(what)) = self.standing(id) {
            let name = &id.network;
            let message = format!("a network cannot be named \"{name}\": names of its nodes end in .{name}, which {what}");
            let help = format!("choose another name, such as \"{name}-net\", or set name-service to false");
            findings.push(Problem::new(Code::ReservedNetworkName, message).help(help), &[]);
        }
        if self.ipv4.is_none() && self.ipv6.is_none() {
            let problem = Problem::new(Code::NoRange, format!("network {id} has neither an IPv4 nor an IPv6 range"));
            findings.push(problem.help("give it an ipv4 range such as 10.40.0.0/16, or an ipv6 range".to_owned()), &[]);
        }
        within(findings, "check-in", self.check_in, Seconds(1), Seconds::hours(1));
        within(findings, "keepalive", self.keepalive, Seconds(0), Seconds::hours(18));
        let declared = world.all_in::<Node>(&id.network).count() as u128;
        self.check_room(id, declared, world, findings);
        let limit = self.node_limit.map(|limit| limit.number() as u128);
        if let Some(limit) = limit.filter(|limit| declared > *limit) {
            let message = format!("network {id} declares {declared} nodes, but allows only {limit}");
            let problem = Problem::new(Code::NodeLimit, message);
            findings.push(problem.help(format!("raise node-limit to at least {declared}")), &[Step::Field("node-limit")]);
        }
    }

    fn doubt(&self, id: &ResourceId, _world: &Snapshot, findings: &mut Findings<'_>) {
        if self.standing(id) == Some(Standing::Delegated) {
            let name = &id.network;
            let message = format!(
                "names of nodes of network {name} end in .{name}, which is a public top-level domain: its members may not reach public \
                 names that end in it"
            );
            let help = format!("choose a name that is nobody's, such as \"{name}-net\", or set name-service to false");
            findings.push(Problem::new(Code::PublicNetworkName, message).help(help), &[]);
        }
    }

    fn claims(&self) -> Vec<(&'static str, Claim)> {
        let field = |range: &IpNet| if range.network().is_ipv4() { "ipv4" } else { "ipv6" };
        self.ranges().map(|range| (field(&range), Claim::Range(range))).collect()
    }
}

impl Network {
    /// What its name is to others; absent: nothing, or no names resolve by it.
    fn standing(&self, id: &ResourceId) -> Option<Standing> {
        self.name_service.then(|| top_level::standing(&id.network)).flatten()
    }

    fn check_room(&self, id: &ResourceId, nodes: u128, world: &Snapshot, findings: &mut Findings<'_>) {
        for range in self.ranges() {
            let (field, width) = if range.network().is_ipv4() { ("ipv4", 32) } else { ("ipv6", 128) };
            let (pooled, clients) = pooled(range, &id.network, world);
            let needed = (nodes + clients).max(2);
            let hosts = hosts(range).saturating_sub(pooled);
            if hosts < needed {
                let pools = if pooled == 0 { "" } else { ", besides those in pools of clients" };
                let message =
                    format!("the {field} range of network {id} has {hosts} addresses for nodes{pools}; it needs room for {needed}");
                let all = needed.saturating_add(pooled).saturating_add(2);
                let longest = width - all.checked_next_power_of_two().map_or(width, u128::trailing_zeros);
                let problem = Problem::new(Code::RangeTooSmall, message);
                findings.push(problem.help(format!("use a prefix of /{longest} or shorter")), &[Step::Field(field)]);
            }
        }
    }

    /// Reports addresses that are reserved for a member and that no member can have.
    pub(super) fn check_reserved(
        &self,
        id: &ResourceId,
        reserved: impl Iterator<Item = (&'static str, IpAddr)>,
        findings: &mut Findings<'_>,
    ) {
        for (field, address) in reserved {
            if let Some(why) = self.outside(address) {
                let message = format!("{address} cannot be reserved for {id}: {why}");
                let help = self.range_of(address).map_or_else(
                    || format!("give the network an {field} range, or remove the address"),
                    |range| format!("choose a free address of {range}"),
                );
                findings.push(Problem::new(Code::OutsideRange, message).help(help), &[Step::Field(field)]);
            }
        }
    }

    /// Why a member of the network cannot have that address; nothing if it can.
    fn outside(&self, address: IpAddr) -> Option<String> {
        let kind = if address.is_ipv4() { Ipv4Addr::NAME } else { Ipv6Addr::NAME };
        match self.range_of(address) {
            None => Some(format!("the network has no range for {kind}")),
            Some(range) if !range.contains(&address) => Some(format!("it is outside of {range}")),
            Some(range) if range.network() == address => Some(format!("it is the address of {range} itself")),
            Some(range) if address.is_ipv4() && range.broadcast() == address => {
                Some(format!("it is the broadcast address of {range}"))
            }
            Some(_) => None,
        }
    }
}

/// How many addresses of a range members get: all but its own first and, in IPv4, its last.
pub(super) fn hosts(range: IpNet) -> u128 {
    let bits = range.max_prefix_len() - range.prefix_len();
    let lost = if range.network().is_ipv4() { 2 } else { 1 };
    1u128.checked_shl(bits.into()).unwrap_or(u128::MAX).saturating_sub(lost)
}

/// How many addresses of a network's range are in pools of clients, and how many clients get theirs outside
/// of pools.
fn pooled(range: IpNet, network: &NetworkName, world: &Snapshot) -> (u128, u128) {
    let pool = |ingress: &Ingress| ingress.pool_in(range);
    let pools = world.all_in::<Ingress>(network).filter_map(|(_, ingress)| pool(ingress));
    let clients = world.all_in::<ExternalClient>(network).filter(|(_, client)| {
        world.named::<Ingress>(network, &client.via.name).is_none_or(|ingress| pool(ingress).is_none())
    });
    let size = |pool: IpNet| 1u128.checked_shl((pool.max_prefix_len() - pool.prefix_len()).into());
    let pooled = pools.map(|pool| size(pool).unwrap_or(u128::MAX)).fold(0, u128::saturating_add);
    (pooled, clients.count() as u128)
}

/// Reports a duration of an object that lies outside of what works.
pub(super) fn within(findings: &mut Findings<'_>, field: &str, value: Seconds, min: Seconds, max: Seconds) {
    if value < min || value > max {
        let message = format!("{field} is {value}, which is out of range");
        let help = format!("choose a duration from {min} to {max}");
        findings.push(Problem::new(Code::OutOfBounds, message).help(help), &[Step::Field(field)]);
    }
}

impl Network {
    /// The range of the address's family, if the network has one.
    pub fn range_of(&self, address: IpAddr) -> Option<IpNet> {
        match address {
            IpAddr::V4(_) => self.ipv4.map(|range| range.net().into()),
            IpAddr::V6(_) => self.ipv6.map(|range| range.net().into()),
        }
    }

    /// Whether a node may have the address: it lies in the range of its family, and is neither that range's
    /// own first nor, in IPv4, its last.
    pub fn has_room_at(&self, address: IpAddr) -> bool {
        let inside = |range: &IpNet| range.contains(&address) && range.network() != address;
        self.range_of(address).filter(inside).is_some_and(|range| address.is_ipv6() || range.broadcast() != address)
    }

    /// The UDP port that one of its nodes listens on: its declaration's, else the network's.
    pub fn listen_port_of(&self, declaration: Option<&Node>) -> u16 {
        let port = declaration.and_then(|node| node.listen_port).unwrap_or(self.listen_port);
        u16::try_from(port.number()).unwrap_or_default()
    }

    /// Its ranges, at most one of each family.
    pub fn ranges(&self) -> impl Iterator<Item = IpNet> {
        let ipv4 = self.ipv4.map(|range| IpNet::from(range.net()));
        ipv4.into_iter().chain(self.ipv6.map(|range| range.net().into()))
    }
}
