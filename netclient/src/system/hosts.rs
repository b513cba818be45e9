//! Names in `/etc/hosts`: one marked block for each interface, and nothing else.
//!
//! The file is replaced by a rename, which keeps its owner and mode; or written in place where it has another
//! name (a hard link), or is a mount of its own, as in containers, where a rename would fail with EBUSY.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schema::scalars::{DomainName, Name, NetworkName};
use schema::view::Resolution;
use schema::zone::hosts_line;

use crate::files::{self, Lock};

/// How long another agent of this host may take to write its names.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why names could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} {path}, so names of the network do not resolve")]
pub struct HostsError {
    attempt: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl HostsError {
    /// As a file that is read-only answers.
    pub(crate) fn read_only() -> Self {
        Self { attempt: "write", path: "/etc/hosts".into(), source: io::ErrorKind::ReadOnlyFilesystem.into() }
    }
}

/// The lines for the names of a network. An alias of a name outside of the network needs a resolver and has
/// no line.
pub fn lines(network: &NetworkName, names: &BTreeMap<&Name, Resolution>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, resolution) in names {
        match resolution {
            Resolution::Addresses(addresses) => {
                lines.extend(addresses.iter().map(|address| hosts_line(address, name, network)))
            }
            Resolution::Alias(_) => {}
        }
    }
    lines
}

/// The names without a line, each with the name outside of the network that it is an alias of.
pub fn aliases(names: BTreeMap<&Name, Resolution>) -> BTreeMap<Name, DomainName> {
    let alias = |(name, resolution): (&Name, Resolution)| match resolution {
        Resolution::Alias(of) => Some((name.clone(), of)),
        Resolution::Addresses(_) => None,
    };
    names.into_iter().filter_map(alias).collect()
}

/// Makes the block of an interface hold these lines; without lines there is no block. Blocks the caller. The
/// agents of one directory take turns by the file `turn`; what others write at the same moment is repaired at
/// the next reconciliation.
pub fn set(path: &Path, turn: &Path, interface: &str, lines: &[String]) -> Result<(), HostsError> {
    let failed = |attempt| move |source| HostsError { attempt, path: path.into(), source };
    let _turn = take_turn(turn).map_err(failed("lock"))?;
    // If it is a symbolic link, its target is written.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let before = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed("read")(error)),
    };
    let after = with_block(&before, interface, lines);
    if after == before { Ok(()) } else { replace(path, &after).map_err(failed("write")) }
}

fn take_turn(turn: &Path) -> io::Result<Lock> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match Lock::take(turn)? {
            Some(lock) => return Ok(lock),
            None if Instant::now() > deadline => return Err(io::ErrorKind::TimedOut.into()),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The text with the block of an interface replaced; whatever the rest is, it stays as it is. Each line of a
/// block says whose it is, so a block that was cut, moved or indented is healed, and no line of others is
/// taken for one of it.
fn with_block(text: &[u8], interface: &str, lines: &[String]) -> Vec<u8> {
    let (begin, end, tag) = (begin(interface), end(interface), tag(interface));
    let ours = |line: &[u8]| {
        let line = line.trim_ascii();
        line == begin.as_bytes() || line == end.as_bytes() || line.ends_with(tag.as_bytes())
    };
    let mut text: Vec<u8> =
        text.split_inclusive(|byte| *byte == b'\n').filter(|line| !ours(line)).collect::<Vec<_>>().concat();
    if lines.is_empty() {
        return text;
    }
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    let tagged = lines.iter().map(|line| format!("{line}{tag}"));
    for line in std::iter::once(begin.clone()).chain(tagged).chain([end.clone()]) {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    text
}

fn begin(interface: &str) -> String {
    format!("# {interface}: names kept by netclient, which overwrites these lines")
}

fn end(interface: &str) -> String {
    format!("# {interface}: end")
}

/// How each line of a block ends: a comment (hosts(5)).
fn tag(interface: &str) -> String {
    format!("\t# {interface}")
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let Ok(found) = fs::metadata(path) else { return files::write_whole(path, text, 0o644) };
    if found.nlink() > 1 {
        return write_in_place(path, text);
    }
    match files::write_whole(path, text, found.permissions().mode() & 0o777) {
        Ok(()) => std::os::unix::fs::chown(path, Some(found.uid()), Some(found.gid())),
        Err(error) if needs_place(&error) => write_in_place(path, text),
        Err(error) => Err(error),
    }
}

/// Whether only the file itself may be written: it is a mount, or its folder is not writable.
fn needs_place(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|it| [Errno::BUSY, Errno::XDEV, Errno::ROFS, Errno::ACCESS, Errno::PERM].contains(&it))
}

/// Overwrites the content, and truncates the rest only at the end: a full disk loses nothing.
fn write_in_place(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    file.write_all(text)?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str = "127.0.0.1\tlocalhost\n# a comment\n";

    fn changed(text: &str, interface: &str, lines: &[&str]) -> String {
        let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        String::from_utf8(with_block(text.as_bytes(), interface, &lines)).expect("it was text")
    }

    #[test]
    fn a_block_comes_changes_and_goes_and_the_rest_stays() {
        let one = changed(OTHERS, "nm-a", &["10.0.0.1\tx.a"]);
        assert!(one.starts_with(OTHERS) && one.contains("\n10.0.0.1\tx.a\t# nm-a\n"), "{one}");
        assert_eq!(changed(&one, "nm-a", &["10.0.0.1\tx.a"]), one);
        let two = changed(&one, "nm-b", &["10.1.0.1\ty.b"]);
        let moved = changed(&two, "nm-a", &["10.0.0.2\tx.a"]);
        assert!(moved.contains("10.1.0.1\ty.b") && !moved.contains("10.0.0.1"), "{moved}");
        assert_eq!(changed(&changed(&moved, "nm-a", &[]), "nm-b", &[]), OTHERS);
    }

    #[test]
    fn a_block_that_was_damaged_is_healed_and_takes_nothing_of_others_along() {
        let text = format!("{}\n{OTHERS}", begin("nm-a"));
        assert_eq!(changed(&text, "nm-a", &[]), OTHERS);
        let whole = changed(OTHERS, "nm-a", &["10.0.0.1\tx.a", "10.0.0.2\ty.a"]);
        let fresh = changed(OTHERS, "nm-a", &["10.0.0.3\tx.a"]);
        for damaged in [
            whole.replace(&format!("{}\n", end("nm-a")), ""),
            whole.replace(&end("nm-a"), &format!("  {}", end("nm-a"))),
            whole.replace(&format!("{}\n", begin("nm-a")), ""),
            whole.replace("10.0.0.2", "  10.0.0.2"),
            format!("{}\n{whole}", begin("nm-a")),
        ] {
            assert_eq!(changed(&damaged, "nm-a", &["10.0.0.3\tx.a"]), fresh, "{damaged}");
        }
        let between = whole.replace("10.0.0.2", "192.0.2.1\tprinter # nm-ab\n10.0.0.2");
        assert_eq!(changed(&between, "nm-a", &[]), format!("{OTHERS}192.0.2.1\tprinter # nm-ab\n"));
        assert_eq!(changed("no newline", "nm-a", &["x"]).lines().next(), Some("no newline"));
    }

    #[test]
    fn a_file_keeps_its_mode_its_place_and_what_is_not_text() {
        let folder = tempfile::tempdir().expect("a folder");
        let [path, link, turn] = ["hosts", "link", "turn"].map(|name| folder.path().join(name));
        let others = [OTHERS.as_bytes(), b"# caf\xe9\n"].concat();
        fs::write(&path, &others).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        set(&link, &turn, "nm-a", &["10.0.0.1\tx.a".to_owned()]).expect("it is set");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        assert!(fs::read(&path).expect("there").len() > others.len());
        set(&link, &turn, "nm-a", &[]).expect("it is set");
        assert_eq!(fs::read(&path).expect("there"), others);
        let inode = fs::metadata(&path).expect("there").ino();
        let second = folder.path().join("second");
        fs::hard_link(&path, &second).expect("linked");
        set(&path, &turn, "nm-a", &["10.0.0.1\tx.a".to_owned()]).expect("it is set");
        assert_eq!(fs::metadata(&second).expect("there").ino(), inode, "both names lead to the same file");
        assert_eq!(fs::read(&second).expect("there"), fs::read(&path).expect("there"));
        write_in_place(&path, b"short\n").expect("it is written");
        assert_eq!(fs::read(&path).expect("there"), b"short\n");
    }

    #[test]
    fn a_turn_that_is_held_for_ever_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let [path, turn] = ["hosts", "turn"].map(|name| folder.path().join(name));
        let _held = Lock::take(&turn).expect("locking works").expect("it is free");
        let start = Instant::now();
        assert!(set(&path, &turn, "nm-a", &["x".to_owned()]).is_err());
        assert!(start.elapsed() >= TIMEOUT);
    }
}
