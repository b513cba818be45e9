//! The table of a network with access rules in the kernel: how it changes, how drift is found, and what it does
//! to packets.
//!
//! ```text
//! a ==== underlay ==== b
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
use nmplan::lab::{Host, Underlay, enter_test};
use schema::access::{Access, ClassId, Ports, Protocol};
use schema::scalars::{Seconds, WireGuardKey};
use schema::view::{Interface, Peer, View, ViewDelta};

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
        named: true,
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
    let mut words = line.split(' ');
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
        let all = |host: &Host, lines: &[&str]| host.within(|| lines.iter().for_each(|line| drop(run(line))));
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
        let listed = run(&format!("ip -o route get {}", b.ipv4()));
        let cable = listed.split_whitespace().skip_while(|word| *word != "dev").nth(1).expect("a route");
        run(&format!("ip route add 172.17.0.0/24 dev {cable}"));
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
