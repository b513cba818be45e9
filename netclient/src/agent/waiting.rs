//! Joining without an access key: the host waits until somebody lets it in, and asks until then.

use futures_util::FutureExt;
use schema::scalars::{Fingerprint, NetworkName};

use super::join::{JoinMethod, JoinOptions, JoinOutcome};
use super::{Agent, AgentError};
use crate::control;
use crate::membership::ServerAddress;
use crate::waiting::Waiting;

impl Agent {
    /// Joins a network without an access key, at the server of that signing key; where nobody has let the host
    /// in yet, it waits. A host that waits or has joined already stays as it is.
    pub async fn ask(
        &self,
        address: &str,
        pin: Fingerprint,
        network: &NetworkName,
        options: &JoinOptions,
    ) -> Result<JoinOutcome, AgentError> {
        let server = self.identify(address, pin).await?;
        self.admit(network, &server, options, asking(network, false)).await
    }

    /// Asks once more for a host that waits; one that was dropped stays so.
    pub async fn ask_again(&self, network: &NetworkName) -> Result<JoinOutcome, AgentError> {
        let not_waiting = || AgentError::NotMember(network.clone());
        let waiting = self.directory.waiting(network)?.ok_or_else(not_waiting)?;
        if !waiting.goes_on() {
            return Ok(JoinOutcome::Waiting(waiting));
        }
        self.admit(network, &waiting.server, &JoinOptions::default(), asking(network, true)).await
    }

    /// Finds out who the server at an address is. Whatever its certificate, only the answer of the key with
    /// that fingerprint counts; what it says of its CA is what its certificate is checked against from then
    /// on.
    async fn identify(&self, address: &str, pin: Fingerprint) -> Result<ServerAddress, AgentError> {
        // Nothing is kept under this key: no server has it.
        let nobody = schema::scalars::SigningKey([0; 32]);
        let comms = self.comms(&nobody);
        let (signing_key, ca_pin) = control::identify(address, &comms, self.within.clone(), pin).await?;
        Ok(ServerAddress { addresses: vec![address.to_owned()], signing_key, ca_pin })
    }

    /// Ends the waiting of a host: the server is sent it, and nothing is stored; with `force` whatever the server
    /// says. Returns whether it waited.
    pub(super) async fn leave_waiting(&self, network: &NetworkName, force: bool) -> Result<bool, AgentError> {
        if self.directory.is_in(network) || self.directory.waiting(network)?.is_none() {
            return Ok(false);
        }
        // The daemon may be asking just now.
        let _lock = self.directory.lock_soon(network).await?;
        let waiting = self.directory.waiting(network)?;
        let Some(Waiting { server, .. }) = waiting.filter(|_| !self.directory.is_in(network)) else {
            return Ok(false);
        };
        let _identity = self.directory.lock_identity(&server.signing_key).await?;
        if let Some(identity) = self.directory.identity(&server.signing_key)? {
            match self.connection(&server, identity).leave(network).await {
                Err(error) if force => {
                    tracing::warn!(%error, "could not report to the server that this host waits no longer; it drops hosts after a day");
                }
                outcome => outcome?,
            }
        }
        self.directory.forget_waiting(network)?;
        if !self.directory.is_known_at(&server.signing_key)? {
            self.directory.forget_identity(&server.signing_key)?;
        }
        Ok(true)
    }
}

/// How a host without an access key is admitted; `waits`: whether it has asked before.
fn asking(network: &NetworkName, waits: bool) -> JoinMethod {
    let network = network.clone();
    Box::new(move |control, challenge, request| {
        async move { control.ask_to_join(&network, waits, challenge, request).await }.boxed()
    })
}
