//! What a plan depends on and somebody may have changed since: a resource, or the guard of a project.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::snapshot::{Owner, ResourceId};

/// What a plan depends on; written as the id of the resource, or as `guard of project/env`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A resource.
    Resource(ResourceId),
    /// The guard that is stored for a project and env.
    Guard(Owner),
}

/// What a guard is written with before its owner; no resource id has a blank.
const GUARD: &str = "guard of ";

impl From<ResourceId> for Subject {
    fn from(id: ResourceId) -> Self {
        Self::Resource(id)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(id) => id.fmt(f),
            Self::Guard(owner) => write!(f, "{GUARD}{owner}"),
        }
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(GUARD) {
            Some(owner) => Ok(Self::Guard(owner.parse()?)),
            None => Ok(Self::Resource(text.parse()?)),
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Subject {
    fn schema_name() -> Cow<'static, str> {
        "Subject".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A resource id, or the stored guard of a project: `guard of acme/prod`.",
            "pattern": "^([a-z0-9-]+(/[a-z-]+/[a-z0-9-]+)?|guard of [a-z0-9-]+/[a-z0-9-]+)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_reads_back_as_it_is_written() {
        for text in ["corp", "corp/dns/api", "guard of acme/prod"] {
            let subject: Subject = text.parse().expect("good");
            assert_eq!(subject.to_string(), text);
            assert_eq!(matches!(subject, Subject::Guard(_)), text.contains(' '));
        }
        assert!("guard of corp/dns/api".parse::<Subject>().is_err());
    }
}
