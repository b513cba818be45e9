//! Rules over a whole snapshot: references, uniqueness, overlap, and what each kind asks for itself.
//!
//! Run on files by `validate` and `plan`, and again by the server on what an apply would leave. Rules that hold for
//! every kind loop over descriptors; a kind's own are in its file; what depends on the server is in [`server`].

pub mod server;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::descriptor::Type;
use crate::kinds::{Kind, Node};
use crate::report::{Code, Problem, Report, did_you_mean};
use crate::scalars::{Name, NetworkName};
use crate::snapshot::{Entry, ResourceId, Snapshot};
use crate::source_map::SourceMap;
use crate::value::{Data, Location, Value};

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
    /// Reports a problem of the object, at one of its fields or at its name.
    pub fn push(&mut self, problem: Problem, field: Option<&str>) {
        let at = self.id.and_then(|id| self.source_map.location(id, field));
        let id = self.id.map(ToString::to_string);
        self.report.push(Problem { id, ..problem }.at(at));
    }

    /// Whether one more problem gets a suggestion; each call counts.
    pub fn may_suggest(&self) -> bool {
        self.suggestions.replace(self.suggestions.get().saturating_add(1)) < SUGGESTIONS
    }

    /// Where a field of any object stands.
    pub fn location(&self, id: &ResourceId, field: Option<&str>) -> Option<Location> {
        self.source_map.location(id, field)
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
        check_references(id, entry, world, &mut findings);
    }
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

/// Every reference leads to a resource of the same network.
fn check_references(id: &ResourceId, entry: &Entry, world: &Snapshot, findings: &mut Findings<'_>) {
    let fields = id.kind.descriptor().fields.iter();
    let mut references = fields.filter_map(|field| Some((field.name, referred(&field.ty)?))).peekable();
    if references.peek().is_none() {
        return;
    }
    let body = entry.object.body();
    for (field, kind) in references {
        for name in names(body.field(field)) {
            let target = ResourceId { network: id.network.clone(), kind, name };
            if world.entry(&target).is_none() && !findings.source_map.declares(&target) {
                let message =
                    format!("`{field}` of {id} names the {kind} {:?}, which is not declared", target.name.as_str());
                let help = help_for_reference(&target, world, findings.may_suggest());
                let at =
                    findings.source_map.element(id, field, target.name.as_str()).or(findings.location(id, Some(field)));
                findings.report.push(Problem::new(Code::UnknownReference, message).at(at).help(help).about(id));
            }
        }
    }
}

/// The kind that a field of this type names.
fn referred(ty: &Type) -> Option<Kind> {
    match ty {
        Type::Reference(word) => word.parse().ok(),
        Type::Set(inner) | Type::Map(inner) => referred(inner),
        Type::Bool | Type::Integer { .. } | Type::Scalar(_) | Type::Text => None,
    }
}

fn names(value: Option<&Value>) -> Vec<Name> {
    match value.map(|value| &value.data) {
        Some(Data::Text(name)) => name.parse().into_iter().collect(),
        Some(Data::List(items)) => items.iter().flat_map(|item| names(Some(item))).collect(),
        _ => Vec::new(),
    }
}

fn help_for_reference(target: &ResourceId, world: &Snapshot, suggest: bool) -> String {
    let declare = || format!("declare a {} {:?} in network {}", target.kind, target.name.as_str(), target.network);
    if !suggest {
        return declare();
    }
    let known = world.ids_of(&target.network, target.kind).map(|id| id.name.as_str());
    did_you_mean(target.name.as_str(), known).unwrap_or_else(declare)
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

/// What resolves in one network has one set of names.
fn check_names(world: &Snapshot, findings: &mut Findings<'_>) {
    let mut taken: BTreeMap<(&NetworkName, &Name), &ResourceId> = BTreeMap::new();
    for (id, _) in world.entries().filter(|(id, _)| id.kind.descriptor().resolves) {
        match taken.entry((&id.network, &id.name)) {
            std::collections::btree_map::Entry::Vacant(free) => drop(free.insert(id)),
            std::collections::btree_map::Entry::Occupied(first) => {
                let message = format!("{} and {id} share the name {:?}", first.get(), id.name.as_str());
                let at = findings.location(id, None);
                let problem = Problem::new(Code::NameTaken, message).at(at).about(id);
                let see = findings.location(first.get(), None);
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
                let see = findings.location(&ResourceId::of_network((*other).clone()), Some(field));
                let at = findings.location(&id, Some(field));
                let problem = Problem::new(Code::OverlappingRanges, message).at(at).about(&id);
                findings
                    .report
                    .push(problem.see(see, "the other range").help("choose ranges that are apart".to_owned()));
            }
            ranges.push((name, range));
        }
    }
}
