//! What a plan says of each node is what differs between the Views that it is sent before and afterwards: found here
//! from those Views alone, one node after the other, apart from the code that finds it for many at once.
#![expect(clippy::unwrap_used, reason = "a test")]

mod worlds;

use std::collections::BTreeSet;

use proptest::prelude::*;

use schema::decode::Declared;
use schema::inventory::NodeId;
use schema::plan::{Plan, plan};
use schema::report::Code;
use schema::scalars::NetworkName;
use schema::snapshot::{Entry, Owner, Snapshot};
use schema::source_map::SourceMap;
use schema::world::World;

use worlds::following::{compiled, views};
use worlds::impacted::{Sent, check, is_the_same, names, tunnels, ways};
use worlds::{Moment, draws, edits, server};

fn owner() -> Owner {
    "acme/dev".parse().unwrap()
}

/// The world before, with all of it managed, the plan to what is declared next, and the world after it; nothing where
/// the nodes would not fit.
fn planned(moment: &Moment, next: &Snapshot) -> Option<(World, Plan, World)> {
    let mut before = moment.world.clone();
    for (id, entry) in moment.world.snapshot.entries() {
        before.snapshot.put(id.clone(), Entry { owner: Some(owner()), ..entry.clone() });
    }
    let declared = Declared { snapshot: next.clone(), source_map: SourceMap::default() };
    match plan(&declared, &owner(), None, &before, &server(), moment.now) {
        Ok(plan) => {
            let after = plan.apply(&before, &server(), moment.now).unwrap();
            let after = World { snapshot: after.snapshot, inventory: after.inventory, ..before.clone() };
            Some((before, plan, after))
        }
        Err(report) => {
            assert!(report.problems().all(|problem| problem.code == Code::RangeExhausted), "{report:?}");
            None
        }
    }
}

proptest! {
    #![proptest_config(draws(1_000))]

    #[test]
    fn what_a_plan_says_of_a_node_is_what_differs_between_its_views((moment, next) in edits()) {
        let Some((world, plan, later)) = planned(&moment, &next) else { return Ok(()) };
        let all_are_there = world.inventory.away().next().is_none() && later.inventory.away().next().is_none();
        let networks: BTreeSet<NetworkName> = world.snapshot.networks().map(|(name, _)| name.clone()).collect();
        for network in networks {
            let (was, is) = (compiled(&network, &world).unwrap(), compiled(&network, &later));
            let (before, after) = (views(Some(&was)), views(is.as_ref()));
            let (had, has) = (Sent::of(&before), Sent::of(&after));
            for (node, view) in &before {
                let id = NodeId::of(&network, node);
                let mut found = plan.impact.iter().filter(|it| NodeId::of(&it.network, &it.node) == id);
                let (impact, again) = (found.next(), found.next());
                prop_assert!(again.is_none());
                match (impact, after.get(node)) {
                    (None, None) => prop_assert!(false, "{} leaves, and nothing says so", node),
                    (Some(impact), None) => {
                        prop_assert!(impact.removed);
                        prop_assert_eq!(names(&impact.peers_removed), names(tunnels(view).keys()));
                    }
                    (None, Some(later)) => prop_assert!(is_the_same(view, later), "{}\n{:#?}\n{:#?}", node, view, later),
                    (Some(impact), Some(later)) => check(impact, view, later)?,
                }
                if let (Some(is), true) = (&is, after.contains_key(node)) {
                    ways(impact, node, (&had, &was), (&has, is), all_are_there)?;
                }
            }
        }
    }
}
