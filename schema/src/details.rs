//! Everything that is known of one resource: its declaration, who changed it last, and what has become of it. Pure,
//! from the server's world; what `nmplan show WHAT` prints, as text and with `--json`. Start at [`Details::of`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::{CarrierState, KeyState, LogEntry, carrier_states, key_states};
use crate::compile::carrying::Part;
use crate::compile::{Mesh, endpoint, tags};
use crate::inventory::{Inventory, Joined, NodeId, NodeProblem};
use crate::kinds::{AccessKey, ExternalClient, Kind, Node};
use crate::published::{Body, Time};
use crate::scalars::{Fingerprint, Name, NetworkName, WireGuardKey};
use crate::snapshot::{Owner, ResourceId, Revision, Snapshot};
use crate::text::natural;
use crate::value::Value;
use crate::world::World;

/// How many members are named; more are only counted.
const NAMED: usize = 10;

/// Everything that is known of one resource.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "about", rename_all = "kebab-case")]
#[schemars(extend("title" = "What `nmplan show WHAT --json` prints"))]
pub enum Details {
    /// A network.
    Network(NetworkDetails),
    /// A node, declared, joined or both; or a host that waits to be one.
    Node(NodeDetails),
    /// An access key.
    AccessKey(KeyDetails),
    /// An external client.
    ExternalClient(ClientDetails),
    /// A resource of another kind.
    Resource(ResourceDetails),
}

/// How a resource is declared.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Declaration {
    /// Its id.
    pub id: ResourceId,
    /// Its fields, without those that have their defaults; null: it is a node that no file declares.
    #[schemars(with = "Option<Body>")]
    pub body: Option<Value>,
    /// Who manages it; null: nobody.
    pub owner: Option<Owner>,
    /// The revision that wrote it; null: it is not declared.
    pub revision: Option<Revision>,
    /// Who made that revision; null: it is not declared, or the log does not say.
    pub changed: Option<Changed>,
}

/// Who made a revision, when and from which files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Changed {
    /// When.
    #[schemars(with = "Time")]
    pub time: Timestamp,
    /// Who: a token's id.
    pub actor: String,
    /// What was done: `apply`, `put`.
    pub action: String,
    /// The git commit of the files; null: not known.
    pub commit: Option<String>,
    /// The first line of its message; null: not known.
    pub message: Option<String>,
}

impl Changed {
    fn of(entry: &LogEntry) -> Self {
        let provenance = entry.provenance.as_ref();
        Self {
            time: entry.time,
            actor: entry.actor.clone(),
            action: entry.action.clone(),
            commit: provenance.and_then(|provenance| provenance.commit.clone()),
            message: provenance.and_then(|provenance| provenance.message.clone()),
        }
    }
}

/// A resource of which there is no more than its declaration, and perhaps who carries it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct ResourceDetails {
    /// Its declaration.
    #[serde(flatten)]
    pub declaration: Declaration,
    /// Which node carries it; null: it is nothing that is carried.
    pub carried: Option<CarrierState>,
}

/// A network and what is in it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct NetworkDetails {
    /// Its declaration.
    #[serde(flatten)]
    pub declaration: Declaration,
    /// Its ranges.
    pub ranges: Vec<RangeUse>,
    /// The nodes that have joined.
    pub joined: Vec<Name>,
    /// The declared nodes that have not.
    pub awaited: Vec<Name>,
    /// The hosts that wait to be let in, by the names that they asked for.
    pub pending: Vec<Name>,
    /// The external clients.
    pub clients: Vec<Name>,
    /// The access keys.
    pub keys: Vec<KeyState>,
    /// Which node carries each egress, ingress and relay.
    pub carried: Vec<CarrierState>,
}

/// How much of a range is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RangeUse {
    /// The range.
    #[schemars(with = "String")]
    pub range: IpNet,
    /// The addresses that nodes and external clients have.
    pub used: u64,
    /// The addresses that members have left, and that nobody else gets for a while.
    pub quarantined: u64,
    /// The addresses that are left; null: more than 2^53.
    pub free: Option<u64>,
}

/// A node.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct NodeDetails {
    /// Its declaration.
    #[serde(flatten)]
    pub declaration: Declaration,
    /// Its tags: those of its declaration, and those that it has by the key that it joined with.
    pub tags: BTreeSet<Name>,
    /// Its addresses; those that are reserved, until it joins.
    pub addresses: BTreeSet<IpAddr>,
    /// What is known of the host that is the node; null: none has joined.
    pub joined: Option<JoinedDetails>,
    /// The hosts that wait to be let in under its name.
    pub pending: Vec<Fingerprint>,
    /// The access keys with which a host may join as it at present; none once one has.
    pub admitted_by: Vec<KeyState>,
    /// What it carries for others, or would.
    pub carries: Vec<CarriedPart>,
}

/// A host that is a node.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct JoinedDetails {
    /// When it joined.
    #[schemars(with = "Time")]
    pub since: Timestamp,
    /// The key that it joined with; null: it was let in without.
    pub key: Option<Name>,
    /// Whether it leaves with its declaration.
    pub claimed: bool,
    /// The fingerprint of its identity.
    pub fingerprint: Fingerprint,
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// Where other nodes reach it; null: it has to send first.
    pub endpoint: Option<String>,
    /// What it runs, by its own report.
    pub os: Box<str>,
    /// How many WireGuard peers it has been sent.
    pub peers: u32,
    /// The members that it may open anything at.
    pub opens: Members,
    /// The ranges outside of the network, or parts of them, that it has a route to and may open anything at.
    #[schemars(with = "Vec<String>")]
    pub opens_outside: BTreeSet<IpNet>,
    /// The members that may open anything at it.
    pub opened_by: Members,
    /// What is not as it should be on its host.
    pub problems: Vec<NodeProblem>,
}

/// Some members of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Members {
    /// How many there are.
    pub count: u64,
    /// The first of them by name: at most 10.
    pub first: Vec<Name>,
}

/// What a node does for something that is carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CarriedPart {
    /// The egress, ingress or relay; the network, of its hub.
    pub id: ResourceId,
    /// What it does.
    pub part: Part,
}

/// An access key.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct KeyDetails {
    /// Its declaration.
    #[serde(flatten)]
    pub declaration: Declaration,
    /// When it was made; null: not yet.
    #[schemars(with = "Option<Time>")]
    pub created: Option<Timestamp>,
    /// Its state; null: it has not been made yet.
    pub state: Option<KeyState>,
    /// How often it may still be used; null: any number of times, or it has not been made yet.
    pub left: Option<u32>,
    /// How many seconds are left until it expires; null: it never does, or has.
    pub expires_in: Option<i64>,
    /// The nodes that joined with it and are still there, by when they did.
    pub joined: Vec<JoinedWith>,
    /// The nodes whose names it claims.
    pub claims: Vec<Claimed>,
}

/// A node that joined with a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct JoinedWith {
    /// The node.
    pub node: Name,
    /// When.
    #[schemars(with = "Time")]
    pub since: Timestamp,
}

/// A node that a key is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Claimed {
    /// The node.
    pub node: Name,
    /// Whether a host is that node.
    pub joined: bool,
}

/// An external client.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct ClientDetails {
    /// Its declaration.
    #[serde(flatten)]
    pub declaration: Declaration,
    /// Its addresses; none while it is not let in.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether it is let in.
    pub state: ClientState,
    /// When it expires; null: never.
    #[schemars(with = "Option<Time>")]
    pub expires: Option<Timestamp>,
    /// The node of its ingress, which carries its traffic; null: that has not joined.
    pub carrier: Option<Name>,
}

/// Whether an external client is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClientState {
    /// It is.
    LetIn,
    /// It has no `public-key` yet: nothing was handed out.
    WithoutKey,
    /// Its `enabled` is false.
    Disabled,
    /// It has expired.
    Expired,
}

impl Details {
    /// What is known of a resource that [`find`](crate::lookup::find) found; `log` is the entry of the revision that
    /// wrote its declaration, if there is one.
    pub fn of(id: &ResourceId, world: &World, log: Option<&LogEntry>, now: Timestamp) -> Self {
        let entry = world.snapshot.entry(id);
        let declaration = Declaration {
            id: id.clone(),
            body: entry.map(|entry| entry.object.body()),
            owner: entry.and_then(|entry| entry.owner.clone()),
            revision: entry.map(|entry| entry.revision),
            changed: entry.and(log).map(Changed::of),
        };
        let (declared, _) = world.parts();
        if id.kind == Kind::Network {
            Self::Network(network(declaration, world, now))
        } else if id.kind == Kind::Node {
            Self::Node(node(declaration, world, now))
        } else if id.kind == Kind::AccessKey {
            Self::AccessKey(key(declaration, world, now))
        } else if id.kind == Kind::ExternalClient {
            Self::ExternalClient(client(declaration, world))
        } else {
            let carried = carrier_states(&id.network, declared, &world.inventory);
            let carried = carried.into_iter().find(|state| state.id == *id);
            Self::Resource(ResourceDetails { declaration, carried })
        }
    }

    /// How it is declared.
    pub fn declaration(&self) -> &Declaration {
        match self {
            Self::Network(NetworkDetails { declaration, .. })
            | Self::Node(NodeDetails { declaration, .. })
            | Self::AccessKey(KeyDetails { declaration, .. })
            | Self::ExternalClient(ClientDetails { declaration, .. })
            | Self::Resource(ResourceDetails { declaration, .. }) => declaration,
        }
    }
}

fn network(declaration: Declaration, world: &World, now: Timestamp) -> NetworkDetails {
    let (declared, inventory) = world.parts();
    let network = &declaration.id.network.clone();
    let settings = declared.network(network);
    let ranges = settings.map(|settings| settings.ranges().collect()).unwrap_or_else(Vec::new);
    let is_joined = |id: &&ResourceId| inventory.node(&id.node()).is_some();
    let named = |ids: Vec<&ResourceId>| ids.into_iter().map(|id| id.name.clone()).collect();
    let awaited = declared.ids_of(network, Kind::Node).filter(|id| !is_joined(id)).collect();
    let mut keys = key_states(declared, inventory, now);
    keys.retain(|key| key.id.network == *network);
    keys.sort_by(|one, other| natural(one.id.name.as_str(), other.id.name.as_str()));
    NetworkDetails {
        ranges: ranges.into_iter().map(|range| range_use(range, network, inventory)).collect(),
        joined: sorted(inventory.nodes_in(network).map(|(name, _)| name.clone()).collect()),
        awaited: sorted(named(awaited)),
        pending: sorted(inventory.pending_in(network).map(|(_, host)| host.name.clone()).collect()),
        clients: sorted(named(declared.ids_of(network, Kind::ExternalClient).collect())),
        keys,
        carried: carrier_states(network, declared, inventory),
        declaration,
    }
}

fn sorted(mut names: Vec<Name>) -> Vec<Name> {
    names.sort_by(|one, other| natural(one.as_str(), other.as_str()));
    names
}

fn range_use(range: IpNet, network: &NetworkName, inventory: &Inventory) -> RangeUse {
    /// The largest number that every reader of JSON reads as it is (RFC 8259, section 6).
    const COUNTED: u128 = 1 << 53;
    let used =
        inventory.addresses_from(network, range.network()).take_while(|(it, _)| range.contains(it)).count();
    let quarantined =
        inventory.quarantined_in(network).filter(|(address, _)| range.contains(address)).count();
    // An IPv4 range loses its first address and its last, an IPv6 range its first.
    let lost = if range.addr().is_ipv4() { 2 } else { 1 };
    let all = 2_u128.saturating_pow(u32::from(range.max_prefix_len() - range.prefix_len()));
    let free = all.saturating_sub(lost + used as u128 + quarantined as u128);
    let free = u64::try_from(free).ok().filter(|free| u128::from(*free) <= COUNTED);
    RangeUse { range, used: used as u64, quarantined: quarantined as u64, free }
}

fn node(declaration: Declaration, world: &World, now: Timestamp) -> NodeDetails {
    let (declared, inventory) = world.parts();
    let id = declaration.id.node();
    let node = declared.named::<Node>(&id.network, &id.name).map(|node| &**node);
    let joined = inventory.node(&id).map(|joined| &**joined);
    let reserved = || node.into_iter().flat_map(|node| node.reserved().map(|(_, address)| address));
    let waits = inventory.pending_in(&id.network).filter(|(_, host)| host.name == id.name);
    NodeDetails {
        tags: tags(joined, node),
        addresses: joined.map_or_else(|| reserved().collect(), |joined| joined.addresses.clone()),
        joined: joined.map(|joined| joined_details(&id, joined, node, world)),
        pending: waits.map(|(identity, _)| identity.fingerprint()).collect(),
        admitted_by: if joined.is_some() { Vec::new() } else { admitting(&id, declared, inventory, now) },
        carries: parts(&id, declared, inventory),
        declaration,
    }
}

/// The access keys with which a host may join as a declared node: those that are open and name it in `for`.
pub fn admitting(id: &NodeId, declared: &Snapshot, inventory: &Inventory, now: Timestamp) -> Vec<KeyState> {
    let admits = |state: &KeyState| {
        let key = declared.named::<AccessKey>(&id.network, &state.id.name);
        let named = key.is_some_and(|key| key.r#for.iter().any(|node| node.name == id.name));
        state.id.network == id.network && state.is_open() && named
    };
    key_states(declared, inventory, now).into_iter().filter(admits).collect()
}

/// What a node does for what is carried.
fn parts(id: &NodeId, declared: &Snapshot, inventory: &Inventory) -> Vec<CarriedPart> {
    let carried = carrier_states(&id.network, declared, inventory).into_iter();
    let part = |state: CarrierState| {
        let part = if state.carrier.as_ref() == Some(&id.name) { Part::Carries } else { Part::StandsBy };
        state.candidates.contains(&id.name).then_some(CarriedPart { id: state.id, part })
    };
    let hub = declared.network(&id.network).and_then(|settings| settings.hub.as_ref());
    let hub = hub.filter(|hub| hub.name == id.name).map(|_| {
        let part = if inventory.node(id).is_some() { Part::Carries } else { Part::StandsBy };
        CarriedPart { id: ResourceId::of_network(id.network.clone()), part }
    });
    hub.into_iter().chain(carried.filter_map(part)).collect()
}

fn joined_details(id: &NodeId, joined: &Joined, node: Option<&Node>, world: &World) -> JoinedDetails {
    let Joined { public_key, identity, key, claimed, joined: since, problems, os, .. } = joined;
    let mesh = Mesh::compile(&id.network, &world.snapshot, &world.inventory);
    let Reach { opens, opens_outside, opened_by } =
        mesh.as_ref().map(|mesh| reach(mesh, &id.name)).unwrap_or_default();
    JoinedDetails {
        since: *since,
        key: key.clone(),
        claimed: *claimed,
        fingerprint: identity.fingerprint(),
        public_key: *public_key,
        endpoint: endpoint(node.and_then(|node| node.endpoint.as_ref()), joined).map(|it| it.to_string()),
        os: os.clone(),
        peers: mesh.map_or(0, |mesh| mesh.counts(&id.name).peers),
        opens,
        opens_outside,
        opened_by,
        problems: problems.clone(),
    }
}

/// Whom a node may open anything at, and who may at it.
#[derive(Default)]
struct Reach {
    opens: Members,
    opens_outside: BTreeSet<IpNet>,
    opened_by: Members,
}

/// Whom a node reaches, class by class.
fn reach(mesh: &Mesh, name: &Name) -> Reach {
    let policy = mesh.policy();
    let Some(class) = mesh.class_of(name).and_then(|class| mesh.class(&class)) else {
        return Reach::default();
    };
    let own = policy.standing(class);
    let (mut to, mut from) = (Vec::new(), Vec::new());
    for (class, members) in mesh.classes() {
        let other = policy.standing(class);
        let names = || members.keys().filter(|member| *member != name).cloned();
        if !policy.between(&own, &other).is_nothing() {
            to.extend(names());
        }
        if !policy.between(&other, &own).is_nothing() {
            from.extend(names());
        }
    }
    let members = |names: Vec<Name>| {
        let count = names.len() as u64;
        Members { count, first: sorted(names).into_iter().take(NAMED).collect() }
    };
    let outside = mesh.ways().ranges().filter(|(_, way)| {
        let forwards = way.via.contains(name);
        !forwards && class.is_on(way.side) && !policy.between(&own, &policy.standing(&way.class)).is_nothing()
    });
    let opens_outside = outside.map(|(range, _)| *range).collect();
    Reach { opens: members(to), opens_outside, opened_by: members(from) }
}

fn key(declaration: Declaration, world: &World, now: Timestamp) -> KeyDetails {
    let (declared, inventory) = world.parts();
    let id = &declaration.id;
    let key = declared.named::<AccessKey>(&id.network, &id.name);
    let status = inventory.key(id);
    let state = key_states(declared, inventory, now).into_iter().find(|state| state.id == *id);
    let mut joined: Vec<_> = inventory
        .nodes_in(&id.network)
        .filter(|(_, joined)| joined.key.as_ref() == Some(&id.name))
        .map(|(node, joined)| JoinedWith { node: node.clone(), since: joined.joined })
        .collect();
    joined.sort_by(|one, other| {
        one.since.cmp(&other.since).then_with(|| natural(one.node.as_str(), other.node.as_str()))
    });
    let claims = sorted(key.iter().flat_map(|key| &key.r#for).map(|node| node.name.clone()).collect());
    let is_joined = |node: &Name| inventory.node(&NodeId::of(&id.network, node)).is_some();
    let expires = state.as_ref().and_then(|state| state.expires);
    KeyDetails {
        created: status.map(|status| status.created),
        left: state.as_ref().and_then(KeyState::left),
        expires_in: expires.map(|end| end.duration_since(now).as_secs()).filter(|seconds| *seconds > 0),
        joined,
        claims: claims.into_iter().map(|node| Claimed { joined: is_joined(&node), node }).collect(),
        state,
        declaration,
    }
}

fn client(declaration: Declaration, world: &World) -> ClientDetails {
    let (declared, inventory) = world.parts();
    let id = declaration.id.node();
    let client = declared.named::<ExternalClient>(&id.network, &id.name);
    let status = inventory.client(&id);
    let state = match client {
        Some(client) if !client.enabled => ClientState::Disabled,
        _ if status.is_some_and(|status| status.expired) => ClientState::Expired,
        Some(client) if client.public_key.is_some() => ClientState::LetIn,
        Some(_) | None => ClientState::WithoutKey,
    };
    let carried = carrier_states(&id.network, declared, inventory).into_iter();
    let of_ingress = |state: &CarrierState| {
        state.id.kind == Kind::Ingress && client.is_some_and(|client| client.via.name == state.id.name)
    };
    ClientDetails {
        addresses: status.map(|status| status.addresses.clone()).unwrap_or_default(),
        state,
        expires: status.zip(client).and_then(|(status, client)| status.expires(client)),
        carrier: carried.clone().find(of_ingress).and_then(|state| state.carrier),
        declaration,
    }
}
