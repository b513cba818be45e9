//! What every node of a network is told: a pure function of the declarations and of what has joined.
//!
//! [`Mesh`] holds what the Views of one network share; [`Mesh::view`] cuts one out of it. A mesh is compiled once and then
//! follows its network by [`Mesh::follow`], which compiles only what a change can touch and shares the rest with the mesh
//! before, so that the Views before and after can be compared at the cost of the change.

pub mod allocate;
pub mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;

use crate::inventory::{Inventory, Joined, NodeId};
use crate::kinds::{Dns, Kind, Network, Node};
use crate::scalars::{Endpoint, Name, NetworkName};
use crate::snapshot::{ResourceId, Snapshot};
use crate::view::{Interface, Peer, Resolution, View};

/// What the Views of one network have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    name: NetworkName,
    network: Arc<Network>,
    /// Every joined node, as a peer of the others.
    peers: OrdMap<Name, Arc<Peer>>,
    /// Every joined node's own side.
    interfaces: OrdMap<Name, Arc<Interface>>,
    /// Every name that resolves.
    names: OrdMap<Name, Arc<Resolution>>,
    /// The entries that resolve to what a node has, by that node.
    entries_of: Arc<BTreeMap<Name, BTreeSet<Name>>>,
}

/// What a change touched: resources by id, and joined nodes by name.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// Resources that were made, changed or taken away.
    pub resources: BTreeSet<ResourceId>,
    /// Machines that joined, left or changed.
    pub nodes: BTreeSet<NodeId>,
}

impl Touched {
    /// The networks in which anything was touched.
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
}

impl Mesh {
    /// Compiles a network; nothing if it is not declared.
    pub fn compile(name: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> Option<Self> {
        let network = declared.network(name)?.clone();
        let mut mesh = Self {
            name: name.clone(),
            network,
            peers: OrdMap::new(),
            interfaces: OrdMap::new(),
            names: OrdMap::new(),
            entries_of: Arc::new(entries_of(name, declared)),
        };
        for (node, joined) in inventory.nodes_in(name) {
            mesh.put_node(node, joined, declared);
        }
        for (id, _) in declared.all_in::<Dns>(name) {
            mesh.put_entry(&id.name, declared, inventory);
        }
        Some(mesh)
    }

    /// The same network after a change: compiled again only where the change can be felt, and sharing the rest.
    ///
    /// The result equals what [`Mesh::compile`] would give.
    pub fn follow(&self, declared: &Snapshot, inventory: &Inventory, touched: &Touched) -> Option<Self> {
        let network = declared.network(&self.name)?;
        let here = touched.resources.iter().filter(|id| id.network == self.name);
        let kinds: BTreeSet<Kind> = here.clone().map(|id| id.kind).collect();
        if *network != self.network || kinds.contains(&Kind::Dns) {
            return Self::compile(&self.name, declared, inventory).map(|fresh| fresh.sharing_with(self));
        }
        let joined = touched.nodes.iter().filter(|id| id.network == self.name).map(|id| &id.name);
        let declarations = here.filter(|id| id.kind == Kind::Node).map(|id| &id.name);
        let mut mesh = self.clone();
        for node in joined.chain(declarations).collect::<BTreeSet<_>>() {
            match inventory.node(&NodeId::of(&self.name, node)) {
                Some(joined) => mesh.put_node(node, joined, declared),
                None => mesh.remove_node(node, declared),
            }
            for entry in self.entries_of.get(node).into_iter().flatten() {
                mesh.put_entry(entry, declared, inventory);
            }
        }
        Some(mesh)
    }

    /// Whether it is an earlier mesh unchanged, seen at no cost: they share everything. Equal meshes may say no.
    pub fn is_still(&self, earlier: &Self) -> bool {
        self.network == earlier.network
            && self.peers.ptr_eq(&earlier.peers)
            && self.interfaces.ptr_eq(&earlier.interfaces)
            && self.names.ptr_eq(&earlier.names)
    }

    /// The names of the joined nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = &Name> {
        self.peers.keys()
    }

    /// How many nodes have joined.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether no node has joined.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The node that all traffic passes, if the network has one.
    pub fn hub(&self) -> Option<&Name> {
        self.network.hub.as_ref().map(|hub| &hub.name)
    }

    /// What a node is told; nothing if it has not joined.
    pub fn view(&self, node: &Name) -> Option<View> {
        let interface = self.interfaces.get(node)?;
        let peers = match self.hub() {
            Some(hub) if hub != node => self.hub_as_peer(hub),
            Some(_) | None => self.peers.without(node),
        };
        let interface = (**interface).clone();
        let (network, node, names) = (self.name.clone(), node.clone(), self.names.clone());
        Some(View { network, node, interface, peers, names })
    }

    /// The hub as the only peer: everything in the network's ranges goes there.
    fn hub_as_peer(&self, hub: &Name) -> OrdMap<Name, Arc<Peer>> {
        let Some(peer) = self.peers.get(hub) else { return OrdMap::new() };
        let allowed_ips = self.network.ranges().collect();
        OrdMap::unit(hub.clone(), Arc::new(Peer { allowed_ips, ..(**peer).clone() }))
    }

    fn put_node(&mut self, node: &Name, joined: &Joined, declared: &Snapshot) {
        let declaration = declared.named::<Node>(&self.name, node);
        let declaration = declaration.map(|node| &**node);
        let interface = self.interface(node, joined, declaration);
        put(&mut self.peers, node, peer(joined, declaration));
        put(&mut self.interfaces, node, interface);
        if self.network.name_service && !self.is_entry(node, declared) {
            put(&mut self.names, node, Resolution::Addresses(joined.addresses.clone()));
        }
    }

    fn remove_node(&mut self, node: &Name, declared: &Snapshot) {
        self.peers.remove(node);
        self.interfaces.remove(node);
        if !self.is_entry(node, declared) {
            self.names.remove(node);
        }
    }

    /// Whether an entry is declared under the name, which then resolves to what the entry says: a machine that no file
    /// declares may have joined under it before.
    fn is_entry(&self, name: &Name, declared: &Snapshot) -> bool {
        declared.named::<Dns>(&self.name, name).is_some()
    }

    fn interface(&self, name: &Name, joined: &Joined, declaration: Option<&Node>) -> Interface {
        let network = &self.network;
        let with_prefix = |address: &IpAddr| {
            let range = network.range_of(*address)?;
            IpNet::new(*address, range.prefix_len()).ok()
        };
        let port = declaration.and_then(|node| node.listen_port);
        Interface {
            addresses: joined.addresses.iter().filter_map(with_prefix).collect(),
            listen_port: u16::try_from(port.unwrap_or(network.listen_port).number()).unwrap_or_default(),
            listen_port_fixed: port.is_some(),
            mtu: network.mtu.and_then(|mtu| u16::try_from(mtu.number()).ok()),
            keepalive: declaration.and_then(|node| node.keepalive).unwrap_or(network.keepalive),
            check_in: network.check_in,
            forward: self.hub() == Some(name),
        }
    }

    fn put_entry(&mut self, entry: &Name, declared: &Snapshot, inventory: &Inventory) {
        if !self.network.name_service {
            return;
        }
        match resolve(&self.name, entry, declared, inventory) {
            Some(resolution) => put(&mut self.names, entry, resolution),
            None => drop(self.names.remove(entry)),
        }
    }

    /// The same mesh, built on the maps of an earlier one wherever they agree.
    fn sharing_with(self, earlier: &Self) -> Self {
        Self {
            peers: shared(&earlier.peers, &self.peers),
            interfaces: shared(&earlier.interfaces, &self.interfaces),
            names: shared(&earlier.names, &self.names),
            ..self
        }
    }
}

fn peer(joined: &Joined, declaration: Option<&Node>) -> Peer {
    let declared = declaration.and_then(|node| node.endpoint.as_ref());
    // Nobody reaches a port that is not chosen yet: such a peer must speak first.
    let with_port = |endpoint: &Endpoint| endpoint.port.or(Some(joined.listen_port)).is_some_and(|port| port > 0);
    let endpoint = declared.or(joined.endpoint.as_ref()).filter(|endpoint| with_port(endpoint));
    Peer {
        public_key: joined.public_key,
        endpoint: endpoint.map(|endpoint| endpoint.or_port(joined.listen_port)),
        allowed_ips: joined.addresses.iter().copied().map(IpNet::from).collect(),
    }
}

/// What an entry resolves to; nothing while the node that it ends at has not joined.
fn resolve(network: &NetworkName, entry: &Name, declared: &Snapshot, inventory: &Inventory) -> Option<Resolution> {
    let dns = end_of_chain(network, entry, declared)?;
    let node = match dns {
        End::Node(node) => node,
        End::Entry(dns) => match (&dns.node, &dns.cname) {
            (Some(node), _) => node.name.clone(),
            (None, Some(name)) => return Some(Resolution::Alias(name.clone())),
            (None, None) => {
                let ipv4 = dns.a.iter().copied().map(IpAddr::from);
                let addresses = ipv4.chain(dns.aaaa.iter().copied().map(IpAddr::from)).collect();
                return Some(Resolution::Addresses(addresses));
            }
        },
    };
    let joined = inventory.node(&NodeId { network: network.clone(), name: node })?;
    Some(Resolution::Addresses(joined.addresses.clone()))
}

enum End {
    Node(Name),
    Entry(Arc<Dns>),
}

/// Where the inner aliases that start at an entry end. The rules have refused circles; one that slips through ends.
fn end_of_chain(network: &NetworkName, entry: &Name, declared: &Snapshot) -> Option<End> {
    let mut name = entry.clone();
    for _ in 0..=declared.len() {
        let Some(dns) = declared.named::<Dns>(network, &name) else { return Some(End::Node(name)) };
        match dns.inner_cname(network) {
            Some(next) => name = next,
            None => return Some(End::Entry(dns.clone())),
        }
    }
    None
}

/// The entries of a network that end at a node, by node.
fn entries_of(network: &NetworkName, declared: &Snapshot) -> BTreeMap<Name, BTreeSet<Name>> {
    let mut entries: BTreeMap<Name, BTreeSet<Name>> = BTreeMap::new();
    for (id, _) in declared.all_in::<Dns>(network) {
        let node = match end_of_chain(network, &id.name, declared) {
            Some(End::Node(node)) => Some(node),
            Some(End::Entry(dns)) => dns.node.as_ref().map(|node| node.name.clone()),
            None => None,
        };
        if let Some(node) = node {
            entries.entry(node).or_default().insert(id.name.clone());
        }
    }
    entries
}

/// Puts an entry into a map, unless an equal one is there.
fn put<T: PartialEq>(map: &mut OrdMap<Name, Arc<T>>, name: &Name, entry: T) {
    if map.get(name).is_none_or(|there| **there != entry) {
        map.insert(name.clone(), Arc::new(entry));
    }
}

fn shared<T: PartialEq>(earlier: &OrdMap<Name, Arc<T>>, fresh: &OrdMap<Name, Arc<T>>) -> OrdMap<Name, Arc<T>> {
    let mut map = earlier.clone();
    for item in earlier.diff(fresh) {
        match item {
            DiffItem::Add(name, entry) | DiffItem::Update { new: (name, entry), .. } => {
                map.insert(name.clone(), entry.clone());
            }
            DiffItem::Remove(name, _) => drop(map.remove(name)),
        }
    }
    map
}
