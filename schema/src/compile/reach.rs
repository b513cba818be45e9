//! Who can reach whom: reported by rules and sides, or by network and node, never as a list of pairs.
//!
//! In a network without rules every member reaches every other, and the ranges that are for it; with rules each
//! opens at others what a rule says. Either holds as long as packets find the [way](Paths): not while a hub, a
//! relay or a gateway that would carry them has not joined or is away, and not to an endpoint that a range
//! [hides](hidden()). Nodes that are judged and seen alike are one [`Situation`], so that a change is found on
//! pairs of situations of before and after. What will hold once awaited nodes have joined is reported apart.

mod hidden;
mod lines;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mesh;
use super::members::members;
use super::paths::{Party, Paths, Place};
use super::policy::{self, ChangedRules, Class, Policy};
use super::ways::{self, Through};
use crate::access::{Access, Protocol};
use crate::inventory::{Away, Inventory, NodeId};
use crate::kinds::{AccessKey, ExternalClient};
use crate::scalars::{Name, NetworkName};
use crate::snapshot::{ResourceId, Snapshot};
use crate::view::Peer;

pub use hidden::{Hidden, hidden};

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
    /// Who opens connections: what the rule selects, with the nodes where these are few: `tag:web (web-1, web-2)`; `*`
    /// for every node; the nodes where it is a few of what is selected; `* but db-1` where a few are missing, else how
    /// many: `40 of tag:web`.
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
    /// Whether one side is whoever joins with an access key that names no node, however many that may be; such pairs
    /// are not counted.
    #[serde(default)]
    pub by_key: bool,
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
    /// The changes that may cause it: one, where that can be told.
    pub because: Vec<ResourceId>,
}

/// How many ordered pairs of joined members, and of a member and a range, gain and lose the ability of the first to
/// open anything at the second, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Pairs {
    /// Those that gain.
    pub gained: u64,
    /// Those that lose.
    pub lost: u64,
    /// Those of them that are of two members.
    #[serde(default)]
    pub lost_by_members: u64,
    /// Those that gain once awaited nodes have joined, mostly with one of these.
    #[serde(default)]
    pub gained_later: u64,
    /// Those that would have gained once awaited nodes had joined, and do not any more.
    #[serde(default)]
    pub lost_later: u64,
    /// All that there are, of members and ranges that are there before or afterwards.
    pub of: u64,
}

impl Pairs {
    /// Adds those of another network.
    pub fn add(&mut self, other: Self) {
        let Self { gained, lost, lost_by_members, gained_later, lost_later, of } = other;
        self.lost_by_members += lost_by_members;
        (self.gained, self.lost, self.of) = (self.gained + gained, self.lost + lost, self.of + of);
        self.gained_later += gained_later;
        self.lost_later += lost_later;
    }
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
    /// When that is looked at: access keys that have expired by then let nobody join.
    pub now: Timestamp,
}

/// What decides whom a node or a range of a network reaches: those of one situation reach the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Situation {
    /// What the rules make of it.
    class: Class,
    /// Which ways its packets take.
    place: Place,
    /// Whether it has IPv4 and IPv6 addresses that work.
    families: [bool; 2],
    /// The networks with a range around its endpoint.
    behind: BTreeSet<NetworkName>,
    /// The networks of its host with a range around any endpoint.
    inside: BTreeSet<NetworkName>,
    /// Whether it is declared and has not joined.
    awaited: bool,
    /// Whether it is what a way to the internet leads to, from where nobody is let in.
    internet: bool,
    /// The access key that it stands for, of those that name no node.
    key: Option<Name>,
}

impl Situation {
    /// Whether both have addresses of a family.
    fn speaks_to(&self, other: &Self) -> bool {
        (0..2).any(|family| self.families[family] && other.families[family])
    }

    /// Whether each has a way to the other's endpoint outside of every mesh.
    fn finds(&self, other: &Self) -> bool {
        self.inside.is_disjoint(&other.behind) && other.inside.is_disjoint(&self.behind)
    }
}

/// What distinguishes addresses outside of a network at one moment: ranges behind gateways, the parts of them that
/// rules name, and the network's own ranges.
fn cuts(network: &NetworkName, moment: Moment<'_>) -> BTreeSet<IpNet> {
    let outside = moment.mesh.into_iter().flat_map(|mesh| mesh.ways().ranges()).map(|(range, _)| *range);
    let own = moment.declared.network(network).into_iter().flat_map(|network| network.ranges());
    outside.chain(own).collect()
}

/// The members and ranges of a network, those that have joined and those that will, each with its situation. What
/// a range is of is known of all these: those of another moment are cut out of those of this one.
fn reaching(
    network: &NetworkName,
    moment: Moment<'_>,
    ranges: &BTreeSet<IpNet>,
) -> BTreeMap<Party, Situation> {
    let Moment { declared, inventory, mesh, hidden, now } = moment;
    let Some(mesh) = mesh else { return BTreeMap::new() };
    let ways = mesh.ways();
    let place = |name: &Name, through: Option<Through>| Place {
        carrier: Some(name).filter(|name| ways.carries(name)).cloned(),
        through,
    };
    let situation = |name: &Name, peer: &Peer| {
        let id = NodeId::of(network, name);
        let class = mesh.class(&peer.class).cloned().unwrap_or_default();
        let behind = hidden.behind.get(&id).cloned().unwrap_or_default();
        let inside = hidden.identities.get(&id).and_then(|identity| hidden.inside.get(identity));
        Situation {
            class,
            place: place(name, mesh.through(name).cloned()),
            families: families(peer.addresses.iter()),
            behind,
            inside: inside.cloned().unwrap_or_default(),
            awaited: false,
            internet: false,
            key: None,
        }
    };
    let there = mesh.classes().flat_map(|(_, members)| members);
    let mut parties: BTreeMap<Party, Situation> =
        there.map(|(name, peer)| (Party::Member(name.clone()), situation(name, peer))).collect();
    // Of a key that has expired nobody is left who could join, of one that is used up neither.
    let left = |key: &Name| {
        let declared = declared.named::<AccessKey>(network, key);
        let status = inventory.key(&ResourceId::of::<AccessKey>(network, key));
        let expires = declared.zip(status).and_then(|(key, status)| status.expires(key));
        let uses = declared.and_then(|key| key.uses().left(status.map_or(0, |status| status.used)));
        if expires.is_some_and(|end| end <= now) { 0 } else { uses.unwrap_or(u32::MAX) }
    };
    let mut numbers: BTreeMap<Name, u32> = BTreeMap::new();
    for (name, member) in members(network, declared, inventory) {
        // Whom a key stands for is known by the key: their names follow from what other keys there are.
        let party = match &member.key {
            None => Party::Member(name.clone()),
            Some(key) => {
                let number = numbers.entry(key.clone()).or_default();
                *number += 1;
                if *number > left(key) {
                    continue;
                }
                Party::Joins(key.clone(), *number)
            }
        };
        let new = || {
            let class = mesh.policy().class(&name, &member.tags, &member.addresses);
            let through = match declared.named::<ExternalClient>(network, &name) {
                Some(client) => Some(ways::through(client)),
                None => ways.relay_of(&name, &member.tags, &member.addresses).cloned().map(Through::Relay),
            };
            let (place, families) = (place(&name, through), families(member.addresses.iter()));
            Situation {
                class,
                place,
                families,
                awaited: true,
                key: member.key.clone(),
                ..Situation::default()
            }
        };
        parties.entry(party).or_insert_with(new);
    }
    let own: Vec<IpNet> = declared.network(network).into_iter().flat_map(|it| it.ranges()).collect();
    let outside = ranges.iter().filter(|range| !own.iter().any(|own| own.contains(*range)));
    for (range, way) in outside.filter_map(|range| Some((range, ways.around(range)?))) {
        let place = Place { carrier: None, through: Some(Through::Egress(way.egress.clone())) };
        let families = families([range.addr()].iter());
        let (class, internet) = (way.class.clone(), way.is_internet());
        let situation = Situation { class, place, families, internet, ..Situation::default() };
        parties.insert(Party::Range(*range), situation);
    }
    parties
}

/// Whether there are IPv4 addresses among these, and IPv6 addresses.
pub(crate) fn families<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> [bool; 2] {
    addresses.fold([false; 2], |[ipv4, ipv6], address| [ipv4 || address.is_ipv4(), ipv6 || address.is_ipv6()])
}

/// Members or ranges that stand alike before, and alike after; absent: they are not there then.
type Group<'a> = (Option<&'a Situation>, Option<&'a Situation>);

/// The groups, each with who is in it.
type Groups<'a> = BTreeMap<Group<'a>, BTreeSet<&'a Party>>;

/// What may be opened between groups at one moment.
struct Judge<'a> {
    mesh: Option<&'a Mesh>,
    /// Which side of a group counts.
    of: fn(&Group<'a>) -> Option<&'a Situation>,
    parties: &'a BTreeMap<Party, Situation>,
    standings: BTreeMap<&'a Class, policy::Standing>,
    /// What may be opened by the rules between two situations, by where these are in memory: to compare them costs more.
    known: BTreeMap<[usize; 2], Arc<Access>>,
    nothing: Arc<Access>,
    /// The ways while those are there who are, and once all are who are declared.
    paths: Option<[Paths<'a>; 2]>,
    passed: BTreeMap<(&'a Place, &'a Place), [Option<Vec<Name>>; 2]>,
    /// The nodes of the network that do not carry what they should.
    away: BTreeMap<&'a NodeId, &'a Away>,
}

impl<'a> Judge<'a> {
    fn new(
        network: &'a NetworkName,
        moment: Moment<'a>,
        of: fn(&Group<'a>) -> Option<&'a Situation>,
        parties: &'a BTreeMap<Party, Situation>,
    ) -> Self {
        let policy = moment.mesh.map(Mesh::policy);
        let classes = parties.values().map(|situation| &situation.class);
        let standings = policy
            .into_iter()
            .flat_map(|policy| classes.clone().map(|class| (class, policy.standing(class))));
        let situation = |name: &Name| parties.get(&Party::Member(name.clone()));
        let paths = moment.mesh.map(|mesh| {
            let carriers = || {
                let carriers = parties.values().filter_map(|it| Some((it.place.carrier.clone()?, &it.place)));
                carriers.map(|(name, place)| (name, place.through.clone())).collect()
            };
            let is_there = move |node: &Name, egress: Option<&Name>| {
                ways::is_there(network, node, egress, moment.inventory)
            };
            let will_be = move |node: &Name, _: Option<&Name>| situation(node).is_some();
            [
                Paths::new(mesh.ways(), mesh.hub(), carriers(), is_there),
                Paths::new(mesh.ways(), mesh.hub(), carriers(), will_be),
            ]
        });
        Self {
            mesh: moment.mesh,
            of,
            parties,
            standings: standings.collect(),
            known: BTreeMap::new(),
            nothing: Arc::default(),
            paths,
            passed: BTreeMap::new(),
            away: moment.inventory.away().filter(|(id, _)| id.network == *network).collect(),
        }
    }

    /// Whether the same nodes carry the same as at another moment, and are reached as then.
    fn carries_as(&self, other: &Self) -> bool {
        let (Some(mesh), Some(theirs)) = (self.mesh, other.mesh) else { return false };
        let carriers = |judge: &Self| -> BTreeMap<Party, Situation> {
            let carry = judge.parties.iter().filter(|(_, situation)| situation.place.carrier.is_some());
            carry.map(|(party, situation)| (party.clone(), situation.clone())).collect()
        };
        mesh.hub() == theirs.hub()
            && mesh.ways() == theirs.ways()
            && self.away == other.away
            && carriers(self) == carriers(other)
    }

    fn policy(&self) -> Option<&'a Policy> {
        self.mesh.map(Mesh::policy)
    }

    fn is_restricted(&self) -> bool {
        self.policy().is_some_and(Policy::is_restricted)
    }

    /// What those of a group may open at those of another; `awaited`: only once all are there who are declared.
    fn opens(&mut self, from: &Group<'a>, to: &Group<'a>, awaited: bool) -> Arc<Access> {
        let ((Some(from), Some(to)), Some(policy)) = (((self.of)(from), (self.of)(to)), self.policy()) else {
            return self.nothing.clone();
        };
        let meet = !from.internet && from.speaks_to(to) && self.meet(from, to, awaited);
        if !meet || awaited && self.meet(from, to, false) {
            return self.nothing.clone();
        }
        let standings = &self.standings;
        let judge = || Arc::new(policy.between(&standings[&from.class], &standings[&to.class]));
        let places = [from, to].map(|situation| std::ptr::from_ref(situation).addr());
        self.known.entry(places).or_insert_with(judge).clone()
    }

    /// Whether two have routes to each other on which packets find their way: at present, or once all are there.
    fn meet(&mut self, from: &'a Situation, to: &'a Situation, all: bool) -> bool {
        (all || !from.awaited && !to.awaited) && self.are_for(from, to, all) && self.finds(from, to, all)
    }

    /// Whether packets find their way between two.
    fn finds(&mut self, from: &'a Situation, to: &'a Situation, all: bool) -> bool {
        let Some(paths) = &self.paths else { return false };
        let places = (&from.place, &to.place);
        let both = || [0, 1].map(|at| paths[at].between(places.0, places.1));
        let found = self.passed.entry(places).or_insert_with(both);
        let Some(path) = &found[usize::from(all)] else { return false };
        let on_the_way = path.iter().filter_map(|name| self.parties.get(&Party::Member(name.clone())));
        let steps: Vec<_> = std::iter::once(from).chain(on_the_way).chain([to]).collect();
        steps.windows(2).all(|step| step[0].finds(step[1]))
    }

    /// Whether each gets the route to the other, if that is a range, and does not reach it outside of the network:
    /// what is behind a gateway goes by what is for that gateway.
    fn are_for(&self, from: &Situation, to: &Situation, all: bool) -> bool {
        let (Some(mesh), Some(paths)) = (self.mesh, &self.paths) else { return false };
        let paths = &paths[usize::from(all)];
        let side = |range: &Situation| match &range.place.through {
            Some(Through::Egress(name)) => {
                mesh.ways().ranges().find(|(_, way)| way.egress == *name).map(|(_, way)| way.side)
            }
            Some(Through::Relay(_) | Through::Ingress(_)) | None => None,
        };
        let class = |other: &Situation| match &other.place.through {
            Some(through @ Through::Egress(_)) => {
                let gateway = Party::Member(paths.carrier_of(through)?.clone());
                self.parties.get(&gateway).map(|situation| situation.class.clone())
            }
            Some(Through::Relay(_) | Through::Ingress(_)) | None => Some(other.class.clone()),
        };
        let gets = |other: &Situation, range: &Situation| {
            side(range).is_none_or(|side| class(other).is_some_and(|class| class.is_on(side)))
        };
        !from.place.is_local_to(&to.place, mesh.ways()) && gets(from, to) && gets(to, from)
    }

    /// Whether the nodes of a group are on a side of a rule: that of `to` if `right`.
    fn is_on(&self, rule: &ResourceId, group: &Group<'a>, right: bool) -> bool {
        let class = (self.of)(group).map(|situation| &situation.class);
        let policy = self.policy().zip(class).map(|(policy, class)| policy.is_on(rule, class, right));
        policy.unwrap_or_default()
    }

    /// The rules by which they may, each with what it adds; none in a network without rules.
    fn reasons(&self, from: &Group<'a>, to: &Group<'a>) -> Vec<(&'a ResourceId, &'a Access)> {
        let (Some(from), Some(to), Some(policy)) = ((self.of)(from), (self.of)(to), self.policy()) else {
            return Vec::new();
        };
        policy.applying(&self.standings[&from.class], &self.standings[&to.class]).collect()
    }
}

/// The reachability that a change of one network gains and loses: what holds now, then what will once awaited
/// nodes have joined.
pub fn between(network: &NetworkName, before: Moment<'_>, after: Moment<'_>) -> (Vec<ReachChange>, Pairs) {
    let ranges = &cuts(network, before) | &cuts(network, after);
    let (was, is) = (reaching(network, before, &ranges), reaching(network, after, &ranges));
    let mut groups: Groups<'_> = BTreeMap::new();
    for node in was.keys().chain(is.keys()) {
        groups.entry((was.get(node), is.get(node))).or_default().insert(node);
    }
    let mut then = Judge::new(network, before, |group| group.0, &was);
    let mut now = Judge::new(network, after, |group| group.1, &is);
    let same_rules = before.mesh.zip(after.mesh).map(|(was, is)| (was.policy(), is.policy()));
    let changed = same_rules
        .filter(|(was, is)| was.is_restricted() == is.is_restricted() && then.carries_as(&now))
        .map(|(was, is)| is.changed_since(was));
    let pairs = concerned(&groups, changed.as_ref());
    let mut changes = Vec::new();
    let mut counted = Pairs { of: all_pairs(&groups), ..Pairs::default() };
    for once_joined in [false, true] {
        for direction in [Direction::Lost, Direction::Gained] {
            let mut moved = Vec::new();
            for (from, to) in &pairs {
                // A key that goes takes nothing from those who would have come, nor do they miss who goes.
                let goes = from.1.is_none() || to.1.is_none();
                if direction == Direction::Lost && goes && (is_key(from) || is_key(to)) {
                    continue;
                }
                let (was, is) = (then.opens(from, to, once_joined), now.opens(from, to, once_joined));
                if was == is {
                    continue;
                }
                let differs = match direction {
                    // What holds from now on need not be waited for.
                    Direction::Lost if once_joined => was.without(&is).without(&now.opens(from, to, false)),
                    Direction::Lost => was.without(&is),
                    Direction::Gained => is.without(&was),
                };
                if !differs.is_nothing() {
                    moved.push((*from, *to, differs));
                }
            }
            let size = |group: &Group<'_>| groups[group].len() as u64;
            let of_one = |(from, to, _): &(&Group<'_>, &Group<'_>, Access)| {
                size(from) * (size(to) - u64::from(from == to))
            };
            let known = moved.iter().filter(|(from, to, _)| !is_key(from) && !is_key(to));
            let pairs = known.map(of_one).sum();
            match (direction, once_joined) {
                (Direction::Lost, false) => {
                    let is_member = |group: &Group<'_>| !is_outer(group);
                    let members = moved.iter().filter(|(from, to, _)| is_member(from) && is_member(to));
                    counted.lost_by_members = members.map(of_one).sum();
                    counted.lost = pairs;
                }
                (Direction::Gained, false) => counted.gained = pairs,
                (Direction::Lost, true) => counted.lost_later = pairs,
                (Direction::Gained, true) => counted.gained_later = pairs,
            }
            let (here, moment) = match direction {
                Direction::Lost => (&then, before),
                Direction::Gained => (&now, after),
            };
            let restricted = then.is_restricted() || now.is_restricted();
            let lines = lines::lines((network, moment), here, &groups, moved, (restricted, once_joined));
            changes.extend(lines.into_iter().map(|line| ReachChange { direction, once_joined, ..line }));
        }
    }
    (changes, counted)
}

/// Whether it is of ranges outside of the network.
fn is_outer(group: &Group<'_>) -> bool {
    group.0.or(group.1).is_some_and(|situation| situation.class.is_outer())
}

/// Whether it is whoever joins with an access key.
fn is_key(group: &Group<'_>) -> bool {
    group.0.or(group.1).is_some_and(|situation| situation.key.is_some())
}

/// How many ordered pairs there are of members that have joined, before or afterwards, and of one and a range; from
/// the internet nobody opens anything.
fn all_pairs(groups: &Groups<'_>) -> u64 {
    let (mut members, mut ranges, mut internet) = (0, 0, 0);
    for (group, parties) in groups {
        let there = [group.0, group.1].into_iter().flatten().any(|situation| !situation.awaited);
        let count = parties.len() as u64;
        match group.0.or(group.1) {
            Some(situation) if situation.internet => internet += count,
            Some(situation) if situation.class.is_outer() => ranges += count,
            Some(_) if there => members += count,
            Some(_) | None => {}
        }
    }
    members * u64::saturating_sub(members, 1) + members * (2 * ranges + internet)
}

/// The pairs of groups between which anything can differ, in order: either is of another situation than
/// before, or a rule that changed is about them; absent: any rule may have.
fn concerned<'g, 'a>(
    groups: &'g Groups<'a>,
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
