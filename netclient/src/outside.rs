//! What keeps an agent's own packets out of every mesh, so that no declared range can cut a host off from its
//! repair.
//!
//! Pure. WireGuard's sockets and every connection to the server carry [`MARK`]. Ranges of networks are routed
//! in a table of the agent's own, which rules lead to only what carries no mark: so a range may hold the
//! server's address, or a peer's endpoint, and tunnels and control traffic go on past the mesh. A table of
//! the packet filter keeps the mark with each connection, so that what comes in by another interface is
//! answered by it, also under strict reverse path filtering, and drops packets that come from outside with an
//! address of the mesh.
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
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use schema::inventory::NodeProblem;
use schema::view::View;

/// The bit of a packet's mark (SO_MARK; socket(7)) that says that it stays outside: one that no well-known
/// program uses.
pub const MARK: u32 = 0x10;
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
/// What routes and rules say that they come from (rtnetlink(7)): numbers that /etc/iproute2/rt_protos gives to
/// nobody.
const PROTOCOL: u8 = 200;
/// How many agents, besides that of the default directory, one host distinguishes.
const OTHERS: u32 = 8;

/// What sets the numbers and names of an agent apart from those of another one on the same host: agents of
/// other directories than the default one have others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u8);

impl Slot {
    /// The slot of an agent that keeps its state in a directory; `default` is that of most agents.
    pub fn of(directory: &Path, default: &Path) -> Self {
        if directory == default {
            return Self(0);
        }
        let hash = crc32fast::hash(directory.as_os_str().as_encoded_bytes());
        Self(1 + u8::try_from(hash % OTHERS).expect("it is small"))
    }

    /// The routing table.
    pub fn table(self) -> u32 {
        TABLE + u32::from(self.0)
    }

    /// What its routes and rules say that they come from.
    pub fn protocol(self) -> u8 {
        PROTOCOL + self.0
    }

    /// The table of the packet filter.
    pub fn filter(self) -> String {
        match self.0 {
            0 => "nm-own".to_owned(),
            number => format!("nm-own-{number}"),
        }
    }

    /// The first of the three rules of a range.
    fn preference(self, range: &IpNet) -> u32 {
        let host = u32::from(range.max_prefix_len() - range.prefix_len());
        PREFERENCE - PREFERENCES * u32::from(self.0) + 3 * host
    }
}

/// What all networks of an agent need outside of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// The interfaces of the networks.
    pub interfaces: BTreeSet<String>,
    /// The host's own addresses in them.
    pub own: BTreeSet<IpAddr>,
    /// The addresses of the other members.
    pub members: BTreeSet<IpAddr>,
    /// The ranges, each with the interface that it is routed to.
    pub ranges: BTreeMap<IpNet, String>,
    /// Whether the state of a network could not be read. What stands of it is not known, so nothing is taken away.
    pub unread: bool,
}

impl Outside {
    /// What these networks need, each with its interface. Of two that hold the same range the first has it.
    pub fn of<'a>(networks: impl IntoIterator<Item = (&'a str, &'a View)>) -> Self {
        let mut outside = Self::default();
        for (interface, view) in networks {
            outside.interfaces.insert(interface.to_owned());
            outside.own.extend(view.interface.addresses.iter().map(IpNet::addr));
            outside.members.extend(members(view));
            for range in view.interface.addresses.iter().map(IpNet::trunc) {
                outside.ranges.entry(range).or_insert_with(|| interface.to_owned());
            }
        }
        outside
    }

    /// The table of the packet filter, in nft(8)'s language.
    pub fn filter(&self) -> String {
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
        set("ours", "ifname", &mut self.interfaces.iter().map(|name| format!("\"{name}\"")));
        for (name, ipv4, addresses) in sets(&self.own, &self.members) {
            let of_family = addresses.iter().filter(|address| address.is_ipv4() == ipv4);
            set(name, if ipv4 { "ipv4_addr" } else { "ipv6_addr" }, &mut of_family.map(ToString::to_string));
        }
        text + &CHAINS.replace("MARK", &format!("{MARK:#x}"))
    }

    /// Whether it needs the same of the packet filter as another one.
    pub fn same_filter(&self, other: &Self) -> bool {
        let Self { interfaces, own, members, ranges: _, unread: _ } = self;
        *interfaces == other.interfaces && *own == other.own && *members == other.members
    }

    /// Takes in what another one needs of the packet filter.
    pub fn absorb(&mut self, other: &Self) {
        let Self { interfaces, own, members, ranges: _, unread: _ } = other;
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

/// `guard` comes before routing and connection tracking's helpers, and drops what pretends; `pre` and `out`
/// keep the mark. Interfaces of ours are those of the set, and by their usual name those of other agents on
/// the host.
const CHAINS: &str = "  chain guard {
    type filter hook prerouting priority -155; policy accept;
    iifname @ours accept
    iifname \"nm-*\" accept
    iifname \"lo\" accept
    ct direction reply ct mark & MARK == MARK accept
    ip daddr @own4 counter drop comment \"an address of the mesh, asked from outside\"
    ip6 daddr @own6 counter drop comment \"an address of the mesh, asked from outside\"
    ip saddr @members4 counter drop comment \"an address of the mesh, forged outside\"
    ip6 saddr @members6 counter drop comment \"an address of the mesh, forged outside\"
  }
  chain pre {
    type filter hook prerouting priority mangle; policy accept;
    iifname @ours accept
    iifname \"nm-*\" accept
    ct direction original fib daddr type local ct mark set ct mark | MARK meta mark set meta mark | MARK
    ct direction reply ct mark & MARK == MARK meta mark set meta mark | MARK
  }
  chain out {
    type route hook output priority mangle; policy accept;
    oifname \"lo\" accept
    meta mark & MARK == MARK ct mark set ct mark | MARK
    ct direction reply ct mark & MARK == MARK meta mark set meta mark | MARK
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
        let preference = slot.preference(&range);
        [
            Self { preference, to: range, act: Act::Main },
            Self { preference: preference + 1, to: range, act: Act::Own },
            Self { preference: preference + 2, to: range, act: Act::Unreachable },
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

    const DEFAULT: Slot = Slot(0);

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
        let default = Slot::of(usual, usual);
        let other = Slot::of(Path::new("/var/lib/nmserver/client"), usual);
        assert_eq!(default, DEFAULT);
        let names = |slot: Slot| (slot.table(), slot.protocol(), slot.filter());
        assert_eq!(names(default), (5_182, 200, "nm-own".to_owned()));
        assert_ne!(names(default), names(other));
        for slot in (0..=OTHERS).map(|number| Slot(u8::try_from(number).expect("small"))) {
            let of = |text: &str| slot.preference(&text.parse().expect("a range"));
            let (first, last) = (of("10.0.0.1/32"), of("2000::/3") + 2);
            assert!(first > 1_000 && last < first + PREFERENCES && last < 5_210, "{slot:?} {first} {last}");
        }
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
            own: [address("10.40.0.1"), address("fd40::1")].into(),
            members: [address("10.40.0.2"), address("10.40.0.3")].into(),
            ..Outside::default()
        };
        let text = outside.filter();
        for line in [
            "  set ours { type ifname; elements = { \"nm-corp\" } }\n",
            "  set own4 { type ipv4_addr; elements = { 10.40.0.1 } }\n",
            "  set own6 { type ipv6_addr; elements = { fd40::1 } }\n",
            "  set members4 { type ipv4_addr; elements = { 10.40.0.2, 10.40.0.3 } }\n",
            "  set members6 { type ipv6_addr; }\n",
            "    meta mark & 0x10 == 0x10 ct mark set ct mark | 0x10\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let changed = filter_members(DEFAULT, &[address("10.40.0.2")].into(), &[address("fd40::2")].into());
        assert_eq!(
            changed,
            "delete element inet nm-own members4 { 10.40.0.2 }\nadd element inet nm-own members6 { fd40::2 }\n"
        );
    }
}
