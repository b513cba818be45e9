//! What nmplan and the server say to each other over REST.
//!
//! Only the bodies: the server's authorisation table says which route carries which. A world is sent as its
//! [`WorldDocument`](crate::world::WorldDocument).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::attribute::Ref;
use crate::chain::ChainHash;
use crate::compile::ways::carrier;
use crate::diff::Change;
use crate::guard::Guard;
use crate::inventory::{Admission, Inventory, KeyStatus, NodeId, NodeProblem};
use crate::kinds::{AccessKey, Egress, Ingress, Node, Relay};
use crate::limits::GuardChange;
use crate::plan::Plan;
use crate::published::Time;
use crate::scalars::{Fingerprint, Identity, Name, NetworkName, Verifier, WireGuardKey};
use crate::snapshot::{Owner, Provenance, ResourceId, Revision, Snapshot};
use crate::subject::Subject;

/// A request to apply a plan, in the form that `nmplan plan --format json` prints.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Chosen by the client; the same id is applied once.
    pub apply_id: String,
    /// The plan.
    pub plan: Plan,
    /// What verifies the secret of each access key that the plan creates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<ResourceId, Verifier>,
    /// The rules that may be broken this once; one that is not broken is accepted as well.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<Guard>,
}

/// The answer to an apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    /// The revision that it created.
    pub revision: Revision,
    /// Whether an earlier call with the same id created it.
    pub already: bool,
}

/// The answer to the removal of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Removed {
    /// The revision that it created.
    pub revision: Revision,
    /// The identity of the host that was the node.
    pub identity: Identity,
    /// Whether that identity is barred from the network from now on.
    pub barred: bool,
    /// The access key that still lets the host join again, with the token that it has; absent: it has none
    /// that does.
    pub admits: Option<ResourceId>,
    /// How to close that, if it is open.
    pub next: Option<String>,
}

/// The answer to the approval of a host that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Approved {
    /// The revision that it created.
    pub revision: Revision,
    /// The name of its node.
    pub name: Name,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The identity of the host.
    pub identity: Identity,
}

/// One revision: who changed what, when and why. Append-only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogEntry {
    /// The revision that it created.
    pub revision: Revision,
    /// When.
    #[schemars(with = "Time")]
    pub time: Timestamp,
    /// Who: a token's id, or the node that joined or left.
    pub actor: String,
    /// What was done: `apply`, `put`, `delete`, `join`, `leave`, `remove`, `ban`, `lift-ban`, `check-in`,
    /// `upgrade`, `epoch`, `clock`, `failover`, `expire`, `ask`, `approve`, `drop`.
    pub action: String,
    /// The project and env of the declarations.
    pub owner: Option<Owner>,
    /// The id that the client gave an apply.
    pub apply_id: Option<String>,
    /// The digest of the plan that was applied.
    pub digest: Option<String>,
    /// Where the files came from.
    pub provenance: Option<Provenance>,
    /// The rules that the change broke, and was let through.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allowed: BTreeSet<Guard>,
    /// What changed among the declarations.
    pub changes: Vec<Change>,
    /// The guards that changed, by project and env.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub guards: BTreeMap<Owner, GuardChange>,
    /// The nodes that joined, left or changed, whose host was barred or may join again, or that carry something
    /// else; the external clients that changed; and the hosts that began or ceased to wait, by the name that they
    /// asked for.
    pub nodes: Vec<NodeId>,
    /// The hash of this entry and, through it, of all entries before it. The stored text of an entry, which
    /// it covers, does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ChainHash>,
}

/// The state of the nodes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Status")]
pub struct StatusDocument {
    /// The epoch.
    pub epoch: u64,
    /// The revision.
    pub revision: Revision,
    /// The nodes, joined and expected, and the hosts that wait.
    pub nodes: Vec<NodeStatus>,
    /// The access keys.
    #[serde(default)]
    pub keys: Vec<KeyState>,
    /// The egress.
    #[serde(default)]
    pub egress: Vec<CarrierState>,
    /// The relays.
    #[serde(default)]
    pub relays: Vec<CarrierState>,
}

/// Which node carries an egress or a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CarrierState {
    /// Its resource id.
    pub id: ResourceId,
    /// The node that carries it: the first candidate that has joined and is not away. Absent: none is there.
    pub carrier: Option<Name>,
    /// The nodes that may carry it, in order of preference.
    pub candidates: Vec<Name>,
    /// Those of them that do not carry it at present whatever the others do: they are silent, report that they
    /// cannot, or are not back for long enough.
    pub away: Vec<Name>,
}

/// Which nodes carry every egress that is declared.
pub fn egress_states(snapshot: &Snapshot, inventory: &Inventory) -> Vec<CarrierState> {
    let states = snapshot.networks().flat_map(|(network, _)| snapshot.all_in::<Egress>(network));
    states.map(|(id, egress)| carrier_state(id, &egress.via, Some(&id.name), inventory)).collect()
}

/// Which nodes carry every relay that is declared.
pub fn relay_states(snapshot: &Snapshot, inventory: &Inventory) -> Vec<CarrierState> {
    let states = snapshot.networks().flat_map(|(network, _)| snapshot.all_in::<Relay>(network));
    states.map(|(id, relay)| carrier_state(id, &relay.via, None, inventory)).collect()
}

/// Which nodes carry every egress, ingress and relay of a network.
pub fn carrier_states(
    network: &NetworkName,
    snapshot: &Snapshot,
    inventory: &Inventory,
) -> Vec<CarrierState> {
    let egress = snapshot.all_in::<Egress>(network);
    let egress = egress.map(|(id, egress)| carrier_state(id, &egress.via, Some(&id.name), inventory));
    let ingress = snapshot.all_in::<Ingress>(network);
    let ingress = ingress.map(|(id, it)| carrier_state(id, std::slice::from_ref(&it.via), None, inventory));
    let relays = snapshot.all_in::<Relay>(network);
    let relays = relays.map(|(id, relay)| carrier_state(id, &relay.via, None, inventory));
    egress.chain(ingress).chain(relays).collect()
}

fn carrier_state(
    id: &ResourceId,
    via: &[Ref<Node>],
    egress: Option<&Name>,
    inventory: &Inventory,
) -> CarrierState {
    let candidates: Vec<Name> = via.iter().map(|node| node.name.clone()).collect();
    let is_away = |name: &&Name| inventory.is_away(&NodeId::of(&id.network, name), egress);
    let away = candidates.iter().filter(is_away).cloned().collect();
    let carrier = carrier(&id.network, via, egress, inventory).cloned();
    CarrierState { id: id.clone(), carrier, candidates, away }
}

/// The state of an access key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyState {
    /// Its resource id.
    pub id: ResourceId,
    /// Whether it lets hosts join.
    pub state: KeyPhase,
    /// How many nodes have joined with it.
    pub used: u32,
    /// How many may; absent: any number.
    pub uses: Option<u32>,
    /// When it expires; absent: never.
    #[schemars(with = "Option<Time>")]
    pub expires: Option<Timestamp>,
}

/// Whether an access key lets hosts join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyPhase {
    /// It does.
    Open,
    /// It has been used as often as it may.
    Spent,
    /// It has expired.
    Expired,
}

impl KeyState {
    /// Whether it lets hosts join.
    pub fn is_open(&self) -> bool {
        self.state == KeyPhase::Open
    }

    /// How often it may still be used; absent: any number of times.
    pub fn left(&self) -> Option<u32> {
        Some(self.uses?.saturating_sub(self.used))
    }
}

/// The state of every access key that is declared and has been made.
pub fn key_states(snapshot: &Snapshot, inventory: &Inventory, now: Timestamp) -> Vec<KeyState> {
    let state = |(id, status): (&ResourceId, &std::sync::Arc<KeyStatus>)| {
        let key = snapshot.named::<AccessKey>(&id.network, &id.name)?;
        let state = match status.admission(key, now) {
            Admission::Open => KeyPhase::Open,
            Admission::Expired(_) => KeyPhase::Expired,
            Admission::Spent(_) => KeyPhase::Spent,
        };
        let (used, uses, expires) = (status.used, key.uses().left(0), status.expires(key));
        Some(KeyState { id: id.clone(), state, used, uses, expires })
    };
    inventory.keys().filter_map(state).collect()
}

/// The state of one node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// Its resource id.
    #[schemars(with = "ResourceId")]
    pub id: String,
    /// Its name.
    pub name: Name,
    /// Its tags.
    pub tags: BTreeSet<Name>,
    /// Its addresses; before it joins, those that are reserved.
    pub addresses: BTreeSet<IpAddr>,
    /// Its WireGuard key.
    pub public_key: Option<WireGuardKey>,
    /// Its state.
    pub state: Presence,
    /// When it last checked in.
    #[schemars(with = "Option<Time>")]
    pub last_check_in: Option<Timestamp>,
    /// The newest revision of which it has everything that concerns it.
    pub acknowledged: Option<Revision>,
    /// How it reaches the server.
    pub control: Control,
    /// What is not as it should be on its host.
    pub problems: Vec<NodeProblem>,
    /// The fingerprint of its host's identity; absent: no host is the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// What its host runs, by its own report; absent: no host is the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<Box<str>>,
    /// How its host waits; absent: it does not, or no host is the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingState>,
}

/// How a host waits that asked to join without an access key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingState {
    /// When it asked first.
    #[schemars(with = "Time")]
    pub since: Timestamp,
    /// When it is dropped, unless it is let in before.
    #[schemars(with = "Time")]
    pub until: Timestamp,
    /// The address that it asked from; absent: not known.
    pub seen: Option<IpAddr>,
    /// Why it cannot be let in under the name that it asked for; absent: it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// Whether a node has joined and checks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Declared, but no host has joined as it.
    Awaiting,
    /// A host has asked to join under its name without an access key, and waits to be let in.
    Pending,
    /// It checked in within the last three intervals.
    Online,
    /// It has not, while the server was serving.
    Silent,
}

/// The transport of control traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Control {
    /// The tunnel to the server.
    Tunnel,
    /// TLS on the public address; for the server's own node, inside the server.
    Tls,
    /// None at present.
    None,
}

/// Why a call was not carried out: an `application/problem+json` of RFC 9457.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// Always `about:blank`: `code` distinguishes failures.
    #[serde(rename = "type")]
    pub kind: String,
    /// A few constant words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable name of the failure: `stale`, `rules`, `denied`...
    pub code: String,
    /// What failed and why.
    pub detail: String,
    /// The problems, if a rule forbids the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Finding>,
    /// What has changed, if the plan is stale.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<Moved>,
}

/// A problem as the server reports it, without a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The name of its code.
    pub code: String,
    /// The resource.
    pub id: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// What has changed since the plan that depends on it was made, with what is known of that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    /// The resource, or the guard.
    pub id: Subject,
    /// Its current revision; 0: it is gone.
    pub revision: Revision,
    /// Who changed it last.
    pub actor: Option<String>,
    /// When.
    #[schemars(with = "Option<Time>")]
    pub time: Option<Timestamp>,
}

/// The revision that a change created.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Committed {
    /// The revision.
    pub revision: Revision,
}
