//! No declared range cuts a host off from its repair: what carries tunnels and control traffic never enters a
//! mesh.
//!
//! ```text
//! nmserver ==== underlay ==== a, b    and o, an operator's host, which is in no mesh
//! ```
//!
//! The underlay is 198.18.0.0/16 and 2001:2::/64. The network's range of one family comes to hold it, with the
//! server and all endpoints; reverse paths are filtered strictly on every host: by rp_filter for IPv4, and for
//! IPv6, which has no such setting, by the rule of firewalld (IPv6_rpfilter=strict).

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use end_to_end::container::container;
use end_to_end::forge::{self, Ends};
use end_to_end::{
    Mesh, addresses, all_ping_all, eventually, in_runtime, packets, patience, run, run_all, text_of,
};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use nmplan::lab::{Agent, Host, enter_test};
use socket2::{Domain, Socket, Type};

/// Within this time what others took away is back; a little more than the agent needs.
const REPAIRED: Duration = Duration::from_secs(3);

/// More packets than a host sends and receives in some seconds in which agents only check in.
const FEW: u64 = 200;

/// A version of IP, of which a test tries what holds for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// A host's address in the underlay.
    fn of(self, host: &Host) -> IpAddr {
        match self {
            Self::V4 => host.ipv4().into(),
            Self::V6 => host.ipv6().into(),
        }
    }

    /// A node's address in the network.
    async fn in_mesh(self, agent: &Agent) -> IpAddr {
        let all = addresses(agent, "corp").await;
        all.into_iter().find(|address| address.is_ipv4() == (self == Self::V4)).expect("it has one")
    }

    fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    fn by<'a>(self, v4: &'a str, v6: &'a str) -> &'a str {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// How the addresses of the underlay begin.
    fn underlay(self) -> &'static str {
        self.by("198.18.0.", "2001:2::")
    }

    /// A network whose range of this family holds the underlay.
    fn holding(self, keepalive: &str) -> String {
        match self {
            Self::V4 => text("198.18", 24, "fd40:40::", keepalive),
            Self::V6 => text("10.40", 24, "2001:2::", keepalive),
        }
    }

    /// A server that agents call by this family.
    async fn mesh(self) -> Mesh {
        match self {
            Self::V4 => Mesh::start().await,
            // The first host of an underlay is the server's.
            Self::V6 => {
                let settings = [
                    ("BIND", "::"),
                    ("PUBLIC_GRPC", "[2001:2::2]:50051"),
                    ("PUBLIC_COMMS", "[2001:2::2]:50555"),
                ];
                Mesh::start_with(&settings).await
            }
        }
    }
}

/// A network of a range that begins with these two bytes and a 0, and of an IPv6 range of 64 bits.
fn text(v4: &str, length: u8, v6: &str, keepalive: &str) -> String {
    format!(
        r#"network "corp" {{
            ipv4 "{v4}.0.0/{length}"; ipv6 "{v6}/64"; keepalive "{keepalive}"; check-in "2s"
            access-key "named" {{ for "a" "b" }}
            node "a" ipv4="{v4}.0.201" ipv6="{v6}201"
            node "b" ipv4="{v4}.0.202" ipv6="{v6}202"
        }}"#
    )
}

/// Ranges apart from the underlay.
fn apart() -> String {
    text("10.40", 24, "fd40:40::", "20s")
}

/// The same with a larger IPv4 range.
fn wide() -> String {
    text("10.40", 16, "fd40:40::", "20s")
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

async fn filter_strictly_in_ipv6(host: &Host) {
    let loaded = [
        "nft add table inet strict",
        "nft add chain inet strict pre { type filter hook prerouting priority 10 ; }",
        "nft add rule inet strict pre icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept",
        "nft add rule inet strict pre meta nfproto ipv6 fib saddr . mark . iif oif missing counter drop",
    ];
    run_all(host, &loaded).await;
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

/// Whether a connection from one of a host's addresses comes about.
fn connects_from(from: &Host, own: IpAddr, to: SocketAddr) -> bool {
    from.within(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((own, 0)).into()).expect("it has the address");
        socket.connect_timeout(&to.into(), Duration::from_secs(1)).is_ok()
    })
}

/// Whether a host gets an answer by UDP from the address that it asked.
fn is_answered(from: &Host, to: SocketAddr) -> bool {
    from.within(|| {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).expect("a socket");
        socket.connect(to).expect("there is a route");
        socket.send(b"?").expect("it is sent");
        socket.set_read_timeout(Some(Duration::from_millis(500) * patience())).expect("a timeout");
        socket.recv(&mut [0; 16]).is_ok()
    })
}

/// Answers by UDP on a wildcard socket, until the test ends. Of which address the answer comes is left to the
/// kernel, or, as careful servers have it, it is the address that was asked (IP_PKTINFO; ip(7), ipv6(7)).
fn answers(host: &Host, family: Family, port: u16, careful: bool) {
    let socket = host.within(|| UdpSocket::bind((family.unspecified(), port)).expect("the port is free"));
    match family {
        Family::V4 => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true),
        Family::V6 => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true),
    }
    .expect("it is known");
    std::thread::spawn(move || {
        let descriptor = socket.as_raw_fd();
        loop {
            let mut bytes = [0; 16];
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let mut space = nix::cmsg_space!(nix::libc::in6_pktinfo);
            let asked =
                recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(&mut space), MsgFlags::empty())
                    .expect("a question");
            let (peer, asked) = (asked.address, asked.cmsgs().expect("they fit").next());
            let answer = [IoSlice::new(b"!")];
            let send = |control: &[ControlMessage<'_>]| {
                sendmsg(descriptor, &answer, control, MsgFlags::empty(), peer.as_ref())
            };
            // An answer that the host has no way for is lost like any other.
            let _ = match asked.filter(|_| careful) {
                Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
                    let (none, from) = (nix::libc::in_addr { s_addr: 0 }, info.ipi_addr);
                    let info = nix::libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: none };
                    send(&[ControlMessage::Ipv4PacketInfo(&info)])
                }
                Some(ControlMessageOwned::Ipv6PacketInfo(info)) => {
                    let info = nix::libc::in6_pktinfo { ipi6_ifindex: 0, ..info };
                    send(&[ControlMessage::Ipv6PacketInfo(&info)])
                }
                _ => send(&[]),
            };
        }
    });
}

/// Waits until each agent has an address in the underlay's range.
async fn range_is_applied(agents: &[Agent], family: Family) {
    for agent in agents {
        eventually("the range is applied", Duration::from_secs(10), async || {
            let all = addresses(agent, "corp").await;
            all.iter().any(|address| address.to_string().starts_with(family.underlay()))
        })
        .await;
    }
}

/// Nothing that is sent about goes round and round: of tunnels in tunnels there would be thousands of packets.
async fn assert_nothing_loops(agents: &[Agent], nobody: IpAddr) {
    let before: Vec<_> = agents.iter().map(|agent| packets(agent.host(), "eth0")).collect();
    for agent in agents {
        assert!(!pings(agent.host(), nobody).await, "{nobody} is nobody's");
    }
    for (agent, before) in agents.iter().zip(before) {
        let count = packets(agent.host(), "eth0") - before;
        assert!(count < FEW, "{count} packets at {}", agent.host().name());
    }
}

/// The codes of the problems that an agent reports.
async fn problems(agent: &Agent) -> String {
    let status = agent.status().await.expect("it answers");
    status["networks"][0]["problems"].to_string()
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

async fn assert_nobody_is_cut_off(family: Family) {
    let mesh = family.mesh().await;
    let agents = two(&mesh, &apart()).await;
    let operator = mesh.underlay.host("o").await.expect("a host");
    for agent in &agents {
        filter_strictly_in_ipv6(agent.host()).await;
    }
    assert!(family.of(mesh.server.host()).to_string().starts_with(family.underlay()));
    let endpoints = run(agents[0].host(), "wg show nm-corp endpoints").await;
    assert!(endpoints.contains(family.underlay()), "{endpoints}");
    let held = mesh.file("held.kdl");
    std::fs::write(&held, family.holding("20s")).expect("a file is written");
    let refused = mesh.nmplan(&["plan", "--project", "test", "-f", &held.display().to_string()]).await;
    assert_eq!(refused.status.code(), Some(3), "a plan refuses it: {refused:?}");
    mesh.apply_past("cut-off", &family.holding("20s")).await;
    range_is_applied(&agents, family).await;
    all_ping_all(&agents, "corp").await;

    // Control traffic goes on: a change arrives, pushed and by a check-in of an agent that starts anew.
    mesh.apply(&family.holding("7s")).await;
    for agent in &agents {
        eventually("the change arrives", Duration::from_secs(5), async || {
            run(agent.host(), "wg show nm-corp persistent-keepalive").await.contains("\t7")
        })
        .await;
    }
    let nobody = format!("{}99", family.underlay()).parse().expect("an address");
    assert_nothing_loops(&agents, nobody).await;
    // Whoever reaches the host by its cable is answered by it.
    let a = agents[0].host();
    let (cable, member) = (family.of(a), family.in_mesh(&agents[0]).await);
    let listener = a.within(|| TcpListener::bind((family.unspecified(), 22)).expect("the port is free"));
    assert!(pings(&operator, cable).await, "the operator's host pings a");
    assert!(connects(&operator, (cable, 22).into()), "and gets to its sshd");
    drop(listener);
    answers(a, family, 53, true);
    answers(a, family, 54, false);
    for port in [53, 54] {
        assert!(is_answered(agents[1].host(), (member, port).into()), "a member asks port {port}");
    }
    assert!(is_answered(&operator, (cable, 53).into()), "from the address that was asked");
    assert!(!is_answered(&operator, (cable, 54).into()), "the kernel takes the way into the mesh");
    // The repair arrives.
    mesh.apply(&apart()).await;
    eventually("the repair is applied", Duration::from_secs(10), async || {
        let all = addresses(&agents[0], "corp").await;
        all.len() == 2 && !all.iter().any(|address| address.to_string().starts_with(family.underlay()))
    })
    .await;
    all_ping_all(&agents, "corp").await;
}

#[test]
fn a_range_that_holds_the_server_and_every_endpoint_cuts_nobody_off() {
    if !enter_test("a_range_that_holds_the_server_and_every_endpoint_cuts_nobody_off") {
        return;
    }
    in_runtime(assert_nobody_is_cut_off(Family::V4));
}

#[test]
fn an_ipv6_range_that_holds_the_server_and_every_endpoint_cuts_nobody_off() {
    if !enter_test("an_ipv6_range_that_holds_the_server_and_every_endpoint_cuts_nobody_off") {
        return;
    }
    in_runtime(assert_nobody_is_cut_off(Family::V6));
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
        let own = run(a, "ip -oneline address show dev nm-corp").await;
        assert!(own.contains("10.40.0.201/32") && own.contains("fd40:40::201/128"), "{own}");
        for taking in [
            "nft flush ruleset",
            "ip rule del pref 4725",
            "ip -6 rule del pref 4893",
            "ip route flush table 5182",
            "ip -6 route flush table 5182",
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
        let agents = two(&mesh, &wide()).await;
        let a = agents[0].host();
        // A bridge of containers that comes later, inside of the range, and a wide static route.
        let later = [
            "ip link add docker0 type bridge",
            "ip address add 10.40.200.1/24 dev docker0",
            "ip address add fd40:40::c8:1/112 dev docker0 nodad",
            "ip link set docker0 up",
            "ip route add 10.0.0.0/8 dev eth0",
            "ip -6 route add fd40::/16 dev eth0",
        ];
        run_all(a, &later).await;
        for (to, exit) in [
            ("10.40.200.7", "docker0"),
            ("10.40.0.202", "nm-corp"),
            ("10.41.0.1", "eth0"),
            ("10.40.0.202 mark 0x10", "eth0"),
            ("fd40:40::c8:7", "docker0"),
            ("fd40:40::202", "nm-corp"),
            ("fd40:41::1", "eth0"),
            ("fd40:40::202 mark 0x10", "eth0"),
        ] {
            let way = run(a, &format!("ip route get {to}")).await;
            assert!(way.contains(&format!("dev {exit} ")), "{way}");
        }
        all_ping_all(&agents, "corp").await;
        for family in Family::BOTH {
            assert_forgery_is_dropped(&mesh, &agents, family).await;
        }

        // A route that is as long as the range is kept, and reported.
        for (range, to) in [("10.40.0.0/16", "10.40.0.202"), ("fd40:40::/64", "fd40:40::202")] {
            run(a, &format!("ip route add {range} dev docker0")).await;
            let way = run(a, &format!("ip route get {to}")).await;
            assert!(way.contains("dev docker0 "), "{way}");
        }
        // The next event has the agent look.
        run_all(a, &["ip rule add pref 100 to 192.0.2.0/24 lookup main", "ip rule del pref 100"]).await;
        eventually("it is reported", REPAIRED, async || {
            problems(&agents[0]).await.matches("range-routed-elsewhere").count() == 2
        })
        .await;
    });
}

/// Somebody at the cable takes the address of a member, or asks for the host's own in the mesh.
async fn assert_forgery_is_dropped(mesh: &Mesh, agents: &[Agent], family: Family) {
    let a = agents[0].host();
    let (own, member) = (family.in_mesh(&agents[0]).await, family.in_mesh(&agents[1]).await);
    let forger = mesh.underlay.host(family.by("forger", "forger6")).await.expect("a host");
    ip(&["route", "add", &own.to_string(), "dev", &a.cable()]);
    let listener = a.within(|| TcpListener::bind((family.unspecified(), 9)).expect("the port is free"));
    assert!(connects(&forger, (family.of(a), 9).into()), "as itself it connects");
    assert!(!pings(&forger, own).await, "asked from outside");
    assert!(!connects(&forger, (own, 9).into()), "asked from outside");
    run(&forger, &format!("ip address add {member} dev eth0{}", family.by("", " nodad"))).await;
    ip(&["route", "add", &member.to_string(), "dev", &forger.cable()]);
    for to in [own, family.of(a)] {
        assert!(!connects_from(&forger, member, (to, 9).into()), "as a member, to {to}");
    }
    drop(listener);
    let listed = run(a, "nft list chain inet nm-own guard").await;
    for what in ["asked from outside", "forged outside"] {
        let of = |line: &&str| line.trim().starts_with(family.by("ip ", "ip6 ")) && line.contains(what);
        let line = listed.lines().find(of).expect("the rule is there");
        assert!(!line.contains("packets 0"), "{line}");
    }
}

#[test]
fn what_cannot_be_read_of_a_network_stays_in_the_filter_of_a_new_process() {
    if !enter_test("what_cannot_be_read_of_a_network_stays_in_the_filter_of_a_new_process") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let lan = r#"network "lan" { ipv4 "10.40.1.0/24"; access-key "a" { for "a" }; node "a" ipv4="10.40.1.201" }"#;
        let mut agents = two(&mesh, &apart()).await;
        let tokens = mesh.apply(&format!("{}\n{lan}", apart())).await;
        agents[0].join(&tokens["lan/access-key/a"], &[]).await.expect("it joins");
        let host = agents[0].host();
        run(host, "chmod 644 /etc/netclient/network-lan.json").await;
        agents[0].kill_daemon().await.expect("it is killed");
        agents[0].start_daemon(&[]).expect("the agent starts");
        mesh.apply(&format!("{}\n{lan}", text("10.40", 24, "fd40:40::", "7s"))).await;
        let host = agents[0].host();
        eventually("the new process has compared", Duration::from_secs(10), async || {
            run(host, "wg show nm-corp persistent-keepalive").await.contains("\t7")
        })
        .await;
        for (set, content) in
            [("closed", "nm-lan"), ("ours", "nm-lan"), ("own4", "10.40.1.201"), ("ranges4", "10.40.0.0/23")]
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
async fn assert_container(
    mesh: &Mesh,
    agents: &[Agent],
    inner: &Host,
    operator: &Host,
    (family, server): (Family, bool),
) {
    let (a, b) = (agents[0].host(), agents[1].host());
    let (from, to) = (family.in_mesh(&agents[0]).await, family.in_mesh(&agents[1]).await);
    let listener = b.within(|| TcpListener::bind((to, 9))).expect("the port is free");
    eventually("a container reaches a member", Duration::from_secs(10), async || {
        connects(inner, (to, 9).into())
    })
    .await;
    let (_, seen) = listener.accept().expect("it came");
    assert_eq!(seen.ip(), from, "with the address of its host in the network");
    let service = (family.of(mesh.server.host()), 50_051).into();
    assert_eq!(connects(inner, service), server, "the address of the server, unless a range has it");

    let published = inner.within(|| TcpListener::bind((family.unspecified(), 80))).expect("the port is free");
    assert!(connects(operator, (family.of(a), 8_080).into()), "what is published is reached by the cable");
    let (_, seen) = published.accept().expect("it came");
    assert_eq!(seen.ip(), family.of(operator));
    assert!(connects(b, (from, 8_080).into()), "and from the network");
    let (_, seen) = published.accept().expect("it came");
    assert_eq!(seen.ip(), to);
    // A member that sends to a container's own address, past what its host says of the network.
    let keys = run(b, "wg show nm-corp peers").await;
    let containers = family.by("172.17.0.0/24", "fd17::/64");
    run(b, &format!("wg set nm-corp peer {} allowed-ips {from},{containers}", keys.trim())).await;
    run(b, &format!("ip route add {containers} dev nm-corp")).await;
    let [box_itself, bridge] = [("172.17.0.2", "fd17::2"), ("172.17.0.1", "fd17::1")]
        .map(|(v4, v6)| family.by(v4, v6).parse::<IpAddr>().expect("an address"));
    assert!(!connects(b, (box_itself, 80).into()), "but nothing else is forwarded");
    assert!(!connects(b, (bridge, 8_080).into()), "nor what is published at another address of the host");
    let listed = run(a, "nft list chain inet nm-own forward").await;
    let dropped = listed.lines().find(|line| line.contains("through a host that forwards nothing"));
    assert!(dropped.is_some_and(|line| !line.contains("counter packets 0 ")), "{listed}");
    run(b, &format!("ip route del {containers} dev nm-corp")).await;
}

async fn assert_containers(family: Family) {
    let mesh = family.mesh().await;
    let agents = two(&mesh, &apart()).await;
    let operator = mesh.underlay.host("o").await.expect("a host");
    let a = agents[0].host();
    let inner = container(&mesh.underlay, a).await;
    filter_strictly_in_ipv6(a).await;
    assert_container(&mesh, &agents, &inner, &operator, (family, true)).await;
    mesh.apply_past("cut-off", &family.holding("20s")).await;
    range_is_applied(&agents, family).await;
    all_ping_all(&agents, "corp").await;
    assert_container(&mesh, &agents, &inner, &operator, (family, false)).await;
    // The agent's own traffic to the same address goes on.
    mesh.apply(&family.holding("7s")).await;
    eventually("the change arrives", Duration::from_secs(5), async || {
        run(a, "wg show nm-corp persistent-keepalive").await.contains("\t7")
    })
    .await;
}

#[test]
fn containers_reach_members_and_are_reached_whatever_the_range_holds() {
    if !enter_test("containers_reach_members_and_are_reached_whatever_the_range_holds") {
        return;
    }
    in_runtime(assert_containers(Family::V4));
}

#[test]
fn containers_reach_members_and_are_reached_whatever_the_ipv6_range_holds() {
    if !enter_test("containers_reach_members_and_are_reached_whatever_the_ipv6_range_holds") {
        return;
    }
    in_runtime(assert_containers(Family::V6));
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
        let mut theirs = 0;
        for family in Family::BOTH {
            let listeners = a.within(|| [22, 23].map(|port| TcpListener::bind((family.unspecified(), port))));
            for port in [22, 23] {
                assert!(connects(&operator, (family.of(a), port).into()), "{family:?} {port}");
            }
            let counts = (counted(a, "marked").await, counted(a, "theirs").await);
            assert!(counts.0 == 0 && counts.1 > theirs, "{family:?} {counts:?}");
            theirs = counts.1;
            drop(listeners);
        }
    });
}

#[test]
fn an_error_of_the_hosts_own_leads_no_connection_out_of_the_mesh() {
    if !enter_test("an_error_of_the_hosts_own_leads_no_connection_out_of_the_mesh") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = two(&mesh, &apart()).await;
        let [a, b] = [&agents[0], &agents[1]].map(Agent::host);
        for family in Family::BOTH {
            let (asks, answers) = (family.in_mesh(&agents[0]).await, family.in_mesh(&agents[1]).await);
            let socket = |host: &Host, at| {
                let socket = host.within(|| UdpSocket::bind(at)).expect("the port is free");
                socket.set_read_timeout(Some(Duration::from_secs(2) * patience())).expect("a timeout");
                socket
            };
            let (client, server) = (socket(a, (asks, 7_001)), socket(b, (answers, 7_002)));
            let is_answered = || {
                client.send_to(b"?", (answers, 7_002)).expect("it is sent");
                let (_, from) = server.recv_from(&mut [0; 8]).expect("it arrives");
                server.send_to(b"!", from).expect("it is sent");
                client.recv_from(&mut [0; 8]).is_ok()
            };
            assert!(is_answered());
            // As the kernel's WireGuard sends one while it has no such peer.
            let answer = forge::udp((answers, 7_002).into(), (asks, 7_001).into(), b"!");
            let error = forge::too_big(Ends::new(answers, answers), &answer.packet());
            forge::send(b, &error, &[error.packet()]);
            assert!(is_answered(), "{family:?}");
        }
    });
}

#[test]
fn without_a_link_nothing_for_a_member_goes_out_by_the_cable() {
    if !enter_test("without_a_link_nothing_for_a_member_goes_out_by_the_cable") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let mut agents = two(&mesh, &wide()).await;
        agents[0].kill_daemon().await.expect("it is killed");
        let a = agents[0].host();
        // The main table has default routes, which would send it there, and a bridge inside of the range.
        let lines = [
            "nft add table inet watch",
            "nft add counter inet watch leaked",
            "nft add counter inet watch other",
            "nft add chain inet watch out { type filter hook output priority 300 ; }",
            "nft add rule inet watch out oifname eth0 ip daddr 10.40.0.0/16 counter name leaked",
            "nft add rule inet watch out oifname eth0 ip6 daddr fd40:40::/64 counter name leaked",
            "nft add rule inet watch out oifname eth0 ip daddr 10.41.0.0/16 counter name other",
            "nft add rule inet watch out oifname eth0 ip6 daddr fd40:41::/64 counter name other",
            "ip link add docker0 type bridge",
            "ip address add 10.40.200.1/24 dev docker0",
            "ip address add fd40:40::c8:1/112 dev docker0 nodad",
            "ip link set docker0 up",
        ];
        run_all(a, &lines).await;
        end_to_end::kill_device(a, "nm-corp");
        eventually("the interface is gone", REPAIRED, async || {
            a.within(|| netclient::device::link_index("nm-corp")).expect("the kernel answers").is_none()
        })
        .await;
        let mut others = 0;
        for all in
            [["10.40.0.202", "10.40.255.255", "10.41.0.1"], ["fd40:40::202", "fd40:40::", "fd40:41::1"]]
        {
            for to in all {
                assert!(!pings(a, to.parse().expect("an address")).await);
            }
            assert_eq!(counted(a, "leaked").await, 0, "in the clear");
            let counts = counted(a, "other").await;
            assert!(counts > others, "what is in no range goes its way");
            others = counts;
        }
        for to in ["10.40.200.7", "fd40:40::c8:7"] {
            let way = run(a, &format!("ip route get {to}")).await;
            assert!(
                way.contains("dev docker0 "),
                "a part that the host is connected to stays its own: {way}"
            );
        }
    });
}

/// A tunnel of wg-quick's on a host, which leads these ranges to a peer that does not answer. Where the kernel
/// has no WireGuard, its device is a process of netclient's, as wireguard-go would be one.
fn quick(host: &Host, netclient: &std::path::Path, name: &str, ranges: &str) -> impl Fn(&str) -> String {
    let directory = host.directory();
    let file = |end: &str| directory.join(format!("{name}{end}")).display().to_string();
    let (program, configuration) = (file(".sh"), file(".conf"));
    let script = format!(
        "#!/bin/sh\n\
         {} device --interface $1 --socket /run/$1.sock </dev/null >/dev/null 2>&1 &\n\
         until [ -S /run/wireguard/$1.sock ]; do sleep 0.05; done\n",
        netclient.display()
    );
    // A mark in the file, since gotatun does not take one later.
    let text = format!(
        "[Interface]\nPrivateKey = {KEY}\nAddress = 10.99.0.1/32, fd99::1/128\nFwMark = 51820\n\
         [Peer]\nPublicKey = {KEY}\nEndpoint = 198.18.0.77:9\nAllowedIPs = {ranges}\n"
    );
    for (path, content, mode) in [(&program, script, "700"), (&configuration, text, "600")] {
        std::fs::write(path, content).expect("it is written");
        let done = Command::new("chmod").args([mode, path]).status().expect("chmod runs");
        assert!(done.success());
    }
    move |verb| format!("env WG_QUICK_USERSPACE_IMPLEMENTATION={program} wg-quick {verb} {configuration}")
}

/// A key, private or public.
const KEY: &str = "YAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAGA=";

/// What wg-quick made on a host for a tunnel.
async fn made_by_quick(host: &Host, name: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for command in [
        &format!("ip -oneline address show dev {name}") as &str,
        &format!("ip route show table all dev {name}"),
        &format!("ip -6 route show table all dev {name}"),
        &format!("wg showconf {name}"),
    ] {
        lines.extend(run(host, command).await.lines().map(ToOwned::to_owned));
    }
    let all = traces(host).await.into_iter();
    lines.extend(all.filter(|line| {
        line.contains("wg-quick") || line.contains("suppress_prefixlength 0") || line.contains("51820")
    }));
    lines
}

#[test]
fn a_tunnel_of_wg_quick_and_ours_take_nothing_away_from_each_other() {
    if !enter_test("a_tunnel_of_wg_quick_and_ours_take_nothing_away_from_each_other") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = two(&mesh, &apart()).await;
        let (a, netclient) = (agents[0].host(), &mesh.programs.netclient);
        let before = traces(a).await;
        let is_whole = async || {
            eventually("all of the agent's is there", REPAIRED, async || traces(a).await == before).await;
            all_ping_all(&agents, "corp").await;
        };
        // One that leads to some ranges.
        let some = quick(a, netclient, "some", "10.99.0.0/16, fd99::/64");
        run(a, &some("up")).await;
        is_whole().await;
        run(a, &some("down")).await;
        is_whole().await;
        // One that takes everything: rules that come later go first, so the range is led away, and that is said.
        let all = quick(a, netclient, "every", "0.0.0.0/0, ::/0");
        run(a, &all("up")).await;
        eventually("it is reported", REPAIRED, async || {
            problems(&agents[0]).await.matches("range-routed-elsewhere").count() == 2
        })
        .await;
        run(a, &all("down")).await;
        is_whole().await;
        eventually("it is over", REPAIRED, async || {
            !problems(&agents[0]).await.contains("range-routed-elsewhere")
        })
        .await;
        // Ours goes, and leaves theirs; past which the server is reached, so that it does not take long.
        run(a, "ip route add 198.18.0.0/16 via 198.18.0.1 dev eth0 onlink").await;
        let last = quick(a, netclient, "last", "0.0.0.0/0, ::/0");
        run(a, &last("up")).await;
        let theirs = made_by_quick(a, "last").await;
        assert!(theirs.iter().any(|line| line.contains("wg-quick-last")), "{theirs:#?}");
        let left = agents[0].netclient(&["leave", "--network", "corp"]).await.expect("it runs");
        assert!(left.status.success(), "{}", text_of(&left.stderr));
        assert_eq!(made_by_quick(a, "last").await, theirs);
        run(a, &last("down")).await;
        let fresh = mesh.agent("fresh").await;
        assert_eq!(traces(a).await, traces(fresh.host()).await);
    });
}
