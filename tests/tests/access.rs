//! What access rules let pass, packets pass, and nothing else; and what a change of them ends, ends at once.
//!
//! ```text
//! nmserver ==== underlay ==== a, b, c    and, behind b, a container
//! ```
//!
//! The nodes are in one network whose `acl` is `deny`. What a member does that does not keep to its own View is
//! in `attacks.rs`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use end_to_end::container::container;
use end_to_end::corp::{APPLIED, Corp, INTERFACE, TRAFFIC};
use end_to_end::filter::{forget_connections, nft};
use end_to_end::{eventually, filter, guest, in_runtime, patience, run, run_all};
use ipnet::IpNet;
use nmplan::lab::{self, Host, Outcome, Pattern, Service, enter_test};
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
/// At both addresses of a node.
const NOTHING: [Outcome; 2] = [Outcome::Nothing; 2];

/// What `a` may open at `b` in most of these tests, and `b` at `c`.
const RULES: &str = r#"acl "deny"
    allow "web" from="a" to="b" proto="tcp" { ports 80 "5000-5001" }
    allow "names" from="a" to="b" proto="udp" ports=53
    allow "all" from="b" to="c"
"#;

fn by_rules(from: &str, to: &str, service: Service) -> bool {
    match (from, to) {
        ("a", "b") => {
            matches!(service, Service::Tcp(80 | 5000 | 5001) | Service::Udp(53))
        }
        ("b", "c") => true,
        _ => false,
    }
}

async fn wait(duration: Duration) -> Instant {
    tokio::time::sleep(duration).await;
    Instant::now()
}

#[test]
fn rules_open_what_they_say_one_way_and_nothing_else() {
    if !enter_test("rules_open_what_they_say_one_way_and_nothing_else") {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "b", "c"], RULES).await;
        corp.assert_allowed(by_rules).await;
        // What no rule joins never learns of each other.
        let [v4, v6] = corp.addresses("c").map(|address| address.to_string());
        let key = run(corp.host("c"), "wg show nm-corp public-key").await;
        let endpoint = corp.host("c").ipv4().to_string();
        let shown = run(corp.host("a"), "wg show nm-corp dump").await;
        let names = corp.host("a").read("/etc/hosts").expect("it is there");
        for hidden in [&v4, &v6, key.trim(), &endpoint, "c.corp"] {
            assert!(!shown.contains(hidden) && !names.contains(hidden), "{hidden}: {shown} {names}");
        }
        assert!(names.contains("b.corp"), "{names}");
        // What stands in nftables can be stored and loaded again.
        let listed = run(corp.host("b"), "nft list ruleset").await;
        assert!(listed.contains(INTERFACE), "{listed}");
        nft(corp.host("b"), &["-c", "-f", "-"], &listed);
        // A rule that comes lets packets pass within a second, and concerns nobody else.
        let others = corp.flows("b", "c", &TRAFFIC).await;
        others.settle().await;
        let before = Instant::now();
        let change = corp
            .declare(&format!("{RULES}\nallow \"more\" from=\"c\" to=\"a\" proto=\"udp\" ports=54"))
            .await;
        let opened = async {
            while !corp.opens("c", "a", Service::Udp(54)).await {}
            change.elapsed()
        };
        let took = tokio::time::timeout(20 * SECOND, opened).await.expect("it passes at last");
        assert!(took < APPLIED * patience(), "it passed after {took:?}");
        let after = wait(SECOND).await;
        others.assert_lost_nothing(before, after - SECOND / 2);
        corp.assert_allowed(|from, to, service| {
            by_rules(from, to, service) || (from, to, service) == ("c", "a", Service::Udp(54))
        })
        .await;
        // Everything, and again what the rules say.
        corp.declare("acl \"allow\"").await;
        corp.assert_allowed(|_, _, _| true).await;
        corp.declare(RULES).await;
        wait(APPLIED * patience()).await;
        corp.assert_allowed(by_rules).await;
    });
}

#[test]
fn what_is_asked_is_answered_also_by_a_refusal() {
    if !enter_test("what_is_asked_is_answered_also_by_a_refusal") {
        return;
    }
    in_runtime(async {
        // b may open everything at a, which may open nothing.
        let corp = Corp::start(&["a", "b"], "acl \"deny\"\nallow \"all\" from=\"b\" to=\"a\"").await;
        corp.assert_allowed(|from, _, _| from == "b").await;
        for service in [Service::Tcp(9), Service::Udp(9)] {
            assert_eq!(
                corp.probe("b", "a", service).await,
                [Outcome::Refused; 2],
                "nothing listens at {service}"
            );
            assert_eq!(corp.probe("a", "b", service).await, NOTHING);
        }
    });
}

/// With these, `a` keeps `b` as a peer whatever becomes of what it may open there.
const BACK: &str = "acl \"deny\"\nallow \"back\" from=\"b\" to=\"a\" proto=\"udp\" ports=54\n\
                    allow \"other\" from=\"c\" to=\"b\"\n";
const FORTH: &str = "allow \"forth\" from=\"a\" to=\"b\"\n";

#[test]
fn an_established_connection_ends_with_its_permission_and_others_lose_nothing() {
    if !enter_test("an_established_connection_ends_with_its_permission_and_others_lose_nothing") {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "b", "c"], &format!("{BACK}{FORTH}")).await;
        let others = corp.flows("c", "b", &TRAFFIC).await;
        let back =
            corp.flows("b", "a", &[(Service::Udp(54), Pattern::Asked), (Service::Udp(54), Pattern::Pushed)]);
        let back = back.await;
        // First while the two remain peers, then without any rule between them.
        for without in [BACK.to_owned(), BACK.replace("allow \"back\"", "//")] {
            let ending = corp.flows("a", "b", &TRAFFIC).await;
            // Of datagrams of less than two seconds the kernel forgets after 30 s who began, later after 120.
            wait(3 * SECOND).await;
            ending.settle().await;
            others.settle().await;
            let before = Instant::now();
            let change = corp.declare(&without).await;
            let after = wait((APPLIED + 2 * SECOND) * patience()).await;
            ending.assert_stopped(change);
            others.assert_lost_nothing(before, after - SECOND);
            if without == BACK {
                back.assert_lost_nothing(before, after - SECOND);
            }
            // With the permission what is not TCP goes on, within a second; TCP, when it sends again.
            let before = Instant::now();
            let change = corp.declare(&format!("{BACK}{FORTH}")).await;
            let again = corp.flows("a", "b", &TRAFFIC).await;
            assert!(change.elapsed() < 2 * APPLIED * patience(), "it took {:?}", change.elapsed());
            let after = wait(2 * SECOND * patience()).await;
            others.assert_lost_nothing(before, after - SECOND);
            for (what, timeline) in ending.timelines().filter(|(what, _)| !what.contains("tcp")) {
                assert!(timeline.heard_between(change, after), "{what} {timeline}");
            }
            drop(again);
        }
    });
}

#[test]
fn what_the_kernel_forgot_does_not_turn_a_connection_around() {
    if !enter_test("what_the_kernel_forgot_does_not_turn_a_connection_around") {
        return;
    }
    in_runtime(async {
        let kept = "acl \"deny\"
            allow \"back\" from=\"b\" to=\"a\" proto=\"udp\" ports=54
            allow \"own\" from=\"b\" to=\"c\"
        ";
        let corp = Corp::start(&["a", "b", "c"], &format!("{kept}{FORTH}")).await;
        let tcp = [(Service::Tcp(80), Pattern::Pushed), (Service::Tcp(80), Pattern::Asked)];
        let ended = corp.flows("a", "b", &tcp).await;
        ended.settle().await;
        let change = corp.declare(kept).await;
        wait(APPLIED * patience()).await;
        // b goes on sending; and nobody knows any more that a had opened it.
        forget_connections(corp.host("b"));
        wait(3 * SECOND * patience()).await;
        ended.assert_stopped(change);
        // What b itself opened is lost with it, since that cannot be told from the above.
        let own = corp.flows("b", "c", &[(Service::Tcp(80), Pattern::Asked)]).await;
        own.settle().await;
        forget_connections(corp.host("b"));
        eventually("it is reset", 2 * SECOND, async || {
            own.timelines().all(|(_, timeline)| timeline.ended().is_some())
        })
        .await;
        corp.flows("b", "c", &TRAFFIC).await.settle().await;
    });
}

#[test]
fn both_sides_may_open_at_the_same_time_what_one_may_open() {
    if !enter_test("both_sides_may_open_at_the_same_time_what_one_may_open") {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "b"], "acl \"deny\"\nallow \"back\" from=\"b\" to=\"a\"").await;
        corp.assert_allowed(|from, _, _| from == "b").await;
        for (a, b) in corp.addresses("a").into_iter().zip(corp.addresses("b")) {
            let (a, b) = (SocketAddr::new(a, 7_001), SocketAddr::new(b, 7_002));
            let open = |host: &Host, from: SocketAddr, to: SocketAddr, limit| {
                host.within(|| {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
                    socket.set_reuse_address(true).expect("it is known");
                    socket.bind(&from.into()).expect("the port is free");
                    socket.connect_timeout(&to.into(), limit).map(|()| TcpStream::from(socket))
                })
            };
            assert!(open(corp.host("a"), a, b, SECOND * patience()).is_err(), "a may not open it");
            let (one, other) = std::thread::scope(|scope| {
                let one = scope.spawn(|| open(corp.host("a"), a, b, 5 * SECOND * patience()));
                let other = scope.spawn(|| {
                    std::thread::sleep(SECOND / 10);
                    open(corp.host("b"), b, a, 5 * SECOND * patience())
                });
                (one.join().expect("it ends"), other.join().expect("it ends"))
            });
            let (mut one, mut other) = (one.expect("a is answered"), other.expect("b is answered"));
            one.write_all(b"!").expect("it is sent");
            let mut byte = [0];
            other.read_exact(&mut byte).expect("it arrives");
        }
    });
}

/// Sends so many bytes from a service of `b` to a host that opens it; returns whether all arrived.
fn downloads(corp: &Corp, by: &Host, at: IpAddr, bytes: usize) -> bool {
    let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let listener = corp.host("b").within(|| TcpListener::bind((any, 7_000)).expect("the port is free"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.write_all(&vec![7; bytes]);
    });
    let opened = by.within(|| TcpStream::connect_timeout(&(at, 7_000).into(), 5 * SECOND));
    let Ok(mut stream) = opened else { return false };
    stream.set_read_timeout(Some(5 * SECOND * patience())).expect("a timeout");
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    received.len() == bytes
}

/// Sends so many bytes from `b` to the service of a container that another node publishes; returns whether all
/// arrived.
fn uploads(corp: &Corp, inner: &Host, at: IpAddr, bytes: usize) -> bool {
    let any: IpAddr = if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let listener = inner.within(|| TcpListener::bind((any, 80)).expect("the port is free"));
    let opened = corp.host("b").within(|| TcpStream::connect_timeout(&(at, 8_080).into(), 5 * SECOND));
    let Ok(mut stream) = opened else { return false };
    let (mut received, _) = listener.accept().expect("a connection");
    received.set_read_timeout(Some(5 * SECOND * patience())).expect("a timeout");
    std::thread::spawn(move || stream.write_all(&vec![7; bytes]));
    let mut all = Vec::new();
    let _ = received.read_to_end(&mut all);
    all.len() == bytes
}

#[test]
fn errors_about_connections_arrive_whoever_sends_them() {
    if !enter_test("errors_about_connections_arrive_whoever_sends_them") {
        return;
    }
    in_runtime(async {
        let rules = r#"acl "deny"
            allow "web" from="a" to="b" proto="tcp" ports=7000
            allow "x" from="a" to="b" proto="udp" ports=53
            allow "up" from="b" to="a" proto="tcp" ports=8080
        "#;
        let corp = Corp::start(&["a", "b"], rules).await;
        corp.assert_allowed(|from, _, service| {
            matches!((from, service), ("a", Service::Udp(53)) | ("b", Service::Tcp(8080)))
        })
        .await;
        // A container behind a, by a link that takes smaller packets than the network: a says so to b, by ICMP,
        // which it may not open.
        let inner = container(&corp.mesh.underlay, corp.host("a")).await;
        // The container does not know of it, so what it offers is too large.
        run_all(corp.host("a"), &["ip link set veth0 mtu 1280", "ip link set docker0 mtu 1280"]).await;
        for at in corp.addresses("b") {
            assert!(downloads(&corp, &inner, at, 200_000), "{at}");
        }
        let heard = async || {
            for at in corp.addresses("a") {
                let way = run(corp.host("b"), &format!("ip route get {at}")).await;
                assert!(way.contains("mtu 1280"), "b heard of it: {way}");
            }
        };
        heard().await;
        // The same about what b itself opens, once it has forgotten.
        run_all(corp.host("b"), &["ip route flush cache", "ip -6 route flush cache"]).await;
        for at in corp.addresses("a") {
            assert!(uploads(&corp, &inner, at, 200_000), "{at}");
        }
        heard().await;
    });
}

#[test]
fn fragments_are_judged_as_the_packet_that_they_are_of() {
    if !enter_test("fragments_are_judged_as_the_packet_that_they_are_of") {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "b", "c"], RULES).await;
        corp.assert_allowed(by_rules).await;
        for at in corp.addresses("b") {
            let (allowed, other) = (vec![1; 4_000], vec![2; 4_000]);
            let answer = corp.host("a").within(|| {
                let any: IpAddr =
                    if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                let socket = UdpSocket::bind((any, 0)).expect("a socket");
                socket.set_read_timeout(Some(2 * SECOND * patience())).expect("a timeout");
                socket.send_to(&other, (at, 54)).expect("it is sent");
                socket.send_to(&allowed, (at, 53)).expect("it is sent");
                let mut answer = vec![0; 8_000];
                socket.recv(&mut answer).map(|length| answer[..length].to_vec())
            });
            assert!(answer.is_ok_and(|answer| answer == allowed), "{at}");
            assert!(!corp.listeners("b").has_heard(&other), "{at}");
        }
    });
}

#[test]
fn no_rules_of_another_program_open_what_ours_close() {
    if !enter_test("no_rules_of_another_program_open_what_ours_close") {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "b", "c"], RULES).await;
        corp.assert_allowed(by_rules).await;
        let b = corp.host("b");
        let pre = "chain pre { type filter hook prerouting priority raw;";
        let out = "chain out { type filter hook output priority raw;";
        for (what, chains) in [
            ("untracked on the way in", format!("{pre} notrack; }}\n")),
            ("untracked on the way out", format!("{out} notrack; }}\n")),
            ("untracked", format!("{pre} notrack; }}\n{out} notrack; }}\n")),
            ("a zone on the way in", format!("{pre} ct zone set 7; }}\n")),
            ("a zone", format!("{pre} ct zone set 7; }}\n{out} ct zone set 7; }}\n")),
            (
                "accepted",
                "chain in { type filter hook input priority -10; accept; }
                 chain late { type filter hook input priority 10; ct state established accept; }\n"
                    .to_owned(),
            ),
        ] {
            nft(b, &["-f", "-"], &format!("table inet other {{ {chains} }}"));
            corp.assert_nothing_else(what, by_rules).await;
            nft(b, &["delete", "table", "inet", "other"], "");
            corp.assert_allowed(by_rules).await;
        }
    });
}

/// What a host's packet filter consists of, but for elements and counts, in an order that does not depend on
/// how it came about.
async fn structure(host: &Host) -> Vec<String> {
    let listed = run(host, "nft -t list ruleset").await;
    let uncounted = |line: &str| line.split("counter").next().unwrap_or_default().trim().to_owned();
    let mut lines: Vec<_> = listed.lines().map(uncounted).collect();
    lines.sort();
    lines
}

#[test]
fn what_others_change_of_the_filter_is_back_within_a_second() {
    if !enter_test("what_others_change_of_the_filter_is_back_within_a_second") {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "b", "c"], RULES).await;
        corp.assert_allowed(by_rules).await;
        let b = corp.host("b");
        let right = structure(b).await;
        for taking in [
            "nft flush ruleset",
            "ip link set nm-corp down",
            "nft add table inet nm-access-nm-corp { flags dormant ; }",
            "nft insert rule inet nm-access-nm-corp in accept",
            "nft add chain inet nm-access-nm-corp more { type filter hook input priority -1 ; }",
            "nft add table inet nm-own { flags dormant ; }",
        ] {
            run(b, taking).await;
            let took = eventually("it is back", APPLIED, async || {
                structure(b).await == right && corp.opens("a", "b", Service::Udp(53)).await
            })
            .await;
            assert!(took < APPLIED * patience(), "{taking}: {took:?}");
            corp.assert_allowed(by_rules).await;
        }
    });
}

#[test]
fn nothing_passes_while_a_node_comes_up() {
    if !enter_test("nothing_passes_while_a_node_comes_up") {
        return;
    }
    in_runtime(async {
        let mut corp = Corp::start(&["a", "b", "c"], RULES).await;
        corp.assert_allowed(by_rules).await;
        let [v4, v6] = corp.addresses("b");
        // a goes on trying what it may not open, at a pace at which something would pass soon.
        let trying = corp.host("a").within(|| {
            let socket = |at: IpAddr| {
                let any: IpAddr =
                    if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                (UdpSocket::bind((any, 0)).expect("a socket"), SocketAddr::new(at, 54))
            };
            [socket(v4), socket(v6)]
        });
        let trying = tokio::spawn(async move {
            loop {
                for (socket, to) in &trying {
                    let _ = socket.send_to(b"while it comes up", to);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        for way in ["a new process", "a new device", "joined again"] {
            let agent = corp.agent_mut("b");
            agent.kill_daemon().await.expect("it is killed");
            if way != "a new process" {
                end_to_end::kill_device(agent.host(), INTERFACE);
            }
            if way == "joined again" {
                let left = agent.netclient(&["leave", "--network", "corp"]).await.expect("it runs");
                assert!(left.status.success(), "{left:?}");
                corp.join("b").await;
            }
            corp.agent_mut("b").start_daemon(&[]).expect("the agent starts");
            corp.assert_allowed(by_rules).await;
            assert!(!corp.listeners("b").has_heard(b"while it comes up"), "{way}");
        }
        trying.abort();
    });
}

#[test]
fn a_published_port_is_judged_as_the_port_that_was_asked() {
    if !enter_test("a_published_port_is_judged_as_the_port_that_was_asked") {
        return;
    }
    in_runtime(async {
        let near = "allow \"near\" from=\"b\" to=\"a\" proto=\"udp\" ports=53\n";
        let none = format!("acl \"deny\"\n{near}");
        let inside = format!("{none}allow \"inside\" from=\"a\" to=\"b\" proto=\"tcp\" ports=80");
        let published = format!("{none}allow \"published\" from=\"a\" to=\"b\" proto=\"tcp\" ports=8080");
        let corp = Corp::start(&["a", "b"], &none).await;
        let inner = container(&corp.mesh.underlay, corp.host("b")).await;
        let everywhere = ["0.0.0.0", "::"].map(|any| any.parse().expect("an address"));
        let _listeners = inner.listen(&everywhere, [Service::Tcp(80)]).expect("the ports are free");
        corp.assert_allowed(|from, _, service| (from, service) == ("b", Service::Udp(53))).await;
        // The port of the container is not the port that is asked.
        corp.declare(&inside).await;
        let open = async |service| corp.opens("a", "b", service).await;
        eventually("the rule holds", 10 * SECOND, async || open(Service::Tcp(80)).await).await;
        assert_eq!(corp.probe("a", "b", Service::Tcp(8080)).await, NOTHING);
        corp.declare(&published).await;
        eventually("the rule holds", 10 * SECOND, async || open(Service::Tcp(8080)).await).await;
        assert_eq!(corp.probe("a", "b", Service::Tcp(80)).await, NOTHING);
        // And it ends with its permission, also while the container sends.
        let tcp = [(Service::Tcp(8080), Pattern::Asked), (Service::Tcp(8080), Pattern::Pushed)];
        let flows = corp.flows("a", "b", &tcp).await;
        flows.settle().await;
        let change = corp.declare(&none).await;
        wait((APPLIED + 2 * SECOND) * patience()).await;
        flows.assert_stopped(change);
        // What the container opens is judged where it goes to, as its host's.
        for at in corp.addresses("a") {
            let answered = inner.probe(at, Service::Udp(53), SECOND).await.expect("sockets");
            assert!(answered.agrees(true), "{at}: {answered:?}");
            let nothing = inner.probe(at, Service::Tcp(80), SECOND).await.expect("sockets");
            assert!(nothing.agrees(false), "{at}: {nothing:?}");
        }
    });
}

#[test]
fn what_a_hub_carries_is_judged_by_who_receives_it() {
    if !enter_test("what_a_hub_carries_is_judged_by_who_receives_it") {
        return;
    }
    in_runtime(async {
        let rules = |more: &str| {
            format!(
                "hub \"h\"; acl \"deny\"
                 allow \"web\" from=\"a\" to=\"b\" proto=\"tcp\" ports=80
                 allow \"all\" from=\"b\" to=\"c\"
                 allow \"of-hub\" from=\"h\" to=\"c\" proto=\"icmp\"
                 {more}"
            )
        };
        let by_rules = |from: &str, to: &str, service| match (from, to) {
            ("a", "b") => service == Service::Tcp(80),
            ("b", "c") => true,
            ("h", "c") => service == Service::Icmp,
            _ => false,
        };
        let corp = Corp::start(&["a", "b", "c", "h"], &rules("")).await;
        corp.assert_allowed(by_rules).await;
        // Nobody but the hub has keys of others.
        let peers = run(corp.host("a"), "wg show nm-corp peers").await;
        assert_eq!(peers, run(corp.host("h"), "wg show nm-corp public-key").await);
        let status = corp.agent("a").status().await.expect("it answers");
        let reaches = &status["networks"][0]["reaches"];
        let ranges = corp.addresses("b").map(|address| IpNet::from(address).to_string());
        assert_eq!(*reaches, serde_json::json!([{ "name": "b", "ranges": ranges, "via": "h" }]));
        // A rule that goes and comes, beside traffic that it does not concern.
        let others = corp.flows("b", "c", &TRAFFIC).await;
        let with = rules("allow \"more\" from=\"c\" to=\"a\"");
        corp.declare(&with).await;
        let ending = corp.flows("c", "a", &TRAFFIC).await;
        ending.settle().await;
        others.settle().await;
        let before = Instant::now();
        let change = corp.declare(&rules("")).await;
        let after = wait((APPLIED + 2 * SECOND) * patience()).await;
        ending.assert_stopped(change);
        others.assert_lost_nothing(before, after - SECOND);
        corp.assert_allowed(by_rules).await;
    });
}

/// Starts a node's agent anew with other settings.
async fn start_with(corp: &mut Corp, node: &str, settings: &str) {
    let agent = corp.agent_mut(node);
    agent.kill_daemon().await.expect("it is killed");
    agent.host().write("/etc/netclient/netclient.toml", settings).expect("it is written");
    agent.start_daemon(&[]).expect("the agent starts");
}

#[test]
fn an_agent_that_cannot_enforce_lets_nothing_pass_and_says_so() {
    if !enter_test("an_agent_that_cannot_enforce_lets_nothing_pass_and_says_so") {
        return;
    }
    in_runtime(async {
        let mut corp = Corp::start(&["a", "b", "c"], RULES).await;
        corp.assert_allowed(by_rules).await;
        start_with(&mut corp, "b", "connection_tracking = false\n").await;
        eventually("nothing passes", 10 * SECOND, async || {
            corp.probe("a", "b", Service::Tcp(80)).await == NOTHING
        })
        .await;
        corp.assert_allowed(|_, _, _| false).await;
        let status = corp.agent("b").status().await.expect("it answers");
        let problems = status["networks"][0]["problems"].as_array().cloned().unwrap_or_default();
        assert!(!problems.is_empty(), "{status}");
        // It enforces again once it can.
        start_with(&mut corp, "b", "").await;
        corp.assert_allowed(by_rules).await;
    });
}

#[test]
fn behind_a_hub_a_node_that_cannot_enforce_keeps_those_that_may_open_everything() {
    if !enter_test("behind_a_hub_a_node_that_cannot_enforce_keeps_those_that_may_open_everything") {
        return;
    }
    in_runtime(async {
        let rules = |hub: &str| {
            format!(
                "hub \"h\"; acl \"deny\"
                 allow \"all\" from=\"a\" to=\"b\"
                 allow \"back\" from=\"b\" to=\"a\" proto=\"udp\" ports=53
                 allow \"some\" from=\"c\" to=\"b\" proto=\"tcp\" ports=80
                 allow \"hub\" from=\"h\" to=\"b\" {hub}"
            )
        };
        let mut corp = Corp::start(&["a", "b", "c", "h"], &rules("proto=\"icmp\"")).await;
        let unrestricted = |from: &str, to: &str, service| match (from, to) {
            ("a", "b") => true,
            ("b", "a") => service == Service::Udp(53),
            _ => false,
        };
        corp.assert_allowed(|from, to, service| {
            let more =
                matches!((from, to, service), ("c", "b", Service::Tcp(80)) | ("h", "b", Service::Icmp));
            more || unrestricted(from, to, service)
        })
        .await;
        start_with(&mut corp, "b", "connection_tracking = false\n").await;
        for (from, service) in [("c", Service::Tcp(80)), ("h", Service::Icmp)] {
            eventually("who may not open everything is cut off", 10 * SECOND, async || {
                corp.probe(from, "b", service).await == NOTHING
            })
            .await;
        }
        corp.assert_allowed(unrestricted).await;
        let [v4, v6] = corp.addresses("a");
        let allowed = run(corp.host("b"), "wg show nm-corp allowed-ips").await;
        let hub = run(corp.host("h"), "wg show nm-corp public-key").await;
        let hub = hub.trim();
        let ways = [format!("{hub}\t{v4}/32 {v6}/128\n"), format!("{hub}\t{v6}/128 {v4}/32\n")];
        assert!(ways.contains(&allowed), "{allowed}");
        // So is the hub, once it may.
        corp.declare(&rules("")).await;
        corp.assert_allowed(|from, to, service| (from, to) == ("h", "b") || unrestricted(from, to, service))
            .await;
    });
}

#[test]
fn a_hub_sends_nobody_elsewhere() {
    if !enter_test("a_hub_sends_nobody_elsewhere") {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "b", "h"], "hub \"h\"").await;
        corp.assert_allowed(|_, _, _| true).await;
        // The kernel would: what leaves by the interface that it came in by has a nearer way.
        let held_back = run(corp.host("h"), "nft list chain inet nm-own redirects").await;
        let counts = held_back.lines().filter(|line| line.contains("redirect counter"));
        assert!(counts.clone().any(|line| !line.contains("packets 0 ")), "{held_back}");
        for redirect in ["icmp type redirect", "icmpv6 type nd-redirect"] {
            filter::watch(corp.host("a"), INTERFACE, redirect);
            for service in [Service::Tcp(80), Service::Udp(53), Service::Icmp] {
                assert!(corp.opens("a", "b", service).await, "{service}");
            }
            assert_eq!(filter::watched(corp.host("a")), (0, 0), "{redirect}");
            filter::forget(corp.host("a"));
        }
    });
}

/// How many connections the kernel tracks at most in each network. A lab sees it, and cannot change it, since it
/// holds everywhere.
const MOST_CONNECTIONS: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// A file by which a test in a lab says what it should be.
const WANTED: &str = "/tmp/most-connections";

/// Outside of the lab: sets how many connections a guest's kernel tracks at most, as the test in the lab says.
struct Setter;

impl Setter {
    /// # Panics
    ///
    /// Outside of a guest, where others need connections as well.
    fn of_guest() -> Self {
        assert!(guest::inside(), "this concerns the whole kernel, so it only runs in a guest: make guest");
        std::fs::create_dir_all("/tmp").expect("a folder");
        std::thread::spawn(|| {
            loop {
                Self::set();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self
    }

    fn set() {
        if let Ok(wanted) = std::fs::read_to_string(WANTED) {
            std::fs::write(MOST_CONNECTIONS, wanted).expect("root may");
        }
    }
}

impl Drop for Setter {
    fn drop(&mut self) {
        // What the test wanted last, however it ended.
        Self::set();
    }
}

/// In the lab: how many connections are tracked at most otherwise, which holds again when this is dropped.
struct Limited(String);

impl Limited {
    async fn to(most: &str) -> Self {
        let shown = || std::fs::read_to_string(MOST_CONNECTIONS).expect("the kernel tracks connections");
        let usual = Self(shown());
        std::fs::write(WANTED, most).expect("it is written");
        eventually("it is set", 5 * SECOND, async || shown().trim() == most).await;
        usual
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        std::fs::write(WANTED, &self.0).expect("it is written");
    }
}

#[test]
#[ignore = "it changes what holds for the whole kernel, so it only runs in a guest: make guest"]
fn where_no_more_connections_are_tracked_nothing_new_passes_and_what_stands_goes_on() {
    let name = "where_no_more_connections_are_tracked_nothing_new_passes_and_what_stands_goes_on";
    let _setter = (!lab::inside()).then(Setter::of_guest);
    if !enter_test(name) {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "b", "c"], RULES).await;
        corp.assert_allowed(by_rules).await;
        let standing = corp.flows("a", "b", &[(Service::Tcp(80), Pattern::Asked)]).await;
        standing.settle().await;
        let limited = Limited::to("1").await;
        let full = Instant::now();
        // An echo of the lab is one more of those that the host has asked for already.
        let asked = |from: &str, to: &str, service| service == Service::Icmp && by_rules(from, to, service);
        corp.assert_nothing_else("no more are tracked", asked).await;
        let after = wait(2 * SECOND * patience()).await;
        for (what, timeline) in standing.timelines() {
            assert!(timeline.ended().is_none(), "{what} {timeline}");
            assert!(timeline.heard_between(full + SECOND, after), "{what} {timeline}");
        }
        drop(limited);
        corp.assert_allowed(by_rules).await;
    });
}

#[test]
fn a_change_holds_at_the_next_check_in_and_at_first_contact() {
    if !enter_test("a_change_holds_at_the_next_check_in_and_at_first_contact") {
        return;
    }
    in_runtime(async {
        let corp =
            Corp::start_with(&["a", "b", "c"], &format!("{BACK}{FORTH}"), &[("NETCLIENT_WATCH", "false")])
                .await;
        let flows = corp.flows("a", "b", &TRAFFIC).await;
        flows.settle().await;
        let change = corp.declare(BACK).await;
        // They check in every 2 s.
        wait((APPLIED + 4 * SECOND) * patience()).await;
        flows.assert_stopped(change + 2 * SECOND * patience());
        // b is offline while the rule goes.
        corp.declare(&format!("{BACK}{FORTH}")).await;
        let flows = corp.flows("a", "b", &TRAFFIC).await;
        flows.settle().await;
        corp.host("b").link_down().await.expect("the cable is out");
        corp.declare(BACK).await;
        wait(SECOND).await;
        corp.host("b").link_up().await.expect("the cable is in");
        let contact = Instant::now();
        eventually("b is back", 20 * SECOND, async || corp.opens("c", "b", Service::Udp(53)).await).await;
        eventually("b hears of it", 20 * SECOND, async || {
            corp.probe("a", "b", Service::Udp(53)).await == NOTHING
        })
        .await;
        let heard = Instant::now();
        wait((APPLIED + 2 * SECOND) * patience()).await;
        flows.assert_stopped(heard);
        assert!(heard - contact < 10 * SECOND * patience(), "it took {:?}", heard - contact);
        corp.assert_allowed(|from, to, service| {
            (from, to) == ("c", "b") || (from, to, service) == ("b", "a", Service::Udp(54))
        })
        .await;
    });
}
