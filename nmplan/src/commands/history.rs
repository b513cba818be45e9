//! `nmplan history`: shows the revision log, newest first.

use schema::api::LogEntry;
use schema::scalars::NetworkName;
use schema::snapshot::Revision;

use super::Run;
use crate::args;
use crate::control::{ControlError, ControlPlane};
use crate::error::{Error, Exit};
use crate::project;
use crate::render::{HistoryEntry, history};

/// How many revisions are shown for people, unless they ask for more: a screen.
const SCREEN: u64 = 20;
/// How many entries are read at once, which is as many as the server sends.
pub(super) const PAGE: u64 = 1_000;

/// Shows the newest revisions.
pub async fn run<C: ControlPlane>(args: &args::History, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let server = (run.connect)(project::server(&run.place)?.as_deref())?;
    let status = run.console.waiting(&format!("asking {}", server.name()), server.status()).await?;
    let (epoch, head) = (status.epoch, status.revision);
    // Programs are given everything, because a part of a list looks like the whole of it.
    let limit = args.limit.unwrap_or(if run.console.json { u64::MAX } else { SCREEN });
    let only = run.only.clone();
    let read = newest(&server, head, limit, only.as_ref());
    let (log, more) = run.console.waiting("reading the log", read).await?;
    let text = if run.console.json {
        let all: Vec<_> = log.iter().map(|entry| HistoryEntry::of(entry, head)).collect();
        serde_json::to_string(&all).expect("a history can be written as JSON") + "\n"
    } else {
        history(&log, server.name(), (epoch, head), more, run.console.columns)
    };
    run.console.stdout(&text)?;
    Ok(Exit::Done)
}

/// The newest entries up to a head, newest first, at most so many, of one network or all; and whether there
/// are older ones.
async fn newest<C: ControlPlane>(
    server: &C,
    head: Revision,
    limit: u64,
    only: Option<&NetworkName>,
) -> Result<(Vec<LogEntry>, bool), ControlError> {
    let mut found = Vec::new();
    let mut end = head.0;
    while end > 0 && (found.len() as u64) < limit {
        let page = if only.is_some() { PAGE } else { PAGE.min(limit - found.len() as u64) };
        let after = end.saturating_sub(page);
        let entries =
            server.revisions(Revision(after), usize::try_from(end - after).unwrap_or(usize::MAX)).await?;
        let here = entries.into_iter().rev().filter(|entry| entry.revision.0 <= end);
        found.extend(here.filter(|entry| only.is_none_or(|only| concerns(entry, only))));
        end = after;
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = end > 0 || found.len() > limit;
    found.truncate(limit);
    Ok((found, more))
}

/// Whether an entry is about a network, or about the server as a whole.
fn concerns(LogEntry { changes, nodes, .. }: &LogEntry, network: &NetworkName) -> bool {
    let server = changes.is_empty() && nodes.is_empty();
    server
        || changes.iter().any(|it| it.id.network == *network)
        || nodes.iter().any(|it| it.network == *network)
}
