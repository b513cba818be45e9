//! `nmplan lab` as a user runs it: what it prints, how it ends, and what it leaves.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use end_to_end::{eventually, in_runtime, text_of};
use nmplan::lab::Programs;
use rustix::process::{Pid, Signal, kill_process};

fn lab(arguments: &[&str]) -> Command {
    let programs = Programs::find().expect("the programs are built");
    let mut command = Command::new(programs.nmplan);
    command.arg("lab").args(arguments).stdin(Stdio::null());
    command
}

fn example(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).display().to_string()
}

/// What a lab could leave on this computer: interfaces, mounts and names.
#[derive(Debug, PartialEq)]
struct SystemState {
    interfaces: BTreeSet<String>,
    mounts: String,
    hosts: String,
}

impl SystemState {
    fn read() -> Self {
        let listed = std::fs::read_dir("/sys/class/net").expect("a directory").flatten();
        Self {
            interfaces: listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
            mounts: std::fs::read_to_string("/proc/self/mounts").expect("the mounts"),
            hosts: std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        }
    }
}

/// The processes whose environment has the mark.
fn marked(mark: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let environments = entries.map(|entry| std::fs::read(entry.path().join("environ")).unwrap_or_default());
    environments.filter(|it| String::from_utf8_lossy(it).split('\0').any(|line| line == mark)).count()
}

/// The nodes of a lab's first network, of which packets were sent from each to every other.
fn nodes_of(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nodes = verdict["networks"][0]["nodes"].clone();
    // In a guest with the kernel's WireGuard every device is to be the kernel's.
    if let Ok(wanted) = std::env::var("NETCLIENT_DEVICE") {
        let devices = nodes.as_array().into_iter().flatten().map(|node| &node["device"]);
        assert!(devices.into_iter().all(|device| *device == wanted.as_str()), "{nodes}");
    }
    let count = nodes.as_array().map_or(0, Vec::len);
    assert!(count >= 2, "{verdict}");
    let clients = verdict["networks"][0]["clients"].as_array().map_or(0, Vec::len);
    let (members, all) = (count + clients, verdict["networks"][0]["pairs"].as_array().into_iter().flatten());
    // Hosts behind gateways are named by their addresses.
    let is_member = |end: &serde_json::Value| end.as_str().is_some_and(|it| it.parse::<IpAddr>().is_err());
    let pairs = all.filter(|pair| is_member(&pair["from"]) && is_member(&pair["to"])).count();
    assert_eq!(pairs, members * (members - 1), "{verdict}");
    nodes
}

#[test]
fn the_quick_start_comes_up_in_both_languages_and_leaves_nothing() {
    let before = SystemState::read();
    let kdl = lab(&[&example("quickstart"), "--json"]).output().expect("it runs");
    let yaml = lab(&[&example("quickstart-yaml"), "--json"]).output().expect("it runs");
    let (kdl, yaml) = (nodes_of(&kdl), nodes_of(&yaml));
    let names = |nodes: &serde_json::Value| {
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        nodes.iter().map(|node| (node["name"].clone(), node["names"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(names(&kdl), names(&yaml));
    assert_eq!((names(&kdl).len(), &names(&kdl)[0].1), (3, &6.into()), "three nodes and three entries");
    assert_eq!(SystemState::read(), before);
}

/// The states of the stories in `examples/stories`, each by its path there.
fn states() -> Vec<Vec<PathBuf>> {
    let sorted = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).expect("a folder");
        entries.map(|entry| entry.expect("an entry").path()).collect::<BTreeSet<_>>()
    };
    sorted(example("stories").into()).into_iter().map(|story| sorted(story).into_iter().collect()).collect()
}

fn comes_up(state: &std::path::Path) {
    let output = lab(&["-f", &state.display().to_string(), "--json"]).output().expect("it runs");
    nodes_of(&output);
}

#[test]
fn the_last_state_of_every_story_comes_up() {
    let stories = states();
    assert!(!stories.is_empty());
    stories.iter().filter_map(|states| states.last()).for_each(|state| comes_up(state));
}

#[test]
fn every_other_state_of_a_story_and_every_kind_comes_up() {
    for states in states() {
        states.split_last().into_iter().flat_map(|(_, others)| others).for_each(|state| comes_up(state));
    }
    let kinds = [
        "access-key",
        "allow",
        "dns",
        "egress",
        "external-client",
        "group",
        "ingress",
        "network",
        "node",
        "relay",
        "test",
    ];
    for kind in kinds {
        let output = lab(&["-f", &example(&format!("kinds/{kind}.kdl"))]).output().expect("it runs");
        let printed = format!("{}{}", text_of(&output.stdout), text_of(&output.stderr));
        assert!(output.status.success(), "{kind}: {printed}");
    }
}

#[test]
fn a_project_comes_up_from_within_its_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write("nmplan.kdl", "project \"acme\" schema=1\nvar \"end\"\nenv \"prod\" { set end=\"192.0.2.1:1\" }\n");
    // Endpoints in the real world do not matter to the lab, nor does a node with the name of one of its
    // programs.
    write(
        "mesh.kdl",
        r#"network "corp" {
            ipv4 "10.0.0.0/24"
            access-key "ended" expires="2001-01-01" { for "nmserver" }
            node "nmserver" endpoint="${end}"; node "b" endpoint="gw.example.net:51821"
        }"#,
    );
    let output = lab(&[]).current_dir(folder.path()).output().expect("it runs");
    let printed = format!("{}{}", text_of(&output.stdout), text_of(&output.stderr));
    assert!(output.status.success() && printed.contains("2 of 2 pairs"), "{printed}");
}

#[test]
fn tests_and_what_they_do_not_name_are_tried_with_packets() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"network "corp" {
        ipv4 "10.0.0.0/24"; ipv6 "fd40::/64"; acl "deny"
        node "web" { tags "front" }; node "db"; node "ops"
        allow "sql" from="tag:front" to="db" proto="tcp" ports=5432
        allow "ping" from="ops" to="*" proto="icmp"
        test "db" {
            reach from="web" to="db" port=5432
            no-reach from="*" to="db" port=22
        }
        test "ops" { reach from="ops" to="tag:front" proto="icmp" }
    }"#;
    std::fs::write(folder.path().join("mesh.kdl"), text).expect("written");
    let directory = folder.path().display().to_string();
    let output = lab(&[&directory, "--json"]).output().expect("it runs");
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let network = &verdict["networks"][0];
    // Each at two addresses: one pair that must pass and two that must not; and one that pings.
    assert_eq!((&network["tests"]["db"]["tried"], &network["tests"]["ops"]["tried"]), (&6.into(), &2.into()));
    // TCP at 9, 5432 and 5433, UDP at 9 and ICMP, of six pairs, but for the one that each pair is tried with.
    assert_eq!(network["sample"]["tried"], 2 * 6 * 4);
    for probes in [&network["tests"]["db"], &network["tests"]["ops"], &network["sample"]] {
        assert_eq!(probes["failed"], serde_json::json!([]), "{verdict}");
    }
    let allowed = network["pairs"].as_array().into_iter().flatten().filter(|pair| pair["allowed"] == true);
    let allowed = allowed.map(|pair| [&pair["from"], &pair["to"], &pair["service"], &pair["via"]]);
    let allowed: Vec<_> = allowed.map(|pair| serde_json::json!(pair).to_string()).collect();
    let expected =
        [r#"["ops","db","icmp",[]]"#, r#"["ops","web","icmp",[]]"#, r#"["web","db","tcp 5432",[]]"#];
    assert_eq!(allowed, expected);
    let shown = lab(&[&directory]).output().expect("it runs");
    let shown = text_of(&shown.stdout);
    assert!(
        shown.contains("corp: 3 of the 3 pairs reach each other that may, of 6, 2 tests hold"),
        "{shown}"
    );
    assert!(shown.contains("  test db: 6 probes show what must hold\n"), "{shown}");
}

#[test]
fn clients_and_what_is_behind_gateways_are_tried_with_packets() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"network "corp" {
        ipv4 "10.0.0.0/24"; ipv6 "fd40::/64"; acl "deny"
        node "gw"; node "db"; node "ops"; node "till"
        ingress "front" via="gw" endpoint="gw.example.net"
        external-client "phone" via="front"
        external-client "lost" via="front" enabled=#false
        egress "office" via="gw" interface="eth7" { ranges "192.168.10.0/24" "fd10::/64" }
        egress "exit" via="gw" for="ops" { ranges "0.0.0.0/0" }
        relay "tills" via="gw" for="till"
        allow "phone" from="phone" to="db" proto="tcp" ports=5432
        allow "part" from="ops" to="192.168.10.0/25" proto="tcp" ports=22
        allow "pages" from="ops" to="0.0.0.0/0" proto="tcp" ports=443
        allow "till" from="till" to="db" proto="icmp"
        test "outside" {
            reach from="phone" to="db" port=5432
            reach from="ops" to="192.168.10.0/25" port=22
            reach from="ops" to="0.0.0.0/0" port=443
            no-reach from="*" { to "192.168.10.128/25" "fd10::/64" }
        }
    }"#;
    std::fs::write(folder.path().join("mesh.kdl"), text).expect("written");
    let output = lab(&[&folder.path().display().to_string(), "--json"]).output().expect("it runs");
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let network = &verdict["networks"][0];
    let names = |list: &str, field: &str| -> Vec<String> {
        let items = network[list].as_array().cloned().unwrap_or_default();
        items.iter().map(|item| item[field].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(names("clients", "name"), ["phone"]);
    assert_eq!(names("behind", "range"), ["0.0.0.0/0", "192.168.10.0/24", "fd10::/64"]);
    let of_range = &network["behind"][1];
    // The upper half of the range has the address of the whole.
    assert_eq!(of_range["addresses"], serde_json::json!(["192.168.10.254", "192.168.10.126"]));
    let tried = |probes: &serde_json::Value| probes["tried"].as_u64().unwrap_or_default();
    assert!(tried(&network["tests"]["outside"]) > 10 && tried(&network["sample"]) > 50, "{verdict}");
    let way = |from: &str, to: &str| {
        let mut pairs = network["pairs"].as_array().into_iter().flatten();
        let pair = pairs.find(|pair| pair["from"] == from && pair["to"] == to).cloned().unwrap_or_default();
        assert_eq!(pair["allowed"], true, "{pair}");
        (pair["via"].clone(), pair["by"].clone())
    };
    let by = |kind: &str| (serde_json::json!(["gw"]), serde_json::json!([kind]));
    assert_eq!(way("till", "db"), by("relay"));
    assert_eq!(way("phone", "db"), by("ingress"));
    assert_eq!(way("ops", "192.168.10.126"), by("gateway"));
    let ways = network["ways"].as_array().cloned().unwrap_or_default();
    assert!(ways.iter().filter(|way| way["seen"] == serde_json::json!(["gw"])).count() >= 3, "{ways:#?}");
}

#[test]
fn a_pair_of_which_packets_show_something_else_is_named_and_fails_the_lab() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"network "corp" {
        ipv4 "10.0.0.0/24"; acl "deny"
        node "db" ipv4="10.0.0.1"; node "web" ipv4="10.0.0.2"
        allow "sql" from="web" to="db" proto="tcp" ports=5432
        test "db" { reach from="web" to="db" port=5432 }
    }"#;
    std::fs::write(folder.path().join("mesh.kdl"), text).expect("written");
    // Agents whose nftables does not work drop what they would have to restrict.
    let nft = folder.path().join("nft");
    std::fs::write(&nft, "#!/bin/sh\nexit 1\n").expect("written");
    std::fs::set_permissions(&nft, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let path = std::env::var("PATH").unwrap_or_default();
    let directory = folder.path().display().to_string();
    let output = lab(&[&directory]).env("PATH", format!("{directory}:{path}")).output().expect("it runs");
    let printed = text_of(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{printed}{}", text_of(&output.stderr));
    assert!(printed.contains("  test db: 1 of 1 probe shows otherwise\n"), "{printed}");
    let shown = format!(
        "  web -> db (10.0.0.1) by tcp 5432
    must be reached; nothing came back
    as corp/test/db ({directory}/mesh.kdl:5) demands
    the way: directly
    the rule: corp/allow/sql ({directory}/mesh.kdl:4)
"
    );
    assert!(printed.contains(&shown), "{printed}");
}

#[test]
fn problems_and_a_network_without_nodes_are_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let printed = |text: &str, exit: i32| {
        std::fs::write(folder.path().join("mesh.kdl"), text).expect("written");
        let output = lab(&[&folder.path().display().to_string()]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(exit));
        text_of(&output.stderr)
    };
    let problem = printed("network \"corp\" { ipv4 \"10.0.0.0/33\" }", 1);
    assert!(problem.contains("mesh.kdl:1") && problem.contains("10.0.0.0/33"), "{problem}");
    let broken = printed(
        "network \"corp\" {\n ipv4 \"10.0.0.0/24\"\n node \"a\"; node \"b\"\n test \"t\" { no-reach from=\"a\" to=\"b\" }\n}",
        3,
    );
    assert!(broken.contains("mesh.kdl:4") && broken.contains("1 test fails"), "{broken}");
    let no_nodes = printed("network \"corp\" { ipv4 \"10.0.0.0/24\" }", 1);
    assert!(no_nodes.contains("no network declares a node"), "{no_nodes}");
}

/// Starts a lab of a directory that stays, and waits until it is up.
async fn kept(mark: &str, directory: &str) -> Child {
    let (name, value) = mark.split_once('=').expect("a variable");
    let mut command = lab(&[directory, "--keep"]);
    let child =
        command.env(name, value).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    // The server, three agents, and the four processes of nmplan; devices have no environment.
    eventually("the lab is up", Duration::from_secs(30), async || marked(mark) >= 8).await;
    child
}

#[test]
fn a_lab_that_is_interrupted_or_killed_leaves_nothing() {
    in_runtime(async {
        let before = SystemState::read();
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            let mark = format!("NMPLAN_LAB_TEST={}-{}", std::process::id(), signal.as_raw());
            let mut child = kept(&mark, &example("quickstart")).await;
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process number");
            kill_process(pid, signal).expect("it is there");
            child.wait().expect("it ends");
            eventually("every process ends", Duration::from_secs(5), async || marked(&mark) == 0).await;
            assert_eq!(SystemState::read(), before, "{signal:?}");
        }
    });
}

/// A lab that ends with its test, also with one that fails: others could not tell it from theirs.
struct EndsWithTest(Child);

impl Drop for EndsWithTest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_host_of_a_lab_that_stays_is_entered_by_name_or_address() {
    in_runtime(async {
        let mark = format!("NMPLAN_LAB_TEST={}-enter", std::process::id());
        // A directory of its own, by which it is told from labs of others.
        let folder = tempfile::tempdir().expect("a folder");
        let files = PathBuf::from(example("quickstart")).join("mesh.kdl");
        std::fs::copy(files, folder.path().join("mesh.kdl")).expect("copied");
        let directory = folder.path().display().to_string();
        let child = EndsWithTest(kept(&mark, &directory).await);
        let within = |host: &str, command: &[&str]| {
            let words = [&[&*directory, "--enter", host, "--"], command].concat();
            lab(&words).output().expect("it runs")
        };
        let named = async || within("web-1", &["hostname"]).status.success();
        eventually("the lab can be entered", Duration::from_secs(60), named).await;
        assert_eq!(text_of(&within("web-1", &["hostname"]).stdout), "web-1\n");
        let shown = within("10.77.0.1", &["ip", "-brief", "address", "show", "nm-demo"]);
        assert!(text_of(&shown.stdout).contains("10.77.0.1/"), "{}", text_of(&shown.stdout));
        assert_eq!(within("web-1", &["sh", "-c", "exit 7"]).status.code(), Some(7));
        let unknown = within("web-2", &["hostname"]);
        let said = text_of(&unknown.stderr);
        assert!(unknown.status.code() == Some(1) && said.contains("did you mean \"web-1\"?"), "{said}");
        drop(child);
        let is_gone = async || {
            let gone = within("web-1", &["hostname"]);
            gone.status.code() == Some(1) && text_of(&gone.stderr).contains("there is no lab to enter")
        };
        eventually("the lab is gone", Duration::from_secs(5), is_gone).await;
    });
}

#[test]
fn while_a_hub_is_lost_nothing_passes_and_when_it_is_back_everything_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"network "corp" {
        ipv4 "10.0.0.0/24"; hub "hub"
        node "hub"; node "a"; node "b"
        test "all" { reach from="*" to="*"; path from="a" to="b" via="hub" }
    }"#;
    std::fs::write(folder.path().join("mesh.kdl"), text).expect("written");
    let output =
        lab(&[&folder.path().display().to_string(), "--scenario", "--json"]).output().expect("it runs");
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let steps = verdict["scenario"].as_array().cloned().unwrap_or_default();
    let named: Vec<_> = steps.iter().map(|step| step["step"].as_str().unwrap_or_default()).collect();
    assert_eq!(named, ["corp/a leaves", "corp/a joins again", "corp/hub is lost", "corp/hub is back"]);
    // Of each step: how many pairs there are, how many may reach each other, and how many cannot meanwhile.
    let pairs = steps.iter().map(|step| {
        let pairs = step["networks"][0]["pairs"].as_array().cloned().unwrap_or_default();
        let count = |field: &str| pairs.iter().filter(|pair| pair[field] == true).count();
        (pairs.len(), count("allowed"), count("lost"))
    });
    assert_eq!(pairs.collect::<Vec<_>>(), [(2, 2, 0), (6, 6, 0), (2, 0, 2), (6, 6, 0)], "{verdict}");
}
