//! Registering: how the tunnel to a server is made, and how it ends.

use std::time::Duration;

use proto::token::Token;

use super::keys::{Attempt, new_private_key};
use super::{Agent, AgentError, address_of, error_chain};
use crate::comms::{self, CommsError, ServerTunnel};
use crate::device;
use crate::membership::ServerAddress;
use crate::registration::{Registration, Terms};
use crate::system::link;

/// How long a registration is kept if the server considers the host joined, but the host has no membership.
const UNANSWERED: Duration = Duration::from_secs(600);

/// The result of a registration.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The registration.
    pub registration: Registration,
    /// Whether there was none before.
    pub new: bool,
    /// Whether the server answers through the tunnel.
    pub answers: bool,
}

impl Agent {
    /// Registers the host at the server of a token, which spends no use of its key, and brings the tunnel up.
    /// A host that is registered already stays as it is.
    ///
    /// Whatever fails, nothing is left that was not there before.
    pub async fn register(&self, token: &Token) -> Result<Registered, AgentError> {
        let server = address_of(token);
        self.end_expired().await?;
        let _lock = self.directory.lock_identity(&server.signing_key).await?;
        let comms = self.comms(&server.signing_key);
        let before = comms.registration()?;
        let mut attempt = Attempt::begin(&self.directory, server.signing_key)?;
        let private_key = match &before {
            Some(before) => before.private_key.clone(),
            None => {
                // What cannot work is reported before the server is asked.
                device::check_free(&comms::free_here(&self.directory)?, None)?;
                new_private_key()?
            }
        };
        let control = self.connection(&server, attempt.identity.clone());
        let (terms, expires) = control.register(Some(token), &private_key).await?;
        check_addresses(&terms).await?;
        attempt.keep()?;
        // A host that has joined keeps it, whatever the key is worth. One that the server takes for joined,
        // and that is not, may have lost the answer to its join: it will join again.
        let joined = self.directory.is_member(&server.signing_key)?;
        let expires = if joined { None } else { expires.or(Some(UNANSWERED)) };
        let raised = async {
            let deadline = expires.map(|span| comms::now().after(span));
            let registration = comms
                .save_registration(Registration::new(server.clone(), private_key, terms, deadline))
                .await?;
            comms.bring_up(&registration).await?;
            Ok::<_, CommsError>(registration)
        };
        let registration = match raised.await {
            Ok(registration) => registration,
            Err(error) => {
                match before {
                    None => self.undo(&server).await,
                    // The earlier registration has this identity now.
                    Some(_) => attempt.commit(),
                }
                return Err(error.into());
            }
        };
        attempt.commit();
        // An earlier connection does not know of the tunnel.
        control.recheck_registration();
        Ok(Registered { answers: control.tunnel_answers().await, new: before.is_none(), registration })
    }

    /// Undoes a registration that failed; at the server it expires.
    async fn undo(&self, server: &ServerAddress) {
        if let Err(error) = self.comms(&server.signing_key).end().await {
            tracing::warn!(error = error_chain(&error), "could not undo the registration");
        }
    }

    /// Ends every registration that no join followed in time or that outlived the last network, and removes
    /// what a crash left of others.
    pub async fn end_expired(&self) -> Result<(), AgentError> {
        for registration in self.directory.registrations()? {
            let server = &registration.server.signing_key;
            if !self.has_ended(&registration)? {
                continue;
            }
            let _lock = self.directory.lock_identity(server).await?;
            // Another process may have ended it, or have made another, before this one got the lock.
            let Some(now) = self.directory.registration(server)? else { continue };
            if self.directory.is_member(server)? {
                if now.has_expired(&comms::now()) {
                    // The host has joined, but the registration was not updated: it need not expire.
                    self.directory.keep_registration(&Registration { deadline: None, ..now })?;
                }
            } else if self.has_ended(&now)? {
                self.comms(server).end().await?;
                self.directory.forget_identity(server)?;
            }
        }
        if !comms::orphans(&self.directory)?.is_empty() {
            ServerTunnel::remove_orphans(&self.directory).await?;
        }
        Ok(())
    }

    fn has_ended(&self, registration: &Registration) -> Result<bool, AgentError> {
        let kept =
            registration.deadline.is_none() && self.directory.is_member(&registration.server.signing_key)?;
        Ok(registration.has_expired(&comms::now()) || (registration.deadline.is_none() && !kept))
    }
}

/// Checks that the tunnel's addresses are not in use on this host.
async fn check_addresses(terms: &Terms) -> Result<(), AgentError> {
    for address in [terms.address, *terms.server.ip()] {
        if let Some((interface, range)) = link::neighbours(address.into()).await.map_err(CommsError::from)?
            && !comms::may_be(&interface)
        {
            return Err(AgentError::Overlaps { address: address.into(), range, interface });
        }
    }
    Ok(())
}
