//! What a table says of everything but members, as sets and chains.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use schema::access::{Access, ClassId, Ports};
use schema::scalars::Name;
use schema::view::{Forward, Guarded};

use super::script::{Script, Set};
use super::{Element, FilterChanges, Interval, MAPS, chain};
use crate::outside::GROUP;
use crate::ranges::by_longest_prefix;

/// What a table says of everything but who the members are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) interface: String,
    /// The node's own addresses in the network, each with the network's range.
    pub(super) own: BTreeSet<IpNet>,
    /// Which members the node is one of itself.
    pub(super) class: ClassId,
    /// Whether the host passes packets on between members, each of which judges what arrives there.
    pub(super) forward: bool,
    /// Whether anything is judged; otherwise the table is about what is forwarded to outside alone.
    pub(super) restricted: bool,
    /// What members of a class may open here.
    pub(super) access: OrdMap<ClassId, Arc<Access>>,
    /// The classes of ranges that others forward to.
    pub(super) routes: BTreeMap<IpNet, ClassId>,
    /// What the node forwards to, by egress.
    pub(super) forwards: OrdMap<Name, Arc<Forward>>,
    /// What may be opened at what runs no agent, by the class of that.
    pub(super) guarded: OrdMap<ClassId, Arc<Guarded>>,
    /// The external clients that the node carries.
    pub(super) clients: BTreeMap<IpAddr, ClassId>,
}

/// A family of addresses, as nft(8) names what is of it.
struct Family {
    digit: &'static str,
    word: &'static str,
    ty: &'static str,
}

/// The family of an address.
fn family(address: &IpAddr) -> &'static Family {
    &FAMILIES[usize::from(address.is_ipv6())]
}

const FAMILIES: [Family; 2] =
    [Family { digit: "4", word: "ip", ty: "ipv4_addr" }, Family { digit: "6", word: "ip6", ty: "ipv6_addr" }];

impl Rules {
    /// Takes the changes in.
    pub(super) fn apply(&mut self, changes: &FilterChanges) {
        let FilterChanges { access, members: _, routes, forwards, guarded, clients } = changes;
        for (class, access) in access {
            match access {
                Some(access) => drop(self.access.insert(*class, access.clone())),
                None => drop(self.access.remove(class)),
            }
        }
        for (range, class) in routes {
            match class {
                Some(class) => drop(self.routes.insert(*range, *class)),
                None => drop(self.routes.remove(range)),
            }
        }
        for (name, forward) in forwards {
            match forward {
                Some(forward) => drop(self.forwards.insert(name.clone(), forward.clone())),
                None => drop(self.forwards.remove(name)),
            }
        }
        for (class, from) in guarded {
            match from {
                Some(from) => drop(self.guarded.insert(*class, from.clone())),
                None => drop(self.guarded.remove(class)),
            }
        }
        for (address, class) in clients {
            match class {
                Some(class) => drop(self.clients.insert(*address, *class)),
                None => drop(self.clients.remove(address)),
            }
        }
    }

    /// What each set or map of addresses holds, besides the node's own; what would hold nothing is not there.
    ///
    /// `outN_EGRESS`: what is forwarded to. `rangesN`: the classes of ranges, as sources. `clientsN`: the
    /// external clients. `toN_CLASS`: what of this class runs no agent.
    pub(super) fn intervals(&self) -> BTreeMap<String, Vec<Interval>> {
        let mut all: BTreeMap<String, Vec<Interval>> = BTreeMap::new();
        let mut put = |name: &str, of: &str, (first, last): (IpAddr, IpAddr), class| {
            let name = format!("{name}{}{of}", family(&first).digit);
            all.entry(name).or_default().push(Interval { first, last, class });
        };
        let egress = self
            .forwards
            .iter()
            .flat_map(|(name, forward)| forward.ranges.keys().map(move |range| (*range, Some(name.clone()))));
        for (range, name) in by_longest_prefix(egress, &self.own) {
            put("out", &format!("_{name}"), range, None);
        }
        if !self.restricted {
            return all;
        }
        let behind = || self.forwards.values().flat_map(|forward| forward.ranges.iter());
        let sources = self.sources();
        // Whoever is in no other range is nobody in particular, and who may open nothing is in no map.
        let ranges = self.routes.iter().chain(behind()).filter(|(range, _)| range.prefix_len() > 0);
        let ranges = ranges.map(|(range, class)| (*range, Some(*class).filter(|it| sources.contains(it))));
        for (range, class) in by_longest_prefix(ranges, &self.own) {
            put("ranges", "", range, Some(class));
        }
        let guarded =
            behind().map(|(range, class)| (*range, Some(*class).filter(|it| self.guarded.contains_key(it))));
        for (range, class) in by_longest_prefix(guarded, &self.own) {
            put("to", &format!("_{class}"), range, None);
        }
        for (address, class) in &self.clients {
            put("clients", "", (*address, *address), None);
            put("to", &format!("_{class}"), (*address, *address), None);
        }
        all.values_mut().for_each(|intervals| intervals.sort());
        all
    }

    /// The elements that go and those that come with changes, after which the rules are the later ones; absent: they
    /// change more than elements. Chains depend on which sets there are, and not on what these hold.
    pub(super) fn elements(
        &self,
        later: &Self,
        changes: &FilterChanges,
    ) -> Option<(BTreeSet<Element>, BTreeSet<Element>)> {
        if changes.are_of_members() {
            return Some(Default::default());
        }
        if !changes.are_of_addresses() {
            return None;
        }
        let (had, has) = (self.intervals(), later.intervals());
        let elements = |sets: &BTreeMap<String, Vec<Interval>>| -> BTreeSet<Element> {
            let all = sets.iter().flat_map(|(set, of)| of.iter().map(move |interval| (set, interval)));
            all.map(|(set, it)| Element { set: set.clone(), intervals: true, interval: it.clone() }).collect()
        };
        let (before, after) = (elements(&had), elements(&has));
        had.keys().eq(has.keys()).then(|| (&before - &after, &after - &before))
    }

    /// The classes that may open anything.
    fn sources(&self) -> BTreeSet<ClassId> {
        let guarding = self.guarded.values().flat_map(|from| from.keys());
        self.access.keys().chain(guarding).copied().collect()
    }

    /// The sets and chains.
    pub(super) fn script(&self) -> Script {
        let mut script = Script::default();
        for family in &FAMILIES {
            script.sets.insert(format!("own{}", family.digit), Set { ty: family.ty, ..Set::default() });
        }
        for address in self.own.iter().map(IpNet::addr) {
            let own =
                script.sets.get_mut(&format!("own{}", family(&address).digit)).expect("of either family");
            own.elements.push(address.to_string());
        }
        for (name, intervals) in self.intervals() {
            let ty = intervals.first().map_or("", |interval| family(&interval.first).ty);
            let map = intervals.iter().any(|interval| interval.class.is_some());
            let elements = intervals.iter().map(ToString::to_string).collect();
            script.sets.insert(name, Set { ty, interval: true, map, elements });
        }
        if self.restricted {
            for class in self.sources() {
                let rules = self.class(&class, &mut script.sets);
                script.chains.insert(chain(&class), rules);
            }
            for (name, rules) in [("judge", JUDGE), ("in", IN), ("out", OUT)] {
                script.chains.insert(name.to_owned(), self.lines(rules, &script.sets));
            }
            if !self.clients.is_empty() {
                let own = chain(&self.class);
                let permitted = script.chains.contains_key(&own).then(|| format!("jump {own}"));
                let rules = permitted.into_iter().chain([NOT_PERMITTED.to_owned()]).collect();
                script.chains.insert("own".to_owned(), rules);
            }
        }
        script.chains.insert("forward".to_owned(), self.forward(&script.sets));
        let masquerade = self.by_egress(MASQUERADE, |forward| forward.nat, &script.sets);
        if !masquerade.is_empty() {
            let chain = self.lines(NAT, &script.sets).into_iter().chain(masquerade).collect();
            script.chains.insert("masq".to_owned(), chain);
        }
        script
    }

    /// The rules of a class; the sets of ports that they name are added.
    fn class(&self, class: &ClassId, sets: &mut BTreeMap<String, Set>) -> Vec<String> {
        let mut all = Vec::new();
        for (of, from) in &self.guarded {
            let Some(access) = from.get(class) else { continue };
            let is_here = |family: &Family| sets.contains_key(&format!("to{}_{of}", family.digit));
            if !FAMILIES.iter().any(is_here) {
                continue;
            }
            let name = format!("{class}_{of}");
            sets.extend(port_sets(access, &name));
            for rule in rules(access, &name) {
                all.extend(self.lines(&format!("ct original IP daddr @to#_{of} {rule}"), sets));
            }
        }
        if !self.guarded.is_empty() {
            all.extend(self.lines("ct original IP daddr != @own# return", sets));
        }
        if let Some(access) = self.access.get(class) {
            sets.extend(port_sets(access, &class.to_string()));
            all.extend(rules(access, &class.to_string()));
        }
        all
    }

    /// The rules for what is passed on.
    fn forward(&self, sets: &BTreeMap<String, Set>) -> Vec<String> {
        let between = if self.forward { BETWEEN } else { "" };
        if !self.restricted {
            let out = self.by_egress(&TO_EGRESS.replace("VERDICT", "accept"), |_| true, sets);
            let [first, last] = [FORWARD_OPEN, NOT_FORWARDED].map(|part| self.lines(part, sets));
            return [first, out, last].concat();
        }
        let out = self.by_egress(&TO_EGRESS.replace("VERDICT", "jump judge"), |_| true, sets);
        let unknown = if self.forwards.is_empty() { "" } else { UNKNOWN_OUTSIDE };
        let first = [FORWARD, CLIENTS, between, FORWARD_ANSWERS].map(|part| self.lines(part, sets));
        let last = [NOT_FORWARDED, unknown, FORWARD_LAST].map(|part| self.lines(part, sets));
        [first.concat(), out, last.concat()].concat()
    }

    /// A rule for each egress, of those that are asked for.
    fn by_egress(
        &self,
        rule: &str,
        asked: impl Fn(&Forward) -> bool,
        sets: &BTreeMap<String, Set>,
    ) -> Vec<String> {
        let asked = self.forwards.iter().filter(|(_, forward)| asked(forward));
        let lines = asked.flat_map(|(name, forward)| {
            let exit = match &forward.interface {
                Some(interface) => format!("oifname \"{interface}\""),
                // Never into another network.
                None => format!("oifname != \"{}\" oifgroup != {GROUP}", self.interface),
            };
            let lines = self.lines(&rule.replace("EGRESS", &name.to_string()), sets).into_iter();
            lines.map(move |line| line.replace("EXIT", &exit))
        });
        lines.collect()
    }

    /// Rules, one in a line, for this interface; of each that names a set of a family, those of the families
    /// that have it.
    fn lines(&self, rules: &str, sets: &BTreeMap<String, Set>) -> Vec<String> {
        let there = |line: &String| {
            let mut named = line.split('@').skip(1).filter_map(|rest| rest.split(' ').next());
            named.all(|name| sets.contains_key(name) || MAPS.contains(&name))
        };
        let both = |line: &str| -> Vec<String> {
            match line.contains('#') {
                true => {
                    FAMILIES.iter().map(|it| line.replace('#', it.digit).replace("IP", it.word)).collect()
                }
                false => vec![line.to_owned()],
            }
        };
        let lines = rules.lines().flat_map(both).filter(there);
        lines.map(|line| line.replace("INTERFACE", &self.interface)).collect()
    }
}

/// The sets of ports that the rules for an access name, each with what it is of in its name.
fn port_sets(access: &Access, of: &str) -> impl Iterator<Item = (String, Set)> {
    let named = |letter: &str, ports: &Ports| {
        let some = !access.is_everything() && !ports.is_empty() && !ports.is_every();
        let elements = vec![ports.to_string()];
        some.then(|| {
            (format!("{letter}_{of}"), Set { ty: "inet_service", interval: true, map: false, elements })
        })
    };
    [named("t", &access.tcp), named("u", &access.udp)].into_iter().flatten()
}

/// The rules that accept an access.
fn rules(access: &Access, of: &str) -> Vec<String> {
    if access.is_everything() {
        return vec!["accept".to_owned()];
    }
    let ports = |protocol: &str, letter: &str, ports: &Ports| {
        let these =
            if ports.is_every() { String::new() } else { format!(" ct original proto-dst @{letter}_{of}") };
        (!ports.is_empty()).then(|| format!("meta l4proto {protocol}{these} accept"))
    };
    let icmp = access.icmp.then(|| "ct original protocol { icmp, icmpv6 } accept".to_owned());
    let others = "ct original protocol != { tcp, udp, icmp, icmpv6 } accept";
    let others = access.others.then(|| others.to_owned());
    let rules = [ports("tcp", "t", &access.tcp), ports("udp", "u", &access.udp), icmp, others];
    rules.into_iter().flatten().collect()
}

/// It looks at who opened the connection; errors about connections that are known come from routers as well.
const JUDGE: &str = "ct state related meta l4proto { icmp, icmpv6 } accept
ct original IP saddr vmap @who#
ct original IP saddr vmap @ranges#
counter drop comment \"no access rule allows it\"";

/// After what the class of the node itself may open at its external clients.
const NOT_PERMITTED: &str = "counter drop comment \"no access rule allows it\"";

/// For what is meant for the host. A class may open things at the node, so nothing of the network reaches
/// another address of the host that was not asked for there; and what asks for the node comes by the network
/// alone, not by another one that the host is in.
const IN: &str = "type filter hook input priority filter; policy accept;
iifname != { \"INTERFACE\", \"lo\" } ct direction original IP daddr @own# counter drop comment \"asked elsewhere\"
iifname \"INTERFACE\" ct state related meta l4proto { icmp, icmpv6 } accept
iifname \"INTERFACE\" ct original IP daddr @clients# jump own
iifname \"INTERFACE\" ct direction reply accept
iifname \"INTERFACE\" ct original IP daddr @own# jump judge
iifname \"INTERFACE\" counter drop comment \"not for this node\"";

/// For what the host sends. What it opens at its external clients is judged here, and the answers in `in`.
const OUT: &str = "type filter hook output priority filter; policy accept;
oifname \"INTERFACE\" ct state related meta l4proto { icmp, icmpv6 } accept
oifname \"INTERFACE\" ct direction reply jump judge
oifname \"INTERFACE\" ct state new meta l4proto tcp tcp flags & (syn | ack) != syn reject with tcp reset
oifname \"INTERFACE\" ct original IP daddr @clients# jump own";

/// For what the host passes on: what is published of its containers never meets `in`. What the host, or what is
/// behind it, opens towards the network is judged where it arrives.
const FORWARD: &str = "type filter hook forward priority filter; policy accept;
iifname != \"INTERFACE\" ct direction original ct original IP daddr @own# counter drop comment \"asked elsewhere\"";

/// External clients judge nothing themselves, and answer what belongs to no connection.
const CLIENTS: &str = "iifname \"INTERFACE\" ct original IP daddr @clients# jump judge
oifname \"INTERFACE\" ct original IP daddr @clients# jump judge
oifname \"INTERFACE\" IP daddr @clients# ct state { invalid, untracked } counter drop comment \"of no connection\"
iifname \"INTERFACE\" IP saddr @clients# ct state new meta l4proto tcp tcp flags & (syn | ack) != syn reject with tcp reset";

/// What is passed on between members is judged where it arrives.
const BETWEEN: &str = "iifname \"INTERFACE\" oifname \"INTERFACE\" accept";

const FORWARD_ANSWERS: &str = "oifname \"INTERFACE\" ct direction reply jump judge
iifname \"INTERFACE\" ct direction reply accept
iifname \"INTERFACE\" ct original IP daddr @own# jump judge";

/// What is published of containers passes, too, where nothing is judged.
const FORWARD_OPEN: &str = "type filter hook forward priority filter; policy accept;
iifname \"INTERFACE\" oifname \"INTERFACE\" accept
iifname \"INTERFACE\" ct direction reply accept
iifname \"INTERFACE\" ct original IP daddr @own# accept";

const TO_EGRESS: &str = "iifname \"INTERFACE\" EXIT ct original IP daddr @out#_EGRESS VERDICT";

/// A node that forwards to some ranges is no way into the other networks of its host.
const NOT_FORWARDED: &str = "iifname \"INTERFACE\" counter drop comment \"not for this node\"";

/// A connection of which nothing is known may be one that a member opened, and may no longer.
const UNKNOWN_OUTSIDE: &str = "oifname \"INTERFACE\" ct state new meta l4proto tcp tcp flags & (syn | ack) != syn reject with tcp reset";

const FORWARD_LAST: &str = "oifname \"INTERFACE\" ct state { invalid, untracked } drop";

const NAT: &str = "type nat hook postrouting priority srcnat; policy accept;";

const MASQUERADE: &str = "iifname \"INTERFACE\" EXIT IP daddr @out#_EGRESS masquerade";
