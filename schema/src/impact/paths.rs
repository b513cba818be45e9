//! The nodes that packets pass to each member, where a change makes them others.

use std::collections::BTreeMap;

use super::shared::{Names, first_of};
use crate::access::ClassId;
use crate::compile::Mesh;
use crate::compile::audience::Audience;
use crate::compile::paths::{Paths, Place};
use crate::compile::reach::Moment;
use crate::compile::ways;
use crate::scalars::Name;

/// Members that the nodes of an audience reach by other nodes than before.
pub(super) struct MovedTo {
    pub(super) before: Vec<Name>,
    pub(super) after: Vec<Name>,
    /// The first of them in natural order, one more than are listed.
    pub(super) first: Vec<Name>,
    /// How many there are.
    pub(super) all: usize,
    /// Whether the audience's own nodes are among them.
    pub(super) has_own: bool,
}

/// What members are judged as and where they are, before and afterwards.
type Sides = [(ClassId, Place); 2];

/// The members and the ways to them, where any differs.
pub(super) struct MovedPaths<'a> {
    paths: [Paths<'a>; 2],
    /// The members that are there before and afterwards, by where they are and what they are judged as.
    members: BTreeMap<Sides, Names>,
}

/// Where members are before and after; nothing if all packets go as before.
pub(super) fn moved_paths<'a>(before: Moment<'a>, after: Moment<'a>) -> Option<MovedPaths<'a>> {
    let (was, is) = (before.mesh?, after.mesh?);
    let network = was.name();
    let away = |moment: Moment<'a>| -> Vec<_> {
        moment.inventory.away().filter(|(id, _)| id.network == *network).collect()
    };
    if was.hub() == is.hub() && was.ways() == is.ways() && was.carries_as(is) && away(before) == away(after) {
        return None;
    }
    let place = |mesh: &Mesh, name: &Name| Place {
        carrier: Some(name).filter(|name| mesh.ways().carries(name)).cloned(),
        through: mesh.through(name).cloned(),
    };
    let mut members: BTreeMap<_, Vec<Name>> = BTreeMap::new();
    for (name, class) in was.all_members() {
        let Some(later) = is.class_of(name) else { continue };
        let sides = [(class, place(was, name)), (later, place(is, name))];
        members.entry(sides).or_default().push(name.clone());
    }
    let paths = [before, after].map(|moment| {
        let mesh = moment.mesh.unwrap_or(was);
        let carriers = mesh.all_members().map(|(name, _)| name).filter(|name| mesh.ways().carries(name));
        let carriers = carriers.map(|name| (name.clone(), mesh.through(name).cloned())).collect();
        let is_there =
            move |node: &Name, egress: Option<&Name>| ways::is_there(network, node, egress, moment.inventory);
        Paths::new(mesh.ways(), mesh.hub(), carriers, is_there)
    });
    let members = members.into_iter().map(|(sides, names)| (sides, names.into_iter().collect())).collect();
    Some(MovedPaths { paths, members })
}

impl MovedPaths<'_> {
    /// The members that nodes of an audience reach by other nodes than before, of those that they may talk to before
    /// and afterwards, by the nodes passed.
    pub(super) fn of(&self, (was, from): (&Mesh, &Audience), (is, to): (&Mesh, &Audience)) -> Vec<MovedTo> {
        let mut moved: BTreeMap<_, Vec<(&Sides, &Names)>> = BTreeMap::new();
        let places = [from.place(), to.place()];
        for (sides, names) in &self.members {
            let [(had, place), (has, later)] = sides;
            if !was.are_near(from.class, *had) || !is.are_near(to.class, *has) {
                continue;
            }
            let [before, after] =
                [(0, place), (1, later)].map(|(at, place)| self.paths[at].between(&places[at], place));
            if let (Some(before), Some(after)) = (before, after)
                && before != after
            {
                moved.entry((before, after)).or_default().push((sides, names));
            }
        }
        let [before, after] = &places;
        let own = [(from.class, before.clone()), (to.class, after.clone())];
        let all = moved.into_iter().map(|((before, after), groups)| MovedTo {
            before,
            after,
            first: first_of(groups.iter().flat_map(|(_, names)| &names.first).collect()),
            all: groups.iter().map(|(_, names)| names.all.len()).sum(),
            has_own: groups.iter().any(|(sides, _)| **sides == own),
        });
        all.collect()
    }
}
