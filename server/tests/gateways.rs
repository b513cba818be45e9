//! Who carries what for others, as time passes: a real server, agents without devices, and a clock that the test
//! moves.
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nmserver::core::authorize::Role;
use proto::wire;
use schema::api::{CarrierState, LogEntry, StatusDocument};
use schema::inventory::NodeProblem;
use schema::scalars::{Name, WireGuardKey};
use support::{Running, folder, token_beside};
use test_agent::Agent;
use tokio::time::Instant;

/// How often the nodes check in.
const INTERVAL: Duration = Duration::from_secs(2);
/// What a failover takes at most, after the last call of a node.
const FAILOVER: Duration = Duration::from_secs(2 * 3 + 2);
/// How much virtual time passes at each look.
const STEP: Duration = Duration::from_millis(20);
/// How much real time the threads have in it.
const MOMENT: Duration = Duration::from_millis(1);
/// The longest that a test waits, in virtual time.
const PATIENCE: Duration = Duration::from_secs(60);

const NODES: [&str; 4] = ["gw-a", "gw-b", "far", "near"];

/// The network with these objects besides its nodes.
fn corp(objects: &str) -> String {
    format!(
        r#"
        network "corp" {{
            ipv4 "10.0.0.0/24"
            check-in "2s"
            node "gw-a"
            node "gw-b"
            node "far"
            node "near"
            access-key "k" {{ for "gw-a" "gw-b" "far" "near" }}
            {objects}
        }}
        "#
    )
}

const OFFICE: &str = r#"egress "office" { via "gw-a" "gw-b"; ranges "192.168.10.0/24" }"#;
const EXIT: &str = r#"egress "exit" { via "gw-a" "gw-b"; ranges "0.0.0.0/0" }"#;
const RELAY: &str = r#"relay "hills" { via "gw-a" "gw-b"; for "far" }"#;

/// A server and agents. Time stands still but for [`Mesh::live`]: a runtime that believes itself idle would
/// jump to the next timer while a call or a commit is under way, so a task on a thread holds the clock.
struct Mesh {
    server: Running,
    agents: BTreeMap<&'static str, Agent>,
    /// When each agent calls next.
    due: BTreeMap<&'static str, Instant>,
}

/// Holds the clock until the value is dropped.
fn hold_clock() -> std::sync::mpsc::Sender<()> {
    let (clock, held) = std::sync::mpsc::channel::<()>();
    drop(tokio::task::spawn_blocking(move || held.recv()));
    clock
}

/// Lets a moment pass.
async fn pass() {
    tokio::task::spawn_blocking(|| std::thread::sleep(MOMENT)).await.unwrap();
    tokio::time::advance(STEP).await;
}

impl Mesh {
    /// A server that declares this, and its nodes, which have joined.
    async fn on(server: Running, objects: &str) -> Self {
        server.declare(&corp(objects)).await;
        let mut mesh = Self { server, agents: BTreeMap::new(), due: BTreeMap::new() };
        for (number, name) in (1..).zip(NODES) {
            let agent = mesh.server.joined(name, number, "k").await;
            mesh.agents.insert(name, agent);
        }
        mesh
    }

    /// The same server after it was down for long.
    async fn restarted(self, data: &std::path::Path) -> Self {
        let Self { server, mut agents, due } = self;
        let end = tokio::spawn(server.end());
        while !end.is_finished() {
            pass().await;
        }
        tokio::time::advance(INTERVAL * 1_000).await;
        let server = Running::on_disk(data).await;
        for (number, name) in (1..).zip(NODES) {
            agents.get_mut(name).unwrap().client = server.agent(name, number).client;
        }
        Self { server, agents, due }
    }

    /// Lets time pass, in which these nodes check in, until a condition holds; how long that took. Fails if it
    /// takes too long.
    async fn live_until(
        &mut self,
        calling: &[&'static str],
        mut holds: impl AsyncFnMut(&Running) -> bool,
    ) -> Duration {
        let start = Instant::now();
        while !holds(&self.server).await {
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {:?}", self.server.status().await);
            self.step(calling).await;
        }
        start.elapsed()
    }

    /// Lets so much time pass, in which these nodes check in.
    async fn live(&mut self, calling: &[&'static str], span: Duration) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            self.step(calling).await;
        }
    }

    async fn step(&mut self, calling: &[&'static str]) {
        let now = Instant::now();
        for name in calling.iter().copied() {
            if self.due.get(name).is_none_or(|due| *due <= now) {
                self.due.insert(name, now + INTERVAL);
                self.agents.get_mut(name).unwrap().check_in(None).await.unwrap();
            }
        }
        pass().await;
    }

    /// A node reports problems.
    async fn report(&mut self, node: &str, problems: &[(&str, &str)]) {
        let agent = self.agents.get_mut(node).unwrap();
        let problem = |(code, egress): &(&str, &str)| wire::Problem {
            code: (*code).into(),
            message: "a message".into(),
            egress: (*egress).into(),
        };
        agent.facts.problems = problems.iter().map(problem).collect();
        let facts = agent.facts.clone();
        agent.check_in(Some(facts)).await.unwrap();
    }

    /// The node through which another reaches a range, by the View that it has.
    fn route(&self, node: &str, range: &str) -> Option<String> {
        let view = self.agents[node].view.as_ref().unwrap();
        view.routes
            .get(&range.parse::<ipnet::IpNet>().unwrap())
            .unwrap()
            .via
            .as_ref()
            .map(ToString::to_string)
    }

    /// What the server has done by itself, oldest first.
    async fn history(&self) -> Vec<String> {
        let log: Vec<LogEntry> = self.server.get("/api/v1/revisions?limit=1000").await.json().await.unwrap();
        let own = log.into_iter().filter(|entry| entry.actor == "nmserver");
        own.map(|entry| format!("{}: {}", entry.action, entry.provenance.unwrap().message.unwrap())).collect()
    }
}

fn carrier(states: &[CarrierState], id: &str) -> Option<String> {
    let state = states.iter().find(|state| state.id.to_string() == id).expect("it is declared");
    state.carrier.as_ref().map(ToString::to_string)
}

async fn carries(server: &Running, id: &str, expected: Option<&str>) -> bool {
    let StatusDocument { egress, relays, .. } = server.status().await;
    carrier(&[egress, relays].concat(), id).as_deref() == expected
}

fn all_but(node: &str) -> Vec<&'static str> {
    NODES.into_iter().filter(|name| *name != node).collect()
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_falls_silent_is_replaced_and_is_back_after_three_intervals() {
    let _clock = hold_clock();
    let (server, _) = Running::in_memory().await;
    let mut mesh = Mesh::on(server, &[OFFICE, RELAY].join("\n")).await;
    mesh.live(&NODES, INTERVAL * 10).await;
    assert_eq!(mesh.history().await, Vec::<String>::new());
    assert!(carries(&mesh.server, "corp/egress/office", Some("gw-a")).await);
    mesh.report("gw-a", &[]).await;
    let moved = async |server: &Running| carries(server, "corp/egress/office", Some("gw-b")).await;
    let took = mesh.live_until(&all_but("gw-a"), moved).await;
    assert!(took > INTERVAL * 3 && took <= FAILOVER, "{took:?}");
    assert!(carries(&mesh.server, "corp/relay/hills", Some("gw-b")).await);
    let states = mesh.server.status().await.egress;
    assert_eq!(states[0].candidates, ["gw-a", "gw-b"].map(|name| name.parse::<Name>().unwrap()));
    assert_eq!(states[0].away, ["gw-a".parse::<Name>().unwrap()]);
    mesh.live(&all_but("gw-a"), INTERVAL * 10).await;
    assert_eq!(mesh.route("near", "192.168.10.0/24").as_deref(), Some("gw-b"), "it is sent that");
    let back = async |server: &Running| carries(server, "corp/egress/office", Some("gw-a")).await;
    let took = mesh.live_until(&NODES, back).await;
    assert!(took >= INTERVAL * 3 && took <= FAILOVER, "{took:?}");
    mesh.live(&NODES, INTERVAL * 10).await;
    assert_eq!(mesh.route("near", "192.168.10.0/24").as_deref(), Some("gw-a"), "it is sent that too");
    assert_eq!(
        mesh.history().await,
        [
            "failover: gw-a is silent: gw-b carries corp/egress/office, corp/relay/hills",
            "failover: gw-a is back: gw-a carries corp/egress/office, corp/relay/hills"
        ],
        "one revision each"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_gateway_reports_moves_what_it_is_about_at_once() {
    let _clock = hold_clock();
    let (server, _) = Running::in_memory().await;
    let mut mesh = Mesh::on(server, &[OFFICE, EXIT].join("\n")).await;
    mesh.live(&NODES, INTERVAL).await;
    mesh.report("gw-a", &[(NodeProblem::EGRESS, "office")]).await;
    let moved = async |server: &Running| carries(server, "corp/egress/office", Some("gw-b")).await;
    let took = mesh.live_until(&NODES, moved).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert!(carries(&mesh.server, "corp/egress/exit", Some("gw-a")).await);
    mesh.report("gw-a", &[]).await;
    let back = async |server: &Running| carries(server, "corp/egress/office", Some("gw-a")).await;
    let took = mesh.live_until(&NODES, back).await;
    assert!(took >= INTERVAL * 3 && took <= FAILOVER, "{took:?}");
    mesh.report("gw-a", &[(NodeProblem::FORWARDING, "")]).await;
    let moved = async |server: &Running| {
        carries(server, "corp/egress/office", Some("gw-b")).await
            && carries(server, "corp/egress/exit", Some("gw-b")).await
    };
    let took = mesh.live_until(&NODES, moved).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert_eq!(
        mesh.history().await,
        [
            "failover: gw-a reports that it cannot forward (egress): gw-b carries corp/egress/office",
            "failover: gw-a is back: gw-a carries corp/egress/office",
            "failover: gw-a reports that it cannot forward (forwarding): gw-b carries corp/egress/exit, corp/egress/office"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_who_carries_and_moves_nothing_for_three_intervals() {
    let _clock = hold_clock();
    let data = folder();
    let mut mesh = Mesh::on(Running::on_disk(data.path()).await, EXIT).await;
    mesh.live(&NODES, INTERVAL).await;
    let by = |node: &'static str| {
        async move |server: &Running| carries(server, "corp/egress/exit", Some(node)).await
    };
    mesh.live_until(&all_but("gw-a"), by("gw-b")).await;
    let mut mesh = mesh.restarted(data.path()).await;
    assert!(carries(&mesh.server, "corp/egress/exit", Some("gw-b")).await);
    assert!(mesh.server.service.state().world.inventory.carried().count() == 1, "it has been carried");
    mesh.live(&["far", "near"], INTERVAL * 3).await;
    assert_eq!(mesh.history().await.len(), 1, "gw-b has not called yet, but has three intervals");
    let nobody = async |server: &Running| carries(server, "corp/egress/exit", None).await;
    let took = mesh.live_until(&["far", "near"], nobody).await;
    assert!(took <= Duration::from_secs(2), "{took:?}");
    let took = mesh.live_until(&all_but("gw-b"), by("gw-a")).await;
    assert!(
        took <= Duration::from_secs(1),
        "what nobody carries is carried by the first that returns: {took:?}"
    );
    assert_eq!(
        mesh.history().await,
        [
            "failover: gw-a is silent: gw-b carries corp/egress/exit",
            "failover: gw-b is silent: nobody else carries corp/egress/exit",
            "failover: gw-a is back: gw-a carries corp/egress/exit"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_nobody_reaches_moves_nothing_and_a_gateway_that_is_declared_while_silent_carries_nothing()
 {
    let _clock = hold_clock();
    let (server, _) = Running::in_memory().await;
    let mut mesh = Mesh::on(server, OFFICE).await;
    mesh.live(&NODES, INTERVAL * 3).await;
    mesh.live(&[], INTERVAL * 20).await;
    mesh.live(&all_but("gw-a"), INTERVAL * 2).await;
    mesh.live(&NODES, INTERVAL * 5).await;
    assert_eq!(mesh.history().await, Vec::<String>::new());
    mesh.live(&["far", "near", "gw-b"], INTERVAL).await;
    mesh.server.declare(&corp("")).await;
    mesh.live(&["far", "near", "gw-b"], INTERVAL * 5).await;
    assert_eq!(mesh.history().await, Vec::<String>::new(), "it carries nothing");
    mesh.server.declare(&corp(OFFICE)).await;
    let moved = async |server: &Running| carries(server, "corp/egress/office", Some("gw-b")).await;
    let took = mesh.live_until(&["far", "near", "gw-b"], moved).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    mesh.server.declare(&corp("")).await;
    assert_eq!(
        mesh.server.service.state().world.inventory.away().count(),
        0,
        "it is known of gateways alone"
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_stored_when_there_is_room_again() {
    let _clock = hold_clock();
    let (server, levers) = Running::in_memory().await;
    let mut mesh = Mesh::on(server, OFFICE).await;
    mesh.live(&NODES, INTERVAL).await;
    levers.full.store(true, Ordering::SeqCst);
    mesh.live(&all_but("gw-a"), INTERVAL * 6).await;
    assert!(
        carries(&mesh.server, "corp/egress/office", Some("gw-a")).await,
        "nothing that is not stored is so"
    );
    levers.full.store(false, Ordering::SeqCst);
    let moved = async |server: &Running| carries(server, "corp/egress/office", Some("gw-b")).await;
    let took = mesh.live_until(&all_but("gw-a"), moved).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert_eq!(mesh.history().await.len(), 1);
}

/// Clients, each with how long after it is created it expires.
fn clients(clients: &[(&str, &str)]) -> String {
    let client = |(number, (name, expires)): (u8, &(&str, &str))| {
        let key = WireGuardKey([number; 32]);
        format!(r#"external-client "{name}" via="front" public-key="{key}" expires="{expires}""#)
    };
    let clients: Vec<_> = (1..).zip(clients).map(client).collect();
    format!("ingress \"front\" via=\"gw-a\"\n{}", clients.join("\n"))
}

/// How many clients have addresses, how many have expired, and how many addresses are in quarantine.
fn let_in(server: &Running) -> (usize, usize, usize) {
    let state = server.service.state();
    let inventory = &state.world.inventory;
    let clients = || inventory.clients().map(|(_, status)| status);
    let addressed = clients().filter(|status| !status.addresses.is_empty()).count();
    (addressed, clients().filter(|status| status.expired).count(), inventory.quarantined().count())
}

#[tokio::test(start_paused = true)]
async fn external_clients_are_cut_off_when_they_expire_all_at_once_and_also_while_the_server_is_down() {
    let _clock = hold_clock();
    let data = folder();
    let mut mesh = Mesh::on(Running::on_disk(data.path()).await, "").await;
    mesh.server.declare(&corp(&clients(&[("alice", "30d"), ("bob", "30d")]))).await;
    mesh.live(&NODES, INTERVAL).await;
    assert_eq!((let_in(&mesh.server), mesh.history().await), ((2, 0, 0), Vec::new()));
    // The clock of clients is that of the host.
    mesh.server.declare(&corp(&clients(&[("alice", "1s"), ("bob", "1s")]))).await;
    mesh.live_until(&NODES, async |server: &Running| let_in(server) == (0, 2, 2)).await;
    assert_eq!(mesh.history().await, ["expire: alice, bob have expired"], "one revision");
    mesh.server.declare(&corp(&clients(&[("alice", "1s"), ("bob", "1s"), ("carol", "2s")]))).await;
    let (let_in_before, ..) = let_in(&mesh.server);
    let mut mesh = mesh.restarted(data.path()).await;
    mesh.live_until(&NODES, async |server: &Running| let_in(server) == (0, 3, 3)).await;
    assert!(let_in_before > 0, "carol has just been created");
    assert_eq!(mesh.history().await.last().unwrap(), "expire: carol has expired");
    mesh.live(&NODES, INTERVAL * 5).await;
    assert_eq!(mesh.history().await.len(), 2, "and that is all");
}

#[tokio::test(start_paused = true)]
async fn who_carries_what_is_told_to_those_alone_who_may_know_of_the_network() {
    let _clock = hold_clock();
    let data = folder();
    let server = Running::on_disk(data.path()).await;
    let other = token_beside(data.path(), Role::Viewer, &["lab"], &[]);
    let mut mesh = Mesh::on(server, OFFICE).await;
    mesh.live(&NODES, INTERVAL).await;
    let moved = async |server: &Running| carries(server, "corp/egress/office", Some("gw-b")).await;
    mesh.live_until(&all_but("gw-a"), moved).await;
    for path in ["/api/v1/status", "/api/v1/revisions"] {
        let call = mesh.server.call(reqwest::Method::GET, path).bearer_auth(&other);
        let text = call.send().await.unwrap().text().await.unwrap();
        assert!(!text.contains("gw-") && !text.contains("office"), "{text}");
    }
}
