//! One node that many depend on, where another could stand by: a gateway or a relay with one node in `via`. Of an
//! ingress or a hub there is one only, so nothing could be done about it; a plan's "Who carries traffic for
//! others" says so of every single one.

use std::collections::{BTreeMap, BTreeSet};

use super::{Parts, Planned};
use crate::attribute::Ref;
use crate::compile::members::{Member, members};
use crate::compile::policy::{Class, Policy, Standing};
use crate::compile::ways::Ways;
use crate::kinds::{Egress, ExternalClient, Node, Relay};
use crate::report::{Code, Report};
use crate::rules::selected::Selected;
use crate::scalars::{Name, Selector};
use crate::snapshot::ResourceId;
use crate::text::count;

/// How many members make a single node worth a warning: with fewer, whoever plans has them all in view.
pub const MANY: usize = 5;

/// Checks the gateways and relays of a network.
pub(super) fn check(planned: &Planned<'_>, report: &mut Report) {
    let Users { single: had, .. } = Users::of(planned, planned.before);
    let Users { single, for_nobody } = Users::of(planned, planned.after);
    for (id, Single { node, users, loss }) in single {
        if users < MANY || had.get(&id).is_some_and(|before| before.users >= MANY) {
            continue;
        }
        let depend = count(users as u64, "member");
        let message = format!("{depend} depend on {node} alone, by {id}: while it is away, {loss}");
        let problem = planned.warning(Code::SingleCarrier, message, &id, Some("via"));
        report.push(problem.help(format!("name a second node that stands by: via \"{node}\" \"OTHER\"")));
    }
    half_exits(planned, report);
    for (id, was, is) in planned.changed::<Relay>() {
        let selected = |relay: &Relay| (*relay.r#for).clone();
        if for_nobody.contains(id) && was.is_none_or(|was| selected(was) != selected(is)) {
            let message = format!(
                "{id} is for external clients alone, which their ingress carries: it carries nobody's traffic"
            );
            let problem = planned.warning(Code::RelayOfNobody, message, id, Some("for"));
            report.push(problem.help("select nodes, or remove the relay".to_owned()));
        }
    }
}

/// Warns of ways to the internet for one family alone: what members send by the other leaves as before.
fn half_exits(planned: &Planned<'_>, report: &mut Report) {
    let families = |egress: &Egress| {
        let wide = egress.ranges.iter().map(|range| range.net()).filter(|range| range.prefix_len() == 0);
        wide.map(|range| range.network().is_ipv4()).collect::<BTreeSet<bool>>()
    };
    let all = planned.after.0.all_in::<Egress>(planned.network);
    let everywhere: BTreeSet<bool> = all.flat_map(|(_, egress)| families(egress)).collect();
    for (id, was, is) in planned.changed::<Egress>() {
        let new = was.is_none_or(|was| families(was) != families(is));
        let Some(ipv4) = families(is).first().copied().filter(|_| new && everywhere.len() == 1) else {
            continue;
        };
        let [this, other] = if ipv4 { ["IPv4", "IPv6"] } else { ["IPv6", "IPv4"] };
        let message = format!(
            "{id} is the way to the internet for {this} alone: what members send there by {other} leaves by their own ways"
        );
        let range = if ipv4 { "::/0" } else { "0.0.0.0/0" };
        let problem = planned.warning(Code::HalfExit, message, id, Some("ranges"));
        report.push(problem.help(format!("add {range:?} to its ranges, if that must not be")));
    }
}

/// A gateway or relay with one node.
struct Single {
    node: Name,
    /// How many members depend on it: nodes that have joined or are declared, and external clients; in a network
    /// with rules those alone whom one lets open anything by it, or at whom it lets anybody.
    users: usize,
    /// What they lose without it.
    loss: String,
}

/// Who depends on the gateways and relays of a network.
#[derive(Default)]
struct Users {
    single: BTreeMap<ResourceId, Single>,
    /// The relays that external clients alone are selected for.
    for_nobody: BTreeSet<ResourceId>,
}

impl Users {
    fn of(planned: &Planned<'_>, (declared, inventory): Parts<'_>) -> Self {
        let network = planned.network;
        let mut users = Self::default();
        let egress = declared.all_in::<Egress>(network);
        let egress: Vec<_> = egress.filter_map(|(id, it)| Some((id, it, alone(&it.via)?))).collect();
        let relays: Vec<_> = declared.all_in::<Relay>(network).collect();
        let Some(settings) = declared.network(network).filter(|_| !egress.is_empty() || !relays.is_empty())
        else {
            return users;
        };
        let members = members(network, declared, inventory);
        let policy = Policy::compile(network, settings, declared);
        let ways = Ways::compile(network, settings, &policy, declared, inventory);
        let opening = Opening::of(&members, &policy, &ways);
        let is_client = |name: &Name| declared.named::<ExternalClient>(network, name).is_some();
        let chosen = |of: &BTreeSet<Selector>| Selected::by(of.iter(), network, declared);
        for (id, egress, node) in egress {
            let side = egress.r#for.as_ref().map(|side| chosen(side));
            let behind = opening.behind(&id.name, &ways);
            let on = |name: &Name, member: &Member| {
                *name != node
                    && side.as_ref().is_none_or(|side| holds(side, name, member))
                    && opening.at_any(name, &behind)
            };
            let count = members.iter().filter(|(name, it)| it.key.is_none() && on(name, it)).count();
            let ranges: Vec<_> = egress.ranges.iter().map(|range| range.net().to_string()).collect();
            let loss = format!("none of them reaches {}", ranges.join(", "));
            users.single.insert(id.clone(), Single { node, users: count, loss });
        }
        for (id, relay) in relays {
            let side = chosen(&relay.r#for);
            let carried: Vec<_> = members.iter().filter(|(name, it)| holds(&side, name, it)).collect();
            if !carried.is_empty() && carried.iter().all(|(name, _)| is_client(name)) {
                users.for_nobody.insert(id.clone());
            }
            let Some(node) = alone(&relay.via) else { continue };
            let of_files = |(name, it): &&(&Name, &Member)| {
                it.key.is_none() && **name != node && !is_client(name) && opening.takes_part(name)
            };
            let count = carried.iter().filter(of_files).count();
            let loss = "none of them reaches anybody".to_owned();
            users.single.insert(id.clone(), Single { node, users: count, loss });
        }
        users
    }
}

/// The node that is the only one, if it is.
fn alone(via: &[Ref<Node>]) -> Option<Name> {
    match via {
        [only] => Some(only.name.clone()),
        _ => None,
    }
}

/// Who may open anything at whom by the rules of a network: whoever may not loses nothing with a carrier.
struct Opening<'a> {
    policy: &'a Policy,
    /// The class of each member.
    of: BTreeMap<&'a Name, Class>,
    /// Which rules the members of a class are on a side of, and whether one of these is about anybody else.
    classes: BTreeMap<Class, (Standing, bool)>,
}

impl<'a> Opening<'a> {
    fn of(members: &'a BTreeMap<Name, Member>, policy: &'a Policy, ways: &Ways) -> Self {
        let class = |(name, it): (&'a Name, &Member)| (name, policy.class(name, &it.tags, &it.addresses));
        let of: BTreeMap<_, _> = members.iter().map(class).collect();
        let mut sizes: BTreeMap<&Class, usize> = BTreeMap::new();
        for class in of.values().chain(ways.ranges().map(|(_, way)| &way.class)) {
            *sizes.entry(class).or_default() += 1;
        }
        let standings: Vec<_> =
            sizes.values().zip(sizes.keys().map(|class| policy.standing(class))).collect();
        let counted: Vec<_> = standings.iter().map(|(size, standing)| (standing, **size)).collect();
        let active = policy.taking_part(&counted);
        let classes = sizes.keys().zip(&standings).zip(active);
        let classes =
            classes.map(|((class, (_, standing)), active)| ((*class).clone(), (standing.clone(), active)));
        Self { policy, classes: classes.collect(), of }
    }

    fn class(&self, name: &Name) -> Option<&(Standing, bool)> {
        self.of.get(name).and_then(|class| self.classes.get(class))
    }

    /// Whether a member may open anything at anybody, or anybody at it.
    fn takes_part(&self, name: &Name) -> bool {
        self.class(name).is_some_and(|(_, active)| *active)
    }

    /// What the rules make of the ranges of an egress.
    fn behind(&self, egress: &Name, ways: &Ways) -> Vec<Standing> {
        let parts = ways.ranges().filter(|(_, way)| way.egress == *egress);
        parts.map(|(_, way)| self.policy.standing(&way.class)).collect()
    }

    /// Whether a member may open anything at any of these, or these at it.
    fn at_any(&self, name: &Name, others: &[Standing]) -> bool {
        let share = |(own, _): &(Standing, bool)| {
            others.iter().any(|other| own.shares_with(other) || other.shares_with(own))
        };
        !self.policy.is_restricted() || self.class(name).is_some_and(share)
    }
}

fn holds(side: &Selected, name: &Name, Member { tags, addresses, key: _ }: &Member) -> bool {
    side.holds(name, tags, addresses)
}
