//! `nmplan lab`: brings up the declared networks for real, in network namespaces, and shows which nodes reach
//! each other.
//!
//! It runs twice: outside, where it enters the lab with the same command line ([`enter`]), and inside
//! ([`run`]).

use std::process::{Command, ExitCode, ExitStatus};

use tokio::signal::unix::{SignalKind, signal};

use super::Run;
use crate::args;
use crate::console::Console;
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::lab::roster::{Roster, roster};
use crate::lab::run::Running;
use crate::lab::{self, EnterError, verdict};

/// Runs the same command line inside a lab of its own, and ends with its exit code.
pub fn enter() -> Result<ExitCode, Error> {
    let program = std::env::current_exe().map_err(|source| EnterError::Lost { source })?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    let status: ExitStatus = lab::enter(command)?;
    // A signal ends it with 128 plus the signal's number.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Brings up the declared networks, and shows which nodes reach each other.
pub async fn run<C: ControlPlane>(lab: &args::Lab, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    run.place.directory = lab.directory.clone().or(run.place.directory.take());
    let loaded = run.load_without_server(Some("brought up"))?;
    let roster = roster(&loaded.declared.snapshot);
    let own_node = |(network, _): (_, _)| Roster::own_node(&loaded.declared.snapshot, network).is_some();
    if roster.participants.is_empty() && !loaded.declared.snapshot.networks().any(own_node) {
        return Err(Error::NothingToBringUp);
    }
    let console = &mut *run.console;
    let running = lab::run::run(&roster, &mut |progress| console.note(&format!("{progress}\n"))).await?;
    let verdict = console.waiting("sending packets between all nodes", running.judge()).await?;
    if console.json {
        console.stdout(&format!(
            "{}\n",
            serde_json::to_string(&verdict).expect("a verdict can be written as JSON")
        ))?;
    } else {
        console.stdout(&format!("\n{}", verdict::text(&verdict)))?;
    }
    if lab.keep {
        keep(&running, console).await?;
    }
    Ok(if verdict.is_good() { Exit::Done } else { Exit::Refused })
}

/// Leaves everything running until it is interrupted.
async fn keep(running: &Running, console: &mut Console) -> Result<(), Error> {
    console.stderr("\nThe lab runs until Ctrl-C. To enter a host, as root:\n\n");
    let hosts = running.agents.iter().map(|(_, agent)| agent.host());
    for host in [running.server.host()].into_iter().chain(hosts).chain(running.other_hosts()) {
        console.stderr(&format!("  # {}\n  {} bash\n", host.name(), host.how_to_enter()));
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
    Ok(())
}
