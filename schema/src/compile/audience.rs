//! What the nodes of a network are sent: Views, and what leads from one to the next.
//!
//! Nodes of one [`Audience`] are sent the same of everything but themselves, so that a difference is computed
//! and encoded once for all of them; [`Mesh::step`] says which those are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use super::Mesh;
use super::paths::Place;
use super::ways::{RangeWay, Through};
use crate::access::{Access, ClassId};
use crate::scalars::Name;
use crate::view::{Changes, Counts, Forward, Guarded, Peer, Resolution, Route, View, ViewDelta};

/// Which nodes are sent the same: nodes of one audience are sent the same of everything but themselves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Audience {
    /// The class of its nodes.
    pub class: ClassId,
    /// What their packets to others go through; absent: nothing, they reach them directly.
    pub behind: Option<Behind>,
    /// The node that is its only one, since it carries traffic of others; absent: they carry none.
    pub carrier: Option<Name>,
}

/// What a node's packets to others go through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Behind {
    /// The hub.
    Hub,
    /// The relay of that name.
    Relay(Name),
}

/// What a node has to be sent to move from one mesh to a later one.
#[derive(Clone, Debug, PartialEq)]
pub enum ViewStep {
    /// What every node of this audience is sent; see [`Mesh::delta`].
    Shared(Audience),
    /// What this node alone is sent.
    Own(Box<ViewDelta>),
    /// Its whole View, since it had none.
    Whole,
}

impl Audience {
    /// Where its nodes are.
    pub fn place(&self) -> Place {
        let through = match &self.behind {
            Some(Behind::Relay(relay)) => Some(Through::Relay(relay.clone())),
            Some(Behind::Hub) | None => None,
        };
        Place { carrier: self.carrier.clone(), through }
    }
}

type Entries<V> = OrdMap<Name, Arc<V>>;

/// The maps that one map of a View is made of, by the class that they are about; absent: about none. A name
/// is in one of them at most.
type Parts<V> = BTreeMap<Option<ClassId>, Entries<V>>;

/// The peers of an audience: its parts, save that some are as `instead` says, or are there only.
#[derive(Default)]
struct Peers {
    parts: Parts<Peer>,
    instead: Entries<Peer>,
}

impl Peers {
    fn get(&self, name: &Name) -> Option<&Arc<Peer>> {
        let part = || self.parts.values().find_map(|part| part.get(name));
        self.instead.get(name).or_else(part)
    }

    /// The same, given the class of whoever has the name: at a cost that does not grow with the classes.
    fn get_of(&self, name: &Name, class: Option<ClassId>) -> Option<&Arc<Peer>> {
        self.instead.get(name).or_else(|| self.parts.get(&class)?.get(name))
    }

    fn len(&self) -> usize {
        let more =
            self.instead.keys().filter(|name| !self.parts.values().any(|part| part.contains_key(*name)));
        self.parts.values().map(OrdMap::len).sum::<usize>() + more.count()
    }

    fn whole(self) -> Entries<Peer> {
        let mut all = whole(self.parts);
        all.extend(self.instead);
        all
    }

    fn changes_to(&self, after: &Self) -> Changes<Name, Arc<Peer>> {
        let mut changes = between(&self.parts, &after.parts);
        let special: BTreeSet<&Name> = self.instead.keys().chain(after.instead.keys()).collect();
        if special.is_empty() {
            return changes;
        }
        changes.put.retain(|(name, _)| !special.contains(name));
        changes.lost.retain(|name| !special.contains(name));
        for name in special {
            match (self.get(name), after.get(name)) {
                (before, Some(peer)) if before != Some(peer) => {
                    changes.put.push((name.clone(), peer.clone()))
                }
                (Some(_), None) => changes.lost.push(name.clone()),
                (_, Some(_)) | (None, None) => {}
            }
        }
        changes.put.sort_by(|(one, _), (other, _)| one.cmp(other));
        changes.lost.sort();
        changes
    }
}

/// Names and what they resolve to, for an audience.
pub struct EntryNames<'a> {
    parts: Parts<Resolution>,
    homes: &'a OrdMap<Name, ClassId>,
}

impl EntryNames<'_> {
    /// What a name resolves to; nothing if it is none of these.
    pub fn get(&self, name: &Name) -> Option<&Resolution> {
        let of = |class: Option<ClassId>| self.parts.get(&class)?.get(name).map(|it| &**it);
        of(self.homes.get(name).copied()).or_else(|| of(None))
    }
}

impl Mesh {
    /// Which audience a node belongs to; that of nodes on no side of a rule if it has not joined.
    pub fn audience(&self, node: &Name) -> Audience {
        let class = self.class_of(node).unwrap_or_default();
        let behind = match self.through(node) {
            Some(Through::Relay(relay)) => Some(Behind::Relay(relay.clone())),
            Some(Through::Ingress(_) | Through::Egress(_)) | None => {
                self.hub().filter(|hub| *hub != node).map(|_| Behind::Hub)
            }
        };
        Audience { class, behind, carrier: Some(node).filter(|node| self.ways().carries(node)).cloned() }
    }

    /// What a node is sent; nothing if it has not joined.
    pub fn view(&self, node: &Name) -> Option<View> {
        let interface = (**self.interfaces.get(node)?).clone();
        let audience = self.audience(node);
        let mut peers = self.peers_of(&audience).whole();
        peers.remove(node);
        Some(View {
            network: self.name.clone(),
            node: node.clone(),
            interface,
            peers,
            access: self.access_at(&audience),
            routes: self.routes_of(&audience),
            forwards: self.forwards_of(&audience),
            guarded: self.guarded_by(&audience),
            names: whole(self.names_of(&audience, self.own_names(node))),
        })
    }

    /// The View of a node with only those of its peers that are named here or that carry traffic for it, and
    /// without names: at the cost of what is named.
    pub fn part(&self, node: &Name, named: &BTreeSet<&Name>) -> Option<View> {
        self.cut(node, named, |name| name != node)
    }

    /// The same as it would be for another node of the audience: the node itself is among the peers.
    pub fn part_of_audience(&self, node: &Name, named: &BTreeSet<&Name>) -> Option<View> {
        self.cut(node, named, |_| true)
    }

    fn cut(&self, node: &Name, named: &BTreeSet<&Name>, meant: impl Fn(&Name) -> bool) -> Option<View> {
        let interface = (**self.interfaces.get(node)?).clone();
        let audience = self.audience(node);
        let all = self.peers_of(&audience);
        let routes = self.routes_of(&audience);
        let mut peers = OrdMap::new();
        let gateways = routes.values().filter_map(|route| route.via.as_ref());
        let mut open: Vec<&Name> = named.iter().copied().chain(all.instead.keys()).chain(gateways).collect();
        while let Some(name) = open.pop() {
            let peer = all.get_of(name, self.class_of(name));
            let Some(peer) = peer.filter(|_| meant(name) && !peers.contains_key(name)) else { continue };
            peers.insert(name.clone(), peer.clone());
            open.extend(&peer.via);
        }
        Some(View {
            network: self.name.clone(),
            node: node.clone(),
            interface,
            peers,
            access: self.access_at(&audience),
            routes,
            forwards: self.forwards_of(&audience),
            guarded: self.guarded_by(&audience),
            names: OrdMap::new(),
        })
    }

    /// What a node that has its View of an earlier mesh has to be sent; nothing if it has not joined.
    ///
    /// Costs the same for any size of the network and of the difference where the node shares the step with
    /// others.
    pub fn step(&self, earlier: &Self, node: &Name) -> Option<ViewStep> {
        let interface = self.interfaces.get(node)?;
        let Some(before) = earlier.interfaces.get(node) else { return Some(ViewStep::Whole) };
        let (from, to) = (earlier.audience(node), self.audience(node));
        let (had, has) = (earlier.own_names(node), self.own_names(node));
        // A node is not its own peer: the others are sent what changes of it, and it is not.
        // Where those of its class come to know each other, or no longer do, it is among them.
        let shares = before == interface
            && from == to
            && earlier.peer(node) == self.peer(node)
            && earlier.knows_its_own(&from) == self.knows_its_own(&to)
            && had.is_empty()
            && has.is_empty();
        if shares {
            return Some(ViewStep::Shared(to));
        }
        let mut delta = self.changes(earlier, (&from, had), (&to, has));
        delta.interface = (before != interface).then(|| (**interface).clone());
        delta.peers.put.retain(|(name, _)| name != node);
        delta.peers.lost.retain(|name| name != node);
        Some(ViewStep::Own(Box::new(delta)))
    }

    /// What every node of an audience is sent for which [`Mesh::step`] returns the shared step.
    pub fn delta(&self, earlier: &Self, audience: &Audience) -> ViewDelta {
        self.delta_from(earlier, audience, audience)
    }

    /// What changes for every node of an audience that is one of another afterwards, itself among its peers, but
    /// for its interface and the names that lead to itself alone.
    pub fn delta_from(&self, earlier: &Self, from: &Audience, to: &Audience) -> ViewDelta {
        self.changes(earlier, (from, OrdMap::new()), (to, OrdMap::new()))
    }

    /// The names that every node of an audience resolves, other than those of peers.
    pub fn names_for(&self, audience: &Audience) -> EntryNames<'_> {
        EntryNames { parts: self.names_of(audience, OrdMap::new()), homes: &self.homes }
    }

    /// The peers of an audience that WireGuard has a tunnel to, its nodes among them.
    pub fn peers_with_keys(&self, audience: &Audience) -> impl Iterator<Item = Name> + use<> {
        let peers = self.peers_of(audience).whole().into_iter();
        peers.filter(|(_, peer)| peer.public_key.is_some()).map(|(name, _)| name)
    }

    /// The ranges that nodes of an audience reach through others, besides those of the network.
    pub fn ranges_of(&self, audience: &Audience) -> impl Iterator<Item = IpNet> + use<> {
        self.routes_of(audience).into_iter().map(|(range, _)| range)
    }

    /// Whether members of two classes may talk: either may open anything at the other.
    pub fn are_near(&self, one: ClassId, other: ClassId) -> bool {
        !self.policy.is_restricted() || self.near.get(&one).is_some_and(|near| near.contains(&other))
    }

    /// How much the View of a node holds; nodes that share a step have the same.
    pub fn counts(&self, node: &Name) -> Counts {
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        let audience = self.audience(node);
        let peers = self.peers_of(&audience);
        let itself = usize::from(peers.get(node).is_some());
        let names = self.names_of(&audience, self.own_names(node));
        Counts {
            peers: count(peers.len() - itself),
            access: count(self.access_at(&audience).len()),
            routes: count(self.routes_of(&audience).len()),
            forwards: count(self.forwards_of(&audience).len()),
            guarded: count(self.guarded_by(&audience).len()),
            names: count(names.values().map(OrdMap::len).sum()),
        }
    }

    /// Whether a node has another one as a peer.
    pub fn knows(&self, node: &Name, other: &Name) -> bool {
        node != other && self.has(node) && self.peers_of(&self.audience(node)).get(other).is_some()
    }

    fn changes(
        &self,
        earlier: &Self,
        (from, had): (&Audience, Entries<Resolution>),
        (to, has): (&Audience, Entries<Resolution>),
    ) -> ViewDelta {
        ViewDelta {
            interface: None,
            peers: earlier.peers_of(from).changes_to(&self.peers_of(to)),
            access: Changes::between(&earlier.access_at(from), &self.access_at(to)),
            routes: Changes::between(&earlier.routes_of(from), &self.routes_of(to)),
            forwards: Changes::between(&earlier.forwards_of(from), &self.forwards_of(to)),
            guarded: Changes::between(&earlier.guarded_by(from), &self.guarded_by(to)),
            names: between(&earlier.names_of(from, had), &self.names_of(to, has)),
        }
    }

    /// The classes that members of one may know: those that may open something at it, or it at them.
    fn near_to(&self, class: ClassId) -> impl Iterator<Item = ClassId> {
        self.near.get(&class).into_iter().flatten().copied()
    }

    /// Whether an audience's node is the hub.
    fn is_hub(&self, audience: &Audience) -> bool {
        audience.carrier.is_some() && audience.carrier.as_ref() == self.hub()
    }

    /// The classes whose members an audience knows: those that it may, and those whom they may know whose traffic
    /// it carries or may carry.
    fn known_to(&self, audience: &Audience) -> BTreeSet<ClassId> {
        if !self.policy.is_restricted() || self.is_hub(audience) {
            return self.members.keys().copied().collect();
        }
        let mut known: BTreeSet<ClassId> = self.near_to(audience.class).collect();
        for class in self.carried_by(audience) {
            known.extend(self.near_to(class));
        }
        for (_, way) in self.ranges_through(audience) {
            let near = self.near_to(way.id);
            known.extend(near.filter(|class| self.class(class).is_some_and(|class| class.is_on(way.side))));
        }
        known
    }

    /// The classes of the members whose traffic an audience carries, or may carry: those of an ingress whose node
    /// it carries among them.
    fn carried_by(&self, audience: &Audience) -> BTreeSet<ClassId> {
        let served = self.gateways_of(audience).flat_map(|node| self.ways().served_by(node));
        served
            .filter_map(|through| self.loads.get(&through))
            .flat_map(|loads| loads.keys().copied())
            .collect()
    }

    /// The ranges outside of the network that are reached through an audience's node: as their gateway, or on
    /// the way to it.
    fn ranges_through<'a>(
        &'a self,
        audience: &'a Audience,
    ) -> impl Iterator<Item = (&'a IpNet, &'a RangeWay)> {
        let carrier = audience.carrier.as_ref();
        let served: Vec<_> = carrier.iter().flat_map(|node| self.ways().served_by(node)).collect();
        let leads = move |node: &Name| {
            Some(node) == carrier || self.through(node).is_some_and(|through| served.contains(through))
        };
        self.ways().ranges().filter(move |(_, way)| carrier.is_some() && way.via.iter().any(&leads))
    }

    /// Whether the nodes of an audience have each other as peers.
    fn knows_its_own(&self, audience: &Audience) -> bool {
        let restricted = self.policy.is_restricted();
        let near = || self.near.get(&audience.class).is_some_and(|near| near.contains(&audience.class));
        match &audience.carrier {
            Some(_) => self.knows_by_parts(audience) && self.known_to(audience).contains(&audience.class),
            None => self.knows_by_parts(audience) && (!restricted || near()),
        }
    }

    /// Whether an audience is sent the members whom it may know; otherwise the ranges of the network lead to the
    /// hub.
    fn knows_by_parts(&self, audience: &Audience) -> bool {
        audience.behind.is_none() || self.network.hub.is_none() || self.policy.is_restricted()
    }

    fn peers_of(&self, audience: &Audience) -> Peers {
        let known = self.known_to(audience);
        let from = if audience.behind.is_some() { &self.carried } else { &self.members };
        let mut peers = Peers::default();
        if self.knows_by_parts(audience) {
            let part = |class: &ClassId| Some((Some(*class), from.get(class)?.clone()));
            peers.parts = known.iter().filter_map(part).collect();
        }
        // Its carriers, and those of whom it knows or reaches, are tunnels for those that may not talk to them.
        let mut open: Vec<Name> = match &audience.behind {
            Some(Behind::Hub) => self.hub().cloned().into_iter().collect(),
            Some(Behind::Relay(relay)) => {
                self.ways().relay(relay).map(|way| way.via.clone()).unwrap_or_default()
            }
            None => {
                let meets = |loads: &OrdMap<ClassId, u32>| loads.keys().any(|class| known.contains(class));
                let through = self.loads.iter().filter(|(_, loads)| meets(loads)).map(|(through, _)| through);
                let gateways = self.reached_by(audience).flat_map(|(_, way)| &way.via).cloned();
                through
                    .flat_map(|through| self.ways().candidates_of(through))
                    .cloned()
                    .chain(gateways)
                    .collect()
            }
        };
        while let Some(name) = open.pop() {
            let Some(peer) = self.peer(&name).filter(|_| Some(&name) != audience.carrier.as_ref()) else {
                continue;
            };
            if audience.behind.is_none() {
                open.extend(self.through(&name).iter().flat_map(|it| self.ways().candidates_of(it)).cloned());
            }
            let named = peer.named && known.contains(&peer.class) && self.knows_by_parts(audience);
            let whole = Peer { named, ..(**peer).clone() };
            if !peers.instead.contains_key(&name) && peers.get(&name).is_none_or(|there| **there != whole) {
                peers.instead.insert(name, Arc::new(whole));
            }
        }
        // Whose traffic it carries it reaches directly.
        for through in audience.carrier.iter().flat_map(|node| self.ways().served_by(node)) {
            for (name, peer) in self.full.get(&through).into_iter().flatten() {
                peers.instead.insert(name.clone(), peer.clone());
            }
        }
        // And those that are carried by whom it carries, through them.
        let behind = self.gateways_of(audience).skip(1).flat_map(|node| self.ways().served_by(node));
        let clients = behind.filter_map(|through| self.full.get(&through)).flat_map(OrdMap::keys);
        for (name, peer) in clients.filter_map(|name| Some((name, self.peer(name)?))) {
            if peers.get(name).is_none() {
                peers.instead.insert(name.clone(), peer.clone());
            }
        }
        peers
    }

    fn names_of(&self, audience: &Audience, own: Entries<Resolution>) -> Parts<Resolution> {
        let mut parts = BTreeMap::from([(None, self.names.clone())]);
        let names = |class: ClassId| Some((Some(class), self.names_of.get(&class)?.clone()));
        parts.extend(self.known_to(audience).into_iter().filter_map(names));
        if !own.is_empty() {
            parts.insert(Some(audience.class), own);
        }
        parts
    }

    /// The names that lead to a node itself, where others of its class may not know it.
    pub fn own_names(&self, node: &Name) -> Entries<Resolution> {
        let class = self.class_of(node).unwrap_or_default();
        let Some(names) = self.names_of.get(&class) else { return OrdMap::new() };
        let others_know = self.knows_its_own(&self.audience(node));
        let Some(peer) = self.peer(node).filter(|_| !others_know) else { return OrdMap::new() };
        // An entry of the node's name leads elsewhere, and what leads to that entry does too.
        let itself = Resolution::Addresses(peer.addresses.clone());
        let leading = self.leading_to(std::iter::once(node)).into_iter();
        let named = leading.filter_map(|name| Some((name.clone(), names.get(&name)?.clone())));
        named.filter(|(_, resolution)| **resolution == itself).collect()
    }

    fn access_at(&self, audience: &Audience) -> OrdMap<ClassId, Arc<Access>> {
        self.access.get(&audience.class).cloned().unwrap_or_default()
    }

    /// The ranges outside of the network that an audience reaches, for itself or for whom it carries.
    fn reached_by<'a>(&'a self, audience: &'a Audience) -> impl Iterator<Item = (&'a IpNet, &'a RangeWay)> {
        let carried = self.carried_by(audience);
        let is_hub = self.is_hub(audience);
        let through: BTreeSet<IpNet> = self.ranges_through(audience).map(|(range, _)| *range).collect();
        let gateways: Vec<&Name> = self.gateways_of(audience).collect();
        let reaches = move |range: &IpNet, way: &RangeWay| {
            is_hub
                || through.contains(range)
                || self.is_for(way, audience.class, audience.class)
                || carried.iter().any(|class| self.is_for(way, *class, *class))
                || gateways.iter().any(|gateway| self.is_for_ranges_of(gateway, way))
        };
        let own = |way: &RangeWay| audience.carrier.as_ref().is_some_and(|node| way.via.contains(node));
        self.ways().ranges().filter(move |(range, way)| !own(way) && reaches(range, way))
    }

    /// An audience's node, and the nodes whose traffic it carries, as far as they carry others.
    fn gateways_of<'a>(&'a self, audience: &'a Audience) -> impl Iterator<Item = &'a Name> {
        let served = audience.carrier.iter().flat_map(|node| self.ways().served_by(node));
        let carried = served.filter_map(|through| self.full.get(&through)).flatten();
        audience.carrier.iter().chain(carried.filter(|(_, peer)| peer.carries).map(|(name, _)| name))
    }

    /// Whether an audience's nodes reach a range for themselves, or for what is behind them: not only for members
    /// whose traffic they carry.
    fn is_for_itself(&self, audience: &Audience, way: &RangeWay) -> bool {
        let gateway = |node: &Name| way.via.contains(node) || self.is_for_ranges_of(node, way);
        self.is_for(way, audience.class, audience.class) || audience.carrier.as_ref().is_some_and(gateway)
    }

    /// Whether the route to a range is for members of a class, who or behind whom (`class`) either may open
    /// anything at the other.
    fn is_for(&self, way: &RangeWay, member: ClassId, class: ClassId) -> bool {
        let is_on = || self.class(&member).is_some_and(|member| member.is_on(way.side));
        let near = || self.near.get(&class).is_some_and(|near| near.contains(&way.id));
        is_on() && (!self.policy.is_restricted() || near())
    }

    /// Whether the route to a range is for a gateway, so that what is behind it reaches that.
    fn is_for_ranges_of(&self, gateway: &Name, way: &RangeWay) -> bool {
        let Some(member) = self.class_of(gateway) else { return false };
        let behind =
            self.ways().ranges().filter(|(_, it)| it.egress != way.egress && it.via.contains(gateway));
        behind.map(|(_, it)| it).any(|it| self.is_for(way, member, it.id))
    }

    fn routes_of(&self, audience: &Audience) -> OrdMap<IpNet, Arc<Route>> {
        let carried = |way: &RangeWay| !self.is_for_itself(audience, way);
        let outside = self.reached_by(audience).filter_map(|(range, way)| {
            Some((*range, Arc::new(Route { carried: carried(way), ..way.route.clone()? })))
        });
        let mut routes: OrdMap<_, _> = outside.collect();
        for (range, way, around) in self.exceptions(audience) {
            let refused = || Arc::new(Route { via: None, class: way.id, carried: carried(around) });
            routes.entry(*range).or_insert_with(refused);
        }
        if !self.knows_by_parts(audience) {
            let via = match &audience.behind {
                Some(Behind::Relay(relay)) => self.ways().relay(relay).map(|way| &way.carrier),
                Some(Behind::Hub) | None => self.hub(),
            };
            if let Some(via) = via.filter(|via| self.has(via)) {
                let route =
                    Arc::new(Route { via: Some(via.clone()), class: ClassId::default(), carried: false });
                routes.extend(self.network.ranges().map(|range| (range, route.clone())));
            }
        }
        routes
    }

    /// The ranges that an audience does not reach and that lie in one which it does, or forwards to: by the rules
    /// of that one, which is the last of the three, their hosts would be judged.
    fn exceptions<'a>(
        &'a self,
        audience: &'a Audience,
    ) -> impl Iterator<Item = (&'a IpNet, &'a RangeWay, &'a RangeWay)> {
        let own = |way: &RangeWay| audience.carrier.as_ref().is_some_and(|node| way.via.contains(node));
        let forwarded = self.ways().ranges().filter(move |(_, way)| own(way));
        let wide = self.reached_by(audience).chain(forwarded);
        let wide: Vec<_> = wide.filter(|_| self.policy.is_restricted()).collect();
        let others = self.ways().ranges().filter(move |(_, way)| !own(way));
        others.filter_map(move |(range, way)| {
            let around = wide.iter().filter(|(around, _)| around.contains(range));
            let (_, nearest) = around.max_by_key(|(around, _)| around.prefix_len())?;
            (nearest.id != way.id).then_some((range, way, *nearest))
        })
    }

    fn forwards_of(&self, audience: &Audience) -> OrdMap<Name, Arc<Forward>> {
        let own = audience.carrier.iter().flat_map(|node| self.ways().forwards_of(node));
        own.map(|(egress, forward)| (egress.clone(), Arc::new(forward))).collect()
    }

    /// What may be opened at what runs no agent and is behind an audience's node.
    fn guarded_by(&self, audience: &Audience) -> OrdMap<ClassId, Arc<Guarded>> {
        let Some(node) = audience.carrier.as_ref().filter(|_| self.policy.is_restricted()) else {
            return OrdMap::new();
        };
        let clients = self.ways().served_by(node).filter(|through| matches!(through, Through::Ingress(_)));
        let loads: Vec<_> = clients.filter_map(|through| self.loads.get(&through)).collect();
        let ranges = self.ways().ranges().filter(|(_, way)| way.via.contains(node));
        let classes = loads.into_iter().flat_map(|loads| loads.keys().copied());
        let row = |class: ClassId| {
            let access = self.access.get(&class).into_iter().flatten();
            (class, Arc::new(access.map(|(from, access)| (*from, (**access).clone())).collect()))
        };
        classes.chain(ranges.map(|(_, way)| way.id)).map(row).collect()
    }
}

/// One map of all parts, built on the largest.
fn whole<V>(parts: Parts<V>) -> Entries<V> {
    let mut parts: Vec<_> = parts.into_values().collect();
    parts.sort_by_key(OrdMap::len);
    let mut all = parts.pop().unwrap_or_default();
    all.extend(parts.into_iter().flatten());
    all
}

/// What differs between the maps that two moments' parts make: at the cost of the parts that differ.
fn between<V: PartialEq>(before: &Parts<V>, after: &Parts<V>) -> Changes<Name, Arc<V>> {
    if let ([(class, before)], [(other, after)]) =
        (&*before.iter().collect::<Vec<_>>(), &*after.iter().collect::<Vec<_>>())
        && class == other
    {
        return Changes::between(before, after);
    }
    let nothing = OrdMap::new();
    let (mut put, mut lost) = (BTreeMap::new(), BTreeMap::new());
    let classes = before.keys().chain(after.keys().filter(|class| !before.contains_key(class)));
    for class in classes {
        let (before, after) = (before.get(class).unwrap_or(&nothing), after.get(class).unwrap_or(&nothing));
        let Changes { put: new, lost: gone } = Changes::between(before, after);
        put.extend(new);
        lost.extend(
            gone.into_iter().map(|name| (before.get(&name).cloned(), name)).map(|(was, name)| (name, was)),
        );
    }
    // What went from one part into another is there all the time.
    put.retain(|name, is| lost.remove(name).flatten().is_none_or(|was| was != *is));
    Changes { put: put.into_iter().collect(), lost: lost.into_keys().collect() }
}
