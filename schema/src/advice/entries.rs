//! DNS entries that a plan leaves behind: with an address that a member had, or of a range that the network had.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Parts, Planned};
use crate::kinds::{Dns, Egress, Node};
use crate::report::{Code, Problem, Report};
use crate::rules::{Claim, Rules};
use crate::scalars::Name;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Who has which address.
struct Holders<'a> {
    of: Parts<'a>,
    /// The members that addresses are reserved for, by address.
    reserved: BTreeMap<IpAddr, &'a Name>,
}

/// Checks the entries of a network.
pub(super) fn check(planned: &Planned<'_>, report: &mut Report) {
    let Planned { network, before, after, source_map } = *planned;
    let mut entries = after.0.all_in::<Dns>(network).peekable();
    if entries.peek().is_none() {
        return;
    }
    let (had, has) = (Holders::of(planned, before), Holders::of(planned, after));
    let written: BTreeSet<_> = planned.changed::<Dns>().filter(is_written).map(|(id, ..)| id).collect();
    for (id, entry) in entries {
        for (field, address) in addresses(entry) {
            // Whoever writes an address together with who has it means that member, whoever had it before.
            if written.contains(id) && has.holder(id, address).is_some() {
                continue;
            }
            let problem = moved((id, entry), address, &had, &has).or_else(|| left(id, address, planned));
            if let Some(problem) = problem {
                let at = source_map.element_or_field(id, &[Step::Field(field)], &address.to_string());
                report.push(problem.at(at).about(id));
            }
        }
    }
}

/// Whether a plan makes an entry, or changes its addresses.
fn is_written((_, was, is): &(&ResourceId, Option<&Arc<Dns>>, &Arc<Dns>)) -> bool {
    was.is_none_or(|was| !addresses(was).eq(addresses(is)))
}

fn addresses(entry: &Dns) -> impl Iterator<Item = (&'static str, IpAddr)> {
    entry.claims().into_iter().filter_map(|(field, claim)| match claim {
        Claim::Meant(address) => Some((field, address)),
        Claim::Range(_) | Claim::Route(_) | Claim::Pool(_) | Claim::Reserved(_) | Claim::Endpoint(_) => None,
    })
}

impl<'a> Holders<'a> {
    fn of(planned: &Planned<'a>, of: Parts<'a>) -> Self {
        let mut reserved = BTreeMap::new();
        for (id, entry) in of.0.entries_in(planned.network) {
            for (_, claim) in entry.object.claims() {
                match claim {
                    Claim::Reserved(address) => drop(reserved.insert(address, &id.name)),
                    Claim::Range(_)
                    | Claim::Route(_)
                    | Claim::Pool(_)
                    | Claim::Meant(_)
                    | Claim::Endpoint(_) => {}
                }
            }
        }
        Self { of, reserved }
    }

    /// The member that has an address, or for which it is reserved.
    fn holder(&self, id: &ResourceId, address: IpAddr) -> Option<&Name> {
        self.of.1.holder(&id.network, address).or_else(|| self.reserved.get(&address).copied())
    }

    /// The address of a member that is of the same family as another.
    fn address_like(&self, id: &ResourceId, name: &Name, other: IpAddr) -> Option<IpAddr> {
        let member = ResourceId { name: name.clone(), ..id.clone() }.node();
        let joined = self.of.1.node(&member).map(|joined| &joined.addresses);
        let all = joined.or_else(|| self.of.1.client(&member).map(|client| &client.addresses));
        let reserved = self.reserved.iter().filter(|(_, of)| **of == name).map(|(address, _)| address);
        all.into_iter().flatten().chain(reserved).find(|it| it.is_ipv4() == other.is_ipv4()).copied()
    }
}

/// An address that a member had, and has no longer.
fn moved(
    (id, entry): (&ResourceId, &Dns),
    address: IpAddr,
    had: &Holders<'_>,
    has: &Holders<'_>,
) -> Option<Problem> {
    let name = had.holder(id, address)?;
    let now = has.holder(id, address);
    if now == Some(name) {
        return None;
    }
    let declared: &Snapshot = has.of.0;
    let member = ResourceId { name: name.clone(), ..id.clone() }.node();
    let named = declared.named::<Node>(&id.network, name).is_some();
    let stays = named || has.of.1.node(&member).is_some() || has.of.1.client(&member).is_some();
    let (becomes, help) = match has.address_like(id, name, address) {
        _ if !stays => (
            "is no member after the plan".to_owned(),
            "remove the entry, or give it another target".to_owned(),
        ),
        // An entry of one address may as well be of a node.
        new if named && (new.is_none() || addresses(entry).nth(1).is_none()) => (
            new.map_or_else(|| "loses it".to_owned(), |new| format!("has {new} after the plan")),
            match now.filter(|other| declared.named::<Node>(&id.network, other).is_some()) {
                Some(other) => format!(
                    "write node=\"{name}\" instead of the address if that node is meant, or node=\"{other}\" if that is, so that the entry follows it"
                ),
                None => {
                    format!(
                        "write node=\"{name}\" instead of the address, so that the entry follows the node"
                    )
                }
            },
        ),
        Some(new) => {
            let whom = now.map(|_| format!(", if {name} is meant")).unwrap_or_default();
            (format!("has {new} after the plan"), format!("write {new}{whom}"))
        }
        None => ("loses it".to_owned(), "remove the entry, or give it another target".to_owned()),
    };
    let leads = match now {
        Some(other) => format!("{other}, which has that address then"),
        None => "nobody".to_owned(),
    };
    let called = format!("{}.{}", id.name, id.network);
    let message = format!(
        "{address} of {id} was the address of {name}, which {becomes}: {called} would lead to {leads}"
    );
    Some(Problem::new(Code::OldAddress, message).help(help))
}

/// An address of a range that the network had and has no longer, and to which no egress forwards.
fn left(id: &ResourceId, address: IpAddr, planned: &Planned<'_>) -> Option<Problem> {
    let Planned { network, before, after, .. } = *planned;
    let had = before.0.network(network)?;
    let old = had.ranges().find(|range| range.contains(&address))?;
    let ranges: Vec<IpNet> = after.0.network(network)?.ranges().collect();
    let mut forwarded = after.0.all_in::<Egress>(network).flat_map(|(_, egress)| egress.ranges.iter());
    if ranges.iter().any(|range| range.contains(&address))
        || forwarded.any(|range| range.net().prefix_len() > 0 && range.net().contains(&address))
    {
        return None;
    }
    let new: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    let message = format!(
        "{address} of {id} is in {old}, the range that network {network} has no longer after the plan: no member can have it"
    );
    let help = format!("give it an address in {}, or name a node by `node`", new.join(" or "));
    Some(Problem::new(Code::OldAddress, message).help(help))
}
