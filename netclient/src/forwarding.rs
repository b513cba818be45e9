//! Which switches of the kernel have a host forward packets for its networks, and look at their marks, and what
//! they were before.
//!
//! Pure. The switches are those below `/proc/sys/net` (Documentation/networking/ip-sysctl.rst). IPv4 is turned
//! on for the interfaces that packets come in by, and so is IPv6 where the kernel can (`force_forwarding`, since
//! Linux 6.17), which leaves router advertisements as they are. Before, IPv6 knows one switch for all
//! interfaces, and a host that forwards no longer takes router advertisements, but for those of interfaces with
//! `accept_ra` 2: these are set first, since turning forwarding on drops the routes that were advertised.
//!
//! Marks are looked at for all interfaces (`src_valid_mark`), for as long as a rule asks for one: ours, or, after the
//! last network, somebody else's, who may have come to need it (wg-quick(8) sets it too, and leaves it on).
//!
//! A gateway that carries again gets connections that went on through another one. The kernel takes TCP packets
//! that are too far from those that it has seen for packets of no connection, unless a switch of connection
//! tracking says otherwise (`nf_conntrack_tcp_be_liberal`, Documentation/networking/nf_conntrack-sysctl.rst).
//!
//! [`Changed`] is what was changed, with what it was before; it is stored before anything is, so that whoever
//! comes next, another process too, puts it back. What somebody else has changed since stays theirs: a switch
//! that is not as it was set, and one of an interface whose host has come to forward on all of them. Switches
//! of the networks' own interfaces end with these, and are not in it; see
//! [`system::forwarding`](crate::system::forwarding).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of the switches that hold for all interfaces.
pub const ALL: &str = "all";
/// The name of the switches that interfaces begin with.
pub const DEFAULT: &str = "default";

/// What a switch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// Whether IPv4 that comes in is forwarded.
    Ipv4,
    /// Whether the interface is a router's, for all interfaces together whether IPv6 is forwarded.
    Ipv6,
    /// Whether IPv6 that comes in is forwarded whatever the other one says.
    Ipv6Forced,
    /// Whether router advertisements are taken: 0 never, 1 unless it is a router's, 2 always.
    Advertisements,
    /// Whether a packet's mark counts when the kernel checks where its sender is.
    Marks,
    /// Whether a TCP packet belongs to the connection that its addresses and ports say, wherever in it the packet
    /// is. It is a switch of the whole host, as if of [`ALL`].
    Liberal,
}

impl Key {
    /// Those that each interface has.
    pub const OF_INTERFACES: [Self; 5] =
        [Self::Ipv4, Self::Ipv6, Self::Ipv6Forced, Self::Advertisements, Self::Marks];

    /// The folder below `/proc/sys/net`, of its interfaces if they have one each, and the name of its file.
    pub fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Ipv4 => ("ipv4/conf", "forwarding"),
            Self::Ipv6 => ("ipv6/conf", "forwarding"),
            Self::Ipv6Forced => ("ipv6/conf", "force_forwarding"),
            Self::Advertisements => ("ipv6/conf", "accept_ra"),
            Self::Marks => ("ipv4/conf", "src_valid_mark"),
            Self::Liberal => ("netfilter", "nf_conntrack_tcp_be_liberal"),
        }
    }
}

/// A switch of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Switch {
    /// The interface, [`ALL`] or [`DEFAULT`].
    pub interface: String,
    /// What it is about.
    pub key: Key,
}

impl Switch {
    /// The switch of an interface.
    pub fn of(interface: &str, key: Key) -> Self {
        Self { interface: interface.to_owned(), key }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (folder, file) = self.key.place();
        match self.key {
            Key::Liberal => write!(f, "{folder}/{file}"),
            Key::Ipv4 | Key::Ipv6 | Key::Ipv6Forced | Key::Advertisements | Key::Marks => {
                write!(f, "{folder}/{}/{file}", self.interface)
            }
        }
    }
}

/// Switches as they are found; one that the kernel does not have is absent.
pub type Switches = BTreeMap<Switch, u8>;

/// From where a host has to forward packets for its networks, and what else they need of its switches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The interfaces of networks, which are nobody else's.
    pub networks: BTreeSet<String>,
    /// The other interfaces by which IPv4 comes in.
    pub ipv4: BTreeSet<String>,
    /// The other interfaces by which IPv6 comes in.
    pub ipv6: BTreeSet<String>,
    /// Whether IPv6 that comes in by a network's interface is forwarded.
    pub ipv6_of_networks: bool,
    /// Whether marks are looked at.
    pub marks: bool,
    /// Whether connections come here that went on elsewhere for a while: those of an egress, by another gateway.
    /// Otherwise what comes next of them is of no connection, which is not let through.
    pub connections_return: bool,
}

impl Needs {
    /// Whether the host need not forward for any network, but by their own interfaces.
    pub fn is_nothing(&self) -> bool {
        let Self { networks: _, ipv4, ipv6, ipv6_of_networks, marks: _, connections_return } = self;
        ipv4.is_empty() && ipv6.is_empty() && !ipv6_of_networks && !connections_return
    }

    /// Has what was changed stay as it is.
    pub fn keep(&mut self, changed: &Changed) {
        for Single { switch, .. } in &changed.singles {
            match switch.key {
                Key::Ipv4 => drop(self.ipv4.insert(switch.interface.clone())),
                Key::Marks => self.marks = true,
                Key::Liberal => self.connections_return = true,
                Key::Ipv6 | Key::Ipv6Forced | Key::Advertisements => {
                    self.ipv6.insert(switch.interface.clone());
                }
            }
        }
        self.ipv6_of_networks |= changed.whole.is_some();
    }
}

/// What an agent changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Switches of single interfaces that were turned on.
    singles: Vec<Single>,
    /// Where IPv6 was turned on for all interfaces: what each one had before.
    whole: Option<BTreeMap<String, Before>>,
}

/// A switch of an interface that was turned on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Single {
    switch: Switch,
    /// What that for all interfaces was then.
    all: u8,
}

/// What an interface had before IPv6 was turned on for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    forwarding: u8,
    advertisements: u8,
}

/// What leads from what is found to what is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What has been changed once it is done, or a part of it: to be stored before.
    pub before: Changed,
    /// The switches that are set, one after the other.
    pub sets: Vec<(Switch, u8)>,
    /// What is left to put back then: to be stored after.
    pub after: Changed,
}

/// What to do so that packets are forwarded from where they have to be, and from nowhere else because of the
/// agent.
pub fn plan(needs: &Needs, found: &Switches, changed: &Changed) -> Plan {
    let mut plan = Plan { before: changed.clone(), sets: Vec::new(), after: Changed::default() };
    let on = |switch: &Switch| found.get(switch).is_some_and(|value| *value != 0);
    let forced = found.contains_key(&Switch::of(ALL, Key::Ipv6Forced));
    // Where the host forwards IPv6 on all interfaces by itself, nothing is lacking.
    let ipv6_by_host = changed.whole.is_none() && on(&Switch::of(ALL, Key::Ipv6));

    let ipv4 = needs.ipv4.iter().map(|interface| Switch::of(interface, Key::Ipv4));
    let ipv6 = needs.ipv6.iter().filter(|_| forced && !ipv6_by_host);
    let ipv6 = ipv6.map(|interface| Switch::of(interface, Key::Ipv6Forced));
    let marks = needs.marks.then(|| Switch::of(ALL, Key::Marks));
    let liberal = needs.connections_return.then(|| Switch::of(ALL, Key::Liberal));
    let wanted = ipv4.chain(ipv6).chain(marks).chain(liberal);
    let wanted: BTreeSet<Switch> = wanted.filter(|switch| found.contains_key(switch)).collect();
    for switch in &wanted {
        if on(switch) {
            continue;
        }
        if !changed.singles.iter().any(|single| single.switch == *switch) {
            let all = found.get(&Switch::of(ALL, switch.key)).copied().unwrap_or(0);
            plan.before.singles.push(Single { switch: switch.clone(), all });
        }
        plan.sets.push((switch.clone(), 1));
    }
    for single in &changed.singles {
        if !wanted.contains(&single.switch) && on(&single.switch) && !single.is_hosts(found) {
            plan.sets.push((single.switch.clone(), 0));
        }
    }
    let stay = plan.before.singles.iter().filter(|single| wanted.contains(&single.switch));
    plan.after.singles = stay.cloned().collect();

    let all = Switch::of(ALL, Key::Ipv6);
    let whole = !forced && found.contains_key(&all) && (needs.ipv6_of_networks || !needs.ipv6.is_empty());
    if whole && !on(&all) {
        let befores = befores(needs, found);
        let lacking = befores.iter().filter(|(_, it)| it.forwarding == 0 && it.advertisements == 1);
        let lacking = lacking.map(|(interface, _)| (Switch::of(interface, Key::Advertisements), 2));
        plan.sets.extend(lacking);
        plan.sets.push((all, 1));
        // What somebody turned off meanwhile is turned on again, and was as it was before.
        plan.before.whole.get_or_insert(befores);
    } else if !whole && let Some(befores) = &changed.whole {
        plan.sets.extend(put_back(befores, needs, found));
    }
    plan.after.whole = plan.before.whole.clone().filter(|_| whole);
    plan
}

/// What each interface has that is not a network's.
fn befores(needs: &Needs, found: &Switches) -> BTreeMap<String, Before> {
    let forwarding = found.iter().filter(|(switch, _)| switch.key == Key::Ipv6 && switch.interface != ALL);
    let others = forwarding.filter(|(switch, _)| !needs.networks.contains(&switch.interface));
    let of = |(switch, forwarding): (&Switch, &u8)| {
        let advertisements = Switch::of(&switch.interface, Key::Advertisements);
        let advertisements = found.get(&advertisements).copied().unwrap_or(0);
        (switch.interface.clone(), Before { forwarding: *forwarding, advertisements })
    };
    others.map(of).collect()
}

/// The sets by which IPv6 is as it was before, interfaces that came meanwhile as they would have begun.
fn put_back(befores: &BTreeMap<String, Before>, needs: &Needs, found: &Switches) -> Vec<(Switch, u8)> {
    let all = Switch::of(ALL, Key::Ipv6);
    let was_on = found.get(&all).is_some_and(|value| *value != 0);
    let mut sets = Vec::new();
    // It turns off that of each interface as well.
    sets.extend(was_on.then_some((all, 0)));
    for (interface, now) in self::befores(needs, found) {
        let Some(before) = befores.get(&interface).or(befores.get(DEFAULT)) else { continue };
        if was_on && before.forwarding != 0 && now.forwarding != 0 {
            sets.push((Switch::of(&interface, Key::Ipv6), before.forwarding));
        }
        if now.advertisements == 2 && before.forwarding == 0 && before.advertisements == 1 {
            sets.push((Switch::of(&interface, Key::Advertisements), before.advertisements));
        }
    }
    sets
}

impl Single {
    /// Whether the host has come to forward on all interfaces since.
    fn is_hosts(&self, found: &Switches) -> bool {
        let all = found.get(&Switch::of(ALL, self.switch.key)).copied().unwrap_or(0);
        self.switch.interface != ALL && self.all == 0 && all != 0
    }
}

impl Changed {
    /// Whether there is nothing to put back.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The interfaces from which the host forwards IPv4, and IPv6, for its networks alone.
    pub fn opened(&self, found: &Switches) -> [BTreeSet<String>; 2] {
        let of = |key: Key| {
            let singles = self.singles.iter().filter(move |single| single.switch.key == key);
            singles.filter(|single| !single.is_hosts(found)).map(|single| single.switch.interface.clone())
        };
        let before = self.whole.iter().flatten().filter(|(name, it)| *name != DEFAULT && it.forwarding == 0);
        let whole = before.map(|(interface, _)| interface.clone());
        [of(Key::Ipv4).collect(), of(Key::Ipv6Forced).chain(whole).collect()]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::Host;
    use crate::host::fake::FakeHost;

    fn needs(ipv4: &[&str], ipv6: &[&str]) -> Needs {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Needs {
            networks: set(&["nm-corp"]),
            ipv4: set(ipv4),
            ipv6: set(ipv6),
            ipv6_of_networks: !ipv6.is_empty(),
            marks: false,
            connections_return: false,
        }
    }

    /// Carries out what a host lacks.
    fn bring(host: &FakeHost, needs: &Needs, changed: &mut Changed) -> Vec<String> {
        let plan = plan(needs, &host.switches(), changed);
        for (switch, value) in &plan.sets {
            host.set_switch(switch, *value).expect("it can be set");
        }
        *changed = plan.after;
        plan.sets.iter().map(|(switch, value)| format!("{switch}={value}")).collect()
    }

    #[test]
    fn interfaces_are_switched_one_by_one_where_the_kernel_can() {
        let (host, mut changed) = (FakeHost::default(), Changed::default());
        let before = host.switches();
        let sets = bring(&host, &needs(&["eth1"], &["eth1"]), &mut changed);
        assert_eq!(sets, ["ipv4/conf/eth1/forwarding=1", "ipv6/conf/eth1/force_forwarding=1"]);
        assert_eq!(
            changed.opened(&host.switches()),
            [["eth1".to_owned()].into(), ["eth1".to_owned()].into()]
        );
        assert_eq!(bring(&host, &needs(&["eth1"], &["eth1"]), &mut changed), [""; 0]);
        bring(&host, &Needs::default(), &mut changed);
        assert_eq!((host.switches(), changed), (before, Changed::default()));
    }

    #[test]
    fn connections_that_return_need_a_switch_of_the_host_and_forwarding_is_a_matter_of_its_own() {
        let (host, mut changed) = (FakeHost::default(), Changed::default());
        let before = host.switches();
        let needs = Needs { connections_return: true, ..Needs::default() };
        assert_eq!(bring(&host, &needs, &mut changed), ["netfilter/nf_conntrack_tcp_be_liberal=1"]);
        assert_eq!(changed.opened(&host.switches()), [BTreeSet::new(), BTreeSet::new()]);
        let mut kept = Needs::default();
        kept.keep(&changed);
        assert_eq!(kept, needs);
        bring(&host, &Needs::default(), &mut changed);
        assert_eq!((host.switches(), changed), (before, Changed::default()));
    }

    #[test]
    fn router_advertisements_are_kept_before_ipv6_is_turned_on_for_all() {
        let (host, mut changed) = (FakeHost::with_kernel_before_6_17(), Changed::default());
        host.set_switch(&Switch::of("eth0", Key::Advertisements), 0).expect("set");
        let before = host.switches();
        let sets = bring(&host, &needs(&[], &["eth1"]), &mut changed);
        assert_eq!(
            sets,
            ["ipv6/conf/default/accept_ra=2", "ipv6/conf/eth1/accept_ra=2", "ipv6/conf/all/forwarding=1"]
        );
        bring(&host, &Needs::default(), &mut changed);
        assert_eq!(host.switches(), before);
    }

    #[test]
    fn what_the_host_has_on_by_itself_is_left_alone() {
        let (host, mut changed) = (FakeHost::default(), Changed::default());
        for key in [Key::Ipv4, Key::Ipv6] {
            host.set_switch(&Switch::of(ALL, key), 1).expect("set");
        }
        assert_eq!(bring(&host, &needs(&["eth1"], &["eth1"]), &mut changed), [""; 0]);
        assert_eq!(bring(&host, &Needs::default(), &mut changed), [""; 0]);
    }

    #[test]
    fn what_somebody_else_changed_meanwhile_stays_theirs() {
        let on = needs(&["eth0", "eth1"], &["eth1"]);
        for (switch, value) in [
            // A container engine has the host forward on all interfaces.
            (Switch::of(ALL, Key::Ipv4), 1),
            // An operator turns one off.
            (Switch::of("eth1", Key::Ipv4), 0),
            (Switch::of("eth1", Key::Ipv6Forced), 0),
        ] {
            let (host, mut changed) = (FakeHost::default(), Changed::default());
            bring(&host, &on, &mut changed);
            host.set_switch(&switch, value).expect("set");
            bring(&host, &Needs::default(), &mut changed);
            assert_eq!(host.switches()[&switch], value);
            let kept = host.switches()[&Switch::of("eth0", Key::Ipv4)];
            assert_eq!(kept, u8::from(switch.interface == ALL), "{switch}");
        }
    }

    #[test]
    fn an_interface_that_came_while_ipv6_was_on_for_all_becomes_what_it_would_have_been() {
        let (host, mut changed) = (FakeHost::with_kernel_before_6_17(), Changed::default());
        bring(&host, &needs(&[], &["eth1"]), &mut changed);
        host.plug("eth2");
        assert_eq!(host.switches()[&Switch::of("eth2", Key::Advertisements)], 2, "as the default says");
        bring(&host, &Needs::default(), &mut changed);
        let of = |key| host.switches()[&Switch::of("eth2", key)];
        assert_eq!((of(Key::Advertisements), of(Key::Ipv6)), (1, 0));
    }

    proptest! {
        /// Whatever was needed one after the other, on whatever host, in the end everything is as it was; and
        /// each time, one pass suffices.
        #[test]
        fn everything_is_put_back(
            old in any::<bool>(),
            values in proptest::collection::vec((0usize..4, 0usize..Key::OF_INTERFACES.len(), 0u8..3), 0..8),
            liberal in 0u8..2,
            stories in proptest::collection::vec((0u8..8, 0u8..8, any::<bool>(), any::<bool>()), 1..6),
        ) {
            let host = if old { FakeHost::with_kernel_before_6_17() } else { FakeHost::default() };
            for (interface, key, value) in values {
                let switch = Switch::of([ALL, DEFAULT, "eth0", "eth1"][interface], Key::OF_INTERFACES[key]);
                let value = if switch.key == Key::Advertisements { value } else { value.min(1) };
                if host.switches().contains_key(&switch) {
                    host.set_switch(&switch, value).expect("set");
                }
            }
            host.set_switch(&Switch::of(ALL, Key::Liberal), liberal).expect("set");
            let (before, mut changed) = (host.switches(), Changed::default());
            let some = |bits: u8| ["eth0", "eth1"].into_iter().enumerate()
                .filter(move |(bit, _)| bits & (1 << bit) != 0).map(|(_, name)| name).collect::<Vec<_>>();
            for (ipv4, ipv6, marks, connections_return) in stories {
                let needs = Needs { marks, connections_return, ..needs(&some(ipv4), &some(ipv6)) };
                bring(&host, &needs, &mut changed);
                prop_assert_eq!(plan(&needs, &host.switches(), &changed).sets, []);
                let on = |name: &str, key| host.switches().get(&Switch::of(name, key)).is_some_and(|it| *it != 0);
                for name in &needs.ipv4 {
                    prop_assert!(on(name, Key::Ipv4));
                }
                for name in &needs.ipv6 {
                    prop_assert!(on(ALL, Key::Ipv6) || on(name, Key::Ipv6Forced));
                }
                prop_assert!(on(ALL, Key::Marks) || !marks);
                prop_assert!(!connections_return || on(ALL, Key::Liberal));
            }
            bring(&host, &Needs::default(), &mut changed);
            prop_assert_eq!(host.switches(), before);
        }
    }
}
