//! One history: epoch, revision and chain hash name one state, whatever is done to the files of the database.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::fs;
use std::path::Path;

use nmserver::identity::DATABASE;
use proto::wire::update::Body;
use schema::api::LogEntry;
use schema::snapshot::Revision;
use support::{PATIENCE, Running, eventually, folder};
use test_agent::Agent;

const CORP: &str = r#"network "corp" { ipv4 "10.0.0.0/24"; access-key "k" uses="unlimited" }"#;

/// The network with an entry, so that every View differs.
fn with_entry(last: u8) -> String {
    format!(
        r#"network "corp" {{ ipv4 "10.0.0.0/24"; access-key "k" uses="unlimited"; dns "api" a="10.0.0.{last}" }}"#
    )
}

/// Copies every file of a directory into another, whose own files go first.
fn copy(from: &Path, to: &Path, files: impl Fn(&str) -> bool) {
    let names = |path: &Path| -> Vec<String> {
        let all = fs::read_dir(path).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
        all.filter(|name| files(name)).collect()
    };
    names(to).iter().for_each(|name| fs::remove_file(to.join(name)).unwrap());
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Ends a server, and waits until its database is closed.
async fn end(server: Running, data: &Path) {
    server.end().await;
    let log = data.join(format!("{DATABASE}-wal"));
    eventually("the database is closed", async || {
        // Connections that are closed in the same instant leave the log to the next one.
        let last = rusqlite::Connection::open(data.join(DATABASE)).unwrap();
        last.query_row("select id from server", [], |_| Ok(())).unwrap();
        drop(last);
        (!log.exists()).then_some(())
    })
    .await;
}

fn is_database(name: &str) -> bool {
    name.starts_with(DATABASE)
}

/// A server and an agent that was served revisions which the copy of the server's files does not have.
async fn overtaken_copy(data: &Path, saved: &Path) -> Agent {
    let server = Running::on_disk(data).await;
    server.declare(CORP).await;
    let mut agent = server.joined("a", 1, "k").await;
    agent.check_in(None).await.unwrap();
    end(server, data).await;
    copy(data, saved, |_| true);
    let server = Running::on_disk(data).await;
    agent.client = server.agent("a", 1).client;
    for last in [100, 101] {
        server.declare(&with_entry(last)).await;
        agent.check_in(None).await.unwrap();
    }
    end(server, data).await;
    agent
}

/// The agent converges within one check-in, the server knows it after the next, and the log says what
/// happened.
async fn converges(server: &Running, agent: &mut Agent, epoch: u64) {
    agent.client = server.agent("a", 1).client;
    let answer = agent.check_in(None).await.unwrap();
    let update = answer.update.expect("the server has other things than the agent");
    assert!(
        matches!(update.body, Some(Body::Whole(_))) && update.epoch > epoch,
        "{} > {epoch}",
        update.epoch
    );
    let held = agent.view.clone();
    let whole = agent.whole().await.unwrap();
    agent.take(&whole).unwrap();
    assert_eq!(held, agent.view);
    assert_eq!(agent.check_in(None).await.unwrap().update, None, "nothing is left to be sent");
    let status = server.status().await;
    assert_eq!(status.nodes[0].acknowledged, Some(status.revision));
    let log: Vec<LogEntry> = server.get("/api/v1/revisions?limit=1000").await.json().await.unwrap();
    let raised: Vec<_> = log.iter().filter(|entry| entry.action == "epoch").collect();
    assert_eq!(raised.len(), 1, "{raised:?}");
    let why = raised[0].provenance.as_ref().unwrap().message.clone().unwrap();
    assert!(why.contains("put back from a copy") && why.contains("join again"), "{why}");
    assert_eq!(server.snapshot().await.server.epoch, status.epoch);
}

#[tokio::test]
async fn a_database_below_the_mark_begins_another_epoch_and_nodes_converge_within_one_check_in() {
    let (data, saved) = (folder(), folder());
    let mut agent = overtaken_copy(data.path(), saved.path()).await;
    copy(saved.path(), data.path(), is_database);
    let epoch = agent.at.epoch;
    let server = Running::on_disk(data.path()).await;
    assert!(
        server.status().await.nodes[0].acknowledged.is_none(),
        "what was acknowledged was of another history"
    );
    converges(&server, &mut agent, epoch).await;
}

#[tokio::test]
async fn another_name_server_is_one_revision_that_says_so_and_every_node_is_sent_it() {
    let data = folder();
    let server = Running::on_disk(data.path()).await;
    server.declare(CORP).await;
    let mut agent = server.joined("a", 1, "k").await;
    agent.check_in(None).await.unwrap();
    end(server, data.path()).await;
    let both = ["10.0.0.53", "192.0.2.53"];
    for (set, message) in [
        (&both[..], Some("COREDNS_ADDR: members ask 10.0.0.53, 192.0.2.53 for names of their networks")),
        (&both[..], None),
        (&[], Some("COREDNS_ADDR is not set any more: members are given no name server")),
    ] {
        let resolvers = set.iter().map(|address| address.parse().unwrap()).collect();
        let server = Running::with_resolvers(data.path(), resolvers).await;
        agent.client = server.agent("a", 1).client;
        let before = agent.at.revision;
        let update = agent.check_in(None).await.unwrap().update;
        assert_eq!(update.is_some(), message.is_some(), "{set:?}");
        let view = agent.view.as_ref().unwrap();
        let given: Vec<_> = view.interface.resolvers.iter().map(ToString::to_string).collect();
        assert_eq!(given, set);
        assert_eq!(agent.at.revision.0 - before.0, u64::from(message.is_some()), "{set:?}");
        let log: Vec<LogEntry> = server.get("/api/v1/revisions?limit=1000").await.json().await.unwrap();
        if let Some(message) = message {
            let last = log.iter().max_by_key(|entry| entry.revision).unwrap();
            assert_eq!(last.action, "settings");
            assert_eq!(last.provenance.as_ref().unwrap().message.as_deref(), Some(message));
        }
        end(server, data.path()).await;
    }
}

#[tokio::test]
async fn a_directory_that_is_put_back_as_a_whole_is_noticed_by_what_a_node_has() {
    for after in 0..4 {
        let (data, saved) = (folder(), folder());
        let mut agent = overtaken_copy(data.path(), saved.path()).await;
        copy(saved.path(), data.path(), |_| true);
        let epoch = agent.at.epoch;
        let server = Running::on_disk(data.path()).await;
        assert_eq!(server.status().await.epoch, epoch, "nothing on the disk shows it");
        // The server goes on by itself until it is behind, at, or beyond the node's revision.
        for last in 0..after {
            server.declare(&with_entry(200 + last)).await;
        }
        converges(&server, &mut agent, epoch).await;
    }
}

#[tokio::test]
async fn a_stream_brings_every_node_the_new_epoch() {
    let (data, saved) = (folder(), folder());
    let mut agent = overtaken_copy(data.path(), saved.path()).await;
    copy(saved.path(), data.path(), |_| true);
    let server = Running::on_disk(data.path()).await;
    let mut other = server.joined("b", 2, "k").await;
    let mut updates = other.watch().await.unwrap();
    agent.client = server.agent("a", 1).client;
    let mut own = agent.watch().await.unwrap();
    for (agent, updates) in [(&mut agent, &mut own), (&mut other, &mut updates)] {
        let epoch = agent.at.epoch;
        while agent.at.epoch == epoch {
            let update = tokio::time::timeout(PATIENCE, updates.message()).await.expect("it comes").unwrap();
            agent.take(&update.expect("the stream goes on")).unwrap();
        }
        let held = agent.view.clone();
        let whole = agent.whole().await.unwrap();
        agent.take(&whole).unwrap();
        assert_eq!(held, agent.view);
    }
}

#[tokio::test]
async fn a_position_that_the_server_did_not_give_out_raises_nothing() {
    let (server, _) = Running::in_memory().await;
    server.declare(CORP).await;
    let mut agent = server.joined("a", 1, "k").await;
    let (epoch, true_position) = (agent.at.epoch, agent.at);
    for forged in [
        proto::position::Position { revision: Revision(99), ..true_position },
        proto::position::Position { epoch: epoch + 1, ..true_position },
        proto::position::Position { stamp: Default::default(), ..true_position },
    ] {
        agent.at = forged;
        let update = agent.check_in(None).await.unwrap().update.unwrap();
        assert!(matches!(update.body, Some(Body::Whole(_))) && update.epoch == epoch, "{forged:?}");
    }
    assert_eq!(server.status().await.epoch, epoch);
}

#[tokio::test]
async fn a_restart_that_lost_nothing_keeps_the_epoch_and_the_chain() {
    let data = folder();
    let mut before = None;
    for round in 0..3 {
        let server = Running::on_disk(data.path()).await;
        server.declare(&with_entry(100 + round)).await;
        let log: Vec<LogEntry> = server.get("/api/v1/revisions?limit=1000").await.json().await.unwrap();
        assert!(log.iter().all(|entry| entry.action == "apply" && entry.hash.is_some()), "{log:?}");
        let epoch = server.status().await.epoch;
        assert!(before.is_none_or(|before| before == epoch));
        before = Some(epoch);
        end(server, data.path()).await;
    }
}

#[tokio::test]
async fn what_was_sent_and_not_acknowledged_counts_as_unknown() {
    let (server, _) = Running::in_memory().await;
    server.declare(CORP).await;
    let mut agent = server.joined("a", 1, "k").await;
    agent.check_in(None).await.unwrap();
    let status = async || server.status().await.nodes[0].acknowledged;
    let known = status().await.unwrap();
    let stale = (agent.at, agent.view.clone());
    // A change, whose acknowledgement is lost, and the change back.
    let mut updates = agent.watch().await.unwrap();
    server.declare(&with_entry(100)).await;
    let update = tokio::time::timeout(PATIENCE, updates.message()).await.expect("it comes").unwrap().unwrap();
    drop(updates);
    agent.take(&update).unwrap();
    let reported = server.declare(CORP).await.revision;
    assert_eq!(status().await, Some(known), "it may have the state in between");
    // It has applied nothing yet, as far as it reports: it is sent what certainly leads to the newest.
    let (at, _) = stale;
    let in_between = (agent.at, agent.view.clone());
    agent.at = at;
    let sent = agent.check_in(None).await.unwrap().update.expect("it is sent the whole View");
    assert!(matches!(sent.body, Some(Body::Whole(_))));
    assert_ne!(in_between.1, agent.view);
    assert_eq!(status().await, Some(known), "that was not acknowledged either");
    assert_eq!(agent.check_in(None).await.unwrap().update, None);
    assert_eq!(status().await, Some(reported));
}
