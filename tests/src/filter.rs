//! Packet filters of a test on a host of the lab: what passes is counted, or dropped.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Stdio;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
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

/// Counts from now on, from 0, what comes to a host by an interface: before anything else sees it, and, of
/// that, what is left for programs and for other hosts once every filter has been asked; only what matches, as
/// nft(8) writes it, if that is not empty.
pub fn watch(host: &Host, interface: &str, what: &str) {
    let chain = |hook: &str, priority: i32, counter: &str| {
        format!(
            "chain {hook} {{ type filter hook {hook} priority {priority};
                iifname {interface} {what} counter name {counter}
            }}"
        )
    };
    // Before fragments are put together (-400), and after every filter (0).
    let chains = [
        chain("prerouting", -450, "arrived"),
        chain("input", 400, "passed"),
        chain("forward", 400, "passed"),
    ];
    load(host, &format!("counter arrived {{}} \n counter passed {{}} \n {}", chains.join("\n")));
}

/// How many packets [`watch`] has counted: that came, and that passed.
pub fn watched(host: &Host) -> (u64, u64) {
    let [arrived, passed] = counters(host, "packets", ["arrived", "passed"]);
    (arrived, passed)
}

fn counted(host: &Host, what: &str) -> [u64; 3] {
    counters(host, what, ["by_tcp", "by_tunnel", "by_other"])
}

fn counters<const N: usize>(host: &Host, what: &str, names: [&str; N]) -> [u64; N] {
    let listed: serde_json::Value =
        serde_json::from_str(&nft(host, &["-j", "list", "counters", "table", "inet", "test"], ""))
            .expect("a document");
    names.map(|name| {
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

/// Forgets every connection that a host's kernel tracks, as `conntrack -F` does.
///
/// # Panics
///
/// When the kernel refuses.
pub fn forget_connections(host: &Host) {
    // A request IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK that names no connection, to be acknowledged.
    let mut request = Vec::new();
    request.extend(20u32.to_ne_bytes());
    request.extend(0x0102u16.to_ne_bytes());
    request.extend(5u16.to_ne_bytes());
    request.extend([0; 12]);
    let answer = host.within(|| {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .expect("a socket");
        let descriptor = socket.as_raw_fd();
        let kernel = NetlinkAddr::new(0, 0);
        sendto(descriptor, &request, &kernel, MsgFlags::empty()).expect("it is sent");
        let mut answer = [0; 64];
        recv(descriptor, &mut answer, MsgFlags::empty()).expect("an answer");
        answer
    });
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    assert_eq!(error, 0, "connections are forgotten");
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

/// Runs nft on a host, with this on its standard input; returns what it printed.
///
/// # Panics
///
/// When it fails.
pub fn nft(host: &Host, arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut command = host.command("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("nftables is installed");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it listens");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    text_of(&output.stdout)
}
