//! What the end-to-end tests are built on: real programs, each in network namespaces of its own.
//!
//! A test enters the lab (`nmplan::lab::enter_test`), starts a [`Mesh`] (a server on its host), declares
//! something, and puts agents on further hosts. Conditions are polled ([`eventually`]), never slept for.
//! Everything ends with the test.

pub mod container;
pub mod corp;
pub mod cost;
pub mod filter;
pub mod forge;
pub mod gateways;
pub mod guest;
pub mod host_state;
pub mod lan;
pub mod load;
pub mod loopback;
pub mod marked;
pub mod matrix;
pub mod meshes;
pub mod name_server;
pub mod roles;
pub mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nmplan::lab::{self, Agent, Host, Programs, Server, Underlay};
use proto::token::Token;
use test_agent::KnownServer;

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

/// Runs what a program is for in a lab, which the program enters by running itself again.
///
/// # Panics
///
/// When there can be no lab, or it failed there.
pub fn in_lab(act: impl Future<Output = ()>) {
    if lab::inside() {
        return in_runtime(act);
    }
    let own = std::env::current_exe().expect("this program has a file");
    let status = lab::enter(Command::new(own)).expect("a lab");
    assert!(status.success(), "it failed in the lab");
}

/// Polls a condition until it holds; returns how long that took.
///
/// # Panics
///
/// When it does not hold within `timeout`, times [`patience`].
pub async fn eventually(what: &str, timeout: Duration, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let timeout = timeout * patience();
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < timeout, "not within {timeout:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

/// Cargo, as it runs this test. Without what it tells a test of its package: build scripts that look at that
/// (ring's does) would run again, and nearly everything would be built anew.
///
/// # Panics
///
/// Where Cargo does not run the test.
pub fn cargo() -> Command {
    const OF_A_TEST: [&str; 4] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_CRATE_", "CARGO_BIN_"];
    let mut command = Command::new(std::env::var_os("CARGO").expect("the test is run by Cargo"));
    for (name, _) in std::env::vars_os() {
        if OF_A_TEST.iter().any(|of| name.to_string_lossy().starts_with(of)) {
            command.env_remove(name);
        }
    }
    command
}

/// A token with its last character mistyped.
pub fn mistyped(token: &str) -> String {
    let (kept, last) = token.split_at(token.len() - 1);
    format!("{kept}{}", if last == "x" { "y" } else { "x" })
}

/// How many times as long as on a computer of its own a test waits: `PATIENCE`, by default once. An emulated
/// guest is several times slower.
pub fn patience() -> u32 {
    std::env::var("PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// How often a test repeats a fault: `ROUNDS`, by default three times.
pub fn rounds() -> usize {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

impl Mesh {
    /// Starts a server.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with settings: environment variables as `nmserver` reads them.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        let programs = Programs::find().expect("the programs are built");
        let underlay = Underlay::new().await.expect("an underlay");
        let server = Server::start(&underlay, &programs, settings).await.expect("a server that serves");
        Self { underlay, programs, server }
    }

    /// What a token lets agents without devices know of the server.
    pub fn known_server(&self, token: &str) -> KnownServer {
        let token: Token = token.parse().expect("a token");
        let ca = std::fs::read_to_string(self.server.data().join("ca.pem")).expect("the CA is there");
        let at = (self.server.host().ipv4(), 50_051).into();
        KnownServer { at, ca, signing_key: token.signing_key }
    }

    /// Makes a host with an agent that is in no network.
    pub async fn agent(&self, name: &str) -> Agent {
        Agent::new(&self.underlay, &self.programs, name).await.expect("a host")
    }

    /// Runs nmplan as an admin of the server.
    pub async fn nmplan(&self, arguments: &[&str]) -> Output {
        self.nmplan_at(&self.server, arguments).await
    }

    async fn nmplan_at(&self, server: &Server, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.programs.nmplan);
        command.args(arguments).envs(server.environment()).stdin(std::process::Stdio::null());
        tokio::process::Command::from(command).output().await.expect("nmplan runs")
    }

    /// Applies a text in KDL as all that is declared; returns the tokens of every key made so far.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn apply(&self, text: &str) -> Tokens {
        self.apply_at(&self.server, text).await
    }

    /// The same, past a rule that would refuse it.
    pub async fn apply_past(&self, rule: &str, text: &str) -> Tokens {
        self.applied(&self.server, text, &["--allow", rule]).await
    }

    /// The same at another server.
    pub async fn apply_at(&self, server: &Server, text: &str) -> Tokens {
        self.applied(server, text, &[]).await
    }

    async fn applied(&self, server: &Server, text: &str, more: &[&str]) -> Tokens {
        let (file, keys) = (self.file("mesh.kdl"), self.file("keys.json"));
        std::fs::write(&file, text).expect("a file is written");
        let [file, keys] = [file, keys].map(|path| path.display().to_string());
        let mut arguments = vec!["apply", "--project", "test", "-f", &file, "-y", "--keys-to", &keys];
        arguments.extend(more);
        let output = self.nmplan_at(server, &arguments).await;
        assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
        let tokens = std::fs::read(keys).unwrap_or_else(|_| b"{}".to_vec());
        serde_json::from_slice(&tokens).expect("tokens by id")
    }

    /// A file that the lab and all hosts see.
    pub fn file(&self, name: &str) -> PathBuf {
        self.underlay.directory().join(name)
    }
}

/// The device process of an interface of a host.
pub fn device_of(host: &Host, interface: &str) -> Option<u32> {
    host.processes().into_iter().find(|&pid| holds_device(pid, interface))
}

/// Whether a process holds the device of an interface of that name, in whatever network.
pub fn holds_device(pid: u32, interface: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = String::from_utf8_lossy(&line).split('\0').map(ToOwned::to_owned).collect();
    words.iter().any(|word| word == "device") && words.iter().any(|word| word == interface)
}

/// Ends the device of an interface of a host: kills its process or, if it is the kernel's, deletes it.
///
/// # Panics
///
/// When there is none.
pub fn kill_device(host: &Host, interface: &str) {
    let Some(device) = device_of(host, interface) else {
        assert_eq!(kind_of(&link(host, interface)), "wireguard", "it has neither a process nor the kernel's");
        let mut command = host.command("ip");
        command.args(["link", "delete", "dev", interface]);
        assert!(command.status().expect("ip runs").success());
        return;
    };
    kill(device);
}

/// Kills a process.
///
/// # Panics
///
/// When there is none of that number.
pub fn kill(process: u32) {
    let process = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
    let process = process.expect("a process number");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("it is killed");
}

/// Puts the files of the database in one folder in place of those in another.
///
/// # Panics
///
/// When one cannot be read or written.
pub fn copy_database(from: &Path, to: &Path) {
    let files = |folder: &Path| {
        let all = std::fs::read_dir(folder).expect("a folder").flatten();
        all.filter(|file| file.file_name().to_string_lossy().starts_with("nmserver.db")).collect::<Vec<_>>()
    };
    for file in files(to) {
        std::fs::remove_file(file.path()).expect("it is removed");
    }
    for file in files(from) {
        std::fs::copy(file.path(), to.join(file.file_name())).expect("it is copied");
    }
}

/// Bytes that a program printed, as text.
pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program on a host to its end, given as words with one space between them; returns what it printed.
///
/// # Panics
///
/// When it fails.
pub async fn run(host: &Host, line: &str) -> String {
    let mut words = line.split(' ');
    let mut command = host.command(words.next().expect("a program"));
    command.args(words);
    let output = host.run(command).await.expect("it is installed");
    assert!(output.status.success(), "{line}: {}", text_of(&output.stderr));
    text_of(&output.stdout)
}

/// Runs programs on a host, one after the other.
///
/// # Panics
///
/// When one fails.
pub async fn run_all(host: &Host, lines: &[&str]) {
    for line in lines {
        run(host, line).await;
    }
}

/// Waits until every interface of a host that is up has the address that the kernel gives it, and IPv6 has found out
/// that nobody else has those of the host.
///
/// # Panics
///
/// When it has not within 5 seconds.
pub async fn addresses_are_its_own(host: &Host) {
    let name = |line: &str| -> Option<String> {
        Some(line.split_whitespace().nth(1)?.trim_end_matches(':').split('@').next()?.to_owned())
    };
    eventually("its addresses are its own", Duration::from_secs(5), async || {
        let links = run(host, "ip -oneline link show up").await;
        // The kernel gives none to its loopback and its WireGuard.
        let mut links = links.lines().filter(|line| line.contains("<BROADCAST") && line.contains("LOWER_UP"));
        let given = run(host, "ip -6 -oneline address show scope link -tentative").await;
        // What was added by hand is there at once.
        let given: BTreeSet<_> = given.lines().filter(|line| !line.contains(" nodad ")).map(name).collect();
        links.all(|link| given.contains(&name(link)))
            && run(host, "ip -6 address show tentative").await.is_empty()
    })
    .await;
}

/// How many packets an interface of a host has received and sent.
///
/// # Panics
///
/// When there is no such interface.
pub fn packets(host: &Host, interface: &str) -> u64 {
    // That of the process would be of another network.
    let listed = host.read("/proc/thread-self/net/dev").expect("the kernel counts packets");
    let mut lines = listed.lines().filter_map(|line| line.trim().split_once(':'));
    let (_, counts) = lines.find(|(name, _)| *name == interface).expect("there is such an interface");
    let counts: Vec<u64> = counts.split_whitespace().map(|count| count.parse().expect("a number")).collect();
    counts[1] + counts[9]
}

/// The addresses in a network that an agent reports.
pub async fn addresses(agent: &Agent, network: &str) -> Vec<IpAddr> {
    let status = agent.status().await.expect("the agent answers");
    let networks = status["networks"].as_array().cloned().unwrap_or_default();
    let found = networks.iter().find(|it| it["name"] == network);
    let addresses = found.and_then(|it| it["addresses"].as_array().cloned()).unwrap_or_default();
    addresses.iter().filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// What kind of link the kernel says that an interface of a host is: `wireguard`, or `tun` for a userspace
/// device.
///
/// # Panics
///
/// When there is no such interface.
pub async fn link_kind(host: &Host, interface: &str) -> String {
    kind_of(&link(host, interface)).to_owned()
}

/// An interface of a host, as `ip -json -details link` shows it.
///
/// # Panics
///
/// When there is no such interface.
pub fn link(host: &Host, interface: &str) -> serde_json::Value {
    let mut command = host.command("ip");
    command.args(["-json", "-details", "link", "show", "dev", interface]);
    let output = command.output().expect("ip runs");
    let mut links: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("there is such an interface");
    links[0].take()
}

fn kind_of(link: &serde_json::Value) -> &str {
    link["linkinfo"]["info_kind"].as_str().expect("it has a kind")
}

/// Asserts that devices run where `NETCLIENT_DEVICE` wants them, if it is set; a guest sets it.
async fn assert_devices(agents: impl Iterator<Item = &Agent>, network: &str) {
    let Ok(wanted) = std::env::var("NETCLIENT_DEVICE") else { return };
    for agent in agents {
        let status = agent.status().await.expect("the agent answers");
        let networks = status["networks"].as_array().cloned().unwrap_or_default();
        let found = networks.iter().find(|it| it["name"] == network).expect("it is in the network");
        assert_eq!(found["device"], wanted.as_str());
        let kind = link_kind(agent.host(), found["interface"].as_str().expect("a name")).await;
        assert_eq!(kind, if wanted == "kernel" { "wireguard" } else { "tun" });
    }
}

/// Waits until every agent's host pings every other at each of its addresses in a network.
///
/// # Panics
///
/// When one does not within 20 seconds.
pub async fn all_ping_all(agents: &[Agent], network: &str) {
    each_pings_whom_it_may(agents.iter(), network, |_, _| true).await;
}

/// Waits until every agent's host pings those of the others that it may, at each of their addresses in a
/// network, and none that it may not.
///
/// # Panics
///
/// When one does not within 20 seconds, or when one still pings another within 5 seconds of that.
pub async fn each_pings_whom_it_may<'a>(
    agents: impl Iterator<Item = &'a Agent> + Clone,
    network: &str,
    may: impl Fn(&Agent, &Agent) -> bool,
) {
    assert_devices(agents.clone(), network).await;
    let mut refused = Vec::new();
    for to in agents.clone() {
        let addresses = addresses(to, network).await;
        assert!(!addresses.is_empty(), "{} is in {network}", to.host().name());
        for from in agents.clone() {
            for address in &addresses {
                if from.host().name() != to.host().name() && !may(from, to) {
                    refused.push((from, *address));
                    continue;
                }
                let what = format!("{} pings {} at {address}", from.host().name(), to.host().name());
                eventually(&what, Duration::from_secs(20), async || pings(from, *address).await).await;
            }
        }
    }
    eventually("nobody pings whom it may not", Duration::from_secs(5), async || {
        let asked = refused.iter().map(|(from, address)| pings(from, *address));
        futures_util::future::join_all(asked).await.iter().all(|answered| !answered)
    })
    .await;
}

/// Whether an agent's host has an answer to a ping within half a second.
async fn pings(agent: &Agent, address: IpAddr) -> bool {
    agent.host().ping(address, Duration::from_millis(500)).await.expect("sockets").is_some()
}
