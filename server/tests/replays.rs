//! What a proxy that ends TLS between agents and the server can do with the calls that it records: nothing.
//! It may record them all, and send each again at any time, in any order, whole or cut.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::sync::Arc;

use futures_util::future::join_all;
use netclient::agent::{Agent, AgentError, JoinOptions};
use netclient::comms::ServerTunnel;
use netclient::control::{CallError, Connection, Reach};
use netclient::daemon;
use netclient::device::PrivateKey;
use netclient::directory::Directory;
use netclient::host::fake::FakeHost;
use netclient::membership::ServerAddress;
use netclient::settings::Settings;
use proto::secret::Secret;
use proto::token::Token;
use reqwest::{Method, StatusCode};
use schema::api::Presence;
use schema::world::World;
use support::proxy::{Answer, Proxy, Recorded};
use support::{Running, eventually, folder};
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::Code;

const CORP: &str = r#"
    network "corp" {
        ipv4 "10.0.0.0/24"
        check-in "1s"
        access-key "many" uses="unlimited"
        access-key "few" uses=5
    }
"#;

/// A host with a real agent, whose calls a proxy records.
struct Node {
    agent: Agent,
    token: Token,
    name: &'static str,
    daemon: watch::Sender<bool>,
    _folder: TempDir,
}

impl Node {
    fn new(proxy: &Proxy, name: &'static str, key: &str) -> Self {
        let folder = folder();
        let directory = Directory::open(folder.path()).unwrap();
        let agent = Agent::new(directory, Settings::default(), Arc::new(FakeHost::default()));
        let token = Token {
            addresses: vec![proxy.known.at.to_string()],
            signing_key: proxy.known.signing_key,
            ca_pin: Some(proxy.ca_pin),
            network: "corp".parse().unwrap(),
            key: key.parse().unwrap(),
            seed: Secret::new(test_agent::seed(key).to_bytes()),
        };
        Self { agent, token, name, daemon: watch::Sender::new(false), _folder: folder }
    }

    async fn join(&self) -> Result<(), AgentError> {
        let options = JoinOptions { name: Some(self.name.parse().unwrap()), ..JoinOptions::default() };
        self.agent.join(&self.token, &options).await.map(drop)
    }

    /// Starts what keeps it up to date.
    fn start(&self) {
        let (agent, end) = (self.agent.clone(), self.daemon.subscribe());
        tokio::spawn(async move { daemon::run(agent, end).await.unwrap() });
    }

    /// Registers for a tunnel, which this server does not offer.
    async fn register(&self) {
        let Token { addresses, signing_key, ca_pin, .. } = &self.token;
        let server =
            ServerAddress { addresses: addresses.clone(), signing_key: *signing_key, ca_pin: *ca_pin };
        let directory = self.agent.directory.clone();
        let reach = Reach::Network(ServerTunnel::new(
            directory,
            "/proc/self/exe".into(),
            *signing_key,
            netclient::outside::Mark::default(),
        ));
        let connection = Connection::new(server, test_agent::seed("identity"), reach);
        let refused = connection.register(Some(&self.token), &PrivateKey::from_random([7; 32])).await;
        assert!(
            matches!(&refused, Err(CallError::Refused(why)) if why.contains("COMMS is off")),
            "{refused:?}"
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.daemon.send_replace(true);
    }
}

/// Waits until a node is online and has everything.
async fn has_all(server: &Running, name: &str) {
    let check = async || {
        let status = server.status().await;
        let node = status.nodes.into_iter().find(|node| node.name.as_str() == name)?;
        (node.state == Presence::Online && node.acknowledged == Some(status.revision)).then_some(())
    };
    eventually(&format!("{name} has everything"), check).await;
}

async fn world(server: &Running) -> World {
    server.snapshot().await.world().unwrap()
}

async fn remove(server: &Running, name: &str, ban: bool) {
    let path = format!("/api/v1/corp/node/{name}/host?ban={ban}");
    let answer = server.call(Method::DELETE, &path).bearer_auth(&server.token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

/// Whether a call only asks: it may be answered again, and whoever ends TLS has the answer already.
fn asks(call: &Recorded) -> bool {
    let without_facts = |call: &Recorded| {
        let message: proto::wire::CheckInRequest = prost::Message::decode(call.body.slice(5..)).unwrap();
        message.facts.is_none()
    };
    match call.method() {
        "Challenge" | "GetPeers" => true,
        "CheckIn" => without_facts(call),
        _ => false,
    }
}

/// Sends every recorded call again, and demands that nothing comes of it.
async fn replay_all(server: &Running, proxy: &Proxy, calls: &[Recorded], when: &str) {
    let before = world(server).await;
    let answers = join_all(calls.iter().map(|call| proxy.replay(call))).await;
    for (call, answer) in calls.iter().zip(answers) {
        let Answer::Ended(code, bytes) = answer else { panic!("{when}: {} opened a stream", call.method()) };
        let refused = code != Code::Ok && bytes == 0;
        assert!(asks(call) || refused, "{when}: {} was answered with {answer:?}", call.method());
    }
    let after = world(server).await;
    assert_eq!(after, before, "{when}: nothing changes, no use of a key is spent, and nobody comes back");
}

/// The same with each message cut, in several places.
async fn replay_cut(server: &Running, proxy: &Proxy, calls: &[Recorded]) {
    let before = world(server).await;
    for call in calls.iter().filter(|call| !call.body.is_empty()) {
        let length = call.body.len();
        for end in [0, 3, 5, length / 2, length - 1].into_iter().filter(|end| *end < length) {
            let answer = proxy.replay(&call.cut(end)).await;
            let refused = matches!(answer, Answer::Ended(code, 0) if code != Code::Ok);
            assert!(refused, "{} cut to {end} of {length} bytes: {answer:?}", call.method());
        }
    }
    assert_eq!(world(server).await, before);
}

#[tokio::test]
async fn nothing_that_a_proxy_recorded_does_anything_again() {
    let (server, _) = Running::in_memory().await;
    server.declare(CORP).await;
    let proxy = Proxy::start(&server.known).await;
    let (honest, leaver, removed) = (
        Node::new(&proxy, "honest", "many"),
        Node::new(&proxy, "leaver", "few"),
        Node::new(&proxy, "removed", "few"),
    );
    honest.register().await;
    for node in [&honest, &leaver, &removed] {
        node.join().await.unwrap();
    }
    honest.start();
    removed.start();
    has_all(&server, "honest").await;
    has_all(&server, "removed").await;
    leaver.agent.leave(&"corp".parse().unwrap(), false).await.unwrap();
    leaver.join().await.unwrap();
    has_all(&server, "honest").await;
    let calls = proxy.recorded();
    for method in ["Challenge", "Register", "Join", "OpenSession", "CheckIn", "Watch", "Leave"] {
        assert!(calls.iter().any(|call| call.method() == method), "{method} was not called");
    }
    assert!(calls.iter().any(|call| call.method() == "CheckIn" && !asks(call)), "no facts were sent");

    replay_all(&server, &proxy, &calls, "at once").await;
    let mut reordered = calls.clone();
    reordered.reverse();
    replay_all(&server, &proxy, &reordered, "in another order").await;
    replay_cut(&server, &proxy, &calls).await;

    remove(&server, "removed", false).await;
    replay_all(&server, &proxy, &calls, "after a removal").await;
    let gone = async || removed.agent.directory.networks().unwrap().is_empty().then_some(());
    eventually("the agent hears of its removal", gone).await;
    removed.join().await.expect("its host itself may join again");
    remove(&server, "removed", true).await;
    replay_all(&server, &proxy, &proxy.recorded(), "after a ban").await;
    assert!(world(&server).await.inventory.nodes().all(|(id, _)| id.name.as_str() != "removed"));

    server.declare(&CORP.replace("check-in", r#"dns "api" a="10.0.0.200"; check-in"#)).await;
    has_all(&server, "honest").await;
}
