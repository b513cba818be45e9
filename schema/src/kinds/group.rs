//! A group: nodes under one name, for rules and tests.

use std::collections::BTreeSet;

use schema_derive::Describe;

use super::{ExternalClient, Node};
use crate::attribute::Ref;
use crate::report::{Code, Problem};
use crate::rules::{Findings, Rules};
use crate::scalars::Name;
use crate::snapshot::{ResourceId, Snapshot};

/// Members of the network under one name, for rules and tests: whoever any of its fields selects.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "group", plural = "groups", within = "network", namespace = "names", named_by("selector"))]
pub struct Group {
    /// Declared nodes that are in it.
    pub nodes: BTreeSet<Ref<Node>>,
    /// Tags whose members are in it.
    pub tags: BTreeSet<Name>,
    /// Groups whose members are in it.
    pub groups: BTreeSet<Ref<Group>>,
    /// External clients that are in it.
    pub external_clients: BTreeSet<Ref<ExternalClient>>,
}

impl Rules for Group {
    fn check(&self, id: &ResourceId, _: &Snapshot, findings: &mut Findings<'_>) {
        let Self { nodes, tags, groups, external_clients } = self;
        if nodes.is_empty() && tags.is_empty() && groups.is_empty() && external_clients.is_empty() {
            let problem = Problem::new(Code::EmptyGroup, format!("{id} has no field, so nobody is in it"));
            findings.push(problem.help("give it `nodes`, `tags`, `groups` or `external-clients`".to_owned()), &[]);
        }
    }
}
