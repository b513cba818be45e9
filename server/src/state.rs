//! What the server knows right now, and enough of the past to send nodes only what differs from what they
//! have.
//!
//! A [`State`] is published whole after each commit; whoever holds one sees one revision.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use imbl::{OrdMap, Vector};
use proto::convert::encode_delta;
use proto::position::Position;
use proto::sign::SignedBody;
use schema::chain::ChainHash;
use schema::compile::audience::{Audience, ViewStep};
use schema::compile::{Changed, Mesh};
use schema::scalars::{Name, NetworkName};
use schema::snapshot::Revision;
use schema::view::{Counts, View, ViewDelta};
use schema::world::World;

/// How many changes of a network are remembered; a node that missed more is sent its whole View.
const REMEMBERED: usize = 1_024;
/// How many encoded deltas of a network are kept for other nodes with the same base. Nodes with a stream all
/// start from the previous revision, those that check in from a few; older ones are rare and may be as large
/// as a View.
const BASES: usize = 16;

/// How many hashes of the log are remembered, 32 bytes each; a node at an older revision is sent its whole
/// View.
const HASHES: usize = 65_536;

/// What the server knows at one revision.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The world.
    pub world: Arc<World>,
    /// The hashes of the log up to its revision.
    pub chain: Chain,
    networks: OrdMap<NetworkName, Arc<History>>,
}

/// A network as it is and as it was.
#[derive(Debug)]
struct History {
    /// The meshes by the revision that created them, oldest first; the last one is current.
    meshes: Vector<(Revision, Arc<Mesh>)>,
    /// The deltas from earlier meshes to the current one, by the revision of the former and by the audience
    /// that is sent them.
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

/// The newest hashes of the log, by revision. Clones share them.
#[derive(Clone, Debug)]
pub struct Chain {
    first: Revision,
    /// Those of `first` and the revisions after it; never empty.
    hashes: Vector<ChainHash>,
}

impl Chain {
    /// A chain of which only the head is known.
    pub fn new(head: Revision, hash: ChainHash) -> Self {
        Self { first: head, hashes: Vector::unit(hash) }
    }

    /// The hashes of a revision and of those that follow it; there is at least one.
    pub fn of(first: Revision, hashes: impl IntoIterator<Item = ChainHash>) -> Self {
        let hashes: Vector<_> = hashes.into_iter().collect();
        assert!(!hashes.is_empty(), "a chain has a head");
        Self { first, hashes }
    }

    /// The hash of the newest revision.
    pub fn head(&self) -> &ChainHash {
        self.hashes.last().expect("a chain has a head")
    }

    /// The hash of a revision, if it is remembered.
    pub fn at(&self, revision: Revision) -> Option<&ChainHash> {
        self.hashes.get(usize::try_from(revision.0.checked_sub(self.first.0)?).ok()?)
    }

    /// Adds the hash of the next revision.
    pub fn push(&mut self, hash: ChainHash) {
        self.hashes.push_back(hash);
        if self.hashes.len() > HASHES {
            self.hashes.pop_front();
            self.first.0 += 1;
        }
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new(Revision(0), ChainHash::from([0; 32]))
    }
}

/// What the position of a node says of the history that its View comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is this revision of this server's history.
    Here(Revision),
    /// It is older than what is remembered, of an earlier epoch, or none: the node is sent everything.
    Unknown,
    /// It is not of this history, but claims an epoch that this server has not left behind: if this server
    /// gave it out, its database is not the one that did.
    Elsewhere,
}

impl State {
    /// The state of a server that starts with this world and log. `since` returns the revision since which a
    /// network is unchanged, so that a restart sends no node what it has; the newest revision is always
    /// correct.
    pub fn new(world: World, chain: Chain, since: impl Fn(&NetworkName) -> Revision) -> Self {
        let compile = |(name, _): (&NetworkName, _)| {
            let mesh = Mesh::compile(name, &world.snapshot, &world.inventory)?;
            let meshes = Vector::unit((since(name), Arc::new(mesh)));
            Some((name.clone(), Arc::new(History::new(meshes))))
        };
        let networks = world.snapshot.networks().filter_map(compile).collect();
        Self { world: Arc::new(world), chain, networks }
    }

    /// The state after the world has become this one, which differs from the one before in what `changed`
    /// names, by the revisions that these hashes are of.
    #[must_use]
    pub fn follow(
        &self,
        world: World,
        hashes: impl IntoIterator<Item = ChainHash>,
        changed: &Changed,
    ) -> Self {
        let mut chain = self.chain.clone();
        hashes.into_iter().for_each(|hash| chain.push(hash));
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
                Some(mesh) => {
                    let mut meshes = history.map(|history| history.meshes.clone()).unwrap_or_default();
                    // Nobody is sent anything where it is the same, but who joins later is judged by it.
                    let same = before.is_some_and(|before| mesh.same_as(before));
                    let replaced = if same { meshes.pop_back() } else { None };
                    let made = replaced.map_or(world.revision, |(made, _)| made);
                    meshes.push_back((made, Arc::new(mesh)));
                    if meshes.len() > REMEMBERED {
                        meshes.pop_front();
                    }
                    networks.insert(name.clone(), Arc::new(History::new(meshes)));
                }
            }
        }
        Self { world: Arc::new(world), chain, networks }
    }

    /// Where the View at a position comes from.
    pub fn origin(&self, at: &Position) -> Origin {
        let Position { epoch, revision, stamp } = at;
        if *epoch < self.world.epoch {
            return Origin::Unknown;
        }
        match self.chain.at(*revision) {
            Some(hash) if *epoch == self.world.epoch && stamp.is_of(hash) => Origin::Here(*revision),
            None if *epoch == self.world.epoch && *revision < self.chain.first => Origin::Unknown,
            Some(_) | None => Origin::Elsewhere,
        }
    }

    /// The mesh of a network as it is.
    pub fn mesh(&self, network: &NetworkName) -> Option<&Arc<Mesh>> {
        self.networks.get(network)?.now()
    }

    /// The meshes of all networks as they are, by network.
    pub fn meshes(&self) -> impl Iterator<Item = &Arc<Mesh>> {
        self.networks.values().filter_map(|history| history.now())
    }

    /// What a node with the View of a revision of this history has to be sent; absent: its View is not known.
    /// Nothing if it has not joined.
    pub fn pending(&self, network: &NetworkName, node: &Name, at: Option<Revision>) -> Option<Pending> {
        let history = self.networks.get(network)?;
        let (changed, now) = history.meshes.back()?;
        if at.is_some_and(|at| at >= *changed) {
            return Some(Pending::UpToDate);
        }
        let then = at.and_then(|at| history.at(at));
        let Some((base, then)) = then else { return now.view(node).map(Pending::Full) };
        let body = match now.step(then, node)? {
            ViewStep::Whole => return now.view(node).map(Pending::Full),
            ViewStep::Shared(audience) => history.shared((*base, then), now, audience, node),
            ViewStep::Own(delta) => encode(&delta, now.counts(node)),
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

    /// The delta from an earlier mesh to the current one for an audience that a node is in, computed once.
    fn shared(
        &self,
        (base, then): (Revision, &Mesh),
        now: &Mesh,
        audience: Audience,
        node: &Name,
    ) -> Option<SignedBody> {
        let cell = {
            let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
            let cell = encoded.entry((base, audience.clone())).or_default().clone();
            if encoded.len() > BASES * now.class_count().max(1) {
                encoded.pop_first();
            }
            cell
        };
        cell.get_or_init(|| encode(&now.delta(then, &audience), now.counts(node))).clone()
    }
}

/// A delta as it is sent, unless it is empty; `after` is what the View holds afterwards.
fn encode(delta: &ViewDelta, after: Counts) -> Option<SignedBody> {
    (!delta.is_empty()).then(|| SignedBody::delta(encode_delta(delta, after)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::position::Stamp;
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

    fn hash(revision: u64) -> ChainHash {
        ChainHash::start("server").next(&revision.to_string())
    }

    fn start(world: World) -> State {
        let chain = Chain::new(world.revision, hash(world.revision.0));
        State::new(world, chain, |_| Revision(1))
    }

    fn step(state: &State, world: World) -> State {
        let changed = Changed::between(state.world.parts(), world.parts());
        let hash = hash(world.revision.0);
        state.follow(world, [hash], &changed)
    }

    fn delta(state: &State, node: &str, at: u64) -> SignedBody {
        let NodeId { network, name: node } = id(node);
        match state.pending(&network, &node, Some(Revision(at))) {
            Some(Pending::Delta(body)) => body,
            other => panic!("{node} at {at} is sent a delta, not {other:?}"),
        }
    }

    #[test]
    fn who_joins_is_judged_by_the_rules_of_then_although_they_changed_nothing_for_anybody_before() {
        let declared = |revision, allow: &[&str]| {
            let mut world = world(revision, 1);
            let mut put = |json: String| {
                let document: ResourceDocument = serde_json::from_str(&json).expect("good");
                world.snapshot.put(document.id.clone(), document.entry().expect("good"));
            };
            put(r#"{"id":"corp","body":{"ipv4":"10.0.0.0/24","acl":"deny"}}"#.to_owned());
            for name in allow {
                put(format!(
                    r#"{{"id":"corp/allow/{name}","body":{{"from":["n1"],"to":["n2"],"proto":"{name}"}}}}"#
                ));
            }
            world
        };
        let knows = |world: World, later: &[&str]| {
            let before = step(&start(world), declared(2, later));
            let mut joins = declared(3, later);
            joins.inventory.put_node(id("n2"), joined(2));
            let after = step(&before, joins);
            let NodeId { network, name } = id("n1");
            let view = after.mesh(&network).and_then(|mesh| mesh.view(&name)).expect("it has joined");
            view.peers.len()
        };
        assert_eq!(knows(declared(1, &["tcp"]), &[]), 0, "a rule that is gone");
        assert_eq!(knows(declared(1, &[]), &["tcp"]), 1, "a rule that has come");
        assert_eq!(knows(declared(1, &["tcp"]), &["udp"]), 1, "a rule in place of another");
    }

    #[test]
    fn nodes_that_are_sent_the_same_share_one_encoding_and_a_node_that_changed_has_its_own() {
        let before = start(world(1, 5));
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
        let own = later.pending(&network, &name, Some(Revision(2)));
        assert!(matches!(own, Some(Pending::UpToDate)), "it knows its own endpoint: {own:?}");
    }

    #[test]
    fn a_node_is_sent_its_whole_view_where_its_base_is_not_remembered() {
        let mut state = start(world(1, 2));
        for revision in 2..REMEMBERED as u64 + 3 {
            state = step(&state, world(revision, 2 + u8::try_from(revision % 2).expect("small")));
        }
        let NodeId { network, name: node } = id("n1");
        let pending = |at: u64| state.pending(&network, &node, Some(Revision(at)));
        assert!(matches!(pending(1), Some(Pending::Full(_))), "too old");
        assert!(matches!(state.pending(&network, &node, None), Some(Pending::Full(_))), "not known");
        assert!(matches!(pending(900), Some(Pending::Delta(_) | Pending::UpToDate)));
        assert!(pending(state.world.revision.0).is_some_and(|pending| matches!(pending, Pending::UpToDate)));
    }

    #[test]
    fn a_position_is_of_this_history_or_its_origin_is_known_to_be_another() {
        let mut state = start(World { epoch: 5, ..world(7, 1) });
        state = step(&state, World { epoch: 5, ..world(8, 2) });
        let at = |epoch, revision: u64, hash: ChainHash| {
            state.origin(&Position {
                epoch,
                revision: Revision(revision),
                stamp: Stamp::new(&hash, &[0; 32]),
            })
        };
        assert_eq!(at(5, 7, hash(7)), Origin::Here(Revision(7)));
        assert_eq!(at(5, 8, hash(8)), Origin::Here(Revision(8)));
        assert_eq!(at(5, 8, hash(7)), Origin::Elsewhere, "the same revision of another history");
        assert_eq!(at(5, 9, hash(9)), Origin::Elsewhere, "a revision that is not there yet");
        assert_eq!(at(6, 8, hash(8)), Origin::Elsewhere, "an epoch that is not there yet");
        assert_eq!(at(5, 6, hash(6)), Origin::Unknown, "older than what is remembered");
        assert_eq!(at(4, 9, hash(9)), Origin::Unknown, "an epoch that is over");
        assert_eq!(state.origin(&Position::default()), Origin::Unknown, "no View");
    }

    #[test]
    fn the_chain_forgets_the_oldest_hashes_and_counts_on() {
        let mut chain = Chain::new(Revision(3), hash(3));
        (4..HASHES as u64 + 10).for_each(|revision| chain.push(hash(revision)));
        assert_eq!((chain.at(Revision(9)), chain.at(Revision(10))), (None, Some(&hash(10))));
        assert_eq!((chain.head(), chain.at(Revision(HASHES as u64 + 10))), (&hash(HASHES as u64 + 9), None));
    }
}
