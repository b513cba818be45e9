//! Everything that is known of one resource, as text.

use jiff::Timestamp;
use schema::api::{CarrierState, KeyPhase, KeyState};
use schema::compile::carrying::Part;
use schema::details::{
    Changed, ClientDetails, ClientState, Declaration, Details, JoinedDetails, KeyDetails, Members,
    NetworkDetails, NodeDetails, RangeUse, ResourceDetails,
};
use schema::scalars::Name;
use schema::snapshot::Revision;
use schema::text::{count, moment, plain};
use schema::value::{Data, Value};

use super::keys::{expires, uses_left};
use super::{facts, section, value, wrapped};

/// A name, and what is to be said under it.
type Fact = (&'static str, Vec<String>);

/// Everything that is known of a resource of a server that is at a revision, in lines of `columns`.
pub fn details(
    details: &Details,
    server: &str,
    revision: Revision,
    now: Timestamp,
    columns: Option<usize>,
) -> String {
    let declaration = details.declaration();
    let mut text = format!("{} on {server}, revision {revision}\n{}\n", declaration.id, written(declaration));
    let fields = fields(declaration.body.as_ref());
    if !fields.is_empty() {
        text += &format!("\n{}", facts(vec![("fields", fields)]));
    }
    text += &match details {
        Details::Network(network) => of_network(network, now),
        Details::Node(node) => of_node(node, now),
        Details::AccessKey(key) => paragraph(of_key(key, now)),
        Details::ExternalClient(client) => paragraph(of_client(client)),
        Details::Resource(ResourceDetails { declaration: _, carried }) => {
            paragraph(vec![("carried", carried.iter().map(carrier).collect())])
        }
    };
    wrapped(text, columns)
}

fn paragraph(of: Vec<Fact>) -> String {
    let text = facts(of);
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// Who declares it, and who changed it last.
fn written(Declaration { body, owner, revision, changed, .. }: &Declaration) -> String {
    if body.is_none() {
        return "declared by no file".to_owned();
    }
    let owner = owner.as_ref().map_or("managed by nobody".to_owned(), |owner| format!("managed by {owner}"));
    let revision = revision.map(|revision| format!("; written in revision {revision}")).unwrap_or_default();
    let changed = changed.as_ref().map(|Changed { time, actor, action, commit, message }| {
        let commit = commit.as_ref().map(|commit| format!("\ncommit {}", plain(commit))).unwrap_or_default();
        let message = message.as_ref().map(|message| format!(": {}", plain(message))).unwrap_or_default();
        format!(", {action} by {} on {}{commit}{message}", plain(actor), moment(*time))
    });
    format!("{owner}{revision}{}", changed.unwrap_or_default())
}

/// The fields of a body, a line each.
fn fields(body: Option<&Value>) -> Vec<String> {
    match body.map(|body| &body.data) {
        Some(Data::Record(record)) => {
            record.iter().map(|(name, member)| format!("{name} {}", value(&member.value))).collect()
        }
        Some(_) | None => Vec::new(),
    }
}

fn of_network(network: &NetworkDetails, now: Timestamp) -> String {
    let NetworkDetails { declaration: _, ranges, joined, awaited, pending, clients, keys, carried } = network;
    let listed = |names: &[Name], one: &str| {
        let few = few(names);
        (!names.is_empty()).then(|| format!("{}: {few}", count(names.len() as u64, one)))
    };
    paragraph(vec![
        ("ranges", ranges.iter().map(range).collect()),
        ("nodes", listed(joined, "node").into_iter().collect()),
        ("awaited", listed(awaited, "node").into_iter().collect()),
        ("waiting", listed(pending, "host").into_iter().collect()),
        ("clients", listed(clients, "external client").into_iter().collect()),
        ("carried", carried.iter().map(carrier).collect()),
        ("keys", keys.iter().map(|key| format!("{}: {}", key.id.name, key_state(key, now))).collect()),
    ])
}

fn range(RangeUse { range, used, quarantined, free }: &RangeUse) -> String {
    let free = free.map_or("more than 2^53".to_owned(), |free| free.to_string());
    format!("{range}: {used} used, {quarantined} in quarantine, {free} free")
}

/// The first names, and how many more there are.
fn few(names: &[Name]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<_> = names.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    shown.join(", ") + &more
}

/// Who carries something, and who stands by.
fn carrier(CarrierState { id, carrier, candidates, away }: &CarrierState) -> String {
    let by = carrier.as_ref().map_or("nobody".to_owned(), ToString::to_string);
    let others = candidates
        .iter()
        .filter(|name| carrier.as_ref() != Some(*name))
        .map(|name| if away.contains(name) { format!("{name} (away)") } else { name.to_string() });
    let others: Vec<_> = others.collect();
    let others = if others.is_empty() { String::new() } else { format!("; in line: {}", others.join(", ")) };
    format!("{}/{} by {by}{others}", id.kind, id.name)
}

fn key_state(key: &KeyState, now: Timestamp) -> String {
    let left = uses_left(key);
    match key.state {
        KeyPhase::Open => format!("open; uses left: {left}; expires: {}", expires(key, now)),
        KeyPhase::Spent => format!("spent; uses left: {left}"),
        KeyPhase::Expired => format!("expired on {}", expires(key, now)),
    }
}

fn of_node(node: &NodeDetails, now: Timestamp) -> String {
    let NodeDetails { declaration: _, tags, addresses, joined, pending, admitted_by, carries } = node;
    let listed = |items: Vec<String>| if items.is_empty() { Vec::new() } else { vec![items.join(", ")] };
    let mut about: Vec<Fact> = Vec::new();
    match joined {
        Some(joined) => about.extend(of_joined(joined)),
        None if pending.is_empty() => {
            about.push(("state", vec!["awaited: no host has joined as it".to_owned()]))
        }
        None => {
            let hosts = pending.iter().map(|fingerprint| format!("a host waits to be let in: {fingerprint}"));
            about.push(("state", hosts.collect()));
        }
    }
    about.push(("addresses", listed(addresses.iter().map(ToString::to_string).collect())));
    about.push(("tags", listed(tags.iter().map(ToString::to_string).collect())));
    let carried = carries.iter().map(|carried| match carried.part {
        Part::Carries => format!("carries {}", carried.id),
        Part::StandsBy => format!("may come to carry {}", carried.id),
    });
    about.push(("carries", carried.collect()));
    let keys = admitted_by.iter().map(|key| format!("with {}: {}", key.id, key_state(key, now)));
    about.push(("joins", keys.collect()));
    let problems = joined.iter().flat_map(|joined| &joined.problems);
    let problems =
        problems.map(|problem| format!("  {} ({})", plain(&problem.message), plain(&problem.code)));
    paragraph(about) + &section("Problems", problems.collect())
}

fn of_joined(joined: &JoinedDetails) -> Vec<Fact> {
    let JoinedDetails {
        since,
        key,
        claimed,
        fingerprint,
        public_key,
        endpoint,
        os,
        peers,
        opens,
        opens_outside,
        opened_by,
        problems: _,
    } = joined;
    let key =
        key.as_ref().map_or("without an access key".to_owned(), |key| format!("with the access key {key}"));
    let outside: Vec<_> = opens_outside.iter().map(ToString::to_string).collect();
    let outside = Some(outside.join(", ")).filter(|ranges| !ranges.is_empty());
    let reached: Vec<_> = members(opens).into_iter().chain(outside).map(|it| format!("at {it}")).collect();
    let leaves = if *claimed { "; it leaves with its declaration" } else { "" };
    vec![
        ("joined", vec![format!("on {}, {key}{leaves}", moment(*since))]),
        ("host", vec![plain(os)]),
        ("fingerprint", vec![fingerprint.to_string()]),
        ("public key", vec![public_key.to_string()]),
        ("endpoint", vec![endpoint.clone().unwrap_or_else(|| "none: it has to send first".to_owned())]),
        ("peers", vec![peers.to_string()]),
        ("may open", if reached.is_empty() { vec!["nothing at anybody".to_owned()] } else { reached }),
        ("opened by", vec![members(opened_by).unwrap_or_else(|| "nobody".to_owned())]),
    ]
}

/// Some members: how many, and the first of them; nothing if there are none.
fn members(Members { count: number, first }: &Members) -> Option<String> {
    if *number == 0 {
        return None;
    }
    let names: Vec<_> = first.iter().map(ToString::to_string).collect();
    let more = number - first.len() as u64;
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    Some(format!("{}: {}{more}", count(*number, "member"), names.join(", ")))
}

fn of_key(key: &KeyDetails, now: Timestamp) -> Vec<Fact> {
    let KeyDetails { declaration: _, created, state, left: _, expires_in: _, joined, claims } = key;
    let state = state.as_ref().map_or("not made yet".to_owned(), |state| key_state(state, now));
    let claims = claims
        .iter()
        .map(|claim| format!("{} ({})", claim.node, if claim.joined { "joined" } else { "awaited" }));
    let claims: Vec<_> = claims.collect();
    vec![
        ("state", vec![state]),
        ("made", created.iter().map(|time| format!("on {}", moment(*time))).collect()),
        ("for", if claims.is_empty() { Vec::new() } else { vec![claims.join(", ")] }),
        ("joined", joined.iter().map(|it| format!("{} on {}", it.node, moment(it.since))).collect()),
    ]
}

fn of_client(client: &ClientDetails) -> Vec<Fact> {
    let ClientDetails { declaration: _, addresses, state, expires, carrier } = client;
    let state = match state {
        ClientState::LetIn => "let in",
        ClientState::WithoutKey => "not let in: it has no public-key, which `nmplan client conf` writes",
        ClientState::Disabled => "not let in: it is disabled",
        ClientState::Expired => "cut off: it has expired",
    };
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    vec![
        ("state", vec![state.to_owned()]),
        ("addresses", if addresses.is_empty() { Vec::new() } else { vec![addresses.join(", ")] }),
        ("expires", expires.iter().map(|end| format!("on {}", moment(*end))).collect()),
        ("carried", carrier.iter().map(|node| format!("by {node}")).collect()),
    ]
}
