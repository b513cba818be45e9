//! One membership in use: its state on the disk, its tunnel, and the connection to its server.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::Stream;
use proto::position::Position;
use proto::wire::{self, Facts, Update};
use schema::inventory::NodeProblem;
use schema::scalars::{Endpoint, NetworkName, WireGuardKey};
use schema::view::Tunnel;
use tokio::sync::broadcast;

use super::{Agent, AgentError, error_chain};
use crate::control::Connection;
use crate::directory::{DirectoryError, Kept};
use crate::files::Lock;
use crate::journal::Journal;
use crate::membership::{Accepted, Membership, PortFallback};
use crate::system::watch::HostEvent;
use crate::tunnel::{BroughtUp, NetworkTunnel, TunnelError};
use crate::tunnels::TunnelChanges;

/// One membership in use.
pub struct Member {
    agent: Agent,
    membership: Membership,
    tunnel: NetworkTunnel,
    control: Arc<Connection>,
    /// The facts of this host that were sent last.
    sent_facts: Option<Facts>,
    /// The position of the View that was applied, as far as this process knows.
    applied: Position,
    /// What changed since; absent: unknown.
    changes: Option<TunnelChanges>,
    /// What is not as it should be on the host, by code.
    problems: Vec<NodeProblem>,
    /// The journal of the membership on the disk; absent: the disk lacks something of it.
    journal: Option<Journal>,
    _lock: Option<Lock>,
}

impl Member {
    /// Locks and opens a network that the host is in.
    pub fn open(agent: Agent, network: &NetworkName) -> Result<Self, AgentError> {
        let lock = agent.directory.lock(network)?.ok_or_else(|| AgentError::Busy(network.clone()))?;
        let kept = agent.directory.kept(network)?.ok_or_else(|| AgentError::NotMember(network.clone()))?;
        let Kept { membership, journal, torn } = kept;
        if torn {
            tracing::warn!(%network, "the last update was not stored completely; continuing from the one before");
        }
        Ok(Self { _lock: Some(lock), ..Self::new(agent, membership, journal)? })
    }

    /// A membership that the caller has locked.
    pub(super) fn new(agent: Agent, membership: Membership, journal: Journal) -> Result<Self, AgentError> {
        let server = &membership.server;
        let identity = agent.directory.identity(&server.signing_key)?;
        let identity = identity.ok_or_else(|| AgentError::NoIdentity(membership.network.clone()))?;
        let control = agent.connection(server, identity);
        let tunnel = agent.tunnel(&membership.network, &membership.interface);
        Ok(Self {
            agent,
            membership,
            tunnel,
            control,
            sent_facts: None,
            applied: Position::default(),
            changes: None,
            problems: Vec::new(),
            journal: Some(journal),
            _lock: None,
        })
    }

    /// The current membership.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The connection to its server.
    pub fn control(&self) -> &Arc<Connection> {
        &self.control
    }

    /// What others do to the host, from now on.
    pub(crate) fn host_events(&self) -> broadcast::Receiver<HostEvent> {
        self.agent.host_events()
    }

    /// What the host reports about itself.
    pub fn facts(&self) -> Facts {
        let Membership { endpoint, .. } = &self.membership;
        let endpoint = endpoint.as_ref().or(self.agent.settings.endpoint.as_ref());
        let problem = |NodeProblem { code, message, egress }: &NodeProblem| wire::Problem {
            code: code.to_string(),
            message: message.to_string(),
            egress: egress.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let problems = self.problems.iter().take(NodeProblem::MOST).map(problem).collect();
        Facts { problems, ..self.control.facts(self.membership.wanted_port(), endpoint) }
    }

    /// What is not as it should be on the host, by code.
    pub fn problems(&self) -> &[NodeProblem] {
        &self.problems
    }

    /// Records the facts of the host that were sent.
    pub fn record_sent_facts(&mut self, facts: Facts) {
        self.sent_facts = Some(facts);
    }

    /// Whether the facts differ from those that were sent last.
    pub fn has_news(&self) -> bool {
        self.sent_facts.as_ref() != Some(&self.facts())
    }

    /// Accepts what the server sent, and stores it; it is used even if the disk is full.
    pub fn take(&mut self, update: &Update) -> Result<Accepted, AgentError> {
        let (position, view) = (self.membership.position, self.membership.view.clone());
        let accepted = self.membership.accept(update, &self.control.identity())?;
        if self.membership.position != position {
            self.keep(update);
            // The same View at another position: what is applied is of that one as well.
            if accepted == Accepted::Same && self.applied == position {
                self.applied = self.membership.position;
            }
        }
        if accepted == Accepted::Changed {
            let later = TunnelChanges::between(&view, &self.membership.view);
            self.changes = self.changes.take().zip(later).map(|(mut changes, later)| {
                changes.extend(later);
                changes
            });
        }
        Ok(accepted)
    }

    /// Stores one more update: in the log, unless a new base costs less.
    fn keep(&mut self, update: &Update) {
        let network = &self.membership.network;
        let appended = match &mut self.journal {
            Some(journal) => self.agent.directory.append(network, journal, update),
            None => Ok(false),
        };
        match appended {
            Ok(true) => {}
            Ok(false) => self.save(),
            Err(error) => self.not_kept(&error),
        }
    }

    /// Writes the whole membership to the disk.
    fn save(&mut self) {
        match self.agent.directory.save(&self.membership) {
            Ok(journal) => self.journal = Some(journal),
            Err(error) => self.not_kept(&error),
        }
    }

    /// What the disk lacks now is written the next time that the View is applied.
    fn not_kept(&mut self, error: &DirectoryError) {
        self.journal = None;
        tracing::warn!(error = error_chain(error), "cannot store what the server sent; using it from memory");
    }

    /// Applies what has changed in the View since it was applied last; everything, if that is not known.
    pub async fn apply(&mut self) -> Result<(), TunnelError> {
        let Some(changes) = self.changes.take() else { return self.reconcile().await };
        match self.agent.follow(&mut self.tunnel, &self.membership, changes).await {
            Ok(()) => self.done(self.membership.port_fallback),
            Err(error) => {
                tracing::debug!(
                    error = error_chain(&error),
                    "a change does not apply alone; comparing everything"
                );
                self.reconcile().await?;
            }
        }
        Ok(())
    }

    /// Compares the host with the View, and applies what it lacks.
    pub async fn reconcile(&mut self) -> Result<(), TunnelError> {
        self.changes = None;
        let up = self.agent.bring_up(&mut self.tunnel, &self.membership).await;
        if let Err(error @ TunnelError::Device(_)) = &up
            && self.tunnel.kind().is_none()
        {
            // What was found of the device that was there is no longer so.
            self.problems = vec![NodeProblem::new(NodeProblem::DEVICE_KIND, error_chain(error))];
        }
        let BroughtUp { port_fallback, problems } = up?;
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            let NodeProblem { code, message, egress } = problem;
            let (network, egress) = (&self.membership.network, egress.as_ref().map(tracing::field::display));
            tracing::warn!(%code, message, %network, egress, "something on this host is not as it should be");
        }
        self.problems = problems;
        self.done(port_fallback);
        Ok(())
    }

    fn done(&mut self, port_fallback: Option<PortFallback>) {
        self.changes = Some(TunnelChanges::default());
        self.applied = self.membership.position;
        if self.membership.port_fallback != port_fallback || self.journal.is_none() {
            self.membership.port_fallback = port_fallback;
            self.save();
        }
    }

    /// Looks up the names of peers' endpoints that are due; see [`NetworkTunnel::lookups`].
    pub(crate) fn lookups(&mut self) -> impl Stream<Item = (Endpoint, Vec<SocketAddr>)> + Send + use<> {
        self.tunnel.lookups()
    }

    /// Takes in what names resolve to, and remembers it; whether anything is to be applied by it.
    pub(crate) fn resolved(&mut self, found: &[(Endpoint, Vec<SocketAddr>)]) -> bool {
        let moved =
            found.iter().flat_map(|(endpoint, found)| self.tunnel.resolved(endpoint, found)).collect();
        self.agent.remember_names(&self.tunnel, &self.membership.network, &moved);
        self.redirect(moved)
    }

    /// Has these tunnels, which lead elsewhere, be applied with what else changes; whether there are any.
    fn redirect(&mut self, moved: BTreeMap<WireGuardKey, Tunnel>) -> bool {
        let any = !moved.is_empty();
        // Where everything is to be compared, that finds it.
        if let Some(changes) = &mut self.changes {
            changes.redirect(moved);
        }
        any
    }

    /// Waits a little for the names of peers' endpoints, and applies what they resolve to: for a process that
    /// ends.
    pub(super) async fn settle_names(&mut self) {
        let moved = self.agent.look_up(&mut self.tunnel, &self.membership.network).await;
        if self.redirect(moved)
            && let Err(error) = self.apply().await
        {
            tracing::warn!(
                error = error_chain(&error),
                "cannot apply where peers are; they are reached once they send"
            );
        }
    }

    /// The position of the View that was applied, which is what a check-in reports: what could not be applied
    /// does not count, so that the server does not consider it done.
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// Checks in, and accepts what the server sends.
    pub async fn check_in(&mut self, with_facts: bool) -> Result<Accepted, AgentError> {
        let facts = with_facts.then(|| self.facts());
        let update = self.control.check_in(&self.membership.network, self.applied, facts.clone()).await?;
        if let Some(facts) = facts {
            self.record_sent_facts(facts);
        }
        match update.map_or(Ok(Accepted::Same), |update| self.take(&update)) {
            // An update that does not apply to the current View is not a failure: the whole View replaces it.
            Err(AgentError::InvalidUpdate(_)) | Ok(Accepted::Overtaken) => self.pull().await,
            outcome => outcome,
        }
    }

    /// Asks for the whole View, and accepts it.
    pub async fn pull(&mut self) -> Result<Accepted, AgentError> {
        let update = self.control.whole(&self.membership.network).await?;
        self.take(&update)
    }

    /// Reports to the server that the host leaves, and removes everything; with `force` whatever the server
    /// says.
    pub async fn leave(&mut self, force: bool) -> Result<(), AgentError> {
        match self.control.leave(&self.membership.network).await {
            Err(error) if force => {
                tracing::warn!(%error, "could not report the leave to the server; an admin has to remove the node")
            }
            outcome => outcome?,
        }
        self.agent.take_down(&mut self.tunnel, &self.membership.network).await?;
        self.agent.forget(&self.membership.network, &self.membership.server.signing_key).await
    }

    /// Removes everything of a network that the server removed this host from, and forgets it.
    pub async fn take_down(&mut self) -> Result<(), AgentError> {
        self.agent.take_down(&mut self.tunnel, &self.membership.network).await?;
        self.agent.forget_removed(&self.membership.network, &self.membership.server.signing_key).await
    }

    /// Undoes a join whose tunnel did not come up, as far as possible.
    pub(super) async fn leave_again(&mut self) {
        if let Err(error) = self.leave(true).await {
            tracing::warn!(error = error_chain(&error), network = %self.membership.network, "could not undo the join");
        }
    }
}
