//! The tunnels to registered agents: a WireGuard device on this host, with one peer for each, and the agents'
//! service inside of it.
//!
//! The device runs in a process of its own, so that a restart of the server costs no session: the server
//! attaches to it. It is given one peer at a time. Packet filter, allowed IPs and the socket's interface each
//! ensure that an agent reaches that service and nothing else. Who is registered is decided by
//! [`registry`](crate::core::registry), and kept in a ledger of this host's own: another replica has another
//! key and other addresses, and whoever is not known here registers again.

mod ledger;
mod tunnel_host;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use ipnet::{IpNet, Ipv4Net};
use netclient::agent::{Down, error_chain};
use netclient::comms::may_be;
use netclient::device::{DeviceError, DeviceStep, Refusal, blocking, link_index};
use netclient::system::firewall::FirewallError;
use netclient::system::link::{self, LinkError};
use schema::inventory::Inventory;
use schema::scalars::{Identity, NetworkName, WireGuardKey, overlap};
use schema::snapshot::ResourceId;
use schema::world::World;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::task::JoinHandle;

use crate::config::Settings;
use crate::core::registry::{RegisteredHost, Registry, Unregistered};
use crate::error::Error;
use crate::identity::{DataDir, IdentityError};
use crate::listen::{self, Connections};
use crate::state::State;
use ledger::{Ledger, LedgerError};
use tunnel_host::TunnelHost;

/// How often the server checks everything that the tunnels depend on.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The tunnels to agents.
#[derive(Clone)]
pub struct AgentTunnels {
    host: Arc<TunnelHost>,
    registrations: Arc<Mutex<Registrations>>,
}

/// Who is registered: in memory, on the disk and on the device, changed together.
struct Registrations {
    host: Arc<TunnelHost>,
    registry: Registry,
    ledger: Ledger,
    /// Whether the disk or the device lacks something that is in memory.
    out_of_sync: bool,
}

/// What an agent that registers is sent.
#[derive(Clone, Debug)]
pub struct TunnelParameters {
    /// The server's end of the tunnel.
    pub public_key: WireGuardKey,
    /// Its address.
    pub endpoint: String,
    /// The agent's address in the tunnel.
    pub address: Ipv4Addr,
    /// The address of the agents' service in the tunnel.
    pub service: SocketAddrV4,
    /// How long until the registration expires without a join; absent: never.
    pub expires: Option<Duration>,
}

/// Why there are no tunnels to agents.
#[derive(Debug, thiserror::Error)]
pub enum TunnelsUnavailable {
    /// The operator turned them off.
    #[error("COMMS is off")]
    Asked,
    /// A network has addresses of the range.
    #[error(
        "the network {0} overlaps COMMS_RANGE {1}; set COMMS_RANGE to a range that nothing else has, or COMMS=off"
    )]
    Overlap(NetworkName, Ipv4Net),
    /// The host has addresses or routes of the range.
    #[error(
        "{range} of {interface} on this host overlaps COMMS_RANGE {comms}; set COMMS_RANGE to a range that nothing else \
         has, or COMMS=off"
    )]
    Used {
        /// The range that is in use.
        range: IpNet,
        /// The interface that uses it.
        interface: String,
        /// The range of the tunnels.
        comms: Ipv4Net,
    },
    /// The device cannot be created.
    #[error("{}; {}", error_chain(.0), help(.0))]
    Device(DeviceError),
    /// The link cannot be set.
    #[error("{}; or set COMMS=off to do without", error_chain(.0))]
    Link(LinkError),
    /// The packet filter cannot be set.
    #[error("{}; without this packet filter agents could reach more of this host than allowed, so fix that or set COMMS=off", error_chain(.0))]
    Firewall(FirewallError),
    /// The ledger is not usable.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The data directory is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The port of the service cannot be opened.
    #[error("cannot listen on TCP {0} inside the tunnel ({1}); set COMMS_PORT to another port, or COMMS=off")]
    Listen(SocketAddrV4, io::Error),
}

impl From<DeviceError> for TunnelsUnavailable {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl From<LinkError> for TunnelsUnavailable {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<FirewallError> for TunnelsUnavailable {
    fn from(error: FirewallError) -> Self {
        Self::Firewall(error)
    }
}

fn help(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::Refused(Refusal::PortTaken { .. }) => "set COMMS_PORT to one that is free, or COMMS=off",
        DeviceError::Refused(_)
        | DeviceError::Gone { .. }
        | DeviceError::Silent { .. }
        | DeviceError::StartFailed { .. }
        | DeviceError::Host { .. } => "or set COMMS=off to do without",
    }
}

impl AgentTunnels {
    /// Opens the tunnels, creating what is missing. If there are to be none, what an earlier server with
    /// tunnels left is removed: agents would take it for a server that is down.
    pub async fn open(
        settings: &Settings,
        directory: &DataDir,
        world: &World,
    ) -> Result<Self, TunnelsUnavailable> {
        let opened = Self::try_open(settings, directory, world).await;
        if opened.is_err() {
            clear(directory).await;
        }
        opened
    }

    async fn try_open(
        settings: &Settings,
        directory: &DataDir,
        world: &World,
    ) -> Result<Self, TunnelsUnavailable> {
        if !settings.comms || !settings.agent_backend {
            return Err(TunnelsUnavailable::Asked);
        }
        let range = settings.comms_range;
        let here = IpNet::V4(range);
        let overlaps = |range: IpNet| overlap(&range, &here);
        if let Some((name, _)) = world.snapshot.networks().find(|(_, network)| network.ranges().any(overlaps))
        {
            return Err(TunnelsUnavailable::Overlap(name.clone(), range));
        }
        if let Some((interface, used)) = link::overlapping(here, may_be).await? {
            return Err(TunnelsUnavailable::Used { range: used, interface, comms: range });
        }
        let mut ledger = Ledger::open(directory)?;
        let host = Arc::new(TunnelHost::choose(settings, directory, ledger.interface()?)?);
        let mut registry = Registry::new(range);
        restore(&mut registry, &mut ledger, &world.inventory)?;
        let registrations = Registrations { host: Arc::clone(&host), registry, ledger, out_of_sync: false };
        let comms = Self { host, registrations: Arc::new(Mutex::new(registrations)) };
        comms.bring_up().await?;
        comms.registrations.lock().await.ledger.keep_interface(&comms.host.interface)?;
        // Whether the port can be opened has to be known now; serving opens it anew.
        comms.host.listen().map_err(|error| TunnelsUnavailable::Listen(comms.host.service, error))?;
        Ok(comms)
    }

    /// The interface and address of the device, and the address of the agents' service in the tunnel.
    pub fn info(&self) -> (&str, &str, SocketAddrV4) {
        (&self.host.interface, &self.host.endpoint, self.host.service)
    }

    /// Registers a host whose signatures were checked: by the key that it shows, or, without one, because it
    /// has joined. `knows` says whether an identity has joined, at the time of the call.
    pub async fn register(
        &self,
        identity: Identity,
        public_key: WireGuardKey,
        key: Option<ResourceId>,
        knows: impl FnOnce(&Identity) -> bool + Send + 'static,
    ) -> Result<TunnelParameters, RegisterError> {
        let mut registrations = self.registrations().await;
        blocking(move || {
            if registrations.out_of_sync {
                registrations.resync::<RegisterError>()?;
            }
            let now = Instant::now();
            let before = registrations.registry.of(&identity).cloned();
            registrations.registry.register(identity, public_key, key, now)?;
            // It may have joined, or have left, since its signatures were checked.
            registrations.record(&identity, knows(&identity), now);
            registrations.carry_out(&[(identity, before)], now)?;
            let registration = registrations.registry.of(&identity).cloned();
            Ok(registrations.host.parameters(&registration.ok_or(RegisterError::Ended)?, now))
        })
        .await
    }

    /// The address outside of the tunnel from which an agent was last heard; absent: unknown.
    pub async fn outside(&self, inside: Ipv4Addr) -> Option<SocketAddr> {
        let public_key = self.registrations.lock().await.registry.public_key_at(inside)?;
        let host = Arc::clone(&self.host);
        blocking(move || host.attach().ok()??.endpoint(&public_key).ok()?).await
    }

    /// Serves agents in the tunnel until `shutdown` becomes true, follows who joins and leaves, ends
    /// registrations that expire, and repairs what the tunnels depend on. The device stays when the server
    /// ends.
    pub async fn run(
        self,
        states: watch::Receiver<Arc<State>>,
        router: Router,
        connections: Arc<Connections>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut serving = Serving { router, connections, shutdown: shutdown.clone(), task: None };
        tokio::select! {
            () = self.attend(states, &mut serving) => {}
            _ = shutdown.wait_for(|end| *end) => {}
        }
        if let Some((_, task)) = serving.task.take() {
            let _ = task.await;
        }
    }

    async fn attend(&self, mut states: watch::Receiver<Arc<State>>, serving: &mut Serving) {
        let mut state = states.borrow_and_update().clone();
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut trouble = None;
        loop {
            let next = self.registrations.lock().await.registry.next_end();
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                moved = states.changed() => {
                    if moved.is_err() {
                        return;
                    }
                    let newer = states.borrow_and_update().clone();
                    self.follow(&state.world.inventory, &newer.world.inventory).await;
                    state = newer;
                }
                () = due => self.expire().await,
                _ = ticks.tick() => self.check(serving, &mut trouble).await,
            }
        }
    }

    /// Checks and repairs everything; the log has each failure once.
    async fn check(&self, serving: &mut Serving, trouble: &mut Option<String>) {
        let whole = self.host.is_whole().await && !self.registrations.lock().await.out_of_sync;
        let repaired = if whole { Ok(()) } else { self.bring_up().await };
        let served = repaired.and_then(|()| serving.keep(&self.host));
        match served {
            Ok(()) if !whole => {
                tracing::warn!(
                    interface = self.host.interface,
                    "the tunnels to agents were damaged and have been repaired"
                );
                *trouble = None;
            }
            Ok(()) => *trouble = None,
            Err(error) => {
                let why = error_chain(&error);
                if trouble.as_ref() != Some(&why) {
                    tracing::error!(why, "the tunnels to agents are damaged; trying again");
                }
                *trouble = Some(why);
            }
        }
    }

    /// Records who has joined, and who has left their last network.
    async fn follow(&self, before: &Inventory, after: &Inventory) {
        let changed = before.changed_nodes(after);
        if changed.is_empty() {
            return;
        }
        let mut registrations = self.registrations().await;
        let after = after.clone();
        let affected: Vec<Identity> = changed
            .iter()
            .flat_map(|id| [before.node(id), after.node(id)])
            .flatten()
            .map(|joined| joined.identity)
            .collect();
        blocking(move || {
            let now = Instant::now();
            let before: Vec<_> =
                affected.iter().map(|it| (*it, registrations.registry.of(it).cloned())).collect();
            affected.iter().for_each(|identity| registrations.record(identity, after.knows(identity), now));
            registrations.carry_out_or_log(&before, now);
        })
        .await;
    }

    /// Ends the registrations that have expired.
    async fn expire(&self) {
        let mut registrations = self.registrations().await;
        blocking(move || {
            let now = Instant::now();
            let ended: Vec<_> =
                registrations.registry.expire(now).into_iter().map(|(it, was)| (it, Some(was))).collect();
            registrations.carry_out_or_log(&ended, now);
        })
        .await;
    }

    /// Brings packet filter, device and link to what they should be, in this order: no packet comes in
    /// unfiltered.
    async fn bring_up(&self) -> Result<(), TunnelsUnavailable> {
        let mut registrations = self.registrations().await;
        blocking(move || {
            registrations.host.filter()?;
            registrations.resync::<TunnelsUnavailable>()
        })
        .await?;
        Ok(self.host.bring_link().await?)
    }

    async fn registrations(&self) -> OwnedMutexGuard<Registrations> {
        Arc::clone(&self.registrations).lock_owned().await
    }
}

/// The service in the tunnel, while it is served.
struct Serving {
    router: Router,
    connections: Arc<Connections>,
    shutdown: watch::Receiver<bool>,
    /// The link that it listens on, and what serves there.
    task: Option<(u32, JoinHandle<()>)>,
}

impl Serving {
    /// Serves on the current link: a listener on one that is gone receives nothing.
    fn keep(&mut self, host: &TunnelHost) -> Result<(), TunnelsUnavailable> {
        let failed = |error| TunnelsUnavailable::Listen(host.service, error);
        let now = link_index(&host.interface).map_err(failed)?.unwrap_or(0);
        if self.task.as_ref().is_some_and(|(index, task)| *index == now && !task.is_finished()) {
            return Ok(());
        }
        if let Some((_, old)) = self.task.take() {
            old.abort();
        }
        let listener = host.listen().map_err(failed)?;
        let serve = listen::serve(
            listener,
            None,
            self.router.clone(),
            Arc::clone(&self.connections),
            self.shutdown.clone(),
        );
        self.task = Some((now, tokio::spawn(serve)));
        Ok(())
    }
}

impl Registrations {
    /// Records whether a host has joined.
    fn record(&mut self, identity: &Identity, joined: bool, now: Instant) {
        if joined {
            self.registry.joined(identity);
        } else if self.registry.of(identity).is_some_and(|known| known.ends.is_none()) {
            self.registry.left(identity, now);
        }
    }

    /// Writes to disk and device what differs from before, as far as possible; what fails is caught up on
    /// later.
    fn carry_out(
        &mut self,
        before: &[(Identity, Option<RegisteredHost>)],
        now: Instant,
    ) -> Result<(), RegisterError> {
        let mut steps = Vec::new();
        let mut kept = Ok(());
        let mut gone = Vec::new();
        for (identity, was) in before {
            let is = self.registry.of(identity);
            if is == was.as_ref() {
                continue;
            }
            let (old, new) = (was.as_ref().map(|it| it.public_key), is.map(|it| it.public_key));
            if old != new {
                steps.extend(old.map(DeviceStep::RemovePeer));
                steps.extend(is.map(tunnel_host::put));
            }
            match is {
                Some(is) => kept = kept.and(self.ledger.put(identity, is, now)),
                None => gone.push(*identity),
            }
        }
        let kept = kept.and(self.ledger.delete(&gone));
        let applied = self.host.apply(&steps);
        self.out_of_sync |= kept.is_err() || applied.is_err();
        kept?;
        Ok(applied?)
    }

    fn carry_out_or_log(&mut self, before: &[(Identity, Option<RegisteredHost>)], now: Instant) {
        if let Err(error) = self.carry_out(before, now) {
            tracing::warn!(
                error = error_chain(&error),
                "a registration could not be saved or applied; trying again"
            );
        }
    }

    /// Catches up on what failed.
    fn resync<E: From<DeviceError> + From<LedgerError>>(&mut self) -> Result<(), E> {
        self.host.bring_device(&self.registry)?;
        self.ledger.replace(self.registry.all(), Instant::now())?;
        self.out_of_sync = false;
        Ok(())
    }
}

/// Why a host was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It is not allowed.
    #[error(transparent)]
    Unregistered(#[from] Unregistered),
    /// It could not be stored.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The device did not take it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It ended before it was complete.
    #[error("the registration ended before it was complete; register again")]
    Ended,
}

impl From<RegisterError> for Error {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Unregistered(why) => Self::Unregistered(why),
            RegisterError::Ended => {
                Self::Tunnel("the registration ended before it was complete; register again")
            }
            RegisterError::Ledger(_) | RegisterError::Device(_) => {
                tracing::error!(error = error_chain(&error), "a host could not be registered");
                Self::Tunnel(
                    "the server cannot set up the tunnel right now, and its log says why; try again, or join without: \
                     netclient join -t TOKEN",
                )
            }
        }
    }
}

impl fmt::Debug for AgentTunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentTunnels({} at {})", self.host.interface, self.host.endpoint)
    }
}

/// Restores what the ledger has: hosts that have joined stay, hosts that left while the server was down are
/// removed.
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

/// Removes the tunnels that an earlier server left, and adds what became of each to `down`, also of those
/// before an error. The registrations stay.
pub async fn remove(directory: &DataDir, down: &mut Down) -> Result<(), TunnelsUnavailable> {
    // One that cannot be read names no interface; the files of its device do.
    let kept =
        Ledger::existing(directory).ok().flatten().and_then(|ledger| ledger.interface().ok().flatten());
    let directory = directory.clone();
    let mut part = std::mem::take(down);
    let (part, result) = blocking(move || {
        let result = tunnel_host::clear(&directory, kept, &mut part);
        (part, result)
    })
    .await;
    *down = part;
    result
}

/// Removes what an earlier server with tunnels left, as far as it can be found.
async fn clear(directory: &DataDir) {
    if let Err(error) = remove(directory, &mut Down::default()).await {
        tracing::warn!(error = error_chain(&error), "the tunnels to agents cannot be removed");
    }
}
