//! Who carries what for others: relays, nodes of an ingress, and gateways to ranges outside of the network.
//! Pure, from the declarations and from who is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::policy::{Class, Policy, Selected, Side};
use crate::access::ClassId;
use crate::attribute::Ref;
use crate::inventory::{Inventory, NodeId};
use crate::kinds::{Egress, ExternalClient, Ingress, Network, Node, Relay};
use crate::scalars::{InterfaceName, Name, NetworkName};
use crate::snapshot::Snapshot;
use crate::view::{Forward, Route};

/// The node that carries an egress (its name given), or a relay: the first of `via` that has joined and carries
/// what it should; absent: none does.
pub fn carrier<'a>(
    network: &NetworkName,
    via: &'a [Ref<Node>],
    egress: Option<&Name>,
    inventory: &Inventory,
) -> Option<&'a Name> {
    via.iter().map(|node| &node.name).find(|node| is_there(network, node, egress, inventory))
}

/// Whether a node has joined, and is not away from what it should carry: an egress (its name given), or anything
/// else.
pub fn is_there(network: &NetworkName, node: &Name, egress: Option<&Name>, inventory: &Inventory) -> bool {
    let id = NodeId::of(network, node);
    inventory.node(&id).is_some() && !inventory.is_away(&id, egress)
}

/// What carries a member's traffic, other than the hub.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Through {
    /// A relay, by its name.
    Relay(Name),
    /// An ingress, by its name.
    Ingress(Name),
    /// An egress, by its name: of a range behind it.
    Egress(Name),
}

/// Who carries what in a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ways {
    relays: BTreeMap<Name, RelayWay>,
    /// The node of each ingress.
    ingress: BTreeMap<Name, Name>,
    egress: BTreeMap<Name, EgressWay>,
    /// The ranges behind an egress, cut where a rule names a part of one.
    ranges: BTreeMap<IpNet, RangeWay>,
    /// The nodes that carry anything, or may, the hub among them.
    carrying: BTreeSet<Name>,
    /// The hub, and the nodes that relay: no relay carries them.
    never_relayed: BTreeSet<Name>,
}

/// A relay.
#[derive(Clone, Debug, PartialEq)]
pub struct RelayWay {
    /// The nodes that may carry it, in order of preference.
    pub via: Vec<Name>,
    /// The node that does; if none is there the first of them that has joined, else the first.
    pub carrier: Name,
    /// For whom.
    selected: Selected,
}

/// What a gateway forwards to.
#[derive(Clone, Debug, PartialEq)]
struct EgressWay {
    via: Vec<Name>,
    interface: Option<InterfaceName>,
    nat: bool,
}

/// A range behind an egress, or a part of one.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeWay {
    /// The egress.
    pub egress: Name,
    /// The range of it, as it is declared.
    pub whole: IpNet,
    /// The nodes that may carry it, in order of preference.
    pub via: Vec<Name>,
    /// What its addresses are judged as.
    pub class: Class,
    /// The id of that; in a network that is not restricted the one of every class.
    pub id: ClassId,
    /// Who gets the route; absent: every member.
    pub side: Option<Side>,
    /// How it is reached; absent: by no way of this network.
    pub route: Option<Route>,
}

impl Ways {
    /// Who carries what, given the rules.
    pub fn compile(
        name: &NetworkName,
        network: &Network,
        policy: &Policy,
        declared: &Snapshot,
        inventory: &Inventory,
    ) -> Self {
        let mut ways = Self::default();
        let names = |via: &[Ref<Node>]| via.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
        let joined = |node: &&Name| inventory.node(&NodeId::of(name, node)).is_some();
        for (id, relay) in declared.all_in::<Relay>(name) {
            let Relay { via, r#for } = &**relay;
            let nodes = names(via);
            let carrier = carrier(name, via, None, inventory).or_else(|| nodes.iter().find(joined));
            let carrier = carrier.or_else(|| nodes.first()).cloned();
            let Some(carrier) = carrier else { continue };
            let selected = Selected::by(r#for.iter(), name, declared);
            ways.never_relayed.extend(nodes.iter().cloned());
            ways.relays.insert(id.name.clone(), RelayWay { via: nodes, carrier, selected });
        }
        for (id, ingress) in declared.all_in::<Ingress>(name) {
            // What clients are given is for `nmplan client conf`.
            let Ingress { via, endpoint: _, pool: _, dns: _ } = &**ingress;
            ways.ingress.insert(id.name.clone(), via.name.clone());
        }
        let mut whole: BTreeMap<IpNet, Name> = BTreeMap::new();
        for (id, egress) in declared.all_in::<Egress>(name) {
            let Egress { via, ranges, nat, interface, r#for: _, fallback: _ } = &**egress;
            let way = EgressWay { via: names(via), interface: interface.clone(), nat: *nat };
            ways.egress.insert(id.name.clone(), way);
            // The rules refuse the same range twice.
            for range in &**ranges {
                whole.entry(range.net()).or_insert_with(|| id.name.clone());
            }
        }
        for (range, (of, whole)) in cut(whole, network, policy) {
            let Some(egress) = declared.named::<Egress>(name, &of) else { continue };
            let class = policy.class_of_range(&range, &whole);
            let id = if policy.is_restricted() { class.id() } else { ClassId::default() };
            let route = route(name, (&of, egress), &whole, id, inventory);
            let side = egress.r#for.as_ref().and_then(|selectors| Policy::side(selectors));
            let way = RangeWay { via: names(&egress.via), egress: of, whole, class, id, side, route };
            ways.ranges.insert(range, way);
        }
        ways.never_relayed.extend(network.hub.iter().map(|hub| hub.name.clone()));
        ways.carrying.extend(ways.never_relayed.iter().chain(ways.ingress.values()).cloned());
        ways.carrying.extend(ways.egress.values().flat_map(|way| &way.via).cloned());
        ways
    }

    /// Whether nobody is carried, other than by a hub.
    pub fn is_empty(&self) -> bool {
        self.relays.is_empty() && self.ingress.is_empty() && self.egress.is_empty()
    }

    /// Whether any relay is declared.
    pub fn has_relays(&self) -> bool {
        !self.relays.is_empty()
    }

    /// A relay.
    pub fn relay(&self, name: &Name) -> Option<&RelayWay> {
        self.relays.get(name)
    }

    /// Every relay, by name.
    pub fn relays(&self) -> impl Iterator<Item = (&Name, &RelayWay)> {
        self.relays.iter()
    }

    /// The ranges outside of the network, each with how it is reached.
    pub fn ranges(&self) -> impl Iterator<Item = (&IpNet, &RangeWay)> {
        self.ranges.iter()
    }

    /// How a range is reached, or that of which it is a part: the one with the longest prefix; absent: it is behind
    /// no egress.
    pub fn around(&self, part: &IpNet) -> Option<&RangeWay> {
        let around = self.ranges.iter().filter(|(range, _)| range.contains(part));
        around.max_by_key(|(range, _)| range.prefix_len()).map(|(_, way)| way)
    }

    /// Whether what goes to a range, or to that of which it is a part, leaves with its gateway's own address.
    pub fn has_nat(&self, range: &IpNet) -> bool {
        let egress = self.around(range).and_then(|way| self.egress.get(&way.egress));
        egress.is_some_and(|way| way.nat)
    }

    /// Whether a node may carry anything for others.
    pub fn carries(&self, node: &Name) -> bool {
        self.carrying.contains(node)
    }

    /// The relay that carries a node's traffic, the first by name; absent: none does.
    pub fn relay_of(
        &self,
        node: &Name,
        tags: &BTreeSet<Name>,
        addresses: &BTreeSet<IpAddr>,
    ) -> Option<&Name> {
        if self.never_relayed.contains(node) {
            return None;
        }
        let holds = |way: &RelayWay| way.selected.holds(node, tags, addresses);
        self.relays.iter().find(|(_, way)| holds(way)).map(|(name, _)| name)
    }

    /// The node that carries what goes through a relay or an ingress.
    pub fn carrier_of(&self, through: &Through) -> Option<&Name> {
        match through {
            Through::Relay(name) => self.relays.get(name).map(|way| &way.carrier),
            Through::Ingress(name) => self.ingress.get(name),
            // Each of its ranges has its route.
            Through::Egress(_) => None,
        }
    }

    /// The nodes that may carry what goes through a relay, an ingress or an egress.
    pub fn candidates_of(&self, through: &Through) -> &[Name] {
        match through {
            Through::Relay(name) => self.relays.get(name).map_or(&[], |way| &way.via),
            Through::Ingress(name) => self.ingress.get(name).map_or(&[], std::slice::from_ref),
            Through::Egress(name) => self.egress.get(name).map_or(&[], |way| &way.via),
        }
    }

    /// The relays and ingress that a node carries, or may carry.
    pub fn served_by<'a>(&'a self, node: &'a Name) -> impl Iterator<Item = Through> + 'a {
        let relays = self.relays.iter().filter(move |(_, way)| way.via.contains(node));
        let relays = relays.map(|(name, _)| Through::Relay(name.clone()));
        let ingress = self.ingress.iter().filter(move |(_, of)| *of == node);
        relays.chain(ingress.map(|(name, _)| Through::Ingress(name.clone())))
    }

    /// What a node forwards to, or may, by egress.
    pub fn forwards_of(&self, node: &Name) -> impl Iterator<Item = (&Name, Forward)> {
        let own = self.egress.iter().filter(|(_, way)| way.via.contains(node));
        own.map(|(name, EgressWay { via: _, interface, nat })| {
            let ranges = self.ranges.iter().filter(|(_, way)| way.egress == *name);
            let ranges = ranges.map(|(range, way)| (*range, way.id)).collect();
            (name, Forward { ranges, interface: interface.clone(), nat: *nat })
        })
    }
}

impl RangeWay {
    /// Whether it is the way to the internet, or a part of it: members reach what is there, and nobody from there
    /// reaches them.
    pub fn is_internet(&self) -> bool {
        self.whole.prefix_len() == 0
    }
}

impl RelayWay {
    /// Whether it is for the same nodes as another, which may carry them likewise.
    pub fn is_for_the_same_as(&self, other: &Self) -> bool {
        (&self.via, &self.selected) == (&other.via, &other.selected)
    }
}

/// What carries an external client's traffic.
pub fn through(client: &ExternalClient) -> Through {
    Through::Ingress(client.via.name.clone())
}

/// The ranges with the parts of them that anything selects, each with its egress and the range that it is of.
fn cut(whole: BTreeMap<IpNet, Name>, network: &Network, policy: &Policy) -> BTreeMap<IpNet, (Name, IpNet)> {
    let mut parts: BTreeMap<_, _> =
        whole.iter().map(|(range, egress)| (*range, (egress.clone(), *range))).collect();
    // Members are selected by ranges inside of the network's own.
    let outside =
        |range: &&IpNet| range.prefix_len() > 0 && !network.ranges().any(|own| own.contains(*range));
    for selected in policy.selected_ranges().filter(outside) {
        let around = whole.iter().filter(|(range, _)| range.contains(selected));
        if let Some((range, egress)) = around.max_by_key(|(range, _)| range.prefix_len()) {
            parts.entry(*selected).or_insert_with(|| (egress.clone(), *range));
        }
    }
    parts
}

/// How a range of an egress, or a part of it, is reached; absent: by no way of the network.
fn route(
    network: &NetworkName,
    (name, egress): (&Name, &Arc<Egress>),
    whole: &IpNet,
    class: ClassId,
    inventory: &Inventory,
) -> Option<Route> {
    if let Some(carrier) = carrier(network, &egress.via, Some(name), inventory) {
        return Some(Route { via: Some(carrier.clone()), class, carried: false });
    }
    // Parts of a way to everything are carried and refused with it.
    if whole.prefix_len() == 0 {
        let refused = !egress.fallback && inventory.was_carried(&NodeId::of(network, name));
        return refused.then_some(Route { via: None, class, carried: false });
    }
    // A gateway that the server does not hear of may carry packets all the same.
    let joined = egress.via.iter().find(|node| inventory.node(&NodeId::of(network, &node.name)).is_some())?;
    Some(Route { via: Some(joined.name.clone()), class, carried: false })
}
