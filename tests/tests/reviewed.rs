//! A running server with 200 nodes that have joined: every number of a plan is what the nodes are sent after its apply.
//!
//! `nmplan plan` and `nmplan apply` change the network step by step, and 200 agents without devices ask for their Views.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../../schema/tests/worlds/mod.rs"]
mod worlds;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use end_to_end::load::{InProcess, joined, private_folder, seed_world};
use jiff::Timestamp;
use nmplan::lab::Programs;
use schema::access::Access;
use schema::compile::Mesh;
use schema::decode::decode;
use schema::inventory::NodeId;
use schema::kinds::Kind;
use schema::plan::Plan;
use schema::scalars::{Name, NetworkName};
use schema::snapshot::{Entry, Owner, Revision};
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;
use schema::view::View;
use schema::world::World;
use test_agent::Agent;

use worlds::impacted::{Sent, check, is_the_same, opens, ways};

const NODES: u32 = 200;

fn name(number: u32) -> Name {
    format!("host-{number}").parse().unwrap()
}

/// The files of a step: what of the network's own is said, and what else is in it.
fn corp(own: &str, more: &str) -> String {
    let tags = |number: u32| match number {
        0..2 => "gateway",
        2..12 => "db",
        12..60 => "web",
        _ => "staff",
    };
    let nodes: String = (0..NODES)
        .map(|number| format!("    node \"host-{number}\" {{ tags \"{}\" }}\n", tags(number)))
        .collect();
    format!("network \"corp\" {{\n    {own}\n{nodes}    dns \"pg\" node=\"host-2\"\n{more}\n}}\n")
}

const RULES: &str = r#"
    allow "sql" from="tag:web" to="tag:db" proto="tcp" ports="5432"
    allow "web" from="tag:staff" to="tag:web" proto="tcp" { ports "80" "443" }
    allow "ssh" from="tag:gateway" to="*" proto="tcp" ports="22"
"#;

/// The steps: each is planned, applied and compared with what the nodes have then.
fn steps() -> Vec<(&'static str, String)> {
    let wide = "ipv4 \"10.0.0.0/16\"";
    let deny = "ipv4 \"10.0.0.0/16\"; acl \"deny\"";
    let egress = "    egress \"office\" via=\"host-0\" for=\"tag:staff\" { ranges \"192.168.10.0/24\" }\n";
    vec![
        ("rules", corp(deny, RULES)),
        (
            "a rule more",
            corp(deny, &format!("{RULES}    allow \"ping\" from=\"*\" to=\"tag:web\" proto=\"icmp\"\n")),
        ),
        ("no rules", corp(wide, "")),
        ("a hub", corp("ipv4 \"10.0.0.0/16\"; hub \"host-0\"", "")),
        ("rules around the hub", corp("ipv4 \"10.0.0.0/16\"; acl \"deny\"; hub \"host-0\"", RULES)),
        ("a mesh again", corp(deny, RULES)),
        ("a relay", corp(wide, "    relay \"db\" via=\"host-1\" for=\"tag:db\"\n")),
        ("another relay", corp(wide, "    relay \"db\" via=\"host-0\" for=\"tag:db\"\n")),
        ("an egress", corp(wide, egress)),
        ("the egress by another node", corp(wide, &egress.replace("host-0", "host-1"))),
        (
            "an exit",
            corp(wide, "    egress \"exit\" via=\"host-1\" for=\"tag:web\" { ranges \"0.0.0.0/0\" }\n"),
        ),
        ("no names", corp("ipv4 \"10.0.0.0/16\"; name-service #false", "")),
        ("names", corp(wide, "    dns \"www\" node=\"host-12\"\n")),
        ("another range", corp("ipv4 \"10.99.0.0/16\"", "")),
        (
            "an address that another has",
            corp("ipv4 \"10.99.0.0/16\"", "").replace("\"host-150\" {", "\"host-150\" ipv4=\"10.99.0.3\" {"),
        ),
        ("other settings", corp("ipv4 \"10.99.0.0/16\"; mtu 1380; listen-port 51999; keepalive \"5s\"", "")),
    ]
}

/// What the files of a step declare, as a server has it, with every node joined.
fn world(text: &str) -> World {
    let source = Source { name: "corp.kdl".into(), text: text.into(), language: Language::Kdl };
    let (declared, report) = decode(parse(&source, SourceId(0), Kind::DESCRIPTORS).0);
    assert!(!report.has_errors(), "{report:?}");
    let owner: Owner = "acme/default".parse().unwrap();
    let mut world = World::default();
    for (id, entry) in declared.snapshot.entries() {
        let entry = Entry { owner: Some(owner.clone()), revision: Revision(1), ..entry.clone() };
        world.snapshot.put(id.clone(), entry);
    }
    let corp: NetworkName = "corp".parse().unwrap();
    for number in 0..NODES {
        let mut node = joined(number, Timestamp::now());
        node.addresses.retain(|address| address.is_ipv4());
        world.inventory.put_node(NodeId::of(&corp, &name(number)), node);
    }
    world
}

async fn received(agents: &mut [Agent]) -> BTreeMap<Name, View> {
    let mut views = BTreeMap::new();
    for agent in agents {
        agent.check_in(None).await.unwrap();
        views.insert(agent.name.clone(), agent.view.clone().unwrap());
    }
    views
}

/// How many pairs may open something in the first that they may not in the second.
fn lost(before: &BTreeMap<(Name, Name), Access>, after: &BTreeMap<(Name, Name), Access>) -> u64 {
    let nothing = Access::default();
    let loses = |(pair, had): (&(Name, Name), &Access)| {
        !had.without(after.get(pair).unwrap_or(&nothing)).is_nothing()
    };
    before.iter().filter(|it| loses(*it)).count() as u64
}

/// Asserts that the plan said what the nodes were sent.
fn compare(
    what: &str,
    plan: &Plan,
    before: &BTreeMap<Name, View>,
    after: &BTreeMap<Name, View>,
    worlds: [&World; 2],
) {
    let said = |result: Result<(), proptest::test_runner::TestCaseError>| {
        result.unwrap_or_else(|error| panic!("{what}: {error}"));
    };
    let corp: NetworkName = "corp".parse().unwrap();
    let [was, is] = worlds.map(|world| Mesh::compile(&corp, &world.snapshot, &world.inventory).unwrap());
    let (sent_before, sent_after) = (Sent::of(before), Sent::of(after));
    for (node, had) in before {
        let has = &after[node];
        let impact = plan.impact.iter().find(|impact| impact.node == *node);
        match impact {
            Some(impact) => said(check(impact, had, has)),
            None => assert!(is_the_same(had, has), "{what}: nothing is said of {node}"),
        }
        said(ways(impact, node, (&sent_before, &was), (&sent_after, &is), true));
    }
    let affected = before.iter().filter(|(node, had)| !is_the_same(had, &after[*node])).count();
    assert_eq!(plan.impact.len(), affected, "{what}: nodes");
    // Ranges are no nodes, and nobody sends a View to them.
    if plan.reach.iter().all(|change| !format!("{}{}", change.from, change.to).contains('/')) {
        let (had, has) = (opens(&sent_before), opens(&sent_after));
        let pairs = [lost(&had, &has), lost(&has, &had)];
        assert_eq!([plan.pairs.lost, plan.pairs.gained], pairs, "{what}: pairs lost and gained");
        assert!(plan.pairs.of >= u64::from(NODES * (NODES - 1)), "{what}: all pairs, ranges among them");
    }
}

fn nmplan(
    programs: &Programs,
    folder: &Path,
    environment: &[(&'static str, String)],
    words: &[&str],
) -> String {
    let mut command = Command::new(&programs.nmplan);
    command.args(words).args(["--project", "acme", "-f"]).arg(folder.join("corp.kdl"));
    let output = command.envs(environment.iter().cloned()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn every_number_of_a_plan_is_what_200_nodes_are_sent_after_the_apply() {
    let programs = Programs::find().unwrap();
    let folder = private_folder();
    let data = folder.path().join("data");
    let first = corp("ipv4 \"10.0.0.0/16\"", "");
    let mut known = world(&first);
    seed_world(&data, &known);
    let serving = InProcess::serve(&data).await;
    let mut agents: Vec<Agent> =
        (0..NODES).map(|number| Agent::new(&serving.known, "corp", name(number).as_str(), number)).collect();
    let mut before = received(&mut agents).await;
    assert!(before.values().all(|view| view.peers.len() as u32 == NODES - 1));
    for (what, text) in steps() {
        std::fs::write(folder.path().join("corp.kdl"), &text).unwrap();
        let run = |words: &[&str]| nmplan(&programs, folder.path(), &serving.environment, words);
        let plan: Plan = serde_json::from_str(&run(&["plan", "--format", "json"])).unwrap();
        let (events, digest) = (run(&["plan", "--json"]), plan.digest.clone());
        let summary = events.lines().last().unwrap();
        let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
        assert_eq!(summary["reach_lost"], plan.pairs.lost, "{what}: events say the same");
        assert_eq!(events.lines().filter(|it| it.contains("\"node_impact\"")).count(), plan.impact.len());
        run(&["apply", "-q", "--expect", &digest]);
        let after = received(&mut agents).await;
        let next = serving.world();
        compare(what, &plan, &before, &after, [&known, &next]);
        (before, known) = (after, next);
    }
    serving.end().await;
}
