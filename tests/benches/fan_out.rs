//! What does it cost to send every node of a mesh that one more has joined?
//!
//! The nodes are put into the database; then each watches over a connection of its own, as an agent would,
//! and one more joins. The server runs in a process of its own. `NODES` ("10 100 1000 5000") changes the
//! sizes.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::path::Path;

use end_to_end::load::{Serving, name, raise_file_limit, seed, serve};
use end_to_end::watching::{all_receive, watch_all};
use jiff::Timestamp;
use test_agent::Agent;

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
    seed(folder.path(), size, &[]);
    let server = Serving::start(&["serve", &folder.path().display().to_string()]);
    let watching = watch_all(&server, 0..size).await;
    let mut newcomer = Agent::new(&server.known(), "corp", &name(size), size);
    newcomer.challenge().await.expect("it is connected");
    let cpu = server.cpu();
    let start = Timestamp::now();
    let join = async { newcomer.join("k").await.map(drop).expect("it joins") };
    let (_watching, received) = all_receive(watching, join).await;
    let mut times: Vec<_> = received.iter().map(|it| it.at.duration_since(start)).collect();
    times.sort();
    let cpu = server.cpu() - cpu;
    let most = received.iter().map(|it| it.bytes).max().expect("there are nodes");
    let total: usize = received.iter().map(|it| it.bytes).sum();
    println!(
        "| {size} | {most} bytes | {} KiB | {:.0} ms | {:.0} ms | {} MiB | {:.0} ms |",
        total.div_ceil(1 << 10),
        times[times.len() - 1].as_secs_f64() * 1e3,
        times[times.len() / 2].as_secs_f64() * 1e3,
        server.memory() >> 20,
        cpu.as_secs_f64() * 1e3,
    );
}
