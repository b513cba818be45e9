//! The mark beside the database: the newest state that this server has ever served.
//!
//! A database can be put back from a copy, and then gives out revisions again that agents know as other
//! states. The mark is not part of the database, so it stays what it was: a server whose log does not lead to
//! its mark begins another epoch ([`check`]). It is one line, `EPOCH REVISION HASH`, of constant length,
//! written in place and not synced with each commit: after a loss of power it may be behind, which is
//! harmless, and it costs a commit nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use jiff::Timestamp;
use netclient::files;
use schema::chain::ChainHash;
use schema::snapshot::Revision;

use crate::identity::{DataDir, IdentityError};
use crate::store::{Store, StoreError};

/// The name of the file.
const FILE: &str = "mark";

/// A state of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The epoch.
    pub epoch: u64,
    /// The revision.
    pub revision: Revision,
    /// The hash of its log entry.
    pub hash: ChainHash,
}

/// The mark on the disk.
#[derive(Debug)]
pub struct Mark {
    file: File,
    /// Whether the last write failed: that is logged once.
    failing: bool,
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is no file.
    Nothing,
    /// It cannot be understood.
    Damaged,
    /// This state was served.
    Served(Served),
}

/// Reads the mark of a data directory.
pub fn read(directory: &DataDir) -> Result<Found, IdentityError> {
    let Some(text) = directory.read(FILE)? else { return Ok(Found::Nothing) };
    Ok(std::str::from_utf8(text.expose()).ok().and_then(parse).map_or(Found::Damaged, Found::Served))
}

impl Mark {
    /// Writes a state, and opens the file for those to come.
    pub fn begin(directory: &DataDir, served: &Served) -> Result<Self, IdentityError> {
        directory.write(FILE, line(served).as_bytes())?;
        let path = directory.file(FILE);
        let file = files::in_place().open(&path);
        let file = file.map_err(|source| IdentityError::File { attempt: "write", path, source })?;
        Ok(Self { file, failing: false })
    }

    /// Records that a state is about to be served.
    pub fn record(&mut self, served: &Served) {
        let written: io::Result<()> = self.file.write_all_at(line(served).as_bytes(), 0);
        if let Err(error) = &written
            && !self.failing
        {
            tracing::warn!(
                %error,
                "cannot write the file \"mark\" in DATA_DIR; a database that is put back from a copy may not be noticed"
            );
        }
        self.failing = written.is_err();
    }
}

fn line(Served { epoch, revision, hash }: &Served) -> String {
    format!("{epoch:020} {:020} {hash}\n", revision.0)
}

fn parse(text: &str) -> Option<Served> {
    let mut words = text.strip_suffix('\n')?.split(' ');
    let mut word = || words.next();
    let served = Served {
        epoch: word()?.parse().ok()?,
        revision: Revision(word()?.parse().ok()?),
        hash: word()?.parse().ok()?,
    };
    (line(&served) == text).then_some(served)
}

/// Why the next epoch has to begin, and its number; nothing if the log leads on from what was served. `head`
/// is the state of the database.
pub fn check(
    found: Found,
    head: &Served,
    store: &mut dyn Store,
) -> Result<Option<(u64, String)>, StoreError> {
    let again = "so every node is sent its whole View, and hosts that joined since then join again";
    let (epoch, why) = match found {
        // A database without a revision has served nothing.
        Found::Nothing | Found::Damaged if head.revision == Revision(0) => return Ok(None),
        Found::Nothing => (0, format!("it is not known whether the database is the newest, {again}")),
        Found::Damaged => (
            0,
            format!("the file \"mark\" is damaged and cannot show that the database is the newest, {again}"),
        ),
        Found::Served(served) if leads_to(&served, head, store)? => return Ok(None),
        Found::Served(Served { epoch, revision, .. }) => {
            let lost = format!(
                "the database (at revision {} of epoch {}) was put back from a copy: this server had served revision \
                 {revision} of epoch {epoch}, {again}",
                head.revision, head.epoch
            );
            (epoch, lost)
        }
    };
    Ok(Some((next_epoch(head.epoch.max(epoch)), why)))
}

/// The epoch after one: the time in seconds, so that it is later than that of any copy as well.
pub fn next_epoch(epoch: u64) -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or(0).max(epoch + 1)
}

/// Whether a state is in the history of the database.
fn leads_to(served: &Served, head: &Served, store: &mut dyn Store) -> Result<bool, StoreError> {
    if served.epoch > head.epoch || served.revision > head.revision {
        return Ok(false);
    }
    if served.revision == Revision(0) {
        return Ok(true);
    }
    let entry = store.log(Revision(served.revision.0 - 1), 1)?.pop();
    Ok(entry.and_then(|entry| entry.hash) == Some(served.hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;
    use crate::store::{Stored, raise_epoch};

    fn head(store: &mut Memory) -> Served {
        let Stored { world, hash, .. } = store.load().expect("it loads");
        Served { epoch: world.epoch, revision: world.revision, hash }
    }

    fn grow(store: &mut Memory) {
        let Stored { mut world, mut hash, .. } = store.load().expect("it loads");
        let epoch = world.epoch;
        raise_epoch(store, &mut world, &mut hash, epoch, String::new()).expect("it is stored");
    }

    #[test]
    fn a_log_that_does_not_lead_on_from_what_was_served_begins_another_epoch() {
        let mut store = Memory::default();
        let empty = head(&mut store);
        assert_eq!(
            check(Found::Nothing, &empty, &mut store).expect("it reads"),
            None,
            "nothing was ever served"
        );
        (0..3).for_each(|_| grow(&mut store));
        let now = head(&mut store);
        let mut raised = |found| check(found, &now, &mut store).expect("it reads");
        let at = |revision, hash| Found::Served(Served { epoch: 1, revision: Revision(revision), hash });
        assert_eq!(raised(Found::Served(now)), None);
        assert_eq!(raised(Found::Served(empty)), None, "power was lost, and the mark is behind");
        for (other, word) in [
            (at(4, now.hash), "had served revision 4 of epoch 1"),
            (at(3, now.hash.next("other")), "was put back from a copy"),
            (at(2, now.hash), "was put back from a copy"),
            (Found::Served(Served { epoch: 9_999_999_999, ..now }), "of epoch 9999999999"),
            (Found::Nothing, "it is not known"),
            (Found::Damaged, "is damaged"),
        ] {
            let (epoch, why) = raised(other).expect("another epoch begins");
            assert!(why.contains(word), "{why}");
            let least = if word.contains("99") { 10_000_000_000 } else { 1_700_000_000 };
            assert!(epoch >= least, "{epoch}");
        }
    }

    #[test]
    fn the_mark_reads_back_and_anything_else_is_damaged() {
        let folder = tempfile::tempdir().expect("a directory");
        let directory = DataDir::open(&folder.path().join("data")).expect("it opens");
        assert_eq!(read(&directory).expect("it reads"), Found::Nothing);
        let first = Served { epoch: 5, revision: Revision(9), hash: ChainHash::start("a") };
        let mut mark = Mark::begin(&directory, &first).expect("it is written");
        assert_eq!(read(&directory).expect("it reads"), Found::Served(first));
        let later = Served { epoch: u64::MAX, revision: Revision(u64::MAX), hash: first.hash.next("b") };
        mark.record(&later);
        assert_eq!(read(&directory).expect("it reads"), Found::Served(later));
        let whole = line(&later);
        for damaged in
            [&whole[..whole.len() - 1], "", "1 2 3\n", &whole.replace('6', "x"), &format!("{whole}{whole}")]
        {
            directory.write(FILE, damaged.as_bytes()).expect("written");
            assert_eq!(read(&directory).expect("it reads"), Found::Damaged, "{damaged:?}");
        }
    }
}
