//! A declared node: what is known of a node before it joins, and how it is configured afterwards.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schema_derive::Describe;

use super::network::{ListenPort, within};
use crate::rules::{Claim, Findings, Rules};
use crate::scalars::{Endpoint, Fingerprint, Name, Seconds};
use crate::snapshot::{ResourceId, Snapshot};

/// A declared node: a host that is expected under this name, and how its node is configured once it has
/// joined.
///
/// A key whose `for` names it lets a host claim the name; `approved` lets one host do so without a key.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "node", plural = "nodes", within = "network", namespace = "names", named_by("selector", "alias"))]
pub struct Node {
    /// The IPv4 address that is reserved for it. Absent: it gets the lowest free one when it joins.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address that is reserved for it. Absent: it gets the lowest free one when it joins.
    pub ipv6: Option<Ipv6Addr>,
    /// Words that selectors find it by, as `tag:WORD`, and that `nmplan status` lists; those of its key are
    /// added at the join.
    pub tags: BTreeSet<Name>,
    /// Where the others reach it, for a node with a fixed public address or a port that is forwarded: an
    /// address or a name that it has outside of every network, not loopback, link-local or the like. Absent:
    /// what its agent reports and the server sees.
    pub endpoint: Option<Endpoint>,
    /// The UDP port that it listens on. Absent: the network's, or the next free one.
    pub listen_port: Option<ListenPort>,
    /// How often it sends each peer a packet, instead of the network's `keepalive`; `0s` turns that off, at
    /// most `18h`.
    pub keepalive: Option<Seconds>,
    /// The fingerprint of the host that may join under this name without an access key, as `netclient join`
    /// printed it there: at once if it waits for approval already, else when it asks, whether or not the
    /// network has `manual-approval`. While another host is the node, it waits. Who has joined stays when
    /// this changes, and leaves with the declaration.
    pub approved: Option<Fingerprint>,
}

impl Node {
    /// The addresses that are reserved for it.
    pub fn reserved(&self) -> impl Iterator<Item = (&'static str, IpAddr)> {
        let ipv4 = self.ipv4.map(|address| ("ipv4", address.into()));
        ipv4.into_iter().chain(self.ipv6.map(|address| ("ipv6", address.into())))
    }
}

impl Rules for Node {
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        let Some(network) = world.network(&id.network) else { return };
        network.check_reserved(id, self.reserved(), findings);
        if let Some(keepalive) = self.keepalive {
            within(findings, "keepalive", keepalive, Seconds(0), Seconds::hours(18));
        }
    }

    fn claims(&self) -> Vec<(&'static str, Claim)> {
        let reserved = self.reserved().map(|(field, address)| (field, Claim::Reserved(address)));
        let endpoint = self.endpoint.iter().map(|endpoint| ("endpoint", Claim::Endpoint(endpoint.host.clone())));
        reserved.chain(endpoint).collect()
    }

    fn tags_given(&self) -> Option<&BTreeSet<Name>> {
        Some(&self.tags)
    }
}
