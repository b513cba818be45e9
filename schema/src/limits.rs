//! The guard of a project: how much one apply may do at most.
//!
//! A project file declares [`Limits`]. An apply stores them with the server, for its project and env, and the
//! next apply of that project is judged by them ([`guard::over_limits`](crate::guard::over_limits)): so no
//! change loosens the limits that it is judged by itself.

use std::borrow::Cow;
use std::collections::BTreeMap;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use schema_derive::Describe;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::attribute::{self, Describe, Struct};
use crate::reference;
use crate::scalars::Limit;
use crate::snapshot::{Owner, Revision, Snapshot};
use crate::value::{Span, Value};

/// How much one apply may do at most. What would do more is refused by `nmplan plan` and `nmplan apply`, with
/// exit code 3, unless it is let through once with `--allow` and the name of the field. The server judges an
/// apply by the guard that the apply before it stored, for the project and env: so a change cannot loosen the
/// limits that it is judged by, and a first apply is judged by none. A project file without a guard removes the
/// one that is stored; an apply without a project file, or of one network (`--network`), leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Describe)]
#[describe(word = "guard", plural = "guard", unnamed)]
pub struct Limits {
    /// How many objects an apply may delete; a percentage is of those that the project manages before it.
    /// Absent: any number.
    pub max_delete: Option<Limit>,
    /// How many nodes that have joined an apply may affect, other than by what may be opened at them alone; a
    /// percentage is of the nodes that have joined the networks in which the project manages anything before
    /// it. Absent: any number.
    pub max_nodes_changed: Option<Limit>,
    /// How many ordered pairs of members (A to B, and B to A) may lose reachability by an apply; a percentage is
    /// of all ordered pairs of members of one network, in the networks in which the project manages anything
    /// before it. Absent: any number.
    pub max_reach_lost: Option<Limit>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The limits in canonical form, as a record of the fields of [`Limits::FIELDS`].
    pub fn body(&self) -> Value {
        attribute::write(self)
    }
}

impl Serialize for Limits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.body().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let body = Value::deserialize(deserializer)?;
        let record = body.as_record().ok_or_else(|| de::Error::custom("a guard is a record of limits"))?;
        let mut found = Vec::new();
        let limits = attribute::read(record, Span::default(), &mut found);
        let why = || found.first().map(|first| first.message.clone()).unwrap_or_default();
        limits.ok_or_else(|| de::Error::custom(why()))
    }
}

impl JsonSchema for Limits {
    fn schema_name() -> Cow<'static, str> {
        "Guard".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let described = &reference::components(&[Self::DESCRIPTOR])[Self::WORD];
        Schema::try_from(described.clone()).expect("it is an object")
    }
}

/// The guard that an apply has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGuard {
    /// The revision that stored it.
    pub revision: Revision,
    /// Its limits: at least one.
    pub limits: Limits,
}

/// What becomes of a stored guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardChange {
    /// The limits before; null: there were none.
    pub before: Option<Limits>,
    /// The limits afterwards; null: there will be none.
    pub after: Option<Limits>,
}

/// How much a change does to nodes and to who reaches whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Nodes that are affected, other than by what may be opened at them alone.
    pub nodes_changed: u64,
    /// Ordered pairs of members that lose reachability.
    pub reach_lost: u64,
}

/// The guards that a server has stored, by the project and env that they are of. Clones share what they have in
/// common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Guards {
    stored: OrdMap<Owner, StoredGuard>,
}

impl Guards {
    /// The guard by which the next apply of a project is judged; absent: it has no limits.
    pub fn of(&self, owner: &Owner) -> Option<&StoredGuard> {
        self.stored.get(owner)
    }

    /// Every guard, by project and env.
    pub fn iter(&self) -> impl Iterator<Item = (&Owner, &StoredGuard)> {
        self.stored.iter()
    }

    /// Stores a guard; one without limits is none.
    pub fn put(&mut self, owner: Owner, guard: StoredGuard) {
        if guard.limits.is_empty() {
            self.stored.remove(&owner);
        } else {
            self.stored.insert(owner, guard);
        }
    }

    /// Removes a guard.
    pub fn remove(&mut self, owner: &Owner) {
        self.stored.remove(owner);
    }

    /// Removes the guards of projects that manage nothing of what is declared.
    pub fn settle(&mut self, declared: &Snapshot) {
        let gone: Vec<_> = self.stored.keys().filter(|owner| !declared.manages(owner)).cloned().collect();
        gone.iter().for_each(|owner| self.remove(owner));
    }

    /// The guards that differ from those of a later moment: each before and afterwards.
    pub fn differences<'a>(
        &'a self,
        later: &'a Self,
    ) -> impl Iterator<Item = (&'a Owner, Option<&'a StoredGuard>, Option<&'a StoredGuard>)> {
        self.stored.diff(&later.stored).map(|item| match item {
            DiffItem::Add(owner, guard) => (owner, None, Some(guard)),
            DiffItem::Remove(owner, guard) => (owner, Some(guard), None),
            DiffItem::Update { old: (owner, before), new: (_, after) } => (owner, Some(before), Some(after)),
        })
    }

    /// The changes from these guards to those of a later moment.
    pub fn changes(&self, later: &Self) -> BTreeMap<Owner, GuardChange> {
        let limits = |guard: Option<&StoredGuard>| guard.map(|guard| guard.limits.clone());
        let change = |before, after| GuardChange { before: limits(before), after: limits(after) };
        let changes =
            self.differences(later).map(|(owner, before, after)| (owner.clone(), change(before, after)));
        changes.filter(|(_, change)| change.before != change.after).collect()
    }
}

/// The fields of a guard, for whoever shows its changes.
pub const FIELDS: &crate::descriptor::Fields = <Limits as Struct>::FIELDS;

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> Limits {
        serde_json::from_str(json).expect("good")
    }

    #[test]
    fn a_guard_is_written_as_in_files_and_reads_back() {
        for json in [
            "{}",
            r#"{"max-delete":3}"#,
            r#"{"max-delete":"5% or 3","max-nodes-changed":"25%","max-reach-lost":0}"#,
        ] {
            assert_eq!(serde_json::to_string(&limits(json)).expect("JSON"), json);
        }
        assert_eq!(limits(r#"{"max-delete":"3"}"#), limits(r#"{"max-delete":3}"#), "a text or a number");
        for (json, why) in [
            (r#"{"max-delete":"x"}"#, "\"x\" is not a limit"),
            (r#"{"max-deletes":1}"#, "has no field \"max-deletes\""),
            ("3", "a record of limits"),
        ] {
            let error = serde_json::from_str::<Limits>(json).expect_err("it is none").to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_guard_without_limits_is_none_and_one_of_a_project_that_manages_nothing_goes() {
        let owner: Owner = "acme/prod".parse().expect("good");
        let guard = |json: &str| StoredGuard { revision: Revision(3), limits: limits(json) };
        let mut guards = Guards::default();
        guards.put(owner.clone(), guard(r#"{"max-delete":3}"#));
        let stored = guards.clone();
        guards.put(owner.clone(), guard("{}"));
        assert_eq!(guards, Guards::default());
        guards = stored.clone();
        guards.settle(&Snapshot::default());
        assert_eq!(guards, Guards::default());
        let change = GuardChange { before: Some(limits(r#"{"max-delete":3}"#)), after: None };
        assert_eq!(stored.changes(&guards), BTreeMap::from([(owner, change)]));
    }
}
