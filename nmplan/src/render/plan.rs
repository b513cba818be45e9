//! A plan as text: the verdict first, then the changes, the nodes that are reconfigured, the changes of
//! reachability, and what to type next.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use owo_colors::OwoColorize;
use schema::api::KeyState;
use schema::compile::carrying::{Carrying, CarryingChange, Traffic};
use schema::diff::{Action, Change};
use schema::impact::NodeImpact;
use schema::inventory::NodeId;
use schema::judge;
use schema::kinds::Kind;
use schema::plan::{Bind, PendingChange, Plan, Summary};
use schema::scalars::{Name, NetworkName};
use schema::snapshot::ResourceId;
use schema::text::{count, moment, natural};
use schema::value::{Data, Value};

use super::difference::differences;
use super::keys::closed;
use super::{fold, lines, section, symbol, value};

/// What is shown in addition to a plan.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// The server.
    pub server: Option<String>,
    /// The declared nodes that have not joined.
    pub awaiting: Vec<NodeId>,
    /// The declared nodes that approve a host which has joined under another name, and that name.
    pub elsewhere: Vec<(NodeId, Name)>,
    /// The access keys of the project as they will be.
    pub keys: Vec<KeyState>,
    /// What to type next.
    pub next: Option<String>,
    /// Whether the plan deletes everything that the project and env manage.
    pub empties: bool,
    /// Where the resources are declared that changes of reachability follow from, as `FILE:LINE`.
    pub places: BTreeMap<ResourceId, String>,
    /// What the plan is warned of: what each warning is about, and its place.
    pub warnings: Vec<String>,
    /// Whether nothing is folded.
    pub full: bool,
    /// How many characters a line has at most; absent: any number.
    pub columns: Option<usize>,
}

/// A plan as text.
pub fn plan(plan: &Plan, shown: &Shown) -> String {
    let summary = plan.summary();
    let mut text = title(plan, shown);
    text += &verdict(plan, &summary, shown.empties);
    text += &tests(plan);
    text += &warnings(&shown.warnings);
    if let Some(change) = &plan.guard {
        let title = format!("guard of {}", plan.owner());
        let _ = writeln!(text, "\n{}\n{}", title.bold(), super::guard(change).trim_end());
    }
    for (network, changes) in by_network(&plan.changes) {
        let _ = writeln!(text, "\n{}", network.bold());
        text += &lines(change_lines(&changes, Some(plan), shown.full));
    }
    text += &section("Nodes that are reconfigured", super::impact::impact(&plan.impact, shown.full));
    let carried = super::carrying::carrying(&plan.carrying, &plan.impact, shown.full);
    text += &section("Who carries traffic for others", carried);
    text += &section("Hosts that wait to be let in", pending(&plan.pending, shown.full));
    text += &section("External clients", super::carrying::clients(&plan.clients, shown.full));
    let reach = |once_joined| super::reach::reach(&plan.reach, once_joined, &shown.places, shown.full);
    text += &section("Who can reach whom (A to B is one pair, B to A another)", reach(false));
    text += &section("Who can reach whom, once awaited nodes have joined", reach(true));
    text += &awaiting(&shown.awaiting, plan, shown.full);
    text += &section("Approved hosts that are other nodes already", elsewhere(&shown.elsewhere));
    text += &section("Tests that fail", super::verdicts::failing(&plan.tests));
    text += &section("Access keys that let nobody join", closed(&shown.keys));
    if plan.applyable {
        let _ = writeln!(text, "\n{} {}", "digest".bold(), plan.digest);
    }
    text = super::wrapped(text, shown.columns);
    if let Some(next) = shown.next.as_ref().filter(|_| plan.applyable) {
        let _ = writeln!(text, "\nTo carry it out:\n\n    {next}");
    }
    text
}

/// Changes as text, network by network.
pub fn changes(changes: &[Change], full: bool) -> String {
    let mut text = String::new();
    for (network, changes) in by_network(changes) {
        let _ = writeln!(text, "\n{}", network.bold());
        text += &lines(change_lines(&changes, None, full));
    }
    text
}

fn title(plan: &Plan, shown: &Shown) -> String {
    let server = shown.server.as_ref().map(|server| format!(" on {server}")).unwrap_or_default();
    format!("{} of {}{server}, revision {}\n\n", "Plan".bold(), plan.owner(), plan.server.revision)
}

fn verdict(plan: &Plan, summary: &Summary, empties: bool) -> String {
    if plan.changes.is_empty() && plan.guard.is_none() {
        return format!("{}: the server has what is declared.\n", "No changes".green().bold());
    }
    let guard = plan.guard.as_ref().map(super::guard::verdict).unwrap_or_default();
    if plan.changes.is_empty() {
        return guard;
    }
    let Summary { create, update, delete, .. } = summary;
    let parts = [(*create, "to create"), (*update, "to update"), (*delete, "to delete")];
    let parts: Vec<_> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{number} {what}"))
        .collect();
    let total = count(plan.changes.len() as u64, "change");
    let mut text = format!("{}: {}", total.bold(), parts.join(", "));
    if empties {
        let everything = format!("everything that {} manages would be deleted", plan.owner());
        let _ = write!(text, "; {}", everything.red().bold());
    }
    text += ".\n";
    text += &guard;
    text += &nodes(plan, summary);
    text += &reachability(plan, summary);
    text.extend(plan.carrying.iter().filter_map(passes).map(|sentence| format!("{sentence}\n")));
    let clients = [
        (summary.clients_anew, "needs a new configuration", "need a new configuration"),
        (summary.clients_cut_off, "is cut off", "are cut off"),
    ];
    for (number, one, more) in clients.into_iter().filter(|(number, ..)| *number > 0) {
        let what = if number == 1 { one } else { more };
        text += &format!("{} {what}.\n", count(number, "external client").bold());
    }
    text
}

/// How many nodes are affected, and how badly.
fn nodes(plan: &Plan, summary: &Summary) -> String {
    let Summary { nodes_changed, filters_changed, .. } = *summary;
    let are =
        |number: u64| format!("{} {}", count(number, "joined node"), if number == 1 { "is" } else { "are" });
    let mut text = match (nodes_changed, filters_changed) {
        (0, 0) => return "No joined node is sent anything new.\n".to_owned(),
        (0, filters) => format!("At {} only the packet filter changes", count(filters, "joined node")),
        (nodes, 0) => format!("{} reconfigured", are(nodes)),
        (nodes, filters) => format!(
            "{} reconfigured, and at {} only the packet filter changes",
            are(nodes),
            count(filters, "more node")
        ),
    };
    let counted = |is: fn(&NodeImpact) -> bool| plan.impact.iter().filter(|it| is(it)).count() as u64;
    let removed = counted(|it| it.removed);
    let moved = counted(|it| !it.removed && it.loses_an_address());
    let broken = counted(|it| !it.removed && it.sessions_break && !it.loses_an_address());
    let verb =
        |number: u64, one: &str, many: &str| format!("{number} {}", if number == 1 { one } else { many });
    let mut parts = Vec::new();
    if removed > 0 {
        parts.push(verb(removed, "leaves the network", "leave their network").red().to_string());
    }
    if moved > 0 {
        let text = verb(moved, "gets another address", "get another address");
        let whom = if moved == 1 { "it" } else { "them" };
        parts.push(format!("{text}, which {} connections with {whom}", "breaks".yellow()));
    }
    match broken {
        // What is lost below breaks besides.
        0 if summary.reach_lost == 0 && removed + moved == 0 => parts.push("no connections break".to_owned()),
        0 => {}
        _ => parts.push(verb(broken, "loses connections", "lose connections").yellow().to_string()),
    }
    // Names of members come and go with these.
    let unnamed =
        counted(|it| !it.removed && it.names_removed.iter().any(|name| !it.peers_removed.contains(name)));
    if unnamed > 0 {
        parts.push(verb(unnamed, "no longer resolves some names", "no longer resolve some names"));
    }
    let lost = counted(|it| !it.keeps_server);
    if lost == 0 {
        parts.push("none loses its way to the server".to_owned());
    }
    text += &format!("; {}.\n", parts.join(", "));
    match lost {
        0 => text,
        nodes => {
            let nodes = count(nodes, "node").red().bold().to_string();
            text + &format!(
                "{nodes} would lose the server: its address is in a range that is routed into the mesh.\n"
            )
        }
    }
}

/// How many pairs gain or lose reachability; each direction of two nodes, or of a node and a range, counts as a
/// pair.
fn reachability(plan: &Plan, summary: &Summary) -> String {
    let Summary { reach_gained, reach_lost, reach_gained_later, reach_lost_later, reach_pairs, .. } =
        *summary;
    let awaited = "once awaited nodes have joined";
    let later = match (reach_gained_later, reach_lost_later) {
        (0, 0) if plan.reach.iter().any(|change| change.once_joined) => format!("; more follows {awaited}"),
        (0, 0) => String::new(),
        (gained, 0) => format!("; {gained} more can {awaited}"),
        (0, lost) => format!("; {lost} more no longer can {awaited}"),
        (gained, lost) => format!("; {gained} more can and {lost} no longer can {awaited}"),
    };
    let of = format!("of {}", count(reach_pairs, "pair"));
    let text = match (reach_gained, reach_lost) {
        (0, 0) if reach_pairs == 0 => "Nobody can reach anybody yet".to_owned(),
        (0, 0) => "Who can reach whom stays as it is".to_owned(),
        (gained, 0) => format!("{gained} {of} {} reachability", if gained == 1 { "gains" } else { "gain" }),
        (0, lost) => format!("{lost} {of} {} reachability", if lost == 1 { "loses" } else { "lose" }),
        (gained, lost) => format!(
            "{gained} {of} {} reachability, and {lost} {} some",
            if gained == 1 { "gains" } else { "gain" },
            if lost == 1 { "loses" } else { "lose" }
        ),
    };
    format!("{text}{later}.\n")
}

/// Whose traffic passes another node from now on: all of a network's with its hub, that of the nodes of a relay, and what
/// goes to the internet.
fn passes(CarryingChange { id, traffic, before, after }: &CarryingChange) -> Option<String> {
    let carrier = |of: &Option<Carrying>| of.as_ref().and_then(|it| it.candidates.first().cloned());
    let of = after.as_ref().or(before.as_ref())?;
    let whose = super::carrying::whom(of).unwrap_or_else(|| "nobody yet".to_owned());
    let (what, directly) = match traffic {
        Traffic::Everything if id.kind == Kind::Network => {
            (format!("all traffic of {id}"), "nodes talk to each other directly")
        }
        Traffic::Everything => (format!("all traffic of {whose}"), "they talk to others directly"),
        Traffic::Ranges if of.is_default_route() => {
            (format!("what goes to the internet from {whose}"), "it leaves by their own ways")
        }
        Traffic::Ranges | Traffic::Clients => return None,
    };
    Some(match (carrier(before), carrier(after)) {
        (was, Some(is)) if was.as_ref() != Some(&is) => {
            let was = was.map(|was| format!(", in place of {was}")).unwrap_or_default();
            format!("From now on {what} passes {}{was}.", is.bold())
        }
        (Some(was), None) => format!("From now on {what} no longer passes {was}: {directly}."),
        (_, _) => return None,
    })
}

/// What the plan is warned of, in short; nothing if it is not.
fn warnings(about: &[String]) -> String {
    let number = count(about.len() as u64, "warning").yellow().bold().to_string();
    match about {
        [] => String::new(),
        about if about.len() <= 3 => format!("{number}, in full on standard error: {}.\n", about.join(", ")),
        about => {
            let more = about.len() - 3;
            format!("{number}, in full on standard error: {} and {more} more.\n", about[..3].join(", "))
        }
    }
}

/// How many of the tests hold afterwards; nothing if there are none.
fn tests(plan: &Plan) -> String {
    match judge::tally(&plan.tests) {
        (_, 0) => String::new(),
        (hold, tests) if hold == tests => format!("{}.\n", super::tests_hold(hold, tests)),
        (hold, tests) => format!("{}.\n", super::tests_hold(hold, tests).red().bold()),
    }
}

fn by_network(changes: &[Change]) -> BTreeMap<&NetworkName, Vec<&Change>> {
    let mut networks: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for change in changes {
        networks.entry(&change.id.network).or_default().push(change);
    }
    networks
}

/// The changes of one network, those of one action and kind folded together. Deletions, and which node a
/// declaration binds to, are never folded.
fn change_lines(changes: &[&Change], plan: Option<&Plan>, full: bool) -> Vec<String> {
    let kinds = changes.iter().map(|change| change.id.kind.descriptor().word.len()).max().unwrap_or_default();
    let names = changes.iter().filter(|change| inside(change)).map(|change| change.id.name.as_str().len());
    let names = names.max().unwrap_or_default();
    let mut text = Vec::new();
    for group in changes.chunk_by(|a, b| (a.action, a.id.kind) == (b.action, b.id.kind)) {
        let line = |change: &&Change| {
            let node = plan.and_then(|plan| joined_node(change, plan));
            let kept = change.action == Action::Delete || node.is_some();
            (change_line(change, kinds, names) + &node.unwrap_or_default(), kept)
        };
        text.extend(fold(group.iter().map(line).collect(), full));
    }
    text
}

/// Whether the resource is inside a network, so that its name adds to the heading.
fn inside(change: &Change) -> bool {
    change.id.kind.descriptor().within.is_some()
}

/// A change in one line, and further lines if several fields change.
fn change_line(change: &Change, kinds: usize, names: usize) -> String {
    let word = change.id.kind.descriptor().word;
    let name = if inside(change) { change.id.name.as_str() } else { "" };
    let mut line = format!("  {} {word:kinds$}  {name:names$}", symbol(change.action));
    match change.action {
        Action::Delete => {
            let had = given(change.id.kind, change.before.as_ref());
            if !had.is_empty() {
                let _ = write!(line, "  {}", had.dimmed());
            }
        }
        Action::Create => {
            let _ = write!(line, "  {}", given(change.id.kind, change.after.as_ref()));
        }
        Action::Update => match &*change.fields().iter().flat_map(differences).collect::<Vec<_>>() {
            [(path, how)] => {
                let _ = write!(line, "  {path} {how}");
            }
            differences => {
                line.truncate(line.trim_end().len());
                let width = differences.iter().map(|(path, _)| path.len()).max().unwrap_or_default();
                for (path, how) in differences {
                    let _ = write!(line, "\n        {path:width$} {how}");
                }
            }
        },
    }
    line.truncate(line.trim_end().len());
    line
}

/// What creating or deleting a declaration means for the node that has joined under its name.
fn joined_node(change: &Change, plan: &Plan) -> Option<String> {
    let bind = plan.binds.iter().find(|bind| bind.id == change.id)?;
    let line = |text: &str| format!("\n        {text}");
    let fingerprint = bind.identity.fingerprint();
    if bind.pending {
        let since = moment(bind.joined);
        let waits = if lets_in(plan, &bind.id.node()) {
            format!("lets in the host that has waited since {since}")
        } else {
            format!(
                "approves a host that waits since {since} and waits on: another member has its WireGuard key"
            )
        };
        return Some(line(&waits) + &line(&format!("identity {fingerprint}")));
    }
    Some(match change.action {
        Action::Create => {
            let key = bind.key.as_ref().map_or("without a key".to_owned(), |key| format!("with key {key}"));
            let joined = format!("binds to the node that joined on {} {key}", moment(bind.joined));
            line(&joined) + &line(&format!("identity {}", bind.identity))
        }
        Action::Update => {
            let approved = change.after.as_ref().and_then(|body| body.field("approved"));
            let approved = approved.filter(|it| it.data != Data::Text(fingerprint.to_string().into()));
            approved?;
            let NodeId { network, name } = bind.id.node();
            line(&format!("another host is this node, with the identity {fingerprint}"))
                + &line(&format!(
                    "the approved one can join once it is gone: nmplan node remove {network}/{name}"
                ))
        }
        Action::Delete if is_removed(bind, &plan.impact) => {
            line(&"the joined node is removed from the network".red().to_string())
        }
        Action::Delete => line("the joined node stays, undeclared"),
    })
}

fn elsewhere(nodes: &[(NodeId, Name)]) -> Vec<String> {
    let line = |(NodeId { network, name }, joined): &(NodeId, Name)| {
        format!(
            "  {network}  the host that {name} approves has joined as {joined}: declare that name, or make room: nmplan node \
             remove {network}/{joined}"
        )
    };
    nodes.iter().map(line).collect()
}

/// Whether the plan lets a host in as a node that waits.
fn lets_in(plan: &Plan, node: &NodeId) -> bool {
    plan.pending.iter().any(|it| it.network == node.network && it.becomes.as_ref() == Some(&node.name))
}

/// What becomes of hosts that wait.
fn pending(changes: &[PendingChange], full: bool) -> Vec<String> {
    let line = |PendingChange { network, name, fingerprint, since, becomes }: &PendingChange| {
        let since = moment(*since);
        let line = match becomes {
            Some(node) => {
                format!("  {network}/{name} is let in as {node}, waiting since {since}, {fingerprint}")
            }
            None => format!(
                "  {network}/{name} is {}, since the network lets nobody wait any more, {fingerprint}",
                "dropped".red()
            ),
        };
        (line, becomes.is_some())
    };
    fold(changes.iter().map(line).collect(), full)
}

/// Whether the plan removes the node from the network.
fn is_removed(bind: &Bind, impact: &[NodeImpact]) -> bool {
    impact.iter().any(|it| it.removed && it.network == bind.id.network && it.node == bind.id.name)
}

/// The fields of a new resource.
fn given(kind: Kind, body: Option<&Value>) -> String {
    let fields = kind.descriptor().fields.iter();
    let given =
        fields.filter_map(|field| Some(format!("{}={}", field.name, value(body?.field(field.name)?))));
    given.collect::<Vec<_>>().join(" ")
}

fn awaiting(nodes: &[NodeId], plan: &Plan, full: bool) -> String {
    let mut networks: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for NodeId { network, name } in nodes.iter().filter(|node| !lets_in(plan, node)) {
        networks.entry(network).or_default().push(name.as_str());
    }
    let lines = networks.into_iter().map(|(network, mut names)| {
        names.sort_by(|one, other| natural(one, other));
        let shown = if full { names.len() } else { 10 };
        let more = names.len().saturating_sub(shown);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("  {network}  {}{more}", names.into_iter().take(shown).collect::<Vec<_>>().join(", "))
    });
    section("Declared and not joined yet", lines.collect())
}
