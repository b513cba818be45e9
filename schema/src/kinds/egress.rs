//! An egress: ranges outside of the mesh that nodes of it forward to.

use std::collections::BTreeSet;

use schema_derive::Describe;

use super::Node;
use crate::attribute::{NonEmpty, Ref};
use crate::rules::{Findings, Rules};
use crate::scalars::{InterfaceName, OuterRange, Selector};
use crate::snapshot::{ResourceId, Snapshot};

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

impl Rules for Egress {
    fn check(&self, _: &ResourceId, _: &Snapshot, _: &mut Findings<'_>) {}
}
