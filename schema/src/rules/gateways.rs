//! What objects say together of ranges outside of networks, of pools, and of external clients' keys.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Claim, Findings};
use crate::kinds::{ExternalClient, Kind};
use crate::report::{Code, Problem};
use crate::scalars::{NetworkName, WireGuardKey, overlap};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::{Location, Step};

/// A range, and the field of the object that claims it.
#[derive(Clone, Copy)]
struct Claimed<'a> {
    id: &'a ResourceId,
    field: &'static str,
    range: IpNet,
}

impl Claimed<'_> {
    fn place(&self, findings: &Findings<'_>) -> Option<Location> {
        let text = self.range.to_string();
        findings.source_map.element_or_field(self.id, &[Step::Field(self.field)], &text)
    }

    fn problem(&self, code: Code, message: String, findings: &Findings<'_>) -> Problem {
        Problem::new(code, message).at(self.place(findings)).about(self.id)
    }
}

/// Checks the ranges that are forwarded to, the pools, and the keys of external clients.
pub(super) fn check(world: &Snapshot, findings: &mut Findings<'_>) {
    let (mut ranges, mut routes, mut pools) = (Vec::new(), Vec::new(), Vec::new());
    for (id, entry) in world.entries() {
        for (field, claim) in entry.object.claims() {
            match claim {
                Claim::Range(range) => ranges.push(Claimed { id, field, range }),
                Claim::Route(range) => routes.push(Claimed { id, field, range }),
                Claim::Pool(range) => pools.push(Claimed { id, field, range }),
                Claim::Reserved(_) | Claim::Meant(_) | Claim::Endpoint(_) => {}
            }
        }
    }
    check_routes(&ranges, &routes, findings);
    check_pools(&pools, world, findings);
    for (network, _) in world.networks() {
        check_public_keys(network, world, findings);
    }
}

/// Checks that what is forwarded to is no part of a network, and that each range of a network is forwarded to
/// by one object.
fn check_routes(ranges: &[Claimed<'_>], routes: &[Claimed<'_>], findings: &mut Findings<'_>) {
    let mut first: BTreeMap<(&NetworkName, IpNet), &Claimed<'_>> = BTreeMap::new();
    for route in routes {
        let Claimed { id, range, .. } = *route;
        if let Some(inside) = ranges.iter().find(|own| own.range.contains(&range)) {
            let network = &inside.id.network;
            let message = format!(
                "{range} of {id} is inside of {}, where members of network {network} have their addresses",
                inside.range
            );
            let problem = route.problem(Code::RangeInNetwork, message, findings);
            let problem = problem.see(inside.place(findings), "the range of the network");
            let help = "forward to a range outside of every network, or to one that holds the network's";
            findings.report.push(problem.help(help.to_owned()));
        }
        match first.get(&(&id.network, range)) {
            None => drop(first.insert((&id.network, range), route)),
            Some(other) => {
                let message = format!("{range} is forwarded to by {} and by {id}", other.id);
                let problem = route.problem(Code::RangeTwice, message, findings);
                let problem = problem.see(other.place(findings), "the same range");
                let help = "let one of them have it: several nodes in `via` of one take over from each other";
                findings.report.push(problem.help(help.to_owned()));
            }
        }
    }
}

/// Checks that no two pools of a network overlap, and that addresses in a pool are for clients alone.
fn check_pools(pools: &[Claimed<'_>], world: &Snapshot, findings: &mut Findings<'_>) {
    for (place, pool) in pools.iter().enumerate() {
        let Claimed { id, range, .. } = *pool;
        let mut others =
            pools[..place].iter().filter(|other| other.id.network == id.network && other.id != id);
        if let Some(other) = others.find(|other| overlap(&other.range, &range)) {
            let message = format!("the pool {range} of {id} overlaps {}, that of {}", other.range, other.id);
            let problem = pool.problem(Code::PoolTaken, message, findings);
            let problem = problem.see(other.place(findings), "the other pool");
            findings.report.push(problem.help("choose pools that do not overlap".to_owned()));
        }
        let taken = taken_in(pool, world);
        if let [(address, other, field), more @ ..] = &taken[..] {
            let more = if more.is_empty() { String::new() } else { format!(" (and {} more)", more.len()) };
            let message = format!(
                "the pool {range} of {id} holds {address}, which {other} has{more}, but its addresses are for external clients alone"
            );
            let problem = pool.problem(Code::PoolTaken, message, findings);
            let problem = problem.see(findings.location(other, &[Step::Field(field)]), "this address");
            findings.report.push(problem.help("choose another pool, or other addresses".to_owned()));
        }
    }
}

/// The addresses in a pool that are reserved for nodes, and those of entries that are reserved for nobody.
fn taken_in<'a>(pool: &Claimed<'_>, world: &'a Snapshot) -> Vec<(IpAddr, &'a ResourceId, &'static str)> {
    let (mut clients, mut others) = (Vec::new(), Vec::new());
    for (id, entry) in world.entries_in(&pool.id.network) {
        for (field, claim) in entry.object.claims() {
            match claim {
                Claim::Reserved(address) if id.kind == Kind::ExternalClient => clients.push(address),
                Claim::Reserved(address) | Claim::Meant(address) => others.push((address, id, field)),
                Claim::Range(_) | Claim::Route(_) | Claim::Pool(_) | Claim::Endpoint(_) => {}
            }
        }
    }
    others.retain(|(address, ..)| pool.range.contains(address) && !clients.contains(address));
    others
}

/// Checks that no two clients of a network have the same key: their ingress would take them for one.
fn check_public_keys(network: &NetworkName, world: &Snapshot, findings: &mut Findings<'_>) {
    let mut first: BTreeMap<WireGuardKey, &ResourceId> = BTreeMap::new();
    for (id, client) in world.all_in::<ExternalClient>(network) {
        let Some(key) = client.public_key else { continue };
        let Some(other) = first.get(&key) else {
            first.insert(key, id);
            continue;
        };
        let path = [Step::Field("public-key")];
        let message = format!(
            "{other} and {id} have the same WireGuard key, so the second to connect takes over from the first"
        );
        let problem = Problem::new(Code::PublicKeyTaken, message).about(id).at(findings.location(id, &path));
        let problem = problem.see(findings.location(other, &path), "the same key");
        let help = format!(
            "give each device a key of its own: remove this one, and write another by nmplan client conf {network}/{}",
            id.name
        );
        findings.report.push(problem.help(help));
    }
}
