//! A host without an access key, from its question to its tunnel, against the real server: no socket, no device,
//! no waiting.

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::time::Duration;

use netclient::agent::{AgentError, JoinOptions, JoinOutcome};
use netclient::control::CallError;
use netclient::device::Refusal;
use netclient::waiting::WaitingState;
use schema::scalars::{Fingerprint, SigningKey};
use support::{Mesh, Node, eventually, is_full_mesh, pass, until_done};

const OPEN: &str =
    r#"network "corp" { ipv4 "10.0.0.0/24"; manual-approval; access-key "k" uses="unlimited"; }"#;
const CLOSED: &str = r#"network "corp" { ipv4 "10.0.0.0/24"; access-key "k" uses="unlimited"; }"#;
/// A host asks at the latest each half minute, and is in a moment later.
const IN: Duration = Duration::from_secs(35);

fn approving(name: &str, host: Fingerprint) -> String {
    OPEN.replace("manual-approval;", &format!("manual-approval; node \"{name}\" approved=\"{host}\";"))
}

#[tokio::test(start_paused = true)]
async fn a_host_that_waits_goes_on_by_itself_once_somebody_lets_it_in() {
    let mesh = Mesh::new(OPEN).await;
    let a = Node::joined(&mesh, "a").await;
    let mut b = Node::new(&mesh, "b");
    let host = b.waits(&mesh).await;
    b.start().await;
    pass(Duration::from_secs(40)).await;
    assert_eq!((mesh.waiting(), mesh.has("b"), a.peers()), (vec!["b".to_owned()], false, 0));
    assert!(b.host.device(support::INTERFACE).is_none(), "it has no interface");
    let status = b.agent.status(true, |_| Default::default()).await.expect("it is known");
    assert_eq!(status.waiting.len(), 1);
    assert_eq!((status.waiting[0].fingerprint, status.networks.len()), (host, 0));
    mesh.approve(host, "b").await.expect("it waits");
    let took = eventually("b is in", || is_full_mesh(&[&a, &b])).await;
    assert!(took < IN, "{took:?}");
    assert!(mesh.approve(host, "b").await.expect_err("it is in").contains("has joined corp as b already"));
    assert_eq!(b.files().iter().filter(|file| file.starts_with("waiting-")).count(), 0, "{:?}", b.files());
}

#[tokio::test(start_paused = true)]
async fn an_approval_outlives_whatever_fails_on_the_host_at_that_moment() {
    let mesh = Mesh::new(OPEN).await;
    let a = Node::joined(&mesh, "a").await;
    for full in [false, true] {
        let name = if full { "c" } else { "b" };
        let mut node = Node::new(&mesh, name);
        let host = node.waits(&mesh).await;
        node.start().await;
        if full {
            node.fill(true);
        } else {
            node.host.refuse_devices(Some(Refusal::TunMissing));
        }
        mesh.approve(host, name).await.expect("it waits");
        pass(Duration::from_secs(40)).await;
        assert!(mesh.has(name), "{name} stays a node");
        if full {
            node.fill(false);
        } else {
            node.host.refuse_devices(None);
        }
        eventually("its tunnel is up", || node.host.device(support::INTERFACE).is_some() && node.peers() > 0)
            .await;
        assert!(a.peers() > 0);
        let status = node.agent.status(true, |_| Default::default()).await.expect("it is known");
        assert_eq!((status.networks.len(), status.waiting.len()), (1, 0), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_a_file_approves_is_in_at_the_apply_or_when_it_asks_and_has_the_declared_name() {
    let mesh = Mesh::new(OPEN).await;
    let [mut first, later] = [Node::new(&mesh, "a"), Node::new(&mesh, "b")];
    let host = first.waits(&mesh).await;
    first.start().await;
    mesh.declare(&approving("db", host)).await;
    assert!(mesh.has("db") && mesh.waiting().is_empty());
    eventually("the host knows it", || first.state().public_key.is_some()).await;
    // The other one is known by what it printed earlier.
    let known = later.waits(&mesh).await;
    until_done(later.agent.leave(&"corp".parse().expect("good"), false)).await.expect("it waits no longer");
    mesh.declare(&approving("db", known)).await;
    assert!(mesh.has("db"), "who is in stays");
    mesh.remove("db").await;
    let outcome = later.ask_to_join(&mesh).await.expect("it is answered");
    assert!(matches!(outcome, JoinOutcome::Waiting(_)), "leaving forgot the identity: {outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn asking_again_changes_nothing_and_the_wait_survives_the_agent() {
    let mesh = Mesh::new(OPEN).await;
    let mut node = Node::new(&mesh, "a");
    let host = node.waits(&mesh).await;
    let revision = mesh.service.state().world.revision;
    let written = node.written();
    assert_eq!(node.waits(&mesh).await, host);
    node.start().await;
    pass(Duration::from_secs(60)).await;
    node.stop().await;
    assert_eq!(mesh.service.state().world.revision, revision, "no revision for asking again");
    assert_eq!(node.written(), written, "nor anything on its disk");
    let before =
        node.agent.directory.waiting(&"corp".parse().expect("good")).expect("it is read").expect("it waits");
    mesh.approve(host, "other-name").await.expect("it waits");
    node.start().await;
    eventually("it is in", || node.state().public_key.is_some()).await;
    assert_eq!(node.state().public_key, Some(before.private_key.public()), "the key that was approved");
    assert!(mesh.has("other-name"));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_dropped_asks_no_more_until_somebody_types_it() {
    let mesh = Mesh::new(OPEN).await;
    let mut node = Node::new(&mesh, "a");
    let host = node.waits(&mesh).await;
    node.start().await;
    mesh.drop_pending(host).await;
    let corp = "corp".parse().expect("good");
    let waiting = || node.agent.directory.waiting(&corp).expect("it is read").expect("it is kept");
    eventually("it knows", || waiting().state == WaitingState::Dropped).await;
    pass(Duration::from_secs(60)).await;
    assert_eq!(mesh.waiting(), Vec::<String>::new(), "dropping lasts");
    assert_eq!(node.waits(&mesh).await, host, "a person may ask again");
    assert_eq!(mesh.waiting(), ["a"]);
    mesh.declare(CLOSED).await;
    assert_eq!(mesh.waiting(), Vec::<String>::new());
    let refused = node.ask_to_join(&mesh).await.expect_err("nobody waits there");
    assert!(refused.to_string().contains("manual-approval"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_waits_no_longer_and_nothing_is_left() {
    let mesh = Mesh::new(OPEN).await;
    let node = Node::new(&mesh, "a");
    node.waits(&mesh).await;
    let corp = "corp".parse().expect("good");
    node.connect(false);
    assert!(until_done(node.agent.leave(&corp, false)).await.is_err(), "the server is to know");
    node.connect(true);
    until_done(node.agent.leave(&corp, false)).await.expect("it leaves");
    assert_eq!(mesh.waiting(), Vec::<String>::new());
    let left: Vec<_> = node.files().into_iter().filter(|file| !file.ends_with(".lock")).collect();
    assert_eq!(left, Vec::<String>::new());
    assert!(matches!(until_done(node.agent.leave(&corp, false)).await, Err(AgentError::NotMember(_))));
}

#[tokio::test(start_paused = true)]
async fn a_server_with_another_key_is_named_and_sent_nothing() {
    let mesh = Mesh::new(OPEN).await;
    let node = Node::new(&mesh, "a");
    let pin = SigningKey([1; 32]).fingerprint();
    let corp = "corp".parse().expect("good");
    let asked = until_done(node.agent.ask("nm.example.net:50051", pin, &corp, &JoinOptions::default())).await;
    let Err(AgentError::Control(error @ CallError::OtherServer { .. })) = asked else { panic!("{asked:?}") };
    let found = mesh.service.info().signing_key.fingerprint();
    assert!(error.to_string().contains(&found.to_string()), "{error}");
    assert_eq!((mesh.waiting(), node.files()), (Vec::new(), Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_waits_may_join_with_a_key_after_all() {
    let mesh = Mesh::new(OPEN).await;
    let node = Node::new(&mesh, "a");
    node.waits(&mesh).await;
    let joined = node.join(&mesh).await.expect("the key lets it in");
    assert!(matches!(joined, JoinOutcome::New(_)), "{joined:?}");
    assert_eq!(mesh.waiting(), Vec::<String>::new());
    assert!(!node.files().iter().any(|file| file.starts_with("waiting-")), "{:?}", node.files());
    let again = node.ask_to_join(&mesh).await.expect("it is in");
    assert!(matches!(again, JoinOutcome::Already(_)), "{again:?}");
}
