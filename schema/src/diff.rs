//! The one differ: what leads from one snapshot to another.
//!
//! It compares canonical values and knows no exception: what must not be touched is added to the desired snapshot
//! before.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kinds::Kind;
use crate::published::Body;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Value;

/// What is done to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is made.
    Create,
    /// Its fields change.
    Update,
    /// It is taken away.
    Delete,
}

/// One difference between two snapshots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// The resource.
    pub id: ResourceId,
    /// What is done to it.
    pub action: Action,
    /// What it said; null where it is made.
    #[schemars(with = "Option<Body>")]
    pub before: Option<Value>,
    /// What it will say; null where it is taken away.
    #[schemars(with = "Option<Body>")]
    pub after: Option<Value>,
}

impl Action {
    /// The sign that stands for it, with colour or without.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Create => "+",
            Self::Update => "~",
            Self::Delete => "-",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        })
    }
}

impl Change {
    /// The fields that differ, each with what it was and will be.
    pub fn fields(&self) -> Vec<(&str, Option<&Value>, Option<&Value>)> {
        let (before, after) = (self.before.as_ref(), self.after.as_ref());
        let names = self.id.kind.descriptor().fields.iter().map(|field| field.name);
        let both =
            names.map(|name| (name, before.and_then(|body| body.field(name)), after.and_then(|body| body.field(name))));
        both.filter(|(_, was, is)| was != is).collect()
    }
}

/// What leads from `observed` to `desired`, in the order of a plan: network by network, deletions first and from the
/// last kind to the first, then the rest from the first kind to the last.
pub fn diff(observed: &Snapshot, desired: &Snapshot) -> Vec<Change> {
    let mut changes: Vec<_> = observed
        .differences(desired)
        .filter(|(_, before, after)| before.map(|entry| &entry.object) != after.map(|entry| &entry.object))
        .map(|(id, before, after)| {
            let action = match (before, after) {
                (None, _) => Action::Create,
                (Some(_), Some(_)) => Action::Update,
                (Some(_), None) => Action::Delete,
            };
            let body = |entry: Option<&crate::snapshot::Entry>| entry.map(|entry| entry.object.body());
            Change { id: id.clone(), action, before: body(before), after: body(after) }
        })
        .collect();
    changes.sort_by(|a, b| order(a).cmp(&order(b)));
    changes
}

fn order(change: &Change) -> impl Ord {
    let ResourceId { network, kind, name } = &change.id;
    let last = Kind::ALL.len();
    let place = *kind as usize;
    let (late, rank) = if change.action == Action::Delete { (false, last - place) } else { (true, place) };
    (network.clone(), late, rank, name.clone())
}
