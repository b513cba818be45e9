//! A device in memory, for tests of the layers above a device: it keeps the contract and records the steps.
//!
//! It is the kernel's, as far as nothing else is said ([`FakeDevice::of`]), and does what that was seen to do:
//! `tests/tests/devices.rs` puts the same questions to all three kinds of device.
//!
//! A [`FakeDevice`] is a handle: clones share the device, so that a test keeps one and passes the other on.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use schema::scalars::WireGuardKey;

use super::{Basics, Device, DeviceError, DeviceState, DeviceStep, Kind, PeerSettings, PeerState, Refusal};

/// A device in memory.
#[derive(Clone, Debug, Default)]
pub struct FakeDevice(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    state: DeviceState,
    applied: Vec<DeviceStep>,
    observations: usize,
    refusals: VecDeque<Refusal>,
    expiry: Option<Duration>,
    removed: bool,
    stays: bool,
    is_process: bool,
    taken: BTreeSet<u16>,
    journal: Journal,
}

/// What became of a host, in order, in a line each; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    /// Adds a line.
    pub fn push(&self, line: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.into());
    }

    /// Takes the lines that came since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The port that a device has the kernel choose.
const CHOSEN: u16 = 40_000;

impl FakeDevice {
    /// A device of a kind.
    pub fn of(kind: Kind) -> Self {
        let device = Self::default();
        device.lock().is_process = kind == Kind::Userspace;
        device
    }

    /// Has its peers that come and go be written to a journal as well.
    #[must_use]
    pub fn writing(self, journal: Journal) -> Self {
        self.lock().journal = journal;
        self
    }

    /// Has another program listen on a port from now on, or no longer.
    pub fn take_port(&self, port: u16, taken: bool) {
        let mut inner = self.lock();
        if taken {
            inner.taken.insert(port);
        } else {
            inner.taken.remove(&port);
        }
    }

    /// Does what comes of its link being brought up; an error: the port is taken. The kernel listens only
    /// then; a process has listened since its port was set.
    pub fn come_up(&self) -> Result<(), Refusal> {
        let mut inner = self.lock();
        if inner.is_process {
            return Ok(());
        }
        match inner.state.listen_port {
            0 => inner.state.listen_port = CHOSEN,
            port if inner.taken.contains(&port) => return Err(Refusal::PortTaken { port }),
            _ => {}
        }
        Ok(())
    }

    /// Takes the steps that were applied since the last call, in their order.
    pub fn take_applied(&self) -> Vec<DeviceStep> {
        std::mem::take(&mut self.lock().applied)
    }

    /// How often it was observed as a whole.
    pub fn observations(&self) -> usize {
        self.lock().observations
    }

    /// What it has, without counting as an observation.
    pub fn state(&self) -> DeviceState {
        self.lock().state.clone()
    }

    /// Makes one [`Device::apply`] fail: the next one that no earlier call of this function makes fail.
    pub fn refuse_next(&self, refusal: Refusal) {
        self.lock().refusals.push_back(refusal);
    }

    /// Makes every [`Device::remove`] fail from now on, or none.
    pub fn refuse_removal(&self, refused: bool) {
        self.lock().stays = refused;
    }

    /// Lets a peer be heard from `endpoint`, with a handshake at `time` (seconds of the Unix epoch).
    pub fn hear(&self, peer: &WireGuardKey, endpoint: SocketAddr, time: u64) {
        if let Some(peer) = self.lock().state.peers.get_mut(peer) {
            peer.settings.endpoint = Some(endpoint);
            peer.last_handshake = Some(time);
            // The size of a handshake initiation.
            peer.received += 148;
        }
    }

    /// When the device was last set to end by itself; absent: never. It has no clock: the test ends it.
    pub fn expiry(&self) -> Option<Duration> {
        self.lock().expiry
    }

    /// Ends the device as a crash would: every call answers [`DeviceError::Gone`].
    pub fn end(&self) {
        self.lock().removed = true;
    }

    /// Whether the device was removed, or ended.
    pub fn is_removed(&self) -> bool {
        self.lock().removed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> Result<MutexGuard<'_, Inner>, DeviceError> {
        let inner = self.lock();
        if inner.removed { Err(DeviceError::Gone { interface: "fake".to_owned() }) } else { Ok(inner) }
    }
}

impl Device for FakeDevice {
    fn kind(&self) -> Kind {
        if self.lock().is_process { Kind::Userspace } else { Kind::Kernel }
    }

    fn observe(&mut self) -> Result<DeviceState, DeviceError> {
        let mut inner = self.alive()?;
        inner.observations += 1;
        Ok(inner.state.clone())
    }

    fn apply(&mut self, steps: &[DeviceStep]) -> Result<(), DeviceError> {
        let mut inner = self.alive()?;
        if let Some(refusal) = inner.refusals.pop_front() {
            return Err(refusal.into());
        }
        let port = Basics::of(steps, inner.state.listen_port).listen_port;
        if let Some(port) = port.filter(|port| inner.taken.contains(port)) {
            return Err(Refusal::PortTaken { port }.into());
        }
        inner.state.carry_out(steps)?;
        inner.applied.extend_from_slice(steps);
        for step in steps {
            match step {
                DeviceStep::PutPeer(_, PeerSettings { allowed_ips, .. }) => {
                    inner.journal.push(format!("put a peer with {}", joined(allowed_ips)));
                }
                DeviceStep::RemovePeer(_) => inner.journal.push("remove a peer"),
                DeviceStep::SetMark(_) | DeviceStep::SetPrivateKey(_) | DeviceStep::SetListenPort(_) => {}
            }
        }
        Ok(())
    }

    fn endpoint(&mut self, peer: &WireGuardKey) -> Result<Option<SocketAddr>, DeviceError> {
        Ok(self.alive()?.state.peers.get(peer).and_then(|peer| peer.settings.endpoint))
    }

    fn expire_at(&mut self, at: Option<Duration>) -> Result<bool, DeviceError> {
        let mut inner = self.alive()?;
        // Only a process keeps a deadline.
        if inner.is_process {
            inner.expiry = at;
        }
        Ok(inner.is_process)
    }

    fn remove(&mut self) -> Result<(), DeviceError> {
        let mut inner = self.lock();
        if inner.stays {
            return Err(Refusal::KeyMissing.into());
        }
        inner.removed = true;
        Ok(())
    }
}

fn joined(ranges: &BTreeSet<IpNet>) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl DeviceState {
    fn carry_out(&mut self, steps: &[DeviceStep]) -> Result<(), Refusal> {
        let basics = Basics::of(steps, self.listen_port);
        let public_key = basics.private_key.map(|key| key.public()).or(self.public_key);
        if public_key.is_none() && !steps.is_empty() {
            return Err(Refusal::KeyMissing);
        }
        self.public_key = public_key;
        // The kernel takes itself for no peer.
        if let Some(own) = public_key {
            self.peers.remove(&own);
        }
        self.mark = basics.mark.unwrap_or(self.mark);
        self.listen_port = basics.listen_port.unwrap_or(self.listen_port);
        for step in steps {
            match step {
                DeviceStep::SetMark(_) | DeviceStep::SetPrivateKey(_) | DeviceStep::SetListenPort(_) => {}
                DeviceStep::PutPeer(key, _) if Some(*key) == public_key => {}
                DeviceStep::PutPeer(key, settings) => self.put(*key, settings.clone()),
                DeviceStep::RemovePeer(key) => drop(self.peers.remove(key)),
            }
        }
        Ok(())
    }

    fn put(&mut self, key: WireGuardKey, mut settings: PeerSettings) {
        for other in self.peers.values_mut() {
            if !other.settings.allowed_ips.is_disjoint(&settings.allowed_ips) {
                other.settings.allowed_ips.retain(|range| !settings.allowed_ips.contains(range));
            }
        }
        match self.peers.get_mut(&key) {
            Some(peer) => {
                settings.endpoint = settings.endpoint.or(peer.settings.endpoint);
                peer.settings = settings;
            }
            None => {
                self.peers.insert(key, PeerState { settings, last_handshake: None, received: 0, sent: 0 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::PrivateKey;
    use super::*;

    fn settings(endpoint: Option<&str>, range: &str) -> PeerSettings {
        PeerSettings {
            endpoint: endpoint.map(|text| text.parse().expect("a good endpoint")),
            allowed_ips: BTreeSet::from([range.parse().expect("a good range")]),
            keepalive: 25,
        }
    }

    fn with_key() -> FakeDevice {
        with_key_of(Kind::Kernel)
    }

    fn with_key_of(kind: Kind) -> FakeDevice {
        let mut device = FakeDevice::of(kind);
        device.apply(&[DeviceStep::SetPrivateKey(PrivateKey([7; 32]))]).expect("a key is taken");
        device
    }

    #[test]
    fn a_step_before_the_key_is_refused() {
        let refused = FakeDevice::default().apply(&[DeviceStep::SetListenPort(51820)]);
        assert!(matches!(refused, Err(DeviceError::Refused(Refusal::KeyMissing))));
    }

    #[test]
    fn an_absent_endpoint_leaves_the_one_a_peer_was_heard_from() {
        let mut device = with_key();
        let peer = WireGuardKey([1; 32]);
        device.apply(&[DeviceStep::PutPeer(peer, settings(None, "10.0.0.1/32"))]).expect("a peer is put");
        device.hear(&peer, "192.0.2.1:51820".parse().expect("a good endpoint"), 1_700_000_000);
        device.apply(&[DeviceStep::PutPeer(peer, settings(None, "10.0.0.2/32"))]).expect("a peer is put");

        let seen =
            device.observe().expect("the device is there").peers.remove(&peer).expect("the peer is there");
        assert_eq!(seen.settings, settings(Some("192.0.2.1:51820"), "10.0.0.2/32"));
        assert_eq!((seen.last_handshake, seen.received), (Some(1_700_000_000), 148));
    }

    #[test]
    fn one_peer_is_asked_for_alone() {
        let mut device = with_key();
        let peer = WireGuardKey([1; 32]);
        device.apply(&[DeviceStep::PutPeer(peer, settings(None, "10.0.0.1/32"))]).expect("a peer is put");
        assert_eq!(device.endpoint(&peer).expect("the device is there"), None);
        let heard = "192.0.2.1:51820".parse().expect("a good endpoint");
        device.hear(&peer, heard, 1_700_000_000);
        assert_eq!(device.endpoint(&peer).expect("the device is there"), Some(heard));
        assert_eq!(device.endpoint(&WireGuardKey([2; 32])).expect("the device is there"), None);
    }

    #[test]
    fn the_last_deadline_holds_and_the_kernel_keeps_none() {
        let (mut process, mut kernel) = (with_key_of(Kind::Userspace), with_key());
        for at in [Some(Duration::from_secs(600)), None, Some(Duration::from_secs(1200))] {
            assert!(process.expire_at(at).expect("the device is there"));
            assert!(!kernel.expire_at(at).expect("the device is there"));
            assert_eq!((process.expiry(), kernel.expiry()), (at, None));
        }
    }

    #[test]
    fn a_device_is_no_peer_of_itself() {
        let mut device = with_key();
        let [own, other] = [7, 8].map(|byte| PrivateKey([byte; 32]));
        let put = |key: &PrivateKey, range| DeviceStep::PutPeer(key.public(), settings(None, range));
        device.apply(&[put(&own, "10.0.0.1/32"), put(&other, "10.0.0.2/32")]).expect("it ignores itself");
        assert_eq!(device.state().peers.into_keys().collect::<Vec<_>>(), [other.public()]);
        device.apply(&[DeviceStep::SetPrivateKey(other)]).expect("a key is taken");
        assert!(device.state().peers.is_empty());
    }

    #[test]
    fn the_kernel_listens_once_its_link_is_up() {
        let mut device = with_key();
        device.apply(&[DeviceStep::SetListenPort(51820)]).expect("it is free");
        device.take_port(51820, true);
        assert_eq!(device.come_up(), Err(Refusal::PortTaken { port: 51820 }));
        device.apply(&[DeviceStep::SetListenPort(51821)]).expect("it is free");
        assert_eq!(device.come_up(), Ok(()));

        let any = with_key();
        assert_eq!((any.state().listen_port, any.come_up(), any.state().listen_port), (0, Ok(()), CHOSEN));
    }

    #[test]
    fn a_port_of_another_program_is_refused_and_nothing_has_changed() {
        let mut device = with_key();
        let before = device.state();
        device.take_port(51820, true);
        let refused = device.apply(&[
            DeviceStep::SetMark(7),
            DeviceStep::SetPrivateKey(PrivateKey([8; 32])),
            DeviceStep::SetListenPort(51820),
        ]);
        assert!(matches!(refused, Err(DeviceError::Refused(Refusal::PortTaken { port: 51820 }))));
        assert_eq!(device.state(), before);
    }

    #[test]
    fn a_range_belongs_to_the_peer_put_last() {
        let mut device = with_key();
        let [first, last] = [WireGuardKey([1; 32]), WireGuardKey([2; 32])];
        let put = |peer| DeviceStep::PutPeer(peer, settings(None, "10.0.0.0/24"));
        device.apply(&[put(first), put(last)]).expect("peers are put");

        let state = device.observe().expect("the device is there");
        assert!(state.peers[&first].settings.allowed_ips.is_empty());
        assert_eq!(state.peers[&last].settings.allowed_ips.len(), 1);
    }

    #[test]
    fn a_refused_list_changes_and_records_nothing() {
        let mut device = with_key();
        device.take_applied();
        device.refuse_next(Refusal::PortTaken { port: 51820 });
        assert!(device.apply(&[DeviceStep::SetListenPort(51820)]).is_err());
        assert_eq!(device.take_applied(), []);
        device.apply(&[DeviceStep::SetListenPort(51821)]).expect("the next port is taken");
        assert_eq!(device.observe().expect("the device is there").listen_port, 51821);
    }

    #[test]
    fn a_device_that_ended_is_distinguished() {
        let mut device = with_key();
        device.clone().end();
        assert!(matches!(device.observe(), Err(DeviceError::Gone { .. })));
        assert!(matches!(device.endpoint(&WireGuardKey([1; 32])), Err(DeviceError::Gone { .. })));
        assert!(matches!(device.expire_at(None), Err(DeviceError::Gone { .. })));
    }
}
