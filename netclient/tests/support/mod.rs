//! A mesh in the process of the test: the real server on a store in memory, real agents on hosts in memory,
//! pipes in place of sockets, and a clock that the test moves.
//!
//! Time does not pass by itself, since the server's writer is a thread that no runtime knows of, and a
//! runtime that believes itself idle would jump to the next timer: a call would time out before it is
//! answered. So a task on a thread holds the clock ([`Mesh::new`]), and [`eventually`] moves it, a little for
//! each moment that it gives the threads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use jiff::Timestamp;
use netclient::agent::{Agent, AgentError, JoinOptions, JoinOutcome};
use netclient::control::Opener;
use netclient::daemon::{self, DaemonRequest, DaemonResponse};
use netclient::device::DeviceState;
use netclient::device::fake::FakeDevice;
use netclient::directory::Directory;
use netclient::files::{Disk, RealDisk};
use netclient::host::fake::FakeHost;
use netclient::settings::Settings;
use nmserver::client::within;
use nmserver::config;
use nmserver::core::authorize::Grant;
use nmserver::identity::DataDir;
use nmserver::service::{Caller, Service};
use nmserver::store::memory::Memory;
use proto::secret::Secret;
use proto::sign;
use proto::token::Token;
use schema::api::{ApplyRequest, Control};
use schema::decode::decode;
use schema::inventory::NodeProblem;
use schema::kinds::Kind;
use schema::plan::plan;
use schema::scalars::Fingerprint;
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How much virtual time passes at each look.
const STEP: Duration = Duration::from_millis(20);
/// How much real time the threads have in it: a call takes a few milliseconds, and its time is some seconds.
const MOMENT: Duration = Duration::from_millis(1);
/// The longest that a test waits, in virtual time.
const PATIENCE: Duration = Duration::from_secs(120);
/// The interface of the network.
pub const INTERFACE: &str = "nm-corp";

/// Moves the clock until a condition holds; how long that took.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = tokio::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        pass(STEP).await;
    }
    start.elapsed()
}

/// Lets so much time pass.
pub async fn pass(span: Duration) {
    let end = tokio::time::Instant::now() + span;
    while tokio::time::Instant::now() < end {
        tokio::task::spawn_blocking(|| std::thread::sleep(MOMENT)).await.expect("it sleeps");
        tokio::time::advance(STEP).await;
    }
}

/// A server, and what its agents need of it.
pub struct Mesh {
    pub service: Service,
    /// Dropped with the mesh, which ends the task that holds the clock.
    _clock: std::sync::mpsc::Sender<()>,
    _server: nmserver::Server,
    _folder: TempDir,
}

impl Mesh {
    /// A server that declares this text.
    pub async fn new(text: &str) -> Self {
        let (clock, held) = std::sync::mpsc::channel::<()>();
        // Returns when the sender is dropped.
        drop(tokio::task::spawn_blocking(move || held.recv()));
        let folder = private_folder();
        let mut settings = config::load(None, |name| match name {
            "DATA_DIR" => Some(folder.path().display().to_string()),
            "BIND" | "SERVER_HOST" => Some("127.0.0.1".into()),
            "COMMS" | "CLIENT_MODE" | "DNS_MODE" | "REST_BACKEND" => Some("off".into()),
            _ => None,
        })
        .expect("the settings are good");
        settings.grpc_port = 0;
        let data = DataDir::open(folder.path()).expect("a directory");
        let server = nmserver::open_with(settings, |_| Ok(Box::new(Memory::default())), &data)
            .await
            .expect("a server");
        let mesh =
            Self { service: server.service().clone(), _clock: clock, _server: server, _folder: folder };
        mesh.declare(text).await;
        mesh
    }

    fn admin() -> Caller {
        Caller { actor: "test".into(), grant: Grant::admin() }
    }

    /// Makes this text all that is declared.
    pub async fn declare(&self, text: &str) {
        let source = Source { name: "test.kdl".into(), text: text.into(), language: Language::Kdl };
        let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
        assert!(report.is_empty(), "{report:#?}");
        let (declared, report) = decode(documents);
        assert!(report.is_empty(), "{report:#?}");
        let world = self.service.state().world.clone();
        let owner = "acme/prod".parse().expect("good");
        let plan = plan(&declared, &owner, None, &world, &self.service.info(), Timestamp::now())
            .expect("it can be planned");
        let keys =
            plan.new_keys().map(|id| (id.clone(), sign::public_key(&sign::from_seed(&SEED)))).collect();
        let request = ApplyRequest {
            apply_id: format!("apply-{}", plan.digest),
            plan,
            keys,
            allow: Default::default(),
        };
        self.service.apply(&Self::admin(), request).await.expect("it is applied");
    }

    /// Lets a host in that waits, as an admin does, as the node of a name.
    pub async fn approve(&self, host: Fingerprint, name: &str) -> Result<(), String> {
        let (network, name) = ("corp".parse().expect("good"), name.parse().expect("good"));
        let approved = self.service.approve(&Self::admin(), network, host, name).await;
        approved.map(drop).map_err(|error| error.to_string())
    }

    /// Drops a host that waits, as an admin does.
    pub async fn drop_pending(&self, host: Fingerprint) {
        let network = "corp".parse().expect("good");
        self.service.drop_pending(&Self::admin(), network, host, false).await.expect("it waits");
    }

    /// The names that hosts which wait asked for.
    pub fn waiting(&self) -> Vec<String> {
        let state = self.service.state();
        state.world.inventory.pending().map(|(_, pending)| pending.name.to_string()).collect()
    }

    /// Takes a node out, as an admin does.
    pub async fn remove(&self, node: &str) {
        let network = "corp".parse().expect("good");
        let node = node.parse().expect("good");
        self.service.remove_node(&Self::admin(), network, node, false, None).await.expect("it is there");
    }

    /// Whether a node is in the network.
    pub fn has(&self, node: &str) -> bool {
        self.service.state().world.inventory.nodes().any(|(id, _)| id.name.as_str() == node)
    }

    /// The codes of the problems that the server knows of a node.
    pub fn problems(&self, node: &str) -> Vec<String> {
        self.known_problems(node).into_iter().map(|problem| problem.code.to_string()).collect()
    }

    /// What it knows of them in words.
    pub fn problem_messages(&self, node: &str) -> Vec<String> {
        self.known_problems(node).into_iter().map(|problem| problem.message.to_string()).collect()
    }

    fn known_problems(&self, node: &str) -> Vec<NodeProblem> {
        let state = self.service.state();
        let joined = state
            .world
            .inventory
            .nodes()
            .find(|(id, _)| id.name.as_str() == node)
            .map(|(_, joined)| joined.clone());
        joined.iter().flat_map(|joined| joined.problems.clone()).collect()
    }

    /// A token of the network's key.
    pub fn token(&self) -> Token {
        let info = self.service.info();
        Token {
            addresses: info.agent_addresses.clone(),
            signing_key: info.signing_key,
            ca_pin: None,
            network: "corp".parse().expect("good"),
            key: "k".parse().expect("good"),
            seed: Secret::new(SEED),
        }
    }
}

/// The secret of every access key.
const SEED: [u8; 32] = [7; 32];

/// The link between an agent and the server, which a test may cut.
#[derive(Clone)]
struct Link {
    service: Service,
    /// Becomes true for the connections of the time before a cut; absent: the link is cut.
    open: Arc<Mutex<Option<watch::Sender<bool>>>>,
    /// Whether the next join arrives twice, and only the second answer comes back.
    twice: Arc<AtomicBool>,
}

impl Link {
    fn opener(&self) -> Opener {
        let Self { service, open, twice } = self.clone();
        let router = nmserver::grpc::router(service, false, Control::Tls);
        let router = router.layer(middleware::from_fn_with_state(twice, Self::carry));
        Arc::new(move || match &*open.lock().expect("no thread panicked") {
            Some(end) => within(router.clone(), end.subscribe())(),
            // Nobody has the other end.
            None => tokio::io::duplex(1).0,
        })
    }

    async fn carry(State(twice): State<Arc<AtomicBool>>, request: Request, next: Next) -> Response {
        if !request.uri().path().ends_with("/Join") || !twice.swap(false, Ordering::SeqCst) {
            return next.run(request).await;
        }
        let (head, body) = request.into_parts();
        let body = to_bytes(body, 1 << 20).await.expect("it arrives");
        let again = || Request::from_parts(head.clone(), Body::from(body.clone()));
        drop(next.clone().run(again()).await);
        next.run(again()).await
    }
}

/// The disk of an agent, which a test may fill.
#[derive(Debug, Default)]
pub struct Filling {
    full: AtomicBool,
    written: AtomicU64,
}

impl Filling {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(())
    }
}

impl Disk for Filling {
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.write(content)?;
        RealDisk.replace(path, content)
    }

    fn write_from(&self, path: &Path, at: u64, content: &[u8]) -> io::Result<()> {
        self.write(content)?;
        RealDisk.write_from(path, at, content)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
}

/// A host with an agent.
pub struct Node {
    pub name: String,
    pub host: FakeHost,
    pub agent: Agent,
    disk: Arc<Filling>,
    link: Link,
    daemon: Option<(watch::Sender<bool>, JoinHandle<()>)>,
    folder: TempDir,
}

impl Node {
    /// A host that has not joined.
    pub fn new(mesh: &Mesh, name: &str) -> Self {
        let folder = private_folder();
        let disk = Arc::<Filling>::default();
        let host = FakeHost::default();
        let link = Link {
            service: mesh.service.clone(),
            open: Arc::new(Mutex::new(Some(watch::Sender::new(false)))),
            twice: Arc::default(),
        };
        let directory =
            Directory::open(folder.path()).expect("it opens").on(Arc::clone(&disk) as Arc<dyn Disk>);
        let settings = Settings::default();
        let agent = Agent::new(directory, settings, Arc::new(host.clone())).within(link.opener());
        Self { name: name.into(), host, agent, disk, link, daemon: None, folder }
    }

    /// Joins with the network's key.
    pub async fn join(&self, mesh: &Mesh) -> Result<JoinOutcome, AgentError> {
        let options = JoinOptions { name: Some(self.name.parse().expect("good")), ..JoinOptions::default() };
        until_done(self.agent.join(&mesh.token(), &options)).await
    }

    /// Asks to join without an access key.
    pub async fn ask_to_join(&self, mesh: &Mesh) -> Result<JoinOutcome, AgentError> {
        let pin = mesh.service.info().signing_key.fingerprint();
        let options = JoinOptions { name: Some(self.name.parse().expect("good")), ..JoinOptions::default() };
        let network = "corp".parse().expect("good");
        until_done(self.agent.ask("nm.example.net:50051", pin, &network, &options)).await
    }

    /// The same where it has to wait; returns its fingerprint.
    pub async fn waits(&self, mesh: &Mesh) -> Fingerprint {
        match self.ask_to_join(mesh).await.expect("it is answered") {
            JoinOutcome::Waiting(waiting) => waiting.fingerprint(),
            other @ (JoinOutcome::New(_) | JoinOutcome::Already(_)) => panic!("{other:?}"),
        }
    }

    /// Makes its next join arrive twice, so that the answer to the first is lost.
    pub fn lose_next_answer(&self) {
        self.link.twice.store(true, Ordering::SeqCst);
    }

    /// A host that has joined, and whose daemon runs.
    pub async fn joined(mesh: &Mesh, name: &str) -> Self {
        let mut node = Self::new(mesh, name);
        node.join(mesh).await.expect("it joins");
        node.start().await;
        node
    }

    /// Starts the daemon, and waits until it can be asked.
    pub async fn start(&mut self) {
        let (end, shutdown) = watch::channel(false);
        let agent = self.agent.clone();
        let run = async move { daemon::run(agent, shutdown).await.expect("it starts") };
        self.daemon = Some((end, tokio::spawn(run)));
        let socket = self.agent.directory.agent_socket();
        eventually("the daemon listens", || socket.exists()).await;
    }

    /// Ends the daemon, as a signal would.
    pub async fn stop(&mut self) {
        let (end, task) = self.daemon.take().expect("it runs");
        end.send_replace(true);
        until_done(task).await.expect("it ends");
    }

    /// Asks the daemon something, as a command does.
    pub async fn ask(&self, question: DaemonRequest) -> DaemonResponse {
        let directory = self.agent.directory.clone();
        let asked = tokio::task::spawn_blocking(move || daemon::ask(&directory, &question));
        until_done(asked).await.expect("no panic").expect("it answers").expect("it runs")
    }

    /// Cuts the link to the server, or restores it.
    pub fn connect(&self, connected: bool) {
        let mut open = self.link.open.lock().expect("no thread panicked");
        if let Some(end) = open.take() {
            end.send_replace(true);
        }
        *open = connected.then(|| watch::Sender::new(false));
    }

    /// Fills the disk, or empties it.
    pub fn fill(&self, full: bool) {
        self.disk.full.store(full, Ordering::SeqCst);
    }

    /// How many bytes of state were written.
    pub fn written(&self) -> u64 {
        self.disk.written.load(Ordering::SeqCst)
    }

    /// The device of the network.
    pub fn device(&self) -> FakeDevice {
        self.host.device(INTERFACE).expect("the device is there")
    }

    /// What the device has, without asking it as an agent does.
    pub fn state(&self) -> DeviceState {
        self.host.device(INTERFACE).map(|device| device.state()).unwrap_or_default()
    }

    /// How many peers there are on the device.
    pub fn peers(&self) -> usize {
        self.state().peers.len()
    }

    /// The transport of control traffic, as the daemon says.
    pub async fn control(&self) -> Control {
        match self.ask(DaemonRequest::Status).await {
            DaemonResponse::Status(all) => {
                all.into_values().next().map_or(Control::None, |status| status.control)
            }
            other @ (DaemonResponse::Done(_) | DaemonResponse::Failed(_)) => panic!("{other:?}"),
        }
    }

    /// The codes of the problems that the daemon reports.
    pub async fn problems(&self) -> Vec<String> {
        match self.ask(DaemonRequest::Status).await {
            DaemonResponse::Status(all) => all
                .values()
                .flat_map(|status| &status.problems)
                .map(|problem| problem.code.to_string())
                .collect(),
            other @ (DaemonResponse::Done(_) | DaemonResponse::Failed(_)) => panic!("{other:?}"),
        }
    }

    /// The files of its state.
    pub fn files(&self) -> Vec<String> {
        let listed = std::fs::read_dir(self.folder.path()).expect("it can be listed");
        let mut names: Vec<_> =
            listed.flatten().map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Whether each node's device has exactly the other ones, by their keys.
pub fn is_full_mesh(nodes: &[&Node]) -> bool {
    let keys: BTreeMap<_, _> = nodes.iter().map(|node| (&node.name, node.state().public_key)).collect();
    nodes.iter().all(|node| {
        let others = keys.iter().filter(|(name, _)| **name != &node.name);
        let mut wanted: Vec<_> = others.filter_map(|(_, key)| *key).collect();
        wanted.sort();
        wanted == node.state().peers.into_keys().collect::<Vec<_>>() && wanted.len() + 1 == nodes.len()
    })
}

thread_local! {
    /// What was logged on this thread.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Returns a function that returns what has been logged on this thread since, as text: each test has a thread
/// of its own.
pub fn log() -> impl Fn() -> String {
    struct Log;
    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            LOGGED.with_borrow_mut(|logged| logged.extend_from_slice(bytes));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // One for all threads: what a thread without one meets first would be ignored on all.
    static LOG: Once = Once::new();
    LOG.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init());
    LOGGED.with_borrow_mut(Vec::clear);
    || LOGGED.with_borrow(|logged| String::from_utf8_lossy(logged).into_owned())
}

/// Moves the clock until something has come of this.
pub async fn until_done<T>(work: impl Future<Output = T>) -> T {
    let start = tokio::time::Instant::now();
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = pass(STEP) => assert!(start.elapsed() < PATIENCE, "it takes longer than {PATIENCE:?}"),
        }
    }
}

fn private_folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).expect("set");
    folder
}
