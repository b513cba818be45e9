//! What name servers say that read the server's files: a CoreDNS with the whole folder, and a BIND with the zone.
//!
//! ```text
//! nmserver (also the node netmaker, with CoreDNS) ==== underlay ==== a, b, out (a host in no mesh, with BIND)
//! ```

#![expect(clippy::print_stderr, reason = "figures of a run, and what was not tried")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use end_to_end::name_server::{Answer, ask, compiled, coredns, reverse, start_bind, start_coredns};
use end_to_end::{Mesh, all_ping_all, copy_database, eventually, in_runtime, kill, patience, rounds};
use nmplan::lab::{Agent, Host, Process, enter_test};

/// Within this time a name server has read a change: CoreDNS looks each second for zones, and each two seconds for
/// its configuration, and the server writes once a second.
const READ: Duration = Duration::from_secs(6);

const TEXT: &str = r#"network "corp" {
    ipv4 "10.40.0.0/16"; ipv6 "fd40:40::/64"; check-in "1s"
    access-key "named" { for "a" "b" }
    node "netmaker" ipv4="10.40.0.1" ipv6="fd40:40::1"
    node "a" ipv4="10.40.0.10" ipv6="fd40:40::10"
    node "b" ipv4="10.40.0.11" ipv6="fd40:40::11"
    ingress "front" via="a"
    external-client "phone" via="front" ipv4="10.40.0.20" public-key="AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
    dns "api" ttl="5m" { a "10.40.0.9" "10.40.0.8"; aaaa "fd40:40::9" }
    dns "pg" node="b"
    dns "db" cname="alias.corp" ttl="2m"
    dns "alias" cname="pg.corp"
    dns "status" cname="www.example.net"
    dns "in" a="10.40.0.7"
    dns "60" a="10.40.0.6"
}"#;

/// Says that a test is not carried out, where there is no CoreDNS.
fn program() -> Option<PathBuf> {
    let program = coredns();
    if program.is_none() {
        eprintln!("NOT TRIED: there is no CoreDNS, which `make test-tools` builds with Go from 1.24 on");
    }
    program
}

fn folder(mesh: &Mesh) -> PathBuf {
    mesh.server.data().join("dns")
}

/// A host outside of every mesh whose BIND serves example.net and the zone of the network, and a server that has
/// other names asked of it.
async fn with_forwarder() -> (Mesh, Host) {
    let mut mesh = Mesh::start().await;
    let out = mesh.underlay.host("out").await.expect("a host");
    mesh.server.set("DNS_FORWARD", &out.ipv4().to_string());
    mesh.server.kill().await.expect("it is killed");
    mesh.server.serve().await.expect("it serves again");
    (mesh, out)
}

async fn joined(mesh: &Mesh, text: &str) -> Vec<Agent> {
    let tokens = mesh.apply(text).await;
    let mut agents = Vec::new();
    for name in ["a", "b"] {
        let mut agent = mesh.agent(name).await;
        agent.join(&tokens["corp/access-key/named"], &[]).await.expect("it joins");
        agent.start_daemon(&[]).expect("the agent starts");
        agents.push(agent);
    }
    all_ping_all(&agents, "corp").await;
    agents
}

async fn answer(from: &Host, server: IpAddr, name: &str, of: &str) -> Answer {
    ask(from, server, name, of).await.unwrap_or_else(|| panic!("{server} does not answer {name} {of}"))
}

/// Waits until a name server gives a name these addresses; none: there is no such name.
async fn becomes(from: &Host, server: IpAddr, name: &str, addresses: &[&str]) {
    let expected: BTreeSet<String> = addresses.iter().map(|&address| address.to_owned()).collect();
    let status = if addresses.is_empty() { "NXDOMAIN" } else { "NOERROR" };
    let what = format!("{name} leads to {addresses:?}");
    let took = eventually(&what, READ, async || {
        ask(from, server, name, "A").await.is_some_and(|it| it.status == status && it.data("A") == expected)
    });
    eprintln!("{what} after {:.1} s", took.await.as_secs_f64());
}

#[test]
fn two_name_servers_say_what_is_declared_and_who_has_joined() {
    if !enter_test("two_name_servers_say_what_is_declared_and_who_has_joined") {
        return;
    }
    let Some(program) = program() else { return };
    in_runtime(async {
        let (mesh, out) = with_forwarder().await;
        // The files of before the first network let it start.
        let mut coredns = start_coredns(mesh.server.host(), &program, &folder(&mesh)).await;
        let agents = joined(&mesh, TEXT).await;
        let (a, inside) = (agents[0].host(), IpAddr::from([10, 40, 0, 1]));
        eventually("the server's host is a member", Duration::from_secs(20), async || {
            a.ping(inside, Duration::from_millis(500)).await.expect("sockets").is_some()
        })
        .await;
        becomes(a, inside, "b.corp", &["10.40.0.11"]).await;

        let public = out.directory().join("example.net.zone");
        let text = "$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A 198.51.100.1\nwww A 198.51.100.7\n";
        std::fs::write(&public, text).expect("written");
        let zone = folder(&mesh).join("corp.zone");
        eventually("CoreDNS has the zone with all members", READ, async || {
            let soa = ask(a, inside, "corp", "SOA").await;
            compiled("corp", &zone).len() == 20 && soa.and_then(|soa| serial_in(&soa)) == written(&zone)
        })
        .await;
        let mut bind = start_bind(&out, &[("example.net", &public), ("corp", &zone)]).await;

        // Each record that is in the zone is answered alike by both.
        let records = compiled("corp", &zone);
        let questions: BTreeSet<_> = records.iter().map(|record| question(record)).collect();
        for (name, of) in &questions {
            let is_asked = |record: &&String| question(record) == (*name, *of);
            let expected: BTreeSet<String> = records.iter().filter(is_asked).cloned().collect();
            for (server, from) in [(inside, a), (out.ipv4().into(), &out)] {
                let answered = answer(from, server, name, of).await;
                assert_eq!((answered.status.as_str(), &answered.records), ("NOERROR", &expected), "{server}");
            }
        }
        says_what_is_declared(a, inside).await;
        hosts_agree(&agents[0], inside).await;
        others_are_asked_for_members_alone(&mesh, a, inside, &out).await;

        // A node that is removed, a name that moves, a network that comes.
        let removed = mesh.nmplan(&["--project", "test", "node", "remove", "corp/b", "-y"]).await;
        assert!(removed.status.success(), "{removed:?}");
        becomes(a, inside, "b.corp", &[]).await;
        becomes(a, inside, "pg.corp", &[]).await;
        let lab = r#"network "lab" ipv4="10.50.0.0/20" { dns "x" a="10.50.0.9"; dns "y" a="10.50.12.9" }"#;
        mesh.apply(&format!("{}\n{lab}", TEXT.replace("10.40.0.7", "10.40.0.70"))).await;
        becomes(a, inside, "in.corp", &["10.40.0.70"]).await;
        becomes(a, inside, "x.lab", &["10.50.0.9"]).await;
        for (address, name) in [([10, 50, 0, 9], "x.lab."), ([10, 50, 12, 9], "y.lab.")] {
            let found = answer(a, inside, &reverse(address.into()), "PTR").await;
            assert_eq!(found.data("PTR"), [name.to_owned()].into(), "a range that ends within a byte");
        }
        mesh.apply(TEXT).await;
        eventually("a network that is gone has no zone", READ, async || {
            ask(a, inside, "x.lab", "A")
                .await
                .is_some_and(|it| it.data("A").is_empty() && it.status != "NOERROR")
        })
        .await;
        assert!(!folder(&mesh).join("lab.zone").exists());
        for process in [&mut coredns, &mut bind] {
            assert!(process.is_running(), "{}", process.printed());
        }
        // It looks for a zone more often than for the Corefile that names it no more.
        let printed = coredns.printed();
        let is_wrong = |line: &&str| line.contains("[ERROR]") && !line.contains("lab.zone");
        assert_eq!(printed.lines().find(is_wrong), None, "{printed}");
    });
}

/// What is asked to have a record: its name and its type.
fn question(record: &str) -> (&str, &str) {
    let fields: Vec<_> = record.splitn(5, ' ').collect();
    (fields[0], fields[3])
}

async fn says_what_is_declared(from: &Host, server: IpAddr) {
    for (name, of, expected) in [
        ("a.corp", "A", &["10.40.0.10"][..]),
        ("A.CORP", "AAAA", &["fd40:40::10"]),
        ("phone.corp", "A", &["10.40.0.20"]),
        ("api.corp", "A", &["10.40.0.8", "10.40.0.9"]),
        ("api.corp", "AAAA", &["fd40:40::9"]),
        ("pg.corp", "A", &["10.40.0.11"]),
        ("db.corp", "A", &["10.40.0.11"]),
        ("db.corp", "CNAME", &["pg.corp."]),
        ("alias.corp", "CNAME", &["pg.corp."]),
        ("in.corp", "A", &["10.40.0.7"]),
        ("60.corp", "A", &["10.40.0.6"]),
        ("status.corp", "A", &["198.51.100.7"]),
    ] {
        let answered = answer(from, server, name, of).await;
        let expected: BTreeSet<String> = expected.iter().map(|&data| data.to_owned()).collect();
        assert_eq!(
            (answered.status.as_str(), answered.data(of)),
            ("NOERROR", expected),
            "{name} {of}: {answered:?}"
        );
    }
    for (name, of, status) in [
        ("nobody.corp", "A", "NXDOMAIN"),
        ("x.a.corp", "A", "NXDOMAIN"),
        ("in.corp", "AAAA", "NOERROR"),
        ("10.40.9.9", "PTR", "NXDOMAIN"),
        ("fd40:40::99", "PTR", "NXDOMAIN"),
    ] {
        let name = name.parse().map_or_else(|_| name.to_owned(), reverse);
        let answered = answer(from, server, &name, of).await;
        assert_eq!((answered.status.as_str(), answered.records), (status, BTreeSet::new()), "{name} {of}");
    }
    for (address, names) in [
        ("10.40.0.10", &["a.corp."][..]),
        ("10.40.0.11", &["alias.corp.", "b.corp.", "db.corp.", "pg.corp."]),
        ("fd40:40::9", &["api.corp."]),
        ("fd40:40::1", &["netmaker.corp."]),
    ] {
        let answered = answer(from, server, &reverse(address.parse().expect("an address")), "PTR").await;
        let expected: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(answered.data("PTR"), expected, "{address}");
    }
}

/// What an agent wrote into the file of hosts is what the name server says.
async fn hosts_agree(agent: &Agent, server: IpAddr) {
    let mut hosts = String::new();
    eventually("the hosts file has every name", READ, async || {
        hosts = agent.host().read("/etc/hosts").expect("it is there");
        hosts.matches(".corp\t").count() == 19
    })
    .await;
    for line in hosts.lines().filter(|line| line.contains(".corp\t")) {
        let mut words = line.split_whitespace();
        let (address, name) = (words.next().expect("an address"), words.next().expect("a name"));
        let of = if address.contains(':') { "AAAA" } else { "A" };
        let data = answer(agent.host(), server, name, of).await.data(of);
        assert!(data.contains(address), "{line}: {data:?}");
    }
}

/// Members have other names asked, and nobody else does.
async fn others_are_asked_for_members_alone(mesh: &Mesh, a: &Host, inside: IpAddr, out: &Host) {
    let name = "www.example.net";
    let answered = answer(a, inside, name, "A").await;
    assert_eq!(answered.data("A"), ["198.51.100.7".to_owned()].into(), "{answered:?}");
    let server = IpAddr::from(mesh.server.host().ipv4());
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    for (from, at) in [(out, server), (mesh.server.host(), loopback)] {
        assert_eq!(answer(from, at, name, "A").await.status, "REFUSED");
        assert_eq!(answer(from, at, "a.corp", "A").await.data("A"), ["10.40.0.10".to_owned()].into());
    }
    let status = answer(out, server, "status.corp", "A").await;
    assert!(status.data("A").is_empty(), "{status:?}");
}

/// The serial that a name server has, and the addresses of a name.
async fn serial(host: &Host, name: &str) -> Option<(u32, BTreeSet<String>)> {
    let server = host.ipv4().into();
    let serial = serial_in(&ask(host, server, "corp", "SOA").await?)?;
    Some((serial, ask(host, server, name, "A").await?.data("A")))
}

fn serial_in(soa: &Answer) -> Option<u32> {
    soa.data("SOA").first()?.split(' ').nth(2)?.parse().ok()
}

/// A network with very many names, all of which lead to the address of a round.
fn many(round: u8) -> String {
    let entries = (0..NAMES).map(|number| format!("dns \"n{number}\" a=\"10.40.1.{round}\"\n"));
    format!("network \"corp\" {{ ipv4 \"10.40.0.0/16\"\n{} }}", entries.collect::<String>())
}

const NAMES: usize = 3_000;

/// The address of every name of [`many`] in a zone file, which BIND reads without complaint.
fn address_of_all(zone: &Path) -> String {
    let records = compiled("corp", zone);
    let data: Vec<_> = records.iter().filter(|record| record.contains(" A ")).collect();
    assert_eq!(data.len(), NAMES, "the zone is whole");
    let addresses: BTreeSet<_> = data.iter().filter_map(|record| record.split(' ').nth(4)).collect();
    assert_eq!(addresses.len(), 1, "it is of one revision: {addresses:?}");
    addresses.into_iter().collect()
}

/// The serial in a zone file; nothing while there is none.
fn written(zone: &Path) -> Option<u32> {
    std::fs::read_to_string(zone).ok().and_then(|text| schema::zone::serial(&text))
}

#[test]
fn zones_are_whole_and_their_serials_rise_whenever_the_server_is_killed() {
    if !enter_test("zones_are_whole_and_their_serials_rise_whenever_the_server_is_killed") {
        return;
    }
    let Some(program) = program() else { return };
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        mesh.apply(&many(0)).await;
        let zone = folder(&mesh).join("corp.zone");
        eventually("the zone is written", READ, async || written(&zone).is_some()).await;
        let mut coredns: Process = start_coredns(mesh.server.host(), &program, &folder(&mesh)).await;
        let (mut last, mut answered) = (written(&zone), 0);
        let copy = tempfile::tempdir().expect("a folder");
        for round in 1..=u8::try_from(rounds() + 1).expect("few") {
            let file = mesh.file("many.kdl");
            std::fs::write(&file, many(round)).expect("a file is written");
            let file = file.display().to_string();
            let apply = ["apply", "--project", "test", "-y", "-f", &file];
            // In every other round when it begins to write, else when it has written; nmplan may get no answer.
            let new = zone.with_extension("zone.nm-new");
            let start = Instant::now();
            let kills = async {
                let begins = || round % 2 == 0 && new.exists();
                while !begins() && written(&zone) == last && start.elapsed() < READ * patience() {
                    tokio::task::yield_now().await;
                }
                kill(mesh.server.id().expect("it runs"));
            };
            tokio::join!(mesh.nmplan(&apply), kills);
            mesh.server.kill().await.expect("it is killed");
            address_of_all(&zone);
            if round == 1 {
                copy_database(&mesh.server.data(), copy.path());
            }
            mesh.server.serve().await.expect("it serves again");
            assert_eq!(address_of_all(&zone), format!("10.40.1.{round}"), "it is written at the start");
            let serial_now = written(&zone);
            assert!(serial_now > last, "{serial_now:?} after {last:?}");
            last = serial_now;
            let expected: BTreeSet<String> = [format!("10.40.1.{round}")].into();
            eventually("CoreDNS has the new zone", READ, async || {
                let Some((now, of_last)) = serial(mesh.server.host(), &format!("n{}.corp", NAMES - 1)).await
                else {
                    return false;
                };
                assert!(now >= answered && !of_last.is_empty(), "{now} after {answered}");
                answered = now;
                of_last == expected
            })
            .await;
        }
        // With the database of the first round the zone is that of then, and its serial is later all the same.
        mesh.server.kill().await.expect("it is killed");
        copy_database(copy.path(), &mesh.server.data());
        mesh.server.serve().await.expect("it serves again");
        assert_eq!(address_of_all(&zone), "10.40.1.1");
        assert!(written(&zone) > last, "{:?} after {last:?}", written(&zone));
        assert!(coredns.is_running(), "{}", coredns.printed());
    });
}
