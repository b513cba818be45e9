//! Why one member or range reaches another, or not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Alike, Counterexample, Distinguished, usable};
use crate::access::Access;
use crate::compile::members::members;
use crate::inventory::{Inventory, NodeId};
use crate::kinds::{Egress, ExternalClient, Group, Node};
use crate::scalars::{Name, NetworkName, Selector, overlap};
use crate::snapshot::{ResourceId, Snapshot};

/// One side of a question as it is typed: a selector, or an address, perhaps with the network: `db-1`,
/// `corp/db-1`, `10.40.0.7`, `corp/tag:web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The network; absent: the one that has it.
    pub network: Option<NetworkName>,
    /// Who is meant.
    pub selector: Selector,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let selector = |text: &str| match text.parse::<IpAddr>() {
            Ok(address) => Ok(Selector::Range(IpNet::from(address))),
            Err(_) => text.parse::<Selector>(),
        };
        let why = match selector(text) {
            Ok(selector) => return Ok(Self { network: None, selector }),
            Err(why) => why,
        };
        let parts = text.split_once('/').and_then(|(network, rest)| Some((network.parse().ok()?, rest)));
        let Some((network, rest)) = parts else { return Err(why) };
        Ok(Self { network: Some(network), selector: selector(rest)? })
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(network) = &self.network {
            write!(f, "{network}/")?;
        }
        self.selector.fmt(f)
    }
}

/// Why a question cannot be asked of one network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// No network has what is asked for.
    #[error("there is nothing named {asked}")]
    Unknown {
        /// What was asked for.
        asked: String,
        /// What there is, as it is typed.
        known: Vec<String>,
    },
    /// Several networks have it.
    #[error("several networks have {asked}: {}", meant.join(", "))]
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// Each with its network.
        meant: Vec<String>,
    },
    /// The two are in different networks.
    #[error("{from} and {to} are in different networks, and nothing leads from one network to another")]
    Apart {
        /// The one.
        from: String,
        /// The other.
        to: String,
    },
}

/// Finds the network that two sides are of.
pub fn network_of(
    from: &Asked,
    to: &Asked,
    declared: &Snapshot,
    inventory: &Inventory,
) -> Result<NetworkName, Unresolved> {
    let mut of = Vec::new();
    for asked in [from, to] {
        let networks = networks_with(asked, declared, inventory);
        if networks.is_empty() {
            return Err(Unresolved::Unknown { asked: asked.to_string(), known: known(declared, inventory) });
        }
        of.push((asked, networks));
    }
    let common: Vec<_> = of[0].1.intersection(&of[1].1).copied().collect();
    let in_each = |(asked, networks): &(&Asked, BTreeSet<&NetworkName>)| {
        networks.iter().map(|network| format!("{network}/{}", asked.selector)).collect::<Vec<_>>()
    };
    match &*common {
        [network] => Ok((*network).clone()),
        [] => Err(Unresolved::Apart { from: in_each(&of[0]).join(", "), to: in_each(&of[1]).join(", ") }),
        [..] => {
            let open = of.iter().find(|(asked, _)| asked.network.is_none());
            let (asked, networks) = open.expect("two sides with networks have at most one in common");
            let networks = networks.iter().copied().filter(|network| common.contains(network)).collect();
            Err(Unresolved::Ambiguous { asked: asked.to_string(), meant: in_each(&(*asked, networks)) })
        }
    }
}

fn networks_with<'a>(
    asked: &Asked,
    declared: &'a Snapshot,
    inventory: &Inventory,
) -> BTreeSet<&'a NetworkName> {
    let networks =
        declared.networks().filter(|(name, _)| asked.network.as_ref().is_none_or(|it| it == *name));
    let inside = |range: &IpNet| {
        declared.networks().any(|(_, network)| network.ranges().any(|other| overlap(&other, range)))
    };
    let behind = |name: &NetworkName, range: &IpNet| {
        let ranges = declared.all_in::<Egress>(name).flat_map(|(_, egress)| egress.ranges.iter());
        ranges.map(|it| it.net()).any(|it| overlap(&it, range))
    };
    let has = |name: &NetworkName| match &asked.selector {
        Selector::All => true,
        Selector::Name(it) => {
            declared.named::<Node>(name, it).is_some()
                || declared.named::<Group>(name, it).is_some()
                || declared.named::<ExternalClient>(name, it).is_some()
                || inventory.node(&NodeId::of(name, it)).is_some()
        }
        Selector::Tag(tag) => members(name, declared, inventory).values().any(|it| it.tags.contains(tag)),
        // What is outside of every network, and behind no gateway of one, is of each.
        Selector::Range(range) => {
            let own =
                declared.network(name).is_some_and(|it| it.ranges().any(|other| overlap(&other, range)));
            own || behind(name, range)
                || !inside(range) && !declared.networks().any(|(it, _)| behind(it, range))
        }
    };
    networks.map(|(name, _)| name).filter(|name| has(name)).collect()
}

/// What may be asked for by name.
fn known(declared: &Snapshot, inventory: &Inventory) -> Vec<String> {
    let of = |network: &NetworkName| {
        let nodes = declared.all_in::<Node>(network).map(|(id, _)| id.name.clone());
        let groups = declared.all_in::<Group>(network).map(|(id, _)| id.name.clone());
        let clients = declared.all_in::<ExternalClient>(network).map(|(id, _)| id.name.clone());
        let joined = inventory.nodes_in(network).map(|(name, _)| name.clone());
        let names: BTreeSet<Name> = nodes.chain(groups).chain(clients).chain(joined).collect();
        names.into_iter().flat_map(|name| [name.to_string(), format!("{network}/{name}")]).collect::<Vec<_>>()
    };
    declared.networks().flat_map(|(network, _)| of(network)).collect()
}

/// Whether one side reaches the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Every pair of members does.
    Yes,
    /// Some pairs do, or not all that was asked for is open.
    Partly,
    /// None does.
    No,
}

/// What the answer rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// Rules allow it.
    Rules,
    /// The network's acl is allow.
    AclAllow,
    /// Rules allow something else.
    OtherPorts,
    /// Rules allow it in the other direction only.
    OtherDirection,
    /// No rule is about them.
    NoRule,
    /// Both are one and the same member.
    SameMember,
    /// One side selects nobody.
    Nobody,
    /// Rules allow it, but packets find no way.
    NoWay,
}

/// A rule, and what it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Reason {
    /// The rule.
    pub id: ResourceId,
    /// What it lets members open, in words.
    pub gives: String,
}

/// Why one side reaches another, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The network.
    pub network: NetworkName,
    /// Who opens connections.
    pub from: Selector,
    /// To whom.
    pub to: Selector,
    /// What was asked for; everything: whether there is anything.
    pub asked: Access,
    /// The answer.
    pub answer: Answer,
    /// What it rests on.
    pub because: Because,
    /// What some member of the one side may open at some member of the other.
    pub opens: Access,
    /// The rules that it rests on; for another direction those of it.
    pub rules: Vec<Reason>,
    /// The nodes that packets pass, in order, for a pair that is reached; none: they go directly, or nobody is
    /// reached.
    pub via: Vec<Name>,
    /// The nodes of all that it names that have not joined: till then nothing is reached where any is needed.
    pub awaited: Vec<Name>,
    /// Why packets find no way, though rules let them pass, in words after the two names.
    pub obstacle: Option<String>,
    /// A pair that is not reached, where some are.
    pub except: Option<Counterexample>,
}

/// Explains whether one side may open something at another; nothing if the network is not declared. Members
/// are those that tests are judged on.
pub fn explain(
    network: &NetworkName,
    (from, to): (&Selector, &Selector),
    asked: &Access,
    declared: &Snapshot,
    inventory: &Inventory,
) -> Option<Explanation> {
    let chosen = [BTreeSet::from([from.clone()]), BTreeSet::from([to.clone()])];
    let all = Distinguished::of(network, declared, inventory, chosen.iter())?;
    let [from_classes, to_classes] = [0, 1].map(|at| all.on(&chosen[at], all.sides[at]).collect::<Vec<_>>());
    let sides = (&*from_classes, &*to_classes);
    let answer = |answer, because| Explanation {
        network: network.clone(),
        from: from.clone(),
        to: to.clone(),
        asked: asked.clone(),
        answer,
        because,
        opens: Access::default(),
        rules: Vec::new(),
        via: Vec::new(),
        awaited: Vec::new(),
        obstacle: None,
        except: None,
    };
    if from_classes.is_empty() || to_classes.is_empty() {
        return Some(answer(Answer::No, Because::Nobody));
    }
    let Some(_) = all.broken(sides, |_, _| true) else {
        return Some(answer(Answer::No, Because::SameMember));
    };
    let wanted = |access: &Access| match asked.is_everything() {
        true => !access.is_nothing(),
        false => access.contains(&usable(asked)),
    };
    let partly = |access: &Access| !access.and(asked).is_nothing();
    let paths = all.paths(None);
    let finds = |from: &Alike, to: &Alike| all.obstacle(from, to, &paths).is_none();
    let reached = all.broken(sides, |from, to| partly(&all.opens(from, to)) && finds(from, to));
    let missed = all.broken(sides, |from, to| !wanted(&all.opens(from, to)) || !finds(from, to));
    let Some(reached) = reached else {
        if let Some(lost) = all.broken(sides, |from, to| partly(&all.opens(from, to))) {
            let obstacle = all.obstacle(lost.from.1, lost.to.1, &paths);
            let (_, rules) = all.given(sides, asked);
            return Some(Explanation { rules, obstacle, ..answer(Answer::No, Because::NoWay) });
        }
        let (other, rules) = all.given(sides, &Access::everything());
        if !other.is_nothing() {
            return Some(Explanation { opens: other, rules, ..answer(Answer::No, Because::OtherPorts) });
        }
        let (back, rules) = all.given((sides.1, sides.0), &Access::everything());
        let because = if back.is_nothing() { Because::NoRule } else { Because::OtherDirection };
        return Some(Explanation { rules, ..answer(Answer::No, because) });
    };
    let (sum, rules) = all.given(sides, asked);
    let because = if all.policy.is_restricted() { Because::Rules } else { Because::AclAllow };
    let whole = if missed.is_some() { Answer::Partly } else { Answer::Yes };
    let except = missed.map(|missed| {
        let (from, to) = all.in_words(missed.from.0, missed.to.0);
        Counterexample { from, to }
    });
    let via = all.path(reached.from.1, reached.to.1);
    let named = [from, to].into_iter().filter_map(|side| match side {
        Selector::Name(name) => Some(name),
        Selector::Tag(_) | Selector::Range(_) | Selector::All => None,
    });
    let is_awaited = |name: &&Name| {
        let id = NodeId::of(network, name);
        declared.named::<Node>(network, name).is_some() && inventory.node(&id).is_none()
    };
    let awaited = named.chain(&via).filter(is_awaited).cloned().collect();
    Some(Explanation { opens: sum, rules, via, awaited, except, ..answer(whole, because) })
}

impl Distinguished<'_> {
    /// What some member of the one side may open at some member of the other, and the rules that give any of an
    /// access.
    fn given(&self, sides: (&[&Alike], &[&Alike]), access: &Access) -> (Access, Vec<Reason>) {
        let mut rules = BTreeMap::new();
        let mut opens = Access::default();
        for (from, to) in all_pairs(sides).filter(|(from, to)| self.pairs(from, to) > 0) {
            opens = opens.or(&self.opens(from, to));
            let applying = self.policy.applying(&from.standing, &to.standing);
            rules.extend(applying.filter(|(_, gives)| !gives.and(access).is_nothing()));
        }
        let reason =
            |(id, gives): (&ResourceId, &Access)| Reason { id: id.clone(), gives: gives.to_string() };
        (opens, rules.into_iter().map(reason).collect())
    }
}

/// The pairs of classes of two sides.
fn all_pairs<'a>(
    (from, to): (&'a [&'a Alike], &'a [&'a Alike]),
) -> impl Iterator<Item = (&'a Alike, &'a Alike)> {
    from.iter().flat_map(move |one| to.iter().map(move |other| (*one, *other)))
}
