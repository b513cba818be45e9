//! The agent's line to the server: calls over gRPC, authenticated by the machine's identity.
//!
//! [`Control`] connects when it is first needed and again whenever the connection was lost; it keeps the session that
//! the calls need, and opens a new one when the server ends it. Every call answers within seconds, or fails. What the
//! server says is checked elsewhere ([`Membership::accept`](crate::membership::Membership::accept)).

mod connect;
mod tls;

use std::future::Future;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use proto::convert::Position;
use proto::sign;
use proto::token::Token;
use proto::wire::agent_client::AgentClient;
use proto::wire::{self, Facts, Update};
use schema::scalars::{Endpoint, Name, NetworkName, PublicKey};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::device::PrivateKey;
use crate::membership::ServerAddress;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// The largest answer: a View of tens of thousands of peers.
const LARGEST: usize = 64 << 20;

/// A line to one server.
pub struct Control {
    client: AgentClient<Channel>,
    server: ServerAddress,
    identity: SigningKey,
    session: Mutex<Option<String>>,
    local: Arc<Mutex<Option<IpAddr>>>,
}

/// Why the server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It could not be reached, or gave no answer.
    #[error("cannot reach the server at {at}: {why}; check that it runs, and that this machine may connect to it")]
    Unreachable {
        /// Where it was sought.
        at: String,
        /// The cause that lies deepest.
        why: String,
    },
    /// It answered under another name: its certificate is not of the CA that was expected.
    #[error(
        "who answers at {at} is not the server that was meant ({why}); if the server was set up anew, leave with --force \
         and join with a new token"
    )]
    Stranger {
        /// Where it was sought.
        at: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// It said no.
    #[error("the server refused: {0}")]
    Refused(String),
    /// It answered what no server of ours would.
    #[error("the server's answer cannot be used: {0}")]
    Answer(String),
}

/// A machine that asks to join.
pub struct Applicant<'a> {
    /// What it joins with.
    pub token: &'a Token,
    /// The name that it wants.
    pub name: &'a Name,
    /// Its WireGuard key.
    pub private_key: &'a PrivateKey,
    /// What it says of itself.
    pub facts: Facts,
    /// What it runs.
    pub os: String,
}

impl Control {
    /// A line to a server; nothing is sent yet.
    pub fn new(server: ServerAddress, identity: SigningKey) -> Self {
        let local = Arc::default();
        let channel = connect::channel(&server, Arc::clone(&local), PATIENCE);
        let client = AgentClient::new(channel).max_decoding_message_size(LARGEST);
        Self { client, server, identity, session: Mutex::default(), local }
    }

    /// The machine's identity, as the server knows it.
    pub fn identity(&self) -> PublicKey {
        sign::verifier(&self.identity)
    }

    /// What the machine says of itself: the port that it listens on (0: not chosen yet), where its operator says it is
    /// reached, and the address that it uses towards the server.
    pub fn facts(&self, listen_port: u16, endpoint: Option<&Endpoint>) -> Facts {
        let towards_server = lock(&self.local).filter(|address| !address.is_loopback());
        let local = towards_server.or_else(default_source);
        Facts {
            listen_port: listen_port.into(),
            endpoint: endpoint.map(ToString::to_string).unwrap_or_default(),
            local_address: local.map(|address| address.to_string()).unwrap_or_default(),
        }
    }

    /// Joins a network: the name under which the machine is in it, and its View.
    pub async fn join(
        &self,
        challenge: wire::ChallengeResponse,
        applicant: Applicant<'_>,
    ) -> Result<(Name, Update), ControlError> {
        let Applicant { token, name, private_key, facts, os } = applicant;
        let wire::ChallengeResponse { nonce, ephemeral } = challenge;
        let ephemeral =
            (&*ephemeral).try_into().map_err(|_| ControlError::Answer("its challenge is damaged".into()))?;
        let mut request = wire::JoinRequest {
            nonce,
            network: token.network.to_string(),
            name: name.to_string(),
            key: token.key.to_string(),
            identity: self.identity().0.to_vec().into(),
            public_key: private_key.public().0.to_vec().into(),
            facts: Some(facts),
            os,
            ..wire::JoinRequest::default()
        };
        let access_key = sign::signing_key(&token.seed);
        let server = &self.server.signing_key;
        sign::sign_join(&mut request, server, &ephemeral, &access_key, &self.identity, &private_key.0);
        let answer = self.answer(self.client.clone().join(request)).await?;
        let name = answer.name.parse().map_err(|why| ControlError::Answer(format!("{:?}: {why}", answer.name)))?;
        Ok((name, answer.update.ok_or_else(|| ControlError::Answer("it holds no View".into()))?))
    }

    /// The whole View.
    pub async fn whole(&self, network: &NetworkName) -> Result<Update, ControlError> {
        let request = wire::GetPeersRequest { network: network.to_string() };
        self.call(request, async |mut client, request| client.get_peers(request).await).await
    }

    /// Tells where the machine stands and, if given, what changed on it; gives what it lacks.
    pub async fn check_in(
        &self,
        network: &NetworkName,
        at: Position,
        facts: Option<Facts>,
    ) -> Result<Option<Update>, ControlError> {
        let (epoch, revision) = (at.epoch, at.revision.0);
        let request = wire::CheckInRequest { network: network.to_string(), epoch, revision, facts };
        let answer = self.call(request, async |mut client, request| client.check_in(request).await).await?;
        Ok(answer.update)
    }

    /// Every change from there on, at once.
    pub async fn watch(&self, network: &NetworkName, at: Position) -> Result<Streaming<Update>, ControlError> {
        let request = wire::WatchRequest { network: network.to_string(), epoch: at.epoch, revision: at.revision.0 };
        self.call(request, async |mut client, request| client.watch(request).await).await
    }

    /// Leaves a network.
    pub async fn leave(&self, network: &NetworkName) -> Result<(), ControlError> {
        let nonce = self.challenge().await?.nonce;
        let identity = self.identity().0.to_vec().into();
        let signature = Vec::new().into();
        let mut request = wire::LeaveRequest { nonce, network: network.to_string(), identity, signature };
        sign::sign_leave(&mut request, &self.server.signing_key, &self.identity);
        self.answer(self.client.clone().leave(request)).await.map(drop)
    }

    /// A nonce of the server's to sign; also tells whether it can be reached.
    pub async fn challenge(&self) -> Result<wire::ChallengeResponse, ControlError> {
        self.answer(self.client.clone().challenge(wire::ChallengeRequest {})).await
    }

    /// An answer that comes whole and in time.
    async fn answer<A>(
        &self,
        call: impl Future<Output = Result<tonic::Response<A>, Status>>,
    ) -> Result<A, ControlError> {
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|status| self.failed(&status)),
            Err(_) => Err(self.failed(&Status::deadline_exceeded(""))),
        }
    }

    /// Calls in a session, and once more in a new one if the server has ended it.
    async fn call<Q: Clone, A>(
        &self,
        request: Q,
        call: impl AsyncFn(AgentClient<Channel>, Request<Q>) -> Result<tonic::Response<A>, Status>,
    ) -> Result<A, ControlError> {
        let kept = lock(&self.session).clone();
        let fresh = kept.is_none();
        let token = match kept {
            Some(token) => token,
            None => self.open_session().await?,
        };
        let first =
            tokio::time::timeout(PATIENCE, call(self.client.clone(), authorized(request.clone(), &token)?)).await;
        let ended = matches!(&first, Ok(Err(status)) if status.code() == Code::Unauthenticated);
        if ended && !fresh {
            let token = self.open_session().await?;
            return self.answer(call(self.client.clone(), authorized(request, &token)?)).await;
        }
        self.answer(async { first.unwrap_or_else(|_| Err(Status::deadline_exceeded(""))) }).await
    }

    async fn open_session(&self) -> Result<String, ControlError> {
        let nonce = self.challenge().await?.nonce;
        let signature = sign::sign_session(&self.server.signing_key, &nonce, &self.identity).into();
        let identity = self.identity().0.to_vec().into();
        let request = wire::OpenSessionRequest { nonce, identity, signature };
        let token = self.answer(self.client.clone().open_session(request)).await?.token;
        *lock(&self.session) = Some(token.clone());
        Ok(token)
    }

    fn failed(&self, status: &Status) -> ControlError {
        let at = self.server.addresses.join(", ");
        if let Some(why) = certificate_error(status) {
            return ControlError::Stranger { at, why };
        }
        let lost = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
        if lost && causes(status).next().is_some() {
            return ControlError::Unreachable { at, why: deepest(status) };
        }
        if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) {
            return ControlError::Unreachable { at, why: "no answer came in time".into() };
        }
        // Whatever has no cause on this side was said by the server.
        ControlError::Refused(status.message().chars().filter(|c| !c.is_control()).collect())
    }
}

fn authorized<Q>(request: Q, token: &str) -> Result<Request<Q>, ControlError> {
    let mut request = Request::new(request);
    let value = format!("Bearer {token}").parse();
    let value = value.map_err(|_| ControlError::Answer("its session cannot be shown to it".into()))?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

/// The message of the cause that lies deepest, which is the one that a user can do something about.
fn deepest(status: &Status) -> String {
    causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// What is wrong with the server's certificate, if that is why the call failed.
fn certificate_error(status: &Status) -> Option<String> {
    // An I/O error hides what it was made of from the chain of causes.
    let of_tls = |error: &(dyn std::error::Error + 'static)| {
        let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
        inner.downcast_ref::<rustls::Error>().cloned()
    };
    let error = causes(status).find_map(of_tls)?;
    matches!(error, rustls::Error::InvalidCertificate(_)).then(|| error.to_string())
}

/// The source address of the default route. Nothing is sent: connecting a UDP socket only asks for the route.
fn default_source() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
