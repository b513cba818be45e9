//! Which members a network's rules distinguish, and what they may open at each other. Pure, and about no host
//! in particular.
//!
//! What a rule names as `from` or as `to` is a [`Side`]; a [`Class`] is the set of sides that a member is on,
//! so that members of one class are judged alike. Both are known by what they hold and not by a number: the
//! same declarations lead to the same classes, however they came about. A side is what a file names, groups
//! by their names: so a group that changes moves those members alone that it gains or loses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use ipnet::IpNet;

use crate::access::{Access, ClassId};
use crate::kinds::{Acl, Allow, Group, Network};
use crate::scalars::{Name, NetworkName, Selector};
use crate::snapshot::Snapshot;

/// Selectors that a rule names together, by a digest of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side(ClassId);

impl Side {
    /// Absent: every member, since one of them is `*`.
    fn of(selectors: &BTreeSet<Selector>) -> Option<Self> {
        if selectors.contains(&Selector::All) {
            return None;
        }
        let text: Vec<_> = selectors.iter().map(ToString::to_string).collect();
        Some(Self(ClassId::of(text.join(" ").as_bytes())))
    }
}

/// Members that the rules of a network do not distinguish: the sides that they are on. The default is on
/// none, as every member is of a network without rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(BTreeSet<Side>);

impl Class {
    /// Its identity: equal classes have equal ones.
    pub fn id(&self) -> ClassId {
        if self.0.is_empty() {
            return ClassId::default();
        }
        let sides: Vec<u8> = self.0.iter().flat_map(|Side(id)| id.0).collect();
        ClassId::of(&sides)
    }
}

/// A rule as it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// Absent: every member.
    from: Option<Side>,
    /// Absent: every member.
    to: Option<Side>,
    access: Arc<Access>,
}

/// The rules of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether members may open only what a rule says; otherwise everything.
    restricted: bool,
    rules: BTreeMap<Name, Rule>,
    /// The sides that a member is on by its name.
    names: BTreeMap<Name, BTreeSet<Side>>,
    /// The sides that a member is on by a tag.
    tags: BTreeMap<Name, BTreeSet<Side>>,
    /// The sides that a member is on by an address.
    ranges: BTreeMap<IpNet, BTreeSet<Side>>,
}

/// What puts members on other sides than before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Members of these names.
    pub names: BTreeSet<Name>,
    /// Members with these tags.
    pub tags: BTreeSet<Name>,
    /// Members with addresses in these ranges.
    pub ranges: BTreeSet<IpNet>,
}

/// The rules that a class is on one or the other side of, by their places in the order of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    from: FixedBitSet,
    to: FixedBitSet,
}

impl Policy {
    /// The rules of a network as it is declared.
    pub fn compile(name: &NetworkName, network: &Network, declared: &Snapshot) -> Self {
        let restricted = network.acl == Acl::Deny;
        let mut policy = Self {
            restricted,
            rules: BTreeMap::new(),
            names: BTreeMap::new(),
            tags: BTreeMap::new(),
            ranges: BTreeMap::new(),
        };
        let rules = declared.all_in::<Allow>(name).filter(|_| restricted);
        for (id, allow) in rules {
            let from = policy.put_side(&allow.from, name, declared);
            let to = policy.put_side(&allow.to, name, declared);
            policy.rules.insert(id.name.clone(), Rule { from, to, access: Arc::new(allow.access()) });
        }
        policy
    }

    /// Whether members may open only what a rule says.
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    fn put_side(
        &mut self,
        selectors: &BTreeSet<Selector>,
        network: &NetworkName,
        declared: &Snapshot,
    ) -> Option<Side> {
        let side = Side::of(selectors)?;
        let Selected { names, tags, ranges } = Selected::by(selectors, network, declared);
        for name in names {
            self.names.entry(name).or_default().insert(side);
        }
        for tag in tags {
            self.tags.entry(tag).or_default().insert(side);
        }
        for range in ranges {
            self.ranges.entry(range).or_default().insert(side);
        }
        Some(side)
    }

    /// The class of a member.
    pub fn class(&self, name: &Name, tags: &BTreeSet<Name>, addresses: &BTreeSet<IpAddr>) -> Class {
        let mut sides = BTreeSet::new();
        sides.extend(self.names.get(name).into_iter().flatten());
        sides.extend(tags.iter().filter_map(|tag| self.tags.get(tag)).flatten());
        let inside = |range: &IpNet| addresses.iter().any(|address| range.contains(address));
        sides.extend(self.ranges.iter().filter(|(range, _)| inside(range)).flat_map(|(_, sides)| sides));
        Class(sides)
    }

    /// What members of a class may open at members of another, or of the same.
    pub fn access(&self, from: &Class, to: &Class) -> Arc<Access> {
        Arc::new(self.between(&self.standing(from), &self.standing(to)))
    }

    /// The rules by which members of a class may open anything at members of another, each with what it adds;
    /// none in a network that is not restricted.
    pub fn reasons(&self, from: &Class, to: &Class) -> Vec<(&Name, &Access)> {
        self.applying(&self.standing(from), &self.standing(to)).collect()
    }

    /// The same, given their standings.
    pub fn applying(&self, from: &Standing, to: &Standing) -> impl Iterator<Item = (&Name, &Access)> {
        let places: Vec<_> = from.from.intersection(&to.to).collect();
        let rules: Vec<_> = self.rules.iter().collect();
        places.into_iter().map(move |place| (rules[place].0, &*rules[place].1.access))
    }

    /// Whether members of a class are on a side of a rule: on that of `to` if `right`, else on that of `from`.
    pub fn is_on(&self, rule: &Name, class: &Class, right: bool) -> bool {
        let side = self.rules.get(rule).map(|rule| if right { rule.to } else { rule.from });
        side.is_some_and(|side| side.is_none_or(|side| class.0.contains(&side)))
    }

    /// Which rules a class is on a side of.
    pub fn standing(&self, class: &Class) -> Standing {
        let count = self.rules.len();
        let mut standing =
            Standing { from: FixedBitSet::with_capacity(count), to: FixedBitSet::with_capacity(count) };
        let on = |side: Option<Side>| side.is_none_or(|side| class.0.contains(&side));
        for (place, rule) in self.rules.values().enumerate() {
            standing.from.set(place, on(rule.from));
            standing.to.set(place, on(rule.to));
        }
        standing
    }

    /// What may be opened, given the standings of those who open and of those whom they open it at.
    pub fn between(&self, from: &Standing, to: &Standing) -> Access {
        if !self.restricted {
            return Access::everything();
        }
        self.applying(from, to).fold(Access::default(), |access, (_, more)| access.or(more))
    }

    /// What of members' names, tags and addresses puts them on other sides than by earlier rules.
    pub fn moved_since(&self, earlier: &Self) -> Moved {
        Moved {
            names: differing(&earlier.names, &self.names),
            tags: differing(&earlier.tags, &self.tags),
            ranges: differing(&earlier.ranges, &self.ranges),
        }
    }

    /// The rules that differ from earlier ones, as they are and as they were.
    pub fn changed_since<'a>(&'a self, earlier: &'a Self) -> Changed<'a> {
        let differ = |name: &&Name| self.rules.get(*name) != earlier.rules.get(*name);
        let names: BTreeSet<&Name> = earlier.rules.keys().chain(self.rules.keys()).filter(differ).collect();
        let both = |name: &Name| [earlier.rules.get(name), self.rules.get(name)].into_iter().flatten();
        Changed(names.into_iter().flat_map(both).collect())
    }
}

/// Rules that changed, as they are and as they were.
pub struct Changed<'a>(Vec<&'a Rule>);

impl Changed<'_> {
    /// Whether none did.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any of them is about what members of a class may open at members of another.
    pub fn concern(&self, from: &Class, to: &Class) -> bool {
        let on = |class: &Class, side: Option<Side>| side.is_none_or(|side| class.0.contains(&side));
        self.0.iter().any(|rule| on(from, rule.from) && on(to, rule.to))
    }
}

fn differing<K: Ord + Clone, V: PartialEq>(earlier: &BTreeMap<K, V>, later: &BTreeMap<K, V>) -> BTreeSet<K> {
    let keys = earlier.keys().chain(later.keys());
    keys.filter(|key| earlier.get(key) != later.get(key)).cloned().collect()
}

/// What selectors come to, groups taken apart; `*` is not among it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Names of members, declared or not.
    pub names: BTreeSet<Name>,
    /// Tags.
    pub tags: BTreeSet<Name>,
    /// Ranges of addresses.
    pub ranges: BTreeSet<IpNet>,
}

impl Selected {
    /// Takes selectors of a network apart.
    pub fn by<'a>(
        selectors: impl IntoIterator<Item = &'a Selector>,
        network: &NetworkName,
        declared: &Snapshot,
    ) -> Self {
        let mut selected = Self::default();
        let mut names = Vec::new();
        for selector in selectors {
            match selector {
                Selector::Name(name) => names.push(name.clone()),
                Selector::Tag(tag) => drop(selected.tags.insert(tag.clone())),
                Selector::Range(range) => drop(selected.ranges.insert(*range)),
                Selector::All => {}
            }
        }
        // The rules have refused groups that hold themselves; each is taken apart once.
        let mut seen = BTreeSet::new();
        while let Some(name) = names.pop() {
            match declared.named::<Group>(network, &name) {
                Some(_) if !seen.insert(name.clone()) => {}
                Some(group) => {
                    selected.names.extend(group.nodes.iter().map(|node| node.name.clone()));
                    selected.tags.extend(group.tags.iter().cloned());
                    names.extend(group.groups.iter().map(|group| group.name.clone()));
                }
                None => drop(selected.names.insert(name)),
            }
        }
        selected
    }

    /// Whether it holds a member.
    pub fn holds(&self, name: &Name, tags: &BTreeSet<Name>, addresses: &BTreeSet<IpAddr>) -> bool {
        let Self { names, tags: chosen, ranges } = self;
        names.contains(name)
            || !chosen.is_disjoint(tags)
            || ranges.iter().any(|range| addresses.iter().any(|address| range.contains(address)))
    }
}
