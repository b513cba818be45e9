//! What a plan should say of a node, found from the Views that it is sent before and afterwards, and who may open what
//! at whom by the Views of all: one node after the other, apart from the code that finds it for many at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;

use schema::access::{Access, ClassId};
use schema::compile::Mesh;
use schema::impact::{AllowedIps, Internet, LISTED, NodeImpact};
use schema::scalars::{Name, WireGuardKey};
use schema::text::natural;
use schema::view::{Forward, Interface, Tunnel, View};

type Outcome = Result<(), TestCaseError>;

pub fn names<'a>(names: impl IntoIterator<Item = &'a Name>) -> BTreeSet<Name> {
    names.into_iter().cloned().collect()
}

/// Asserts that a list has these names: the first in natural order, and a count of the rest.
fn lists(impact: &NodeImpact, field: &str, list: &[Name], all: BTreeSet<Name>) -> Outcome {
    prop_assert_eq!(impact.all_of(field, list), all.len() as u64, "{} of {}: {:?}", field, impact.node, all);
    let mut ordered: Vec<Name> = all.into_iter().collect();
    ordered.sort_by(|one, other| natural(one.as_str(), other.as_str()));
    ordered.truncate(LISTED);
    prop_assert_eq!(list, ordered, "{} of {}", field, impact.node);
    Ok(())
}

pub fn tunnels(view: &View) -> BTreeMap<Name, (WireGuardKey, Tunnel)> {
    view.tunnels().into_iter().map(|(key, tunnel)| (tunnel.peer.clone(), (key, tunnel))).collect()
}

fn addresses(interface: &Interface) -> BTreeSet<IpAddr> {
    interface.addresses.iter().map(IpNet::addr).collect()
}

/// Where each range leads: by which node, if any; absent: nowhere in the network.
fn routes(view: &View) -> BTreeMap<IpNet, Option<Name>> {
    view.routes.iter().map(|(range, route)| (*range, route.via.clone())).collect()
}

fn own_ranges(view: &View) -> BTreeSet<IpNet> {
    view.interface.addresses.iter().map(IpNet::trunc).collect()
}

fn internet(view: &View, range: &IpNet) -> Internet {
    match view.routes.get(range).filter(|route| !route.carried).map(|route| route.via.clone()) {
        None => Internet::Own,
        Some(None) => Internet::Refused,
        Some(Some(via)) => Internet::Through(via),
    }
}

/// The Views of all nodes of a network, and where each sends what.
pub struct Sent<'a> {
    /// The Views.
    pub views: &'a BTreeMap<Name, View>,
    leads: BTreeMap<&'a Name, Leads>,
}

/// The peers that a node sends to, by address, and by range with the longest prefix first.
struct Leads {
    hosts: BTreeMap<IpAddr, Name>,
    ranges: Vec<(IpNet, Name)>,
}

impl Leads {
    fn of(view: &View) -> Self {
        let (mut hosts, mut ranges) = (BTreeMap::new(), Vec::new());
        for tunnel in view.tunnels().into_values() {
            for range in tunnel.allowed_ips {
                match range.prefix_len() == range.max_prefix_len() {
                    true => drop(hosts.insert(range.addr(), tunnel.peer.clone())),
                    false => ranges.push((range, tunnel.peer.clone())),
                }
            }
        }
        ranges.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_len()));
        Self { hosts, ranges }
    }
}

impl<'a> Sent<'a> {
    pub fn of(views: &'a BTreeMap<Name, View>) -> Self {
        Self { views, leads: views.iter().map(|(name, view)| (name, Leads::of(view))).collect() }
    }

    /// The peer that a node sends what is for an address to, by what WireGuard is given.
    fn next(&self, at: &Name, to: IpAddr) -> Option<&Name> {
        let Leads { hosts, ranges } = self.leads.get(at)?;
        let range = || ranges.iter().find(|(range, _)| range.contains(&to)).map(|(_, peer)| peer);
        hosts.get(&to).or_else(range)
    }

    /// The nodes that a packet passes from one to a member; nothing if it gets lost.
    fn walk(&self, from: &Name, to: &Name, address: IpAddr) -> Option<Vec<Name>> {
        let mut passed = Vec::new();
        let mut at = from;
        for _ in 0..6 {
            let next = self.next(at, address)?;
            if next == to {
                return Some(passed);
            }
            passed.push(next.clone());
            at = next;
        }
        None
    }
}

/// What members may open at a node, by name, of those that it knows.
fn open(view: &View, name: &Name) -> Option<Access> {
    let peer = view.peers.get(name)?;
    Some(match view.interface.restricted {
        false => Access::everything(),
        true => view.access.get(&peer.class).map(|access| (**access).clone()).unwrap_or_default(),
    })
}

pub fn check(impact: &NodeImpact, before: &View, after: &View) -> Outcome {
    let (had, has) = (tunnels(before), tunnels(after));
    let stay = || has.iter().filter_map(|(name, it)| Some((name, had.get(name)?, it)));
    lists(
        impact,
        "peers_added",
        &impact.peers_added,
        names(has.keys().filter(|name| !had.contains_key(*name))),
    )?;
    lists(
        impact,
        "peers_removed",
        &impact.peers_removed,
        names(had.keys().filter(|name| !has.contains_key(*name))),
    )?;
    let rekeyed = stay().filter(|(_, had, has)| had.0 != has.0).map(|(name, ..)| name);
    lists(impact, "peers_rekeyed", &impact.peers_rekeyed, names(rekeyed))?;
    let changed = stay().filter(|(_, had, has)| had.0 == has.0 && had.1 != has.1).map(|(name, ..)| name);
    lists(impact, "peers_changed", &impact.peers_changed, names(changed))?;
    let mut moved = 0;
    for (name, (_, had), (_, has)) in stay() {
        let (added, removed) = (&has.allowed_ips - &had.allowed_ips, &had.allowed_ips - &has.allowed_ips);
        moved += u64::from(!added.is_empty() || !removed.is_empty());
        let Some(AllowedIps { added: more, removed: less, more: left, .. }) =
            impact.allowed_ips.iter().find(|it| it.peer == *name)
        else {
            let is_left_out = impact.more.contains_key("allowed_ips");
            prop_assert!(
                added.is_empty() && removed.is_empty() || is_left_out,
                "{} of {}",
                name,
                impact.node
            );
            continue;
        };
        prop_assert_eq!((more.len() + less.len()) as u64 + left, (added.len() + removed.len()) as u64);
        prop_assert!(more.iter().all(|it| added.contains(it)) && less.iter().all(|it| removed.contains(it)));
    }
    prop_assert_eq!(impact.all_of("allowed_ips", &impact.allowed_ips), moved);
    let (old, new) = (routes(before), routes(after));
    // Those that lead to somebody, and are not in the other View.
    let leads =
        |of: &BTreeMap<IpNet, Option<Name>>, than: &BTreeMap<IpNet, Option<Name>>| -> BTreeSet<IpNet> {
            of.iter()
                .filter(|(range, via)| via.is_some() && !than.contains_key(*range))
                .map(|(range, _)| *range)
                .collect()
        };
    let (had, has) = (own_ranges(before), own_ranges(after));
    let set = |list: &[IpNet]| list.iter().copied().collect::<BTreeSet<_>>();
    // A spoke has a route for the network's own ranges besides.
    let own = &own_ranges(before) & &own_ranges(after);
    let apart = |of: BTreeSet<IpNet>| -> BTreeSet<IpNet> { &of - &own };
    prop_assert_eq!(set(&impact.routes_added), apart(&leads(&new, &old) | &(&has - &had)));
    prop_assert_eq!(set(&impact.routes_removed), apart(&leads(&old, &new) | &(&had - &has)));
    let refused = new.iter().filter(|(range, via)| via.is_none() && !old.contains_key(*range));
    prop_assert_eq!(set(&impact.routes_refused), refused.map(|(range, _)| *range).collect::<BTreeSet<_>>());
    let moved = old.iter().filter(|(range, via)| new.get(*range).is_some_and(|later| later != *via));
    prop_assert_eq!(
        impact.routes_changed.iter().map(|it| it.range).collect::<BTreeSet<_>>(),
        moved.map(|(range, _)| *range).collect::<BTreeSet<_>>()
    );
    for range in ["0.0.0.0/0", "::/0"].map(|range| range.parse::<IpNet>().unwrap()) {
        let said = impact
            .internet
            .iter()
            .find(|it| it.range == range)
            .map(|it| (it.before.clone(), it.after.clone()));
        let sides = (internet(before, &range), internet(after, &range));
        prop_assert_eq!(said, (sides.0 != sides.1).then_some(sides));
    }
    let (old, new) = (before.resolutions(), after.resolutions());
    lists(
        impact,
        "names_added",
        &impact.names_added,
        names(new.keys().filter(|it| !old.contains_key(*it)).copied()),
    )?;
    lists(
        impact,
        "names_removed",
        &impact.names_removed,
        names(old.keys().filter(|it| !new.contains_key(*it)).copied()),
    )?;
    let differ = old.iter().filter(|(name, it)| new.get(*name).is_some_and(|later| later != *it));
    lists(impact, "names_changed", &impact.names_changed, names(differ.map(|(name, _)| *name)))?;
    let (old, new) = (addresses(&before.interface), addresses(&after.interface));
    let lost: BTreeSet<_> = impact.readdressed.iter().filter_map(|it| it.before).collect();
    let got: BTreeSet<_> = impact.readdressed.iter().filter_map(|it| it.after).collect();
    prop_assert_eq!((lost, got), (&old - &new, &new - &old));
    let breaks = !old.is_subset(&new)
        || before.interface.listen_port != after.interface.listen_port
        || !impact.internet.is_empty()
        || impact.routes_changed.iter().any(|it| it.breaks);
    prop_assert_eq!(impact.sessions_break, breaks);
    let known = before.peers.keys().filter(|name| after.peers.contains_key(*name));
    let differs = known.into_iter().any(|name| open(before, name) != open(after, name));
    if differs {
        prop_assert!(impact.filter);
    }
    Ok(())
}

/// Whether a node that a plan does not mention is sent the same, but for what its classes are called.
pub fn is_the_same(before: &View, after: &View) -> bool {
    let plain = |it: &Interface| Interface { class: ClassId::default(), ..it.clone() };
    let forwards = |view: &View| -> BTreeMap<Name, (BTreeSet<IpNet>, bool)> {
        let one = |(name, forward): (&Name, &Arc<Forward>)| {
            let is_part =
                |range: &&IpNet| forward.ranges.keys().any(|it| it != *range && it.contains(*range));
            let whole = forward.ranges.keys().filter(|range| !is_part(range));
            (name.clone(), (whole.copied().collect(), forward.nat))
        };
        view.forwards.iter().map(one).collect()
    };
    plain(&before.interface) == plain(&after.interface)
        && tunnels(before) == tunnels(after)
        && routes(before) == routes(after)
        && before.resolutions() == after.resolutions()
        && before
            .peers
            .keys()
            .all(|name| !after.peers.contains_key(name) || open(before, name) == open(after, name))
        && forwards(before) == forwards(after)
}

pub fn ways(
    impact: Option<&NodeImpact>,
    node: &Name,
    (before, was): (&Sent<'_>, &Mesh),
    (after, is): (&Sent<'_>, &Mesh),
    all_are_there: bool,
) -> Outcome {
    let mut said = BTreeMap::new();
    // The ways of which not every member is listed, and how many are left out.
    let mut more: BTreeMap<_, u64> = BTreeMap::new();
    for change in impact.into_iter().flat_map(|impact| &impact.paths) {
        let sides = (change.before.clone(), change.after.clone());
        for name in &change.to {
            prop_assert!(said.insert(name.clone(), sides.clone()).is_none());
        }
        more.insert(sides, change.more);
    }
    let near = |mesh: &Mesh, name: &Name| {
        let classes = mesh.class_of(node).zip(mesh.class_of(name));
        classes.is_some_and(|(one, other)| mesh.are_near(one, other))
    };
    for (name, _) in was.all_members().filter(|(name, _)| *name != node) {
        let address = |mesh: &Mesh| {
            let members = mesh.members(&mesh.class_of(name)?)?;
            members.get(name)?.addresses.iter().next().copied()
        };
        let (Some(old), Some(new)) = (address(was), address(is)) else { continue };
        if !near(was, name) || !near(is, name) {
            prop_assert!(!said.contains_key(name), "{} and {} may not talk", node, name);
            continue;
        }
        let walked = before.walk(node, name, old).zip(after.walk(node, name, new));
        match said.get(name) {
            Some(sides) => prop_assert_eq!(Some(sides), walked.as_ref(), "{} to {}", node, name),
            None => {
                let differs = walked.filter(|(before, after)| before != after && all_are_there);
                if let Some(sides) = differs {
                    let left = more.get_mut(&sides).filter(|left| **left > 0);
                    prop_assert!(left.is_some(), "{} to {}", node, name);
                    left.into_iter().for_each(|left| *left -= 1);
                }
            }
        }
    }
    Ok(())
}

/// Who may open what at whom, by the Views of both and the tunnels on the way: those that may open nothing are absent.
pub fn opens(sent: &Sent<'_>) -> BTreeMap<(Name, Name), Access> {
    let Sent { views, .. } = sent;
    let address = |name: &Name| views[name].interface.addresses.iter().next().map(IpNet::addr);
    let mut opens = BTreeMap::new();
    for from in views.keys() {
        for (to, at) in views.iter().filter(|(to, _)| *to != from) {
            let (Some(source), Some(target)) = (address(from), address(to)) else { continue };
            let mut here = from;
            let arrives = (0..4).any(|_| {
                // Each takes what comes from where it would send the answer.
                let next = sent.next(here, target).filter(|there| sent.next(there, source) == Some(here));
                let Some(there) = next.filter(|_| here != to) else { return false };
                let passes = there == to || views.get(there).is_some_and(|view| view.interface.forward);
                here = there;
                passes && there == to
            });
            let access = match at.interface.restricted {
                false => Some(Access::everything()),
                true => open(at, from),
            };
            if let Some(access) = access.filter(|access| arrives && !access.is_nothing()) {
                opens.insert((from.clone(), to.clone()), access);
            }
        }
    }
    opens
}
