//! A change in the files reaches every node, and affects nothing else.
//!
//! ```text
//! nmserver ==== underlay ==== a, b, c
//! ```

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use end_to_end::{Mesh, addresses, all_ping_all, eventually, in_runtime};
use netclient::device::userspace::Userspace;
use netclient::device::{Device, DeviceState, DeviceStep, PrivateKey};
use nmplan::lab::{Agent, enter_test};

fn text(address_of_c: &str, keepalive: &str) -> String {
    format!(
        r#"network "corp" {{
            ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; keepalive "{keepalive}"; check-in "2s"
            access-key "named" {{ for "a" "b" "c" }}
            node "a"; node "b"; node "c" ipv4="{address_of_c}"
            dns "api" node="c"
        }}"#
    )
}

async fn three(mesh: &Mesh, variables: &[(&str, &str)]) -> Vec<Agent> {
    let tokens = mesh.apply(&text("10.40.0.9", "20s")).await;
    let mut agents = Vec::new();
    for name in ["a", "b", "c"] {
        let mut agent = mesh.agent(name).await;
        agent.join(&tokens["corp/access-key/named"], &[]).await.expect("it joins");
        agent.start_daemon(variables).expect("the agent starts");
        agents.push(agent);
    }
    all_ping_all(&agents, "corp").await;
    agents
}

fn link(agent: &Agent) -> Option<u32> {
    agent.host().within(|| netclient::device::link_index("nm-corp")).expect("the kernel answers")
}

/// The device of an agent, as it is.
fn device(agent: &Agent) -> DeviceState {
    let socket = Path::new("/etc/netclient/device-nm-corp.sock");
    agent.host().within(|| {
        let device = netclient::device::attach("nm-corp", socket).expect("it answers");
        device.expect("it is there").observe().expect("it answers")
    })
}

/// What distinguishes a device from another one under its name: its interface, and its process if it has one.
fn identity(agent: &Agent) -> (Option<u32>, Option<u32>) {
    (link(agent), end_to_end::device_of(agent.host(), "nm-corp"))
}

async fn knows(agent: &Agent, name: &str, address: &str) -> bool {
    agent.host().read("/etc/hosts").expect("it is there").contains(&format!("{address}\t{name}.corp"))
}

/// Applies another address for c, and returns how long it took until all know it.
async fn readdress(mesh: &Mesh, agents: &[Agent], timeout: Duration) -> Duration {
    let links: Vec<_> = agents.iter().map(link).collect();
    let b: IpAddr = addresses(&agents[1], "corp").await[0];
    let pinger = agents[0].host().pinger(b, Duration::from_millis(20)).expect("sockets");
    mesh.apply(&text("10.40.0.10", "20s")).await;
    let took = eventually("all know the new address", timeout, async || {
        let mut all = true;
        for agent in agents {
            all &= knows(agent, "api", "10.40.0.10").await;
        }
        all
    })
    .await;
    all_ping_all(agents, "corp").await;
    let count = pinger.stop().await;
    assert_eq!(count.lost, 0, "a and b are not concerned: {count:?}");
    assert_eq!(agents.iter().map(link).collect::<Vec<_>>(), links, "no interface is replaced");
    took
}

#[test]
fn a_change_is_pushed_and_loses_no_ping_of_others() {
    if !enter_test("a_change_is_pushed_and_loses_no_ping_of_others") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = three(&mesh, &[]).await;
        let took = readdress(&mesh, &agents, Duration::from_secs(3)).await;
        eprintln!("all knew within {took:?} of the apply");

        mesh.apply(&text("10.40.0.10", "7s")).await;
        for agent in &agents {
            eventually("the keepalive is set", Duration::from_secs(3), async || {
                device(agent).peers.values().all(|peer| peer.settings.keepalive == 7)
            })
            .await;
        }
    });
}

#[test]
fn without_the_stream_a_change_arrives_with_the_next_check_in() {
    if !enter_test("without_the_stream_a_change_arrives_with_the_next_check_in") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        // By the variable on two of them, by the file on the third; the log shows what the agents do.
        let log = ("NETCLIENT_LOG", "netclient=debug");
        let mut agents = three(&mesh, &[log, ("NETCLIENT_WATCH", "false")]).await;
        agents[2].kill_daemon().await.expect("it is killed");
        let path = "/etc/netclient/netclient.toml";
        agents[2].host().write(path, "watch = false\n").expect("it is written");
        agents[2].start_daemon(&[log]).expect("the agent starts");
        let took = readdress(&mesh, &agents, Duration::from_secs(6)).await;
        for agent in &mut agents {
            let log = agent.daemon().expect("it runs").printed();
            assert!(log.contains("output=CheckIn") && !log.contains("output=Watch"), "{log}");
        }
        eprintln!("all knew within {took:?} of the apply; they check in each 2 s");
    });
}

#[test]
fn a_node_that_was_cut_off_catches_up() {
    if !enter_test("a_node_that_was_cut_off_catches_up") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = three(&mesh, &[]).await;
        let cut = &agents[1];
        let links: Vec<_> = agents.iter().map(link).collect();
        cut.host().link_down().await.expect("the cable is out");
        mesh.apply(&text("10.40.0.10", "20s")).await;
        eventually("the others know", Duration::from_secs(5), async || {
            knows(&agents[0], "api", "10.40.0.10").await
        })
        .await;
        assert!(knows(cut, "api", "10.40.0.9").await, "the node that is cut off stays as it was");
        assert_eq!(agents.iter().map(link).collect::<Vec<_>>(), links, "and keeps its tunnel");
        cut.host().link_up().await.expect("the cable is in");
        eventually("it catches up", Duration::from_secs(60), async || knows(cut, "api", "10.40.0.10").await)
            .await;
        all_ping_all(&agents, "corp").await;
    });
}

#[test]
fn a_device_outlives_every_change_of_its_port() {
    if !enter_test("a_device_outlives_every_change_of_its_port") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agent = mesh.agent("a").await;
        let host = agent.host();
        let socket = agent.host().directory().join("device.sock");
        let mut device =
            host.within(|| Userspace::spawn("nm-x", &mesh.programs.netclient, &socket)).expect("a device");
        device.apply(&[DeviceStep::SetPrivateKey(PrivateKey([9; 32]))]).expect("it takes a key");
        // The link is up so that something reads it: that is what a change of port disturbs.
        let mut up = host.command("ip");
        up.args(["link", "set", "nm-x", "up"]);
        assert!(host.run(up).await.expect("it runs").status.success());
        let first = end_to_end::device_of(host, "nm-x");
        for port in 4_000..4_040 {
            device.apply(&[DeviceStep::SetListenPort(port)]).expect("it moves");
            assert_eq!(device.observe().expect("it lives on").listen_port, port);
        }
        assert_eq!(end_to_end::device_of(host, "nm-x"), first);
        device.remove().expect("it ends");
        assert_eq!(host.within(|| netclient::device::link_index("nm-x")).expect("the kernel answers"), None);
    });
}

#[test]
fn a_mesh_moves_to_another_port_on_the_devices_that_it_has() {
    if !enter_test("a_mesh_moves_to_another_port_on_the_devices_that_it_has") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = three(&mesh, &[]).await;
        let devices = || -> Vec<_> { agents.iter().map(identity).collect() };
        let before = devices();
        for port in [51_900, 51_901, 51_902] {
            let text = text("10.40.0.9", "20s").replace("check-in", &format!("listen-port {port}; check-in"));
            mesh.apply(&text).await;
            for agent in &agents {
                eventually("the port is set", Duration::from_secs(5), async || {
                    device(agent).listen_port == port
                })
                .await;
            }
            all_ping_all(&agents, "corp").await;
        }
        assert_eq!(devices(), before, "none was replaced");
    });
}

/// A host's device at one moment.
struct Found {
    identity: (Option<u32>, Option<u32>),
    device: DeviceState,
}

fn found(agent: &Agent) -> Found {
    Found { identity: identity(agent), device: device(agent) }
}

/// The device is the one that it was, and each peer that it had and has was changed in place: its session and
/// its counters are kept.
fn assert_kept(before: &Found, now: &Found, what: &str) {
    assert_eq!(before.identity, now.identity, "{what}: no device is replaced");
    for (key, was) in &before.device.peers {
        let Some(is) = now.device.peers.get(key) else { continue };
        assert!(
            was.last_handshake.is_some() && is.last_handshake >= was.last_handshake,
            "{what}: {was:?}, {is:?}"
        );
        assert!(is.received >= was.received && is.sent >= was.sent, "{what}: {was:?}, {is:?}");
    }
}

#[test]
fn every_setting_changes_in_place_and_costs_no_session() {
    if !enter_test("every_setting_changes_in_place_and_costs_no_session") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = three(&mesh, &[]).await;
        let c = device(&agents[2]).public_key.expect("it has a key");
        let b: IpAddr = addresses(&agents[1], "corp").await[0];
        let pinger = agents[0].host().pinger(b, Duration::from_millis(20)).expect("sockets");
        let at = |port: u16| SocketAddr::from((agents[2].host().ipv6(), port));
        let others_reach = |agent: &Agent, port: u16| {
            let reached =
                device(agent).peers.get(&c).is_none_or(|peer| peer.settings.endpoint == Some(at(port)));
            reached && (port == 51_821 || agent.host().name() != "c" || device(agent).listen_port == port)
        };
        let node = |more: &str| text("10.40.0.10", "7s").replace("ipv4=\"10.40.0.10\"", more);
        let moved = format!("ipv4=\"10.40.0.10\" endpoint=\"{}\"", at(51_821));
        let port = format!("ipv4=\"10.40.0.10\" listen-port=51900 endpoint=\"{}\"", at(51_900));
        let with_mtu = |text: String| text.replace("check-in", "mtu 1300; check-in");
        type Holds<'a> = &'a (dyn Fn(&Agent) -> bool + Sync);
        let changes: [(&str, String, Holds<'_>); 5] = [
            ("the keepalive", text("10.40.0.9", "7s"), &|agent| {
                device(agent).peers.values().all(|peer| peer.settings.keepalive == 7)
            }),
            ("an address", text("10.40.0.10", "7s"), &|agent| {
                let hosts = agent.host().read("/etc/hosts").expect("it is there");
                hosts.contains("10.40.0.10\tapi.corp")
            }),
            ("the MTU", with_mtu(text("10.40.0.10", "7s")), &|agent| {
                end_to_end::link(agent.host(), "nm-corp")["mtu"] == 1300
            }),
            ("an endpoint", with_mtu(node(&moved)), &|agent| others_reach(agent, 51_821)),
            ("a port", with_mtu(node(&port)), &|agent| others_reach(agent, 51_900)),
        ];
        for (what, text, holds) in changes {
            let before: Vec<_> = agents.iter().map(found).collect();
            mesh.apply(&text).await;
            for agent in &agents {
                eventually(what, Duration::from_secs(5), async || holds(agent)).await;
            }
            all_ping_all(&agents, "corp").await;
            for (agent, before) in agents.iter().zip(&before) {
                assert_kept(before, &found(agent), what);
            }
        }
        let count = pinger.stop().await;
        assert_eq!(count.lost, 0, "a and b have the session that they had: {count:?}");
    });
}

/// What a folder holds, in the order of names.
fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Waits until every agent has the addresses that the server gives its node.
async fn all_have_their_addresses(mesh: &Mesh, agents: &[(&str, Agent)]) {
    eventually("all have their addresses", Duration::from_secs(10), async || {
        let output = mesh.nmplan(&["status", "--json"]).await;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        for (name, agent) in agents {
            let node = nodes.iter().find(|node| node["name"] == **name).expect("it is a node");
            let given: Vec<IpAddr> =
                serde_json::from_value(node["addresses"].clone()).expect("a list of addresses");
            if addresses(agent, "corp").await != given {
                return false;
            }
        }
        true
    })
    .await;
}

/// A story, as it is lived through by nodes that stay.
struct Lived {
    /// Its folder.
    story: &'static str,
    /// The nodes that join once the state of that number is applied, each with its key.
    joins: &'static [(usize, &'static str, &'static str)],
    /// Whether in the state of that number the first node pings the second.
    pings: fn(usize, &str, &str) -> bool,
}

const LIVED: &[Lived] = &[
    Lived {
        story: "behind-nat",
        joins: &[
            (1, "hq-1", "first"),
            (1, "hq-2", "first"),
            (1, "till-1", "first"),
            (1, "branches-1", "branches"),
        ],
        pings: |state, _, _| state < 4,
    },
    Lived {
        story: "exit",
        joins: &[
            (1, "exit-fra", "first"),
            (1, "laptop-ana", "first"),
            (1, "laptop-ben", "first"),
            (1, "server-1", "first"),
            (3, "exit-muc", "second"),
        ],
        pings: |state, _, _| state < 4,
    },
    Lived {
        story: "first-mesh",
        joins: &[(1, "gw", "first"), (1, "db", "first"), (1, "laptop", "first")],
        pings: |_, _, _| true,
    },
    Lived {
        story: "road-warriors",
        joins: &[(1, "gw-fra", "first"), (1, "db-1", "first"), (1, "web-1", "first")],
        pings: |state, _, _| state < 4,
    },
    Lived {
        story: "two-offices",
        joins: &[
            (1, "gw-fra", "first"),
            (1, "gw-muc", "first"),
            (1, "laptop-ana", "first"),
            (3, "gw-fra-2", "second"),
        ],
        pings: |state, _, _| state < 4,
    },
    Lived {
        story: "who-may-talk",
        joins: &[
            (1, "db-1", "first"),
            (1, "laptop-ana", "first"),
            (1, "laptop-ben", "first"),
            (1, "mon-1", "first"),
            (1, "web-1", "first"),
            (5, "voice-1", "voice"),
            (5, "runner-1", "runner"),
        ],
        pings: |state, from, to| {
            let to_server = ["db-1", "mon-1", "voice-1", "web-1"].contains(&to);
            match state {
                1 | 2 => true,
                3 => from == "laptop-ana" || to_server,
                4 | 5 => from == "laptop-ana" || from == "mon-1",
                _ => (from == "laptop-ana" || from == "mon-1") && to_server,
            }
        },
    },
];

#[test]
fn every_story_is_lived_through_on_the_devices_that_it_begins_with() {
    if !enter_test("every_story_is_lived_through_on_the_devices_that_it_begins_with") {
        return;
    }
    in_runtime(async {
        let stories = sorted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/stories"));
        let titles: Vec<_> = stories.iter().filter_map(|story| story.file_name()?.to_str()).collect();
        assert_eq!(titles, LIVED.iter().map(|lived| lived.story).collect::<Vec<_>>());
        let mesh = Mesh::start().await;
        for (folder, Lived { story, joins, pings }) in stories.iter().zip(LIVED) {
            let mut agents: Vec<(&str, Agent)> = Vec::new();
            for (_, name, _) in *joins {
                agents.push((name, mesh.agent(&format!("{story}.{name}")).await));
            }
            // In the world of the first story the gateway, the first of its nodes, has an address of its own.
            let gateway = agents[0].1.host().ipv4().to_string();
            let mut tokens = end_to_end::Tokens::new();
            let mut made = Vec::new();
            for (state, path) in (1..).zip(sorted(folder)) {
                let text = std::fs::read_to_string(path).expect("it can be read");
                tokens.extend(mesh.apply(&text.replace("192.0.2.10", &gateway)).await);
                for (place, (_, name, key)) in joins.iter().enumerate().filter(|(_, join)| join.0 == state) {
                    let agent = &mut agents[place].1;
                    let token = &tokens[&format!("corp/access-key/{key}")];
                    agent.join(token, &["--name", name]).await.expect("it joins");
                    agent.start_daemon(&[]).expect("the agent starts");
                    made.push(identity(agent));
                }
                let up = &agents[..made.len()];
                all_have_their_addresses(&mesh, up).await;
                let may = |from: &Agent, to: &Agent| {
                    let name = |agent: &Agent| agent.host().name()[story.len() + 1..].to_owned();
                    pings(state, &name(from), &name(to))
                };
                end_to_end::each_pings_whom_it_may(up.iter().map(|(_, agent)| agent), "corp", may).await;
            }
            assert_eq!(agents.iter().map(|(_, agent)| identity(agent)).collect::<Vec<_>>(), made);
            for (name, agent) in &agents {
                let left = agent.netclient(&["leave"]).await.expect("it runs");
                assert!(left.status.success(), "{name}: {left:?}");
                eventually("nothing is left", Duration::from_secs(5), async || {
                    identity(agent) == (None, None)
                })
                .await;
            }
        }
    });
}
