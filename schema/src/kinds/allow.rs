//! An access rule: who may open what at whom.

use std::collections::BTreeSet;

use schema_derive::Describe;

use crate::access::{Access, Protocol};
use crate::attribute::NonEmpty;
use crate::rules::{Findings, Rules};
use crate::scalars::{PortRange, Selector};
use crate::snapshot::{ResourceId, Snapshot};

/// Lets members open connections to others, in a network whose `acl` is `deny`. Rules add up, their order
/// means nothing, and each is one way: what is opened gets its answers.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "allow", plural = "allow", within = "network")]
pub struct Allow {
    /// Who may open connections.
    pub from: NonEmpty<BTreeSet<Selector>>,
    /// To whom.
    pub to: NonEmpty<BTreeSet<Selector>>,
    /// With which protocol. Absent: with every one.
    pub proto: Option<Protocol>,
    /// To which ports, with `proto` `tcp` or `udp`. Absent: to every one.
    pub ports: Option<NonEmpty<BTreeSet<PortRange>>>,
}

impl Allow {
    /// What it lets members open.
    pub fn access(&self) -> Access {
        let ports = self.ports.as_ref().map(|ports| ports.iter().map(|range| range.ports()).collect());
        Access::of(self.proto, ports)
    }
}

impl Rules for Allow {
    fn check(&self, _: &ResourceId, _: &Snapshot, _: &mut Findings<'_>) {}
}
