//! Packet filters of a test on a host of the lab: what passes is counted, or dropped.

use std::net::Ipv4Addr;
use std::process::Stdio;

use nmplan::lab::Host;

use crate::text_of;

/// The table, whose name no program of ours has.
const TABLE: &str = "inet test";

/// Counts from now on what goes between a host and another, at the cable: TCP, UDP with one port at either
/// end, and the rest.
pub fn count(host: &Host, other: Ipv4Addr, port: u16) {
    let rules = |side: &str, far: &str| {
        format!(
            "chain {side} {{ type filter hook {side} priority 100;
                ip {far} {other} meta l4proto tcp counter name by_tcp accept
                ip {far} {other} udp dport {port} counter name by_tunnel accept
                ip {far} {other} udp sport {port} counter name by_tunnel accept
                ip {far} {other} counter name by_other
            }}"
        )
    };
    let counters = "counter by_tcp {} \n counter by_tunnel {} \n counter by_other {}";
    let (send, hear) = (rules("output", "daddr"), rules("input", "saddr"));
    load(host, &format!("{counters}\n{send}\n{hear}"));
}

/// How many packets were counted: TCP, of the port, others.
pub fn packets(host: &Host) -> (u64, u64, u64) {
    let [tcp, tunnel, other] = counted(host, "packets");
    (tcp, tunnel, other)
}

/// How many bytes of IP were counted, of all kinds together.
pub fn bytes(host: &Host) -> u64 {
    counted(host, "bytes").iter().sum()
}

fn counted(host: &Host, what: &str) -> [u64; 3] {
    let listed: serde_json::Value =
        serde_json::from_str(&nft(host, &["-j", "list", "counters", "table", "inet", "test"], ""))
            .expect("a document");
    ["by_tcp", "by_tunnel", "by_other"].map(|name| {
        let all = listed["nftables"].as_array().into_iter().flatten();
        let found = all.map(|it| &it["counter"]).find(|counter| counter["name"] == name);
        found.and_then(|counter| counter[what].as_u64()).expect("a counter")
    })
}

/// Drops UDP to and from a port of a host from now on.
pub fn drop_udp(host: &Host, port: u16) {
    let drop = |side: &str, end: &str| {
        format!("chain {side} {{ type filter hook {side} priority 0; udp {end} {port} drop; }}")
    };
    load(host, &[drop("input", "dport"), drop("output", "sport")].join("\n"));
}

/// Takes the filter away.
pub fn forget(host: &Host) {
    nft(host, &["delete", "table", "inet", "test"], "");
}

fn load(host: &Host, chains: &str) {
    nft(
        host,
        &["-f", "-"],
        &format!("table {TABLE} {{}}\ndelete table {TABLE}\ntable {TABLE} {{\n{chains}\n}}\n"),
    );
}

fn nft(host: &Host, arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut command = host.command("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("nftables is installed");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it listens");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    text_of(&output.stdout)
}
