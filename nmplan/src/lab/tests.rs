//! The lab on its own: two hosts, many hosts, and what is left after processes are killed.
//!
//! ```text
//! a ==== router ==== b
//! ```

#![expect(clippy::print_stdout, reason = "figures, and lines that one process of a test reads from another")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn in_runtime<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(test)
}

/// The full name of a test in this file.
fn named(test: &str) -> String {
    let crate_and_path = format!("{}::{test}", module_path!());
    crate_and_path.split_once("::").expect("a path has a crate").1.to_owned()
}

fn enter(test: &str) -> bool {
    enter_test(&named(test))
}

/// What this computer shows of interfaces and mounts, and the content of the files that a lab has its own of.
#[derive(Debug, PartialEq)]
struct SystemState {
    interfaces: BTreeSet<String>,
    mounts: String,
    files: Vec<(&'static str, String)>,
}

impl SystemState {
    fn read() -> Self {
        let list = |path| std::fs::read_dir(path).expect("a directory").flatten();
        let names = |path| list(path).map(|entry| entry.file_name().to_string_lossy().into_owned());
        Self {
            interfaces: names("/sys/class/net").collect(),
            mounts: std::fs::read_to_string("/proc/self/mounts").expect("the mounts"),
            files: ["/etc/hosts", "/etc/resolv.conf", "/proc/sys/net/ipv4/ip_forward"]
                .map(|path| (path, std::fs::read_to_string(path).unwrap_or_default()))
                .to_vec(),
        }
    }
}

/// The processes whose command line contains `mark`.
fn processes_with(mark: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let marked = pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark)
    });
    marked.filter_map(Pid::from_raw).collect()
}

/// Polls until `holds`, for five seconds at most.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + 5 * SECOND;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether an address answers within a few seconds: the first packet on a fresh cable may be lost while
/// neighbours are looked up and IPv6 addresses are still tentative.
async fn answers(from: &Host, address: IpAddr) -> bool {
    let deadline = Instant::now() + 10 * SECOND;
    while Instant::now() < deadline {
        if from.ping(address, SECOND).await.expect("sockets").is_some() {
            return true;
        }
    }
    false
}

#[test]
fn two_hosts_ping_each_other() {
    if !enter("two_hosts_ping_each_other") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let a = underlay.host("a").await.expect("a host");
        let b = underlay.host("b").await.expect("a host");
        for (from, to) in [(&a, &b), (&b, &a), (&a, &a)] {
            for address in [to.ipv4().into(), to.ipv6().into()] {
                assert!(answers(from, address).await, "{} to {address}", from.name());
            }
        }
        let (v4, v6) = underlay.addresses();
        assert!(answers(&a, v4.into()).await && answers(&a, v6.into()).await);
        let nobody = "198.18.99.99".parse().expect("an address");
        assert_eq!(a.ping(nobody, SECOND / 10).await.expect("sockets"), None);

        let refused = underlay.host("a").await.expect_err("the name is taken");
        assert_eq!(refused.to_string(), "the lab already has a host `a`");
        assert!(matches!(underlay.host("../a").await, Err(Error::Name(_))));
    });
}

#[test]
fn a_pulled_cable_is_a_gap_and_heals() {
    if !enter("a_pulled_cable_is_a_gap_and_heals") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let a = underlay.host("a").await.expect("a host");
        let b = underlay.host("b").await.expect("a host");
        for address in [b.ipv4().into(), b.ipv6().into()] {
            let pinger = a.pinger(address, Duration::from_millis(20)).expect("sockets");
            while pinger.count().sent < 5 {
                tokio::task::yield_now().await;
            }
            assert_eq!(pinger.count().lost, 0);
            b.link_down().await.expect("link down");
            assert_eq!(a.ping(address, SECOND / 5).await.expect("sockets"), None);
            b.link_up().await.expect("link up");
            b.link_up().await.expect("link up twice");
            // The kernel reports a carrier a moment later, and what is sent until then is lost.
            let deadline = Instant::now() + 5 * SECOND;
            while a.ping(address, SECOND / 5).await.expect("sockets").is_none() {
                assert!(Instant::now() < deadline, "never healed: {address}");
            }
            let sent = pinger.count().sent;
            while pinger.count().sent < sent + 2 {
                tokio::task::yield_now().await;
            }
            let count = pinger.stop().await;
            assert!(count.longest_gap >= SECOND / 5, "{count:?}");
            assert!(count.lost >= 5 && count.lost < count.sent, "{count:?}");
        }
    });
}

#[test]
fn a_host_has_files_and_a_name_of_its_own() {
    let before = SystemState::read();
    if !enter("a_host_has_files_and_a_name_of_its_own") {
        assert_eq!(SystemState::read(), before);
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let a = underlay.host("a").await.expect("a host");
        let b = underlay.host("b").await.expect("a host");
        assert_eq!(a.read("/etc/hosts").expect("hosts").lines().next(), Some("127.0.0.1\tlocalhost"));
        for path in ["/etc/hosts", "/etc/resolv.conf", "/etc/netclient/key", "/etc/new", "/run/new"] {
            a.write(path, "10.0.0.1 x\n").expect(path);
            assert_eq!(a.read(path).expect(path), "10.0.0.1 x\n");
            assert!(!b.read(path).unwrap_or_default().contains("10.0.0.1"), "{path}");
            assert!(!std::fs::read_to_string(path).unwrap_or_default().contains("10.0.0.1"), "{path}");
        }
        a.within(|| std::fs::rename("/etc/new", "/etc/hosts")).expect("replaced");
        a.within(|| std::fs::remove_file("/etc/resolv.conf")).expect("removed");
        b.pin("/etc/hosts").expect("pinned");
        b.write("/etc/new", "").expect("written");
        let busy = b.within(|| std::fs::rename("/etc/new", "/etc/hosts")).expect_err("pinned");
        assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
        b.write("/etc/hosts", "in place").expect("written in place");

        for path in ["/var/tmp/nmplan-lab", "/tmp/nmplan-lab", "/usr/nmplan-lab"] {
            let refused = a.write(path, "").expect_err(path);
            assert!(matches!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem), "{path}: {refused}");
        }
        let shared = a.directory().join("shared");
        a.write(&shared, "seen by all").expect("the lab's directory is writable");
        assert_eq!(b.read(&shared).expect("shared"), "seen by all");
        assert_eq!(std::fs::read_to_string(&shared).expect("shared"), "seen by all");
        a.write("/proc/sys/net/ipv4/ip_forward", "1").expect("sysctl");
        assert_eq!(b.read("/proc/sys/net/ipv4/ip_forward").expect("sysctl"), "0\n");

        let mut command = a.command("sh");
        command.args(["-c", "cat /proc/sys/kernel/hostname; cat /proc/net/dev | cut -d: -f1 | tail -n +3"]);
        let output = a.run(command).await.expect("sh");
        let output = String::from_utf8(output.stdout).expect("text");
        assert_eq!(
            output.split_whitespace().collect::<BTreeSet<_>>(),
            ["a", "eth0", "lo"].into(),
            "{output}"
        );
    });
}

#[test]
fn processes_are_logged_stopped_and_killed_on_drop() {
    if !enter("processes_are_logged_stopped_and_killed_on_drop") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let a = underlay.host("a").await.expect("a host");
        let shell = |script: &str| {
            let mut command = a.command("sh");
            command.args(["-c", script]);
            command
        };
        let mut kind = a
            .start("kind", shell("trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.01; done"))
            .expect("started");
        let mut stubborn = a
            .start("stubborn", shell("trap '' TERM; echo hello; while :; do sleep 0.01; done"))
            .expect("started");
        eventually("both have begun", || kind.printed() == "hello\n" && stubborn.printed() == "hello\n");
        assert!(kind.is_running());
        assert_eq!(kind.stop(5 * SECOND).await.expect("stopped").code(), Some(3));
        assert_eq!(kind.printed(), "hello\nbye\n");
        assert_eq!(stubborn.stop(SECOND / 10).await.expect("stopped").signal(), Some(9));
        assert_eq!(stubborn.id(), None);
        stubborn.signal(Signal::TERM).expect("signalling the dead is harmless");

        let sleeper = a.start("sleeper", shell("exec sleep 1000")).expect("started");
        let orphan = a.run(shell("setsid sleep 1000 >/dev/null 2>&1 & echo $!")).await.expect("run");
        let orphan: u32 = String::from_utf8(orphan.stdout).expect("text").trim().parse().expect("a number");
        let pid = sleeper.id().expect("running");
        eventually("both run in the host", || {
            a.processes().contains(&pid) && a.processes().contains(&orphan)
        });
        drop(sleeper);
        eventually("a dropped process ends", || !a.processes().contains(&pid));
        drop(a);
        eventually("init reaps the host's orphans", || {
            !std::fs::exists(format!("/proc/{orphan}")).expect("/proc")
        });
        let interfaces = || std::fs::read_to_string("/proc/net/dev").expect("interfaces");
        eventually("the cable of a dropped host is gone", || !interfaces().contains("h2:"));
    });
}

#[test]
fn sixty_hosts_come_up_and_all_reach_all() {
    if !enter("sixty_hosts_come_up_and_all_reach_all") {
        return;
    }
    in_runtime(async {
        let begin = Instant::now();
        let underlay = Underlay::new().await.expect("an underlay");
        let mut hosts = Vec::new();
        for number in 0..60 {
            hosts.push(underlay.host(&format!("host-{number}")).await.expect("a host"));
        }
        println!("60 hosts in {:?}", begin.elapsed());
        assert!(begin.elapsed() < 10 * SECOND);
        let begin = Instant::now();
        let mut pings = Vec::new();
        for (from, to) in hosts.iter().flat_map(|from| hosts.iter().map(move |to| (from, to))) {
            let echo = from.ping(to.ipv4().into(), 5 * SECOND);
            let echo6 = from.ping(to.ipv6().into(), 5 * SECOND);
            pings.push(async {
                echo.await.expect("sockets").is_some() && echo6.await.expect("sockets").is_some()
            });
        }
        let mut set = futures_util::stream::FuturesUnordered::from_iter(pings);
        let mut answered = 0;
        while let Some(ok) = futures_util::StreamExt::next(&mut set).await {
            answered += usize::from(ok);
        }
        println!("{answered} pairs in {:?}", begin.elapsed());
        assert_eq!(answered, 3600);
    });
}

const LIMIT: Duration = Duration::from_millis(300);
const SERVICES: [Service; 3] = [Service::Tcp(80), Service::Udp(53), Service::Icmp];

fn both(host: &Host) -> [IpAddr; 2] {
    [host.ipv4().into(), host.ipv6().into()]
}

async fn nft(host: &Host, line: &str) {
    let mut command = host.command("nft");
    command.arg(line);
    let output = host.run(command).await.expect("nftables is installed");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_probe_tells_what_answers_from_what_is_dropped_and_what_is_refused() {
    if !enter("a_probe_tells_what_answers_from_what_is_dropped_and_what_is_refused") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let a = underlay.host("a").await.expect("a host");
        let b = underlay.host("b").await.expect("a host");
        for address in both(&b) {
            assert!(answers(&a, address).await);
        }
        let outcomes = async || {
            let probes = both(&b).map(|to| SERVICES.map(|service| Probe { to, service }));
            a.probe_all(probes.as_flattened(), LIMIT).await.expect("sockets")
        };
        let is_answered = |outcome: &Outcome| matches!(outcome, Outcome::Answered(_));
        let refused = [Outcome::Refused, Outcome::Refused];
        let seen = outcomes().await;
        assert!(seen[..2] == refused && is_answered(&seen[2]), "nothing listens: {seen:?}");
        let listeners = b.listen(&both(&b), SERVICES).expect("the ports are free");
        let taken = b.listen(&both(&b), [Service::Tcp(80)]).expect_err("the port is in use");
        assert_eq!(
            taken.to_string(),
            format!("the lab could not listen on tcp 80 at {} of the host `b`", b.ipv4())
        );
        assert!(b.listen(&[a.ipv4().into()], [Service::Udp(53)]).is_err(), "not its address");
        let seen = outcomes().await;
        assert!(seen.iter().all(is_answered), "{seen:?}");
        // One datagram of each family, unless it was tried twice.
        let datagrams = listeners.heard().into_iter().filter(|heard| heard.service == Service::Udp(53));
        assert!(datagrams.count() >= 2);

        // What the receiver drops, and what only its answers meet: that the question came is known.
        nft(&b, "add table inet test").await;
        nft(&b, "add chain inet test in { type filter hook input priority 0 ; policy drop ; }").await;
        let before = listeners.heard().len();
        assert_eq!(outcomes().await, [Outcome::Nothing; 6]);
        assert_eq!(listeners.heard().len(), before);
        nft(&b, "delete table inet test").await;
        nft(&b, "add table inet test").await;
        nft(&b, "add chain inet test out { type filter hook output priority 0 ; policy drop ; }").await;
        assert_eq!(outcomes().await, [Outcome::Nothing; 6]);
        assert!(listeners.heard().len() > before);
        nft(&b, "delete table inet test").await;
        // A sender that may send nothing, or has no way.
        nft(&a, "add table inet test").await;
        nft(&a, "add chain inet test out { type filter hook output priority 0 ; policy drop ; }").await;
        assert_eq!(outcomes().await, [Outcome::Nothing; 6]);
        nft(&a, "delete table inet test").await;
        // A filter that resets is no filter that lets nothing pass.
        nft(&b, "add table inet test").await;
        nft(&b, "add chain inet test in { type filter hook input priority 0 ; }").await;
        nft(&b, "add rule inet test in tcp dport 80 reject with tcp reset").await;
        assert_eq!(a.probe(b.ipv4().into(), SERVICES[0], LIMIT).await.expect("sockets"), Outcome::Refused);
        nft(&b, "delete table inet test").await;
        // Once closed, the ports are free at once.
        listeners.close().await;
        b.listen(&both(&b), SERVICES).expect("the ports are free").close().await;
    });
}

#[test]
fn twenty_hosts_probe_each_other_within_seconds() {
    if !enter("twenty_hosts_probe_each_other_within_seconds") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let (mut hosts, mut listeners) = (Vec::new(), Vec::new());
        for number in 0..20 {
            let host = underlay.host(&format!("host-{number}")).await.expect("a host");
            let everywhere = ["0.0.0.0", "::"].map(|any| any.parse().expect("an address"));
            listeners.push(host.listen(&everywhere, SERVICES).expect("the ports are free"));
            hosts.push(host);
        }
        for to in &hosts {
            assert!(answers(&hosts[0], to.ipv6().into()).await && answers(to, hosts[0].ipv6().into()).await);
        }
        // The last one drops everything, so that every probe of it takes as long as it may.
        let last = hosts.last().expect("there is one");
        nft(last, "add table inet test").await;
        nft(last, "add chain inet test in { type filter hook input priority 0 ; policy drop ; }").await;
        let begin = Instant::now();
        let probes: Vec<_> = hosts
            .iter()
            .flat_map(|to| both(to).map(|to| SERVICES.map(|service| Probe { to, service })))
            .flatten()
            .collect();
        let matrix = hosts[..19].iter().map(|from| from.probe_all(&probes, 10 * LIMIT));
        let outcomes = futures_util::future::try_join_all(matrix).await.expect("sockets");
        println!("{} probes in {:?}", 19 * probes.len(), begin.elapsed());
        assert!(begin.elapsed() < 10 * SECOND);
        for (from, outcomes) in outcomes.iter().enumerate() {
            for (probe, outcome) in probes.iter().zip(outcomes) {
                let allowed = !both(last).contains(&probe.to);
                assert!(outcome.agrees(allowed), "host-{from} {probe:?}: {outcome:?}");
            }
        }
    });
}

#[test]
fn a_flow_shows_what_a_change_stops_and_what_it_does_not_concern() {
    if !enter("a_flow_shows_what_a_change_stops_and_what_it_does_not_concern") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let a = underlay.host("a").await.expect("a host");
        let b = underlay.host("b").await.expect("a host");
        let services =
            [Service::Tcp(80), Service::Udp(53), Service::Icmp, Service::Tcp(81), Service::Udp(54)];
        // An address that was just set may be no one to listen at for a moment.
        for to in both(&b) {
            assert!(answers(&a, to).await);
        }
        let _listeners = b.listen(&both(&b), services).expect("the ports are free");
        let (mut stopped, mut others) = (Vec::new(), Vec::new());
        for to in both(&b) {
            for (service, pattern) in [
                (Service::Tcp(80), Pattern::Asked),
                (Service::Udp(53), Pattern::Asked),
                (Service::Icmp, Pattern::Asked),
                (Service::Tcp(80), Pattern::Pushed),
                (Service::Udp(53), Pattern::Pushed),
            ] {
                stopped.push(a.flow(to, service, pattern, SECOND).await.expect("it begins"));
            }
            for (service, pattern) in [
                (Service::Tcp(81), Pattern::Asked),
                (Service::Tcp(81), Pattern::Pushed),
                (Service::Udp(54), Pattern::Asked),
                (Service::Udp(54), Pattern::Pushed),
            ] {
                others.push(a.flow(to, service, pattern, SECOND).await.expect("it begins"));
            }
        }
        tokio::time::sleep(SECOND / 2).await;
        let change = tokio::time::Instant::now();
        for line in [
            "add table inet test",
            "add chain inet test in { type filter hook input priority 0 ; }",
            "add chain inet test out { type filter hook output priority 0 ; }",
            "add rule inet test in meta l4proto { icmp, icmpv6 } drop",
            "add rule inet test out tcp sport 80 drop",
            "add rule inet test out udp sport 53 drop",
        ] {
            nft(&b, line).await;
        }
        tokio::time::sleep(SECOND).await;
        let end = tokio::time::Instant::now();
        tokio::time::sleep(SECOND / 2).await;
        for flow in &stopped {
            let timeline = flow.timeline();
            assert!(timeline.last_heard().is_some_and(|at| at > change - SECOND / 5), "{timeline}");
            assert!(timeline.last_heard().is_some_and(|at| at < end), "{timeline}");
            assert!(timeline.lost_between(change, end, SECOND / 5) > 10, "{timeline}");
        }
        for flow in &others {
            let timeline = flow.timeline();
            assert_eq!(timeline.lost_between(change, end, SECOND / 5), 0, "{timeline}");
        }
        nft(&b, "delete table inet test").await;
        let again = tokio::time::Instant::now();
        tokio::time::sleep(2 * SECOND).await;
        for flow in &stopped {
            let timeline = flow.timeline();
            assert!(timeline.heard_between(again, again + 2 * SECOND), "{timeline}");
        }
        let nobody =
            a.flow("198.18.99.99".parse().expect("an address"), Service::Icmp, Pattern::Asked, LIMIT);
        assert_eq!(nobody.await.expect_err("nothing answers").kind(), io::ErrorKind::TimedOut);
    });
}

/// Runs inside when started by [`nothing_survives_a_kill`], and waits to be killed.
#[test]
fn victim() {
    let Some(mark) = std::env::var_os("NMPLAN_LAB_VICTIM") else { return };
    if std::env::var_os("NMPLAN_LAB_ENTERED").is_none() {
        let mut command = Command::new(std::env::current_exe().expect("the test program"));
        command.env("NMPLAN_LAB_ENTERED", "1");
        command.args(std::env::args_os().skip(1));
        let status = super::enter(command).expect("entered");
        std::process::exit(status.code().unwrap_or(99));
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let a = underlay.host("a").await.expect("a host");
        let mut command = a.command("sh");
        command.args(["-c", "sleep 1000 & wait", &mark.to_string_lossy()]);
        let _sleeper = a.start("sleeper", command).expect("started");
        let mut term =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a handler");
        println!("\nready {}", outside_pid().expect("inside"));
        term.recv().await;
        println!("orderly");
        if std::env::var_os("NMPLAN_LAB_DEAF").is_some() {
            std::future::pending::<()>().await;
        }
        std::process::exit(7);
    });
}

fn start_victim(mark: &str, deaf: bool) -> (std::process::Child, Pid, impl Iterator<Item = String>) {
    let mut command = Command::new(std::env::current_exe().expect("the test program"));
    command.args([&named("victim"), "--exact", "--nocapture", "--test-threads=1"]);
    command.env("NMPLAN_LAB_VICTIM", mark).stdout(Stdio::piped());
    if deaf {
        command.env("NMPLAN_LAB_DEAF", "1");
    }
    let mut child = command.spawn().expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let pid = lines.find_map(|line| line.strip_prefix("ready ")?.parse().ok()).expect("the victim is ready");
    (child, Pid::from_raw(pid).expect("a pid"), lines)
}

#[test]
fn nothing_survives_a_kill() {
    if !enter("nothing_survives_a_kill") {
        return;
    }
    // A lab in a lab, so that everything that is visible belongs to this test.
    for whom in ["caller", "keeper", "init", "program"] {
        let before = SystemState::read();
        let mark = format!("victim-of-{whom}");
        let (mut caller, program, _lines) = start_victim(&mark, false);
        let outer = Pid::from_child(&caller);
        let parent = |pid: Pid| {
            let status =
                std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).expect("status");
            let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
            Pid::from_raw(line.trim().parse().expect("a number")).expect("a pid")
        };
        let init = parent(program);
        let keeper = parent(init);
        assert_eq!(parent(keeper), outer);
        assert!(!processes_with(&mark).is_empty());
        let target = match whom {
            "caller" => outer,
            "keeper" => keeper,
            "init" => init,
            _ => program,
        };
        rustix::process::kill_process(target, Signal::KILL).expect("killed");
        let status = caller.wait().expect("waited");
        assert!(!status.success());
        for pid in [keeper, init, program] {
            eventually("its processes are gone", || rustix::process::test_kill_process(pid).is_err());
        }
        eventually("the host's processes are gone", || processes_with(&mark).is_empty());
        assert_eq!(SystemState::read(), before, "after killing the {whom}");
    }
}

/// Sends SIGTERM as a program without other threads would get it: libtest's main thread does not block it.
fn signal_test_thread(caller: &std::process::Child) {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", caller.id())).expect("its threads").flatten();
    let threads = tasks.filter_map(|task| task.file_name().to_str()?.parse::<u32>().ok());
    let thread = threads.max().expect("a thread");
    // SAFETY: sending a signal touches no memory of this process.
    #[expect(unsafe_code, reason = "tgkill has no safe wrapper")]
    let failed = unsafe { libc::syscall(libc::SYS_tgkill, caller.id(), thread, libc::SIGTERM) };
    assert_eq!(failed, 0);
}

#[test]
fn the_first_signal_is_passed_on_and_the_second_kills() {
    if !enter("the_first_signal_is_passed_on_and_the_second_kills") {
        return;
    }
    let (mut caller, _, mut lines) = start_victim("signalled-once", false);
    signal_test_thread(&caller);
    assert_eq!(lines.next().as_deref(), Some("orderly"));
    assert_eq!(caller.wait().expect("waited").code(), Some(7));

    let (mut caller, program, mut lines) = start_victim("signalled-twice", true);
    signal_test_thread(&caller);
    assert_eq!(lines.next().as_deref(), Some("orderly"));
    signal_test_thread(&caller);
    assert_eq!(caller.wait().expect("waited").code(), Some(99));
    eventually("it is gone", || rustix::process::test_kill_process(program).is_err());
}

#[test]
fn the_status_comes_out_and_errors_say_what_failed() {
    if !enter("the_status_comes_out_and_errors_say_what_failed") {
        return;
    }
    let run = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        super::enter(command)
    };
    assert_eq!(run("exit 5").expect("entered").code(), Some(5));
    assert_eq!(run("kill -9 $$").expect("entered").code(), Some(137));
    assert_eq!(
        run("test $(ls -d /proc/[0-9]* | wc -l) -le 5 && test -f /run/nmplan-lab/outside-pid")
            .expect("entered")
            .code(),
        Some(0)
    );
    let error = super::enter(Command::new("/no/such/program")).expect_err("no such program");
    assert!(
        matches!(&error, EnterError::Refused { step: Step::Program, source } if source.kind() == io::ErrorKind::NotFound),
        "{error:?}"
    );
}

#[test]
fn a_refusal_says_what_failed_why_and_what_to_type() {
    for step in [Step::User, Step::Namespaces, Step::Mounts] {
        let error = EnterError::Refused { step, source: io::Error::from_raw_os_error(1) };
        assert!(error.help().expect("help").contains("\n    sysctl -w kernel.unprivileged_userns_clone=1\n"));
    }
    let error = EnterError::Refused { step: Step::Namespaces, source: io::Error::from_raw_os_error(1) };
    assert_eq!(error.to_string(), "the lab could not make namespaces of its own");
    let cause = std::error::Error::source(&error).expect("a cause");
    assert_eq!(cause.to_string(), "Operation not permitted (os error 1)");
    assert!(EnterError::NoTun.help().expect("help").ends_with("\n    modprobe tun"));
}

#[test]
fn outside_nothing_is_made() {
    if inside() {
        return;
    }
    let refused = in_runtime(Underlay::new()).expect_err("outside");
    assert!(matches!(refused, Error::Outside));
    assert_eq!(outside_pid(), None);
}

#[test]
#[should_panic(expected = "no test is called `no::such::test`")]
fn a_misnamed_test_is_a_failure() {
    // Where namespaces are not permitted the test cannot detect that the name is wrong.
    if super::enter(Command::new("true")).is_err() {
        panic!("no test is called `no::such::test`, supposedly");
    }
    enter_test("no::such::test");
}

#[test]
#[should_panic(expected = "failed inside the lab")]
fn a_failure_inside_is_a_failure_outside() {
    if enter("a_failure_inside_is_a_failure_outside") {
        std::process::exit(1);
    }
    panic!("failed inside the lab, supposedly, as namespaces are not permitted");
}
