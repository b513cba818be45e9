//! References between objects: each names an object that exists, and those that an object consists of form no
//! cycle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::Findings;
use crate::descriptor::{Reference, Target, with_article};
use crate::kinds::Kind;
use crate::report::{Code, Problem, did_you_mean};
use crate::scalars::Name;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Location;

/// The references that may not form a cycle, each with its place; nodes and edges in the order of the
/// snapshot.
type Graph = DiGraph<ResourceId, Option<Location>>;

/// Checks the references of all objects.
pub(super) fn check(world: &Snapshot, findings: &mut Findings<'_>) {
    let mut graph = Graph::new();
    let mut nodes = BTreeMap::new();
    let mut node = |id: &ResourceId, graph: &mut Graph| match nodes.get(id) {
        Some(node) => *node,
        None => *nodes.entry(id.clone()).or_insert(graph.add_node(id.clone())),
    };
    for (id, entry) in world.entries() {
        entry.object.references(&mut |reference| {
            if reference.network.is_some_and(|network| network != id.network.as_str()) {
                return;
            }
            let Some(target) = target(id, &reference, world, findings) else {
                return unknown(id, &reference, world, findings);
            };
            if reference.builds {
                let edge = (node(id, &mut graph), node(&target, &mut graph));
                graph.add_edge(edge.0, edge.1, place(id, &reference, findings));
            }
        });
    }
    for cycle in cycles(&graph) {
        report(&cycle, &graph, findings);
    }
}

/// The resource that a reference leads to; one that could not be read counts, since that is reported already.
fn target(
    id: &ResourceId,
    reference: &Reference<'_>,
    world: &Snapshot,
    findings: &Findings<'_>,
) -> Option<ResourceId> {
    let name: Name = reference.name.parse().ok()?;
    let meant = Kind::meant_by(reference.to);
    let mut meant = meant.map(|kind| ResourceId { network: id.network.clone(), kind, name: name.clone() });
    meant.find(|target| world.entry(target).is_some() || findings.source_map.declares(target))
}

fn place(id: &ResourceId, reference: &Reference<'_>, findings: &Findings<'_>) -> Option<Location> {
    findings.source_map.element_or_field(id, &reference.path, reference.text)
}

fn unknown(id: &ResourceId, reference: &Reference<'_>, world: &Snapshot, findings: &mut Findings<'_>) {
    let field = reference.path.iter().rev().find_map(|step| step.field()).unwrap_or_default();
    let message = match reference.to {
        Target::Kind(kind) => {
            format!("`{field}` of {id} names the {kind} {:?}, which is not declared", reference.name)
        }
        Target::NamedBy(_) => {
            let Reference { text, name, .. } = reference;
            let words: Vec<_> = Kind::meant_by(reference.to).map(|kind| kind.to_string()).collect();
            let network = &id.network;
            format!("`{field}` of {id} is {text:?}, but network {network} has no {} {name:?}", listed(&words))
        }
    };
    let help = match namesake(id, reference, world, findings) {
        Some(namesake) => format!("{namesake} has that name, but {} belongs here", meant(reference.to)),
        None => help_for(id, reference, world, findings.may_suggest()),
    };
    let problem = Problem::new(Code::UnknownReference, message).at(place(id, reference, findings));
    findings.report.push(problem.help(help).about(id));
}

fn help_for(id: &ResourceId, reference: &Reference<'_>, world: &Snapshot, suggest: bool) -> String {
    let declare =
        || format!("declare {} {:?} in network {}", meant(reference.to), reference.name, id.network);
    if !suggest {
        return declare();
    }
    let rest = reference.text.strip_prefix(reference.name).unwrap_or_default();
    let known = Kind::meant_by(reference.to).flat_map(|kind| world.ids_of(&id.network, kind));
    let known: Vec<_> =
        known.filter(|known| *known != id).map(|known| format!("{}{rest}", known.name)).collect();
    did_you_mean(reference.text, known.iter().map(String::as_str)).unwrap_or_else(declare)
}

/// What a name may be of: `a node or a group`.
fn meant(to: Target) -> String {
    let words: Vec<_> = Kind::meant_by(to).map(|kind| with_article(kind.descriptor().word)).collect();
    listed(&words)
}

/// `a, b or c`.
fn listed(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [others @ .., last] => format!("{} or {last}", others.join(", ")),
    }
}

/// An object that has the name, of a kind that is not meant.
fn namesake(
    id: &ResourceId,
    reference: &Reference<'_>,
    world: &Snapshot,
    findings: &Findings<'_>,
) -> Option<ResourceId> {
    let inside = Kind::ALL.iter().filter(|kind| kind.descriptor().within == id.kind.descriptor().within);
    let to = |kind: &Kind| {
        target(
            id,
            &Reference { to: Target::Kind(kind.descriptor().word), ..reference.clone() },
            world,
            findings,
        )
    };
    inside.filter_map(to).next()
}

/// One cycle for each set of objects that lead to each other: the shortest through the first of them,
/// beginning there.
fn cycles(graph: &Graph) -> Vec<Vec<NodeIndex>> {
    let mut cycles: Vec<_> =
        kosaraju_scc(graph).iter().filter_map(|component| cycle(component, graph)).collect();
    cycles.sort_by_key(|cycle| &graph[cycle[0]]);
    cycles
}

fn cycle(component: &[NodeIndex], graph: &Graph) -> Option<Vec<NodeIndex>> {
    let first = *component.iter().min_by_key(|node| &graph[**node])?;
    let component: BTreeSet<_> = component.iter().copied().collect();
    let mut from: BTreeMap<NodeIndex, NodeIndex> = BTreeMap::new();
    let mut open = VecDeque::from([first]);
    while let Some(node) = open.pop_front() {
        for next in graph.neighbors(node).filter(|next| component.contains(next)) {
            if next == first {
                let mut cycle: Vec<_> =
                    std::iter::successors(Some(node), |at| from.get(at).copied()).collect();
                cycle.reverse();
                return Some(cycle);
            }
            if let std::collections::btree_map::Entry::Vacant(new) = from.entry(next) {
                new.insert(node);
                open.push_back(next);
            }
        }
    }
    None
}

/// How many members of a cycle a problem shows: these lead to the others, and a hostile file has thousands.
const SHOWN: usize = 12;

fn report(cycle: &[NodeIndex], graph: &Graph, findings: &mut Findings<'_>) {
    let first = &graph[cycle[0]];
    let shown = &cycle[..cycle.len().min(SHOWN)];
    let mut through: Vec<_> = shown.iter().map(|node| graph[*node].to_string()).collect();
    if shown.len() < cycle.len() {
        through.push(format!("{} more", cycle.len() - shown.len()));
    }
    let message = format!("{first} refers back to itself: {} -> {first}", through.join(" -> "));
    let mut places = shown.iter().zip(cycle[1..].iter().chain(&cycle[..1])).map(|(node, next)| {
        let edge = graph.find_edge(*node, *next)?;
        graph[edge]
    });
    let mut problem = Problem::new(Code::Cycle, message).at(places.next().flatten()).about(first);
    for place in places {
        problem = problem.see(place, "then from here");
    }
    findings
        .report
        .push(problem.help("remove one of these references, or let it refer to something else".to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cycles of a graph that is written `a>b b>a`, each as the names that it passes.
    fn found(edges: &str) -> Vec<String> {
        let mut graph = Graph::new();
        let mut nodes = BTreeMap::new();
        for edge in edges.split_whitespace() {
            let (from, to) = edge.split_once('>').expect("an edge");
            let mut node = |name: &str| {
                let id: ResourceId = format!("n/dns/{name}").parse().expect("an id");
                *nodes.entry(id.clone()).or_insert_with(|| graph.add_node(id))
            };
            let (from, to) = (node(from), node(to));
            graph.add_edge(from, to, None);
        }
        let names = |cycle: &Vec<NodeIndex>| {
            cycle.iter().map(|node| graph[*node].name.to_string()).collect::<String>()
        };
        cycles(&graph).iter().map(names).collect()
    }

    #[test]
    fn each_cycle_is_found_once_and_begins_at_its_first_member() {
        for (edges, expected) in [
            ("a>b b>c", &[][..]),
            ("a>a", &["a"]),
            ("b>a a>b", &["ab"]),
            ("x>a c>a b>c a>b", &["abc"]),
            ("d>c c>d a>b b>a", &["ab", "cd"]),
            ("a>b b>c c>a b>a", &["ab"]),
            ("a>b b>c c>b", &["bc"]),
            ("a>b b>a b>c c>d d>c", &["ab", "cd"]),
            ("a>b a>c b>d c>d", &[]),
        ] {
            assert_eq!(found(edges), expected, "{edges}");
        }
    }

    #[test]
    fn a_chain_of_any_length_overflows_no_stack() {
        let chain = |last: &str| {
            let edges = (0..20_000).map(|at| format!("n{at}>n{}", at + 1));
            edges.chain([format!("n20000>{last}")]).collect::<Vec<_>>().join(" ")
        };
        assert!(found(&chain("end")).is_empty());
        assert_eq!(found(&chain("n0")).len(), 1);
    }
}
