//! Which members a network's rules distinguish, and what they may open at each other. Pure, and about no host
//! in particular.
//!
//! What a rule names as `from` or as `to` is a [`Side`]; a [`Class`] is the set of sides that a member is on,
//! so that members of one class are judged alike. Both are known by what they hold and not by a number: the
//! same declarations lead to the same classes, however they came about. A side is what a file names, groups
//! by their names: so a group that changes moves those members alone that it gains or loses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

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

    /// Whether its members are on a side; absent: the side of every member.
    pub(crate) fn is_on(&self, side: Option<Side>) -> bool {
        side.is_none_or(|side| self.0.contains(&side))
    }
}

/// A rule as it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// Absent: every member.
    from: Option<Side>,
    /// Absent: every member.
    to: Option<Side>,
    access: Access,
}

/// The rules of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether members may open only what a rule says; otherwise everything.
    restricted: bool,
    /// In the order of names.
    rules: Vec<(Name, Rule)>,
    /// The places of the rules that are about each side as `from`, and as `to`; absent: every member's.
    from: BTreeMap<Option<Side>, FixedBitSet>,
    to: BTreeMap<Option<Side>, FixedBitSet>,
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

impl Standing {
    /// Whether there are any [`Self::shared_with`] another: cheaper than asking which.
    pub fn shares_with(&self, to: &Self) -> bool {
        !self.from.is_disjoint(&to.to)
    }

    /// The rules by which members of this standing may open something at those of another.
    pub fn shared_with(&self, to: &Self) -> FixedBitSet {
        let mut rules = self.from.clone();
        rules.intersect_with(&to.to);
        rules
    }
}

/// The rules that give some access, by their places in the order of names.
#[derive(Clone, Debug)]
pub(crate) struct Giving {
    access: Access,
    /// Those that give all of it.
    all: FixedBitSet,
    /// Those that give any of it.
    any: FixedBitSet,
}

impl Policy {
    /// The rules of a network as it is declared.
    pub fn compile(name: &NetworkName, network: &Network, declared: &Snapshot) -> Self {
        let restricted = network.acl == Acl::Deny;
        let mut policy = Self {
            restricted,
            rules: Vec::new(),
            from: BTreeMap::new(),
            to: BTreeMap::new(),
            names: BTreeMap::new(),
            tags: BTreeMap::new(),
            ranges: BTreeMap::new(),
        };
        let rules: Vec<_> = declared.all_in::<Allow>(name).filter(|_| restricted).collect();
        let none = || FixedBitSet::with_capacity(rules.len());
        for (place, (id, allow)) in rules.iter().enumerate() {
            let from = policy.put_side(&allow.from, name, declared);
            let to = policy.put_side(&allow.to, name, declared);
            policy.from.entry(from).or_insert_with(none).insert(place);
            policy.to.entry(to).or_insert_with(none).insert(place);
            policy.rules.push((id.name.clone(), Rule { from, to, access: allow.access() }));
        }
        policy
    }

    /// Whether members may open only what a rule says.
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// Distinguishes the members that selectors select from the others, as a rule with that side does: absent
    /// for every member.
    pub(crate) fn put_side(
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
    pub fn access(&self, from: &Class, to: &Class) -> Access {
        self.between(&self.standing(from), &self.standing(to))
    }

    /// The rules by which members of a class may open anything at members of another, each with what it adds;
    /// none in a network that is not restricted.
    pub fn reasons(&self, from: &Class, to: &Class) -> Vec<(&Name, &Access)> {
        self.applying(&self.standing(from), &self.standing(to)).collect()
    }

    /// The same, given their standings.
    pub fn applying(&self, from: &Standing, to: &Standing) -> impl Iterator<Item = (&Name, &Access)> {
        let places: Vec<_> = from.from.intersection(&to.to).collect();
        places.into_iter().map(|place| (&self.rules[place].0, &self.rules[place].1.access))
    }

    /// Whether members of a class are on a side of a rule: on that of `to` if `right`, else on that of `from`.
    pub fn is_on(&self, rule: &Name, class: &Class, right: bool) -> bool {
        let rule = self.rule(rule);
        rule.is_some_and(|rule| class.is_on(if right { rule.to } else { rule.from }))
    }

    /// Which rules a class is on a side of.
    pub fn standing(&self, class: &Class) -> Standing {
        let sides = || class.0.iter().copied().map(Some).chain([None]);
        let all = |rules: &BTreeMap<Option<Side>, FixedBitSet>| {
            let mut all = FixedBitSet::with_capacity(self.rules.len());
            sides().filter_map(|side| rules.get(&side)).for_each(|places| all.union_with(places));
            all
        };
        Standing { from: all(&self.from), to: all(&self.to) }
    }

    fn rule(&self, name: &Name) -> Option<&Rule> {
        let place = self.rules.binary_search_by(|(rule, _)| rule.cmp(name)).ok()?;
        Some(&self.rules[place].1)
    }

    /// What may be opened, given the standings of those who open and of those whom they open it at.
    pub fn between(&self, from: &Standing, to: &Standing) -> Access {
        if !self.restricted {
            return Access::everything();
        }
        self.applying(from, to).fold(Access::default(), |access, (_, more)| access.or(more))
    }

    /// The rules that give an access, or a part of it.
    pub(crate) fn giving(&self, access: &Access) -> Giving {
        let places = |gives: &dyn Fn(&Access) -> bool| {
            let mut places = FixedBitSet::with_capacity(self.rules.len());
            let giving = self.rules.iter().enumerate().filter(|(_, (_, rule))| gives(&rule.access));
            giving.for_each(|(place, _)| places.insert(place));
            places
        };
        let all = places(&|rule| rule.contains(access));
        Giving { access: access.clone(), all, any: places(&|rule| !rule.and(access).is_nothing()) }
    }

    /// Whether all of an access may be opened, at the cost of one pass over the rules' places mostly.
    pub(crate) fn gives_all(&self, giving: &Giving, from: &Standing, to: &Standing) -> bool {
        let applies = |rules: &FixedBitSet| from.from.intersection(&to.to).any(|place| rules.contains(place));
        !self.restricted
            || applies(&giving.all)
            // Several rules may give it together.
            || applies(&giving.any) && self.between(from, to).contains(&giving.access)
    }

    /// Whether any of an access may be opened.
    pub(crate) fn gives_any(&self, giving: &Giving, from: &Standing, to: &Standing) -> bool {
        !self.restricted || from.from.intersection(&to.to).any(|place| giving.any.contains(place))
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
    pub fn changed_since<'a>(&'a self, earlier: &'a Self) -> ChangedRules<'a> {
        let differ = |name: &&Name| self.rule(name) != earlier.rule(name);
        let names = earlier.rules.iter().chain(&self.rules).map(|(name, _)| name);
        let names: BTreeSet<&Name> = names.filter(differ).collect();
        let both = |name: &Name| [earlier.rule(name), self.rule(name)].into_iter().flatten();
        ChangedRules(names.into_iter().flat_map(both).collect())
    }
}

/// Rules that changed, as they are and as they were.
pub struct ChangedRules<'a>(Vec<&'a Rule>);

impl ChangedRules<'_> {
    /// Whether none did.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For each of them the classes on the side of `from`, and those on the side of `to`.
    pub fn sides<'b, K: Copy>(
        &'b self,
        classes: impl Iterator<Item = (K, &'b Class)> + Clone + 'b,
    ) -> impl Iterator<Item = (Vec<K>, Vec<K>)> + 'b {
        let on = move |side: Option<Side>| {
            let members = classes.clone().filter(move |(_, class)| class.is_on(side));
            members.map(|(key, _)| key).collect()
        };
        self.0.iter().map(move |rule| (on(rule.from), on(rule.to)))
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
                // The way to everything else selects no member.
                Selector::Range(range) if range.prefix_len() == 0 => {}
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
