//! An agent that speaks the protocol and has no devices: what a server is tested and measured with.
//!
//! Its keys are made from a number, so that runs can be repeated. It applies the server's updates to its View
//! with the same [`accept_update`] as the real agent, and trusts certificates of the CA that it is given.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use ed25519_dalek as ed25519;
use proto::convert::{DecodedUpdate, Malformed, accept_update};
use proto::position::Position;
use proto::sign;
use proto::wire::agent_client::AgentClient;
use proto::wire::{self, Facts, JoinRequest, RegisterRequest, RegisterResponse, Update};
use schema::scalars::{Identity, Name, NetworkName, SigningKey, WireGuardKey};
use schema::view::View;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

/// What an agent knows of a server: enough to reach it and to verify what it sends.
#[derive(Clone, Debug)]
pub struct KnownServer {
    /// Where its agents' service listens.
    pub at: SocketAddr,
    /// Its CA, in PEM.
    pub ca: String,
    /// The key that signs what it sends.
    pub signing_key: SigningKey,
}

impl KnownServer {
    /// A connection of its own, made when it is first used.
    pub fn channel(&self) -> Channel {
        self.endpoint().connect_lazy()
    }

    /// The same before it connects.
    pub fn endpoint(&self) -> Endpoint {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca)).domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.at)).expect("an address makes a URI");
        endpoint.tls_config(tls).expect("the CA can be read").tcp_nodelay(true)
    }
}

/// The seed of an access key, made from its name, as its token would hold it.
pub fn seed(key: &str) -> ed25519::SigningKey {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(key.bytes()).for_each(|(byte, letter)| *byte = letter);
    sign::from_seed(&bytes)
}

/// An agent in one network.
#[derive(Debug)]
pub struct Agent {
    /// Its calls.
    pub client: AgentClient<Channel>,
    /// The name that it asks for, or has.
    pub name: Name,
    /// The newest View that it has; absent: it is not in the network.
    pub view: Option<View>,
    /// The position of that View.
    pub at: Position,
    /// What it reports of itself.
    pub facts: Facts,
    network: NetworkName,
    server: SigningKey,
    identity: ed25519::SigningKey,
    private_key: [u8; 32],
    session: Option<String>,
}

impl Agent {
    /// An agent that has not joined, with keys that follow from a number.
    pub fn new(server: &KnownServer, network: &str, name: &str, number: u32) -> Self {
        Self::on(server.channel(), server.signing_key, network, name, number)
    }

    /// The same on an existing connection.
    pub fn on(channel: Channel, server: SigningKey, network: &str, name: &str, number: u32) -> Self {
        Self {
            client: AgentClient::new(channel).max_decoding_message_size(64 << 20),
            name: name.parse().expect("a name"),
            view: None,
            at: Position::default(),
            facts: Facts {
                listen_port: 51_821,
                endpoint: endpoint(number),
                local_address: String::new(),
                ..Facts::default()
            },
            network: network.parse().expect("a network's name"),
            server,
            identity: sign::from_seed(&bytes(1, number)),
            private_key: bytes(2, number),
            session: None,
        }
    }

    /// The identity and the WireGuard key of the agent with this number.
    pub fn keys(number: u32) -> (Identity, WireGuardKey) {
        let public = x25519_dalek::x25519(bytes(2, number), x25519_dalek::X25519_BASEPOINT_BYTES);
        (sign::public_key(&sign::from_seed(&bytes(1, number))), WireGuardKey(public))
    }

    /// Its identity.
    pub fn identity(&self) -> Identity {
        sign::public_key(&self.identity)
    }

    /// Its WireGuard key.
    pub fn public_key(&self) -> WireGuardKey {
        WireGuardKey(x25519_dalek::x25519(self.private_key, x25519_dalek::X25519_BASEPOINT_BYTES))
    }

    /// Asks the server for a nonce.
    pub async fn challenge(&mut self) -> Result<wire::ChallengeResponse, Status> {
        Ok(self.client.challenge(wire::ChallengeRequest {}).await?.into_inner())
    }

    /// Registers with the seed of an access key, or, without one, by its identity alone; returns the answer,
    /// whose signature has been verified.
    pub async fn register(
        &mut self,
        access_key: Option<(&str, &ed25519::SigningKey)>,
    ) -> Result<RegisterResponse, Status> {
        let wire::ChallengeResponse { nonce, ephemeral } = self.challenge().await?;
        let ephemeral = (&*ephemeral).try_into().expect("an ephemeral key has 32 bytes");
        let mut request = RegisterRequest {
            nonce,
            network: self.network.to_string(),
            key: access_key.map(|(name, _)| name.to_owned()).unwrap_or_default(),
            identity: self.identity().0.to_vec().into(),
            public_key: self.public_key().0.to_vec().into(),
            ..RegisterRequest::default()
        };
        let seed = access_key.map(|(_, seed)| seed);
        sign::sign_register(&mut request, &self.server, &ephemeral, seed, &self.identity, &self.private_key);
        let answer = self.client.register(request.clone()).await?.into_inner();
        sign::verify_registered(&answer, &request, &self.server).expect("the server signs what it sends");
        Ok(answer)
    }

    /// A join request, signed with the key of that name.
    pub async fn join_request(&mut self, key: &str) -> Result<JoinRequest, Status> {
        self.changed_join_request(key, |_| ()).await
    }

    /// The same with a change that is made before it is signed.
    pub async fn changed_join_request(
        &mut self,
        key: &str,
        change: impl FnOnce(&mut JoinRequest),
    ) -> Result<JoinRequest, Status> {
        self.join_request_with(key, Some(&seed(key)), change).await
    }

    async fn join_request_with(
        &mut self,
        key: &str,
        seed: Option<&ed25519::SigningKey>,
        change: impl FnOnce(&mut JoinRequest),
    ) -> Result<JoinRequest, Status> {
        let wire::ChallengeResponse { nonce, ephemeral } = self.challenge().await?;
        let ephemeral = (&*ephemeral).try_into().expect("an ephemeral key has 32 bytes");
        let mut request = JoinRequest {
            nonce,
            network: self.network.to_string(),
            name: self.name.to_string(),
            key: key.into(),
            identity: self.identity().0.to_vec().into(),
            public_key: self.public_key().0.to_vec().into(),
            facts: Some(self.facts.clone()),
            os: "test".into(),
            ..JoinRequest::default()
        };
        change(&mut request);
        sign::sign_join(&mut request, &self.server, &ephemeral, seed, &self.identity, &self.private_key);
        Ok(request)
    }

    /// Joins with the key of that name, and takes the View of the answer.
    pub async fn join(&mut self, key: &str) -> Result<(), Status> {
        self.join_with(key, &seed(key)).await
    }

    /// The same with a key whose seed nmplan made.
    pub async fn join_with(&mut self, key: &str, seed: &ed25519::SigningKey) -> Result<(), Status> {
        let request = self.join_request_with(key, Some(seed), |_| ()).await?;
        let wire::JoinResponse { name, update, waiting: _ } = self.client.join(request).await?.into_inner();
        self.name = name.parse().expect("the server returns a valid name");
        self.take(&update.expect("a join is answered with a View")).expect("the server signs what it sends");
        Ok(())
    }

    /// A request to join without an access key.
    pub async fn ask_request(&mut self, waits: bool) -> Result<JoinRequest, Status> {
        self.join_request_with("", None, |request| request.waits = waits).await
    }

    /// Asks to join without an access key; for how many seconds it waits, 0 if it does not any more, or nothing
    /// where it is in and has taken its View. `waits`: whether it has asked before.
    pub async fn ask(&mut self, waits: bool) -> Result<Option<u32>, Status> {
        let request = self.ask_request(waits).await?;
        let answer = self.client.join(request.clone()).await?.into_inner();
        if let Some(waiting) = answer.waiting {
            sign::verify_waiting(&waiting, &request, &self.server).expect("the server signs what it sends");
            assert!(answer.name.is_empty() && answer.update.is_none(), "whoever waits is sent nothing else");
            return Ok(Some(waiting.left));
        }
        self.name = answer.name.parse().expect("the server returns a valid name");
        self.take(&answer.update.expect("a View")).expect("the server signs what it sends");
        Ok(None)
    }

    /// The session's token; opens one if there is none.
    pub async fn session(&mut self) -> Result<String, Status> {
        if let Some(token) = &self.session {
            return Ok(token.clone());
        }
        let request = self.session_request().await?;
        let opened = self.client.open_session(request).await?;
        let token = opened.into_inner().token;
        self.session = Some(token.clone());
        Ok(token)
    }

    /// A request that opens a session, signed.
    pub async fn session_request(&mut self) -> Result<wire::OpenSessionRequest, Status> {
        let nonce = self.challenge().await?.nonce;
        let signature = sign::sign_session(&self.server, &nonce, &self.identity).into();
        Ok(wire::OpenSessionRequest { nonce, identity: self.identity().0.to_vec().into(), signature })
    }

    /// A request in the session.
    pub async fn authorized<T>(&mut self, message: T) -> Result<Request<T>, Status> {
        let token = self.session().await?;
        let mut request = Request::new(message);
        let header = format!("Bearer {token}").parse().expect("a token is valid in a header");
        request.metadata_mut().insert("authorization", header);
        Ok(request)
    }

    /// The whole View, as the server sends it.
    pub async fn whole(&mut self) -> Result<Update, Status> {
        let request = self.authorized(wire::GetPeersRequest { network: self.network.to_string() }).await?;
        Ok(self.client.get_peers(request).await?.into_inner())
    }

    /// A check-in request.
    pub async fn check_in_request(
        &mut self,
        facts: Option<Facts>,
    ) -> Result<Request<wire::CheckInRequest>, Status> {
        let network = self.network.to_string();
        let Position { epoch, revision, stamp } = self.at;
        let stamp = stamp.to_bytes().into();
        let mut request =
            wire::CheckInRequest { network, epoch, revision: revision.0, facts, stamp, ..Default::default() };
        if request.facts.is_some() {
            request.nonce = self.challenge().await?.nonce;
            sign::sign_call(&mut request, &self.server, &self.identity);
        }
        self.authorized(request).await
    }

    /// Checks in, and takes the update if there is one; returns the answer.
    pub async fn check_in(&mut self, facts: Option<Facts>) -> Result<wire::CheckInResponse, Status> {
        let request = self.check_in_request(facts).await?;
        let answer = self.client.check_in(request).await?.into_inner();
        if let Some(update) = &answer.update {
            self.take(update).expect("the server signs what it sends");
        }
        Ok(answer)
    }

    /// Streams every change after the revision that it has.
    pub async fn watch(&mut self) -> Result<Streaming<Update>, Status> {
        let request = self.watch_request().await?;
        Ok(self.client.watch(request).await?.into_inner())
    }

    /// A request for that stream, signed.
    pub async fn watch_request(&mut self) -> Result<Request<wire::WatchRequest>, Status> {
        let network = self.network.to_string();
        let Position { epoch, revision, stamp } = self.at;
        let (stamp, nonce) = (stamp.to_bytes().into(), self.challenge().await?.nonce);
        let mut request =
            wire::WatchRequest { network, epoch, revision: revision.0, stamp, nonce, ..Default::default() };
        sign::sign_call(&mut request, &self.server, &self.identity);
        self.authorized(request).await
    }

    /// Leaves the network.
    pub async fn leave(&mut self) -> Result<(), Status> {
        let request = self.leave_request().await?;
        self.client.leave(request).await.map(drop)
    }

    /// A request to leave, signed.
    pub async fn leave_request(&mut self) -> Result<wire::LeaveRequest, Status> {
        let nonce = self.challenge().await?.nonce;
        let identity = self.identity().0.to_vec().into();
        let signature = Vec::new().into();
        let mut request =
            wire::LeaveRequest { nonce, network: self.network.to_string(), identity, signature };
        sign::sign_leave(&mut request, &self.server, &self.identity);
        Ok(request)
    }

    /// Takes an update: afterwards `view` and `at` are those of the server.
    pub fn take(&mut self, update: &Update) -> Result<(), Malformed> {
        let at = self.view.as_ref().map(|view| (view, self.at));
        let identity = self.identity();
        let (decoded, at) = accept_update(update, &self.network, &self.name, &identity, &self.server, at)?;
        self.at = at;
        self.view = match decoded {
            DecodedUpdate::View(view) => Some(*view),
            DecodedUpdate::Removed => None,
        };
        Ok(())
    }
}

fn bytes(purpose: u8, number: u32) -> [u8; 32] {
    let mut bytes = [purpose; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// An address of the range for benchmarks (RFC 2544) that follows from a number.
fn endpoint(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!("198.18.{high}.{low}")
}
