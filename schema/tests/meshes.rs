//! What holds for all histories of a world: of addresses, of what nodes are sent, of who reaches whom.
#![expect(clippy::unwrap_used, reason = "a test")]

mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use schema::access::{Access, Protocol};
use schema::compile::Mesh;
use schema::compile::allocate::Exhausted;
use schema::compile::members::{Member, members};
use schema::compile::reach::{self, Direction};
use schema::compile::reconcile::reconcile;
use schema::decode::decode;
use schema::inventory::{Away, Endpoints, Inventory, Joined, NodeId};
use schema::kinds::{Acl, Dns, ExternalClient, Ingress, Kind, Network, Node};
use schema::report::Code;
use schema::rules;
use schema::scalars::{EndpointHost, Identity, Name, NetworkName};
use schema::snapshot::Snapshot;
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;
use schema::view::View;
use schema::world::World;

use worlds::following::{self, compiled, networks, views};
use worlds::reported::{reached, said};
use worlds::{Moment, cases, draws, edits, entrys, forbidden, histories, joined, small, worlds};

/// The networks without rules and gateways, in which every node may open everything at every other.
fn unrestricted(world: &World) -> impl Iterator<Item = (&NetworkName, &Arc<Network>)> {
    let plain = |name: &NetworkName| !has_gateways(&compiled(name, world));
    world.snapshot.networks().filter(move |(name, network)| network.acl == Acl::Allow && plain(name))
}

/// Whether packets pass between two nodes, judged by their Views alone: each step needs both ends to know
/// each other.
fn passes(views: &BTreeMap<Name, View>, from: &Name, to: &Name) -> bool {
    let address = |name: &Name| views[name].interface.addresses.iter().next().unwrap().addr();
    let sends = |one: &Name, other: &Name, packet: IpAddr| {
        let tunnels = views[one].tunnels();
        let mut to_it = tunnels.values().filter(|tunnel| tunnel.peer == *other);
        to_it.any(|tunnel| tunnel.allowed_ips.iter().any(|range| range.contains(&packet)))
    };
    let step = |one: &Name, other: &Name| sends(one, other, address(to)) && sends(other, one, address(from));
    let through = |hub: &Name| views[hub].interface.forward && step(from, hub) && step(hub, to);
    step(from, to) || views.keys().any(|hub| hub != from && hub != to && through(hub))
}

/// What nodes may open at others, by the Views of both: those that may open nothing are absent.
type Opens = BTreeMap<(Name, Name), Access>;

fn pairs(mesh: Option<&Mesh>) -> Opens {
    let views = views(mesh);
    let opens = |from: &Name, to: &Name| {
        let at = &views[to];
        if !at.interface.restricted {
            return Access::everything();
        }
        let class = at.peers.get(from).map(|peer| peer.class);
        class.and_then(|class| Some((**at.access.get(&class)?).clone())).unwrap_or_default()
    };
    let all = views.keys().flat_map(|from| views.keys().map(move |to| (from.clone(), to.clone())));
    all.filter(|(from, to)| from != to && passes(&views, from, to))
        .map(|(from, to)| ((from.clone(), to.clone()), opens(&from, &to)))
        .collect()
}

/// Asserts that what is reported of two moments is what their nodes may open: for each of some packets the
/// pairs between which it passes only before, and only afterwards.
fn reports(reported: &[reach::ReachChange], was: &Opens, is: &Opens) -> Result<(), TestCaseError> {
    let packet = |protocol, port| Access::of(protocol, Some([port..=port].into_iter().collect()));
    let mut others = Access::everything();
    others = others.without(&Access { others: false, ..others.clone() });
    let packets = [
        packet(Some(Protocol::Tcp), 5_432),
        packet(Some(Protocol::Tcp), 8_500),
        packet(Some(Protocol::Udp), 1),
        packet(Some(Protocol::Icmp), 0),
        others,
    ];
    let nothing = Access::default();
    for packet in &packets {
        let only = |here: &Opens, there: &Opens| {
            let passes = |opens: &Opens, pair| opens.get(pair).unwrap_or(&nothing).contains(packet);
            here.keys().filter(|pair| passes(here, *pair) && !passes(there, *pair)).count() as u64
        };
        let told = |direction| {
            let mine = reported.iter().filter(|it| it.direction == direction && !it.once_joined);
            mine.filter(|it| said(&it.what).contains(packet)).map(|it| it.pairs).sum::<u64>()
        };
        prop_assert_eq!(told(Direction::Gained), only(is, was), "gained: {:?} of {:?}", packet, reported);
        prop_assert_eq!(told(Direction::Lost), only(was, is), "lost: {:?} of {:?}", packet, reported);
    }
    Ok(())
}

/// The world with hosts of several networks, which were seen inside of ranges and outside: the nodes of one
/// place in each network are one host.
fn with_endpoints(mut world: World, picks: &[usize]) -> World {
    let inside: Vec<_> = world.snapshot.networks().flat_map(|(_, network)| network.ranges()).collect();
    let nodes: Vec<_> =
        world.inventory.nodes().map(|(id, joined)| (id.clone(), (**joined).clone())).collect();
    let mut places: BTreeMap<NetworkName, u8> = BTreeMap::new();
    for ((id, joined), pick) in nodes.into_iter().zip(picks.iter().cycle()) {
        let place = places.entry(id.network.clone()).or_default();
        *place += 1;
        let outside = "198.51.100.1".parse().ok();
        let seen = if *pick == 0 { outside } else { inside.get(*pick - 1).map(IpNet::network) };
        let endpoints = Endpoints { seen, ..Endpoints::default() };
        world.inventory.remove_node(&id, Timestamp::UNIX_EPOCH);
        world.inventory.put_node(id, Joined { identity: Identity([*place; 32]), endpoints, ..joined });
    }
    world
}

/// The pairs whose packets find the way, read off pair by pair: each step leads to an endpoint that no range
/// of the sender's host hides, and back.
fn outside_pairs(network: &NetworkName, world: &World) -> Opens {
    let mesh = compiled(network, world);
    let joined = |node: &Name| world.inventory.node(&NodeId::of(network, node)).unwrap();
    let endpoint = |node: &Name| {
        let declared = world.snapshot.named::<Node>(network, node).and_then(|node| node.endpoint.clone());
        match declared.map(|endpoint| endpoint.host) {
            Some(EndpointHost::Address(address)) => Some(address),
            Some(EndpointHost::Domain(_)) => None,
            None => joined(node).endpoints.seen,
        }
    };
    let sends = |from: &Name, to: &Name| {
        let mine = world
            .snapshot
            .networks()
            .filter(|(name, _)| world.inventory.name_of(name, &joined(from).identity).is_some());
        let mut ranges = mine.flat_map(|(_, network)| network.ranges());
        endpoint(to).is_none_or(|address| !ranges.any(|range| range.contains(&address)))
    };
    let step = |one: &Name, other: &Name| one == other || (sends(one, other) && sends(other, one));
    let hub = mesh.as_ref().and_then(|mesh| mesh.hub().cloned());
    let way = |from: &Name, to: &Name| match &hub {
        Some(hub) => step(from, hub) && step(hub, to),
        None => step(from, to),
    };
    pairs(mesh.as_ref()).into_iter().filter(|((from, to), _)| way(from, to)).collect()
}

/// Whether anybody but a hub carries traffic of others: what is reported of that, `worlds/reading.rs` says apart.
fn has_gateways(mesh: &Option<Mesh>) -> bool {
    mesh.as_ref().is_some_and(|mesh| !mesh.ways().is_empty())
}

/// Asserts that what is reported between each moment and the next is what Views gain and lose.
fn views_have_what_is_reported(moments: &[Moment]) -> Result<(), TestCaseError> {
    for network in networks(moments) {
        for pair in moments.windows(2) {
            let [before, after] = [&pair[0].world, &pair[1].world];
            let [earlier, later] = [before, after].map(|world| compiled(&network, world));
            if [&earlier, &later].into_iter().any(has_gateways) {
                continue;
            }
            let hidden = reach::Hidden::default();
            let [was, is] = [(before, &earlier), (after, &later)].map(|(world, mesh)| reach::Moment {
                declared: &world.snapshot,
                inventory: &world.inventory,
                mesh: mesh.as_ref(),
                hidden: &hidden,
                now: Timestamp::UNIX_EPOCH,
            });
            let (mut reported, _) = reach::between(&network, was, is);
            reported.retain(|change| !change.by_key);
            reports(&reported, &pairs(earlier.as_ref()), &pairs(later.as_ref()))?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(draws(200))]

    #[test]
    fn reachability_that_is_reported_is_that_of_the_views_where_rules_meet(history in small::histories(6)) {
        views_have_what_is_reported(&history.moments())?;
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_mesh_that_follows_equals_one_that_is_compiled_afresh(moments in histories()) {
        following::a_mesh_that_follows_equals_one_that_is_compiled_afresh(&moments)?;
    }

    #[test]
    fn applying_what_differs_between_two_views_to_the_first_gives_the_second(moments in histories()) {
        following::applying_what_differs_between_two_views_to_the_first_gives_the_second(&moments)?;
    }

    #[test]
    fn a_step_leads_every_node_from_its_view_of_one_mesh_to_that_of_the_next(moments in histories()) {
        following::a_step_leads_every_node_from_its_view_of_one_mesh_to_that_of_the_next(&moments)?;
    }

    #[test]
    fn every_name_resolves_alike_on_every_node(moment in worlds()) {
        for (name, network) in unrestricted(&moment.world) {
            let views = views(compiled(name, &moment.world).as_ref());
            for view in views.values() {
                prop_assert!(network.name_service || view.resolutions().is_empty());
                prop_assert_eq!(Some(view.resolutions()), views.values().next().map(View::resolutions));
                let entry = |node: &Name| moment.world.snapshot.named::<Dns>(name, node).is_some();
                for node in views.keys().filter(|node| network.name_service && !entry(node)) {
                    prop_assert!(view.resolutions().contains_key(node), "{} resolves on {}", node, view.node);
                }
            }
        }
    }

    #[test]
    fn every_node_has_all_others_as_peers_or_only_the_hub(moment in worlds()) {
        for (name, network) in unrestricted(&moment.world) {
            let views = views(compiled(name, &moment.world).as_ref());
            for (node, view) in &views {
                let peers: Vec<_> = view.peers.keys().collect();
                match network.hub.as_ref().map(|hub| &hub.name) {
                    Some(hub) if hub != node => {
                        prop_assert_eq!(peers, views.get_key_value(hub).map(|(hub, _)| hub).into_iter().collect::<Vec<_>>());
                        for tunnel in view.tunnels().values() {
                            let addresses = view.peers[&tunnel.peer].addresses.iter().copied().map(IpNet::from);
                            prop_assert_eq!(&tunnel.allowed_ips, &network.ranges().chain(addresses).collect());
                        }
                    }
                    _ => prop_assert_eq!(peers, views.keys().filter(|other| *other != node).collect::<Vec<_>>()),
                }
            }
        }
    }

    #[test]
    fn reachability_that_is_reported_is_the_reachability_of_the_views(moments in histories()) {
        views_have_what_is_reported(&moments)?;
    }

    #[test]
    fn a_hidden_endpoint_costs_exactly_the_pairs_that_have_no_way(
        moments in histories(),
        picks in proptest::collection::vec(0usize..5, 30),
    ) {
        let worlds: Vec<World> = moments.into_iter().map(|moment| with_endpoints(moment.world, &picks)).collect();
        let names: BTreeSet<NetworkName> =
            worlds.iter().flat_map(|world| world.snapshot.networks().map(|(name, _)| name.clone())).collect();
        for network in &names {
            for pair in worlds.windows(2) {
                if [&pair[0], &pair[1]].iter().any(|world| has_gateways(&compiled(network, world))) {
                    continue;
                }
                let [was, is] = [&pair[0], &pair[1]].map(|world| outside_pairs(network, world));
                let reported = reached(network, &pair[0], &pair[1]);
                reports(&reported, &was, &is)?;
            }
        }
    }

    #[test]
    fn no_address_is_had_twice_or_by_whom_it_is_not_for(moments in histories()) {
        let mut before = &Inventory::default();
        let mut quarantined: BTreeSet<(NodeId, IpAddr)> = BTreeSet::new();
        for Moment { world: World { snapshot, inventory, .. }, .. } in &moments {
            let mut had = BTreeSet::new();
            for (id, joined) in inventory.nodes() {
                prop_assert_eq!(joined.addresses.len(), snapshot.network(&id.network).unwrap().ranges().count());
                for address in &joined.addresses {
                    prop_assert!(had.insert((id.network.clone(), *address)), "{address} is had once");
                    prop_assert!(!forbidden(id, *address, snapshot), "{address} is not for {}", id.name);
                    let kept = before.node(id).is_some_and(|joined| joined.addresses.contains(address));
                    prop_assert!(kept || !entrys(id, *address, snapshot), "{address} is an entry's, and given to {}", id.name);
                    prop_assert_eq!(inventory.holder(&id.network, *address), Some(&id.name));
                }
                let own = snapshot.named::<Node>(&id.network, &id.name);
                for (_, reserved) in own.into_iter().flat_map(|node| node.reserved()) {
                    prop_assert!(joined.addresses.contains(&reserved), "{} has what is reserved for it", id.name);
                }
            }
            for (id, status) in inventory.clients() {
                let client = snapshot.named::<ExternalClient>(&id.network, &id.name).unwrap();
                let ingress = snapshot.named::<Ingress>(&id.network, &client.via.name).unwrap();
                let ranges = snapshot.network(&id.network).unwrap().ranges();
                let let_in = client.enabled && !status.expired;
                prop_assert_eq!(status.addresses.len(), if let_in { ranges.count() } else { 0 });
                for address in &status.addresses {
                    prop_assert!(had.insert((id.network.clone(), *address)), "{address} is had once");
                    prop_assert!(!forbidden(id, *address, snapshot), "{address} is not for {}", id.name);
                    prop_assert_eq!(inventory.holder(&id.network, *address), Some(&id.name));
                    let given = before.client(id).is_none_or(|before| !before.addresses.contains(address));
                    let range = snapshot.network(&id.network).unwrap().range_of(*address).unwrap();
                    let reserved = client.reserved().any(|(_, reserved)| reserved == *address);
                    let left = quarantined.contains(&(id.clone(), *address));
                    let pool = ingress.pool_in(range);
                    let in_pool = pool.is_none_or(|pool| pool.contains(address));
                    prop_assert!(!given || reserved || left || in_pool, "{address} is not in the pool of {}", id.name);
                    let mut others = snapshot.all_in::<Ingress>(&id.network).filter(|(other, _)| other.name != client.via.name);
                    let others = others.any(|(_, other)| other.pool.iter().any(|pool| pool.net().contains(address)));
                    prop_assert!(reserved || !others, "{address} of {} is in the pool of another ingress", id.name);
                }
                let missing = client.reserved().find(|(_, reserved)| let_in && !status.addresses.contains(reserved));
                prop_assert_eq!(missing, None, "{} has what is reserved for it", id.name);
            }
            let declared = snapshot.networks().flat_map(|(name, _)| snapshot.all_in::<ExternalClient>(name));
            prop_assert_eq!(declared.count(), inventory.clients().count());
            for ((network, address), _) in inventory.quarantined() {
                prop_assert!(!had.contains(&(network.clone(), *address)), "{address} is in quarantine");
            }
            quarantined = inventory.quarantined().map(|((network, address), it)| (NodeId::of(network, &it.node), *address)).collect();
            before = inventory;
        }
    }

    #[test]
    fn a_reconciled_world_stays_as_it_is(moments in histories()) {
        for Moment { world, now } in &moments {
            prop_assert_eq!(&reconcile(&world.inventory, &world.snapshot, &[], *now).unwrap(), &world.inventory);
        }
    }

    #[test]
    fn reconciling_twice_is_reconciling_once_and_keeps_every_address_that_fits((moment, next) in edits()) {
        let Ok(once) = reconcile(&moment.world.inventory, &next, &[], moment.now) else { return Ok(()) };
        prop_assert_eq!(&reconcile(&once, &next, &[], moment.now).unwrap(), &once);
        for (id, joined) in moment.world.inventory.nodes() {
            let Some(later) = once.node(id) else {
                let undeclared = joined.claimed && next.named::<Node>(&id.network, &id.name).is_none();
                prop_assert!(next.network(&id.network).is_none() || undeclared, "{} had no reason to go", id.name);
                continue;
            };
            for address in &joined.addresses {
                let own = next.named::<Node>(&id.network, &id.name);
                let mut reserved = own.into_iter().flat_map(|node| node.reserved()).map(|(_, reserved)| reserved);
                let replaced = reserved.any(|reserved| reserved != *address && reserved.is_ipv4() == address.is_ipv4());
                let keeps = replaced || forbidden(id, *address, &next) || later.addresses.contains(address);
                prop_assert!(keeps, "{} had no reason to lose {address}", id.name);
            }
        }
    }
}

// What is in quarantine, and for whom: shown by examples, with a range of six addresses.

const SIX: &str = "network \"n\" ipv4=\"10.40.0.0/29\" address-quarantine=\"24h\"";

fn declared(text: &str) -> Snapshot {
    let source = Source { name: "test".into(), text: text.into(), language: Language::Kdl };
    let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    assert!(report.is_empty(), "{report:#?}");
    let (declared, mut report) = decode(documents);
    report.append(rules::check(&declared.snapshot, &declared.source_map));
    assert!(report.is_empty(), "{report:#?}");
    declared.snapshot
}

fn id(name: &str) -> NodeId {
    NodeId { network: "n".parse().unwrap(), name: name.parse().unwrap() }
}

fn at(minutes: i64) -> Timestamp {
    let start: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
    start.checked_add(SignedDuration::from_mins(minutes)).unwrap()
}

/// Lets a node join; returns its addresses, or nothing if there is no room.
fn join(inventory: &mut Inventory, declared: &Snapshot, name: &str, minutes: i64) -> Option<Vec<String>> {
    let salt = name.bytes().fold(0, |salt, byte| salt * 256 + u64::from(byte));
    let joined = joined(&id(name), false, salt, declared, inventory, at(minutes))?;
    let addresses = joined.addresses.iter().map(ToString::to_string).collect();
    inventory.put_node(id(name), joined);
    Some(addresses)
}

fn full(declared: &Snapshot) -> Inventory {
    let mut inventory = Inventory::default();
    for (place, name) in ["a", "b", "c", "d", "e", "f"].iter().enumerate() {
        assert_eq!(join(&mut inventory, declared, name, 0), Some(vec![format!("10.40.0.{}", place + 1)]));
    }
    inventory
}

#[test]
fn addresses_are_given_from_the_lowest_on_until_none_is_left() {
    let declared = declared(SIX);
    let mut inventory = full(&declared);
    assert_eq!(join(&mut inventory, &declared, "g", 0), None);
}

#[test]
fn an_address_is_in_quarantine_before_another_node_gets_it() {
    let declared = declared(SIX);
    let mut inventory = Inventory::default();
    join(&mut inventory, &declared, "a", 0);
    inventory.remove_node(&id("a"), at(0));
    assert_eq!(join(&mut inventory, &declared, "b", 24 * 60 - 1), Some(vec!["10.40.0.2".into()]));
    assert_eq!(join(&mut inventory, &declared, "c", 24 * 60), Some(vec!["10.40.0.1".into()]));
}

#[test]
fn a_node_that_comes_back_gets_its_address_back_at_once() {
    let declared = declared(SIX);
    let mut inventory = full(&declared);
    inventory.remove_node(&id("c"), at(1));
    assert_eq!(join(&mut inventory, &declared, "c", 1), Some(vec!["10.40.0.3".into()]));
    assert_eq!(inventory.quarantined().count(), 0);
}

#[test]
fn where_no_other_is_free_the_one_longest_in_quarantine_goes_first_but_never_under_ten_minutes() {
    let declared = declared(SIX);
    let mut inventory = full(&declared);
    inventory.remove_node(&id("d"), at(1));
    inventory.remove_node(&id("b"), at(2));
    assert_eq!(join(&mut inventory, &declared, "g", 10), None);
    assert_eq!(join(&mut inventory, &declared, "g", 11), Some(vec!["10.40.0.4".into()]));
    assert_eq!(join(&mut inventory, &declared, "h", 11), None);
    assert_eq!(join(&mut inventory, &declared, "h", 12), Some(vec!["10.40.0.2".into()]));
}

#[test]
fn a_reservation_takes_an_address_from_whoever_has_it() {
    let before = declared(SIX);
    let mut inventory = Inventory::default();
    join(&mut inventory, &before, "a", 0);
    join(&mut inventory, &before, "b", 0);
    let after = declared(&format!("{SIX} {{ node \"b\" ipv4=\"10.40.0.1\"; dns \"x\" a=\"10.40.0.3\" }}"));
    let reconciled = reconcile(&inventory, &after, &[], at(1)).unwrap();
    let address =
        |name: &str| reconciled.node(&id(name)).unwrap().addresses.iter().next().unwrap().to_string();
    assert_eq!((address("a"), address("b")), ("10.40.0.4".into(), "10.40.0.1".into()));
}

#[test]
fn nodes_that_do_not_fit_into_a_smaller_range_are_an_error() {
    let mut inventory = full(&declared(SIX));
    inventory.remove_node(&id("f"), at(0));
    let after = declared("network \"n\" ipv4=\"10.50.0.0/30\"");
    let exhausted = Exhausted { network: "n".parse().unwrap(), range: "10.50.0.0/30".parse().unwrap() };
    assert_eq!(reconcile(&inventory, &after, &[], at(1)), Err(exhausted));
}

#[test]
fn an_entry_for_the_address_of_a_node_leaves_it_there_and_others_pass_it_by() {
    let mut inventory = Inventory::default();
    join(&mut inventory, &declared(SIX), "a", 0);
    let after = declared(&format!("{SIX} {{ dns \"alias\" a=\"10.40.0.1\"; dns \"x\" a=\"10.40.0.2\" }}"));
    let mut reconciled = reconcile(&inventory, &after, &[], at(1)).unwrap();
    assert_eq!(reconciled, inventory);
    assert_eq!(join(&mut reconciled, &after, "b", 1), Some(vec!["10.40.0.3".into()]));
}

#[test]
fn a_limit_counts_who_has_joined_and_who_is_awaited() {
    let mut inventory = Inventory::default();
    for name in ["a", "b"] {
        join(&mut inventory, &declared(SIX), name, 0);
    }
    let reconcile = |limit: u32| {
        let after = declared(&format!("{SIX} {{ node-limit {limit}; node \"b\"; node \"c\" }}"));
        schema::plan::check_and_reconcile(&after, &inventory, &Default::default(), &worlds::server(), at(1))
            .is_ok()
    };
    assert!(reconcile(3) && !reconcile(2), "a and b have joined, c is awaited");
}

/// A network with a pool of six addresses, two of its fourteen given to nodes, and these clients of an
/// ingress: in both blocks.
fn with_clients(clients: &str) -> Snapshot {
    declared(&format!(
        "network \"n\" ipv4=\"10.40.0.0/28\" {{ node \"gw\"; ingress \"in\" via=\"gw\" pool=\"10.40.0.8/29\"; {clients} }}"
    ))
}

/// Every external client with its addresses.
fn clients(inventory: &Inventory) -> Vec<(String, Vec<String>)> {
    let one = |(id, status): (&NodeId, &Arc<schema::inventory::ClientStatus>)| {
        (id.name.to_string(), status.addresses.iter().map(ToString::to_string).collect())
    };
    inventory.clients().map(one).collect()
}

fn had(clients: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
    let addresses = |it: &str| it.split_whitespace().map(str::to_owned).collect();
    clients.iter().map(|(name, address)| ((*name).to_owned(), addresses(address))).collect()
}

#[test]
fn clients_get_addresses_of_their_pool_in_the_order_of_names_and_nodes_get_none_of_it() {
    let client = |name: &str, more: &str| format!("external-client {name:?} via=\"in\" {more};");
    let all =
        [client("d", ""), client("b", "ipv4=\"10.40.0.10\""), client("a", ""), client("c", "")].concat();
    let declared = with_clients(&all);
    let mut inventory = reconcile(&Inventory::default(), &declared, &[], at(0)).unwrap();
    let given = [("a", "10.40.0.9"), ("b", "10.40.0.10"), ("c", "10.40.0.11"), ("d", "10.40.0.12")];
    assert_eq!(clients(&inventory), had(&given));
    for (place, name) in ["e", "f", "g", "h", "i", "j", "k"].iter().enumerate() {
        assert_eq!(join(&mut inventory, &declared, name, 0), Some(vec![format!("10.40.0.{}", place + 1)]));
    }
    assert_eq!(join(&mut inventory, &declared, "l", 0), None, "what is left is in the pool");
    let six = with_clients(&(all.clone() + &client("x", "") + &client("y", "")));
    let six = reconcile(&inventory, &six, &[], at(0)).unwrap();
    assert_eq!(clients(&six)[4..], had(&[("x", "10.40.0.13"), ("y", "10.40.0.14")]));
}

#[test]
fn a_client_that_is_not_let_in_gives_up_its_addresses_and_gets_them_back() {
    let two = |of_a: &str| {
        with_clients(&format!("external-client \"a\" via=\"in\" {of_a}; external-client \"b\" via=\"in\""))
    };
    let start = reconcile(&Inventory::default(), &two("expires=\"2h\""), &[], at(0)).unwrap();
    assert_eq!(clients(&start), had(&[("a", "10.40.0.9"), ("b", "10.40.0.10")]));
    let both = |declared: &Snapshot, minutes| {
        let now = reconcile(&start, declared, &[], at(minutes)).unwrap();
        let expired = now.client(&id("a")).unwrap().expired;
        (now.client(&id("a")).unwrap().addresses.len(), expired, now)
    };
    assert_eq!(both(&two("expires=\"2h\""), 119).0, 1);
    let gone = [
        both(&two("enabled=#false"), 1),
        both(&two("expires=\"2h\""), 120),
        both(&two("expires=\"1h\""), 60),
    ];
    for (place, (addresses, expired, now)) in gone.into_iter().enumerate() {
        assert_eq!((addresses, expired), (0, place > 0));
        assert_eq!(now.holder(&id("a").network, "10.40.0.9".parse().unwrap()), None);
        let more = |text: &str| {
            with_clients(&format!(
                "{text}; external-client \"b\" via=\"in\"; external-client \"c\" via=\"in\""
            ))
        };
        let later = reconcile(&now, &more("external-client \"a\" via=\"in\""), &[], at(200)).unwrap();
        assert_eq!(clients(&later), had(&[("a", "10.40.0.9"), ("b", "10.40.0.10"), ("c", "10.40.0.11")]));
        assert_eq!(later.client(&id("a")).unwrap().created, at(0), "it is the same one");
    }
    let without = with_clients("external-client \"b\" via=\"in\"");
    let deleted = reconcile(&start, &without, &[], at(1)).unwrap();
    assert_eq!(clients(&deleted), had(&[("b", "10.40.0.10")]));
    assert_eq!(deleted.quarantined().count(), 1);
    let again = reconcile(&deleted, &two(""), &[], at(2)).unwrap();
    assert_eq!((clients(&again), again.client(&id("a")).unwrap().created), (clients(&start), at(2)));
    let no_network = reconcile(&deleted, &Snapshot::default(), &[], at(3)).unwrap();
    assert_eq!(no_network, Inventory::default());
}

#[test]
fn a_pool_moves_nobody_but_clients_of_another_ingress() {
    let of = |ingress: &str, clients: &str| {
        declared(&format!(
            "network \"n\" ipv4=\"10.40.0.0/28\" {{ node \"gw\"; {ingress}; ingress \"other\" via=\"gw\"; {clients} }}"
        ))
    };
    let client = |via: &str| format!("external-client \"phone\" via={via:?}");
    let (open, pool) = ("ingress \"in\" via=\"gw\"", "ingress \"in\" via=\"gw\" pool=\"10.40.0.0/29\"");
    let mut inventory = reconcile(&Inventory::default(), &of(open, &client("in")), &[], at(0)).unwrap();
    join(&mut inventory, &of(open, &client("in")), "gw", 0);
    let holders = |inventory: &Inventory| {
        let network = id("gw").network;
        let used = inventory.addresses_from(&network, "10.40.0.0".parse().unwrap());
        used.map(|(address, name)| format!("{name} {address}")).collect::<Vec<_>>()
    };
    assert_eq!(holders(&inventory), ["phone 10.40.0.1", "gw 10.40.0.2"]);
    let pooled = reconcile(&inventory, &of(pool, &client("in")), &[], at(1)).unwrap();
    assert_eq!(pooled, inventory, "the node keeps what it has, and the client is in its own pool");
    let moved = reconcile(&pooled, &of(pool, &client("other")), &[], at(2)).unwrap();
    assert_eq!(
        holders(&moved),
        ["gw 10.40.0.2", "phone 10.40.0.8"],
        "it may not stay in the pool of the first"
    );
    let outside = reconcile(&moved, &of(pool, &client("in")), &[], at(3)).unwrap();
    assert_eq!(outside, moved, "an address that no other ingress has for its clients stays");
}

#[test]
fn tests_see_every_client_that_is_enabled_with_the_addresses_that_it_has_or_gets_before_any_node() {
    let all = "external-client \"a\" via=\"in\" expires=\"1h\" { tags \"phone\"; }; external-client \"b\" via=\"open\";
        external-client \"c\" via=\"in\" enabled=#false; ingress \"open\" via=\"gw\"";
    let declared = with_clients(all);
    let network = id("gw").network;
    let seen = |inventory: &Inventory| {
        let one = |(name, member): (Name, Member)| {
            let addresses: Vec<_> = member.addresses.iter().map(ToString::to_string).collect();
            let tags: Vec<_> = member.tags.iter().map(ToString::to_string).collect();
            format!("{name} {} {}", addresses.join(" "), tags.join(" ")).trim_end().to_owned()
        };
        members(&network, &declared, inventory).into_iter().map(one).collect::<Vec<_>>()
    };
    let before = ["a 10.40.0.9 phone", "b 10.40.0.1", "gw 10.40.0.2"];
    assert_eq!(seen(&Inventory::default()), before);
    let applied = reconcile(&Inventory::default(), &declared, &[], at(0)).unwrap();
    assert_eq!(seen(&applied), before);
    let expired = reconcile(&applied, &declared, &[], at(60)).unwrap();
    assert!(expired.client(&id("a")).unwrap().expired);
    assert_eq!(seen(&expired), before, "a verdict does not change with the clock");
}

#[test]
fn what_is_known_of_gateways_goes_with_what_it_is_about() {
    let of = |ranges: &str| {
        declared(&format!(
            "{SIX} {{ node \"gw\"; egress \"out\" via=\"gw\" {{ ranges {ranges}; }}; egress \"lan\" via=\"gw\" ranges=\"192.168.1.0/24\" }}"
        ))
    };
    let mut inventory = Inventory::default();
    join(&mut inventory, &of("\"0.0.0.0/0\""), "gw", 0);
    let away = |egress: &[&str]| Away {
        everything: true,
        egress: egress.iter().map(|name| name.parse().unwrap()).collect(),
    };
    inventory.set_away(id("gw"), away(&["out", "lan", "gone"]));
    inventory.set_away(id("left"), away(&[]));
    inventory.set_carried(id("out"), true);
    inventory.set_carried(id("gone"), true);
    let all = |ranges: &str| {
        let reconciled = reconcile(&inventory, &of(ranges), &[], at(1)).unwrap();
        let away: Vec<_> = reconciled.away().map(|(id, away)| (id.clone(), away.clone())).collect();
        (away, reconciled.carried().cloned().collect::<Vec<_>>())
    };
    let known = vec![(id("gw"), away(&["lan", "out"]))];
    assert_eq!(all("\"0.0.0.0/0\""), (known.clone(), vec![id("out")]));
    assert_eq!(all("\"192.168.2.0/24\""), (known, Vec::new()), "it is no way to the internet any more");
    assert_eq!(reconcile(&inventory, &Snapshot::default(), &[], at(1)).unwrap().away().count(), 0);
}

#[test]
fn a_limit_counts_no_clients_and_a_client_is_no_node() {
    let world = |more: &str| {
        with_clients(&format!(
            "node-limit 1; external-client \"a\" via=\"in\"; external-client \"b\" via=\"in\" {more}"
        ))
    };
    let codes = |declared: &Snapshot, inventory: &Inventory| {
        let done = schema::plan::check_and_reconcile(
            declared,
            inventory,
            &Default::default(),
            &worlds::server(),
            at(1),
        );
        done.map_or_else(|report| report.problems().map(|it| it.code).collect(), |_| Vec::new())
    };
    let mut inventory = Inventory::default();
    join(&mut inventory, &world(""), "gw", 0);
    assert_eq!(codes(&world(""), &inventory), []);
    let key = inventory.node(&id("gw")).unwrap().public_key;
    assert_eq!(codes(&world(&format!("public-key=\"{key}\"")), &inventory), [Code::JoinedAsNode]);
    let named = with_clients("external-client \"laptop\" via=\"in\"");
    join(&mut inventory, &world(""), "laptop", 0);
    assert_eq!(codes(&named, &inventory), [Code::JoinedAsNode]);
    let joined = (**inventory.node(&id("laptop")).unwrap()).clone();
    inventory.put_node(id("laptop"), Joined { claimed: true, ..joined });
    assert_eq!(codes(&named, &inventory), [], "the node goes with its declaration");
}

#[test]
fn clients_that_do_not_fit_are_an_error_that_names_their_pool() {
    let declared = with_clients("external-client \"a\" via=\"in\"");
    let server: Vec<IpAddr> = (9..15).map(|last| IpAddr::from([10, 40, 0, last])).collect();
    let exhausted = Exhausted { network: "n".parse().unwrap(), range: "10.40.0.8/29".parse().unwrap() };
    assert_eq!(reconcile(&Inventory::default(), &declared, &server, at(1)), Err(exhausted));
    let info = schema::world::ServerInfo { addresses: server, ..worlds::server() };
    let report = schema::plan::check_and_reconcile(
        &declared,
        &Inventory::default(),
        &Default::default(),
        &info,
        at(1),
    );
    let report = report.map(|_| ()).unwrap_err();
    let problem = report.problems().next().unwrap();
    assert_eq!((problem.code, problem.id.as_deref()), (Code::RangeExhausted, Some("n/ingress/in")));
}

/// A world of these declarations, with a node for each host of a network: its name, the number of the host,
/// and where the server saw it.
fn seen(text: &str, nodes: &[(&str, &str, u8, &str)]) -> World {
    let mut world = World { snapshot: declared(text), ..World::default() };
    for (place, (network, name, host, seen)) in nodes.iter().enumerate() {
        let id = NodeId::of(&network.parse().unwrap(), &name.parse().unwrap());
        let joined = joined(&id, false, place as u64, &world.snapshot, &world.inventory, at(0)).unwrap();
        let endpoints = Endpoints { seen: seen.parse().ok(), ..Endpoints::default() };
        world.inventory.put_node(id, Joined { identity: Identity([*host; 32]), endpoints, ..joined });
    }
    world
}

/// What a change of the declarations loses in a network: the nodes that are named, and the pairs.
fn lost(network: &str, nodes: &[(&str, &str, u8, &str)], before: &str, after: &str) -> Vec<(String, u64)> {
    let (before, after, network) = (seen(before, nodes), seen(after, nodes), network.parse().unwrap());
    let changes = reached(&network, &before, &after);
    assert!(changes.iter().all(|change| change.direction == Direction::Lost), "{changes:?}");
    let back = reached(&network, &after, &before);
    let gained: u64 = back.iter().map(|change| change.pairs).sum();
    assert_eq!(
        gained,
        changes.iter().map(|change| change.pairs).sum::<u64>(),
        "the way back gains what is lost"
    );
    changes.into_iter().map(|change| (change.from, change.pairs)).collect()
}

#[test]
fn an_endpoint_that_a_range_hides_counts_as_lost() {
    let corp = |range: &str| format!("network \"corp\" ipv4={range:?}");
    let (apart, around) = (corp("10.40.0.0/24"), corp("192.0.2.0/27"));
    let three =
        [("corp", "a", 1, "192.0.2.12"), ("corp", "b", 2, "198.51.100.7"), ("corp", "c", 3, "203.0.113.9")];
    assert_eq!(lost("corp", &three, &apart, &around), [("a".into(), 4)], "with everybody, both ways");
    let all = [("corp", "a", 1, "192.0.2.12"), ("corp", "b", 2, "192.0.2.13")];
    assert_eq!(lost("corp", &all, &apart, &around), [("*".into(), 2)]);
    assert_eq!(lost("corp", &three, &apart, &corp("172.16.0.0/24")), []);
}

#[test]
fn the_range_of_one_network_hides_endpoints_of_another_from_the_hosts_that_are_in_both() {
    let corp = "network \"corp\" ipv4=\"10.40.0.0/24\"\n";
    let after = format!("{corp}network \"lan\" ipv4=\"192.0.2.0/27\"");
    let before = format!("{corp}network \"lan\" ipv4=\"10.50.0.0/24\"");
    let nodes = [
        ("corp", "a", 1, "198.51.100.1"),
        ("corp", "b", 2, "192.0.2.12"),
        ("corp", "c", 3, "203.0.113.9"),
        ("corp", "d", 4, "192.0.2.14"),
        ("lan", "a", 1, "198.51.100.1"),
    ];
    assert_eq!(
        lost("corp", &nodes, &before, &after),
        [("a".into(), 4)],
        "a reaches neither b nor d, and c all"
    );
    let hub =
        |text: &str| text.replace("ipv4=\"10.40.0.0/24\"", "ipv4=\"10.40.0.0/24\" hub=\"c\" { node \"c\"; }");
    assert_eq!(lost("corp", &nodes, &hub(&before), &hub(&after)), [], "all of them reach the hub");
    let at_b =
        |text: &str| text.replace("ipv4=\"10.40.0.0/24\"", "ipv4=\"10.40.0.0/24\" hub=\"b\" { node \"b\"; }");
    assert_eq!(
        lost("corp", &nodes, &at_b(&before), &at_b(&after)),
        [("a".into(), 6)],
        "a is cut off from the hub"
    );
}
