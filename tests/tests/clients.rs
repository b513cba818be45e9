//! External clients on an implementation of WireGuard that is not ours, with what `nmplan client conf` prints: wg-quick,
//! on the kernel's device or, where the kernel has no WireGuard, on wireguard-go.
//!
//! ```text
//! nmserver ==== underlay ==== a (a member), gw (the ingress), phone (the client)
//! ```

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use end_to_end::corp::{Corp, Flows, SERVICES, TRAFFIC};
use end_to_end::matrix::{Node, disagreements};
use end_to_end::{eventually, in_runtime, link_kind, patience, run, text_of};
use ipnet::IpNet;
use nmplan::lab::{Host, Listeners, Service, enter_test};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
/// Within this time of its end a client is cut off.
const CUT_OFF: Duration = SECOND;
/// Within this time a client that is let in again has a new session, though it goes on with the old one, which its
/// ingress has forgotten: it takes 15 s to notice (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT of the WireGuard paper, section
/// 6.5), and then tries every 5 s.
const NEW_SESSION: Duration = Duration::from_secs(30);

/// Rules, and where clients come in.
const INGRESS: &str = r#"acl "deny"
    ingress "front" via="gw" { pool "10.40.200.0/28" "fd40:40::c8:0/112"; dns "10.40.0.53" }
"#;
/// What the phone may open, and what at it.
const RULES: &str = r#"
    allow "pages" from="phone" to="a" proto="tcp" ports=80
    allow "names" from="phone" to="a" proto="udp" ports=53
    allow "echo" from="phone" to="a" proto="icmp"
    allow "calls" from="a" to="phone" proto="udp" ports=54
"#;

fn by_rules(from: &str, to: &str, service: Service) -> bool {
    match (from, to) {
        ("phone", "a") => matches!(service, Service::Tcp(80) | Service::Udp(53) | Service::Icmp),
        ("a", "phone") => service == Service::Udp(54),
        _ => false,
    }
}

/// The phone with these fields besides its ingress, and its rules.
fn phone(fields: &str) -> String {
    format!("{INGRESS}{RULES}external-client \"phone\" via=\"front\" {fields}\n")
}

/// What `nmplan client conf` prints for a client, by the file that was applied last and with a key of its own, in a
/// file of that name for its owner alone.
async fn configured(corp: &Corp, client: &str) -> PathBuf {
    let names = ["mesh.kdl", &format!("{client}.key"), &format!("{client}.conf")];
    let [declared, key, configuration] = names.map(|name| corp.mesh.file(name));
    let [declared, key] = [declared, key].map(|path| path.display().to_string());
    let arguments = ["client", "conf", client, "--project", "test", "-f", &declared, "-q", "--key", &key];
    let printed = corp.mesh.nmplan(&arguments).await;
    assert!(printed.status.success(), "{}", text_of(&printed.stderr));
    let file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&configuration);
    file.expect("a file").write_all(&printed.stdout).expect("it is written");
    configuration
}

/// The field that was written into the file that was applied last.
fn key_written(corp: &Corp) -> String {
    let declared = fs::read_to_string(corp.mesh.file("mesh.kdl")).expect("it is there");
    let (_, key) = declared.split_once("public-key=").expect("a key was written there");
    format!("public-key={}", key.split_whitespace().next().expect("a value"))
}

/// The values of a field of a configuration, which is written `FIELD = A, B`.
fn values(configuration: &Path, field: &str) -> Vec<String> {
    let text = fs::read_to_string(configuration).expect("it is there");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(" = "));
    line.unwrap_or_default().split(", ").map(ToOwned::to_owned).collect()
}

/// The addresses of a client.
fn addresses(configuration: &Path) -> BTreeSet<IpAddr> {
    let ranges = values(configuration, "Address");
    ranges.iter().map(|range| range.parse::<IpNet>().expect("an address").addr()).collect()
}

/// Runs wg-quick(8) with a configuration. resolvconf(8), which it gives `DNS` to, is a function of the shell, which comes
/// before every program of that name that the host may have.
async fn quick(host: &Host, verb: &str, configuration: &Path, resolvconf: &str) -> Output {
    let mut command = host.command("wg-quick");
    command.arg(verb).arg(configuration).env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go");
    command.env("BASH_FUNC_resolvconf%%", format!("() {{ {resolvconf}; }}"));
    host.run(command).await.expect("wireguard-tools is installed")
}

/// What a shell does where there is no resolvconf(8).
const MISSING: &str = "echo 'resolvconf: command not found' >&2; return 127";
/// A resolvconf(8) that writes down what it is given.
const NOTED: &str = "{ echo \"$@\"; [ \"$1\" != -a ] || cat; } >> /run/resolvconf";

async fn done(host: &Host, verb: &str, configuration: &Path) {
    let output = quick(host, verb, configuration, NOTED).await;
    assert!(output.status.success(), "{}", text_of(&output.stderr));
}

/// Asserts that an interface is the kernel's or else wireguard-go's.
async fn assert_foreign(host: &Host, interface: &str) {
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let is_there = host.processes().into_iter().any(|pid| name(pid).trim() == "wireguard-go");
    assert!(is_there || link_kind(host, interface).await == "wireguard");
}

/// Waits until packets show what the rules say between the phone and the nodes, in both directions.
async fn assert_allowed(corp: &Corp, phone: &Host, at: &BTreeSet<IpAddr>) {
    let mut nodes: Vec<_> = ["a", "gw"]
        .map(|name| Node { name, host: corp.host(name), addresses: corp.addresses(name).to_vec() })
        .into();
    nodes.push(Node { name: "phone", host: phone, addresses: at.iter().copied().collect() });
    let disagreements =
        disagreements(&nodes, &SERVICES, |from, to, service| Some(by_rules(from, to, service))).await;
    assert!(disagreements.is_empty(), "\n{disagreements}");
}

/// Opens all services at every address of a host.
fn listen(host: &Host) -> Listeners {
    let everywhere = ["0.0.0.0", "::"].map(|any| any.parse().expect("an address"));
    host.listen(&everywhere, SERVICES).expect("the ports are free")
}

/// Traffic of a phone that has gone on for a while.
async fn traffic(corp: &Corp, phone: &Host) -> Flows {
    let flows = corp.flows_of(phone, "a", &TRAFFIC).await;
    // Of datagrams of less than two seconds the kernel forgets after 30 s who began, later after 120.
    tokio::time::sleep(3 * SECOND).await;
    flows.settle().await;
    flows
}

/// Asserts that nothing arrives any more once a client is cut off.
async fn assert_cut_off(flows: &Flows, end: &str, at: Instant) {
    let limit = at + CUT_OFF * patience();
    tokio::time::sleep_until(limit + SECOND).await;
    for (what, timeline) in flows.timelines() {
        let last = timeline.last_heard().expect("it had begun");
        assert!(last <= limit, "{end}: {what} arrived {:?} after that: {timeline}", last - at);
    }
}

/// Waits until everything but TCP, which waits longer before it sends again, arrives again.
async fn assert_goes_on(flows: &Flows, end: &str, since: Instant) {
    let took = eventually("the phone is in again", NEW_SESSION, async || {
        let mut others = flows.timelines().filter(|(what, _)| !what.contains("tcp"));
        others.all(|(_, timeline)| timeline.last_heard() > Some(since))
    });
    eprintln!("{end}: in again after {:?}", took.await);
}

#[test]
fn a_client_on_another_implementation_is_in_until_its_end_and_in_again_with_the_same_file() {
    if !enter_test("a_client_on_another_implementation_is_in_until_its_end_and_in_again_with_the_same_file") {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "gw"], INGRESS).await;
        let host = corp.mesh.underlay.host("phone").await.expect("a host");
        let _listeners = listen(&host);
        let earliest = Instant::now();
        let created = corp.declare(&phone("")).await;
        let file = configured(&corp, "phone").await;
        let text = fs::read_to_string(&file).expect("it is there");
        let key = key_written(&corp);
        corp.declare(&phone(&key)).await;

        // The name server is given to resolvconf(8), without which wg-quick sets nothing up.
        assert_eq!(values(&file, "DNS"), ["10.40.0.53"]);
        let refused = quick(&host, "up", &file, MISSING).await;
        assert!(!refused.status.success(), "{}", text_of(&refused.stderr));
        assert!(!run(&host, "ip -oneline link").await.contains("phone"));
        done(&host, "up", &file).await;
        assert_foreign(&host, "phone").await;
        assert_eq!(
            host.read("/run/resolvconf").expect("it ran"),
            "-a phone -m 0 -x\nnameserver 10.40.0.53\n"
        );
        let at = addresses(&file);
        assert_eq!(at.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>(), [true, false]);
        assert_allowed(&corp, &host, &at).await;

        for end in ["disabled", "expired", "deleted"] {
            let flows = traffic(&corp, &host).await;
            let (without, ended) = match end {
                "disabled" => {
                    let without = phone(&format!("{key} enabled=#false"));
                    let ended = corp.declare(&without).await;
                    (without, ended)
                }
                "expired" => {
                    // It is still in for a while.
                    let after = earliest.elapsed().as_secs() + 5 * u64::from(patience());
                    let without = phone(&format!("{key} expires=\"{after}s\""));
                    let declared = corp.declare(&without).await;
                    let [first, last] =
                        [earliest, created].map(|created| created + Duration::from_secs(after));
                    assert!(declared + SECOND < first, "there is time left");
                    tokio::time::sleep_until(first).await;
                    assert!(flows.timelines().all(|(_, timeline)| timeline.heard_between(declared, first)));
                    (without, last)
                }
                _ => (INGRESS.to_owned(), corp.declare(INGRESS).await),
            };
            assert_cut_off(&flows, end, ended).await;
            // Nobody else is given its addresses.
            let other = format!("while-{end}");
            corp.declare(&format!("{without}external-client \"{other}\" via=\"front\"\n")).await;
            let others = addresses(&configured(&corp, &other).await);
            assert!(others.len() == 2 && others.is_disjoint(&at), "{end}: {others:?}");
            let change = corp.declare(&phone(&key)).await;
            assert_goes_on(&flows, end, change).await;
            configured(&corp, "phone").await;
            assert_eq!(fs::read_to_string(&file).expect("it is there"), text, "{end}");
        }
        assert_allowed(&corp, &host, &at).await;

        // By IPv6, with a configuration that says so.
        done(&host, "down", &file).await;
        assert!(!run(&host, "ip -oneline link").await.contains("phone"));
        let [v4, v6] = [IpAddr::from(corp.host("gw").ipv4()), corp.host("gw").ipv6().into()];
        assert!(values(&file, "Endpoint")[0].starts_with(&v4.to_string()), "{v4}");
        let by_ipv6 = format!("via=\"gw\" endpoint=\"[{v6}]:51821\" {{ pool");
        corp.declare(&phone(&key).replace("via=\"gw\" { pool", &by_ipv6)).await;
        let file = configured(&corp, "phone").await;
        assert_eq!(values(&file, "Endpoint"), [format!("[{v6}]:51821")]);
        done(&host, "up", &file).await;
        assert_allowed(&corp, &host, &at).await;
    });
}

#[test]
fn everything_of_a_client_on_another_implementation_goes_by_the_internet_gateway_that_is_for_it() {
    let name = "everything_of_a_client_on_another_implementation_goes_by_the_internet_gateway_that_is_for_it";
    if !enter_test(name) {
        return;
    }
    in_runtime(async {
        let corp = Corp::start(&["a", "gw"], "").await;
        let host = corp.mesh.underlay.host("phone").await.expect("a host");
        let outside = corp.mesh.underlay.host("o").await.expect("a host");
        let listeners = listen(&outside);
        let body = |key: &str| {
            format!(
                "ingress \"front\" via=\"gw\"\nexternal-client \"phone\" via=\"front\" {key}\n\
                 egress \"out\" via=\"gw\" {{ ranges \"0.0.0.0/0\" \"::/0\"; for \"phone\" }}"
            )
        };
        corp.declare(&body("")).await;
        let file = configured(&corp, "phone").await;
        corp.declare(&body(&key_written(&corp))).await;
        let ranges: BTreeSet<_> = values(&file, "AllowedIPs").into_iter().collect();
        assert!(ranges.contains("0.0.0.0/0") && ranges.contains("::/0"), "{ranges:?}");
        let service = Service::Udp(53);
        let seen = async |to: IpAddr| {
            let answer = host.probe(to, service, SECOND * patience()).await.expect("sockets");
            answer.agrees(true).then(|| listeners.heard().last().map(|heard| heard.from.ip()))?
        };
        let ends = |host: &Host| [IpAddr::from(host.ipv4()), host.ipv6().into()];
        let [gateway, own] = [ends(corp.host("gw")), ends(&host)];
        done(&host, "up", &file).await;
        for (to, gateway) in ends(&outside).into_iter().zip(gateway) {
            eventually("it comes from the gateway", 10 * SECOND, async || seen(to).await == Some(gateway))
                .await;
        }
        for to in corp.addresses("a") {
            assert!(
                host.probe(to, service, SECOND * patience()).await.expect("sockets").agrees(true),
                "{to}"
            );
        }
        done(&host, "down", &file).await;
        for (to, own) in ends(&outside).into_iter().zip(own) {
            assert_eq!(seen(to).await, Some(own));
        }
    });
}
