//! A server that always answers with something wrong is asked again, and not often: the whole agent against
//! servers of a test, in virtual time.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{Stream, stream};
use netclient::agent::{Agent, JoinOptions};
use netclient::control::Opener;
use netclient::daemon;
use netclient::directory::Directory;
use netclient::host::fake::FakeHost;
use netclient::settings::Settings;
use proto::convert::{encode_delta, encode_view};
use proto::position::{Position, Stamp};
use proto::secret::Secret;
use proto::sign::{self, SignedBody};
use proto::token::Token;
use proto::wire::agent_server::{Agent as Service, AgentServer};
use proto::wire::{self, Update};
use schema::chain::ChainHash;
use schema::scalars::Seconds;
use schema::snapshot::Revision;
use schema::view::{Interface, View, ViewDelta};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// How long each agent is watched, and how many requests it makes in that time at most: one in three seconds.
/// Checking in every 15 seconds makes 40 of them.
const SPAN: Duration = Duration::from_secs(600);
const MOST: usize = 200;

const SERVER: [u8; 32] = [6; 32];

/// What is always wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// The signature.
    Unsigned,
    /// The history that a delta is of.
    OtherHistory,
    /// A delta begins before what the host has, and leads past it.
    Overtaken,
    /// What is signed is no View.
    NotAView,
    /// Everything is refused.
    Refused,
    /// No session is accepted.
    SessionEnded,
    /// Streams end at once; the rest is right.
    StreamEnds,
    /// Connections are closed at once.
    Closed,
    /// What answers does not speak the protocol.
    Garbage,
}

const ALL: [Wrong; 9] = [
    Wrong::Unsigned,
    Wrong::OtherHistory,
    Wrong::Overtaken,
    Wrong::NotAView,
    Wrong::Refused,
    Wrong::SessionEnded,
    Wrong::StreamEnds,
    Wrong::Closed,
    Wrong::Garbage,
];

fn view() -> View {
    let interface = Interface {
        addresses: ["10.9.255.1/16".parse().expect("good")].into(),
        listen_port: 51821,
        listen_port_fixed: false,
        mtu: None,
        keepalive: Seconds(20),
        check_in: Seconds(15),
        carrier: None,
        forward: false,
        restricted: false,
        class: Default::default(),
        named: true,
        resolvers: Default::default(),
    };
    let [network, node] = ["corp", "a"];
    View {
        network: network.parse().expect("good"),
        node: node.parse().expect("good"),
        interface,
        peers: Default::default(),
        access: Default::default(),
        routes: Default::default(),
        forwards: Default::default(),
        guarded: Default::default(),
        names: Default::default(),
    }
}

fn at(history: &str, revision: u64) -> Position {
    let hash = ChainHash::start(history).next(&revision.to_string());
    Position { epoch: 1, revision: Revision(revision), stamp: Stamp::new(&hash, &[0; 32]) }
}

fn signed(from: Position, to: Position, body: SignedBody) -> Update {
    let view = view();
    body.sign(sign::Header { network: &view.network, node: &view.node, from, to }, &sign::from_seed(&SERVER))
}

fn whole() -> Update {
    signed(Position::default(), at("here", 5), SignedBody::whole(encode_view(&view())))
}

fn delta(history: &str, from: u64, to: u64) -> Update {
    let (before, mut after) = (view(), view());
    after.interface.keepalive = Seconds(7);
    let body = encode_delta(&ViewDelta::between(&before, &after), after.counts());
    signed(at(history, from), at(history, to), SignedBody::delta(body))
}

#[derive(Clone)]
struct Server {
    wrong: Wrong,
    /// Whether the host has joined: from then on everything is wrong.
    joined: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn new(wrong: Wrong) -> Self {
        Self { wrong, joined: Arc::default(), requests: Arc::default() }
    }

    fn opener(&self) -> Opener {
        let server = self.clone();
        let service = AgentServer::new(server.clone());
        let router = tonic::service::Routes::new(service).prepare().into_axum_router();
        let (end, shutdown) = watch::channel(false);
        let within = nmserver::client::within(router, shutdown);
        Arc::new(move || {
            // Held by the opener.
            let _ = &end;
            let broken = server.joined.load(Ordering::SeqCst);
            if !broken || !matches!(server.wrong, Wrong::Closed | Wrong::Garbage) {
                return within();
            }
            server.count();
            let (agent, mut other) = tokio::io::duplex(1 << 16);
            if server.wrong == Wrong::Garbage {
                tokio::spawn(async move { other.write_all(&[0x47; 4_096]).await });
            }
            agent
        })
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a request in a session, and refuses it where that is what is wrong.
    fn admit(&self) -> Result<(), Status> {
        self.count();
        match self.wrong {
            Wrong::Refused => Err(Status::permission_denied("no")),
            Wrong::SessionEnded => Err(Status::unauthenticated("no")),
            Wrong::Unsigned
            | Wrong::OtherHistory
            | Wrong::Overtaken
            | Wrong::NotAView
            | Wrong::StreamEnds
            | Wrong::Closed
            | Wrong::Garbage => Ok(()),
        }
    }

    /// What is wrong of what was asked for; absent: nothing is sent.
    fn update(&self) -> Option<Update> {
        match self.wrong {
            Wrong::Unsigned => Some(Update { signature: vec![0; 64].into(), ..delta("here", 5, 6) }),
            Wrong::OtherHistory => Some(delta("elsewhere", 5, 6)),
            Wrong::Overtaken => Some(delta("here", 4, 9)),
            Wrong::NotAView => {
                let body = SignedBody::whole(b"no View".to_vec());
                Some(signed(Position::default(), at("here", 9), body))
            }
            Wrong::Refused | Wrong::SessionEnded | Wrong::StreamEnds | Wrong::Closed | Wrong::Garbage => None,
        }
    }
}

#[tonic::async_trait]
impl Service for Server {
    async fn identify(
        &self,
        _: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        Err(Status::unimplemented("it is known by its token"))
    }

    async fn challenge(
        &self,
        _: Request<wire::ChallengeRequest>,
    ) -> Result<Response<wire::ChallengeResponse>, Status> {
        self.count();
        let ephemeral = vec![9; 32].into();
        Ok(Response::new(wire::ChallengeResponse { nonce: vec![1; 32].into(), ephemeral }))
    }

    async fn register(
        &self,
        _: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        Err(Status::unimplemented("no tunnels"))
    }

    async fn join(&self, _: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        self.joined.store(true, Ordering::SeqCst);
        let update = Some(whole());
        Ok(Response::new(wire::JoinResponse { name: "a".into(), update, waiting: None }))
    }

    async fn open_session(
        &self,
        _: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionResponse>, Status> {
        self.count();
        Ok(Response::new(wire::OpenSessionResponse { token: "t".into(), lifetime: 60 }))
    }

    async fn get_peers(&self, _: Request<wire::GetPeersRequest>) -> Result<Response<Update>, Status> {
        self.admit()?;
        Ok(Response::new(self.update().unwrap_or_else(whole)))
    }

    async fn check_in(
        &self,
        _: Request<wire::CheckInRequest>,
    ) -> Result<Response<wire::CheckInResponse>, Status> {
        self.admit()?;
        Ok(Response::new(wire::CheckInResponse { update: self.update() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Update, Status>> + Send>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.admit()?;
        if self.wrong == Wrong::StreamEnds {
            return Ok(Response::new(Box::pin(stream::empty())));
        }
        // One every second, for ever.
        let server = self.clone();
        let next = stream::unfold(server, async |server| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match server.update() {
                Some(update) => Some((Ok(update), server)),
                None => std::future::pending().await,
            }
        });
        Ok(Response::new(Box::pin(next)))
    }

    async fn leave(&self, _: Request<wire::LeaveRequest>) -> Result<Response<wire::LeaveResponse>, Status> {
        Err(Status::unimplemented("nobody leaves"))
    }
}

/// How many requests an agent makes of a server at which this is wrong, after it has joined.
async fn requests(wrong: Wrong) -> usize {
    let folder = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).expect("set");
    let server = Server::new(wrong);
    let host = FakeHost::default();
    let directory = Directory::open(folder.path()).expect("it opens");
    let agent = Agent::new(directory, Settings::default(), Arc::new(host.clone())).within(server.opener());
    let seed = [7; 32];
    let token = Token {
        addresses: vec!["server:1".into()],
        signing_key: sign::public_key(&sign::from_seed(&SERVER)),
        ca_pin: None,
        network: "corp".parse().expect("good"),
        key: "k".parse().expect("good"),
        seed: Secret::new(seed),
    };
    let options = JoinOptions { name: Some("a".parse().expect("good")), ..JoinOptions::default() };
    agent.join(&token, &options).await.expect("it joins");
    server.requests.store(0, Ordering::SeqCst);
    let (end, shutdown) = watch::channel(false);
    let daemon = tokio::spawn(daemon::run(agent, shutdown));
    tokio::time::sleep(SPAN).await;
    let requests = server.requests.load(Ordering::SeqCst);
    end.send_replace(true);
    daemon.await.expect("no panic").expect("it ran");
    let link = host.link("nm-corp").expect("the tunnel stays");
    let own: IpAddr = "10.9.255.1".parse().expect("good");
    assert!(link.addresses.iter().any(|address| address.addr() == own), "{wrong:?}: {link:?}");
    requests
}

#[tokio::test(start_paused = true)]
#[expect(clippy::print_stderr, reason = "figures of a run")]
async fn a_server_that_always_answers_with_something_wrong_is_not_stormed() {
    for wrong in ALL {
        let requests = requests(wrong).await;
        eprintln!("{wrong:?}: {requests} requests in ten minutes");
        assert!((20..=MOST).contains(&requests), "{wrong:?}: {requests} requests in ten minutes");
    }
}
