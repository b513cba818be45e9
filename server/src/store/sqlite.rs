//! SQLite, inside the process: the default store.
//!
//! WAL with full sync: a commit that was answered is on the disk. Batches that wait together are one
//! transaction. A database is the server's alone while it runs; only tokens may be written by another
//! process. Its [files](super::files) are checked before and after each write.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use schema::chain::ChainHash;
use schema::inventory::NodeId;
use schema::snapshot::Revision;
use schema::world::World;

use super::files::DatabaseFiles;
use super::rows::{self, Row, RowKey};
use super::{Batch, LogEntry, Reader, Seen, Store, StoreError, Stored, StoredToken};

/// The steps from an empty database to this version's; never edited, only appended to.
const MIGRATIONS: &[&str] = &[
    "
    create table server (id text not null, epoch integer not null, head integer not null) strict;
    create table rows (
        network text not null, kind text not null, name text not null,
        revision integer not null, format integer not null, body text not null,
        primary key (network, kind, name)
    ) strict, without rowid;
    create table log (
        revision integer primary key, time text not null, actor text not null, action text not null,
        apply_id text unique, entry text not null
    ) strict;
    create table seen (
        network text not null, node text not null, time text not null, revision integer not null,
        primary key (network, node)
    ) strict, without rowid;
    create table tokens (id text primary key, token text not null) strict, without rowid;
",
    "alter table server add column served text;",
    // The "rest" of addresses became their "quarantine".
    r#"
    update rows set kind = '@quarantine' where kind = '@rest';
    update rows set body = json_remove(
        json_set(body, '$.body."address-quarantine"', body ->> '$.body."address-rest"'), '$.body."address-rest"'
    ) where kind = 'network' and body ->> '$.body."address-rest"' is not null;
    "#,
    // A node's endpoints are stored by source; its next check-in reports them anew.
    r#"
    update rows set body = json_remove(
        json_set(body, '$.endpoints', json_object('configured', body ->> '$.endpoint', 'seen', null, 'local', null)),
        '$.endpoint'
    ) where kind = '@joined';
    "#,
    // The log became a chain of hashes; `chain_log` computes those of the entries that are there. A node's
    // revision counts in its epoch only; the next check-in of each reports it anew.
    "
    alter table log add column hash blob;
    alter table server add column hash blob;
    alter table seen add column epoch integer not null default 0;
    ",
];
/// How many of the migrations lead to a log with hashes.
const CHAINED: usize = 5;

/// A SQLite database.
#[derive(Debug)]
pub struct Sqlite {
    connection: Connection,
    files: Arc<DatabaseFiles>,
}

impl Sqlite {
    /// Opens the database, and makes it first if there is none, or an empty file.
    ///
    /// # Errors
    ///
    /// Among others [`StoreError::NoServer`] for a database that is not empty and not a server's.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let name = || path.display().to_string();
        let failed = |source| StoreError::Open { path: name(), source };
        let empty = fs::metadata(path).map_or(true, |found| found.len() == 0);
        let mut connection = Connection::open(path).map_err(failed)?;
        let found: usize =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        if found > MIGRATIONS.len() {
            return Err(StoreError::Newer { path: name(), found, known: MIGRATIONS.len() });
        }
        if found == 0 && !empty {
            return Err(StoreError::NoServer { path: name() });
        }
        configure(&connection).map_err(failed)?;
        migrate(&mut connection, empty).map_err(failed)?;
        let known: usize =
            connection.query_row("select count(*) from server", [], |row| row.get(0)).map_err(failed)?;
        if known == 0 {
            return Err(StoreError::NoServer { path: name() });
        }
        let files = DatabaseFiles::of(path).map_err(|source| StoreError::Files { path: name(), source })?;
        Ok(Self { connection, files: Arc::new(files) })
    }

    /// The connection, if the files are still those of the database: with a short index SQLite would not even
    /// survive a read.
    fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        self.files.check()?;
        Ok(&mut self.connection)
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        // To close a database is to move its log into it and to delete the log: those may be somebody else's
        // files by now.
        if self.files.check().is_err()
            && let Ok(nothing) = Connection::open_in_memory()
        {
            std::mem::forget(std::mem::replace(&mut self.connection, nothing));
        }
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", "on")
}

fn migrate(connection: &mut Connection, empty: bool) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let done: usize = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (place, step) in MIGRATIONS.iter().enumerate().skip(done) {
        transaction.execute_batch(step)?;
        if place + 1 == CHAINED {
            chain_log(&transaction)?;
        }
        transaction.pragma_update(None, "user_version", place + 1)?;
    }
    if empty {
        let mut id = [0u8; 12];
        getrandom::fill(&mut id)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.to_string().into()))?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let epoch = Timestamp::now().as_second().max(1);
        let start = ChainHash::start(&id);
        transaction.execute(
            "insert into server (id, epoch, head, hash) values (?1, ?2, 0, ?3)",
            params![id, epoch, start.bytes()],
        )?;
    }
    transaction.commit()
}

/// Computes the hashes of a log that has none.
fn chain_log(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let id: Option<String> =
        transaction.query_row("select id from server", [], |row| row.get(0)).optional()?;
    let Some(id) = id else { return Ok(()) };
    let mut hash = ChainHash::start(&id);
    let mut read = transaction.prepare("select revision, entry from log order by revision")?;
    let mut entries = read.query([])?;
    while let Some(row) = entries.next()? {
        hash = hash.next(row.get_ref(1)?.as_str()?);
        transaction
            .prepare_cached("update log set hash = ?2 where revision = ?1")?
            .execute(params![row.get::<_, u64>(0)?, hash.bytes()])?;
    }
    transaction.execute("update server set hash = ?1", [hash.bytes()]).map(drop)
}

/// "The database refused ATTEMPT".
fn database(attempt: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Database { attempt, source }
}

/// A connection of its own, which may only read: in WAL mode it neither waits for the writer nor makes it
/// wait.
struct SqliteReader(Sqlite);

impl Reader for SqliteReader {
    fn log(&mut self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        self.0.log(after, limit)
    }

    fn token(&mut self, id: &str) -> Result<Option<StoredToken>, StoreError> {
        self.0.token(id)
    }
}

impl Store for Sqlite {
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        let path = self.connection.path().unwrap_or_default();
        let failed = |source| StoreError::Open { path: path.into(), source };
        // It reads only, but the last to close has to bring the write-ahead log into the database.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.pragma_update(None, "query_only", "on").map_err(failed)?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(failed)?;
        Ok(Box::new(SqliteReader(Self { connection, files: Arc::clone(&self.files) })))
    }

    fn load(&mut self) -> Result<Stored, StoreError> {
        let failed = database("cannot read the database");
        let transaction = self.connection()?.transaction().map_err(&failed)?;
        let (server_id, epoch, head, served, hash) = transaction
            .query_row("select id, epoch, head, served, hash from server", [], |row| {
                let served: Option<String> = row.get(3)?;
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    served,
                    ChainHash::from(row.get::<_, [u8; 32]>(4)?),
                ))
            })
            .map_err(&failed)?;
        let mut world = World { epoch, revision: Revision(head), ..World::default() };
        for row in all_rows(&transaction).map_err(&failed)? {
            rows::restore(&row, &mut world)?;
        }
        let seen = all_seen(&transaction).map_err(&failed)?;
        let served = served.and_then(|time| time.parse().ok());
        Ok(Stored { server_id, world, hash, seen, served })
    }

    fn files(&self) -> Option<Arc<DatabaseFiles>> {
        Some(Arc::clone(&self.files))
    }

    fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        let failed = database("cannot write to the database");
        let transaction = self.connection()?.transaction().map_err(&failed)?;
        for batch in batches {
            let revision = batch.entry.revision;
            let moved = transaction
                .prepare_cached(
                    "update server set head = ?1, hash = ?2, epoch = ?3 where head = ?1 - 1 and hash = ?4",
                )
                .and_then(|mut it| {
                    it.execute(params![revision.0, batch.hash.bytes(), batch.epoch, batch.before.bytes()])
                })
                .map_err(&failed)?;
            if moved == 0 {
                let head = transaction
                    .query_row("select head from server", [], |row| row.get(0))
                    .map_err(&failed)?;
                drop(transaction);
                return Err(StoreError::Moved(Revision(head)));
            }
            write(&transaction, batch).map_err(&failed)?;
        }
        transaction.commit().map_err(&failed)?;
        self.files.check().map_err(StoreError::after_commit)
    }

    fn log(&mut self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        let failed = database("cannot read the revision log");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut statement = self
            .connection()?
            .prepare_cached(
                "select revision, entry, hash from log where revision > ?1 order by revision limit ?2",
            )
            .map_err(&failed)?;
        let entries = statement
            .query_map(params![after.0, limit], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get::<_, [u8; 32]>(2)?))
            })
            .map_err(&failed)?;
        let entries: Vec<(u64, String, [u8; 32])> = entries.collect::<Result<_, _>>().map_err(&failed)?;
        let mut before: Option<ChainHash> = None;
        let entry = |(revision, entry, hash): (u64, String, [u8; 32])| {
            let hash = ChainHash::from(hash);
            if before.replace(hash).is_some_and(|before| before.next(&entry) != hash) {
                let why = "its hash does not follow from its text and the entry before it, so one of them was changed";
                return Err(StoreError::Unreadable {
                    what: "revision",
                    key: revision.to_string(),
                    why: why.into(),
                });
            }
            Ok(LogEntry { hash: Some(hash), ..json("revision", &revision.to_string(), &entry)? })
        };
        entries.into_iter().map(entry).collect()
    }

    fn applied(&mut self, apply_id: &str) -> Result<Option<Revision>, StoreError> {
        self.connection()?
            .query_row("select revision from log where apply_id = ?1", [apply_id], |row| {
                row.get(0).map(Revision)
            })
            .optional()
            .map_err(database("cannot read the revision log"))
    }

    fn put_seen(
        &mut self,
        seen: &[(NodeId, Seen)],
        gone: &[NodeId],
        until: Timestamp,
    ) -> Result<(), StoreError> {
        const PUT: &str =
            "insert or replace into seen (network, node, time, revision, epoch) values (?1, ?2, ?3, ?4, ?5)";
        let failed = database("cannot write to the database");
        let transaction = self.connection()?.transaction().map_err(&failed)?;
        for (NodeId { network, name }, Seen { time, epoch, revision }) in seen {
            let (network, name) = (network.as_str(), name.as_str());
            transaction
                .prepare_cached(PUT)
                .and_then(|mut it| it.execute(params![network, name, time.to_string(), revision.0, epoch]))
                .map_err(&failed)?;
        }
        for NodeId { network, name } in gone {
            transaction
                .prepare_cached("delete from seen where network = ?1 and node = ?2")
                .and_then(|mut it| it.execute(params![network.as_str(), name.as_str()]))
                .map_err(&failed)?;
        }
        transaction.execute("update server set served = ?1", [until.to_string()]).map_err(&failed)?;
        transaction.commit().map_err(&failed)
    }

    fn put_token(&mut self, token: &StoredToken) -> Result<(), StoreError> {
        let text = serde_json::to_string(token).expect("a token can be written as JSON");
        self.connection()?
            .execute("insert or replace into tokens (id, token) values (?1, ?2)", params![token.id, text])
            .map(drop)
            .map_err(database("cannot write to the database"))
    }

    fn token(&mut self, id: &str) -> Result<Option<StoredToken>, StoreError> {
        let text: Option<String> = self
            .connection()?
            .prepare_cached("select token from tokens where id = ?1")
            .and_then(|mut statement| statement.query_row([id], |row| row.get(0)).optional())
            .map_err(database("cannot read the tokens"))?;
        text.map(|text| json("token", id, &text)).transpose()
    }

    fn tokens(&mut self) -> Result<Vec<StoredToken>, StoreError> {
        let failed = database("cannot read the tokens");
        let mut statement =
            self.connection()?.prepare("select id, token from tokens order by id").map_err(&failed)?;
        let all = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(&failed)?;
        let all: Vec<(String, String)> = all.collect::<Result<_, _>>().map_err(&failed)?;
        all.into_iter().map(|(id, text)| json("token", &id, &text)).collect()
    }

    fn delete_token(&mut self, id: &str) -> Result<bool, StoreError> {
        let deleted = self.connection()?.execute("delete from tokens where id = ?1", [id]);
        deleted.map(|count| count > 0).map_err(database("cannot write to the database"))
    }
}

fn write(transaction: &Transaction<'_>, batch: &Batch) -> rusqlite::Result<()> {
    let mut delete =
        transaction.prepare_cached("delete from rows where network = ?1 and kind = ?2 and name = ?3")?;
    for RowKey { network, kind, name } in &batch.deletes {
        delete.execute(params![network, kind, name])?;
    }
    let mut put = transaction.prepare_cached(
        "insert or replace into rows (network, kind, name, revision, format, body) values (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for Row { key: RowKey { network, kind, name }, revision, format, body } in &batch.puts {
        put.execute(params![network, kind, name, revision.0, format, body])?;
    }
    let Batch { entry, text, hash, .. } = batch;
    let LogEntry { revision, time, actor, action, apply_id, .. } = entry;
    transaction
        .prepare_cached(
            "insert into log (revision, time, actor, action, apply_id, entry, hash) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![revision.0, time.to_string(), actor, action, apply_id, text, hash.bytes()])
        .map(drop)
}

fn all_rows(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<Row>> {
    let mut statement =
        transaction.prepare("select network, kind, name, revision, format, body from rows")?;
    let rows = statement.query_map([], |row| {
        let key = RowKey { network: row.get(0)?, kind: row.get(1)?, name: row.get(2)? };
        Ok(Row { key, revision: Revision(row.get(3)?), format: row.get(4)?, body: row.get(5)? })
    })?;
    rows.collect()
}

fn all_seen(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<(NodeId, Seen)>> {
    let mut statement = transaction.prepare("select network, node, time, revision, epoch from seen")?;
    let rows = statement.query_map([], |row| {
        let texts: (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok((texts, Revision(row.get(3)?), row.get(4)?))
    })?;
    // The time of a node's last call is not worth a refusal to start: what cannot be read counts as never.
    let read = |((network, name, time), revision, epoch): ((String, String, String), _, _)| {
        let id = NodeId { network: network.parse().ok()?, name: name.parse().ok()? };
        Some((id, Seen { time: time.parse().ok()?, epoch, revision }))
    };
    Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().filter_map(read).collect())
}

fn json<T: serde::de::DeserializeOwned>(what: &'static str, key: &str, text: &str) -> Result<T, StoreError> {
    let unreadable =
        |error: serde_json::Error| StoreError::Unreadable { what, key: key.into(), why: error.to_string() };
    serde_json::from_str(text).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use schema::scalars::Seconds;

    use super::super::conformance;
    use super::*;

    #[test]
    fn sqlite_keeps_the_contract() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("nmserver.db");
        conformance::holds(&mut Sqlite::open(&path).expect("it opens"));
        let again = Sqlite::open(&path).expect("it opens again").load().expect("it loads");
        assert_eq!((again.world.revision, again.world.snapshot.len()), (Revision(5), 1));
    }

    #[test]
    fn a_database_of_a_newer_version_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("nmserver.db");
        drop(Sqlite::open(&path).expect("it opens"));
        Connection::open(&path).expect("it opens").pragma_update(None, "user_version", 99).expect("raised");
        let error = Sqlite::open(&path).expect_err("it is newer").to_string();
        assert!(error.contains("format 99") && error.contains("update nmserver"), "{error}");
    }

    #[test]
    fn a_database_of_the_first_version_is_brought_up_to_date() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("nmserver.db");
        let old = Connection::open(&path).expect("it opens");
        old.execute_batch(MIGRATIONS[0]).expect("made");
        old.execute("insert into server (id, epoch, head) values ('old', 5, 2)", []).expect("written");
        let entries = [1, 2].map(|revision| {
            let entry = conformance::entry(revision);
            (revision, serde_json::to_string(&entry).expect("JSON"))
        });
        for (revision, text) in &entries {
            let insert = "insert into log (revision, time, actor, action, entry) values (?1, '', '', '', ?2)";
            old.execute(insert, params![revision, text]).expect("written");
        }
        let rows = r#"insert into rows (network, kind, name, revision, format, body) values
            ('corp', 'network', 'corp', 1, 1, '{"owner":null,"body":{"ipv4":"10.0.0.0/24","address-rest":"1h"}}'),
            ('lab', 'network', 'lab', 1, 1, '{"owner":null,"body":{"ipv4":"10.1.0.0/24"}}'),
            ('corp', '@rest', '10.0.0.7', 1, 1, '{"since":"2026-01-01T00:00:00Z","node":"a"}'),
            ('corp', '@joined', 'b', 1, 1, ?1)"#;
        let joined = serde_json::json!({
            "public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            "identity": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            "addresses": ["10.0.0.1"], "endpoint": "192.0.2.1", "listen_port": 51_821, "tags": [], "key": null,
            "claimed": false, "joined": "2026-01-01T00:00:00Z", "os": "linux",
        });
        old.execute(rows, [joined.to_string()]).expect("written");
        old.pragma_update(None, "user_version", 1).expect("set");
        drop(old);
        let mut store = Sqlite::open(&path).expect("it opens");
        let stored = store.load().expect("it loads");
        let first = ChainHash::start("old").next(&entries[0].1);
        let hashes: Vec<_> =
            store.log(Revision(0), 9).expect("it reads").iter().map(|entry| entry.hash).collect();
        assert_eq!(hashes, [Some(first), Some(first.next(&entries[1].1))], "the log has become a chain");
        assert_eq!(Some(stored.hash), hashes[1]);
        let next = conformance::batch(&mut store, 3, vec![], vec![]);
        store.commit(&[next]).expect("it goes on from there");
        assert_eq!((&*stored.server_id, stored.world.epoch, stored.served), ("old", 5, None));
        let quarantine = |network: &str| {
            let network =
                stored.world.snapshot.network(&network.parse().expect("good")).expect("it is there");
            network.address_quarantine
        };
        assert_eq!((quarantine("corp"), quarantine("lab")), (Seconds::hours(1), Seconds::hours(24)));
        assert_eq!(stored.world.inventory.quarantined().count(), 1);
        let (_, joined) = stored.world.inventory.nodes().next().expect("it is there");
        assert_eq!(joined.endpoints.configured, "192.0.2.1".parse().ok());
    }

    #[test]
    fn a_log_entry_that_was_changed_is_noticed_when_it_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Sqlite::open(&directory.path().join("nmserver.db")).expect("it opens");
        for revision in 1..=3 {
            let batch = conformance::batch(&mut store, revision, vec![], vec![]);
            store.commit(&[batch]).expect("it is stored");
        }
        assert_eq!(store.log(Revision(0), 9).expect("it reads").len(), 3);
        let change = "update log set entry = replace(entry, '\"test\"', '\"other\"') where revision = 2";
        assert_eq!(store.connection.execute(change, []).expect("written"), 1);
        let error = store.log(Revision(0), 9).expect_err("it was changed").to_string();
        assert!(error.contains("revision 2") && error.contains("was changed"), "{error}");
    }

    #[test]
    fn a_database_that_holds_no_server_is_not_made_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("nmserver.db");
        Connection::open(&path).expect("it opens").execute_batch("create table other (x)").expect("made");
        assert!(matches!(Sqlite::open(&path), Err(StoreError::NoServer { .. })));
        fs::remove_file(&path).expect("removed");
        let store = Sqlite::open(&path).expect("it opens");
        store.connection.execute("delete from server", []).expect("emptied");
        drop(store);
        assert!(matches!(Sqlite::open(&path), Err(StoreError::NoServer { .. })));
    }

    #[test]
    fn a_full_disk_and_a_database_that_may_not_be_written_change_nothing_and_are_distinguished() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Sqlite::open(&directory.path().join("nmserver.db")).expect("it opens");
        let row = |name: &str, size: usize| {
            let key = RowKey { network: name.into(), kind: "network".into(), name: name.into() };
            let body = format!(r#"{{"owner":null,"body":{{"ipv4":"10.0.0.0/24"}}}}{}"#, " ".repeat(size));
            Row { key, revision: Revision(1), format: rows::FORMAT, body }
        };
        let commit = |store: &mut Sqlite, size| {
            let batches = [conformance::batch(store, 1, vec![row("a", 1), row("b", size)], vec![])];
            store.commit(&batches).map_err(|error| error.why())
        };
        let pages: u32 =
            store.connection.pragma_query_value(None, "page_count", |row| row.get(0)).expect("a number");
        let limit = |store: &Sqlite, pages: u32| {
            store.connection.execute_batch(&format!("pragma max_page_count = {pages}")).expect("set");
        };
        limit(&store, pages + 1);
        assert_eq!(commit(&mut store, 100_000), Err("its disk is full: free some space"));
        assert!(store.load().expect("it loads").world.snapshot.is_empty(), "half a batch is not written");
        limit(&store, 1_000_000);
        store.connection.execute_batch("pragma query_only = on").expect("set");
        assert_eq!(commit(&mut store, 1), Err("the database is read-only: make it writable for nmserver"));
        store.connection.execute_batch("pragma query_only = off").expect("set");
        assert_eq!(commit(&mut store, 100_000), Ok(()), "it goes on");
        assert_eq!(store.load().expect("it loads").world.revision, Revision(1));
    }

    #[test]
    fn a_file_that_is_not_a_database_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("nmserver.db");
        fs::write(&path, "this is a text, not a database, long enough for a header".repeat(100))
            .expect("written");
        let error = Sqlite::open(&path).expect_err("it is not a database");
        assert!(error.to_string().contains("nmserver.db"), "{error}");
    }
}
