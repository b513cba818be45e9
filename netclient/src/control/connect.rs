//! How a connection to the server comes about: the first of its addresses that answers, under TLS.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::{lock, tls};
use crate::membership::ServerAddress;

/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(3);
/// How often a connection that says nothing is asked whether it is still there, and how long it may take to answer.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);

/// A channel that connects when it is needed. `local` keeps the address that this machine uses towards the server.
pub(super) fn channel(server: &ServerAddress, local: Arc<Mutex<Option<IpAddr>>>, patience: Duration) -> Channel {
    let authority = server.addresses.first().cloned().unwrap_or_default();
    let origin = format!("https://{authority}").parse().unwrap_or_else(|_| Uri::from_static("https://server"));
    let server = Arc::new(server.clone());
    // The scheme keeps tonic from adding TLS of its own; the origin is what a proxy sees.
    let connect = tower::service_fn(move |_: Uri| {
        let (server, local) = (Arc::clone(&server), Arc::clone(&local));
        async move { connect(&server, &local).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://server")
        .origin(origin)
        .connect_timeout(patience)
        .timeout(patience)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connect)
}

/// A connection, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

async fn connect(server: &ServerAddress, local: &Mutex<Option<IpAddr>>) -> io::Result<Pin<Box<dyn Stream>>> {
    let mut last = io::Error::other("the server has no address");
    for address in &server.addresses {
        let attempt = tokio::time::timeout(CONNECT, connect_to(address, server, local)).await;
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
) -> io::Result<Pin<Box<dyn Stream>>> {
    let (host, _) = address.rsplit_once(':').ok_or_else(|| io::Error::other(format!("{address} names no port")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect(address).await?;
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
