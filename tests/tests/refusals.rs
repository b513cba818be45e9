//! What cannot be is said, in time, and leaves nothing behind.
//!
//! ```text
//! nmserver ==== underlay ==== a
//! ```

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use end_to_end::{Mesh, eventually, in_runtime, mistyped, text_of};
use nmplan::lab::{Machine, enter_test};

const TEXT: &str = r#"network "corp" {
    ipv4 "10.40.0.0/16"
    access-key "one"
    access-key "named" { for "a" }
    node "a" listen-port=51999
}"#;

/// Joins, and gives what was said; whoever is refused is answered within ten seconds and leaves nothing.
async fn refused(machine: &Machine, token: &str, more: &[&str]) -> String {
    let (start, before) = (Instant::now(), hosts(machine));
    let output: Output = machine.netclient(&[&["join", "-t", token], more].concat()).await.expect("it runs");
    let said = text_of(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(start.elapsed() < Duration::from_secs(10), "{said}");
    let host = machine.host();
    // A device process that was told to end says so before it does.
    eventually("every process ends", Duration::from_secs(2), async || host.processes().is_empty()).await;
    let link = host.within(|| netclient::device::link_index("nm-corp")).expect("the kernel answers");
    assert_eq!(link, None, "{said}");
    let left: Vec<_> = host.within(|| {
        let listed = std::fs::read_dir("/etc/netclient").into_iter().flatten().flatten();
        listed.map(|file| file.file_name()).collect()
    });
    assert_eq!(left, Vec::<std::ffi::OsString>::new(), "{said}");
    assert_eq!(hosts(machine), before, "{said}");
    said
}

fn hosts(machine: &Machine) -> String {
    machine.host().read("/etc/hosts").expect("it is there")
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
        let [a, b] = [mesh.machine("a").await, mesh.machine("b").await];

        let said = refused(&a, &mistyped(token), &[]).await;
        assert!(said.contains("mistyped") && said.contains("copy it again"), "{said}");
        let said = refused(&a, "@/nowhere", &[]).await;
        assert!(said.contains("/nowhere"), "{said}");
        let said = refused(&a, "nma_something", &[]).await;
        assert!(said.contains("nmj_"), "{said}");

        // The name that is declared is not this key's to claim.
        let said = refused(&a, token, &[]).await;
        assert!(said.contains("corp/node/a") && said.contains("--name"), "{said}");
        let said = refused(&b, &tokens["corp/access-key/named"], &[]).await;
        assert!(said.contains("lets only a join, not b"), "{said}");

        b.join(token, &[]).await.expect("it joins");
        let c = mesh.machine("c").await;
        let said = refused(&c, token, &[]).await;
        assert!(said.contains("has been used 1 times"), "{said}");

        // The key is withdrawn.
        mesh.apply(r#"network "corp" { ipv4 "10.40.0.0/16" }"#).await;
        let said = refused(&c, token, &[]).await;
        assert!(said.contains("does not exist"), "{said}");

        // A server that hangs takes connections and says nothing.
        let process = mesh.server.process().expect("it runs");
        process.signal(rustix::process::Signal::STOP).expect("it is stopped");
        let said = refused(&c, token, &[]).await;
        assert!(said.contains("cannot reach the server at 198.18."), "{said}");

        mesh.server.kill().await.expect("it is killed");
        let said = refused(&c, token, &[]).await;
        assert!(said.contains("cannot reach the server at 198.18.") && said.contains("refused"), "{said}");

        // Another server answers where the one of the token was.
        std::fs::remove_dir_all(mesh.server.data()).expect("it is removed");
        mesh.server.serve().await.expect("it serves");
        let said = refused(&c, token, &[]).await;
        assert!(said.contains("not from the expected server"), "{said}");
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
        let tokens = mesh.apply(text).await;
        let a = mesh.machine("a").await;
        let said = refused(&a, &tokens["corp/access-key/old"], &[]).await;
        assert!(said.contains("expired on 2001-01-01"), "{said}");
    });
}

#[test]
fn names_ports_and_privileges_that_are_missing_are_said() {
    if !enter_test("names_ports_and_privileges_that_are_missing_are_said") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh.apply(TEXT).await;
        let token = &tokens["corp/access-key/named"];
        let a = mesh.machine("a").await;
        let said = refused(&a, token, &["--interface", "eth0"]).await;
        assert!(said.contains("eth0") && said.contains("--interface"), "{said}");

        // The port that is declared for it is taken: it joins, cannot listen, and leaves again.
        let busy = a.host().within(|| std::net::UdpSocket::bind(("0.0.0.0", 51999))).expect("the port is free");
        let said = refused(&a, token, &[]).await;
        assert!(said.contains("51999 is taken") && said.contains("left the network again"), "{said}");
        let said = refused(&a, token, &["--port", "51999"]).await;
        assert!(said.contains("51999 is taken"), "{said}");
        drop(busy);
        a.join(token, &[]).await.expect("the use was given back");

        let nobody = mesh.machine("b").await;
        let mut command = nobody.host().command(Path::new("setpriv"));
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&mesh.programs.netclient);
        let output = nobody.host().run(command_with(command, token)).await.expect("it runs");
        let said = text_of(&output.stderr);
        assert!(!output.status.success() && said.contains("as root"), "{said}");
    });
}

fn command_with(mut command: std::process::Command, token: &str) -> std::process::Command {
    command.args(["join", "-t", token]);
    command
}

#[test]
fn a_busy_port_of_the_server_is_said() {
    if !enter_test("a_busy_port_of_the_server_is_said") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let host = mesh.server.host();
        let mut command = host.command(&mesh.programs.nmserver);
        command.env("DATA_DIR", host.directory().join("other"));
        let output = host.run(command).await.expect("it runs");
        let said = text_of(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("8081") && said.contains("API_PORT"), "{said}");

        let mut command = host.command(&mesh.programs.nmserver);
        command.env("DATA_DIR", mesh.server.data()).env("API_PORT", "8082").env("GRPC_PORT", "50052");
        let output = host.run(command).await.expect("it runs");
        let said = text_of(&output.stderr);
        assert!(!output.status.success() && said.contains("another nmserver uses"), "{said}");
    });
}
