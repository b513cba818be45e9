//! Counts what may happen thousands of times a second, so that the log has one line a minute for all of it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two lines about the same thing.
const INTERVAL: Duration = Duration::from_secs(60);

/// A count of what has happened since the last line about it.
#[derive(Debug, Default)]
pub struct Tally {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    count: u64,
    logged: Option<Instant>,
}

impl Tally {
    /// Counts one.
    pub fn add(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).count += 1;
    }

    /// How many were counted since the last line, if another line is due: at once for the first, and at most
    /// one a minute from then on.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.count == 0 || state.logged.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            return None;
        }
        state.logged = Some(now);
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_rest_once_a_minute() {
        let tally = Tally::default();
        let start = Instant::now();
        assert_eq!(tally.due(start), None, "nothing has happened");
        tally.add();
        assert_eq!(tally.due(start), Some(1));
        (0..14_556).for_each(|_| tally.add());
        assert_eq!(tally.due(start + Duration::from_secs(59)), None);
        assert_eq!(tally.due(start + INTERVAL), Some(14_556));
        assert_eq!(tally.due(start + INTERVAL * 3), None, "nothing has happened since");
    }
}
