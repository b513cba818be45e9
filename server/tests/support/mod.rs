//! A server in the process of the test, on loopback, with a memory store or a real database; and clients for
//! it.

pub mod proxy;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nmserver::config::{self, Settings};
use nmserver::core::authorize::{Grant, Role};
use nmserver::identity::{DATABASE, DataDir};
use nmserver::service::Service;
use nmserver::store::memory::{Levers, Memory};
use nmserver::store::sqlite::Sqlite;
use nmserver::store::{Store, StoreError};
use reqwest::{Client, Method, RequestBuilder, Response};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use schema::api::{Applied, ApplyRequest, StatusDocument};
use schema::decode::{Declared, decode};
use schema::kinds::Kind;
use schema::plan::{Plan, plan};
use schema::rules;
use schema::scalars::SigningKey;
use schema::snapshot::Owner;
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;
use schema::world::WorldDocument;
use serde_json::Value;
use test_agent::{Agent, KnownServer, seed};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The longest that a test waits for a condition.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A directory that a server may keep its data in: its own user's alone.
pub fn folder() -> tempfile::TempDir {
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir().expect("a directory")
}

/// What is needed to call a server.
pub struct Access {
    pub known: KnownServer,
    pub rest: SocketAddr,
    /// The admin's token.
    pub token: String,
    client: Client,
}

/// A server that serves in this process.
pub struct Running {
    pub service: Service,
    access: Access,
    end: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl std::ops::Deref for Running {
    type Target = Access;

    fn deref(&self) -> &Access {
        &self.access
    }
}

/// The settings of a server on ports that are free.
pub fn settings(directory: &Path) -> Settings {
    let mut settings = config::load(None, |name| match name {
        "DATA_DIR" => Some(directory.display().to_string()),
        "BIND" | "SERVER_HOST" => Some("127.0.0.1".into()),
        // They would touch this host.
        "COMMS" | "CLIENT_MODE" => Some("off".into()),
        // It is tested by itself.
        "DNS_MODE" => Some("off".into()),
        _ => None,
    })
    .expect("the settings are good");
    (settings.api_port, settings.grpc_port) = (0, 0);
    settings
}

impl Running {
    /// Starts one on a store.
    pub async fn on(
        directory: &Path,
        make: impl FnOnce(&Path) -> Result<Box<dyn Store>, StoreError>,
    ) -> Self {
        Self::with(settings(directory), directory, make).await
    }

    /// Starts one with these settings on a store.
    async fn with(
        settings: Settings,
        directory: &Path,
        make: impl FnOnce(&Path) -> Result<Box<dyn Store>, StoreError>,
    ) -> Self {
        let data = DataDir::open(directory).expect("a directory");
        let server = nmserver::open_with(settings, make, &data).await.expect("a server");
        let (Some(rest), Some(at)) = server.addresses() else { panic!("both APIs are served") };
        let service = server.service().clone();
        let (end, shutdown) = watch::channel(false);
        let serving = tokio::spawn(server.run(shutdown));
        let access = Access::new(directory, rest, at, service.info().signing_key);
        Self { service, access, end, serving }
    }

    /// Starts one in memory.
    pub async fn in_memory() -> (Self, Levers) {
        let directory = folder();
        let store = Memory::default();
        let levers = store.levers();
        (Self::on(directory.path(), |_| Ok(Box::new(store))).await, levers)
    }

    /// Starts one on the database in a directory.
    pub async fn on_disk(directory: &Path) -> Self {
        Self::on(directory, |path| Ok(Box::new(Sqlite::open(path)?))).await
    }

    /// Starts one on the database in a directory, which agents reach at an address with a port.
    pub async fn reached_at(directory: &Path, address: &str) -> Self {
        let settings = Settings { public_grpc: Some(address.into()), ..settings(directory) };
        Self::with(settings, directory, |path| Ok(Box::new(Sqlite::open(path)?))).await
    }

    /// Starts one on the database in a directory, which gives members these name servers.
    pub async fn with_resolvers(directory: &Path, resolvers: BTreeSet<IpAddr>) -> Self {
        let settings = Settings { coredns_addr: resolvers, ..settings(directory) };
        Self::with(settings, directory, |path| Ok(Box::new(Sqlite::open(path)?))).await
    }

    /// Ends it, as a signal would.
    pub async fn end(self) {
        self.end.send_replace(true);
        self.serving.await.expect("it ends");
    }
}

impl Access {
    /// The server that keeps its keys in a directory.
    pub fn new(directory: &Path, rest: SocketAddr, at: SocketAddr, signing_key: SigningKey) -> Self {
        // Another test of the process may have done so.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = std::fs::read_to_string(directory.join("ca.pem")).expect("the CA is there");
        let token = std::fs::read_to_string(directory.join("admin.token"))
            .expect("a token is there")
            .trim()
            .to_owned();
        let certificate = reqwest::Certificate::from_pem(ca.as_bytes()).expect("the CA is good");
        let client = Client::builder().tls_certs_only([certificate]).build().expect("a client");
        Self { known: KnownServer { at, ca, signing_key }, rest, token, client }
    }

    /// A TLS connection to one of its ports, for these protocols.
    pub async fn tls(&self, at: SocketAddr, protocols: &[&str]) -> TlsStream<TcpStream> {
        self.try_tls(at, protocols).await.expect("TLS is set up")
    }

    /// The same; nothing if the server closes it meanwhile.
    pub async fn try_tls(&self, at: SocketAddr, protocols: &[&str]) -> Option<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.known.ca.as_bytes()).expect("the CA is good");
        roots.add(ca).expect("the CA is good");
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(at).await.ok()?;
        let name = "localhost".try_into().expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()
    }

    /// A call of the REST API.
    pub fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("https://{}{path}", self.rest))
    }

    /// A read by the admin.
    pub async fn get(&self, path: &str) -> Response {
        self.call(Method::GET, path).bearer_auth(&self.token).send().await.expect("an answer")
    }

    /// Everything at the newest revision.
    pub async fn snapshot(&self) -> WorldDocument {
        self.get("/api/v1/snapshot").await.json().await.expect("a snapshot")
    }

    /// How the nodes are.
    pub async fn status(&self) -> StatusDocument {
        self.get("/api/v1/status").await.json().await.expect("a status")
    }

    /// A plan that makes `text` all that a project declares.
    pub async fn plan(&self, owner: &str, text: &str) -> Plan {
        let document = self.snapshot().await;
        let world = document.world().expect("the snapshot can be read");
        let owner: Owner = owner.parse().expect("good");
        plan(&declared(text), &owner, None, &world, &document.server, Timestamp::now())
            .expect("it can be planned")
    }

    /// Sends a plan, with the verifiers of the keys that it makes.
    pub async fn send(&self, token: &str, request: &ApplyRequest) -> Response {
        let call = self.call(Method::POST, "/api/v1/apply").bearer_auth(token);
        call.header("content-type", "application/json")
            .body(serde_json::to_string(request).expect("a request is JSON"))
            .send()
            .await
            .expect("an answer")
    }

    /// Makes `text` all that `acme/prod` declares.
    pub async fn declare(&self, text: &str) -> Applied {
        let plan = self.plan("acme/prod", text).await;
        let answer = self.send(&self.token, &request(plan)).await;
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).expect("it was applied")
    }

    /// An agent that has not joined `corp`.
    pub fn agent(&self, name: &str, number: u32) -> Agent {
        Agent::new(&self.known, "corp", name, number)
    }

    /// An agent that has joined `corp` with a key.
    pub async fn joined(&self, name: &str, number: u32, key: &str) -> Agent {
        let mut agent = self.agent(name, number);
        agent.join(key).await.expect("it joins");
        agent
    }
}

/// Makes a token while the server runs, as `nmserver token create` does.
pub fn token_beside(directory: &Path, role: Role, networks: &[&str], projects: &[&str]) -> String {
    let mut store = Sqlite::open(&directory.join(DATABASE)).expect("the database opens");
    let networks = networks.iter().map(|name| name.parse().expect("a name")).collect::<BTreeSet<_>>();
    let projects = projects.iter().map(|name| name.parse().expect("a name")).collect::<BTreeSet<_>>();
    let grant = Grant {
        role,
        networks: Some(networks).filter(|all| !all.is_empty()),
        projects: Some(projects).filter(|all| !all.is_empty()),
    };
    let mut token = Vec::new();
    nmserver::tokens::create(&mut store, None, grant, None, &mut token).expect("a token");
    String::from_utf8(token).expect("it is text").trim_end().to_owned()
}

/// What a text in KDL declares.
pub fn declared(text: &str) -> Declared {
    let source = Source { name: "test.kdl".into(), text: text.into(), language: Language::Kdl };
    let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    assert!(report.is_empty(), "{report:#?}");
    let (declared, mut report) = decode(documents);
    report.append(rules::check(&declared.snapshot, &declared.source_map));
    assert!(report.is_empty(), "{report:#?}");
    declared
}

/// A request that carries out a plan; a key's secret follows from its name.
pub fn request(plan: Plan) -> ApplyRequest {
    let verifier =
        |id: &schema::snapshot::ResourceId| (id.clone(), proto::sign::public_key(&seed(id.name.as_str())));
    let keys = plan.new_keys().map(verifier).collect();
    ApplyRequest { apply_id: format!("apply-{}", plan.digest), plan, keys, allow: Default::default() }
}

/// The code and the words of a failure.
pub async fn failure(answer: Response) -> (u16, String, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.expect("problem+json");
    let text = |name: &str| body[name].as_str().expect("a text").to_owned();
    assert_eq!(body["status"], status);
    (status, text("code"), text("detail"))
}

/// Polls until a condition holds.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let polled = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, polled).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}
