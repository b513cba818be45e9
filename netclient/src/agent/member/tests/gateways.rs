//! A node that forwards to what is outside of its network: what its host is switched to, what it says that it does
//! not carry, and that everything is put back.

use std::collections::BTreeSet;

use schema::view::{Forward, Route};

use super::*;
use crate::forwarding::{ALL, Key, Switch, Switches};
use crate::host::Host as _;

/// A View of a gateway, to 192.168.10.0/24 and to everything.
fn gateway() -> View {
    let mut view = view(1..3);
    view.interface.forward = true;
    for (egress, range) in [("office", "192.168.10.0/24"), ("out", "0.0.0.0/0")] {
        let ranges = [(range.parse().expect("good"), Default::default())].into();
        let forward = Forward { ranges, interface: None, nat: true };
        view.forwards.insert(egress.parse().expect("good"), Arc::new(forward));
    }
    view
}

/// A member with this View, which was not applied yet; a process that starts anew, if one was there before.
fn member(folder: &Path, host: &FakeHost, view: &View, settings: Settings) -> Member {
    let agent = Agent { settings, ..agent(folder, Arc::new(RealDisk), host.clone()) };
    let start = membership(view.clone());
    agent.directory.keep_identity(&start.server.signing_key, &sign::from_seed(&[8; 32])).expect("kept");
    let journal = agent.directory.save(&start).expect("kept");
    Member::new(agent, start, journal).expect("it has an identity")
}

/// What is on, of single interfaces.
fn on(switches: &Switches) -> Vec<String> {
    let single = switches.iter().filter(|(switch, _)| switch.interface != ALL);
    let on = single.filter(|(switch, value)| switch.key != Key::Advertisements && **value != 0);
    on.map(|(switch, _)| switch.to_string()).collect()
}

fn lan(host: &FakeHost, there: bool) {
    host.route("192.168.10.0/24".parse().expect("good"), there.then_some("eth1"));
}

fn egress(member: &Member) -> Vec<(Option<&str>, &str)> {
    let found = member.problems().iter().filter(|problem| &*problem.code == NodeProblem::EGRESS);
    found.map(|it| (it.egress.as_ref().map(Name::as_str), &*it.message)).collect()
}

#[tokio::test]
async fn what_a_gateway_switches_on_is_put_back_whichever_process_does_it() {
    let (folder, host) = (private_folder(), FakeHost::default());
    lan(&host, true);
    let before = host.switches();
    let mut first = member(folder.path(), &host, &gateway(), Settings::default());
    first.reconcile().await.expect("it is applied");
    let by = ["ipv4/conf/eth0/forwarding", "ipv4/conf/eth1/forwarding"];
    assert_eq!(on(&host.switches()), by);
    assert_eq!(
        host.switches()[&Switch::of(ALL, Key::Liberal)],
        1,
        "connections come back from another gateway"
    );
    let filter = host.filter().expect("there is one");
    let both = BTreeSet::from(["eth0", "eth1"].map(ToOwned::to_owned));
    assert_eq!(filter.opened, [both, BTreeSet::new()]);
    assert!(filter.exits.iter().eq(["eth0"]), "{:?}", filter.exits);
    assert_eq!(egress(&first), []);
    // The process is killed; the next one is a gateway of one of them alone, and then of none.
    drop(first);
    let mut less = gateway();
    less.forwards.remove(&"out".parse::<Name>().expect("good"));
    let mut second = member(folder.path(), &host, &less, Settings::default());
    second.reconcile().await.expect("it is applied");
    assert_eq!(on(&host.switches()), by[1..]);
    drop(second);
    let mut third = member(folder.path(), &host, &less, Settings::default());
    third.take_down().await.expect("it is removed");
    assert_eq!(host.switches(), before);
    assert!(!folder.path().join("forwarding.json").exists(), "nothing is left to put back");
}

#[tokio::test]
async fn a_gateway_says_what_it_does_not_carry_and_withdraws_it_once_it_does() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut member = member(folder.path(), &host, &gateway(), Settings::default());
    member.reconcile().await.expect("it is applied");
    member.record_sent_facts(member.facts());
    let [(Some("office"), message)] = egress(&member)[..] else { panic!("{:?}", egress(&member)) };
    assert!(message.contains("only its default route leads to 192.168.10.0/24"), "{message}");
    assert_eq!(on(&host.switches()), ["ipv4/conf/eth0/forwarding"]);
    lan(&host, true);
    member.reconcile().await.expect("it is applied");
    assert_eq!((egress(&member), member.has_news()), (vec![], true));
    host.set_carrier("eth1", false);
    member.reconcile().await.expect("it is applied");
    assert!(egress(&member)[0].1.contains("eth1, which leads to 192.168.10.0/24, is down"));
    host.set_carrier("eth1", true);
    host.protect_switches(true);
    host.set_switch(&Switch::of("eth1", Key::Ipv4), 0).expect_err("they are read-only");
    member.reconcile().await.expect("the tunnel works all the same");
    let codes: Vec<_> = member.problems().iter().map(|problem| &*problem.code).collect();
    assert_eq!(codes, [NodeProblem::FORWARDING]);
}

#[tokio::test]
async fn a_gateway_that_cannot_take_connections_back_says_so_and_carries() {
    let (folder, host) = (private_folder(), FakeHost::default());
    lan(&host, true);
    host.set_switch(&Switch::of(ALL, Key::Ipv4), 1).expect("the host forwards by itself");
    host.protect_switches(true);
    let mut member = member(folder.path(), &host, &gateway(), Settings::default());
    member.reconcile().await.expect("it is applied");
    let codes: Vec<_> = member.problems().iter().map(|problem| &*problem.code).collect();
    assert_eq!(codes, [NodeProblem::STRICT_CONNECTIONS]);
}

#[tokio::test]
async fn without_its_packet_filter_a_gateway_carries_nothing_and_opens_nothing() {
    for unwanted in [false, true] {
        let (folder, host) = (private_folder(), FakeHost::default());
        lan(&host, true);
        let before = host.switches();
        host.lack_nftables(!unwanted);
        let settings = Settings { connection_tracking: !unwanted, ..Settings::default() };
        let mut member = member(folder.path(), &host, &gateway(), settings);
        member.reconcile().await.expect("it is applied");
        let names: Vec<_> = egress(&member).into_iter().filter_map(|(name, _)| name).collect();
        assert_eq!(names, ["office", "out"]);
        let remedy = if unwanted { "connection_tracking = false" } else { "install nftables" };
        assert!(egress(&member).iter().all(|(_, message)| message.contains(remedy)), "{:?}", egress(&member));
        assert_eq!(host.switches(), before);
    }
}

#[tokio::test]
async fn a_range_is_rerouted_when_it_comes_goes_or_is_refused_and_not_when_another_peer_carries_it() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let with = |via: Option<Option<u32>>| {
        let mut view = view(1..3);
        if let Some(via) = via {
            let route = Route { via: via.map(name), class: Default::default(), carried: false };
            view.routes.insert("192.168.10.0/24".parse().expect("good"), Arc::new(route));
        }
        view
    };
    let mut member = member(folder.path(), &host, &with(None), Settings::default());
    member.reconcile().await.expect("it is applied");
    for (via, whole, way) in [
        (Some(Some(1)), true, "Some(Into(\"nm-corp\"))"),
        (Some(Some(2)), false, "Some(Into(\"nm-corp\"))"),
        (Some(None), true, "Some(Refused)"),
        (None, true, "None"),
    ] {
        let (before, after) = (member.membership.view.clone(), with(via));
        assert_eq!(TunnelChanges::between(&before, &after).is_none(), whole, "{via:?}");
        let from = member.membership.position.revision.0;
        member.take(&delta(&before, &after, from)).expect("it fits");
        member.apply().await.expect("it is applied");
        let routes = host.routing().routes;
        let found = routes.iter().find(|(place, _)| place.range.to_string() == "192.168.10.0/24");
        assert_eq!(format!("{:?}", found.map(|(_, way)| way)), way, "{via:?}");
        let peers = host.device("nm-corp").expect("there is one").state().peers;
        let carriers = peers.values().filter(|peer| peer.settings.allowed_ips.len() > 1).count();
        assert_eq!(carriers, usize::from(matches!(via, Some(Some(_)))), "{via:?}");
    }
}
