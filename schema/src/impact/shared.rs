//! What a change means for all nodes of one audience that are of one afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use super::paths::{MovedPaths, MovedTo};
use super::{AllowedIps, Internet, InternetChange, LISTED, RouteChange, SettingChange};
use crate::access::{Access, ClassId};
use crate::compile::Mesh;
use crate::compile::audience::{Audience, EntryNames};
use crate::scalars::{DomainName, Name};
use crate::text::natural;
use crate::view::{Forward, Interface, Peer, Resolution, Route, Tunnel, View, ViewDelta, changed_tunnels};

/// What is shared by the nodes of one audience that are of one afterwards; absent: they leave.
pub(super) type OfAudiences<'a> = BTreeMap<(Audience, Option<Audience>), Shared<'a>>;

/// What a change means for every node of one audience that is of one afterwards. Where an audience may have
/// several nodes, each is among the peers of the others, and so of these lists.
#[derive(Default)]
pub(super) struct Shared<'a> {
    pub(super) added: Names,
    pub(super) removed: Names,
    pub(super) changed: Names,
    pub(super) rekeyed: Names,
    /// What is added to the allowed IPs of each peer that stays, and removed from them.
    pub(super) allowed: BTreeMap<Name, [BTreeSet<IpNet>; 2]>,
    pub(super) allowed_names: Names,
    /// The peers that stay and have another endpoint.
    pub(super) elsewhere: BTreeSet<Name>,
    pub(super) paths: Vec<MovedTo>,
    pub(super) routes_added: BTreeSet<IpNet>,
    pub(super) routes_removed: BTreeSet<IpNet>,
    pub(super) routes_refused: BTreeSet<IpNet>,
    pub(super) routes_changed: Vec<RouteChange>,
    pub(super) internet: Vec<InternetChange>,
    pub(super) names_added: Names,
    pub(super) names_removed: Names,
    pub(super) names_changed: Names,
    /// What all resolve before and afterwards.
    pub(super) known: Option<[Known<'a>; 2]>,
    pub(super) filter: bool,
    /// What is forwarded to otherwise, and what is refused no longer.
    pub(super) others: Vec<SettingChange>,
    /// The routes into the mesh, afterwards.
    pub(super) leads: Vec<IpNet>,
}

/// Names, of which the first in natural order are listed.
#[derive(Default)]
pub(super) struct Names {
    /// One more than are listed, since the node itself may be among them.
    pub(super) first: Vec<Name>,
    /// All of them, sorted.
    pub(super) all: Vec<Name>,
}

impl FromIterator<Name> for Names {
    fn from_iter<I: IntoIterator<Item = Name>>(names: I) -> Self {
        let mut all: Vec<Name> = names.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self { first: first_of(all.iter().collect()), all }
    }
}

/// The first of some names in natural order, one more than are listed.
pub(super) fn first_of(mut names: Vec<&Name>) -> Vec<Name> {
    let order = |one: &&Name, other: &&Name| natural(one.as_str(), other.as_str());
    if names.len() > LISTED + 1 {
        names.select_nth_unstable_by(LISTED, order);
        names.truncate(LISTED + 1);
    }
    names.sort_by(order);
    names.into_iter().cloned().collect()
}

impl Names {
    pub(super) fn has(&self, name: &Name) -> bool {
        self.all.binary_search(name).is_ok()
    }

    /// The first of them, and how many more there are.
    pub(super) fn list(&self) -> (Vec<Name>, u64) {
        let first: Vec<Name> = self.first.iter().take(LISTED).cloned().collect();
        let more = self.all.len() - first.len();
        (first, more as u64)
    }

    /// The first of them, without the node itself, and how many more there are.
    pub(super) fn without(&self, node: &Name) -> (Vec<Name>, u64) {
        let others: Vec<Name> =
            self.first.iter().filter(|name| *name != node).take(LISTED).cloned().collect();
        let all = self.all.len() - usize::from(self.has(node));
        let more = all - others.len();
        (others, more as u64)
    }
}

/// The first of a list, and how many more there are.
pub(super) fn first<T: Clone>(all: &[T]) -> (Vec<T>, u64) {
    (all.iter().take(LISTED).cloned().collect(), all.len().saturating_sub(LISTED) as u64)
}

impl<'a> Shared<'a> {
    /// What is shared with a node, by the meshes and its audience in each.
    pub(super) fn of(
        node: &Name,
        (was, from): (&'a Mesh, &Audience),
        (is, to): (&'a Mesh, &Audience),
        paths: Option<&MovedPaths<'_>>,
    ) -> Self {
        let delta = is.delta_from(was, from, to);
        // Only where several nodes may be of both is each among the others' peers.
        let alone = from.carrier.is_some() || to.carrier.is_some();
        let part = |mesh: &Mesh, named: &BTreeSet<&Name>| {
            if alone { mesh.part(node, named) } else { mesh.part_of_audience(node, named) }
        };
        let named: BTreeSet<&Name> = delta.peers.keys().collect();
        let (Some(before), Some(after)) = (part(was, &named), part(is, &named)) else {
            return Self::default();
        };
        // Whoever carries anything at either moment is looked at in both.
        let others = before.peers.keys().chain(after.peers.keys()).filter(|name| !named.contains(*name));
        let others: Vec<Name> = others.cloned().collect();
        let named: BTreeSet<&Name> = named.into_iter().chain(&others).collect();
        let again = (!others.is_empty()).then(|| part(was, &named).zip(part(is, &named))).flatten();
        let (before, after) = again.unwrap_or((before, after));
        let mut shared = Self {
            filter: filter_changes((&before, &after), &delta, was, is),
            others: forward_changes(&before, &after),
            internet: internet_changes(&before, &after, &delta),
            paths: paths.map(|paths| paths.of((was, from), (is, to))).unwrap_or_default(),
            ..Self::default()
        };
        shared.peers(&before, &after, &delta);
        shared.routes(&before, &after, &delta, (was, is));
        let known = [(&before, was.names_for(from)), (&after, is.names_for(to))];
        let known = known.map(|(view, entries)| Known { peers: view.peers.clone(), entries });
        shared.names(&delta, &known);
        shared.known = Some(known);
        let into = after.routes.iter().filter(|(range, route)| range.prefix_len() > 0 && !route.carried);
        shared.leads = into.map(|(range, _)| *range).collect();
        shared
    }

    /// The peers whose tunnels differ.
    fn peers(&mut self, before: &View, after: &View, delta: &ViewDelta) {
        let [had, has] = changed_tunnels(before, after, delta);
        let by_name = |tunnels| -> BTreeMap<Name, _> {
            let named = |(key, tunnel): (_, Tunnel)| (tunnel.peer.clone(), (key, tunnel));
            BTreeMap::into_iter(tunnels).map(named).collect()
        };
        let (had, has) = (by_name(had), by_name(has));
        self.added = has.keys().filter(|name| !had.contains_key(*name)).cloned().collect();
        self.removed = had.keys().filter(|name| !has.contains_key(*name)).cloned().collect();
        let stay = || has.iter().filter_map(|(name, it)| Some((name, had.get(name)?, it)));
        self.rekeyed = stay().filter(|(_, had, has)| had.0 != has.0).map(|(name, ..)| name.clone()).collect();
        self.changed = stay()
            .filter(|(_, had, has)| had.0 == has.0 && had.1 != has.1)
            .map(|(name, ..)| name.clone())
            .collect();
        for (name, (_, had), (_, has)) in stay() {
            if had.endpoint != has.endpoint {
                self.elsewhere.insert(name.clone());
            }
            let sides = [&has.allowed_ips - &had.allowed_ips, &had.allowed_ips - &has.allowed_ips];
            if sides.iter().any(|side| !side.is_empty()) {
                self.allowed.insert(name.clone(), sides);
            }
        }
        self.allowed_names = self.allowed.keys().cloned().collect();
    }

    /// How the allowed IPs of a node's peers change, and the peers that do not change for it, although they do for
    /// others of its audience: what carries it leads to them, and not to itself.
    pub(super) fn allowed_ips(
        &self,
        node: &Name,
        sides: [&Interface; 2],
        own: &[BTreeSet<IpNet>; 2],
    ) -> ((Vec<AllowedIps>, u64), BTreeSet<&Name>) {
        let change = |peer: &Name| allowed_ips(peer, self.allowed.get(peer)?, own);
        let carriers = sides.iter().filter_map(|it| it.carrier.as_ref());
        let carriers = carriers.filter_map(|name| self.allowed.get_key_value(name)).map(|(name, _)| name);
        let alike: BTreeSet<&Name> = carriers.filter(|peer| change(peer).is_none()).collect();
        let names = &self.allowed_names;
        let moved = names.first.iter().filter(|peer| *peer != node && !alike.contains(*peer));
        let list: Vec<AllowedIps> = moved.take(LISTED).filter_map(change).collect();
        let all = names.all.len() - usize::from(names.has(node)) - alike.len();
        let more = all.saturating_sub(list.len()) as u64;
        ((list, more), alike.into_iter().filter(|peer| !self.elsewhere.contains(*peer)).collect())
    }

    fn routes(&mut self, before: &View, after: &View, delta: &ViewDelta, (was, is): (&Mesh, &Mesh)) {
        // Which members its addresses count as is of no matter to a route.
        let via = |view: &View, range: &IpNet| view.routes.get(range).map(|route| route.via.clone());
        for range in delta.routes.keys() {
            match (via(before, range), via(after, range)) {
                (None, Some(Some(_))) => drop(self.routes_added.insert(*range)),
                (None, Some(None)) => drop(self.routes_refused.insert(*range)),
                (Some(Some(_)), None) => drop(self.routes_removed.insert(*range)),
                (Some(had), Some(has)) if had != has => {
                    let breaks = had.is_some() && (was.ways().has_nat(range) || is.ways().has_nat(range));
                    self.routes_changed.push(RouteChange { range: *range, before: had, after: has, breaks });
                }
                // Where what goes to the internet goes is said apart.
                (Some(None), None) if range.prefix_len() > 0 => self.others.push(SettingChange {
                    name: "refuses".to_owned(),
                    before: Some(range.to_string()),
                    after: None,
                }),
                (Some(_), Some(_) | None) | (None, None) => {}
            }
        }
        self.routes_changed.sort_by_key(|change| change.range);
    }

    fn names(&mut self, delta: &ViewDelta, known: &[Known<'_>; 2]) {
        let names: BTreeSet<&Name> = delta.peers.keys().chain(delta.names.keys()).collect();
        let mut differ: BTreeMap<Difference, Vec<Name>> = BTreeMap::new();
        for name in names {
            let [had, has] = known.each_ref().map(|known| known.peer(name).or_else(|| known.entry(name)));
            if let Some(difference) = Difference::of(had, has) {
                differ.entry(difference).or_default().push(name.clone());
            }
        }
        let mut take = |difference| differ.remove(&difference).unwrap_or_default().into_iter().collect();
        self.names_added = take(Difference::Added);
        self.names_removed = take(Difference::Removed);
        self.names_changed = take(Difference::Changed);
    }
}

/// What nodes of an audience resolve, as far as a change is about it.
pub(super) struct Known<'a> {
    peers: OrdMap<Name, Arc<Peer>>,
    entries: EntryNames<'a>,
}

/// What a name resolves to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolved<'a> {
    Addresses(&'a BTreeSet<IpAddr>),
    Alias(&'a DomainName),
}

impl<'a> Resolved<'a> {
    pub(super) fn of(resolution: &'a Resolution) -> Self {
        match resolution {
            Resolution::Addresses(addresses) => Self::Addresses(addresses),
            Resolution::Alias(alias) => Self::Alias(alias),
        }
    }
}

impl Known<'_> {
    /// What a name resolves to as that of a peer.
    pub(super) fn peer(&self, name: &Name) -> Option<Resolved<'_>> {
        let peer = self.peers.get(name).filter(|peer| peer.named)?;
        Some(Resolved::Addresses(&peer.addresses))
    }

    /// What a name resolves to otherwise.
    pub(super) fn entry(&self, name: &Name) -> Option<Resolved<'_>> {
        self.entries.get(name).map(Resolved::of)
    }
}

/// How what a name resolves to differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Difference {
    Added,
    Removed,
    Changed,
}

impl Difference {
    /// What differs; nothing if nothing does.
    pub(super) fn of<T: PartialEq>(before: Option<T>, after: Option<T>) -> Option<Self> {
        match (before, after) {
            (None, Some(_)) => Some(Self::Added),
            (Some(_), None) => Some(Self::Removed),
            (Some(before), Some(after)) if before != after => Some(Self::Changed),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }
}

/// How the allowed IPs of a peer change, but for a node's own addresses afterwards and before; nothing if they do not.
fn allowed_ips(peer: &Name, sides: &[BTreeSet<IpNet>; 2], own: &[BTreeSet<IpNet>; 2]) -> Option<AllowedIps> {
    let [(added, left), (removed, out)] = [0, 1].map(|at| {
        let all: Vec<IpNet> = sides[at].difference(&own[at]).copied().collect();
        first(&all)
    });
    (!added.is_empty() || !removed.is_empty()).then(|| AllowedIps {
        peer: peer.clone(),
        added,
        removed,
        more: left + out,
    })
}

/// Whether what those may open at a node that it knows before and afterwards differs.
fn filter_changes((before, after): (&View, &View), delta: &ViewDelta, was: &Mesh, is: &Mesh) -> bool {
    let open = |view: &View, class: &ClassId| {
        if !view.interface.restricted {
            return Access::everything();
        }
        view.access.get(class).map(|access| (**access).clone()).unwrap_or_default()
    };
    let both = |name: &Name| Some((before.peers.get(name)?.class, after.peers.get(name)?.class));
    let others = delta.peers.keys().filter(|name| **name != after.node);
    let classes: BTreeSet<_> = others.filter_map(both).collect();
    let mut differ = classes.iter().map(|(had, has)| open(before, had) != open(after, has));
    let stays = |class: &ClassId| {
        let other =
            |mesh: &Mesh| mesh.members(class).is_some_and(|all| all.keys().any(|it| *it != after.node));
        other(was) && other(is)
    };
    // What of it is about classes that are there all the time.
    let guards = |class: &ClassId| {
        let is_there = |class: &ClassId| was.class(class).is_some() && is.class(class).is_some();
        let rows = |view: &View| -> BTreeMap<ClassId, Access> {
            let rows = view.guarded.get(class).into_iter().flat_map(|rows| rows.iter());
            rows.filter(|(from, _)| is_there(from)).map(|(from, access)| (*from, access.clone())).collect()
        };
        is_there(class) && rows(before) != rows(after)
    };
    before.interface.restricted != after.interface.restricted
        || differ.any(|differs| differs)
        || delta.access.keys().any(stays)
        || delta.guarded.keys().any(guards)
}

/// Where what a node sends to the internet goes, where that changes.
fn internet_changes(before: &View, after: &View, delta: &ViewDelta) -> Vec<InternetChange> {
    let leads = |view: &View, range: &IpNet| match view.routes.get(range).map(|route| &**route) {
        None | Some(Route { carried: true, .. }) => Internet::Own,
        Some(Route { via: Some(via), .. }) => Internet::Through(via.clone()),
        Some(Route { via: None, .. }) => Internet::Refused,
    };
    let families: BTreeSet<&IpNet> = delta.routes.keys().filter(|range| range.prefix_len() == 0).collect();
    let changes = families.into_iter().map(|range| InternetChange {
        range: *range,
        before: leads(before, range),
        after: leads(after, range),
    });
    changes.filter(|change| change.before != change.after).collect()
}

/// What a node forwards to otherwise than before, of what it does before and afterwards.
fn forward_changes(before: &View, after: &View) -> Vec<SettingChange> {
    let text = |forward: &Forward| {
        // Parts of a range that rules name are no ranges of their own.
        let is_part = |range: &&IpNet| forward.ranges.keys().any(|it| it != *range && it.contains(*range));
        let whole = forward.ranges.keys().filter(|range| !is_part(range));
        let ranges: Vec<_> = whole.map(ToString::to_string).collect();
        let nat = if forward.nat { "with" } else { "without" };
        let by = forward.interface.as_ref().map(|name| format!(" by {name}")).unwrap_or_default();
        format!("{} {nat} NAT{by}", ranges.join(", "))
    };
    let both = before.forwards.iter().filter_map(|(name, had)| Some((name, had, after.forwards.get(name)?)));
    let texts = both.map(|(name, had, has)| (name, text(had), text(has)));
    let change = |(name, before, after)| SettingChange {
        name: format!("egress {name}"),
        before: Some(before),
        after: Some(after),
    };
    texts.filter(|(_, before, after)| before != after).map(change).collect()
}
