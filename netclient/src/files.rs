//! Files of a program's own: opened only where no other user can interfere, written whole or not at all, and
//! removed only by their maker. Agent and server share this.
//!
//! A directory or file of another user, or one that others may write, is refused ([`check_folder`],
//! [`read`]); no link is followed, and a new file is always one that did not exist ([`write_whole`]). A path
//! may be taken over by another process; a file is therefore known by device and inode, and only the file
//! that we made is ever removed. A device process leaves three while it lives: its socket, its lock, its log.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use schema::text::word;
use zeroize::Zeroizing;

/// The mode of a file that only its owner may read and write.
pub const PRIVATE: u32 = 0o600;

/// How the name of a file ends, after a dot, that [`write_whole`] makes before it takes the place of another.
pub const NEW: &str = "nm-new";

/// Why a path is not safe to keep secrets at.
#[derive(Debug, thiserror::Error)]
pub enum Exposed {
    /// Others may do more with it than is safe.
    #[error(
        "{path} is open to other users (mode {mode:04o}), but is for this program alone; close it: chmod {wanted:04o} {}",
        typed(path)
    )]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it should have.
        wanted: u32,
    },
    /// Another user owns it, and may do with it as they like.
    #[error(
        "{path} belongs to the user with id {owner}, but this runs as the one with id {own}; run it as that user, or hand \
         it over: chown {own} {}",
        typed(path)
    )]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user that this process runs as.
        own: u32,
    },
    /// It is a link, a pipe or the like where there should be a file.
    #[error("{0} is not a regular file, but a link or something else that somebody put there; remove it")]
    NotRegular(PathBuf),
    /// It cannot be read at all.
    #[error("cannot read {path}")]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A path as a shell reads it.
fn typed(path: &Path) -> String {
    word(&path.display().to_string())
}

/// Checks that a directory is this user's own, and that others may do no more in it than the bits of `shared`
/// let them; 0: nothing.
pub fn check_folder(path: &Path, shared: u32) -> Result<(), Exposed> {
    let found = fs::metadata(path).map_err(unreadable(path))?;
    check(path, &found, 0o077 & !shared, 0o700)
}

/// Reads a file of this user's own, which others may not write, and may not read either unless it is
/// `public`; absent: there is none.
pub fn read(path: &Path, public: bool) -> Result<Option<Zeroizing<Vec<u8>>>, Exposed> {
    // Opening a pipe must not wait for a writer.
    let opened =
        OpenOptions::new().read(true).custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK)).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if is_link(&error) => return Err(Exposed::NotRegular(path.into())),
        Err(error) => return Err(unreadable(path)(error)),
    };
    let found = file.metadata().map_err(unreadable(path))?;
    if !found.is_file() {
        return Err(Exposed::NotRegular(path.into()));
    }
    check(path, &found, if public { 0o022 } else { 0o077 }, if public { 0o644 } else { PRIVATE })?;
    // One that does not grow: growing leaves a copy in memory.
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0) + 1));
    file.read_to_end(&mut content).map_err(unreadable(path))?;
    Ok(Some(content))
}

/// Checks that a file which another library opens is this user's own, no link, and closed to others; returns
/// its length in bytes. Absent: there is none.
pub fn check_file(path: &Path) -> Result<Option<u64>, Exposed> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path)(error)),
    };
    if !found.is_file() {
        return Err(Exposed::NotRegular(path.into()));
    }
    check(path, &found, 0o077, PRIVATE)?;
    Ok(Some(found.len()))
}

fn check(path: &Path, found: &fs::Metadata, forbidden: u32, wanted: u32) -> Result<(), Exposed> {
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own {
        return Err(Exposed::Foreign { path: path.into(), owner: found.uid(), own });
    }
    let mode = found.mode() & 0o7777;
    if mode & forbidden == 0 { Ok(()) } else { Err(Exposed::Open { path: path.into(), mode, wanted }) }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> Exposed {
    move |source| Exposed::Unreadable { path: path.into(), source }
}

/// Whether a file was not opened because its path leads to a link.
fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// How a private file is opened to be written in place: made if there is none, and no link is followed.
pub fn in_place() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(PRIVATE).custom_flags(flags(OFlags::NOFOLLOW));
    options
}

/// Makes a file hold this, with this mode: whole and on the disk, or the old one stays. A process that is
/// killed meanwhile leaves a new file beside it, which the next write replaces.
pub fn write_whole(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let new = sibling(path, NEW);
    let (Some(folder), Some(name)) = (new.parent(), new.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // What is there was left by a process that was killed, or was planted: it is removed, never written to.
    remove(&new)?;
    // Opened here, because callers distinguish the errors of the system, which the crate would wrap.
    let make = |path: &Path| OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = tempfile::Builder::new().prefix(name).rand_bytes(0).make_in(folder, make)?;
    // Whatever the umask of this process leaves of it.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file_mut().write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(path)
}

/// What the agent does with a disk to keep its state. A process that is killed may do any part of any of
/// these as its last act.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes a private file hold this: whole and on the disk, or the old one stays.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Makes a private file hold this from `at` on, and on the disk; what it had from there on is gone, what
    /// it had before stays.
    fn write_from(&self, path: &Path, at: u64, content: &[u8]) -> io::Result<()>;
    /// Removes a file, if there.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The real disk.
#[derive(Clone, Copy, Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        write_whole(path, content, PRIVATE)
    }

    fn write_from(&self, path: &Path, at: u64, content: &[u8]) -> io::Result<()> {
        let file = in_place().open(path)?;
        if file.metadata()?.len() > at {
            file.set_len(at)?;
        }
        file.write_all_at(content, at)?;
        file.sync_data()?;
        // The file may be new: its folder has to be synced as well.
        if at == 0 { sync_folder(path) } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        remove(path)
    }
}

/// Makes sure that what was made or removed next to a file is on the disk.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Removes a file, if there; of a link, the link.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file that we made; dropping removes it, unless the path leads to another by then.
pub(crate) struct OwnFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl OwnFile {
    /// Takes ownership of the file at the path.
    pub(crate) fn claim(path: &Path) -> io::Result<Self> {
        let inode = inode(&fs::symlink_metadata(path)?);
        Ok(Self { path: path.to_owned(), inode })
    }

    /// Whether the path still leads to our file.
    pub(crate) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| inode(&found) == self.inode)
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if self.is_there() {
            // A file that stays is found stale by the next process, which removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The lock of a socket: one process at a time has it, and the kernel releases it when that process ends.
pub(crate) struct Lock {
    // Removed first: a process that finds the path gone makes a new file, and one that opened this file looks
    // again (`take`).
    _file: OwnFile,
    _held: File,
}

impl Lock {
    /// Takes the lock; absent: another process has it.
    pub(crate) fn take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let held = in_place().open(path)?;
            match flock(&held, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                outcome => outcome?,
            }
            // The last holder may have removed the file between our opening and our locking it.
            let file = OwnFile { path: path.to_owned(), inode: inode(&held.metadata()?) };
            if file.is_there() {
                return Ok(Some(Self { _file: file, _held: held }));
            }
        }
    }
}

/// The lock next to a socket.
pub(crate) fn lock_path(socket: &Path) -> PathBuf {
    sibling(socket, "lock")
}

/// The log next to a socket: what the device process printed since its start.
pub(crate) fn log_path(socket: &Path) -> PathBuf {
    sibling(socket, "log")
}

/// Removes what a device process left that was killed before it could clean up.
pub(crate) fn clean_after_device(socket: &Path) {
    for left in [lock_path(socket), log_path(socket), socket.to_owned()] {
        if let Err(error) = remove(&left) {
            tracing::debug!(%error, path = %left.display(), "cannot remove a file of the device process");
        }
    }
}

fn sibling(path: &Path, kind: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(kind);
    PathBuf::from(name)
}

fn inode(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_to_copy_names_one_path() {
        let path = PathBuf::from("/srv/my data");
        let open = Exposed::Open { path: path.clone(), mode: 0o777, wanted: 0o700 }.to_string();
        assert!(open.ends_with("chmod 0700 '/srv/my data'"), "{open}");
        let foreign = Exposed::Foreign { path, owner: 1, own: 0 }.to_string();
        assert!(foreign.ends_with("chown 0 '/srv/my data'"), "{foreign}");
    }

    #[test]
    fn a_file_that_another_took_over_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder is made");
        let path = folder.path().join("nm.sock");
        fs::write(&path, "ours").expect("a file is written");
        let ours = OwnFile::claim(&path).expect("the file is there");
        // Written next to it and moved over it: the inode is certain to differ.
        let other = folder.path().join("other");
        fs::write(&other, "theirs").expect("a file is written");
        fs::rename(&other, &path).expect("a file is moved");
        assert!(!ours.is_there());
        drop(ours);
        assert_eq!(fs::read_to_string(&path).expect("it is still there"), "theirs");
    }

    /// A folder of this user's own, with a file of somebody else's beside it that links planted in it lead
    /// to.
    fn planted(name: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder is made");
        let theirs = folder.path().join("theirs");
        fs::write(&theirs, "theirs").expect("a file is written");
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(&theirs, &link).expect("a link is made");
        (folder, theirs, link)
    }

    #[test]
    fn nothing_is_written_through_a_planted_link() {
        for name in ["key", "key.nm-new"] {
            let (folder, theirs, _) = planted(name);
            let path = folder.path().join("key");
            write_whole(&path, b"secret", PRIVATE).expect("it is written");
            assert_eq!(fs::read_to_string(&theirs).expect("it is there"), "theirs", "{name}");
            let found = fs::symlink_metadata(&path).expect("it is there");
            assert!(found.is_file() && found.mode() & 0o777 == PRIVATE, "{name}");
            assert_eq!(
                fs::read_dir(folder.path()).expect("it is there").count(),
                2,
                "{name}: nothing is left"
            );
        }
        let (_folder, theirs, link) = planted("log");
        assert!(RealDisk.write_from(&link, 0, b"secret").is_err());
        assert!(Lock::take(&link).is_err());
        assert_eq!(fs::read_to_string(theirs).expect("it is there"), "theirs");
    }

    #[test]
    fn a_file_that_others_may_use_is_refused_and_the_message_says_what_to_type() {
        let folder = tempfile::tempdir().expect("a folder is made");
        let path = folder.path().join("key");
        assert!(read(&path, false).expect("there is none").is_none());
        fs::write(&path, "secret").expect("a file is written");
        // By mode: whether it may be read as a secret, and as something public.
        for (mode, secret, public) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o644, false, true),
            (0o660, false, false),
            (0o602, false, false),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
            assert_eq!(read(&path, false).is_ok(), secret, "{mode:o}");
            assert_eq!(check_file(&path).is_ok(), secret, "{mode:o}");
            assert_eq!(read(&path, true).is_ok(), public, "{mode:o}");
        }
        let refused = read(&path, false).expect_err("others may write it").to_string();
        assert!(refused.contains("mode 0602") && refused.contains("chmod 0600"), "{refused}");
        let (_folder, _, link) = planted("key");
        assert!(matches!(read(&link, true), Err(Exposed::NotRegular(_))));
        assert!(matches!(check_file(&link), Err(Exposed::NotRegular(_))));
        assert!(matches!(check_file(&folder.path().join("nothing")), Ok(None)));
        assert!(matches!(read(folder.path(), true), Err(Exposed::NotRegular(_))), "a directory");
    }

    #[test]
    fn a_folder_that_others_may_use_is_refused() {
        let folder = tempfile::tempdir().expect("a folder is made");
        // By mode: whether it is good for an agent, and for a server that lets others pass through.
        for (mode, alone, passed) in [
            (0o700, true, true),
            (0o711, false, true),
            (0o755, false, false),
            (0o770, false, false),
            (0o702, false, false),
        ] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).expect("set");
            assert_eq!(check_folder(folder.path(), 0).is_ok(), alone, "{mode:o}");
            assert_eq!(check_folder(folder.path(), 0o011).is_ok(), passed, "{mode:o}");
        }
        let own = rustix::process::geteuid().as_raw();
        let mut found = fs::metadata(folder.path()).expect("it is there");
        if own != found.uid() || own != 0 {
            // Somebody else's: the root directory is, for everybody but root.
            found = fs::metadata("/").expect("it is there");
            assert!(matches!(check(Path::new("/"), &found, 0, 0), Err(Exposed::Foreign { .. })));
        } else {
            std::os::unix::fs::chown(folder.path(), Some(own + 1), None).expect("root may");
            let refused = check_folder(folder.path(), 0o077).expect_err("it is somebody else's").to_string();
            assert!(refused.contains("chown 0 "), "{refused}");
        }
    }

    #[test]
    fn a_lock_is_held_by_one_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder is made");
        let path = folder.path().join("nm.sock.lock");
        let first = Lock::take(&path).expect("locking works").expect("the lock is free");
        assert!(Lock::take(&path).expect("locking works").is_none());
        drop(first);
        assert!(!path.exists());
        assert!(Lock::take(&path).expect("locking works").is_some());
    }
}
