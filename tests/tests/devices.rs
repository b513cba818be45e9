//! The kinds of WireGuard device: one contract for all, and which of them a host has.
//!
//! ```text
//! nmserver ==== underlay ==== a, b
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use end_to_end::{Mesh, addresses, eventually, guest, in_runtime, link, link_kind};
use netclient::device::fake::FakeDevice;
use netclient::device::kernel::Kernel;
use netclient::device::userspace::Userspace;
use netclient::device::{
    Device, DeviceError, DeviceState, DeviceStep, Kind, PeerSettings, PeerState, PrivateKey, Refusal,
};
use nmplan::lab::{Agent, Host, Programs, Underlay, enter_test};
use schema::scalars::WireGuardKey;

/// The port that another program has.
const TAKEN: u16 = 4_001;

fn state(device: &mut dyn Device) -> DeviceState {
    device.observe().expect("it answers")
}

fn apply(device: &mut dyn Device, steps: &[DeviceStep]) {
    device.apply(steps).expect("it takes the steps");
}

fn settings(endpoint: Option<&str>, ranges: &[&str], keepalive: u16) -> PeerSettings {
    PeerSettings {
        endpoint: endpoint.map(|text| text.parse().expect("an endpoint")),
        allowed_ips: ranges.iter().map(|text| text.parse().expect("a range")).collect(),
        keepalive,
    }
}

/// Asserts all that the layers above build on, in the order of a device's life. `TAKEN` is taken.
fn keeps_the_contract(device: &mut dyn Device) {
    assert_eq!(state(device), DeviceState::default(), "a new device has nothing");
    let early = device.apply(&[DeviceStep::SetListenPort(4_000)]);
    assert!(matches!(early, Err(DeviceError::Refused(Refusal::KeyMissing))), "{early:?}");
    let [own, other, third] = [1, 2, 3].map(|byte| PrivateKey([byte; 32]));
    let basics =
        [DeviceStep::SetMark(0x10), DeviceStep::SetPrivateKey(own.clone()), DeviceStep::SetListenPort(4_000)];
    apply(device, &basics);
    let set = DeviceState {
        public_key: Some(own.public()),
        listen_port: 4_000,
        mark: 0x10,
        peers: BTreeMap::new(),
    };
    assert_eq!(state(device), set);
    apply(device, &basics);
    apply(device, &[DeviceStep::SetListenPort(0)]);
    assert_eq!(state(device), set, "each step is repeatable, and any port keeps the one in use");
    let refused = device.apply(&[
        DeviceStep::SetMark(0x20),
        DeviceStep::SetPrivateKey(other.clone()),
        DeviceStep::SetListenPort(TAKEN),
    ]);
    assert!(matches!(refused, Err(DeviceError::Refused(Refusal::PortTaken { port: TAKEN }))), "{refused:?}");
    assert_eq!(state(device), set, "what is refused changes nothing");

    peers(device, &own, &other, &third);
    many_peers(device);

    let keeps_deadlines = device.kind() == Kind::Userspace;
    let later = netclient::device::boottime() + Duration::from_secs(600);
    assert_eq!(device.expire_at(Some(later)).expect("it answers"), keeps_deadlines);
    assert_eq!(device.expire_at(None).expect("it answers"), keeps_deadlines);

    for _ in 0..2 {
        device.remove().expect("it ends, or has ended");
        assert!(matches!(device.observe(), Err(DeviceError::Gone { .. })));
        assert!(matches!(device.apply(&basics), Err(DeviceError::Gone { .. })));
    }
}

fn peers(device: &mut dyn Device, own: &PrivateKey, other: &PrivateKey, third: &PrivateKey) {
    let [first, last] = [other.public(), third.public()];
    let put = |key: WireGuardKey, settings: &PeerSettings| DeviceStep::PutPeer(key, settings.clone());
    let of = |device: &mut dyn Device, key: &WireGuardKey| state(device).peers[key].settings.clone();
    let at = "192.0.2.1:51821";
    let one = settings(Some(at), &["10.0.0.0/24", "fd00::/64"], 25);
    let two = settings(Some("[2001:db8::1]:51821"), &["10.0.1.0/24"], 0);
    apply(device, &[put(first, &one), put(last, &two)]);
    assert_eq!((of(device, &first), of(device, &last)), (one, two));
    let PeerState { last_handshake, received, .. } = state(device).peers[&first];
    assert_eq!((last_handshake, received), (None, 0), "it was not heard");

    // Put in place: an absent endpoint leaves the known one, ranges are replaced.
    apply(device, &[put(first, &settings(None, &["10.0.0.0/24"], 7))]);
    assert_eq!(of(device, &first), settings(Some(at), &["10.0.0.0/24"], 7));
    let known: Option<SocketAddr> = Some(at.parse().expect("an endpoint"));
    assert_eq!(device.endpoint(&first).expect("it answers"), known);
    assert_eq!(device.endpoint(&WireGuardKey([9; 32])).expect("it answers"), None);

    // A range belongs to the peer put last. gotatun lists it with the former as well, until that is put.
    apply(device, &[put(last, &settings(None, &["10.0.0.0/24", "10.0.1.0/24"], 0))]);
    if device.kind() == Kind::Kernel {
        assert_eq!(of(device, &first).allowed_ips, BTreeSet::new());
    }
    apply(device, &[put(first, &settings(None, &[], 7))]);
    assert_eq!(of(device, &first).allowed_ips, BTreeSet::new());
    assert_eq!(of(device, &last).allowed_ips.len(), 2);

    // A device is no peer of itself, whichever is there first.
    apply(device, &[put(own.public(), &settings(None, &["10.0.3.0/24"], 0))]);
    assert!(!state(device).peers.contains_key(&own.public()));
    apply(device, &[DeviceStep::SetPrivateKey(other.clone())]);
    assert_eq!(state(device).peers.into_keys().collect::<Vec<_>>(), [last]);
    assert_eq!(state(device).public_key, Some(first));

    // A key is as good as its device's port, which it keeps.
    for _ in 0..100 {
        apply(device, &[DeviceStep::SetPrivateKey(own.clone())]);
        apply(device, &[DeviceStep::SetPrivateKey(other.clone())]);
    }
    assert_eq!(state(device).listen_port, 4_000);

    // Nothing is remembered of a peer that was removed; one that is not there is removed as well.
    apply(device, &[DeviceStep::RemovePeer(last), DeviceStep::RemovePeer(last)]);
    apply(device, &[put(last, &settings(None, &["10.0.1.0/24"], 0))]);
    assert_eq!(of(device, &last), settings(None, &["10.0.1.0/24"], 0));
    apply(device, &[DeviceStep::RemovePeer(last)]);
}

/// More than one message between agent and kernel holds, in either direction, with peers at every place where
/// one may end.
fn many_peers(device: &mut dyn Device) {
    let wanted: BTreeMap<WireGuardKey, PeerSettings> = (0..600_u32)
        .map(|number| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let [_, _, high, low] = number.to_be_bytes();
            let mut settings = settings(
                Some(&format!("192.0.2.{}:51821", 1 + number % 200)),
                &[&format!("10.8.{high}.{low}/32"), &format!("fd00:8::{number:x}/128")],
                20,
            );
            // One of them leads to very many ranges.
            if number == 300 {
                let ranges = (0..1_000_u32).map(|range| format!("fd00:9:{range:x}::/48"));
                settings
                    .allowed_ips
                    .extend(ranges.map(|range| range.parse::<ipnet::IpNet>().expect("a range")));
            }
            (WireGuardKey(key), settings)
        })
        .collect();
    let steps: Vec<_> =
        wanted.iter().map(|(key, settings)| DeviceStep::PutPeer(*key, settings.clone())).collect();
    apply(device, &steps);
    let seen: BTreeMap<_, _> =
        state(device).peers.into_iter().map(|(key, peer)| (key, peer.settings)).collect();
    let differs: Vec<_> = wanted.iter().filter(|(key, settings)| seen.get(key) != Some(settings)).collect();
    assert!(differs.is_empty() && seen.len() == wanted.len(), "{} differ: {differs:?}", differs.len());
    let steps: Vec<_> = wanted.into_keys().map(DeviceStep::RemovePeer).collect();
    apply(device, &steps);
    assert_eq!(state(device).peers, BTreeMap::new());
}

/// Runs the contract inside of a host, on the device that is made there.
async fn keeps_the_contract_on(name: &str, create: impl FnOnce(&Host) -> Box<dyn Device> + Send) {
    let underlay = Underlay::new().await.expect("an underlay");
    let host = underlay.host(name).await.expect("a host");
    host.within(|| {
        let _busy = UdpSocket::bind(("0.0.0.0", TAKEN)).expect("the port is free");
        keeps_the_contract(&mut *create(&host));
    });
    assert_eq!(host.within(|| netclient::device::link_index("nm-x")).expect("the kernel answers"), None);
}

#[test]
fn the_fake_keeps_the_contract_of_a_device() {
    let fake = FakeDevice::default();
    fake.take_port(TAKEN, true);
    keeps_the_contract(&mut fake.clone());
}

#[test]
fn a_process_keeps_the_contract_of_a_device() {
    if !enter_test("a_process_keeps_the_contract_of_a_device") {
        return;
    }
    in_runtime(keeps_the_contract_on("a", |host| {
        let programs = Programs::find().expect("the programs are built");
        let socket = host.directory().join("device.sock");
        Box::new(Userspace::spawn("nm-x", &programs.netclient, &socket).expect("a device"))
    }));
}

#[test]
#[ignore = "needs the kernel's WireGuard; kernel.rs runs it in a guest"]
fn the_kernel_keeps_the_contract_of_a_device() {
    if !enter_test("the_kernel_keeps_the_contract_of_a_device") {
        return;
    }
    in_runtime(keeps_the_contract_on("a", |_| {
        Box::new(Kernel::create("nm-x").expect("it can be made").expect("the kernel has WireGuard"))
    }));
}

/// The kernel's WireGuard, which nothing but a test loads while this exists.
struct Module {
    loader: String,
}

/// Where the kernel finds the program that loads modules when somebody asks for what they offer.
const LOADER: &str = "/proc/sys/kernel/modprobe";

impl Module {
    fn held() -> Self {
        assert!(
            guest::inside(),
            "this changes the kernel that it runs on, so it only runs in a guest: make guest"
        );
        let loader = std::fs::read_to_string(LOADER).expect("the kernel has modules");
        std::fs::write(LOADER, "/bin/false").expect("it can be written");
        Self { loader }
    }

    /// Unloads it; it must have no device.
    async fn unload(&self) {
        eventually("no device is left", Duration::from_secs(5), async || {
            Command::new("modprobe").args(["-r", "wireguard"]).status().expect("kmod is there").success()
        })
        .await;
    }

    fn load() {
        assert!(Command::new("modprobe").arg("wireguard").status().expect("kmod is there").success());
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = std::fs::write(LOADER, &self.loader);
        let _ = Command::new("modprobe").arg("wireguard").status();
    }
}

/// Waits until an agent's network is up on a device of a kind, by its own status and by the kernel's.
async fn runs_on(agent: &Agent, network: &str, kind: &str) {
    let what = format!("{network} on {} is a {kind} device", agent.host().name());
    eventually(&what, Duration::from_secs(10), async || {
        let status = agent.status().await.expect("the agent answers");
        let networks = status["networks"].as_array().cloned().unwrap_or_default();
        networks.iter().any(|it| it["name"] == network && it["device"] == kind)
    })
    .await;
    let interface = format!("nm-{network}");
    let expected = if kind == "kernel" { "wireguard" } else { "tun" };
    assert_eq!(link_kind(agent.host(), &interface).await, expected);
}

async fn reaches(from: &Agent, to: &Agent, network: &str) {
    for address in addresses(to, network).await {
        eventually(&format!("{address} answers"), Duration::from_secs(20), async || {
            from.host().ping(address, Duration::from_millis(500)).await.expect("sockets").is_some()
        })
        .await;
    }
}

/// The problems of an agent's networks.
async fn problems(agent: &Agent) -> String {
    let status = agent.status().await.expect("the agent answers");
    let networks = status["networks"].as_array().cloned().unwrap_or_default();
    networks.iter().filter(|it| !it["problems"].is_null()).map(|it| it["problems"].to_string()).collect()
}

async fn restart(agent: &mut Agent) {
    agent.kill_daemon().await.expect("it is killed");
    agent.start_daemon(&[]).expect("the agent starts");
}

#[test]
#[ignore = "needs the kernel's WireGuard; kernel.rs runs it in a guest"]
fn a_device_keeps_its_kind_while_wireguard_comes_and_goes_and_a_new_one_is_chosen_anew() {
    if !enter_test("a_device_keeps_its_kind_while_wireguard_comes_and_goes_and_a_new_one_is_chosen_anew") {
        return;
    }
    in_runtime(async {
        let module = Module::held();
        module.unload().await;
        let mesh = Mesh::start().await;
        let tokens = mesh
            .apply(
                r#"
                network "one" { ipv4 "10.43.0.0/24"; check-in "2s"; access-key "k" uses=9 }
                network "two" { ipv4 "10.44.0.0/24"; check-in "2s"; access-key "k" uses=9 }
                "#,
            )
            .await;
        let [mut a, mut b] = [mesh.agent("a").await, mesh.agent("b").await];
        for agent in [&mut a, &mut b] {
            agent.set("NETCLIENT_DEVICE", "");
        }
        a.join(&tokens["one/access-key/k"], &[]).await.expect("it joins");
        a.start_daemon(&[]).expect("the agent starts");
        runs_on(&a, "one", "userspace").await;
        let made = link(a.host(), "nm-one")["ifindex"].clone();

        // It appears: what exists stays as it is, and what is made from now on is the kernel's.
        Module::load();
        restart(&mut a).await;
        b.join(&tokens["one/access-key/k"], &[]).await.expect("it joins");
        b.start_daemon(&[]).expect("the agent starts");
        runs_on(&b, "one", "kernel").await;
        reaches(&a, &b, "one").await;
        runs_on(&a, "one", "userspace").await;
        assert_eq!(link(a.host(), "nm-one")["ifindex"], made);
        a.join(&tokens["two/access-key/k"], &[]).await.expect("it joins");
        runs_on(&a, "two", "kernel").await;

        // The host boots again: no device is there.
        a.kill_daemon().await.expect("it is killed");
        for interface in ["nm-one", "nm-two"] {
            end_to_end::kill_device(a.host(), interface);
        }
        a.start_daemon(&[]).expect("the agent starts");
        runs_on(&a, "one", "kernel").await;
        runs_on(&a, "two", "kernel").await;
        reaches(&b, &a, "one").await;

        // A setting that wants the other kind is for devices to come; the status says so, and what to type.
        let made = link(a.host(), "nm-one")["ifindex"].clone();
        a.set("NETCLIENT_DEVICE", "userspace");
        restart(&mut a).await;
        eventually("the problem is said", Duration::from_secs(10), async || {
            problems(&a).await.contains("device-kind")
        })
        .await;
        runs_on(&a, "one", "kernel").await;
        assert_eq!(link(a.host(), "nm-one")["ifindex"], made);
        let said = problems(&a).await;
        assert!(said.contains("ip link delete nm-one") && said.contains("NETCLIENT_DEVICE"), "{said}");
        for interface in ["nm-one", "nm-two"] {
            let mut command = a.host().command("ip");
            command.args(["link", "delete", interface]);
            assert!(command.status().expect("ip runs").success());
        }
        runs_on(&a, "one", "userspace").await;
        runs_on(&a, "two", "userspace").await;
        reaches(&b, &a, "one").await;
        eventually("no problem is left", Duration::from_secs(10), async || problems(&a).await.is_empty())
            .await;

        // It goes, which it can once nothing uses it; and what is made then is a process.
        b.kill_daemon().await.expect("it is killed");
        end_to_end::kill_device(b.host(), "nm-one");
        module.unload().await;
        b.start_daemon(&[]).expect("the agent starts");
        runs_on(&b, "one", "userspace").await;
        reaches(&a, &b, "one").await;
        b.kill_daemon().await.expect("it is killed");
        b.set("NETCLIENT_DEVICE", "kernel");
        let refused =
            b.join(&tokens["two/access-key/k"], &[]).await.expect_err("it is not there").to_string();
        assert!(refused.contains("modprobe wireguard") && refused.contains("NETCLIENT_DEVICE"), "{refused}");
    });
}
