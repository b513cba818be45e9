//! A file of tokens: one JSON object from resource id to token, readable by its owner only.
//!
//! It is replaced atomically and locked from holding to the end, so that concurrent applies to one file lose
//! no token. Entries of others are kept.

use std::fs::{self, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use proto::secret::Secret;
use proto::token::Tokens;
use schema::text::path as shown;

use super::{KeysError, Made, Opened, Output, json};
use crate::interrupt::Interrupts;

/// How long to wait for another apply that holds the file. It holds it from before it sends its plan until
/// the answer: a fraction of a second, unless the server is slow or unavailable.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to try to lock it.
const POLL: Duration = Duration::from_millis(50);

/// A file of tokens.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    /// The path as it was given, for messages.
    given: PathBuf,
    before: Option<Tokens>,
    lock: Option<Lock>,
}

/// A lock file next to a file of tokens, held by one apply at a time and removed by it.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _held: fs::File,
}

impl Lock {
    /// Takes the lock of a file, waiting while another apply holds it.
    fn take(file: &Path, timeout: Duration) -> Result<Self, KeysError> {
        let mut name = file.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let end = Instant::now() + timeout;
        let failed = |source| KeysError::File { attempt: "lock", path: path.clone(), source };
        loop {
            let mut options = fs::OpenOptions::new();
            // In a folder of others the name may be planted, as a link to a file of ours.
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = options.open(&path).map_err(failed)?;
            match file.try_lock() {
                // Its last holder has removed this file, and another apply may lock a new one.
                Ok(()) if !is_at(&file, &path).map_err(failed)? => {}
                Ok(()) => return Ok(Self { path, _held: file }),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                    return Err(KeysError::Locked { path });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(POLL),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While the lock is held, so that only our own file is removed; one that is left blocks nobody.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a path refers to this open file.
fn is_at(file: &fs::File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl KeyFile {
    /// Reads the file, and checks that it can be replaced.
    pub(super) fn open(path: &Path) -> Result<Self, KeysError> {
        let given = path.to_owned();
        // A link is kept: its target is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let before = read(&path)?;
        temporary(&path)?;
        Ok(Self { path, given, before, lock: None })
    }
}

impl Opened for KeyFile {
    /// Adds the tokens; no other apply changes the file until they are taken back or this is dropped.
    fn hold(&mut self, made: &[Made]) -> Result<(), KeysError> {
        self.lock = Some(Lock::take(&self.path, LOCK_TIMEOUT)?);
        self.before = read(&self.path)?;
        let mut tokens = self.before.clone().unwrap_or_default();
        tokens.extend(made.iter().map(|made| (made.id.to_string(), made.token.clone())));
        replace(&self.path, &tokens)
    }

    /// Removes the tokens that were added, unless somebody else has replaced them since.
    fn take_back(&mut self, made: &[Made]) -> Result<(), KeysError> {
        let _lock = self.lock.take();
        let mut tokens = read(&self.path)?.unwrap_or_default();
        for Made { id, token, .. } in made {
            let id = id.to_string();
            if tokens.get(&id) == Some(token) {
                tokens.remove(&id);
                let had = self.before.iter().flat_map(|before| before.get_key_value(&id));
                tokens.extend(had.map(|(id, token)| (id.clone(), token.clone())));
            }
        }
        if tokens.is_empty() && self.before.is_none() {
            let failed = |source| KeysError::File { attempt: "remove", path: self.path.clone(), source };
            return fs::remove_file(&self.path).map_err(failed);
        }
        replace(&self.path, &tokens)
    }

    fn deliver(
        &self,
        _made: &[Made],
        _output: &mut Output<'_>,
        _interrupts: &Interrupts,
    ) -> Result<String, KeysError> {
        Ok(format!("written to {}", shown(&self.given)))
    }
}

fn read(path: &Path) -> Result<Option<Tokens>, KeysError> {
    let failed = |source| KeysError::File { attempt: "read", path: path.into(), source };
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(KeysError::NotRegular(path.into())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let text = Secret::new(fs::read_to_string(path).map_err(failed)?);
    if text.expose().trim().is_empty() {
        return Ok(Some(Tokens::new()));
    }
    serde_json::from_str(text.expose()).map(Some).map_err(|error| {
        // The error's own text may quote the file.
        let why = format!("line {}, column {}", error.line(), error.column());
        KeysError::Content { path: path.into(), why }
    })
}

/// Replaces the file atomically, readable by its owner only, and syncs it to disk.
fn replace(path: &Path, tokens: &Tokens) -> Result<(), KeysError> {
    let failed = |source| KeysError::File { attempt: "write", path: path.into(), source };
    let mut file = temporary(path)?;
    file.write_all(json(tokens).expose().as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    fs::File::open(directory(path)).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// A temporary file next to another, of mode 0600; it is removed unless it replaces that one.
fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, KeysError> {
    let failed = |source| KeysError::File { attempt: "write", path: path.into(), source };
    fs::metadata(directory(path)).map_err(failed)?;
    // The error of a temporary file names that file, which means nothing to the user.
    let failed = |error: io::Error| failed(error.kind().into());
    tempfile::Builder::new().prefix(".nmplan-").tempfile_in(directory(path)).map_err(failed)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::made;
    use super::*;

    #[test]
    fn a_file_keeps_its_other_entries_and_is_secret() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        fs::write(&path, r#"{"corp/access-key/old": "nmj_old"}"#).expect("it can be written");
        let mut file = KeyFile::open(&path).expect("it opens");
        let key = made("ci");
        file.hold(&key).expect("it holds");
        let held: BTreeMap<String, String> =
            serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("JSON");
        assert_eq!(held["corp/access-key/old"], "nmj_old");
        assert_eq!(held["corp/access-key/ci"], *key[0].token.expose());
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        file.take_back(&key).expect("it takes back");
        assert_eq!(
            read(&path).expect("it reads"),
            Some(Tokens::from([("corp/access-key/old".into(), Secret::new("nmj_old".into()))]))
        );
    }

    #[test]
    fn a_new_file_is_removed_after_a_refusal() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        let mut file = KeyFile::open(&path).expect("it opens");
        let key = made("ci");
        assert!(!path.exists(), "opening writes nothing");
        file.hold(&key).expect("it holds");
        file.take_back(&key).expect("it takes back");
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn anything_but_a_file_of_tokens_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("notes.txt");
        fs::write(&path, "nmj_secret is not JSON").expect("it can be written");
        let refused = KeyFile::open(&path).expect_err("it is refused");
        assert!(!refused.to_string().contains("nmj_secret"), "{refused}");
        assert!(matches!(KeyFile::open(directory.path()).err(), Some(KeysError::NotRegular(_))));
        assert!(matches!(KeyFile::open(Path::new("/dev/null")).err(), Some(KeysError::NotRegular(_))));
        assert!(matches!(
            KeyFile::open(&directory.path().join("no/keys.json")).err(),
            Some(KeysError::File { .. })
        ));
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "nmj_secret is not JSON");
    }

    #[test]
    fn concurrent_applies_to_one_file_lose_no_token() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        let start = std::sync::Barrier::new(8);
        thread::scope(|scope| {
            for number in 0..8 {
                let path = &path;
                let start = &start;
                scope.spawn(move || {
                    let mut file = KeyFile::open(path).expect("it opens");
                    let key = made(&format!("ci-{number}"));
                    start.wait();
                    file.hold(&key).expect("it holds");
                });
            }
        });
        assert_eq!(read(&path).expect("it reads").map(|tokens| tokens.len()), Some(8));
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 1, "no lock is left");
    }

    #[test]
    fn a_planted_link_in_place_of_the_lock_is_not_followed() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        let mut file = KeyFile::open(&path).expect("it opens");
        let theirs = directory.path().join("theirs");
        std::os::unix::fs::symlink(&theirs, directory.path().join("keys.json.lock")).expect("a link is made");
        assert!(matches!(file.hold(&made("ci")), Err(KeysError::File { attempt: "lock", .. })));
        assert!(!theirs.exists() && !path.exists());
    }

    #[test]
    fn waiting_for_a_file_that_another_apply_holds_has_a_timeout() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("keys.json");
        let mut file = KeyFile::open(&path).expect("it opens");
        file.hold(&made("ci")).expect("it holds");
        let lock = directory.path().join("keys.json.lock");
        assert_eq!(fs::metadata(&lock).expect("it is there").permissions().mode() & 0o777, 0o600);
        let refused = Lock::take(&path, Duration::ZERO).expect_err("it is held");
        assert_eq!(refused.to_string(), format!("another nmplan has held {} for 10 s", lock.display()));
        drop(file);
        assert!(!lock.exists() && Lock::take(&path, Duration::ZERO).is_ok());
    }
}
