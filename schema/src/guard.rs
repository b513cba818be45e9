//! Rules about a change: what an apply does only if it is let through, once, with `--allow RULE`.
//!
//! [`rules`](crate::rules) hold of what is declared, always. These hold of the way from one set of
//! declarations to the next: what was let through stays, until it is changed again. The server judges every
//! change, whoever sends it; `nmplan` judges a plan by the same functions, so that a refusal is known before
//! anything is sent. Start at [`check`], [`over_limits`] and [`judge`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::inventory::Inventory;
use crate::judge::{self, Verdict};
use crate::kinds::{Kind, Network, Resource as _};
use crate::limits::{Effect, Limits};
use crate::report::{Code, Problem, Report, did_you_mean};
use crate::rules::Claim;
use crate::rules::source_map::SourceMap;
use crate::scalars::{Limit, NetworkName};
use crate::snapshot::{Entry, Owner, ResourceId, Snapshot};
use crate::text::count;
use crate::value::Step;
use crate::world::World;

/// A rule that a change may be let through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guard {
    /// No range that is made or changed holds an address of the server.
    CutOff,
    /// The test of this id holds, in each network in which anything changes.
    Test(ResourceId),
    /// This network is not deleted, since it is protected.
    Protect(NetworkName),
    /// No more objects are deleted than the project's stored guard allows.
    MaxDelete,
    /// No more nodes are affected than that allows.
    MaxNodesChanged,
    /// No more pairs lose reachability than that allows.
    MaxReachLost,
}

impl Guard {
    /// How `--allow` takes each of them.
    pub const FORMS: &'static [&'static str] =
        &["cut-off", "test=ID", "protect=ID", "max-delete", "max-nodes-changed", "max-reach-lost"];

    /// Whether only an admin may let a change through; else whoever may apply.
    pub const fn needs_admin(&self) -> bool {
        match self {
            Self::CutOff | Self::Test(_) => true,
            Self::Protect(_) | Self::MaxDelete | Self::MaxNodesChanged | Self::MaxReachLost => false,
        }
    }
}

impl FromStr for Guard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rule, of) = text.split_once('=').map_or((text, None), |(rule, of)| (rule, Some(of)));
        match (rule, of) {
            ("cut-off", None) => Ok(Self::CutOff),
            ("test", Some(of)) => match of.parse::<ResourceId>() {
                Ok(id) if id.kind == Kind::Test => Ok(Self::Test(id)),
                Ok(_) | Err(_) => {
                    Err(format!("{of:?} is not the id of a test, which is written like corp/test/web-to-db"))
                }
            },
            ("protect", Some(of)) => match of.parse() {
                Ok(network) => Ok(Self::Protect(network)),
                Err(_) => {
                    Err(format!("{of:?} is not the id of a network, which is its name alone: protect=corp"))
                }
            },
            ("max-delete", None) => Ok(Self::MaxDelete),
            ("max-nodes-changed", None) => Ok(Self::MaxNodesChanged),
            ("max-reach-lost", None) => Ok(Self::MaxReachLost),
            _ => {
                let rules = || Self::FORMS.iter().map(|form| form.split('=').next().unwrap_or(form));
                let all = || format!("the rules are: {}", Self::FORMS.join(", "));
                let near = did_you_mean(rule, rules()).filter(|_| !rules().any(|known| known == rule));
                let help = near.unwrap_or_else(all);
                Err(format!("there is no rule {text:?} that can be let through; {help}"))
            }
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutOff => f.write_str("cut-off"),
            Self::Test(id) => write!(f, "test={id}"),
            Self::Protect(network) => write!(f, "protect={network}"),
            Self::MaxDelete => f.write_str("max-delete"),
            Self::MaxNodesChanged => f.write_str("max-nodes-changed"),
            Self::MaxReachLost => f.write_str("max-reach-lost"),
        }
    }
}

impl serde::Serialize for Guard {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Guard {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Guard {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Guard".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let pattern = "^(cut-off|test=[a-z0-9-]+/test/[a-z0-9-]+|protect=[a-z0-9-]+|max-(delete|nodes-changed|reach-lost))$";
        json_schema!({ "type": "string", "pattern": pattern })
    }
}

/// A change that a rule refuses.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The rule.
    pub guard: Guard,
    /// What is refused, where and why.
    pub problem: Problem,
}

/// Finds what the rules refuse of a change of the declarations, after which this has joined. `server` are the
/// addresses by which the server is reached; `source_map` has the places of what is in files.
pub fn check(
    before: &Snapshot,
    (after, inventory): (&Snapshot, &Inventory),
    server: &[IpAddr],
    source_map: &SourceMap,
) -> Vec<Finding> {
    let mut findings = check_ranges(before, after, server, source_map);
    findings.extend(check_protected(before, after));
    let networks: BTreeSet<_> = before.differences(after).map(|(id, ..)| &id.network).collect();
    findings.extend(failing(&judge::judge_all(networks, after, inventory), source_map));
    findings
}

/// Finds what a project's stored guard refuses of an apply of that project, after which this is declared and has
/// joined. Whose guard it is, and what it counts by, is as it was `before`. `effect` is called only where the
/// guard needs it, since it costs as much as a plan.
///
/// Percentages are of what the project has a part in before the apply: so a plan that adds networks, or that is
/// about one of many, counts by the same totals. Of nothing every percentage is nothing.
pub fn over_limits(
    owner: &Owner,
    before: &World,
    after: &Snapshot,
    effect: impl FnOnce() -> Effect,
) -> Vec<Finding> {
    let Some(stored) = before.guards.of(owner) else { return Vec::new() };
    let Limits { max_delete, max_nodes_changed, max_reach_lost } = &stored.limits;
    let of_owner = |entry: Option<&Entry>| entry.is_some_and(|entry| entry.owner.as_ref() == Some(owner));
    let over = |guard: Guard, code, limit: &Option<Limit>, does: u64, of: u64, what: String| {
        let limit = limit.filter(|limit| does > limit.of(of))?;
        let number = limit.of(of).to_string();
        let limit = if number == limit.to_string() { number } else { format!("{limit}, which is {number}") };
        let revision = stored.revision;
        let message = format!("{what}; its guard allows {limit} (stored with revision {revision})");
        let help = format!(
            "split the change, or let it through once with --allow {guard}; another guard in the files counts for later applies only"
        );
        Some(Finding { guard, problem: Problem::new(code, message).help(help) })
    };
    let mut findings = Vec::new();
    if max_delete.is_some() {
        let deleted =
            before.snapshot.differences(after).filter(|(_, was, is)| is.is_none() && of_owner(*was));
        let (deleted, all) = (deleted.count() as u64, before.snapshot.managed_by(owner).count() as u64);
        let what = format!("the plan deletes {deleted} of the {} that {owner} manages", count(all, "object"));
        findings.extend(over(Guard::MaxDelete, Code::MaxDelete, max_delete, deleted, all, what));
    }
    if max_nodes_changed.is_none() && max_reach_lost.is_none() {
        return findings;
    }
    let Effect { nodes_changed, reach_lost } = effect();
    let networks: BTreeSet<_> = before.snapshot.managed_by(owner).map(|(id, _)| &id.network).collect();
    let joined = |network: &NetworkName| before.inventory.nodes_in(network).count() as u64;
    let nodes = networks.iter().map(|network| joined(network)).sum();
    let (does, there) = (count(nodes_changed, "node"), count(nodes, "joined node"));
    let what = format!("the plan affects {does}, and the networks of {owner} have {there}");
    let guard = Guard::MaxNodesChanged;
    findings.extend(over(guard, Code::MaxNodesChanged, max_nodes_changed, nodes_changed, nodes, what));
    let members = |network: &NetworkName| {
        let clients = before.inventory.clients_in(network).filter(|(_, client)| !client.addresses.is_empty());
        joined(network) + clients.count() as u64
    };
    let pairs = |network: &&NetworkName| members(network) * members(network).saturating_sub(1);
    let pairs = networks.iter().map(pairs).sum();
    let (does, there) = (count(reach_lost, "pair"), count(pairs, "pair"));
    let what = format!(
        "by the plan {does} would lose reachability, and the networks of {owner} have {there} of members"
    );
    let guard = Guard::MaxReachLost;
    findings.extend(over(guard, Code::MaxReachLost, max_reach_lost, reach_lost, pairs, what));
    findings
}

/// The protected networks that are deleted: what counts is what there was.
fn check_protected(before: &Snapshot, after: &Snapshot) -> Vec<Finding> {
    let protected = |entry: &Entry| Network::of(&entry.object).is_some_and(|network| network.protect);
    let gone = before.differences(after).filter(|(_, was, is)| is.is_none() && was.is_some_and(protected));
    let finding = |(id, ..): (&ResourceId, Option<&Entry>, Option<&Entry>)| {
        let guard = Guard::Protect(id.network.clone());
        let message = format!("network {id} is protected, so it is not deleted");
        let help = format!(
            "declare it still; to delete it, remove `protect` from it and apply that first, or let it through once with \
             --allow {guard}"
        );
        Finding { guard, problem: Problem::new(Code::Protected, message).about(id).help(help) }
    };
    gone.map(finding).collect()
}

/// What the tests among some verdicts refuse.
pub fn failing(verdicts: &[Verdict], source_map: &SourceMap) -> Vec<Finding> {
    let finding = |verdict: &Verdict| {
        let problem = verdict.problem(source_map).filter(|_| verdict.fails())?;
        let guard = Guard::Test(verdict.id.clone());
        let help = format!(
            "change the rules, or the test if it asks for the wrong thing; an admin can let it through once with --allow {guard}"
        );
        Some(Finding { guard, problem: problem.help(help) })
    };
    verdicts.iter().filter_map(finding).collect()
}

fn check_ranges(
    before: &Snapshot,
    after: &Snapshot,
    server: &[IpAddr],
    source_map: &SourceMap,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, was, is) in before.differences(after) {
        let had = ranges(was);
        let new = ranges(is).into_iter().filter(|(_, range)| !had.iter().any(|(_, before)| before == range));
        for (field, range) in new {
            let held = held(range, server).map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if held.is_empty() {
                continue;
            }
            let message = format!(
                "{range} of {id} holds {held}, by which the server is reached: programs of hosts that join would look for it inside of the mesh"
            );
            let at = source_map.element_or_field(id, &[Step::Field(field)], &range.to_string());
            let help = "choose a range without it, or let it through once with --allow cut-off (by an admin)"
                .to_owned();
            let problem = Problem::new(Code::CutOff, message).at(at).about(id).help(help);
            findings.push(Finding { guard: Guard::CutOff, problem });
        }
    }
    findings
}

/// The addresses of the server that a range keeps programs from. A default route leads everywhere, and is no
/// reason: the agent's own packets and every longer route go beside it.
fn held(range: IpNet, server: &[IpAddr]) -> impl Iterator<Item = &IpAddr> {
    server.iter().filter(move |address| range.prefix_len() > 0 && range.contains(*address))
}

/// The ranges that hosts are led into the mesh for: those of networks, and those that are forwarded to.
fn ranges(entry: Option<&Entry>) -> Vec<(&'static str, IpNet)> {
    let claims = entry.map(|entry| entry.object.claims()).unwrap_or_default();
    let range = |(field, claim)| match claim {
        Claim::Range(range) | Claim::Route(range) => Some((field, range)),
        Claim::Pool(_) | Claim::Reserved(_) | Claim::Meant(_) | Claim::Endpoint(_) => None,
    };
    claims.into_iter().filter_map(range).collect()
}

/// What becomes of a change under the rules.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// What is refused.
    pub refused: Report,
    /// What is refused by these rules, unless they are let through as well.
    pub by: BTreeSet<Guard>,
    /// What would be refused, and is let through.
    pub allowed: Report,
    /// The rules that let something through.
    pub used: BTreeSet<Guard>,
    /// The rules that were to let something through, and had nothing to.
    pub needless: BTreeSet<Guard>,
}

/// Judges what was found, where some rules are let through.
pub fn judge(findings: Vec<Finding>, allow: &BTreeSet<Guard>) -> Judgement {
    let mut judgement = Judgement { needless: allow.clone(), ..Judgement::default() };
    for Finding { guard, problem } in findings {
        judgement.needless.remove(&guard);
        if allow.contains(&guard) {
            judgement.used.insert(guard);
            judgement.allowed.push(problem);
        } else {
            judgement.by.insert(guard);
            judgement.refused.push(problem);
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Declared, decode};
    use crate::inventory::NodeId;
    use crate::inventory::tests::joined;
    use crate::limits::StoredGuard;
    use crate::snapshot::Revision;
    use crate::syntax::{Language, Source, parse};
    use crate::value::SourceId;

    fn declared(text: &str) -> Declared {
        let source = Source { name: "a.kdl".into(), text: text.into(), language: Language::Kdl };
        let (declared, report) = decode(parse(&source, SourceId(0), Kind::DESCRIPTORS).0);
        assert!(report.is_empty(), "{report:#?}");
        declared
    }

    /// The text at the place of each finding.
    fn found(before: &str, after: &str, server: &[&str]) -> Vec<String> {
        let server: Vec<_> = server.iter().map(|address| address.parse().expect("good")).collect();
        let Declared { snapshot, source_map } = declared(after);
        let before = declared(before).snapshot;
        let findings = check(&before, (&snapshot, &Inventory::default()), &server, &source_map);
        let place = |finding: &Finding| {
            let span = finding.problem.at.expect("it is in the file").span;
            after[span.start as usize..span.end as usize].to_owned()
        };
        findings.iter().map(place).collect()
    }

    #[test]
    fn a_range_that_holds_an_address_of_the_server_is_refused_when_it_is_made_or_changed() {
        let lan = |range: &str| format!("network \"lan\" ipv4={range:?} ipv6=\"fd40::/64\"");
        let (tight, wide, other) = (lan("192.0.2.8/29"), lan("192.0.2.0/24"), lan("198.51.100.0/24"));
        let server = ["192.0.2.11", "2001:db8::1"];
        assert_eq!(found("", &tight, &server), ["\"192.0.2.8/29\""], "made");
        assert_eq!(found(&other, &tight, &server), ["\"192.0.2.8/29\""], "changed");
        assert_eq!(
            found(&wide, &tight, &server),
            ["\"192.0.2.8/29\""],
            "changed, though it was let through before"
        );
        assert_eq!(
            found(&tight, &format!("{tight} mtu=1400"), &server),
            [""; 0],
            "only the rest of it changes"
        );
        assert_eq!(found(&tight, &other, &server), [""; 0], "it goes");
        assert_eq!(found("", &other, &server), [""; 0]);
        assert_eq!(found("", &tight, &[]), [""; 0]);
        assert_eq!(found("", "network \"six\" ipv6=\"2001:db8::/64\"", &server), ["\"2001:db8::/64\""]);
    }

    #[test]
    fn a_range_that_is_forwarded_to_is_judged_likewise_and_default_routes_are_not() {
        let world = |ranges: &str, more: &str| {
            format!(
                "network \"corp\" ipv4=\"10.40.0.0/24\" {{ node \"gw\"; egress \"out\" via=\"gw\" {more} {{ ranges {ranges}; }}; }}"
            )
        };
        let server = ["192.0.2.11", "2001:db8::1"];
        let both = world("\"0.0.0.0/0\" \"::/0\" \"192.0.2.0/24\" \"198.51.100.0/24\"", "");
        assert_eq!(found("", &both, &server), ["\"192.0.2.0/24\""]);
        assert_eq!(found(&both, &world("\"192.0.2.0/24\"", "nat=#false"), &server), [""; 0], "it was there");
        assert_eq!(found(&both, &world("\"192.0.2.0/25\"", ""), &server), ["\"192.0.2.0/25\""]);
        assert_eq!(found("", &world("\"0.0.0.0/0\" \"::/0\"", ""), &server), [""; 0]);
    }

    #[test]
    fn a_default_route_never_counts() {
        let server = ["192.0.2.11".parse().expect("good"), "2001:db8::1".parse().expect("good")];
        let count = |range: &str| held(range.parse().expect("good"), &server).count();
        assert_eq!(
            [count("0.0.0.0/0"), count("::/0"), count("0.0.0.0/1"), count("128.0.0.0/1")],
            [0, 0, 0, 1]
        );
    }

    #[test]
    fn what_is_let_through_is_recorded_and_what_needs_nothing_is_told() {
        let after = declared("network \"lan\" ipv4=\"192.0.2.8/29\"");
        let server = ["192.0.2.11".parse().expect("good")];
        let none = Inventory::default();
        let findings = || check(&Snapshot::default(), (&after.snapshot, &none), &server, &after.source_map);
        let all = BTreeSet::from([Guard::CutOff]);
        let refused = judge(findings(), &BTreeSet::new());
        assert_eq!((refused.refused.len(), &refused.by, refused.used.len()), (1, &all, 0));
        let allowed = judge(findings(), &all);
        assert_eq!((allowed.refused.len(), allowed.allowed.len(), &allowed.used), (0, 1, &all));
        assert!(allowed.needless.is_empty());
        assert_eq!(judge(Vec::new(), &all).needless, all);
    }

    #[test]
    fn a_test_that_fails_is_refused_where_anything_of_its_network_changes() {
        let world = |mtu: u32, more: &str| {
            let test = "node \"a\"; node \"b\"; test \"apart\" { no-reach from=\"a\" to=\"b\" }";
            declared(&format!("network \"corp\" ipv4=\"10.40.0.0/24\" mtu={mtu} {{ {test} }}\n{more}"))
        };
        let refused = |before: &Declared, after: &Declared, allow: &[&str]| {
            let after = (&after.snapshot, &Inventory::default());
            let findings = check(&before.snapshot, after, &[], &SourceMap::default());
            let allow = allow.iter().map(|rule| rule.parse().expect("good")).collect();
            let Judgement { by, used, needless, .. } = judge(findings, &allow);
            [by, used, needless]
                .map(|guards| guards.iter().map(Guard::to_string).collect::<Vec<_>>().join(" "))
        };
        let (nothing, first, later) = (declared(""), world(1400, ""), world(1380, ""));
        let apart = "test=corp/test/apart";
        assert_eq!(refused(&nothing, &first, &[]), [apart, "", ""]);
        assert_eq!(refused(&nothing, &first, &[apart]), ["", apart, ""]);
        assert_eq!(refused(&nothing, &first, &["test=corp/test/other"]), [apart, "", "test=corp/test/other"]);
        assert_eq!(refused(&first, &later, &[]), [apart, "", ""], "it was let through once");
        let beside = world(1400, "network \"lab\" ipv4=\"10.50.0.0/24\"");
        assert_eq!(refused(&first, &beside, &[apart]), ["", "", apart], "nothing of it changes");
    }

    /// A world in which `acme/prod` manages what is declared, and has a guard if there is one.
    fn world(text: &str, guard: &str) -> World {
        let mut world = World { revision: Revision(12), ..World::default() };
        for (id, entry) in declared(text).snapshot.entries() {
            world.snapshot.put(id.clone(), Entry { owner: Some(owner()), ..entry.clone() });
        }
        let limits = serde_json::from_str(guard).expect("good");
        world.guards.put(owner(), StoredGuard { revision: Revision(12), limits });
        world
    }

    fn owner() -> Owner {
        "acme/prod".parse().expect("good")
    }

    /// The rules that refuse a change, and what they say, one a line.
    fn over(before: &World, after: &str, effect: Effect) -> String {
        let findings = over_limits(&owner(), before, &world(after, "{}").snapshot, || effect);
        let lines = findings
            .iter()
            .map(|it| format!("{} {}: {}", it.guard, it.problem.code.name(), it.problem.message));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// A network with entries of these names.
    fn entries(names: &str) -> String {
        let entries =
            names.chars().map(|name| format!("dns \"{name}\" a=\"192.0.2.1\"; ")).collect::<String>();
        format!("network \"corp\" ipv4=\"10.40.0.0/24\" {{ {entries} }}")
    }

    #[test]
    fn deletions_count_against_what_the_project_manages_before_the_apply() {
        let none = Effect::default();
        let all = entries("abcdefghijklmnopqrs");
        let limited = |guard: &str| world(&all, guard);
        let says = |deleted: u64, limit: &str| {
            format!(
                "max-delete plan::max_delete: the plan deletes {deleted} of the 20 objects that acme/prod manages; its \
                 guard allows {limit} (stored with revision 12)"
            )
        };
        let seven = entries("abcdefghijkl");
        let guard = r#"{"max-delete":"5% or 3"}"#;
        assert_eq!(over(&limited(guard), &seven, none), says(7, "5% or 3, which is 3"));
        assert_eq!(over(&limited(guard), &entries("abcdefghijklmnop"), none), "", "3 are allowed");
        assert_eq!(over(&limited(r#"{"max-delete":0}"#), "", none), says(20, "0"));
        assert_eq!(over(&limited(r#"{"max-delete":"35%"}"#), &seven, none), "", "7 of 20");
        assert_eq!(over(&limited(r#"{"max-delete":"34%"}"#), &seven, none), says(7, "34%, which is 6"));
        assert_eq!(over(&limited("{}"), "", none), "", "there is no guard");
        assert_eq!(over(&world("", r#"{"max-delete":0}"#), &all, none), "", "what is made never counts");
        let mut foreign = limited(r#"{"max-delete":0}"#);
        for id in ["corp/dns/a", "corp/dns/b"].map(|id| id.parse::<ResourceId>().expect("good")) {
            let entry = foreign.snapshot.entry(&id).expect("it is there").clone();
            foreign.snapshot.put(id, Entry { owner: None, ..entry });
        }
        assert_eq!(over(&foreign, &entries("cdefghijklmnopqrs"), none), "", "others' objects do not count");
        let other = "acme/dev".parse().expect("good");
        let findings = over_limits(&other, &limited(guard), &Snapshot::default(), || none);
        assert!(findings.is_empty(), "the guard is another env's");
    }

    #[test]
    fn nodes_and_pairs_count_against_those_of_the_projects_networks_before_the_apply() {
        let text = "network \"corp\" ipv4=\"10.40.0.0/24\"\nnetwork \"lab\" ipv4=\"10.50.0.0/24\"";
        let with = |guard: &str| {
            let mut world = world(text, guard);
            let nodes = [("corp", 1..=4u8), ("lab", 5..=6), ("other", 7..=9)];
            for (network, number) in
                nodes.into_iter().flat_map(|(network, all)| all.map(move |it| (network, it)))
            {
                let id =
                    NodeId::of(&network.parse().expect("good"), &format!("n{number}").parse().expect("good"));
                world.inventory.put_node(id, joined(number, &format!("10.40.0.{number}")));
            }
            world
        };
        let says = |nodes_changed, reach_lost, guard: &str| {
            over(&with(guard), text, Effect { nodes_changed, reach_lost })
        };
        let nodes = r#"{"max-nodes-changed":"34%"}"#;
        assert_eq!(says(2, 99, nodes), "");
        assert_eq!(
            says(3, 0, nodes),
            "max-nodes-changed plan::max_nodes_changed: the plan affects 3 nodes, and the networks of acme/prod have 6 \
             joined nodes; its guard allows 34%, which is 2 (stored with revision 12)"
        );
        let pairs = r#"{"max-reach-lost":"50%"}"#;
        assert_eq!(says(99, 7, pairs), "");
        assert_eq!(
            says(0, 8, pairs),
            "max-reach-lost plan::max_reach_lost: by the plan 8 pairs would lose reachability, and the networks \
             of acme/prod have 14 pairs of members; its guard allows 50%, which is 7 (stored with revision 12)"
        );
        let both = says(1, 1, r#"{"max-nodes-changed":0,"max-reach-lost":0}"#);
        assert_eq!(both.lines().count(), 2, "{both}");
        let nobody = world("", r#"{"max-nodes-changed":"100%","max-reach-lost":"100%"}"#);
        let effect = Effect { nodes_changed: 1, reach_lost: 1 };
        assert_eq!(over(&nobody, text, effect).lines().count(), 2, "of nothing every percentage is nothing");
        let costs = || panic!("it is asked for only where it counts");
        assert!(over_limits(&owner(), &with(r#"{"max-delete":0}"#), &with("{}").snapshot, costs).is_empty());
    }

    #[test]
    fn a_protected_network_is_not_deleted_whatever_becomes_of_its_block() {
        let protected = "network \"corp\" ipv4=\"10.40.0.0/24\" { protect; dns \"a\" a=\"192.0.2.1\"; }";
        let open = protected.replace("protect; ", "");
        let found = |before: &str, after: &str| {
            let (before, after) = (declared(before).snapshot, declared(after).snapshot);
            let findings = check(&before, (&after, &Inventory::default()), &[], &SourceMap::default());
            findings.iter().map(|it| it.guard.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found(protected, ""), ["protect=corp"]);
        assert_eq!(found(&open, ""), [""; 0]);
        assert_eq!(found(protected, &open), [""; 0], "an update like any other");
        assert_eq!(found(protected, "network \"corp\" ipv4=\"10.41.0.0/24\" { protect; }"), [""; 0]);
        assert_eq!(found("", protected), [""; 0]);
    }

    #[test]
    fn a_mistyped_rule_is_reported_with_the_one_that_may_be_meant() {
        let error = "cut-of".parse::<Guard>().expect_err("there is none");
        assert!(error.contains("did you mean \"cut-off\"?"), "{error}");
        let error = "everything".parse::<Guard>().expect_err("there is none");
        assert!(error.contains("the rules are: cut-off, test=ID, protect=ID, max-delete"), "{error}");
        let error = "test".parse::<Guard>().expect_err("it names none");
        assert!(error.contains("the rules are: cut-off, test=ID, protect=ID, max-delete"), "{error}");
        let error = "test=corp/dns/x".parse::<Guard>().expect_err("it is no test");
        assert!(error.contains("written like corp/test/web-to-db"), "{error}");
        let error = "protect=corp/dns/x".parse::<Guard>().expect_err("it is no network");
        assert!(error.contains("its name alone: protect=corp"), "{error}");
        let error = "max-deletes".parse::<Guard>().expect_err("there is none");
        assert!(error.contains("did you mean \"max-delete\"?"), "{error}");
        for text in [
            "cut-off",
            "test=corp/test/x",
            "protect=corp",
            "max-delete",
            "max-nodes-changed",
            "max-reach-lost",
        ] {
            assert_eq!(text.parse::<Guard>().map(|guard| guard.to_string()).as_deref(), Ok(text));
        }
    }
}
