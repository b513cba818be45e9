//! New keys, from random numbers of the operating system.

use ed25519_dalek as ed25519;
use proto::secret::Secret;

use super::AgentError;
use crate::device::{PrivateKey, Refusal};

pub(super) fn new_identity() -> Result<ed25519::SigningKey, AgentError> {
    random().map(|seed| ed25519::SigningKey::from_bytes(seed.expose()))
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
