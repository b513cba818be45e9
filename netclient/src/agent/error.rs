//! Why the agent did not do something, in words that say what to do instead.

use std::net::IpAddr;

use ipnet::IpNet;
use schema::scalars::NetworkName;

use crate::comms::CommsError;
use crate::control::ControlError;
use crate::device::Refusal;
use crate::directory::DirectoryError;
use crate::tunnel::TunnelError;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// State could not be read or kept.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The server.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The tunnel.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The tunnel to the server.
    #[error(transparent)]
    Comms(#[from] CommsError),
    /// The device would be refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the server sent cannot be believed or understood.
    #[error("the server's update is invalid: {0}; it may be another server, or of another version")]
    InvalidUpdate(#[from] proto::convert::Malformed),
    /// The host is not in that network.
    #[error("this host is in no network {0}; `netclient list` shows its networks")]
    NotMember(NetworkName),
    /// The tunnel to the server would take addresses that are used here.
    #[error(
        "{address}, which the tunnel to the server would have, lies in {range} of {interface} on this host; have \
         COMMS_RANGE set to another range on the server, or join without: netclient join -t TOKEN"
    )]
    Overlaps {
        /// The address.
        address: IpAddr,
        /// The range that it lies in.
        range: IpNet,
        /// Whose range that is.
        interface: String,
    },
    /// The identity is gone without which the server does not know the host.
    #[error(
        "the identity of this host at the server of {0} is gone; the tunnel stays as it is, but has to be made anew: \
         netclient leave --force -n {0}, and join again"
    )]
    NoIdentity(NetworkName),
    /// The server was restored or set up anew and does not know the host.
    #[error(
        "the server does not know this node since it was restored or set up anew; the tunnel stays as it is; to be \
         known again: netclient leave --force -n {0}, and join again"
    )]
    Forgotten(NetworkName),
    /// Another server has a network of that name.
    #[error("this host is in a network {0} of another server; leave that first: netclient leave -n {0}")]
    OtherServer(NetworkName),
    /// Somebody else looks after the network right now.
    #[error("another netclient is at work on network {0}; try again when it is done")]
    Busy(NetworkName),
    /// The host's name is no name for a node.
    #[error("{name:?} cannot be the name of a node: {why}; join with --name{}", hint(.meant))]
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
    /// The server says that the host is no node of the network any more.
    #[error("the server has removed this node from network {0}; everything of it is taken down")]
    Removed(NetworkName),
}

fn hint(meant: &Option<String>) -> String {
    meant.as_ref().map(|meant| format!(" {meant}")).unwrap_or_default()
}

/// An error with its causes, on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |chain, cause| format!("{chain}: {cause}"))
}
