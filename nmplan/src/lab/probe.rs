//! May one host of the lab open a service at another's address?
//!
//! A probe sends a request whose answer nothing else gives: an echo of what only this request holds. It tries
//! twice, so that one packet that is lost on a busy computer decides nothing. What came of it is an
//! [`Outcome`]; which one it is, given what each try met, is decided by pure code. Probes of one host make all
//! their sockets in one go, so thousands at the same time are cheap.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, future};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::Instant;

use super::listeners::{Message, MessageKind, Service};
use super::ping::Echo;

/// How often a probe tries; the tries begin at equal distances within its limit.
const TRIES: u32 = 2;

/// What is probed: a service at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The address.
    pub to: IpAddr,
    /// The service.
    pub service: Service,
}

/// What came of a probe of a service that is there ([`Listeners`](super::Listeners)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// No packet came back, or this host itself had no way to send any.
    Nothing,
    /// Something else than the service answered: a reset, port unreachable, the end of the connection. Where a
    /// listener is known to be there, this shows neither that packets pass, nor that they do not.
    Refused,
    /// The service answered, after this time.
    Answered(Duration),
}

impl Outcome {
    /// Whether it is what must happen where the service may be opened, or where it may not. A refusal is
    /// neither.
    #[must_use]
    pub fn agrees(self, allowed: bool) -> bool {
        match self {
            Self::Answered(_) => allowed,
            Self::Nothing => !allowed,
            Self::Refused => false,
        }
    }

    /// The outcome of one try, of what its sockets answered.
    ///
    /// # Errors
    ///
    /// What says nothing of the way to the other host: that this computer has no memory, ports or files left.
    fn of(answer: io::Result<()>, took: Duration) -> io::Result<Self> {
        use io::ErrorKind as Kind;
        let Err(error) = answer else { return Ok(Self::Answered(took)) };
        let kind = error.kind();
        if matches!(
            kind,
            Kind::ConnectionRefused | Kind::ConnectionReset | Kind::BrokenPipe | Kind::UnexpectedEof
        ) {
            return Ok(Self::Refused);
        }
        // The filter of this host, or of one on the way that says so.
        let no_way = matches!(
            kind,
            Kind::PermissionDenied
                | Kind::HostUnreachable
                | Kind::NetworkUnreachable
                | Kind::NetworkDown
                | Kind::TimedOut
        );
        // WireGuard in the kernel has no peer with the address, or none whose endpoint it knows.
        let no_peer = matches!(error.raw_os_error(), Some(libc::ENOKEY | libc::EDESTADDRREQ));
        if no_way || no_peer { Ok(Self::Nothing) } else { Err(error) }
    }
}

/// A socket for each try, in the network of a host.
pub(super) enum Sockets {
    Tcp([Socket; TRIES as usize]),
    Udp([Socket; TRIES as usize]),
    Icmp(Arc<Echo>),
}

impl Sockets {
    /// Makes them, in the network namespace of the calling thread.
    pub(super) fn new(probe: Probe, echo: &Arc<Echo>) -> io::Result<Self> {
        let domain = if probe.to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let make = |kind| {
            let socket = Socket::new(domain, kind, None)?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        Ok(match probe.service {
            Service::Tcp(_) => Self::Tcp([make(Type::STREAM)?, make(Type::STREAM)?]),
            Service::Udp(_) => Self::Udp([make(Type::DGRAM)?, make(Type::DGRAM)?]),
            Service::Icmp => Self::Icmp(Arc::clone(echo)),
        })
    }
}

/// Carries out a probe; takes `limit` at most.
pub(super) async fn probe(sockets: Sockets, probe: Probe, limit: Duration) -> io::Result<Outcome> {
    let to = |port| SocketAddr::new(probe.to, port);
    match (sockets, probe.service) {
        (Sockets::Tcp(sockets), Service::Tcp(port)) => {
            tried(sockets, limit, |socket| ask_by_tcp(socket, to(port))).await
        }
        (Sockets::Udp(sockets), Service::Udp(port)) => {
            tried(sockets, limit, |socket| ask_by_udp(socket, to(port))).await
        }
        (Sockets::Icmp(echo), _) => {
            tried([(), ()], limit, |()| async {
                if echo.ping(probe.to, limit).await.is_none() {
                    future::pending::<()>().await;
                }
                Ok(())
            })
            .await
        }
        (Sockets::Tcp(_) | Sockets::Udp(_), _) => unreachable!("sockets are made for the probe"),
    }
}

/// Tries once with each socket; the best outcome within the limit counts.
async fn tried<S, F: Future<Output = io::Result<()>>>(
    sockets: [S; TRIES as usize],
    limit: Duration,
    ask: impl Fn(S) -> F,
) -> io::Result<Outcome> {
    let tries = (0..).zip(sockets).map(|(number, socket)| {
        let ask = &ask;
        async move {
            tokio::time::sleep(limit / TRIES * number).await;
            let start = Instant::now();
            let answer = ask(socket).await;
            Outcome::of(answer, start.elapsed())
        }
    });
    let mut tries: FuturesUnordered<_> = tries.collect();
    let deadline = Instant::now() + limit;
    let mut best = Outcome::Nothing;
    while let Ok(Some(outcome)) = tokio::time::timeout_at(deadline, tries.next()).await {
        best = best.max(outcome?);
        if matches!(best, Outcome::Answered(_)) {
            break;
        }
    }
    Ok(best)
}

async fn ask_by_tcp(socket: Socket, to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
    let question = question();
    stream.write_all(&question).await?;
    let mut answer = [0; Message::LENGTH];
    stream.read_exact(&mut answer).await?;
    if answer == question { Ok(()) } else { Err(io::ErrorKind::ConnectionReset.into()) }
}

async fn ask_by_udp(socket: Socket, to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(to).await?;
    let question = question();
    socket.send(&question).await?;
    let mut answer = [0; 2 * Message::LENGTH];
    // Whatever else comes is no answer.
    while socket.recv(&mut answer).await? != question.len() || !answer.starts_with(&question) {}
    Ok(())
}

/// A request that no other of this process equals.
fn question() -> [u8; Message::LENGTH] {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Message { kind: MessageKind::Ask, number, sent: Instant::now() }.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_agrees_with_nothing_and_an_answer_is_better_than_it() {
        let answered = Outcome::Answered(Duration::ZERO);
        for (outcome, allowed, forbidden) in
            [(answered, true, false), (Outcome::Nothing, false, true), (Outcome::Refused, false, false)]
        {
            assert_eq!((outcome.agrees(true), outcome.agrees(false)), (allowed, forbidden), "{outcome:?}");
        }
        assert!(answered > Outcome::Refused && Outcome::Refused > Outcome::Nothing);
    }

    #[test]
    fn only_what_is_said_of_the_way_counts() {
        let of = |error: i32| Outcome::of(Err(io::Error::from_raw_os_error(error)), Duration::ZERO);
        for error in [libc::ECONNREFUSED, libc::ECONNRESET, libc::EPIPE] {
            assert_eq!(of(error).expect("it counts"), Outcome::Refused, "{error}");
        }
        for error in [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EPERM, libc::EACCES, libc::ENOKEY] {
            assert_eq!(of(error).expect("it counts"), Outcome::Nothing, "{error}");
        }
        for error in [libc::EMFILE, libc::EADDRNOTAVAIL, libc::ENOBUFS, libc::ENOMEM] {
            of(error).expect_err("it is about this computer");
        }
    }
}
