//! What a plan warns of, as people and programs read it.

mod workspace;

use schema::snapshot::Revision;
use schema::world::World;
use workspace::{Workspace, join};

const BEFORE: &str = r#"
network "corp" {
    ipv4 "10.40.0.0/24"
    acl "deny"
    node "gw"
    node "web-1" { tags "web" }
    node "web-2" { tags "web" }
    node "web-3" { tags "web" }
    node "db-1" { tags "db" }
    node "db-2" { tags "db" }
    node "old"
    node "lone"
    allow "members" from="*" to="*"
    dns "api" a="10.40.0.2"
    dns "printer" a="10.40.0.99"
    ingress "front" via="gw" endpoint="192.0.2.10:51821"
    external-client "phone" via="front" public-key="xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=" { tags "far" }
}
"#;

const AFTER: &str = r#"
network "corp" {
    ipv4 "10.50.0.0/24"
    acl "deny"
    node "gw"
    node "web-1" { tags "web" }
    node "web-2" { tags "web" }
    node "web-3" { tags "web" }
    node "db-1" { tags "db" }
    node "db-2" { tags "db" }
    node "old"
    node "lone"
    allow "web" from="tag:web" to="tag:db"
    allow "web-ssh" from="web-1" to="db-1" proto="tcp" ports="22"
    allow "self" from="gw" to="gw"
    dns "api" a="10.40.0.2"
    dns "printer" a="10.40.0.99"
    access-key "ci" uses="unlimited" { tags "web" }
    egress "office" via="gw" ranges="192.168.10.0/24"
    relay "far" via="old" for="tag:far"
    ingress "front" via="gw" endpoint="192.0.2.10:51821"
    external-client "phone" via="front" public-key="xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=" { tags "far" }
    egress "lab" via="gw" ranges="192.168.20.0/24"
    allow "lab" to="192.168.20.0/24" { from "tag:web" "tag:db"; }
}
"#;

/// The same without what there is to warn of, each by the help of its warning or by what is nearest.
const CALM: &str = r#"
network "corp" {
    ipv4 "10.50.0.0/24"
    acl "deny"
    node "gw"
    node "web-1" { tags "web" }
    node "web-2" { tags "web" }
    node "web-3" { tags "web" }
    node "db-1" { tags "db" }
    node "db-2" { tags "db" }
    node "old"
    node "lone"
    allow "web" from="tag:web" to="tag:db"
    allow "web-ssh" from="web-1" to="old" proto="tcp" ports="22"
    allow "self" from="gw" to="lone"
    allow "office" from="*" to="192.168.10.0/24"
    dns "api" node="web-1"
    dns "printer" a="10.50.0.99"
    access-key "ci" uses="unlimited" expires="30d" { tags "web" }
    egress "office" { via "gw" "old"; ranges "192.168.10.0/24" }
    ingress "front" via="gw" endpoint="192.0.2.10:51821"
    external-client "phone" via="front" public-key="xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=" { tags "far" }
}
"#;

fn workspace() -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    workspace.write("before/corp.kdl", BEFORE);
    workspace.write("after/corp.kdl", AFTER);
    workspace.write("calm/corp.kdl", CALM);
    let applied = workspace.nmplan("apply -C @before --project acme -y");
    assert!(applied.exit == 0 && !applied.stderr.contains("::"), "{}", applied.all());
    let nodes = [
        ("gw", 1),
        ("web-1", 2),
        ("web-2", 3),
        ("web-3", 4),
        ("db-1", 5),
        ("db-2", 6),
        ("old", 7),
        ("lone", 8),
    ];
    join(&workspace.server, &nodes);
    workspace
}

#[test]
fn a_plan_says_what_a_careful_colleague_would_at_the_line_that_it_is_about() {
    let workspace = workspace();
    let plan = workspace.nmplan("plan -C @after --project acme");
    assert_eq!(plan.exit, 0, "{}", plan.all());
    insta::assert_snapshot!(plan.stderr);
    // Whoever reads the first lines knows that a file has to be handed out.
    assert!(plan.stdout.contains("1 external client needs a new configuration"), "{}", plan.stdout);
}

#[test]
fn nothing_is_said_of_a_plan_without_any_of_that_and_nothing_again_after_the_apply() {
    let workspace = workspace();
    let calm = workspace.nmplan("plan -C @calm --project acme");
    assert_eq!((calm.exit, &*calm.stderr), (0, ""), "{}", calm.all());
    let applied = workspace.nmplan("apply -C @after --project acme -y --keys-to @keys.json");
    assert_eq!(applied.exit, 0, "{}", applied.all());
    let again = workspace.nmplan("plan -C @after --project acme");
    assert!(again.stdout.contains("No changes") && !again.stderr.contains("plan::"), "{}", again.all());
    assert!(again.stderr.contains("schema::outside_entry"), "what files say is said: {}", again.stderr);
}

#[test]
fn each_warning_is_an_event_of_plan_and_of_apply_and_a_saved_plan_has_them_too() {
    let workspace = workspace();
    let warned = |line: &str| -> Vec<(String, u64)> {
        let printed = workspace.nmplan(line);
        let diagnostics = printed.events().into_iter().filter(|event| event["type"] == "diagnostic");
        let said = diagnostics.map(|event| {
            assert_eq!(event["severity"], "warning", "{event}");
            (
                event["code"].as_str().unwrap_or_default().to_owned(),
                event["line"].as_u64().unwrap_or_default(),
            )
        });
        said.collect()
    };
    let all = [
        ("plan::isolated_node", 12),
        ("plan::rule_covered", 14),
        ("plan::rule_of_one", 15),
        ("plan::old_address", 16),
        ("plan::old_address", 17),
        ("plan::endless_key", 18),
        ("plan::route_without_rule", 19),
        ("plan::relay_of_nobody", 20),
        ("plan::single_carrier", 23),
    ];
    let all: Vec<_> = all.into_iter().map(|(code, line)| (code.to_owned(), line)).collect();
    let events = workspace.nmplan("plan -C @after --project acme --json").events();
    let summary = events.iter().find(|event| event["type"] == "summary");
    assert!(summary.is_some_and(|summary| summary["clients_anew"] == 1), "{summary:?}");
    let mut sorted = warned("plan -C @after --project acme --json --out @plan.json");
    sorted.sort_by(|one, other| (one.1, &one.0).cmp(&(other.1, &other.0)));
    assert_eq!(sorted, all);
    // Asked for without a terminal, the apply stops where it would ask.
    let asked = workspace.nmplan("apply -C @after --project acme --keys-to @keys.json");
    assert!(asked.stderr.contains("plan::endless_key"), "{}", asked.all());
    assert_eq!(workspace.server.state().revision, Revision(2));
    let mut codes: Vec<_> = warned("apply @plan.json --json -y --keys-to @keys.json");
    codes.sort();
    assert_eq!(codes.len(), all.len(), "{codes:?}");
    assert!(
        codes.iter().all(|(code, line)| *line == 0 && all.iter().any(|(known, _)| known == code)),
        "{codes:?}"
    );
}
