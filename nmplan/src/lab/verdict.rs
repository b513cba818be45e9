//! What did packets show of the declared networks?
//!
//! Pure data, which [`super::judge`] gathers, [`super::report`] writes for people, and `nmplan lab --json` prints
//! ([`Verdict`]; its JSON Schema is published).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use schema::scalars::{Name, NetworkName};
use schema::snapshot::ResourceId;
use schemars::JsonSchema;
use serde::Serialize;

use super::matrix::Matrix;

/// What `nmplan lab --json` prints.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Verdict {
    /// The networks, by name, with everybody there who is declared.
    pub networks: Vec<NetworkVerdict>,
    /// What became of each step of `--scenario`, in order; absent without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenario: Option<Vec<StepVerdict>>,
}

/// What became of a step of the scenario.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct StepVerdict {
    /// The step in words: `corp/gw-1 is lost`.
    pub step: String,
    /// How many seconds passed until the server knew of it, and every node had what follows from it.
    pub seconds: f64,
    /// What follows from it for what nodes carry for others, in words; empty: nothing.
    pub follows: Vec<String>,
    /// The networks, by name.
    pub networks: Vec<NetworkVerdict>,
}

/// The result of one network.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NetworkVerdict {
    /// The network.
    pub name: NetworkName,
    /// Its nodes that are there, by name.
    pub nodes: Vec<NodeVerdict>,
    /// Its external clients, by name.
    pub clients: Vec<ClientVerdict>,
    /// The hosts behind its gateways.
    pub behind: Vec<BehindVerdict>,
    /// Groups of members and hosts, and what they reached at each other.
    pub matrix: Matrix,
    /// Every directed pair of nodes, clients and hosts behind gateways, without those that reach each other outside
    /// of the network.
    pub pairs: Vec<Pair>,
    /// The ways of some packets: of a pair from each two groups and for each way, and of those that tests name.
    pub ways: Vec<WayVerdict>,
    /// What packets showed of its tests, by name.
    pub tests: BTreeMap<Name, ProbesVerdict>,
    /// What they showed of services that neither a test names nor a pair was tried with.
    pub sample: ProbesVerdict,
    /// Services that were not tried, by node: another program of its host has the port.
    pub untried: BTreeMap<String, BTreeSet<String>>,
}

/// What probes showed.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct ProbesVerdict {
    /// The test; null: none names them.
    pub test: Option<Rule>,
    /// How many were tried: each service at each address.
    pub tried: usize,
    /// How many of them must not pass only because somebody is not there.
    pub lost: usize,
    /// Those that did not show what must be.
    pub failed: Vec<FailedProbe>,
}

/// A probe that did not show what must be.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FailedProbe {
    /// The member that opened the service, or the address of a host behind a gateway.
    pub from: String,
    /// The member whose service it is, or the address of such a host.
    pub to: String,
    /// The address that was tried.
    pub at: IpAddr,
    /// The service: `tcp 5432`, `udp 53`, `icmp`.
    pub service: String,
    /// Whether it may be opened.
    pub allowed: bool,
    /// What came of it.
    pub outcome: FailedOutcome,
    /// The nodes that would pass the packets on, in order; null: there is no way.
    pub via: Option<Vec<Name>>,
    /// The rules that let it be opened.
    pub rules: Vec<Rule>,
}

/// A rule or a test, and where it is declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Rule {
    /// Its resource id.
    pub id: ResourceId,
    /// The file; null: it is in none of the files.
    pub file: Option<String>,
    /// The line.
    pub line: Option<usize>,
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailedOutcome {
    /// The service answered.
    Answered,
    /// Something else did.
    Refused,
    /// Nothing came back.
    Nothing,
}

/// The result of one node.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NodeVerdict {
    /// Its name.
    pub name: String,
    /// Its addresses in the network.
    pub addresses: Vec<IpAddr>,
    /// Where its WireGuard device runs, as its agent reports it: `kernel` or `userspace`; absent: it has none.
    pub device: Option<String>,
    /// How many names resolve on it.
    pub names: usize,
    /// The names that should resolve on it and do not.
    pub missing: BTreeSet<String>,
}

/// An external client.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ClientVerdict {
    /// Its name.
    pub name: String,
    /// Its addresses in the network.
    pub addresses: Vec<IpAddr>,
}

/// A host behind gateways.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct BehindVerdict {
    /// The range that it is in.
    #[schemars(with = "String")]
    pub range: IpNet,
    /// Its addresses in that range.
    pub addresses: Vec<IpAddr>,
    /// The gateways, in order of preference.
    pub gateways: Vec<String>,
}

/// Whether one party reached another.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Pair {
    /// The sender: a member, or the address of a host behind gateways.
    pub from: String,
    /// Whom it tried to reach.
    pub to: String,
    /// Whether it may open anything there, and packets find a way.
    pub allowed: bool,
    /// Whether it may not only because somebody is not there who would carry the packets.
    pub lost: bool,
    /// What rules let it open: `tcp 5432`, `everything`, `nothing`.
    pub opens: String,
    /// What was tried: `icmp`, `tcp 5432`.
    pub service: String,
    /// The nodes that pass packets on, in order, by the declarations and by who is there; null: there is no way.
    pub via: Option<Vec<Name>>,
    /// What these nodes are there; empty: packets go directly, or there is no way.
    pub by: BTreeSet<Carrier>,
    /// How many milliseconds each address took to answer; null: it did not.
    pub answers: BTreeMap<IpAddr, Option<f64>>,
    /// The rules that let that be opened.
    pub rules: Vec<Rule>,
}

/// What passes packets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// The hub of the network.
    Hub,
    /// A relay.
    Relay,
    /// The node of an external client's ingress.
    Ingress,
    /// A gateway.
    Gateway,
}

/// The way that packets took.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct WayVerdict {
    /// The sender.
    pub from: String,
    /// Whom they were for.
    pub to: String,
    /// The address that they were sent to.
    pub at: IpAddr,
    /// The nodes that must pass them on, in order.
    pub expected: Vec<String>,
    /// Those that did, in order: each answered packets that may be passed on so often and no further.
    pub seen: Vec<String>,
    /// The test that names them; null: none does.
    pub test: Option<Rule>,
}

impl Pair {
    /// Whether there are addresses, and every one answered.
    pub fn is_reached(&self) -> bool {
        !self.answers.is_empty() && self.answers.values().all(Option::is_some)
    }

    /// Whether packets showed what the rules say: every address answered, or none did.
    pub fn agrees(&self) -> bool {
        if self.allowed { self.is_reached() } else { self.answers.values().all(Option::is_none) }
    }

    /// How many milliseconds the slowest address took to answer; absent: none did.
    pub fn slowest(&self) -> Option<f64> {
        self.answers.values().flatten().copied().reduce(f64::max)
    }
}

impl WayVerdict {
    /// Whether they took the way that they must.
    pub fn agrees(&self) -> bool {
        self.expected == self.seen
    }
}

impl Verdict {
    /// Whether everybody reached what he may and nothing else, by the ways that packets must take, and resolves
    /// every name; in every step.
    pub fn is_good(&self) -> bool {
        self.networks.iter().all(NetworkVerdict::is_good)
            && self.scenario.iter().flatten().all(StepVerdict::is_good)
    }

    /// Says of each rule and test where it is declared.
    pub fn locate(&mut self, place: impl Fn(&ResourceId) -> Option<(String, usize)>) {
        let steps = self.scenario.iter_mut().flatten().flat_map(|step| &mut step.networks);
        for network in self.networks.iter_mut().chain(steps) {
            for rule in network.rules_mut() {
                (rule.file, rule.line) = place(&rule.id).unzip();
            }
        }
    }
}

impl StepVerdict {
    /// Whether everything was as it must be meanwhile.
    pub fn is_good(&self) -> bool {
        self.networks.iter().all(NetworkVerdict::is_good)
    }
}

impl NetworkVerdict {
    /// Whether everything was as it must be.
    pub fn is_good(&self) -> bool {
        let probes = self.tests.values().chain([&self.sample]);
        self.nodes.iter().all(|node| node.missing.is_empty())
            && self.pairs.iter().all(Pair::agrees)
            && self.ways.iter().all(WayVerdict::agrees)
            && probes.into_iter().all(|probes| probes.failed.is_empty())
    }

    /// Whether a test was shown to hold.
    pub fn holds(&self, test: &Name) -> bool {
        let of_test = |way: &&WayVerdict| way.test.as_ref().is_some_and(|rule| rule.id.name == *test);
        self.tests.get(test).is_none_or(|probes| probes.failed.is_empty())
            && self.ways.iter().filter(of_test).all(WayVerdict::agrees)
    }

    fn rules_mut(&mut self) -> impl Iterator<Item = &mut Rule> {
        let probes = self.tests.values_mut().chain([&mut self.sample]);
        let of_probes = probes.flat_map(|probes| {
            let rules = probes.failed.iter_mut().flat_map(|probe| &mut probe.rules);
            rules.chain(&mut probes.test)
        });
        let of_pairs = self.pairs.iter_mut().flat_map(|pair| &mut pair.rules);
        of_probes.chain(of_pairs).chain(self.ways.iter_mut().filter_map(|way| way.test.as_mut()))
    }
}

impl Rule {
    /// A rule or a test of which it is not known where it is declared.
    pub fn of(id: ResourceId) -> Self {
        Self { id, file: None, line: None }
    }
}
