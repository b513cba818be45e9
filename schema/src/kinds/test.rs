//! A test: what must hold of who reaches whom, whatever is changed.

use std::collections::BTreeSet;

use schema_derive::{Describe, Record};

use super::Node;
use super::network::ListenPort;
use crate::access::Protocol;
use crate::attribute::{NonEmpty, Ref};
use crate::rules::{Findings, Rules};
use crate::scalars::Selector;
use crate::snapshot::{ResourceId, Snapshot};

/// What must hold of who reaches whom: a change after which it does not is refused. It is judged as if every
/// declared node had joined, and two more with the tags of each key that lets others join.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "test", plural = "tests", within = "network")]
pub struct Test {
    /// Who must reach whom.
    pub reach: Vec<Reach>,
    /// Who must not reach whom.
    pub no_reach: Vec<NoReach>,
    /// Which way packets must take.
    pub path: Vec<Path>,
}

/// Every member of `from` reaches every member of `to`; it fails where either has none.
#[derive(Clone, Debug, PartialEq, Record)]
pub struct Reach {
    /// Who opens connections.
    pub from: NonEmpty<BTreeSet<Selector>>,
    /// To whom.
    pub to: NonEmpty<BTreeSet<Selector>>,
    /// Members of `from` that do not count.
    pub except: BTreeSet<Selector>,
    /// With which protocol. Absent: with every one, or with `tcp` where a port is given.
    pub proto: Option<Protocol>,
    /// To which port. Absent: to every one.
    pub port: Option<ListenPort>,
    /// Whether it must hold also while any one node that carries traffic for others is away, other than
    /// members of `from` and `to`.
    #[field(default = false)]
    pub without_any_gateway: bool,
}

/// No member of `from` reaches any member of `to`.
#[derive(Clone, Debug, PartialEq, Record)]
pub struct NoReach {
    /// Who opens connections.
    pub from: NonEmpty<BTreeSet<Selector>>,
    /// To whom.
    pub to: NonEmpty<BTreeSet<Selector>>,
    /// Members of `from` that do not count.
    pub except: BTreeSet<Selector>,
    /// With which protocol. Absent: with none, or not with `tcp` where a port is given.
    pub proto: Option<Protocol>,
    /// To which port. Absent: to none.
    pub port: Option<ListenPort>,
}

/// Packets from one member to another take this way.
#[derive(Clone, Debug, PartialEq, Record)]
pub struct Path {
    /// The member that sends.
    pub from: Selector,
    /// The member that receives.
    pub to: Selector,
    /// The nodes that pass them on, in order. Absent: none, packets go directly.
    pub via: Vec<Ref<Node>>,
}

impl Rules for Test {
    fn check(&self, _: &ResourceId, _: &Snapshot, _: &mut Findings<'_>) {}
}
