//! An egress: ranges outside of the mesh that nodes of it forward to.

use std::collections::BTreeSet;

use schema_derive::Describe;

use super::Node;
use crate::attribute::{NonEmpty, Ref};
use crate::report::{Code, Problem};
use crate::rules::{Claim, Findings, Rules};
use crate::scalars::{InterfaceName, OuterRange, Selector};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Ranges outside of the network that its members reach through a node of it, the gateway. With `0.0.0.0/0`
/// or `::/0` the gateway is their way to the internet.
///
/// It gives the route, never permission: in a network whose `acl` is `deny`, an `allow` to the range is needed
/// as well.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "egress", plural = "egress", within = "network")]
pub struct Egress {
    /// The nodes that may carry it, in order of preference: the first that is there does.
    pub via: NonEmpty<Vec<Ref<Node>>>,
    /// What they forward to. Where ranges of several egress overlap, the longest prefix goes first.
    pub ranges: NonEmpty<BTreeSet<OuterRange>>,
    /// Whether what leaves the mesh has the gateway's address as its source. Otherwise hosts in the ranges
    /// see members' own addresses, and need a route to them through the gateway.
    #[field(default = true)]
    pub nat: bool,
    /// The interface of the gateway that the ranges are behind, on every node of `via`. Absent: where each of
    /// them routes them itself.
    pub interface: Option<InterfaceName>,
    /// Who gets the route. Absent: every member.
    pub r#for: Option<NonEmpty<BTreeSet<Selector>>>,
    /// For `0.0.0.0/0` and `::/0`: whether traffic leaves by the member's own way while no gateway is there.
    /// Otherwise it is refused, from the first time that a gateway has carried it.
    #[field(default = false)]
    pub fallback: bool,
}

impl Egress {
    /// Whether it leads to everything: `0.0.0.0/0` or `::/0` is among its ranges.
    pub fn is_default_route(&self) -> bool {
        self.ranges.iter().any(|range| range.net().prefix_len() == 0)
    }
}

impl Rules for Egress {
    fn check(&self, id: &ResourceId, _: &Snapshot, findings: &mut Findings<'_>) {
        check_via(&self.via, id, findings);
    }

    fn doubt(&self, id: &ResourceId, _: &Snapshot, findings: &mut Findings<'_>) {
        if self.fallback && !self.is_default_route() {
            let message = format!("`fallback` of {id} has no effect: it is about 0.0.0.0/0 and ::/0, and neither is among its ranges");
            let problem = Problem::new(Code::NoDefaultRoute, message).help("remove `fallback`".to_owned());
            findings.push(problem, &[Step::Field("fallback")]);
        }
    }

    fn claims(&self) -> Vec<(&'static str, Claim)> {
        self.ranges.iter().map(|range| ("ranges", Claim::Route(range.net()))).collect()
    }
}

/// Reports a node that is in an order of preference twice.
pub(super) fn check_via(via: &[Ref<Node>], id: &ResourceId, findings: &mut Findings<'_>) {
    for (place, node) in via.iter().enumerate().filter(|(place, node)| via[..*place].contains(node)) {
        let message = format!("`via` of {id} names {:?} twice, so its place in the order is not clear", node.name.as_str());
        let problem = Problem::new(Code::NamedTwice, message).help("name it once".to_owned());
        findings.push(problem, &[Step::Field("via"), Step::Index(place)]);
    }
}
