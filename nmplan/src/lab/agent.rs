//! How does an agent run in the lab?
//!
//! `netclient` on a host of its own, with the directory and the `/etc/hosts` of that host. Its device process
//! outlives it, as on a real machine, and ends with the host.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};

use schema::scalars::NetworkName;

use super::{Error, Host, Process, Programs, Underlay, system};

/// An agent, on a host of its own.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    program: PathBuf,
    settings: Vec<(String, String)>,
    daemon: Option<Process>,
}

impl Agent {
    /// Makes the host; nothing runs on it yet.
    ///
    /// # Errors
    ///
    /// As [`Underlay::host`].
    pub async fn new(underlay: &Underlay, programs: &Programs, name: &str) -> Result<Self, Error> {
        let (host, program) = (underlay.host(name).await?, programs.netclient.clone());
        Ok(Self { host, program, settings: Vec::new(), daemon: None })
    }

    /// Changes a setting, an environment variable of `netclient`, for what is started from now on; an empty
    /// one is unset.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(other, _)| other != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(&self.program);
        command.args(arguments).envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
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
        self.host.run(self.command(arguments)).await
    }

    /// Registers with a token.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the agent's error output.
    pub async fn register(&self, token: &str) -> Result<(), Error> {
        run_or_error(&self.host, self.command(&["register", "-t", token])).await.map(drop)
    }

    /// Joins with a token; `more` are further arguments.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the agent's error output.
    pub async fn join(&self, token: &str, more: &[&str]) -> Result<(), Error> {
        let arguments = [&["join", "--daemon", "off", "-t", token], more].concat();
        run_or_error(&self.host, self.command(&arguments)).await.map(drop)
    }

    /// Leaves a network.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the agent's error output.
    pub async fn leave(&self, network: &NetworkName) -> Result<(), Error> {
        run_or_error(&self.host, self.command(&["leave", "--network", network.as_str()])).await.map(drop)
    }

    /// The status of its networks: the document of `netclient status --json`.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the agent's error output.
    pub async fn status(&self) -> Result<serde_json::Value, Error> {
        status(&self.host, self.command(&[])).await
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
        let mut command = self.command(&["daemon"]);
        command.envs(variables.iter().copied());
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

/// The status of the agent that a command of `netclient` selects on a host.
pub(super) async fn status(host: &Host, mut netclient: Command) -> Result<serde_json::Value, Error> {
    netclient.args(["status", "--json"]);
    let output = run_or_error(host, netclient).await?;
    serde_json::from_slice(&output.stdout).map_err(|error| Error::Refused(error.to_string()))
}

async fn run_or_error(host: &Host, command: Command) -> Result<Output, Error> {
    let output = host.run(command).await.map_err(system("run netclient"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
