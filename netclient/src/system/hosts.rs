//! Names in `/etc/hosts`: one marked block for each interface, and not a byte beside it.
//!
//! The file is replaced by a rename, or written in place where it is a mount of its own, as in containers, and a rename
//! would fail with EBUSY.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imbl::OrdMap;
use rustix::fs::{FlockOperation, flock};
use schema::scalars::{Name, NetworkName};
use schema::view::Resolution;

/// Why names could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} {path}, so names of the network do not resolve")]
pub struct HostsError {
    attempt: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The lines for the names of a network. A name that stands for one outside of the network needs a resolver and has no
/// line.
pub fn lines(network: &NetworkName, names: &OrdMap<Name, Arc<Resolution>>) -> Vec<String> {
    let line = |address: &IpAddr, name: &Name| format!("{address}\t{name}.{network}");
    let mut lines = Vec::new();
    for (name, resolution) in names {
        match &**resolution {
            Resolution::Addresses(addresses) => lines.extend(addresses.iter().map(|address| line(address, name))),
            Resolution::Alias(_) => {}
        }
    }
    lines
}

/// Makes the block of an interface hold these lines; without lines there is no block.
pub fn set(path: &Path, interface: &str, lines: &[String]) -> Result<(), HostsError> {
    let failed = |attempt| move |source| HostsError { attempt, path: path.into(), source };
    let folder = path.parent().unwrap_or(Path::new("/"));
    // Agents of one host take turns; the lock ends with the file.
    let turn = File::open(folder).map_err(failed("open the folder of"))?;
    flock(&turn, FlockOperation::LockExclusive).map_err(|error| failed("lock the folder of")(error.into()))?;
    let before = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed("read")(error)),
    };
    let after = with_block(&before, interface, lines);
    if after == before { Ok(()) } else { replace(path, &after).map_err(failed("write")) }
}

/// The text with the block of an interface replaced.
fn with_block(text: &str, interface: &str, lines: &[String]) -> String {
    let (begin, end) = (begin(interface), end(interface));
    let mut rest: Vec<&str> = text.split_inclusive('\n').collect();
    let place = |rest: &[&str], mark: &str| rest.iter().position(|line| line.trim_end() == mark);
    while let Some(from) = place(&rest, &begin) {
        // A block that somebody cut off has lost its end; the lines behind it may be anybody's.
        let to = place(&rest[from..], &end).map_or(from, |length| from + length);
        rest.drain(from..=to);
    }
    let mut text = rest.concat();
    if lines.is_empty() {
        return text;
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    [&[begin], lines, &[end]].concat().iter().for_each(|line| {
        text.push_str(line);
        text.push('\n');
    });
    text
}

fn begin(interface: &str) -> String {
    format!("# {interface}: names kept by netclient, which overwrites this block")
}

fn end(interface: &str) -> String {
    format!("# {interface}: end")
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mode = fs::metadata(path).map_or(0o644, |found| found.permissions().mode() & 0o777);
    let mut new = path.as_os_str().to_owned();
    new.push(".netclient");
    let new = PathBuf::from(new);
    let write = || {
        let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(&new)?;
        // Whatever the umask of this process leaves of it.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    match write() {
        Ok(()) => Ok(()),
        Err(_) => {
            let _ = fs::remove_file(&new);
            fs::write(path, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str = "127.0.0.1\tlocalhost\n# a comment\n";

    fn block(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_block_comes_changes_and_goes_and_the_rest_stays() {
        let one = with_block(OTHERS, "nm-a", &block(&["10.0.0.1\tx.a"]));
        assert!(one.starts_with(OTHERS) && one.contains("\n10.0.0.1\tx.a\n"), "{one}");
        assert_eq!(with_block(&one, "nm-a", &block(&["10.0.0.1\tx.a"])), one);
        let two = with_block(&one, "nm-b", &block(&["10.1.0.1\ty.b"]));
        let changed = with_block(&two, "nm-a", &block(&["10.0.0.2\tx.a"]));
        assert!(changed.contains("10.1.0.1\ty.b") && !changed.contains("10.0.0.1"), "{changed}");
        let gone = with_block(&with_block(&changed, "nm-a", &[]), "nm-b", &[]);
        assert_eq!(gone, OTHERS);
    }

    #[test]
    fn a_block_that_was_cut_off_takes_nothing_of_others_along() {
        let text = format!("{}\n{OTHERS}", begin("nm-a"));
        assert_eq!(with_block(&text, "nm-a", &[]), OTHERS);
        assert_eq!(with_block("no newline", "nm-a", &block(&["x"])).lines().next(), Some("no newline"));
    }

    #[test]
    fn a_file_keeps_its_mode() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hosts");
        fs::write(&path, OTHERS).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        set(&path, "nm-a", &block(&["10.0.0.1\tx.a"])).expect("it is set");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        set(&path, "nm-a", &[]).expect("it is set");
        assert_eq!(fs::read_to_string(&path).expect("there"), OTHERS);
    }
}
