//! The agent's directory: what a host stores of its networks, private keys included.
//!
//! ```text
//! netclient.toml        what the operator sets (see settings)
//! identity-KEY.json     the host's identity at the server that signs with KEY
//! comms-KEY.json        its registration there: the tunnel that control traffic takes
//! addresses-KEY.json    what the names of that server resolved to last (see addresses)
//! network-NAME.json     a membership
//! network-NAME.log      what the server sent since that was written (see journal)
//! network-NAME.names    what the names of its peers' endpoints resolved to last
//! waiting-NAME.json     a network that the host waits to be let into
//! network-NAME.lock     held by the process that looks after that network
//! forwarding.json       what was turned on of the host's forwarding, to be put back (see forwarding)
//! device-INTERFACE.sock the device process (see device)
//! agent.sock            the daemon
//! *.lock                held by the process that uses something
//! ```
//!
//! The directory has mode 0700, the files 0600; each file but the log is replaced whole or not at all, and of
//! the log only the end may be lost.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ed25519_dalek as ed25519;
use proto::sign::from_seed;
use proto::wire::Update;
use schema::scalars::{NetworkName, SigningKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::addresses::Addresses;
use crate::files::{self, Disk, Exposed, Lock, RealDisk};
use crate::forwarding::Changed;
use crate::journal::Journal;
use crate::membership::Membership;
use crate::registration::Registration;
use crate::waiting::Waiting;

/// Where the agent keeps its state unless `NETCLIENT_DIR` says otherwise.
pub const DEFAULT: &str = "/etc/netclient";

/// How long its path may be, in bytes: that of a socket has 107 (unix(7)), and `/device-INTERFACE.sock` up to
/// 28 of them.
const LONGEST_PATH: usize = 107 - 28;
/// How long another join or leave may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The agent's directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    disk: Arc<dyn Disk>,
}

/// A membership as it is stored.
pub(crate) struct Kept {
    /// The membership, with everything that came since it was written whole.
    pub(crate) membership: Membership,
    /// Its journal.
    pub(crate) journal: Journal,
    /// Whether the log ends with something unusable: a process was killed, or is writing it.
    pub(crate) torn: bool,
}

/// Why state could not be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file or the directory itself could not be read or written.
    #[error("cannot {attempt} {path}{hint}")]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The directory or a file in it is not safe from other users.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// Another netclient has held the lock for too long.
    #[error("another netclient is joining or leaving; try again when it is done")]
    Busy,
    /// The path is too long for the sockets in it.
    #[error(
        "{0} is too long a path for the agent's state: it may have {LONGEST_PATH} bytes, since sockets lie in it; set \
         NETCLIENT_DIR to a shorter one"
    )]
    TooLong(PathBuf),
    /// A file is damaged.
    #[error(
        "{path} is damaged ({why}); restore it, or leave the network with `netclient leave --force` and join again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Whose names are resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NamesOf<'a> {
    /// A server's.
    Server(&'a SigningKey),
    /// The endpoints' of a network's peers.
    Network(&'a NetworkName),
}

#[derive(Serialize, Deserialize)]
struct StoredForwarding {
    lifetime: String,
    changed: Changed,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct StoredIdentity {
    seed: [u8; 32],
}

impl Directory {
    /// Opens the directory, and creates it if it does not exist.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let path = std::path::absolute(path).map_err(failed("find", path))?;
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(DirectoryError::TooLong(path));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(failed("make the directory", &path))?;
        // It may not be the agent's: closing it is the operator's decision.
        files::check_folder(&path, 0)?;
        Ok(Self { path, disk: Arc::new(RealDisk) })
    }

    /// The same, writing to another disk.
    #[must_use]
    pub fn on(self, disk: Arc<dyn Disk>) -> Self {
        Self { disk, ..self }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the device process of an interface.
    pub fn device_socket(&self, interface: &str) -> PathBuf {
        self.path.join(format!("device-{interface}.sock"))
    }

    /// The socket of the daemon.
    pub fn agent_socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    /// The lock of a network; absent: another process has it.
    pub(crate) fn lock(&self, network: &NetworkName) -> Result<Option<Lock>, DirectoryError> {
        let path = self.path.join(format!("network-{network}.lock"));
        Lock::take(&path).map_err(failed("lock", &path))
    }

    /// The host's identity at a server, if it has one.
    pub fn identity(&self, server: &SigningKey) -> Result<Option<ed25519::SigningKey>, DirectoryError> {
        let identity: Option<StoredIdentity> = self.read(&self.identity_path(server))?;
        Ok(identity.map(|identity| from_seed(&identity.seed)))
    }

    /// Stores the host's identity at a server.
    pub fn keep_identity(
        &self,
        server: &SigningKey,
        identity: &ed25519::SigningKey,
    ) -> Result<(), DirectoryError> {
        self.write(&self.identity_path(server), &StoredIdentity { seed: identity.to_bytes() })
    }

    /// Forgets the identity at a server, and where the server was.
    pub fn forget_identity(&self, server: &SigningKey) -> Result<(), DirectoryError> {
        for path in [self.identity_path(server), self.addresses_path(NamesOf::Server(server))] {
            self.disk.remove(&path).map_err(failed("remove", &path))?;
        }
        Ok(())
    }

    /// What names resolved to last; nothing, if the file is damaged or cannot be read.
    pub(crate) fn addresses(&self, of: NamesOf<'_>) -> Addresses {
        self.read(&self.addresses_path(of))
            .unwrap_or_else(|error| {
                tracing::debug!(%error, "what names resolved to is not known any more");
                None
            })
            .unwrap_or_default()
    }

    /// Stores what names resolved to, as far as what they belong to is stored. It is a memory only: nothing
    /// fails if the disk does.
    pub(crate) fn remember(&self, of: NamesOf<'_>, addresses: &Addresses) {
        let owner = match of {
            NamesOf::Server(server) => self.identity_path(server),
            NamesOf::Network(network) => self.membership_path(network),
        };
        if owner.exists()
            && let Err(error) = self.write(&self.addresses_path(of), addresses)
        {
            tracing::debug!(%error, "what names resolve to is known only until this process ends");
        }
    }

    /// The membership of a network, if the host is in it.
    pub fn membership(&self, network: &NetworkName) -> Result<Option<Membership>, DirectoryError> {
        Ok(self.kept(network)?.map(|kept| kept.membership))
    }

    /// The membership of a network, and its journal.
    pub(crate) fn kept(&self, network: &NetworkName) -> Result<Option<Kept>, DirectoryError> {
        let (path, log) = (self.membership_path(network), self.log_path(network));
        let Some(base) = read(&path)? else { return Ok(None) };
        let mut membership: Membership = parse(&path, &base)?;
        let log = read(&log)?.unwrap_or_default();
        let (journal, torn) = Journal::replay(&base, &log, &mut membership);
        Ok(Some(Kept { membership, journal, torn }))
    }

    /// Whether the host is in a network, as far as a file says so.
    pub(crate) fn is_in(&self, network: &NetworkName) -> bool {
        self.membership_path(network).exists()
    }

    /// How the host waits to be let into a network; nothing if it does not.
    pub fn waiting(&self, network: &NetworkName) -> Result<Option<Waiting>, DirectoryError> {
        self.read(&self.waiting_path(network))
    }

    /// The networks that the host waits to be let into, or was dropped from, by name; not those that it is in.
    pub fn waited_for(&self) -> Result<Vec<NetworkName>, DirectoryError> {
        let names = self.named("waiting-", ".json")?;
        let waits = |network: &NetworkName| !self.is_in(network);
        Ok(names.iter().filter_map(|name| name.parse().ok()).filter(waits).collect())
    }

    /// Stores how the host waits.
    pub(crate) fn keep_waiting(&self, waiting: &Waiting) -> Result<(), DirectoryError> {
        self.write(&self.waiting_path(&waiting.network), waiting)
    }

    /// Forgets how the host waits.
    pub(crate) fn forget_waiting(&self, network: &NetworkName) -> Result<(), DirectoryError> {
        let path = self.waiting_path(network);
        self.disk.remove(&path).map_err(failed("remove", &path))
    }

    /// The networks that the host is in, by name.
    pub fn networks(&self) -> Result<Vec<NetworkName>, DirectoryError> {
        Ok(self.named("network-", ".json")?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The host's registration at a server, if it has one. A damaged one counts as none: it can be made
    /// again.
    pub fn registration(&self, server: &SigningKey) -> Result<Option<Registration>, DirectoryError> {
        match self.read(&self.registration_path(server)) {
            Err(DirectoryError::Damaged { path, why }) => {
                tracing::warn!(path = %path.display(), why, "a registration is damaged; register again to get the tunnel");
                Ok(None)
            }
            outcome => outcome,
        }
    }

    /// Every registration; one that cannot be read is left out.
    pub fn registrations(&self) -> Result<Vec<Registration>, DirectoryError> {
        let read = |name: &String| self.read(&self.path.join(format!("comms-{name}.json"))).ok().flatten();
        Ok(self.named("comms-", ".json")?.iter().filter_map(read).collect())
    }

    /// The interfaces whose device has files here, by name.
    pub(crate) fn devices(&self) -> Result<Vec<String>, DirectoryError> {
        self.named("device-", ".sock")
    }

    /// Stores a registration.
    pub fn keep_registration(&self, registration: &Registration) -> Result<(), DirectoryError> {
        self.write(&self.registration_path(&registration.server.signing_key), registration)
    }

    /// Forgets the registration at a server.
    pub fn forget_registration(&self, server: &SigningKey) -> Result<(), DirectoryError> {
        let path = self.registration_path(server);
        self.disk.remove(&path).map_err(failed("remove", &path))
    }

    /// The parts between a prefix and a suffix of the names of files, sorted.
    fn named(&self, prefix: &str, suffix: &str) -> Result<Vec<String>, DirectoryError> {
        let listed = fs::read_dir(&self.path).map_err(failed("list", &self.path))?;
        let name = |file: fs::DirEntry| {
            let name = file.file_name();
            Some(name.to_str()?.strip_prefix(prefix)?.strip_suffix(suffix)?.to_owned())
        };
        let mut names: Vec<_> = listed.flatten().filter_map(name).collect();
        names.sort();
        Ok(names)
    }

    /// Stores a membership: writes it whole, as the base of a log to come.
    pub(crate) fn save(&self, membership: &Membership) -> Result<Journal, DirectoryError> {
        let base = to_text(membership);
        let path = self.membership_path(&membership.network);
        self.disk.replace(&path, &base).map_err(failed("write", &path))?;
        // It belongs to another base: nothing reads it, and the next log begins anew.
        let _ = self.disk.remove(&self.log_path(&membership.network));
        Ok(Journal::begin(&base))
    }

    /// Stores one more update of a membership in its log; false: the log has become too long, so save the
    /// membership whole.
    pub(crate) fn append(
        &self,
        network: &NetworkName,
        journal: &mut Journal,
        update: &Update,
    ) -> Result<bool, DirectoryError> {
        let Some(entry) = journal.entry(update) else { return Ok(false) };
        let path = self.log_path(network);
        self.disk.write_from(&path, entry.at, &entry.bytes).map_err(failed("write", &path))?;
        journal.written(&entry);
        Ok(true)
    }

    /// Whether the host is in a network of a server.
    pub fn is_member(&self, server: &SigningKey) -> Result<bool, DirectoryError> {
        for network in self.networks()? {
            // What does not change with what the server sends needs no log. One that cannot be read may be of
            // this server.
            match self.read::<Membership>(&self.membership_path(&network)) {
                Ok(other) if other.as_ref().is_none_or(|other| other.server.signing_key != *server) => {}
                Ok(_) | Err(_) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Whether the host is in a network of a server, or waits to be let into one: then it is known there by its
    /// identity.
    pub(crate) fn is_known_at(&self, server: &SigningKey) -> Result<bool, DirectoryError> {
        let waits = |network: NetworkName| match self.waiting(&network) {
            Ok(waiting) => waiting.is_some_and(|waiting| waiting.server.signing_key == *server),
            Err(_) => true,
        };
        Ok(self.is_member(server)? || self.waited_for()?.into_iter().any(waits))
    }

    /// Forgets a membership.
    pub fn forget(&self, network: &NetworkName) -> Result<(), DirectoryError> {
        // The log after its base, without which it is ignored.
        let names = self.addresses_path(NamesOf::Network(network));
        for path in [self.membership_path(network), self.log_path(network), names, self.waiting_path(network)]
        {
            self.disk.remove(&path).map_err(failed("remove", &path))?;
        }
        Ok(())
    }

    /// The lock for making, first using, or forgetting the identity at a server, of which each host has one.
    pub(crate) async fn lock_identity(&self, server: &SigningKey) -> Result<Lock, DirectoryError> {
        Self::wait_for(self.identity_path(server).with_extension("lock")).await
    }

    /// The lock for choosing or freeing the interface name of a tunnel to a server.
    pub(crate) async fn lock_comms(&self) -> Result<Lock, DirectoryError> {
        Self::wait_for(self.path.join("comms.lock")).await
    }

    /// What was turned on of the host's forwarding and is to be put back; nothing of what ended with an earlier
    /// lifetime of its switches.
    pub(crate) fn forwarding(&self, lifetime: &str) -> Result<Changed, DirectoryError> {
        match self.read::<StoredForwarding>(&self.forwarding_path()) {
            Ok(stored) => {
                let stored = stored.filter(|stored| stored.lifetime == lifetime);
                Ok(stored.map(|stored| stored.changed).unwrap_or_default())
            }
            Err(DirectoryError::Damaged { path, why }) => {
                tracing::warn!(path = %path.display(), why, "what the host forwarded before is not known any more, and stays as it is");
                Ok(Changed::default())
            }
            Err(error) => Err(error),
        }
    }

    /// Stores what was turned on of the host's forwarding, or is about to be.
    pub(crate) fn keep_forwarding(&self, lifetime: &str, changed: &Changed) -> Result<(), DirectoryError> {
        let path = self.forwarding_path();
        if changed.is_empty() {
            return self.disk.remove(&path).map_err(failed("remove", &path));
        }
        self.write(&path, &StoredForwarding { lifetime: lifetime.to_owned(), changed: changed.clone() })
    }

    /// The right to change what all networks of the agent share on the host: routes, rules, the packet
    /// filter.
    pub(crate) async fn lock_outside(&self) -> Result<Lock, DirectoryError> {
        Self::wait_for(self.path.join("outside.lock")).await
    }

    /// The lock of a network, of which whoever has it is done soon.
    pub(crate) async fn lock_soon(&self, network: &NetworkName) -> Result<Lock, DirectoryError> {
        Self::wait_for(self.path.join(format!("network-{network}.lock"))).await
    }

    async fn wait_for(path: PathBuf) -> Result<Lock, DirectoryError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match Lock::take(&path).map_err(failed("lock", &path))? {
                Some(lock) => return Ok(lock),
                None if Instant::now() > deadline => return Err(DirectoryError::Busy),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Removes the directory if nothing is in it.
    pub fn remove_if_empty(&self) {
        // It stays if the operator put something there.
        let _ = fs::remove_dir(&self.path);
    }

    fn forwarding_path(&self) -> PathBuf {
        self.path.join("forwarding.json")
    }

    fn identity_path(&self, server: &SigningKey) -> PathBuf {
        self.path.join(format!("identity-{}.json", short(server)))
    }

    fn registration_path(&self, server: &SigningKey) -> PathBuf {
        self.path.join(format!("comms-{}.json", short(server)))
    }

    fn addresses_path(&self, of: NamesOf<'_>) -> PathBuf {
        self.path.join(match of {
            NamesOf::Server(server) => format!("addresses-{}.json", short(server)),
            NamesOf::Network(network) => format!("network-{network}.names"),
        })
    }

    fn membership_path(&self, network: &NetworkName) -> PathBuf {
        self.path.join(format!("network-{network}.json"))
    }

    fn waiting_path(&self, network: &NetworkName) -> PathBuf {
        self.path.join(format!("waiting-{network}.json"))
    }

    fn log_path(&self, network: &NetworkName) -> PathBuf {
        self.path.join(format!("network-{network}.log"))
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, path: &Path) -> Result<Option<T>, DirectoryError> {
        read(path)?.map(|text| parse(path, &text)).transpose()
    }

    fn write<T: Serialize>(&self, path: &Path, it: &T) -> Result<(), DirectoryError> {
        self.disk.replace(path, &to_text(it)).map_err(failed("write", path))
    }
}

/// The content of a file; absent: there is none.
fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, DirectoryError> {
    match files::read(path, false) {
        Err(Exposed::Unreadable { path, source }) => Err(failed("read", &path)(source)),
        outcome => Ok(outcome?),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, text: &[u8]) -> Result<T, DirectoryError> {
    let damaged = |error: serde_json::Error| {
        // The error's own text may quote the file, which may hold a private key.
        let why = format!("line {}, column {}", error.line(), error.column());
        DirectoryError::Damaged { path: path.into(), why }
    };
    serde_json::from_slice(text).map_err(damaged)
}

fn to_text<T: Serialize>(it: &T) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(serde_json::to_vec(it).expect("state can be written as JSON"))
}

/// The name of a server in the names of files.
fn short(server: &SigningKey) -> String {
    server.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| {
        let hint = if source.kind() == io::ErrorKind::PermissionDenied {
            "; run this as root, or set NETCLIENT_DIR"
        } else if source.kind() == io::ErrorKind::StorageFull {
            "; the disk is full"
        } else {
            ""
        };
        DirectoryError::File { attempt, path, hint, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_named_with_its_place_and_not_quoted() {
        for (text, place) in [("\"secret\"", "line 1, column 8"), ("\n{\"secret\": secret", "line 2")] {
            let error =
                parse::<u64>(Path::new("/x/network-corp.json"), text.as_bytes()).expect_err("no number");
            let message = error.to_string();
            assert!(message.contains(place) && message.contains("/x/network-corp.json"), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn a_path_that_is_too_long_for_sockets_is_refused_before_anything_is_made() {
        let root = tempfile::tempdir().expect("a folder");
        let fill = LONGEST_PATH - root.path().as_os_str().len() - 1;
        let [longest, long] = [fill, fill + 1].map(|length| root.path().join("x".repeat(length)));
        let refused = Directory::open(&long).expect_err("too long").to_string();
        assert!(refused.contains("NETCLIENT_DIR") && refused.contains("79 bytes"), "{refused}");
        assert!(!long.exists());
        let directory = Directory::open(&longest).expect("it is short enough");
        // The longest name of an interface, and of a file beside its socket.
        let socket = directory.device_socket("nm-0123456789ab");
        std::os::unix::net::UnixListener::bind(socket).expect("a socket fits");
    }
}
