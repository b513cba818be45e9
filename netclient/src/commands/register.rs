//! `netclient register`.

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::{Outcome, json as print_json, looked_after, open, read_token};
use crate::agent::Registered;
use crate::args::Register;
use crate::comms;

pub(super) async fn run(directory: &Path, register: Register) -> Outcome {
    let token = read_token(&register.shown)?;
    let agent = open(directory)?;
    let registered = agent.register(&token).await;
    if registered.is_err() {
        agent.directory.remove_if_empty();
    }
    let Registered { registration, new, answers } = registered?;
    // A running daemon uses the tunnel from now on.
    looked_after(&agent);
    let terms = &registration.terms;
    let interface = &registration.interface;
    let expires = registration
        .deadline
        .as_ref()
        .and_then(|deadline| deadline.left(&comms::now()))
        .map(|left| left.as_secs());
    if register.form.json {
        return print_json(&json!({
            "endpoint": terms.endpoint, "interface": interface, "address": terms.address, "answers": answers,
            "expires": expires, "new": new,
        }));
    }
    let mut data = io::stdout().lock();
    let what = if new { "Registered" } else { "Already registered" };
    writeln!(
        data,
        "{what}: {} on {interface}, the tunnel to the server at {}.",
        terms.address, terms.endpoint
    )?;
    let mut talk = io::stderr().lock();
    if !answers {
        let _ = writeln!(
            talk,
            "It does not answer yet: check that UDP to {} is not blocked. Until then control traffic uses TLS.",
            terms.endpoint
        );
    }
    if let Some(seconds) = expires {
        let minutes = seconds.div_ceil(60);
        let _ = writeln!(talk, "It expires in {minutes} min unless this host joins: netclient join -t TOKEN");
    }
    Ok(())
}
