//! What happens in a network that was brought up?
//!
//! [`Running::judge`] sends packets between all members, including the server's own host if it is declared, and hosts
//! behind gateways, until all have answered that may, or time is up; then nothing else may. What may pass, declared
//! tests and the compiler say ([`super::claims`]) of the world as the server has it, in which nobody is away but those
//! that [`Running::play`] took away: a gateway that should carry and does not is a failure, and one that is lost is
//! none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use proto::secret::Secret;
use schema::api::Presence;
use schema::compile::ways::carrier;
use schema::inventory::{Away, Inventory};
use schema::kinds::Egress;
use schema::scalars::{Name, NetworkName};
use schema::snapshot::{NodeId, Snapshot};
use schema::world::World;
use tokio::time::Instant;

use super::claims::{Behind, End, Party};
use super::judge::{Judged, Present, Role, judge};
use super::roster::{ClientParticipant, Participant, Roster};
use super::run::{AT_ONCE, all_hosts, join_again};
use super::scenario::{Act, Step, follows};
use super::surroundings::{Exit, Surroundings};
use super::verdict::{NetworkVerdict, StepVerdict, Verdict};
use super::{Agent, Around, Client, Error, Host, Server, system};

/// How long all of them together may take to reach each other.
const CONVERGE: Duration = Duration::from_secs(30);
/// How long the server may take to know of a step, and the nodes to have what follows.
const KNOWN: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);

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
    pub(super) surroundings: Surroundings,
    /// The tokens of keys, by their ids.
    pub(super) tokens: BTreeMap<String, Secret<String>>,
    /// The nodes that were taken away.
    pub(super) down: BTreeSet<NodeId>,
}

impl Running {
    /// Sends packets between all members and hosts behind gateways of each network until all have answered that
    /// may, or time is up.
    ///
    /// # Errors
    ///
    /// When an agent or the server does not answer.
    pub async fn judge(&self) -> Result<Verdict, Error> {
        Ok(Verdict { networks: self.networks().await?, scenario: None })
    }

    /// Carries out a step of the scenario, and sends packets once every node has what follows from it.
    ///
    /// # Errors
    ///
    /// When the operating system, an agent or the server refuses something, or the server does not get to know of
    /// the step.
    pub async fn play(&mut self, step: &Step) -> Result<StepVerdict, Error> {
        let before = self.server.world().await?;
        let start = Instant::now();
        self.act(step).await?;
        let after = self.known(step, start).await?;
        let seconds = start.elapsed().as_secs_f64();
        self.lead_back(&after).await?;
        let follows = follows(&before, &after);
        let networks = self.networks().await?;
        Ok(StepVerdict { step: step.to_string(), seconds, follows, networks })
    }

    /// Every host that was there before agents joined, in the order of [`Prepared::hosts`](super::run::Prepared::hosts).
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        all_hosts(&self.server, &self.agents, &self.around)
    }

    /// Every host, with its addresses: in networks, and behind gateways.
    ///
    /// # Errors
    ///
    /// When an agent does not answer.
    pub async fn all_hosts(&self) -> Result<Vec<(&Host, Vec<IpAddr>)>, Error> {
        let mut hosts = vec![(self.server.host(), vec![self.server.host().ipv4().into()])];
        for (participant, agent) in &self.agents {
            hosts.push((agent.host(), addresses(&agent.status().await?, &participant.network)));
        }
        hosts.extend(self.clients.iter().map(|(_, client)| (client.host(), client.addresses().to_vec())));
        hosts.extend(self.around.lans.iter().map(|(lan, host)| (host, lan.addresses.clone())));
        let beyond = self.around.internet.iter();
        hosts.extend(beyond.map(|host| (host, vec![host.ipv4().into(), host.ipv6().into()])));
        Ok(hosts)
    }

    async fn act(&mut self, step: &Step) -> Result<(), Error> {
        let Step { act, node } = step;
        let is_meant =
            |participant: &Participant| participant.network == node.network && participant.name == node.name;
        let found = self.agents.iter_mut().find(|(participant, _)| is_meant(participant));
        let (participant, agent) =
            found.ok_or_else(|| Error::Refused(format!("{step}, and no host of the lab is that node")))?;
        match act {
            Act::Leave => agent.leave(&node.network).await,
            Act::Join => join_again(participant, agent, &self.tokens).await,
            Act::Lose => {
                // First, so that nobody hears of the end of its connections.
                agent.host().link_down().await?;
                self.around.plug(node, false).await?;
                agent.kill_daemon().await.map_err(system("kill an agent"))?;
                self.down.insert(node.clone());
                Ok(())
            }
            Act::Return => {
                agent.host().link_up().await?;
                self.around.plug(node, true).await?;
                self.down.remove(node);
                agent.start_daemon(&[])
            }
        }
    }

    /// The world once the server knows of a step, and every node that is there has its newest revision.
    async fn known(&self, step: &Step, start: Instant) -> Result<World, Error> {
        loop {
            let world = self.server.world().await?;
            if is_known(step, &world.inventory) {
                let status = self.server.nodes().await?;
                let behind = status.nodes.iter().filter(|node| {
                    let is_down = self
                        .down
                        .iter()
                        .any(|down| node.id == format!("{}/node/{}", down.network, down.name));
                    !is_down && node.state != Presence::Awaiting && node.acknowledged < Some(status.revision)
                });
                if status.revision == world.revision && behind.count() == 0 {
                    return Ok(world);
                }
            }
            if start.elapsed() > KNOWN {
                let why = format!("{step}, and after {} s not every node has what follows", KNOWN.as_secs());
                return Err(Error::Refused(why));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Has the routers of networks behind gateways send to the node that carries.
    async fn lead_back(&self, world: &World) -> Result<(), Error> {
        let carrier = |network: &NetworkName, range| {
            let mut all = world.snapshot.all_in::<Egress>(network);
            let (id, egress) = all.find(|(_, egress)| egress.ranges.iter().any(|it| it.net() == range))?;
            let name = carrier(network, &egress.via, Some(&id.name), &world.inventory)?;
            Some(NodeId::of(network, name))
        };
        let exits = (&*self.surroundings.exits, &self.declared);
        self.around.lead_back(exits, carrier, |node| self.host_of(node)).await
    }

    /// The host of a node.
    fn host_of(&self, node: &NodeId) -> Option<&Host> {
        let mut agents = self.agents.iter();
        let found = agents.find(|(it, _)| it.network == node.network && it.name == node.name);
        let own = || {
            let is_own = Roster::own_node(&self.declared, &node.network) == Some(&node.name);
            is_own.then(|| self.server.host())
        };
        found.map(|(_, agent)| agent.host()).or_else(own)
    }

    async fn networks(&self) -> Result<Vec<NetworkVerdict>, Error> {
        let deadline = Instant::now() + CONVERGE;
        let mut networks = Vec::new();
        for (name, _) in self.declared.networks() {
            let present = self.present(name, deadline).await?;
            if !present.iter().any(Present::is_member) {
                continue;
            }
            let World { snapshot: declared, mut inventory, .. } = self.server.world().await?;
            let others: Vec<_> = inventory.away().map(|(id, _)| id.clone()).collect();
            for id in others.into_iter().filter(|id| !self.down.contains(id)) {
                inventory.set_away(id, Away::default());
            }
            let owners = self.owners(name, &present);
            let judged = Judged {
                network: name,
                declared: &declared,
                inventory: &inventory,
                present: &present,
                owners: &owners,
            };
            networks.push(judge(judged, deadline).await?);
        }
        Ok(networks)
    }

    /// The node that each address belongs to: in the network, behind it, and in the underlay.
    fn owners(&self, network: &NetworkName, present: &[Present<'_>]) -> BTreeMap<IpAddr, Name> {
        let mut owners = BTreeMap::new();
        for Present { end, host, .. } in present {
            let Party::Member(name) = &end.party else { continue };
            let underlay = [host.ipv4().into(), host.ipv6().into()];
            owners.extend(end.addresses.iter().copied().chain(underlay).map(|at| (at, name.clone())));
        }
        let lans = self.around.lans.iter().filter(|(lan, _)| lan.network == *network);
        let gateways = lans.flat_map(|(lan, _)| &lan.gateways);
        owners.extend(gateways.filter_map(|(id, address)| Some(((*address)?, id.name.clone()))));
        owners
    }

    /// The members of a network that are there, by name, then the hosts behind its gateways.
    async fn present(&self, network: &NetworkName, deadline: Instant) -> Result<Vec<Present<'_>>, Error> {
        let families = self.declared.network(network).map_or(0, |network| network.ranges().count());
        let of_network = self.agents.iter().filter(|(participant, _)| {
            participant.network == *network && !self.down.contains(&NodeId::of(network, &participant.name))
        });
        let nodes = of_network.map(|(participant, agent)| async move {
            Ok::<_, Error>((participant, agent.host(), agent.status().await?))
        });
        let nodes: Vec<_> = stream::iter(nodes).buffered(AT_ONCE).try_collect().await?;
        // Who has left is nobody.
        let joined = nodes.into_iter().filter(|(.., status)| of_network_in(status, network).is_some());
        let mut present: Vec<_> = joined
            .map(|(participant, host, status)| node(network, &participant.name, host, &status))
            .collect();
        if let Some(name) = Roster::own_node(&self.declared, network) {
            let status = self.own_status(network, families, deadline).await?;
            present.push(node(network, name, self.server.host(), &status));
        }
        let clients = self.clients.iter().filter(|(participant, _)| participant.id.network == *network);
        present.extend(clients.map(|(ClientParticipant { id, .. }, client)| {
            let addresses = client.addresses().iter().copied().collect();
            let end = End { party: Party::Member(id.name.clone()), addresses, behind: None };
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

    /// What is behind the gateways of a network: each address of a host is an end of its own.
    fn behind(&self, network: &NetworkName) -> Vec<Present<'_>> {
        let at = |address: IpAddr, host, range, gateways: &BTreeSet<Name>, opens| {
            let behind = Behind { range, gateways: gateways.clone(), opens };
            let end =
                End { party: Party::Behind(address), addresses: [address].into(), behind: Some(behind) };
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
}

/// Whether the server knows of a step.
fn is_known(Step { act, node }: &Step, inventory: &Inventory) -> bool {
    match act {
        Act::Leave => inventory.node(node).is_none(),
        Act::Join => inventory.node(node).is_some(),
        Act::Lose => inventory.is_away(node, None),
        Act::Return => inventory.away_of(node).is_none(),
    }
}

/// A node whose agent has this status.
fn node<'a>(network: &NetworkName, name: &Name, host: &'a Host, status: &serde_json::Value) -> Present<'a> {
    let device = of_network_in(status, network).and_then(|it| it["device"].as_str()).map(ToOwned::to_owned);
    let addresses = addresses(status, network).into_iter().collect();
    let end = End { party: Party::Member(name.clone()), addresses, behind: None };
    Present { end, host, role: Role::Node { device } }
}

/// The addresses in a network, from a document of `netclient status --json`.
fn addresses(status: &serde_json::Value, network: &NetworkName) -> Vec<IpAddr> {
    let texts =
        of_network_in(status, network).and_then(|it| it["addresses"].as_array()).into_iter().flatten();
    texts.filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// A network's part of such a document.
fn of_network_in<'a>(status: &'a serde_json::Value, network: &NetworkName) -> Option<&'a serde_json::Value> {
    status["networks"].as_array()?.iter().find(|it| it["name"] == network.as_str())
}
