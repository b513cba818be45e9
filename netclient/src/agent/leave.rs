//! Leaving: the server is sent it, everything is removed from the host, and nothing is stored.
//!
//! Of a network whose state cannot be read, only what is certainly this agent's is removed, whatever its name:
//! what [`Agent::certainly_ours`] finds, and what carries the numbers and names of the agent's slot (routes,
//! rules, the table of the packet filter). Anything else that may be the network's is left, and said.

use std::collections::BTreeSet;

use schema::scalars::{NetworkName, SigningKey};

use super::{Agent, AgentError, error_chain};
use crate::directory::DirectoryError;
use crate::tunnel::NetworkTunnel;

impl Agent {
    /// Leaves a network, and removes everything of it. With `force` whatever the server says, and even if the
    /// host cannot send it anything because its state is damaged or cannot be read.
    ///
    /// Returns the interfaces that may be the network's and were left, since nothing shows that they are.
    pub async fn leave(&self, network: &NetworkName, force: bool) -> Result<BTreeSet<String>, AgentError> {
        use DirectoryError::{Damaged, Exposed, File};
        if self.leave_waiting(network, force).await? {
            return Ok(BTreeSet::new());
        }
        match self.member(network) {
            Ok(mut member) => member.leave(force).await.map(|()| BTreeSet::new()),
            Err(
                error @ (AgentError::NoIdentity(_)
                | AgentError::Directory(Damaged { .. } | File { .. } | Exposed(_))),
            ) if force => {
                let _lock = self.directory.lock(network)?.ok_or_else(|| AgentError::Busy(network.clone()))?;
                tracing::warn!(
                    error = why(&error),
                    "the server does not hear that this host leaves; an admin has to remove the node: nmplan node remove {network}/NAME"
                );
                self.give_up(network).await
            }
            Err(error) => Err(error),
        }
    }

    /// Removes what is left of a network whose state is damaged or cannot be read, for the holder of its lock.
    async fn give_up(&self, network: &NetworkName) -> Result<BTreeSet<String>, AgentError> {
        if let Ok(Some(membership)) = self.directory.membership(network) {
            self.take_down(&mut self.tunnel(network, &membership.interface), network).await?;
            self.forget(network, &membership.server.signing_key).await?;
            return Ok(BTreeSet::new());
        }
        let interfaces = self.interfaces_of_unread(network).await?;
        let mut tunnels: Vec<NetworkTunnel> =
            interfaces.ours.iter().map(|interface| self.tunnel(network, interface)).collect();
        self.take_all_down(&mut tunnels, network).await?;
        self.directory.forget(network)?;
        Ok(interfaces.left)
    }

    /// Forgets a membership; with the last one at a server also the identity and the registration there.
    pub(crate) async fn forget(&self, network: &NetworkName, server: &SigningKey) -> Result<(), AgentError> {
        let _lock = self.directory.lock_identity(server).await?;
        if self.forget_membership(network, server).await? && !self.directory.is_known_at(server)? {
            self.directory.forget_identity(server)?;
        }
        Ok(())
    }

    /// Forgets a membership that the server ended. The identity stays: a host that is barred is barred by it.
    pub(crate) async fn forget_removed(
        &self,
        network: &NetworkName,
        server: &SigningKey,
    ) -> Result<(), AgentError> {
        let _lock = self.directory.lock_identity(server).await?;
        self.forget_membership(network, server).await.map(drop)
    }

    /// Returns whether it was the last one at the server, and the registration there has ended.
    async fn forget_membership(
        &self,
        network: &NetworkName,
        server: &SigningKey,
    ) -> Result<bool, AgentError> {
        self.directory.forget(network)?;
        if self.directory.is_member(server)? {
            return Ok(false);
        }
        self.comms(server).end().await?;
        Ok(true)
    }
}

/// Why the state cannot be read; an error that advises what is being done leaves that out.
fn why(error: &AgentError) -> String {
    if let AgentError::Directory(DirectoryError::Damaged { path, why }) = error {
        return format!("{} is damaged: {why}", path.display());
    }
    error_chain(error)
}
