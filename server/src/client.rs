//! The server's own host as a node of the networks that declare it (client mode).
//!
//! An agent of the server's own does what `netclient` does on any other host, with `DATA_DIR/client` as its
//! directory; its calls stay inside this process ([`netclient::control::Reach::Within`]), and it needs no
//! token, since [`Service::claim`] admits it. [`act`] decides what to do about a network; [`run`] follows the
//! states and does it. If no network declares the host and it is in none, nothing is created or started. A
//! failure here never keeps the server from serving.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use netclient::agent::{Agent, AgentError, Down, JoinMethod, JoinOptions, error_chain, not_ours};
use netclient::control::{Admission, CallError, JoinRequest, Opener};
use netclient::daemon::{self, DaemonRequest, DaemonResponse};
use netclient::device::{DeviceError, Refusal};
use netclient::directory::{Directory, DirectoryError};
use netclient::host::System;
use netclient::membership::ServerAddress;
use netclient::settings::{self, SettingsError};
use netclient::tunnel::TunnelError;
use proto::sign::public_key;
use schema::kinds::Node;
use schema::rules::endpoints::host_refused_everywhere;
use schema::scalars::{Endpoint, Identity, Name, NetworkName};
use schema::snapshot::{ResourceId, Revision};
use schema::world::{ServerInfo, World};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Settings;
use crate::identity::DataDir;
use crate::listen;
use crate::service::Service;

/// The folder of the agent, in the data directory.
const FOLDER: &str = "client";
/// The buffer of a connection within the program, in bytes.
const BUFFER: usize = 64 << 10;
/// How long to wait after the host could not leave a network, and after it could not become a node of one;
/// each further failure doubles that, up to the maximum.
const LEAVE_AGAIN: Duration = Duration::from_secs(1);
const CLAIM_AGAIN: Duration = Duration::from_secs(60);
const LONGEST_DELAY: Duration = Duration::from_secs(3_600);
/// The obstacle if another host has joined under the name of this one.
const NAME_IN_USE: &str = "another host, perhaps that of another server, has joined under its name; it joins once the other one has left";

/// What a network declares of this host: present only if it declares the host's name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// The revisions that wrote the network and the node: when they change, what failed may succeed.
    declared: [Revision; 2],
    /// The port that the node must listen on.
    port: Option<u16>,
    /// The identity of the host that has the name.
    holder: Option<Identity>,
}

/// What this host is in a network, by its own directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    /// Nothing.
    Absent,
    /// A node under its name.
    Member,
    /// A node under another name, or one whose state is damaged.
    Other,
}

/// What to do about a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Become its node.
    Claim,
    /// Leave it, and remove everything of it.
    Leave,
    /// Wait until the host that has the name leaves.
    Wait,
}

/// What to do about a network; nothing if all is as it should be. `identity`: this host's at the server.
///
/// A membership that the server does not know (after a restore, with a new database, or of another name) is
/// left, and then the name is claimed anew.
fn act(wanted: Option<&Wanted>, here: Here, identity: Option<Identity>) -> Option<Act> {
    match (wanted, here) {
        (None, Here::Absent) => None,
        (Some(wanted), Here::Member) if wanted.holder.is_some() && wanted.holder == identity => None,
        (None | Some(_), Here::Member | Here::Other) => Some(Act::Leave),
        (Some(wanted), Here::Absent) => {
            let vacant = wanted.holder.is_none() || wanted.holder == identity;
            Some(if vacant { Act::Claim } else { Act::Wait })
        }
    }
}

/// What each network declares of a host of this name.
fn wanted(world: &World, own_node: Option<&Name>) -> BTreeMap<NetworkName, Wanted> {
    let Some(name) = own_node else { return BTreeMap::new() };
    let wanted = |(network, _): (&NetworkName, _)| {
        let id = ResourceId::of::<Node>(network, name);
        let node = world.snapshot.named::<Node>(network, name)?;
        let revision = |id| world.snapshot.entry(id).map_or(Revision(0), |entry| entry.revision);
        let declared = [revision(&ResourceId::of_network(network.clone())), revision(&id)];
        let port = node.listen_port.and_then(|port| u16::try_from(port.number()).ok());
        let holder = world.inventory.node(&id.node()).map(|joined| joined.identity);
        Some((network.clone(), Wanted { declared, port, holder }))
    };
    world.snapshot.networks().filter_map(wanted).collect()
}

/// Where the others reach this host: the name by which agents reach the server, if it works for others.
fn endpoint(server_host: &str) -> Option<Endpoint> {
    let endpoint: Endpoint = server_host.parse().ok()?;
    host_refused_everywhere(&endpoint.host).is_none().then_some(endpoint)
}

/// The directory of the server's own host as a node, and where the others reach it.
#[derive(Clone, Debug)]
pub struct OwnHost {
    directory: PathBuf,
    endpoint: Option<Endpoint>,
}

impl OwnHost {
    /// The host of a server with these settings.
    pub fn new(settings: &Settings) -> Self {
        Self { directory: settings.data_dir.join(FOLDER), endpoint: endpoint(&settings.server_host) }
    }
}

/// Makes this host a node of the networks that declare it, and removes it from others, until `shutdown`
/// becomes true; its tunnels stay up then. `router` is the agents' service.
pub async fn run(host: OwnHost, service: Service, router: Router, mut shutdown: watch::Receiver<bool>) {
    let own_node = service.info().own_node;
    let mut states = service.states();
    let directory_is_there = host.directory.exists();
    let needed =
        states.wait_for(|state| directory_is_there || !wanted(&state.world, own_node.as_ref()).is_empty());
    tokio::select! {
        needed = needed => if needed.is_err() { return },
        _ = shutdown.wait_for(|end| *end) => return,
    }
    let opened = open(&host, within(router, shutdown.clone()));
    let agent = match opened {
        Ok(agent) => agent,
        Err(error) => {
            return tracing::warn!(
                error = error_chain(&error),
                "client mode cannot start: this host is not a node of any network"
            );
        }
    };
    let client = Client::new(service, agent.clone());
    let looked_after = async {
        // A host that is not to be a node leaves, so there is nothing to look after.
        if own_node.is_some() {
            look_after(agent, shutdown.clone()).await;
        }
    };
    tokio::join!(client.follow(states, shutdown.clone()), looked_after);
}

/// Runs the agent's daemon.
async fn look_after(agent: Agent, shutdown: watch::Receiver<bool>) {
    if let Err(error) = daemon::run(agent, shutdown).await {
        tracing::warn!(
            error = error_chain(&error),
            "the agent of this host has ended: its networks are no longer kept up to date"
        );
    }
}

/// Why the agent of this host could not be opened, or did not do something.
#[derive(Debug, thiserror::Error)]
pub enum OwnHostError {
    /// Its directory is not usable.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its settings are not valid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// What it was to do failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Removes the networks of the server's own host from it, and forgets none: with the next start they are
/// back. Adds what became of each part to `down`, also of those before an error.
pub async fn take_down(data: &DataDir, down: &mut Down) -> Result<(), OwnHostError> {
    let directory = data.file(FOLDER);
    if !directory.exists() {
        return Ok(());
    }
    let settings = settings::load(&directory, |_| None)?;
    let host = System::creating(settings.device);
    let agent = Agent::new(Directory::open(&directory)?, settings, Arc::new(host));
    Ok(agent.down(down).await?)
}

/// The agent, with the settings in its directory; the environment variables of a `netclient` do not apply to
/// it.
fn open(host: &OwnHost, opener: Opener) -> Result<Agent, OwnHostError> {
    let directory = Directory::open(&host.directory)?;
    let mut settings = settings::load(&host.directory, |_| None)?;
    settings.endpoint = settings.endpoint.or_else(|| host.endpoint.clone());
    let host = System::creating(settings.device);
    Ok(Agent::new(directory, settings, Arc::new(host)).within(opener))
}

/// Makes connections to the agents' service in this program, each until `shutdown` becomes true.
pub fn within(router: Router, shutdown: watch::Receiver<bool>) -> Opener {
    // The address that it comes from says nothing about where the others reach it.
    let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Arc::new(move || {
        let (agent, server) = tokio::io::duplex(BUFFER);
        tokio::spawn(listen::http(server, from, router.clone(), shutdown.clone()));
        agent
    })
}

/// What prevents the host from being a node of a network.
struct Held {
    why: String,
    /// What the network declared at that time.
    declared: Option<[Revision; 2]>,
    /// When to try again; absent: when what the network wants has changed.
    until: Option<Instant>,
    /// The length of that delay.
    delay: Duration,
}

/// Why something was not done.
enum Failure {
    /// It cannot succeed before the program is restarted; the log says so.
    ForGood,
    /// It may succeed later.
    ForNow(String),
}

/// Makes the host a node of what declares it.
struct Client {
    service: Service,
    agent: Agent,
    server: ServerAddress,
    own_node: Option<Name>,
    held: BTreeMap<NetworkName, Held>,
    /// Whether this program may not create devices.
    powerless: bool,
}

impl Client {
    fn new(service: Service, agent: Agent) -> Self {
        let ServerInfo { agent_addresses, signing_key, ca_pin, own_node, .. } = service.info();
        let server = ServerAddress { addresses: agent_addresses, signing_key, ca_pin };
        Self { service, agent, server, own_node, held: BTreeMap::new(), powerless: false }
    }

    async fn follow(
        mut self,
        mut states: watch::Receiver<Arc<crate::state::State>>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut reconciled = None;
        loop {
            let state = states.borrow_and_update().clone();
            let wanted = wanted(&state.world, self.own_node.as_ref());
            // Most changes do not concern this host, and cost it nothing.
            if reconciled.as_ref() != Some(&wanted) || self.due().is_some_and(|due| due <= Instant::now()) {
                tokio::select! {
                    () = self.reconcile(&wanted) => reconciled = Some(wanted),
                    _ = shutdown.wait_for(|end| *end) => return,
                }
            }
            let due = self.due();
            let again = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await };
            tokio::select! {
                moved = states.changed() => if moved.is_err() { return },
                () = again, if due.is_some() => {}
                _ = shutdown.wait_for(|end| *end) => return,
            }
        }
    }

    /// When to try the next thing again.
    fn due(&self) -> Option<Instant> {
        self.held.values().filter_map(|held| held.until).min()
    }

    async fn reconcile(&mut self, wanted: &BTreeMap<NetworkName, Wanted>) {
        let here = match self.here() {
            Ok(here) => here,
            Err(error) => {
                self.held.clear();
                return tracing::error!(error = error_chain(&error), "cannot look for networks of this host");
            }
        };
        let networks: BTreeSet<_> = wanted.keys().chain(here.keys()).cloned().collect();
        self.held.retain(|network, _| networks.contains(network));
        for network in networks {
            let wanted = wanted.get(&network);
            let here = here.get(&network).copied().unwrap_or(Here::Absent);
            let first = act(wanted, here, self.identity());
            if self.carry_out(first, &network, wanted).await && first == Some(Act::Leave) {
                let second = act(wanted, Here::Absent, self.identity());
                self.carry_out(second, &network, wanted).await;
            }
        }
    }

    /// What this host is in each of its networks.
    fn here(&self) -> Result<BTreeMap<NetworkName, Here>, DirectoryError> {
        let directory = &self.agent.directory;
        let member = |network: NetworkName| {
            let own = |node: &Name| Some(node) == self.own_node.as_ref();
            let here = match directory.membership(&network) {
                Ok(None) => Here::Absent,
                Ok(Some(membership)) if own(&membership.node) => Here::Member,
                Ok(Some(_)) | Err(_) => Here::Other,
            };
            (network, here)
        };
        Ok(directory.networks()?.into_iter().map(member).collect())
    }

    /// This host's identity at the server. One that cannot be read counts as none: the membership is left
    /// then.
    fn identity(&self) -> Option<Identity> {
        self.agent
            .directory
            .identity(&self.server.signing_key)
            .ok()
            .flatten()
            .map(|identity| public_key(&identity))
    }

    /// Does what is to do about a network, unless it is too early; whether all is done.
    async fn carry_out(&mut self, act: Option<Act>, network: &NetworkName, wanted: Option<&Wanted>) -> bool {
        let declared = wanted.map(|wanted| wanted.declared);
        let port = wanted.and_then(|wanted| wanted.port);
        let (outcome, delay) = match act {
            Some(Act::Wait) => (Err(Failure::ForNow(NAME_IN_USE.into())), None),
            Some(Act::Claim | Act::Leave) if self.is_held(network, declared) => return false,
            Some(Act::Claim) if !self.powerless => (self.claim(network, port).await, Some(CLAIM_AGAIN)),
            Some(Act::Leave) => (self.leave(network).await, Some(LEAVE_AGAIN)),
            None | Some(Act::Claim) => (Ok(()), None),
        };
        let done = outcome.is_ok();
        match outcome {
            Err(Failure::ForNow(why)) => self.hold(network, why, declared, delay),
            outcome => {
                self.held.remove(network);
                self.powerless |= outcome.is_err();
            }
        }
        done
    }

    /// Whether it is too early to try again.
    fn is_held(&self, network: &NetworkName, declared: Option<[Revision; 2]>) -> bool {
        let Some(held) = self.held.get(network).filter(|held| held.declared == declared) else {
            return false;
        };
        held.until.is_some_and(|until| until > Instant::now())
    }

    /// Records what prevents it; the log has it once.
    fn hold(
        &mut self,
        network: &NetworkName,
        why: String,
        declared: Option<[Revision; 2]>,
        delay: Option<Duration>,
    ) {
        let before = self.held.get(network).filter(|held| held.why == why);
        if before.is_none() {
            tracing::warn!(%network, why, "this host could not become what the network declares");
        }
        let longer = before.map_or(Duration::ZERO, |held| held.delay * 2).min(LONGEST_DELAY);
        let delay = delay.map(|delay| delay.max(longer));
        let until = delay.map(|delay| Instant::now() + delay);
        let held = Held { why, declared, until, delay: delay.unwrap_or_default() };
        self.held.insert(network.clone(), held);
    }

    /// Becomes a node of a network, and makes the daemon look after it.
    async fn claim(&self, network: &NetworkName, port: Option<u16>) -> Result<(), Failure> {
        self.agent.check_free(network, port).map_err(|refusal| self.refused(&refusal))?;
        let options = JoinOptions { name: self.own_node.clone(), ..JoinOptions::default() };
        let (service, claimed) = (self.service.clone(), network.clone());
        let method: JoinMethod = Box::new(move |_, _, request| {
            Box::pin(async move {
                let JoinRequest { name: _, identity, private_key, facts, os } = request;
                let identity = public_key(identity);
                let public_key = private_key.public();
                let let_in = service.claim(&claimed, identity, public_key, &facts, &os).await;
                let (name, update) = let_in.map_err(|error| CallError::Refused(error.to_string()))?;
                Ok(Admission::In(name, Box::new(update)))
            })
        });
        self.agent
            .admit(network, &self.server, &options, method)
            .await
            .map_err(|error| self.failure(&error))?;
        tracing::info!(%network, "this host is a node of the network");
        // If the daemon does not answer, it finds out by itself soon.
        let _ = self.ask(DaemonRequest::Rescan).await;
        Ok(())
    }

    /// Leaves a network, whatever the server says.
    async fn leave(&self, network: &NetworkName) -> Result<(), Failure> {
        let busy = match self.agent.leave(network, true).await {
            Err(error @ AgentError::Busy(_)) => error,
            Err(AgentError::NotMember(_)) => return Ok(()),
            Err(error) => return Err(self.failure(&error)),
            Ok(left) => {
                for interface in left {
                    tracing::warn!(%network, "the interface {interface} stays: {}", not_ours(&interface));
                }
                tracing::info!(%network, "this host is no longer a node of the network");
                return Ok(());
            }
        };
        match self.ask(DaemonRequest::Leave { network: network.clone(), force: true }).await {
            Some(DaemonResponse::Done(_)) => Ok(()),
            Some(DaemonResponse::Failed(why)) => Err(Failure::ForNow(why)),
            Some(DaemonResponse::Status(_)) | None => Err(self.failure(&busy)),
        }
    }

    /// What a failure means for the next try.
    fn failure(&self, error: &AgentError) -> Failure {
        if let AgentError::Refused(refusal)
        | AgentError::NotUp(TunnelError::Device(DeviceError::Refused(refusal))) = error
        {
            return self.refused(refusal);
        }
        Failure::ForNow(error_chain(error))
    }

    /// What a device's refusal means for the next try.
    fn refused(&self, refusal: &Refusal) -> Failure {
        let settings = self.agent.directory.path().join("netclient.toml");
        match refusal {
            Refusal::Denied { .. } | Refusal::TunMissing => {
                let help = "start nmserver again with that, or set CLIENT_MODE=off";
                tracing::warn!(why = %refusal, help, "this host cannot be a node of the networks that declare it");
                Failure::ForGood
            }
            Refusal::NameTaken { .. } | Refusal::PortTaken { .. } => {
                Failure::ForNow(format!("{refusal}; for this host, set that in {}", settings.display()))
            }
            Refusal::NameInvalid { .. }
            | Refusal::WireGuardMissing
            | Refusal::TunWanted
            | Refusal::KeyMissing
            | Refusal::AlreadyRunning { .. }
            | Refusal::Failed { .. } => Failure::ForNow(refusal.to_string()),
        }
    }

    /// Asks the daemon, which holds the locks of what it looks after.
    async fn ask(&self, question: DaemonRequest) -> Option<DaemonResponse> {
        let directory = self.agent.directory.clone();
        let asked = tokio::task::spawn_blocking(move || daemon::ask(&directory, &question)).await;
        asked.ok()?.ok()?
    }
}

#[cfg(test)]
mod tests {
    use schema::world::ResourceDocument;

    use super::*;

    fn wanted_of(holder: Option<u8>) -> Wanted {
        Wanted { declared: [Revision(1); 2], port: None, holder: holder.map(key) }
    }

    fn key(number: u8) -> Identity {
        Identity([number; 32])
    }

    #[test]
    fn a_host_becomes_the_node_that_is_declared_and_leaves_what_is_not() {
        const OWN: u8 = 1;
        for (holder, here, identity, expected) in [
            (None, Here::Absent, None, Some(Act::Claim)),
            (None, Here::Absent, Some(OWN), Some(Act::Claim)),
            // The answer to an earlier claim was lost.
            (Some(OWN), Here::Absent, Some(OWN), Some(Act::Claim)),
            (Some(OWN), Here::Member, Some(OWN), None),
            // Another replica's host was first, or a host from before.
            (Some(2), Here::Absent, None, Some(Act::Wait)),
            (Some(2), Here::Absent, Some(OWN), Some(Act::Wait)),
            // The database was set up anew, or restored.
            (None, Here::Member, Some(OWN), Some(Act::Leave)),
            (Some(2), Here::Member, Some(OWN), Some(Act::Leave)),
            (None, Here::Member, None, Some(Act::Leave)),
            // CLIENT_NAME is another one, or the disk was damaged.
            (Some(OWN), Here::Other, Some(OWN), Some(Act::Leave)),
        ] {
            let done = act(Some(&wanted_of(holder)), here, identity.map(key));
            assert_eq!(done, expected, "{holder:?} {here:?} {identity:?}");
        }
        for (here, expected) in
            [(Here::Absent, None), (Here::Member, Some(Act::Leave)), (Here::Other, Some(Act::Leave))]
        {
            assert_eq!(
                act(None, here, Some(key(OWN))),
                expected,
                "not declared, or CLIENT_MODE is off: {here:?}"
            );
        }
    }

    #[test]
    fn only_networks_that_declare_the_host_want_it() {
        let mut world = World::default();
        for (id, body) in [
            ("corp", r#"{"ipv4":"10.0.0.0/24"}"#),
            ("corp/node/netmaker", r#"{"listen-port":4000}"#),
            ("lab", r#"{"ipv4":"10.0.1.0/24"}"#),
            ("lab/node/db", "{}"),
        ] {
            let json = format!(r#"{{"id":"{id}","revision":7,"body":{body}}}"#);
            let document: ResourceDocument = serde_json::from_str(&json).expect("good");
            world.snapshot.put(document.id.clone(), document.entry().expect("good"));
        }
        let name = "netmaker".parse().expect("good");
        let found = wanted(&world, Some(&name));
        let expected = Wanted { declared: [Revision(7); 2], port: Some(4_000), holder: None };
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("corp".parse().expect("good"), expected)]);
        assert!(wanted(&world, None).is_empty());
    }

    #[test]
    fn where_agents_find_the_server_others_find_its_host_unless_that_is_each_hosts_own() {
        for (server_host, expected) in [
            ("nm.example.net", Some("nm.example.net")),
            ("192.0.2.1", Some("192.0.2.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("127.0.0.1", None),
            ("::1", None),
            ("0.0.0.0", None),
            ("localhost", None),
        ] {
            let found = endpoint(server_host).map(|endpoint| endpoint.host.to_string());
            assert_eq!(found.as_deref(), expected, "{server_host}");
        }
    }
}
