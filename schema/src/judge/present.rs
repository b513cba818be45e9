//! Whom members and hosts behind gateways reach at present: with those that have joined, without those that are
//! away, and by the ways that packets take meanwhile.
//!
//! Tests are judged as if all were there that are declared; this is what must hold in between. Start at
//! [`Present`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Alike, Distinguished};
use crate::access::Access;
use crate::compile::members::Member;
use crate::compile::paths::{Party, Paths};
use crate::compile::policy::Class;
use crate::compile::ways::{Through, is_there};
use crate::inventory::Inventory;
use crate::scalars::{Name, NetworkName, Selector};
use crate::snapshot::{ResourceId, Snapshot};

/// A network as it is.
pub struct Present<'a> {
    all: Distinguished<'a>,
    inventory: &'a Inventory,
    /// The place of each party among those that are judged alike.
    places: BTreeMap<Party, usize>,
}

/// What one party may open at another, and how packets get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// What rules let it open.
    pub opens: Access,
    /// Each rule that does, with what it gives; none in a network without rules.
    pub rules: Vec<(ResourceId, Access)>,
    /// The nodes that pass packets on, in order; absent: there is no way at present.
    pub via: Option<Vec<Name>>,
    /// The same once everybody is there who is declared.
    pub once_all: Option<Vec<Name>>,
}

impl Passage {
    /// Whether there is no way only because somebody is not there.
    pub fn is_lost(&self) -> bool {
        self.via.is_none() && self.once_all.is_some()
    }
}

impl<'a> Present<'a> {
    /// A network with these declarations, of which the server knows this; nothing if it is not declared.
    pub fn of(network: &'a NetworkName, declared: &Snapshot, inventory: &'a Inventory) -> Option<Self> {
        let nobody = std::iter::empty::<&std::collections::BTreeSet<Selector>>();
        let all = Distinguished::of(network, declared, inventory, nobody)?;
        let numbered = all.classes.iter().enumerate();
        let places = numbered.flat_map(|(at, alike)| alike.parties.iter().map(move |it| (it.clone(), at)));
        let places = places.collect();
        Some(Self { all, inventory, places })
    }

    /// Whether members may open only what a rule says.
    pub fn is_restricted(&self) -> bool {
        self.all.policy.is_restricted()
    }

    /// A member: one that has joined, is declared, or is let in.
    pub fn member(&self, name: &Name) -> Option<&Member> {
        self.all.members.get(name)
    }

    /// The range, or the part of one, that an address behind gateways is judged as; absent: it is behind none.
    pub fn range_of(&self, address: IpAddr) -> Option<IpNet> {
        let ranges = self.all.ways.ranges().map(|(range, _)| *range);
        ranges.filter(|range| range.contains(&address)).max_by_key(IpNet::prefix_len)
    }

    /// What a party is judged as, and what carries its traffic: those for whom both are the same may open the
    /// same. Absent: it is no party of the network.
    pub fn standing(&self, party: &Party) -> Option<(&Class, Option<&Through>)> {
        let alike = self.alike(party)?;
        Some((&alike.class, alike.at.place.through.as_ref()))
    }

    /// What one party may open at another. Absent: packets between the two, if any, are outside of the network.
    pub fn between(&self, from: &Party, to: &Party) -> Option<Passage> {
        let (one, other) = (self.alike(from)?, self.alike(to)?);
        if from == to || one.at.place.is_local_to(&other.at.place, &self.all.ways) {
            return None;
        }
        let (network, inventory) = (self.all.network, self.inventory);
        let now = self.all.paths_with(move |node, egress| is_there(network, node, egress, inventory));
        let way = |paths: &Paths<'_>| {
            let is_free = self.all.obstacle(one, other, paths).is_none();
            is_free.then(|| paths.between(&one.at.place, &other.at.place)).flatten()
        };
        let opens = self.all.opens(one, other);
        let applying = self.all.policy.applying(&one.standing, &other.standing);
        let rules = applying.map(|(rule, gives)| (rule.clone(), gives.clone())).collect();
        Some(Passage { opens, rules, via: way(&now), once_all: way(&self.all.paths(None)) })
    }

    fn alike(&self, party: &Party) -> Option<&Alike> {
        self.all.classes.get(*self.places.get(party)?)
    }
}
