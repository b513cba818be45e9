//! What the server knows right now, and enough of the past to tell nodes only what they lack.
//!
//! A [`State`] is published whole after each commit; whoever holds one sees one revision.

use std::collections::VecDeque;
use std::sync::Arc;

use imbl::OrdMap;
use schema::compile::{Mesh, Touched};
use schema::scalars::{Name, NetworkName};
use schema::snapshot::Revision;
use schema::view::{View, ViewDelta};
use schema::world::World;

/// How many changes of a network are remembered; a node that is further behind gets its whole View.
const REMEMBERED: usize = 1_024;

/// What the server knows at one revision.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The world.
    pub world: Arc<World>,
    networks: OrdMap<NetworkName, Arc<History>>,
}

/// A network as it is and was.
#[derive(Clone, Debug)]
struct History {
    /// The meshes by the revision that made them, oldest first; the last one holds now.
    meshes: VecDeque<(Revision, Arc<Mesh>)>,
}

/// What a node lacks.
#[derive(Debug)]
pub enum Lack {
    /// Nothing.
    Nothing,
    /// This, on top of what it has; the number is how many peers it has then.
    Delta(ViewDelta, usize),
    /// Everything.
    Whole(View),
}

impl State {
    /// The state of a server that starts with this world. `since` gives the revision from which on a network has been as it
    /// is, so that a restart tells no node what it knows; the newest revision is always true.
    pub fn new(world: World, since: impl Fn(&NetworkName) -> Revision) -> Self {
        let compile = |(name, _): (&NetworkName, _)| {
            let mesh = Mesh::compile(name, &world.snapshot, &world.inventory)?;
            let meshes = VecDeque::from([(since(name), Arc::new(mesh))]);
            Some((name.clone(), Arc::new(History { meshes })))
        };
        let networks = world.snapshot.networks().filter_map(compile).collect();
        Self { world: Arc::new(world), networks }
    }

    /// The state after the world has become this one.
    #[must_use]
    pub fn follow(&self, world: World) -> Self {
        let (old, new) = ((&self.world.snapshot, &self.world.inventory), (&world.snapshot, &world.inventory));
        let touched = Touched::between(old, new);
        let mut networks = self.networks.clone();
        for name in touched.networks() {
            let was = networks.get(name);
            let mesh = match was.and_then(|history| history.now()) {
                Some(mesh) => mesh.follow(new.0, new.1, &touched),
                None => Mesh::compile(name, new.0, new.1),
            };
            match mesh {
                None => drop(networks.remove(name)),
                Some(mesh) => {
                    let mut meshes = was.map(|history| history.meshes.clone()).unwrap_or_default();
                    if meshes.back().is_some_and(|(_, before)| mesh.is_still(before)) {
                        continue;
                    }
                    meshes.push_back((world.revision, Arc::new(mesh)));
                    if meshes.len() > REMEMBERED {
                        meshes.pop_front();
                    }
                    networks.insert(name.clone(), Arc::new(History { meshes }));
                }
            }
        }
        Self { world: Arc::new(world), networks }
    }

    /// The mesh of a network as it is.
    pub fn mesh(&self, network: &NetworkName) -> Option<&Arc<Mesh>> {
        self.networks.get(network)?.now()
    }

    /// What a node lacks that stands at an epoch and revision of its network.
    pub fn lack(&self, network: &NetworkName, node: &Name, epoch: u64, at: Revision) -> Option<Lack> {
        let history = self.networks.get(network)?;
        let (changed, now) = history.meshes.back()?;
        let known = epoch == self.world.epoch && at <= self.world.revision;
        if known && at >= *changed {
            return Some(Lack::Nothing);
        }
        let after = now.view(node)?;
        let then = history.at(at).filter(|_| known).and_then(|mesh| mesh.view(node));
        let Some(before) = then else { return Some(Lack::Whole(after)) };
        let delta = ViewDelta::between(&before, &after);
        Some(if delta.is_empty() { Lack::Nothing } else { Lack::Delta(delta, after.peers.len()) })
    }
}

impl History {
    fn now(&self) -> Option<&Arc<Mesh>> {
        self.meshes.back().map(|(_, mesh)| mesh)
    }

    /// The mesh as it was at a revision, if that is remembered.
    fn at(&self, revision: Revision) -> Option<&Arc<Mesh>> {
        let after = self.meshes.partition_point(|(made, _)| *made <= revision);
        self.meshes.get(after.checked_sub(1)?).map(|(_, mesh)| mesh)
    }
}
