//! A host has one name in a network: no two nodes approve the same one.

use std::collections::BTreeMap;

use super::Findings;
use crate::kinds::Node;
use crate::report::{Code, Problem};
use crate::scalars::{Fingerprint, NetworkName};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Checks each network.
pub(super) fn check(world: &Snapshot, findings: &mut Findings<'_>) {
    for (network, _) in world.networks() {
        check_network(network, world, findings);
    }
}

fn check_network(network: &NetworkName, world: &Snapshot, findings: &mut Findings<'_>) {
    let mut first: BTreeMap<Fingerprint, &ResourceId> = BTreeMap::new();
    for (id, node) in world.all_in::<Node>(network) {
        let Some(approved) = node.approved else { continue };
        let Some(other) = first.get(&approved) else {
            first.insert(approved, id);
            continue;
        };
        let path = [Step::Field("approved")];
        let message = format!("{other} and {id} approve the same host, which can be one of them only");
        let problem = Problem::new(Code::ApprovedTwice, message).about(id).at(findings.location(id, &path));
        let problem = problem.see(findings.location(other, &path), "approved here first");
        let help = "remove one of them; each host prints its own fingerprint: netclient status".to_owned();
        findings.report.push(problem.help(help));
    }
}
