//! `nmplan show`: shows a resource, a saved plan, what a revision changed, or what the server has.

use std::path::Path;

use jiff::Timestamp;
use schema::api::{LogEntry, key_states};
use schema::details::Details;
use schema::inventory::NodeId;
use schema::plan::Plan;
use schema::snapshot::Revision;
use schema::text::{moment, plain};
use schema::world::{ServerInfo, World};

use super::{Run, apply, networks, plan, status};
use crate::args;
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::project;
use crate::render::{self, Shown};

/// Shows what was asked for.
pub async fn run<C: ControlPlane>(args: &args::Show, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    match &args.what {
        None => newest(run).await,
        // What is there is a file, whatever it is called.
        Some(path) if is_file(path) => saved(path, run).await,
        Some(path) => match path.to_str() {
            Some(text) => match text.parse() {
                Ok(number) => revision(Revision(number), run).await,
                Err(_) if is_name(text) => named(text, run).await,
                Err(_) => saved(path, run).await,
            },
            None => saved(path, run).await,
        },
    }
}

/// Whether a path is one of something that may be read, such as a pipe: files often stand in a directory that is
/// called as their network is. A link that leads nowhere is one too, so that reading it says so.
fn is_file(path: &Path) -> bool {
    match path.metadata() {
        Ok(there) => !there.is_dir(),
        Err(_) => path.symlink_metadata().is_ok(),
    }
}

/// Whether a text is written as an id or a name is, and not as the path of a file mostly is.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-/".contains(c);
    !text.starts_with('/') && text.chars().all(plain)
}

/// Shows everything that is known of one resource.
async fn named<C: ControlPlane>(what: &str, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let server = connect(run)?;
    let (_, world) = run.observe(&server).await?;
    run.check_network(networks(&world.snapshot).collect())?;
    let id = status::found(what, true, run.only.as_ref(), &world)?;
    let log = match world.snapshot.entry(&id).map(|entry| entry.revision) {
        Some(written) => entry_of(written, &server, run).await?,
        None => None,
    };
    let now = Timestamp::now();
    let details = Details::of(&id, &world, log.as_ref(), now);
    let text = if run.console.json {
        serde_json::to_string(&details).expect("details can be written as JSON") + "\n"
    } else {
        render::details(&details, server.name(), world.revision, now, run.console.columns)
    };
    run.console.stdout(&text)?;
    Ok(Exit::Done)
}

/// The entry of a revision in the log, if it has one.
async fn entry_of<C: ControlPlane>(
    number: Revision,
    server: &C,
    run: &mut Run<'_, C>,
) -> Result<Option<LogEntry>, Error> {
    let after = Revision(number.0.saturating_sub(1));
    let log = run.console.waiting("reading the log", server.revisions(after, 1)).await?;
    Ok(log.into_iter().find(|entry| entry.revision == number))
}

/// Shows what the server has, in short.
async fn newest<C: ControlPlane>(run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let server = connect(run)?;
    let (info, world) = run.observe(&server).await?;
    let text = if run.console.json {
        serde_json::to_string(&world.document(info)).expect("a world can be written as JSON") + "\n"
    } else {
        let keys = key_states(&world.snapshot, &world.inventory, Timestamp::now());
        let columns = run.console.columns;
        render::declared(&world.snapshot, &keys, server.name(), world.revision, columns)
            + &render::guards(&world.guards, columns)
    };
    run.console.stdout(&text)?;
    Ok(Exit::Done)
}

/// Shows what one revision changed, by whom and why.
async fn revision<C: ControlPlane>(number: Revision, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let server = connect(run)?;
    let status = run.console.waiting(&format!("asking {}", server.name()), server.status()).await?;
    let newest = status.revision;
    // The log is asked only for what may be there: numbers that are too large are no revisions to a server.
    let entry = if number <= newest { entry_of(number, &server, run).await? } else { None };
    let entry = entry.ok_or(Error::NoRevision { asked: number, newest })?;
    let text = if run.console.json {
        serde_json::to_string(&entry).expect("an entry can be written as JSON") + "\n"
    } else {
        render::wrapped(text_of(&entry, run.console.verbose), run.console.columns)
    };
    run.console.stdout(&text)?;
    Ok(Exit::Done)
}

fn text_of(entry: &LogEntry, full: bool) -> String {
    let LogEntry {
        revision,
        time,
        actor,
        action,
        owner,
        digest,
        provenance,
        allowed,
        changes,
        guards,
        nodes,
        apply_id: _,
        hash,
    } = entry;
    let owner = owner.as_ref().map(|owner| format!(" for {owner}")).unwrap_or_default();
    let mut text = format!("Revision {revision}, {}: {action} by {actor}{owner}\n", moment(*time));
    if let Some(provenance) = provenance {
        let dirty = if provenance.dirty { ", with files that differed from it" } else { "" };
        match &provenance.commit {
            Some(commit) => text += &format!("commit {}{dirty}\n", plain(commit)),
            // What the server does by itself has a reason, and no commit.
            None if owner.is_empty() => {}
            None => text += &format!("commit unknown{dirty}\n"),
        }
        text.extend(provenance.author.iter().map(|author| format!("author {}\n", plain(author))));
        text.extend(provenance.message.iter().map(|message| format!("\n    {}\n", plain(message))));
    }
    text.extend(allowed.iter().map(|guard| format!("let through the rule {guard}\n")));
    text += &render::changes(changes, full);
    text.extend(
        guards.iter().map(|(owner, change)| format!("\nguard of {owner}\n{}", render::guard(change))),
    );
    if !nodes.is_empty() {
        let names: Vec<_> =
            nodes.iter().map(|NodeId { network, name }| format!("{network}/{name}")).collect();
        text += &format!("\nnodes: {}\n", names.join(", "));
    }
    text.extend(digest.iter().map(|digest| format!("\ndigest {digest}\n")));
    text.extend(hash.iter().map(|hash| format!("\nhash {hash}\n")));
    text
}

/// Shows a saved plan, and whether it still holds if its server can be reached.
async fn saved<C: ControlPlane>(path: &Path, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let saved = apply::read(path)?;
    let observed = observe(&saved, run).await;
    let empties = observed.as_ref().is_ok_and(|(_, world)| plan::empties(&saved, world));
    let text = if run.console.json {
        plan::document(&saved)
    } else {
        render::plan(
            &saved,
            &Shown { empties, full: run.console.verbose, columns: run.console.columns, ..Shown::default() },
        )
    };
    run.console.stdout(&text)?;
    let moved = observed.map(|(info, world)| (saved.server.id != info.id, saved.stale(&world)));
    run.console.note(&match moved {
        Err(error) => format!("\nCould not check whether the plan still holds: {error}.\n"),
        Ok((true, _)) => "\nThe plan was made for another server than the one that answers.\n".into(),
        Ok((false, stale)) if stale.is_empty() => {
            "\nThe plan still holds: nothing that it depends on has changed.\n".into()
        }
        Ok((false, stale)) => {
            let ids: Vec<_> =
                stale.iter().map(|(id, revision)| format!("  {id}, now at revision {revision}\n")).collect();
            format!("\nThe plan is stale: this has changed since it was made:\n{}", ids.concat())
        }
    });
    Ok(Exit::Done)
}

/// Reads what the server of a saved plan has.
async fn observe<C: ControlPlane>(saved: &Plan, run: &mut Run<'_, C>) -> Result<(ServerInfo, World), Error> {
    let server = (run.connect)(project::server_of(&run.place, &saved.owner())?.as_deref())?;
    run.observe(&server).await
}

fn connect<C: ControlPlane>(run: &Run<'_, C>) -> Result<C, Error> {
    Ok((run.connect)(project::server(&run.place)?.as_deref())?)
}
