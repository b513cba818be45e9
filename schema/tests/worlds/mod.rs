//! Random worlds for the laws: one strategy, built from the descriptors, covers every kind.
//!
//! A draft has, for every object of a fixed set of names, any fields that its descriptor allows. [`repaired`]
//! then takes away what breaks a rule, so a kind that is added is covered without a word here; the few hints
//! in [`hinted`] only make values likelier that have to fit each other.
#![expect(clippy::unwrap_used, reason = "a test")]
#![allow(dead_code, reason = "each suite uses its part")]

pub mod following;
pub mod impacted;
pub mod reading;
pub mod reported;
pub mod small;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use schema::compile::allocate::{Allocator, ReservedAddresses};
use schema::compile::reconcile::reconcile;
use schema::decode::decode_body;
use schema::descriptor::{Field, Fields, Target, Type};
use schema::document::{Document, Spanned};
use schema::inventory::{Away, Endpoints, Inventory, Joined, NodeId};
use schema::kinds::{Dns, ExternalClient, Ingress, Kind, Node, Object};
use schema::report::Severity;
use schema::rules;
use schema::scalars::{Identity, Name, NetworkName, SigningKey, WireGuardKey};
use schema::snapshot::{Entry, ResourceId, Revision, Snapshot};
use schema::source_map::SourceMap;
use schema::value::{Data, FieldValue, Record, SourceId, Span, Value};
use schema::world::{ServerInfo, World};

/// Networks and their ranges: small ones, so that they fill up. Names that a careless reader takes for other
/// things.
const NETWORKS: [(&str, &[&str], &[&str]); 2] = [
    ("corp", &["10.40.0.0/24", "10.40.0.0/28", "10.40.0.8/29"], &["fd40::/64", "fd40::/125"]),
    ("0x10", &["10.41.0.0/29", "10.41.0.0/16"], &["fd41::/120"]),
];
/// Names of the first kinds, in their order, which other programs read as something else.
const TRICKY: [&[&str]; 4] = [
    &["corp"],
    &["true", "1e3", "no", "gw", "7"],
    &["null", "0x1f", "ci"],
    &["www", "off", "12-30", "2027-03-01"],
];
/// Names by kind: no two kinds of one network share any.
static NAMES: LazyLock<Vec<Vec<&'static str>>> = LazyLock::new(|| {
    let further = |place: usize| ["on", "y"].map(|word| &*format!("{word}-{place}").leak()).to_vec();
    (0..Kind::ALL.len())
        .map(|place| TRICKY.get(place).map_or_else(|| further(place), |names| names.to_vec()))
        .collect()
});
/// Names that no file declares under which nodes join; the last is also an entry's.
const UNDECLARED: [&str; 3] = ["laptop", "0", "www"];

/// One object of a draft: its id and its fields, if it is there.
pub type Draft = (ResourceId, Option<Record>);

/// How often a law is tried; PROPTEST_CASES (256 by default) makes all of them longer or shorter.
pub fn cases(often: u32) -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases * often / 256, failure_persistence: None, ..usual }
}

/// How often a law of small networks is tried: so often, or as often as CASES says.
pub fn draws(often: u32) -> ProptestConfig {
    let cases = std::env::var("CASES").map_or(often, |cases| cases.parse().unwrap());
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A server that keeps nothing for itself.
pub fn server() -> ServerInfo {
    ServerInfo {
        id: "test".into(),
        epoch: 1,
        agent_addresses: vec!["192.0.2.1:50051".into()],
        signing_key: SigningKey([1; 32]),
        ca_pin: None,
        version: "0".into(),
        comms_range: None,
        own_node: None,
        addresses: Vec::new(),
    }
}

fn names(kind: Kind) -> &'static [&'static str] {
    &NAMES[kind as usize]
}

fn network(place: usize) -> NetworkName {
    NETWORKS[place].0.parse().unwrap()
}

/// Every id that a draft may hold.
fn ids() -> Vec<ResourceId> {
    let inside = |place: usize| {
        let inner = Kind::ALL.iter().filter(|kind| kind.descriptor().within.is_some());
        inner.flat_map(move |kind| {
            names(*kind).iter().map(move |name| ResourceId {
                network: network(place),
                kind: *kind,
                name: name.parse().unwrap(),
            })
        })
    };
    (0..NETWORKS.len())
        .flat_map(|place| [ResourceId::of_network(network(place))].into_iter().chain(inside(place)))
        .collect()
}

/// Any value of a type, whether or not it fits others.
fn value(ty: &'static Type) -> BoxedStrategy<Value> {
    match ty {
        Type::Bool => any::<bool>().prop_map(|it| Data::Bool(it).into()).boxed(),
        Type::Integer { min, max } => (*min..=*max).prop_map(|it| Data::Integer(it).into()).boxed(),
        Type::Scalar(scalar) => {
            let named = scalar.names.into_iter().flat_map(|word| Kind::meant_by(Target::NamedBy(word)));
            let names = named.flat_map(names).copied();
            // An example of a name is that of nothing.
            let is_name = |text: &&str| scalar.names.is_some() && text.parse::<Name>().is_ok();
            let others = scalar.good.iter().copied().filter(|text| !is_name(text));
            select(others.chain(names).collect::<Vec<_>>()).prop_map(Value::text).boxed()
        }
        Type::Choice(words) => {
            select(words.iter().map(|word| word.word).collect::<Vec<_>>()).prop_map(Value::text).boxed()
        }
        Type::Text => "\\PC{0,12}".prop_map(Value::text).boxed(),
        Type::Reference(kind) => {
            let known: Vec<_> = Kind::meant_by(Target::Kind(kind)).flat_map(names).copied().collect();
            select(known).prop_map(Value::text).boxed()
        }
        Type::Set(inner) | Type::List(inner) => {
            prop::collection::vec(value(inner), 0..4).prop_map(Value::list).boxed()
        }
        Type::NonEmpty(Type::Set(inner) | Type::List(inner)) => {
            prop::collection::vec(value(inner), 1..4).prop_map(Value::list).boxed()
        }
        Type::NonEmpty(inner) => value(inner),
        Type::Record(fields) => record(fields).prop_map(|record| Data::Record(record).into()).boxed(),
        Type::Map(inner) => {
            let entry =
                ("\\PC{0,8}", value(inner)).prop_map(|(name, value)| (name.into(), FieldValue::from(value)));
            prop::collection::btree_map(Just(()), entry, 0..1)
                .prop_map(|entries| Data::Record(entries.into_values().collect()).into())
                .boxed()
        }
    }
}

/// Any values of the fields, of which those that must be given always are.
pub fn record(fields: &'static Fields) -> BoxedStrategy<Record> {
    let one = |field: &'static Field| {
        let value = value(&field.ty);
        let value =
            if field.required { value.prop_map(Some).boxed() } else { option::weighted(0.4, value).boxed() };
        value.prop_map(|value| value.map(|value| (field.name.into(), FieldValue::from(value))))
    };
    let fields: Vec<_> = fields.iter().map(one).collect();
    fields.prop_map(|fields| fields.into_iter().flatten().collect()).boxed()
}

/// Values of the few fields that have to fit their network; nothing where any value does.
fn hinted(id: &ResourceId, field: &'static Field) -> Option<BoxedStrategy<Value>> {
    let (name, ipv4, ipv6) = NETWORKS.iter().find(|(name, ..)| *name == id.network.as_str())?;
    let second = if *name == "corp" { 40 } else { 41 };
    let texts = |texts: &'static [&'static str]| select(texts).prop_map(Value::text).boxed();
    Some(match (id.kind.descriptor().within, field.name) {
        (None, "ipv4") => texts(ipv4),
        (None, "ipv6") => texts(ipv6),
        (None, "acl") => texts(&["deny", "deny", "allow"]),
        (Some(_), "ipv4") => {
            (0..18u8).prop_map(move |last| Value::text(format!("10.{second}.0.{last}"))).boxed()
        }
        (Some(_), "ipv6") => {
            (0..10u8).prop_map(move |last| Value::text(format!("fd{second}::{last}"))).boxed()
        }
        (Some(_), "a") => {
            (1..18u8).prop_map(move |last| Value::text(format!("10.{second}.0.{last}"))).boxed()
        }
        (Some(_), "pool") => {
            let pools: &'static [&'static str] = match name {
                &"corp" => &["10.40.0.8/30", "10.40.0.12/30", "fd40::10/124"],
                _ => &["10.41.0.4/30", "fd41::10/124"],
            };
            let some = prop::collection::vec(select(pools), 1..3);
            some.prop_map(|pools| Value::list(pools.into_iter().map(Value::text))).boxed()
        }
        (Some(_), "cname") => {
            let inside = select(&["true", "gw", "www", "off", "12-30"][..]);
            let inside = inside.prop_map(move |inner| Value::text(format!("{inner}.{name}")));
            prop_oneof![4 => inside, 1 => value(&field.ty)].boxed()
        }
        _ => return None,
    })
}

fn fields(id: &ResourceId) -> BoxedStrategy<Record> {
    let one = |field: &'static Field| {
        let value = hinted(id, field).unwrap_or_else(|| value(&field.ty));
        let likely = match (id.kind.descriptor().within, field.name) {
            (None, "ipv4" | "acl") => 0.9,
            (_, _) => 0.4,
        };
        let value = if field.required {
            value.prop_map(Some).boxed()
        } else {
            option::weighted(likely, value).boxed()
        };
        value.prop_map(|value| value.map(|value| (field.name.into(), FieldValue::from(value))))
    };
    let fields: Vec<_> = id.kind.descriptor().fields.iter().map(one).collect();
    fields.prop_map(|fields| fields.into_iter().flatten().collect()).boxed()
}

fn object(id: ResourceId) -> BoxedStrategy<Draft> {
    let likely = if id.kind.descriptor().within.is_none() { 0.95 } else { 0.6 };
    option::weighted(likely, fields(&id)).prop_map(move |fields| (id.clone(), fields)).boxed()
}

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    ids().into_iter().map(object).collect::<Vec<_>>()
}

/// A snapshot that breaks no rule.
pub fn snapshots() -> impl Strategy<Value = Snapshot> {
    drafts().prop_map(|drafts| repaired(Snapshot::default(), drafts))
}

/// A world, and what its files say next: anything between hardly a difference and nothing in common.
pub fn edits() -> impl Strategy<Value = (Moment, Snapshot)> {
    (worlds(), drafts(), 0..20usize).prop_map(|(moment, drafts, kept)| {
        let changed = drafts.into_iter().skip(kept).collect();
        let next = repaired(moment.world.snapshot.clone(), changed);
        (moment, next)
    })
}

/// The snapshot with these objects put in or taken out, and then all that breaks a rule taken out, field by
/// field.
pub fn repaired(mut snapshot: Snapshot, drafts: Vec<Draft>) -> Snapshot {
    for (id, fields) in drafts {
        match fields {
            Some(fields) => put(&mut snapshot, &id, fields),
            None => drop(snapshot.delete(&id)),
        }
    }
    loop {
        let report = rules::check(&snapshot, &SourceMap::default());
        let errors = report.problems().filter(|problem| problem.code.severity() == Severity::Error);
        let broken: BTreeSet<ResourceId> =
            errors.map(|problem| problem.id.as_deref().unwrap().parse().unwrap()).collect();
        if broken.is_empty() {
            return snapshot;
        }
        for id in broken {
            weaken(&mut snapshot, &id);
        }
    }
}

fn put(snapshot: &mut Snapshot, id: &ResourceId, fields: Record) {
    if let Ok(entry) = decode_body(id, &Data::Record(fields).into()) {
        snapshot.put(id.clone(), entry);
    }
}

/// Takes a field away; where there is none, or no such object, all of it.
fn weaken(snapshot: &mut Snapshot, id: &ResourceId) {
    let Some(entry) = snapshot.delete(id) else {
        let inside: Vec<_> =
            snapshot.entries().map(|(it, _)| it.clone()).filter(|it| it.network == id.network).collect();
        inside.iter().for_each(|it| drop(snapshot.delete(it)));
        return;
    };
    let mut fields = entry.object.body().as_record().unwrap().clone();
    let said: Vec<_> = fields.keys().cloned().collect();
    if said.is_empty() {
        return;
    }
    // Any of them, but the same one each time.
    let chance: usize = entry.object.body().to_string().bytes().map(usize::from).sum();
    fields.remove(&said[chance % said.len()]);
    put(snapshot, id, fields);
}

/// The documents of a snapshot, as if read from a file.
pub fn documents(snapshot: &Snapshot) -> Vec<Document> {
    let spanned = |text: &str| Spanned { text: text.into(), span: Span::default() };
    let document = |(id, entry): (&ResourceId, &Entry)| Document {
        descriptor: id.kind.descriptor(),
        source: SourceId(0),
        name: spanned(id.name.as_str()),
        parent: id.kind.descriptor().within.map(|_| spanned(id.network.as_str())),
        fields: entry.object.body().as_record().unwrap().clone(),
        whole: true,
    };
    snapshot.entries().map(document).collect()
}

/// Something that happens to a world.
#[derive(Clone, Debug)]
pub enum Event {
    /// A file is edited.
    Declare(Draft),
    /// A node joins under a name.
    Join { network: usize, name: Index, declared: bool, claimed: bool },
    /// A node leaves.
    Leave(Index),
    /// A node is seen elsewhere.
    Moves(Index, u16),
    /// Time passes.
    Wait(i64),
}

fn events() -> impl Strategy<Value = Event> {
    let declare = any::<Index>().prop_flat_map(|index| object(index.get(&ids()).clone()));
    let places = 0..NETWORKS.len();
    let join = (any::<Index>(), any::<bool>(), any::<bool>());
    prop_oneof![
        4 => declare.prop_map(Event::Declare),
        5 => (places, join).prop_map(|(network, (name, declared, claimed))| Event::Join { network, name, declared, claimed }),
        2 => any::<Index>().prop_map(Event::Leave),
        1 => (any::<Index>(), 1..u16::MAX).prop_map(|(node, port)| Event::Moves(node, port)),
        1 => select(&[1, 300, 900, 90_000][..]).prop_map(Event::Wait),
    ]
}

/// A world at one moment of a history.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The world.
    pub world: World,
    /// The time.
    pub now: Timestamp,
}

/// The moments of a world, one after each thing that happens to it.
pub fn histories() -> impl Strategy<Value = Vec<Moment>> {
    let drawn = (snapshots(), prop::collection::vec(events(), 0..24));
    drawn.prop_filter_map("its external clients find no room", |(snapshot, events)| {
        let start: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let inventory = reconcile(&Inventory::default(), &snapshot, &[], start).ok()?;
        let mut moments =
            vec![Moment { world: World { snapshot, inventory, ..World::default() }, now: start }];
        for event in &events {
            let mut next = moments.last().unwrap().clone();
            if happens(&mut next, event).is_some() {
                next.world.revision = Revision(next.world.revision.0 + 1);
                moments.push(next);
            }
        }
        Some(moments)
    })
}

/// The last moment of a history.
pub fn worlds() -> impl Strategy<Value = Moment> {
    histories().prop_map(|moments| moments.last().unwrap().clone())
}

/// Lets it happen; nothing if it cannot.
fn happens(moment: &mut Moment, event: &Event) -> Option<()> {
    let Moment { world: World { snapshot, inventory, revision, .. }, now } = moment;
    match event {
        Event::Declare(draft) => {
            let next = repaired(snapshot.clone(), vec![draft.clone()]);
            *inventory = reconcile(inventory, &next, &[], *now).ok()?;
            *snapshot = next;
        }
        Event::Join { network: place, name, declared, claimed } => {
            let network = network(*place);
            let pool = if *declared { names(Kind::Node) } else { &UNDECLARED[..] };
            let name: Name = name.get(pool).parse().unwrap();
            let id = NodeId { network, name };
            if inventory.node(&id).is_some() {
                return None;
            }
            let joined = joined(&id, *claimed, revision.0, snapshot, inventory, *now)?;
            inventory.put_node(id, joined);
        }
        Event::Leave(index) => drop(inventory.remove_node(&some_node(inventory, index)?, *now)),
        Event::Moves(index, port) => {
            let id = some_node(inventory, index)?;
            let joined = (**inventory.node(&id)?).clone();
            let configured = format!("192.0.2.7:{port}").parse().ok();
            let endpoints = Endpoints { configured, ..Endpoints::default() };
            inventory.put_node(id, Joined { endpoints, listen_port: *port, ..joined });
        }
        Event::Wait(seconds) => {
            *now = now.checked_add(SignedDuration::from_secs(*seconds)).ok()?;
            // Clients expire.
            *inventory = reconcile(inventory, snapshot, &[], *now).ok()?;
        }
    }
    Some(())
}

fn some_node(inventory: &Inventory, index: &Index) -> Option<NodeId> {
    let nodes: Vec<_> = inventory.nodes().map(|(id, _)| id.clone()).collect();
    (!nodes.is_empty()).then(|| index.get(&nodes).clone())
}

/// A node that joins under a name, with the addresses that it is given; nothing if there is no room.
pub fn joined(
    id: &NodeId,
    claimed: bool,
    salt: u64,
    declared: &Snapshot,
    inventory: &Inventory,
    now: Timestamp,
) -> Option<Joined> {
    declared.network(&id.network)?;
    let reserved = ReservedAddresses::of(&id.network, declared, &[]);
    let mut allocator = Allocator::new(&id.network, declared, &reserved, inventory, now);
    let addresses = allocator.addresses(&id.name, &BTreeSet::new(), inventory).ok()?;
    let claims = claimed && declared.named::<Node>(&id.network, &id.name).is_some();
    Some(joined_at(addresses, claims, salt, now))
}

/// A node that has joined, with these addresses.
fn joined_at(addresses: BTreeSet<IpAddr>, claimed: bool, salt: u64, now: Timestamp) -> Joined {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&salt.to_be_bytes());
    Joined {
        public_key: WireGuardKey(key),
        identity: Identity(key),
        addresses,
        endpoints: Default::default(),
        listen_port: 51_821,
        tags: BTreeSet::new(),
        key: None,
        claimed,
        joined: now,
        problems: Vec::new(),
        os: "".into(),
    }
}

/// The world once everybody is there who is awaited: each declared node has joined, and each external client
/// that is enabled has a key and does not expire. Nobody is away, and no address in quarantine. A node for which
/// there is no room has no addresses.
pub fn completed(world: &World) -> World {
    let mut world = world.clone();
    let World { snapshot, inventory, .. } = &mut world;
    let networks: Vec<NetworkName> = snapshot.networks().map(|(name, _)| name.clone()).collect();
    let clients: Vec<_> = networks
        .iter()
        .flat_map(|network| snapshot.all_in::<ExternalClient>(network))
        .filter(|(_, client)| client.enabled)
        .map(|(id, client)| (id.clone(), (**client).clone()))
        .collect();
    for ((id, client), number) in clients.into_iter().zip(1..) {
        let public_key = client.public_key.or(Some(WireGuardKey([number; 32])));
        let client = ExternalClient { public_key, expires: None, ..client };
        let entry = snapshot.delete(&id).unwrap();
        snapshot.put(id, Entry { object: Object::ExternalClient(client.into()), ..entry });
    }
    let later: Timestamp = "2100-01-01T00:00:00Z".parse().unwrap();
    *inventory = reconcile(inventory, snapshot, &[], later).expect("there is room");
    let nodes = networks.iter().flat_map(|network| snapshot.all_in::<Node>(network));
    let nodes: Vec<NodeId> = nodes.map(|(id, _)| id.node()).collect();
    for (id, number) in nodes.into_iter().zip(1_000..) {
        if inventory.node(&id).is_none() {
            let joined = joined(&id, true, number, snapshot, inventory, later);
            let without = || joined_at(BTreeSet::new(), true, number, later);
            inventory.put_node(id, joined.unwrap_or_else(without));
        }
    }
    let away: Vec<_> = inventory.away().map(|(id, _)| id.clone()).collect();
    away.into_iter().for_each(|id| inventory.set_away(id, Away::default()));
    world
}

/// What a node may never have: the range's own first or, in IPv4, last address, or one that is reserved for
/// another.
pub fn forbidden(id: &NodeId, address: IpAddr, declared: &Snapshot) -> bool {
    let Some(range) = declared.network(&id.network).and_then(|network| network.range_of(address)) else {
        return true;
    };
    let last = address.is_ipv4() && address == range.broadcast();
    if !range.contains(&address) || address == range.network() || last {
        return true;
    }
    let nodes = declared.all_in::<Node>(&id.network).map(|(id, it)| (id, it.reserved().collect::<Vec<_>>()));
    let clients = declared.all_in::<ExternalClient>(&id.network);
    let clients = clients.map(|(id, it)| (id, it.reserved().collect::<Vec<_>>()));
    let mut others = nodes.chain(clients).filter(|(other, _)| other.name != id.name);
    others.any(|(_, reserved)| reserved.iter().any(|(_, taken)| *taken == address))
}

/// What a node may keep and is never given: an address in a pool, or one of an entry that is not reserved for
/// the node.
pub fn entrys(id: &NodeId, address: IpAddr, declared: &Snapshot) -> bool {
    let own = declared.named::<Node>(&id.network, &id.name);
    if own.is_some_and(|node| node.reserved().any(|(_, reserved)| reserved == address)) {
        return false;
    }
    let mut entries = declared.all_in::<Dns>(&id.network).flat_map(|(_, dns)| {
        dns.a.iter().copied().map(IpAddr::from).chain(dns.aaaa.iter().copied().map(IpAddr::from))
    });
    let mut pools = declared.all_in::<Ingress>(&id.network).flat_map(|(_, ingress)| &ingress.pool);
    entries.any(|taken| taken == address) || pools.any(|pool| pool.net().contains(&address))
}
