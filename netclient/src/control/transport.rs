//! Which transport control traffic takes: the tunnel to the server while it answers, else TLS on the public
//! address.
//!
//! Pure: what happened, and when, comes in as values. The tunnel is left as soon as it is silent and TLS
//! answers, and used again once it has answered for a hold-down time, which grows each time that it falls
//! silent soon after.

use std::time::{Duration, Instant};

use schema::api::Control;

use crate::backoff::Backoff;

/// How often the tunnel is tried while TLS is in use and the tunnel answers; while it does not, there is
/// backoff.
const PROBE: Duration = Duration::from_secs(5);
/// How long the tunnel has to answer before it is used again (hold-down); twice as long each time that it
/// does not last.
const HOLD: Duration = Duration::from_secs(5);
/// How often that is doubled at most: with the longest pause between probes, returning to the tunnel takes
/// less than a minute.
const DOUBLINGS: u32 = 2;
/// A tunnel that is refused for this long leads to something that is no longer a server.
const REFUSED: Duration = Duration::from_secs(10);
/// A tunnel that answered for this long after it was used again has lasted.
const LASTING: Duration = Duration::from_secs(300);

/// A transport to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The tunnel.
    Tunnel,
    /// TLS on the public address.
    Tls,
}

impl From<Transport> for Control {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tunnel => Self::Tunnel,
            Transport::Tls => Self::Tls,
        }
    }
}

/// The transport of control traffic, and the evidence for switching to the other one.
#[derive(Debug)]
pub(super) struct TransportSelector {
    transport: Transport,
    /// The tunnel is in use and has not answered.
    silent: bool,
    /// Since when calls through the tunnel in use have been refused: the server is down, or the tunnel leads
    /// elsewhere.
    failing: Option<Instant>,
    /// Whether the tunnel has ever been left: a new one is used without a hold-down.
    left: bool,
    /// When the tunnel was used again.
    returned: Option<Instant>,
    /// How often in a row it did not last.
    flaps: u32,
    /// Since when the tunnel has answered every probe.
    answers: Option<Instant>,
    next_probe: Instant,
    silent_probes: Backoff,
}

impl TransportSelector {
    /// A selector that starts with a transport; for `seed` see [`Backoff::new`].
    pub(super) fn new(transport: Transport, seed: u64, now: Instant) -> Self {
        Self {
            transport,
            silent: false,
            failing: None,
            left: false,
            returned: None,
            flaps: 0,
            answers: None,
            next_probe: now,
            silent_probes: Backoff::new(seed),
        }
    }

    /// The transport that control traffic takes.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// The transports to try, the better first; the second only if the first does not answer.
    pub(super) fn order(&self) -> [Transport; 2] {
        match (self.transport, self.silent) {
            (Transport::Tunnel, false) => [Transport::Tunnel, Transport::Tls],
            (Transport::Tunnel, true) | (Transport::Tls, _) => [Transport::Tls, Transport::Tunnel],
        }
    }

    /// Records that the tunnel did not answer in time.
    pub(super) fn fell_silent(&mut self) {
        self.silent = self.transport == Transport::Tunnel;
        self.answers = None;
    }

    /// Records that a call through the tunnel failed. A refusal shows that the server is down, which is no
    /// reason to switch, unless TLS shows for a while that it is not down.
    pub(super) fn failed(&mut self, now: Instant) {
        if self.transport == Transport::Tunnel {
            self.failing.get_or_insert(now);
        }
    }

    /// Records that the server answered by a transport; whether control traffic uses another one from now on.
    pub(super) fn answered(&mut self, transport: Transport, now: Instant) -> bool {
        match (self.transport, transport) {
            (Transport::Tunnel, Transport::Tunnel) => (self.silent, self.failing) = (false, None),
            (Transport::Tls, Transport::Tls) => {}
            (Transport::Tunnel, Transport::Tls) => {
                let refused = self.failing.is_some_and(|since| now >= since + REFUSED);
                if !self.silent && !refused {
                    return false;
                }
                let lasted = self.returned.is_none_or(|at| now >= at + LASTING);
                self.flaps = if lasted { 0 } else { (self.flaps + 1).min(DOUBLINGS) };
                self.transport = transport;
                (self.silent, self.failing, self.answers) = (false, None, None);
                self.left = true;
                self.next_probe = now + PROBE;
                return true;
            }
            // TLS does not work and the tunnel does: there is nothing to wait for.
            (Transport::Tls, Transport::Tunnel) => {
                self.take_tunnel(now);
                return true;
            }
        }
        false
    }

    /// When to try the tunnel next.
    pub(super) fn next_probe(&self) -> Instant {
        self.next_probe
    }

    /// Records the result of a probe of the tunnel; whether control traffic uses it from now on.
    pub(super) fn probed(&mut self, answered: bool, now: Instant) -> bool {
        if answered {
            self.silent_probes.worked();
            self.next_probe = now + PROBE;
        } else {
            self.next_probe = self.silent_probes.failed(now);
        }
        if !answered || self.transport == Transport::Tunnel {
            self.answers = None;
            return false;
        }
        let since = *self.answers.get_or_insert(now);
        let holds = !self.left || now >= since + HOLD * (1 << self.flaps);
        if holds {
            self.take_tunnel(now);
        }
        holds
    }

    fn take_tunnel(&mut self, now: Instant) {
        self.transport = Transport::Tunnel;
        (self.silent, self.failing, self.answers) = (false, None, None);
        self.returned = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fallen(now: Instant) -> TransportSelector {
        let mut selector = TransportSelector::new(Transport::Tunnel, 7, now);
        selector.fell_silent();
        assert!(selector.answered(Transport::Tls, now));
        selector
    }

    /// Probes as they are due, with a tunnel that answers; returns how long it took until it was in use
    /// again.
    fn until_back(selector: &mut TransportSelector, start: Instant) -> Duration {
        loop {
            // An answer takes a second.
            let now = selector.next_probe() + Duration::from_secs(1);
            if selector.probed(true, now) {
                return now - start;
            }
        }
    }

    #[test]
    fn the_tunnel_is_left_when_it_is_silent_and_tls_answers_and_not_before() {
        let now = Instant::now();
        let mut selector = TransportSelector::new(Transport::Tunnel, 7, now);
        assert_eq!(selector.order(), [Transport::Tunnel, Transport::Tls]);
        selector.fell_silent();
        assert_eq!(
            (selector.transport(), selector.order()),
            (Transport::Tunnel, [Transport::Tls, Transport::Tunnel])
        );
        assert!(!selector.answered(Transport::Tunnel, now), "it answers again");
        assert_eq!(selector.order(), [Transport::Tunnel, Transport::Tls]);
        selector.fell_silent();
        assert!(selector.answered(Transport::Tls, now));
        assert_eq!(
            (selector.transport(), selector.order()),
            (Transport::Tls, [Transport::Tls, Transport::Tunnel])
        );
        assert!(!selector.answered(Transport::Tls, now));
    }

    #[test]
    fn a_tunnel_that_is_refused_is_left_only_if_tls_answers_all_the_while() {
        let now = Instant::now();
        let mut selector = TransportSelector::new(Transport::Tunnel, 7, now);
        selector.failed(now);
        assert!(!selector.answered(Transport::Tls, now), "the server was started again a moment ago");
        assert_eq!(selector.order(), [Transport::Tunnel, Transport::Tls]);
        assert!(!selector.answered(Transport::Tunnel, now + PROBE), "and has the tunnel again");
        selector.failed(now + REFUSED);
        assert!(!selector.answered(Transport::Tls, now + REFUSED + PROBE));
        selector.failed(now + REFUSED * 2);
        assert!(selector.answered(Transport::Tls, now + REFUSED * 2), "the tunnel leads to no server");
    }

    #[test]
    fn where_tls_is_gone_a_tunnel_that_answers_is_taken_at_once() {
        let now = Instant::now();
        let mut selector = fallen(now);
        assert!(selector.answered(Transport::Tunnel, now));
        assert_eq!(selector.transport(), Transport::Tunnel);
    }

    #[test]
    fn returning_takes_less_than_a_minute_and_longer_each_time_that_it_does_not_last() {
        let start = Instant::now();
        let mut selector = fallen(start);
        let mut now = start;
        let mut took = Vec::new();
        for _ in 0..6 {
            let back = until_back(&mut selector, now);
            took.push(back);
            now += back + Duration::from_secs(30);
            selector.fell_silent();
            assert!(selector.answered(Transport::Tls, now));
        }
        assert!(took[0] < Duration::from_secs(20), "{took:?}");
        assert!(took.windows(2).take(2).all(|pair| pair[0] < pair[1]), "{took:?}");
        // The tunnel may have answered again right after a probe, and the next one comes half a minute later.
        let longest = Duration::from_secs(60 - 30);
        assert!(took.iter().all(|back| *back <= longest), "{took:?}");
        let back = until_back(&mut selector, now);
        now += back + LASTING;
        selector.fell_silent();
        selector.answered(Transport::Tls, now);
        assert_eq!(until_back(&mut selector, now), took[0], "one that lasted is trusted again");
    }

    #[test]
    fn a_tunnel_that_is_new_is_taken_at_its_first_answer() {
        let now = Instant::now();
        let mut selector = TransportSelector::new(Transport::Tls, 7, now);
        assert_eq!(selector.next_probe(), now);
        assert!(!selector.probed(false, now));
        assert!(selector.probed(true, now + PROBE));
        assert_eq!(selector.transport(), Transport::Tunnel);
    }

    #[test]
    fn a_tunnel_that_stays_silent_is_tried_with_backoff() {
        let start = Instant::now();
        let mut selector = fallen(start);
        let mut probes = 0;
        while selector.next_probe() < start + Duration::from_secs(600) {
            let now = selector.next_probe();
            assert!(!selector.probed(false, now));
            probes += 1;
        }
        assert!(probes <= 40, "{probes} probes in ten minutes");
    }

    #[test]
    fn one_probe_without_an_answer_begins_the_wait_anew() {
        let now = Instant::now();
        let mut selector = fallen(now);
        assert!(!selector.probed(true, now));
        assert!(!selector.probed(false, now + HOLD));
        assert!(!selector.probed(true, now + HOLD * 2));
        assert!(selector.probed(true, now + HOLD * 3));
    }
}
