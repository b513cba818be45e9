//! The agent's connection to the server: calls over gRPC, authenticated by the host's identity.
//!
//! [`Connection`] connects when it is first needed and again whenever the connection was lost; it keeps the
//! session that the calls need, and opens a new one when the server ends it. Every call answers within
//! seconds, or fails. What the server sends is checked elsewhere
//! ([`Membership::accept`](crate::membership::Membership::accept)).
//!
//! A host that is [registered](crate::comms) calls through its tunnel while that answers, and by TLS while it
//! does not; [`transport`] decides which.

mod connect;
mod error;
mod tls;
mod transport;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use ed25519_dalek as ed25519;
use prost::bytes::Bytes;
use proto::convert::to_key;
use proto::position::Position;
use proto::secret::Secret;
use proto::sign;
use proto::token::Token;
use proto::wire::agent_client::AgentClient;
use proto::wire::{self, Facts, Update};
use schema::api;
use schema::scalars::{CaPin, Endpoint, Fingerprint, Identity, Name, NetworkName, SigningKey};
use tokio::sync::watch;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::comms::ServerTunnel;
use crate::device::{PrivateKey, default_source};
use crate::membership::ServerAddress;
use crate::outside::Mark;
use crate::registration::{Registration, Terms};
use connect::{Local, SILENCE, lock};
use transport::{Transport, TransportSelector};

pub use connect::Opener;
pub use error::CallError;

/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(8);
/// The largest answer: a View of tens of thousands of peers.
const LARGEST: usize = 64 << 20;
/// How often a host registers again while the tunnel is silent: the server may have forgotten it.
const RENEW: Duration = Duration::from_secs(60);

type Client = AgentClient<Channel>;
type Answered<A> = Result<tonic::Response<A>, Status>;

/// Where a server is reached.
#[derive(Clone)]
pub enum Reach {
    /// Elsewhere: by TLS on its public address, and by the tunnel once the host is registered.
    Network(ServerTunnel),
    /// In this process.
    Within(Opener),
}

impl Reach {
    /// The mark of the host's packets that stay outside of networks.
    fn mark(&self) -> Mark {
        match self {
            Self::Network(comms) => comms.mark(),
            Self::Within(_) => Mark::default(),
        }
    }
}

/// A host that asks to join.
pub struct JoinRequest<'a> {
    /// The name that it wants.
    pub name: &'a Name,
    /// Its identity.
    pub identity: &'a ed25519::SigningKey,
    /// Its WireGuard key.
    pub private_key: &'a PrivateKey,
    /// What it reports about itself.
    pub facts: Facts,
    /// What it runs.
    pub os: String,
}

/// What the server says to a host that asks to join.
#[derive(Clone, Debug)]
pub enum Admission {
    /// It has joined, under this name, with this View.
    In(Name, Box<Update>),
    /// It waits until somebody lets it in, for so long.
    Waits(Duration),
    /// It does not wait any more.
    Dropped,
}

/// A connection to one server.
pub struct Connection {
    this: Weak<Self>,
    server: ServerAddress,
    identity: ed25519::SigningKey,
    reach: Reach,
    public: Mutex<Client>,
    tunnel: Option<Client>,
    selector: Mutex<TransportSelector>,
    /// The transport of `selector`, for holders of a stream.
    transport: watch::Sender<Transport>,
    /// Whether the tunnel is being tried.
    probing: AtomicBool,
    session: Mutex<Option<Secret<String>>>,
    local: Local,
}

/// Every change as the server sends it, until it ends or control traffic takes another transport.
pub struct UpdateStream {
    updates: Streaming<Update>,
    by: Transport,
    transport: watch::Receiver<Transport>,
}

impl UpdateStream {
    /// The next change; absent: there are no more.
    pub async fn next(&mut self) -> Option<Update> {
        let by = self.by;
        tokio::select! {
            update = self.updates.message() => update.ok().flatten(),
            _ = self.transport.wait_for(|transport| *transport != by) => None,
        }
    }
}

impl Connection {
    /// A connection to a server; nothing is sent yet.
    pub fn new(server: ServerAddress, identity: ed25519::SigningKey, reach: Reach) -> Arc<Self> {
        let local = Local::default();
        Arc::new_cyclic(|this: &Weak<Self>| {
            let (public, tunnel) = (public(&server, &reach, &local), tunnel(this, &reach, &local));
            let registered = matches!(&reach, Reach::Network(comms) if registration(comms).is_some());
            let by = if registered { Transport::Tunnel } else { Transport::Tls };
            let seed = seed_of(&sign::public_key(&identity));
            Self {
                this: this.clone(),
                server,
                identity,
                reach,
                public: Mutex::new(public),
                tunnel,
                selector: Mutex::new(TransportSelector::new(by, seed, Instant::now())),
                transport: watch::Sender::new(by),
                probing: AtomicBool::new(false),
                session: Mutex::default(),
                local,
            }
        })
    }

    /// The transport that control traffic takes, as long as the server answers.
    pub fn transport(&self) -> api::Control {
        lock(&self.selector).transport().into()
    }

    /// Checks whether the host has been registered, and uses the tunnel if so.
    pub fn recheck_registration(&self) {
        if self.is_registered() && lock(&self.selector).transport() == Transport::Tls {
            self.probe_on();
        }
    }

    /// Whether there is a tunnel to try; a file that cannot be read now may be readable later.
    fn is_registered(&self) -> bool {
        matches!(&self.reach, Reach::Network(comms) if !matches!(comms.registration(), Ok(None)))
    }

    fn registration(&self) -> Option<Registration> {
        let Reach::Network(comms) = &self.reach else { return None };
        registration(comms)
    }

    /// What differs between hosts, so that they do not all act in the same instant.
    pub fn seed(&self) -> u64 {
        seed_of(&self.identity())
    }

    /// The host's identity, as the server knows it.
    pub fn identity(&self) -> Identity {
        sign::public_key(&self.identity)
    }

    /// What the host reports about itself: the port that it listens on (0: not chosen yet), the endpoint that
    /// its operator set, and the address that it uses towards the server.
    pub fn facts(&self, listen_port: u16, endpoint: Option<&Endpoint>) -> Facts {
        let towards_server = lock(&self.local).filter(|address| !address.is_loopback());
        let local = towards_server.or_else(|| default_source(self.reach.mark()));
        Facts {
            listen_port: listen_port.into(),
            endpoint: endpoint.map(ToString::to_string).unwrap_or_default(),
            local_address: local.map(|address| address.to_string()).unwrap_or_default(),
            ..Facts::default()
        }
    }

    /// Joins a network; returns the name under which the host has joined, and its View.
    pub async fn join(
        &self,
        token: &Token,
        challenge: wire::ChallengeResponse,
        asked: JoinRequest<'_>,
    ) -> Result<(Name, Update), CallError> {
        let without_key = wire::JoinRequest {
            network: token.network.to_string(),
            key: token.key.to_string(),
            ..wire::JoinRequest::default()
        };
        let access_key = sign::from_seed(token.seed.expose());
        let (answer, _) = self.send_join(without_key, Some(&access_key), challenge, asked).await?;
        read_joined(answer)
    }

    /// Asks to join a network without an access key; `waits`: whether the host has asked before, and does not
    /// begin to wait where it was dropped.
    pub async fn ask_to_join(
        &self,
        network: &NetworkName,
        waits: bool,
        challenge: wire::ChallengeResponse,
        asked: JoinRequest<'_>,
    ) -> Result<Admission, CallError> {
        let bare = wire::JoinRequest { network: network.to_string(), waits, ..wire::JoinRequest::default() };
        let (answer, request) = self.send_join(bare, None, challenge, asked).await?;
        let Some(waiting) = &answer.waiting else {
            let (name, update) = read_joined(answer)?;
            return Ok(Admission::In(name, Box::new(update)));
        };
        sign::verify_waiting(waiting, &request, &self.server.signing_key)
            .map_err(|why| CallError::Answer(why.to_string()))?;
        Ok(match waiting.left {
            0 => Admission::Dropped,
            left => Admission::Waits(Duration::from_secs(left.into())),
        })
    }

    /// Sends a request to join, of which the network and the access key are filled in; returns it as well.
    async fn send_join(
        &self,
        bare: wire::JoinRequest,
        access_key: Option<&ed25519::SigningKey>,
        challenge: wire::ChallengeResponse,
        asked: JoinRequest<'_>,
    ) -> Result<(wire::JoinResponse, wire::JoinRequest), CallError> {
        let JoinRequest { name, identity, private_key, facts, os } = asked;
        let signed = |wire::ChallengeResponse { nonce, ephemeral }| {
            let mut request = wire::JoinRequest {
                nonce,
                name: name.to_string(),
                identity: self.identity().0.to_vec().into(),
                public_key: private_key.public().0.to_vec().into(),
                facts: Some(facts.clone()),
                os: os.clone(),
                ..bare.clone()
            };
            let (server, ephemeral) = (&self.server.signing_key, as_key(&ephemeral)?);
            sign::sign_join(&mut request, server, &ephemeral, access_key, identity, &private_key.0);
            Ok(request)
        };
        let call = |mut client: Client, request| async move { client.join(request).await };
        self.ask_signed(challenge, signed, call).await
    }

    /// Registers the host; returns the server's answer, and in how long the registration expires unless the
    /// host joins. A host that has joined needs no token.
    pub async fn register(
        &self,
        token: Option<&Token>,
        private_key: &PrivateKey,
    ) -> Result<(Terms, Option<Duration>), CallError> {
        let server = &self.server.signing_key;
        let access_key = token.map(|token| sign::from_seed(token.seed.expose()));
        let signed = |wire::ChallengeResponse { nonce, ephemeral }| {
            let mut request = wire::RegisterRequest {
                nonce,
                network: token.map(|token| token.network.to_string()).unwrap_or_default(),
                key: token.map(|token| token.key.to_string()).unwrap_or_default(),
                identity: self.identity().0.to_vec().into(),
                public_key: private_key.public().0.to_vec().into(),
                ..wire::RegisterRequest::default()
            };
            let ephemeral = as_key(&ephemeral)?;
            sign::sign_register(
                &mut request,
                server,
                &ephemeral,
                access_key.as_ref(),
                &self.identity,
                &private_key.0,
            );
            Ok(request)
        };
        let call = |mut client: Client, request| async move { client.register(request).await };
        let (answer, request) = self.ask_signed(self.challenge().await?, signed, call).await?;
        read_terms(&answer, &request, server)
    }

    /// Whether the tunnel answers in time.
    pub async fn tunnel_answers(&self) -> bool {
        let Some(mut client) = self.tunnel.clone() else { return false };
        let call = client.challenge(wire::ChallengeRequest {});
        matches!(tokio::time::timeout(SILENCE, call).await, Ok(Ok(_)))
    }

    /// The whole View.
    pub async fn whole(&self, network: &NetworkName) -> Result<Update, CallError> {
        let request = wire::GetPeersRequest { network: network.to_string() };
        Ok(self.call(request, |mut client, request| async move { client.get_peers(request).await }).await?.0)
    }

    /// Reports where the host is and, if given, what changed on it; returns what it lacks.
    pub async fn check_in(
        &self,
        network: &NetworkName,
        at: Position,
        facts: Option<Facts>,
    ) -> Result<Option<Update>, CallError> {
        let Position { epoch, revision, stamp } = at;
        let (network, stamp) = (network.to_string(), stamp.to_bytes().into());
        let request =
            wire::CheckInRequest { network, epoch, revision: revision.0, facts, stamp, ..Default::default() };
        let call = |mut client: Client, request| async move { client.check_in(request).await };
        // Where nothing is to be stored, a session is enough.
        let (answer, _) = match request.facts {
            None => self.call(request, call).await?,
            Some(_) => {
                let with = |nonce| wire::CheckInRequest { nonce, ..request.clone() };
                self.call_signed(with, call).await?
            }
        };
        Ok(answer.update)
    }

    /// Every change after that position, at once.
    pub async fn watch(&self, network: &NetworkName, at: Position) -> Result<UpdateStream, CallError> {
        let Position { epoch, revision, stamp } = at;
        let (network, stamp) = (network.to_string(), stamp.to_bytes().into());
        let request =
            wire::WatchRequest { network, epoch, revision: revision.0, stamp, ..Default::default() };
        let transport = self.transport.subscribe();
        let call = |mut client: Client, request| async move { client.watch(request).await };
        let with = |nonce| wire::WatchRequest { nonce, ..request.clone() };
        let (updates, by) = self.call_signed(with, call).await?;
        Ok(UpdateStream { updates, by, transport })
    }

    /// Leaves a network.
    pub async fn leave(&self, network: &NetworkName) -> Result<(), CallError> {
        let signed = |wire::ChallengeResponse { nonce, ephemeral: _ }| {
            let identity = self.identity().0.to_vec().into();
            let signature = Vec::new().into();
            let mut request = wire::LeaveRequest { nonce, network: network.to_string(), identity, signature };
            sign::sign_leave(&mut request, &self.server.signing_key, &self.identity);
            Ok(request)
        };
        let call = |mut client: Client, request| async move { client.leave(request).await };
        self.ask_signed(self.challenge().await?, signed, call).await.map(drop)
    }

    /// A nonce of the server's to sign; the call also shows whether the server can be reached.
    pub async fn challenge(&self) -> Result<wire::ChallengeResponse, CallError> {
        Ok(self.ask(|mut client| async move { client.challenge(wire::ChallengeRequest {}).await }).await?.0)
    }

    /// Calls in a session, and once more in a new one if the server has ended it.
    async fn call<Q: Clone, A, F: Future<Output = Answered<A>> + Send>(
        &self,
        request: Q,
        call: impl Fn(Client, Request<Q>) -> F,
    ) -> Result<(A, Transport), CallError> {
        let kept = lock(&self.session).clone();
        let fresh = kept.is_none();
        let token = match kept {
            Some(token) => token,
            None => self.open_session().await?,
        };
        let call_with = |client, token: &Secret<String>| {
            let call = authorized(request.clone(), token).map(|request| call(client, request));
            async move { call?.await }
        };
        let first = self.ask(|client| call_with(client, &token)).await;
        if fresh || !matches!(first, Err(CallError::SessionEnded)) {
            return first;
        }
        let token = self.open_session().await?;
        self.ask(|client| call_with(client, &token)).await
    }

    /// Calls in a session with a request that the host signs as well; once more with another nonce, if a
    /// transport that then lost the answer has used up the first.
    async fn call_signed<Q: sign::SignedCall, A, F: Future<Output = Answered<A>> + Send>(
        &self,
        with: impl Fn(Bytes) -> Q,
        call: impl Fn(Client, Request<Q>) -> F,
    ) -> Result<(A, Transport), CallError> {
        let signed = |challenge: wire::ChallengeResponse| {
            let mut request = with(challenge.nonce);
            sign::sign_call(&mut request, &self.server.signing_key, &self.identity);
            request
        };
        match self.call(signed(self.challenge().await?), &call).await {
            Err(CallError::NonceUsed) => self.call(signed(self.challenge().await?), &call).await,
            outcome => outcome,
        }
    }

    async fn open_session(&self) -> Result<Secret<String>, CallError> {
        let signed = |wire::ChallengeResponse { nonce, ephemeral: _ }| {
            let signature = sign::sign_session(&self.server.signing_key, &nonce, &self.identity).into();
            Ok(wire::OpenSessionRequest { nonce, identity: self.identity().0.to_vec().into(), signature })
        };
        let call = |mut client: Client, request| async move { client.open_session(request).await };
        let (answer, _) = self.ask_signed(self.challenge().await?, signed, call).await?;
        let token = Secret::new(answer.token);
        *lock(&self.session) = Some(token.clone());
        Ok(token)
    }

    /// An answer to a request that is signed with a nonce, and that request. One that arrives by a transport
    /// which then loses the answer has used its nonce up: it is signed once more, with another.
    async fn ask_signed<Q: Clone, A, F: Future<Output = Answered<A>> + Send>(
        &self,
        challenge: wire::ChallengeResponse,
        signed: impl Fn(wire::ChallengeResponse) -> Result<Q, CallError>,
        call: impl Fn(Client, Q) -> F,
    ) -> Result<(A, Q), CallError> {
        let request = signed(challenge)?;
        match self.ask(|client| call(client, request.clone())).await {
            Err(CallError::NonceUsed) => {}
            outcome => return Ok((outcome?.0, request)),
        }
        let request = signed(self.challenge().await?)?;
        let (answer, _) = self.ask(|client| call(client, request.clone())).await?;
        Ok((answer, request))
    }

    /// An answer by the transport of control traffic, or by the other one if that does not answer; and by
    /// which.
    async fn ask<A, F: Future<Output = Answered<A>> + Send>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<(A, Transport), CallError> {
        let [first, second] = lock(&self.selector).order();
        let outcome = self.ask_by(first, &call).await;
        let unreached = matches!(outcome, Err(CallError::Unreachable { .. } | CallError::Stranger { .. }));
        if !unreached || second == Transport::Tunnel && !self.is_registered() {
            return outcome.map(|answer| (answer, first));
        }
        let other = self.ask_by(second, &call).await;
        match (other, second) {
            // If neither answers, the error names the public address, which a user can do something about.
            (Err(CallError::Unreachable { .. } | CallError::Slow { .. }), Transport::Tunnel) => {
                outcome.map(|answer| (answer, first))
            }
            (other, _) => other.map(|answer| (answer, second)),
        }
    }

    async fn ask_by<A, F: Future<Output = Answered<A>> + Send>(
        &self,
        transport: Transport,
        call: &impl Fn(Client) -> F,
    ) -> Result<A, CallError> {
        let client = match (transport, &self.tunnel) {
            (Transport::Tunnel, Some(tunnel)) => tunnel.clone(),
            (Transport::Tunnel | Transport::Tls, _) => lock(&self.public).clone(),
        };
        let outcome = self.answer(call(client)).await;
        match &outcome {
            Err(CallError::Unreachable { .. }) if transport == Transport::Tunnel => {
                lock(&self.selector).failed(Instant::now());
            }
            Err(
                CallError::Unreachable { .. }
                | CallError::Stranger { .. }
                | CallError::Slow { .. }
                | CallError::NotAgents { .. }
                | CallError::OtherServer { .. },
            ) => {}
            Ok(_)
            | Err(
                CallError::Refused(_) | CallError::NonceUsed | CallError::SessionEnded | CallError::Answer(_),
            ) => {
                self.answered(transport).await;
            }
        }
        outcome
    }

    /// An answer that arrives completely and in time.
    async fn answer<A>(&self, call: impl Future<Output = Answered<A>>) -> Result<A, CallError> {
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|status| self.failed(&status)),
            Err(_) => Err(self.failed(&Status::deadline_exceeded(""))),
        }
    }

    fn failed(&self, status: &Status) -> CallError {
        error::failed(self.server.addresses.join(", "), status)
    }

    /// Records by which transport the server answered. When that has become TLS, the host registers again, as
    /// the server may have forgotten it, and keeps trying the tunnel.
    async fn answered(&self, transport: Transport) {
        let moved = lock(&self.selector).answered(transport, Instant::now());
        if !moved {
            return;
        }
        self.take(transport);
        if transport == Transport::Tls {
            tracing::info!(
                server = self.server.addresses[0],
                "the tunnel to the server does not answer; using TLS"
            );
            self.probe_on();
            self.renew().await;
        }
    }

    /// Makes holders of streams switch to a transport; a connection by the other one is closed.
    fn take(&self, transport: Transport) {
        self.transport.send_replace(transport);
        if transport == Transport::Tunnel {
            *lock(&self.public) = public(&self.server, &self.reach, &self.local);
        }
    }

    /// Registers again by the identity alone, by TLS, and stores the answer.
    fn renew(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        // A call that is answered may register again (`ask`, `ask_by`, `answered`, here), and registering is
        // such calls. It ends there: the selector has left the tunnel by now, so an answer by TLS moves
        // nothing and comes here no more. The type of a future that is not boxed cannot say so.
        Box::pin(async {
            let (Reach::Network(comms), Some(registration)) = (&self.reach, self.registration()) else {
                return;
            };
            let renewed =
                match tokio::time::timeout(SILENCE, self.register(None, &registration.private_key)).await {
                    Ok(Ok((terms, _))) => {
                        comms.renew(&registration, terms).await.map_err(|error| error.to_string())
                    }
                    // One that has not joined is not known by its identity, and its deadline is near.
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("there was no answer in time".into()),
                };
            if let Err(error) = renewed {
                tracing::debug!(error, "the registration could not be renewed");
            }
        })
    }

    /// Starts probing the tunnel until it has answered long enough, unless that is in progress already.
    fn probe_on(&self) {
        if !self.probing.swap(true, Ordering::SeqCst) {
            tokio::spawn(probe(self.this.clone()));
        }
    }

    /// Probes the tunnel once; whether control traffic uses it now.
    async fn probe_once(&self, renewed: &mut Instant) -> bool {
        let answers = self.tunnel_answers().await;
        if !answers && renewed.elapsed() >= RENEW {
            *renewed = Instant::now();
            self.renew().await;
        }
        let taken = lock(&self.selector).probed(answers, Instant::now());
        if taken {
            tracing::info!(
                server = self.server.addresses[0],
                "the tunnel to the server answers again; using it"
            );
            self.take(Transport::Tunnel);
        }
        taken
    }
}

/// Probes the tunnel when it is due, as long as the connection is held, control traffic uses TLS, and there
/// is a tunnel.
async fn probe(connection: Weak<Connection>) {
    let mut renewed = Instant::now();
    loop {
        let Some(due) = connection.upgrade().map(|control| lock(&control.selector).next_probe()) else {
            return;
        };
        tokio::time::sleep_until(due.into()).await;
        let Some(control) = connection.upgrade() else { return };
        let goes_on = control.is_registered() && lock(&control.selector).transport() == Transport::Tls;
        if !goes_on || control.probe_once(&mut renewed).await {
            control.probing.store(false, Ordering::SeqCst);
            // A caller that wanted probes meanwhile believed that they were in progress.
            return control.recheck_registration();
        }
    }
}

fn public(server: &ServerAddress, reach: &Reach, local: &Local) -> Client {
    client(match reach {
        Reach::Network(comms) => connect::by_tls(server, comms, Arc::clone(local), TIMEOUT),
        Reach::Within(open) => connect::within(Arc::clone(open), TIMEOUT),
    })
}

fn tunnel(connection: &Weak<Connection>, reach: &Reach, local: &Local) -> Option<Client> {
    let (Reach::Network(comms), connection) = (reach, connection.clone()) else { return None };
    let silent = move || {
        if let Some(control) = connection.upgrade() {
            lock(&control.selector).fell_silent();
        }
    };
    Some(client(connect::by_tunnel(comms.clone(), Arc::clone(local), Arc::new(silent), TIMEOUT)))
}

fn client(channel: Channel) -> Client {
    AgentClient::new(channel).max_decoding_message_size(LARGEST)
}

fn seed_of(identity: &Identity) -> u64 {
    identity.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first)) | 1
}

/// The registration; one that cannot be read counts as none, since everything works without it.
fn registration(comms: &ServerTunnel) -> Option<Registration> {
    comms.registration().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the registration; going on without the tunnel to the server");
        None
    })
}

/// Reads the server's answer to a registration, and in how long it expires without a join, if it does.
fn read_terms(
    answer: &wire::RegisterResponse,
    request: &wire::RegisterRequest,
    server: &SigningKey,
) -> Result<(Terms, Option<Duration>), CallError> {
    let bad = |why: &dyn std::fmt::Display| CallError::Answer(why.to_string());
    sign::verify_registered(answer, request, server).map_err(|why| bad(&why))?;
    let address = |bytes: &[u8]| {
        let bytes: [u8; 4] =
            bytes.try_into().map_err(|_| bad(&"an address of the tunnel is not a valid IPv4 address"))?;
        Ok::<_, CallError>(Ipv4Addr::from(bytes))
    };
    let port = u16::try_from(answer.server_port).map_err(|_| bad(&"its port is not a valid TCP port"))?;
    let endpoint: Endpoint = answer.endpoint.parse().map_err(|why: String| bad(&why))?;
    let (local, peer) = (address(&answer.address)?, address(&answer.server_address)?);
    let is_odd =
        |it: &Ipv4Addr| it.is_loopback() || it.is_unspecified() || it.is_multicast() || it.is_link_local();
    if local == peer || is_odd(&local) || is_odd(&peer) {
        return Err(bad(&format!("{local} and {peer} are not valid as the ends of a tunnel")));
    }
    let terms = Terms {
        public_key: to_key(&answer.public_key).map_err(|why| bad(&why))?,
        endpoint,
        address: local,
        server: SocketAddrV4::new(peer, port),
    };
    Ok((terms, (answer.expires > 0).then(|| Duration::from_secs(answer.expires.into()))))
}

/// The name under which a host has joined, and its View.
fn read_joined(answer: wire::JoinResponse) -> Result<(Name, Update), CallError> {
    let name = answer.name.parse().map_err(|why| CallError::Answer(format!("{:?}: {why}", answer.name)))?;
    Ok((name, answer.update.ok_or_else(|| CallError::Answer("it holds no View".into()))?))
}

/// Asks the server at an address who it is: its signing key, which has the fingerprint, and what pins its
/// certificate. `within`: it is in this process.
pub(crate) async fn identify(
    address: &str,
    comms: &ServerTunnel,
    within: Option<Opener>,
    pin: Fingerprint,
) -> Result<(SigningKey, Option<CaPin>), CallError> {
    let mut client = client(match within {
        Some(open) => connect::within(open, TIMEOUT),
        None => connect::unchecked(address, comms, TIMEOUT),
    });
    let mut nonce = vec![0; 32];
    getrandom::fill(&mut nonce).map_err(|error| CallError::Answer(error.to_string()))?;
    let request = wire::IdentifyRequest { nonce: nonce.into() };
    let asked = tokio::time::timeout(TIMEOUT, client.identify(request.clone())).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return Err(error::failed(address.to_owned(), &status)),
        Err(_) => return Err(CallError::Slow { at: address.to_owned() }),
    };
    sign::verify_identify(&answer, &request, pin)
        .map_err(|why| CallError::OtherServer { at: address.to_owned(), why })
}

fn as_key(bytes: &[u8]) -> Result<[u8; 32], CallError> {
    bytes.try_into().map_err(|_| CallError::Answer("its challenge is damaged".into()))
}

fn authorized<Q>(request: Q, token: &Secret<String>) -> Result<Request<Q>, Status> {
    let mut request = Request::new(request);
    let header = Secret::new(["Bearer ", token.expose()].concat());
    let value: Result<AsciiMetadataValue, _> = header.expose().parse();
    let mut value = value.map_err(|_| Status::internal("its session token cannot be sent back"))?;
    value.set_sensitive(true);
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}
