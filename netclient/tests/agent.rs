//! The whole agent, from a join to its end, against the real server: no socket, no device, no waiting.

#[allow(dead_code, reason = "each suite uses its part")]
#[expect(clippy::allow_attributes, reason = "what is unused differs from suite to suite")]
mod support;

use std::time::Duration;

use netclient::agent::{AgentError, Down, JoinOptions, JoinOutcome};
use netclient::daemon::{DaemonRequest, DaemonResponse};
use netclient::device::{Device, DeviceStep, Kind, Refusal};
use netclient::host::Host;
use netclient::host::fake::Lookup;
use netclient::outside::{MAIN, Mark, Routing};
use schema::api::Control;
use support::{INTERFACE, Mesh, Node, eventually, is_full_mesh, pass, until_done};

const CORP: &str = r#"network "corp" { ipv4 "10.0.0.0/24"; access-key "k" uses="unlimited"; }"#;
const CHANGED: &str = r#"network "corp" {
    ipv4 "10.0.0.0/24"; keepalive "5s"; mtu 1300
    access-key "k" uses="unlimited"
    dns "api" { node "a"; }
    node "a"
}"#;
/// What a change that is pushed takes at most: half of a second is spread over all agents.
const PUSHED: Duration = Duration::from_secs(2);
/// Within this time what others took away is back.
const REPAIRED: Duration = Duration::from_secs(2);
/// The status with which the server ends a stream.
const PARTING: Duration = Duration::from_secs(3);

#[tokio::test(start_paused = true)]
async fn who_joins_is_a_peer_of_everybody_within_moments() {
    let mesh = Mesh::new(CORP).await;
    let [a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    let link = a.host.link(INTERFACE).expect("there is a link");
    assert!(link.up && link.mtu == 1420 && link.addresses.len() == 1, "{link:?}");
    assert_eq!(a.host.names(INTERFACE).len(), 2, "its own name, and that of the other");
    // What follows is one peer: one step, no look at the device, and some bytes on the disk.
    eventually("a is sent changes at once", || a.written() > 0).await;
    pass(Duration::from_secs(1)).await;
    a.device().take_applied();
    let written = a.written();
    let observed = a.device().observations();
    let c = Node::joined(&mesh, "c").await;
    let took = eventually("all are peers", || is_full_mesh(&[&a, &b, &c])).await;
    assert!(took < PUSHED, "{took:?}");
    let steps = a.device().take_applied();
    assert!(
        matches!(&*steps, [DeviceStep::PutPeer(key, _)] if Some(*key) == c.state().public_key),
        "{steps:?}"
    );
    assert!(
        a.device().observations() - observed <= 1,
        "a look of every half minute may have come in between"
    );
    assert!((1..500).contains(&(a.written() - written)), "{}", a.written() - written);
}

#[tokio::test(start_paused = true)]
async fn a_join_whose_answer_is_lost_on_one_transport_is_signed_once_more_for_the_other() {
    let mesh = Mesh::new(CORP).await;
    let node = Node::new(&mesh, "a");
    node.lose_next_answer();
    node.join(&mesh).await.expect("the server knows it by its identity");
    assert!(mesh.has("a"));
}

#[tokio::test(start_paused = true)]
async fn what_is_declared_is_applied_everywhere() {
    let mesh = Mesh::new(CORP).await;
    let [a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    mesh.declare(CHANGED).await;
    eventually("the keepalive, the MTU and the name are there", || {
        [&a, &b].iter().all(|node| {
            let peers = node.state().peers;
            let names = node.host.names(INTERFACE);
            peers.values().all(|peer| peer.settings.keepalive == 5)
                && node.host.link(INTERFACE).is_some_and(|link| link.mtu == 1300)
                && names.iter().any(|line| line.ends_with("\tapi.corp"))
        })
    })
    .await;
    mesh.declare(CORP).await;
    eventually("the name is gone", || a.host.names(INTERFACE).iter().all(|line| !line.contains("api"))).await;
    assert!(is_full_mesh(&[&a, &b]));
}

#[tokio::test(start_paused = true)]
async fn losing_the_server_changes_nothing_and_its_return_brings_what_came_meanwhile() {
    let mesh = Mesh::new(CORP).await;
    let [mut a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    eventually("a has been sent something", || a.written() > 0).await;
    let before = a.state();
    a.connect(false);
    pass(PARTING).await;
    let c = Node::joined(&mesh, "c").await;
    pass(Duration::from_secs(60)).await;
    assert_eq!(a.control().await, Control::None);
    assert_eq!(a.state(), before, "the tunnel stays as it is");
    // A process that starts without a server brings up what the last one had.
    a.stop().await;
    a.device().end();
    a.start().await;
    eventually("the tunnel is up from what is on the disk", || {
        a.state().peers.keys().eq(before.peers.keys())
    })
    .await;
    assert!(b.peers() == 2);
    a.connect(true);
    eventually("all are peers", || is_full_mesh(&[&a, &b, &c])).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(a.control().await, Control::Tls);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_fails_is_brought_to_what_it_should_be() {
    let mesh = Mesh::new(CORP).await;
    let [a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    // It refuses what comes next, twice: the change alone, and everything.
    for _ in 0..2 {
        a.device().refuse_next(Refusal::KeyMissing);
    }
    let c = Node::joined(&mesh, "c").await;
    eventually("all are peers", || is_full_mesh(&[&a, &b, &c])).await;
    // It ends, and another one cannot be had for a while.
    a.host.refuse_devices(Some(Refusal::TunMissing));
    a.device().end();
    pass(Duration::from_secs(60)).await;
    assert_eq!(a.host.device(INTERFACE).map(|_| ()), None);
    a.host.refuse_devices(None);
    eventually("a new device has everything", || is_full_mesh(&[&a, &b, &c])).await;
}

#[tokio::test(start_paused = true)]
async fn a_device_keeps_its_kind_while_it_exists_and_a_new_one_is_chosen_anew() {
    let mesh = Mesh::new(CORP).await;
    let mut a = Node::new(&mesh, "a");
    a.host.unload_wireguard(true);
    a.join(&mesh).await.expect("it joins");
    a.start().await;
    assert_eq!(a.device().kind(), Kind::Userspace);
    // The kernel's WireGuard appears, and goes, and settings come and go.
    for (unloaded, wanted, problem) in [
        (false, None, None),
        (false, Some(Kind::Kernel), Some("device-kind")),
        (true, Some(Kind::Kernel), Some("device-kind")),
        (true, Some(Kind::Userspace), None),
        (false, None, None),
    ] {
        a.stop().await;
        a.host.unload_wireguard(unloaded);
        a.host.want_kind(wanted);
        a.start().await;
        pass(Duration::from_secs(1)).await;
        eventually("the server hears of it", || mesh.problems("a") == Vec::from_iter(problem)).await;
        assert_eq!(a.device().kind(), Kind::Userspace);
        assert_eq!(a.problems().await, Vec::from_iter(problem));
    }
    // What comes after it is chosen anew, as after a boot.
    for (unloaded, kind) in [(false, Kind::Kernel), (true, Kind::Userspace)] {
        a.host.unload_wireguard(unloaded);
        a.device().end();
        a.host.report_gone(INTERFACE);
        eventually("there is another one", || a.host.device(INTERFACE).is_some()).await;
        assert_eq!(a.device().kind(), kind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_taken_when_the_link_comes_up_gives_way_to_the_next() {
    let mesh = Mesh::new(CORP).await;
    let [a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    a.device().take_port(51_821, true);
    a.host.set_down(INTERFACE);
    eventually("it is up again", || a.host.link(INTERFACE).is_some_and(|link| link.up)).await;
    assert_eq!(a.state().listen_port, 51_822);
    let known = || {
        let state = mesh.service.state();
        let mut nodes = state.world.inventory.nodes();
        nodes.find(|(id, _)| id.name.as_str() == "a").map(|(_, joined)| joined.listen_port)
    };
    eventually("the server knows", || known() == Some(51_822)).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_full_keeps_nobody_from_following_and_is_made_up_for() {
    let mesh = Mesh::new(CORP).await;
    let [mut a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    a.fill(true);
    let c = Node::joined(&mesh, "c").await;
    eventually("all are peers", || is_full_mesh(&[&a, &b, &c])).await;
    a.fill(false);
    let written = a.written();
    eventually("what was missing is written", || a.written() > written).await;
    // The disk alone knows it now.
    a.stop().await;
    a.connect(false);
    a.device().end();
    a.start().await;
    eventually("it was kept", || is_full_mesh(&[&a, &b, &c])).await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_gone_everywhere_and_leaves_nothing() {
    let mesh = Mesh::new(CORP).await;
    let [a, mut b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    let answer = b.ask(DaemonRequest::Leave { network: "corp".parse().expect("good"), force: false }).await;
    assert!(matches!(answer, DaemonResponse::Done(true)), "{answer:?}");
    eventually("a is alone", || a.peers() == 0).await;
    assert!(!mesh.has("b"));
    assert!(b.host.device(INTERFACE).is_none() && b.host.names(INTERFACE).is_empty());
    b.stop().await;
    assert_eq!(b.files(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn who_is_removed_takes_everything_down_and_may_join_again() {
    let mesh = Mesh::new(CORP).await;
    let [a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    let identity = || b.files().into_iter().find(|file| file.starts_with("identity-"));
    let before =
        identity().map(|file| std::fs::read(b.agent.directory.path().join(file)).expect("it can be read"));
    mesh.remove("b").await;
    let took = eventually("both are alone", || a.peers() == 0 && b.host.device(INTERFACE).is_none()).await;
    assert!(took < PUSHED, "{took:?}");
    eventually("its names are gone", || b.host.names(INTERFACE).is_empty()).await;
    eventually("its state is gone", || !b.files().iter().any(|file| file.starts_with("network-"))).await;
    // A host that is barred is barred by its identity, so that is not what a removal takes away.
    let after =
        identity().map(|file| std::fs::read(b.agent.directory.path().join(file)).expect("it can be read"));
    assert!(before.is_some() && after == before);
    assert!(matches!(b.join(&mesh).await, Ok(JoinOutcome::New(_))));
    eventually("they are peers again", || is_full_mesh(&[&a, &b])).await;
}

#[tokio::test(start_paused = true)]
async fn who_misses_a_removal_learns_of_it_later() {
    let mesh = Mesh::new(CORP).await;
    let [a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    b.connect(false);
    pass(PARTING).await;
    mesh.remove("b").await;
    pass(Duration::from_secs(60)).await;
    assert_eq!(b.peers(), 1, "without the server nothing is removed");
    b.connect(true);
    eventually("it is removed", || b.host.device(INTERFACE).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_join_whose_tunnel_does_not_come_up_leaves_nothing() {
    let mesh = Mesh::new(CORP).await;
    let a = Node::new(&mesh, "a");
    a.host.refuse_devices(Some(Refusal::TunMissing));
    let refused = a.join(&mesh).await;
    assert!(matches!(refused, Err(AgentError::NotUp(_))), "{refused:?}");
    assert!(!mesh.has("a"));
    assert_eq!(a.files(), [""; 0]);
    a.host.refuse_devices(None);
    // A disk that is full is found before the server is asked.
    a.fill(true);
    assert!(matches!(a.join(&mesh).await, Err(AgentError::Directory(_))));
    a.fill(false);
    assert!(!mesh.has("a"));
    assert_eq!(a.files(), [""; 0]);
    assert!(matches!(a.join(&mesh).await, Ok(JoinOutcome::New(_))));
    assert!(matches!(a.join(&mesh).await, Ok(JoinOutcome::Already(_))), "a second join changes nothing");
}

#[tokio::test(start_paused = true)]
async fn ranges_are_routed_past_what_is_marked_and_members_are_known() {
    let mesh = Mesh::new(CORP).await;
    let [mut a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    assert_eq!(a.state().mark, Mark::default().bits(), "what carries the tunnel stays outside of every mesh");
    let routing = a.host.routing();
    let range = "10.0.0.0/24".parse().expect("a range");
    assert!(
        routing.routes.iter().all(|(place, way)| {
            place.table != MAIN && place.range == range && way.interface() == Some(INTERFACE)
        }),
        "{routing:?}"
    );
    assert_eq!((routing.routes.len(), routing.rules.len()), (1, 3));
    let link = a.host.link(INTERFACE).expect("there is a link");
    assert!(
        link.addresses.iter().all(|address| address.prefix_len() == 32),
        "the kernel makes no route of it: {link:?}"
    );
    let members = |node: &Node| node.host.filter().map(|outside| outside.members.len()).unwrap_or_default();
    assert_eq!(members(&a), 1);

    // One more member is one element, and no look at what stands.
    pass(Duration::from_secs(1)).await;
    let observed = a.device().observations();
    let c = Node::joined(&mesh, "c").await;
    eventually("all are peers", || is_full_mesh(&[&a, &b, &c])).await;
    assert_eq!(members(&a), 2);
    assert!(
        a.device().observations() - observed <= 1,
        "a look of every half minute may have come in between"
    );

    // Others take it away, and it is back.
    a.host.flush();
    let took = eventually("it is mended", || a.host.routing() == routing && members(&a) == 2).await;
    assert!(took < REPAIRED, "{took:?}");
    // The process of the device ends, and another one is there.
    a.device().end();
    a.host.report_gone(INTERFACE);
    let took = eventually("there is another device", || is_full_mesh(&[&a, &b, &c])).await;
    assert!(took < REPAIRED, "{took:?}");

    let left = a.ask(DaemonRequest::Leave { network: "corp".parse().expect("a name"), force: false }).await;
    assert!(matches!(left, DaemonResponse::Done(_)), "{left:?}");
    assert_eq!((a.host.filter(), a.host.routing()), (None, Routing::default()), "nothing is left");
    a.stop().await;
}

const DUAL: &str =
    r#"network "corp" { ipv4 "10.0.0.0/24"; ipv6 "fd00::/64"; access-key "k" uses="unlimited"; }"#;

#[tokio::test(start_paused = true)]
async fn what_a_host_cannot_do_is_reported_and_fails_nothing_else() {
    let mesh = Mesh::new(DUAL).await;
    let a = Node::joined(&mesh, "a").await;
    let mut b = Node::new(&mesh, "b");
    b.host.turn_off_ipv6(true);
    b.host.protect_names(true);
    b.host.connect("docker0", "10.0.0.128/25".parse().expect("a range"));
    b.join(&mesh).await.expect("half of a network is better than none");
    b.start().await;
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    eventually("the server knows", || mesh.problems("b") == ["names", "no-ipv6", "range-shadowed"]).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(b.problems().await, ["names", "no-ipv6", "range-shadowed"]);
    // What it could not set is given to nobody.
    let address = |node: &Node| node.host.filter().map(|outside| outside.members).unwrap_or_default();
    eventually("a knows b by IPv4 alone", || address(&a).iter().all(|address| address.is_ipv4())).await;
    assert!(
        a.host.names(INTERFACE).iter().all(|line| !line.ends_with("\tb.corp") || line.starts_with("10."))
    );

    b.host.turn_off_ipv6(false);
    b.host.protect_names(false);
    eventually("all is well but the bridge", || mesh.problems("b") == ["range-shadowed"]).await;
    eventually("a knows both addresses of b", || address(&a).len() == 2).await;
    assert_eq!(b.host.names(INTERFACE).len(), 4);

    b.host.protect_names(true);
    let left = b.ask(DaemonRequest::Leave { network: "corp".parse().expect("a name"), force: false }).await;
    assert!(matches!(left, DaemonResponse::Done(_)), "a file that cannot be written keeps nobody: {left:?}");
    b.stop().await;
    assert_eq!(b.files(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_route_of_another_program_is_reported_for_as_long_as_it_comes_first() {
    let mesh = Mesh::new(DUAL).await;
    let a = Node::joined(&mesh, "a").await;
    let b = Node::joined(&mesh, "b").await;
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    assert_eq!(mesh.problems("b"), [""; 0]);
    b.host.route_elsewhere(Some("vpn"));
    eventually("the server knows", || mesh.problems("b") == ["range-routed-elsewhere"; 2]).await;
    b.host.route_elsewhere(None);
    eventually("all is well", || mesh.problems("b").is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_connected_to_the_range_itself_does_not_join() {
    let mesh = Mesh::new(DUAL).await;
    let b = Node::new(&mesh, "b");
    b.host.connect("br-y", "10.0.0.0/24".parse().expect("a range"));
    let refused = b.join(&mesh).await.expect_err("it would reach nobody").to_string();
    assert!(refused.contains("br-y") && refused.contains("10.0.0.0/24"), "{refused}");
    assert!(!mesh.has("b") && b.host.device(INTERFACE).is_none());
    // A wider network is no obstacle, since the mesh's range is longer.
    let c = Node::new(&mesh, "c");
    c.host.connect("eth0", "10.0.0.0/8".parse().expect("a range"));
    c.join(&mesh).await.expect("it joins");
}

const NAMED: &str = r#"network "corp" {
    ipv4 "10.0.0.0/24"; access-key "k" uses="unlimited"
    node "b" endpoint="gw.example.net:51821"
}"#;
const GATEWAY: &str = "gw.example.net:51821";

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_resolve_delays_nothing_and_leads_where_it_led() {
    let mesh = Mesh::new(CORP).await;
    let [mut a, b] = [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await];
    eventually("a and b are peers", || is_full_mesh(&[&a, &b])).await;
    let key = b.state().public_key.expect("b has a key");
    let at = |node: &Node| node.state().peers.get(&key).and_then(|peer| peer.settings.endpoint);
    let [first, second] = ["192.0.2.1:51821", "192.0.2.2:51821"].map(|at| at.parse().expect("an address"));

    // The resolver hangs, and what else there is to do is done as fast as ever.
    a.host.resolve_to(GATEWAY, Lookup::Hangs);
    mesh.declare(NAMED).await;
    let c = Node::joined(&mesh, "c").await;
    let took = eventually("all are peers", || is_full_mesh(&[&a, &b, &c])).await;
    assert!(took < PUSHED, "{took:?}");
    a.host.flush();
    let took = eventually("it is mended", || !a.host.routing().rules.is_empty()).await;
    assert!(took < REPAIRED, "{took:?}");

    // What it answers at last is a change of its own.
    pass(Duration::from_secs(1)).await;
    a.device().take_applied();
    a.host.resolve_to(GATEWAY, Lookup::To(first));
    let took = eventually("b is reached there", || at(&a) == Some(first)).await;
    assert!(took < PUSHED, "{took:?}");
    let steps = a.device().take_applied();
    assert!(matches!(&*steps, [DeviceStep::PutPeer(put, _)] if *put == key), "{steps:?}");
    for lookup in [Lookup::Hangs, Lookup::Fails] {
        a.host.resolve_to(GATEWAY, lookup);
        pass(Duration::from_secs(35)).await;
        assert_eq!(at(&a), Some(first), "{lookup:?}");
    }

    // It is known after a restart of the host, unless the file is damaged, which costs nothing else.
    a.host.resolve_to(GATEWAY, Lookup::Hangs);
    a.connect(false);
    let names = a.agent.directory.path().join("network-corp.names");
    for (damage, known) in [(false, Some(first)), (true, None)] {
        a.stop().await;
        a.device().end();
        if damage {
            std::fs::write(&names, "{").expect("it is there");
        }
        a.start().await;
        eventually("all are peers", || is_full_mesh(&[&a, &b, &c])).await;
        assert_eq!(at(&a), known);
    }
    a.host.resolve_to(GATEWAY, Lookup::To(second));
    eventually("b is reached there", || at(&a) == Some(second)).await;
    a.connect(true);
    let left = a.ask(DaemonRequest::Leave { network: "corp".parse().expect("a name"), force: false }).await;
    assert!(matches!(left, DaemonResponse::Done(_)), "{left:?}");
    a.stop().await;
    assert_eq!(a.files(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_in_under_another_name_does_not_join_again() {
    let mesh = Mesh::new(CORP).await;
    let mut a = Node::new(&mesh, "a");
    a.join(&mesh).await.expect("it joins");
    a.name = "web-1".into();
    let refused = a.join(&mesh).await.expect_err("it has a name").to_string();
    assert!(refused.contains("already in corp as a;") && refused.contains("web-1"), "{refused}");
    assert!(refused.contains("netclient leave -n corp"), "{refused}");
    assert!(mesh.has("a") && !mesh.has("web-1"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_from_the_start_is_reported_once_and_its_answer_too() {
    let mesh = Mesh::new(CORP).await;
    let mut a = Node::new(&mesh, "a");
    a.join(&mesh).await.expect("it joins");
    a.connect(false);
    let log = support::log();
    a.start().await;
    let count = |what: &str| log().matches(what).count();
    let took = eventually("it is reported", || count("the tunnel is as it was last") > 0).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    pass(Duration::from_secs(60)).await;
    assert_eq!(count("the tunnel is as it was last"), 1, "{}", log());
    a.connect(true);
    eventually("it answers", || count("the server answers") > 0).await;
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_started_before_the_network_asks_when_the_host_is_connected() {
    let mesh = Mesh::new(CORP).await;
    let mut a = Node::new(&mesh, "a");
    a.join(&mesh).await.expect("it joins");
    a.connect(false);
    let log = support::log();
    a.start().await;
    eventually("it is reported", || log().contains("the tunnel is as it was last")).await;
    // The pauses are half a minute by then.
    pass(Duration::from_secs(90)).await;
    a.connect(true);
    a.host.report_connected("eth0");
    let took = eventually("it answers", || log().contains("the server answers")).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_network_whose_state_is_damaged_is_reported_and_can_be_left_by_force() {
    let mesh = Mesh::new(CORP).await;
    let a = Node::new(&mesh, "a");
    let [name, interface] = ["a", "wgx"];
    let options = JoinOptions {
        name: Some(name.parse().expect("good")),
        interface: Some(interface.into()),
        ..JoinOptions::default()
    };
    until_done(a.agent.join(&mesh.token(), &options)).await.expect("it joins");
    let file = a.agent.directory.path().join("network-corp.json");
    std::fs::write(&file, "{").expect("it is there");
    // What a device process has there.
    std::fs::write(a.agent.directory.device_socket(interface), "").expect("written");
    let status = a.agent.status(false, |_| Default::default()).await.expect("it answers");
    assert_eq!(status.networks.len(), 0);
    let error = &status.damaged[0].error;
    assert!(error.contains("network-corp.json is damaged") && error.contains("leave --force"), "{error}");
    let network = "corp".parse().expect("good");
    let refused = a.agent.leave(&network, false).await.expect_err("the server would not know").to_string();
    assert!(refused.contains("damaged"), "{refused}");
    assert!(a.host.device(interface).is_some(), "the tunnel stays");
    let log = support::log();
    a.agent.leave(&network, true).await.expect("what can be done is done");
    assert!(log().contains("an admin has to remove the node"), "{}", log());
    assert!(!log().contains("leave --force"), "that is what runs: {}", log());
    assert!(a.host.device(interface).is_none() && a.host.names(interface).is_empty());
    assert_eq!((a.host.filter(), a.host.routing()), (None, Routing::default()));
    let left = |file: &String| file.starts_with("network-") || file.starts_with("device-");
    assert!(!a.files().iter().any(left), "{:?}", a.files());
}

/// A host that has joined with an interface of this name, and whose state is damaged since.
async fn damaged(interface: &str) -> (Mesh, Node) {
    let mesh = Mesh::new(CORP).await;
    let a = Node::new(&mesh, "a");
    let options = JoinOptions {
        name: Some("a".parse().expect("good")),
        interface: Some(interface.into()),
        ..JoinOptions::default()
    };
    until_done(a.agent.join(&mesh.token(), &options)).await.expect("it joins");
    std::fs::write(a.agent.directory.path().join("network-corp.json"), "{").expect("written");
    (mesh, a)
}

#[tokio::test(start_paused = true)]
async fn of_a_network_that_cannot_be_read_only_what_is_certainly_ours_is_removed() {
    let network = "corp".parse().expect("good");
    let none = std::collections::BTreeSet::new();
    // Its routes lead to its interface, whatever that is called, and another one has the usual name.
    let (_mesh, a) = damaged("wgx").await;
    a.host.create(INTERFACE, "".as_ref()).expect("another program makes it");
    let left = a.agent.leave(&network, true).await.expect("what can be done is done");
    assert_eq!(left, [INTERFACE.to_owned()].into());
    assert!(a.host.device("wgx").is_none() && a.host.device(INTERFACE).is_some());
    assert_eq!((a.host.filter(), a.host.routing()), (None, Routing::default()));
    assert!(a.host.names("wgx").is_empty());
    // The kernel's device of the usual name is its own by its routes.
    let (_mesh, a) = damaged(INTERFACE).await;
    assert_eq!(a.agent.leave(&network, true).await.expect("done"), none);
    assert!(a.host.device(INTERFACE).is_none());
    // Without them nothing shows it; a device process shows it all the same.
    for process in [false, true] {
        let (_mesh, a) = damaged(INTERFACE).await;
        a.host.flush();
        if process {
            std::fs::write(a.agent.directory.device_socket(INTERFACE), "").expect("written");
        }
        let left = a.agent.leave(&network, true).await.expect("what can be done is done");
        assert_eq!((a.host.device(INTERFACE).is_none(), left.is_empty()), (process, process));
        assert!(!a.files().iter().any(|file| file.starts_with("network-")), "{:?}", a.files());
    }
    // What has ended is nobody's.
    let (_mesh, a) = damaged(INTERFACE).await;
    a.device().end();
    assert_eq!(a.agent.leave(&network, true).await.expect("done"), none);
    assert!(a.host.names(INTERFACE).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_of_two_networks_is_not_taken_for_that_of_one() {
    let network = "corp".parse().expect("good");
    let (_mesh, a) = damaged("wgx").await;
    let path = a.agent.directory.path();
    std::fs::copy(path.join("network-corp.json"), path.join("network-lab.json")).expect("copied");
    let left = a.agent.leave(&network, true).await.expect("what can be done is done");
    assert_eq!(left, ["wgx".to_owned()].into());
    assert!(a.host.device("wgx").is_some(), "it may be the other's");
    let left = a.agent.leave(&"lab".parse().expect("good"), true).await.expect("it is the last");
    assert!(left.is_empty() && a.host.device("wgx").is_none(), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_network_whose_state_others_may_write_can_be_left_by_force() {
    use std::os::unix::fs::PermissionsExt;
    let mesh = Mesh::new(CORP).await;
    let network = "corp".parse().expect("good");
    let a = Node::new(&mesh, "a");
    a.join(&mesh).await.expect("it joins");
    let file = a.agent.directory.path().join("network-corp.json");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("changed");
    a.agent.leave(&network, false).await.expect_err("it may be somebody else's");
    assert!(a.host.device(INTERFACE).is_some(), "the tunnel stays");
    assert!(a.agent.leave(&network, true).await.expect("done").is_empty());
    assert!(a.host.device(INTERFACE).is_none() && !file.exists());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_taken_off_its_host_leaves_what_may_be_another_programs() {
    let (_mesh, a) = damaged("wgx").await;
    a.host.create(INTERFACE, "".as_ref()).expect("another program makes it");
    // The file of a device process that is dead.
    std::fs::write(a.agent.directory.device_socket("wg0"), "").expect("written");
    let mut down = Down::default();
    a.agent.down(&mut down).await.expect("it is taken down");
    assert_eq!(down.removed, ["the WireGuard device wgx with its routes and names"]);
    assert_eq!(
        down.kept,
        [
            "the interface nm-corp: nothing shows that it is of this directory; if it is, remove it: ip link delete nm-corp"
        ]
    );
    assert!(a.host.device("wgx").is_none() && a.host.device(INTERFACE).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_table_that_the_packet_filter_refuses_is_a_problem_and_costs_no_network() {
    let mesh = Mesh::new(CORP).await;
    let mut a = Node::new(&mesh, "a");
    a.host.refuse_filter(true);
    let log = support::log();
    a.join(&mesh).await.expect("it joins");
    a.start().await;
    eventually("the server knows", || mesh.problems("a") == ["no-filter"]).await;
    assert!(log().contains("control traffic is not kept outside of networks"), "{}", log());
    let message = mesh.problem_messages("a").concat();
    for part in ["nftables refused the table nm-own", "Operation not supported", "modprobe nf_tables"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains("install nftables"), "it is there: {message}");
    let routing = a.host.routing();
    assert!(
        routing.rules.is_empty() && routing.routes.keys().all(|place| place.table == MAIN),
        "{routing:?}"
    );
    assert_eq!(routing.routes.len(), 1, "the network works all the same");
    a.host.refuse_filter(false);
    eventually("all is well", || mesh.problems("a").is_empty() && a.host.filter().is_some()).await;
    assert!(!a.host.routing().rules.is_empty());
}

#[tokio::test(start_paused = true)]
async fn marks_that_the_kernel_does_not_heed_are_a_problem_of_the_node() {
    let mesh = Mesh::new(CORP).await;
    let mut a = Node::new(&mesh, "a");
    a.host.ignore_marks(true);
    a.join(&mesh).await.expect("it joins");
    a.start().await;
    eventually("the server knows", || mesh.problems("a") == ["marks-unheeded"]).await;
    a.host.ignore_marks(false);
    eventually("all is well", || mesh.problems("a").is_empty()).await;
}
