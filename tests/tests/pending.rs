//! Hosts without an access key wait until somebody lets them in: by hand, or in a file.
//!
//! ```text
//! nmserver ==== underlay ==== a, b, c, d
//! ```

use std::time::Duration;

use end_to_end::{Mesh, addresses, all_ping_all, eventually, in_runtime, text_of};
use nmplan::lab::{Agent, enter_test};
use serde_json::Value;

const OPEN: &str = r#"network "corp" { ipv4 "10.40.0.0/16"; check-in "1s"; manual-approval; }"#;

/// The words of the line that `nmserver config` prints for hosts, for a network.
async fn line(mesh: &Mesh, network: &str) -> Vec<String> {
    let mut command = mesh.server.host().command(&mesh.programs.nmserver);
    command.arg("config").env("DATA_DIR", mesh.server.data());
    command.env("SERVER_HOST", mesh.server.host().ipv4().to_string());
    let printed = mesh.server.host().run(command).await.expect("nmserver runs");
    let text = text_of(&printed.stdout);
    let line =
        text.lines().find_map(|line| line.strip_prefix("#   netclient ")).expect("the line is printed");
    line.replace("NETWORK", network).split_whitespace().map(ToOwned::to_owned).collect()
}

async fn asks(mesh: &Mesh, agent: &Agent, more: &[&str]) -> String {
    let line = line(mesh, "corp").await;
    let words: Vec<&str> = line.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let asked = agent.netclient(&words).await.expect("it runs");
    assert!(asked.status.success(), "{asked:?}");
    text_of(&asked.stdout)
}

async fn fingerprint(agent: &Agent) -> String {
    let status = agent.status().await.expect("the agent answers");
    status["waiting"][0]["fingerprint"].as_str().expect("it waits").to_owned()
}

/// What nmplan says of nodes.
async fn nodes(mesh: &Mesh) -> Vec<Value> {
    let listed = mesh.nmplan(&["node", "list", "--json"]).await;
    assert!(listed.status.success(), "{listed:?}");
    serde_json::from_slice(&listed.stdout).expect("a list")
}

/// The name and the state of each node.
async fn states(mesh: &Mesh) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    nodes(mesh).await.iter().map(|node| (text(&node["name"]), text(&node["state"]))).collect()
}

fn state(name: &str, state: &str) -> (String, String) {
    (name.to_owned(), state.to_owned())
}

#[test]
fn hosts_wait_until_they_are_let_in_by_hand_or_in_a_file_and_then_reach_each_other() {
    if !enter_test("hosts_wait_until_they_are_let_in_by_hand_or_in_a_file_and_then_reach_each_other") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        mesh.apply(OPEN).await;
        let mut agents = Vec::new();
        for name in ["a", "b"] {
            let mut agent = mesh.agent(name).await;
            let said = asks(&mesh, &agent, &[]).await;
            assert!(
                said.contains(&format!("corp: waits as {name}")) && said.contains("node approve"),
                "{said}"
            );
            assert!(said.contains(&fingerprint(&agent).await), "{said}");
            assert!(addresses(&agent, "corp").await.is_empty());
            let link = agent.host().within(|| netclient::device::link_index("nm-corp"));
            assert_eq!(link.expect("the kernel answers"), None, "no interface");
            agent.start_daemon(&[]).expect("the agent starts");
            agents.push(agent);
        }
        assert_eq!(states(&mesh).await, [state("a", "pending"), state("b", "pending")]);
        let shown = text_of(&mesh.nmplan(&["status"]).await.stdout);
        for part in ["0 nodes", "2 hosts wait", "nmplan node approve corp/a", "sha256:"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }

        let by_name = mesh.nmplan(&["node", "approve", "corp/a", "-y"]).await;
        assert!(!by_name.status.success(), "a name is no proof");
        let host = fingerprint(&agents[0]).await;
        assert!(text_of(&by_name.stderr).contains(&format!("--identity {host} -y")), "{by_name:?}");
        let by_hand = mesh.nmplan(&["node", "approve", "corp/a", "--identity", &host, "-y"]).await;
        assert!(by_hand.status.success(), "{by_hand:?}");

        let host = fingerprint(&agents[1]).await;
        let file = OPEN.replace('}', &format!("node \"db-1\" ipv4=\"10.40.0.9\" approved=\"{host}\"; }}"));
        let written = mesh.file("plan.kdl");
        std::fs::write(&written, &file).expect("a file is written");
        let written = written.display().to_string();
        let plan = mesh.nmplan(&["plan", "--project", "test", "-f", &written]).await;
        let plan = text_of(&plan.stdout);
        assert!(plan.contains("lets in the host that has waited since") && plan.contains(&host), "{plan}");
        mesh.apply(&file).await;

        for agent in &agents {
            eventually("it goes on by itself", Duration::from_secs(35), async || {
                !addresses(agent, "corp").await.is_empty()
            })
            .await;
        }
        all_ping_all(&agents, "corp").await;
        assert_eq!(
            addresses(&agents[1], "corp").await,
            ["10.40.0.9".parse::<std::net::IpAddr>().expect("good")]
        );
        eventually("both are online", Duration::from_secs(10), async || {
            states(&mesh).await == [state("a", "online"), state("db-1", "online")]
        })
        .await;
        let again = mesh.nmplan(&["node", "approve", "corp/b", "--identity", &host, "-y"]).await;
        assert!(text_of(&again.stderr).contains("no host waits"), "approved once: {again:?}");
        let history = text_of(&mesh.nmplan(&["history"]).await.stdout);
        for part in ["host a", "host b", "ask (1 node)", "approve (1 node)"] {
            assert!(history.contains(part), "{part}: {history}");
        }
    });
}

#[test]
fn a_server_that_is_killed_forgets_nobody_who_waits_and_a_host_without_a_daemon_asks_by_hand() {
    if !enter_test(
        "a_server_that_is_killed_forgets_nobody_who_waits_and_a_host_without_a_daemon_asks_by_hand",
    ) {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        mesh.apply(OPEN).await;
        let [agent, refused] = [mesh.agent("a").await, mesh.agent("b").await];
        asks(&mesh, &agent, &["--name", "web"]).await;
        asks(&mesh, &refused, &["--name", "web"]).await;
        mesh.server.kill().await.expect("it is killed");
        let away = agent.netclient(&["checkin"]).await.expect("it runs");
        assert!(
            !away.status.success() && text_of(&away.stderr).contains("cannot reach the server"),
            "{away:?}"
        );
        mesh.server.serve().await.expect("it serves again");
        let still = agent.netclient(&["checkin"]).await.expect("it runs");
        assert!(text_of(&still.stdout).contains("waits as web"), "{still:?}");

        let several = mesh.nmplan(&["node", "remove", "corp/web", "-y"]).await;
        let said = text_of(&several.stderr);
        let hosts = [fingerprint(&agent).await, fingerprint(&refused).await];
        assert!(said.contains("2 hosts wait") && hosts.iter().all(|host| said.contains(host)), "{said}");
        let dropped =
            mesh.nmplan(&["node", "remove", "corp/web", "--identity", &hosts[1], "--ban", "-y"]).await;
        assert!(dropped.status.success(), "{dropped:?}");
        let told = refused.netclient(&["checkin"]).await.expect("it runs");
        assert!(text_of(&told.stdout).contains("does not wait any more"), "{told:?}");
        let left = refused.netclient(&["leave"]).await.expect("it runs");
        assert!(left.status.success(), "{left:?}");

        let approved =
            mesh.nmplan(&["node", "approve", "corp/web", "--identity", &hosts[0], "--as", "www", "-y"]).await;
        assert!(approved.status.success(), "{approved:?}");
        let joined = agent.netclient(&["checkin"]).await.expect("it runs");
        assert!(text_of(&joined.stdout).contains("Joined corp as www"), "{joined:?}");
        assert_eq!(addresses(&agent, "corp").await.len(), 1);
    });
}

#[test]
fn a_wrong_pin_is_named_and_nothing_is_left() {
    if !enter_test("a_wrong_pin_is_named_and_nothing_is_left") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        mesh.apply(OPEN).await;
        let agent = mesh.agent("a").await;
        let mut words = line(&mesh, "corp").await;
        let at = words.iter().position(|word| word.starts_with("sha256:")).expect("a pin");
        let pin = std::mem::replace(&mut words[at], format!("sha256:{}", "0".repeat(64)));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let refused = agent.netclient(&words).await.expect("it runs");
        let said = text_of(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1));
        assert!(said.contains(&pin) && said.contains("nmserver config"), "{said}");
        assert!(states(&mesh).await.is_empty());
        assert!(!agent.host().within(|| std::path::Path::new("/etc/netclient/waiting-corp.json").exists()));
    });
}
