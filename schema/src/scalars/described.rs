//! How scalars are described in the schemas of published documents.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::Scalar;

/// The schema of a scalar: a text, with the scalar's own description.
pub(crate) fn scalar<T: Scalar>() -> Schema {
    json_schema!({ "type": "string", "title": T::NAME, "description": T::DOC, "examples": T::GOOD })
}

/// Describes a timestamp.
pub enum Time {}

impl JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}
