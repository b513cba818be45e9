//! What answers probes and flows on a host of the lab?
//!
//! [`Listeners`] are sockets of a host that send back every [`Message`] they get, or, if it asks for that, go on
//! sending messages of their own. ICMP needs none: the kernel answers. What they heard is kept, so that a test
//! can tell a packet that did not arrive from an answer that did not.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::lock;

/// What may be opened at an address: a port of a protocol, or an echo of ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// An echo of ICMP or, at an IPv6 address, of ICMPv6.
    Icmp,
}

/// As rules and tests write it: `tcp 80`, `icmp`.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp {port}"),
            Self::Udp(port) => write!(f, "udp {port}"),
            Self::Icmp => f.write_str("icmp"),
        }
    }
}

/// Something that came to a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Where it came to.
    pub service: Service,
    /// Who sent it.
    pub from: SocketAddr,
    /// The datagram; of a connection what came first; empty: the connection itself.
    pub payload: Vec<u8>,
}

/// Sockets of a host that answer; closed when dropped.
#[derive(Debug)]
pub struct Listeners {
    tasks: Vec<JoinHandle<()>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// A socket in the network of a host, before it is served.
#[derive(Debug)]
pub(super) enum Bound {
    Tcp(Service, std::net::TcpListener),
    Udp(Service, std::net::UdpSocket),
}

impl Bound {
    /// Binds a service in the network namespace of the calling thread; none for ICMP.
    pub(super) fn new(service: Service, at: IpAddr) -> io::Result<Option<Self>> {
        let domain = if at.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let bind = |kind, port| -> io::Result<Socket> {
            let socket = Socket::new(domain, kind, None)?;
            if at.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            // For TCP only: connections of earlier listeners that end. For UDP two could share the port.
            socket.set_reuse_address(kind == Type::STREAM)?;
            socket.bind(&SocketAddr::new(at, port).into())?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Ok(match service {
            Service::Tcp(port) => {
                let socket = bind(Type::STREAM, port)?;
                socket.listen(1024)?;
                Some(Self::Tcp(service, socket.into()))
            }
            Service::Udp(port) => Some(Self::Udp(service, bind(Type::DGRAM, port)?.into())),
            Service::Icmp => None,
        })
    }
}

impl Listeners {
    /// Serves sockets; needs a tokio runtime.
    pub(super) fn serve(bound: Vec<Bound>) -> io::Result<Self> {
        let heard = Arc::new(Mutex::default());
        let mut tasks = Vec::new();
        for bound in bound {
            let log = Log(Arc::clone(&heard));
            tasks.push(match bound {
                Bound::Tcp(service, socket) => {
                    tokio::spawn(serve_tcp(service, TcpListener::from_std(socket)?, log))
                }
                Bound::Udp(service, socket) => {
                    tokio::spawn(serve_udp(service, UdpSocket::from_std(socket)?, log))
                }
            });
        }
        Ok(Self { tasks, heard })
    }

    /// What has come so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        lock(&self.heard).clone()
    }

    /// Whether a payload has come, at whatever port and whoever sent it.
    #[must_use]
    pub fn has_heard(&self, payload: &[u8]) -> bool {
        lock(&self.heard).iter().any(|heard| heard.payload == payload)
    }

    /// Closes them, and waits until their ports are free.
    pub async fn close(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Where listeners write what they hear.
#[derive(Clone, Debug)]
struct Log(Arc<Mutex<Vec<Heard>>>);

impl Log {
    fn push(&self, service: Service, from: SocketAddr, payload: &[u8]) {
        lock(&self.0).push(Heard { service, from, payload: payload.to_vec() });
    }
}

async fn serve_tcp(service: Service, listener: TcpListener, log: Log) {
    let mut connections = JoinSet::new();
    loop {
        // An error here is about a connection that has ended again.
        let Ok((stream, from)) = listener.accept().await else { continue };
        log.push(service, from, &[]);
        connections.spawn(serve_connection(service, stream, from, log.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one connection until it ends.
async fn serve_connection(
    service: Service,
    mut stream: TcpStream,
    from: SocketAddr,
    log: Log,
) -> io::Result<()> {
    // Each message goes out at once, however many are not acknowledged.
    stream.set_nodelay(true)?;
    let mut bytes = [0; Message::LENGTH];
    let mut first = true;
    loop {
        stream.read_exact(&mut bytes).await?;
        if std::mem::take(&mut first) {
            log.push(service, from, &bytes);
        }
        match Message::read(&bytes) {
            Some(Message { kind: MessageKind::Push, number, .. }) => {
                let mut pushes = Pushes::each(number);
                loop {
                    stream.write_all(&pushes.next().await.bytes()).await?;
                }
            }
            Some(_) | None => stream.write_all(&bytes).await?,
        }
    }
}

async fn serve_udp(service: Service, socket: UdpSocket, log: Log) {
    let socket = Arc::new(socket);
    let mut pushing = JoinSet::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        // An error here is about an earlier packet, and reading it has cleared it.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let payload = &buffer[..length];
        log.push(service, from, payload);
        match Message::read(payload) {
            Some(Message { kind: MessageKind::Push, number, .. }) => {
                let socket = Arc::clone(&socket);
                pushing.spawn(async move {
                    let mut pushes = Pushes::each(number);
                    loop {
                        // It goes on whatever the host does with the packet.
                        let _ = socket.send_to(&pushes.next().await.bytes(), from).await;
                    }
                });
            }
            Some(_) | None => {
                let _ = socket.send_to(payload, from).await;
            }
        }
    }
}

/// Messages that a listener sends at a steady pace.
struct Pushes {
    ticks: tokio::time::Interval,
    number: u64,
}

impl Pushes {
    fn each(milliseconds: u64) -> Self {
        let mut ticks = tokio::time::interval(Duration::from_millis(milliseconds.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, number: 0 }
    }

    async fn next(&mut self) -> Message {
        self.ticks.tick().await;
        self.number += 1;
        Message { kind: MessageKind::Pushed, number: self.number, sent: Instant::now() }
    }
}

/// What probes, flows and listeners send each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: MessageKind,
    /// Of a request: no other of this process has it, or, of [`MessageKind::Push`], the milliseconds between
    /// messages. Of what is pushed: 1, 2, and so on.
    pub(super) number: u64,
    /// When it was sent, to the microsecond.
    pub(super) sent: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    /// To be sent back as it is.
    Ask,
    /// Asks for messages at a steady pace from now on.
    Push,
    /// One of these.
    Pushed,
}

/// What times in messages are relative to: both ends are in this process.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Distinguishes our messages from those of other programs.
const MARK: &[u8; 15] = b"nmplan lab msg.";

impl Message {
    /// The length of each, in bytes.
    pub(super) const LENGTH: usize = 32;

    pub(super) fn bytes(&self) -> [u8; Self::LENGTH] {
        let kind = match self.kind {
            MessageKind::Ask => b'?',
            MessageKind::Push => b'>',
            MessageKind::Pushed => b'!',
        };
        let sent = u64::try_from(self.sent.saturating_duration_since(*START).as_micros()).unwrap_or(u64::MAX);
        let mut bytes = [0; Self::LENGTH];
        bytes[..15].copy_from_slice(MARK);
        bytes[15] = kind;
        bytes[16..24].copy_from_slice(&self.number.to_be_bytes());
        bytes[24..].copy_from_slice(&sent.to_be_bytes());
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (mark, [kind, rest @ ..]) = bytes.split_first_chunk::<15>()? else { return None };
        let (number, sent) = rest.split_first_chunk::<8>()?;
        let kind = match kind {
            b'?' => MessageKind::Ask,
            b'>' => MessageKind::Push,
            b'!' => MessageKind::Pushed,
            _ => return None,
        };
        let sent = Duration::from_micros(u64::from_be_bytes(sent.try_into().ok()?));
        (mark == MARK).then_some(Self {
            kind,
            number: u64::from_be_bytes(*number),
            sent: START.checked_add(sent)?,
        })
    }
}

/// The services of a list that need a socket, each once.
pub(super) fn distinct(services: impl IntoIterator<Item = Service>) -> BTreeSet<Service> {
    services.into_iter().filter(|service| *service != Service::Icmp).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_and_nothing_else_is_one() {
        LazyLock::force(&START);
        let sent = *START + Duration::from_micros(1_234_567);
        for kind in [MessageKind::Ask, MessageKind::Push, MessageKind::Pushed] {
            let message = Message { kind, number: 77, sent };
            let mut bytes = message.bytes();
            assert_eq!(Message::read(&bytes), Some(message));
            for length in 0..bytes.len() {
                assert_eq!(Message::read(&bytes[..length]), None, "cut off at {length}");
            }
            bytes[0] ^= 1;
            assert_eq!(Message::read(&bytes), None, "not our mark");
        }
    }
}
