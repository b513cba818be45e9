//! What does it cost to keep the files for a name server current in a large network?
//!
//! A server in this process serves a network of nodes; one more joins, and the time from the moment that the
//! join is committed until the zone has its name is measured. Beside it stands what it takes to write as many
//! bytes to the same disk. `NODES` (10000) changes the size.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use end_to_end::load::{name, private_folder, seed, settings};
use end_to_end::meshes::{median, number, timed};
use jiff::Timestamp;
use netclient::files::write_whole;
use nmserver::config::Settings;
use nmserver::names::{FOLDER, NameFiles};
use test_agent::{Agent, KnownServer};
use tokio::sync::watch;

/// How many nodes join, one after the other; medians count.
const ROUNDS: u32 = 11;

fn main() {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(run());
}

async fn run() {
    let nodes = number("NODES", 10_000);
    let folder = private_folder();
    seed(folder.path(), nodes, &[]);
    let settings = Settings { dns_mode: true, ..settings(folder.path()) };
    let server = nmserver::open(settings.clone()).await.expect("a server");
    let service = server.service().clone();
    let ca = std::fs::read_to_string(folder.path().join("ca.pem")).expect("the CA is there");
    let at = server.addresses().1.expect("it serves agents");
    let known = KnownServer { at, ca, signing_key: service.info().signing_key };
    let files = folder.path().join(FOLDER);
    let zone = files.join("corp.zone");
    let (end, shutdown) = watch::channel(false);
    let serving = tokio::spawn(server.run(shutdown));

    let mut states = service.states();
    let (mut times, mut written) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let before = inodes(&files);
        let name = name(nodes + round);
        let mut newcomer = Agent::new(&known, "corp", &name, nodes + round);
        newcomer.challenge().await.expect("it is connected");
        states.borrow_and_update();
        let committed = async {
            states.changed().await.expect("the server serves");
            Instant::now()
        };
        let (committed, joined) = tokio::join!(committed, newcomer.join("k"));
        joined.expect("it joins");
        let line = format!("\n{name} 60 IN AAAA ");
        while !std::fs::read_to_string(&zone).expect("there is one").contains(&line) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(committed.elapsed());
        let changed = inodes(&files).into_iter().filter(|file| !before.contains(file));
        written = changed.map(|(_, _, size)| size).sum();
        // The server writes once a second: a change soon after another one waits.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
    let mut again = NameFiles::of(&settings).expect("it is on");
    let state = states.borrow().clone();
    let nothing = (0..ROUNDS).map(|_| timed(|| again.pass(&state, Timestamp::now())));
    let nothing = median(nothing.collect());
    let bytes = vec![0; usize::try_from(written).expect("it was in memory")];
    let elsewhere = folder.path().join("elsewhere");
    let disk = (0..ROUNDS).map(|_| timed(|| write_whole(&elsewhere, &bytes, 0o644).expect("there is room")));
    let disk = median(disk.collect());
    println!("| {nodes} nodes with two addresses each | |\n| --- | --- |");
    println!(
        "| from the commit of one more name until it is in the zone | {:.1} ms |",
        millis(median(times))
    );
    println!("| bytes written for it | {written} |");
    println!("| a pass that finds everything as it should be | {:.1} ms |", millis(nothing));
    println!("| as many bytes written to the same disk | {:.1} ms |", millis(disk));
    end.send_replace(true);
    serving.await.expect("it ends");
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The files in a folder: their names, inodes and sizes in bytes.
fn inodes(folder: &Path) -> Vec<(String, u64, u64)> {
    let files = std::fs::read_dir(folder).expect("it is there").flatten();
    let file = |file: std::fs::DirEntry| {
        let found = file.metadata().expect("it is there");
        (file.file_name().to_string_lossy().into_owned(), found.ino(), found.size())
    };
    files.map(file).collect()
}
