//! Who carries traffic for others, and what becomes of external clients, as text.

use std::collections::{BTreeMap, BTreeSet};

use owo_colors::OwoColorize;
use schema::client::{ClientChange, ClientOutcome, FieldChange};
use schema::compile::carrying::{Carrying, CarryingChange, Traffic};
use schema::impact::{Internet, NodeImpact};
use schema::kinds::Kind;
use schema::scalars::{Name, NetworkName};
use schema::snapshot::ResourceId;
use schema::text::count;

use super::{LISTED, NONE, fold, names};

/// Who carries traffic for others, where that changes, and whose traffic to the internet goes another way.
pub fn carrying(changes: &[CarryingChange], impact: &[NodeImpact], full: bool) -> Vec<String> {
    let mut groups: Vec<(String, Vec<String>)> =
        changes.iter().map(|change| (change.id.to_string(), sentences(change))).collect();
    groups.extend(internet(impact).into_iter().map(|(network, moves)| (network.to_string(), moves)));
    groups.retain(|(_, sentences)| !sentences.is_empty());
    let width = groups.iter().map(|(of, _)| of.len()).max().unwrap_or_default();
    let text = |(of, sentences): &(String, Vec<String>)| {
        let lines = sentences
            .iter()
            .enumerate()
            .map(|(place, sentence)| format!("  {:width$}  {sentence}", if place == 0 { of } else { "" }));
        (lines.collect::<Vec<_>>().join("\n"), false)
    };
    fold(groups.iter().map(text).collect(), full)
}

/// What changes of one thing that is carried.
fn sentences(CarryingChange { id, traffic, before, after }: &CarryingChange) -> Vec<String> {
    let traffic = *traffic;
    let (before, after) = match (before, after) {
        (before, Some(after)) => (before.as_ref(), after),
        (Some(before), None) => {
            let who = before.carrier.as_ref().or(before.candidates.first());
            let what = what(traffic, before);
            return who
                .map(|who| format!("{who} no longer {} {what}", verb(traffic).1))
                .into_iter()
                .collect();
        }
        (None, None) => return Vec::new(),
    };
    let mut text = carrier(traffic, before, after);
    text.extend(stand_by(before, after));
    text.extend(alone(traffic, id, after));
    text
}

/// Who carries it, and what of that changes.
fn carrier(traffic: Traffic, before: Option<&Carrying>, after: &Carrying) -> Vec<String> {
    let ((verb, verbs), what) = (verb(traffic), what(traffic, after));
    let had = before.and_then(|before| before.carrier.as_ref());
    let Some(carrier) = &after.carrier else {
        let awaited = after.awaited.first();
        return vec![match (had, awaited, after.away.first()) {
            (Some(had), Some(node), _) => {
                format!("{had} no longer {verbs} {what}; {node} does once it has joined")
            }
            (None, Some(node), None) => format!("{node} {verbs} {what}, once it has joined"),
            (Some(had), None, _) => format!("{had} no longer {verbs} {what}, and nobody else does"),
            (None, _, Some(away)) => format!("nobody {verbs} {what}, since {away} is away"),
            (None, None, None) => return Vec::new(),
        }];
    };
    let Some(before) = before.filter(|_| had.is_some()) else {
        return vec![format!("{carrier} begins to {verb} {what}{}", reads(traffic))];
    };
    if let Some(had) = had.filter(|had| *had != carrier) {
        let mut text = vec![format!("{carrier} {verbs} {what}, in place of {had}{}", reads(traffic))];
        if after.nat == Some(true) {
            text.push(format!(
                "hosts there see the address of {carrier} from now on, where they saw that of {had}"
            ));
        }
        return text;
    }
    let mut text = Vec::new();
    let ranges = |more: &Carrying, than: &Carrying| list(more.ranges.difference(&than.ranges), "range");
    text.extend(ranges(after, before).map(|more| format!("{carrier} begins to {verb} {more}")));
    text.extend(ranges(before, after).map(|less| format!("{carrier} no longer {verbs} {less}")));
    match after.nat.filter(|_| before.nat != after.nat) {
        Some(true) => text.push(format!("{carrier} does so with NAT from now on: its own address is seen there")),
        Some(false) => text.push(format!(
            "{carrier} does so without NAT from now on: members' own addresses are seen there, and need a route back through it"
        )),
        None => {}
    }
    let (old, new) = (whom(before), whom(after));
    if old != new {
        let old = old.unwrap_or_else(|| "nobody".into());
        text.push(format!("{carrier} {verbs} {what}; before it was for {old}"));
    }
    text
}

/// What a node could do with what it carries: tunnels end at each node that passes packets on.
fn reads(traffic: Traffic) -> &'static str {
    match traffic {
        Traffic::Everything => ", and could read it",
        // They leave the mesh there anyway.
        Traffic::Clients | Traffic::Ranges => "",
    }
}

/// Who stands by from now on, and who no longer does.
fn stand_by(before: Option<&Carrying>, after: &Carrying) -> Vec<String> {
    let waiting = |of: &Carrying| -> BTreeSet<Name> {
        of.candidates.iter().filter(|name| of.carrier.as_ref() != Some(*name)).cloned().collect()
    };
    let (had, has) = (before.map(waiting).unwrap_or_default(), waiting(after));
    let first = after.candidates.first().filter(|_| after.carrier.is_none());
    let new = has.iter().filter(|name| !had.contains(*name) && first != Some(*name)).map(|name| {
        let when = if after.awaited.contains(name) {
            " once it has joined"
        } else if after.away.contains(name) {
            " once it is no longer away"
        } else {
            ""
        };
        format!("{name} stands by{when}")
    });
    let gone = had.iter().filter(|name| !after.candidates.contains(name));
    new.chain(gone.map(|name| format!("{name} no longer stands by"))).collect()
}

/// What depends on one node alone, and what is then while it is away.
fn alone(traffic: Traffic, id: &ResourceId, after: &Carrying) -> Option<String> {
    let (node, until) = match &after.carrier {
        Some(carrier) if !after.has_another() => (carrier, after.awaited.first()),
        None if after.candidates.len() == 1 => (after.candidates.first()?, None),
        Some(_) | None => return None,
    };
    let then = match traffic {
        Traffic::Everything if id.kind == Kind::Network => "nobody reaches anybody else".to_owned(),
        Traffic::Everything | Traffic::Clients => "these reach nobody, and nobody reaches them".to_owned(),
        Traffic::Ranges if !after.is_default_route() => "nobody reaches what is there".to_owned(),
        Traffic::Ranges if after.fallback => "what they send there leaves by their own ways".to_owned(),
        Traffic::Ranges => "what they send there is refused".to_owned(),
    };
    let until = until.map(|node| format!(", until {node} has joined")).unwrap_or_default();
    Some(format!("no other node does{until}: while {node} is away, {then}"))
}

/// What a node does: as in `begins to carry`, and as in `it carries`.
fn verb(traffic: Traffic) -> (&'static str, &'static str) {
    match traffic {
        Traffic::Everything | Traffic::Clients => ("carry", "carries"),
        Traffic::Ranges => ("forward", "forwards"),
    }
}

/// What is carried, and for whom.
fn what(traffic: Traffic, carrying: &Carrying) -> String {
    let whom = whom(carrying);
    match traffic {
        Traffic::Everything => {
            format!("all traffic of {}", whom.unwrap_or_else(|| "nodes, of which none has joined yet".into()))
        }
        Traffic::Clients => {
            let nobody = || "external clients, of which none is let in yet".into();
            format!("all traffic of {}", whom.unwrap_or_else(nobody))
        }
        Traffic::Ranges => {
            let ranges = list(carrying.ranges.iter(), "range").unwrap_or_default();
            let nat = if carrying.nat == Some(true) { "with" } else { "without" };
            format!("{ranges} {nat} NAT{}", whom.map(|whom| format!(", for {whom}")).unwrap_or_default())
        }
    }
}

/// For whom something is carried; absent: for nobody at present.
pub(super) fn whom(Carrying { nodes, clients, members, .. }: &Carrying) -> Option<String> {
    Some(match (*nodes, *clients) {
        (0, 0) => return None,
        (nodes, clients) if nodes + clients <= members.len() as u64 => names(members.iter()),
        (nodes, 0) => count(nodes, "node"),
        (0, clients) => count(clients, "external client"),
        (nodes, clients) => format!("{} and {}", count(nodes, "node"), count(clients, "external client")),
    })
}

/// The nodes whose traffic to the internet goes another way, by network.
fn internet(impact: &[NodeImpact]) -> BTreeMap<&NetworkName, Vec<String>> {
    let mut moves: BTreeMap<_, Vec<&Name>> = BTreeMap::new();
    for NodeImpact { network, node, internet, .. } in impact {
        let mut families: BTreeMap<(&Internet, &Internet), Vec<String>> = BTreeMap::new();
        for change in internet {
            families.entry((&change.before, &change.after)).or_default().push(change.range.to_string());
        }
        for (way, ranges) in families {
            moves.entry((network, way, ranges)).or_default().push(node);
        }
    }
    let mut text: BTreeMap<&NetworkName, Vec<String>> = BTreeMap::new();
    for ((network, (before, after), ranges), nodes) in moves {
        let whose = match &*nodes {
            nodes if nodes.len() <= LISTED => names(nodes.iter()),
            nodes => format!("{}, {} and {} more", nodes[0], nodes[1], nodes.len() - 2),
        };
        let before = match before {
            Internet::Own => "",
            Internet::Through(node) => &format!(", no longer through {node}"),
            Internet::Refused => ", and is no longer refused",
        };
        let sentence = format!("{}{before}", leads(after));
        text.entry(network).or_default().push(format!(
            "what {whose} {} to the internet ({}) {sentence}",
            if nodes.len() == 1 { "sends" } else { "send" },
            ranges.join(", "),
        ));
    }
    text
}

fn leads(after: &Internet) -> String {
    match after {
        Internet::Own => "leaves by the host's own route".into(),
        Internet::Through(node) => format!("goes through {node}"),
        Internet::Refused => "is refused, since no gateway carries it".into(),
    }
}

/// What becomes of external clients: who is cut off first.
pub fn clients(changes: &[ClientChange], full: bool) -> Vec<String> {
    let width = changes.iter().map(|it| it.id.to_string().len()).max().unwrap_or_default();
    let mut sorted: Vec<&ClientChange> = changes.iter().collect();
    let place = |outcome| match outcome {
        ClientOutcome::CutOff => 0,
        ClientOutcome::Anew => 1,
        ClientOutcome::New => 2,
        ClientOutcome::Awaited => 3,
    };
    sorted.sort_by_key(|it| (place(it.outcome), &it.id));
    let line = |ClientChange { id, outcome, fields, because }: &ClientChange| {
        let because = because.as_deref().unwrap_or_default();
        let (sign, text) = match outcome {
            ClientOutcome::CutOff => ("-".red().to_string(), format!("is cut off: {because}")),
            ClientOutcome::Anew => {
                let fields: Vec<_> = fields.iter().map(field).collect();
                ("~".yellow().to_string(), format!("needs a new configuration: {}", fields.join("; ")))
            }
            ClientOutcome::New => {
                let client = format!("{}/{}", id.network, id.name);
                (
                    "+".green().to_string(),
                    format!("can be configured, after the apply: nmplan client conf {client}"),
                )
            }
            ClientOutcome::Awaited => (" ".into(), format!("cannot be configured yet: {because}")),
        };
        format!("  {sign} {:width$}  {text}", id.to_string())
    };
    let mut text = fold(sorted.iter().map(|change| (line(change), false)).collect(), full);
    if changes.iter().any(|change| change.outcome == ClientOutcome::Anew) {
        text.push(
            "\n  A new configuration is written, after the apply and from the client's private key, by\n"
                .into(),
        );
        text.push("    nmplan client conf NAME --key FILE".into());
    }
    text
}

/// How a field of a configuration changes.
fn field(FieldChange { name, before, after }: &FieldChange) -> String {
    if before.len() <= 1 && after.len() <= 1 {
        let value = |of: &[String]| of.first().cloned().unwrap_or_else(|| NONE.into());
        return format!("{name} {} -> {}", value(before), value(after));
    }
    let differ = |sign: char, of: &[String], than: &[String]| -> Vec<String> {
        of.iter().filter(|value| !than.contains(value)).map(|value| format!("{sign}{value}")).collect()
    };
    let signed: Vec<_> = [differ('-', before, after), differ('+', after, before)].concat();
    format!("{name} {}", signed.join(" "))
}

/// Some of them by what they are, more by their number; nothing if there are none.
fn list(items: impl Iterator<Item = impl ToString>, one: &str) -> Option<String> {
    let items: Vec<_> = items.map(|item| item.to_string()).collect();
    match items.len() {
        0 => None,
        number if number <= LISTED => Some(items.join(", ")),
        number => Some(count(number as u64, one)),
    }
}
