//! What a plan says of each node is what differs between the Views that it is sent before and afterwards: found here
//! from those Views alone, one node after the other, apart from the code that finds it for many at once.
#![expect(clippy::unwrap_used, reason = "a test")]

mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use schema::access::{Access, ClassId};
use schema::compile::Mesh;
use schema::decode::Declared;
use schema::impact::{Internet, NodeImpact};
use schema::inventory::NodeId;
use schema::plan::{Plan, plan};
use schema::report::Code;
use schema::scalars::{Name, NetworkName, WireGuardKey};
use schema::snapshot::{Entry, Owner, Snapshot};
use schema::source_map::SourceMap;
use schema::view::{Interface, Tunnel, View};
use schema::world::World;

use worlds::following::{compiled, views};
use worlds::{Moment, draws, edits, server};

type Outcome = Result<(), TestCaseError>;

fn owner() -> Owner {
    "acme/dev".parse().unwrap()
}

/// The world before, with all of it managed, the plan to what is declared next, and the world after it; nothing where
/// the nodes would not fit.
fn planned(moment: &Moment, next: &Snapshot) -> Option<(World, Plan, World)> {
    let mut before = moment.world.clone();
    for (id, entry) in moment.world.snapshot.entries() {
        before.snapshot.put(id.clone(), Entry { owner: Some(owner()), ..entry.clone() });
    }
    let declared = Declared { snapshot: next.clone(), source_map: SourceMap::default() };
    match plan(&declared, &owner(), None, &before, &server(), moment.now) {
        Ok(plan) => {
            let after = plan.apply(&before, &server(), moment.now).unwrap();
            let after = World { snapshot: after.snapshot, inventory: after.inventory, ..before.clone() };
            Some((before, plan, after))
        }
        Err(report) => {
            assert!(report.problems().all(|problem| problem.code == Code::RangeExhausted), "{report:?}");
            None
        }
    }
}

fn names<'a>(names: impl IntoIterator<Item = &'a Name>) -> BTreeSet<Name> {
    names.into_iter().cloned().collect()
}

fn tunnels(view: &View) -> BTreeMap<Name, (WireGuardKey, Tunnel)> {
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

/// The nodes that a packet passes from one to a member, by what WireGuard of each would do; nothing if it gets lost.
fn walk(views: &BTreeMap<Name, View>, from: &Name, to: &Name, address: IpAddr) -> Option<Vec<Name>> {
    let mut passed = Vec::new();
    let mut at = from.clone();
    for _ in 0..views.len() + 1 {
        let all = views.get(&at)?.tunnels();
        let leads = |tunnel: &&Tunnel| {
            tunnel.allowed_ips.iter().filter(|it| it.contains(&address)).map(IpNet::prefix_len).max()
        };
        let next = all.values().filter(|it| leads(it).is_some()).max_by_key(leads)?.peer.clone();
        if next == *to {
            return Some(passed);
        }
        passed.push(next.clone());
        at = next;
    }
    None
}

/// What members may open at a node, by name, of those that it knows.
fn open(view: &View, name: &Name) -> Option<Access> {
    let peer = view.peers.get(name)?;
    Some(match view.interface.restricted {
        false => Access::everything(),
        true => view.access.get(&peer.class).map(|access| (**access).clone()).unwrap_or_default(),
    })
}

fn check(impact: &NodeImpact, before: &View, after: &View) -> Outcome {
    prop_assert!(impact.more.is_empty(), "worlds are small");
    let (had, has) = (tunnels(before), tunnels(after));
    let stay = || has.iter().filter_map(|(name, it)| Some((name, had.get(name)?, it)));
    prop_assert_eq!(names(&impact.peers_added), names(has.keys().filter(|name| !had.contains_key(*name))));
    prop_assert_eq!(names(&impact.peers_removed), names(had.keys().filter(|name| !has.contains_key(*name))));
    let rekeyed = stay().filter(|(_, had, has)| had.0 != has.0).map(|(name, ..)| name);
    prop_assert_eq!(names(&impact.peers_rekeyed), names(rekeyed));
    let changed = stay().filter(|(_, had, has)| had.0 == has.0 && had.1 != has.1).map(|(name, ..)| name);
    prop_assert_eq!(names(&impact.peers_changed), names(changed));
    for (name, (_, had), (_, has)) in stay() {
        let said = impact.allowed_ips.iter().find(|it| it.peer == *name);
        let side = |of: fn(&schema::impact::AllowedIps) -> &Vec<IpNet>| -> BTreeSet<IpNet> {
            said.into_iter().flat_map(|it| of(it).iter().copied()).collect()
        };
        prop_assert_eq!(side(|it| &it.added), &has.allowed_ips - &had.allowed_ips);
        prop_assert_eq!(side(|it| &it.removed), &had.allowed_ips - &has.allowed_ips);
    }
    prop_assert!(
        impact.allowed_ips.iter().all(|it| had.contains_key(&it.peer) && has.contains_key(&it.peer))
    );
    let (old, new) = (routes(before), routes(after));
    let ranges = |of: &BTreeMap<IpNet, Option<Name>>, view: &View| -> BTreeSet<IpNet> {
        of.keys().copied().chain(own_ranges(view)).collect()
    };
    let (old_ranges, new_ranges) = (ranges(&old, before), ranges(&new, after));
    let set = |list: &[IpNet]| list.iter().copied().collect::<BTreeSet<_>>();
    // A spoke has a route for the network's own ranges besides.
    let own = &own_ranges(before) & &own_ranges(after);
    let apart = |of: BTreeSet<IpNet>| -> BTreeSet<IpNet> { &of - &own };
    prop_assert_eq!(set(&impact.routes_added), apart(&new_ranges - &old_ranges));
    prop_assert_eq!(set(&impact.routes_removed), apart(&old_ranges - &new_ranges));
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
    prop_assert_eq!(
        names(&impact.names_added),
        names(new.keys().filter(|it| !old.contains_key(*it)).copied())
    );
    prop_assert_eq!(
        names(&impact.names_removed),
        names(old.keys().filter(|it| !new.contains_key(*it)).copied())
    );
    let differ = old.iter().filter(|(name, it)| new.get(*name).is_some_and(|later| later != *it));
    prop_assert_eq!(names(&impact.names_changed), names(differ.map(|(name, _)| *name)));
    let (old, new) = (addresses(&before.interface), addresses(&after.interface));
    let lost: BTreeSet<_> = impact.readdressed.iter().filter_map(|it| it.before).collect();
    let got: BTreeSet<_> = impact.readdressed.iter().filter_map(|it| it.after).collect();
    prop_assert_eq!((lost, got), (&old - &new, &new - &old));
    let breaks = !old.is_subset(&new)
        || before.interface.listen_port != after.interface.listen_port
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
fn is_the_same(before: &View, after: &View) -> bool {
    let plain = |it: &Interface| Interface { class: ClassId::default(), ..it.clone() };
    let forwards = |view: &View| -> BTreeMap<Name, (BTreeSet<IpNet>, bool)> {
        let one = |(name, forward): (&Name, &std::sync::Arc<schema::view::Forward>)| {
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

fn ways(
    impact: Option<&NodeImpact>,
    node: &Name,
    (before, was): (&BTreeMap<Name, View>, &Mesh),
    (after, is): (&BTreeMap<Name, View>, &Mesh),
    all_are_there: bool,
) -> Outcome {
    let mut said = BTreeMap::new();
    for change in impact.into_iter().flat_map(|impact| &impact.paths) {
        for name in &change.to {
            prop_assert!(said.insert(name.clone(), (change.before.clone(), change.after.clone())).is_none());
        }
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
        let walked = walk(before, node, name, old).zip(walk(after, node, name, new));
        match said.get(name) {
            Some(sides) => prop_assert_eq!(Some(sides), walked.as_ref(), "{} to {}", node, name),
            None => {
                let differs = walked.is_some_and(|(before, after)| before != after);
                prop_assert!(!differs || !all_are_there, "{} to {}", node, name);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(draws(1_000))]

    #[test]
    fn what_a_plan_says_of_a_node_is_what_differs_between_its_views((moment, next) in edits()) {
        let Some((world, plan, later)) = planned(&moment, &next) else { return Ok(()) };
        let all_are_there = world.inventory.away().next().is_none() && later.inventory.away().next().is_none();
        let networks: BTreeSet<NetworkName> = world.snapshot.networks().map(|(name, _)| name.clone()).collect();
        for network in networks {
            let (was, is) = (compiled(&network, &world).unwrap(), compiled(&network, &later));
            let (before, after) = (views(Some(&was)), views(is.as_ref()));
            for (node, view) in &before {
                let id = NodeId::of(&network, node);
                let mut found = plan.impact.iter().filter(|it| NodeId::of(&it.network, &it.node) == id);
                let (impact, again) = (found.next(), found.next());
                prop_assert!(again.is_none());
                match (impact, after.get(node)) {
                    (None, None) => prop_assert!(false, "{} leaves, and nothing says so", node),
                    (Some(impact), None) => {
                        prop_assert!(impact.removed);
                        prop_assert_eq!(names(&impact.peers_removed), names(tunnels(view).keys()));
                    }
                    (None, Some(later)) => prop_assert!(is_the_same(view, later), "{}\n{:#?}\n{:#?}", node, view, later),
                    (Some(impact), Some(later)) => check(impact, view, later)?,
                }
                if let (Some(is), true) = (&is, after.contains_key(node)) {
                    ways(impact, node, (&before, &was), (&after, is), all_are_there)?;
                }
            }
        }
    }
}
