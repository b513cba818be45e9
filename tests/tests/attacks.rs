//! A member that does not keep to what it was sent gets nothing past the rules.
//!
//! ```text
//! nmserver ==== underlay ==== a, b, c    and, behind b, a container
//! ```
//!
//! The agent of `c` is stopped, its packet filter is gone, and it sends whatever it likes. Whether it passes is
//! counted at `b`: what comes from the tunnel, and what of it is left when every filter has been asked.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use end_to_end::container::container;
use end_to_end::corp::{Corp, INTERFACE};
use end_to_end::forge::{Ends, Segment, echo_reply, send, tcp, too_big, udp};
use end_to_end::{Mesh, addresses, eventually, filter, in_runtime, link_kind, run, run_all, text_of};
use etherparse::IpNumber;
use nmplan::lab::{Outcome, Service, enter_test};

const SECOND: Duration = Duration::from_secs(1);
/// At both addresses of a node.
const NOTHING: [Outcome; 2] = [Outcome::Nothing; 2];

const RULES: &str = r#"acl "deny"
    allow "web" from="c" to="b" proto="tcp" ports=80
    allow "names" from="c" to="b" proto="udp" ports=53
    allow "all" from="b" to="a"
    allow "ping" from="a" to="b"
"#;

fn by_rules(from: &str, to: &str, service: Service) -> bool {
    match (from, to) {
        ("c", "b") => matches!(service, Service::Tcp(80) | Service::Udp(53)),
        ("b", "a") | ("a", "b") => true,
        _ => false,
    }
}

/// The three nodes, `c` without its agent and its filters.
async fn attacked() -> Corp {
    attacked_in(&["a", "b", "c"], RULES).await
}

async fn attacked_in(nodes: &[&'static str], body: &str) -> Corp {
    let mut corp = Corp::start(nodes, body).await;
    corp.assert_allowed(by_rules).await;
    corp.agent_mut("c").kill_daemon().await.expect("it is killed");
    run(corp.host("c"), "nft flush ruleset").await;
    corp
}

/// From now on `c` takes nothing from the tunnel, so that it sends only what a test sends, and no errors about
/// answers that it did not wait for.
fn deafen(corp: &Corp) {
    let rules = "table inet deaf { chain in { type filter hook input priority 0; iifname nm-corp drop; }\n}";
    filter::nft(corp.host("c"), &["-f", "-"], rules);
}

/// Asks or changes the routes of the underlay itself.
fn underlay(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    text_of(&output.stdout)
}

/// Sends packets from `c`, waits until `b` has got them out of the tunnel, and returns how many passed.
async fn passed(corp: &Corp, segment: &Segment, packets: &[Vec<u8>]) -> u64 {
    let b = corp.host("b");
    filter::watch(b, INTERFACE, "");
    send(corp.host("c"), segment, packets);
    let sent = packets.len() as u64;
    eventually("they arrive", 5 * SECOND, async || filter::watched(b).0 >= sent).await;
    let (_, passed) = filter::watched(b);
    filter::forget(b);
    passed
}

fn pairs(corp: &Corp) -> impl Iterator<Item = (IpAddr, IpAddr)> + use<> {
    corp.addresses("c").into_iter().zip(corp.addresses("b"))
}

#[test]
fn no_forged_answer_passes_without_a_question() {
    if !enter_test("no_forged_answer_passes_without_a_question") {
        return;
    }
    in_runtime(async {
        let corp = attacked().await;
        deafen(&corp);
        for (c, b) in pairs(&corp) {
            let at = |ip, port| SocketAddr::new(ip, port);
            // What may pass does, so that the counts mean something.
            for segment in [
                tcp(at(c, 4_000), at(b, 80), |tcp| tcp.syn = true),
                udp(at(c, 4_000), at(b, 53), b"a question"),
            ] {
                assert!(passed(&corp, &segment, &[segment.packet()]).await > 0, "{segment:?}");
            }
            let unknown = tcp(at(b, 81), at(c, 4_001), |tcp| tcp.ack = true);
            for (what, segment) in [
                ("a question", tcp(at(c, 4_001), at(b, 81), |tcp| tcp.syn = true)),
                ("an acknowledgement", tcp(at(c, 80), at(b, 4_001), |tcp| tcp.ack = true)),
                (
                    "an answer to a question",
                    tcp(at(c, 80), at(b, 4_002), |tcp| (tcp.syn, tcp.ack) = (true, true)),
                ),
                ("a reset", tcp(at(c, 80), at(b, 4_003), |tcp| tcp.rst = true)),
                ("an end", tcp(at(c, 80), at(b, 4_004), |tcp| (tcp.fin, tcp.ack) = (true, true))),
                ("nothing at all", tcp(at(c, 80), at(b, 4_005), |_| ())),
                (
                    "every flag",
                    tcp(at(c, 80), at(b, 4_006), |tcp| (tcp.fin, tcp.psh, tcp.urg) = (true, true, true)),
                ),
                ("an answer by UDP", udp(at(c, 53), at(b, 4_007), b"an answer")),
                ("an echo", echo_reply(Ends::new(c, b))),
                ("too big", too_big(Ends::new(c, b), &unknown.packet())),
            ] {
                assert_eq!(passed(&corp, &segment, &[segment.packet()]).await, 0, "{what}: {segment:?}");
            }
        }
    });
}

#[test]
fn what_belongs_to_no_connection_passes_nowhere_also_where_its_sender_may_open_one() {
    let name = "what_belongs_to_no_connection_passes_nowhere_also_where_its_sender_may_open_one";
    if !enter_test(name) {
        return;
    }
    in_runtime(async {
        let corp = attacked().await;
        deafen(&corp);
        // WireGuard of the kernel vouches for checksums, since it has authenticated the whole packet.
        let is_checked = link_kind(corp.host("b"), INTERFACE).await == "tun";
        for (c, b) in pairs(&corp) {
            let at = |ip, port| SocketAddr::new(ip, port);
            let opening = |port| tcp(at(c, 4_100), at(b, port), |tcp| tcp.syn = true);
            let question = |port| udp(at(c, 4_100), at(b, port), b"a question");
            for segment in [opening(80), question(53)] {
                assert_eq!(passed(&corp, &segment, &[segment.packet()]).await, 1, "{segment:?}");
            }
            for (allowed, other) in [(opening(80), opening(81)), (question(53), question(54))] {
                let [allowed, other] = [allowed, other].map(Segment::damaged);
                assert_eq!(passed(&corp, &other, &[other.packet()]).await, 0, "{other:?}");
                let count = passed(&corp, &allowed, &[allowed.packet()]).await;
                assert_eq!(count, u64::from(!is_checked), "{allowed:?}");
            }
            for (what, segment) in [
                (
                    "every flag",
                    tcp(at(c, 4_101), at(b, 80), |tcp| (tcp.fin, tcp.psh, tcp.urg) = (true, true, true)),
                ),
                ("no flag", tcp(at(c, 4_102), at(b, 80), |_| ())),
                (
                    "an opening that ends",
                    tcp(at(c, 4_103), at(b, 80), |tcp| (tcp.syn, tcp.fin) = (true, true)),
                ),
                ("a reset", tcp(at(c, 4_104), at(b, 80), |tcp| tcp.rst = true)),
            ] {
                assert_eq!(passed(&corp, &segment, &[segment.packet()]).await, 0, "{what}: {segment:?}");
            }
        }
    });
}

#[test]
fn a_question_is_answered_from_where_it_was_asked_and_to_where_it_came_from() {
    if !enter_test("a_question_is_answered_from_where_it_was_asked_and_to_where_it_came_from") {
        return;
    }
    in_runtime(async {
        let corp = attacked().await;
        deafen(&corp);
        for (c, b) in pairs(&corp) {
            let at = |ip, port| SocketAddr::new(ip, port);
            let socket = corp.host("b").within(|| {
                let socket = UdpSocket::bind((b, 7_100)).expect("the port is free");
                socket.send_to(b"a question", at(c, 54)).expect("it is sent");
                socket
            });
            for (from, to, passes) in [(54, 7_100, 1), (55, 7_100, 0), (54, 7_101, 0), (54, 7_100, 1)] {
                let answer = udp(at(c, from), at(b, to), b"an answer");
                assert_eq!(passed(&corp, &answer, &[answer.packet()]).await, passes, "{answer:?}");
            }
            drop(socket);
        }
    });
}

#[test]
fn neither_fragments_nor_extension_headers_hide_a_port() {
    if !enter_test("neither_fragments_nor_extension_headers_hide_a_port") {
        return;
    }
    in_runtime(async {
        let corp = attacked().await;
        deafen(&corp);
        for (c, b) in pairs(&corp) {
            let at = |ip, port| SocketAddr::new(ip, port);
            let (allowed, other) =
                (udp(at(c, 5_000), at(b, 53), &[1; 64]), udp(at(c, 5_000), at(b, 54), &[2; 64]));
            assert_eq!(passed(&corp, &allowed, &allowed.fragments(16)).await, 1, "{b}: put together");
            for first in [8, 16] {
                assert_eq!(passed(&corp, &other, &other.fragments(first)).await, 0, "{b}: {first}");
            }
            let [first, second] = other.fragments(16);
            assert_eq!(passed(&corp, &other, &[second.clone(), first]).await, 0, "{b}: the wrong way round");
            assert_eq!(passed(&corp, &other, &[second]).await, 0, "{b}: the second alone");
            let split = tcp(at(c, 5_001), at(b, 81), |tcp| tcp.syn = true);
            for first in [8, 16] {
                assert_eq!(passed(&corp, &split, &split.fragments(first)).await, 0, "{b}: {first}");
            }
            if b.is_ipv4() {
                continue;
            }
            let headers = [
                vec![IpNumber::IPV6_HEADER_HOP_BY_HOP],
                vec![IpNumber::IPV6_DESTINATION_OPTIONS],
                vec![IpNumber::IPV6_ROUTE_HEADER],
                vec![IpNumber::IPV6_DESTINATION_OPTIONS, IpNumber::IPV6_HEADER_HOP_BY_HOP],
                vec![IpNumber::IPV6_ROUTE_HEADER, IpNumber::IPV6_DESTINATION_OPTIONS],
            ];
            for headers in headers {
                let behind = |segment: Segment| headers.iter().fold(segment, |it, header| it.behind(*header));
                let segment = behind(udp(at(c, 5_002), at(b, 53), b"allowed"));
                assert_eq!(passed(&corp, &segment, &[segment.packet()]).await, 1, "{headers:?}");
                for segment in [
                    behind(udp(at(c, 5_002), at(b, 54), b"not allowed")),
                    behind(tcp(at(c, 5_002), at(b, 81), |tcp| tcp.syn = true)),
                    behind(echo_reply(Ends::new(c, b))),
                ] {
                    assert_eq!(passed(&corp, &segment, &[segment.packet()]).await, 0, "{headers:?}");
                    let parts = segment.fragments(8);
                    assert_eq!(passed(&corp, &segment, &parts).await, 0, "{headers:?} in parts");
                }
            }
        }
    });
}

#[test]
fn a_member_gets_nothing_by_other_routes_keys_and_addresses() {
    if !enter_test("a_member_gets_nothing_by_other_routes_keys_and_addresses") {
        return;
    }
    in_runtime(async {
        let corp = attacked().await;
        let (a, b, c) = (corp.host("a"), corp.host("b"), corp.host("c"));
        // It has come to know the key and the endpoint of a, and takes everything to lie behind both.
        let key = run(a, "wg show nm-corp public-key").await.trim().to_owned();
        let port = run(a, "wg show nm-corp listen-port").await.trim().to_owned();
        let [a4, a6] = corp.addresses("a");
        run(c, &format!("wg set nm-corp peer {key} endpoint {}:{port} allowed-ips {a4},{a6}", a.ipv4()))
            .await;
        for service in [Service::Tcp(80), Service::Udp(53), Service::Icmp] {
            assert_eq!(corp.probe("c", "a", service).await, NOTHING, "{service}: a does not know it");
        }
        // By the cable to an address of the network, past the tunnel, on a way that leads there and back.
        for ((b_mesh, c_mesh), v6) in
            corp.addresses("b").into_iter().zip(corp.addresses("c")).zip([false, true])
        {
            let [b_cable, c_cable]: [IpAddr; 2] =
                [b, c].map(|host| if v6 { host.ipv6().into() } else { host.ipv4().into() });
            let port_of = |at: IpAddr| {
                let listed = underlay(&["-o", "route", "get", &at.to_string()]);
                listed
                    .split_whitespace()
                    .skip_while(|word| *word != "dev")
                    .nth(1)
                    .expect("a route")
                    .to_owned()
            };
            underlay(&["route", "add", &b_mesh.to_string(), "dev", &port_of(b_cable)]);
            underlay(&["route", "add", &c_mesh.to_string(), "dev", &port_of(c_cable)]);
            let (ip, router) = if v6 { ("ip -6", "2001:2::1") } else { ("ip", "198.18.0.1") };
            run_all(
                c,
                &[
                    &format!("{ip} rule add pref 1 to {b_mesh} lookup 77"),
                    &format!("{ip} route add {b_mesh} via {router} dev eth0 onlink table 77"),
                ],
            )
            .await;
        }
        for service in [Service::Tcp(80), Service::Udp(53), Service::Icmp] {
            assert_eq!(corp.probe("c", "b", service).await, NOTHING, "{service}: by the cable");
        }
        run_all(c, &["ip rule del pref 1", "ip -6 rule del pref 1"]).await;
        deafen(&corp);
        assert_sends_only_as_itself(&corp).await;
    });
}

#[test]
fn no_other_address_of_a_host_is_asked_through_the_network() {
    if !enter_test("no_other_address_of_a_host_is_asked_through_the_network") {
        return;
    }
    in_runtime(async {
        let corp = attacked().await;
        deafen(&corp);
        let (b, c) = (corp.host("b"), corp.host("c"));
        let others = ["172.31.7.7", "fd31::7"];
        let key = run(b, "wg show nm-corp public-key").await.trim().to_owned();
        let [b4, b6] = corp.addresses("b");
        let ranges = format!("{b4},{b6},{}", others.join(","));
        run(c, &format!("wg set nm-corp peer {key} allowed-ips {ranges}")).await;
        for other in others {
            run(b, &format!("ip address add {other} dev lo")).await;
            run(c, &format!("ip route add {other} dev nm-corp")).await;
        }
        for ((own, mesh), other) in pairs(&corp).zip(others) {
            for (to, passes) in [(mesh, 1), (other.parse().expect("an address"), 0)] {
                let question = udp(SocketAddr::new(own, 6_100), SocketAddr::new(to, 53), b"a question");
                assert_eq!(passed(&corp, &question, &[question.packet()]).await, passes, "{to}");
            }
        }
    });
}

#[test]
fn a_member_of_one_network_asks_for_nothing_in_another_that_the_host_is_in() {
    if !enter_test("a_member_of_one_network_asks_for_nothing_in_another_that_the_host_is_in") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let network = |name: &str, number: u8, acl: &str| {
            format!(
                "network \"{name}\" {{ ipv4 \"10.{number}.0.0/24\"; acl \"{acl}\"; access-key \"k\" uses=9 }}\n"
            )
        };
        let tokens = mesh.apply(&(network("open", 41, "allow") + &network("shut", 42, "deny"))).await;
        let [a, mut b] = [mesh.agent("a").await, mesh.agent("b").await];
        a.join(&tokens["open/access-key/k"], &[]).await.expect("it joins");
        for name in ["open", "shut"] {
            b.join(&tokens[&format!("{name}/access-key/k")], &[]).await.expect("it joins");
        }
        b.start_daemon(&[]).expect("the agent starts");
        let [open, shut] = [addresses(&b, "open").await[0], addresses(&b, "shut").await[0]];
        let _service = b.host().within(|| TcpListener::bind(("0.0.0.0", 4_022))).expect("the port is free");
        let asked = |at: IpAddr| {
            let at = SocketAddr::new(at, 4_022);
            a.host().within(|| TcpStream::connect_timeout(&at, SECOND / 2)).is_ok()
        };
        a.netclient(&["pull", "--network", "open"]).await.expect("it runs");
        eventually("it is asked where it may be", 10 * SECOND, async || asked(open)).await;
        let key = run(b.host(), "wg show nm-open public-key").await.trim().to_owned();
        run(a.host(), &format!("wg set nm-open peer {key} allowed-ips {open},{shut}")).await;
        run(a.host(), &format!("ip route add {shut} dev nm-open")).await;
        assert!(!asked(shut), "its network lets nobody in");
        // The way there is one: without the table it is asked.
        b.kill_daemon().await.expect("it is killed");
        run(b.host(), "nft delete table inet nm-access-nm-shut").await;
        assert!(asked(shut), "it would be");
    });
}

/// With an address of `a`, which `b` would let in, and with one that nobody has, nothing arrives at `b`.
async fn assert_sends_only_as_itself(corp: &Corp) {
    let (b, c) = (corp.host("b"), corp.host("c"));
    for ((own, to), member) in pairs(corp).zip(corp.addresses("a")) {
        let nobody = if to.is_ipv4() { "10.40.0.99" } else { "fd40:40::99" }.parse().expect("an address");
        for from in [member, nobody] {
            filter::watch(b, INTERFACE, "");
            let at = |ip, port| SocketAddr::new(ip, port);
            let segment = udp(at(from, 6_000), at(to, 53), b"as somebody else");
            send(c, &segment, &[segment.packet()]);
            // What is sent after it has arrived: so it is not on its way any more.
            let last = udp(at(own, 6_000), at(to, 53), b"as itself");
            send(c, &last, &[last.packet()]);
            eventually("the last one passes", 5 * SECOND, async || filter::watched(b).1 >= 1).await;
            assert_eq!(filter::watched(b), (1, 1), "{from} at {to}");
            filter::forget(b);
        }
    }
    assert!(!corp.listeners("b").has_heard(b"as somebody else"));
}

#[test]
fn behind_a_hub_a_member_sends_only_as_itself() {
    if !enter_test("behind_a_hub_a_member_sends_only_as_itself") {
        return;
    }
    in_runtime(async {
        let mut corp = attacked_in(&["a", "b", "c", "h"], &format!("hub \"h\"\n{RULES}")).await;
        // Whatever it takes to lie behind the hub, the hub and who receives it judge.
        for service in [Service::Tcp(80), Service::Udp(53), Service::Icmp] {
            assert_eq!(corp.probe("c", "a", service).await, NOTHING, "{service}");
            assert_eq!(corp.probe("c", "h", service).await, NOTHING, "{service}");
        }
        deafen(&corp);
        assert_sends_only_as_itself(&corp).await;
        // A hub that gives it an address that no member has, and passes on what comes from there; no agent puts
        // it right meanwhile.
        for node in ["b", "h"] {
            corp.agent_mut(node).kill_daemon().await.expect("it is killed");
        }
        let (b, c, h) = (corp.host("b"), corp.host("c"), corp.host("h"));
        let nobody = ["10.40.0.77", "fd40:40::77"];
        for (host, peer, more) in [(h, c, corp.addresses("c")), (b, h, corp.addresses("a"))] {
            let key = run(peer, "wg show nm-corp public-key").await.trim().to_owned();
            let ranges = more.iter().map(ToString::to_string).chain(nobody.map(str::to_owned));
            let ranges = ranges.collect::<Vec<_>>().join(",");
            run(host, &format!("wg set nm-corp peer {key} allowed-ips {ranges}")).await;
        }
        for (nobody, to) in nobody.into_iter().zip(corp.addresses("b")) {
            let from = SocketAddr::new(nobody.parse().expect("an address"), 6_000);
            let segment = udp(from, SocketAddr::new(to, 53), b"as nobody");
            let family = if to.is_ipv4() { "ip" } else { "ip6" };
            filter::watch(b, INTERFACE, &format!("{family} saddr {nobody}"));
            // A userspace device loses the session of a peer that `wg set` changes: what is sent before the next
            // handshake is lost.
            eventually("it passes the hub", 5 * SECOND, async || {
                send(c, &segment, &[segment.packet()]);
                filter::watched(b).0 > 0
            })
            .await;
            assert_eq!(filter::watched(b).1, 0, "{nobody}");
            filter::forget(b);
        }
        assert!(!corp.listeners("b").has_heard(b"as nobody"));
    });
}

#[test]
fn what_is_behind_a_node_gets_no_stray_packets() {
    if !enter_test("what_is_behind_a_node_gets_no_stray_packets") {
        return;
    }
    in_runtime(async {
        let corp = attacked().await;
        deafen(&corp);
        let _inner = container(&corp.mesh.underlay, corp.host("b")).await;
        // Its own addresses are led to b, which forwards.
        let key = run(corp.host("b"), "wg show nm-corp public-key").await.trim().to_owned();
        let [b4, b6] = corp.addresses("b");
        run_all(
            corp.host("c"),
            &[
                &format!("wg set nm-corp peer {key} allowed-ips {b4},{b6},172.17.0.0/24,fd17::/64"),
                "ip route add 172.17.0.0/24 dev nm-corp",
                "ip -6 route add fd17::/64 dev nm-corp",
            ],
        )
        .await;
        for (c, container) in corp.addresses("c").into_iter().zip(["172.17.0.2", "fd17::2"]) {
            let to: IpAddr = container.parse().expect("an address");
            let at = |ip, port| SocketAddr::new(ip, port);
            for (what, segment) in [
                ("a question", tcp(at(c, 4_001), at(to, 80), |tcp| tcp.syn = true)),
                ("an answer", tcp(at(c, 80), at(to, 4_002), |tcp| (tcp.syn, tcp.ack) = (true, true))),
                ("a reset", tcp(at(c, 80), at(to, 4_003), |tcp| tcp.rst = true)),
                ("a datagram", udp(at(c, 53), at(to, 4_004), b"stray")),
                ("an echo", echo_reply(Ends::new(c, to))),
            ] {
                assert_eq!(passed(&corp, &segment, &[segment.packet()]).await, 0, "{what}: {segment:?}");
            }
        }
    });
}
