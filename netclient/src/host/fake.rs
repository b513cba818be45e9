//! A host in memory, for tests of the layers above: it keeps what the agent applied, and shows it.
//!
//! A [`FakeHost`] is a handle: clones share the host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use ipnet::IpNet;
use schema::scalars::{Endpoint, NetworkName};
use tokio::sync::{mpsc, watch};

use super::Host;
use crate::device::fake::{FakeDevice, Journal};
use crate::device::{self, Device, DeviceError, Kind, Refusal};
use crate::filter::{self, Filter, FilterChanges, FilterStep};
use crate::forwarding::{self, Key, Switch, Switches};
use crate::gateways::Exit;
use crate::outside::{Mark, Outside, Routing, Slot, Way};
use crate::system::firewall::FirewallError;
use crate::system::forwarding::{Forwarding, ForwardingError};
use crate::system::hosts::HostsError;
use crate::system::link::{LinkError, LinkState, LinkStep};
use crate::system::resolved::{ResolvedError, Resolvers};
use crate::system::routing::RoutingError;
use crate::system::rp_filter::MarksUnheeded;
use crate::system::slots::SlotsTaken;
use crate::system::watch::HostEvent;

/// What an Ethernet underlay leaves for a tunnel; the kernel's WireGuard begins with it.
const MTU: u16 = 1420;
/// What a TUN begins with.
const TUN_MTU: u16 = 1500;

/// A host in memory: with the interfaces `eth0`, which its default routes lead to, and `eth1`.
#[derive(Clone, Debug)]
pub struct FakeHost(Arc<Mutex<Inner>>);

impl Default for FakeHost {
    fn default() -> Self {
        let host = Self(Arc::default());
        for interface in [forwarding::ALL, forwarding::DEFAULT] {
            host.lock().switches.extend(Key::OF_INTERFACES.map(|key| (Switch::of(interface, key), 0)));
            host.lock().switches.insert(Switch::of(interface, Key::Advertisements), 1);
        }
        host.lock().switches.insert(Switch::of(forwarding::ALL, Key::Liberal), 0);
        ["eth0", "eth1"].into_iter().for_each(|interface| host.plug(interface));
        for range in ["0.0.0.0/0", "::/0"] {
            host.route(range.parse().expect("a range"), Some("eth0"));
        }
        host
    }
}

#[derive(Debug, Default)]
struct Inner {
    devices: BTreeMap<String, FakeDevice>,
    links: BTreeMap<String, LinkState>,
    forwarding: BTreeMap<String, Forwarding>,
    switches: Switches,
    switches_fail: bool,
    carriers: BTreeMap<String, bool>,
    main: BTreeMap<IpNet, String>,
    names: BTreeMap<String, Vec<String>>,
    filter: Option<Outside>,
    access: BTreeMap<String, Filter>,
    journal: Journal,
    no_nftables: bool,
    access_refused: bool,
    routing: Routing,
    connected: Vec<(String, IpNet)>,
    routed_elsewhere: Option<String>,
    no_ipv6: bool,
    names_fail: bool,
    /// Whether programs ask systemd-resolved.
    asks_resolved: bool,
    resolved_fails: bool,
    resolvers: BTreeMap<String, Resolvers>,
    marks_unheeded: bool,
    watchers: Vec<mpsc::UnboundedSender<HostEvent>>,
    refusal: Option<Refusal>,
    filter_refused: bool,
    wanted: Option<Kind>,
    no_wireguard: bool,
    resolver: watch::Sender<BTreeMap<String, Lookup>>,
}

/// What comes of looking up a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It resolves to an address.
    To(SocketAddr),
    /// It does not resolve, like every name of which nothing else is said.
    Fails,
    /// There is no answer, until something else is said of the name.
    Hangs,
}

impl FakeHost {
    /// One whose kernel has one switch of IPv6 for all interfaces.
    pub fn with_kernel_before_6_17() -> Self {
        let host = Self::default();
        host.lock().switches.retain(|switch, _| switch.key != Key::Ipv6Forced);
        host
    }

    /// Adds an interface with a carrier.
    pub fn plug(&self, interface: &str) {
        let mut inner = self.lock();
        inner.carriers.insert(interface.to_owned(), true);
        let begin = inner.switches.iter().filter(|(switch, _)| switch.interface == forwarding::DEFAULT);
        let begin: Vec<_> =
            begin.map(|(switch, value)| (Switch::of(interface, switch.key), *value)).collect();
        inner.switches.extend(begin);
    }

    /// Has an interface have a carrier from now on, or none; and reports it.
    pub fn set_carrier(&self, interface: &str, carrier: bool) {
        let mut inner = self.lock();
        inner.carriers.insert(interface.to_owned(), carrier);
        let event = HostEvent::Surroundings;
        inner.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    /// Routes a range to an interface in the main table, or no longer; and reports it.
    pub fn route(&self, range: IpNet, interface: Option<&str>) {
        let mut inner = self.lock();
        match interface {
            Some(interface) => drop(inner.main.insert(range, interface.to_owned())),
            None => drop(inner.main.remove(&range)),
        }
        inner.watchers.retain(|watcher| watcher.send(HostEvent::Surroundings).is_ok());
    }

    /// Has the kernel's switches be read-only from now on, or not.
    pub fn protect_switches(&self, protected: bool) {
        self.lock().switches_fail = protected;
    }

    /// The device of an interface; absent: there is none, or it has ended.
    pub fn device(&self, interface: &str) -> Option<FakeDevice> {
        self.lock().devices.get(interface).filter(|device| !device.is_removed()).cloned()
    }

    /// The state of a link; absent: there is none.
    pub fn link(&self, interface: &str) -> Option<LinkState> {
        self.device(interface)?;
        self.lock().links.get(interface).cloned()
    }

    /// What becomes of packets that come in by an interface and are for others; absent: nothing was said.
    pub fn forwarding(&self, interface: &str) -> Option<Forwarding> {
        self.lock().forwarding.get(interface).copied()
    }

    /// The lines of an interface in the file of names.
    pub fn names(&self, interface: &str) -> Vec<String> {
        self.lock().names.get(interface).cloned().unwrap_or_default()
    }

    /// What the packet filter knows of networks; absent: nothing.
    pub fn filter(&self) -> Option<Outside> {
        self.lock().filter.clone()
    }

    /// The table of a network with access rules, by its interface; absent: there is none.
    pub fn access(&self, interface: &str) -> Option<Filter> {
        self.lock().access.get(interface).cloned()
    }

    /// Takes what was done to tables of networks with access rules, to peers and to links since the last
    /// call, in order.
    pub fn take_journal(&self) -> Vec<String> {
        self.lock().journal.take()
    }

    /// Has the host be without nftables from now on, or with it.
    pub fn lack_nftables(&self, lacking: bool) {
        self.lock().no_nftables = lacking;
    }

    /// Has the packet filter refuse the tables of networks with access rules from now on, or none.
    pub fn refuse_access(&self, refused: bool) {
        self.lock().access_refused = refused;
    }

    /// Routes and rules.
    pub fn routing(&self) -> Routing {
        self.lock().routing.clone()
    }

    /// Connects another interface to a network.
    pub fn connect(&self, interface: &str, range: IpNet) {
        self.lock().connected.push((interface.to_owned(), range));
    }

    /// Has another program route everything to an interface of its own, or no longer; and reports it.
    pub fn route_elsewhere(&self, interface: Option<&str>) {
        let mut inner = self.lock();
        inner.routed_elsewhere = interface.map(ToOwned::to_owned);
        inner.watchers.retain(|watcher| watcher.send(HostEvent::Routing).is_ok());
    }

    /// Turns IPv6 off for what is set from now on, or on again.
    pub fn turn_off_ipv6(&self, off: bool) {
        self.lock().no_ipv6 = off;
    }

    /// Has the file of names be read-only from now on, or not.
    pub fn protect_names(&self, protected: bool) {
        self.lock().names_fail = protected;
    }

    /// Has programs ask systemd-resolved from now on, which takes name servers or does not.
    pub fn ask_resolved(&self, takes: bool) {
        let mut inner = self.lock();
        inner.asks_resolved = true;
        inner.resolved_fails = !takes;
    }

    /// What systemd-resolved was sent of an interface.
    pub fn resolvers(&self, interface: &str) -> Option<Resolvers> {
        self.lock().resolvers.get(interface).cloned()
    }

    /// Has the kernel not look at marks from now on, where reverse paths are filtered strictly; or look
    /// again.
    pub fn ignore_marks(&self, ignored: bool) {
        self.lock().marks_unheeded = ignored;
    }

    /// Takes routes, rules and packet filter away, as another program may, and reports it.
    pub fn flush(&self) {
        let mut inner = self.lock();
        inner.filter = None;
        inner.access.clear();
        inner.routing = Routing::default();
        inner.watchers.retain(|watcher| watcher.send(HostEvent::Filter).is_ok());
    }

    /// Reports that an interface is gone, as the kernel does when the process of a device ends.
    pub fn report_gone(&self, interface: &str) {
        self.lock().watchers.retain(|watcher| watcher.send(HostEvent::Link(interface.to_owned())).is_ok());
    }

    /// Reports that an interface got an address or a carrier.
    pub fn report_connected(&self, interface: &str) {
        let event = HostEvent::Connected(interface.to_owned());
        self.lock().watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    /// Sets what comes of looking up `host:port` from now on.
    pub fn resolve_to(&self, name: &str, lookup: Lookup) {
        self.lock().resolver.send_modify(|names| {
            names.insert(name.to_owned(), lookup);
        });
    }

    /// Sets the kind of device that a setting wants from now on; absent: any will do.
    pub fn want_kind(&self, kind: Option<Kind>) {
        self.lock().wanted = kind;
    }

    /// Has the kernel offer no WireGuard from now on, or offer it again.
    pub fn unload_wireguard(&self, unloaded: bool) {
        self.lock().no_wireguard = unloaded;
    }

    /// Sets a link down, as another program may, and reports it.
    pub fn set_down(&self, interface: &str) {
        if let Some(link) = self.lock().links.get_mut(interface) {
            link.up = false;
        }
        self.report_gone(interface);
    }

    /// Makes every creation of a device fail from now on, until `None` is passed.
    pub fn refuse_devices(&self, refusal: Option<Refusal>) {
        self.lock().refusal = refusal;
    }

    /// Has the packet filter refuse every table from now on, or none.
    pub fn refuse_filter(&self, refused: bool) {
        self.lock().filter_refused = refused;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for FakeHost {
    fn check_free(&self, interface: &str, _port: Option<u16>) -> Result<(), Refusal> {
        match self.device(interface) {
            Some(_) => Err(Refusal::NameTaken { interface: interface.to_owned() }),
            None => Ok(()),
        }
    }

    fn attach(&self, interface: &str, _socket: &Path) -> Result<Option<Box<dyn Device>>, DeviceError> {
        Ok(self.device(interface).map(|device| Box::new(device) as Box<dyn Device>))
    }

    /// A device has no process here, so the file of a socket stands for one.
    fn is_served(&self, interface: &str, socket: &Path) -> bool {
        socket.exists() && self.device(interface).is_some()
    }

    fn end_stale(&self, _interface: &str, _socket: &Path) -> Result<bool, DeviceError> {
        Ok(false)
    }

    fn create(&self, interface: &str, _socket: &Path) -> Result<Box<dyn Device>, DeviceError> {
        self.check_free(interface, None)?;
        let mut inner = self.lock();
        if let Some(refusal) = &inner.refusal {
            return Err(refusal.clone().into());
        }
        let offered = |kind| kind == Kind::Userspace || !inner.no_wireguard;
        let kind = device::first_offered(device::kinds_wanted(inner.wanted), |kind| {
            Ok(offered(kind).then_some(kind))
        })?;
        let device = FakeDevice::of(kind).writing(inner.journal.clone());
        let mtu = if kind == Kind::Kernel { MTU } else { TUN_MTU };
        inner.devices.insert(interface.to_owned(), device.clone());
        inner.links.insert(interface.to_owned(), LinkState { mtu: mtu.into(), ..LinkState::default() });
        Ok(Box::new(device))
    }

    fn wanted_kind(&self) -> Option<Kind> {
        self.lock().wanted
    }

    fn observe_link<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<Option<LinkState>, LinkError>> {
        Box::pin(async { Ok(self.link(interface)) })
    }

    fn apply_link<'a>(
        &'a self,
        interface: &'a str,
        steps: &'a [LinkStep],
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            let inner = &mut *self.lock();
            let missing = || LinkError::Missing { interface: interface.to_owned() };
            let no_ipv6 = inner.no_ipv6;
            let device = inner.devices.get(interface).cloned().ok_or_else(missing)?;
            let link = inner.links.get_mut(interface).ok_or_else(missing)?;
            for step in steps {
                if *step == LinkStep::Up && device.come_up().is_err() {
                    let (interface, source) = (interface.to_owned(), io::ErrorKind::AddrInUse.into());
                    return Err(LinkError::Step { interface, step: *step, source });
                }
                if let LinkStep::AddAddress(address @ IpNet::V6(_)) = step
                    && no_ipv6
                {
                    return Err(LinkError::NoIpv6 { interface: interface.to_owned(), address: *address });
                }
                carry_out(link, step);
                if *step == LinkStep::Up {
                    inner.journal.push("link up");
                }
            }
            Ok(())
        })
    }

    fn underlay_mtu<'a>(&'a self, _interface: &'a str) -> BoxFuture<'a, Result<u16, LinkError>> {
        Box::pin(async { Ok(MTU) })
    }

    fn claim(&self, _directory: &Path, candidates: &[Slot]) -> Result<Slot, SlotsTaken> {
        Ok(candidates[0])
    }

    fn release(&self, _directory: &Path, _slot: Slot) {}

    fn heed_marks(&self) -> Result<(), MarksUnheeded> {
        let mut inner = self.lock();
        if inner.marks_unheeded {
            return Err(MarksUnheeded::on("eth0"));
        }
        inner.turn(&Switch::of(forwarding::ALL, Key::Marks), 1);
        Ok(())
    }

    fn has_filter(&self) -> bool {
        !self.lock().no_nftables
    }

    fn set_access(&self, filter: &Filter) -> Result<(), FirewallError> {
        let mut inner = self.lock();
        inner.access_works(filter.interface())?;
        if inner.access.get(filter.interface()) != Some(filter) {
            inner.journal.push("set the table");
            inner.access.insert(filter.interface().to_owned(), filter.clone());
        }
        Ok(())
    }

    fn change_access(&self, interface: &str, changes: &FilterChanges) -> Result<(), FirewallError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.access_works(interface)?;
        let filter = inner.access.get_mut(interface);
        let filter = filter.ok_or_else(|| FirewallError::drifted(&filter::table(interface)))?;
        if let Some(step) = filter.step(changes) {
            inner.journal.push(match step {
                FilterStep::Table => "set the table".to_owned(),
                FilterStep::Commands(_) => "change classes".to_owned(),
                FilterStep::Elements { gone, new } => {
                    format!("elements: {} gone, {} new", gone.len(), new.len())
                }
            });
        }
        filter.apply(changes);
        Ok(())
    }

    fn remove_access(&self, interface: &str) -> Result<bool, FirewallError> {
        let mut inner = self.lock();
        let there = inner.access.remove(interface).is_some();
        if there {
            inner.journal.push("remove the table");
        }
        Ok(there)
    }

    fn set_filter(&self, slot: Slot, outside: &Outside) -> Result<(), FirewallError> {
        if self.lock().filter_refused && !outside.is_empty() {
            let reason = "Error: Could not process rule: Operation not supported".to_owned();
            return Err(FirewallError::Refused { table: slot.filter(), reason });
        }
        if outside.is_empty() && outside.unread {
            return Ok(());
        }
        self.lock().filter = Some(outside.clone()).filter(|outside| !outside.is_empty());
        Ok(())
    }

    fn change_members(
        &self,
        slot: Slot,
        gone: &BTreeSet<IpAddr>,
        new: &BTreeSet<IpAddr>,
    ) -> Result<(), FirewallError> {
        let mut inner = self.lock();
        let absent = || FirewallError::Refused {
            table: slot.filter(),
            reason: "No such file or directory".to_owned(),
        };
        let filter = inner.filter.as_mut().ok_or_else(absent)?;
        filter.members.retain(|member| !gone.contains(member));
        filter.members.extend(new);
        Ok(())
    }

    fn set_routing<'a>(
        &'a self,
        _slot: Slot,
        routing: &'a Routing,
    ) -> BoxFuture<'a, Result<(), RoutingError>> {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.routing, routing.clone());
        // What is not known to be gone stays.
        if routing.unread {
            inner.routing.routes.extend(before.routes);
            inner.routing.rules.extend(before.rules);
        }
        Box::pin(async { Ok(()) })
    }

    fn asks_for_marks(&self) -> BoxFuture<'_, Result<bool, RoutingError>> {
        let asks = self.lock().routing.rules.iter().any(|rule| rule.unmarked != 0);
        Box::pin(async move { Ok(asks) })
    }

    fn routed<'a>(&'a self, _slot: Slot) -> BoxFuture<'a, Result<BTreeSet<String>, RoutingError>> {
        let inner = self.lock();
        let routed = inner.routing.routes.values().filter_map(Way::interface).map(ToOwned::to_owned);
        let routed = routed.collect();
        Box::pin(async { Ok(routed) })
    }

    fn connected<'a>(
        &'a self,
        _ours: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<(String, IpNet)>, LinkError>> {
        Box::pin(async { Ok(self.lock().connected.clone()) })
    }

    fn exit(&self, to: IpAddr) -> BoxFuture<'_, Result<Option<String>, LinkError>> {
        let inner = self.lock();
        let ours = || {
            let routes = inner.routing.routes.iter().filter(|(place, _)| place.range.contains(&to));
            let first = routes.max_by_key(|(place, _)| (place.range.prefix_len(), !place.last));
            first.and_then(|(_, way)| way.interface().map(ToOwned::to_owned))
        };
        let exit = inner.routed_elsewhere.clone().or_else(ours);
        Box::pin(async { Ok(exit) })
    }

    fn way_out(&self, to: IpAddr, _mark: Mark) -> BoxFuture<'_, Result<Option<Exit>, LinkError>> {
        let inner = self.lock();
        let routes = inner.main.iter().filter(|(range, _)| range.contains(&to));
        let exit = routes.max_by_key(|(range, _)| range.prefix_len()).map(|(range, interface)| Exit {
            interface: interface.clone(),
            range: *range,
            forwards: true,
        });
        Box::pin(async { Ok(exit) })
    }

    fn carriers(&self) -> BoxFuture<'_, Result<BTreeMap<String, bool>, LinkError>> {
        Box::pin(async { Ok(self.lock().carriers.clone()) })
    }

    fn watch(&self, _slot: Slot) -> io::Result<mpsc::UnboundedReceiver<HostEvent>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().watchers.push(sender);
        Ok(receiver)
    }

    fn set_forwarding(&self, interface: &str, forwarding: Forwarding) -> Result<(), ForwardingError> {
        self.lock().forwarding.insert(interface.to_owned(), forwarding);
        Ok(())
    }

    fn switches(&self) -> Switches {
        self.lock().switches.clone()
    }

    fn set_switch(&self, switch: &Switch, value: u8) -> Result<(), ForwardingError> {
        let mut inner = self.lock();
        if inner.switches_fail {
            return Err(ForwardingError::read_only(switch));
        }
        inner.turn(switch, value);
        Ok(())
    }

    fn set_names(&self, _turn: &Path, interface: &str, lines: &[String]) -> Result<(), HostsError> {
        let mut inner = self.lock();
        if inner.names_fail {
            return Err(HostsError::read_only());
        }
        inner.names.insert(interface.to_owned(), lines.to_vec());
        Ok(())
    }

    fn asks_resolved(&self) -> bool {
        self.lock().asks_resolved
    }

    fn set_resolvers(&self, interface: &str, resolvers: &Resolvers) -> Result<(), ResolvedError> {
        let mut inner = self.lock();
        if inner.resolved_fails {
            return Err(ResolvedError::stopped(interface));
        }
        if resolvers.is_empty() {
            inner.resolvers.remove(interface);
        } else {
            inner.resolvers.insert(interface.to_owned(), resolvers.clone());
        }
        Ok(())
    }

    fn resolves(&self, interface: &str, network: &NetworkName) -> bool {
        self.resolvers(interface).is_some_and(|resolvers| resolvers.network == *network)
    }

    fn resolve<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Vec<SocketAddr>> {
        let mut resolver = self.lock().resolver.subscribe();
        let name = endpoint.to_string();
        Box::pin(async move {
            if let Some(at) = endpoint.socket_addr() {
                return vec![at];
            }
            let answer = resolver.wait_for(|names| names.get(&name) != Some(&Lookup::Hangs)).await;
            match answer.ok().and_then(|names| names.get(&name).copied()) {
                Some(Lookup::To(at)) => vec![at],
                Some(Lookup::Fails | Lookup::Hangs) | None => Vec::new(),
            }
        })
    }

    fn executable(&self) -> &Path {
        Path::new("/nonexistent")
    }
}

impl Inner {
    /// As the kernel does: what holds for all interfaces is set on each of them.
    fn turn(&mut self, switch: &Switch, value: u8) {
        if !self.switches.contains_key(switch) {
            return;
        }
        self.switches.insert(switch.clone(), value);
        if switch.interface != forwarding::ALL || matches!(switch.key, Key::Advertisements | Key::Marks) {
            return;
        }
        for (other, is) in &mut self.switches {
            if other.key == switch.key {
                *is = value;
            } else if (switch.key, value, other.key) == (Key::Ipv6, 0, Key::Ipv6Forced) {
                *is = 0;
            }
        }
    }

    fn access_works(&self, interface: &str) -> Result<(), FirewallError> {
        if self.no_nftables {
            return Err(FirewallError::Missing);
        }
        if self.access_refused || self.filter_refused {
            let reason = "Error: Could not process rule: Operation not supported".to_owned();
            return Err(FirewallError::Refused { table: filter::table(interface), reason });
        }
        Ok(())
    }
}

fn carry_out(link: &mut LinkState, step: &LinkStep) {
    match step {
        LinkStep::AddAddress(address) => drop(link.addresses.insert(*address)),
        LinkStep::AddPointToPoint { local, peer: _ } => {
            link.addresses.insert(IpNet::from(IpAddr::V4(*local)));
        }
        LinkStep::RemoveAddress(address) => drop(link.addresses.remove(address)),
        LinkStep::SetGroup(group) => link.group = *group,
        LinkStep::SetMtu(mtu) => link.mtu = (*mtu).into(),
        LinkStep::Up => link.up = true,
    }
}
