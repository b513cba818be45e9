//! What does an unchanged check-in cost the server, compared with the cheapest call that a tonic server can
//! answer?
//!
//! Both servers run in processes of their own, with the same TLS settings, and only their CPU time counts.
//! The bare one answers the same request with an answer of the same size and does nothing else. Blocks of
//! calls alternate, so that other load on the computer affects both. `CALLS` (24000) changes how many.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use end_to_end::load::{Serving, report, seed, serve, wait_for_the_end};
use nmserver::identity::{self, DataDir};
use nmserver::listen;
use prost::Message;
use proto::wire::agent_server::{Agent as Service, AgentServer};
use proto::wire::{self, CheckInRequest, CheckInResponse, Update};
use schema::scalars::SigningKey;
use test_agent::{Agent, KnownServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Calls in a row to one server.
const BLOCK: usize = 1_000;
/// How many nodes the network has.
const NODES: u32 = 1_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1..3) {
        Some([what, folder]) if what == "serve" => serve(Path::new(folder)),
        Some([what, folder]) if what == "bare" => bare(Path::new(folder)),
        Some(_) | None => tokio::runtime::Runtime::new().expect("a runtime").block_on(compare()),
    }
}

async fn compare() {
    let calls: usize = std::env::var("CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(24_000);
    let folder = end_to_end::load::private_folder();
    seed(folder.path(), NODES, &[]);
    let path = folder.path().display().to_string();
    let (ours, peer) = (Serving::start(&["serve", &path]), Serving::start(&["bare", &path]));
    println!("{calls} calls to each server in blocks of {BLOCK}, {NODES} nodes in the network\n");
    let answer = answer_on_the_wire(&ours).await;
    println!("| calls under way | `nmserver` | bare tonic | ratio | message | on the wire | writes |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for at_once in [1, 16] {
        let mut agents = [agents(&ours, &ours, at_once).await, agents(&peer, &ours, at_once).await];
        for agents in &mut agents {
            block(agents, BLOCK).await;
        }
        let written = database(folder.path());
        let mut spent = [Duration::ZERO; 2];
        let mut bytes = 0;
        for _ in 0..calls.div_ceil(BLOCK) {
            for ((server, agents), spent) in [&ours, &peer].into_iter().zip(&mut agents).zip(&mut spent) {
                let before = server.cpu();
                bytes = bytes.max(block(agents, BLOCK).await);
                *spent += server.cpu() - before;
            }
        }
        let per_call = spent.map(|spent| spent.as_secs_f64() * 1e6 / calls.next_multiple_of(BLOCK) as f64);
        let writes = if database(folder.path()) == written { "none" } else { "some" };
        let [own, bare] = per_call;
        println!(
            "| {at_once} | {own:.1} µs | {bare:.1} µs | {:.2} | {bytes} bytes | {answer} bytes | {writes} |",
            own / bare
        );
    }
}

/// Agents with sessions and a connection each, which have the server's newest revision.
async fn agents(server: &Serving, issuer: &Serving, count: u32) -> Vec<(Agent, Request<CheckInRequest>)> {
    let mut all = Vec::new();
    for number in 0..count {
        let new = |server: &KnownServer| Agent::new(server, "corp", &end_to_end::load::name(number), number);
        let mut agent = new(&issuer.known());
        agent.at = issuer.position();
        let request = agent.check_in_request(None).await.expect("a session");
        agent.client = new(&server.known()).client;
        all.push((agent, request));
    }
    all
}

/// A block of calls, spread over the agents; returns the largest answer in bytes.
async fn block(agents: &mut [(Agent, Request<CheckInRequest>)], calls: usize) -> usize {
    let each = calls.div_ceil(agents.len());
    let call_all = agents.iter_mut().map(async |(agent, request)| {
        let mut largest = 0;
        for _ in 0..each {
            let again = Request::from_parts(
                request.metadata().clone(),
                Default::default(),
                request.get_ref().clone(),
            );
            let answer = agent.client.check_in(again).await.expect("an answer").into_inner();
            assert_eq!(answer, CheckInResponse { update: None }, "nothing is new");
            largest = largest.max(answer.encoded_len());
        }
        largest
    });
    futures_util::future::join_all(call_all).await.into_iter().max().unwrap_or(0)
}

/// How many bytes the server sends for one answer, with all that HTTP/2 and TLS add: counted by a proxy.
async fn answer_on_the_wire(server: &Serving) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let known = server.known();
    let at = listener.local_addr().expect("an address");
    let counted = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&counted);
    let proxy = tokio::spawn(async move {
        let (client, _) = listener.accept().await.expect("a connection");
        let server = TcpStream::connect(known.at).await.expect("the server is there");
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            count.fetch_add(length as u64, Ordering::SeqCst);
            to_client.write_all(&buffer[..length]).await.expect("the client is there");
        }
    });
    let through_proxy = KnownServer { at, ..server.known() };
    let mut agents = agents(server, server, 1).await;
    agents[0].0.client = Agent::new(&through_proxy, "corp", &end_to_end::load::name(0), 0).client;
    block(&mut agents, 10).await;
    let before = counted.load(Ordering::SeqCst);
    block(&mut agents, 100).await;
    proxy.abort();
    (counted.load(Ordering::SeqCst) - before).div_ceil(100)
}

/// What shows whether anything was written: length and time of the files of the database.
fn database(folder: &Path) -> Vec<(u64, SystemTime)> {
    let files = [identity::DATABASE.to_owned(), format!("{}-wal", identity::DATABASE)];
    let length_and_time = |file: String| {
        let metadata = std::fs::metadata(folder.join(file)).expect("the database is there");
        (metadata.len(), metadata.modified().expect("a time"))
    };
    files.into_iter().map(length_and_time).collect()
}

/// A tonic server that answers check-ins and nothing else.
fn bare(folder: &Path) {
    let data = DataDir::open(folder).expect("a directory");
    let tls = listen::tls(identity::certificate(&data, &[]).expect("a certificate")).expect("TLS");
    let ca = std::fs::read_to_string(data.file("ca.pem")).expect("a CA");
    let key = identity::Secrets::open(&data).expect("keys");
    let signing_key = proto::sign::public_key::<SigningKey>(key.signing_key()).to_string();
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address").to_string();
        report(&serde_json::json!({ "at": at, "ca": ca, "signing_key": signing_key }));
        let (send, streams) = tokio::sync::mpsc::channel(64);
        let acceptor = TlsAcceptor::from(Arc::clone(&tls));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("it is TCP");
                send.send(acceptor.accept(stream).await).await.expect("the server serves");
            }
        });
        let service = AgentServer::new(Bare);
        let served = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(streams));
        tokio::select! {
            served = served => served.expect("it serves"),
            _ = tokio::task::spawn_blocking(wait_for_the_end) => (),
        }
    });
}

struct Bare;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Service for Bare {
    async fn check_in(&self, _: Request<CheckInRequest>) -> Answer<CheckInResponse> {
        Ok(Response::new(CheckInResponse { update: None }))
    }

    async fn identify(&self, _: Request<wire::IdentifyRequest>) -> Answer<wire::IdentifyResponse> {
        Err(Status::unimplemented(""))
    }

    async fn challenge(&self, _: Request<wire::ChallengeRequest>) -> Answer<wire::ChallengeResponse> {
        Err(Status::unimplemented(""))
    }

    async fn register(&self, _: Request<wire::RegisterRequest>) -> Answer<wire::RegisterResponse> {
        Err(Status::unimplemented(""))
    }

    async fn join(&self, _: Request<wire::JoinRequest>) -> Answer<wire::JoinResponse> {
        Err(Status::unimplemented(""))
    }

    async fn open_session(&self, _: Request<wire::OpenSessionRequest>) -> Answer<wire::OpenSessionResponse> {
        Err(Status::unimplemented(""))
    }

    async fn get_peers(&self, _: Request<wire::GetPeersRequest>) -> Answer<Update> {
        Err(Status::unimplemented(""))
    }

    type WatchStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Update, Status>> + Send>>;

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Answer<Self::WatchStream> {
        Err(Status::unimplemented(""))
    }

    async fn leave(&self, _: Request<wire::LeaveRequest>) -> Answer<wire::LeaveResponse> {
        Err(Status::unimplemented(""))
    }
}
