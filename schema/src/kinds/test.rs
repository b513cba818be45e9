//! A test: what must hold of who reaches whom, whatever is changed.

use std::collections::BTreeSet;

use schema_derive::{Describe, Record};

use super::allow::ports_without_protocol;
use super::network::ListenPort;
use super::{Group, Node};
use crate::access::Protocol;
use crate::attribute::{NonEmpty, Ref};
use crate::report::{Code, Problem};
use crate::rules::{Findings, Rules};
use crate::scalars::Selector;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// What must hold of who reaches whom: a change after which it does not is refused. It is judged as if every
/// declared node had joined, and two more with the tags of each key that lets others join.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "test", plural = "tests", within = "network")]
pub struct Test {
    /// Who must reach whom.
    pub reach: Vec<Reach>,
    /// Who must not reach whom.
    pub no_reach: Vec<NoReach>,
    /// Which nodes packets must pass.
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

/// Packets from one node or range to another pass these nodes.
#[derive(Clone, Debug, PartialEq, Record)]
pub struct Path {
    /// The node that sends, or a range.
    pub from: Selector,
    /// The node that receives, or a range.
    pub to: Selector,
    /// The nodes that pass them on, in order. Absent: none, packets go directly.
    pub via: Vec<Ref<Node>>,
}

impl Rules for Test {
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        let Self { reach, no_reach, path } = self;
        if reach.is_empty() && no_reach.is_empty() && path.is_empty() {
            let problem = Problem::new(Code::EmptyTest, format!("{id} asserts nothing"));
            findings.push(problem.help("give it a `reach`, `no-reach` or `path`".to_owned()), &[]);
        }
        let reach = reach.iter().enumerate().map(|(index, it)| ("reach", index, it.proto, it.port));
        let no_reach = no_reach.iter().enumerate().map(|(index, it)| ("no-reach", index, it.proto, it.port));
        for (field, index, proto, port) in reach.chain(no_reach) {
            if port.is_some() && proto.is_some_and(|proto| !proto.has_ports()) {
                let path = [Step::Field(field), Step::Index(index), Step::Field("port")];
                findings.push(ports_without_protocol(id, "port", proto), &path);
            }
        }
        for (index, Path { from, to, via: _ }) in path.iter().enumerate() {
            for (end, selector) in [("from", from), ("to", to)] {
                let Some(several) = several(selector, id, world) else { continue };
                let message = format!("`{end}` of a path in {id} is {several}, which may be several nodes");
                let problem = Problem::new(Code::PathEnds, message);
                let path = [Step::Field("path"), Step::Index(index), Step::Field(end)];
                findings.push(problem.help("name one node, or write a range".to_owned()), &path);
            }
        }
    }
}

/// What a selector is that may select several nodes by other than their addresses; nothing if it may not.
fn several(selector: &Selector, id: &ResourceId, world: &Snapshot) -> Option<String> {
    match selector {
        Selector::Name(name) => world.named::<Group>(&id.network, name).map(|_| format!("the group {name}")),
        Selector::Tag(tag) => Some(format!("the tag {tag}")),
        Selector::Range(_) => None,
        Selector::All => Some("every member".to_owned()),
    }
}
