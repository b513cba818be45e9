//! `nmplan schema`: JSON Schemas for editors and for who reads what nmplan prints.

use schema::kinds::Kind;
use schema::reference::file_schema;

use crate::args::{self, SchemaOf};
use crate::console::Console;
use crate::error::{Error, Exit};

/// The schema of the saved plan.
pub const PLAN: &str = include_str!("../../schema/plan.schema.json");
/// The schema of one event of `--json`.
pub const EVENTS: &str = include_str!("../../schema/events.schema.json");

/// Prints a schema.
pub fn run(args: &args::Schema, console: &mut Console) -> Result<Exit, Error> {
    match args.of {
        SchemaOf::Plan => console.data(PLAN)?,
        SchemaOf::Events => console.data(EVENTS)?,
        SchemaOf::Files => {
            let schema = file_schema(Kind::DESCRIPTORS);
            console.data(&format!("{schema:#}\n"))?;
        }
    }
    Ok(Exit::Done)
}
