//! New keys, from random numbers of the operating system; and the identity with which an attempt to join or
//! to register is made.

use ed25519_dalek as ed25519;
use proto::secret::Secret;
use schema::scalars::SigningKey;

use super::AgentError;
use crate::device::{PrivateKey, Refusal};
use crate::directory::{Directory, DirectoryError};

/// The identity at a server for an attempt that may fail. One that was made for the attempt is forgotten with
/// it, unless [`Attempt::commit`] says that the server may know it.
pub(super) struct Attempt<'a> {
    directory: &'a Directory,
    server: SigningKey,
    /// The identity.
    pub(super) identity: ed25519::SigningKey,
    forget: bool,
}

impl<'a> Attempt<'a> {
    /// Begins an attempt with the existing identity, or with a new one; the caller holds the lock.
    pub(super) fn begin(directory: &'a Directory, server: SigningKey) -> Result<Self, AgentError> {
        let known = directory.identity(&server)?;
        let forget = known.is_none();
        let identity = match known {
            Some(identity) => identity,
            None => ed25519::SigningKey::from_bytes(random()?.expose()),
        };
        Ok(Self { directory, server, identity, forget })
    }

    /// Writes the identity to the disk, if it is new.
    pub(super) fn keep(&self) -> Result<(), DirectoryError> {
        if !self.forget {
            return Ok(());
        }
        self.directory.keep_identity(&self.server, &self.identity)
    }

    /// Makes the identity outlive the attempt.
    pub(super) fn commit(&mut self) {
        self.forget = false;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.forget {
            // No server knows it; if it stays, it will be used the next time.
            let _ = self.directory.forget_identity(&self.server);
        }
    }
}

pub(super) fn new_private_key() -> Result<PrivateKey, AgentError> {
    random().map(|bytes| PrivateKey::from_random(*bytes.expose()))
}

fn random() -> Result<Secret<[u8; 32]>, AgentError> {
    let mut bytes = Secret::new([0; 32]);
    match getrandom::fill(bytes.expose_mut()) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(Refusal::failed("get random numbers from the operating system")(error).into()),
    }
}
