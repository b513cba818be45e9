//! The nodes of a server, what they carry for others, and its declared resources as tables.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::Color;
use jiff::Timestamp;
use schema::api::{CarrierState, Control, KeyState, NodeStatus, PendingState, Presence, StatusDocument};
use schema::kinds::Node;
use schema::scalars::Name;
use schema::snapshot::{Owner, ResourceId, Revision, Snapshot};
use schema::text::{ago, count, moment, natural, plain};
use schema::world::BarredDocument;

use super::keys::closed;
use super::table::{Entry, Table};
use super::{facts, section, wrapped};

/// The state of the nodes, as a table in lines of `columns`, and what is wrong with nodes and keys.
pub fn status(document: &StatusDocument, server: &str, now: Timestamp, columns: Option<usize>) -> String {
    let StatusDocument { epoch: _, revision, nodes, keys, egress, relays } = document;
    let mut text = wrapped(format!("{server}, revision {revision}: {}\n", counts(nodes)), columns);
    if !nodes.is_empty() {
        text += &format!("\n{}", table(nodes, *revision, now).text(columns));
    }
    if !egress.is_empty() || !relays.is_empty() {
        text += &format!("\n{}", carriers(egress.iter().chain(relays), nodes).text(columns));
    }
    if !keys.is_empty() {
        text += &format!("\n{}", super::keys::table(keys, now).text(columns));
        text += &wrapped(super::keys::reopen(keys), columns);
    }
    let rest =
        section("Hosts that wait to be let in", waiting(nodes, now)) + &section("Problems", problems(nodes));
    text + &wrapped(rest, columns)
}

/// What is not as it should be on hosts.
fn problems(nodes: &[NodeStatus]) -> Vec<String> {
    let problems = nodes.iter().flat_map(|node| node.problems.iter().map(move |problem| (node, problem)));
    problems.map(|(node, problem)| format!("  {}: {} ({})", node.id, problem.message, problem.code)).collect()
}

/// The state of one thing, of which a status has been cut down to what concerns it; a table in lines of `columns`.
pub fn status_of(
    id: &ResourceId,
    document: &StatusDocument,
    server: &str,
    now: Timestamp,
    columns: Option<usize>,
) -> String {
    let StatusDocument { epoch: _, revision, nodes, keys, egress, relays } = document;
    let mut text = wrapped(format!("{id} on {server}, revision {revision}\n"), columns);
    for node in nodes.iter().filter(|node| node.pending.is_none()) {
        text += &wrapped(format!("\n{}", facts(node_facts(node, keys, *revision, now))), columns);
    }
    if !egress.is_empty() || !relays.is_empty() {
        text += &format!("\n{}", carriers(egress.iter().chain(relays), nodes).text(columns));
    }
    if !keys.is_empty() {
        text += &format!("\n{}", super::keys::table(keys, now).text(columns));
        text += &wrapped(super::keys::reopen(keys), columns);
    }
    let rest =
        section("Hosts that wait to be let in", waiting(nodes, now)) + &section("Problems", problems(nodes));
    text + &wrapped(rest, columns)
}

fn node_facts(
    node: &NodeStatus,
    keys: &[KeyState],
    newest: Revision,
    now: Timestamp,
) -> Vec<(&'static str, Vec<String>)> {
    let listed = |items: Vec<String>| if items.is_empty() { Vec::new() } else { vec![items.join(", ")] };
    let addresses = listed(node.addresses.iter().map(ToString::to_string).collect());
    let tags = listed(node.tags.iter().map(ToString::to_string).collect());
    if node.state == Presence::Awaiting {
        let how = match keys {
            [] => {
                "no open access key has it in its `for`: declare one, or let a host in that asks, by `approved`"
            }
            [_, ..] => "with one of these access keys",
        };
        let state = vec!["awaiting: no host has joined as it".to_owned()];
        return vec![
            ("state", state),
            ("reserved", addresses),
            ("tags", tags),
            ("joins", vec![how.to_owned()]),
        ];
    }
    let seen = node.last_check_in.map(|time| format!("{} ({})", ago(time, now), moment(time)));
    let has = node.acknowledged.map(|at| match at >= newest {
        true => "everything that concerns it".to_owned(),
        false => format!("revision {at}, and not yet what concerns it since"),
    });
    vec![
        ("state", vec![word(node.state).to_owned()]),
        ("last check-in", vec![seen.unwrap_or_else(|| "none since the server started".to_owned())]),
        ("has", vec![has.unwrap_or_else(|| "unknown what it has".to_owned())]),
        ("control", vec![transport(node.control).to_owned()]),
        ("addresses", addresses),
        ("tags", tags),
        ("host", listed(node.os.iter().map(|os| plain(os)).collect())),
        ("fingerprint", listed(node.fingerprint.iter().map(ToString::to_string).collect())),
    ]
}

const fn word(state: Presence) -> &'static str {
    match state {
        Presence::Online => "online",
        Presence::Silent => "silent",
        Presence::Awaiting => "awaiting",
        Presence::Pending => "pending",
    }
}

fn table(nodes: &[NodeStatus], newest: Revision, now: Timestamp) -> Table {
    let mut table =
        Table::new(&["NETWORK", "NODE", "STATE", "CONTROL", "ADDRESSES", "LAST CHECK-IN", "HAS", "TAGS"]);
    for node in nodes {
        table.row([
            Entry::of(node.id.split('/').next().unwrap_or_default()),
            Entry::of(&node.name),
            state(node),
            Entry::of(transport(node.control)),
            Entry::of(node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
            Entry::of(node.last_check_in.map(|time| ago(time, now)).unwrap_or_default()),
            Entry::of(node.acknowledged.map(|at| has(at, newest)).unwrap_or_default()),
            Entry::of(node.tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        ]);
    }
    table
}

/// The hosts that wait, each with how to let it in.
fn waiting(nodes: &[NodeStatus], now: Timestamp) -> Vec<String> {
    let waits = nodes.iter().filter_map(|node| Some((node, node.pending.as_ref()?)));
    let several = |id: &str| waits.clone().filter(|(node, _)| node.id == id).count() > 1;
    waits.clone().flat_map(|(node, pending)| waiting_host(node, pending, several(&node.id), now)).collect()
}

/// `several`: whether others wait under the same name, so that a fingerprint has to say which is meant.
fn waiting_host(node: &NodeStatus, pending: &PendingState, several: bool, now: Timestamp) -> Vec<String> {
    let PendingState { since, until, seen, obstacle } = pending;
    let network = node.id.split('/').next().unwrap_or_default();
    let from = seen.map(|seen| format!(" from {seen}")).unwrap_or_default();
    let os = node.os.as_ref().map(|os| format!(", {}", plain(os))).unwrap_or_default();
    let (asked, dropped) = (ago(*since, now), moment(*until));
    let mut lines = vec![format!("  {network}/{}{from}{os}: asked {asked}, dropped on {dropped}", node.name)];
    lines.extend(node.fingerprint.map(|fingerprint| format!("    fingerprint {fingerprint}")));
    lines.push(match obstacle {
        None => {
            let which = node.fingerprint.filter(|_| several).map(|it| format!(" --identity {it}"));
            format!("    nmplan node approve {network}/{}{}", node.name, which.unwrap_or_default())
        }
        Some(why) => format!("    not under that name: {why}"),
    });
    lines
}

/// The nodes and the hosts that wait, with what identifies each host, as a table in lines of `columns`.
pub fn nodes(nodes: &[NodeStatus], server: &str, now: Timestamp, columns: Option<usize>) -> String {
    let mut text = wrapped(format!("{server}: {}\n", counts(nodes)), columns);
    if nodes.is_empty() {
        return text;
    }
    let mut table =
        Table::new(&["NETWORK", "NODE", "STATE", "ADDRESSES", "LAST HEARD OF", "OS", "FINGERPRINT"]);
    for node in nodes {
        let seen = node.pending.as_ref().and_then(|pending| pending.seen);
        let addresses = node.addresses.iter().map(ToString::to_string);
        let addresses = addresses.chain(seen.map(|seen| format!("(at {seen})")));
        let heard = node.pending.as_ref().map_or(node.last_check_in, |pending| Some(pending.since));
        table.row([
            Entry::of(node.id.split('/').next().unwrap_or_default()),
            Entry::of(&node.name),
            state(node),
            Entry::of(addresses.collect::<Vec<_>>().join("\n")),
            Entry::of(heard.map(|time| ago(time, now)).unwrap_or_default()),
            Entry::of(node.os.as_ref().map(|os| plain(os)).unwrap_or_default()),
            Entry::of(node.fingerprint.map(|it| it.to_string()).unwrap_or_default()),
        ]);
    }
    text += &format!("\n{}", table.text(columns));
    text
}

fn carriers<'a>(states: impl Iterator<Item = &'a CarrierState>, nodes: &[NodeStatus]) -> Table {
    let awaited = nodes.iter().filter(|node| node.state == Presence::Awaiting);
    let awaited: BTreeSet<&str> = awaited.map(|node| &*node.id).collect();
    let mut table = Table::new(&["NETWORK", "KIND", "NAME", "CARRIED BY", "CANDIDATES"]);
    for CarrierState { id, carrier, candidates, away } in states {
        let candidate = |name: &Name| {
            let joins = awaited.contains(&*ResourceId::of::<Node>(&id.network, name).to_string());
            match (joins, away.contains(name)) {
                (true, _) => format!("{name} (awaiting)"),
                (false, true) => format!("{name} (away)"),
                (false, false) => name.to_string(),
            }
        };
        table.row([
            Entry::of(&id.network),
            Entry::of(id.kind),
            Entry::of(&id.name),
            carrier.as_ref().map_or_else(|| Entry::coloured("nobody", Color::Red), Entry::of),
            Entry::of(candidates.iter().map(candidate).collect::<Vec<_>>().join(", ")),
        ]);
    }
    table
}

fn counts(nodes: &[NodeStatus]) -> String {
    if nodes.is_empty() {
        return "no node is declared and none has joined".into();
    }
    let number = |state| nodes.iter().filter(|node| node.state == state).count();
    let online = number(Presence::Online);
    let silent = number(Presence::Silent);
    let awaiting = number(Presence::Awaiting);
    let pending = number(Presence::Pending);
    let waits = match pending {
        0 => String::new(),
        1 => "; 1 host waits to be let in".into(),
        hosts => format!("; {hosts} hosts wait to be let in"),
    };
    format!(
        "{} ({online} online, {silent} silent, {awaiting} awaiting a join){waits}",
        count((nodes.len() - pending) as u64, "node")
    )
}

fn state(node: &NodeStatus) -> Entry {
    let colour = match node.state {
        Presence::Online => Color::Green,
        Presence::Silent => Color::Red,
        Presence::Awaiting | Presence::Pending => Color::Yellow,
    };
    Entry::coloured(word(node.state), colour)
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

/// The hosts that may not join again, as a table in lines of `columns`.
pub fn bans(barred: &[BarredDocument], server: &str, columns: Option<usize>) -> String {
    if barred.is_empty() {
        return format!("{server}: no host is barred from a network\n");
    }
    let mut table = Table::new(&["NETWORK", "NODE", "SINCE", "IDENTITY"]);
    for BarredDocument { network, identity, barred } in barred {
        table.row([
            Entry::of(network),
            Entry::of(&barred.node),
            Entry::of(moment(barred.since)),
            Entry::of(identity),
        ]);
    }
    let hosts = count(barred.len() as u64, "host");
    let title = wrapped(format!("{server}: {hosts} may not join again\n"), columns);
    let table = table.text(columns);
    format!("{title}\n{table}\nTo let one join again: nmplan node unban NETWORK/NODE\n")
}

/// What a server has, by network, kind and owner, as a table in lines of `columns`.
pub fn declared(
    snapshot: &Snapshot,
    keys: &[KeyState],
    server: &str,
    revision: Revision,
    columns: Option<usize>,
) -> String {
    let resources = count(snapshot.len() as u64, "resource");
    let mut text = wrapped(format!("{server}, revision {revision}: {resources}\n"), columns);
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, entry) in snapshot.entries().filter(|(id, _)| id.kind.descriptor().within.is_some()) {
        groups.entry((&id.network, id.kind, &entry.owner)).or_default().push(id.name.as_str());
    }
    groups.values_mut().for_each(|names| names.sort_by(|one, other| natural(one, other)));
    let mut table = Table::new(&["NETWORK", "KIND", "COUNT", "MANAGED BY", "NAMES"]);
    for (network, owner) in snapshot
        .entries()
        .filter(|(id, _)| id.kind.descriptor().within.is_none())
        .map(|(id, entry)| (id, &entry.owner))
    {
        table.row([
            Entry::of(network),
            Entry::of(network.kind),
            Entry::of(1),
            Entry::of(manager(owner)),
            Entry::of(network),
        ]);
        for ((_, kind, owner), names) in groups
            .range((&network.network, network.kind, &None)..)
            .take_while(|((of, ..), _)| **of == network.network)
        {
            table.row([
                Entry::of(&network.network),
                Entry::of(kind),
                Entry::of(names.len()),
                Entry::of(manager(owner)),
                Entry::of(few(names)),
            ]);
        }
    }
    if !snapshot.is_empty() {
        text += &format!("\n{}", table.text(columns));
    }
    text + &wrapped(section("Access keys that let nobody join", closed(keys)), columns)
}

fn few(names: &[&str]) -> String {
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
}

fn manager(owner: &Option<Owner>) -> String {
    owner.as_ref().map_or("nobody".into(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_carries_what_is_shown_with_those_that_do_not() {
        let node = |name: &str, state: &str| {
            serde_json::json!({
                "id": format!("corp/node/{name}"), "name": name, "tags": [], "addresses": [], "public_key": null,
                "state": state, "last_check_in": null, "acknowledged": null, "control": "none", "problems": []
            })
        };
        let document = serde_json::json!({
            "epoch": 1, "revision": 7, "keys": [],
            "nodes": [node("gw-a", "online"), node("gw-b", "online"), node("gw-c", "awaiting")],
            "egress": [
                {"id": "corp/egress/office", "carrier": "gw-b", "candidates": ["gw-a", "gw-b", "gw-c"], "away": ["gw-a"]}
            ],
            "relays": [{"id": "corp/relay/hills", "carrier": null, "candidates": ["gw-a"], "away": ["gw-a"]}],
        });
        let document: StatusDocument = serde_json::from_value(document).expect("a status");
        let styled = status(&document, "server", Timestamp::UNIX_EPOCH, None);
        let text = anstream::adapter::strip_str(&styled).to_string();
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let lines: Vec<_> = lines.skip_while(|line| !line.contains("CARRIED BY")).collect();
        assert_eq!(
            lines,
            [
                "NETWORK KIND NAME CARRIED BY CANDIDATES",
                "corp egress office gw-b gw-a (away), gw-b, gw-c (awaiting)",
                "corp relay hills nobody gw-a (away)"
            ]
        );
        let none = StatusDocument { egress: Vec::new(), relays: Vec::new(), ..document };
        assert!(!status(&none, "server", Timestamp::UNIX_EPOCH, None).contains("CARRIED BY"));
    }
}
