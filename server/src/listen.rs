//! Serves a router on a TCP port, with TLS or without: the same for REST and gRPC.
//!
//! Nobody who cannot log in can keep out anybody who can: each listener has [`Limits`] of its own, below the
//! descriptors of the process; [`connections`] decides who is closed, [`bodies`] holds requests and answers
//! to them. An answer arrives whether or not the body of its request was wanted.

mod bodies;
mod connections;
mod limits;
mod stream;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustix::io::Errno;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use crate::error::Error;
use crate::identity::Certificate;
pub use bodies::{Login, TooSlow};
use bodies::{RequestBody, ResponseBody, Ticket};
pub use connections::Connections;
use connections::{Admitted, Connection};
pub use limits::{Configured, Limits, Shares};
use stream::Noted;

/// How often connections are searched for those that are overdue.
const SWEEP: Duration = Duration::from_secs(1);
/// How many connections the kernel holds that were not accepted yet: as many as Linux allows by default
/// (net.core.somaxconn).
const BACKLOG: u32 = 4_096;
/// The largest head of a request, in bytes: longer ones are answered with 431 or, over HTTP/2, reset.
const HEAD: u32 = 64 << 10;
/// How much of a body the client may send over HTTP/2 before it is read: it bounds what a connection takes
/// up.
const WINDOW: u32 = 128 << 10;
/// How much of an answer waits on one HTTP/2 stream.
const SEND_BUFFER: usize = 64 << 10;
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
pub fn bind(at: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if at.is_ipv6() {
            // Whatever net.ipv6.bindv6only says: `::` is documented to be both.
            socket2::SockRef::from(&socket).set_only_v6(false)?;
        }
        socket.set_reuseaddr(true)?;
        socket.bind(at)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ListenError::new(at, source))
}

/// The TLS configuration for a certificate.
pub fn tls(certificate: Certificate) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_details(provider, netclient::clock::time())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    let mut config = builder.with_single_cert(certificate.chain, certificate.key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until `shutdown` becomes true, and then until the connections have ended, which takes a second at
/// most.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    connections: Arc<Connections>,
    mut shutdown: watch::Receiver<bool>,
) {
    // Each connection holds a sender; when all are gone, the receiver ends.
    let (open, mut ended) = mpsc::channel::<Infallible>(1);
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = sweep.tick() => {
                log_full(&connections, &listener);
                continue;
            }
            _ = shutdown.wait_for(|end| *end) => break,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(admitted) = connections.admit(Instant::now()) else { continue };
                let (tls, router, shutdown, open) =
                    (tls.clone(), router.clone(), shutdown.clone(), open.clone());
                let timeout = connections.timeout();
                tokio::spawn(async move {
                    // Low latency of small answers matters more than full packets.
                    let _ = stream.set_nodelay(true);
                    connection(stream, from, tls, router, admitted, timeout, shutdown).await;
                    drop(open);
                });
            }
            Err(error) if is_exhausted(&error) => {
                tracing::debug!(%error, "cannot accept a connection");
                connections.make_room();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            // The client has gone away meanwhile (accept(2), ECONNABORTED).
            Err(error) => tracing::debug!(%error, "a connection was not accepted"),
        }
    }
    drop((listener, open));
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT * 2, ended.recv()).await;
}

/// Whether the host has no descriptor or memory left for a connection: others must end before one more can
/// begin.
fn is_exhausted(error: &io::Error) -> bool {
    let errors = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| errors.contains(&error))
}

/// Closes the connections that are overdue, and logs how many gave way to others.
fn log_full(connections: &Connections, listener: &TcpListener) {
    if let Some(count) = connections.sweep(Instant::now()) {
        let port = listener.local_addr().map(|at| at.port()).unwrap_or_default();
        tracing::warn!(
            port,
            count,
            "there are as many connections as API_CONNECTIONS, GRPC_CONNECTIONS or ANONYMOUS_CONNECTIONS allow: so many \
             gave way to newer ones, or were refused; those of whoever has logged in stay"
        );
    }
}

/// Serves one connection until it ends, or has to be closed.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    from: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    admitted: Admitted,
    timeout: Duration,
    shutdown: watch::Receiver<bool>,
) {
    let Admitted(connection) = &admitted;
    let stream = Noted::new(stream, Arc::clone(connection));
    let served = async {
        match tls {
            None => http_on(stream, from, router, connection, timeout, shutdown).await,
            Some(config) => match TlsAcceptor::from(config).accept(stream).await {
                Ok(stream) => {
                    connection.progress().handshaken(Instant::now());
                    http_on(stream, from, router, connection, timeout, shutdown).await;
                }
                Err(error) => tracing::debug!(%error, "TLS handshake failed"),
            },
        }
    };
    tokio::select! {
        () = served => {}
        () = connection.closed() => {}
    }
}

/// Serves the requests on one stream that nobody outside of this process has, until it ends or `shutdown`
/// becomes true.
pub(crate) async fn http(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    from: SocketAddr,
    router: Router,
    shutdown: watch::Receiver<bool>,
) {
    http_on(stream, from, router, &Connection::detached(), Configured::default().client_timeout, shutdown)
        .await;
}

async fn http_on(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    from: SocketAddr,
    router: Router,
    connection: &Arc<Connection>,
    timeout: Duration,
    mut shutdown: watch::Receiver<bool>,
) {
    let connection = Arc::clone(connection);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        let (router, connection) = (router.clone(), Arc::clone(&connection));
        async move { Ok::<_, Infallible>(answer(request, router, &connection, timeout).await) }
    });
    let builder = builder(timeout);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        ended = served.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(error, "connection ended");
            }
            return;
        }
        _ = shutdown.wait_for(|end| *end) => served.as_mut().graceful_shutdown(),
    }
    // Requests in progress may finish; streams that never end are cut.
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, served).await;
}

fn builder(timeout: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(timeout).max_buf_size(HEAD as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEAD);
    builder
}

/// The answer to a request, given once its body has been read, whoever wanted it.
async fn answer(
    request: hyper::Request<Incoming>,
    mut router: Router,
    connection: &Arc<Connection>,
    timeout: Duration,
) -> hyper::Response<ResponseBody> {
    let (mut head, body) = request.into_parts();
    let waits = head
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let (body, unread) = RequestBody::new(body, timeout);
    let Some(ticket) = Ticket::new(connection) else {
        let refusal = refusal(&head.headers);
        drop((head, body));
        unread.drain(waits).await;
        return refusal.map(|body| ResponseBody::new(body, None));
    };
    head.extensions.insert(ticket.login());
    let request = hyper::Request::from_parts(head, body);
    let response = router.call(request).await.unwrap_or_else(|never| match never {});
    unread.drain(waits).await;
    response.map(|body| ResponseBody::new(body, Some(ticket)))
}

/// The address that a request comes from: behind a proxy the one that the proxy saw, which it adds last.
pub fn source(headers: &HeaderMap, extensions: &http::Extensions, behind_proxy: bool) -> Option<IpAddr> {
    if behind_proxy {
        let forwarded = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
        return forwarded.rsplit(',').next()?.trim().parse().ok();
    }
    extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(from)| from.ip())
}

/// What a client is sent that asks for too much at once before it has logged in.
fn refusal(headers: &HeaderMap) -> Response {
    let error = Error::Busy(
        "too many requests at once of a client that has not logged in; send them one by one".into(),
    );
    let grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    if headers.get(header::CONTENT_TYPE).is_some_and(grpc) {
        tonic::Status::from(error).into_http()
    } else {
        error.into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    /// The longest that a sweep may be late.
    const LATE: Duration = Duration::from_secs(1);

    /// Serves a client whose stream has room for 64 KiB; ends when the server has closed it.
    fn client(connections: &Arc<Connections>) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let router = Router::new().route("/large", get(|| async { vec![b'x'; 1 << 20] })).route(
            "/body",
            post(|body: Result<axum::body::Bytes, _>| async move {
                body.map_or_else(
                    |error: axum::extract::rejection::BytesRejection| error.to_string(),
                    |body| body.len().to_string(),
                )
            }),
        );
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let admitted = connections.admit(Instant::now()).expect("there is room");
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let (end, shutdown) = watch::channel(false);
        let served = connection(theirs, from, None, router, admitted, TIMEOUT, shutdown);
        let task = tokio::spawn(async move {
            served.await;
            drop(end);
        });
        (ours, task)
    }

    fn connections() -> Arc<Connections> {
        let all = Connections::new(Limits { connections: 10, anonymous: 10, timeout: TIMEOUT });
        let sweeper = Arc::clone(&all);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                sweeper.sweep(Instant::now());
            }
        });
        all
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let listener = bind("[::]:0".parse().expect("good")).expect("a free port");
        let port = listener.local_addr().expect("it has one").port();
        for host in ["127.0.0.1", "::1"] {
            let called = tokio::net::TcpStream::connect((host, port)).await;
            called.unwrap_or_else(|error| panic!("{host}: {error}"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_half_a_request_is_closed_after_the_timeout() {
        let all = connections();
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let idle = format!("{preface}\0\0\0\x04\0\0\0\0\0");
        for said in ["", "G", "GET / HTTP/1.1\r\nhost: x\r\n", &preface[..10], preface, &idle] {
            let start = Instant::now();
            let (mut stream, task) = client(&all);
            stream.write_all(said.as_bytes()).await.expect("it is read");
            task.await.expect("it ends");
            let took = start.elapsed();
            assert!((TIMEOUT..=TIMEOUT + LATE).contains(&took), "{said:?} was closed after {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_answers_pings_and_asks_nothing_is_closed_as_well() {
        let all = connections();
        let start = Instant::now();
        let (stream, task) = client(&all);
        let (_client, connection) = h2::client::handshake(stream).await.expect("it begins");
        tokio::spawn(connection);
        task.await.expect("it ends");
        assert!(start.elapsed() <= TIMEOUT + LATE, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_read_an_answer_is_closed_after_the_timeout() {
        let all = connections();
        let start = Instant::now();
        let (mut stream, task) = client(&all);
        stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is read");
        task.await.expect("it ends");
        assert!((TIMEOUT..=TIMEOUT + LATE).contains(&start.elapsed()), "HTTP/1.1: {:?}", start.elapsed());
        let start = Instant::now();
        let (stream, task) = client(&all);
        let (mut client, connection) = h2::client::Builder::new()
            .initial_window_size(0)
            .handshake::<_, axum::body::Bytes>(stream)
            .await
            .expect("it begins");
        tokio::spawn(connection);
        let request = http::Request::get("http://x/large").body(()).expect("good");
        let (answer, _) = client.send_request(request, true).expect("it is sent");
        assert_eq!(answer.await.expect("the head needs no window").status(), 200);
        task.await.expect("it ends");
        assert!((TIMEOUT..=TIMEOUT + LATE).contains(&start.elapsed()), "HTTP/2: {:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_to_arrive_and_not_a_byte_at_a_time() {
        for (trickle, least) in [(None, TIMEOUT), (Some(Duration::from_secs(2)), TIMEOUT)] {
            let all = connections();
            let start = Instant::now();
            let (mut stream, _task) = client(&all);
            stream
                .write_all(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx")
                .await
                .expect("it is read");
            let (mut read, mut write) = tokio::io::split(stream);
            let feeding = async {
                let Some(pause) = trickle else { return std::future::pending().await };
                while write.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(pause).await;
                }
            };
            let mut answer = vec![0; 1_000];
            let length = tokio::select! {
                length = read.read(&mut answer) => length.expect("an answer comes"),
                () = feeding => panic!("the connection was closed without an answer"),
            };
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            let took = start.elapsed();
            assert!(answer.contains("the body did not arrive"), "{answer}");
            assert!(took >= least && took <= TIMEOUT + Duration::from_secs(3), "{took:?}");
        }
    }
}
