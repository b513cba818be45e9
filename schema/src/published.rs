//! The JSON Schemas of the documents that programs exchange: plans, events, what REST carries.
//!
//! Each is generated from the Rust type that is written, so that a document is described once: the doc
//! comments are the prose, and each scalar describes itself. Where a document holds a resource, its body is
//! one of the kinds' schemas, which [`reference`](crate::reference) makes of their descriptors. Start at
//! [`schema`] and [`Components`].

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value as Json};

use crate::chain::ChainHash;
use crate::kinds::Kind;
use crate::reference;
pub use crate::scalars::Time;
use crate::snapshot::{Owner, ResourceId};
use crate::value::Value;

/// The JSON Schema (draft 2020-12) of a document, as it is written.
pub fn schema<T: JsonSchema>() -> Json {
    settings("/$defs").into_generator().into_root_schema_for::<T>().to_value()
}

/// The `components.schemas` of an OpenAPI 3.1 document, with all the kinds from the start.
pub struct Components(SchemaGenerator);

impl Components {
    /// The components of the kinds.
    pub fn new() -> Self {
        let mut settings = settings("/components/schemas");
        settings.meta_schema = None;
        let mut generator = settings.into_generator();
        Body::define_kinds(&mut generator);
        Self(generator)
    }

    /// The schema of a document that an operation takes or returns: a reference to the component, which this
    /// adds.
    pub fn of<T: JsonSchema>(&mut self) -> Json {
        self.0.subschema_for::<T>().to_value()
    }

    /// The components.
    pub fn into_schemas(mut self) -> Map<String, Json> {
        self.0.take_definitions(true)
    }
}

impl Default for Components {
    fn default() -> Self {
        Self::new()
    }
}

fn settings(definitions: &'static str) -> SchemaSettings {
    let close: RecursiveTransform<fn(&mut Schema)> = RecursiveTransform(close);
    SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = definitions.into())
        .for_serialize()
        .with_transform(close)
        .with_transform(RecursiveTransform(plain))
}

/// Makes the schema refuse fields that are not described: a program that writes more is of a later version,
/// which has a schema of its own.
fn close(schema: &mut Schema) {
    if schema.get("properties").is_some() && schema.get("additionalProperties").is_none() {
        schema.insert("additionalProperties".into(), false.into());
    }
}

/// Leaves out the formats that JSON Schema does not know, such as the width of an integer, and joins the
/// lines of a paragraph.
fn plain(schema: &mut Schema) {
    let format = schema.get("format").and_then(Json::as_str);
    if format.is_some_and(|format| format == "ip" || format.starts_with("uint")) {
        schema.remove("format");
    }
    if let Some(Json::String(text)) = schema.get_mut("description") {
        *text =
            text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
}

/// Describes a [`Value`](crate::value::Value) that is the body of a resource by the schemas of all kinds.
pub enum Body {}

impl Body {
    /// Puts the schemas of the kinds among the definitions, and returns their names.
    fn define_kinds(generator: &mut SchemaGenerator) -> Vec<String> {
        let Json::Object(kinds) = reference::components(Kind::DESCRIPTORS) else {
            unreachable!("they are an object")
        };
        let names = kinds.keys().cloned().collect();
        generator.definitions_mut().extend(kinds);
        names
    }
}

impl JsonSchema for Body {
    fn schema_name() -> Cow<'static, str> {
        "Body".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let path = generator.settings().definitions_path.to_string();
        let reference = |name: String| Schema::new_ref(format!("#{path}/{name}"));
        let kinds: Vec<Schema> = Self::define_kinds(generator).into_iter().map(reference).collect();
        json_schema!({ "description": "The fields of a resource, by its kind.", "anyOf": kinds })
    }
}

/// The schema of a type that is written as a text of some form.
macro_rules! text {
    ($type:ty, $name:literal, $doc:literal, $pattern:literal) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $doc, "pattern": $pattern })
            }
        }
    };
}

text!(
    ResourceId,
    "ResourceId",
    "A resource id: `corp/dns/api`; a network by its name alone.",
    "^[a-z0-9-]+(/[a-z-]+/[a-z0-9-]+)?$"
);
text!(
    ChainHash,
    "ChainHash",
    "The SHA-256 of a log entry and of the hash of the entry before it, so it stands for all of the log up to there.",
    "^[0-9a-f]{64}$"
);
text!(Owner, "Owner", "Who manages a resource: `project/env`.", "^[a-z0-9-]+/[a-z0-9-]+$");

impl JsonSchema for Value {
    fn schema_name() -> Cow<'static, str> {
        "Value".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The value of a field.",
            "type": ["null", "boolean", "integer", "string", "array", "object"],
        })
    }
}
