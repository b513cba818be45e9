//! What the tunnels to agents need on this host: a packet filter, a WireGuard device, its link, and a port on
//! it.

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};
use netclient::agent::{Down, not_ours};
use netclient::comms::{MTU, free_interface, host, names};
use netclient::device::{
    self, Device, DeviceError, DeviceState, DeviceStep, PeerSettings, PrivateKey, Refusal, blocking,
};
use netclient::outside::Mark;
use netclient::reconcile::{AppliedEndpoints, Wanted, WantedLink, device_steps, link_steps};
use netclient::system::firewall::{self, FirewallError};
use netclient::system::link::{self, LinkError};
use netclient::system::own_tables::OwnTables;
use netclient::system::rp_filter;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use super::{TunnelParameters, TunnelsUnavailable};
use crate::config::Settings;
use crate::core::registry::{RegisteredHost, Registry};
use crate::identity::{DataDir, IdentityError};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1_024;
/// The file of the device's key.
const KEY_FILE: &str = "comms.key";
/// How many interface names are searched for an earlier device.
const NAMES: usize = 16;

/// The host's side of the tunnels: what stays the same while the server runs.
pub(super) struct TunnelHost {
    pub(super) interface: String,
    socket: PathBuf,
    range: Ipv4Net,
    /// The address of the agents' service in the tunnel.
    pub(super) service: SocketAddrV4,
    /// Where agents reach the device.
    pub(super) endpoint: String,
    port: u16,
    private_key: PrivateKey,
}

impl TunnelHost {
    /// Chooses the device that exists, else one under the stored name, else under the next free one.
    pub(super) fn choose(
        settings: &Settings,
        directory: &DataDir,
        kept: Option<String>,
    ) -> Result<Self, TunnelsUnavailable> {
        // One that does not answer cannot be used: another name is taken.
        let there = devices(directory, kept.clone()).find_map(Result::ok);
        let is_free = |name: &String| matches!(device::link_index(name), Ok(None));
        let interface = match there.or(kept.filter(is_free)) {
            Some(interface) => interface,
            None => free_interface(|_| false).map_err(DeviceError::from)?,
        };
        let range = settings.comms_range;
        Ok(Self {
            socket: socket(directory, &interface),
            interface,
            range,
            service: SocketAddrV4::new(Registry::server(range), settings.comms_port),
            endpoint: settings.comms_address(),
            port: settings.comms_port,
            private_key: private_key(directory)?,
        })
    }

    pub(super) fn attach(&self) -> Result<Option<Box<dyn Device>>, DeviceError> {
        device::attach(&self.interface, &self.socket)
    }

    /// Applies steps to the device; if it is gone, all are applied when it is created anew.
    pub(super) fn apply(&self, steps: &[DeviceStep]) -> Result<(), DeviceError> {
        if steps.is_empty() {
            return Ok(());
        }
        let Some(mut device) = self.attach()? else { return Ok(()) };
        match device.apply(steps) {
            Err(DeviceError::Gone { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Whether filter, device and link are there, and the link is up with its address. A device that does not
    /// answer counts as there: only its owner may end it.
    pub(super) async fn is_whole(&self) -> bool {
        let (interface, socket) = (self.interface.clone(), self.socket.clone());
        let there = blocking(move || {
            let device = device::attach(&interface, &socket);
            !matches!(device, Ok(None) | Err(DeviceError::Gone { .. }))
                && firewall::is_there(&table(&interface)).unwrap_or_default()
        });
        let link = link::observe(&self.interface).await;
        there.await
            && link.is_ok_and(|link| link.is_some_and(|it| it.up && it.addresses.contains(&self.own())))
    }

    /// Installs the packet filter; never for an interface that is not the server's.
    pub(super) fn filter(&self) -> Result<(), TunnelsUnavailable> {
        if self.attach()?.is_none() {
            device::check_free(&self.interface, None).map_err(DeviceError::from)?;
        }
        Ok(firewall::load(&OwnTables::default(), &table(&self.interface), &self.chains())?)
    }

    /// Attaches to the device, or creates it, and adds what it lacks. One with another key or port is created
    /// anew: its sessions are worthless.
    pub(super) fn bring_device(&self, registry: &Registry) -> Result<(), DeviceError> {
        if let Some(mut device) = self.attach()? {
            let observed = device.observe()?;
            if observed.public_key == Some(self.private_key.public()) && observed.listen_port == self.port {
                return device.apply(&self.lacking(registry, &observed));
            }
            device.remove()?;
        }
        let mut device = device::create_apart(&self.interface, Path::new("/proc/self/exe"), &self.socket)?;
        let brought = device.apply(&self.lacking(registry, &DeviceState::default()));
        if brought.is_err() {
            // It is of no use as it is.
            let _ = device.remove();
        }
        brought
    }

    /// The steps for agents that are registered and not on the device, and for those that are not registered
    /// and on it.
    fn lacking(&self, registry: &Registry, observed: &DeviceState) -> Vec<DeviceStep> {
        let peers = registry.all().map(|(_, it)| (it.public_key, settings(it))).collect();
        let wanted = Wanted {
            private_key: &self.private_key,
            listen_port: Some(self.port),
            mark: Mark::default().bits(),
            peers: &peers,
        };
        // Agents send first, so no endpoint is ever applied, and the age of handshakes does not matter.
        device_steps(wanted, observed, &AppliedEndpoints::new(), 0)
    }

    /// Brings the link to its desired state.
    pub(super) async fn bring_link(&self) -> Result<(), LinkError> {
        let missing = || LinkError::Missing { interface: self.interface.clone() };
        let observed = link::observe(&self.interface).await?.ok_or_else(missing)?;
        rp_filter::set_loose(&self.interface);
        let wanted = WantedLink { addresses: &[self.own()].into(), peer: None, mtu: MTU };
        link::apply(&self.interface, &link_steps(wanted, &observed)).await
    }

    /// Opens the port of the agents' service, on the device alone.
    pub(super) fn listen(&self) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(self.interface.as_bytes()))?;
        socket.bind(&self.service.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    pub(super) fn parameters(&self, registration: &RegisteredHost, now: Instant) -> TunnelParameters {
        TunnelParameters {
            public_key: self.private_key.public(),
            endpoint: self.endpoint.clone(),
            address: registration.address,
            service: self.service,
            expires: registration.ends.map(|end| end.saturating_duration_since(now)),
        }
    }

    fn own(&self) -> IpNet {
        IpNet::V4(Ipv4Net::new_assert(*self.service.ip(), self.range.prefix_len()))
    }

    /// The rules: traffic between agents and the agents' service passes, and nothing else in any direction.
    fn chains(&self) -> String {
        let Self { interface, range, service, .. } = self;
        let (address, port) = (service.ip(), service.port());
        format!(
            r#"chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname "{interface}" ip saddr {range} ip daddr {address} tcp dport {port} accept
    iifname "{interface}" drop
}}
chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    iifname "{interface}" drop
    oifname "{interface}" drop
}}
chain output {{
    type filter hook output priority filter - 10; policy accept;
    oifname "{interface}" ip saddr {address} tcp sport {port} accept
    oifname "{interface}" drop
}}
"#
        )
    }
}

/// Removes the devices and filters that a server left of a data directory. One of the server's that cannot be
/// asked is an error, since it may stay. `down` has what became of each, also of those before an error.
pub(super) fn clear(
    directory: &DataDir,
    kept: Option<String>,
    down: &mut Down,
) -> Result<(), TunnelsUnavailable> {
    let Down { removed, kept: left } = down;
    for interface in candidates(kept.clone()) {
        let socket = socket(directory, &interface);
        if socket.exists() && device::end_stale(&interface, &socket)? {
            removed.push(format!("the WireGuard device {interface} of the tunnels to agents"));
            removed.extend(remove_table(&interface)?);
        }
    }
    for interface in devices(directory, kept.clone()) {
        let interface = interface?;
        if let Some(mut device) = device::attach(&interface, &socket(directory, &interface))? {
            device.remove()?;
            removed.push(format!("the WireGuard device {interface} of the tunnels to agents"));
        }
        removed.extend(remove_table(&interface)?);
    }
    // A device that has died leaves its table; the name may be another's since.
    match kept.map(|name| (device::link_index(&name), name)) {
        Some((Ok(None), name)) => removed.extend(remove_table(&name)?),
        Some((Ok(Some(_)) | Err(_), name)) => left.extend(kept_of(&name)),
        None => {}
    }
    Ok(())
}

/// What stays of the stored name, since the interface that has it may be another's; and why.
fn kept_of(interface: &str) -> Vec<String> {
    let mut kept =
        vec![format!("the interface {interface}, where the tunnels to agents were: {}", not_ours(interface))];
    let table = table(interface);
    if firewall::is_there(&table).unwrap_or(true) {
        kept.push(format!(
            "the table inet {table} of nftables, which belongs to that interface; to remove it: nft delete table inet {table}"
        ));
    }
    kept
}

/// Removes the table of the packet filter that belongs to an interface, if there.
fn remove_table(interface: &str) -> Result<Option<String>, FirewallError> {
    let table = table(interface);
    if !firewall::is_there(&table)? {
        return Ok(None);
    }
    firewall::remove(&OwnTables::default(), &table)?;
    Ok(Some(format!("the table inet {table} of nftables")))
}

/// An agent as a peer of the device.
fn settings(registration: &RegisteredHost) -> PeerSettings {
    PeerSettings { endpoint: None, allowed_ips: [host(registration.address)].into(), keepalive: 0 }
}

/// Adds an agent to the device.
pub(super) fn put(registration: &RegisteredHost) -> DeviceStep {
    DeviceStep::PutPeer(registration.public_key, settings(registration))
}

/// The interfaces whose device is that of a data directory, that of the stored name first: its process
/// answers there, or, as the kernel has no such files, it has the server's key.
///
/// An error is that of a device whose process has its socket in the directory.
fn devices(directory: &DataDir, kept: Option<String>) -> impl Iterator<Item = Result<String, DeviceError>> {
    let own_key = stored_key(directory).ok().flatten().map(|key| key.public());
    candidates(kept).filter_map(move |name| {
        let socket = socket(directory, &name);
        let mut device = match device::attach(&name, &socket) {
            Ok(device) => device?,
            Err(error) => return socket.exists().then_some(Err(error)),
        };
        let is_own = socket.exists()
            || own_key.is_some() && device.observe().is_ok_and(|device| device.public_key == own_key);
        is_own.then_some(Ok(name))
    })
}

/// The names under which a device of the server may be, the stored one first.
fn candidates(kept: Option<String>) -> impl Iterator<Item = String> {
    kept.clone().into_iter().chain(names().take(NAMES).filter(move |name| kept.as_ref() != Some(name)))
}

fn socket(directory: &DataDir, interface: &str) -> PathBuf {
    directory.file(&format!("device-{interface}.sock"))
}

/// The table of the packet filter that belongs to an interface.
fn table(interface: &str) -> String {
    format!("nmserver-{interface}")
}

/// The key of the device. If it is lost, another one takes its place: agents learn it when they register
/// again.
fn private_key(directory: &DataDir) -> Result<PrivateKey, IdentityError> {
    if let Some(key) = stored_key(directory)? {
        return Ok(key);
    }
    let key = PrivateKey::from_random(*crate::identity::random()?.expose());
    directory.write(KEY_FILE, &key.0)?;
    Ok(key)
}

/// The key of the device, if there is one.
fn stored_key(directory: &DataDir) -> Result<Option<PrivateKey>, IdentityError> {
    let Some(bytes) = directory.read(KEY_FILE)? else { return Ok(None) };
    let damaged = |_| IdentityError::Damaged {
        path: directory.file(KEY_FILE),
        why: "it does not have 32 bytes".into(),
    };
    bytes.expose().as_slice().try_into().map(|key| Some(PrivateKey(key))).map_err(damaged)
}

impl From<Refusal> for TunnelsUnavailable {
    fn from(refusal: Refusal) -> Self {
        Self::Device(refusal.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;
    use crate::data_dir::tests::data;

    #[test]
    fn an_interface_of_the_stored_name_that_is_not_the_servers_is_left_and_said() {
        let (_folder, path) = data();
        let directory = DataDir::open(&path).expect("it opens");
        // Every host has it, and it is no WireGuard device.
        let mut down = Down::default();
        clear(&directory, Some("lo".into()), &mut down).expect("it is left");
        let Down { removed, kept } = down;
        assert_eq!(removed, [] as [&str; 0]);
        assert_eq!(
            kept,
            [
                "the interface lo, where the tunnels to agents were: nothing shows that it is of this directory; if it is, \
              remove it: ip link delete lo"
            ]
        );
        let mut gone = Down::default();
        clear(&directory, Some("no-such-link".into()), &mut gone).expect("nothing is there");
        assert_eq!(gone, Down::default());
    }

    #[test]
    fn a_device_that_cannot_be_asked_is_not_taken_for_none() {
        let (_folder, path) = data();
        let directory = DataDir::open(&path).expect("it opens");
        // To connect to it fails as nothing does that a dead process leaves.
        let _socket = UnixDatagram::bind(socket(&directory, "nm-comms")).expect("bound");
        let refused = clear(&directory, None, &mut Down::default()).expect_err("it may be there");
        assert!(refused.to_string().contains("the device process of nm-comms"), "{refused}");
    }

    #[test]
    fn a_device_process_of_another_version_is_ended_and_a_dead_one_is_none() {
        let (_folder, path) = data();
        let directory = DataDir::open(&path).expect("it opens");
        let listener = UnixListener::bind(socket(&directory, "nm-comms")).expect("bound");
        let process = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut request = String::new();
                stream.read_to_string(&mut request).expect("a request");
                stream.write_all(b"{}").expect("answered");
                asked.push(request);
            }
            asked
        });
        let mut down = Down::default();
        clear(&directory, None, &mut down).expect("it ends");
        assert_eq!(down.removed, ["the WireGuard device nm-comms of the tunnels to agents"]);
        assert!(process.join().expect("it ran").last().expect("a request").contains("Stop"));
        assert!(socket(&directory, "nm-comms").exists());
        let mut down = Down::default();
        clear(&directory, None, &mut down).expect("nothing is there");
        assert_eq!(down, Down::default());
    }
}
