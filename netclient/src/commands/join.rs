//! `netclient join`.

use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use schema::scalars::{NetworkName, Port};
use schema::text::count;
use serde_json::json;

use super::{Outcome, json as print_json, looked_after, open, read_token, render};
use crate::agent::{Agent, JoinOptions, JoinOutcome, WaitingStatus};
use crate::args::{Form, Join};
use crate::membership::Membership;

pub(super) async fn run(directory: &Path, join: Join) -> Outcome {
    const BOTH: &str = "a token and --server say two ways to join; leave out one of them (the token may come from NETCLIENT_TOKEN)";
    let Join { shown, server, pin, network, name, interface, port, endpoint, daemon, form } = join;
    let port = port.map(|Port(port)| port);
    let options = JoinOptions { name, interface, port, endpoint };
    let (agent, joined) = if let (Some(server), Some(pin), Some(network)) = (server, pin, network) {
        if shown.token.is_some() {
            return Err(BOTH.into());
        }
        let agent = open(directory)?;
        let joined = agent.ask(&server, pin, &network, &options).await;
        (agent, joined)
    } else {
        let token = read_token(&shown)?;
        let agent = open(directory)?;
        let joined = agent.join(&token, &options).await;
        (agent, joined)
    };
    if joined.is_err() {
        agent.directory.remove_if_empty();
    }
    report(&agent, &joined?, daemon.0, form)
}

/// Asks once more for a host that waits.
pub(super) async fn ask_again(agent: &Agent, network: &NetworkName, form: Form) -> Outcome {
    let outcome = agent.ask_again(network).await?;
    report(agent, &outcome, true, form)
}

/// Says what came of it; `daemon`: also that none runs.
fn report(agent: &Agent, joined: &JoinOutcome, daemon: bool, form: Form) -> Outcome {
    let kept = looked_after(agent);
    let (membership, new) = match joined {
        JoinOutcome::New(membership) => (membership, true),
        JoinOutcome::Already(membership) => (membership, false),
        JoinOutcome::Waiting(waiting) => {
            let status = WaitingStatus::of(waiting);
            if form.json {
                return print_json(&status);
            }
            io::stdout().lock().write_all(render::waiting(&status, Timestamp::now()).as_bytes())?;
            if status.until.is_some() && !kept && daemon {
                let mut talk = io::stderr().lock();
                let _ = writeln!(
                    talk,
                    "\nNothing asks again by itself yet. Leave this running:\n\n  netclient daemon\n"
                );
            }
            return Ok(());
        }
    };
    let addresses: Vec<_> =
        membership.view.interface.addresses.iter().map(|it| it.addr().to_string()).collect();
    if form.json {
        let Membership { network, node, interface, .. } = membership;
        return print_json(&json!({
            "network": network, "node": node, "interface": interface, "addresses": addresses, "new": new,
        }));
    }
    let mut data = io::stdout().lock();
    let what = if new { "Joined" } else { "Already joined" };
    let Membership { network, node, interface, view, .. } = membership;
    let peers = count(view.peers.len() as u64, "peer");
    writeln!(data, "{what} {network} as {node}: {} on {interface}, {peers}.", addresses.join(", "))?;
    if !kept && daemon {
        let mut talk = io::stderr().lock();
        let _ = writeln!(talk, "Nothing keeps it current yet. Leave this running:\n\n  netclient daemon\n");
    }
    Ok(())
}
