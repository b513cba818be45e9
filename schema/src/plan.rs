//! A plan: the changes from what a server has to what files declare, and their effects.
//!
//! A plan is a value. It is made by [`plan`], shown, saved, reviewed, and carried out by a server on which
//! nothing that it changes has changed since ([`Plan::stale`], [`Plan::apply`]). It holds no secret:
//! declarations have none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::access::{Access, ClassId};
use crate::client::{self, ClientChange, ClientOutcome};
use crate::compile::allocate::Exhausted;
use crate::compile::audience::{Audience, ViewStep};
use crate::compile::carrying::{self, CarryingChange, Part};
use crate::compile::reach::{self, Direction, Moment, ReachChange};
use crate::compile::reconcile::{self, joined_and_awaited};
use crate::compile::{Changed, Mesh, admission};
use crate::decode::{Declared, decode_body};
use crate::diff::{Action, Change, diff};
use crate::inventory::{Inventory, NodeId, PendingNode};
use crate::judge::{self, Verdict};
use crate::kinds::{AccessKey, ExternalClient, Ingress, Kind, Node};
use crate::limits::{Effect, GuardChange, Limits};
use crate::published::Time;
use crate::report::{Code, Problem, Report};
use crate::rules;
use crate::rules::endpoints::{self, Meshes};
use crate::rules::source_map::SourceMap;
use crate::scalars::{Fingerprint, Identity, Name, NetworkName, WireGuardKey};
use crate::snapshot::{Entry, Owner, Provenance, ResourceId, Revision, Snapshot};
use crate::subject::Subject;
use crate::value::{Data, Step, Value};
use crate::view::{Changes, Peer, Route, Tunnel, View, ViewDelta, tunnel_changes};
use crate::world::{ServerInfo, World};

/// The version of the saved form; raised when an older reader would misread it, as after a change of a
/// default, since bodies leave out what equals it.
pub const FORMAT: &str = "1.0";

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

/// How a plan affects one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct NodeImpact {
    /// The network.
    pub network: NetworkName,
    /// The node.
    pub node: Name,
    /// Whether the plan removes it from the network.
    pub removed: bool,
    /// Peers that it gains.
    pub peers_added: u32,
    /// Peers that it loses.
    pub peers_removed: u32,
    /// Peers that change.
    pub peers_changed: u32,
    /// Ranges that it gains a route to.
    pub routes_added: u32,
    /// Ranges that it loses the route to.
    pub routes_removed: u32,
    /// Ranges that it reaches through another node than before.
    #[serde(default)]
    pub routes_changed: u32,
    /// Where what it sends to the internet goes, by family, where that changes.
    #[serde(default)]
    pub internet: Vec<InternetChange>,
    /// What it begins or ceases to carry for others.
    #[serde(default)]
    pub carries: Vec<PartChange>,
    /// Whether what may be opened at it changes, by nodes that it knows before and afterwards.
    #[serde(default)]
    pub filter: bool,
    /// The addresses that it gains.
    pub readdressed: Vec<IpAddr>,
    /// Whether connections through the mesh break: it loses an address, or its port changes.
    pub sessions_break: bool,
    /// Whether its path to the server stays outside of the mesh.
    pub keeps_server: bool,
}

/// What a node sends to the internet goes another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct InternetChange {
    /// The family: `0.0.0.0/0` or `::/0`.
    #[schemars(with = "String")]
    pub range: IpNet,
    /// Where it went.
    pub before: Internet,
    /// Where it goes.
    pub after: Internet,
}

/// Where what a node sends to the internet goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Internet {
    /// Where the host itself routes it, outside of the network.
    Own,
    /// Through this node.
    Through(Name),
    /// Nowhere: the nodes that would carry it are away.
    Refused,
}

/// A node does something else for what is carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct PartChange {
    /// The egress, ingress or relay; the network, of its hub.
    pub id: ResourceId,
    /// What it did; null: nothing.
    pub before: Option<Part>,
    /// What it does; null: nothing.
    pub after: Option<Part>,
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
    /// Ordered pairs of joined nodes of which the first can open more at the second afterwards, counted for
    /// each line of `reach`.
    pub reach_gained: u64,
    /// Ordered pairs of joined nodes of which the first could open more at the second before.
    pub reach_lost: u64,
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
    let desired = desired(declared, owner, only, &world.snapshot)?;
    let inventory = check_and_reconcile(&desired, &world.inventory, &declared.source_map, server, now)?;
    let changes = diff(&world.snapshot, &desired);
    let over = over(&changes, &desired, &declared.source_map, now);
    if over.has_errors() {
        return Err(over);
    }
    let after = Outcome { snapshot: desired, inventory };
    let pending = pending_changes(&world.inventory, &after.inventory);
    let Effects { impact, mut reach, carrying, clients } = effects(world, &after, server);
    for change in &mut reach {
        change.because = cause(change, &changes);
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
        carrying,
        clients,
        pending,
        tests,
    };
    plan.digest = plan.digest_now();
    Ok(plan)
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
    let mut report = rules::check(declared, source_map);
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
    carrying: Vec<CarryingChange>,
    clients: Vec<ClientChange>,
}

fn effects(before: &World, after: &Outcome, server: &ServerInfo) -> Effects {
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
        let before = Moment { declared: old.0, inventory: old.1, mesh: was.as_ref(), hidden: &was_hidden };
        let after = Moment { declared: new.0, inventory: new.1, mesh: is.as_ref(), hidden: &is_hidden };
        let carrying = carrying::between(network, before, after);
        effects.reach.extend(reach::between(network, before, after));
        effects.impact.extend(impact_of(was.as_ref(), is.as_ref(), &carrying, server));
        effects.carrying.extend(carrying);
        effects.clients.extend(client::between(network, old, new));
    }
    effects
}

/// How much a change of the declarations does to nodes and to who reaches whom: what the plan of it says.
pub fn effect(before: &World, after: &Outcome, server: &ServerInfo) -> Effect {
    let Effects { impact, reach, .. } = effects(before, after, server);
    Effect { nodes_changed: nodes_changed(&impact), reach_lost: pairs(&reach, Direction::Lost) }
}

/// How many nodes are affected, other than by their filter alone.
fn nodes_changed(impact: &[NodeImpact]) -> u64 {
    impact.iter().filter(|impact| !impact.is_filter_alone()).count() as u64
}

/// How many ordered pairs of nodes that have joined gain or lose something.
fn pairs(reach: &[ReachChange], direction: Direction) -> u64 {
    let now = reach.iter().filter(|change| change.direction == direction && !change.once_joined);
    now.map(|change| change.pairs).sum()
}

fn impact_of(
    was: Option<&Mesh>,
    is: Option<&Mesh>,
    carrying: &[CarryingChange],
    server: &ServerInfo,
) -> Vec<NodeImpact> {
    let Some(was) = was else { return Vec::new() };
    // What nodes of one audience are sent is the same, and so is what it does to them.
    let mut shared: BTreeMap<Audience, Option<NodeImpact>> = BTreeMap::new();
    let impact = |node: &Name| {
        let Some((is, step)) = is.and_then(|is| Some((is, is.step(was, node)?))) else {
            return Some(removal(node, was, carrying));
        };
        match step {
            ViewStep::Shared(audience) => {
                let of_one = || node_impact(node, (was, is), &is.delta(was, &audience), carrying, server);
                let impact = shared.entry(audience.clone()).or_insert_with(of_one).clone();
                impact.map(|impact| NodeImpact { node: node.clone(), ..impact })
            }
            ViewStep::Own(delta) => node_impact(node, (was, is), &delta, carrying, server),
            // It had no View before, so nothing changes for it.
            ViewStep::Whole => None,
        }
    };
    was.nodes().filter_map(impact).collect()
}

/// How one node is affected by what it is sent; nothing if it is not.
fn node_impact(
    node: &Name,
    (was, is): (&Mesh, &Mesh),
    delta: &ViewDelta,
    carrying: &[CarryingChange],
    server: &ServerInfo,
) -> Option<NodeImpact> {
    let named: BTreeSet<&Name> = delta.peers.keys().collect();
    let (before, after) = (was.part(node, &named)?, is.part(node, &named)?);
    let peers = PeerCounts::of(&before, &tunnel_changes(&before, &after, delta));
    let routes = RouteCounts::of(&before, &after, delta);
    let (old, new) = (addresses(&before), addresses(&after));
    let impact = NodeImpact {
        network: after.network.clone(),
        node: node.clone(),
        removed: false,
        peers_added: count(peers.added),
        peers_removed: count(peers.removed),
        peers_changed: count(peers.changed),
        routes_added: count(routes.added),
        routes_removed: count(routes.removed),
        routes_changed: count(routes.changed),
        internet: internet_changes(&before, &after, delta),
        carries: parts(node, carrying),
        filter: filter_changes(&before, &after, delta, was, is),
        // An added address breaks nothing, and an address whose range grows stays as it is.
        readdressed: new.difference(&old).copied().collect(),
        sessions_break: !old.is_subset(&new) || before.interface.listen_port != after.interface.listen_port,
        keeps_server: !server_addresses(server).any(|address| leads_into_mesh(&after, address)),
    };
    // That others are called another class by which they may open the same is nothing to it.
    let settings = delta.interface.is_some() || !delta.names.is_empty() || !delta.forwards.is_empty();
    (settings || impact.changes_peers() || impact.filter).then_some(impact)
}

/// Whether what those may open at a node that it knows before and afterwards differs.
fn filter_changes(before: &View, after: &View, delta: &ViewDelta, was: &Mesh, is: &Mesh) -> bool {
    let open = |view: &View, peer: &Peer| {
        if !view.interface.restricted {
            return Access::everything();
        }
        view.access.get(&peer.class).map(|access| (**access).clone()).unwrap_or_default()
    };
    let both = |name: &Name| before.peers.get(name).zip(after.peers.get(name));
    let named = delta.peers.keys().filter_map(both);
    let mut differ = named.map(|(had, has)| open(before, had) != open(after, has));
    let stays = |class: &ClassId| {
        let other =
            |mesh: &Mesh| mesh.members(class).is_some_and(|all| all.keys().any(|it| *it != after.node));
        other(was) && other(is)
    };
    // What of it is about classes that are there all the time.
    let guards = |class: &ClassId| {
        let is_there = |class: &ClassId| was.class(class).is_some() && is.class(class).is_some();
        let rows = |view: &View| -> BTreeMap<ClassId, Access> {
            let rows = view.guarded.get(class).into_iter().flat_map(|rows| rows.iter());
            rows.filter(|(from, _)| is_there(from)).map(|(from, access)| (*from, access.clone())).collect()
        };
        is_there(class) && rows(before) != rows(after)
    };
    before.interface.restricted != after.interface.restricted
        || differ.any(|differs| differs)
        || delta.access.keys().any(stays)
        || delta.guarded.keys().any(guards)
}

/// How many of the ranges that a node reaches through others a change affects, and of those that its network
/// has.
struct RouteCounts {
    added: usize,
    removed: usize,
    changed: usize,
}

impl RouteCounts {
    fn of(before: &View, after: &View, delta: &ViewDelta) -> Self {
        let (had, has) = (ranges(before), ranges(after));
        // Which members its addresses count as is of no matter to a route.
        let via = |view: &View, range: &IpNet| view.routes.get(range).map(|route| route.via.clone());
        let moves = || delta.routes.keys().map(|range| (via(before, range), via(after, range)));
        Self {
            added: has.difference(&had).count() + moves().filter(|(had, _)| had.is_none()).count(),
            removed: had.difference(&has).count() + moves().filter(|(_, has)| has.is_none()).count(),
            changed: moves().filter(|(had, has)| had.is_some() && has.is_some() && had != has).count(),
        }
    }
}

/// Where what a node sends to the internet goes, where that changes.
fn internet_changes(before: &View, after: &View, delta: &ViewDelta) -> Vec<InternetChange> {
    let leads = |view: &View, range: &IpNet| match view.routes.get(range).map(|route| &**route) {
        None | Some(Route { carried: true, .. }) => Internet::Own,
        Some(Route { via: Some(via), .. }) => Internet::Through(via.clone()),
        Some(Route { via: None, .. }) => Internet::Refused,
    };
    let families: BTreeSet<&IpNet> = delta.routes.keys().filter(|range| range.prefix_len() == 0).collect();
    let changes = families.into_iter().map(|range| InternetChange {
        range: *range,
        before: leads(before, range),
        after: leads(after, range),
    });
    changes.filter(|change| change.before != change.after).collect()
}

/// What a node begins or ceases to carry.
fn parts(node: &Name, carrying: &[CarryingChange]) -> Vec<PartChange> {
    let change = |CarryingChange { id, before, after, .. }: &CarryingChange| {
        let [before, after] = [before, after].map(|state| state.as_ref().and_then(|it| it.part_of(node)));
        (before != after).then(|| PartChange { id: id.clone(), before, after })
    };
    carrying.iter().filter_map(change).collect()
}

/// Whether what a node's host sends to an address goes into the mesh. A route to everything does not count: the
/// agent's own packets stay outside of it, and others reach the server by way of the gateway.
fn leads_into_mesh(view: &View, address: IpAddr) -> bool {
    let own = view.routes.iter().filter(|(range, route)| range.prefix_len() > 0 && !route.carried);
    let routes = own.map(|(range, _)| *range);
    ranges(view).into_iter().chain(routes).any(|range| range.contains(&address))
}

/// How many of a node's WireGuard peers a change affects: what WireGuard is given counts, not what the View
/// says of them.
struct PeerCounts {
    added: usize,
    removed: usize,
    changed: usize,
}

impl PeerCounts {
    fn of(before: &View, changes: &Changes<WireGuardKey, Tunnel>) -> Self {
        let Changes { put, lost } = changes;
        let key_before = |tunnel: &Tunnel| before.peers.get(&tunnel.peer)?.public_key;
        let changed = put.iter().filter(|(_, tunnel)| key_before(tunnel).is_some()).count();
        // A peer with a new key counts as changed, though the old key is lost.
        let rekeyed = put
            .iter()
            .filter(|(key, tunnel)| key_before(tunnel).is_some_and(|before| before != *key))
            .count();
        Self { added: put.len() - changed, removed: lost.len().saturating_sub(rekeyed), changed }
    }
}

/// How a node is affected that the plan removes from the network.
fn removal(node: &Name, was: &Mesh, carrying: &[CarryingChange]) -> NodeImpact {
    let before = was.part(node, &BTreeSet::new());
    let routes = before.map_or(0, |view| view.interface.addresses.len() + view.routes.len());
    NodeImpact {
        network: was.name().clone(),
        node: node.clone(),
        removed: true,
        peers_added: 0,
        peers_removed: was.counts(node).peers,
        peers_changed: 0,
        routes_added: 0,
        routes_removed: count(routes),
        routes_changed: 0,
        internet: Vec::new(),
        carries: parts(node, carrying),
        filter: false,
        readdressed: Vec::new(),
        sessions_break: true,
        keeps_server: true,
    }
}

impl NodeImpact {
    /// Whether peers, routes, addresses or what it carries change, and not only what may be opened at it or its settings.
    fn changes_peers(&self) -> bool {
        let Self { peers_added, peers_removed, peers_changed, .. } = self;
        let Self { routes_added, routes_removed, routes_changed, .. } = self;
        let peers = [peers_added, peers_removed, peers_changed];
        let routes = [routes_added, routes_removed, routes_changed];
        let changes = peers.into_iter().chain(routes).any(|count| *count > 0);
        self.removed || changes || !self.readdressed.is_empty() || !self.carries.is_empty()
    }

    /// Whether nothing changes for it but what may be opened at it.
    pub fn is_filter_alone(&self) -> bool {
        self.filter && !self.changes_peers() && !self.sessions_break && self.keeps_server
    }
}

fn ranges(view: &View) -> BTreeSet<IpNet> {
    view.interface.addresses.iter().map(IpNet::trunc).collect()
}

fn addresses(view: &View) -> BTreeSet<IpAddr> {
    view.interface.addresses.iter().map(IpNet::addr).collect()
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

/// The addresses by which agents reach a server, as far as they are known.
fn server_addresses(server: &ServerInfo) -> impl Iterator<Item = IpAddr> {
    let endpoints =
        server.agent_addresses.iter().filter_map(|address| address.parse::<crate::scalars::Endpoint>().ok());
    let named = endpoints.filter_map(|endpoint| match endpoint.host {
        crate::scalars::EndpointHost::Address(address) => Some(address),
        crate::scalars::EndpointHost::Domain(_) => None,
    });
    named.chain(server.addresses.iter().copied())
}

/// The one change that a change of reachability follows from, if there is one.
fn cause(reach: &ReachChange, changes: &[Change]) -> Option<ResourceId> {
    let here = || changes.iter().filter(|change| change.id.network == reach.network);
    let rule = here().find(|change| Some(&change.id) == reach.rule.as_ref());
    let one_of =
        |side: &str| here().find(|change| change.id.kind == Kind::Node && change.id.name.as_str() == side);
    let node = one_of(&reach.from).or_else(|| one_of(&reach.to));
    let network = || here().find(|change| change.id.kind == Kind::Network);
    // What names, groups and rules say of who may talk to whom, and what carries it there.
    let carries = |change: &Change| {
        matches!(change.id.kind, Kind::Egress | Kind::Ingress | Kind::ExternalClient | Kind::Relay)
    };
    let of_rules = |change: &Change| matches!(change.id.kind, Kind::Group | Kind::Allow | Kind::Node);
    let mut others = here().filter(|change| carries(change) || reach.rule.is_some() && of_rules(change));
    let only = || others.next().filter(|_| others.next().is_none());
    // The range of another network may hide endpoints of this one.
    let mut networks = changes.iter().filter(|change| change.id.kind == Kind::Network);
    let elsewhere = || networks.next().filter(|_| networks.next().is_none());
    rule.or(node).or_else(network).or_else(only).or_else(elsewhere).map(|change| change.id.clone())
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
        Effect { nodes_changed: nodes_changed(&self.impact), reach_lost: pairs(&self.reach, Direction::Lost) }
    }

    /// A summary of it.
    pub fn summary(&self) -> Summary {
        let actions = |action| self.changes.iter().filter(|change| change.action == action).count() as u64;
        let pairs = |direction| pairs(&self.reach, direction);
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
            reach_gained: pairs(Direction::Gained),
            reach_lost: pairs(Direction::Lost),
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

    /// The access keys that the plan creates.
    pub fn new_keys(&self) -> impl Iterator<Item = &ResourceId> {
        new_keys(&self.changes)
    }
}
