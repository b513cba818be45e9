//! What does a mesh cost on the kernel's devices and on userspace ones, compared with the bare cable below?
//!
//! It runs in a guest, whose kernel has WireGuard (see the crate `vm`). Emulated, all figures are far from those
//! of a computer; what they are to each other is what counts. Two hosts have kernel devices, two others have
//! userspace ones; the ways are measured in turns. `SECONDS` (5) changes how long one transfer takes.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use end_to_end::{Mesh, addresses, all_ping_all, guest, in_runtime, link_kind};
use nmplan::lab::{self, Agent, Host};
use vm::System;

/// How often each way is measured.
const ROUNDS: usize = 3;
/// Echo requests for one median.
const PINGS: usize = 200;

fn main() {
    let own = std::env::current_exe().expect("this program has a file");
    if lab::inside() {
        return in_runtime(measure());
    }
    if guest::inside() {
        let status = lab::enter(Command::new(own)).expect("a lab");
        assert!(status.success(), "it failed in the lab");
        return;
    }
    let program = PathBuf::from(guest::PROGRAMS).join("benches/device");
    let command = vec![program.display().to_string()];
    let job = guest::job(command, vec![(own, program)], &["SECONDS"], Duration::from_secs(600));
    if let Err(error) = vm::run(System::Small, &job) {
        panic!("{error}");
    }
}

/// A way from one host to another.
struct Way<'a> {
    name: &'static str,
    from: &'a Host,
    to: &'a Host,
    address: IpAddr,
    costs: Vec<Cost>,
}

/// What was measured of a way in one round.
#[derive(Clone, Copy)]
struct Cost {
    /// Bytes per second of one TCP connection.
    throughput: f64,
    /// Seconds of the CPUs for each byte, in all that the machine does.
    cpu: f64,
    /// Seconds from an echo request to its answer, the median.
    round_trip: f64,
}

async fn measure() {
    let mesh = Mesh::start().await;
    let text = r#"
        network "kernel" { ipv4 "10.40.0.0/24"; access-key "k" uses="unlimited" }
        network "userspace" { ipv4 "10.41.0.0/24"; access-key "k" uses="unlimited" }
    "#;
    let tokens = mesh.apply(text).await;
    let mut agents = Vec::new();
    for (network, names, kind) in [("kernel", ["a", "b"], "wireguard"), ("userspace", ["c", "d"], "tun")] {
        let mut pair = Vec::new();
        for name in names {
            let mut agent = mesh.agent(name).await;
            agent.set("NETCLIENT_DEVICE", network);
            agent.join(&tokens[&format!("{network}/access-key/k")], &[]).await.expect("it joins");
            agent.start_daemon(&[]).expect("the agent starts");
            pair.push(agent);
        }
        all_ping_all(&pair, network).await;
        assert_eq!(link_kind(pair[0].host(), &format!("nm-{network}")).await, kind);
        agents.push(pair);
    }
    let mut ways = vec![Way::new("bare veth", &agents[0], agents[0][1].host().ipv4().into())];
    for (name, pair, network) in
        [("kernel device", &agents[0], "kernel"), ("userspace device", &agents[1], "userspace")]
    {
        ways.push(Way::new(name, pair, addresses(&pair[1], network).await[0]));
    }
    for _ in 0..ROUNDS {
        for way in &mut ways {
            let cost = way.measure().await;
            way.costs.push(cost);
        }
    }
    report(&ways);
}

impl<'a> Way<'a> {
    fn new(name: &'static str, pair: &'a [Agent], address: IpAddr) -> Self {
        Self { name, from: pair[0].host(), to: pair[1].host(), address, costs: Vec::new() }
    }

    async fn measure(&self) -> Cost {
        let mut times = Vec::new();
        for _ in 0..PINGS {
            let answer = self.from.ping(self.address, Duration::from_secs(1)).await.expect("sockets");
            times.extend(answer.map(|time| time.as_secs_f64()));
        }
        let before = busy();
        let (bytes, time) = tokio::task::block_in_place(|| transfer(self));
        Cost {
            throughput: bytes as f64 / time.as_secs_f64(),
            cpu: (busy() - before) / bytes as f64,
            round_trip: median(times),
        }
    }
}

/// Sends over one TCP connection for a while; returns the bytes that arrived, and the time.
fn transfer(way: &Way<'_>) -> (u64, Duration) {
    let seconds = std::env::var("SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(5);
    let listener = way.to.within(|| TcpListener::bind((way.address, 0))).expect("it listens");
    let at = listener.local_addr().expect("it has an address");
    let start = Instant::now();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("it is called");
        let mut buffer = vec![0; 1 << 16];
        let mut bytes = 0;
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            bytes += length as u64;
        }
        bytes
    });
    way.from.within(|| {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10)).expect("it answers");
        let block = vec![7; 1 << 16];
        while start.elapsed() < Duration::from_secs(seconds) {
            stream.write_all(&block).expect("it is sent");
        }
    });
    (receiver.join().expect("it ends"), start.elapsed())
}

/// The seconds that all CPUs together have been busy since the start, in whatever they did (proc_stat(5)): the
/// kernel's own device works in no process.
fn busy() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").expect("there is /proc");
    let line = text.lines().next().expect("the sum of all CPUs comes first");
    let times: Vec<f64> = line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
    // The fourth is idle, the fifth waits.
    let busy: f64 = times.iter().take(8).sum::<f64>() - times[3] - times[4];
    busy / rustix::param::clock_ticks_per_second() as f64
}

fn report(ways: &[Way<'_>]) {
    let of = |way: &Way<'_>, what: fn(&Cost) -> f64| median(way.costs.iter().map(what).collect());
    let against = |way, what| of(way, what) / of(&ways[0], what);
    println!("| way | throughput | CPU for a byte | round trip |\n| --- | --- | --- | --- |");
    for way in ways {
        let throughput = of(way, |cost| cost.throughput) * 8.0 / 1e6;
        let cpu = of(way, |cost| cost.cpu) * 1e9;
        let round_trip = of(way, |cost| cost.round_trip) * 1e3;
        println!(
            "| {} | {:.2} ({throughput:.0} Mbit/s) | {:.1} ({cpu:.1} ns) | {:.1} ({round_trip:.2} ms) |",
            way.name,
            against(way, |cost| cost.throughput),
            against(way, |cost| cost.cpu),
            against(way, |cost| cost.round_trip),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
