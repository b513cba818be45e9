//! The nodes and the declared resources of a server as tables.

use std::collections::BTreeMap;

use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use jiff::Timestamp;
use schema::api::{Control, NodeStatus, Presence, StatusDocument};
use schema::snapshot::{Owner, Revision, Snapshot};
use schema::world::BarredDocument;

use super::{count, moment};

/// The state of the nodes, as a table.
pub fn status(document: &StatusDocument, server: &str, now: Timestamp) -> String {
    let StatusDocument { revision, nodes, .. } = document;
    let mut text = format!("{server}, revision {revision}: {}\n", counts(nodes));
    if nodes.is_empty() {
        return text;
    }
    let mut table =
        table(&["NETWORK", "NODE", "STATE", "CONTROL", "ADDRESSES", "LAST CHECK-IN", "HAS", "TAGS"]);
    for node in nodes {
        let network = node.id.split('/').next().unwrap_or_default();
        table.add_row([
            network.into(),
            node.name.as_str().into(),
            state(node),
            Cell::new(transport(node.control)),
            Cell::new(node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
            Cell::new(node.last_check_in.map_or("-".to_owned(), |time| ago(time, now))),
            Cell::new(node.acknowledged.map_or("-".to_owned(), |at| has(at, *revision))),
            Cell::new(node.tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        ]);
    }
    text += &format!("\n{}\n", trimmed(&table));
    let problems = nodes.iter().flat_map(|node| node.problems.iter().map(move |problem| (node, problem)));
    for (place, (node, problem)) in problems.enumerate() {
        let head = if place == 0 { "\nProblems\n" } else { "" };
        text += &format!("{head}  {}: {} ({})\n", node.id, problem.message, problem.code);
    }
    text
}

fn counts(nodes: &[NodeStatus]) -> String {
    if nodes.is_empty() {
        return "no node is declared and none has joined".into();
    }
    let number = |state| nodes.iter().filter(|node| node.state == state).count();
    let online = number(Presence::Online);
    let silent = number(Presence::Silent);
    let awaiting = number(Presence::Awaiting);
    format!(
        "{} ({online} online, {silent} silent, {awaiting} awaiting a join)",
        count(nodes.len() as u64, "node")
    )
}

fn state(node: &NodeStatus) -> Cell {
    match node.state {
        Presence::Online => Cell::new("online").fg(Color::Green),
        Presence::Silent => Cell::new("silent").fg(Color::Red),
        Presence::Awaiting => Cell::new("awaiting").fg(Color::Yellow),
    }
}

const fn transport(control: Control) -> &'static str {
    match control {
        Control::Tunnel => "tunnel",
        Control::Tls => "tls",
        Control::None => "none",
    }
}

fn has(at: Revision, newest: Revision) -> String {
    if at >= newest { "everything".into() } else { format!("revision {at}") }
}

fn ago(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(time).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// The hosts that may not join again, as a table.
pub fn bans(barred: &[BarredDocument], server: &str) -> String {
    if barred.is_empty() {
        return format!("{server}: no host is barred from a network\n");
    }
    let mut table = table(&["NETWORK", "NODE", "SINCE", "IDENTITY"]);
    for BarredDocument { network, identity, barred } in barred {
        table.add_row([
            network.to_string(),
            barred.node.to_string(),
            moment(barred.since),
            identity.to_string(),
        ]);
    }
    let hosts = count(barred.len() as u64, "host");
    format!(
        "{server}: {hosts} may not join again\n\n{}\n\nTo let one join again: nmplan node unban NETWORK/NODE\n",
        trimmed(&table)
    )
}

/// What a server has, by network, kind and owner, as a table.
pub fn declared(snapshot: &Snapshot, server: &str, revision: Revision) -> String {
    let mut text = format!("{server}, revision {revision}: {}\n", count(snapshot.len() as u64, "resource"));
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, entry) in snapshot.entries().filter(|(id, _)| id.kind.descriptor().within.is_some()) {
        groups.entry((&id.network, id.kind, &entry.owner)).or_default().push(id.name.as_str());
    }
    let mut table = table(&["NETWORK", "KIND", "COUNT", "NAMES", "MANAGED BY"]);
    for (network, owner) in snapshot
        .entries()
        .filter(|(id, _)| id.kind.descriptor().within.is_none())
        .map(|(id, entry)| (id, &entry.owner))
    {
        table.add_row([
            network.to_string(),
            network.kind.to_string(),
            "1".into(),
            network.to_string(),
            manager(owner),
        ]);
        for ((_, kind, owner), names) in groups
            .range((&network.network, network.kind, &None)..)
            .take_while(|((of, ..), _)| **of == network.network)
        {
            table.add_row([
                String::new(),
                kind.to_string(),
                names.len().to_string(),
                few(names),
                manager(owner),
            ]);
        }
    }
    if !snapshot.is_empty() {
        text += &format!("\n{}\n", trimmed(&table));
    }
    text
}

fn few(names: &[&str]) -> String {
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(" ");
    if names.len() > 5 { format!("{shown} ... {} more", names.len() - 5) } else { shown }
}

fn manager(owner: &Option<Owner>) -> String {
    owner.as_ref().map_or("nobody".into(), ToString::to_string)
}

pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    // The console removes the colours where they would not be shown.
    table.enforce_styling().set_header(head.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A table without trailing blanks.
pub(super) fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
