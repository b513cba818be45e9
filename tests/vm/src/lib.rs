//! Runs a program in a guest: QEMU with Debian's cloud kernel, which has WireGuard, nftables and netem.
//!
//! [`base`] makes the guest's file system, once, from Debian packages; [`archive`] adds the programs of a
//! run; [`boot`] starts QEMU, streams what the guest prints and takes the verdict. The guest has no network
//! and no disk: what is to be in it is unpacked into its memory, and nothing of it is left when it ends.
//!
//! KVM is used where it works (see [`boot::accelerator`]), else QEMU's own emulation, several times slower.

mod archive;
mod base;
mod boot;

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Which system a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// The kernel, busybox, iproute2, nftables and wireguard-tools; process 1 is a shell script. Boots in
    /// some ten seconds without KVM.
    Small,
    /// Debian 12 with systemd, D-Bus and systemd-resolved. Boots in some thirty seconds without KVM.
    Systemd,
}

/// What a guest is to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program's path in the guest, and its arguments.
    pub command: Vec<String>,
    /// Environment variables beyond `PATH` and `HOME`.
    pub environment: Vec<(String, String)>,
    /// Files and directories of this host that the guest gets: where they are, and where they will be.
    /// Symbolic links are followed; programs bring the libraries that they are linked with, and come without
    /// their debug information.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// How long the guest may run in all.
    pub limit: Duration,
}

/// Why a guest did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that is needed is missing.
    #[error(
        "`{program}` is missing; install it with `apt-get install {package}`, or run `make guest`, which does"
    )]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The guest's file system could not be made.
    #[error("the guest's file system could not be made: {0}")]
    Base(String),
    /// The job ended with another status than 0; what the guest printed came before.
    #[error("`{command}` ended with status {status} in the guest")]
    Failed {
        /// The job's command.
        command: String,
        /// Its exit status.
        status: i32,
    },
    /// The guest was ended after the job's limit.
    #[error("`{command}` did not end within {} s in the guest", limit.as_secs())]
    TooLong {
        /// The job's command.
        command: String,
        /// The limit.
        limit: Duration,
    },
    /// The guest ended without a verdict.
    #[error("the guest ended before `{command}` did (QEMU: {status})")]
    Lost {
        /// The job's command.
        command: String,
        /// QEMU's exit status.
        status: String,
    },
    /// The host refused.
    #[error("cannot {attempt}: {source}")]
    Host {
        /// What was attempted, as an infinitive.
        attempt: String,
        /// What the host returned.
        source: io::Error,
    },
}

fn host(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { attempt: attempt.into(), source }
}

/// Whether a kernel with these parameters, as /proc/cmdline has them, is that of a guest.
#[must_use]
pub fn is_guest(parameters: &str) -> bool {
    parameters.split_whitespace().any(|parameter| parameter == "nm.guest")
}

/// Boots a guest, runs the job in it, prints what it prints, and ends it. One guest runs at a time; a further
/// call waits.
///
/// # Errors
///
/// See [`Error`]; whichever it is, no process or file of the guest is left.
pub fn run(system: System, job: &Job) -> Result<(), Error> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    boot::boot(&base::made(system)?, job)
}
