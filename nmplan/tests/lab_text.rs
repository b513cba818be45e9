//! What a lab prints for people: recorded, at 80 columns.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nmplan::lab::matrix::{Matrix, Together};
use nmplan::lab::report;
use nmplan::lab::verdict::{
    Carrier, FailedOutcome, FailedProbe, NetworkVerdict, NodeVerdict, Pair, ProbesVerdict, Rule, StepVerdict,
    Verdict, WayVerdict,
};
use schema::scalars::Name;

const WIDTH: usize = 80;

fn address(number: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()])
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn rule(id: &str, line: usize) -> Rule {
    Rule { id: id.parse().unwrap(), file: Some("mesh/access.kdl".into()), line: Some(line) }
}

/// A network of groups, each with a name and a number of members; those of a group are called like it.
struct Draft {
    groups: Vec<(String, Vec<String>)>,
    verdict: NetworkVerdict,
}

impl Draft {
    fn new(groups: &[(&str, usize)]) -> Self {
        let members = |(name, size): &(&str, usize)| {
            let all = (1..=*size).map(|number| match size {
                1 => (*name).to_owned(),
                _ => format!("{}-{number}", name.trim_start_matches("tag:")),
            });
            ((*name).to_owned(), all.collect::<Vec<_>>())
        };
        let groups: Vec<_> = groups.iter().map(members).collect();
        let nodes =
            groups.iter().flat_map(|(_, members)| members).zip(1..).map(|(name, number)| NodeVerdict {
                name: name.clone(),
                addresses: vec![address(number)],
                device: Some("kernel".into()),
                names: 2,
                missing: BTreeSet::new(),
            });
        let verdict = NetworkVerdict {
            name: "corp".parse().unwrap(),
            nodes: nodes.collect(),
            clients: Vec::new(),
            behind: Vec::new(),
            matrix: Matrix::default(),
            pairs: Vec::new(),
            ways: Vec::new(),
            tests: BTreeMap::new(),
            sample: ProbesVerdict::default(),
            untried: BTreeMap::new(),
        };
        Self { groups, verdict }
    }

    /// Tries every pair; `way` says by which nodes each goes, and absent that nothing may be opened.
    fn pairs(&mut self, way: impl Fn(&str, &str) -> Option<(&'static [&'static str], Carrier)>) {
        let names: Vec<_> = self.verdict.nodes.iter().map(|node| node.name.clone()).collect();
        for (from, _) in names.iter().zip(1..) {
            for (to, number) in names.iter().zip(1..).filter(|(to, _)| *to != from) {
                let found = way(from, to);
                let took = found.map(|(via, _)| f64::from(number) / 10.0 + via.len() as f64);
                self.verdict.pairs.push(Pair {
                    from: from.clone(),
                    to: to.clone(),
                    allowed: found.is_some(),
                    lost: false,
                    opens: if found.is_some() { "tcp 443".into() } else { "nothing".into() },
                    service: if found.is_some() { "tcp 443".into() } else { "icmp".into() },
                    via: Some(found.iter().flat_map(|(via, _)| *via).map(|node| name(node)).collect()),
                    by: found.into_iter().filter(|(via, _)| !via.is_empty()).map(|(_, by)| by).collect(),
                    answers: BTreeMap::from([(address(usize::try_from(number).unwrap()), took)]),
                    rules: found.map(|_| rule("corp/allow/pages", 7)).into_iter().collect(),
                });
            }
        }
    }

    fn pair(&mut self, from: &str, to: &str) -> &mut Pair {
        self.verdict.pairs.iter_mut().find(|pair| pair.from == from && pair.to == to).unwrap()
    }

    fn done(mut self) -> NetworkVerdict {
        let groups = self.groups.into_iter().map(|(name, parties)| Together { name, parties }).collect();
        self.verdict.matrix = Matrix::of(groups, &self.verdict.pairs);
        self.verdict
    }
}

fn shown(network: NetworkVerdict) -> String {
    let text = report::text(&Verdict { networks: vec![network], scenario: None }, WIDTH);
    let long: Vec<_> = text.lines().filter(|line| line.chars().count() > WIDTH).collect();
    assert!(long.is_empty(), "{long:#?}");
    text
}

/// Thirty nodes in ten groups: what goes to and from tills goes by a relay.
fn thirty() -> Draft {
    let mut draft = Draft::new(&[
        ("tag:gateway", 4),
        ("exit-1", 1),
        ("tag:web", 3),
        ("db-1", 1),
        ("tag:monitoring", 2),
        ("operators", 2),
        ("tag:staff", 8),
        ("a-group-with-a-rather-long-name", 2),
        ("tag:till", 6),
        ("tag:runner", 1),
    ]);
    draft.pairs(|from, to| match (from, to) {
        ("db-1", _) => None,
        _ if from.starts_with("till") != to.starts_with("till") => Some((&["exit-1"], Carrier::Relay)),
        _ if to.starts_with("staff") => None,
        _ => Some((&[], Carrier::Hub)),
    });
    draft
}

#[test]
fn a_few_nodes_are_shown_each_with_its_addresses() {
    let mut draft = Draft::new(&[("a", 1), ("db-1", 1), ("web-1", 1)]);
    draft.pairs(|_, _| Some((&[], Carrier::Hub)));
    insta::assert_snapshot!("few", shown(draft.done()));
    let mut alone = Draft::new(&[("a", 1)]);
    alone.pairs(|_, _| None);
    let text = shown(alone.done());
    assert_eq!(text, "corp: one node, no other to reach, 2 of 2 names resolve everywhere\n  a  10.0.0.1\n");
}

#[test]
fn thirty_nodes_are_shown_by_groups() {
    let mut draft = thirty();
    let tests = &mut draft.verdict.tests;
    tests.insert(name("pages"), ProbesVerdict { tried: 24, ..ProbesVerdict::default() });
    draft.verdict.sample = ProbesVerdict { tried: 400, ..ProbesVerdict::default() };
    let network = draft.done();
    assert!(network.is_good());
    insta::assert_snapshot!("thirty", shown(network));
}

#[test]
fn what_is_not_as_it_must_be_is_shown_in_full() {
    let mut draft = thirty();
    let at = address(9);
    draft.pair("web-1", "db-1").answers.values_mut().for_each(|it| *it = None);
    draft.pair("db-1", "web-2").answers.values_mut().for_each(|it| *it = Some(0.4));
    for (from, to) in [("web-2", "exit-1"), ("web-3", "exit-1")] {
        let pair = draft.pair(from, to);
        (pair.allowed, pair.lost, pair.via) = (false, true, None);
        pair.answers.values_mut().for_each(|it| *it = None);
    }
    let failed = |allowed, outcome, via: Option<Vec<Name>>| FailedProbe {
        from: "till-1".into(),
        to: "db-1".into(),
        at,
        service: "tcp 5432".into(),
        allowed,
        outcome,
        via,
        rules: if allowed { vec![rule("corp/allow/database", 12)] } else { Vec::new() },
    };
    let wrong = vec![
        failed(true, FailedOutcome::Nothing, Some(vec![name("exit-1")])),
        failed(true, FailedOutcome::Refused, Some(Vec::new())),
        failed(false, FailedOutcome::Answered, None),
    ];
    draft.verdict.tests.insert(
        name("database"),
        ProbesVerdict { test: Some(rule("corp/test/database", 30)), tried: 12, lost: 0, failed: wrong },
    );
    draft.verdict.tests.insert(name("short"), ProbesVerdict::default());
    let way = |seen: &[&str], test| WayVerdict {
        from: "staff-1".into(),
        to: "192.168.10.254".into(),
        at: "192.168.10.254".parse().unwrap(),
        expected: vec!["gateway-1".into()],
        seen: seen.iter().map(|it| (*it).to_owned()).collect(),
        test,
    };
    draft.verdict.ways = vec![
        way(&["gateway-1"], None),
        way(&["gateway-2", "gateway-3"], Some(rule("corp/test/short", 40))),
        way(&[], None),
    ];
    draft.verdict.nodes[3].missing.insert("db.corp".into());
    draft.verdict.untried.insert("db-1".into(), BTreeSet::from(["tcp 8081".into(), "udp 53".into()]));
    let network = draft.done();
    assert!(!network.is_good());
    insta::assert_snapshot!("failures", shown(network));
}

#[test]
fn a_step_is_shown_with_what_follows_and_what_is_wrong() {
    let step = |network: NetworkVerdict| StepVerdict {
        step: "corp/gw-1 is lost".into(),
        seconds: 5.24,
        follows: vec!["gw-2 carries corp/egress/office".into()],
        networks: vec![network],
    };
    let mut draft = Draft::new(&[("a", 1), ("b", 1)]);
    draft.pairs(|_, _| Some((&[], Carrier::Hub)));
    draft.pair("a", "b").answers.clear();
    let good = step(thirty().done());
    let bad = step(draft.done());
    let text = report::step(&good, 3, 4, WIDTH) + &report::step(&bad, 4, 4, WIDTH);
    let both = format!("{text}\n{}", report::steps(&[good, bad]));
    insta::assert_snapshot!("steps", both);
}
