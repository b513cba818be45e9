//! Everything of a host's network that an agent may change, and what others have there beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nmplan::lab::Host;

use crate::{patience, run};

/// What shows links, addresses, routes, rules and the packet filter.
const COMMANDS: [&str; 7] = [
    "ip -oneline link show",
    "ip -oneline address show scope global",
    "ip rule show",
    "ip -6 rule show",
    "ip route show table all",
    "ip -6 route show table all",
    "nft list ruleset",
];

/// The state of a host's network, as lines: what [`COMMANDS`] print, every setting below `/proc/sys/net` of IPv4 and
/// IPv6, the one of connection tracking that agents change, and the names in `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState(Vec<String>);

impl HostState {
    /// Reads the state.
    ///
    /// # Panics
    ///
    /// When a command fails.
    pub async fn of(host: &Host) -> Self {
        let mut lines = Vec::new();
        for command in COMMANDS {
            let listed = run(host, command).await;
            // The routes of an interface's own address on its link come when the kernel has found nobody else there.
            let own = |line: &&str| line.starts_with("local fe80::") || line.starts_with("anycast fe80::");
            lines.extend(listed.lines().filter(|line| !own(line)).map(ToOwned::to_owned));
        }
        host.within(|| {
            for family in ["ipv4", "ipv6"] {
                add_settings(&Path::new("/proc/sys/net").join(family), &mut lines);
            }
            let liberal = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal");
            lines.push(format!("nf_conntrack_tcp_be_liberal: {}", liberal.unwrap_or_default().trim()));
            let names = fs::read_to_string("/etc/hosts").unwrap_or_default();
            lines.extend(names.lines().map(|line| format!("/etc/hosts: {line}")));
        });
        Self(lines)
    }

    /// The lines that another state does not have.
    pub fn without(&self, other: &Self) -> Vec<String> {
        self.0.iter().filter(|line| !other.0.contains(line)).cloned().collect()
    }

    /// Waits until a host is in this state.
    ///
    /// # Panics
    ///
    /// When it is not within `timeout`, times [`patience`]: with what is missing and what is there instead.
    pub async fn returns(&self, host: &Host, timeout: Duration) {
        let deadline = Instant::now() + timeout * patience();
        let mut now = Self::of(host).await;
        while now != *self && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
            now = Self::of(host).await;
        }
        let (missing, new) = (self.without(&now), now.without(self));
        assert!(now == *self, "{} is not as it was: missing {missing:#?}, new {new:#?}", host.name());
    }
}

/// Adds each setting below a directory, in the order of their paths; one that cannot be read has no value.
fn add_settings(directory: &Path, lines: &mut Vec<String>) {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            add_settings(&path, lines);
        } else if let Ok(value) = fs::read_to_string(&path) {
            lines.push(format!("{}: {}", path.display(), value.trim()));
        }
    }
}
