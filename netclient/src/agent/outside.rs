//! Bringing a tunnel up, and taking it down, together with what keeps the agent's own packets outside of it.
//!
//! Routes, rules and the packet filter belong to all networks of the agent, whoever looks after them; so they
//! are computed from what all processes of the agent keep on the disk, by one at a time. Killed between any
//! two steps, the host is as safe as before: the filter comes before the tunnel and goes after it, routes and
//! rules come after it and go before it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::future::join_all;
use ipnet::IpNet;
use schema::inventory::NodeProblem;
use schema::scalars::{NetworkName, SigningKey, WireGuardKey};
use schema::view::Tunnel;

use super::{Agent, AgentError, canonical, error_chain};
use crate::addresses::Addresses;
use crate::comms;
use crate::device::blocking;
use crate::directory::{DirectoryError, NamesOf};
use crate::membership::{Membership, ServerAddress};
use crate::outside::{self, Outside};
use crate::server_names::{RESOLVE, ServerNames};
use crate::system::firewall::{self, FirewallError};
use crate::system::rp_filter::MarksUnheeded;
use crate::tunnel::{BroughtUp, NetworkTunnel, TunnelError};
use crate::tunnels::TunnelChanges;

const NO_FILTER: &str = "nftables is missing or may not be used, so control traffic and tunnels are not kept outside of networks; install nftables";

impl Agent {
    /// Does what a network lacks on this host.
    pub(crate) async fn bring_up(
        &self,
        tunnel: &mut NetworkTunnel,
        membership: &Membership,
    ) -> Result<BroughtUp, TunnelError> {
        let kept = {
            let _turn = self.directory.lock_outside().await?;
            self.keep_outside(self.outside(Some(membership), None)?).await?
        };
        let mut brought = tunnel.reconcile(membership, kept.filtered).await?;
        let servers = self.spared(&kept, Some(membership)).await?;
        let _turn = self.directory.lock_outside().await?;
        let slot = self.slot()?;
        let mut outside = self.outside(Some(membership), None)?;
        if let Some(error) = &kept.unheeded {
            brought.problems.push(NodeProblem::new(NodeProblem::MARKS_UNHEEDED, error_chain(error)));
        }
        if !kept.filtered && self.settings.connection_tracking {
            brought.problems.push(NodeProblem::new(NodeProblem::NO_FILTER, NO_FILTER));
        }
        if !kept.outside() {
            let remedy = kept.remedy(self.settings.connection_tracking);
            brought.problems.extend(spare_servers(&mut outside, &servers, remedy));
        }
        self.host.set_routing(slot, &outside.routing(slot, kept.outside())).await?;
        let mut connected = self.host.connected(&outside.interfaces).await?;
        connected.extend(outside.led_elsewhere(&membership.interface));
        brought.problems.extend(outside::range_problems(&membership.view, &connected));
        brought.problems.sort();
        Ok(brought)
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
    ) -> Result<BTreeSet<IpAddr>, DirectoryError> {
        if kept.outside() {
            return Ok(BTreeSet::new());
        }
        let servers = self.servers(own)?;
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
        changes: TunnelChanges,
    ) -> Result<(), TunnelError> {
        let has = |there: bool| move |(address, has): (&IpAddr, &bool)| (*has == there).then_some(*address);
        let new = changes.members.iter().filter_map(has(true)).collect();
        let gone = changes.members.iter().filter_map(has(false)).collect();
        // Known before it is a peer, and for as long as it is one.
        self.change_members(Default::default(), new).await?;
        tunnel.follow(membership, changes).await?;
        self.change_members(gone, Default::default()).await
    }

    /// Takes a network down, as much of it as can be.
    pub(crate) async fn take_down(
        &self,
        tunnel: &mut NetworkTunnel,
        network: &NetworkName,
    ) -> Result<(), TunnelError> {
        let routes = self.take_routes(network).await;
        let removed = tunnel.remove().await;
        let filter = async {
            // It stays as long as the device may.
            if removed.is_err() {
                return Ok(());
            }
            let _turn = self.directory.lock_outside().await?;
            let outside = self.outside(None, Some(network))?;
            let ends = outside.is_empty() && !outside.unread;
            self.keep_filter(outside).await?;
            if ends {
                self.host.release(&canonical(self.directory.path()), self.slot()?);
            }
            Ok(())
        };
        // Neither keeps a host in a network; the next look of another network, or the next leave, tries
        // again.
        for error in [routes.err(), filter.await.err()].into_iter().flatten() {
            tracing::warn!(error = error_chain(&error), %network, "something of the network stays: see ip rule and nft list tables");
        }
        removed
    }

    async fn take_routes(&self, network: &NetworkName) -> Result<(), TunnelError> {
        let kept = {
            let _turn = self.directory.lock_outside().await?;
            self.keep_outside(self.outside(None, None)?).await?
        };
        let servers = self.spared(&kept, None).await?;
        let _turn = self.directory.lock_outside().await?;
        let mut outside = self.outside(None, Some(network))?;
        if !kept.outside() {
            spare_servers(&mut outside, &servers, kept.remedy(self.settings.connection_tracking));
        }
        let slot = self.slot()?;
        Ok(self.host.set_routing(slot, &outside.routing(slot, kept.outside())).await?)
    }

    /// Removes every network from the host, and forgets none: whoever opens the agent again can bring all of
    /// them up. Returns what was removed, a line each.
    pub async fn down(&self) -> Result<Vec<String>, AgentError> {
        let (mut locks, mut interfaces) = (Vec::new(), BTreeSet::new());
        for network in self.directory.networks()? {
            locks.push(self.directory.lock(&network)?.ok_or_else(|| AgentError::Busy(network.clone()))?);
            interfaces.insert(match self.directory.membership(&network) {
                Ok(Some(membership)) => membership.interface.to_string(),
                Ok(None) | Err(_) => format!("nm-{network}"),
            });
        }
        interfaces.extend(self.directory.devices()?);
        let _turn = self.directory.lock_outside().await?;
        let slot = self.slot().map_err(TunnelError::from)?;
        let nothing = Outside::default();
        self.host.set_routing(slot, &nothing.routing(slot, false)).await.map_err(TunnelError::from)?;
        let mut removed = Vec::new();
        for interface in interfaces {
            let mut tunnel = self.tunnel_knowing(&interface, Addresses::default());
            let there = tunnel.observe().await.map_err(TunnelError::from)?.is_some();
            tunnel.remove().await?;
            removed
                .extend(there.then(|| format!("the WireGuard device {interface} with its routes and names")));
        }
        let host = self.host.clone();
        let filter = blocking(move || {
            let there = host.has_filter() && firewall::is_there(&slot.filter());
            if there { host.set_filter(slot, &nothing).map(|()| true) } else { Ok(false) }
        });
        let table = || format!("the table inet {} of nftables", slot.filter());
        removed.extend(filter.await.map_err(TunnelError::from)?.then(table));
        self.host.release(&canonical(self.directory.path()), slot);
        Ok(removed)
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

    /// Where the servers of all networks are found.
    fn servers(&self, own: Option<&Membership>) -> Result<BTreeSet<(SigningKey, String)>, DirectoryError> {
        let (others, _) = self.others(own, None)?;
        let all = others.iter().chain(own);
        let of = |server: &ServerAddress| {
            let key = server.signing_key;
            server.addresses.iter().map(move |address| (key, address.clone())).collect::<Vec<_>>()
        };
        Ok(all.flat_map(|membership| of(&membership.server)).collect())
    }

    /// The memberships on the disk but for one that is in hand, and but for one; and whether any could not be
    /// read.
    fn others(
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

    /// The interfaces that a network may have whose state cannot be read: the usual one, and each with a
    /// device of this agent's that belongs to nothing else; of the latter none, if more cannot be read.
    pub(super) fn interfaces_left(&self, network: &NetworkName) -> Result<BTreeSet<String>, DirectoryError> {
        let (others, unread) = self.others(None, Some(network))?;
        let taken: BTreeSet<String> = others.into_iter().map(|membership| membership.interface).collect();
        let devices = if unread { Vec::new() } else { self.directory.devices()? };
        let all = devices.into_iter().filter(|name| !comms::may_be(name)).chain([format!("nm-{network}")]);
        Ok(all.filter(|name| !taken.contains(name)).collect())
    }

    /// Keeps the table of the packet filter, and has the kernel look at marks.
    async fn keep_outside(&self, outside: Outside) -> Result<Kept, TunnelError> {
        let filtered = self.keep_filter(outside).await?;
        let unheeded = if filtered { self.host.heed_marks().err() } else { None };
        Ok(Kept { filtered, unheeded })
    }

    /// Keeps the table of the packet filter; returns whether there is one that keeps marks, without which
    /// there are no rules.
    async fn keep_filter(&self, outside: Outside) -> Result<bool, TunnelError> {
        let filtered = self.try_filter(outside).await;
        self.filtered.store(matches!(filtered, Ok(true)), Ordering::Relaxed);
        filtered
    }

    async fn try_filter(&self, outside: Outside) -> Result<bool, TunnelError> {
        if !self.host.has_filter() {
            return Ok(false);
        }
        // What an earlier setting left goes.
        let outside = if self.settings.connection_tracking { outside } else { Outside::default() };
        let (host, slot) = (self.host.clone(), self.slot()?);
        match blocking(move || host.set_filter(slot, &outside)).await {
            Ok(()) => Ok(self.settings.connection_tracking),
            Err(error @ (FirewallError::Refused { .. } | FirewallError::Missing)) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "control traffic is not kept outside of networks"
                );
                Ok(false)
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

/// What keeps the agent's own packets outside of networks.
struct Kept {
    /// Whether there is a packet filter that keeps marks.
    filtered: bool,
    /// Why the kernel does not look at them, where that matters.
    unheeded: Option<MarksUnheeded>,
}

impl Kept {
    /// Whether rules that spare what is marked lose nothing; without them routes stand in the main table.
    fn outside(&self) -> bool {
        self.filtered && self.unheeded.is_none()
    }

    /// What to do, so that it is so.
    fn remedy(&self, connection_tracking: bool) -> &'static str {
        match (&self.unheeded, connection_tracking) {
            (Some(_), _) => {
                "set net.ipv4.conf.all.src_valid_mark to 1, or rp_filter to 2 where it is strict, with sysctl"
            }
            (None, true) => "install nftables",
            (None, false) => "remove connection_tracking = false from netclient.toml",
        }
    }
}

/// Without rules that spare what is marked, a range that holds the server's address would cut the host off
/// from it: it is not routed.
fn spare_servers(outside: &mut Outside, servers: &BTreeSet<IpAddr>, remedy: &str) -> Vec<NodeProblem> {
    let holds = |range: &&IpNet| servers.iter().any(|address| range.contains(address));
    let spared: Vec<IpNet> = outside.ranges.keys().filter(holds).copied().collect();
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
