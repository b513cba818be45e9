//! A gateway is lost and comes back while packets pass through it: how soon another carries, and what that costs.
//!
//! ```text
//! nmserver ==== underlay ==== a (a member), gw-1, gw-2 (gateways)
//!
//! gw-1, gw-2 ---- lan ---- inner (a host in no mesh)
//! ```
//!
//! Nodes check in each second. What is sent to 192.168.50.0/24 gets the gateway's address as its source, what is
//! sent to fd50::/64 keeps its own: there inner answers by the gateway that brought the last packet of the
//! connection, as a router of its network would have to.

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use end_to_end::gateways::{agents, carrier, joined, network, seen_by};
use end_to_end::lan::Lan;
use end_to_end::{Mesh, eventually, filter, in_runtime, kill_device, link, patience, run_all, text_of};
use nmplan::lab::{Agent, Flow, Host, Pattern, Service, Timeline, enter_test};
use tokio::time::Instant;

/// How often nodes check in.
const INTERVAL: Duration = Duration::from_secs(1);
/// What inner answers at.
const PORT: u16 = 5_000;
/// Within this time what is sent arrives, or is lost.
const LATE: Duration = Duration::from_secs(2);

/// How a gateway is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    PowerOff,
    AgentKilled,
    CableOut,
}

impl Fault {
    async fn begin(self, gateway: &mut Agent, lan: &Lan) {
        match self {
            Self::PowerOff => {
                // First, so that nobody hears of the end of its connections.
                gateway.host().link_down().await.expect("it is unplugged");
                lan.plug(0, false).await;
                gateway.kill_daemon().await.expect("it is killed");
                kill_device(gateway.host(), "nm-corp");
            }
            Self::AgentKilled => gateway.kill_daemon().await.expect("it is killed"),
            Self::CableOut => lan.plug(0, false).await,
        }
    }

    async fn end(self, gateway: &mut Agent, lan: &Lan) {
        if self == Self::PowerOff {
            gateway.host().link_up().await.expect("it is plugged in");
        }
        lan.plug(0, true).await;
        gateway.start_daemon(&[]).expect("the agent starts");
    }

    /// Within this time the other gateway carries.
    fn limit(self) -> Duration {
        match self {
            Self::PowerOff | Self::AgentKilled => INTERVAL * 3 + Duration::from_secs(2),
            // It says so at once.
            Self::CableOut => INTERVAL * 3,
        }
    }

    /// Whether the gateway goes on forwarding until the other one carries.
    fn forwards_on(self) -> bool {
        self == Self::AgentKilled
    }

    /// What else is declared: in one of the cases, rules by which all that passes is judged.
    fn rules(self) -> &'static str {
        match self {
            Self::PowerOff | Self::CableOut => "",
            Self::AgentKilled => {
                "acl \"deny\"
                 allow \"members\" from=\"*\" to=\"*\"
                 allow \"lan\" from=\"a\" { to \"192.168.50.0/24\" \"fd50::/64\" }"
            }
        }
    }

    /// Why the other one carries, as history shows it.
    fn cause(self) -> &'static str {
        match self {
            Self::PowerOff | Self::AgentKilled => "gw-1 is silent",
            Self::CableOut => "gw-1 reports that it cannot forward (egress)",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "power off",
            Self::AgentKilled => "its agent is killed",
            Self::CableOut => "its LAN is unplugged",
        })
    }
}

/// Echo requests and a TCP connection from a to inner, at one address.
struct Traffic<'a> {
    a: &'a Host,
    to: IpAddr,
    pings: Flow,
    tcp: Flow,
}

impl<'a> Traffic<'a> {
    async fn start(a: &'a Host, to: IpAddr) -> Self {
        let flow = async |service| {
            a.flow(to, service, Pattern::Asked, LATE * patience()).await.expect("a message arrives")
        };
        Self { a, to, pings: flow(Service::Icmp).await, tcp: flow(Service::Tcp(PORT)).await }
    }

    fn timelines(&self) -> [(&'static str, Timeline); 2] {
        [("pings", self.pings.timeline()), ("TCP", self.tcp.timeline())]
    }

    /// Waits until messages arrive that were sent now or later.
    async fn goes_on(&self, limit: Duration) {
        let now = Instant::now();
        let what = format!("what {} sends to {} arrives", self.a.name(), self.to);
        eventually(&what, limit, async || {
            self.timelines().iter().all(|(_, it)| it.last_heard() > Some(now) || it.ended().is_some())
        })
        .await;
    }

    /// Prints what was lost since then; returns the longest time without an answer to a ping.
    fn report(&self, what: &str, since: Instant) -> Duration {
        let until = Instant::now();
        for (kind, timeline) in self.timelines() {
            let lost = timeline.lost_between(since, until - LATE, LATE);
            let gap = timeline.longest_gap(since, until);
            eprintln!("{what}: {kind} to {}: {lost} lost or late, none for {gap:?}: {timeline}", self.to);
        }
        self.pings.timeline().longest_gap(since, until)
    }
}

/// Has a host answer by the way that the last packet of a connection came by, which one of these hosts brought.
async fn answers_by_who_brought_it(lan: &Lan, hosts: [&Host; 2]) {
    let mut marks = String::new();
    for (mark, host) in (1..).zip(hosts) {
        let brought_by = link(host, "lan")["address"].as_str().expect("it has one").to_owned();
        marks += &format!("iifname lan ether saddr {brought_by} ct mark set {mark}\n");
        let [_, gateway] = lan.addresses(mark);
        run_all(
            &lan.inner,
            &[
                &format!("ip -6 route add default via {gateway} dev lan table {mark}"),
                &format!("ip -6 rule add fwmark {mark} lookup {mark}"),
            ],
        )
        .await;
    }
    let table = format!(
        "table inet test {{
            chain brought {{ type filter hook prerouting priority mangle; {marks} }}
            chain answers {{ type route hook output priority mangle; meta mark set ct mark; }}
        }}"
    );
    filter::nft(&lan.inner, &["-f", "-"], &table);
}

/// Why the server has moved what is carried, oldest first.
async fn failovers(mesh: &Mesh) -> Vec<String> {
    let output = mesh.nmplan(&["history", "--json"]).await;
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    let all: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("a document");
    let failovers = all.iter().rev().filter(|entry| entry["action"] == "failover");
    failovers.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Who carries each egress, as the server says.
async fn carriers(mesh: &Mesh) -> Vec<String> {
    let output = mesh.nmplan(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
    let egress = status["egress"].as_array().expect("there are some");
    egress.iter().map(|it| it["carrier"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn is_lost_and_comes_back(fault: Fault) {
    let mesh = Mesh::start().await;
    let agents = agents(&mesh, ["a", "gw-1", "gw-2"]).await;
    let gateways = [agents[1].host(), agents[2].host()];
    let lan = Lan::new(&mesh.underlay, "inner", 50, &gateways).await;
    answers_by_who_brought_it(&lan, gateways).await;
    let via = "via \"gw-1\" \"gw-2\"";
    let egress = format!(
        "egress \"v4\" nat=#true {{ {via}; ranges \"192.168.50.0/24\" }}
         egress \"v6\" nat=#false {{ {via}; ranges \"fd50::/64\" }}
         {}",
        fault.rules()
    );
    let mut agents = joined(&mesh, agents, &network(&["a", "gw-1", "gw-2"], &egress)).await;
    let [a, gw, _] = &mut agents[..] else { unreachable!("there are three") };
    let (a, inner) = (&*a, lan.addresses(254));
    let comes_to_carry = async |gateway: &str, limit: Duration| {
        let what = format!("{gateway} carries both ranges");
        eventually(&what, limit, async || {
            let ranges = ["192.168.50.0/24", "fd50::/64"].map(|range| carrier(a, range));
            futures_util::future::join_all(ranges).await.iter().all(|it| it.as_deref() == Some(gateway))
        })
        .await
    };
    comes_to_carry("gw-1", Duration::from_secs(10)).await;
    let _listeners = lan.inner.listen(&inner, [Service::Tcp(PORT)]).expect("the port is free");
    let mut rewritten = Traffic::start(a.host(), inner[0]).await;
    let plain = Traffic::start(a.host(), inner[1]).await;
    let goes_on = async |traffic: [&Traffic<'_>; 2]| {
        for traffic in traffic {
            // A TCP connection waits twice as long each time before it sends again.
            traffic.goes_on(fault.limit() * 3).await;
        }
        tokio::time::sleep(LATE).await;
    };
    goes_on([&rewritten, &plain]).await;
    assert_eq!(failovers(&mesh).await, [""; 0], "nothing moves without a cause");
    let passes = |by: usize| {
        seen_by(&lan.inner, inner[0], a.host()) == Some(lan.addresses(u8::try_from(by).expect("few"))[0])
    };
    assert!(passes(1));

    let struck = Instant::now();
    fault.begin(gw, &lan).await;
    let took = comes_to_carry("gw-2", fault.limit()).await;
    eprintln!("{fault}: gw-2 carries after {took:?}");
    goes_on([&rewritten, &plain]).await;
    assert!(passes(2));
    assert_eq!(carriers(&mesh).await, ["gw-2"; 2]);
    let limit = if fault.forwards_on() { INTERVAL } else { fault.limit() } * patience();
    for traffic in [&rewritten, &plain] {
        let gap = traffic.report(&fault.to_string(), struck);
        assert!(gap <= limit, "no packet passed for {gap:?}");
    }
    // What another gateway rewrites is another connection: its far side says so at once.
    assert!(rewritten.tcp.timeline().ended().is_some());
    rewritten = Traffic::start(a.host(), inner[0]).await;

    let mended = Instant::now();
    fault.end(gw, &lan).await;
    let took = comes_to_carry("gw-1", Duration::from_secs(15)).await;
    eprintln!("{fault}, and it is back: gw-1 carries after {took:?}");
    assert!(mended.elapsed() >= INTERVAL * 3, "it has to call for three intervals first");
    goes_on([&rewritten, &plain]).await;
    assert!(passes(1));
    assert_eq!(carriers(&mesh).await, ["gw-1"; 2]);
    for traffic in [&rewritten, &plain] {
        let gap = traffic.report(&format!("{fault}, and it is back"), mended);
        assert!(gap <= INTERVAL * patience(), "no packet passed for {gap:?}");
    }
    assert_eq!(plain.tcp.timeline().ended(), None, "the connection is the same");
    let both = |carrier: &str| format!("{carrier} carries corp/egress/v4, corp/egress/v6");
    let expected =
        [format!("{}: {}", fault.cause(), both("gw-2")), format!("gw-1 is back: {}", both("gw-1"))];
    assert_eq!(failovers(&mesh).await, expected, "one revision each");
}

#[test]
fn a_gateway_that_is_off_is_replaced_and_carries_again() {
    if enter_test("a_gateway_that_is_off_is_replaced_and_carries_again") {
        in_runtime(is_lost_and_comes_back(Fault::PowerOff));
    }
}

#[test]
fn a_gateway_whose_agent_is_killed_forwards_on_until_it_is_replaced() {
    if enter_test("a_gateway_whose_agent_is_killed_forwards_on_until_it_is_replaced") {
        in_runtime(is_lost_and_comes_back(Fault::AgentKilled));
    }
}

#[test]
fn a_gateway_whose_lan_is_unplugged_is_replaced_at_once() {
    if enter_test("a_gateway_whose_lan_is_unplugged_is_replaced_at_once") {
        in_runtime(is_lost_and_comes_back(Fault::CableOut));
    }
}
