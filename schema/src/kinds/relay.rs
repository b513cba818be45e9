//! A relay: a node that carries the traffic of nodes that cannot be reached directly.

use std::collections::BTreeSet;

use schema_derive::Describe;

use super::Node;
use super::egress::check_via;
use crate::attribute::{NonEmpty, Ref};
use crate::rules::{Findings, Rules};
use crate::scalars::Selector;
use crate::snapshot::{ResourceId, Snapshot};

/// A node that carries all traffic of others, which cannot be reached directly: to and from them.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "relay", plural = "relays", within = "network")]
pub struct Relay {
    /// The nodes that may carry it, in order of preference: the first that is there does.
    pub via: NonEmpty<Vec<Ref<Node>>>,
    /// The nodes whose traffic it carries; each by one relay at most.
    pub r#for: NonEmpty<BTreeSet<Selector>>,
}

impl Rules for Relay {
    fn check(&self, id: &ResourceId, _: &Snapshot, findings: &mut Findings<'_>) {
        check_via(&self.via, id, findings);
    }
}
