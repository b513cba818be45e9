//! Who is in a network with access rules for nothing: no rule lets it open anything, or anybody open anything at
//! it. On classes, as tests are judged; whether packets find a way is not asked.

use std::collections::BTreeSet;

use super::Distinguished;
use crate::compile::paths::Party;
use crate::inventory::Inventory;
use crate::kinds::{Acl, ExternalClient};
use crate::scalars::{Name, NetworkName, Selector};
use crate::snapshot::Snapshot;

/// What no rule of a network is about. Nothing is, in one whose members may open everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unused {
    /// The nodes, joined or declared, that may open nothing, and at which nobody may open anything. Those that
    /// carry traffic for others are of use without.
    pub nodes: BTreeSet<Name>,
    /// The egress that are for somebody, of whom none may open anything at what is behind them; nor may that open
    /// anything at those.
    pub egress: BTreeSet<Name>,
}

impl Unused {
    /// What is unused in a network with these declarations, of which the server knows this.
    pub fn of(network: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> Self {
        let restricted = declared.network(network).is_some_and(|settings| settings.acl == Acl::Deny);
        let nobody = std::iter::empty::<&BTreeSet<Selector>>();
        let Some(all) = Distinguished::of(network, declared, inventory, nobody).filter(|_| restricted) else {
            return Self::default();
        };
        Self { nodes: nodes(&all, declared), egress: egress(&all) }
    }
}

fn nodes(all: &Distinguished<'_>, declared: &Snapshot) -> BTreeSet<Name> {
    let counted: Vec<_> = all.classes.iter().map(|it| (&it.standing, it.parties.len())).collect();
    let active = all.policy.taking_part(&counted);
    let idle = all.classes.iter().zip(active).filter(|(_, active)| !active).map(|(alike, _)| alike);
    let names = idle.flat_map(|alike| &alike.parties).filter_map(|party| match party {
        Party::Member(name) => Some(name),
        Party::Range(_) | Party::Joins(..) => None,
    });
    let is_node = |name: &&Name| {
        declared.named::<ExternalClient>(all.network, name).is_none()
            && all.members.get(*name).is_some_and(|member| member.key.is_none())
            && !all.ways.carries(name)
    };
    // One that is alone has nobody to reach.
    let several = all.members.len() > 1;
    names.filter(is_node).filter(|_| several).cloned().collect()
}

fn egress(all: &Distinguished<'_>) -> BTreeSet<Name> {
    let (mut given, mut used) = (BTreeSet::new(), BTreeSet::new());
    for (_, way) in all.ways.ranges() {
        let behind = all.classes.iter().filter(|it| it.at.behind.as_ref() == Some(&way.egress));
        let behind: Vec<_> = behind.map(|it| &it.standing).collect();
        let served = |it: &&super::Alike| {
            let members = it.at.behind.is_none() && it.class.is_on(way.side);
            members
                && it
                    .parties
                    .iter()
                    .any(|party| !matches!(party, Party::Member(name) if way.via.contains(name)))
        };
        for member in all.classes.iter().filter(served) {
            given.insert(way.egress.clone());
            let standing = &member.standing;
            if behind.iter().any(|it| standing.shares_with(it) || it.shares_with(standing)) {
                used.insert(way.egress.clone());
                break;
            }
        }
    }
    given.difference(&used).cloned().collect()
}
