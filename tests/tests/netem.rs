//! Bad networks: packets that are lost, late, out of order or too large for the path.
//!
//! ```text
//! nmserver ==== underlay ==== a (behind a bad cable), b
//! ```
//!
//! They need the kernel module `sch_netem`, which the guest of `kernel.rs` has: that runs them, and they are
//! ignored elsewhere.

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use end_to_end::{Mesh, addresses, all_ping_all, eventually, in_runtime};
use nmplan::lab::{Agent, Impairment, enter_test};

/// What is declared; `api` is an entry that changes.
fn text(api: &str) -> String {
    format!(
        r#"network "corp" {{
            ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; check-in "2s"
            access-key "named" {{ for "a" "b" "c" }}
            node "a"; node "b"; node "c"
            dns "api" a="{api}"
        }}"#
    )
}

async fn pair(mesh: &Mesh) -> (Vec<Agent>, String) {
    let token = mesh.apply(&text("192.0.2.1")).await["corp/access-key/named"].clone();
    let mut agents = Vec::new();
    for name in ["a", "b"] {
        let mut agent = mesh.agent(name).await;
        agent.join(&token, &[]).await.expect("it joins");
        agent.start_daemon(&[]).expect("the agent starts");
        agents.push(agent);
    }
    all_ping_all(&agents, "corp").await;
    (agents, token)
}

async fn knows(agent: &Agent, address: &str) {
    let what = format!("{} knows {address}", agent.host().name());
    let took = eventually(&what, Duration::from_secs(60), async || {
        agent.host().read("/etc/hosts").expect("it is there").contains(&format!("{address}\tapi.corp"))
    });
    let took = took.await;
    eprintln!("{what} after {:.1} s", took.as_secs_f64());
}

#[test]
#[ignore = "needs netem; kernel.rs runs it in a guest"]
fn under_loss_and_delay_changes_arrive_and_hosts_join() {
    if !enter_test("under_loss_and_delay_changes_arrive_and_hosts_join") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let (mut agents, token) = pair(&mesh).await;
        let round_trip = Duration::from_millis(500);
        let bad = Impairment { loss: 30, delay: round_trip / 2, reordered: 25 };
        agents[0].host().impair(Some(&bad)).await.expect("the kernel has netem");
        for last in 2..5 {
            let address = format!("192.0.2.{last}");
            mesh.apply(&text(&address)).await;
            knows(&agents[0], &address).await;
        }

        let mut joining = mesh.agent("c").await;
        joining.host().impair(Some(&bad)).await.expect("the kernel has netem");
        // A join has ten seconds; a person whose packets are lost calls again.
        eventually("c joins", Duration::from_secs(60), async || joining.join(&token, &[]).await.is_ok())
            .await;
        joining.start_daemon(&[]).expect("the agent starts");
        knows(&joining, "192.0.2.4").await;

        for agent in [&agents[0], &joining] {
            agent.host().impair(None).await.expect("it ends");
        }
        agents.push(joining);
        all_ping_all(&agents, "corp").await;
    });
}

/// Sends a megabyte from one host to an address of the other.
fn sends_a_megabyte(from: &Agent, to: &Agent, address: IpAddr) {
    let listener = to.host().within(|| TcpListener::bind((address, 0))).expect("it listens");
    let at = listener.local_addr().expect("it has an address");
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("it is called");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).map(|_| received.len())
    });
    from.host().within(|| {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(30)).expect("it answers");
        stream.write_all(&vec![7; 1 << 20]).expect("it is sent");
    });
    assert_eq!(receiver.join().expect("it ends").expect("it arrives"), 1 << 20, "to {address}");
}

#[test]
fn on_a_path_of_1280_bytes_large_packets_arrive() {
    if !enter_test("on_a_path_of_1280_bytes_large_packets_arrive") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let (agents, _) = pair(&mesh).await;
        agents[0].host().set_mtu(1280).await.expect("it is set");
        let (there, back) = (addresses(&agents[1], "corp").await, addresses(&agents[0], "corp").await);
        tokio::task::block_in_place(|| {
            there.into_iter().for_each(|address| sends_a_megabyte(&agents[0], &agents[1], address));
            back.into_iter().for_each(|address| sends_a_megabyte(&agents[1], &agents[0], address));
        });
        mesh.apply(&text("192.0.2.2")).await;
        knows(&agents[0], "192.0.2.2").await;
    });
}
