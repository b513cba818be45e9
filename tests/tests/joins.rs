//! Nodes join, reach each other, and leave.
//!
//! ```text
//! nmserver ==== underlay ==== a, b, c, d
//! ```

use std::time::Duration;

use end_to_end::{Mesh, addresses, all_ping_all, eventually, in_runtime, text_of};
use nmplan::lab::{Agent, Error, enter_test};

/// Lets agents of these names join and keeps them current.
async fn joined(mesh: &Mesh, token: &str, names: &[&str]) -> Vec<Agent> {
    let mut agents = Vec::new();
    for name in names {
        let mut agent = mesh.agent(name).await;
        agent.join(token, &[]).await.expect("it joins");
        agent.start_daemon(&[]).expect("the agent starts");
        agents.push(agent);
    }
    agents
}

#[test]
fn a_reinstalled_host_is_its_node_again_after_the_command_that_the_refusal_prints() {
    if !enter_test("a_reinstalled_host_is_its_node_again_after_the_command_that_the_refusal_prints") {
        return;
    }
    in_runtime(async {
        const NAMED: &[&str] = &["--name", "db-1"];
        let mesh = Mesh::start().await;
        let text = r#"network "corp" {
            ipv4 "10.40.0.0/16"; check-in "1s"
            node "db-1"; access-key "named" { for "db-1" }
        }"#;
        let tokens = mesh.apply(text).await;
        let token = &tokens["corp/access-key/named"];
        let mut before = mesh.agent("a").await;
        before.join(token, NAMED).await.expect("it joins");
        before.start_daemon(&[]).expect("the agent starts");
        // To the server a host whose state is lost is another one.
        let again = mesh.agent("b").await;
        let refused = again.join(token, NAMED).await.expect_err("the name is taken").to_string();
        assert!(refused.contains("nmplan node remove corp/db-1"), "{refused}");
        let nobody = mesh.nmplan(&["node", "remove", "corp/db-1"]).await;
        assert_eq!(nobody.status.code(), Some(1), "there is no terminal to ask on: {nobody:?}");
        let removed = mesh.nmplan(&["node", "remove", "corp/db-1", "-y"]).await;
        assert!(removed.status.success(), "{removed:?}");
        let note = text_of(&removed.stderr);
        assert!(note.contains("Removed corp/node/db-1 as revision"), "{note}");
        assert!(note.contains("with the token of corp/access-key/named"), "{note}");
        again.join(token, NAMED).await.expect("the name and the use of the key are free again");
        eventually("the host that was removed cleans up", Duration::from_secs(10), async || {
            addresses(&before, "corp").await.is_empty()
        })
        .await;
    });
}

#[test]
fn a_key_of_three_uses_lets_three_in_and_all_ping_all() {
    if !enter_test("a_key_of_three_uses_lets_three_in_and_all_ping_all") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let text =
            r#"network "corp" { ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; access-key "three" uses=3 }"#;
        let tokens = mesh.apply(text).await;
        let token = &tokens["corp/access-key/three"];
        let agents = joined(&mesh, token, &["a", "b", "c"]).await;
        all_ping_all(&agents, "corp").await;

        assert_wg_shows(&agents[0]).await;

        let fourth = mesh.agent("d").await;
        let refused = fourth.join(token, &[]).await.expect_err("the key is spent");
        assert!(refused.to_string().contains("has been used 3 times"), "{refused}");
        assert_nothing_is_left(&fourth);
        let hosts = agents[0].host().read("/etc/hosts").expect("it is there");
        assert!(hosts.contains("b.corp") && !hosts.contains("d.corp"), "{hosts}");

        agents[0].join(token, &[]).await.expect("joining again changes nothing");
        let left = agents[2].netclient(&["leave"]).await.expect("it runs");
        assert!(left.status.success(), "{left:?}");
        let gone = addresses(&agents[2], "corp").await;
        assert!(gone.is_empty(), "{gone:?}");
        eventually("the others drop the node that left", Duration::from_secs(5), async || {
            let hosts = agents[0].host().read("/etc/hosts").expect("it is there");
            !hosts.contains("c.corp")
        })
        .await;
        all_ping_all(&agents[..2], "corp").await;
    });
}

/// WireGuard's own tool sees the device as one of its own.
async fn assert_wg_shows(agent: &Agent) {
    let mut command = agent.host().command("wg");
    command.args(["show", "nm-corp"]);
    let output = agent.host().run(command).await.expect("wireguard-tools are installed");
    let shown = text_of(&output.stdout);
    assert!(output.status.success() && shown.contains("listening port: 51821"), "{output:?}");
    assert_eq!(shown.matches("latest handshake").count(), 2, "{shown}");
    assert!(shown.contains("private key: (hidden)"), "{shown}");
}

/// Nothing of the agent is on the host but the programs that the test itself runs.
fn assert_nothing_is_left(agent: &Agent) {
    let host = agent.host();
    assert_eq!(host.processes(), Vec::<u32>::new(), "no process");
    let link = host.within(|| netclient::device::link_index("nm-corp")).expect("the kernel answers");
    assert_eq!(link, None, "no interface");
    assert!(!host.within(|| std::path::Path::new("/etc/netclient/network-corp.json").exists()), "no state");
    assert!(!host.read("/etc/hosts").expect("it is there").contains("nm-corp"), "no names");
}

#[test]
fn in_a_small_network_and_through_a_hub_all_reach_all() {
    if !enter_test("in_a_small_network_and_through_a_hub_all_reach_all") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh
            .apply(
                r#"
                network "small" { ipv4 "10.41.0.0/26"; access-key "k" uses=3 }
                network "star" {
                    ipv4 "10.42.0.0/24"; ipv6 "fd42::/64"; hub "hub"
                    node "hub"; access-key "hub" { for "hub" }; access-key "k" uses=2
                }
                "#,
            )
            .await;
        let small = joined(&mesh, &tokens["small/access-key/k"], &["s1", "s2", "s3"]).await;
        all_ping_all(&small, "small").await;

        let mut star = joined(&mesh, &tokens["star/access-key/k"], &["x", "y"]).await;
        star.extend(joined(&mesh, &tokens["star/access-key/hub"], &["hub"]).await);
        all_ping_all(&star, "star").await;
        let status = star[0].status().await.expect("the agent answers");
        let peers = status["networks"][0]["peers"].as_array().cloned().unwrap_or_default();
        assert_eq!(peers.len(), 1, "the hub is the only peer: {peers:?}");
        let reaches = status["networks"][0]["reaches"].as_array().cloned().unwrap_or_default();
        assert!(!reaches.is_empty() && reaches.iter().all(|it| it["via"] == "hub"), "{reaches:?}");
    });
}

#[test]
fn two_networks_on_one_host_are_separate() {
    if !enter_test("two_networks_on_one_host_are_separate") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh
            .apply(
                r#"
                network "one" { ipv4 "10.43.0.0/24"; access-key "k" uses=2 }
                network "two" { ipv4 "10.44.0.0/24"; access-key "k" uses=2 }
                "#,
            )
            .await;
        let agents = joined(&mesh, &tokens["one/access-key/k"], &["a", "b"]).await;
        for agent in &agents {
            agent.join(&tokens["two/access-key/k"], &[]).await.expect("it joins the second as well");
        }
        all_ping_all(&agents, "one").await;
        all_ping_all(&agents, "two").await;
        let taken = mesh.agent("c").await;
        let refused = taken.join(&tokens["one/access-key/k"], &["--interface", "lo"]).await;
        assert!(matches!(&refused, Err(Error::Refused(why)) if why.contains("--interface")), "{refused:?}");
    });
}

#[test]
fn a_node_that_left_joins_again_under_the_same_daemon() {
    if !enter_test("a_node_that_left_joins_again_under_the_same_daemon") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let text =
            r#"network "corp" { ipv4 "10.40.0.0/16"; check-in "1s"; access-key "k" uses="unlimited" }"#;
        let token = mesh.apply(text).await["corp/access-key/k"].clone();
        let agents = joined(&mesh, &token, &["a", "b"]).await;
        for _ in 0..3 {
            let left = agents[0].netclient(&["leave"]).await.expect("it runs");
            assert!(left.status.success(), "{left:?}");
            agents[0].join(&token, &[]).await.expect("it joins again");
            all_ping_all(&agents, "corp").await;
            let news = agents[0].netclient(&["checkin"]).await.expect("it runs");
            assert!(news.status.success(), "the server knows it under its new identity: {news:?}");
        }
    });
}

#[test]
fn networks_of_one_server_that_are_joined_at_once_share_an_identity() {
    if !enter_test("networks_of_one_server_that_are_joined_at_once_share_an_identity") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let networks: String = (1..=6)
            .map(|number| {
                format!("network \"n{number}\" {{ ipv4 \"10.{number}.0.0/24\"; access-key \"k\" }}\n")
            })
            .collect();
        let tokens = mesh.apply(&networks).await;
        let agent = mesh.agent("a").await;
        let joins = tokens.values().map(|token| agent.join(token, &[]));
        for outcome in futures_util::future::join_all(joins).await {
            outcome.expect("it joins");
        }
        for number in 1..=6 {
            let checked_in =
                agent.netclient(&["checkin", "-n", &format!("n{number}")]).await.expect("it runs");
            assert!(checked_in.status.success(), "{checked_in:?}");
        }
    });
}
