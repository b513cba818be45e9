//! A userspace device, from the agent's side: a client of the process that holds it.
//!
//! Each call is one connection, so nothing needs to be restored when the agent, or the process, is a new one.
//! The process is known by its socket alone; it is started detached (its own session, no descriptor of the
//! agent but its log) and never ended by a signal once it is ready.

mod child;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use schema::scalars::WireGuardKey;
use socket2::{Domain, SockAddr, Socket, Type};
use zeroize::Zeroizing;

use super::protocol::{DeviceReply, DeviceRequest, LONGEST, VERSION};
use super::{Device, DeviceError, DeviceState, DeviceStep, Kind, Refusal};

/// How many changes of peers one request asks for. Removing a peer costs gotatun as much as it has peers:
/// with 50,000 of them, so many take a tenth of a second, and many times that in a build for tests.
const AT_ONCE: usize = 64;
/// How long a device process may take for one request; a healthy one needs a second at most.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before looking again for a process that another agent is starting.
const AGAIN: Duration = Duration::from_millis(10);

/// A device in a process of its own.
#[derive(Debug)]
pub struct Userspace {
    interface: String,
    socket: PathBuf,
}

impl Userspace {
    /// Finds the process that answers on the socket; absent: there is none, so [`Userspace::spawn`] it.
    ///
    /// A process of another release, or for another interface, counts as none.
    pub fn attach(interface: &str, socket: &Path) -> Result<Option<Self>, DeviceError> {
        let device = Self { interface: interface.to_owned(), socket: absolute(socket)? };
        match device.ask(&DeviceRequest::Hello) {
            Ok(Some(DeviceReply::Hello(hello)))
                if hello.version == VERSION && hello.interface == interface =>
            {
                Ok(Some(device))
            }
            Ok(_) => Ok(None),
            Err(DeviceError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a process has the socket, of whatever release; one that cannot be asked counts.
    pub(super) fn is_served(interface: &str, socket: &Path) -> bool {
        let Ok(socket) = absolute(socket) else { return true };
        let device = Self { interface: interface.to_owned(), socket };
        !matches!(device.ask(&DeviceRequest::Hello), Err(DeviceError::Gone { .. }))
    }

    /// Starts `executable device --interface NAME --socket PATH`, which is to call
    /// [`run`](super::process::run), and waits until it is ready. If another agent starts one at the same
    /// time, both have the same.
    ///
    /// `/proc/self/exe` as executable is the caller itself, also after an upgrade replaced its file.
    pub fn spawn(interface: &str, executable: &Path, socket: &Path) -> Result<Self, DeviceError> {
        let socket = absolute(socket)?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(device) = Self::attach(interface, &socket)? {
                return Ok(device);
            }
            Self::end_stale(interface, &socket)?;
            match child::start(interface, executable, &socket) {
                Ok(()) => return Ok(Self { interface: interface.to_owned(), socket }),
                // The other is not ready yet, or about to end.
                Err(DeviceError::Refused(Refusal::AlreadyRunning { .. })) if Instant::now() < deadline => {
                    sleep(AGAIN)
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a process that [`Userspace::attach`] does not accept; its device is created anew. Returns whether
    /// there was one.
    pub(super) fn end_stale(interface: &str, socket: &Path) -> Result<bool, DeviceError> {
        Self { interface: interface.to_owned(), socket: absolute(socket)? }.stop()
    }

    /// Returns whether a process answered.
    fn stop(&self) -> Result<bool, DeviceError> {
        match self.ask(&DeviceRequest::Stop) {
            Ok(_) => Ok(true),
            Err(DeviceError::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn expect_done(&self, request: &DeviceRequest) -> Result<(), DeviceError> {
        match self.ask(request)? {
            Some(DeviceReply::Done) => Ok(()),
            Some(DeviceReply::Refused(refusal)) => Err(refusal.into()),
            Some(DeviceReply::Hello(_) | DeviceReply::State(_) | DeviceReply::Endpoint(_)) | None => {
                Err(self.gone())
            }
        }
    }

    /// Sends a request; absent: the reply is not one of this release. A process that dies meanwhile counts as
    /// gone.
    fn ask(&self, request: &DeviceRequest) -> Result<Option<DeviceReply>, DeviceError> {
        let mut stream = self.connect()?;
        let mut exchange = || -> io::Result<Vec<u8>> {
            let text = Zeroizing::new(serde_json::to_vec(request)?);
            stream.write_all(&text)?;
            stream.shutdown(Shutdown::Write)?;
            let mut reply = Vec::new();
            Read::by_ref(&mut stream).take(LONGEST).read_to_end(&mut reply)?;
            Ok(reply)
        };
        match exchange() {
            Ok(reply) if reply.is_empty() => Err(self.gone()),
            Ok(reply) => Ok(serde_json::from_slice(&reply).ok()),
            Err(error) => Err(self.unanswered(error, Some(&stream))),
        }
    }

    fn connect(&self) -> Result<UnixStream, DeviceError> {
        let connect = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            // Applies to connecting as well: the queue of a hung process fills up.
            socket.set_write_timeout(Some(TIMEOUT))?;
            socket.connect(&SockAddr::unix(&self.socket)?)?;
            Ok(socket)
        };
        connect().map(|socket| OwnedFd::from(socket).into()).map_err(|error| self.unanswered(error, None))
    }

    fn unanswered(&self, error: io::Error, stream: Option<&UnixStream>) -> DeviceError {
        use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut, WouldBlock};
        let kind = error.kind();
        if matches!(kind, ConnectionRefused | NotFound | ConnectionReset | BrokenPipe) {
            return self.gone();
        }
        if !matches!(kind, WouldBlock | TimedOut) {
            return DeviceError::host(format!("talk to the device process of {}", self.interface))(error);
        }
        let process = stream.and_then(|stream| socket_peercred(stream).ok());
        let process = process.map_or(0, |owner| owner.pid.as_raw_nonzero().get());
        DeviceError::Silent { interface: self.interface.clone(), process }
    }

    fn gone(&self) -> DeviceError {
        DeviceError::Gone { interface: self.interface.clone() }
    }
}

/// The largest packet that fits a buffer of gotatun, 4096 bytes, with what WireGuard puts around it: a header
/// of 16 bytes and a tag of 16 (WireGuard paper, section 5.4.6). It is a multiple of 16, so no padding is
/// added.
const LARGEST_PACKET: u16 = 4_096 - 32;

impl Device for Userspace {
    fn kind(&self) -> Kind {
        Kind::Userspace
    }

    fn largest_packet(&self) -> Option<u16> {
        Some(LARGEST_PACKET)
    }

    fn observe(&mut self) -> Result<DeviceState, DeviceError> {
        match self.ask(&DeviceRequest::Observe)? {
            Some(DeviceReply::State(state)) => Ok(state),
            Some(DeviceReply::Refused(refusal)) => Err(refusal.into()),
            Some(DeviceReply::Hello(_) | DeviceReply::Endpoint(_) | DeviceReply::Done) | None => {
                Err(self.gone())
            }
        }
    }

    /// In several requests, each with a time limit of its own: progress counts as an answer.
    fn apply(&mut self, steps: &[DeviceStep]) -> Result<(), DeviceError> {
        requests(steps).into_iter().try_for_each(|some| self.expect_done(&DeviceRequest::Apply(some)))
    }

    fn endpoint(&mut self, peer: &WireGuardKey) -> Result<Option<SocketAddr>, DeviceError> {
        match self.ask(&DeviceRequest::Endpoint(*peer))? {
            Some(DeviceReply::Endpoint(endpoint)) => Ok(endpoint),
            Some(DeviceReply::Refused(refusal)) => Err(refusal.into()),
            Some(DeviceReply::Hello(_) | DeviceReply::State(_) | DeviceReply::Done) | None => {
                Err(self.gone())
            }
        }
    }

    fn expire_at(&mut self, at: Option<Duration>) -> Result<bool, DeviceError> {
        self.expect_done(&DeviceRequest::ExpireAt(at)).map(|()| true)
    }

    fn remove(&mut self) -> Result<(), DeviceError> {
        self.stop().map(drop)
    }
}

/// The steps, some at a time: those of the device as a whole with the first peers, so that nothing has
/// changed if they are refused.
fn requests(steps: &[DeviceStep]) -> Vec<Vec<DeviceStep>> {
    let of_peer = |step: &&DeviceStep| matches!(step, DeviceStep::PutPeer(..) | DeviceStep::RemovePeer(_));
    let (peers, basics): (Vec<_>, Vec<_>) = steps.iter().partition(of_peer);
    let mut requests: Vec<Vec<_>> =
        peers.chunks(AT_ONCE).map(|some| some.iter().copied().cloned().collect()).collect();
    match requests.first_mut() {
        Some(first) => drop(first.splice(..0, basics.into_iter().cloned())),
        None => requests.push(basics.into_iter().cloned().collect()),
    }
    requests
}

/// The process's working folder is the root.
fn absolute(socket: &Path) -> Result<PathBuf, DeviceError> {
    std::path::absolute(socket).map_err(DeviceError::host(format!("resolve {}", socket.display())))
}

#[cfg(test)]
mod tests {
    use super::super::PrivateKey;
    use super::*;

    #[test]
    fn very_many_steps_are_several_requests_and_what_may_be_refused_is_in_the_first() {
        let gone = |number: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            DeviceStep::RemovePeer(WireGuardKey(key))
        };
        let mut steps: Vec<_> = (0..50_000).map(gone).collect();
        let basics = [DeviceStep::SetPrivateKey(PrivateKey([1; 32])), DeviceStep::SetListenPort(5)];
        // Wherever they are in the list.
        steps.splice(40_000..40_000, basics.clone());
        let requests = requests(&steps);
        assert_eq!(requests.len(), 50_000_usize.div_ceil(AT_ONCE));
        assert!(requests.iter().all(|some| some.len() <= AT_ONCE + basics.len()));
        assert_eq!(requests[0][..2], basics);
        steps.retain(|step| !basics.contains(step));
        assert_eq!(requests.concat()[2..], steps, "in their order");
        for few in [&basics[..], &[]] {
            assert_eq!(super::requests(few), [few.to_vec()]);
        }
    }
}
