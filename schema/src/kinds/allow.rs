//! An access rule: who may open what at whom.

use std::collections::BTreeSet;

use schema_derive::Describe;

use super::Acl;
use crate::access::{Access, Protocol};
use crate::attribute::NonEmpty;
use crate::report::{Code, Problem};
use crate::rules::{Findings, Rules};
use crate::scalars::{PortRange, Selector};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Lets members open connections to others, in a network whose `acl` is `deny`. Rules add up, their order
/// means nothing, and each is one way: what is opened gets its answers.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "allow", plural = "allow", within = "network")]
pub struct Allow {
    /// Who may open connections.
    pub from: NonEmpty<BTreeSet<Selector>>,
    /// To whom.
    pub to: NonEmpty<BTreeSet<Selector>>,
    /// With which protocol. Absent: any protocol.
    pub proto: Option<Protocol>,
    /// To which ports, with `proto` `tcp` or `udp`. Absent: any port.
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
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        if world.network(&id.network).is_some_and(|network| network.acl == Acl::Allow) {
            let network = ResourceId::of_network(id.network.clone());
            let message =
                format!("{id} has no effect: in network {network} members may open everything at each other anyway");
            let at = findings.location(&network, &[Step::Field("acl")]);
            let problem = Problem::new(Code::NoEffect, message).see(at, "the `acl` of this network is `allow`");
            let help = "set the network's `acl` to `deny`, so that members may open only what rules say, or remove the rule";
            findings.push(problem.help(help.to_owned()), &[]);
        }
        if self.ports.is_some() && !self.proto.is_some_and(Protocol::has_ports) {
            findings.push(ports_without_protocol(id, "ports", self.proto), &[Step::Field("ports")]);
        }
    }
}

/// The problem of a field for ports where the protocol has none, or none is given.
pub(super) fn ports_without_protocol(id: &ResourceId, field: &str, proto: Option<Protocol>) -> Problem {
    let why = proto.map_or("no `proto`; only tcp and udp have ports".to_owned(), |proto| {
        format!("its `proto` is {proto}, which has no ports")
    });
    let problem = Problem::new(Code::PortsWithoutProtocol, format!("{id} has `{field}`, but {why}"));
    problem.help(format!("set `proto` to `tcp` or `udp`, or remove `{field}`"))
}
