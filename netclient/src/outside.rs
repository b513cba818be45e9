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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use ipnet::IpNet;
use schema::inventory::NodeProblem;
use schema::view::View;

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

    /// The first of the three rules of a range.
    fn preference(self, range: &IpNet) -> u32 {
        let host = u32::from(range.max_prefix_len() - range.prefix_len());
        PREFERENCE - PREFERENCES * u32::from(self.number) + 3 * host
    }
}

/// What all networks of an agent need outside of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// The interfaces of the networks.
    pub interfaces: BTreeSet<String>,
    /// Those of networks in which the host forwards nothing.
    pub closed: BTreeSet<String>,
    /// The host's own addresses in them.
    pub own: BTreeSet<IpAddr>,
    /// The addresses of the other members.
    pub members: BTreeSet<IpAddr>,
    /// The ranges, each with the interface that it is routed to.
    pub ranges: BTreeMap<IpNet, String>,
    /// Whether the state of a network could not be read. What stands of it is not known, so nothing is taken
    /// away.
    pub unread: bool,
}

impl Outside {
    /// What these networks need, each with its interface. Of two that hold the same range the first has it.
    pub fn of<'a>(networks: impl IntoIterator<Item = (&'a str, &'a View)>) -> Self {
        let mut outside = Self::default();
        for (interface, view) in networks {
            outside.interfaces.insert(interface.to_owned());
            if !view.interface.forward {
                outside.closed.insert(interface.to_owned());
            }
            outside.own.extend(view.interface.addresses.iter().map(IpNet::addr));
            outside.members.extend(members(view));
            for range in view.interface.addresses.iter().map(IpNet::trunc) {
                outside.ranges.entry(range).or_insert_with(|| interface.to_owned());
            }
        }
        outside
    }

    /// The ranges of networks whose route leads to another interface than this.
    pub fn led_elsewhere(&self, interface: &str) -> Vec<(String, IpNet)> {
        let others = self.ranges.iter().filter(|(_, by)| *by != interface);
        others.map(|(range, by)| (by.clone(), *range)).collect()
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
        for (name, interfaces) in [("ours", &self.interfaces), ("closed", &self.closed)] {
            set(name, "ifname", &mut interfaces.iter().map(|name| format!("\"{name}\"")));
        }
        for (name, ipv4, addresses) in sets(&self.own, &self.members) {
            let of_family = addresses.iter().filter(|address| address.is_ipv4() == ipv4);
            set(name, if ipv4 { "ipv4_addr" } else { "ipv6_addr" }, &mut of_family.map(ToString::to_string));
        }
        // Elements of a set must not overlap: not here, and not with what stands and stays (`unread`), which the
        // kernel merges.
        let ranges = IpNet::aggregate(&self.ranges.keys().copied().collect());
        for (name, ty, ipv4) in [("ranges4", "ipv4_addr", true), ("ranges6", "ipv6_addr", false)] {
            let of_family = ranges.iter().filter(|range| range.addr().is_ipv4() == ipv4);
            set(name, &format!("{ty}; flags interval; auto-merge"), &mut of_family.map(ToString::to_string));
        }
        text + &CHAINS.replace("MARK", &mark.to_string()).replace("GROUP", &GROUP.to_string())
    }

    /// Whether it needs the same of the packet filter as another one.
    pub fn same_filter(&self, other: &Self) -> bool {
        let Self { interfaces, closed, own, members, ranges, unread: _ } = self;
        *interfaces == other.interfaces
            && *closed == other.closed
            && *own == other.own
            && *members == other.members
            && ranges.keys().eq(other.ranges.keys())
    }

    /// Takes in what another one needs of the packet filter.
    pub fn absorb(&mut self, other: &Self) {
        let Self { interfaces, closed, own, members, ranges, unread: _ } = other;
        self.closed.extend(closed.iter().cloned());
        self.ranges.extend(ranges.iter().map(|(range, interface)| (*range, interface.clone())));
        self.interfaces.extend(interfaces.iter().cloned());
        self.own.extend(own);
        self.members.extend(members);
    }

    /// Whether it needs nothing: the agent is in no network.
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty()
    }

    /// The routes and rules; with or without a filter that keeps marks.
    pub fn routing(&self, slot: Slot, filtered: bool) -> Routing {
        let table = if filtered { slot.table() } else { MAIN };
        let routes =
            self.ranges.iter().map(|(range, interface)| ((table, *range), interface.clone())).collect();
        let rules =
            self.ranges.keys().filter(|_| filtered).flat_map(|range| Rule::all(slot, *range)).collect();
        Routing { routes, rules, unread: self.unread }
    }
}

/// What is wrong with the ranges of a network on a host whose other interfaces are connected to these.
pub fn range_problems(view: &View, connected: &[(String, IpNet)]) -> Vec<NodeProblem> {
    let network = &view.network;
    let mut problems = Vec::new();
    for range in view.interface.addresses.iter().map(IpNet::trunc) {
        for (interface, other) in connected {
            if *other == range {
                let message = format!(
                    "the interface {interface} of this host is connected to {range}, the range of {network}, so packets go \
                     there; change one of the two ranges"
                );
                problems.push(NodeProblem::new(NodeProblem::RANGE_CONNECTED, message));
            } else if range.contains(other) {
                let message = format!(
                    "the interface {interface} of this host is connected to {other}, a part of {range}: nodes of {network} with \
                     these addresses are not reached"
                );
                problems.push(NodeProblem::new(NodeProblem::RANGE_SHADOWED, message));
            }
        }
    }
    problems
}

/// For each range that is routed to a network's interface, an address of a member by which to find out where
/// packets to the range leave; none that another interface is connected to.
pub fn samples<'a>(
    view: &'a View,
    outside: &'a Outside,
    interface: &'a str,
    connected: &'a [(String, IpNet)],
) -> impl Iterator<Item = (IpNet, IpAddr)> + use<'a> {
    let ranges = view.interface.addresses.iter().map(IpNet::trunc);
    let routed = ranges.filter(move |range| outside.ranges.get(range).is_some_and(|by| by == interface));
    routed.filter_map(move |range| {
        let connected = move |address: &IpAddr| connected.iter().any(|(_, other)| other.contains(address));
        let sample = members(view).find(|address| range.contains(address) && !connected(address))?;
        Some((range, sample))
    })
}

/// What is wrong where packets to a member of a network leave by this interface, which is not the network's.
pub fn routed_elsewhere(view: &View, range: IpNet, sample: IpAddr, exit: &str) -> NodeProblem {
    let message = format!(
        "packets to {sample}, a member of {}, leave this host by {exit}, and so may others in {range}: a route or a rule of \
         another program comes first (see ip rule and ip route); stop that program, or have it leave out {range}",
        view.network
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
    [("own4", true, own), ("own6", false, own), ("members4", true, members), ("members6", false, members)]
}

/// The commands of nft(8) by which the members of a filter change.
pub fn filter_members(slot: Slot, gone: &BTreeSet<IpAddr>, new: &BTreeSet<IpAddr>) -> String {
    let mut text = String::new();
    for (verb, addresses) in [("delete", gone), ("add", new)] {
        for (family, ipv4) in [("4", true), ("6", false)] {
            let some: Vec<_> = addresses
                .iter()
                .filter(|address| address.is_ipv4() == ipv4)
                .map(ToString::to_string)
                .collect();
            if !some.is_empty() {
                let table = slot.filter();
                writeln!(text, "{verb} element inet {table} members{family} {{ {} }}", some.join(", "))
                    .expect("a text takes everything");
            }
        }
    }
    text
}

/// `guard` comes before routing and connection tracking's helpers, and drops what pretends; `forward` lets
/// through, where the host forwards nothing else, what containers opened, and what is published of them at
/// the host's own addresses in the network; `redirects` holds back the kernel's advice to whoever sends through
/// this host that the receiver is nearer, since peers are near each other in name only (the switch
/// `send_redirects` of an interface does nothing while that of all interfaces is on, and IPv6 has none); the
/// other chains keep the mark. Interfaces of ours are those of the set, and by their group those of other
/// agents on the host.
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
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname != @closed accept
    ct direction reply accept
    ct state related accept
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
    /// The interface that each range leads to, by table.
    pub routes: BTreeMap<(u32, IpNet), String>,
    /// The rules, in the order in which the kernel asks them.
    pub rules: BTreeSet<Rule>,
    /// See [`Outside::unread`].
    pub unread: bool,
}

/// A rule that says in which table the way to a range is looked for (ip-rule(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its preference: the kernel asks the lower ones first.
    pub preference: u32,
    /// The range.
    pub to: IpNet,
    /// What it does.
    pub act: Act,
    /// The bits that a packet must not have (fwmark 0/MASK); 0: it may have any.
    pub unmarked: u32,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Looks into the main table, for routes that are at least as long as the range.
    Main,
    /// Sends what has no mark to the agent's own table.
    Own,
    /// Refuses what has no mark.
    Unreachable,
}

impl Rule {
    fn all(slot: Slot, range: IpNet) -> [Self; 3] {
        let (preference, unmarked) = (slot.preference(&range), slot.mark().bits());
        [
            Self { preference, to: range, act: Act::Main, unmarked: 0 },
            Self { preference: preference + 1, to: range, act: Act::Own, unmarked },
            Self { preference: preference + 2, to: range, act: Act::Unreachable, unmarked },
        ]
    }
}

/// One operation on routes or rules. Each may be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutingStep {
    /// Removes a rule, if there.
    RemoveRule(Rule),
    /// Removes a route, if there.
    RemoveRoute(u32, IpNet),
    /// Makes a route, or has it lead elsewhere.
    PutRoute(u32, IpNet, String),
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
    steps.extend(gone.map(|rule| RoutingStep::RemoveRule(*rule)));
    let gone = observed.routes.keys().filter(|route| goes && !wanted.routes.contains_key(route));
    steps.extend(gone.map(|(table, range)| RoutingStep::RemoveRoute(*table, *range)));
    let new = wanted.routes.iter().filter(|(route, interface)| observed.routes.get(route) != Some(interface));
    steps.extend(
        new.map(|((table, range), interface)| RoutingStep::PutRoute(*table, *range, interface.clone())),
    );
    let new = wanted.rules.difference(&observed.rules);
    steps.extend(new.map(|rule| RoutingStep::AddRule(*rule)));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[(&str, &str)]) -> BTreeMap<IpNet, String> {
        texts
            .iter()
            .map(|(range, interface)| (range.parse().expect("a range"), (*interface).to_owned()))
            .collect()
    }

    fn outside(texts: &[(&str, &str)]) -> Outside {
        Outside { ranges: ranges(texts), ..Outside::default() }
    }

    const DEFAULT: Slot = Slot { number: 0, mark: Mark(0x10) };

    #[test]
    fn longer_ranges_are_asked_first_and_each_spares_the_main_table_first() {
        let routing = outside(&[("10.40.0.0/16", "a"), ("10.40.9.0/24", "b"), ("fd40::/64", "a")])
            .routing(DEFAULT, true);
        let rules: Vec<_> = routing
            .rules
            .iter()
            .map(|rule| format!("{} {} {:?}", rule.preference, rule.to, rule.act))
            .collect();
        assert_eq!(
            rules,
            [
                "4724 10.40.9.0/24 Main",
                "4725 10.40.9.0/24 Own",
                "4726 10.40.9.0/24 Unreachable",
                "4748 10.40.0.0/16 Main",
                "4749 10.40.0.0/16 Own",
                "4750 10.40.0.0/16 Unreachable",
                "4892 fd40::/64 Main",
                "4893 fd40::/64 Own",
                "4894 fd40::/64 Unreachable",
            ]
        );
        assert!(routing.routes.keys().all(|(table, _)| *table == 5_182));
    }

    #[test]
    fn without_a_filter_routes_stand_in_the_main_table_without_rules() {
        let routing = outside(&[("10.40.0.0/16", "a")]).routing(DEFAULT, false);
        assert_eq!(
            (routing.rules.len(), routing.routes.keys().next().map(|(table, _)| *table)),
            (0, Some(MAIN))
        );
    }

    #[test]
    fn agents_of_several_directories_do_not_meet() {
        let usual = Path::new("/etc/netclient");
        let candidates = |directory: &str| Slot::candidates(Path::new(directory), usual, Mark::default());
        let default = DEFAULT;
        let all = candidates("/var/lib/nmserver/client");
        let other = all[0];
        assert_eq!(candidates("/etc/netclient"), [DEFAULT]);
        let mut numbers: Vec<_> = all.iter().map(|slot| slot.number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
        let names = |slot: Slot| (slot.table(), slot.protocol(), slot.filter());
        assert_eq!(names(default), (5_182, 200, "nm-own".to_owned()));
        assert_ne!(names(default), names(other));
        for slot in (0..=OTHERS).map(|number| Slot { number, ..DEFAULT }) {
            let of = |text: &str| slot.preference(&text.parse().expect("a range"));
            let (first, last) = (of("10.0.0.1/32"), of("2000::/3") + 2);
            assert!(first > 1_000 && last < first + PREFERENCES && last < 5_210, "{slot:?} {first} {last}");
        }
    }

    #[test]
    fn a_mark_is_one_bit_and_a_rule_with_another_one_is_replaced() {
        for (text, bits) in [("0x10", Some(0x10)), ("16", Some(16)), ("0x80000000", Some(1 << 31))] {
            assert_eq!(text.parse::<Mark>().ok().map(Mark::bits), bits, "{text}");
        }
        for text in ["", "0", "0x0", "0x30", "3", "0x100000000", "ten", "-1", "0X10"] {
            let why = text.parse::<Mark>().expect_err("it is no mark");
            assert!(why.contains("0x100"), "{text:?}: {why}");
        }
        let of = |mark| outside(&[("10.40.0.0/16", "a")]).routing(Slot { mark, ..DEFAULT }, true);
        let steps = routing_steps(&of(Mark(0x100)), &of(Mark(0x10)));
        assert!(
            matches!(
                &*steps,
                [
                    RoutingStep::RemoveRule(Rule { unmarked: 0x10, .. }),
                    RoutingStep::RemoveRule(Rule { unmarked: 0x10, .. }),
                    RoutingStep::AddRule(Rule { unmarked: 0x100, .. }),
                    RoutingStep::AddRule(Rule { unmarked: 0x100, .. }),
                ]
            ),
            "{steps:?}"
        );
    }

    #[test]
    fn of_two_networks_with_one_range_the_second_has_a_problem() {
        let view = |network: &str, range: &str| crate::tunnels::tests::view(network, range);
        let (one, two) = (view("one", "10.40.0.1/24"), view("two", "10.40.0.7/24"));
        let (wide, inside) = (view("wide", "10.41.0.1/16"), view("inside", "10.41.9.1/24"));
        let all = Outside::of([("nm-one", &one), ("nm-two", &two), ("nm-w", &wide), ("nm-i", &inside)]);
        let codes = |view: &View, interface: &str| {
            let problems = range_problems(view, &all.led_elsewhere(interface));
            problems
                .into_iter()
                .map(|problem| (problem.code.to_string(), problem.message))
                .collect::<Vec<_>>()
        };
        assert_eq!(codes(&one, "nm-one"), []);
        let [(code, message)] = &codes(&two, "nm-two")[..] else { panic!("one problem") };
        assert!(code == NodeProblem::RANGE_CONNECTED && message.contains("nm-one"), "{message}");
        let [(code, message)] = &codes(&wide, "nm-w")[..] else { panic!("one problem") };
        assert!(code == NodeProblem::RANGE_SHADOWED && message.contains("nm-i"), "{message}");
        assert_eq!(codes(&inside, "nm-i"), []);
    }

    #[test]
    fn where_a_range_leads_is_found_by_a_member_that_no_other_interface_is_connected_to() {
        let peer = |address: &str| schema::view::Peer {
            public_key: Some(schema::scalars::WireGuardKey([1; 32])),
            endpoint: None,
            addresses: [address.parse().expect("an address")].into(),
            via: None,
            class: Default::default(),
            named: true,
        };
        let mut view = crate::tunnels::tests::view("corp", "10.40.0.1/24");
        for (name, address) in [("b", "10.40.0.2"), ("c", "10.40.0.3")] {
            view.peers.insert(name.parse().expect("a name"), peer(address).into());
        }
        let all = Outside::of([("nm-corp", &view)]);
        let sample = |all: &Outside, connected: &[&str]| {
            let connected: Vec<_> =
                connected.iter().map(|range| ("x".to_owned(), range.parse().expect("a range"))).collect();
            samples(&view, all, "nm-corp", &connected)
                .map(|(range, to)| format!("{range} {to}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(sample(&all, &[]), ["10.40.0.0/24 10.40.0.2"]);
        assert_eq!(sample(&all, &["10.40.0.2/32"]), ["10.40.0.0/24 10.40.0.3"]);
        assert_eq!(sample(&all, &["10.40.0.0/24"]), [""; 0]);
        assert_eq!(sample(&Outside::default(), &[]), [""; 0], "it is not routed");
    }

    #[test]
    fn rules_go_in_the_reverse_order_and_before_their_route() {
        let wanted = outside(&[("10.40.0.0/16", "a")]).routing(DEFAULT, true);
        let up = routing_steps(&wanted, &Routing::default());
        assert!(matches!(
            &*up,
            [
                RoutingStep::PutRoute(5_182, ..),
                RoutingStep::AddRule(Rule { act: Act::Main, .. }),
                RoutingStep::AddRule(Rule { act: Act::Own, .. }),
                RoutingStep::AddRule(Rule { act: Act::Unreachable, .. }),
            ]
        ));
        let down = routing_steps(&Routing::default(), &wanted);
        assert!(matches!(
            &*down,
            [
                RoutingStep::RemoveRule(Rule { act: Act::Unreachable, .. }),
                RoutingStep::RemoveRule(Rule { act: Act::Own, .. }),
                RoutingStep::RemoveRule(Rule { act: Act::Main, .. }),
                RoutingStep::RemoveRoute(5_182, _),
            ]
        ));
        assert_eq!(routing_steps(&wanted, &wanted), []);
        let unread = Routing { unread: true, ..Routing::default() };
        assert_eq!(routing_steps(&unread, &wanted), [], "what is not known to be gone stays");
        let moved = outside(&[("10.40.0.0/16", "b")]).routing(DEFAULT, true);
        let steps = routing_steps(&moved, &wanted);
        assert!(matches!(&*steps, [RoutingStep::PutRoute(_, _, interface)] if interface == "b"), "{steps:?}");
    }

    #[test]
    fn the_filter_names_what_is_ours_and_who_the_members_are() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let outside = Outside {
            interfaces: ["nm-corp".to_owned()].into(),
            closed: ["nm-corp".to_owned()].into(),
            own: [address("10.40.0.1"), address("fd40::1")].into(),
            members: [address("10.40.0.2"), address("10.40.0.3")].into(),
            ranges: ranges(&[
                ("10.40.0.0/16", "nm-corp"),
                ("10.40.9.0/24", "nm-lab"),
                ("10.41.0.0/16", "nm-x"),
            ]),
            ..Outside::default()
        };
        let text = outside.filter(DEFAULT.mark());
        for line in [
            "  set ours { type ifname; elements = { \"nm-corp\" } }\n",
            "  set closed { type ifname; elements = { \"nm-corp\" } }\n",
            "  set own4 { type ipv4_addr; elements = { 10.40.0.1 } }\n",
            "  set own6 { type ipv6_addr; elements = { fd40::1 } }\n",
            "  set members4 { type ipv4_addr; elements = { 10.40.0.2, 10.40.0.3 } }\n",
            "  set members6 { type ipv6_addr; }\n",
            "  set ranges4 { type ipv4_addr; flags interval; auto-merge; elements = { 10.40.0.0/15 } }\n",
            "  set ranges6 { type ipv6_addr; flags interval; auto-merge; }\n",
            "    meta mark & 0x10 == 0x10 ct mark set ct mark | 0x10\n",
            "    iifgroup 28269 accept\n",
            "    ct status dnat ct original ip daddr @own4 accept\n",
            "    ct status dnat ct original ip6 daddr @own6 accept\n",
            "    oifname @ours icmp type redirect counter drop",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("ct status dnat accept"), "what is published on other addresses\n{text}");
        assert!(!text.contains('*'), "no wildcard: others' interfaces may be called alike\n{text}");
        let mut other = outside.clone();
        other.ranges.clear();
        assert!(!other.same_filter(&outside), "the filter keeps marks of what the ranges hold");
        let changed = filter_members(DEFAULT, &[address("10.40.0.2")].into(), &[address("fd40::2")].into());
        assert_eq!(
            changed,
            "delete element inet nm-own members4 { 10.40.0.2 }\nadd element inet nm-own members6 { fd40::2 }\n"
        );
    }
}
