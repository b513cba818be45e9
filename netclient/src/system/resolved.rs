//! systemd-resolved: which name servers are asked for the names of a network, and of no other.
//!
//! Name servers and names belong to the network's interface, and resolved forgets them with it: whoever removes
//! the interface has nothing to put back. Everything is said by resolvectl(1), which blocks the caller.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use schema::scalars::NetworkName;
use schema::view::View;

/// Where resolved can be asked, while it runs (systemd-resolved.service(8)).
const SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve";
/// Where resolved listens for those that read `/etc/resolv.conf`.
const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];

/// How long resolvectl may take: resolved answers it in milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a name server may take to answer.
const ANSWER: Duration = Duration::from_millis(500);

/// What resolved is to know of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolvers {
    /// The name servers; none: nobody is asked.
    pub servers: BTreeSet<IpAddr>,
    /// The network whose names they are asked for.
    pub network: NetworkName,
}

impl Resolvers {
    /// Returns the name servers of a View that the node reaches through the network: resolved asks those of an
    /// interface by that interface alone (IP_UNICAST_IF of ip(7)).
    pub fn of(view: &View) -> Self {
        let reached = |server: &&IpAddr| view.reaches(**server);
        let servers = view.interface.resolvers.iter().filter(reached).copied().collect();
        Self { servers, network: view.network.clone() }
    }

    /// Whether nobody is asked.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Whether one of the name servers answers. Blocks the caller for as long as each may take.
    pub fn answer(&self) -> bool {
        self.servers.iter().any(|server| answers(*server, &self.network))
    }
}

/// Why resolved does not know the name servers.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    /// resolvectl could not be run.
    #[error("cannot run resolvectl, so the names of the network are in /etc/hosts")]
    Broken(#[source] io::Error),
    /// None of the name servers answers.
    #[error("no name server answers for the names of {network}, which are in /etc/hosts meanwhile")]
    Silent {
        /// The network.
        network: NetworkName,
    },
    /// resolved refused.
    #[error(
        "systemd-resolved takes no name servers for {interface}, so the names of the network are in /etc/hosts: {reason}"
    )]
    Refused {
        /// The interface.
        interface: String,
        /// The first line that resolvectl printed.
        reason: String,
    },
}

impl ResolvedError {
    /// As a resolved answers that has just been stopped.
    pub(crate) fn stopped(interface: &str) -> Self {
        let reason = "Unit dbus-org.freedesktop.resolve1.service not found.".to_owned();
        Self::Refused { interface: interface.to_owned(), reason }
    }
}

/// Whether programs of this host ask resolved, and it knows this host's interfaces: not those of another
/// network namespace than the first process's.
pub fn is_asked() -> bool {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    Path::new(SOCKET).exists()
        && namespace("self").is_some_and(|own| namespace("1") == Some(own))
        && leads_to_resolved(&read("/etc/resolv.conf"), &read("/etc/nsswitch.conf"))
}

/// Whether programs are led to resolved: by resolv.conf(5), or by nss-resolve(8) in nsswitch.conf(5).
fn leads_to_resolved(resolv_conf: &str, nsswitch: &str) -> bool {
    let mut words = resolv_conf.lines().map(|line| line.split_whitespace());
    let by_stub = words.any(|mut line| {
        line.next() == Some("nameserver") && line.next().is_some_and(|address| STUBS.contains(&address))
    });
    let mut words =
        nsswitch.lines().map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    by_stub || words.any(|mut line| line.next() == Some("hosts:") && line.any(|word| word == "resolve"))
}

/// Has resolved ask these name servers for the names of a network, on its interface; twice is as once.
pub fn set(interface: &str, Resolvers { servers, network }: &Resolvers) -> Result<(), ResolvedError> {
    let servers = servers.iter().map(ToString::to_string);
    let servers: Vec<String> = ["dns".to_owned(), interface.to_owned()].into_iter().chain(servers).collect();
    resolvectl(interface, servers)?;
    // `~`: other names are not asked of them, and no name is completed by it.
    resolvectl(interface, ["domain", interface, &format!("~{network}")])?;
    resolvectl(interface, ["default-route", interface, "false"])?;
    for multicast in ["llmnr", "mdns"] {
        resolvectl(interface, [multicast, interface, "no"])?;
    }
    // Nobody signs the names of a network, and CoreDNS answers by UDP and TCP, whatever holds for others.
    resolvectl(interface, ["dnssec", interface, "no"])?;
    resolvectl(interface, ["dnsovertls", interface, "no"])
}

/// Has resolved ask nobody on an interface.
pub fn revert(interface: &str) -> Result<(), ResolvedError> {
    resolvectl(interface, ["revert", interface])
}

/// The same where it asks for the names of the network, as an earlier process has had it do; what others set stays,
/// and a resolved that cannot be asked keeps nothing else from working.
pub fn revert_ours(interface: &str, network: &NetworkName) {
    if asks_for(interface, network)
        && let Err(error) = revert(interface)
    {
        tracing::debug!(
            interface,
            error = crate::errors::error_chain(&error),
            "name servers of an earlier process stay"
        );
    }
}

/// Whether resolved asks name servers for the names of a network, on its interface.
pub fn asks_for(interface: &str, network: &NetworkName) -> bool {
    let domain = format!("~{network}");
    known(interface).is_some_and(|known| known.split_whitespace().any(|word| word == domain))
}

/// What resolved knows of an interface, to be compared with what it knows later; absent: it cannot be asked.
pub fn known(interface: &str) -> Option<String> {
    let output = run(["status", interface]).ok().filter(|output| output.status.success())?;
    Some(without_current(&String::from_utf8_lossy(&output.stdout)))
}

/// Which of the servers is asked at present changes by itself.
fn without_current(status: &str) -> String {
    status.lines().filter(|line| !line.trim_start().starts_with("Current ")).collect::<Vec<_>>().join("\n")
}

fn resolvectl<S: AsRef<OsStr>>(
    interface: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<(), ResolvedError> {
    let output = run(arguments).map_err(ResolvedError::Broken)?;
    if output.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&output.stderr);
    let reason = printed.lines().next().unwrap_or("it gave no reason").to_owned();
    Err(ResolvedError::Refused { interface: interface.to_owned(), reason })
}

fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> io::Result<Output> {
    let mut command = Command::new("resolvectl");
    command.args(arguments).env("LC_ALL", "C").env("SYSTEMD_COLORS", "0");
    output_within(PATIENCE, command)
}

/// Runs a program to its end, and ends one that takes longer. What it prints fits into a pipe (64 KiB).
fn output_within(limit: Duration, mut command: Command) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output()
}

/// Whether a name server answers for a network: it is asked for the start of its zone (RFC 1035, section 4.1).
pub fn answers(server: IpAddr, network: &NetworkName) -> bool {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let ask = || -> io::Result<bool> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(ANSWER))?;
        let query = query(network);
        socket.send(&query)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        Ok(is_answer(&query, &answer[..length]))
    };
    ask().unwrap_or(false)
}

/// The question for the SOA record of a network.
fn query(network: &NetworkName) -> Vec<u8> {
    // The socket is connected, so the number need not be a secret.
    let mut query = vec![0x6e, 0x6d, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let label = network.as_str().as_bytes();
    query.push(u8::try_from(label.len()).expect("a name of a network has at most 12 characters"));
    query.extend(label);
    query.extend([0, 0, 6, 0, 1]);
    query
}

/// Whether it is an answer that has the record: its number, the code NOERROR, and an answer in it.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    let [one, other, flags, code, _, _, many, few, ..] = answer else { return false };
    [*one, *other] == query[..2] && flags >> 7 == 1 && code & 15 == 0 && (*many, *few) != (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_led_to_resolved_by_its_stub_or_by_nsswitch() {
        let debian = "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n";
        for (resolv_conf, nsswitch, led) in [
            ("# resolved\nnameserver 127.0.0.53\noptions edns0\n", "hosts: files dns\n", true),
            ("nameserver\t127.0.0.54\n", "", true),
            ("nameserver 192.0.2.1\n", debian, true),
            ("nameserver 192.0.2.1\n", "hosts: files dns # resolve\n", false),
            ("# nameserver 127.0.0.53\nnameserver 127.0.0.1\n", "networks: resolve\n", false),
            ("search 127.0.0.53\n", "", false),
            ("", "", false),
        ] {
            assert_eq!(leads_to_resolved(resolv_conf, nsswitch), led, "{resolv_conf}{nsswitch}");
        }
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let command = |words: [&str; 2]| {
            let mut command = Command::new(words[0]);
            command.arg(words[1]);
            command
        };
        let printed = output_within(PATIENCE, command(["echo", "it"])).expect("it runs");
        assert_eq!(printed.stdout, b"it\n");
        let error =
            output_within(Duration::from_millis(50), command(["sleep", "1000"])).expect_err("it hangs");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_answer_has_the_number_of_the_question_and_the_record() {
        let query = query(&"corp".parse().expect("good"));
        assert_eq!(query[12..], *b"\x04corp\0\0\x06\0\x01");
        let answer = |flags: [u8; 2], found| [&query[..2], &flags, &[0, 1, 0, found], &query[8..]].concat();
        assert!(is_answer(&query, &answer([0x85, 0x80], 1)));
        for (wrong, why) in [
            (query.clone(), "the question"),
            (answer([0x85, 0x80], 0), "no record"),
            (answer([0x85, 0x83], 1), "NXDOMAIN"),
            (answer([0x81, 0x85], 1), "REFUSED"),
            ([b"xy", &answer([0x85, 0x80], 1)[2..]].concat(), "another number"),
            (vec![0x6e, 0x6d, 0x85], "cut"),
        ] {
            assert!(!is_answer(&query, &wrong), "{why}");
        }
    }

    #[test]
    fn what_changes_by_itself_is_no_difference() {
        let status = |server: &str| {
            format!(
                "Link 3 (nm-corp)\nCurrent Scopes: DNS\nCurrent DNS Server: {server}\n  DNS Domain: ~corp\n"
            )
        };
        assert_eq!(without_current(&status("10.0.0.1")), without_current(&status("10.0.0.2")));
        assert!(without_current(&status("10.0.0.1")).contains("~corp"));
    }
}
