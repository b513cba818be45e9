//! Who reached what, by groups, so that a table stays readable with many members?
//!
//! Pure. A group is of members, or of hosts behind gateways, that rules and ways do not distinguish, and is named as
//! the files name them: by a group, a tag, an egress, or the only name. Few members are a group each.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use schema::compile::members::Member;
use schema::compile::policy::Selected;
use schema::judge::present::Present;
use schema::kinds::{Egress, Group};
use schema::scalars::{Name, NetworkName, Selector};
use schema::snapshot::Snapshot;
use schemars::JsonSchema;
use serde::Serialize;

use super::claims::{End, Party};
use super::verdict::{Carrier, Pair};

/// Up to so many parties are not put together: as many columns as fit in a line.
const APART: usize = 7;
/// How many names may stand in the name of a group.
const NAMES: usize = 2;

/// Groups, and what they reached at each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Matrix {
    /// The groups.
    pub groups: Vec<Together>,
    /// The cells with pairs: by who sends, then by whom that is for.
    pub cells: Vec<Cell>,
}

/// Those of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Together {
    /// What it is named by.
    pub name: String,
    /// Who is in it: members, or addresses of hosts behind gateways.
    pub parties: Vec<String>,
}

/// What those of one group reached at those of another.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Cell {
    /// The place of the senders' group.
    pub from: usize,
    /// The place of the other.
    pub to: usize,
    /// How many pairs there are.
    pub pairs: usize,
    /// Of how many the one may open anything at the other.
    pub allowed: usize,
    /// How many of these reached it.
    pub reached: usize,
    /// Of how many it may not only because somebody is not there.
    pub lost: usize,
    /// How many of those that may not reached anything.
    pub wrong: usize,
    /// How many milliseconds the slowest answer took; null: there was none.
    pub slowest: Option<f64>,
    /// The nodes that pass packets on, in order: of all pairs together, each way once; an empty one is the direct way.
    pub ways: BTreeSet<Vec<Name>>,
    /// What these nodes are there.
    pub by: BTreeSet<Carrier>,
}

impl Matrix {
    /// Puts pairs together.
    pub fn of(groups: Vec<Together>, pairs: &[Pair]) -> Self {
        let numbered = groups.iter().enumerate();
        let place: BTreeMap<&str, usize> =
            numbered.flat_map(|(at, group)| group.parties.iter().map(move |party| (&**party, at))).collect();
        let mut cells: BTreeMap<(usize, usize), Cell> = BTreeMap::new();
        for pair in pairs {
            let (Some(from), Some(to)) = (place.get(&*pair.from), place.get(&*pair.to)) else { continue };
            let cell = cells.entry((*from, *to)).or_insert_with(|| Cell::new(*from, *to));
            cell.put(pair);
        }
        Self { groups, cells: cells.into_values().collect() }
    }

    /// What those of a group reached at those of another; absent: no packets of the network are between them.
    pub fn cell(&self, from: usize, to: usize) -> Option<&Cell> {
        self.cells.iter().find(|cell| (cell.from, cell.to) == (from, to))
    }
}

impl Cell {
    fn new(from: usize, to: usize) -> Self {
        let (ways, by, slowest) = (BTreeSet::new(), BTreeSet::new(), None);
        Self { from, to, pairs: 0, allowed: 0, reached: 0, lost: 0, wrong: 0, slowest, ways, by }
    }

    fn put(&mut self, pair: &Pair) {
        self.pairs += 1;
        self.allowed += usize::from(pair.allowed);
        self.reached += usize::from(pair.allowed && pair.is_reached());
        self.lost += usize::from(pair.lost);
        self.wrong += usize::from(!pair.allowed && !pair.agrees());
        if pair.allowed {
            self.slowest = pair.slowest().into_iter().chain(self.slowest).reduce(f64::max);
            self.ways.extend(pair.via.clone());
            self.by.extend(&pair.by);
        }
    }
}

/// The groups of parties that are alike, each with its name.
pub fn groups(
    network: &NetworkName,
    declared: &Snapshot,
    present: &Present<'_>,
    ends: &[End],
    alike: &[Vec<Party>],
) -> Vec<Together> {
    if ends.len() <= APART {
        let alone =
            |end: &End| Together { name: end.party.to_string(), parties: vec![end.party.to_string()] };
        return ends.iter().map(alone).collect();
    }
    let names = Names { network, declared, present, ends };
    let together = |parties: &Vec<Party>| Together {
        name: names.name(parties),
        parties: parties.iter().map(ToString::to_string).collect(),
    };
    alike.iter().map(together).collect()
}

/// The named sets that together are these parties, the largest first; absent: there are none, or too many.
fn union(parties: &BTreeSet<&Party>, all: &[(String, BTreeSet<&Party>)]) -> Option<String> {
    let mut within: Vec<_> = all.iter().filter(|(_, holds)| holds.is_subset(parties)).collect();
    within.sort_by_key(|(_, holds)| Reverse(holds.len()));
    let (mut left, mut names) = (parties.clone(), Vec::new());
    for (name, holds) in within {
        if !holds.is_disjoint(&left) {
            left = &left - holds;
            names.push(name.as_str());
        }
    }
    (left.is_empty() && names.len() <= NAMES).then(|| names.join(", "))
}

/// The smallest named set that these parties are all of but a few; absent: there is none.
fn all_but(parties: &BTreeSet<&Party>, all: &[(String, BTreeSet<&Party>)]) -> Option<String> {
    let around = all.iter().filter(|(_, holds)| parties.is_subset(holds));
    let (name, holds) = around.min_by_key(|(_, holds)| holds.len())?;
    let others: Vec<_> = holds.difference(parties).map(ToString::to_string).collect();
    Some(match others.len() {
        ..=NAMES => format!("{name} but {}", others.join(", ")),
        _ => format!("{} of {} {name}", parties.len(), holds.len()),
    })
}

/// The first of them.
fn first(parties: &BTreeSet<&Party>) -> String {
    match &*parties.iter().collect::<Vec<_>>() {
        [first, second] => format!("{first}, {second}"),
        all => format!("{} and {} more", all[0], all.len() - 1),
    }
}

/// What groups may be named by.
struct Names<'a> {
    network: &'a NetworkName,
    declared: &'a Snapshot,
    present: &'a Present<'a>,
    ends: &'a [End],
}

impl Names<'_> {
    fn name(&self, parties: &[Party]) -> String {
        if let [only] = parties {
            return only.to_string();
        }
        let parties: BTreeSet<&Party> = parties.iter().collect();
        let all = self.named();
        union(&parties, &all).or_else(|| all_but(&parties, &all)).unwrap_or_else(|| first(&parties))
    }

    /// Everything with a name in the files that several parties have in common: groups, tags, egress.
    fn named(&self) -> Vec<(String, BTreeSet<&Party>)> {
        let members = || {
            self.ends.iter().filter_map(|end| match &end.party {
                Party::Member(name) => Some((&end.party, name, self.present.member(name)?)),
                Party::Behind(_) => None,
            })
        };
        let mut all = Vec::new();
        for (id, _) in self.declared.all_in::<Group>(self.network) {
            let group = Selector::Name(id.name.clone());
            let selected = Selected::by([&group], self.network, self.declared);
            let is_in = |name: &Name, member: &Member| selected.holds(name, &member.tags, &member.addresses);
            let holds = members().filter(|(_, name, member)| is_in(name, member));
            all.push((id.name.to_string(), holds.map(|(party, ..)| party).collect()));
        }
        let tags: BTreeSet<&Name> = members().flat_map(|(_, _, member)| &member.tags).collect();
        for tag in tags {
            let holds = members().filter(|(_, _, member)| member.tags.contains(tag));
            all.push((format!("tag:{tag}"), holds.map(|(party, ..)| party).collect()));
        }
        for (id, egress) in self.declared.all_in::<Egress>(self.network) {
            let is_behind = |end: &&End| {
                end.behind
                    .as_ref()
                    .is_some_and(|behind| egress.ranges.iter().any(|it| it.net() == behind.range))
            };
            let holds = self.ends.iter().filter(is_behind).map(|end| &end.party).collect();
            all.push((format!("egress {}", id.name), holds));
        }
        all
    }
}
