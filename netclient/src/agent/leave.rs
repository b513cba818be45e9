//! Leaving: the server is sent it, everything is removed from the host, and nothing is stored.

use schema::scalars::{NetworkName, SigningKey};

use super::{Agent, AgentError};
use crate::directory::DirectoryError;

impl Agent {
    /// Leaves a network, and removes everything of it. With `force` whatever the server says, and even if the
    /// host cannot send it anything because its state is damaged.
    pub async fn leave(&self, network: &NetworkName, force: bool) -> Result<(), AgentError> {
        match self.member(network) {
            Ok(mut member) => member.leave(force).await,
            Err(AgentError::NoIdentity(_) | AgentError::Directory(DirectoryError::Damaged { .. }))
                if force =>
            {
                self.give_up(network).await
            }
            Err(error) => Err(error),
        }
    }

    /// Removes what is left of a network whose state is damaged.
    async fn give_up(&self, network: &NetworkName) -> Result<(), AgentError> {
        let _lock = self.directory.lock(network)?.ok_or_else(|| AgentError::Busy(network.clone()))?;
        tracing::warn!(%network, "the state of this host is damaged, so the server does not hear of it; an admin has to remove the node");
        match self.directory.membership(network) {
            Ok(Some(membership)) => {
                self.take_down(&mut self.tunnel(network, &membership.interface), network).await?;
                self.forget(network, &membership.server.signing_key).await
            }
            Ok(None) | Err(_) => {
                for interface in self.interfaces_left(network)? {
                    self.take_down(&mut self.tunnel(network, &interface), network).await?;
                }
                Ok(self.directory.forget(network)?)
            }
        }
    }

    /// Forgets a membership; with the last one at a server also the identity and the registration there.
    pub(crate) async fn forget(&self, network: &NetworkName, server: &SigningKey) -> Result<(), AgentError> {
        let _lock = self.directory.lock_identity(server).await?;
        self.directory.forget(network)?;
        if self.directory.is_member(server)? {
            return Ok(());
        }
        self.comms(server).end().await?;
        Ok(self.directory.forget_identity(server)?)
    }
}
