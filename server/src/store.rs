//! Where the world is kept: read all of it, commit batches.
//!
//! The contract is small because the narrowest engine offers no more: no transaction handle, no closure, one conditional
//! write. A batch names the revision that it was made on; if the head has moved, nothing of it is written. The conformance
//! suite at the end of this file runs on every implementation.

pub mod memory;
pub mod rows;
pub mod sqlite;

use jiff::Timestamp;
use schema::diff::Change;
use schema::inventory::NodeId;
use schema::snapshot::{Owner, Revision};
use schema::world::World;
use serde::{Deserialize, Serialize};

use crate::core::authorize::Grant;
use rows::{Row, RowKey};

/// A place where the world is kept. Its calls block.
pub trait Store: Send {
    /// Reads everything.
    fn load(&mut self) -> Result<Stored, StoreError>;
    /// Writes the batches in their order, all or none of them; [`StoreError::Moved`] if the head is not where the first of
    /// them starts.
    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError>;
    /// The log entries with a revision above `after`, oldest first, at most `limit`.
    fn log(&mut self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, StoreError>;
    /// The revision that an apply of this id made, if it was committed.
    fn applied(&mut self, apply_id: &str) -> Result<Option<Revision>, StoreError>;
    /// Keeps when nodes were last heard of; makes no revision.
    fn put_seen(&mut self, seen: &[(NodeId, Seen)]) -> Result<(), StoreError>;
    /// Keeps a token.
    fn put_token(&mut self, token: &StoredToken) -> Result<(), StoreError>;
    /// The token of that id.
    fn token(&mut self, id: &str) -> Result<Option<StoredToken>, StoreError>;
    /// Every token, by id.
    fn tokens(&mut self) -> Result<Vec<StoredToken>, StoreError>;
    /// Forgets a token; whether there was one.
    fn delete_token(&mut self, id: &str) -> Result<bool, StoreError>;
}

/// Everything that is kept.
#[derive(Debug)]
pub struct Stored {
    /// The random id of the server.
    pub server_id: String,
    /// The world.
    pub world: World,
    /// When nodes were last heard of.
    pub seen: Vec<(NodeId, Seen)>,
}

/// What one change writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its entry in the log; its revision is the one after the head that the batch was made on.
    pub entry: LogEntry,
    /// Rows to write.
    pub puts: Vec<Row>,
    /// Rows to take away.
    pub deletes: Vec<RowKey>,
}

/// One revision: who changed what, when and why. Append-only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The revision that it made.
    pub revision: Revision,
    /// When.
    pub time: Timestamp,
    /// Who: a token's id, or the node that joined or left.
    pub actor: String,
    /// What was done: `apply`, `put`, `delete`, `join`, `leave`, `remove`, `check-in`.
    pub action: String,
    /// The project and env that declared.
    pub owner: Option<Owner>,
    /// The id that the client gave an apply.
    pub apply_id: Option<String>,
    /// The digest of the plan that was applied.
    pub digest: Option<String>,
    /// Where the files came from.
    pub provenance: Option<Provenance>,
    /// What changed among the declarations.
    pub changes: Vec<Change>,
    /// The machines that joined, left or changed.
    pub nodes: Vec<NodeId>,
}

/// Where declarations came from, as far as their sender knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The git commit.
    pub commit: Option<String>,
    /// Its author.
    pub author: Option<String>,
    /// The first line of its message.
    pub message: Option<String>,
    /// Whether the files differed from it.
    pub dirty: bool,
}

/// When a node was last heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When.
    pub time: Timestamp,
    /// The revision that it had then.
    pub revision: Revision,
}

/// A bearer token, as it is kept: what verifies it, never itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// What names it.
    pub id: String,
    /// SHA-256 of its secret, which has 256 random bits and so needs no slow hash.
    pub hash: [u8; 32],
    /// What it may do.
    pub grant: Grant,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Option<Timestamp>,
}

/// Why something was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has committed in the meantime; nothing was written.
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
    /// A file of the database cannot be used.
    #[error("cannot open the database {path}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: rusqlite::Error,
    },
    /// What is kept cannot be read: it was damaged, or written by a newer version.
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

#[cfg(test)]
mod conformance {
    use super::*;

    pub(super) fn batch(revision: u64, puts: Vec<Row>, deletes: Vec<RowKey>) -> Batch {
        let entry = LogEntry {
            revision: Revision(revision),
            time: Timestamp::UNIX_EPOCH,
            actor: "test".into(),
            action: "apply".into(),
            owner: None,
            apply_id: Some(format!("apply-{revision}")),
            digest: None,
            provenance: None,
            changes: Vec::new(),
            nodes: Vec::new(),
        };
        Batch { entry, puts, deletes }
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
        store
            .commit(&[batch(1, vec![first.clone()], vec![]), batch(2, vec![network_row(2, "b")], vec![])])
            .expect("a group commits");
        let two = store.load().expect("it loads");
        assert_eq!((two.world.revision, two.world.snapshot.len()), (Revision(2), 2));
        assert_eq!(two.server_id, empty.server_id, "a server keeps its id");

        let stale = store.commit(&[batch(2, vec![], vec![first.key.clone()])]);
        assert!(matches!(stale, Err(StoreError::Moved(Revision(2)))), "a batch on an old head is refused: {stale:?}");
        let half = store.commit(&[batch(3, vec![], vec![first.key.clone()]), batch(5, vec![], vec![])]);
        assert!(half.is_err(), "a gap in a group is refused");
        assert_eq!(store.load().expect("it loads").world.snapshot.len(), 2, "and nothing of the group is written");

        store.commit(&[batch(3, vec![], vec![first.key])]).expect("a delete commits");
        assert_eq!(store.load().expect("it loads").world.snapshot.len(), 1);

        let revisions = |log: Vec<LogEntry>| log.into_iter().map(|entry| entry.revision.0).collect::<Vec<_>>();
        assert_eq!(revisions(store.log(Revision(1), 10).expect("the log reads")), [2, 3]);
        assert_eq!(revisions(store.log(Revision(0), 2).expect("the log reads")), [1, 2]);
        assert_eq!(store.applied("apply-2").expect("it reads"), Some(Revision(2)));
        assert_eq!(store.applied("apply-9").expect("it reads"), None);

        let token = StoredToken {
            id: "t1".into(),
            hash: [7; 32],
            grant: Grant::admin(),
            created: Timestamp::UNIX_EPOCH,
            expires: None,
        };
        store.put_token(&token).expect("a token is kept");
        assert_eq!(store.token("t1").expect("it reads"), Some(token.clone()));
        assert_eq!(store.tokens().expect("they read"), [token]);
        assert!(store.delete_token("t1").expect("it is forgotten"));
        assert!(!store.delete_token("t1").expect("it is gone"));

        let id: NodeId = ("b".parse().expect("good"), "n".parse().expect("good"));
        let seen = Seen { time: Timestamp::UNIX_EPOCH, revision: Revision(3) };
        store.put_seen(&[(id.clone(), seen)]).expect("it is kept");
        assert_eq!(store.load().expect("it loads").seen, [(id, seen)]);
    }
}
