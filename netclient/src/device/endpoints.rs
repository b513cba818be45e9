//! Where peers were last heard, remembered from one listing of a device to the next: neither the kernel nor
//! gotatun can be asked for one peer, so each question would cost as much as all peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use schema::scalars::WireGuardKey;

use super::DeviceStep;

/// How old a listing may be to answer from.
pub(super) const LONGEST_AGE: Duration = Duration::from_millis(250);

/// The endpoints of a device's peers, as of its last listing and the steps since.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    of: BTreeMap<WireGuardKey, SocketAddr>,
    /// Absent: the device was never listed, or may have changed unnoticed since.
    listed: Option<Instant>,
}

impl Endpoints {
    /// Whether the device is to be listed before [`Endpoints::of`] is asked.
    pub(super) fn are_stale(&self, now: Instant) -> bool {
        self.listed.is_none_or(|listed| now.saturating_duration_since(listed) > LONGEST_AGE)
    }

    /// Records a listing that was begun at `now`.
    pub(super) fn list(
        &mut self,
        peers: impl Iterator<Item = (WireGuardKey, Option<SocketAddr>)>,
        now: Instant,
    ) {
        self.of = peers.filter_map(|(peer, endpoint)| Some((peer, endpoint?))).collect();
        self.listed = Some(now);
    }

    /// Records steps that were applied to the device: a peer that is put or removed needs no new listing.
    pub(super) fn follow(&mut self, steps: &[DeviceStep]) {
        for step in steps {
            match step {
                DeviceStep::SetMark(_) | DeviceStep::SetPrivateKey(_) | DeviceStep::SetListenPort(_) => {}
                DeviceStep::PutPeer(peer, settings) => {
                    if let Some(endpoint) = settings.endpoint {
                        self.of.insert(*peer, endpoint);
                    }
                }
                DeviceStep::RemovePeer(peer) => drop(self.of.remove(peer)),
            }
        }
    }

    /// Makes the device be listed before the next question: it is unknown how many steps of a failed list
    /// were applied.
    pub(super) fn invalidate(&mut self) {
        self.listed = None;
    }

    /// Where a peer was last heard; absent: it was not, or is not there.
    pub(super) fn of(&self, peer: &WireGuardKey) -> Option<SocketAddr> {
        self.of.get(peer).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::PeerSettings;
    use super::*;

    const PEER: WireGuardKey = WireGuardKey([1; 32]);

    fn endpoint(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    fn put(endpoint: Option<SocketAddr>) -> DeviceStep {
        DeviceStep::PutPeer(PEER, PeerSettings { endpoint, allowed_ips: BTreeSet::new(), keepalive: 0 })
    }

    #[test]
    fn a_listing_answers_many_questions_and_then_grows_stale() {
        let mut endpoints = Endpoints::default();
        let start = Instant::now();
        assert!(endpoints.are_stale(start));
        endpoints.list([(PEER, endpoint(1)), (WireGuardKey([2; 32]), None)].into_iter(), start);
        assert!(!endpoints.are_stale(start + LONGEST_AGE));
        assert!(endpoints.are_stale(start + LONGEST_AGE + Duration::from_nanos(1)));
        assert_eq!(endpoints.of(&PEER), endpoint(1));
        assert_eq!(endpoints.of(&WireGuardKey([2; 32])), None);
    }

    #[test]
    fn a_listing_forgets_the_peers_that_it_lacks() {
        let mut endpoints = Endpoints::default();
        endpoints.list([(PEER, endpoint(1))].into_iter(), Instant::now());
        endpoints.list(std::iter::empty(), Instant::now());
        assert_eq!(endpoints.of(&PEER), None);
    }

    #[test]
    fn steps_need_no_new_listing() {
        let mut endpoints = Endpoints::default();
        let start = Instant::now();
        endpoints.list(std::iter::empty(), start);
        endpoints.follow(&[put(endpoint(1))]);
        assert_eq!(endpoints.of(&PEER), endpoint(1));
        endpoints.follow(&[put(None)]);
        assert_eq!(endpoints.of(&PEER), endpoint(1), "an absent endpoint leaves the known one");
        endpoints.follow(&[DeviceStep::RemovePeer(PEER)]);
        assert_eq!(endpoints.of(&PEER), None);
        assert!(!endpoints.are_stale(start));
    }

    #[test]
    fn a_listing_in_doubt_is_stale_at_once() {
        let mut endpoints = Endpoints::default();
        let start = Instant::now();
        endpoints.list(std::iter::empty(), start);
        endpoints.invalidate();
        assert!(endpoints.are_stale(start));
    }
}
