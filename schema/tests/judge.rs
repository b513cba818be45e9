//! What tests in files assert, judged: a table of worlds with what becomes of each assertion.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;

use jiff::Timestamp;
use schema::advice::advice;
use schema::decode::{Declared, decode};
use schema::inventory::{Endpoints, Inventory, Joined, NodeId};
use schema::judge::explain::{Asked, Because, Explanation, Unresolved, explain, network_of};
use schema::judge::{self, Outcome, Verdict, access_of};
use schema::kinds::Kind;
use schema::rules;
use schema::scalars::{Identity, WireGuardKey};
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;

fn declared(text: &str) -> Declared {
    let source = Source { name: "a.kdl".into(), text: text.into(), language: Language::Kdl };
    let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    assert!(report.is_empty(), "{report:#?}");
    let (declared, report) = decode(documents);
    assert!(report.is_empty(), "{report:#?}");
    let report = rules::check(&declared.snapshot, &declared.source_map);
    assert!(!report.has_errors(), "{report:#?}");
    declared
}

/// A network with these fields and objects.
fn network(fields: &str, objects: &str) -> Declared {
    declared(&format!("network \"corp\" ipv4=\"10.40.0.0/24\" {fields} {{\n{objects}\n}}"))
}

/// The inventory in which nodes have joined, each with a last number of its address and tags.
fn joined(nodes: &[(&str, u8, &[&str])]) -> Inventory {
    let mut inventory = Inventory::default();
    for (name, last, tags) in nodes {
        let joined = Joined {
            public_key: WireGuardKey([*last; 32]),
            identity: Identity([*last; 32]),
            addresses: BTreeSet::from([[10, 40, 0, *last].into()]),
            endpoints: Endpoints::default(),
            listen_port: 51_821,
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            key: None,
            claimed: false,
            joined: Timestamp::UNIX_EPOCH,
            problems: Vec::new(),
            os: "linux".into(),
        };
        inventory.put_node(NodeId::of(&"corp".parse().unwrap(), &name.parse().unwrap()), joined);
    }
    inventory
}

fn judged(declared: &Declared, inventory: &Inventory) -> Vec<Verdict> {
    judge::judge(&"corp".parse().unwrap(), &declared.snapshot, inventory)
}

/// What becomes of the assertions of one test: `+` for one that holds, else why it does not, after `!` for a
/// warning.
fn outcomes(fields: &str, objects: &str, assertions: &str, inventory: &Inventory) -> Vec<String> {
    let world = network(fields, &format!("{objects}\ntest \"t\" {{ {assertions} }}"));
    let verdicts = judged(&world, inventory);
    let outcome = |verdict: &Verdict| match (verdict.outcome, verdict.message.clone().unwrap_or_default()) {
        (Outcome::Holds, _) => "+".to_owned(),
        (Outcome::Warns, why) => format!("!{why}"),
        (Outcome::Fails, why) => why,
    };
    verdicts.iter().map(outcome).collect()
}

#[test]
fn whom_rules_keep_from_a_name_server_is_said_once_with_the_first_of_them() {
    let warned = |fields: &str, objects: &str, resolver: &str| -> Vec<String> {
        let world = network(fields, objects);
        let mut inventory = joined(&[("late", 77, &["web"])]);
        inventory.set_resolvers([resolver.parse().unwrap()].into());
        let network = "corp".parse().unwrap();
        let parts = (&world.snapshot, &inventory);
        let report = advice([&network], parts, parts, &world.source_map);
        report.problems().map(|problem| problem.message.to_string()).collect()
    };
    let nodes = r#"node "ns" ipv4="10.40.0.53" { tags "dns" }
        node "a"
        node "b"
        egress "office" via="a" ranges="192.0.2.0/24"
        ingress "front" via="a" { dns "9.9.9.9" }
        external-client "phone" via="front" public-key="xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=""#;
    let (to_all, both) = (r#"allow "dns" from="*" to="ns""#, ["10.40.0.53", "192.0.2.9"]);
    assert_eq!(warned("", nodes, both[0]), [""; 0], "everybody may open everything");
    for outside in ["192.0.3.1", "9.9.9.9"] {
        assert_eq!(warned("acl=\"deny\"", nodes, outside), [""; 0], "no rule is about {outside}");
    }
    assert_eq!(
        warned("acl=\"deny\"", nodes, both[0]),
        [
            "a and 2 more members of network corp may not open udp 53 at the name server 10.40.0.53 (COREDNS_ADDR): they do not resolve names of the network by it"
        ]
    );
    assert_eq!(warned("acl=\"deny\"", &format!("{nodes}\n{to_all}"), both[0]), [""; 0]);
    let udp = r#"allow "dns" from="*" to="tag:dns" proto="udp" ports="53""#;
    let warning = warned("acl=\"deny\"", &format!("{nodes}\n{udp}"), both[0]);
    assert!(warning.len() == 1 && warning[0].contains("may not open tcp 53"), "{warning:?}");
    assert!(warned("acl=\"deny\"", nodes, both[1])[0].contains("at the name server 192.0.2.9"));
    assert_eq!(
        warned("", nodes, "10.40.0.200"),
        [
            "members of network corp are given the name server 10.40.0.200 (COREDNS_ADDR), an address that nobody there has"
        ]
    );
    assert_eq!(warned("acl=\"deny\" name-service=#false", nodes, both[0]), [""; 0], "nobody is given one");
}

const COMPANY: &str = r#"
    node "web-1" { tags "web" }
    node "web-2" { tags "web" }
    node "db-1" { tags "db" }
    node "ops-1"
    group "ops" { nodes "ops-1" }
    allow "web-to-db" from="tag:web" to="tag:db" proto="tcp" ports="5432"
    allow "ping" from="*" to="tag:db" proto="icmp"
    allow "ops" from="ops" to="*"
"#;

#[test]
fn what_is_asserted_holds_or_fails_with_a_counterexample() {
    for (assertion, expected) in [
        (r#"reach from="tag:web" to="tag:db" proto="tcp" port=5432"#, "+"),
        // A port alone is one of TCP.
        (r#"reach from="tag:web" to="db-1" port=5432"#, "+"),
        (
            r#"reach from="tag:web" to="db-1" proto="udp" port=5432"#,
            "web-1 may open only tcp 5432, icmp at db-1 (and 1 more pair)",
        ),
        (r#"reach from="tag:web" to="db-1" proto="icmp""#, "+"),
        // Without a protocol it asks for everything.
        (r#"reach from="tag:web" to="db-1""#, "web-1 may open only tcp 5432, icmp at db-1 (and 1 more pair)"),
        (r#"reach from="ops" to="*""#, "+"),
        (r#"reach from="ops-1" to="10.40.0.0/24""#, "+"),
        (r#"reach from="*" to="tag:db" port=5432"#, "+"),
        // Rules are one way.
        (r#"no-reach from="tag:db" to="tag:web""#, "+"),
        (r#"reach from="db-1" to="web-1" port=80"#, "db-1 may open nothing at web-1"),
        // Without a protocol it asks for any.
        (
            r#"no-reach from="tag:web" to="tag:db""#,
            "web-1 may open tcp 5432, icmp at db-1, by corp/allow/ping, corp/allow/web-to-db (and 1 more pair)",
        ),
        (r#"no-reach from="tag:web" to="tag:db" port=22"#, "+"),
        (r#"no-reach from="*" to="tag:db" port=22"#, "ops-1 may open tcp 22 at db-1, by corp/allow/ops"),
        (r#"no-reach from="*" to="tag:db" port=22 except="ops""#, "+"),
        (
            r#"no-reach from="*" to="tag:db" port=5432 { except "ops" "web-1" }"#,
            "web-2 may open tcp 5432 at db-1, by corp/allow/web-to-db",
        ),
        // Nobody is counted against himself.
        (r#"no-reach from="db-1" to="db-1""#, "+"),
        (r#"no-reach from="tag:web" to="tag:web""#, "+"),
        // An empty side.
        (r#"reach from="10.40.0.200/32" to="db-1""#, "nobody is selected by from 10.40.0.200/32"),
        (r#"reach from="db-1" to="tag:none""#, "nobody is selected by to tag:none"),
        (r#"no-reach from="db-1" to="tag:none""#, "!nobody is selected by to tag:none"),
        (r#"no-reach from="ops" to="db-1" except="ops-1""#, "!nobody is selected by from ops less except"),
        (r#"path from="web-1" to="db-1""#, "+"),
        (r#"path from="db-1" to="web-1""#, "db-1 may open nothing at web-1"),
        (r#"path from="web-1" to="db-1" via="ops-1""#, "packets go from web-1 to db-1 directly"),
    ] {
        let found = outcomes("acl=\"deny\"", COMPANY, assertion, &Inventory::default());
        assert_eq!(found, [expected], "{assertion}");
    }
}

#[test]
fn where_everything_may_be_opened_everything_is_reached() {
    let nodes = r#"node "a"; node "b"; node "c""#;
    for (assertion, expected) in [
        (r#"reach from="*" to="*""#, "+"),
        (
            r#"no-reach from="a" to="*" port=22"#,
            "a may open tcp 22 at b, since the acl of network corp is allow (and 1 more pair)",
        ),
        (r#"path from="a" to="b""#, "+"),
    ] {
        assert_eq!(outcomes("", nodes, assertion, &Inventory::default()), [expected], "{assertion}");
    }
}

#[test]
fn packets_around_a_hub_pass_it_and_are_lost_without_it() {
    let world = r#"
        node "hub"; node "a"; node "b"; node "c"
        allow "a" from="a" to="*"
        allow "hub" from="hub" to="c"
    "#;
    for (assertion, expected) in [
        (r#"reach from="a" to="b""#, "+"),
        (
            r#"reach from="a" to="*" without-any-gateway=#true"#,
            "a does not reach b while the hub hub is away (and 1 more pair)",
        ),
        // Only the hub itself is exempt.
        (r#"reach from="a" to="hub" without-any-gateway=#true"#, "+"),
        (r#"reach from="hub" to="c" without-any-gateway=#true"#, "+"),
        // What no rule allows fails for that reason.
        (r#"reach from="b" to="c" without-any-gateway=#true"#, "b may open nothing at c"),
        (r#"path from="a" to="b" via="hub""#, "+"),
        (r#"path from="a" to="b""#, "packets go from a to b via hub"),
        (r#"path from="a" to="hub""#, "+"),
        (r#"path from="hub" to="c""#, "+"),
        (r#"path from="a" to="hub" via="hub""#, "packets go from a to hub directly"),
    ] {
        let found = outcomes("acl=\"deny\" hub=\"hub\"", world, assertion, &Inventory::default());
        assert_eq!(found, [expected], "{assertion}");
    }
    let open = outcomes(
        "hub=\"hub\"",
        r#"node "hub"; node "a"; node "b""#,
        r#"reach from="*" to="*"; reach from="*" to="*" without-any-gateway=#true; reach from="hub" to="*" without-any-gateway=#true"#,
        &Inventory::default(),
    );
    assert_eq!(open, ["+", "a does not reach b while the hub hub is away (and 1 more pair)", "+"]);
}

#[test]
fn a_node_and_its_relay_need_no_hub() {
    let world = r#"
        node "hub"; node "relay"; node "far"
        relay "r" via="relay" for="far"
        allow "all" from="*" to="*"
    "#;
    for (assertion, expected) in [
        (r#"reach from="far" to="relay" without-any-gateway=#true"#, "+"),
        (
            r#"reach from="far" to="hub" without-any-gateway=#true"#,
            "far does not reach hub while relay is away",
        ),
    ] {
        let found = outcomes("acl=\"deny\" hub=\"hub\"", world, assertion, &Inventory::default());
        assert_eq!(found, [expected], "{assertion}");
    }
}

#[test]
fn nobody_comes_from_the_internet_nor_from_a_part_of_it_and_what_one_gateway_has_is_no_pair() {
    let world = r#"
        node "gw"; node "gw-2"; node "a"
        egress "exit" via="gw" { ranges "0.0.0.0/0" "192.168.1.0/24" }
        egress "lab" via="gw" ranges="192.168.2.0/24"
        egress "far" via="gw-2" ranges="192.168.3.0/24"
        allow "in" to="a" { from "203.0.113.0/24" "192.168.1.0/24" }
        allow "all" from="192.168.1.0/24" { to "192.168.2.0/24" "192.168.3.0/24" }
    "#;
    for (assertion, expected) in [
        (r#"reach from="192.168.1.0/24" to="a""#, "+"),
        (
            r#"reach from="203.0.113.0/24" to="a""#,
            "203.0.113.0/24 does not reach a, since a way to the internet lets nobody in",
        ),
        (r#"no-reach from="203.0.113.0/24" to="a""#, "+"),
        (r#"reach from="192.168.1.0/24" to="192.168.3.0/24""#, "+"),
        // What passes there does so outside of the network.
        (r#"no-reach from="192.168.1.0/24" to="192.168.2.0/24""#, "+"),
    ] {
        let found = outcomes("acl=\"deny\"", world, assertion, &Inventory::default());
        assert_eq!(found, [expected], "{assertion}");
    }
}

#[test]
fn a_key_stands_for_two_more_nodes_unless_it_may_be_used_once_or_claims_names() {
    let within = |keys: &str| {
        let world = format!("{keys}\nallow \"web\" from=\"tag:web\" to=\"tag:web\" proto=\"tcp\"");
        let assertion = r#"no-reach from="tag:web" to="tag:web""#;
        outcomes("acl=\"deny\"", &world, assertion, &Inventory::default()).concat()
    };
    let both =
        "a node that joins with the key k may open tcp at another one, by corp/allow/web (and 1 more pair)";
    assert_eq!(within(r#"access-key "k" uses=50 { tags "web" }"#), both);
    assert_eq!(within(r#"access-key "k" uses="unlimited" { tags "web" }"#), both);
    assert_eq!(within(r#"access-key "k" uses=1 { tags "web" }"#), "+", "nobody is counted against himself");
    assert_eq!(within(r#"access-key "k" { tags "web" }"#), "+", "it may be used once");
    assert_eq!(
        within(r#"node "a"; access-key "k" { tags "web"; for "a" }"#),
        "+",
        "it stands for the node that it names, with its tags"
    );
    assert_eq!(
        within(r#"node "a" { tags "web" }; access-key "k" { tags "web" }"#),
        "a may open tcp at a node that joins with the key k, by corp/allow/web (and 1 more pair)"
    );
}

#[test]
fn nodes_that_have_joined_count_with_the_tags_and_addresses_that_they_have() {
    let world = r#"
        node "db-1" ipv4="10.40.0.9" { tags "db" }
        allow "low" from="10.40.0.0/29" to="tag:db" proto="udp"
    "#;
    let assertion = r#"no-reach from="*" to="tag:db"; reach from="tag:lab" to="db-1" proto="udp""#;
    let found = |inventory: &Inventory| outcomes("acl=\"deny\"", world, assertion, inventory);
    assert_eq!(found(&Inventory::default()), ["nobody is selected by from tag:lab", "+"]);
    assert_eq!(
        found(&joined(&[("laptop", 7, &["lab"]), ("far", 20, &[])])),
        ["+", "laptop may open udp at db-1, by corp/allow/low"]
    );
    assert_eq!(found(&joined(&[("far", 20, &["lab"])])), ["far may open nothing at db-1", "+"]);
}

#[test]
fn a_declared_node_is_judged_at_the_address_that_it_would_get() {
    let world = r#"
        node "a"; node "b" ipv4="10.40.0.2"; node "c"
        allow "first" from="10.40.0.1/32" to="*"
        allow "third" from="10.40.0.3/32" to="b" proto="icmp"
    "#;
    let assertion = r#"reach from="a" to="*"; reach from="c" to="b" proto="icmp"; no-reach from="b" to="*""#;
    assert_eq!(outcomes("acl=\"deny\"", world, assertion, &Inventory::default()), ["+", "+", "+"]);
    let taken = joined(&[("laptop", 1, &[])]);
    assert_eq!(
        outcomes("acl=\"deny\"", world, assertion, &taken),
        ["a may open only icmp at b (and 2 more pairs)", "c may open nothing at b", "+"]
    );
}

#[test]
fn several_rules_give_what_is_asked_for_together() {
    let world = r#"
        node "a"; node "b"
        allow "tcp" from="a" to="b" proto="tcp" { ports "1-1000" "1001-65535" }
        allow "udp" from="a" to="b" proto="udp"
        allow "icmp" from="a" to="b" proto="icmp"
    "#;
    let assertion = r#"reach from="a" to="b" proto="tcp"; reach from="a" to="b""#;
    assert_eq!(
        outcomes("acl=\"deny\"", world, assertion, &Inventory::default()),
        ["+", "a may open only tcp 1-65535, udp, icmp at b"],
        "other protocols are not in it"
    );
}

#[test]
fn a_verdict_says_where_the_assertion_and_the_rule_are() {
    let text = "network \"corp\" ipv4=\"10.40.0.0/24\" acl=\"deny\" {\n  node \"a\"; node \"b\"\n  allow \"all\" from=\"a\" to=\"b\"\n  \
                test \"t\" {\n    reach from=\"a\" to=\"b\"\n    no-reach from=\"b\" to=\"a\"\n    no-reach from=\"*\" to=\"b\" except=\"b\"\n  }\n}\n";
    let world = declared(text);
    let verdicts = judged(&world, &Inventory::default());
    let problems: Vec<_> = verdicts.iter().filter_map(|it| it.problem(&world.source_map)).collect();
    let [problem] = &*problems else { panic!("{problems:#?}") };
    let line = |at: schema::value::Location| text[..at.span.start as usize].matches('\n').count() + 1;
    assert_eq!(problem.at.map(line), Some(7));
    assert_eq!(
        problem.related.iter().map(|(at, what)| (line(*at), &**what)).collect::<Vec<_>>(),
        [(3, "this rule lets it through")]
    );
    assert_eq!(
        problem.message,
        "`no-reach from * to b except b` of corp/test/t does not hold: a may open everything at b, by corp/allow/all"
    );
}

fn asked(text: &str) -> Asked {
    text.parse().unwrap()
}

/// The answer to a question, with what it rests on.
fn answer(world: &Declared, from: &str, to: &str, port: Option<u16>) -> Explanation {
    let (from, to) = (asked(from), asked(to));
    let none = Inventory::default();
    let network = network_of(&from, &to, &world.snapshot, &none).unwrap();
    explain(&network, (&from.selector, &to.selector), &access_of(None, port), &world.snapshot, &none).unwrap()
}

#[test]
fn an_explanation_names_the_rules_or_why_there_is_none() {
    let world = network("acl=\"deny\" hub=\"ops-1\"", COMPANY);
    let said = |from: &str, to: &str, port| {
        let Explanation { answer, because, opens, rules, via, .. } = answer(&world, from, to, port);
        let rules: Vec<_> = rules.iter().map(|rule| format!("{} {}", rule.id.name, rule.gives)).collect();
        let via = via.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        format!("{answer:?} {because:?} [{opens}] [{}] {via}", rules.join("; "))
    };
    for (from, to, port, expected) in [
        ("web-1", "db-1", Some(5432), "Yes Rules [tcp 5432, icmp] [web-to-db tcp 5432] ops-1"),
        ("web-1", "db-1", None, "Yes Rules [tcp 5432, icmp] [ping icmp; web-to-db tcp 5432] ops-1"),
        ("ops-1", "corp/db-1", Some(22), "Yes Rules [everything] [ops everything] "),
        ("web-1", "db-1", Some(22), "No OtherPorts [tcp 5432, icmp] [ping icmp; web-to-db tcp 5432] "),
        ("db-1", "web-1", Some(80), "No OtherDirection [nothing] [ping icmp; web-to-db tcp 5432] "),
        ("web-1", "web-2", None, "No NoRule [nothing] [] "),
        ("web-1", "web-1", None, "No SameMember [nothing] [] "),
        ("web-1", "192.168.7.0/24", None, "No Nobody [nothing] [] "),
        ("*", "db-1", Some(22), "Partly Rules [everything] [ops everything] "),
        ("tag:web", "10.40.0.1", None, "Yes Rules [tcp 5432, icmp] [ping icmp; web-to-db tcp 5432] ops-1"),
    ] {
        assert_eq!(said(from, to, port), expected, "{from} {to} {port:?}");
    }
    let partly = answer(&world, "*", "db-1", Some(22));
    assert_eq!(partly.except.map(|pair| (pair.from, pair.to)), Some(("web-1".into(), "db-1".into())));
    let open = network("", r#"node "a"; node "b""#);
    assert_eq!(answer(&open, "a", "b", Some(22)).because, Because::AclAllow);
}

#[test]
fn a_name_is_looked_for_in_every_network_and_an_ambiguous_one_lists_all() {
    let world = declared(
        "network \"corp\" ipv4=\"10.40.0.0/24\" { node \"a\"; node \"b\"; node \"only\" }\n\
         network \"lab\" ipv4=\"10.50.0.0/24\" { node \"a\"; node \"b\"; node \"x\" }",
    );
    let network = |from: &str, to: &str| {
        network_of(&asked(from), &asked(to), &world.snapshot, &Inventory::default())
            .map(|network| network.to_string())
            .map_err(|why| why.to_string())
    };
    assert_eq!(network("a", "only").as_deref(), Ok("corp"));
    assert_eq!(network("lab/a", "b").as_deref(), Ok("lab"));
    assert_eq!(network("a", "10.50.0.2").as_deref(), Ok("lab"));
    assert_eq!(network("a", "b").unwrap_err(), "several networks have a: corp/a, lab/a");
    assert_eq!(
        network("only", "x").unwrap_err(),
        "corp/only and lab/x are in different networks, and nothing leads from one network to another"
    );
    let unknown = network_of(&asked("a"), &asked("onyl"), &world.snapshot, &Inventory::default());
    assert!(
        matches!(&unknown, Err(Unresolved::Unknown { asked, known }) if asked == "onyl" && known.contains(&"only".into()))
    );
    assert!("Web".parse::<Asked>().is_err() && "corp/Web".parse::<Asked>().is_err());
    assert_eq!(asked("corp/10.40.0.7").to_string(), "corp/10.40.0.7/32");
}
