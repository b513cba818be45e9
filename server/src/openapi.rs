//! The description of the REST API, OpenAPI 3.1: generated from the authorisation table and the kinds' descriptors.

use serde_json::{Map, Value, json};

use crate::core::authorize::{Call, Line, Needs, TABLE};

/// The whole document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for line in TABLE {
        if let Call::Rest(method, path) = line.call {
            let entry = paths.entry(path).or_insert_with(|| json!({ "parameters": parameters(path) }));
            entry[method] = operation(line);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "nmserver",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": Map::new(),
        },
    })
}

fn parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })).collect()
}

fn operation(line: &Line) -> Value {
    let problem = json!({ "description": "What went wrong, as problem+json (RFC 9457).", "content": { "application/problem+json": {} } });
    let mut operation = json!({
        "operationId": format!("{:?}", line.operation),
        "summary": line.doc,
        "responses": { "200": { "description": "Done." }, "default": problem },
    });
    if let Needs::Role(role) = line.needs {
        operation["security"] = json!([{ "token": [] }]);
        operation["x-role"] = json!(role.to_string());
    }
    operation
}
