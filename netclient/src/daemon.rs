//! The daemon: a driver for each network, whoever asks for those that the host waits to be let into, and a socket
//! by which commands reach it.
//!
//! A network belongs to the process that has its lock. A command that finds the lock taken asks the daemon
//! instead ([`ask`]); one that joined or left a network makes the daemon look again. A message is one line of
//! JSON, and so is its answer.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as Blocking;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schema::scalars::NetworkName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::agent::member::Member;
use crate::agent::{Agent, AgentError, DriverStatus, JoinOutcome, error_chain};
use crate::backoff::Backoff;
use crate::directory::Directory;
use crate::driver::{Command, Driver, End, Request, ended};
use crate::files::{self, Lock, OwnFile, lock_path};
use crate::systemd;

/// How long a command waits for the daemon, which may have to make two calls and configure a device.
const TIMEOUT: Duration = Duration::from_secs(45);
/// How long a driver may take to end.
const END: Duration = Duration::from_secs(5);
/// How often the daemon looks for networks that another process had locked.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// What a command asks the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DaemonRequest {
    /// Look for networks that were joined.
    Rescan,
    /// How each network is.
    Status,
    /// Check in now.
    CheckIn(NetworkName),
    /// Get the whole View now.
    Pull(NetworkName),
    /// Leave.
    Leave {
        /// The network.
        network: NetworkName,
        /// Whether to leave even if the server cannot be reached.
        force: bool,
    },
}

/// What the daemon answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DaemonResponse {
    /// It was done; whether anything was new.
    Done(bool),
    /// How each network is.
    Status(BTreeMap<NetworkName, DriverStatus>),
    /// It was not done.
    Failed(String),
}

/// Asks the daemon of a directory; absent: none runs.
pub fn ask(directory: &Directory, question: &DaemonRequest) -> io::Result<Option<DaemonResponse>> {
    let mut stream = match Blocking::connect(directory.agent_socket()) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(Some(serde_json::from_str(&answer)?))
}

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon runs.
    #[error("another netclient daemon runs with {0}; stop it first, or set NETCLIENT_DIR")]
    Running(PathBuf),
    /// Its socket could not be created.
    #[error("cannot listen on {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps every network of the agent current until `shutdown` becomes true. The tunnels stay when it ends.
pub async fn run(agent: Agent, mut shutdown: watch::Receiver<bool>) -> Result<(), DaemonError> {
    let path = agent.directory.agent_socket();
    let (listener, _file, _lock) = listen(&path)?;
    let daemon = Arc::new(Daemon {
        agent,
        drivers: Mutex::default(),
        waiting: Mutex::default(),
        joined: Notify::new(),
        shutdown: shutdown.clone(),
    });
    let mut poll = tokio::time::interval(POLL_INTERVAL);
    // Commands reach it; its networks come up whether or not a server answers.
    systemd::ready();
    loop {
        tokio::select! {
            _ = poll.tick() => daemon.rescan().await,
            () = daemon.joined.notified() => daemon.rescan().await,
            client = listener.accept() => match client {
                Ok((client, _)) => drop(tokio::spawn(Arc::clone(&daemon).serve(client))),
                Err(error) => {
                    // Most likely there are no file descriptors left: others must end before one more can
                    // begin.
                    tracing::warn!(%error, "cannot accept a command");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = ended(&mut shutdown) => break,
        }
    }
    for (_, task) in std::mem::take(&mut *daemon.waiting.lock().await) {
        let _ = tokio::time::timeout(END, task).await;
    }
    // Each ends between two steps, never within one.
    for (_, driver) in std::mem::take(&mut *daemon.drivers.lock().await) {
        let _ = tokio::time::timeout(END, driver.task).await;
    }
    Ok(())
}

fn listen(path: &PathBuf) -> Result<(UnixListener, OwnFile, Lock), DaemonError> {
    let failed = |source| DaemonError::Socket { path: path.clone(), source };
    let lock = Lock::take(&lock_path(path)).map_err(failed)?;
    let lock =
        lock.ok_or_else(|| DaemonError::Running(path.parent().map(PathBuf::from).unwrap_or_default()))?;
    let open = || {
        files::remove(path)?;
        let listener = UnixListener::bind(path)?;
        Ok((listener, OwnFile::claim(path)?))
    };
    let (listener, file) = open().map_err(failed)?;
    Ok((listener, file, lock))
}

struct Daemon {
    agent: Agent,
    drivers: Mutex<BTreeMap<NetworkName, Running>>,
    /// Who asks for the networks that the host waits to be let into.
    waiting: Mutex<BTreeMap<NetworkName, JoinHandle<()>>>,
    /// A network was joined for which the host had waited.
    joined: Notify,
    shutdown: watch::Receiver<bool>,
}

struct Running {
    task: JoinHandle<End>,
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<DriverStatus>,
}

impl Daemon {
    /// Starts a driver for every network that no process has locked.
    async fn rescan(self: &Arc<Self>) {
        if let Err(error) = self.agent.end_expired().await {
            tracing::warn!(error = error_chain(&error), "cannot remove an expired registration");
        }
        let networks = match self.agent.directory.networks() {
            Ok(networks) => networks,
            Err(error) => return tracing::error!(%error, "cannot look for networks"),
        };
        let mut drivers = self.drivers.lock().await;
        drivers.retain(|_, running| !running.task.is_finished());
        for network in networks {
            if drivers.contains_key(&network) {
                continue;
            }
            match Member::open(self.agent.clone(), &network) {
                Ok(member) => drop(drivers.insert(network, self.start(member))),
                Err(AgentError::Busy(_)) => {}
                Err(error) => {
                    tracing::error!(error = error_chain(&error), %network, "cannot look after the network");
                    self.bring_up(&network).await;
                }
            }
        }
        drop(drivers);
        self.ask_for_networks().await;
    }

    /// Starts to ask for each network that the host waits to be let into.
    async fn ask_for_networks(self: &Arc<Self>) {
        let networks = match self.agent.directory.waited_for() {
            Ok(networks) => networks,
            Err(error) => return tracing::error!(%error, "cannot look for networks that this host waits for"),
        };
        let mut waiting = self.waiting.lock().await;
        waiting.retain(|_, task| !task.is_finished());
        for network in networks {
            let goes_on =
                self.agent.directory.waiting(&network).is_ok_and(|it| it.is_some_and(|it| it.goes_on()));
            if goes_on && !waiting.contains_key(&network) {
                let task = tokio::spawn(Arc::clone(self).ask_for(network.clone()));
                waiting.insert(network, task);
            }
        }
    }

    /// Asks for a network with backoff until the host is in it, or waits no longer.
    async fn ask_for(self: Arc<Self>, network: NetworkName) {
        let mut shutdown = self.shutdown.clone();
        let seed = self.agent.directory.waiting(&network).ok().flatten();
        let seed =
            seed.and_then(|waiting| waiting.identity.0.first_chunk().map(|first| u64::from_be_bytes(*first)));
        let mut pauses = Backoff::new(seed.unwrap_or(1));
        let mut failing = false;
        loop {
            match self.agent.ask_again(&network).await {
                Ok(JoinOutcome::New(_) | JoinOutcome::Already(_)) => {
                    tracing::info!(%network, "somebody has let this host in");
                    return self.joined.notify_one();
                }
                Ok(JoinOutcome::Waiting(waiting)) if !waiting.goes_on() => {
                    tracing::warn!(%network, "the server does not let this host wait any more: nobody approved it in time, or somebody dropped it");
                    return;
                }
                Ok(JoinOutcome::Waiting(_)) => failing = false,
                // Somebody ended the waiting.
                Err(AgentError::NotMember(_)) => return,
                Err(AgentError::Busy(_)) => {}
                Err(error @ AgentError::NotUpYet(_)) => {
                    tracing::warn!(error = error_chain(&error), %network, "trying on");
                    return self.joined.notify_one();
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(error = error_chain(&error), %network, "cannot ask whether this host is let in; trying on");
                }
                Err(error) => tracing::debug!(error = error_chain(&error), %network, "cannot ask"),
            }
            let due = pauses.failed(Instant::now().into_std());
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = ended(&mut shutdown) => return,
            }
        }
    }

    /// Brings up a tunnel that no driver can look after, as far as its state is known.
    async fn bring_up(&self, network: &NetworkName) {
        let Ok(Some(membership)) = self.agent.directory.membership(network) else { return };
        if let Err(error) = self.agent.bring_up_alone(&membership).await {
            tracing::warn!(error = error_chain(&error), %network, "cannot bring the tunnel up");
        }
    }

    fn start(&self, member: Member) -> Running {
        let membership = member.membership();
        tracing::info!(network = %membership.network, interface = membership.interface, "looking after the network");
        let (requests, asked) = mpsc::channel(4);
        let (driver, status) = Driver::new(member, self.agent.settings.watch);
        let task = tokio::spawn(driver.run(asked, self.shutdown.clone()));
        Running { task, requests, status }
    }

    async fn serve(self: Arc<Self>, client: UnixStream) {
        let (read, mut write) = client.into_split();
        let mut line = String::new();
        let heard = tokio::io::BufReader::new(read).read_line(&mut line).await;
        let answer = match serde_json::from_str(&line) {
            Ok(question) if heard.is_ok() => self.answer(question).await,
            Ok(_) | Err(_) => DaemonResponse::Failed("the daemon is of another version; restart it".into()),
        };
        let mut line = serde_json::to_vec(&answer).expect("an answer can be written as JSON");
        line.push(b'\n');
        // The client may be gone.
        let _ = write.write_all(&line).await;
    }

    async fn answer(self: &Arc<Self>, question: DaemonRequest) -> DaemonResponse {
        let outcome = match question {
            DaemonRequest::Rescan => {
                self.rescan().await;
                self.agent.recheck_registration();
                Ok(true)
            }
            DaemonRequest::Status => {
                let drivers = self.drivers.lock().await;
                let all = drivers
                    .iter()
                    .map(|(network, running)| (network.clone(), running.status.borrow().clone()));
                return DaemonResponse::Status(all.collect());
            }
            DaemonRequest::CheckIn(network) => self.ask(network, Command::CheckIn).await,
            DaemonRequest::Pull(network) => self.ask(network, Command::Pull).await,
            DaemonRequest::Leave { network, force } => self.ask(network, Command::Leave { force }).await,
        };
        match outcome {
            Ok(news) => DaemonResponse::Done(news),
            Err(error) => DaemonResponse::Failed(error_chain(&error)),
        }
    }

    async fn ask(&self, network: NetworkName, command: Command) -> Result<bool, AgentError> {
        let requests = self.drivers.lock().await.get(&network).map(|running| running.requests.clone());
        let busy = || AgentError::Busy(network.clone());
        let (answer, answered) = oneshot::channel();
        requests.ok_or_else(busy)?.send(Request { command, answer }).await.map_err(|_| busy())?;
        answered.await.map_err(|_| busy())?
    }
}
