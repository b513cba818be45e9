//! What a caller may know of: everything of the networks of its grant, and nothing of any other. Pure.

use std::collections::BTreeSet;

use schema::api::LogEntry;
use schema::guard::Guard;
use schema::report::{Problem, Report};
use schema::scalars::NetworkName;
use schema::snapshot::Snapshot;

use crate::core::authorize::Grant;
use crate::error::Error;

/// What takes the place of a problem with something that the caller may not know of.
const ELSEWHERE: &str = "a rule forbids it because of something in a network that this token is not valid for; ask whoever manages that";

/// An entry of the log as the caller may see it; nothing if nothing in it is of its networks.
pub(super) fn entry(mut entry: LogEntry, grant: &Grant) -> Option<LogEntry> {
    entry.guards.retain(|owner, _| grant.holds_for(owner).is_ok());
    if grant.networks.is_none() {
        return Some(entry);
    }
    // Of others the caller need not see anything.
    let of_entry = entry.owner.clone();
    entry.guards.retain(|owner, _| Some(owner) == of_entry.as_ref());
    entry.changes.retain(|change| grant.holds_in(&change.id.network).is_ok());
    entry.nodes.retain(|node| grant.holds_in(&node.network).is_ok());
    entry.allowed.retain(|guard| match guard {
        Guard::CutOff | Guard::MaxDelete | Guard::MaxNodesChanged | Guard::MaxReachLost => true,
        Guard::Test(id) => grant.holds_in(&id.network).is_ok(),
        Guard::Protect(network) => grant.holds_in(network).is_ok(),
    });
    (!entry.changes.is_empty() || !entry.nodes.is_empty()).then_some(entry)
}

/// A refusal as the caller may see it.
pub(super) fn refusal(error: Error, grant: &Grant, declared: &Snapshot) -> Error {
    let Error::Rules(report) = &error else { return error };
    let hidden = declared.networks().map(|(name, _)| name).filter(|name| grant.holds_in(name).is_err());
    let hidden: BTreeSet<_> = hidden.collect();
    if hidden.is_empty() { error } else { Error::Rules(problems(report, &hidden)) }
}

/// The problems, each that names a hidden network replaced.
fn problems(report: &Report, hidden: &BTreeSet<&NetworkName>) -> Report {
    let mut visible = Report::default();
    for problem in report.problems() {
        let Problem { code, id, at: _, related: _, message, help } = problem;
        let texts = [id, &Some(message.clone()), help];
        let shown = if texts.into_iter().flatten().any(|text| names_one_of(text, hidden)) {
            Problem {
                code: *code,
                id: None,
                at: None,
                related: Vec::new(),
                message: ELSEWHERE.into(),
                help: None,
            }
        } else {
            problem.clone()
        };
        visible.push(shown);
    }
    visible
}

/// Whether a text has a word that is the name of one of these networks.
fn names_one_of(text: &str, networks: &BTreeSet<&NetworkName>) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut words = text.split(|c| !part_of_name(c));
    words.any(|word| networks.iter().any(|network| network.as_str() == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_as_a_word_and_not_in_another() {
        let [lab, corp]: [NetworkName; 2] = ["lab", "corp"].map(|name| name.parse().expect("good"));
        let hidden = BTreeSet::from([&lab]);
        for text in ["lab/dns/x", "overlaps lab", "10.0.0.0/24 of \"lab\"", "lab"] {
            assert!(names_one_of(text, &hidden), "{text}");
        }
        for text in ["label", "corp/dns/lab-1", "collab", ""] {
            assert!(!names_one_of(text, &hidden), "{text}");
        }
        assert!(!names_one_of("corp", &BTreeSet::new()) && names_one_of("corp", &BTreeSet::from([&corp])));
    }
}
