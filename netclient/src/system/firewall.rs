//! The agent's own tables of nftables: each is replaced whole or not at all, and no other is changed.
//!
//! One run of `nft -f -` is one transaction in the kernel (nft(8)): a packet meets the rules before or those
//! after, never none. It acts in the network namespace of the calling thread, needs CAP_NET_ADMIN, and blocks
//! until it ends; an async caller puts it on a thread that may block. What the rules say is decided
//! elsewhere.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::own_tables::OwnTables;

/// Where `nft` is if PATH does not have it: services and cron often have one without these.
const USUAL: [&str; 2] = ["/usr/sbin", "/sbin"];
/// How much of what nft printed is shown, in characters.
const LONGEST_REASON: usize = 200;

/// Why a table could not be changed; it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The program `nft` is neither in a folder of PATH, nor where it usually is.
    #[error("nft(8) not found: install nftables (apt install nftables)")]
    Missing,
    /// nft, or the kernel, refused.
    #[error("nftables refused the table {table}: {reason}")]
    Refused {
        /// The table.
        table: String,
        /// The first line that nft printed.
        reason: String,
    },
    /// nft is there and could not be run.
    #[error("cannot run {}", path.display())]
    Broken {
        /// Where it is.
        path: PathBuf,
        /// What the host returned.
        #[source]
        source: io::Error,
    },
}

impl FirewallError {
    /// A table that others changed, or that was never set: it has to be replaced whole.
    pub fn drifted(table: &str) -> Self {
        Self::Refused { table: table.to_owned(), reason: "it is not as it was set".to_owned() }
    }
}

/// Makes or replaces the table `inet TABLE` with these chains, written in nft(8)'s language; both must come
/// from this program and never from a user or a server, since they are not quoted. Blocks the caller.
/// Counters and sets of the table begin anew. `own` is shared with whoever watches the tables, if anybody does.
pub fn load(own: &OwnTables, table: &str, chains: &str) -> Result<(), FirewallError> {
    run(own, table, &script(&without(table), table, chains))
}

/// The same, but what the sets of a table that is there hold stays in them.
pub fn load_over(own: &OwnTables, table: &str, chains: &str) -> Result<(), FirewallError> {
    run(own, table, &script(&format!("table inet {table} {{}}\nflush table inet {table}\n"), table, chains))
}

/// Whether the table `inet TABLE` is there; not where there is no nft(8), which alone makes one. Blocks the
/// caller.
pub fn is_there(table: &str) -> Result<bool, FirewallError> {
    let Some(path) = find(env::var_os("PATH").as_deref(), Path::is_file) else { return Ok(false) };
    let mut nft = Command::new(&path);
    nft.args(["list", "table", "inet", table]).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null());
    let output = nft.output().map_err(|source| FirewallError::Broken { path, source })?;
    if output.status.success() {
        return Ok(true);
    }
    // strerror(3) of ENOENT.
    if String::from_utf8_lossy(&output.stderr).contains("No such file or directory") {
        return Ok(false);
    }
    Err(FirewallError::Refused { table: table.to_owned(), reason: reason(&output) })
}

/// Changes the table `inet TABLE` by commands of nft(8), all or none of them. Blocks the caller.
pub fn change(own: &OwnTables, table: &str, commands: &str) -> Result<(), FirewallError> {
    run(own, table, commands)
}

/// The chains and rules of the table `inet TABLE` as nft lists them with their handles, which tell a table
/// from one that was loaded later, and without the elements of sets; absent: there is no such table, or it
/// cannot be asked for. Blocks the caller.
pub fn structure(table: &str) -> Option<String> {
    let path = find(env::var_os("PATH").as_deref(), Path::is_file)?;
    let output = Command::new(path)
        .args(["-t", "-a", "list", "table", "inet", table])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| without_counters(&String::from_utf8_lossy(&output.stdout)))
}

/// What counters have counted differs from one listing to the next.
fn without_counters(listing: &str) -> String {
    let mut words = listing.split(' ').peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word == "packets" || word == "bytes" {
            words.next();
        }
    }
    kept.join(" ")
}

/// Whether this host has nft(8).
pub fn is_available() -> bool {
    find(env::var_os("PATH").as_deref(), Path::is_file).is_some()
}

/// Removes the table `inet TABLE`; it is not an error if it is absent. Blocks the caller.
pub fn remove(own: &OwnTables, table: &str) -> Result<(), FirewallError> {
    run(own, table, &without(table))
}

/// A table after what comes before it, in one transaction.
fn script(before: &str, table: &str, chains: &str) -> String {
    format!("{before}table inet {table} {{\n{}\n}}\n", chains.trim_end())
}

/// A table that is absent cannot be deleted, and one that is there may be made again: so it is made first.
fn without(table: &str) -> String {
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

fn run(own: &OwnTables, table: &str, script: &str) -> Result<(), FirewallError> {
    let path = find(env::var_os("PATH").as_deref(), Path::is_file).ok_or(FirewallError::Missing)?;
    let output =
        feed(own, Command::new(&path), script).map_err(|source| FirewallError::Broken { path, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(FirewallError::Refused { table: table.to_owned(), reason: reason(&output) })
}

/// The first `nft` that exists. Relative folders in PATH are ignored: root must not run what is in the
/// working folder.
fn find(path: Option<&OsStr>, exists: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let named = path.into_iter().flat_map(env::split_paths).filter(|folder| folder.is_absolute());
    named.chain(USUAL.map(PathBuf::from)).map(|folder| folder.join("nft")).find(|file| exists(file))
}

fn feed(own: &OwnTables, mut nft: Command, script: &str) -> io::Result<Output> {
    let mut child =
        nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // The kernel gives the one socket of a process the process's number (netlink(7)), and nft opens it before
    // it has read what to do.
    let socket = child.id();
    own.begin(socket);
    // Dropped at once, which ends what nft reads; an nft that ended before it read everything reports why
    // itself.
    let written = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(script.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        own.abandon(socket);
    }
    match written {
        Err(error) if output.status.success() => Err(error),
        _ => Ok(output),
    }
}

fn reason(Output { status, stderr, .. }: &Output) -> String {
    let text = String::from_utf8_lossy(stderr);
    match text.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => line.chars().take(LONGEST_REASON).collect(),
        None => format!("it printed nothing and ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_table_is_replaced_in_one_transaction() {
        let chains = "  chain in {\n    type filter hook input priority filter; policy accept;\n  }\n";
        let expected = "table inet nm-comms {}\n\
                        delete table inet nm-comms\n\
                        table inet nm-comms {\n  \
                          chain in {\n    type filter hook input priority filter; policy accept;\n  }\n\
                        }\n";
        assert_eq!(script(&without("nm-comms"), "nm-comms", chains), expected);
    }

    #[test]
    fn removing_a_table_makes_it_first_so_that_an_absent_one_is_not_an_error() {
        assert_eq!(without("nm-comms"), "table inet nm-comms {}\ndelete table inet nm-comms\n");
    }

    #[test]
    fn counters_do_not_count_as_a_difference() {
        let listing = |packets: u32| format!("ip daddr @own4 counter packets {packets} bytes 84 drop\n  }}");
        assert_eq!(without_counters(&listing(1)), without_counters(&listing(2)));
        assert_ne!(without_counters(&listing(1)), without_counters("ip daddr @own4 accept\n  }"));
    }

    #[test]
    fn nft_is_looked_for_in_path_and_then_where_it_usually_is() {
        let path = Some(OsStr::new("/opt/bin:.::bin:/usr/bin"));
        for (there, found) in [
            (&["/opt/bin/nft", "/usr/bin/nft", "/usr/sbin/nft"][..], Some("/opt/bin/nft")),
            (&["./nft", "bin/nft", "nft", "/usr/bin/nft"], Some("/usr/bin/nft")),
            (&["/usr/sbin/nft", "/sbin/nft"], Some("/usr/sbin/nft")),
            (&["/sbin/nft"], Some("/sbin/nft")),
            (&["./nft", "bin/nft", "nft"], None),
        ] {
            let exists = |file: &Path| there.iter().any(|one| Path::new(one) == file);
            assert_eq!(find(path, exists), found.map(PathBuf::from), "{there:?}");
        }
        assert_eq!(find(None, |file| file == Path::new("/sbin/nft")), Some(PathBuf::from("/sbin/nft")));
    }

    #[test]
    fn a_refusal_is_one_line() {
        let said = |stderr: &str| {
            let (status, stderr) = (ExitStatus::from_raw(1 << 8), stderr.as_bytes().to_vec());
            reason(&Output { status, stdout: Vec::new(), stderr })
        };
        let syntax = "\n/dev/stdin:1:12-12: Error: syntax error\ntable inet 9x {}\n           ^\n";
        assert_eq!(said(syntax), "/dev/stdin:1:12-12: Error: syntax error");
        assert_eq!(said(&"é".repeat(300)).chars().count(), LONGEST_REASON);
        assert_eq!(said(" \n"), "it printed nothing and ended with exit status: 1");
    }

    /// A shell in the place of nft.
    fn stand_in(does: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", does, "nft"]);
        shell
    }

    #[test]
    fn the_whole_script_is_passed_on_standard_input() {
        let folder = tempfile::tempdir().expect("a folder is made");
        let seen = folder.path().join("seen");
        let nft = stand_in(&format!("echo \"$@\" > '{0}' && cat >> '{0}'", seen.display()));
        // More than a pipe holds.
        let long = "# a comment\n".repeat(20_000);
        assert!(feed(&OwnTables::default(), nft, &long).expect("it runs").status.success());
        assert_eq!(std::fs::read_to_string(seen).expect("it was written"), format!("-f -\n{long}"));
    }

    #[test]
    fn a_program_that_ends_before_it_read_everything_still_says_why() {
        let nft = stand_in("echo no room >&2; exit 1");
        let output = feed(&OwnTables::default(), nft, &"# a comment\n".repeat(20_000)).expect("it runs");
        assert!(!output.status.success());
        assert_eq!(reason(&output), "no room");
    }
}
