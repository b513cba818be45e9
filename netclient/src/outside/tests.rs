//! What a host is to have, worked out from Views.

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn into(interface: &str) -> Way {
    Way::Into(interface.to_owned())
}

fn ranges(texts: &[(&str, &str)]) -> BTreeMap<IpNet, Way> {
    texts.iter().map(|(range, interface)| (net(range), into(interface))).collect()
}

fn outside(texts: &[(&str, &str)]) -> Outside {
    Outside { ranges: ranges(texts), ..Outside::default() }
}

const DEFAULT: Slot = Slot { number: 0, mark: Mark(0x10) };

#[test]
fn longer_ranges_are_asked_first_and_each_spares_the_main_table_first() {
    let routing =
        outside(&[("10.40.0.0/16", "a"), ("10.40.9.0/24", "b"), ("fd40::/64", "a")]).routing(DEFAULT, true);
    let rules: Vec<_> =
        routing.rules.iter().map(|rule| format!("{} {} {:?}", rule.preference, rule.to, rule.act)).collect();
    assert_eq!(
        rules,
        [
            "4724 10.40.9.0/24 Main",
            "4725 10.40.9.0/24 Own",
            "4726 10.40.9.0/24 Unreachable",
            "4748 10.40.0.0/16 Main",
            "4749 10.40.0.0/16 Own",
            "4750 10.40.0.0/16 Unreachable",
            "4892 fd40::/64 Main",
            "4893 fd40::/64 Own",
            "4894 fd40::/64 Unreachable",
        ]
    );
    assert!(routing.routes.keys().all(|place| place.table == 5_182));
}

#[test]
fn without_a_filter_routes_stand_in_the_main_table_without_rules() {
    let routing = outside(&[("10.40.0.0/16", "a")]).routing(DEFAULT, false);
    assert_eq!((routing.rules.len(), routing.routes.keys().next().map(|place| place.table)), (0, Some(MAIN)));
}

#[test]
fn a_default_route_comes_last_refuses_without_a_link_and_leaves_links_to_the_main_table() {
    let routing = outside(&[("0.0.0.0/0", "a"), ("10.40.0.0/16", "a")]).routing(DEFAULT, true);
    let rules: Vec<_> =
        routing.rules.iter().map(|rule| (rule.preference, rule.to.to_string(), rule.act)).collect();
    assert_eq!(
        rules[3..],
        [(32_000, "0.0.0.0/0".to_owned(), Act::Main), (32_001, "0.0.0.0/0".to_owned(), Act::Own)],
        "and no rule refuses what it leaves aside"
    );
    let place = |range: &str, last| Place { table: 5_182, range: net(range), last };
    let expected = [
        (place("0.0.0.0/0", false), into("a")),
        (place("0.0.0.0/0", true), Way::Refused),
        (place("10.40.0.0/16", false), into("a")),
        (place("169.254.0.0/16", false), Way::Aside),
        (place("224.0.0.0/4", false), Way::Aside),
        (place("255.255.255.255/32", false), Way::Aside),
    ];
    assert_eq!(routing.routes, expected.into());
    let ipv6 = outside(&[("::/0", "a")]).routing(DEFAULT, true);
    let aside = ipv6.routes.iter().filter(|(_, way)| **way == Way::Aside);
    assert!(aside.map(|(place, _)| place.range).eq(["fe80::/10", "ff00::/8"].map(net)));
}

#[test]
fn what_is_carried_for_others_leaves_the_ways_of_the_host_itself_alone() {
    let routes = [("0.0.0.0/0", Some("gw")), ("192.168.10.0/24", None), ("192.168.11.0/24", Some("gw"))];
    let mut hub = reaching("one", "10.40.0.1/24", &routes);
    for range in ["0.0.0.0/0", "192.168.10.0/24"].map(net) {
        let route = schema::view::Route { carried: true, ..(*hub.routes[&range]).clone() };
        hub.routes.insert(range, route.into());
    }
    let outside = Outside::of([("nm-one", &hub)]);
    for filtered in [true, false] {
        let routing = outside.routing(DEFAULT, filtered);
        let from = |range: &str| -> Vec<_> {
            let rules = routing.rules.iter().filter(|rule| rule.to == net(range));
            rules.map(|rule| (rule.act, rule.from.as_deref())).collect()
        };
        let carried = [Act::Main, Act::Own, Act::Unreachable].map(|act| (act, Some("nm-one")));
        assert_eq!(from("0.0.0.0/0"), carried[..2]);
        assert_eq!(from("192.168.10.0/24"), carried);
        let own = [Act::Main, Act::Own, Act::Unreachable].map(|act| (act, None));
        assert_eq!(from("192.168.11.0/24"), own[..if filtered { 3 } else { 0 }]);
        let table = |range: &str| routing.routes.keys().find(|it| it.range == net(range)).map(|it| it.table);
        assert_eq!((table("0.0.0.0/0"), table("192.168.10.0/24")), (Some(5_182), Some(5_182)));
        assert_eq!(table("192.168.11.0/24"), Some(if filtered { 5_182 } else { MAIN }));
    }
    // What the host reaches for itself through another network goes first.
    let own = reaching("two", "10.41.0.1/24", &[("0.0.0.0/0", Some("gw"))]);
    let both = Outside::of([("nm-one", &hub), ("nm-two", &own)]);
    assert_eq!(both.ranges[&net("0.0.0.0/0")], into("nm-two"));
    assert!(both.passing.keys().eq([&net("192.168.10.0/24")]));
}

#[test]
fn what_the_host_carries_itself_is_left_to_its_main_table_and_goes_back_into_no_network() {
    let outside = Outside {
        forwarded: ["10.0.0.0/8", "172.16.0.0/12", "192.168.10.0/24"].map(net).into(),
        reached: ["10.0.0.0/8", "192.168.10.0/24"].map(net).into(),
        ..outside(&[("8.0.0.0/6", "a"), ("10.40.0.0/16", "a"), ("10.1.0.0/16", "a")])
    };
    let kept = |outside: &Outside, filtered| -> Vec<_> {
        let rules = outside.routing(DEFAULT, filtered).rules.into_iter();
        rules
            .filter(|rule| rule.act == Act::WholeMain)
            .map(|rule| (rule.preference, rule.to.to_string()))
            .collect()
    };
    assert_eq!(kept(&outside, true), [(4_772, "10.0.0.0/8".to_owned())], "no other is in a range");
    assert_eq!(kept(&outside, false), []);
    let text = outside.filter(DEFAULT.mark());
    let held = "10.0.0.0-10.0.255.255, 10.2.0.0-10.39.255.255, 10.41.0.0-10.255.255.255, 172.16.0.0-172.31.255.255, \
                192.168.10.0-192.168.10.255";
    let line =
        format!("  set held4 {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {held} }} }}\n");
    assert!(text.contains(&line), "longer ranges are others'\n{text}");
    let judged = text.find("oifname @ours ip daddr @held4 counter drop").expect("it is dropped");
    assert!(Some(judged) < text.find("iifname . oifname @between accept"), "whatever else may pass\n{text}");
}

/// A View of a network with the range of its address, which reaches others: each through a gateway, or
/// through none at present.
fn reaching(network: &str, address: &str, routes: &[(&str, Option<&str>)]) -> View {
    let mut view = crate::tunnels::tests::view(network, address);
    for (range, via) in routes {
        let via = via.map(|name| name.parse().expect("a name"));
        let route = schema::view::Route { via, class: Default::default(), carried: false };
        view.routes.insert(net(range), route.into());
    }
    view
}

#[test]
fn what_nobody_carries_is_refused_and_of_two_networks_the_first_has_a_range() {
    let routes = [("192.168.10.0/24", Some("gw")), ("192.168.11.0/24", None), ("10.41.0.0/24", None)];
    let (one, two) = (reaching("one", "10.40.0.1/24", &routes), reaching("two", "10.41.0.1/24", &routes));
    let all = Outside::of([("nm-one", &one), ("nm-two", &two)]);
    let ways: Vec<_> = all.ranges.iter().map(|(range, way)| (range.to_string(), way.clone())).collect();
    let expected = [
        ("10.40.0.0/24", into("nm-one")),
        ("10.41.0.0/24", into("nm-two")),
        ("192.168.10.0/24", into("nm-one")),
        ("192.168.11.0/24", Way::Refused),
    ];
    assert_eq!(ways, expected.map(|(range, way)| (range.to_owned(), way)));
    let routing = all.routing(DEFAULT, true);
    let refused = Place { table: 5_182, range: net("192.168.11.0/24"), last: false };
    assert_eq!(routing.routes[&refused], Way::Refused, "by a route, whatever a shorter one leads to");
    let carried = outside(&[("192.168.11.0/24", "a")]).routing(DEFAULT, true);
    let mut gone = outside(&[]);
    gone.ranges.insert(net("192.168.11.0/24"), Way::Refused);
    let steps = routing_steps(&gone.routing(DEFAULT, true), &carried);
    assert_eq!(steps, [RoutingStep::PutRoute(refused, Way::Refused)], "and never in the clear meanwhile");
}

#[test]
fn what_the_host_is_connected_to_of_what_is_reached_through_others_is_named() {
    let routes = [("10.0.0.0/8", Some("gw-a")), ("10.1.0.0/16", Some("gw-b")), ("0.0.0.0/0", Some("gw-c"))];
    let view = reaching("corp", "10.40.0.1/24", &routes);
    let problems = |connected: &str| {
        let found = range_problems(&view, &[("eth1".to_owned(), net(connected))]);
        found.into_iter().map(|it| (it.code.to_string(), it.message.to_string())).collect::<Vec<_>>()
    };
    for (connected, code, words) in [
        ("10.1.0.0/16", NodeProblem::RANGE_CONNECTED, "10.1.0.0/16, which corp reaches through gw-b"),
        ("10.1.2.0/24", NodeProblem::RANGE_SHADOWED, "10.1.2.0/24, a part of 10.1.0.0/16"),
        ("10.2.0.0/16", NodeProblem::RANGE_SHADOWED, "not reached through gw-a"),
        ("10.40.0.0/24", NodeProblem::RANGE_CONNECTED, "10.40.0.0/24, the range of corp"),
    ] {
        let [(found, message)] = &problems(connected)[..] else { panic!("one problem: {connected}") };
        assert!(found == code && message.contains(words), "{connected}: {found} {message}");
    }
    for beside in ["192.168.1.0/24", "8.0.0.0/5"] {
        assert_eq!(problems(beside), [], "beside a default route: {beside}");
    }
}

#[test]
fn where_a_range_behind_a_gateway_leads_is_found_by_an_address_that_only_it_has() {
    let routes = [
        ("10.0.0.0/8", Some("gw")),
        ("10.255.0.0/16", Some("gw")),
        ("10.9.0.0/16", None),
        ("::/0", Some("gw")),
    ];
    let view = reaching("corp", "10.40.0.1/24", &routes);
    let all = Outside::of([("nm-corp", &view)]);
    let connected = [("eth0".to_owned(), net("10.255.255.0/24"))];
    let found = samples(&view, &all, "nm-corp", &connected).map(|(range, to)| format!("{range} {to}"));
    let found: Vec<_> = found.collect();
    assert_eq!(found, ["10.0.0.0/8 10.0.0.3", "10.255.0.0/16 10.255.0.3", "::/0 2001:db8::1"]);
    let problem = routed_elsewhere(&view, net("10.0.0.0/8"), [10, 0, 0, 3].into(), "wg0");
    assert!(problem.message.contains("10.0.0.3, which corp reaches through gw, leave this host by wg0"));
}

#[test]
fn agents_of_several_directories_do_not_meet() {
    let usual = Path::new("/etc/netclient");
    let candidates = |directory: &str| Slot::candidates(Path::new(directory), usual, Mark::default());
    let default = DEFAULT;
    let all = candidates("/var/lib/nmserver/client");
    let other = all[0];
    assert_eq!(candidates("/etc/netclient"), [DEFAULT]);
    let mut numbers: Vec<_> = all.iter().map(|slot| slot.number()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    let names = |slot: Slot| (slot.table(), slot.protocol(), slot.filter());
    assert_eq!(names(default), (5_182, 200, "nm-own".to_owned()));
    assert_ne!(names(default), names(other));
    for slot in (0..=OTHERS).map(|number| Slot { number, ..DEFAULT }) {
        let of = |text: &str| slot.preference(&text.parse().expect("a range"));
        let (first, last) = (of("10.0.0.1/32"), of("2000::/3") + 2);
        assert!(first > 1_000 && last < first + PREFERENCES && last < 5_210, "{slot:?} {first} {last}");
        let default = of("::/0");
        assert!((32_000..32_764).contains(&(default + 1)) && default % LAST_PREFERENCES == 0, "{default}");
    }
}

#[test]
fn a_mark_is_one_bit_and_a_rule_with_another_one_is_replaced() {
    for (text, bits) in [("0x10", Some(0x10)), ("16", Some(16)), ("0x80000000", Some(1 << 31))] {
        assert_eq!(text.parse::<Mark>().ok().map(Mark::bits), bits, "{text}");
    }
    for text in ["", "0", "0x0", "0x30", "3", "0x100000000", "ten", "-1", "0X10"] {
        let why = text.parse::<Mark>().expect_err("it is no mark");
        assert!(why.contains("0x100"), "{text:?}: {why}");
    }
    let of = |mark| outside(&[("10.40.0.0/16", "a")]).routing(Slot { mark, ..DEFAULT }, true);
    let steps = routing_steps(&of(Mark(0x100)), &of(Mark(0x10)));
    assert!(
        matches!(
            &*steps,
            [
                RoutingStep::RemoveRule(Rule { unmarked: 0x10, .. }),
                RoutingStep::RemoveRule(Rule { unmarked: 0x10, .. }),
                RoutingStep::AddRule(Rule { unmarked: 0x100, .. }),
                RoutingStep::AddRule(Rule { unmarked: 0x100, .. }),
            ]
        ),
        "{steps:?}"
    );
}

#[test]
fn of_two_networks_with_one_range_the_second_has_a_problem() {
    let view = |network: &str, range: &str| crate::tunnels::tests::view(network, range);
    let (one, two) = (view("one", "10.40.0.1/24"), view("two", "10.40.0.7/24"));
    let (wide, inside) = (view("wide", "10.41.0.1/16"), view("inside", "10.41.9.1/24"));
    let all = Outside::of([("nm-one", &one), ("nm-two", &two), ("nm-w", &wide), ("nm-i", &inside)]);
    let codes = |view: &View, interface: &str| {
        let problems = range_problems(view, &all.led_elsewhere(interface));
        problems.into_iter().map(|problem| (problem.code.to_string(), problem.message)).collect::<Vec<_>>()
    };
    assert_eq!(codes(&one, "nm-one"), []);
    let [(code, message)] = &codes(&two, "nm-two")[..] else { panic!("one problem") };
    assert!(code == NodeProblem::RANGE_CONNECTED && message.contains("nm-one"), "{message}");
    let [(code, message)] = &codes(&wide, "nm-w")[..] else { panic!("one problem") };
    assert!(code == NodeProblem::RANGE_SHADOWED && message.contains("nm-i"), "{message}");
    assert_eq!(codes(&inside, "nm-i"), []);
}

#[test]
fn where_a_range_leads_is_found_by_a_member_that_no_other_interface_is_connected_to() {
    let peer = |address: &str| schema::view::Peer {
        public_key: Some(schema::scalars::WireGuardKey([1; 32])),
        endpoint: None,
        addresses: [address.parse().expect("an address")].into(),
        via: None,
        class: Default::default(),
        carries: false,
        named: true,
    };
    let mut view = crate::tunnels::tests::view("corp", "10.40.0.1/24");
    for (name, address) in [("b", "10.40.0.2"), ("c", "10.40.0.3")] {
        view.peers.insert(name.parse().expect("a name"), peer(address).into());
    }
    let all = Outside::of([("nm-corp", &view)]);
    let sample = |all: &Outside, connected: &[&str]| {
        let connected: Vec<_> =
            connected.iter().map(|range| ("x".to_owned(), range.parse().expect("a range"))).collect();
        samples(&view, all, "nm-corp", &connected)
            .map(|(range, to)| format!("{range} {to}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(sample(&all, &[]), ["10.40.0.0/24 10.40.0.2"]);
    assert_eq!(sample(&all, &["10.40.0.2/32"]), ["10.40.0.0/24 10.40.0.3"]);
    assert_eq!(sample(&all, &["10.40.0.0/24"]), [""; 0]);
    assert_eq!(sample(&Outside::default(), &[]), [""; 0], "it is not routed");
}

#[test]
fn rules_go_in_the_reverse_order_and_before_their_route() {
    let wanted = outside(&[("10.40.0.0/16", "a")]).routing(DEFAULT, true);
    let up = routing_steps(&wanted, &Routing::default());
    assert!(matches!(
        &*up,
        [
            RoutingStep::PutRoute(Place { table: 5_182, .. }, _),
            RoutingStep::AddRule(Rule { act: Act::Main, .. }),
            RoutingStep::AddRule(Rule { act: Act::Own, .. }),
            RoutingStep::AddRule(Rule { act: Act::Unreachable, .. }),
        ]
    ));
    let down = routing_steps(&Routing::default(), &wanted);
    assert!(matches!(
        &*down,
        [
            RoutingStep::RemoveRule(Rule { act: Act::Unreachable, .. }),
            RoutingStep::RemoveRule(Rule { act: Act::Own, .. }),
            RoutingStep::RemoveRule(Rule { act: Act::Main, .. }),
            RoutingStep::RemoveRoute(Place { table: 5_182, .. }),
        ]
    ));
    assert_eq!(routing_steps(&wanted, &wanted), []);
    let unread = Routing { unread: true, ..Routing::default() };
    assert_eq!(routing_steps(&unread, &wanted), [], "what is not known to be gone stays");
    let moved = outside(&[("10.40.0.0/16", "b")]).routing(DEFAULT, true);
    let steps = routing_steps(&moved, &wanted);
    assert!(matches!(&*steps, [RoutingStep::PutRoute(_, way)] if *way == into("b")), "{steps:?}");
}

#[test]
fn the_filter_names_what_is_ours_and_who_the_members_are() {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let outside = Outside {
        interfaces: ["nm-corp".to_owned()].into(),
        closed: ["nm-corp".to_owned()].into(),
        between: ["nm-lab".to_owned()].into(),
        forwarded: [net("192.168.10.0/24"), net("0.0.0.0/0")].into(),
        exits: ["eth0".to_owned()].into(),
        opened: [["eth0".to_owned(), "eth1".to_owned()].into(), BTreeSet::new()],
        own: [address("10.40.0.1"), address("fd40::1")].into(),
        members: [address("10.40.0.2"), address("10.40.0.3")].into(),
        ranges: ranges(&[("10.40.0.0/16", "nm-corp"), ("10.40.9.0/24", "nm-lab"), ("10.41.0.0/16", "nm-x")]),
        ..Outside::default()
    };
    let text = outside.filter(DEFAULT.mark());
    for line in [
        "  set ours { type ifname; elements = { \"nm-corp\" } }\n",
        "  set closed { type ifname; elements = { \"nm-corp\" } }\n",
        "  set between { type ifname . ifname; elements = { \"nm-lab\" . \"nm-lab\" } }\n",
        "  set exits { type ifname; elements = { \"eth0\" } }\n",
        "  set opened4 { type ifname; elements = { \"eth0\", \"eth1\" } }\n",
        "  set opened6 { type ifname; }\n",
        "  set behind4 { type ipv4_addr; flags interval; auto-merge; elements = { 192.168.10.0/24 } }\n",
        "  set own4 { type ipv4_addr; elements = { 10.40.0.1 } }\n",
        "  set own6 { type ipv6_addr; elements = { fd40::1 } }\n",
        "  set members4 { type ipv4_addr; elements = { 10.40.0.2, 10.40.0.3 } }\n",
        "  set members6 { type ipv6_addr; }\n",
        "  set ranges4 { type ipv4_addr; flags interval; auto-merge; elements = { 10.40.0.0/15 } }\n",
        "  set ranges6 { type ipv6_addr; flags interval; auto-merge; }\n",
        "    meta mark & 0x10 == 0x10 ct mark set ct mark | 0x10\n",
        "    iifgroup 28269 accept\n",
        "    ct status dnat ct original ip daddr @own4 accept\n",
        "    ct status dnat ct original ip6 daddr @own6 accept\n",
        "    oifname @ours icmp type redirect counter drop",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    let last = text.split("iifname != @closed accept").nth(1).expect("what is of networks");
    assert!(!last.contains("ct status dnat accept"), "what is published on other addresses\n{text}");
    let all = Outside {
        ranges: ranges(&[("10.40.0.0/16", "a"), ("0.0.0.0/0", "a"), ("::/0", "a")]),
        ..outside.clone()
    };
    let text = all.filter(DEFAULT.mark());
    for line in ["auto-merge; elements = { 0.0.0.0/0 } }", "auto-merge; elements = { ::/0 } }"] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(!text.contains('*'), "no wildcard: others' interfaces may be called alike\n{text}");
    let mut other = outside.clone();
    other.ranges.clear();
    assert!(!other.same_filter(&outside), "the filter keeps marks of what the ranges hold");
}
