//! How is a declared network tested?
//!
//! [`run`] starts a server and every participant of the [`Roster`], and lets them join. [`Running::judge`]
//! sends packets between all nodes, including the server's own host if it is declared, until all have
//! answered or time is up. The result is a [`Verdict`]: data, which [`super::verdict`] renders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::secret::Secret;
use schema::kinds::Dns;
use schema::scalars::{Name, NetworkName};
use schema::snapshot::Snapshot;
use serde::Serialize;
use tokio::time::Instant;

use super::roster::{Participant, Roster};
use super::{Agent, Error, Host, Programs, Server, Underlay, system};

/// How many nodes join at the same time.
const AT_ONCE: usize = 8;
/// How many pings are under way at the same time.
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
    /// How long each address took to answer, in milliseconds; absent: it did not.
    pub answers: BTreeMap<IpAddr, Option<f64>>,
}

impl Pair {
    /// Whether there are addresses, and every one answered.
    pub fn is_reached(&self) -> bool {
        !self.answers.is_empty() && self.answers.values().all(Option::is_some)
    }
}

impl Verdict {
    /// Whether every node reached every other, and resolves every name.
    pub fn is_good(&self) -> bool {
        let known = |network: &NetworkVerdict| network.nodes.iter().all(|node| node.missing.is_empty());
        self.networks.iter().all(|network| network.pairs.iter().all(Pair::is_reached) && known(network))
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
        let everyone = members.iter().flat_map(|from| members.iter().map(move |to| (from, to)));
        let others = everyone.filter(|(from, to)| from.name != to.name);
        let pings = others.map(|(from, to)| async move {
            let mut answers = BTreeMap::new();
            for address in &to.addresses {
                answers.insert(*address, ping_until(from.host, *address, deadline).await?);
            }
            Ok(Pair { from: from.name.to_string(), to: to.name.to_string(), answers })
        });
        let pairs = stream::iter(pings).buffered(PINGS).try_collect().await?;
        let expected = self.names(name, members.iter().map(|member| member.name));
        let mut nodes = Vec::new();
        for Member { name, host, addresses, device } in members {
            let missing = missing_until(host, &expected, deadline).await?;
            let names = expected.len() - missing.len();
            let (name, addresses, device) = (name.to_string(), addresses.clone(), device.clone());
            nodes.push(NodeVerdict { name, addresses, device, names, missing });
        }
        Ok(NetworkVerdict { name: name.clone(), nodes, pairs })
    }

    /// The names that should resolve in a network: those of its nodes, and of the DNS entries that do not
    /// point outside it.
    fn names<'a>(&self, network: &NetworkName, nodes: impl Iterator<Item = &'a Name>) -> BTreeSet<String> {
        if !self.declared.network(network).is_some_and(|network| network.name_service) {
            return BTreeSet::new();
        }
        let inside = |dns: &Dns| dns.cname.is_none() || dns.inner_cname(network).is_some();
        let entries = self.declared.all_in::<Dns>(network).filter(|(_, dns)| inside(dns));
        let entries = entries.map(|(id, _)| id.name.clone());
        entries.chain(nodes.cloned()).map(|name| format!("{name}.{network}")).collect()
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
