//! The agent as a value: a directory, settings, and the ground that tunnels stand on. Others may hold one.
//!
//! Everything that a command does is here, once: [`Agent::register`], [`Agent::join`], [`Agent::check_in`],
//! [`Agent::pull`], [`Agent::leave`], [`Agent::status`]. What goes on for ever is the [driver](crate::driver)'s.

pub mod member;
mod register;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ed25519_dalek::SigningKey;
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use jiff::Timestamp;
use proto::convert::{Told, accept_update};
use proto::secret::Secret;
use proto::sign::verifier;
use proto::token::Token;
use proto::wire::{ChallengeResponse, Facts, Update};
use schema::api;
use schema::scalars::{Endpoint, Name, NetworkName, PublicKey, Scalar};
use schema::snapshot::Revision;
use serde::Serialize;

use crate::comms::Comms;
use crate::control::{Control, ControlError, Opener, Reach};
use crate::device::{self, PrivateKey, Refusal};
use crate::directory::{Directory, DirectoryError};
use crate::membership::{Accepted, Membership, ServerAddress};
use crate::settings::Settings;
use crate::tunnel::{Ground, Tunnel, TunnelError};
use member::Member;

pub use register::Registered;

/// The agent.
#[derive(Clone)]
pub struct Agent {
    /// Where it keeps its state.
    pub directory: Directory,
    /// What its operator set.
    pub settings: Settings,
    /// What its tunnels stand on.
    pub ground: Ground,
    /// How it reaches a server in its own program.
    within: Option<Opener>,
    lines: Arc<Mutex<Lines>>,
}

/// The lines to servers, each for one identity: a machine that was removed and joins again is another one.
type Lines = BTreeMap<(ServerAddress, PublicKey), Arc<Control>>;

/// What a join may choose; what is absent here is taken from the settings, and then chosen by itself.
#[derive(Clone, Debug, Default)]
pub struct JoinOptions {
    /// The name to join under.
    pub name: Option<Name>,
    /// The interface.
    pub interface: Option<String>,
    /// The UDP port.
    pub port: Option<u16>,
    /// Where the others reach this machine.
    pub endpoint: Option<Endpoint>,
}

/// A machine that asks to be let in.
pub struct Newcomer<'a> {
    /// The name that it wants.
    pub name: &'a Name,
    /// Its identity.
    pub identity: &'a SigningKey,
    /// Its WireGuard key.
    pub private_key: &'a PrivateKey,
    /// What it says of itself.
    pub facts: Facts,
    /// What it runs.
    pub os: String,
}

/// How a machine is let in: asks whoever decides, with the line to the server and a challenge of it at hand, and gives the
/// name under which the machine is in, and its View.
pub type Door = Box<
    dyn for<'a> FnOnce(
            &'a Control,
            ChallengeResponse,
            Newcomer<'a>,
        ) -> BoxFuture<'a, Result<(Name, Update), ControlError>>
        + Send,
>;

/// What came of a join.
#[derive(Clone, Debug)]
pub enum Joined {
    /// The machine is in.
    New(Membership),
    /// It was in already.
    Already(Membership),
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// State could not be read or kept.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The server.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The tunnel.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The device would be refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the server told cannot be believed or understood.
    #[error("what the server told cannot be used: {0}; it may be another server, or of another version")]
    Told(#[from] proto::convert::Malformed),
    /// The machine is not in that network.
    #[error("this machine is in no network {0}; `netclient list` shows its networks")]
    NotMember(NetworkName),
    /// The tunnel to the server would take addresses that are used here.
    #[error(
        "{address}, which the tunnel to the server would have, lies in {range} of {interface} on this machine; have \
         COMMS_RANGE set to another range on the server, or join without: netclient join -t TOKEN"
    )]
    Overlaps {
        /// The address.
        address: IpAddr,
        /// The range that it lies in.
        range: IpNet,
        /// Whose range that is.
        interface: String,
    },
    /// The identity is gone without which the server does not know the machine.
    #[error(
        "the identity of this machine at the server of {0} is gone; the tunnel stays as it is, but has to be made anew: \
         netclient leave --force -n {0}, and join again"
    )]
    NoIdentity(NetworkName),
    /// The server was restored or set up anew and does not know the machine.
    #[error(
        "the server does not know this machine since it was restored or set up anew; the tunnel stays as it is; to be \
         known again: netclient leave --force -n {0}, and join again"
    )]
    Forgotten(NetworkName),
    /// Another server has a network of that name.
    #[error("this machine is in a network {0} of another server; leave that first: netclient leave -n {0}")]
    OtherServer(NetworkName),
    /// Somebody else looks after the network right now.
    #[error("another netclient is at work on network {0}; try again when it is done")]
    Busy(NetworkName),
    /// The host's name is no name for a node.
    #[error("{name:?} cannot be the name of a node: {why}; join with --name{}", hint(.meant))]
    HostName {
        /// The name of the host.
        name: String,
        /// Why not.
        why: String,
        /// What may have been meant.
        meant: Option<String>,
    },
    /// The machine joined, but its tunnel did not come up, so it left again.
    #[error("the tunnel did not come up, so the machine left the network again")]
    NotUp(#[source] TunnelError),
    /// The server says that the machine is no node of the network any more.
    #[error("the server has removed this machine from network {0}; everything of it is taken down")]
    Removed(NetworkName),
}

fn hint(meant: &Option<String>) -> String {
    meant.as_ref().map(|meant| format!(" {meant}")).unwrap_or_default()
}

/// How a machine's networks are.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// The networks, by name.
    pub networks: Vec<NetworkStatus>,
    /// The tunnels to servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub registrations: Vec<RegistrationStatus>,
}

/// How the tunnel to a server is.
#[derive(Clone, Debug, Serialize)]
pub struct RegistrationStatus {
    /// Where the server's end of it is found.
    pub endpoint: Endpoint,
    /// Its interface.
    pub interface: String,
    /// Whether it is there.
    pub up: bool,
    /// The machine's address in it.
    pub address: IpAddr,
    /// When the server was last heard through it.
    pub last_handshake: Option<Timestamp>,
    /// Seconds until it ends unless the machine joins; absent: it has joined.
    pub lapses: Option<u64>,
}

/// How one of them is.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStatus {
    /// The network.
    pub name: NetworkName,
    /// The name of the machine in it.
    pub node: Name,
    /// Its interface.
    pub interface: String,
    /// Whether the tunnel is there.
    pub up: bool,
    /// The life of the server's database.
    pub epoch: u64,
    /// The revision that the machine was told last.
    pub revision: Revision,
    /// The way that control traffic takes; none where no daemon runs.
    pub control: api::Control,
    /// The machine's addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The peers, by name.
    pub peers: Vec<PeerStatus>,
}

/// How a peer is.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// The node.
    pub name: Name,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// Where it is reached.
    pub endpoint: Option<String>,
    /// What is sent to it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// When the last handshake was completed.
    pub last_handshake: Option<Timestamp>,
}

impl Agent {
    /// An agent with this directory.
    pub fn new(directory: Directory, settings: Settings, ground: Ground) -> Self {
        Self { directory, settings, ground, within: None, lines: Arc::default() }
    }

    /// The same for a server in the same program, which `open` makes connections to.
    #[must_use]
    pub fn within(self, open: Opener) -> Self {
        Self { within: Some(open), ..self }
    }

    /// The tunnel to a server.
    pub(crate) fn comms(&self, server: &PublicKey) -> Comms {
        Comms::new(self.directory.clone(), self.ground.executable.clone(), *server)
    }

    /// Has every line look whether the machine was registered since.
    pub(crate) fn reconsider(&self) {
        let lines: Vec<_> = self.lines.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        lines.iter().for_each(|line| line.reconsider());
    }

    /// The line to a server: one for all its networks.
    pub(crate) fn line(&self, server: &ServerAddress, identity: SigningKey) -> Arc<Control> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // Lines that nobody holds any more are closed.
        lines.retain(|_, line| Arc::strong_count(line) > 1);
        let reach = match &self.within {
            Some(open) => Reach::Within(Arc::clone(open)),
            None => Reach::Network(self.comms(&server.signing_key)),
        };
        let key = (server.clone(), verifier(&identity));
        let line = lines.entry(key).or_insert_with(|| Control::new(server.clone(), identity, reach));
        Arc::clone(line)
    }

    /// The interface of a network that a join does not choose.
    fn interface(&self, network: &NetworkName) -> String {
        self.settings.interface.clone().unwrap_or_else(|| format!("nm-{network}"))
    }

    /// Whether a network could be joined without options, as far as this machine can tell before: privilege, interface, and
    /// the port that it would have to listen on, if there is one.
    pub fn check_free(&self, network: &NetworkName, port: Option<u16>) -> Result<(), Refusal> {
        device::check_free(&self.interface(network), self.settings.port.or(port))
    }

    pub(crate) fn tunnel(&self, interface: &str) -> Tunnel {
        Tunnel::new(self.ground.clone(), interface, self.directory.device_socket(interface))
    }

    /// Joins the network of a token and brings its tunnel up. A machine that is in already stays as it is.
    ///
    /// Whatever fails, nothing is left behind, on the machine or on the server.
    pub async fn join(&self, token: &Token, options: &JoinOptions) -> Result<Joined, AgentError> {
        let token = token.clone();
        let (network, server) = (token.network.clone(), address_of(&token));
        let door: Door = Box::new(move |control, challenge, newcomer| {
            Box::pin(async move { control.join(&token, challenge, newcomer).await })
        });
        self.admit(&network, &server, options, door).await
    }

    /// Joins a network by a door of one's own; for the rest as [`Agent::join`].
    pub async fn admit(
        &self,
        network: &NetworkName,
        server: &ServerAddress,
        options: &JoinOptions,
        door: Door,
    ) -> Result<Joined, AgentError> {
        let lock = self.directory.lock(network)?;
        if let Some(membership) = self.directory.membership(network)? {
            return self.stay(membership, server, lock.is_some()).await;
        }
        let _lock = lock.ok_or_else(|| AgentError::Busy(network.clone()))?;
        let membership = self.enter(network, server, options, door).await?;
        let mut member = Member::new(self.clone(), membership)?;
        if let Err(error) = member.set().await {
            member.leave_again().await;
            return Err(AgentError::NotUp(error));
        }
        // Says which port was found, and that the View is set. If it fails, the next one says so.
        match member.check_in(true).await {
            Ok(Accepted::Changed) => drop(member.set().await),
            Ok(_) => {}
            Err(error) => tracing::debug!(error = told(&error), "the first check-in failed"),
        }
        Ok(Joined::New(member.membership().clone()))
    }

    /// A machine that is in already, and may learn where the server is found now.
    async fn stay(&self, mut membership: Membership, server: &ServerAddress, free: bool) -> Result<Joined, AgentError> {
        if membership.server.signing_key != server.signing_key {
            return Err(AgentError::OtherServer(membership.network));
        }
        if self.directory.identity(&server.signing_key)?.is_none() {
            return Err(AgentError::NoIdentity(membership.network));
        }
        if free {
            if membership.server != *server {
                membership.server = server.clone();
                self.directory.save(&membership)?;
            }
            self.tunnel(&membership.interface).reconcile(&membership).await?;
        }
        Ok(Joined::Already(membership))
    }

    /// Has the server let the machine in, and keeps what it told.
    async fn enter(
        &self,
        network: &NetworkName,
        server: &ServerAddress,
        options: &JoinOptions,
        door: Door,
    ) -> Result<Membership, AgentError> {
        let (options, settings) = (options.clone(), &self.settings);
        let interface = options.interface.unwrap_or_else(|| self.interface(network));
        let port = options.port.or(settings.port);
        device::check_free(&interface, port)?;
        let name = options.name.or_else(|| settings.name.clone()).map_or_else(host_name, Ok)?;
        let _lock = self.directory.lock_identity(&server.signing_key).await?;
        let known = self.directory.identity(&server.signing_key)?;
        let (fresh, identity) = (known.is_none(), known.map_or_else(new_identity, Ok)?);
        let control = self.line(server, identity.clone());
        let challenge = control.challenge().await?;
        let private_key = new_private_key()?;
        let facts = control.facts(port.unwrap_or(0), options.endpoint.as_ref().or(settings.endpoint.as_ref()));
        let newcomer = Newcomer { name: &name, identity: &identity, private_key: &private_key, facts, os: os() };
        // Kept before it is used: if the answer is lost, the next try is known to be the same machine.
        self.directory.keep_identity(&server.signing_key, &identity)?;
        let answer = door(&control, challenge, newcomer).await;
        let (node, update) = answer.inspect_err(|error| self.forget_refused(fresh, server, error))?;
        let kept = first_view(&update, network, &node, &verifier(&identity), server).and_then(|(view, position)| {
            let (network, endpoint, instead) = (network.clone(), options.endpoint, None);
            let server = server.clone();
            let membership =
                Membership { network, node, server, interface, private_key, port, endpoint, instead, position, view };
            self.directory.save(&membership)?;
            Ok(membership)
        });
        if kept.is_err() {
            // It is in, but cannot use that. If this fails as well, an admin has to remove the node.
            let _ = control.leave(network).await;
            if fresh {
                let _ = self.directory.forget_identity(&server.signing_key);
            }
        } else if let Err(error) = self.comms(&server.signing_key).keep().await {
            // The next use of the tunnel, or a new registration, puts that right; TLS is there.
            tracing::warn!(error = told(&error), "the tunnel to the server may lapse");
        }
        kept
    }

    fn forget_refused(&self, fresh: bool, server: &ServerAddress, error: &ControlError) {
        if fresh && matches!(error, ControlError::Refused(_)) {
            // It stands for nothing; if it stays, it will be used the next time.
            let _ = self.directory.forget_identity(&server.signing_key);
        }
    }

    /// Checks in once, and sets what the server told. Gives whether anything was new.
    ///
    /// The tunnel comes up by what is on the disk before the server is asked.
    pub async fn check_in(&self, network: &NetworkName) -> Result<bool, AgentError> {
        let mut member = self.member(network)?;
        let up = member.set().await;
        let accepted = member.check_in(true).await?;
        if accepted == Accepted::Same {
            up?;
        }
        Self::settle(member, accepted).await
    }

    /// Asks for the whole View and sets it. Gives whether anything was new.
    pub async fn pull(&self, network: &NetworkName) -> Result<bool, AgentError> {
        let mut member = self.member(network)?;
        let accepted = member.pull().await?;
        Self::settle(member, accepted).await
    }

    /// Does what the server told, and tells it so; whether that was new.
    async fn settle(mut member: Member, mut accepted: Accepted) -> Result<bool, AgentError> {
        let news = accepted == Accepted::Changed;
        loop {
            let network = || member.membership().network.clone();
            match accepted {
                Accepted::Removed => {
                    let network = network();
                    member.take_down().await?;
                    return Err(AgentError::Removed(network));
                }
                Accepted::Forgotten => return Err(AgentError::Forgotten(network())),
                Accepted::Same | Accepted::Overtaken => {
                    member.set().await?;
                    return Ok(news);
                }
                Accepted::Changed => {
                    member.set().await?;
                    accepted = member.check_in(true).await?;
                }
            }
        }
    }

    /// Leaves a network, and takes everything of it down. With `force` whatever the server says, and also where the
    /// machine cannot tell it, since its state is damaged.
    pub async fn leave(&self, network: &NetworkName, force: bool) -> Result<(), AgentError> {
        match self.member(network) {
            Ok(mut member) => member.leave(force).await,
            Err(AgentError::NoIdentity(_) | AgentError::Directory(DirectoryError::Damaged { .. })) if force => {
                self.give_up(network).await
            }
            Err(error) => Err(error),
        }
    }

    /// Takes down what is left of a network whose state is damaged.
    async fn give_up(&self, network: &NetworkName) -> Result<(), AgentError> {
        let _lock = self.directory.lock(network)?.ok_or_else(|| AgentError::Busy(network.clone()))?;
        match self.directory.membership(network) {
            Ok(Some(membership)) => {
                self.tunnel(&membership.interface).remove().await?;
                self.forget(network, &membership.server.signing_key).await
            }
            Ok(None) | Err(_) => {
                self.tunnel(&format!("nm-{network}")).remove().await?;
                Ok(self.directory.forget(network)?)
            }
        }
    }

    /// Forgets a membership; with the last one at a server also the identity and the registration there.
    pub(crate) async fn forget(&self, network: &NetworkName, server: &PublicKey) -> Result<(), AgentError> {
        let _lock = self.directory.lock_identity(server).await?;
        self.directory.forget(network)?;
        if self.directory.is_member(server)? {
            return Ok(());
        }
        self.comms(server).end().await?;
        Ok(self.directory.forget_identity(server)?)
    }

    fn member(&self, network: &NetworkName) -> Result<Member, AgentError> {
        if self.directory.membership(network)?.is_none() {
            return Err(AgentError::NotMember(network.clone()));
        }
        Member::open(self.clone(), network)
    }

    /// How the machine's networks are; `control` tells the way that their control traffic takes.
    pub async fn status(&self, control: impl Fn(&NetworkName) -> api::Control) -> Result<Status, AgentError> {
        let mut networks = Vec::new();
        for network in self.directory.networks()? {
            let membership = match self.directory.membership(&network) {
                Ok(Some(membership)) => membership,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(error = told(&error), %network, "a network is left out");
                    continue;
                }
            };
            let device = self.tunnel(&membership.interface).observe().await.map_err(TunnelError::from)?;
            let way = control(&network);
            let Membership { node, interface, position, view, .. } = membership;
            let known = device.as_ref().map(|device| &device.peers);
            let peer = |(name, peer): (&Name, &Arc<schema::view::Peer>)| {
                let seen = known.and_then(|peers| peers.get(&peer.public_key));
                let at = seen.and_then(|seen| seen.settings.endpoint).map(|at| at.to_string());
                let handshake = seen.and_then(|seen| i64::try_from(seen.last_handshake?).ok());
                PeerStatus {
                    name: name.clone(),
                    public_key: peer.public_key,
                    endpoint: at.or_else(|| peer.endpoint.as_ref().map(ToString::to_string)),
                    allowed_ips: peer.allowed_ips.clone(),
                    last_handshake: handshake.and_then(|at| Timestamp::from_second(at).ok()),
                }
            };
            networks.push(NetworkStatus {
                name: network,
                node,
                interface,
                up: device.is_some(),
                epoch: position.epoch,
                revision: position.revision,
                control: way,
                addresses: view.interface.addresses.iter().map(IpNet::addr).collect(),
                peers: view.peers.iter().map(peer).collect(),
            });
        }
        Ok(Status { networks, registrations: self.registrations().await? })
    }
}

fn address_of(token: &Token) -> ServerAddress {
    let ca_pin = token.ca_pin.map(PublicKey);
    ServerAddress { addresses: token.addresses.clone(), signing_key: token.signing_key, ca_pin }
}

/// An error with its causes, on one line.
pub fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

fn first_view(
    update: &Update,
    network: &NetworkName,
    node: &Name,
    identity: &PublicKey,
    server: &ServerAddress,
) -> Result<(schema::view::View, proto::convert::Position), AgentError> {
    match accept_update(update, network, node, identity, &server.signing_key, None)? {
        (Told::View(view), position) => Ok((view, position)),
        (Told::Removed, _) => Err(AgentError::Removed(network.clone())),
    }
}

fn new_identity() -> Result<SigningKey, AgentError> {
    random().map(|seed| SigningKey::from_bytes(seed.expose()))
}

fn new_private_key() -> Result<PrivateKey, AgentError> {
    random().map(|bytes| PrivateKey::from_random(*bytes.expose()))
}

fn random() -> Result<Secret<[u8; 32]>, AgentError> {
    let mut bytes = Secret::new([0; 32]);
    match getrandom::fill(bytes.expose_mut()) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(Refusal::failed("get random numbers from the operating system")(error).into()),
    }
}

/// The host's name without its domain.
fn host_name() -> Result<Name, AgentError> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    let short = host.split('.').next().unwrap_or_default();
    let refused = |why| AgentError::HostName { name: short.into(), why, meant: Name::meant(short) };
    short.to_lowercase().parse().map_err(refused)
}

/// What the machine runs, for people to read.
fn os() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    format!("{} {}", pretty.trim_matches('"'), std::env::consts::ARCH)
}
