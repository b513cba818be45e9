//! What holds for all declarations: of the differ, the plan, the languages, the wire.
#![expect(clippy::unwrap_used, reason = "a test")]

mod worlds;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use schema::decode::{Declared, decode, decode_body};
use schema::diff::diff;
use schema::guard::{self, Guard};
use schema::inventory::{Away, NodeId};
use schema::kinds::{Egress, Kind};
use schema::limits::{Limits, StoredGuard};
use schema::plan::{self, Plan, plan};
use schema::report::Code;
use schema::rules;
use schema::scalars::Limit;
use schema::snapshot::{Entry, Owner, Revision, Snapshot};
use schema::source_map::SourceMap;
use schema::subject::Subject;
use schema::syntax::{Language, Source, parse, print};
use schema::value::{Data, SourceId, Value};
use schema::world::{World, WorldDocument};

use worlds::{Moment, cases, documents, edits, server, snapshots, worlds};

fn owner() -> Owner {
    "acme/dev".parse().unwrap()
}

/// The objects without their owners and revisions.
fn bare(snapshot: &Snapshot) -> Snapshot {
    let mut bare = Snapshot::default();
    for (id, entry) in snapshot.entries() {
        bare.put(id.clone(), Entry { revision: Revision(0), owner: None, ..entry.clone() });
    }
    bare
}

fn managed(world: &World) -> World {
    let mut managed = world.clone();
    for (id, entry) in world.snapshot.entries() {
        managed
            .snapshot
            .put(id.clone(), Entry { owner: Some(owner()), revision: world.revision, ..entry.clone() });
    }
    managed
}

/// The plan from a world to a snapshot; nothing where the nodes would not fit.
fn planned(world: &World, next: &Snapshot, moment: &Moment) -> Option<Plan> {
    let declared = Declared { snapshot: next.clone(), source_map: SourceMap::default() };
    match plan(&declared, &owner(), None, world, &server(), moment.now) {
        Ok(plan) => Some(plan),
        Err(report) => {
            let codes: Vec<_> = report.problems().map(|problem| problem.code).collect();
            assert_eq!(codes, [Code::RangeExhausted], "nothing else can be wrong");
            None
        }
    }
}

/// Guards, of which many leave something without a limit.
fn guards() -> impl Strategy<Value = Limits> {
    let limit = || {
        let texts = ["0", "1", "3", "0%", "10%", "50%", "100%", "25% or 1"];
        prop::option::of(select(texts.to_vec()).prop_map(|text| text.parse::<Limit>().unwrap()))
    };
    let limits = (limit(), limit(), limit());
    limits.prop_map(|(max_delete, max_nodes_changed, max_reach_lost)| Limits {
        max_delete,
        max_nodes_changed,
        max_reach_lost,
    })
}

fn read(text: &str, language: Language) -> Snapshot {
    let source = Source { name: "law".into(), text: text.into(), language };
    let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    assert!(report.is_empty(), "{text}\n{report:#?}");
    let (declared, mut report) = decode(documents);
    report.append(rules::check(&declared.snapshot, &declared.source_map));
    assert!(report.is_empty(), "{text}\n{report:#?}");
    declared.snapshot
}

/// What a YAML file of these objects holds, written without our printer.
fn tree(snapshot: &Snapshot) -> serde_json::Value {
    let mut tree = serde_json::Map::new();
    for (id, entry) in snapshot.entries() {
        let body = serde_json::to_value(entry.object.body()).unwrap();
        let descriptor = id.kind.descriptor();
        let mut holder = &mut tree;
        if descriptor.within.is_some() {
            holder = holder["networks"][id.network.as_str()].as_object_mut().unwrap();
        }
        let objects = holder.entry(descriptor.plural).or_insert_with(|| serde_json::json!({}));
        objects[id.name.as_str()] = body;
    }
    tree.into()
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn nothing_differs_from_itself(snapshot in snapshots()) {
        prop_assert_eq!(diff(&snapshot, &snapshot), []);
    }

    #[test]
    fn applying_a_plan_gives_what_is_declared_and_leaves_nothing_to_plan((moment, next) in edits()) {
        let world = managed(&moment.world);
        let Some(plan) = planned(&world, &next, &moment) else { return Ok(()) };
        prop_assert_eq!(plan.applyable, bare(&world.snapshot) != next);
        prop_assert_eq!(&plan.changes, &diff(&bare(&world.snapshot), &next));
        prop_assert_eq!(plan.stale(&world), []);
        let outcome = plan.apply(&world, &server(), moment.now).unwrap();
        prop_assert_eq!(bare(&outcome.snapshot), next.clone());
        for impact in &plan.impact {
            let id = NodeId::of(&impact.network, &impact.node);
            let (had, has) = (world.inventory.node(&id).unwrap(), outcome.inventory.node(&id));
            prop_assert_eq!(has.is_none(), impact.removed);
            let new: Vec<_> = has.iter().flat_map(|it| it.addresses.difference(&had.addresses)).copied().collect();
            prop_assert_eq!(new, impact.readdressed.iter().filter_map(|it| it.after).collect::<Vec<_>>());
        }
        let revision = Revision(world.revision.0 + 1);
        let after = World { revision, snapshot: outcome.snapshot, inventory: outcome.inventory, ..world };
        let again = planned(&after, &next, &moment).unwrap();
        prop_assert!(!again.applyable && again.changes.is_empty() && again.impact.is_empty() && again.reach.is_empty());
    }

    #[test]
    fn a_plan_is_refused_once_what_it_touches_has_moved((moment, next) in edits()) {
        let world = managed(&moment.world);
        let Some(plan) = planned(&world, &next, &moment) else { return Ok(()) };
        for id in plan.base_revisions.keys() {
            let mut moved = world.clone();
            let entry = world.snapshot.entry(id).or(next.entry(id)).unwrap();
            moved.snapshot.put(id.clone(), Entry { revision: Revision(1_000), ..entry.clone() });
            prop_assert_eq!(plan.stale(&moved), [(id.clone().into(), Revision(1_000))]);
        }
    }

    #[test]
    fn a_server_judges_an_apply_as_its_plan_was_judged_by_the_guard_before(
        (moment, next) in edits(), stored in guards(), declared in prop::option::of(guards())
    ) {
        let mut world = managed(&moment.world);
        world.guards.put(owner(), StoredGuard { revision: world.revision, limits: stored.clone() });
        world.guards.settle(&world.snapshot);
        let Some(plan) = planned(&world, &next, &moment) else { return Ok(()) };
        let without = plan.digest.clone();
        let plan = plan.with_guard(declared.as_ref(), &world);
        prop_assert_eq!(plan.digest == without, plan.guard.is_none(), "what does not change is no part of it");
        let outcome = plan.apply(&world, &server(), moment.now).unwrap();
        let effect = plan::effect(&world, &outcome, &server());
        prop_assert_eq!(plan.effect(), effect);
        let summary = plan.summary();
        prop_assert_eq!(summary.nodes_changed, effect.nodes_changed);
        prop_assert_eq!(plan.pairs.lost_by_members, effect.reach_lost);
        prop_assert!(summary.reach_lost >= effect.reach_lost, "ranges are no members");
        let judged = |after: &Snapshot, effect| {
            let findings = guard::over_limits(&owner(), &world, after, || effect);
            findings.into_iter().map(|it| (it.guard, it.problem.message)).collect::<Vec<_>>()
        };
        let by_server = judged(&outcome.snapshot, effect);
        prop_assert_eq!(&judged(&next, plan.effect()), &by_server);
        let first = world.snapshot.is_empty();
        let over = |limit: Option<Limit>, does, of| limit.is_some_and(|limit| does > limit.of(of)) && !first;
        let deletes = over(stored.max_delete, summary.delete, world.snapshot.len() as u64);
        prop_assert_eq!(by_server.iter().any(|(guard, _)| *guard == Guard::MaxDelete), deletes);
        let nodes = over(stored.max_nodes_changed, effect.nodes_changed, world.inventory.nodes().count() as u64);
        prop_assert_eq!(by_server.iter().any(|(guard, _)| *guard == Guard::MaxNodesChanged), nodes);

        let revision = Revision(world.revision.0 + 1);
        let mut after = World { revision, snapshot: outcome.snapshot, inventory: outcome.inventory, ..world.clone() };
        after.settle_guards(owner(), plan.guard.as_ref(), revision);
        let is = after.guards.of(&owner()).map(|guard| guard.limits.clone());
        let kept = declared.clone().unwrap_or(stored).is_empty() || next.is_empty();
        prop_assert_eq!(is.is_none(), kept || declared.is_none() && first);
        let again = planned(&after, &next, &moment).unwrap().with_guard(declared.as_ref(), &after);
        prop_assert!(!again.applyable && again.guard.is_none(), "{:?}", again.guard);
        if plan.guard.is_some() {
            prop_assert_eq!(plan.stale(&world), []);
            let now = is.map_or(Revision(0), |_| revision);
            prop_assert!(plan.stale(&after).contains(&(Subject::Guard(owner()), now)));
        }
    }

    #[test]
    fn a_saved_plan_reads_back_with_the_digest_that_it_states((moment, next) in edits(), guard in guards()) {
        let world = managed(&moment.world);
        let Some(plan) = planned(&world, &next, &moment) else { return Ok(()) };
        let plan = plan.with_guard(Some(&guard), &world);
        let back: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        prop_assert_eq!(&back, &plan);
        prop_assert_eq!(back.digest_now(), plan.digest);
    }

    #[test]
    fn the_order_of_documents_is_irrelevant(
        (snapshot, shuffled) in snapshots().prop_flat_map(|it| (Just(it.clone()), Just(documents(&it)).prop_shuffle()))
    ) {
        let (declared, mut report) = decode(shuffled);
        report.append(rules::check(&declared.snapshot, &declared.source_map));
        prop_assert!(report.is_empty(), "{report:#?}");
        prop_assert_eq!(declared.snapshot, snapshot);
    }

    #[test]
    fn both_languages_read_back_what_they_print(snapshot in snapshots()) {
        for language in [Language::Kdl, Language::Yaml] {
            let text = print(&documents(&snapshot), language);
            prop_assert_eq!(&read(&text, language), &snapshot, "{}", text);
        }
    }

    #[test]
    fn an_independent_reader_of_yaml_reads_what_we_print_as_we_mean_it(snapshot in snapshots()) {
        let text = print(&documents(&snapshot), Language::Yaml);
        let theirs: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        prop_assert_eq!(theirs, tree(&snapshot), "{}", text);
    }

    #[test]
    fn bodies_and_worlds_survive_their_json(moment in worlds(), guard in guards()) {
        for (id, entry) in moment.world.snapshot.entries() {
            let json = serde_jcs::to_string(&entry.object.body()).unwrap();
            let body: Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&decode_body(id, &body).unwrap().object, &entry.object);
        }
        let mut world = managed(&moment.world);
        for (place, (id, _)) in moment.world.inventory.nodes().enumerate() {
            let egress = world.snapshot.all_in::<Egress>(&id.network).map(|(id, _)| id.name.clone()).collect();
            world.inventory.set_away(id.clone(), Away { everything: place % 2 == 0, egress });
        }
        for (id, _) in moment.world.snapshot.entries().filter(|(id, _)| id.kind == Kind::Egress) {
            world.inventory.set_carried(id.node(), true);
        }
        world.inventory.set_resolvers(["10.40.0.53".parse().unwrap()].into());
        world.guards.put(owner(), StoredGuard { revision: Revision(3), limits: guard });
        let json = serde_json::to_string(&world.document(server())).unwrap();
        let back: WorldDocument = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(back.world().unwrap(), World { epoch: 1, ..world });
    }

    #[test]
    fn a_body_leaves_out_what_would_hold_anyway_and_reads_the_same_with_it(snapshot in snapshots()) {
        for (id, entry) in snapshot.entries() {
            let mut fields = entry.object.body().as_record().unwrap().clone();
            for field in id.kind.descriptor().fields {
                let Some(default) = field.default.map(|default| default()) else { continue };
                let said = fields.get(field.name).map(|member| &member.value);
                prop_assert_ne!(said, Some(&default), "{}.{} is left out", id.kind, field.name);
                fields.entry(field.name.into()).or_insert_with(|| default.into());
            }
            prop_assert!(!fields.values().any(|member| member.value.data == Data::Null), "{id}: {fields:?}");
            for (name, _) in fields.iter().filter(|(_, member)| member.value == Value::list([])) {
                let mut without = fields.clone();
                without.remove(name);
                let read = decode_body(id, &Data::Record(without).into()).unwrap().object;
                prop_assert_ne!(&read, &entry.object, "{}.{} is left out where it is empty", id.kind, name);
            }
            prop_assert_eq!(&decode_body(id, &Data::Record(fields).into()).unwrap().object, &entry.object);
        }
    }
}

#[test]
fn the_random_worlds_use_every_field_of_every_kind() {
    let mut runner = TestRunner::deterministic();
    let mut used = BTreeSet::new();
    for _ in 0..256 {
        let snapshot = snapshots().new_tree(&mut runner).unwrap().current();
        for (id, entry) in snapshot.entries() {
            let body = entry.object.body();
            let said = body.as_record().unwrap().iter();
            used.extend(said.map(|(name, _)| (id.kind, name.to_string())));
        }
    }
    let all = Kind::ALL
        .iter()
        .flat_map(|kind| kind.descriptor().fields.iter().map(|field| (*kind, field.name.to_owned())));
    assert_eq!(used, all.collect());
}

/// Plain scalars that readers of YAML have disagreed about, and any others.
fn scalars() -> impl Strategy<Value = String> {
    const NASTY: &[&str] = &[
        "null",
        "~",
        "Null",
        "true",
        "True",
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "010",
        "0o10",
        "0x1F",
        "0b1",
        "1_000",
        "1e3",
        "1.5",
        "1.",
        ".5",
        "-0",
        "-0.0",
        "+5",
        "+.inf",
        ".inf",
        ".NaN",
        "12:30:45",
        "2027-03-01",
        "10.40.0.0/16",
        "fd40::1",
        "=",
        "-",
        "--",
        "-a",
        "a#b",
        "a:b",
        "18446744073709551615",
        "-9223372036854775808",
        "9223372036854775808",
        "1e400",
        "0",
        "-1",
        "00",
        "-01",
        "0.10",
        "1.10",
        "'010'",
        "\"true\"",
        "'it''s'",
        "\"\\u00e4\"",
        "x y",
        "${a}",
    ];
    prop_oneof![
        2 => select(NASTY).prop_map(str::to_owned),
        2 => "[-+]?[0-9_]{1,4}(\\.[0-9]{0,2})?(e[0-9])?",
        1 => "[a-z0-9.:/_#~' -]{1,8}",
    ]
}

/// Forms that only some readers take for numbers: they stay texts here, and a field that wants a number
/// refuses them.
fn ambiguous(text: &str) -> bool {
    let digits = text.trim_start_matches(['-', '+']);
    let zero = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    let point = digits.starts_with('.') || digits.ends_with('.');
    let letter = |c: char| matches!(c, 'e' | 'E' | 'x' | 'o' | 'b' | '_');
    text.starts_with('+') || zero || point || digits.contains(letter)
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn both_readers_of_yaml_agree_about_scalars(scalar in scalars()) {
        let text = format!("networks:\n  corp:\n    ipv4: {scalar}\n");
        let source = Source { name: "law".into(), text: text.as_str().into(), language: Language::Yaml };
        let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
        let Some(member) = documents.first().and_then(|it| it.fields.get("ipv4")).filter(|_| report.is_empty()) else {
            return Ok(());
        };
        let theirs: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
        let theirs = &theirs["networks"]["corp"]["ipv4"];
        match &member.value.data {
            Data::Null => prop_assert!(theirs.is_null(), "{theirs:?}"),
            Data::Flag => prop_assert!(false, "YAML has no flags"),
            Data::Bool(ours) => prop_assert_eq!(theirs.as_bool(), Some(*ours)),
            Data::Integer(0) => prop_assert_eq!(theirs.as_f64(), Some(0.0)),
            Data::Integer(ours) => prop_assert_eq!(theirs.as_i64(), Some(*ours)),
            Data::Float(ours) => prop_assert_eq!(theirs.as_f64(), ours.parse().ok()),
            Data::Text(ours) if theirs.is_number() => prop_assert!(ambiguous(ours), "{ours} is not a text to others"),
            Data::Text(ours) => prop_assert_eq!(theirs.as_str(), Some(&**ours)),
            Data::List(_) | Data::Record(_) => {}
        }
    }
}

/// Pieces of KDL in any order: what a scanner of nesting may mistake.
fn soup() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "a", " ", "\n", "\r", "{", "}", "\"", "\"\"\"", "\"\"\"\n", "#\"", "\"#", "##\"", "\"##", "#\"\"\"",
        "\"\"\"#", "/*", "*/", "//", "/-", "\\", "\\\"", "\\\n", ";", "=", "(", ")", "#true", "#", "1", "'",
        "\u{2028}", "\u{feff}", "é", "*", "/",
    ];
    let bomb = (
        select(&["{", "a{", "a{\n", "/-{", "/*", "a{/*", "(", "a \"\"{", "a{\"\""][..]),
        select(&[70, 3_000, 30_000][..]),
    )
        .prop_map(|(piece, times)| piece.repeat(times));
    let piece = prop_oneof![30 => select(PIECES).prop_map(str::to_owned), 1 => bomb];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(cases(400))]

    /// A stack that runs out ends the process and with it this test.
    #[test]
    fn no_soup_of_brackets_quotes_and_comments_overflows_the_stack(soup in soup()) {
        for language in [Language::Kdl, Language::Yaml] {
            let source = Source { name: "soup".into(), text: soup.as_str().into(), language };
            let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
            prop_assert!(documents.is_empty() || report.len() < 1_000);
        }
    }
}
