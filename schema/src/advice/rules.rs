//! Rules that change nothing: what they allow, another one allows already, or they are about nobody but one member
//! itself. Decided by what the files say, whoever has joined, so that what is said stays true.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Planned;
use crate::access::Access;
use crate::kinds::{Acl, Allow, ExternalClient, Node};
use crate::report::{Code, Report};
use crate::rules::selected::Selected;
use crate::scalars::Name;
use crate::snapshot::ResourceId;

/// Checks the rules of a network that are made or changed, and those that such a one covers.
pub(super) fn check(planned: &Planned<'_>, report: &mut Report) {
    let Planned { network, after, source_map, .. } = *planned;
    let is_restricted = after.0.network(network).is_some_and(|settings| settings.acl == Acl::Deny);
    let changed: BTreeSet<&ResourceId> = planned.changed::<Allow>().map(|(id, ..)| id).collect();
    if !is_restricted || changed.is_empty() {
        return;
    }
    let rules = Rules::of(planned);
    for rule in &rules.all {
        let is_changed = changed.contains(rule.id);
        if let Some(name) = rule.only().filter(|_| is_changed) {
            let message =
                format!("{} is about {name} alone, and nobody needs a rule to reach itself", rule.id);
            let problem = planned.warning(Code::RuleOfOne, message, rule.id, None);
            report.push(problem.help("name others in `from` or `to`, or remove the rule".to_owned()));
            continue;
        }
        // Of two rules that say the same, the later one of those that change is superfluous.
        let covers = |wide: &&Rule<'_>| {
            let later = (is_changed, rule.id) > (changed.contains(wide.id), wide.id);
            (is_changed || changed.contains(wide.id))
                && rules.covers(wide, rule)
                && (later || !rules.covers(rule, wide))
        };
        let Some(wide) = rules.candidates(rule).find(covers) else { continue };
        let message =
            format!("{} has no effect: all that it allows is allowed by {} already", rule.id, wide.id);
        let problem = planned.warning(Code::RuleCovered, message, rule.id, None);
        let at = source_map.location(wide.id, &[]);
        let help = format!("remove it, or narrow {} down if that was meant", wide.id);
        report.push(problem.see(at, "this rule allows all of it").help(help));
    }
}

/// A rule with its sides taken apart.
struct Rule<'a> {
    id: &'a ResourceId,
    from: Selected,
    to: Selected,
    access: Access,
}

impl Rule<'_> {
    /// The name that is all of both sides.
    fn only(&self) -> Option<&Name> {
        let Selected { everybody, names, tags, ranges } = &self.from;
        let alone = !everybody && tags.is_empty() && ranges.is_empty() && names.len() == 1;
        names.first().filter(|_| alone && self.from == self.to)
    }
}

/// The rules of a network, and what the files say of its members.
struct Rules<'a> {
    all: Vec<Rule<'a>>,
    /// The tags that declared members have for certain: those of their declarations.
    tags: BTreeMap<&'a Name, &'a BTreeSet<Name>>,
    /// The places of rules that may cover one whose `from` has that name or tag; those that are about everybody,
    /// or a range, may cover any.
    by_name: BTreeMap<Name, Vec<usize>>,
    by_tag: BTreeMap<Name, Vec<usize>>,
    wide: Vec<usize>,
}

impl<'a> Rules<'a> {
    fn of(planned: &Planned<'a>) -> Self {
        let (network, declared) = (planned.network, planned.after.0);
        let selected = |side: &BTreeSet<_>| Selected::by(side, network, declared);
        let rule = |(id, allow): (&'a ResourceId, &'a Arc<Allow>)| Rule {
            id,
            from: selected(&allow.from),
            to: selected(&allow.to),
            access: allow.access(),
        };
        let all: Vec<_> = declared.all_in::<Allow>(network).map(rule).collect();
        let nodes = declared.all_in::<Node>(network).map(|(id, node)| (&id.name, &node.tags));
        let clients = declared.all_in::<ExternalClient>(network).map(|(id, client)| (&id.name, &client.tags));
        let tags = nodes.chain(clients).collect();
        let mut rules =
            Self { all, tags, by_name: BTreeMap::new(), by_tag: BTreeMap::new(), wide: Vec::new() };
        for (place, rule) in rules.all.iter().enumerate() {
            let Selected { everybody, names, tags, ranges } = &rule.from;
            if *everybody || !ranges.is_empty() {
                rules.wide.push(place);
            }
            names.iter().for_each(|name| rules.by_name.entry(name.clone()).or_default().push(place));
            tags.iter().for_each(|tag| rules.by_tag.entry(tag.clone()).or_default().push(place));
        }
        rules
    }

    /// The rules that may cover another: all that hold one of whom its `from` selects, and more.
    fn candidates(&self, rule: &Rule<'_>) -> impl Iterator<Item = &Rule<'a>> {
        let name = rule.from.names.first();
        let tags = name.and_then(|name| self.tags.get(name)).into_iter().copied().flatten();
        let tags = tags.chain(rule.from.tags.first().filter(|_| name.is_none()));
        let by_tag = tags.filter_map(|tag| self.by_tag.get(tag)).flatten();
        let by_name = name.and_then(|name| self.by_name.get(name)).into_iter().flatten();
        let places: BTreeSet<usize> = self.wide.iter().chain(by_name).chain(by_tag).copied().collect();
        places.into_iter().map(|place| &self.all[place]).filter(|other| other.id != rule.id)
    }

    /// Whether one rule allows all that another does.
    fn covers(&self, wide: &Rule<'_>, narrow: &Rule<'_>) -> bool {
        wide.access.contains(&narrow.access)
            && self.holds(&wide.from, &narrow.from)
            && self.holds(&wide.to, &narrow.to)
    }

    /// Whether everybody is on one side who is on another, whoever joins.
    fn holds(&self, wide: &Selected, narrow: &Selected) -> bool {
        let tagged = |name: &Name| self.tags.get(name).is_some_and(|tags| !tags.is_disjoint(&wide.tags));
        // `*` selects members and no ranges behind a gateway; 0.0.0.0/0 is nothing but itself.
        let inside = |range: &ipnet::IpNet| {
            wide.ranges.iter().any(|of| of == range || of.prefix_len() > 0 && of.contains(range))
        };
        let members = wide.everybody
            || !narrow.everybody
                && narrow.names.iter().all(|name| wide.names.contains(name) || tagged(name))
                && narrow.tags.is_subset(&wide.tags);
        members && narrow.ranges.iter().all(inside)
    }
}
