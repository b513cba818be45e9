//! Who can reach whom after a plan and not before, or only before, as text.

use std::collections::BTreeMap;

use owo_colors::OwoColorize;
use schema::compile::reach::{Direction, ReachChange};
use schema::snapshot::ResourceId;
use schema::text::count;

use super::fold;

/// How many of the changes that may be the cause are named.
const CAUSES: usize = 2;

/// What nodes gain and lose, either now or once those that are awaited have joined. `places` are where resources are
/// declared, as `FILE:LINE`.
pub fn reach(
    reach: &[ReachChange],
    once_joined: bool,
    places: &BTreeMap<ResourceId, String>,
    full: bool,
) -> Vec<String> {
    let reach: Vec<_> = reach.iter().filter(|change| change.once_joined == once_joined).collect();
    let width = reach.iter().map(|it| it.network.as_str().len()).max().unwrap_or_default();
    let named = |id: &ResourceId| match places.get(id) {
        Some(place) => format!("{id} ({place})"),
        None => id.to_string(),
    };
    let line = |change: &&ReachChange| {
        let ReachChange { network, direction, rule, because, pairs, by_key, .. } = change;
        let sign = match direction {
            Direction::Gained => "+".green().to_string(),
            Direction::Lost => "-".red().to_string(),
        };
        let pairs = if *by_key { String::new() } else { format!(" ({})", count(*pairs, "pair")) };
        let by = rule.as_ref().map(|rule| format!(", by {}", named(rule))).unwrap_or_default();
        let others: Vec<&ResourceId> = because.iter().filter(|id| Some(*id) != rule.as_ref()).collect();
        let mut causes: Vec<String> = others.iter().take(CAUSES).map(|id| named(id)).collect();
        match others.len().saturating_sub(CAUSES) {
            0 => {}
            more => causes.push(count(more as u64, "more change")),
        }
        let because = match causes.is_empty() {
            true => String::new(),
            false => format!(", because of {}", super::names(causes.iter())),
        };
        (format!("  {:width$}  {sign} {}{pairs}{by}{because}", network.as_str(), whom(change)), false)
    };
    fold(reach.iter().map(line).collect(), full)
}

/// Who opens what at whom.
fn whom(ReachChange { from, to, what, direction, both_ways, by_key, .. }: &ReachChange) -> String {
    let every = |text: &str| match text.strip_prefix('*') {
        Some(but) => format!("every node{but}"),
        None => text.to_owned(),
    };
    let whom = match (&**from, &**to) {
        (_, "*") if *both_ways => "every other node".to_owned(),
        (from, to) if from == to && (*both_ways || *by_key) => "each other".to_owned(),
        (_, to) => every(to),
    };
    let arrow = if *both_ways { "<->" } else { "->" };
    // What is gained of everything is the rest of it.
    let rest = what.strip_prefix("everything but ").filter(|_| *direction == Direction::Gained);
    let what = match rest {
        _ if *both_ways => String::new(),
        Some(had) => format!(" {}, so far {had}", "everything".bold()),
        None => format!(" {}", what.bold()),
    };
    format!("{} {arrow} {whom}{what}", every(from))
}
