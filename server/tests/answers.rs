//! An answer always arrives: whatever was sent with the request, whether or not the server wanted it, over
//! HTTP/1.1 and HTTP/2; and every refusal has the form that was promised.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::net::SocketAddr;

use axum::body::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, StatusCode};
use nmserver::core::authorize::{Call, Needs, TABLE};
use reqwest::Method;
use support::{Running, failure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};

/// More than what sockets and windows hold, so that a server which does not read it is noticed.
const BODY: usize = 12 << 20;
const CHUNK: usize = 16 << 10;

/// Sends a request with a large body over HTTP/2: the answer, and whether the stream was reset besides.
async fn over_http2(
    server: &Running,
    at: SocketAddr,
    request: Request<()>,
) -> (StatusCode, HeaderMap, Bytes) {
    let stream = server.tls(at, &["h2"]).await;
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let what = format!("{} {}", request.method(), request.uri());
    let (answer, mut body) = client.ready().await.unwrap().send_request(request, false).unwrap();
    let mut left = BODY;
    while left > 0 {
        body.reserve_capacity(CHUNK.min(left));
        let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
        let room = room.unwrap_or_else(|| panic!("{what}: reset while the body is sent"));
        let room = room.unwrap_or_else(|error| panic!("{what}: {error}")).min(left);
        left -= room;
        body.send_data(vec![b'x'; room].into(), left == 0).unwrap();
    }
    let (head, mut incoming) = answer.await.unwrap_or_else(|error| panic!("{what}: {error}")).into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk.unwrap_or_else(|error| panic!("{what}: {error}"));
        // What is read makes room for more: an answer may be larger than the window.
        incoming.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    let reset = std::future::poll_fn(|cx| body.poll_reset(cx)).now_or_never();
    assert!(reset.is_none(), "{what}: reset after the answer: {reset:?}");
    (head.status, head.headers, bytes.into())
}

/// Sends the same over HTTP/1.1, all of it before the answer is read.
async fn over_http1(server: &Running, at: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = server.tls(at, &["http/1.1"]).await;
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {BODY}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let sent = stream.write_all(&vec![b'x'; BODY]).await;
    sent.unwrap_or_else(|error| panic!("{method} {path}: closed while the body is sent: {error}"));
    let mut answer = Vec::new();
    // A peer that closes without TLS's own end is of no interest here.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_refusal_arrives_although_nobody_read_the_body() {
    let (server, _) = Running::in_memory().await;
    for rule in TABLE {
        match rule.call {
            Call::Rest(method, path) => {
                let method = method.to_uppercase();
                let path =
                    path.replace("{network}", "corp").replace("{kind}", "dns").replace("{name}", "api");
                let expected = if rule.needs == Needs::Nothing { "200" } else { "401" };
                let request = Request::builder().method(&*method).uri(format!("https://localhost{path}"));
                let (status, headers, body) =
                    over_http2(&server, server.rest, request.body(()).unwrap()).await;
                assert_eq!(status.as_str(), expected, "{method} {path} over HTTP/2");
                assert!(!body.is_empty() || headers.contains_key("content-length"), "{method} {path}");
                let answer = over_http1(&server, server.rest, &method, &path).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{method} {path}: {answer:?}");
            }
            Call::Grpc(method) => {
                let uri = format!("https://localhost/{}/{method}", proto::wire::agent_server::SERVICE_NAME);
                let request =
                    Request::post(&uri).header("content-type", "application/grpc").header("te", "trailers");
                let (status, headers, _) =
                    over_http2(&server, server.known.at, request.body(()).unwrap()).await;
                assert_eq!(status, StatusCode::OK, "{method}");
                let refused =
                    Status::from_header_map(&headers).unwrap_or_else(|| panic!("{method}: {headers:?}"));
                let expected =
                    if rule.needs == Needs::Session { Code::Unauthenticated } else { Code::InvalidArgument };
                assert_eq!(refused.code(), expected, "{method}: {}", refused.message());
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_asks_first_whether_to_send_a_body_is_answered_at_once() {
    let (server, _) = Running::in_memory().await;
    let mut stream = server.tls(server.rest, &["http/1.1"]).await;
    let head =
        "POST /api/v1/apply HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401", "and not 100: there is nothing to send");
}

#[tokio::test]
async fn every_error_is_problem_json() {
    let (server, _) = Running::in_memory().await;
    for (method, path, expected) in [
        (Method::GET, "/api/v2/x", (404, "not_found")),
        (Method::PATCH, "/api/v1/snapshot", (405, "method")),
        (Method::GET, "/api/v1/%FF/dns/api", (400, "bad_request")),
        (Method::GET, "/api/v1/corp/dns/%FF", (400, "bad_request")),
        (Method::DELETE, "/api/v1/corp/node/%FF/host", (400, "bad_request")),
        (Method::GET, "/api/v1/revisions?after=x", (400, "bad_request")),
        (Method::GET, "/api/v1/revisions?after=9223372036854775808", (400, "bad_request")),
        (Method::GET, "/api/v1/revisions?after=18446744073709551616", (400, "bad_request")),
        (Method::GET, "/api/v1/revisions?limit=-1", (400, "bad_request")),
    ] {
        let answer = server.call(method.clone(), path).bearer_auth(&server.token).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{method} {path}");
        let (status, code, _) = failure(answer).await;
        assert_eq!((status, &*code), expected, "{method} {path}");
    }
    let last = server.get("/api/v1/revisions?after=9223372036854775807").await;
    assert_eq!(last.status(), StatusCode::OK, "the last revision that there could be is none of these");
    let large = vec![b' '; (128 << 20) + 1];
    let answer = server
        .call(Method::POST, "/api/v1/apply")
        .bearer_auth(&server.token)
        .body(large)
        .send()
        .await
        .unwrap();
    let (status, code, detail) = failure(answer).await;
    assert_eq!((status, &*code), (413, "too_large"));
    assert!(detail.contains("128 MiB") && detail.contains("MAX_BODY"), "{detail}");
}

#[tokio::test]
async fn heads_have_a_limit_and_those_below_it_are_read() {
    let (server, _) = Running::in_memory().await;
    for (size, expected) in [(40_000, "200"), (70_000, "431")] {
        let mut stream = server.tls(server.rest, &["http/1.1"]).await;
        let head = format!("GET /readyz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(size));
        // The server may answer and close before it has all.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {expected}"), "{size} bytes");
    }
}

#[tokio::test]
async fn what_is_no_message_of_the_protocol_is_the_callers_mistake() {
    let (server, _) = Running::in_memory().await;
    let stream = server.tls(server.known.at, &["h2"]).await;
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    // Field 1 as a length-delimited value that is longer than the message; a compressed message without an
    // encoding; a length without a message.
    for garbage in [&b"\0\0\0\0\x03\x0a\xff\x01"[..], b"\x01\0\0\0\x01x", b"\x07\0\0\0\x01x"] {
        let uri = format!("https://localhost/{}/Join", proto::wire::agent_server::SERVICE_NAME);
        let request = Request::post(uri).header("content-type", "application/grpc").body(()).unwrap();
        client = client.ready().await.unwrap();
        let (answer, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(garbage), true).unwrap();
        let head = answer.await.unwrap();
        let status = Status::from_header_map(head.headers()).unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{garbage:?}: {}", status.message());
    }
}
