//! What a plan warns of, and of what it does not: each case beside the nearest one that is harmless.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;

use jiff::Timestamp;
use schema::advice::advice;
use schema::compile::reconcile::reconcile;
use schema::decode::{Declared, decode};
use schema::inventory::{Endpoints, Inventory, Joined, NodeId};
use schema::kinds::Kind;
use schema::report::Severity;
use schema::scalars::{Identity, Name, NetworkName, WireGuardKey};
use schema::source_map::SourceMap;
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;

fn declared(text: &str) -> Declared {
    let source = Source { name: "a.kdl".into(), text: text.into(), language: Language::Kdl };
    let (documents, mut report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    let (declared, problems) = decode(documents);
    report.append(problems);
    report.append(schema::rules::check(&declared.snapshot, &declared.source_map));
    assert!(report.is_empty(), "{report:#?}\n{text}");
    declared
}

/// The network corp with these fields and objects.
fn corp(fields: &str, objects: &str) -> String {
    format!("network \"corp\" {fields} {{\n{objects}\n}}")
}

/// An inventory in which nodes have joined with addresses that end in a number.
fn joined(nodes: &[(&str, u8)]) -> Inventory {
    let mut inventory = Inventory::default();
    for (name, number) in nodes {
        let node = Joined {
            public_key: WireGuardKey([*number; 32]),
            identity: Identity([*number; 32]),
            addresses: BTreeSet::from([format!("10.40.0.{number}").parse().unwrap()]),
            endpoints: Endpoints::default(),
            listen_port: 51_821,
            tags: BTreeSet::new(),
            key: None,
            claimed: *name != "late",
            joined: Timestamp::UNIX_EPOCH,
            problems: Vec::new(),
            os: "linux".into(),
        };
        let name: Name = name.parse().unwrap();
        inventory.put_node(NodeId::of(&"corp".parse().unwrap(), &name), node);
    }
    inventory
}

/// What is said of a plan, each with its code and what stands at its place; nothing is said of the plan after it.
fn said(before: &str, after: &str, inventory: &Inventory) -> Vec<String> {
    let network: NetworkName = "corp".parse().unwrap();
    let (was, is) = (declared(before).snapshot, declared(after));
    let later = reconcile(inventory, &is.snapshot, &[], Timestamp::UNIX_EPOCH).unwrap();
    let (was, now) = ((&was, inventory), (&is.snapshot, &later));
    assert!(advice([&network], now, now, &SourceMap::default()).is_empty(), "nothing changes\n{after}");
    let report = advice([&network], was, now, &is.source_map);
    let said = report.problems().map(|problem| {
        assert_eq!(problem.code.severity(), Severity::Warning);
        assert!(problem.help.is_some() && problem.id.is_some(), "{problem:?}");
        let at = problem.at.map(|at| &after[at.span.start as usize..at.span.end as usize]);
        format!("{} {}: {}", problem.code.name(), at.unwrap_or("(nowhere)"), problem.message)
    });
    said.collect()
}

/// The codes alone.
fn codes(before: &str, after: &str, inventory: &Inventory) -> Vec<String> {
    let said = said(before, after, inventory);
    said.iter().map(|text| text.split(' ').next().unwrap().trim_start_matches("plan::").to_owned()).collect()
}

const IPV4: &str = "ipv4=\"10.40.0.0/24\"";
const DENY: &str = "ipv4=\"10.40.0.0/24\" acl=\"deny\"";

#[test]
fn an_entry_is_left_behind_by_a_range_or_by_the_node_that_had_its_address() {
    let entry = |range: &str, objects: &str| {
        corp(&format!("ipv4={range:?}"), &format!("node \"web\"; node \"db\"\n{objects}"))
    };
    let here = joined(&[("web", 2), ("db", 3)]);
    let (old, new) = ("10.40.0.0/24", "10.50.0.0/24");
    let api = r#"dns "api" a="10.40.0.99""#;
    assert_eq!(
        said(&entry(old, api), &entry(new, api), &here),
        [
            "plan::old_address \"10.40.0.99\": 10.40.0.99 of corp/dns/api is in 10.40.0.0/24, the range that network corp has no longer after the plan: no member can have it"
        ]
    );
    assert_eq!(codes(&entry(old, api), &entry("10.40.0.0/16", api), &here), [""; 0], "a wider range");
    assert_eq!(codes(&entry(old, api), &entry(new, r#"dns "api" node="web""#), &here), [""; 0]);
    let behind = format!("{api}; egress \"lan\" via=\"web\" ranges=\"10.40.0.0/24\"");
    assert_eq!(codes(&entry(old, api), &entry(new, &behind), &here), [""; 0], "it is behind a gateway");
    assert_eq!(codes("", &entry(new, api), &here), [""; 0], "it never was of the network; files say so");

    let www = r#"dns "www" a="10.40.0.2""#;
    assert_eq!(
        said(&entry(old, www), &entry(new, www), &here),
        [
            "plan::old_address \"10.40.0.2\": 10.40.0.2 of corp/dns/www was the address of web, which has 10.50.0.2 after the plan: www.corp would lead to nobody"
        ]
    );
    let reserved =
        |address: &str, more: &str| corp(IPV4, &format!("node \"web\" ipv4={address:?}\n{www}\n{more}"));
    let nobody = Inventory::default();
    assert_eq!(codes(&reserved("10.40.0.2", ""), &reserved("10.40.0.7", ""), &nobody), ["old_address"]);
    assert_eq!(codes(&reserved("10.40.0.7", ""), &reserved("10.40.0.2", ""), &nobody), [""; 0]);
    let taken = "node \"db\" ipv4=\"10.40.0.2\"";
    let said_of_it = said(&reserved("10.40.0.2", ""), &reserved("10.40.0.7", taken), &nobody);
    assert!(said_of_it[0].ends_with("would lead to db, which has that address then"), "{said_of_it:?}");
    let gone = corp(IPV4, &format!("node \"db\"\n{www}"));
    let said_of_it = said(&entry(old, www), &gone, &here);
    assert!(said_of_it[0].contains("web, which is no member after the plan"), "{said_of_it:?}");
}

#[test]
fn an_entry_that_is_written_together_with_who_has_its_address_means_that_member() {
    let world = |a: &str, b: &str, entry: &str| {
        corp(IPV4, &format!("node \"a\" ipv4={a:?}\nnode \"b\" ipv4={b:?}\n{entry}"))
    };
    let none = Inventory::default();
    let (before, entry) = (("10.40.0.2", "10.40.0.3"), r#"dns "b-alias" a="10.40.0.2""#);
    let was = |entry: &str| world(before.0, before.1, entry);
    let swapped = |entry: &str| world("10.40.0.7", "10.40.0.2", entry);
    assert_eq!(codes(&was(""), &swapped(entry), &none), [""; 0], "the plan makes it");
    let other = r#"dns "b-alias" a="10.40.0.3""#;
    assert_eq!(codes(&was(other), &swapped(entry), &none), [""; 0], "the plan changes its address");
    let old = ["old_address"];
    assert_eq!(codes(&was(entry), &swapped(&format!("{entry} ttl=\"5m\"")), &none), old, "but for that");
    let freed = world("10.40.0.7", "10.40.0.3", entry);
    assert_eq!(codes(&was(""), &freed, &none), old, "nobody has it after the plan");

    let helps = |entry: &str, after: &str| {
        let network: NetworkName = "corp".parse().unwrap();
        let (was, is) = (declared(&was(entry)).snapshot, declared(after));
        let report = advice([&network], (&was, &none), (&is.snapshot, &none), &is.source_map);
        report.problems().map(|it| it.help.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(
        helps(entry, &swapped(entry)),
        [
            "write node=\"a\" instead of the address if that node is meant, or node=\"b\" if that is, so that the entry follows it"
        ]
    );
    let two = r#"dns "b-alias" { a "10.40.0.2" "10.40.0.99"; }"#;
    assert_eq!(
        helps(two, &swapped(two)),
        ["write 10.40.0.7, if a is meant"],
        "a node in place of both is wrong"
    );
}

#[test]
fn a_key_for_several_hosts_without_an_end_is_named_when_it_is_made_or_widened() {
    let key = |fields: &str| corp(IPV4, &format!("node \"a\"; node \"b\"\naccess-key \"k\" {fields}"));
    let none = Inventory::default();
    assert_eq!(
        said("", &key("uses=5"), &none),
        [
            "plan::endless_key \"k\": corp/access-key/k never expires, and lets 5 hosts join: whoever finds its token can do so years from now"
        ]
    );
    let endless = ["endless_key"];
    assert_eq!(codes("", &key("uses=\"unlimited\""), &none), endless);
    assert_eq!(codes(&key("uses=5 expires=\"30d\""), &key("uses=5"), &none), endless);
    assert_eq!(codes(&key("uses=5"), &key("uses=6"), &none), endless);
    assert_eq!(codes(&key("uses=5"), &key("uses=\"unlimited\""), &none), endless);
    for calm in ["", "uses=1", "for=\"a\"", "uses=5 expires=\"30d\"", "{ for \"a\" \"b\"; }"] {
        assert_eq!(codes("", &key(calm), &none), [""; 0], "{calm}");
    }
    assert_eq!(codes(&key("uses=5"), &key("uses=4"), &none), [""; 0], "it was so, and for more");
    assert_eq!(codes(&key("uses=5"), &key("uses=5 { tags \"x\"; }"), &none), [""; 0]);
}

#[test]
fn a_single_gateway_or_relay_is_named_with_the_fifth_member_that_depends_on_it() {
    let nodes =
        |count: usize| (0..count).map(|it| format!("node \"n{it}\" {{ tags \"n\"; }}\n")).collect::<String>();
    let gateway = |count: usize, via: &str, more: &str| {
        let egress = format!("egress \"lan\" {{ via {via}; ranges \"192.0.2.0/24\"; {more} }}");
        corp(IPV4, &format!("{}node \"gw\"; node \"gw-2\"\n{egress}", nodes(count)))
    };
    let none = Inventory::default();
    assert_eq!(
        said("", &gateway(4, "\"gw\"", ""), &none),
        [
            "plan::single_carrier \"gw\": 5 members depend on gw alone, by corp/egress/lan: while it is away, none of them reaches 192.0.2.0/24"
        ]
    );
    let single = ["single_carrier"];
    assert_eq!(codes(&gateway(3, "\"gw\"", ""), &gateway(4, "\"gw\"", ""), &none), single, "the fifth");
    let both = "\"gw\" \"gw-2\"";
    assert_eq!(codes(&gateway(9, both, ""), &gateway(9, "\"gw\"", ""), &none), single, "the second goes");
    assert_eq!(codes("", &gateway(3, "\"gw\"", ""), &none), [""; 0], "four");
    assert_eq!(codes("", &gateway(9, both, ""), &none), [""; 0]);
    assert_eq!(codes(&gateway(5, "\"gw\"", ""), &gateway(9, "\"gw\"", ""), &none), [""; 0], "it was so");
    assert_eq!(codes("", &gateway(9, "\"gw\"", "for \"n0\" \"n1\""), &none), [""; 0]);
    assert_eq!(codes("", &gateway(9, "\"gw\"", "for \"tag:n\""), &none), single);

    let relay = |count: usize, via: &str| {
        corp(
            IPV4,
            &format!(
                "{}node \"gw\"; node \"gw-2\"\nrelay \"r\" {{ via {via}; for \"tag:n\"; }}",
                nodes(count)
            ),
        )
    };
    assert_eq!(codes("", &relay(5, "\"gw\""), &none), single);
    assert_eq!(codes("", &relay(4, "\"gw\""), &none), [""; 0]);
    assert_eq!(codes("", &relay(5, both), &none), [""; 0]);
    let hub = corp(&format!("{IPV4} hub=\"gw\""), &format!("{}node \"gw\"", nodes(9)));
    assert_eq!(codes("", &hub, &none), [""; 0], "of a hub there is one only");
}

#[test]
fn whom_no_rule_lets_by_a_single_gateway_or_relay_does_not_depend_on_it() {
    let nodes: String = (0..6).map(|it| format!("node \"n{it}\" {{ tags \"n\"; }}\n")).collect();
    let world = |objects: &str| {
        corp(DENY, &format!("{nodes}node \"gw\"\nallow \"near\" from=\"tag:n\" to=\"tag:n\"\n{objects}"))
    };
    let lan = |rule: &str| world(&format!("egress \"lan\" via=\"gw\" ranges=\"192.0.2.0/24\"\n{rule}"));
    let (none, single) = (Inventory::default(), ["single_carrier"]);
    let one = lan(r#"allow "lan" from="n0" to="192.0.2.0/24""#);
    assert_eq!(codes("", &one, &none), [""; 0], "one of six may");
    let all = lan(r#"allow "lan" from="tag:n" to="192.0.2.0/24""#);
    assert_eq!(codes("", &all, &none), single);
    assert_eq!(codes(&one, &all, &none), single, "the rule makes the others depend on it");
    assert_eq!(
        codes("", &lan(r#"allow "lan" from="tag:n" to="192.0.2.0/28""#), &none),
        single,
        "a part of it"
    );
    assert_eq!(codes("", &lan(r#"allow "lan" from="192.0.2.0/24" to="tag:n""#), &none), single, "from there");

    let relay = |rule: &str| {
        corp(DENY, &format!("{nodes}node \"gw\"; relay \"r\" {{ via \"gw\"; for \"tag:n\"; }}\n{rule}"))
    };
    let said_of = |rule: &str| {
        let said = said("", &relay(rule), &none);
        said.into_iter().find(|it| it.contains("single_carrier")).unwrap_or_default()
    };
    assert_eq!(said_of(r#"allow "two" from="n0" to="n1""#), "", "two of six reach anybody");
    let five = said_of(r#"allow "five" from="n0" { to "n1" "n2" "n3" "n4"; }"#);
    assert!(five.contains("5 members depend on gw alone, by corp/relay/r"), "{five}");
}

#[test]
fn a_relay_for_external_clients_alone_carries_nobody() {
    let relay = |tags: &str| {
        corp(
            IPV4,
            &format!(
                "node \"gw\"; node \"r\"; node \"n\" {{ tags {tags}; }}\ningress \"front\" via=\"gw\"
                external-client \"phone\" via=\"front\" {{ tags \"far\"; }}
                relay \"far\" via=\"r\" for=\"tag:far\""
            ),
        )
    };
    assert_eq!(
        said("", &relay("\"near\""), &Inventory::default()),
        [
            "plan::relay_of_nobody \"tag:far\": corp/relay/far is for external clients alone, which their ingress carries: it carries nobody's traffic"
        ]
    );
    assert_eq!(codes("", &relay("\"far\""), &Inventory::default()), [""; 0]);
}

#[test]
fn a_node_is_isolated_if_it_opens_nothing_and_nobody_opens_anything_at_it() {
    let nodes = "node \"a\"; node \"b\" { tags \"db\"; }\nnode \"c\"\n";
    let world = |rules: &str| corp(DENY, &format!("{nodes}{rules}"));
    let none = Inventory::default();
    let to_db = r#"allow "r" from="a" to="tag:db""#;
    assert_eq!(
        said("", &world(to_db), &none),
        [
            "plan::isolated_node \"c\": nobody may open anything at corp/node/c, and it may open nothing: it reaches no member"
        ]
    );
    let isolated = ["isolated_node"];
    let all = r#"allow "r" from="*" to="tag:db""#;
    assert_eq!(codes(&world(all), &world(to_db), &none), isolated, "the plan brings it about");
    assert_eq!(codes("", &world(all), &none), [""; 0], "c opens something");
    let at_c = r#"allow "r" from="a" to="*""#;
    assert_eq!(codes("", &world(at_c), &none), [""; 0], "somebody opens something at c");
    let mtu = |mtu: u32| world(to_db).replacen("acl", &format!("mtu={mtu} acl"), 1);
    assert_eq!(codes(&mtu(1400), &mtu(1380), &none), [""; 0], "it was so");
    let to_itself =
        world("allow \"r\" from=\"a\" to=\"tag:db\"\nallow \"s\" { from \"c\" \"a\"; to \"c\"; }");
    assert_eq!(codes("", &to_itself, &none), [""; 0], "a opens something at c");
    let open = corp(IPV4, nodes);
    assert_eq!(codes("", &open, &none), [""; 0]);
    let carries = world(&format!(
        "{to_db}\negress \"lan\" via=\"c\" ranges=\"192.0.2.0/24\"\nallow \"lan\" from=\"a\" to=\"192.0.2.0/24\""
    ));
    assert_eq!(codes("", &carries, &none), [""; 0], "a gateway is of use without");
    assert_eq!(codes("", &corp(DENY, "node \"a\""), &none), [""; 0], "there is nobody else");
    let many = corp(DENY, &format!("{nodes}node \"d\"; node \"e\""));
    assert_eq!(
        said("", &many, &none),
        [
            "plan::isolated_node \"deny\": nobody may open anything at a, b, c and 2 more nodes of network corp, and they may open nothing"
        ],
        "a network without rules is said once"
    );
    let late = joined(&[("a", 1), ("b", 2), ("c", 3), ("late", 4)]);
    let known = said(&world(all), &world(to_db), &late);
    assert!(
        known.iter().any(|it| it.starts_with("plan::isolated_node (nowhere): ")),
        "undeclared: {known:?}"
    );
}

#[test]
fn a_rule_is_covered_by_one_that_allows_all_of_it_whoever_joins() {
    let world = |rules: &str| {
        let objects =
            "node \"a\" { tags \"web\"; }\nnode \"b\" { tags \"db\" \"web\"; }\ngroup \"g\" nodes=\"a\"
            access-key \"k\" { tags \"web\" \"db\"; }
            egress \"lan\" { via \"a\" \"b\"; ranges \"192.0.2.0/24\"; }
            allow \"0-lan\" from=\"tag:web\" to=\"192.0.2.0/24\" proto=\"tcp\" ports=\"1-100\"\n";
        corp(DENY, &format!("{objects}{rules}"))
    };
    let none = Inventory::default();
    let covered = |narrow: &str, wide: &str| {
        let rules = format!("allow \"narrow\" {narrow}\nallow \"wide\" {wide}");
        codes("", &world(&rules), &none)
    };
    let wide = r#"from="tag:web" to="tag:db""#;
    let rules =
        format!("allow \"narrow\" from=\"a\" to=\"b\" proto=\"tcp\" ports=\"22\"\nallow \"wide\" {wide}");
    let said_of_it = [
        "plan::rule_covered \"narrow\": corp/allow/narrow has no effect: all that it allows is allowed by corp/allow/wide already",
    ];
    assert_eq!(said("", &world(&rules), &none), said_of_it);
    let narrow_alone = world(rules.split('\n').next().unwrap());
    assert_eq!(said(&narrow_alone, &world(&rules), &none), said_of_it, "the wide one is new");
    for narrow in
        [r#"from="g" to="tag:db""#, r#"from="a" to="b""#, r#"from="tag:web" to="tag:db" proto="udp""#]
    {
        assert_eq!(covered(narrow, r#"from="*" to="*""#), ["rule_covered"], "{narrow}");
    }
    assert_eq!(covered(r#"from="a" to="192.0.2.7/32" proto="tcp" ports="22""#, wide), ["rule_covered"]);
    assert_eq!(covered(wide, wide), ["rule_covered"], "one of two that are equal");
    for other in [
        r#"from="tag:web" to="tag:web""#,
        r#"from="*" to="tag:db" proto="tcp""#,
        r#"from="10.40.0.0/25" to="tag:db""#,
        r#"{ from "a"; to "tag:db" "192.0.2.0/24"; }"#,
    ] {
        assert_eq!(covered(other, wide), [""; 0], "{other}");
    }
    assert_eq!(
        covered(r#"from="a" to="192.0.2.0/24" proto="tcp" ports="99-101""#, wide),
        [""; 0],
        "one port more"
    );
    let udp = r#"from="tag:web" to="tag:db" proto="udp""#;
    assert_eq!(covered(wide, udp), ["rule_covered"], "the other way around: {udp}");
    let mtu = |mtu: u32| world(&rules).replacen("acl", &format!("mtu={mtu} acl"), 1);
    assert_eq!(codes(&mtu(1400), &mtu(1380), &none), [""; 0], "it was so");

    assert_eq!(codes("", &world("allow \"self\" from=\"b\" to=\"b\""), &none), ["rule_of_one"]);
    assert_eq!(
        codes("", &world("allow \"self\" from=\"g\" to=\"a\""), &none),
        ["rule_of_one"],
        "a group of one"
    );
    assert_eq!(
        codes("", &world("allow \"self\" from=\"tag:db\" to=\"tag:db\""), &none),
        [""; 0],
        "several may have it"
    );
}

#[test]
fn a_route_that_no_rule_lets_anybody_use_is_named_with_the_rule_to_write() {
    let world = |fields: &str, side: &str, rules: &str| {
        let egress = format!("egress \"lan\" {{ via \"gw\"; ranges \"192.0.2.0/24\"; {side} }}");
        corp(
            fields,
            &format!(
                "node \"gw\"; node \"a\"; node \"b\"\nallow \"m\" from=\"*\" to=\"*\"\n{egress}\n{rules}"
            ),
        )
    };
    let none = Inventory::default();
    assert_eq!(
        said("", &world(DENY, "for \"a\" \"b\"", ""), &none),
        [
            "plan::route_without_rule \"lan\": corp/egress/lan gives a, b a route to 192.0.2.0/24, but no rule lets any of them open anything there"
        ]
    );
    let route = ["route_without_rule"];
    let allow = |from: &str| format!("allow \"lan\" from={from:?} to=\"192.0.2.0/24\"");
    assert_eq!(codes("", &world(DENY, "", ""), &none), route, "for every member");
    assert_eq!(codes("", &world(DENY, "for \"a\"", &allow("b")), &none), route, "for another");
    assert_eq!(codes(&world(DENY, "", &allow("a")), &world(DENY, "", ""), &none), route, "the rule goes");
    for (side, from) in [("", "a"), ("for \"a\" \"b\"", "a"), ("for \"a\"", "*")] {
        assert_eq!(codes("", &world(DENY, side, &allow(from)), &none), [""; 0], "{side} {from}");
    }
    let part = "allow \"lan\" from=\"a\" to=\"192.0.2.7/32\"";
    assert_eq!(codes("", &world(DENY, "", part), &none), [""; 0], "a part of it is something");
    let from_there = "allow \"lan\" from=\"192.0.2.0/24\" to=\"a\"";
    assert_eq!(codes("", &world(DENY, "for \"a\"", from_there), &none), [""; 0], "answers need the route");
    let mtu = |mtu: u32| world(&format!("{DENY} mtu={mtu}"), "", "");
    assert_eq!(codes(&mtu(1400), &mtu(1380), &none), [""; 0], "it was so");
}

#[test]
fn a_range_around_the_endpoint_of_a_node_is_named_when_it_is_made() {
    let mut inventory = joined(&[("a", 1), ("b", 2), ("c", 3)]);
    for (name, seen) in [("a", "192.0.2.9"), ("b", "192.0.2.10"), ("c", "198.51.100.7")] {
        let id = NodeId::of(&"corp".parse().unwrap(), &name.parse().unwrap());
        let node = (**inventory.node(&id).unwrap()).clone();
        let endpoints = Endpoints { seen: seen.parse().ok(), ..Endpoints::default() };
        inventory.put_node(id, Joined { endpoints, ..node });
    }
    let nodes = "node \"a\"; node \"b\"; node \"c\"";
    let around = corp("ipv4=\"192.0.2.0/24\"", nodes);
    let text = said(&corp(IPV4, nodes), &around, &inventory);
    assert!(
        text[0].starts_with(
            "plan::hidden_endpoint \"192.0.2.0/24\": the range 192.0.2.0/24 of network corp holds"
        ) && text[0].contains("the endpoint of corp/a and of 1 more node:"),
        "{text:?}"
    );
    assert_eq!(
        codes(&around, &corp("ipv4=\"192.0.2.0/25\"", nodes), &inventory),
        [""; 0],
        "it was so before"
    );
    assert_eq!(codes(&corp(IPV4, nodes), &corp("ipv4=\"10.60.0.0/24\"", nodes), &inventory), [""; 0]);
}

#[test]
fn a_way_to_the_internet_for_one_family_alone_is_named() {
    let world = |ranges: &str| {
        let egress = match ranges {
            "" => String::new(),
            ranges => format!("egress \"exit\" via=\"a\" {{ ranges {ranges}; }}"),
        };
        corp(IPV4, &format!("node \"a\"; node \"b\"\n{egress}"))
    };
    let inventory = joined(&[("a", 1), ("b", 2)]);
    let (ipv4, both) = (world("\"0.0.0.0/0\""), world("\"0.0.0.0/0\" \"::/0\""));
    assert_eq!(codes(&world(""), &ipv4, &inventory), ["half_exit"]);
    assert_eq!(codes(&both, &ipv4, &inventory), ["half_exit"]);
    assert_eq!(codes(&world(""), &both, &inventory), [""; 0]);
    assert_eq!(codes(&world(""), &world("\"192.168.10.0/24\""), &inventory), [""; 0]);
}
