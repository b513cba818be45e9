//! One network's tunnel on this host: makes device, link, forwarding and names what a membership says.
//!
//! A thin shell around [`reconcile`](crate::reconcile): observe, compute, apply. It may be called at any
//! time, by a new process as well, and does what is lacking.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream::{self, Stream, StreamExt};
use ipnet::IpNet;
use schema::inventory::NodeProblem;
use schema::scalars::{Endpoint, WireGuardKey};
use schema::view::{Tunnel, View};

use crate::addresses::Addresses;
use crate::device::{
    Device, DeviceError, DeviceState, DeviceStep, Kind, PeerSettings, PeerState, Refusal, blocking,
};
use crate::directory::DirectoryError;
use crate::errors::error_chain;
use crate::files;
use crate::host::Host;
use crate::membership::{Membership, PortFallback};
use crate::outside::Mark;
use crate::reconcile::{AppliedEndpoints, Wanted, WantedLink, change_steps, device_steps, link_steps};
use crate::system::firewall::FirewallError;
use crate::system::forwarding::{Forwarding, ForwardingError};
use crate::system::hosts::{self, HostsError};
use crate::system::link::{LinkError, LinkState};
use crate::system::resolved::{ResolvedError, Resolvers};
use crate::system::routing::RoutingError;
use crate::system::slots::SlotsTaken;
use crate::tunnels::{EndpointNames, TunnelChanges, fitting_mtu, kind_problem, mtu_problem, peer_settings};

/// How many names are looked up at once.
const LOOKUPS: usize = 16;
/// How many ports are tried if the wanted one is taken.
const PORTS: u16 = 100;

/// What came of bringing a tunnel up.
#[derive(Debug, Default)]
pub struct BroughtUp {
    /// The port that was found free, where the wanted one was taken.
    pub port_fallback: Option<PortFallback>,
    /// What is not as it should be, while the rest works.
    pub problems: Vec<NodeProblem>,
}

/// One network's tunnel.
pub struct NetworkTunnel {
    host: Arc<dyn Host>,
    interface: String,
    socket: PathBuf,
    device: Option<Box<dyn Device>>,
    applied: AppliedEndpoints,
    names: EndpointNames,
    mark: Mark,
    /// Whom systemd-resolved asks for the names of the network; absent: they are in `/etc/hosts`.
    asked: Option<Resolvers>,
}

/// Why a tunnel could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Routes and rules.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// The packet filter.
    #[error(transparent)]
    Filter(#[from] FirewallError),
    /// No numbers are left for the agent's routes and rules.
    #[error(transparent)]
    Slots(#[from] SlotsTaken),
    /// The agent's state.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Forwarding.
    #[error(transparent)]
    Forwarding(#[from] ForwardingError),
    /// Names.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// No port near the wanted one is free.
    #[error("no UDP port from {0} to {1} is free on this host; free one, or choose another with --port")]
    NoPort(u16, u16),
}

/// Why names of a network do not resolve as they should.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// `/etc/hosts`.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// systemd-resolved.
    #[error(transparent)]
    Resolved(#[from] ResolvedError),
}

impl NetworkTunnel {
    /// The tunnel of an interface; nothing is changed yet. `known`: what the names of its peers' endpoints
    /// resolved to last.
    pub fn new(host: Arc<dyn Host>, interface: &str, socket: PathBuf, mark: Mark, known: Addresses) -> Self {
        Self {
            host,
            interface: interface.to_owned(),
            socket,
            device: None,
            applied: AppliedEndpoints::new(),
            names: EndpointNames::new(known),
            mark,
            asked: None,
        }
    }

    /// Looks up the names of endpoints that are due: each yields what it resolves to, nothing if it does not.
    /// Pass it to [`NetworkTunnel::resolved`].
    pub fn lookups(&mut self) -> impl Stream<Item = (Endpoint, Vec<SocketAddr>)> + Send + use<> {
        let host = Arc::clone(&self.host);
        let lookups = self.names.take_due().into_iter().map(move |endpoint| {
            let host = Arc::clone(&host);
            async move {
                let found = host.resolve(&endpoint).await;
                (endpoint, found)
            }
        });
        stream::iter(lookups).buffer_unordered(LOOKUPS)
    }

    /// Takes in what a name resolves to; the tunnels that lead elsewhere by it are to be followed.
    pub fn resolved(&mut self, endpoint: &Endpoint, found: &[SocketAddr]) -> BTreeMap<WireGuardKey, Tunnel> {
        self.names.resolved(endpoint, found)
    }

    /// What the names of endpoints resolved to last, to be stored.
    pub fn known_addresses(&self) -> &Addresses {
        self.names.known()
    }

    /// Makes the host what the membership says. What a network can do without fails nothing else; it is a
    /// problem. `filtered`: whether the packet filter decides what is forwarded.
    pub async fn reconcile(
        &mut self,
        membership: &Membership,
        filtered: bool,
    ) -> Result<BroughtUp, TunnelError> {
        let mut port = match self.bring_device(membership).await {
            // It ended meanwhile, by a crash or by hand: create another one.
            Err(TunnelError::Device(DeviceError::Gone { .. })) => {
                self.lose_device();
                self.bring_device(membership).await?
            }
            outcome => outcome?,
        };
        let interface = &membership.view.interface;
        let mtu = match interface.mtu {
            Some(mtu) => mtu,
            None => self.host.underlay_mtu(&self.interface).await?,
        };
        let mtu = fitting_mtu(mtu, self.largest_packet());
        let cut = mtu_problem(interface.mtu, self.largest_packet());
        let mut problems: Vec<_> =
            cut.map(|message| NodeProblem::new(NodeProblem::MTU, message)).into_iter().collect();
        let kind = self.kind().and_then(|kind| kind_problem(&self.interface, kind, self.host.wanted_kind()));
        problems.extend(kind.map(|message| NodeProblem::new(NodeProblem::DEVICE_KIND, message)));
        let observed = self.host.observe_link(&self.interface).await?;
        let observed: LinkState =
            observed.ok_or_else(|| LinkError::Missing { interface: self.interface.clone() })?;
        // Alone, without the prefix of their network: the kernel would route that by itself, in the main
        // table.
        let addresses = interface.addresses.iter().map(|address| IpNet::from(address.addr())).collect();
        let wanted = WantedLink { addresses: &addresses, peer: None, mtu };
        let steps = link_steps(wanted, &observed);
        loop {
            match self.host.apply_link(&self.interface, &steps).await {
                // The kernel took the port as it was set, and another program had it already.
                Err(error) if error.is_port_taken() => {
                    port = self.listen_elsewhere(membership, port).await?;
                    continue;
                }
                // IPv4 alone is better than no network.
                Err(error @ LinkError::NoIpv6 { .. })
                    if interface.addresses.iter().any(|it| it.addr().is_ipv4()) =>
                {
                    problems.push(problem(NodeProblem::NO_IPV6, &error));
                }
                outcome => outcome?,
            }
            break;
        }
        let forwarding = match (interface.forward, filtered) {
            (true, _) => Forwarding::On,
            (false, true) => Forwarding::AsHost,
            (false, false) => Forwarding::Off,
        };
        if let Err(error) = self.host.set_forwarding(&self.interface, forwarding) {
            problems.push(problem(NodeProblem::FORWARDING, &error));
        }
        if let Err(error) = self.set_names(&membership.view).await {
            problems.push(problem(NodeProblem::NAMES, &error));
        }
        let wanted = interface.listen_port;
        let port_fallback =
            (membership.port_may_differ() && port != wanted).then_some(PortFallback { wanted, used: port });
        Ok(BroughtUp { port_fallback, problems })
    }

    /// Applies these changes alone: the device is not observed, and other peers are not compared. Whatever
    /// fails, or is not known to be right, [`NetworkTunnel::reconcile`] repairs.
    pub async fn follow(
        &mut self,
        membership: &Membership,
        changes: TunnelChanges,
    ) -> Result<(), TunnelError> {
        let interface = &membership.view.interface;
        let TunnelChanges { tunnels, names: names_changed, members: _, filter: _ } = changes;
        let gone: Vec<_> =
            tunnels.iter().filter(|(_, tunnel)| tunnel.is_none()).map(|(key, _)| *key).collect();
        let put = tunnels.into_iter().filter_map(|(key, tunnel)| Some((key, tunnel?))).collect();
        self.names.follow(&gone, &put);
        let found = self.names.found(&put, &membership.view);
        let steps = change_steps(&gone, peer_settings(&put, &found, interface.keepalive), &self.applied);
        self.apply(steps).await?;
        for key in gone.iter().chain(put.keys()) {
            self.applied.remove(key);
        }
        self.applied.extend(found);
        match &self.asked {
            // resolved gets a name server that is reached from now on by the next reconciliation.
            None if names_changed => {
                let lines = hosts::lines(&membership.view.network, &membership.view.resolutions());
                self.set_lines(lines).await.map_err(NamesError::from)?;
            }
            Some(asked) if *asked != Resolvers::of(&membership.view) => {
                self.set_names(&membership.view).await?;
            }
            None | Some(_) => {}
        }
        Ok(())
    }

    /// Takes away what the device has and these tunnels do not: peers, and of peers that stay the addresses
    /// that are another's now.
    pub async fn keep_only(&mut self, tunnels: &BTreeMap<WireGuardKey, Tunnel>) -> Result<(), DeviceError> {
        let Some(observed) = self.observe().await? else { return Ok(()) };
        let less = |(key, peer): (WireGuardKey, PeerState)| {
            let Some(tunnel) = tunnels.get(&key) else { return Some(DeviceStep::RemovePeer(key)) };
            let PeerSettings { allowed_ips: had, keepalive, .. } = peer.settings;
            let allowed_ips: BTreeSet<_> = had.intersection(&tunnel.allowed_ips).copied().collect();
            let settings = PeerSettings { endpoint: None, allowed_ips, keepalive };
            (settings.allowed_ips != had).then_some(DeviceStep::PutPeer(key, settings))
        };
        self.apply(observed.peers.into_iter().filter_map(less).collect()).await
    }

    /// Its interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Has the names of the network resolve: by its name servers, through systemd-resolved where programs ask
    /// that, else by `/etc/hosts`.
    async fn set_names(&mut self, view: &View) -> Result<(), NamesError> {
        let outcome = match self.host.asks_resolved() {
            true => self.set_resolvers(Resolvers::of(view)).await,
            false => Ok(None),
        };
        let (asked, refused) = match outcome {
            Ok(asked) => (asked, None),
            Err(error) => (None, Some(error)),
        };
        // Where resolved does not ask for them they resolve all the same.
        let lines =
            if asked.is_some() { Vec::new() } else { hosts::lines(&view.network, &view.resolutions()) };
        self.asked = asked;
        self.set_lines(lines).await?;
        refused.map_or(Ok(()), |refused| Err(refused.into()))
    }

    /// Has systemd-resolved ask these name servers; returns them, if there are any.
    async fn set_resolvers(&mut self, resolvers: Resolvers) -> Result<Option<Resolvers>, ResolvedError> {
        let host = Arc::clone(&self.host);
        let interface = self.interface.clone();
        let set = move || host.set_resolvers(&interface, &resolvers).map(|()| resolvers);
        Ok(Some(blocking(set).await?).filter(|resolvers| !resolvers.is_empty()))
    }

    async fn set_lines(&mut self, lines: Vec<String>) -> Result<(), HostsError> {
        let host = Arc::clone(&self.host);
        let interface = self.interface.clone();
        let turn = self.sibling("hosts.lock");
        blocking(move || host.set_names(&turn, &interface, &lines)).await
    }

    /// A file next to the socket of the device.
    fn sibling(&self, name: &str) -> PathBuf {
        self.socket.with_file_name(name)
    }

    /// Where the device runs, as of the last observation; absent: there was none.
    pub fn kind(&self) -> Option<Kind> {
        self.device.as_ref().map(|device| device.kind())
    }

    /// Observes the device; absent: there is none.
    pub async fn observe(&mut self) -> Result<Option<DeviceState>, DeviceError> {
        if self.device.is_none() {
            let (host, interface, socket) =
                (Arc::clone(&self.host), self.interface.clone(), self.socket.clone());
            self.device = blocking(move || host.attach(&interface, &socket)).await?;
        }
        if self.device.is_none() {
            return Ok(None);
        }
        match self.with_device(|device| device.observe()).await {
            Ok(state) => Ok(Some(state)),
            Err(DeviceError::Gone { .. }) => {
                self.lose_device();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes everything that was set up: as much as possible, even if parts fail.
    pub async fn remove(&mut self) -> Result<(), TunnelError> {
        let device = match self.observe().await {
            Ok(Some(_)) => self.with_device(|device| device.remove()).await,
            Ok(None) => {
                // A process of another release may hold it.
                let (host, interface, socket) =
                    (Arc::clone(&self.host), self.interface.clone(), self.socket.clone());
                blocking(move || host.end_stale(&interface, &socket)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        self.forget_device();
        if let Err(error) = self.set_lines(Vec::new()).await {
            // Nobody can be kept in a network by a file that cannot be written.
            tracing::warn!(
                error = error_chain(&error),
                "names of the network stay; remove its block by hand"
            );
        }
        device?;
        files::clean_after_device(&self.socket);
        Ok(())
    }

    /// The largest packet that its device passes on; absent: any, or there is no device.
    pub fn largest_packet(&self) -> Option<u16> {
        self.device.as_ref()?.largest_packet()
    }

    /// Attaches to the device, or creates it, and adds what it lacks; returns the port that it has.
    async fn bring_device(&mut self, membership: &Membership) -> Result<u16, TunnelError> {
        let observed = match self.observe().await? {
            Some(observed) => observed,
            None => {
                let (host, interface, socket) =
                    (Arc::clone(&self.host), self.interface.clone(), self.socket.clone());
                self.device = Some(blocking(move || host.create(&interface, &socket)).await?);
                DeviceState::default()
            }
        };
        let tunnels = membership.view.tunnels();
        self.names.replace(&tunnels);
        let found = self.names.found(&tunnels, &membership.view);
        let peers = peer_settings(&tunnels, &found, membership.view.interface.keepalive);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut port = membership.wanted_port();
        loop {
            let private_key = &membership.private_key;
            let mark = self.mark.bits();
            let wanted = Wanted { private_key, listen_port: Some(port), mark, peers: &peers };
            let steps = device_steps(wanted, &observed, &self.applied, now);
            match self.apply(steps).await {
                Ok(()) => break,
                Err(error) => port = port_after(membership, port, error)?,
            }
        }
        self.applied = found;
        Ok(port)
    }

    /// Sets another port in place of one that is taken, and returns it.
    async fn listen_elsewhere(&mut self, membership: &Membership, taken: u16) -> Result<u16, TunnelError> {
        let mut refusal = DeviceError::Refused(Refusal::PortTaken { port: taken });
        let mut port = taken;
        loop {
            port = port_after(membership, port, refusal)?;
            match self.apply(vec![DeviceStep::SetListenPort(port)]).await {
                Ok(()) => return Ok(port),
                Err(error) => refusal = error,
            }
        }
    }

    async fn apply(&mut self, steps: Vec<DeviceStep>) -> Result<(), DeviceError> {
        if steps.is_empty() {
            return Ok(());
        }
        self.with_device(move |device| device.apply(&steps)).await
    }

    async fn with_device<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut dyn Device) -> Result<T, DeviceError> + Send + 'static,
    ) -> Result<T, DeviceError> {
        let gone = || DeviceError::Gone { interface: self.interface.clone() };
        let mut device = self.device.take().ok_or_else(gone)?;
        let (device, outcome) = blocking(move || {
            let outcome = act(&mut *device);
            (device, outcome)
        })
        .await;
        self.device = Some(device);
        outcome
    }

    /// Takes in that the device has ended by itself, or was ended by others.
    fn lose_device(&mut self) {
        tracing::warn!(
            interface = self.interface,
            "the WireGuard device has ended; another one takes its place"
        );
        self.forget_device();
    }

    fn forget_device(&mut self) {
        self.device = None;
        self.applied.clear();
    }
}

fn problem(code: &str, error: &(dyn std::error::Error + 'static)) -> NodeProblem {
    NodeProblem::new(code, error_chain(error))
}

/// The port to try after one that a device refused; the refusal, if it is another one or no other port will do.
fn port_after(membership: &Membership, refused: u16, refusal: DeviceError) -> Result<u16, TunnelError> {
    let is_taken = matches!(refusal, DeviceError::Refused(Refusal::PortTaken { .. }));
    if !is_taken || !membership.port_may_differ() {
        return Err(refusal.into());
    }
    next_port(refused, membership.view.interface.listen_port)
}

/// The port after one that is taken, as long as it is near the wanted one.
fn next_port(taken: u16, wanted: u16) -> Result<u16, TunnelError> {
    let last = wanted.saturating_add(PORTS);
    // A port that was found earlier and is taken now may be any: the search begins at the wanted one.
    let next = if (wanted..last).contains(&taken) { taken + 1 } else { wanted };
    if taken >= last { Err(TunnelError::NoPort(wanted, last)) } else { Ok(next) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_leads_to_the_next_and_the_search_ends() {
        assert_eq!(next_port(51821, 51821).expect("there is one"), 51822);
        assert_eq!(next_port(51900, 51821).expect("there is one"), 51901);
        assert_eq!(next_port(40000, 51821).expect("there is one"), 51821);
        assert!(matches!(next_port(51921, 51821), Err(TunnelError::NoPort(51821, 51921))));
    }
}
