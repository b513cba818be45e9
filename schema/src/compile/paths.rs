//! Which nodes packets pass on their way, and whether there is one. Pure, on what a network distinguishes of
//! its members and ranges.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use super::ways::{Through, Ways};
use crate::scalars::Name;

/// A member, or a range behind a gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A node or an external client.
    Member(Name),
    /// A range, or a part of one.
    Range(IpNet),
    /// Whoever joins with the key of that name: one of several who may, by a number.
    Joins(Name, u32),
}

/// As files write it.
impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(name) => name.fmt(f),
            Self::Range(range) => range.fmt(f),
            Self::Joins(key, _) => write!(f, "whoever joins with {key}"),
        }
    }
}

/// Where somebody is in a network: packets of those of one place take the same ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The node itself, if it carries traffic of others; absent: it does not, or it is no node.
    pub carrier: Option<Name>,
    /// What carries its traffic; absent: nothing but the hub, if there is one.
    pub through: Option<Through>,
}

impl Place {
    /// Whether what two open at each other goes outside of the network: one may be the gateway of the other, or both
    /// may have the same gateway.
    pub fn is_local_to(&self, other: &Self, ways: &Ways) -> bool {
        let theirs = other.gateways(ways);
        let is_outer = |place: &Self| matches!(place.through, Some(Through::Egress(_)));
        (is_outer(self) || is_outer(other)) && self.gateways(ways).iter().any(|node| theirs.contains(node))
    }

    /// The nodes that may be the gateway of a range; of a member that carries traffic of others: itself.
    fn gateways<'p>(&'p self, ways: &'p Ways) -> &'p [Name] {
        match &self.through {
            Some(through @ Through::Egress(_)) => ways.candidates_of(through),
            Some(Through::Relay(_) | Through::Ingress(_)) | None => self.carrier.as_slice(),
        }
    }
}

/// Whether a node carries what it should.
type Presence<'a> = dyn Fn(&Name, Option<&Name>) -> bool + 'a;

/// The ways of a network while some nodes are there.
pub struct Paths<'a> {
    ways: &'a Ways,
    hub: Option<&'a Name>,
    /// What carries the nodes that carry others.
    carriers: BTreeMap<Name, Option<Through>>,
    /// Whether a node carries what it should; of an egress (its name given) or of everything else.
    is_there: Box<Presence<'a>>,
}

impl<'a> Paths<'a> {
    /// The ways of a network, given what carries the nodes that carry others, and which of these are there.
    pub fn new(
        ways: &'a Ways,
        hub: Option<&'a Name>,
        carriers: BTreeMap<Name, Option<Through>>,
        is_there: impl Fn(&Name, Option<&Name>) -> bool + 'a,
    ) -> Self {
        Self { ways, hub, carriers, is_there: Box::new(is_there) }
    }

    /// The nodes that pass packets on between two places, in order; absent: there is no way, since one that
    /// would is not there.
    pub fn between(&self, from: &Place, to: &Place) -> Option<Vec<Name>> {
        let (out, back) = (self.chain(from), self.chain(to));
        // Each end, and what carries it, outwards; the two chains meet as early as they can.
        for (at, one) in out.iter().enumerate() {
            for (place, other) in back.iter().enumerate() {
                let same = one.carrier.is_some() && one.carrier == other.carrier;
                if !same && !self.are_joined(one, other) {
                    continue;
                }
                let ahead = out[1..=at].iter();
                let last = if same && at > 0 { place } else { place + 1 };
                let behind = back[1.min(last)..last].iter().rev();
                let between = ahead.chain(behind).filter_map(|place| place.carrier.clone());
                let ends = [&from.carrier, &to.carrier];
                return Some(between.filter(|node| !ends.contains(&&Some(node.clone()))).collect());
            }
        }
        None
    }

    /// The node that carries what goes through a relay, an ingress or an egress; absent: none of those that may is
    /// there.
    pub fn carrier_of(&self, through: &Through) -> Option<&'a Name> {
        let egress = match through {
            Through::Egress(name) => Some(name),
            Through::Relay(_) | Through::Ingress(_) => None,
        };
        let mut candidates = self.ways.candidates_of(through).iter();
        candidates.find(|node| (self.is_there)(node, egress))
    }

    /// A place, the node that carries its traffic, the one that carries that one's, and so on: as far as they are
    /// there, which suffices for what is on this side of the first that is not.
    fn chain(&self, place: &Place) -> Vec<Place> {
        let mut chain = vec![place.clone()];
        while let Some(next) = chain.last().and_then(|last| self.next(last)) {
            let through = self.carriers.get(next).cloned().flatten();
            chain.push(Place { carrier: Some(next.clone()), through });
        }
        chain
    }

    /// The node that carries the traffic of a place; absent: none does, or it is not there.
    fn next(&self, place: &Place) -> Option<&'a Name> {
        match &place.through {
            Some(through) => self.carrier_of(through),
            None => self.hub.filter(|hub| place.carrier.as_ref() != Some(hub) && (self.is_there)(hub, None)),
        }
    }

    /// Whether packets go from one place to another directly, neither of which carries the other.
    fn are_joined(&self, one: &Place, other: &Place) -> bool {
        let open = |place: &Place| {
            place.through.is_none() && (self.hub.is_none() || place.carrier.as_ref() == self.hub)
        };
        open(one) && open(other)
    }
}
