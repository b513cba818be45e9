//! One membership in hand: its state on the disk, its tunnel, and the line to its server.

use std::sync::Arc;

use proto::convert::Position;
use proto::wire::{Facts, Update};
use schema::scalars::NetworkName;

use super::{Agent, AgentError, told};
use crate::control::Control;
use crate::files::Lock;
use crate::membership::{Accepted, Membership};
use crate::tunnel::{Tunnel, TunnelError};

/// One membership in hand.
pub struct Member {
    agent: Agent,
    membership: Membership,
    tunnel: Tunnel,
    control: Arc<Control>,
    /// What the server was told of this machine.
    told: Option<Facts>,
    /// Where the View stands that the machine is set by, as far as this process knows.
    set: Position,
    /// Whether the disk has what is at hand.
    saved: bool,
    _lock: Option<Lock>,
}

impl Member {
    /// Takes charge of a network that the machine is in.
    pub fn open(agent: Agent, network: &NetworkName) -> Result<Self, AgentError> {
        let lock = agent.directory.lock(network)?.ok_or_else(|| AgentError::Busy(network.clone()))?;
        let membership = agent.directory.membership(network)?.ok_or_else(|| AgentError::NotMember(network.clone()))?;
        Ok(Self { _lock: Some(lock), ..Self::new(agent, membership)? })
    }

    /// A membership that the caller has charge of.
    pub(super) fn new(agent: Agent, membership: Membership) -> Result<Self, AgentError> {
        let server = &membership.server;
        let identity = agent.directory.identity(&server.signing_key)?;
        let identity = identity.ok_or_else(|| AgentError::NoIdentity(membership.network.clone()))?;
        let control = agent.line(server, identity);
        let tunnel = agent.tunnel(&membership.interface);
        Ok(Self { agent, membership, tunnel, control, told: None, set: Position::default(), saved: true, _lock: None })
    }

    /// The membership as it stands.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The line to its server.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// What the machine says of itself.
    pub fn facts(&self) -> Facts {
        let Membership { endpoint, .. } = &self.membership;
        let endpoint = endpoint.as_ref().or(self.agent.settings.endpoint.as_ref());
        self.control.facts(self.membership.wanted_port(), endpoint)
    }

    /// Notes what the server was told of the machine.
    pub fn told(&mut self, facts: Facts) {
        self.told = Some(facts);
    }

    /// Whether the server was told something else of the machine, or nothing.
    pub fn has_news(&self) -> bool {
        self.told.as_ref() != Some(&self.facts())
    }

    /// Takes in what the server told, and keeps it; a disk that is full keeps nobody from knowing it.
    pub fn take(&mut self, update: &Update) -> Result<Accepted, AgentError> {
        let before = self.membership.position;
        let accepted = self.membership.accept(update, &self.control.identity())?;
        if self.membership.position != before {
            self.save();
        }
        Ok(accepted)
    }

    /// Keeps the membership as it is at hand; what fails is tried again when the machine is set the next time.
    fn save(&mut self) {
        let outcome = self.agent.directory.save(&self.membership);
        self.saved = outcome.is_ok();
        if let Err(error) = outcome {
            tracing::warn!(error = told(&error), "what the server told is known, but not kept");
        }
    }

    /// Sets the machine by the View.
    pub async fn set(&mut self) -> Result<(), TunnelError> {
        let instead = self.tunnel.reconcile(&self.membership).await?;
        self.set = self.membership.position;
        if self.membership.instead != instead || !self.saved {
            self.membership.instead = instead;
            self.save();
        }
        Ok(())
    }

    /// Where the machine stands when it checks in: what it was told and could not be set by does not count, so that the
    /// server does not take it for done.
    pub fn stands(&self) -> Position {
        self.set
    }

    /// Checks in, and takes in what the server told.
    pub async fn check_in(&mut self, with_facts: bool) -> Result<Accepted, AgentError> {
        let facts = with_facts.then(|| self.facts());
        let update = self.control.check_in(&self.membership.network, self.set, facts.clone()).await?;
        if let Some(facts) = facts {
            self.told(facts);
        }
        match update.map_or(Ok(Accepted::Same), |update| self.take(&update)) {
            // What does not fit to the View at hand is no failure: the whole one helps.
            Err(AgentError::Told(_)) | Ok(Accepted::Overtaken) => self.pull().await,
            outcome => outcome,
        }
    }

    /// Asks for the whole View, and takes it in.
    pub async fn pull(&mut self) -> Result<Accepted, AgentError> {
        let update = self.control.whole(&self.membership.network).await?;
        self.take(&update)
    }

    /// Tells the server that the machine leaves, and takes everything down; with `force` whatever the server says.
    pub async fn leave(&mut self, force: bool) -> Result<(), AgentError> {
        match self.control.leave(&self.membership.network).await {
            Err(error) if force => tracing::warn!(%error, "the server was not told; an admin has to remove the node"),
            outcome => outcome?,
        }
        self.take_down().await
    }

    /// Takes everything down, and forgets the network.
    pub async fn take_down(&mut self) -> Result<(), AgentError> {
        self.tunnel.remove().await?;
        self.agent.forget(&self.membership.network, &self.membership.server.signing_key).await
    }

    /// Undoes a join whose tunnel did not come up, as far as that goes.
    pub(super) async fn leave_again(&mut self) {
        if let Err(error) = self.leave(true).await {
            tracing::warn!(error = told(&error), network = %self.membership.network, "could not undo the join");
        }
    }
}
