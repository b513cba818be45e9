//! What every node of a network is sent: a pure function of the declarations and of what has joined.
//!
//! A [`Mesh`] holds what the Views of one network share: every member once, by [`Class`], and what each class
//! may open at each other. [`audience`] cuts Views out of it. A mesh is compiled once and then follows its
//! network by [`Mesh::follow`], which compiles only what a change can affect and shares the rest with the
//! mesh before, so that the Views before and after can be compared at the cost of the change.

pub mod admission;
pub mod allocate;
pub mod audience;
pub mod carrying;
pub mod members;
mod names;
pub mod paths;
pub mod policy;
pub mod reach;
pub mod reconcile;
pub mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fixedbitset::FixedBitSet;
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::access::{Access, ClassId};
use crate::inventory::{ClientStatus, Endpoints, Inventory, Joined, NodeId};
use crate::kinds::{Dns, ExternalClient, Kind, Network, Node};
use crate::scalars::{Endpoint, Name, NetworkName, Seconds};
use crate::snapshot::{ResourceId, Snapshot};
use crate::view::{Interface, Peer, Resolution};
use names::target;
use policy::{Class, Policy};
use ways::{Through, Ways};

/// Entries of a mesh that are sent to some of its classes, by the class that they are about.
type ByClass<V> = OrdMap<ClassId, OrdMap<Name, Arc<V>>>;

/// What the Views of one network have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    name: NetworkName,
    network: Arc<Network>,
    policy: Arc<Policy>,
    /// The classes that have members, and those of ranges behind an egress.
    classes: OrdMap<ClassId, Class>,
    /// Every member once, as a peer of those that reach others directly.
    members: ByClass<Peer>,
    /// The same as they are sent to those that reach others through the hub or a relay; see
    /// [`Mesh::keeps_carried`].
    carried: ByClass<Peer>,
    /// The class of each member.
    class_of: OrdMap<Name, ClassId>,
    /// What each class lets others open at its members; those that may open nothing are absent.
    access: OrdMap<ClassId, OrdMap<ClassId, Arc<Access>>>,
    /// The classes that a class may open something at, or that may at it.
    near: OrdMap<ClassId, OrdSet<ClassId>>,
    /// Every joined node's own side.
    interfaces: OrdMap<Name, Arc<Interface>>,
    /// Who carries what for others.
    ways: Arc<Ways>,
    /// What carries each member that a relay or an ingress does.
    through: OrdMap<Name, Through>,
    /// These members, by what carries them, with the key and the endpoint that only their carriers need.
    full: OrdMap<Through, OrdMap<Name, Arc<Peer>>>,
    /// How many of them are of each class.
    loads: OrdMap<Through, OrdMap<ClassId, u32>>,
    /// What each name resolves to that every node may know, other than names of nodes that are `named`.
    names: OrdMap<Name, Arc<Resolution>>,
    /// What the other names resolve to, by the class of the node that they lead to.
    names_of: ByClass<Resolution>,
    /// Where each of those is.
    homes: OrdMap<Name, ClassId>,
    /// The entries that lead to a node or another entry, by the name that they lead to.
    entries_to: OrdMap<Name, OrdSet<Name>>,
    /// Where each of these entries leads.
    targets: OrdMap<Name, Name>,
    /// The name servers that nodes are given.
    resolvers: Arc<BTreeSet<IpAddr>>,
}

/// What differs between two moments: resources by id, and joined nodes by name.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    /// Resources that were created, changed or deleted.
    pub resources: BTreeSet<ResourceId>,
    /// Nodes that joined, left or changed, and external clients whose state did.
    pub nodes: BTreeSet<NodeId>,
    /// Networks in which other nodes carry something.
    pub carrying: BTreeSet<NetworkName>,
    /// Networks whose nodes are given other name servers.
    pub resolving: BTreeSet<NetworkName>,
}

impl Changed {
    /// The networks in which anything was changed.
    pub fn networks(&self) -> BTreeSet<&NetworkName> {
        let resources = self.resources.iter().map(|id| &id.network);
        let nodes = self.nodes.iter().map(|id| &id.network);
        resources.chain(nodes).chain(&self.carrying).chain(&self.resolving).collect()
    }

    /// What differs between two moments.
    pub fn between(before: (&Snapshot, &Inventory), after: (&Snapshot, &Inventory)) -> Self {
        let resources = before.0.differences(after.0).map(|(id, ..)| id.clone()).collect();
        let nodes = before.1.changed_nodes(after.1);
        let resolving = match before.1.resolvers() == after.1.resolvers() {
            true => BTreeSet::new(),
            false => after.0.networks().map(|(name, _)| name.clone()).collect(),
        };
        Self { resources, nodes, carrying: before.1.changed_carrying(after.1), resolving }
    }

    /// Adds the differences of a later change.
    pub fn extend(&mut self, later: Self) {
        self.resources.extend(later.resources);
        self.nodes.extend(later.nodes);
        self.carrying.extend(later.carrying);
        self.resolving.extend(later.resolving);
    }
}

impl Mesh {
    /// Compiles a network; nothing if it is not declared.
    pub fn compile(name: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> Option<Self> {
        let network = declared.network(name)?.clone();
        let policy = Arc::new(Policy::compile(name, &network, declared));
        let ways = Arc::new(Ways::compile(name, &network, &policy, declared, inventory));
        let mut mesh = Self {
            name: name.clone(),
            network,
            policy,
            classes: OrdMap::new(),
            members: OrdMap::new(),
            carried: OrdMap::new(),
            class_of: OrdMap::new(),
            access: OrdMap::new(),
            near: OrdMap::new(),
            interfaces: OrdMap::new(),
            ways: Arc::default(),
            through: OrdMap::new(),
            full: OrdMap::new(),
            loads: OrdMap::new(),
            names: OrdMap::new(),
            names_of: OrdMap::new(),
            homes: OrdMap::new(),
            entries_to: OrdMap::new(),
            targets: OrdMap::new(),
            resolvers: Arc::default(),
        };
        if mesh.network.name_service {
            mesh.resolvers = Arc::new(inventory.resolvers().clone());
        }
        for (id, dns) in declared.all_in::<Dns>(name) {
            mesh.link_entry(&id.name, target(dns, name));
        }
        mesh.set_ways(ways);
        for (node, joined) in inventory.nodes_in(name) {
            mesh.put_node(node, joined, declared);
        }
        for (client, _) in inventory.clients_in(name) {
            mesh.put_member(client, declared, inventory);
        }
        for (id, _) in declared.all_in::<Dns>(name) {
            mesh.put_entry(&id.name, declared, inventory);
        }
        mesh.judge();
        Some(mesh)
    }

    /// The same network after a change: only what the change affects is compiled again, the rest is shared.
    ///
    /// The result equals what [`Mesh::compile`] would return.
    pub fn follow(&self, declared: &Snapshot, inventory: &Inventory, changed: &Changed) -> Option<Self> {
        let network = declared.network(&self.name)?;
        let anew = || Self::compile(&self.name, declared, inventory).map(|fresh| fresh.sharing_with(self));
        if *network != self.network || changed.resolving.contains(&self.name) {
            return anew();
        }
        let joined = changed.nodes.iter().filter(|id| id.network == self.name).map(|id| id.name.clone());
        let mut nodes: BTreeSet<Name> = joined.collect();
        let mut entries: BTreeSet<Name> = BTreeSet::new();
        let mut rules = false;
        for id in changed.resources.iter().filter(|id| id.network == self.name) {
            match id.kind {
                // Its fields are equal, or the network would have been compiled again.
                Kind::Network => {}
                Kind::Node => drop(nodes.insert(id.name.clone())),
                // A key's tags were copied at the join.
                Kind::AccessKey => {}
                Kind::Dns => drop(entries.insert(id.name.clone())),
                Kind::ExternalClient => {
                    nodes.insert(id.name.clone());
                    rules = true;
                }
                Kind::Group | Kind::Allow => rules = true,
                // Who carries anything is in many places, and changes seldom.
                Kind::Egress | Kind::Ingress | Kind::Relay => return anew(),
                // It is judged, and sent to nobody.
                Kind::Test => {}
            }
        }
        let mut mesh = self.clone();
        if rules {
            let policy = Policy::compile(&self.name, network, declared);
            if policy.is_restricted() != self.policy.is_restricted() || policy.moves_everybody(&self.policy) {
                return anew();
            }
            if policy != *self.policy {
                mesh.policy = Arc::new(policy);
                nodes.extend(self.moved_by(&mesh.policy, declared, inventory));
            }
        }
        if !self.ways.is_empty() {
            let ways = Ways::compile(&self.name, network, &mesh.policy, declared, inventory);
            nodes.extend(self.carried_otherwise(&ways, inventory));
            mesh.set_ways(Arc::new(ways));
        }
        for entry in &entries {
            let dns = declared.named::<Dns>(&self.name, entry);
            mesh.link_entry(entry, dns.and_then(|dns| target(dns, &self.name)));
        }
        // The name of a node that is also an entry's resolves to what the entry says.
        for node in nodes.union(&entries) {
            mesh.put_member(node, declared, inventory);
        }
        let leads = self.leading_to(nodes.union(&entries)).union(mesh.leading_to(nodes.union(&entries)));
        for entry in leads.into_iter().chain(entries) {
            mesh.put_entry(&entry, declared, inventory);
        }
        mesh.judge_after(self);
        Some(mesh)
    }

    /// Adds, changes or removes whoever has a name: a node that has joined, or an external client that is let
    /// in.
    fn put_member(&mut self, name: &Name, declared: &Snapshot, inventory: &Inventory) {
        let id = NodeId::of(&self.name, name);
        if let Some(joined) = inventory.node(&id) {
            return self.put_node(name, joined, declared);
        }
        let client = declared.named::<ExternalClient>(&self.name, name).cloned();
        match client.zip(inventory.client(&id)) {
            Some((client, status)) if is_let_in(&client, status) => {
                self.interfaces.remove(name);
                self.put_client(name, &client, status, declared);
            }
            _ => self.remove_member(name, declared),
        }
    }

    /// The members that other rules, or others who are there, give another carrier.
    fn carried_otherwise(&self, later: &Ways, inventory: &Inventory) -> BTreeSet<Name> {
        let mut members = BTreeSet::new();
        for (relay, way) in self.ways.relays() {
            if later.relay(relay) == Some(way) {
                continue;
            }
            if later.relay(relay).is_none_or(|later| !later.is_for_the_same_as(way)) {
                return inventory.nodes_in(&self.name).map(|(name, _)| name.clone()).collect();
            }
            let carried = self.full.get(&Through::Relay(relay.clone()));
            members.extend(carried.into_iter().flat_map(OrdMap::keys).cloned());
        }
        members
    }

    /// Sets who carries what, and makes the ranges outside of the network known to the rules.
    fn set_ways(&mut self, ways: Arc<Ways>) {
        if ways == self.ways {
            return;
        }
        if self.policy.is_restricted() {
            let before: BTreeSet<_> = self.ways.ranges().map(|(_, way)| way.id).collect();
            let after: BTreeSet<_> = ways.ranges().map(|(_, way)| way.id).collect();
            before.difference(&after).for_each(|gone| drop(self.classes.remove(gone)));
            for (_, way) in ways.ranges().filter(|(_, way)| !before.contains(&way.id)) {
                self.classes.insert(way.id, way.class.clone());
            }
        }
        self.ways = ways;
    }

    /// The members that other rules put into another class. Those with a tag are looked for among all: to keep a
    /// map from tags to members would cost each join more than this costs now and then.
    fn moved_by(&self, later: &Policy, declared: &Snapshot, inventory: &Inventory) -> BTreeSet<Name> {
        let policy::Moved { names, tags, ranges } = later.moved_since(&self.policy);
        let is_tagged = |with: &BTreeSet<Name>| tags.iter().any(|tag| with.contains(tag));
        let mut moved = names;
        if !tags.is_empty() {
            let joined = inventory.nodes_in(&self.name).filter(|(_, joined)| is_tagged(&joined.tags));
            moved.extend(joined.map(|(name, _)| name.clone()));
            let declared = declared.entries_in(&self.name);
            let given = declared.filter(|(_, entry)| entry.object.tags_given().is_some_and(is_tagged));
            moved.extend(given.map(|(id, _)| id.name.clone()));
        }
        moved.retain(|name| self.class_of.contains_key(name));
        for range in ranges.into_iter().filter(|range| range.prefix_len() > 0) {
            let inside = inventory.addresses_from(&self.name, range.network());
            moved.extend(inside.take_while(|(it, _)| range.contains(it)).map(|(_, name)| name.clone()));
        }
        moved
    }

    /// Whether every node is sent the same as of an earlier mesh: a cheap test of whether they share it, false
    /// for some equal meshes. What who joins later is judged by may differ.
    pub fn same_as(&self, earlier: &Self) -> bool {
        self.network == earlier.network
            && self.members.ptr_eq(&earlier.members)
            && self.carried.ptr_eq(&earlier.carried)
            && self.access.ptr_eq(&earlier.access)
            && self.near.ptr_eq(&earlier.near)
            && self.interfaces.ptr_eq(&earlier.interfaces)
            && (Arc::ptr_eq(&self.ways, &earlier.ways) || self.ways == earlier.ways)
            && self.full.ptr_eq(&earlier.full)
            && self.names.ptr_eq(&earlier.names)
            && self.names_of.ptr_eq(&earlier.names_of)
    }

    /// The names of the joined nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = &Name> {
        self.interfaces.keys()
    }

    /// How many nodes have joined.
    pub fn len(&self) -> usize {
        self.interfaces.len()
    }

    /// The own side of a node; nothing if it has not joined.
    pub fn own_side(&self, node: &Name) -> Option<&Arc<Interface>> {
        self.interfaces.get(node)
    }

    /// Every member, with its class.
    pub fn all_members(&self) -> impl Iterator<Item = (&Name, ClassId)> {
        self.class_of.iter().map(|(name, class)| (name, *class))
    }

    /// Whether the same carries each member as in another mesh.
    pub fn carries_as(&self, other: &Self) -> bool {
        self.through.ptr_eq(&other.through) || self.through == other.through
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

    /// Who carries what for others.
    pub fn ways(&self) -> &Ways {
        &self.ways
    }

    /// What carries a member's traffic; absent: nothing but the hub, if there is one.
    pub fn through(&self, member: &Name) -> Option<&Through> {
        self.through.get(member)
    }

    /// The rules.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Which class a member is in.
    pub fn class_of(&self, node: &Name) -> Option<ClassId> {
        self.class_of.get(node).copied()
    }

    /// The network.
    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// The members of a class.
    pub fn members(&self, class: &ClassId) -> Option<&OrdMap<Name, Arc<Peer>>> {
        self.members.get(class)
    }

    /// A class that has members.
    pub fn class(&self, id: &ClassId) -> Option<&Class> {
        self.classes.get(id)
    }

    /// How many classes have members.
    pub fn class_count(&self) -> usize {
        self.members.len()
    }

    /// The classes that have members, each with them.
    pub fn classes(&self) -> impl Iterator<Item = (&Class, &OrdMap<Name, Arc<Peer>>)> {
        self.members.iter().filter_map(|(id, members)| Some((self.classes.get(id)?, members)))
    }

    fn peer(&self, node: &Name) -> Option<&Arc<Peer>> {
        self.members.get(self.class_of.get(node)?)?.get(node)
    }

    /// Whether there are nodes that know others without what it takes to reach them directly: around a hub in
    /// a network with rules, and behind a relay.
    fn keeps_carried(&self) -> bool {
        self.ways.has_relays() || self.is_restricted_hub()
    }

    /// Whether the network has rules, and its packets pass a hub: the others are then sent the peers that
    /// they may know, without what only the hub needs.
    fn is_restricted_hub(&self) -> bool {
        self.policy.is_restricted() && self.network.hub.is_some()
    }

    fn put_node(&mut self, node: &Name, joined: &Joined, declared: &Snapshot) {
        let declaration = declared.named::<Node>(&self.name, node).map(|node| &**node);
        let plain = !self.policy.is_restricted() && self.policy.is_plain() && !self.ways.has_relays();
        let tags = if plain { BTreeSet::new() } else { tags(Some(joined), declaration) };
        let through = self.ways.relay_of(node, &tags, &joined.addresses).cloned().map(Through::Relay);
        let class = self.place(node, &tags, &joined.addresses);
        let declaration = Declaration::of(declaration, &self.network);
        let resolves = self.network.name_service && !self.is_entry(node, declared);
        let named = resolves && self.says_names_with_peers();
        let via = through.as_ref().and_then(|relay| self.ways.carrier_of(relay)).cloned();
        let carrier = match &through {
            Some(_) => via.clone(),
            None => self.hub().filter(|hub| *hub != node).cloned(),
        };
        let interface = self.interface(node, joined, &declaration, carrier, class, named);
        let peer = Peer {
            public_key: Some(joined.public_key),
            endpoint: endpoint(declaration.endpoint, joined),
            addresses: joined.reachable(),
            via,
            class,
            carries: self.ways.carries(node),
            named,
        };
        self.put_peer(node, peer, through);
        put(&mut self.interfaces, node, interface);
        self.put_name(node, resolves, named, joined.reachable(), declared);
    }

    /// Adds or changes an external client that is let in.
    fn put_client(
        &mut self,
        name: &Name,
        client: &ExternalClient,
        status: &ClientStatus,
        declared: &Snapshot,
    ) {
        let ClientStatus { addresses, created: _, expired: _ } = status;
        let ExternalClient { public_key, tags, .. } = client;
        let through = ways::through(client);
        let class = self.place(name, tags, addresses);
        let resolves = self.network.name_service && !self.is_entry(name, declared);
        let named = resolves && self.says_names_with_peers();
        let peer = Peer {
            public_key: *public_key,
            // It must send first, wherever it is.
            endpoint: None,
            addresses: addresses.clone(),
            via: self.ways.carrier_of(&through).cloned(),
            class,
            carries: false,
            named,
        };
        self.put_peer(name, peer, Some(through));
        self.put_name(name, resolves, named, addresses.clone(), declared);
    }

    /// Whether peers say that their names resolve to their addresses. Nodes around a hub do not have each other
    /// as peers in a network without rules, so that names are sent separately there.
    fn says_names_with_peers(&self) -> bool {
        self.network.hub.is_none() || self.policy.is_restricted()
    }

    fn put_name(
        &mut self,
        member: &Name,
        resolves: bool,
        named: bool,
        addresses: BTreeSet<IpAddr>,
        declared: &Snapshot,
    ) {
        if resolves && !named {
            put(&mut self.names, member, Resolution::Addresses(addresses));
        } else if !self.is_entry(member, declared) {
            self.forget_name(member);
        }
    }

    /// Adds or changes a member whose class is known, as others see it.
    fn put_peer(&mut self, name: &Name, peer: Peer, through: Option<Through>) {
        let class = peer.class;
        if self.through.get(name) != through.as_ref() {
            self.unload(name);
        }
        let carried = Peer { public_key: None, endpoint: None, ..peer.clone() };
        if self.keeps_carried() {
            put_in(&mut self.carried, class, name, carried.clone());
        }
        let Some(through) = through else { return put_in(&mut self.members, class, name, peer) };
        put_in(&mut self.members, class, name, carried);
        let there = self.full.get(&through).and_then(|members| members.get(name)).cloned();
        if there.as_deref() == Some(&peer) {
            return;
        }
        if there.is_none_or(|there| there.class != class) {
            self.unload(name);
            *self.loads.entry(through.clone()).or_default().entry(class).or_insert(0) += 1;
        }
        self.full.entry(through.clone()).or_default().insert(name.clone(), Arc::new(peer));
        self.through.insert(name.clone(), through);
    }

    /// Takes a member away from what carries it.
    fn unload(&mut self, name: &Name) {
        let Some(through) = self.through.remove(name) else { return };
        let Some(members) = self.full.get_mut(&through) else { return };
        let class = members.remove(name).map(|peer| peer.class).unwrap_or_default();
        if members.is_empty() {
            self.full.remove(&through);
        }
        let Some(loads) = self.loads.get_mut(&through) else { return };
        match loads.get(&class) {
            Some(1) | None => drop(loads.remove(&class)),
            Some(more) => drop(loads.insert(class, more - 1)),
        }
        if loads.is_empty() {
            self.loads.remove(&through);
        }
    }

    /// Finds the class of a member, and takes it out of the one that it was in.
    fn place(&mut self, name: &Name, tags: &BTreeSet<Name>, addresses: &BTreeSet<IpAddr>) -> ClassId {
        let class = self.policy.class(name, tags, addresses);
        self.enter(name, class)
    }

    fn enter(&mut self, node: &Name, class: Class) -> ClassId {
        let id = class.id();
        let before = self.class_of.get(node).copied();
        if before == Some(id) {
            return id;
        }
        if before.is_some() {
            self.take_out(node);
        }
        self.class_of.insert(node.clone(), id);
        if !self.classes.contains_key(&id) {
            self.classes.insert(id, class);
        }
        id
    }

    /// Takes a node out of its class, which goes with its last member.
    fn take_out(&mut self, node: &Name) {
        self.unload(node);
        let Some(class) = self.class_of.remove(node) else { return };
        remove_from(&mut self.members, class, node);
        remove_from(&mut self.carried, class, node);
        if !self.members.contains_key(&class) {
            self.classes.remove(&class);
        }
    }

    fn remove_member(&mut self, node: &Name, declared: &Snapshot) {
        self.take_out(node);
        self.interfaces.remove(node);
        if !self.is_entry(node, declared) {
            self.forget_name(node);
        }
    }

    /// Judges what every class may open at every other.
    fn judge(&mut self) {
        if !self.policy.is_restricted() {
            return;
        }
        let standings: Vec<_> =
            self.classes.iter().map(|(id, class)| (*id, self.policy.standing(class))).collect();
        let mut near = vec![FixedBitSet::with_capacity(standings.len()); standings.len()];
        // Few sets of rules meet, so that what they come to is computed once.
        let mut known: BTreeMap<FixedBitSet, Arc<Access>> = BTreeMap::new();
        for (to_place, (to, receives)) in standings.iter().enumerate() {
            let mut row = OrdMap::new();
            for (from_place, (from, opens)) in standings.iter().enumerate() {
                if !opens.shares_with(receives) {
                    continue;
                }
                let judge = || Arc::new(self.policy.between(opens, receives));
                row.insert(*from, known.entry(opens.shared_with(receives)).or_insert_with(judge).clone());
                near[to_place].insert(from_place);
                near[from_place].insert(to_place);
            }
            if !row.is_empty() {
                self.access.insert(*to, row);
            }
        }
        for ((class, _), near) in standings.iter().zip(near).filter(|(_, near)| !near.is_clear()) {
            self.near.insert(*class, near.ones().map(|place| standings[place].0).collect());
        }
    }

    /// Judges again what a change since an earlier mesh can affect: classes that have appeared, and rules.
    fn judge_after(&mut self, earlier: &Self) {
        if !self.policy.is_restricted() {
            return;
        }
        if self.classes.ptr_eq(&earlier.classes) && Arc::ptr_eq(&self.policy, &earlier.policy) {
            return;
        }
        let (mut gone, mut new) = (Vec::new(), BTreeSet::new());
        for item in earlier.classes.diff(&self.classes) {
            match item {
                DiffItem::Remove(id, _) => gone.push(*id),
                DiffItem::Add(id, _) | DiffItem::Update { new: (id, _), .. } => drop(new.insert(*id)),
            }
        }
        gone.into_iter().for_each(|class| self.forget_class(class));
        let (policy, classes) = (self.policy.clone(), self.classes.clone());
        let rules = policy.changed_since(&earlier.policy);
        let mut pairs: BTreeSet<(ClassId, ClassId)> = BTreeSet::new();
        for (from, to) in rules.sides(classes.iter().map(|(id, class)| (*id, class))) {
            pairs.extend(from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))));
        }
        for class in &new {
            pairs.extend(classes.keys().flat_map(|other| [(*class, *other), (*other, *class)]));
        }
        let mut standings = BTreeMap::new();
        for (from, to) in pairs {
            let mut standing = |class: ClassId| {
                let new = || Arc::new(policy.standing(&classes[&class]));
                Arc::clone(standings.entry(class).or_insert_with(new))
            };
            let (opens, receives) = (standing(from), standing(to));
            self.set_access(from, to, policy.between(&opens, &receives));
        }
    }

    fn set_access(&mut self, from: ClassId, to: ClassId, may: Access) {
        let row = self.access.get(&to);
        if row.and_then(|row| row.get(&from)).map_or(may.is_nothing(), |known| **known == may) {
            return;
        }
        if !may.is_nothing() {
            self.access.entry(to).or_default().insert(from, Arc::new(may));
        } else if let Some(row) = self.access.get_mut(&to) {
            row.remove(&from);
            if row.is_empty() {
                self.access.remove(&to);
            }
        }
        let may =
            |from: &ClassId, to: &ClassId| self.access.get(to).is_some_and(|row| row.contains_key(from));
        let near = may(&from, &to) || may(&to, &from);
        for (one, other) in [(from, to), (to, from)] {
            if near {
                self.near.entry(one).or_default().insert(other);
            } else if let Some(classes) = self.near.get_mut(&one) {
                classes.remove(&other);
                if classes.is_empty() {
                    self.near.remove(&one);
                }
            }
        }
    }

    /// Forgets what is judged of a class that has no member any more.
    fn forget_class(&mut self, class: ClassId) {
        for other in self.near.get(&class).cloned().unwrap_or_default() {
            self.set_access(class, other, Access::default());
            self.set_access(other, class, Access::default());
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
        carrier: Option<Name>,
        class: ClassId,
        named: bool,
    ) -> Interface {
        let Network {
            ipv4: _,
            ipv6: _,
            hub: _,
            acl: _,
            listen_port: _,
            mtu,
            keepalive: _,
            name_service: _,
            node_limit: _,
            check_in,
            address_quarantine: _,
            // It is the server's to heed, when the network would be deleted.
            protect: _,
            manual_approval: _,
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
            carrier,
            forward: self.ways.carries(name),
            restricted: self.policy.is_restricted(),
            class,
            named,
            resolvers: self.resolvers.clone(),
        }
    }

    /// The same mesh, built on the maps of an earlier one wherever they agree.
    fn sharing_with(self, earlier: &Self) -> Self {
        Self {
            classes: shared(&earlier.classes, &self.classes),
            members: shared_within(&earlier.members, &self.members),
            carried: shared_within(&earlier.carried, &self.carried),
            access: shared_within(&earlier.access, &self.access),
            near: shared(&earlier.near, &self.near),
            interfaces: shared(&earlier.interfaces, &self.interfaces),
            ways: if self.ways == earlier.ways { earlier.ways.clone() } else { self.ways },
            through: shared(&earlier.through, &self.through),
            full: shared_within(&earlier.full, &self.full),
            loads: shared_within(&earlier.loads, &self.loads),
            names: shared(&earlier.names, &self.names),
            names_of: shared_within(&earlier.names_of, &self.names_of),
            ..self
        }
    }
}

/// Whether an external client is a member: let in, with a key and addresses.
pub fn is_let_in(client: &ExternalClient, status: &ClientStatus) -> bool {
    client.enabled && client.public_key.is_some() && !status.expired && !status.addresses.is_empty()
}

/// A node's tags: those of the key that it joined with, as they were then, and those of its declaration.
pub fn tags(joined: Option<&Joined>, declaration: Option<&Node>) -> BTreeSet<Name> {
    let mut tags = joined.map(|joined| joined.tags.clone()).unwrap_or_default();
    tags.extend(declaration.iter().flat_map(|node| &node.tags).cloned());
    tags
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
        let Node { ipv4: _, ipv6: _, tags: _, endpoint, listen_port: own_port, keepalive, approved: _ } =
            node;
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
pub(crate) fn endpoint(declared: Option<&Endpoint>, joined: &Joined) -> Option<Endpoint> {
    let Endpoints { configured, seen, local } = &joined.endpoints;
    let named = declared.or(configured.as_ref()).cloned();
    let endpoint = named.or_else(|| seen.or(*local).map(Endpoint::from))?.or_port(joined.listen_port);
    Some(endpoint).filter(|endpoint| endpoint.port != Some(0))
}

/// Puts an entry into a map, unless an equal one is there.
fn put<T: PartialEq>(map: &mut OrdMap<Name, Arc<T>>, name: &Name, entry: T) {
    if map.get(name).is_none_or(|there| **there != entry) {
        map.insert(name.clone(), Arc::new(entry));
    }
}

/// The same for an entry that is about a class.
fn put_in<T: PartialEq>(map: &mut ByClass<T>, class: ClassId, name: &Name, entry: T) {
    let there = map.get(&class).and_then(|inner| inner.get(name));
    if there.is_none_or(|there| **there != entry) {
        map.entry(class).or_default().insert(name.clone(), Arc::new(entry));
    }
}

/// Removes an entry that is about a class, and the class with its last one.
fn remove_from<T>(map: &mut ByClass<T>, class: ClassId, name: &Name) {
    let Some(inner) = map.get_mut(&class) else { return };
    inner.remove(name);
    if inner.is_empty() {
        map.remove(&class);
    }
}

/// A map that equals `fresh`, built on an earlier one.
fn shared<K: Ord + Clone, T: PartialEq + Clone>(
    earlier: &OrdMap<K, T>,
    fresh: &OrdMap<K, T>,
) -> OrdMap<K, T> {
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

/// The same for maps of maps.
fn shared_within<K: Ord + Clone, L: Ord + Clone, T: PartialEq + Clone>(
    earlier: &OrdMap<K, OrdMap<L, T>>,
    fresh: &OrdMap<K, OrdMap<L, T>>,
) -> OrdMap<K, OrdMap<L, T>> {
    let inner = |(key, fresh): (&K, &OrdMap<L, T>)| {
        let map = earlier.get(key).map_or_else(|| fresh.clone(), |earlier| shared(earlier, fresh));
        (key.clone(), map)
    };
    fresh.iter().map(inner).collect()
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
