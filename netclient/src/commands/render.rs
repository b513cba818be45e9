//! What commands print about networks.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use schema::api::Control;
use schema::scalars::NetworkName;
use schema::text;
use serde_json::json;

use super::{Outcome, json as print_json};
use crate::agent::{NetworkStatus, PeerStatus, RegistrationStatus, Status};
use crate::args::Form;

const NONE: &str = "This host is not in a network. Join one with: netclient join -t TOKEN";

const NO_DAEMON: &str = "No daemon runs, so nothing keeps this host up to date: peers that join or move are not known. Start it: netclient daemon";

pub(super) fn done(form: Form, network: &NetworkName, what: &str) -> Outcome {
    if form.json {
        return print_json(&json!({ "network": network, "done": what }));
    }
    Ok(writeln!(io::stdout().lock(), "{network}: {what}.")?)
}

pub(super) fn list(form: Form, status: &Status) -> Outcome {
    if form.json {
        return print_json(status);
    }
    for damaged in &status.damaged {
        writeln!(io::stdout().lock(), "{}: {}", damaged.name, damaged.error)?;
    }
    if status.networks.is_empty() {
        let nothing =
            if status.damaged.is_empty() { writeln!(io::stdout().lock(), "{NONE}") } else { Ok(()) };
        return Ok(nothing?);
    }
    let mut table = table(&["NETWORK", "NODE", "INTERFACE", "ADDRESSES", "PEERS", "CONTROL", "REVISION"]);
    for network in &status.networks {
        table.add_row([
            network.name.to_string(),
            network.node.to_string(),
            interface(network),
            joined(&network.addresses),
            network.peers.len().to_string(),
            transport(network.control).into(),
            network.revision.to_string(),
        ]);
    }
    let mut data = io::stdout().lock();
    Ok(lines(&table).try_for_each(|line| writeln!(data, "{line}"))?)
}

pub(super) fn status(form: Form, status: &Status) -> Outcome {
    if form.json {
        return print_json(status);
    }
    let mut data = io::stdout().lock();
    for damaged in &status.damaged {
        writeln!(data, "{}: {}", damaged.name, damaged.error)?;
    }
    if status.networks.is_empty() && status.damaged.is_empty() {
        writeln!(data, "{NONE}")?;
    }
    for registration in &status.registrations {
        writeln!(data, "{}", tunnel(registration, Timestamp::now()))?;
    }
    if !status.registrations.is_empty() && !status.networks.is_empty() {
        writeln!(data)?;
    }
    if !status.daemon && !status.networks.is_empty() {
        writeln!(data, "{NO_DAEMON}\n")?;
    }
    for (place, network) in status.networks.iter().enumerate() {
        if place > 0 {
            writeln!(data)?;
        }
        let NetworkStatus { name, node, addresses, revision, .. } = network;
        writeln!(data, "{name}: {node}, {}, on {}", joined(addresses), interface(network))?;
        writeln!(data, "  revision {revision}, control traffic by {}", transport(network.control))?;
        for problem in &network.problems {
            writeln!(data, "  problem: {} ({})", problem.message, problem.code)?;
        }
        if network.peers.is_empty() {
            writeln!(data, "  no peers yet")?;
            continue;
        }
        let mut table = table(&["PEER", "ALLOWED IPS", "ENDPOINT", "LAST HANDSHAKE"]);
        for PeerStatus { name, endpoint, allowed_ips, last_handshake, .. } in &network.peers {
            let at = endpoint.clone().unwrap_or_else(|| "unknown".into());
            table.add_row([
                name.to_string(),
                joined(allowed_ips),
                at,
                ago(*last_handshake, Timestamp::now()),
            ]);
        }
        lines(&table).try_for_each(|line| writeln!(data, "  {line}"))?;
    }
    Ok(())
}

/// The tunnel to a server, on a line.
fn tunnel(registration: &RegistrationStatus, now: Timestamp) -> String {
    let RegistrationStatus { endpoint, interface, up, address, last_handshake, expires } = registration;
    let down = if *up { "" } else { " (down)" };
    let heard = format!("last handshake {}", ago(*last_handshake, now));
    let ends =
        expires.map(|seconds| format!("; expires in {} min unless this host joins", seconds.div_ceil(60)));
    format!("registered at {endpoint}: {address} on {interface}{down}, {heard}{}", ends.unwrap_or_default())
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table
}

/// The lines of a table without the blanks that fill its last column.
fn lines(table: &Table) -> impl Iterator<Item = String> {
    table.lines().map(|line| line.trim_end().to_owned())
}

fn interface(network: &NetworkStatus) -> String {
    if network.up { network.interface.clone() } else { format!("{} (down)", network.interface) }
}

const fn transport(control: Control) -> &'static str {
    match control {
        Control::Tunnel => "tunnel",
        Control::Tls => "tls",
        Control::None => "none",
    }
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn ago(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or("never".into(), |time| text::ago(time, now))
}
