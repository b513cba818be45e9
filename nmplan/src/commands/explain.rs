//! `nmplan explain`: says why one member reaches another or not, or what a problem code means.

use jiff::Timestamp;
use owo_colors::OwoColorize;
use schema::access::Protocol;
use schema::inventory::Inventory;
use schema::judge::access_of;
use schema::judge::explain::{Answer, Asked, Unresolved, explain, network_of};
use schema::report::{Code, Severity};
use schema::snapshot::Snapshot;
use serde_json::json;

use super::Run;
use crate::args;
use crate::console::Console;
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::events;
use crate::project::Loaded;
use crate::render::{self, Lines};

/// Explains reachability, or a code, or lists the codes.
pub async fn run<C: ControlPlane>(args: &args::Explain, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    match (&args.what, &args.to) {
        (Some(from), Some(to)) => reachability((from, to), args, run).await,
        (code, _) => codes(code.as_deref(), run.console),
    }
}

/// Explains whether one side may open something at another.
async fn reachability<C: ControlPlane>(
    (from, to): (&str, &str),
    args: &args::Explain,
    run: &mut Run<'_, C>,
) -> Result<Exit, Error> {
    let (from, to) = (understood(from, run)?, understood(to, run)?);
    if args.proto == Some(Protocol::Icmp) && args.port.is_some() {
        return Err(Error::Usage("icmp has no ports: omit --port"));
    }
    let loaded = run.load("explained")?;
    let (snapshot, inventory, with_joined) = world(&loaded, run).await?;
    let asked = access_of(args.proto, args.port);
    let network = match network_of(&from, &to, &snapshot, &inventory) {
        Err(apart @ Unresolved::Apart { .. }) => return elsewhere(&apart, (&from, &to), run),
        network => network?,
    };
    let explained = explain(&network, (&from.selector, &to.selector), &asked, &snapshot, &inventory);
    let explained = explained.expect("the network is one of those that are declared");
    let lines = Lines::default();
    let declared = Some((&loaded.declared.source_map, &*loaded.sources, &lines));
    let places = explained.rules.iter().map(|rule| events::because(&rule.id, declared));
    let places: Vec<_> = places.map(|place| (place.file, place.line)).collect();
    let (said, text) = render::explanation(&explained, &places, with_joined);
    if !run.console.json {
        run.console.stdout(&text)?;
        return Ok(Exit::Done);
    }
    let rules = explained.rules.iter().zip(&places);
    let rules = rules.map(
        |(rule, (file, line))| json!({ "id": rule.id, "gives": rule.gives, "file": file, "line": line }),
    );
    let document = json!({
        "network": network,
        "from": explained.from.to_string(),
        "to": explained.to.to_string(),
        "asked": explained.asked.to_string(),
        "answer": explained.answer,
        "because": explained.because,
        "message": said,
        "opens": explained.opens.to_string(),
        "rules": rules.collect::<serde_json::Value>(),
        "via": explained.via,
        "awaited": explained.awaited,
        "except": explained.except,
        "with_joined_nodes": with_joined,
    });
    run.console.stdout(&format!("{document}\n"))?;
    Ok(Exit::Done)
}

/// A side as it is meant, with the network of `--network`.
fn understood<C>(text: &str, run: &Run<'_, C>) -> Result<Asked, Error> {
    let asked: Asked = text.parse().map_err(|why| Error::NotAsked { asked: text.to_owned(), why })?;
    Ok(Asked { network: asked.network.or_else(|| run.only.clone()), ..asked })
}

/// What is explained: the files alone, or, where a server is set, with what else it has and what has joined
/// there; and which of the two.
async fn world<C: ControlPlane>(
    loaded: &Loaded,
    run: &mut Run<'_, C>,
) -> Result<(Snapshot, Inventory, bool), Error> {
    let files = || (loaded.declared.snapshot.clone(), Inventory::default(), false);
    if loaded.server.is_none() {
        return Ok(files());
    }
    let observed = match (run.connect)(loaded.server.as_deref()) {
        Ok(server) => run.observe(&server).await,
        Err(error) => Err(error.into()),
    };
    match observed {
        Ok((info, world)) => {
            let plan = run.plan(loaded, &info, &world)?;
            let after = plan.apply(&world, &info, Timestamp::now());
            let after =
                after.map_err(|report| Error::Problems { count: report.len(), undone: Some("explained") })?;
            Ok((after.snapshot, after.inventory, true))
        }
        Err(error) => {
            let text = format!(
                "The server cannot be asked which nodes have joined, so this is of the files alone: {error}.\n\n"
            );
            run.console.stderr(&text);
            Ok(files())
        }
    }
}

/// Says that two sides are in different networks.
fn elsewhere<C>(
    apart: &Unresolved,
    (from, to): (&Asked, &Asked),
    run: &mut Run<'_, C>,
) -> Result<Exit, Error> {
    let text = if run.console.json {
        let (from, to, message) = (from.to_string(), to.to_string(), apart.to_string());
        let answer = Answer::No;
        let document = json!({ "from": from, "to": to, "answer": answer, "because": "other_network", "message": message });
        format!("{document}\n")
    } else {
        format!("{}: {apart}.\n", "no".red().bold())
    };
    run.console.stdout(&text)?;
    Ok(Exit::Done)
}

/// Explains a code, or lists them.
fn codes(asked: Option<&str>, console: &mut Console) -> Result<Exit, Error> {
    let codes: Vec<Code> = match asked {
        None => Code::ALL.to_vec(),
        Some(asked) => {
            let meant = |code: &&Code| {
                code.name() == asked || code.name().rsplit_once("::").is_some_and(|(_, name)| name == asked)
            };
            Code::ALL.iter().filter(meant).copied().collect()
        }
    };
    if let (Some(asked), []) = (asked, &*codes) {
        return Err(Error::NoCode(asked.to_owned()));
    }
    let text: String = if console.json {
        let explained = |code: &Code| json!({ "code": code.name(), "severity": code.severity(), "title": code.title(), "explanation": code.explanation() });
        format!("{}\n", codes.iter().map(explained).collect::<serde_json::Value>())
    } else if asked.is_some() {
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
