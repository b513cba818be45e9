//! The operations, each once. Knows neither HTTP nor gRPC.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use proto::convert::{Position, encode_delta, encode_view};
use proto::sign;
use proto::wire::{self, Update, update::Body};
use schema::decode::{Places, decode_body};
use schema::diff::Action;
use schema::inventory::{Joined, KeyStatus, NodeId};
use schema::kinds::AccessKey;
use schema::plan::Plan;
use schema::rules;
use schema::scalars::{Endpoint, Name, NetworkName, PublicKey};
use schema::snapshot::{Entry, ResourceId, Revision};
use schema::value::Value;
use schema::world::{ServerInfo, World, WorldDocument};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::committer::{Committer, Note};
use crate::core::authorize::{Grant, Operation};
use crate::core::enrol::{self, Admitted, Candidate, Refused};
use crate::error::{Error, Moved};
use crate::identity::{Secrets, hash_of};
use crate::state::{Lack, State};
use crate::store::{LogEntry, Provenance, Seen, Store};

/// A caller of the REST API: what its token says.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The id of its token.
    pub actor: String,
    /// What it may do.
    pub grant: Grant,
}

/// What carries out a plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Made by the client; the same id is applied once.
    pub apply_id: String,
    /// The plan.
    pub plan: Plan,
    /// What verifies the secret of each access key that the plan makes.
    #[serde(default)]
    pub keys: BTreeMap<ResourceId, PublicKey>,
    /// Where the files came from.
    #[serde(default)]
    pub provenance: Option<Provenance>,
}

/// That a plan was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The revision that it made.
    pub revision: Revision,
    /// Whether that was an earlier call with the same id.
    pub already: bool,
}

/// How the nodes are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusDocument {
    /// The epoch.
    pub epoch: u64,
    /// The revision.
    pub revision: Revision,
    /// The nodes, joined and awaited.
    pub nodes: Vec<NodeStatus>,
}

/// How one node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its resource id.
    pub id: String,
    /// Its name.
    pub name: Name,
    /// Its tags.
    pub tags: BTreeSet<Name>,
    /// Its addresses; before it joined, those that are reserved.
    pub addresses: BTreeSet<IpAddr>,
    /// Its WireGuard key.
    pub public_key: Option<PublicKey>,
    /// How it is.
    pub state: Presence,
    /// When it last checked in.
    pub last_check_in: Option<Timestamp>,
    /// Up to which revision it has everything that concerns it.
    pub acknowledged: Option<Revision>,
    /// How it reaches the server.
    pub control: Control,
}

/// Whether a node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Declared, but its machine has not joined.
    Awaiting,
    /// It checked in within the last three intervals.
    Online,
    /// It has not.
    Silent,
}

/// The way that control traffic takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Control {
    /// TLS on the public address.
    Tls,
    /// None at the moment.
    None,
}

/// The operations on one server.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    committer: Committer,
    states: watch::Receiver<Arc<State>>,
    secrets: Secrets,
    info: ServerInfo,
    seen: Mutex<BTreeMap<NodeId, Sighting>>,
}

/// When and how a node was last heard of.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    seen: Seen,
    streams: u32,
    stored: bool,
}

impl Service {
    /// A service that starts with what its store held.
    pub fn new(
        committer: Committer,
        states: watch::Receiver<Arc<State>>,
        secrets: Secrets,
        info: ServerInfo,
        seen: Vec<(NodeId, Seen)>,
    ) -> Self {
        let sighting = |(id, seen)| (id, Sighting { seen, streams: 0, stored: true });
        let seen = Mutex::new(seen.into_iter().map(sighting).collect());
        Self { inner: Arc::new(Inner { committer, states, secrets, info, seen }) }
    }

    /// Who the server is.
    pub fn info(&self) -> &ServerInfo {
        &self.inner.info
    }

    /// The newest state.
    pub fn state(&self) -> Arc<State> {
        self.inner.states.borrow().clone()
    }

    /// The states as they come.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.inner.states.clone()
    }

    // --- callers of the REST API

    /// Who holds a bearer token, if it allows the operation.
    pub async fn caller(&self, token: Option<&str>, operation: Operation) -> Result<Caller, Error> {
        const NOT_VALID: Error =
            Error::Unauthenticated("the token is not valid; check NMPLAN_TOKEN or NMPLAN_TOKEN_FILE");
        let token = token.ok_or(Error::Unauthenticated("a token is needed: Authorization: Bearer nma_..."))?;
        let (id, hash) = hash_of(token).ok_or(NOT_VALID)?;
        let stored = self.inner.committer.read(move |store| store.token(&id)).await?.ok_or(NOT_VALID)?;
        if !bool::from(stored.hash.ct_eq(&hash)) {
            return Err(NOT_VALID);
        }
        if stored.expires.is_some_and(|end| end <= Timestamp::now()) {
            return Err(Error::Unauthenticated("the token has expired; ask for a new one"));
        }
        stored.grant.allows(operation)?;
        Ok(Caller { actor: stored.id, grant: stored.grant })
    }

    /// Everything that the caller may see, at the newest revision.
    pub fn snapshot(&self, caller: &Caller) -> WorldDocument {
        let state = self.state();
        let mut document = state.world.document(self.inner.info.clone());
        if caller.grant.networks.is_some() {
            let holds = |network: &NetworkName| caller.grant.holds_in(network).is_ok();
            document.resources.retain(|resource| holds(&resource.id.network));
            document.nodes.retain(|node| holds(&node.network));
            document.keys.retain(|key| holds(&key.id.network));
            document.rests.retain(|rest| holds(&rest.network));
        }
        document
    }

    /// How the nodes are that the caller may see.
    pub fn status(&self, caller: &Caller) -> StatusDocument {
        let state = self.state();
        let World { epoch, revision, snapshot, inventory } = &*state.world;
        let mut ids: BTreeSet<NodeId> = inventory.nodes().map(|(id, _)| id.clone()).collect();
        for (network, _) in snapshot.networks() {
            let declared = snapshot.all_in::<schema::kinds::Node>(network);
            ids.extend(declared.map(|(id, _)| (id.network.clone(), id.name.clone())));
        }
        let seen = self.seen();
        let visible = ids.into_iter().filter(|id| caller.grant.holds_in(&id.0).is_ok());
        let nodes = visible.map(|id| node_status(&state, &id, seen.get(&id))).collect();
        StatusDocument { epoch: *epoch, revision: *revision, nodes }
    }

    /// The log above a revision.
    pub async fn revisions(&self, caller: &Caller, after: Revision, limit: usize) -> Result<Vec<LogEntry>, Error> {
        let mut log = self.inner.committer.read(move |store| store.log(after, limit.clamp(1, 1_000))).await?;
        for entry in &mut log {
            entry.changes.retain(|change| caller.grant.holds_in(&change.id.network).is_ok());
            entry.nodes.retain(|node| caller.grant.holds_in(&node.0).is_ok());
        }
        Ok(log)
    }

    /// Carries out a plan as one revision, or nothing of it.
    pub async fn apply(&self, caller: &Caller, request: ApplyRequest) -> Result<Applied, Error> {
        let ApplyRequest { plan, .. } = &request;
        if plan.format != schema::plan::FORMAT || plan.digest != plan.digest_now() {
            return Err(Error::BadRequest("the plan was changed after it was made: its digest does not fit".into()));
        }
        if plan.server.id != self.inner.info.id || plan.server.epoch != self.inner.info.epoch {
            return Err(Error::Precondition(
                "the plan was made for another server, or before a restore; plan again".into(),
            ));
        }
        caller.grant.holds_for(&plan.owner)?;
        plan.changes.iter().try_for_each(|change| caller.grant.holds_in(&change.id.network))?;
        let actor = caller.actor.clone();
        self.inner.committer.change(move |world, store| apply(world, store, request, actor)).await
    }

    /// One resource.
    pub fn resource(&self, caller: &Caller, id: &ResourceId) -> Result<Entry, Error> {
        caller.grant.holds_in(&id.network)?;
        let state = self.state();
        state.world.snapshot.entry(id).cloned().ok_or_else(|| Error::NotFound(id.to_string()))
    }

    /// Makes or replaces one resource by hand, or takes it away where there is no body; `expected` is the revision that it
    /// must be at, absent: it must not exist.
    pub async fn put(
        &self,
        caller: &Caller,
        id: ResourceId,
        body: Option<Value>,
        expected: Option<Revision>,
    ) -> Result<Revision, Error> {
        caller.grant.holds_in(&id.network)?;
        let actor = caller.actor.clone();
        self.inner.committer.change(move |world, _| put(world, &id, body.as_ref(), expected, actor)).await
    }

    /// Takes a machine out of its network.
    pub async fn remove_node(&self, caller: &Caller, network: NetworkName, name: Name) -> Result<Revision, Error> {
        caller.grant.holds_in(&network)?;
        let actor = caller.actor.clone();
        let remove = move |world: &mut World, _: &mut dyn Store| {
            if !enrol::remove(world, &network, &name, Timestamp::now()) {
                return Err(Error::NotFound(format!("machine {name} in {network}")));
            }
            Ok((world.revision, Some(Note { actor, action: "remove", ..Note::default() })))
        };
        self.inner.committer.change(remove).await
    }

    // --- agents

    /// A nonce to sign, and an ephemeral key that belongs to it.
    pub fn challenge(&self) -> wire::ChallengeResponse {
        let (nonce, ephemeral) = self.inner.secrets.challenge();
        wire::ChallengeResponse { nonce: nonce.into(), ephemeral: ephemeral.to_vec().into() }
    }

    /// Lets a machine into a network.
    pub async fn join(&self, request: wire::JoinRequest, from: Option<IpAddr>) -> Result<wire::JoinResponse, Error> {
        let candidate = self.candidate(&request, from)?;
        let (network, identity) = (candidate.network.clone(), candidate.identity);
        let join = move |world: &mut World, _: &mut dyn Store| {
            let Admitted { name, changed } = enrol::join(world, candidate, Timestamp::now())?;
            let note = Note { actor: format!("node {name}"), action: "join", ..Note::default() };
            Ok((name, changed.then_some(note)))
        };
        let name = self.inner.committer.change(join).await?;
        let update = self.whole(&network, &identity)?;
        self.sight(&(network, name.clone()), Revision(update.to), 0);
        Ok(wire::JoinResponse { name: name.to_string(), update: Some(update) })
    }

    fn candidate(&self, request: &wire::JoinRequest, from: Option<IpAddr>) -> Result<Candidate, Error> {
        let bad = |what: &str, why: String| Error::BadRequest(format!("{what} cannot be used: {why}"));
        let ephemeral = self.inner.secrets.ephemeral(&request.nonce)?;
        let network: NetworkName = request.network.parse().map_err(|why| bad("the network", why))?;
        let key: Name = request.key.parse().map_err(|why| bad("the key", why))?;
        let name: Name = request.name.parse().map_err(|why| bad(&format!("the name {:?}", request.name), why))?;
        let id = ResourceId::of::<AccessKey>(&network, &key);
        let state = self.state();
        let status = state.world.inventory.key(&id).ok_or_else(|| Refused::UnknownKey(id.clone()))?;
        sign::verify_join(request, &self.inner.info.signing_key, &ephemeral, &status.verifier)?;
        let facts = request.facts.clone().unwrap_or_default();
        let bytes = |bytes: &[u8]| proto::convert::to_key(bytes).map_err(|error| Error::BadRequest(error.to_string()));
        Ok(Candidate {
            network,
            name,
            key,
            identity: bytes(&request.identity)?,
            public_key: bytes(&request.public_key)?,
            endpoint: endpoint(&facts, from),
            listen_port: u16::try_from(facts.listen_port).unwrap_or_default(),
            os: request.os.chars().filter(|c| !c.is_control()).take(64).collect::<String>().into(),
        })
    }

    /// Opens a session for an identity.
    pub fn open_session(&self, request: &wire::OpenSessionRequest) -> Result<wire::OpenSessionResponse, Error> {
        self.inner.secrets.check_nonce(&request.nonce)?;
        sign::verify_session(&self.inner.info.signing_key, &request.nonce, &request.identity, &request.signature)?;
        let identity =
            proto::convert::to_key(&request.identity).map_err(|error| Error::BadRequest(error.to_string()))?;
        let (token, lifetime) = self.inner.secrets.session(&identity);
        Ok(wire::OpenSessionResponse { token, lifetime })
    }

    /// The identity that a session's token stands for.
    pub fn identity(&self, token: &str) -> Result<PublicKey, Error> {
        self.inner.secrets.identity_of(token).ok_or(Error::Unauthenticated("the session has ended; open a new one"))
    }

    /// The whole View of a machine, or that it is removed.
    pub fn whole(&self, network: &NetworkName, identity: &PublicKey) -> Result<Update, Error> {
        let state = self.state();
        let Some(name) = state.world.inventory.name_of(network, identity) else {
            return Ok(self.removed(&state, network, identity));
        };
        let view = state.mesh(network).and_then(|mesh| mesh.view(name));
        let view = view.ok_or_else(|| Error::NotFound(format!("network {network}")))?;
        Ok(self.sign(&state, network, name, 0, Body::Whole(encode_view(&view).into())))
    }

    /// What a machine lacks that stands somewhere; nothing if it lacks nothing.
    pub fn lacking(
        &self,
        state: &State,
        network: &NetworkName,
        identity: &PublicKey,
        at: Position,
    ) -> Result<Option<Update>, Error> {
        let Some(name) = state.world.inventory.name_of(network, identity) else {
            return Ok(Some(self.removed(state, network, identity)));
        };
        let lack = state.lack(network, name, at.epoch, at.revision);
        Ok(match lack.ok_or_else(|| Error::NotFound(format!("network {network}")))? {
            Lack::Nothing => None,
            Lack::Whole(view) => Some(self.sign(state, network, name, 0, Body::Whole(encode_view(&view).into()))),
            Lack::Delta(delta, peers) => {
                let body = Body::Delta(encode_delta(&delta, peers).into());
                Some(self.sign(state, network, name, at.revision.0, body))
            }
        })
    }

    /// A check-in: notes that the machine is there, takes in what changed on it, and tells what it lacks.
    pub async fn check_in(
        &self,
        network: &NetworkName,
        identity: &PublicKey,
        at: Position,
        facts: Option<&wire::Facts>,
        from: Option<IpAddr>,
    ) -> Result<Option<Update>, Error> {
        let mut state = self.state();
        if let Some(name) = state.world.inventory.name_of(network, identity) {
            let id = (network.clone(), name.clone());
            self.sight(&id, at.revision, 0);
            if let Some(facts) = facts
                && self.take_in(&state, id, facts, from).await?
            {
                state = self.state();
            }
        }
        self.lacking(&state, network, identity, at)
    }

    /// Takes in what changed on a machine; whether anything did.
    async fn take_in(
        &self,
        state: &State,
        id: NodeId,
        facts: &wire::Facts,
        from: Option<IpAddr>,
    ) -> Result<bool, Error> {
        let (endpoint, port) = (endpoint(facts, from), u16::try_from(facts.listen_port).unwrap_or_default());
        let differs = move |joined: &Joined| joined.endpoint != endpoint || joined.listen_port != port;
        if !state.world.inventory.node(&id).is_some_and(|joined| differs(joined)) {
            return Ok(false);
        }
        let facts = (self::endpoint(facts, from), port);
        let change = move |world: &mut World, _: &mut dyn Store| {
            let Some(joined) = world.inventory.node(&id).cloned() else { return Ok((false, None)) };
            let (endpoint, listen_port) = facts;
            let note = Note { actor: format!("node {}", id.1), action: "check-in", ..Note::default() };
            world.inventory.put_node(id, Joined { endpoint, listen_port, ..(*joined).clone() });
            Ok((true, Some(note)))
        };
        self.inner.committer.change(change).await
    }

    /// Takes a machine out of a network at its own wish.
    pub async fn leave(&self, request: &wire::LeaveRequest) -> Result<(), Error> {
        self.inner.secrets.check_nonce(&request.nonce)?;
        sign::verify_leave(request, &self.inner.info.signing_key)?;
        let network: NetworkName = request.network.parse().map_err(Error::BadRequest)?;
        let identity =
            proto::convert::to_key(&request.identity).map_err(|error| Error::BadRequest(error.to_string()))?;
        let leave = move |world: &mut World, _: &mut dyn Store| {
            let Some(name) = world.inventory.name_of(&network, &identity).cloned() else { return Ok(((), None)) };
            enrol::remove(world, &network, &name, Timestamp::now());
            Ok(((), Some(Note { actor: format!("node {name}"), action: "leave", ..Note::default() })))
        };
        self.inner.committer.change(leave).await
    }

    /// Notes that a machine's stream has begun (+1) or ended (-1), and where it stands.
    pub fn stream(&self, network: &NetworkName, identity: &PublicKey, at: Revision, more: i8) {
        if let Some(name) = self.state().world.inventory.name_of(network, identity) {
            self.sight(&(network.clone(), name.clone()), at, more);
        }
    }

    fn sight(&self, id: &NodeId, revision: Revision, more: i8) {
        let now = Seen { time: Timestamp::now(), revision };
        let mut seen = self.seen();
        match seen.get_mut(id) {
            Some(sighting) => {
                sighting.seen = now;
                sighting.streams = sighting.streams.saturating_add_signed(more.into());
                sighting.stored = false;
            }
            None => {
                drop(seen.insert(
                    id.clone(),
                    Sighting { seen: now, streams: more.max(0).unsigned_abs().into(), stored: false },
                ))
            }
        }
    }

    /// Stores when nodes were last heard of, as far as that is not stored yet.
    pub async fn store_seen(&self) -> Result<(), Error> {
        let fresh: Vec<_> = {
            let mut seen = self.seen();
            let fresh = seen.iter_mut().filter(|(_, sighting)| !sighting.stored);
            fresh
                .map(|(id, sighting)| {
                    sighting.stored = true;
                    (id.clone(), sighting.seen)
                })
                .collect()
        };
        if fresh.is_empty() {
            return Ok(());
        }
        self.inner.committer.read(move |store| store.put_seen(&fresh)).await
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Sighting>> {
        // A panic elsewhere leaves the map whole: every change of it is one insertion.
        self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign(&self, state: &State, network: &NetworkName, node: &Name, from: u64, body: Body) -> Update {
        let World { epoch, revision, .. } = &*state.world;
        let mut update =
            Update { epoch: *epoch, from, to: revision.0, body: Some(body), signature: Default::default() };
        sign::sign_update(&mut update, network, node, self.inner.secrets.signing_key());
        update
    }

    fn removed(&self, state: &State, network: &NetworkName, identity: &PublicKey) -> Update {
        let nobody = network.name();
        self.sign(state, network, nobody, 0, Body::Removed(identity.0.to_vec().into()))
    }
}

/// Where a machine is reached: where its operator says, else where it was seen, else where it believes to be.
fn endpoint(facts: &wire::Facts, from: Option<IpAddr>) -> Option<Endpoint> {
    let seen = from.map(|address| address.to_canonical()).filter(|address| !address.is_loopback());
    let said = facts.endpoint.parse().ok();
    let at = |address: IpAddr| Endpoint { host: schema::scalars::Host::Address(address), port: None };
    said.or_else(|| seen.map(at)).or_else(|| facts.local_address.parse().ok().map(at))
}

fn node_status(state: &State, id: &NodeId, sighting: Option<&Sighting>) -> NodeStatus {
    let World { revision, snapshot, inventory, .. } = &*state.world;
    let declared = snapshot.named::<schema::kinds::Node>(&id.0, &id.1);
    let joined = inventory.node(id);
    let seen = sighting.filter(|_| joined.is_some()).map(|sighting| sighting.seen);
    let interval = snapshot.network(&id.0).map_or(15, |network| network.check_in.0);
    let recent =
        |seen: &Seen| Timestamp::now().duration_since(seen.time) <= SignedDuration::from_secs(3 * i64::from(interval));
    let online = seen.as_ref().is_some_and(recent);
    let up_to_date =
        |seen: &Seen| matches!(state.lack(&id.0, &id.1, state.world.epoch, seen.revision), Some(Lack::Nothing));
    let reserved = || declared.iter().flat_map(|node| node.reserved().map(|(_, address)| address)).collect();
    NodeStatus {
        id: format!("{}/node/{}", id.0, id.1),
        name: id.1.clone(),
        tags: joined
            .iter()
            .flat_map(|it| it.tags.clone())
            .chain(declared.iter().flat_map(|it| it.tags.clone()))
            .collect(),
        addresses: joined.map_or_else(reserved, |joined| joined.addresses.clone()),
        public_key: joined.map(|joined| joined.public_key),
        state: match (joined, online) {
            (None, _) => Presence::Awaiting,
            (Some(_), true) => Presence::Online,
            (Some(_), false) => Presence::Silent,
        },
        last_check_in: seen.map(|seen| seen.time),
        acknowledged: seen.map(|seen| if up_to_date(&seen) { *revision } else { seen.revision }),
        control: if online { Control::Tls } else { Control::None },
    }
}

fn apply(
    world: &mut World,
    store: &mut dyn Store,
    request: ApplyRequest,
    actor: String,
) -> Result<(Applied, Option<Note>), Error> {
    let ApplyRequest { apply_id, plan, keys, provenance } = request;
    if let Some(revision) = store.applied(&apply_id)? {
        return Ok((Applied { revision, already: true }, None));
    }
    let before = World { revision: Revision(world.revision.0 - 1), ..world.clone() };
    let stale = plan.stale(&before);
    if !stale.is_empty() {
        let moved = stale.into_iter().map(|(id, revision)| moved(store, id, revision)).collect::<Result<_, _>>()?;
        return Err(Error::Stale(moved));
    }
    check_owner(&plan, &before)?;
    let outcome = plan.apply(&before, Timestamp::now()).map_err(Error::Rules)?;
    (world.snapshot, world.inventory) = (outcome.snapshot, outcome.inventory);
    for id in plan.new_keys() {
        let missing = || Error::BadRequest(format!("what verifies the secret of {id} is missing"));
        let verifier = *keys.get(id).ok_or_else(missing)?;
        world.inventory.put_key(id.clone(), KeyStatus { verifier, created: Timestamp::now(), used: 0 });
    }
    if plan.changes.is_empty() {
        return Ok((Applied { revision: before.revision, already: false }, None));
    }
    let (owner, digest) = (Some(plan.owner), Some(plan.digest));
    let note = Note { actor, action: "apply", owner, apply_id: Some(apply_id), digest, provenance };
    Ok((Applied { revision: world.revision, already: false }, Some(note)))
}

/// A plan changes only what its project and env manage.
fn check_owner(plan: &Plan, world: &World) -> Result<(), Error> {
    for change in plan.changes.iter().filter(|change| change.action != Action::Create) {
        let owner = world.snapshot.entry(&change.id).and_then(|entry| entry.owner.as_ref());
        if owner != Some(&plan.owner) {
            return Err(Error::BadRequest(format!("{} is not managed by {}", change.id, plan.owner)));
        }
    }
    Ok(())
}

fn moved(store: &mut dyn Store, id: ResourceId, revision: Revision) -> Result<Moved, Error> {
    let entry =
        store.log(Revision(revision.0.saturating_sub(1)), 1)?.into_iter().find(|entry| entry.revision == revision);
    let (actor, time) = entry.map(|entry| (entry.actor, entry.time)).unzip();
    Ok(Moved { id, revision, actor, time })
}

fn put(
    world: &mut World,
    id: &ResourceId,
    body: Option<&Value>,
    expected: Option<Revision>,
    actor: String,
) -> Result<(Revision, Option<Note>), Error> {
    let there = world.snapshot.entry(id).cloned();
    let at = there.as_ref().map(|entry| entry.revision);
    if at != expected {
        let now = at.map_or("does not exist".to_owned(), |at| format!("is at revision {at}"));
        return Err(Error::Precondition(format!("{id} {now}; read it again")));
    }
    let owner = there.and_then(|entry| entry.owner);
    match body {
        Some(_) if id.kind == schema::kinds::Kind::AccessKey && expected.is_none() => {
            return Err(Error::BadRequest("an access key is made by nmplan, which makes its secret".into()));
        }
        Some(body) => {
            let entry = decode_body(id, body).map_err(Error::Rules)?;
            world.snapshot.put(id.clone(), Entry { revision: world.revision, owner, ..entry });
        }
        None => drop(world.snapshot.delete(id)),
    }
    settle(world)?;
    let action = if body.is_some() { "put" } else { "delete" };
    Ok((world.revision, Some(Note { actor, action, ..Note::default() })))
}

/// Brings the inventory in line with changed declarations, if they keep the rules.
fn settle(world: &mut World) -> Result<(), Error> {
    let report = rules::check(&world.snapshot, &Places::default());
    if report.has_errors() {
        return Err(Error::Rules(report));
    }
    let settled = world.inventory.settled(&world.snapshot, Timestamp::now());
    world.inventory = settled.map_err(|exhausted| Error::from(Refused::Exhausted(exhausted)))?;
    Ok(())
}
