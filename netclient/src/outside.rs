//! What keeps an agent's own packets out of every mesh, so that no declared range can cut a host off from its
//! repair.
//!
//! Pure. WireGuard's sockets and every connection to the server carry a [`Mark`]. Ranges of networks are
//! routed in a table of the agent's own, which rules lead to only what carries no mark: so a range may hold
//! the server's address, or a peer's endpoint, and tunnels and control traffic go on past the mesh. A table
//! of the packet filter keeps the mark with each connection to or from an address in a range, so that what
//! comes in by another interface is answered by it, also under strict reverse path filtering, and drops
//! packets that come from outside with an address of the mesh. Other connections are left alone, and so is a
//! packet that carries a mark of another program's.
//!
//! Without nftables, routes stand in the main table and there are no rules: rules without the filter would
//! lose packets where reverse paths are filtered.
//!
//! For each range of L of W bits there are three rules, the longer ranges first:
//!
//! ```text
//! p    to RANGE lookup main suppress_prefixlength L-1   what main has that is as long or longer stays there
//! p+1  to RANGE fwmark 0/MARK lookup TABLE              what carries no mark goes into the mesh
//! p+2  to RANGE fwmark 0/MARK unreachable               without a link it goes nowhere, and never in the clear
//! ```
//!
//! What the host itself carries has one rule where it lies in a range that is routed: the main table has it, its
//! default route too. A packet that comes out of a network for what the host forwards to goes back into none, where
//! another gateway might send it here again (`held`).
//!
//! A range that nobody carries at present has a route that refuses. A default route (an internet gateway) has
//! the first two rules alone, last before the main table is looked into as a whole: so what the main table has
//! besides a default route, such as the host's own LAN, stays there. In the table stands a second default
//! route, which refuses once the link is gone; and what never leaves a link is left to the main table.
//!
//! A range that the host reaches for those alone whose traffic it carries has such rules for what comes from
//! the network (`iif`): its own packets, and so its own default route, stay where they were. They need no mark,
//! and stand without nftables too; reverse paths are not filtered strictly on the network's interface then, since
//! that look-up knows no `iif`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schema::inventory::NodeProblem;
use schema::scalars::{Name, NetworkName, is_default};
use schema::view::View;

use crate::ranges::by_longest_prefix;

/// The group of the interfaces of agents and servers (`ip link set group`), by which they tell them from
/// those of others: "nm" in ASCII, a number that /etc/iproute2/group gives to nobody.
pub const GROUP: u32 = 0x6e6d;
/// The routing table that the kernel looks into by itself (RT_TABLE_MAIN).
pub const MAIN: u32 = 254;
/// The metric of routes there: what the host is connected to goes before, and is never replaced.
pub const METRIC: u32 = 5_182;

/// The first of the rules' preferences; with a range of all bits, the first rule has it.
const PREFERENCE: u32 = 4_700;
/// How many preferences one agent has: three for each length that an IPv6 range can have, rounded up.
const PREFERENCES: u32 = 400;
/// The first of the preferences of a default route: after those of well-known programs, and before those that
/// the kernel and wg-quick(8) have (32764 to 32767).
const LAST_PREFERENCE: u32 = 32_000;
/// How many preferences one agent has for default routes.
const LAST_PREFERENCES: u32 = 4;
/// The metric of the default route that refuses, after every other one in the table.
pub const LAST_METRIC: u32 = 0xff00_0000;
/// What a default route leaves to the main table: multicast and broadcast addresses, and those of one link.
const ASIDE: [IpNet; 5] = [
    ipv4([224, 0, 0, 0], 4),
    ipv4([255; 4], 32),
    ipv4([169, 254, 0, 0], 16),
    ipv6(0xfe80, 10),
    ipv6(0xff00, 8),
];

const fn ipv4([a, b, c, d]: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn ipv6(first: u16, prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), prefix))
}
/// The agent's own routing table.
const TABLE: u32 = 5_182;
/// What routes and rules say that they come from (rtnetlink(7)): numbers that /etc/iproute2/rt_protos gives
/// to nobody.
const PROTOCOL: u8 = 200;
/// How many agents, besides that of the default directory, one host distinguishes.
const OTHERS: u8 = 8;

/// The bit of a packet's mark (SO_MARK; socket(7)) that says that it stays outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

impl Mark {
    /// The mark's value, which is its mask as well.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl Default for Mark {
    /// One that no well-known program uses.
    fn default() -> Self {
        Self(0x10)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        match bits {
            Some(bits) if bits.is_power_of_two() => Ok(Self(bits)),
            _ => Err("use a number with one bit set that no other program marks packets with, such as 0x10 or 0x100".into()),
        }
    }
}

/// What sets the numbers and names of an agent apart from those of another one on the same host: agents of
/// other directories than the default one have others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    number: u8,
    mark: Mark,
}

impl Slot {
    /// The slots that an agent may have that keeps its state in a directory, the usual one first; `default`
    /// is the directory of most agents, which has one for itself.
    pub fn candidates(directory: &Path, default: &Path, mark: Mark) -> Vec<Self> {
        if directory == default {
            return vec![Self { number: 0, mark }];
        }
        let first = crc32fast::hash(directory.as_os_str().as_encoded_bytes()) % u32::from(OTHERS);
        let first = u8::try_from(first).expect("it is small");
        (0..OTHERS).map(|step| Self { number: 1 + (first + step) % OTHERS, mark }).collect()
    }

    /// Its number; 0 for the default directory.
    pub fn number(self) -> u8 {
        self.number
    }

    /// The mark of the agent's packets.
    pub fn mark(self) -> Mark {
        self.mark
    }

    /// The routing table.
    pub fn table(self) -> u32 {
        TABLE + u32::from(self.number)
    }

    /// What its routes and rules say that they come from.
    pub fn protocol(self) -> u8 {
        PROTOCOL + self.number
    }

    /// The table of the packet filter.
    pub fn filter(self) -> String {
        match self.number {
            0 => "nm-own".to_owned(),
            number => format!("nm-own-{number}"),
        }
    }

    /// The first of the rules of a range.
    fn preference(self, range: &IpNet) -> u32 {
        if is_default(range) {
            return LAST_PREFERENCE + LAST_PREFERENCES * u32::from(self.number);
        }
        let host = u32::from(range.max_prefix_len() - range.prefix_len());
        PREFERENCE - PREFERENCES * u32::from(self.number) + 3 * host
    }
}

/// What all networks of an agent need outside of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// The interfaces of the networks.
    pub interfaces: BTreeSet<String>,
    /// Those of networks whose packets the host forwards to no range outside of them.
    pub closed: BTreeSet<String>,
    /// Those of networks between whose peers the host passes packets on.
    pub between: BTreeSet<String>,
    /// The host's own addresses in them.
    pub own: BTreeSet<IpAddr>,
    /// The addresses of the other members.
    pub members: BTreeSet<IpAddr>,
    /// The ranges that are routed, each with its way: the networks' own, and what is reached through them.
    pub ranges: BTreeMap<IpNet, Way>,
    /// Of these the ones that only what comes from a network is sent to, each with the interface of that.
    pub passing: BTreeMap<IpNet, String>,
    /// What the host forwards to outside of its networks, or would if it could.
    pub forwarded: BTreeSet<IpNet>,
    /// What of that it has a way to.
    pub reached: BTreeSet<IpNet>,
    /// The interfaces by which the host forwards to everything: what comes from there has any address.
    pub exits: BTreeSet<String>,
    /// The interfaces from which the host forwards IPv4, and IPv6, for its networks alone.
    pub opened: [BTreeSet<String>; 2],
    /// Whether the state of a network could not be read. What stands of it is not known, so nothing is taken
    /// away.
    pub unread: bool,
}

/// What becomes of packets to a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// They are sent into the network of this interface.
    Into(String),
    /// They are refused, and their sender is sent an error: nobody carries the range at present.
    Refused,
    /// They are left to the tables that come after the agent's own.
    Aside,
}

impl Way {
    /// The interface that it leads to; absent: it leads to none.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::Into(interface) => Some(interface),
            Self::Refused | Self::Aside => None,
        }
    }
}

impl Outside {
    /// What these networks need, each with its interface. Of two that hold the same range the first has it;
    /// a network's own range goes before what is reached through another one, and that before what is reached for
    /// others alone.
    pub fn of<'a>(networks: impl IntoIterator<Item = (&'a str, &'a View)>) -> Self {
        let mut outside = Self::default();
        let mut through = Vec::new();
        for (interface, view) in networks {
            outside.interfaces.insert(interface.to_owned());
            if view.forwards.is_empty() {
                outside.closed.insert(interface.to_owned());
            }
            if view.interface.forward {
                outside.between.insert(interface.to_owned());
            }
            outside.own.extend(view.interface.addresses.iter().map(IpNet::addr));
            outside.members.extend(members(view));
            outside.forwarded.extend(view.forwards.values().flat_map(|forward| forward.ranges.keys()));
            for range in own_ranges(view) {
                outside.ranges.entry(range).or_insert_with(|| Way::Into(interface.to_owned()));
            }
            through
                .extend(view.routes.iter().map(|(range, route)| (route.carried, *range, route, interface)));
        }
        through.sort_by_key(|(carried, ..)| *carried);
        for (carried, range, route, interface) in through {
            let Entry::Vacant(entry) = outside.ranges.entry(range) else { continue };
            entry.insert(if route.via.is_some() { Way::Into(interface.to_owned()) } else { Way::Refused });
            if carried {
                outside.passing.insert(range, interface.to_owned());
            }
        }
        outside
    }

    /// The ranges whose route leads to the interface of another network than this.
    pub fn led_elsewhere(&self, interface: &str) -> Vec<(String, IpNet)> {
        let others = self.ranges.iter().filter_map(|(range, way)| Some((way.interface()?, range)));
        others.filter(|(by, _)| *by != interface).map(|(by, range)| (by.to_owned(), *range)).collect()
    }

    /// The table of the packet filter, in nft(8)'s language.
    pub fn filter(&self, mark: Mark) -> String {
        let mut text = String::new();
        let mut set = |name: &str, ty: &str, elements: &mut dyn Iterator<Item = String>| {
            let elements: Vec<_> = elements.collect();
            let elements = if elements.is_empty() {
                String::new()
            } else {
                format!(" elements = {{ {} }}", elements.join(", "))
            };
            writeln!(text, "  set {name} {{ type {ty};{elements} }}").expect("a text takes everything");
        };
        let [opened4, opened6] = &self.opened;
        for (name, interfaces) in [
            ("ours", &self.interfaces),
            ("closed", &self.closed),
            ("exits", &self.exits),
            ("opened4", opened4),
            ("opened6", opened6),
        ] {
            set(name, "ifname", &mut interfaces.iter().map(|name| format!("\"{name}\"")));
        }
        let pairs = &mut self.between.iter().map(|name| format!("\"{name}\" . \"{name}\""));
        set("between", "ifname . ifname", pairs);
        for (name, ipv4, addresses) in sets(&self.own, &self.members) {
            let of_family = addresses.iter().filter(|address| address.is_ipv4() == ipv4);
            set(name, if ipv4 { "ipv4_addr" } else { "ipv6_addr" }, &mut of_family.map(ToString::to_string));
        }
        // Elements of a set must not overlap: not here, and not with what stands and stays (`unread`), which the
        // kernel merges.
        let behind = self.forwarded.iter().filter(|range| !is_default(range));
        let (ranges, behind) = (disjoint(self.ranges.keys()), disjoint(behind));
        for (name, ty, ipv4, ranges) in [
            ("ranges4", "ipv4_addr", true, &ranges),
            ("ranges6", "ipv6_addr", false, &ranges),
            ("behind4", "ipv4_addr", true, &behind),
            ("behind6", "ipv6_addr", false, &behind),
        ] {
            let of_family = ranges.iter().filter(|range| range.addr().is_ipv4() == ipv4);
            set(name, &format!("{ty}; flags interval; auto-merge"), &mut of_family.map(ToString::to_string));
        }
        for (name, ty, ipv4) in [("held4", "ipv4_addr", true), ("held6", "ipv6_addr", false)] {
            let of_family = self.held().into_iter().filter(|(first, _)| first.is_ipv4() == ipv4);
            let texts = of_family.map(|(first, last)| format!("{first}-{last}"));
            set(name, &format!("{ty}; flags interval; auto-merge"), &mut { texts });
        }
        text + &CHAINS.replace("MARK", &mark.to_string()).replace("GROUP", &GROUP.to_string())
    }

    /// Whether it needs the same of the packet filter as another one.
    pub fn same_filter(&self, other: &Self) -> bool {
        let Self { interfaces, closed, between, own, members, ranges, forwarded, exits, opened, .. } = self;
        *interfaces == other.interfaces
            && *closed == other.closed
            && *between == other.between
            && *own == other.own
            && *members == other.members
            && ranges.keys().eq(other.ranges.keys())
            && *forwarded == other.forwarded
            && *exits == other.exits
            && *opened == other.opened
    }

    /// Takes in what another one needs of the packet filter.
    pub fn absorb(&mut self, other: &Self) {
        let Self { interfaces, closed, between, own, members, ranges, forwarded, exits, opened, .. } = other;
        self.closed.extend(closed.iter().cloned());
        self.between.extend(between.iter().cloned());
        self.ranges.extend(ranges.iter().map(|(range, way)| (*range, way.clone())));
        self.interfaces.extend(interfaces.iter().cloned());
        self.own.extend(own);
        self.members.extend(members);
        self.forwarded.extend(forwarded);
        self.exits.extend(exits.iter().cloned());
        for (own, other) in self.opened.iter_mut().zip(opened) {
            own.extend(other.iter().cloned());
        }
    }

    /// Whether it needs nothing: the agent is in no network.
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty()
    }

    /// The routes and rules; with or without a filter that keeps marks.
    pub fn routing(&self, slot: Slot, filtered: bool) -> Routing {
        let mut routing = Routing { unread: self.unread, ..Routing::default() };
        for (range, way) in &self.ranges {
            let from = self.passing.get(range);
            let ruled = filtered || from.is_some();
            let table = if ruled { slot.table() } else { MAIN };
            let place = |range: IpNet| Place { table, range, last: false };
            routing.routes.insert(place(*range), way.clone());
            if !ruled {
                continue;
            }
            if is_default(range) {
                routing.routes.insert(Place { last: true, ..place(*range) }, Way::Refused);
                let aside = ASIDE.iter().filter(|aside| range.contains(*aside));
                routing.routes.extend(aside.map(|aside| (place(*aside), Way::Aside)));
            }
            routing.rules.extend(Rule::all(slot, *range, from));
        }
        routing.rules.extend(self.kept().filter(|_| filtered).map(|range| Rule::keeping(slot, range)));
        routing
    }

    /// What the host carries that lies in a range which is routed.
    fn kept(&self) -> impl Iterator<Item = IpNet> {
        let lies_in = |range: &IpNet| self.ranges.keys().any(|other| other.contains(range));
        self.reached.iter().filter(move |range| !self.ranges.contains_key(range) && lies_in(range)).copied()
    }

    /// The addresses that no longer range takes from what the host forwards to.
    fn held(&self) -> Vec<(IpAddr, IpAddr)> {
        let routed = self.ranges.keys().map(|range| (*range, None));
        let all = routed.chain(self.forwarded.iter().map(|range| (*range, Some(()))));
        by_longest_prefix(all, &BTreeSet::new()).into_iter().map(|(interval, ())| interval).collect()
    }
}

/// The network's own ranges.
fn own_ranges(view: &View) -> impl Iterator<Item = IpNet> {
    view.interface.addresses.iter().map(IpNet::trunc)
}

/// Ranges without those that lie in others.
fn disjoint<'a>(ranges: impl Iterator<Item = &'a IpNet>) -> Vec<IpNet> {
    let ranges: Vec<IpNet> = ranges.copied().collect();
    // What ends with the last address of all is not what ipnet is good at.
    let (all, some): (Vec<IpNet>, Vec<IpNet>) = ranges.into_iter().partition(is_default);
    let rest = some.into_iter().filter(|range| !all.iter().any(|all| all.contains(range))).collect();
    [all, IpNet::aggregate(&rest)].concat()
}

/// What is wrong with the ranges of a network, and with those that are reached through it, on a host whose
/// other interfaces are connected to these. What is connected keeps its packets; beside a default route that is
/// as it should be.
pub fn range_problems(view: &View, connected: &[(String, IpNet)]) -> Vec<NodeProblem> {
    let own: BTreeMap<IpNet, Option<&Name>> = own_ranges(view).map(|range| (range, None)).collect();
    let through = view.routes.iter().filter_map(|(range, route)| Some((*range, Some(route.via.as_ref()?))));
    let all: BTreeMap<IpNet, Option<&Name>> = through.chain(own).collect();
    let mut problems = Vec::new();
    for (interface, other) in connected {
        // Of ranges that lie in each other, the longest has the packets.
        let holding = all.iter().filter(|(range, _)| range.contains(other));
        let Some((range, via)) = holding.max_by_key(|(range, _)| range.prefix_len()) else { continue };
        if range == other {
            problems.push(NodeProblem::new(
                NodeProblem::RANGE_CONNECTED,
                connected_message(&view.network, *range, *via, interface),
            ));
        } else if !is_default(range) {
            problems.push(NodeProblem::new(
                NodeProblem::RANGE_SHADOWED,
                shadowed_message(&view.network, *range, *via, interface, *other),
            ));
        }
    }
    problems
}

fn connected_message(network: &NetworkName, range: IpNet, via: Option<&Name>, interface: &str) -> String {
    match via {
        None => format!(
            "the interface {interface} of this host is connected to {range}, the range of {network}, so packets go there; \
             change one of the two ranges"
        ),
        Some(via) => format!(
            "the interface {interface} of this host is connected to {range}, which {network} reaches through {via}, so \
             packets go there and not to {via}; if that is another place with the same range, change one of the two"
        ),
    }
}

fn shadowed_message(
    network: &NetworkName,
    range: IpNet,
    via: Option<&Name>,
    interface: &str,
    part: IpNet,
) -> String {
    let lost = match via {
        None => format!("nodes of {network} with these addresses are not reached"),
        Some(via) => format!("hosts with these addresses are not reached through {via}, a node of {network}"),
    };
    format!("the interface {interface} of this host is connected to {part}, a part of {range}: {lost}")
}

/// For each range that is routed to a network's interface, an address by which to find out where packets to
/// the range leave: a member's, or any behind a gateway; none that another interface is connected to, or that
/// a longer range has.
pub fn samples<'a>(
    view: &'a View,
    outside: &'a Outside,
    interface: &'a str,
    connected: &'a [(String, IpNet)],
) -> impl Iterator<Item = (IpNet, IpAddr)> + use<'a> {
    let is_free = move |range: &IpNet, address: &IpAddr| {
        let longer = |other: &&IpNet| other.prefix_len() > range.prefix_len() && other.contains(address);
        !connected.iter().any(|(_, other)| !is_default(other) && other.contains(address))
            && !outside.ranges.keys().any(|other| longer(&other))
    };
    let own = own_ranges(view).filter_map(move |range| {
        let sample = members(view).find(|address| range.contains(address) && is_free(&range, address))?;
        Some((range, sample))
    });
    let through =
        // Whether rules for what comes from the network are heeded is not asked.
        view.routes.iter().filter(|(_, route)| route.via.is_some() && !route.carried).filter_map(move |(range, _)| {
            Some((*range, addresses_in(range).into_iter().find(|address| is_free(range, address))?))
        });
    let routed = move |(range, _): &(IpNet, IpAddr)| {
        outside.ranges.get(range).and_then(Way::interface) == Some(interface)
    };
    own.chain(through).filter(routed)
}

/// Some addresses of a range that a host in it may have; of everything, those for documentation (RFC 5737, RFC
/// 3849), which only a default route leads to.
pub fn addresses_in(range: &IpNet) -> Vec<IpAddr> {
    if is_default(range) {
        return vec![match range {
            IpNet::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
            IpNet::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        }];
    }
    // The first ones are often a router's, which may be this host.
    let mut hosts = range.hosts();
    let first: Vec<_> = hosts.by_ref().take(3).collect();
    let last = hosts.next_back();
    last.into_iter().chain(first.into_iter().rev()).collect()
}

/// What is wrong where packets to an address of a range leave by this interface, which is not the network's.
pub fn routed_elsewhere(view: &View, range: IpNet, sample: IpAddr, exit: &str) -> NodeProblem {
    let network = &view.network;
    let what = match view.routes.get(&range).and_then(|route| route.via.as_ref()) {
        Some(via) => format!("which {network} reaches through {via}"),
        None => format!("a member of {network}"),
    };
    let message = format!(
        "packets to {sample}, {what}, leave this host by {exit}, and so may others in {range}: a route or a rule of \
         another program comes first (see ip rule and ip route); stop that program, or have it leave out {range}"
    );
    NodeProblem::new(NodeProblem::RANGE_ROUTED_ELSEWHERE, message)
}

/// The addresses of the other members of a network, as far as the node knows them.
pub fn members(view: &View) -> impl Iterator<Item = IpAddr> {
    view.peers.values().flat_map(|peer| peer.addresses.iter().copied())
}

/// The sets of addresses: name, whether of IPv4, content.
fn sets<'a>(
    own: &'a BTreeSet<IpAddr>,
    members: &'a BTreeSet<IpAddr>,
) -> [(&'static str, bool, &'a BTreeSet<IpAddr>); 4] {
    let [members4, members6] = MEMBERS;
    [("own4", true, own), ("own6", false, own), (members4, true, members), (members6, false, members)]
}

/// The sets of members, of IPv4 and of IPv6.
const MEMBERS: [&str; 2] = ["members4", "members6"];

/// The set of the table that the address of a member is in.
pub fn members_set(address: &IpAddr) -> &'static str {
    MEMBERS[usize::from(address.is_ipv6())]
}

/// `guard` comes before routing and connection tracking's helpers, and drops what pretends; the other chains but
/// `forward`, `opened` and `redirects` keep the mark. Interfaces of ours are those of the set, and by their
/// group those of other agents on the host.
///
/// `forward` lets through, where the host forwards nothing of a network to outside, what containers opened, and
/// what is published of them at the host's own addresses in the network; a network with ranges outside has
/// those judged by its own table. Where an interface leads to everything, only a forwarded range is let into
/// networks from there, since members let every address in by their way to the internet. What comes in where
/// the host forwards for networks alone goes nowhere else (`opened`).
///
/// What the host sends itself came in by no interface, so it marks nothing: that a packet could not be sent (the
/// kernel's WireGuard says so where it has no peer, or no endpoint of it) is an error of the connection that it is
/// about, whose answers would leave by the cable from then on.
///
/// What comes out of a network for what the host forwards to never goes back into one (`held`): two gateways of wide
/// ranges, each without a route to an address in its own, would send packets for it to and fro. Answers are no
/// exception.
///
/// `redirects` holds back the kernel's advice to whoever sends through this host that the receiver is nearer,
/// since peers are near each other in name only (the switch `send_redirects` of an interface does nothing while
/// that of all interfaces is on, and IPv6 has none).
const CHAINS: &str = "  chain guard {
    type filter hook prerouting priority -155; policy accept;
    iifname @ours accept
    iifgroup GROUP accept
    iifname \"lo\" accept
    ct direction reply ct mark & MARK == MARK accept
    ip daddr @own4 counter drop comment \"an address of the mesh, asked from outside\"
    ip6 daddr @own6 counter drop comment \"an address of the mesh, asked from outside\"
    ip saddr @members4 counter drop comment \"an address of the mesh, forged outside\"
    ip6 saddr @members6 counter drop comment \"an address of the mesh, forged outside\"
  }
  chain opened {
    oifname @ours accept
    oifgroup GROUP accept
    ct status dnat accept
    counter drop comment \"not for a network, where the host forwards for networks alone\"
  }
  chain enter {
    ip saddr @behind4 return
    ip6 saddr @behind6 return
    ct status dnat return
    counter drop comment \"into a network, from outside of what is forwarded\"
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname @ours oifname @ours ip daddr @held4 counter drop comment \"back into a network, for what is forwarded here\"
    iifname @ours oifname @ours ip6 daddr @held6 counter drop comment \"back into a network, for what is forwarded here\"
    ct direction reply accept
    ct state related accept
    iifname . oifname @between accept
    iifname @exits oifname @ours jump enter
    meta nfproto ipv4 iifname @opened4 jump opened
    meta nfproto ipv6 iifname @opened6 jump opened
    iifname != @closed accept
    ct status dnat ct original ip daddr @own4 accept
    ct status dnat ct original ip6 daddr @own6 accept
    counter drop comment \"from a network, through a host that forwards nothing\"
  }
  chain redirects {
    type filter hook output priority filter; policy accept;
    oifname @ours icmp type redirect counter drop comment \"a redirect into a network\"
    oifname @ours icmpv6 type nd-redirect counter drop comment \"a redirect into a network\"
  }
  chain arrive {
    ct direction reply ct mark & MARK == MARK meta mark set meta mark | MARK
    ct direction original meta mark 0 ct mark 0 fib daddr type local ct mark set MARK
    ct direction original meta mark 0 ct mark & MARK == MARK meta mark set MARK
  }
  chain answer {
    ct direction reply meta mark 0 ct mark & MARK == MARK meta mark set MARK
  }
  chain send {
    meta mark & MARK == MARK ct mark set ct mark | MARK
    jump answer
  }
  chain pre {
    type filter hook prerouting priority mangle; policy accept;
    iifname @ours accept
    iifgroup GROUP accept
    iifname \"lo\" accept
    ip saddr @ranges4 jump arrive
    ip6 saddr @ranges6 jump arrive
    ip daddr @ranges4 jump answer
    ip6 daddr @ranges6 jump answer
  }
  chain out {
    type route hook output priority mangle; policy accept;
    oifname \"lo\" accept
    ip daddr @ranges4 jump send
    ip6 daddr @ranges6 jump send
  }
";

/// Routes and rules of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// The way of each range, by where its route stands.
    pub routes: BTreeMap<Place, Way>,
    /// The rules, in the order in which the kernel asks them.
    pub rules: BTreeSet<Rule>,
    /// See [`Outside::unread`].
    pub unread: bool,
}

/// Where a route stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The table.
    pub table: u32,
    /// The range.
    pub range: IpNet,
    /// Whether it comes after every other route of the range.
    pub last: bool,
}

/// A rule that says in which table the way to a range is looked for (ip-rule(8)).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its preference: the kernel asks the lower ones first.
    pub preference: u32,
    /// The range.
    pub to: IpNet,
    /// What it does.
    pub act: Act,
    /// The bits that a packet must not have (fwmark 0/MASK); 0: it may have any.
    pub unmarked: u32,
    /// The interface that a packet must come from (iif); absent: it may come from any, or be the host's own.
    pub from: Option<String>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Looks into the main table, for routes that are at least as long as the range.
    Main,
    /// Looks into the main table, for any route.
    WholeMain,
    /// Sends what has no mark to the agent's own table.
    Own,
    /// Refuses what has no mark.
    Unreachable,
}

impl Rule {
    /// The rule of a range that the host forwards to itself.
    fn keeping(slot: Slot, range: IpNet) -> Self {
        Self { preference: slot.preference(&range), to: range, act: Act::WholeMain, unmarked: 0, from: None }
    }

    fn all(slot: Slot, range: IpNet, from: Option<&String>) -> impl Iterator<Item = Self> {
        let preference = slot.preference(&range);
        // After a default route, it would refuse what that leaves aside.
        let last = (!is_default(&range)).then_some(Act::Unreachable);
        [Act::Main, Act::Own].into_iter().chain(last).zip(preference..).map(move |(act, preference)| {
            let unmarked = if act == Act::Main { 0 } else { slot.mark().bits() };
            Self { preference, to: range, act, unmarked, from: from.cloned() }
        })
    }
}

/// One operation on routes or rules. Each may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutingStep {
    /// Removes a rule, if there.
    RemoveRule(Rule),
    /// Removes a route, if there.
    RemoveRoute(Place),
    /// Makes a route, or has it lead elsewhere.
    PutRoute(Place, Way),
    /// Adds a rule.
    AddRule(Rule),
}

/// What leads from what a host has to what it should have. Killed after any of them, packets find a way that
/// is right: a rule stands only while the route that it leads to does, and the one that spares the main table
/// before those that do not.
pub fn routing_steps(wanted: &Routing, observed: &Routing) -> Vec<RoutingStep> {
    let mut steps = Vec::new();
    let goes = !wanted.unread;
    let gone = observed.rules.iter().rev().filter(|rule| goes && !wanted.rules.contains(rule));
    steps.extend(gone.map(|rule| RoutingStep::RemoveRule(rule.clone())));
    let gone = observed.routes.keys().filter(|route| goes && !wanted.routes.contains_key(route));
    steps.extend(gone.map(|place| RoutingStep::RemoveRoute(*place)));
    let new = wanted.routes.iter().filter(|(place, way)| observed.routes.get(place) != Some(way));
    steps.extend(new.map(|(place, way)| RoutingStep::PutRoute(*place, way.clone())));
    let new = wanted.rules.difference(&observed.rules);
    steps.extend(new.map(|rule| RoutingStep::AddRule(rule.clone())));
    steps
}

#[cfg(test)]
mod tests;
