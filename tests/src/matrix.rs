//! What packets show between the nodes of a network: every service of each, tried from each other.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use nmplan::lab::{Host, Outcome, Probe, Service};
use tokio::time::Instant;

use crate::patience;

/// How long a probe waits where nothing may pass.
pub(crate) const LIMIT: Duration = Duration::from_millis(300);

/// A node, as packets reach it.
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its host.
    pub host: &'a Host,
    /// Its addresses in the network.
    pub addresses: Vec<IpAddr>,
}

/// A service of one node that another tried to open.
pub struct Trial<'a> {
    /// Who tried.
    pub from: &'a str,
    /// Whose service it is.
    pub to: &'a str,
    /// The address and the service.
    pub probe: Probe,
    /// What came of it.
    pub outcome: Outcome,
}

/// Tries services of each node from each other, at all addresses, once.
///
/// # Panics
///
/// When a host has no sockets left.
pub async fn matrix<'a>(nodes: &[Node<'a>], services: &[Service]) -> Vec<Trial<'a>> {
    let all = nodes.iter().map(|from| async move {
        let others = nodes.iter().filter(|to| to.name != from.name);
        let addresses = others.flat_map(|to| to.addresses.iter().map(move |at| (to.name, *at)));
        let probes = addresses
            .flat_map(|(name, to)| services.iter().map(move |it| (name, Probe { to, service: *it })));
        let (names, probes): (Vec<_>, Vec<_>) = probes.unzip();
        let outcomes = from.host.probe_all(&probes, LIMIT * patience()).await.expect("sockets");
        let tried = names.into_iter().zip(probes).zip(outcomes);
        tried.map(|((to, probe), outcome)| Trial { from: from.name, to, probe, outcome }).collect::<Vec<_>>()
    });
    join_all(all).await.into_iter().flatten().collect()
}

/// Waits until packets show that each node may open at each other what is said here, and nothing else. Returns
/// a line for each of which they show something else; none: they agree.
///
/// What may be opened is tried for 20 s. What may not has no second chance, once everything else can be.
pub async fn disagreements(
    nodes: &[Node<'_>],
    services: &[Service],
    is_allowed: impl Fn(&str, &str, Service) -> bool,
) -> String {
    let deadline = Instant::now() + Duration::from_secs(20) * patience();
    loop {
        let mut disagreements = String::new();
        let mut silent = false;
        for Trial { from, to, probe: Probe { to: at, service }, outcome } in matrix(nodes, services).await {
            let allowed = is_allowed(from, to, service);
            if !outcome.agrees(allowed) {
                silent |= allowed;
                let must = if allowed { "must" } else { "must not" };
                let _ = writeln!(disagreements, "{from} {must} reach {to} at {at} by {service}: {outcome:?}");
            }
        }
        if !silent || Instant::now() > deadline {
            return disagreements;
        }
    }
}
