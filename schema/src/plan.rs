//! A plan: the changes from what a server has to what files declare, and their effects.
//!
//! A plan is a value. It is made by [`plan`], shown, saved, reviewed, and carried out by a server on which
//! nothing that it changes has changed since ([`Plan::stale`], [`Plan::apply`]). It holds no secret:
//! declarations have none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::client::{self, ClientChange, ClientOutcome};
use crate::compile::allocate::Exhausted;
use crate::compile::carrying::{self, CarryingChange};
use crate::compile::reach::{self, Moment, Pairs, ReachChange};
use crate::compile::reconcile::{self, joined_and_awaited};
use crate::compile::{Changed, Mesh, admission};
use crate::decode::{Declared, decode_body};
use crate::diff::{Action, Change, diff};
use crate::impact::{self, NodeImpact};
use crate::inventory::{Inventory, NodeId, PendingNode};
use crate::judge::{self, Verdict};
use crate::kinds::{AccessKey, ExternalClient, Ingress, Kind, Node};
use crate::limits::{Effect, GuardChange, Limits};
use crate::published::Time;
use crate::report::{Code, Problem, Report};
use crate::rules;
use crate::rules::endpoints::{self, Meshes};
use crate::rules::source_map::SourceMap;
use crate::scalars::{Fingerprint, Identity, Name, NetworkName};
use crate::snapshot::{Entry, Owner, Provenance, ResourceId, Revision, Snapshot};
use crate::subject::Subject;
use crate::value::{Data, Step, Value};
use crate::world::{ServerInfo, World};

/// The version of the saved form; raised when an older reader would misread it, as after a change of a
/// default, since bodies leave out what equals it.
pub const FORMAT: &str = "2.0";

/// The changes from what a server has to what is declared: what `nmplan plan --out` saves and `nmplan plan
/// --format json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("title" = format!("A saved plan of nmplan, format {FORMAT}")))]
pub struct Plan {
    /// The version of this form.
    #[schemars(extend("const" = FORMAT))]
    pub format: String,
    /// The identity of the plan: SHA-256 over the canonical JSON (RFC 8785) of server id, project, env,
    /// changes, base_revisions, binds and, where it is there, guard.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub digest: String,
    /// The project of the declarations.
    pub project: Name,
    /// The env of it.
    pub env: Name,
    /// The server that it was made for.
    pub server: PlannedServer,
    /// What is done, in order.
    pub changes: Vec<Change>,
    /// The revision that each changed resource had when the plan was made; 0 for one that is created.
    pub base_revisions: BTreeMap<ResourceId, Revision>,
    /// The nodes that have joined under declarations that are created or deleted, or that approve another host
    /// than before; where none has, the hosts that wait and are approved. A declaration without either has no
    /// entry, which is a precondition as well.
    pub binds: Vec<Bind>,
    /// What becomes of the project's guard, by which the next apply is judged; absent: it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardChange>,
    /// What the plan changes for each node that it affects.
    pub impact: Vec<NodeImpact>,
    /// Pairs of nodes that gain or lose the ability to reach each other.
    pub reach: Vec<ReachChange>,
    /// How many pairs that is, each counted once.
    #[serde(default)]
    pub pairs: Pairs,
    /// Who carries traffic for others, where that changes.
    #[serde(default)]
    pub carrying: Vec<CarryingChange>,
    /// The external clients that have to be configured, anew or for the first time, and those that are cut off.
    #[serde(default)]
    pub clients: Vec<ClientChange>,
    /// What becomes of hosts that wait to be let in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<PendingChange>,
    /// What becomes of the tests in the networks that it declares or changes, each assertion.
    #[serde(default)]
    pub tests: Vec<Verdict>,
    /// Whether there is anything to apply.
    pub applyable: bool,
    /// Where the files came from, as far as the planner knows; absent if they are not in a git repository.
    /// Not part of the digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// The server that a plan was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedServer {
    /// Its id.
    pub id: String,
    /// Its epoch.
    pub epoch: u64,
    /// Its revision when the plan was made.
    pub revision: Revision,
}

/// A node that has joined under a name whose declaration is created or deleted, or approves another host than
/// before; or a host that waits and is approved by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bind {
    /// The declaration.
    pub id: ResourceId,
    /// When the node joined, or since when the host waits.
    #[schemars(with = "Time")]
    pub joined: Timestamp,
    /// The key that it joined with.
    pub key: Option<Name>,
    /// Its identity, which must be the same when the plan is applied.
    pub identity: Identity,
    /// Whether the host waits, and is let in by the plan.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

/// What becomes of a host that waits to be let into a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct PendingChange {
    /// The network.
    pub network: NetworkName,
    /// The name that it asked for.
    pub name: Name,
    /// The fingerprint of its identity.
    pub fingerprint: Fingerprint,
    /// Since when it waits.
    #[schemars(with = "Time")]
    pub since: Timestamp,
    /// The node that it becomes; null: it is dropped, since the network lets nobody wait any more.
    pub becomes: Option<Name>,
}

/// How much a plan does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Summary {
    /// Resources that are created.
    pub create: u64,
    /// Resources that change.
    pub update: u64,
    /// Resources that are deleted.
    pub delete: u64,
    /// Nodes that are affected, other than by their filter alone.
    pub nodes_changed: u64,
    /// Nodes for which only what may be opened at them changes.
    pub filters_changed: u64,
    /// External clients whose configuration has to be handed out anew.
    #[serde(default)]
    pub clients_anew: u64,
    /// External clients that are cut off.
    #[serde(default)]
    pub clients_cut_off: u64,
    /// Ordered pairs of joined nodes, or of one and a range, of which the first can open more at the second
    /// afterwards.
    pub reach_gained: u64,
    /// Ordered pairs of which the first can open less at the second afterwards.
    pub reach_lost: u64,
    /// Ordered pairs, mostly with an awaited node, of which the first can open more once awaited nodes have joined.
    #[serde(default)]
    pub reach_gained_later: u64,
    /// Ordered pairs of which the first could have opened more once awaited nodes had joined.
    #[serde(default)]
    pub reach_lost_later: u64,
    /// All such pairs of joined nodes and ranges, of the networks that are affected.
    #[serde(default)]
    pub reach_pairs: u64,
    /// The revision that the plan is based on.
    pub base_revision: Revision,
    /// The digest of the plan.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub digest: String,
}

/// The world after a change.
pub struct Outcome {
    /// The declarations.
    pub snapshot: Snapshot,
    /// What has joined.
    pub inventory: Inventory,
}

/// Plans the changes from a server's world to what is declared, with their effects.
///
/// `only` limits reading and deleting to one network. Nothing is planned if the declarations, together with
/// what else the server has, break a rule, or if they change what they do not manage.
pub fn plan(
    declared: &Declared,
    owner: &Owner,
    only: Option<&NetworkName>,
    world: &World,
    server: &ServerInfo,
    now: Timestamp,
) -> Result<Plan, Report> {
    let report = rules::check(&declared.snapshot, &declared.source_map);
    if report.has_errors() {
        return Err(report);
    }
    plan_with_outcome(declared, owner, only, world, server, now).map(|(plan, _)| plan)
}

/// The same for declarations that keep the rules by themselves, with the world after the plan: as [`Plan::apply`] returns
/// it, but for revisions.
pub fn plan_with_outcome(
    declared: &Declared,
    owner: &Owner,
    only: Option<&NetworkName>,
    world: &World,
    server: &ServerInfo,
    now: Timestamp,
) -> Result<(Plan, Outcome), Report> {
    let desired = desired(declared, owner, only, &world.snapshot)?;
    // What files declare alone keeps the rules, or nobody would plan it; with what others have it may not.
    let alone =
        only.is_none() && world.snapshot.entries().all(|(_, entry)| entry.owner.as_ref() == Some(owner));
    let report = if alone { Report::default() } else { rules::check(&desired, &declared.source_map) };
    let inventory = reconcile_checked(report, &desired, &world.inventory, &declared.source_map, server, now)?;
    let changes = diff(&world.snapshot, &desired);
    let over = over(&changes, &desired, &declared.source_map, now);
    if over.has_errors() {
        return Err(over);
    }
    let after = Outcome { snapshot: desired, inventory };
    let pending = pending_changes(&world.inventory, &after.inventory);
    let Effects { impact, mut reach, pairs, carrying, clients } = effects(world, &after, server, now);
    for change in &mut reach {
        change.because = causes(change, &changes);
    }
    let named = declared.snapshot.entries().map(|(id, _)| &id.network);
    let named = named.filter(|network| only.is_none_or(|only| only == *network));
    let networks: BTreeSet<_> = named.chain(changes.iter().map(|change| &change.id.network)).collect();
    let tests = judge::judge_all(networks, &after.snapshot, &after.inventory);
    let revision = |id: &ResourceId| world.snapshot.entry(id).map_or(Revision(0), |entry| entry.revision);
    let mut plan = Plan {
        format: FORMAT.into(),
        digest: String::new(),
        project: owner.project.clone(),
        env: owner.env.clone(),
        server: PlannedServer { id: server.id.clone(), epoch: world.epoch, revision: world.revision },
        base_revisions: changes.iter().map(|change| (change.id.clone(), revision(&change.id))).collect(),
        binds: binds(&changes, &world.inventory),
        guard: None,
        applyable: !changes.is_empty(),
        provenance: None,
        changes,
        impact,
        reach,
        pairs,
        carrying,
        clients,
        pending,
        tests,
    };
    plan.digest = plan.digest_now();
    Ok((plan, after))
}

/// What files declare, together with what the server has from elsewhere.
fn desired(
    declared: &Declared,
    owner: &Owner,
    only: Option<&NetworkName>,
    observed: &Snapshot,
) -> Result<Snapshot, Report> {
    let meant = |id: &ResourceId| only.is_none_or(|network| id.network == *network);
    let mut desired = observed.clone();
    let mut report = Report::default();
    for (id, entry) in observed.entries().filter(|(id, _)| meant(id)) {
        if entry.owner.as_ref() == Some(owner) {
            desired.delete(id);
        }
    }
    let foreign =
        |id: &ResourceId| observed.entry(id).is_some_and(|entry| entry.owner.as_ref() != Some(owner));
    // A network that cannot be declared is reported once for all that it holds.
    let network_reported = |id: &ResourceId| {
        let network = ResourceId::of_network(id.network.clone());
        network != *id && declared.snapshot.entry(&network).is_some() && foreign(&network)
    };
    for (id, entry) in declared.snapshot.entries().filter(|(id, _)| meant(id)) {
        match observed.entry(id) {
            Some(_) if foreign(id) && network_reported(id) => {}
            Some(Entry { owner: Some(other), .. }) if other != owner => {
                report.push(taken(
                    id,
                    &declared.source_map,
                    Code::ManagedByAnother,
                    format!("is managed by {other}"),
                ));
            }
            Some(Entry { owner: None, .. }) => {
                report.push(taken(id, &declared.source_map, Code::NotManaged, "was made by hand".into()));
            }
            Some(Entry { revision, .. }) => {
                let object = entry.object.clone();
                let owner = Some(owner.clone());
                let revision = *revision;
                desired.put(id.clone(), Entry { object, revision, owner });
            }
            None => desired.put(id.clone(), Entry { owner: Some(owner.clone()), ..entry.clone() }),
        }
    }
    if report.has_errors() { Err(report) } else { Ok(desired) }
}

/// The inventory after the declarations change to these, if they keep every rule, the server's included.
pub fn check_and_reconcile(
    declared: &Snapshot,
    inventory: &Inventory,
    source_map: &SourceMap,
    server: &ServerInfo,
    now: Timestamp,
) -> Result<Inventory, Report> {
    let report = rules::check(declared, source_map);
    reconcile_checked(report, declared, inventory, source_map, server, now)
}

/// The same where [`rules::check`] has found this.
fn reconcile_checked(
    mut report: Report,
    declared: &Snapshot,
    inventory: &Inventory,
    source_map: &SourceMap,
    server: &ServerInfo,
    now: Timestamp,
) -> Result<Inventory, Report> {
    report.append(rules::server::check(declared, source_map, server));
    report.append(joined_as_nodes(declared, inventory, source_map));
    if report.has_errors() {
        return Err(report);
    }
    let reconciled = match reconcile::reconcile(inventory, declared, &server.addresses, now) {
        Ok(reconciled) => reconciled,
        Err(exhausted) => {
            report.push(no_room(&exhausted, declared, source_map));
            return Err(report);
        }
    };
    report.append(endpoints::check(Meshes::of(declared, &reconciled, server), source_map));
    for (network, settings) in declared.networks() {
        let Some(limit) = settings.node_limit else { continue };
        let nodes = joined_and_awaited(network, declared, &reconciled);
        if nodes as i64 > limit.number() {
            report.push(over_the_limit(network, nodes, limit.number(), source_map));
        }
    }
    if report.has_errors() { Err(report) } else { Ok(reconciled) }
}

/// The external clients of which a node has the name or the WireGuard key. A node that its declaration takes
/// along when it goes makes room for one.
fn joined_as_nodes(declared: &Snapshot, inventory: &Inventory, source_map: &SourceMap) -> Report {
    let mut report = Report::default();
    let stays = |id: &NodeId| {
        let joined = inventory.node(id);
        joined.is_some_and(|node| !node.claimed || declared.named::<Node>(&id.network, &id.name).is_some())
    };
    for (network, _) in declared.networks() {
        for (id, client) in declared.all_in::<ExternalClient>(network) {
            let of_key = client.public_key.and_then(|key| inventory.holder_of_key(network, &key));
            let of_key = of_key.filter(|name| stays(&NodeId::of(network, name)));
            let (message, field) = match of_key {
                _ if stays(&id.node()) => (
                    format!("a node has joined network {network} as {}, so that {id} has no name", id.name),
                    None,
                ),
                Some(node) => {
                    (format!("the node {node} of network {network} has the key of {id}"), Some("public-key"))
                }
                None => continue,
            };
            let path = field.map(Step::Field);
            let at = source_map.location(id, path.as_slice());
            let help = "give the client another name, and a key of its own, or remove the node first";
            let problem = Problem::new(Code::JoinedAsNode, message).at(at).about(id);
            report.push(problem.help(help.to_owned()));
        }
    }
    report
}

fn over_the_limit(network: &NetworkName, nodes: usize, limit: i64, source_map: &SourceMap) -> Problem {
    let id = ResourceId::of_network(network.clone());
    let message =
        format!("network {network} has {nodes} nodes, joined and expected, but allows only {limit}");
    Problem::new(Code::NodeLimit, message)
        .at(source_map.location(&id, &[Step::Field("node-limit")]))
        .about(id)
        .help(format!("raise node-limit to at least {nodes}, or remove nodes first"))
}

fn taken(id: &ResourceId, source_map: &SourceMap, code: Code, why: String) -> Problem {
    let message = format!("{id} exists on the server and {why}, so it cannot be declared here");
    Problem::new(code, message)
        .at(source_map.location(id, &[]))
        .about(id)
        .help("give the declared one another name".to_owned())
}

fn no_room(exhausted: &Exhausted, declared: &Snapshot, source_map: &SourceMap) -> Problem {
    let Exhausted { network, range } = exhausted;
    let mut ingress = declared.all_in::<Ingress>(network);
    let pool = ingress.find(|(_, ingress)| ingress.pool_in(*range) == Some(*range));
    let (id, field, who) = match pool {
        Some((id, _)) => (id.clone(), "pool", format!("clients of {id}")),
        None => {
            let field = if range.network().is_ipv4() { "ipv4" } else { "ipv6" };
            (ResourceId::of_network(network.clone()), field, format!("members of network {network}"))
        }
    };
    Problem::new(Code::RangeExhausted, format!("the {who} do not fit into {range}"))
        .at(source_map.element_or_field(&id, &[Step::Field(field)], &range.to_string()))
        .about(id)
        .help("use a shorter prefix".to_owned())
}

/// The keys that would be over before they are made.
fn over(changes: &[Change], after: &Snapshot, source_map: &SourceMap, now: Timestamp) -> Report {
    let mut report = Report::default();
    for id in new_keys(changes) {
        let expires = after.named::<AccessKey>(&id.network, &id.name).and_then(|key| key.expires);
        let Some(expires) = expires.filter(|expires| expires.moment(now) <= now) else { continue };
        let message = format!("{id} would expire on {expires}, before it is made: nobody could join with it");
        let at = source_map.location(id, &[Step::Field("expires")]);
        let help = "set a later day, or a duration such as 30d".to_owned();
        report.push(Problem::new(Code::KeyOver, message).at(at).about(id).help(help));
    }
    report
}

/// The access keys that changes create.
fn new_keys(changes: &[Change]) -> impl Iterator<Item = &ResourceId> {
    let made = changes.iter().filter(|change| change.action == Action::Create);
    made.map(|change| &change.id).filter(|id| id.kind == Kind::AccessKey)
}

fn binds(changes: &[Change], inventory: &Inventory) -> Vec<Bind> {
    changes
        .iter()
        .filter(|change| concerns_a_node(change))
        .filter_map(|change| bind(change, inventory))
        .collect()
}

/// The host that the declaration of a node is, or approves.
fn bind(change: &Change, inventory: &Inventory) -> Option<Bind> {
    let id = change.id.clone();
    if let Some(joined) = inventory.node(&id.node()) {
        let (key, identity) = (joined.key.clone(), joined.identity);
        return Some(Bind { id, joined: joined.joined, key, identity, pending: false });
    }
    let approved = approved(change.after.as_ref())?;
    let (identity, pending) = admission::pending_by(inventory, &id.network, approved)?;
    Some(Bind { id, joined: pending.since, key: None, identity: *identity, pending: true })
}

/// The host that the body of a node approves.
fn approved(body: Option<&Value>) -> Option<Fingerprint> {
    let Data::Text(text) = &body?.field("approved")?.data else { return None };
    text.parse().ok()
}

/// Whether a change creates or deletes what a node is known by, or approves another host.
fn concerns_a_node(change: &Change) -> bool {
    change.id.kind == Kind::Node
        && match change.action {
            Action::Create | Action::Delete => true,
            Action::Update => approved(change.before.as_ref()) != approved(change.after.as_ref()),
        }
}

/// What becomes of the hosts that wait.
fn pending_changes(before: &Inventory, after: &Inventory) -> Vec<PendingChange> {
    let gone =
        before.pending().filter(|((network, identity), _)| after.pending_of(network, identity).is_none());
    let change =
        |((network, identity), pending): (&(NetworkName, Identity), &Arc<PendingNode>)| PendingChange {
            network: network.clone(),
            name: pending.name.clone(),
            fingerprint: identity.fingerprint(),
            since: pending.since,
            becomes: after.name_of(network, identity).cloned(),
        };
    gone.map(change).collect()
}

/// What differs for nodes and external clients between two worlds.
#[derive(Default)]
struct Effects {
    impact: Vec<NodeImpact>,
    reach: Vec<ReachChange>,
    pairs: Pairs,
    carrying: Vec<CarryingChange>,
    clients: Vec<ClientChange>,
}

fn effects(before: &World, after: &Outcome, server: &ServerInfo, now: Timestamp) -> Effects {
    let (old, new) = ((&before.snapshot, &before.inventory), (&after.snapshot, &after.inventory));
    let changed = Changed::between(old, new);
    let mut effects = Effects::default();
    let (was_hidden, is_hidden) = (reach::hidden(old.0, old.1), reach::hidden(new.0, new.1));
    let mut networks = changed.networks();
    if was_hidden != is_hidden {
        // The range of one network hides endpoints of another.
        networks.extend(was_hidden.networks().into_iter().chain(is_hidden.networks()));
    }
    for network in networks {
        let was = Mesh::compile(network, old.0, old.1);
        let is = match &was {
            Some(was) => was.follow(new.0, new.1, &changed),
            None => Mesh::compile(network, new.0, new.1),
        };
        let before =
            Moment { declared: old.0, inventory: old.1, mesh: was.as_ref(), hidden: &was_hidden, now };
        let after = Moment { declared: new.0, inventory: new.1, mesh: is.as_ref(), hidden: &is_hidden, now };
        let carrying = carrying::between(network, before, after);
        let (reach, pairs) = reach::between(network, before, after);
        effects.reach.extend(reach);
        effects.pairs.add(pairs);
        effects.impact.extend(impact::of_network(before, after, &carrying, server));
        effects.carrying.extend(carrying);
        effects.clients.extend(client::between(network, old, new));
    }
    effects
}

/// How much a change of the declarations does to nodes and to who reaches whom: what the plan of it says.
pub fn effect(before: &World, after: &Outcome, server: &ServerInfo) -> Effect {
    let Effects { impact, pairs, .. } = effects(before, after, server, Timestamp::MIN);
    Effect { nodes_changed: nodes_changed(&impact), reach_lost: pairs.lost_by_members }
}

/// How many nodes are affected, other than by their filter alone.
fn nodes_changed(impact: &[NodeImpact]) -> u64 {
    impact.iter().filter(|impact| !impact.is_filter_alone()).count() as u64
}

/// The changes that a change of reachability may follow from: that of its rule, those of whom it names and of the key that
/// it is about; where there is none of these, all of its network that can move who reaches whom.
fn causes(reach: &ReachChange, changes: &[Change]) -> Vec<ResourceId> {
    let here = || changes.iter().filter(|change| change.id.network == reach.network && moves_reach(change));
    let named = |side: &String| -> Vec<String> {
        // Those who are missing from a side are no cause.
        let words = side.split(" but ").next().unwrap_or_default().replace(" and ", ", ");
        words.split([',', '(', ')']).map(|word| word.trim().to_owned()).collect()
    };
    let names: Vec<String> = [&reach.from, &reach.to].into_iter().flat_map(named).collect();
    let keys: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("whoever joins with ")).collect();
    let is_meant = |change: &&Change| {
        let name = change.id.name.as_str();
        let is_rule = Some(&change.id) == reach.rule.as_ref() && change.id.kind != Kind::Network;
        let has_name = names.iter().any(|it| it == name);
        if matches!(change.id.kind, Kind::Group | Kind::Node | Kind::ExternalClient) {
            return has_name || is_rule;
        }
        let is_key = change.id.kind == Kind::AccessKey && reach.by_key;
        is_rule || is_key && (keys.contains(&name) || has_name)
    };
    let ids = |changes: &mut dyn Iterator<Item = &Change>| -> Vec<ResourceId> {
        changes.map(|change| change.id.clone()).collect()
    };
    let nearest = [
        ids(&mut here().filter(is_meant)),
        ids(&mut here().filter(|change| change.id.kind != Kind::AccessKey || reach.by_key)),
        // The range of another network may hide endpoints of this one.
        ids(&mut changes.iter().filter(|change| change.id.kind == Kind::Network)),
    ];
    nearest.into_iter().find(|ids| !ids.is_empty()).unwrap_or_default()
}

/// Whether a change can move who reaches whom, by what it changes.
fn moves_reach(change: &Change) -> bool {
    /// The kinds of which a few fields alone do.
    const FIELDS: &[(Kind, &[&str])] = &[
        (Kind::Network, &["ipv4", "ipv6", "hub", "acl"]),
        (Kind::AccessKey, &["uses", "expires", "tags", "for"]),
        (Kind::Node, &["ipv4", "ipv6", "tags", "endpoint", "approved"]),
        (Kind::Egress, &["via", "ranges", "for", "fallback"]),
        (Kind::Ingress, &["via", "pool"]),
        (Kind::Relay, &["via", "for"]),
    ];
    if matches!(change.id.kind, Kind::Dns | Kind::Test) {
        return false;
    }
    let of_kind = FIELDS.iter().find(|(kind, _)| *kind == change.id.kind);
    let Some((_, fields)) = of_kind.filter(|_| change.action == Action::Update) else { return true };
    change.fields().iter().any(|it| fields.contains(&it.field.name))
}

impl Plan {
    /// The digest of what the plan does: SHA-256, in hexadecimal, over the canonical JSON (RFC 8785) of the
    /// server, the project and env, the changes, the revisions that they are based on, the identities that
    /// they bind and, where it changes, the guard.
    ///
    /// The commit, the time and the version of the tool are not part of it, so it survives a merge.
    pub fn digest_now(&self) -> String {
        #[derive(Serialize)]
        struct Meant<'a> {
            server: &'a str,
            project: &'a Name,
            env: &'a Name,
            changes: &'a [Change],
            base_revisions: &'a BTreeMap<ResourceId, Revision>,
            binds: &'a [Bind],
            #[serde(skip_serializing_if = "Option::is_none")]
            guard: Option<&'a GuardChange>,
        }
        let Self { server, project, env, changes, base_revisions, binds, guard, .. } = self;
        let (server, guard) = (server.id.as_str(), guard.as_ref());
        let canonical =
            serde_jcs::to_vec(&Meant { server, project, env, changes, base_revisions, binds, guard });
        let bytes = Sha256::digest(canonical.expect("a plan can be written as JSON"));
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same plan, with what becomes of the guard that the server has stored for the project. `declared` is
    /// what the project file says, where there is one; absent: what is stored stays. A project that manages
    /// nothing afterwards has none.
    #[must_use]
    pub fn with_guard(mut self, declared: Option<&Limits>, world: &World) -> Self {
        let owner = self.owner();
        let before = world.guards.of(&owner).map(|guard| guard.limits.clone());
        let wanted = declared.cloned().or_else(|| before.clone()).filter(|limits| !limits.is_empty());
        let after = wanted.filter(|_| self.leaves_anything(&owner, &world.snapshot));
        self.guard = (before != after).then_some(GuardChange { before, after });
        self.applyable = !self.changes.is_empty() || self.guard.is_some();
        self.digest = self.digest_now();
        self
    }

    /// Whether its project manages anything afterwards.
    fn leaves_anything(&self, owner: &Owner, observed: &Snapshot) -> bool {
        let deleted: BTreeSet<_> =
            self.changes.iter().filter(|change| change.after.is_none()).map(|change| &change.id).collect();
        self.changes.iter().any(|change| change.after.is_some())
            || observed.managed_by(owner).any(|(id, _)| !deleted.contains(id))
    }

    /// The owner of what it declares.
    pub fn owner(&self) -> Owner {
        Owner { project: self.project.clone(), env: self.env.clone() }
    }

    /// How much it does to nodes and to who reaches whom, as it says.
    pub fn effect(&self) -> Effect {
        Effect { nodes_changed: nodes_changed(&self.impact), reach_lost: self.pairs.lost_by_members }
    }

    /// A summary of it.
    pub fn summary(&self) -> Summary {
        let actions = |action| self.changes.iter().filter(|change| change.action == action).count() as u64;
        let clients = |outcome| self.clients.iter().filter(|client| client.outcome == outcome).count() as u64;
        let nodes_changed = nodes_changed(&self.impact);
        Summary {
            create: actions(Action::Create),
            update: actions(Action::Update),
            delete: actions(Action::Delete),
            nodes_changed,
            filters_changed: self.impact.len() as u64 - nodes_changed,
            clients_anew: clients(ClientOutcome::Anew),
            clients_cut_off: clients(ClientOutcome::CutOff),
            reach_gained: self.pairs.gained,
            reach_lost: self.pairs.lost,
            reach_gained_later: self.pairs.gained_later,
            reach_lost_later: self.pairs.lost_later,
            reach_pairs: self.pairs.of,
            base_revision: self.server.revision,
            digest: self.digest.clone(),
        }
    }

    /// What the plan depends on and has changed since it was made, each with its current revision; 0: it is gone.
    pub fn stale(&self, world: &World) -> Vec<(Subject, Revision)> {
        let now = |id: &ResourceId| world.snapshot.entry(id).map_or(Revision(0), |entry| entry.revision);
        let mut stale: Vec<_> = self
            .base_revisions
            .iter()
            .filter(|(id, was)| now(id) != **was)
            .map(|(id, _)| (id.clone().into(), now(id)))
            .collect();
        let bound: BTreeMap<_, _> =
            self.binds.iter().map(|bind| (&bind.id, (bind.identity, bind.pending))).collect();
        for change in self.changes.iter().filter(|change| concerns_a_node(change)) {
            let now = bind(change, &world.inventory).map(|bind| (bind.identity, bind.pending));
            if now != bound.get(&change.id).copied() {
                stale.push((change.id.clone().into(), world.revision));
            }
        }
        let owner = self.owner();
        let stored = world.guards.of(&owner);
        if self.guard.as_ref().is_some_and(|it| it.before.as_ref() != stored.map(|guard| &guard.limits)) {
            let revision = stored.map_or(Revision(0), |guard| guard.revision);
            stale.push((Subject::Guard(owner), revision));
        }
        stale
    }

    /// The world after the plan, if nothing that it changes has changed since; the rules are checked again.
    pub fn apply(&self, world: &World, server: &ServerInfo, now: Timestamp) -> Result<Outcome, Report> {
        let mut snapshot = world.snapshot.clone();
        let mut report = Report::default();
        let revision = Revision(world.revision.0 + 1);
        for change in &self.changes {
            match &change.after {
                None => drop(snapshot.delete(&change.id)),
                Some(body) => match decode_body(&change.id, body) {
                    Ok(entry) => {
                        let owner = Some(self.owner());
                        snapshot.put(change.id.clone(), Entry { owner, revision, ..entry });
                    }
                    Err(problems) => report.append(problems),
                },
            }
        }
        report.append(over(&self.changes, &snapshot, &SourceMap::default(), now));
        if report.has_errors() {
            return Err(report);
        }
        let inventory = check_and_reconcile(&snapshot, &world.inventory, &SourceMap::default(), server, now)?;
        Ok(Outcome { snapshot, inventory })
    }

    /// The plan without its effects: what carries it out needs, and what its digest is of.
    pub fn bare(&self) -> Self {
        Self {
            impact: Vec::new(),
            reach: Vec::new(),
            pairs: Pairs::default(),
            carrying: Vec::new(),
            clients: Vec::new(),
            tests: Vec::new(),
            ..self.clone()
        }
    }

    /// The access keys that the plan creates.
    pub fn new_keys(&self) -> impl Iterator<Item = &ResourceId> {
        new_keys(&self.changes)
    }
}
