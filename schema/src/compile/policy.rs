//! Which members a network's rules distinguish, and what they may open at each other. Pure, and about no host
//! in particular.
//!
//! What a rule names as `from` or as `to`, or an egress as `for`, is a [`Side`]; a [`Class`] is the set of
//! sides that a member is on, so that members of one class are judged alike. Both are known by what they hold
//! and not by a number: the same declarations lead to the same classes, however they came about. A side is
//! what a file names, groups by their names: so a group that changes moves those members alone that it gains
//! or loses. Ranges behind an egress have classes as members do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fixedbitset::FixedBitSet;
use ipnet::IpNet;

use crate::access::{Access, ClassId};
use crate::kinds::{Acl, Allow, Egress, ExternalClient, Network};
pub use crate::rules::selected::Selected;
use crate::scalars::{Name, NetworkName, Selector};
use crate::snapshot::{ResourceId, Snapshot};

/// Selectors that a rule names together, by a digest of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side(ClassId);

impl Side {
    /// Absent: every member and nobody else, since one of them is `*` and none is a range.
    fn of(selectors: &BTreeSet<Selector>) -> Option<Self> {
        if selectors.contains(&Selector::All) && !selectors.iter().any(is_range) {
            return None;
        }
        Some(Self(ClassId::of(text(selectors).as_bytes())))
    }

    /// The external clients that may open only these.
    fn bound_to(selectors: &BTreeSet<Selector>) -> Self {
        Self(ClassId::of(format!("allow-to {}", text(selectors)).as_bytes()))
    }
}

/// Selectors as one text.
fn text(selectors: &BTreeSet<Selector>) -> String {
    selectors.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Whether a selector may select what is behind an egress, which `*` does not.
fn is_range(selector: &Selector) -> bool {
    matches!(selector, Selector::Range(_))
}

/// Members that the rules of a network do not distinguish: the sides that they are on. The default is on
/// none, as every member is of a network without rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    sides: BTreeSet<Side>,
    /// Whether they are addresses of a range behind an egress, and no members.
    outer: bool,
}

impl Class {
    /// Its identity: equal classes have equal ones.
    pub fn id(&self) -> ClassId {
        if self.sides.is_empty() && !self.outer {
            return ClassId::default();
        }
        let kind = if self.outer { &b"range"[..] } else { &[] };
        let sides = self.sides.iter().flat_map(|Side(id)| id.0);
        ClassId::of(&kind.iter().copied().chain(sides).collect::<Vec<u8>>())
    }

    /// Whether its members are on a side; absent: the side of every member.
    pub(crate) fn is_on(&self, side: Option<Side>) -> bool {
        match side {
            Some(side) => self.sides.contains(&side),
            None => !self.outer,
        }
    }

    /// Whether it is of a range behind an egress.
    pub fn is_outer(&self) -> bool {
        self.outer
    }
}

/// Whom a rule is about, as one of its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Every member and every range.
    Anything,
    /// Every member.
    Members,
    Side(Side),
}

impl End {
    fn of(side: Option<Side>) -> Self {
        side.map_or(Self::Members, Self::Side)
    }
}

/// A rule as it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    from: End,
    to: End,
    access: Access,
}

/// The rules of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether members may open only what a rule says; otherwise everything.
    restricted: bool,
    /// In the order of ids: of an `allow`; of an external client with `allow-to`, the first of those that have
    /// the same; of the network, if what it lets members open is restricted for such clients alone.
    rules: Vec<(ResourceId, Rule)>,
    /// The places of the rules that are about each end as `from`, and as `to`.
    from: BTreeMap<End, FixedBitSet>,
    to: BTreeMap<End, FixedBitSet>,
    /// The sides whose members may open only what a rule from such a side says.
    bound: BTreeSet<Side>,
    /// The sides that every member is on, and ranges as well.
    everybody: BTreeSet<Side>,
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
        let mut policy = Self {
            restricted: network.acl == Acl::Deny,
            rules: Vec::new(),
            from: BTreeMap::new(),
            to: BTreeMap::new(),
            bound: BTreeSet::new(),
            everybody: BTreeSet::new(),
            names: BTreeMap::new(),
            tags: BTreeMap::new(),
            ranges: BTreeMap::new(),
        };
        let mut rules = policy.bind_clients(name, declared);
        if policy.restricted {
            for (id, allow) in declared.all_in::<Allow>(name) {
                let from = End::of(policy.put_side(&allow.from, name, declared));
                let to = End::of(policy.put_side(&allow.to, name, declared));
                rules.push((id.clone(), Rule { from, to, access: allow.access() }));
            }
        } else if !rules.is_empty() {
            policy.restricted = true;
            let everything = Rule { from: End::Anything, to: End::Anything, access: Access::everything() };
            rules.push((ResourceId::of_network(name.clone()), everything));
        }
        for (_, egress) in declared.all_in::<Egress>(name) {
            if let Some(selectors) = &egress.r#for {
                policy.put_side(selectors, name, declared);
            }
        }
        rules.sort_by(|(one, _), (other, _)| one.cmp(other));
        let none = || FixedBitSet::with_capacity(rules.len());
        for (place, (_, rule)) in rules.iter().enumerate() {
            policy.from.entry(rule.from).or_insert_with(none).insert(place);
            policy.to.entry(rule.to).or_insert_with(none).insert(place);
        }
        policy.rules = rules;
        policy
    }

    /// Puts external clients with an `allow-to` of their own on a side for each, and returns its rules.
    fn bind_clients(&mut self, network: &NetworkName, declared: &Snapshot) -> Vec<(ResourceId, Rule)> {
        let mut rules = Vec::new();
        for (id, client) in declared.all_in::<ExternalClient>(network) {
            let Some(selectors) = &client.allow_to else { continue };
            let side = Side::bound_to(selectors);
            self.names.entry(id.name.clone()).or_default().insert(side);
            if !self.bound.insert(side) {
                continue;
            }
            // Of those who may open nothing there is a rule all the same: it is what says so.
            let to = self.put_side(selectors, network, declared);
            let access = if selectors.is_empty() { Access::default() } else { Access::everything() };
            rules.push((id.clone(), Rule { from: End::Side(side), to: End::of(to), access }));
        }
        rules
    }

    /// Whether it distinguishes no members.
    pub fn is_plain(&self) -> bool {
        let Self { everybody, names, tags, ranges, .. } = self;
        everybody.is_empty() && names.is_empty() && tags.is_empty() && ranges.is_empty()
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
        let Selected { everybody, names, tags, ranges } = Selected::by(selectors, network, declared);
        if everybody {
            self.everybody.insert(side);
        }
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
        let mut sides = self.everybody.clone();
        sides.extend(self.names.get(name).into_iter().flatten());
        sides.extend(tags.iter().filter_map(|tag| self.tags.get(tag)).flatten());
        let inside = |range: &IpNet| range.prefix_len() > 0 && addresses.iter().any(|it| range.contains(it));
        sides.extend(self.ranges.iter().filter(|(range, _)| inside(range)).flat_map(|(_, sides)| sides));
        Class { sides, outer: false }
    }

    /// The class of a part of a range behind an egress (`whole`, or all of it), which no selector selects a part
    /// of.
    pub fn class_of_range(&self, range: &IpNet, whole: &IpNet) -> Class {
        // The selector of everything means what no other egress has.
        let within = |selected: &IpNet| match selected.prefix_len() {
            0 => selected == whole,
            _ => selected.contains(range),
        };
        let sides = self.ranges.iter().filter(|(selected, _)| within(selected)).flat_map(|(_, sides)| sides);
        Class { sides: sides.copied().collect(), outer: true }
    }

    /// The ranges by which members and addresses are distinguished, in order.
    pub fn selected_ranges(&self) -> impl Iterator<Item = &IpNet> {
        self.ranges.keys()
    }

    /// The side of selectors that a rule, an egress or [`Policy::put_side`] names; absent: every member.
    pub(crate) fn side(selectors: &BTreeSet<Selector>) -> Option<Side> {
        Side::of(selectors)
    }

    /// What members of a class may open at members of another, or of the same.
    pub fn access(&self, from: &Class, to: &Class) -> Access {
        self.between(&self.standing(from), &self.standing(to))
    }

    /// The rules by which those of one standing may open anything at those of another, each with what it adds;
    /// none in a network that is not restricted.
    pub fn applying(&self, from: &Standing, to: &Standing) -> impl Iterator<Item = (&ResourceId, &Access)> {
        let places: Vec<_> = from.from.intersection(&to.to).collect();
        places.into_iter().map(|place| (&self.rules[place].0, &self.rules[place].1.access))
    }

    /// Whether members of a class are on a side of a rule: on that of `to` if `right`, else on that of `from`.
    pub fn is_on(&self, rule: &ResourceId, class: &Class, right: bool) -> bool {
        let rule = self.rule(rule);
        rule.is_some_and(
            |rule| if right { Self::meets(rule.to, class) } else { self.begins(rule.from, class) },
        )
    }

    /// Whether members of a class are on the `to` of a rule.
    fn meets(end: End, class: &Class) -> bool {
        match end {
            End::Anything => true,
            End::Members => class.is_on(None),
            End::Side(side) => class.is_on(Some(side)),
        }
    }

    /// Whether members of a class are on the `from` of a rule: not those who may open only what their own says.
    fn begins(&self, end: End, class: &Class) -> bool {
        let own = matches!(end, End::Side(side) if self.bound.contains(&side));
        Self::meets(end, class) && (own || !self.is_bound(class))
    }

    fn is_bound(&self, class: &Class) -> bool {
        !self.bound.is_empty() && !self.bound.is_disjoint(&class.sides)
    }

    /// Which rules a class is on a side of.
    pub fn standing(&self, class: &Class) -> Standing {
        let wide = [Some(End::Anything), (!class.outer).then_some(End::Members)].into_iter().flatten();
        let ends: Vec<_> = wide.chain(class.sides.iter().copied().map(End::Side)).collect();
        let all = |rules: &BTreeMap<End, FixedBitSet>, counts: &dyn Fn(End) -> bool| {
            let mut all = FixedBitSet::with_capacity(self.rules.len());
            let counting = ends.iter().filter(|end| counts(**end));
            counting.filter_map(|end| rules.get(end)).for_each(|places| all.union_with(places));
            all
        };
        let bound = self.is_bound(class);
        let begins = |end: End| !bound || matches!(end, End::Side(side) if self.bound.contains(&side));
        Standing { from: all(&self.from, &begins), to: all(&self.to, &|_| true) }
    }

    /// For each of these standings, of which there are so many members or ranges, whether any rule lets one of them
    /// open anything at another of all of these, or another at it. Costs a pass over the rules for each standing.
    pub(crate) fn taking_part(&self, parties: &[(&Standing, usize)]) -> Vec<bool> {
        let count = |side: &dyn Fn(&Standing) -> &FixedBitSet| {
            let mut counts = vec![0; self.rules.len()];
            for (standing, many) in parties {
                side(standing).ones().for_each(|place| counts[place] += many);
            }
            counts
        };
        let (from, to) = (count(&|it| &it.from), count(&|it| &it.to));
        let gives = |place: &usize| !self.rules[*place].1.access.is_nothing();
        // Nobody needs a rule to reach itself.
        let meets = |own: &FixedBitSet, other: &FixedBitSet, others: &[usize]| {
            own.ones().filter(gives).any(|place| others[place] > usize::from(other.contains(place)))
        };
        let takes_part = |it: &Standing| meets(&it.from, &it.to, &to) || meets(&it.to, &it.from, &from);
        parties.iter().map(|(standing, _)| !self.restricted || takes_part(standing)).collect()
    }

    fn rule(&self, id: &ResourceId) -> Option<&Rule> {
        let place = self.rules.binary_search_by(|(rule, _)| rule.cmp(id)).ok()?;
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

    /// Whether every member is on other sides than by earlier rules.
    pub fn moves_everybody(&self, earlier: &Self) -> bool {
        self.everybody != earlier.everybody
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
        let differ = |id: &&ResourceId| self.rule(id) != earlier.rule(id);
        let ids = earlier.rules.iter().chain(&self.rules).map(|(id, _)| id);
        let ids: BTreeSet<&ResourceId> = ids.filter(differ).collect();
        let both = |id: &ResourceId| {
            let of = |policy: &'a Self| Some((policy, policy.rule(id)?));
            [of(earlier), of(self)].into_iter().flatten()
        };
        ChangedRules(ids.into_iter().flat_map(both).collect())
    }
}

/// Rules that changed, as they are and as they were, each with those that it is one of.
pub struct ChangedRules<'a>(Vec<(&'a Policy, &'a Rule)>);

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
        self.0.iter().map(move |(policy, rule)| {
            let from = classes.clone().filter(|(_, class)| policy.begins(rule.from, class));
            let to = classes.clone().filter(|(_, class)| Policy::meets(rule.to, class));
            (from.map(|(key, _)| key).collect(), to.map(|(key, _)| key).collect())
        })
    }
}

fn differing<K: Ord + Clone, V: PartialEq>(earlier: &BTreeMap<K, V>, later: &BTreeMap<K, V>) -> BTreeSet<K> {
    let keys = earlier.keys().chain(later.keys());
    keys.filter(|key| earlier.get(key) != later.get(key)).cloned().collect()
}
