//! The commands, each about a screen: gather, act, print. Data goes to standard output, everything else to
//! standard error.

mod join;
mod register;
mod render;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use proto::secret::Secret;
use proto::token::{self, Token};
use schema::scalars::NetworkName;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{Agent, AgentError, error_chain};
use crate::args::{Args, TokenArg, Verb, Which};
use crate::daemon::{self, DaemonRequest, DaemonResponse};
use crate::device::process::{self, Ended};
use crate::directory::Directory;
use crate::host::System;
use crate::settings;
use crate::systemd;

/// More than any token holds: more on standard input is not a token.
const LONGEST_TOKEN: usize = 1 << 16;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Runs the program that was typed.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let level = match args.verb {
        Verb::Daemon => "info",
        // gotatun logs every peer that comes and goes, and the log of a device only grows.
        Verb::Device { .. } => "info,gotatun=warn",
        Verb::Register(_)
        | Verb::Join(_)
        | Verb::Checkin(_)
        | Verb::Pull(_)
        | Verb::Leave { .. }
        | Verb::List(_)
        | Verb::Status(_) => "warn",
    };
    systemd::start_log("NETCLIENT_LOG", level);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            systemd::print_error("netclient", &*error);
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Outcome {
    if let Verb::Device { interface, socket } = &args.verb {
        return match process::run(interface, socket)? {
            Ended::Asked => Ok(()),
            Ended::Expired => end_expired(socket),
        };
    }
    // New files are private by default; files that others may read set their mode.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(act(args));
    // A name that does not resolve must not keep the error from being printed.
    runtime.shutdown_background();
    outcome
}

/// After a device process has expired: removes what the agent's directory stores of its tunnel.
fn end_expired(socket: &Path) -> Outcome {
    let agent = open(socket.parent().ok_or("the socket is not in a directory")?)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(agent.end_expired())?;
    agent.directory.remove_if_empty();
    Ok(())
}

async fn act(args: Args) -> Outcome {
    match args.verb {
        Verb::Register(register) => register::run(&args.directory, register).await,
        Verb::Join(join) => join::run(&args.directory, join).await,
        Verb::Checkin(which) => {
            let (agent, network) = member(&args.directory, &which).await?;
            if agent.directory.waited_for()?.contains(&network) {
                return join::ask_again(&agent, &network, which.form).await;
            }
            let news = match agent.check_in(&network).await {
                Err(AgentError::Busy(_)) => ask(&agent, DaemonRequest::CheckIn(network.clone()))?,
                outcome => outcome?,
            };
            render::done(which.form, &network, if news { "applied what changed" } else { "nothing changed" })
        }
        Verb::Pull(which) => {
            let (agent, network) = member(&args.directory, &which).await?;
            if agent.directory.waited_for()?.contains(&network) {
                return join::ask_again(&agent, &network, which.form).await;
            }
            let news = match agent.pull(&network).await {
                Err(AgentError::Busy(_)) => ask(&agent, DaemonRequest::Pull(network.clone()))?,
                outcome => outcome?,
            };
            render::done(which.form, &network, if news { "applied what changed" } else { "nothing changed" })
        }
        Verb::Leave { which, force } => {
            let (agent, network) = member(&args.directory, &which).await?;
            let waits = agent.directory.waited_for()?.contains(&network);
            let left = match agent.leave(&network, force).await {
                Err(AgentError::Busy(_)) => {
                    ask(&agent, DaemonRequest::Leave { network: network.clone(), force })?;
                    BTreeSet::new()
                }
                outcome => outcome?,
            };
            agent.end_expired().await?;
            agent.directory.remove_if_empty();
            if waits {
                return render::done(which.form, &network, "waits no longer; everything of it was removed");
            }
            render::left(which.form, &network, &left)
        }
        Verb::List(form) => render::list(form, &status(&args.directory).await?),
        Verb::Status(form) => render::status(form, &status(&args.directory).await?),
        Verb::Daemon => run_daemon(open(&args.directory)?).await,
        Verb::Device { .. } => unreachable!("it runs before the async runtime starts"),
    }
}

/// The agent of a directory, with the settings of its operator.
fn open(directory: &Path) -> Outcome<Agent> {
    let settings = settings::load(directory, |name| std::env::var(name).ok())?;
    let host = System::creating(settings.device);
    Ok(Agent::new(Directory::open(directory)?, settings, Arc::new(host)))
}

/// The agent of an existing directory; its expired registrations are ended first.
async fn open_tidied(directory: &Path) -> Outcome<Agent> {
    let agent = open(directory)?;
    if let Err(error) = agent.end_expired().await {
        tracing::warn!(error = error_chain(&error), "cannot remove everything of an expired registration");
    }
    Ok(agent)
}

/// The agent, and the network of the command.
async fn member(directory: &Path, which: &Which) -> Outcome<(Agent, NetworkName)> {
    const NONE: &str = "this host is not in a network; join one with: netclient join -t TOKEN";
    if !directory.exists() {
        return Err(NONE.into());
    }
    let agent = open_tidied(directory).await?;
    let mut networks = agent.directory.networks()?;
    networks.extend(agent.directory.waited_for()?);
    let network = match (&which.network, &*networks) {
        (Some(network), _) if networks.contains(network) => network.clone(),
        (Some(network), _) => return Err(AgentError::NotMember(network.clone()).into()),
        (None, [network]) => network.clone(),
        (None, []) => return Err(NONE.into()),
        (None, several) => {
            let names: Vec<_> = several.iter().map(NetworkName::as_str).collect();
            return Err(format!(
                "this host is in several networks; choose one: -n {}",
                names.join(", or -n ")
            )
            .into());
        }
    };
    Ok((agent, network))
}

/// Asks the daemon to do what this process cannot, because another one has locked the network.
fn ask(agent: &Agent, question: DaemonRequest) -> Outcome<bool> {
    let answer = daemon::ask(&agent.directory, &question).map_err(|error| {
        format!("the daemon did not answer ({error}); check that it still runs, and try again")
    })?;
    match answer.ok_or("another netclient is working on this network; try again when it is done")? {
        DaemonResponse::Done(news) => Ok(news),
        DaemonResponse::Failed(why) => Err(why.into()),
        DaemonResponse::Status(_) => Err("the daemon is of another version; restart it".into()),
    }
}

async fn status(directory: &Path) -> Outcome<crate::agent::Status> {
    if !directory.exists() {
        return Ok(crate::agent::Status::default());
    }
    let agent = open_tidied(directory).await?;
    let (daemon, known) = match daemon::ask(&agent.directory, &DaemonRequest::Status) {
        Ok(Some(DaemonResponse::Status(known))) => (true, known),
        Ok(Some(_)) => (true, Default::default()),
        Ok(None) | Err(_) => (false, Default::default()),
    };
    Ok(agent.status(daemon, |network| known.get(network).cloned().unwrap_or_default()).await?)
}

async fn run_daemon(agent: Agent) -> Outcome {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (end, shutdown) = tokio::sync::watch::channel(false);
    let ended = async move {
        tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        end.send_replace(true);
    };
    tokio::spawn(ended);
    Ok(daemon::run(agent, shutdown).await?)
}

/// Prints one JSON document.
fn json(it: &impl serde::Serialize) -> Outcome {
    let mut data = io::stdout().lock();
    serde_json::to_writer_pretty(&mut data, it)?;
    writeln!(data)?;
    Ok(())
}

/// Asks the daemon to look for the new network at once; whether a daemon runs.
fn looked_after(agent: &Agent) -> bool {
    matches!(daemon::ask(&agent.directory, &DaemonRequest::Rescan), Ok(Some(DaemonResponse::Done(_))))
}

/// The token as it was typed, or from a file, or from standard input; checked before anything else happens. A
/// file of tokens, as nmplan writes it, is good as well.
fn read_token(shown: &TokenArg) -> Outcome<Token> {
    const NONE: &str = "an access token is needed: -t TOKEN, or NETCLIENT_TOKEN; `netclient join --help` says how to join without";
    let token = shown.token.as_ref().ok_or(NONE)?;
    let typed = token.expose();
    let text = match typed.strip_prefix('@') {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            Secret::new(read.map_err(|error| format!("cannot read the token from {path}: {error}"))?)
        }
        None if typed == "-" => {
            // A buffer that never grows leaves no copies.
            let mut text = Secret::new(String::with_capacity(LONGEST_TOKEN));
            io::stdin().lock().take(LONGEST_TOKEN as u64).read_to_string(text.expose_mut())?;
            text
        }
        None => token.clone(),
    };
    Ok(token::choose(text.expose(), shown.key.as_deref())?)
}
