//! The tunnel to a server for control traffic, once the host is registered there (`netclient register`).
//!
//! A [`Registration`] is what the host stores of it, [`ServerTunnel`] brings it up and removes it. It has one
//! peer, the server; its allowed IPs are that peer's one address, and its users bind to the interface, so
//! that the tunnels to two servers may have the same addresses. It is not part of any network, and no network
//! needs it.
//!
//! Before the host has joined a network, a registration has a deadline. The device's process keeps it, also
//! where no daemon runs; that is why the device is a process's even where the kernel has WireGuard.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use schema::scalars::{Endpoint, SigningKey, WireGuardKey};

use crate::addresses::choose;
use crate::device::{
    self, Device, DeviceError, DeviceState, DeviceStep, PeerSettings, PrivateKey, Refusal, blocking,
};
use crate::directory::{Directory, DirectoryError};
use crate::files;
use crate::outside::Mark;
use crate::reconcile::{Wanted, WantedLink, device_steps, link_steps};
use crate::registration::{BootTime, Registration, Terms};
use crate::server_names::ServerNames;
use crate::system::link::{self, LinkError};
use crate::system::rp_filter;

/// The largest packet, in bytes: what every path carries (RFC 8200, section 5), as control traffic must get
/// through first.
pub const MTU: u16 = 1280;
/// The first name of the interface; further ones are numbered from 2.
const INTERFACE: &str = "nm-comms";
/// How many such tunnels one host may have.
const MOST: u32 = 999;

/// Why the tunnel to a server could not be brought up or removed.
#[derive(Debug, thiserror::Error)]
pub enum CommsError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What is stored of the tunnel cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The address of the server's end of the tunnel is unknown.
    #[error("the name in {0} does not resolve, so the tunnel to the server cannot be brought up")]
    NoEndpoint(Endpoint),
}

/// The current moment.
pub fn now() -> BootTime {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    BootTime { boot: boot.trim().to_owned(), at: device::boottime() }
}

/// The tunnel to one server.
///
/// What is stored of it changes only under [`Directory::lock_comms`], and never across a call to the server.
#[derive(Clone, Debug)]
pub struct ServerTunnel {
    directory: Directory,
    executable: PathBuf,
    server: SigningKey,
    names: ServerNames,
    mark: Mark,
}

impl ServerTunnel {
    /// The tunnel to the server of that signing key; nothing is changed yet.
    pub fn new(directory: Directory, executable: PathBuf, server: SigningKey, mark: Mark) -> Self {
        let names = ServerNames::new(directory.clone(), server);
        Self { directory, executable, server, names, mark }
    }

    /// The mark of the host's packets that stay outside of networks.
    pub(crate) fn mark(&self) -> Mark {
        self.mark
    }

    /// The names of the server, its service's as well.
    pub(crate) fn names(&self) -> &ServerNames {
        &self.names
    }

    /// The registration, if the host has one that has not expired.
    pub fn registration(&self) -> Result<Option<Registration>, DirectoryError> {
        let registration = self.directory.registration(&self.server)?;
        Ok(registration.filter(|registration| !registration.has_expired(&now())))
    }

    /// Brings the tunnel up, as far as it is not up already; returns the address of the server's end.
    pub(crate) async fn bring_up(&self, registration: &Registration) -> Result<SocketAddr, CommsError> {
        match self.raise(registration).await {
            // Another program took the name while the device was gone.
            Err(CommsError::Device(DeviceError::Refused(Refusal::NameTaken { .. }))) => {
                let renamed = self.rename(registration).await?;
                self.raise(&renamed).await
            }
            outcome => outcome,
        }
    }

    async fn raise(&self, registration: &Registration) -> Result<SocketAddr, CommsError> {
        let Registration { interface, private_key, terms, deadline, .. } = registration;
        let found = self.names.resolve(&terms.endpoint.to_string()).await.unwrap_or_default();
        let at = choose(&found, None);
        let peer =
            PeerSettings { endpoint: at, allowed_ips: [host(*terms.server.ip())].into(), keepalive: 0 };
        let key = private_key.clone();
        let server = terms.public_key;
        let until = deadline.as_ref().map(|it| it.at);
        let (directory, wanted, mark) = (self.directory.clone(), registration.clone(), self.mark);
        let known = self.with_device(interface, move |device| {
            // A process that ended it meanwhile may have looked for the device before it existed.
            if !directory
                .registration(&wanted.server.signing_key)
                .is_ok_and(|kept| kept.is_some_and(|kept| kept.is(&wanted) && !kept.has_expired(&now())))
            {
                device.remove()?;
                return Err(DeviceError::Gone { interface: wanted.interface });
            }
            let observed = device.observe()?;
            let steps = lacking(&key, server, peer, mark, &observed);
            device.apply(&steps)?;
            device.expire_at(until)?;
            Ok(observed.peers.get(&server).and_then(|peer| peer.settings.endpoint))
        });
        // A name that does not resolve right now is no reason to forget where the server was.
        let at = at.or(known.await?).ok_or_else(|| CommsError::NoEndpoint(terms.endpoint.clone()))?;
        let missing = || LinkError::Missing { interface: interface.clone() };
        let observed = link::observe(interface).await?.ok_or_else(missing)?;
        rp_filter::set_loose(interface);
        let addresses = [host(terms.address)].into();
        let wanted = WantedLink { addresses: &addresses, peer: Some(*terms.server.ip()), mtu: MTU };
        link::apply(interface, &link_steps(wanted, &observed)).await?;
        Ok(at)
    }

    /// Renames the tunnel to the next free name.
    async fn rename(&self, registration: &Registration) -> Result<Registration, CommsError> {
        let _lock = self.directory.lock_comms().await?;
        let interface = free_here(&self.directory).map_err(DeviceError::from)?;
        let renamed = Registration { interface, ..registration.clone() };
        self.directory.keep_registration(&renamed)?;
        Ok(renamed)
    }

    /// Saves a registration as it was agreed, under a free name if it is a new one.
    pub(crate) async fn save_registration(&self, agreed: Registration) -> Result<Registration, CommsError> {
        let _lock = self.directory.lock_comms().await?;
        let before = self
            .directory
            .registration(&self.server)?
            .filter(|before| before.private_key == agreed.private_key);
        let interface = match &before {
            Some(before) => before.interface.clone(),
            None => free_here(&self.directory).map_err(DeviceError::from)?,
        };
        let saved = Registration { interface, ..agreed };
        self.directory.keep_registration(&saved)?;
        if before.is_some_and(|before| !before.same_link(&saved.terms)) {
            self.take_down(&saved.interface).await?;
        }
        Ok(saved)
    }

    /// Removes the deadline of the registration: the host has joined.
    pub(crate) async fn keep(&self) -> Result<(), CommsError> {
        let _lock = self.directory.lock_comms().await?;
        let Some(mut registration) = self.registration()?.filter(|it| it.deadline.is_some()) else {
            return Ok(());
        };
        registration.deadline = None;
        self.directory.keep_registration(&registration)?;
        self.with_device(&registration.interface, |device| device.expire_at(None).map(drop)).await
    }

    /// Saves the server's answer to a host that registered again; a tunnel with other ends is created anew.
    pub(crate) async fn renew(&self, asked: &Registration, terms: Terms) -> Result<(), CommsError> {
        let _lock = self.directory.lock_comms().await?;
        // It may have ended during the call to the server, or have been replaced.
        let Some(now) = self.registration()?.filter(|now| now.is(asked) && now.terms != terms) else {
            return Ok(());
        };
        let interface = now.interface.clone();
        let same_link = now.same_link(&terms);
        self.directory.keep_registration(&Registration { terms, ..now })?;
        if same_link { Ok(()) } else { self.take_down(&interface).await }
    }

    /// Removes the tunnel, and forgets the registration; if that fails, it is left as an expired one, for the
    /// next try.
    pub(crate) async fn end(&self) -> Result<(), CommsError> {
        let _lock = self.directory.lock_comms().await?;
        if let Some(registration) = self.directory.registration(&self.server)? {
            let ended = Registration { deadline: Some(BootTime::passed()), ..registration };
            self.directory.keep_registration(&ended)?;
            self.take_down(&ended.interface).await?;
        }
        Ok(self.directory.forget_registration(&self.server)?)
    }

    /// Removes tunnels without a registration, which a crash or a damaged file left.
    pub(crate) async fn remove_orphans(directory: &Directory) -> Result<(), CommsError> {
        let _lock = directory.lock_comms().await?;
        for interface in orphans(directory)? {
            remove(directory, &interface).await?;
        }
        Ok(())
    }

    async fn take_down(&self, interface: &str) -> Result<(), CommsError> {
        remove(&self.directory, interface).await
    }

    async fn with_device<T: Send + 'static>(
        &self,
        interface: &str,
        act: impl FnOnce(&mut dyn Device) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, CommsError> {
        let socket = self.directory.device_socket(interface);
        let name = interface.to_owned();
        let executable = self.executable.clone();
        let outcome = blocking(move || {
            let mut device = match device::attach(&name, &socket)? {
                Some(device) => device,
                None => device::create_apart(&name, &executable, &socket)?,
            };
            act(&mut *device)
        });
        Ok(outcome.await?)
    }
}

async fn remove(directory: &Directory, interface: &str) -> Result<(), CommsError> {
    let socket = directory.device_socket(interface);
    let name = interface.to_owned();
    let removed =
        blocking(move || device::attach(&name, &socket)?.map_or(Ok(()), |mut device| device.remove())).await;
    if removed.is_ok() {
        files::clean_after_device(&directory.device_socket(interface));
    }
    Ok(removed?)
}

/// Whether an interface may be a tunnel to a server, by its name.
pub fn may_be(interface: &str) -> bool {
    interface.strip_prefix(INTERFACE).is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The names that such tunnels may have, in order.
pub fn names() -> impl Iterator<Item = String> {
    std::iter::once(INTERFACE.to_owned()).chain((2..=MOST).map(|number| format!("{INTERFACE}{number}")))
}

/// The name for one more tunnel to a server: the first that no interface has and that is not `taken`.
pub fn free_interface(taken: impl Fn(&str) -> bool) -> Result<String, Refusal> {
    for name in names().filter(|name| !taken(name)) {
        let found =
            device::link_index(&name).map_err(Refusal::failed(format!("look up the interface {name}")))?;
        if found.is_none() {
            return Ok(name);
        }
    }
    Err(Refusal::NameTaken { interface: format!("{INTERFACE}{MOST}") })
}

/// A name for one more tunnel of this directory; the caller holds the lock.
pub(crate) fn free_here(directory: &Directory) -> Result<String, Refusal> {
    let others = directory.registrations().map_err(Refusal::failed("list the tunnels to servers"))?;
    free_interface(|name| others.iter().any(|other| other.interface == name))
}

/// The tunnels to servers whose device has files in the directory, but that have no registration.
pub(crate) fn orphans(directory: &Directory) -> Result<Vec<String>, DirectoryError> {
    let known = directory.registrations()?;
    let orphan = |name: &String| may_be(name) && !known.iter().any(|it| it.interface == *name);
    Ok(directory.devices()?.into_iter().filter(orphan).collect())
}

/// What the device of a tunnel to a server lacks.
fn lacking(
    private_key: &PrivateKey,
    server: WireGuardKey,
    settings: PeerSettings,
    mark: Mark,
    observed: &DeviceState,
) -> Vec<DeviceStep> {
    // A server does not roam: its endpoint is the one that was set, and another one is applied at once.
    let applied = observed.peers.iter().filter_map(|(key, peer)| Some((*key, peer.settings.endpoint?)));
    let peers = [(server, settings)].into();
    let wanted = Wanted { private_key, listen_port: None, mark: mark.bits(), peers: &peers };
    device_steps(wanted, observed, &applied.collect(), 0)
}

/// The range of one address.
pub fn host(address: Ipv4Addr) -> IpNet {
    IpNet::V4(Ipv4Net::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::fake::FakeDevice;

    #[test]
    fn a_server_that_moved_is_put_where_it_is_although_it_was_heard() {
        let key = PrivateKey([9; 32]);
        let server = WireGuardKey([1; 32]);
        let mut fake = FakeDevice::default();
        let settings = |at: &str| PeerSettings {
            endpoint: Some(at.parse().expect("good")),
            allowed_ips: [host(Ipv4Addr::new(10, 101, 0, 1))].into(),
            keepalive: 0,
        };
        for (at, steps) in [("192.0.2.1:50555", 3), ("192.0.2.2:50555", 1)] {
            let lacking = |fake: &mut FakeDevice| {
                lacking(&key, server, settings(at), Mark::default(), &fake.observe().expect("it is there"))
            };
            let found = lacking(&mut fake);
            assert_eq!(found.len(), steps, "{found:?}");
            fake.apply(&found).expect("it takes the steps");
            fake.hear(&server, at.parse().expect("good"), u64::MAX - 180);
            assert_eq!(lacking(&mut fake), []);
        }
    }
}
