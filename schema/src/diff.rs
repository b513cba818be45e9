//! The one differ: the changes from one snapshot to another.
//!
//! It compares canonical values and knows no exception: what must not be changed is added to the desired
//! snapshot beforehand.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::descriptor::{Field, Fields};
use crate::kinds::Kind;
use crate::published::Body;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Value;

/// What is done to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is created.
    Create,
    /// Its fields change.
    Update,
    /// It is deleted.
    Delete,
}

/// One difference between two snapshots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// The resource.
    pub id: ResourceId,
    /// What is done to it.
    pub action: Action,
    /// Its fields before; null if it is created.
    #[schemars(with = "Option<Body>")]
    pub before: Option<Value>,
    /// Its fields afterwards; null if it is deleted.
    #[schemars(with = "Option<Body>")]
    pub after: Option<Value>,
}

impl Action {
    /// Its symbol, with colour or without.
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
    /// The fields that differ; what is created or deleted differs in the fields that its body holds.
    pub fn fields(&self) -> Vec<FieldChange> {
        fields(self.id.kind.descriptor().fields, self.before.as_ref(), self.after.as_ref())
    }
}

/// A field that differs between two bodies.
#[derive(Clone, Debug)]
pub struct FieldChange {
    /// The field.
    pub field: &'static Field,
    /// What it was; absent: nothing.
    pub before: Option<Value>,
    /// What it is; absent: nothing.
    pub after: Option<Value>,
}

/// The fields that differ between two bodies. If there are both, a field that one leaves out has its default
/// there.
pub fn fields(fields: &Fields, before: Option<&Value>, after: Option<&Value>) -> Vec<FieldChange> {
    let both = before.is_some() && after.is_some();
    let value = |field: &'static Field, body: Option<&Value>| {
        if both { field.in_body(body?) } else { body?.field(field.name).cloned() }
    };
    let pairs = fields.iter().map(|field| FieldChange {
        field,
        before: value(field, before),
        after: value(field, after),
    });
    pairs.filter(|change| change.before != change.after).collect()
}

/// The changes from `observed` to `desired`, in the order of a plan: network by network, deletions first and
/// from the last kind to the first, then the rest from the first kind to the last.
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
