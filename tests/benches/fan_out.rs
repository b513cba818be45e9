//! What does it cost to send every node of a mesh that one more has joined?
//!
//! The nodes are put into the database; then each watches over a connection of its own, as an agent would,
//! and one more joins. The server runs in a process of its own. `NODES` ("10 100 1000 5000") changes the
//! sizes.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use end_to_end::load::{Serving, name, raise_file_limit, seed, serve};
use prost::Message;
use proto::wire::Update;
use test_agent::Agent;
use tokio::sync::Semaphore;
use tonic::Streaming;

/// How many agents connect at the same time.
const CONNECTING: usize = 64;
/// How many agents have their whole View and check that the delta leads to the same as the server's whole
/// View.
const CHECKING: u32 = 3;
/// The longest that it may take until all have the update.
const TIMEOUT: Duration = Duration::from_secs(120);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some([what, folder]) = arguments.get(1..3)
        && what == "serve"
    {
        return serve(Path::new(folder));
    }
    raise_file_limit();
    let sizes = std::env::var("NODES").unwrap_or_else(|_| "10 100 1000 5000".into());
    println!(
        "| nodes | payload for each, at most | all together | all have it after | half have it after | server memory | server CPU |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for size in sizes.split_whitespace() {
        let size = size.parse().expect("NODES holds numbers");
        tokio::runtime::Runtime::new().expect("a runtime").block_on(one_more(size));
    }
}

async fn one_more(size: u32) {
    let folder = end_to_end::load::private_folder();
    seed(folder.path(), size);
    let server = Serving::start(&["serve", &folder.path().display().to_string()]);
    let watching = watch_all(&server, size).await;
    let mut newcomer = Agent::new(&server.known(), "corp", &name(size), size);
    newcomer.challenge().await.expect("it is connected");
    let cpu = server.cpu();
    let start = Instant::now();
    let received = watching.into_iter().map(|watching| tokio::spawn(watching.receive(start)));
    let received: Vec<_> = received.collect();
    newcomer.join("k").await.expect("it joins");
    let mut bytes = Vec::new();
    let mut times = Vec::new();
    for update in received {
        let (payload, after) = update.await.expect("it was received");
        bytes.push(payload);
        times.push(after);
    }
    times.sort();
    let cpu = server.cpu() - cpu;
    let most = bytes.iter().max().expect("there are nodes");
    let total: usize = bytes.iter().sum();
    println!(
        "| {size} | {most} bytes | {} KiB | {:.0} ms | {:.0} ms | {} MiB | {:.0} ms |",
        total.div_ceil(1 << 10),
        times[times.len() - 1].as_secs_f64() * 1e3,
        times[times.len() / 2].as_secs_f64() * 1e3,
        server.memory() >> 20,
        cpu.as_secs_f64() * 1e3,
    );
}

/// An agent that waits for an update.
struct Watching {
    agent: Agent,
    updates: Streaming<Update>,
    checks: bool,
}

async fn watch_all(server: &Serving, size: u32) -> Vec<Watching> {
    let known = server.known();
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let at = server.position();
    let watch = |number: u32| {
        let known = known.clone();
        let connecting = Arc::clone(&connecting);
        tokio::spawn(async move {
            let _turn = connecting.acquire().await.expect("it stays open");
            let mut agent = Agent::new(&known, "corp", &name(number), number);
            let checks = number < CHECKING;
            if checks {
                let whole = agent.whole().await.expect("it is in the network");
                agent.take(&whole).expect("it is signed");
            }
            agent.at = at;
            let updates = agent.watch().await.expect("a stream");
            Watching { agent, updates, checks }
        })
    };
    let mut all = Vec::new();
    for watching in (0..size).map(watch).collect::<Vec<_>>() {
        all.push(watching.await.expect("it watches"));
    }
    all
}

impl Watching {
    /// The size of the update, and when it came.
    async fn receive(mut self, start: Instant) -> (usize, Duration) {
        let update = tokio::time::timeout(TIMEOUT, self.updates.message()).await.expect("an update in time");
        let after = start.elapsed();
        let update = update.expect("the stream is whole").expect("the stream goes on");
        if self.checks {
            self.agent.take(&update).expect("it applies");
            let by_delta = self.agent.view.clone();
            let whole = self.agent.whole().await.expect("it is in the network");
            self.agent.take(&whole).expect("it is signed");
            assert_eq!(by_delta, self.agent.view, "a delta leads to the same as the whole");
        }
        (update.encoded_len(), after)
    }
}
