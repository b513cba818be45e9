//! How long the refusal of an invalid token is held back: a source that tries many gets ever slower answers.
//!
//! A valid token is never held back, whatever its source: behind a proxy or a NAT everybody has the same.
//! Pure: the time is passed in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How many refusals a source gets at once: more than a person or a misconfigured job makes in a minute.
const AT_ONCE: u32 = 60;
/// What each further one takes.
const EACH: Duration = Duration::from_secs(1);
/// The longest that one is held back.
const LONGEST: Duration = Duration::from_secs(10);
/// How many sources are remembered.
const SOURCES: usize = 4_096;

/// The sources of invalid tokens.
#[derive(Debug, Default)]
pub struct Guesses {
    /// When the refusals of a source would all have been given, at one for each [`EACH`].
    paid: BTreeMap<IpAddr, Instant>,
}

impl Guesses {
    /// Counts a refusal; how long it is held back.
    pub fn refused(&mut self, source: IpAddr, now: Instant) -> Duration {
        self.paid.retain(|_, paid| *paid > now);
        let source = network_of(source);
        if self.paid.len() >= SOURCES && !self.paid.contains_key(&source) {
            self.paid.pop_first();
        }
        let free = EACH * AT_ONCE;
        let paid = self.paid.entry(source).or_insert(now);
        *paid = (*paid + EACH).min(now + free + LONGEST);
        paid.duration_since(now).saturating_sub(free)
    }
}

/// Whoever has one IPv6 address has the other 2^64 of its network.
fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> IpAddr {
        text.parse().expect("good")
    }

    #[test]
    fn a_source_that_tries_many_is_slowed_to_one_a_second_and_the_others_are_not() {
        let mut guesses = Guesses::default();
        let start = Instant::now();
        let one = source("192.0.2.1");
        assert!((0..AT_ONCE).all(|_| guesses.refused(one, start).is_zero()));
        assert_eq!(guesses.refused(one, start), Duration::from_secs(1));
        assert_eq!(guesses.refused(one, start), Duration::from_secs(2), "they queue");
        assert!((0..20_000).all(|_| !guesses.refused(one, start).is_zero()));
        assert_eq!(guesses.refused(one, start), LONGEST);
        assert!(guesses.refused(source("192.0.2.2"), start).is_zero());
        let later = start + LONGEST + EACH * 2;
        assert!(guesses.refused(one, later).is_zero(), "it is forgiven at the same pace");
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_source() {
        let mut guesses = Guesses::default();
        let now = Instant::now();
        for number in 0..=AT_ONCE {
            let held = guesses.refused(source(&format!("2001:db8:0:1::{number:x}")), now);
            assert_eq!(held.is_zero(), number < AT_ONCE);
        }
        assert!(guesses.refused(source("2001:db8:0:2::1"), now).is_zero());
        assert!(!guesses.refused(source("2001:db8:0:1::ffff"), now).is_zero());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut guesses = Guesses::default();
        let now = Instant::now();
        for number in 0..SOURCES as u32 + 100 {
            guesses.refused(IpAddr::from(number.to_be_bytes()), now);
        }
        assert_eq!(guesses.paid.len(), SOURCES);
        guesses.refused(source("192.0.2.1"), now + EACH);
        assert_eq!(guesses.paid.len(), 1, "what is over is forgotten");
    }
}
