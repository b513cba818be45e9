//! Bringing a tunnel up, and taking it down, together with what keeps the agent's own packets outside of it.
//!
//! Routes, rules and the packet filter belong to all networks of the agent, whoever looks after them; so they
//! are computed from what all processes of the agent keep on the disk, by one at a time. Killed between any
//! two steps, the host is as safe as before: the filter comes before the tunnel and goes after it, routes and
//! rules come after it and go before it. A network with access rules has a table of its own, which comes
//! before its first peer and goes after its last one: who gains a permission has it before being a peer, and
//! who loses it is no peer any more.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::future::join_all;
use ipnet::IpNet;
use schema::inventory::NodeProblem;
use schema::scalars::{NetworkName, SigningKey, WireGuardKey, is_default};
use schema::view::{Tunnel, View};

use super::forwarding::Needed;
use super::{Agent, AgentError, canonical, error_chain};
use crate::addresses::Addresses;
use crate::comms;
use crate::device::blocking;
use crate::directory::{DirectoryError, NamesOf};
use crate::filter as access;
use crate::forwarding::Needs;
use crate::gateways;
use crate::membership::{Membership, ServerAddress};
use crate::outside::{self, Outside};
use crate::server_names::{RESOLVE, ServerNames};
use crate::system::firewall::{self, FirewallError};
use crate::system::rp_filter::MarksUnheeded;
use crate::tunnel::{BroughtUp, NetworkTunnel, TunnelError};
use crate::tunnels::TunnelChanges;

impl Agent {
    /// Does what a network lacks on this host.
    pub(crate) async fn bring_up(
        &self,
        tunnel: &mut NetworkTunnel,
        membership: &Membership,
    ) -> Result<BroughtUp, TunnelError> {
        let kept = async {
            let _turn = self.directory.lock_outside().await?;
            self.keep_outside(self.needed(Some(membership), None).await?.outside).await
        };
        let kept = kept.await;
        let enforcement = self.enforce(tunnel, membership).await;
        let kept = kept?;
        // Why nothing is forwarded to outside, which the packet filter has to decide.
        let unjudged = if kept.filtered() { enforcement.unjudged } else { Some(kept.remedy()) };
        let decided = kept.filtered() && (unjudged.is_none() || membership.view.forwards.is_empty());
        let mut brought = tunnel.reconcile(&enforcement.membership, decided).await?;
        brought.problems.extend(enforcement.problem);
        if enforcement.ends {
            self.end_access(&membership.interface).await?;
        }
        let servers = self.spared(&kept, Some(membership), None).await?;
        let _turn = self.directory.lock_outside().await?;
        let slot = self.slot()?;
        let Needed { mut outside, needs, problems } = self.needed(Some(membership), None).await?;
        let needs = if kept.filtered() {
            needs
        } else {
            let (ipv4, ipv6) = Default::default();
            Needs { ipv4, ipv6, marks: false, connections_return: false, ..needs }
        };
        brought.problems.extend(self.forward(&needs));
        brought.problems.extend(match &unjudged {
            None => problems,
            Some(remedy) => {
                let View { network, forwards, .. } = &membership.view;
                forwards.keys().map(|egress| gateways::unfiltered(network, egress, remedy)).collect()
            }
        });
        if let Some(error) = &kept.unheeded {
            brought.problems.push(NodeProblem::new(NodeProblem::MARKS_UNHEEDED, error_chain(error)));
        }
        if let Filter::Absent(why) = &kept.filter {
            let message = format!("control traffic and tunnels are not kept outside of networks: {why}");
            brought.problems.push(NodeProblem::new(NodeProblem::NO_FILTER, message));
        }
        if !kept.outside() {
            brought.problems.extend(spare_servers(&mut outside, &servers, &kept.remedy()));
        }
        self.host.set_routing(slot, &outside.routing(slot, kept.outside())).await?;
        let mut connected = self.host.connected(&outside.interfaces).await?;
        connected.extend(outside.led_elsewhere(&membership.interface));
        let (view, interface) = (&membership.view, &*membership.interface);
        brought.problems.extend(outside::range_problems(view, &connected));
        let has_ipv6 = !brought.problems.iter().any(|problem| &*problem.code == NodeProblem::NO_IPV6);
        for (range, sample) in outside::samples(view, &outside, interface, &connected) {
            if sample.is_ipv6() && !has_ipv6 {
                continue;
            }
            // All is applied: what is not known of it is no failure.
            let exit = self.host.exit(sample).await.unwrap_or_else(|error| {
                tracing::debug!(error = error_chain(&error), "the kernel does not say where packets leave");
                None
            });
            let elsewhere = exit.filter(|exit| exit != interface);
            brought
                .problems
                .extend(elsewhere.map(|exit| outside::routed_elsewhere(view, range, sample, &exit)));
        }
        brought.problems.sort();
        Ok(brought)
    }

    /// Has what arrives be judged by the access rules of a network before anything may, and says what there is
    /// of the network here. Without judgement there are no peers that would have to be restricted.
    async fn enforce<'a>(&self, tunnel: &mut NetworkTunnel, membership: &'a Membership) -> Enforcement<'a> {
        let whole =
            Enforcement { membership: Cow::Borrowed(membership), problem: None, unjudged: None, ends: false };
        let Some(filter) = access::Filter::of(&membership.interface, &membership.view) else {
            return Enforcement { ends: true, ..whole };
        };
        // Who is gone has no part in what an address may do from now on, or a class.
        self.keep_only(tunnel, &membership.view).await;
        let wanted = self.settings.connection_tracking;
        let host = self.host.clone();
        let why = if wanted {
            blocking(move || host.set_access(&filter)).await.err().map(|error| Filter::absent(&error))
        } else {
            Some(Filter::Unwanted)
        };
        let Some(why) = why else { return whole };
        let mut view = access::without_filter(&membership.view);
        self.keep_only(tunnel, &view).await;
        // Nothing says what may be forwarded to outside.
        view.interface.forward &= view.forwards.is_empty();
        let message = || {
            format!(
                "the access rules of {} cannot be enforced here, so nodes that may not open everything here have no tunnel: {}",
                membership.network,
                why.remedy()
            )
        };
        let problem = view.interface.restricted.then(message);
        let problem = problem.map(|message| NodeProblem::new(NodeProblem::RULES_NOT_ENFORCED, message));
        let membership = Cow::Owned(Membership { view, ..membership.clone() });
        // What an earlier setting left goes.
        Enforcement { membership, problem, unjudged: Some(why.remedy()), ends: !wanted }
    }

    async fn keep_only(&self, tunnel: &mut NetworkTunnel, view: &View) {
        if let Err(error) = tunnel.keep_only(&view.tunnels()).await {
            // What follows asks the device as well, and fails.
            tracing::debug!(error = error_chain(&error), "peers that are gone stay for now");
        }
    }

    /// Removes the table of a network without access rules, or without a device.
    async fn end_access(&self, interface: &str) -> Result<bool, TunnelError> {
        let (host, interface) = (self.host.clone(), interface.to_owned());
        Ok(blocking(move || host.remove_access(&interface)).await?)
    }

    /// The same for a network that nobody looks after: what the names of its peers resolve to comes with it.
    pub(crate) async fn bring_up_alone(&self, membership: &Membership) -> Result<(), TunnelError> {
        let network = &membership.network;
        let mut tunnel = self.tunnel(network, &membership.interface);
        self.bring_up(&mut tunnel, membership).await?;
        let moved = self.look_up(&mut tunnel, network).await;
        let changes = TunnelChanges::of(moved);
        if changes.is_empty() { Ok(()) } else { tunnel.follow(membership, changes).await }
    }

    /// Looks up names of peers' endpoints, for a process that will not be there when they resolve later;
    /// the tunnels that lead elsewhere by them. What is found is remembered.
    pub(super) async fn look_up(
        &self,
        tunnel: &mut NetworkTunnel,
        network: &NetworkName,
    ) -> BTreeMap<WireGuardKey, Tunnel> {
        let deadline = tokio::time::Instant::now() + RESOLVE;
        let mut lookups = pin!(tunnel.lookups());
        let mut moved = BTreeMap::new();
        while let Ok(Some((endpoint, found))) = tokio::time::timeout_at(deadline, lookups.next()).await {
            moved.extend(tunnel.resolved(&endpoint, &found));
        }
        self.remember_names(tunnel, network, &moved);
        moved
    }

    /// Stores what names resolve to, if tunnels lead elsewhere by it.
    pub(super) fn remember_names(
        &self,
        tunnel: &NetworkTunnel,
        network: &NetworkName,
        moved: &BTreeMap<WireGuardKey, Tunnel>,
    ) {
        if !moved.is_empty() {
            self.directory.remember(NamesOf::Network(network), tunnel.known_addresses());
        }
    }

    /// The addresses of the servers that no range may be routed over, where marks keep nothing outside. Names
    /// are resolved here, all at once and while nothing is locked.
    ///
    /// A name that does not resolve right now keeps the addresses that it had, which are on the disk. One
    /// that never has, has none: to route no range at all would let a nameserver that is down take every
    /// network down. It is safe, because the agent could not call that server either, and once it could, the
    /// next look, which comes every 30 s, takes the route away.
    async fn spared(
        &self,
        kept: &Kept,
        own: Option<&Membership>,
        without: Option<&NetworkName>,
    ) -> Result<BTreeSet<IpAddr>, DirectoryError> {
        if kept.outside() {
            return Ok(BTreeSet::new());
        }
        let servers = self.servers(own, without)?;
        let lookup = async |(server, address): &(SigningKey, String)| {
            ServerNames::new(self.directory.clone(), *server).resolve(address).await.unwrap_or_default()
        };
        let found = join_all(servers.iter().map(lookup)).await;
        Ok(found.into_iter().flatten().map(|at| at.ip()).collect())
    }

    /// Applies what has changed in a network that is up; whatever fails, [`Agent::bring_up`] mends.
    pub(crate) async fn follow(
        &self,
        tunnel: &mut NetworkTunnel,
        membership: &Membership,
        mut changes: TunnelChanges,
    ) -> Result<(), TunnelError> {
        let has = |there: bool| move |(address, has): (&IpAddr, &bool)| (*has == there).then_some(*address);
        let new: BTreeSet<IpAddr> = changes.members.iter().filter_map(has(true)).collect();
        let gone = changes.members.iter().filter_map(has(false)).collect();
        // Known before it is a peer, and for as long as it is one.
        let moves = changes.filter.members.iter().any(|(it, class)| class.is_some() && !new.contains(it));
        self.change_members(Default::default(), new).await?;
        if membership.view.interface.restricted || !membership.view.forwards.is_empty() {
            // Who is gone has no part in what an address may do from now on; who is new is judged from the
            // first packet.
            tunnel.follow(membership, changes.split_gone()).await?;
            // An address that another peer has from now on is nobody's until its class is.
            if moves {
                self.keep_only(tunnel, &membership.view).await;
            }
            let (host, interface) = (self.host.clone(), membership.interface.clone());
            let filter = std::mem::take(&mut changes.filter);
            blocking(move || host.change_access(&interface, &filter)).await?;
        }
        tunnel.follow(membership, changes).await?;
        self.change_members(gone, Default::default()).await
    }

    /// Takes a network down, as much of it as can be.
    pub(crate) async fn take_down(
        &self,
        tunnel: &mut NetworkTunnel,
        network: &NetworkName,
    ) -> Result<(), TunnelError> {
        self.take_all_down(std::slice::from_mut(tunnel), network).await
    }

    /// The same for a network that may have several devices, or none.
    pub(super) async fn take_all_down(
        &self,
        tunnels: &mut [NetworkTunnel],
        network: &NetworkName,
    ) -> Result<(), TunnelError> {
        let routes = self.take_routes(network).await;
        let mut removed = Ok(());
        let mut tables = Vec::new();
        for tunnel in tunnels {
            let gone = tunnel.remove().await;
            // It stays as long as the device may.
            if gone.is_ok() {
                tables.push(self.end_access(tunnel.interface()).await);
            }
            removed = gone.and(removed);
        }
        let filter = async {
            // It stays as long as the device may.
            if removed.is_err() {
                return Ok(());
            }
            let _turn = self.directory.lock_outside().await?;
            let outside = self.needed(None, Some(network)).await?.outside;
            let ends = outside.is_empty() && !outside.unread;
            self.keep_filter(outside).await?;
            if ends {
                self.host.release(&canonical(self.directory.path()), self.slot()?);
            }
            Ok(())
        };
        // Neither keeps a host in a network; the next look of another network, or the next leave, tries
        // again.
        let tables = tables.into_iter().filter_map(Result::err);
        for error in routes.err().into_iter().chain(tables).chain(filter.await.err()) {
            tracing::warn!(error = error_chain(&error), %network, "something of the network stays: see ip rule and nft list tables");
        }
        removed
    }

    async fn take_routes(&self, network: &NetworkName) -> Result<(), TunnelError> {
        // Its own part of the filter stays until its device is gone, as far as it can be read.
        let own = self.directory.membership(network);
        let unread = own.is_err();
        let own = own.ok().flatten();
        let kept = {
            let _turn = self.directory.lock_outside().await?;
            let outside = self.needed(own.as_ref(), Some(network)).await?.outside;
            self.keep_outside(Outside { unread: unread || outside.unread, ..outside }).await?
        };
        let servers = self.spared(&kept, own.as_ref(), Some(network)).await?;
        let _turn = self.directory.lock_outside().await?;
        let Needed { mut outside, needs, .. } = self.needed(None, Some(network)).await?;
        if !kept.outside() {
            spare_servers(&mut outside, &servers, &kept.remedy());
        }
        let slot = self.slot()?;
        self.host.set_routing(slot, &outside.routing(slot, kept.outside())).await?;
        // The packet filter still knows what was turned on for networks alone.
        self.try_forward(&self.without_rules(needs).await?)?;
        Ok(())
    }

    /// Removes every network from the host, and forgets none: whoever opens the agent again can bring all of
    /// them up. Of a network that cannot be read it removes what leaving it by force would. Adds what became of
    /// each part to `down`, also of those before an error.
    pub async fn down(&self, down: &mut Down) -> Result<(), AgentError> {
        let mut locks = Vec::new();
        let mut interfaces = self.certainly_ours().await?;
        let mut kept = BTreeSet::new();
        for network in self.directory.networks()? {
            locks.push(self.directory.lock(&network)?.ok_or_else(|| AgentError::Busy(network.clone()))?);
            match self.directory.membership(&network) {
                Ok(membership) => interfaces.extend(membership.map(|it| it.interface)),
                Err(_) => kept.extend(self.interfaces_of_unread(&network).await?.left),
            }
        }
        let _turn = self.directory.lock_outside().await?;
        let slot = self.slot().map_err(TunnelError::from)?;
        let nothing = Outside::default();
        self.host.set_routing(slot, &nothing.routing(slot, false)).await.map_err(TunnelError::from)?;
        self.try_forward(&self.without_rules(Needs::default()).await?)?;
        kept.retain(|interface| !interfaces.contains(interface));
        let kept = kept.iter().map(|interface| format!("the interface {interface}: {}", not_ours(interface)));
        down.kept.extend(kept);
        let removed = &mut down.removed;
        let mut outcome = Ok(());
        for interface in interfaces {
            let mut tunnel = self.tunnel_knowing(&interface, Addresses::default());
            let there = tunnel.observe().await.is_ok_and(|state| state.is_some());
            // The others go; the filter stays as long as a device may.
            if let Err(error) = tunnel.remove().await {
                outcome = outcome.and(Err(error));
                continue;
            }
            if there {
                removed.push(format!("the WireGuard device {interface} with its routes and names"));
            }
            match self.end_access(&interface).await {
                Ok(true) => removed.push(format!("the table inet {} of nftables", access::table(&interface))),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome?;
        let host = self.host.clone();
        let filter = blocking(move || {
            let there = host.has_filter() && firewall::is_there(&slot.filter())?;
            if there { host.set_filter(slot, &nothing).map(|()| true) } else { Ok(false) }
        });
        let table = || format!("the table inet {} of nftables", slot.filter());
        removed.extend(filter.await.map_err(TunnelError::from)?.then(table));
        self.host.release(&canonical(self.directory.path()), slot);
        Ok(())
    }

    /// What the agent's networks need outside of them: those on the disk, with one as it is in hand, and
    /// without one.
    pub(super) fn outside(
        &self,
        own: Option<&Membership>,
        without: Option<&NetworkName>,
    ) -> Result<Outside, DirectoryError> {
        let (others, unread) = self.others(own, without)?;
        let mut all: Vec<&Membership> = others.iter().chain(own).collect();
        all.sort_by(|one, other| one.network.cmp(&other.network));
        let outside =
            Outside::of(all.into_iter().map(|membership| (&*membership.interface, &membership.view)));
        Ok(Outside { unread, ..outside })
    }

    /// Where the servers of all networks are found: those on the disk, with one as it is in hand, and without
    /// one.
    fn servers(
        &self,
        own: Option<&Membership>,
        without: Option<&NetworkName>,
    ) -> Result<BTreeSet<(SigningKey, String)>, DirectoryError> {
        let (others, _) = self.others(own, without)?;
        let all = others.iter().chain(own);
        let of = |server: &ServerAddress| {
            let key = server.signing_key;
            server.addresses.iter().map(move |address| (key, address.clone())).collect::<Vec<_>>()
        };
        Ok(all.flat_map(|membership| of(&membership.server)).collect())
    }

    /// The memberships on the disk but for one that is in hand, and but for one; and whether any could not be
    /// read.
    pub(super) fn others(
        &self,
        own: Option<&Membership>,
        without: Option<&NetworkName>,
    ) -> Result<(Vec<Membership>, bool), DirectoryError> {
        let (mut memberships, mut unread) = (Vec::new(), false);
        for network in self.directory.networks()? {
            if own.is_some_and(|own| own.network == network) || without == Some(&network) {
                continue;
            }
            match self.directory.membership(&network) {
                Ok(membership) => memberships.extend(membership),
                Err(error) => {
                    tracing::warn!(error = error_chain(&error), %network, "what stands of a network stays as it is");
                    unread = true;
                }
            }
        }
        Ok((memberships, unread))
    }

    /// The interfaces of networks that are certainly this agent's although nothing says so that is stored:
    /// those that the routes of its slot lead to, and those whose device process has its socket in the
    /// agent's directory. A name, a link group or a file that no process uses shows nothing.
    pub(super) async fn certainly_ours(&self) -> Result<BTreeSet<String>, AgentError> {
        let slot = self.slot().map_err(TunnelError::from)?;
        let mut ours = self.host.routed(slot).await.map_err(TunnelError::from)?;
        for interface in self.directory.devices()?.into_iter().filter(|name| !comms::may_be(name)) {
            let (host, socket) = (Arc::clone(&self.host), self.directory.device_socket(&interface));
            let name = interface.clone();
            if blocking(move || host.is_served(&name, &socket)).await {
                ours.insert(interface);
            }
        }
        Ok(ours)
    }

    /// The interfaces of a network whose state cannot be read: each of the agent's that belongs to nothing
    /// else. If other networks cannot be read either, only the usual one is known to be of this one.
    pub(super) async fn interfaces_of_unread(&self, network: &NetworkName) -> Result<Unread, AgentError> {
        let (others, unread) = self.others(None, Some(network))?;
        let taken: BTreeSet<String> = others.into_iter().map(|membership| membership.interface).collect();
        let usual = format!("nm-{network}");
        let mut ours: BTreeSet<String> = self.certainly_ours().await?.difference(&taken).cloned().collect();
        let mut left = BTreeSet::new();
        if unread {
            left = ours.iter().filter(|name| **name != usual).cloned().collect();
            ours.retain(|name| *name == usual);
        }
        if !taken.contains(&usual) && !ours.contains(&usual) {
            // Without an interface nobody has the name, and what it left, such as names, can go.
            match self.host.observe_link(&usual).await.map_err(TunnelError::from)? {
                Some(_) => left.insert(usual),
                None => ours.insert(usual),
            };
        }
        Ok(Unread { ours, left })
    }

    /// Keeps the table of the packet filter, and has the kernel look at marks.
    async fn keep_outside(&self, outside: Outside) -> Result<Kept, TunnelError> {
        let filter = self.keep_filter(outside).await?;
        let unheeded = if filter == Filter::Kept { self.heed_marks()? } else { None };
        Ok(Kept { filter, unheeded })
    }

    /// Keeps the table of the packet filter; returns whether there is one that keeps marks, without which
    /// there are no rules.
    async fn keep_filter(&self, outside: Outside) -> Result<Filter, TunnelError> {
        let filter = self.try_filter(outside).await;
        self.filtered.store(matches!(filter, Ok(Filter::Kept)), Ordering::Relaxed);
        filter
    }

    async fn try_filter(&self, outside: Outside) -> Result<Filter, TunnelError> {
        let unwanted = !self.settings.connection_tracking;
        if !self.host.has_filter() {
            return Ok(if unwanted { Filter::Unwanted } else { Filter::absent(&FirewallError::Missing) });
        }
        // What an earlier setting left goes.
        let outside = if self.settings.connection_tracking { outside } else { Outside::default() };
        let (host, slot) = (self.host.clone(), self.slot()?);
        match blocking(move || host.set_filter(slot, &outside)).await {
            Ok(()) if unwanted => Ok(Filter::Unwanted),
            Ok(()) => Ok(Filter::Kept),
            Err(error @ (FirewallError::Refused { .. } | FirewallError::Missing)) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "control traffic is not kept outside of networks"
                );
                Ok(Filter::absent(&error))
            }
            Err(error @ FirewallError::Broken { .. }) => Err(error.into()),
        }
    }

    async fn change_members(&self, gone: BTreeSet<IpAddr>, new: BTreeSet<IpAddr>) -> Result<(), TunnelError> {
        if gone.is_empty() && new.is_empty() || !self.filtered.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (host, slot) = (self.host.clone(), self.slot()?);
        Ok(blocking(move || host.change_members(slot, &gone, &new)).await?)
    }
}

/// The interfaces that a network has whose state cannot be read.
pub(super) struct Unread {
    /// Those that are this agent's, and of no other network.
    pub(super) ours: BTreeSet<String>,
    /// Those that may be its, and of which nothing shows it.
    pub(super) left: BTreeSet<String>,
}

/// What became of the networks of an agent that was taken off its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Down {
    /// What was removed, each the end of a sentence.
    pub removed: Vec<String>,
    /// What was left and why, likewise.
    pub kept: Vec<String>,
}

/// Why an interface was left, and what to do if it should not have been.
pub fn not_ours(interface: &str) -> String {
    format!("nothing shows that it is of this directory; if it is, remove it: ip link delete {interface}")
}

/// What keeps the agent's own packets outside of networks.
struct Kept {
    /// The packet filter that keeps marks.
    filter: Filter,
    /// Why the kernel does not look at them, where that matters.
    unheeded: Option<MarksUnheeded>,
}

impl Kept {
    /// Whether rules that spare what is marked lose nothing; without them routes stand in the main table.
    fn outside(&self) -> bool {
        self.filtered() && self.unheeded.is_none()
    }

    /// Whether there is a packet filter that keeps marks.
    fn filtered(&self) -> bool {
        self.filter == Filter::Kept
    }

    /// What to do, so that it is so.
    fn remedy(&self) -> String {
        self.filter.remedy()
    }
}

/// What there is of a network on a host that enforces its access rules, or cannot.
struct Enforcement<'a> {
    /// The membership, with the peers that there may be.
    membership: Cow<'a, Membership>,
    /// Why not all of them are.
    problem: Option<NodeProblem>,
    /// What to do, where nothing judges what is forwarded or arrives; absent: it is judged.
    unjudged: Option<String>,
    /// Whether the table goes, if there is one.
    ends: bool,
}

/// A packet filter that keeps marks.
#[derive(PartialEq, Eq)]
enum Filter {
    /// There is one.
    Kept,
    /// The operator wants none.
    Unwanted,
    /// It could not be made: why, and what to do.
    Absent(String),
}

impl Filter {
    fn absent(error: &FirewallError) -> Self {
        Self::Absent(match error {
            FirewallError::Refused { .. } => {
                format!(
                    "{error}; have the kernel load nf_tables (modprobe nf_tables), and let this host use it"
                )
            }
            FirewallError::Missing | FirewallError::Broken { .. } => error_chain(error),
        })
    }

    /// What to do about it; where it is kept, so that marks are looked at.
    fn remedy(&self) -> String {
        match self {
            Self::Kept => {
                "set net.ipv4.conf.all.src_valid_mark to 1, or rp_filter to 2 where it is strict, with sysctl"
                    .to_owned()
            }
            Self::Absent(why) => why.clone(),
            Self::Unwanted => {
                "remove connection_tracking = false from netclient.toml, and NETCLIENT_CONNECTION_TRACKING"
                    .to_owned()
            }
        }
    }
}

/// Without rules that spare what is marked, a range that holds the server's address would cut the host off
/// from it, and a default route would lead tunnels into themselves: it is not routed.
fn spare_servers(outside: &mut Outside, servers: &BTreeSet<IpAddr>, remedy: &str) -> Vec<NodeProblem> {
    let holds = |range: &&IpNet| is_default(range) || servers.iter().any(|address| range.contains(address));
    // What is for others alone has none of the host's own packets.
    let own = outside.ranges.keys().filter(|range| !outside.passing.contains_key(*range));
    let spared: Vec<IpNet> = own.filter(holds).copied().collect();
    outside.ranges.retain(|range, _| !spared.contains(range));
    let problem = |range: &IpNet| {
        let message = format!(
            "{range} contains the server's address and is not routed, since nothing would keep control traffic outside; \
             {remedy}"
        );
        NodeProblem::new(NodeProblem::RANGE_HOLDS_SERVER, message)
    };
    spared.iter().map(problem).collect()
}
