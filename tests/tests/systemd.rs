//! Server and agent as services of systemd, by the units that are installed with them.
//!
//! ```text
//! the guest: systemd, nmserver, netclient ==== veth ==== network namespace `b`: netclient
//! ```
//!
//! In a lab `systemctl` would not reach systemd, so the two hosts are made here. They last as long as the
//! guest: each test has a network of its own, and leaves it at its end.

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use end_to_end::{eventually, guest, holds_device, in_runtime, kill, patience, text_of};
use nmplan::lab::Programs;

/// What the units run.
const NMSERVER: &str = "/usr/bin/nmserver";
const NETCLIENT: &str = "/usr/bin/netclient";
/// The host that systemd runs, and the other one.
const HERE: &str = "198.18.0.1";
const THERE: &str = "198.18.0.2";
const ETC_THERE: &str = "/var/lib/b/etc";
/// How long `systemctl` may take to start, stop or restart a service; the units permit more.
const QUICK: Duration = Duration::from_secs(3);

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    // The guest's other suites are run with it; here `netclient.toml` says what holds.
    command.args(&words[1..]).stdin(Stdio::null()).env_remove("NETCLIENT_DEVICE");
    command
}

fn output(words: &[&str]) -> Output {
    command(words).output().unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// Runs a command that must succeed; returns what it printed.
fn run(words: &[&str]) -> String {
    let output = output(words);
    assert!(output.status.success(), "{words:?}: {}{}", text_of(&output.stdout), text_of(&output.stderr));
    text_of(&output.stdout)
}

/// A command on the other host, which has a directory of its own as `/etc`.
fn command_there(words: &[&str]) -> Command {
    let enter = format!("mount --bind {ETC_THERE} /etc && exec \"$@\"");
    command(&[&["ip", "netns", "exec", "b", "sh", "-c", &enter, "b"], words].concat())
}

/// Runs a command there that must succeed; returns what it printed.
fn run_there(words: &[&str]) -> String {
    let output = command_there(words).output().expect("ip runs");
    assert!(output.status.success(), "{words:?}: {}{}", text_of(&output.stdout), text_of(&output.stderr));
    text_of(&output.stdout)
}

/// A property of a unit.
fn property(unit: &str, name: &str) -> String {
    run(&["systemctl", "show", "--property", name, "--value", unit]).trim().to_owned()
}

/// Makes the hosts, and starts the services, once; systemd itself must have come up whole.
fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        assert!(
            guest::inside(),
            "this changes the system that it runs on, so it only runs in a guest: make guest"
        );
        assert_eq!(run(&["systemctl", "is-system-running", "--wait"]).trim(), "running");
        for etc in ["/etc", ETC_THERE] {
            fs::create_dir_all(etc).expect("a directory");
            fs::write(Path::new(etc).join("hosts"), "127.0.0.1\tlocalhost\n").expect("a file");
        }
        run(&["ip", "netns", "add", "b"]);
        run(&["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", "b"]);
        plug_in();
        run_there(&["ip", "link", "set", "lo", "up"]);
        run_there(&["ip", "link", "set", "eth0", "up"]);
        run_there(&["ip", "address", "add", &format!("{THERE}/24"), "dev", "eth0"]);
        let programs = Programs::find().expect("the programs are here");
        fs::copy(programs.nmserver, NMSERVER).expect("it is installed");
        fs::copy(programs.netclient, NETCLIENT).expect("it is installed");
        let units = Path::new("/etc/systemd/system");
        for (name, unit) in [
            ("nmserver.service", include_str!("../../server/nmserver.service")),
            ("netclient.service", include_str!("../../netclient/netclient.service")),
        ] {
            fs::write(units.join(name), unit).expect("a unit");
            let said = output(&["systemd-analyze", "verify", name]);
            assert_eq!(text_of(&said.stderr), "", "what systemd says about {name}");
        }
        fs::write("/etc/nmserver.toml", format!("server_host = \"{HERE}\"\n")).expect("settings");
        run(&["systemctl", "enable", "--now", "nmserver", "netclient"]);
        assert!(!property("netclient", "After").contains("network-online.target"));
    });
}

fn plug_in() {
    run(&["ip", "link", "set", "uplink", "up"]);
    run(&["ip", "address", "add", &format!("{HERE}/24"), "dev", "uplink"]);
}

/// As before a network manager has started.
fn unplug() {
    run(&["ip", "address", "flush", "dev", "uplink"]);
    run(&["ip", "link", "set", "uplink", "down"]);
}

/// Has systemd do something with a service, which must not take long.
fn systemctl(verb: &str, unit: &str) {
    let start = Instant::now();
    run(&["systemctl", verb, unit]);
    let took = start.elapsed();
    eprintln!("systemctl {verb} {unit}: {:.1} s", took.as_secs_f64());
    assert!(took < QUICK * patience(), "systemctl {verb} {unit} took {took:?}");
}

/// Puts another file in the place of a program, as a package does.
fn upgrade(program: &str) {
    let new = format!("{program}.new");
    fs::copy(program, &new).expect("a copy");
    fs::rename(new, program).expect("renamed");
}

/// Whether the process of a unit runs the file that is installed now.
fn is_installed(unit: &str, program: &str) -> bool {
    let running = fs::metadata(format!("/proc/{}/exe", property(unit, "MainPID"))).expect("it runs");
    let installed = fs::metadata(program).expect("it is installed");
    (running.dev(), running.ino()) == (installed.dev(), installed.ino())
}

/// A device of this host: which one it is, and the process that holds it.
#[derive(Debug, PartialEq, Eq)]
struct Device {
    index: u32,
    process: Option<u32>,
}

impl Device {
    /// The one of an interface; absent: there is none.
    fn of(interface: &str) -> Option<Self> {
        let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).ok()?;
        let own = fs::read_link("/proc/self/ns/net").expect("a network");
        let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
        let process = processes
            .filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|it| it == own))
            .find(|&pid| holds_device(pid, interface));
        Some(Self { index: index.trim().parse().expect("a number"), process })
    }
}

/// Pings from the other host, ten in a second.
struct Pinger {
    process: Child,
    printed: PathBuf,
}

impl Pinger {
    fn start(to: IpAddr) -> Self {
        let printed = std::env::temp_dir().join(format!("ping-{to}"));
        let file = File::create(&printed).expect("a file");
        let to = to.to_string();
        let ping = command_there(&["ping", "-n", "-i", "0.1", &to]).stdout(file).spawn();
        let process = ping.expect("ping runs");
        Self { process, printed }
    }

    /// The numbers of those that were answered.
    fn answered(&self) -> BTreeSet<usize> {
        let printed = fs::read_to_string(&self.printed).expect("it is there");
        let number = |line: &str| line.split_once("icmp_seq=")?.1.split_once(" ttl=")?.0.parse().ok();
        printed.lines().filter_map(number).collect()
    }

    /// Waits for some more answers; then every ping since the first must have had one.
    async fn loses_none(&self, when: &str) {
        let last = self.answered().last().copied().unwrap_or(0);
        eventually(&format!("pings are answered: {when}"), Duration::from_secs(10), async || {
            self.answered().last().is_some_and(|&number| number >= last + 10)
        })
        .await;
        let answered = self.answered();
        let last = answered.last().copied().unwrap_or(0);
        let lost: Vec<_> = (1..=last).filter(|number| !answered.contains(number)).collect();
        assert!(lost.is_empty(), "of {last} pings these are lost: {lost:?}: {when}");
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A network of both hosts, with the agent here run by systemd, on devices of one kind.
struct Pair {
    kind: &'static str,
    /// The addresses in the network.
    here: IpAddr,
    there: IpAddr,
    daemon_there: Child,
}

impl Pair {
    async fn joined(kind: &'static str) -> Self {
        set_up();
        for etc in ["/etc", ETC_THERE] {
            configure(etc, &format!("device = \"{kind}\"\n"));
        }
        systemctl("restart", "netclient");
        let token = token(kind);
        run(&[NETCLIENT, "join", "-t", &token, "--name", "a"]);
        run_there(&[NETCLIENT, "register", "-t", &token]);
        run_there(&[NETCLIENT, "join", "-t", &token, "--name", "b", "--daemon", "off"]);
        let log = File::create(format!("/tmp/b-{kind}.log")).expect("a file");
        let daemon_there = command_there(&[NETCLIENT, "daemon"]).stderr(log).spawn().expect("it runs");
        let here = address(&run(&[NETCLIENT, "status", "--json"]));
        let there = address(&run_there(&[NETCLIENT, "status", "--json"]));
        let pair = Self { kind, here, there, daemon_there };
        pair.meets().await;
        pair
    }

    fn interface(&self) -> String {
        format!("nm-{}", self.kind)
    }

    fn device(&self) -> Device {
        let device = Device::of(&self.interface()).expect("there is a device");
        assert_eq!(device.process.is_some(), self.kind == "userspace", "{device:?}");
        device
    }

    /// Waits until the hosts reach each other, and the agent here its server; returns how long that took.
    async fn meets(&self) -> Duration {
        let took = eventually("the hosts reach each other", Duration::from_secs(15), async || {
            let here = self.here.to_string();
            let mut ping = command_there(&["ping", "-n", "-c1", "-W1", &here]);
            ping.output().expect("ip runs").status.success()
        })
        .await;
        eventually("the server answers the agent", Duration::from_secs(40), async || {
            let status = run(&[NETCLIENT, "status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            assert_eq!(status["networks"][0]["device"], self.kind);
            status["networks"][0]["control"] == "tls" || status["networks"][0]["control"] == "tunnel"
        })
        .await;
        took
    }

    async fn leaves(mut self) {
        run(&[NETCLIENT, "leave"]);
        let _ = self.daemon_there.kill();
        let _ = self.daemon_there.wait();
        run_there(&[NETCLIENT, "leave", "--force"]);
        assert_eq!(Device::of(&self.interface()), None);
    }
}

/// Writes the settings of a host's agent.
fn configure(etc: &str, settings: &str) {
    let directory = Path::new(etc).join("netclient");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).expect("a directory");
    fs::write(directory.join("netclient.toml"), settings).expect("settings");
}

/// Declares a network for devices of a kind; returns a token of it.
fn token(kind: &str) -> String {
    let range = if kind == "kernel" { "10.40.0.0/16" } else { "10.41.0.0/16" };
    declare(kind, &format!(r#"ipv4 "{range}"; check-in "1s"; access-key "k" uses=2"#))
}

/// Declares a network of that name that holds these; returns a token of it.
fn declare(network: &str, objects: &str) -> String {
    let (file, keys) = (format!("/tmp/{network}.kdl"), format!("/tmp/{network}.json"));
    fs::write(&file, format!("network \"{network}\" {{\n{objects}\n}}\n")).expect("a file");
    let nmplan = Programs::find().expect("the programs are here").nmplan;
    let mut apply = Command::new(nmplan);
    apply.args(["apply", "--project", network, "-f", &file, "-y", "--keys-to", &keys]).stdin(Stdio::null());
    apply.env("NMPLAN_SERVER", format!("https://{HERE}:8081"));
    apply.env("NMPLAN_TOKEN_FILE", "/var/lib/nmserver/admin.token");
    apply.env("NMPLAN_CA", "/var/lib/nmserver/ca.pem");
    let output = apply.output().expect("nmplan runs");
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    format!("@{keys}")
}

/// The address in the one network of a status.
fn address(status: &str) -> IpAddr {
    let status: serde_json::Value = serde_json::from_str(status).expect("JSON");
    let address = status["networks"][0]["addresses"][0].as_str().expect("it has an address");
    address.parse().expect("an address")
}

/// Services are started as at a boot: there is no device yet, and no network.
async fn starts_before_the_network(pair: &Pair) {
    let before = pair.device();
    systemctl("stop", "netclient");
    systemctl("stop", "nmserver");
    match before.process {
        Some(process) => kill(process),
        None => drop(run(&["ip", "link", "delete", &pair.interface()])),
    }
    eventually("the device is gone", QUICK, async || Device::of(&pair.interface()).is_none()).await;
    unplug();
    let since = entries().len();
    systemctl("start", "nmserver");
    systemctl("start", "netclient");
    eventually("the device is there", QUICK, async || Device::of(&pair.interface()).is_some()).await;
    eventually("the agent warns that the server cannot be reached", QUICK * 5, async || {
        entries().iter().skip(since).any(|(level, message)| level == "4" && message.contains("the server"))
    })
    .await;
    plug_in();
    let took = pair.meets().await;
    eprintln!("{}: the hosts reach each other {:.1} s after the cable is in", pair.kind, took.as_secs_f64());
    assert_eq!(property("netclient", "NRestarts"), "0");
    assert_eq!(property("nmserver", "NRestarts"), "0");
    if let Some(process) = pair.device().process {
        // What follows would show nothing if the device process were not one of the service's.
        let group = fs::read_to_string(format!("/proc/{process}/cgroup")).expect("it runs");
        assert!(group.trim().ends_with("/netclient.service"), "{group}");
    }
}

/// Restarts and upgrades of both programs lose no ping, and devices stay the same.
async fn outlives_restarts(pair: &Pair) {
    let (device, tunnels) = (pair.device(), Device::of("nm-comms"));
    assert!(tunnels.as_ref().is_some_and(|it| it.process.is_some()), "{tunnels:?}");
    let pinger = Pinger::start(pair.here);
    pinger.loses_none("at first").await;
    for (unit, program) in [("netclient", NETCLIENT), ("nmserver", NMSERVER)] {
        for new in [false, true] {
            if new {
                upgrade(program);
                assert!(!is_installed(unit, program));
            }
            systemctl("restart", unit);
            assert!(is_installed(unit, program));
            pinger.loses_none(&format!("{unit} is restarted, upgraded: {new}")).await;
            pair.meets().await;
            assert_eq!(pair.device(), device);
            assert_eq!(Device::of("nm-comms"), tunnels);
        }
    }
    pinger.loses_none("at the end").await;
}

/// A service that is stopped ends by itself, and leaves its devices.
async fn ends_cleanly(pair: &Pair) {
    let (device, tunnels) = (pair.device(), Device::of("nm-comms"));
    let pinger = Pinger::start(pair.here);
    for unit in ["netclient", "nmserver"] {
        systemctl("stop", unit);
        assert_eq!(property(unit, "Result"), "success");
        assert_eq!(property(unit, "ActiveState"), "inactive");
        assert_eq!(property(unit, "ExecMainStatus"), "0");
        pinger.loses_none(&format!("{unit} is stopped")).await;
        assert_eq!(pair.device(), device);
        assert_eq!(Device::of("nm-comms"), tunnels);
    }
    systemctl("start", "nmserver");
    systemctl("start", "netclient");
    pair.meets().await;
    assert_eq!(pair.device(), device);
}

/// The other host's name resolves by the ways that programs take.
async fn names_resolve(pair: &Pair) {
    assert_eq!(property("systemd-resolved", "ActiveState"), "active");
    let (name, address) = (format!("b.{}", pair.kind), pair.there.to_string());
    for words in [&["getent", "hosts", &name][..], &["resolvectl", "query", "--legend=no", &name]] {
        eventually(&format!("{words:?} finds {address}"), Duration::from_secs(5), async || {
            text_of(&output(words).stdout).contains(&address)
        })
        .await;
    }
}

async fn story(kind: &'static str) {
    let pair = Pair::joined(kind).await;
    starts_before_the_network(&pair).await;
    outlives_restarts(&pair).await;
    ends_cleanly(&pair).await;
    names_resolve(&pair).await;
    pair.leaves().await;
}

#[test]
#[ignore = "needs systemd as process 1; kernel.rs runs it in a guest"]
fn devices_of_the_kernel_outlive_their_service() {
    in_runtime(story("kernel"));
}

#[test]
#[ignore = "needs systemd as process 1; kernel.rs runs it in a guest"]
fn device_processes_outlive_their_service() {
    in_runtime(story("userspace"));
}

/// A name server that the other host runs; it ends with this.
struct NameServer(Child);

impl NameServer {
    /// The primary server of a zone, on one of the host's addresses.
    fn start(at: &str, zone: &str, file: &str) -> Self {
        let settings = format!("/tmp/named-{at}.conf");
        let text = format!(
            "options {{ directory \"/tmp\"; pid-file none; session-keyfile none; listen-on {{ {at}; }}; \
             listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; }};\ncontrols {{ }};\n\
             zone \"{zone}\" {{ type primary; file \"{file}\"; }};\n"
        );
        fs::write(&settings, text).expect("settings");
        let log = File::create(format!("/tmp/named-{at}.log")).expect("a file");
        let mut named = command_there(&["/usr/sbin/named", "-g", "-c", &settings]);
        Self(named.stdout(Stdio::null()).stderr(log).spawn().expect("it runs"))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What systemd-resolved knows of everything but an interface.
fn resolved_without(interface: &str) -> Vec<String> {
    let asked = ["dns", "domain", "default-route", "dnssec", "dnsovertls", "llmnr", "mdns"];
    let printed: String = asked.iter().map(|of| run(&["resolvectl", of])).collect();
    printed.lines().filter(|line| !line.contains(&format!("({interface})"))).map(str::to_owned).collect()
}

/// What a name resolves to by systemd-resolved; empty: nothing.
fn queried(name: &str) -> String {
    let answer = output(&["resolvectl", "query", "--cache=no", "--legend=no", name]);
    if answer.status.success() { text_of(&answer.stdout) } else { String::new() }
}

/// How many packets this host has sent to port 53 of an address.
fn asked(address: &str) -> u64 {
    let listed = run(&["nft", "list", "table", "ip", "asked"]);
    let rule = listed.lines().find(|line| line.contains(address)).expect("it is counted");
    let packets = rule.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next());
    packets.and_then(|packets| packets.parse().ok()).expect("a number")
}

#[test]
#[ignore = "needs systemd as process 1; kernel.rs runs it in a guest"]
fn names_of_a_network_are_asked_of_its_name_servers_through_resolved_and_no_others() {
    in_runtime(async {
        const OURS: &str = "10.42.0.53";
        set_up();
        configure("/etc", "device = \"kernel\"\n");
        fs::write(
            "/tmp/example.org.zone",
            "$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\nns A 198.18.0.2\nwww A 203.0.113.7\n",
        )
        .expect("a zone");
        let _outside = NameServer::start(THERE, "example.org", "/tmp/example.org.zone");
        let settings = "/run/systemd/resolved.conf.d";
        fs::create_dir_all(settings).expect("a directory");
        fs::write(format!("{settings}/outside.conf"), format!("[Resolve]\nDNS={THERE}\n")).expect("settings");
        run(&["systemctl", "restart", "systemd-resolved"]);
        // The second one is not reached through the network, and asked by no node of it.
        let given = format!("server_host = \"{HERE}\"\ncoredns_addr = \"{OURS}, {THERE}\"\n");
        fs::write("/etc/nmserver.toml", given).expect("settings");
        run(&["systemctl", "restart", "nmserver", "netclient"]);
        run(&[
            "nft",
            &format!(
                "table ip asked {{ chain out {{ type filter hook output priority 0; \
                 ip daddr {OURS} udp dport 53 counter; ip daddr {OURS} tcp dport 53 counter; }}; }}"
            ),
        ]);
        eventually("an outside name resolves", QUICK * 5, async || {
            queried("www.example.org").contains("203.0.113.7")
        })
        .await;
        let (before, hosts) = (resolved_without("nm-names"), fs::read("/etc/hosts").expect("it is there"));
        assert_eq!(queried("a.names"), "");

        let token = declare(
            "names",
            r#"ipv4 "10.42.0.0/16"; check-in "1s"; access-key "k" { for "a" "b" }
            node "a"; node "b" ipv4="10.42.0.53"
            dns "api" a="10.42.0.200"; dns "www" cname="www.example.org""#,
        );
        let zone = "/var/lib/nmserver/dns/names.zone";
        eventually("there is a zone", QUICK, async || Path::new(zone).exists()).await;
        run(&[NETCLIENT, "join", "-t", &token, "--name", "a"]);
        eventually("the zone has the node", QUICK, async || {
            fs::read_to_string(zone).is_ok_and(|zone| zone.lines().any(|line| line.starts_with("a")))
        })
        .await;
        let lines = fs::read_to_string("/etc/hosts").expect("it is there");
        assert!(lines.contains("api.names"), "the name server has not joined: {lines}");
        run_there(&[NETCLIENT, "join", "-t", &token, "--name", "b", "--daemon", "off"]);
        let _ours = NameServer::start(OURS, "names", zone);
        let resolve = async |when: &str| {
            for (name, address) in [("a", "10.42.0."), ("api", "10.42.0.200"), ("www", "203.0.113.7")] {
                let what = format!("{name}.names resolves {when}");
                eventually(&what, QUICK * 5, async || queried(&format!("{name}.names")).contains(address))
                    .await;
            }
            assert!(run(&["getent", "hosts", "api.names"]).contains("10.42.0.200"));
            assert_eq!(queried("nobody.names"), "", "{when}");
            eventually(&format!("names are not in two places {when}"), QUICK, async || {
                fs::read("/etc/hosts").expect("it is there") == hosts
            })
            .await;
            assert_eq!(resolved_without("nm-names"), before, "{when}");
            let status = run(&[NETCLIENT, "status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            let names = serde_json::json!({ "by": "systemd-resolved", "servers": [OURS] });
            assert_eq!(status["networks"][0]["names"], names, "{status}");
        };
        resolve("after the joins").await;
        let count = asked(OURS);
        assert!(count > 0);
        for name in ["www.example.org", "nobody.example.org", "names.example.org", "api"] {
            let found = queried(name);
            assert_eq!(found.is_empty(), name != "www.example.org", "{name}: {found}");
        }
        assert_eq!(asked(OURS), count, "names of others are asked of others");

        run(&["resolvectl", "revert", "nm-names"]);
        resolve("once another has taken the name servers away").await;
        run(&["systemctl", "restart", "systemd-resolved"]);
        resolve("once resolved has been restarted").await;
        run(&["systemctl", "kill", "--signal=KILL", "netclient"]);
        resolve("while the agent is not there, or is again").await;
        eventually("the agent is there again", QUICK * 5, async || {
            property("netclient", "ActiveState") == "active"
        })
        .await;
        resolve("by another process").await;

        run(&[NETCLIENT, "leave"]);
        run_there(&[NETCLIENT, "leave", "--force"]);
        assert_eq!(resolved_without("nm-names"), before);
        assert_eq!(fs::read("/etc/hosts").expect("it is there"), hosts);
        assert_eq!(queried("api.names"), "");
        assert!(queried("www.example.org").contains("203.0.113.7"));
        fs::write("/etc/nmserver.toml", format!("server_host = \"{HERE}\"\n")).expect("settings");
        fs::remove_dir_all(settings).expect("they go");
        run(&["nft", "delete", "table", "ip", "asked"]);
        run(&["systemctl", "restart", "systemd-resolved", "nmserver"]);
    });
}

/// The messages of the programs in the journal, with their levels (syslog(3)).
fn entries() -> Vec<(String, String)> {
    let printed = run(&["journalctl", "--output", "json", "-t", "netclient", "-t", "nmserver"]);
    let entries = printed.lines().map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        // One that is not all printable would be a list of bytes.
        let text = |name: &str| entry[name].as_str().unwrap_or_else(|| panic!("{entry}")).to_owned();
        (text("PRIORITY"), text("MESSAGE"))
    });
    entries.collect()
}

#[test]
#[ignore = "needs systemd as process 1; kernel.rs runs it in a guest"]
fn the_journal_has_levels_and_no_colours() {
    set_up();
    configure("/etc", "no_such_setting = 1\n");
    let refused = output(&["systemctl", "restart", "netclient"]);
    assert!(!refused.status.success(), "a program that ends before it is ready was not started");
    configure("/etc", "");
    run(&["systemctl", "restart", "netclient", "nmserver"]);
    let entries = entries();
    let level = |part: &str| {
        let found = entries.iter().find(|(_, message)| message.contains(part));
        found.unwrap_or_else(|| panic!("{part}: {entries:#?}")).0.clone()
    };
    assert_eq!(level("no_such_setting"), "3");
    assert_eq!(level("serving rest="), "6");
    for (level, message) in &entries {
        assert!(!message.contains('\u{1b}') && !message.starts_with('<'), "{message:?}");
        assert!(["3", "4", "6"].contains(&level.as_str()), "{level} {message}");
    }
}
