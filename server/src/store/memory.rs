//! A store in memory, for tests: it keeps the same rows and the same promises, until the process ends, and it
//! fails when a test wants it to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use schema::chain::ChainHash;
use schema::inventory::NodeId;
use schema::snapshot::Revision;
use schema::world::World;

use super::rows::{self, Row, RowKey};
use super::{Batch, LogEntry, Reader, Seen, Store, StoreError, Stored, StoredToken};

/// The id of every server on such a store.
const ID: &str = "memory";

/// A store in memory.
#[derive(Debug, Default)]
pub struct Memory {
    rows: BTreeMap<RowKey, Row>,
    kept: Kept,
    /// The epoch, less 1.
    epoch: u64,
    seen: BTreeMap<NodeId, Seen>,
    served: Option<Timestamp>,
    levers: Levers,
}

/// What readers share with the writer.
#[derive(Clone, Debug, Default)]
struct Kept {
    log: Arc<Mutex<Vec<LogEntry>>>,
    tokens: Arc<Mutex<BTreeMap<String, StoredToken>>>,
}

impl Kept {
    fn log(&self) -> MutexGuard<'_, Vec<LogEntry>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self) -> MutexGuard<'_, BTreeMap<String, StoredToken>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader for Kept {
    fn log(&mut self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        Ok(Self::log(self).iter().filter(|entry| entry.revision > after).take(limit).cloned().collect())
    }

    fn token(&mut self, id: &str) -> Result<Option<StoredToken>, StoreError> {
        Ok(self.tokens().get(id).cloned())
    }
}

/// What a test controls of a store that a server owns: copies control the same store.
#[derive(Clone, Debug, Default)]
pub struct Levers {
    /// Whether the disk is full: then every write fails and leaves nothing.
    pub full: Arc<AtomicBool>,
    /// How often anything was written.
    pub writes: Arc<AtomicU64>,
    /// Whether the disk is stuck: then a commit waits until it no longer is.
    pub stuck: Arc<AtomicBool>,
}

impl Memory {
    /// The controls.
    pub fn levers(&self) -> Levers {
        self.levers.clone()
    }

    /// Counts a write, if the disk has room for it.
    fn write(&self) -> Result<(), StoreError> {
        if self.levers.full.load(Ordering::SeqCst) {
            let source =
                rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL), None);
            return Err(StoreError::Database { attempt: "cannot write to the database", source });
        }
        self.levers.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn head(&self) -> Revision {
        self.kept.log().last().map_or(Revision(0), |entry| entry.revision)
    }

    fn hash(&self) -> ChainHash {
        self.kept.log().last().and_then(|entry| entry.hash).unwrap_or_else(|| ChainHash::start(ID))
    }
}

impl Store for Memory {
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(self.kept.clone()))
    }

    fn load(&mut self) -> Result<Stored, StoreError> {
        let mut world = World { epoch: self.epoch + 1, revision: self.head(), ..World::default() };
        self.rows.values().try_for_each(|row| rows::restore(row, &mut world))?;
        let seen = self.seen.iter().map(|(id, seen)| (id.clone(), *seen)).collect();
        Ok(Stored { server_id: ID.into(), world, hash: self.hash(), seen, served: self.served })
    }

    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        let mut hash = self.hash();
        for (place, batch) in batches.iter().enumerate() {
            if batch.entry.revision.0 != self.head().0 + place as u64 + 1 || batch.before != hash {
                return Err(StoreError::Moved(self.head()));
            }
            hash = batch.hash;
        }
        while self.levers.stuck.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.write()?;
        for batch in batches {
            batch.deletes.iter().for_each(|key| drop(self.rows.remove(key)));
            self.rows.extend(batch.puts.iter().map(|row| (row.key.clone(), row.clone())));
            self.kept.log().push(batch.entry.clone());
            self.epoch = batch.epoch - 1;
        }
        Ok(())
    }

    fn log(&mut self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        Reader::log(&mut self.kept, after, limit)
    }

    fn applied(&mut self, apply_id: &str) -> Result<Option<Revision>, StoreError> {
        let log = self.kept.log();
        let entry = log.iter().find(|entry| entry.apply_id.as_deref() == Some(apply_id));
        Ok(entry.map(|entry| entry.revision))
    }

    fn put_seen(
        &mut self,
        seen: &[(NodeId, Seen)],
        gone: &[NodeId],
        until: Timestamp,
    ) -> Result<(), StoreError> {
        self.write()?;
        self.seen.extend(seen.iter().cloned());
        self.seen.retain(|id, _| !gone.contains(id));
        self.served = Some(until);
        Ok(())
    }

    fn put_token(&mut self, token: &StoredToken) -> Result<(), StoreError> {
        self.write()?;
        self.kept.tokens().insert(token.id.clone(), token.clone());
        Ok(())
    }

    fn token(&mut self, id: &str) -> Result<Option<StoredToken>, StoreError> {
        Ok(self.kept.tokens().get(id).cloned())
    }

    fn tokens(&mut self) -> Result<Vec<StoredToken>, StoreError> {
        Ok(self.kept.tokens().values().cloned().collect())
    }

    fn delete_token(&mut self, id: &str) -> Result<bool, StoreError> {
        self.write()?;
        Ok(self.kept.tokens().remove(id).is_some())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_keeps_the_contract() {
        super::super::conformance::holds(&mut super::Memory::default());
    }
}
