//! Why the agent did not do something, with what to do instead.

use std::net::IpAddr;

use ipnet::IpNet;
use schema::scalars::{Name, NetworkName};

use crate::comms::CommsError;
use crate::control::CallError;
use crate::device::Refusal;
use crate::directory::DirectoryError;
use crate::tunnel::TunnelError;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// State could not be read or stored.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The server.
    #[error(transparent)]
    Control(#[from] CallError),
    /// The tunnel.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The tunnel to the server.
    #[error(transparent)]
    Comms(#[from] CommsError),
    /// The device would be refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the server sent is not valid.
    #[error("the server's update is not valid: {0}; it may be another server, or of another version")]
    InvalidUpdate(#[from] proto::convert::Malformed),
    /// The host is not in that network.
    #[error("this host is not in the network {0}; `netclient list` shows its networks")]
    NotMember(NetworkName),
    /// The tunnel to the server would take addresses that are used here.
    #[error(
        "the tunnel to the server needs {address}, which lies in {range} of {interface} on this host; have \
         COMMS_RANGE set to another range on the server, or join without: netclient join -t TOKEN"
    )]
    Overlaps {
        /// The address.
        address: IpAddr,
        /// The range that it lies in.
        range: IpNet,
        /// The interface with that range.
        interface: String,
    },
    /// The identity by which the server knows the host is gone.
    #[error(
        "the identity of this host at the server of {0} is lost; the tunnel stays up for now; leave and join again: \
         netclient leave --force -n {0}, and join again"
    )]
    NoIdentity(NetworkName),
    /// The server was restored or set up anew and does not know the host.
    #[error(
        "the server was restored or set up anew and does not know this node; the tunnel stays as it is; to join \
         anew: netclient leave --force -n {0}, and join again"
    )]
    Forgotten(NetworkName),
    /// Another server has a network of that name.
    #[error(
        "this host is already in a network {0} of another server; leave that one first: netclient leave -n {0}"
    )]
    OtherServer(NetworkName),
    /// The host is in the network under another name.
    #[error(
        "this host is already in {network} as {node}; to be {name}, leave first and join again: netclient leave -n {network}"
    )]
    OtherName {
        /// The network.
        network: NetworkName,
        /// The name that it has there.
        node: Name,
        /// The name that was asked for.
        name: Name,
    },
    /// Another process has locked the network.
    #[error("another netclient is working on network {0}; try again when it is done")]
    Busy(NetworkName),
    /// The host's name is not a valid name of a node.
    #[error("{name:?} is not a valid name for a node: {why}; join with --name{}", hint(.meant))]
    HostName {
        /// The name of the host.
        name: String,
        /// Why not.
        why: String,
        /// What may have been meant.
        meant: Option<String>,
    },
    /// The host joined, but its tunnel did not come up, so it left again.
    #[error("the tunnel did not come up, so this host left the network again")]
    NotUp(#[source] TunnelError),
    /// The host waited and was let in, but its tunnel did not come up.
    #[error("somebody has let this host in, but the tunnel did not come up; `netclient daemon` tries on")]
    NotUpYet(#[source] TunnelError),
    /// The server says that the host is no longer a node of the network.
    #[error(
        "the server has removed this node from network {0}; everything of it has been removed from this host"
    )]
    Removed(NetworkName),
}

fn hint(meant: &Option<String>) -> String {
    meant.as_ref().map(|meant| format!(" {meant}")).unwrap_or_default()
}
