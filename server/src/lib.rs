//! The control plane: keeps the declarations and what has joined, answers admins over REST and agents over gRPC.
//!
//! [`service`] holds each operation once; [`rest`] and [`grpc`] decode, call it, and encode. Every change is one closure
//! over the [`World`](schema::world::World) that [`committer`] runs, stores and publishes, one after the other, as one
//! [`store`] transaction for all that wait at the same time. Readers hold a whole [`state`], never half of one.
#![forbid(unsafe_code)]

pub mod committer;
pub mod config;
pub mod core;
pub mod error;
pub mod grpc;
pub mod identity;
pub mod listen;
pub mod openapi;
pub mod rest;
pub mod service;
pub mod state;
pub mod store;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use schema::world::ServerInfo;
use tokio::sync::watch;

use crate::committer::Committer;
use crate::config::Settings;
use crate::core::authorize::Grant;
use crate::identity::{DataDir, IdentityError, Secrets};
use crate::service::Service;
use crate::store::sqlite::Sqlite;
use crate::store::{Store, StoreError, StoredToken};

/// How often it is stored when nodes were last heard of.
const STORE_SEEN: Duration = Duration::from_secs(60);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another server uses the data directory.
    #[error("another nmserver uses {0}; end it first, or set DATA_DIR")]
    Busy(String),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port cannot be used.
    #[error(transparent)]
    Listen(#[from] listen::ListenError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// Neither API is served.
    #[error("REST_BACKEND and AGENT_BACKEND are both off, so there is nothing to serve")]
    Nothing,
}

/// A server that is about to serve.
pub struct Server {
    service: Service,
    tls: Option<std::sync::Arc<rustls::ServerConfig>>,
    rest: Option<tokio::net::TcpListener>,
    agents: Option<tokio::net::TcpListener>,
    /// Whether this start made the admin token.
    pub first_start: bool,
    _lock: fs::File,
}

/// Opens everything that a server needs: directory, keys, database, ports.
pub async fn open(settings: Settings) -> Result<Server, StartError> {
    if !settings.rest_backend && !settings.agent_backend {
        return Err(StartError::Nothing);
    }
    let directory = DataDir::open(&settings.data_dir)?;
    let lock = lock(&settings.data_dir)?;
    let listen = async |on: bool, port| match on {
        true => listen::bind(SocketAddr::new(settings.bind, port)).await.map(Some),
        false => Ok(None),
    };
    let (rest, agents) = (
        listen(settings.rest_backend, settings.api_port).await?,
        listen(settings.agent_backend, settings.grpc_port).await?,
    );
    let secrets = Secrets::open(&directory)?;
    let certificate = identity::certificate(&directory, &settings.server_host)?;
    let mut store = Sqlite::open(&directory.file("nmserver.db"))?;
    let stored = store.load()?;
    let first_start = !directory.file("admin.token").exists();
    if first_start {
        let token = new_token(&mut store, Grant::admin(), None)?;
        directory.write("admin.token", format!("{}\n", *token).as_bytes())?;
    }
    let info = ServerInfo {
        id: stored.server_id,
        epoch: stored.world.epoch,
        agent_addresses: vec![settings.agent_address()],
        signing_key: proto::sign::verifier(secrets.signing_key()),
        ca_pin: settings.tls.then_some(certificate.ca_pin),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let tls = if settings.tls { Some(listen::tls(certificate)?) } else { None };
    let (committer, states) = Committer::start(Box::new(store), stored.world);
    let service = Service::new(committer, states, secrets, info, stored.seen);
    Ok(Server { service, tls, rest, agents, first_start, _lock: lock })
}

/// Makes a token and keeps what verifies it.
pub fn new_token(
    store: &mut dyn Store,
    grant: Grant,
    expires: Option<jiff::Timestamp>,
) -> Result<zeroize::Zeroizing<String>, StartError> {
    let (id, token, hash) = identity::new_token()?;
    store.put_token(&StoredToken { id, hash, grant, created: jiff::Timestamp::now(), expires })?;
    Ok(token)
}

/// Makes sure that nobody else uses the directory; the lock ends with the process.
fn lock(directory: &Path) -> Result<fs::File, StartError> {
    let path = directory.join("lock");
    let failed = |source| IdentityError::File { attempt: "open", path: path.clone(), source };
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => Err(StartError::Busy(directory.display().to_string())),
    }
}

impl Server {
    /// The operations of this server.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Serves until `shutdown` becomes true.
    pub async fn run(self, shutdown: watch::Receiver<bool>) {
        let Self { service, tls, rest, agents, first_start: _, _lock } = self;
        let serve = async |listener: Option<tokio::net::TcpListener>, router| {
            if let Some(listener) = listener {
                listen::serve(listener, tls.clone(), router, shutdown.clone()).await;
            }
        };
        let keep = keep_seen(service.clone(), shutdown.clone());
        tokio::join!(serve(rest, rest::router(service.clone())), serve(agents, grpc::router(service.clone())), keep);
    }
}

async fn keep_seen(service: Service, mut shutdown: watch::Receiver<bool>) {
    let mut end = false;
    while !end {
        end = tokio::time::timeout(STORE_SEEN, shutdown.wait_for(|end| *end)).await.is_ok();
        if let Err(error) = service.store_seen().await {
            tracing::warn!(%error, "cannot store when nodes were last heard of; trying again in a minute");
        }
    }
}
