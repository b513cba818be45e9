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

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use end_to_end::gateways::{carrier, joined, network, seen_by};
use end_to_end::lan::Lan;
use end_to_end::{Mesh, addresses, eventually, in_runtime, patience, run, run_all, text_of};
use nmplan::lab::{Agent, Host, enter_test};

/// Within this time a change is applied by agents that are connected.
const APPLIED: Duration = Duration::from_secs(10);

async fn pings(from: &Host, to: IpAddr) -> bool {
    from.ping(to, Duration::from_millis(500)).await.expect("sockets").is_some()
}

async fn comes_to_ping(from: &Host, to: IpAddr) {
    let what = format!("{} pings {to}", from.name());
    eventually(&what, APPLIED, async || pings(from, to).await).await;
}

/// Everything of a host's network that an agent may change, and what others have there beside it.
async fn state(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    for command in [
        "ip -oneline link show",
        "ip -oneline address show scope global",
        "ip rule show",
        "ip -6 rule show",
        "ip route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
    ] {
        lines.extend(run(host, command).await.lines().map(ToOwned::to_owned));
    }
    let switches = host.within(|| {
        let all = netclient::system::forwarding::observe();
        all.into_iter().map(|(switch, value)| format!("{switch} {value}")).collect::<Vec<_>>()
    });
    lines.extend(switches);
    lines
}

/// Waits until a host is as it was.
///
/// # Panics
///
/// When it is not within [`APPLIED`], with what is missing and what is there instead.
async fn comes_to_be_as(host: &Host, before: &[String]) {
    let deadline = Instant::now() + APPLIED * patience();
    let mut after = state(host).await;
    while after != before && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = state(host).await;
    }
    let without = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).cloned().collect()
    };
    let (missing, new) = (without(before, &after), without(&after, before));
    assert!(after == before, "{} is not as it was: missing {missing:#?}, new {new:#?}", host.name());
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
        let agents = vec![mesh.agent("a").await, mesh.agent("gw-1").await];
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
        let before = state(agents[1].host()).await;
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
        comes_to_be_as(gw, &before).await;
    });
}

#[test]
fn hosts_behind_two_gateways_reach_each_other() {
    if !enter_test("hosts_behind_two_gateways_reach_each_other") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = vec![mesh.agent("gw-1").await, mesh.agent("gw-2").await];
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
        let agents = vec![mesh.agent("a").await, mesh.agent("gw-1").await];
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
        let agents = vec![mesh.agent("a").await, mesh.agent("gw-1").await];
        let operator = mesh.underlay.host("o").await.expect("a host");
        let lan = Lan::new(&mesh.underlay, "inner", 50, &[agents[0].host()]).await;
        let before = [state(agents[0].host()).await, state(agents[1].host()).await];
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
        for (agent, before) in agents.iter().zip(&before) {
            if agent.host().name() == "a" {
                leave(agent).await;
                comes_to_be_as(agent.host(), before).await;
            }
        }
    });
}
