//! Whether the kernel accepts packets on the agent's interface although another one leads back to their
//! sender.

use std::path::Path;

/// Packets of any sender that the host has a route to (`rp_filter` of Documentation/networking/ip-sysctl.rst;
/// the value for all interfaces counts as well, and the looser one wins).
const LOOSE: &str = "2";

/// Makes the kernel accept packets on this interface from any sender with a route: two tunnels may lead to
/// servers of the same address. If it cannot be set, a kernel that is not strict does not need it.
pub fn set_loose(interface: &str) {
    let path = Path::new("/proc/sys/net/ipv4/conf").join(interface).join("rp_filter");
    let set = std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == LOOSE);
    if !set && let Err(error) = std::fs::write(&path, LOOSE) {
        tracing::debug!(%error, path = %path.display(), "cannot set rp_filter; it stays as it is");
    }
}

/// Has the kernel look at a packet's mark when it checks where its sender is (`src_valid_mark`; the value for
/// all interfaces counts everywhere). It only ever loosens, and does nothing where no rule asks for marks, so
/// it is left on.
pub fn heed_marks() {
    let path = Path::new("/proc/sys/net/ipv4/conf/all/src_valid_mark");
    let set = std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    if !set && let Err(error) = std::fs::write(path, "1") {
        tracing::debug!(%error, path = %path.display(), "marks are not heeded where senders are checked");
    }
}
