//! An access key: what lets hosts join.

use std::collections::BTreeSet;

use schema_derive::Describe;

use super::Node;
use crate::attribute::Ref;
use crate::report::{Code, Problem};
use crate::rules::{Findings, Rules};
use crate::scalars::{Expiry, Name, Uses};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Lets hosts join the network, with the token that `nmplan apply --keys-to` writes when the key is created.
///
/// The secret inside the token is made by nmplan and kept by nobody else; the server stores what verifies it.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "access-key", plural = "access-keys", within = "network")]
pub struct AccessKey {
    /// How many nodes may join with it, or `unlimited`. Absent: one, or one for each node that `for` names.
    pub uses: Option<Uses>,
    /// When it expires: a duration after it was created, or a day. Absent: never.
    pub expires: Option<Expiry>,
    /// Tags that a node gets when it joins with this key. They are copied: later changes do not reach joined
    /// nodes.
    pub tags: BTreeSet<Name>,
    /// The declared nodes whose names may be claimed with it, once each. Absent: it claims no declared name,
    /// and its nodes join under names that no file declares.
    pub r#for: BTreeSet<Ref<Node>>,
}

impl AccessKey {
    /// How many nodes may join with it.
    pub fn uses(&self) -> Uses {
        let named = u32::try_from(self.r#for.len()).unwrap_or(u32::MAX);
        self.uses.unwrap_or(Uses::Count(named.max(1)))
    }
}

impl Rules for AccessKey {
    fn check(&self, id: &ResourceId, _: &Snapshot, findings: &mut Findings<'_>) {
        if self.uses.is_some() && !self.r#for.is_empty() {
            let message = format!("{id} has both uses and for, and for already allows one use for each name");
            findings.push(Problem::new(Code::UsesWithFor, message).help("remove uses".to_owned()), &[Step::Field("uses")]);
        }
    }

    fn tags_given(&self) -> Option<&BTreeSet<Name>> {
        Some(&self.tags)
    }
}
