//! A proxy that ends TLS between agents and the server, with a certificate of its own, and records every
//! call.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use hyper::body::Body as _;
use nmserver::identity::{self, DataDir};
use nmserver::listen::{self, Connections, Limits, Login};
use schema::scalars::CaPin;
use test_agent::KnownServer;
use tokio::sync::watch;
use tonic::Code;
use tower::Service as _;

use super::folder;

/// How long the answer to a replay may take before it counts as a stream that was opened.
const OPEN_AFTER: Duration = Duration::from_secs(2);

/// A call as an agent made it.
#[derive(Clone, Debug)]
pub struct Recorded {
    path: String,
    /// With the session, if there was one.
    headers: HeaderMap,
    /// Its message, framed.
    pub body: Bytes,
}

impl Recorded {
    /// The method that was called.
    pub fn method(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The same call with the first bytes of its message only.
    pub fn cut(&self, length: usize) -> Self {
        Self { body: self.body.slice(..length), ..self.clone() }
    }
}

/// The answer to a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It ended with this code, after messages of so many bytes.
    Ended(Code, usize),
    /// It goes on: a stream was opened.
    Open,
}

/// A proxy that serves until it is dropped.
pub struct Proxy {
    /// What an agent of the tests needs to call the server through it.
    pub known: KnownServer,
    /// The CA that its certificate is of.
    pub ca_pin: CaPin,
    carrier: Carrier,
    _end: watch::Sender<bool>,
}

#[derive(Clone)]
struct Carrier {
    server: KnownServer,
    recorded: Arc<Mutex<Vec<Recorded>>>,
}

impl Proxy {
    /// Starts one in front of a server.
    pub async fn start(server: &KnownServer) -> Self {
        let carrier = Carrier { server: server.clone(), recorded: Arc::default() };
        let directory = folder();
        let data = DataDir::open(directory.path()).expect("it opens");
        let certificate = identity::certificate(&data, &[]).expect("it is made");
        let ca_pin = certificate.ca_pin;
        let ca = std::fs::read_to_string(directory.path().join("ca.pem")).expect("it is there");
        let tls = listen::tls(certificate).expect("TLS is set up");
        let listener = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let at = listener.local_addr().expect("it has one");
        let router = Router::new().fallback(carry).with_state(carrier.clone());
        let limits = Limits { connections: 64, anonymous: 64, timeout: Duration::from_secs(30) };
        let (end, shutdown) = watch::channel(false);
        tokio::spawn(listen::serve(listener, Some(tls), router, Connections::new(limits), shutdown));
        Self { known: KnownServer { at, ca, signing_key: server.signing_key }, ca_pin, carrier, _end: end }
    }

    /// Every call so far, in the order of their arrival.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.carrier.recorded.lock().expect("no thread panicked").clone()
    }

    /// Makes a call once more, on a connection of its own.
    pub async fn replay(&self, call: &Recorded) -> Answer {
        let answer = async {
            let response = send(&self.carrier.server, call).await;
            let (head, mut body) = response.into_parts();
            let (mut bytes, mut trailers) = (0, HeaderMap::new());
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                match frame.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers())) {
                    Ok(Ok(data)) => bytes += data.len(),
                    Ok(Err(last)) => trailers.extend(last.unwrap_or_default()),
                    Err(_) => return Answer::Ended(Code::Unavailable, bytes),
                }
            }
            let code = [&trailers, &head.headers].into_iter().find_map(|headers| headers.get("grpc-status"));
            Answer::Ended(code.map_or(Code::Unavailable, |code| Code::from_bytes(code.as_bytes())), bytes)
        };
        tokio::time::timeout(OPEN_AFTER, answer).await.unwrap_or(Answer::Open)
    }
}

/// Carries a call on, and its answer back.
async fn carry(State(carrier): State<Carrier>, request: Request) -> Response {
    // The proxy trusts whoever calls it.
    if let Some(login) = request.extensions().get::<Login>() {
        login.accepted();
    }
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, 1 << 20).await else { return StatusCode::BAD_REQUEST.into_response() };
    let call = Recorded { path: head.uri.path().to_owned(), headers: head.headers, body };
    carrier.recorded.lock().expect("no thread panicked").push(call.clone());
    send(&carrier.server, &call).await
}

/// Makes a call of the server, on a connection of its own.
async fn send(server: &KnownServer, call: &Recorded) -> Response {
    let mut channel = server.channel();
    let body = tonic::body::Body::new(Body::from(call.body.clone()));
    let mut request = http::Request::post(&call.path).body(body).expect("it was a request before");
    *request.headers_mut() = call.headers.clone();
    request.headers_mut().remove(http::header::HOST);
    let ready = poll_fn(|cx| channel.poll_ready(cx)).await;
    match ready {
        Ok(()) => match channel.call(request).await {
            Ok(response) => response.map(Body::new),
            Err(_) => StatusCode::BAD_GATEWAY.into_response(),
        },
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
