//! What the server knows and no file says: which nodes have joined, the state of keys, which addresses are in
//! quarantine.
//!
//! Users own the [`Snapshot`](crate::snapshot::Snapshot), the server owns this; nothing is written by both. A
//! change of the declarations changes it by [`compile::reconcile`](crate::compile::reconcile).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::ordset::DiffItem as SetItem;
use imbl::{OrdMap, OrdSet};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kinds::{AccessKey, ExternalClient};
use crate::rules::endpoints::Members;
use crate::scalars::{Endpoint, Identity, Name, NetworkName, Time, Verifier, WireGuardKey};
pub use crate::snapshot::NodeId;
use crate::snapshot::ResourceId;

/// A node that has joined a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Joined {
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// Its identity at the server.
    pub identity: Identity,
    /// Its addresses in the network: one of each family that the network has.
    pub addresses: BTreeSet<IpAddr>,
    /// Where the others may reach it, by source.
    pub endpoints: Endpoints,
    /// The UDP port that it listens on.
    pub listen_port: u16,
    /// The tags of the key that it joined with, as they were then.
    pub tags: BTreeSet<Name>,
    /// The key that it joined with.
    pub key: Option<Name>,
    /// Whether it claimed a declared name, through the `for` of its key; then it is removed with its
    /// declaration.
    pub claimed: bool,
    /// When it joined.
    #[schemars(with = "Time")]
    pub joined: Timestamp,
    /// What is not as it should be on its host, by code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<NodeProblem>,
    /// What it runs, by its own report; only shown.
    pub os: Box<str>,
}

/// Where a node that has joined may be reached, by source. The compiler decides which one is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// What its operator configured on the host; absent: nothing.
    pub configured: Option<Endpoint>,
    /// The address that its check-ins came from; absent: none that others can use.
    pub seen: Option<IpAddr>,
    /// The host's own address on its default route, as the agent reports it; absent: none that others can
    /// use.
    pub local: Option<IpAddr>,
}

/// Something on a node's host that is not as it should be, while the rest works.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeProblem {
    /// What it is, in a word that programs can ask for: one of the constants of this type, or one of a newer
    /// agent.
    pub code: Box<str>,
    /// What happened and what to do, for people.
    pub message: Box<str>,
    /// The egress that the node cannot carry because of it; absent: it is about all of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Name>,
}

impl NodeProblem {
    /// The host has IPv6 turned off: the node has no IPv6 address.
    pub const NO_IPV6: &str = "no-ipv6";
    /// The device passes on smaller packets than the network's mtu.
    pub const MTU: &str = "mtu";
    /// The file of names cannot be written.
    pub const NAMES: &str = "names";
    /// The host does not forward packets that it should: it carries nothing.
    pub const FORWARDING: &str = "forwarding";
    /// The host cannot forward to an egress: its interface, or its route to a range, is missing.
    pub const EGRESS: &str = "egress";
    /// Another interface of the host is connected to all of a range of the network, or is another network's
    /// of the same range.
    pub const RANGE_CONNECTED: &str = "range-connected";
    /// Another interface of the host is connected to a part of a range of the network, or is another
    /// network's.
    pub const RANGE_SHADOWED: &str = "range-shadowed";
    /// A route or a rule of another program leads what is for a range of the network elsewhere.
    pub const RANGE_ROUTED_ELSEWHERE: &str = "range-routed-elsewhere";
    /// A range contains the server's address, and the host cannot keep control traffic outside: it is not
    /// routed.
    pub const RANGE_HOLDS_SERVER: &str = "range-holds-server";
    /// Control traffic and tunnels are not kept outside of networks.
    pub const NO_FILTER: &str = "no-filter";
    /// The host cannot enforce the access rules of the network: it has no peers that it would have to
    /// restrict.
    pub const RULES_NOT_ENFORCED: &str = "rules-not-enforced";
    /// The kernel drops what is marked where it filters reverse paths strictly.
    pub const MARKS_UNHEEDED: &str = "marks-unheeded";
    /// The kernel takes packets of TCP connections that went on through another gateway for those of none.
    pub const STRICT_CONNECTIONS: &str = "strict-connections";
    /// The WireGuard device does not answer: known to the host alone.
    pub const DEVICE: &str = "device";
    /// The WireGuard device is of another kind than the setting wants, since it existed before.
    pub const DEVICE_KIND: &str = "device-kind";
    /// Two hosts use the identity of the node, as after its state was copied: known to the server alone.
    pub const CLONED: &str = "cloned";
    /// How many of them a node reports at most.
    pub const MOST: usize = 16;

    /// A problem of that code.
    pub fn new(code: &str, message: impl Into<Box<str>>) -> Self {
        Self { code: code.into(), message: message.into(), egress: None }
    }

    /// The same, about an egress that the node cannot carry because of it.
    pub fn of_egress(self, egress: Name) -> Self {
        Self { egress: Some(egress), ..self }
    }
}

impl Joined {
    /// Its addresses that others reach: without those that its host could not set.
    pub fn reachable(&self) -> BTreeSet<IpAddr> {
        let no_ipv6 = self.problems.iter().any(|problem| &*problem.code == NodeProblem::NO_IPV6);
        self.addresses.iter().copied().filter(|address| address.is_ipv4() || !no_ipv6).collect()
    }
}

/// The state of an external client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClientStatus {
    /// Its addresses in the network: one of each family that the network has; none while it is not let in.
    pub addresses: BTreeSet<IpAddr>,
    /// When it was created.
    #[schemars(with = "Time")]
    pub created: Timestamp,
    /// Whether it has expired.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
}

impl ClientStatus {
    /// When the client is cut off; absent: never.
    pub fn expires(&self, client: &ExternalClient) -> Option<Timestamp> {
        client.expires.map(|expires| expires.moment(self.created))
    }
}

/// What a node does not carry at present, though it is declared to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Away {
    /// Whether it carries nothing: it is silent, or cannot forward.
    pub everything: bool,
    /// The egress that it cannot carry.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub egress: BTreeSet<Name>,
}

/// The state of an access key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyStatus {
    /// What verifies the signature of a holder of its token.
    pub verifier: Verifier,
    /// When it was created.
    #[schemars(with = "Time")]
    pub created: Timestamp,
    /// How many nodes have joined with it.
    pub used: u32,
}

/// The secrets that a deleted access key had: a host with an old token is sent what became of its key, and
/// nobody without one is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerKey {
    /// What verified them, newest first; at most [`FormerKey::MOST_SECRETS`].
    pub verifiers: Vec<Verifier>,
    /// When the newest was deleted.
    pub deleted: Timestamp,
}

impl FormerKey {
    /// How many secrets of one id are remembered.
    pub const MOST_SECRETS: usize = 4;
    /// How many ids of a network are remembered; the one that was deleted first goes first.
    pub const MOST_KEYS: usize = 256;
}

/// Whether a key lets hosts join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It does.
    Open,
    /// It expired at this time.
    Expired(Timestamp),
    /// It has been used this often, which is as often as it may.
    Spent(u32),
}

impl KeyStatus {
    /// When the key expires; absent: never.
    pub fn expires(&self, key: &AccessKey) -> Option<Timestamp> {
        key.expires.map(|expires| expires.moment(self.created))
    }

    /// Whether the key lets hosts join. One with `for` is never used up: each of its names is claimed once at
    /// a time, and again after its node was removed.
    pub fn admission(&self, key: &AccessKey, now: Timestamp) -> Admission {
        match (self.expires(key), key.uses().left(self.used)) {
            (Some(end), _) if end <= now => Admission::Expired(end),
            (_, Some(0)) if key.r#for.is_empty() => Admission::Spent(self.used),
            _ => Admission::Open,
        }
    }
}

/// An address that a node has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quarantined {
    /// When its quarantine began.
    #[schemars(with = "Time")]
    pub since: Timestamp,
    /// The node that had it, which may have it back at once.
    pub node: Name,
}

/// An identity that may not join a network again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Barred {
    /// When it was barred.
    #[schemars(with = "Time")]
    pub since: Timestamp,
    /// The node that it was when it was removed.
    pub node: Name,
}

/// A host that asked to join a network without an access key, and waits to be let in. It is no member: it has
/// no address, no name and no peers, and no node is sent anything of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingNode {
    /// The name that it asked for; others may have asked for the same.
    pub name: Name,
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// Where the others will reach it, by source.
    pub endpoints: Endpoints,
    /// The UDP port that it listens on; absent: it has not chosen one.
    pub listen_port: Option<u16>,
    /// When it asked first.
    #[schemars(with = "Time")]
    pub since: Timestamp,
    /// The address that it asked from; absent: not known.
    pub seen: Option<IpAddr>,
    /// What it runs, by its own report; only shown.
    pub os: Box<str>,
}

impl PendingNode {
    /// How many wait for one network at most.
    pub const MOST: usize = 100;
    /// How many of them asked from one address at most, or one /64 of IPv6.
    pub const MOST_FROM_ONE: usize = 20;
    /// How long each waits.
    pub const LIFE: SignedDuration = SignedDuration::from_hours(24);

    /// When it is dropped, unless it is let in before.
    pub fn until(&self) -> Timestamp {
        self.since.checked_add(Self::LIFE).unwrap_or(Timestamp::MAX)
    }
}

/// Everything that the server knows and no file says. Clones share what they have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    nodes: OrdMap<NodeId, Arc<Joined>>,
    identities: OrdMap<(NetworkName, Identity), Name>,
    public_keys: OrdMap<(NetworkName, WireGuardKey), Name>,
    /// How many networks each identity has joined.
    joins: OrdMap<Identity, u32>,
    addresses: OrdMap<(NetworkName, IpAddr), Name>,
    keys: OrdMap<ResourceId, Arc<KeyStatus>>,
    former_keys: OrdMap<ResourceId, FormerKey>,
    quarantine: OrdMap<(NetworkName, IpAddr), Quarantined>,
    barred: OrdMap<(NetworkName, Identity), Barred>,
    pending: OrdMap<(NetworkName, Identity), Arc<PendingNode>>,
    clients: OrdMap<NodeId, Arc<ClientStatus>>,
    away: OrdMap<NodeId, Away>,
    /// The egress, by network and name, that a node has carried at least once.
    carried: OrdSet<NodeId>,
    resolvers: BTreeSet<IpAddr>,
}

/// How far a stored moment may lie in the future and still be right: clocks are corrected by a little all the
/// time.
pub const SLACK: SignedDuration = SignedDuration::from_secs(60);

/// What differs between two inventories.
pub struct Differences<'a> {
    /// Nodes.
    pub nodes: Vec<DiffItem<'a, 'a, NodeId, Arc<Joined>>>,
    /// Keys.
    pub keys: Vec<DiffItem<'a, 'a, ResourceId, Arc<KeyStatus>>>,
    /// Keys that were deleted.
    pub former_keys: Vec<DiffItem<'a, 'a, ResourceId, FormerKey>>,
    /// Addresses in quarantine.
    pub quarantine: Vec<DiffItem<'a, 'a, (NetworkName, IpAddr), Quarantined>>,
    /// Identities that are barred.
    pub barred: Vec<DiffItem<'a, 'a, (NetworkName, Identity), Barred>>,
    /// Hosts that wait to be let in.
    pub pending: Vec<DiffItem<'a, 'a, (NetworkName, Identity), Arc<PendingNode>>>,
    /// External clients.
    pub clients: Vec<DiffItem<'a, 'a, NodeId, Arc<ClientStatus>>>,
    /// Nodes that do not carry what they should.
    pub away: Vec<DiffItem<'a, 'a, NodeId, Away>>,
    /// Egress that were carried at least once.
    pub carried: Vec<SetItem<'a, 'a, NodeId>>,
    /// The name servers that nodes are given, if they are others.
    pub resolvers: Option<&'a BTreeSet<IpAddr>>,
}

impl Members for Inventory {
    fn holder(&self, network: &NetworkName, address: IpAddr) -> Option<&Name> {
        Self::holder(self, network, address)
    }
}

impl Inventory {
    /// The node of that name.
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Joined>> {
        self.nodes.get(id)
    }

    /// Every node of a network, by name.
    pub fn nodes_in<'a>(
        &'a self,
        network: &'a NetworkName,
    ) -> impl Iterator<Item = (&'a Name, &'a Arc<Joined>)> {
        self.nodes
            .range(NodeId::of(network, &Name::lowest())..)
            .take_while(move |(id, _)| id.network == *network)
            .map(|(id, joined)| (&id.name, joined))
    }

    /// Every node of every network.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeId, &Arc<Joined>)> {
        self.nodes.iter()
    }

    /// The name under which an identity has joined a network.
    pub fn name_of(&self, network: &NetworkName, identity: &Identity) -> Option<&Name> {
        self.identities.get(&(network.clone(), *identity))
    }

    /// The node that has a WireGuard key.
    pub fn holder_of_key(&self, network: &NetworkName, key: &WireGuardKey) -> Option<&Name> {
        self.public_keys.get(&(network.clone(), *key))
    }

    /// Whether an identity has joined any network.
    pub fn knows(&self, identity: &Identity) -> bool {
        self.joins.contains_key(identity)
    }

    /// The node that has an address.
    pub fn holder(&self, network: &NetworkName, address: IpAddr) -> Option<&Name> {
        self.addresses.get(&(network.clone(), address))
    }

    /// The addresses in use in a network, from `first` on, in order, IPv4 before IPv6.
    pub fn addresses_from(
        &self,
        network: &NetworkName,
        first: IpAddr,
    ) -> impl Iterator<Item = (IpAddr, &Name)> {
        let network = network.clone();
        self.addresses
            .range((network.clone(), first)..)
            .take_while(move |((of, _), _)| *of == network)
            .map(|((_, address), name)| (*address, name))
    }

    /// When the quarantine of an address began, and which node left it; nothing if it is not in quarantine.
    pub fn quarantine_of(&self, network: &NetworkName, address: IpAddr) -> Option<&Quarantined> {
        self.quarantine.get(&(network.clone(), address))
    }

    /// The addresses in quarantine in a network.
    pub fn quarantined_in(&self, network: &NetworkName) -> impl Iterator<Item = (IpAddr, &Quarantined)> {
        let network = network.clone();
        self.quarantine
            .range((network.clone(), IpAddr::V4(0.into()))..)
            .take_while(move |((of, _), _)| *of == network)
            .map(|((_, address), quarantined)| (*address, quarantined))
    }

    /// The state of a key.
    pub fn key(&self, id: &ResourceId) -> Option<&Arc<KeyStatus>> {
        self.keys.get(id)
    }

    /// Every key.
    pub fn keys(&self) -> impl Iterator<Item = (&ResourceId, &Arc<KeyStatus>)> {
        self.keys.iter()
    }

    /// Every address in quarantine.
    pub fn quarantined(&self) -> impl Iterator<Item = (&(NetworkName, IpAddr), &Quarantined)> {
        self.quarantine.iter()
    }

    /// Since when an identity is barred from a network, and as which node it was removed; nothing if it is
    /// not barred.
    pub fn barred_from(&self, network: &NetworkName, identity: &Identity) -> Option<&Barred> {
        self.barred.get(&(network.clone(), *identity))
    }

    /// Every identity that is barred.
    pub fn barred(&self) -> impl Iterator<Item = (&(NetworkName, Identity), &Barred)> {
        self.barred.iter()
    }

    /// Bars an identity from a network.
    pub fn bar(&mut self, network: NetworkName, identity: Identity, barred: Barred) {
        self.barred.insert((network, identity), barred);
    }

    /// Lets an identity join a network again.
    pub fn end_bar(&mut self, network: &NetworkName, identity: &Identity) {
        self.barred.remove(&(network.clone(), *identity));
    }

    /// The host of an identity, where it waits to be let into a network.
    pub fn pending_of(&self, network: &NetworkName, identity: &Identity) -> Option<&Arc<PendingNode>> {
        self.pending.get(&(network.clone(), *identity))
    }

    /// The hosts that wait to be let into a network, by identity.
    pub fn pending_in(&self, network: &NetworkName) -> impl Iterator<Item = (&Identity, &Arc<PendingNode>)> {
        let network = network.clone();
        self.pending
            .range((network.clone(), Identity([0; 32]))..)
            .take_while(move |((of, _), _)| *of == network)
            .map(|((_, identity), pending)| (identity, pending))
    }

    /// Every host that waits to be let in.
    pub fn pending(&self) -> impl Iterator<Item = (&(NetworkName, Identity), &Arc<PendingNode>)> {
        self.pending.iter()
    }

    /// Makes a host wait to be let in; one that is in does not.
    pub fn put_pending(&mut self, network: NetworkName, identity: Identity, pending: PendingNode) {
        if self.name_of(&network, &identity).is_none() {
            self.pending.insert((network, identity), Arc::new(pending));
        }
    }

    /// Ends the waiting of a host; whether it waited.
    pub fn end_pending(&mut self, network: &NetworkName, identity: &Identity) -> bool {
        self.pending.remove(&(network.clone(), *identity)).is_some()
    }

    /// The state of an external client.
    pub fn client(&self, id: &NodeId) -> Option<&Arc<ClientStatus>> {
        self.clients.get(id)
    }

    /// Every external client of a network, by name.
    pub fn clients_in<'a>(
        &'a self,
        network: &'a NetworkName,
    ) -> impl Iterator<Item = (&'a Name, &'a Arc<ClientStatus>)> {
        self.clients
            .range(NodeId::of(network, &Name::lowest())..)
            .take_while(move |(id, _)| id.network == *network)
            .map(|(id, status)| (&id.name, status))
    }

    /// Every external client of every network.
    pub fn clients(&self) -> impl Iterator<Item = (&NodeId, &Arc<ClientStatus>)> {
        self.clients.iter()
    }

    /// Adds or replaces an external client; addresses that it had and has no longer are in quarantine from
    /// `now` on.
    pub fn put_client(&mut self, id: NodeId, status: ClientStatus, now: Timestamp) {
        self.remove_client(&id, now);
        for address in &status.addresses {
            self.addresses.insert((id.network.clone(), *address), id.name.clone());
            self.quarantine.remove(&(id.network.clone(), *address));
        }
        self.clients.insert(id, Arc::new(status));
    }

    /// Removes an external client; its addresses are in quarantine from now on.
    pub fn remove_client(&mut self, id: &NodeId, now: Timestamp) -> Option<Arc<ClientStatus>> {
        let status = self.clients.remove(id)?;
        for address in &status.addresses {
            let key = (id.network.clone(), *address);
            self.addresses.remove(&key);
            self.quarantine.insert(key, Quarantined { since: now, node: id.name.clone() });
        }
        Some(status)
    }

    /// Whether a node carries nothing at present, or not the given egress.
    pub fn is_away(&self, id: &NodeId, egress: Option<&Name>) -> bool {
        let away = self.away.get(id);
        away.is_some_and(|away| away.everything || egress.is_some_and(|egress| away.egress.contains(egress)))
    }

    /// What a node does not carry at present; absent: it carries everything.
    pub fn away_of(&self, id: &NodeId) -> Option<&Away> {
        self.away.get(id)
    }

    /// Every node that does not carry what it should.
    pub fn away(&self) -> impl Iterator<Item = (&NodeId, &Away)> {
        self.away.iter()
    }

    /// Says what a node does not carry; nothing: it carries everything.
    pub fn set_away(&mut self, id: NodeId, away: Away) {
        if away == Away::default() {
            self.away.remove(&id);
        } else {
            self.away.insert(id, away);
        }
    }

    /// Whether a node has carried an egress, at any time.
    pub fn was_carried(&self, egress: &NodeId) -> bool {
        self.carried.contains(egress)
    }

    /// Every egress that a node has carried, at any time: by network and name.
    pub fn carried(&self) -> impl Iterator<Item = &NodeId> {
        self.carried.iter()
    }

    /// Says whether a node has carried an egress.
    pub fn set_carried(&mut self, egress: NodeId, carried: bool) {
        if carried {
            self.carried.insert(egress);
        } else {
            self.carried.remove(&egress);
        }
    }

    /// The name servers that members are given for the names of their networks (`COREDNS_ADDR`).
    pub fn resolvers(&self) -> &BTreeSet<IpAddr> {
        &self.resolvers
    }

    /// Gives members other name servers.
    pub fn set_resolvers(&mut self, resolvers: BTreeSet<IpAddr>) {
        self.resolvers = resolvers;
    }

    /// Adds or replaces a node, whose host waits no longer.
    pub fn put_node(&mut self, id: NodeId, joined: Joined) {
        self.drop_indexes(&id);
        self.pending.remove(&(id.network.clone(), joined.identity));
        for address in &joined.addresses {
            self.addresses.insert((id.network.clone(), *address), id.name.clone());
            self.quarantine.remove(&(id.network.clone(), *address));
        }
        self.identities.insert((id.network.clone(), joined.identity), id.name.clone());
        self.public_keys.insert((id.network.clone(), joined.public_key), id.name.clone());
        *self.joins.entry(joined.identity).or_insert(0) += 1;
        self.nodes.insert(id, Arc::new(joined));
    }

    /// Removes a node; its addresses are in quarantine from now on.
    pub fn remove_node(&mut self, id: &NodeId, now: Timestamp) -> Option<Arc<Joined>> {
        self.drop_indexes(id);
        let joined = self.nodes.remove(id)?;
        for address in &joined.addresses {
            self.quarantine
                .insert((id.network.clone(), *address), Quarantined { since: now, node: id.name.clone() });
        }
        Some(joined)
    }

    fn drop_indexes(&mut self, id: &NodeId) {
        let Some(joined) = self.nodes.get(id).cloned() else { return };
        self.identities.remove(&(id.network.clone(), joined.identity));
        self.public_keys.remove(&(id.network.clone(), joined.public_key));
        match self.joins.get(&joined.identity) {
            Some(1) | None => drop(self.joins.remove(&joined.identity)),
            Some(networks) => drop(self.joins.insert(joined.identity, networks - 1)),
        }
        for address in &joined.addresses {
            self.addresses.remove(&(id.network.clone(), *address));
        }
    }

    /// Adds or replaces a key.
    pub fn put_key(&mut self, id: ResourceId, status: KeyStatus) {
        self.keys.insert(id, Arc::new(status));
    }

    /// Deletes a key; its secret is remembered.
    pub fn remove_key(&mut self, id: &ResourceId, now: Timestamp) {
        let Some(status) = self.keys.remove(id) else { return };
        let before = self.former_keys.get(id).map(|former| former.verifiers.clone()).unwrap_or_default();
        let verifiers =
            std::iter::once(status.verifier).chain(before).take(FormerKey::MOST_SECRETS).collect();
        self.former_keys.insert(id.clone(), FormerKey { verifiers, deleted: now });
        let of_network = self.former_keys.iter().filter(|(other, _)| other.network == id.network);
        let oldest = of_network.clone().min_by_key(|(_, former)| former.deleted).map(|(id, _)| id.clone());
        if of_network.count() > FormerKey::MOST_KEYS {
            oldest.iter().for_each(|id| self.forget_former_key(id));
        }
    }

    /// What is remembered of the secrets that a key of this id had before.
    pub fn former_key(&self, id: &ResourceId) -> Option<&FormerKey> {
        self.former_keys.get(id)
    }

    /// Everything that is remembered of deleted keys.
    pub fn former_keys(&self) -> impl Iterator<Item = (&ResourceId, &FormerKey)> {
        self.former_keys.iter()
    }

    /// Remembers deleted secrets of a key, as they were stored.
    pub fn put_former_key(&mut self, id: ResourceId, former: FormerKey) {
        self.former_keys.insert(id, former);
    }

    /// Forgets the deleted secrets of a key.
    pub fn forget_former_key(&mut self, id: &ResourceId) {
        self.former_keys.remove(id);
    }

    /// Puts an address into quarantine, as it was stored.
    pub fn put_quarantined(&mut self, network: NetworkName, address: IpAddr, quarantined: Quarantined) {
        self.quarantine.insert((network, address), quarantined);
    }

    /// Ends the quarantine of an address.
    pub fn end_quarantine(&mut self, network: &NetworkName, address: IpAddr) {
        self.quarantine.remove(&(network.clone(), address));
    }

    /// The inventory in which what lies in the future is moved to now: it was stored while the clock was
    /// wrong. Nothing if there is no such moment. A minute may be due to the clock that is right.
    pub fn without_future(&self, now: Timestamp) -> Option<Self> {
        let latest = now.checked_add(SLACK).unwrap_or(now);
        let mut right = self.clone();
        for (id, joined) in self.nodes.iter().filter(|(_, joined)| joined.joined > latest) {
            right.nodes.insert(id.clone(), Arc::new(Joined { joined: now, ..(**joined).clone() }));
        }
        for (id, status) in self.keys.iter().filter(|(_, status)| status.created > latest) {
            right.keys.insert(id.clone(), Arc::new(KeyStatus { created: now, ..(**status).clone() }));
        }
        for (place, quarantined) in
            self.quarantine.iter().filter(|(_, quarantined)| quarantined.since > latest)
        {
            right.quarantine.insert(place.clone(), Quarantined { since: now, ..quarantined.clone() });
        }
        for (id, status) in self.clients.iter().filter(|(_, status)| status.created > latest) {
            right.clients.insert(id.clone(), Arc::new(ClientStatus { created: now, ..(**status).clone() }));
        }
        for (place, pending) in self.pending.iter().filter(|(_, pending)| pending.since > latest) {
            right.pending.insert(place.clone(), Arc::new(PendingNode { since: now, ..(**pending).clone() }));
        }
        (right != *self).then_some(right)
    }

    /// The nodes that differ between this inventory and a later one.
    pub fn changed_nodes(&self, later: &Self) -> BTreeSet<NodeId> {
        let nodes = self.nodes.diff(&later.nodes).map(|item| match item {
            DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. } => id,
        });
        let clients = self.clients.diff(&later.clients).map(|item| match item {
            DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. } => id,
        });
        nodes.chain(clients).cloned().collect()
    }

    /// The networks in which another node may carry something, between this inventory and a later one.
    pub fn changed_carrying(&self, later: &Self) -> BTreeSet<NetworkName> {
        let away = self.changed_away(later).into_iter().map(|id| id.network);
        let carried = self.carried.diff(&later.carried).map(|item| match item {
            SetItem::Add(id) | SetItem::Remove(id) => id,
        });
        away.chain(carried.map(|id| id.network.clone())).collect()
    }

    /// The nodes whose host was barred or is no longer, between this inventory and a later one.
    pub fn changed_bars(&self, later: &Self) -> BTreeSet<NodeId> {
        let changed = self.barred.diff(&later.barred).map(|item| match item {
            DiffItem::Add((network, _), barred)
            | DiffItem::Remove((network, _), barred)
            | DiffItem::Update { new: ((network, _), barred), .. } => NodeId::of(network, &barred.node),
        });
        changed.collect()
    }

    /// The hosts that wait or do so no longer, by the name that they asked for, between this inventory and a
    /// later one.
    pub fn changed_pending(&self, later: &Self) -> BTreeSet<NodeId> {
        let changed = self.pending.diff(&later.pending).map(|item| match item {
            DiffItem::Add((network, _), pending)
            | DiffItem::Remove((network, _), pending)
            | DiffItem::Update { new: ((network, _), pending), .. } => NodeId::of(network, &pending.name),
        });
        changed.collect()
    }

    /// The nodes that carry something else, between this inventory and a later one.
    pub fn changed_away(&self, later: &Self) -> BTreeSet<NodeId> {
        let away = self.away.diff(&later.away).map(|item| match item {
            DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. } => id,
        });
        away.cloned().collect()
    }

    /// What differs between this inventory and a later one.
    pub fn differences<'a>(&'a self, later: &'a Self) -> Differences<'a> {
        Differences {
            nodes: self.nodes.diff(&later.nodes).collect(),
            keys: self.keys.diff(&later.keys).collect(),
            former_keys: self.former_keys.diff(&later.former_keys).collect(),
            quarantine: self.quarantine.diff(&later.quarantine).collect(),
            barred: self.barred.diff(&later.barred).collect(),
            pending: self.pending.diff(&later.pending).collect(),
            clients: self.clients.diff(&later.clients).collect(),
            away: self.away.diff(&later.away).collect(),
            carried: self.carried.diff(&later.carried).collect(),
            resolvers: (self.resolvers != later.resolvers).then_some(&later.resolvers),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node with keys of a number and one address, which nobody has seen yet.
    pub(crate) fn joined(number: u8, address: &str) -> Joined {
        Joined {
            public_key: WireGuardKey([number; 32]),
            identity: Identity([number; 32]),
            addresses: BTreeSet::from([address.parse().expect("good")]),
            endpoints: Endpoints::default(),
            listen_port: 51_821,
            tags: BTreeSet::new(),
            key: None,
            claimed: false,
            joined: Timestamp::UNIX_EPOCH,
            problems: Vec::new(),
            os: "linux".into(),
        }
    }

    #[test]
    fn what_was_stored_while_the_clock_was_wrong_counts_as_now() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().expect("a time");
        let (soon, later) = (now + SLACK, "2036-01-01T00:00:00Z".parse().expect("a time"));
        let network: NetworkName = "corp".parse().expect("good");
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let inventory = |moment: Timestamp| {
            let mut all = Inventory::default();
            let name: Name = "a".parse().expect("good");
            let joined = Joined {
                public_key: WireGuardKey([1; 32]),
                identity: Identity([1; 32]),
                addresses: BTreeSet::from([address(1)]),
                endpoints: Endpoints::default(),
                listen_port: 1,
                tags: BTreeSet::new(),
                key: None,
                claimed: false,
                joined: moment,
                os: "test".into(),
                problems: Default::default(),
            };
            all.put_node(NodeId::of(&network, &name), joined);
            let key = KeyStatus { verifier: Verifier([1; 32]), created: moment, used: 0 };
            all.put_key("corp/access-key/k".parse().expect("good"), key);
            all.put_quarantined(network.clone(), address(2), Quarantined { since: moment, node: name });
            let client = NodeId::of(&network, &"phone".parse().expect("good"));
            let status =
                ClientStatus { addresses: BTreeSet::from([address(3)]), created: moment, expired: false };
            all.put_client(client, status, now);
            let pending = PendingNode {
                name: "new".parse().expect("good"),
                public_key: WireGuardKey([2; 32]),
                endpoints: Endpoints::default(),
                listen_port: None,
                since: moment,
                seen: None,
                os: "test".into(),
            };
            all.put_pending(network.clone(), Identity([2; 32]), pending);
            all
        };
        for right in [Timestamp::UNIX_EPOCH, now, soon] {
            assert_eq!(inventory(right).without_future(now), None, "{right}");
        }
        assert_eq!(inventory(later).without_future(now), Some(inventory(now)));
    }

    #[test]
    fn a_node_id_is_written_as_its_network_and_its_name() {
        let id = NodeId { network: "corp".parse().expect("good"), name: "db".parse().expect("good") };
        let json = r#"["corp","db"]"#;
        assert_eq!(serde_json::to_string(&id).expect("it can be written"), json);
        assert_eq!(serde_json::from_str::<NodeId>(json).expect("it reads back"), id);
    }
}
