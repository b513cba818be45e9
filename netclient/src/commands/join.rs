//! `netclient join`.

use std::io::{self, Write};
use std::path::Path;

use schema::scalars::Port;
use schema::text::count;
use serde_json::json;

use super::{Outcome, json as print_json, looked_after, open, read_token};
use crate::agent::{JoinOptions, JoinOutcome};
use crate::args::Join;
use crate::membership::Membership;

pub(super) async fn run(directory: &Path, join: Join) -> Outcome {
    let Join { shown, name, interface, port, endpoint, daemon, form } = join;
    let token = read_token(&shown)?;
    let agent = open(directory)?;
    let port = port.map(|Port(port)| port);
    let joined = agent.join(&token, &JoinOptions { name, interface, port, endpoint }).await;
    if joined.is_err() {
        agent.directory.remove_if_empty();
    }
    let joined = joined?;
    let kept = looked_after(&agent);
    let (membership, new) = match &joined {
        JoinOutcome::New(membership) => (membership, true),
        JoinOutcome::Already(membership) => (membership, false),
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
    if !kept && daemon.0 {
        let mut talk = io::stderr().lock();
        let _ = writeln!(talk, "Nothing keeps it current yet. Leave this running:\n\n  netclient daemon\n");
    }
    Ok(())
}
