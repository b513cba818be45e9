//! A device of the kernel, if it has WireGuard.
//!
//! It needs no process and carries no mark of its maker: what exists under the name is the agent's if the
//! agent's state says so. wireguard-control's `Key`, `Device` and `DeviceUpdate` print private keys with
//! `Debug`, so none of them leaves this file or meets a log.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use schema::scalars::WireGuardKey;
use wireguard_control::{
    AllowedIp, Backend, Device as KernelDevice, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder, PeerInfo,
};

use super::endpoints::Endpoints;
use super::{
    Basics, Device, DeviceError, DeviceState, DeviceStep, Kind, PeerSettings, PeerState, Refusal, host,
};

/// How many ranges of a peer an entry of a message has: a message has 8 KiB, and a range takes up to 40 bytes.
const RANGES: usize = 128;
/// What the kernel returns for a kind of link, or a link, that is not WireGuard's.
const NOT_WIREGUARD: rustix::io::Errno = rustix::io::Errno::OPNOTSUPP;

/// A WireGuard interface of the kernel.
#[derive(Debug)]
pub struct Kernel {
    name: InterfaceName,
    endpoints: Endpoints,
}

impl Kernel {
    /// Finds a WireGuard interface of that name; absent: there is none.
    pub fn attach(interface: &str) -> Result<Option<Self>, DeviceError> {
        let device = Self::named(interface)?;
        match device.read() {
            Ok(_) => Ok(Some(device)),
            Err(error) if means_absent(&error) => Ok(None),
            Err(error) => Err(device.failed("read", error)),
        }
    }

    /// Creates an interface; absent: this kernel has no WireGuard.
    pub fn create(interface: &str) -> Result<Option<Self>, DeviceError> {
        host::free_name(interface)?;
        let device = Self::named(interface)?;
        match DeviceUpdate::new().apply(&device.name, Backend::Kernel) {
            Ok(()) => Ok(Some(device)),
            Err(error) if is(&error, NOT_WIREGUARD) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(Refusal::Denied { interface: interface.to_owned() }.into())
            }
            Err(error) => Err(device.failed("make", error)),
        }
    }

    fn named(interface: &str) -> Result<Self, Refusal> {
        Ok(Self { name: name(interface)?, endpoints: Endpoints::default() })
    }

    fn read(&self) -> io::Result<KernelDevice> {
        KernelDevice::get(&self.name, Backend::Kernel)
    }

    fn present(&self) -> Result<KernelDevice, DeviceError> {
        self.read().map_err(|error| {
            if means_absent(&error) {
                return DeviceError::Gone { interface: self.name.to_string() };
            }
            self.failed("read", error)
        })
    }

    fn failed(&self, verb: &str, source: io::Error) -> DeviceError {
        DeviceError::host(format!("{verb} the kernel's WireGuard interface {}", self.name))(source)
    }
}

impl Device for Kernel {
    fn kind(&self) -> Kind {
        Kind::Kernel
    }

    fn observe(&mut self) -> Result<DeviceState, DeviceError> {
        let device = self.present()?;
        Ok(DeviceState {
            public_key: device.public_key.map(|key| WireGuardKey(key.0)),
            listen_port: device.listen_port.unwrap_or(0),
            mark: device.fwmark.unwrap_or(0),
            peers: states_of(device.peers),
        })
    }

    fn apply(&mut self, steps: &[DeviceStep]) -> Result<(), DeviceError> {
        // wireguard-control would create a missing interface anew, without addresses.
        let device = self.present()?;
        let basics = Basics::of(steps, device.listen_port.unwrap_or(0));
        if device.public_key.is_none() && basics.private_key.is_none() && !steps.is_empty() {
            return Err(Refusal::KeyMissing.into());
        }
        // On a link that is down the kernel binds later, when it is brought up, and fails there.
        if let Some(port) = basics.listen_port {
            host::free_port(port)?;
        }
        let port = basics.listen_port;
        let outcome = update(&basics, steps, &states_of(device.peers)).apply(&self.name, Backend::Kernel);
        match outcome {
            Ok(()) => self.endpoints.follow(steps),
            Err(_) => self.endpoints.invalidate(),
        }
        outcome.map_err(|error| match port {
            Some(port) if error.kind() == io::ErrorKind::AddrInUse => Refusal::PortTaken { port }.into(),
            _ => self.failed("change", error),
        })
    }

    fn endpoint(&mut self, peer: &WireGuardKey) -> Result<Option<SocketAddr>, DeviceError> {
        let now = Instant::now();
        if self.endpoints.are_stale(now) {
            let peers = self.present()?.peers.into_iter().map(|PeerInfo { config, .. }| config);
            self.endpoints.list(peers.map(|peer| (WireGuardKey(peer.public_key.0), peer.endpoint)), now);
        }
        Ok(self.endpoints.of(peer))
    }

    fn expire_at(&mut self, _at: Option<Duration>) -> Result<bool, DeviceError> {
        self.present().map(|_| false)
    }

    fn remove(&mut self) -> Result<(), DeviceError> {
        match self.present() {
            Ok(device) => device.delete().map_err(|error| self.failed("remove", error)),
            Err(DeviceError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Which peers there are, by their keys.
type Peers = BTreeMap<WireGuardKey, PeerState>;

fn update(basics: &Basics<'_>, steps: &[DeviceStep], there: &Peers) -> DeviceUpdate {
    let mut update = DeviceUpdate::new();
    if let Some(mark) = basics.mark {
        update = update.set_fwmark(mark);
    }
    if let Some(key) = basics.private_key {
        update = update.set_private_key(Key(key.0));
    }
    if let Some(port) = basics.listen_port {
        update = update.set_listen_port(port);
    }
    let peers: Vec<PeerConfigBuilder> = steps.iter().flat_map(|step| peer_changes(step, there)).collect();
    update.add_peers(&peers)
}

fn peer_changes(step: &DeviceStep, there: &Peers) -> Vec<PeerConfigBuilder> {
    match step {
        DeviceStep::SetMark(_) | DeviceStep::SetPrivateKey(_) | DeviceStep::SetListenPort(_) => Vec::new(),
        DeviceStep::RemovePeer(key) => vec![PeerConfigBuilder::new(&Key(key.0)).remove()],
        DeviceStep::PutPeer(key, settings) => {
            // The kernel takes all ranges away before it gives them back: a packet in between is lost.
            let stay =
                there.get(key).is_some_and(|it| it.settings.allowed_ips.is_subset(&settings.allowed_ips));
            put(&Key(key.0), settings, !stay)
        }
    }
}

/// The entries that put a peer, in place of the ranges that it has or added to them: the first has its
/// settings, and those that follow have more ranges, if one message would not hold all of them.
fn put(
    key: &Key,
    PeerSettings { endpoint, allowed_ips, keepalive }: &PeerSettings,
    replaces: bool,
) -> Vec<PeerConfigBuilder> {
    let mut peer = PeerConfigBuilder::new(key).set_persistent_keepalive_interval(*keepalive);
    if replaces {
        peer = peer.replace_allowed_ips();
    }
    if let Some(endpoint) = endpoint {
        peer = peer.set_endpoint(*endpoint);
    }
    let ranges: Vec<AllowedIp> = allowed_ips
        .iter()
        .map(|range| AllowedIp { address: range.network(), cidr: range.prefix_len() })
        .collect();
    let mut chunks = ranges.chunks(RANGES);
    let first = peer.add_allowed_ips(chunks.next().unwrap_or_default());
    let more = chunks.map(|some| PeerConfigBuilder::new(key).add_allowed_ips(some));
    std::iter::once(first).chain(more).collect()
}

/// The peers of a listing. One whose ranges do not fit the rest of a message is listed again in the next, with
/// its key and the other ranges alone.
fn states_of(listed: Vec<PeerInfo>) -> BTreeMap<WireGuardKey, PeerState> {
    let mut peers = BTreeMap::<WireGuardKey, PeerState>::new();
    for peer in listed {
        let key = WireGuardKey(peer.config.public_key.0);
        let state = state_of(peer);
        match peers.entry(key) {
            Entry::Vacant(place) => drop(place.insert(state)),
            Entry::Occupied(mut begun) => {
                begun.get_mut().settings.allowed_ips.extend(state.settings.allowed_ips);
            }
        }
    }
    peers
}

fn state_of(PeerInfo { config, stats }: PeerInfo) -> PeerState {
    let allowed_ips =
        config.allowed_ips.iter().filter_map(|range| IpNet::new(range.address, range.cidr).ok());
    let since_epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
    PeerState {
        settings: PeerSettings {
            endpoint: config.endpoint,
            allowed_ips: allowed_ips.collect(),
            keepalive: config.persistent_keepalive_interval.unwrap_or(0),
        },
        last_handshake: stats.last_handshake_time.and_then(since_epoch).map(|since| since.as_secs()),
        received: stats.rx_bytes,
        sent: stats.tx_bytes,
    }
}

fn name(interface: &str) -> Result<InterfaceName, Refusal> {
    interface.parse().map_err(|_| Refusal::NameInvalid { interface: interface.to_owned() })
}

/// Whether the error means that the link does not exist, or is not WireGuard's, or that there is no WireGuard
/// (its netlink family is then unknown).
fn means_absent(error: &io::Error) -> bool {
    is(error, rustix::io::Errno::NODEV) || is(error, NOT_WIREGUARD) || error.kind() == io::ErrorKind::NotFound
}

fn is(error: &io::Error, errno: rustix::io::Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_of_another_kind_is_not_a_device() {
        assert!(Kernel::attach("lo").expect("asking the kernel works").is_none());
        assert!(Kernel::attach("no-such-link").expect("asking the kernel works").is_none());
    }

    #[test]
    fn a_taken_name_is_refused_before_the_kernel_is_asked_for_wireguard() {
        let refused = Kernel::create("lo");
        assert!(matches!(refused, Err(DeviceError::Refused(Refusal::NameTaken { .. }))), "{refused:?}");
    }

    #[test]
    fn a_put_peer_replaces_its_ranges_and_keeps_an_unnamed_endpoint() {
        let allowed_ips = ["10.0.0.0/24", "fd00::/64"].map(|text| text.parse().expect("a good range"));
        let settings = PeerSettings { endpoint: None, allowed_ips: allowed_ips.into(), keepalive: 25 };
        let built = put(&Key([1; 32]), &settings, true);
        let expected = PeerConfigBuilder::new(&Key([1; 32]))
            .replace_allowed_ips()
            .set_persistent_keepalive_interval(25)
            .add_allowed_ip([10, 0, 0, 0].into(), 24)
            .add_allowed_ip("fd00::".parse().expect("a good address"), 64);
        assert!(built == [expected]);
    }

    #[test]
    fn a_peer_that_loses_no_range_keeps_them_while_it_is_put() {
        let key = WireGuardKey([1; 32]);
        let settings = |ranges: &[&str]| PeerSettings {
            endpoint: None,
            allowed_ips: ranges.iter().map(|range| range.parse().expect("a good range")).collect(),
            keepalive: 7,
        };
        let there = |ranges| {
            let state = PeerState { settings: settings(ranges), last_handshake: None, received: 0, sent: 0 };
            Peers::from([(key, state)])
        };
        let step = DeviceStep::PutPeer(key, settings(&["10.0.0.1/32", "fd00::1/128"]));
        let replaces = |there: &Peers| {
            let [built] = &*peer_changes(&step, there) else { panic!("it is one") };
            *built == put(&Key(key.0), &settings(&["10.0.0.1/32", "fd00::1/128"]), true)[0]
        };
        assert!(!replaces(&there(&["10.0.0.1/32"])) && !replaces(&there(&["10.0.0.1/32", "fd00::1/128"])));
        assert!(replaces(&there(&["10.0.0.2/32"])) && replaces(&Peers::new()));
    }

    #[test]
    fn a_peer_of_very_many_ranges_is_put_in_several_entries_that_replace_them_once() {
        let ranges = (0..1_000_u32).map(|number| {
            let [_, _, high, low] = number.to_be_bytes();
            format!("10.{high}.{low}.0/24").parse().expect("a good range")
        });
        let settings = PeerSettings { endpoint: None, allowed_ips: ranges.collect(), keepalive: 0 };
        let built = put(&Key([1; 32]), &settings, true);
        let key = PeerConfigBuilder::new(&Key([1; 32]));
        let expected: Vec<_> = settings
            .allowed_ips
            .iter()
            .map(|range| AllowedIp { address: range.addr(), cidr: range.prefix_len() })
            .collect::<Vec<_>>()
            .chunks(RANGES)
            .enumerate()
            .map(|(index, some)| match index {
                0 => key
                    .clone()
                    .replace_allowed_ips()
                    .set_persistent_keepalive_interval(0)
                    .add_allowed_ips(some),
                _ => key.clone().add_allowed_ips(some),
            })
            .collect();
        assert!(built == expected);
        assert_eq!(built.len(), 8);
    }

    #[test]
    fn a_peer_that_is_listed_in_two_parts_is_one() {
        let listed = |ranges: &[&str]| {
            let mut peer = PeerInfo::from_public_key(Key([1; 32]));
            let range = |text: &&str| {
                let range: IpNet = text.parse().expect("a good range");
                AllowedIp { address: range.addr(), cidr: range.prefix_len() }
            };
            peer.config.allowed_ips = ranges.iter().map(range).collect();
            peer
        };
        let mut first = listed(&["10.0.0.1/32"]);
        first.config.endpoint = Some(([192, 0, 2, 1], 51_821).into());
        first.config.persistent_keepalive_interval = Some(20);
        first.stats.rx_bytes = 148;
        let whole = states_of(vec![first, listed(&["fd00::1/128"])]);
        let [(_, peer)] = &*whole.into_iter().collect::<Vec<_>>() else { panic!("it is one") };
        assert_eq!(peer.settings.allowed_ips.len(), 2);
        assert_eq!(
            (peer.settings.endpoint.is_some(), peer.settings.keepalive, peer.received),
            (true, 20, 148)
        );
    }
}
