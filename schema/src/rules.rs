//! Rules over a whole snapshot: references, uniqueness, overlap, and the rules of each kind.
//!
//! Run on files by `validate` and `plan`, and again by the server on what an apply would leave. Rules that
//! hold for every kind loop over descriptors; a kind's own are in its file; what depends on the server is in
//! [`server`]; which endpoints a node may have is in [`endpoints`]. All that [`check`] finds are errors; what
//! files hardly mean is found by [`selectors`].

mod approvals;
pub mod endpoints;
mod gateways;
mod references;
mod relays;
pub mod selected;
pub mod selectors;
pub mod server;
pub mod source_map;
pub mod top_level;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::report::{Code, Problem, Report, did_you_mean};
use crate::rules::source_map::SourceMap;
use crate::scalars::{EndpointHost, Name, NetworkName, overlap};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::{Location, Step};

/// What a kind requires of its objects beyond what the types of their fields say.
pub trait Rules {
    /// Reports what is wrong with one object in its world.
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>);
    /// Reports what an object hardly means, though it breaks no rule: warnings.
    fn doubt(&self, _id: &ResourceId, _world: &Snapshot, _findings: &mut Findings<'_>) {}
    /// The addresses that the object claims, each with the field that does.
    fn claims(&self) -> Vec<(&'static str, Claim)> {
        Vec::new()
    }
    /// The tags that members have by it.
    fn tags_given(&self) -> Option<&BTreeSet<Name>> {
        None
    }
}

/// Addresses that an object keeps from others, or is reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The range that members of its network get their addresses from; no other network overlaps it.
    Range(IpNet),
    /// A range outside of every network, that members are led to through a node.
    Route(IpNet),
    /// A part of its network's range that nodes get no address of.
    Pool(IpNet),
    /// The address of the member of its name: no other member gets it, and no other object reserves it.
    Reserved(IpAddr),
    /// An address that it resolves to, whoever has it: a member that does not have it already is not given
    /// it.
    Meant(IpAddr),
    /// Where it is reached outside of every mesh.
    Endpoint(EndpointHost),
}

/// Collects what the rules find about one object.
pub struct Findings<'a> {
    report: Report,
    source_map: &'a SourceMap,
    id: Option<&'a ResourceId>,
    suggestions: Cell<u32>,
}

/// How many problems of a run get a "did you mean": each one costs a search of all names, and nobody reads a
/// thousand.
const SUGGESTIONS: u32 = 50;

impl Findings<'_> {
    /// Reports a problem of the object, at the value that a path leads to; for an empty path at its name.
    pub fn push(&mut self, problem: Problem, path: &[Step<'_>]) {
        let at = self.id.and_then(|id| self.source_map.location(id, path));
        let id = self.id.map(ToString::to_string);
        self.report.push(Problem { id, ..problem }.at(at));
    }

    /// The same at one text of a field that holds several.
    pub fn push_at(&mut self, problem: Problem, field: &str, text: &str) {
        let at = self.id.and_then(|id| self.source_map.element_or_field(id, &[Step::Field(field)], text));
        let id = self.id.map(ToString::to_string);
        self.report.push(Problem { id, ..problem }.at(at));
    }

    /// Whether one more problem gets a suggestion; each call counts.
    pub fn may_suggest(&self) -> bool {
        self.suggestions.replace(self.suggestions.get().saturating_add(1)) < SUGGESTIONS
    }

    /// The place of a value of any object; for an empty path that of its name.
    pub fn location(&self, id: &ResourceId, path: &[Step<'_>]) -> Option<Location> {
        self.source_map.location(id, path)
    }
}

/// Checks every rule; `source_map` has the places of what is in files.
pub fn check(world: &Snapshot, source_map: &SourceMap) -> Report {
    let report = Report::default();
    let suggestions = Cell::new(0);
    let mut findings = Findings { report, source_map, id: None, suggestions };
    for (id, entry) in world.entries() {
        findings.id = Some(id);
        entry.object.check(id, world, &mut findings);
    }
    references::check(world, &mut findings);
    check_networks(world, &mut findings);
    check_names(world, &mut findings);
    check_claims(world, &mut findings);
    gateways::check(world, &mut findings);
    relays::check(world, &mut findings);
    approvals::check(world, &mut findings);
    findings.report
}

/// Checks that every object is in a network that is defined; each missing network is reported once.
fn check_networks(world: &Snapshot, findings: &mut Findings<'_>) {
    let mut missing = BTreeMap::new();
    for (id, _) in world.entries().filter(|(id, _)| id.kind.descriptor().within.is_some()) {
        let network = ResourceId::of_network(id.network.clone());
        if world.entry(&network).is_none() && !findings.source_map.declares(&network) {
            missing.entry(network).or_insert(id);
        }
    }
    for (network, first) in missing {
        let known: Vec<_> = world.networks().map(|(name, _)| name.as_str()).collect();
        let help = did_you_mean(network.name.as_str(), known).unwrap_or_else(|| {
            format!("give network {network} an ipv4 range such as 10.40.0.0/16, or an ipv6 range")
        });
        let message = format!("{first} belongs to network {network}, which no file defines");
        let at = findings.source_map.parent(first);
        findings.report.push(Problem::new(Code::NetworkNotDefined, message).at(at).help(help).about(network));
    }
}

/// Checks that in one network no two objects of one namespace have the same name.
fn check_names(world: &Snapshot, findings: &mut Findings<'_>) {
    let mut taken: BTreeMap<(&NetworkName, &str, &Name), &ResourceId> = BTreeMap::new();
    for (id, _) in world.entries() {
        let Some(namespace) = id.kind.descriptor().namespace else { continue };
        match taken.entry((&id.network, namespace, &id.name)) {
            std::collections::btree_map::Entry::Vacant(free) => drop(free.insert(id)),
            std::collections::btree_map::Entry::Occupied(first) => {
                let message = format!("{} and {id} share the name {:?}", first.get(), id.name.as_str());
                let at = findings.location(id, &[]);
                let problem = Problem::new(Code::NameTaken, message).at(at).about(id);
                let see = findings.location(first.get(), &[]);
                findings
                    .report
                    .push(problem.see(see, "taken here first").help("rename one of them".to_owned()));
            }
        }
    }
}

/// Checks that no two networks overlap, that no two objects of a network reserve the same address, and that
/// each endpoint can be one.
fn check_claims(world: &Snapshot, findings: &mut Findings<'_>) {
    let mut ranges: Vec<(&ResourceId, &str, IpNet)> = Vec::new();
    let mut reserved: BTreeMap<(&NetworkName, IpAddr), (&ResourceId, &str)> = BTreeMap::new();
    for (id, entry) in world.entries() {
        for (field, claim) in entry.object.claims() {
            match claim {
                Claim::Range(range) => {
                    let others = ranges.iter().filter(|(other, ..)| other.network != id.network);
                    if let Some(other) = others.clone().find(|(.., other)| overlap(other, &range)) {
                        report_overlap((id, field, range), *other, findings);
                    }
                    ranges.push((id, field, range));
                }
                Claim::Reserved(address) => match reserved.get(&(&id.network, address)) {
                    Some(first) => report_taken((id, field, address), *first, findings),
                    None => drop(reserved.insert((&id.network, address), (id, field))),
                },
                Claim::Route(_) | Claim::Pool(_) | Claim::Meant(_) => {}
                Claim::Endpoint(host) => endpoints::check_file((id, field, &host), world, findings),
            }
        }
    }
}

fn report_overlap(
    (id, field, range): (&ResourceId, &str, IpNet),
    (other, its_field, taken): (&ResourceId, &str, IpNet),
    findings: &mut Findings<'_>,
) {
    let message = format!("{range} of network {} overlaps {taken} of network {}", id.network, other.network);
    let problem = Problem::new(Code::OverlappingRanges, message).about(id);
    let problem = problem.at(findings.location(id, &[Step::Field(field)]));
    let problem = problem.see(findings.location(other, &[Step::Field(its_field)]), "the other range");
    findings.report.push(problem.help("choose ranges that do not overlap".to_owned()));
}

fn report_taken(
    (id, field, address): (&ResourceId, &str, IpAddr),
    (first, its_field): (&ResourceId, &str),
    findings: &mut Findings<'_>,
) {
    let message = format!("{address} is reserved for {} and for {}", first.name, id.name);
    let problem = Problem::new(Code::AddressTaken, message).about(id);
    let problem = problem.at(findings.location(id, &[Step::Field(field)]));
    let problem = problem.see(findings.location(first, &[Step::Field(its_field)]), "reserved here first");
    findings.report.push(problem.help("reserve another address for one of them".to_owned()));
}
