//! A server in a process of its own, so that its costs can be distinguished from those of its clients.
//!
//! A benchmark starts itself again ([`Serving::start`]); the copy serves ([`serve`], [`report`]) until its
//! input ends.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use nmserver::config::{self, Settings};
use nmserver::core::authorize::Grant;
use nmserver::identity::{self, DataDir};
use nmserver::state::State;
use nmserver::store::sqlite::Sqlite;
use nmserver::store::{Batch, LogEntry, Store, Stored, rows};
use nmserver::tokens;
use proto::position::Position;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use schema::inventory::{Endpoints, Joined, KeyStatus, NodeId};
use schema::snapshot::Revision;
use schema::world::{ResourceDocument, World};
use serde_json::Value;
use test_agent::{Agent, KnownServer};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A folder that a server may keep its data in: its own user's alone.
pub fn private_folder() -> tempfile::TempDir {
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir().expect("a folder")
}

/// The CPU time that all threads of a process have used, in user and kernel mode (clock_getcpuclockid(3)).
pub fn cpu_of(process: u32) -> Duration {
    let process = Pid::from_raw(process.try_into().expect("ids are small"));
    let now = clock_getcpuclockid(process).and_then(nix::time::ClockId::now).expect("it runs");
    now.into()
}

/// The memory that a process holds, in bytes.
pub fn memory_of(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident set");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// The copy of this program that serves. It ends with this value.
pub struct Serving {
    process: Child,
    _input: ChildStdin,
    /// What it reported when it was ready.
    pub reported: Value,
}

impl Serving {
    /// Starts this program again with arguments, and waits for its report.
    pub fn start(arguments: &[&str]) -> Self {
        let own = std::env::current_exe().expect("this program has a file");
        let mut command = Command::new(own);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("it starts");
        let input = process.stdin.take().expect("its input is a pipe");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("its output is a pipe"))
            .read_line(&mut line)
            .expect("it reports");
        let reported =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("the server did not start: {line:?}"));
        Self { process, _input: input, reported }
    }

    /// What agents know of it.
    pub fn known(&self) -> KnownServer {
        let text = |name: &str| self.reported[name].as_str().unwrap_or_default().to_owned();
        let at = text("at").parse().expect("an address");
        KnownServer { at, ca: text("ca"), signing_key: text("signing_key").parse().expect("a key") }
    }

    /// The position of its newest revision.
    pub fn position(&self) -> Position {
        serde_json::from_value(self.reported["position"].clone()).expect("a position")
    }

    /// The CPU time that it has used; see [`cpu_of`].
    pub fn cpu(&self) -> Duration {
        cpu_of(self.process.id())
    }

    /// The memory that it holds, in bytes.
    pub fn memory(&self) -> u64 {
        memory_of(self.process.id())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In the copy: reports what its starter must know.
pub fn report(what: &Value) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{what}").and_then(|()| output.flush()).expect("the starter reads");
}

/// In the copy: returns when the starter has ended.
pub fn wait_for_the_end() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// In the copy: the settings of a server on loopback, with ports that are free.
pub fn settings(directory: &Path) -> Settings {
    let value = |name: &str| match name {
        "DATA_DIR" => Some(directory.display().to_string()),
        "BIND" | "SERVER_HOST" => Some("127.0.0.1".into()),
        // They would change this host.
        "COMMS" | "CLIENT_MODE" | "DNS_MODE" => Some("off".into()),
        _ => None,
    };
    Settings { api_port: 0, grpc_port: 0, ..config::load(None, value).expect("the settings are good") }
}

/// In the copy: serves what is in a directory, as `nmserver` does, until the starter has ended.
pub fn serve(directory: &Path) {
    raise_file_limit();
    tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
        let server = nmserver::open(settings(directory)).await.expect("a server");
        let info = server.service().info();
        let position = server.service().position();
        let ca = std::fs::read_to_string(directory.join("ca.pem")).expect("the CA is there");
        let at = server.addresses().1.expect("it serves agents").to_string();
        let signing_key = info.signing_key.to_string();
        report(&serde_json::json!({
            "at": at, "ca": ca, "signing_key": signing_key, "position": position,
        }));
        let (end, shutdown) = watch::channel(false);
        let ended = async {
            let _ = tokio::task::spawn_blocking(wait_for_the_end).await;
            end.send_replace(true);
        };
        tokio::join!(server.run(shutdown), ended);
    });
}

/// Raises this program's limit of open files as far as it may.
pub fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .expect("the limit is there to be reached");
}

/// A world as a server would keep it, in the database of a directory: a network with both families, a key,
/// this many nodes that have joined, and what else is declared, as documents of the REST API.
pub fn seed(directory: &Path, nodes: u32, declared: &[Value]) {
    let _ = keep(directory, |before| seeded(before, nodes, declared, Timestamp::now()));
}

/// These declarations and nodes as a server would keep them, in the database of a directory, and the token of an admin
/// beside it, as after a first start.
pub fn seed_world(directory: &Path, world: &World) {
    let mut store = keep(directory, |before| World {
        revision: Revision(before.revision.0 + 1),
        snapshot: world.snapshot.clone(),
        inventory: world.inventory.clone(),
        ..before.clone()
    });
    let (stored, token) = tokens::made("admin".parse().ok(), Grant::admin(), None).expect("random bytes");
    let data = DataDir::open(directory).expect("it is there");
    data.write("admin.token", token.expose().as_bytes()).expect("there is room");
    store.put_token(&stored).expect("it is kept");
}

/// A server in this process, on loopback.
pub struct InProcess {
    /// What agents know of it.
    pub known: KnownServer,
    /// The environment variables with which `nmplan` reaches it as an admin.
    pub environment: Vec<(&'static str, String)>,
    states: watch::Receiver<Arc<State>>,
    end: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl InProcess {
    /// Serves what [`seed_world`] left in a directory.
    pub async fn serve(directory: &Path) -> Self {
        let server = nmserver::open(settings(directory)).await.expect("a server");
        let (rest, agents) = server.addresses();
        let ca = std::fs::read_to_string(directory.join("ca.pem")).expect("the CA is there");
        let signing_key = server.service().info().signing_key;
        let known = KnownServer { at: agents.expect("it serves agents"), ca, signing_key };
        let file = |name| directory.join(name).display().to_string();
        let environment = vec![
            ("NMPLAN_SERVER", format!("https://{}", rest.expect("it serves admins"))),
            ("NMPLAN_TOKEN_FILE", file("admin.token")),
            ("NMPLAN_CA", file("ca.pem")),
        ];
        let states = server.service().states();
        let (end, shutdown) = watch::channel(false);
        Self { known, environment, states, end, serving: tokio::spawn(server.run(shutdown)) }
    }

    /// What it knows now.
    pub fn world(&self) -> World {
        (*self.states.borrow().world).clone()
    }

    /// Ends it.
    pub async fn end(self) {
        self.end.send_replace(true);
        self.serving.await.expect("it ends");
    }
}

fn keep(directory: &Path, world: impl FnOnce(&World) -> World) -> Sqlite {
    let data = DataDir::open(directory).expect("a directory");
    identity::Secrets::open(&data).expect("keys");
    identity::certificate(&data, &[]).expect("a CA");
    let database = directory.join(identity::DATABASE);
    // A server serves no database that others may read.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&database).expect("there is none");
    let mut store = Sqlite::open(&database).expect("a database");
    let Stored { world: before, hash, .. } = store.load().expect("it loads");
    let after = world(&before);
    let (puts, deletes) = rows::between(&before, &after);
    let entry = LogEntry {
        revision: after.revision,
        time: Timestamp::now(),
        actor: "seed".into(),
        action: "join".into(),
        owner: None,
        apply_id: None,
        digest: None,
        provenance: None,
        allowed: Default::default(),
        changes: Vec::new(),
        guards: Default::default(),
        nodes: after.inventory.nodes().map(|(id, _)| id.clone()).collect(),
        hash: None,
    };
    store.commit(&[Batch::new(&hash, after.epoch, entry, puts, deletes)]).expect("it is kept");
    store
}

fn seeded(before: &World, nodes: u32, declared: &[Value], now: Timestamp) -> World {
    let mut world = World { revision: Revision(before.revision.0 + 1), ..before.clone() };
    let network = serde_json::json!({ "id": "corp", "body": { "ipv4": "10.0.0.0/16", "ipv6": "fd00::/64" } });
    let key = serde_json::json!({ "id": "corp/access-key/k", "body": { "uses": "unlimited" } });
    for document in [&network, &key].into_iter().chain(declared) {
        let document: ResourceDocument = serde_json::from_value(document.clone()).expect("a resource");
        world.snapshot.put(document.id.clone(), document.entry().expect("it decodes"));
    }
    let verifier = proto::sign::public_key(&test_agent::seed("k"));
    let status = KeyStatus { verifier, created: now, used: nodes };
    world.inventory.put_key("corp/access-key/k".parse().expect("an id"), status);
    for number in 0..nodes {
        let id =
            NodeId { network: "corp".parse().expect("a name"), name: name(number).parse().expect("a name") };
        world.inventory.put_node(id, joined(number, now));
    }
    world
}

/// The node of a number, as it joins: an agent of that number is it.
pub fn joined(number: u32, now: Timestamp) -> Joined {
    let (identity, public_key) = Agent::keys(number);
    let [_, _, high, low] = (number + 1).to_be_bytes();
    let ipv6 = Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(number) + 1);
    Joined {
        public_key,
        identity,
        addresses: [Ipv4Addr::new(10, 0, high, low).into(), ipv6.into()].into(),
        endpoints: Endpoints { seen: Some(Ipv4Addr::new(198, 18, high, low).into()), ..Endpoints::default() },
        listen_port: 51_821,
        tags: BTreeSet::new(),
        key: "k".parse().ok(),
        claimed: false,
        joined: now,
        problems: Vec::new(),
        os: "linux".into(),
    }
}

/// The name of a node by its number.
pub fn name(number: u32) -> String {
    format!("node-{number:04}")
}
