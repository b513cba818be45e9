//! What a server's names resolved to last, so that a nameserver that does not answer, as when a mesh hides
//! it, delays nothing and cuts nobody off. It is kept on the disk, beside the identity at that server.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schema::scalars::SigningKey;

use crate::addresses::Addresses;
use crate::directory::{Directory, NamesOf};

/// How long whoever needs an address waits for it, if none is known.
pub const RESOLVE: Duration = Duration::from_secs(2);
/// How long whoever has a known address waits for a newer one. The lookup itself goes on.
const HEAD_START: Duration = Duration::from_millis(200);

/// The names by which one server is reached: of its service, and of its end of the tunnel.
#[derive(Clone, Debug)]
pub struct ServerNames {
    directory: Directory,
    server: SigningKey,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug)]
struct Known {
    addresses: Addresses,
    /// The names that are being looked up.
    asked: BTreeSet<String>,
}

impl ServerNames {
    /// With what the directory knows of them.
    pub fn new(directory: Directory, server: SigningKey) -> Self {
        let addresses = directory.addresses(NamesOf::Server(&server));
        Self { directory, server, known: Arc::new(Mutex::new(Known { addresses, asked: BTreeSet::new() })) }
    }

    /// Where `host:port` leads: as the resolver says, if it answers at once, else as was known. Without
    /// either it waits for the resolver, for [`RESOLVE`].
    pub async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(at) = name.parse::<SocketAddr>() {
            return Ok(vec![at]);
        }
        let of = name.to_owned();
        let lookup = async move {
            let found = tokio::net::lookup_host(of).await?;
            Ok(found.map(|at| SocketAddr::new(at.ip().to_canonical(), at.port())).collect())
        };
        self.resolve_by(name, lookup).await
    }

    async fn resolve_by(
        &self,
        name: &str,
        lookup: impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        let known = self.lock().addresses.of(name).to_vec();
        // One that is being looked up needs no second lookup: it may be one that hangs.
        if !self.lock().asked.insert(name.to_owned()) && !known.is_empty() {
            return Ok(known);
        }
        let (names, of) = (self.clone(), name.to_owned());
        let lookup = tokio::spawn(async move {
            let found = lookup.await;
            names.lock().asked.remove(&of);
            if let Ok(found) = &found {
                names.learn(&of, found);
            }
            found
        });
        let patience = if known.is_empty() { RESOLVE } else { HEAD_START };
        match tokio::time::timeout(patience, lookup).await {
            Ok(Ok(Ok(found))) if !found.is_empty() => Ok(found),
            _ if !known.is_empty() => Ok(known),
            Ok(Ok(found)) => found,
            Ok(Err(broken)) => Err(io::Error::other(broken)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the name in {name} did not resolve within {} seconds", RESOLVE.as_secs()),
            )),
        }
    }

    fn learn(&self, name: &str, found: &[SocketAddr]) {
        let mut known = self.lock();
        if known.addresses.learn(name, found) {
            self.directory.remember(NamesOf::Server(&self.server), &known.addresses);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proto::sign::{from_seed, public_key};

    use super::*;

    const NAME: &str = "server.example.net:50051";

    fn at(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 50_051))
    }

    fn private_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).expect("set");
        folder
    }

    async fn resolved(names: &ServerNames, to: Vec<SocketAddr>) -> Vec<SocketAddr> {
        names.resolve_by(NAME, async { Ok(to) }).await.expect("it resolves")
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_server_was_is_known_after_a_restart_and_a_resolver_that_hangs_delays_little() {
        let folder = private_folder();
        let directory = Directory::open(folder.path()).expect("it opens");
        let server = public_key(&from_seed(&[6; 32]));
        let names = || ServerNames::new(directory.clone(), server);
        // A host that the server does not know keeps nothing of it.
        resolved(&names(), vec![at(1)]).await;
        assert!(names().resolve_by(NAME, std::future::pending()).await.is_err());
        directory.keep_identity(&server, &from_seed(&[8; 32])).expect("kept");

        let first = names();
        assert_eq!(resolved(&first, vec![at(1), at(2)]).await, [at(1), at(2)]);
        let start = tokio::time::Instant::now();
        for names in [first, names()] {
            let found = names.resolve_by(NAME, std::future::pending()).await;
            assert_eq!(found.expect("it is known"), [at(1), at(2)]);
            let again = names.resolve_by(NAME, async { unreachable!("one lookup hangs already") }).await;
            assert_eq!(again.expect("it is known"), [at(1), at(2)]);
        }
        assert!(start.elapsed() < HEAD_START * 3, "{:?}", start.elapsed());
        // What comes late counts the next time; what fails counts for nothing.
        let late = names();
        let slow = async {
            tokio::time::sleep(HEAD_START * 2).await;
            Ok(vec![at(3)])
        };
        assert_eq!(late.resolve_by(NAME, slow).await.expect("it is known"), [at(1), at(2)]);
        tokio::time::sleep(HEAD_START * 3).await;
        let fails = async { Err(io::ErrorKind::NotFound.into()) };
        assert_eq!(late.resolve_by(NAME, fails).await.expect("it is known"), [at(3)]);

        let file = std::fs::read_dir(folder.path()).expect("it can be listed").flatten();
        let file = file.map(|file| file.path()).find(|path| path.display().to_string().contains("addresses"));
        let file = file.expect("it is there");
        assert_eq!(std::fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "{").expect("damaged");
        assert!(names().resolve_by(NAME, std::future::pending()).await.is_err(), "only the memory is lost");
        assert_eq!(resolved(&names(), vec![at(1)]).await, [at(1)]);
        directory.forget_identity(&server).expect("forgotten");
        assert_eq!(std::fs::read_dir(folder.path()).expect("it can be listed").count(), 0, "nothing is left");
    }
}
