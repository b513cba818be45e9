//! Joining: a host joins a network, and its tunnel comes up, or nothing is left of the attempt. A host without
//! an access key may have to wait; that is stored, and goes on with the next attempt.

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use proto::convert::{DecodedUpdate, accept_update};
use proto::position::Position;
use proto::token::Token;
use proto::wire::{self, ChallengeResponse, Update};
use schema::scalars::{Endpoint, Identity, Name, NetworkName, Scalar};
use schema::view::View;

use super::keys::{Attempt, new_private_key};
use super::member::Member;
use super::{Agent, AgentError, address_of, error_chain};
use crate::control::{Admission, CallError, Connection, JoinRequest};
use crate::journal::Journal;
use crate::membership::{Accepted, Membership, ServerAddress};
use crate::tunnel::TunnelError;
use crate::waiting::{Waiting, WaitingState};

/// The options of a join; what is absent here is taken from the settings, and then chosen by the agent.
#[derive(Clone, Debug, Default)]
pub struct JoinOptions {
    /// The name to join under.
    pub name: Option<Name>,
    /// The interface.
    pub interface: Option<String>,
    /// The UDP port.
    pub port: Option<u16>,
    /// Where the others reach this host.
    pub endpoint: Option<Endpoint>,
}

/// How a host is admitted: asks the server, by a connection and a challenge from it.
pub type JoinMethod = Box<
    dyn for<'a> FnOnce(
            &'a Connection,
            ChallengeResponse,
            JoinRequest<'a>,
        ) -> BoxFuture<'a, Result<Admission, CallError>>
        + Send,
>;

/// The result of a join.
#[derive(Clone, Debug)]
pub enum JoinOutcome {
    /// The host has joined.
    New(Membership),
    /// It had joined before.
    Already(Membership),
    /// It has no access key, and waits, or was dropped.
    Waiting(Waiting),
}

/// What an attempt to join has led to.
enum Entered {
    In(Box<Membership>, Journal),
    Waiting(Box<Waiting>),
}

impl Agent {
    /// Joins the network of a token and brings its tunnel up. A host that has joined already stays as it is.
    ///
    /// Whatever fails, nothing is left, on the host or on the server.
    pub async fn join(&self, token: &Token, options: &JoinOptions) -> Result<JoinOutcome, AgentError> {
        let token = token.clone();
        let network = token.network.clone();
        let server = address_of(&token);
        let method: JoinMethod = Box::new(move |control, challenge, request| {
            Box::pin(async move {
                let (name, update) = control.join(&token, challenge, request).await?;
                Ok(Admission::In(name, Box::new(update)))
            })
        });
        self.admit(&network, &server, options, method).await
    }

    /// Joins a network by another method of admission; otherwise like [`Agent::join`].
    pub async fn admit(
        &self,
        network: &NetworkName,
        server: &ServerAddress,
        options: &JoinOptions,
        method: JoinMethod,
    ) -> Result<JoinOutcome, AgentError> {
        let lock = self.directory.lock(network)?;
        if let Some(membership) = self.directory.membership(network)? {
            return self.stay(membership, server, options, lock.is_some()).await;
        }
        let _lock = lock.ok_or_else(|| AgentError::Busy(network.clone()))?;
        let waited = self.directory.waiting(network)?.is_some();
        let (membership, journal) = match self.enter(network, server, options, method).await? {
            Entered::In(membership, journal) => (*membership, journal),
            Entered::Waiting(waiting) => return Ok(JoinOutcome::Waiting(*waiting)),
        };
        let mut member = Member::new(self.clone(), membership, journal)?;
        match member.apply().await {
            // Somebody let this host in, which nobody does again because of what fails here.
            Err(error) if waited => return Err(AgentError::NotUpYet(error)),
            Err(error) => {
                member.leave_again().await;
                return Err(AgentError::NotUp(error));
            }
            Ok(_) => {}
        }
        // Reports the port that was found, and that the View is applied. If it fails, the next one reports
        // it.
        match member.check_in(true).await {
            Ok(Accepted::Changed) => drop(member.apply().await),
            Ok(_) => {}
            Err(error) => tracing::debug!(error = error_chain(&error), "the first check-in failed"),
        }
        member.settle_names().await;
        Ok(JoinOutcome::New(member.membership().clone()))
    }

    /// A host that has joined already, and may learn a new address of the server.
    async fn stay(
        &self,
        mut membership: Membership,
        server: &ServerAddress,
        options: &JoinOptions,
        free: bool,
    ) -> Result<JoinOutcome, AgentError> {
        if membership.server.signing_key != server.signing_key {
            return Err(AgentError::OtherServer(membership.network));
        }
        if self.directory.identity(&server.signing_key)?.is_none() {
            return Err(AgentError::NoIdentity(membership.network));
        }
        if let Some(name) = options.name.as_ref().filter(|name| **name != membership.node) {
            return Err(AgentError::OtherName {
                network: membership.network,
                node: membership.node,
                name: name.clone(),
            });
        }
        if free {
            if membership.server != *server {
                membership.server = server.clone();
                self.directory.save(&membership)?;
            }
            self.bring_up_alone(&membership).await?;
        }
        Ok(JoinOutcome::Already(membership))
    }

    /// Makes the server admit the host, and stores what it sent.
    async fn enter(
        &self,
        network: &NetworkName,
        server: &ServerAddress,
        options: &JoinOptions,
        method: JoinMethod,
    ) -> Result<Entered, AgentError> {
        let waiting = self.directory.waiting(network)?;
        if waiting.as_ref().is_some_and(|waiting| waiting.server.signing_key != server.signing_key) {
            return Err(AgentError::OtherServer(network.clone()));
        }
        let options = with_earlier(options.clone(), waiting.as_ref());
        let settings = &self.settings;
        let interface = options.interface.unwrap_or_else(|| self.interface(network));
        let port = options.port.or(settings.port);
        self.host.check_free(&interface, port)?;
        let name = options.name.or_else(|| settings.name.clone()).map_or_else(host_name, Ok)?;
        let _lock = self.directory.lock_identity(&server.signing_key).await?;
        let mut attempt = Attempt::begin(&self.directory, server.signing_key)?;
        let control = self.connection(server, attempt.identity.clone());
        let challenge = control.challenge().await?;
        let private_key = match &waiting {
            Some(waiting) => waiting.private_key.clone(),
            None => new_private_key()?,
        };
        let mut facts =
            control.facts(port.unwrap_or(0), options.endpoint.as_ref().or(settings.endpoint.as_ref()));
        let ours = self.outside(None, None)?.interfaces;
        let connected = self.host.connected(&ours).await.map_err(TunnelError::from)?;
        let connected = connected.into_iter().map(|(interface, range)| {
            let range = Some(proto::convert::from_prefix(&range));
            wire::Connected { interface, range }
        });
        facts.connected = connected.collect();
        // Stored before it is used: if the answer is lost, the server knows the next try as the same host.
        attempt.keep()?;
        let identity = &attempt.identity;
        let request = JoinRequest { name: &name, identity, private_key: &private_key, facts, os: os() };
        let (node, update) = match method(&control, challenge, request).await {
            Ok(Admission::In(node, update)) => (node, update),
            Ok(answer @ (Admission::Waits(_) | Admission::Dropped)) => {
                let now = Timestamp::now();
                let state = match answer {
                    Admission::Waits(left) => {
                        WaitingState::Until(now.checked_add(left).unwrap_or(Timestamp::MAX))
                    }
                    Admission::In(..) | Admission::Dropped => WaitingState::Dropped,
                };
                let kept = Waiting {
                    network: network.clone(),
                    name,
                    server: server.clone(),
                    identity: control.identity(),
                    interface,
                    private_key,
                    port,
                    endpoint: options.endpoint,
                    since: waiting.as_ref().filter(|waiting| waiting.goes_on()).map_or(now, |it| it.since),
                    state,
                };
                // Of what is the same nothing is written, however often the host asks.
                if waiting.is_none_or(|before| !is_same(&before, &kept)) {
                    self.directory.keep_waiting(&kept)?;
                }
                attempt.commit();
                return Ok(Entered::Waiting(Box::new(kept)));
            }
            Err(error) => {
                // Only a server that refused does not know it.
                if !matches!(error, CallError::Refused(_)) {
                    attempt.commit();
                }
                return Err(error.into());
            }
        };
        let kept =
            first_view(&update, network, &node, &control.identity(), server).and_then(|(view, position)| {
                let network = network.clone();
                let endpoint = options.endpoint;
                let port_fallback = None;
                let server = server.clone();
                let membership = Membership {
                    network,
                    node,
                    server,
                    interface,
                    private_key,
                    port,
                    endpoint,
                    port_fallback,
                    position,
                    view,
                };
                let journal = self.directory.save(&membership)?;
                Ok((membership, journal))
            });
        if kept.is_err() && waiting.is_some() {
            // It asks again, and is in already.
            attempt.commit();
            return kept.map(|(membership, journal)| Entered::In(Box::new(membership), journal));
        }
        if kept.is_err() {
            // It has joined, but cannot use the answer. If this fails as well, an admin has to remove the
            // node.
            let _ = control.leave(network).await;
            return kept.map(|(membership, journal)| Entered::In(Box::new(membership), journal));
        }
        attempt.commit();
        if let Err(error) = self.directory.forget_waiting(network) {
            // What is joined does not wait, whatever is stored.
            tracing::debug!(%error, "what was stored of the waiting stays");
        }
        if let Err(error) = self.comms(&server.signing_key).keep().await {
            // The next use of the tunnel, or a new registration, corrects that; TLS works meanwhile.
            tracing::warn!(error = error_chain(&error), "the tunnel to the server may expire");
        }
        kept.map(|(membership, journal)| Entered::In(Box::new(membership), journal))
    }
}

/// The options, those that are absent as they were when the host began to wait.
fn with_earlier(options: JoinOptions, waiting: Option<&Waiting>) -> JoinOptions {
    let Some(Waiting { name, interface, port, endpoint, .. }) = waiting else { return options };
    JoinOptions {
        name: options.name.or_else(|| Some(name.clone())),
        interface: options.interface.or_else(|| Some(interface.clone())),
        port: options.port.or(*port),
        endpoint: options.endpoint.or_else(|| endpoint.clone()),
    }
}

/// Whether a host waits as it did: when it is dropped at the latest is known to the server, and by the clock of
/// this host to a minute.
fn is_same(before: &Waiting, now: &Waiting) -> bool {
    let near = match (before.state, now.state) {
        (WaitingState::Until(before), WaitingState::Until(now)) => {
            before.duration_since(now).abs() < SignedDuration::from_mins(1)
        }
        (before, now) => before == now,
    };
    near && Waiting { state: before.state, ..now.clone() } == *before
}

fn first_view(
    update: &Update,
    network: &NetworkName,
    node: &Name,
    identity: &Identity,
    server: &ServerAddress,
) -> Result<(View, Position), AgentError> {
    match accept_update(update, network, node, identity, &server.signing_key, None)? {
        (DecodedUpdate::View(view), position) => Ok((*view, position)),
        (DecodedUpdate::Removed, _) => Err(AgentError::Removed(network.clone())),
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

/// The host's operating system, for people to read.
fn os() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    format!("{} {}", pretty.trim_matches('"'), std::env::consts::ARCH)
}
