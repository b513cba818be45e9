//! Does one host of the lab reach another, how fast, and how long are the gaps?
//!
//! An ICMP and ICMPv6 echo client, so that no `ping` program is needed, and a thousand pings of one host need
//! only two sockets. [`Echo`] owns them and passes each answer to the request that waits for it, by
//! identifier and sequence number; [`Pinger`] sends at a steady pace and keeps a [`Tally`], which is pure.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::lock;

/// A request without an answer for this time is lost.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// The payload of every request and so of its answer; distinguishes our requests from those of other
/// programs.
const MARK: &[u8; 16] = b"nmplan lab echo.";

const HEADER: usize = 8;

/// What a [`Pinger`] has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingCount {
    /// Requests sent, including those that the host could not route.
    pub sent: u64,
    /// Requests without an answer for two seconds. Until the pinger is stopped, newer ones may still be open.
    pub lost: u64,
    /// The longest time without an answer: from the start, between two answers, or to the last request.
    /// Without losses it is about the interval.
    pub longest_gap: Duration,
}

/// Sends echo requests at a steady pace to one address until it is stopped or dropped.
#[derive(Debug)]
pub struct Pinger {
    tally: Arc<Mutex<Tally>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Pinger {
    pub(super) fn start(echo: Arc<Echo>, to: IpAddr, interval: Duration) -> Self {
        let tally = Arc::new(Mutex::new(Tally::new(Instant::now())));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keep_pinging(echo, to, interval, Arc::clone(&tally), stopped));
        Self { tally, stop: Some(stop), task }
    }

    /// What it has counted so far.
    #[must_use]
    pub fn count(&self) -> PingCount {
        lock(&self.tally).count(Instant::now())
    }

    /// Stops sending, waits at most two seconds for outstanding answers, and returns what it has counted.
    pub async fn stop(mut self) -> PingCount {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
        let tally = lock(&self.tally);
        tally.count(tally.last_sent)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_pinging(
    echo: Arc<Echo>,
    to: IpAddr,
    interval: Duration,
    tally: Arc<Mutex<Tally>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let answered = Arc::new(Notify::new());
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = ticks.tick() => {
                let of_answer = Arc::clone(&tally);
                let wake = Arc::clone(&answered);
                let ticket = echo.expect(to, move |ticket, now| {
                    lock(&of_answer).heard(ticket, now);
                    wake.notify_one();
                });
                lock(&tally).sent(ticket, Instant::now());
                echo.send(to, ticket).await;
                forget_late(&echo, &tally);
            }
        }
    }
    loop {
        let Some(deadline) = lock(&tally).next_loss() else { return };
        let _ = tokio::time::timeout_at(deadline, answered.notified()).await;
        forget_late(&echo, &tally);
    }
}

fn forget_late(echo: &Echo, tally: &Mutex<Tally>) {
    let lost = lock(tally).lose(Instant::now());
    lost.into_iter().for_each(|ticket| echo.forget(ticket));
}

/// The bookkeeping of a [`Pinger`].
#[derive(Debug)]
struct Tally {
    sent: u64,
    lost: u64,
    longest_gap: Duration,
    last_sent: Instant,
    last_heard: Instant,
    /// Requests that are neither answered nor lost, oldest first.
    open: VecDeque<(u32, Instant)>,
}

impl Tally {
    fn new(start: Instant) -> Self {
        Self {
            sent: 0,
            lost: 0,
            longest_gap: Duration::ZERO,
            last_sent: start,
            last_heard: start,
            open: VecDeque::new(),
        }
    }

    fn sent(&mut self, ticket: u32, now: Instant) {
        self.sent += 1;
        self.last_sent = now;
        self.open.push_back((ticket, now));
    }

    fn heard(&mut self, ticket: u32, now: Instant) {
        let Some(position) = self.open.iter().position(|&(open, _)| open == ticket) else { return };
        self.open.remove(position);
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last_heard));
        self.last_heard = now;
    }

    /// When the oldest open request will be lost; `None` if none is open.
    fn next_loss(&self) -> Option<Instant> {
        self.open.front().map(|&(_, sent)| sent + LOST_AFTER)
    }

    /// Counts the requests that have been open for too long as lost, and returns them.
    fn lose(&mut self, now: Instant) -> Vec<u32> {
        let late = self.open.partition_point(|&(_, sent)| sent + LOST_AFTER <= now);
        self.lost += late as u64;
        self.open.drain(..late).map(|(ticket, _)| ticket).collect()
    }

    fn count(&self, until: Instant) -> PingCount {
        let silent = until.saturating_duration_since(self.last_heard);
        PingCount { sent: self.sent, lost: self.lost, longest_gap: self.longest_gap.max(silent) }
    }
}

/// The echo client of one host: two raw sockets, and the requests that wait for answers.
#[derive(Debug)]
pub(super) struct Echo {
    requests: Arc<Requests>,
    readers: [JoinHandle<()>; 2],
}

impl Echo {
    /// Makes the sockets, in the network namespace of the calling thread.
    pub(super) fn sockets() -> io::Result<[UdpSocket; 2]> {
        let make = |domain, protocol| -> io::Result<UdpSocket> {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            socket.set_recv_buffer_size(4 << 20)?;
            // Only calls that work the same for raw and UDP sockets are made: sendto and recvfrom.
            Ok(socket.into())
        };
        Ok([make(Domain::IPV4, Protocol::ICMPV4)?, make(Domain::IPV6, Protocol::ICMPV6)?])
    }

    /// Begins to read answers from what [`Echo::sockets`] made; needs a tokio runtime.
    pub(super) fn serve([v4, v6]: [UdpSocket; 2]) -> io::Result<Self> {
        let requests = Arc::new(Requests {
            v4: tokio::net::UdpSocket::from_std(v4)?,
            v6: tokio::net::UdpSocket::from_std(v6)?,
            next: AtomicU32::new(std::process::id() << 16),
            waiting: Mutex::default(),
        });
        let readers =
            [Family::V4, Family::V6].map(|family| tokio::spawn(read_answers(Arc::clone(&requests), family)));
        Ok(Self { requests, readers })
    }

    pub(super) async fn ping(&self, to: IpAddr, timeout: Duration) -> Option<Duration> {
        let (answer, answered) = oneshot::channel();
        let ticket = self.expect(to, move |_, now| {
            let _ = answer.send(now);
        });
        let _forget_when_dropped = Forget { echo: self, ticket };
        let start = Instant::now();
        let exchange = async {
            self.send(to, ticket).await;
            answered.await.ok()
        };
        let heard = tokio::time::timeout(timeout, exchange).await.ok().flatten()?;
        Some(heard.saturating_duration_since(start))
    }

    /// Registers a function to call when the answer arrives, and returns the ticket to send.
    pub(super) fn expect(&self, from: IpAddr, answered: impl FnOnce(u32, Instant) + Send + 'static) -> u32 {
        let ticket = self.requests.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.requests.waiting).insert(ticket, Waiting { from, answered: Box::new(answered) });
        ticket
    }

    /// Sends a request. If it cannot be sent, it simply gets no answer.
    pub(super) async fn send(&self, to: IpAddr, ticket: u32) {
        let (family, socket) = match to {
            IpAddr::V4(_) => (Family::V4, &self.requests.v4),
            IpAddr::V6(_) => (Family::V6, &self.requests.v6),
        };
        // A raw IPv6 socket refuses any port but 0.
        if let Err(error) = socket.send_to(&request(family, ticket), SocketAddr::new(to, 0)).await {
            tracing::debug!(%to, %error, "an echo request could not be sent");
        }
    }

    pub(super) fn forget(&self, ticket: u32) {
        lock(&self.requests.waiting).remove(&ticket);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.readers.iter().for_each(JoinHandle::abort);
    }
}

struct Forget<'a> {
    echo: &'a Echo,
    ticket: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.echo.forget(self.ticket);
    }
}

/// The sockets, and the requests that wait for answers; shared with the tasks that read answers.
#[derive(Debug)]
struct Requests {
    v4: tokio::net::UdpSocket,
    v6: tokio::net::UdpSocket,
    /// The next ticket: identifier in the upper half, sequence number in the lower.
    next: AtomicU32,
    waiting: Mutex<BTreeMap<u32, Waiting>>,
}

struct Waiting {
    from: IpAddr,
    answered: Box<dyn FnOnce(u32, Instant) + Send>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("from", &self.from).finish_non_exhaustive()
    }
}

async fn read_answers(requests: Arc<Requests>, family: Family) {
    let socket = match family {
        Family::V4 => &requests.v4,
        Family::V6 => &requests.v6,
    };
    let mut buffer = [0; 2048];
    loop {
        // An error here is about an earlier packet, and reading it has cleared it.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let now = Instant::now();
        let Some(ticket) = answer(family, &buffer[..length]) else { continue };
        let mut waiting = lock(&requests.waiting);
        if waiting.get(&ticket).is_some_and(|waiting| waiting.from == from.ip())
            && let Some(Waiting { answered, .. }) = waiting.remove(&ticket)
        {
            drop(waiting);
            answered(ticket, now);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// An echo request (RFC 792, RFC 4443).
fn request(family: Family, ticket: u32) -> [u8; HEADER + MARK.len()] {
    let mut packet = [0; HEADER + MARK.len()];
    packet[0] = match family {
        Family::V4 => 8,
        Family::V6 => 128,
    };
    packet[4..HEADER].copy_from_slice(&ticket.to_be_bytes());
    packet[HEADER..].copy_from_slice(MARK);
    // For ICMPv6 the kernel computes it, since only the kernel knows the source address.
    if family == Family::V4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The ticket of an answer to one of our requests, as a raw socket delivers it: with the IP header for IPv4
/// only.
fn answer(family: Family, packet: &[u8]) -> Option<u32> {
    let (packet, kind) = match family {
        Family::V4 => (packet.get(usize::from(packet.first()? & 0x0f) * 4..)?, 0),
        Family::V6 => (packet, 129),
    };
    let (header, body) = packet.split_first_chunk::<HEADER>()?;
    let [answer, _, _, _, ticket @ ..] = *header;
    (answer == kind && body == MARK).then(|| u32::from_be_bytes(ticket))
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(packet: &[u8]) -> u16 {
    let (words, _) = packet.as_chunks::<2>();
    let mut sum: u32 = words.iter().map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_late_answer_is_a_gap_and_not_a_loss() {
        let start = Instant::now();
        let mut tally = Tally::new(start);
        for ticket in 0..4 {
            tally.sent(ticket, at(start, u64::from(ticket) * 20));
        }
        tally.heard(0, at(start, 1));
        tally.heard(2, at(start, 1041));
        tally.heard(1, at(start, 1900));
        assert_eq!(tally.lose(at(start, 2059)), Vec::<u32>::new());
        assert_eq!(tally.lose(at(start, 2060)), [3]);
        tally.heard(3, at(start, 2061));
        let count = tally.count(at(start, 60));
        assert_eq!(count, PingCount { sent: 4, lost: 1, longest_gap: Duration::from_millis(1040) });
    }

    #[test]
    fn silence_from_start_to_end_is_one_gap() {
        let start = Instant::now();
        let mut tally = Tally::new(start);
        tally.sent(1, at(start, 500));
        assert_eq!(
            tally.count(at(start, 500)),
            PingCount { sent: 1, lost: 0, longest_gap: Duration::from_millis(500) }
        );
        assert_eq!(tally.next_loss(), Some(at(start, 2500)));
    }

    #[test]
    fn answers_are_distinguished_from_requests_and_from_those_of_other_programs() {
        let ticket = 0xfffe_0001;
        let mut v6 = request(Family::V6, ticket);
        assert_eq!(answer(Family::V6, &v6), None, "a request is no answer");
        v6[0] = 129;
        assert_eq!(answer(Family::V6, &v6), Some(ticket));
        v6[HEADER] ^= 1;
        assert_eq!(answer(Family::V6, &v6), None, "not our mark");

        let mut v4 = vec![0x45; 20];
        v4.extend(request(Family::V4, ticket));
        v4[20] = 0;
        assert_eq!(answer(Family::V4, &v4), Some(ticket));
        for length in 0..v4.len() {
            assert_eq!(answer(Family::V4, &v4[..length]), None, "cut off at {length}");
        }
    }

    #[test]
    fn the_checksum_of_a_request_with_its_checksum_is_zero() {
        assert_eq!(checksum(&request(Family::V4, 0x1234_ffff)), 0);
    }
}
