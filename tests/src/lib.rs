//! What the end-to-end tests stand on: real programs, each in network namespaces of its own.
//!
//! A test enters the lab (`nmplan::lab::enter_test`), starts a [`Mesh`] (a server on its host), declares something, and puts
//! machines on further hosts. Conditions are polled ([`eventually`]), never slept for. Everything ends with the test.

pub mod cost;
pub mod load;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nmplan::lab::{Machine, Programs, Server, Underlay};

/// A server in a lab, and what is declared for it.
pub struct Mesh {
    /// What connects the hosts.
    pub underlay: Underlay,
    /// The programs.
    pub programs: Programs,
    /// The server.
    pub server: Server,
}

/// Tokens by the ids of their keys.
pub type Tokens = BTreeMap<String, String>;

/// Runs a test's future to its end.
pub fn in_runtime<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(test)
}

/// Polls a condition until it holds; gives how long that took.
///
/// # Panics
///
/// When it does not hold within `patience`.
pub async fn eventually(what: &str, patience: Duration, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

/// How often a test repeats a fault: `ROUNDS`, by default three times.
pub fn rounds() -> usize {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

impl Mesh {
    /// Starts a server.
    pub async fn start() -> Self {
        let programs = Programs::find().expect("the programs are built");
        let underlay = Underlay::new().await.expect("an underlay");
        let server = Server::start(&underlay, &programs, &[]).await.expect("a server that serves");
        Self { underlay, programs, server }
    }

    /// Makes a machine without networks.
    pub async fn machine(&self, name: &str) -> Machine {
        Machine::new(&self.underlay, &self.programs, name).await.expect("a host")
    }

    /// Runs nmplan as an admin of the server.
    pub async fn nmplan(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.programs.nmplan);
        command.args(arguments).envs(self.server.environment()).stdin(std::process::Stdio::null());
        tokio::process::Command::from(command).output().await.expect("nmplan runs")
    }

    /// Applies a text in KDL as all that is declared; gives the tokens of every key made so far.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn apply(&self, text: &str) -> Tokens {
        let (file, keys) = (self.file("mesh.kdl"), self.file("keys.json"));
        std::fs::write(&file, text).expect("a file is written");
        let [file, keys] = [file, keys].map(|path| path.display().to_string());
        let output = self.nmplan(&["apply", "--project", "test", "-f", &file, "-y", "--keys-to", &keys]).await;
        assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
        let tokens = std::fs::read(keys).unwrap_or_else(|_| b"{}".to_vec());
        serde_json::from_slice(&tokens).expect("tokens by id")
    }

    /// A file that the lab and all hosts see.
    pub fn file(&self, name: &str) -> PathBuf {
        self.underlay.directory().join(name)
    }
}

/// Bytes that a program printed, as text.
pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The addresses that an agent says its machine has in a network.
pub async fn addresses(machine: &Machine, network: &str) -> Vec<IpAddr> {
    let status = machine.status().await.expect("the agent answers");
    let networks = status["networks"].as_array().cloned().unwrap_or_default();
    let found = networks.iter().find(|it| it["name"] == network);
    let addresses = found.and_then(|it| it["addresses"].as_array().cloned()).unwrap_or_default();
    addresses.iter().filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// Waits until every machine pings every other at each of its addresses in a network.
///
/// # Panics
///
/// When one does not within 20 seconds.
pub async fn all_ping_all(machines: &[Machine], network: &str) {
    for to in machines {
        let addresses = addresses(to, network).await;
        assert!(!addresses.is_empty(), "{} is in {network}", to.host().name());
        for from in machines {
            for address in &addresses {
                let what = format!("{} pings {} at {address}", from.host().name(), to.host().name());
                eventually(&what, Duration::from_secs(20), async || {
                    let answer = from.host().ping(*address, Duration::from_millis(500)).await;
                    answer.expect("sockets").is_some()
                })
                .await;
            }
        }
    }
}
