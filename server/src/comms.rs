//! The tunnels to agents that have registered: a WireGuard device of this host's, with one peer for each, and the agents'
//! service inside of it.
//!
//! The device runs in a process of its own, so that a restart of the server costs no session: the server attaches to it. It
//! is told of one peer at a time. Packet filter, allowed IPs and the socket's interface each see to it that an agent reaches
//! that service and nothing else. Who is registered is decided by [`registry`](crate::core::registry), and kept in a ledger
//! of this host's own: another replica has another key and other addresses, and whoever is not known here registers again.

mod ledger;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use ipnet::{IpNet, Ipv4Net};
use netclient::comms::{MTU, free_interface, host};
use netclient::device::{self, Device, DeviceError, DeviceStep, PeerSettings, PrivateKey, Refusal};
use netclient::system::firewall::{self, FirewallError};
use netclient::system::link::{self, LinkError, LinkStep};
use schema::inventory::Inventory;
use schema::scalars::PublicKey;
use schema::snapshot::ResourceId;
use schema::world::World;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::task::JoinHandle;

use crate::config::Settings;
use crate::core::registry::{Registration, Registry, Unregistered};
use crate::identity::{DataDir, IdentityError};
use crate::listen;
use crate::state::State;
use ledger::{Ledger, LedgerError};

/// How often the server looks whether the device is still there.
const LOOK: Duration = Duration::from_secs(1);
/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1_024;

/// The tunnels to agents.
#[derive(Clone)]
pub struct Comms {
    place: Arc<Place>,
    desk: Arc<Mutex<Desk>>,
}

/// What stays the same while the server runs.
struct Place {
    interface: String,
    socket: PathBuf,
    range: Ipv4Net,
    /// Where the agents' service is found in the tunnel.
    service: SocketAddrV4,
    /// Where agents find the device.
    endpoint: String,
    port: u16,
    private_key: PrivateKey,
}

/// Who is registered: in memory, on the disk and on the device, changed together.
struct Desk {
    registry: Registry,
    ledger: Ledger,
}

/// What an agent is told that registers.
#[derive(Clone, Debug)]
pub struct Welcome {
    /// The server's end of the tunnel.
    pub public_key: PublicKey,
    /// Where that is found.
    pub endpoint: String,
    /// The agent's address in the tunnel.
    pub address: Ipv4Addr,
    /// Where the agents' service is found in the tunnel.
    pub service: SocketAddrV4,
    /// How long the registration lasts without a join; absent: for good.
    pub lapses: Option<Duration>,
}

/// Why there are no tunnels to agents.
#[derive(Debug, thiserror::Error)]
pub enum Off {
    /// The operator wants none.
    #[error("COMMS is off")]
    Asked,
    /// A network has addresses of the range.
    #[error("the network {0} overlaps COMMS_RANGE {1}; set COMMS_RANGE to a range that nothing else has, or COMMS=off")]
    Overlap(schema::scalars::NetworkName, Ipv4Net),
    /// The device cannot be had.
    #[error("{0}; {help}", help = help(.0))]
    Device(#[from] DeviceError),
    /// The link cannot be set.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The packet filter cannot be set.
    #[error("{0}; without it agents could reach more of this host than they may")]
    Firewall(#[from] FirewallError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The service cannot be listened for.
    #[error("cannot listen on {0} inside the tunnel: {1}")]
    Listen(SocketAddrV4, io::Error),
}

fn help(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::Refused(Refusal::PortTaken { .. }) => "set COMMS_PORT to one that is free, or COMMS=off",
        DeviceError::Refused(_)
        | DeviceError::Gone { .. }
        | DeviceError::Silent { .. }
        | DeviceError::Stillborn { .. }
        | DeviceError::Host { .. } => "or set COMMS=off to do without",
    }
}

impl Comms {
    /// Opens what is there, or makes it. Where there is to be nothing, what a server left that had tunnels is taken down:
    /// agents would take its end for a server that is down.
    pub async fn open(settings: &Settings, directory: &DataDir, world: &World) -> Result<Self, Off> {
        let opened = Self::try_open(settings, directory, world).await;
        if opened.is_err() {
            clear(directory).await;
        }
        opened
    }

    async fn try_open(settings: &Settings, directory: &DataDir, world: &World) -> Result<Self, Off> {
        if !settings.comms || !settings.agent_backend {
            return Err(Off::Asked);
        }
        let range = settings.comms_range;
        let here = IpNet::V4(range);
        let overlaps = |other: IpNet| other.contains(&here.network()) || here.contains(&other.network());
        if let Some((name, _)) = world.snapshot.networks().find(|(_, network)| network.ranges().any(overlaps)) {
            return Err(Off::Overlap(name.clone(), range));
        }
        let mut ledger = Ledger::open(directory)?;
        let interface = match ledger.interface()? {
            Some(interface) => interface,
            None => free_interface(|_| false).map_err(DeviceError::from)?,
        };
        ledger.keep_interface(&interface)?;
        let mut registry = Registry::new(range);
        restore(&mut registry, &mut ledger, &world.inventory)?;
        let place = Place {
            socket: socket(directory, &interface),
            interface,
            range,
            service: SocketAddrV4::new(Registry::server(range), settings.comms_port),
            endpoint: settings.comms_address(),
            port: settings.comms_port,
            private_key: private_key(directory)?,
        };
        let comms = Self { place: Arc::new(place), desk: Arc::new(Mutex::new(Desk { registry, ledger })) };
        comms.bring_up().await?;
        // Whether it can be listened for is to be known now; whoever serves listens anew.
        comms.listen().map_err(|error| Off::Listen(comms.place.service, error))?;
        Ok(comms)
    }

    /// Where the device is, and where the agents' service is in the tunnel.
    pub fn told(&self) -> (&str, &str, SocketAddrV4) {
        (&self.place.interface, &self.place.endpoint, self.place.service)
    }

    /// Registers a machine whose signatures were checked: by the key that it shows, or, without one, because it has joined.
    pub async fn register(
        &self,
        identity: PublicKey,
        public_key: PublicKey,
        key: Option<ResourceId>,
    ) -> Result<Welcome, RegisterError> {
        let (place, mut desk) = (Arc::clone(&self.place), self.desk().await);
        blocking(move || {
            let now = Instant::now();
            let known = desk.registry.of(&identity).cloned();
            let (registration, replaced) = desk.registry.register(identity, public_key, key, now)?;
            if known.as_ref() != Some(&registration) {
                desk.ledger.put(&identity, &registration, now)?;
            }
            let mut steps: Vec<_> = replaced.map(DeviceStep::RemovePeer).into_iter().collect();
            if known.is_none_or(|known| known.public_key != registration.public_key) {
                steps.push(put(&registration));
            }
            place.apply(&steps)?;
            Ok(place.welcome(&registration, now))
        })
        .await
    }

    /// The address outside of the tunnel from which an agent was last heard; absent: unknown.
    pub async fn outside(&self, inside: Ipv4Addr) -> Option<SocketAddr> {
        let public_key = self.desk.lock().await.registry.public_key_at(inside)?;
        let place = Arc::clone(&self.place);
        blocking(move || place.attach().ok()??.endpoint(&public_key).ok()?).await
    }

    /// Serves agents in the tunnel until `shutdown` becomes true, follows who joins and leaves, ends what lapses, and makes
    /// the device anew where it was lost. The device stays when the server ends.
    pub async fn run(
        self,
        mut states: watch::Receiver<Arc<State>>,
        router: Router,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut state = states.borrow_and_update().clone();
        let end = shutdown.clone();
        let serve = || self.serve(router.clone(), end.clone());
        let (mut serving, mut lost) = (serve(), false);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if std::mem::take(&mut lost) && self.mend().await {
                // What listened, listened on the link that is gone.
                serving.take().inspect(JoinHandle::abort);
            }
            if serving.is_none() {
                serving = serve();
            }
            let next = self.desk.lock().await.registry.next_end();
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                moved = states.changed() => {
                    if moved.is_err() {
                        break;
                    }
                    let newer = states.borrow_and_update().clone();
                    self.follow(&state.world.inventory, &newer.world.inventory).await;
                    state = newer;
                }
                () = due => self.lapse().await,
                _ = look.tick() => lost = !self.is_there().await,
                () = ended(&mut shutdown) => break,
            }
        }
        if let Some(serving) = serving {
            let _ = serving.await;
        }
    }

    /// Serves agents in the tunnel; absent: it cannot be listened there right now.
    fn serve(&self, router: Router, shutdown: watch::Receiver<bool>) -> Option<JoinHandle<()>> {
        match self.listen() {
            Ok(listener) => Some(tokio::spawn(listen::serve(listener, None, router, shutdown))),
            Err(error) => {
                tracing::warn!(%error, "agents are not served in the tunnel; trying again");
                None
            }
        }
    }

    /// Notes who has joined, and who is in no network any more.
    async fn follow(&self, before: &Inventory, after: &Inventory) {
        let changed = before.changed_nodes(after);
        if changed.is_empty() {
            return;
        }
        let (mut desk, after) = (self.desk().await, after.clone());
        let touched: Vec<PublicKey> = changed
            .iter()
            .flat_map(|id| [before.node(id), after.node(id)])
            .flatten()
            .map(|joined| joined.identity)
            .collect();
        let noted = blocking(move || {
            let now = Instant::now();
            for identity in touched {
                let known = desk.registry.of(&identity).cloned();
                if after.knows(&identity) {
                    desk.registry.joined(&identity);
                } else if known.as_ref().is_some_and(|known| known.ends.is_none()) {
                    desk.registry.left(&identity, now);
                }
                if let Some(registration) = desk.registry.of(&identity).cloned()
                    && known.as_ref() != Some(&registration)
                {
                    desk.ledger.put(&identity, &registration, now)?;
                }
            }
            Ok::<_, LedgerError>(())
        });
        if let Err(error) = noted.await {
            tracing::warn!(%error, "who is registered is known, but not kept");
        }
    }

    /// Ends the registrations that are due.
    async fn lapse(&self) {
        let (place, mut desk) = (Arc::clone(&self.place), self.desk().await);
        let ended = blocking(move || {
            let ended = desk.registry.lapse(Instant::now());
            let steps: Vec<_> = ended.iter().map(|(_, key)| DeviceStep::RemovePeer(*key)).collect();
            let identities: Vec<_> = ended.into_iter().map(|(identity, _)| identity).collect();
            let kept = desk.ledger.delete(&identities);
            place.apply(&steps)?;
            kept?;
            Ok::<_, RegisterError>(identities.len())
        });
        match ended.await {
            Ok(count) => tracing::debug!(count, "registrations ended"),
            Err(error) => tracing::warn!(%error, "registrations ended, and something of them stays"),
        }
    }

    async fn is_there(&self) -> bool {
        let place = Arc::clone(&self.place);
        // One that gives no answer is there, and nobody may end it but its owner.
        blocking(move || !matches!(place.attach(), Ok(None) | Err(DeviceError::Gone { .. }))).await
    }

    /// Makes the device anew; whether that went well.
    async fn mend(&self) -> bool {
        match self.bring_up().await {
            Ok(()) => {
                tracing::warn!(
                    interface = self.place.interface,
                    "the device of the tunnels to agents was lost; it is made anew"
                );
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the device of the tunnels to agents was lost; trying again");
                false
            }
        }
    }

    /// Brings packet filter, device and link to what they should be, in this order: no packet comes in unfiltered.
    async fn bring_up(&self) -> Result<(), Off> {
        let (place, desk) = (Arc::clone(&self.place), self.desk().await);
        blocking(move || {
            firewall::load(&table(&place.interface), &place.chains())?;
            place.bring_device(&desk.registry).map_err(Off::from)
        })
        .await?;
        let Place { interface, range, service, .. } = &*self.place;
        let missing = || LinkError::Missing { interface: interface.clone() };
        let observed = link::observe(interface).await?.ok_or_else(missing)?;
        let own = IpNet::V4(Ipv4Net::new_assert(*service.ip(), range.prefix_len()));
        let others = observed.addresses.iter().filter(|address| **address != own);
        let mut steps: Vec<_> = others.map(|address| LinkStep::RemoveAddress(*address)).collect();
        steps.extend([LinkStep::SetMtu(MTU), LinkStep::Up, LinkStep::AddAddress(own)]);
        Ok(link::apply(interface, &steps).await?)
    }

    /// Takes the port of the agents' service, on the device alone.
    fn listen(&self) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(self.place.interface.as_bytes()))?;
        socket.bind(&self.place.service.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    async fn desk(&self) -> OwnedMutexGuard<Desk> {
        Arc::clone(&self.desk).lock_owned().await
    }
}

impl Place {
    fn attach(&self) -> Result<Option<Box<dyn Device>>, DeviceError> {
        device::attach(&self.interface, &self.socket)
    }

    /// Carries out steps on the device; where it is gone, whoever makes it anew carries out all.
    fn apply(&self, steps: &[DeviceStep]) -> Result<(), DeviceError> {
        if steps.is_empty() {
            return Ok(());
        }
        let Some(mut device) = self.attach()? else { return Ok(()) };
        match device.apply(steps) {
            Err(DeviceError::Gone { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Attaches to the device, or makes it, and gives it what it lacks.
    fn bring_device(&self, registry: &Registry) -> Result<(), DeviceError> {
        let (mut device, made) = match self.attach()? {
            Some(device) => (device, false),
            None => (device::create_apart(&self.interface, Path::new("/proc/self/exe"), &self.socket)?, true),
        };
        let brought = self.fill(&mut *device, registry);
        if brought.is_err() && made {
            // It serves nobody as it is.
            let _ = device.remove();
        }
        brought
    }

    fn fill(&self, device: &mut dyn Device, registry: &Registry) -> Result<(), DeviceError> {
        let observed = device.observe()?;
        let mut steps = Vec::new();
        if observed.public_key != Some(self.private_key.public()) {
            steps.push(DeviceStep::SetPrivateKey(self.private_key.clone()));
        }
        if observed.listen_port != self.port {
            steps.push(DeviceStep::SetListenPort(self.port));
        }
        let known = |key: &PublicKey| registry.has(key);
        steps.extend(observed.peers.keys().filter(|key| !known(key)).map(|key| DeviceStep::RemovePeer(*key)));
        let fits = |it: &Registration| {
            let seen = observed.peers.get(&it.public_key);
            seen.is_some_and(|seen| seen.settings.allowed_ips == [host(it.address)].into())
        };
        steps.extend(registry.all().filter(|(_, it)| !fits(it)).map(|(_, it)| put(it)));
        device.apply(&steps)
    }

    /// What may pass: between agents and the agents' service, and nothing else in any direction.
    fn chains(&self) -> String {
        let Self { interface, range, service, .. } = self;
        let (address, port) = (service.ip(), service.port());
        format!(
            r#"chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname "{interface}" ip saddr {range} ip daddr {address} tcp dport {port} accept
    iifname "{interface}" drop
}}
chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    iifname "{interface}" drop
    oifname "{interface}" drop
}}
chain output {{
    type filter hook output priority filter - 10; policy accept;
    oifname "{interface}" ip saddr {address} tcp sport {port} accept
    oifname "{interface}" drop
}}
"#
        )
    }

    fn welcome(&self, registration: &Registration, now: Instant) -> Welcome {
        Welcome {
            public_key: self.private_key.public(),
            endpoint: self.endpoint.clone(),
            address: registration.address,
            service: self.service,
            lapses: registration.ends.map(|end| end.saturating_duration_since(now)),
        }
    }
}

/// Why a machine was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It may not.
    #[error(transparent)]
    Unregistered(#[from] Unregistered),
    /// It could not be kept.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The device did not take it.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl fmt::Debug for Comms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Comms({} at {})", self.place.interface, self.place.endpoint)
    }
}

/// Returns when it is time to end.
async fn ended(shutdown: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could say so.
    let _ = shutdown.wait_for(|end| *end).await;
}

/// A peer as the device should have it.
fn put(registration: &Registration) -> DeviceStep {
    let allowed_ips = [host(registration.address)].into();
    DeviceStep::PutPeer(registration.public_key, PeerSettings { endpoint: None, allowed_ips, keepalive: 0 })
}

/// Takes in what the ledger has: whoever has joined stays, and whoever left while the server was down goes.
fn restore(registry: &mut Registry, ledger: &mut Ledger, inventory: &Inventory) -> Result<(), LedgerError> {
    let now = Instant::now();
    for (identity, registration) in ledger.all(now)? {
        let had_joined = registration.ends.is_none();
        if !registry.restore(identity, registration) {
            ledger.delete(&[identity])?;
        } else if inventory.knows(&identity) {
            registry.joined(&identity);
        } else if had_joined {
            registry.left(&identity, now);
        }
    }
    Ok(())
}

/// Takes down what a server left that had tunnels, as far as that can be told.
async fn clear(directory: &DataDir) {
    let interface = Ledger::open(directory).and_then(|ledger| ledger.interface());
    // Whose ledger cannot be read had the first name, most likely.
    let interface = interface.ok().flatten().unwrap_or_else(|| "nm-comms".into());
    let socket = socket(directory, &interface);
    if !socket.exists() {
        return;
    }
    let cleared = blocking(move || {
        if let Some(mut device) = device::attach(&interface, &socket)? {
            device.remove()?;
        }
        firewall::remove(&table(&interface))?;
        Ok::<_, Off>(())
    });
    if let Err(error) = cleared.await {
        tracing::warn!(%error, "the tunnels to agents cannot be taken down");
    }
}

fn socket(directory: &DataDir, interface: &str) -> PathBuf {
    directory.file(&format!("device-{interface}.sock"))
}

/// The table of the packet filter that belongs to an interface.
fn table(interface: &str) -> String {
    format!("nmserver-{interface}")
}

/// The key of the device. If it is lost another one does: agents learn it when they register again.
fn private_key(directory: &DataDir) -> Result<PrivateKey, IdentityError> {
    const FILE: &str = "comms.key";
    if let Some(bytes) = directory.read(FILE)? {
        let damaged = |_| IdentityError::Damaged { path: directory.file(FILE), why: "it has not 32 bytes".into() };
        return bytes.as_slice().try_into().map(PrivateKey).map_err(damaged);
    }
    let mut key = crate::identity::random()?;
    // As wg(8) does: the bits that Curve25519 ignores are those that it would assume (RFC 7748, section 5).
    key[0] &= 248;
    key[31] = (key[31] & 127) | 64;
    directory.write(FILE, &*key)?;
    Ok(PrivateKey(*key))
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
