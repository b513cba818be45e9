//! The agents' service over gRPC: decodes, calls the service, encodes. No decisions.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::middleware::{self, Next};
use axum::response::Response as HttpResponse;
use futures_util::Stream;
use http::{HeaderMap, header};
use proto::position::{Position, Stamp};
use proto::wire::agent_server::{Agent, AgentServer, SERVICE_NAME};
use proto::wire::{self, Update, update::Body};
use schema::api::Control;
use schema::scalars::{Identity, NetworkName};
use schema::snapshot::Revision;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::core::authorize::{Call, Needs, Rule, TABLE};
use crate::error::Error;
use crate::listen::{Login, source};
use crate::service::Service;
use crate::state;

/// The largest request: an agent's have less than 2 KiB, and anyone may send eight of them at once on a
/// connection.
const MAX_REQUEST: usize = 8 << 10;

/// The agents' routes. `behind_proxy`: whether a proxy reports where requests come from; `transport`: how
/// agents connect.
pub fn router(service: Service, behind_proxy: bool, transport: Control) -> Router {
    let adapter = Adapter { service: service.clone(), behind_proxy, transport };
    let agent = AgentServer::new(adapter).max_decoding_message_size(MAX_REQUEST);
    let routes = tonic::service::Routes::new(agent).prepare().into_axum_router();
    routes.layer(middleware::from_fn_with_state((service, behind_proxy), authenticate))
}

/// Lets through what the authorisation table allows, with the identity if it requires a session.
async fn authenticate(
    State((service, behind_proxy)): State<(Service, bool)>,
    mut request: axum::extract::Request,
    next: Next,
) -> HttpResponse {
    let allowed = match needs(request.uri().path()) {
        Some(Needs::Nothing | Needs::Signature) => Ok(()),
        Some(Needs::Session) => match session(&service, request.headers()) {
            Ok(identity) => {
                if let Some(login) = request.extensions().get::<Login>() {
                    login.accepted();
                }
                request.extensions_mut().insert(identity);
                Ok(())
            }
            Err(error) => {
                let guess = error.is_of_guess() && request.headers().contains_key(header::AUTHORIZATION);
                if guess {
                    service.refused(source(request.headers(), request.extensions(), behind_proxy)).await;
                }
                Err(error)
            }
        },
        Some(Needs::Role(_)) | None => Err(Error::NotFound("such method".into())),
    };
    match allowed {
        Ok(()) => understood(next.run(request).await),
        Err(error) => Status::from(error).into_http(),
    }
}

/// The answer, where a request that is no message of the protocol is the caller's mistake: tonic answers it
/// with INTERNAL, which no operation does except for a bug.
fn understood(response: HttpResponse) -> HttpResponse {
    let status = Status::from_header_map(response.headers());
    match status
        .filter(|status| status.code() == Code::Internal && status.message() != Error::Bug.to_string())
    {
        None => response,
        Some(status) => {
            let message =
                format!("the request is not a valid message of the agents' protocol: {}", status.message());
            Status::from(Error::BadRequest(message)).into_http()
        }
    }
}

/// What the table says of the method at a path.
fn needs(path: &str) -> Option<Needs> {
    let method = path.strip_prefix('/')?.strip_prefix(SERVICE_NAME)?.strip_prefix('/')?;
    let is_it = |rule: &&Rule| matches!(rule.call, Call::Grpc(name) if name == method);
    TABLE.iter().find(is_it).map(|rule| rule.needs)
}

/// The identity whose session a request belongs to.
fn session(service: &Service, headers: &HeaderMap) -> Result<Identity, Error> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer "));
    service.identity(token.ok_or(Error::Unauthenticated("a session is needed"))?)
}

/// The identity of a request that the table lets through with a session only.
fn identity<T>(request: &Request<T>) -> Result<Identity, Error> {
    request.extensions().get().copied().ok_or(Error::Unauthenticated("a session is needed"))
}

struct Adapter {
    service: Service,
    behind_proxy: bool,
    transport: Control,
}

impl Adapter {
    /// The answer to a call that is signed: the refusal of one whose signature may be a guess is counted, and
    /// held back if its source has sent many.
    async fn answer<T>(
        &self,
        from: Option<IpAddr>,
        outcome: Result<T, Error>,
    ) -> Result<Response<T>, Status> {
        if outcome.as_ref().is_err_and(Error::is_of_guess) {
            self.service.refused(from).await;
        }
        Ok(Response::new(outcome?))
    }

    /// The address that an agent comes from: for the tunnel, the address outside of it.
    async fn from<T>(&self, request: &Request<T>) -> Option<IpAddr> {
        let from = from(request, self.behind_proxy);
        match (self.transport, self.service.comms(), from) {
            (Control::Tunnel, Some(comms), Some(IpAddr::V4(inside))) => {
                comms.outside(inside).await.map(|at| at.ip())
            }
            (Control::Tunnel, ..) => None,
            (Control::Tls | Control::None, _, from) => from,
        }
    }
}

/// The address that a request comes from.
fn from<T>(request: &Request<T>, behind_proxy: bool) -> Option<IpAddr> {
    source(request.metadata().as_ref(), request.extensions(), behind_proxy)
}

fn network(name: &str) -> Result<NetworkName, Error> {
    name.parse().map_err(|why| Error::BadRequest(format!("{name:?} is not a valid network name: {why}")))
}

#[tonic::async_trait]
impl Agent for Adapter {
    async fn identify(
        &self,
        request: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        Ok(Response::new(self.service.identify(request.get_ref())))
    }

    async fn challenge(
        &self,
        _: Request<wire::ChallengeRequest>,
    ) -> Result<Response<wire::ChallengeResponse>, Status> {
        Ok(Response::new(self.service.challenge()))
    }

    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        let caller = from(&request, self.behind_proxy);
        self.answer(caller, self.service.register(request.get_ref()).await).await
    }

    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let (caller, seen) = (from(&request, self.behind_proxy), self.from(&request).await);
        self.answer(caller, self.service.join(request.into_inner(), seen, self.transport).await).await
    }

    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionResponse>, Status> {
        let caller = from(&request, self.behind_proxy);
        self.answer(caller, self.service.open_session(request.get_ref())).await
    }

    async fn get_peers(&self, request: Request<wire::GetPeersRequest>) -> Result<Response<Update>, Status> {
        let identity = identity(&request)?;
        Ok(Response::new(self.service.whole(&network(&request.get_ref().network)?, &identity)?))
    }

    async fn check_in(
        &self,
        request: Request<wire::CheckInRequest>,
    ) -> Result<Response<wire::CheckInResponse>, Status> {
        let identity = identity(&request)?;
        // What changes nothing needs no signature, and its source address is not looked up.
        let seen = if request.get_ref().facts.is_some() {
            let caller = from(&request, self.behind_proxy);
            self.answer(caller, self.service.made_by(&identity, request.get_ref())).await?;
            self.from(&request).await
        } else {
            None
        };
        // Inside the tunnel the source address is the registration's: WireGuard itself lets only one host
        // have it.
        let outside = self.transport != Control::Tunnel;
        let source = if outside { from(&request, self.behind_proxy) } else { None };
        let wire::CheckInRequest { network: name, epoch, revision, facts, stamp, nonce: _, signature: _ } =
            request.into_inner();
        let at = Position { epoch, revision: Revision(revision), stamp: Stamp::from_bytes(&stamp) };
        let said = facts.as_ref().map(|facts| (facts, seen));
        let update =
            self.service.check_in(&network(&name)?, &identity, at, said, source, self.transport).await?;
        Ok(Response::new(wire::CheckInResponse { update }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Update, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let identity = identity(&request)?;
        let caller = from(&request, self.behind_proxy);
        self.answer(caller, self.service.made_by(&identity, request.get_ref())).await?;
        let wire::WatchRequest { network: name, epoch, revision, stamp, nonce: _, signature: _ } =
            request.into_inner();
        let at = Position { epoch, revision: Revision(revision), stamp: Stamp::from_bytes(&stamp) };
        self.service.notice(&at).await?;
        let (send, updates) = mpsc::channel(1);
        let service = self.service.clone();
        let transport = self.transport;
        let watcher = Watcher { service, network: network(&name)?, identity, at, transport, send };
        tokio::spawn(watcher.run(self.service.states()));
        Ok(Response::new(Box::pin(ReceiverStream::new(updates))))
    }

    async fn leave(
        &self,
        request: Request<wire::LeaveRequest>,
    ) -> Result<Response<wire::LeaveResponse>, Status> {
        let caller = from(&request, self.behind_proxy);
        let left = self.service.leave(request.get_ref()).await;
        self.answer(caller, left.map(|()| wire::LeaveResponse {})).await
    }
}

/// One node's stream: sends the node its changes whenever the state changes. While the node does not read,
/// states are skipped, and then it is sent the difference to the newest at once.
struct Watcher {
    service: Service,
    network: NetworkName,
    identity: Identity,
    at: Position,
    transport: Control,
    send: mpsc::Sender<Result<Update, Status>>,
}

impl Watcher {
    async fn run(mut self, mut states: watch::Receiver<Arc<state::State>>) {
        let _counted = self.service.stream(&self.network, &self.identity, self.transport);
        while let Ok(slot) = self.send.clone().reserve_owned().await {
            let state = states.borrow_and_update().clone();
            if self.send_update(&state, slot).is_break() {
                return;
            }
            tokio::select! {
                moved = states.changed() => if moved.is_err() { return },
                () = self.send.closed() => return,
            }
        }
    }

    /// Sends what brings the node up to date; breaks if nothing can follow.
    fn send_update(
        &mut self,
        state: &state::State,
        slot: mpsc::OwnedPermit<Result<Update, Status>>,
    ) -> ControlFlow<()> {
        match self.service.update_for(state, &self.network, &self.identity, self.at) {
            Ok(None) => ControlFlow::Continue(()),
            Ok(Some(update)) => {
                self.at = proto::sign::to(&update);
                let removed = matches!(update.body, Some(Body::Removed(_)));
                slot.send(Ok(update));
                if removed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            Err(error) => {
                slot.send(Err(error.into()));
                ControlFlow::Break(())
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use std::net::SocketAddr;

    use axum::extract::ConnectInfo;
    use jiff::Timestamp;
    use schema::inventory::{Joined, NodeId};
    use schema::scalars::{SigningKey, WireGuardKey};
    use schema::world::{ResourceDocument, ServerInfo, World};

    use super::*;
    use crate::addresses::OwnAddresses;
    use crate::committer::{AuditInfo, CommitContext, Committer, Proposal};
    use crate::identity::{DataDir, Secrets};
    use crate::liveness::LastSeen;
    use crate::readers::Readers;
    use crate::service::Parts;
    use crate::store::Store;
    use crate::store::memory::Memory;

    fn call(peer: &str, forwarded: Option<&'static str>) -> Request<()> {
        let mut request = Request::new(());
        let peer: SocketAddr = peer.parse().expect("good");
        request.extensions_mut().insert(ConnectInfo(peer));
        if let Some(forwarded) = forwarded {
            request.metadata_mut().insert("x-forwarded-for", forwarded.parse().expect("good"));
        }
        request
    }

    #[tokio::test]
    async fn a_watcher_that_does_not_take_what_it_is_sent_gets_the_rest_as_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(&directory.path().join("data")).expect("it opens");
        let mut world = World { epoch: 1, ..World::default() };
        let json = r#"{"id":"corp","body":{"ipv4":"10.0.0.0/24"}}"#;
        let document: ResourceDocument = serde_json::from_str(json).expect("good");
        world.snapshot.put(document.id.clone(), document.entry().expect("good"));
        world.inventory.put_node(id("a"), joined(1));
        let info = ServerInfo {
            id: "s".into(),
            epoch: 1,
            agent_addresses: Vec::new(),
            signing_key: SigningKey([0; 32]),
            ca_pin: None,
            version: String::new(),
            comms_range: None,
            own_node: None,
            addresses: Vec::new(),
        };
        let mut store = Memory::default();
        let readers = Readers::open(&store).expect("they open");
        let chain = state::Chain::new(Revision(0), store.load().expect("it loads").hash);
        let state = state::State::new(world, chain, |_| Revision::default());
        let (committer, states) = Committer::start(Box::new(store), state, None);
        let secrets = Secrets::open(&data).expect("made");
        let addresses = OwnAddresses::default();
        let service = Service::new(Parts {
            committer: committer.clone(),
            readers,
            states,
            secrets,
            info,
            last_seen: LastSeen::default(),
            comms: None,
            addresses,
        });
        let (send, mut updates) = mpsc::channel(1);
        let network = id("a").network;
        let identity = joined(1).identity;
        let at = service.position();
        let watcher =
            Watcher { service: service.clone(), network, identity, at, transport: Control::Tls, send };
        tokio::spawn(watcher.run(service.states()));
        let join = async |number: u8| {
            let change = move |world: &World, _: &mut CommitContext<'_>| {
                let mut next = world.clone();
                next.inventory.put_node(id(&format!("n{number}")), joined(number));
                Ok(Proposal::changed((), next, AuditInfo::default()))
            };
            committer.change(change).await.expect("it is stored");
        };
        join(2).await;
        let first = updates.recv().await.expect("it comes at once").expect("it is good");
        assert_eq!((first.from, first.to), (0, 1));
        for number in 3..50 {
            join(number).await;
        }
        let mut ends = vec![first.to];
        while ends.last() != Some(&48) {
            let update = updates.recv().await.expect("it comes").expect("it is good");
            assert_eq!(Some(&update.from), ends.last(), "each begins where the one before ended");
            ends.push(update.to);
        }
        assert!(ends.len() <= 4, "one lay ready, one more was waited with, the rest is one: {ends:?}");
    }

    /// A node of the network `corp`.
    pub(crate) fn id(name: &str) -> NodeId {
        NodeId { network: "corp".parse().expect("good"), name: name.parse().expect("good") }
    }

    /// A node that has joined, whose keys and address follow from a number.
    pub(crate) fn joined(number: u8) -> Joined {
        Joined {
            public_key: WireGuardKey([number; 32]),
            identity: Identity([100 + number; 32]),
            addresses: BTreeSet::from([IpAddr::from([10, 0, 0, number])]),
            endpoints: Default::default(),
            listen_port: 1,
            tags: BTreeSet::new(),
            key: None,
            claimed: false,
            joined: Timestamp::UNIX_EPOCH,
            problems: Vec::new(),
            os: "test".into(),
        }
    }

    #[test]
    fn the_address_of_an_agent_is_its_own_also_behind_a_proxy() {
        let address = |text: &str| Some(text.parse::<IpAddr>().expect("good"));
        let forged = Some("198.51.100.1, 192.0.2.9");
        assert_eq!(
            from(&call("192.0.2.1:5", forged), false),
            address("192.0.2.1"),
            "nobody may claim another"
        );
        assert_eq!(
            from(&call("127.0.0.1:5", forged), true),
            address("192.0.2.9"),
            "what the proxy itself saw"
        );
        assert_eq!(from(&call("192.0.2.1:5", None), true), None, "the proxy is not the agent");
    }
}
