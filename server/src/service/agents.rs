//! The operations of agents.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use netclient::device::boottime;
use proto::convert::encode_view;
use proto::position::Position;
use proto::sign::{self, Invalid, SignedBody};
use proto::wire::{self, Update};
use schema::api::Control;
use schema::inventory::{Endpoints, NodeId};
use schema::kinds::AccessKey;
use schema::rules::endpoints::Meshes;
use schema::scalars::{Identity, Name, NetworkName, Scalar, Verifier, WireGuardKey};
use schema::snapshot::{ResourceId, Revision};
use schema::text::is_shown;
use schema::world::World;

use super::Service;
use crate::committer::{AuditInfo, CommitContext, Proposal};
use crate::core::enrol::{self, Admitted, Candidate, Refused};
use crate::core::facts;
use crate::error::Error;
use crate::identity::InvalidSession;
use crate::liveness::Stream;
use crate::mark;
use crate::state::{Origin, Pending, State};
use crate::store::{DROP, EPOCH, Provenance, SERVER, Store};

impl Service {
    /// A nonce to sign, and an ephemeral key that belongs to it.
    pub fn challenge(&self) -> wire::ChallengeResponse {
        let (nonce, ephemeral) = self.inner.secrets.challenge();
        wire::ChallengeResponse { nonce: nonce.into(), ephemeral: ephemeral.to_vec().into() }
    }

    /// Registers a host for a tunnel. One that has joined is known by its identity; any other shows a key
    /// that it could join with, and spends no use of it.
    pub async fn register(&self, request: &wire::RegisterRequest) -> Result<wire::RegisterResponse, Error> {
        const NONE: &str =
            "this server offers no tunnel (COMMS is off); join without: netclient join -t TOKEN";
        let nonce = self.inner.secrets.nonce(&request.nonce)?;
        let ephemeral = self.inner.secrets.ephemeral(&nonce);
        let identity = key_of::<Identity>(&request.identity)?;
        let public_key = key_of::<WireGuardKey>(&request.public_key)?;
        let state = self.state();
        let verify = |verifier: Option<&Verifier>| {
            sign::verify_register(request, &self.inner.info.signing_key, &ephemeral, verifier)
        };
        let key = if state.world.inventory.knows(&identity) {
            verify(None)?;
            None
        } else {
            let id = key_id(&request.network, &request.key)?;
            self.shown_key(&state, &id, |verifier| verify(Some(verifier)))?;
            Some(id)
        };
        self.nonces().spend(nonce, boottime())?;
        if let Some(id) = &key {
            enrol::may_register(&state.world, id, Timestamp::now())?;
        }
        let comms = self.inner.comms.as_ref().ok_or_else(|| Error::Precondition(NONE.into()))?;
        let service = self.clone();
        let knows = move |identity: &Identity| service.state().world.inventory.knows(identity);
        let parameters = comms.register(identity, public_key, key, knows).await?;
        let mut answer = wire::RegisterResponse {
            public_key: parameters.public_key.0.to_vec().into(),
            endpoint: parameters.endpoint,
            address: parameters.address.octets().to_vec().into(),
            server_address: parameters.service.ip().octets().to_vec().into(),
            server_port: parameters.service.port().into(),
            expires: parameters
                .expires
                .map_or(0, |left| u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1)),
            signature: Default::default(),
        };
        sign::sign_registered(&mut answer, request, self.inner.secrets.signing_key());
        Ok(answer)
    }

    /// Checks that a request is signed with the secret of the access key that it names, among other things;
    /// returns what verified it.
    fn shown_key(
        &self,
        state: &State,
        id: &ResourceId,
        verify: impl Fn(&Verifier) -> Result<(), Invalid>,
    ) -> Result<Verifier, Error> {
        let without_token = Err(Invalid::Part(sign::ACCESS_KEY_SIGNATURE));
        let signed = |verifier: &Verifier| verify(verifier) != without_token;
        let stranger = Verifier(self.inner.info.signing_key.0);
        let verifier = enrol::holder(&state.world.inventory, id, stranger, signed)?;
        verify(&verifier)?;
        Ok(verifier)
    }

    /// Lets a host join a network.
    pub async fn join(
        &self,
        request: wire::JoinRequest,
        from: Option<IpAddr>,
        transport: Control,
    ) -> Result<wire::JoinResponse, Error> {
        if request.key.is_empty() {
            return self.ask(request, from, transport).await;
        }
        let Shown { candidate, key, verifier, nonce_made } = self.candidate(&request, from)?;
        let network = candidate.network.clone();
        let identity = candidate.identity;
        let (server, service) = (self.plan_info(), self.clone());
        let join = move |world: &mut World| {
            service.nonces().may_join(&candidate.network, candidate.identity, nonce_made)?;
            // It may have been made anew since the signature was checked.
            if world.inventory.key(&key).is_some_and(|status| status.verifier != verifier) {
                return Err(Refused::ReplacedKey(key).into());
            }
            Ok(enrol::join(world, candidate, &key.name, &server, Timestamp::now())?)
        };
        let (name, update) = self.let_in(network, identity, transport, join).await?;
        Ok(wire::JoinResponse { name: name.to_string(), update: Some(update), waiting: None })
    }

    /// Makes a host a node of a network: its name, and its View.
    async fn let_in(
        &self,
        network: NetworkName,
        identity: Identity,
        transport: Control,
        join: impl FnOnce(&mut World) -> Result<Admitted, Error> + Send + 'static,
    ) -> Result<(Name, Update), Error> {
        let change = move |world: &World, _: &mut CommitContext<'_>| {
            let mut next = world.clone();
            let Admitted { name, changed } = join(&mut next)?;
            if !changed {
                return Ok(Proposal::unchanged(name));
            }
            let audit = AuditInfo { actor: format!("node {name}"), action: "join", ..AuditInfo::default() };
            Ok(Proposal::changed(name, next, audit))
        };
        let name = self.change(change).await?;
        let update = self.welcome(network, &name, &identity, transport)?;
        Ok((name, update))
    }

    /// The View of a node that has just joined: it is online, but has not reported its revision.
    pub(super) fn welcome(
        &self,
        network: NetworkName,
        name: &Name,
        identity: &Identity,
        transport: Control,
    ) -> Result<Update, Error> {
        let update = self.whole(&network, identity)?;
        let id = NodeId { network, name: name.clone() };
        self.inner.last_seen.record(&id, (0, Revision(0)), transport, None);
        Ok(update)
    }

    /// The host that asks, and what it shows.
    fn candidate(&self, request: &wire::JoinRequest, from: Option<IpAddr>) -> Result<Shown, Error> {
        let nonce = self.inner.secrets.nonce(&request.nonce)?;
        let ephemeral = self.inner.secrets.ephemeral(&nonce);
        let key = key_id(&request.network, &request.key)?;
        let name = name_of(request)?;
        let state = self.state();
        let verifier = self.shown_key(&state, &key, |verifier| {
            sign::verify_join(request, &self.inner.info.signing_key, &ephemeral, Some(verifier))
        })?;
        let nonce_made = nonce.made;
        self.nonces().spend(nonce, boottime())?;
        state.world.snapshot.network(&key.network).ok_or_else(|| Refused::UnknownKey(key.clone()))?;
        let candidate = self.read_candidate(&state.world, request, (key.network.clone(), name), from)?;
        Ok(Shown { candidate, key, verifier, nonce_made })
    }

    /// The host that a request is about, whose signatures were checked.
    pub(super) fn read_candidate(
        &self,
        world: &World,
        request: &wire::JoinRequest,
        (network, name): (NetworkName, Name),
        from: Option<IpAddr>,
    ) -> Result<Candidate, Error> {
        let identity = key_of::<Identity>(&request.identity)?;
        let addresses = self.inner.addresses.now();
        let meshes = self.meshes(world, &addresses);
        let said = request.facts.clone().unwrap_or_default();
        let facts = facts::read(&said, from, meshes, before(world, &network, &identity))?;
        let public_key = key_of::<WireGuardKey>(&request.public_key)?;
        Ok(Candidate { network, name, identity, public_key, facts, os: os_of(&request.os) })
    }

    /// The networks around the endpoints that agents report.
    fn meshes<'a>(&self, world: &'a World, server: &'a [IpAddr]) -> Meshes<'a> {
        let World { snapshot: declared, inventory, .. } = world;
        Meshes { declared, members: inventory, comms_range: self.inner.info.comms_range, server }
    }

    /// Lets this server's own host join a network that declares it: its name there, and its View. No other
    /// host can request this, since no call of the agents' service leads here.
    pub async fn claim(
        &self,
        network: &NetworkName,
        identity: Identity,
        public_key: WireGuardKey,
        facts: &wire::Facts,
        os: &str,
    ) -> Result<(Name, Update), Error> {
        let nowhere = || Error::NotFound(format!("network {network} that this host could be a node of"));
        let name = self.inner.info.own_node.clone().ok_or_else(nowhere)?;
        let state = self.state();
        state.world.snapshot.network(network).ok_or_else(nowhere)?;
        let server = self.plan_info();
        let meshes = self.meshes(&state.world, &server.addresses);
        let facts = facts::read(facts, None, meshes, before(&state.world, network, &identity))?;
        let candidate =
            Candidate { network: network.clone(), name, identity, public_key, facts, os: os_of(os) };
        let claim = move |world: &mut World| Ok(enrol::claim(world, candidate, &server, Timestamp::now())?);
        self.let_in(network.clone(), identity, Control::Tls, claim).await
    }

    /// Opens a session for an identity.
    pub fn open_session(
        &self,
        request: &wire::OpenSessionRequest,
    ) -> Result<wire::OpenSessionResponse, Error> {
        let nonce = self.inner.secrets.nonce(&request.nonce)?;
        sign::verify_session(
            &self.inner.info.signing_key,
            &request.nonce,
            &request.identity,
            &request.signature,
        )?;
        self.nonces().spend(nonce, boottime())?;
        let identity = key_of::<Identity>(&request.identity)?;
        let (token, lifetime) = self.inner.secrets.session(&identity);
        Ok(wire::OpenSessionResponse { token: token.expose().clone(), lifetime })
    }

    /// The identity of a session's token.
    pub fn identity(&self, token: &str) -> Result<Identity, Error> {
        self.inner.secrets.identity_of(token).map_err(|invalid| match invalid {
            InvalidSession::Expired => Error::SessionEnded,
            InvalidSession::Forged => Error::Unauthenticated("the session is not valid; open a new one"),
        })
    }

    /// Checks that the node of a session made a call itself, and makes it just this once.
    pub fn made_by<R: sign::SignedCall>(&self, identity: &Identity, request: &R) -> Result<(), Error> {
        const EARLIER: &str = "this agent is of an earlier version than the server, which asks for signed calls; update netclient";
        // It has a session, so it is no guess.
        if request.nonce().is_empty() {
            return Err(Error::Precondition(EARLIER.into()));
        }
        let nonce = self.inner.secrets.nonce(request.nonce())?;
        sign::verify_call(request, &self.inner.info.signing_key, identity)?;
        Ok(self.nonces().spend(nonce, boottime())?)
    }

    /// The whole View of a node, or that it is removed.
    pub fn whole(&self, network: &NetworkName, identity: &Identity) -> Result<Update, Error> {
        let state = self.state();
        let Some(name) = state.world.inventory.name_of(network, identity) else {
            return Ok(self.removed(&state, network, identity));
        };
        let view = state.mesh(network).and_then(|mesh| mesh.view(name));
        let view = view.ok_or_else(|| Error::NotFound(format!("network {network}")))?;
        Ok(self.sign(&state, network, name, Position::default(), SignedBody::whole(encode_view(&view))))
    }

    /// What a node with the View at `at` has to be sent; nothing if it is up to date.
    pub fn update_for(
        &self,
        state: &State,
        network: &NetworkName,
        identity: &Identity,
        at: Position,
    ) -> Result<Option<Update>, Error> {
        let Some(name) = state.world.inventory.name_of(network, identity) else {
            return Ok(Some(self.removed(state, network, identity)));
        };
        let here = match state.origin(&at) {
            Origin::Here(revision) => Some(revision),
            Origin::Unknown | Origin::Elsewhere => None,
        };
        let pending = state.pending(network, name, here);
        let (from, body) = match pending.ok_or_else(|| Error::NotFound(format!("network {network}")))? {
            Pending::UpToDate => return Ok(None),
            Pending::Full(view) => (Position::default(), SignedBody::whole(encode_view(&view))),
            Pending::Delta(body) => (at, body),
        };
        Ok(Some(self.sign(state, network, name, from, body)))
    }

    /// Notices a position that this server gave out and its database does not lead to: then the database was
    /// put back from a copy, and another epoch begins, so that no two states have the same position.
    pub async fn notice(&self, at: &Position) -> Result<(), Error> {
        if self.state().origin(at) != Origin::Elsewhere || !self.inner.secrets.made(at) {
            return Ok(());
        }
        let (at, states) = (*at, self.states());
        let raise = move |world: &World, _: &mut CommitContext<'_>| {
            // Another node may have shown the same in the meantime.
            if states.borrow().origin(&at) != Origin::Elsewhere || world.epoch > at.epoch {
                return Ok(Proposal::unchanged(()));
            }
            let why = format!(
                "a node has revision {} of epoch {}, which is not in the database (at revision {} of epoch {}): it was put \
                 back from a copy, so every node is sent its whole View, and hosts that joined since then join again",
                at.revision, at.epoch, world.revision, world.epoch
            );
            let epoch = mark::next_epoch(at.epoch.max(world.epoch));
            tracing::warn!(epoch, "{why}");
            let provenance = Some(Provenance { message: Some(why), ..Provenance::default() });
            let audit = AuditInfo { actor: SERVER.into(), action: EPOCH, provenance, ..AuditInfo::default() };
            Ok(Proposal::changed((), World { epoch, ..world.clone() }, audit))
        };
        self.inner.committer.change(raise).await
    }

    /// A check-in: records that the node is there, stores what changed on it (what it reports, and where it
    /// was seen), and returns what it has not been sent yet. `source` is the address of the call, outside of
    /// any tunnel.
    pub async fn check_in(
        &self,
        network: &NetworkName,
        identity: &Identity,
        mut at: Position,
        said: Option<(&wire::Facts, Option<IpAddr>)>,
        source: Option<IpAddr>,
        transport: Control,
    ) -> Result<Option<Update>, Error> {
        self.notice(&at).await?;
        let mut state = self.state();
        if let Some(name) = state.world.inventory.name_of(network, identity) {
            let id = NodeId::of(network, name);
            if self.inner.last_seen.record(&id, acknowledged_position(&state, &at), transport, source) {
                tracing::warn!(
                    "two hosts use the identity of one node; `nmplan status` shows which node, and \
                    `netclient leave` on one of them removes both: delete /etc/netclient on the copy, and join with it"
                );
                tracing::debug!(node = ?id, "two hosts use its identity");
            }
            if self.is_in_doubt(&state, &id, &at) {
                at = Position::default();
            }
            if let Some((facts, from)) = said
                && self.take_in(&state, id, facts, from, transport).await?
            {
                state = self.state();
            }
        }
        self.update_for(&state, network, identity, at)
    }

    /// Stores what changed on a node; whether the state has moved since.
    async fn take_in(
        &self,
        state: &State,
        id: NodeId,
        said: &wire::Facts,
        from: Option<IpAddr>,
        transport: Control,
    ) -> Result<bool, Error> {
        let World { snapshot, inventory, .. } = &*state.world;
        let (Some(_), Some(joined)) = (snapshot.network(&id.network), inventory.node(&id)) else {
            return Ok(false);
        };
        let addresses = self.inner.addresses.now();
        let meshes = self.meshes(&state.world, &addresses);
        let mut facts = facts::read(said, from, meshes, Some(&joined.endpoints))?;
        if transport == Control::Tunnel && from.is_none() {
            // The tunnel's source address is unknown right now: the recorded one is kept.
            facts.endpoints.seen = joined.endpoints.seen;
        }
        if enrol::with_facts(joined, facts.clone()) == **joined {
            return Ok(false);
        }
        let identity = joined.identity;
        let change = move |world: &World, _: &mut CommitContext<'_>| {
            let joined = world.inventory.node(&id).filter(|joined| joined.identity == identity);
            let Some(joined) = joined else { return Ok(Proposal::unchanged(true)) };
            let updated = enrol::with_facts(joined, facts);
            if updated == **joined {
                return Ok(Proposal::unchanged(true));
            }
            let audit =
                AuditInfo { actor: format!("node {}", id.name), action: "check-in", ..AuditInfo::default() };
            let mut next = world.clone();
            next.inventory.put_node(id, updated);
            Ok(Proposal::changed(true, next, audit))
        };
        self.change(change).await
    }

    /// Removes a node from a network at its own request, or a host that waits to be one.
    pub async fn leave(&self, request: &wire::LeaveRequest) -> Result<(), Error> {
        let nonce = self.inner.secrets.nonce(&request.nonce)?;
        sign::verify_leave(request, &self.inner.info.signing_key)?;
        self.nonces().spend(nonce, boottime())?;
        let network: NetworkName = request.network.parse().map_err(Error::BadRequest)?;
        let identity = key_of(&request.identity)?;
        let leave = move |world: &World, _: &mut CommitContext<'_>| {
            let mut next = world.clone();
            if let Some(pending) = world.inventory.pending_of(&network, &identity) {
                let actor = format!("host {}", pending.name);
                next.inventory.end_pending(&network, &identity);
                let audit = AuditInfo { actor, action: DROP, ..AuditInfo::default() };
                return Ok(Proposal::changed((), next, audit));
            }
            let Some(name) = world.inventory.name_of(&network, &identity) else {
                return Ok(Proposal::unchanged(()));
            };
            enrol::remove(&mut next, &network, name, Timestamp::now());
            let audit = AuditInfo { actor: format!("node {name}"), action: "leave", ..AuditInfo::default() };
            Ok(Proposal::changed((), next, audit))
        };
        self.change(leave).await
    }

    /// Records that a node watches, for as long as the returned value is held.
    pub fn stream(&self, network: &NetworkName, identity: &Identity, transport: Control) -> Option<Stream> {
        let state = self.state();
        let name = state.world.inventory.name_of(network, identity)?;
        self.inner.last_seen.stream(&NodeId::of(network, name), transport)
    }

    /// Stores when nodes last called, as far as that is not stored yet; at the end also until when the server
    /// served.
    pub async fn store_seen(&self, end: bool) -> Result<(), Error> {
        let unstored = Arc::new(self.inner.last_seen.take_unstored(&self.state().world.inventory));
        if unstored.fresh.is_empty() && unstored.gone.is_empty() && !end {
            return Ok(());
        }
        let write = Arc::clone(&unstored);
        let put = move |store: &mut dyn Store| store.put_seen(&write.fresh, &write.gone, Timestamp::now());
        let stored = self.inner.committer.read(put).await;
        if stored.is_err() {
            self.inner.last_seen.put_back(&unstored);
        }
        stored
    }

    /// Whether a node has nothing to be sent according to the position that it reports, but was sent
    /// something later, which it may have: only a whole View makes sure that it has the current one.
    fn is_in_doubt(&self, state: &State, id: &NodeId, at: &Position) -> bool {
        let Origin::Here(revision) = state.origin(at) else { return false };
        let sent = self.inner.last_seen.of(id).is_some_and(|heard| heard.in_doubt);
        sent && matches!(state.pending(&id.network, &id.name, Some(revision)), Some(Pending::UpToDate))
    }

    /// Signs what a node is sent. It counts as sent from now on.
    fn sign(
        &self,
        state: &State,
        network: &NetworkName,
        node: &Name,
        from: Position,
        body: SignedBody,
    ) -> Update {
        let to = self.position_of(state);
        self.inner.last_seen.sent(&NodeId::of(network, node), to.place());
        body.sign(sign::Header { network, node, from, to }, self.inner.secrets.signing_key())
    }

    fn removed(&self, state: &State, network: &NetworkName, identity: &Identity) -> Update {
        let (from, to) = (Position::default(), self.position_of(state));
        let header = sign::Header { network, node: network.name(), from, to };
        SignedBody::removed(identity).sign(header, self.inner.secrets.signing_key())
    }

    /// The position of a View of a state.
    pub(super) fn position_of(&self, state: &State) -> Position {
        let World { epoch, revision, .. } = &*state.world;
        self.inner.secrets.position(*epoch, *revision, state.chain.head())
    }
}

/// What a host that asks to join has shown.
struct Shown {
    candidate: Candidate,
    /// The access key.
    key: ResourceId,
    /// What verified that it holds its token.
    verifier: Verifier,
    /// A time since the host was started, before which it has not signed that.
    nonce_made: Duration,
}

/// Where an identity is reached in a network, as it is recorded; nothing if it has not joined.
fn before<'a>(world: &'a World, network: &NetworkName, identity: &Identity) -> Option<&'a Endpoints> {
    let name = world.inventory.name_of(network, identity)?;
    world.inventory.node(&NodeId::of(network, name)).map(|joined| &joined.endpoints)
}

/// The name that a host asks for.
pub(super) fn name_of(request: &wire::JoinRequest) -> Result<Name, Error> {
    request.name.parse().map_err(|why| Error::BadRequest(format!("the name is not valid: {why}")))
}

/// The operating system that a node reports, cut to what is stored.
fn os_of(text: &str) -> Box<str> {
    let shown: String = text.chars().filter(|c| is_shown(*c)).take(64).collect();
    shown.split_whitespace().collect::<Vec<_>>().join(" ").into()
}

/// The access key that a request names.
fn key_id(network: &str, key: &str) -> Result<ResourceId, Error> {
    let bad = |what: &str, why: String| Error::BadRequest(format!("{what} is not valid: {why}"));
    let network: NetworkName = network.parse().map_err(|why| bad("the network", why))?;
    let key: Name = key.parse().map_err(|why| bad("the key", why))?;
    Ok(ResourceId::of::<AccessKey>(&network, &key))
}

/// 32 bytes of a request as a key of the kind that the caller asks for.
fn key_of<K: Scalar + TryFrom<[u8; 32]>>(bytes: &[u8]) -> Result<K, Error> {
    proto::convert::to_key(bytes).map_err(|error| Error::BadRequest(error.to_string()))
}

/// The epoch and revision that an agent reports for its node; 0 if that is not of this server's history.
fn acknowledged_position(state: &State, at: &Position) -> (u64, Revision) {
    match state.origin(at) {
        Origin::Here(revision) => (at.epoch, revision),
        Origin::Unknown | Origin::Elsewhere => (0, Revision(0)),
    }
}
