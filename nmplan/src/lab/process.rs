//! How does a program run inside a host, and how does it end?
//!
//! [`Process`] owns one child: it signals only that child, by its number, and kills it when dropped. What the
//! child itself started (for example the agent's device process) continues until its host or the lab ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::Child;

/// A program that runs inside a host; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(super) fn start(log: PathBuf, mut command: Command) -> io::Result<Self> {
        let output: File = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdout(output.try_clone()?).stderr(output);
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        Ok(Self { child, log })
    }

    /// Its number in the lab; `None` once its end has been waited for.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The file that takes what it prints.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it has printed so far; empty when the log cannot be read.
    #[must_use]
    pub fn printed(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal; nothing happens when it has ended.
    ///
    /// # Errors
    ///
    /// What kill(2) answered.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = self.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) else {
            return Ok(());
        };
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// What waitpid(2) answered.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills it by SIGKILL, and waits for its end.
    ///
    /// # Errors
    ///
    /// What kill(2) or waitpid(2) answered.
    pub async fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait().await
    }

    /// Asks it to end by SIGTERM, and kills it when it has not ended within `grace`.
    ///
    /// # Errors
    ///
    /// What kill(2) or waitpid(2) answered.
    pub async fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        match tokio::time::timeout(grace, self.wait()).await {
            Ok(ended) => ended,
            Err(_) => self.kill().await,
        }
    }
}
