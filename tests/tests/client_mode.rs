//! The server's own host as a node: it comes up by itself, outlives the server, and leaves without a trace.
//!
//! ```text
//! nmserver and the node `netmaker` ==== underlay ==== a, b
//! ```

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use end_to_end::{Mesh, Tokens, addresses, copy_database, eventually, in_runtime, rounds, text_of};
use nmplan::lab::{Agent, Host, Pinger, Programs, Server, Underlay, enter_test};

const WITHOUT: &str = r#"network "corp" {
    ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; check-in "1s"
    access-key "k" uses=9
}"#;
const SOON: Duration = Duration::from_secs(20);
/// Where the server reads its settings.
const SETTINGS: &str = "/etc/nmserver.toml";

/// The network, with these nodes declared.
fn with(nodes: &str) -> String {
    format!("{WITHOUT}\nnetwork \"corp\" {{ {nodes} }}")
}

async fn joined(mesh: &Mesh, tokens: &Tokens, name: &str) -> Agent {
    let mut agent = mesh.agent(name).await;
    agent.join(&tokens["corp/access-key/k"], &[]).await.expect("it joins");
    agent.start_daemon(&[]).expect("the agent starts");
    agent
}

/// The network of the server's own host, as its agent reports it; null if it is in none.
async fn own_network(server: &Server) -> serde_json::Value {
    server.status().await.expect("the agent's directory can be read")["networks"][0].clone()
}

/// Waits until the server's own host is a node that the server hears from; returns its addresses.
async fn own_addresses(server: &Server) -> Vec<IpAddr> {
    let mut network = serde_json::Value::Null;
    eventually("the server's host is a node", SOON, async || {
        network = own_network(server).await;
        network["up"] == true && network["control"] == "tls"
    })
    .await;
    let addresses = network["addresses"].as_array().cloned().unwrap_or_default();
    addresses.iter().map(|address| address.as_str().expect("text").parse().expect("an address")).collect()
}

async fn reach(from: &Host, to: IpAddr) {
    eventually(&format!("{} reaches {to}", from.name()), SOON, async || {
        from.ping(to, Duration::from_millis(500)).await.expect("sockets").is_some()
    })
    .await;
}

/// Waits until this many more pings have been sent.
async fn passes(pinger: &Pinger, pings: u64) {
    let until = pinger.count().sent + pings;
    eventually("pings are sent", Duration::from_secs(30), async || pinger.count().sent >= until).await;
}

/// What a node may leave on a host: interfaces, names, and processes by what they run.
#[derive(Debug, PartialEq)]
struct Traces {
    interfaces: BTreeSet<String>,
    names: String,
    processes: Vec<String>,
}

fn traces(host: &Host) -> Traces {
    let list = host.read("/proc/thread-self/net/dev").expect("interfaces");
    let line_of = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut processes: Vec<_> = host.processes().into_iter().map(|pid| text_of(&line_of(pid))).collect();
    processes.sort();
    Traces {
        interfaces: list.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect(),
        names: host.read("/etc/hosts").expect("names"),
        processes,
    }
}

/// What `nmplan status` shows of the server's own host.
async fn status(mesh: &Mesh) -> serde_json::Value {
    let output = mesh.nmplan(&["status", "--json"]).await;
    assert!(output.status.success(), "{output:?}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    nodes.into_iter().find(|node| node["name"] == "netmaker").unwrap_or_default()
}

#[test]
fn nodes_ping_the_servers_host_even_while_the_server_is_killed() {
    if !enter_test("nodes_ping_the_servers_host_even_while_the_server_is_killed") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let tokens = mesh.apply(&with(r#"node "netmaker" ipv4="10.40.7.7""#)).await;
        let agents = [joined(&mesh, &tokens, "a").await, joined(&mesh, &tokens, "b").await];
        let own = own_addresses(&mesh.server).await;
        assert!(own.len() == 2 && own[0].to_string() == "10.40.7.7", "{own:?}");
        for agent in &agents {
            for to in &own {
                reach(agent.host(), *to).await;
            }
            for to in addresses(agent, "corp").await {
                reach(mesh.server.host(), to).await;
            }
            let named = async || agent.host().read("/etc/hosts").expect("names").contains("netmaker.corp");
            eventually("its name resolves", SOON, named).await;
        }
        assert!(mesh.server.host().read("/etc/hosts").expect("names").contains("a.corp"));
        let shown = status(&mesh).await;
        assert_eq!((&shown["state"], &shown["control"]), (&"online".into(), &"tls".into()), "{shown}");
        let pingers =
            own.iter().map(|to| agents[0].host().pinger(*to, Duration::from_millis(20)).expect("sockets"));
        let pingers: Vec<_> = pingers.collect();
        for round in 0..rounds() {
            if round % 2 == 0 {
                mesh.server.kill().await.expect("it is killed");
            } else {
                mesh.server.process().expect("it runs").stop(SOON).await.expect("it ends");
            }
            passes(&pingers[0], 50).await;
            mesh.server.serve().await.expect("it serves again");
            own_addresses(&mesh.server).await;
            eventually("the server hears from its own host", SOON, async || {
                status(&mesh).await["state"] == "online"
            })
            .await;
            passes(&pingers[0], 10).await;
            let lost: Vec<_> = pingers.iter().map(|pinger| pinger.count().lost).collect();
            assert_eq!(lost, [0, 0], "round {round}");
        }
        for pinger in pingers {
            let count = pinger.stop().await;
            assert_eq!(count.lost, 0, "{count:?}");
            eprintln!("{} rounds: {count:?}", rounds());
        }
    });
}

#[test]
fn when_the_declaration_is_deleted_the_servers_host_is_left_as_it_was() {
    if !enter_test("when_the_declaration_is_deleted_the_servers_host_is_left_as_it_was") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh.apply(WITHOUT).await;
        let a = joined(&mesh, &tokens, "a").await;
        let before = traces(mesh.server.host());
        assert!(
            !mesh.server.data().join("client").exists(),
            "nothing is made for a node that is not declared"
        );
        for _ in 0..rounds() {
            mesh.apply(&with(r#"node "netmaker""#)).await;
            let own = own_addresses(&mesh.server).await;
            reach(a.host(), own[0]).await;
            assert!(traces(mesh.server.host()).interfaces.contains("nm-corp"));
            mesh.apply(WITHOUT).await;
            // The membership is the last that goes: it knows what else is to go.
            eventually("nothing of it is left", SOON, async || {
                traces(mesh.server.host()) == before && own_network(&mesh.server).await.is_null()
            })
            .await;
        }
    });
}

#[test]
fn no_token_lets_another_host_take_the_servers_name() {
    if !enter_test("no_token_lets_another_host_take_the_servers_name") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh.apply(WITHOUT).await;
        let agent = mesh.agent("impostor").await;
        let join = async || {
            let refused = agent.join(&tokens["corp/access-key/k"], &["--name", "netmaker"]).await;
            refused.expect_err("the name is the server's own").to_string()
        };
        let refused = join().await;
        assert!(refused.contains("the server's own host") && refused.contains("--name"), "{refused}");
        mesh.apply(&with(r#"node "netmaker""#)).await;
        let refused = join().await;
        assert!(refused.contains("the server's own host"), "{refused}");
        own_addresses(&mesh.server).await;
        agent.join(&tokens["corp/access-key/k"], &[]).await.expect("under another name it may join");
    });
}

/// A server that runs without the privilege to make interfaces.
async fn powerless() -> Mesh {
    let programs = Programs::find().expect("the programs are built");
    let underlay = Underlay::new().await.expect("an underlay");
    let wrapper = underlay.directory().join("powerless");
    let script = format!(
        "#!/bin/sh\nexec /usr/bin/setpriv --bounding-set=-net_admin --inh-caps=-net_admin {} \"$@\"\n",
        programs.nmserver.display()
    );
    std::fs::write(&wrapper, script).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&wrapper, mode).expect("it may run");
    let without = Programs { nmserver: wrapper, ..programs.clone() };
    let server = Server::start(&underlay, &without, &[]).await.expect("a server that serves");
    Mesh { underlay, programs, server }
}

#[test]
fn without_privilege_the_server_says_so_once_and_serves_on() {
    if !enter_test("without_privilege_the_server_says_so_once_and_serves_on") {
        return;
    }
    in_runtime(async {
        const MESSAGE: &str = "this host cannot be a node";
        let mut mesh = powerless().await;
        let tokens = mesh.apply(&with(r#"node "netmaker""#)).await;
        let mut printed = String::new();
        eventually("the log says so", SOON, async || {
            printed = mesh.server.process().expect("it runs").printed();
            printed.contains(MESSAGE)
        })
        .await;
        assert!(printed.contains("CAP_NET_ADMIN") && printed.contains("CLIENT_MODE=off"), "{printed}");
        let agents = [joined(&mesh, &tokens, "a").await, joined(&mesh, &tokens, "b").await];
        mesh.apply(&with(r#"node "netmaker" ipv4="10.40.7.7""#)).await;
        end_to_end::all_ping_all(&agents, "corp").await;
        assert_eq!(status(&mesh).await["state"], "awaiting");
        let printed = mesh.server.process().expect("it runs").printed();
        assert_eq!(printed.matches(MESSAGE).count(), 1, "{printed}");
        assert!(own_network(&mesh.server).await.is_null());
    });
}

#[test]
fn with_a_database_of_before_its_join_the_servers_host_is_a_node_again() {
    if !enter_test("with_a_database_of_before_its_join_the_servers_host_is_a_node_again") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let before = traces(mesh.server.host());
        let declared = with(r#"node "netmaker""#);
        let copy = tempfile::tempdir().expect("a folder");
        mesh.server.kill().await.expect("it is killed");
        copy_database(&mesh.server.data(), copy.path());
        mesh.server.serve().await.expect("it serves again");
        mesh.apply(&declared).await;
        own_addresses(&mesh.server).await;
        let key = status(&mesh).await["public_key"].clone();
        for undeclared_first in [true, false] {
            mesh.server.kill().await.expect("it is killed");
            copy_database(copy.path(), &mesh.server.data());
            mesh.server.serve().await.expect("it serves again");
            if undeclared_first {
                let gone = async || traces(mesh.server.host()).interfaces == before.interfaces;
                eventually("a node that is not declared leaves", SOON, gone).await;
            }
            mesh.apply(&declared).await;
            let known = async || {
                status(&mesh).await["state"] == "online" && own_network(&mesh.server).await["up"] == true
            };
            eventually("it is a node again", SOON, known).await;
            assert_ne!(status(&mesh).await["public_key"], key);
        }
    });
}

#[test]
fn the_servers_host_takes_its_name_once_another_node_gives_it_up_and_leaves_with_client_mode_off() {
    if !enter_test(
        "the_servers_host_takes_its_name_once_another_node_gives_it_up_and_leaves_with_client_mode_off",
    ) {
        return;
    }
    in_runtime(async {
        const MESSAGE: &str = "perhaps that of another server";
        let mut mesh = Mesh::start().await;
        let before = traces(mesh.server.host());
        let set = async |mesh: &mut Mesh, on: bool| {
            mesh.server.host().write(SETTINGS, format!("client_mode = {on}\n")).expect("written");
            mesh.server.kill().await.expect("it is killed");
            mesh.server.serve().await.expect("it serves again");
        };
        set(&mut mesh, false).await;
        let tokens = mesh.apply(&with(r#"node "netmaker"; access-key "own" for="netmaker""#)).await;
        let other = mesh.agent("netmaker").await;
        other
            .join(&tokens["corp/access-key/own"], &[])
            .await
            .expect("without client mode it is a name like any other");
        set(&mut mesh, true).await;
        let printed = |mesh: &mut Mesh| mesh.server.process().expect("it runs").printed();
        eventually("the log says so", SOON, async || printed(&mut mesh).contains(MESSAGE)).await;
        mesh.apply(&with(r#"node "netmaker"; node "x""#)).await;
        assert!(own_network(&mesh.server).await.is_null());
        let left = other.netclient(&["leave"]).await.expect("it runs");
        assert!(left.status.success(), "{left:?}");
        own_addresses(&mesh.server).await;
        assert_eq!(printed(&mut mesh).matches(MESSAGE).count(), 1, "once");
        set(&mut mesh, false).await;
        eventually("nothing of it is left", SOON, async || {
            let now = traces(mesh.server.host());
            now.interfaces == before.interfaces && now.names == before.names
        })
        .await;
        assert_eq!(status(&mesh).await["state"], "awaiting", "the name is free");
    });
}

/// Runs `nmserver down` on the server's host; whether that was a success, and what it printed.
async fn down(mesh: &Mesh) -> (bool, String) {
    let mut command = mesh.server.host().command(&mesh.programs.nmserver);
    command.env("DATA_DIR", mesh.server.data()).env("SERVER_HOST", "127.0.0.1").arg("down");
    let output = mesh.server.host().run(command).await.expect("it runs");
    (output.status.success(), text_of(&output.stdout) + &text_of(&output.stderr))
}

/// Interfaces, tables of the packet filter, rules and routes that a server or its agent made, and its
/// processes.
async fn left(mesh: &Mesh) -> Vec<String> {
    let host = mesh.server.host();
    let mut left: Vec<_> =
        traces(host).interfaces.into_iter().filter(|name| name.starts_with("nm-")).collect();
    left.extend(traces(host).processes.into_iter().filter(|line| line.contains("nmserver")));
    for line in
        ["nft list tables", "ip rule show", "ip -6 rule show", "ip route show table all", "cat /etc/hosts"]
    {
        let mut words = line.split(' ');
        let mut command = host.command(words.next().expect("a program"));
        command.args(words);
        let output = host.run(command).await.expect("it runs");
        let ours =
            |line: &&str| ["nm-", "nmserver", "lookup 51", "proto 20"].iter().any(|it| line.contains(it));
        left.extend(text_of(&output.stdout).lines().filter(ours).map(str::to_owned));
    }
    left
}

#[test]
fn nmserver_down_leaves_nothing_on_the_host_and_the_next_start_brings_everything_back() {
    if !enter_test("nmserver_down_leaves_nothing_on_the_host_and_the_next_start_brings_everything_back") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let tokens = mesh.apply(&with(r#"node "netmaker""#)).await;
        let a = joined(&mesh, &tokens, "a").await;
        let own = own_addresses(&mesh.server).await;
        reach(a.host(), own[0]).await;
        let (done, said) = down(&mesh).await;
        assert!(!done && said.contains("a server runs on"), "{said}");
        mesh.server.process().expect("it runs").stop(SOON).await.expect("it ends");
        let before = left(&mesh).await;
        for part in ["nm-comms", "nm-corp", "nmserver-nm-comms", "nm-own"] {
            assert!(before.iter().any(|line| line.contains(part)), "{part} outlives the server: {before:#?}");
        }
        let (done, said) = down(&mesh).await;
        assert!(done, "{said}");
        for part in [
            "device nm-comms",
            "table inet nmserver-nm-comms",
            "device nm-corp",
            "table inet nm-own",
            "rm -r ",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(left(&mesh).await, Vec::<String>::new());
        let (done, said) = down(&mesh).await;
        assert!(done && said.starts_with("Nothing was removed"), "{said}");
        mesh.server.serve().await.expect("it serves again");
        assert_eq!(own_addresses(&mesh.server).await, own, "it is the node that it was");
        reach(a.host(), own[0]).await;
        // Its devices are gone, and cannot say whose the rest is.
        mesh.server.kill().await.expect("it is killed");
        for interface in ["nm-comms", "nm-corp"] {
            end_to_end::kill_device(mesh.server.host(), interface);
        }
        eventually("the devices are gone", SOON, async || {
            traces(mesh.server.host()).interfaces.iter().all(|name| !name.starts_with("nm-"))
        })
        .await;
        let (done, said) = down(&mesh).await;
        assert!(done && said.contains("table inet nmserver-nm-comms"), "{said}");
        assert_eq!(left(&mesh).await, Vec::<String>::new());
    });
}

#[test]
fn the_servers_host_enforces_access_rules_and_nmserver_down_removes_their_table() {
    if !enter_test("the_servers_host_enforces_access_rules_and_nmserver_down_removes_their_table") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let rules = r#"network "corp" {
            ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; check-in "1s"; acl "deny"
            access-key "k" { for "a" "b"; }
            node "netmaker"
            node "a"
            node "b"
            allow "ping" { from "a"; to "netmaker"; proto "icmp"; }
        }"#;
        let tokens = mesh.apply(rules).await;
        let [a, _b] = [joined(&mesh, &tokens, "a").await, joined(&mesh, &tokens, "b").await];
        let own = own_addresses(&mesh.server).await;
        for to in &own {
            reach(a.host(), *to).await;
        }
        let patience = Duration::from_millis(500);
        for to in addresses(&a, "corp").await {
            let answer = mesh.server.host().ping(to, patience).await.expect("sockets");
            assert_eq!(answer, None, "no rule lets the server's host open anything at {to}");
        }
        let peers = own_network(&mesh.server).await["peers"].as_array().cloned().unwrap_or_default();
        let names: Vec<_> = peers.iter().map(|peer| peer["name"].as_str().unwrap_or_default()).collect();
        assert_eq!(names, ["a"], "nobody else is known");

        mesh.server.process().expect("it runs").stop(SOON).await.expect("it ends");
        reach(a.host(), own[0]).await;
        let (done, said) = down(&mesh).await;
        assert!(done && said.contains("table inet nm-access-nm-corp"), "{said}");
        assert_eq!(left(&mesh).await, Vec::<String>::new());
    });
}

#[test]
fn client_mode_and_a_netclient_on_the_same_host_do_not_interfere() {
    if !enter_test("client_mode_and_a_netclient_on_the_same_host_do_not_interfere") {
        return;
    }
    in_runtime(async {
        const MESSAGE: &str = "nm-corp is taken";
        let mut mesh = Mesh::start().await;
        let other = "network \"other\" { ipv4 \"10.41.0.0/16\"; access-key \"k\" }\n";
        let tokens = mesh.apply(&[other, WITHOUT].concat()).await;
        let mut command = mesh.server.host().command(&mesh.programs.netclient);
        command.args(["join", "--daemon", "off", "--name", "plain", "--interface", "nm-corp", "-t"]);
        command.arg(&tokens["other/access-key/k"]);
        let joined_other = mesh.server.host().run(command).await.expect("it runs");
        assert!(joined_other.status.success(), "{joined_other:?}");
        mesh.apply(&[other, &with(r#"node "netmaker""#)].concat()).await;
        let a = joined(&mesh, &tokens, "a").await;
        let printed = |mesh: &mut Mesh| mesh.server.process().expect("it runs").printed();
        eventually("the log says so", SOON, async || printed(&mut mesh).contains(MESSAGE)).await;
        let settings = mesh.server.data().join("client/netclient.toml");
        assert!(
            printed(&mut mesh).contains(&settings.display().to_string()),
            "and where to choose another name"
        );
        assert_eq!(printed(&mut mesh).matches(MESSAGE).count(), 1);
        assert_eq!(status(&mesh).await["state"], "awaiting", "what cannot come up is not claimed");
        std::fs::write(settings, "interface = \"nm-own\"\n").expect("written");
        mesh.server.kill().await.expect("it is killed");
        mesh.server.serve().await.expect("it serves again");
        let own = own_addresses(&mesh.server).await;
        reach(a.host(), own[0]).await;
        let now = traces(mesh.server.host());
        assert!(now.interfaces.contains("nm-corp") && now.interfaces.contains("nm-own"), "{now:?}");
        assert!(now.names.contains("plain.other") && now.names.contains("a.corp"), "{}", now.names);
        mesh.apply(&[other, WITHOUT].concat()).await;
        eventually("the server's host is no longer a node", SOON, async || {
            let now = traces(mesh.server.host());
            !now.interfaces.contains("nm-own") && !now.names.contains("a.corp")
        })
        .await;
        let now = traces(mesh.server.host());
        assert!(now.interfaces.contains("nm-corp") && now.names.contains("plain.other"), "{now:?}");
    });
}

#[test]
fn in_the_lab_the_server_joins_as_its_own_node() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("mesh.kdl"), with(r#"node "netmaker"; node "a""#)).expect("written");
    let mut command = Command::new(Programs::find().expect("the programs are built").nmplan);
    let output =
        command.arg("lab").arg(folder.path()).arg("--json").stdin(Stdio::null()).output().expect("it runs");
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let network = &verdict["networks"][0];
    let nodes = network["nodes"].as_array().cloned().unwrap_or_default();
    let names: Vec<_> = nodes.iter().map(|node| node["name"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["a", "k-1", "k-2", "netmaker"]);
    assert!(nodes.iter().all(|node| node["names"] == 4), "every node knows every name: {verdict}");
    assert_eq!(network["pairs"].as_array().map(Vec::len), Some(12), "{verdict}");
}
