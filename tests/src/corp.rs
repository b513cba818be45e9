//! A network with access rules, `corp`, whose nodes have services that answer, and what packets must show of it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use nmplan::lab::{Agent, Flow, Host, Listeners, Outcome, Pattern, Probe, Service, Timeline};
use tokio::time::Instant;

use crate::matrix::{LIMIT, Node, Trial, disagreements, matrix};
use crate::{Mesh, addresses, eventually, patience};

/// The interface of the network on its nodes.
pub const INTERFACE: &str = "nm-corp";

/// What answers on each node.
pub const SERVICES: [Service; 9] = [
    Service::Tcp(80),
    Service::Tcp(81),
    Service::Tcp(5000),
    Service::Tcp(5001),
    Service::Tcp(5002),
    Service::Tcp(8080),
    Service::Udp(53),
    Service::Udp(54),
    Service::Icmp,
];

/// Within this time of a change a packet passes, or none does any more. It is a second where nothing else runs;
/// tests run beside each other, and a probe takes its time as well.
pub const APPLIED: Duration = Duration::from_secs(3);

/// Nodes of the network, up.
pub struct Corp {
    /// The server.
    pub mesh: Mesh,
    token: String,
    nodes: BTreeMap<&'static str, Member>,
}

struct Member {
    agent: Agent,
    listeners: Listeners,
}

impl Corp {
    /// Brings up nodes in a network with these fields, rules and other objects. In the order of their names,
    /// in which they are to be given, they have the addresses 10.40.0.11 and fd40:40::11, 10.40.0.12 and
    /// fd40:40::12, and so on.
    pub async fn start(names: &[&'static str], body: &str) -> Self {
        Self::start_with(names, body, &[]).await
    }

    /// The same, with agents that have these environment variables.
    pub async fn start_with(names: &[&'static str], body: &str, variables: &[(&str, &str)]) -> Self {
        assert!(names.is_sorted(), "names are in order");
        let mesh = Mesh::start().await;
        let mut tokens = mesh.apply(&text(names, body)).await;
        let token = tokens.remove("corp/access-key/named").expect("it was made");
        let mut corp = Self { mesh, token, nodes: BTreeMap::new() };
        for name in names {
            let mut agent = corp.mesh.agent(name).await;
            agent.join(&corp.token, &[]).await.expect("it joins");
            agent.start_daemon(variables).expect("the agent starts");
            let everywhere = ["0.0.0.0", "::"].map(|any| any.parse().expect("an address"));
            let listeners = agent.host().listen(&everywhere, SERVICES).expect("the ports are free");
            corp.nodes.insert(name, Member { agent, listeners });
        }
        for Member { agent, .. } in corp.nodes.values() {
            eventually("it has its addresses", Duration::from_secs(20), async || {
                addresses(agent, "corp").await.len() == 2
            })
            .await;
        }
        corp
    }

    /// Declares other fields, rules and objects; returns when the server has applied them.
    pub async fn declare(&self, body: &str) -> Instant {
        let names: Vec<_> = self.nodes.keys().copied().collect();
        self.mesh.apply(&text(&names, body)).await;
        Instant::now()
    }

    /// A node's agent.
    pub fn agent(&self, node: &str) -> &Agent {
        &self.nodes[node].agent
    }

    /// A node's agent, to change it.
    pub fn agent_mut(&mut self, node: &str) -> &mut Agent {
        &mut self.nodes.get_mut(node).expect("there is such a node").agent
    }

    /// A node's host.
    pub fn host(&self, node: &str) -> &Host {
        self.nodes[node].agent.host()
    }

    /// Lets a node join again that has left.
    pub async fn join(&self, node: &str) {
        self.agent(node).join(&self.token, &[]).await.expect("it joins");
    }

    /// What answers on a node.
    pub fn listeners(&self, node: &str) -> &Listeners {
        &self.nodes[node].listeners
    }

    /// A node's addresses: IPv4, IPv6.
    pub fn addresses(&self, node: &str) -> [IpAddr; 2] {
        address(self.nodes.keys().position(|name| *name == node).expect("there is such a node"))
    }

    /// Opens a service of one node from another at both its addresses.
    pub async fn probe(&self, from: &str, to: &str, service: Service) -> [Outcome; 2] {
        let probes = self.addresses(to).map(|to| Probe { to, service });
        let outcomes = self.host(from).probe_all(&probes, LIMIT * patience()).await.expect("sockets");
        [outcomes[0], outcomes[1]]
    }

    /// Whether a service of one node answers another at both its addresses.
    pub async fn opens(&self, from: &str, to: &str, service: Service) -> bool {
        self.probe(from, to, service).await.iter().all(|outcome| outcome.agrees(true))
    }

    /// Waits until packets show that each node may open at each other what is said here, and nothing else.
    ///
    /// # Panics
    ///
    /// When something that is said is not so within 20 s, or when anything else passes then.
    pub async fn assert_allowed(&self, is_allowed: impl Fn(&str, &str, Service) -> bool) {
        let is_allowed = |from: &str, to: &str, service| Some(is_allowed(from, to, service));
        let disagreements = disagreements(&self.reached(), &SERVICES, is_allowed).await;
        assert!(disagreements.is_empty(), "\n{disagreements}");
    }

    /// Asserts that nothing passes but what is said here, whether or not that passes.
    ///
    /// # Panics
    ///
    /// When anything else does; `when` says in which state.
    pub async fn assert_nothing_else(&self, when: &str, is_allowed: impl Fn(&str, &str, Service) -> bool) {
        for Trial { from, to, probe, outcome } in matrix(&self.reached(), &SERVICES).await {
            let closed = is_allowed(from, to, probe.service) || outcome.agrees(false);
            assert!(closed, "{when}: {from} must not reach {to} by {probe:?}: {outcome:?}");
        }
    }

    /// The nodes, as packets reach them.
    fn reached(&self) -> Vec<Node<'_>> {
        let node = |name: &&'static str| Node {
            name,
            host: self.host(name),
            addresses: self.addresses(name).to_vec(),
        };
        self.nodes.keys().map(node).collect()
    }

    /// Starts traffic from one node to services of another, at both its addresses.
    ///
    /// # Panics
    ///
    /// When it does not begin within 20 s.
    pub async fn flows(&self, from: &str, to: &str, traffic: &[(Service, Pattern)]) -> Flows {
        self.flows_of(self.host(from), to, traffic).await
    }

    /// The same from any host, which may be in no mesh.
    pub async fn flows_of(&self, host: &Host, to: &str, traffic: &[(Service, Pattern)]) -> Flows {
        let from = host.name();
        let mut flows = Vec::new();
        for at in self.addresses(to) {
            for (service, pattern) in traffic {
                let what = format!("{from} to {to} at {at} by {service}, {pattern:?}");
                let deadline = Instant::now() + Duration::from_secs(20) * patience();
                let flow = loop {
                    match host.flow(at, *service, *pattern, LIMIT * patience()).await {
                        Ok(flow) => break flow,
                        Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
                    }
                };
                flows.push(Going { what, flow });
            }
        }
        Flows(flows)
    }
}

/// Traffic that goes on, each with what it is.
pub struct Flows(Vec<Going>);

struct Going {
    what: String,
    flow: Flow,
}

impl Flows {
    /// What has happened to each so far.
    pub fn timelines(&self) -> impl Iterator<Item = (&str, Timeline)> {
        self.0.iter().map(|going| (&*going.what, going.flow.timeline()))
    }

    /// Waits until messages have arrived for a while, so that all that follows is of a change.
    ///
    /// # Panics
    ///
    /// When one has sent none lately, for five seconds.
    pub async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(400) * patience()).await;
        let deadline = Instant::now() + Duration::from_secs(5) * patience();
        loop {
            let now = Instant::now();
            let lately = now - Duration::from_millis(300) * patience();
            let silent = self.timelines().find(|(_, timeline)| !timeline.heard_between(lately, now));
            let Some((what, timeline)) = silent else { return };
            assert!(now < deadline, "{what} {timeline}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asserts that each arrived until a change, and that nothing has since [`APPLIED`] after it; ask a second
    /// later at the earliest.
    ///
    /// # Panics
    ///
    /// When one did not, or has.
    pub fn assert_stopped(&self, change: Instant) {
        let limit = change + APPLIED * patience();
        assert!(Instant::now() >= limit + Duration::from_secs(1), "it is too early to know");
        for (what, timeline) in self.timelines() {
            let last = timeline.last_heard().expect("it had begun");
            assert!(last <= limit, "{what} arrived {:?} after the change: {timeline}", last - change);
        }
    }

    /// Asserts that every message that was sent in an interval of time arrived, within a second. What is lost
    /// shows with UDP and ICMP; TCP sends it again.
    ///
    /// # Panics
    ///
    /// When one did not.
    pub fn assert_lost_nothing(&self, from: Instant, until: Instant) {
        for (what, timeline) in self.timelines() {
            let lost = timeline.lost_between(from, until, Duration::from_secs(1) * patience());
            assert_eq!(lost, 0, "{what} {timeline}");
        }
    }
}

/// TCP, UDP and echo requests, asked and pushed.
pub const TRAFFIC: [(Service, Pattern); 5] = [
    (Service::Tcp(80), Pattern::Asked),
    (Service::Tcp(80), Pattern::Pushed),
    (Service::Udp(53), Pattern::Asked),
    (Service::Udp(53), Pattern::Pushed),
    (Service::Icmp, Pattern::Asked),
];

fn address(number: usize) -> [IpAddr; 2] {
    [format!("10.40.0.{}", 11 + number), format!("fd40:40::{}", 11 + number)]
        .map(|address| address.parse().expect("an address"))
}

fn text(names: &[&str], body: &str) -> String {
    let mut nodes = String::new();
    for (number, name) in names.iter().enumerate() {
        let [v4, v6] = address(number);
        let _ = writeln!(nodes, "node {name:?} ipv4=\"{v4}\" ipv6=\"{v6}\"");
    }
    let key: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    format!(
        "network \"corp\" {{
            ipv4 \"10.40.0.0/16\"; ipv6 \"fd40:40::/64\"; keepalive \"20s\"; check-in \"2s\"
            access-key \"named\" {{ for {} }}
            {nodes}
            {body}
        }}",
        key.join(" ")
    )
}
