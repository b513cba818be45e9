//! Storage of the world: read all of it, commit batches.
//!
//! The contract is small because the narrowest engine offers no more: no transaction handle, no closure, one
//! conditional write. A batch names the revision that it was made on; if the head has moved, nothing of it is
//! written. The conformance suite at the end of this file runs on every implementation.

pub mod files;
pub mod memory;
pub mod rows;
pub mod sqlite;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
pub use schema::api::LogEntry;
use schema::chain::ChainHash;
use schema::inventory::{NodeId, SLACK};
use schema::scalars::{Name, NetworkName};
pub use schema::snapshot::Provenance;
use schema::snapshot::Revision;
use schema::world::World;
use serde::{Deserialize, Serialize};

use crate::core::authorize::Grant;
use crate::state::Chain;
use files::{DatabaseFiles, LostFile};
use rows::{Row, RowKey};

/// What is read of a store while another thread commits: it neither waits for that nor sees half of it. Its
/// calls block.
pub trait Reader: Send {
    /// The log entries with a revision above `after`, oldest first, at most `limit`.
    fn log(&mut self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, StoreError>;
    /// The token of that id.
    fn token(&mut self, id: &str) -> Result<Option<StoredToken>, StoreError>;
}

/// A store of the world. Its calls block.
pub trait Store: Send {
    /// Another reader of the same store.
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError>;
    /// The files that it is in, if it is in files of this host: whether they are still there is checked
    /// before each write, and whenever somebody asks whether the server is ready.
    fn files(&self) -> Option<Arc<DatabaseFiles>> {
        None
    }
    /// Reads everything.
    fn load(&mut self) -> Result<Stored, StoreError>;
    /// Writes the batches in their order, all or none of them; [`StoreError::Moved`] if the head is not where
    /// the first of them starts.
    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError>;
    /// The log entries with a revision above `after`, oldest first, at most `limit`.
    fn log(&mut self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, StoreError>;
    /// The revision that an apply of this id created, if it was committed.
    fn applied(&mut self, apply_id: &str) -> Result<Option<Revision>, StoreError>;
    /// Stores when nodes last called, and forgets those that are gone; makes no revision. `until` is the time
    /// until which the server has served.
    fn put_seen(
        &mut self,
        seen: &[(NodeId, Seen)],
        gone: &[NodeId],
        until: Timestamp,
    ) -> Result<(), StoreError>;
    /// Stores a token.
    fn put_token(&mut self, token: &StoredToken) -> Result<(), StoreError>;
    /// The token of that id.
    fn token(&mut self, id: &str) -> Result<Option<StoredToken>, StoreError>;
    /// Every token, by id.
    fn tokens(&mut self) -> Result<Vec<StoredToken>, StoreError>;
    /// Deletes a token; whether there was one.
    fn delete_token(&mut self, id: &str) -> Result<bool, StoreError>;
}

/// The action in the log for the first start of another version.
const UPGRADE: &str = "upgrade";
/// The action in the log for a raised epoch.
pub const EPOCH: &str = "epoch";
/// The action in the log for moments that were stored while the clock was ahead.
pub const CLOCK: &str = "clock";
/// The action in the log for a node that no longer carries what it may, or carries it again.
pub const FAILOVER: &str = "failover";
/// The action in the log for a host that begins to wait to be let in.
pub const ASK: &str = "ask";
/// The action in the log for a host that waits no longer, and is not let in.
pub const DROP: &str = "drop";
/// The action in the log for external clients that have expired.
pub const EXPIRE: &str = "expire";
/// The action in the log for a setting that nodes are told.
pub const SETTINGS: &str = "settings";
/// The actor in the log for what the server does by itself.
pub const SERVER: &str = "nmserver";
/// How far back the log is searched at a start.
const SEARCHED: u64 = 10_000;

/// The newest entries of the log of a head, as far back as a start needs them.
pub fn recent_log(store: &mut dyn Store, head: Revision) -> Result<Vec<LogEntry>, StoreError> {
    store.log(Revision(head.0.saturating_sub(SEARCHED)), SEARCHED as usize)
}

/// The revision since which each network is unchanged, by the newest entries of the log. It may be later than
/// the true one, never earlier.
pub fn unchanged_since(log: &[LogEntry], head: Revision) -> impl Fn(&NetworkName) -> Revision + use<> {
    let mut oldest = Revision(head.0.saturating_sub(SEARCHED));
    let mut last = BTreeMap::new();
    for entry in log {
        if matches!(&*entry.action, UPGRADE | EPOCH | SETTINGS) {
            oldest = entry.revision;
        }
        // No node is sent anything of hosts that wait: strangers must not cost everybody a whole View.
        if matches!(&*entry.action, ASK | DROP) {
            continue;
        }
        let declared = entry.changes.iter().map(|change| &change.id.network);
        let networks = declared.chain(entry.nodes.iter().map(|id| &id.network));
        last.extend(networks.map(|network| (network.clone(), entry.revision)));
    }
    move |network: &NetworkName| last.get(network).copied().unwrap_or(oldest).max(oldest)
}

/// The hashes of the newest entries of the log, which lead to a head with this one.
pub fn chain(log: &[LogEntry], head: Revision, hash: ChainHash) -> Result<Chain, StoreError> {
    let hashes: Vec<ChainHash> = log.iter().filter_map(|entry| entry.hash).collect();
    let complete =
        hashes.len() as u64 == head.0.min(SEARCHED) && hashes.last().is_none_or(|last| *last == hash);
    if !complete {
        let why = "the log does not lead to it, so something of it is missing or was changed";
        return Err(StoreError::Unreadable { what: "revision", key: head.to_string(), why: why.into() });
    }
    let first = log.first().map_or(head, |entry| entry.revision);
    Ok(if hashes.is_empty() { Chain::new(head, hash) } else { Chain::of(first, hashes) })
}

/// Makes a revision that changes nothing that is kept: another version of the program may compile other Views
/// from it, so all nodes are sent theirs anew.
pub fn record_upgrade(
    store: &mut dyn Store,
    world: &mut World,
    hash: &mut ChainHash,
    version: &str,
) -> Result<(), StoreError> {
    record(store, world, hash, LogEntry { actor: format!("{SERVER} {version}"), ..own_entry(UPGRADE) })
}

/// Makes a revision that begins another epoch: its revisions are not those of the same numbers that were
/// given out before. `why` is shown in the history.
pub fn raise_epoch(
    store: &mut dyn Store,
    world: &mut World,
    hash: &mut ChainHash,
    epoch: u64,
    why: String,
) -> Result<(), StoreError> {
    world.epoch = epoch;
    let provenance = Some(Provenance { message: Some(why), ..Provenance::default() });
    record(store, world, hash, LogEntry { provenance, ..own_entry(EPOCH) })
}

/// Makes a revision that gives members other name servers, if those are not what they have.
pub fn set_resolvers(
    store: &mut dyn Store,
    world: &mut World,
    hash: &mut ChainHash,
    resolvers: &BTreeSet<IpAddr>,
) -> Result<(), StoreError> {
    if world.inventory.resolvers() == resolvers {
        return Ok(());
    }
    let all = resolvers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let why = match resolvers.is_empty() {
        true => "COREDNS_ADDR is not set any more: members are given no name server".to_owned(),
        false => format!("COREDNS_ADDR: members ask {all} for names of their networks"),
    };
    let before = world.clone();
    world.inventory.set_resolvers(resolvers.clone());
    let provenance = Some(Provenance { message: Some(Provenance::cut(why)), ..Provenance::default() });
    record_change(store, &before, world, hash, LogEntry { provenance, ..own_entry(SETTINGS) })
}

/// Makes a revision that changes no object.
fn record(
    store: &mut dyn Store,
    world: &mut World,
    hash: &mut ChainHash,
    entry: LogEntry,
) -> Result<(), StoreError> {
    let before = world.clone();
    record_change(store, &before, world, hash, entry)
}

/// Makes a revision that leads from one world to another, whose revision it sets.
fn record_change(
    store: &mut dyn Store,
    before: &World,
    after: &mut World,
    hash: &mut ChainHash,
    entry: LogEntry,
) -> Result<(), StoreError> {
    after.revision = Revision(before.revision.0 + 1);
    let (puts, deletes) = rows::between(before, after);
    let entry = LogEntry { revision: after.revision, ..entry };
    let batch = Batch::new(hash, after.epoch, entry, puts, deletes);
    store.commit(std::slice::from_ref(&batch))?;
    *hash = batch.hash;
    Ok(())
}

/// An entry of what the server does by itself; its revision is filled in.
fn own_entry(action: &str) -> LogEntry {
    LogEntry {
        revision: Revision(0),
        time: Timestamp::now(),
        actor: SERVER.into(),
        action: action.into(),
        owner: None,
        apply_id: None,
        digest: None,
        provenance: None,
        allowed: BTreeSet::new(),
        changes: Vec::new(),
        guards: BTreeMap::new(),
        nodes: Vec::new(),
        hash: None,
    }
}

/// Everything that is stored.
#[derive(Debug)]
pub struct Stored {
    /// The random id of the server.
    pub server_id: String,
    /// The world.
    pub world: World,
    /// The hash of the newest log entry; before the first, where the chain starts.
    pub hash: ChainHash,
    /// When nodes last called.
    pub seen: Vec<(NodeId, Seen)>,
    /// Until when the server is known to have served; absent: never.
    pub served: Option<Timestamp>,
}

/// What one change writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The hash of the head that the batch was made on.
    pub before: ChainHash,
    /// The epoch from then on.
    pub epoch: u64,
    /// Its entry in the log; its revision is the one after the head that the batch was made on.
    pub entry: LogEntry,
    /// The entry as it is stored, in JSON.
    pub text: String,
    /// The hash of the entry.
    pub hash: ChainHash,
    /// Rows to write.
    pub puts: Vec<Row>,
    /// Rows to delete.
    pub deletes: Vec<RowKey>,
}

impl Batch {
    /// What follows a head with this hash.
    pub fn new(
        before: &ChainHash,
        epoch: u64,
        entry: LogEntry,
        puts: Vec<Row>,
        deletes: Vec<RowKey>,
    ) -> Self {
        let text = serde_json::to_string(&LogEntry { hash: None, ..entry.clone() });
        let text = text.expect("a log entry can be written as JSON");
        let hash = before.next(&text);
        Self {
            before: *before,
            epoch,
            entry: LogEntry { hash: Some(hash), ..entry },
            text,
            hash,
            puts,
            deletes,
        }
    }
}

/// When a node last called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When.
    pub time: Timestamp,
    /// The epoch of the revision; the revision says nothing in another one.
    pub epoch: u64,
    /// The revision that it had then; 0: not known.
    pub revision: Revision,
}

/// A bearer token, as it is stored: what verifies it, never the token itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// Its id.
    pub id: String,
    /// What people call it; no two tokens have the same. Absent: it has none.
    #[serde(default)]
    pub name: Option<Name>,
    /// SHA-256 of its secret, which has 256 random bits and so needs no slow hash.
    pub hash: [u8; 32],
    /// What it may do.
    pub grant: Grant,
    /// When it was created.
    pub created: Timestamp,
    /// When it expires.
    pub expires: Option<Timestamp>,
}

impl StoredToken {
    /// The token as if it had been created now, for as long as it was meant to be valid, if it was created
    /// while the clock was ahead; nothing if it was not.
    pub fn without_future(&self, now: Timestamp) -> Option<Self> {
        let ahead = self.created.duration_since(now);
        let right = |expires: Timestamp| expires.checked_sub(ahead).unwrap_or(now);
        (ahead > SLACK).then(|| Self { created: now, expires: self.expires.map(right), ..self.clone() })
    }
}

/// Why a read or write failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has committed in the meantime; nothing was written.
    #[error("the head has moved to revision {0}")]
    Moved(Revision),
    /// The database refused.
    #[error("{attempt}")]
    Database {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// A file of the database cannot be opened.
    #[error(
        "cannot open the database {path}; check that it is a database of nmserver and that nmserver may write to it"
    )]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: rusqlite::Error,
    },
    /// The files of the database cannot be examined.
    #[error("cannot look at the files of the database {path}")]
    Files {
        /// The database.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file that is a database holds no server.
    #[error(
        "the database {path} holds no server: it was emptied, or belongs to another program; put the server's own back from \
         a backup, or set DATA_DIR to an empty directory to begin anew"
    )]
    NoServer {
        /// The file.
        path: String,
    },
    /// A file of the database is not the one that was opened; nothing was written.
    #[error(transparent)]
    Lost(LostFile),
    /// The same, found after a write: that may be lost as well.
    #[error(transparent)]
    LostAfterCommit(LostFile),
    /// A later version has changed the format of the database.
    #[error(
        "the database {path} was written by a newer version (format {found}, this one reads up to {known}); update nmserver"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its format.
        found: usize,
        /// The newest format that is known here.
        known: usize,
    },
    /// Stored data cannot be read: it was damaged, or written by a newer version.
    #[error("the stored {what} {key} cannot be read: {why}")]
    Unreadable {
        /// What it is.
        what: &'static str,
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

impl StoreError {
    /// The error of a check after a commit.
    fn after_commit(self) -> Self {
        if let Self::Lost(lost) = self { Self::LostAfterCommit(lost) } else { self }
    }

    /// Whether it is certain that nothing was written.
    pub fn is_harmless(&self) -> bool {
        !matches!(self, Self::LostAfterCommit(_))
    }

    /// The cause in a few words, and what the operator should do about it, if that is known.
    pub fn why(&self) -> &'static str {
        const LOST: &str = "a file of the database was deleted, moved, replaced or truncated: put it back and restart nmserver";
        use rusqlite::ErrorCode::{
            DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, ReadOnly, SystemIoFailure,
        };
        let source = match self {
            Self::Database { source, .. } | Self::Open { source, .. } => source,
            Self::Lost(_) | Self::LostAfterCommit(_) => return LOST,
            Self::Moved(_) => {
                return "another server, or a copy that was put back, uses it: stop the other and restart nmserver";
            }
            Self::Files { .. } | Self::NoServer { .. } | Self::Newer { .. } | Self::Unreadable { .. } => {
                return "its log says why";
            }
        };
        match source.sqlite_error_code() {
            Some(DiskFull) => "its disk is full: free some space",
            Some(ReadOnly) => "the database is read-only: make it writable for nmserver",
            Some(DatabaseBusy | DatabaseLocked) => "another program has locked the database: stop it",
            Some(SystemIoFailure) => "reading or writing its disk failed: check the disk",
            Some(DatabaseCorrupt) => "the database is damaged: restore a backup",
            Some(_) | None => "its log says why",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_was_created_while_the_clock_was_ahead_is_valid_for_as_long_as_it_was_meant_to_be() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (now, month) = (at("2026-11-28T00:00:00Z"), jiff::SignedDuration::from_hours(24 * 30));
        let token = |created: Timestamp, expires: Option<Timestamp>| StoredToken {
            id: "t".into(),
            name: None,
            hash: [0; 32],
            grant: Grant::admin(),
            created,
            expires,
        };
        let ahead = at("2036-11-28T00:00:00Z");
        let corrected = token(ahead, Some(ahead + month)).without_future(now);
        assert_eq!(corrected, Some(token(now, Some(now + month))));
        assert_eq!(token(ahead, None).without_future(now), Some(token(now, None)));
        assert_eq!(
            token(now + SLACK, Some(now + month)).without_future(now),
            None,
            "clocks are corrected by a little"
        );
    }
}

#[cfg(test)]
mod conformance {
    use schema::inventory::{Away, ClientStatus};

    use super::*;

    /// A batch that follows what a store has, as if the head were at the revision before this one.
    pub(super) fn batch(store: &mut dyn Store, revision: u64, puts: Vec<Row>, deletes: Vec<RowKey>) -> Batch {
        let Stored { world, hash, .. } = store.load().expect("it loads");
        following(&hash, world.epoch, revision, puts, deletes)
    }

    fn following(
        before: &ChainHash,
        epoch: u64,
        revision: u64,
        puts: Vec<Row>,
        deletes: Vec<RowKey>,
    ) -> Batch {
        Batch::new(before, epoch, entry(revision), puts, deletes)
    }

    pub(super) fn entry(revision: u64) -> LogEntry {
        LogEntry {
            revision: Revision(revision),
            time: Timestamp::UNIX_EPOCH,
            actor: "test".into(),
            action: "apply".into(),
            owner: None,
            apply_id: Some(format!("apply-{revision}")),
            digest: None,
            provenance: None,
            allowed: BTreeSet::new(),
            changes: Vec::new(),
            guards: BTreeMap::new(),
            nodes: Vec::new(),
            hash: None,
        }
    }

    fn network_row(revision: u64, name: &str) -> Row {
        let key = RowKey { network: name.into(), kind: "network".into(), name: name.into() };
        let body = serde_json::json!({ "owner": null, "body": { "ipv4": "10.0.0.0/24" } }).to_string();
        Row { key, revision: Revision(revision), format: rows::FORMAT, body }
    }

    /// What every store must do.
    pub(super) fn holds(store: &mut dyn Store) {
        let empty = store.load().expect("an empty store loads");
        assert!(empty.world.snapshot.is_empty() && empty.world.revision == Revision(0));
        assert!(!empty.server_id.is_empty() && empty.world.epoch > 0);

        let first = network_row(1, "a");
        let one = batch(store, 1, vec![first.clone()], vec![]);
        let second = following(&one.hash, one.epoch, 2, vec![network_row(2, "b")], vec![]);
        store.commit(&[one.clone(), second.clone()]).expect("a group commits");
        let two = store.load().expect("it loads");
        assert_eq!((two.world.revision, two.world.snapshot.len()), (Revision(2), 2));
        assert_eq!(two.server_id, empty.server_id, "a server keeps its id");
        assert_eq!((two.hash, two.world.epoch), (second.hash, empty.world.epoch));
        assert_eq!(empty.hash, ChainHash::start(&empty.server_id), "the chain starts with the server");

        let stale = store.commit(&[following(&one.hash, one.epoch, 2, vec![], vec![first.key.clone()])]);
        assert!(
            matches!(stale, Err(StoreError::Moved(Revision(2)))),
            "a batch on an old head is refused: {stale:?}"
        );
        let other = store.commit(&[following(&one.hash, one.epoch, 3, vec![], vec![first.key.clone()])]);
        assert!(
            matches!(other, Err(StoreError::Moved(Revision(2)))),
            "and one on another history: {other:?}"
        );
        let third = batch(store, 3, vec![], vec![first.key.clone()]);
        let half = store.commit(&[third.clone(), following(&third.hash, third.epoch, 5, vec![], vec![])]);
        assert!(half.is_err(), "a gap in a group is refused");
        assert_eq!(
            store.load().expect("it loads").world.snapshot.len(),
            2,
            "and nothing of the group is written"
        );

        let epoch = third.epoch + 1;
        store.commit(&[Batch { epoch, ..third.clone() }]).expect("a delete commits");
        let three = store.load().expect("it loads");
        assert_eq!((three.hash, three.world.epoch), (third.hash, epoch), "a batch may raise the epoch");
        let hashes = store.log(Revision(0), 10).expect("the log reads");
        let hashes: Vec<_> = hashes.iter().map(|entry| entry.hash).collect();
        assert_eq!(
            hashes,
            [one.hash, second.hash, third.hash].map(Some),
            "the log shows the hash of each entry"
        );
        assert_eq!(store.load().expect("it loads").world.snapshot.len(), 1);

        let revisions =
            |log: Vec<LogEntry>| log.into_iter().map(|entry| entry.revision.0).collect::<Vec<_>>();
        assert_eq!(revisions(store.log(Revision(1), 10).expect("the log reads")), [2, 3]);
        assert_eq!(revisions(store.log(Revision(0), 2).expect("the log reads")), [1, 2]);
        assert_eq!(store.applied("apply-2").expect("it reads"), Some(Revision(2)));
        assert_eq!(store.applied("apply-9").expect("it reads"), None);

        let mut later = three.world.clone();
        let node =
            |name: &str| NodeId { network: "b".parse().expect("good"), name: name.parse().expect("good") };
        let client = ClientStatus {
            addresses: ["10.0.0.9".parse().expect("good")].into(),
            created: Timestamp::UNIX_EPOCH,
            expired: false,
        };
        later.inventory.put_client(node("phone"), client, Timestamp::UNIX_EPOCH);
        later.inventory.set_away(node("gw"), Away { everything: true, egress: [node("office").name].into() });
        later.inventory.set_carried(node("exit"), true);
        let (puts, deletes) = rows::between(&three.world, &later);
        let fourth = batch(store, 4, puts, deletes);
        store.commit(&[fourth]).expect("it commits");
        assert_eq!(store.load().expect("it loads").world.inventory, later.inventory);
        let (puts, deletes) = rows::between(&later, &three.world);
        let fifth = batch(store, 5, puts, deletes);
        store.commit(&[fifth]).expect("it commits");
        assert_eq!(store.load().expect("it loads").world.inventory, three.world.inventory);

        let token = StoredToken {
            id: "t1".into(),
            name: "ci".parse().ok(),
            hash: [7; 32],
            grant: Grant::admin(),
            created: Timestamp::UNIX_EPOCH,
            expires: None,
        };
        let mut reader = store.reader().expect("it opens");
        assert_eq!(revisions(reader.log(Revision(1), 10).expect("the log reads")), [2, 3, 4, 5]);
        assert_eq!(reader.token("t1").expect("it reads"), None);
        store.put_token(&token).expect("a token is kept");
        assert_eq!(
            reader.token("t1").expect("it reads"),
            Some(token.clone()),
            "a reader sees what is committed"
        );
        assert_eq!(store.token("t1").expect("it reads"), Some(token.clone()));
        assert_eq!(store.tokens().expect("they read"), [token]);
        assert!(store.delete_token("t1").expect("it is forgotten"));
        assert!(!store.delete_token("t1").expect("it is gone"));

        let id = NodeId { network: "b".parse().expect("good"), name: "n".parse().expect("good") };
        let seen = Seen { time: Timestamp::UNIX_EPOCH, epoch, revision: Revision(3) };
        assert_eq!(store.load().expect("it loads").served, None);
        store.put_seen(&[(id.clone(), seen)], &[], Timestamp::UNIX_EPOCH).expect("it is kept");
        let kept = store.load().expect("it loads");
        assert_eq!((kept.seen, kept.served), (vec![(id.clone(), seen)], Some(Timestamp::UNIX_EPOCH)));
        store.put_seen(&[], &[id], Timestamp::UNIX_EPOCH).expect("it is forgotten");
        assert_eq!(store.load().expect("it loads").seen, []);
        assert_eq!(
            store.load().expect("it loads").world.revision,
            Revision(5),
            "and none of this makes a revision"
        );
    }
}
