//! An ingress: where clients without an agent enter the mesh.

use std::collections::BTreeSet;
use std::net::IpAddr;

use schema_derive::Describe;

use super::Node;
use crate::attribute::Ref;
use crate::rules::{Findings, Rules};
use crate::scalars::{Endpoint, OuterRange};
use crate::snapshot::{ResourceId, Snapshot};

/// Lets external clients into the network: hosts with WireGuard and without an agent, such as phones.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "ingress", plural = "ingress", within = "network")]
pub struct Ingress {
    /// The node that they are connected to.
    pub via: Ref<Node>,
    /// Where they reach it. Absent: the node's declared endpoint, else where the server sees it.
    pub endpoint: Option<Endpoint>,
    /// Where its clients get their addresses from: at most one range of each family, inside of the network's.
    /// Nodes get none of it. Absent: from the network's ranges.
    pub pool: BTreeSet<OuterRange>,
    /// The nameservers that clients are given. Absent: the server's `COREDNS_ADDR`.
    pub dns: BTreeSet<IpAddr>,
}

impl Rules for Ingress {
    fn check(&self, _: &ResourceId, _: &Snapshot, _: &mut Findings<'_>) {}
}
