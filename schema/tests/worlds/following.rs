//! Laws of a mesh that follows its network: they hold for every history of every network.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use schema::compile::audience::ViewStep;
use schema::compile::{Changed, Mesh};
use schema::scalars::{Name, NetworkName};
use schema::view::{View, ViewDelta, tunnel_changes};
use schema::world::World;

use super::Moment;

type Outcome = Result<(), TestCaseError>;

pub fn networks(moments: &[Moment]) -> BTreeSet<NetworkName> {
    moments.iter().flat_map(|moment| moment.world.snapshot.networks().map(|(name, _)| name.clone())).collect()
}

pub fn compiled(network: &NetworkName, world: &World) -> Option<Mesh> {
    Mesh::compile(network, &world.snapshot, &world.inventory)
}

pub fn changed(before: &World, after: &World) -> Changed {
    Changed::between((&before.snapshot, &before.inventory), (&after.snapshot, &after.inventory))
}

pub fn views(mesh: Option<&Mesh>) -> BTreeMap<Name, View> {
    mesh.into_iter()
        .flat_map(|mesh| mesh.nodes().map(|node| (node.clone(), mesh.view(node).unwrap())))
        .collect()
}

/// Each moment with the next, and the first with the last.
fn steps(moments: &[Moment]) -> impl Iterator<Item = (&World, &World)> {
    let (first, last) = (&moments[0].world, &moments[moments.len() - 1].world);
    moments.windows(2).map(|pair| (&pair[0].world, &pair[1].world)).chain([(first, last)])
}

pub fn a_mesh_that_follows_equals_one_that_is_compiled_afresh(moments: &[Moment]) -> Outcome {
    for network in networks(moments) {
        let mut followed = compiled(&network, &moments[0].world);
        for pair in moments.windows(2) {
            let (before, after) = (&pair[0].world, &pair[1].world);
            let fresh = compiled(&network, after);
            followed = match followed {
                Some(mesh) => mesh.follow(&after.snapshot, &after.inventory, &changed(before, after)),
                None => fresh.clone(),
            };
            prop_assert_eq!(&followed, &fresh, "{} after {:?}", network, changed(before, after));
        }
    }
    Ok(())
}

pub fn applying_what_differs_between_two_views_to_the_first_gives_the_second(moments: &[Moment]) -> Outcome {
    for network in networks(moments) {
        for (before, after) in steps(moments) {
            let (before, after) =
                (views(compiled(&network, before).as_ref()), views(compiled(&network, after).as_ref()));
            for (node, view) in &before {
                let Some(later) = after.get(node) else { continue };
                let delta = ViewDelta::between(view, later);
                prop_assert_eq!(delta.is_empty(), view == later);
                let mut applied = view.clone();
                delta.apply(&mut applied);
                prop_assert_eq!(&applied, later);
            }
        }
    }
    Ok(())
}

pub fn a_step_leads_every_node_from_its_view_of_one_mesh_to_that_of_the_next(moments: &[Moment]) -> Outcome {
    for network in networks(moments) {
        for (before, after) in steps(moments) {
            let (Some(earlier), Some(later)) = (compiled(&network, before), compiled(&network, after)) else {
                continue;
            };
            let followed =
                earlier.follow(&after.snapshot, &after.inventory, &changed(before, after)).unwrap();
            for later in [&later, &followed] {
                for node in later.nodes() {
                    step_leads(&earlier, later, node)?;
                }
            }
        }
    }
    Ok(())
}

fn step_leads(earlier: &Mesh, later: &Mesh, node: &Name) -> Outcome {
    let delta = match later.step(earlier, node).unwrap() {
        ViewStep::Whole => {
            prop_assert!(!earlier.has(node));
            return Ok(());
        }
        ViewStep::Shared(audience) => later.delta(earlier, &audience),
        ViewStep::Own(delta) => *delta,
    };
    let (before, after) = (earlier.view(node).unwrap(), later.view(node).unwrap());
    prop_assert_eq!(later.counts(node), after.counts());
    prop_assert_eq!(&delta, &ViewDelta::between(&before, &after), "{}", node);
    let changes = tunnel_changes(&before, &after, &delta);
    let mut tunnels = before.tunnels();
    changes.lost.iter().for_each(|key| drop(tunnels.remove(key)));
    prop_assert!(
        changes.put.iter().all(|(key, tunnel)| tunnels.get(key) != Some(tunnel)),
        "only what differs"
    );
    tunnels.extend(changes.put);
    prop_assert_eq!(tunnels, after.tunnels());
    Ok(())
}
