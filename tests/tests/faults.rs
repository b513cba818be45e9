//! A process that dies loses no packet, and continues from the disk.
//!
//! ```text
//! nmserver ==== underlay ==== a, b
//! ```

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::time::Duration;

use end_to_end::{Mesh, addresses, all_ping_all, eventually, in_runtime, rounds};
use nmplan::lab::{Agent, Pinger, enter_test};

const TEXT: &str = r#"network "corp" {
    ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; check-in "1s"
    access-key "k" uses=3
}"#;

async fn pair(mesh: &Mesh) -> Vec<Agent> {
    let tokens = mesh.apply(TEXT).await;
    let mut agents = Vec::new();
    for name in ["a", "b"] {
        let mut agent = mesh.agent(name).await;
        agent.join(&tokens["corp/access-key/k"], &[]).await.expect("it joins");
        agent.start_daemon(&[]).expect("the agent starts");
        agents.push(agent);
    }
    all_ping_all(&agents, "corp").await;
    agents
}

/// Waits until this many more pings have been sent.
async fn passes(pinger: &Pinger, pings: u64) {
    let until = pinger.count().sent + pings;
    eventually("pings are sent", Duration::from_secs(30), async || pinger.count().sent >= until).await;
}

/// Waits until the server answers an agent.
async fn is_in_touch(agent: &Agent) {
    eventually("the server answers the agent", Duration::from_secs(40), async || {
        agent.status().await.is_ok_and(|status| status["networks"][0]["control"] == "tls")
    })
    .await;
}

#[test]
fn killing_agent_and_server_loses_no_ping() {
    if !enter_test("killing_agent_and_server_loses_no_ping") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let mut agents = pair(&mesh).await;
        let to = addresses(&agents[1], "corp").await[0];
        let pinger = agents[0].host().pinger(to, Duration::from_millis(20)).expect("sockets");
        for round in 0..rounds() {
            for agent in &mut agents {
                agent.kill_daemon().await.expect("it is killed");
            }
            mesh.server.kill().await.expect("it is killed");
            passes(&pinger, 50).await;
            // Without a server the agents come up from the disk.
            for agent in &mut agents {
                agent.start_daemon(&[]).expect("the agent starts");
            }
            passes(&pinger, 50).await;
            mesh.server.serve().await.expect("it serves again");
            for agent in &agents {
                is_in_touch(agent).await;
            }
            assert_eq!(pinger.count().lost, 0, "round {round}");
        }
        let count = pinger.stop().await;
        assert_eq!(count.lost, 0, "{count:?}");
        eprintln!("{} rounds: {count:?}", rounds());
    });
}

#[test]
fn a_device_that_is_ended_is_replaced() {
    if !enter_test("a_device_that_is_ended_is_replaced") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = pair(&mesh).await;
        for _ in 0..rounds() {
            end_to_end::kill_device(agents[0].host(), "nm-corp");
            let pulled = agents[0].netclient(&["pull"]).await.expect("it runs");
            assert!(pulled.status.success(), "{pulled:?}");
            all_ping_all(&agents, "corp").await;
        }
    });
}

#[test]
fn a_host_that_was_off_comes_up_without_the_server() {
    if !enter_test("a_host_that_was_off_comes_up_without_the_server") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let mut agents = pair(&mesh).await;
        let to = addresses(&agents[1], "corp").await;
        mesh.server.kill().await.expect("it is killed");
        for agent in &mut agents {
            agent.kill_daemon().await.expect("it is killed");
            let host = agent.host();
            end_to_end::kill_device(host, "nm-corp");
            eventually("the interface is gone", Duration::from_secs(5), async || {
                host.within(|| netclient::device::link_index("nm-corp"))
                    .expect("the kernel answers")
                    .is_none()
            })
            .await;
            agent.start_daemon(&[]).expect("the agent starts");
        }
        for address in to {
            eventually("they ping each other", Duration::from_secs(20), async || {
                let answer = agents[0].host().ping(address, Duration::from_millis(500)).await;
                answer.expect("sockets").is_some()
            })
            .await;
        }
    });
}
