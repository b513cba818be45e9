//! Tables of networks, as text and as a model of what the kernel makes of them.

use proptest::prelude::*;
use schema::access::{Ports, Protocol};
use schema::scalars::WireGuardKey;
use schema::view::Route;

use super::*;
use crate::ranges::by_longest_prefix;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn class(name: &str) -> ClassId {
    ClassId::of(name.as_bytes())
}

fn tcp(port: u16) -> Access {
    Access::of(Some(Protocol::Tcp), Some(Ports::from_iter([port..=port])))
}

fn peer(number: u8, of: &str) -> Arc<Peer> {
    Arc::new(Peer {
        public_key: Some(WireGuardKey([number; 32])),
        endpoint: None,
        addresses: [address(&format!("10.9.0.{number}")), address(&format!("fd09::{number}"))].into(),
        via: None,
        class: class(of),
        carries: false,
        named: true,
    })
}

/// A View with access rules: peers, each with its number and class, and what classes may open.
fn view(peers: &[(u8, &str)], access: &[(&str, Access)]) -> View {
    let mut view = crate::tunnels::tests::view("corp", "10.9.255.1/16");
    view.interface.restricted = true;
    let named =
        |(number, of): &(u8, &str)| (format!("n{number}").parse().expect("a name"), peer(*number, of));
    view.peers = peers.iter().map(named).collect();
    view.access = access.iter().map(|(name, access)| (class(name), Arc::new(access.clone()))).collect();
    view
}

fn filter(view: &View) -> Filter {
    Filter::of("wg0", view).expect("the network has access rules")
}

fn changes(before: &View, after: &View) -> FilterChanges {
    FilterChanges::between(before, after, &ViewDelta::between(before, after))
}

fn step(before: &View, after: &View) -> Option<FilterStep> {
    filter(before).step(&changes(before, after))
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn range(text: &str) -> IpNet {
    text.parse().expect("a range")
}

/// Adds an egress: its ranges, each with its class; without an interface and with NAT.
fn forward(view: &mut View, egress: &str, ranges: &[(&str, &str)]) {
    let ranges = ranges.iter().map(|(it, of)| (range(it), class(of))).collect();
    view.forwards.insert(name(egress), Arc::new(Forward { ranges, interface: None, nat: true }));
}

fn guard(view: &mut View, of: &str, from: &[(&str, Access)]) {
    let from = from.iter().map(|(from, access)| (class(from), access.clone())).collect();
    view.guarded.insert(class(of), Arc::new(from));
}

/// Has the node carry a peer.
fn carry(view: &mut View, number: u8) {
    let name = name(&format!("n{number}"));
    let client = Peer { via: Some(view.node.clone()), ..(*view.peers[&name]).clone() };
    view.peers.insert(name, Arc::new(client));
}

/// The lines of a chain.
fn lines(view: &View, chain: &str) -> Vec<String> {
    filter(view).rules.script().chains.remove(chain).unwrap_or_default()
}

/// What a set of addresses holds, as elements; absent: there is none.
fn set(view: &View, name: &str) -> Option<String> {
    let intervals = filter(view).intervals().remove(name)?;
    let elements: Vec<_> = intervals.iter().map(ToString::to_string).collect();
    Some(elements.join(", "))
}

#[test]
fn a_network_without_access_rules_has_no_table() {
    let mut open = view(&[(1, "web")], &[]);
    open.interface.restricted = false;
    assert_eq!(Filter::of("wg0", &open), None);
    assert_eq!(without_filter(&open), open, "and everybody is given to WireGuard");
}

#[test]
fn the_table_leads_from_members_to_what_their_classes_may_open() {
    let all_but_ssh = Access::everything().without(&tcp(22));
    let some = tcp(80).or(&Access::of(Some(Protocol::Udp), None)).or(&Access::of(Some(Protocol::Icmp), None));
    let all = view(
        &[(1, "web"), (2, "admin"), (3, "audit"), (4, "none")],
        &[("web", some), ("admin", Access::everything()), ("audit", all_but_ssh)],
    );
    let text = filter(&all).text();
    let [web, admin, audit] = ["web", "admin", "audit"].map(class);
    for part in [
        format!("  set t_{web} {{ type inet_service; flags interval; elements = {{ 80 }} }}\n"),
        format!(
            "  chain c_{web} {{\n    meta l4proto tcp ct original proto-dst @t_{web} accept\n    \
             meta l4proto udp accept\n    ct original protocol {{ icmp, icmpv6 }} accept\n  }}\n"
        ),
        format!("  chain c_{admin} {{\n    accept\n  }}\n"),
        format!("  set t_{audit} {{ type inet_service; flags interval; elements = {{ 0-21, 23-65535 }} }}\n"),
        "    ct original protocol != { tcp, udp, icmp, icmpv6 } accept\n".to_owned(),
        format!("10.9.0.1 : jump c_{web}"),
        format!("fd09::2 : jump c_{admin}"),
        "  set own4 { type ipv4_addr; elements = { 10.9.255.1 } }\n  set own6 { type ipv6_addr; }\n"
            .to_owned(),
        "    oifname \"wg0\" ct direction reply jump judge\n".to_owned(),
        "counter drop".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} in\n{text}");
    }
    assert!(!text.contains("10.9.0.4"), "who may open nothing is in no map\n{text}");
    for placeholder in ["INTERFACE", "EXIT", "EGRESS", "VERDICT", "IP ", "#"] {
        assert!(!text.contains(placeholder), "{text}");
    }
}

#[test]
fn only_a_hub_passes_on_between_members_unjudged() {
    let mut hub = view(&[], &[]);
    let between = "iifname \"wg0\" oifname \"wg0\" accept";
    assert!(!filter(&hub).text().contains(between));
    hub.interface.forward = true;
    let text = filter(&hub).text();
    let forward = text.split("hook forward").nth(1).expect("there is one");
    let at = |rule| forward.find(rule).expect("it is there");
    assert!(at(between) < at("jump judge"), "before what judges\n{text}");
    assert!(at("asked elsewhere") < at(between), "but not what comes by another interface\n{text}");
}

#[test]
fn one_more_member_and_one_less_are_elements_of_their_own() {
    let access = [("web", tcp(80))];
    let (two, three) =
        (view(&[(1, "web"), (2, "web")], &access), view(&[(1, "web"), (2, "web"), (3, "web")], &access));
    let third: BTreeSet<_> =
        peer(3, "web").addresses.iter().map(|address| Element::member(*address, class("web"))).collect();
    let none = BTreeSet::new();
    assert_eq!(step(&two, &three), Some(FilterStep::Elements { gone: none.clone(), new: third.clone() }));
    assert_eq!(step(&three, &two), Some(FilterStep::Elements { gone: third, new: none }));
    assert_eq!(step(&two, &two), None);
}

#[test]
fn a_member_that_changes_its_class_is_in_one_of_them_at_any_time() {
    let access = [("web", tcp(80)), ("db", tcp(5432))];
    let step = step(&view(&[(1, "web")], &access), &view(&[(1, "db")], &access));
    let Some(FilterStep::Elements { gone, new }) = &step else { panic!("{step:?}") };
    let of = |elements: &BTreeSet<Element>, of: &str| -> Vec<_> {
        assert!(elements.iter().all(|it| it.interval.class == Some(class(of))), "{step:?}");
        elements.iter().map(|it| it.interval.first).collect()
    };
    assert_eq!(of(gone, "web"), of(new, "db"));
}

#[test]
fn one_more_client_and_one_less_are_elements_unless_it_is_the_first_of_its_class() {
    let with = |clients: &[u8]| {
        let peers: Vec<_> = clients.iter().map(|number| (*number, "phone")).chain([(1, "web")]).collect();
        let mut view = view(&peers, &[("phone", tcp(80))]);
        for number in clients {
            let client = view.peers.get_mut(&name(&format!("n{number}"))).expect("it is there");
            *client = Arc::new(Peer { via: Some(view.node.clone()), ..(**client).clone() });
        }
        let from = [(class("web"), tcp(22))].into();
        view.guarded.insert(class("phone"), Arc::new(from));
        view
    };
    let (one, two) = (with(&[2]), with(&[2, 3]));
    let Some(FilterStep::Elements { gone, new }) = step(&one, &two) else { panic!("{:?}", step(&one, &two)) };
    let sets: Vec<_> = new.iter().map(|it| (&*it.set, it.intervals)).collect();
    let of = |family: &str| format!("to{family}_{}", class("phone"));
    let [to4, to6] = [of("4"), of("6")];
    let expected = [
        ("clients4", true),
        ("clients6", true),
        (&to4, true),
        (&to6, true),
        ("who4", false),
        ("who6", false),
    ];
    assert_eq!((gone.len(), sets), (0, expected.to_vec()));
    assert_eq!(step(&two, &one), Some(FilterStep::Elements { gone: new, new: gone }));
    for (before, after) in [(with(&[]), &one), (one.clone(), &with(&[]))] {
        assert!(matches!(step(&before, after), Some(FilterStep::Commands(_))), "rules come and go");
    }
}

#[test]
fn a_class_that_changes_is_one_transaction_and_no_member_is_touched() {
    let before = view(&[(1, "web")], &[("web", tcp(80))]);
    let after = view(&[(1, "web")], &[("web", Access::of(Some(Protocol::Udp), None))]);
    let changed = step(&before, &after);
    let Some(FilterStep::Commands(commands)) = &changed else { panic!("{changed:?}") };
    let web = class("web");
    let expected = format!(
        "flush chain inet nm-access-wg0 c_{web}\n\
         delete set inet nm-access-wg0 t_{web}\n\
         table inet nm-access-wg0 {{\n  chain c_{web} {{\n    meta l4proto udp accept\n  }}\n}}\n"
    );
    assert_eq!(*commands, expected);
}

#[test]
fn a_class_and_who_enters_or_leaves_it_are_one_transaction() {
    let without = view(&[(1, "web"), (2, "db")], &[("web", tcp(80))]);
    let with = view(&[(1, "web"), (2, "db")], &[("web", tcp(80)), ("db", Access::everything())]);
    let db = class("db");
    let up = format!(
        "table inet nm-access-wg0 {{\n  chain c_{db} {{\n    accept\n  }}\n}}\n\
         add element inet nm-access-wg0 who4 {{ 10.9.0.2 : jump c_{db} }}\n\
         add element inet nm-access-wg0 who6 {{ fd09::2 : jump c_{db} }}\n"
    );
    assert_eq!(step(&without, &with), Some(FilterStep::Commands(up)));
    let down = format!(
        "delete element inet nm-access-wg0 who4 {{ 10.9.0.2 }}\n\
         delete element inet nm-access-wg0 who6 {{ fd09::2 }}\n\
         flush chain inet nm-access-wg0 c_{db}\n\
         delete chain inet nm-access-wg0 c_{db}\n"
    );
    assert_eq!(step(&with, &without), Some(FilterStep::Commands(down)));
}

#[test]
fn ports_of_a_class_change_in_their_set_alone() {
    let before = view(&[(1, "web")], &[("web", tcp(80))]);
    let after = view(&[(1, "web")], &[("web", tcp(443))]);
    let web = class("web");
    let expected =
        format!("flush set inet nm-access-wg0 t_{web}\nadd element inet nm-access-wg0 t_{web} {{ 443 }}\n");
    assert_eq!(step(&before, &after), Some(FilterStep::Commands(expected)));
}

#[test]
fn of_many_members_at_once_the_table_is_replaced() {
    let mut many = view(&[], &[("web", tcp(80))]);
    let none = many.clone();
    for number in 0..=u32::try_from(MOST_ELEMENTS).expect("few") {
        let [_, _, high, low] = number.to_be_bytes();
        let addresses = [IpAddr::from([10, 9, high, low])].into();
        let name = format!("n{number}").parse().expect("a name");
        many.peers.insert(name, Arc::new(Peer { addresses, ..(*peer(1, "web")).clone() }));
    }
    assert_eq!(step(&none, &many), Some(FilterStep::Table));
}

#[test]
fn an_address_counts_as_of_the_longest_range_and_in_the_network_s_own_only_members_are() {
    let own = [range("10.9.255.1/16"), range("fd09::1/64")].into();
    let ranges = [
        ("10.0.0.0/8", Some("wide")),
        ("10.1.0.0/16", Some("part")),
        ("10.1.2.0/24", None),
        ("192.168.7.0/24", Some("part")),
        ("10.9.0.0/16", Some("wide")),
        ("fd00::/8", Some("six")),
        ("255.255.255.0/24", Some("last")),
    ];
    let ranges = ranges.map(|(it, to)| (range(it), to));
    let shown: Vec<_> = by_longest_prefix(ranges, &own)
        .into_iter()
        .map(|((first, last), to)| format!("{first}-{last} {to}"))
        .collect();
    let expected = [
        "10.0.0.0-10.0.255.255 wide",
        "10.1.0.0-10.1.1.255 part",
        "10.1.3.0-10.1.255.255 part",
        "10.2.0.0-10.8.255.255 wide",
        "10.10.0.0-10.255.255.255 wide",
        "192.168.7.0-192.168.7.255 part",
        "255.255.255.0-255.255.255.255 last",
        "fd00::-fd08:ffff:ffff:ffff:ffff:ffff:ffff:ffff six",
        "fd09:0:0:1::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff six",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn who_is_in_a_range_is_judged_as_its_class_and_a_way_to_everything_is_no_source() {
    let mut all = view(&[(1, "web")], &[("lan", tcp(80))]);
    for (it, of) in
        [("0.0.0.0/0", "lan"), ("10.0.0.0/8", "lan"), ("10.1.0.0/16", "none"), ("fd77::/16", "lan")]
    {
        let route = Route { via: Some(name("n1")), class: class(of), carried: false };
        all.routes.insert(range(it), Arc::new(route));
    }
    let lan = class("lan");
    let four = format!(
        "10.0.0.0-10.0.255.255 : jump c_{lan}, 10.2.0.0-10.8.255.255 : jump c_{lan}, \
         10.10.0.0-10.255.255.255 : jump c_{lan}"
    );
    assert_eq!(set(&all, "ranges4"), Some(four));
    let six = format!("fd77::-fd77:ffff:ffff:ffff:ffff:ffff:ffff:ffff : jump c_{lan}");
    assert_eq!(set(&all, "ranges6"), Some(six));
    let judge = lines(&all, "judge");
    let at = |map| judge.iter().position(|line| line.contains(map)).expect("it is asked");
    assert!(at("@who4") < at("@ranges4") && at("@ranges6") < at("drop"), "{judge:?}");
    let none = view(&[(1, "web")], &[("lan", tcp(80))]);
    assert_eq!(lines(&none, "judge").len(), judge.len() - 2, "without ranges none is asked");
    assert_eq!(lines(&none, &chain(&lan)), lines(&all, &chain(&lan)));
}

#[test]
fn a_gateway_judges_what_is_opened_at_ranges_by_the_class_of_either_end() {
    let mut gateway = view(&[(1, "web"), (2, "ops"), (3, "none")], &[("web", tcp(22))]);
    gateway.interface.forward = true;
    forward(
        &mut gateway,
        "office",
        &[("192.168.10.0/24", "lan"), ("192.168.10.8/29", "printers"), ("fd50::/64", "lan")],
    );
    guard(&mut gateway, "lan", &[("web", tcp(80)), ("ops", Access::everything())]);
    guard(&mut gateway, "printers", &[("ops", tcp(631))]);
    let [lan, printers, web, ops] = ["lan", "printers", "web", "ops"].map(class);
    assert_eq!(
        set(&gateway, &format!("to4_{lan}")).as_deref(),
        Some("192.168.10.0-192.168.10.7, 192.168.10.16-192.168.10.255")
    );
    assert_eq!(set(&gateway, &format!("to4_{printers}")).as_deref(), Some("192.168.10.8-192.168.10.15"));
    let at_lan = format!("meta l4proto tcp ct original proto-dst @t_{web}_{lan} accept");
    assert_eq!(
        lines(&gateway, &chain(&web)),
        [
            format!("ct original ip daddr @to4_{lan} {at_lan}"),
            format!("ct original ip6 daddr @to6_{lan} {at_lan}"),
            "ct original ip daddr != @own4 return".to_owned(),
            "ct original ip6 daddr != @own6 return".to_owned(),
            format!("meta l4proto tcp ct original proto-dst @t_{web} accept"),
        ]
    );
    let rules = lines(&gateway, &chain(&ops));
    assert!(rules.contains(&format!("ct original ip daddr @to4_{lan} accept")), "{rules:?}");
    assert_eq!(rules.last().map(String::as_str), Some("ct original ip6 daddr != @own6 return"));
    assert_eq!(filter(&gateway).members().len(), 4, "whoever may open anything: {gateway:?}");
    let forward = lines(&gateway, "forward");
    let at = |rule: &str| forward.iter().position(|line| line == rule).unwrap_or_else(|| panic!("{rule}"));
    let to_office =
        r#"iifname "wg0" oifname != "wg0" oifgroup != 28269 ct original ip daddr @out4_office jump judge"#;
    assert!(at(to_office) < at(r#"iifname "wg0" counter drop comment "not for this node""#), "{forward:?}");
    assert_eq!(
        lines(&gateway, "masq")[1..],
        [
            r#"iifname "wg0" oifname != "wg0" oifgroup != 28269 ip daddr @out4_office masquerade"#,
            r#"iifname "wg0" oifname != "wg0" oifgroup != 28269 ip6 daddr @out6_office masquerade"#,
        ]
    );
    assert_eq!(set(&gateway, "out4_office").as_deref(), Some("192.168.10.0-192.168.10.255"));
}

#[test]
fn an_ingress_judges_what_is_opened_at_its_clients_and_nothing_else_between_members() {
    let mut ingress = view(&[(1, "web"), (2, "phone"), (3, "phone")], &[("phone", tcp(22))]);
    ingress.interface.forward = true;
    carry(&mut ingress, 2);
    guard(&mut ingress, "phone", &[("web", tcp(80))]);
    let phone = class("phone");
    assert_eq!(set(&ingress, "clients4").as_deref(), Some("10.9.0.2"), "the other one is elsewhere");
    assert_eq!(set(&ingress, &format!("to6_{phone}")).as_deref(), Some("fd09::2"));
    let forward = lines(&ingress, "forward");
    let at = |rule: &str| forward.iter().position(|line| line == rule).unwrap_or_else(|| panic!("{rule}"));
    let between = at(r#"iifname "wg0" oifname "wg0" accept"#);
    for judged in [
        r#"iifname "wg0" ct original ip daddr @clients4 jump judge"#,
        r#"oifname "wg0" ct original ip6 daddr @clients6 jump judge"#,
    ] {
        assert!(at(judged) < between, "{forward:?}");
    }
    assert!(lines(&ingress, "masq").is_empty() && !filter(&ingress).text().contains("masq"));
    // What the node itself opens there is judged as well, and what comes back.
    let own = |of: &str| {
        let mut own = ingress.clone();
        own.interface.class = class(of);
        lines(&own, "own")
    };
    let dropped = "counter drop comment \"no access rule allows it\"".to_owned();
    assert_eq!(own("web"), [format!("jump {}", chain(&class("web"))), dropped.clone()]);
    assert_eq!(own("ops"), [dropped], "a class that may open nothing");
    assert!(
        lines(&ingress, "out")
            .contains(&r#"oifname "wg0" ct original ip daddr @clients4 jump own"#.to_owned())
    );
    let arriving = lines(&ingress, "in");
    let at = |rule: &str| arriving.iter().position(|line| line == rule).unwrap_or_else(|| panic!("{rule}"));
    let answers = at(r#"iifname "wg0" ct direction reply accept"#);
    assert!(at(r#"iifname "wg0" ct original ip daddr @clients4 jump own"#) < answers, "{arriving:?}");
}

#[test]
fn a_gateway_of_a_network_without_access_rules_forwards_to_its_ranges_alone() {
    let mut gateway = view(&[(1, "web")], &[]);
    gateway.interface.restricted = false;
    gateway.interface.forward = true;
    forward(&mut gateway, "office", &[("192.168.10.0/24", "")]);
    let exit = Forward {
        ranges: [(range("0.0.0.0/0"), ClassId::default())].into(),
        interface: "eth1".parse().ok(),
        nat: false,
    };
    gateway.forwards.insert(name("exit"), Arc::new(exit));
    assert_eq!(
        lines(&gateway, "forward"),
        [
            "type filter hook forward priority filter; policy accept;",
            r#"iifname "wg0" oifname "wg0" accept"#,
            r#"iifname "wg0" ct direction reply accept"#,
            r#"iifname "wg0" ct original ip daddr @own4 accept"#,
            r#"iifname "wg0" ct original ip6 daddr @own6 accept"#,
            r#"iifname "wg0" oifname "eth1" ct original ip daddr @out4_exit accept"#,
            r#"iifname "wg0" oifname != "wg0" oifgroup != 28269 ct original ip daddr @out4_office accept"#,
            r#"iifname "wg0" counter drop comment "not for this node""#,
        ]
    );
    assert_eq!(lines(&gateway, "masq").len(), 2, "the exit rewrites nothing");
    let out = set(&gateway, "out4_exit").expect("it has ranges");
    assert!(out.starts_with("0.0.0.0-10.8.255.255, 10.10.0.0-192.168.9.255, "), "{out}");
    let script = filter(&gateway).rules.script();
    assert!(script.chains.keys().eq(["forward", "masq"]), "{script:?}");
    assert_eq!(without_filter(&gateway), gateway, "nothing is judged");
    gateway.forwards.clear();
    assert_eq!(Filter::of("wg0", &gateway), None);
}

#[test]
fn a_gateway_that_cannot_judge_passes_nothing_on() {
    let mut gateway = view(&[(1, "admin")], &[("admin", Access::everything())]);
    gateway.interface.forward = true;
    assert!(without_filter(&gateway).interface.forward, "between members each of them judges");
    forward(&mut gateway, "office", &[("192.168.10.0/24", "lan")]);
    let left = without_filter(&gateway);
    assert!(!left.interface.forward && left.forwards.is_empty() && left.peers.len() == 1, "{left:?}");
}

#[test]
fn without_a_filter_only_who_may_open_everything_is_a_peer() {
    let mut all = view(
        &[(1, "admin"), (2, "web"), (3, "none"), (4, "web"), (5, "admin")],
        &[("admin", Access::everything()), ("web", Access::everything().without(&tcp(22)))],
    );
    let carried_by = |number: u8, carrier: &str, of: &str| {
        let via = Some(carrier.parse().expect("a name"));
        Arc::new(Peer { via, public_key: None, ..(*peer(number, of)).clone() })
    };
    all.peers.insert("n6".parse().expect("a name"), carried_by(6, "n1", "web"));
    all.peers.insert("n7".parse().expect("a name"), carried_by(7, "n1", "admin"));
    all.peers.insert("n8".parse().expect("a name"), carried_by(8, "n2", "admin"));
    let route = Route { via: "n1".parse().ok(), class: Default::default(), carried: false };
    all.routes.insert("192.168.7.0/24".parse().expect("a range"), Arc::new(route));
    let left = without_filter(&all);
    let allowed = |tunnel: schema::view::Tunnel| {
        let allowed: Vec<_> = tunnel.allowed_ips.iter().map(ToString::to_string).collect();
        (tunnel.peer.to_string(), allowed.join(" "))
    };
    let tunnels: BTreeMap<_, _> = left.tunnels().into_values().map(allowed).collect();
    // n2 carries for one that may open everything, and may not itself.
    let expected = [
        ("n1", "10.9.0.1/32 10.9.0.7/32 fd09::1/128 fd09::7/128"),
        ("n2", "10.9.0.8/32 fd09::8/128"),
        ("n5", "10.9.0.5/32 fd09::5/128"),
    ];
    let expected = expected.map(|(peer, allowed)| (peer.to_owned(), allowed.to_owned()));
    assert_eq!(tunnels, expected.into());
    let names: Vec<_> = left.resolutions().into_keys().map(ToString::to_string).collect();
    assert_eq!(names, ["a", "n1", "n5", "n7", "n8"], "whom no packet reaches has no name here");
}

/// A table as the kernel has it, and what it refuses.
#[derive(Clone, Debug, Default, PartialEq)]
struct Kernel {
    /// Of each set its declaration and its elements.
    sets: BTreeMap<String, (String, BTreeSet<String>)>,
    chains: BTreeMap<String, BTreeSet<String>>,
    /// The rules in their order.
    rules: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    fn of(view: &View) -> Self {
        let mut kernel = Self::default();
        kernel.run(&filter(view).text());
        kernel
    }

    fn run(&mut self, commands: &str) {
        let mut lines = commands.lines();
        while let Some(line) = lines.next() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                ["flush", "chain", _, _, name] => self.rules.get_mut(name).expect("it is there").clear(),
                ["flush", _, _, _, name] => self.sets.get_mut(name).expect("it is there").1.clear(),
                ["delete", "chain", _, _, name] => {
                    let leads = |text: &String| text.ends_with(&format!("jump {name}"));
                    assert!(!self.rules.values().flatten().any(leads), "no rule leads to {name}");
                    assert!(!self.sets.values().any(|it| it.1.iter().any(leads)), "nor an element");
                    self.chains.remove(name).expect("it is there");
                    self.rules.remove(name).expect("it is there");
                }
                ["delete", "set" | "map", _, _, name] => {
                    let named = format!("@{name}");
                    let names = |rule: &String| rule.split(' ').any(|word| word == named);
                    assert!(!self.rules.values().flatten().any(names), "no rule names {name}");
                    self.sets.remove(name).expect("it is there");
                }
                ["delete", "element", _, _, name, ..] => {
                    for key in elements(line) {
                        let of = |it: &String| *it == key || it.starts_with(&format!("{key} :"));
                        let held = &mut self.sets.get_mut(name).expect("it is there").1;
                        assert_eq!(held.extract_if(.., of).count(), 1, "{key} in {name}");
                    }
                }
                ["add", "element", _, _, name, ..] => {
                    for element in elements(line) {
                        let held = &mut self.sets.get_mut(name).expect("it is there").1;
                        assert!(held.insert(element), "it is new: {line}");
                    }
                }
                ["set" | "map", name, ..] => {
                    let kind = line.split(" elements").next().expect("a declaration").replace(" }", "");
                    let set = (kind, elements(line).into_iter().collect());
                    assert_eq!(self.sets.insert(name.to_owned(), set), None, "{name} is new");
                }
                ["chain", name, _] => {
                    let body = lines.by_ref().take_while(|line| *line != "  }").map(str::trim);
                    let (hook, rules): (Vec<_>, Vec<_>) =
                        body.map(ToOwned::to_owned).partition(|line| line.starts_with("type "));
                    self.chains.entry(name.to_owned()).or_default().extend(hook);
                    let all = self.rules.entry(name.to_owned()).or_default();
                    assert!(all.is_empty(), "{name} was emptied");
                    all.extend(rules);
                }
                ["table", ..] | ["}"] => {}
                _ => panic!("{line}"),
            }
        }
        let names = |rule: &String| {
            let named: Vec<_> = rule.split(' ').filter_map(|word| word.strip_prefix('@')).collect();
            named.into_iter().all(|name| self.sets.contains_key(name.trim_end_matches('}')))
        };
        assert!(self.rules.values().flatten().all(names), "every set is there: {self:?}");
    }
}

fn elements(line: &str) -> Vec<String> {
    let Some((_, rest)) = line.trim().rsplit_once("{ ").filter(|_| line.contains("element")) else {
        return Vec::new();
    };
    let rest = rest.trim_end_matches('}').trim_end().trim_end_matches('}').trim_end();
    rest.split(", ").map(ToOwned::to_owned).collect()
}

/// Peers by number, each of a class and carried or not; what classes may open, each by number; the
/// same at what runs no agent, by the class of that; the classes of ranges that others forward to; those
/// that the node forwards to.
#[derive(Clone, Debug)]
struct World {
    peers: BTreeMap<u8, (u8, bool)>,
    access: BTreeMap<u8, u8>,
    guarded: BTreeMap<u8, BTreeMap<u8, u8>>,
    routes: BTreeMap<u8, u8>,
    forwards: BTreeMap<u8, (BTreeMap<u8, u8>, bool)>,
    restricted: bool,
}

const RANGES: [&str; 6] =
    ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "192.168.7.0/24", "fd50::/16", "fd50:1::/32"];

fn build(world: &World) -> View {
    let names = ["a", "b", "c", "d"].map(class);
    let of = |number: &u8| names[usize::from(*number)];
    let accesses = [tcp(22), tcp(80), tcp(22).or(&tcp(80)), Access::everything()];
    let access = |number: &u8| accesses[usize::from(*number)].clone();
    let at = |number: &u8| range(RANGES[usize::from(*number)]);
    let mut view = view(&[], &[]);
    let World { peers, access: open, guarded, routes, forwards, restricted } = world;
    view.interface.restricted = *restricted;
    view.interface.forward = !forwards.is_empty();
    for (number, (class, carried)) in peers {
        let via = carried.then(|| view.node.clone());
        let peer = Peer { class: of(class), via, ..(*peer(*number, "")).clone() };
        view.peers.insert(name(&format!("n{number}")), Arc::new(peer));
    }
    for (number, class) in routes {
        view.routes
            .insert(at(number), Arc::new(Route { via: Some(name("n1")), class: of(class), carried: false }));
    }
    for (number, (ranges, nat)) in forwards {
        let ranges = ranges.iter().map(|(number, class)| (at(number), of(class))).collect();
        let forward = Forward { ranges, interface: None, nat: *nat };
        view.forwards.insert(name(&format!("e{number}")), Arc::new(forward));
    }
    if *restricted {
        view.access = open.iter().map(|(class, it)| (of(class), Arc::new(access(it)))).collect();
        let row = |row: &BTreeMap<u8, u8>| row.iter().map(|(class, it)| (of(class), access(it))).collect();
        view.guarded = guarded.iter().map(|(class, from)| (of(class), Arc::new(row(from)))).collect();
    }
    view
}

fn worlds(restricted: bool) -> impl Strategy<Value = World> {
    let by = |keys: std::ops::Range<u8>| proptest::collection::btree_map(keys, 0u8..4, 0..4);
    let peers = proptest::collection::btree_map(1u8..8, (0u8..4, any::<bool>()), 0..6);
    let guarded = proptest::collection::btree_map(0u8..4, by(0..4), 0..3);
    let forwards = proptest::collection::btree_map(0u8..3, (by(0..6), any::<bool>()), 0..3);
    // Only a table that is there changes.
    let some = move |world: &World| restricted || !world.forwards.is_empty();
    (peers, by(0..4), guarded, by(0..6), forwards)
        .prop_map(move |(peers, access, guarded, routes, forwards)| World {
            peers,
            access,
            guarded,
            routes,
            forwards,
            restricted,
        })
        .prop_filter("it has a table", some)
}

fn pairs() -> impl Strategy<Value = [World; 3]> {
    any::<bool>().prop_flat_map(|it| [worlds(it), worlds(it), worlds(it)])
}

proptest! {
    /// One transaction leads from one table to the other, and the kernel takes it.
    #[test]
    fn a_step_leads_to_the_table_of_the_later_view([before, after, _] in pairs()) {
        let (before, mut after) = (build(&before), build(&after));
        after.interface = before.interface.clone();
        let mut kernel = Kernel::of(&before);
        match step(&before, &after) {
            None => {}
            Some(FilterStep::Commands(commands)) => kernel.run(&commands),
            Some(FilterStep::Elements { gone, new }) => {
                for Element { set, interval, .. } in gone {
                    let key = Interval { class: None, ..interval };
                    kernel.run(&format!("delete element inet t {set} {{ {key} }}"));
                }
                for Element { set, interval, .. } in &new {
                    kernel.run(&format!("add element inet t {set} {{ {interval} }}"));
                }
            }
            Some(FilterStep::Table) => prop_assert!(false, "so few change one by one"),
        }
        prop_assert_eq!(kernel, Kernel::of(&after));
    }

    /// Changes that came one after the other lead where the last View says, at once.
    #[test]
    fn changes_add_up(all in pairs()) {
        let [first, mut second, mut third] = all.map(|it| build(&it));
        second.interface = first.interface.clone();
        third.interface = first.interface.clone();
        let mut sum = changes(&first, &second);
        sum.extend(changes(&second, &third));
        let mut followed = filter(&first);
        followed.apply(&sum);
        prop_assert_eq!(followed, filter(&third));
    }
}
