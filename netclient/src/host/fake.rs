//! A host in memory, for tests of the layers above: it keeps what the agent applied, and shows it.
//!
//! A [`FakeHost`] is a handle: clones share the host.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use schema::scalars::Endpoint;

use super::Host;
use crate::device::fake::FakeDevice;
use crate::device::{Device, DeviceError, Refusal};
use crate::system::forwarding::ForwardingError;
use crate::system::hosts::HostsError;
use crate::system::link::{LinkError, LinkState, LinkStep};
use ipnet::IpNet;

/// What an Ethernet underlay leaves for a tunnel.
const MTU: u16 = 1420;

/// A host in memory.
#[derive(Clone, Debug, Default)]
pub struct FakeHost(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    devices: BTreeMap<String, FakeDevice>,
    links: BTreeMap<String, LinkState>,
    forwarding: BTreeMap<String, bool>,
    names: BTreeMap<String, Vec<String>>,
    refusal: Option<Refusal>,
}

impl FakeHost {
    /// The device of an interface; absent: there is none, or it has ended.
    pub fn device(&self, interface: &str) -> Option<FakeDevice> {
        self.lock().devices.get(interface).filter(|device| !device.is_removed()).cloned()
    }

    /// The state of a link; absent: there is none.
    pub fn link(&self, interface: &str) -> Option<LinkState> {
        self.device(interface)?;
        self.lock().links.get(interface).cloned()
    }

    /// Whether packets that come in by an interface are forwarded.
    pub fn forwards(&self, interface: &str) -> bool {
        self.lock().forwarding.get(interface).copied().unwrap_or(false)
    }

    /// The lines of an interface in the file of names.
    pub fn names(&self, interface: &str) -> Vec<String> {
        self.lock().names.get(interface).cloned().unwrap_or_default()
    }

    /// Makes every creation of a device fail from now on, until `None` is passed.
    pub fn refuse_devices(&self, refusal: Option<Refusal>) {
        self.lock().refusal = refusal;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for FakeHost {
    fn check_free(&self, interface: &str, _port: Option<u16>) -> Result<(), Refusal> {
        match self.device(interface) {
            Some(_) => Err(Refusal::NameTaken { interface: interface.to_owned() }),
            None => Ok(()),
        }
    }

    fn attach(&self, interface: &str, _socket: &Path) -> Result<Option<Box<dyn Device>>, DeviceError> {
        Ok(self.device(interface).map(|device| Box::new(device) as Box<dyn Device>))
    }

    fn create(&self, interface: &str, _socket: &Path) -> Result<Box<dyn Device>, DeviceError> {
        self.check_free(interface, None)?;
        let mut inner = self.lock();
        if let Some(refusal) = &inner.refusal {
            return Err(refusal.clone().into());
        }
        let device = FakeDevice::default();
        inner.devices.insert(interface.to_owned(), device.clone());
        inner.links.insert(interface.to_owned(), LinkState { mtu: 1500, ..LinkState::default() });
        Ok(Box::new(device))
    }

    fn observe_link<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<Option<LinkState>, LinkError>> {
        Box::pin(async { Ok(self.link(interface)) })
    }

    fn apply_link<'a>(&'a self, interface: &'a str, steps: &'a [LinkStep]) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async {
            let mut inner = self.lock();
            let missing = || LinkError::Missing { interface: interface.to_owned() };
            let link = inner.links.get_mut(interface).ok_or_else(missing)?;
            steps.iter().for_each(|step| carry_out(link, step));
            Ok(())
        })
    }

    fn underlay_mtu<'a>(&'a self, _interface: &'a str) -> BoxFuture<'a, Result<u16, LinkError>> {
        Box::pin(async { Ok(MTU) })
    }

    fn set_forwarding(&self, interface: &str, forward: bool) -> Result<(), ForwardingError> {
        self.lock().forwarding.insert(interface.to_owned(), forward);
        Ok(())
    }

    fn set_names(&self, _turn: &Path, interface: &str, lines: &[String]) -> Result<(), HostsError> {
        self.lock().names.insert(interface.to_owned(), lines.to_vec());
        Ok(())
    }

    /// Only addresses are known here.
    fn resolve<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Option<SocketAddr>> {
        Box::pin(async { endpoint.socket_addr() })
    }

    fn executable(&self) -> &Path {
        Path::new("/nonexistent")
    }
}

fn carry_out(link: &mut LinkState, step: &LinkStep) {
    match step {
        LinkStep::AddAddress(address) => drop(link.addresses.insert(*address)),
        LinkStep::AddPointToPoint { local, peer: _ } => {
            link.addresses.insert(IpNet::from(IpAddr::V4(*local)));
        }
        LinkStep::RemoveAddress(address) => drop(link.addresses.remove(address)),
        LinkStep::SetMtu(mtu) => link.mtu = (*mtu).into(),
        LinkStep::Up => link.up = true,
    }
}
