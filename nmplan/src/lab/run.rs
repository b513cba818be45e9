//! How does a declared network prove itself?
//!
//! [`run`] starts a server and every machine of the [`Cast`], lets them join, and sends packets between all that may talk
//! until all have answered or time is up. What came of it is a [`Verdict`]: data, which [`super::verdict`] renders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use schema::scalars::NetworkName;
use serde::Serialize;
use tokio::time::Instant;

use super::cast::{Cast, Role};
use super::{Error, Machine, Programs, Server, Underlay, system};

/// How many machines join at the same time.
const AT_ONCE: usize = 8;
/// How many pings are under way at the same time.
const PINGS: usize = 128;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);
/// How long all of them together may take to reach each other.
const CONVERGE: Duration = Duration::from_secs(30);

/// A declared network, brought up.
pub struct Running {
    /// The control plane.
    pub server: Server,
    /// The machines, each with its role.
    pub machines: Vec<(Role, Machine)>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The networks, by name.
    pub networks: Vec<NetworkVerdict>,
}

/// What came of one network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkVerdict {
    /// The network.
    pub name: NetworkName,
    /// Its machines, by name.
    pub machines: Vec<MachineVerdict>,
    /// Every ordered pair of machines.
    pub pairs: Vec<Pair>,
}

/// What came of one machine.
#[derive(Clone, Debug, Serialize)]
pub struct MachineVerdict {
    /// Its name.
    pub name: String,
    /// Its addresses in the network.
    pub addresses: Vec<IpAddr>,
    /// The names that resolve on it.
    pub names: BTreeSet<String>,
}

/// Whether one machine reached another.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// Who sent.
    pub from: String,
    /// Who was to answer.
    pub to: String,
    /// What was pinged, and how long the answer took, in milliseconds; absent: none came.
    pub answers: BTreeMap<IpAddr, Option<f64>>,
}

impl Pair {
    /// Whether every address answered.
    pub fn is_reached(&self) -> bool {
        self.answers.values().all(Option::is_some)
    }
}

impl Verdict {
    /// Whether everybody reached everybody.
    pub fn is_good(&self) -> bool {
        self.networks.iter().all(|network| network.pairs.iter().all(Pair::is_reached))
    }
}

/// Brings a cast up; `say` is told what has been done.
///
/// # Errors
///
/// What the machine, the server or an agent refused, with what it said.
pub async fn run(cast: &Cast, say: &mut dyn FnMut(&str)) -> Result<Running, Error> {
    let programs = Programs::find()?;
    let underlay = Underlay::new().await?;
    let server = Server::start(&underlay, &programs, &[]).await?;
    say("the server serves");
    let tokens = apply(cast, &underlay, &programs, &server).await?;
    say(&format!("applied: {} objects, {} keys", cast.declared.len(), tokens.len()));
    let start = Instant::now();
    let joins = cast.roles.iter().map(|role| join(role, &tokens, &underlay, &programs));
    let machines: Vec<_> = stream::iter(joins).buffered(AT_ONCE).try_collect().await?;
    say(&format!("{} machines joined in {:.1} s", machines.len(), start.elapsed().as_secs_f64()));
    Ok(Running { server, machines })
}

/// Has nmplan apply what is declared; the tokens of the keys by their ids.
async fn apply(
    cast: &Cast,
    underlay: &Underlay,
    programs: &Programs,
    server: &Server,
) -> Result<BTreeMap<String, String>, Error> {
    let [file, keys] = ["declared.kdl", "keys.json"].map(|name| underlay.directory().join(name));
    std::fs::write(&file, cast.text()).map_err(system("write what is declared"))?;
    let mut command = Command::new(&programs.nmplan);
    command.args(["apply", "--project", "lab", "-y", "-q", "-f"]).arg(&file).arg("--keys-to").arg(&keys);
    command.env_remove("NMPLAN_ENV").env_remove("NMPLAN_TOKEN").envs(server.environment()).stdin(Stdio::null());
    let output = tokio::process::Command::from(command).output().await.map_err(system("run nmplan"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        return Err(Error::Refused(format!("nmplan apply: {}", String::from_utf8_lossy(&said).trim())));
    }
    match std::fs::read(&keys) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| Error::Refused(format!("the keys: {error}"))),
        // Nothing that was declared needed a key.
        Err(_) => Ok(BTreeMap::new()),
    }
}

async fn join(
    role: &Role,
    tokens: &BTreeMap<String, String>,
    underlay: &Underlay,
    programs: &Programs,
) -> Result<(Role, Machine), Error> {
    let failed = |why: &dyn std::fmt::Display| Error::Refused(format!("{} could not join: {why}", role.host));
    let token = tokens.get(&role.key.to_string()).ok_or_else(|| failed(&"its key has no token"))?;
    let mut machine = Machine::new(underlay, programs, &role.host).await?;
    machine.join(token, &["--name", role.name.as_str()]).await.map_err(|error| failed(&error))?;
    machine.start_daemon(&[])?;
    Ok((role.clone(), machine))
}

impl Running {
    /// Sends packets from each machine to each other of its network until all have answered, or time is up.
    ///
    /// # Errors
    ///
    /// When an agent does not answer.
    pub async fn judge(&self) -> Result<Verdict, Error> {
        let deadline = Instant::now() + CONVERGE;
        let names: BTreeSet<&NetworkName> = self.machines.iter().map(|(role, _)| &role.network).collect();
        let mut networks = Vec::new();
        for name in names {
            networks.push(self.judge_network(name, deadline).await?);
        }
        Ok(Verdict { networks })
    }

    async fn judge_network(&self, name: &NetworkName, deadline: Instant) -> Result<NetworkVerdict, Error> {
        let mut members = Vec::new();
        for (role, machine) in self.machines.iter().filter(|(role, _)| role.network == *name) {
            members.push((role, machine, addresses(machine, name).await?));
        }
        let everyone = members.iter().flat_map(|from| members.iter().map(move |to| (from, to)));
        let others = everyone.filter(|((from, ..), (to, ..))| from.name != to.name);
        let pings = others.map(|((from, machine, _), (to, _, addresses))| async move {
            let mut answers = BTreeMap::new();
            for address in addresses {
                answers.insert(*address, ping_until(machine, *address, deadline).await?);
            }
            Ok(Pair { from: from.name.to_string(), to: to.name.to_string(), answers })
        });
        let pairs = stream::iter(pings).buffered(PINGS).try_collect().await?;
        let machines = members.iter().map(|(role, machine, addresses)| {
            let hosts = machine.host().read("/etc/hosts").map_err(system("read a host's names"))?;
            let name = role.name.to_string();
            Ok(MachineVerdict { name, addresses: addresses.clone(), names: names_in(&hosts, &role.network) })
        });
        let machines = machines.collect::<Result<_, Error>>()?;
        Ok(NetworkVerdict { name: name.clone(), machines, pairs })
    }
}

/// Pings until an answer comes, or time is up.
async fn ping_until(machine: &Machine, to: IpAddr, deadline: Instant) -> Result<Option<f64>, Error> {
    loop {
        let answer = machine.host().ping(to, ANSWER).await.map_err(system("send a ping"))?;
        if let Some(took) = answer {
            return Ok(Some(took.as_secs_f64() * 1e3));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
    }
}

async fn addresses(machine: &Machine, network: &NetworkName) -> Result<Vec<IpAddr>, Error> {
    let status = machine.status().await?;
    let found = status["networks"].as_array().into_iter().flatten().find(|it| it["name"] == network.as_str());
    let texts = found.and_then(|it| it["addresses"].as_array()).into_iter().flatten();
    Ok(texts.filter_map(|address| address.as_str()?.parse().ok()).collect())
}

/// The names of a network in a file of hosts.
fn names_in(hosts: &str, network: &NetworkName) -> BTreeSet<String> {
    let suffix = format!(".{network}");
    let names = hosts.lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.split_whitespace().skip(1));
    names.filter(|name| name.ends_with(&suffix)).map(ToOwned::to_owned).collect()
}
