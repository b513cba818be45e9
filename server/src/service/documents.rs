//! Documents that may be large: built off the threads that answer, one after the other, and once for each
//! revision.
//!
//! What everyone asks for after a change is the same: whoever comes while it is being built waits for it, and
//! all share its bytes. How many callers there are costs neither time nor memory.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use schema::scalars::NetworkName;
use schema::snapshot::Revision;
use schema::world::{ServerInfo, WorldDocument};
use serde::Serialize;
use tokio::sync::{OnceCell, Semaphore};

use crate::core::authorize::Grant;
use crate::error::Error;
use crate::readers::off_thread;
use crate::state::State;

/// How many scopes of the newest revision are kept: CI asks with one token, and with one for each project at
/// most.
const KEPT: usize = 8;
/// How many documents are built at the same time: each takes a thread, and several times the memory of its
/// bytes.
const BUILDING: usize = 2;

/// The documents of a server.
pub(super) struct Documents {
    worlds: Mutex<Vec<World>>,
    building: Semaphore,
}

/// The world as callers of a scope may see it.
struct World {
    at: (u64, Revision),
    /// The networks; absent: all.
    networks: Option<BTreeSet<NetworkName>>,
    /// Where the server is reached, which changes without a revision.
    addresses: Vec<IpAddr>,
    bytes: Arc<OnceCell<Bytes>>,
}

impl Documents {
    pub(super) fn new() -> Self {
        Self { worlds: Mutex::default(), building: Semaphore::new(BUILDING) }
    }

    /// The world at a state, as whoever has this grant may see it.
    pub(super) async fn world(
        &self,
        state: Arc<State>,
        grant: &Grant,
        server: &ServerInfo,
    ) -> Result<Bytes, Error> {
        let cell = self.cell((state.world.epoch, state.world.revision), grant, &server.addresses);
        let build = || {
            let (server, grant) = (server.clone(), grant.clone());
            self.build(move || world(&state, &grant, server))
        };
        cell.get_or_try_init(build).await.cloned()
    }

    /// Any other document: built anew each time.
    pub(super) async fn build<T: Serialize>(
        &self,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Bytes, Error> {
        let _turn = self.building.acquire().await.map_err(|_| Error::Bug)?;
        off_thread(move || encode(&make())).await
    }

    fn cell(
        &self,
        at: (u64, Revision),
        Grant { role: _, networks, projects: _ }: &Grant,
        addresses: &[IpAddr],
    ) -> Arc<OnceCell<Bytes>> {
        let mut worlds = self.worlds.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            |world: &&World| world.at == at && world.networks == *networks && world.addresses == addresses;
        if let Some(known) = worlds.iter().find(same) {
            return Arc::clone(&known.bytes);
        }
        let newest = worlds.iter().map(|world| world.at).max();
        let bytes = Arc::default();
        if newest.is_none_or(|newest| newest <= at) {
            worlds.retain(|world| world.at == at);
            if worlds.len() >= KEPT {
                worlds.remove(0);
            }
            let networks = networks.clone();
            let addresses = addresses.to_vec();
            worlds.push(World { at, networks, addresses, bytes: Arc::clone(&bytes) });
        }
        bytes
    }
}

fn world(state: &State, grant: &Grant, server: ServerInfo) -> WorldDocument {
    let mut document = state.world.document(ServerInfo { epoch: state.world.epoch, ..server });
    if grant.networks.is_some() {
        let holds = |network: &NetworkName| grant.holds_in(network).is_ok();
        document.resources.retain(|resource| holds(&resource.id.network));
        document.nodes.retain(|node| holds(&node.network));
        document.keys.retain(|key| holds(&key.id.network));
        document.quarantine.retain(|address| holds(&address.network));
        document.barred.retain(|barred| holds(&barred.network));
        document.pending.retain(|pending| holds(&pending.network));
        document.clients.retain(|client| holds(&client.network));
        document.away.retain(|away| holds(&away.network));
        document.carried.retain(|carried| holds(&carried.network));
        // A project that manages nothing that the caller may see does not exist for it.
        let seen: BTreeSet<_> = document.resources.iter().filter_map(|it| it.owner.as_ref()).collect();
        document.guards.retain(|guard| seen.contains(&guard.owner));
    }
    document
}

fn encode(document: &impl Serialize) -> Bytes {
    serde_json::to_vec(document).expect("a document can be written as JSON").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::authorize::Role;
    use crate::core::enrol::tests::server;
    use crate::state::Chain;

    fn grant(network: Option<&str>) -> Grant {
        let networks = network.map(|name| BTreeSet::from([name.parse().expect("good")]));
        Grant { role: Role::Viewer, networks, projects: None }
    }

    fn state(revision: u64) -> Arc<State> {
        let world = schema::world::World { epoch: 1, revision: Revision(revision), ..Default::default() };
        Arc::new(State::new(world, Chain::default(), |_| Revision::default()))
    }

    #[tokio::test]
    async fn a_revision_is_built_once_and_shared_by_those_who_may_see_the_same() {
        let documents = Documents::new();
        let server = server(None, &[]);
        let (all, corp) = (grant(None), grant(Some("corp")));
        let get = async |revision, grant: &Grant| {
            documents.world(state(revision), grant, &server).await.expect("it is built")
        };
        let many = futures_util::future::join_all((0..40).map(|_| get(1, &all))).await;
        assert!(many.iter().all(|bytes| bytes.as_ptr() == many[0].as_ptr()), "one buffer for all");
        let scoped = get(1, &corp).await;
        assert_ne!(scoped.as_ptr(), many[0].as_ptr(), "another scope is another document");
        assert_eq!(get(1, &corp).await.as_ptr(), scoped.as_ptr());
        assert_ne!(get(2, &all).await.as_ptr(), many[0].as_ptr(), "another revision as well");
        assert_eq!(documents.worlds.lock().expect("whole").len(), 1, "and the earlier ones are let go");
        get(1, &all).await;
        assert_eq!(
            documents.worlds.lock().expect("whole")[0].at.1,
            Revision(2),
            "a late caller displaces nothing"
        );
    }
}
