//! Whether the kernel forwards packets that come in by the agent's interface.
//!
//! Where the packet filter decides which of them are forwarded ([`outside`](crate::outside)), the host's own
//! switch holds, since answers to containers come in there as well.
//!
//! Switches of the interface end with it. IPv6 before Linux 6.17 knows one switch for all interfaces only
//! (Documentation/networking/ip-sysctl.rst, `force_forwarding`): there it is turned on, and left on, since
//! something else may have come to need it.

use std::io;
use std::path::{Path, PathBuf};

/// Why forwarding could not be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {path}, so this host forwards no packets; set it by hand with sysctl")]
pub struct ForwardingError {
    path: PathBuf,
    source: io::Error,
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

/// Makes the kernel forward packets, or not, for the address families that it has.
pub fn set(interface: &str, forwarding: Forwarding) -> Result<(), ForwardingError> {
    let root = Path::new("/proc/sys/net");
    let ipv4 = root.join("ipv4/conf");
    let forward = match forwarding {
        Forwarding::On => true,
        Forwarding::Off => false,
        Forwarding::AsHost => {
            std::fs::read_to_string(ipv4.join("all/forwarding")).is_ok_and(|value| value.trim() == "1")
        }
    };
    switch(&ipv4.join(interface).join("forwarding"), forward)?;
    let ipv6 = root.join("ipv6/conf");
    if forwarding == Forwarding::AsHost {
        return Ok(());
    }
    if !ipv6.join(interface).exists() {
        return Ok(());
    }
    let own = ipv6.join(interface).join("force_forwarding");
    if own.exists() {
        return switch(&own, forward);
    }
    if forward { switch(&ipv6.join("all/forwarding"), true) } else { Ok(()) }
}

fn switch(path: &Path, on: bool) -> Result<(), ForwardingError> {
    let failed = |source| ForwardingError { path: path.into(), source };
    let wanted = if on { "1" } else { "0" };
    if std::fs::read_to_string(path).map_err(failed)?.trim() == wanted {
        return Ok(());
    }
    match std::fs::write(path, wanted) {
        // A tunnel should not fail because packets are forwarded that need not be.
        Err(error) if !on => {
            tracing::debug!(%error, path = %path.display(), "forwarding stays on");
            Ok(())
        }
        outcome => outcome.map_err(failed),
    }
}
