//! The directory that the server keeps everything in: who may use it, and what counts as a first start.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use netclient::files::{self, Exposed};
use proto::secret::Secret;

/// Why the data directory is not usable.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot {attempt} {path}; start nmserver as a user with access to it, or set DATA_DIR")]
    File {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: {why}; restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The directory or a file in it is not safe from other users.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// A file is missing that was made at the first start, and agents trust no other.
    #[error("{0} is missing, and agents trust no other key; restore it from a backup")]
    Missing(PathBuf),
    /// There is no database where a server has started before, or where something else lies.
    #[error(
        "{database} is missing or empty, but {directory} is not: if a server ran here, put the database back from a backup; \
         to begin anew, with every host joining again, move everything out of {directory}; or set DATA_DIR to an empty \
         directory"
    )]
    NoDatabase {
        /// The file.
        database: PathBuf,
        /// The data directory.
        directory: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The operating system returned no random numbers.
    #[error("cannot read random numbers from the operating system: {0}")]
    Random(getrandom::Error),
}

/// The directory that the server keeps everything in.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Whether no server has started here yet.
    new: bool,
}

/// The file of the database.
pub const DATABASE: &str = "nmserver.db";
/// What SQLite adds to the name of a database for its write-ahead log, and for the index of that.
const BESIDE_DATABASE: [&str; 2] = ["-wal", "-shm"];
/// The file that is there while a first start is in progress: one that is interrupted is taken up again.
const FIRST_START: &str = "first-start";
/// The lock of the directory, which is there before anything else.
const LOCK: &str = "lock";
/// What may be in a directory that counts as empty: what a file system puts into its root, and the lock.
const NOTHING: [&str; 2] = ["lost+found", LOCK];
/// What others may do with the directory: pass through to a folder in it that they may read.
const PASSED_THROUGH: u32 = 0o011;
/// What is no secret: others may be let read it.
const PUBLIC: [&str; 2] = ["ca.pem", "version"];

impl DataDir {
    /// Opens the directory, and creates it first if there is none.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Exposed`] if it belongs to another user, or others may read or write it.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File { attempt: "use", path: path.into(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        Self::look(path, fs::read_dir(path).map_err(failed)?)
    }

    /// Opens the directory of a server that has started; makes nothing. Absent: none has started there.
    ///
    /// # Errors
    ///
    /// As for [`DataDir::open`].
    pub fn existing(path: &Path) -> Result<Option<Self>, IdentityError> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::File { attempt: "use", path: path.into(), source }),
        };
        // Nobody is advised to close a directory that is not a server's.
        if !path.join(DATABASE).exists() && files::check_folder(path, PASSED_THROUGH).is_err() {
            return Ok(None);
        }
        Ok(Some(Self::look(path, entries)?).filter(|directory| !directory.new))
    }

    fn look(path: &Path, mut entries: fs::ReadDir) -> Result<Self, IdentityError> {
        files::check_folder(path, PASSED_THROUGH)?;
        let new =
            entries.all(|entry| entry.is_ok_and(|it| NOTHING.iter().any(|name| it.file_name() == *name)));
        Ok(Self { path: path.into(), new: new || path.join(FIRST_START).exists() })
    }

    /// Whether a first start happens here, or was interrupted.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Begins a start, for the holder of the lock: a first one is recorded as such, any other needs its
    /// database.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NoDatabase`] if the directory is not empty and has none.
    pub fn begin(&self) -> Result<Self, IdentityError> {
        // Another server may have had the lock since this was opened.
        let now = Self::open(&self.path)?;
        if now.new {
            // What an interrupted one left of a database has never been served.
            for suffix in BESIDE_DATABASE.into_iter().chain([""]) {
                let path = now.file(&format!("{DATABASE}{suffix}"));
                files::remove(&path).map_err(|source| IdentityError::File {
                    attempt: "remove",
                    path,
                    source,
                })?;
            }
            now.write(
                FIRST_START,
                b"The first start of nmserver has not been completed: the next one begins anew.\n",
            )?;
            return Ok(now);
        }
        now.database()?;
        Ok(now)
    }

    /// The file of the database that a server left here, safe like what SQLite keeps beside it.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NoDatabase`] if there is none, [`IdentityError::Exposed`] if others may use one of
    /// the files.
    pub fn database(&self) -> Result<PathBuf, IdentityError> {
        let database = self.file(DATABASE);
        if files::check_file(&database)?.is_none_or(|length| length == 0) {
            return Err(IdentityError::NoDatabase { database, directory: self.path.clone() });
        }
        for suffix in BESIDE_DATABASE {
            files::check_file(&self.file(&format!("{DATABASE}{suffix}")))?;
        }
        Ok(database)
    }

    /// Records that a start is complete: nothing is made anew from now on, even if the power fails.
    pub fn complete(&self) -> Result<(), IdentityError> {
        let path = self.file(FIRST_START);
        let removed = files::remove(&path).and_then(|()| files::sync_folder(&path));
        removed.map_err(|source| IdentityError::File { attempt: "remove", path, source })
    }

    /// Makes sure that no other process uses the directory; absent: another one does. The lock ends with the
    /// process.
    pub fn lock(&self) -> Result<Option<fs::File>, IdentityError> {
        let path = self.file(LOCK);
        let failed = |source| IdentityError::File { attempt: "open", path: path.clone(), source };
        let file = files::in_place().open(&path).map_err(failed)?;
        // Whoever may open it could hold it for ever.
        files::check_file(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file, or nothing if there is none.
    pub fn read(&self, name: &str) -> Result<Option<Secret<Vec<u8>>>, IdentityError> {
        let bytes = files::read(&self.file(name), PUBLIC.contains(&name))?;
        Ok(bytes.map(|mut bytes| Secret::new(std::mem::take(&mut *bytes))))
    }

    /// Creates an empty file that only the owner may read, unless it exists: what fills it keeps its mode.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Exposed`] if it exists and others may use it.
    pub fn reserve(&self, name: &str) -> Result<(), IdentityError> {
        let path = self.file(name);
        let failed = |source| IdentityError::File { attempt: "write", path: path.clone(), source };
        files::in_place().open(&path).map_err(failed)?;
        files::check_file(&path)?;
        Ok(())
    }

    /// Writes a file that only the owner may read, whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
        let path = self.file(name);
        let written = files::write_whole(&path, bytes, files::PRIVATE);
        written.map_err(|source| IdentityError::File { attempt: "write", path, source })
    }

    pub(crate) fn secret(&self, name: &str) -> Result<Secret<[u8; 32]>, IdentityError> {
        if let Some(bytes) = self.read(name)? {
            let damaged =
                || IdentityError::Damaged { path: self.file(name), why: "it does not have 32 bytes".into() };
            return bytes.expose().as_slice().try_into().map(Secret::new).map_err(|_| damaged());
        }
        self.may_make(name)?;
        let secret = random()?;
        self.write(name, secret.expose())?;
        Ok(secret)
    }

    /// Whether a key may be created: once agents know the earlier one, another would lock them out.
    pub(crate) fn may_make(&self, name: &str) -> Result<(), IdentityError> {
        if self.new { Ok(()) } else { Err(IdentityError::Missing(self.file(name))) }
    }
}

/// 32 random bytes.
pub fn random() -> Result<Secret<[u8; 32]>, IdentityError> {
    let mut bytes = Secret::new([0; 32]);
    getrandom::fill(bytes.expose_mut()).map_err(IdentityError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::identity::Secrets;

    pub(crate) fn data() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("data");
        (directory, path)
    }

    #[test]
    fn a_first_start_is_one_on_an_empty_directory() {
        let (_directory, path) = data();
        fs::DirBuilder::new().mode(0o700).create(&path).expect("made");
        fs::create_dir(path.join("lost+found")).expect("made");
        let data = DataDir::open(&path).expect("it opens");
        let _lock = data.lock().expect("it locks").expect("nobody else does");
        let first = data.begin().expect("it is empty");
        assert!(first.is_new());
        let key = Secrets::open(&first).expect("made").signing_key().to_bytes();
        let again = DataDir::open(&path).expect("it opens").begin().expect("the first start was interrupted");
        assert!(again.is_new());
        assert_eq!(
            Secrets::open(&again).expect("read").signing_key().to_bytes(),
            key,
            "it is taken up again"
        );
        again.complete().expect("done");
        for content in [None, Some(""), Some("a database")] {
            let data = DataDir::open(&path).expect("it opens");
            content.iter().for_each(|content| data.write(DATABASE, content.as_bytes()).expect("written"));
            match DataDir::open(&path).expect("it opens").begin() {
                Ok(data) => assert!(content.is_some_and(|it| !it.is_empty()) && !data.is_new()),
                Err(error) => {
                    assert!(content.is_none_or(str::is_empty), "{error}");
                    let text = error.to_string();
                    assert!(
                        text.contains("nmserver.db is missing or empty") && text.contains("from a backup"),
                        "{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_database_that_others_may_use_is_refused() {
        let (_directory, path) = data();
        let data = DataDir::open(&path).expect("it opens");
        let files = ["", "-wal", "-shm"].map(|suffix| format!("{DATABASE}{suffix}"));
        files.iter().for_each(|file| data.write(file, b"content").expect("written"));
        data.begin().expect("they are the server's own");
        let mode = |file: &str, mode| fs::set_permissions(path.join(file), Permissions::from_mode(mode));
        for file in &files {
            for open in [0o644, 0o660, 0o606] {
                mode(file, open).expect("set");
                let refused = data.begin().expect_err("others may use it").to_string();
                assert!(refused.contains(file) && refused.contains("chmod 0600"), "{refused}");
            }
            mode(file, 0o600).expect("set");
        }
        fs::rename(path.join(DATABASE), path.join("elsewhere")).expect("moved");
        std::os::unix::fs::symlink("elsewhere", path.join(DATABASE)).expect("linked");
        let refused = data.begin().expect_err("it is a link").to_string();
        assert!(refused.contains("is not a regular file"), "{refused}");
        mode(LOCK, 0o600).expect_err("there is none yet");
        data.lock().expect("it locks");
        mode(LOCK, 0o644).expect("set");
        assert!(matches!(data.lock(), Err(IdentityError::Exposed(_))), "anybody could hold it");
    }

    #[test]
    fn to_look_for_a_server_makes_nothing() {
        let (_directory, path) = data();
        assert!(DataDir::existing(&path).expect("it can be looked for").is_none() && !path.exists());
        let data = DataDir::open(&path).expect("it opens");
        assert!(DataDir::existing(&path).expect("it can be looked for").is_none(), "it is empty");
        data.write(DATABASE, b"content").expect("written");
        assert!(DataDir::existing(&path).expect("it can be looked for").is_some());
        data.write(FIRST_START, b"").expect("written");
        assert!(
            DataDir::existing(&path).expect("it can be looked for").is_none(),
            "a first start was interrupted"
        );
    }

    #[test]
    fn a_directory_with_other_files_in_it_is_not_new() {
        let (_directory, path) = data();
        fs::DirBuilder::new().mode(0o700).create(&path).expect("made");
        fs::write(path.join("notes.txt"), "").expect("written");
        let refused = DataDir::open(&path).expect("it opens").begin();
        assert!(matches!(refused, Err(IdentityError::NoDatabase { .. })), "{refused:?}");
        assert!(!path.join(FIRST_START).exists(), "nothing is made");
    }
}
