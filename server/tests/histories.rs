//! For every history of joins, leaves, removals and applies: an agent that takes what it is sent has what it
//! would be sent as a whole, whenever it asks; and the log has no gap.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proto::wire::update::Body;
use reqwest::Method;
use support::Running;
use test_agent::Agent;

/// How many hosts there are.
const HOSTS: u32 = 5;

#[derive(Clone, Debug)]
enum Event {
    /// A host joins, or joins again.
    Join(u32),
    /// A node leaves.
    Leave(u32),
    /// An admin takes a host out.
    Remove(u32),
    /// A host checks in, perhaps with another port.
    CheckIn(u32, Option<u32>),
    /// Other files are applied.
    Declare(Files),
}

/// What is declared besides the keys.
#[derive(Clone, Debug)]
struct Files {
    wide: bool,
    hub: bool,
    name_service: bool,
    entry: Option<u8>,
    keepalive: u8,
    fixed: bool,
    /// Whether the network that the hosts are in is declared at all.
    there: bool,
}

fn files() -> impl Strategy<Value = Files> {
    let bools = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.9));
    (bools, prop::option::of(100u8..103), 0u8..3).prop_map(
        |((wide, hub, name_service, fixed, there), entry, keepalive)| Files {
            wide,
            hub,
            name_service,
            entry,
            keepalive,
            fixed,
            there,
        },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let host = || 0..HOSTS;
    let event = prop_oneof![
        4 => host().prop_map(Event::Join),
        2 => host().prop_map(Event::Leave),
        1 => host().prop_map(Event::Remove),
        3 => (host(), prop::option::of(1u32..4)).prop_map(|(host, port)| Event::CheckIn(host, port)),
        3 => files().prop_map(Event::Declare),
    ];
    prop::collection::vec(event, 1..24)
}

fn text(files: &Files) -> String {
    let Files { wide, hub, name_service, entry, keepalive, fixed, there } = files;
    if !there {
        return r#"network "lab" { ipv4 "10.9.0.0/24" }"#.into();
    }
    let range = if *wide { "10.0.0.0/16" } else { "10.0.0.0/24" };
    let hub = if *hub { "hub \"m0\"" } else { "" };
    let entry =
        entry.map(|last| format!(r#"dns "api" a="10.0.0.{last}"; dns "m" node="m1""#)).unwrap_or_default();
    let port = if *fixed { "listen-port=4000" } else { "" };
    format!(
        r#"network "corp" {{
            ipv4 "{range}"
            keepalive "{keepalive}s"
            name-service #{name_service}
            {hub}
            node "m0"
            node "m1" {port}
            {entry}
            access-key "claims" {{ for "m0" "m1" }}
            access-key "k" uses="unlimited"
        }}"#
    )
}

fn key(host: u32) -> &'static str {
    if host < 2 { "claims" } else { "k" }
}

/// What an agent holds is what the server would send it as a whole.
async fn agrees(agent: &mut Agent) {
    agent.check_in(None).await.unwrap();
    let (held, whole) = (agent.view.clone(), agent.whole().await.unwrap());
    match &whole.body {
        Some(Body::Whole(_)) => {
            agent.take(&whole).unwrap();
            assert_eq!(held, agent.view);
        }
        Some(Body::Removed(_)) => assert_eq!(held, None),
        Some(Body::Delta(_)) | None => panic!("{whole:?}"),
    }
}

async fn happens(server: &Running, hosts: &mut BTreeMap<u32, Agent>, event: Event) {
    match event {
        Event::Join(host) => {
            // It may be refused, where its name is taken or the network is gone; then nothing changes for it.
            let agent = hosts.get_mut(&host).unwrap();
            let _ = agent.join(key(host)).await;
        }
        Event::Leave(host) => hosts.get_mut(&host).unwrap().leave().await.unwrap(),
        Event::Remove(host) => {
            let path = format!("/api/v1/corp/node/m{host}/host");
            let answer = server.call(Method::DELETE, &path).bearer_auth(&server.token).send().await.unwrap();
            assert!(answer.status().is_success() || answer.status() == 404, "{}", answer.status());
        }
        Event::CheckIn(host, port) => {
            let agent = hosts.get_mut(&host).unwrap();
            let facts = port.map(|listen_port| proto::wire::Facts { listen_port, ..agent.facts.clone() });
            agent.check_in(facts).await.unwrap();
        }
        Event::Declare(files) => {
            server.declare(&text(&files)).await;
        }
    }
}

async fn history(events: Vec<Event>) {
    let (server, _) = Running::in_memory().await;
    let first = Files {
        wide: false,
        hub: false,
        name_service: true,
        entry: None,
        keepalive: 1,
        fixed: false,
        there: true,
    };
    server.declare(&text(&first)).await;
    let mut hosts: BTreeMap<u32, Agent> =
        (0..HOSTS).map(|number| (number, server.agent(&format!("m{number}"), number))).collect();
    // One that only listens: whatever comes by itself leads to the same.
    let mut listener = server.agent("listener", 99);
    listener.join("k").await.unwrap();
    let mut updates = listener.watch().await.unwrap();
    for event in events {
        happens(&server, &mut hosts, event).await;
    }
    for agent in hosts.values_mut() {
        agrees(agent).await;
    }
    let newest = listener.whole().await.unwrap();
    let mut whole = server.agent("listener", 99);
    whole.take(&newest).unwrap();
    while listener.view != whole.view {
        let update =
            tokio::time::timeout(support::PATIENCE, updates.message()).await.expect("it comes").unwrap();
        listener.take(&update.expect("the stream goes on")).unwrap();
    }
    let log: Vec<schema::api::LogEntry> =
        server.get("/api/v1/revisions?limit=1000").await.json().await.unwrap();
    assert!(log.iter().map(|entry| entry.revision.0).eq(1..=server.snapshot().await.revision.0), "no gap");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_agent_has_what_it_would_be_sent_as_a_whole(events in events()) {
        tokio::runtime::Runtime::new().unwrap().block_on(history(events));
    }
}
