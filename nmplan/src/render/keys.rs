//! Access keys: how hosts join with new ones, and which of the old ones let nobody in.

use comfy_table::Color;
use jiff::Timestamp;
use owo_colors::OwoColorize;
use schema::api::{KeyPhase, KeyState};
use schema::scalars::Name;
use schema::snapshot::ResourceId;
use schema::text::{count, moment, path, until, word};

use super::table::{Entry, Table};
use crate::keys::Sink;

/// How many commands are printed unless all are asked for.
const COMMANDS: usize = 10;

/// Where the tokens of new keys went (`done`), and the command with which a host joins by each. A key may
/// have only one name that it lets join.
pub fn tokens(keys: &[(&ResourceId, Option<Name>)], sink: Option<&Sink>, done: &str, full: bool) -> String {
    let shown = if full { keys.len() } else { COMMANDS };
    let mut text = format!("{} {done}. A host joins with:\n\n", count(keys.len() as u64, "token"));
    for (id, name) in keys.iter().take(shown) {
        let name = name.as_ref().map(|name| format!(" --name {name}")).unwrap_or_default();
        text += &match sink {
            Some(Sink::File(file)) => {
                let file = word(&format!("@{}", path(file)));
                format!("    netclient join -t {file} --key {id}{name}\n")
            }
            Some(Sink::Output | Sink::Command(_)) | None => {
                format!("    netclient join -t TOKEN{name}    # the token of {id}\n")
            }
        };
    }
    if keys.len() > shown {
        text += &format!("    ... and {} more; -v shows all\n", keys.len() - shown);
    }
    text + "\nNo token can be shown again. Where one is lost, give its key another name in the files, and apply: that makes a \
            new one.\n"
}

/// The keys that let nobody in any more, and what to do about that; nothing if there are none.
pub(super) fn closed(keys: &[KeyState]) -> Vec<String> {
    let shut: Vec<_> = keys.iter().filter(|key| key.state != KeyPhase::Open).collect();
    let width = shut.iter().map(|key| key.id.to_string().len()).max().unwrap_or_default();
    let mut lines: Vec<_> =
        shut.iter().map(|key| format!("  {:width$}  {}", key.id.to_string(), why(key))).collect();
    lines.extend((!lines.is_empty()).then(advice));
    lines
}

/// How a key that lets nobody in any more may let hosts in again.
fn advice() -> String {
    "  To let more hosts join, raise `uses` or `expires`, or give the key another name.".dimmed().to_string()
}

/// What to do about the keys in a [`table`] that let nobody in any more; nothing if there are none.
pub(super) fn reopen(keys: &[KeyState]) -> String {
    if keys.iter().all(KeyState::is_open) { String::new() } else { advice() + "\n" }
}

/// The keys, each with what is left of it.
pub(super) fn table(keys: &[KeyState], now: Timestamp) -> Table {
    let mut table = Table::new(&["NETWORK", "ACCESS KEY", "STATE", "USES LEFT", "EXPIRES"]);
    for key in keys {
        let state = match key.state {
            KeyPhase::Open => Entry::coloured("open", Color::Green),
            KeyPhase::Spent => Entry::coloured("spent", Color::Red),
            KeyPhase::Expired => Entry::coloured("expired", Color::Red),
        };
        table.row([
            Entry::of(&key.id.network),
            Entry::of(&key.id.name),
            state,
            Entry::of(uses_left(key)),
            Entry::of(expires(key, now)),
        ]);
    }
    table
}

/// How often a key may still be used, of how often.
pub(super) fn uses_left(key: &KeyState) -> String {
    match (key.left(), key.uses) {
        // One with `for` lets a name join again whose node was removed.
        (Some(0), Some(uses)) if key.is_open() => format!("0 of {uses}, and again after a removal"),
        (Some(left), Some(uses)) => format!("{left} of {uses}"),
        (_, _) => format!("any number ({} so far)", key.used),
    }
}

/// When a key expires, or did.
pub(super) fn expires(key: &KeyState, now: Timestamp) -> String {
    match key.expires {
        None => "never".to_owned(),
        Some(end) if end <= now => moment(end),
        Some(end) => format!("{} ({})", moment(end), until(end, now)),
    }
}

fn why(KeyState { state, used, expires, .. }: &KeyState) -> String {
    match (state, expires) {
        (KeyPhase::Expired, Some(end)) => format!("expired on {}", moment(*end)),
        (KeyPhase::Spent, _) => format!("used up: {}", count(*used, "use")),
        (KeyPhase::Expired | KeyPhase::Open, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_key_says_that_one_for_names_is_never_used_up() {
        let key = |state, used, uses| {
            let id = "corp/access-key/k".parse().expect("an id");
            uses_left(&KeyState { id, state, used, uses, expires: None })
        };
        assert_eq!(key(KeyPhase::Open, 2, Some(3)), "1 of 3");
        assert_eq!(key(KeyPhase::Spent, 3, Some(3)), "0 of 3");
        assert_eq!(key(KeyPhase::Open, 3, Some(3)), "0 of 3, and again after a removal");
        assert_eq!(key(KeyPhase::Open, 7, None), "any number (7 so far)");
    }
}
