//! What a careful colleague would say of a plan: warnings that need the server's world, beside those of the files
//! alone. Pure: from the declarations and what has joined, before the plan and after it.
//!
//! What has long been so is not said again: nobody would read it. But for [`name_servers`], each of these is about
//! what the plan makes, changes or brings about, so that the plan after an apply is silent. None counts pairs of
//! members. Start at [`advice`].

mod carriers;
mod endpoints;
mod entries;
mod isolation;
mod keys;
mod name_servers;
mod rules;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::inventory::Inventory;
use crate::kinds::Resource;
use crate::report::{Code, Problem, Report};
use crate::rules::source_map::SourceMap;
use crate::scalars::NetworkName;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Declarations, and what has joined.
pub type Parts<'a> = (&'a Snapshot, &'a Inventory);

/// What is to be said of these networks, which are so before a plan and after it.
pub fn advice<'a>(
    networks: impl IntoIterator<Item = &'a NetworkName>,
    before: Parts<'a>,
    after: Parts<'a>,
    source_map: &'a SourceMap,
) -> Report {
    let mut report = Report::default();
    let changed: BTreeSet<_> = before.0.differences(after.0).map(|(id, ..)| &id.network).collect();
    for network in networks {
        let planned = Planned { network, before, after, source_map };
        name_servers::check(&planned, &mut report);
        if changed.contains(network) {
            endpoints::check(&planned, &mut report);
            entries::check(&planned, &mut report);
            keys::check(&planned, &mut report);
            carriers::check(&planned, &mut report);
            rules::check(&planned, &mut report);
            isolation::check(&planned, &mut report);
        }
    }
    report
}

/// One network, before a plan and after it.
#[derive(Clone, Copy)]
struct Planned<'a> {
    network: &'a NetworkName,
    before: Parts<'a>,
    after: Parts<'a>,
    source_map: &'a SourceMap,
}

impl<'a> Planned<'a> {
    /// The resources of a kind that the plan makes or changes: each as it was, if it was there, and as it is.
    fn changed<T: Resource>(&self) -> impl Iterator<Item = (&'a ResourceId, Option<&'a Arc<T>>, &'a Arc<T>)> {
        let network = self.network;
        let here = self.before.0.differences(self.after.0).filter(move |(id, ..)| id.network == *network);
        here.filter_map(|(id, was, is)| {
            let is = is.filter(|is| was.is_none_or(|was| was.object != is.object))?;
            Some((id, was.and_then(|was| T::of(&was.object)), T::of(&is.object)?))
        })
    }

    /// A warning about a resource, at one of its fields, or without one at its name.
    fn warning(&self, code: Code, message: String, id: &ResourceId, field: Option<&'static str>) -> Problem {
        let path = field.map(Step::Field);
        Problem::new(code, message).at(self.source_map.location(id, path.as_slice())).about(id)
    }
}
