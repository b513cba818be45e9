//! The description of the REST API, OpenAPI 3.1: generated from the authorisation table and the kinds' descriptors.
//!
//! The bodies that are no kind stand in a table here; a test of the server holds them against what is really sent.

use std::sync::LazyLock;

use schema::kinds::Kind;
use schema::reference;
use serde_json::{Map, Value, json};

use crate::core::authorize::{Call, Line, Needs, Operation, TABLE};

/// The whole document as text: made once, because everyone may ask for it.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());
    &TEXT
}

/// The whole document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for line in TABLE {
        if let Call::Rest(method, path) = line.call {
            let entry = paths.entry(path).or_insert_with(|| json!({ "parameters": path_parameters(path) }));
            entry[method] = operation(line);
        }
    }
    let mut schemas = reference::components(Kind::DESCRIPTORS);
    if let Some(schemas) = schemas.as_object_mut() {
        schemas.extend(bodies());
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
            "schemas": schemas,
        },
    })
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })).collect()
}

fn operation(line: &Line) -> Value {
    let Shape { parameters, request, response, not_modified } = shape(line.operation);
    let failure = json!({ "description": "What went wrong (RFC 9457).", "content": { "application/problem+json": { "schema": held("Failure") } } });
    let mut operation = json!({
        "operationId": format!("{:?}", line.operation),
        "summary": line.doc,
        "parameters": parameters,
        "responses": { "200": response, "default": failure },
    });
    if not_modified {
        operation["responses"]["304"] = json!({ "description": "The caller has it already, by its `If-None-Match`." });
    }
    if let Some(schema) = request {
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if let Needs::Role(role) = line.needs {
        operation["security"] = json!([{ "token": [] }]);
        operation["x-role"] = json!(role.to_string());
    }
    operation
}

/// What an operation takes and gives.
struct Shape {
    parameters: Vec<Value>,
    request: Option<Value>,
    response: Value,
    not_modified: bool,
}

fn shape(operation: Operation) -> Shape {
    let gives = |schema: Value| Shape {
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
            let response =
                json!({ "description": "It does.", "content": { "text/plain": { "schema": { "type": "string" } } } });
            Shape { response, ..gives(Value::Null) }
        }
        Operation::OpenApi => gives(json!({ "type": "object" })),
        Operation::Server => gives(held("Server")),
        Operation::Snapshot => {
            let parameters = vec![if_none_match("The ETag of the snapshot that the caller has.")];
            Shape { parameters, not_modified: true, ..gives(held("World")) }
        }
        Operation::Status => gives(held("Status")),
        Operation::Revisions => {
            let number = |name: &str, default: u32, doc: &str| json!({ "name": name, "in": "query", "description": doc, "schema": { "type": "integer", "default": default } });
            let after = number("after", 0, "The revision above which the log is given.");
            let limit = number("limit", 100, "How many entries at most, 1 to 1000.");
            Shape { parameters: vec![after, limit], ..gives(held("[LogEntry]")) }
        }
        Operation::Apply => Shape { request: Some(held("ApplyRequest")), ..gives(held("Applied")) },
        Operation::GetResource => gives(held("Resource")),
        Operation::PutResource => {
            let parameters = vec![if_match(), if_none_match("`*`: the resource must not exist.")];
            Shape { parameters, request: Some(any_kind()), ..gives(held("Made")) }
        }
        Operation::DeleteResource => Shape { parameters: vec![if_match()], ..gives(held("Made")) },
        Operation::RemoveNode => gives(held("Made")),
        Operation::Challenge
        | Operation::Register
        | Operation::Join
        | Operation::OpenSession
        | Operation::GetPeers
        | Operation::CheckIn
        | Operation::Watch
        | Operation::Leave => unreachable!("the table calls this over gRPC"),
    }
}

/// A body that is no kind: its name, what it is, and its fields with what each holds: a word of [`held`].
type Body = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// The bodies that are no kind; `schema::api` and `schema::world` explain their fields.
const BODIES: &[Body] = &[
    (
        "Server",
        "Who the server is, and the keys that pin it.",
        &[
            ("id", "text"),
            ("epoch", "number"),
            ("agent_addresses", "[text]"),
            ("signing_key", "text"),
            ("ca_pin", "text?"),
            ("version", "text"),
            ("comms_range", "text?"),
            ("own_node", "text?"),
        ],
    ),
    (
        "World",
        "Everything that the caller may see, at one revision.",
        &[
            ("server", "Server"),
            ("revision", "number"),
            ("resources", "[Resource]"),
            ("nodes", "[Machine]"),
            ("keys", "[Key]"),
            ("rests", "[Rest]"),
        ],
    ),
    (
        "Resource",
        "A resource, who manages it, and the revision that wrote it.",
        &[("id", "text"), ("revision", "number"), ("owner", "text?"), ("body", "kind")],
    ),
    (
        "Machine",
        "A machine that has joined.",
        &[
            ("network", "text"),
            ("name", "text"),
            ("public_key", "text"),
            ("identity", "text"),
            ("addresses", "[text]"),
            ("endpoint", "text?"),
            ("listen_port", "number"),
            ("tags", "[text]"),
            ("key", "text?"),
            ("claimed", "boolean"),
            ("joined", "time"),
            ("os", "text"),
        ],
    ),
    (
        "Key",
        "What is left of an access key.",
        &[("id", "text"), ("verifier", "text"), ("created", "time"), ("used", "number")],
    ),
    (
        "Rest",
        "An address that rests.",
        &[("network", "text"), ("address", "text"), ("since", "time"), ("node", "text")],
    ),
    ("Status", "How the nodes are.", &[("epoch", "number"), ("revision", "number"), ("nodes", "[NodeStatus]")]),
    (
        "NodeStatus",
        "How one node is.",
        &[
            ("id", "text"),
            ("name", "text"),
            ("tags", "[text]"),
            ("addresses", "[text]"),
            ("public_key", "text?"),
            ("state", "awaiting|online|silent"),
            ("last_check_in", "time?"),
            ("acknowledged", "number?"),
            ("control", "tunnel|tls|none"),
        ],
    ),
    (
        "LogEntry",
        "One revision: who changed what, when and why.",
        &[
            ("revision", "number"),
            ("time", "time"),
            ("actor", "text"),
            ("action", "text"),
            ("owner", "text?"),
            ("apply_id", "text?"),
            ("digest", "text?"),
            ("provenance", "Provenance?"),
            ("changes", "[Change]"),
            ("nodes", "[[text]]"),
        ],
    ),
    (
        "Change",
        "One difference between two snapshots.",
        &[("id", "text"), ("action", "create|update|delete"), ("before", "kind?"), ("after", "kind?")],
    ),
    (
        "Provenance",
        "Where declarations came from.",
        &[("commit", "text?"), ("author", "text?"), ("message", "text?"), ("dirty", "boolean")],
    ),
    (
        "ApplyRequest",
        "What carries out a plan, as `nmplan plan --format json` prints it; `keys` verifies the secrets of keys that it makes.",
        &[("apply_id", "text"), ("plan", "object"), ("keys", "object")],
    ),
    ("Applied", "That a plan was carried out.", &[("revision", "number"), ("already", "boolean")]),
    ("Made", "The revision that a change made.", &[("revision", "number")]),
    (
        "Failure",
        "Why a call was not carried out.",
        &[
            ("type", "text"),
            ("title", "text"),
            ("status", "number"),
            ("code", "text"),
            ("detail", "text"),
            ("problems", "[Finding]"),
            ("moved", "[Moved]"),
        ],
    ),
    (
        "Finding",
        "A problem that a rule has with the result.",
        &[("code", "text"), ("id", "text?"), ("message", "text"), ("help", "text?")],
    ),
    (
        "Moved",
        "A resource that moved since the plan was made.",
        &[("id", "text"), ("revision", "number"), ("actor", "text?"), ("time", "time?")],
    ),
];

fn bodies() -> impl Iterator<Item = (String, Value)> {
    BODIES.iter().map(|(name, doc, fields)| {
        let properties: Map<_, _> = fields.iter().map(|(field, word)| ((*field).to_owned(), held(word))).collect();
        ((*name).to_owned(), json!({ "type": "object", "description": doc, "properties": properties }))
    })
}

/// The schema that a word stands for: `text`, `number`...; `kind` is the body of any resource, `x?` may be null, `[x]` is a
/// list, `a|b` one of these words, and anything else another body.
fn held(word: &str) -> Value {
    if let Some(inner) = word.strip_suffix('?') {
        return json!({ "anyOf": [held(inner), { "type": "null" }] });
    }
    if let Some(inner) = word.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return json!({ "type": "array", "items": held(inner) });
    }
    match word {
        "text" => json!({ "type": "string" }),
        "time" => json!({ "type": "string", "format": "date-time" }),
        "number" => json!({ "type": "integer", "minimum": 0 }),
        "boolean" | "object" => json!({ "type": word }),
        "kind" => any_kind(),
        words if words.contains('|') => json!({ "type": "string", "enum": words.split('|').collect::<Vec<_>>() }),
        body => json!({ "$ref": format!("#/components/schemas/{body}") }),
    }
}

/// The body of a resource of whatever kind.
fn any_kind() -> Value {
    let kinds = Kind::DESCRIPTORS.iter().map(|kind| held(kind.word));
    json!({ "oneOf": kinds.collect::<Vec<_>>() })
}
