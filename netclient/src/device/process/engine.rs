//! gotatun, adapted to the contract of a device.
//!
//! Its traps, all of 0.10.2: a peer before the key, or a socket before the key, panics; a port that cannot be
//! bound leaves the device deaf until another is set; what used a socket that it closes is only asked to end, so
//! that a new one on the same port, which a new key needs, may find it taken for a moment; a port that moves may
//! make it report a false failure, since what read the TUN for the old socket finds its queue closed; a
//! handshake is forgotten with its session, after three minutes; a peer that is updated through WireGuard's own
//! protocol loses its session, so everything here goes through the API.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use gotatun::device::configure::{DeviceWrite, PeerStats};
use gotatun::device::uapi::UapiServer;
use gotatun::device::{DefaultDeviceTransports, Device as Gotatun, Error, Peer, build};
use gotatun::tun::tun::Error as TunError;
use gotatun::tun::tun_async_device::{Error as OpenError, TunDevice};
use gotatun::x25519;
use ipnet::IpNet;
use schema::scalars::WireGuardKey;

use super::super::endpoints::Endpoints;
use super::super::{Basics, DeviceState, DeviceStep, PeerSettings, PeerState, PrivateKey, Refusal, host};
use crate::files::OwnFile;

/// How long peers change before packets go on, which wait meanwhile.
const AT_ONCE: Duration = Duration::from_millis(5);
/// How long a socket that gotatun closed may still have its port.
const CLOSING: Duration = Duration::from_secs(1);

pub(super) struct Engine {
    device: Gotatun<DefaultDeviceTransports>,
    /// gotatun has reported the one failure that it ever reports.
    reported: bool,
    /// When each peer last completed a handshake, also after its session.
    handshakes: BTreeMap<WireGuardKey, u64>,
    endpoints: Endpoints,
}

impl Engine {
    /// Creates the TUN and the device on it, without key, port or peers; and WireGuard's own socket, if
    /// possible.
    pub(super) async fn open(interface: &str) -> Result<(Self, Option<OwnFile>), Refusal> {
        let tun = TunDevice::from_name(interface).map_err(|error| cannot_open(interface, &error))?;
        let uapi = free_uapi(interface)
            .then(|| UapiServer::default_unix_socket(interface, None, None).ok())
            .flatten();
        let file = uapi.as_ref().and_then(|_| OwnFile::claim(&uapi_path(interface)).ok());
        let mut builder = build().with_default_udp().with_ip(tun);
        if let Some(uapi) = uapi {
            builder = builder.with_uapi(uapi);
        }
        let device =
            builder.build().await.map_err(Refusal::failed(format!("start the device {interface}")))?;
        Ok((
            Self { device, reported: false, handshakes: BTreeMap::new(), endpoints: Endpoints::default() },
            file,
        ))
    }

    /// Returns once, when gotatun reports that it cannot go on, as when its TUN was removed; it may be a false
    /// report, that comes some time after its port or key has changed, also by WireGuard's own protocol.
    pub(super) async fn failed(&mut self) {
        if self.reported {
            std::future::pending::<()>().await;
        }
        self.device.wait().await;
        self.reported = true;
    }

    /// Returns when its port is free again as well.
    pub(super) async fn stop(self) {
        let port = self.device.read(async |device| device.listen_port()).await;
        self.device.stop().await;
        let _ = within(CLOSING, async || host::free_port(port)).await;
    }

    pub(super) async fn observe(&mut self) -> DeviceState {
        let now = Instant::now();
        let (public_key, listen_port, mark, peers) = self
            .device
            .read(async |device| {
                let public_key =
                    device.private_key().map(|key| WireGuardKey(x25519::PublicKey::from(key).to_bytes()));
                (public_key, device.listen_port(), device.fwmark().unwrap_or(0), device.peers().await)
            })
            .await;
        self.record(&peers, now);
        let peers = peers.into_iter().map(|peer| {
            let key = key_of(&peer.peer);
            (key, state_of(peer, self.handshakes.get(&key).copied()))
        });
        DeviceState { public_key, listen_port, mark, peers: peers.collect() }
    }

    /// Where a peer was last heard, from a recent listing if there is one.
    pub(super) async fn endpoint(&mut self, peer: &WireGuardKey) -> Option<SocketAddr> {
        if self.endpoints.are_stale(Instant::now()) {
            self.record_peers().await;
        }
        self.endpoints.of(peer)
    }

    /// Remembers the handshakes of sessions that will be forgotten, and the endpoints; to be called within
    /// every three minutes.
    pub(super) async fn record_peers(&mut self) {
        let now = Instant::now();
        let peers = self.device.peers().await;
        self.record(&peers, now);
    }

    fn record(&mut self, peers: &[PeerStats], now: Instant) {
        let endpoints = peers.iter().map(|PeerStats { peer, .. }| (key_of(peer), peer.endpoint));
        self.endpoints.list(endpoints, now);
        self.record_handshakes(peers);
    }

    fn record_handshakes(&mut self, peers: &[PeerStats]) {
        let mut noted = BTreeMap::new();
        for peer in peers {
            let key = key_of(&peer.peer);
            let known = self.handshakes.get(&key).copied();
            let seen = peer.stats.last_handshake.map(|age| epoch(SystemTime::now() - age));
            // An age that is measured again may fall into the next second: that is not a new handshake.
            let same = |seen: u64| known.filter(|&known| seen.abs_diff(known) <= 1).unwrap_or(seen);
            if let Some(time) = seen.map(same).or(known) {
                noted.insert(key, time);
            }
        }
        self.handshakes = noted;
    }

    pub(super) async fn apply(&mut self, steps: &[DeviceStep]) -> Result<(), Refusal> {
        let (key, port) = self
            .device
            .read(async |device| (device.private_key().map(x25519::PublicKey::from), device.listen_port()))
            .await;
        let basics = Basics::of(steps, port);
        let set = basics.private_key.map(|key| x25519::PublicKey::from(key.public().0));
        let Some(own) = set.or(key) else {
            return if steps.is_empty() { Ok(()) } else { Err(Refusal::KeyMissing) };
        };
        if let Some(port) = basics.listen_port {
            host::free_port(port)?;
        }
        if let Some(mark) = basics.mark {
            self.device.set_fwmark(mark).await.map_err(Refusal::failed("mark the device's packets"))?;
        }
        self.set_basics(&basics, port).await?;
        let mut rest = steps;
        while !rest.is_empty() {
            let change = async |device: &mut DeviceWrite<'_, _>| change_peers(device, &own, rest).await;
            // What fails here is opening the new socket, not the change.
            let done = self.device.write(change).await.map_err(Refusal::failed("change peers"))?;
            self.endpoints.follow(&rest[..done]);
            rest = &rest[done..];
        }
        Ok(())
    }

    /// Sets key and port in one change: gotatun opens its socket after each.
    async fn set_basics(&mut self, basics: &Basics<'_>, port_in_use: u16) -> Result<(), Refusal> {
        let Err(error) = self.write_basics(basics.private_key, basics.listen_port).await else {
            return Ok(());
        };
        let refusal = cannot_listen(basics.listen_port.unwrap_or(port_in_use), &error);
        // Another program took the port first. Deaf on the new port, the device returns to the old one; deaf on
        // the old one, it takes any, so that who looks sees that it is not the one that was asked for.
        self.write_basics(None, Some(basics.listen_port.map_or(0, |_| port_in_use)))
            .await
            .map_err(Refusal::failed("return to a UDP port"))?;
        Err(refusal)
    }

    async fn write_basics(&mut self, key: Option<&PrivateKey>, port: Option<u16>) -> Result<(), Error> {
        let change = async |device: &mut DeviceWrite<'_, _>| {
            if let Some(key) = key {
                // gotatun would take itself for a peer.
                device.remove_peer(&x25519::PublicKey::from(key.public().0)).await;
                device.set_private_key(x25519::StaticSecret::from(key.0)).await;
            }
            if let Some(port) = port {
                device.set_listen_port(port);
            }
        };
        match self.device.write(change).await {
            Err(error) if in_use(&error) => within(CLOSING, async || self.reopen().await).await,
            written => written,
        }
    }

    /// Opens the socket again on the same port.
    async fn reopen(&self) -> Result<(), Error> {
        let same = async |device: &mut DeviceWrite<'_, _>| {
            let port = device.listen_port();
            // gotatun opens it when the port has changed, to whatever.
            device.set_listen_port(0);
            device.set_listen_port(port);
        };
        self.device.write(same).await
    }
}

/// Tries until it succeeds or the time is over.
async fn within<E>(limit: Duration, mut attempt: impl AsyncFnMut() -> Result<(), E>) -> Result<(), E> {
    let start = Instant::now();
    loop {
        let outcome = attempt().await;
        if outcome.is_ok() || start.elapsed() >= limit {
            return outcome;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Changes peers for a while, of a device whose own key is `own`; returns how many steps were done, at least
/// one.
async fn change_peers(
    device: &mut DeviceWrite<'_, DefaultDeviceTransports>,
    own: &x25519::PublicKey,
    steps: &[DeviceStep],
) -> usize {
    let start = Instant::now();
    for (done, step) in steps.iter().enumerate() {
        if done > 0 && start.elapsed() >= AT_ONCE {
            return done;
        }
        match step {
            DeviceStep::SetMark(_) | DeviceStep::SetPrivateKey(_) | DeviceStep::SetListenPort(_) => {}
            DeviceStep::PutPeer(key, _) if key.0 == own.to_bytes() => {}
            DeviceStep::PutPeer(key, settings) => put(device, key, settings).await,
            DeviceStep::RemovePeer(key) => {
                device.remove_peer(&x25519::PublicKey::from(key.0)).await;
            }
        }
    }
    steps.len()
}

async fn put(
    device: &mut DeviceWrite<'_, DefaultDeviceTransports>,
    key: &WireGuardKey,
    settings: &PeerSettings,
) {
    let peer = peer_of(key, settings);
    let changed = device.modify_peer(&peer.public_key, |change| {
        if peer.endpoint.is_some() {
            change.set_endpoint(peer.endpoint);
        }
        change.clear_allowed_ips();
        change.add_allowed_ips(peer.allowed_ips.iter().copied());
        change.set_keepalive(peer.keepalive);
    });
    if !changed.await {
        device.add_peer(peer);
    }
}

fn peer_of(key: &WireGuardKey, PeerSettings { endpoint, allowed_ips, keepalive }: &PeerSettings) -> Peer {
    let mut peer = Peer::new(x25519::PublicKey::from(key.0));
    peer.endpoint = *endpoint;
    peer.keepalive = Some(*keepalive).filter(|&seconds| seconds != 0);
    // gotatun takes the type of a crate that it does not export, but that parses what our type prints.
    let range =
        |range: &IpNet| range.trunc().to_string().parse().expect("a range prints as an address and a length");
    peer.allowed_ips = allowed_ips.iter().map(range).collect();
    peer
}

fn key_of(peer: &Peer) -> WireGuardKey {
    WireGuardKey(peer.public_key.to_bytes())
}

fn state_of(PeerStats { peer, stats, .. }: PeerStats, last_handshake: Option<u64>) -> PeerState {
    let allowed_ips: BTreeSet<IpNet> =
        peer.allowed_ips.iter().filter_map(|range| IpNet::new(range.ip(), range.prefix()).ok()).collect();
    let settings =
        PeerSettings { endpoint: peer.endpoint, allowed_ips, keepalive: peer.keepalive.unwrap_or(0) };
    PeerState { settings, last_handshake, received: stats.rx_bytes as u64, sent: stats.tx_bytes as u64 }
}

fn epoch(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn cannot_listen(port: u16, error: &Error) -> Refusal {
    if in_use(error) {
        return Refusal::PortTaken { port };
    }
    Refusal::failed(format!("listen on UDP port {port}"))(error)
}

/// Whether the port had another socket.
fn in_use(error: &Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|source| source.kind() == std::io::ErrorKind::AddrInUse)
}

fn cannot_open(interface: &str, error: &OpenError) -> Refusal {
    use rustix::io::Errno;
    let interface = interface.to_owned();
    let errno = if let OpenError::OpenTun(TunError::Io(source)) = error {
        Errno::from_io_error(source)
    } else {
        None
    };
    match errno {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Refusal::TunMissing,
        Some(Errno::PERM | Errno::ACCESS) => Refusal::Denied { interface },
        Some(Errno::BUSY | Errno::INVAL) => Refusal::NameTaken { interface },
        _ => Refusal::failed(format!("make the interface {interface}"))(error),
    }
}

/// Whether no other process answers `wg` under this name: containers may share the folder.
fn free_uapi(interface: &str) -> bool {
    std::os::unix::net::UnixStream::connect(uapi_path(interface)).is_err()
}

/// Where WireGuard's tools look for a userspace device (wg(8)).
fn uapi_path(interface: &str) -> PathBuf {
    Path::new("/run/wireguard").join(format!("{interface}.sock"))
}
