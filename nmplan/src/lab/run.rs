//! How is a declared network brought up?
//!
//! [`run`] starts a server and every participant of the [`Roster`], with what is around them, and lets them join;
//! [`prepare`] does all of that but the last. What runs then is a [`Running`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::secret::Secret;
use schema::snapshot::{NodeId, Snapshot};
use schema::text::count;
use tokio::time::Instant;

use super::roster::{ClientParticipant, Participant, Roster};
pub use super::running::Running;
use super::surroundings::{Surroundings, surroundings};
use super::{Agent, Around, Client, Error, Host, Programs, Server, Underlay, system};
use crate::client::{ClientError, PrivateKey};

/// How many nodes join at the same time.
pub(super) const AT_ONCE: usize = 8;

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
        let (declared, down) = (roster.declared, BTreeSet::new());
        Ok(Running { declared, server, agents, clients, around, surroundings, tokens, down })
    }
}

pub(super) fn all_hosts<'a>(
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
    command.envs(server.environment()).stdin(Stdio::null());
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
    join_again(&participant, &mut agent, tokens).await?;
    Ok((participant, agent))
}

/// Has a node join with the token of its key.
pub(super) async fn join_again(
    participant: &Participant,
    agent: &mut Agent,
    tokens: &BTreeMap<String, Secret<String>>,
) -> Result<(), Error> {
    let failed =
        |why: &dyn std::fmt::Display| Error::Refused(format!("{} could not join: {why}", participant.host));
    let token = tokens.get(&participant.key.to_string()).ok_or_else(|| failed(&"its key has no token"))?;
    agent
        .join(token.expose(), &["--name", participant.name.as_str()])
        .await
        .map_err(|error| failed(&error))?;
    agent.start_daemon(&[])
}
