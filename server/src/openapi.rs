//! The description of the REST API, OpenAPI 3.1: generated from the authorisation table, the kinds'
//! descriptors, and the Rust types of the other bodies.

use std::sync::LazyLock;

use schema::api::{Applied, ApplyRequest, Approved, Committed, Failure, LogEntry, Removed, StatusDocument};
use schema::published::{Body, Components};
use schema::world::{ResourceDocument, ServerInfo, WorldDocument};
use serde_json::{Map, Value, json};

use crate::core::authorize::{Call, Needs, Operation, Rule, TABLE};

/// The whole document as text: made once, because everyone may ask for it.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());
    &TEXT
}

/// The whole document.
pub fn document() -> Value {
    let mut components = Components::new();
    let mut paths = Map::new();
    for rule in TABLE {
        if let Call::Rest(method, path) = rule.call {
            let entry = paths.entry(path).or_insert_with(|| json!({ "parameters": path_parameters(path) }));
            entry[method] = operation(rule, &mut components);
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
            "schemas": components.into_schemas(),
        },
    })
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect()
}

fn operation(rule: &Rule, components: &mut Components) -> Value {
    let Shape { parameters, request, response, not_modified } = shape(rule.operation, components);
    let failure = json!({
        "description": "What went wrong (RFC 9457).",
        "content": { "application/problem+json": { "schema": components.of::<Failure>() } },
    });
    let mut operation = json!({
        "operationId": format!("{:?}", rule.operation),
        "summary": rule.doc,
        "parameters": parameters,
        "responses": { "200": response, "default": failure },
    });
    if not_modified {
        operation["responses"]["304"] =
            json!({ "description": "The caller has it already, according to its `If-None-Match`." });
    }
    if let Some(schema) = request {
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if let Needs::Role(role) = rule.needs {
        operation["security"] = json!([{ "token": [] }]);
        operation["x-role"] = json!(role.to_string());
    }
    operation
}

/// What an operation takes and returns.
struct Shape {
    parameters: Vec<Value>,
    request: Option<Value>,
    response: Value,
    not_modified: bool,
}

fn shape(operation: Operation, components: &mut Components) -> Shape {
    let returns = |schema: Value| Shape {
        parameters: Vec::new(),
        request: None,
        response: json!({ "description": "Done.", "content": { "application/json": { "schema": schema } } }),
        not_modified: false,
    };
    let condition = |name: &str, doc: &str| json!({ "name": name, "in": "header", "description": doc, "schema": { "type": "string" } });
    let if_match = || condition("If-Match", "The revision that the resource must be at, in quotes.");
    let if_none_match = |doc| condition("If-None-Match", doc);
    match operation {
        Operation::Health | Operation::Ready => {
            let response = json!({ "description": "It does.", "content": { "text/plain": { "schema": { "type": "string" } } } });
            Shape { response, ..returns(Value::Null) }
        }
        Operation::OpenApi => returns(json!({ "type": "object" })),
        Operation::Server => returns(components.of::<ServerInfo>()),
        Operation::Snapshot => {
            let parameters = vec![if_none_match("The ETag of the snapshot that the caller has.")];
            Shape { parameters, not_modified: true, ..returns(components.of::<WorldDocument>()) }
        }
        Operation::Status => returns(components.of::<StatusDocument>()),
        Operation::Revisions => {
            let number = |name: &str, default: u32, doc: &str| {
                let schema = json!({ "type": "integer", "minimum": 0, "default": default });
                json!({ "name": name, "in": "query", "description": doc, "schema": schema })
            };
            let after = number("after", 0, "The revision above which the log is returned.");
            let limit = number(
                "limit",
                100,
                "How many entries at most, 1 to 1000; a number outside of that becomes the nearest in it.",
            );
            Shape { parameters: vec![after, limit], ..returns(components.of::<Vec<LogEntry>>()) }
        }
        Operation::Apply => {
            Shape { request: Some(components.of::<ApplyRequest>()), ..returns(components.of::<Applied>()) }
        }
        Operation::GetResource => returns(components.of::<ResourceDocument>()),
        Operation::PutResource => {
            let parameters = vec![if_match(), if_none_match("`*`: the resource must not exist.")];
            Shape {
                parameters,
                request: Some(components.of::<Body>()),
                ..returns(components.of::<Committed>())
            }
        }
        Operation::DeleteResource => {
            Shape { parameters: vec![if_match()], ..returns(components.of::<Committed>()) }
        }
        Operation::RemoveNode => {
            let schema = json!({ "type": "boolean", "default": false });
            let doc = "Whether the identity of the node's host is barred from the network.";
            let ban = json!({ "name": "ban", "in": "query", "description": doc, "schema": schema });
            let doc = "The identity that the node's host must have, as the snapshot shows it; absent: any.";
            let identity = json!({ "name": "identity", "in": "query", "description": doc, "schema": { "type": "string" } });
            Shape { parameters: vec![ban, identity], ..returns(components.of::<Removed>()) }
        }
        Operation::LiftBan => returns(components.of::<Committed>()),
        Operation::ApprovePending => {
            let doc = "The name of the node that the host becomes.";
            let name = json!({ "name": "name", "in": "query", "required": true, "description": doc, "schema": { "type": "string" } });
            Shape { parameters: vec![name], ..returns(components.of::<Approved>()) }
        }
        Operation::DropPending => {
            let schema = json!({ "type": "boolean", "default": false });
            let doc = "Whether the identity of the host is barred from the network.";
            let ban = json!({ "name": "ban", "in": "query", "description": doc, "schema": schema });
            Shape { parameters: vec![ban], ..returns(components.of::<Committed>()) }
        }
        Operation::Identify
        | Operation::Challenge
        | Operation::Register
        | Operation::Join
        | Operation::OpenSession
        | Operation::GetPeers
        | Operation::CheckIn
        | Operation::Watch
        | Operation::Leave => unreachable!("the table calls this over gRPC"),
    }
}
