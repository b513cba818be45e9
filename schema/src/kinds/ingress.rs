//! An ingress: where clients without an agent enter the mesh.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use schema_derive::Describe;

use super::network::hosts;
use super::{ExternalClient, Network, Node};
use crate::attribute::Ref;
use crate::report::{Code, Problem};
use crate::rules::{Claim, Findings, Rules};
use crate::scalars::{Endpoint, OuterRange};
use crate::snapshot::{ResourceId, Snapshot};

/// Lets external clients into the network: hosts with WireGuard and without an agent, such as phones.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "ingress", plural = "ingress", within = "network")]
pub struct Ingress {
    /// The node that they are connected to.
    pub via: Ref<Node>,
    /// Where they reach it. Absent: the node's declared endpoint, else where the server sees it.
    pub endpoint: Option<Endpoint>,
    /// Where its clients get their addresses from: at most one range of each family, inside of the network's.
    /// Nodes get none of it. Absent: from the network's ranges.
    pub pool: BTreeSet<OuterRange>,
    /// The nameservers that clients are given. Absent: the server's `COREDNS_ADDR`.
    pub dns: BTreeSet<IpAddr>,
}

impl Ingress {
    /// Its pool in a range of its network, if it has one.
    pub fn pool_in(&self, range: IpNet) -> Option<IpNet> {
        self.pool.iter().map(|pool| pool.net()).find(|pool| range.contains(pool))
    }
}

impl Rules for Ingress {
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        let Some(network) = world.network(&id.network) else { return };
        let (mut ipv4, mut ipv6) = (None, None);
        for pool in self.pool.iter().map(|pool| pool.net()) {
            let first = if pool.network().is_ipv4() { &mut ipv4 } else { &mut ipv6 };
            if let Some(problem) = problem_of(pool, *first, id, network) {
                findings.push_at(problem, "pool", &pool.to_string());
            } else {
                self.check_room(pool, id, world, findings);
            }
            *first = Some(pool);
        }
    }

    fn claims(&self) -> Vec<(&'static str, Claim)> {
        let pool = self.pool.iter().map(|pool| ("pool", Claim::Pool(pool.net())));
        let endpoint = self.endpoint.iter().map(|endpoint| ("endpoint", Claim::Endpoint(endpoint.host.clone())));
        pool.chain(endpoint).collect()
    }
}

impl Ingress {
    /// Reports a pool with fewer addresses than clients that get one of it.
    fn check_room(&self, pool: IpNet, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        let elsewhere = |client: &ExternalClient| {
            let mut reserved = client.reserved().map(|(_, address)| address);
            reserved.any(|address| address.is_ipv4() == pool.network().is_ipv4() && !pool.contains(&address))
        };
        let clients = world.all_in::<ExternalClient>(&id.network).filter(|(_, client)| client.via.name == id.name);
        let needed = clients.filter(|(_, client)| !elsewhere(client)).count().max(1) as u128;
        let hosts = hosts(pool);
        if hosts < needed {
            let message = format!("the pool {pool} of {id} has {hosts} addresses for clients; it needs room for {needed}");
            let problem = Problem::new(Code::RangeTooSmall, message).help("use a shorter prefix".to_owned());
            findings.push_at(problem, "pool", &pool.to_string());
        }
    }
}

/// What is wrong with a pool, given another one of its family.
fn problem_of(pool: IpNet, other: Option<IpNet>, id: &ResourceId, network: &Network) -> Option<Problem> {
    if let Some(other) = other {
        let message = format!("{id} has the pools {other} and {pool}, and a client gets one address of each family");
        return Some(Problem::new(Code::PoolRange, message).help("keep one of them, or one that holds both".to_owned()));
    }
    let (why, help) = match network.range_of(pool.network()) {
        Some(range) if range.contains(&pool) => return None,
        Some(range) => (format!("is not inside of {range}"), format!("choose a part of {range}")),
        None => {
            let family = if pool.network().is_ipv4() { "ipv4" } else { "ipv6" };
            (format!("has no {family} range to lie in"), format!("give the network an {family} range, or remove the pool"))
        }
    };
    let message = format!("the pool {pool} of {id} {why}, so its addresses are none of network {}", id.network);
    Some(Problem::new(Code::PoolRange, message).help(help))
}
