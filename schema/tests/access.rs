//! What holds for all small networks with access rules: what packets pass, who knows whom, what a change costs.
//!
//! The compiler is compared with [`worlds::reading`], the naive reading of the same declarations. `CASES` says
//! how often each law is tried (1,000 times by default).

mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use schema::access::{Access, ClassId, Protocol};
use schema::inventory::NodeId;
use schema::kinds::Kind;
use schema::scalars::{Name, WireGuardKey};
use schema::view::{Tunnel, View};
use schema::world::World;

use worlds::draws;
use worlds::following::{self, compiled, views};
use worlds::reading::{Packet, Reading};
use worlds::small::{histories, network};

fn views_of(world: &World) -> BTreeMap<Name, View> {
    views(compiled(&network(), world).as_ref())
}

/// The pairs of different members.
fn pairs(members: &BTreeSet<Name>) -> impl Iterator<Item = (&Name, &Name)> {
    members.iter().flat_map(|from| members.iter().map(move |to| (from, to))).filter(|(from, to)| from != to)
}

fn holds(access: &Access, packet: Packet) -> bool {
    match packet.protocol {
        Some(Protocol::Tcp) => access.tcp.contains(packet.port),
        Some(Protocol::Udp) => access.udp.contains(packet.port),
        Some(Protocol::Icmp) => access.icmp,
        None => access.others,
    }
}

/// What agents do of their Views: WireGuard and the packet filter of each host.
struct Hosts<'a> {
    views: &'a BTreeMap<Name, View>,
    tunnels: BTreeMap<&'a Name, BTreeMap<WireGuardKey, Tunnel>>,
    /// Who has which key.
    keys: BTreeMap<WireGuardKey, Name>,
}

impl<'a> Hosts<'a> {
    fn of(views: &'a BTreeMap<Name, View>, world: &World) -> Self {
        let tunnels = views.iter().map(|(name, view)| (name, view.tunnels())).collect();
        let keys = world.inventory.nodes().map(|(id, joined)| (joined.public_key, id.name.clone())).collect();
        Self { views, tunnels, keys }
    }

    /// Where WireGuard of a host sends what is for an address, and from whom alone it takes what has that
    /// source: the peer with the longest range around it.
    fn leads(&self, host: &Name, address: IpAddr) -> Option<&Name> {
        let tunnels = self.tunnels[host].iter();
        let ranges =
            tunnels.flat_map(|(key, tunnel)| tunnel.allowed_ips.iter().map(move |range| (range, key)));
        let around = ranges.filter(|(range, _)| range.contains(&address));
        let (_, key) = around.max_by_key(|(range, _)| range.prefix_len())?;
        self.keys.get(key)
    }

    /// Whether a packet arrives, from the source address on one host at the destination on another, directly
    /// or by one that forwards.
    fn carry(&self, from: &Name, source: IpAddr, to: &Name, destination: IpAddr) -> bool {
        let step = |one: &Name, other: &Name| {
            self.leads(one, destination) == Some(other) && self.leads(other, source) == Some(one)
        };
        let by = |hub: &Name| self.views[hub].interface.forward && step(from, hub) && step(hub, to);
        step(from, to) || self.leads(from, destination).is_some_and(by)
    }

    /// The packets that a host's filter lets open a connection, by the class of their source address.
    fn accepts(&self, host: &Name, source: IpAddr) -> impl Fn(Packet) -> bool {
        let view = &self.views[host];
        let sender = view.peers.values().find(|peer| peer.addresses.contains(&source));
        let access = sender.and_then(|peer| view.access.get(&peer.class));
        move |packet| !view.interface.restricted || access.is_some_and(|access| holds(access, packet))
    }
}

proptest! {
    #![proptest_config(draws(1_000))]

    #[test]
    fn a_mesh_that_follows_equals_one_that_is_compiled_afresh(history in histories(6)) {
        following::a_mesh_that_follows_equals_one_that_is_compiled_afresh(&history.moments())?;
    }

    #[test]
    fn applying_what_differs_between_two_views_to_the_first_gives_the_second(history in histories(4)) {
        following::applying_what_differs_between_two_views_to_the_first_gives_the_second(&history.moments())?;
    }

    #[test]
    fn a_step_leads_every_node_from_its_view_of_one_mesh_to_that_of_the_next(history in histories(4)) {
        following::a_step_leads_every_node_from_its_view_of_one_mesh_to_that_of_the_next(&history.moments())?;
    }

    #[test]
    fn a_packet_passes_exactly_where_a_rule_lets_it(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        let views = views_of(&world);
        let hosts = Hosts::of(&views, &world);
        let packets = reading.packets();
        for (from, to) in pairs(&reading.members()) {
            for source in reading.joined(from).unwrap().reachable() {
                let of_family = |address: &IpAddr| address.is_ipv4() == source.is_ipv4();
                let Some(destination) = reading.joined(to).unwrap().reachable().into_iter().find(of_family) else { continue };
                let there = hosts.carry(from, source, to, destination);
                prop_assert_eq!(there, reading.carries(from, to), "{} to {} by their tunnels", source, destination);
                prop_assert_eq!(there, hosts.carry(to, destination, from, source), "answers of {} find {}", to, from);
                let (accepts, opens) = (hosts.accepts(to, source), reading.opens(from, to));
                for packet in &packets {
                    let may = reading.carries(from, to) && opens(*packet);
                    prop_assert_eq!(there && accepts(*packet), may, "{} at {} to {} at {}: {:?}", from, source, to, destination, packet);
                }
            }
        }
    }

    #[test]
    fn a_node_knows_exactly_whom_a_rule_joins_it_with_and_who_carries(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        let views = views_of(&world);
        prop_assert_eq!(views.keys().cloned().collect::<BTreeSet<_>>(), reading.members());
        let hub = reading.hub();
        for (name, view) in &views {
            let all = reading.members();
            let whole = !reading.has_rules() && hub.is_some_and(|hub| hub != name);
            let known = all.iter().filter(|other| if whole { Some(*other) == hub } else { reading.knows(name, other) });
            prop_assert_eq!(view.peers.keys().collect::<Vec<_>>(), known.collect::<Vec<_>>(), "peers of {}", name);
            prop_assert_eq!(view.interface.carrier.as_ref(), hub.filter(|hub| *hub != name), "of {}", name);
            for (other, peer) in &view.peers {
                let joined = reading.joined(other).unwrap();
                prop_assert_eq!(peer.via.as_ref(), None, "{} in the View of {}", other, name);
                let direct = hub.is_none_or(|hub| hub == name || hub == other);
                let key = direct.then_some(joined.public_key);
                prop_assert_eq!(peer.public_key, key, "the key of {} in the View of {}", other, name);
                prop_assert!(peer.public_key.is_some() || peer.endpoint.is_none(), "{} in the View of {}", other, name);
                prop_assert_eq!(&peer.addresses, &joined.reachable());
            }
        }
    }

    #[test]
    fn who_is_known_knows(history in histories(3)) {
        let views = views_of(&history.last());
        for (name, view) in &views {
            for other in view.peers.keys() {
                prop_assert!(views[other].peers.contains_key(name), "{} knows {}", name, other);
            }
        }
    }

    #[test]
    fn every_member_is_in_one_class_with_all_that_are_on_the_same_sides(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        let mesh = compiled(&network(), &world).unwrap();
        let mut classes = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for (class, members) in mesh.classes() {
            prop_assert!(!members.is_empty() && ids.insert(class.id()), "{} is one class", class.id());
            for (name, peer) in members {
                prop_assert_eq!(classes.insert(name.clone(), class.id()), None, "{} is in one class", name);
                prop_assert_eq!((peer.class, mesh.class_of(name)), (class.id(), Some(class.id())));
            }
        }
        prop_assert_eq!(classes.keys().cloned().collect::<BTreeSet<_>>(), reading.members());
        for (one, other) in pairs(&reading.members()) {
            let same = reading.sides(one) == reading.sides(other);
            prop_assert_eq!(classes[one] == classes[other], same, "{} and {}", one, other);
        }
    }

    #[test]
    fn a_change_leaves_every_class_as_it_is_whose_members_it_is_not_about(history in histories(6)) {
        for pair in history.moments().windows(2) {
            let (before, after) = (&pair[0].world, &pair[1].world);
            let changed = following::changed(before, after);
            if changed.resources.iter().any(|id| matches!(id.kind, Kind::Network | Kind::Dns)) {
                continue;
            }
            let earlier = compiled(&network(), before).unwrap();
            let later = earlier.follow(&after.snapshot, &after.inventory, &changed).unwrap();
            let node = |id: &NodeId| id.name.clone();
            let declared = changed.resources.iter().filter(|id| id.kind == Kind::Node).map(|id| id.name.clone());
            let about: BTreeSet<Name> = changed.nodes.iter().map(node).chain(declared).collect();
            for (class, members) in later.classes() {
                let Some((_, had)) = earlier.classes().find(|(other, _)| *other == class) else { continue };
                let names: Vec<_> = members.keys().chain(had.keys()).collect();
                let moved = |name: &Name| about.contains(name) || earlier.class_of(name) != later.class_of(name);
                let same = members.ptr_eq(had);
                prop_assert!(same || names.iter().any(|name| moved(name)), "{:?} after {:?}", names, changed);
            }
        }
    }

    #[test]
    fn what_a_view_lets_classes_open_is_something_and_only_where_rules_hold(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        for (name, view) in &views_of(&world) {
            prop_assert_eq!(view.interface.restricted, reading.has_rules());
            prop_assert!(view.interface.restricted || view.access.is_empty(), "{} is not restricted", name);
            prop_assert!(view.access.values().all(|access| !access.is_nothing()), "at {}", name);
        }
    }

    #[test]
    fn in_a_network_without_rules_all_are_of_one_class_and_a_spoke_knows_its_hub_alone(history in histories(3)) {
        let world = history.without_rules().last();
        let reading = Reading::of(network(), &world);
        let views = views_of(&world);
        for (name, view) in &views {
            let hub = reading.hub();
            let spoke = hub.is_some_and(|hub| hub != name);
            let others = views.keys().filter(|other| *other != name && (!spoke || hub == Some(*other)));
            prop_assert_eq!(view.peers.keys().collect::<Vec<_>>(), others.collect::<Vec<_>>());
            prop_assert!(view.peers.values().all(|peer| peer.class == ClassId::default()));
            prop_assert!(view.access.is_empty() && !view.interface.restricted);
            let routes: BTreeSet<IpNet> = view.routes.keys().copied().collect();
            let led = spoke && hub.is_some_and(|hub| views.contains_key(hub));
            prop_assert_eq!(routes, if led { reading.declaration().ranges().collect() } else { BTreeSet::new() });
        }
    }

    #[test]
    fn a_name_resolves_exactly_for_those_who_may_know_whom_it_leads_to(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        let names = reading.names();
        for (at, view) in &views_of(&world) {
            let read = |name: &Name| Some((name.clone(), reading.resolves(at, name)?));
            let resolutions: BTreeMap<Name, _> = view.resolutions().into_iter().map(|(name, to)| (name.clone(), to)).collect();
            prop_assert_eq!(resolutions, names.iter().filter_map(read).collect::<BTreeMap<_, _>>(), "on {}", at);
        }
    }
}
