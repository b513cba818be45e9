//! WireGuard, as the agent sees it: observe a device, apply steps to it.
//!
//! Three implementations keep one contract: the kernel's ([`kernel`]), a userspace device in a process of its
//! own ([`userspace`], which speaks to [`process`]), and one in memory for tests ([`fake`]). They decide
//! nothing; the steps come from reconcile. A device exists until [`Device::remove`], whatever happens to the
//! agent: a restarted agent finds it with [`attach`], and creates it with [`create`] if there is none.
//! Addresses, MTU and routes are not a device's concern; see `system`.
//!
//! Every call blocks, for seconds in the worst case ([`userspace::TIMEOUT`]); an async caller runs it on a
//! thread that may block. Nothing here logs a key, an address or a name.

mod endpoints;
mod host;
mod protocol;

pub mod fake;
pub mod kernel;
pub mod process;
pub mod state;
pub mod userspace;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use schema::scalars::WireGuardKey;
use serde::{Deserialize, Serialize};

pub use host::{
    blocking, boottime, check_free, default_source, link_index, resolve, source_towards, stay_outside,
};
pub use state::{DeviceState, DeviceStep, Kind, NotAKind, PeerSettings, PeerState, PrivateKey};

/// A WireGuard device that exists.
pub trait Device: Send {
    /// Where it runs.
    fn kind(&self) -> Kind;
    /// Observes the device.
    fn observe(&mut self) -> Result<DeviceState, DeviceError>;
    /// Applies the steps: the last mark, key and port of the list first, together, then the peers in their
    /// order. Each step is repeatable; a peer that is put keeps its session and counters. If the key or the
    /// port is refused, nothing has changed.
    fn apply(&mut self, steps: &[DeviceStep]) -> Result<(), DeviceError>;
    /// Where a peer was last heard, at most a quarter of a second ago, or else where it was set to be
    /// reached; absent: neither, or there is no such peer. Its cost is shared: many questions at once cost
    /// little more than one.
    fn endpoint(&mut self, peer: &WireGuardKey) -> Result<Option<SocketAddr>, DeviceError>;
    /// The largest packet that the device passes on, in bytes; absent: any. A larger one is lost without a
    /// word, so no interface may be given a larger MTU.
    fn largest_packet(&self) -> Option<u16> {
        None
    }
    /// Makes the device end by itself at this time of [`boottime`] or, if absent, never; the last call
    /// counts. A time that has passed means now. It ends as by [`Device::remove`], within [`process::WATCH`]
    /// of the time.
    ///
    /// Returns whether it will: only a process keeps a deadline, so the kernel's device answers false and
    /// stays.
    fn expire_at(&mut self, at: Option<Duration>) -> Result<bool, DeviceError>;
    /// Ends the device and its interface; when it returns, the name and the port are free. It is not an error
    /// if it has ended already.
    fn remove(&mut self) -> Result<(), DeviceError>;
}

/// Finds the device that an earlier agent created for this interface; absent: there is none, so [`create`]
/// it.
///
/// A WireGuard interface in the kernel carries no mark of its maker: ask only for a name that is the agent's
/// by its own state.
pub fn attach(interface: &str, socket: &Path) -> Result<Option<Box<dyn Device>>, DeviceError> {
    if let Some(device) = userspace::Userspace::attach(interface, socket)? {
        return Ok(Some(Box::new(device)));
    }
    Ok(kernel::Kernel::attach(interface)?.map(|device| Box::new(device) as Box<dyn Device>))
}

/// Whether a device process has this socket, of whatever release; one that does not answer counts. It proves
/// that the process was made by whoever owns the directory of the socket.
pub fn is_served(interface: &str, socket: &Path) -> bool {
    userspace::Userspace::is_served(interface, socket)
}

/// Ends a device process that [`attach`] does not accept, such as one of another release; returns whether
/// there was one.
pub fn end_stale(interface: &str, socket: &Path) -> Result<bool, DeviceError> {
    if userspace::Userspace::attach(interface, socket)?.is_some() {
        return Ok(false);
    }
    userspace::Userspace::end_stale(interface, socket)
}

/// Creates a device of the kind that is wanted. Absent: the kernel's if it has WireGuard, else a process of
/// its own. A process runs `executable` (see [`userspace::Userspace::spawn`]).
pub fn create(
    interface: &str,
    wanted: Option<Kind>,
    executable: &Path,
    socket: &Path,
) -> Result<Box<dyn Device>, DeviceError> {
    // A process of another release, to which nothing attaches, would hold the name.
    userspace::Userspace::end_stale(interface, socket)?;
    first_offered(kinds_wanted(wanted), |kind| create_of(kind, interface, executable, socket))
}

/// Creates a device in a process of its own, even if the kernel has WireGuard: only a process keeps a
/// deadline (see [`Device::expire_at`]). Without TUN it is the kernel's, if that has WireGuard.
pub fn create_apart(
    interface: &str,
    executable: &Path,
    socket: &Path,
) -> Result<Box<dyn Device>, DeviceError> {
    let kinds = [Kind::Userspace, Kind::Kernel];
    first_offered(&kinds, |kind| create_of(kind, interface, executable, socket))
}

/// Creates a device of a kind; absent: this host does not offer it.
fn create_of(
    kind: Kind,
    interface: &str,
    executable: &Path,
    socket: &Path,
) -> Result<Option<Box<dyn Device>>, DeviceError> {
    match kind {
        Kind::Kernel => Ok(kernel::Kernel::create(interface)?.map(|device| Box::new(device) as _)),
        Kind::Userspace => match userspace::Userspace::spawn(interface, executable, socket) {
            Err(DeviceError::Refused(Refusal::TunMissing)) => Ok(None),
            outcome => Ok(Some(Box::new(outcome?))),
        },
    }
}

/// The kinds that a network's device may have where a setting wants one, or does not, in order of preference.
pub(crate) fn kinds_wanted(wanted: Option<Kind>) -> &'static [Kind] {
    match wanted {
        Some(Kind::Kernel) => &[Kind::Kernel],
        Some(Kind::Userspace) => &[Kind::Userspace],
        None => &[Kind::Kernel, Kind::Userspace],
    }
}

/// Creates a device of the first of these kinds that the host offers; `create` returns nothing where it does
/// not.
pub(crate) fn first_offered<T>(
    kinds: &[Kind],
    mut create: impl FnMut(Kind) -> Result<Option<T>, DeviceError>,
) -> Result<T, DeviceError> {
    for &kind in kinds {
        if let Some(device) = create(kind)? {
            return Ok(device);
        }
    }
    Err(match kinds {
        [Kind::Kernel] => Refusal::WireGuardMissing,
        [Kind::Userspace] => Refusal::TunWanted,
        _ => Refusal::TunMissing,
    }
    .into())
}

/// Why a device could not be created, observed or changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The device is no longer there: create it anew.
    #[error("the WireGuard device of {interface} has ended")]
    Gone {
        /// Its interface.
        interface: String,
    },
    /// The device process exists and does not answer; the agent never ends it by itself.
    #[error(
        "the device process of {interface} did not answer within {} seconds; end process {process}, and a new one is \
         started",
        userspace::TIMEOUT.as_secs()
    )]
    Silent {
        /// Its interface.
        interface: String,
        /// Its process id; 0: not known.
        process: i32,
    },
    /// A new device process ended, or was ended, before it was ready.
    #[error("the device process of {interface} did not start: {reason}")]
    StartFailed {
        /// The interface it was to make.
        interface: String,
        /// The end of its log.
        reason: String,
    },
    /// The host refused for another reason.
    #[error("cannot {attempt}")]
    Host {
        /// What was attempted, as an infinitive: `read the kernel's device nm-corp`.
        attempt: String,
        /// What the host returned.
        #[source]
        source: io::Error,
    },
}

impl DeviceError {
    fn host(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |source| Self::Host { attempt, source }
    }
}

/// Why a device refuses. A value: the device process sends it to the agent unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// An interface of that name exists and is not the agent's.
    #[error("the interface name {interface} is taken on this host; choose another with --interface")]
    NameTaken {
        /// The name.
        interface: String,
    },
    /// The name is not valid for an interface.
    #[error("{interface:?} is not a valid interface name: use 1 to 15 letters, digits, `-`, `_` or `.`")]
    NameInvalid {
        /// The name.
        interface: String,
    },
    /// Another program listens on the port.
    #[error(
        "UDP port {port} is taken by another program; stop that program, or choose another port with --port"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The kernel has neither WireGuard nor TUN, or the container has no access to the device.
    #[error(
        "this host has neither WireGuard nor /dev/net/tun: run `modprobe tun`, or let the container use /dev/net/tun"
    )]
    TunMissing,
    /// The kernel has no WireGuard, and its device is wanted.
    #[error(
        "the kernel of this host has no WireGuard, and the setting `device` wants its device: run `modprobe wireguard`, or \
         remove the setting (NETCLIENT_DEVICE)"
    )]
    WireGuardMissing,
    /// The host has no TUN, or the container has no access to the device, and a device in a process is wanted.
    #[error(
        "this host has no /dev/net/tun, and the setting `device` wants a device in a process: run `modprobe tun`, let the \
         container use /dev/net/tun, or remove the setting (NETCLIENT_DEVICE)"
    )]
    TunWanted,
    /// The privilege is missing.
    #[error("creating the interface {interface} requires root, or CAP_NET_ADMIN and access to /dev/net/tun")]
    Denied {
        /// The interface.
        interface: String,
    },
    /// A step came before the first [`DeviceStep::SetPrivateKey`].
    #[error("the device has no private key yet, so it cannot listen or have peers")]
    KeyMissing,
    /// Another process serves the interface, or is about to.
    #[error("another device process serves {interface}")]
    AlreadyRunning {
        /// The interface.
        interface: String,
    },
    /// Anything else; the cause as text, since it comes from another process.
    #[error("cannot {attempt}: {reason}")]
    Failed {
        /// What was attempted, as an infinitive.
        attempt: String,
        /// What prevented it.
        reason: String,
    },
}

impl Refusal {
    pub(crate) fn failed<E: fmt::Display>(attempt: impl Into<String>) -> impl FnOnce(E) -> Self {
        let attempt = attempt.into();
        move |reason| Self::Failed { attempt, reason: reason.to_string() }
    }
}

/// The settings of the device as a whole in a list of steps, apart from its peers.
#[derive(Default)]
struct Basics<'a> {
    mark: Option<u32>,
    private_key: Option<&'a PrivateKey>,
    listen_port: Option<u16>,
}

impl<'a> Basics<'a> {
    /// The last key and the last port of the list; port 0 changes nothing if one is in use.
    fn of(steps: &'a [DeviceStep], port_in_use: u16) -> Self {
        let mut basics = Self::default();
        for step in steps {
            match step {
                DeviceStep::SetMark(mark) => basics.mark = Some(*mark),
                DeviceStep::SetPrivateKey(key) => basics.private_key = Some(key),
                DeviceStep::SetListenPort(port) => basics.listen_port = Some(*port),
                DeviceStep::PutPeer(..) | DeviceStep::RemovePeer(_) => {}
            }
        }
        basics.listen_port = basics.listen_port.filter(|&port| port != 0 && port != port_in_use);
        basics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_device_is_of_the_first_kind_that_the_host_offers_and_a_setting_leaves_one_kind() {
        use Kind::{Kernel, Userspace};
        let made = |wanted, offered: &[Kind]| {
            let made =
                first_offered(kinds_wanted(wanted), |kind| Ok(offered.contains(&kind).then_some(kind)));
            made.map_err(|error| error.to_string())
        };
        let both = [Kernel, Userspace];
        assert_eq!(made(None, &both), Ok(Kernel));
        assert_eq!(made(None, &[Userspace]), Ok(Userspace));
        assert_eq!(made(None, &[Kernel]), Ok(Kernel));
        for wanted in both {
            assert_eq!(made(Some(wanted), &both), Ok(wanted));
        }
        for (wanted, offered, remedy) in [
            (Some(Kernel), &[Userspace][..], "modprobe wireguard"),
            (Some(Userspace), &[Kernel][..], "this host has no /dev/net/tun, and the setting `device`"),
            (None, &[], "this host has neither WireGuard nor /dev/net/tun"),
        ] {
            let refused = made(wanted, offered).expect_err("none is offered");
            assert!(refused.contains(remedy), "{refused}");
        }
    }

    #[test]
    fn the_last_key_and_port_of_a_list_count() {
        let [first, last] = [1, 2].map(|byte| PrivateKey([byte; 32]));
        let steps = [
            DeviceStep::SetPrivateKey(first),
            DeviceStep::SetListenPort(1),
            DeviceStep::SetListenPort(2),
            DeviceStep::SetPrivateKey(last.clone()),
        ];
        let basics = Basics::of(&steps, 0);
        assert_eq!(basics.private_key, Some(&last));
        assert_eq!(basics.listen_port, Some(2));
    }

    #[test]
    fn a_port_in_use_is_not_set_again() {
        for (asked, in_use, wanted) in
            [(0, 0, None), (0, 51820, None), (51820, 51820, None), (51821, 51820, Some(51821))]
        {
            assert_eq!(Basics::of(&[DeviceStep::SetListenPort(asked)], in_use).listen_port, wanted);
        }
    }
}
