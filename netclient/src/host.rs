//! The host that an agent runs on, as far as a network's tunnel needs it: devices, links, routes, packet
//! filter, forwarding, names.
//!
//! [`System`] is the real one, made of [`device`](crate::device) and [`system`](crate::system);
//! [`fake::FakeHost`] is one in memory, for tests of the whole agent. Neither decides anything.

pub mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use ipnet::IpNet;
use schema::scalars::{Endpoint, NetworkName};
use tokio::sync::mpsc;

use crate::device::{self, Device, DeviceError, Kind, Refusal};
use crate::filter::{self, Element, Filter, FilterChanges, FilterStep, Interval};
use crate::forwarding::{Switch, Switches};
use crate::gateways::Exit;
use crate::outside::{Mark, Outside, Routing, Slot, members_set};
use crate::system::elements::{self, Known};
use crate::system::firewall::{self, FirewallError};
use crate::system::forwarding::{self, Forwarding, ForwardingError};
use crate::system::hosts::{self, HostsError};
use crate::system::link::{self, LinkError, LinkState, LinkStep};
use crate::system::own_tables::OwnTables;
use crate::system::resolved::{self, ResolvedError, Resolvers};
use crate::system::routing::{self, RoutingError};
use crate::system::rp_filter::{self, MarksUnheeded};
use crate::system::slots::{self, SlotsTaken};
use crate::system::watch::{self, HostEvent};

/// A host. What is not async blocks; an async caller runs it on a thread that may block.
pub trait Host: Send + Sync {
    /// Whether a device could be created; see [`device::check_free`].
    fn check_free(&self, interface: &str, port: Option<u16>) -> Result<(), Refusal>;
    /// Finds the agent's device of an interface; see [`device::attach`].
    fn attach(&self, interface: &str, socket: &Path) -> Result<Option<Box<dyn Device>>, DeviceError>;
    /// Whether a device process has a socket there; see [`device::is_served`].
    fn is_served(&self, interface: &str, socket: &Path) -> bool;
    /// Ends a device process that is of no use; see [`device::end_stale`].
    fn end_stale(&self, interface: &str, socket: &Path) -> Result<bool, DeviceError>;
    /// Creates the device of an interface; see [`device::create`].
    fn create(&self, interface: &str, socket: &Path) -> Result<Box<dyn Device>, DeviceError>;
    /// The kind of device that a setting wants for networks; absent: any will do.
    fn wanted_kind(&self) -> Option<Kind>;
    /// Observes a link; absent: there is none of that name.
    fn observe_link<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<Option<LinkState>, LinkError>>;
    /// Carries out steps on a link.
    fn apply_link<'a>(
        &'a self,
        interface: &'a str,
        steps: &'a [LinkStep],
    ) -> BoxFuture<'a, Result<(), LinkError>>;
    /// The MTU of a tunnel over the host's other interfaces.
    fn underlay_mtu<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<u16, LinkError>>;
    /// The slot of an agent that keeps its state in a directory; see [`slots::claim`].
    fn claim(&self, directory: &Path, candidates: &[Slot]) -> Result<Slot, SlotsTaken>;
    /// Frees the slot of an agent that is in no network.
    fn release(&self, directory: &Path, slot: Slot);
    /// Whether this host has a packet filter that keeps marks; see [`outside`](crate::outside).
    fn has_filter(&self) -> bool;
    /// Has the kernel look at marks; see [`rp_filter::heed_marks`].
    fn heed_marks(&self) -> Result<(), MarksUnheeded>;
    /// Keeps the table of the packet filter as it should be; where nothing is outside, there is none. Blocks
    /// the caller.
    fn set_filter(&self, slot: Slot, outside: &Outside) -> Result<(), FirewallError>;
    /// Changes the members that the table knows; [`FirewallError::Refused`] if it is not as it was set.
    /// Blocks the caller.
    fn change_members(
        &self,
        slot: Slot,
        gone: &BTreeSet<IpAddr>,
        new: &BTreeSet<IpAddr>,
    ) -> Result<(), FirewallError>;
    /// Keeps the table of a network, of which there is a [`Filter`], as it should be; where anything is in doubt it is
    /// replaced whole. Blocks the caller.
    fn set_access(&self, filter: &Filter) -> Result<(), FirewallError>;
    /// Changes the table of an interface; [`FirewallError::Refused`] if it does not stand as it was set, even
    /// where nothing changes. Blocks the caller.
    fn change_access(&self, interface: &str, changes: &FilterChanges) -> Result<(), FirewallError>;
    /// Removes the table of an interface; whether there was one. Blocks the caller.
    fn remove_access(&self, interface: &str) -> Result<bool, FirewallError>;
    /// Brings the agent's routes and rules to what they should be.
    fn set_routing<'a>(&'a self, slot: Slot, routing: &'a Routing)
    -> BoxFuture<'a, Result<(), RoutingError>>;
    /// Whether a routing rule asks for a packet's mark; see [`routing::asks_for_marks`].
    fn asks_for_marks(&self) -> BoxFuture<'_, Result<bool, RoutingError>>;
    /// The interfaces that routes of a slot lead to; see [`routing::interfaces`].
    fn routed<'a>(&'a self, slot: Slot) -> BoxFuture<'a, Result<BTreeSet<String>, RoutingError>>;
    /// The networks that its other interfaces are connected to; see [`link::connected`].
    fn connected<'a>(
        &'a self,
        ours: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<(String, IpNet)>, LinkError>>;
    /// The interface by which packets to an address leave; see [`link::exit`].
    fn exit(&self, to: IpAddr) -> BoxFuture<'_, Result<Option<String>, LinkError>>;
    /// The route by which packets to an address leave past every network; see [`link::way_out`].
    fn way_out(&self, to: IpAddr, mark: Mark) -> BoxFuture<'_, Result<Option<Exit>, LinkError>>;
    /// Its interfaces, each with whether it is up and has a carrier.
    fn carriers(&self) -> BoxFuture<'_, Result<BTreeMap<String, bool>, LinkError>>;
    /// Reports what others do to what the agent stands on, until the receiver is dropped.
    fn watch(&self, slot: Slot) -> io::Result<mpsc::UnboundedReceiver<HostEvent>>;
    /// Makes the kernel forward packets that come in by a network's interface, or not; see
    /// [`forwarding::set`].
    fn set_forwarding(&self, interface: &str, forwarding: Forwarding) -> Result<(), ForwardingError>;
    /// The kernel's switches; see [`forwarding`](crate::forwarding).
    fn switches(&self) -> Switches;
    /// Sets one of them.
    fn set_switch(&self, switch: &Switch, value: u8) -> Result<(), ForwardingError>;
    /// Writes the lines of an interface to the file of names; agents of one directory take turns by the lock
    /// file `turn`.
    fn set_names(&self, turn: &Path, interface: &str, lines: &[String]) -> Result<(), HostsError>;
    /// Whether programs of this host ask systemd-resolved; see [`resolved::is_asked`].
    fn asks_resolved(&self) -> bool;
    /// Has systemd-resolved ask these name servers for the names of their network; an error if there are some and
    /// none of them answers. Blocks the caller.
    fn set_resolvers(&self, interface: &str, resolvers: &Resolvers) -> Result<(), ResolvedError>;
    /// Whether systemd-resolved asks name servers for the names of a network. Blocks the caller.
    fn resolves(&self, interface: &str, network: &NetworkName) -> bool;
    /// Where an endpoint with a port may be right now, the better address first; empty: its name does not
    /// resolve. It may take as long as the host's resolver does.
    fn resolve<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Vec<SocketAddr>>;
    /// The program that runs as the process of a device; see [`device::create`].
    fn executable(&self) -> &Path;
}

/// This host, in the network namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct System {
    /// The program that runs as the process of a device.
    pub executable: PathBuf,
    /// The file of names.
    pub hosts: PathBuf,
    /// Where devices run that it creates; see [`device::create`].
    pub device: Option<Kind>,
    /// Where agents of this host leave which slot each has.
    pub slots: PathBuf,
    /// The table of the packet filter as this process set it last.
    filter: Arc<Mutex<Option<Standing<Outside>>>>,
    /// The tables of networks with access rules, by interface; absent in turn: there is none.
    access: Arc<Mutex<BTreeMap<String, Option<Standing<Filter>>>>>,
    /// What systemd-resolved was sent last, by interface; absent in turn: to ask nobody.
    resolvers: Arc<Mutex<BTreeMap<String, Option<Sent>>>>,
    /// What others did to all of these.
    own: OwnTables,
}

/// What systemd-resolved was sent.
#[derive(Debug)]
struct Sent {
    resolvers: Resolvers,
    /// What it knew of the interface then.
    known: Option<String>,
}

/// A table as it was set.
#[derive(Debug)]
struct Standing<T> {
    content: T,
    /// How nft listed it then.
    structure: Option<String>,
    /// How often others had changed it before.
    changes_by_others: u64,
}

impl<T> Standing<T> {
    /// Sets a table.
    fn load(
        own: &OwnTables,
        table: &str,
        content: T,
        load: impl FnOnce(&T) -> Result<(), FirewallError>,
    ) -> Result<Self, FirewallError> {
        // What is changed while it is set may be gone or not, so it counts.
        let changes_by_others = own.changes_by_others(table);
        load(&content)?;
        Ok(Self { content, structure: firewall::structure(table), changes_by_others })
    }

    /// Whether nobody else is known to have changed it, and its chains and rules are those that were set.
    fn stands(&self, own: &OwnTables, table: &str) -> bool {
        self.is_untouched(own, table)
            && self.structure.is_some()
            && self.structure == firewall::structure(table)
    }

    /// Whether nobody else is known to have changed it.
    fn is_untouched(&self, own: &OwnTables, table: &str) -> bool {
        self.changes_by_others == own.changes_by_others(table)
    }
}

impl Default for System {
    /// With this program itself, and `/etc/hosts`.
    fn default() -> Self {
        Self {
            executable: "/proc/self/exe".into(),
            hosts: "/etc/hosts".into(),
            device: None,
            slots: "/run/netclient".into(),
            filter: Arc::default(),
            access: Arc::default(),
            resolvers: Arc::default(),
            own: OwnTables::default(),
        }
    }
}

impl System {
    /// This host, with devices created where it says; see [`device::create`].
    pub fn creating(device: Option<Kind>) -> Self {
        Self { device, ..Self::default() }
    }

    /// Replaces the table, unless it stands as it was set.
    fn load_filter(&self, table: &str, mark: Mark, outside: &Outside) -> Result<(), FirewallError> {
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outside = outside.clone();
        if let Some(standing) = &*filter {
            if outside.unread {
                outside.absorb(&standing.content);
            }
            if standing.content.same_filter(&outside) && standing.stands(&self.own, table) {
                return Ok(());
            }
        }
        // What stands of a network that cannot be read stays, whichever process set it.
        let load = if outside.unread { firewall::load_over } else { firewall::load };
        let text = outside.filter(mark);
        *filter = Some(Standing::load(&self.own, table, outside, |_| load(&self.own, table, &text))?);
        Ok(())
    }

    fn change_elements(
        &self,
        table: &str,
        gone: &BTreeSet<Element>,
        new: &BTreeSet<Element>,
        known: Known,
    ) -> Result<(), FirewallError> {
        let refused =
            |error: io::Error| FirewallError::Refused { table: table.to_owned(), reason: error.to_string() };
        elements::change(&self.own, table, gone, new, known).map_err(refused)
    }

    fn sent(&self) -> MutexGuard<'_, BTreeMap<String, Option<Sent>>> {
        self.resolvers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn access(&self) -> MutexGuard<'_, BTreeMap<String, Option<Standing<Filter>>>> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the maps and sets of addresses of a table hold what they should; in doubt they do not.
fn holds(table: &str, filter: &Filter) -> bool {
    let wanted = filter.members().iter().map(|(address, class)| (*address, Some(filter::chain(class))));
    let holds = |(set, wanted): (&String, &Vec<Interval>)| {
        elements::intervals(table, set).is_ok_and(|found| found == *wanted)
    };
    elements::list(table).is_ok_and(|found| found.into_iter().eq(wanted))
        && filter.intervals().iter().all(holds)
}

impl Host for System {
    fn check_free(&self, interface: &str, port: Option<u16>) -> Result<(), Refusal> {
        device::check_free(interface, port)
    }

    fn attach(&self, interface: &str, socket: &Path) -> Result<Option<Box<dyn Device>>, DeviceError> {
        device::attach(interface, socket)
    }

    fn is_served(&self, interface: &str, socket: &Path) -> bool {
        device::is_served(interface, socket)
    }

    fn end_stale(&self, interface: &str, socket: &Path) -> Result<bool, DeviceError> {
        device::end_stale(interface, socket)
    }

    fn create(&self, interface: &str, socket: &Path) -> Result<Box<dyn Device>, DeviceError> {
        device::create(interface, self.device, &self.executable, socket)
    }

    fn wanted_kind(&self) -> Option<Kind> {
        self.device
    }

    fn observe_link<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<Option<LinkState>, LinkError>> {
        Box::pin(link::observe(interface))
    }

    fn apply_link<'a>(
        &'a self,
        interface: &'a str,
        steps: &'a [LinkStep],
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(link::apply(interface, steps))
    }

    fn underlay_mtu<'a>(&'a self, interface: &'a str) -> BoxFuture<'a, Result<u16, LinkError>> {
        Box::pin(link::underlay_mtu(move |name| name == interface))
    }

    fn claim(&self, directory: &Path, candidates: &[Slot]) -> Result<Slot, SlotsTaken> {
        slots::claim(&self.slots, directory, candidates)
    }

    fn release(&self, directory: &Path, slot: Slot) {
        slots::release(&self.slots, directory, slot);
    }

    fn has_filter(&self) -> bool {
        firewall::is_available()
    }

    fn heed_marks(&self) -> Result<(), MarksUnheeded> {
        rp_filter::heed_marks()
    }

    fn set_filter(&self, slot: Slot, outside: &Outside) -> Result<(), FirewallError> {
        let table = slot.filter();
        if outside.is_empty() && outside.unread {
            return Ok(());
        }
        if outside.is_empty() {
            *self.filter.lock().unwrap_or_else(PoisonError::into_inner) = None;
            // Making a table to delete it would be heard as a change of it by others, once and again.
            self.own.forget(&table);
            return if firewall::is_there(&table)? { firewall::remove(&self.own, &table) } else { Ok(()) };
        }
        self.load_filter(&table, slot.mark(), outside)
    }

    fn change_members(
        &self,
        slot: Slot,
        gone: &BTreeSet<IpAddr>,
        new: &BTreeSet<IpAddr>,
    ) -> Result<(), FirewallError> {
        let mut filter = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        let elements = |addresses: &BTreeSet<IpAddr>| {
            let all = addresses.iter().map(|address| Element::address(members_set(address), *address, None));
            all.collect()
        };
        // It may be a member of another network as well.
        self.change_elements(&slot.filter(), &elements(gone), &elements(new), Known::Stays)
            .inspect_err(|_| *filter = None)?;
        if let Some(filter) = &mut *filter {
            for member in gone {
                filter.content.members.remove(member);
            }
            filter.content.members.extend(new);
        }
        Ok(())
    }

    fn set_access(&self, filter: &Filter) -> Result<(), FirewallError> {
        let table = filter::table(filter.interface());
        let mut access = self.access();
        let standing = access.get(filter.interface()).and_then(Option::as_ref);
        let stands = |it: &Standing<Filter>| it.content == *filter && it.stands(&self.own, &table);
        if standing.is_some_and(stands) && holds(&table, filter) {
            return Ok(());
        }
        access.remove(filter.interface());
        let load = |filter: &Filter| firewall::load(&self.own, &table, &filter.text());
        let standing = Standing::load(&self.own, &table, filter.clone(), load)?;
        access.insert(filter.interface().to_owned(), Some(standing));
        Ok(())
    }

    fn change_access(&self, interface: &str, changes: &FilterChanges) -> Result<(), FirewallError> {
        let table = filter::table(interface);
        let mut access = self.access();
        // What is not put back is not known, and replaced the next time.
        let standing = access.remove(interface).flatten();
        let standing = standing.filter(|standing| standing.is_untouched(&self.own, &table));
        let Standing { mut content, mut structure, changes_by_others } =
            standing.ok_or_else(|| FirewallError::drifted(&table))?;
        let step = content.step(changes);
        // What was damaged meanwhile must not be taken for what was set.
        let commands = matches!(step, Some(FilterStep::Commands(_)));
        if commands && (structure.is_none() || structure != firewall::structure(&table)) {
            return Err(FirewallError::drifted(&table));
        }
        content.apply(changes);
        match step {
            None => {}
            Some(FilterStep::Elements { gone, new }) => {
                self.change_elements(&table, &gone, &new, Known::Refused)?;
            }
            Some(FilterStep::Table) => {
                firewall::load(&self.own, &table, &content.text())?;
                structure = firewall::structure(&table);
            }
            Some(FilterStep::Commands(commands)) => {
                firewall::change(&self.own, &table, &commands)?;
                structure = firewall::structure(&table);
            }
        }
        access.insert(interface.to_owned(), Some(Standing { content, structure, changes_by_others }));
        Ok(())
    }

    fn remove_access(&self, interface: &str) -> Result<bool, FirewallError> {
        let table = filter::table(interface);
        let mut access = self.access();
        if let Some(None) = access.get(interface) {
            return Ok(false);
        }
        // Making a table to delete it would be heard as a change of it.
        let there = firewall::is_there(&table)?;
        if there {
            access.remove(interface);
            self.own.forget(&table);
            firewall::remove(&self.own, &table)?;
        }
        access.insert(interface.to_owned(), None);
        Ok(there)
    }

    fn set_routing<'a>(
        &'a self,
        slot: Slot,
        routing: &'a Routing,
    ) -> BoxFuture<'a, Result<(), RoutingError>> {
        Box::pin(routing::bring(slot, routing))
    }

    fn asks_for_marks(&self) -> BoxFuture<'_, Result<bool, RoutingError>> {
        Box::pin(routing::asks_for_marks())
    }

    fn routed<'a>(&'a self, slot: Slot) -> BoxFuture<'a, Result<BTreeSet<String>, RoutingError>> {
        Box::pin(routing::interfaces(slot))
    }

    fn connected<'a>(
        &'a self,
        ours: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<(String, IpNet)>, LinkError>> {
        Box::pin(link::connected(ours))
    }

    fn exit(&self, to: IpAddr) -> BoxFuture<'_, Result<Option<String>, LinkError>> {
        Box::pin(link::exit(to))
    }

    fn way_out(&self, to: IpAddr, mark: Mark) -> BoxFuture<'_, Result<Option<Exit>, LinkError>> {
        Box::pin(link::way_out(to, mark))
    }

    fn carriers(&self) -> BoxFuture<'_, Result<BTreeMap<String, bool>, LinkError>> {
        Box::pin(link::carriers())
    }

    fn watch(&self, slot: Slot) -> io::Result<mpsc::UnboundedReceiver<HostEvent>> {
        watch::watch(slot, self.own.clone())
    }

    fn set_forwarding(&self, interface: &str, forwarding: Forwarding) -> Result<(), ForwardingError> {
        forwarding::set(interface, forwarding)
    }

    fn switches(&self) -> Switches {
        forwarding::observe()
    }

    fn set_switch(&self, switch: &Switch, value: u8) -> Result<(), ForwardingError> {
        forwarding::set_switch(switch, value)
    }

    fn set_names(&self, turn: &Path, interface: &str, lines: &[String]) -> Result<(), HostsError> {
        hosts::set(&self.hosts, turn, interface, lines)
    }

    fn asks_resolved(&self) -> bool {
        resolved::is_asked()
    }

    fn set_resolvers(&self, interface: &str, resolvers: &Resolvers) -> Result<(), ResolvedError> {
        // Nothing is held while other programs run.
        let before = self.sent().remove(interface);
        let answer = resolvers.answer();
        let now = match (answer, before) {
            (true, Some(Some(sent)))
                if sent.resolvers == *resolvers
                    && sent.known.is_some()
                    && sent.known == resolved::known(interface) =>
            {
                Some(sent)
            }
            (true, _) => {
                resolved::set(interface, resolvers)?;
                Some(Sent { resolvers: resolvers.clone(), known: resolved::known(interface) })
            }
            (false, Some(None)) => None,
            (false, Some(Some(_))) => {
                resolved::revert(interface)?;
                None
            }
            (false, None) => {
                resolved::revert_ours(interface, &resolvers.network);
                None
            }
        };
        self.sent().insert(interface.to_owned(), now);
        if answer || resolvers.is_empty() {
            return Ok(());
        }
        Err(ResolvedError::Silent { network: resolvers.network.clone() })
    }

    fn resolves(&self, interface: &str, network: &NetworkName) -> bool {
        resolved::is_asked() && resolved::asks_for(interface, network)
    }

    fn resolve<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Vec<SocketAddr>> {
        Box::pin(device::resolve(endpoint))
    }

    fn executable(&self) -> &Path {
        &self.executable
    }
}
