//! What dies loses no packet, and carries on from the disk.
//!
//! ```text
//! nmserver ==== underlay ==== a, b
//! ```

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::time::Duration;

use end_to_end::{Mesh, addresses, all_ping_all, eventually, in_runtime, rounds};
use nmplan::lab::{Machine, Pinger, enter_test};

const TEXT: &str = r#"network "corp" {
    ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; check-in "1s"
    access-key "k" uses=3
}"#;

async fn pair(mesh: &Mesh) -> Vec<Machine> {
    let tokens = mesh.apply(TEXT).await;
    let mut machines = Vec::new();
    for name in ["a", "b"] {
        let mut machine = mesh.machine(name).await;
        machine.join(&tokens["corp/access-key/k"], &[]).await.expect("it joins");
        machine.start_daemon(&[]).expect("the agent starts");
        machines.push(machine);
    }
    all_ping_all(&machines, "corp").await;
    machines
}

/// Waits until so many more pings have been sent.
async fn passes(pinger: &Pinger, pings: u64) {
    let until = pinger.count().sent + pings;
    eventually("pings are sent", Duration::from_secs(30), async || pinger.count().sent >= until).await;
}

/// Waits until the server answers an agent.
async fn is_in_touch(machine: &Machine) {
    eventually("the server answers the agent", Duration::from_secs(40), async || {
        machine.status().await.is_ok_and(|status| status["networks"][0]["control"] == "tls")
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
        let mut machines = pair(&mesh).await;
        let to = addresses(&machines[1], "corp").await[0];
        let pinger = machines[0].host().pinger(to, Duration::from_millis(20)).expect("sockets");
        for round in 0..rounds() {
            for machine in &mut machines {
                machine.kill_daemon().await.expect("it is killed");
            }
            mesh.server.kill().await.expect("it is killed");
            passes(&pinger, 50).await;
            // Without a server the agents come up from the disk.
            for machine in &mut machines {
                machine.start_daemon(&[]).expect("the agent starts");
            }
            passes(&pinger, 50).await;
            mesh.server.serve().await.expect("it serves again");
            for machine in &machines {
                is_in_touch(machine).await;
            }
            assert_eq!(pinger.count().lost, 0, "round {round}");
        }
        let count = pinger.stop().await;
        assert_eq!(count.lost, 0, "{count:?}");
        eprintln!("{} rounds: {count:?}", rounds());
    });
}

#[test]
fn a_device_process_that_is_killed_is_made_anew() {
    if !enter_test("a_device_process_that_is_killed_is_made_anew") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let machines = pair(&mesh).await;
        for _ in 0..rounds() {
            end_to_end::kill_device(machines[0].host(), "nm-corp");
            let pulled = machines[0].netclient(&["pull"]).await.expect("it runs");
            assert!(pulled.status.success(), "{pulled:?}");
            all_ping_all(&machines, "corp").await;
        }
    });
}

#[test]
fn a_machine_that_was_off_comes_up_without_the_server() {
    if !enter_test("a_machine_that_was_off_comes_up_without_the_server") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let mut machines = pair(&mesh).await;
        let to = addresses(&machines[1], "corp").await;
        mesh.server.kill().await.expect("it is killed");
        for machine in &mut machines {
            machine.kill_daemon().await.expect("it is killed");
            for process in machine.host().processes() {
                let process = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
                let process = process.expect("a process number");
                rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("it is killed");
            }
            let host = machine.host();
            eventually("the interface is gone", Duration::from_secs(5), async || {
                host.within(|| netclient::device::link_index("nm-corp")).expect("the kernel answers").is_none()
            })
            .await;
            machine.start_daemon(&[]).expect("the agent starts");
        }
        for address in to {
            eventually("they ping each other", Duration::from_secs(20), async || {
                let answer = machines[0].host().ping(address, Duration::from_millis(500)).await;
                answer.expect("sockets").is_some()
            })
            .await;
        }
    });
}
