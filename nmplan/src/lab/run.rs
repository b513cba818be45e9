//! How is a declared network tested?
//!
//! [`run`] starts a server and every participant of the [`Roster`], and lets them join. [`Running::judge`]
//! sends packets between all nodes, including the server's own host if it is declared, until all have
//! answered that may, or time is up; then nothing else may. What may pass, declared tests and the compiler say
//! ([`super::claims`]). The result is a [`Verdict`]: data, which [`super::verdict`] renders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::secret::Secret;
use schema::kinds::{AccessKey, Node};
use schema::scalars::{Name, NetworkName};
use schema::snapshot::Snapshot;
use serde::Serialize;
use tokio::time::Instant;

use super::claims::{self, Claim, Claims};
use super::roster::{Participant, Roster};
use super::{Agent, Error, Host, Listeners, Outcome, Programs, Server, Service, Underlay, system};

/// How many nodes join at the same time.
const AT_ONCE: usize = 8;
/// How many pings or probes are under way at the same time.
const PINGS: usize = 128;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);
/// How long all of them together may take to reach each other.
const CONVERGE: Duration = Duration::from_secs(30);

/// A declared network, brought up.
pub struct Running {
    /// What is declared.
    pub declared: Snapshot,
    /// The control plane.
    pub server: Server,
    /// The agents, each with its participant.
    pub agents: Vec<(Participant, Agent)>,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The networks, by name.
    pub networks: Vec<NetworkVerdict>,
}

/// The result of one network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkVerdict {
    /// The network.
    pub name: NetworkName,
    /// Its nodes, by name.
    pub nodes: Vec<NodeVerdict>,
    /// Every directed pair of nodes.
    pub pairs: Vec<Pair>,
    /// What packets showed of its tests, by name.
    pub tests: BTreeMap<Name, ProbesVerdict>,
    /// What they showed of pairs and services that no test names.
    pub sample: ProbesVerdict,
    /// Services that were not tried, by node: another program of its host has the port.
    pub untried: BTreeMap<String, BTreeSet<String>>,
}

/// What probes showed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProbesVerdict {
    /// How many were tried: each service at each address.
    pub tried: usize,
    /// Those that did not show what must be.
    pub failed: Vec<FailedProbe>,
}

/// A probe that did not show what must be.
#[derive(Clone, Debug, Serialize)]
pub struct FailedProbe {
    /// The node that opened the service.
    pub from: String,
    /// The node whose service it is.
    pub to: String,
    /// The address that was tried.
    pub at: IpAddr,
    /// The service: `tcp 5432`, `udp 53`, `icmp`.
    pub service: String,
    /// Whether it may be opened.
    pub allowed: bool,
    /// What came of it.
    pub outcome: FailedOutcome,
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
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

/// Whether one node reached another.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// The sender.
    pub from: String,
    /// The node that was pinged.
    pub to: String,
    /// Whether the rules let the sender ping it.
    pub allowed: bool,
    /// How long each address took to answer, in milliseconds; absent: it did not.
    pub answers: BTreeMap<IpAddr, Option<f64>>,
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
}

impl Verdict {
    /// Whether every node reached what it may and nothing else, and resolves every name.
    pub fn is_good(&self) -> bool {
        self.networks.iter().all(NetworkVerdict::is_good)
    }
}

impl NetworkVerdict {
    fn is_good(&self) -> bool {
        let probes = self.tests.values().chain([&self.sample]);
        self.nodes.iter().all(|node| node.missing.is_empty())
            && self.pairs.iter().all(Pair::agrees)
            && probes.into_iter().all(|probes| probes.failed.is_empty())
    }
}

/// Brings a roster up; `progress` is called after each step.
///
/// # Errors
///
/// When the operating system, the server or an agent refuses something.
pub async fn run(roster: &Roster, progress: &mut dyn FnMut(&str)) -> Result<Running, Error> {
    let programs = Programs::find()?;
    let underlay = Underlay::new().await?;
    let server = Server::start(&underlay, &programs, &[]).await?;
    progress("the server is running");
    let tokens = apply(roster, &underlay, &programs, &server).await?;
    progress(&format!("applied: {} objects, {} keys", roster.declared.len(), tokens.len()));
    let start = Instant::now();
    let joins =
        roster.participants.iter().map(|participant| join(participant, &tokens, &underlay, &programs));
    let agents: Vec<_> = stream::iter(joins).buffered(AT_ONCE).try_collect().await?;
    progress(&format!("{} nodes joined in {:.1} s", agents.len(), start.elapsed().as_secs_f64()));
    Ok(Running { declared: roster.declared.clone(), server, agents })
}

/// Applies what is declared with nmplan; returns the tokens of the keys by their ids.
async fn apply(
    roster: &Roster,
    underlay: &Underlay,
    programs: &Programs,
    server: &Server,
) -> Result<BTreeMap<String, Secret<String>>, Error> {
    let [file, keys] = ["declared.kdl", "keys.json"].map(|name| underlay.directory().join(name));
    std::fs::write(&file, roster.text()).map_err(system("write what is declared"))?;
    let mut command = Command::new(&programs.nmplan);
    // The project and the variables of the caller do not apply to the lab.
    command.args(["apply", "--project", "lab", "-y", "-q", "-C"]).arg(underlay.directory());
    command.arg("-f").arg(&file).arg("--keys-to").arg(&keys);
    std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NMPLAN_")).for_each(
        |(name, _)| {
            command.env_remove(name);
        },
    );
    // Nor does a proxy: the lab's server is reached inside of it only.
    command.envs(server.environment()).env("NO_PROXY", "0.0.0.0/0,::/0,*").stdin(Stdio::null());
    let output = tokio::process::Command::from(command).output().await.map_err(system("run nmplan"))?;
    if !output.status.success() {
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed).trim().to_owned();
        return Err(Error::Refused(format!(
            "the declarations could not be applied; nmplan printed:\n{printed}\n"
        )));
    }
    match std::fs::read(&keys) {
        Ok(text) => serde_json::from_slice(Secret::new(text).expose())
            .map_err(|error| Error::Refused(format!("the file of tokens cannot be read: {error}"))),
        // No key was declared.
        Err(_) => Ok(BTreeMap::new()),
    }
}

async fn join(
    participant: &Participant,
    tokens: &BTreeMap<String, Secret<String>>,
    underlay: &Underlay,
    programs: &Programs,
) -> Result<(Participant, Agent), Error> {
    let failed =
        |why: &dyn std::fmt::Display| Error::Refused(format!("{} could not join: {why}", participant.host));
    let token = tokens.get(&participant.key.to_string()).ok_or_else(|| failed(&"its key has no token"))?;
    let mut agent = Agent::new(underlay, programs, &participant.host).await?;
    agent
        .join(token.expose(), &["--name", participant.name.as_str()])
        .await
        .map_err(|error| failed(&error))?;
    agent.start_daemon(&[])?;
    Ok((participant.clone(), agent))
}

impl Running {
    /// Sends packets from each node to every other of its network until all have answered, or time is up.
    ///
    /// # Errors
    ///
    /// When an agent does not answer.
    pub async fn judge(&self) -> Result<Verdict, Error> {
        let deadline = Instant::now() + CONVERGE;
        let mut networks = Vec::new();
        for (name, _) in self.declared.networks() {
            let members = self.members(name, deadline).await?;
            if !members.is_empty() {
                networks.push(self.judge_network(name, &members, deadline).await?);
            }
        }
        Ok(Verdict { networks })
    }

    /// The members of a network, by name.
    async fn members(&self, network: &NetworkName, deadline: Instant) -> Result<Vec<Member<'_>>, Error> {
        let families = self.declared.network(network).map_or(0, |network| network.ranges().count());
        let mut members = Vec::new();
        for (participant, agent) in
            self.agents.iter().filter(|(participant, _)| participant.network == *network)
        {
            let status = agent.status().await?;
            members.push(Member::of(&participant.name, agent.host(), &status, network));
        }
        if let Some(name) = Roster::own_node(&self.declared, network) {
            let status = self.own_status(network, families, deadline).await?;
            members.push(Member::of(name, self.server.host(), &status, network));
        }
        for Member { name, addresses, .. } in &members {
            if addresses.len() != families {
                let why =
                    format!("{name} has {} addresses in {network} instead of {families}", addresses.len());
                return Err(Error::Refused(why));
            }
        }
        members.sort_by(|one, other| one.name.cmp(other.name));
        Ok(members)
    }

    /// The status of the server's own host, once it has all addresses in a network or time is up.
    async fn own_status(
        &self,
        network: &NetworkName,
        families: usize,
        deadline: Instant,
    ) -> Result<serde_json::Value, Error> {
        loop {
            let status = self.server.status().await?;
            if addresses(&status, network).len() == families || Instant::now() > deadline {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn judge_network(
        &self,
        name: &NetworkName,
        members: &[Member<'_>],
        deadline: Instant,
    ) -> Result<NetworkVerdict, Error> {
        let claims = claims::claims(name, &self.declared, &self.as_judged(name, members));
        let pairs = ping_all(members, &claims, deadline).await?;
        let probed = Probed::new(members, &claims)?;
        let (tests, sample) = probed.judge(&claims, deadline).await?;
        let (mut nodes, none) = (Vec::new(), BTreeSet::new());
        for Member { name, host, addresses, device } in members {
            let expected = claims.names.get(*name).unwrap_or(&none);
            let missing = missing_until(host, expected, deadline).await?;
            let names = expected.len() - missing.len();
            let (name, addresses, device) = (name.to_string(), addresses.clone(), device.clone());
            nodes.push(NodeVerdict { name, addresses, device, names, missing });
        }
        let untried = probed.untried;
        Ok(NetworkVerdict { name: name.clone(), nodes, pairs, tests, sample, untried })
    }

    /// The members as the rules see them.
    fn as_judged(&self, network: &NetworkName, members: &[Member<'_>]) -> Vec<claims::Member> {
        let of_key = |name: &Name| {
            let participants = self.agents.iter().map(|(participant, _)| participant);
            let participant =
                participants.into_iter().find(|it| it.network == *network && it.name == *name)?;
            Some(self.declared.named::<AccessKey>(network, &participant.key.name)?.tags.clone())
        };
        let judged = members.iter().map(|member| {
            let mut tags = of_key(member.name).unwrap_or_default();
            let declaration = self.declared.named::<Node>(network, member.name);
            tags.extend(declaration.into_iter().flat_map(|node| node.tags.iter().cloned()));
            let addresses = member.addresses.iter().copied().collect();
            claims::Member { name: member.name.clone(), tags, addresses }
        });
        judged.collect()
    }
}

/// A node of a network.
struct Member<'a> {
    name: &'a Name,
    host: &'a Host,
    addresses: Vec<IpAddr>,
    device: Option<String>,
}

impl<'a> Member<'a> {
    /// The member whose agent has this status.
    fn of(name: &'a Name, host: &'a Host, status: &serde_json::Value, network: &NetworkName) -> Self {
        let device = of_network(status, network).and_then(|it| it["device"].as_str()).map(ToOwned::to_owned);
        Self { name, host, addresses: addresses(status, network), device }
    }
}

/// Pings every member from every other: those that must answer until they do or time is up, then the others.
async fn ping_all(members: &[Member<'_>], claims: &Claims, deadline: Instant) -> Result<Vec<Pair>, Error> {
    let everyone = members.iter().flat_map(|from| members.iter().map(move |to| (from, to)));
    let others = everyone.filter(|(from, to)| from.name != to.name);
    let is_allowed =
        |from: &Member<'_>, to: &Member<'_>| claims.pings.contains(&(from.name.clone(), to.name.clone()));
    let (must, must_not): (Vec<_>, Vec<_>) = others.partition(|(from, to)| is_allowed(from, to));
    let mut pairs = Vec::new();
    for (allowed, some) in [(true, must), (false, must_not)] {
        let pings = some.into_iter().map(|(from, to)| async move {
            let mut answers = BTreeMap::new();
            for address in &to.addresses {
                let until = if allowed { deadline } else { Instant::now() };
                answers.insert(*address, ping_until(from.host, *address, until).await?);
            }
            Ok::<_, Error>(Pair { from: from.name.to_string(), to: to.name.to_string(), allowed, answers })
        });
        let pinged: Vec<_> = stream::iter(pings).buffered(PINGS).try_collect().await?;
        pairs.extend(pinged);
    }
    pairs.sort_by(|one, other| (&one.from, &one.to).cmp(&(&other.from, &other.to)));
    Ok(pairs)
}

/// The services of members that are probed, open while this exists.
struct Probed<'a> {
    members: BTreeMap<&'a Name, &'a Member<'a>>,
    untried: BTreeMap<String, BTreeSet<String>>,
    open: Vec<Listeners>,
}

impl<'a> Probed<'a> {
    fn new(members: &'a [Member<'a>], claims: &Claims) -> Result<Self, Error> {
        let mut services: BTreeMap<&Name, BTreeSet<Service>> = BTreeMap::new();
        for claim in claims.tests.values().flatten().chain(&claims.sample) {
            services.entry(&claim.to).or_default().insert(claim.service);
        }
        let mut probed = Self { members: BTreeMap::new(), untried: BTreeMap::new(), open: Vec::new() };
        for member in members {
            probed.members.insert(member.name, member);
            for service in services.remove(member.name).unwrap_or_default() {
                match member.host.listen(&member.addresses, [service]) {
                    Ok(listeners) => probed.open.push(listeners),
                    Err(Error::System { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                        let of_node = probed.untried.entry(member.name.to_string()).or_default();
                        of_node.insert(service.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(probed)
    }

    /// What packets show of each test, and of the sample: of what must pass first, until it does or time is up,
    /// then of what must not.
    async fn judge(
        &self,
        claims: &Claims,
        deadline: Instant,
    ) -> Result<(BTreeMap<Name, ProbesVerdict>, ProbesVerdict), Error> {
        let mut tests: BTreeMap<Name, ProbesVerdict> =
            claims.tests.keys().map(|name| (name.clone(), ProbesVerdict::default())).collect();
        let mut sample = ProbesVerdict::default();
        for allowed in [true, false] {
            let of_tests =
                claims.tests.iter().flat_map(|(name, claims)| claims.iter().map(move |it| (Some(name), it)));
            let all = of_tests.chain(claims.sample.iter().map(|claim| (None, claim)));
            let all = all.filter(|(_, claim)| claim.allowed == allowed && !self.is_untried(claim));
            let probes = all.flat_map(|(test, claim)| {
                let to = self.members[&claim.to];
                to.addresses.iter().map(move |at| async move {
                    Ok::<_, Error>((test, self.probe(claim, *at, deadline).await?))
                })
            });
            let mut probes = stream::iter(probes).buffered(PINGS);
            while let Some((test, failed)) = probes.try_next().await? {
                let verdict = match test {
                    Some(name) => tests.entry(name.clone()).or_default(),
                    None => &mut sample,
                };
                verdict.tried += 1;
                verdict.failed.extend(failed);
            }
        }
        Ok((tests, sample))
    }

    fn is_untried(&self, claim: &Claim) -> bool {
        let of_node = self.untried.get(claim.to.as_str());
        of_node.is_some_and(|services| services.contains(&claim.service.to_string()))
    }

    /// Tries what a claim says; until it is so or time is up, if the service must answer.
    async fn probe(
        &self,
        claim: &Claim,
        at: IpAddr,
        deadline: Instant,
    ) -> Result<Option<FailedProbe>, Error> {
        let Claim { from, to, service, allowed } = claim;
        let host = self.members[from].host;
        loop {
            let outcome = host.probe(at, *service, ANSWER).await.map_err(system("send a probe"))?;
            if outcome.agrees(*allowed) {
                return Ok(None);
            }
            if *allowed && Instant::now() <= deadline {
                continue;
            }
            let outcome = match outcome {
                Outcome::Answered(_) => FailedOutcome::Answered,
                Outcome::Refused => FailedOutcome::Refused,
                Outcome::Nothing => FailedOutcome::Nothing,
            };
            let (from, to, service) = (from.to_string(), to.to_string(), service.to_string());
            return Ok(Some(FailedProbe { from, to, at, service, allowed: *allowed, outcome }));
        }
    }
}

/// The names that do not resolve on a host, once all do or time is up.
async fn missing_until(
    host: &Host,
    expected: &BTreeSet<String>,
    deadline: Instant,
) -> Result<BTreeSet<String>, Error> {
    loop {
        let hosts = host.read("/etc/hosts").map_err(system("read a host's names"))?;
        let known: BTreeSet<&str> = hosts.lines().flat_map(|line| line.split_whitespace().skip(1)).collect();
        let missing: BTreeSet<_> =
            expected.iter().filter(|name| !known.contains(&***name)).cloned().collect();
        if missing.is_empty() || Instant::now() > deadline {
            return Ok(missing);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Pings until an answer comes, or time is up.
async fn ping_until(host: &Host, to: IpAddr, deadline: Instant) -> Result<Option<f64>, Error> {
    loop {
        let answer = host.ping(to, ANSWER).await.map_err(system("send a ping"))?;
        if let Some(took) = answer {
            return Ok(Some(took.as_secs_f64() * 1e3));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
    }
}

/// The addresses in a network, from a document of `netclient status --json`.
fn addresses(status: &serde_json::Value, network: &NetworkName) -> Vec<IpAddr> {
    let texts = of_network(status, network).and_then(|it| it["addresses"].as_array()).into_iter().flatten();
    texts.filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// A network's part of such a document.
fn of_network<'a>(status: &'a serde_json::Value, network: &NetworkName) -> Option<&'a serde_json::Value> {
    status["networks"].as_array()?.iter().find(|it| it["name"] == network.as_str())
}
