//! The registrations on the disk: a database of this host's own, next to the one that replicas share.
//!
//! What is lost of it is restored as agents register again; it is therefore not synced with each change.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use schema::scalars::Identity;

use crate::core::registry::{LIFETIME, RegisteredHost};
use crate::identity::{DataDir, IdentityError};

const FILE: &str = "comms.db";

const TABLES: &str = "
    create table if not exists registration (
        identity blob primary key, public_key blob not null, address text not null, key text, ends integer
    ) without rowid;
    create table if not exists place (interface text not null);
";

/// Why the ledger is not usable.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database refused.
    #[error(
        "cannot use comms.db, which holds the registrations of agents ({0}); if it is damaged, remove it: agents register again"
    )]
    Database(#[from] rusqlite::Error),
    /// The data directory refused.
    #[error(transparent)]
    Directory(#[from] IdentityError),
}

/// The registrations on the disk.
pub(super) struct Ledger {
    connection: Connection,
}

impl Ledger {
    /// Opens the ledger of a data directory, and creates it if there is none.
    pub(super) fn open(directory: &DataDir) -> Result<Self, LedgerError> {
        directory.reserve(FILE)?;
        let connection = Connection::open(directory.file(FILE))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.execute_batch(TABLES)?;
        Ok(Self { connection })
    }

    /// Opens the ledger of a data directory; absent: there is none.
    pub(super) fn existing(directory: &DataDir) -> Result<Option<Self>, LedgerError> {
        if directory.file(FILE).exists() { Self::open(directory).map(Some) } else { Ok(None) }
    }

    /// The interface that the tunnels had last.
    pub(super) fn interface(&self) -> Result<Option<String>, LedgerError> {
        Ok(self.connection.query_row("select interface from place", [], |row| row.get(0)).optional()?)
    }

    /// Stores the interface.
    pub(super) fn keep_interface(&mut self, interface: &str) -> Result<(), LedgerError> {
        let transaction = self.connection.transaction()?;
        transaction.execute("delete from place", [])?;
        transaction.execute("insert into place values (?1)", [interface])?;
        Ok(transaction.commit()?)
    }

    /// Every registration, with its expiry relative to `now`; one that cannot be read is left out.
    pub(super) fn all(&self, now: Instant) -> Result<Vec<(Identity, RegisteredHost)>, LedgerError> {
        let mut query =
            self.connection.prepare("select identity, public_key, address, key, ends from registration")?;
        let rows = query.query_map([], |row| {
            let (address, key): (String, Option<String>) = (row.get(2)?, row.get(3)?);
            Ok((
                row.get::<_, [u8; 32]>(0)?,
                row.get::<_, [u8; 32]>(1)?,
                address,
                key,
                row.get::<_, Option<i64>>(4)?,
            ))
        })?;
        let mut all = Vec::new();
        for row in rows {
            let (identity, public_key, address, key, ends) = row?;
            let (Ok(address), Ok(public_key)) = (address.parse::<Ipv4Addr>(), public_key.try_into()) else {
                continue;
            };
            let key = key.and_then(|key| key.parse().ok());
            let ends = ends.map(|at| now + left(at, Timestamp::now()));
            all.push((Identity(identity), RegisteredHost { public_key, address, key, ends }));
        }
        Ok(all)
    }

    /// Stores these registrations and no others.
    pub(super) fn replace<'a>(
        &mut self,
        all: impl Iterator<Item = (&'a Identity, &'a RegisteredHost)>,
        now: Instant,
    ) -> Result<(), LedgerError> {
        let transaction = self.connection.transaction()?;
        transaction.execute("delete from registration", [])?;
        for (identity, registration) in all {
            put(&transaction, identity, registration, now)?;
        }
        Ok(transaction.commit()?)
    }

    /// Stores a registration.
    pub(super) fn put(
        &mut self,
        identity: &Identity,
        registration: &RegisteredHost,
        now: Instant,
    ) -> Result<(), LedgerError> {
        Ok(put(&self.connection, identity, registration, now)?)
    }

    /// Deletes registrations.
    pub(super) fn delete(&mut self, identities: &[Identity]) -> Result<(), LedgerError> {
        if identities.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        for identity in identities {
            transaction
                .prepare_cached("delete from registration where identity = ?1")?
                .execute([identity.0])?;
        }
        Ok(transaction.commit()?)
    }
}

fn put(
    connection: &Connection,
    identity: &Identity,
    registration: &RegisteredHost,
    now: Instant,
) -> rusqlite::Result<()> {
    let RegisteredHost { public_key, address, key, ends } = registration;
    let ends = ends.map(|end| {
        let left = SignedDuration::try_from(end.saturating_duration_since(now)).unwrap_or_default();
        (Timestamp::now() + left).as_second()
    });
    let key = key.as_ref().map(ToString::to_string);
    let mut put =
        connection.prepare_cached("insert or replace into registration values (?1, ?2, ?3, ?4, ?5)")?;
    put.execute(params![identity.0, public_key.0, address.to_string(), key, ends]).map(drop)
}

/// The time until a moment, at most the lifetime of a registration, in case the clock was set.
fn left(at: i64, now: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(at.saturating_sub(now.as_second())).unwrap_or(0)).min(LIFETIME)
}

#[cfg(test)]
mod tests {
    use schema::scalars::WireGuardKey;

    use super::*;

    fn registration(last: u8, ends: Option<Instant>) -> RegisteredHost {
        let key = ends.map(|_| "corp/access-key/k".parse().expect("an id"));
        RegisteredHost {
            public_key: WireGuardKey([last; 32]),
            address: Ipv4Addr::new(10, 101, 0, last),
            key,
            ends,
        }
    }

    #[test]
    fn what_is_kept_comes_back_with_the_time_that_it_has_left() {
        let folder = tempfile::tempdir().expect("a directory");
        let directory = DataDir::open(&folder.path().join("data")).expect("it opens");
        let mut ledger = Ledger::open(&directory).expect("it opens");
        let now = Instant::now();
        let waiting = registration(2, Some(now + Duration::from_secs(300)));
        ledger.put(&Identity([102; 32]), &waiting, now).expect("kept");
        ledger.put(&Identity([103; 32]), &registration(3, None), now).expect("kept");
        ledger.put(&Identity([104; 32]), &registration(4, None), now).expect("kept");
        ledger.delete(&[Identity([104; 32])]).expect("forgotten");
        ledger.keep_interface("nm-comms").expect("kept");
        ledger.keep_interface("nm-comms2").expect("kept");
        drop(ledger);
        let ledger = Ledger::open(&directory).expect("it opens");
        assert_eq!(ledger.interface().expect("read").as_deref(), Some("nm-comms2"));
        let all = ledger.all(now).expect("read");
        let [(first, back), (second, joined)] = &*all else { panic!("two were kept: {all:?}") };
        assert_eq!((first.0[0], second.0[0], joined), (102, 103, &registration(3, None)));
        let left = back.ends.expect("it has an end").saturating_duration_since(now).as_secs();
        assert!((298..=301).contains(&left) && back.key == waiting.key, "{left}");
    }

    #[test]
    fn a_clock_that_was_set_neither_ends_time_nor_stretches_it() {
        let now = Timestamp::from_second(1_000).expect("a time");
        assert_eq!(left(1_300, now), Duration::from_secs(300));
        assert_eq!(left(900, now), Duration::ZERO);
        assert_eq!(left(999_999, now), LIFETIME);
    }
}
