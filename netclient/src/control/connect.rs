//! How a connection to the server is made: under TLS to the first of its addresses that answers; through the
//! tunnel to it; or inside a process that holds both agent and server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::tls;
use crate::comms::ServerTunnel;
use crate::device::{source_towards, stay_outside};
use crate::membership::ServerAddress;

/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(3);
/// How often a silent connection is sent a ping, and how long the answer may take.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);
/// The same for the tunnel, which is preferred and therefore must fail fast.
const TUNNEL_PING: Duration = Duration::from_secs(5);
/// After how long without an answer the tunnel counts as silent.
pub(super) const SILENCE: Duration = Duration::from_secs(3);

/// The address that this host uses towards the server, once it is known.
pub(super) type Local = Arc<Mutex<Option<IpAddr>>>;
/// Called when the tunnel is silent.
pub(super) type OnSilence = Arc<dyn Fn() + Send + Sync>;
/// Makes one more connection to a server in the same process: returns the agent's end of it.
pub type Opener = Arc<dyn Fn() -> DuplexStream + Send + Sync>;

/// A channel under TLS that connects when it is needed. `local` keeps the address that this host uses.
pub(super) fn by_tls(
    server: &ServerAddress,
    comms: &ServerTunnel,
    local: Local,
    timeout: Duration,
) -> Channel {
    let authority = server.addresses.first().cloned().unwrap_or_default();
    let origin =
        format!("https://{authority}").parse().unwrap_or_else(|_| Uri::from_static("https://server"));
    let (server, comms) = (Arc::new(server.clone()), comms.clone());
    // The scheme keeps tonic from adding TLS of its own; the origin is what a proxy sees.
    let connect = tower::service_fn(move |_: Uri| {
        let (server, local, comms) = (Arc::clone(&server), Arc::clone(&local), comms.clone());
        async move { connect(&server, &local, &comms).await.map(TokioIo::new) }
    });
    endpoint(timeout, PING, PONG).origin(origin).connect_with_connector_lazy(connect)
}

/// A channel under TLS with whatever certificate the server shows. For a call whose answer shows by itself who
/// made it, and which says nothing that others may not know.
pub(super) fn unchecked(address: &str, comms: &ServerTunnel, timeout: Duration) -> Channel {
    let origin = format!("https://{address}").parse().unwrap_or_else(|_| Uri::from_static("https://server"));
    let (address, comms) = (address.to_owned(), comms.clone());
    let connect = tower::service_fn(move |_: Uri| {
        let (address, comms) = (address.clone(), comms.clone());
        async move {
            let attempt = tokio::time::timeout(CONNECT, connect_unchecked(&address, &comms)).await;
            attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        }
    });
    endpoint(timeout, PING, PONG).origin(origin).connect_with_connector_lazy(connect)
}

/// A channel through the tunnel, which is brought up when it is needed.
pub(super) fn by_tunnel(comms: ServerTunnel, local: Local, silent: OnSilence, timeout: Duration) -> Channel {
    let connect = tower::service_fn(move |_: Uri| {
        let (comms, local, silent) = (comms.clone(), Arc::clone(&local), Arc::clone(&silent));
        async move { connect_in_tunnel(&comms, &local, silent).await.map(TokioIo::new) }
    });
    endpoint(timeout, TUNNEL_PING, SILENCE).connect_with_connector_lazy(connect)
}

/// A channel to a server in the same process.
pub(super) fn within(open: Opener, timeout: Duration) -> Channel {
    let connect = tower::service_fn(move |_: Uri| {
        let stream = open();
        async move { Ok::<_, io::Error>(TokioIo::new(stream)) }
    });
    endpoint(timeout, PING, PONG).connect_with_connector_lazy(connect)
}

fn endpoint(timeout: Duration, ping: Duration, pong: Duration) -> Endpoint {
    Endpoint::from_static("http://server")
        .connect_timeout(timeout)
        .timeout(timeout)
        .http2_keep_alive_interval(ping)
        .keep_alive_timeout(pong)
        .keep_alive_while_idle(true)
}

/// A connection, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

async fn connect(
    server: &ServerAddress,
    local: &Mutex<Option<IpAddr>>,
    comms: &ServerTunnel,
) -> io::Result<Pin<Box<dyn Stream>>> {
    let mut last = io::Error::other("the server has no address");
    for address in &server.addresses {
        let attempt = tokio::time::timeout(CONNECT, connect_to(address, server, local, comms)).await;
        match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(
    address: &str,
    server: &ServerAddress,
    local: &Mutex<Option<IpAddr>>,
    comms: &ServerTunnel,
) -> io::Result<Pin<Box<dyn Stream>>> {
    let host = host_of(address)?;
    let stream = connect_outside(address, comms).await?;
    stream.set_nodelay(true)?;
    *lock(local) = Some(stream.local_addr()?.ip().to_canonical());
    // A server without TLS listens on loopback only: it refuses to start otherwise.
    if server.ca_pin.is_none() && stream.peer_addr()?.ip().is_loopback() {
        return Ok(Box::pin(stream));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let tls = TlsConnector::from(Arc::new(tls::client(server.ca_pin.as_ref())?));
    Ok(Box::pin(tls.connect(name, stream).await?))
}

async fn connect_unchecked(address: &str, comms: &ServerTunnel) -> io::Result<Pin<Box<dyn Stream>>> {
    let stream = connect_outside(address, comms).await?;
    stream.set_nodelay(true)?;
    let is_here = stream.peer_addr()?.ip().is_loopback();
    let name = ServerName::try_from(host_of(address)?.to_owned()).map_err(io::Error::other)?;
    match TlsConnector::from(Arc::new(tls::unchecked()?)).connect(name, stream).await {
        Ok(stream) => Ok(Box::pin(stream)),
        // On loopback a server may do without TLS.
        Err(_) if is_here => Ok(Box::pin(connect_outside(address, comms).await?)),
        Err(error) => Err(error),
    }
}

/// The host of an address with a port.
fn host_of(address: &str) -> io::Result<&str> {
    let (host, _) =
        address.rsplit_once(':').ok_or_else(|| io::Error::other(format!("{address} has no port")))?;
    Ok(host.trim_start_matches('[').trim_end_matches(']'))
}

/// Connects to the first address of a name that answers, past every mesh.
async fn connect_outside(address: &str, comms: &ServerTunnel) -> io::Result<TcpStream> {
    let mut last = io::Error::other(format!("{address} has no address"));
    for at in comms.names().resolve(address).await? {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        stay_outside(&socket, comms.mark())?;
        match TcpSocket::from_std_stream(socket.into()).connect(at).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_in_tunnel(
    comms: &ServerTunnel,
    local: &Mutex<Option<IpAddr>>,
    silent: OnSilence,
) -> io::Result<Watched> {
    match tokio::time::timeout(CONNECT, through(comms, local)).await {
        Ok(Ok(stream)) => Ok(Watched { stream, heard: Instant::now(), ended: false, silent }),
        // The tunnel works, but nothing listens at its end: the server is down.
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
        Ok(Err(error)) => {
            silent();
            Err(error)
        }
        Err(_) => {
            silent();
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

async fn through(comms: &ServerTunnel, local: &Mutex<Option<IpAddr>>) -> io::Result<TcpStream> {
    let gone = || io::Error::other("this host is no longer registered there");
    let registration = comms.registration().map_err(io::Error::other)?.ok_or_else(gone)?;
    let at = comms.bring_up(&registration).await.map_err(io::Error::other)?;
    *lock(local) = source_towards(at, comms.mark());
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Data that is not acknowledged in time ends the connection: a waiting call needs no ping.
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    socket.set_tcp_nodelay(true)?;
    stay_outside(&socket, comms.mark())?;
    socket.bind_device(Some(registration.interface.as_bytes()))?;
    TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::V4(registration.terms.server)).await
}

/// A connection through the tunnel that reports whether it ended in silence, rather than by an answer of the
/// server.
struct Watched {
    stream: TcpStream,
    heard: Instant,
    ended: bool,
    silent: OnSilence,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        match &read {
            Ok(()) if buffer.filled().len() > before => self.heard = Instant::now(),
            Ok(()) => self.ended = true,
            Err(error) => self.ended = !matches!(error.kind(), io::ErrorKind::TimedOut),
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A ping came due at most this long ago, less what timers are late.
        let quiet = self.heard.elapsed() + Duration::from_millis(200) >= SILENCE;
        if !self.ended && quiet {
            (self.silent)();
        }
    }
}

/// Locks a mutex, even if a thread that held it panicked: every value here is consistent at any time.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
