//! Everything a server knows at one revision, and its form on the wire.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decode::decode_body;
use crate::inventory::{
    Away, Barred, ClientStatus, Inventory, Joined, KeyStatus, NodeId, PendingNode, Quarantined,
};
use crate::limits::{GuardChange, Guards, Limits, StoredGuard};
use crate::published::Body;
use crate::report::Report;
use crate::scalars::{Identity, Name, NetworkName};
pub use crate::server_info::ServerInfo;
use crate::snapshot::{Entry, Owner, ResourceId, Revision, Snapshot};
use crate::value::Value;

/// Everything a server knows at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The epoch of the database: raised when a backup is restored, so that revisions stay comparable.
    pub epoch: u64,
    /// Its revision.
    pub revision: Revision,
    /// What users declared.
    pub snapshot: Snapshot,
    /// What has joined, and the state of keys and addresses.
    pub inventory: Inventory,
    /// The guards by which the next apply of each project is judged.
    pub guards: Guards,
}

impl ServerInfo {
    /// The range of the tunnels to agents, unless `COMMS_RANGE` sets another.
    pub const DEFAULT_COMMS_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 101, 0, 0), 16);
    /// The name of the server's own host as a node, unless `CLIENT_NAME` sets another.
    pub const DEFAULT_OWN_NODE: &'static str = "netmaker";
}

/// Everything that the caller may see, at one revision.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "World")]
pub struct WorldDocument {
    /// The server.
    pub server: ServerInfo,
    /// The revision.
    pub revision: Revision,
    /// The resources, by id.
    pub resources: Vec<ResourceDocument>,
    /// The nodes that have joined, by network and name.
    pub nodes: Vec<NodeDocument>,
    /// The state of the keys.
    pub keys: Vec<KeyDocument>,
    /// The addresses in quarantine.
    pub quarantine: Vec<QuarantinedDocument>,
    /// The identities that may not join again.
    #[serde(default)]
    pub barred: Vec<BarredDocument>,
    /// The hosts that wait to be let in.
    #[serde(default)]
    pub pending: Vec<PendingDocument>,
    /// The external clients.
    #[serde(default)]
    pub clients: Vec<ClientDocument>,
    /// The nodes that do not carry what they are declared to.
    #[serde(default)]
    pub away: Vec<AwayDocument>,
    /// The egress that a node has carried, at any time.
    #[serde(default)]
    pub carried: Vec<CarriedDocument>,
    /// The name servers that members are given for the names of their networks.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub resolvers: BTreeSet<IpAddr>,
    /// The guards by which the next apply of each project is judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guards: Vec<GuardDocument>,
}

/// A resource, who manages it, and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Resource")]
pub struct ResourceDocument {
    /// Its id.
    pub id: ResourceId,
    /// The revision that wrote it.
    #[serde(default)]
    pub revision: Revision,
    /// Who manages it.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// Its fields.
    #[schemars(with = "Body")]
    pub body: Value,
}

/// A node that has joined.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JoinedNode")]
pub struct NodeDocument {
    /// The network.
    pub network: NetworkName,
    /// Its name there.
    pub name: Name,
    /// The rest.
    #[serde(flatten)]
    pub joined: Joined,
}

/// The state of an access key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Key")]
pub struct KeyDocument {
    /// The key.
    pub id: ResourceId,
    /// The rest.
    #[serde(flatten)]
    pub status: KeyStatus,
}

/// An address in quarantine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Quarantined")]
pub struct QuarantinedDocument {
    /// The network.
    pub network: NetworkName,
    /// The address.
    pub address: IpAddr,
    /// The rest.
    #[serde(flatten)]
    pub quarantined: Quarantined,
}

/// An identity that may not join a network again.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Barred")]
pub struct BarredDocument {
    /// The network.
    pub network: NetworkName,
    /// The identity.
    pub identity: Identity,
    /// The rest.
    #[serde(flatten)]
    pub barred: Barred,
}

/// A host that asked to join without an access key, and waits to be let in.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Pending")]
pub struct PendingDocument {
    /// The network.
    pub network: NetworkName,
    /// Its identity.
    pub identity: Identity,
    /// The rest.
    #[serde(flatten)]
    pub pending: PendingNode,
}

/// The state of an external client.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Client")]
pub struct ClientDocument {
    /// The network.
    pub network: NetworkName,
    /// Its name there.
    pub name: Name,
    /// The rest.
    #[serde(flatten)]
    pub status: ClientStatus,
}

/// A node that does not carry what it is declared to: it is silent, or reports that it cannot.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Away")]
pub struct AwayDocument {
    /// The network.
    pub network: NetworkName,
    /// The node.
    pub name: Name,
    /// The rest.
    #[serde(flatten)]
    pub away: Away,
}

/// An egress to everything that a node has carried, at any time: while none does, traffic is refused.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Carried")]
pub struct CarriedDocument {
    /// The network.
    pub network: NetworkName,
    /// The egress.
    pub egress: Name,
}

/// The guard by which the next apply of a project is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "StoredGuard")]
pub struct GuardDocument {
    /// The project and env.
    pub owner: Owner,
    /// The revision that stored it.
    pub revision: Revision,
    /// Its limits.
    pub limits: Limits,
}

impl World {
    /// Stores the guard that an apply of a project declares, where it changes it, and removes those of projects
    /// that manage nothing any more. The revision is that of the apply.
    pub fn settle_guards(&mut self, owner: Owner, change: Option<&GuardChange>, revision: Revision) {
        if let Some(GuardChange { before: _, after }) = change {
            let limits = after.clone().unwrap_or_default();
            self.guards.put(owner, StoredGuard { revision, limits });
        }
        self.guards.settle(&self.snapshot);
    }

    /// What [`compile`](crate::compile) makes Views of: the declarations, and what has joined.
    pub fn parts(&self) -> (&Snapshot, &Inventory) {
        (&self.snapshot, &self.inventory)
    }

    /// Its form on the wire.
    pub fn document(&self, server: ServerInfo) -> WorldDocument {
        let resource = |(id, entry): (&ResourceId, &Entry)| ResourceDocument {
            id: id.clone(),
            revision: entry.revision,
            owner: entry.owner.clone(),
            body: entry.object.body(),
        };
        let node = |(id, joined): (&NodeId, &std::sync::Arc<Joined>)| NodeDocument {
            network: id.network.clone(),
            name: id.name.clone(),
            joined: (**joined).clone(),
        };
        let quarantined =
            |((network, address), quarantined): (&(NetworkName, IpAddr), &Quarantined)| QuarantinedDocument {
                network: network.clone(),
                address: *address,
                quarantined: quarantined.clone(),
            };
        let barred = |((network, identity), barred): (&(NetworkName, Identity), &Barred)| BarredDocument {
            network: network.clone(),
            identity: *identity,
            barred: barred.clone(),
        };
        let pending =
            |((network, identity), pending): (&(NetworkName, Identity), &std::sync::Arc<PendingNode>)| {
                PendingDocument {
                    network: network.clone(),
                    identity: *identity,
                    pending: (**pending).clone(),
                }
            };
        let client = |(id, status): (&NodeId, &std::sync::Arc<ClientStatus>)| ClientDocument {
            network: id.network.clone(),
            name: id.name.clone(),
            status: (**status).clone(),
        };
        let away = |(id, away): (&NodeId, &Away)| AwayDocument {
            network: id.network.clone(),
            name: id.name.clone(),
            away: away.clone(),
        };
        let carried = |id: &NodeId| CarriedDocument { network: id.network.clone(), egress: id.name.clone() };
        let guard = |(owner, guard): (&Owner, &StoredGuard)| GuardDocument {
            owner: owner.clone(),
            revision: guard.revision,
            limits: guard.limits.clone(),
        };
        let keys = self
            .inventory
            .keys()
            .map(|(id, status)| KeyDocument { id: id.clone(), status: (**status).clone() });
        WorldDocument {
            server,
            revision: self.revision,
            resources: self.snapshot.entries().map(resource).collect(),
            nodes: self.inventory.nodes().map(node).collect(),
            keys: keys.collect(),
            quarantine: self.inventory.quarantined().map(quarantined).collect(),
            barred: self.inventory.barred().map(barred).collect(),
            pending: self.inventory.pending().map(pending).collect(),
            clients: self.inventory.clients().map(client).collect(),
            away: self.inventory.away().map(away).collect(),
            carried: self.inventory.carried().map(carried).collect(),
            resolvers: self.inventory.resolvers().clone(),
            guards: self.guards.iter().map(guard).collect(),
        }
    }
}

impl WorldDocument {
    /// The world that it describes; a report if a resource cannot be read, because the server runs another
    /// version.
    pub fn world(&self) -> Result<World, Report> {
        let mut world = World { epoch: self.server.epoch, revision: self.revision, ..World::default() };
        for document in &self.resources {
            world.snapshot.put(document.id.clone(), document.entry()?);
        }
        for NodeDocument { network, name, joined } in &self.nodes {
            world.inventory.put_node(NodeId::of(network, name), joined.clone());
        }
        for KeyDocument { id, status } in &self.keys {
            world.inventory.put_key(id.clone(), status.clone());
        }
        for QuarantinedDocument { network, address, quarantined } in &self.quarantine {
            world.inventory.put_quarantined(network.clone(), *address, quarantined.clone());
        }
        for BarredDocument { network, identity, barred } in &self.barred {
            world.inventory.bar(network.clone(), *identity, barred.clone());
        }
        for PendingDocument { network, identity, pending } in &self.pending {
            world.inventory.put_pending(network.clone(), *identity, pending.clone());
        }
        for ClientDocument { network, name, status } in &self.clients {
            world.inventory.put_client(NodeId::of(network, name), status.clone(), Timestamp::UNIX_EPOCH);
        }
        for AwayDocument { network, name, away } in &self.away {
            world.inventory.set_away(NodeId::of(network, name), away.clone());
        }
        for CarriedDocument { network, egress } in &self.carried {
            world.inventory.set_carried(NodeId::of(network, egress), true);
        }
        world.inventory.set_resolvers(self.resolvers.clone());
        for GuardDocument { owner, revision, limits } in &self.guards {
            world.guards.put(owner.clone(), StoredGuard { revision: *revision, limits: limits.clone() });
        }
        Ok(world)
    }
}

impl ResourceDocument {
    /// The resource that it describes.
    pub fn entry(&self) -> Result<Entry, Report> {
        let entry = decode_body(&self.id, &self.body)?;
        Ok(Entry { revision: self.revision, owner: self.owner.clone(), ..entry })
    }
}
