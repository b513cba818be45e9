//! Registering: the tunnel to a server comes about, and ends.

use jiff::Timestamp;
use proto::token::Token;

use super::{Agent, AgentError, RegistrationStatus, address_of, new_identity, new_private_key, told};
use crate::comms::{self, Registration};
use crate::device;
use crate::membership::ServerAddress;
use crate::tunnel::TunnelError;

/// What came of a registration.
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
    /// Registers the machine at the server of a token, which spends no use of its key, and brings the tunnel up. A machine
    /// that is registered already stays as it is.
    ///
    /// Whatever fails, nothing is left behind that was not there.
    pub async fn register(&self, token: &Token) -> Result<Registered, AgentError> {
        let server = address_of(token);
        self.end_lapsed().await?;
        let _lock = self.directory.lock_identity(&server.signing_key).await?;
        let before = self.directory.registration(&server.signing_key)?.filter(|it| !it.has_lapsed());
        let known = self.directory.identity(&server.signing_key)?;
        let (fresh, identity) = (known.is_none(), known.map_or_else(new_identity, Ok)?);
        let naming = self.directory.lock_comms().await?;
        let (interface, private_key) = match &before {
            Some(before) => (before.interface.clone(), before.private_key.clone()),
            None => (self.free_interface()?, new_private_key()?),
        };
        let control = self.line(&server, identity.clone());
        let terms = control.register(Some(token), &private_key).await?;
        let registration = self.agreed(&server, interface, private_key, terms)?;
        self.directory.keep_identity(&server.signing_key, &identity)?;
        let raised = self.raise(before.as_ref(), &registration).await;
        drop(naming);
        if let Err(error) = raised {
            if before.is_none() {
                self.undo(&server, fresh).await;
            }
            return Err(error);
        }
        // A line from before knows of no tunnel.
        control.reconsider();
        Ok(Registered { answers: control.tunnel_answers().await, new: before.is_none(), registration })
    }

    fn agreed(
        &self,
        server: &ServerAddress,
        interface: String,
        private_key: device::PrivateKey,
        terms: (comms::Terms, Option<std::time::Duration>),
    ) -> Result<Registration, AgentError> {
        let fresh = Registration::new(server.clone(), interface, private_key, terms);
        // A machine that has joined keeps it, whatever another key says.
        let joined = self.directory.is_member(&server.signing_key)?;
        Ok(if joined { Registration { deadline: None, ..fresh } } else { fresh })
    }

    /// Keeps a registration, and brings its tunnel up.
    async fn raise(&self, before: Option<&Registration>, registration: &Registration) -> Result<(), AgentError> {
        let comms = self.comms(&registration.server.signing_key);
        match before {
            Some(before) => comms.renew(before, registration.terms.clone()).await?,
            None => self.directory.keep_registration(registration)?,
        }
        let registration = comms.registration()?.unwrap_or_else(|| registration.clone());
        comms.bring_up(&registration).await?;
        Ok(())
    }

    /// Takes back a registration that came to nothing; the server lets it lapse.
    async fn undo(&self, server: &ServerAddress, fresh: bool) {
        let ended = self.comms(&server.signing_key).end().await;
        if let Err(error) = &ended {
            tracing::warn!(error = told(error), "could not undo the registration");
        }
        if fresh {
            // It stands for nothing; if it stays, it will be used the next time.
            let _ = self.directory.forget_identity(&server.signing_key);
        }
    }

    fn free_interface(&self) -> Result<String, AgentError> {
        let others = self.directory.registrations()?;
        let interface = comms::free_interface(|name| others.iter().any(|other| other.interface == name))?;
        device::check_free(&interface, None)?;
        Ok(interface)
    }

    /// Ends every registration that no join followed in time.
    pub async fn end_lapsed(&self) -> Result<(), AgentError> {
        for registration in self.directory.registrations()?.iter().filter(|it| it.has_lapsed()) {
            let server = &registration.server.signing_key;
            let _lock = self.directory.lock_identity(server).await?;
            if self.directory.is_member(server)? {
                // It joined, and was not told that it need not lapse.
                self.directory.keep_registration(&Registration { deadline: None, ..registration.clone() })?;
                continue;
            }
            self.comms(server).end().await?;
            self.directory.forget_identity(server)?;
        }
        Ok(())
    }

    /// How the tunnels to servers are.
    pub(super) async fn registrations(&self) -> Result<Vec<RegistrationStatus>, AgentError> {
        let mut all = Vec::new();
        for registration in self.directory.registrations()?.into_iter().filter(|it| !it.has_lapsed()) {
            let device = self.tunnel(&registration.interface).observe().await.map_err(TunnelError::from)?;
            let peer = device.as_ref().and_then(|device| device.peers.get(&registration.terms.public_key));
            let handshake = peer.and_then(|peer| i64::try_from(peer.last_handshake?).ok());
            let lapses = registration.deadline.as_ref().and_then(|deadline| deadline.left());
            all.push(RegistrationStatus {
                endpoint: registration.terms.endpoint,
                interface: registration.interface,
                address: registration.terms.address.into(),
                last_handshake: handshake.and_then(|at| Timestamp::from_second(at).ok()),
                lapses: lapses.map(|left| left.as_secs()),
            });
        }
        Ok(all)
    }
}
