//! The files of an open database: are they still the ones that were opened?
//!
//! SQLite keeps its files open. If somebody deletes, moves, replaces or truncates one, everything written
//! from then on goes to a file that no start will read. So the files are compared, by device, inode and
//! length, before each write and after it. Once one is lost the database is unusable until a restart, even if
//! the file comes back: what was written in between may be missing from it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::StoreError;

/// What SQLite adds to the name of a database for its other files: the write-ahead log, and the index of
/// that.
const BESIDE: [&str; 3] = ["", "-wal", "-shm"];

/// The files of an open database.
#[derive(Debug)]
pub struct DatabaseFiles {
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Each file as it was found last.
    There(Vec<KnownFile>),
    /// One was lost.
    Lost(LostFile),
}

#[derive(Debug)]
struct KnownFile {
    path: PathBuf,
    inode: (u64, u64),
    length: u64,
}

/// A file of a database that was lost while the database was open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} {what} while nmserver used it")]
pub struct LostFile {
    /// The file.
    pub path: String,
    /// What happened to it.
    pub what: &'static str,
}

impl DatabaseFiles {
    /// The files of a database that is open.
    pub fn of(database: &Path) -> io::Result<Self> {
        let known = |suffix: &&str| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            let path = PathBuf::from(path);
            let found = fs::metadata(&path)?;
            Ok(KnownFile { path, inode: (found.dev(), found.ino()), length: found.len() })
        };
        let files = BESIDE.iter().map(known).collect::<io::Result<_>>()?;
        Ok(Self { state: Mutex::new(State::There(files)) })
    }

    /// Checks that every file is the one that was opened, and no shorter than it was.
    ///
    /// # Errors
    ///
    /// [`StoreError::Lost`], from then on always.
    pub fn check(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = match &mut *state {
            State::Lost(lost) => return Err(StoreError::Lost(lost.clone())),
            State::There(files) => files.iter_mut().find_map(KnownFile::lost),
        };
        let Some(lost) = lost else { return Ok(()) };
        *state = State::Lost(lost.clone());
        Err(StoreError::Lost(lost))
    }
}

impl KnownFile {
    /// What happened to the file, if it is lost.
    fn lost(&mut self) -> Option<LostFile> {
        let what = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => "was deleted or moved",
            Err(_) => "became inaccessible",
            Ok(found) if (found.dev(), found.ino()) != self.inode => "was replaced by another file",
            Ok(found) if found.len() < self.length => "was truncated",
            Ok(found) => {
                self.length = found.len();
                return None;
            }
        };
        Some(LostFile { path: self.path.display().to_string(), what })
    }
}
