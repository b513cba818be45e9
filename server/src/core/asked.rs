//! How many hosts may begin to wait for a network within a time: whoever knows the server may ask, each makes a
//! revision, and whoever has left may ask again.
//!
//! Pure: the time is passed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use schema::inventory::PendingNode;
use schema::scalars::NetworkName;

/// What each takes: as many may begin in an hour as wait at most.
const EACH: Duration = Duration::from_secs(3_600 / PendingNode::MOST as u64);

/// Who has asked of late.
#[derive(Debug, Default)]
pub struct Asked {
    /// When all that have begun to wait for a network would have, at one for each [`EACH`].
    paid: BTreeMap<NetworkName, Instant>,
}

impl Asked {
    /// Whether one more host may begin to wait for a network, which then counts. As many may at once as wait at
    /// most.
    pub fn may_begin(&mut self, network: &NetworkName, now: Instant) -> bool {
        self.paid.retain(|_, paid| *paid > now);
        let paid = self.paid.get(network).copied().unwrap_or(now) + EACH;
        let free = EACH * u32::try_from(PendingNode::MOST).unwrap_or(u32::MAX);
        let may = paid <= now + free;
        if may {
            self.paid.insert(network.clone(), paid);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_begin_at_once_and_then_one_each_36_seconds_in_each_network() {
        let mut asked = Asked::default();
        let start = Instant::now();
        let [corp, lab]: [NetworkName; 2] = ["corp", "lab"].map(|name| name.parse().expect("good"));
        assert!((0..100).all(|_| asked.may_begin(&corp, start)));
        assert!((0..1_000).all(|_| !asked.may_begin(&corp, start)), "a refusal costs nothing");
        assert!(asked.may_begin(&lab, start));
        assert!(!asked.may_begin(&corp, start + EACH / 2));
        assert!(asked.may_begin(&corp, start + EACH));
        assert!(!asked.may_begin(&corp, start + EACH));
        let later = start + Duration::from_secs(7_200);
        assert!((0..100).all(|_| asked.may_begin(&corp, later)));
        assert!(!asked.may_begin(&corp, later), "time that nobody asked in is not saved up");
        asked.may_begin(&lab, later + Duration::from_secs(7_200));
        assert_eq!(asked.paid.len(), 1, "what is over is forgotten");
    }
}
