//! Agents that wait for what a server sends, each on a TLS connection of its own, and what a change sends them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prost::Message;
use proto::wire::Update;
use schema::view::View;
use test_agent::Agent;
use tokio::sync::Semaphore;
use tonic::Streaming;

use crate::load::{Serving, name};

/// How many agents connect at the same time.
const CONNECTING: usize = 64;
/// How many agents have their whole View and check that the delta leads to the same as the server's whole
/// View.
const CHECKING: usize = 3;
/// Nothing more is on its way after this time without an update.
const QUIET: Duration = Duration::from_secs(1);
/// The longest that it may take until all have the update.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An agent that waits for an update.
pub struct Watching {
    agent: Agent,
    updates: Streaming<Update>,
    checks: bool,
}

/// An update, as it arrived at one agent.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its size in bytes, signature included.
    pub bytes: usize,
    /// When it arrived.
    pub at: Timestamp,
}

/// Has the agents of the nodes with these numbers wait for updates.
///
/// # Panics
///
/// When one of them is not in the network.
pub async fn watch_all(server: &Serving, numbers: Range<u32>) -> Vec<Watching> {
    let known = server.known();
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let at = server.position();
    let watch = |(place, number): (usize, u32)| {
        let known = known.clone();
        let connecting = Arc::clone(&connecting);
        tokio::spawn(async move {
            let _turn = connecting.acquire().await.expect("it stays open");
            let mut agent = Agent::new(&known, "corp", &name(number), number);
            let checks = place < CHECKING;
            if checks {
                let whole = agent.whole().await.expect("it is in the network");
                agent.take(&whole).expect("it is signed");
            }
            agent.at = at;
            let updates = agent.watch().await.expect("a stream");
            Watching { agent, updates, checks }
        })
    };
    let mut all = Vec::new();
    for watching in numbers.enumerate().map(watch).collect::<Vec<_>>() {
        all.push(watching.await.expect("it watches"));
    }
    all
}

/// The update that each of them receives after a change, and who waits for the next one.
///
/// # Panics
///
/// When one does not receive one within two minutes, or it does not lead where the server says.
pub async fn all_receive(
    watching: Vec<Watching>,
    change: impl Future<Output = ()>,
) -> (Vec<Watching>, Vec<Received>) {
    let receiving: Vec<_> = watching.into_iter().map(|watching| tokio::spawn(watching.receive())).collect();
    change.await;
    let (mut watching, mut received) = (Vec::new(), Vec::new());
    for update in receiving {
        let (agent, update) = update.await.expect("it was received");
        watching.push(agent);
        received.push(update);
    }
    (watching, received)
}

/// Lets all of them take what they are sent anyway, until nothing more comes.
///
/// # Panics
///
/// When a stream ends.
pub async fn settle(watching: Vec<Watching>) -> Vec<Watching> {
    let settling: Vec<_> = watching.into_iter().map(|watching| tokio::spawn(watching.settle())).collect();
    let mut watching = Vec::new();
    for agent in settling {
        watching.push(agent.await.expect("it watches on"));
    }
    watching
}

impl Watching {
    /// The View that it has; absent: it is none of the few that check what they are sent.
    pub fn view(&self) -> Option<&View> {
        self.agent.view.as_ref()
    }

    async fn settle(mut self) -> Self {
        while let Ok(update) = tokio::time::timeout(QUIET, self.updates.message()).await {
            let update = update.expect("the stream is whole").expect("the stream goes on");
            if self.checks {
                self.agent.take(&update).expect("it applies");
            }
        }
        self
    }

    async fn receive(mut self) -> (Self, Received) {
        let update = tokio::time::timeout(TIMEOUT, self.updates.message()).await.expect("an update in time");
        let at = Timestamp::now();
        let update = update.expect("the stream is whole").expect("the stream goes on");
        if self.checks {
            self.agent.take(&update).expect("it applies");
            let by_delta = self.agent.view.clone();
            let whole = self.agent.whole().await.expect("it is in the network");
            self.agent.take(&whole).expect("it is signed");
            assert_eq!(by_delta, self.agent.view, "a delta leads to the same as the whole");
        }
        (self, Received { bytes: update.encoded_len(), at })
    }
}
