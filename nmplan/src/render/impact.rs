//! How a plan affects nodes, as text: those that are affected alike are one entry.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use owo_colors::OwoColorize;
use schema::compile::carrying::Part;
use schema::impact::{Internet, NodeImpact, PartChange, PathChange, Readdressed, RouteChange, SettingChange};
use schema::kinds::Kind;
use schema::scalars::{Name, NetworkName};
use schema::text::{count, natural};

use super::{NONE, fold, names};

/// How wide a label may be for the effects to stand beside it.
const WIDEST_LABEL: usize = 26;

/// How many names or ranges are listed; more are only counted.
const LISTED: usize = 8;

/// Up to how many nodes that are affected alike, but for names and addresses, have entries of their own.
const APART: usize = 8;

/// How nodes are affected, the worst first.
pub fn impact(impact: &[NodeImpact], full: bool) -> Vec<String> {
    let mut alike: BTreeMap<(Weight, &NetworkName, String), Vec<&NodeImpact>> = BTreeMap::new();
    for node in impact {
        alike.entry((Weight::of(node), &node.network, effects(node, false))).or_default().push(node);
    }
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for ((weight, network, text), mut nodes) in alike {
        nodes.sort_by(|one, other| natural(one.node.as_str(), other.node.as_str()));
        let mut apart: BTreeMap<String, Vec<&NodeImpact>> = BTreeMap::new();
        for node in &nodes {
            apart.entry(effects(node, true)).or_default().push(node);
        }
        if apart.len() == 1 || full || nodes.len() <= APART {
            entries.extend(apart.into_iter().map(|(text, nodes)| Entry { weight, network, nodes, text }));
        } else {
            let text = format!("{text}; -v shows each");
            entries.push(Entry { weight, network, nodes, text });
        }
    }
    entries.sort_by(|one, other| {
        let place = (one.weight, one.network).cmp(&(other.weight, other.network));
        place.then_with(|| natural(one.nodes[0].node.as_str(), other.nodes[0].node.as_str()))
    });
    let entries: Vec<_> = entries.iter().map(|it| (it.label(full), &it.text)).collect();
    let beside = |label: &str| label.chars().count() <= WIDEST_LABEL;
    let labels = entries.iter().map(|(label, _)| label).filter(|label| beside(label));
    let width = labels.map(|label| label.chars().count()).max().unwrap_or_default();
    let line = |(label, effects): &(String, &String)| match beside(label) {
        true => (format!("  {label:width$}  {effects}"), false),
        false => (format!("  {label}\n      {effects}"), false),
    };
    fold(entries.iter().map(line).collect(), full)
}

/// Nodes that are affected alike.
struct Entry<'a> {
    weight: Weight,
    network: &'a NetworkName,
    nodes: Vec<&'a NodeImpact>,
    text: String,
}

impl Entry<'_> {
    fn label(&self, full: bool) -> String {
        let Self { network, nodes, .. } = self;
        let all = nodes.iter().map(|it| it.node.as_str());
        match nodes.len() {
            one if one <= LISTED || full => format!("{network}/{}", all.collect::<Vec<_>>().join(", ")),
            many => format!("{network}: {many} nodes ({}, ...)", all.take(3).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// In which order entries are: the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Weight([bool; 4]);

impl Weight {
    fn of(node: &NodeImpact) -> Self {
        Self([!node.removed, node.keeps_server, !node.sessions_break, node.is_filter_alone()])
    }
}

/// How one node is affected, the worst first; members by name, where they are few and it is asked for.
fn effects(impact: &NodeImpact, named: bool) -> String {
    let NodeImpact {
        network: _,
        node,
        removed,
        peers_added,
        peers_removed,
        peers_changed,
        peers_rekeyed,
        // They follow from what else is said.
        allowed_ips: _,
        paths,
        routes_added,
        routes_removed,
        routes_refused,
        routes_changed,
        internet,
        names_added,
        names_removed,
        names_changed,
        carries,
        filter,
        settings,
        readdressed,
        more: _,
        sessions_break,
        keeps_server,
    } = impact;
    if *removed {
        let had: Vec<_> = readdressed.iter().filter_map(|it| it.before).collect();
        let had = if named { format!(", and gives up {}", names(had.iter())) } else { String::new() };
        return format!("{} leaves the network{had}", "-".red());
    }
    // How many there are, and which these are where they are few.
    let some = |field: &str, list: &[Name]| {
        let all = impact.all_of(field, list);
        (all, (named && all <= LISTED as u64).then(|| names(list.iter())))
    };
    // Where the way to everything goes is said apart, and a range of the network comes with an address of it.
    let is_own = |range: &IpNet| {
        let own = readdressed.iter().flat_map(|it| [it.before, it.after]).flatten();
        own.into_iter().any(|address| range.contains(&address))
    };
    let ranges = |field: &str, list: &[IpNet]| {
        let said: Vec<_> = list.iter().filter(|range| range.prefix_len() > 0 && !is_own(range)).collect();
        let all = impact.all_of(field, list) - (list.len() - said.len()) as u64;
        let few = all <= LISTED as u64;
        (all > 0).then(|| if few { names(said.iter()) } else { count(all, "range") })
    };
    // Peers that come or go as others begin or cease to carry them are the ways that change.
    let moved: BTreeSet<&Name> = paths.iter().flat_map(|it| &it.to).collect();
    let hidden: u64 = paths.iter().map(|it| it.more).sum();
    let apart = |field: &str, list: &[Name]| {
        let apart: Vec<Name> = list.iter().filter(|name| !moved.contains(name)).cloned().collect();
        let more = impact.more.get(field).copied().unwrap_or_default().saturating_sub(hidden);
        let all = apart.len() as u64 + more;
        (all, (named && all <= LISTED as u64).then(|| names(apart.iter())))
    };
    // Names of members come and go with these.
    let resolved = |field: &str, list: &[Name], peers: &[Name]| {
        let apart: Vec<Name> = list.iter().filter(|name| !peers.contains(name)).cloned().collect();
        let all = impact.all_of(field, list) - (list.len() - apart.len()) as u64;
        let few = apart.iter().take(LISTED);
        (
            all,
            (named && !apart.is_empty()).then(|| match all.saturating_sub(LISTED as u64) {
                0 => names(few),
                more => format!("{} and {more} more", few.map(Name::as_str).collect::<Vec<_>>().join(", ")),
            }),
        )
    };
    let mut parts = Vec::new();
    if !keeps_server {
        parts.push("loses the server".red().bold().to_string());
    }
    parts.extend(readdressed.iter().map(|change| address(node, change, named)));
    let broken = routes_changed.iter().filter(|it| it.breaks && it.range.prefix_len() > 0);
    let mut broken: Vec<String> = broken.map(|it| it.range.to_string()).collect();
    broken.extend((!internet.is_empty()).then(|| "the internet".to_owned()));
    let whole = impact.loses_an_address() || settings.iter().any(|it| it.name == "listen-port");
    if *sessions_break && (whole || broken.is_empty()) {
        parts.push("connections with it break".yellow().to_string());
    } else if *sessions_break {
        parts.push(format!("connections to {} break", names(broken.iter())).yellow().to_string());
    }
    parts.extend(internet.iter().map(|change| &change.after).collect::<BTreeSet<_>>().into_iter().map(leads));
    parts.extend(carries.iter().map(part));
    parts.extend(paths.iter().map(|change| path(change, named)));
    let peers = [
        those(apart("peers_added", peers_added), "peer", ["gains", ""], ["gains", ""]),
        those(apart("peers_removed", peers_removed), "peer", ["loses", ""], ["loses", ""]),
        those(some("peers_rekeyed", peers_rekeyed), "peer", ["", "has a new key"], ["", "have new keys"]),
    ];
    parts.extend(peers.into_iter().flatten());
    parts.extend(ranges("routes_added", routes_added).map(|ranges| format!("gains a route to {ranges}")));
    parts.extend(
        ranges("routes_removed", routes_removed).map(|ranges| format!("loses the route to {ranges}")),
    );
    parts.extend(
        ranges("routes_refused", routes_refused).map(|ranges| format!("sends nothing to {ranges} any more")),
    );
    parts.extend(routes_changed.iter().filter(|it| it.range.prefix_len() > 0).map(route));
    let elsewhere = ["resolves to something else", "resolve to something else"];
    let names_of = [
        those(
            resolved("names_added", names_added, peers_added),
            "name",
            ["", "begins to resolve"],
            ["", "begin to resolve"],
        ),
        those(
            resolved("names_removed", names_removed, peers_removed),
            "name",
            ["", "no longer resolves"],
            ["", "no longer resolve"],
        ),
        those(resolved("names_changed", names_changed, &[]), "name", ["", elsewhere[0]], ["", elsewhere[1]]),
    ];
    parts.extend(names_of.into_iter().flatten());
    parts.extend(settings.iter().map(setting));
    if *filter {
        parts.push("what may be opened at it changes".into());
    }
    // Mostly it follows from the rest.
    let changed = those(some("peers_changed", peers_changed), "peer", ["", "changes"], ["", "change"]);
    if parts.is_empty() {
        parts.extend(changed);
    }
    if parts.is_empty() { "other settings".into() } else { parts.join("; ") }
}

/// What becomes of some peers or names: `the peer gw-fra changes`, `40 peers change`; nothing if there are none. Around
/// them are words for one and for several.
fn those(
    (all, few): (u64, Option<String>),
    what: &str,
    one: [&str; 2],
    several: [&str; 2],
) -> Option<String> {
    let [before, after] = if all == 1 { one } else { several };
    let plural = if all == 1 { "" } else { "s" };
    let whom = few.map_or_else(|| count(all, what), |names| format!("the {what}{plural} {names}"));
    (all > 0)
        .then(|| [before, &whom, after].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(" "))
}

/// How an address of a node changes, and why, where no declaration of its own says so.
fn address(node: &Name, Readdressed { before, after, because }: &Readdressed, named: bool) -> String {
    let family = |ipv4: bool| if ipv4 { "IPv4" } else { "IPv6" };
    let text = match (before, after) {
        (Some(before), Some(after)) if named => format!("moves from {before} to {after}"),
        (Some(before), Some(_)) => return format!("gets another {} address", family(before.is_ipv4())),
        (None, Some(after)) if named => format!("gets {after}"),
        (None, Some(after)) => return format!("gets an {} address", family(after.is_ipv4())),
        (Some(before), None) if named => format!("gives up {before}"),
        (Some(before), None) => return format!("gives up its {} address", family(before.is_ipv4())),
        (None, None) => return String::new(),
    };
    match (because, before) {
        (Some(id), Some(before)) if id.kind != Kind::Network && id.name != *node => {
            format!("{text}, since {} takes {before}", id.name)
        }
        _ => text,
    }
}

fn leads(after: &Internet) -> String {
    match after {
        Internet::Own => "to the internet by its own route".to_owned(),
        Internet::Through(node) => format!("to the internet through {node}"),
        Internet::Refused => "not to the internet".yellow().to_string(),
    }
}

fn part(PartChange { id, before: _, after }: &PartChange) -> String {
    // A network itself stands for all that its hub carries.
    let whole = if id.kind.descriptor().within.is_none() { "all of " } else { "" };
    match after {
        Some(Part::Carries) => format!("carries {whole}{id}"),
        Some(Part::StandsBy) => format!("stands by for {whole}{id}"),
        None => format!("no longer carries {whole}{id}"),
    }
}

fn path(PathChange { to, more, before, after }: &PathChange, named: bool) -> String {
    let all = to.len() as u64 + more;
    let whom = if named && all <= LISTED as u64 { names(to.iter()) } else { count(all, "member") };
    let way = |nodes: &[Name]| match nodes {
        [] => "directly".to_owned(),
        nodes => format!("through {}", nodes.iter().map(Name::as_str).collect::<Vec<_>>().join(" and then ")),
    };
    format!("reaches {whom} {}, before {}", way(after), way(before))
}

fn route(RouteChange { range, before, after, breaks: _ }: &RouteChange) -> String {
    let way = |node: &Option<Name>| node.as_ref().map_or_else(|| "nobody".to_owned(), Name::to_string);
    format!("reaches {range} through {}, before {}", way(after), way(before))
}

fn setting(SettingChange { name, before, after }: &SettingChange) -> String {
    let value = |it: &Option<String>| it.clone().unwrap_or_else(|| NONE.to_owned());
    format!("{name} {} -> {}", value(before), value(after))
}
