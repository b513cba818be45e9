//! The guard of a project as text: what becomes of it, and those that a server has.

use owo_colors::OwoColorize;
use schema::diff::fields;
use schema::limits::{self, GuardChange, Guards, Limits};

use super::difference::differences;
use super::table::{Entry, Table};
use super::{lines, value};

/// What becomes of a guard, a line for each of its limits.
pub fn guard(GuardChange { before, after }: &GuardChange) -> String {
    // Absent limits are no limits, on either side.
    let [before, after] = [before, after].map(|limits| limits.clone().unwrap_or_default().body());
    let changes = fields(limits::FIELDS, Some(&before), Some(&after));
    let changes: Vec<_> = changes.iter().flat_map(differences).collect();
    let width = changes.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    lines(changes.iter().map(|(name, how)| format!("  {} {name:width$}  {how}", "~".yellow())).collect())
}

/// The sentence about it in the verdict of a plan.
pub(super) fn verdict(change: &GuardChange) -> String {
    let what = match (&change.before, &change.after) {
        (None, _) => "The project gets a guard, which the next apply is judged by",
        (Some(_), Some(_)) => "The project's guard changes, for the next apply",
        (Some(_), None) => "The project's guard is removed: the next apply has no limits",
    };
    format!("{}.\n", what.bold())
}

/// The guards that a server has stored, as a table in lines of `columns`; nothing if there are none.
pub fn guards(guards: &Guards, columns: Option<usize>) -> String {
    let mut table = Table::new(&["GUARD OF", "LIMITS", "SINCE REVISION"]);
    let mut there = false;
    for (owner, guard) in guards.iter() {
        there = true;
        table.row([Entry::of(owner), Entry::of(shown(&guard.limits)), Entry::of(guard.revision)]);
    }
    if there { format!("\n{}", table.text(columns)) } else { String::new() }
}

/// The limits, each with its name.
fn shown(limits: &Limits) -> String {
    let body = limits.body();
    let record = body.as_record().cloned().unwrap_or_default();
    let limits = record.iter().map(|(name, limit)| format!("{name} {}", value(&limit.value)));
    limits.collect::<Vec<_>>().join("\n")
}
