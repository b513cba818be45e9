//! The bodies of requests and answers, as far as clients may hold them up.
//!
//! A request's body has to arrive at a pace. What a handler leaves of it is read to its end before the answer
//! is sent: over HTTP/1.1 a client that is still sending may lose an answer to the reset of its connection,
//! and over HTTP/2 the stream is reset after an early answer (RFC 9113, section 8.1), which some clients
//! report in place of the answer. An answer's body notes whether the client takes it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::connections::Connection;

/// Bytes a second that a body must bring on average, once the timeout has passed: less than any line of this
/// century.
const LEAST_RATE: u64 = 16 << 10;
/// The most bytes of a body that nobody wants which are read, so that the answer arrives: twice the largest
/// body that MAX_BODY allows.
const DRAINED: u64 = 2 << 30;

/// A body that did not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the body did not arrive: there was no byte for {0:?}, or less than {LEAST_RATE} bytes a second")]
pub struct TooSlow(Duration);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request.
pub(super) struct RequestBody {
    /// Present until it is dropped.
    body: Option<Incoming>,
    pace: Pace,
    unread: Unread,
}

/// How fast a body arrives.
struct Pace {
    timeout: Duration,
    started: Instant,
    bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether it was too slow already.
    late: bool,
}

/// What a handler left of a body: whoever has it can read the rest.
#[derive(Clone, Default)]
pub(super) struct Unread(Arc<Mutex<Option<(Incoming, Pace)>>>);

impl Pace {
    fn progress(&mut self, frame: &Frame<Bytes>) {
        self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        if let Some(timer) = &mut self.timer {
            let by_rate = self.started + self.timeout + Duration::from_secs(self.bytes / LEAST_RATE);
            timer.as_mut().reset(by_rate.min(Instant::now() + self.timeout));
        }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.timeout)));
        timer.as_mut().poll(cx)
    }

    fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.progress(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => self.poll_late(cx).map(|()| {
                self.late = true;
                Some(Err(TooSlow(self.timeout).into()))
            }),
        }
    }
}

impl RequestBody {
    /// The body as a handler is given it, and what it will leave.
    pub(super) fn new(body: Incoming, timeout: Duration) -> (Self, Unread) {
        let unread = Unread::default();
        let pace = Pace { timeout, started: Instant::now(), bytes: 0, timer: None, late: false };
        (Self { body: Some(body), pace, unread: unread.clone() }, unread)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { body, pace, unread: _ } = &mut *self;
        match body {
            Some(body) => pace.poll_frame(body, cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let pace = Pace { timer: None, ..self.pace };
        *self.unread.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((body, pace));
    }
}

impl Unread {
    /// Reads what is left, as far as it arrives in time and is not too long. `waits`: the client sends the
    /// body only when it is asked for it (RFC 9110, section 10.1.1), so that there is nothing to read as long
    /// as nobody has begun.
    pub(super) async fn drain(self, waits: bool) {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((mut body, mut pace)) = left else { return };
        if pace.late || (waits && pace.bytes == 0) {
            return;
        }
        let end = pace.bytes.saturating_add(DRAINED);
        while pace.bytes < end {
            match std::future::poll_fn(|cx| pace.poll_frame(&mut body, cx)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    }
}

/// A request in progress: over once it is dropped.
pub(super) struct Ticket {
    connection: Arc<Connection>,
    request: u64,
    answered: bool,
}

/// How a handler says that whoever sent a request may do something.
#[derive(Clone, Debug)]
pub struct Login {
    connection: Arc<Connection>,
    request: u64,
}

impl Login {
    /// The request has shown a valid token or session.
    pub fn accepted(&self) {
        self.connection.change(|progress| progress.known(self.request));
    }
}

impl Ticket {
    /// Begins a request; nothing if the client has too many in progress.
    pub(super) fn new(connection: &Arc<Connection>) -> Option<Self> {
        let request = connection.progress().begin()?;
        Some(Self { connection: Arc::clone(connection), request, answered: false })
    }

    pub(super) fn login(&self) -> Login {
        Login { connection: Arc::clone(&self.connection), request: self.request }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.connection.change(|progress| progress.end(self.request, self.answered, Instant::now()));
    }
}

/// The body of an answer.
pub(super) struct ResponseBody {
    body: axum::body::Body,
    ticket: Option<Ticket>,
}

impl ResponseBody {
    /// The body of the answer to a request; absent: one that was not begun.
    pub(super) fn new(body: axum::body::Body, ticket: Option<Ticket>) -> Self {
        let mut it = Self { body, ticket };
        it.note_end();
        it
    }

    /// Notes whether all of it has been handed out.
    fn note_end(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.answered |= self.body.is_end_stream();
            ticket.connection.progress().given(ticket.request, Instant::now());
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(ticket) = &self.ticket {
            // Whoever asks for more has sent what there was.
            ticket.connection.progress().taken(ticket.request);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(_)) => self.note_end(),
            Poll::Ready(None) => self.ticket.iter_mut().for_each(|ticket| ticket.answered = true),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
