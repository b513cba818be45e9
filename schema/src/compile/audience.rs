//! What the nodes of a network are sent: Views, and what leads from one to the next.
//!
//! Nodes of one [`Audience`] are sent the same of everything but themselves, so that a difference is computed
//! and encoded once for all of them; [`Mesh::step`] says which those are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use super::Mesh;
use crate::access::{Access, ClassId};
use crate::scalars::Name;
use crate::view::{Changes, Counts, Peer, Resolution, Route, View, ViewDelta};

/// Which nodes are sent the same: nodes of one audience are sent the same of everything but themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// Nodes of a class that reach the others directly.
    Class(ClassId),
    /// Nodes of a class that reach the others through the hub.
    Spoke(ClassId),
    /// The hub, which has all others as peers.
    Hub(ClassId),
}

impl Audience {
    /// The class of its nodes.
    pub fn class(self) -> ClassId {
        match self {
            Self::Class(class) | Self::Spoke(class) | Self::Hub(class) => class,
        }
    }
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

type Entries<V> = OrdMap<Name, Arc<V>>;

/// The maps that one map of a View is made of, by the class that they are about; absent: about none. A name
/// is in one of them at most.
type Parts<V> = BTreeMap<Option<ClassId>, Entries<V>>;

impl Mesh {
    /// Which audience a node belongs to; that of nodes on no side of a rule if it has not joined.
    pub fn audience(&self, node: &Name) -> Audience {
        let class = self.class_of(node).unwrap_or_default();
        match self.hub() {
            None => Audience::Class(class),
            Some(hub) if hub == node => Audience::Hub(class),
            Some(_) => Audience::Spoke(class),
        }
    }

    /// What a node is sent; nothing if it has not joined.
    pub fn view(&self, node: &Name) -> Option<View> {
        let interface = (**self.interfaces.get(node)?).clone();
        let audience = self.audience(node);
        let mut peers = whole(self.peers_of(audience));
        peers.remove(node);
        Some(View {
            network: self.name.clone(),
            node: node.clone(),
            interface,
            peers,
            access: self.access_at(audience),
            routes: self.routes_of(audience),
            forwards: OrdMap::new(),
            guarded: OrdMap::new(),
            names: whole(self.names_of(audience, self.own_names(node))),
        })
    }

    /// The View of a node with only those of its peers that are named here or that carry traffic for it, and
    /// without names: at the cost of what is named.
    pub fn part(&self, node: &Name, named: &BTreeSet<&Name>) -> Option<View> {
        let interface = (**self.interfaces.get(node)?).clone();
        let audience = self.audience(node);
        let parts = self.peers_of(audience);
        let peer = |name: &Name| {
            let of_class = parts.get(&self.class_of(name)).and_then(|part| part.get(name));
            Some((name.clone(), of_class.or_else(|| parts.get(&None)?.get(name))?.clone()))
        };
        let carriers = self.hub().filter(|_| matches!(audience, Audience::Spoke(_)));
        let peers = named.iter().copied().chain(carriers).filter(|name| *name != node).filter_map(peer);
        Some(View {
            network: self.name.clone(),
            node: node.clone(),
            interface,
            peers: peers.collect(),
            access: self.access_at(audience),
            routes: self.routes_of(audience),
            forwards: OrdMap::new(),
            guarded: OrdMap::new(),
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
            && earlier.knows_its_own(from) == self.knows_its_own(to)
            && had.is_empty()
            && has.is_empty();
        if shares {
            return Some(ViewStep::Shared(to));
        }
        let mut delta = self.changes(earlier, (from, had), (to, has));
        delta.interface = (before != interface).then(|| (**interface).clone());
        delta.peers.put.retain(|(name, _)| name != node);
        delta.peers.lost.retain(|name| name != node);
        Some(ViewStep::Own(Box::new(delta)))
    }

    /// What every node of an audience is sent for which [`Mesh::step`] returns the shared step.
    pub fn delta(&self, earlier: &Self, audience: Audience) -> ViewDelta {
        self.changes(earlier, (audience, OrdMap::new()), (audience, OrdMap::new()))
    }

    /// How much the View of a node holds; nodes that share a step have the same.
    pub fn counts(&self, node: &Name) -> Counts {
        fn sum<V>(parts: &Parts<V>) -> usize {
            parts.values().map(OrdMap::len).sum()
        }
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        let audience = self.audience(node);
        let peers = self.peers_of(audience);
        // Its own class is among those that it may know if its members may know each other.
        let itself = usize::from(peers.contains_key(&self.class_of(node)));
        Counts {
            peers: count(sum(&peers) - itself),
            access: count(self.access_at(audience).len()),
            routes: count(self.routes_of(audience).len()),
            forwards: 0,
            guarded: 0,
            names: count(sum(&self.names_of(audience, self.own_names(node)))),
        }
    }

    /// Whether a node has another one as a peer.
    pub fn knows(&self, node: &Name, other: &Name) -> bool {
        node != other
            && self.has(node)
            && self.peers_of(self.audience(node)).values().any(|part| part.contains_key(other))
    }

    fn changes(
        &self,
        earlier: &Self,
        (from, had): (Audience, Entries<Resolution>),
        (to, has): (Audience, Entries<Resolution>),
    ) -> ViewDelta {
        ViewDelta {
            interface: None,
            peers: between(&earlier.peers_of(from), &self.peers_of(to)),
            access: Changes::between(&earlier.access_at(from), &self.access_at(to)),
            routes: Changes::between(&earlier.routes_of(from), &self.routes_of(to)),
            forwards: Changes::default(),
            guarded: Changes::default(),
            names: between(&earlier.names_of(from, had), &self.names_of(to, has)),
        }
    }

    /// The classes that members of one may know: those that may open something at it, or it at them.
    fn known_to(&self, class: ClassId) -> Vec<ClassId> {
        if !self.policy.is_restricted() {
            return vec![ClassId::default()];
        }
        self.near.get(&class).into_iter().flatten().copied().collect()
    }

    /// Whether the nodes of an audience have each other as peers.
    fn knows_its_own(&self, audience: Audience) -> bool {
        let class = audience.class();
        match audience {
            Audience::Hub(_) => true,
            Audience::Class(_) | Audience::Spoke(_) if self.policy.is_restricted() => {
                self.near.get(&class).is_some_and(|near| near.contains(&class))
            }
            Audience::Class(_) => true,
            Audience::Spoke(_) => false,
        }
    }

    fn peers_of(&self, audience: Audience) -> Parts<Peer> {
        let part = |class: ClassId, of: &super::ByClass<Peer>| Some((Some(class), of.get(&class)?.clone()));
        match audience {
            Audience::Class(class) => {
                self.known_to(class).into_iter().filter_map(|class| part(class, &self.members)).collect()
            }
            Audience::Hub(_) => self.members.keys().filter_map(|class| part(*class, &self.members)).collect(),
            Audience::Spoke(_) if !self.policy.is_restricted() => {
                let hub = self.hub().and_then(|hub| Some((hub.clone(), self.peer(hub)?.clone())));
                BTreeMap::from([(None, hub.into_iter().collect())])
            }
            Audience::Spoke(class) => {
                let known = self.known_to(class);
                let mut parts: Parts<Peer> =
                    known.into_iter().filter_map(|class| part(class, &self.carried)).collect();
                // The way to the others leads through the hub, also for those that may not talk to it.
                if let Some((hub, peer)) = self.hub().and_then(|hub| Some((hub, self.peer(hub)?)))
                    && !parts.contains_key(&Some(peer.class))
                {
                    let unnamed = Peer { named: false, ..(**peer).clone() };
                    parts.insert(None, [(hub.clone(), Arc::new(unnamed))].into_iter().collect());
                }
                parts
            }
        }
    }

    fn names_of(&self, audience: Audience, own: Entries<Resolution>) -> Parts<Resolution> {
        let mut parts = BTreeMap::from([(None, self.names.clone())]);
        // The hub has all nodes as peers, and so their names.
        let known = match audience {
            Audience::Hub(_) => self.names_of.keys().copied().collect(),
            Audience::Class(class) | Audience::Spoke(class) => self.known_to(class),
        };
        let names = |class: ClassId| Some((Some(class), self.names_of.get(&class)?.clone()));
        parts.extend(known.into_iter().filter_map(names));
        if !own.is_empty() {
            parts.insert(Some(audience.class()), own);
        }
        parts
    }

    /// The names that lead to a node itself, where others of its class may not know it.
    fn own_names(&self, node: &Name) -> Entries<Resolution> {
        let class = self.class_of(node).unwrap_or_default();
        let Some(names) = self.names_of.get(&class) else { return OrdMap::new() };
        let others_know = self.knows_its_own(self.audience(node));
        let Some(peer) = self.peer(node).filter(|_| !others_know) else { return OrdMap::new() };
        // An entry of the node's name leads elsewhere, and what leads to that entry does too.
        let itself = Resolution::Addresses(peer.addresses.clone());
        let leading = self.leading_to(std::iter::once(node)).into_iter();
        let named = leading.filter_map(|name| Some((name.clone(), names.get(&name)?.clone())));
        named.filter(|(_, resolution)| **resolution == itself).collect()
    }

    fn access_at(&self, audience: Audience) -> OrdMap<ClassId, Arc<Access>> {
        self.access.get(&audience.class()).cloned().unwrap_or_default()
    }

    fn routes_of(&self, audience: Audience) -> OrdMap<IpNet, Arc<Route>> {
        match audience {
            Audience::Class(_) | Audience::Hub(_) => OrdMap::new(),
            Audience::Spoke(_) => self.routes.clone(),
        }
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
