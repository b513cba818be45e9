//! How does an agent run in the lab?
//!
//! `netclient` on a host of its own, with the directory and the `/etc/hosts` of that host. Its device process
//! outlives it, as on a real machine, and ends with the host.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::{Error, Host, Process, Programs, Underlay, system};

/// An agent, on a host of its own.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    program: PathBuf,
    daemon: Option<Process>,
}

impl Agent {
    /// Makes the host; nothing runs on it yet.
    ///
    /// # Errors
    ///
    /// As [`Underlay::host`].
    pub async fn new(underlay: &Underlay, programs: &Programs, name: &str) -> Result<Self, Error> {
        Ok(Self { host: underlay.host(name).await?, program: programs.netclient.clone(), daemon: None })
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs a command of the agent to its end.
    ///
    /// # Errors
    ///
    /// When the program cannot be executed.
    pub async fn netclient(&self, arguments: &[&str]) -> io::Result<Output> {
        run(&self.host, &self.program, arguments).await
    }

    /// Registers with a token.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the agent's error output.
    pub async fn register(&self, token: &str) -> Result<(), Error> {
        run_or_error(&self.host, &self.program, &["register", "-t", token]).await.map(drop)
    }

    /// Joins with a token; `more` are further arguments.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the agent's error output.
    pub async fn join(&self, token: &str, more: &[&str]) -> Result<(), Error> {
        let arguments = [&["join", "--daemon", "off", "-t", token], more].concat();
        run_or_error(&self.host, &self.program, &arguments).await.map(drop)
    }

    /// The status of its networks: the document of `netclient status --json`.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the agent's error output.
    pub async fn status(&self) -> Result<serde_json::Value, Error> {
        status(&self.host, &self.program, &[]).await
    }

    /// Starts the daemon, unless it is running; `variables` are environment variables of `netclient`.
    ///
    /// # Errors
    ///
    /// When the program cannot be executed.
    pub fn start_daemon(&mut self, variables: &[(&str, &str)]) -> Result<(), Error> {
        if self.daemon.as_mut().is_some_and(Process::is_running) {
            return Ok(());
        }
        let mut command = self.host.command(&self.program);
        command.arg("daemon").envs(variables.iter().copied());
        self.daemon = Some(self.host.start("netclient", command).map_err(system("start netclient"))?);
        Ok(())
    }

    /// The daemon; none before it is started and after it is killed.
    pub fn daemon(&mut self) -> Option<&mut Process> {
        self.daemon.as_mut()
    }

    /// Kills the daemon by SIGKILL; the device process lives on.
    ///
    /// # Errors
    ///
    /// What kill(2) answered.
    pub async fn kill_daemon(&mut self) -> io::Result<()> {
        if let Some(mut process) = self.daemon.take() {
            process.kill().await?;
        }
        Ok(())
    }
}

/// The status of an agent on a host; `arguments` select the agent.
pub(super) async fn status(
    host: &Host,
    program: &Path,
    arguments: &[&str],
) -> Result<serde_json::Value, Error> {
    let output = run_or_error(host, program, &[arguments, &["status", "--json"]].concat()).await?;
    serde_json::from_slice(&output.stdout).map_err(|error| Error::Refused(error.to_string()))
}

async fn run(host: &Host, program: &Path, arguments: &[&str]) -> io::Result<Output> {
    let mut command = host.command(program);
    command.args(arguments);
    host.run(command).await
}

async fn run_or_error(host: &Host, program: &Path, arguments: &[&str]) -> Result<Output, Error> {
    let output = run(host, program, arguments).await.map_err(system("run netclient"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
