//! What a plan predicts is what nodes are sent after its apply, byte for byte on the wire and from what is stored, for
//! random worlds and random changes over all kinds.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../../schema/tests/worlds/mod.rs"]
mod worlds;

use std::collections::BTreeMap;

use nmserver::state::{Chain, Pending, State};
use nmserver::store::rows;
use proptest::prelude::*;
use proto::convert::{DecodedUpdate, accept_update, encode_view};
use proto::position::{Position, Stamp};
use proto::sign::{self, Header, SignedBody};
use schema::chain::ChainHash;
use schema::compile::{Changed, Mesh};
use schema::decode::{Declared, decode};
use schema::document::Document;
use schema::plan::{Plan, plan};
use schema::scalars::{Identity, Name, NetworkName};
use schema::snapshot::{Entry, Owner, Revision, Snapshot};
use schema::source_map::SourceMap;
use schema::view::View;
use schema::world::World;

use worlds::{Moment, documents, draws, edits, server};

fn owner() -> Owner {
    "acme/dev".parse().unwrap()
}

/// The world with everything in it managed by the project.
fn managed(moment: &Moment) -> World {
    let mut world = World { epoch: 1, revision: Revision(1), ..moment.world.clone() };
    for (id, entry) in moment.world.snapshot.entries() {
        world.snapshot.put(id.clone(), Entry { owner: Some(owner()), ..entry.clone() });
    }
    world
}

fn views(world: &World) -> BTreeMap<(NetworkName, Name), View> {
    let networks = world.snapshot.networks().map(|(name, _)| name);
    let meshes = networks.filter_map(|name| Mesh::compile(name, &world.snapshot, &world.inventory));
    let of_mesh = |mesh: Mesh| -> Vec<_> {
        mesh.nodes().map(|node| ((mesh.name().clone(), node.clone()), mesh.view(node).unwrap())).collect()
    };
    meshes.flat_map(of_mesh).collect()
}

fn hash(revision: u64) -> ChainHash {
    ChainHash::start("test").next(&revision.to_string())
}

fn position(revision: u64) -> Position {
    Position { epoch: 1, revision: Revision(revision), stamp: Stamp::new(&hash(revision), &[7; 32]) }
}

/// What an agent makes of what it is sent, on top of what it has.
fn received((network, node): &(NetworkName, Name), pending: Pending, had: Option<&View>) -> Option<View> {
    let key = sign::from_seed(&[9; 32]);
    let (from, body) = match pending {
        Pending::UpToDate => return had.cloned(),
        Pending::Delta(body) => (position(1), body),
        Pending::Full(view) => {
            (Position { epoch: 1, ..Position::default() }, SignedBody::whole(encode_view(&view)))
        }
    };
    let update = body.sign(Header { network, node, from, to: position(2) }, &key);
    let base = had.map(|view| (view, position(1)));
    let accepted = accept_update(&update, network, node, &Identity([1; 32]), &sign::public_key(&key), base);
    match accepted.unwrap() {
        (DecodedUpdate::View(view), _) => Some(*view),
        (DecodedUpdate::Removed, _) => None,
    }
}

/// What a server has that starts again with what was stored.
fn stored(before: &World, after: &World) -> World {
    let mut world = World { epoch: after.epoch, revision: after.revision, ..World::default() };
    let (puts, _) = rows::between(&World { epoch: before.epoch, ..World::default() }, after);
    for row in &puts {
        rows::restore(row, &mut world).unwrap();
    }
    world
}

/// The plan to these declarations; nothing where the nodes do not fit.
fn planned(world: &World, declared: &Declared, moment: &Moment) -> Option<Plan> {
    plan(declared, &owner(), None, world, &server(), moment.now).ok()
}

fn shuffled() -> impl Strategy<Value = (Moment, Snapshot, Vec<Document>)> {
    edits().prop_flat_map(|(moment, next)| {
        let shuffled = Just(documents(&next)).prop_shuffle();
        (Just(moment), Just(next), shuffled)
    })
}

proptest! {
    #![proptest_config(draws(1_000))]

    #[test]
    fn what_a_plan_predicts_is_what_nodes_are_sent((moment, next, shuffled) in shuffled()) {
        let world = managed(&moment);
        let next = Declared { snapshot: next, source_map: SourceMap::default() };
        let Some(plan) = planned(&world, &next, &moment) else { return Ok(()) };
        let predicted = plan.apply(&world, &server(), moment.now).unwrap();
        let predicted = views(&World { snapshot: predicted.snapshot, inventory: predicted.inventory, ..world.clone() });

        // As it is sent and carried out: without its effects, read from its JSON.
        let sent: Plan = serde_json::from_str(&serde_json::to_string(&plan.bare()).unwrap()).unwrap();
        prop_assert_eq!(sent.digest_now(), &*plan.digest);
        let outcome = sent.apply(&world, &server(), moment.now).unwrap();
        let after = World { revision: Revision(2), snapshot: outcome.snapshot, inventory: outcome.inventory, ..world.clone() };
        let started = State::new(world.clone(), Chain::new(Revision(1), hash(1)), |_| Revision(1));
        let changed = Changed::between(world.parts(), after.parts());
        let follows = started.follow(after.clone(), [hash(2)], &changed);
        let restarted = State::new(stored(&world, &after), Chain::new(Revision(2), hash(2)), |_| Revision(2));
        let had = views(&world);
        for (id, view) in &predicted {
            let (network, node) = id;
            let pending = follows.pending(network, node, had.contains_key(id).then_some(Revision(1))).unwrap();
            let got = received(id, pending, had.get(id));
            prop_assert_eq!(got.as_ref(), Some(view), "{:?}", id);
            let whole = restarted.pending(network, node, None).unwrap();
            let got = received(id, whole, None);
            prop_assert_eq!(got.as_ref(), Some(view), "{:?} after a restart", id);
        }
        for (network, node) in had.keys().filter(|id| !predicted.contains_key(*id)) {
            prop_assert!(follows.pending(network, node, Some(Revision(1))).is_none(), "{} left", node);
        }

        // Nothing is left to do, and the order of files is no matter.
        let again = planned(&after, &next, &moment).unwrap();
        prop_assert!(!again.applyable && again.impact.is_empty() && again.reach.is_empty() && again.carrying.is_empty());
        let (declared, report) = decode(shuffled);
        prop_assert!(!report.has_errors(), "{:?}", report);
        let other = planned(&world, &declared, &moment).unwrap();
        prop_assert_eq!(other.digest, plan.digest);
        prop_assert_eq!((other.impact, other.reach), (plan.impact, plan.reach));
    }
}
