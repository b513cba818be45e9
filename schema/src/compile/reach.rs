//! Who can reach whom: reported by rules and sides, or by network and node, never as a list of pairs.
//!
//! In a network without rules every joined node reaches every other, directly or through the hub; with rules
//! each opens at others what a rule says. Either holds as long as packets find the way: not while the hub has
//! not joined, and not to an endpoint that a range hides. A host that has joined a network with a range around
//! the endpoint of a peer has a route into the mesh for it, and so has the peer's answer; [`hidden`] finds
//! those endpoints. Nodes that are judged and seen alike are one [`Situation`], so that a change is found on
//! pairs of situations of before and after. What will hold once awaited nodes have joined is reported apart.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mesh;
use super::members::members;
use super::policy::{self, ChangedRules, Class, Policy};
use crate::access::{Access, Protocol};
use crate::inventory::{Inventory, NodeId};
use crate::kinds::{Allow, Node};
use crate::scalars::{EndpointHost, Identity, Name, NetworkName, Selector};
use crate::snapshot::{ResourceId, Snapshot};

/// Whether reachability is gained or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// It was not there before.
    Gained,
    /// It is not there afterwards.
    Lost,
}

/// Nodes of a network that gain or lose the ability to open connections to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReachChange {
    /// The network.
    pub network: NetworkName,
    /// Who opens connections: what the rule selects, `*` for every node; the nodes where it is a few of those;
    /// `* but db-1` where a few are missing, else how many: `40 of tag:web`.
    pub from: String,
    /// To whom, likewise.
    pub to: String,
    /// What: `everything`, `tcp 5432`, `everything but tcp 22`.
    pub what: String,
    /// The protocol; null for all, or for several.
    pub proto: Option<Protocol>,
    /// The ports of the protocol, such as `80, 5000-5001`; null for all.
    pub ports: Option<String>,
    /// Whether they gain or lose it.
    pub direction: Direction,
    /// Whether it holds only once nodes that are awaited have joined.
    #[serde(default)]
    pub once_joined: bool,
    /// Whether `to` opens the same at `from`; `pairs` then counts both.
    pub both_ways: bool,
    /// How many nodes are on the one side.
    pub from_nodes: u64,
    /// How many nodes are on the other side.
    pub to_nodes: u64,
    /// How many ordered pairs of nodes that is.
    pub pairs: u64,
    /// The rule that allows or allowed it; null in a network without rules.
    pub rule: Option<ResourceId>,
    /// The change that causes it; null unless it is a single one.
    pub because: Option<ResourceId>,
}

/// A network at one moment, and what hides its nodes from each other.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// What is declared.
    pub declared: &'a Snapshot,
    /// What has joined.
    pub inventory: &'a Inventory,
    /// The network; absent: it is not declared.
    pub mesh: Option<&'a Mesh>,
    /// What is hidden then, in all networks.
    pub hidden: &'a Hidden,
}

/// The endpoints that ranges hide, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// The networks with a range around the endpoint of a node; a node that is absent can be seen by all.
    behind: BTreeMap<NodeId, BTreeSet<NetworkName>>,
    /// Of these networks, those that a host has joined, by the identity of its agent.
    inside: BTreeMap<Identity, BTreeSet<NetworkName>>,
    /// The identity of each node of a host that is in any of them.
    identities: BTreeMap<NodeId, Identity>,
}

impl Hidden {
    /// The networks in which anything is hidden.
    pub fn networks(&self) -> BTreeSet<&NetworkName> {
        self.behind.keys().chain(self.identities.keys()).map(|id| &id.network).collect()
    }
}

/// Finds the endpoints that ranges hide.
pub fn hidden(declared: &Snapshot, inventory: &Inventory) -> Hidden {
    let ranges: Vec<_> = declared
        .networks()
        .flat_map(|(name, network)| network.ranges().map(move |range| (name, range)))
        .collect();
    let around = |address: IpAddr| ranges.iter().filter(move |(_, range)| range.contains(&address));
    let mut hidden = Hidden::default();
    for (id, joined) in inventory.nodes() {
        let declaration = declared.named::<Node>(&id.network, &id.name);
        let endpoint = super::endpoint(declaration.and_then(|node| node.endpoint.as_ref()), joined);
        let Some(EndpointHost::Address(address)) = endpoint.map(|endpoint| endpoint.host) else { continue };
        let behind: BTreeSet<_> = around(address).map(|(name, _)| (*name).clone()).collect();
        if !behind.is_empty() {
            hidden.behind.insert(id.clone(), behind);
        }
    }
    let concerned: BTreeSet<_> = hidden.behind.values().flatten().cloned().collect();
    for network in &concerned {
        for (_, joined) in inventory.nodes_in(network) {
            hidden.inside.entry(joined.identity).or_default().insert(network.clone());
        }
    }
    let in_one = inventory.nodes().filter(|(_, joined)| hidden.inside.contains_key(&joined.identity));
    hidden.identities = in_one.map(|(id, joined)| (id.clone(), joined.identity)).collect();
    hidden
}

/// What decides which other nodes of a network a node reaches: those of one situation reach the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Situation {
    /// What the rules make of it.
    class: Class,
    /// Whether it has IPv4 and IPv6 addresses that work.
    families: [bool; 2],
    /// The networks with a range around its endpoint.
    behind: BTreeSet<NetworkName>,
    /// The networks of its host with a range around any endpoint.
    inside: BTreeSet<NetworkName>,
    /// Whether it, or the hub that all its packets pass, is declared and has not joined.
    awaited: bool,
}

impl Situation {
    /// Whether packets find the way between two nodes: both have addresses of a family, and each has a way to
    /// the other's endpoint outside of every mesh.
    fn sees(&self, other: &Self) -> bool {
        (0..2).any(|family| self.families[family] && other.families[family]) && self.finds(other)
    }

    /// Whether each has a way to the other's endpoint outside of every mesh.
    fn finds(&self, other: &Self) -> bool {
        self.inside.is_disjoint(&other.behind) && other.inside.is_disjoint(&self.behind)
    }
}

/// The nodes of a network that reach any other or will, each with its situation.
fn reaching(network: &NetworkName, moment: Moment<'_>) -> BTreeMap<Name, Situation> {
    let Moment { declared, inventory, mesh, hidden } = moment;
    let Some(mesh) = mesh else { return BTreeMap::new() };
    let situation = |node: &Name| {
        let id = NodeId::of(network, node);
        let class = mesh.class_of(node).and_then(|class| mesh.class(&class)).cloned().unwrap_or_default();
        let behind = hidden.behind.get(&id).cloned().unwrap_or_default();
        let inside = hidden.identities.get(&id).and_then(|identity| hidden.inside.get(identity));
        let peer = mesh.class_of(node).and_then(|class| mesh.members(&class)?.get(node));
        let families = families(peer.into_iter().flat_map(|peer| &peer.addresses).copied());
        Situation { class, families, behind, inside: inside.cloned().unwrap_or_default(), awaited: false }
    };

    let mut nodes: BTreeMap<Name, Situation> =
        mesh.nodes().map(|node| (node.clone(), situation(node))).collect();
    let members = members(network, declared, inventory).into_iter();
    for (name, member) in members.filter(|(name, member)| !mesh.has(name) && member.key.is_none()) {
        let class = mesh.policy().class(&name, &member.tags, &member.addresses);
        let families = families(member.addresses.into_iter());
        nodes.insert(name, Situation { class, families, awaited: true, ..Situation::default() });
    }
    if let Some(hub) = mesh.hub() {
        // All packets pass the hub, so that only the ways to it count.
        let at_hub = nodes.get(hub).cloned();
        nodes
            .retain(|node, situation| node == hub || at_hub.as_ref().is_some_and(|hub| hub.finds(situation)));
        for situation in nodes.values_mut() {
            situation.awaited |= at_hub.as_ref().is_none_or(|hub| hub.awaited);
            (situation.behind, situation.inside) = Default::default();
        }
    }
    nodes
}

/// Whether there are IPv4 addresses among these, and IPv6 addresses.
fn families(addresses: impl Iterator<Item = IpAddr>) -> [bool; 2] {
    addresses.fold([false; 2], |[ipv4, ipv6], address| [ipv4 || address.is_ipv4(), ipv6 || address.is_ipv6()])
}

/// Nodes that stand alike before, and alike after; absent: they are not there then.
type Group<'a> = (Option<&'a Situation>, Option<&'a Situation>);

/// What may be opened between groups at one moment.
struct Judge<'a> {
    policy: Option<&'a Policy>,
    /// Which side of a group counts.
    of: fn(&Group<'a>) -> Option<&'a Situation>,
    standings: BTreeMap<&'a Class, policy::Standing>,
    known: BTreeMap<(&'a Class, &'a Class), Access>,
}

impl<'a> Judge<'a> {
    fn new(
        moment: Moment<'a>,
        of: fn(&Group<'a>) -> Option<&'a Situation>,
        nodes: &'a BTreeMap<Name, Situation>,
    ) -> Self {
        let policy = moment.mesh.map(Mesh::policy);
        let standings = nodes.values().map(|situation| &situation.class);
        let standings = policy
            .into_iter()
            .flat_map(|policy| standings.clone().map(|class| (class, policy.standing(class))));
        Self { policy, of, standings: standings.collect(), known: BTreeMap::new() }
    }

    fn is_restricted(&self) -> bool {
        self.policy.is_some_and(Policy::is_restricted)
    }

    /// What the nodes of a group may open at those of another; `awaited`: only if either has not joined, or
    /// only if both have.
    fn opens(&mut self, from: &Group<'a>, to: &Group<'a>, awaited: bool) -> Access {
        let ((Some(from), Some(to)), Some(policy)) = (((self.of)(from), (self.of)(to)), self.policy) else {
            return Access::default();
        };
        if (from.awaited || to.awaited) != awaited || !from.sees(to) {
            return Access::default();
        }
        let standings = &self.standings;
        let judge = || policy.between(&standings[&from.class], &standings[&to.class]);
        self.known.entry((&from.class, &to.class)).or_insert_with(judge).clone()
    }

    /// Whether the nodes of a group are on a side of a rule: that of `to` if `right`.
    fn is_on(&self, rule: &Name, group: &Group<'a>, right: bool) -> bool {
        let class = (self.of)(group).map(|situation| &situation.class);
        let policy = self.policy.zip(class).map(|(policy, class)| policy.is_on(rule, class, right));
        policy.unwrap_or_default()
    }

    /// The rules by which they may, each with what it adds; none in a network without rules.
    fn reasons(&self, from: &Group<'a>, to: &Group<'a>) -> Vec<(&'a Name, &'a Access)> {
        let (Some(from), Some(to), Some(policy)) = ((self.of)(from), (self.of)(to), self.policy) else {
            return Vec::new();
        };
        policy.applying(&self.standings[&from.class], &self.standings[&to.class]).collect()
    }
}

/// The reachability that a change of one network gains and loses: what holds now, then what will once awaited
/// nodes have joined.
pub fn between(network: &NetworkName, before: Moment<'_>, after: Moment<'_>) -> Vec<ReachChange> {
    let (was, is) = (reaching(network, before), reaching(network, after));
    let mut groups: BTreeMap<Group<'_>, BTreeSet<&Name>> = BTreeMap::new();
    for node in was.keys().chain(is.keys()) {
        groups.entry((was.get(node), is.get(node))).or_default().insert(node);
    }
    let mut then = Judge::new(before, |group| group.0, &was);
    let mut now = Judge::new(after, |group| group.1, &is);
    let same_rules = before.mesh.zip(after.mesh).map(|(was, is)| (was.policy(), is.policy()));
    let changed = same_rules
        .filter(|(was, is)| was.is_restricted() == is.is_restricted())
        .map(|(was, is)| is.changed_since(was));
    let pairs = concerned(&groups, changed.as_ref());
    let mut changes = Vec::new();
    for once_joined in [false, true] {
        for direction in [Direction::Lost, Direction::Gained] {
            let mut moved = Vec::new();
            for (from, to) in &pairs {
                let (was, is) = (then.opens(from, to, once_joined), now.opens(from, to, once_joined));
                let differs = match direction {
                    Direction::Lost => was.without(&is),
                    Direction::Gained => is.without(&was),
                };
                if !differs.is_nothing() {
                    moved.push((*from, *to, differs));
                }
            }
            let (here, moment) = match direction {
                Direction::Lost => (&then, before),
                Direction::Gained => (&now, after),
            };
            let lines = if then.is_restricted() || now.is_restricted() {
                by_rules(network, moment, here, &groups, moved)
            } else {
                by_nodes(network, here, &groups, &moved)
            };
            changes.extend(lines.into_iter().map(|line| ReachChange { direction, once_joined, ..line }));
        }
    }
    changes
}

/// The pairs of groups between which anything can differ, in order: either is of another situation than
/// before, or a rule that changed is about them; absent: any rule may have.
fn concerned<'g, 'a>(
    groups: &'g BTreeMap<Group<'a>, BTreeSet<&Name>>,
    changed: Option<&ChangedRules<'_>>,
) -> Vec<(&'g Group<'a>, &'g Group<'a>)> {
    let all: Vec<&Group<'_>> = groups.keys().collect();
    let every = || 0..all.len();
    // By their places, since to compare situations costs more.
    let mut pairs: BTreeSet<(usize, usize)> = BTreeSet::new();
    for moved in every().filter(|place| changed.is_none() || all[*place].0 != all[*place].1) {
        pairs.extend(every().flat_map(|other| [(moved, other), (other, moved)]));
    }
    let classes = all.iter().enumerate().filter_map(|(place, group)| Some((place, &group.1?.class)));
    for (from, to) in changed.into_iter().flat_map(|rules| rules.sides(classes.clone())) {
        pairs.extend(from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))));
    }
    pairs.into_iter().map(|(from, to)| (all[from], all[to])).collect()
}

/// A line in which direction and cause are not decided yet.
fn line(network: &NetworkName, from: String, to: String, what: &Access) -> ReachChange {
    let (proto, ports) = what.single();
    ReachChange {
        network: network.clone(),
        from,
        to,
        what: what.to_string(),
        proto,
        ports,
        direction: Direction::Gained,
        once_joined: false,
        both_ways: false,
        from_nodes: 0,
        to_nodes: 0,
        pairs: 0,
        rule: None,
        because: None,
    }
}

/// How many nodes are named in place of what a rule selects, if they are a part of it, or are named as missing.
const NAMED: usize = 3;

/// For each group the groups that it opens something at.
type Against<'g, 'a> = BTreeMap<&'g Group<'a>, BTreeSet<&'g Group<'a>>>;

/// What moved, in the words of the rules that allow or allowed it: each node of one side at each of the
/// other, other than itself.
fn by_rules<'a>(
    network: &NetworkName,
    moment: Moment<'a>,
    here: &Judge<'a>,
    groups: &BTreeMap<Group<'a>, BTreeSet<&'a Name>>,
    moved: Vec<(&Group<'a>, &Group<'a>, Access)>,
) -> Vec<ReachChange> {
    let mut parts: BTreeMap<(Option<&Name>, Access), Against<'_, 'a>> = BTreeMap::new();
    for (from, to, mut left) in moved {
        if !here.is_restricted() {
            parts.entry((None, left)).or_default().entry(from).or_default().insert(to);
            continue;
        }
        // What several rules allow is reported of the one that allows most.
        let mut reasons = here.reasons(from, to);
        reasons.sort_by_key(|(_, access)| Reverse(breadth(access)));
        for (rule, access) in reasons {
            let part = left.and(access);
            if !part.is_nothing() {
                left = left.without(&part);
                parts.entry((Some(rule), part)).or_default().entry(from).or_default().insert(to);
            }
        }
    }
    let mut lines = Vec::new();
    for ((rule, what), against) in parts {
        let mut alike: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (from, to) in against {
            alike.entry(to).or_default().push(from);
        }
        let declared = rule.and_then(|rule| moment.declared.named::<Allow>(network, rule));
        let nodes_of = |some: &mut dyn Iterator<Item = &Group<'a>>| -> BTreeSet<&Name> {
            some.flat_map(|group| &groups[group]).copied().collect()
        };
        let [all_from, all_to] = [false, true].map(|right| {
            let is_on = |group: &&Group<'a>| match rule {
                None => (here.of)(group).is_some(),
                Some(rule) => here.is_on(rule, group, right),
            };
            nodes_of(&mut groups.keys().filter(is_on))
        });
        let size = |group: &Group<'a>| groups[group].len() as u64;
        for (to, from) in alike {
            let between = |(from, to): (&Group<'a>, &Group<'a>)| {
                size(from) * if from == to { size(to) - 1 } else { size(to) }
            };
            let pairs = from.iter().flat_map(|from| to.iter().map(move |to| between((*from, *to)))).sum();
            let (from, to) = (nodes_of(&mut from.into_iter()), nodes_of(&mut to.into_iter()));
            let id = |rule: &Name| ResourceId {
                network: network.clone(),
                kind: crate::kinds::Kind::Allow,
                name: rule.clone(),
            };
            let (froms, tos) = (others(&from, &to), others(&to, &from));
            lines.push(ReachChange {
                from_nodes: froms.len() as u64,
                to_nodes: tos.len() as u64,
                pairs,
                rule: rule.map(id),
                ..line(
                    network,
                    words(&froms, &others(&all_from, &to), declared.map(|allow| &*allow.from)),
                    words(&tos, &others(&all_to, &from), declared.map(|allow| &*allow.to)),
                    &what,
                )
            });
        }
    }
    lines.retain(|line| line.pairs > 0);
    lines
}

/// Nodes, without whoever is alone on the other side: nobody is counted against himself.
fn others<'a, 'n>(
    nodes: &'a BTreeSet<&'n Name>,
    against: &BTreeSet<&'n Name>,
) -> Cow<'a, BTreeSet<&'n Name>> {
    match against.first() {
        Some(alone) if against.len() == 1 && nodes.contains(alone) => {
            Cow::Owned(nodes.iter().copied().filter(|node| node != alone).collect())
        }
        _ => Cow::Borrowed(nodes),
    }
}

/// Nodes in words: some of all that selectors select; these absent: of every node.
fn words(some: &BTreeSet<&Name>, all: &BTreeSet<&Name>, selectors: Option<&BTreeSet<Selector>>) -> String {
    let selected = selectors.map_or_else(|| "*".to_owned(), |selectors| join(selectors.iter()));
    match all.len().saturating_sub(some.len()) {
        0 => selected,
        _ if some.len() <= NAMED => join(some.iter()),
        1..=NAMED => format!("{selected} but {}", join(all.difference(some))),
        _ if selected == "*" => format!("{} nodes", some.len()),
        _ => format!("{} of {selected}", some.len()),
    }
}

/// By which rules are reported, those that allow most first.
fn breadth(access: &Access) -> (bool, usize, bool) {
    let ports = access.tcp.ranges().chain(access.udp.ranges());
    (access.others, ports.map(|range| range.len()).sum(), access.icmp)
}

fn join(words: impl Iterator<Item = impl ToString>) -> String {
    words.map(|word| word.to_string()).collect::<Vec<_>>().join(", ")
}

/// What moved in a network without rules, where it is everything and in both directions: by nodes.
fn by_nodes<'a>(
    network: &NetworkName,
    here: &Judge<'a>,
    groups: &BTreeMap<Group<'a>, BTreeSet<&'a Name>>,
    moved: &[(&Group<'a>, &Group<'a>, Access)],
) -> Vec<ReachChange> {
    let everything = Access::everything();
    let mut against: BTreeMap<&Group<'a>, BTreeSet<&Group<'a>>> = BTreeMap::new();
    for (from, to, _) in moved {
        against.entry(*from).or_default().insert(*to);
    }
    // How many others a node of a group reaches only here.
    let others = |group: &Group<'a>| {
        let with = |other: &&Group<'a>| groups[*other].len() as u64 - u64::from(group == *other);
        against.get(group).map_or(0, |others| others.iter().map(with).sum::<u64>())
    };
    let size = |group: &Group<'a>| groups[group].len() as u64;
    let pairs: u64 = against.keys().map(|group| size(group) * others(group)).sum();
    if pairs == 0 {
        return Vec::new();
    }
    let there: u64 = groups.keys().filter(|group| (here.of)(group).is_some()).map(size).sum();
    let both = |from: String, from_nodes: u64, to_nodes: u64, pairs: u64| ReachChange {
        both_ways: true,
        from_nodes,
        to_nodes,
        pairs,
        ..line(network, from, "*".into(), &everything)
    };
    if pairs == there * (there - 1) {
        return vec![both("*".into(), there, there - 1, pairs)];
    }
    // Each pair is reported once, with the first of its two nodes; groups that move against most others go
    // first, so that few nodes are named.
    let mut left: Vec<_> = against.keys().copied().collect();
    left.sort_by_key(|group| Reverse(others(group)));
    let mut done: BTreeSet<&Group<'a>> = BTreeSet::new();
    let mut lines = Vec::new();
    for group in left {
        let rest: u64 = against[group]
            .iter()
            .filter(|other| **other != group && !done.contains(*other))
            .map(|other| size(other))
            .sum();
        let within = if against[group].contains(group) { size(group) - 1 } else { 0 };
        done.insert(group);
        for (place, node) in groups[group].iter().enumerate() {
            let to = rest + within.saturating_sub(place as u64);
            if to > 0 {
                lines.push(both(node.to_string(), 1, to, 2 * to));
            }
        }
    }
    lines.sort_by(|one, other| one.from.cmp(&other.from));
    lines
}
