//! How does the control plane run in the lab?
//!
//! `nmserver` with SQLite, on a host of its own, with a data directory that exists as long as the lab. It may
//! be killed and restarted. Its host is a node of the networks that declare [`OWN_NODE`].

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use schema::api::StatusDocument;
use schema::world::World;
use tokio::time::Instant;

use super::roster::OWN_NODE;
use super::{Error, Host, Process, Programs, Underlay, agent, system};
use crate::control::{ControlError, ControlPlane, Rest};
use crate::environment::Environment;

/// The variables of the caller that the server is given as well.
const KEPT: [&str; 5] = ["HOME", "LANG", "PATH", "TMPDIR", "USER"];

/// How long the server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const REST: u16 = 8081;

/// The control plane, on a host of its own.
#[derive(Debug)]
pub struct Server {
    host: Host,
    program: PathBuf,
    netclient: PathBuf,
    settings: Vec<(String, String)>,
    process: Option<Process>,
    starts: usize,
}

impl Server {
    /// Makes the host and starts the server; `settings` are environment variables of `nmserver`.
    ///
    /// # Errors
    ///
    /// When the host cannot be made, or the server does not start within 20 seconds.
    pub async fn start(
        underlay: &Underlay,
        programs: &Programs,
        settings: &[(&str, &str)],
    ) -> Result<Self, Error> {
        // No node can have this name.
        Self::start_on(underlay.host("the_server").await?, programs, settings).await
    }

    /// The same on an existing host.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub async fn start_on(host: Host, programs: &Programs, settings: &[(&str, &str)]) -> Result<Self, Error> {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let Programs { nmserver: program, netclient, nmplan: _ } = programs.clone();
        let mut server = Self { host, program, netclient, settings, process: None, starts: 0 };
        server.serve().await?;
        Ok(server)
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The URL of its REST API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}:{REST}", self.host.ipv4())
    }

    /// Its data directory, which the lab and all hosts see at this path.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.host.directory().join("data")
    }

    /// The status of its own host as a node: the document of `netclient status --json`, without networks
    /// while it is in none.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the agent's error output.
    pub async fn status(&self) -> Result<serde_json::Value, Error> {
        let mut netclient = self.host.command(&self.netclient);
        netclient.arg("--directory").arg(self.data().join("client"));
        agent::status(&self.host, netclient).await
    }

    /// Everything that it knows.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with why it does not answer.
    pub async fn world(&self) -> Result<World, Error> {
        let document = self.rest()?.world().await.map_err(|error| unanswered(&error))?;
        document.world().map_err(|report| {
            Error::Refused(format!("the world of nmserver cannot be read: {} problems", report.len()))
        })
    }

    /// The state of the nodes.
    ///
    /// # Errors
    ///
    /// As [`Server::world`].
    pub async fn nodes(&self) -> Result<StatusDocument, Error> {
        self.rest()?.status().await.map_err(|error| unanswered(&error))
    }

    fn rest(&self) -> Result<Rest, Error> {
        // It fails only if a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let environment = self.environment().map(|(name, value)| (name.to_owned(), value));
        Rest::new(Some(&self.url()), &Environment::from_iter(environment)).map_err(|error| unanswered(&error))
    }

    /// The environment variables with which nmplan reaches it as an admin.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 3] {
        let file = |name| self.data().join(name).display().to_string();
        [
            ("NMPLAN_SERVER", self.url()),
            ("NMPLAN_TOKEN_FILE", file("admin.token")),
            ("NMPLAN_CA", file("ca.pem")),
        ]
    }

    /// The id of its process; none while it is not running.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::id)
    }

    /// Its process; none while it is not running.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Changes a setting, for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(other, _)| other != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Kills the server by SIGKILL.
    ///
    /// # Errors
    ///
    /// What kill(2) answered.
    pub async fn kill(&mut self) -> io::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Starts the server, unless it is running, and waits until it serves.
    ///
    /// # Errors
    ///
    /// [`Error::NotServing`] when it ended, or does not start within 20 seconds.
    pub async fn serve(&mut self) -> Result<(), Error> {
        if self.process.as_mut().is_some_and(Process::is_running) {
            return Ok(());
        }
        let mut command = self.host.command(&self.program);
        // The settings of a server of the caller's are not the lab's: nmserver's variables have no prefix of their own.
        let kept = |name: &str| {
            ["RUST_", "NETCLIENT_"].iter().any(|prefix| name.starts_with(prefix)) || KEPT.contains(&name)
        };
        let of_caller = std::env::vars_os().map(|(name, _)| name);
        of_caller.filter(|name| !name.to_str().is_some_and(kept)).for_each(|name| {
            command.env_remove(name);
        });
        command.env("DATA_DIR", self.data()).env("SERVER_HOST", self.host.ipv4().to_string());
        command.env("CLIENT_NAME", OWN_NODE).env_remove("CLIENT_MODE");
        // Hosts of the lab have no name servers.
        command.env("DNS_FORWARD", "off");
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        let process = self.host.start("nmserver", command).map_err(system("start nmserver"))?;
        let process = self.process.insert(process);
        self.starts += 1;
        let deadline = Instant::now() + START_TIMEOUT;
        // The last line of each start before it serves; the log keeps those of all starts.
        while process.printed().matches(" serving ").count() < self.starts {
            if Instant::now() > deadline || !process.is_running() {
                return Err(Error::NotServing(process.printed()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

fn unanswered(error: &ControlError) -> Error {
    Error::Refused(format!("nmserver does not answer the lab: {error}"))
}
