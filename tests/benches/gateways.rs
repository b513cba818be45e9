//! What do gateways cost: a failover in a large network, and many external clients on one ingress?
//!
//! A failover is measured beside a join: agents watch over a connection of their own each, the server runs in a
//! process of its own. External clients are measured beside as many nodes more, and what the ingress does of one
//! more of them beside wg(8) and nft(8). `NODES` (1000) and `CLIENTS` (500) change the sizes.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use end_to_end::cost::{Cost, measure};
use end_to_end::load::{Serving, cpu_of, memory_of, name, private_folder, raise_file_limit, seed, serve};
use end_to_end::meshes::{ROUNDS, compile, declare, follow, followed, id, median, number, put_node, timed};
use end_to_end::watching::{Received, all_receive, settle, watch_all};
use end_to_end::{filter, in_lab, loopback, text_of};
use ipnet::IpNet;
use jiff::Timestamp;
use netclient::device::{Device, DeviceStep, PeerSettings, PrivateKey, userspace::Userspace};
use netclient::filter::Filter;
use netclient::host::{Host as _, System};
use netclient::outside::{Mark, Outside, Slot};
use netclient::tunnels::TunnelChanges;
use nmplan::lab::{self, Host, Programs, Underlay};
use nmserver::identity::DATABASE;
use nmserver::store::Store;
use nmserver::store::sqlite::Sqlite;
use proto::convert::{encode_delta, encode_view};
use proto::wire::{Facts, Problem};
use schema::inventory::{ClientStatus, NodeId, NodeProblem};
use schema::scalars::WireGuardKey;
use schema::snapshot::Revision;
use schema::view::{View, ViewDelta};
use schema::world::World;
use serde_json::json;
use test_agent::Agent;

/// The interface of the ingress.
const INTERFACE: &str = "nm-bench";
/// How often something large is done; the median counts.
const RUNS: usize = 11;
/// How often `wg syncconf` is run.
const SYNCS: usize = 3;
const PORT: u16 = 51_821;
/// Numbers from here on are no node's so far.
const FRESH: u32 = 20_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some([what, folder]) = arguments.get(1..3)
        && what == "serve"
    {
        return serve(Path::new(folder));
    }
    let (nodes, clients) = (number("NODES", 1_000), number("CLIENTS", 500));
    if !lab::inside() {
        raise_file_limit();
        tokio::runtime::Runtime::new().expect("a runtime").block_on(failover(nodes));
        println!(
            "\n| {nodes} nodes and | {clients} external clients | {clients} more nodes |\n| --- | --- | --- |"
        );
        compiled(nodes, clients);
        applied(clients);
    }
    in_lab(one_more_at_the_ingress(nodes, clients));
}

/// A join and a failover, each from the moment that the server decides it.
async fn failover(nodes: u32) {
    let folder = private_folder();
    let [first, second] = [name(0), name(1)];
    seed(
        folder.path(),
        nodes,
        &[
            json!({ "id": format!("corp/node/{first}"), "body": {} }),
            json!({ "id": format!("corp/node/{second}"), "body": {} }),
            json!({ "id": "corp/egress/office", "body": { "via": [&first, &second], "ranges": ["192.168.10.0/24"] } }),
        ],
    );
    let server = Serving::start(&["serve", &folder.path().display().to_string()]);
    let watching = watch_all(&server, 2..nodes).await;
    let mut newcomer = Agent::new(&server.known(), "corp", &name(nodes), nodes);
    newcomer.challenge().await.expect("it is connected");
    let mut gateway = Agent::new(&server.known(), "corp", &first, 0);
    // Whatever is new of it is no part of what is measured.
    gateway.check_in(Some(gateway.facts.clone())).await.expect("it is in the network");
    let watching = settle(watching).await;
    let mut cpu = vec![server.cpu()];
    let join = async { newcomer.join("k").await.map(drop).expect("it joins") };
    let (watching, joined) = all_receive(watching, join).await;
    cpu.push(server.cpu());
    let problem = Problem {
        code: NodeProblem::EGRESS.into(),
        message: "its interface is down".into(),
        egress: "office".into(),
    };
    let facts = Facts { problems: vec![problem], ..gateway.facts.clone() };
    let report = async { gateway.check_in(Some(facts)).await.map(drop).expect("an answer") };
    let (watching, moved) = all_receive(watching, report).await;
    let range: IpNet = "192.168.10.0/24".parse().expect("a range");
    let carrier = watching[0].view().and_then(|view| view.routes[&range].via.as_ref());
    assert_eq!(carrier.map(ToString::to_string), Some(second), "it has moved");
    cpu.push(server.cpu());
    drop(server);
    println!(
        "| {nodes} nodes | hear of it | payload for each, at most | all together | half have it after | all have it after | server CPU |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for ((what, action, received), cpu) in
        [("a join", "join", joined), ("a failover", "failover", moved)].into_iter().zip(cpu.windows(2))
    {
        sent(what, decided(folder.path(), action), &received, cpu[1] - cpu[0]);
    }
}

/// When the server made the newest revision of a kind.
fn decided(folder: &Path, action: &str) -> Timestamp {
    let mut store = Sqlite::open(&folder.join(DATABASE)).expect("a database");
    let log = store.log(Revision(0), 100).expect("it is read");
    log.iter().rfind(|entry| entry.action == action).expect("it was made").time
}

fn sent(what: &str, decided: Timestamp, received: &[Received], cpu: Duration) {
    let most = received.iter().map(|it| it.bytes).max().expect("there are nodes");
    let total: usize = received.iter().map(|it| it.bytes).sum();
    let mut after: Vec<_> = received.iter().map(|it| it.at.duration_since(decided).as_secs_f64()).collect();
    after.sort_by(f64::total_cmp);
    println!(
        "| {what} | {} | {most} bytes | {} KiB | {:.0} ms | {:.0} ms | {:.0} ms |",
        received.len(),
        total.div_ceil(1 << 10),
        after[after.len() / 2] * 1e3,
        after[after.len() - 1] * 1e3,
        cpu.as_secs_f64() * 1e3,
    );
}

/// Phones, which may open one port at the nodes that are there besides, and are pinged by them: as external clients
/// of the first node, or as nodes.
struct Phones {
    put: fn(&mut World, u32),
    world: World,
}

impl Phones {
    fn new(nodes: u32, phones: u32, put: fn(&mut World, u32)) -> Self {
        let mut world = World { epoch: 1, ..World::default() };
        declare(&mut world, "corp", r#"{"ipv4":"10.0.0.0/8","acl":"deny"}"#);
        declare(&mut world, "corp/node/n0", "{}");
        declare(&mut world, "corp/ingress/front", r#"{"via":"n0"}"#);
        let rule = r#"{"from":"tag:phone","to":"tag:web","proto":"tcp","ports":[443]}"#;
        declare(&mut world, "corp/allow/phones", rule);
        let rule = r#"{"from":"tag:web","to":"tag:phone","proto":"icmp"}"#;
        declare(&mut world, "corp/allow/ping", rule);
        (0..nodes).for_each(|number| put_node(&mut world, number, ["web".parse().expect("a tag")]));
        (0..phones).for_each(|number| put(&mut world, nodes + number));
        Self { put, world }
    }

    fn clients(nodes: u32, clients: u32) -> Self {
        Self::new(nodes, clients, |world, number| {
            let key = Agent::keys(number).1;
            let body = format!(r#"{{"via":"front","public-key":"{key}","tags":["phone"]}}"#);
            declare(world, &format!("corp/external-client/c{number}"), &body);
            let name = format!("c{number}").parse().expect("a name");
            let address = IpAddr::V4(Ipv4Addr::from(0x0ac8_0000 + number));
            let status =
                ClientStatus { addresses: [address].into(), created: Timestamp::UNIX_EPOCH, expired: false };
            let id = NodeId { network: id(0).network, name };
            world.inventory.put_client(id, status, Timestamp::UNIX_EPOCH);
        })
    }

    fn nodes(nodes: u32, more: u32) -> Self {
        Self::new(nodes, more, |world, number| put_node(world, number, ["phone".parse().expect("a tag")]))
    }

    fn one_more(&self, round: u32) -> World {
        let mut world = self.world.clone();
        (self.put)(&mut world, FRESH + round);
        world
    }
}

/// The View of the first node.
fn view_of(world: &World) -> View {
    compile(world).view(&id(0).name).expect("it has joined")
}

fn row(what: &str, cells: [String; 2]) {
    println!("| {what} | {} | {} |", cells[0], cells[1]);
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// What the compiler takes, and what the first node is sent.
fn compiled(nodes: u32, clients: u32) {
    let all = [Phones::clients(nodes, clients), Phones::nodes(nodes, clients)];
    let compiling = |phones: &Phones| median((0..RUNS).map(|_| timed(|| compile(&phones.world))).collect());
    row("compiling", all.each_ref().map(|phones| milliseconds(compiling(phones))));
    let following = |phones: &Phones| {
        let mesh = compile(&phones.world);
        followed(&mesh, &phones.world, |world, round| {
            (phones.put)(world, FRESH + u32::try_from(round).expect("few"));
        })
    };
    row("following one more", all.each_ref().map(|phones| milliseconds(following(phones))));
    let bytes = |bytes: Vec<u8>| format!("{} bytes", bytes.len());
    row("the View of the ingress's node", all.each_ref().map(|it| bytes(encode_view(&view_of(&it.world)))));
    let delta = |phones: &Phones| {
        let mesh = compile(&phones.world);
        let later = follow(&mesh, &phones.world, &phones.one_more(0));
        let view = |mesh: &schema::compile::Mesh| mesh.view(&id(0).name).expect("it has joined");
        let delta = ViewDelta::between(&view(&mesh), &view(&later));
        bytes(encode_delta(&delta, later.counts(&id(0).name)))
    };
    row("one more, as the ingress's node is sent it", all.each_ref().map(delta));
}

/// What a server takes to apply them, from the declarations on, and to keep them.
fn applied(clients: u32) {
    let programs = Programs::find().expect("the release build of the programs");
    let columns = [declared_client, declared_node].map(|declared| {
        let folder = tempfile::tempdir().expect("a folder");
        let server = loopback::Server::start(&programs.nmserver, folder.path());
        let apply = |count: u32| -> (Cost, Duration) {
            let file = folder.path().join("mesh.kdl");
            let declared: String = (0..count).map(declared).collect();
            let text = format!(
                r#"network "corp" {{
                    ipv4 "10.40.0.0/16"; acl "deny"
                    node "n0"; node "web" {{ tags "web" }}
                    ingress "front" via="n0" endpoint="192.0.2.1" {{ pool "10.40.128.0/17" }}
                    allow "phones" from="tag:phone" to="tag:web" proto="tcp" ports=443
                    allow "ping" from="tag:web" to="tag:phone" proto="icmp"
                    {declared}
                }}"#
            );
            std::fs::write(&file, text).expect("it is written");
            let mut nmplan = Command::new(&programs.nmplan);
            nmplan.args(["apply", "--project", "bench", "-y", "-q", "-f"]).arg(&file);
            nmplan.envs(server.environment.clone());
            let before = cpu_of(server.id());
            let cost = measure(nmplan);
            (cost, cpu_of(server.id()) - before)
        };
        apply(1);
        let before = memory_of(server.id());
        let (all, cpu_all) = apply(clients);
        let (one, cpu_one) = apply(clients + 1);
        let kept = memory_of(server.id()).saturating_sub(before);
        let took = |cost: Cost, cpu| format!("{}, server {}", milliseconds(cost.wall), milliseconds(cpu));
        [took(all, cpu_all), took(one, cpu_one), format!("{} KiB", kept >> 10)]
    });
    let [of_clients, of_nodes] = columns;
    let whats =
        ["`nmplan apply` of all, CPU of the server", "the same of one more", "memory of the server for both"];
    for (what, cells) in whats.into_iter().zip(of_clients.into_iter().zip(of_nodes)) {
        row(what, cells.into());
    }
}

fn declared_client(number: u32) -> String {
    let key = Agent::keys(number).1;
    format!("external-client \"c{number}\" via=\"front\" public-key=\"{key}\" {{ tags \"phone\" }}\n")
}

fn declared_node(number: u32) -> String {
    format!("node \"c{number}\" {{ tags \"phone\" }}\n")
}

/// What the ingress does of one more client, and of one less.
async fn one_more_at_the_ingress(nodes: u32, clients: u32) {
    let underlay = Underlay::new().await.expect("an underlay");
    let host = underlay.host("ingress").await.expect("a host");
    let programs = Programs::find().expect("the release build of the programs");
    let phones = Phones::clients(nodes, clients);
    let view = view_of(&phones.world);
    let socket = host.directory().join("bench.sock");
    let mut device =
        host.within(|| Userspace::spawn(INTERFACE, &programs.netclient, &socket)).expect("a device");
    let tunnels = view.tunnels();
    let put = |key: &WireGuardKey, tunnel: &schema::view::Tunnel| {
        let allowed_ips = tunnel.allowed_ips.clone();
        DeviceStep::PutPeer(*key, PeerSettings { endpoint: None, allowed_ips, keepalive: 0 })
    };
    let mut steps = vec![DeviceStep::SetPrivateKey(PrivateKey([9; 32])), DeviceStep::SetListenPort(PORT)];
    steps.extend(tunnels.iter().map(|(key, tunnel)| put(key, tunnel)));
    device.apply(&steps).expect("it takes them");

    let system = System::default();
    let (outside, access) =
        (Outside::of([(INTERFACE, &view)]), Filter::of(INTERFACE, &view).expect("it has rules"));
    let own_table = host.within(|| timed(|| system.set_filter(slot(), &outside).expect("it is set")));
    let access_table = host.within(|| timed(|| system.set_access(&access).expect("it is set")));
    println!(
        "\n| {} peers, {clients} of them external clients | one more | one less |\n| --- | --- | --- |",
        tunnels.len()
    );
    let nobody = BTreeSet::new();
    let mut times: [[Vec<Duration>; 2]; 3] = Default::default();
    for round in 0..ROUNDS {
        let later = view_of(&phones.one_more(u32::try_from(round).expect("few")));
        let [more, less] = [(&view, &later), (&later, &view)].map(|(before, after)| {
            TunnelChanges::between(before, after).expect("its ranges are as they were")
        });
        let client: BTreeSet<IpAddr> = more.members.keys().copied().collect();
        assert_eq!(
            (client.len(), more.tunnels.len(), more.filter.clients.len()),
            (1, 1, 1),
            "one more client"
        );
        let key = *more.tunnels.keys().next().expect("there is one");
        let tunnel = later.tunnels().remove(&key).expect("it is there");
        let [own, access, peer] = &mut times;
        host.within(|| {
            own[0].push(timed(|| system.change_members(slot(), &nobody, &client).expect("it is added")));
            access[0].push(timed(|| system.change_access(INTERFACE, &more.filter).expect("it is added")));
            peer[0].push(timed(|| device.apply(&[put(&key, &tunnel)]).expect("it takes it")));
            peer[1].push(timed(|| device.apply(&[DeviceStep::RemovePeer(key)]).expect("it takes it")));
            access[1].push(timed(|| system.change_access(INTERFACE, &less.filter).expect("it is taken out")));
            own[1].push(timed(|| system.change_members(slot(), &client, &nobody).expect("it is taken out")));
        });
    }
    let whats = [
        "its address in the table of the agent",
        "its address in the sets of the table of the network",
        "the peer on the device, in its process",
    ];
    for (what, times) in whats.into_iter().zip(times) {
        row(what, times.map(|times| milliseconds(median(times))));
    }
    row("beside it: `wg set` of one peer", set(&host));
    row("beside it: `wg syncconf` of all peers", syncconf(&host, &phones));
    row("beside it: `nft -f` of one element", one_by_nft(&host));
    let none = String::new;
    row("beside it: the table of the agent, whole, by nft(8)", [milliseconds(own_table), none()]);
    row("beside it: the table of the network, whole, by nft(8)", [milliseconds(access_table), none()]);
    host.within(|| device.remove()).expect("it ends");
}

/// The names and numbers of most agents.
fn slot() -> Slot {
    let usual = Path::new("/var/lib/netclient");
    Slot::candidates(usual, usual, Mark::default())[0]
}

/// One more peer, and one less, as `wg syncconf` brings it about.
fn syncconf(host: &Host, phones: &Phones) -> [String; 2] {
    let file = |name: &str, world: &World| {
        let private = WireGuardKey([9; 32]);
        let mut text = format!("[Interface]\nPrivateKey = {private}\nListenPort = {PORT}\n");
        for (key, tunnel) in view_of(world).tunnels() {
            let ranges: Vec<_> = tunnel.allowed_ips.iter().map(ToString::to_string).collect();
            let _ = write!(text, "[Peer]\nPublicKey = {key}\nAllowedIPs = {}\n", ranges.join(", "));
        }
        let path = host.directory().join(name);
        std::fs::write(&path, text).expect("it is written");
        path
    };
    let files = [file("more.conf", &phones.one_more(0)), file("less.conf", &phones.world)];
    let mut times: [Vec<Duration>; 2] = Default::default();
    for _ in 0..SYNCS {
        for (file, times) in files.iter().zip(&mut times) {
            times.push(wg(host, &["syncconf", INTERFACE, &file.display().to_string()]));
        }
    }
    times.map(|times| milliseconds(median(times)))
}

/// One more peer, and one less, as `wg set` brings it about.
fn set(host: &Host) -> [String; 2] {
    let key = Agent::keys(FRESH).1.to_string();
    let peer = ["set", INTERFACE, "peer", &key];
    let changes =
        [[&peer[..], &["allowed-ips", "10.201.0.1/32"]].concat(), [&peer[..], &["remove"]].concat()];
    let mut times: [Vec<Duration>; 2] = Default::default();
    for _ in 0..RUNS {
        for (change, times) in changes.iter().zip(&mut times) {
            times.push(wg(host, change));
        }
    }
    times.map(|times| milliseconds(median(times)))
}

/// How long wg(8) takes.
fn wg(host: &Host, arguments: &[&str]) -> Duration {
    let mut wg = host.command("wg");
    wg.args(arguments);
    let mut output = None;
    let took = timed(|| output = Some(wg.output().expect("wireguard-tools are installed")));
    let output = output.expect("it ran");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    took
}

/// One more element of the sets, and one less, by nft(8).
fn one_by_nft(host: &Host) -> [String; 2] {
    let table = netclient::filter::table(INTERFACE);
    let mut times: [Vec<Duration>; 2] = Default::default();
    for _ in 0..RUNS {
        for (verb, times) in ["add", "delete"].into_iter().zip(&mut times) {
            let command = format!("{verb} element inet {table} clients4 {{ 10.201.0.1 }}\n");
            times.push(timed(|| filter::nft(host, &["-f", "-"], &command)));
        }
    }
    times.map(|times| milliseconds(median(times)))
}
