//! How is a declared network tested?
//!
//! [`run`] starts a server and every participant of the [`Roster`], with what is around them, and lets them join;
//! [`prepare`] does all of that but the last.
//! [`Running::judge`] sends packets between all members, including the server's own host if it is declared, and
//! hosts behind gateways, until all have answered that may, or time is up; then nothing else may. What may pass, declared tests and the compiler say
//! ([`super::claims`]). The result is a [`Verdict`]: data, which [`super::verdict`] renders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use proto::secret::Secret;
use schema::kinds::ExternalClient;
use schema::scalars::{Name, NetworkName};
use schema::snapshot::{NodeId, Snapshot};
use schema::text::count;
use serde::Serialize;
use tokio::time::Instant;

use super::claims::{self, Behind, Claim, Claims, End, Party};
use super::roster::{ClientParticipant, Participant, Roster};
use super::surroundings::{Exit, Surroundings, surroundings};
use super::{
    Agent, Around, Client, Error, Host, Listeners, Outcome, Programs, Server, Service, Underlay, system,
};
use crate::client::{ClientError, PrivateKey};

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
    /// The external clients.
    pub clients: Vec<(ClientParticipant, Client)>,
    /// The hosts behind gateways.
    pub around: Around,
    /// What is around nodes.
    surroundings: Surroundings,
    /// The tags of nodes.
    tags: BTreeMap<NodeId, BTreeSet<Name>>,
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
    /// Its external clients, by name.
    pub clients: Vec<ClientVerdict>,
    /// The hosts behind its gateways.
    pub behind: Vec<BehindVerdict>,
    /// Every directed pair of nodes and clients.
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

/// An external client.
#[derive(Clone, Debug, Serialize)]
pub struct ClientVerdict {
    /// Its name.
    pub name: String,
    /// Its addresses in the network.
    pub addresses: Vec<IpAddr>,
}

/// A host behind gateways.
#[derive(Clone, Debug, Serialize)]
pub struct BehindVerdict {
    /// The range that it is in.
    pub range: IpNet,
    /// Its addresses in that range.
    pub addresses: Vec<IpAddr>,
    /// The gateways, in order of preference.
    pub gateways: Vec<String>,
}

/// Whether one member reached another.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// The sender.
    pub from: String,
    /// The member that was pinged.
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

/// A declared network whose server runs, and whose hosts are there and connected: no agent is in it.
pub struct Prepared {
    roster: Roster,
    underlay: Underlay,
    programs: Programs,
    server: Server,
    agents: Vec<(Participant, Agent)>,
    around: Around,
    surroundings: Surroundings,
    /// The files of the clients' private keys.
    keys: Vec<PathBuf>,
    tokens: BTreeMap<String, Secret<String>>,
}

/// Brings a roster up; `progress` is called after each step.
///
/// # Errors
///
/// When the operating system, the server or an agent refuses something.
pub async fn run(roster: &Roster, progress: &mut dyn FnMut(&str)) -> Result<Running, Error> {
    prepare(roster, progress).await?.join(progress).await
}

/// Brings a roster up as far as it goes without agents; `progress` is called after each step.
///
/// # Errors
///
/// When the operating system or the server refuses something.
pub async fn prepare(roster: &Roster, progress: &mut dyn FnMut(&str)) -> Result<Prepared, Error> {
    let programs = Programs::find()?;
    let underlay = Underlay::new().await?;
    let server = Server::start(&underlay, &programs, &[]).await?;
    progress("the server is running");
    let (roster, keys) = with_keys(roster, &underlay)?;
    let tokens = apply(&roster, &underlay, &programs, &server).await?;
    progress(&format!("applied: {} objects, {} keys", roster.declared.len(), tokens.len()));
    let mut agents = Vec::new();
    for participant in &roster.participants {
        agents.push((participant.clone(), Agent::new(&underlay, &programs, &participant.host).await?));
    }
    // Before they join, so that gateways find what they forward to.
    let surroundings = surroundings(&roster.declared, &roster.tags());
    let around = connect(&surroundings, &underlay, &roster.declared, (&agents, &server)).await?;
    Ok(Prepared { roster, underlay, programs, server, agents, around, surroundings, keys, tokens })
}

impl Prepared {
    /// Every host that there is: the server's, those of agents, and those behind gateways.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        all_hosts(&self.server, &self.agents, &self.around)
    }

    /// Has the agents join, and connects the external clients.
    ///
    /// # Errors
    ///
    /// When the operating system, the server or an agent refuses something.
    pub async fn join(self, progress: &mut dyn FnMut(&str)) -> Result<Running, Error> {
        let Self { roster, underlay, programs, server, agents, around, surroundings, keys, tokens } = self;
        let start = Instant::now();
        let joins = agents.into_iter().map(|(participant, agent)| join(participant, agent, &tokens));
        let agents: Vec<_> = stream::iter(joins).buffered(AT_ONCE).try_collect().await?;
        progress(&format!("{} nodes joined in {:.1} s", agents.len(), start.elapsed().as_secs_f64()));
        let mut clients = Vec::new();
        for (client, key) in roster.clients.iter().zip(&keys) {
            let configuration = configuration(client, key, &underlay, &programs, &server).await?;
            let started = Client::start(&underlay, &programs, &client.host, &configuration).await?;
            clients.push((client.clone(), started));
        }
        if !clients.is_empty() {
            progress(&format!("{} configured", count(clients.len() as u64, "external client")));
        }
        let tags = roster.tags();
        Ok(Running { declared: roster.declared, server, agents, clients, around, surroundings, tags })
    }
}

fn all_hosts<'a>(
    server: &'a Server,
    agents: &'a [(Participant, Agent)],
    around: &'a Around,
) -> impl Iterator<Item = &'a Host> {
    let agents = agents.iter().map(|(_, agent)| agent.host());
    std::iter::once(server.host()).chain(agents).chain(around.hosts())
}

/// The file of what is declared.
fn declared_file(underlay: &Underlay) -> PathBuf {
    underlay.directory().join("declared.kdl")
}

/// Makes a key for each client; returns the files of the private ones.
fn with_keys(roster: &Roster, underlay: &Underlay) -> Result<(Roster, Vec<PathBuf>), Error> {
    let (mut with_keys, mut public, mut files) = (roster.clone(), Vec::new(), Vec::new());
    for ClientParticipant { id, host } in &roster.clients {
        let file = underlay.directory().join(format!("{host}.key"));
        let failed = |error: ClientError| Error::Refused(format!("no key could be made for {host}: {error}"));
        let key = PrivateKey::make().map_err(failed)?;
        key.store(&file).map_err(failed)?;
        public.push((id, key.public()));
        files.push(file);
    }
    with_keys.set_keys(public.into_iter());
    Ok((with_keys, files))
}

/// Connects what is around nodes to them.
async fn connect(
    surroundings: &Surroundings,
    underlay: &Underlay,
    declared: &Snapshot,
    (agents, server): (&[(Participant, Agent)], &Server),
) -> Result<Around, Error> {
    let node = |id: &NodeId| {
        let mut here = agents.iter().filter(|(it, _)| it.network == id.network && it.name == id.name);
        let own = || (Roster::own_node(declared, &id.network) == Some(&id.name)).then(|| server.host());
        here.next().map(|(_, agent)| agent.host()).or_else(own)
    };
    let mesh = declared.networks().flat_map(|(_, network)| network.ranges()).collect();
    Around::connect(surroundings, underlay, node, (server.host(), &mesh)).await
}

/// Applies what is declared with nmplan; returns the tokens of the keys by their ids.
async fn apply(
    roster: &Roster,
    underlay: &Underlay,
    programs: &Programs,
    server: &Server,
) -> Result<BTreeMap<String, Secret<String>>, Error> {
    let (file, keys) = (declared_file(underlay), underlay.directory().join("keys.json"));
    std::fs::write(&file, roster.text()).map_err(system("write what is declared"))?;
    let mut command = nmplan(underlay, programs, server);
    command.args(["apply", "-y", "-q"]).arg("--keys-to").arg(&keys);
    let output = output_of(command).await?;
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

/// nmplan, for what the lab declares and its server.
fn nmplan(underlay: &Underlay, programs: &Programs, server: &Server) -> Command {
    let mut command = Command::new(&programs.nmplan);
    // The project and the variables of the caller do not apply to the lab.
    command.args(["--project", "lab", "-C"]).arg(underlay.directory()).arg("-f").arg(declared_file(underlay));
    let of_caller = std::env::vars_os().map(|(name, _)| name);
    of_caller.filter(|name| name.to_string_lossy().starts_with("NMPLAN_")).for_each(|name| {
        command.env_remove(name);
    });
    // Nor does a proxy: the lab's server is reached inside of it only.
    command.envs(server.environment()).env("NO_PROXY", "0.0.0.0/0,::/0,*").stdin(Stdio::null());
    command
}

async fn output_of(command: Command) -> Result<Output, Error> {
    tokio::process::Command::from(command).output().await.map_err(system("run nmplan"))
}

/// What `nmplan client conf` writes for a client.
async fn configuration(
    client: &ClientParticipant,
    key: &Path,
    underlay: &Underlay,
    programs: &Programs,
    server: &Server,
) -> Result<Secret<String>, Error> {
    let ClientParticipant { id, host } = client;
    let mut command = nmplan(underlay, programs, server);
    command.args(["client", "conf", &id.to_string(), "-q", "--key"]).arg(key);
    let output = output_of(command).await?;
    let printed = Secret::new(output.stdout);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Refused(format!("{host} could not be configured; nmplan printed:\n{why}\n")));
    }
    let text = String::from_utf8(printed.expose().clone());
    text.map(Secret::new).map_err(|error| Error::Refused(error.to_string()))
}

async fn join(
    participant: Participant,
    mut agent: Agent,
    tokens: &BTreeMap<String, Secret<String>>,
) -> Result<(Participant, Agent), Error> {
    let failed =
        |why: &dyn std::fmt::Display| Error::Refused(format!("{} could not join: {why}", participant.host));
    let token = tokens.get(&participant.key.to_string()).ok_or_else(|| failed(&"its key has no token"))?;
    agent
        .join(token.expose(), &["--name", participant.name.as_str()])
        .await
        .map_err(|error| failed(&error))?;
    agent.start_daemon(&[])?;
    Ok((participant, agent))
}

impl Running {
    /// Sends packets between all members and hosts behind gateways of each network until all have answered that
    /// may, or time is up.
    ///
    /// # Errors
    ///
    /// When an agent does not answer.
    pub async fn judge(&self) -> Result<Verdict, Error> {
        let deadline = Instant::now() + CONVERGE;
        let mut networks = Vec::new();
        for (name, _) in self.declared.networks() {
            let present = self.present(name, deadline).await?;
            if present.iter().any(Present::is_member) {
                networks.push(self.judge_network(name, &present, deadline).await?);
            }
        }
        Ok(Verdict { networks })
    }

    /// Every host that was there before agents joined, in the order of [`Prepared::hosts`].
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        all_hosts(&self.server, &self.agents, &self.around)
    }

    /// Every host but the server's and those of agents, to enter it.
    pub fn other_hosts(&self) -> impl Iterator<Item = &Host> {
        self.clients.iter().map(|(_, client)| client.host()).chain(self.around.hosts())
    }

    /// The members of a network, by name, then the hosts behind its gateways.
    async fn present(&self, network: &NetworkName, deadline: Instant) -> Result<Vec<Present<'_>>, Error> {
        let families = self.declared.network(network).map_or(0, |network| network.ranges().count());
        let mut present = Vec::new();
        for (participant, agent) in
            self.agents.iter().filter(|(participant, _)| participant.network == *network)
        {
            let status = agent.status().await?;
            present.push(self.node(network, &participant.name, agent.host(), &status));
        }
        if let Some(name) = Roster::own_node(&self.declared, network) {
            let status = self.own_status(network, families, deadline).await?;
            present.push(self.node(network, name, self.server.host(), &status));
        }
        let clients = self.clients.iter().filter(|(participant, _)| participant.id.network == *network);
        present.extend(clients.map(|(ClientParticipant { id, .. }, client)| {
            let declaration = self.declared.named::<ExternalClient>(network, &id.name);
            let tags = declaration.map(|client| client.tags.clone()).unwrap_or_default();
            let addresses = client.addresses().iter().copied().collect();
            let end = End { party: Party::Member(id.name.clone()), tags, addresses, behind: None };
            Present { end, host: client.host(), role: Role::Client }
        }));
        for Present { end, .. } in &present {
            if end.addresses.len() != families {
                let (name, count) = (&end.party, end.addresses.len());
                let why = format!("{name} has {count} addresses in {network} instead of {families}");
                return Err(Error::Refused(why));
            }
        }
        present.sort_by(|one, other| one.end.party.cmp(&other.end.party));
        present.extend(self.behind(network));
        Ok(present)
    }

    /// A node whose agent has this status.
    fn node<'a>(
        &self,
        network: &NetworkName,
        name: &Name,
        host: &'a Host,
        status: &serde_json::Value,
    ) -> Present<'a> {
        let device = of_network(status, network).and_then(|it| it["device"].as_str()).map(ToOwned::to_owned);
        let addresses = addresses(status, network).into_iter().collect();
        let tags = self.tags.get(&NodeId::of(network, name)).cloned().unwrap_or_default();
        let end = End { party: Party::Member(name.clone()), tags, addresses, behind: None };
        Present { end, host, role: Role::Node { device } }
    }

    /// What is behind the gateways of a network: each address of a host is an end of its own.
    fn behind(&self, network: &NetworkName) -> Vec<Present<'_>> {
        let at = |address: IpAddr, host, range: IpNet, gateways: &BTreeSet<Name>, opens| {
            let behind = Behind { range, gateways: gateways.clone(), opens };
            let (addresses, tags) = (BTreeSet::from([address]), BTreeSet::new());
            let end = End { party: Party::Behind(address), tags, addresses, behind: Some(behind) };
            Present { end, host, role: Role::Behind }
        };
        let mut present = Vec::new();
        for (lan, host) in self.around.lans.iter().filter(|(lan, _)| lan.network == *network) {
            let gateways = lan.gateways.iter().map(|(node, _)| node.name.clone()).collect();
            // What it opens has its first address.
            let numbered = lan.addresses.iter().zip(0..);
            present.extend(
                numbered.map(|(address, number)| at(*address, host, lan.range, &gateways, number == 0)),
            );
        }
        let Some(host) = &self.around.internet else { return present };
        let exits = self.surroundings.exits.iter().filter(|exit| exit.network == *network);
        for Exit { network: _, gateways, ranges } in exits {
            let gateways = gateways.iter().map(|node| node.name.clone()).collect();
            present.extend(ranges.iter().map(|range| {
                let address = if range.addr().is_ipv4() { host.ipv4().into() } else { host.ipv6().into() };
                at(address, host, *range, &gateways, false)
            }));
        }
        present
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
        present: &[Present<'_>],
        deadline: Instant,
    ) -> Result<NetworkVerdict, Error> {
        let ends: Vec<_> = present.iter().map(|it| it.end.clone()).collect();
        let claims = claims::claims(name, &self.declared, &ends);
        let pairs = ping_all(present, &claims, deadline).await?;
        let probed = Probed::new(present, &claims)?;
        let (tests, sample) = probed.judge(&claims, deadline).await?;
        let (mut nodes, mut clients, none) = (Vec::new(), Vec::new(), BTreeSet::new());
        for Present { end: End { party, addresses, .. }, host, role } in present {
            let (name, addresses) = (party.to_string(), addresses.iter().copied().collect());
            match role {
                Role::Node { device } => {
                    let expected = claims.names.get(party).unwrap_or(&none);
                    let missing = missing_until(host, expected, deadline).await?;
                    let names = expected.len() - missing.len();
                    nodes.push(NodeVerdict { name, addresses, device: device.clone(), names, missing });
                }
                Role::Client => clients.push(ClientVerdict { name, addresses }),
                Role::Behind => {}
            }
        }
        let (behind, untried) = (behind_verdicts(&ends), probed.untried);
        Ok(NetworkVerdict { name: name.clone(), nodes, clients, behind, pairs, tests, sample, untried })
    }
}

/// The hosts behind gateways, by range.
fn behind_verdicts(ends: &[End]) -> Vec<BehindVerdict> {
    let mut ranges: BTreeMap<IpNet, BehindVerdict> = BTreeMap::new();
    for End { addresses, behind, .. } in ends {
        let Some(Behind { range, gateways, .. }) = behind else { continue };
        let gateways = || gateways.iter().map(ToString::to_string).collect();
        let new = || BehindVerdict { range: *range, addresses: Vec::new(), gateways: gateways() };
        ranges.entry(*range).or_insert_with(new).addresses.extend(addresses);
    }
    ranges.into_values().collect()
}

/// Who sends or receives, and on which host.
struct Present<'a> {
    end: End,
    host: &'a Host,
    role: Role,
}

/// What a host is.
enum Role {
    /// A node.
    Node {
        /// Where its WireGuard device runs.
        device: Option<String>,
    },
    /// An external client.
    Client,
    /// A host behind gateways.
    Behind,
}

impl Present<'_> {
    fn is_member(&self) -> bool {
        match self.role {
            Role::Node { .. } | Role::Client => true,
            Role::Behind => false,
        }
    }
}

/// Pings every member from every other: those that must answer until they do or time is up, then the others.
async fn ping_all(present: &[Present<'_>], claims: &Claims, deadline: Instant) -> Result<Vec<Pair>, Error> {
    let members: Vec<_> = present.iter().filter(|it| it.is_member()).collect();
    let everyone = members.iter().flat_map(|from| members.iter().map(move |to| (*from, *to)));
    let others = everyone.filter(|(from, to)| from.end.party != to.end.party);
    let is_allowed = |from: &Present<'_>, to: &Present<'_>| {
        claims.pings.contains(&(from.end.party.clone(), to.end.party.clone()))
    };
    let (must, must_not): (Vec<_>, Vec<_>) = others.partition(|(from, to)| is_allowed(from, to));
    let mut pairs = Vec::new();
    for (allowed, some) in [(true, must), (false, must_not)] {
        let pings = some.into_iter().map(|(from, to)| async move {
            let mut answers = BTreeMap::new();
            for address in &to.end.addresses {
                let until = if allowed { deadline } else { Instant::now() };
                answers.insert(*address, ping_until(from.host, *address, until).await?);
            }
            let (from, to) = (from.end.party.to_string(), to.end.party.to_string());
            Ok::<_, Error>(Pair { from, to, allowed, answers })
        });
        let pinged: Vec<_> = stream::iter(pings).buffered(PINGS).try_collect().await?;
        pairs.extend(pinged);
    }
    pairs.sort_by(|one, other| (&one.from, &one.to).cmp(&(&other.from, &other.to)));
    Ok(pairs)
}

/// The services that are probed, open while this exists.
struct Probed<'a> {
    present: BTreeMap<&'a Party, &'a Present<'a>>,
    untried: BTreeMap<String, BTreeSet<String>>,
    open: Vec<Listeners>,
}

impl<'a> Probed<'a> {
    fn new(present: &'a [Present<'a>], claims: &Claims) -> Result<Self, Error> {
        let mut services: BTreeMap<&Party, BTreeSet<Service>> = BTreeMap::new();
        for claim in claims.tests.values().flatten().chain(&claims.sample) {
            services.entry(&claim.to).or_default().insert(claim.service);
        }
        let mut probed = Self { present: BTreeMap::new(), untried: BTreeMap::new(), open: Vec::new() };
        for here in present {
            let party = &here.end.party;
            let addresses: Vec<_> = here.end.addresses.iter().copied().collect();
            probed.present.insert(party, here);
            for service in services.remove(party).unwrap_or_default() {
                match here.host.listen(&addresses, [service]) {
                    Ok(listeners) => probed.open.push(listeners),
                    Err(Error::System { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                        let of_node = probed.untried.entry(party.to_string()).or_default();
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
                let (from, to) = (&self.present[&claim.from].end, &self.present[&claim.to].end);
                let reachable = |at: &&IpAddr| from.addresses.iter().any(|own| own.is_ipv4() == at.is_ipv4());
                to.addresses.iter().filter(reachable).map(move |at| async move {
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
        let of_node = self.untried.get(&claim.to.to_string());
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
        let host = self.present[from].host;
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
