//! One node after the other: what its audience has in common, and what is about itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::paths::{MovedPaths, MovedTo, moved_paths};
use super::shared::{Difference, Names, OfAudiences, Resolved, Shared, first};
use super::{LISTED, NodeImpact, PartChange, PathChange, Readdressed, SettingChange};
use crate::access::ClassId;
use crate::compile::Mesh;
use crate::compile::audience::Audience;
use crate::compile::carrying::CarryingChange;
use crate::compile::reach::Moment;
use crate::kinds::Kind;
use crate::rules::Claim;
use crate::scalars::{Endpoint, EndpointHost, Name, NetworkName, Seconds};
use crate::snapshot::{ResourceId, Snapshot};
use crate::view::Interface;
use crate::world::ServerInfo;

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

impl<'a> Change<'a> {
    fn impact(&self, node: &Name, shared: &mut OfAudiences<'a>) -> Option<NodeImpact> {
        let from = self.was.audience(node);
        let is = self.is.filter(|is| is.has(node));
        let to = is.map(|is| is.audience(node));
        let shared = shared.entry((from.clone(), to.clone())).or_insert_with(|| match is.zip(to.as_ref()) {
            Some((is, to)) => Shared::of(node, (self.was, &from), (is, to), self.paths.as_ref()),
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
