//! The table of a network with access rules in the kernel: how it changes, how drift is found, and what it does
//! to packets.
//!
//! ```text
//! a ==== underlay ==== b ---- lan 192.168.50.2, .9, fd50::2, fd50::1:9
//!                      |  `-- other 192.168.60.2
//!                      x, y: what they send goes through b
//! ```
//!
//! The interface that b judges is that of the underlay: who opens what at whom needs no WireGuard. The whole
//! agent is in `access.rs`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use end_to_end::{eventually, in_runtime, text_of};
use ipnet::IpNet;
use netclient::filter::{Filter, FilterChanges};
use netclient::host::{Host as _, System};
use netclient::outside::{Mark, Slot};
use netclient::system::firewall::FirewallError;
use netclient::system::watch::HostEvent;
use nmplan::lab::{Flow, Host, Listeners, Outcome, Pattern, Probe, Process, Service, Underlay, enter_test};
use schema::access::{Access, ClassId, Ports, Protocol};
use schema::scalars::{Name, Seconds, WireGuardKey};
use schema::view::{Forward, Interface, Peer, Route, View, ViewDelta};
use tokio::time::Instant;

fn class(name: &str) -> ClassId {
    ClassId::of(name.as_bytes())
}

fn tcp(port: u16) -> Access {
    Access::of(Some(Protocol::Tcp), Some(Ports::from_iter([port..=port])))
}

/// A View with access rules and without peers.
fn restricted(access: &[(&str, Access)]) -> View {
    let interface = Interface {
        addresses: ["10.9.255.1/16".parse().expect("good")].into(),
        listen_port: 51_821,
        listen_port_fixed: false,
        mtu: None,
        keepalive: Seconds(20),
        check_in: Seconds(15),
        carrier: None,
        forward: false,
        restricted: true,
        class: Default::default(),
        named: true,
        resolvers: Default::default(),
    };
    View {
        network: "corp".parse().expect("good"),
        node: "b".parse().expect("good"),
        interface,
        peers: Default::default(),
        access: access.iter().map(|(name, access)| (class(name), Arc::new(access.clone()))).collect(),
        routes: Default::default(),
        forwards: Default::default(),
        guarded: Default::default(),
        names: Default::default(),
    }
}

fn put(view: &mut View, name: &str, of: &str, addresses: &[IpAddr]) {
    let peer = Peer {
        public_key: Some(WireGuardKey([1; 32])),
        endpoint: None,
        addresses: addresses.iter().copied().collect(),
        via: None,
        class: class(of),
        carries: false,
        named: true,
    };
    view.peers.insert(name.parse().expect("good"), Arc::new(peer));
}

/// Many members, each with an address of each family.
fn put_many(view: &mut View, many: u16) {
    for number in 0..many {
        let [high, low] = number.to_be_bytes();
        let addresses = [
            IpAddr::from(Ipv4Addr::new(10, 9, high, low)),
            IpAddr::from(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number)),
        ];
        put(view, &format!("n{number}"), "web", &addresses);
    }
}

fn filter(view: &View) -> Filter {
    Filter::of("eth0", view).expect("it has access rules")
}

fn changes(before: &View, after: &View) -> FilterChanges {
    FilterChanges::between(before, after, &ViewDelta::between(before, after))
}

/// Runs a program on the host of this thread.
fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output =
        Command::new(words.next().expect("a program")).args(words).output().expect("it is installed");
    assert!(output.status.success(), "{line}: {}", text_of(&output.stderr));
    text_of(&output.stdout)
}

fn listed() -> String {
    run("nft list table inet nm-access-eth0")
}

/// How many elements both maps have.
fn elements() -> usize {
    listed().matches(": jump c_").count()
}

#[test]
fn a_table_changes_in_place_and_drift_is_found() {
    if !enter_test("a_table_changes_in_place_and_drift_is_found") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let host = underlay.host("b").await.expect("a host");
        let file = host.directory().join("ruleset");
        host.within(|| {
            let system = System::default();
            let none = restricted(&[("web", tcp(80)), ("admin", Access::everything())]);
            system.set_access(&filter(&none)).expect("it is set");
            assert_eq!(elements(), 0);
            let set = listed();

            // Members come and go: elements, as many as fit into one attribute and more.
            let mut many = none.clone();
            put_many(&mut many, 480);
            system.change_access("eth0", &changes(&none, &many)).expect("they are added");
            assert_eq!(elements(), 960);
            system.change_access("eth0", &changes(&many, &none)).expect("they are taken out");
            assert_eq!(listed(), set);
            system.change_access("eth0", &changes(&none, &many)).expect("they are added");

            // A member changes its class, a class its ports; one goes and one comes.
            let mut moved = many.clone();
            let address = "10.9.0.7".parse().expect("good");
            put(&mut moved, "n7", "admin", &[address]);
            system.change_access("eth0", &changes(&many, &moved)).expect("it is moved");
            assert!(listed().contains(&format!("10.9.0.7 : jump c_{}", class("admin"))), "{}", listed());
            assert_eq!(elements(), 959);
            let mut ruled = moved.clone();
            let some = tcp(443).or(&Access::of(Some(Protocol::Icmp), None)).or(&tcp(8443));
            ruled.access.insert(class("web"), Arc::new(some));
            ruled.access.remove(&class("admin"));
            ruled.access.insert(class("all-but-one"), Arc::new(Access::everything().without(&tcp(22))));
            put(&mut ruled, "n8", "all-but-one", &["10.9.0.8".parse().expect("good")]);
            system.change_access("eth0", &changes(&moved, &ruled)).expect("it is changed");
            let changed = listed();
            assert!(changed.contains("443, 8443") && changed.contains("0-21, 23-65535"), "{changed}");
            assert!(!changed.contains(&class("admin").to_string()), "{changed}");

            // What is followed is what is set at once, and what is listed reads back.
            let anew = System::default();
            anew.set_access(&filter(&ruled)).expect("it is set");
            assert_eq!(sorted(&listed()), sorted(&changed));
            let kept = run("nft list ruleset");
            std::fs::write(&file, &kept).expect("written");
            run("nft flush ruleset");
            run(&format!("nft -f {}", file.display()));
            assert_eq!(run("nft list ruleset"), kept, "a user's nftables.conf may hold it");

            // Another program took something away, or put something in.
            let mut more = ruled.clone();
            put(&mut more, "later", "web", &["10.9.200.1".parse().expect("good")]);
            for drift in [
                "nft flush ruleset",
                "nft delete element inet nm-access-eth0 who4 { 10.9.0.9 }",
                "nft flush chain inet nm-access-eth0 in",
            ] {
                anew.set_access(&filter(&ruled)).expect("it is set");
                let right = listed();
                run(drift);
                anew.set_access(&filter(&ruled)).expect("it is repaired");
                assert_eq!(sorted(&listed()), sorted(&right), "{drift}");
            }
            let handles = || run("nft -a list table inet nm-access-eth0");
            let before = handles();
            anew.set_access(&filter(&ruled)).expect("it stands");
            assert_eq!(handles(), before, "what stands is not replaced");
            let drifted = |system: &System, before: &View, after: &View| {
                let refused = system.change_access("eth0", &changes(before, after));
                assert!(matches!(refused, Err(FirewallError::Refused { .. })), "{refused:?}");
                let again = system.change_access("eth0", &FilterChanges::default());
                assert!(again.is_err(), "it is not known any more: {again:?}");
            };
            run("nft add element inet nm-access-eth0 who4 { 10.9.200.1 : drop }");
            drifted(&anew, &ruled, &more);
            anew.set_access(&filter(&more)).expect("it is set");
            run("nft delete element inet nm-access-eth0 who4 { 10.9.200.1 }");
            drifted(&anew, &more, &ruled);

            assert!(anew.remove_access("eth0").expect("it is removed"));
            assert!(!anew.remove_access("eth0").expect("there is none"));
            assert_eq!(run("nft list ruleset"), "");
        });
    });
}

/// The words of a listing, in an order that does not depend on how it came about.
fn sorted(text: &str) -> Vec<&str> {
    let mut words: Vec<_> = text.split([' ', ',', '\n', '\t']).filter(|it| !it.is_empty()).collect();
    words.sort_unstable();
    words
}

#[test]
fn whatever_others_change_of_a_table_is_heard_of_at_once_and_what_was_set_is_not() {
    let name = "whatever_others_change_of_a_table_is_heard_of_at_once_and_what_was_set_is_not";
    if !enter_test(name) {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let host = underlay.host("b").await.expect("a host");
        let system = System::default();
        let runtime = tokio::runtime::Handle::current();
        let slot = Slot::candidates("/d".as_ref(), "/d".as_ref(), Mark::default())[0];
        let mut events = host.within(|| {
            let _runtime = runtime.enter();
            system.watch(slot).expect("the kernel tells")
        });
        let changes_of_filter = |events: &mut tokio::sync::mpsc::UnboundedReceiver<HostEvent>| {
            let all = std::iter::from_fn(|| events.try_recv().ok());
            all.filter(|event| *event == HostEvent::Filter).count()
        };

        // Tables, classes and members come and go, and nothing is heard of it.
        let none = restricted(&[("web", tcp(80))]);
        let mut many = none.clone();
        put_many(&mut many, 480);
        let mut ruled = none.clone();
        ruled.access.insert(class("web"), Arc::new(tcp(443)));
        host.within(|| {
            for _ in 0..5 {
                system.set_access(&filter(&none)).expect("it is set");
                for (before, after) in [(&none, &many), (&many, &none), (&none, &ruled), (&ruled, &none)] {
                    system.change_access("eth0", &changes(before, after)).expect("it is changed");
                }
                // One that is refused, and so never ends.
                let clash = "192.0.2.1".parse().expect("good");
                let mut more = none.clone();
                put(&mut more, "later", "web", &[clash]);
                run("nft add element inet nm-access-eth0 who4 { 192.0.2.1 : drop }");
                system.change_access("eth0", &changes(&none, &more)).expect_err("it is there");
                system.set_access(&filter(&none)).expect("it is set");
                assert!(system.remove_access("eth0").expect("it is removed"));
            }
            system.set_access(&filter(&none)).expect("it is set");
        });
        // Each report comes after those of what was done before: this is the last one.
        let heard = async |events: &mut _, taking: &str| {
            host.within(|| run(taking));
            let mut count = 0;
            eventually(taking, Duration::from_secs(1), async || {
                count += changes_of_filter(events);
                count > 0
            })
            .await;
            count
        };
        let count = heard(&mut events, "nft add element inet nm-access-eth0 own4 { 10.9.7.7 }").await;
        assert_eq!(count, 6, "five for what was foreign in between, and this one");

        let web = class("web");
        for taking in [
            "nft add table inet nm-access-eth0 { flags dormant ; }".to_owned(),
            "nft insert rule inet nm-access-eth0 in accept".to_owned(),
            "nft insert rule inet nm-access-eth0 judge accept".to_owned(),
            "nft add chain inet nm-access-eth0 more { type filter hook input priority -1 ; }".to_owned(),
            format!("nft add element inet nm-access-eth0 t_{web} {{ 22 }}"),
            "nft delete element inet nm-access-eth0 own4 { 10.9.255.1 }".to_owned(),
            "nft add element inet nm-access-eth0 who4 { 10.9.200.1 : accept }".to_owned(),
            "nft flush chain inet nm-access-eth0 judge".to_owned(),
            "nft delete table inet nm-access-eth0".to_owned(),
            "nft flush ruleset".to_owned(),
        ] {
            host.within(|| system.set_access(&filter(&none))).expect("it is repaired");
            let right = host.within(listed);
            heard(&mut events, &taking).await;
            host.within(|| {
                system.change_access("eth0", &FilterChanges::default()).expect_err("it is not what was set");
                system.set_access(&filter(&none)).expect("it is repaired");
            });
            assert_eq!(sorted(&host.within(listed)), sorted(&right), "{taking}");
        }
        // What others do to their own tables is nobody's business.
        heard(&mut events, "nft add element inet nm-access-eth0 own4 { 10.9.7.8 }").await;
        host.within(|| {
            run("nft add table inet other");
            run("nft add chain inet other in { type filter hook input priority 0 ; }");
            run("nft add table ip nm-access-eth0");
            run("nft add table inet nm-access-eth1");
        });
        assert_eq!(heard(&mut events, "nft add element inet nm-access-eth0 own4 { 10.9.7.9 }").await, 1);
    });
}

/// A connection between two hosts, both ends with a short patience.
fn connect(a: &Host, listener: &TcpListener, to: SocketAddr) -> Option<(TcpStream, TcpStream)> {
    let patience = Some(Duration::from_millis(300));
    let near = a.within(|| TcpStream::connect_timeout(&to, Duration::from_millis(300))).ok()?;
    let (far, _) = listener.accept().expect("it was opened");
    for end in [&near, &far] {
        end.set_read_timeout(patience).expect("set");
    }
    Some((near, far))
}

/// Whether a byte arrives.
fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    from.write_all(b"x").expect("it is queued");
    to.read_exact(&mut [0]).is_ok()
}

#[test]
fn a_connection_is_judged_by_who_opened_it_and_ends_with_its_permission_in_both_directions() {
    let name = "a_connection_is_judged_by_who_opened_it_and_ends_with_its_permission_in_both_directions";
    if !enter_test(name) {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let [a, b] = [underlay.host("a").await, underlay.host("b").await].map(|host| host.expect("a host"));
        let listen = |host: &Host, port| {
            host.within(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))).expect("the port is free")
        };
        let (web, ssh) = (listen(&b, 80), listen(&b, 22));
        let at_a = listen(&a, 7000);
        let system = System::default();
        let mut none = restricted(&[("web", tcp(80))]);
        none.interface.addresses = [IpAddr::from(b.ipv4()), b.ipv6().into()].map(IpNet::from).into();
        let mut known = none.clone();
        put(&mut known, "a", "web", &[a.ipv4().into(), a.ipv6().into()]);
        let set = |view: &View| b.within(|| system.set_access(&filter(view))).expect("it is set");
        for own in [IpAddr::from(b.ipv4()), b.ipv6().into()] {
            let at = |port| SocketAddr::new(own, port);
            set(&none);
            assert!(connect(&a, &web, at(80)).is_none(), "{own}: a may open nothing");
            let peer = if own.is_ipv4() { IpAddr::from(a.ipv4()) } else { a.ipv6().into() };
            let (mut out, mut back) =
                connect(&b, &at_a, SocketAddr::new(peer, 7000)).expect("what b opens is answered");
            assert!(arrives(&mut out, &mut back) && arrives(&mut back, &mut out), "{own}");

            let follow = |before, after| {
                b.within(|| system.change_access("eth0", &changes(before, after))).expect("it is changed");
            };
            follow(&none, &known);
            let (mut near, mut far) = connect(&a, &web, at(80)).expect("a rule allows it");
            assert!(arrives(&mut near, &mut far) && arrives(&mut far, &mut near), "{own}");
            assert!(connect(&a, &ssh, at(22)).is_none(), "{own}: another port");

            follow(&known, &none);
            assert!(!arrives(&mut far, &mut near), "{own}: the answers end");
            assert!(!arrives(&mut near, &mut far), "{own}: and so does what a sends");
            assert!(
                arrives(&mut out, &mut back) && arrives(&mut back, &mut out),
                "{own}: what b opened goes on"
            );
        }
    });
}

/// Whether a host can open a TCP connection.
fn opens(from: &Host, to: SocketAddr) -> bool {
    from.within(|| TcpStream::connect_timeout(&to, Duration::from_millis(300))).is_ok()
}

#[test]
fn what_is_published_is_judged_by_the_port_that_was_asked_for_and_nothing_else_is_passed_on() {
    let name = "what_is_published_is_judged_by_the_port_that_was_asked_for_and_nothing_else_is_passed_on";
    if !enter_test(name) {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let hosts = [underlay.host("a").await, underlay.host("b").await, underlay.host("c").await];
        let [a, b, c] = hosts.map(|host| host.expect("a host"));
        // c is behind b, which publishes a port of it, and forwards everything.
        let mut sleep = c.command("sleep");
        sleep.arg("60");
        let mut holder = c.start("sleep", sleep).expect("it starts");
        let outer = [
            "ip link add veth0 type veth peer name veth1",
            "ip address add 172.17.0.1/24 dev veth0",
            "ip link set veth0 up",
            &format!("ip link set veth1 netns {}", holder.id().expect("it runs")),
            "nft add table ip nat",
            "nft add chain ip nat pre { type nat hook prerouting priority dstnat ; }",
            "nft add rule ip nat pre tcp dport 8080 dnat to 172.17.0.2:80",
        ];
        all(&b, &outer);
        b.write("/proc/sys/net/ipv4/ip_forward", "1").expect("it can be written");
        let inner = [
            "ip link set eth0 down",
            "ip address add 172.17.0.2/24 dev veth1",
            "ip link set veth1 up",
            "ip route replace default via 172.17.0.1",
        ];
        all(&c, &inner);
        holder.kill().await.expect("it is killed");
        run(&format!("ip route add 172.17.0.0/24 dev {}", b.cable()));
        let _web = c.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))).expect("the port is free");

        let system = System::default();
        let set = |access: Access, forward| {
            let mut view = restricted(&[("web", access)]);
            view.interface.addresses = [IpAddr::from(b.ipv4()).into()].into();
            view.interface.forward = forward;
            put(&mut view, "a", "web", &[a.ipv4().into()]);
            b.within(|| system.set_access(&filter(&view))).expect("it is set");
        };
        let published = SocketAddr::from((b.ipv4(), 8080));
        let behind = SocketAddr::from(([172, 17, 0, 2], 80));
        for (access, forward, reached) in [
            (tcp(80), false, (false, false)),
            (tcp(8080), false, (true, false)),
            (Access::everything(), false, (true, false)),
            (Access::everything(), true, (true, false)),
        ] {
            let what = access.to_string();
            set(access, forward);
            assert_eq!((opens(&a, published), opens(&a, behind)), reached, "{what}, {forward}");
        }
        b.within(|| system.remove_access("eth0")).expect("it is removed");
        assert!(opens(&a, published) && opens(&a, behind), "without the table");
    });
}

/// How long a packet may take; what does not arrive by then does not.
const PATIENCE: Duration = Duration::from_millis(300);
/// What every host answers.
const SERVICES: [Service; 4] = [Service::Tcp(80), Service::Tcp(22), Service::Udp(53), Service::Icmp];

fn udp(port: u16) -> Access {
    Access::of(Some(Protocol::Udp), Some(Ports::from_iter([port..=port])))
}

fn range(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A View of b as a gateway: its own addresses are of the range of the underlay.
fn gateway(b: &Host, access: &[(&str, Access)]) -> View {
    let mut view = restricted(access);
    let own = [(IpAddr::from(b.ipv4()), 16), (b.ipv6().into(), 48)];
    view.interface.addresses = own.map(|(it, length)| IpNet::new(it, length).expect("a length")).into();
    view.interface.forward = true;
    view
}

fn forward(view: &mut View, egress: &str, nat: bool, ranges: &[(&str, &str)]) {
    let ranges = ranges.iter().map(|(it, of)| (range(it), class(of))).collect();
    let name: Name = egress.parse().expect("a name");
    view.forwards.insert(name, Arc::new(Forward { ranges, interface: None, nat }));
}

fn guard(view: &mut View, of: &str, from: &[(&str, Access)]) {
    let from = from.iter().map(|(from, access)| (class(from), access.clone())).collect();
    view.guarded.insert(class(of), Arc::new(from));
}

fn put_host(view: &mut View, host: &Host, of: &str) {
    put(view, host.name(), of, &[host.ipv4().into(), host.ipv6().into()]);
}

/// Has b carry a host as an external client.
fn put_client(view: &mut View, host: &Host, of: &str) {
    put_host(view, host, of);
    let name: Name = host.name().parse().expect("good");
    let client = Peer { via: Some(view.node.clone()), ..(*view.peers[&name]).clone() };
    view.peers.insert(name, Arc::new(client));
}

fn all(host: &Host, lines: &[&str]) {
    host.within(|| lines.iter().for_each(|line| drop(run(line))));
}

/// Puts a host behind b, by an interface of b, with the first of these addresses of each family at b.
async fn behind(b: &Host, host: &Host, interface: &str, at_b: [&str; 2], addresses: &[&str]) {
    let mut sleep = host.command("sleep");
    sleep.arg("60");
    let mut holder: Process = host.start("sleep", sleep).expect("it starts");
    let end = format!("{interface}-end");
    let pid = holder.id().expect("it runs");
    let cable = b.cable();
    let mut outer = vec![format!("ip link add {interface} type veth peer name {end} netns {pid}")];
    outer.extend(at_b.iter().map(|it| format!("ip address add {it} dev {interface} {}", nodad(it))));
    outer.push(format!("ip link set {interface} up"));
    let mut inner = vec!["ip link set eth0 down".to_owned()];
    inner.extend(addresses.iter().map(|it| format!("ip address add {it} dev {end} {}", nodad(it))));
    inner.push(format!("ip link set {end} up"));
    for it in at_b {
        let gateway = it.split('/').next().expect("an address");
        // Of several addresses the first is its own: what it answers as, too.
        let first = addresses.iter().find(|own| own.contains(':') == it.contains(':'));
        let own = first.and_then(|own| own.split('/').next()).expect("one of each family");
        inner.push(format!("ip route replace default via {gateway} src {own}"));
        run(&format!("ip route add {} dev {cable}", range(it).trunc()));
    }
    let texts = |lines: &[String], host: &Host| {
        all(host, &lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>());
    };
    texts(&outer, b);
    texts(&inner, host);
    holder.kill().await.expect("it is killed");
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        b.write(format!("/proc/sys/net/{switch}"), "1").expect("it can be written");
    }
}

fn nodad(address: &str) -> &str {
    if address.contains(':') { "nodad" } else { "" }
}

/// The network behind b that is forwarded to, and another one that is not.
async fn two_networks(b: &Host, lan: &Host, other: &Host) -> [Listeners; 2] {
    let addresses = ["192.168.50.2/24", "192.168.50.9/24", "fd50::2/64", "fd50::1:9/64"];
    behind(b, lan, "eth1", ["192.168.50.1/24", "fd50::1/64"], &addresses).await;
    behind(b, other, "eth2", ["192.168.60.1/24", "fd60::1/64"], &["192.168.60.2/24", "fd60::2/64"]).await;
    [serve(lan), serve(other)]
}

/// Has a host answer at each of its addresses, as that: a socket of all answers as the kernel likes.
fn serve(host: &Host) -> Listeners {
    let listed = host.within(|| run("ip -o address show scope global"));
    let addresses: Vec<IpAddr> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
        .collect();
    host.listen(&addresses, SERVICES).expect("it listens")
}

/// What of [`SERVICES`] a host may open at an address, in their order: `1` or `0`.
async fn opened(from: &Host, to: IpAddr) -> String {
    let probes = SERVICES.map(|service| Probe { to, service });
    let outcomes = from.probe_all(&probes, PATIENCE).await.expect("it has sockets");
    let digit = |outcome: Outcome| match outcome {
        Outcome::Answered(_) => '1',
        Outcome::Nothing => '0',
        Outcome::Refused => 'R',
    };
    outcomes.into_iter().map(digit).collect()
}

/// Traffic of both protocols that is asked for, and that is sent unasked.
async fn flows(from: &Host, to: IpAddr) -> Vec<Flow> {
    let mut all = Vec::new();
    for service in [Service::Tcp(80), Service::Udp(53)] {
        for pattern in [Pattern::Asked, Pattern::Pushed] {
            let flow = from.flow(to, service, pattern, 4 * PATIENCE).await;
            all.push(flow.unwrap_or_else(|error| panic!("{service} {pattern:?} to {to}: {error}")));
        }
    }
    all
}

/// Whether each of them goes on, from a moment on.
async fn go_on(flows: &[Flow], since: Instant) -> Vec<bool> {
    // What was on its way has arrived by then.
    let from = since + PATIENCE / 5;
    tokio::time::sleep(2 * PATIENCE).await;
    flows.iter().map(|flow| flow.timeline().heard_between(from, Instant::now())).collect()
}

#[test]
fn a_gateway_judges_what_is_opened_at_its_ranges_and_is_no_way_into_others() {
    if !enter_test("a_gateway_judges_what_is_opened_at_its_ranges_and_is_no_way_into_others") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let mut hosts = Vec::new();
        for name in ["a", "b", "stranger", "lan", "other"] {
            hosts.push(underlay.host(name).await.expect("a host"));
        }
        let [a, b, stranger, lan, other] = &hosts[..] else { panic!("five hosts") };
        let [heard, _other] = two_networks(b, lan, other).await;
        let _a = serve(a);
        let foreign = "table inet foreign {\n  chain post { type nat hook postrouting priority srcnat; \
                       policy accept; }\n  chain pass { type filter hook forward priority filter; policy \
                       accept; iifname \"eth9\" drop\n }\n}\n";
        let file = b.directory().join("foreign");
        std::fs::write(&file, foreign).expect("written");
        b.within(|| run(&format!("nft -f {}", file.display())));
        let listed = || b.within(|| run("nft list table inet foreign"));
        let untouched = listed();
        let system = System::default();
        for nat in [true, false] {
            let mut view = gateway(b, &[]);
            put_host(&mut view, a, "web");
            let ranges = [
                ("192.168.50.0/24", "lan"),
                ("192.168.50.8/29", "printers"),
                ("fd50::/64", "lan"),
                ("fd50::1:0/112", "printers"),
            ];
            forward(&mut view, "office", nat, &ranges);
            guard(&mut view, "lan", &[("web", tcp(80).or(&udp(53)))]);
            let printers = tcp(22).or(&Access::of(Some(Protocol::Icmp), None));
            guard(&mut view, "printers", &[("web", printers)]);
            b.within(|| system.set_access(&filter(&view))).expect("it is set");
            for (to, expected) in [
                ("192.168.50.2", "1010"),
                ("192.168.50.9", "0101"),
                ("fd50::2", "1010"),
                ("fd50::1:9", "0101"),
                // Its own address there, and what it does not forward to.
                ("192.168.50.1", "0000"),
                ("fd50::1", "0000"),
                ("192.168.60.2", "0000"),
                ("fd60::2", "0000"),
            ] {
                assert_eq!(opened(a, ip(to)).await, expected, "{to}, nat {nat}");
                assert_eq!(opened(stranger, ip(to)).await, "0000", "{to} by a stranger, nat {nat}");
            }
            let from: Vec<_> = heard.heard().iter().map(|it| it.from.ip()).collect();
            let seen = |it: IpAddr| from.contains(&it);
            assert!(seen(ip("192.168.50.1")) && seen(ip("fd50::1")), "{from:?}");
            assert_eq!(seen(a.ipv4().into()) && seen(a.ipv6().into()), !nat, "{from:?}");
            // What is behind the gateway opens at members is judged by them.
            assert_eq!(opened(lan, a.ipv4().into()).await, "1111");
            assert_eq!(opened(other, a.ipv6().into()).await, "1111");

            for to in ["192.168.50.2", "fd50::2"] {
                let flows = flows(a, ip(to)).await;
                let mut revoked = view.clone();
                guard(&mut revoked, "lan", &[]);
                b.within(|| system.change_access("eth0", &changes(&view, &revoked))).expect("it is changed");
                assert_eq!(go_on(&flows, Instant::now()).await, [false; 4], "{to}, nat {nat}");
                assert_eq!(opened(a, ip("192.168.50.9")).await, "0101", "another part of the range");
                b.within(|| system.change_access("eth0", &changes(&revoked, &view))).expect("it is changed");
                assert_eq!(opened(a, ip(to)).await, "1010", "{to}, nat {nat}");
            }

            // What nobody knows the opener of does not go on by what the other side sends.
            let pushed = a.flow(ip("192.168.50.2"), Service::Tcp(80), Pattern::Pushed, 4 * PATIENCE).await;
            let pushed = [pushed.expect("it begins")];
            guard(&mut view, "lan", &[]);
            b.within(|| system.set_access(&filter(&view))).expect("it is set");
            end_to_end::filter::forget_connections(b);
            assert_eq!(go_on(&pushed, Instant::now()).await, [false], "nat {nat}");

            // Without access rules everything may be opened there, and nothing elsewhere.
            view.interface.restricted = false;
            view.guarded.clear();
            b.within(|| system.set_access(&filter(&view))).expect("it is set");
            for (to, expected) in [
                ("192.168.50.2", "1111"),
                ("fd50::1:9", "1111"),
                ("192.168.60.2", "0000"),
                ("fd60::2", "0000"),
            ] {
                assert_eq!(opened(a, ip(to)).await, expected, "{to}, nat {nat}");
            }
            // The route of the host decides where no interface is named; another one is none of the egress.
            let elsewhere = Forward { interface: "eth2".parse().ok(), ..(*view.forwards[&office()]).clone() };
            view.forwards.insert(office(), Arc::new(elsewhere));
            b.within(|| system.set_access(&filter(&view))).expect("it is set");
            assert_eq!(opened(a, ip("192.168.50.2")).await, "0000");
        }
        assert_eq!(listed(), untouched);
        assert!(b.within(|| system.remove_access("eth0")).expect("it is removed"));
        assert_eq!(b.within(|| run("nft list ruleset")), untouched);
    });
}

fn office() -> Name {
    "office".parse().expect("a name")
}

#[test]
fn hosts_of_a_range_are_judged_by_who_they_open_at_as_of_the_longest_range() {
    if !enter_test("hosts_of_a_range_are_judged_by_who_they_open_at_as_of_the_longest_range") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let mut hosts = Vec::new();
        for name in ["a", "b", "lan", "other"] {
            hosts.push(underlay.host(name).await.expect("a host"));
        }
        let [a, b, lan, other] = &hosts[..] else { panic!("four hosts") };
        let _served = two_networks(b, lan, other).await;
        let _a = serve(a);
        let system = System::default();
        let mut view = gateway(a, &[("lan", tcp(80).or(&udp(53)))]);
        view.interface.forward = false;
        for (it, of) in [
            ("192.168.50.0/24", "lan"),
            ("192.168.50.8/29", "printers"),
            ("fd50::/64", "lan"),
            ("fd50::1:0/112", "printers"),
            ("0.0.0.0/0", "lan"),
        ] {
            let route = Route { via: "b".parse().ok(), class: class(of), carried: false };
            view.routes.insert(range(it), Arc::new(route));
        }
        a.within(|| system.set_access(&filter(&view))).expect("it is set");
        let own: [IpAddr; 2] = [a.ipv4().into(), a.ipv6().into()];
        for own in own {
            assert_eq!(opened(lan, own).await, "1010", "{own}");
            assert_eq!(opened(other, own).await, "0000", "{own}: a way to everything is no source");
        }
        let mut going = flows(lan, own[0]).await;
        going.extend(flows(lan, own[1]).await);
        let mut revoked = view.clone();
        revoked.access.clear();
        a.within(|| system.change_access("eth0", &changes(&view, &revoked))).expect("it is changed");
        assert_eq!(go_on(&going, Instant::now()).await, [false; 8]);
        a.within(|| system.change_access("eth0", &changes(&revoked, &view))).expect("it is changed");

        // The same host by its addresses in the part.
        all(lan, &["ip route replace default via 192.168.50.1 src 192.168.50.9"]);
        all(lan, &["ip route replace default via fd50::1 src fd50::1:9"]);
        for own in own {
            assert_eq!(opened(lan, own).await, "0000", "{own}");
        }
        let mut moved = view.clone();
        for it in ["192.168.50.8/29", "fd50::1:0/112"] {
            moved.routes.remove(&range(it));
        }
        a.within(|| system.change_access("eth0", &changes(&view, &moved))).expect("it is changed");
        for own in own {
            assert_eq!(opened(lan, own).await, "1010", "{own}: it is of the wider range now");
        }
    });
}

/// Has everything that these hosts send go through b, which sends it back by the interface that it came from.
fn lead_through(b: &Host, hosts: &[&Host]) {
    let through = b.cable();
    for family in ["-4", "-6"] {
        run(&format!("ip {family} route add default dev {through} table 100"));
        for host in hosts {
            run(&format!("ip {family} rule add iif {} lookup 100", host.cable()));
        }
    }
    let filters = |interface: &str| format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
    for interface in ["all", &*through] {
        std::fs::write(filters(interface), "0").expect("it can be written");
    }
    for interface in ["all", "eth0"] {
        let redirects = format!("/proc/sys/net/ipv4/conf/{interface}/send_redirects");
        b.write(redirects, "0").expect("it can be written");
    }
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        b.write(format!("/proc/sys/net/{switch}"), "1").expect("it can be written");
    }
}

#[test]
fn a_hub_passes_on_what_comes_from_and_goes_to_addresses_that_it_does_not_know() {
    if !enter_test("a_hub_passes_on_what_comes_from_and_goes_to_addresses_that_it_does_not_know") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let mut hosts = Vec::new();
        for name in ["a", "b", "x"] {
            hosts.push(underlay.host(name).await.expect("a host"));
        }
        let [a, b, x] = &hosts[..] else { panic!("three hosts") };
        let [at_a, _at_b, _at_x] = [a, b, x].map(serve);
        lead_through(b, &[a, x]);
        let system = System::default();
        let mut view = gateway(b, &[("web", tcp(22))]);
        put_host(&mut view, a, "web");
        put_client(&mut view, x, "phone");
        guard(&mut view, "phone", &[("web", tcp(80))]);
        b.within(|| system.set_access(&filter(&view))).expect("it is set");
        let of = |host: &Host| -> [IpAddr; 2] { [host.ipv4().into(), host.ipv6().into()] };
        let others = ["198.18.77.77", "2001:2::77"].map(ip);
        let mut at_others = Vec::new();
        for (own, other) in of(x).into_iter().zip(others) {
            assert_eq!(opened(a, own).await, "1000", "{own}: b judges for its client");
            run(&format!("ip route add {other} dev {}", x.cable()));
            all(x, &[&format!("ip address add {other} dev eth0 {}", nodad(&other.to_string()))]);
            at_others.push(x.listen(&[other], SERVICES).expect("it listens"));
            assert_eq!(opened(a, other).await, "1111", "{other}: x judges");
        }
        // From there as well.
        for (router, other) in ["198.18.0.1", "2001:2::1"].into_iter().zip(others) {
            all(x, &[&format!("ip route replace default via {router} dev eth0 onlink src {other}")]);
        }
        for (at, other) in of(a).into_iter().zip(others) {
            assert_eq!(opened(x, at).await, "1111", "{other}: a judges");
            assert!(at_a.heard().iter().any(|it| it.from.ip() == other), "{other}");
        }
        for at in of(b) {
            assert_eq!(opened(a, at).await, "0100", "{at}: b judges for itself");
            assert_eq!(opened(x, at).await, "0000", "{at}: b judges for itself");
        }
        // Whoever is no hub passes nothing on.
        view.interface.forward = false;
        b.within(|| system.set_access(&filter(&view))).expect("it is set");
        for at in others {
            assert_eq!(opened(a, at).await, "0000", "{at}");
        }
    });
}

#[test]
fn an_ingress_judges_what_is_opened_at_its_clients_whoever_opens_it() {
    if !enter_test("an_ingress_judges_what_is_opened_at_its_clients_whoever_opens_it") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let mut hosts = Vec::new();
        for name in ["a", "b", "lan", "other", "x", "y"] {
            hosts.push(underlay.host(name).await.expect("a host"));
        }
        let [a, b, lan, other, x, y] = &hosts[..] else { panic!("six hosts") };
        let _served = two_networks(b, lan, other).await;
        let _all = [a, x, y].map(serve);
        lead_through(b, &[a, x, y]);

        let system = System::default();
        let mut view = gateway(b, &[("web", tcp(22))]);
        put_host(&mut view, a, "web");
        put_client(&mut view, x, "phone");
        let ranges = [("192.168.50.0/24", "lan"), ("fd50::/64", "lan")];
        forward(&mut view, "office", true, &ranges);
        guard(&mut view, "phone", &[("web", tcp(80).or(&udp(53))), ("phone", udp(53)), ("lan", tcp(22))]);
        guard(&mut view, "lan", &[("phone", tcp(80))]);
        view.interface.class = class("web");
        b.within(|| system.set_access(&filter(&view))).expect("it is set");
        // One more client.
        let mut more = view.clone();
        put_client(&mut more, y, "phone");
        b.within(|| system.change_access("eth0", &changes(&view, &more))).expect("it is changed");
        let of = |host: &Host| -> [IpAddr; 2] { [host.ipv4().into(), host.ipv6().into()] };
        for (from, at, expected) in [
            (a, of(x), "1010"),
            (a, of(y), "1010"),
            (x, of(y), "0010"),
            (y, of(x), "0010"),
            (lan, of(x), "0100"),
            (other, of(x), "0000"),
            // Judged where it arrives.
            (x, of(a), "1111"),
            (x, [ip("192.168.50.2"), ip("fd50::2")], "1000"),
            (x, [ip("192.168.60.2"), ip("fd60::2")], "0000"),
            (a, [ip("192.168.50.2"), ip("fd50::2")], "0000"),
            // At the node itself, and what it opens.
            (x, of(b), "0000"),
            (b, of(x), "1010"),
            (b, of(y), "1010"),
            (b, of(a), "1111"),
        ] {
            for to in at {
                assert_eq!(opened(from, to).await, expected, "{} to {to}", from.name());
            }
        }

        for family in [0, 1] {
            let judged = flows(a, of(x)[family]).await;
            let own = flows(b, of(x)[family]).await;
            let arriving = flows(x, of(a)[family]).await;
            let mut revoked = more.clone();
            guard(&mut revoked, "phone", &[("phone", udp(53))]);
            b.within(|| system.change_access("eth0", &changes(&more, &revoked))).expect("it is changed");
            let since = Instant::now();
            assert_eq!(go_on(&judged, since).await, [false; 4]);
            assert_eq!(go_on(&own, since).await, [false; 4], "what the node itself opened");
            assert_eq!(go_on(&arriving, since).await, [true; 4], "what the client opened goes on");
            b.within(|| system.change_access("eth0", &changes(&revoked, &more))).expect("it is changed");
        }

        let mut other = more.clone();
        other.interface.class = class("none");
        b.within(|| system.set_access(&filter(&other))).expect("it is set");
        for (to, expected) in [(x, "0000"), (a, "1111")] {
            assert_eq!(opened(b, of(to)[0]).await, expected, "a node of a class that may open nothing there");
        }
        b.within(|| system.set_access(&filter(&more))).expect("it is set");

        // A client goes: so does what it opened at the range.
        let flow = x.flow(ip("192.168.50.2"), Service::Tcp(80), Pattern::Asked, 4 * PATIENCE).await;
        let flow = [flow.expect("it begins")];
        let mut without = more.clone();
        without.peers.remove(&"x".parse::<Name>().expect("a name"));
        b.within(|| system.change_access("eth0", &changes(&more, &without))).expect("it is changed");
        assert_eq!(go_on(&flow, Instant::now()).await, [false]);
        assert_eq!(opened(y, ip("192.168.50.2")).await, "1000", "the other client");
    });
}

#[test]
fn a_gateway_s_table_changes_in_place_and_drift_is_found() {
    if !enter_test("a_gateway_s_table_changes_in_place_and_drift_is_found") {
        return;
    }
    in_runtime(async {
        let underlay = Underlay::new().await.expect("an underlay");
        let b = underlay.host("b").await.expect("a host");
        let file = b.directory().join("ruleset");
        b.within(|| {
            let mut views = vec![gateway(&b, &[("web", tcp(80))])];
            let then = |views: &mut Vec<View>, change: &dyn Fn(&mut View)| {
                let mut view = views.last().expect("there is one").clone();
                change(&mut view);
                views.push(view);
            };
            let client = |view: &mut View, name: &str, address: &str| {
                put(view, name, "phone", &[ip(address)]);
                let name: Name = name.parse().expect("good");
                let client = Peer { via: Some(view.node.clone()), ..(*view.peers[&name]).clone() };
                view.peers.insert(name, Arc::new(client));
            };
            let route = |view: &mut View, it: &str, of: &str| {
                view.routes.insert(
                    range(it),
                    Arc::new(Route { via: "r".parse().ok(), class: class(of), carried: false }),
                );
            };
            then(&mut views, &|view| put(view, "m", "web", &[ip("198.18.7.7"), ip("2001:2::7:7")]));
            then(&mut views, &|view| {
                forward(view, "office", true, &[("192.168.50.0/24", "lan"), ("fd50::/64", "lan")]);
                guard(view, "lan", &[("web", tcp(22)), ("ops", Access::everything())]);
            });
            then(&mut views, &|view| put(view, "o", "ops", &[ip("198.18.7.8")]));
            then(&mut views, &|view| {
                guard(view, "phone", &[("web", Access::everything().without(&tcp(22)))]);
                client(view, "x", "198.18.9.1");
            });
            then(&mut views, &|view| client(view, "y", "198.18.9.2"));
            then(&mut views, &|view| client(view, "z", "198.18.9.3"));
            then(&mut views, &|view| drop(view.peers.remove(&"y".parse::<Name>().expect("a name"))));
            then(&mut views, &|view| route(view, "10.0.0.0/8", "web"));
            then(&mut views, &|view| route(view, "10.1.0.0/16", "nobody"));
            then(&mut views, &|view| route(view, "10.1.2.0/24", "ops"));
            then(&mut views, &|view| route(view, "fd77::/16", "web"));
            then(&mut views, &|view| {
                forward(
                    view,
                    "office",
                    true,
                    &[("192.168.50.0/24", "lan"), ("192.168.50.8/29", "printers"), ("fd50::/64", "lan")],
                );
                guard(view, "printers", &[("web", tcp(631))]);
            });
            then(&mut views, &|view| {
                forward(view, "exit", false, &[("0.0.0.0/0", "world"), ("::/0", "world")])
            });
            then(&mut views, &|view| {
                guard(view, "world", &[("ops", Access::everything()), ("web", tcp(443))])
            });
            then(&mut views, &|view| drop(view.routes.remove(&range("10.1.0.0/16"))));
            then(&mut views, &|view| drop(view.access.remove(&class("web"))));
            then(&mut views, &|view| drop(view.guarded.remove(&class("world"))));
            let whole = views.len() - 1;
            then(&mut views, &|view| {
                view.forwards.clear();
                view.guarded.clear();
                view.routes.clear();
            });
            let there_and_back: Vec<_> = views.iter().chain(views.iter().rev().skip(1)).collect();

            let sorted = |text: &str| {
                let split = text.split([' ', ',', '\n', '\t']).filter(|it| !it.is_empty());
                let mut words: Vec<_> = split.map(String::from).collect();
                words.sort();
                words
            };
            let [system, anew] = [System::default(), System::default()];
            system.set_access(&filter(&views[0])).expect("it is set");
            for (number, pair) in there_and_back.windows(2).enumerate() {
                let [before, after] = pair else { panic!("two") };
                system
                    .change_access("eth0", &changes(before, after))
                    .unwrap_or_else(|error| panic!("change {number}: {error}"));
                let followed = listed();
                let handles = run("nft -a list table inet nm-access-eth0");
                system.set_access(&filter(after)).expect("it stands");
                let stands = run("nft -a list table inet nm-access-eth0");
                assert_eq!(stands, handles, "change {number}: what stands is not replaced");
                run("nft delete table inet nm-access-eth0");
                anew.set_access(&filter(after)).expect("it is set");
                assert_eq!(sorted(&listed()), sorted(&followed), "change {number}");
                system.set_access(&filter(after)).expect("it is set");
            }

            let view = &views[whole];
            system.set_access(&filter(view)).expect("it is set");
            let kept = run("nft list ruleset");
            std::fs::write(&file, &kept).expect("written");
            run("nft flush ruleset");
            run(&format!("nft -f {}", file.display()));
            assert_eq!(run("nft list ruleset"), kept, "a user's nftables.conf may hold it");
            let lan = class("lan");
            for drift in [
                "nft delete element inet nm-access-eth0 clients4 { 198.18.9.3 }".to_owned(),
                "nft add element inet nm-access-eth0 clients4 { 198.18.9.4 }".to_owned(),
                "nft flush set inet nm-access-eth0 out4_exit".to_owned(),
                "nft add element inet nm-access-eth0 out4_exit { 198.18.0.0/16 }".to_owned(),
                format!("nft delete element inet nm-access-eth0 to6_{lan} {{ fd50::/64 }}"),
                "nft flush map inet nm-access-eth0 ranges4".to_owned(),
                "nft add element inet nm-access-eth0 ranges6 { fd99::/16 : drop }".to_owned(),
                "nft flush chain inet nm-access-eth0 masq".to_owned(),
            ] {
                system.set_access(&filter(view)).expect("it is set");
                let right = listed();
                run(&drift);
                assert_ne!(sorted(&listed()), sorted(&right), "{drift}");
                system.set_access(&filter(view)).expect("it is repaired");
                assert_eq!(sorted(&listed()), sorted(&right), "{drift}");
            }
            assert!(system.remove_access("eth0").expect("it is removed"));
            assert_eq!(run("nft list ruleset"), "");
        });
    });
}
