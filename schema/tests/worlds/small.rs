//! Small random networks with access rules, for the laws of who may open what at whom.
//!
//! A few nodes, declared and not, and more rules than they need, whose sides and ports overlap; relays, gateways
//! to ranges that are nested, and external clients. [`History`] is what was drawn, in few words;
//! [`History::moments`] are the worlds that follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use schema::compile::reconcile::reconcile;
use schema::decode::decode_body;
use schema::inventory::{Inventory, Joined, NodeId, NodeProblem};
use schema::kinds::{Egress, Kind, Resource as _, Test};
use schema::scalars::{Name, NetworkName, WireGuardKey};
use schema::snapshot::{ResourceId, Revision, Snapshot};
use schema::value::{Record, Value as Field};
use schema::world::World;

use super::{Draft, Moment, joined, repaired};

/// The one network.
const NETWORK: &str = "corp";
/// Nodes that files may declare.
const DECLARED: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Nodes that no file declares. One has the name of a group, and one of an entry: they may have joined before
/// those were declared.
const UNDECLARED: [&str; 3] = ["x", "ops", "www"];
/// Groups, each of which may hold those after it.
const GROUPS: [&str; 3] = ["ops", "web", "rest"];
const TAGS: [&str; 3] = ["t", "u", "v"];
const RULES: [&str; 5] = ["r1", "r2", "r3", "r4", "r5"];
const ENTRIES: [&str; 4] = ["www", "alias", "second", "outer"];
const EGRESS: [&str; 3] = ["office", "depot", "exit"];
const INGRESS: [&str; 2] = ["door", "gate"];
const CLIENTS: [&str; 3] = ["phone", "tablet", "printer"];
const RELAYS: [&str; 2] = ["near", "far"];
/// What may be behind an egress: nested ranges, one that holds the network's own, and everything.
const OUTSIDE: [&str; 9] = [
    "192.168.0.0/16",
    "192.168.9.0/24",
    "172.16.0.0/24",
    "10.0.0.0/8",
    "fd99::/48",
    "fd99::/64",
    "0.0.0.0/0",
    "0.0.0.0/0",
    "::/0",
];
/// Hosts that are outside of the network, where its own ranges are not around them: on both sides of the edges
/// of what may be behind an egress, and of what rules select.
pub const HOSTS: [&str; 18] = [
    "192.168.9.7",
    "192.168.9.130",
    "192.168.7.7",
    "172.16.0.9",
    "172.16.0.99",
    "10.9.9.9",
    "10.40.0.1",
    "10.40.0.2",
    "10.40.0.5",
    "10.40.0.9",
    "10.40.0.200",
    "203.0.113.9",
    "fd40::1",
    "fd40::3",
    "fd40::9",
    "fd99::9",
    "fd99:0:0:5::9",
    "2001:db8::9",
];
/// Parts of both ranges that hold few of the first addresses, all of them, and none; what means the internet;
/// and parts of what is behind an egress.
const RANGES: [&str; 13] = [
    "10.40.0.2/32",
    "10.40.0.0/30",
    "10.40.0.4/30",
    "10.40.0.0/24",
    "fd40::3/128",
    "fd40::/126",
    "192.168.9.0/24",
    "0.0.0.0/0",
    "::/0",
    "192.168.0.0/16",
    "192.168.9.128/25",
    "172.16.0.8/29",
    "fd99::/64",
];
/// Sets of ports that overlap, touch, or contain each other.
const PORTS: [&str; 6] = ["80", "81-90", "80-84", "85-443", "443", "1-65535"];

/// One object as it is declared: its id and its body; absent: it is not declared.
type Declared = (ResourceId, Option<Value>);

/// Something that happens to a network.
#[derive(Clone, Debug)]
enum Event {
    /// An object is declared otherwise, or not any more.
    Declare(Declared),
    /// A node joins.
    Join(Member),
    /// A node leaves.
    Leave(&'static str),
    /// A node has a new key.
    Rekey(&'static str),
    /// A node's host has no IPv6, or has it again.
    SwitchIpv6(&'static str),
    /// A node does not carry anything, or not an egress, or does so again.
    SwitchAway(&'static str, Option<&'static str>),
    /// A default route was carried once.
    Carried(&'static str),
    /// Members are given a name server, or none any more.
    SwitchResolvers,
    /// Hours pass.
    Wait(i64),
}

/// A node that joins.
#[derive(Clone, Debug)]
pub struct Member {
    /// The name that it joins under.
    pub name: &'static str,
    /// The tags of its key.
    pub tags: Vec<&'static str>,
    /// Whether it claims its name, where that is declared.
    claims: bool,
}

impl Member {
    /// Whether it claims a name that files may declare.
    pub fn claims_a_name(&self) -> bool {
        self.claims && DECLARED.contains(&self.name)
    }
}

/// A few nodes that have joined, and what files then declare of their network, one after the other.
#[derive(Clone, Debug)]
pub struct Series {
    /// The nodes.
    pub members: Vec<Member>,
    /// What is declared.
    pub declared: Vec<Snapshot>,
}

/// A network with its nodes, and what happens to it.
#[derive(Clone)]
pub struct History {
    declared: Vec<Declared>,
    joins: Vec<Event>,
    events: Vec<Event>,
}

/// One line for each object, node and event.
impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let declared = self.declared.iter().filter(|(_, body)| body.is_some());
        declared.map(|it| Event::Declare(it.clone())).try_for_each(|it| write!(f, "\n{it}"))?;
        self.joins.iter().chain(&self.events).try_for_each(|it| write!(f, "\n{it}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declare((id, Some(body))) => write!(f, "{id} {body}"),
            Self::Declare((id, None)) => write!(f, "{id} goes"),
            Self::Join(Member { name, tags, claims: _ }) => write!(f, "{name} joins with tags {tags:?}"),
            Self::Leave(name) => write!(f, "{name} leaves"),
            Self::Rekey(name) => write!(f, "{name} has a new key"),
            Self::SwitchIpv6(name) => write!(f, "{name} has no IPv6, or has it again"),
            Self::SwitchAway(name, egress) => write!(f, "{name} is away, or back, for {egress:?}"),
            Self::Carried(egress) => write!(f, "{egress} was carried"),
            Self::SwitchResolvers => write!(f, "members are given a name server, or none any more"),
            Self::Wait(hours) => write!(f, "{hours} hours pass"),
        }
    }
}

/// The network that small worlds have.
pub fn network() -> NetworkName {
    NETWORK.parse().unwrap()
}

/// Small networks, and up to so many things that happen to each.
pub fn histories(most: usize) -> impl Strategy<Value = History> {
    let nodes = [&DECLARED[..], &UNDECLARED[..]].concat();
    let joins = subsequence(nodes, 2..=8).prop_flat_map(|names| each(names, |name| join(Just(name))));
    let carries = |id: &ResourceId| matches!(id.kind, Kind::Egress | Kind::Ingress | Kind::Relay);
    let likely = |id: &ResourceId| if carries(id) { 0.4 } else { 0.7 };
    let declared = each(all_ids(), |id| object(id.clone(), likely(&id), &ALL_NAMES));
    (declared, joins, vec(events(), 0..=most)).prop_map(|(declared, joins, events)| History {
        declared,
        joins,
        events,
    })
}

/// Two relays, each with a node of its own, that take over from each other; one is away, and comes back.
pub fn relays_that_take_over_from_each_other() -> History {
    let object = |(kind, name, body): (Kind, &'static str, Value)| {
        (ResourceId { network: network(), kind, name: name.parse().unwrap() }, Some(body))
    };
    let network = (ResourceId::of_network(network()), Some(json!({ "ipv4": "10.40.0.0/24" })));
    let nodes = ["a", "b", "c", "d"];
    let declared = nodes.map(|name| (Kind::Node, name, json!({})));
    let near = (Kind::Relay, "near", json!({ "via": ["a", "b"], "for": ["c"] }));
    let far = (Kind::Relay, "far", json!({ "via": ["b", "a"], "for": ["d"] }));
    let declared = declared.into_iter().chain([near, far]).map(object);
    let join = |name| Event::Join(Member { name, tags: Vec::new(), claims: true });
    let away = Event::SwitchAway("a", None);
    History {
        declared: std::iter::once(network).chain(declared).collect(),
        joins: nodes.into_iter().chain(["x"]).map(join).collect(),
        events: vec![away.clone(), away],
    }
}

/// Three or four nodes, of which one may be the hub, in so many networks. They have fewer rules than others,
/// so that some nodes may not talk to each other, or to the hub.
pub fn series(length: usize) -> impl Strategy<Value = Series> {
    let others = [&DECLARED[3..], &UNDECLARED[..]].concat();
    let members = (subsequence(&DECLARED[..3], 2..=3), subsequence(others, 1));
    let members = members.prop_map(|(some, other)| [some, other].concat());
    let likely = |id: &ResourceId| if id.kind == Kind::Allow { 0.4 } else { 0.7 };
    declared_of(members, length, move || each(ids(), |id| object(id.clone(), likely(&id), &DECLARED)).boxed())
}

/// A range with two parts that rules tell apart, and one of IPv6.
pub const SITE: [&str; 2] = ["192.168.9.0/24", "fd99::/64"];

/// Four nodes in so many networks, of which the first two carry for others: an egress to [`SITE`], an ingress
/// with a client, and a relay for the third. Which of the two carries what is the same in all of the networks.
pub fn sites(length: usize) -> impl Strategy<Value = Series> {
    let carriers = || subsequence(&DECLARED[..2], 1..=2).prop_shuffle().prop_map(|nodes| json!(nodes));
    let site = (carriers(), some(&SITE, 1..=2), select(&DECLARED[..2]), carriers());
    site.prop_flat_map(move |site| {
        let others = subsequence([&DECLARED[3..], &UNDECLARED[..]].concat(), 1);
        let members = others.prop_map(|other| [&DECLARED[..3], &other].concat());
        declared_of(members, length, move || of_site(site.clone()).boxed())
    })
}

/// What may be declared of a site: who forwards to which ranges, who has the ingress, who relays.
fn of_site(
    (gateways, ranges, ingress, relays): (Value, Value, &'static str, Value),
) -> impl Strategy<Value = Vec<Declared>> {
    let parts = &["192.168.9.0/24", "192.168.9.128/25", "192.168.0.0/16", "fd99::/64"][..];
    let gateway_ids = of(Kind::Egress, &EGRESS[..1]).chain(of(Kind::Ingress, &INGRESS[..1]));
    let carried = of(Kind::ExternalClient, &CLIENTS[..1]).chain(of(Kind::Relay, &RELAYS[..1]));
    let ids = ids().into_iter().chain(gateway_ids).chain(carried).collect();
    let declared = each(ids, |id| object(id.clone(), 0.8, &ALL_NAMES[..=DECLARED.len()]));
    (declared, vec(select(parts), 2)).prop_map(move |(mut declared, parts)| {
        for (id, body) in &mut declared {
            let Some(body) = body else { continue };
            match id.kind {
                Kind::Egress => (body["via"], body["ranges"]) = (gateways.clone(), ranges.clone()),
                Kind::Ingress => body["via"] = ingress.into(),
                Kind::ExternalClient => body["via"] = INGRESS[0].into(),
                Kind::Relay => (body["via"], body["for"]) = (relays.clone(), json!([DECLARED[2]])),
                // A rule to a part of it, and one from a part of it.
                Kind::Allow if id.name.as_str() == RULES[0] => body["to"] = json!([parts[0]]),
                Kind::Allow if id.name.as_str() == RULES[1] => body["from"] = json!([parts[1]]),
                Kind::Network | Kind::Node | Kind::AccessKey | Kind::Dns | Kind::Group => {}
                Kind::Allow | Kind::Test => {}
            }
        }
        declared
    })
}

/// Nodes of these names that have joined, and so many networks of what is drawn to be declared. Nodes that claim
/// their names are in all of them.
fn declared_of(
    names: impl Strategy<Value = Vec<&'static str>>,
    length: usize,
    drawn: impl Fn() -> BoxedStrategy<Vec<Declared>> + 'static,
) -> impl Strategy<Value = Series> {
    let members = names.prop_flat_map(|names| each(names, |name| member(Just(name))));
    members.prop_flat_map(move |members| {
        let always: Vec<_> = members.iter().filter(|it| it.claims_a_name()).map(|it| it.name).collect();
        let whole = move |mut declared: Vec<Declared>| {
            for (id, body) in &mut declared {
                if id.kind == Kind::Node && always.contains(&id.name.as_str()) {
                    body.get_or_insert_with(|| json!({}));
                }
            }
            snapshot(&declared.into_iter().collect())
        };
        (Just(members), vec(drawn().prop_map(whole), length))
            .prop_map(|(members, declared)| Series { members, declared })
    })
}

/// All of these.
fn each<T, S>(of: Vec<T>, strategy: impl Fn(T) -> S) -> Vec<S> {
    of.into_iter().map(strategy).collect()
}

/// Names of declared nodes and of external clients.
const ALL_NAMES: [&str; DECLARED.len() + CLIENTS.len()] =
    ["a", "b", "c", "d", "e", "phone", "tablet", "printer"];

/// The ids of a kind.
fn of(kind: Kind, names: &'static [&'static str]) -> impl Iterator<Item = ResourceId> {
    names.iter().map(move |name| ResourceId { network: network(), kind, name: name.parse().unwrap() })
}

/// Every id that may be declared of members who carry nothing for others, unless one is the hub.
fn ids() -> Vec<ResourceId> {
    let nodes = std::iter::once(ResourceId::of_network(network())).chain(of(Kind::Node, &DECLARED));
    let sides = nodes.chain(of(Kind::Group, &GROUPS)).chain(of(Kind::Allow, &RULES));
    sides.chain(of(Kind::Dns, &ENTRIES)).collect()
}

/// Every id that may be declared.
fn all_ids() -> Vec<ResourceId> {
    let gateways = of(Kind::Egress, &EGRESS).chain(of(Kind::Ingress, &INGRESS));
    let carried = of(Kind::ExternalClient, &CLIENTS).chain(of(Kind::Relay, &RELAYS));
    ids().into_iter().chain(gateways).chain(carried).collect()
}

/// Which of these names an object has.
fn place(names: &[&str], id: &ResourceId) -> usize {
    names.iter().position(|name| *name == id.name.as_str()).unwrap()
}

/// An object that selects members of these names.
fn object(id: ResourceId, likely: f64, names: &'static [&'static str]) -> BoxedStrategy<Declared> {
    let body = match id.kind {
        Kind::Network => network_body().boxed(),
        Kind::Node => node_body().boxed(),
        Kind::Group => {
            let place = place(&GROUPS, &id);
            group_body(&GROUPS[place + 1..], &names[DECLARED.len()..]).boxed()
        }
        Kind::Allow => rule_body(names).boxed(),
        Kind::Dns => entry_body(names).boxed(),
        Kind::Egress => egress_body(names).boxed(),
        Kind::Ingress => ingress_body().boxed(),
        Kind::ExternalClient => client_body(place(&CLIENTS, &id), names).boxed(),
        Kind::Relay => relay_body().boxed(),
        Kind::AccessKey | Kind::Test => unreachable!("neither is in Views, and no draft has one"),
    };
    let body = if id.kind == Kind::Network || likely >= 1.0 {
        body.prop_map(Some).boxed()
    } else {
        option::weighted(likely, body).boxed()
    };
    body.prop_map(move |body| (id.clone(), body)).boxed()
}

fn network_body() -> impl Strategy<Value = Value> {
    let (ipv4, ipv6) = (json!("10.40.0.0/24"), json!("fd40::/120"));
    let ranges = select(vec![
        (Some(ipv4.clone()), None),
        (None, Some(ipv6.clone())),
        (Some(ipv4), Some(ipv6.clone())),
        (Some(json!("10.40.0.0/28")), Some(ipv6)),
    ]);
    let acl = prop_oneof![5 => Just("deny"), 1 => Just("allow")];
    let hub = option::weighted(0.5, select(&DECLARED[..2]));
    (ranges, acl, hub, prop::bool::weighted(0.9)).prop_map(|((ipv4, ipv6), acl, hub, names)| {
        let hub = hub.map(Value::from);
        body([
            ("ipv4", ipv4),
            ("ipv6", ipv6),
            ("hub", hub),
            ("acl", Some(acl.into())),
            ("name-service", Some(names.into())),
        ])
    })
}

fn node_body() -> impl Strategy<Value = Value> {
    let reserved = option::weighted(0.2, (1..9u8).prop_map(|last| json!(format!("10.40.0.{last}"))));
    (some(&TAGS, 0..=2), reserved)
        .prop_map(|(tags, reserved)| body([("tags", Some(tags)), ("ipv4", reserved)]))
}

fn group_body(
    later: &'static [&'static str],
    clients: &'static [&'static str],
) -> impl Strategy<Value = Value> {
    let groups = some(later, 0..=later.len().min(1));
    let clients = some(clients, 0..=clients.len().min(1));
    (some(&DECLARED, 0..=2), some(&TAGS, 0..=1), groups, clients).prop_map(
        |(nodes, tags, groups, clients)| {
            body([
                ("nodes", Some(nodes)),
                ("tags", Some(tags)),
                ("groups", Some(groups)),
                ("external-clients", Some(clients)),
            ])
        },
    )
}

/// One or two declared nodes, in any order.
fn carriers() -> impl Strategy<Value = Value> {
    subsequence(&DECLARED[..], 1..=2).prop_shuffle().prop_map(|nodes| json!(nodes))
}

fn egress_body(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let r#for = option::weighted(0.4, vec(selector(names), 1..=2));
    let ranges = some(&OUTSIDE, 1..=2);
    (carriers(), ranges, any::<bool>(), r#for, any::<bool>()).prop_map(
        |(via, ranges, nat, r#for, fallback)| {
            body([
                ("via", Some(via)),
                ("ranges", Some(ranges)),
                ("nat", Some(nat.into())),
                ("for", r#for.map(Value::from)),
                ("fallback", Some(fallback.into())),
            ])
        },
    )
}

fn ingress_body() -> impl Strategy<Value = Value> {
    let pool = option::weighted(0.3, select(&["10.40.0.8/29", "fd40::10/124"][..]));
    (select(&DECLARED[..]), pool)
        .prop_map(|(via, pool)| body([("via", Some(via.into())), ("pool", pool.map(|pool| json!([pool])))]))
}

/// The client of that number, with one of two keys.
fn client_body(number: usize, names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let key = select(vec![100, 200]).prop_map(move |first| [first + u8::try_from(number).unwrap(); 32]);
    let key = option::weighted(0.85, key.prop_map(|key| WireGuardKey(key).to_string()));
    let allow_to = option::weighted(0.3, vec(selector(names), 0..=2));
    let ends = (option::weighted(0.2, Just("1h")), prop::bool::weighted(0.85));
    (select(&INGRESS[..]), key, some(&TAGS, 0..=2), allow_to, ends).prop_map(
        |(via, key, tags, allow_to, (expires, enabled))| {
            body([
                ("via", Some(via.into())),
                ("public-key", key.map(Value::from)),
                ("tags", Some(tags)),
                ("allow-to", allow_to.map(Value::from)),
                ("expires", expires.map(Value::from)),
                ("enabled", Some(enabled.into())),
            ])
        },
    )
}

fn relay_body() -> impl Strategy<Value = Value> {
    let whom = prop_oneof![
        6 => select(&DECLARED[..]).prop_map(str::to_owned),
        4 => select(&TAGS[..]).prop_map(|tag| format!("tag:{tag}")),
        2 => select(&GROUPS[..]).prop_map(str::to_owned),
        1 => select(&RANGES[..4]).prop_map(str::to_owned),
        1 => Just("*".to_owned()),
    ];
    (carriers(), vec(whom, 1..=2))
        .prop_map(|(via, whom)| body([("via", Some(via)), ("for", Some(whom.into()))]))
}

fn rule_body(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let ports = option::weighted(0.8, some(&PORTS, 1..=2));
    let packets = prop_oneof![
        2 => Just((None, None)),
        1 => Just((Some("icmp"), None)),
        6 => (select(&["tcp", "udp"][..]).prop_map(Some), ports),
    ];
    (vec(selector(names), 1..=2), vec(selector(names), 1..=2), packets).prop_map(
        |(from, to, (proto, ports))| {
            body([
                ("from", Some(from.into())),
                ("to", Some(to.into())),
                ("proto", proto.map(Value::from)),
                ("ports", ports),
            ])
        },
    )
}

/// A test that asserts a few things of members and ranges: what is reached, also while somebody is away who
/// carries, and what is not.
pub fn tests() -> impl Strategy<Value = Test> {
    let side = |least| vec(selector(&ALL_NAMES), least..=2);
    let except = prop_oneof![2 => Just(Vec::new()), 1 => side(1)];
    let port = option::weighted(0.7, select(&[80, 84, 85, 443][..]));
    let packets = prop_oneof![
        2 => Just((None, None)),
        1 => Just((Some("icmp"), None)),
        4 => (option::weighted(0.7, select(&["tcp", "udp"][..])), port),
    ];
    let record = (side(1), side(1), except, packets);
    let record = record
        .prop_map(|(from, to, except, (proto, port))| {
            body([
                ("from", Some(from.into())),
                ("to", Some(to.into())),
                ("except", Some(except.into())),
                ("proto", proto.map(Value::from)),
                ("port", port.map(Value::from)),
            ])
        })
        .boxed();
    let reach = (record.clone(), any::<bool>()).prop_map(|(mut record, without_any_gateway)| {
        record["without-any-gateway"] = without_any_gateway.into();
        record
    });
    (vec(reach, 0..=4), vec(record, 0..=4)).prop_map(|(reach, no_reach)| {
        let body = json!({ "reach": reach, "no-reach": no_reach });
        let id = ResourceId { network: network(), kind: Kind::Test, name: "test".parse().unwrap() };
        let entry = decode_body(&id, &serde_json::from_value(body).unwrap()).expect("it is one");
        (**Test::of(&entry.object).unwrap()).clone()
    })
}

fn selector(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        5 => select(names).prop_map(str::to_owned),
        5 => select(&TAGS[..]).prop_map(|tag| format!("tag:{tag}")),
        4 => select(&GROUPS[..]).prop_map(str::to_owned),
        3 => select(&RANGES[..]).prop_map(str::to_owned),
        1 => Just("*".to_owned()),
    ]
}

fn entry_body(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let inside = select([names, &UNDECLARED[..], &ENTRIES[..]].concat());
    prop_oneof![
        4 => select(&DECLARED[..]).prop_map(|node| json!({ "node": node })),
        4 => inside.prop_map(|name| json!({ "cname": format!("{name}.{NETWORK}") })),
        1 => Just(json!({ "cname": "example.org" })),
        1 => Just(json!({ "a": ["192.0.2.1"] })),
    ]
}

/// Any of these words, so many of them.
fn some(
    words: &'static [&'static str],
    how_many: std::ops::RangeInclusive<usize>,
) -> impl Strategy<Value = Value> {
    subsequence(words, how_many).prop_map(|words| json!(words))
}

fn body<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect::<Map<_, _>>())
}

fn join(name: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Event> {
    member(name).prop_map(Event::Join)
}

fn member(name: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Member> {
    let rest = (subsequence(&TAGS[..], 0..=2), any::<bool>());
    (name, rest).prop_map(|(name, (tags, claims))| Member { name, tags, claims })
}

fn events() -> impl Strategy<Value = Event> {
    let node = || select([&DECLARED[..], &UNDECLARED[..]].concat());
    let declare = select(all_ids()).prop_flat_map(|id| object(id, 0.8, &ALL_NAMES));
    let of_network = object(ResourceId::of_network(network()), 0.0, &ALL_NAMES);
    let away = (node(), option::weighted(0.5, select(&EGRESS[..])));
    prop_oneof![
        10 => declare.prop_map(Event::Declare),
        2 => of_network.prop_map(Event::Declare),
        4 => join(node()),
        2 => node().prop_map(Event::Leave),
        1 => node().prop_map(Event::Rekey),
        1 => node().prop_map(Event::SwitchIpv6),
        2 => away.prop_map(|(node, egress)| Event::SwitchAway(node, egress)),
        1 => select(&EGRESS[..]).prop_map(Event::Carried),
        1 => Just(Event::SwitchResolvers),
        1 => Just(Event::Wait(2)),
    ]
}

impl History {
    /// Everything that is declared at any time.
    fn all_declared(&mut self) -> impl Iterator<Item = &mut Declared> {
        let declared = self.events.iter_mut().filter_map(|event| match event {
            Event::Declare(declared) => Some(declared),
            Event::Join(_) | Event::Leave(_) | Event::Rekey(_) | Event::SwitchIpv6(_) => None,
            Event::SwitchAway(..) | Event::Carried(_) | Event::SwitchResolvers | Event::Wait(_) => None,
        });
        self.declared.iter_mut().chain(declared)
    }

    /// The same without relays, egress, ingress and external clients.
    #[must_use]
    pub fn without_gateways(mut self) -> Self {
        for (id, body) in self.all_declared() {
            if matches!(id.kind, Kind::Egress | Kind::Ingress | Kind::ExternalClient | Kind::Relay) {
                *body = None;
            }
        }
        self
    }

    /// The same with `acl "allow"` throughout.
    #[must_use]
    pub fn without_rules(mut self) -> Self {
        for (id, body) in self.all_declared() {
            if let Some(body) = body.as_mut().filter(|_| id.kind == Kind::Network) {
                body["acl"] = "allow".into();
            }
        }
        self
    }

    /// The worlds: the first has its first nodes, each further one what one event changed.
    pub fn moments(&self) -> Vec<Moment> {
        let mut state = State::new(&self.declared);
        for join in &self.joins {
            let _ = state.happens(join);
        }
        let mut moments = vec![state.moment()];
        for event in &self.events {
            if state.happens(event).is_some() {
                moments.push(state.moment());
            }
        }
        moments
    }

    /// The world after all that happened.
    pub fn last(&self) -> World {
        self.moments().pop().unwrap().world
    }
}

/// A world, and what its files say: what breaks a rule now may be right again after a later event.
struct State {
    declared: BTreeMap<ResourceId, Option<Value>>,
    world: World,
    now: Timestamp,
}

/// When all of it begins.
fn start() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

impl State {
    fn new(declared: &[Declared]) -> Self {
        let declared: BTreeMap<_, _> = declared.iter().cloned().collect();
        let snapshot = snapshot(&declared);
        // The range that the clients of so few files get is never too small.
        let inventory = reconcile(&Inventory::default(), &snapshot, &[], start()).unwrap();
        Self { declared, world: World { snapshot, inventory, ..World::default() }, now: start() }
    }

    fn moment(&self) -> Moment {
        Moment { world: self.world.clone(), now: self.now }
    }

    /// Lets it happen; nothing if it cannot.
    fn happens(&mut self, event: &Event) -> Option<()> {
        self.world.revision = Revision(self.world.revision.0 + 1);
        let World { snapshot: files, inventory, revision, .. } = &mut self.world;
        let now = self.now;
        match event {
            Event::Declare((id, body)) => {
                self.declared.insert(id.clone(), body.clone());
                let next = snapshot(&self.declared);
                *inventory = reconcile(inventory, &next, &[], now).ok()?;
                *files = next;
            }
            Event::Join(Member { name, tags, claims }) => {
                let id = id(name);
                if inventory.node(&id).is_some() {
                    return None;
                }
                let tags: BTreeSet<Name> = tags.iter().map(|tag| tag.parse().unwrap()).collect();
                let joined = joined(&id, *claims, revision.0, files, inventory, now)?;
                inventory.put_node(id, Joined { tags, ..joined });
            }
            Event::Leave(name) => drop(inventory.remove_node(&id(name), now)?),
            Event::Rekey(name) => {
                let joined = (**inventory.node(&id(name))?).clone();
                let mut public_key = WireGuardKey([8; 32]);
                public_key.0[..8].copy_from_slice(&revision.0.to_be_bytes());
                inventory.put_node(id(name), Joined { public_key, ..joined });
            }
            Event::SwitchIpv6(name) => {
                let joined = (**inventory.node(&id(name))?).clone();
                let mut problems = joined.problems.clone();
                match problems.pop() {
                    Some(_) => {}
                    None => problems.push(NodeProblem::new(NodeProblem::NO_IPV6, "")),
                }
                inventory.put_node(id(name), Joined { problems, ..joined });
            }
            Event::SwitchAway(name, egress) => {
                let _joined = inventory.node(&id(name))?;
                let mut away = inventory.away_of(&id(name)).cloned().unwrap_or_default();
                match egress.map(|egress| egress.parse::<Name>().unwrap()) {
                    None => away.everything = !away.everything,
                    Some(egress) => {
                        let _declared = files.named::<Egress>(&network(), &egress)?;
                        if !away.egress.remove(&egress) {
                            away.egress.insert(egress);
                        }
                    }
                }
                inventory.set_away(id(name), away);
            }
            Event::Carried(egress) => {
                files
                    .named::<Egress>(&network(), &egress.parse().unwrap())
                    .filter(|it| it.is_default_route())?;
                inventory.set_carried(id(egress), true);
            }
            Event::SwitchResolvers => {
                let resolver: IpAddr = "10.40.0.53".parse().unwrap();
                let others = if inventory.resolvers().is_empty() { vec![resolver] } else { Vec::new() };
                inventory.set_resolvers(others.into_iter().collect());
            }
            Event::Wait(hours) => {
                self.now += SignedDuration::from_hours(*hours);
                *inventory = reconcile(inventory, files, &[], self.now).ok()?;
            }
        }
        Some(())
    }
}

fn id(name: &str) -> NodeId {
    NodeId { network: network(), name: name.parse().unwrap() }
}

/// What these files say, without what breaks a rule. The network stays: a hub that is not declared is none,
/// and a range that is too small for what is declared is a wide one.
fn snapshot(declared: &BTreeMap<ResourceId, Option<Value>>) -> Snapshot {
    let is_declared = |hub: &Value| {
        let mut nodes = declared.iter().filter(|(id, body)| id.kind == Kind::Node && body.is_some());
        nodes.any(|(id, _)| hub == id.name.as_str())
    };
    let fields = |body: &Value| -> Record {
        let mut body = body.clone();
        if !body.get("hub").is_none_or(is_declared) {
            body.as_object_mut().unwrap().remove("hub");
        }
        serde_json::from_value::<Field>(body).unwrap().as_record().unwrap().clone()
    };
    let drafts: Vec<Draft> =
        declared.iter().map(|(id, body)| (id.clone(), body.as_ref().map(fields))).collect();
    let repair = |drafts| repaired(Snapshot::default(), drafts);
    let files = repair(drafts.clone());
    if files.network(&network()).is_some() {
        return files;
    }
    let wide = (ResourceId::of_network(network()), Some(fields(&json!({ "ipv4": "10.40.0.0/24" }))));
    repair(drafts.into_iter().filter(|(id, _)| id.kind != Kind::Network).chain([wide]).collect())
}
