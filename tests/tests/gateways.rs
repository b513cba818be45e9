//! What a network reaches through nodes of it, and what these leave behind on their hosts.
//!
//! ```text
//! nmserver ==== underlay ==== a (a member), gw-1, gw-2 (gateways), o (a host in no mesh)
//!
//! gw-1, gw-2 ---- lan ---- inner (a host in no mesh)
//! ```
//!
//! The underlay is 198.18.0.0/16 and 2001:2::/64; lan is 192.168.50.0/24 and fd50::/64.

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use end_to_end::gateways::{agents, carrier, filter_paths, joined, network, seen_by};
use end_to_end::host_state::HostState;
use end_to_end::lan::Lan;
use end_to_end::{Mesh, addresses, all_ping_all, eventually, in_runtime, packets, run, run_all, text_of};
use nmplan::lab::{Agent, Host, enter_test};

/// Within this time a change is applied by agents that are connected.
const APPLIED: Duration = Duration::from_secs(10);

/// More packets than a host sends and receives in some seconds in which agents only check in.
const FEW: u64 = 200;

async fn pings(from: &Host, to: IpAddr) -> bool {
    from.ping(to, Duration::from_millis(500)).await.expect("sockets").is_some()
}

async fn comes_to_ping(from: &Host, to: IpAddr) {
    let what = format!("{} pings {to}", from.name());
    eventually(&what, APPLIED, async || pings(from, to).await).await;
}

/// The problems that an agent reports, as its document has them.
async fn problems(agent: &Agent) -> String {
    agent.status().await.expect("it answers")["networks"][0]["problems"].to_string()
}

async fn leave(agent: &Agent) {
    let output = agent.netclient(&["leave", "--network", "corp"]).await.expect("it runs");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
}

/// How many packets a chain of the agent's own table has dropped.
async fn dropped(host: &Host, chain: &str) -> u64 {
    let listed = run(host, &format!("nft list chain inet nm-own {chain}")).await;
    let counted = listed.split("counter packets ").skip(1);
    counted.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

fn office(lan: &Lan, via: &str, more: &str) -> String {
    format!("egress \"office\" {more} {{ via {via}; ranges {} }}", lan.ranges())
}

#[test]
fn a_lan_behind_a_gateway_is_reached_and_reaches_back_and_nothing_of_it_stays() {
    if !enter_test("a_lan_behind_a_gateway_is_reached_and_reaches_back_and_nothing_of_it_stays") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = agents(&mesh, ["a", "gw-1"]).await;
        let lan = Lan::new(&mesh.underlay, "inner", 50, &[agents[1].host()]).await;
        // What others have there, throughout.
        let theirs = [
            "nft add table inet theirs",
            "nft add chain inet theirs forward { type filter hook forward priority 5 ; }",
            "nft add rule inet theirs forward ip daddr 203.0.113.7 drop",
            "ip route add 203.0.113.0/24 dev lan",
            "ip rule add pref 20000 to 203.0.113.0/24 lookup main",
        ];
        run_all(agents[1].host(), &theirs).await;
        let before = HostState::of(agents[1].host()).await;
        let text = |nat: &str| network(&["a", "gw-1"], &office(&lan, "\"gw-1\"", nat));
        let mut agents = joined(&mesh, agents, &text("nat=#false")).await;
        let [a, gw] = [&agents[0], &agents[1]].map(Agent::host);
        let [gateway, inner] = [lan.addresses(1), lan.addresses(254)];
        for to in inner {
            comes_to_ping(a, to).await;
        }
        for ((to, gateway), own) in inner.into_iter().zip(gateway).zip(addresses(&agents[0], "corp").await) {
            assert_eq!(own.is_ipv4(), to.is_ipv4());
            assert_eq!(seen_by(&lan.inner, to, a), Some(own), "with its own address");
            assert_eq!(seen_by(a, own, &lan.inner), Some(to), "and the other way round");
            comes_to_ping(a, gateway).await;
        }
        // The gateway forwards for the mesh alone: it is nobody's router to elsewhere.
        let operator = mesh.underlay.host("o").await.expect("a host");
        assert!(!pings(&lan.inner, operator.ipv4().into()).await);
        assert!(!pings(&lan.inner, operator.ipv6().into()).await);
        assert!(dropped(gw, "opened").await >= 2);

        mesh.apply(&text("")).await;
        for (to, gateway) in inner.into_iter().zip(gateway) {
            eventually("with the gateway's address", APPLIED, async || {
                seen_by(&lan.inner, to, a) == Some(gateway)
            })
            .await;
        }

        // Killed, and left by another process.
        agents[1].kill_daemon().await.expect("it is killed");
        leave(&agents[1]).await;
        let gw = agents[1].host();
        before.returns(gw, APPLIED).await;
    });
}

#[test]
fn hosts_behind_two_gateways_reach_each_other() {
    if !enter_test("hosts_behind_two_gateways_reach_each_other") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = agents(&mesh, ["gw-1", "gw-2"]).await;
        let one = Lan::new(&mesh.underlay, "one", 50, &[agents[0].host()]).await;
        let two = Lan::new(&mesh.underlay, "two", 51, &[agents[1].host()]).await;
        let egress = format!(
            "egress \"one\" via=\"gw-1\" nat=#false {{ ranges {} }}\negress \"two\" via=\"gw-2\" nat=#false {{ ranges {} }}",
            one.ranges(),
            two.ranges()
        );
        let agents = joined(&mesh, agents, &network(&["gw-1", "gw-2"], &egress)).await;
        for (here, there) in [(&one, &two), (&two, &one)] {
            for (from, to) in here.addresses(254).into_iter().zip(there.addresses(254)) {
                comes_to_ping(&here.inner, to).await;
                assert_eq!(seen_by(&there.inner, to, &here.inner), Some(from));
            }
        }
        // Who is connected to such a range keeps it.
        let status = agents[0].status().await.expect("it answers");
        assert_eq!(status["networks"][0]["problems"], serde_json::Value::Null, "{status}");
        assert_eq!(carrier(&agents[0], "192.168.51.0/24").await.as_deref(), Some("gw-2"), "{status}");
        assert!(status["networks"][0]["forwards"].to_string().contains("192.168.50.0/24"), "{status}");
    });
}

#[test]
fn a_gateway_says_at_once_what_it_does_not_carry() {
    if !enter_test("a_gateway_says_at_once_what_it_does_not_carry") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = agents(&mesh, ["a", "gw-1"]).await;
        let lan = Lan::new(&mesh.underlay, "inner", 50, &[agents[1].host()]).await;
        let text = network(&["a", "gw-1"], &office(&lan, "\"gw-1\"", "nat=#false"));
        let agents = joined(&mesh, agents, &text).await;
        let gw = &agents[1];
        assert!(!problems(gw).await.contains("egress"), "{}", problems(gw).await);
        for (what, plugged, says) in [("its cable is out", false, true), ("it is in again", true, false)] {
            lan.plug(0, plugged).await;
            let took = eventually(what, Duration::from_secs(3), async || {
                problems(gw).await.contains("corp/egress/office") == says
            })
            .await;
            eprintln!("{what}: reported after {took:?}");
        }
        run(gw.host(), "ip link set lan down").await;
        eventually("the interface is down", Duration::from_secs(3), async || {
            problems(gw).await.contains("\"egress\":\"office\"")
        })
        .await;
        let reported = async || {
            let status = mesh.nmplan(&["status", "--json"]).await;
            text_of(&status.stdout)
        };
        eventually("the server has it", Duration::from_secs(3), async || {
            reported().await.contains("corp/egress/office")
        })
        .await;
        run(gw.host(), "ip link set lan up").await;
        let [_, v6] = lan.addresses(1);
        run(gw.host(), &format!("ip address add {v6}/64 dev lan nodad")).await;
        eventually("it is up again", Duration::from_secs(3), async || {
            !problems(gw).await.contains("corp/egress/office")
        })
        .await;
        for to in lan.addresses(254) {
            comes_to_ping(agents[0].host(), to).await;
        }
    });
}

/// Asks or changes the routes of the underlay itself.
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    text_of(&output.stdout)
}

/// The interface by which packets to an address leave a host.
async fn way(host: &Host, to: &str) -> String {
    let listed = run(host, &format!("ip route get {to}")).await;
    listed.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap_or("none").to_owned()
}

#[test]
fn an_internet_gateway_takes_what_is_for_nowhere_else() {
    if !enter_test("an_internet_gateway_takes_what_is_for_nowhere_else") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = agents(&mesh, ["a", "gw-1"]).await;
        let operator = mesh.underlay.host("o").await.expect("a host");
        let lan = Lan::new(&mesh.underlay, "inner", 50, &[agents[0].host()]).await;
        let before = HostState::of(agents[0].host()).await;
        let with = |body: &str| network(&["a", "gw-1"], body);
        let agents = joined(&mesh, agents, &with("")).await;
        let [a, gw] = [&agents[0], &agents[1]].map(Agent::host);
        let exit = |ranges: &str| format!("egress \"out\" via=\"gw-1\" {{ ranges {ranges}; for \"a\" }}");
        mesh.apply(&with(&exit("\"0.0.0.0/0\" \"::/0\""))).await;
        for (own, to, gateway) in [
            (a.ipv4().into(), IpAddr::from(operator.ipv4()), IpAddr::from(gw.ipv4())),
            (a.ipv6().into(), operator.ipv6().into(), gw.ipv6().into()),
        ] {
            eventually("as the gateway", APPLIED, async || seen_by(&operator, to, a) == Some(gateway)).await;
            // Whoever comes by the cable is answered by it.
            assert_eq!(seen_by(a, own, &operator), Some(to));
        }
        for (to, exit) in [
            ("198.18.0.77", "nm-corp"),
            ("2001:2::77", "nm-corp"),
            ("198.18.0.77 mark 0x10", "eth0"),
            ("192.168.50.77", "lan"),
            ("fd50::77", "lan"),
            ("10.40.0.202", "nm-corp"),
            ("224.0.0.251", "eth0"),
        ] {
            assert_eq!(way(a, to).await, exit, "{to}");
        }
        for to in lan.addresses(254) {
            assert!(pings(a, to).await, "its LAN stays");
        }
        assert!(!problems(&agents[0]).await.contains("range-"), "{}", problems(&agents[0]).await);
        // Nobody comes in by the gateway, though members let every address in from there.
        let member = addresses(&agents[0], "corp").await;
        for (to, gateway) in member.iter().zip([IpAddr::from(gw.ipv4()), gw.ipv6().into()]) {
            run(&operator, &format!("ip route add {to} via {gateway} dev eth0 onlink")).await;
            ip(&["route", "add", &to.to_string(), "dev", &gw.cable()]);
            assert!(!pings(&operator, *to).await, "{to}");
        }
        assert!(dropped(gw, "enter").await >= 2);
        // Control traffic goes past it: the gateway may go, and the repair arrives.
        run(gw, "ip link set eth0 down").await;
        assert!(!pings(a, operator.ipv4().into()).await, "and nothing is sent in the clear");
        eventually("it is refused", APPLIED, async || {
            let status = agents[0].status().await.expect("it answers");
            let refused = status["networks"][0]["refused"].to_string();
            refused.contains("\"0.0.0.0/0\"") && refused.contains("\"::/0\"")
        })
        .await;
        for to in [IpAddr::from(operator.ipv4()), operator.ipv6().into()] {
            eventually("the host itself refuses it", APPLIED, async || {
                let error = a.within(|| {
                    TcpStream::connect_timeout(&SocketAddr::new(to, 80), Duration::from_millis(200))
                        .expect_err("nobody carries it")
                });
                let kinds = [std::io::ErrorKind::HostUnreachable, std::io::ErrorKind::NetworkUnreachable];
                kinds.contains(&error.kind())
            })
            .await;
        }
        mesh.apply(&with("")).await;
        comes_to_ping(a, operator.ipv4().into()).await;
        comes_to_ping(a, operator.ipv6().into()).await;
        run(gw, "ip link set eth0 up").await;
        for (route, via) in [("ip route", "198.18.0.1"), ("ip -6 route", "2001:2::1")] {
            run(gw, &format!("{route} replace default via {via} dev eth0 onlink")).await;
        }
        leave(&agents[0]).await;
        before.returns(a, APPLIED).await;
    });
}

#[test]
fn a_hub_carries_others_to_the_internet_and_keeps_its_own_way_there() {
    if !enter_test("a_hub_carries_others_to_the_internet_and_keeps_its_own_way_there") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = agents(&mesh, ["a", "hub", "gw-1"]).await;
        let operator = mesh.underlay.host("o").await.expect("a host");
        let before = HostState::of(agents[1].host()).await;
        let with = |body: &str| network(&["a", "hub", "gw-1"], &format!("hub \"hub\"\n{body}"));
        let exit = |of: &str| {
            with(&format!("egress \"out\" via=\"gw-1\" {{ ranges \"0.0.0.0/0\" \"::/0\"; for {of} }}"))
        };
        let agents = joined(&mesh, agents, &with("")).await;
        let [a, hub, gw] = [&agents[0], &agents[1], &agents[2]].map(Agent::host);
        mesh.apply(&exit("\"a\"")).await;
        for (to, gateway, own) in [
            (IpAddr::from(operator.ipv4()), IpAddr::from(gw.ipv4()), IpAddr::from(hub.ipv4())),
            (operator.ipv6().into(), gw.ipv6().into(), hub.ipv6().into()),
        ] {
            eventually("as the gateway", APPLIED, async || seen_by(&operator, to, a) == Some(gateway)).await;
            assert_eq!(seen_by(&operator, to, hub), Some(own), "the hub is not one that it is for");
        }
        assert_eq!(way(hub, "198.18.0.77").await, "eth0");
        assert!(!problems(&agents[1]).await.contains("range-"), "{}", problems(&agents[1]).await);
        // And where it is one, it is.
        mesh.apply(&exit("\"a\" \"hub\"")).await;
        eventually("for the hub too", APPLIED, async || {
            seen_by(&operator, operator.ipv4().into(), hub) == Some(gw.ipv4().into())
        })
        .await;
        mesh.apply(&with("")).await;
        for agent in &agents[..2] {
            comes_to_ping(agent.host(), operator.ipv4().into()).await;
        }
        leave(&agents[1]).await;
        before.returns(hub, APPLIED).await;
    });
}

/// Ranges that hold an address of either family, and nothing else.
fn alone(v4: Ipv4Addr, v6: Ipv6Addr) -> String {
    format!("\"{v4}/32\" \"{v6}/128\"")
}

#[test]
fn a_forwarded_range_that_holds_server_endpoint_or_router_cuts_nobody_off() {
    if !enter_test("a_forwarded_range_that_holds_server_endpoint_or_router_cuts_nobody_off") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = agents(&mesh, ["a", "b", "gw-1"]).await;
        let text = |keepalive: usize, body: &str| {
            network(&["a", "b", "gw-1"], body)
                .replace("keepalive \"5s\"", &format!("keepalive \"{keepalive}s\""))
        };
        let agents = joined(&mesh, agents, &text(20, "")).await;
        let [a, b, gw] = [&agents[0], &agents[1], &agents[2]].map(Agent::host);
        let (server, router) = (mesh.server.host(), mesh.underlay.addresses());
        let nobody: [IpAddr; 2] = ["198.18.0.99", "2001:2::99"].map(|text| text.parse().expect("an address"));
        for (keepalive, ranges, held) in [
            (21, alone(server.ipv4(), server.ipv6()), Some(server)),
            (22, alone(b.ipv4(), b.ipv6()), Some(b)),
            (23, alone(gw.ipv4(), gw.ipv6()), None),
            (24, alone(router.0, router.1), None),
            (25, "\"198.18.0.0/24\" \"2001:2::/112\"".to_owned(), Some(server)),
        ] {
            let egress = format!("egress \"under\" via=\"gw-1\" {{ ranges {ranges} }}");
            mesh.apply_past("cut-off", &text(keepalive, &egress)).await;
            for agent in &agents {
                eventually("the range and what comes later is applied", APPLIED, async || {
                    let keepalives = run(agent.host(), "wg show nm-corp persistent-keepalive").await;
                    keepalives.contains(&format!("\t{keepalive}"))
                })
                .await;
            }
            let before: Vec<_> = agents.iter().map(|agent| packets(agent.host(), "eth0")).collect();
            for (host, to) in agents.iter().flat_map(|agent| nobody.map(|to| (agent.host(), to))) {
                assert!(!pings(host, to).await, "{to} is nobody's");
            }
            for (agent, before) in agents.iter().zip(before) {
                let count = packets(agent.host(), "eth0") - before;
                assert!(count < FEW, "{count} packets at {} with {ranges}", agent.host().name());
            }
            all_ping_all(&agents, "corp").await;
            // What others send there takes the range's way.
            for (to, gateway) in held.into_iter().flat_map(|held| {
                [(IpAddr::from(held.ipv4()), IpAddr::from(gw.ipv4())), (held.ipv6().into(), gw.ipv6().into())]
            }) {
                let held = held.expect("a host");
                eventually("by the gateway", APPLIED, async || seen_by(held, to, a) == Some(gateway)).await;
            }
        }
        // The agents have checked in all the while, and the repair arrives.
        let status = mesh.nmplan(&["status", "--json"]).await;
        assert!(!text_of(&status.stdout).contains("\"away\":true"), "{}", text_of(&status.stdout));
        mesh.apply(&text(20, "")).await;
        eventually("it is repaired", APPLIED, async || way(a, &server.ipv4().to_string()).await == "eth0")
            .await;
        all_ping_all(&agents, "corp").await;
    });
}

#[test]
fn what_is_for_nobody_is_not_sent_to_and_fro_between_gateways() {
    if !enter_test("what_is_for_nobody_is_not_sent_to_and_fro_between_gateways") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = agents(&mesh, ["gw-1", "gw-2"]).await;
        // Else what comes back is dropped for its sender, who is behind another interface.
        agents.iter().for_each(|agent| filter_paths(agent.host(), "0"));
        let lan = Lan::new(&mesh.underlay, "inner", 50, &[agents[0].host()]).await;
        // A part of the range is behind the first one; to the rest no route of its own leads.
        run_all(
            agents[0].host(),
            &["ip address add 172.16.0.1/24 dev lan", "ip address add fd99::1/64 dev lan nodad"],
        )
        .await;
        run_all(
            &lan.inner,
            &[
                "ip address add 172.16.0.254/24 dev lan",
                "ip address add fd99::fe/64 dev lan nodad",
                "ip route add 172.0.0.0/8 via 172.16.0.1",
                "ip route add fd98::/15 via fd99::1",
            ],
        )
        .await;
        let egress = r#"
            egress "wide" via="gw-1" interface="lan" nat=#false { ranges "172.16.0.0/12" "fd99::/16" }
            egress "wider" via="gw-2" interface="eth0" nat=#false { ranges "172.0.0.0/8" "fd98::/15" }"#;
        let agents = joined(&mesh, agents, &network(&["gw-1", "gw-2"], egress)).await;
        let hosts = [&agents[0], &agents[1]].map(Agent::host);
        let (gw, nobody) = (hosts[0], ["172.20.0.9", "fd99:9::9"]);
        for to in nobody {
            assert_eq!(way(hosts[1], to).await, "nm-corp");
            assert_eq!(way(gw, to).await, "eth0", "what it carries is sent into no network");
        }
        let assert_few = async |what: &str| {
            let before = hosts.map(|host| packets(host, "nm-corp"));
            for to in nobody {
                assert!(!pings(&lan.inner, to.parse().expect("an address")).await, "{to} is nobody's");
            }
            for (host, before) in hosts.iter().zip(before) {
                let count = packets(host, "nm-corp") - before;
                assert!(count < 8, "{what}: {count} packets at {}", host.name());
            }
        };
        assert_few("with default routes").await;
        // Without a default route nothing but the other's range leads there.
        for line in [
            "ip route add 198.18.0.0/16 via 198.18.0.1 dev eth0 onlink",
            "ip -6 route add 2001:2::/64 via 2001:2::1 dev eth0 onlink",
            "ip route del default",
            "ip -6 route del default",
        ] {
            run(gw, line).await;
        }
        for to in nobody {
            assert_eq!(way(gw, to).await, "nm-corp");
        }
        let before = dropped(gw, "forward").await;
        assert_few("without default routes").await;
        assert!(dropped(gw, "forward").await >= before + 2, "both came back, and went no further");
    });
}

#[test]
fn a_gateway_that_uses_another_one_carries_what_is_its_own() {
    if !enter_test("a_gateway_that_uses_another_one_carries_what_is_its_own") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = agents(&mesh, ["a", "gw-1", "gw-2"]).await;
        let operator = mesh.underlay.host("o").await.expect("a host");
        let there: [IpAddr; 2] =
            ["203.0.113.9", "2001:db8:9::9"].map(|text| text.parse().expect("an address"));
        for to in there {
            run(
                &operator,
                &format!("ip address add {to} dev eth0{}", if to.is_ipv6() { " nodad" } else { "" }),
            )
            .await;
            ip(&["route", "add", &to.to_string(), "dev", &operator.cable()]);
        }
        let egress = r#"
            egress "site" via="gw-1" { ranges "203.0.113.0/24" "2001:db8:9::/48" }
            egress "out" via="gw-2" { ranges "0.0.0.0/0" "::/0" }"#;
        let agents = joined(&mesh, agents, &network(&["a", "gw-1", "gw-2"], egress)).await;
        let [a, gw, exit] = [&agents[0], &agents[1], &agents[2]].map(Agent::host);
        let of = |host: &Host| [IpAddr::from(host.ipv4()), host.ipv6().into()];
        for ((to, by), (elsewhere, exit)) in
            there.into_iter().zip(of(gw)).zip(of(&operator).into_iter().zip(of(exit)))
        {
            for from in [a, gw] {
                eventually("by its own gateway", APPLIED, async || seen_by(&operator, to, from) == Some(by))
                    .await;
                eventually("and all else by the other", APPLIED, async || {
                    seen_by(&operator, elsewhere, from) == Some(exit)
                })
                .await;
            }
        }
    });
}
