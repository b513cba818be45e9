//! What selectors come to, and which tags nodes will have: what files say of members before any has joined.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::kinds::{AccessKey, Group, Node};
use crate::scalars::{Name, NetworkName, Selector};
use crate::snapshot::{ResourceId, Snapshot};

/// What selectors come to, groups taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Whether `*` is among them: every member.
    pub everybody: bool,
    /// Names of members, declared or not.
    pub names: BTreeSet<Name>,
    /// Tags.
    pub tags: BTreeSet<Name>,
    /// Ranges of addresses; everything means what no egress has a narrower range for, and no member.
    pub ranges: BTreeSet<IpNet>,
}

impl Selected {
    /// Takes selectors of a network apart.
    pub fn by<'a>(
        selectors: impl IntoIterator<Item = &'a Selector>,
        network: &NetworkName,
        declared: &Snapshot,
    ) -> Self {
        let mut selected = Self::default();
        let mut names = Vec::new();
        for selector in selectors {
            match selector {
                Selector::Name(name) => names.push(name.clone()),
                Selector::Tag(tag) => drop(selected.tags.insert(tag.clone())),
                Selector::Range(range) => drop(selected.ranges.insert(*range)),
                Selector::All => selected.everybody = true,
            }
        }
        // The rules have refused groups that hold themselves; each is taken apart once.
        let mut seen = BTreeSet::new();
        while let Some(name) = names.pop() {
            match declared.named::<Group>(network, &name) {
                Some(_) if !seen.insert(name.clone()) => {}
                Some(group) => {
                    let Group { nodes, tags, groups, external_clients } = &**group;
                    selected.names.extend(nodes.iter().map(|node| node.name.clone()));
                    selected.names.extend(external_clients.iter().map(|client| client.name.clone()));
                    selected.tags.extend(tags.iter().cloned());
                    names.extend(groups.iter().map(|group| group.name.clone()));
                }
                None => drop(selected.names.insert(name)),
            }
        }
        selected
    }

    /// Whether it holds a member.
    pub fn holds(&self, name: &Name, tags: &BTreeSet<Name>, addresses: &BTreeSet<IpAddr>) -> bool {
        let Self { everybody, names, tags: chosen, ranges } = self;
        *everybody
            || names.contains(name)
            || !chosen.is_disjoint(tags)
            || ranges
                .iter()
                .any(|range| range.prefix_len() > 0 && addresses.iter().any(|it| range.contains(it)))
    }
}

/// The declared nodes of a network, each with the tags that it has once it has joined: those of its
/// declaration, and those of every key whose `for` names it.
pub fn nodes<'a>(
    network: &'a NetworkName,
    declared: &'a Snapshot,
) -> impl Iterator<Item = (&'a ResourceId, &'a Node, BTreeSet<Name>)> {
    let mut by_key: BTreeMap<&Name, BTreeSet<Name>> = BTreeMap::new();
    for (_, key) in declared.all_in::<AccessKey>(network) {
        for node in &key.r#for {
            by_key.entry(&node.name).or_default().extend(key.tags.iter().cloned());
        }
    }
    declared.all_in::<Node>(network).map(move |(id, node)| {
        let mut tags = by_key.remove(&id.name).unwrap_or_default();
        tags.extend(node.tags.iter().cloned());
        (id, &**node, tags)
    })
}
