//! How long to wait before something that failed is tried again: the one law for everything that asks again.
//!
//! Pure: the time comes in as a value, and the random part from a seed.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The shortest pause. To each, a random part is added that is as long at most.
const SHORTEST: Duration = Duration::from_millis(500);
/// The longest pause, without the random part.
const LONGEST: Duration = Duration::from_secs(15);
/// After so long without a failure the pauses begin anew.
const LASTING: Duration = Duration::from_secs(60);

/// Pauses that double with each failure, from up to a second to up to half a minute; half of each is random.
#[derive(Debug)]
pub struct Backoff {
    seed: u64,
    pauses: ExponentialBackoff,
    /// When what failed last is due; absent: nothing has failed since it worked.
    due: Option<Instant>,
}

impl Backoff {
    /// Nothing has failed yet. `seed` differs between hosts, so that they do not all act in the same instant.
    pub fn new(seed: u64) -> Self {
        Self { seed, pauses: pauses(seed), due: None }
    }

    /// It failed; returns when to try again: within half a minute.
    pub fn failed(&mut self, now: Instant) -> Instant {
        if self.due.is_some_and(|due| now >= due + LASTING) {
            self.worked();
        }
        let pause = self.pauses.next().expect("pauses without a largest number never end");
        *self.due.insert(now + pause)
    }

    /// It worked: the pauses begin anew.
    pub fn worked(&mut self) {
        if self.due.take().is_some() {
            self.pauses = pauses(self.seed);
        }
    }

    /// It may work now, for all that failed before: the pauses begin anew, and it counts as failing still.
    pub fn begin_anew(&mut self) {
        self.pauses = pauses(self.seed);
    }

    /// Whether it has failed and not worked since.
    pub fn is_failing(&self) -> bool {
        self.due.is_some()
    }
}

fn pauses(seed: u64) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(seed)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses_of(backoff: &mut Backoff, mut now: Instant, failures: usize) -> Vec<Duration> {
        let pause = |_| {
            let due = backoff.failed(now);
            let pause = due - now;
            now = due;
            pause
        };
        (0..failures).map(pause).collect()
    }

    #[test]
    fn pauses_double_up_to_half_a_minute_and_differ_between_hosts() {
        let now = Instant::now();
        let of = |seed| pauses_of(&mut Backoff::new(seed), now, 10);
        for pauses in [of(1), of(2)] {
            for (place, pause) in pauses.iter().enumerate() {
                let least = (SHORTEST * (1 << place.min(5))).min(LONGEST);
                assert!((least..=least * 2).contains(pause), "{place}: {pauses:?}");
            }
        }
        assert_ne!(of(1), of(2));
        assert_eq!(of(1), of(1), "the same host, and the same pauses");
    }

    #[test]
    fn pauses_begin_anew_when_it_worked_or_nothing_failed_for_a_minute() {
        let mut now = Instant::now();
        let mut backoff = Backoff::new(7);
        pauses_of(&mut backoff, now, 9);
        assert!(backoff.is_failing());
        backoff.worked();
        assert!(!backoff.is_failing());
        assert!(backoff.failed(now) <= now + SHORTEST * 2);
        for _ in 0..9 {
            now = backoff.failed(now);
        }
        assert!(backoff.failed(now) >= now + LONGEST, "it went on");
        let later = now + LONGEST * 2 + LASTING;
        assert!(backoff.failed(later) <= later + SHORTEST * 2);
    }
}
