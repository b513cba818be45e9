//! The state of the host's networks and of its tunnels to servers: the documents that `list` and `status`
//! print.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use schema::api;
use schema::inventory::NodeProblem;
use schema::scalars::{DomainName, Endpoint, Fingerprint, InterfaceName, Name, NetworkName, WireGuardKey};
use schema::snapshot::Revision;
use schema::view::{Forward, Tunnel, View};
use serde::{Deserialize, Serialize};

use super::{Agent, AgentError, error_chain};
use crate::comms;
use crate::device::{Kind, blocking};
use crate::membership::Membership;
use crate::system::hosts;
use crate::system::resolved::Resolvers;
use crate::waiting::{Waiting, WaitingState};

/// The state of a host's networks.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Whether a daemon runs, which keeps the networks current.
    pub daemon: bool,
    /// The networks, by name.
    pub networks: Vec<NetworkStatus>,
    /// The networks that the host waits to be let into, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<WaitingStatus>,
    /// The networks whose state cannot be read; their tunnels may be up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<DamagedNetwork>,
    /// The tunnels to servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub registrations: Vec<RegistrationStatus>,
}

/// A network that the host asked to join without an access key.
#[derive(Clone, Debug, Serialize)]
pub struct WaitingStatus {
    /// The network.
    pub name: NetworkName,
    /// The name that the host asked for.
    pub node: Name,
    /// The address of the server.
    pub server: String,
    /// The fingerprint of the server's signing key.
    pub pin: Fingerprint,
    /// The fingerprint by which somebody lets it in.
    pub fingerprint: Fingerprint,
    /// Since when it waits.
    pub since: Timestamp,
    /// When it is dropped at the latest; absent: it was dropped.
    pub until: Option<Timestamp>,
}

impl WaitingStatus {
    /// The state of a host that waits.
    pub fn of(waiting: &Waiting) -> Self {
        let Waiting { network, name, server, since, state, .. } = waiting;
        let until = match state {
            WaitingState::Until(until) => Some(*until),
            WaitingState::Dropped => None,
        };
        Self {
            name: network.clone(),
            node: name.clone(),
            server: server.addresses.join(", "),
            pin: server.signing_key.fingerprint(),
            fingerprint: waiting.fingerprint(),
            since: *since,
            until,
        }
    }
}

/// A network whose state cannot be read.
#[derive(Clone, Debug, Serialize)]
pub struct DamagedNetwork {
    /// The network.
    pub name: NetworkName,
    /// What is wrong and what to do.
    pub error: String,
}

/// The state of the tunnel to a server.
#[derive(Clone, Debug, Serialize)]
pub struct RegistrationStatus {
    /// The address of the server's end.
    pub endpoint: Endpoint,
    /// Its interface.
    pub interface: String,
    /// Whether it is up.
    pub up: bool,
    /// The host's address in it.
    pub address: IpAddr,
    /// When its last handshake was completed.
    pub last_handshake: Option<Timestamp>,
    /// Seconds until it expires unless the host joins; absent: the host has joined.
    pub expires: Option<u64>,
}

/// The state of one network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStatus {
    /// The network.
    pub name: NetworkName,
    /// The name of the host in it.
    pub node: Name,
    /// Its interface.
    pub interface: String,
    /// Whether the tunnel is up.
    pub up: bool,
    /// Where its WireGuard device runs; absent: it has none.
    pub device: Option<Kind>,
    /// The epoch of the server's database.
    pub epoch: u64,
    /// The revision that the server sent the host last.
    pub revision: Revision,
    /// The transport of control traffic; none if no daemon runs.
    pub control: api::Control,
    /// What is not as it should be on the host, as far as the daemon knows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<NodeProblem>,
    /// The host's addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The ranges of the network: one of each family that it has.
    pub ranges: BTreeSet<IpNet>,
    /// The ranges to which what is sent is refused: nobody carries them at present, or they lie in a wider one
    /// that the node reaches, and it does not reach them.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub refused: BTreeSet<IpNet>,
    /// How its names resolve on the host.
    pub names: NamesStatus,
    /// The names that have no line in `/etc/hosts`, each with the name outside of the network that it is an
    /// alias of: they resolve through a name server of the network alone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<Name, DomainName>,
    /// What it may forward to outside of the network, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<ForwardStatus>,
    /// The peers, by name.
    pub peers: Vec<PeerStatus>,
    /// What is reached through a peer, besides the peer itself: nodes by name, then ranges.
    pub reaches: Vec<ReachStatus>,
}

/// How the names of a network resolve on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "by", content = "servers", rename_all = "kebab-case")]
pub enum NamesStatus {
    /// systemd-resolved asks these name servers for them.
    SystemdResolved(BTreeSet<IpAddr>),
    /// They are in `/etc/hosts`.
    Hosts,
    /// It has none.
    None,
}

/// What a node may forward to outside of its network: an egress that has it as a gateway, whether or not
/// another one carries it at present.
#[derive(Clone, Debug, Serialize)]
pub struct ForwardStatus {
    /// The egress.
    pub egress: Name,
    /// The ranges.
    pub ranges: BTreeSet<IpNet>,
    /// The interface that was declared; absent: where the host routes the ranges.
    pub interface: Option<InterfaceName>,
    /// Whether what leaves has the node's own address as its source.
    pub nat: bool,
}

/// The state of a peer.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// The node.
    pub name: Name,
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// Where it is reached.
    pub endpoint: Option<String>,
    /// What is sent to it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// When the last handshake was completed.
    pub last_handshake: Option<Timestamp>,
}

/// A node or a range without a tunnel of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReachStatus {
    /// The node; absent: a range in which there is no telling who has an address.
    pub name: Option<Name>,
    /// The node's addresses, or the range.
    pub ranges: BTreeSet<IpNet>,
    /// The peer that carries what is sent there.
    pub via: Name,
    /// Whether it is reached for nodes whose traffic the node carries, and not for itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub carried: bool,
}

/// How a network is, as whoever keeps it current knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverStatus {
    /// The transport of control traffic.
    pub control: api::Control,
    /// What is not as it should be on the host, by code.
    pub problems: Vec<NodeProblem>,
}

impl Default for DriverStatus {
    /// Nothing has been done yet.
    fn default() -> Self {
        Self { control: api::Control::None, problems: Vec::new() }
    }
}

impl Agent {
    /// The state of the host's networks. `daemon`: whether one runs; `known`: what it knows of a network.
    pub async fn status(
        &self,
        daemon: bool,
        known: impl Fn(&NetworkName) -> DriverStatus,
    ) -> Result<Status, AgentError> {
        let mut networks = Vec::new();
        let mut damaged = Vec::new();
        for network in self.directory.networks()? {
            let membership = match self.directory.membership(&network) {
                Ok(Some(membership)) => membership,
                Ok(None) => continue,
                Err(error) => {
                    damaged.push(DamagedNetwork { name: network, error: error_chain(&error) });
                    continue;
                }
            };
            let mut tunnel = self.tunnel(&network, &membership.interface);
            let DriverStatus { control, mut problems } = known(&network);
            // One that does not answer must not hide the others.
            let device = tunnel.observe().await.unwrap_or_else(|error| {
                problems.push(NodeProblem::new(NodeProblem::DEVICE, error_chain(&error)));
                None
            });
            let Membership { node, interface, position, view, .. } = membership;
            let known = device.as_ref().map(|device| &device.peers);
            let peer = |(public_key, tunnel): (WireGuardKey, Tunnel)| {
                let seen = known.and_then(|peers| peers.get(&public_key));
                let at = seen.and_then(|seen| seen.settings.endpoint).map(|at| at.to_string());
                let handshake = seen.and_then(|seen| i64::try_from(seen.last_handshake?).ok());
                PeerStatus {
                    name: tunnel.peer,
                    public_key,
                    endpoint: at.or_else(|| tunnel.endpoint.as_ref().map(ToString::to_string)),
                    allowed_ips: tunnel.allowed_ips,
                    last_handshake: handshake.and_then(|at| Timestamp::from_second(at).ok()),
                }
            };
            let reaches = reaches(&view);
            let names = self.names_status(&interface, &view).await;
            let mut peers: Vec<_> = view.tunnels().into_iter().map(peer).collect();
            peers.sort_by(|one, other| one.name.cmp(&other.name));
            let refused = view.routes.iter().filter(|(_, route)| route.via.is_none());
            let forward = |(egress, forward): (&Name, &Arc<Forward>)| ForwardStatus {
                egress: egress.clone(),
                ranges: forward.ranges.keys().copied().collect(),
                interface: forward.interface.clone(),
                nat: forward.nat,
            };
            networks.push(NetworkStatus {
                name: network,
                node,
                interface,
                up: device.is_some(),
                device: tunnel.kind(),
                epoch: position.epoch,
                revision: position.revision,
                control,
                problems,
                addresses: view.interface.addresses.iter().map(IpNet::addr).collect(),
                ranges: view.interface.addresses.iter().map(IpNet::trunc).collect(),
                refused: refused.map(|(range, _)| *range).collect(),
                aliases: if names == NamesStatus::Hosts {
                    hosts::aliases(view.resolutions())
                } else {
                    BTreeMap::new()
                },
                names,
                forwards: view.forwards.iter().map(forward).collect(),
                peers,
                reaches,
            });
        }
        let mut waiting = Vec::new();
        for network in self.directory.waited_for()? {
            match self.directory.waiting(&network) {
                Ok(found) => waiting.extend(found.as_ref().map(WaitingStatus::of)),
                Err(error) => damaged.push(DamagedNetwork { name: network, error: error_chain(&error) }),
            }
        }
        Ok(Status { daemon, networks, waiting, damaged, registrations: self.registrations().await? })
    }

    async fn names_status(&self, interface: &str, view: &View) -> NamesStatus {
        let (host, interface, network) = (Arc::clone(&self.host), interface.to_owned(), view.network.clone());
        let resolvers = Resolvers::of(view);
        if !resolvers.is_empty() && blocking(move || host.resolves(&interface, &network)).await {
            return NamesStatus::SystemdResolved(resolvers.servers);
        }
        if view.resolutions().is_empty() { NamesStatus::None } else { NamesStatus::Hosts }
    }

    /// The state of the tunnels to servers.
    async fn registrations(&self) -> Result<Vec<RegistrationStatus>, AgentError> {
        let now = comms::now();
        let mut all = Vec::new();
        for registration in self.directory.registrations()?.into_iter().filter(|it| !it.has_expired(&now)) {
            // One that does not answer must not hide the rest.
            let device = self.comms_tunnel(&registration.interface).observe().await.unwrap_or_default();
            let peer = device.as_ref().and_then(|device| device.peers.get(&registration.terms.public_key));
            let handshake = peer.and_then(|peer| i64::try_from(peer.last_handshake?).ok());
            let expires = registration.deadline.as_ref().and_then(|deadline| deadline.left(&now));
            all.push(RegistrationStatus {
                endpoint: registration.terms.endpoint,
                interface: registration.interface,
                up: device.is_some(),
                address: registration.terms.address.into(),
                last_handshake: handshake.and_then(|at| Timestamp::from_second(at).ok()),
                expires: expires.map(|left| left.as_secs()),
            });
        }
        Ok(all)
    }
}

/// What is reached through a peer, other than that itself: nodes, and ranges. What nothing carries is left out.
fn reaches(view: &View) -> Vec<ReachStatus> {
    let nodes = view.peers.iter().filter_map(|(name, peer)| {
        let via = view.next_hop(name).filter(|hop| *hop != name)?.clone();
        let ranges = peer.addresses.iter().copied().map(IpNet::from).collect();
        Some(ReachStatus { name: Some(name.clone()), ranges, via, carried: false })
    });
    let ranges = view.routes.iter().filter_map(|(range, route)| {
        let via = view.next_hop(route.via.as_ref()?)?.clone();
        Some(ReachStatus { name: None, ranges: [*range].into(), via, carried: route.carried })
    });
    nodes.chain(ranges).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schema::view::{Peer, Route};

    use super::*;

    #[test]
    fn what_a_peer_carries_is_reached_through_it_and_what_nobody_carries_is_not() {
        let mut view = crate::tunnels::tests::view("corp", "10.9.0.1/16");
        let via = |name: &str| Some(name.parse().expect("a name"));
        for (number, via) in [(2u8, None), (3, via("n2")), (4, via("gone")), (5, via("a"))] {
            let direct = via.as_ref().is_none_or(|via: &Name| via.as_str() == "a");
            let peer = Peer {
                public_key: direct.then_some(WireGuardKey([number; 32])),
                endpoint: None,
                addresses: [[10, 9, 0, number].into(), format!("fd09::{number}").parse().expect("good")]
                    .into(),
                via,
                class: Default::default(),
                carries: false,
                named: true,
            };
            view.peers.insert(format!("n{number}").parse().expect("a name"), Arc::new(peer));
        }
        for (range, via, carried) in [
            ("192.168.7.0/24", "n5", false),
            ("192.168.8.0/24", "gone", false),
            ("192.168.9.0/24", "n5", true),
        ] {
            let route = Route { via: via.parse().ok(), class: Default::default(), carried };
            view.routes.insert(range.parse().expect("a range"), Arc::new(route));
        }
        let found: Vec<_> = reaches(&view)
            .into_iter()
            .map(|ReachStatus { name, ranges, via, carried }| {
                let name = name.map_or_else(|| "-".to_owned(), |name| name.to_string());
                let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
                let carried = if carried { " for others" } else { "" };
                format!("{name} {} via {via}{carried}", ranges.join(" "))
            })
            .collect();
        assert_eq!(
            found,
            [
                "n3 10.9.0.3/32 fd09::3/128 via n2",
                "- 192.168.7.0/24 via n5",
                "- 192.168.9.0/24 via n5 for others"
            ]
        );
    }
}
