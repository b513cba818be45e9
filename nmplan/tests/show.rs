//! `show WHAT` and `status WHAT`: one network, node, access key or other resource.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use jiff::Timestamp;
use nmplan::commands::schema::{show, status};
use schema::api::{NodeStatus, Presence};
use schema::inventory::{Joined, KeyStatus, NodeId, NodeProblem, Quarantined};
use schema::snapshot::Revision;
use schema::world::World;
use serde_json::Value;
use workspace::{Workspace, joined, online, pending};

const CORP: &str = r#"
network "corp" {
    ipv4 "10.40.0.0/24"
    ipv6 "fd40:40::/64"
    acl "deny"
    access-key "first" { for "gw" "web-2" "web-10" }
    access-key "ci" uses=3 expires="2099-01-01" { tags "web" }
    access-key "old" uses=9 expires="2099-01-01"
    access-key "spent" uses=1
    node "gw"
    node "web-2" { tags "web" }
    node "web-10" ipv4="10.40.0.10" { tags "web" }
    node "db" { tags "db" }
    allow "web" from="tag:web" proto="tcp" ports=5432 { to "db" "gw"; }
    dns "api" a="10.40.0.9"
    egress "office" { via "gw" "web-2"; ranges "192.168.10.0/24" }
    allow "office" from="tag:web" to="192.168.10.0/24"
    ingress "front" via="gw"
    external-client "phone" via="front"
}
"#;
const LAB: &str = "network \"lab\" {\n    ipv4 \"10.41.0.0/24\"\n    node \"db\"\n}\n";

/// A workspace whose server has these networks, of which some nodes have joined.
fn workspace() -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    workspace.write("corp.kdl", CORP);
    workspace.write("lab.kdl", LAB);
    let applied = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
    assert_eq!(applied.exit, 0, "{}", applied.all());
    let corp = "corp".parse().unwrap();
    let made: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
    workspace.server.change_elsewhere(|world| {
        let inventory = &mut world.inventory;
        let keys: Vec<_> = inventory.keys().map(|(id, status)| (id.clone(), (**status).clone())).collect();
        for (id, status) in keys {
            let used = match id.name.as_str() {
                "spent" => 1,
                "ci" | "first" => 2,
                _ => 0,
            };
            inventory.put_key(id, KeyStatus { created: made, used, ..status });
        }
        let mut put = |name: &str, number: u8, more: Joined| {
            inventory.put_node(NodeId::of(&corp, &name.parse().unwrap()), Joined { ..more });
            number
        };
        put("gw", 1, joined(1));
        let problems = vec![NodeProblem::new(NodeProblem::NAMES, "/etc/hosts is read-only")];
        put("web-2", 2, Joined { problems, ..joined(2) });
        let by_key = |number| Joined { key: "ci".parse().ok(), claimed: false, ..joined(number) };
        put("runner-10", 10, Joined { tags: ["web".parse().unwrap()].into(), ..by_key(30) });
        put("runner-9", 9, by_key(29));
        let left = Quarantined { since: made, node: "gone".parse().unwrap() };
        inventory.put_quarantined(corp.clone(), "10.40.0.77".parse().unwrap(), left);
        let (identity, host) = pending(9, "newcomer");
        inventory.put_pending(corp.clone(), identity, host);
    });
    let status = |name: &str, state: Presence, has: Option<u64>| NodeStatus {
        state,
        last_check_in: has.map(|_| Timestamp::now()),
        ..online(name, has.map(Revision))
    };
    let mut nodes = vec![
        status("gw", Presence::Online, Some(2)),
        status("web-10", Presence::Awaiting, None),
        status("web-2", Presence::Silent, Some(1)),
        status("db", Presence::Awaiting, None),
    ];
    nodes.push(NodeStatus { id: "lab/node/db".into(), ..status("db", Presence::Awaiting, None) });
    nodes[2].problems = vec![NodeProblem::new(NodeProblem::NAMES, "/etc/hosts is read-only")];
    workspace.server.set_nodes(nodes);
    workspace
}

/// What a command prints, without how long ago or away anything is.
fn printed(workspace: &Workspace, line: &str) -> String {
    let ran = workspace.nmplan(line);
    assert_eq!(ran.exit, 0, "{}", ran.all());
    let lines = ran.stdout.lines().map(|line| {
        let mut words: Vec<&str> = line.split(' ').collect();
        for at in 0..words.len().saturating_sub(2) {
            if words[at + 2] == "ago" {
                words[at] = "N";
            }
            if words[at] == "(in" {
                words[at + 1] = "N";
            }
            if words[at].starts_with("(20") {
                (words[at], words[at + 1]) = ("(DAY", "TIME");
            }
        }
        words.join(" ") + "\n"
    });
    lines.collect()
}

#[test]
fn a_key_is_shown_with_what_is_left_of_it_and_who_joined_with_it() {
    let workspace = workspace();
    let shown: Vec<_> = ["ci", "corp/first", "corp/access-key/spent"]
        .map(|key| printed(&workspace, &format!("show {key}")))
        .into();
    insta::assert_snapshot!(shown.join("\n---\n\n"));
}

#[test]
fn a_node_is_shown_with_its_host_whom_it_reaches_and_what_it_carries() {
    let workspace = workspace();
    let shown: Vec<_> = ["web-2", "corp/web-10", "corp/node/runner-10", "newcomer", "phone"]
        .map(|node| printed(&workspace, &format!("show {node}")))
        .into();
    insta::assert_snapshot!(shown.join("\n---\n\n"));
}

#[test]
fn a_network_is_shown_with_its_addresses_nodes_keys_and_carriers() {
    let workspace = workspace();
    let shown: Vec<_> =
        ["corp", "corp/egress/office", "api"].map(|what| printed(&workspace, &format!("show {what}"))).into();
    insta::assert_snapshot!(shown.join("\n---\n\n"));
}

#[test]
fn the_status_of_one_thing_is_that_of_everything_cut_down_to_it() {
    let workspace = workspace();
    let shown: Vec<_> =
        ["", "web-2", "corp/web-10", "corp/db", "corp/access-key/ci", "corp/egress/office", "lab"]
            .map(|what| format!("$ nmplan status {what}\n{}", printed(&workspace, &format!("status {what}"))))
            .into();
    insta::assert_snapshot!(shown.join("\n"));
    let document = |line: &str| -> Value { serde_json::from_str(&workspace.nmplan(line).stdout).unwrap() };
    let ids = |of: &Value| -> Vec<String> {
        of.as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect()
    };
    let awaited = document("status corp/web-10 --json");
    assert_eq!(
        (ids(&awaited["nodes"]), ids(&awaited["keys"])),
        (vec!["corp/node/web-10".into()], vec!["corp/access-key/first".into()])
    );
    let silent = document("status web-2 --json");
    assert_eq!((ids(&silent["egress"]), ids(&silent["keys"])), (vec!["corp/egress/office".into()], vec![]));
    assert_eq!(document("status corp --json"), document("status --network corp --json"));
    assert_eq!(
        ids(&document("status corp --json")["nodes"]),
        ["corp/node/db", "corp/node/gw", "corp/node/web-2", "corp/node/web-10"],
        "numbers count as numbers"
    );
}

#[test]
fn what_is_typed_is_a_file_that_exists_then_a_revision_then_a_name() {
    let workspace = workspace();
    assert!(workspace.nmplan("show 1").stdout.starts_with("Revision 1, "));
    let messages: Vec<_> = [
        "show db",
        "show wep-2",
        "show office",
        "show corp/nothing-like-it",
        "status db",
        "status --network lab nothing",
        "status --network lab gw",
        "show --network lab ci",
        "show --network lba ci",
        "show 18446744073709551615",
        "status corp/dns/api",
        "show --network lab corp/gw",
        "show nothing.json",
    ]
    .map(|line| {
        let ran = workspace.nmplan(line);
        assert_eq!((ran.exit, &*ran.stdout), (1, ""), "{line}");
        format!("$ nmplan {line}\n{}", ran.stderr)
    })
    .into();
    insta::assert_snapshot!(messages.join("\n"));
    assert!(workspace.nmplan("show --network lab db").stdout.starts_with("lab/node/db on "));
    // A file goes before everything, whatever it is called.
    workspace.nmplan("plan -C @. --project acme --out @corp");
    let at = workspace.path("corp").display().to_string();
    assert!(workspace.nmplan(&format!("show {at}")).stdout.starts_with("Plan of acme/default"));
}

#[test]
fn what_is_shown_of_one_thing_fits_the_published_schemas() {
    let workspace = workspace();
    let fits = |schema: &Value, line: &str| {
        let value: Value = serde_json::from_str(&workspace.nmplan(line).stdout).unwrap();
        let validator = jsonschema::draft202012::new(schema).unwrap();
        let wrong: Vec<_> = validator
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{line}: {wrong:#?}\n{value:#}");
        let mut more = value;
        more["surprise"] = 1.into();
        assert!(!validator.is_valid(&more), "{line}: what is not described does not fit");
    };
    for what in [
        "corp",
        "web-2",
        "corp/web-10",
        "runner-9",
        "newcomer",
        "ci",
        "corp/first",
        "phone",
        "api",
        "corp/egress/office",
    ] {
        fits(&show(), &format!("show {what} --json"));
    }
    for what in ["", "corp", "web-2", "corp/web-10", "ci", "corp/egress/office"] {
        fits(&status(), &format!("status {what} --json"));
    }
}

#[test]
fn a_directory_that_is_called_like_a_resource_is_no_saved_plan() {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    workspace.write("a.kdl", "network \"src\" ipv4=\"10.40.0.0/24\" { node \"tests\"; }");
    assert_eq!(workspace.nmplan("apply -C @. --project acme -y").exit, 0);
    assert!(
        ["src", "tests"].iter().all(|name| std::path::Path::new(name).is_dir()),
        "they are in this crate"
    );
    assert!(printed(&workspace, "show src").starts_with("src on "));
    assert!(printed(&workspace, "show tests").starts_with("src/node/tests on "));
    let device = workspace.nmplan("show /dev/null");
    assert!(device.stderr.contains("/dev/null") && !device.stderr.contains("no file"), "{}", device.all());
}

#[test]
fn names_are_listed_in_the_order_of_their_numbers() {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    let nodes: String = (1..=11).map(|number| format!("node \"host-{number}\"; ")).collect();
    workspace.write("a.kdl", &format!("network \"corp\" ipv4=\"10.40.0.0/24\" {{ {nodes} }}"));
    assert_eq!(workspace.nmplan("apply -C @. --project acme -y").exit, 0);
    let shown = printed(&workspace, "show");
    assert!(shown.contains("host-1, host-2, host-3, host-4, host-5 and 6 more"), "{shown}");
}

#[test]
fn what_is_shown_fits_the_terminal() {
    let mut workspace = workspace();
    workspace.columns = Some(60);
    for line in [
        "show",
        "show 1",
        "show corp",
        "show web-2",
        "show ci",
        "show newcomer",
        "show phone",
        "show corp/egress/office",
        "status",
        "status web-2",
        "status corp/web-10",
        "history",
        "node list",
    ] {
        let ran = workspace.nmplan(line);
        assert_eq!(ran.exit, 0, "{line}: {}", ran.all());
        let commands = |it: &&str| it.starts_with("    nmplan ");
        let long = |it: &&str| it.chars().count() > 60 && it.trim_start().contains(' ');
        let wide: Vec<_> = ran.stdout.lines().filter(|it| long(it) && !commands(it)).collect();
        assert!(wide.is_empty(), "{line}: {wide:#?}\n{}", ran.stdout);
    }
}
