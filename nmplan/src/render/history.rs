//! The revision log as a table, and as the document that `history --json` prints.

use jiff::Timestamp;
use schema::api::LogEntry;
use schema::chain::ChainHash;
use schema::scalars::Name;
use schema::snapshot::{Provenance, Revision};
use schema::text::{count, moment, plain};
use serde::Serialize;

use super::table::{Entry, Table};
use super::wrapped;

/// One revision, as `history --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryEntry {
    /// The revision.
    pub revision: Revision,
    /// When it was made.
    pub time: Timestamp,
    /// Who made it: a token's id, a node, or the server itself.
    pub actor: String,
    /// What was done: `apply`, `join`, `epoch`...
    pub action: String,
    /// The project whose declarations changed; absent: those of none.
    pub project: Option<Name>,
    /// The env of it.
    pub env: Option<Name>,
    /// The git commit that the declarations came from; absent: not known.
    pub commit: Option<String>,
    /// The first line of its message, or why the server acted by itself; absent: none.
    pub message: Option<String>,
    /// Whether it is still the newest one.
    pub state: RevisionState,
    /// What distinguishes it from the same revision of another history; absent: the server is of an earlier
    /// version.
    pub hash: Option<ChainHash>,
}

/// Whether a revision is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RevisionState {
    /// It is what the server has now.
    Current,
    /// Later ones followed.
    Superseded,
}

impl HistoryEntry {
    /// What history shows of a log entry of a server whose newest revision is `head`.
    pub fn of(entry: &LogEntry, head: Revision) -> Self {
        let Provenance { commit, message, author: _, dirty: _ } =
            entry.provenance.clone().unwrap_or_default();
        Self {
            revision: entry.revision,
            time: entry.time,
            actor: entry.actor.clone(),
            action: entry.action.clone(),
            project: entry.owner.as_ref().map(|owner| owner.project.clone()),
            env: entry.owner.as_ref().map(|owner| owner.env.clone()),
            commit,
            message,
            state: if entry.revision >= head { RevisionState::Current } else { RevisionState::Superseded },
            hash: entry.hash,
        }
    }
}

/// The log, newest first, as a table in lines of `columns`; `more`: whether older entries are left out.
pub fn history(
    log: &[LogEntry],
    server: &str,
    (epoch, head): (u64, Revision),
    more: bool,
    columns: Option<usize>,
) -> String {
    let mut text = wrapped(format!("{server}, revision {head} of epoch {epoch}\n"), columns);
    if log.is_empty() {
        return text + "\nNo revision to show.\n";
    }
    let mut table = Table::new(&["REVISION", "TIME", "WHO", "WHAT", "FOR", "COMMIT", "MESSAGE"]);
    for entry in log {
        let Provenance { commit, message, author: _, dirty } = entry.provenance.clone().unwrap_or_default();
        let commit = commit.map(|commit| plain(&commit.chars().take(8).collect::<String>()));
        let commit = commit.map(|commit| if dirty { format!("{commit}+") } else { commit });
        table.row([
            Entry::of(entry.revision),
            Entry::of(moment(entry.time)),
            Entry::of(plain(&entry.actor)),
            Entry::of(what(entry)),
            Entry::of(entry.owner.as_ref().map(ToString::to_string).unwrap_or_default()),
            Entry::of(commit.unwrap_or_default()),
            Entry::of(message.map(|message| plain(&message)).unwrap_or_default()),
        ]);
    }
    text += &format!("\n{}", table.text(columns));
    if more {
        text += &wrapped("\nOlder revisions are left out; --limit NUMBER shows more.\n".into(), columns);
    }
    text
}

/// What an entry did, and to how much.
fn what(LogEntry { action, changes, guards, nodes, .. }: &LogEntry) -> String {
    let counted = [(changes.len(), "resource"), (guards.len(), "guard"), (nodes.len(), "node")]
        .into_iter()
        .filter(|(number, _)| *number > 0);
    let counts: Vec<_> = counted.map(|(number, one)| count(number as u64, one)).collect();
    if counts.is_empty() { action.clone() } else { format!("{action} ({})", counts.join(", ")) }
}
