//! Nodes whose endpoint comes to lie in a range of a network: hosts of that network send what is for the endpoint into
//! the mesh, and no longer reach the node.

use super::{Parts, Planned};
use crate::compile::reach::{Hidden, hidden};
use crate::inventory::NodeId;
use crate::report::{Code, Report};
use crate::snapshot::{ResourceId, Snapshot};
use crate::text::count;

/// Checks the ranges of a network.
pub(super) fn check(planned: &Planned<'_>, report: &mut Report) {
    let network = planned.network;
    let ranges = |declared: &Snapshot| declared.network(network).map(|it| it.ranges().collect::<Vec<_>>());
    let [was, is] = [planned.before, planned.after].map(|(declared, _)| ranges(declared));
    let Some(is) = is.filter(|is| was.as_ref() != Some(is)) else { return };
    let behind = |(declared, inventory): Parts<'_>| hidden(declared, inventory);
    let (before, after): (Hidden, Hidden) = (behind(planned.before), behind(planned.after));
    let new: Vec<&NodeId> =
        after.behind(network).filter(|id| !before.behind(network).any(|it| it == *id)).collect();
    let Some(first) = new.first() else { return };
    let more = match new.len() - 1 {
        0 => String::new(),
        more => format!(" and of {}", count(more as u64, "more node")),
    };
    let ranges: Vec<_> = is.iter().map(ToString::to_string).collect();
    let message = format!(
        "the range {} of network {network} holds the endpoint of {}/{}{more}: hosts that are in {network} no longer \\
         reach it there, since what they send to it goes into the mesh",
        ranges.join(" or "),
        first.network,
        first.name,
    );
    let id = ResourceId::of_network(network.clone());
    let field = if is.iter().any(|range| range.network().is_ipv4()) { "ipv4" } else { "ipv6" };
    let problem = planned.warning(Code::HiddenEndpoint, message, &id, Some(field));
    report.push(problem.help("choose a range that no host has an address of outside of the mesh".to_owned()));
}
