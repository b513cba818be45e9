//! Files of the agent's own: written whole or not at all, and removed only by their maker.
//!
//! A path may be taken over by another process; a file is therefore known by device and inode, and only the file that
//! we made is ever removed. A device process leaves three while it lives: its socket, its lock, its log.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The mode of a file that only its owner may read and write.
pub(crate) const PRIVATE: u32 = 0o600;

/// Makes a file hold this, with this mode: whole and on the disk, or the old one stays.
pub(crate) fn write_whole(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let new = sibling(path, "netclient");
    let write = || {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(&new)?;
        // Whatever the umask of this process leaves of it.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_folder(path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

/// What the agent does with a disk to keep its state. A process that is killed may do any part of any of these as its last
/// act.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes a private file hold this: whole and on the disk, or the old one stays.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Makes a private file hold this from `at` on, and on the disk; what it had from there on is gone, what it had
    /// before stays.
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
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE).open(path)?;
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

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Removes a file, if there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
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
    // Removed first: a process that finds the path gone makes a new file, and one that opened this file looks again
    // (`take`).
    _file: OwnFile,
    _held: File,
}

impl Lock {
    /// Takes the lock; absent: another process has it.
    pub(crate) fn take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let held = OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE).open(path)?;
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
