//! Takes a server off its host: everything that outlives the process and stands outside of its directory, and
//! nothing in the directory. What may be the server's and is not certainly so is kept, and said.
//!
//! Tunnels outlive the server on purpose, so that a restart costs no packet; whoever does not want a restart
//! removes them here. The parts know what they made: [`comms`] the tunnels to agents, [`client`] the networks
//! that this host is a node of. What is kept on the disk brings all of it back at the next start.

use std::fmt;
use std::path::{Path, PathBuf};

use netclient::agent::Down;
use schema::text::word;

use crate::client::{self, OwnHostError};
use crate::comms::{self, TunnelsUnavailable};
use crate::identity::{DataDir, IdentityError};

/// Why the server was not taken off the host, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// It runs.
    #[error("a server runs on {0}; stop it first (systemctl stop nmserver), or set DATA_DIR")]
    Running(String),
    /// The directory is not usable.
    #[error(transparent)]
    Directory(#[from] IdentityError),
    /// The tunnels to agents stay.
    #[error("the tunnels to agents were not removed completely")]
    Tunnels(#[from] TunnelsUnavailable),
    /// The networks of this host stay.
    #[error("the networks of this host were not removed completely")]
    OwnHost(#[from] OwnHostError),
}

/// What was found of a server on a host.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// No server has started in this directory.
    NoServer(PathBuf),
    /// One had.
    Down {
        /// What was removed, and what was kept and why.
        down: Down,
        /// Its directory, which is left as it is.
        left: PathBuf,
    },
}

/// Removes what the server of a directory left on this host. Done again it removes nothing. `down` has what
/// became of each part, also of those before an error, which keeps none of the others.
pub async fn run(path: &Path, down: &mut Down) -> Result<Report, DownError> {
    let Some(directory) = DataDir::existing(path)? else { return Ok(Report::NoServer(path.into())) };
    let _lock = directory.lock()?.ok_or_else(|| DownError::Running(path.display().to_string()))?;
    let tunnels = comms::remove(&directory, down).await;
    client::take_down(&directory, down).await?;
    tunnels?;
    Ok(Report::Down { down: down.clone(), left: path.into() })
}

/// Writes what was removed, and what was kept, a line each.
pub fn lines(down: &Down, f: &mut impl fmt::Write) -> fmt::Result {
    down.removed.iter().try_for_each(|line| writeln!(f, "Removed {line}."))?;
    // It may end with a command, which is to be copied.
    down.kept.iter().try_for_each(|line| writeln!(f, "Kept {line}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (down, left) = match self {
            Self::NoServer(directory) => {
                return writeln!(
                    f,
                    "Nothing was removed: no server has started in {}. If one kept its data elsewhere, set DATA_DIR.",
                    directory.display()
                );
            }
            Self::Down { down, left } => (down, left),
        };
        // The command is to be copied, and may be run in any directory.
        let left = std::path::absolute(left).unwrap_or_else(|_| left.clone());
        let left = word(&left.display().to_string());
        lines(down, f)?;
        if down == &Down::default() {
            writeln!(
                f,
                "Nothing was removed: no device, route or packet filter of this server is on this host."
            )?;
        }
        writeln!(
            f,
            "\nLeft as it is: {left}, with the database, keys and tokens; `nmserver serve` continues with it. To delete all \
             of that for good, so that every host has to join another server anew:\n\n    rm -r {left}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_without_a_server_is_left_alone_and_a_running_one_is_not_taken_down() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("data");
        let run = async || run(&path, &mut Down::default()).await;
        let report = run().await.expect("nothing is there");
        assert!(report.to_string().contains("no server has started in") && !path.exists(), "{report}");
        let directory = DataDir::open(&path).expect("it opens");
        directory.write(crate::identity::DATABASE, b"content").expect("written");
        let lock = directory.lock().expect("it locks");
        let refused = run().await.expect_err("it runs").to_string();
        assert!(refused.contains("systemctl stop nmserver"), "{refused}");
        drop(lock);
        let report = run().await.expect("it does not run").to_string();
        assert!(
            report.starts_with("Nothing was removed: no device") && report.contains("rm -r /"),
            "{report}"
        );
        let mut left: Vec<_> =
            path.read_dir().expect("it is there").flatten().map(|it| it.file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", "nmserver.db"], "nothing is made");
    }

    #[tokio::test]
    async fn what_was_removed_before_an_error_is_said_too() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("data");
        let directory = DataDir::open(&path).expect("it opens");
        directory.write(crate::identity::DATABASE, b"content").expect("written");
        std::fs::create_dir(directory.file("client")).expect("a directory");
        directory.write("client/netclient.toml", b"no_such_setting = 1").expect("written");
        let mut down = Down { removed: vec!["a".into()], kept: Vec::new() };
        let error = run(&path, &mut down).await.expect_err("a setting is wrong");
        assert!(matches!(error, DownError::OwnHost(_)), "{error}");
        let mut text = String::new();
        lines(&down, &mut text).expect("written");
        assert_eq!(text, "Removed a.\n");
    }

    #[test]
    fn what_is_kept_is_said_with_its_reason_and_is_not_nothing() {
        let down = Down { removed: vec!["a".into()], kept: vec!["the interface b: why".into()] };
        let report = Report::Down { down: down.clone(), left: "/srv".into() }.to_string();
        assert!(report.starts_with("Removed a.\nKept the interface b: why\n\nLeft as it is"), "{report}");
        let report = Report::Down { down: Down { removed: Vec::new(), ..down }, left: "/srv".into() };
        let report = report.to_string();
        assert!(report.starts_with("Kept the interface b: why\n\n"), "{report}");
    }

    #[test]
    fn the_command_that_deletes_names_one_directory_wherever_it_is_run() {
        let here = std::env::current_dir().expect("a directory");
        let command = |left: &str| {
            let report = Report::Down { down: Down::default(), left: left.into() }.to_string();
            report.lines().last().expect("a line").trim_start().to_owned()
        };
        assert_eq!(command("/srv/my data"), "rm -r '/srv/my data'");
        assert_eq!(command("data"), format!("rm -r {}", word(&here.join("data").display().to_string())));
    }
}
