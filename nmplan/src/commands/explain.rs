//! `nmplan explain`: explains what a problem code means.

use owo_colors::OwoColorize;
use schema::report::{Code, Severity};
use serde_json::json;

use crate::args;
use crate::console::Console;
use crate::error::{Error, Exit};

/// Explains a code, or lists them.
pub fn run(args: &args::Explain, console: &mut Console) -> Result<Exit, Error> {
    let codes: Vec<Code> = match &args.code {
        None => Code::ALL.to_vec(),
        Some(asked) => {
            let meant = |code: &&Code| {
                code.name() == asked || code.name().rsplit_once("::").is_some_and(|(_, name)| name == asked)
            };
            Code::ALL.iter().filter(meant).copied().collect()
        }
    };
    if let (Some(asked), []) = (&args.code, &*codes) {
        return Err(Error::NoCode(asked.clone()));
    }
    let text: String = if console.json {
        let explained = |code: &Code| json!({ "code": code.name(), "severity": code.severity(), "title": code.title(), "explanation": code.explanation() });
        format!("{}\n", codes.iter().map(explained).collect::<serde_json::Value>())
    } else if args.code.is_some() {
        codes.iter().map(explained).collect::<Vec<_>>().join("\n")
    } else {
        let width = codes.iter().map(|code| code.name().len()).max().unwrap_or_default();
        codes.iter().map(|code| format!("{:width$}  {}\n", code.name(), code.title())).collect()
    };
    console.stdout(&text)?;
    Ok(Exit::Done)
}

fn explained(code: &Code) -> String {
    let severity = match code.severity() {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    format!("{} ({severity}): {}\n\n{}\n", code.name().bold(), code.title(), code.explanation())
}
