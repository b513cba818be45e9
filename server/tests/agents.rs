//! The agents' service as agents meet it: a real server, real gRPC, TLS by the server's own CA.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nmserver::core::authorize::{Call, TABLE};
use prost::Message;
use proto::position::Position;
use proto::wire::{self, Facts, Update, update::Body};
use reqwest::{Method, StatusCode};
use schema::api::{Control, NodeStatus, Presence};
use schema::inventory::NodeProblem;
use schema::snapshot::Revision;
use support::{PATIENCE, Running, eventually, failure, request};
use test_agent::{Agent, KnownServer, seed};
use tonic::{Code, Streaming};

const CORP: &str = r#"
    network "corp" {
        ipv4 "10.0.0.0/24"
        node "db" ipv4="10.0.0.77" listen-port=4000
        access-key "three" uses=3
        access-key "many" uses="unlimited"
        access-key "named" { for "db" }
        access-key "ended"
    }
"#;

async fn corp() -> Running {
    let (server, _) = Running::in_memory().await;
    server.declare(CORP).await;
    server
}

async fn revision(server: &Running) -> Revision {
    server.snapshot().await.revision
}

async fn status_of(server: &Running, name: &str) -> NodeStatus {
    server.status().await.nodes.into_iter().find(|node| node.name.as_str() == name).expect("it is listed")
}

async fn remove(server: &Running, name: &str) {
    let path = format!("/api/v1/corp/node/{name}/host");
    let answer = server.call(Method::DELETE, &path).bearer_auth(&server.token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

async fn next(updates: &mut Streaming<Update>) -> Option<Update> {
    tokio::time::timeout(PATIENCE, updates.message())
        .await
        .expect("something comes")
        .expect("the stream is whole")
}

/// Whether an agent has exactly what the server would send it as a whole.
async fn has_all(agent: &mut Agent) {
    let held = agent.view.clone();
    let whole = agent.whole().await.expect("it is in the network");
    assert!(matches!(whole.body, Some(Body::Whole(_))));
    agent.take(&whole).unwrap();
    assert_eq!(held, agent.view);
}

#[tokio::test]
async fn a_key_of_three_uses_lets_three_in_and_the_fourth_leaves_nothing_behind() {
    let server = corp().await;
    for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
        let mut agent = server.joined(name, number, "three").await;
        assert_eq!(agent.view.as_ref().unwrap().peers.len() as u32, number - 1);
        has_all(&mut agent).await;
    }
    let before = server.snapshot().await.world().unwrap();
    let refused = server.agent("d", 4).join("three").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("used 3 times"), "{}", refused.message());
    assert_eq!(server.snapshot().await.world().unwrap(), before);
}

#[tokio::test]
async fn many_nodes_that_join_at_once_share_no_use_no_address_and_no_revision() {
    let server = corp().await;
    let joins = (0..12).map(|number| {
        let mut agent = server.agent(&format!("n{number}"), number);
        tokio::spawn(
            async move { agent.join("three").await.map(|()| agent.view.unwrap().interface.addresses) },
        )
    });
    let mut addresses = BTreeSet::new();
    for join in joins.collect::<Vec<_>>() {
        if let Ok(own) = join.await.unwrap() {
            assert!(addresses.insert(own), "an address is one node's");
        }
    }
    assert_eq!(addresses.len(), 3);
    assert_eq!(revision(&server).await, Revision(4), "one revision for each join, none for a refusal");
}

#[tokio::test]
async fn a_host_that_may_not_join_is_sent_the_reason_and_leaves_nothing_behind() {
    let server = corp().await;
    server.declare(&CORP.replace("\"ended\"", "\"ended\" expires=\"2020-01-01\"")).await;
    let before = server.snapshot().await.world().unwrap();
    for (name, key, why) in [
        ("a", "ended", "expired on 2020-01-01"),
        ("a", "nothing", "does not exist"),
        ("a", "named", "lets only db join"),
        ("db", "many", "only a key whose `for` names it"),
    ] {
        let refused = server.agent(name, 1).join(key).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{name} with {key}");
        assert!(refused.message().contains(why), "{name} with {key}: {}", refused.message());
    }
    let mut elsewhere = Agent::new(&server.known, "lab", "a", 1);
    assert!(elsewhere.join("many").await.unwrap_err().message().contains("does not exist"));
    assert_eq!(server.snapshot().await.world().unwrap(), before);
}

#[tokio::test]
async fn a_request_that_was_changed_on_the_way_is_refused() {
    let server = corp().await;
    let mut agent = server.agent("a", 1);
    let good = agent.join_request("many").await.unwrap();
    let changes: [fn(&mut wire::JoinRequest); 6] = [
        |request| request.name = "b".into(),
        |request| request.key = "three".into(),
        |request| request.facts = Some(Facts { listen_port: 1, ..Facts::default() }),
        |request| request.public_key = vec![9; 32].into(),
        |request| request.identity = vec![9; 32].into(),
        |request| request.nonce = vec![9; 40].into(),
    ];
    for (place, change) in changes.into_iter().enumerate() {
        let mut request = good.clone();
        change(&mut request);
        let refused = agent.client.join(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "change {place}: {}", refused.message());
    }
    assert_eq!(revision(&server).await, Revision(1));
    agent.client.join(good).await.expect("as it was signed it is good");
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_is_repeated_without_a_second_use() {
    let server = corp().await;
    let mut agent = server.agent("a", 1);
    let request = agent.join_request("three").await.unwrap();
    let first = agent.client.join(request).await.unwrap().into_inner();
    let request = agent.join_request("three").await.unwrap();
    let second = agent.client.join(request).await.unwrap().into_inner();
    agent.name = "other".parse().unwrap();
    agent.join("three").await.unwrap();
    assert_eq!((&*first.name, &*second.name, agent.name.as_str()), ("a", "a", "a"));
    let snapshot = server.snapshot().await;
    let key = snapshot.keys.iter().find(|key| key.id.to_string() == "corp/access-key/three").unwrap();
    assert_eq!((key.status.used, snapshot.nodes.len(), snapshot.revision), (1, 1, Revision(2)));
}

/// Demands that a request was refused because it has been made before.
fn is_repeated<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) {
    let refused = answer.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "{}", refused.message());
    assert!(refused.message().contains("the nonce has been used"), "{}", refused.message());
}

#[tokio::test]
async fn a_request_that_was_recorded_does_nothing_the_second_time() {
    let server = corp().await;
    let mut agent = server.agent("a", 1);
    let join = agent.join_request("many").await.unwrap();
    agent.client.join(join.clone()).await.unwrap();
    let session = agent.session_request().await.unwrap();
    agent.client.open_session(session.clone()).await.unwrap();
    let leave = agent.leave_request().await.unwrap();
    agent.client.leave(leave.clone()).await.unwrap();
    let before = revision(&server).await;
    is_repeated(agent.client.join(join).await);
    is_repeated(agent.client.open_session(session).await);
    agent.join("many").await.expect("with a nonce of its own a request is new");
    is_repeated(agent.client.leave(leave).await);
    assert_eq!(revision(&server).await.0, before.0 + 1);
}

#[tokio::test]
async fn a_removal_outlives_the_joins_that_were_signed_before_it() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    // Whoever ends TLS may hold it back for as long as its nonce lives.
    let held = agent.join_request("many").await.unwrap();
    remove(&server, "a").await;
    let refused = agent.client.join(held).await.unwrap_err();
    assert!(refused.message().contains("was removed after"), "{}", refused.message());
    assert!(server.snapshot().await.nodes.is_empty());
    agent.join("many").await.expect("signed anew it says what the host wants now");
    // The end of a network removes its nodes as well.
    let held = agent.join_request("many").await.unwrap();
    server.declare(r#"network "other" { ipv4 "10.5.0.0/24" }"#).await;
    server.declare(CORP).await;
    assert!(agent.client.join(held).await.is_err());
    assert!(server.snapshot().await.nodes.is_empty());
}

#[tokio::test]
async fn a_removal_says_which_key_still_lets_the_host_in_and_a_ban_keeps_it_out() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    let removed = async |path: &str| -> schema::api::Removed {
        let answer = server.call(Method::DELETE, path).bearer_auth(&server.token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.unwrap()
    };
    let first = removed("/api/v1/corp/node/a/host").await;
    assert_eq!((first.identity, first.barred), (agent.identity(), false));
    assert_eq!(first.admits.map(|key| key.to_string()).as_deref(), Some("corp/access-key/many"));
    let next = first.next.expect("it says what to do");
    assert!(
        next.contains("corp/access-key/many") && next.contains("nmplan node remove corp/a --ban"),
        "{next}"
    );
    agent.join("many").await.expect("as it said");
    let second = removed("/api/v1/corp/node/a/host?ban=true").await;
    assert_eq!((second.barred, second.admits, second.next), (true, None, None));
    agent.name = "another".parse().unwrap();
    let refused = agent.join("many").await.unwrap_err();
    assert!(refused.message().contains("removed from corp as a and barred"), "{}", refused.message());
    server.joined("b", 2, "many").await;
    let world = server.snapshot().await;
    assert_eq!(world.barred.len(), 1, "an admin sees who is barred");
    assert_eq!(world.world().unwrap().inventory.barred().count(), 1);
    let lift = async || {
        server.call(Method::DELETE, "/api/v1/corp/node/a/ban").bearer_auth(&server.token).send().await
    };
    assert_eq!(lift().await.unwrap().status(), StatusCode::OK);
    assert_eq!(lift().await.unwrap().status(), StatusCode::NOT_FOUND);
    agent.join("many").await.expect("the ban is lifted");
    // A key of one use has none left for whoever is removed.
    server.joined("x", 3, "three").await;
    server.joined("y", 4, "three").await;
    server.joined("z", 5, "three").await;
    assert_eq!(removed("/api/v1/corp/node/x/host").await.admits, None);
}

/// Declares `CORP`, where the secrets of new keys are those of this name.
async fn declare_with(server: &Running, text: &str, secret: &str) {
    let mut request = request(server.plan("acme/prod", text).await);
    request.keys.values_mut().for_each(|verifier| *verifier = proto::sign::public_key(&seed(secret)));
    assert_eq!(server.send(&server.token, &request).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn whoever_has_a_token_is_sent_what_became_of_its_key_and_whoever_has_none_is_not() {
    let server = corp().await;
    let without = CORP.replace(r#"access-key "many" uses="unlimited""#, "");
    let mut agent = server.agent("a", 1);
    let guess = async |key: &str| {
        let mut stranger = server.agent("s", 9);
        let refused = stranger.join_with(key, &seed("guessed")).await.unwrap_err();
        let registering = stranger.register(Some((key, &seed("guessed")))).await.unwrap_err();
        assert_eq!(refused.message(), registering.message());
        assert_eq!((refused.code(), registering.code()), (Code::PermissionDenied, Code::PermissionDenied));
        refused.message().replace(key, "KEY")
    };
    let unknown = guess("nothing").await;
    assert!(unknown.contains("does not exist, or has another secret"), "{unknown}");
    for key in ["many", "ended", "named"] {
        assert_eq!(guess(key).await, unknown, "{key}");
    }
    server.declare(&without).await;
    let deleted = agent.join("many").await.unwrap_err();
    assert!(deleted.message().contains("corp/access-key/many was deleted"), "{}", deleted.message());
    assert_eq!(guess("many").await, unknown);
    declare_with(&server, CORP, "second").await;
    for refused in [
        agent.join("many").await.unwrap_err(),
        agent.register(Some(("many", &seed("many")))).await.unwrap_err(),
    ] {
        assert!(refused.message().contains("corp/access-key/many was replaced"), "{}", refused.message());
    }
    assert_eq!(guess("many").await, unknown);
    agent.join_with("many", &seed("second")).await.expect("its new token is valid");
}

#[tokio::test]
async fn whoever_guesses_signatures_or_sessions_is_slowed_and_an_agent_at_the_same_place_is_not() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    let mut other = server.agent("b", 2);
    let forged = async |other: &mut Agent| {
        let start = Instant::now();
        let mut request = other.session_request().await.unwrap();
        request.signature = vec![7; 64].into();
        assert_eq!(other.client.open_session(request).await.unwrap_err().code(), Code::PermissionDenied);
        let mut call = tonic::Request::new(wire::GetPeersRequest { network: "corp".into() });
        call.metadata_mut().insert("authorization", "Bearer AAAA".parse().unwrap());
        assert_eq!(other.client.get_peers(call).await.unwrap_err().code(), Code::Unauthenticated);
        start.elapsed()
    };
    for number in 0..30 {
        let took = forged(&mut other).await;
        assert!(took < std::time::Duration::from_secs(1), "{number}: {took:?}");
    }
    let honest = async {
        let start = Instant::now();
        agent.check_in(Some(agent.facts.clone())).await.unwrap();
        agent.whole().await.unwrap();
        start.elapsed()
    };
    let (slow, fast) = tokio::join!(forged(&mut other), honest);
    assert!(slow > std::time::Duration::from_millis(1500) && fast < slow, "{slow:?} and {fast:?}");
}

#[tokio::test]
async fn a_removal_is_of_the_host_that_was_shown_and_the_log_names_what_was_done_to_whom() {
    let server = corp().await;
    let agent = server.joined("a", 1, "many").await;
    let delete = async |path: &str, identity: Option<String>| {
        let call = server.call(Method::DELETE, path).bearer_auth(&server.token);
        call.query(&[("ban", "true".to_owned())])
            .query(&identity.map(|it| [("identity", it)]))
            .send()
            .await
            .unwrap()
    };
    let other = Agent::keys(9).0.to_string();
    let (status, code, detail) = failure(delete("/api/v1/corp/node/a/host", Some(other)).await).await;
    assert_eq!((status, &*code), (412, "precondition"), "{detail}");
    assert_eq!(server.snapshot().await.nodes.len(), 1);
    let mistyped = delete("/api/v1/corp/node/a/host", Some("x".into())).await;
    assert_eq!(mistyped.status(), StatusCode::BAD_REQUEST);
    let done = delete("/api/v1/corp/node/a/host", Some(agent.identity().to_string())).await;
    assert_eq!(done.status(), StatusCode::OK);
    let lifted =
        server.call(Method::DELETE, "/api/v1/corp/node/a/ban").bearer_auth(&server.token).send().await;
    assert_eq!(lifted.unwrap().status(), StatusCode::OK);
    let log: Vec<schema::api::LogEntry> = server.get("/api/v1/revisions?after=2").await.json().await.unwrap();
    let token = server.token.split('_').nth(1).unwrap();
    for (entry, action) in log.iter().zip(["ban", "lift-ban"]) {
        let nodes: Vec<_> = entry.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!((&*entry.action, &*entry.actor, nodes), (action, token, vec!["a"]));
    }
    assert_eq!(log.len(), 2);
}

#[tokio::test]
async fn two_hosts_with_one_identity_are_shown_in_the_status() {
    let server = corp().await;
    let copied_to = |address: [u8; 4]| {
        let channel = server.known.endpoint().local_address(Some(address.into())).connect_lazy();
        Agent::on(channel, server.known.signing_key, "corp", "a", 1)
    };
    let (mut original, mut copy) = (copied_to([127, 0, 0, 1]), copied_to([127, 0, 0, 2]));
    original.join("many").await.unwrap();
    let cloned = async || {
        let problems = status_of(&server, "a").await.problems;
        problems.iter().any(|problem| &*problem.code == NodeProblem::CLONED)
    };
    for _ in 0..2 {
        original.check_in(None).await.unwrap();
        copy.check_in(None).await.unwrap();
    }
    assert!(!cloned().await, "a host may move to another network and back");
    for _ in 0..2 {
        original.check_in(None).await.unwrap();
        copy.check_in(None).await.unwrap();
    }
    assert!(cloned().await);
    server.joined("b", 2, "many").await.check_in(None).await.unwrap();
    assert!(status_of(&server, "b").await.problems.is_empty());
}

#[tokio::test]
async fn a_wireguard_key_in_another_form_is_refused_although_it_works_like_the_first() {
    let server = corp().await;
    let mut agent = server.agent("a", 1);
    let second_form = |request: &mut wire::JoinRequest| {
        let mut key = request.public_key.to_vec();
        key[31] |= 0x80;
        request.public_key = key.into();
    };
    let request = agent.changed_join_request("many", second_form).await.unwrap();
    let refused = agent.client.join(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
    assert_eq!(revision(&server).await, Revision(1));
}

#[tokio::test]
async fn what_a_node_reports_about_itself_must_be_valid() {
    let server = corp().await;
    for (endpoint, local, port) in [
        ("127.0.0.1:1", "", 1),
        ("10.0.0.5:51821", "", 1),
        ("not an endpoint", "", 1),
        (&*"x".repeat(5_000), "", 1),
        ("", "here", 1),
        ("", "", 70_000),
    ] {
        let mut agent = server.agent("a", 1);
        agent.facts = Facts {
            listen_port: port,
            endpoint: endpoint.into(),
            local_address: local.into(),
            ..Facts::default()
        };
        let refused = agent.join("many").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
    }
    assert_eq!(revision(&server).await, Revision(1));
}

#[tokio::test]
async fn a_request_that_is_far_too_large_is_refused_unread() {
    let server = corp().await;
    let mut agent = server.agent("a", 1);
    let mut request = agent.join_request("many").await.unwrap();
    request.os = "x".repeat(100_000);
    assert_eq!(agent.client.join(request).await.unwrap_err().code(), Code::OutOfRange);
    agent.join("many").await.expect("the connection lives on");
}

#[tokio::test]
async fn peers_are_never_sent_to_a_port_that_is_not_chosen() {
    let server = corp().await;
    let mut watcher = server.joined("a", 1, "many").await;
    let mut db = server.agent("db", 2);
    db.facts.listen_port = 0;
    db.join("named").await.unwrap();
    watcher.check_in(None).await.unwrap();
    let endpoint =
        |agent: &Agent| agent.view.as_ref().unwrap().peers["db"].endpoint.as_ref().unwrap().to_string();
    assert_eq!(endpoint(&watcher), "198.18.0.2:4000", "the declared port takes its place");
    let facts = |listen_port| Some(Facts { listen_port, ..db.facts.clone() });
    let (chosen, unknown) = (facts(4_321), facts(0));
    db.check_in(chosen).await.unwrap();
    watcher.check_in(None).await.unwrap();
    assert_eq!(endpoint(&watcher), "198.18.0.2:4321", "a check-in corrects it");
    let before = revision(&server).await;
    db.check_in(unknown).await.unwrap();
    assert_eq!(revision(&server).await, before, "what is not known changes nothing");
}

#[tokio::test]
async fn an_unchanged_check_in_writes_nothing_and_is_answered_in_a_few_bytes() {
    let (server, levers) = Running::in_memory().await;
    server.declare(CORP).await;
    let mut agent = server.joined("a", 1, "many").await;
    agent.check_in(None).await.unwrap();
    let writes = levers.writes.load(Ordering::SeqCst);
    for _ in 0..50 {
        let answer = agent.check_in(Some(agent.facts.clone())).await.unwrap();
        assert_eq!(answer, wire::CheckInResponse { update: None });
        assert!(answer.encoded_len() <= 200);
    }
    assert_eq!(levers.writes.load(Ordering::SeqCst), writes);
    server.end().await;
    assert_eq!(levers.writes.load(Ordering::SeqCst), writes + 1, "the last calls are stored in one batch");
}

#[tokio::test]
async fn a_check_in_brings_exactly_what_changed() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    server.declare(&CORP.replace("node \"db\"", "dns \"api\" a=\"10.0.0.9\"\n node \"db\"")).await;
    let answer = agent.check_in(None).await.unwrap();
    let Some(Update { body: Some(Body::Delta(delta)), from, to, .. }) = answer.update else {
        panic!("{answer:?}")
    };
    assert_eq!((from, to), (2, 3));
    let delta = wire::Delta::decode(delta).unwrap();
    assert_eq!((delta.names.len(), delta.peers.len(), delta.interface), (1, 0, None));
    assert!(agent.view.as_ref().unwrap().names.contains_key("api"));
    has_all(&mut agent).await;
    server.declare(&CORP.replace("10.0.0.0/24", "10.9.0.0/24").replace("10.0.0.77", "10.9.0.77")).await;
    agent.check_in(None).await.unwrap();
    assert_eq!(agent.view.as_ref().unwrap().interface.addresses.first().unwrap().to_string(), "10.9.0.1/24");
    has_all(&mut agent).await;
}

#[tokio::test]
async fn what_does_not_concern_a_network_is_not_sent_to_it() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    agent.check_in(None).await.unwrap();
    server.declare(&format!("{CORP} network \"lab\" {{ ipv4 \"10.1.0.0/24\" }}")).await;
    assert_eq!(agent.check_in(None).await.unwrap().update, None);
    assert_eq!(status_of(&server, "a").await.acknowledged, Some(Revision(3)), "it has all that concerns it");
}

#[tokio::test]
async fn a_position_of_another_life_is_answered_with_everything() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    for (epoch, revision) in [(agent.at.epoch + 1, 2), (agent.at.epoch, 99), (agent.at.epoch, 0), (0, 0)] {
        agent.at = Position { epoch, revision: Revision(revision), ..agent.at };
        let answer = agent.check_in(None).await.unwrap();
        assert!(
            matches!(answer.update, Some(Update { body: Some(Body::Whole(_)), .. })),
            "{epoch} {revision}"
        );
    }
    has_all(&mut agent).await;
}

#[tokio::test]
async fn a_restart_sends_no_node_what_it_has() {
    let directory = support::folder();
    let server = Running::on_disk(directory.path()).await;
    server.declare(CORP).await;
    let mut agent = server.joined("a", 1, "many").await;
    server.declare(&format!("{CORP} network \"lab\" {{ ipv4 \"10.1.0.0/24\" }}")).await;
    server.end().await;
    let server = Running::on_disk(directory.path()).await;
    agent.client = server.agent("a", 1).client;
    assert_eq!(agent.check_in(None).await.unwrap().update, None, "a session survives a restart as well");
    assert_eq!(status_of(&server, "a").await.state, Presence::Online);
}

#[tokio::test]
async fn another_version_sends_every_node_its_view_anew_and_once() {
    let directory = support::folder();
    let server = Running::on_disk(directory.path()).await;
    server.declare(CORP).await;
    let mut agent = server.joined("a", 1, "many").await;
    server.end().await;
    std::fs::write(directory.path().join("version"), "0.0.1").unwrap();
    for sent in [true, false] {
        let server = Running::on_disk(directory.path()).await;
        agent.client = server.agent("a", 1).client;
        let update = agent.check_in(None).await.unwrap().update;
        assert_eq!(update.is_some(), sent);
        update.iter().for_each(|update| {
            assert!(matches!(update.body, Some(Body::Whole(_))), "what it has may be another version's");
            agent.take(update).unwrap();
        });
        server.end().await;
    }
}

#[tokio::test]
async fn a_watcher_hears_of_every_change_within_a_second() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    let mut updates = agent.watch().await.unwrap();
    for number in 2..6 {
        let start = Instant::now();
        let joined = server.joined(&format!("n{number}"), number, "many").await;
        let update = next(&mut updates).await.unwrap();
        assert!(start.elapsed().as_secs_f32() < 1.0, "{:?}", start.elapsed());
        assert!(matches!(update.body, Some(Body::Delta(_))));
        agent.take(&update).unwrap();
        let peer = &agent.view.as_ref().unwrap().peers[joined.name.as_str()];
        assert_eq!(peer.public_key, Some(joined.public_key()));
    }
    has_all(&mut agent).await;
}

#[tokio::test]
async fn one_more_node_costs_every_other_at_most_300_bytes_however_many_there_are() {
    let (server, _) = Running::in_memory().await;
    let network =
        r#"network "corp" { ipv4 "10.0.0.0/16"; ipv6 "fd00::/64"; access-key "k" uses="unlimited" }"#;
    server.declare(network).await;
    let mut agent = server.joined("a", 1, "k").await;
    let mut updates = agent.watch().await.unwrap();
    for number in 2..60 {
        server.joined(&format!("a-name-of-forty-letters-is-a-long-one-{number}"), number, "k").await;
        let update = next(&mut updates).await.unwrap();
        assert!(update.encoded_len() <= 300, "{} bytes for node {number}", update.encoded_len());
        agent.take(&update).unwrap();
    }
    has_all(&mut agent).await;
}

#[tokio::test]
async fn a_watcher_that_did_not_listen_catches_up() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    let mut updates = agent.watch().await.unwrap();
    for number in 2..120 {
        server.joined(&format!("n{number}"), number, "many").await;
    }
    let newest = revision(&server).await;
    while agent.at.revision < newest {
        agent.take(&next(&mut updates).await.unwrap()).unwrap();
    }
    has_all(&mut agent).await;
}

#[tokio::test]
async fn a_watcher_of_a_node_that_is_removed_is_sent_that_and_then_disconnected() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    let mut other = server.joined("b", 2, "many").await;
    let (mut own, mut others) = (agent.watch().await.unwrap(), other.watch().await.unwrap());
    agent.take(&next(&mut own).await.unwrap()).unwrap();
    remove(&server, "a").await;
    agent.take(&next(&mut own).await.unwrap()).unwrap();
    assert_eq!(agent.view, None);
    assert_eq!(next(&mut own).await, None, "the stream ends");
    other.take(&next(&mut others).await.unwrap()).unwrap();
    assert_eq!(other.view.as_ref().unwrap().peers.len(), 0);
    let answer = agent.check_in(None).await.unwrap();
    assert!(matches!(answer.update, Some(Update { body: Some(Body::Removed(_)), .. })));
}

#[tokio::test]
async fn status_shows_who_is_there_and_how() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    let joined = status_of(&server, "a").await;
    assert_eq!((joined.state, joined.control, joined.acknowledged), (Presence::Online, Control::Tls, None));
    agent.check_in(None).await.unwrap();
    assert_eq!(status_of(&server, "a").await.acknowledged, Some(Revision(2)));
    server.joined("b", 2, "many").await;
    assert_eq!(
        status_of(&server, "a").await.acknowledged,
        Some(Revision(2)),
        "it has not been sent the other"
    );
    let updates = agent.watch().await.unwrap();
    assert_eq!(status_of(&server, "a").await.acknowledged, Some(Revision(2)), "sent is not applied");
    drop(updates);
    let awaited = status_of(&server, "db").await;
    assert_eq!(
        (awaited.state, awaited.control, awaited.last_check_in),
        (Presence::Awaiting, Control::None, None)
    );
    assert_eq!(awaited.addresses.first().unwrap().to_string(), "10.0.0.77");
}

#[tokio::test]
async fn a_node_that_leaves_is_gone_at_once_and_its_claimed_name_is_free_again() {
    let server = corp().await;
    let mut other = server.joined("a", 1, "many").await;
    let mut updates = other.watch().await.unwrap();
    let mut db = server.joined("db", 2, "named").await;
    other.take(&next(&mut updates).await.unwrap()).unwrap();
    let refused = server.agent("db", 3).join("named").await.unwrap_err();
    assert!(refused.message().contains("another host has joined corp as db"), "{}", refused.message());
    db.leave().await.unwrap();
    other.take(&next(&mut updates).await.unwrap()).unwrap();
    assert!(other.view.as_ref().unwrap().peers.is_empty());
    db.leave().await.expect("to leave twice is to have left");
    let mut again = server.joined("db", 3, "named").await;
    assert_eq!(again.view.as_ref().unwrap().interface.addresses.first().unwrap().to_string(), "10.0.0.77/24");
    has_all(&mut again).await;
}

#[tokio::test]
async fn nobody_speaks_for_another_node() {
    let server = corp().await;
    let (mut agent, mut other) = (server.joined("a", 1, "many").await, server.joined("b", 2, "many").await);
    for token in ["", "x", "AAAA"] {
        let mut request = tonic::Request::new(wire::GetPeersRequest { network: "corp".into() });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        assert_eq!(agent.client.get_peers(request).await.unwrap_err().code(), Code::Unauthenticated);
    }
    let nonce = other.challenge().await.unwrap().nonce;
    let identity = agent.identity().0.to_vec().into();
    let mut forged =
        wire::LeaveRequest { nonce: nonce.clone(), network: "corp".into(), identity, ..Default::default() };
    forged.signature = vec![7; 64].into();
    assert_eq!(other.client.leave(forged).await.unwrap_err().code(), Code::PermissionDenied);
    let identity = agent.identity().0.to_vec().into();
    let opened = wire::OpenSessionRequest { nonce, identity, signature: vec![7; 64].into() };
    assert_eq!(other.client.open_session(opened).await.unwrap_err().code(), Code::PermissionDenied);
    let whole = other.whole().await.unwrap();
    assert!(agent.take(&whole).is_err(), "what is signed for one node is worth nothing to another");
    assert_eq!(server.snapshot().await.nodes.len(), 2);
}

#[tokio::test]
async fn an_agent_of_an_earlier_version_is_told_to_be_updated() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    let before = revision(&server).await;
    // It signs neither.
    let mut check_in =
        agent.check_in_request(Some(Facts { listen_port: 9, ..agent.facts.clone() })).await.unwrap();
    (check_in.get_mut().nonce, check_in.get_mut().signature) = Default::default();
    let mut watch = agent.watch_request().await.unwrap();
    (watch.get_mut().nonce, watch.get_mut().signature) = Default::default();
    let refused =
        [agent.client.check_in(check_in).await.map(drop), agent.client.watch(watch).await.map(drop)];
    for refused in refused.map(Result::unwrap_err) {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{}", refused.message());
        assert!(refused.message().contains("of an earlier version"), "{}", refused.message());
        assert!(refused.message().contains("update netclient"), "{}", refused.message());
    }
    assert_eq!(revision(&server).await, before);
    agent.check_in(None).await.expect("what reports nothing needs no signature");
}

#[tokio::test]
async fn every_method_has_a_line_in_the_table_and_asks_for_what_that_says() {
    let server = corp().await;
    let mut agent = server.joined("a", 1, "many").await;
    let network = || "corp".to_owned();
    let unauthenticated = [
        agent.client.get_peers(wire::GetPeersRequest { network: network() }).await.map(drop),
        agent
            .client
            .check_in(wire::CheckInRequest { network: network(), ..Default::default() })
            .await
            .map(drop),
        agent.client.watch(wire::WatchRequest { network: network(), ..Default::default() }).await.map(drop),
    ];
    for answer in unauthenticated {
        assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated);
    }
    let protocol = include_str!("../../proto/proto/agent.proto");
    let methods = protocol.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    let table = TABLE.iter().filter_map(|line| match line.call {
        Call::Grpc(method) => Some(method),
        Call::Rest(..) => None,
    });
    assert_eq!(methods.collect::<BTreeSet<_>>(), table.collect::<BTreeSet<_>>());
}

#[tokio::test]
async fn a_server_with_another_ca_is_not_spoken_to() {
    let (server, other) = (corp().await, corp().await);
    let known = KnownServer { ca: other.known.ca.clone(), ..server.known.clone() };
    let error = Agent::new(&known, "corp", "a", 1).challenge().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_ne!(server.service.info().ca_pin, other.service.info().ca_pin);
}

#[tokio::test]
async fn a_full_disk_refuses_a_join_and_keeps_nothing_of_it() {
    let (server, levers) = Running::in_memory().await;
    server.declare(CORP).await;
    levers.full.store(true, Ordering::SeqCst);
    let mut agent = server.agent("a", 1);
    let refused = agent.join("three").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("disk is full"), "{}", refused.message());
    levers.full.store(false, Ordering::SeqCst);
    agent.join("three").await.unwrap();
    let key = server.snapshot().await.keys.into_iter().find(|key| key.id.name.as_str() == "three").unwrap();
    assert_eq!(key.status.used, 1);
}

#[tokio::test]
async fn a_stream_counts_as_control_for_as_long_as_it_is_open() {
    let (server, _) = Running::in_memory().await;
    server.declare(r#"network "corp" { ipv4 "10.0.0.0/24"; check-in "1s"; access-key "k" }"#).await;
    let mut agent = server.joined("a", 1, "k").await;
    let updates = agent.watch().await.unwrap();
    let silent =
        async || Some(status_of(&server, "a").await).filter(|status| status.state == Presence::Silent);
    let status = eventually("a node that only watches is silent", silent).await;
    assert_eq!(status.control, Control::Tls, "its stream is still there");
    drop(updates);
    let gone =
        async || Some(status_of(&server, "a").await.control).filter(|control| *control == Control::None);
    eventually("its stream is gone", gone).await;
}
