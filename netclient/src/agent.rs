//! The agent as a value: a directory, settings, and the host that it runs on. Other programs may use one.
//!
//! Everything that a command does is here, once: [`Agent::register`], [`Agent::join`], [`Agent::ask`] (a join
//! without an access key), [`Agent::check_in`], [`Agent::pull`], [`Agent::leave`], [`Agent::status`]. Running continuously is the
//! [driver](crate::driver)'s task.

mod error;
mod forwarding;
mod join;
mod keys;
mod leave;
pub mod member;
mod outside;
mod register;
mod status;
mod update;
mod waiting;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ed25519_dalek as ed25519;
use proto::sign::public_key;
use proto::token::Token;
use schema::scalars::{Identity, NetworkName, SigningKey};
use tokio::sync::broadcast;

use crate::addresses::Addresses;
use crate::comms::ServerTunnel;
use crate::control::{Connection, Opener, Reach};
use crate::device::Refusal;
use crate::directory::{Directory, NamesOf};
use crate::host::Host;
use crate::membership::ServerAddress;
use crate::outside::Slot;
use crate::settings::Settings;
use crate::system::slots::SlotsTaken;
use crate::system::watch::HostEvent;
use crate::tunnel::NetworkTunnel;

pub use crate::errors::error_chain;
pub use error::AgentError;
pub use join::{JoinMethod, JoinOptions, JoinOutcome};
pub use outside::{Down, not_ours};
pub use register::Registered;
pub use status::{
    DamagedNetwork, DriverStatus, ForwardStatus, NamesStatus, NetworkStatus, PeerStatus, ReachStatus,
    RegistrationStatus, Status, WaitingStatus,
};

/// The agent.
#[derive(Clone)]
pub struct Agent {
    /// Where it keeps its state.
    pub directory: Directory,
    /// What its operator set.
    pub settings: Settings,
    /// The host that it runs on.
    pub host: Arc<dyn Host>,
    /// Whether there is a packet filter that keeps marks, as it was found last.
    filtered: Arc<AtomicBool>,
    /// What others do to the host, for every driver.
    events: Arc<OnceLock<broadcast::Sender<HostEvent>>>,
    /// How it reaches a server in its own process.
    within: Option<Opener>,
    connections: Arc<Mutex<Connections>>,
}

/// The connections to servers, each for one identity: a host that was removed and joins again is another one.
type Connections = BTreeMap<(ServerAddress, Identity), Arc<Connection>>;

impl Agent {
    /// An agent with this directory.
    pub fn new(directory: Directory, settings: Settings, host: Arc<dyn Host>) -> Self {
        Self {
            directory,
            settings,
            host,
            filtered: Arc::default(),
            events: Arc::default(),
            within: None,
            connections: Arc::default(),
        }
    }

    /// The same for a server in the same process, to which `open` makes connections.
    #[must_use]
    pub fn within(self, open: Opener) -> Self {
        Self { within: Some(open), ..self }
    }

    /// The tunnel to a server.
    pub(crate) fn comms(&self, server: &SigningKey) -> ServerTunnel {
        let executable = self.host.executable().to_owned();
        ServerTunnel::new(self.directory.clone(), executable, *server, self.settings.mark)
    }

    /// Makes every connection check whether the host has been registered since.
    pub(crate) fn recheck_registration(&self) {
        let connections: Vec<_> =
            self.connections.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        connections.iter().for_each(|connection| connection.recheck_registration());
    }

    /// The connection to a server: one for all its networks.
    pub(crate) fn connection(
        &self,
        server: &ServerAddress,
        identity: ed25519::SigningKey,
    ) -> Arc<Connection> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections that nothing holds are closed.
        connections.retain(|_, connection| Arc::strong_count(connection) > 1);
        let reach = match &self.within {
            Some(open) => Reach::Within(Arc::clone(open)),
            None => Reach::Network(self.comms(&server.signing_key)),
        };
        let key = (server.clone(), public_key(&identity));
        let connection =
            connections.entry(key).or_insert_with(|| Connection::new(server.clone(), identity, reach));
        Arc::clone(connection)
    }

    /// The default interface of a network.
    fn interface(&self, network: &NetworkName) -> String {
        self.settings.interface.clone().unwrap_or_else(|| format!("nm-{network}"))
    }

    /// Whether a network could be joined without options, as far as this host can know beforehand: privilege,
    /// interface, and the port that it would have to listen on, if there is one.
    pub fn check_free(&self, network: &NetworkName, port: Option<u16>) -> Result<(), Refusal> {
        self.host.check_free(&self.interface(network), self.settings.port.or(port))
    }

    /// What others do to what the agent's networks stand on, from now on. Needs a runtime.
    pub(crate) fn host_events(&self) -> broadcast::Receiver<HostEvent> {
        let start = || {
            let (sender, _) = broadcast::channel(64);
            let watched = self.slot().map_err(io::Error::other).and_then(|slot| self.host.watch(slot));
            match watched {
                Ok(mut events) => {
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        while let Some(event) = events.recv().await {
                            // Of many at once, as when routes are loaded, each kind counts once.
                            let mut all = vec![event];
                            while let Ok(event) = events.try_recv() {
                                if !all.contains(&event) {
                                    all.push(event);
                                }
                            }
                            for event in all {
                                // Nobody may be listening just now.
                                let _ = sender.send(event);
                            }
                        }
                    });
                }
                Err(error) => tracing::warn!(%error, "what others change on this host is noticed late"),
            }
            sender
        };
        self.events.get_or_init(start).subscribe()
    }

    /// What sets its routes, rules and tables apart from those of other agents: the same as long as it is in
    /// a network.
    fn slot(&self) -> Result<Slot, SlotsTaken> {
        let directory = canonical(self.directory.path());
        let default = Path::new(crate::directory::DEFAULT);
        self.host.claim(&directory, &Slot::candidates(&directory, default, self.settings.mark))
    }

    /// The tunnel of a network.
    pub(crate) fn tunnel(&self, network: &NetworkName, interface: &str) -> NetworkTunnel {
        let known = self.directory.addresses(NamesOf::Network(network));
        self.tunnel_knowing(interface, known)
    }

    /// The tunnel to a server, to be observed.
    fn comms_tunnel(&self, interface: &str) -> NetworkTunnel {
        self.tunnel_knowing(interface, Addresses::default())
    }

    fn tunnel_knowing(&self, interface: &str, known: Addresses) -> NetworkTunnel {
        let socket = self.directory.device_socket(interface);
        NetworkTunnel::new(Arc::clone(&self.host), interface, socket, self.settings.mark, known)
    }
}

fn address_of(token: &Token) -> ServerAddress {
    ServerAddress { addresses: token.addresses.clone(), signing_key: token.signing_key, ca_pin: token.ca_pin }
}

/// A directory, however its path is written.
fn canonical(directory: &Path) -> PathBuf {
    std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned())
}
