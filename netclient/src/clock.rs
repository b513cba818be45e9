//! The time that TLS uses: that of the system, except that no clock is too early for it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// The time of the system; before 1970, which rustls cannot express and panics at, the beginning of 1970.
pub fn time() -> Arc<dyn TimeProvider> {
    Arc::new(SystemClock)
}

#[derive(Debug)]
struct SystemClock;

impl TimeProvider for SystemClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(at(SystemTime::now()))
    }
}

fn at(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_before_1970_is_at_its_beginning() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(at(UNIX_EPOCH - hour).as_secs(), 0);
        assert_eq!(at(UNIX_EPOCH + hour).as_secs(), 3_600);
    }
}
