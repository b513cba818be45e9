//! `nmplan schema`: JSON Schemas for editors and for programs that read what nmplan prints.

use schema::api::StatusDocument;
use schema::details::Details;
use schema::kinds::Kind;
use schema::plan::Plan;
use schema::published;
use schema::reference::file_schema;
use serde_json::Value;

use crate::args::{self, SchemaOf};
use crate::console::Console;
use crate::error::{Error, Exit};
use crate::events::Event;
use crate::lab::verdict::Verdict;

/// The schema of the saved plan; published as `nmplan/schema/plan.schema.json`.
pub fn plan() -> Value {
    published::schema::<Plan>()
}

/// The schema of one event of `--json`; published as `nmplan/schema/events.schema.json`.
pub fn events() -> Value {
    published::schema::<Event<'_>>()
}

/// The schema of what `lab --json` prints; published as `nmplan/schema/lab.schema.json`.
pub fn lab() -> Value {
    published::schema::<Verdict>()
}

/// The schema of what `show WHAT --json` prints of a resource; published as `nmplan/schema/show.schema.json`.
pub fn show() -> Value {
    published::schema::<Details>()
}

/// The schema of what `status --json` prints; published as `nmplan/schema/status.schema.json`.
pub fn status() -> Value {
    published::schema::<StatusDocument>()
}

/// Prints a schema.
pub fn run(args: &args::Schema, console: &mut Console) -> Result<Exit, Error> {
    let schema = match args.of {
        SchemaOf::Plan => plan(),
        SchemaOf::Events => events(),
        SchemaOf::Lab => lab(),
        SchemaOf::Show => show(),
        SchemaOf::Status => status(),
        SchemaOf::Files => file_schema(Kind::DESCRIPTORS),
    };
    console.stdout(&format!("{schema:#}\n"))?;
    Ok(Exit::Done)
}
