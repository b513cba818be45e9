//! `netclient join`.

use std::io::{self, Read, Write};
use std::path::Path;

use proto::token::Token;
use serde_json::json;

use super::{Outcome, json as print_json, open};
use crate::agent::{Agent, JoinOptions, Joined};
use crate::args::{Join, Switch};
use crate::daemon::{self, Answer, Question};
use crate::membership::Membership;

pub(super) async fn run(directory: &Path, join: Join) -> Outcome {
    let Join { token, name, interface, port, endpoint, daemon, form } = join;
    let token = read_token(&token)?;
    let agent = open(directory)?;
    let joined = agent.join(&token, &JoinOptions { name, interface, port, endpoint }).await;
    if joined.is_err() {
        agent.directory.remove_if_empty();
    }
    let joined = joined?;
    let kept = looked_after(&agent);
    let (membership, new) = match &joined {
        Joined::New(membership) => (membership, true),
        Joined::Already(membership) => (membership, false),
    };
    let addresses: Vec<_> = membership.view.interface.addresses.iter().map(|it| it.addr().to_string()).collect();
    if form.json {
        let Membership { network, node, interface, .. } = membership;
        return print_json(&json!({
            "network": network, "node": node, "interface": interface, "addresses": addresses, "new": new,
        }));
    }
    let mut data = io::stdout().lock();
    let what = if new { "Joined" } else { "Already in" };
    let Membership { network, node, interface, view, .. } = membership;
    let peers = match view.peers.len() {
        1 => "1 peer".to_owned(),
        count => format!("{count} peers"),
    };
    writeln!(data, "{what} {network} as {node}: {} on {interface}, {peers}.", addresses.join(", "))?;
    if !kept && daemon == Switch::On {
        let mut talk = io::stderr().lock();
        let _ = writeln!(talk, "Nothing keeps it current yet. Leave this running:\n\n  netclient daemon\n");
    }
    Ok(())
}

/// Whether a daemon runs; it looks for the new network at once.
fn looked_after(agent: &Agent) -> bool {
    matches!(daemon::ask(&agent.directory, &Question::Look), Ok(Some(Answer::Done(_))))
}

/// The token as it was typed, or from a file, or from standard input; checked before anything else happens.
fn read_token(typed: &str) -> Outcome<Token> {
    let text = match typed.strip_prefix('@') {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            zeroize::Zeroizing::new(read.map_err(|error| format!("cannot read the token from {path}: {error}"))?)
        }
        None if typed == "-" => {
            let mut text = zeroize::Zeroizing::new(String::new());
            io::stdin().lock().take(1 << 16).read_to_string(&mut text)?;
            text
        }
        None => zeroize::Zeroizing::new(typed.to_owned()),
    };
    text.parse().map_err(|why| format!("the token cannot be used: {why}; copy it again, whole").into())
}
