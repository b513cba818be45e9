//! Hosts that ask to join without an access key: a server with real sockets, agents without devices.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::sync::Arc;

use netclient::agent::{AgentError, JoinOptions, JoinOutcome};
use netclient::control::CallError;
use netclient::directory::Directory;
use netclient::host::fake::FakeHost;
use netclient::settings::Settings;
use nmserver::core::authorize::Role;
use nmserver::identity::DATABASE;
use reqwest::{Method, StatusCode};
use schema::api::{Approved, LogEntry, NodeStatus, Presence};
use schema::scalars::Fingerprint;
use serde_json::Value;
use support::proxy::Proxy;
use support::{Running, eventually, failure, folder, token_beside};
use test_agent::Agent;
use tonic::Code;

const OPEN: &str = r#"
    network "corp" { ipv4 "10.0.0.0/24"; manual-approval; access-key "k" uses="unlimited"; }
    network "lab" { ipv4 "10.1.0.0/24"; access-key "k"; }
"#;

fn fingerprint(agent: &Agent) -> Fingerprint {
    agent.identity().fingerprint()
}

async fn approve(server: &Running, token: &str, agent: &Agent, name: &str) -> reqwest::Response {
    let path = format!("/api/v1/corp/pending/{}?name={name}", fingerprint(agent));
    server.call(Method::PUT, &path).bearer_auth(token).send().await.unwrap()
}

async fn waiting(server: &Running) -> Vec<NodeStatus> {
    let nodes = server.status().await.nodes;
    nodes.into_iter().filter(|node| node.state == Presence::Pending).collect()
}

async fn log(server: &Running) -> Vec<LogEntry> {
    server.get("/api/v1/revisions").await.json().await.unwrap()
}

#[tokio::test]
async fn what_waits_changes_no_view_and_costs_no_node_anything() {
    let (server, _) = Running::in_memory().await;
    server.declare(OPEN).await;
    let mut member = server.joined("a", 1, "k").await;
    let before = member.view.clone();
    for number in 2..20 {
        let left = server.agent("b", number).ask(false).await.unwrap().expect("it waits");
        assert!((86_000..=86_400).contains(&left), "{left}");
    }
    let answer = member.check_in(None).await.unwrap();
    assert_eq!(answer.update, None, "nothing to be sent");
    assert_eq!(member.view, before);
    assert_eq!(waiting(&server).await.len(), 18, "a name is nobody's before somebody is let in");
}

#[tokio::test]
async fn who_waits_is_shown_with_what_people_compare_and_who_let_it_in_is_in_the_log() {
    let (server, _) = Running::in_memory().await;
    server.declare(OPEN).await;
    let mut agent = server.agent("web", 1);
    agent.ask(false).await.unwrap();
    let shown = waiting(&server).await;
    let [node] = &*shown else { panic!("{shown:?}") };
    assert_eq!((node.id.as_str(), node.addresses.len()), ("corp/node/web", 0));
    assert_eq!((node.fingerprint, node.os.as_deref()), (Some(fingerprint(&agent)), Some("test")));
    let pending = node.pending.as_ref().unwrap();
    assert_eq!(pending.seen, Some("127.0.0.1".parse().unwrap()));
    assert_eq!((pending.until.duration_since(pending.since).as_hours(), &pending.obstacle), (24, &None));
    let approved: Approved = approve(&server, &server.token, &agent, "web").await.json().await.unwrap();
    assert_eq!((approved.identity, approved.addresses.len()), (agent.identity(), 1));
    assert_eq!(agent.ask(true).await.unwrap(), None, "it is in, and has its View");
    let again = approve(&server, &server.token, &agent, "web").await;
    let (status, code, words) = failure(again).await;
    assert_eq!((status, &*code), (412, "precondition"));
    assert!(words.contains("has joined corp as web already"), "{words}");
    let done: Vec<_> = log(&server).await.into_iter().map(|entry| (entry.action, entry.actor)).collect();
    let actions: Vec<_> = done.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions[..3], ["apply", "ask", "approve"], "{done:?}");
    assert_eq!((&*done[1].1, &*done[2].1), ("host web", server.token.split('_').nth(1).unwrap()));
}

#[tokio::test]
async fn who_waits_survives_a_restart_of_the_server() {
    let directory = folder();
    let server = Running::on_disk(directory.path()).await;
    server.declare(OPEN).await;
    let member = server.joined("a", 2, "k").await;
    let mut agent = server.agent("web", 1);
    agent.ask(false).await.unwrap();
    let before = waiting(&server).await;
    server.end().await;
    let server = Running::on_disk(directory.path()).await;
    let after = waiting(&server).await;
    assert_eq!(format!("{after:?}"), format!("{before:?}"));
    let mut again = server.agent("a", 2);
    (again.at, again.view) = (member.at, member.view);
    assert_eq!(again.check_in(None).await.unwrap().update, None, "a stranger costs nobody a whole View");
    let mut same = server.agent("web", 1);
    assert!(same.ask(true).await.unwrap().is_some_and(|left| left > 0), "it waits on");
    assert!(approve(&server, &server.token, &same, "web").await.status().is_success());
    assert_eq!(same.ask(true).await.unwrap(), None);
}

#[tokio::test]
async fn who_has_waited_for_a_day_is_dropped_by_the_server() {
    let directory = folder();
    let server = Running::on_disk(directory.path()).await;
    server.declare(OPEN).await;
    let mut agent = server.agent("web", 1);
    agent.ask(false).await.unwrap();
    server.end().await;
    let database = rusqlite::Connection::open(directory.path().join(DATABASE)).unwrap();
    let earlier =
        "update rows set body = json_set(body, '$.since', '2026-01-01T00:00:00Z') where kind = '@pending'";
    assert_eq!(database.execute(earlier, []).unwrap(), 1);
    drop(database);
    let server = Running::on_disk(directory.path()).await;
    eventually("nobody waits", async || waiting(&server).await.is_empty().then_some(())).await;
    let last = log(&server).await.pop().unwrap();
    assert_eq!((&*last.actor, &*last.action), ("nmserver", "drop"));
    assert!(last.provenance.unwrap().message.unwrap().contains("1 host waited for 24 hours"));
    assert_eq!(server.agent("web", 1).ask(true).await.unwrap(), Some(0), "and is told so");
}

#[tokio::test]
async fn who_ends_tls_in_between_learns_nothing_of_the_host() {
    let (server, _) = Running::in_memory().await;
    server.declare(OPEN).await;
    let proxy = Proxy::start(&server.known).await;
    let own = folder();
    let directory = Directory::open(own.path()).unwrap();
    let agent = netclient::agent::Agent::new(directory, Settings::default(), Arc::new(FakeHost::default()));
    let (pin, corp) = (server.known.signing_key.fingerprint(), "corp".parse().unwrap());
    let options = JoinOptions { name: "web".parse().ok(), ..JoinOptions::default() };
    let asked = agent.ask(&proxy.known.at.to_string(), pin, &corp, &options).await;
    assert!(matches!(asked, Err(AgentError::Control(CallError::Stranger { .. }))), "{asked:?}");
    let calls: Vec<_> = proxy.recorded().iter().map(|call| call.method().to_owned()).collect();
    assert_eq!(calls, ["Identify"]);
    assert_eq!(
        std::fs::read_dir(own.path())
            .unwrap()
            .flatten()
            .filter(|it| it.path().extension().is_some_and(|it| it == "json"))
            .count(),
        0
    );
    let asked = agent.ask(&server.known.at.to_string(), pin, &corp, &options).await.unwrap();
    assert!(matches!(asked, JoinOutcome::Waiting(_)), "{asked:?}");
    assert_eq!(waiting(&server).await.len(), 1);
}

#[tokio::test]
async fn a_hundred_hosts_wait_for_a_network_and_no_more() {
    let (server, _) = Running::in_memory().await;
    server.declare(OPEN).await;
    for number in 1..=100 {
        server.agent("n", number).ask(false).await.unwrap();
    }
    let revision = server.snapshot().await.revision;
    let refused = server.agent("n", 101).ask(false).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("100 hosts wait for corp already"), "{refused}");
    let mut first = server.agent("n", 1);
    assert!(first.ask(false).await.unwrap().is_some());
    first.leave().await.unwrap();
    let refused = server.agent("n", 101).ask(false).await.unwrap_err();
    assert!(
        refused.message().contains("just now"),
        "who leaves makes no room for strangers at once: {refused}"
    );
    assert_eq!(server.snapshot().await.revision.0, revision.0 + 1, "one that left");
}

#[tokio::test]
async fn a_network_that_needs_a_key_and_one_that_is_not_there_answer_alike() {
    let (server, _) = Running::in_memory().await;
    server.declare(OPEN).await;
    let mut words = Vec::new();
    for network in ["lab", "gone"] {
        let mut agent = Agent::new(&server.known, network, "a", 1);
        let refused = agent.ask(false).await.unwrap_err();
        words.push((refused.code(), refused.message().replace(network, "NETWORK")));
        assert_eq!(agent.ask(true).await.unwrap(), Some(0), "who waited is told that it does not");
    }
    assert_eq!(words[0], words[1]);
    assert!(words[0].1.contains("manual-approval"), "{words:?}");
}

#[tokio::test]
async fn who_is_dropped_and_barred_cannot_ask_again() {
    let (server, _) = Running::in_memory().await;
    server.declare(OPEN).await;
    let mut agent = server.agent("web", 1);
    agent.ask(false).await.unwrap();
    let path = format!("/api/v1/corp/pending/{}?ban=true", fingerprint(&agent));
    let dropped = server.call(Method::DELETE, &path).bearer_auth(&server.token).send().await.unwrap();
    assert!(dropped.status().is_success());
    let refused = agent.ask(false).await.unwrap_err();
    assert!(refused.message().contains("barred") && refused.message().contains("corp/web"), "{refused}");
    let again = server.call(Method::DELETE, &path).bearer_auth(&server.token).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_request_is_taken_once_and_only_from_the_identity_and_key_that_it_names() {
    let (server, _) = Running::in_memory().await;
    server.declare(OPEN).await;
    let mut agent = server.agent("web", 1);
    let changes: [fn(&mut proto::wire::JoinRequest); 4] = [
        |request| request.name = "other".into(),
        |request| request.identity = vec![7; 32].into(),
        |request| request.public_key = vec![7; 32].into(),
        |request| request.waits = true,
    ];
    for change in changes {
        let mut request = agent.ask_request(false).await.unwrap();
        change(&mut request);
        assert_eq!(agent.client.join(request).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let request = agent.ask_request(false).await.unwrap();
    agent.client.join(request.clone()).await.unwrap();
    assert_eq!(agent.client.join(request).await.unwrap_err().code(), Code::Aborted, "a recording");
    assert_eq!(waiting(&server).await.len(), 1);
}

#[tokio::test]
async fn a_token_lets_in_and_sees_what_its_role_and_networks_say() {
    let directory = folder();
    let server = Running::on_disk(directory.path()).await;
    server.declare(OPEN).await;
    let mut agent = server.agent("web", 1);
    agent.ask(false).await.unwrap();
    for (role, networks, projects) in [
        (Role::Viewer, &["corp"][..], &[][..]),
        (Role::Applier, &["lab"], &[]),
        (Role::Applier, &["corp"], &["acme"]),
    ] {
        let token = token_beside(directory.path(), role, networks, projects);
        let denied = approve(&server, &token, &agent, "web").await;
        assert_eq!(denied.status(), StatusCode::FORBIDDEN, "{role:?} {networks:?} {projects:?}");
    }
    let elsewhere = token_beside(directory.path(), Role::Viewer, &["lab"], &[]);
    for path in ["/api/v1/snapshot", "/api/v1/status", "/api/v1/revisions"] {
        let seen = server.call(Method::GET, path).bearer_auth(&elsewhere).send().await.unwrap();
        let seen: Value = seen.json().await.unwrap();
        assert!(!seen.to_string().contains("web"), "{path}: {seen}");
    }
    let token = token_beside(directory.path(), Role::Applier, &["corp"], &[]);
    assert!(approve(&server, &token, &agent, "web").await.status().is_success());
}
