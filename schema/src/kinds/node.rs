//! A declared node: what is known of a node before it joins, and how it is configured afterwards.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schema_derive::Describe;

use super::Network;
use super::network::{ListenPort, within};
use crate::report::{Code, Problem};
use crate::rules::{Claim, Findings, Rules};
use crate::scalars::{Endpoint, Name, Scalar, Seconds};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// A declared node: a host that is expected under this name, and how its node is configured once it has
/// joined.
///
/// A key whose `for` names it lets a host claim the name.
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
        for (field, address) in self.reserved() {
            if let Some(why) = outside(network, address) {
                let message = format!("{address} cannot be reserved for {id}: {why}");
                let help = help_for_address(network, field, address);
                findings.push(Problem::new(Code::OutsideRange, message).help(help), &[Step::Field(field)]);
            }
        }
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

fn help_for_address(network: &Network, field: &str, address: IpAddr) -> String {
    network.range_of(address).map_or_else(
        || format!("give the network an {field} range, or remove the address"),
        |range| format!("choose a free address of {range}"),
    )
}

/// Why a node of the network cannot have that address; nothing if it can.
fn outside(network: &Network, address: IpAddr) -> Option<String> {
    let kind = if address.is_ipv4() { Ipv4Addr::NAME } else { Ipv6Addr::NAME };
    match network.range_of(address) {
        None => Some(format!("the network has no range for {kind}")),
        Some(range) if !range.contains(&address) => Some(format!("it is outside of {range}")),
        Some(range) if range.network() == address => Some(format!("it is the address of {range} itself")),
        Some(range) if address.is_ipv4() && range.broadcast() == address => {
            Some(format!("it is the broadcast address of {range}"))
        }
        Some(_) => None,
    }
}
