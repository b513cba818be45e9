//! What the packet filter lets through at a node of a network with access rules: one table for each such
//! network.
//!
//! Pure. A [`Filter`] is what a View says of it: which member is of which class, and what each class may open
//! here. Two maps, one for each family, lead from the address of whoever opened a connection to the chain of
//! its class, so that a packet costs one look-up however many classes there are, and one more member is one
//! more element. [`Filter::steps`] is what leads from a filter that stands to another one.
//!
//! Every packet of the network's interface is judged by the first packet of its connection, whichever way it
//! goes (`ct original`; nft(8)): so a connection ends with its permission, in both directions, and what is
//! published of containers is judged by the port that was asked for. What is in no map is dropped. What is
//! let through without being judged is the answers to what this host, or what is behind it, opened. A TCP
//! connection of which nothing is known, since others emptied the kernel's table of connections, is reset
//! before this host sends more of it: nobody knows who opened it.
//!
//! Sets have names, since nft(8) lists ports that stand in such a rule itself in a form that it does not read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use schema::access::{Access, ClassId, Ports};
use schema::scalars::Name;
use schema::view::{Peer, View, ViewDelta};

/// What the names of all such tables begin with.
pub const TABLES: &str = "nm-access-";
/// How many elements change one by one at most; of more, the whole table costs less.
const MOST_ELEMENTS: usize = 1_000;

/// The table of the packet filter of an interface, which one agent of a host has, so that two never share a
/// table.
pub fn table(interface: &str) -> String {
    format!("{TABLES}{interface}")
}

/// The maps of a table, of IPv4 and of IPv6.
pub const MAPS: [&str; 2] = ["who4", "who6"];

/// The map that an address is in.
pub fn map(address: &IpAddr) -> &'static str {
    MAPS[usize::from(address.is_ipv6())]
}

/// The chain of a class.
pub fn chain(class: &ClassId) -> String {
    format!("c_{class}")
}

/// What one network's table lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    interface: String,
    /// The node's own addresses in the network.
    own: BTreeSet<IpAddr>,
    /// Whether the host passes packets on between members, each of which judges what arrives there.
    forward: bool,
    /// What members of a class may open here.
    access: OrdMap<ClassId, Arc<Access>>,
    /// The addresses of members that may open anything here.
    members: BTreeMap<IpAddr, ClassId>,
}

/// How a filter differs from an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterChanges {
    /// What classes may open now; absent: nothing.
    pub access: BTreeMap<ClassId, Option<Arc<Access>>>,
    /// The classes of addresses now; absent: that of a member that may open nothing, or of no member.
    pub members: BTreeMap<IpAddr, Option<ClassId>>,
}

/// One transaction on a table. Between any two of them, a packet passes only if it passed before or does
/// after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterStep {
    /// Replaces the whole table.
    Table,
    /// Runs commands of nft(8).
    Commands(String),
    /// Takes elements out of the maps, and adds others; what is in both changes its class.
    Elements {
        /// The addresses that are taken out.
        gone: BTreeSet<IpAddr>,
        /// Those that are added, each with its class.
        new: BTreeMap<IpAddr, ClassId>,
    },
}

impl Filter {
    /// The filter of a network on this interface; absent: everything may be opened at the node, and it has
    /// none.
    pub fn of(interface: &str, view: &View) -> Option<Self> {
        let View { interface: own, access, .. } = view;
        own.restricted.then(|| Self {
            interface: interface.to_owned(),
            own: own.addresses.iter().map(IpNet::addr).collect(),
            forward: own.forward,
            access: access.clone(),
            members: view.peers.values().flat_map(|peer| permitted(peer, access)).collect(),
        })
    }

    /// The interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The addresses of members that may open anything here, each with its class.
    pub fn members(&self) -> &BTreeMap<IpAddr, ClassId> {
        &self.members
    }

    /// What members of a class may open here; absent: nothing.
    pub fn access(&self, class: &ClassId) -> Option<&Access> {
        self.access.get(class).map(|access| &**access)
    }

    /// The content of the table, in nft(8)'s language.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, ty) in MAPS.into_iter().zip(["ipv4_addr", "ipv6_addr"]) {
            let of_family = self.members.iter().filter(|(address, _)| map(address) == name);
            let elements: Vec<_> =
                of_family.map(|(address, class)| format!("{address} : jump {}", chain(class))).collect();
            let elements = if elements.is_empty() {
                String::new()
            } else {
                format!(" elements = {{ {} }}", elements.join(", "))
            };
            writeln!(text, "  map {name} {{ type {ty} : verdict;{elements} }}").expect(TAKES_ALL);
        }
        for (name, ty, ipv4) in [("own4", "ipv4_addr", true), ("own6", "ipv6_addr", false)] {
            let own = self.own.iter().filter(|address| address.is_ipv4() == ipv4);
            let own = own.map(|address| format!(" elements = {{ {address} }}")).collect::<String>();
            writeln!(text, "  set {name} {{ type {ty};{own} }}").expect(TAKES_ALL);
        }
        text.extend(self.access.iter().map(|(class, access)| class_text(class, access)));
        let between = if self.forward { HUB } else { "" };
        text + &CHAINS.replace("HUB", between).replace("INTERFACE", &self.interface)
    }

    /// What leads from this filter to the one with these changes, in an order in which nobody may open, at any
    /// time, what is allowed neither before nor after.
    pub fn steps(&self, changes: &FilterChanges) -> Vec<FilterStep> {
        let mut gone = BTreeSet::new();
        let mut new = BTreeMap::new();
        for (address, class) in &changes.members {
            let had = self.members.get(address);
            if had != class.as_ref() {
                gone.extend(had.map(|_| *address));
                new.extend(class.map(|class| (*address, class)));
            }
        }
        let left: BTreeSet<_> = gone.iter().filter_map(|address| self.members.get(address)).collect();
        let mut put = Vec::new();
        let mut lost = Vec::new();
        for (class, access) in &changes.access {
            match (self.access(class), access.as_deref()) {
                (Some(had), None) => lost.push((class, had)),
                // Whoever leaves the class would have what it gains until then.
                (Some(had), Some(has)) if left.contains(class) && !had.contains(has) => {
                    return vec![FilterStep::Table];
                }
                (had, Some(has)) if had != Some(has) => put.push((class, had, has)),
                (_, Some(_)) | (None, None) => {}
            }
        }
        if gone.len() + new.len() > MOST_ELEMENTS {
            return vec![FilterStep::Table];
        }
        let mut steps = Vec::new();
        if !put.is_empty() {
            steps.push(FilterStep::Commands(self.put_classes(&put)));
        }
        if !gone.is_empty() || !new.is_empty() {
            steps.push(FilterStep::Elements { gone, new });
        }
        if !lost.is_empty() {
            let lost = lost.into_iter().map(|(class, had)| self.clear_class(class, had, true));
            steps.push(FilterStep::Commands(lost.collect()));
        }
        steps
    }

    /// Takes the changes in.
    pub fn apply(&mut self, changes: &FilterChanges) {
        for (class, access) in &changes.access {
            match access {
                Some(access) => drop(self.access.insert(*class, access.clone())),
                None => drop(self.access.remove(class)),
            }
        }
        for (address, class) in &changes.members {
            match class {
                Some(class) => drop(self.members.insert(*address, *class)),
                None => drop(self.members.remove(address)),
            }
        }
    }

    /// The commands by which classes come, or change.
    fn put_classes(&self, classes: &[(&ClassId, Option<&Access>, &Access)]) -> String {
        let before =
            classes.iter().filter_map(|(class, had, _)| Some(self.clear_class(class, (*had)?, false)));
        let after = classes.iter().map(|(class, _, has)| class_text(class, has));
        let table = table(&self.interface);
        format!("{}table inet {table} {{\n{}}}\n", before.collect::<String>(), after.collect::<String>())
    }

    /// The commands by which a class loses its rules and sets; `whole`: its chain as well.
    fn clear_class(&self, class: &ClassId, had: &Access, whole: bool) -> String {
        let (table, chain) = (table(&self.interface), chain(class));
        let mut text = format!("flush chain inet {table} {chain}\n");
        if whole {
            writeln!(text, "delete chain inet {table} {chain}").expect(TAKES_ALL);
        }
        for (name, _) in port_sets(class, had) {
            writeln!(text, "delete set inet {table} {name}").expect(TAKES_ALL);
        }
        text
    }
}

impl FilterChanges {
    /// The changes from one View to another of the same interface: at the cost of what differs, and a pass
    /// over all peers if a class comes to be allowed anything, or no longer is.
    pub fn between(before: &View, after: &View, delta: &ViewDelta) -> Self {
        let lost = delta.access.lost.iter().map(|class| (*class, None));
        let put = delta.access.put.iter().map(|(class, access)| (*class, Some(access.clone())));
        let access: BTreeMap<_, _> = lost.chain(put).collect();
        let turned: BTreeSet<_> = access
            .keys()
            .filter(|class| before.access.contains_key(*class) != after.access.contains_key(*class))
            .collect();
        let addresses = |view: &View| -> BTreeMap<IpAddr, ClassId> {
            let named = delta.peers.keys().filter_map(|name| view.peers.get(name));
            let whole = (!turned.is_empty()).then(|| view.peers.values());
            let all = whole.into_iter().flatten().filter(|peer| turned.contains(&peer.class));
            named.chain(all).flat_map(|peer| permitted(peer, &view.access)).collect()
        };
        let (had, has) = (addresses(before), addresses(after));
        let differs = |address: &&IpAddr| had.get(address) != has.get(address);
        let all: BTreeSet<_> = had.keys().chain(has.keys()).collect();
        let members =
            all.into_iter().filter(differs).map(|address| (*address, has.get(address).copied())).collect();
        Self { access, members }
    }

    /// Adds what has changed since.
    pub fn extend(&mut self, later: Self) {
        let Self { access, members } = later;
        self.access.extend(access);
        self.members.extend(members);
    }
}

/// What is left of a View on a host that cannot judge what arrives: the peers that may open everything here,
/// and of ranges none, since nothing says who is in them. WireGuard is given nobody else, in neither
/// direction: what answers this host could not be told from what is opened at it. A node that carries for some
/// of them keeps its tunnel, by which nothing comes from its own addresses unless it may open everything as
/// well.
pub fn without_filter(view: &View) -> View {
    if !view.interface.restricted {
        return view.clone();
    }
    let everything = |peer: &Peer| view.access.get(&peer.class).is_some_and(|it| it.is_everything());
    // WireGuard takes from a tunnel only what has an address of its allowed IPs.
    let silenced = |peer: &Peer| Peer { addresses: BTreeSet::new(), named: false, ..peer.clone() };
    let peers = view.peers.iter().map(|(name, peer)| {
        let kept = if everything(peer) { peer.clone() } else { Arc::new(silenced(peer)) };
        (name.clone(), kept)
    });
    let left = View { peers: peers.collect(), routes: OrdMap::new(), ..view.clone() };
    let tunnels = left.tunnels().into_values().filter(|tunnel| !tunnel.allowed_ips.is_empty());
    let carrying: BTreeSet<Name> = tunnels.map(|tunnel| tunnel.peer).collect();
    let peers = left.peers.into_iter();
    let peers = peers.filter(|(name, peer)| everything(peer) || carrying.contains(name)).collect();
    View { peers, ..left }
}

/// The addresses of a peer, if its class may open anything.
fn permitted<'a>(
    peer: &'a Peer,
    access: &OrdMap<ClassId, Arc<Access>>,
) -> impl Iterator<Item = (IpAddr, ClassId)> + use<'a> {
    let class = peer.class;
    let some = access.contains_key(&class);
    peer.addresses.iter().filter(move |_| some).map(move |address| (*address, class))
}

/// The sets of ports that the rules of a class name.
fn port_sets<'a>(class: &ClassId, access: &'a Access) -> impl Iterator<Item = (String, &'a Ports)> + use<'a> {
    let named = |letter: &str, ports: &'a Ports| {
        let some = !access.is_everything() && !ports.is_empty() && !ports.is_every();
        some.then(|| (format!("{letter}_{class}"), ports))
    };
    [named("t", &access.tcp), named("u", &access.udp)].into_iter().flatten()
}

/// The sets and the chain of a class.
fn class_text(class: &ClassId, access: &Access) -> String {
    let mut text = String::new();
    for (name, ports) in port_sets(class, access) {
        writeln!(text, "  set {name} {{ type inet_service; flags interval; elements = {{ {ports} }} }}")
            .expect(TAKES_ALL);
    }
    writeln!(text, "  chain {} {{", chain(class)).expect(TAKES_ALL);
    for rule in rules(class, access) {
        writeln!(text, "    {rule}").expect(TAKES_ALL);
    }
    text + "  }\n"
}

/// The rules of a class.
fn rules(class: &ClassId, access: &Access) -> Vec<String> {
    if access.is_everything() {
        return vec!["accept".to_owned()];
    }
    let ports = |protocol: &str, letter: &str, ports: &Ports| {
        let these = if ports.is_every() {
            String::new()
        } else {
            format!(" ct original proto-dst @{letter}_{class}")
        };
        (!ports.is_empty()).then(|| format!("meta l4proto {protocol}{these} accept"))
    };
    let icmp = access.icmp.then(|| "ct original protocol { icmp, icmpv6 } accept".to_owned());
    let others = "ct original protocol != { tcp, udp, icmp, icmpv6 } accept";
    let others = access.others.then(|| others.to_owned());
    let rules = [ports("tcp", "t", &access.tcp), ports("udp", "u", &access.udp), icmp, others];
    rules.into_iter().flatten().collect()
}

const TAKES_ALL: &str = "a text takes everything";

/// What a hub passes on between members is judged where it arrives.
const HUB: &str = "    iifname \"INTERFACE\" oifname \"INTERFACE\" accept\n";

/// `judge` looks at who opened the connection; errors about connections that are known come from routers as
/// well. `in` is for what is meant for the host, `out` for what it sends, and `forward` for what it passes on:
/// what is published of its containers never meets `in`. A class may open things at the node, so nothing of
/// the network reaches another address of the host, or is passed on, that was not asked for there; and what
/// asks for the node comes by the network alone, not by another one that the host is in. What the host, or
/// what is behind it, opens towards the network is judged where it arrives.
const CHAINS: &str = "  chain judge {
    ct state related meta l4proto { icmp, icmpv6 } accept
    ct original ip saddr vmap @who4
    ct original ip6 saddr vmap @who6
    counter drop comment \"no access rule allows it\"
  }
  chain in {
    type filter hook input priority filter; policy accept;
    iifname != { \"INTERFACE\", \"lo\" } ct direction original ip daddr @own4 counter drop comment \"asked elsewhere\"
    iifname != { \"INTERFACE\", \"lo\" } ct direction original ip6 daddr @own6 counter drop comment \"asked elsewhere\"
    iifname \"INTERFACE\" ct direction reply accept
    iifname \"INTERFACE\" ct state related meta l4proto { icmp, icmpv6 } accept
    iifname \"INTERFACE\" ct original ip daddr @own4 jump judge
    iifname \"INTERFACE\" ct original ip6 daddr @own6 jump judge
    iifname \"INTERFACE\" counter drop comment \"not for this node\"
  }
  chain out {
    type filter hook output priority filter; policy accept;
    oifname \"INTERFACE\" ct direction reply jump judge
    oifname \"INTERFACE\" ct state new meta l4proto tcp tcp flags & (syn | ack) != syn reject with tcp reset
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname != \"INTERFACE\" ct direction original ct original ip daddr @own4 counter drop comment \"asked elsewhere\"
    iifname != \"INTERFACE\" ct direction original ct original ip6 daddr @own6 counter drop comment \"asked elsewhere\"
HUB    oifname \"INTERFACE\" ct direction reply jump judge
    iifname \"INTERFACE\" ct direction reply accept
    iifname \"INTERFACE\" ct original ip daddr @own4 jump judge
    iifname \"INTERFACE\" ct original ip6 daddr @own6 jump judge
    iifname \"INTERFACE\" counter drop comment \"not for this node\"
    oifname \"INTERFACE\" ct state { invalid, untracked } drop
  }
";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schema::access::Protocol;
    use schema::scalars::WireGuardKey;
    use schema::view::Route;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn class(name: &str) -> ClassId {
        ClassId::of(name.as_bytes())
    }

    fn tcp(port: u16) -> Access {
        Access::of(Some(Protocol::Tcp), Some(Ports::from_iter([port..=port])))
    }

    fn peer(number: u8, of: &str) -> Arc<Peer> {
        Arc::new(Peer {
            public_key: Some(WireGuardKey([number; 32])),
            endpoint: None,
            addresses: [address(&format!("10.9.0.{number}")), address(&format!("fd09::{number}"))].into(),
            via: None,
            class: class(of),
            carries: false,
            named: true,
        })
    }

    /// A View with access rules: peers, each with its number and class, and what classes may open.
    fn view(peers: &[(u8, &str)], access: &[(&str, Access)]) -> View {
        let mut view = crate::tunnels::tests::view("corp", "10.9.255.1/16");
        view.interface.restricted = true;
        let named =
            |(number, of): &(u8, &str)| (format!("n{number}").parse().expect("a name"), peer(*number, of));
        view.peers = peers.iter().map(named).collect();
        view.access = access.iter().map(|(name, access)| (class(name), Arc::new(access.clone()))).collect();
        view
    }

    fn filter(view: &View) -> Filter {
        Filter::of("wg0", view).expect("the network has access rules")
    }

    fn changes(before: &View, after: &View) -> FilterChanges {
        FilterChanges::between(before, after, &ViewDelta::between(before, after))
    }

    fn steps(before: &View, after: &View) -> Vec<FilterStep> {
        filter(before).steps(&changes(before, after))
    }

    #[test]
    fn a_network_without_access_rules_has_no_table() {
        let mut open = view(&[(1, "web")], &[]);
        open.interface.restricted = false;
        assert_eq!(Filter::of("wg0", &open), None);
        assert_eq!(without_filter(&open), open, "and everybody is given to WireGuard");
    }

    #[test]
    fn the_table_leads_from_members_to_what_their_classes_may_open() {
        let all_but_ssh = Access::everything().without(&tcp(22));
        let some =
            tcp(80).or(&Access::of(Some(Protocol::Udp), None)).or(&Access::of(Some(Protocol::Icmp), None));
        let all = view(
            &[(1, "web"), (2, "admin"), (3, "audit"), (4, "none")],
            &[("web", some), ("admin", Access::everything()), ("audit", all_but_ssh)],
        );
        let text = filter(&all).text();
        let [web, admin, audit] = ["web", "admin", "audit"].map(class);
        for part in [
            format!("  set t_{web} {{ type inet_service; flags interval; elements = {{ 80 }} }}\n"),
            format!(
                "  chain c_{web} {{\n    meta l4proto tcp ct original proto-dst @t_{web} accept\n    \
                 meta l4proto udp accept\n    ct original protocol {{ icmp, icmpv6 }} accept\n  }}\n"
            ),
            format!("  chain c_{admin} {{\n    accept\n  }}\n"),
            format!(
                "  set t_{audit} {{ type inet_service; flags interval; elements = {{ 0-21, 23-65535 }} }}\n"
            ),
            "    ct original protocol != { tcp, udp, icmp, icmpv6 } accept\n".to_owned(),
            format!("10.9.0.1 : jump c_{web}"),
            format!("fd09::2 : jump c_{admin}"),
            "  set own4 { type ipv4_addr; elements = { 10.9.255.1 } }\n  set own6 { type ipv6_addr; }\n"
                .to_owned(),
            "    oifname \"wg0\" ct direction reply jump judge\n".to_owned(),
            "counter drop".to_owned(),
        ] {
            assert!(text.contains(&part), "{part} in\n{text}");
        }
        assert!(!text.contains("10.9.0.4"), "who may open nothing is in no map\n{text}");
        assert!(!text.contains("INTERFACE") && !text.contains("HUB"), "{text}");
    }

    #[test]
    fn only_a_hub_passes_on_between_members_unjudged() {
        let mut hub = view(&[], &[]);
        let between = "iifname \"wg0\" oifname \"wg0\" accept";
        assert!(!filter(&hub).text().contains(between));
        hub.interface.forward = true;
        let text = filter(&hub).text();
        let forward = text.split("hook forward").nth(1).expect("there is one");
        let at = |rule| forward.find(rule).expect("it is there");
        assert!(at(between) < at("jump judge"), "before what judges\n{text}");
        assert!(at("asked elsewhere") < at(between), "but not what comes by another interface\n{text}");
    }

    #[test]
    fn one_more_member_and_one_less_are_elements_of_their_own() {
        let access = [("web", tcp(80))];
        let (two, three) =
            (view(&[(1, "web"), (2, "web")], &access), view(&[(1, "web"), (2, "web"), (3, "web")], &access));
        let three_addresses = peer(3, "web").addresses.clone();
        let new = three_addresses.iter().map(|address| (*address, class("web"))).collect();
        assert_eq!(steps(&two, &three), [FilterStep::Elements { gone: BTreeSet::new(), new }]);
        let gone = three_addresses;
        assert_eq!(steps(&three, &two), [FilterStep::Elements { gone, new: BTreeMap::new() }]);
        assert_eq!(steps(&two, &two), []);
    }

    #[test]
    fn a_member_that_changes_its_class_is_in_one_of_them_at_any_time() {
        let access = [("web", tcp(80)), ("db", tcp(5432))];
        let steps = steps(&view(&[(1, "web")], &access), &view(&[(1, "db")], &access));
        let [FilterStep::Elements { gone, new }] = &steps[..] else { panic!("{steps:?}") };
        assert!(gone.iter().eq(new.keys()) && new.values().all(|it| *it == class("db")), "{steps:?}");
    }

    #[test]
    fn a_class_that_changes_is_one_transaction_and_no_member_is_touched() {
        let before = view(&[(1, "web")], &[("web", tcp(80))]);
        let after = view(&[(1, "web")], &[("web", Access::of(Some(Protocol::Udp), None))]);
        let steps = steps(&before, &after);
        let [FilterStep::Commands(commands)] = &steps[..] else { panic!("{steps:?}") };
        let web = class("web");
        let expected = format!(
            "flush chain inet nm-access-wg0 c_{web}\n\
             delete set inet nm-access-wg0 t_{web}\n\
             table inet nm-access-wg0 {{\n  chain c_{web} {{\n    meta l4proto udp accept\n  }}\n}}\n"
        );
        assert_eq!(*commands, expected);
    }

    #[test]
    fn a_class_is_there_before_its_members_and_goes_after_them() {
        let without = view(&[(1, "web"), (2, "db")], &[("web", tcp(80))]);
        let with = view(&[(1, "web"), (2, "db")], &[("web", tcp(80)), ("db", Access::everything())]);
        let up = steps(&without, &with);
        assert!(
            matches!(&up[..], [FilterStep::Commands(_), FilterStep::Elements { gone, new }] if gone.is_empty() && new.len() == 2),
            "{up:?}"
        );
        let down = steps(&with, &without);
        let [FilterStep::Elements { gone, new }, FilterStep::Commands(commands)] = &down[..] else {
            panic!("{down:?}")
        };
        assert_eq!((gone.len(), new.len()), (2, 0));
        let db = class("db");
        let expected =
            format!("flush chain inet nm-access-wg0 c_{db}\ndelete chain inet nm-access-wg0 c_{db}\n");
        assert_eq!(*commands, expected);
    }

    #[test]
    fn who_leaves_a_class_has_nothing_of_what_it_gains() {
        let before = view(&[(1, "web"), (2, "web")], &[("web", tcp(80)), ("db", tcp(5432))]);
        let gains = view(&[(1, "web"), (2, "db")], &[("web", tcp(80).or(&tcp(22))), ("db", tcp(5432))]);
        assert_eq!(steps(&before, &gains), [FilterStep::Table]);
        let loses = view(&[(1, "web"), (2, "db")], &[("web", tcp(443).and(&tcp(80))), ("db", tcp(5432))]);
        assert_eq!(steps(&before, &loses).len(), 2, "what it loses, everybody in it may lose at once");
    }

    #[test]
    fn of_many_members_at_once_the_table_is_replaced() {
        let mut many = view(&[], &[("web", tcp(80))]);
        let none = many.clone();
        for number in 0..=u32::try_from(MOST_ELEMENTS).expect("few") {
            let [_, _, high, low] = number.to_be_bytes();
            let addresses = [IpAddr::from([10, 9, high, low])].into();
            let name = format!("n{number}").parse().expect("a name");
            many.peers.insert(name, Arc::new(Peer { addresses, ..(*peer(1, "web")).clone() }));
        }
        assert_eq!(steps(&none, &many), [FilterStep::Table]);
    }

    #[test]
    fn without_a_filter_only_who_may_open_everything_is_a_peer() {
        let mut all = view(
            &[(1, "admin"), (2, "web"), (3, "none"), (4, "web"), (5, "admin")],
            &[("admin", Access::everything()), ("web", Access::everything().without(&tcp(22)))],
        );
        let carried_by = |number: u8, carrier: &str, of: &str| {
            let via = Some(carrier.parse().expect("a name"));
            Arc::new(Peer { via, public_key: None, ..(*peer(number, of)).clone() })
        };
        all.peers.insert("n6".parse().expect("a name"), carried_by(6, "n1", "web"));
        all.peers.insert("n7".parse().expect("a name"), carried_by(7, "n1", "admin"));
        all.peers.insert("n8".parse().expect("a name"), carried_by(8, "n2", "admin"));
        let route = Route { via: "n1".parse().ok(), class: Default::default() };
        all.routes.insert("192.168.7.0/24".parse().expect("a range"), Arc::new(route));
        let left = without_filter(&all);
        let allowed = |tunnel: schema::view::Tunnel| {
            let allowed: Vec<_> = tunnel.allowed_ips.iter().map(ToString::to_string).collect();
            (tunnel.peer.to_string(), allowed.join(" "))
        };
        let tunnels: BTreeMap<_, _> = left.tunnels().into_values().map(allowed).collect();
        // n2 carries for one that may open everything, and may not itself.
        let expected = [
            ("n1", "10.9.0.1/32 10.9.0.7/32 fd09::1/128 fd09::7/128"),
            ("n2", "10.9.0.8/32 fd09::8/128"),
            ("n5", "10.9.0.5/32 fd09::5/128"),
        ];
        let expected = expected.map(|(peer, allowed)| (peer.to_owned(), allowed.to_owned()));
        assert_eq!(tunnels, expected.into());
        let names: Vec<_> = left.resolutions().into_keys().map(ToString::to_string).collect();
        assert_eq!(names, ["a", "n1", "n5", "n7", "n8"], "whom no packet reaches has no name here");
    }

    /// Peers by number, each of a class, and what classes may open, each by number.
    type World = (BTreeMap<u8, u8>, BTreeMap<u8, u8>);

    fn world((peers, access): &World) -> View {
        let names = ["a", "b", "c", "d"];
        let accesses = [tcp(22), tcp(80), tcp(22).or(&tcp(80)), Access::everything()];
        let peers: Vec<_> = peers.iter().map(|(number, of)| (*number, names[usize::from(*of)])).collect();
        let access: Vec<_> = access
            .iter()
            .map(|(of, which)| (names[usize::from(*of)], accesses[usize::from(*which)].clone()))
            .collect();
        view(&peers, &access)
    }

    fn worlds() -> impl Strategy<Value = World> {
        let peers = proptest::collection::btree_map(1u8..8, 0u8..4, 0..6);
        (peers, proptest::collection::btree_map(0u8..4, 0u8..4, 0..4))
    }

    /// What each address may open at a table after each of the steps, as the kernel would carry them out:
    /// the class of an address by the maps, and what a class may open by the commands.
    fn in_between(before: &View, after: &View) -> Vec<BTreeMap<IpAddr, Access>> {
        let (mut members, last) = (filter(before).members, filter(after));
        let mut access = before.access.clone();
        let changes = changes(before, after);
        let mut seen = Vec::new();
        for step in filter(before).steps(&changes) {
            match step {
                FilterStep::Table => (members, access) = (last.members.clone(), last.access.clone()),
                FilterStep::Elements { gone, new } => {
                    for address in gone {
                        assert!(members.remove(&address).is_some(), "what is not there cannot go");
                    }
                    for (address, class) in new {
                        assert!(access.contains_key(&class), "its chain is there");
                        assert_eq!(members.insert(address, class), None, "what is there cannot be added");
                    }
                }
                FilterStep::Commands(commands) => {
                    for (class, has) in &changes.access {
                        match has {
                            Some(has) if commands.contains(&format!("chain c_{class} {{")) => {
                                access.insert(*class, has.clone());
                            }
                            None if commands
                                .contains(&format!("delete chain inet nm-access-wg0 c_{class}")) =>
                            {
                                assert!(!members.values().any(|it| it == class), "nobody leads to it");
                                access.remove(class);
                            }
                            Some(_) | None => {}
                        }
                    }
                }
            }
            let may = |(address, class): (&IpAddr, &ClassId)| (*address, (*access[class]).clone());
            seen.push(members.iter().map(may).collect());
        }
        assert_eq!((&members, &access), (&last.members, &last.access), "the last step leads there");
        seen
    }

    proptest! {
        /// The steps lead from one filter to the other, and at no time may anybody open what is allowed neither
        /// before nor after.
        #[test]
        fn nobody_gains_anything_in_between(before in worlds(), after in worlds()) {
            let (before, after) = (world(&before), world(&after));
            let allowed = |view: &View, address: &IpAddr| {
                let filter = filter(view);
                filter.members.get(address).and_then(|class| filter.access(class)).cloned().unwrap_or_default()
            };
            for state in in_between(&before, &after) {
                for (address, may) in state {
                    let either = allowed(&before, &address).or(&allowed(&after, &address));
                    prop_assert!(either.contains(&may), "{address} may open {may}");
                }
            }
        }

        /// Changes that came one after the other lead where the last View says, at once.
        #[test]
        fn changes_add_up(first in worlds(), second in worlds(), third in worlds()) {
            let [first, second, third] = [first, second, third].map(|it| world(&it));
            let mut sum = changes(&first, &second);
            sum.extend(changes(&second, &third));
            let mut followed = filter(&first);
            followed.apply(&sum);
            prop_assert_eq!(followed, filter(&third));
        }
    }
}
