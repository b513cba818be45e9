//! Who is in a network for nothing, since its rules let nobody near: nodes that open nothing and at which nobody
//! opens anything, and gateways to ranges at which nobody may open anything.

use std::collections::BTreeSet;

use super::{Parts, Planned};
use crate::judge::unused::Unused;
use crate::kinds::{Egress, Node, Resource};
use crate::report::{Code, Report};
use crate::scalars::Name;
use crate::snapshot::ResourceId;
use crate::text::count;

/// How many nodes are named one by one; of more, which is mostly a network that has no rules yet, there is one
/// warning.
const EACH: usize = 3;

/// Checks a network.
pub(super) fn check(planned: &Planned<'_>, report: &mut Report) {
    let unused = |(declared, inventory): Parts<'_>| Unused::of(planned.network, declared, inventory);
    let is = unused(planned.after);
    if is.nodes.is_empty() && is.egress.is_empty() {
        return;
    }
    let was = unused(planned.before);
    let changed = changed::<Node>(planned);
    let nodes: Vec<_> =
        is.nodes.into_iter().filter(|name| !was.nodes.contains(name) || changed.contains(name)).collect();
    isolated(&nodes, planned, report);
    let changed = self::changed::<Egress>(planned);
    for name in is.egress.iter().filter(|name| !was.egress.contains(*name) || changed.contains(*name)) {
        unruled(name, planned, report);
    }
}

fn changed<T: Resource>(planned: &Planned<'_>) -> BTreeSet<Name> {
    planned.changed::<T>().map(|(id, ..)| id.name.clone()).collect()
}

fn isolated(nodes: &[Name], planned: &Planned<'_>, report: &mut Report) {
    let network = planned.network;
    let help = "let others open something at it, or it at others, by an `allow`";
    if nodes.len() > EACH {
        let named: Vec<_> = nodes.iter().take(EACH).map(ToString::to_string).collect();
        let more = count((nodes.len() - EACH) as u64, "more node");
        let message = format!(
            "nobody may open anything at {} and {more} of network {network}, and they may open nothing",
            named.join(", ")
        );
        let id = ResourceId::of_network(network.clone());
        let problem = planned.warning(Code::IsolatedNode, message, &id, Some("acl"));
        report.push(problem.help("let members open something at each other, by an `allow`".to_owned()));
        return;
    }
    for name in nodes {
        let id = ResourceId::of::<Node>(network, name);
        let message =
            format!("nobody may open anything at {id}, and it may open nothing: it reaches no member");
        report.push(planned.warning(Code::IsolatedNode, message, &id, None).help(help.to_owned()));
    }
}

/// An egress whose route leads where no rule lets anybody open anything.
fn unruled(name: &Name, planned: &Planned<'_>, report: &mut Report) {
    let id = ResourceId::of::<Egress>(planned.network, name);
    let Some(egress) = planned.after.0.named::<Egress>(planned.network, name) else { return };
    let ranges: Vec<_> = egress.ranges.iter().map(|range| range.net().to_string()).collect();
    let side = egress.r#for.as_ref().map(|side| side.iter().map(ToString::to_string).collect::<Vec<_>>());
    let whom = side.as_ref().map_or("every member".to_owned(), |side| side.join(", "));
    let from = side.unwrap_or_else(|| vec!["*".into()]);
    let quoted =
        |words: &[String]| words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" ");
    let message = format!(
        "{id} gives {whom} a route to {}, but no rule lets any of them open anything there",
        ranges.join(", ")
    );
    let help =
        format!("add a rule, such as allow \"{name}\" {{ from {}; to {}; }}", quoted(&from), quoted(&ranges));
    report.push(planned.warning(Code::RouteWithoutRule, message, &id, None).help(help));
}
