//! How a change affects each node: its peers, the ways to them, routes, names, addresses, what it carries, and
//! whether connections survive.
//!
//! Pure, on two moments of a network, from what nodes are sent at each: [`of_network`]. Nodes of one
//! [`Audience`] that are of one audience afterwards are affected alike, but for what is about themselves, so
//! that the rest is found once for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{Access, ClassId};
use crate::compile::Mesh;
use crate::compile::audience::{Audience, EntryNames};
use crate::compile::carrying::{CarryingChange, Part};
use crate::compile::paths::{Paths, Place};
use crate::compile::reach::Moment;
use crate::compile::ways;
use crate::kinds::Kind;
use crate::rules::Claim;
use crate::scalars::{DomainName, Endpoint, EndpointHost, Name, NetworkName, Seconds};
use crate::snapshot::{ResourceId, Snapshot};
use crate::text::natural;
use crate::view::{Forward, Interface, Peer, Resolution, Route, Tunnel, View, ViewDelta, changed_tunnels};
use crate::world::ServerInfo;

/// How many entries each list of an impact has at most; more are only counted.
pub const LISTED: usize = 50;

/// How a plan affects one node. Each list has at most 50 entries, names in natural order (`host-2` before `host-10`);
/// `more` counts the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct NodeImpact {
    /// The network.
    pub network: NetworkName,
    /// The node.
    pub node: Name,
    /// Whether the plan removes it from the network.
    pub removed: bool,
    /// The peers that it gains: whom WireGuard has a tunnel to.
    pub peers_added: Vec<Name>,
    /// The peers that it loses.
    pub peers_removed: Vec<Name>,
    /// The peers that stay, with another endpoint or other allowed IPs.
    pub peers_changed: Vec<Name>,
    /// The peers that stay, with another key.
    #[serde(default)]
    pub peers_rekeyed: Vec<Name>,
    /// How the allowed IPs of peers that stay change: what is sent to them, and may come from them.
    #[serde(default)]
    pub allowed_ips: Vec<AllowedIps>,
    /// The members that its packets reach by other nodes than before, put together where these are the same.
    #[serde(default)]
    pub paths: Vec<PathChange>,
    /// Ranges that it gains a route to.
    #[schemars(with = "Vec<String>")]
    pub routes_added: Vec<IpNet>,
    /// Ranges that it loses the route to.
    #[schemars(with = "Vec<String>")]
    pub routes_removed: Vec<IpNet>,
    /// Ranges that it sends nothing to any more: they lie in a wider range that it reaches through others, and are not
    /// for it.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub routes_refused: Vec<IpNet>,
    /// Ranges that it reaches through another node than before.
    #[serde(default)]
    pub routes_changed: Vec<RouteChange>,
    /// Where what it sends to the internet goes, by family, where that changes.
    #[serde(default)]
    pub internet: Vec<InternetChange>,
    /// The names of the network that begin to resolve on it.
    #[serde(default)]
    pub names_added: Vec<Name>,
    /// The names that no longer resolve on it.
    #[serde(default)]
    pub names_removed: Vec<Name>,
    /// The names that resolve to something else than before.
    #[serde(default)]
    pub names_changed: Vec<Name>,
    /// What it begins or ceases to carry for others.
    #[serde(default)]
    pub carries: Vec<PartChange>,
    /// Whether what may be opened at it changes, by nodes that it knows before and afterwards.
    #[serde(default)]
    pub filter: bool,
    /// What else of its interface changes, or of what it forwards to.
    #[serde(default)]
    pub settings: Vec<SettingChange>,
    /// Its addresses that change, one entry for each family.
    pub readdressed: Vec<Readdressed>,
    /// How many entries are left out of each list that is too long, by the name of the list.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<String, u64>,
    /// Whether connections of it break: it loses an address, its port changes, what it reaches behind NAT is reached
    /// through another node, or what it sends to the internet goes another way. Those that it is no longer allowed, and
    /// those with a node that breaks its own, are not counted.
    pub sessions_break: bool,
    /// Whether its path to the server stays outside of the mesh.
    pub keeps_server: bool,
}

/// How the allowed IPs of a peer change (AllowedIPs in wg(8)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct AllowedIps {
    /// The peer.
    pub peer: Name,
    /// The ranges that are added, at most 50.
    #[schemars(with = "Vec<String>")]
    pub added: Vec<IpNet>,
    /// The ranges that are removed, at most 50.
    #[schemars(with = "Vec<String>")]
    pub removed: Vec<IpNet>,
    /// How many ranges are left out of the two lists.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// A node's packets to others take another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct PathChange {
    /// The members that it reaches so, at most 50.
    pub to: Vec<Name>,
    /// How many members are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
    /// The nodes that its packets passed, in order; empty: none, it reached them directly.
    pub before: Vec<Name>,
    /// The nodes that they pass.
    pub after: Vec<Name>,
}

/// A range is reached through another node than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct RouteChange {
    /// The range.
    #[schemars(with = "String")]
    pub range: IpNet,
    /// The node that it was reached through; null: what was sent there was refused.
    pub before: Option<Name>,
    /// The node that it is reached through; null: what is sent there is refused.
    pub after: Option<Name>,
    /// Whether connections to it break: one of the two puts its own address in place of the source (NAT).
    pub breaks: bool,
}

/// A field of a node's interface that changes, as the files call it, or what it forwards to for an egress that it is
/// at before and afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct SettingChange {
    /// Its name: `listen-port`, `mtu`, `keepalive`, `check-in`, `name-servers`; `egress office`, of what it forwards to;
    /// `refuses`, of a range that it sends nothing to.
    pub name: String,
    /// What it was; null: nothing.
    pub before: Option<String>,
    /// What it is; null: nothing.
    pub after: Option<String>,
}

/// The address of a node in one family changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Readdressed {
    /// The address that it had; null: none of this family.
    pub before: Option<IpAddr>,
    /// The address that it gets; null: none of this family.
    pub after: Option<IpAddr>,
    /// Why it cannot stay as it was: the node, entry or client that the address is reserved for, the network whose
    /// range changes, or the declaration of the node itself.
    pub because: Option<ResourceId>,
}

/// What a node sends to the internet goes another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct InternetChange {
    /// The family: `0.0.0.0/0` or `::/0`.
    #[schemars(with = "String")]
    pub range: IpNet,
    /// Where it went.
    pub before: Internet,
    /// Where it goes.
    pub after: Internet,
}

/// Where what a node sends to the internet goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Internet {
    /// Where the host itself routes it, outside of the network.
    Own,
    /// Through this node.
    Through(Name),
    /// Nowhere: the nodes that would carry it are away.
    Refused,
}

/// A node does something else for what is carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct PartChange {
    /// The egress, ingress or relay; the network, of its hub.
    pub id: ResourceId,
    /// What it did; null: nothing.
    pub before: Option<Part>,
    /// What it does; null: nothing.
    pub after: Option<Part>,
}

/// How the joined nodes of a network are affected by what they are sent after a change, by name; those that are
/// not are left out.
pub fn of_network(
    before: Moment<'_>,
    after: Moment<'_>,
    carrying: &[CarryingChange],
    server: &ServerInfo,
) -> Vec<NodeImpact> {
    let Some(was) = before.mesh else { return Vec::new() };
    let change = Change {
        was,
        is: after.mesh,
        paths: moved_paths(before, after),
        reserved: reserved(was.name(), after.declared),
        declared: (before.declared, after.declared),
        server: server_addresses(server).collect(),
        carrying,
    };
    let mut shared = BTreeMap::new();
    was.nodes().filter_map(|node| change.impact(node, &mut shared)).collect()
}

/// A change of one network.
struct Change<'a> {
    was: &'a Mesh,
    is: Option<&'a Mesh>,
    paths: Option<MovedPaths<'a>>,
    /// Whom each address is reserved for afterwards.
    reserved: BTreeMap<IpAddr, ResourceId>,
    declared: (&'a Snapshot, &'a Snapshot),
    /// By which the server is reached.
    server: Vec<IpAddr>,
    carrying: &'a [CarryingChange],
}

/// What is shared by the nodes of one audience that are of one afterwards; absent: they leave.
type OfAudiences<'a> = BTreeMap<(Audience, Option<Audience>), Shared<'a>>;

/// What a change means for every node of one audience that is of one afterwards. Where an audience may have
/// several nodes, each is among the peers of the others, and so of these lists.
#[derive(Default)]
struct Shared<'a> {
    added: Names,
    removed: Names,
    changed: Names,
    rekeyed: Names,
    /// What is added to the allowed IPs of each peer that stays, and removed from them.
    allowed: BTreeMap<Name, [BTreeSet<IpNet>; 2]>,
    allowed_names: Names,
    /// The peers that stay and have another endpoint.
    elsewhere: BTreeSet<Name>,
    paths: Vec<MovedTo>,
    routes_added: BTreeSet<IpNet>,
    routes_removed: BTreeSet<IpNet>,
    routes_refused: BTreeSet<IpNet>,
    routes_changed: Vec<RouteChange>,
    internet: Vec<InternetChange>,
    names_added: Names,
    names_removed: Names,
    names_changed: Names,
    /// What all resolve before and afterwards.
    known: Option<[Known<'a>; 2]>,
    filter: bool,
    /// What is forwarded to otherwise, and what is refused no longer.
    others: Vec<SettingChange>,
    /// The routes into the mesh, afterwards.
    leads: Vec<IpNet>,
}

/// Names, of which the first in natural order are listed.
#[derive(Default)]
struct Names {
    /// One more than are listed, since the node itself may be among them.
    first: Vec<Name>,
    /// All of them, sorted.
    all: Vec<Name>,
}

impl FromIterator<Name> for Names {
    fn from_iter<I: IntoIterator<Item = Name>>(names: I) -> Self {
        let mut all: Vec<Name> = names.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self { first: first_of(all.iter().collect()), all }
    }
}

/// The first of some names in natural order, one more than are listed.
fn first_of(mut names: Vec<&Name>) -> Vec<Name> {
    let order = |one: &&Name, other: &&Name| natural(one.as_str(), other.as_str());
    if names.len() > LISTED + 1 {
        names.select_nth_unstable_by(LISTED, order);
        names.truncate(LISTED + 1);
    }
    names.sort_by(order);
    names.into_iter().cloned().collect()
}

impl Names {
    fn has(&self, name: &Name) -> bool {
        self.all.binary_search(name).is_ok()
    }

    /// The first of them, and how many more there are.
    fn list(&self) -> (Vec<Name>, u64) {
        let first: Vec<Name> = self.first.iter().take(LISTED).cloned().collect();
        let more = self.all.len() - first.len();
        (first, more as u64)
    }

    /// The first of them, without the node itself, and how many more there are.
    fn without(&self, node: &Name) -> (Vec<Name>, u64) {
        let others: Vec<Name> =
            self.first.iter().filter(|name| *name != node).take(LISTED).cloned().collect();
        let all = self.all.len() - usize::from(self.has(node));
        let more = all - others.len();
        (others, more as u64)
    }
}

/// The first of a list, and how many more there are.
fn first<T: Clone>(all: &[T]) -> (Vec<T>, u64) {
    (all.iter().take(LISTED).cloned().collect(), all.len().saturating_sub(LISTED) as u64)
}

impl<'a> Change<'a> {
    fn impact(&self, node: &Name, shared: &mut OfAudiences<'a>) -> Option<NodeImpact> {
        let from = self.was.audience(node);
        let is = self.is.filter(|is| is.has(node));
        let to = is.map(|is| is.audience(node));
        let shared = shared.entry((from.clone(), to.clone())).or_insert_with(|| match is.zip(to.as_ref()) {
            Some((is, to)) => self.shared(node, is, &from, to),
            None => Shared { removed: self.was.peers_with_keys(&from).collect(), ..Shared::default() },
        });
        let before = self.was.own_side(node)?;
        let after = is.and_then(|is| is.own_side(node));
        let impact = match after {
            None => self.removal(node, before, &from, shared),
            Some(after) => self.stays(node, (before, after), shared),
        };
        (impact.removed || !impact.is_nothing() || self.is_sent(node, is)).then_some(impact)
    }

    /// Whether a node is sent anything that no list has a place for.
    fn is_sent(&self, node: &Name, is: Option<&Mesh>) -> bool {
        let Some((before, after)) = self.was.own_side(node).zip(is.and_then(|is| is.own_side(node))) else {
            return false;
        };
        // Another class by which others may open the same is nothing to it.
        let plain = |it: &Interface| Interface { class: ClassId::default(), ..it.clone() };
        plain(before) != plain(after)
    }

    fn removal(&self, node: &Name, before: &Interface, from: &Audience, shared: &Shared<'_>) -> NodeImpact {
        let mut routes: Vec<IpNet> = self.was.ranges_of(from).chain(ranges(before)).collect();
        routes.sort();
        let mut impact = nothing(self.was.name(), node);
        impact.removed = true;
        impact.put("peers_removed", shared.removed.without(node), |it| &mut it.peers_removed);
        impact.put("routes_removed", first(&routes), |it| &mut it.routes_removed);
        let addresses = before.addresses.iter().map(|address| Readdressed {
            before: Some(address.addr()),
            after: None,
            because: None,
        });
        impact.readdressed = addresses.collect();
        impact.carries = parts(node, self.carrying);
        impact.sessions_break = true;
        impact
    }

    fn stays(
        &self,
        node: &Name,
        (before, after): (&Interface, &Interface),
        shared: &Shared<'_>,
    ) -> NodeImpact {
        let mut impact = nothing(self.was.name(), node);
        impact.put("peers_added", shared.added.without(node), |it| &mut it.peers_added);
        impact.put("peers_removed", shared.removed.without(node), |it| &mut it.peers_removed);
        impact.put("peers_rekeyed", shared.rekeyed.without(node), |it| &mut it.peers_rekeyed);
        let side =
            |it: &Interface| -> BTreeSet<IpNet> { it.addresses.iter().map(|it| it.addr().into()).collect() };
        let own = [side(after), side(before)];
        let (allowed, unmoved) = shared.allowed_ips(node, [before, after], &own);
        impact.put("allowed_ips", allowed, |it| &mut it.allowed_ips);
        let changed = match unmoved.is_empty() {
            true => shared.changed.without(node),
            false => {
                let moved = shared.changed.all.iter().filter(|peer| !unmoved.contains(peer)).cloned();
                moved.collect::<Names>().without(node)
            }
        };
        impact.put("peers_changed", changed, |it| &mut it.peers_changed);
        let paths: Vec<PathChange> = shared
            .paths
            .iter()
            .map(|MovedTo { before, after, first, all, has_own }| {
                let to: Vec<Name> = first.iter().filter(|name| *name != node).take(LISTED).cloned().collect();
                let more = (all - usize::from(*has_own) - to.len()) as u64;
                PathChange { to, more, before: before.clone(), after: after.clone() }
            })
            .filter(|change| !change.to.is_empty())
            .collect();
        impact.put("paths", first(&paths), |it| &mut it.paths);
        let (had, has): (BTreeSet<IpNet>, BTreeSet<IpNet>) =
            (ranges(before).collect(), ranges(after).collect());
        // Around a hub the network's own ranges are routes besides.
        let own = |range: &&IpNet| had.contains(*range) && has.contains(*range);
        let added = has.difference(&had).chain(shared.routes_added.iter().filter(|it| !own(it)));
        let removed = had.difference(&has).chain(shared.routes_removed.iter().filter(|it| !own(it)));
        let (added, removed): (BTreeSet<IpNet>, BTreeSet<IpNet>) =
            (added.copied().collect(), removed.copied().collect());
        let (added, removed): (Vec<_>, Vec<_>) = (added.into_iter().collect(), removed.into_iter().collect());
        impact.put("routes_added", first(&added), |it| &mut it.routes_added);
        impact.put("routes_removed", first(&removed), |it| &mut it.routes_removed);
        let refused: Vec<IpNet> = shared.routes_refused.iter().copied().collect();
        impact.put("routes_refused", first(&refused), |it| &mut it.routes_refused);
        impact.put("routes_changed", first(&shared.routes_changed), |it| &mut it.routes_changed);
        impact.internet.clone_from(&shared.internet);
        self.names(node, (before, after), shared, &mut impact);
        impact.carries = parts(node, self.carrying);
        impact.filter = shared.filter;
        impact.settings = settings(before, after);
        impact.settings.extend(shared.others.iter().cloned());
        impact.readdressed = self.readdressed(node, before, after);
        let loses_one = impact.readdressed.iter().any(|it| it.before.is_some());
        impact.sessions_break = loses_one
            || before.listen_port != after.listen_port
            || !shared.internet.is_empty()
            || shared.routes_changed.iter().any(|change| change.breaks);
        let leads = |address: &IpAddr| has.iter().chain(&shared.leads).any(|range| range.contains(address));
        impact.keeps_server = !self.server.iter().any(leads);
        impact
    }

    /// The names that resolve otherwise on a node: those that do for its whole audience, save its own name and those
    /// that lead to it, which the node knows although others of its class may not.
    fn names(
        &self,
        node: &Name,
        interfaces: (&Interface, &Interface),
        shared: &Shared<'_>,
        impact: &mut NodeImpact,
    ) {
        let (had, has) = (self.was.own_names(node), self.is.map(|is| is.own_names(node)).unwrap_or_default());
        let (interfaces, own_names) = ([interfaces.0, interfaces.1], [&had, &has]);
        let (addresses, known) = (interfaces.map(addresses), shared.known.as_ref());
        let resolves = |at: usize, name: &Name| {
            if name == node && interfaces[at].named {
                return Some(Resolved::Addresses(&addresses[at]));
            }
            let known = known.map(|known| &known[at]);
            let own = || own_names[at].get(name).map(|it| Resolved::of(it));
            // Among the peers of its audience it is itself, by a name that its interface has or has not.
            let peer = known.filter(|_| name != node).and_then(|known| known.peer(name));
            peer.or_else(own).or_else(|| known.and_then(|known| known.entry(name)))
        };
        let mut own: BTreeMap<Difference, Vec<Name>> = BTreeMap::new();
        let all: BTreeSet<&Name> = std::iter::once(node).chain(had.keys()).chain(has.keys()).collect();
        for name in &all {
            if let Some(difference) = Difference::of(resolves(0, name), resolves(1, name)) {
                own.entry(difference).or_default().push((*name).clone());
            }
        }
        let mut list = |names: &Names, difference| {
            let own = own.remove(&difference).unwrap_or_default();
            if own.is_empty() && !all.iter().any(|name| names.has(name)) {
                return names.list();
            }
            let others = names.all.iter().filter(|name| !all.contains(name)).cloned();
            others.chain(own).collect::<Names>().list()
        };
        impact.put("names_added", list(&shared.names_added, Difference::Added), |it| &mut it.names_added);
        impact.put("names_removed", list(&shared.names_removed, Difference::Removed), |it| {
            &mut it.names_removed
        });
        impact.put("names_changed", list(&shared.names_changed, Difference::Changed), |it| {
            &mut it.names_changed
        });
    }

    /// How the addresses of a node change, and why.
    fn readdressed(&self, node: &Name, before: &Interface, after: &Interface) -> Vec<Readdressed> {
        let (had, has) = (addresses(before), addresses(after));
        let of_family =
            |of: &BTreeSet<IpAddr>, ipv4: bool| of.iter().copied().find(|it| it.is_ipv4() == ipv4);
        let change = |ipv4: bool| {
            let (before, after) = (of_family(&had, ipv4), of_family(&has, ipv4));
            (before != after).then(|| Readdressed { before, after, because: self.why(node, before) })
        };
        [true, false].into_iter().filter_map(change).collect()
    }

    /// Why a node cannot have an address that it had, or none.
    fn why(&self, node: &Name, before: Option<IpAddr>) -> Option<ResourceId> {
        let network = self.was.name();
        let id = ResourceId { network: network.clone(), kind: Kind::Node, name: node.clone() };
        let own = self.declared.0.entry(&id).map(|it| &it.object)
            != self.declared.1.entry(&id).map(|it| &it.object);
        let settings = self.declared.1.network(network)?;
        match before.filter(|address| settings.has_room_at(*address)) {
            None => Some(ResourceId::of_network(network.clone())),
            Some(address) => {
                let other = self.reserved.get(&address).filter(|holder| holder.name != *node);
                other.cloned().or(own.then_some(id))
            }
        }
    }

    fn shared(&self, node: &Name, is: &'a Mesh, from: &Audience, to: &Audience) -> Shared<'a> {
        let was = self.was;
        let delta = is.delta_from(was, from, to);
        // Only where several nodes may be of both is each among the others' peers.
        let alone = from.carrier.is_some() || to.carrier.is_some();
        let part = |mesh: &Mesh, named: &BTreeSet<&Name>| {
            if alone { mesh.part(node, named) } else { mesh.part_of_audience(node, named) }
        };
        let named: BTreeSet<&Name> = delta.peers.keys().collect();
        let (Some(before), Some(after)) = (part(was, &named), part(is, &named)) else {
            return Shared::default();
        };
        // Whoever carries anything at either moment is looked at in both.
        let others = before.peers.keys().chain(after.peers.keys()).filter(|name| !named.contains(*name));
        let others: Vec<Name> = others.cloned().collect();
        let named: BTreeSet<&Name> = named.into_iter().chain(&others).collect();
        let again = (!others.is_empty()).then(|| part(was, &named).zip(part(is, &named))).flatten();
        let (before, after) = again.unwrap_or((before, after));
        let mut shared = Shared {
            filter: filter_changes((&before, &after), &delta, was, is),
            others: forward_changes(&before, &after),
            internet: internet_changes(&before, &after, &delta),
            paths: self.paths.as_ref().map(|paths| paths.of((was, from), (is, to))).unwrap_or_default(),
            ..Shared::default()
        };
        shared.peers(&before, &after, &delta);
        shared.routes(&before, &after, &delta, (was, is));
        let known = [(&before, was.names_for(from)), (&after, is.names_for(to))];
        let known = known.map(|(view, entries)| Known { peers: view.peers.clone(), entries });
        shared.names(&delta, &known);
        shared.known = Some(known);
        let into = after.routes.iter().filter(|(range, route)| range.prefix_len() > 0 && !route.carried);
        shared.leads = into.map(|(range, _)| *range).collect();
        shared
    }
}

impl Shared<'_> {
    /// The peers whose tunnels differ.
    fn peers(&mut self, before: &View, after: &View, delta: &ViewDelta) {
        let [had, has] = changed_tunnels(before, after, delta);
        let by_name = |tunnels| -> BTreeMap<Name, _> {
            let named = |(key, tunnel): (_, Tunnel)| (tunnel.peer.clone(), (key, tunnel));
            BTreeMap::into_iter(tunnels).map(named).collect()
        };
        let (had, has) = (by_name(had), by_name(has));
        self.added = has.keys().filter(|name| !had.contains_key(*name)).cloned().collect();
        self.removed = had.keys().filter(|name| !has.contains_key(*name)).cloned().collect();
        let stay = || has.iter().filter_map(|(name, it)| Some((name, had.get(name)?, it)));
        self.rekeyed = stay().filter(|(_, had, has)| had.0 != has.0).map(|(name, ..)| name.clone()).collect();
        self.changed = stay()
            .filter(|(_, had, has)| had.0 == has.0 && had.1 != has.1)
            .map(|(name, ..)| name.clone())
            .collect();
        for (name, (_, had), (_, has)) in stay() {
            if had.endpoint != has.endpoint {
                self.elsewhere.insert(name.clone());
            }
            let sides = [&has.allowed_ips - &had.allowed_ips, &had.allowed_ips - &has.allowed_ips];
            if sides.iter().any(|side| !side.is_empty()) {
                self.allowed.insert(name.clone(), sides);
            }
        }
        self.allowed_names = self.allowed.keys().cloned().collect();
    }

    /// How the allowed IPs of a node's peers change, and the peers that do not change for it, although they do for
    /// others of its audience: what carries it leads to them, and not to itself.
    fn allowed_ips(
        &self,
        node: &Name,
        sides: [&Interface; 2],
        own: &[BTreeSet<IpNet>; 2],
    ) -> ((Vec<AllowedIps>, u64), BTreeSet<&Name>) {
        let change = |peer: &Name| allowed_ips(peer, self.allowed.get(peer)?, own);
        let carriers = sides.iter().filter_map(|it| it.carrier.as_ref());
        let carriers = carriers.filter_map(|name| self.allowed.get_key_value(name)).map(|(name, _)| name);
        let alike: BTreeSet<&Name> = carriers.filter(|peer| change(peer).is_none()).collect();
        let names = &self.allowed_names;
        let moved = names.first.iter().filter(|peer| *peer != node && !alike.contains(*peer));
        let list: Vec<AllowedIps> = moved.take(LISTED).filter_map(change).collect();
        let all = names.all.len() - usize::from(names.has(node)) - alike.len();
        let more = all.saturating_sub(list.len()) as u64;
        ((list, more), alike.into_iter().filter(|peer| !self.elsewhere.contains(*peer)).collect())
    }

    fn routes(&mut self, before: &View, after: &View, delta: &ViewDelta, (was, is): (&Mesh, &Mesh)) {
        // Which members its addresses count as is of no matter to a route.
        let via = |view: &View, range: &IpNet| view.routes.get(range).map(|route| route.via.clone());
        for range in delta.routes.keys() {
            match (via(before, range), via(after, range)) {
                (None, Some(Some(_))) => drop(self.routes_added.insert(*range)),
                (None, Some(None)) => drop(self.routes_refused.insert(*range)),
                (Some(Some(_)), None) => drop(self.routes_removed.insert(*range)),
                (Some(had), Some(has)) if had != has => {
                    let breaks = had.is_some() && (was.ways().has_nat(range) || is.ways().has_nat(range));
                    self.routes_changed.push(RouteChange { range: *range, before: had, after: has, breaks });
                }
                // Where what goes to the internet goes is said apart.
                (Some(None), None) if range.prefix_len() > 0 => self.others.push(SettingChange {
                    name: "refuses".to_owned(),
                    before: Some(range.to_string()),
                    after: None,
                }),
                (Some(_), Some(_) | None) | (None, None) => {}
            }
        }
        self.routes_changed.sort_by_key(|change| change.range);
    }

    fn names(&mut self, delta: &ViewDelta, known: &[Known<'_>; 2]) {
        let names: BTreeSet<&Name> = delta.peers.keys().chain(delta.names.keys()).collect();
        let mut differ: BTreeMap<Difference, Vec<Name>> = BTreeMap::new();
        for name in names {
            let [had, has] = known.each_ref().map(|known| known.peer(name).or_else(|| known.entry(name)));
            if let Some(difference) = Difference::of(had, has) {
                differ.entry(difference).or_default().push(name.clone());
            }
        }
        let mut take = |difference| differ.remove(&difference).unwrap_or_default().into_iter().collect();
        self.names_added = take(Difference::Added);
        self.names_removed = take(Difference::Removed);
        self.names_changed = take(Difference::Changed);
    }
}

/// What nodes of an audience resolve, as far as a change is about it.
struct Known<'a> {
    peers: OrdMap<Name, Arc<Peer>>,
    entries: EntryNames<'a>,
}

/// What a name resolves to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resolved<'a> {
    Addresses(&'a BTreeSet<IpAddr>),
    Alias(&'a DomainName),
}

impl<'a> Resolved<'a> {
    fn of(resolution: &'a Resolution) -> Self {
        match resolution {
            Resolution::Addresses(addresses) => Self::Addresses(addresses),
            Resolution::Alias(alias) => Self::Alias(alias),
        }
    }
}

impl Known<'_> {
    /// What a name resolves to as that of a peer.
    fn peer(&self, name: &Name) -> Option<Resolved<'_>> {
        let peer = self.peers.get(name).filter(|peer| peer.named)?;
        Some(Resolved::Addresses(&peer.addresses))
    }

    /// What a name resolves to otherwise.
    fn entry(&self, name: &Name) -> Option<Resolved<'_>> {
        self.entries.get(name).map(Resolved::of)
    }
}

/// How what a name resolves to differs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    Added,
    Removed,
    Changed,
}

impl Difference {
    /// What differs; nothing if nothing does.
    fn of<T: PartialEq>(before: Option<T>, after: Option<T>) -> Option<Self> {
        match (before, after) {
            (None, Some(_)) => Some(Self::Added),
            (Some(_), None) => Some(Self::Removed),
            (Some(before), Some(after)) if before != after => Some(Self::Changed),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }
}

/// How the allowed IPs of a peer change, but for a node's own addresses afterwards and before; nothing if they do not.
fn allowed_ips(peer: &Name, sides: &[BTreeSet<IpNet>; 2], own: &[BTreeSet<IpNet>; 2]) -> Option<AllowedIps> {
    let [(added, left), (removed, out)] = [0, 1].map(|at| {
        let all: Vec<IpNet> = sides[at].difference(&own[at]).copied().collect();
        first(&all)
    });
    (!added.is_empty() || !removed.is_empty()).then(|| AllowedIps {
        peer: peer.clone(),
        added,
        removed,
        more: left + out,
    })
}

/// Members that the nodes of an audience reach by other nodes than before.
struct MovedTo {
    before: Vec<Name>,
    after: Vec<Name>,
    /// The first of them in natural order, one more than are listed.
    first: Vec<Name>,
    /// How many there are.
    all: usize,
    /// Whether the audience's own nodes are among them.
    has_own: bool,
}

/// What members are judged as and where they are, before and afterwards.
type Sides = [(ClassId, Place); 2];

/// The members and the ways to them, where any differs.
struct MovedPaths<'a> {
    paths: [Paths<'a>; 2],
    /// The members that are there before and afterwards, by where they are and what they are judged as.
    members: BTreeMap<Sides, Names>,
}

/// Where members are before and after; nothing if all packets go as before.
fn moved_paths<'a>(before: Moment<'a>, after: Moment<'a>) -> Option<MovedPaths<'a>> {
    let (was, is) = (before.mesh?, after.mesh?);
    let network = was.name();
    let away = |moment: Moment<'a>| -> Vec<_> {
        moment.inventory.away().filter(|(id, _)| id.network == *network).collect()
    };
    if was.hub() == is.hub() && was.ways() == is.ways() && was.carries_as(is) && away(before) == away(after) {
        return None;
    }
    let place = |mesh: &Mesh, name: &Name| Place {
        carrier: Some(name).filter(|name| mesh.ways().carries(name)).cloned(),
        through: mesh.through(name).cloned(),
    };
    let mut members: BTreeMap<_, Vec<Name>> = BTreeMap::new();
    for (name, class) in was.all_members() {
        let Some(later) = is.class_of(name) else { continue };
        let sides = [(class, place(was, name)), (later, place(is, name))];
        members.entry(sides).or_default().push(name.clone());
    }
    let paths = [before, after].map(|moment| {
        let mesh = moment.mesh.unwrap_or(was);
        let carriers = mesh.all_members().map(|(name, _)| name).filter(|name| mesh.ways().carries(name));
        let carriers = carriers.map(|name| (name.clone(), mesh.through(name).cloned())).collect();
        let is_there =
            move |node: &Name, egress: Option<&Name>| ways::is_there(network, node, egress, moment.inventory);
        Paths::new(mesh.ways(), mesh.hub(), carriers, is_there)
    });
    let members = members.into_iter().map(|(sides, names)| (sides, names.into_iter().collect())).collect();
    Some(MovedPaths { paths, members })
}

impl MovedPaths<'_> {
    /// The members that nodes of an audience reach by other nodes than before, of those that they may talk to before
    /// and afterwards, by the nodes passed.
    fn of(&self, (was, from): (&Mesh, &Audience), (is, to): (&Mesh, &Audience)) -> Vec<MovedTo> {
        let mut moved: BTreeMap<_, Vec<(&Sides, &Names)>> = BTreeMap::new();
        let places = [from.place(), to.place()];
        for (sides, names) in &self.members {
            let [(had, place), (has, later)] = sides;
            if !was.are_near(from.class, *had) || !is.are_near(to.class, *has) {
                continue;
            }
            let [before, after] =
                [(0, place), (1, later)].map(|(at, place)| self.paths[at].between(&places[at], place));
            if let (Some(before), Some(after)) = (before, after)
                && before != after
            {
                moved.entry((before, after)).or_default().push((sides, names));
            }
        }
        let [before, after] = &places;
        let own = [(from.class, before.clone()), (to.class, after.clone())];
        let all = moved.into_iter().map(|((before, after), groups)| MovedTo {
            before,
            after,
            first: first_of(groups.iter().flat_map(|(_, names)| &names.first).collect()),
            all: groups.iter().map(|(_, names)| names.all.len()).sum(),
            has_own: groups.iter().any(|(sides, _)| **sides == own),
        });
        all.collect()
    }
}

/// An impact that is none.
fn nothing(network: &NetworkName, node: &Name) -> NodeImpact {
    NodeImpact {
        network: network.clone(),
        node: node.clone(),
        removed: false,
        peers_added: Vec::new(),
        peers_removed: Vec::new(),
        peers_changed: Vec::new(),
        peers_rekeyed: Vec::new(),
        allowed_ips: Vec::new(),
        paths: Vec::new(),
        routes_added: Vec::new(),
        routes_removed: Vec::new(),
        routes_refused: Vec::new(),
        routes_changed: Vec::new(),
        internet: Vec::new(),
        names_added: Vec::new(),
        names_removed: Vec::new(),
        names_changed: Vec::new(),
        carries: Vec::new(),
        filter: false,
        settings: Vec::new(),
        readdressed: Vec::new(),
        more: BTreeMap::new(),
        sessions_break: false,
        keeps_server: true,
    }
}

impl NodeImpact {
    /// Sets a list, and how many entries are left out of it.
    fn put<T>(&mut self, name: &str, (list, more): (Vec<T>, u64), field: impl Fn(&mut Self) -> &mut Vec<T>) {
        *field(self) = list;
        if more > 0 {
            self.more.insert(name.to_owned(), more);
        }
    }

    /// How many entries a list has, with those that are left out.
    pub fn all_of<T>(&self, name: &str, list: &[T]) -> u64 {
        list.len() as u64 + self.more.get(name).copied().unwrap_or_default()
    }

    /// Whether none of its lists has anything.
    fn is_nothing(&self) -> bool {
        !self.changes_more_than_its_filter() && !self.filter && self.keeps_server
    }

    /// Whether anything but what may be opened at it changes.
    fn changes_more_than_its_filter(&self) -> bool {
        let Self {
            network: _,
            node: _,
            removed,
            peers_added,
            peers_removed,
            peers_changed,
            peers_rekeyed,
            allowed_ips: _,
            paths,
            routes_added,
            routes_removed,
            routes_refused,
            routes_changed,
            internet,
            names_added,
            names_removed,
            names_changed,
            carries,
            filter: _,
            settings,
            readdressed,
            more: _,
            sessions_break,
            keeps_server: _,
        } = self;
        let peers = [peers_added, peers_removed, peers_changed, peers_rekeyed];
        let names = [names_added, names_removed, names_changed];
        *removed
            || *sessions_break
            || peers.into_iter().chain(names).any(|list| !list.is_empty())
            || [routes_added, routes_removed, routes_refused].into_iter().any(|list| !list.is_empty())
            || !(paths.is_empty() && routes_changed.is_empty() && internet.is_empty())
            || !(carries.is_empty() && settings.is_empty() && readdressed.is_empty())
    }

    /// Whether nothing changes for it but what may be opened at it.
    pub fn is_filter_alone(&self) -> bool {
        self.filter && !self.changes_more_than_its_filter() && self.keeps_server
    }

    /// Whether it has another address than before, and not only one more.
    pub fn loses_an_address(&self) -> bool {
        self.readdressed.iter().any(|it| it.before.is_some())
    }
}

/// Whether what those may open at a node that it knows before and afterwards differs.
fn filter_changes((before, after): (&View, &View), delta: &ViewDelta, was: &Mesh, is: &Mesh) -> bool {
    let open = |view: &View, class: &ClassId| {
        if !view.interface.restricted {
            return Access::everything();
        }
        view.access.get(class).map(|access| (**access).clone()).unwrap_or_default()
    };
    let both = |name: &Name| Some((before.peers.get(name)?.class, after.peers.get(name)?.class));
    let others = delta.peers.keys().filter(|name| **name != after.node);
    let classes: BTreeSet<_> = others.filter_map(both).collect();
    let mut differ = classes.iter().map(|(had, has)| open(before, had) != open(after, has));
    let stays = |class: &ClassId| {
        let other =
            |mesh: &Mesh| mesh.members(class).is_some_and(|all| all.keys().any(|it| *it != after.node));
        other(was) && other(is)
    };
    // What of it is about classes that are there all the time.
    let guards = |class: &ClassId| {
        let is_there = |class: &ClassId| was.class(class).is_some() && is.class(class).is_some();
        let rows = |view: &View| -> BTreeMap<ClassId, Access> {
            let rows = view.guarded.get(class).into_iter().flat_map(|rows| rows.iter());
            rows.filter(|(from, _)| is_there(from)).map(|(from, access)| (*from, access.clone())).collect()
        };
        is_there(class) && rows(before) != rows(after)
    };
    before.interface.restricted != after.interface.restricted
        || differ.any(|differs| differs)
        || delta.access.keys().any(stays)
        || delta.guarded.keys().any(guards)
}

/// Where what a node sends to the internet goes, where that changes.
fn internet_changes(before: &View, after: &View, delta: &ViewDelta) -> Vec<InternetChange> {
    let leads = |view: &View, range: &IpNet| match view.routes.get(range).map(|route| &**route) {
        None | Some(Route { carried: true, .. }) => Internet::Own,
        Some(Route { via: Some(via), .. }) => Internet::Through(via.clone()),
        Some(Route { via: None, .. }) => Internet::Refused,
    };
    let families: BTreeSet<&IpNet> = delta.routes.keys().filter(|range| range.prefix_len() == 0).collect();
    let changes = families.into_iter().map(|range| InternetChange {
        range: *range,
        before: leads(before, range),
        after: leads(after, range),
    });
    changes.filter(|change| change.before != change.after).collect()
}

/// What a node begins or ceases to carry.
fn parts(node: &Name, carrying: &[CarryingChange]) -> Vec<PartChange> {
    let change = |CarryingChange { id, before, after, .. }: &CarryingChange| {
        let [before, after] = [before, after].map(|state| state.as_ref().and_then(|it| it.part_of(node)));
        (before != after).then(|| PartChange { id: id.clone(), before, after })
    };
    carrying.iter().filter_map(change).collect()
}

/// What of an interface changes other than its addresses and what it carries.
fn settings(before: &Interface, after: &Interface) -> Vec<SettingChange> {
    let seconds = |it: Seconds| Some(it.to_string());
    let port = |it: &Interface| {
        let fixed = if it.listen_port_fixed { "" } else { ", or the next that is free" };
        Some(format!("{}{fixed}", it.listen_port))
    };
    let servers = |it: &Interface| {
        let all: Vec<_> = it.resolvers.iter().map(ToString::to_string).collect();
        (!all.is_empty()).then(|| all.join(", "))
    };
    let fields = [
        ("listen-port", port(before), port(after)),
        ("mtu", before.mtu.map(|it| it.to_string()), after.mtu.map(|it| it.to_string())),
        ("keepalive", seconds(before.keepalive), seconds(after.keepalive)),
        ("check-in", seconds(before.check_in), seconds(after.check_in)),
        ("name-servers", servers(before), servers(after)),
    ];
    let differ = fields.into_iter().filter(|(_, before, after)| before != after);
    differ.map(|(name, before, after)| SettingChange { name: name.to_owned(), before, after }).collect()
}

/// What a node forwards to otherwise than before, of what it does before and afterwards.
fn forward_changes(before: &View, after: &View) -> Vec<SettingChange> {
    let text = |forward: &Forward| {
        // Parts of a range that rules name are no ranges of their own.
        let is_part = |range: &&IpNet| forward.ranges.keys().any(|it| it != *range && it.contains(*range));
        let whole = forward.ranges.keys().filter(|range| !is_part(range));
        let ranges: Vec<_> = whole.map(ToString::to_string).collect();
        let nat = if forward.nat { "with" } else { "without" };
        let by = forward.interface.as_ref().map(|name| format!(" by {name}")).unwrap_or_default();
        format!("{} {nat} NAT{by}", ranges.join(", "))
    };
    let both = before.forwards.iter().filter_map(|(name, had)| Some((name, had, after.forwards.get(name)?)));
    let texts = both.map(|(name, had, has)| (name, text(had), text(has)));
    let change = |(name, before, after)| SettingChange {
        name: format!("egress {name}"),
        before: Some(before),
        after: Some(after),
    };
    texts.filter(|(_, before, after)| before != after).map(change).collect()
}

/// Whom addresses of a network are reserved for.
fn reserved(network: &NetworkName, declared: &Snapshot) -> BTreeMap<IpAddr, ResourceId> {
    let of = |claim| match claim {
        (_, Claim::Reserved(address)) => Some(address),
        (_, Claim::Range(_) | Claim::Route(_) | Claim::Pool(_) | Claim::Meant(_) | Claim::Endpoint(_)) => {
            None
        }
    };
    let entries = declared.entries_in(network);
    let all = entries.flat_map(|(id, entry)| {
        entry.object.claims().into_iter().filter_map(of).map(move |address| (address, id.clone()))
    });
    all.collect()
}

fn ranges(interface: &Interface) -> impl Iterator<Item = IpNet> {
    interface.addresses.iter().map(IpNet::trunc)
}

fn addresses(interface: &Interface) -> BTreeSet<IpAddr> {
    interface.addresses.iter().map(IpNet::addr).collect()
}

/// The addresses by which agents reach a server, as far as they are known.
fn server_addresses(server: &ServerInfo) -> impl Iterator<Item = IpAddr> {
    let endpoints = server.agent_addresses.iter().filter_map(|address| address.parse::<Endpoint>().ok());
    let named = endpoints.filter_map(|endpoint| match endpoint.host {
        EndpointHost::Address(address) => Some(address),
        EndpointHost::Domain(_) => None,
    });
    named.chain(server.addresses.iter().copied())
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
