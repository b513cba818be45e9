//! What every node of a network is sent: a pure function of the declarations and of what has joined.
//!
//! A [`Mesh`] holds what the Views of one network share; [`Mesh::view`] extracts one. A mesh is compiled once
//! and then follows its network by [`Mesh::follow`], which compiles only what a change can affect and shares
//! the rest with the mesh before, so that the Views before and after can be compared at the cost of the
//! change. Most nodes are sent exactly the same difference; [`Mesh::step`] says which are, so that it is
//! computed and encoded once for all of them.

pub mod allocate;
pub mod reach;
pub mod reconcile;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::access::ClassId;
use crate::inventory::{Endpoints, Inventory, Joined, NodeId};
use crate::kinds::{Dns, Kind, Network, Node};
use crate::scalars::{Endpoint, Name, NetworkName, Seconds};
use crate::snapshot::{ResourceId, Snapshot};
use crate::view::{Changes, Counts, Interface, Peer, Resolution, Route, View, ViewDelta};

/// Members of a network that its rules do not distinguish, by the sides of rules that they are on.
///
/// A network without access rules has one class, which is on no side.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(BTreeSet<Name>);

/// What the Views of one network have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    name: NetworkName,
    network: Arc<Network>,
    /// Every joined node once, as a peer of the others, by class.
    members: OrdMap<Class, OrdMap<Name, Arc<Peer>>>,
    /// Every joined node's own side.
    interfaces: OrdMap<Name, Arc<Interface>>,
    /// The routes through the hub that the others are sent; none without a hub, or before it has joined.
    routes: OrdMap<IpNet, Arc<Route>>,
    /// What each name resolves to, other than names of nodes that are `named`.
    names: OrdMap<Name, Arc<Resolution>>,
    /// The entries that lead to a node or another entry, by the name that they lead to.
    entries_to: OrdMap<Name, OrdSet<Name>>,
    /// Where each of these entries leads.
    targets: OrdMap<Name, Name>,
}

/// Which nodes are sent the same: nodes of one audience are sent the same of everything but themselves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// A node that has all members as peers.
    Class(Class),
    /// A node that has the hub as its only peer.
    Spoke,
}

/// What a node has to be sent to move from one mesh to a later one.
#[derive(Clone, Debug, PartialEq)]
pub enum ViewStep {
    /// What every node of this audience is sent; see [`Mesh::delta`].
    Shared(Audience),
    /// What this node alone is sent.
    Own(ViewDelta),
    /// Its whole View, since it had none.
    Whole,
}

/// What differs between two moments: resources by id, and joined nodes by name.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    /// Resources that were created, changed or deleted.
    pub resources: BTreeSet<ResourceId>,
    /// Nodes that joined, left or changed.
    pub nodes: BTreeSet<NodeId>,
}

impl Changed {
    /// The networks in which anything was changed.
    pub fn networks(&self) -> BTreeSet<&NetworkName> {
        let resources = self.resources.iter().map(|id| &id.network);
        resources.chain(self.nodes.iter().map(|id| &id.network)).collect()
    }

    /// What differs between two moments.
    pub fn between(before: (&Snapshot, &Inventory), after: (&Snapshot, &Inventory)) -> Self {
        let resources = before.0.differences(after.0).map(|(id, ..)| id.clone()).collect();
        let nodes = before.1.changed_nodes(after.1);
        Self { resources, nodes }
    }

    /// Adds the differences of a later change.
    pub fn extend(&mut self, later: Self) {
        self.resources.extend(later.resources);
        self.nodes.extend(later.nodes);
    }
}

impl Mesh {
    /// Compiles a network; nothing if it is not declared.
    pub fn compile(name: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> Option<Self> {
        let network = declared.network(name)?.clone();
        let mut mesh = Self {
            name: name.clone(),
            network,
            members: OrdMap::new(),
            interfaces: OrdMap::new(),
            routes: OrdMap::new(),
            names: OrdMap::new(),
            entries_to: OrdMap::new(),
            targets: OrdMap::new(),
        };
        for (id, dns) in declared.all_in::<Dns>(name) {
            mesh.link_entry(&id.name, target(dns, name));
        }
        for (node, joined) in inventory.nodes_in(name) {
            mesh.put_node(node, joined, declared);
        }
        for (id, _) in declared.all_in::<Dns>(name) {
            mesh.put_entry(&id.name, declared, inventory);
        }
        mesh.route_to_hub();
        Some(mesh)
    }

    /// The same network after a change: only what the change affects is compiled again, the rest is shared.
    ///
    /// The result equals what [`Mesh::compile`] would return.
    pub fn follow(&self, declared: &Snapshot, inventory: &Inventory, changed: &Changed) -> Option<Self> {
        let network = declared.network(&self.name)?;
        if *network != self.network {
            return Self::compile(&self.name, declared, inventory).map(|fresh| fresh.sharing_with(self));
        }
        let joined = changed.nodes.iter().filter(|id| id.network == self.name).map(|id| &id.name);
        let mut nodes: BTreeSet<&Name> = joined.collect();
        let mut entries: BTreeSet<&Name> = BTreeSet::new();
        for id in changed.resources.iter().filter(|id| id.network == self.name) {
            match id.kind {
                // Its fields are equal, or the network would have been compiled again.
                Kind::Network => {}
                Kind::Node => drop(nodes.insert(&id.name)),
                // A key's tags were copied at the join.
                Kind::AccessKey => {}
                Kind::Dns => drop(entries.insert(&id.name)),
                Kind::Group | Kind::Allow | Kind::Test => {}
            }
        }
        let mut mesh = self.clone();
        for entry in &entries {
            let dns = declared.named::<Dns>(&self.name, entry);
            mesh.link_entry(entry, dns.and_then(|dns| target(dns, &self.name)));
        }
        // The name of a node that is also an entry's resolves to what the entry says.
        for node in nodes.union(&entries) {
            match inventory.node(&NodeId::of(&self.name, node)) {
                Some(joined) => mesh.put_node(node, joined, declared),
                None => mesh.remove_node(node, declared),
            }
        }
        let leads = self.leading_to(nodes.union(&entries)).union(mesh.leading_to(nodes.union(&entries)));
        for entry in leads.into_iter().chain(entries.into_iter().cloned()) {
            mesh.put_entry(&entry, declared, inventory);
        }
        mesh.route_to_hub();
        Some(mesh)
    }

    /// Whether it is an earlier mesh unchanged: a cheap test of whether they share everything, false for some
    /// equal meshes.
    pub fn same_as(&self, earlier: &Self) -> bool {
        self.network == earlier.network
            && self.members.ptr_eq(&earlier.members)
            && self.interfaces.ptr_eq(&earlier.interfaces)
            && self.routes.ptr_eq(&earlier.routes)
            && self.names.ptr_eq(&earlier.names)
    }

    /// The names of the joined nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = &Name> {
        self.interfaces.keys()
    }

    /// How many nodes have joined.
    pub fn len(&self) -> usize {
        self.interfaces.len()
    }

    /// Whether no node has joined.
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty()
    }

    /// Whether a node has joined.
    pub fn has(&self, node: &Name) -> bool {
        self.interfaces.contains_key(node)
    }

    /// The node that all traffic passes, if the network has one.
    pub fn hub(&self) -> Option<&Name> {
        self.network.hub.as_ref().map(|hub| &hub.name)
    }

    /// What a node is sent; nothing if it has not joined.
    pub fn view(&self, node: &Name) -> Option<View> {
        let interface = (**self.interfaces.get(node)?).clone();
        let (peers, routes) = match self.audience(node) {
            Audience::Class(class) => (self.near(&class).without(node), OrdMap::new()),
            Audience::Spoke => (self.hub_as_peer(), self.routes.clone()),
        };
        let (network, node, names) = (self.name.clone(), node.clone(), self.names.clone());
        let access = OrdMap::new();
        Some(View { network, node, interface, peers, access, routes, names })
    }

    /// What a node that has its View of an earlier mesh has to be sent; nothing if it has not joined.
    ///
    /// Costs the same for any size of the network and of the difference where the node shares the step with
    /// others.
    pub fn step(&self, earlier: &Self, node: &Name) -> Option<ViewStep> {
        let interface = self.interfaces.get(node)?;
        let Some(before) = earlier.interfaces.get(node) else { return Some(ViewStep::Whole) };
        let audience = self.audience(node);
        // A node is not its own peer: the others are sent what changes of it, and it is not.
        let shares = before == interface
            && earlier.audience(node) == audience
            && self.peer(node) == earlier.peer(node);
        if shares {
            return Some(ViewStep::Shared(audience));
        }
        Some(ViewStep::Own(ViewDelta::between(&earlier.view(node)?, &self.view(node)?)))
    }

    /// What every node of an audience is sent for which [`Mesh::step`] returns the shared step.
    pub fn delta(&self, earlier: &Self, audience: &Audience) -> ViewDelta {
        let (peers, routes) = match audience {
            Audience::Class(class) => {
                (Changes::between(&earlier.near(class), &self.near(class)), Changes::default())
            }
            Audience::Spoke => {
                let peers = Changes::between(&earlier.hub_as_peer(), &self.hub_as_peer());
                (peers, Changes::between(&earlier.routes, &self.routes))
            }
        };
        let access = Changes::default();
        ViewDelta {
            interface: None,
            peers,
            access,
            routes,
            names: Changes::between(&earlier.names, &self.names),
        }
    }

    /// How much the View of a node of an audience holds.
    pub fn counts(&self, audience: &Audience) -> Counts {
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        let (peers, routes) = match audience {
            // All but itself.
            Audience::Class(class) => (self.near(class).len().saturating_sub(1), 0),
            Audience::Spoke => (self.hub_as_peer().len(), self.routes.len()),
        };
        Counts { peers: count(peers), access: 0, routes: count(routes), names: count(self.names.len()) }
    }

    /// Which audience a node belongs to.
    pub fn audience(&self, node: &Name) -> Audience {
        match self.hub() {
            Some(hub) if hub != node => Audience::Spoke,
            Some(_) | None => Audience::Class(Class::default()),
        }
    }

    /// The members that a class may know: without access rules all.
    fn near(&self, class: &Class) -> OrdMap<Name, Arc<Peer>> {
        self.members.get(class).cloned().unwrap_or_default()
    }

    fn peer(&self, node: &Name) -> Option<&Arc<Peer>> {
        self.members.values().find_map(|members| members.get(node))
    }

    /// The hub as the only peer.
    fn hub_as_peer(&self) -> OrdMap<Name, Arc<Peer>> {
        let hub = self.hub().and_then(|hub| Some((hub.clone(), self.peer(hub)?.clone())));
        hub.into_iter().collect()
    }

    /// While the hub is there, everything in the network's ranges goes to it.
    fn route_to_hub(&mut self) {
        let hub = self.hub().filter(|hub| self.has(hub)).cloned();
        let routes = hub
            .iter()
            .flat_map(|hub| self.network.ranges().map(|range| (range, Arc::new(Route { via: hub.clone() }))));
        let routes: OrdMap<_, _> = routes.collect();
        if routes != self.routes {
            self.routes = routes;
        }
    }

    fn put_node(&mut self, node: &Name, joined: &Joined, declared: &Snapshot) {
        let declaration = declared.named::<Node>(&self.name, node).map(|node| &**node);
        let declaration = Declaration::of(declaration, &self.network);
        let resolves = self.network.name_service && !self.is_entry(node, declared);
        // The other nodes around a hub do not have it as a peer, so its name is sent separately.
        let named = resolves && self.network.hub.is_none();
        let interface = self.interface(node, joined, &declaration, named);
        let peer = self.peer_of(node, joined, &declaration, named);
        let mut members = self.members.get(&Class::default()).cloned().unwrap_or_default();
        put(&mut members, node, peer);
        put_members(&mut self.members, Class::default(), members);
        put(&mut self.interfaces, node, interface);
        if resolves && !named {
            put(&mut self.names, node, Resolution::Addresses(joined.reachable()));
        } else if !self.is_entry(node, declared) {
            self.names.remove(node);
        }
    }

    fn remove_node(&mut self, node: &Name, declared: &Snapshot) {
        let mut members = self.near(&Class::default());
        members.remove(node);
        put_members(&mut self.members, Class::default(), members);
        self.interfaces.remove(node);
        if !self.is_entry(node, declared) {
            self.names.remove(node);
        }
    }

    /// Whether an entry is declared under the name, which then resolves to what the entry says: a node that
    /// no file declares may have joined under it before.
    fn is_entry(&self, name: &Name, declared: &Snapshot) -> bool {
        declared.named::<Dns>(&self.name, name).is_some()
    }

    fn interface(
        &self,
        name: &Name,
        joined: &Joined,
        declaration: &Declaration<'_>,
        named: bool,
    ) -> Interface {
        let Network {
            ipv4: _,
            ipv6: _,
            hub,
            acl: _,
            listen_port: _,
            mtu,
            keepalive: _,
            name_service: _,
            node_limit: _,
            check_in,
            address_quarantine: _,
        } = &*self.network;
        let with_prefix = |address: &IpAddr| {
            let range = self.network.range_of(*address)?;
            IpNet::new(*address, range.prefix_len()).ok()
        };
        Interface {
            addresses: joined.addresses.iter().filter_map(with_prefix).collect(),
            listen_port: declaration.listen_port,
            listen_port_fixed: declaration.listen_port_fixed,
            mtu: mtu.and_then(|mtu| u16::try_from(mtu.number()).ok()),
            keepalive: declaration.keepalive,
            check_in: *check_in,
            forward: hub.as_ref().is_some_and(|hub| hub.name == *name),
            restricted: false,
            named,
        }
    }

    fn peer_of(&self, name: &Name, joined: &Joined, declaration: &Declaration<'_>, named: bool) -> Peer {
        Peer {
            public_key: Some(joined.public_key),
            endpoint: endpoint(declaration.endpoint, joined),
            addresses: joined.reachable(),
            via: self.hub().filter(|hub| *hub != name).cloned(),
            class: ClassId::default(),
            named,
        }
    }

    /// Records where an entry leads; to nothing in the network if `target` is absent.
    fn link_entry(&mut self, entry: &Name, target: Option<Name>) {
        if self.targets.get(entry) == target.as_ref() {
            return;
        }
        if let Some(old) = self.targets.remove(entry) {
            let mut entries = self.entries_to.remove(&old).unwrap_or_default();
            entries.remove(entry);
            if !entries.is_empty() {
                self.entries_to.insert(old, entries);
            }
        }
        if let Some(target) = target {
            self.entries_to.entry(target.clone()).or_default().insert(entry.clone());
            self.targets.insert(entry.clone(), target);
        }
    }

    /// The entries that lead to any of these names, directly or through other entries.
    fn leading_to<'a>(&self, names: impl Iterator<Item = &'a &'a Name>) -> OrdSet<Name> {
        let mut found = OrdSet::new();
        let mut open: Vec<Name> = names.map(|name| (*name).clone()).collect();
        while let Some(name) = open.pop() {
            for entry in self.entries_to.get(&name).into_iter().flatten() {
                if found.insert(entry.clone()).is_none() {
                    open.push(entry.clone());
                }
            }
        }
        found
    }

    fn put_entry(&mut self, entry: &Name, declared: &Snapshot, inventory: &Inventory) {
        if !self.is_entry(entry, declared) {
            return;
        }
        let resolves = self.network.name_service;
        match resolve(&self.name, entry, declared, inventory).filter(|_| resolves) {
            Some(resolution) => put(&mut self.names, entry, resolution),
            None => drop(self.names.remove(entry)),
        }
    }

    /// The same mesh, built on the maps of an earlier one wherever they agree.
    fn sharing_with(self, earlier: &Self) -> Self {
        let class = |(class, members): (&Class, &OrdMap<Name, Arc<Peer>>)| {
            let before = earlier.members.get(class).cloned().unwrap_or_default();
            (class.clone(), shared(&before, members))
        };
        Self {
            members: self.members.iter().map(class).collect(),
            interfaces: shared(&earlier.interfaces, &self.interfaces),
            routes: shared(&earlier.routes, &self.routes),
            names: shared(&earlier.names, &self.names),
            ..self
        }
    }
}

/// A node's tags: those of the key that it joined with, as they were then, and those of its declaration.
pub fn tags(joined: Option<&Joined>, declaration: Option<&Node>) -> BTreeSet<Name> {
    let own = joined.iter().flat_map(|joined| &joined.tags);
    own.chain(declaration.iter().flat_map(|node| &node.tags)).cloned().collect()
}

/// What is declared of a node: its own settings, else its network's.
struct Declaration<'a> {
    endpoint: Option<&'a Endpoint>,
    listen_port: u16,
    listen_port_fixed: bool,
    keepalive: Seconds,
}

impl<'a> Declaration<'a> {
    fn of(node: Option<&'a Node>, network: &Network) -> Self {
        let listen_port = network.listen_port_of(node);
        let Some(node) = node else {
            let keepalive = network.keepalive;
            return Self { endpoint: None, listen_port, listen_port_fixed: false, keepalive };
        };
        // The allocator assigns addresses; tags are for selectors.
        let Node { ipv4: _, ipv6: _, tags: _, endpoint, listen_port: own_port, keepalive } = node;
        Self {
            endpoint: endpoint.as_ref(),
            listen_port,
            listen_port_fixed: own_port.is_some(),
            keepalive: keepalive.unwrap_or(network.keepalive),
        }
    }
}

/// Where the others reach a node: the declared endpoint, else the one that its operator configured, else
/// where the server saw it, else its own address as the agent reports it. Absent: it must send first, as must
/// a node whose port is not chosen yet.
fn endpoint(declared: Option<&Endpoint>, joined: &Joined) -> Option<Endpoint> {
    let Endpoints { configured, seen, local } = &joined.endpoints;
    let named = declared.or(configured.as_ref()).cloned();
    let endpoint = named.or_else(|| seen.or(*local).map(Endpoint::from))?.or_port(joined.listen_port);
    Some(endpoint).filter(|endpoint| endpoint.port != Some(0))
}

/// Where an entry leads inside of its network: to a node, or to another entry.
fn target(entry: &Dns, network: &NetworkName) -> Option<Name> {
    let node = entry.node.as_ref().map(|node| node.name.clone());
    node.or_else(|| entry.inner_cname(network))
}

/// What an entry resolves to; nothing while the node that it ends at has not joined.
fn resolve(
    network: &NetworkName,
    entry: &Name,
    declared: &Snapshot,
    inventory: &Inventory,
) -> Option<Resolution> {
    let mut name = entry.clone();
    // The rules have refused cycles; one that slips through resolves to nothing.
    for _ in 0..=declared.len() {
        let Some(dns) = declared.named::<Dns>(network, &name) else {
            let joined = inventory.node(&NodeId::of(network, &name))?;
            return Some(Resolution::Addresses(joined.reachable()));
        };
        match target(dns, network) {
            // `node` leads past an entry of that name.
            Some(node) if dns.node.is_some() => {
                let joined = inventory.node(&NodeId::of(network, &node))?;
                return Some(Resolution::Addresses(joined.reachable()));
            }
            Some(target) => name = target,
            None => return Some(outer(dns)),
        }
    }
    None
}

/// What an entry resolves to that leads out of the network.
fn outer(entry: &Dns) -> Resolution {
    // The TTL is for name servers; agents replace what they wrote.
    let Dns { a, aaaa, node: _, cname, ttl: _ } = entry;
    match cname {
        Some(name) => Resolution::Alias(name.clone()),
        None => {
            let ipv4 = a.iter().copied().map(IpAddr::from);
            Resolution::Addresses(ipv4.chain(aaaa.iter().copied().map(IpAddr::from)).collect())
        }
    }
}

/// Puts an entry into a map, unless an equal one is there.
fn put<T: PartialEq>(map: &mut OrdMap<Name, Arc<T>>, name: &Name, entry: T) {
    if map.get(name).is_none_or(|there| **there != entry) {
        map.insert(name.clone(), Arc::new(entry));
    }
}

/// Puts the members of a class, unless they are there already; a class without members does not exist.
fn put_members(
    classes: &mut OrdMap<Class, OrdMap<Name, Arc<Peer>>>,
    class: Class,
    members: OrdMap<Name, Arc<Peer>>,
) {
    if members.is_empty() {
        classes.remove(&class);
    } else if classes.get(&class).is_none_or(|there| !there.ptr_eq(&members)) {
        classes.insert(class, members);
    }
}

fn shared<K: Ord + Clone, T: PartialEq>(
    earlier: &OrdMap<K, Arc<T>>,
    fresh: &OrdMap<K, Arc<T>>,
) -> OrdMap<K, Arc<T>> {
    let mut map = earlier.clone();
    for item in earlier.diff(fresh) {
        match item {
            DiffItem::Add(key, entry) | DiffItem::Update { new: (key, entry), .. } => {
                map.insert(key.clone(), entry.clone());
            }
            DiffItem::Remove(key, _) => drop(map.remove(key)),
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::scalars::{Identity, WireGuardKey};

    #[test]
    fn a_declared_endpoint_goes_before_what_the_operator_configured_the_server_saw_and_the_host_has() {
        let endpoint_of = |sources: [&str; 4], listen_port| {
            let [declared, configured, seen, local] = sources;
            let endpoints = Endpoints {
                configured: configured.parse().ok(),
                seen: seen.parse().ok(),
                local: local.parse().ok(),
            };
            let joined = Joined {
                public_key: WireGuardKey([1; 32]),
                identity: Identity([2; 32]),
                addresses: BTreeSet::new(),
                endpoints,
                listen_port,
                tags: BTreeSet::new(),
                key: None,
                claimed: false,
                joined: Timestamp::UNIX_EPOCH,
                problems: Vec::new(),
                os: "linux".into(),
            };
            endpoint(declared.parse().ok().as_ref(), &joined).map(|endpoint| endpoint.to_string())
        };
        for (sources, expected) in [
            (["gw.example.net", "192.0.2.1:9", "192.0.2.2", "192.0.2.3"], Some("gw.example.net:7")),
            (["", "192.0.2.1:9", "192.0.2.2", "192.0.2.3"], Some("192.0.2.1:9")),
            (["", "", "192.0.2.2", "192.0.2.3"], Some("192.0.2.2:7")),
            (["", "", "", "2001:db8::3"], Some("[2001:db8::3]:7")),
            (["", "", "", ""], None),
        ] {
            assert_eq!(endpoint_of(sources, 7).as_deref(), expected, "{sources:?}");
        }
        assert_eq!(
            endpoint_of(["", "", "192.0.2.2", ""], 0),
            None,
            "nobody reaches a port that is not chosen yet"
        );
        let configured = endpoint_of(["", "192.0.2.1:9", "", ""], 0);
        assert_eq!(configured.as_deref(), Some("192.0.2.1:9"), "this port is chosen");
    }
}
