//! What the tunnels to agents stand on, on this host: a packet filter, a WireGuard device, its link, a port on that.

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};
use netclient::comms::{MTU, free_interface, host, names};
use netclient::device::{
    self, Device, DeviceError, DeviceState, DeviceStep, PeerSettings, PrivateKey, Refusal, blocking,
};
use netclient::reconcile::{AppliedEndpoints, Wanted, WantedLink, device_steps, link_steps};
use netclient::system::firewall::{self, FirewallError};
use netclient::system::link::{self, LinkError};
use netclient::system::rp_filter;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use super::{TunnelParameters, TunnelsUnavailable};
use crate::config::Settings;
use crate::core::registry::{Registration, Registry};
use crate::identity::{DataDir, IdentityError};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1_024;
/// How many names are looked at for a device of ours.
const NAMES: usize = 16;

/// What stays the same while the server runs.
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
    /// The place of the device that is there, else of one under the name that was kept, else under the next that is free.
    pub(super) fn choose(
        settings: &Settings,
        directory: &DataDir,
        kept: Option<String>,
    ) -> Result<Self, TunnelsUnavailable> {
        let there = devices(directory, kept.clone()).next();
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

    /// Carries out steps on the device; where it is gone, whoever makes it anew carries out all.
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

    /// Whether filter, device and link are there, and the link is up with its address. A device that gives no answer is
    /// there: nobody may end it but its owner.
    pub(super) async fn is_whole(&self) -> bool {
        let (interface, socket) = (self.interface.clone(), self.socket.clone());
        let there = blocking(move || {
            let device = device::attach(&interface, &socket);
            !matches!(device, Ok(None) | Err(DeviceError::Gone { .. })) && firewall::is_there(&table(&interface))
        });
        let link = link::observe(&self.interface).await;
        there.await && link.is_ok_and(|link| link.is_some_and(|it| it.up && it.addresses.contains(&self.own())))
    }

    /// Puts the packet filter up; never for an interface that is not ours.
    pub(super) fn filter(&self) -> Result<(), TunnelsUnavailable> {
        if self.attach()?.is_none() {
            device::check_free(&self.interface, None).map_err(DeviceError::from)?;
        }
        Ok(firewall::load(&table(&self.interface), &self.chains())?)
    }

    /// Attaches to the device, or makes it, and gives it what it lacks. One of another key or port is made anew: its
    /// sessions are worth nothing.
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
            // It serves nobody as it is.
            let _ = device.remove();
        }
        brought
    }

    /// What a device lacks of who is registered, and has of who is not.
    fn lacking(&self, registry: &Registry, observed: &DeviceState) -> Vec<DeviceStep> {
        let peers = registry.all().map(|(_, it)| (it.public_key, settings(it))).collect();
        let wanted = Wanted { private_key: &self.private_key, listen_port: Some(self.port), peers: &peers };
        // Agents speak first, so no endpoint is ever applied, and no handshake's age matters.
        device_steps(wanted, observed, &AppliedEndpoints::new(), 0)
    }

    /// Brings the link to what it should be.
    pub(super) async fn bring_link(&self) -> Result<(), LinkError> {
        let missing = || LinkError::Missing { interface: self.interface.clone() };
        let observed = link::observe(&self.interface).await?.ok_or_else(missing)?;
        rp_filter::set_loose(&self.interface);
        let wanted = WantedLink { addresses: &[self.own()].into(), peer: None, mtu: MTU };
        link::apply(&self.interface, &link_steps(wanted, &observed)).await
    }

    /// Takes the port of the agents' service, on the device alone.
    pub(super) fn listen(&self) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(self.interface.as_bytes()))?;
        socket.bind(&self.service.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    pub(super) fn parameters(&self, registration: &Registration, now: Instant) -> TunnelParameters {
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

    /// What may pass: between agents and the agents' service, and nothing else in any direction.
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

/// Takes the devices and filters down that a server left in a data directory.
pub(super) fn clear(directory: &DataDir, kept: Option<String>) -> Result<(), TunnelsUnavailable> {
    for interface in devices(directory, kept) {
        if let Some(mut device) = device::attach(&interface, &socket(directory, &interface))? {
            device.remove()?;
        }
        match firewall::remove(&table(&interface)) {
            // Who has no nftables has no table.
            Err(FirewallError::Missing) => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// An agent as a peer of the device.
fn settings(registration: &Registration) -> PeerSettings {
    PeerSettings { endpoint: None, allowed_ips: [host(registration.address)].into(), keepalive: 0 }
}

/// Puts an agent on the device.
pub(super) fn put(registration: &Registration) -> DeviceStep {
    DeviceStep::PutPeer(registration.public_key, settings(registration))
}

/// The interfaces whose device answers in a data directory, that of the kept name first.
fn devices(directory: &DataDir, kept: Option<String>) -> impl Iterator<Item = String> {
    let candidates =
        kept.clone().into_iter().chain(names().take(NAMES).filter(move |name| kept.as_ref() != Some(name)));
    candidates.filter(|name| {
        let socket = socket(directory, name);
        socket.exists() && matches!(device::attach(name, &socket), Ok(Some(_)))
    })
}

fn socket(directory: &DataDir, interface: &str) -> PathBuf {
    directory.file(&format!("device-{interface}.sock"))
}

/// The table of the packet filter that belongs to an interface.
fn table(interface: &str) -> String {
    format!("nmserver-{interface}")
}

/// The key of the device. If it is lost another one does: agents learn it when they register again.
fn private_key(directory: &DataDir) -> Result<PrivateKey, IdentityError> {
    const FILE: &str = "comms.key";
    if let Some(bytes) = directory.read(FILE)? {
        let damaged = |_| IdentityError::Damaged { path: directory.file(FILE), why: "it does not have 32 bytes".into() };
        return bytes.expose().as_slice().try_into().map(PrivateKey).map_err(damaged);
    }
    let key = PrivateKey::from_random(*crate::identity::random()?.expose());
    directory.write(FILE, &key.0)?;
    Ok(key)
}

impl From<Refusal> for TunnelsUnavailable {
    fn from(refusal: Refusal) -> Self {
        Self::Device(refusal.into())
    }
}
