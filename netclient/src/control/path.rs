//! Which way control traffic takes: the tunnel to the server while it answers, else TLS on the public address.
//!
//! Pure: what happened, and when, comes in as values. The tunnel is left as soon as it is silent and TLS answers, and taken again
//! once it has answered for a while: the longer, the sooner it fell silent after the last time.

use std::time::{Duration, Instant};

use schema::api::Control;

/// How often the tunnel is tried while TLS is in use.
const PROBE: Duration = Duration::from_secs(5);
/// How long the tunnel has to answer before it is taken again; twice as long each time that it does not last.
const HOLD: Duration = Duration::from_secs(5);
/// How often that is doubled at most: with the probes, the way back takes less than a minute.
const DOUBLINGS: u32 = 3;
/// A tunnel that is refused for so long leads to something that is no server any more.
const REFUSED: Duration = Duration::from_secs(10);
/// A tunnel that answered this long after it was taken again has lasted.
const LASTING: Duration = Duration::from_secs(300);

/// A way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The tunnel.
    Tunnel,
    /// TLS on the public address.
    Tls,
}

impl From<Way> for Control {
    fn from(way: Way) -> Self {
        match way {
            Way::Tunnel => Self::Tunnel,
            Way::Tls => Self::Tls,
        }
    }
}

/// The way that control traffic takes, and what speaks for the other one.
#[derive(Debug)]
pub(super) struct Path {
    way: Way,
    /// The tunnel is in use and gave no answer.
    silent: bool,
    /// Since when calls through the tunnel in use have failed otherwise: the server is down, or nobody's end of it.
    failing: Option<Instant>,
    /// Whether the tunnel has ever been left: one that is new need not prove itself.
    left: bool,
    /// When the tunnel was taken again.
    returned: Option<Instant>,
    /// How often in a row it did not last.
    flaps: u32,
    /// Since when the tunnel has answered every probe.
    answers: Option<Instant>,
    next_probe: Instant,
}

impl Path {
    /// The path of an agent that has a tunnel, or has none.
    pub(super) fn new(way: Way, now: Instant) -> Self {
        Self {
            way,
            silent: false,
            failing: None,
            left: false,
            returned: None,
            flaps: 0,
            answers: None,
            next_probe: now,
        }
    }

    /// The way that control traffic takes.
    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// The ways to try, the better first; the second only where the first gives no answer.
    pub(super) fn order(&self) -> [Way; 2] {
        match (self.way, self.silent) {
            (Way::Tunnel, false) => [Way::Tunnel, Way::Tls],
            (Way::Tunnel, true) | (Way::Tls, _) => [Way::Tls, Way::Tunnel],
        }
    }

    /// Notes that the tunnel gave no answer in time.
    pub(super) fn fell_silent(&mut self) {
        self.silent = self.way == Way::Tunnel;
        self.answers = None;
    }

    /// Notes that a call through the tunnel failed. One that was refused shows that the server is down, which switches
    /// nothing; unless it is not, as TLS shows, and that goes on.
    pub(super) fn failed(&mut self, now: Instant) {
        if self.way == Way::Tunnel {
            self.failing.get_or_insert(now);
        }
    }

    /// Notes that the server answered by a way; whether control traffic takes another one from now on.
    pub(super) fn answered(&mut self, way: Way, now: Instant) -> bool {
        match (self.way, way) {
            (Way::Tunnel, Way::Tunnel) => (self.silent, self.failing) = (false, None),
            (Way::Tls, Way::Tls) => {}
            (Way::Tunnel, Way::Tls) => {
                let refused = self.failing.is_some_and(|since| now >= since + REFUSED);
                if !self.silent && !refused {
                    return false;
                }
                let lasted = self.returned.is_none_or(|at| now >= at + LASTING);
                self.flaps = if lasted { 0 } else { (self.flaps + 1).min(DOUBLINGS) };
                *self = Self {
                    way,
                    silent: false,
                    failing: None,
                    left: true,
                    answers: None,
                    next_probe: now + PROBE,
                    ..*self
                };
                return true;
            }
            // TLS is gone, and the tunnel is not: there is nothing to wait for.
            (Way::Tls, Way::Tunnel) => {
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

    /// Notes what came of a probe of the tunnel; whether control traffic takes it from now on.
    pub(super) fn probed(&mut self, answered: bool, now: Instant) -> bool {
        self.next_probe = now + PROBE;
        if !answered || self.way == Way::Tunnel {
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
        *self = Self { way: Way::Tunnel, silent: false, failing: None, returned: Some(now), answers: None, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fallen(now: Instant) -> Path {
        let mut path = Path::new(Way::Tunnel, now);
        path.fell_silent();
        assert!(path.answered(Way::Tls, now));
        path
    }

    /// Probes as they are due, with a tunnel that answers; gives how long it took until it was in use again.
    fn until_back(path: &mut Path, start: Instant) -> Duration {
        loop {
            // A probe may take three seconds.
            let now = path.next_probe() + Duration::from_secs(3);
            if path.probed(true, now) {
                return now - start;
            }
        }
    }

    #[test]
    fn the_tunnel_is_left_when_it_is_silent_and_tls_answers_and_not_before() {
        let now = Instant::now();
        let mut path = Path::new(Way::Tunnel, now);
        assert_eq!(path.order(), [Way::Tunnel, Way::Tls]);
        path.fell_silent();
        assert_eq!((path.way(), path.order()), (Way::Tunnel, [Way::Tls, Way::Tunnel]));
        assert!(!path.answered(Way::Tunnel, now), "it speaks again");
        assert_eq!(path.order(), [Way::Tunnel, Way::Tls]);
        path.fell_silent();
        assert!(path.answered(Way::Tls, now));
        assert_eq!((path.way(), path.order()), (Way::Tls, [Way::Tls, Way::Tunnel]));
        assert!(!path.answered(Way::Tls, now));
    }

    #[test]
    fn a_tunnel_that_is_refused_is_left_only_if_tls_answers_all_the_while() {
        let now = Instant::now();
        let mut path = Path::new(Way::Tunnel, now);
        path.failed(now);
        assert!(!path.answered(Way::Tls, now), "the server was started again a moment ago");
        assert_eq!(path.order(), [Way::Tunnel, Way::Tls]);
        assert!(!path.answered(Way::Tunnel, now + PROBE), "and has the tunnel again");
        path.failed(now + REFUSED);
        assert!(!path.answered(Way::Tls, now + REFUSED + PROBE));
        path.failed(now + REFUSED * 2);
        assert!(path.answered(Way::Tls, now + REFUSED * 2), "the tunnel leads to nobody");
    }

    #[test]
    fn where_tls_is_gone_a_tunnel_that_answers_is_taken_at_once() {
        let now = Instant::now();
        let mut path = fallen(now);
        assert!(path.answered(Way::Tunnel, now));
        assert_eq!(path.way(), Way::Tunnel);
    }

    #[test]
    fn the_way_back_takes_less_than_a_minute_and_longer_each_time_that_it_does_not_last() {
        let start = Instant::now();
        let mut path = fallen(start);
        let (mut now, mut took) = (start, Vec::new());
        for _ in 0..6 {
            let back = until_back(&mut path, now);
            took.push(back);
            now += back + Duration::from_secs(30);
            path.fell_silent();
            assert!(path.answered(Way::Tls, now));
        }
        assert!(took[0] < Duration::from_secs(20), "{took:?}");
        assert!(took.windows(2).take(3).all(|pair| pair[0] < pair[1]), "{took:?}");
        assert!(took.iter().all(|back| *back < Duration::from_secs(60)), "{took:?}");
        let back = until_back(&mut path, now);
        now += back + LASTING;
        path.fell_silent();
        path.answered(Way::Tls, now);
        assert_eq!(until_back(&mut path, now), took[0], "one that lasted is trusted again");
    }

    #[test]
    fn a_tunnel_that_is_new_is_taken_at_its_first_answer() {
        let now = Instant::now();
        let mut path = Path::new(Way::Tls, now);
        assert_eq!(path.next_probe(), now);
        assert!(!path.probed(false, now));
        assert!(path.probed(true, now + PROBE));
        assert_eq!(path.way(), Way::Tunnel);
    }

    #[test]
    fn one_probe_without_an_answer_begins_the_wait_anew() {
        let now = Instant::now();
        let mut path = fallen(now);
        assert!(!path.probed(true, now));
        assert!(!path.probed(false, now + HOLD));
        assert!(!path.probed(true, now + HOLD * 2));
        assert!(path.probed(true, now + HOLD * 3));
    }
}
