//! What moved, in lines that are read: by rules and whom these select, or by nodes.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Direction, Group, Groups, Judge, Moment, ReachChange, is_key, is_outer};
use crate::access::Access;
use crate::compile::paths::Party;
use crate::kinds::{Allow, ExternalClient, Kind};
use crate::scalars::{Name, NetworkName, Selector};
use crate::snapshot::ResourceId;
use crate::text::natural;

/// Between which groups what moved.
type Moved<'g, 'a> = (&'g Group<'a>, &'g Group<'a>, Access);

/// What moved in a network, in lines of which the direction is not decided yet.
pub(super) fn lines<'a>(
    (network, moment): (&NetworkName, Moment<'a>),
    here: &Judge<'a>,
    groups: &Groups<'a>,
    moved: Vec<Moved<'_, 'a>>,
    (restricted, once_joined): (bool, bool),
) -> Vec<ReachChange> {
    let side = |group: &Group<'_>| Side { outer: is_outer(group), key: is_key(group) };
    let mut kinds: BTreeMap<[Side; 2], Vec<_>> = BTreeMap::new();
    for (from, to, access) in moved {
        kinds.entry([side(from), side(to)]).or_default().push((from, to, access));
    }
    let mut lines = Vec::new();
    if !restricted {
        let inner = |sides: &[Side; 2]| sides.iter().all(|side| !side.outer);
        for by_key in [false, true] {
            let has_key = |sides: &[Side; 2]| sides.iter().any(|side| side.key);
            let of_members = kinds.iter().filter(|(sides, _)| inner(sides) && has_key(sides) == by_key);
            let moved: Vec<_> = of_members.flat_map(|(_, moved)| moved).collect();
            lines.extend(by_nodes(network, here, groups, &moved, (once_joined, by_key)));
        }
        kinds.retain(|sides, _| !inner(sides));
    }
    for (sides, moved) in kinds {
        lines.extend(by_rules(network, moment, here, groups, moved, sides));
    }
    if !restricted {
        join_directions(&mut lines);
    }
    lines
}

/// What a side of a line is of: lines put nothing together that differs in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Side {
    /// Ranges outside of the network, and not members.
    outer: bool,
    /// Nodes that join with a key, and not those who are known.
    key: bool,
}

/// Makes one line of two that say the same of both directions.
fn join_directions(lines: &mut Vec<ReachChange>) {
    let mut joined: Vec<ReachChange> = Vec::new();
    for line in lines.drain(..) {
        let mirrored = |it: &&mut ReachChange| {
            !it.both_ways
                && !line.both_ways
                && (&it.from, &it.to, &it.what) == (&line.to, &line.from, &line.what)
        };
        match joined.iter_mut().find(mirrored) {
            Some(other) => {
                other.both_ways = true;
                other.pairs += line.pairs;
            }
            None => joined.push(line),
        }
    }
    *lines = joined;
}

/// A line in which direction and cause are not decided yet.
fn line(network: &NetworkName, from: String, to: String, what: &Access) -> ReachChange {
    let (proto, ports) = what.single();
    ReachChange {
        network: network.clone(),
        from,
        to,
        what: what.to_string(),
        proto,
        ports,
        direction: Direction::Gained,
        once_joined: false,
        by_key: false,
        both_ways: false,
        from_nodes: 0,
        to_nodes: 0,
        pairs: 0,
        rule: None,
        because: Vec::new(),
    }
}

/// How many nodes are named in place of what a rule selects, if they are a part of it, or are named as missing.
const NAMED: usize = 3;

/// For each group the groups that it opens something at.
type Against<'g, 'a> = BTreeMap<&'g Group<'a>, BTreeSet<&'g Group<'a>>>;

/// What moved, in the words of the rules that allow or allowed it: each node of one side at each of the
/// other, other than itself.
fn by_rules<'a>(
    network: &NetworkName,
    moment: Moment<'a>,
    here: &Judge<'a>,
    groups: &Groups<'a>,
    moved: Vec<Moved<'_, 'a>>,
    sides: [Side; 2],
) -> Vec<ReachChange> {
    let by_key = sides.iter().any(|side| side.key);
    let mut parts: BTreeMap<(Option<&ResourceId>, Access), Against<'_, 'a>> = BTreeMap::new();
    for (from, to, mut left) in moved {
        if !here.is_restricted() {
            parts.entry((None, left)).or_default().entry(from).or_default().insert(to);
            continue;
        }
        // What several rules allow is reported of the one that allows most.
        let mut reasons = here.reasons(from, to);
        reasons.sort_by_key(|(_, access)| Reverse(breadth(access)));
        for (rule, access) in reasons {
            let part = left.and(access);
            if !part.is_nothing() {
                left = left.without(&part);
                parts.entry((Some(rule), part)).or_default().entry(from).or_default().insert(to);
            }
        }
    }
    let mut lines = Vec::new();
    for ((rule, what), against) in parts {
        let mut alike: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (from, to) in against {
            alike.entry(to).or_default().push(from);
        }
        let declared = rule.filter(|rule| rule.kind == Kind::Allow);
        let declared = declared.and_then(|rule| moment.declared.named::<Allow>(network, &rule.name));
        // Such a rule is about those clients alone that are bound by it.
        let bound = rule.filter(|rule| rule.kind == Kind::ExternalClient);
        let bound = bound.and_then(|rule| moment.declared.named::<ExternalClient>(network, &rule.name));
        let to_selectors = declared.map(|allow| &*allow.to).or(bound.and_then(|it| it.allow_to.as_ref()));
        let nodes_of = |some: &mut dyn Iterator<Item = &Group<'a>>| -> BTreeSet<&Party> {
            some.flat_map(|group| &groups[group]).copied().collect()
        };
        let [all_from, all_to] = [false, true].map(|right| {
            let is_on = |group: &&Group<'a>| {
                let Side { outer, key } = sides[usize::from(right)];
                let there = (here.of)(group).is_some_and(|it| it.class.is_outer() == outer);
                there && is_key(group) == key && rule.is_none_or(|rule| here.is_on(rule, group, right))
            };
            nodes_of(&mut groups.keys().filter(is_on))
        });
        let size = |group: &Group<'a>| groups[group].len() as u64;
        for (to, from) in alike {
            let between = |(from, to): (&Group<'a>, &Group<'a>)| {
                size(from) * if from == to { size(to) - 1 } else { size(to) }
            };
            let pairs = from.iter().flat_map(|from| to.iter().map(move |to| between((*from, *to)))).sum();
            let (from, to) = (nodes_of(&mut from.into_iter()), nodes_of(&mut to.into_iter()));
            let (froms, tos) = (others(&from, &to), others(&to, &from));
            let [mut from_nodes, mut to_nodes] = [froms.len() as u64, tos.len() as u64];
            for (side, nodes) in sides.iter().zip([&mut from_nodes, &mut to_nodes]) {
                *nodes = if side.key { 0 } else { *nodes };
            }
            lines.push(ReachChange {
                from_nodes,
                to_nodes,
                pairs,
                rule: rule.cloned(),
                by_key,
                ..line(
                    network,
                    match bound {
                        _ if sides[0].key => keys(&froms),
                        Some(_) if froms.len() <= NAMED => join(froms.iter()),
                        Some(_) => format!("{} external clients", froms.len()),
                        None => words(&froms, &others(&all_from, &to), declared.map(|allow| &*allow.from)),
                    },
                    match sides[1].key {
                        true => keys(&tos),
                        false => words(&tos, &others(&all_to, &from), to_selectors),
                    },
                    &what,
                )
            });
        }
    }
    lines.retain(|line| line.pairs > 0);
    for line in lines.iter_mut().filter(|line| line.by_key) {
        line.pairs = 0;
    }
    lines
}

/// Nodes, without whoever is alone on the other side: nobody is counted against himself.
fn others<'a, 'n>(
    nodes: &'a BTreeSet<&'n Party>,
    against: &BTreeSet<&'n Party>,
) -> Cow<'a, BTreeSet<&'n Party>> {
    match against.first() {
        Some(alone) if against.len() == 1 && nodes.contains(alone) => {
            Cow::Owned(nodes.iter().copied().filter(|node| node != alone).collect())
        }
        _ => Cow::Borrowed(nodes),
    }
}

/// Nodes in words: some of all that selectors select; these absent: of every node.
fn words(some: &BTreeSet<&Party>, all: &BTreeSet<&Party>, selectors: Option<&BTreeSet<Selector>>) -> String {
    let is_range = |party: &&Party| matches!(party, Party::Range(_));
    if selectors.is_none() && some.iter().any(is_range) {
        return if some.len() <= NAMED { join(some.iter()) } else { format!("{} ranges", some.len()) };
    }
    let selected = selectors.map_or_else(|| "*".to_owned(), |selectors| join(selectors.iter()));
    match all.len().saturating_sub(some.len()) {
        0 if selected.contains('*') || some.len() > NAMED || selected == join(some.iter()) => selected,
        // What tags and groups select may be another before and afterwards.
        0 => format!("{selected} ({})", join(some.iter())),
        _ if some.len() <= NAMED => join(some.iter()),
        1..=NAMED => format!("{selected} but {}", join(all.difference(some))),
        _ if selected == "*" => first_of(some),
        _ => format!("{} of {selected}", some.len()),
    }
}

/// By which rules are reported, those that allow most first.
fn breadth(access: &Access) -> (bool, usize, bool) {
    let ports = access.tcp.ranges().chain(access.udp.ranges());
    (access.others, ports.map(|range| range.len()).sum(), access.icmp)
}

/// Who joins with the keys that these stand for.
fn keys(parties: &BTreeSet<&Party>) -> String {
    let keys = parties.iter().filter_map(|party| match party {
        Party::Joins(key, _) => Some(key),
        Party::Member(_) | Party::Range(_) => None,
    });
    format!("whoever joins with {}", join(keys.collect::<BTreeSet<&Name>>().into_iter()))
}

/// Members by their names, and those whom keys let in by these.
fn named(parties: &BTreeSet<&Party>) -> String {
    let is_key = |party: &&Party| matches!(party, Party::Joins(..));
    let (joins, known): (BTreeSet<&Party>, BTreeSet<&Party>) = parties.iter().copied().partition(is_key);
    match (joins.is_empty(), known.is_empty()) {
        (true, _) => first_of(&known),
        (false, true) => keys(&joins),
        (false, false) => format!("{}, {}", first_of(&known), keys(&joins)),
    }
}

/// Names and ranges, in natural order.
fn join(words: impl Iterator<Item = impl ToString>) -> String {
    let mut words: Vec<String> = words.map(|word| word.to_string()).collect();
    words.sort_by(|one, other| natural(one, other));
    words.join(", ")
}

/// The first of some nodes by their names, and how many more there are: `web-1, web-2 and 38 more`.
fn first_of(some: &BTreeSet<&Party>) -> String {
    let mut names: Vec<String> = some.iter().map(ToString::to_string).collect();
    names.sort_by(|one, other| natural(one, other));
    if names.len() <= NAMED {
        return names.join(", ");
    }
    let shown = NAMED - 1;
    format!("{} and {} more", names[..shown].join(", "), names.len() - shown)
}

/// What moved in a network without rules, where it is everything and in both directions: each pair is reported
/// once, with the group of the first of its two nodes.
fn by_nodes<'a>(
    network: &NetworkName,
    here: &Judge<'a>,
    groups: &Groups<'a>,
    moved: &[&Moved<'_, 'a>],
    (once_joined, by_key): (bool, bool),
) -> Vec<ReachChange> {
    let mut against: BTreeMap<&Group<'a>, BTreeSet<&Group<'a>>> = BTreeMap::new();
    for (from, to, _) in moved {
        against.entry(*from).or_default().insert(*to);
    }
    let size = |group: &Group<'a>| groups[group].len() as u64;
    // Those who are not there yet count only where all are waited for.
    let is_there = |group: &&Group<'a>| {
        let situation = (here.of)(group).filter(|it| !it.class.is_outer() && it.key.is_none());
        situation.is_some_and(|it| once_joined || !it.awaited)
    };
    let there: Vec<&Group<'a>> = groups.keys().filter(is_there).collect();
    let parties = |some: &mut dyn Iterator<Item = &Group<'a>>| -> BTreeSet<&'a Party> {
        some.flat_map(|group| &groups[group]).copied().collect()
    };
    // Groups that move against most others go first, so that few nodes are named; keys before all.
    let others = |group: &Group<'a>| {
        let with = |other: &&Group<'a>| size(other) - u64::from(group == *other);
        against.get(group).map_or(0, |others| others.iter().map(with).sum::<u64>())
    };
    let mut left: Vec<_> = against.keys().copied().collect();
    left.sort_by_key(|group| (!is_key(group), Reverse(others(group))));
    let mut done: BTreeSet<&Group<'a>> = BTreeSet::new();
    let mut lines = Vec::new();
    for group in left {
        let rest: BTreeSet<&Group<'a>> =
            against[group].iter().copied().filter(|other| *other != group && !done.contains(other)).collect();
        let within = against[group].contains(group) && size(group) > 1;
        done.insert(group);
        let (mine, theirs) = (parties(&mut std::iter::once(group)), parties(&mut rest.iter().copied()));
        let from = match is_key(group) {
            true => keys(&mine),
            false if mine.len() as u64 == there.iter().map(|it| size(it)).sum::<u64>() => "*".into(),
            false => first_of(&mine),
        };
        let everybody = there
            .iter()
            .copied()
            .all(|other| *other == *group && (within || size(group) == 1) || rest.contains(other));
        let to_nodes = |others: u64| if by_key { 0 } else { others };
        let pair = |to: String, others: u64, pairs: u64| ReachChange {
            both_ways: true,
            by_key,
            from_nodes: if is_key(group) { 0 } else { size(group) },
            to_nodes: to_nodes(others),
            pairs: if by_key { 0 } else { pairs },
            ..line(network, from.clone(), to, &Access::everything())
        };
        let count = theirs.len() as u64;
        let inside = if within { size(group) - 1 } else { 0 };
        match (count, inside) {
            (0, 0) => {}
            // To whoever there is, which may be none but themselves.
            _ if everybody => {
                lines.push(pair("*".into(), count + inside, size(group) * (2 * count + inside)))
            }
            (0, _) => lines.push(pair(from.clone(), inside, size(group) * inside)),
            (_, 0) => lines.push(pair(named(&theirs), count, 2 * size(group) * count)),
            (..) => {
                lines.push(pair(named(&theirs), count, 2 * size(group) * count));
                lines.push(pair(from.clone(), inside, size(group) * inside));
            }
        }
    }
    lines.sort_by(|one, other| natural(&one.from, &other.from));
    lines
}
