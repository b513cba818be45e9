//! Whether the kernel forwards packets that come in by the agent's interface.
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

/// Makes the kernel forward packets, or not, for the address families that it has.
pub fn set(interface: &str, forward: bool) -> Result<(), ForwardingError> {
    let root = Path::new("/proc/sys/net");
    switch(&root.join("ipv4/conf").join(interface).join("forwarding"), forward)?;
    let ipv6 = root.join("ipv6/conf");
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
