//! Which nodes carry what they are declared to: by whether they call, and by what they report.
//!
//! A node that may carry an egress or a relay, is the node of an ingress, or is the hub, is away while it is
//! silent or reports that it cannot forward, and is back once it has called for three check-in intervals
//! without a gap. Silence is not death: only time counts in which this server served and other nodes of the
//! network called it, so that nothing follows from a server that is down or cut off. Pure: the time is passed
//! in. [`Carriers::look`] finds what has changed, [`Change::carry_out`] makes it so in the transaction, and
//! [`settle`] keeps what is known of carriers in step with every other change of the world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use schema::attribute::Ref;
use schema::compile::ways::carrier;
use schema::inventory::{Away, Joined, NodeId, NodeProblem};
use schema::kinds::{Egress, Ingress, Network, Node, Relay};
use schema::scalars::{Identity, Name, NetworkName};
use schema::snapshot::{ResourceId, Snapshot};
use schema::world::World;

/// How many check-ins a node may miss before it counts as silent, and how many it makes without a gap before
/// it counts as back.
pub const MISSED: u32 = 3;
/// What a check-in may be late by besides half an interval. A server that is cut off from a network has heard
/// nobody for two intervals when the first node of it counts as silent, so a gap is shorter than that.
const LATE: Duration = Duration::from_millis(500);

/// When nodes called.
pub trait Calls {
    /// How long a node has been silent while the server served; nothing: it never called.
    fn silence(&self, node: &NodeId) -> Option<Duration>;
    /// How long ago any node of a network called this process of the server, other than the server's own;
    /// nothing: none has.
    fn latest(&self, network: &NetworkName) -> Option<Duration>;
}

/// What has to be remembered from one look to the next.
#[derive(Debug, Default)]
pub struct Carriers {
    looked: Option<Instant>,
    /// Since when nodes of a network have been calling this server without a gap.
    calling: BTreeMap<NetworkName, Instant>,
    /// Since when a node that is away could be back without a gap: for everything, or for an egress.
    steady: BTreeMap<(NodeId, Option<Name>), Instant>,
}

/// A node that is away from now on, or is back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The node.
    pub node: NodeId,
    identity: Identity,
    away: Away,
    cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    Silent,
    /// It reports a problem with this code.
    Reports(Box<str>),
    Back,
}

/// Something that a node carries for others.
struct Load<'a> {
    /// An egress, relay or ingress; the network itself is what its hub carries.
    id: ResourceId,
    via: &'a [Ref<Node>],
    egress: Option<&'a Name>,
    /// Whether another node takes over, where there is one.
    fails_over: bool,
}

impl Load<'_> {
    fn carrier(&self, world: &World) -> Option<Name> {
        carrier(&self.id.network, self.via, self.egress, &world.inventory).cloned()
    }

    fn is_for(&self, node: &Name) -> bool {
        self.via.iter().any(|via| via.name == *node)
    }
}

/// Everything that is carried for others in a network.
fn loads<'a>(network: &'a NetworkName, declared: &'a Snapshot) -> Vec<Load<'a>> {
    let egress = declared.all_in::<Egress>(network).map(|(id, egress)| Load {
        id: id.clone(),
        via: &egress.via,
        egress: Some(&id.name),
        fails_over: true,
    });
    let relays = declared.all_in::<Relay>(network).map(|(id, relay)| Load {
        id: id.clone(),
        via: &relay.via,
        egress: None,
        fails_over: true,
    });
    let one = |id: &ResourceId, via: &'a Ref<Node>| Load {
        id: id.clone(),
        via: std::slice::from_ref(via),
        egress: None,
        fails_over: false,
    };
    let ingress = declared.all_in::<Ingress>(network).map(|(id, ingress)| one(id, &ingress.via));
    let hub = declared.network(network).and_then(|settings| settings.hub.as_ref());
    let hub = hub.map(|hub| one(&ResourceId::of_network(network.clone()), hub));
    egress.chain(relays).chain(ingress).chain(hub).collect()
}

impl Carriers {
    /// Returns which nodes are away from `now` on, or are back. Until the world has these changes they are
    /// returned again.
    pub fn look(&mut self, world: &World, calls: &impl Calls, now: Instant) -> Vec<Change> {
        let World { snapshot, inventory, .. } = world;
        let stood_still = self.looked.replace(now).map_or(Duration::ZERO, |before| now - before);
        self.calling.retain(|network, _| snapshot.network(network).is_some());
        self.steady.retain(|(id, _), _| inventory.away_of(id).is_some());
        let mut changes = Vec::new();
        for (network, settings) in snapshot.networks() {
            let (interval, gap) = intervals(settings);
            let called = calls.latest(network).is_some_and(|since| since.max(stood_still) <= gap);
            let heard = if called {
                now - *self.calling.entry(network.clone()).or_insert(now)
            } else {
                self.calling.remove(network);
                Duration::ZERO
            };
            let loads = loads(network, snapshot);
            let nodes: BTreeSet<&Name> =
                loads.iter().flat_map(|load| load.via).map(|via| &via.name).collect();
            for name in nodes {
                let id = NodeId::of(network, name);
                let Some(joined) = inventory.node(&id) else { continue };
                let silence = calls.silence(&id).unwrap_or(Duration::MAX);
                let situation = Situation {
                    silent: silence.min(heard) > interval * MISSED,
                    calls: silence <= gap,
                    patience: interval * MISSED,
                    loads: &loads,
                    world,
                };
                changes.extend(self.change(id, joined, &situation, now));
            }
        }
        changes
    }

    fn change(
        &mut self,
        id: NodeId,
        joined: &Joined,
        situation: &Situation<'_>,
        now: Instant,
    ) -> Option<Change> {
        let unknown = Away::default();
        let before = situation.world.inventory.away_of(&id).unwrap_or(&unknown);
        let forwards_nothing = reported(joined, &[NodeProblem::FORWARDING]);
        let bad = situation.silent || forwards_nothing.is_some();
        let everything = self.is_away((&id, None), before.everything, bad, situation, now);
        let mut away = Away { everything, egress: BTreeSet::new() };
        // Without nftables a node relays, but has no address to give to what leaves the mesh, and cannot judge.
        let cannot_judge = reported(joined, &[NodeProblem::NO_FILTER, NodeProblem::RULES_NOT_ENFORCED]);
        let mut reports = forwards_nothing;
        for load in situation.loads.iter().filter(|load| load.is_for(&id.name)) {
            let Some(egress) = load.egress else { continue };
            let of_egress = joined.problems.iter().find(|problem| problem.egress.as_ref() == Some(egress));
            let problem = of_egress.or(cannot_judge);
            let was = before.egress.contains(egress);
            reports = reports.or(problem.filter(|_| !was));
            if self.is_away((&id, Some(egress)), was, problem.is_some(), situation, now) {
                away.egress.insert(egress.clone());
            }
        }
        if away == *before {
            return None;
        }
        let more = !away.egress.is_subset(&before.egress) || (away.everything && !before.everything);
        let cause = match reports.filter(|_| more) {
            _ if situation.silent && more => Cause::Silent,
            Some(problem) => Cause::Reports(problem.code.clone()),
            None => Cause::Back,
        };
        Some(Change { node: id, identity: joined.identity, away, cause })
    }

    /// Whether a node is away, for everything or for an egress, given whether it was and whether it is silent
    /// or reports a problem. What nobody else carries, it carries again at once.
    fn is_away(
        &mut self,
        (id, egress): (&NodeId, Option<&Name>),
        was: bool,
        bad: bool,
        situation: &Situation<'_>,
        now: Instant,
    ) -> bool {
        let key = (id.clone(), egress.cloned());
        if !was || bad || !situation.calls {
            self.steady.remove(&key);
            return was || bad;
        }
        let since = *self.steady.entry(key).or_insert(now);
        now - since < situation.patience && !situation.is_needed(&id.name, egress)
    }
}

/// How a node is, and what there is to carry in its network.
struct Situation<'a> {
    /// It has missed check-ins, while others made theirs.
    silent: bool,
    /// It has missed none.
    calls: bool,
    patience: Duration,
    loads: &'a [Load<'a>],
    world: &'a World,
}

impl Situation<'_> {
    /// Whether nobody carries something that the node may carry.
    fn is_needed(&self, node: &Name, egress: Option<&Name>) -> bool {
        let loads = self.loads.iter().filter(|load| load.fails_over && load.is_for(node));
        let mut loads = loads.filter(|load| egress.is_none() || load.egress == egress);
        loads.any(|load| load.carrier(self.world).is_none())
    }
}

/// How often nodes of a network check in, and the longest time between two calls that is no gap.
fn intervals(settings: &Network) -> (Duration, Duration) {
    let interval = settings.check_in.duration();
    (interval, interval * 3 / 2 + LATE)
}

/// The first problem with one of these codes that a node reports.
fn reported<'a>(joined: &'a Joined, codes: &[&str]) -> Option<&'a NodeProblem> {
    joined.problems.iter().find(|problem| problem.egress.is_none() && codes.contains(&&*problem.code))
}

impl Change {
    /// The world in which it is so, and what happened in words; nothing if the node is gone, or it is so
    /// already.
    pub fn carry_out(&self, world: &World) -> Option<(World, String)> {
        let Self { node, identity, away, cause } = self;
        world.inventory.node(node).filter(|joined| joined.identity == *identity)?;
        if world.inventory.away_of(node).unwrap_or(&Away::default()) == away {
            return None;
        }
        let mut next = world.clone();
        next.inventory.set_away(node.clone(), away.clone());
        let name = &node.name;
        let what = match cause {
            Cause::Silent => format!("{name} is silent"),
            Cause::Reports(code) => format!("{name} reports that it cannot forward ({code})"),
            Cause::Back => format!("{name} is back"),
        };
        Some((next.clone(), format!("{what}: {}", consequences(node, world, &next))))
    }
}

/// What another node carries, in words.
fn consequences(node: &NodeId, before: &World, after: &World) -> String {
    let mut moved: BTreeMap<Option<Name>, Vec<String>> = BTreeMap::new();
    for load in loads(&node.network, &before.snapshot).iter().filter(|load| load.is_for(&node.name)) {
        let carrier = load.carrier(after);
        if carrier != load.carrier(before) {
            moved.entry(carrier).or_default().push(load.id.to_string());
        }
    }
    if moved.is_empty() {
        return "no carrier changes".into();
    }
    let words = moved.into_iter().map(|(carrier, ids)| {
        let carrier = carrier.map_or("nobody else".into(), |name| name.to_string());
        format!("{carrier} carries {}", ids.join(", "))
    });
    words.collect::<Vec<_>>().join("; ")
}

/// Keeps what is known of carriers in these networks in step with a change of the world: who is away is a node
/// that may carry something, and every egress for default routes that has a carrier has been carried from now on.
/// Returns whether anything differed.
pub fn settle(world: &mut World, networks: &BTreeSet<&NetworkName>) -> bool {
    let mut differs = false;
    for id in away_in(world, networks) {
        let Some(before) = world.inventory.away_of(&id) else { continue };
        let loads = loads(&id.network, &world.snapshot);
        let own = || loads.iter().filter(|load| load.is_for(&id.name));
        let after = if world.inventory.node(&id).is_none() || own().next().is_none() {
            Away::default()
        } else {
            let egress: BTreeSet<Name> = own().filter_map(|load| load.egress).cloned().collect();
            Away { everything: before.everything, egress: &before.egress & &egress }
        };
        if after != *before {
            world.inventory.set_away(id, after);
            differs = true;
        }
    }
    let stale: Vec<NodeId> = world
        .inventory
        .carried()
        .filter(|id| networks.contains(&id.network) && !is_default_route(&world.snapshot, id))
        .cloned()
        .collect();
    let carried: Vec<NodeId> = networks.iter().flat_map(|network| newly_carried(world, network)).collect();
    differs |= !stale.is_empty() || !carried.is_empty();
    stale.into_iter().for_each(|id| world.inventory.set_carried(id, false));
    carried.into_iter().for_each(|id| world.inventory.set_carried(id, true));
    differs
}

fn away_in(world: &World, networks: &BTreeSet<&NetworkName>) -> Vec<NodeId> {
    let away = world.inventory.away().map(|(id, _)| id);
    away.filter(|id| networks.contains(&id.network)).cloned().collect()
}

/// Whether an egress is declared, and for a default route.
fn is_default_route(declared: &Snapshot, egress: &NodeId) -> bool {
    declared.named::<Egress>(&egress.network, &egress.name).is_some_and(|egress| egress.is_default_route())
}

/// The egress for default routes that a node carries, and none has carried so far.
fn newly_carried(world: &World, network: &NetworkName) -> Vec<NodeId> {
    let World { snapshot, inventory, .. } = world;
    let egress = snapshot.all_in::<Egress>(network).filter(|(_, egress)| egress.is_default_route());
    let new = egress.filter(|(id, egress)| {
        !inventory.was_carried(&id.node())
            && carrier(network, &egress.via, Some(&id.name), inventory).is_some()
    });
    new.map(|(id, _)| id.node()).collect()
}

#[cfg(test)]
mod tests;
