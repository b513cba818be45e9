//! What the server knows right now, and enough of the past to send nodes only what differs from what they have.
//!
//! A [`State`] is published whole after each commit; whoever holds one sees one revision.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use imbl::{OrdMap, Vector};
use proto::convert::encode_delta;
use proto::sign::SignedBody;
use schema::compile::{Audience, Changed, Mesh, ViewStep};
use schema::scalars::{Name, NetworkName};
use schema::snapshot::Revision;
use schema::view::{Counts, View, ViewDelta};
use schema::world::World;

/// How many changes of a network are remembered; a node that missed more is sent its whole View.
const REMEMBERED: usize = 1_024;
/// How many encoded deltas of a network are kept for other nodes with the same base. Nodes with a stream all start from
/// the previous revision, those that check in from a few; older ones are rare and may be as large as a View.
const ENCODED: usize = 16;

/// What the server knows at one revision.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The world.
    pub world: Arc<World>,
    networks: OrdMap<NetworkName, Arc<History>>,
}

/// A network as it is and as it was.
#[derive(Debug)]
struct History {
    /// The meshes by the revision that created them, oldest first; the last one is current.
    meshes: Vector<(Revision, Arc<Mesh>)>,
    /// The deltas from earlier meshes to the current one, by the revision of the former and by the audience that is
    /// sent them.
    encoded: Mutex<BTreeMap<(Revision, Audience), Encoded>>,
}

/// A delta as it is sent, encoded and hashed at its first use; absent: nothing differs.
type Encoded = Arc<OnceLock<Option<SignedBody>>>;

/// What a node has to be sent to be up to date.
#[derive(Debug)]
pub enum Pending {
    /// Nothing.
    UpToDate,
    /// This, on top of what it has.
    Delta(SignedBody),
    /// Everything.
    Full(View),
}

impl State {
    /// The state of a server that starts with this world. `since` returns the revision since which a network is
    /// unchanged, so that a restart sends no node what it has; the newest revision is always correct.
    pub fn new(world: World, since: impl Fn(&NetworkName) -> Revision) -> Self {
        let compile = |(name, _): (&NetworkName, _)| {
            let mesh = Mesh::compile(name, &world.snapshot, &world.inventory)?;
            let meshes = Vector::unit((since(name), Arc::new(mesh)));
            Some((name.clone(), Arc::new(History::new(meshes))))
        };
        let networks = world.snapshot.networks().filter_map(compile).collect();
        Self { world: Arc::new(world), networks }
    }

    /// The state after the world has become this one, which differs from the one before in what `changed` names.
    #[must_use]
    pub fn follow(&self, world: World, changed: &Changed) -> Self {
        let mut networks = self.networks.clone();
        for name in changed.networks() {
            let history = networks.get(name);
            let before = history.and_then(|history| history.now());
            let mesh = match before {
                Some(mesh) => mesh.follow(&world.snapshot, &world.inventory, changed),
                None => Mesh::compile(name, &world.snapshot, &world.inventory),
            };
            match mesh {
                None => drop(networks.remove(name)),
                Some(mesh) if before.is_some_and(|before| mesh.same_as(before)) => {}
                Some(mesh) => {
                    let mut meshes = history.map(|history| history.meshes.clone()).unwrap_or_default();
                    meshes.push_back((world.revision, Arc::new(mesh)));
                    if meshes.len() > REMEMBERED {
                        meshes.pop_front();
                    }
                    networks.insert(name.clone(), Arc::new(History::new(meshes)));
                }
            }
        }
        Self { world: Arc::new(world), networks }
    }

    /// The mesh of a network as it is.
    pub fn mesh(&self, network: &NetworkName) -> Option<&Arc<Mesh>> {
        self.networks.get(network)?.now()
    }

    /// What a node with the View of an epoch and revision has to be sent; nothing if it has not joined.
    pub fn pending(&self, network: &NetworkName, node: &Name, epoch: u64, at: Revision) -> Option<Pending> {
        let history = self.networks.get(network)?;
        let (changed, now) = history.meshes.back()?;
        let known = epoch == self.world.epoch && at <= self.world.revision;
        if known && at >= *changed {
            return Some(Pending::UpToDate);
        }
        let Some((base, then)) = history.at(at).filter(|_| known) else { return now.view(node).map(Pending::Full) };
        let body = match now.step(then, node)? {
            ViewStep::Whole => return now.view(node).map(Pending::Full),
            ViewStep::Shared(audience) => history.shared(*base, then, now, audience),
            ViewStep::Own(delta) => encode(&delta, now.counts(&now.audience(node))),
        };
        Some(body.map_or(Pending::UpToDate, Pending::Delta))
    }
}

impl History {
    fn new(meshes: Vector<(Revision, Arc<Mesh>)>) -> Self {
        Self { meshes, encoded: Mutex::default() }
    }

    fn now(&self) -> Option<&Arc<Mesh>> {
        self.meshes.back().map(|(_, mesh)| mesh)
    }

    /// The mesh as it was at a revision, with the revision that created it, if it is remembered.
    fn at(&self, revision: Revision) -> Option<&(Revision, Arc<Mesh>)> {
        let last = match self.meshes.binary_search_by_key(&revision, |(made, _)| *made) {
            Ok(exact) => exact,
            Err(after) => after.checked_sub(1)?,
        };
        self.meshes.get(last)
    }

    /// The delta from an earlier mesh to the current one for an audience, computed once.
    fn shared(&self, base: Revision, then: &Mesh, now: &Mesh, audience: Audience) -> Option<SignedBody> {
        let cell = {
            let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
            let cell = encoded.entry((base, audience.clone())).or_default().clone();
            if encoded.len() > ENCODED {
                encoded.pop_first();
            }
            cell
        };
        cell.get_or_init(|| encode(&now.delta(then, &audience), now.counts(&audience))).clone()
    }
}

/// A delta as it is sent, unless it is empty; `after` is what the View holds afterwards.
fn encode(delta: &ViewDelta, after: Counts) -> Option<SignedBody> {
    (!delta.is_empty()).then(|| SignedBody::delta(encode_delta(delta, after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::inventory::{Endpoints, Joined, NodeId};
    use schema::world::ResourceDocument;

    use crate::grpc::tests::{id, joined};

    fn world(revision: u64, nodes: u8) -> World {
        let mut world = World { epoch: 1, revision: Revision(revision), ..World::default() };
        let json = r#"{"id":"corp","body":{"ipv4":"10.0.0.0/24"}}"#;
        let document: ResourceDocument = serde_json::from_str(json).expect("good");
        world.snapshot.put(document.id.clone(), document.entry().expect("good"));
        for number in 1..=nodes {
            world.inventory.put_node(id(&format!("n{number}")), joined(number));
        }
        world
    }

    fn step(state: &State, world: World) -> State {
        let changed = Changed::between(state.world.parts(), world.parts());
        state.follow(world, &changed)
    }

    fn delta(state: &State, node: &str, at: u64) -> SignedBody {
        let NodeId { network, name: node } = id(node);
        match state.pending(&network, &node, 1, Revision(at)) {
            Some(Pending::Delta(body)) => body,
            other => panic!("{node} at {at} is sent a delta, not {other:?}"),
        }
    }

    #[test]
    fn nodes_that_are_sent_the_same_share_one_encoding_and_a_node_that_changed_has_its_own() {
        let before = State::new(world(1, 5), |_| Revision(1));
        let after = step(&before, world(2, 6));
        let bodies = ["n1", "n2", "n5"].map(|node| delta(&after, node, 1).bytes());
        assert!(bodies.iter().all(|body| body.as_ptr() == bodies[0].as_ptr()), "one buffer for all");
        let mut moved = world(3, 6);
        let seen = Some("192.0.2.1".parse().expect("good"));
        let endpoints = Endpoints { seen, ..Endpoints::default() };
        moved.inventory.put_node(id("n1"), Joined { endpoints, ..joined(1) });
        let later = step(&after, moved);
        let joined_since = delta(&later, "n2", 1).bytes();
        assert_ne!(joined_since.as_ptr(), delta(&later, "n2", 2).bytes().as_ptr(), "each base has its own");
        let NodeId { network, name } = id("n1");
        let own = later.pending(&network, &name, 1, Revision(2));
        assert!(matches!(own, Some(Pending::UpToDate)), "it knows its own endpoint: {own:?}");
    }

    #[test]
    fn a_node_is_sent_its_whole_view_where_its_base_is_not_remembered() {
        let mut state = State::new(world(1, 2), |_| Revision(1));
        for revision in 2..REMEMBERED as u64 + 3 {
            state = step(&state, world(revision, 2 + u8::try_from(revision % 2).expect("small")));
        }
        let NodeId { network, name: node } = id("n1");
        let pending = |epoch, at| state.pending(&network, &node, epoch, Revision(at));
        assert!(matches!(pending(1, 1), Some(Pending::Full(_))), "too old");
        assert!(matches!(pending(2, 900), Some(Pending::Full(_))), "of another epoch");
        assert!(matches!(pending(1, 9_000), Some(Pending::Full(_))), "of a revision that is not there yet");
        assert!(matches!(pending(1, 900), Some(Pending::Delta(_) | Pending::UpToDate)));
        assert!(pending(1, state.world.revision.0).is_some_and(|pending| matches!(pending, Pending::UpToDate)));
    }
}
