//! The userspace device: gotatun in a process of its own, so that the tunnel outlives the agent.
//!
//! Life of the process, in order: it takes the lock next to its socket, opens the socket and the TUN, prints
//! one line of JSON on standard output (ready, or why not), then answers requests until one says stop, until
//! SIGTERM or SIGINT, until the deadline that a request set, or until its interface or its socket is removed
//! from outside: unreachable, it would only hold the name. It leaves nothing. It also answers WireGuard's own
//! protocol in `/run/wireguard`, for `wg show`, if it can use that folder.
//!
//! It keeps no settings: what the agent applied is gone with it. One that panics anywhere ends as a whole,
//! since half a device (gotatun's tasks are many) would look healthy; the agent makes a new one.

mod engine;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use rustix::fs::Mode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use zeroize::Zeroizing;

use super::protocol::{DeviceReply, DeviceRequest, Hello, LONGEST, VERSION};
use super::{DeviceError, Refusal, host};
use crate::files::{self, Lock, OwnFile, lock_path};
use engine::Engine;

/// How long a client may take to send a request, or to take its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the process looks whether its interface and socket are still its own and its deadline is not
/// here; after a host was suspended it looks within this time awake.
pub const WATCH: Duration = Duration::from_secs(2);
/// How long the kernel may take to remove the interface after the last file on it is closed.
const REMOVAL: Duration = Duration::from_secs(5);
/// The exit status of a process that panicked: that of Rust.
const PANICKED: i32 = 101;

/// How a device process ended that cleaned up everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A request or a signal asked for it.
    Asked,
    /// Its deadline came; see [`Device::expire_at`](super::Device::expire_at).
    Expired,
}

/// Serves the interface until it is asked to end: the whole life of a device process, which it sets up
/// (umask, panic hook, signals). When it returns, interface, sockets and lock are gone.
///
/// The error has been announced on standard output by then; print it on standard error, which is the log.
pub fn run(interface: &str, socket: &Path) -> Result<Ended, DeviceError> {
    end_whole_on_panic();
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(DeviceError::host("start the threads of the device process"))?;
    runtime.block_on(live(interface, socket))
}

async fn live(interface: &str, socket: &Path) -> Result<Ended, DeviceError> {
    let server = Server::open(interface, socket).await;
    let reply = match &server {
        Ok(_) => hello(interface),
        Err(refusal) => DeviceReply::Refused(refusal.clone()),
    };
    announce(&reply).map_err(DeviceError::host("announce the device process"))?;
    let mut server = server?;
    match server.serve().await {
        End::Asked(client) => {
            server.close().await;
            // The client may be gone; its request is carried out all the same.
            let _ = answer(client, &DeviceReply::Done).await;
            Ok(Ended::Asked)
        }
        End::Signalled => {
            server.close().await;
            Ok(Ended::Asked)
        }
        End::Expired => {
            server.close().await;
            Ok(Ended::Expired)
        }
        End::Lost => Err(DeviceError::Gone { interface: interface.to_owned() }),
    }
}

/// Why a device process ends.
enum End {
    /// A client asked for it, and waits for the reply.
    Asked(UnixStream),
    /// A signal came.
    Signalled,
    /// The deadline came.
    Expired,
    /// The interface or the socket was removed, or gotatun failed.
    Lost,
}

struct Server {
    interface: String,
    /// The interface's index: another of the same name is not this device's.
    index: u32,
    engine: Engine,
    // Held because dropping it removes the file.
    _uapi: Option<OwnFile>,
    listener: UnixListener,
    socket: OwnFile,
    signals: [Signal; 2],
    watch: Interval,
    /// The time of [`host::boottime`] to end at; absent: none.
    expiry: Option<Duration>,
    // Last: the lock is released when everything else is gone.
    _lock: Lock,
}

impl Server {
    async fn open(interface: &str, socket: &Path) -> Result<Self, Refusal> {
        let lock = Lock::take(&lock_path(socket))
            .map_err(Refusal::failed(format!("lock {}", socket.display())))?
            .ok_or_else(|| Refusal::AlreadyRunning { interface: interface.to_owned() })?;
        host::free_name(interface)?;
        let listen = || listen(socket);
        let (listener, socket) =
            listen().map_err(Refusal::failed(format!("listen on {}", socket.display())))?;
        let (engine, uapi) = Engine::open(interface).await?;
        let failed = Refusal::failed::<io::Error>("listen for signals");
        let signals = end_signals().map_err(failed)?;
        let index = index(interface)?;
        let mut watch = interval(WATCH);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let interface = interface.to_owned();
        Ok(Self {
            interface,
            index,
            engine,
            _uapi: uapi,
            listener,
            socket,
            signals,
            watch,
            expiry: None,
            _lock: lock,
        })
    }

    async fn serve(&mut self) -> End {
        loop {
            let [terminate, interrupt] = &mut self.signals;
            tokio::select! {
                client = self.listener.accept() => {
                    if let Ok((client, _)) = client && let Some(end) = self.read_request(client).await {
                        return end;
                    }
                }
                () = self.engine.failed() => {
                    // While the interface is there, it is a false report.
                    if !self.is_whole() {
                        return End::Lost;
                    }
                }
                _ = self.watch.tick() => {
                    if !self.is_whole() {
                        return End::Lost;
                    }
                    if is_due(self.expiry, host::boottime()) {
                        return End::Expired;
                    }
                    self.engine.record_peers().await;
                }
                _ = terminate.recv() => return End::Signalled,
                _ = interrupt.recv() => return End::Signalled,
            }
        }
    }

    /// Reads one request and answers it, unless it ends the process.
    async fn read_request(&mut self, client: UnixStream) -> Option<End> {
        let mut client = client;
        let reply = match timeout(TIMEOUT, read(&mut client)).await.ok()?.ok()? {
            None => DeviceReply::Refused(Refusal::failed("understand the request")(
                "this device process is older or newer",
            )),
            Some(DeviceRequest::Hello) => hello(&self.interface),
            Some(DeviceRequest::Observe) => DeviceReply::State(self.engine.observe().await),
            Some(DeviceRequest::Apply(steps)) => match self.engine.apply(&steps).await {
                Ok(()) => DeviceReply::Done,
                Err(refusal) => DeviceReply::Refused(refusal),
            },
            Some(DeviceRequest::Endpoint(peer)) => DeviceReply::Endpoint(self.engine.endpoint(&peer).await),
            Some(DeviceRequest::ExpireAt(at)) => {
                self.expiry = at;
                DeviceReply::Done
            }
            Some(DeviceRequest::Stop) => return Some(End::Asked(client)),
        };
        // A client that left before its answer asks again.
        let _ = answer(client, &reply).await;
        None
    }

    fn is_whole(&self) -> bool {
        // If the kernel cannot be asked, nothing is known about the link.
        let same_link = host::link_index(&self.interface).map_or(true, |found| found == Some(self.index));
        same_link && self.socket.is_there()
    }

    /// Removes the interface, the sockets and the lock.
    async fn close(self) {
        let Self { interface, engine, .. } = self;
        engine.stop().await;
        let gone = async {
            while matches!(host::link_index(&interface), Ok(Some(_))) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // The kernel removes it at the latest with the process.
        let _ = timeout(REMOVAL, gone).await;
    }
}

/// Whether the deadline is here; both are times of one clock.
fn is_due(expiry: Option<Duration>, now: Duration) -> bool {
    expiry.is_some_and(|expiry| expiry <= now)
}

/// Opens the socket in place of one that a killed process left; the caller has the lock.
fn listen(socket: &Path) -> io::Result<(UnixListener, OwnFile)> {
    files::remove(socket)?;
    let listener = UnixListener::bind(socket)?;
    let file = OwnFile::claim(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok((listener, file))
}

fn end_signals() -> io::Result<[Signal; 2]> {
    Ok([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?])
}

fn index(interface: &str) -> Result<u32, Refusal> {
    let attempt = || format!("find the interface {interface} again");
    let found = host::link_index(interface).map_err(Refusal::failed(attempt()))?;
    found.ok_or_else(|| Refusal::failed(attempt())("it was removed"))
}

fn hello(interface: &str) -> DeviceReply {
    DeviceReply::Hello(Hello { version: VERSION, interface: interface.to_owned() })
}

/// Reads a request; absent: it is not one of this release. Requests carry the private key, so the text is
/// wiped.
async fn read(client: &mut UnixStream) -> io::Result<Option<DeviceRequest>> {
    let mut text = Zeroizing::new(Vec::new());
    client.take(LONGEST).read_to_end(&mut text).await?;
    Ok(serde_json::from_slice(&text).ok())
}

async fn answer(mut client: UnixStream, reply: &DeviceReply) -> io::Result<()> {
    let text = serde_json::to_vec(reply)?;
    timeout(TIMEOUT, client.write_all(&text)).await?
}

/// Writes to standard output whether the device is ready.
fn announce(reply: &DeviceReply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    io::stdout().write_all(&line)?;
    io::stdout().flush()
}

fn end_whole_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(PANICKED);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_expires_at_its_deadline_and_without_one_never() {
        let [early, at, late] = [599, 600, 601].map(Duration::from_secs);
        assert!(!is_due(Some(at), early));
        assert!(is_due(Some(at), at));
        assert!(is_due(Some(at), late));
        assert!(is_due(Some(Duration::ZERO), early));
        assert!(!is_due(None, Duration::MAX));
    }
}
