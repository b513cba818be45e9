//! Who carries traffic for whom, and what a change makes of it: hubs, relays, the nodes of an ingress, and
//! gateways. Pure, on two moments of a network.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mesh;
use super::reach::Moment;
use super::ways::{self, Through};
use crate::attribute::Ref;
use crate::inventory::NodeId;
use crate::kinds::{Egress, Ingress, Node, Relay};
use crate::scalars::{Name, NetworkName};
use crate::snapshot::ResourceId;

/// How many members are named; more are only counted.
const NAMED: usize = 3;

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// All that members send and get.
    Everything,
    /// All that external clients send and get.
    Clients,
    /// What goes to ranges outside of the network, and comes from there.
    Ranges,
}

/// Another node carries something, or a node carries something else, or it does for others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct CarryingChange {
    /// What says so: an egress, an ingress, a relay; the network itself, of its hub.
    pub id: ResourceId,
    /// What is carried.
    pub traffic: Traffic,
    /// Before; null: it was not declared.
    pub before: Option<Carrying>,
    /// Afterwards; null: it is not declared any more.
    pub after: Option<Carrying>,
}

/// Who carries something for whom, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Carrying {
    /// The node that carries it; null: none does.
    pub carrier: Option<Name>,
    /// The nodes that may, in order of preference.
    pub candidates: Vec<Name>,
    /// Those of them that have not joined.
    pub awaited: Vec<Name>,
    /// Those of them that have joined and do not carry it at present, as far as the server knows.
    pub away: Vec<Name>,
    /// The ranges that they forward to; empty unless it is traffic of ranges.
    #[schemars(with = "Vec<String>")]
    pub ranges: BTreeSet<IpNet>,
    /// Whether what leaves there has the carrier's address as its source; null unless it is traffic of ranges.
    pub nat: Option<bool>,
    /// Whether what goes to the internet leaves by the members' own ways while none carries it.
    #[serde(default)]
    pub fallback: bool,
    /// How many nodes it is carried for: those that have joined.
    pub nodes: u64,
    /// How many external clients it is carried for.
    pub clients: u64,
    /// The first of these members, by name: at most 3.
    pub members: Vec<Name>,
}

/// What a node does for something that is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// It carries it.
    Carries,
    /// It carries it while those before it are away.
    StandsBy,
}

impl Carrying {
    /// What a node does for it; nothing if it is not one of those that may carry it.
    pub fn part_of(&self, node: &Name) -> Option<Part> {
        if self.carrier.as_ref() == Some(node) {
            return Some(Part::Carries);
        }
        self.candidates.contains(node).then_some(Part::StandsBy)
    }

    /// Whether at least two nodes are there that may carry it.
    pub fn has_another(&self) -> bool {
        self.candidates.len() > self.awaited.len() + self.away.len() + 1
    }

    /// Whether ranges are among it that hold every address of a family: the way to the internet.
    pub fn is_default_route(&self) -> bool {
        self.ranges.iter().any(|range| range.prefix_len() == 0)
    }

    fn carries_as(&self, other: &Self) -> bool {
        let what = |it: &Self| (it.carrier.clone(), it.candidates.clone(), it.ranges.clone(), it.nat);
        what(self) == what(other)
    }
}

/// What is carried, with all members that it is carried for.
struct State {
    traffic: Traffic,
    carrying: Carrying,
    members: BTreeSet<Name>,
}

/// What differs of who carries traffic for whom. That members come or go makes no difference of its own.
pub fn between(network: &NetworkName, before: Moment<'_>, after: Moment<'_>) -> Vec<CarryingChange> {
    let (mut was, mut is) = (states(network, before), states(network, after));
    let is_member =
        |moment: Moment<'_>, name: &Name| moment.mesh.is_some_and(|mesh| mesh.class_of(name).is_some());
    let stays = |name: &Name| is_member(before, name) && is_member(after, name);
    let ids: BTreeSet<ResourceId> = was.keys().chain(is.keys()).cloned().collect();
    let change = |id: ResourceId| {
        let (old, new) = (was.remove(&id), is.remove(&id));
        if let (Some(old), Some(new)) = (&old, &new) {
            let mut moved = old.members.symmetric_difference(&new.members);
            if old.carrying.carries_as(&new.carrying) && !moved.any(stays) {
                return None;
            }
        }
        let traffic = new.as_ref().or(old.as_ref())?.traffic;
        let carrying = |state: Option<State>| state.map(|state| state.carrying);
        Some(CarryingChange { id, traffic, before: carrying(old), after: carrying(new) })
    };
    ids.into_iter().filter_map(change).collect()
}

fn states(network: &NetworkName, moment: Moment<'_>) -> BTreeMap<ResourceId, State> {
    let mut states = BTreeMap::new();
    let Moment { declared, mesh, .. } = moment;
    let (Some(mesh), Some(settings)) = (mesh, declared.network(network)) else { return states };
    let names = || mesh.classes().flat_map(|(_, members)| members.keys());
    let state = |traffic, egress: Option<(&Name, &Egress)>, via: &[Ref<Node>], members: BTreeSet<Name>| {
        State { traffic, carrying: carrying(network, moment, mesh, egress, via, &members), members }
    };
    if let Some(hub) = &settings.hub {
        let others = names().filter(|name| **name != hub.name && mesh.has(name)).cloned().collect();
        let via = std::slice::from_ref(hub);
        states.insert(ResourceId::of_network(network.clone()), state(Traffic::Everything, None, via, others));
    }
    let mut carried: BTreeMap<&Through, BTreeSet<Name>> = BTreeMap::new();
    for (name, through) in names().filter_map(|name| Some((name, mesh.through(name)?))) {
        carried.entry(through).or_default().insert(name.clone());
    }
    let mut carried_by = |through: Through| carried.remove(&through).unwrap_or_default();
    for (id, relay) in declared.all_in::<Relay>(network) {
        let members = carried_by(Through::Relay(id.name.clone()));
        states.insert(id.clone(), state(Traffic::Everything, None, &relay.via, members));
    }
    for (id, ingress) in declared.all_in::<Ingress>(network) {
        let members = carried_by(Through::Ingress(id.name.clone()));
        let via = std::slice::from_ref(&ingress.via);
        states.insert(id.clone(), state(Traffic::Clients, None, via, members));
    }
    for (id, egress) in declared.all_in::<Egress>(network) {
        let way = mesh.ways().ranges().find(|(_, way)| way.egress == id.name).map(|(_, way)| way);
        let on = mesh.classes().filter(|(class, _)| way.is_some_and(|way| class.is_on(way.side)));
        let members = on.flat_map(|(_, members)| members.keys());
        let members = members.filter(|name| !egress.via.iter().any(|node| node.name == **name)).cloned();
        let members = members.collect();
        states.insert(id.clone(), state(Traffic::Ranges, Some((&id.name, &**egress)), &egress.via, members));
    }
    states
}

fn carrying(
    network: &NetworkName,
    moment: Moment<'_>,
    mesh: &Mesh,
    egress: Option<(&Name, &Egress)>,
    via: &[Ref<Node>],
    members: &BTreeSet<Name>,
) -> Carrying {
    let candidates: Vec<Name> = via.iter().map(|node| node.name.clone()).collect();
    let name = egress.map(|(name, _)| name);
    let is_away = |node: &&Name| moment.inventory.is_away(&NodeId::of(network, node), name);
    let (joined, awaited): (Vec<&Name>, Vec<&Name>) = candidates.iter().partition(|node| mesh.has(node));
    let away = joined.into_iter().filter(is_away).cloned().collect();
    let awaited = awaited.into_iter().cloned().collect();
    let nodes = members.iter().filter(|name| mesh.has(name)).count() as u64;
    Carrying {
        carrier: ways::carrier(network, via, name, moment.inventory).cloned(),
        awaited,
        away,
        ranges: egress.into_iter().flat_map(|(_, egress)| egress.ranges.iter().map(|it| it.net())).collect(),
        nat: egress.map(|(_, egress)| egress.nat),
        fallback: egress.is_some_and(|(_, egress)| egress.fallback),
        nodes,
        clients: members.len() as u64 - nodes,
        members: members.iter().take(NAMED).cloned().collect(),
        candidates,
    }
}
