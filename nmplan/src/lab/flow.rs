//! What happens to traffic that goes on while something changes?
//!
//! A [`Flow`] keeps messages passing between two hosts: a TCP connection, datagrams of one socket, or echo
//! requests, asked and answered, or sent by the far side without being asked again. Its [`Timeline`], which is
//! pure, says of each message when it was sent and when it arrived.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::listeners::{Message, MessageKind};
use super::lock;
use super::ping::Echo;

/// How often a message of a flow is sent.
pub const PACE: Duration = Duration::from_millis(20);

/// For how many echo requests a flow waits at the same time: those of two seconds.
const OPEN: usize = 100;

/// Who sends the messages of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The host that opened it; each is sent back.
    Asked,
    /// The far side; it is asked once, at the beginning.
    Pushed,
}

/// Traffic that goes on until this is dropped.
#[derive(Debug)]
pub struct Flow {
    timeline: Arc<Mutex<Timeline>>,
    task: JoinHandle<()>,
}

impl Flow {
    pub(super) fn tcp(socket: Socket, to: SocketAddr, pattern: Pattern) -> Self {
        Self::start(async move |timeline| {
            let ended = by_tcp(socket, to, pattern, &timeline).await;
            lock(&timeline).end(Instant::now(), &ended);
        })
    }

    pub(super) fn udp(socket: UdpSocket, to: SocketAddr, pattern: Pattern) -> Self {
        Self::start(async move |timeline| by_udp(&socket, to, pattern, &timeline).await)
    }

    pub(super) fn icmp(echo: Arc<Echo>, to: IpAddr) -> Self {
        Self::start(async move |timeline| {
            let mut ticks = ticks();
            let mut open = VecDeque::new();
            loop {
                ticks.tick().await;
                let of_answer = Arc::clone(&timeline);
                let ticket = echo.expect(to, move |ticket, now| lock(&of_answer).heard(ticket.into(), now));
                lock(&timeline).sent(ticket.into(), Instant::now());
                echo.send(to, ticket).await;
                open.push_back(ticket);
                if open.len() > OPEN
                    && let Some(lost) = open.pop_front()
                {
                    echo.forget(lost);
                }
            }
        })
    }

    fn start<F: Future<Output = ()> + Send + 'static>(carry: impl FnOnce(Arc<Mutex<Timeline>>) -> F) -> Self {
        let timeline = Arc::new(Mutex::new(Timeline::default()));
        Self { task: tokio::spawn(carry(Arc::clone(&timeline))), timeline }
    }

    /// What has happened so far.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        lock(&self.timeline).clone()
    }

    /// Waits until the first message has arrived.
    ///
    /// # Errors
    ///
    /// `TimedOut` when none does within `limit`.
    pub async fn begun(self, limit: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + limit;
        while lock(&self.timeline).last_heard().is_none() {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no message of a flow arrived"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(self)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries a flow by TCP until the connection ends; returns why it did.
async fn by_tcp(socket: Socket, to: SocketAddr, pattern: Pattern, timeline: &Mutex<Timeline>) -> io::Error {
    let mut stream = match TcpSocket::from_std_stream(socket.into()).connect(to).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    if let Err(error) = stream.set_nodelay(true) {
        return error;
    }
    let (mut reader, mut writer) = stream.split();
    let read = async {
        let mut bytes = [0; Message::LENGTH];
        loop {
            if let Err(error) = reader.read_exact(&mut bytes).await {
                return error;
            }
            lock(timeline).arrived(&bytes, Instant::now());
        }
    };
    let write = async {
        let mut questions = Questions::new(pattern);
        loop {
            let message = questions.next().await;
            lock(timeline).asked(&message);
            if let Err(error) = writer.write_all(&message.bytes()).await {
                return error;
            }
        }
    };
    tokio::select! { ended = read => ended, ended = write => ended }
}

async fn by_udp(socket: &UdpSocket, to: SocketAddr, pattern: Pattern, timeline: &Mutex<Timeline>) {
    let read = async {
        let mut bytes = [0; 2 * Message::LENGTH];
        loop {
            // An error here is about an earlier packet, and reading it has cleared it.
            let Ok((length, from)) = socket.recv_from(&mut bytes).await else { continue };
            if from == to {
                lock(timeline).arrived(&bytes[..length], Instant::now());
            }
        }
    };
    let write = async {
        let mut questions = Questions::new(pattern);
        loop {
            let message = questions.next().await;
            lock(timeline).asked(&message);
            // What the host does not send is lost like any other.
            let _ = socket.send_to(&message.bytes(), to).await;
        }
    };
    tokio::select! { () = read => (), () = write => () }
}

/// What the host that opened a flow sends.
struct Questions {
    pattern: Pattern,
    ticks: tokio::time::Interval,
    number: u64,
}

impl Questions {
    fn new(pattern: Pattern) -> Self {
        Self { pattern, ticks: ticks(), number: 0 }
    }

    /// The next one, when it is its time; never, once the far side has been asked to send.
    async fn next(&mut self) -> Message {
        self.number += 1;
        self.ticks.tick().await;
        let (kind, number) = match self.pattern {
            Pattern::Asked => (MessageKind::Ask, self.number),
            Pattern::Pushed if self.number == 1 => {
                (MessageKind::Push, u64::try_from(PACE.as_millis()).unwrap_or(1))
            }
            Pattern::Pushed => std::future::pending().await,
        };
        Message { kind, number, sent: Instant::now() }
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What happened to the messages of a flow.
///
/// Shown as a line of dots and crosses, one for each 200 ms since the first message: whether any message
/// arrived.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    messages: BTreeMap<u64, Passage>,
    last_heard: Option<Instant>,
    ended: Option<(Instant, String)>,
}

#[derive(Clone, Copy, Debug)]
struct Passage {
    sent: Instant,
    heard: Option<Instant>,
}

impl Timeline {
    /// When a message arrived last; absent: none did.
    #[must_use]
    pub fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    /// When and why the connection ended; absent: it has not, or there is none.
    #[must_use]
    pub fn ended(&self) -> Option<&(Instant, String)> {
        self.ended.as_ref()
    }

    /// Whether any message arrived in an interval of time.
    #[must_use]
    pub fn heard_between(&self, from: Instant, until: Instant) -> bool {
        self.messages.values().filter_map(|passage| passage.heard).any(|at| from <= at && at < until)
    }

    /// How many messages that were sent in an interval of time, or that should have been, did not arrive, or
    /// not within `limit`. TCP sends again what was lost, so there the limit shows it.
    ///
    /// Ask when `limit` has passed since the end of the interval.
    #[must_use]
    pub fn lost_between(&self, from: Instant, until: Instant, limit: Duration) -> usize {
        let within = |at: Instant| from <= at && at < until;
        let late = |passage: &&Passage| {
            within(passage.sent) && passage.heard.is_none_or(|heard| heard > passage.sent + limit)
        };
        let never = self.messages.values().filter(late).count();
        // A far side that sends unasked may have sent what nobody knows of.
        let last = self.messages.values().map(|passage| passage.sent).max().unwrap_or(from).max(from);
        let silent = until.saturating_duration_since(last).saturating_sub(limit);
        never + usize::try_from(silent.as_millis() / PACE.as_millis()).unwrap_or(usize::MAX)
    }

    /// The longest time within an interval of time in which no message arrived.
    #[must_use]
    pub fn longest_gap(&self, from: Instant, until: Instant) -> Duration {
        let heard = self.messages.values().filter_map(|passage| passage.heard);
        let mut heard: Vec<_> = heard.filter(|at| from < *at && *at < until).chain([until]).collect();
        heard.sort();
        let mut before = from;
        let gap = |at| at - std::mem::replace(&mut before, at);
        heard.into_iter().map(gap).max().unwrap_or_default()
    }

    fn sent(&mut self, number: u64, at: Instant) {
        self.messages.insert(number, Passage { sent: at, heard: None });
    }

    fn asked(&mut self, message: &Message) {
        if message.kind == MessageKind::Ask {
            self.sent(message.number, message.sent);
        }
    }

    fn arrived(&mut self, bytes: &[u8], now: Instant) {
        let Some(message) = Message::read(bytes) else { return };
        if message.kind == MessageKind::Pushed {
            self.pushed(message.number, message.sent);
        }
        self.heard(message.number, now);
    }

    /// Notes a message of the far side, and those before it that have not arrived.
    fn pushed(&mut self, number: u64, sent: Instant) {
        let known = self.messages.last_key_value().map_or(0, |(number, _)| *number);
        for missing in known + 1..number {
            let before = PACE * u32::try_from(number - missing).unwrap_or(u32::MAX);
            self.sent(missing, sent.checked_sub(before).unwrap_or(sent));
        }
        self.sent(number, sent);
    }

    fn heard(&mut self, number: u64, now: Instant) {
        if let Some(passage) = self.messages.get_mut(&number) {
            passage.heard.get_or_insert(now);
            self.last_heard = self.last_heard.max(Some(now));
        }
    }

    fn end(&mut self, at: Instant, why: &io::Error) {
        self.ended = Some((at, why.to_string()));
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEP: Duration = Duration::from_millis(200);
        let sent = self.messages.values().map(|passage| passage.sent);
        let (Some(first), Some(last)) = (sent.clone().min(), sent.max()) else { return Ok(()) };
        let mut at = first;
        while at <= last {
            f.write_str(if self.heard_between(at, at + STEP) { "." } else { "x" })?;
            at += STEP;
        }
        match &self.ended {
            Some((_, why)) => write!(f, " ({why})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn losses_are_counted_where_they_were_sent() {
        let start = Instant::now();
        let mut timeline = Timeline::default();
        for number in 0..50 {
            timeline.sent(number, at(start, number * 20));
            // One is lost, one is late.
            if number != 20 {
                timeline.heard(number, at(start, number * 20 + if number == 30 { 300 } else { 1 }));
            }
        }
        let lost = |from, until| {
            timeline.lost_between(at(start, from), at(start, until), Duration::from_millis(200))
        };
        assert_eq!([lost(0, 1000), lost(0, 400), lost(400, 420), lost(600, 620)], [2, 0, 1, 1]);
        assert!(lost(0, 2000) > 2, "nothing more was sent");
        let gap = |from, until| timeline.longest_gap(at(start, from), at(start, until)).as_millis();
        assert_eq!([gap(0, 300), gap(390, 480), gap(990, 1000), gap(0, 2000)], [20, 31, 10, 1019]);
        assert_eq!(timeline.last_heard(), Some(at(start, 981)));
        assert_eq!(timeline.to_string(), ".....");
    }

    #[test]
    fn what_is_pushed_and_does_not_arrive_is_known_by_what_does() {
        let start = Instant::now();
        let mut timeline = Timeline::default();
        for number in [1, 2, 3, 61, 62] {
            timeline.pushed(number, at(start, number * 20));
            timeline.heard(number, at(start, number * 20 + 1));
        }
        let lost =
            |from, until| timeline.lost_between(at(start, from), at(start, until), Duration::from_millis(20));
        assert_eq!([lost(0, 70), lost(0, 1250), lost(1210, 1250)], [0, 57, 0]);
        assert_eq!(timeline.to_string(), ".xxxxx.");
    }

    #[test]
    fn the_end_of_a_connection_is_said() {
        let start = Instant::now();
        let mut timeline = Timeline::default();
        assert_eq!(timeline.to_string(), "");
        timeline.sent(1, start);
        timeline.end(at(start, 5), &io::ErrorKind::ConnectionReset.into());
        assert_eq!(timeline.to_string(), "x (connection reset)");
        assert_eq!(timeline.last_heard(), None);
    }
}
