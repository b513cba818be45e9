//! What commands print about networks.

use std::collections::BTreeSet;
use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use schema::api::Control;
use schema::scalars::NetworkName;
use schema::text;
use serde_json::json;

use super::{Outcome, json as print_json};
use crate::agent::{
    NamesStatus, NetworkStatus, PeerStatus, ReachStatus, RegistrationStatus, Status, WaitingStatus, not_ours,
};
use crate::args::Form;

const NONE: &str = "This host is not in a network. Join one with: netclient join -t TOKEN";

const NOBODY_ASKS: &str =
    "No daemon runs, so nothing asks whether this host is let in. Start it: netclient daemon";

const NO_DAEMON: &str = "No daemon runs, so nothing keeps this host up to date: peers that join or move are not known. Start it: netclient daemon";

pub(super) fn done(form: Form, network: &NetworkName, what: &str) -> Outcome {
    if form.json {
        return print_json(&json!({ "network": network, "done": what }));
    }
    Ok(writeln!(io::stdout().lock(), "{network}: {what}.")?)
}

/// What became of leaving a network, of which these interfaces may be left.
pub(super) fn left(form: Form, network: &NetworkName, interfaces: &BTreeSet<String>) -> Outcome {
    if interfaces.is_empty() {
        return done(form, network, "left; everything of it was removed");
    }
    if form.json {
        return print_json(&json!({ "network": network, "done": "left", "kept": interfaces }));
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{network}: left.")?;
    for interface in interfaces {
        writeln!(stdout, "The interface {interface} stays: {}", not_ours(interface))?;
    }
    Ok(())
}

pub(super) fn list(form: Form, status: &Status) -> Outcome {
    if form.json {
        return print_json(status);
    }
    for damaged in &status.damaged {
        writeln!(io::stdout().lock(), "{}: {}", damaged.name, damaged.error)?;
    }
    let now = Timestamp::now();
    for waiting in &status.waiting {
        writeln!(io::stdout().lock(), "{}", waiting_line(waiting, now))?;
    }
    if status.networks.is_empty() {
        let known = !status.damaged.is_empty() || !status.waiting.is_empty();
        return Ok(if known { Ok(()) } else { writeln!(io::stdout().lock(), "{NONE}") }?);
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
    Ok(io::stdout().lock().write_all(status_text(status, Timestamp::now()).as_bytes())?)
}

/// The status for people.
fn status_text(status: &Status, now: Timestamp) -> String {
    let mut text: Vec<String> = Vec::new();
    text.extend(status.damaged.iter().map(|damaged| format!("{}: {}", damaged.name, damaged.error)));
    if status.networks.is_empty() && status.damaged.is_empty() && status.waiting.is_empty() {
        text.push(NONE.to_owned());
    }
    text.extend(status.registrations.iter().map(|registration| tunnel(registration, now)));
    if !status.registrations.is_empty() && !status.networks.is_empty() {
        text.push(String::new());
    }
    if !status.daemon && !status.networks.is_empty() {
        text.extend([NO_DAEMON.to_owned(), String::new()]);
    }
    let asks = status.waiting.iter().any(|waiting| waiting.until.is_some());
    if !status.daemon && status.networks.is_empty() && asks {
        text.extend([NOBODY_ASKS.to_owned(), String::new()]);
    }
    for (place, network) in status.waiting.iter().enumerate() {
        if place > 0 {
            text.push(String::new());
        }
        text.extend(waiting(network, now).lines().map(str::to_owned));
    }
    if !status.waiting.is_empty() && !status.networks.is_empty() {
        text.push(String::new());
    }
    for (place, network) in status.networks.iter().enumerate() {
        if place > 0 {
            text.push(String::new());
        }
        text.extend(network_lines(network, now));
    }
    text.into_iter().map(|line| line + "\n").collect()
}

/// A network that the host waits for, on a line.
fn waiting_line(waiting: &WaitingStatus, now: Timestamp) -> String {
    let WaitingStatus { name, node, since, until, server, pin, fingerprint: _ } = waiting;
    match until {
        Some(_) => {
            format!("{name}: waits as {node} until somebody lets it in; asked {}", text::ago(*since, now))
        }
        None => format!(
            "{name}: does not wait any more: nobody let it in as {node} in time, or somebody dropped it\n  \
             ask again    netclient join --server {server} --pin {pin} -n {name}\n  \
             give it up   netclient leave -n {name}"
        ),
    }
}

/// What a host waits for, and who can let it in.
pub(super) fn waiting(waiting: &WaitingStatus, now: Timestamp) -> String {
    let WaitingStatus { name, node, server, fingerprint, until, since: _, pin: _ } = waiting;
    let line = waiting_line(waiting, now);
    let Some(until) = until else { return line + "\n" };
    format!(
        "{line}\n  server       {server}\n  fingerprint  {fingerprint}\n  waits until  {}\n  \
         let in by    nmplan node approve {name}/{node} --identity {fingerprint}\n  or in files  node \"{node}\" approved=\"{fingerprint}\"\n",
        text::moment(*until)
    )
}

fn network_lines(network: &NetworkStatus, now: Timestamp) -> Vec<String> {
    let NetworkStatus { name, node, addresses, ranges, revision, device, .. } = network;
    let mut text = vec![
        format!("{name}: {node}, {}, on {}", joined(addresses), interface(network)),
        format!("  ranges {}", joined(ranges)),
        format!("  device {}", device.map_or_else(|| "none".to_owned(), |kind| kind.to_string())),
        format!("  revision {revision}, {}", control(network.control)),
    ];
    if !network.refused.is_empty() {
        text.push(format!(
            "  refused, as nobody carries it or it is not for this node: {}",
            joined(&network.refused)
        ));
    }
    match &network.names {
        NamesStatus::SystemdResolved(servers) => {
            text.push(format!("  names *.{name} by systemd-resolved, which asks {}", joined(servers)))
        }
        NamesStatus::Hosts => text.push(format!("  names *.{name} in /etc/hosts")),
        NamesStatus::None => {}
    }
    let aliases = network.aliases.iter().map(|(alias, of)| {
        format!("  {alias}.{name} is an alias of {of}, which /etc/hosts cannot hold: it needs a name server")
    });
    text.extend(aliases);
    text.extend(network.forwards.iter().map(|forward| {
        let by = forward.interface.as_ref().map(|interface| format!(" by {interface}"));
        let nat = if forward.nat { ", with its own address as the source" } else { "" };
        format!(
            "  forwards to {}{}{nat} ({})",
            joined(&forward.ranges),
            by.unwrap_or_default(),
            forward.egress
        )
    }));
    let problems = network.problems.iter();
    text.extend(problems.map(|problem| format!("  problem: {} ({})", problem.message, problem.code)));
    if network.peers.is_empty() {
        text.push("  no peers yet".to_owned());
        return text;
    }
    let mut table = table(&["PEER", "ALLOWED IPS", "ENDPOINT", "LAST HANDSHAKE"]);
    for PeerStatus { name, endpoint, allowed_ips, last_handshake, .. } in &network.peers {
        let at = endpoint.clone().unwrap_or_else(|| "unknown".into());
        table.add_row([name.to_string(), joined(allowed_ips), at, ago(*last_handshake, now)]);
    }
    text.extend(lines(&table).map(|line| format!("  {line}")));
    if !network.reaches.is_empty() {
        text.push(String::new());
        text.extend(lines(&reaches(&network.reaches)).map(|line| format!("  {line}")));
    }
    text
}

/// What has no tunnel of its own, and who carries it.
fn reaches(all: &[ReachStatus]) -> Table {
    let mut table = table(&["REACHES", "ADDRESSES", "VIA"]);
    for ReachStatus { name, ranges, via, carried } in all {
        let name = name.as_ref().map_or_else(|| "a range".to_owned(), ToString::to_string);
        let others = if *carried { " (for nodes that it carries)" } else { "" };
        table.add_row([name, joined(ranges), format!("{via}{others}")]);
    }
    table
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

/// How control traffic goes, in words.
const fn control(control: Control) -> &'static str {
    match control {
        Control::Tunnel => "control traffic by tunnel",
        Control::Tls => "control traffic by tls",
        Control::None => "no control traffic",
    }
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn ago(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or("never".into(), |time| text::ago(time, now))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use schema::inventory::NodeProblem;
    use schema::snapshot::Revision;

    use super::*;
    use crate::agent::{DamagedNetwork, ForwardStatus};
    use crate::device::Kind;

    fn network() -> NetworkStatus {
        NetworkStatus {
            name: "corp".parse().expect("good"),
            node: "a".parse().expect("good"),
            interface: "nm-corp".into(),
            up: true,
            device: Some(Kind::Kernel),
            epoch: 1,
            revision: Revision(7),
            control: Control::None,
            problems: vec![NodeProblem::new(NodeProblem::NAMES, "the file of names is read-only")],
            addresses: ["10.40.0.1", "fd40::1"].map(|address| address.parse().expect("good")).into(),
            ranges: ["10.40.0.0/24", "fd40::/64"].map(|range| range.parse().expect("good")).into(),
            refused: BTreeSet::new(),
            names: NamesStatus::Hosts,
            aliases: BTreeMap::new(),
            forwards: Vec::new(),
            peers: Vec::new(),
            reaches: Vec::new(),
        }
    }

    #[test]
    fn what_nobody_carries_and_what_the_node_forwards_to_is_shown() {
        let range = |text: &str| text.parse().expect("good");
        let forward = ForwardStatus {
            egress: "lab".parse().expect("good"),
            ranges: ["192.168.50.0/24", "fd50::/64"].map(range).into(),
            interface: "eth1".parse().ok(),
            nat: true,
        };
        let network = NetworkStatus {
            refused: ["192.168.10.0/24", "::/0"].map(range).into(),
            aliases: [("www".parse().expect("good"), "example.net".parse().expect("good"))].into(),
            forwards: vec![forward],
            problems: Vec::new(),
            ..network()
        };
        let lines = network_lines(&network, Timestamp::UNIX_EPOCH);
        assert_eq!(
            lines[4..8],
            [
                "  refused, as nobody carries it or it is not for this node: 192.168.10.0/24, ::/0",
                "  names *.corp in /etc/hosts",
                "  www.corp is an alias of example.net, which /etc/hosts cannot hold: it needs a name server",
                "  forwards to 192.168.50.0/24, fd50::/64 by eth1, with its own address as the source (lab)",
            ]
        );
    }

    #[test]
    fn what_others_carry_is_listed_below_the_peers_with_who_carries_it() {
        let mut network = network();
        let hub = PeerStatus {
            name: "hub".parse().expect("good"),
            public_key: schema::scalars::WireGuardKey([1; 32]),
            endpoint: None,
            allowed_ips: ["10.40.0.9/32"].map(|range| range.parse().expect("good")).into(),
            last_handshake: None,
        };
        network.peers.push(hub);
        let reach = |name: Option<&str>, range: &str| ReachStatus {
            name: name.map(|name| name.parse().expect("good")),
            ranges: [range.parse().expect("good")].into(),
            via: "hub".parse().expect("good"),
            carried: name.is_none(),
        };
        network.reaches = vec![reach(Some("b"), "10.40.0.2/32"), reach(None, "192.168.7.0/24")];
        let text = network_lines(&network, Timestamp::UNIX_EPOCH).join("\n");
        let below = text.split_once("hub").expect("it is a peer").1.split_once("\n").expect("more lines").1;
        assert_eq!(
            below,
            "\n  REACHES  ADDRESSES       VIA\n  b        10.40.0.2/32    hub\n  a range  192.168.7.0/24  hub (for nodes that it carries)"
        );
    }

    #[test]
    fn where_nothing_keeps_a_host_current_the_status_says_so_and_what_to_type() {
        let mut status = Status { networks: vec![network()], ..Status::default() };
        let text = status_text(&status, Timestamp::UNIX_EPOCH);
        assert_eq!(
            text,
            "No daemon runs, so nothing keeps this host up to date: peers that join or move are not known. Start it: \
             netclient daemon\n\n\
             corp: a, 10.40.0.1, fd40::1, on nm-corp\n  ranges 10.40.0.0/24, fd40::/64\n  device kernel\n  \
             revision 7, no control traffic\n  names *.corp in /etc/hosts\n  \
             problem: the file of names is read-only (names)\n  no peers yet\n"
        );
        status.daemon = true;
        assert!(!status_text(&status, Timestamp::UNIX_EPOCH).contains("daemon"));
        assert!(!status_text(&Status::default(), Timestamp::UNIX_EPOCH).contains("daemon"));
    }

    #[test]
    fn a_host_that_waits_says_what_for_and_who_can_let_it_in() {
        let fingerprint = schema::scalars::Identity([1; 32]).fingerprint();
        let now = Timestamp::UNIX_EPOCH;
        let waits = WaitingStatus {
            name: "corp".parse().expect("good"),
            node: "web".parse().expect("good"),
            server: "nm.example.net:50051".into(),
            pin: fingerprint,
            fingerprint,
            since: now,
            until: Some("1970-01-02T00:00:00Z".parse().expect("a time")),
        };
        let mut status = Status { waiting: vec![waits.clone()], ..Status::default() };
        let text = status_text(&status, now);
        for part in [
            NOBODY_ASKS,
            "corp: waits as web until somebody lets it in",
            "server       nm.example.net:50051",
            &format!("fingerprint  {fingerprint}\n"),
            &format!("nmplan node approve corp/web --identity {fingerprint}\n"),
            &format!("node \"web\" approved=\"{fingerprint}\""),
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains(NONE));
        status.daemon = true;
        assert!(!status_text(&status, now).contains(NOBODY_ASKS));
        let dropped = Status { waiting: vec![WaitingStatus { until: None, ..waits }], ..Status::default() };
        let text = status_text(&dropped, now);
        assert!(
            text.starts_with("corp: does not wait any more") && text.contains("netclient leave -n corp"),
            "{text}"
        );
        assert!(!text.contains(NOBODY_ASKS));
    }

    #[test]
    fn a_network_whose_state_is_damaged_is_not_no_network() {
        let damaged =
            DamagedNetwork { name: "corp".parse().expect("good"), error: "x.json is damaged".into() };
        let status = Status { damaged: vec![damaged], ..Status::default() };
        assert_eq!(status_text(&status, Timestamp::UNIX_EPOCH), "corp: x.json is damaged\n");
        let none = status_text(&Status::default(), Timestamp::UNIX_EPOCH);
        assert!(none.contains("not in a network") && none.contains("netclient join"), "{none}");
    }
}
