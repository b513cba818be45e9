//! Whether the kernel forwards packets, by its switches below `/proc/sys/net`; what they should be is decided
//! elsewhere (see [`forwarding`](crate::forwarding)).
//!
//! Switches of a network's own interface end with it, and are set here as a whole. Where the packet filter
//! decides which packets of a network are forwarded ([`outside`](crate::outside)), the host's own switch holds,
//! since answers to containers come in there as well.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::forwarding::{ALL, Key, Switch, Switches};

/// Where the switches are.
const ROOT: &str = "/proc/sys/net";

/// Why forwarding could not be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {path}, so this host does not forward what it should; set it by hand with sysctl")]
pub struct ForwardingError {
    path: PathBuf,
    source: io::Error,
}

impl ForwardingError {
    /// As a host answers whose switches are read-only.
    pub(crate) fn read_only(switch: &Switch) -> Self {
        Self {
            path: Path::new(ROOT).join(switch.to_string()),
            source: io::ErrorKind::ReadOnlyFilesystem.into(),
        }
    }
}

/// What becomes of packets that come in by an interface and are for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// They are forwarded.
    On,
    /// They are not.
    Off,
    /// What the host does with those of new interfaces.
    AsHost,
}

/// Makes the kernel forward packets that come in by a network's interface, or not, for the address families that
/// it has. Where it has one switch of IPv6 for all interfaces, that is not touched.
pub fn set(interface: &str, forwarding: Forwarding) -> Result<(), ForwardingError> {
    let forward = match forwarding {
        Forwarding::On => true,
        Forwarding::Off => false,
        Forwarding::AsHost => read(&Switch::of(ALL, Key::Ipv4)) == Some(1),
    };
    turn(&Switch::of(interface, Key::Ipv4), forward)?;
    let forced = Switch::of(interface, Key::Ipv6Forced);
    if forwarding == Forwarding::AsHost || read(&forced).is_none() {
        return Ok(());
    }
    turn(&forced, forward)
}

/// How long what is set of switches lasts, as a name: until the host is started anew, in one network namespace.
pub fn lifetime() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::metadata("/proc/thread-self/ns/net").map_or(0, |about| about.ino());
    format!("{}-{namespace}", boot.trim())
}

/// The switches that there are, of every interface.
pub fn observe() -> Switches {
    let mut found = Switches::new();
    let liberal = Switch::of(ALL, Key::Liberal);
    found.extend(read(&liberal).map(|value| (liberal, value)));
    for key in Key::OF_INTERFACES {
        let listed = fs::read_dir(Path::new(ROOT).join(key.place().0)).into_iter().flatten().flatten();
        let names: BTreeSet<_> = listed.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let switches = names.into_iter().map(|interface| Switch { interface, key });
        found.extend(switches.filter_map(|switch| read(&switch).map(|value| (switch, value))));
    }
    found
}

/// Sets a switch; one of an interface that is gone needs nothing.
pub fn set_switch(switch: &Switch, value: u8) -> Result<(), ForwardingError> {
    let path = path(switch);
    match fs::write(&path, value.to_string()) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ForwardingError { path, source }),
        _ => Ok(()),
    }
}

/// The value of a switch; absent: the kernel has none of it, or none that is known.
fn read(switch: &Switch) -> Option<u8> {
    fs::read_to_string(path(switch)).ok()?.trim().parse().ok()
}

fn path(switch: &Switch) -> PathBuf {
    Path::new(ROOT).join(switch.to_string())
}

fn turn(switch: &Switch, on: bool) -> Result<(), ForwardingError> {
    if read(switch) == Some(u8::from(on)) {
        return Ok(());
    }
    match fs::write(path(switch), if on { "1" } else { "0" }) {
        // A tunnel should not fail because packets are forwarded that need not be.
        Err(error) if !on => {
            tracing::debug!(%error, %switch, "forwarding stays on");
            Ok(())
        }
        outcome => outcome.map_err(|source| ForwardingError { path: path(switch), source }),
    }
}
