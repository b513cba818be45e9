//! The host that an agent runs on, as far as a network's tunnel needs it: devices, links, forwarding, names.
//!
//! [`System`] is the real one, made of [`device`](crate::device) and [`system`](crate::system); [`fake::FakeHost`] is
//! one in memory, for tests of the whole agent. Neither decides anything.

pub mod fake;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use schema::scalars::Endpoint;

use crate::device::{self, Device, DeviceError, Refusal};
use crate::system::forwarding::{self, ForwardingError};
use crate::system::hosts::{self, HostsError};
use crate::system::link::{self, LinkError, LinkState, LinkStep};

/// A host. What is not async blocks; an async caller runs it on a thread that may block.
pub trait Host: Send + Sync {
    /// Whether a device could be created; see [`device::check_free`].
    fn check_free(&self, interface: &str, port: Option<u16>) -> Result<(), Refusal>;
    /// Finds the agent's device of an interface; see [`device::attach`].
    fn attach(&self, interface: &str, socket: &Path) -> Result<Option<Box<dyn Device>>, DeviceError>;
    /// Creates the device of an interface; see [`device::create`].
    fn create(&self, interface: &str, socket: &Path) -> Result<Box<dyn Device>, DeviceError>;
    /// Observes a link; absent: there is none of that name.
    fn observe_link<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<Option<LinkState>, LinkError>>;
    /// Carries out steps on a link.
    fn apply_link<'a>(&'a self, interface: &'a str, steps: &'a [LinkStep]) -> BoxFuture<'a, Result<(), LinkError>>;
    /// The MTU of a tunnel over the host's other interfaces.
    fn underlay_mtu<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<u16, LinkError>>;
    /// Makes the kernel forward packets that come in by an interface, or not.
    fn set_forwarding(&self, interface: &str, forward: bool) -> Result<(), ForwardingError>;
    /// Writes the lines of an interface to the file of names; agents of one directory take turns by the lock file
    /// `turn`.
    fn set_names(&self, turn: &Path, interface: &str, lines: &[String]) -> Result<(), HostsError>;
    /// Where an endpoint is right now; absent: its name does not resolve in time.
    fn resolve<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Option<SocketAddr>>;
    /// The program that runs as the process of a device; see [`device::create`].
    fn executable(&self) -> &Path;
}

/// This host, in the network namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct System {
    /// The program that runs as the process of a device.
    pub executable: PathBuf,
    /// The file of names.
    pub hosts: PathBuf,
}

impl Default for System {
    /// With this program itself, and `/etc/hosts`.
    fn default() -> Self {
        Self { executable: "/proc/self/exe".into(), hosts: "/etc/hosts".into() }
    }
}

impl Host for System {
    fn check_free(&self, interface: &str, port: Option<u16>) -> Result<(), Refusal> {
        device::check_free(interface, port)
    }

    fn attach(&self, interface: &str, socket: &Path) -> Result<Option<Box<dyn Device>>, DeviceError> {
        device::attach(interface, socket)
    }

    fn create(&self, interface: &str, socket: &Path) -> Result<Box<dyn Device>, DeviceError> {
        device::create(interface, &self.executable, socket)
    }

    fn observe_link<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<Option<LinkState>, LinkError>> {
        Box::pin(link::observe(interface))
    }

    fn apply_link<'a>(&'a self, interface: &'a str, steps: &'a [LinkStep]) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(link::apply(interface, steps))
    }

    fn underlay_mtu<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<u16, LinkError>> {
        Box::pin(link::underlay_mtu(move |name| name == interface))
    }

    fn set_forwarding(&self, interface: &str, forward: bool) -> Result<(), ForwardingError> {
        forwarding::set(interface, forward)
    }

    fn set_names(&self, turn: &Path, interface: &str, lines: &[String]) -> Result<(), HostsError> {
        hosts::set(&self.hosts, turn, interface, lines)
    }

    fn resolve<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Option<SocketAddr>> {
        Box::pin(device::resolve_one(endpoint))
    }

    fn executable(&self) -> &Path {
        &self.executable
    }
}
