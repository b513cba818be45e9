//! Rules over a whole snapshot: references, uniqueness, overlap, and what each kind asks for itself.
//!
//! Run on files by `validate` and `plan`, and again by the server on what an apply would leave. Rules that hold for
//! every kind loop over descriptors; a kind's own are in its file; what depends on the server is in [`server`].

mod references;
pub mod server;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::kinds::Node;
use crate::report::{Code, Problem, Report, did_you_mean};
use crate::scalars::{Name, NetworkName};
use crate::snapshot::{ResourceId, Snapshot};
use crate::source_map::SourceMap;
use crate::value::{Location, Step};

/// What a kind asks of its objects beyond what the types of their fields say.
pub trait Rules {
    /// Reports what is wrong with one object in its world.
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>);
}

/// Where rules leave what they find about one object.
pub struct Findings<'a> {
    report: Report,
    source_map: &'a SourceMap,
    reserved: BTreeMap<(&'a NetworkName, IpAddr), &'a ResourceId>,
    id: Option<&'a ResourceId>,
    suggestions: Cell<u32>,
}

/// How many problems of a run get a "did you mean": each one costs a look at all names, and nobody reads a thousand.
const SUGGESTIONS: u32 = 50;

impl Findings<'_> {
    /// Reports a problem of the object, at the value that a path leads to; without a step at its name.
    pub fn push(&mut self, problem: Problem, path: &[Step<'_>]) {
        let at = self.id.and_then(|id| self.source_map.location(id, path));
        let id = self.id.map(ToString::to_string);
        self.report.push(Problem { id, ..problem }.at(at));
    }

    /// Whether one more problem gets a suggestion; each call counts.
    pub fn may_suggest(&self) -> bool {
        self.suggestions.replace(self.suggestions.get().saturating_add(1)) < SUGGESTIONS
    }

    /// Where a value of any object stands; without a step its name.
    pub fn location(&self, id: &ResourceId, path: &[Step<'_>]) -> Option<Location> {
        self.source_map.location(id, path)
    }

    /// The first object of a network that reserves an address.
    pub fn first_with_address(&self, network: &NetworkName, address: IpAddr) -> Option<&ResourceId> {
        self.reserved.get(&(network, address)).copied()
    }
}

/// Checks every rule; `source_map` tells where things stand, as far as they stand in files.
pub fn check(world: &Snapshot, source_map: &SourceMap) -> Report {
    let mut findings = Findings {
        report: Report::default(),
        source_map,
        reserved: reserved(world),
        id: None,
        suggestions: Cell::new(0),
    };
    for (id, entry) in world.entries() {
        findings.id = Some(id);
        entry.object.check(id, world, &mut findings);
    }
    references::check(world, &mut findings);
    check_networks(world, &mut findings);
    check_names(world, &mut findings);
    check_overlap(world, &mut findings);
    findings.report
}

fn reserved(world: &Snapshot) -> BTreeMap<(&NetworkName, IpAddr), &ResourceId> {
    let mut reserved = BTreeMap::new();
    for (network, _) in world.networks() {
        for (id, node) in world.all_in::<Node>(network) {
            for (_, address) in node.reserved() {
                reserved.entry((network, address)).or_insert(id);
            }
        }
    }
    reserved
}

/// Every object stands in a network that is defined; each missing network is reported once.
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
        let help = did_you_mean(network.name.as_str(), known)
            .unwrap_or_else(|| format!("give network {network} an ipv4 range such as 10.40.0.0/16, or an ipv6 range"));
        let message = format!("{first} belongs to network {network}, which no file defines");
        let at = findings.source_map.parent(first);
        findings.report.push(Problem::new(Code::NetworkNotDefined, message).at(at).help(help).about(network));
    }
}

/// In one network no two objects of one namespace have the same name.
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
                findings.report.push(problem.see(see, "taken here first").help("rename one of them".to_owned()));
            }
        }
    }
}

fn check_overlap(world: &Snapshot, findings: &mut Findings<'_>) {
    let mut ranges = Vec::new();
    for (name, network) in world.networks() {
        for range in network.ranges() {
            let overlaps = |(_, other): &&(&NetworkName, ipnet::IpNet)| {
                other.contains(&range.network()) || range.contains(&other.network())
            };
            if let Some((other, taken)) = ranges.iter().find(overlaps) {
                let field = if range.network().is_ipv4() { "ipv4" } else { "ipv6" };
                let id = ResourceId::of_network(name.clone());
                let message = format!("{range} of network {name} overlaps {taken} of network {other}");
                let see = findings.location(&ResourceId::of_network((*other).clone()), &[Step::Field(field)]);
                let at = findings.location(&id, &[Step::Field(field)]);
                let problem = Problem::new(Code::OverlappingRanges, message).at(at).about(&id);
                findings
                    .report
                    .push(problem.see(see, "the other range").help("choose ranges that are apart".to_owned()));
            }
            ranges.push((name, range));
        }
    }
}
