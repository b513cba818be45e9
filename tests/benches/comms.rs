//! What does the tunnel to the server cost: a check-in through it compared with one over TLS, and adding or
//! removing an agent as their number grows?
//!
//! Everything runs in a lab: `nmserver` on a host of its own, its device's process, and a host with a
//! registered agent. Blocks of calls through the tunnel and over TLS alternate. It measures the CPU time of
//! the server's two processes, and every byte of IP that passes the server's cable. `CALLS` (12000) changes
//! how many calls.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use end_to_end::filter::{bytes, count};
use end_to_end::load::cpu_of;
use end_to_end::{Mesh, device_of, in_lab};
use hyper_util::rt::TokioIo;
use ipnet::{IpNet, Ipv4Net};
use netclient::device::userspace::Userspace;
use netclient::device::{Device, DeviceStep, PeerSettings, PrivateKey};
use nmplan::lab;
use proto::token::Token;
use proto::wire::CheckInRequest;
use schema::scalars::WireGuardKey;
use socket2::{Domain, Socket, Type};
use test_agent::{Agent, KnownServer};
use tokio::net::TcpStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

const COMMS: u16 = 50_555;
/// Calls in a row over one transport.
const BLOCK: usize = 500;
/// How many agents there are when the cost of one more is measured.
const SIZES: [u32; 3] = [10, 100, 1_000];
/// How many are added and removed at each size.
const TIMES: u32 = 50;

fn main() {
    in_lab(measure());
}

async fn measure() {
    let mesh = Mesh::start().await;
    let network = r#"network "corp" { ipv4 "10.40.0.0/16"; access-key "k" uses="unlimited" }"#;
    let tokens = mesh.apply(network).await;
    let token = &tokens["corp/access-key/k"];
    let host = mesh.agent("a").await;
    host.register(token).await.expect("it registers");
    check_ins(&mesh, &host, token).await;
    one_more(&mesh, token).await;
    one_less(&mesh).await;
}

/// A transport from a host to the server.
struct Transport {
    name: &'static str,
    channel: Channel,
}

async fn check_ins(mesh: &Mesh, host: &lab::Agent, token: &str) {
    let calls: usize = std::env::var("CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(12_000);
    let server = mesh.server.host();
    let processes = [mesh.server.id().expect("it runs"), device_of(server, "nm-comms").expect("it runs")];
    println!(
        "{calls} check-ins over each transport in blocks of {BLOCK}; everything that the server sends and receives counts\n"
    );
    println!("| calls under way | transport | `nmserver` | device | together | bytes of IP |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for at_once in [1, 16] {
        let mut transports = Vec::new();
        for (name, device, at) in [
            ("tunnel", "nm-comms", SocketAddr::from(([10, 101, 0, 1], COMMS))),
            ("TLS", "eth0", SocketAddr::from((server.ipv4(), 50_051))),
        ] {
            let mut agents = Vec::new();
            for number in 0..at_once {
                let transport =
                    Transport { name, channel: channel(host, device, at, &mesh.known_server(token)) };
                agents.push((
                    agent(transport, mesh, token, number).await,
                    Request::new(CheckInRequest::default()),
                ));
            }
            transports.push((name, agents, [Duration::ZERO; 2], 0));
        }
        // Each has the revision in which all have joined, so that nothing is new to it.
        for (_, agents, ..) in &mut transports {
            for (agent, request) in &mut *agents {
                let whole = agent.whole().await.expect("a View");
                agent.take(&whole).expect("the server signs what it sends");
                *request = agent.check_in_request(None).await.expect("a session");
            }
            block(agents, BLOCK).await;
        }
        for _ in 0..calls.div_ceil(BLOCK) {
            for (_, agents, spent, passed) in &mut transports {
                count(server, host.host().ipv4(), COMMS);
                let before = processes.map(cpu_of);
                block(agents, BLOCK).await;
                for (spent, (before, after)) in spent.iter_mut().zip(before.iter().zip(processes.map(cpu_of)))
                {
                    *spent += after - *before;
                }
                *passed += bytes(server);
            }
        }
        let all = calls.next_multiple_of(BLOCK) as f64;
        for (name, _, spent, passed) in transports {
            let [server, device] = spent.map(|spent| spent.as_secs_f64() * 1e6 / all);
            let together = server + device;
            let passed = passed as f64 / all;
            println!(
                "| {at_once} | {name} | {server:.1} µs | {device:.1} µs | {together:.1} µs | {passed:.0} |"
            );
        }
    }
}

/// A channel whose one connection starts on a host, at one of its interfaces.
fn channel(host: &lab::Agent, device: &str, at: SocketAddr, server: &KnownServer) -> Channel {
    let stream = host.host().within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind_device(Some(device.as_bytes())).expect("the interface is there");
        socket.connect_timeout(&at.into(), Duration::from_secs(5)).expect("the server answers");
        socket.set_tcp_nodelay(true).expect("it is TCP");
        socket.set_nonblocking(true).expect("it is a socket");
        std::net::TcpStream::from(socket)
    });
    let stream = Arc::new(std::sync::Mutex::new(Some(stream)));
    let connect = tower::service_fn(move |_| {
        let stream = stream.lock().expect("nobody panicked").take().expect("it connects once");
        async move { TcpStream::from_std(stream).map(TokioIo::new) }
    });
    if device == "eth0" {
        return server.endpoint().connect_with_connector_lazy(connect);
    }
    Endpoint::from_static("http://server").connect_with_connector_lazy(connect)
}

async fn agent(transport: Transport, mesh: &Mesh, token: &str, number: u32) -> Agent {
    let Transport { name, channel } = transport;
    let token = token.parse::<Token>().expect("a token");
    let number = number + if name == "tunnel" { 0 } else { 100 };
    let mut agent = Agent::on(
        channel,
        mesh.known_server(token.reveal().expose()).signing_key,
        "corp",
        &format!("n{number}"),
        number,
    );
    let seed = proto::sign::from_seed(token.seed.expose());
    agent.join_with("k", &seed).await.expect("it joins");
    agent
}

/// A block of calls, spread over the agents.
async fn block(agents: &mut [(Agent, Request<CheckInRequest>)], calls: usize) {
    let each = calls.div_ceil(agents.len());
    let call_all = agents.iter_mut().map(async |(agent, request)| {
        for _ in 0..each {
            let again = Request::from_parts(
                request.metadata().clone(),
                Default::default(),
                request.get_ref().clone(),
            );
            let answer = agent.client.check_in(again).await.expect("an answer").into_inner();
            assert!(answer.update.is_none(), "nothing is new");
        }
    });
    futures_util::future::join_all(call_all).await;
}

/// How long a registration takes, by how many agents are registered.
async fn one_more(mesh: &Mesh, token: &str) {
    let server = mesh.known_server(token);
    let channel = server.channel();
    let seed = proto::sign::from_seed(token.parse::<Token>().expect("a token").seed.expose());
    println!("\n| agents | a registration, median of 9 |\n| --- | --- |");
    let mut times = Vec::new();
    for number in 1..=*SIZES.iter().max().expect("there are some") {
        let agent = 10_000 + number;
        let name = format!("r{number}");
        let mut agent = Agent::on(channel.clone(), server.signing_key, "corp", &name, agent);
        let start = Instant::now();
        agent.register(Some(("k", &seed))).await.expect("it registers");
        times.push(start.elapsed());
        // The number of registered agents that have not joined is limited.
        agent.join_with("k", &seed).await.expect("it joins");
        if SIZES.contains(&number) {
            println!("| {number} | {:.2} ms |", median(&times[times.len() - 9..]).as_secs_f64() * 1e3);
        }
    }
}

/// How long the device takes to add and to remove a peer, by how many it has: the only part that grows.
async fn one_less(mesh: &Mesh) {
    let host = mesh.agent("device").await;
    let socket = host.host().directory().join("bench.sock");
    println!("\n| peers | one more | one less |\n| --- | --- | --- |");
    let program = mesh.programs.netclient.clone();
    host.host().within(|| {
        let mut device = Userspace::spawn("nm-bench", &program, Path::new(&socket)).expect("a device");
        let mut added = 0;
        for size in SIZES.into_iter().chain([5_000]) {
            let mut steps: Vec<_> = (added..size).map(put).collect();
            steps.insert(0, DeviceStep::SetPrivateKey(PrivateKey([9; 32])));
            device.apply(&steps).expect("it takes them");
            added = size;
            let mut times = [Vec::new(), Vec::new()];
            for number in size..size + TIMES {
                let pair = [put(number), DeviceStep::RemovePeer(key(number))];
                for (step, times) in pair.into_iter().zip(&mut times) {
                    let start = Instant::now();
                    device.apply(&[step]).expect("it takes it");
                    times.push(start.elapsed());
                }
            }
            let [more, less] = times.map(|times| median(&times).as_secs_f64() * 1e3);
            println!("| {size} | {more:.2} ms | {less:.2} ms |");
        }
        device.remove().expect("it ends");
    });
}

fn key(number: u32) -> WireGuardKey {
    Agent::keys(50_000 + number).1
}

fn put(number: u32) -> DeviceStep {
    let address = std::net::Ipv4Addr::from(0x0a65_0000 + number + 2);
    let allowed_ips = [IpNet::V4(Ipv4Net::from(address))].into();
    DeviceStep::PutPeer(key(number), PeerSettings { endpoint: None, allowed_ips, keepalive: 0 })
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}
