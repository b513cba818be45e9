//! Control traffic in a tunnel: which transport it takes, what blocks it, and what can be reached through it.
//!
//! ```text
//! nmserver ==== underlay ==== a, b, c
//! ```

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use end_to_end::filter::{count, drop_udp, forget, packets};
use end_to_end::{
    Mesh, addresses, all_ping_all, eventually, guest, in_runtime, link_kind, mistyped, rounds, text_of,
};
use nmplan::lab::{Agent, Host, Programs, Server, Underlay, enter_test};
use proto::token::Token;
use socket2::{Domain, Socket, Type};
use test_agent::Agent as BareAgent;

/// Where the tunnel ends at the server.
const COMMS: u16 = 50_555;

fn text(address_of_api: &str) -> String {
    format!(
        r#"network "corp" {{
            ipv4 "10.40.0.0/16"; check-in "2s"
            access-key "k" uses=9
            dns "api" a="{address_of_api}"
        }}"#
    )
}

/// Agents that have registered and then joined.
async fn registered(mesh: &Mesh, names: &[&str]) -> Vec<Agent> {
    let tokens = mesh.apply(&text("10.40.9.1")).await;
    let mut agents = Vec::new();
    for name in names {
        let mut agent = mesh.agent(name).await;
        agent.register(&tokens["corp/access-key/k"]).await.expect("it registers");
        agent.join(&tokens["corp/access-key/k"], &[]).await.expect("it joins");
        agent.start_daemon(&[]).expect("the agent starts");
        agents.push(agent);
    }
    all_ping_all(&agents, "corp").await;
    for agent in &agents {
        takes(agent, "tunnel", Duration::from_secs(10)).await;
        assert_eq!(link_kind(agent.host(), "nm-comms").await, "tun", "whatever the network's device is");
    }
    agents
}

/// Waits until an agent's control traffic takes a transport; returns how long that took.
async fn takes(agent: &Agent, transport: &str, timeout: Duration) -> Duration {
    takes_in(agent, 0, transport, timeout).await
}

/// The same for one of several networks, by its index.
async fn takes_in(agent: &Agent, network: usize, transport: &str, timeout: Duration) -> Duration {
    let what = format!("control traffic of {} takes {transport}", agent.host().name());
    eventually(&what, timeout, async || {
        agent.status().await.is_ok_and(|status| status["networks"][network]["control"] == transport)
    })
    .await
}

/// Applies another address of an entry; returns how long it took until an agent knew it.
async fn change(mesh: &Mesh, agent: &Agent, address: &str, timeout: Duration) -> Duration {
    mesh.apply(&text(address)).await;
    let line = format!("{address}\tapi.corp");
    eventually("the change arrives", timeout, async || {
        agent.host().read("/etc/hosts").expect("it is there").contains(&line)
    })
    .await
}

/// The transport of each node's control traffic, as the server reports it.
async fn transports(mesh: &Mesh) -> Vec<String> {
    let output = mesh.nmplan(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().map(|node| node["control"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn nothing_but_the_tunnel_carries_control_traffic() {
    if !enter_test("nothing_but_the_tunnel_carries_control_traffic") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = registered(&mesh, &["a", "b", "c"]).await;
        assert_eq!(transports(&mesh).await, ["tunnel"; 3]);
        for agent in &agents {
            count(agent.host(), mesh.server.host().ipv4(), COMMS);
        }
        let start = Instant::now();
        let mut last = 0;
        while start.elapsed() < Duration::from_secs(60) {
            last += 1;
            change(&mesh, &agents[last % 3], &format!("10.40.8.{last}"), Duration::from_secs(3)).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        for agent in &agents {
            let (tcp, tunnel, other) = packets(agent.host());
            eprintln!("{}: {tcp} TCP, {tunnel} WireGuard, {other} other", agent.host().name());
            assert!(
                tcp == 0 && other == 0 && tunnel > 60,
                "only WireGuard passes between an agent and the server"
            );
        }
    });
}

#[test]
fn a_blocked_tunnel_is_replaced_by_tls_and_used_again_once_it_answers() {
    if !enter_test("a_blocked_tunnel_is_replaced_by_tls_and_used_again_once_it_answers") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = registered(&mesh, &["a", "b"]).await;
        let to = addresses(&agents[1], "corp").await[0];
        let pinger = agents[0].host().pinger(to, Duration::from_millis(20)).expect("sockets");
        drop_udp(mesh.server.host(), COMMS);
        let took = change(&mesh, &agents[0], "10.40.9.2", Duration::from_secs(10)).await;
        takes(&agents[0], "tls", Duration::from_secs(10)).await;
        takes(&agents[1], "tls", Duration::from_secs(10)).await;
        let by_tls = change(&mesh, &agents[0], "10.40.9.3", Duration::from_secs(5)).await;
        forget(mesh.server.host());
        let back = takes(&agents[0], "tunnel", Duration::from_secs(60)).await;
        takes(&agents[1], "tunnel", Duration::from_secs(60)).await;
        change(&mesh, &agents[0], "10.40.9.4", Duration::from_secs(3)).await;
        let lost = pinger.stop().await.lost;
        eprintln!(
            "the first change came after {took:?}, the next after {by_tls:?}, the return to the tunnel took {back:?}"
        );
        assert_eq!(lost, 0, "the mesh is not affected");
    });
}

#[test]
fn after_any_process_is_killed_control_traffic_returns_to_the_tunnel() {
    if !enter_test("after_any_process_is_killed_control_traffic_returns_to_the_tunnel") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let mut agents = registered(&mesh, &["a", "b"]).await;
        let to = addresses(&agents[1], "corp").await[0];
        let pinger = agents[0].host().pinger(to, Duration::from_millis(20)).expect("sockets");
        for round in 0..u8::try_from(rounds()).expect("a few") {
            // The server: a refused connection is an answer, so the transport stays.
            mesh.server.kill().await.expect("it is killed");
            takes(&agents[0], "none", Duration::from_secs(20)).await;
            mesh.server.serve().await.expect("it serves again");
            let took = change(&mesh, &agents[0], &format!("10.40.20.{round}"), Duration::from_secs(20)).await;
            takes(&agents[0], "tunnel", Duration::from_secs(1)).await;
            eprintln!("a change came {took:?} after the server was started again");

            // The device at the server: it is made again, with every peer.
            end_to_end::kill_device(mesh.server.host(), "nm-comms");
            let took = change(&mesh, &agents[0], &format!("10.40.21.{round}"), Duration::from_secs(10)).await;
            eprintln!("a change came {took:?} after the server's device was killed");
            takes(&agents[0], "tunnel", Duration::from_secs(60)).await;

            // The device at the agent.
            end_to_end::kill_device(agents[0].host(), "nm-comms");
            let took = change(&mesh, &agents[0], &format!("10.40.22.{round}"), Duration::from_secs(10)).await;
            eprintln!("a change came {took:?} after the agent's device was killed");
            takes(&agents[0], "tunnel", Duration::from_secs(60)).await;

            // The agent.
            agents[0].kill_daemon().await.expect("it is killed");
            agents[0].start_daemon(&[]).expect("the agent starts");
            change(&mesh, &agents[0], &format!("10.40.23.{round}"), Duration::from_secs(10)).await;
            takes(&agents[0], "tunnel", Duration::from_secs(5)).await;
        }
        assert_eq!(pinger.stop().await.lost, 0, "the mesh is not affected");
    });
}

/// Runs a program on a host, which is to succeed; returns what it printed.
async fn run(host: &Host, words: &str) -> String {
    let mut words = words.split_whitespace();
    let mut command = host.command(words.next().expect("a program"));
    command.args(words);
    let output = host.run(command).await.expect("it runs");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    text_of(&output.stdout)
}

/// Whether a TCP connection through the tunnel's interface succeeds, from an address of the host if one is
/// given.
fn connects(host: &Host, from: Option<Ipv4Addr>, to: (Ipv4Addr, u16)) -> bool {
    host.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind_device(Some(b"nm-comms")).expect("the interface is there");
        if let Some(from) = from {
            socket.bind(&SocketAddr::from((from, 0)).into()).expect("the address is the host's");
        }
        socket.connect_timeout(&SocketAddr::from(to).into(), Duration::from_secs(1)).is_ok()
    })
}

#[test]
fn an_agent_reaches_the_agents_service_and_nothing_else() {
    if !enter_test("an_agent_reaches_the_agents_service_and_nothing_else") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh.apply(&text("10.40.9.1")).await;
        let server = mesh.server.host();
        let foreign = Ipv4Addr::new(203, 0, 113, 1);
        run(server, "ip address add 203.0.113.1/32 dev lo").await;
        // Even where the host forwards, nothing from the tunnel is forwarded.
        run(server, "sysctl -qw net.ipv4.ip_forward=1").await;
        let open =
            |host: &Host| host.within(|| TcpListener::bind(("0.0.0.0", 7_777)).expect("the port is free"));
        let [a, b] = [mesh.agent("a").await, mesh.agent("b").await];
        for agent in [&a, &b] {
            agent.register(&tokens["corp/access-key/k"]).await.expect("it registers");
        }
        let _listeners = [open(server), open(b.host())];
        let (own, others) = (address(&a).await, address(&b).await);
        let service = Ipv4Addr::new(10, 101, 0, 1);
        assert_ne!(own, others);
        assert!(connects(a.host(), None, (service, COMMS)), "that is what it is for");

        // Root on the agent's host may send anything into the tunnel.
        let key = run(a.host(), "wg show nm-comms peers").await;
        let to = format!("{} endpoint {}:{COMMS}", key.trim(), server.ipv4());
        run(a.host(), &format!("wg set nm-comms peer {to} allowed-ips 0.0.0.0/0")).await;
        run(a.host(), "ip route add 10.101.0.0/16 dev nm-comms").await;
        run(a.host(), "ip route add 203.0.113.0/24 dev nm-comms").await;
        eventually("the tunnel is up again", Duration::from_secs(10), async || {
            connects(a.host(), None, (service, COMMS))
        })
        .await;
        for (to, port) in [
            (service, 8_081),
            (service, 50_051),
            (service, 7_777),
            (foreign, 7_777),
            (foreign, COMMS),
            (foreign, 8_081),
            (others, 7_777),
            (mesh.server.host().ipv4(), 8_081),
        ] {
            assert!(!connects(a.host(), None, (to, port)), "nothing answers at {to}:{port}");
        }
        run(a.host(), &format!("ip address add {others}/32 dev nm-comms")).await;
        assert!(!connects(a.host(), Some(others), (service, COMMS)), "no agent may use another's address");
        for to in [service, others, foreign] {
            let answer = a.host().ping(to.into(), Duration::from_secs(1)).await.expect("sockets");
            assert!(to == others || answer.is_none(), "{to} answers a ping");
        }
        assert!(connects(a.host(), Some(own), (service, COMMS)), "the tunnel still works");
        // A host that the underlay routes to the server's address in the tunnel cannot reach the service
        // either.
        let port = text_of(&ip(&["-o", "route", "get", &server.ipv4().to_string()]).stdout);
        let port = port.split_whitespace().skip_while(|word| *word != "dev").nth(1).expect("a route");
        ip(&["route", "add", "10.101.0.1/32", "dev", port]);
        let c = mesh.agent("c").await;
        let reaches = |port: u16| {
            let to = SocketAddr::from((service, port));
            c.host().within(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok())
        };
        // The first packet on a fresh cable may be lost.
        eventually("the route leads there", Duration::from_secs(10), async || reaches(7_777)).await;
        assert!(!reaches(COMMS), "the service is reached through the tunnel only");
    });
}

/// Runs `ip` where the test runs, which is the router of the underlay.
fn ip(arguments: &[&str]) -> Output {
    let output = Command::new("ip").args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    output
}

/// The address of an agent in the tunnel to its server.
async fn address(agent: &Agent) -> Ipv4Addr {
    let status = agent.status().await.expect("the agent answers");
    status["registrations"][0]["address"].as_str().and_then(|it| it.parse().ok()).expect("an address")
}

/// Registers, which is to be refused in time and to leave nothing; returns the error that was printed.
async fn refused(agent: &Agent, token: &str) -> String {
    let start = Instant::now();
    let output = agent.netclient(&["register", "-t", token]).await.expect("it runs");
    let printed = text_of(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(start.elapsed() < Duration::from_secs(10), "{printed}");
    has_nothing(agent).await;
    printed
}

/// Waits until nothing of the agent is left on its host.
async fn has_nothing(agent: &Agent) {
    let host = agent.host();
    eventually("every process ends", Duration::from_secs(5), async || host.processes().is_empty()).await;
    for interface in ["nm-comms", "nm-corp", "nm-lab"] {
        let link = host.within(|| netclient::device::link_index(interface)).expect("the kernel answers");
        assert_eq!(link, None, "{interface}");
    }
    let left: Vec<_> = host.within(|| {
        let listed = std::fs::read_dir("/etc/netclient").into_iter().flatten().flatten();
        listed.map(|file| file.file_name()).collect()
    });
    assert_eq!(left, Vec::<std::ffi::OsString>::new());
}

#[test]
fn a_registration_that_is_not_possible_is_refused() {
    if !enter_test("a_registration_that_is_not_possible_is_refused") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let network = r#"network "corp" { ipv4 "10.40.0.0/16"; access-key "one"; access-key "old" expires="2001-01-01" }"#;
        mesh.apply(&network.replace(" expires=\"2001-01-01\"", "")).await;
        let tokens = mesh.apply(network).await;
        let token = &tokens["corp/access-key/one"];
        let [a, b] = [mesh.agent("a").await, mesh.agent("b").await];
        let printed = refused(&a, &mistyped(token)).await;
        assert!(printed.contains("mistyped"), "{printed}");
        let printed = refused(&a, &tokens["corp/access-key/old"]).await;
        assert!(printed.contains("expired on 2001-01-01"), "{printed}");

        b.join(token, &[]).await.expect("it joins");
        let printed = refused(&a, token).await;
        assert!(printed.contains("has been used 1 time,"), "{printed}");
        b.register(token).await.expect("it has joined, so the key does not matter");
        assert!(b.status().await.expect("it answers")["registrations"][0]["expires"].is_null());

        mesh.apply(r#"network "corp" { ipv4 "10.40.0.0/16" }"#).await;
        let printed = refused(&a, token).await;
        assert!(printed.contains("was deleted"), "{printed}");

        mesh.server.kill().await.expect("it is killed");
        let printed = refused(&a, token).await;
        assert!(printed.contains("cannot reach the server at 198.18."), "{printed}");
        std::fs::remove_dir_all(mesh.server.data()).expect("it is removed");
        mesh.server.serve().await.expect("it serves");
        let printed = refused(&a, token).await;
        assert!(printed.contains("not from the expected server"), "{printed}");
    });
}

#[test]
fn a_server_that_cannot_have_tunnels_serves_without_them() {
    if !enter_test("a_server_that_cannot_have_tunnels_serves_without_them") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start_with(&[("COMMS_PORT", "4000")]).await;
        mesh.server.kill().await.expect("it is killed");
        // It attaches to its own device; another program on the port turns tunnels off.
        mesh.server.serve().await.expect("it serves");
        let log = mesh.server.process().expect("it runs").printed();
        assert!(!log.contains("COMMS is off"), "{log}");
        mesh.server.kill().await.expect("it is killed");
        end_to_end::kill_device(mesh.server.host(), "nm-comms");
        let host = mesh.server.host();
        let busy = eventually_some("the port is free", async || {
            host.within(|| UdpSocket::bind(("0.0.0.0", 4_000))).ok()
        })
        .await;
        mesh.server.serve().await.expect("it serves");
        let log = mesh.server.process().expect("it runs").printed();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("COMMS is off")).collect();
        assert!(lines.len() == 1 && lines[0].contains("4000") && lines[0].contains("COMMS_PORT"), "{log}");
        let tokens = mesh.apply(&text("10.40.9.1")).await;
        let a = mesh.agent("a").await;
        let printed = refused(&a, &tokens["corp/access-key/k"]).await;
        assert!(printed.contains("COMMS is off") && printed.contains("netclient join"), "{printed}");
        a.join(&tokens["corp/access-key/k"], &[]).await.expect("it joins without a tunnel");
        drop(busy);
    });
}

/// Polls until there is something.
async fn eventually_some<T>(what: &str, mut get: impl AsyncFnMut() -> Option<T>) -> T {
    let mut got = None;
    eventually(what, Duration::from_secs(10), async || {
        got = get().await;
        got.is_some()
    })
    .await;
    got.expect("it was waited for")
}

#[test]
fn two_hundred_register_at_once_and_a_full_range_is_reported() {
    if !enter_test("two_hundred_register_at_once_and_a_full_range_is_reported") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let network = r#"network "corp" { ipv4 "10.40.0.0/16"; access-key "k" uses="unlimited" }"#;
        let tokens = mesh.apply(network).await;
        let token: Token = tokens["corp/access-key/k"].parse().expect("a token");
        let server = mesh.known_server(&tokens["corp/access-key/k"]);
        let seed = proto::sign::from_seed(token.seed.expose());
        let register = async |number: u32| {
            let mut agent = BareAgent::new(&server, "corp", &format!("n{number}"), number);
            agent.register(Some(("k", &seed))).await
        };
        // An emulated processor does not complete as many handshakes before the server closes connections that
        // have sent no request.
        let hosts = if guest::inside() { 20 } else { 200 };
        let start = Instant::now();
        let answers = futures_util::future::join_all((0..hosts).map(register)).await;
        eprintln!("{hosts} registered within {:?}", start.elapsed());
        let addresses: BTreeSet<_> =
            answers.iter().map(|it| it.as_ref().expect("it registers").address.to_vec()).collect();
        assert_eq!(addresses.len(), hosts as usize);
        let again = register(7).await.expect("it registers again");
        assert_eq!(again.address, answers[7].as_ref().expect("it registered").address);

        mesh.server.kill().await.expect("it is killed");
        mesh.server.set("COMMS_RANGE", "10.102.0.0/29");
        mesh.server.serve().await.expect("it serves");
        let answers = futures_util::future::join_all((0..5).map(register)).await;
        assert!(answers.iter().all(Result::is_ok), "those of another range are forgotten: {answers:?}");
        let full = register(9).await.expect_err("it is full");
        assert!(full.message().contains("all 5 addresses of COMMS_RANGE 10.102.0.0/29"), "{full}");
    });
}

#[test]
fn leaving_the_last_network_ends_the_tunnel() {
    if !enter_test("leaving_the_last_network_ends_the_tunnel") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let two = r#"
            network "corp" { ipv4 "10.40.0.0/16"; access-key "k" uses=9 }
            network "lab" { ipv4 "10.41.0.0/16"; access-key "k" uses=9 }"#;
        let tokens = mesh.apply(two).await;
        let mut a = mesh.agent("a").await;
        a.register(&tokens["corp/access-key/k"]).await.expect("it registers");
        a.start_daemon(&[]).expect("the agent starts");
        for key in ["corp/access-key/k", "lab/access-key/k"] {
            a.join(&tokens[key], &[]).await.expect("it joins");
        }
        for network in [0, 1] {
            takes_in(&a, network, "tunnel", Duration::from_secs(10)).await;
        }
        let leave = async |network: &str| {
            let start = Instant::now();
            let output = a.netclient(&["leave", "-n", network]).await.expect("it runs");
            assert!(output.status.success(), "{}", text_of(&output.stderr));
            assert!(
                start.elapsed() < Duration::from_secs(3),
                "the answer to the leave arrives: {:?}",
                start.elapsed()
            );
        };
        leave("corp").await;
        takes(&a, "tunnel", Duration::from_secs(1)).await;
        leave("lab").await;
        let peers = async || run(mesh.server.host(), "wg show nm-comms peers").await;
        eventually("the server forgets it", Duration::from_secs(15), async || peers().await.is_empty()).await;
        a.kill_daemon().await.expect("it is killed");
        let socket = "/etc/netclient/agent.sock";
        a.host()
            .within(|| {
                std::fs::remove_file(socket).and_then(|()| std::fs::remove_file(format!("{socket}.lock")))
            })
            .expect("what a daemon that was killed leaves");
        has_nothing(&a).await;
    });
}

#[test]
#[ignore = "needs the kernel's WireGuard; kernel.rs runs it in a guest"]
fn without_tun_both_ends_of_the_tunnel_are_the_kernels() {
    if !enter_test("without_tun_both_ends_of_the_tunnel_are_the_kernels") {
        return;
    }
    in_runtime(async {
        let programs = Programs::find().expect("the programs are built");
        let underlay = Underlay::new().await.expect("an underlay");
        let host = underlay.host("the_server").await.expect("a host");
        host.hide("/dev/net").expect("it is there");
        let server = Server::start_on(host, &programs, &[]).await.expect("a server that serves");
        let mut mesh = Mesh { underlay, programs, server };
        let tokens = mesh.apply(&text("10.40.9.1")).await;
        let mut a = mesh.agent("a").await;
        a.host().hide("/dev/net").expect("it is there");
        a.register(&tokens["corp/access-key/k"]).await.expect("it registers");
        let links = || [mesh.server.host(), a.host()].map(|host| end_to_end::link(host, "nm-comms"));
        let made = links();
        for link in &made {
            assert_eq!(link["linkinfo"]["info_kind"], "wireguard", "{link}");
        }
        a.join(&tokens["corp/access-key/k"], &[]).await.expect("it joins");
        a.start_daemon(&[]).expect("the agent starts");
        takes(&a, "tunnel", Duration::from_secs(10)).await;
        change(&mesh, &a, "10.40.9.2", Duration::from_secs(3)).await;

        // New processes find what the last ones left, by key and name.
        mesh.server.kill().await.expect("it is killed");
        a.kill_daemon().await.expect("it is killed");
        mesh.server.serve().await.expect("it serves again");
        a.start_daemon(&[]).expect("the agent starts");
        takes(&a, "tunnel", Duration::from_secs(60)).await;
        change(&mesh, &a, "10.40.9.3", Duration::from_secs(3)).await;
        let found = [mesh.server.host(), a.host()].map(|host| end_to_end::link(host, "nm-comms"));
        for (made, found) in made.iter().zip(&found) {
            assert_eq!(made["ifindex"], found["ifindex"]);
        }

        let left = a.netclient(&["leave"]).await.expect("it runs");
        assert!(left.status.success(), "{}", text_of(&left.stderr));
        for interface in ["nm-comms", "nm-corp"] {
            let link =
                a.host().within(|| netclient::device::link_index(interface)).expect("the kernel answers");
            assert_eq!(link, None, "{interface}");
        }

        // The kernel keeps no deadline: the next command does what it asks for.
        let b = mesh.agent("b").await;
        b.host().hide("/dev/net").expect("it is there");
        b.register(&tokens["corp/access-key/k"]).await.expect("it registers");
        assert_eq!(link_kind(b.host(), "nm-comms").await, "wireguard");
        let_expire(b.host());
        let listed = b.netclient(&["list"]).await.expect("it runs");
        assert!(listed.status.success() && listed.stderr.is_empty(), "{}", text_of(&listed.stderr));
        has_nothing(&b).await;
    });
}

/// Moves the deadline of a host's registration, as it is on the disk, to now.
fn let_expire(host: &Host) {
    host.within(|| {
        let listed = std::fs::read_dir("/etc/netclient").expect("it is there").flatten();
        let file = listed.map(|it| it.path()).find(|it| it.to_string_lossy().contains("comms-"));
        let file = file.expect("it is kept");
        let mut kept: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).expect("it can be read")).expect("JSON");
        // Whole seconds, which have passed.
        kept["deadline"]["at"]["secs"] = netclient::device::boottime().as_secs().into();
        kept["deadline"]["at"]["nanos"] = 0.into();
        std::fs::write(&file, kept.to_string()).expect("it can be written");
    });
}

#[test]
fn a_registration_that_nobody_follows_up_is_ended_by_its_device() {
    if !enter_test("a_registration_that_nobody_follows_up_is_ended_by_its_device") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let tokens = mesh.apply(&text("10.40.9.1")).await;
        let a = mesh.agent("a").await;
        for _ in 0..2 {
            a.register(&tokens["corp/access-key/k"]).await.expect("it registers, and again");
        }
        let expires = a.status().await.expect("it answers")["registrations"][0]["expires"]
            .as_u64()
            .expect("a deadline");
        assert!((590..=600).contains(&expires), "{expires}");
        // The deadline is moved to now: on the disk, and for the device's process.
        let_expire(a.host());
        a.host().within(|| {
            let device =
                netclient::device::attach("nm-comms", Path::new("/etc/netclient/device-nm-comms.sock"));
            let mut device = device.expect("it answers").expect("it is there");
            assert!(device.expire_at(Some(netclient::device::boottime())).expect("it takes it"));
        });
        has_nothing(&a).await;
    });
}

#[test]
fn tunnels_to_two_servers_with_the_same_range_do_not_collide() {
    if !enter_test("tunnels_to_two_servers_with_the_same_range_do_not_collide") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let host = mesh.underlay.host("the_other_server").await.expect("a host");
        let mut other = Server::start_on(host, &mesh.programs, &[]).await.expect("a server that serves");
        let tokens = mesh.apply(&text("10.40.9.1")).await;
        let lab = r#"network "lab" { ipv4 "10.41.0.0/16"; check-in "2s"; access-key "k" uses=9 }"#;
        let others = mesh.apply_at(&other, lab).await;
        let mut a = mesh.agent("a").await;
        // The strictest reverse path filter that a host may have.
        run(a.host(), "sysctl -qw net.ipv4.conf.all.rp_filter=1").await;
        for (token, interface) in
            [(&tokens["corp/access-key/k"], "nm-comms"), (&others["lab/access-key/k"], "nm-comms2")]
        {
            a.register(token).await.expect("it registers");
            let link =
                a.host().within(|| netclient::device::link_index(interface)).expect("the kernel answers");
            assert!(link.is_some(), "{interface}");
            a.join(token, &[]).await.expect("it joins");
        }
        let status = a.status().await.expect("it answers");
        let address = |index: usize| status["registrations"][index]["address"].clone();
        assert_eq!(address(0), address(1), "both servers give the same address");
        a.start_daemon(&[]).expect("the agent starts");
        for network in [0, 1] {
            takes_in(&a, network, "tunnel", Duration::from_secs(10)).await;
        }
        other.kill().await.expect("it is killed");
        change(&mesh, &a, "10.40.9.7", Duration::from_secs(3)).await;
        takes(&a, "tunnel", Duration::from_secs(1)).await;
    });
}

#[test]
fn an_agent_that_the_server_no_longer_knows_registers_again() {
    if !enter_test("an_agent_that_the_server_no_longer_knows_registers_again") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let agents = registered(&mesh, &["a", "b"]).await;
        // The server's host was rebooted: the registrations are on the disk, and the device is gone.
        mesh.server.kill().await.expect("it is killed");
        end_to_end::kill_device(mesh.server.host(), "nm-comms");
        mesh.server.serve().await.expect("it serves again");
        for agent in &agents {
            takes(agent, "tunnel", Duration::from_secs(60)).await;
        }
        // A backup was restored on another host, or a replica took over: nothing of the tunnels is there.
        mesh.server.kill().await.expect("it is killed");
        end_to_end::kill_device(mesh.server.host(), "nm-comms");
        for file in ["comms.db", "comms.db-wal", "comms.db-shm", "comms.key"] {
            let _ = std::fs::remove_file(mesh.server.data().join(file));
        }
        mesh.server.serve().await.expect("it serves again");
        let start = Instant::now();
        for agent in &agents {
            takes(agent, "tls", Duration::from_secs(20)).await;
        }
        for agent in &agents {
            takes(agent, "tunnel", Duration::from_secs(60)).await;
        }
        eprintln!("all were back in the tunnel after {:?}", start.elapsed());
        change(&mesh, &agents[0], "10.40.9.8", Duration::from_secs(3)).await;
    });
}

#[test]
fn a_damaged_registration_is_no_obstacle() {
    if !enter_test("a_damaged_registration_is_no_obstacle") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let agents = registered(&mesh, &["a"]).await;
        let [a] = &*agents else { panic!("there is one") };
        let damage = || {
            a.host().within(|| {
                let listed = std::fs::read_dir("/etc/netclient").expect("it is there").flatten();
                let file = listed.map(|it| it.path()).find(|it| it.to_string_lossy().contains("comms-"));
                std::fs::write(file.expect("it is kept"), "{").expect("it can be written");
            });
        };
        damage();
        let tokens = mesh.apply(&text("10.40.9.2")).await;
        takes(a, "tls", Duration::from_secs(20)).await;
        a.register(&tokens["corp/access-key/k"]).await.expect("it registers again");
        takes(a, "tunnel", Duration::from_secs(60)).await;
        assert_eq!(
            run(a.host(), "ip -br link show type tun").await.matches("nm-comms").count(),
            1,
            "the old one is gone"
        );
        damage();
        let output = a.netclient(&["leave"]).await.expect("it runs");
        assert!(output.status.success(), "{}", text_of(&output.stderr));
        assert_eq!(run(a.host(), "ip -br link show type tun").await, "", "nothing is left");
    });
}

#[test]
fn a_tunnel_to_a_device_that_serves_nobody_is_abandoned() {
    if !enter_test("a_tunnel_to_a_device_that_serves_nobody_is_abandoned") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let agents = registered(&mesh, &["a"]).await;
        // The server comes back without tunnels, while its old device still answers.
        mesh.server.kill().await.expect("it is killed");
        std::fs::write(mesh.server.data().join("comms.key"), "damaged").expect("it can be written");
        mesh.server.serve().await.expect("it serves again");
        let log = mesh.server.process().expect("it runs").printed();
        assert!(log.contains("COMMS is off"), "{log}");
        takes(&agents[0], "tls", Duration::from_secs(30)).await;
        change(&mesh, &agents[0], "10.40.9.3", Duration::from_secs(3)).await;
    });
}

#[test]
fn filter_link_and_address_of_the_tunnels_are_repaired() {
    if !enter_test("filter_link_and_address_of_the_tunnels_are_repaired") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let agents = registered(&mesh, &["a"]).await;
        let a = agents[0].host();
        let rest = (Ipv4Addr::new(10, 101, 0, 1), 8_081);
        let closed = async |what: &str| {
            eventually(what, Duration::from_secs(10), async || !connects(a, None, rest)).await;
            eventually("the service is there", Duration::from_secs(10), async || {
                connects(a, None, (rest.0, COMMS))
            })
            .await;
        };
        // As Debian's /etc/nftables.conf begins.
        run(mesh.server.host(), "nft flush ruleset").await;
        closed("the filter is there again").await;
        run(mesh.server.host(), "ip link set nm-comms down").await;
        closed("the link is up again").await;
        run(mesh.server.host(), "ip address flush dev nm-comms").await;
        closed("the address is there again").await;

        // What the log advises if the database of registrations is damaged; the device is found by its
        // socket.
        mesh.server.kill().await.expect("it is killed");
        for file in ["comms.db", "comms.db-wal", "comms.db-shm"] {
            let _ = std::fs::remove_file(mesh.server.data().join(file));
        }
        mesh.server.serve().await.expect("it serves again");
        let log = mesh.server.process().expect("it runs").printed();
        assert!(!log.contains("COMMS is off"), "{log}");
        takes(&agents[0], "tunnel", Duration::from_secs(60)).await;

        // Another port is another device.
        for port in ["4001", "4002", "4003", "4004", "4005", "4006"] {
            mesh.server.kill().await.expect("it is killed");
            mesh.server.set("COMMS_PORT", port);
            mesh.server.serve().await.expect("it serves again");
        }
        let log = mesh.server.process().expect("it runs").printed();
        assert!(!log.contains("COMMS is off") && log.contains(":4006"), "{log}");

        // A range that the host has already.
        mesh.server.kill().await.expect("it is killed");
        mesh.server.set("COMMS_RANGE", "198.18.0.0/16");
        mesh.server.serve().await.expect("it serves again");
        let log = mesh.server.process().expect("it runs").printed();
        assert!(log.contains("of eth0 on this host overlaps COMMS_RANGE 198.18.0.0/16"), "{log}");
        assert_eq!(
            run(mesh.server.host(), "ip -br link show type tun").await,
            "",
            "nothing is left of the tunnels"
        );
        assert_eq!(run(mesh.server.host(), "nft list ruleset").await, "");
    });
}
