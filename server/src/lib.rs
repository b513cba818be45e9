//! The control plane: stores the declarations and what has joined, answers admins over REST and agents over
//! gRPC.
//!
//! [`service`] holds each operation once; [`rest`] and [`grpc`] decode, call it, and encode. Every change is
//! one closure over the [`World`](schema::world::World) that [`committer`] runs, stores and publishes, one
//! after the other, as one [`store`] transaction for all that wait at the same time. Readers hold a whole
//! [`state`], never half of one.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod client;
pub mod committer;
pub mod comms;
pub mod config;
pub mod core;
pub mod data_dir;
pub mod down;
pub mod error;
pub mod grpc;
pub mod identity;
pub mod listen;
pub mod liveness;
pub mod mark;
pub mod names;
pub mod openapi;
pub mod readers;
pub mod rest;
pub mod service;
pub mod state;
pub mod store;
mod tally;
pub mod tokens;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use netclient::agent::error_chain;
use proto::secret::Secret;
use schema::api::Control;
use schema::chain::ChainHash;
use schema::world::{ServerInfo, World};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::addresses::OwnAddresses;
use crate::client::OwnHost;
use crate::committer::Committer;
use crate::comms::{AgentTunnels, TunnelsUnavailable};
use crate::config::Settings;
use crate::core::authorize::Grant;
use crate::identity::{DataDir, IdentityError, Secrets};
use crate::listen::{Configured, Connections, Shares};
use crate::liveness::LastSeen;
use crate::mark::{Mark, Served};
use crate::names::NameFiles;
use crate::readers::Readers;
use crate::service::{Parts, Service, Upkeep};
use crate::state::State;
use crate::store::sqlite::Sqlite;
use crate::store::{Store, StoreError, Stored};

/// The version of the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The name of the token that a first start makes.
const FIRST_TOKEN: &str = "admin";
/// How often the server's own names are resolved.
const RESOLVE: Duration = Duration::from_secs(60);
/// How often the server looks which nodes carry what they should, and which external clients have expired: much
/// more often than any of them checks in.
const LOOK: Duration = Duration::from_millis(500);
/// How often the times of the nodes' last calls are stored.
const STORE_SEEN: Duration = Duration::from_secs(60);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another server uses the data directory.
    #[error("another nmserver uses {0}; stop it first, or set DATA_DIR")]
    Busy(String),
    /// The database is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port cannot be opened.
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
    tls: Option<Arc<rustls::ServerConfig>>,
    rest: Option<TcpListener>,
    agents: Option<TcpListener>,
    behind_proxy: bool,
    clients: Configured,
    host: OwnHost,
    names: Option<NameFiles>,
    /// Whether this start created the admin token.
    pub first_start: bool,
    _lock: fs::File,
}

/// Opens everything that a server needs: directory, keys, database, ports.
pub async fn open(settings: Settings) -> Result<Server, StartError> {
    let directory = DataDir::open(&settings.data_dir)?;
    open_with(settings, |path| Ok(Box::new(Sqlite::open(path)?)), &directory).await
}

/// Opens a server on the store that `make` returns for the path of its database. Port 0 is any free port.
pub async fn open_with(
    mut settings: Settings,
    make: impl FnOnce(&Path) -> Result<Box<dyn Store>, StoreError>,
    directory: &DataDir,
) -> Result<Server, StartError> {
    if !settings.rest_backend && !settings.agent_backend {
        return Err(StartError::Nothing);
    }
    let busy = || StartError::Busy(settings.data_dir.display().to_string());
    let lock = directory.lock()?.ok_or_else(busy)?;
    let directory = &directory.begin()?;
    let rest = listener(settings.rest_backend, settings.bind, &mut settings.api_port)?;
    let agents = listener(settings.agent_backend, settings.bind, &mut settings.grpc_port)?;
    let secrets = Secrets::open(directory)?;
    let certificate = identity::certificate(directory, &settings.hosts())?;
    directory.reserve(identity::DATABASE)?;
    let mut store = make(&directory.file(identity::DATABASE))?;
    let first_start = first_token(&mut *store, directory)?;
    let Stored { server_id, mut world, mut hash, seen, served } = store.load()?;
    correct_tokens(&mut *store)?;
    continue_history(&mut *store, directory, &mut world, &mut hash)?;
    record_version(&mut *store, directory, &mut world, &mut hash)?;
    store::set_resolvers(&mut *store, &mut world, &mut hash, &settings.coredns_addr)?;
    let mark = Mark::begin(directory, &Served { epoch: world.epoch, revision: world.revision, hash })?;
    directory.complete()?;
    let comms = tunnels(&settings, directory, &world).await;
    let info = ServerInfo {
        id: server_id,
        epoch: world.epoch,
        agent_addresses: vec![settings.agent_address()],
        signing_key: proto::sign::public_key(secrets.signing_key()),
        ca_pin: settings.tls.then_some(certificate.ca_pin),
        version: VERSION.into(),
        comms_range: reserved(&settings, &comms),
        own_node: settings.client_mode.then(|| settings.client_name.clone()),
        addresses: Vec::new(),
    };
    let addresses = OwnAddresses::of(&settings);
    tokio::join!(addresses.resolve(), addresses.list());
    for name in addresses.unknown() {
        tracing::warn!(
            name,
            "this name of the server does not resolve: until it does, agents do not find it there, and \
            no range counts as holding its addresses"
        );
    }
    let tls = if settings.tls { Some(listen::tls(certificate)?) } else { None };
    let last_seen = LastSeen::new(seen, served, &world.inventory, info.own_node.clone());
    let log = store::recent_log(&mut *store, world.revision)?;
    let since = store::unchanged_since(&log, world.revision);
    let chain = store::chain(&log, world.revision, hash)?;
    drop(log);
    let readers = Readers::open(&*store)?;
    let (committer, states) = Committer::start(store, State::new(world, chain, since), Some(mark));
    let mut names = NameFiles::of(&settings);
    if let Some(names) = &mut names {
        // A CoreDNS that starts once this serves finds its files.
        names.pass(&states.borrow().clone(), Timestamp::now());
    }
    let service = Service::new(Parts {
        committer,
        readers,
        states,
        secrets,
        info,
        last_seen,
        comms: comms.ok(),
        addresses,
    });
    let (behind_proxy, clients) = (settings.behind_proxy, settings.clients);
    let host = OwnHost::new(&settings);
    Ok(Server { service, tls, rest, agents, behind_proxy, clients, host, names, first_start, _lock: lock })
}

/// Opens the tunnels to agents; if there are none, logs the reason once.
async fn tunnels(
    settings: &Settings,
    directory: &DataDir,
    world: &World,
) -> Result<AgentTunnels, TunnelsUnavailable> {
    let comms = AgentTunnels::open(settings, directory, world).await;
    match &comms {
        Ok(comms) => {
            let (interface, endpoint, service) = comms.info();
            tracing::info!(interface, endpoint, %service, "agents may register for a tunnel");
        }
        Err(TunnelsUnavailable::Asked) => {}
        Err(why) => {
            tracing::warn!(
                why = error_chain(why),
                "COMMS is off: agents cannot register, and reach the server by TLS"
            )
        }
    }
    comms
}

/// The range that no network may overlap: that of the tunnels, even if they are missing only for now.
fn reserved(settings: &Settings, comms: &Result<AgentTunnels, TunnelsUnavailable>) -> Option<Ipv4Net> {
    let given_up = matches!(comms, Err(TunnelsUnavailable::Asked | TunnelsUnavailable::Overlap(..)));
    (!given_up).then_some(settings.comms_range)
}

/// Begins another epoch if the database does not lead on from what this server has served: then it was put
/// back from a copy.
fn continue_history(
    store: &mut dyn Store,
    directory: &DataDir,
    world: &mut World,
    hash: &mut ChainHash,
) -> Result<(), StartError> {
    let head = Served { epoch: world.epoch, revision: world.revision, hash: *hash };
    if let Some((epoch, why)) = mark::check(mark::read(directory)?, &head, store)? {
        tracing::warn!(epoch, "{why}");
        store::raise_epoch(store, world, hash, epoch, why)?;
    }
    Ok(())
}

/// Records which version of the program serves; the first start of another version makes a revision, unless
/// the database is empty.
fn record_version(
    store: &mut dyn Store,
    directory: &DataDir,
    world: &mut World,
    hash: &mut ChainHash,
) -> Result<(), StartError> {
    const FILE: &str = "version";
    if directory.read(FILE)?.is_some_and(|version| version.expose() == VERSION.as_bytes()) {
        return Ok(());
    }
    if world.revision.0 > 0 {
        store::record_upgrade(store, world, hash, VERSION)?;
    }
    Ok(directory.write(FILE, VERSION.as_bytes())?)
}

/// Opens a port, if its API is served, and sets `port` to its number.
fn listener(on: bool, bind: IpAddr, port: &mut u16) -> Result<Option<TcpListener>, StartError> {
    if !on {
        return Ok(None);
    }
    let at = SocketAddr::new(bind, *port);
    let listener = listen::bind(at)?;
    *port = listener.local_addr().map_err(|source| listen::ListenError::new(at, source))?.port();
    Ok(Some(listener))
}

/// Creates the first admin token at a first start; whether it did. The file is written before the token is
/// valid: a start that is interrupted in between creates another.
fn first_token(store: &mut dyn Store, directory: &DataDir) -> Result<bool, StartError> {
    if !directory.is_new() || !store.tokens()?.is_empty() {
        return Ok(false);
    }
    let (stored, token) = tokens::made(FIRST_TOKEN.parse().ok(), Grant::admin(), None)?;
    directory.write("admin.token", Secret::new([token.expose(), "\n"].concat()).expose().as_bytes())?;
    store.put_token(&stored)?;
    Ok(true)
}

/// Corrects the tokens that were created while the clock was ahead, which would be valid for as long as it
/// was.
fn correct_tokens(store: &mut dyn Store) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let wrong: Vec<_> = store.tokens()?.iter().filter_map(|token| token.without_future(now)).collect();
    wrong.iter().try_for_each(|token| store.put_token(token))
}

impl Server {
    /// The operations of this server.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The addresses of the REST API and of the agents' service, if they are served.
    pub fn addresses(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        let address = |listener: &Option<TcpListener>| listener.as_ref().and_then(|it| it.local_addr().ok());
        (address(&self.rest), address(&self.agents))
    }

    /// Serves until `shutdown` becomes true.
    pub async fn run(self, shutdown: watch::Receiver<bool>) {
        let Self { service, tls, rest, agents, behind_proxy, clients, host, names, first_start: _, _lock } =
            self;
        let descriptors =
            rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let shares = Shares::of(&clients, descriptors);
        let serve = async |listener: Option<TcpListener>, router, limits| {
            if let Some(listener) = listener {
                listen::serve(listener, tls.clone(), router, Connections::new(limits), shutdown.clone())
                    .await;
            }
        };
        let agents = serve(agents, grpc::router(service.clone(), behind_proxy, Control::Tls), shares.agents);
        let tunnels = async {
            if let Some(comms) = service.comms().cloned() {
                let router = grpc::router(service.clone(), false, Control::Tunnel);
                comms.run(service.states(), router, Connections::new(shares.tunnels), shutdown.clone()).await;
            }
        };
        let inside = grpc::router(service.clone(), false, Control::Tls);
        // In a task of its own: it waits for disk and kernel.
        let own_node = tokio::spawn(client::run(host, service.clone(), inside, shutdown.clone()));
        let own_node = async { drop(own_node.await) };
        let names = names.map(|names| tokio::spawn(names::run(names, service.states(), shutdown.clone())));
        let names = async { drop(futures_util::future::OptionFuture::from(names).await) };
        let keep = keep_seen(service.clone(), shutdown.clone());
        let resolve = keep_resolved(service.clone(), shutdown.clone());
        let look = keep_looking(service.clone(), shutdown.clone());
        let rest = serve(rest, rest::router(service.clone(), clients.max_body, behind_proxy), shares.rest);
        tokio::join!(rest, agents, tunnels, own_node, names, keep, resolve, look);
    }
}

async fn keep_seen(service: Service, mut shutdown: watch::Receiver<bool>) {
    let mut end = false;
    while !end {
        end = tokio::time::timeout(STORE_SEEN, shutdown.wait_for(|end| *end)).await.is_ok();
        service.log_refused();
        if let Err(error) = service.store_seen(end).await {
            tracing::warn!(%error, "cannot store when nodes last called; trying again in a minute");
        }
    }
}

async fn keep_looking(service: Service, mut shutdown: watch::Receiver<bool>) {
    let mut upkeep = Upkeep::default();
    while tokio::time::timeout(LOOK, shutdown.wait_for(|end| *end)).await.is_err() {
        service.keep_up(&mut upkeep).await;
    }
}

async fn keep_resolved(service: Service, mut shutdown: watch::Receiver<bool>) {
    while tokio::time::timeout(RESOLVE, shutdown.wait_for(|end| *end)).await.is_err() {
        tokio::join!(service.resolve_own_names(), service.list_own_addresses());
    }
}
