//! The connections of one listener: who gives way when there are too many, and who has been silent for too
//! long.
//!
//! A connection starts without standing, gains some by a finished request, and is known once a request on it
//! has shown a token or session that is valid. [`Progress`] decides what is overdue and is pure; a sweep
//! closes what it says. At a limit the oldest connection of the least standing gives way to the new one; a
//! known one never does. So nobody who cannot log in can keep out anybody who can.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::limits::Limits;
use crate::tally::Tally;

/// The most requests in progress at once on a connection on which nobody has logged in: a client logs in with
/// its first or second request.
const ANONYMOUS_REQUESTS: usize = 8;
/// How many times longer a client that has logged in may not read what it is sent: its host may be busy or
/// suspended.
const KNOWN_READER: u32 = 6;

/// What speaks for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Nothing: no request has been finished.
    New,
    /// A request has been finished, but none that needs a login.
    Answered,
    /// A request has shown a valid token or session.
    Known,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The client sends no request, or not the rest of it.
    Silent,
    /// The client does not read what it is sent.
    NotReading,
}

/// What happens on one connection. Pure: it is given every event, with the time.
#[derive(Debug)]
pub(super) struct Progress {
    standing: Standing,
    /// Since when no request is in progress.
    waiting: Option<Instant>,
    requests: BTreeMap<u64, Pending>,
    last_request: u64,
    /// Since when nothing could be written.
    blocked: Option<Instant>,
}

/// A request in progress.
#[derive(Debug)]
struct Pending {
    /// Whether it has not shown that its client may do something.
    anonymous: bool,
    /// Since when a part of the answer has been waiting to be sent.
    untaken: Option<Instant>,
}

impl Progress {
    pub(super) fn new(now: Instant) -> Self {
        let requests = BTreeMap::new();
        Self { standing: Standing::New, waiting: Some(now), requests, last_request: 0, blocked: None }
    }

    /// TLS is set up: the time for the first request begins.
    pub(super) fn handshaken(&mut self, now: Instant) {
        self.waiting = Some(now);
    }

    /// A request begins; nothing if there are too many of a client that nobody knows.
    pub(super) fn begin(&mut self) -> Option<u64> {
        let anonymous = self.standing < Standing::Known;
        if anonymous
            && self.requests.values().filter(|request| request.anonymous).count() >= ANONYMOUS_REQUESTS
        {
            return None;
        }
        self.last_request += 1;
        self.waiting = None;
        self.requests.insert(self.last_request, Pending { anonymous, untaken: None });
        Some(self.last_request)
    }

    /// A request has shown a valid token or session.
    pub(super) fn known(&mut self, request: u64) {
        self.standing = Standing::Known;
        if let Some(request) = self.requests.get_mut(&request) {
            request.anonymous = false;
        }
    }

    /// A part of the answer waits to be sent.
    pub(super) fn given(&mut self, request: u64, now: Instant) {
        if let Some(request) = self.requests.get_mut(&request) {
            request.untaken.get_or_insert(now);
        }
    }

    /// All of the answer that there was has been sent.
    pub(super) fn taken(&mut self, request: u64) {
        if let Some(request) = self.requests.get_mut(&request) {
            request.untaken = None;
        }
    }

    /// A request is over; `answered`: because its answer has been sent.
    pub(super) fn end(&mut self, request: u64, answered: bool, now: Instant) {
        self.requests.remove(&request);
        if answered {
            self.standing = self.standing.max(Standing::Answered);
        }
        if self.requests.is_empty() {
            self.waiting = Some(now);
        }
    }

    /// Nothing can be written, or something has been.
    pub(super) fn writing(&mut self, blocked: bool, now: Instant) {
        self.blocked = if blocked { Some(self.blocked.unwrap_or(now)) } else { None };
    }

    /// Why the connection has to be closed now, if it has to be.
    pub(super) fn overdue(&self, now: Instant, timeout: Duration) -> Option<Overdue> {
        let known = self.standing == Standing::Known;
        let over = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        if !known && self.waiting.is_some_and(|since| over(since, timeout)) {
            return Some(Overdue::Silent);
        }
        let reading = if known { timeout * KNOWN_READER } else { timeout };
        let untaken = self.requests.values().filter_map(|request| request.untaken);
        untaken.chain(self.blocked).any(|since| over(since, reading)).then_some(Overdue::NotReading)
    }
}

/// The connections of one listener.
#[derive(Debug)]
pub struct Connections {
    limits: Limits,
    open: Mutex<Open>,
    gave_way: Tally,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    /// Those on which nobody has logged in: the first gives way first.
    anonymous: BTreeMap<(Standing, u64), Arc<Connection>>,
    known: BTreeMap<u64, Arc<Connection>>,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    number: u64,
    progress: Mutex<Progress>,
    closed: Notify,
    all: Weak<Connections>,
}

/// A connection while it is open.
#[derive(Debug)]
pub(super) struct Admitted(pub(super) Arc<Connection>);

impl Connections {
    /// None are open yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default(), gave_way: Tally::default() })
    }

    pub(super) fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Admits a connection; where there are too many, the one with the least to say for it is closed first.
    /// Nothing if somebody is logged in on all of them.
    pub(super) fn admit(self: &Arc<Self>, now: Instant) -> Option<Admitted> {
        let mut open = self.open();
        let full = open.anonymous.len() + open.known.len() >= self.limits.connections;
        if full || open.anonymous.len() >= self.limits.anonymous {
            self.gave_way.add();
            if !open.close_first() && full {
                return None;
            }
        }
        open.last += 1;
        let number = open.last;
        let (progress, closed) = (Mutex::new(Progress::new(now)), Notify::new());
        let connection = Arc::new(Connection { number, progress, closed, all: Arc::downgrade(self) });
        open.anonymous.insert((Standing::New, number), Arc::clone(&connection));
        Some(Admitted(connection))
    }

    /// Closes the connection that has the least to say for it, because the process has no descriptor left.
    pub(super) fn make_room(&self) {
        self.gave_way.add();
        self.open().close_first();
    }

    /// Closes what is overdue; returns how many connections gave way since it last did, if the log is to say
    /// so.
    pub(super) fn sweep(&self, now: Instant) -> Option<u64> {
        let open = self.open();
        for connection in open.anonymous.values().chain(open.known.values()) {
            if let Some(why) = connection.progress().overdue(now, self.limits.timeout) {
                tracing::debug!(?why, "a connection is closed");
                connection.closed.notify_one();
            }
        }
        self.gave_way.due(now)
    }

    fn rank(&self, number: u64, from: Standing, to: Standing) {
        let mut open = self.open();
        // One that has been closed meanwhile stays away.
        let Some(connection) = open.anonymous.remove(&(from, number)) else { return };
        match to {
            Standing::Known => drop(open.known.insert(number, connection)),
            Standing::New | Standing::Answered => drop(open.anonymous.insert((to, number), connection)),
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // A panic elsewhere leaves the maps consistent: every change of them is one insertion or removal.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Closes the oldest connection of the least standing; whether there was one.
    fn close_first(&mut self) -> bool {
        let first = self.anonymous.pop_first();
        first.inspect(|(_, connection)| connection.closed.notify_one()).is_some()
    }
}

impl Connection {
    /// One that belongs to no listener, and that nobody closes.
    pub(super) fn detached() -> Arc<Self> {
        let (progress, closed) = (Mutex::new(Progress::new(Instant::now())), Notify::new());
        Arc::new(Self { number: 0, progress, closed, all: Weak::new() })
    }

    /// Waits until it has to be closed.
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of it, and its place among the others with that.
    pub(super) fn change(&self, change: impl FnOnce(&mut Progress)) {
        let (before, after) = {
            let mut progress = self.progress();
            let before = progress.standing;
            change(&mut progress);
            (before, progress.standing)
        };
        if before != after
            && let Some(all) = self.all.upgrade()
        {
            all.rank(self.number, before, after);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Self(connection) = self;
        let Some(all) = connection.all.upgrade() else { return };
        let mut open = all.open();
        open.known.remove(&connection.number);
        for standing in [Standing::New, Standing::Answered] {
            open.anonymous.remove(&(standing, connection.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const LIMITS: Limits = Limits { connections: 6, anonymous: 3, timeout: TIMEOUT };

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn whoever_sends_no_request_is_closed_after_the_timeout() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        assert_eq!(progress.overdue(after(start, 9), TIMEOUT), None);
        assert_eq!(progress.overdue(after(start, 10), TIMEOUT), Some(Overdue::Silent), "TLS takes too long");
        progress.handshaken(after(start, 9));
        assert_eq!(progress.overdue(after(start, 18), TIMEOUT), None);
        assert_eq!(progress.overdue(after(start, 19), TIMEOUT), Some(Overdue::Silent), "no head follows TLS");
        let request = progress.begin().expect("there is room");
        assert_eq!(
            progress.overdue(after(start, 500), TIMEOUT),
            None,
            "the server's own time does not count"
        );
        progress.end(request, true, after(start, 500));
        assert_eq!(
            progress.overdue(after(start, 510), TIMEOUT),
            Some(Overdue::Silent),
            "nothing speaks for it"
        );
        let request = progress.begin().expect("there is room");
        progress.known(request);
        progress.end(request, true, after(start, 501));
        assert_eq!(progress.overdue(after(start, 90_000), TIMEOUT), None, "an agent keeps its connection");
    }

    #[test]
    fn whoever_does_not_read_is_closed_and_one_who_is_known_later() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        let request = progress.begin().expect("there is room");
        progress.given(request, start);
        progress.given(request, after(start, 9));
        assert_eq!(progress.overdue(after(start, 10), TIMEOUT), Some(Overdue::NotReading));
        progress.taken(request);
        assert_eq!(progress.overdue(after(start, 10), TIMEOUT), None);
        progress.writing(true, after(start, 10));
        progress.writing(true, after(start, 19));
        assert_eq!(progress.overdue(after(start, 20), TIMEOUT), Some(Overdue::NotReading));
        progress.known(request);
        assert_eq!(progress.overdue(after(start, 69), TIMEOUT), None);
        assert_eq!(progress.overdue(after(start, 70), TIMEOUT), Some(Overdue::NotReading));
        progress.writing(false, after(start, 69));
        assert_eq!(progress.overdue(after(start, 70), TIMEOUT), None);
    }

    #[test]
    fn a_client_that_nobody_knows_may_ask_a_few_things_at_once() {
        let mut progress = Progress::new(Instant::now());
        let requests: Vec<_> = std::iter::from_fn(|| progress.begin()).collect();
        assert_eq!(requests.len(), ANONYMOUS_REQUESTS);
        progress.end(requests[0], true, Instant::now());
        assert!(progress.begin().is_some_and(|request| request > requests[ANONYMOUS_REQUESTS - 1]));
        progress.known(requests[1]);
        assert!((0..100).all(|_| progress.begin().is_some()), "one that logged in may ask more");
    }

    /// Whether a connection has been asked to close.
    fn is_closed(connection: &Admitted) -> bool {
        use std::task::{Context, Waker};
        let closed = std::pin::pin!(connection.0.closed());
        closed.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn finish(connection: &Admitted, known: bool) {
        connection.0.change(|progress| {
            let request = progress.begin().expect("there is room");
            if known {
                progress.known(request);
            }
            progress.end(request, true, Instant::now());
        });
    }

    #[test]
    fn the_oldest_without_a_finished_request_gives_way_and_whoever_is_known_never_does() {
        let all = Connections::new(LIMITS);
        let now = Instant::now();
        let admit = || all.admit(now).expect("there is room");
        let (known, answered, old) = (admit(), admit(), admit());
        finish(&known, true);
        finish(&answered, false);
        let young = admit();
        let newest = admit();
        let closed = || [&known, &answered, &old, &young, &newest].map(is_closed);
        assert_eq!(closed(), [false, false, true, false, false]);
        finish(&young, false);
        finish(&newest, false);
        let latest = admit();
        assert!(is_closed(&answered) && !is_closed(&young), "of those with equal standing the oldest");
        assert!(all.sweep(now).is_some_and(|count| count == 2), "the log says how many");
        drop((answered, old, young, newest, latest));
        let friends: Vec<_> = (0..5).map(|_| admit()).inspect(|it| finish(it, true)).collect();
        assert!(all.admit(now).is_none(), "somebody is logged in on all of them");
        assert!(!friends.iter().chain([&known]).any(is_closed));
        drop(known);
        let _one_more = admit();
    }
}
