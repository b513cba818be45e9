//! A group: nodes under one name, for rules and tests.

use std::collections::BTreeSet;

use schema_derive::Describe;

use super::Node;
use crate::attribute::Ref;
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
}

impl Rules for Group {
    fn check(&self, _: &ResourceId, _: &Snapshot, _: &mut Findings<'_>) {}
}
