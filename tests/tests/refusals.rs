//! What is not possible is refused with a clear error, in time, and leaves nothing behind.
//!
//! ```text
//! nmserver ==== underlay ==== a
//! ```

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use end_to_end::{Mesh, eventually, in_runtime, mistyped, text_of};
use nmplan::lab::{Agent, enter_test};

const TEXT: &str = r#"network "corp" {
    ipv4 "10.40.0.0/16"
    access-key "one"
    access-key "named" { for "a" }
    node "a" listen-port=51999
}"#;

/// Joins, and returns the error that was printed; the refusal comes within ten seconds and nothing is left.
async fn refused(agent: &Agent, token: &str, more: &[&str]) -> String {
    let start = Instant::now();
    let before = hosts(agent);
    let output: Output = agent.netclient(&[&["join", "-t", token], more].concat()).await.expect("it runs");
    let printed = text_of(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(start.elapsed() < Duration::from_secs(10), "{printed}");
    let host = agent.host();
    // A device process that is asked to end answers before it has ended.
    eventually("every process ends", Duration::from_secs(2), async || host.processes().is_empty()).await;
    let link = host.within(|| netclient::device::link_index("nm-corp")).expect("the kernel answers");
    assert_eq!(link, None, "{printed}");
    let left: Vec<_> = host.within(|| {
        let listed = std::fs::read_dir("/etc/netclient").into_iter().flatten().flatten();
        listed.map(|file| file.file_name()).collect()
    });
    assert_eq!(left, Vec::<std::ffi::OsString>::new(), "{printed}");
    assert_eq!(hosts(agent), before, "{printed}");
    printed
}

fn hosts(agent: &Agent) -> String {
    agent.host().read("/etc/hosts").expect("it is there")
}

#[test]
fn tokens_that_cannot_be_used_are_refused() {
    if !enter_test("tokens_that_cannot_be_used_are_refused") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let tokens = mesh.apply(TEXT).await;
        let token = &tokens["corp/access-key/one"];
        let [a, b] = [mesh.agent("a").await, mesh.agent("b").await];

        let printed = refused(&a, &mistyped(token), &[]).await;
        assert!(printed.contains("mistyped") && printed.contains("copy it again"), "{printed}");
        let printed = refused(&a, "@/nowhere", &[]).await;
        assert!(printed.contains("/nowhere"), "{printed}");
        let printed = refused(&a, "nma_something", &[]).await;
        assert!(printed.contains("nmj_"), "{printed}");

        // The name that is declared is not this key's to claim.
        let printed = refused(&a, token, &[]).await;
        assert!(printed.contains("corp/node/a") && printed.contains("--name"), "{printed}");
        let printed = refused(&b, &tokens["corp/access-key/named"], &[]).await;
        assert!(printed.contains("lets only a join, not b"), "{printed}");

        b.join(token, &[]).await.expect("it joins");
        let c = mesh.agent("c").await;
        let printed = refused(&c, token, &[]).await;
        assert!(printed.contains("has been used 1 time,"), "{printed}");

        // The key is withdrawn.
        mesh.apply(r#"network "corp" { ipv4 "10.40.0.0/16" }"#).await;
        let printed = refused(&c, token, &[]).await;
        assert!(printed.contains("was deleted"), "{printed}");

        // A server that hangs accepts connections and does not answer.
        let process = mesh.server.process().expect("it runs");
        process.signal(rustix::process::Signal::STOP).expect("it is stopped");
        let printed = refused(&c, token, &[]).await;
        assert!(printed.contains("cannot reach the server at 198.18."), "{printed}");

        mesh.server.kill().await.expect("it is killed");
        let printed = refused(&c, token, &[]).await;
        assert!(
            printed.contains("cannot reach the server at 198.18.") && printed.contains("refused"),
            "{printed}"
        );

        // Another server answers at the address of the token's server.
        std::fs::remove_dir_all(mesh.server.data()).expect("it is removed");
        mesh.server.serve().await.expect("it serves");
        let printed = refused(&c, token, &[]).await;
        assert!(printed.contains("not from the expected server"), "{printed}");
    });
}

#[test]
fn a_key_that_has_expired_lets_nobody_in() {
    if !enter_test("a_key_that_has_expired_lets_nobody_in") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let text = r#"network "corp" { ipv4 "10.40.0.0/16"; access-key "old" expires="2001-01-01" }"#;
        mesh.apply(&text.replace(" expires=\"2001-01-01\"", "")).await;
        let tokens = mesh.apply(text).await;
        let a = mesh.agent("a").await;
        let printed = refused(&a, &tokens["corp/access-key/old"], &[]).await;
        assert!(printed.contains("expired on 2001-01-01"), "{printed}");
    });
}

#[test]
fn missing_names_ports_and_privileges_are_reported() {
    if !enter_test("missing_names_ports_and_privileges_are_reported") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh.apply(TEXT).await;
        let token = &tokens["corp/access-key/named"];
        let a = mesh.agent("a").await;
        let printed = refused(&a, token, &["--interface", "eth0"]).await;
        assert!(printed.contains("eth0") && printed.contains("--interface"), "{printed}");

        // The port that is declared for it is taken: it joins, cannot listen, and leaves again.
        let busy =
            a.host().within(|| std::net::UdpSocket::bind(("0.0.0.0", 51999))).expect("the port is free");
        let printed = refused(&a, token, &[]).await;
        assert!(
            printed.contains("51999 is taken") && printed.contains("left the network again"),
            "{printed}"
        );
        let printed = refused(&a, token, &["--port", "51999"]).await;
        assert!(printed.contains("51999 is taken"), "{printed}");
        drop(busy);
        a.join(token, &[]).await.expect("the use was given back");

        let unprivileged = mesh.agent("b").await;
        let mut command = unprivileged.host().command(Path::new("setpriv"));
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&mesh.programs.netclient);
        let output = unprivileged.host().run(command_with(command, token)).await.expect("it runs");
        let printed = text_of(&output.stderr);
        assert!(!output.status.success() && printed.contains("as root"), "{printed}");
    });
}

fn command_with(mut command: std::process::Command, token: &str) -> std::process::Command {
    command.args(["join", "-t", token]);
    command
}

#[test]
fn a_busy_port_of_the_server_is_reported() {
    if !enter_test("a_busy_port_of_the_server_is_reported") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let host = mesh.server.host();
        let mut command = host.command(&mesh.programs.nmserver);
        command.env("DATA_DIR", host.directory().join("other"));
        let output = host.run(command).await.expect("it runs");
        let printed = text_of(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.contains("8081") && printed.contains("API_PORT"), "{printed}");

        let mut command = host.command(&mesh.programs.nmserver);
        command.env("DATA_DIR", mesh.server.data()).env("API_PORT", "8082").env("GRPC_PORT", "50052");
        let output = host.run(command).await.expect("it runs");
        let printed = text_of(&output.stderr);
        assert!(!output.status.success() && printed.contains("another nmserver uses"), "{printed}");
    });
}
