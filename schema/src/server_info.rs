//! What a server says of itself.

use std::net::IpAddr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalars::{CaPin, Name, SigningKey};

/// The identity of the server, and the keys that pin it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Server")]
pub struct ServerInfo {
    /// A random name that the server chose at its first start.
    pub id: String,
    /// The epoch of the database: raised when a backup is restored.
    pub epoch: u64,
    /// Where agents find it: `host:port` of its gRPC service.
    pub agent_addresses: Vec<String>,
    /// What verifies the updates that it sends to agents.
    pub signing_key: SigningKey,
    /// The pin of its own CA; absent: the server does not end TLS.
    pub ca_pin: Option<CaPin>,
    /// The version of the program.
    pub version: String,
    /// The range of the tunnels between it and agents (`COMMS_RANGE`): it has an address there, and so has
    /// each agent that registered. Networks must not overlap it. Absent: the server offers no tunnel.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub comms_range: Option<Ipv4Net>,
    /// The name under which its own host is a node of the networks that declare it (`CLIENT_NAME`): the
    /// server claims that name itself, and no key may. Absent: its host is not a node (`CLIENT_MODE=off`).
    #[serde(default)]
    pub own_node: Option<Name>,
    /// The addresses by which agents and admins reach it, in order: what SERVER_HOST, PUBLIC_GRPC and
    /// PUBLIC_COMMS resolve to, and the global addresses of its host's interfaces other than those of
    /// networks. No network may hold one of them (rule `cut-off`), and no member is given one. Empty: none is
    /// known, or the caller has sent no token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}
