//! Whether the kernel accepts packets on the agent's interface although another one leads back to their
//! sender.

use std::path::Path;
use std::{fs, io};

/// Packets of any sender that the host has a route to (`rp_filter` of Documentation/networking/ip-sysctl.rst;
/// the value for all interfaces counts as well, and the looser one wins).
const LOOSE: &str = "2";
/// Packets only of senders that the same interface leads to.
const STRICT: u8 = 1;

/// Makes the kernel accept packets on this interface from any sender with a route: two tunnels may lead to
/// servers of the same address. If it cannot be set, a kernel that is not strict does not need it.
pub fn set_loose(interface: &str) {
    let path = Path::new("/proc/sys/net/ipv4/conf").join(interface).join("rp_filter");
    let set = fs::read_to_string(&path).is_ok_and(|value| value.trim() == LOOSE);
    if !set && let Err(error) = fs::write(&path, LOOSE) {
        tracing::debug!(%error, path = %path.display(), "cannot set rp_filter; it stays as it is");
    }
}

/// Why marks are not heeded, although it matters.
#[derive(Debug, thiserror::Error)]
#[error(
    "net.ipv4.conf.all.src_valid_mark cannot be set, and reverse paths are filtered strictly on {}: what comes in there \
     from an address in a range of a network is lost, the answers of server and peers as well; set src_valid_mark to 1, \
     or rp_filter to 2 there, with sysctl", .interfaces.join(", ")
)]
pub struct MarksUnheeded {
    interfaces: Vec<String>,
    source: io::Error,
}

impl MarksUnheeded {
    /// The failure on a host in memory.
    pub(crate) fn on(interface: &str) -> Self {
        let source = io::ErrorKind::ReadOnlyFilesystem.into();
        Self { interfaces: vec![interface.to_owned()], source }
    }
}

/// Has the kernel look at a packet's mark when it checks where its sender is (`src_valid_mark`; the value for
/// all interfaces counts everywhere). It only ever loosens, and does nothing where no rule asks for marks, so
/// it is left on while a rule asks for one. Where it cannot be set and no interface checks strictly, that is no
/// failure.
pub fn heed_marks() -> Result<(), MarksUnheeded> {
    heed_marks_in(Path::new("/proc/sys/net/ipv4/conf"))
}

fn heed_marks_in(conf: &Path) -> Result<(), MarksUnheeded> {
    let path = conf.join("all/src_valid_mark");
    if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    let Err(source) = fs::write(&path, "1") else { return Ok(()) };
    let interfaces = strict(conf);
    if interfaces.is_empty() {
        tracing::debug!(error = %source, path = %path.display(), "marks are not heeded where senders are checked");
        return Ok(());
    }
    Err(MarksUnheeded { interfaces, source })
}

/// The interfaces on which packets are dropped unless their interface leads back to their sender: of the
/// value for all and its own the higher one counts.
fn strict(conf: &Path) -> Vec<String> {
    let value = |name: &str| {
        let text = fs::read_to_string(conf.join(name).join("rp_filter")).unwrap_or_default();
        text.trim().parse::<u8>().unwrap_or(0)
    };
    let all = value("all");
    let listed = fs::read_dir(conf).into_iter().flatten().flatten();
    let names = listed.filter_map(|entry| entry.file_name().into_string().ok());
    let mut strict: Vec<_> = names
        .filter(|name| !matches!(&**name, "all" | "default" | "lo") && value(name).max(all) == STRICT)
        .collect();
    strict.sort();
    strict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_that_are_not_heeded_matter_where_reverse_paths_are_filtered_strictly() {
        // By the values for all, eth0 and wg0: on which interfaces it matters.
        for (all, eth0, wg0, strict) in
            [(0, 0, 0, ""), (0, 1, 2, "eth0"), (1, 0, 2, "eth0"), (2, 1, 1, ""), (1, 1, 1, "eth0, wg0")]
        {
            let folder = tempfile::tempdir().expect("a folder");
            for (name, value) in [("all", all), ("default", 1), ("lo", 1), ("eth0", eth0), ("wg0", wg0)] {
                fs::create_dir(folder.path().join(name)).expect("made");
                fs::write(folder.path().join(name).join("rp_filter"), format!("{value}\n")).expect("written");
            }
            let mark = folder.path().join("all/src_valid_mark");
            // A folder cannot be written, whoever tries.
            fs::create_dir(&mark).expect("made");
            let outcome = heed_marks_in(folder.path()).map_err(|error| error.to_string());
            match strict {
                "" => assert_eq!(outcome, Ok(())),
                strict => assert!(outcome.is_err_and(|why| why.contains(&format!("strictly on {strict}:")))),
            }
            fs::remove_dir(&mark).expect("removed");
            heed_marks_in(folder.path()).expect("it can be set");
            assert_eq!(fs::read_to_string(&mark).expect("written"), "1");
        }
    }
}
