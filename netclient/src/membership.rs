//! A host's membership of one network: everything that it needs to bring its tunnel up without the server.
//!
//! Pure. What the server sends is accepted by [`Membership::accept`], which checks its signature and
//! position; a View that is older than the current one is ignored, so that nothing that was recorded can be
//! replayed. A delta applies to exactly one state of one history: epoch, revision and stamp have to be those
//! of the View.

use proto::convert::{DecodedUpdate, Malformed, accept_update};
use proto::position::Position;
use proto::sign;
use proto::wire::{Update, update::Body};
use schema::scalars::{CaPin, Endpoint, Identity, Name, NetworkName, SigningKey};
use schema::view::View;
use serde::{Deserialize, Serialize};

use crate::device::state::PrivateKey;

/// A host's membership of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The network.
    pub network: NetworkName,
    /// The name of the host in it.
    pub node: Name,
    /// The server of the network.
    pub server: ServerAddress,
    /// The network's interface on this host.
    pub interface: String,
    /// The WireGuard key, which never leaves the host.
    pub private_key: PrivateKey,
    /// The UDP port that was set at the join; absent: the one in the View, or the next free one.
    pub port: Option<u16>,
    /// Where the others reach the host, as set at the join; absent: where the server sees it.
    pub endpoint: Option<Endpoint>,
    /// The port that was found free in place of the one in the View.
    pub port_fallback: Option<PortFallback>,
    /// The position of the View.
    pub position: Position,
    /// What the server sent last.
    pub view: View,
}

/// How a server is reached and recognised.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerAddress {
    /// The addresses of its gRPC service: `host:port`, in order of preference.
    pub addresses: Vec<String>,
    /// The Ed25519 key that signs what it sends.
    pub signing_key: SigningKey,
    /// SHA-256 of the public key of its own CA; absent: the system's roots decide.
    pub ca_pin: Option<CaPin>,
}

/// A port that was found free in place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortFallback {
    /// The port that was wanted.
    pub wanted: u16,
    /// The port that was found free.
    pub used: u16,
}

/// The result of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The View has changed.
    Changed,
    /// The View is as it was; the update was old, or the same.
    Same,
    /// The View is as it was; the update was made for an older one, and has something that this one lacks.
    Overtaken,
    /// The host is no longer a node of the network.
    Removed,
    /// The server's database is not the one that the host joined, and does not know it: it was restored from
    /// a backup, or set up anew. That is no reason to remove anything.
    Forgotten,
}

impl Membership {
    /// Accepts what the server sent.
    pub fn accept(&mut self, update: &Update, identity: &Identity) -> Result<Accepted, Malformed> {
        let server = &self.server.signing_key;
        // A check-in and the stream may bring the same step: the second one is late, not wrong.
        let here = update.epoch == self.position.epoch && matches!(update.body, Some(Body::Delta(_)));
        if here && sign::from(update) != self.position {
            let (from, to) = (sign::from(update).revision, sign::to(update).revision);
            sign::verify_update(update, &self.network, &self.node, server)?;
            if to <= self.position.revision {
                return Ok(Accepted::Same);
            }
            if from < self.position.revision {
                return Ok(Accepted::Overtaken);
            }
        }
        let at = Some((&self.view, self.position));
        let (decoded, position) = accept_update(update, &self.network, &self.node, identity, server, at)?;
        // At the same revision of another history the server's is the one that goes on.
        if position.place() < self.position.place() {
            return Ok(Accepted::Same);
        }
        let view = match decoded {
            DecodedUpdate::Removed if position.epoch > self.position.epoch => return Ok(Accepted::Forgotten),
            DecodedUpdate::Removed => return Ok(Accepted::Removed),
            DecodedUpdate::View(view) => *view,
        };
        self.position = position;
        if view == self.view {
            return Ok(Accepted::Same);
        }
        self.view = view;
        Ok(Accepted::Changed)
    }

    /// The port that the host should listen on.
    pub fn wanted_port(&self) -> u16 {
        let named = self.port.unwrap_or(self.view.interface.listen_port);
        self.port_fallback.filter(|fallback| fallback.wanted == named).map_or(named, |fallback| fallback.used)
    }

    /// Whether another port may take its place.
    pub fn port_may_differ(&self) -> bool {
        self.port.is_none() && !self.view.interface.listen_port_fixed
    }
}
