//! `nmplan lab`: brings up the declared networks for real, in network namespaces, and shows which nodes reach
//! each other.
//!
//! It runs twice: outside, where it enters the lab with the same command line ([`enter`]), and inside
//! ([`run`]). With `--enter` it only runs a program in a lab that is there ([`enter_host`]).

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use schema::decode::Declared;
use schema::inventory::Inventory;
use schema::judge;
use schema::report::Report;
use tokio::signal::unix::{SignalKind, signal};

use super::Run;
use crate::args::{self, Global};
use crate::console::Console;
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::events;
use crate::lab::kept::{self, Kept};
use crate::lab::roster::{Roster, roster};
use crate::lab::run::Running;
use crate::lab::verdict::Verdict;
use crate::lab::{self, EnterError, report, scenario};
use crate::project::Loaded;
use crate::render::Lines;

/// How wide lines are where there is no terminal.
const WIDTH: usize = 80;

/// Runs the same command line inside a lab of its own, and ends with its exit code.
pub fn enter() -> Result<ExitCode, Error> {
    let program = std::env::current_exe().map_err(|source| EnterError::Lost { source })?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    let status: ExitStatus = lab::enter(command)?;
    // A signal ends it with 128 plus the signal's number.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Becomes a program on a host of a lab that `--keep` left: a shell, if none is named.
pub fn enter_host(host: &str, lab: &args::Lab, global: &Global) -> Result<ExitCode, Error> {
    let whole = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let directory = lab.directory.as_ref().or(global.directory.as_ref()).map(whole);
    let here = whole(&PathBuf::from("."));
    let labs = kept::find();
    let mut words = kept::choose(&labs, directory.as_deref(), &here, host)?.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).arg("--");
    match &*lab.command {
        [] => command.arg(if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" }),
        words => command.args(words),
    };
    Err(EnterError::Lost { source: command.exec() }.into())
}

/// Brings up the declared networks, and shows which nodes reach each other.
pub async fn run<C: ControlPlane>(lab: &args::Lab, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    run.place.directory = lab.directory.clone().or(run.place.directory.take());
    if run.only.is_some() {
        return Err(Error::Usage(
            "the lab brings up every network that the files declare; leave out --network",
        ));
    }
    let loaded = run.load_without_server(Some("brought up"))?;
    let mut roster = roster(&loaded.declared.snapshot);
    let own_node = |(network, _): (_, _)| Roster::own_node(&loaded.declared.snapshot, network).is_some();
    if roster.participants.is_empty() && !loaded.declared.snapshot.networks().any(own_node) {
        return Err(Error::NothingToBringUp);
    }
    check_tests(run, &loaded)?;
    if lab.scenario {
        roster.hurry();
    }
    let console = &mut *run.console;
    let mut running = lab::run::run(&roster, &mut |progress| console.note(&format!("{progress}\n"))).await?;
    let mut verdict = console.waiting("sending packets between all nodes", running.judge()).await?;
    locate(&mut verdict, &loaded);
    if !console.json {
        let width = console.columns.unwrap_or(WIDTH);
        console.stdout(&format!("\n{}", report::text(&verdict, width)))?;
    }
    if lab.scenario {
        play(&mut running, &roster, &mut verdict, &loaded, console).await?;
    }
    if console.json {
        let text = serde_json::to_string(&verdict).expect("a verdict can be written as JSON");
        console.stdout(&format!("{text}\n"))?;
    }
    if lab.keep {
        keep(&running, &loaded.directory, lab, console).await?;
    }
    Ok(if verdict.is_good() { Exit::Done } else { Exit::Refused })
}

/// Refuses files whose tests do not hold, which the lab's server would: here they are shown where they stand.
fn check_tests<C: ControlPlane>(run: &mut Run<'_, C>, loaded: &Loaded) -> Result<(), Error> {
    let Declared { snapshot, source_map } = &loaded.declared;
    let networks = snapshot.networks().map(|(network, _)| network);
    let verdicts = judge::judge_all(networks, snapshot, &Inventory::default());
    let (hold, tests) = judge::tally(&verdicts);
    if hold == tests {
        return Ok(());
    }
    let failing = verdicts.iter().filter(|verdict| verdict.fails());
    let mut report = Report::default();
    failing.filter_map(|verdict| verdict.problem(source_map)).for_each(|problem| report.push(problem));
    run.show(loaded, &report)?;
    Err(Error::TestsFail(tests - hold))
}

/// Plays the scenario, and shows each step when it is over.
async fn play(
    running: &mut Running,
    roster: &Roster,
    verdict: &mut Verdict,
    loaded: &Loaded,
    console: &mut Console,
) -> Result<(), Error> {
    let steps = scenario::steps(roster);
    if !console.json {
        console.stdout(&format!("\nScenario:\n{}", report::steps_to_come(&steps)))?;
    }
    for (number, step) in (1..).zip(&steps) {
        let played = console.waiting(&step.to_string(), running.play(step)).await?;
        verdict.scenario.get_or_insert_default().push(played);
        locate(verdict, loaded);
        let Some(played) = verdict.scenario.iter().flatten().last() else { continue };
        if !console.json {
            console.stdout(&report::step(played, number, steps.len(), console.columns.unwrap_or(WIDTH)))?;
        }
    }
    let played = verdict.scenario.get_or_insert_default();
    if !console.json {
        console.stdout(&format!("\n{}", report::steps(played)))?;
    }
    Ok(())
}

/// Says of each rule and test where the files declare it.
fn locate(verdict: &mut Verdict, loaded: &Loaded) {
    let lines = Lines::default();
    let declared = Some((&loaded.declared.source_map, &*loaded.sources, &lines));
    verdict.locate(|id| {
        let place = events::because(id, declared);
        Some((place.file?.to_owned(), place.line?))
    });
}

/// Leaves everything running until it is interrupted.
async fn keep(
    running: &Running,
    directory: &Path,
    lab: &args::Lab,
    console: &mut Console,
) -> Result<(), Error> {
    let hosts = running.all_hosts().await?;
    Kept::new(directory, &hosts).announce()?;
    let of = lab.directory.as_ref().map(|it| format!("{} ", schema::text::path(it))).unwrap_or_default();
    let names: Vec<_> = hosts.iter().map(|(host, _)| host.name()).collect();
    console.stderr(&format!(
        "\nThe lab runs until Ctrl-C. To enter a host, as the same user, from another terminal:\n\n  \
         nmplan lab {of}--enter {}\n\nIts hosts: {}\n",
        names.get(1).unwrap_or(&names[0]),
        names.join(", ")
    ));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
    Ok(())
}
