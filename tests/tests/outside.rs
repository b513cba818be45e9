//! No declared range cuts a host off from its repair: what carries tunnels and control traffic never enters a
//! mesh.
//!
//! ```text
//! nmserver ==== underlay ==== a, b    and o, an operator's host, which is in no mesh
//! ```
//!
//! The underlay is 198.18.0.0/16 and the network's range comes to hold it, with the server and all endpoints;
//! reverse paths are filtered strictly on every host.

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use end_to_end::{Mesh, addresses, all_ping_all, eventually, in_runtime, text_of};
use nmplan::lab::{Agent, Host, enter_test};

/// Within this time what others took away is back; a little more than the agent needs.
const REPAIRED: Duration = Duration::from_secs(3);

/// A network of a range that begins with these two bytes and a 0.
fn text(start: &str, length: u8, keepalive: &str) -> String {
    format!(
        r#"network "corp" {{
            ipv4 "{start}.0.0/{length}"; ipv6 "fd40:40::/64"; keepalive "{keepalive}"; check-in "2s"
            access-key "named" {{ for "a" "b" }}
            node "a" ipv4="{start}.0.201" ipv6="fd40:40::201"
            node "b" ipv4="{start}.0.202" ipv6="fd40:40::202"
        }}"#
    )
}

/// A range apart from the underlay.
fn apart() -> String {
    text("10.40", 24, "20s")
}

async fn run(host: &Host, line: &str) -> String {
    let mut words = line.split(' ');
    let mut command = host.command(words.next().expect("a program"));
    command.args(words);
    let output = host.run(command).await.expect("it is installed");
    assert!(output.status.success(), "{line}: {}", text_of(&output.stderr));
    text_of(&output.stdout)
}

/// Asks or changes the routes of the underlay itself.
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    text_of(&output.stdout)
}

async fn filter_strictly(host: &Host) {
    for name in ["all", "default", "eth0"] {
        host.write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1").expect("it can be written");
    }
}

async fn two(mesh: &Mesh, text: &str) -> Vec<Agent> {
    let tokens = mesh.apply(text).await;
    let mut agents = Vec::new();
    for name in ["a", "b"] {
        let mut agent = mesh.agent(name).await;
        filter_strictly(agent.host()).await;
        agent.join(&tokens["corp/access-key/named"], &[]).await.expect("it joins");
        agent.start_daemon(&[]).expect("the agent starts");
        agents.push(agent);
    }
    all_ping_all(&agents, "corp").await;
    agents
}

/// A host that is behind another one like a container: on a bridge of its own, 172.17.0.0/24, whose addresses
/// are masqueraded and whose port 80 is published as 8080.
async fn container(mesh: &Mesh, of: &Host) -> Host {
    let inner = mesh.underlay.host("box").await.expect("a host");
    let mut sleep = inner.command("sleep");
    sleep.arg("60");
    let mut holder = inner.start("sleep", sleep).expect("it starts");
    let pid = holder.id().expect("it runs");
    for line in [
        "ip link add docker0 type bridge",
        "ip address add 172.17.0.1/24 dev docker0",
        "ip link set docker0 up",
        "ip link add veth0 type veth peer name veth1",
        "ip link set veth0 master docker0",
        "ip link set veth0 up",
        &format!("ip link set veth1 netns {pid}"),
        "nft add table ip nat",
        "nft add chain ip nat post { type nat hook postrouting priority srcnat ; }",
        "nft add rule ip nat post ip saddr 172.17.0.0/24 oifname != docker0 masquerade",
        "nft add chain ip nat pre { type nat hook prerouting priority dstnat ; }",
        "nft add rule ip nat pre fib daddr type local tcp dport 8080 dnat to 172.17.0.2:80",
    ] {
        run(of, line).await;
    }
    for line in [
        "ip link set eth0 down",
        "ip address add 172.17.0.2/24 dev veth1",
        "ip link set veth1 up",
        "ip route replace default via 172.17.0.1",
    ] {
        run(&inner, line).await;
    }
    holder.kill().await.expect("it is killed");
    of.write("/proc/sys/net/ipv4/ip_forward", "1").expect("it can be written");
    for name in ["docker0", "veth0"] {
        of.write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1").expect("it can be written");
    }
    inner
}

/// How many packets a counter of the table `inet watch` has counted on a host.
async fn counted(host: &Host, name: &str) -> u64 {
    let listed = run(host, &format!("nft list counter inet watch {name}")).await;
    let packets = listed.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).expect("a counter")
}

async fn pings(from: &Host, to: IpAddr) -> bool {
    from.ping(to, Duration::from_millis(500)).await.expect("sockets").is_some()
}

fn connects(from: &Host, to: SocketAddr) -> bool {
    from.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok())
}

/// What the agent leaves on a host outside of its interfaces.
async fn traces(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    for command in [
        "ip rule show",
        "ip -6 rule show",
        "ip route show table all proto 200",
        "ip -6 route show table all proto 200",
        "nft list tables",
    ] {
        lines.extend(run(host, command).await.lines().map(ToOwned::to_owned));
    }
    lines
}

#[test]
fn a_range_that_holds_the_server_and_every_endpoint_cuts_nobody_off() {
    if !enter_test("a_range_that_holds_the_server_and_every_endpoint_cuts_nobody_off") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = two(&mesh, &apart()).await;
        let operator = mesh.underlay.host("o").await.expect("a host");
        assert!(mesh.server.host().ipv4().to_string().starts_with("198.18.0."));
        let held = mesh.file("held.kdl");
        std::fs::write(&held, text("198.18", 24, "20s")).expect("a file is written");
        let refused = mesh.nmplan(&["plan", "--project", "test", "-f", &held.display().to_string()]).await;
        assert_eq!(refused.status.code(), Some(3), "a plan refuses it: {refused:?}");
        mesh.apply_past("cut-off", &text("198.18", 24, "20s")).await;
        eventually("the range is applied", Duration::from_secs(10), async || {
            let mut all = true;
            for agent in &agents {
                all &= addresses(agent, "corp")
                    .await
                    .iter()
                    .any(|address| address.to_string().starts_with("198.18."));
            }
            all
        })
        .await;
        all_ping_all(&agents, "corp").await;

        // Control traffic goes on: a change arrives, pushed and by a check-in of an agent that starts anew.
        mesh.apply(&text("198.18", 24, "7s")).await;
        for agent in &agents {
            eventually("the change arrives", Duration::from_secs(5), async || {
                run(agent.host(), "wg show nm-corp persistent-keepalive").await.contains("\t7")
            })
            .await;
        }
        // Whoever reaches the host by its cable is answered by it.
        let to = agents[0].host();
        let listener = to.within(|| TcpListener::bind(("0.0.0.0", 22)).expect("the port is free"));
        assert!(pings(&operator, to.ipv4().into()).await, "the operator's host pings a");
        assert!(connects(&operator, (to.ipv4(), 22).into()), "and gets to its sshd");
        drop(listener);
        // The repair arrives.
        mesh.apply(&apart()).await;
        eventually("the repair is applied", Duration::from_secs(10), async || {
            addresses(&agents[0], "corp")
                .await
                .iter()
                .any(|address| address.to_string().starts_with("10.40."))
        })
        .await;
        all_ping_all(&agents, "corp").await;
    });
}

#[test]
fn what_others_take_away_is_back_and_leaving_leaves_nothing() {
    if !enter_test("what_others_take_away_is_back_and_leaving_leaves_nothing") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let first = mesh.agent("fresh").await;
        let before = traces(first.host()).await;
        let agents = two(&mesh, &apart()).await;
        let (a, b) = (agents[0].host(), addresses(&agents[1], "corp").await);
        let whole = traces(a).await;
        assert!(whole.len() > before.len() + 8, "{whole:#?}");
        for taking in [
            "nft flush ruleset",
            "ip rule del pref 4725",
            "ip route flush table 5182",
            "ip -6 rule flush",
            "ip link set nm-corp down",
            "ip address flush dev nm-corp",
        ] {
            run(a, taking).await;
            if taking == "ip -6 rule flush" {
                run(a, "ip -6 rule add pref 32766 table main").await;
            }
            let took = eventually(taking, REPAIRED, async || traces(a).await == whole).await;
            for to in &b {
                eventually(taking, REPAIRED, async || pings(a, *to).await).await;
            }
            eprintln!("{taking}: back after {took:?}");
        }
        // The process of the device, and with it the interface.
        end_to_end::kill_device(a, "nm-corp");
        for to in &b {
            eventually("a new device is there", REPAIRED, async || pings(a, *to).await).await;
        }
        for agent in &agents {
            let output = agent.netclient(&["leave", "--network", "corp"]).await.expect("it runs");
            assert!(output.status.success(), "{}", text_of(&output.stderr));
            assert_eq!(traces(agent.host()).await, before);
        }
    });
}

#[test]
fn what_the_host_is_connected_to_stays_its_own_and_a_member_cannot_be_forged() {
    if !enter_test("what_the_host_is_connected_to_stays_its_own_and_a_member_cannot_be_forged") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = two(&mesh, &text("10.40", 16, "20s")).await;
        let a = agents[0].host();
        // A bridge of containers that comes later, inside of the range, and a wide static route.
        run(a, "ip link add docker0 type bridge").await;
        run(a, "ip address add 10.40.200.1/24 dev docker0").await;
        run(a, "ip link set docker0 up").await;
        run(a, "ip route add 10.0.0.0/8 dev eth0").await;
        let way = async |to: &str| run(a, &format!("ip route get {to}")).await;
        assert!(way("10.40.200.7").await.contains("dev docker0"), "{}", way("10.40.200.7").await);
        assert!(way("10.40.0.202").await.contains("dev nm-corp"), "{}", way("10.40.0.202").await);
        assert!(way("10.41.0.1").await.contains("dev eth0"), "{}", way("10.41.0.1").await);
        let marked = run(a, "ip route get 10.40.0.202 mark 0x10").await;
        assert!(marked.contains("dev eth0"), "what is marked stays outside: {marked}");
        all_ping_all(&agents, "corp").await;

        // Somebody at the cable takes the address of a member, or asks for the host's own in the mesh.
        let forger = mesh.underlay.host("forger").await.expect("a host");
        let port = ip(&["-o", "route", "get", &a.ipv4().to_string()]);
        let port =
            port.split_whitespace().skip_while(|word| *word != "dev").nth(1).expect("a route").to_owned();
        ip(&["route", "add", "10.40.0.201/32", "dev", &port]);
        assert!(!pings(&forger, "10.40.0.201".parse().expect("an address")).await, "asked from outside");
        run(&forger, "ip address add 10.40.0.202/32 dev eth0").await;
        let to = SocketAddr::from((a.ipv4(), 9));
        forger.within(|| {
            let socket = UdpSocket::bind(("10.40.0.202", 0)).expect("it has the address");
            socket.send_to(b"forged", to).expect("it is sent")
        });
        for what in ["asked from outside", "forged outside"] {
            eventually(what, REPAIRED, async || {
                let listed = run(a, "nft list chain inet nm-own guard").await;
                let line = listed
                    .lines()
                    .find(|line| line.contains("ip ") && line.contains(what))
                    .map(ToOwned::to_owned);
                !line.expect("the rule is there").contains("packets 0")
            })
            .await;
        }
    });
}

#[test]
fn what_cannot_be_read_of_a_network_stays_in_the_filter_of_a_new_process() {
    if !enter_test("what_cannot_be_read_of_a_network_stays_in_the_filter_of_a_new_process") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let lan = r#"network "lan" { ipv4 "10.41.0.0/24"; access-key "a" { for "a" }; node "a" ipv4="10.41.0.201" }"#;
        let mut agents = two(&mesh, &apart()).await;
        let tokens = mesh.apply(&format!("{}\n{lan}", apart())).await;
        agents[0].join(&tokens["lan/access-key/a"], &[]).await.expect("it joins");
        let host = agents[0].host();
        run(host, "chmod 644 /etc/netclient/network-lan.json").await;
        agents[0].kill_daemon().await.expect("it is killed");
        agents[0].start_daemon(&[]).expect("the agent starts");
        mesh.apply(&format!("{}\n{lan}", text("10.40", 24, "7s"))).await;
        let host = agents[0].host();
        eventually("the new process has compared", Duration::from_secs(10), async || {
            run(host, "wg show nm-corp persistent-keepalive").await.contains("\t7")
        })
        .await;
        for (set, content) in
            [("closed", "nm-lan"), ("ours", "nm-lan"), ("own4", "10.41.0.201"), ("ranges4", "10.41.0.0/24")]
        {
            let listed = run(host, &format!("nft list set inet nm-own {set}")).await;
            assert!(listed.contains(content), "{listed}");
        }
    });
}

#[test]
fn a_host_without_ipv6_works_by_ipv4_and_says_so() {
    if !enter_test("a_host_without_ipv6_works_by_ipv4_and_says_so") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh.apply(&apart()).await;
        let mut agents = Vec::new();
        for name in ["a", "b"] {
            let mut agent = mesh.agent(name).await;
            if name == "b" {
                for interface in ["all", "default"] {
                    let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
                    agent.host().write(switch, "1").expect("it can be written");
                }
            }
            agent.join(&tokens["corp/access-key/named"], &[]).await.expect("it joins");
            agent.start_daemon(&[]).expect("the agent starts");
            agents.push(agent);
        }
        let b = "10.40.0.202".parse().expect("an address");
        eventually("a pings b", Duration::from_secs(10), async || pings(agents[0].host(), b).await).await;
        eventually("a knows b by IPv4 alone", Duration::from_secs(10), async || {
            let names = agents[0].host().read("/etc/hosts").expect("it is there");
            names.contains("10.40.0.202\tb.corp") && !names.contains("fd40:40::202\tb.corp")
        })
        .await;
        eventually("b reports it", Duration::from_secs(10), async || {
            let status = agents[1].status().await.expect("it answers");
            status["networks"][0]["problems"].to_string().contains("no-ipv6")
        })
        .await;
    });
}

/// Whatever is said of the range, these hold: what a container opens, and what is opened to it by the cable.
async fn assert_container(mesh: &Mesh, agents: &[Agent], inner: &Host, operator: &Host, server: bool) {
    let (a, b) = (agents[0].host(), agents[1].host());
    let mesh_of = async |agent: &Agent| {
        let all = addresses(agent, "corp").await;
        all.into_iter().find(IpAddr::is_ipv4).expect("it has one")
    };
    let (from, to) = (mesh_of(&agents[0]).await, mesh_of(&agents[1]).await);
    let listener = b.within(|| TcpListener::bind((to, 9))).expect("the port is free");
    eventually("a container reaches a member", Duration::from_secs(10), async || {
        connects(inner, (to, 9).into())
    })
    .await;
    let (_, seen) = listener.accept().expect("it came");
    assert_eq!(seen.ip(), from, "with the address of its host in the network");
    let service = (mesh.server.host().ipv4(), 50_051).into();
    assert_eq!(connects(inner, service), server, "the address of the server, unless a range has it");

    let published = inner.within(|| TcpListener::bind(("0.0.0.0", 80))).expect("the port is free");
    assert!(connects(operator, (a.ipv4(), 8_080).into()), "what is published is reached by the cable");
    let (_, seen) = published.accept().expect("it came");
    assert_eq!(seen.ip(), IpAddr::from(operator.ipv4()));
    assert!(connects(b, (from, 8_080).into()), "and from the network");
    let (_, seen) = published.accept().expect("it came");
    assert_eq!(seen.ip(), to);
    // A member that sends to a container's own address, past what its host says of the network.
    let key = run(b, "wg show nm-corp peers").await;
    let ranges = format!("{from}/32,172.17.0.0/24");
    run(b, &format!("wg set nm-corp peer {} allowed-ips {ranges}", key.trim())).await;
    run(b, "ip route add 172.17.0.0/24 dev nm-corp").await;
    assert!(!connects(b, ([172, 17, 0, 2], 80).into()), "but nothing else is forwarded");
    assert!(
        !connects(b, ([172, 17, 0, 1], 8_080).into()),
        "nor what is published at another address of the host"
    );
    let dropped = run(a, "nft list chain inet nm-own forward").await;
    assert!(dropped.contains("counter packets") && !dropped.contains("counter packets 0"), "{dropped}");
    run(b, "ip route del 172.17.0.0/24 dev nm-corp").await;
}

#[test]
fn containers_reach_members_and_are_reached_whatever_the_range_holds() {
    if !enter_test("containers_reach_members_and_are_reached_whatever_the_range_holds") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = two(&mesh, &apart()).await;
        let operator = mesh.underlay.host("o").await.expect("a host");
        let a = agents[0].host();
        let inner = container(&mesh, a).await;
        assert_container(&mesh, &agents, &inner, &operator, true).await;
        mesh.apply_past("cut-off", &text("198.18", 24, "20s")).await;
        eventually("the range is applied", Duration::from_secs(10), async || {
            let mut all = true;
            for agent in &agents {
                let known = addresses(agent, "corp").await;
                all &= known.iter().any(|address| address.to_string().starts_with("198.18."));
            }
            all
        })
        .await;
        all_ping_all(&agents, "corp").await;
        assert_container(&mesh, &agents, &inner, &operator, false).await;
        // The agent's own traffic to the same address goes on.
        mesh.apply(&text("198.18", 24, "7s")).await;
        eventually("the change arrives", Duration::from_secs(5), async || {
            run(a, "wg show nm-corp persistent-keepalive").await.contains("\t7")
        })
        .await;
    });
}

#[test]
fn marks_of_others_and_connections_outside_of_ranges_are_left_alone() {
    if !enter_test("marks_of_others_and_connections_outside_of_ranges_are_left_alone") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = two(&mesh, &apart()).await;
        let operator = mesh.underlay.host("o").await.expect("a host");
        let a = agents[0].host();
        // Another program marks what comes to one port; and what the packets and connections carry in the end
        // is counted, of that port and of another.
        for line in [
            "nft add table inet watch",
            "nft add counter inet watch marked",
            "nft add counter inet watch theirs",
            "nft add chain inet watch first { type filter hook prerouting priority -200 ; }",
            "nft add rule inet watch first tcp dport 23 meta mark set 0x5",
            "nft add chain inet watch last { type filter hook input priority 200 ; }",
            "nft add rule inet watch last tcp dport 22 meta mark != 0 counter name marked",
            "nft add rule inet watch last tcp dport 22 ct mark != 0 counter name marked",
            "nft add rule inet watch last tcp dport 23 meta mark != 0x5 counter name marked",
            "nft add rule inet watch last tcp dport 23 meta mark 0x5 ct mark 0 counter name theirs",
        ] {
            run(a, line).await;
        }
        let listeners = a.within(|| [22, 23].map(|port| TcpListener::bind(("0.0.0.0", port))));
        for port in [22, 23] {
            assert!(connects(&operator, (a.ipv4(), port).into()), "{port}");
        }
        assert_eq!((counted(a, "marked").await, counted(a, "theirs").await > 0), (0, true));
        drop(listeners);
    });
}

#[test]
fn without_a_link_nothing_for_a_member_goes_out_by_the_cable() {
    if !enter_test("without_a_link_nothing_for_a_member_goes_out_by_the_cable") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let mut agents = two(&mesh, &text("10.40", 16, "20s")).await;
        agents[0].kill_daemon().await.expect("it is killed");
        let a = agents[0].host();
        // The main table has a default route, which would send it there.
        for line in [
            "nft add table inet watch",
            "nft add counter inet watch leaked",
            "nft add counter inet watch other",
            "nft add chain inet watch out { type filter hook output priority 300 ; }",
            "nft add rule inet watch out oifname eth0 ip daddr 10.40.0.0/16 counter name leaked",
            "nft add rule inet watch out oifname eth0 ip daddr 10.41.0.0/16 counter name other",
        ] {
            run(a, line).await;
        }
        end_to_end::kill_device(a, "nm-corp");
        eventually("the interface is gone", REPAIRED, async || {
            a.within(|| netclient::device::link_index("nm-corp")).expect("the kernel answers").is_none()
        })
        .await;
        for to in ["10.40.0.202", "10.40.255.255", "10.41.0.1"] {
            assert!(!pings(a, to.parse().expect("an address")).await);
        }
        assert_eq!(counted(a, "leaked").await, 0, "in the clear");
        assert!(counted(a, "other").await > 0, "what is in no range goes its way");
    });
}
