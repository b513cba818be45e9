//! `nmplan lab`: brings what is declared up for real, in network namespaces, and shows who reaches whom.
//!
//! It runs twice: outside, where it enters the lab with the command line that was typed ([`enter`]), and inside ([`run`]).

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

/// Runs this very command line inside a lab of its own, and ends as it ends.
pub fn enter() -> Result<ExitCode, Error> {
    let program = std::env::current_exe().map_err(|source| EnterError::Lost { source })?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    let status: ExitStatus = lab::enter(command)?;
    // By a signal it ends with 128 and its number.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Brings what is declared up, and shows who reaches whom.
pub async fn run<C: ControlPlane>(lab: &args::Lab, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    run.place.directory = lab.directory.clone().or(run.place.directory.take());
    let loaded = run.load_alone(Some("brought up"))?;
    let roster = roster(&loaded.declared.snapshot);
    let own_node = |(network, _): (_, _)| Roster::own_node(&loaded.declared.snapshot, network).is_some();
    if roster.participants.is_empty() && !loaded.declared.snapshot.networks().any(own_node) {
        return Err(Error::NothingToBringUp);
    }
    let console = &mut *run.console;
    let running = lab::run::run(&roster, &mut |said| console.note(&format!("{said}\n"))).await?;
    let verdict = console.waiting("sending packets between all machines", running.judge()).await?;
    if console.json {
        console.stdout(&format!("{}\n", serde_json::to_string(&verdict).expect("a verdict can be written as JSON")))?;
    } else {
        console.stdout(&format!("\n{}", verdict::text(&verdict)))?;
    }
    if lab.keep {
        keep(&running, console).await?;
    }
    Ok(if verdict.is_good() { Exit::Done } else { Exit::Refused })
}

/// Leaves everything up until somebody ends it.
async fn keep(running: &Running, console: &mut Console) -> Result<(), Error> {
    console.stderr("\nThe lab stays up until Ctrl-C. To enter a machine, as root:\n\n");
    let hosts = running.agents.iter().map(|(_, agent)| agent.host());
    for host in [running.server.host()].into_iter().chain(hosts) {
        console.stderr(&format!("  # {}\n  {} bash\n", host.name(), host.how_to_enter()));
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
    Ok(())
}
