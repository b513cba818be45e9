//! Whether two hosts use the identity of one node, as a copied `/etc/netclient` makes them do: both count as
//! the node, and traffic goes to whichever called last.
//!
//! Signs of it are two streams that stay, and calls that come from two addresses in turn. Each sign has to
//! last, or come again, since a host that changes its network, or whose connection breaks, shows them for a
//! moment too. Pure: the time is passed in.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long two streams are no sign: that of a host which is gone is closed after two pings without an
/// answer, 40 s.
const STREAMS_STAY: Duration = Duration::from_secs(60);
/// How often a host returns to the address before its last one, within [`RETURNS_WITHIN`], that is a sign:
/// one that moves between two networks returns now and then.
const RETURNS: usize = 4;
/// See [`RETURNS`].
const RETURNS_WITHIN: Duration = Duration::from_secs(600);

/// The signs of one node.
#[derive(Clone, Debug, Default)]
pub struct Clones {
    /// Since when it has had two streams.
    doubled: Option<Instant>,
    /// The last address that it called from, and the one before that.
    addresses: [Option<IpAddr>; 2],
    /// When it last returned to the address before.
    returns: Vec<Instant>,
}

impl Clones {
    /// A call of the node, from an address if that is known, while it has so many streams.
    pub fn heard(&mut self, from: Option<IpAddr>, streams: usize, now: Instant) {
        self.doubled = if streams > 1 { self.doubled.or(Some(now)) } else { None };
        let [last, before] = self.addresses;
        if from.is_none() || from == last {
            return;
        }
        if from == before {
            self.returns.push(now);
            if self.returns.len() > RETURNS {
                self.returns.remove(0);
            }
        }
        self.addresses = [from, last];
    }

    /// Whether the signs are there.
    pub fn evident(&self, now: Instant) -> bool {
        let lasting = |since: &Instant| now.saturating_duration_since(*since) >= STREAMS_STAY;
        let recent = |since: &Instant| now.saturating_duration_since(*since) <= RETURNS_WITHIN;
        self.doubled.as_ref().is_some_and(lasting)
            || (self.returns.len() >= RETURNS && self.returns.first().is_some_and(recent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn two_streams_that_stay_are_a_sign_and_two_for_a_moment_are_not() {
        let start = Instant::now();
        let mut clones = Clones::default();
        clones.heard(address(1), 2, start);
        assert!(!clones.evident(after(start, 59)));
        assert!(clones.evident(after(start, 60)));
        clones.heard(address(1), 1, after(start, 50));
        clones.heard(address(1), 2, after(start, 55));
        assert!(!clones.evident(after(start, 60)), "the first of them had ended");
        clones.heard(address(1), 3, after(start, 115));
        assert!(clones.evident(after(start, 115)));
    }

    #[test]
    fn calls_from_two_addresses_in_turn_are_a_sign_and_a_move_is_not() {
        let start = Instant::now();
        let mut clones = Clones::default();
        for second in 0..10 {
            clones.heard(address(u8::try_from(second).expect("small")), 1, after(start, second));
        }
        assert!(!clones.evident(after(start, 10)), "it moves on and on");
        for second in 10..16 {
            clones.heard(address(u8::try_from(second % 2).expect("small")), 1, after(start, second));
        }
        assert!(clones.evident(after(start, 16)));
        assert!(!clones.evident(after(start, 16 + 600)), "it is over");
        clones.heard(None, 1, after(start, 700));
        clones.heard(address(1), 1, after(start, 701));
        assert!(!clones.evident(after(start, 701)), "an address that is not known says nothing");
    }
}
