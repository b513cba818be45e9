//! A network with gateways, a relay and a hub, in virtual time.

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
const LAB: &str = r#"{"id":"corp/egress/lab","body":{"via":["gw-a","gw-b"],"ranges":["192.168.20.0/24"]}}"#;
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
