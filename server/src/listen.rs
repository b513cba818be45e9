//! Serves a router on a TCP port, with TLS or without: the same for REST and gRPC.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use crate::identity::Certificate;

/// How long a client may take to shake hands, or to send the head of a request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent connection is sent a ping, and how long the answer may take.
const PING: Duration = Duration::from_secs(20);
/// How long requests in progress may take when the server ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
/// The most requests in progress at once on one connection.
const STREAMS: u32 = 128;

/// A port that is taken, or that this process may not use.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {at}{hint}")]
pub struct ListenError {
    at: SocketAddr,
    hint: &'static str,
    source: io::Error,
}

const HINTS: &[(io::ErrorKind, &str)] = &[
    (io::ErrorKind::AddrInUse, ": another program uses the port; stop it, or set API_PORT or GRPC_PORT"),
    (io::ErrorKind::PermissionDenied, ": ports below 1024 need privilege; set API_PORT or GRPC_PORT"),
    (io::ErrorKind::AddrNotAvailable, ": this host does not have the address; set BIND"),
];

impl ListenError {
    /// The error of an address that cannot be listened on, with its cause.
    pub fn new(at: SocketAddr, source: io::Error) -> Self {
        let hint = HINTS.iter().find(|(kind, _)| *kind == source.kind()).map_or("", |(_, hint)| hint);
        Self { at, hint, source }
    }
}

/// Takes a port.
pub async fn bind(at: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(at).await.map_err(|source| ListenError::new(at, source))
}

/// The TLS configuration for a certificate.
pub fn tls(certificate: Certificate) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    let mut config = builder.with_single_cert(certificate.chain, certificate.key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `shutdown` becomes true, and then until the connections have ended, which takes a second at most.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
) {
    // Each connection holds a sender; when all are gone, the receiver ends.
    let (open, mut ended) = mpsc::channel::<Infallible>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|end| *end) => break,
        };
        match accepted {
            Ok((stream, from)) => {
                let (tls, router, shutdown, open) = (tls.clone(), router.clone(), shutdown.clone(), open.clone());
                tokio::spawn(async move {
                    connection(stream, from, tls, router, shutdown).await;
                    drop(open);
                });
            }
            Err(error) => {
                // Most likely there are no file descriptors left: others must end before one more can begin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop((listener, open));
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT * 2, ended.recv()).await;
}

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: watch::Receiver<bool>,
) {
    // Low latency of small answers matters more than full packets.
    let _ = stream.set_nodelay(true);
    match tls {
        None => http(stream, from, router, shutdown).await,
        Some(config) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(stream)) => http(stream, from, router, shutdown).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        },
    }
}

/// Serves the requests on one stream, until it ends or `shutdown` becomes true.
pub(crate) async fn http(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    from: SocketAddr,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
) {
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        let mut router = router.clone();
        async move { Ok::<_, Infallible>(router.call(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 << 10);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(error, "connection ended");
            }
            return;
        }
        _ = shutdown.wait_for(|end| *end) => connection.as_mut().graceful_shutdown(),
    }
    // Requests in progress may finish; streams that never end are cut.
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, connection).await;
}
