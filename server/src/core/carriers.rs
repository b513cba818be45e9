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
mod tests {
    use schema::snapshot::Revision;
    use schema::world::ResourceDocument;

    use super::*;
    use crate::grpc::tests::{id, joined};

    /// Between two looks.
    const STEP: Duration = Duration::from_millis(500);
    /// What a look, and storing what it finds, may take besides three intervals.
    const SOON: f64 = 2.0;

    const OFFICE: &str =
        r#"{"id":"corp/egress/office","body":{"via":["gw-a","gw-b"],"ranges":["192.168.10.0/24"]}}"#;
    const LAB: &str =
        r#"{"id":"corp/egress/lab","body":{"via":["gw-a","gw-b"],"ranges":["192.168.20.0/24"]}}"#;
    const RELAY: &str = r#"{"id":"corp/relay/hills","body":{"via":["gw-a","gw-b"],"for":["far"]}}"#;
    const ALONE: &str = r#"{"id":"corp/egress/alone","body":{"via":["gw-a"],"ranges":["192.168.30.0/24"]}}"#;
    const EXIT: &str = r#"{"id":"corp/egress/exit","body":{"via":["gw-a","gw-b"],"ranges":["0.0.0.0/0"]}}"#;
    const FRONT: &str = r#"{"id":"corp/ingress/front","body":{"via":"gw-a"}}"#;

    /// A network of which nodes call as a test wants, and a server that looks.
    struct Simulation {
        world: World,
        carriers: Carriers,
        start: Instant,
        now: Instant,
        called: BTreeMap<NodeId, Instant>,
        latest: Option<Instant>,
        /// What happened, and how many seconds after the start.
        history: Vec<(f64, String)>,
    }

    impl Calls for Simulation {
        fn silence(&self, node: &NodeId) -> Option<Duration> {
            self.called.get(node).map(|at| self.now - *at)
        }

        fn latest(&self, _: &NetworkName) -> Option<Duration> {
            self.latest.map(|at| self.now - at)
        }
    }

    impl Simulation {
        /// A network in which nodes check in each 10 s, with these resources; all have just joined.
        fn new(resources: &[&str]) -> Self {
            // No moment of a test is before the host was started.
            let start = Instant::now() + Duration::from_secs(86_400);
            let mut simulation = Self {
                world: World { epoch: 1, revision: Revision(1), ..World::default() },
                carriers: Carriers::default(),
                start,
                now: start,
                called: BTreeMap::new(),
                latest: None,
                history: Vec::new(),
            };
            simulation.declare(r#"{"id":"corp","body":{"ipv4":"10.0.0.0/24","check-in":"10s"}}"#);
            resources.iter().for_each(|resource| simulation.declare(resource));
            for (name, number) in [("gw-a", 1), ("gw-b", 2), ("far", 3), ("near", 4)] {
                simulation.world.inventory.put_node(id(name), joined(number));
                simulation.called.insert(id(name), start);
            }
            simulation
        }

        fn declare(&mut self, json: &str) {
            let document: ResourceDocument = serde_json::from_str(json).expect("good");
            self.world.snapshot.put(document.id.clone(), document.entry().expect("good"));
            self.settle();
        }

        fn settle(&mut self) -> bool {
            settle(&mut self.world, &BTreeSet::from([&id("x").network]))
        }

        /// Lets so many seconds pass, in which each of these nodes calls with a period in seconds.
        fn pass(&mut self, seconds: f64, calling: &[(&str, f64)]) {
            let begin = self.now;
            let mut due: Vec<_> = calling.iter().map(|(name, period)| (id(name), 0.0, *period)).collect();
            while self.now - begin < Duration::from_secs_f64(seconds) {
                for (node, at, period) in &mut due {
                    if self.now >= begin + Duration::from_secs_f64(*at) {
                        *at += *period;
                        self.called.insert(node.clone(), self.now);
                        self.latest = Some(self.now);
                    }
                }
                self.look();
                self.now += STEP;
            }
        }

        fn look(&mut self) {
            let mut carriers = std::mem::take(&mut self.carriers);
            for change in carriers.look(&self.world, self, self.now) {
                let (next, why) = change.carry_out(&self.world).expect("it differs");
                self.world = next;
                self.settle();
                self.history.push(((self.now - self.start).as_secs_f64(), why));
            }
            self.carriers = carriers;
        }

        /// A node reports these problems from now on.
        fn report(&mut self, node: &str, problems: &[NodeProblem]) {
            let before = self.world.inventory.node(&id(node)).expect("it has joined");
            let after = Joined { problems: problems.to_vec(), ..(**before).clone() };
            self.world.inventory.put_node(id(node), after);
        }

        /// What has happened since the last time that this was asked.
        fn happened(&mut self) -> Vec<String> {
            self.history.drain(..).map(|(_, why)| why).collect()
        }

        /// When it happened.
        fn happened_at(&self) -> Vec<f64> {
            self.history.iter().map(|(at, _)| *at).collect()
        }
    }

    const ALL: [(&str, f64); 4] = [("gw-a", 10.0), ("gw-b", 10.0), ("far", 10.0), ("near", 10.0)];

    /// All but one.
    fn without(name: &str) -> Vec<(&'static str, f64)> {
        ALL.into_iter().filter(|(other, _)| *other != name).collect()
    }

    #[test]
    fn a_silent_gateway_is_replaced_within_three_intervals_and_is_back_after_three_without_a_gap() {
        let mut corp = Simulation::new(&[OFFICE, RELAY]);
        corp.pass(100.0, &ALL);
        assert_eq!(corp.happened(), Vec::<String>::new(), "nothing happens while all is well");
        // Its last call was at 90 s.
        corp.pass(60.0, &without("gw-a"));
        let at = corp.happened_at()[0];
        assert!(at > 120.0 && at <= 120.0 + SOON, "{at}");
        assert_eq!(corp.happened(), ["gw-a is silent: gw-b carries corp/egress/office, corp/relay/hills"]);
        corp.pass(100.0, &ALL);
        assert_eq!(corp.happened_at(), [190.0], "it has called since 160 s");
        assert_eq!(corp.happened(), ["gw-a is back: gw-a carries corp/egress/office, corp/relay/hills"]);
    }

    #[test]
    fn a_gap_while_it_returns_begins_the_three_intervals_anew() {
        let mut corp = Simulation::new(&[OFFICE]);
        corp.pass(60.0, &ALL);
        corp.pass(60.0, &without("gw-a"));
        corp.happened();
        corp.pass(15.0, &ALL);
        corp.pass(20.0, &without("gw-a"));
        corp.pass(100.0, &ALL);
        assert_eq!(corp.happened_at(), [185.0], "it has called since 155 s without a gap");
    }

    #[test]
    fn nothing_moves_to_and_fro() {
        for (period, expected) in [(25.0, 0), (29.0, 0), (30.0, 0), (31.0, 1), (45.0, 1), (95.0, 1)] {
            let mut corp = Simulation::new(&[OFFICE]);
            let mut calling = without("gw-a");
            calling.push(("gw-a", period));
            corp.pass(2_000.0, &calling);
            assert_eq!(corp.happened().len(), expected, "it checks in each {period} s of 10 s");
        }
    }

    #[test]
    fn a_server_that_begins_to_serve_waits_three_intervals() {
        let mut corp = Simulation::new(&[OFFICE]);
        // Both were silent for an hour before, and one of them calls.
        corp.now += Duration::from_secs(3_600);
        corp.start = corp.now;
        corp.pass(60.0, &without("gw-a"));
        let at = corp.happened_at();
        assert!(matches!(at[..], [at] if at > 30.0 && at <= 30.0 + SOON), "{at:?}");
    }

    #[test]
    fn a_server_that_nobody_reaches_moves_nothing() {
        let mut corp = Simulation::new(&[OFFICE]);
        corp.pass(95.0, &ALL);
        corp.pass(600.0, &[]);
        // They return one after the other.
        corp.pass(25.0, &without("gw-a"));
        corp.pass(60.0, &ALL);
        assert_eq!(corp.happened(), Vec::<String>::new());
        corp.pass(600.0, &[("gw-a", 10.0)]);
        assert_eq!(corp.happened(), ["gw-b is silent: no carrier changes"], "one that calls is enough");
        let mut corp = Simulation::new(&[OFFICE]);
        corp.pass(95.0, &ALL);
        corp.pass(600.0, &[("far", 1e9)]);
        assert_eq!(corp.happened(), Vec::<String>::new(), "whoever called last has not called since");
    }

    #[test]
    fn time_in_which_the_server_did_not_look_counts_for_nobody() {
        let mut corp = Simulation::new(&[OFFICE]);
        corp.pass(95.0, &ALL);
        corp.now += Duration::from_secs(600);
        corp.pass(29.0, &without("gw-a"));
        assert_eq!(corp.happened(), Vec::<String>::new());
        corp.pass(29.0, &without("gw-a"));
        assert_eq!(corp.happened_at().len(), 1);
    }

    #[test]
    fn a_gateway_that_is_silent_already_when_it_is_declared_carries_nothing() {
        let mut corp = Simulation::new(&[]);
        corp.pass(60.0, &ALL);
        corp.pass(60.0, &without("gw-a"));
        assert_eq!(corp.happened(), Vec::<String>::new(), "it carries nothing");
        corp.declare(OFFICE);
        corp.pass(0.5, &without("gw-a"));
        assert_eq!(corp.happened(), ["gw-a is silent: gw-b carries corp/egress/office"]);
    }

    #[test]
    fn what_a_gateway_reports_counts_at_once_and_until_three_intervals_after_it_is_well() {
        let mut corp = Simulation::new(&[OFFICE, LAB, RELAY]);
        corp.pass(60.0, &ALL);
        let problem = |code| NodeProblem::new(code, "a message");
        let lab = problem(NodeProblem::EGRESS).of_egress(id("lab").name);
        for (problem, moves, carried) in [
            (lab, "egress", "corp/egress/lab"),
            (problem(NodeProblem::NO_FILTER), "no-filter", "corp/egress/lab, corp/egress/office"),
            (
                problem(NodeProblem::FORWARDING),
                "forwarding",
                "corp/egress/lab, corp/egress/office, corp/relay/hills",
            ),
        ] {
            corp.report("gw-a", std::slice::from_ref(&problem));
            corp.pass(0.5, &ALL);
            let why = format!("gw-a reports that it cannot forward ({moves}): gw-b carries {carried}");
            assert_eq!(corp.happened(), [why]);
            corp.pass(100.0, &ALL);
            corp.report("gw-a", &[]);
            corp.pass(29.0, &ALL);
            corp.report("gw-a", std::slice::from_ref(&problem));
            corp.pass(5.0, &ALL);
            corp.report("gw-a", &[]);
            corp.pass(29.5, &ALL);
            assert_eq!(corp.happened(), Vec::<String>::new());
            corp.pass(2.0, &ALL);
            assert_eq!(corp.happened(), [format!("gw-a is back: gw-a carries {carried}")]);
        }
        corp.report("gw-a", &[problem(NodeProblem::MTU), problem("of a newer agent")]);
        corp.pass(60.0, &ALL);
        assert_eq!(corp.happened(), Vec::<String>::new(), "the rest keeps nobody from forwarding");
    }

    #[test]
    fn what_nobody_carries_is_carried_at_once_by_whoever_returns_first() {
        let mut corp = Simulation::new(&[OFFICE]);
        corp.pass(60.0, &ALL);
        corp.pass(60.0, &[("far", 10.0)]);
        assert_eq!(
            corp.happened(),
            [
                "gw-a is silent: gw-b carries corp/egress/office",
                "gw-b is silent: nobody else carries corp/egress/office"
            ]
        );
        corp.pass(5.0, &without("gw-a"));
        assert_eq!(corp.happened(), ["gw-b is back: gw-b carries corp/egress/office"]);
        corp.pass(25.0, &ALL);
        assert_eq!(corp.happened(), Vec::<String>::new(), "the first of them waits");
        corp.pass(15.0, &ALL);
        assert_eq!(corp.happened(), ["gw-a is back: gw-a carries corp/egress/office"]);
        let mut corp = Simulation::new(&[ALONE, FRONT]);
        corp.pass(60.0, &ALL);
        corp.pass(60.0, &without("gw-a"));
        corp.pass(1.0, &ALL);
        assert_eq!(
            corp.happened(),
            [
                "gw-a is silent: nobody else carries corp/egress/alone, corp/ingress/front",
                "gw-a is back: gw-a carries corp/egress/alone, corp/ingress/front"
            ]
        );
    }

    #[test]
    fn a_hub_is_away_and_back_as_a_gateway_is() {
        let mut corp = Simulation::new(&[]);
        corp.declare(r#"{"id":"corp","body":{"ipv4":"10.0.0.0/24","check-in":"1s","hub":"gw-a"}}"#);
        let each_second = ALL.map(|(name, _)| (name, 1.0));
        corp.pass(20.0, &each_second);
        corp.pass(20.0, &each_second[1..]);
        let at = corp.happened_at();
        assert!(matches!(at[..], [at] if at > 22.0 && at <= 22.0 + SOON), "{at:?}");
        corp.report("gw-a", &[NodeProblem::new(NodeProblem::NO_FILTER, "a message")]);
        corp.pass(20.0, &each_second);
        assert_eq!(
            corp.happened(),
            ["gw-a is silent: nobody else carries corp", "gw-a is back: gw-a carries corp"],
            "a hub forwards without nftables"
        );
    }

    #[test]
    fn a_change_that_the_world_has_left_behind_does_nothing() {
        let mut corp = Simulation::new(&[OFFICE]);
        corp.pass(60.0, &ALL);
        corp.report("gw-a", &[NodeProblem::new(NodeProblem::FORWARDING, "a message")]);
        let mut carriers = std::mem::take(&mut corp.carriers);
        let changes = carriers.look(&corp.world, &corp, corp.now);
        let [change] = &*changes else { panic!("{changes:?}") };
        let (next, _) = change.carry_out(&corp.world).expect("it differs");
        assert_eq!(change.carry_out(&next), None, "it is so already");
        let mut other = corp.world.clone();
        other.inventory.put_node(id("gw-a"), joined(9));
        assert_eq!(change.carry_out(&other), None, "another host is that node");
        other.inventory.remove_node(&id("gw-a"), jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(change.carry_out(&other), None, "it has left");
    }

    #[test]
    fn what_is_known_of_carriers_goes_with_what_they_carry() {
        let away = |corp: &Simulation| corp.world.inventory.away_of(&id("gw-a")).cloned();
        let egress = |names: &[&str]| names.iter().map(|name| id(name).name).collect();
        let mut corp = Simulation::new(&[OFFICE, LAB]);
        let both = Away { everything: false, egress: egress(&["office", "lab"]) };
        corp.world.inventory.set_away(id("gw-a"), both.clone());
        assert!(!corp.settle() && away(&corp) == Some(both), "nothing differs");
        corp.world.snapshot.delete(&"corp/egress/lab".parse().expect("good"));
        assert!(corp.settle());
        assert_eq!(away(&corp), Some(Away { everything: false, egress: egress(&["office"]) }));
        corp.world.inventory.set_away(id("gw-a"), Away { everything: true, egress: egress(&[]) });
        corp.declare(&OFFICE.replace("gw-a", "far"));
        assert_eq!(away(&corp), None, "it is no gateway any more");
        corp.declare(OFFICE);
        corp.world.inventory.set_away(id("gw-a"), Away { everything: true, egress: egress(&[]) });
        corp.world.inventory.remove_node(&id("gw-a"), jiff::Timestamp::UNIX_EPOCH);
        assert!(corp.settle());
        assert_eq!(away(&corp), None, "it has left");
    }

    #[test]
    fn a_default_route_has_been_carried_from_the_first_carrier_on_until_it_goes() {
        let mut corp = Simulation::new(&[]);
        let carried = |corp: &Simulation| corp.world.inventory.was_carried(&id("exit"));
        for name in ["gw-a", "gw-b"] {
            corp.world.inventory.remove_node(&id(name), jiff::Timestamp::UNIX_EPOCH);
        }
        corp.declare(EXIT);
        corp.declare(OFFICE);
        assert!(!carried(&corp), "nobody has joined who could");
        corp.world.inventory.put_node(id("gw-b"), joined(2));
        assert!(corp.settle() && carried(&corp));
        corp.world.inventory.remove_node(&id("gw-b"), jiff::Timestamp::UNIX_EPOCH);
        assert!(!corp.settle() && carried(&corp), "it stays so");
        assert!(!corp.world.inventory.was_carried(&id("office")), "of any other egress it is not noted");
        corp.declare(&EXIT.replace("0.0.0.0/0", "192.168.40.0/24"));
        assert!(!carried(&corp), "it is no default route any more");
        corp.world.inventory.put_node(id("gw-b"), joined(2));
        corp.declare(EXIT);
        assert!(carried(&corp));
        corp.world.snapshot.delete(&"corp/egress/exit".parse().expect("good"));
        assert!(corp.settle() && !carried(&corp));
    }
}
