//! The operations, each once. Knows neither HTTP nor gRPC.
//!
//! Here are those of admins; [`agents`] has those of nodes, [`pending`] those about hosts that wait to be let
//! in, [`declare`] has the changes of declarations, and [`upkeep`] what the server does by itself.

mod agents;
mod declare;
mod documents;
mod pending;
mod scope;
mod status;
mod upkeep;

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use jiff::Timestamp;
use netclient::device::boottime;
use proto::position::Position;
use proto::secret::Secret;
use schema::api::{Applied, ApplyRequest, Removed, StatusDocument, egress_states, key_states, relay_states};
use schema::compile::admission::approved_as;
use schema::inventory::{Barred, Inventory, NodeId};
use schema::kinds::Node;
use schema::scalars::{Identity, Name, NetworkName};
use schema::snapshot::{Entry, Owner, ResourceId, Revision};
use schema::value::Value;
use schema::world::{ServerInfo, World};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::addresses::OwnAddresses;
use crate::committer::{AuditInfo, CommitContext, Committer, Proposal};
use crate::comms::AgentTunnels;
use crate::core::asked::Asked;
use crate::core::authorize::{Grant, Operation};
use crate::core::enrol;
use crate::core::guesses::Guesses;
use crate::core::nonces::Nonces;
use crate::error::Error;
use crate::identity::{Secrets, hash_of};
use crate::liveness::LastSeen;
use crate::readers::{Readers, off_thread};
use crate::state::State;
use crate::tally::Tally;
use documents::Documents;
pub use upkeep::Upkeep;

/// The most entries of the log that one call returns.
const MOST_ENTRIES: usize = 1_000;

/// A caller of the REST API, by its token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The id of its token.
    pub actor: String,
    /// What it may do.
    pub grant: Grant,
}

/// The operations on one server.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

/// What a service works with.
pub struct Parts {
    /// Changes the world.
    pub committer: Committer,
    /// Read what is stored, beside the committer.
    pub readers: Readers,
    /// The world as it is.
    pub states: watch::Receiver<Arc<State>>,
    /// Keys of the server.
    pub secrets: Secrets,
    /// What the server says of itself; its epoch is that of the start.
    pub info: ServerInfo,
    /// When nodes were heard of.
    pub last_seen: LastSeen,
    /// The tunnels to agents; absent: there are none.
    pub comms: Option<AgentTunnels>,
    /// By which addresses the server is reached.
    pub addresses: OwnAddresses,
}

struct Inner {
    parts: Parts,
    documents: Documents,
    nonces: Mutex<Nonces>,
    guesses: Mutex<Guesses>,
    asked: Mutex<Asked>,
    refused: Tally,
}

impl std::ops::Deref for Inner {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Service {
    /// A service that starts with what its store held.
    pub fn new(parts: Parts) -> Self {
        let inner = Inner {
            parts,
            documents: Documents::new(),
            nonces: Mutex::default(),
            guesses: Mutex::default(),
            asked: Mutex::default(),
            refused: Tally::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Changes the world, and remembers which nodes that removes.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&World, &mut CommitContext<'_>) -> Result<Proposal<T>, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let service = self.clone();
        let change = move |world: &World, context: &mut CommitContext<'_>| {
            let proposal = change(world, context)?;
            if let Some(next) = proposal.world() {
                service.remember_removed(&world.inventory, &next.inventory);
            }
            Ok(proposal)
        };
        self.inner.committer.change(change).await
    }

    /// If the change is not stored after all, a host that asked to join has to ask again, and nothing else is
    /// lost.
    fn remember_removed(&self, before: &Inventory, after: &Inventory) {
        for id in before.changed_nodes(after) {
            let identity = before.node(&id).map(|joined| joined.identity);
            if let Some(identity) = identity.filter(|identity| after.name_of(&id.network, identity).is_none())
            {
                self.nonces().removed(id.network, identity, boottime());
            }
        }
    }

    fn nonces(&self) -> MutexGuard<'_, Nonces> {
        // A panic elsewhere leaves them consistent: every change of them is one insertion or removal.
        self.inner.nonces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tunnels to agents, if there are any.
    pub fn comms(&self) -> Option<&AgentTunnels> {
        self.inner.comms.as_ref()
    }

    /// The identity of the server, with the addresses by which it is reached: what plans are made for. They
    /// are for callers with a token only.
    fn plan_info(&self) -> ServerInfo {
        ServerInfo { addresses: self.inner.addresses.now().to_vec(), ..self.info() }
    }

    /// Finds out by which addresses this host is reached right now.
    pub async fn list_own_addresses(&self) {
        self.inner.addresses.list().await;
    }

    /// Finds out what the names resolve to by which agents find the server.
    pub async fn resolve_own_names(&self) {
        self.inner.addresses.resolve().await;
    }

    /// The identity of the server, as everybody may know it, with its current epoch.
    pub fn info(&self) -> ServerInfo {
        ServerInfo { epoch: self.state().world.epoch, ..self.inner.info.clone() }
    }

    /// The position of a View of the newest state.
    pub fn position(&self) -> Position {
        self.position_of(&self.state())
    }

    /// The newest state.
    pub fn state(&self) -> Arc<State> {
        self.inner.states.borrow().clone()
    }

    /// A receiver of new states.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.inner.states.clone()
    }

    /// Whether the server can make changes.
    pub fn ready(&self) -> Result<(), Error> {
        self.inner.states.has_changed().map_err(|_| Error::Bug)?;
        Ok(self.inner.committer.ready()?)
    }

    /// Counts a token, session or signature that is not valid, and waits before its refusal if its source has
    /// sent many.
    pub async fn refused(&self, source: Option<IpAddr>) {
        self.inner.refused.add();
        self.log_refused();
        tracing::debug!(
            source = source.map(tracing::field::display),
            "a token, session or signature is not valid"
        );
        let Some(source) = source else { return };
        let held = {
            let mut guesses = self.inner.guesses.lock().unwrap_or_else(PoisonError::into_inner);
            guesses.refused(source, std::time::Instant::now())
        };
        tokio::time::sleep(held).await;
    }

    /// Logs how many of them were not valid since the last line, at most once a minute.
    pub fn log_refused(&self) {
        if let Some(count) = self.inner.refused.due(Instant::now()) {
            tracing::warn!(
                count,
                "tokens, sessions or signatures were refused because they are not valid; NMSERVER_LOG=debug shows from where"
            );
        }
    }

    /// The caller with a bearer token, if the token allows the operation.
    pub async fn caller(&self, token: Option<Secret<String>>, operation: Operation) -> Result<Caller, Error> {
        const NOT_VALID: Error =
            Error::Unauthenticated("the token is not valid; check NMPLAN_TOKEN or NMPLAN_TOKEN_FILE");
        let token =
            token.ok_or(Error::Unauthenticated("a token is needed: Authorization: Bearer nma_..."))?;
        let (id, hash) = hash_of(token.expose()).ok_or(NOT_VALID)?;
        let stored = self.inner.readers.token(id).await?.ok_or(NOT_VALID)?;
        if !bool::from(stored.hash.ct_eq(&hash)) {
            return Err(NOT_VALID);
        }
        if stored.expires.is_some_and(|end| end <= Timestamp::now()) {
            return Err(Error::Unauthenticated("the token has expired; ask for a new one"));
        }
        stored.grant.allows(operation)?;
        Ok(Caller { actor: stored.id, grant: stored.grant })
    }

    /// Everything that the caller may see at a state, as JSON.
    pub async fn snapshot(&self, caller: &Caller, state: Arc<State>) -> Result<Bytes, Error> {
        self.inner.documents.world(state, &caller.grant, &self.plan_info()).await
    }

    /// What distinguishes one snapshot from another that the same caller may see: the revision, and where the
    /// server is reached.
    pub fn snapshot_tag(&self, state: &State) -> String {
        let World { epoch, revision, .. } = &*state.world;
        let mut hasher = std::hash::DefaultHasher::new();
        self.inner.addresses.now().hash(&mut hasher);
        format!("\"{epoch}-{revision}-{:x}\"", hasher.finish())
    }

    /// The state of the nodes that the caller may see, as JSON.
    pub async fn status(&self, caller: &Caller) -> Result<Bytes, Error> {
        let (service, caller) = (self.clone(), caller.clone());
        self.inner.documents.build(move || service.status_of(&caller)).await
    }

    fn status_of(&self, caller: &Caller) -> StatusDocument {
        let state = self.state();
        let World { epoch, revision, snapshot, inventory, guards: _ } = &*state.world;
        let mut ids: BTreeSet<NodeId> = inventory.nodes().map(|(id, _)| id.clone()).collect();
        for (network, _) in snapshot.networks() {
            let declared = snapshot.all_in::<Node>(network);
            ids.extend(declared.map(|(id, _)| id.node()));
        }
        let visible = ids.into_iter().filter(|id| caller.grant.holds_in(&id.network).is_ok());
        let mut nodes: Vec<_> =
            visible.map(|id| status::of(&state, &id, self.inner.last_seen.of(&id))).collect();
        let pending = inventory.pending().filter(|((network, _), _)| caller.grant.holds_in(network).is_ok());
        let mut pending: Vec<_> = pending.collect();
        pending.sort_by_key(|((network, identity), it)| (network, &it.name, it.since, identity));
        nodes.extend(pending.into_iter().map(|((network, identity), pending)| {
            status::of_pending(&state.world, &self.inner.info, network, (identity, pending))
        }));
        let mut keys = key_states(snapshot, inventory, Timestamp::now());
        keys.retain(|key| caller.grant.holds_in(&key.id.network).is_ok());
        let (mut egress, mut relays) =
            (egress_states(snapshot, inventory), relay_states(snapshot, inventory));
        for states in [&mut egress, &mut relays] {
            states.retain(|state| caller.grant.holds_in(&state.id.network).is_ok());
        }
        StatusDocument { epoch: *epoch, revision: *revision, nodes, keys, egress, relays }
    }

    /// The log above a revision, as JSON.
    pub async fn revisions(&self, caller: &Caller, after: Revision, limit: usize) -> Result<Bytes, Error> {
        let limit = limit.clamp(1, MOST_ENTRIES);
        let (mut last, mut visible) = (after, Vec::new());
        // Whoever pages gets full pages until the end, however many entries are none of theirs.
        loop {
            let page = self.inner.readers.log(last, limit).await?;
            let whole = page.len() < limit;
            last = page.last().map_or(last, |entry| entry.revision);
            visible.extend(page.into_iter().filter_map(|entry| scope::entry(entry, &caller.grant)));
            if whole || visible.len() >= limit {
                break;
            }
        }
        visible.truncate(limit);
        self.inner.documents.build(move || visible).await
    }

    /// Applies a plan as one revision, or nothing of it.
    pub async fn apply(&self, caller: &Caller, request: ApplyRequest) -> Result<Applied, Error> {
        let info = self.info();
        // Hashing a large plan takes as long as reading it.
        let request = off_thread(move || declare::check_origin(&request, &info).map(|()| request)).await??;
        caller.grant.holds_for(&request.plan.owner())?;
        declare::named(&request).try_for_each(|id| caller.grant.holds_in(&id.network))?;
        self.list_own_addresses().await;
        let (caller, server) = (caller.clone(), self.plan_info());
        let apply = move |world: &World, context: &mut CommitContext<'_>| {
            let applied = declare::apply(world, context, request, &server, &caller);
            applied.map_err(|error| scope::refusal(error, &caller.grant, &world.snapshot))
        };
        self.change(apply).await
    }

    /// One resource.
    pub fn resource(&self, caller: &Caller, id: &ResourceId) -> Result<Entry, Error> {
        caller.grant.holds_in(&id.network)?;
        let state = self.state();
        state.world.snapshot.entry(id).cloned().ok_or_else(|| Error::NotFound(id.to_string()))
    }

    /// Creates or replaces one resource by hand, or deletes it if there is no body; `expected` is the
    /// revision that it must be at, absent: it must not exist.
    pub async fn put(
        &self,
        caller: &Caller,
        id: ResourceId,
        body: Option<Value>,
        expected: Option<Revision>,
    ) -> Result<Revision, Error> {
        caller.grant.holds_in(&id.network)?;
        self.list_own_addresses().await;
        let (Caller { actor, grant }, server) = (caller.clone(), self.plan_info());
        let put = move |world: &World, context: &mut CommitContext<'_>| {
            grant.holds_over(&id, owner(world, &id))?;
            let put = declare::put(world, context, &id, body.as_ref(), expected, &server, actor);
            put.map_err(|error| scope::refusal(error, &grant, &world.snapshot))
        };
        self.change(put).await
    }

    /// Removes a node from its network, provided that its host has the expected identity, if one is expected;
    /// `ban`: its host may not join again either.
    pub async fn remove_node(
        &self,
        caller: &Caller,
        network: NetworkName,
        name: Name,
        ban: bool,
        expected: Option<Identity>,
    ) -> Result<Removed, Error> {
        caller.grant.holds_in(&network)?;
        let Caller { actor, grant } = caller.clone();
        let remove = move |world: &World, context: &mut CommitContext<'_>| {
            let declaration = ResourceId::of::<Node>(&network, &name);
            grant.holds_over(&declaration, owner(world, &declaration))?;
            let (mut next, now) = (world.clone(), Timestamp::now());
            let removed = enrol::remove(&mut next, &network, &name, now);
            let removed =
                removed.ok_or_else(|| Error::NotFound(format!("joined node {name} in {network}")))?;
            let identity = removed.identity;
            if expected.is_some_and(|expected| expected != identity) {
                let message = format!(
                    "another host has joined {network} as {name} since, with the identity {identity}; look again"
                );
                return Err(Error::Precondition(message));
            }
            if ban {
                next.inventory.bar(network.clone(), identity, Barred { since: now, node: name.clone() });
            }
            let admits = enrol::admits(&next, &network, &removed, now);
            let node = format!("{network}/{name}");
            let approved = approved_as(&next.snapshot, &network, identity.fingerprint()).filter(|_| !ban);
            let answer = Removed {
                revision: context.revision(),
                identity,
                barred: ban,
                next: approved
                    .map(|name| reopened(&node, &network, name))
                    .or_else(|| closing(&node, &admits)),
                admits,
            };
            let action = if ban { "ban" } else { "remove" };
            Ok(Proposal::changed(answer, next, AuditInfo { actor, action, ..AuditInfo::default() }))
        };
        self.change(remove).await
    }

    /// Lets the hosts join again that were removed as a node and barred.
    pub async fn lift_ban(
        &self,
        caller: &Caller,
        network: NetworkName,
        name: Name,
    ) -> Result<Revision, Error> {
        caller.grant.holds_in(&network)?;
        let Caller { actor, grant } = caller.clone();
        let lift = move |world: &World, context: &mut CommitContext<'_>| {
            let declaration = ResourceId::of::<Node>(&network, &name);
            grant.holds_over(&declaration, owner(world, &declaration))?;
            let mut next = world.clone();
            if !enrol::lift_ban(&mut next, &network, &name) {
                let what = format!(
                    "host that was barred from {network} as {name}; nmplan node bans lists those that were"
                );
                return Err(Error::NotFound(what));
            }
            let audit = AuditInfo { actor, action: "lift-ban", ..AuditInfo::default() };
            Ok(Proposal::changed(context.revision(), next, audit))
        };
        self.change(lift).await
    }
}

/// How to keep out a host that was removed, if a key still lets it in.
fn closing(node: &str, admits: &Option<ResourceId>) -> Option<String> {
    let key = admits.as_ref()?;
    Some(format!(
        "the host can join again with the token of {key} that it has: delete that key from the files and apply, or, if it \
         comes back, bar it: nmplan node remove {node} --ban"
    ))
}

/// How to keep out a host that was removed, if a declaration still approves it.
fn reopened(node: &str, network: &NetworkName, name: &Name) -> String {
    let declaration = ResourceId::of::<Node>(network, name);
    format!(
        "the host can join again without a key, since {declaration} approves it: delete `approved` from the files and \
         apply, or, if it comes back, bar it: nmplan node remove {node} --ban"
    )
}

/// Who manages a resource.
fn owner<'a>(world: &'a World, id: &ResourceId) -> Option<&'a Owner> {
    world.snapshot.entry(id).and_then(|entry| entry.owner.as_ref())
}
