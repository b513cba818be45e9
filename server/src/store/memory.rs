//! A store in memory, for tests: it keeps the same rows and the same promises, until the process ends.

use std::collections::BTreeMap;

use schema::inventory::NodeId;
use schema::snapshot::Revision;
use schema::world::World;

use super::rows::{self, Row, RowKey};
use super::{Batch, LogEntry, Seen, Store, StoreError, Stored, StoredToken};

/// A store in memory.
#[derive(Debug, Default)]
pub struct Memory {
    rows: BTreeMap<RowKey, Row>,
    log: Vec<LogEntry>,
    seen: BTreeMap<NodeId, Seen>,
    tokens: BTreeMap<String, StoredToken>,
}

impl Memory {
    fn head(&self) -> Revision {
        self.log.last().map_or(Revision(0), |entry| entry.revision)
    }
}

impl Store for Memory {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let mut world = World { epoch: 1, revision: self.head(), ..World::default() };
        self.rows.values().try_for_each(|row| rows::restore(row, &mut world))?;
        let seen = self.seen.iter().map(|(id, seen)| (id.clone(), *seen)).collect();
        Ok(Stored { server_id: "memory".into(), world, seen })
    }

    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        for (place, batch) in batches.iter().enumerate() {
            if batch.entry.revision.0 != self.head().0 + place as u64 + 1 {
                return Err(StoreError::Moved(self.head()));
            }
        }
        for batch in batches {
            batch.deletes.iter().for_each(|key| drop(self.rows.remove(key)));
            self.rows.extend(batch.puts.iter().map(|row| (row.key.clone(), row.clone())));
            self.log.push(batch.entry.clone());
        }
        Ok(())
    }

    fn log(&mut self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        Ok(self.log.iter().filter(|entry| entry.revision > after).take(limit).cloned().collect())
    }

    fn applied(&mut self, apply_id: &str) -> Result<Option<Revision>, StoreError> {
        let entry = self.log.iter().find(|entry| entry.apply_id.as_deref() == Some(apply_id));
        Ok(entry.map(|entry| entry.revision))
    }

    fn put_seen(&mut self, seen: &[(NodeId, Seen)]) -> Result<(), StoreError> {
        self.seen.extend(seen.iter().cloned());
        Ok(())
    }

    fn put_token(&mut self, token: &StoredToken) -> Result<(), StoreError> {
        self.tokens.insert(token.id.clone(), token.clone());
        Ok(())
    }

    fn token(&mut self, id: &str) -> Result<Option<StoredToken>, StoreError> {
        Ok(self.tokens.get(id).cloned())
    }

    fn tokens(&mut self) -> Result<Vec<StoredToken>, StoreError> {
        Ok(self.tokens.values().cloned().collect())
    }

    fn delete_token(&mut self, id: &str) -> Result<bool, StoreError> {
        Ok(self.tokens.remove(id).is_some())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_keeps_the_contract() {
        super::super::conformance::holds(&mut super::Memory::default());
    }
}
