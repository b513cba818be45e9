//! `nmplan apply`: carries out a plan, as one revision or not at all.
//!
//! Until the plan is sent nothing has happened, and every failure ends with that. From the commit on the
//! outcome is said on standard error, whatever becomes of standard output; in between, and when no answer
//! came, it is unknown, and the message says how to find out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use schema::api::{Applied, ApplyRequest, KeyState, LogEntry, Moved, Presence, StatusDocument};
use schema::decode::decode_body;
use schema::guard::Guard;
use schema::kinds::AccessKey;
use schema::plan::{FORMAT, Plan};
use schema::scalars::{Name, Seconds};
use schema::snapshot::{ResourceId, Revision, Snapshot};
use schema::source_map::SourceMap;
use schema::subject::Subject;
use schema::text::{count, path as shown};
use schema::world::{ServerInfo, World};
use tokio::time::Instant;

use super::history::PAGE;
use super::{Run, awaiting, command, elsewhere, plan};
use crate::args;
use crate::control::{ControlError, ControlPlane};
use crate::error::{Error, Exit, Next, wrong_format};
use crate::events::{self, Event};
use crate::keys::{self, KeysError, Made, Opened, Sink};
use crate::project::{self, Loaded, Where};
use crate::render::{self, Shown};

/// How many revisions are searched for an earlier apply of the same plan.
const LATEST: u64 = 20;
/// How often the server is asked whether the nodes have acknowledged.
const POLL: Duration = Duration::from_millis(250);

/// A plan that is ready to be carried out, and what it was made of.
struct Ready {
    plan: Plan,
    loaded: Option<Loaded>,
    info: ServerInfo,
    world: World,
}

/// Plans, or reads a saved plan, shows it, asks, and carries it out. A plan that was carried out before is
/// done.
pub async fn run<C: ControlPlane>(args: &args::Apply, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    match apply(args, run).await {
        Err(done @ Error::AppliedBefore { revision, .. }) => {
            let help = done.help().map(|help| format!("  {help}\n")).unwrap_or_default();
            run.console.must_arrive = false;
            run.console.stderr(&format!("Nothing to do: {done}.\n{help}"));
            if run.console.json {
                let printed = run.console.event(&Event::Revision { revision, already: true });
                printed.map_err(|source| Error::Unreported { revision, source })?;
            }
            Ok(Exit::Done)
        }
        ended => ended,
    }
}

async fn apply<C: ControlPlane>(args: &args::Apply, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    check(args, run)?;
    run.console.must_arrive = true;
    if run.console.json {
        run.console.event(&events::version())?;
    }
    let (ready, server) = match &args.plan {
        Some(path) => saved(path, run).await?,
        None => planned(run).await?,
    };
    let allow = args.allowed.rules();
    let (judgement, keys) = Run::<C>::judge(
        &ready.plan,
        (ready.loaded.as_ref(), run.after.as_ref()),
        &ready.info,
        &ready.world,
        &allow,
        false,
    );
    show(&ready, keys, &server, args, run)?;
    if let Some(expected) = &args.expect
        && ready.plan.digest != *expected
    {
        return Err(unexpected(expected, &ready, &server).await);
    }
    run.report_judgement(&judgement, ready.loaded.as_ref())?;
    if !ready.plan.applyable {
        run.console.note("There is nothing to apply.\n");
        return Ok(Exit::Done);
    }
    let ids: Vec<_> = ready.plan.new_keys().cloned().collect();
    let mut sink = open(args.keys_to.as_ref(), &ids, run)?;
    run.mention_commit();
    approve(args, &ready, &judgement.used, run)?;
    let online = match args.wait {
        Some(_) => online(&server).await?,
        None => BTreeSet::new(),
    };
    let made = keys::make(ids.iter(), &ready.info)?;
    let applied = commit(args, &ready, (&made, &allow), sink.as_deref_mut(), &server, run).await?;
    // At once, since a command that takes tokens may take long.
    run.console.stderr(&format!("Applied as revision {}.\n", applied.revision));
    // Before anything else that may fail, so that no token is lost.
    let delivered = sink.map(|sink| deliver(sink.as_ref(), &made, run));
    let reported = report(&applied, run);
    if let Some(delivered) = delivered {
        report_tokens(delivered, args.keys_to.as_ref(), &ready.plan, &applied, run)?;
    }
    reported?;
    match args.wait {
        Some(wait) => acknowledged(&server, online, applied.revision, wait, run).await,
        None => Ok(Exit::Done),
    }
}

/// Refuses flags that exclude each other.
fn check<C>(args: &args::Apply, run: &Run<'_, C>) -> Result<(), Error> {
    if run.console.json && args.keys_to == Some(Sink::Output) {
        return Err(Error::Usage(
            "--keys-to - and --json both need standard output; write the tokens to a file",
        ));
    }
    if args.plan.is_some()
        && (!run.place.files.is_empty() || run.only.is_some() || !run.place.variables.is_empty())
    {
        return Err(Error::Usage(
            "a saved plan is complete: -f, --var and --network cannot be combined with it",
        ));
    }
    Ok(())
}

async fn planned<C: ControlPlane>(run: &mut Run<'_, C>) -> Result<(Ready, C), Error> {
    let loaded = run.load_to_plan("applied")?;
    if loaded.project.is_none() {
        return Err(Error::NoProject);
    }
    let server = (run.connect)(loaded.server.as_deref())?;
    let (info, world) = run.observe(&server).await?;
    let plan = run.plan(&loaded, &info, &world)?;
    Ok((Ready { plan, loaded: Some(loaded), info, world }, server))
}

/// Reads a saved plan, and checks whether it still holds.
async fn saved<C: ControlPlane>(path: &Path, run: &mut Run<'_, C>) -> Result<(Ready, C), Error> {
    let plan = read(path)?;
    check_owner(&plan, &run.place, path)?;
    let server = (run.connect)(project::server_of(&run.place, &plan.owner())?.as_deref())?;
    let (info, world) = run.observe(&server).await?;
    check_server(&plan, &info, path)?;
    let stale = plan.stale(&world);
    if !stale.is_empty() {
        return Err(why_stale(&plan, stale, &world, &server).await?);
    }
    if let Some(LogEntry { revision, actor, time, .. }) = carried_out(&plan, &world, &server).await? {
        return Err(Error::Undone { revision, actor, time });
    }
    // Where it breaks a rule by now, the server says so.
    run.after = plan.apply(&world, &info, jiff::Timestamp::now()).ok();
    let after = run.after.as_ref();
    let warnings =
        after.map(|after| run.advice(&plan, BTreeSet::new(), (&world, after), &SourceMap::default()));
    let warnings = warnings.unwrap_or_default();
    run.show_problems(&[], &warnings)?;
    Ok((Ready { plan, loaded: None, info, world }, server))
}

/// The revision in which a plan was carried out, since it was made. What it created and somebody has deleted is
/// as absent as it was before: only the log shows it.
async fn carried_out<C: ControlPlane>(
    plan: &Plan,
    world: &World,
    server: &C,
) -> Result<Option<LogEntry>, Error> {
    let mut after = plan.server.revision;
    while after < world.revision {
        let page = server.revisions(after, usize::try_from(PAGE).unwrap_or(usize::MAX)).await?;
        let Some(last) = page.last() else { break };
        after = last.revision;
        if let Some(found) = page.into_iter().find(|entry| entry.digest.as_ref() == Some(&plan.digest)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Reads a saved plan.
pub(super) fn read(path: &Path) -> Result<Plan, Error> {
    let name = || shown(path);
    let text = std::fs::read(path).map_err(|source| Error::File { attempt: "read", path: name(), source })?;
    let plan: Plan = serde_json::from_slice(&text)
        .map_err(|error| Error::PlanFile { path: name(), why: error.to_string() })?;
    let why = if plan.format != FORMAT {
        wrong_format(&plan.format)
    } else if plan.digest != plan.digest_now() {
        "it was changed after it was made: its digest does not match".into()
    } else {
        return Ok(plan);
    };
    Err(Error::PlanFile { path: name(), why })
}

/// Refuses a flag that names another project or env than the plan.
fn check_owner(plan: &Plan, place: &Where, path: &Path) -> Result<(), Error> {
    for (flag, asked, is) in [("project", &place.project, &plan.project), ("env", &place.env, &plan.env)] {
        if let Some(asked) = asked.as_ref().filter(|asked| *asked != is) {
            let path = shown(path);
            return Err(Error::OtherPlan { path, flag, is: is.clone(), asked: asked.clone() });
        }
    }
    Ok(())
}

fn check_server(plan: &Plan, info: &ServerInfo, path: &Path) -> Result<(), Error> {
    let why = if plan.server.id != info.id {
        "it was made for another server"
    } else if plan.server.epoch != info.epoch {
        "the server was restored from a backup since it was made"
    } else {
        return Ok(());
    };
    Err(Error::PlanFile { path: shown(path), why: why.into() })
}

/// Why a plan no longer holds: it was carried out and the server still has its result, or somebody has
/// changed the resources that it depends on: who, and when.
async fn why_stale<C: ControlPlane>(
    plan: &Plan,
    stale: Vec<(Subject, Revision)>,
    world: &World,
    server: &C,
) -> Result<Error, Error> {
    let mut log = BTreeMap::new();
    for revision in stale.iter().map(|(_, revision)| *revision).filter(|revision| revision.0 > 0) {
        if !log.contains_key(&revision) {
            let entries = server.revisions(Revision(revision.0 - 1), 1).await?;
            log.extend(entries.into_iter().map(|entry| (entry.revision, entry)));
        }
    }
    if let Some(LogEntry { revision, actor, time, .. }) =
        log.values().find(|entry| entry.digest.as_ref() == Some(&plan.digest))
        && is_in_effect(plan, world)
    {
        return Ok(Error::AppliedBefore { revision: *revision, actor: actor.clone(), time: *time });
    }
    let moved = stale.into_iter().map(|(id, revision)| {
        let (actor, time) = log.get(&revision).map(|entry| (entry.actor.clone(), entry.time)).unzip();
        Moved { id, revision, actor, time }
    });
    Ok(Error::Stale(moved.collect()))
}

/// Whether each resource that a plan changes, and the guard if it does, is as the plan leaves it.
fn is_in_effect(plan: &Plan, World { snapshot, guards, .. }: &World) -> bool {
    let stored = guards.of(&plan.owner()).map(|guard| &guard.limits);
    let owner = Some(plan.owner());
    plan.guard.as_ref().is_none_or(|guard| guard.after.as_ref() == stored)
        && plan.changes.iter().all(|change| match (&change.after, snapshot.entry(&change.id)) {
            (None, found) => found.is_none(),
            (Some(_), None) => false,
            (Some(body), Some(found)) => decode_body(&change.id, body)
                .is_ok_and(|entry| entry.object == found.object && found.owner == owner),
        })
}

/// Shows the plan: on standard output, unless that is for tokens.
fn show<C: ControlPlane>(
    ready: &Ready,
    keys: Vec<KeyState>,
    server: &C,
    args: &args::Apply,
    run: &mut Run<'_, C>,
) -> Result<(), Error> {
    if run.console.json {
        return plan::show_events(run, &ready.plan, ready.loaded.as_ref());
    }
    let reviewed = args.auto_approve || args.expect.is_some();
    if run.console.quiet && reviewed {
        return Ok(());
    }
    let shown = Shown {
        server: Some(server.name().to_owned()),
        awaiting: ready
            .loaded
            .as_ref()
            .map(|loaded| awaiting(loaded, run.only.as_ref(), &ready.world))
            .unwrap_or_default(),
        elsewhere: ready
            .loaded
            .as_ref()
            .map(|loaded| elsewhere(loaded, run.only.as_ref(), &ready.world))
            .unwrap_or_default(),
        keys,
        next: None,
        empties: plan::empties(&ready.plan, &ready.world),
        places: plan::places(&ready.plan, ready.loaded.as_ref()),
        full: run.console.verbose,
        columns: run.console.columns,
        warnings: run.warned.clone(),
    };
    let text = render::plan(&ready.plan, &shown) + "\n";
    match args.keys_to {
        Some(Sink::Output) => run.console.stderr(&text),
        Some(Sink::File(_) | Sink::Command(_)) | None => run.console.stdout(&text)?,
    }
    Ok(())
}

/// Why the plan is not the expected one: that one was applied before, so that nothing is left to change, or
/// something else has changed.
async fn unexpected<C: ControlPlane>(expected: &str, ready: &Ready, server: &C) -> Error {
    let after = Revision(ready.world.revision.0.saturating_sub(LATEST));
    // The log only explains; without it the plan is refused all the same.
    let log: Vec<LogEntry> = server.revisions(after, LATEST as usize).await.unwrap_or_default();
    let is = |entry: &&LogEntry| entry.digest.as_deref() == Some(expected);
    if let Some(LogEntry { revision, actor, time, .. }) = log.iter().find(is)
        && !ready.plan.applyable
    {
        return Error::AppliedBefore { revision: *revision, actor: actor.clone(), time: *time };
    }
    let since = log.into_iter().rev().take(3).rev().collect();
    Error::Unexpected { expected: expected.into(), found: ready.plan.digest.clone(), since }
}

/// Opens the sink that new keys need, before anything is changed.
fn open<C>(
    sink: Option<&Sink>,
    ids: &[ResourceId],
    run: &Run<'_, C>,
) -> Result<Option<Box<dyn Opened>>, Error> {
    match (ids, sink) {
        ([], _) => Ok(None),
        (_, None) => Err(KeysError::NoSink(ids.to_vec()).into()),
        (_, Some(sink)) => Ok(Some(sink.open(&run.place.environment)?)),
    }
}

/// Continues only if the plan is approved.
fn approve<C>(
    args: &args::Apply,
    ready: &Ready,
    allow: &BTreeSet<Guard>,
    run: &mut Run<'_, C>,
) -> Result<(), Error> {
    if args.auto_approve || args.expect.is_some() {
        return Ok(());
    }
    if !run.console.asks() {
        return Err(Error::NobodyToAsk { command: again(args, ready, allow, run) });
    }
    let answer = run.console.ask("Apply this plan? Type `yes` to confirm: ")?;
    if answer == "yes" { Ok(()) } else { Err(Error::Declined) }
}

/// The command line that applies this plan and no other.
fn again<C>(args: &args::Apply, ready: &Ready, allow: &BTreeSet<Guard>, run: &Run<'_, C>) -> String {
    match (&args.plan, &ready.loaded) {
        (None, Some(loaded)) => plan::next(run, loaded, &ready.plan, allow, None, args.keys_to.as_ref()),
        (path, _) => {
            let path = path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            let sink = plan::keys_to(&ready.plan, args.keys_to.as_ref());
            let mut verb = vec!["apply", &*path, "-y"];
            verb.extend(sink.iter().flat_map(|sink| ["--keys-to", sink.as_str()]));
            let allow: Vec<_> = allow.iter().map(Guard::to_string).collect();
            verb.extend(allow.iter().flat_map(|guard| ["--allow", guard.as_str()]));
            command(&run.place, None, &verb)
        }
    }
}

/// Sends the plan until an answer comes; the sink holds the tokens as long as the server may have created the
/// keys.
async fn commit<C: ControlPlane>(
    args: &args::Apply,
    ready: &Ready,
    (made, allow): (&[Made], &BTreeSet<Guard>),
    mut sink: Option<&mut (dyn Opened + 'static)>,
    server: &C,
    run: &mut Run<'_, C>,
) -> Result<Applied, Error> {
    let request = ApplyRequest {
        apply_id: apply_id()?,
        plan: ready.plan.bare(),
        keys: made.iter().map(|made| (made.id.clone(), made.verifier)).collect::<BTreeMap<_, _>>(),
        allow: allow.clone(),
    };
    run.console.interrupts.hold();
    if let Some(sink) = &mut sink {
        sink.hold(made)?;
    }
    let Sent { answer, harmless } = send(&request, server, run).await;
    let refusal = match answer {
        Ok(applied) => return Ok(applied),
        Err(refusal) => refusal,
    };
    if !harmless {
        let tokens = sink.map(|sink| deliver(sink, made, run));
        let history = command(&run.place, run.only.as_ref(), &["history"]);
        let next = Box::new(Next { history, again: again(args, ready, allow, run) });
        return Err(Error::Unknown { source: refusal.into(), tokens, next });
    }
    if let Some(Err(source)) = sink.map(|sink| sink.take_back(made)) {
        return Err(Error::NotTakenBack { refusal: refusal.to_string(), source });
    }
    if matches!(refusal, ControlError::Interrupted { .. }) {
        return Err(Error::Interrupted);
    }
    if let ControlError::Refused { failure, .. } = &refusal
        && failure.code == "stale"
        && !failure.moved.is_empty()
    {
        return Err(Error::Stale(failure.moved.clone()));
    }
    Err(refusal.into())
}

/// The outcome of sending a plan.
struct Sent {
    answer: Result<Applied, ControlError>,
    /// Whether no attempt can have been carried out.
    harmless: bool,
}

/// Sends a plan, again if no answer comes, until the run is interrupted: the same apply id is carried out
/// once.
async fn send<C: ControlPlane>(request: &ApplyRequest, server: &C, run: &mut Run<'_, C>) -> Sent {
    let interrupts = run.console.interrupts.clone();
    let interrupted = || ControlError::Interrupted { server: server.name().to_owned() };
    let mut harmless = true;
    let mut backoff = server.backoff().iter();
    loop {
        if interrupts.is_received() {
            return Sent { answer: Err(interrupted()), harmless };
        }
        let what = format!("waiting for {} to commit", server.name());
        let answer = tokio::select! {
            biased;
            answer = run.console.waiting(&what, server.apply(request)) => answer,
            () = interrupts.received() => Err(interrupted()),
        };
        let error = match answer {
            Ok(applied) => return Sent { answer: Ok(applied), harmless: false },
            Err(error) => error,
        };
        harmless = error.is_refused_plan() || (harmless && error.is_harmless());
        match backoff.next() {
            Some(delay) if error.is_transient() => {
                run.console.note(&format!("{error}; retrying\n"));
                // An interruption ends the pause, and is noticed above.
                let _ = tokio::time::timeout(*delay, interrupts.received()).await;
            }
            Some(_) | None => return Sent { answer: Err(error), harmless },
        }
    }
}

fn apply_id() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(KeysError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn deliver<C>(sink: &dyn Opened, made: &[Made], run: &mut Run<'_, C>) -> Result<String, KeysError> {
    let interrupts = run.console.interrupts.clone();
    sink.deliver(made, &mut |tokens| run.console.stdout(tokens), &interrupts)
}

/// Prints the event of what was applied. Its reader may have gone.
fn report<C>(applied: &Applied, run: &mut Run<'_, C>) -> Result<(), Error> {
    let Applied { revision, already } = *applied;
    run.console.must_arrive = false;
    if !run.console.json {
        return Ok(());
    }
    let printed = run.console.event(&Event::Revision { revision, already });
    printed.map_err(|source| Error::Unreported { revision, source })
}

/// Prints where the tokens went, and how hosts join with them.
fn report_tokens<C>(
    delivered: Result<String, KeysError>,
    sink: Option<&Sink>,
    plan: &Plan,
    applied: &Applied,
    run: &mut Run<'_, C>,
) -> Result<(), Error> {
    let revision = applied.revision;
    let done = delivered.map_err(|source| Error::AfterCommit { revision, source })?;
    let keys: Vec<_> = plan.new_keys().map(|id| (id, only_name(plan, id))).collect();
    run.console.note(&render::tokens(&keys, sink, &done, run.console.verbose));
    Ok(())
}

/// The only name that a key of a plan lets join, if there is one.
fn only_name(plan: &Plan, id: &ResourceId) -> Option<Name> {
    let body = plan.changes.iter().find(|change| change.id == *id)?.after.as_ref()?;
    let mut key = Snapshot::default();
    key.put(id.clone(), decode_body(id, body).ok()?);
    let key = key.named::<AccessKey>(&id.network, &id.name)?;
    let mut names = key.r#for.iter().map(|node| node.name.clone());
    names.next().filter(|_| names.next().is_none())
}

async fn online<C: ControlPlane>(server: &C) -> Result<BTreeSet<String>, Error> {
    let status = server.status().await?;
    let online = status.nodes.into_iter().filter(|node| node.state == Presence::Online);
    Ok(online.map(|node| node.id).collect())
}

/// Waits until the nodes that were online have acknowledged the revision.
async fn acknowledged<C: ControlPlane>(
    server: &C,
    mut missing: BTreeSet<String>,
    revision: Revision,
    wait: Seconds,
    run: &mut Run<'_, C>,
) -> Result<Exit, Error> {
    let end = Instant::now() + wait.duration();
    let total = missing.len();
    loop {
        let what = format!("waiting for {}", count(missing.len() as u64, "node"));
        let interrupts = run.console.interrupts.clone();
        let status = tokio::select! {
            biased;
            () = interrupts.received() => {
                return Err(Error::NotAwaited { revision, nodes: missing.into_iter().collect() });
            }
            status = run.console.waiting(&what, server.status()) => status,
        };
        match status {
            Ok(status) => record_acknowledgements(&status, &mut missing, revision, run)
                .map_err(|source| Error::Unreported { revision, source })?,
            // The change is made, so a server that is unavailable for a moment is asked again.
            Err(error) if error.is_transient() => {}
            Err(source) => return Err(Error::Unwatched { revision, source }),
        }
        if missing.is_empty() {
            run.console.note(&match total {
                0 => "No node was online, so there was nothing to wait for.\n".into(),
                total => {
                    format!("Acknowledged by every node that was online: {}.\n", count(total as u64, "node"))
                }
            });
            return Ok(Exit::Done);
        }
        if Instant::now() >= end {
            return Err(Error::NotAcknowledged { revision, wait, nodes: missing.into_iter().collect() });
        }
        let _ = tokio::time::timeout(POLL, interrupts.received()).await;
    }
}

/// Removes the nodes that have acknowledged from those that are missing.
fn record_acknowledgements<C>(
    status: &StatusDocument,
    missing: &mut BTreeSet<String>,
    revision: Revision,
    run: &mut Run<'_, C>,
) -> io::Result<()> {
    // A node that left, or that the plan removed, has nothing to acknowledge.
    missing.retain(|id| {
        status
            .nodes
            .iter()
            .any(|node| node.id == *id && !matches!(node.state, Presence::Awaiting | Presence::Pending))
    });
    for node in &status.nodes {
        if node.acknowledged.is_some_and(|at| at >= revision) && missing.remove(&node.id) && run.console.json
        {
            let event = events::node_ack(node);
            event.iter().try_for_each(|event| run.console.event(event))?;
        }
    }
    Ok(())
}
