//! A server that cannot be silenced without a login: connections that say nothing, half of something, or
//! never read take nothing from those who can log in, and not the memory of its host either.
//!
//! `CONNECTIONS` sets how many there are (1,000 by default); each needs a descriptor of this process.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proto::wire::Update;
use reqwest::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use schema::world::ServerInfo;
use support::{Access, PATIENCE, eventually};
use test_agent::Agent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Streaming;

/// The most memory that the server may have had at any time.
const MEMORY: u64 = 256 << 20;
/// The longest that `/readyz` may take on a connection of its own.
const READY: Duration = Duration::from_secs(1);
/// How many attackers are connecting at the same time.
const AT_ONCE: usize = 100;

const CORP: &str = r#"network "corp" { ipv4 "10.0.0.0/16"; access-key "many" uses="unlimited" }"#;

/// The program, on ports of its own.
struct Program {
    process: Child,
    log: std::path::PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Program {
    /// Starts it with a limit of descriptors, and waits until it serves.
    async fn start(directory: &Path, descriptors: &str) -> (Self, Access) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (api, grpc) = (free_port(), free_port());
        let log = directory.join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n $1 && exec $2", "sh", descriptors, env!("CARGO_BIN_EXE_nmserver")]);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("DATA_DIR", directory.join("data"));
        command
            .env("BIND", "127.0.0.1")
            .env("SERVER_HOST", "127.0.0.1")
            .env("COMMS", "off")
            .env("CLIENT_MODE", "off");
        command
            .env("API_PORT", api.to_string())
            .env("GRPC_PORT", grpc.to_string())
            .env("CLIENT_TIMEOUT", "3s");
        let process = command.stderr(Stdio::from(std::fs::File::create(&log).unwrap())).spawn().unwrap();
        let program = Self { process, log };
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap();
        let url = format!("https://127.0.0.1:{api}/api/v1/server");
        let info: ServerInfo = eventually("the server serves", async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.get(&url).send().await.ok()?.json().await.ok()
        })
        .await;
        let access = Access::new(&directory.join("data"), at(api), at(grpc), info.signing_key);
        (program, access)
    }

    fn status(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }
}

/// What an attacker holds: it is never read, and closed when this is dropped.
type Held = Box<dyn std::any::Any>;

/// An attacker of a kind. One that the server closes meanwhile has had its chance.
async fn attacker(server: &Access, number: usize) -> Held {
    let at = if number.is_multiple_of(2) { server.rest } else { server.known.at };
    let grpc = at == server.known.at;
    let said: &[u8] = match number / 2 % 8 {
        0 => return Box::new(TcpStream::connect(at).await),
        1 => {
            let mut stream = TcpStream::connect(at).await.unwrap();
            // The beginning of a ClientHello.
            let _ = stream.write_all(&[22, 3, 1, 2, 0, 1]).await;
            return Box::new(stream);
        }
        2 => b"",
        3 => b"P",
        4 => b"PRI * HTTP/2.0\r\n\r\nSM",
        5 => b"GET /readyz HTTP/1.1\r\nhost: x\r\nx-half:",
        6 => b"POST /api/v1/apply HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{",
        _ => return never_reads(server, at, grpc).await,
    };
    let Some(mut stream) = server.try_tls(at, &["http/1.1"]).await else { return Box::new(()) };
    let _ = stream.write_all(said).await;
    Box::new(stream)
}

/// An attacker that asks for much and reads nothing of it.
async fn never_reads(server: &Access, at: SocketAddr, grpc: bool) -> Held {
    if !grpc {
        let Some(mut stream) = server.try_tls(at, &["http/1.1"]).await else { return Box::new(()) };
        let requests = "GET /api/v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
        let _ = tokio::time::timeout(Duration::from_millis(100), stream.write_all(requests.as_bytes())).await;
        return Box::new(stream);
    }
    let Some(stream) = server.try_tls(at, &["h2"]).await else { return Box::new(()) };
    let begun =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, axum::body::Bytes>(stream).await;
    let Ok((mut client, connection)) = begun else { return Box::new(()) };
    let connection = tokio::spawn(connection);
    let path = format!("https://localhost/{}/Challenge", proto::wire::agent_server::SERVICE_NAME);
    let mut streams = Vec::new();
    for _ in 0..100 {
        if std::future::poll_fn(|cx| client.poll_ready(cx)).await.is_err() {
            break;
        }
        let request = http::Request::post(&path).header("content-type", "application/grpc").body(()).unwrap();
        let Ok((answer, mut body)) = client.send_request(request, false) else { break };
        let _ = body.send_data(axum::body::Bytes::from_static(&[0, 0, 0, 0, 0]), true);
        streams.push((answer, body));
    }
    Box::new((client, connection, streams))
}

/// Opens this many attackers, kept in order.
async fn wave(server: &Access, count: usize) -> Vec<Held> {
    let mut held = Vec::with_capacity(count);
    let mut opening = FuturesUnordered::new();
    for number in 0..count {
        opening.push(attacker(server, number));
        if opening.len() >= AT_ONCE {
            held.extend(opening.next().await);
        }
    }
    while let Some(one) = opening.next().await {
        held.push(one);
    }
    held
}

/// Whoever can log in is served as ever.
async fn all_is_well(server: &Access, agents: &mut [(Agent, Streaming<Update>)], next: u32) {
    let start = Instant::now();
    let mut stream = server.tls(server.rest, &["http/1.1"]).await;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert!(start.elapsed() < READY, "/readyz took {:?}", start.elapsed());
    for (agent, _) in &mut *agents {
        agent.check_in(None).await.expect("an agent with a session checks in on the connection that it has");
    }
    let mut new = server.agent(&format!("new-{next}"), 1_000 + next);
    new.join("many").await.expect("a new one joins");
    let status = server.call(Method::GET, "/api/v1/status").bearer_auth(&server.token).send().await.unwrap();
    assert_eq!(status.status(), 200, "an admin is answered");
    for (agent, updates) in agents {
        let update =
            tokio::time::timeout(PATIENCE, updates.message()).await.expect("the join is pushed").unwrap();
        agent.take(&update.expect("the stream goes on")).unwrap();
    }
}

async fn attacked(count: usize, descriptors: &str) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let directory = support::folder();
    let (program, server) = Program::start(directory.path(), descriptors).await;
    server.declare(CORP).await;
    let mut agents = Vec::new();
    for number in 0..5 {
        agents.push(server.joined(&format!("n{number}"), number, "many").await);
    }
    let mut watching = Vec::new();
    for mut agent in agents {
        agent.check_in(None).await.unwrap();
        let updates = agent.watch().await.unwrap();
        watching.push((agent, updates));
    }
    let mut agents = watching;
    let quiet = program.descriptors();
    let first = wave(&server, count).await;
    all_is_well(&server, &mut agents, 1).await;
    let second = wave(&server, count).await;
    all_is_well(&server, &mut agents, 2).await;
    eventually("whoever is silent is closed", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        (program.descriptors() <= quiet + 5).then_some(())
    })
    .await;
    all_is_well(&server, &mut agents, 3).await;
    let most = program.status("VmHWM:") << 10;
    assert!(most < MEMORY, "the server had {} MiB", most >> 20);
    let log = std::fs::read_to_string(&program.log).unwrap();
    assert!(log.lines().count() < 30, "the log stays small: {log}");
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_that_say_nothing_take_nothing_from_those_who_can_log_in() {
    let count = std::env::var("CONNECTIONS").map_or(1_000, |count| count.parse().expect("a number"));
    attacked(count, &getrlimit(Resource::Nofile).maximum.map_or("unlimited".into(), |most| most.to_string()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_few_descriptors_keeps_some_for_those_who_can_log_in() {
    attacked(400, "256").await;
}
