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
/// How many times as long it waits at most, where packets of many others are on the way.
const SLOWEST: u32 = 8;

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

/// Tries services of each node from each other, at all addresses of families that it has itself, once.
///
/// # Panics
///
/// When a host has no sockets left.
pub async fn matrix<'a>(nodes: &[Node<'a>], services: &[Service]) -> Vec<Trial<'a>> {
    part(nodes, services, LIMIT * patience(), |_, _, _| true).await
}

/// The same of those that are asked for, each for as long as `limit`.
async fn part<'a>(
    nodes: &[Node<'a>],
    services: &[Service],
    limit: Duration,
    is_asked: impl Fn(&str, &str, Probe) -> bool,
) -> Vec<Trial<'a>> {
    let is_asked = &is_asked;
    let all = nodes.iter().map(|from| async move {
        let others = nodes.iter().filter(|to| to.name != from.name);
        let addresses = others.flat_map(|to| to.addresses.iter().map(move |at| (to.name, *at)));
        let has = |family: IpAddr| from.addresses.iter().any(|own| own.is_ipv4() == family.is_ipv4());
        let addresses = addresses.filter(|(_, at)| has(*at));
        let probes = addresses
            .flat_map(|(name, to)| services.iter().map(move |it| (name, Probe { to, service: *it })));
        let (names, probes): (Vec<_>, Vec<_>) =
            probes.filter(|(name, probe)| is_asked(from.name, name, *probe)).unzip();
        let outcomes = from.host.probe_all(&probes, limit).await.expect("sockets");
        let tried = names.into_iter().zip(probes).zip(outcomes);
        tried.map(|((to, probe), outcome)| Trial { from: from.name, to, probe, outcome }).collect::<Vec<_>>()
    });
    join_all(all).await.into_iter().flatten().collect()
}

/// Waits until packets show that each node may open at each other what is said here, and not what may not be;
/// what nothing is said of is not tried. Returns a line for each of which they show something else; none: they
/// agree.
///
/// What may be opened is tried for 20 s, in each round what has not answered yet, and longer than in the one
/// before: hundreds of probes through one hub may keep each other waiting, and would go on to if all of them were
/// repeated. What may not is tried after that, once, and for as long as sufficed for the others.
pub async fn disagreements(
    nodes: &[Node<'_>],
    services: &[Service],
    is_allowed: impl Fn(&str, &str, Service) -> Option<bool>,
) -> String {
    let deadline = Instant::now() + Duration::from_secs(20) * patience();
    let shortest = LIMIT * patience();
    let mut limit = shortest;
    let is = |allowed: bool| {
        let is_allowed = &is_allowed;
        move |from: &str, to: &str, probe: Probe| is_allowed(from, to, probe.service) == Some(allowed)
    };
    let mut trials = part(nodes, services, limit, is(true)).await;
    loop {
        trials.retain(|trial| !trial.outcome.agrees(true));
        if trials.is_empty() || Instant::now() > deadline {
            break;
        }
        limit = (limit * 2).min(shortest * SLOWEST);
        let is_left = |from: &str, to: &str, probe: Probe| {
            trials.iter().any(|trial| (trial.from, trial.to, trial.probe) == (from, to, probe))
        };
        trials = part(nodes, services, limit, is_left).await;
    }
    let others = part(nodes, services, limit, is(false)).await;
    let passed = others.into_iter().filter(|trial| !trial.outcome.agrees(false));
    let all = trials.into_iter().map(|trial| ("must", trial)).chain(passed.map(|trial| ("must not", trial)));
    let mut disagreements = String::new();
    for (must, Trial { from, to, probe: Probe { to: at, service }, outcome }) in all {
        let _ = writeln!(disagreements, "{from} {must} reach {to} at {at} by {service}: {outcome:?}");
    }
    disagreements
}
