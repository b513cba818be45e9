//! What do packets show of a network?
//!
//! [`judge`] tries what [`super::claims`] demands: what must pass until it does or time is up, then what must not.
//! Pairs are tried first, so that everything is there by the time that something is tried which must not pass.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use schema::inventory::Inventory;
use schema::kinds::Test;
use schema::scalars::{Name, NetworkName};
use schema::snapshot::{ResourceId, Snapshot};
use tokio::time::Instant;

use super::claims::{self, Behind, Claim, Claims, End, Party, Way};
use super::matrix::Matrix;
use super::verdict::{
    BehindVerdict, ClientVerdict, FailedOutcome, FailedProbe, NetworkVerdict, NodeVerdict, Pair,
    ProbesVerdict, Rule, WayVerdict,
};
use super::{Error, Host, Listeners, Outcome, Service, system};

/// How many probes are under way at the same time that must be answered: few, so that the time which answers take is
/// not that of others.
const ANSWERED: usize = 32;
/// How many of those that must not be, each of which takes all of [`ANSWER`].
const UNANSWERED: usize = 512;
/// How many ways are traced at the same time.
const TRACES: usize = 32;
/// How often what must be answered is tried at least, whatever the time: one that is lost on a busy computer decides
/// nothing.
const TRIES: usize = 3;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(500);

/// A network that is judged, and who is in it.
pub(super) struct Judged<'a> {
    pub(super) network: &'a NetworkName,
    /// What the server has.
    pub(super) declared: &'a Snapshot,
    pub(super) inventory: &'a Inventory,
    pub(super) present: &'a [Present<'a>],
    /// The node that each address of the lab belongs to.
    pub(super) owners: &'a BTreeMap<IpAddr, Name>,
}

/// Who sends or receives, and on which host.
pub(super) struct Present<'a> {
    pub(super) end: End,
    pub(super) host: &'a Host,
    pub(super) role: Role,
}

/// What a host is.
pub(super) enum Role {
    /// A node.
    Node {
        /// Where its WireGuard device runs.
        device: Option<String>,
    },
    /// An external client.
    Client,
    /// A host behind gateways.
    Behind,
}

impl Present<'_> {
    pub(super) fn is_member(&self) -> bool {
        match self.role {
            Role::Node { .. } | Role::Client => true,
            Role::Behind => false,
        }
    }
}

/// Sends packets between all of them.
pub(super) async fn judge(judged: Judged<'_>, deadline: Instant) -> Result<NetworkVerdict, Error> {
    let Judged { network, declared, inventory, present, owners } = judged;
    let ends: Vec<_> = present.iter().map(|it| it.end.clone()).collect();
    let claims = claims::claims(network, declared, inventory, &ends);
    let packets = Packets::new(present, &claims)?;
    let pairs = packets.pairs(deadline).await?;
    let (tests, sample) = packets.probes(network, deadline).await?;
    let ways = ways(&claims, network);
    let ways = stream::iter(ways.iter().map(|(way, test)| packets.way(way, test.as_ref(), owners, deadline)));
    let ways: Vec<Vec<_>> = ways.buffered(TRACES).try_collect().await?;
    let (mut nodes, mut clients, none) = (Vec::new(), Vec::new(), BTreeSet::new());
    for Present { end: End { party, addresses, .. }, host, role } in present {
        let (name, addresses) = (party.to_string(), addresses.iter().copied().collect());
        match role {
            Role::Node { device } => {
                let expected = claims.names.get(party).unwrap_or(&none);
                let missing = missing_until(host, expected, deadline).await?;
                let names = expected.len() - missing.len();
                nodes.push(NodeVerdict { name, addresses, device: device.clone(), names, missing });
            }
            Role::Client => clients.push(ClientVerdict { name, addresses }),
            Role::Behind => {}
        }
    }
    let (untried, ways) = (packets.untried, ways.into_iter().flatten().collect());
    let matrix = Matrix::of(claims.groups, &pairs);
    let (name, behind) = (network.clone(), behind_verdicts(&ends));
    Ok(NetworkVerdict { name, nodes, clients, behind, matrix, pairs, ways, tests, sample, untried })
}

/// The hosts behind gateways, by range.
fn behind_verdicts(ends: &[End]) -> Vec<BehindVerdict> {
    let mut ranges: BTreeMap<IpNet, BehindVerdict> = BTreeMap::new();
    for End { addresses, behind, .. } in ends {
        let Some(Behind { range, gateways, .. }) = behind else { continue };
        let gateways = || gateways.iter().map(ToString::to_string).collect();
        let new = || BehindVerdict { range: *range, addresses: Vec::new(), gateways: gateways() };
        ranges.entry(*range).or_insert_with(new).addresses.extend(addresses);
    }
    ranges.into_values().collect()
}

/// The ways that are traced: those that tests name, and of each two groups one for each way between them.
fn ways(claims: &Claims, network: &NetworkName) -> Vec<(Way, Option<ResourceId>)> {
    let of_tests = claims.paths.iter().flat_map(|(test, ways)| {
        let id = ResourceId::of::<Test>(network, test);
        ways.iter().map(move |way| (way.clone(), Some(id.clone())))
    });
    let group: BTreeMap<&str, usize> = claims
        .groups
        .iter()
        .enumerate()
        .flat_map(|(at, group)| group.parties.iter().map(move |party| (&**party, at)))
        .collect();
    let place = |party: &Party| group.get(&*party.to_string()).copied();
    let mut all: Vec<_> = of_tests.collect();
    let mut known = BTreeSet::new();
    for ((from, to), pair) in claims.pairs.iter().filter(|(_, pair)| pair.is_allowed()) {
        let Some(via) = &pair.passage.via else { continue };
        if known.insert((place(from), place(to), via)) {
            all.push((Way { from: from.clone(), to: to.clone(), via: via.clone() }, None));
        }
    }
    all
}

/// Packets between hosts whose services are open while this exists.
struct Packets<'a> {
    present: BTreeMap<&'a Party, &'a Present<'a>>,
    claims: &'a Claims,
    untried: BTreeMap<String, BTreeSet<String>>,
    open: Vec<Listeners>,
}

impl<'a> Packets<'a> {
    fn new(present: &'a [Present<'a>], claims: &'a Claims) -> Result<Self, Error> {
        let mut services: BTreeMap<&Party, BTreeSet<Service>> = BTreeMap::new();
        for claim in claims.tests.values().flatten().chain(&claims.sample) {
            services.entry(&claim.to).or_default().insert(claim.service);
        }
        for ((_, to), pair) in &claims.pairs {
            services.entry(to).or_default().extend(pair.service);
        }
        let mut packets =
            Self { present: BTreeMap::new(), claims, untried: BTreeMap::new(), open: Vec::new() };
        for here in present {
            let party = &here.end.party;
            let addresses: Vec<_> = here.end.addresses.iter().copied().collect();
            packets.present.insert(party, here);
            for service in services.remove(party).unwrap_or_default() {
                match here.host.listen(&addresses, [service]) {
                    Ok(listeners) => packets.open.push(listeners),
                    Err(Error::System { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                        let of_node = packets.untried.entry(party.to_string()).or_default();
                        of_node.insert(service.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(packets)
    }

    /// The addresses of one party that another can send to.
    fn addresses(&self, from: &Party, to: &Party) -> impl Iterator<Item = IpAddr> {
        let (from, to) = (&self.present[from].end.addresses, &self.present[to].end.addresses);
        let reachable = |at: &&IpAddr| from.iter().any(|own| own.is_ipv4() == at.is_ipv4());
        to.iter().filter(reachable).copied()
    }

    /// Tries every pair with one service.
    async fn pairs(&self, deadline: Instant) -> Result<Vec<Pair>, Error> {
        let mut pairs = Vec::new();
        for allowed in [true, false] {
            let of_these = self.claims.pairs.iter().filter(|(_, pair)| pair.is_allowed() == allowed);
            let tried = of_these.filter_map(|((from, to), pair)| {
                let service = pair.service.filter(|service| !self.is_untried(to, *service))?;
                Some(async move {
                    let claim =
                        Claim { from: from.clone(), to: to.clone(), service, allowed, lost: pair.is_lost() };
                    let mut answers = BTreeMap::new();
                    for at in self.addresses(from, to) {
                        let mut took = milliseconds(self.probe(&claim, at, deadline).await?);
                        if took.is_some() {
                            // The first answer may have waited for a handshake.
                            let again = self.probe(&claim, at, deadline).await?;
                            took = took.into_iter().chain(milliseconds(again)).reduce(f64::min);
                        }
                        answers.insert(at, took);
                    }
                    Ok::<_, Error>(Pair {
                        from: from.to_string(),
                        to: to.to_string(),
                        allowed,
                        lost: claim.lost,
                        opens: pair.passage.opens.to_string(),
                        service: service.to_string(),
                        via: pair.passage.via.clone(),
                        by: pair.by.clone(),
                        answers,
                        rules: pair.rules(service).cloned().map(Rule::of).collect(),
                    })
                })
            });
            pairs.extend(in_order(tried, allowed).await?);
        }
        pairs.sort_by(|one, other| (&one.from, &one.to).cmp(&(&other.from, &other.to)));
        Ok(pairs)
    }

    /// What packets show of each test, and of the sample.
    async fn probes(
        &self,
        network: &NetworkName,
        deadline: Instant,
    ) -> Result<(BTreeMap<Name, ProbesVerdict>, ProbesVerdict), Error> {
        let claims = self.claims;
        let of = |test: &Name| {
            let test = Some(Rule::of(ResourceId::of::<Test>(network, test)));
            ProbesVerdict { test, ..ProbesVerdict::default() }
        };
        let mut tests: BTreeMap<Name, ProbesVerdict> =
            claims.tests.keys().map(|name| (name.clone(), of(name))).collect();
        let mut sample = ProbesVerdict::default();
        for allowed in [true, false] {
            let of_tests =
                claims.tests.iter().flat_map(|(name, claims)| claims.iter().map(move |it| (Some(name), it)));
            let all = of_tests.chain(claims.sample.iter().map(|claim| (None, claim)));
            let all = all
                .filter(|(_, claim)| claim.allowed == allowed && !self.is_untried(&claim.to, claim.service));
            let probes = all.flat_map(|(test, claim)| {
                self.addresses(&claim.from, &claim.to).map(move |at| async move {
                    let outcome = self.probe(claim, at, deadline).await?;
                    let failed = (!outcome.agrees(claim.allowed)).then(|| self.failed(claim, at, outcome));
                    Ok::<_, Error>((test, claim.lost, failed))
                })
            });
            for (test, lost, failed) in in_order(probes, allowed).await? {
                let verdict = match test {
                    Some(name) => tests.entry(name.clone()).or_default(),
                    None => &mut sample,
                };
                verdict.tried += 1;
                verdict.lost += usize::from(lost);
                verdict.failed.extend(failed);
            }
        }
        Ok((tests, sample))
    }

    fn is_untried(&self, to: &Party, service: Service) -> bool {
        let of_node = self.untried.get(&to.to_string());
        of_node.is_some_and(|services| services.contains(&service.to_string()))
    }

    /// Tries what a claim says; until it is so or time is up, if the service must answer.
    async fn probe(&self, claim: &Claim, at: IpAddr, deadline: Instant) -> Result<Outcome, Error> {
        let host = self.present[&claim.from].host;
        let mut tries = 0;
        loop {
            tries += 1;
            let outcome = host.probe(at, claim.service, ANSWER).await.map_err(system("send a probe"))?;
            let is_over = tries >= TRIES && Instant::now() > deadline;
            if outcome.agrees(claim.allowed) || !claim.allowed || is_over {
                return Ok(outcome);
            }
        }
    }

    fn failed(&self, claim: &Claim, at: IpAddr, outcome: Outcome) -> FailedProbe {
        let Claim { from, to, service, allowed, lost: _ } = claim;
        let pair = self.claims.pairs.get(&(from.clone(), to.clone()));
        let rules = pair.into_iter().flat_map(|pair| pair.rules(*service)).cloned();
        FailedProbe {
            from: from.to_string(),
            to: to.to_string(),
            at,
            service: service.to_string(),
            allowed: *allowed,
            outcome: match outcome {
                Outcome::Answered(_) => FailedOutcome::Answered,
                Outcome::Refused => FailedOutcome::Refused,
                Outcome::Nothing => FailedOutcome::Nothing,
            },
            via: pair.and_then(|pair| pair.passage.via.clone()),
            rules: rules.map(Rule::of).collect(),
        }
    }

    /// Traces a way at each address, until packets take it or time is up.
    async fn way(
        &self,
        way: &Way,
        test: Option<&ResourceId>,
        owners: &BTreeMap<IpAddr, Name>,
        deadline: Instant,
    ) -> Result<Vec<WayVerdict>, Error> {
        let Way { from, to, via } = way;
        let expected: Vec<_> = via.iter().map(ToString::to_string).collect();
        let most = u8::try_from(expected.len() + 2).unwrap_or(u8::MAX);
        let mut traced = Vec::new();
        for at in self.addresses(from, to) {
            let mut tries = 0;
            let seen = loop {
                tries += 1;
                let routers = self.present[from].host.trace(at, most).await.map_err(system("trace a way"))?;
                // What is beyond the last node is outside of the network.
                let nodes = routers.iter().map_while(|router| owners.get(router));
                let seen: Vec<_> = nodes.map(ToString::to_string).collect();
                if seen == expected || tries >= TRIES && Instant::now() > deadline {
                    break seen;
                }
                tokio::time::sleep(ANSWER).await;
            };
            let (from, to, test) = (from.to_string(), to.to_string(), test.cloned().map(Rule::of));
            traced.push(WayVerdict { from, to, at, expected: expected.clone(), seen, test });
        }
        Ok(traced)
    }
}

/// How long an answer took; absent: there was none.
fn milliseconds(outcome: Outcome) -> Option<f64> {
    match outcome {
        Outcome::Answered(took) => Some(took.as_secs_f64() * 1e3),
        Outcome::Refused | Outcome::Nothing => None,
    }
}

/// Sends probes, many at the same time; returns what came of them, in order.
async fn in_order<T, F: Future<Output = Result<T, Error>>>(
    probes: impl Iterator<Item = F>,
    allowed: bool,
) -> Result<Vec<T>, Error> {
    let at_once = if allowed { ANSWERED } else { UNANSWERED };
    stream::iter(probes).buffered(at_once).try_collect().await
}

/// The names that do not resolve on a host, once all do or time is up.
async fn missing_until(
    host: &Host,
    expected: &BTreeSet<String>,
    deadline: Instant,
) -> Result<BTreeSet<String>, Error> {
    loop {
        let hosts = host.read("/etc/hosts").map_err(system("read a host's names"))?;
        let known: BTreeSet<&str> = hosts.lines().flat_map(|line| line.split_whitespace().skip(1)).collect();
        let missing: BTreeSet<_> =
            expected.iter().filter(|name| !known.contains(&***name)).cloned().collect();
        if missing.is_empty() || Instant::now() > deadline {
            return Ok(missing);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
