//! What a plan says of gateways, relays and external clients: who carries what for whom, whose way to the
//! internet changes, who has to be configured anew.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;

use jiff::Timestamp;

use schema::client::{ClientChange, ClientOutcome};
use schema::compile::carrying::{Carrying, Part};
use schema::compile::reach::ReachChange;
use schema::decode::{Declared, decode};
use schema::impact::{Internet, NodeImpact};
use schema::inventory::{Endpoints, Inventory, Joined, NodeId};
use schema::kinds::Kind;
use schema::plan::{Plan, check_and_reconcile, plan};
use schema::scalars::{Identity, Name, SigningKey, WireGuardKey};
use schema::snapshot::{Entry, Owner, Revision};
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;
use schema::world::{ServerInfo, World};

/// What every network here has.
const NODES: &str = r#"
    ipv4 "10.40.0.0/16"
    node "a"
    node "b"
    node "gw" endpoint="192.0.2.10:51821"
    node "gw-2"
"#;

fn declared(parts: &str) -> Declared {
    let text = format!("network \"corp\" {{\n{NODES}\n{parts}\n}}");
    let source = Source { name: "corp.kdl".into(), text: text.into(), language: Language::Kdl };
    let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    let (declared, problems) = decode(documents);
    assert!(report.is_empty() && problems.is_empty(), "{report:#?} {problems:#?}");
    declared
}

fn owner() -> Owner {
    "acme/prod".parse().unwrap()
}

fn now() -> Timestamp {
    "2026-11-29T12:00:00Z".parse().unwrap()
}

fn name(name: &str) -> Name {
    name.parse().unwrap()
}

fn joined(number: u8) -> Joined {
    Joined {
        public_key: WireGuardKey([number; 32]),
        identity: Identity([number; 32]),
        addresses: BTreeSet::from([format!("10.40.0.{number}").parse().unwrap()]),
        endpoints: Endpoints::default(),
        listen_port: 51_821,
        tags: BTreeSet::new(),
        key: None,
        claimed: true,
        joined: now(),
        problems: Vec::new(),
        os: "linux".into(),
    }
}

fn server() -> ServerInfo {
    ServerInfo {
        id: "0f8fad5bd9cb469fa165".into(),
        epoch: 1,
        agent_addresses: vec!["198.51.100.1:50051".into()],
        signing_key: SigningKey([9; 32]),
        ca_pin: None,
        version: "0.1.0".into(),
        comms_range: None,
        own_node: None,
        addresses: Vec::new(),
    }
}

/// The plan from one network to another, these nodes having joined.
fn between(before: &str, after: &str, nodes: &[&str]) -> Plan {
    let mut world = World { epoch: 1, revision: Revision(7), ..World::default() };
    for (id, entry) in declared(before).snapshot.entries() {
        let entry = Entry { owner: Some(owner()), revision: Revision(5), ..entry.clone() };
        world.snapshot.put(id.clone(), entry);
    }
    let mut inventory = Inventory::default();
    for (number, node) in (1..).zip(nodes) {
        inventory.put_node(NodeId::of(&"corp".parse().unwrap(), &name(node)), joined(number));
    }
    let source_map = declared(before).source_map;
    world.inventory =
        check_and_reconcile(&world.snapshot, &inventory, &source_map, &server(), now()).unwrap();
    plan(&declared(after), &owner(), None, &world, &server(), now()).unwrap()
}

fn impact<'a>(plan: &'a Plan, node: &str) -> &'a NodeImpact {
    plan.impact.iter().find(|impact| impact.node == name(node)).unwrap()
}

/// What a plan says of one thing that is carried: who does, before and after.
fn carriers(plan: &Plan) -> Vec<(String, [Option<String>; 2])> {
    let carrier = |it: &Option<Carrying>| it.as_ref()?.carrier.as_ref().map(ToString::to_string);
    let line = plan.carrying.iter();
    line.map(|it| (it.id.to_string(), [carrier(&it.before), carrier(&it.after)])).collect()
}

const OFFICE: &str =
    "egress \"office\" { via \"gw\" \"gw-2\"; ranges \"192.168.10.0/24\" \"192.168.11.0/24\" }";

#[test]
fn who_begins_to_forward_and_for_whom_is_in_the_plan() {
    let plan = between("", OFFICE, &["a", "b", "gw"]);
    let [change] = &*plan.carrying else { panic!("one change: {:#?}", plan.carrying) };
    assert_eq!((change.id.to_string(), &change.before), ("corp/egress/office".into(), &None));
    let after = change.after.as_ref().unwrap();
    assert_eq!((after.carrier.clone(), after.awaited.clone()), (Some(name("gw")), vec![name("gw-2")]));
    assert_eq!((after.nodes, after.clients, after.members.clone()), (2, 0, vec![name("a"), name("b")]));
    assert!(!after.has_another(), "gw-2 has not joined");
    assert_eq!(after.nat, Some(true));
    let gateway = impact(&plan, "gw");
    assert_eq!((gateway.carries[0].before, gateway.carries[0].after), (None, Some(Part::Carries)));
    assert_eq!((gateway.routes_added.len(), impact(&plan, "a").routes_added.len()), (0, 2));
    let both = between("", OFFICE, &["a", "gw", "gw-2"]);
    assert!(both.carrying[0].after.as_ref().unwrap().has_another());
    assert_eq!(impact(&both, "gw-2").carries[0].after, Some(Part::StandsBy));
    let none = between("", OFFICE, &["a"]);
    assert_eq!(carriers(&none), [("corp/egress/office".into(), [None, None])]);
}

/// What a plan says is gained and lost, without the counts.
fn reached(plan: &Plan) -> Vec<String> {
    let line = |it: &ReachChange| format!("{:?} {} to {}: {}", it.direction, it.from, it.to, it.what);
    plan.reach.iter().filter(|it| !it.once_joined).map(line).collect()
}

#[test]
fn a_rule_that_names_a_part_of_a_range_says_nothing_of_who_reached_all_of_it() {
    let rules = format!("acl \"deny\"\n{OFFICE}\nallow \"all\" from=\"a\" to=\"192.168.10.0/24\"");
    let part = "allow \"print\" from=\"b\" to=\"192.168.10.64/26\" proto=\"tcp\" ports=631";
    let (with, nodes) = (format!("{rules}\n{part}"), ["a", "b", "gw"]);
    let print = "b to 192.168.10.64/26: tcp 631";
    assert_eq!(reached(&between(&rules, &with, &nodes)), [format!("Gained {print}")]);
    assert_eq!(reached(&between(&with, &rules, &nodes)), [format!("Lost {print}")]);
}

#[test]
fn what_is_behind_a_gateway_goes_by_what_is_for_the_gateway_that_carries() {
    let sites = |r#for: &str| {
        format!(
            "egress \"one\" via=\"gw\" ranges=\"192.168.10.0/24\"\negress \"two\" for={for:?} {{ via \"gw-2\" \"a\"; ranges \"192.168.20.0/24\" }}"
        )
    };
    let is_said =
        |plan: &Plan| reached(plan).contains(&"Gained 192.168.20.0/24 to 192.168.10.0/24: everything".into());
    let plan = between(&sites("b"), &sites("gw"), &["a", "b", "gw", "gw-2"]);
    assert!(is_said(&plan), "in both directions: {:#?}", plan.reach);
    // One of the two that may carry the second range is the gateway of the first.
    let shared = |r#for: &str| sites(r#for).replace("\"a\"", "\"gw\"");
    let plan = between(&shared("b"), &shared("gw"), &["a", "b", "gw", "gw-2"]);
    assert!(reached(&plan).iter().all(|line| !line.contains("192.168.10.0/24")), "{:#?}", plan.reach);
}

#[test]
fn another_order_moves_what_is_carried_and_a_range_less_is_a_route_less() {
    let turned = "egress \"office\" { via \"gw-2\" \"gw\"; ranges \"192.168.10.0/24\" }";
    let plan = between(OFFICE, turned, &["a", "gw", "gw-2"]);
    assert_eq!(carriers(&plan), [("corp/egress/office".into(), [Some("gw".into()), Some("gw-2".into())])]);
    let NodeImpact { routes_added, routes_removed, routes_changed, .. } = impact(&plan, "a");
    assert_eq!((routes_added.len(), routes_removed.len(), routes_changed.len()), (0, 1, 1));
    let was = &impact(&plan, "gw").carries[0];
    assert_eq!((was.before, was.after), (Some(Part::Carries), Some(Part::StandsBy)));
}

#[test]
fn members_that_come_or_go_change_nothing_of_who_carries_but_one_that_moves_does() {
    let relay = |tags: &str| {
        format!("relay \"r\" via=\"gw\" for=\"tag:nat\"\n node \"c\" {{ tags {tags} }}\n{OFFICE}")
    };
    let nodes = ["a", "c", "gw", "gw-2"];
    let plan = between(&relay("\"nat\""), OFFICE, &nodes);
    assert_eq!(carriers(&plan), [("corp/relay/r".into(), [Some("gw".into()), None])], "c goes as well");
    let plan = between(&relay("\"other\""), &relay("\"nat\""), &nodes);
    assert_eq!(carriers(&plan).len(), 1, "{:#?}", plan.carrying);
    assert_eq!(plan.carrying[0].after.as_ref().unwrap().members, [name("c")]);
}

#[test]
fn a_way_to_the_internet_moves_and_never_takes_the_server_away() {
    let exit = |via: &str| format!("egress \"exit\" via=\"{via}\" for=\"a\" {{ ranges \"0.0.0.0/0\" }}");
    let nodes = ["a", "b", "gw", "gw-2"];
    let ways = |plan: &Plan| {
        let [change] = &*impact(plan, "a").internet else { panic!("one family") };
        assert!(impact(plan, "a").keeps_server);
        (change.before.clone(), change.after.clone())
    };
    let through = |node: &str| Internet::Through(name(node));
    let plan = between("", &exit("gw"), &nodes);
    assert_eq!(ways(&plan), (Internet::Own, through("gw")));
    assert!(plan.impact.iter().all(|impact| impact.node != name("b") || impact.internet.is_empty()));
    assert_eq!(ways(&between(&exit("gw"), &exit("gw-2"), &nodes)), (through("gw"), through("gw-2")));
    assert_eq!(ways(&between(&exit("gw"), "", &nodes)), (through("gw"), Internet::Own));
}

#[test]
fn a_range_that_holds_the_server_takes_it_away_from_who_gets_the_route() {
    let around = "egress \"around\" via=\"gw\" for=\"a\" { ranges \"198.51.100.0/24\" }";
    let plan = between("", around, &["a", "b", "gw"]);
    let lost: Vec<_> = plan.impact.iter().filter(|it| !it.keeps_server).map(|it| it.node.as_str()).collect();
    assert_eq!(lost, ["a"], "not b, who gets no route, nor the gateway");
}

/// An ingress and a client, with these fields.
fn client(ingress: &str, client: &str) -> String {
    format!("ingress \"front\" via=\"gw\" {ingress}\nexternal-client \"phone\" via=\"front\" {client}")
}

const KEY: &str = "public-key=\"Io4DhbQHshWwtQvWJ8ctFvTyP8GdT8rlqf3zJHmZ2U4=\"";

fn phone(before: &str, after: &str) -> Option<ClientChange> {
    let plan = between(before, after, &["a", "gw"]);
    assert!(plan.clients.len() <= 1, "{:#?}", plan.clients);
    plan.clients.into_iter().next()
}

#[test]
fn who_has_to_be_configured_anew_is_in_the_plan_with_what_differs() {
    let here = client("", KEY);
    assert_eq!(phone("", &here).unwrap().outcome, ClientOutcome::New);
    assert_eq!(phone(&here, &here), None);
    let fields = |after: &str| -> Vec<String> {
        let change = phone(&here, after).unwrap();
        assert_eq!(change.outcome, ClientOutcome::Anew);
        change.fields.into_iter().map(|field| format!("{} {:?}", field.name, field.after)).collect()
    };
    let moved = client("endpoint=\"gw.example.net:51821\"", KEY);
    assert_eq!(fields(&moved), ["Endpoint [\"gw.example.net:51821\"]"]);
    let behind = format!("{here}\n{OFFICE}");
    assert_eq!(fields(&behind), ["AllowedIPs [\"10.40.0.0/16\", \"192.168.10.0/24\", \"192.168.11.0/24\"]"]);
    let other = client("", "public-key=\"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"");
    assert_eq!(fields(&other), ["public-key [\"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"]"]);
    // Who has no key was given nothing.
    assert_eq!(phone(&client("", ""), &client("endpoint=\"gw.example.net:51821\"", "")), None);
    assert_eq!(phone(&client("", ""), &here).map(|change| change.outcome), None);
}

#[test]
fn who_is_cut_off_is_in_the_plan_with_the_reason() {
    let here = client("", KEY);
    let reason = |after: &str| {
        let change = phone(&here, after).unwrap();
        assert_eq!((change.outcome, &*change.fields), (ClientOutcome::CutOff, &[][..]));
        change.because.unwrap()
    };
    assert_eq!(reason(""), "its declaration is deleted");
    assert_eq!(reason(&client("", &format!("{KEY} enabled=#false"))), "it is disabled");
    assert_eq!(reason(&client("", "")), "its public-key is removed");
    let awaited = phone("", &here.replace("\"gw\"", "\"gw-2\"")).unwrap();
    assert_eq!(awaited.outcome, ClientOutcome::Awaited);
    assert_eq!(awaited.because.unwrap(), "corp/node/gw-2, which corp/ingress/front is at, has not joined");
}
