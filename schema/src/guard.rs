//! Rules about a change: what an apply does only if it is let through, once, with `--allow RULE`.
//!
//! [`rules`](crate::rules) hold of what is declared, always. These hold of the way from one set of
//! declarations to the next: what was let through stays, until it is changed again. The server judges every
//! change, whoever sends it; `nmplan` judges a plan by the same functions, so that a refusal is known before
//! anything is sent. Start at [`check`] and [`judge`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::inventory::Inventory;
use crate::judge::{self, Verdict};
use crate::kinds::Kind;
use crate::report::{Code, Problem, Report, did_you_mean};
use crate::rules::Claim;
use crate::rules::source_map::SourceMap;
use crate::snapshot::{Entry, ResourceId, Snapshot};
use crate::value::Step;

/// A rule that a change may be let through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guard {
    /// No range that is made or changed holds an address of the server.
    CutOff,
    /// The test of this id holds, in each network in which anything changes.
    Test(ResourceId),
}

impl Guard {
    /// How `--allow` takes each of them.
    pub const FORMS: &'static [&'static str] = &["cut-off", "test=ID"];

    /// Whether only an admin may let a change through.
    pub const fn needs_admin(&self) -> bool {
        match self {
            Self::CutOff | Self::Test(_) => true,
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
        json_schema!({ "type": "string", "pattern": "^(cut-off|test=[a-z0-9-]+/test/[a-z0-9-]+)$" })
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
    let networks: BTreeSet<_> = before.differences(after).map(|(id, ..)| &id.network).collect();
    findings.extend(failing(&judge::judge_all(networks, after, inventory), source_map));
    findings
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

    #[test]
    fn a_mistyped_rule_is_reported_with_the_one_that_may_be_meant() {
        let error = "cut-of".parse::<Guard>().expect_err("there is none");
        assert!(error.contains("did you mean \"cut-off\"?"), "{error}");
        let error = "everything".parse::<Guard>().expect_err("there is none");
        assert!(error.contains("the rules are: cut-off, test=ID"), "{error}");
        let error = "test".parse::<Guard>().expect_err("it names none");
        assert!(error.contains("the rules are: cut-off, test=ID"), "{error}");
        let error = "test=corp/dns/x".parse::<Guard>().expect_err("it is no test");
        assert!(error.contains("written like corp/test/web-to-db"), "{error}");
        for text in ["cut-off", "test=corp/test/x"] {
            assert_eq!(text.parse::<Guard>().map(|guard| guard.to_string()).as_deref(), Ok(text));
        }
    }
}
