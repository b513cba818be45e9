//! Tests in files: judged by `validate`, `test`, `plan` and `apply`; and what `explain` answers.

mod workspace;

use schema::inventory::{Joined, NodeId};
use schema::snapshot::Revision;
use schema::world::World;
use workspace::{Workspace, joined};

/// The rules of a company, in which the database is for web servers.
const CORP: &str = "network \"corp\" ipv4=\"10.40.0.0/16\" acl=\"deny\" {
    node \"web-1\" { tags \"web\" }
    node \"db-1\" { tags \"db\" }
    node \"laptop\"
    allow \"web-to-db\" from=\"tag:web\" to=\"tag:db\" proto=\"tcp\" ports=\"5432\"
    test \"database\" {
        reach from=\"tag:web\" to=\"tag:db\" port=5432
        no-reach from=\"*\" to=\"tag:db\" except=\"tag:web\"
    }
    test \"laptop\" { no-reach from=\"tag:web\" to=\"laptop\" }
}
";
/// A rule that the test `database` forbids.
const EVERYBODY: &str = "    allow \"everybody\" from=\"*\" to=\"db-1\" proto=\"icmp\"\n    test \"laptop\"";
const FAILS: &str = "corp/test/database";

/// A workspace with files in `good/`, and in `bad/` with one rule too many.
fn workspace() -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    workspace.write("good/corp.kdl", CORP);
    workspace.write("bad/corp.kdl", &CORP.replace("    test \"laptop\"", EVERYBODY));
    workspace
}

#[test]
fn the_tests_of_files_are_judged_and_a_failing_one_is_shown_with_the_rule_that_lets_it_through() {
    let workspace = workspace();
    for (line, exit) in [
        ("validate -C @good", 0),
        ("test -C @good", 0),
        ("validate -C @bad", 3),
        ("test -C @bad", 3),
        ("test laptop -C @bad", 0),
        ("test corp/database -C @bad", 3),
        ("test corp/test/database -C @bad", 3),
        ("test datbase -C @bad", 1),
        ("test -C @bad --network other", 1),
    ] {
        let ran = workspace.nmplan(line);
        assert_eq!(ran.exit, exit, "{line}: {}", ran.all());
    }
    let shown = ["validate -C @good", "test -C @bad", "validate -C @bad", "test datbase -C @bad"];
    let shown: Vec<_> =
        shown.iter().map(|line| format!("$ {line}\n{}", workspace.nmplan(line).all())).collect();
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn each_assertion_is_an_event_with_its_place_and_the_places_of_the_rules() {
    let workspace = workspace();
    for line in ["test --json -C @bad", "validate --json -C @bad", "plan --json -C @bad --project acme"] {
        let events = workspace.nmplan(line).events();
        let assertions: Vec<_> = events.iter().filter(|event| event["type"] == "assertion").collect();
        let outcomes: Vec<_> = assertions.iter().map(|it| it["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["holds", "fails", "holds"], "{line}");
        let fails = assertions[1];
        assert_eq!((&fails["id"], &fails["line"]), (&FAILS.into(), &8.into()), "{line}: {fails:#}");
        assert_eq!(fails["counterexample"]["from"], "laptop", "{line}: {fails:#}");
        assert_eq!(fails["because"][0]["id"], "corp/allow/everybody", "{line}: {fails:#}");
        assert_eq!(fails["because"][0]["line"], 10, "{line}: {fails:#}");
        let end = events.last().unwrap();
        assert_eq!((&end["type"], &end["exit"]), (&"failure".into(), &3.into()), "{line}: {end:#}");
    }
}

#[test]
fn a_plan_after_which_a_test_fails_is_refused_by_plan_and_apply_and_let_through_once() {
    let workspace = workspace();
    let good = workspace.nmplan("plan -C @good --project acme --detailed-exitcode");
    assert_eq!(good.exit, 2, "{}", good.all());
    assert!(good.stdout.contains("\n2 tests hold.\n"), "{}", good.stdout);
    let refused = workspace.nmplan("plan -C @bad --project acme --detailed-exitcode");
    assert_eq!(refused.exit, 3, "before 2: {}", refused.all());
    insta::assert_snapshot!(refused.all());
    let document: serde_json::Value =
        serde_json::from_str(&workspace.nmplan("plan -C @bad --project acme --format json").stdout).unwrap();
    assert_eq!(document["tests"][1]["outcome"], "fails", "{document:#}");
    let apply = workspace.nmplan("apply -C @bad --project acme -y");
    assert_eq!((apply.exit, workspace.server.state().revision), (3, Revision(0)), "{}", apply.all());

    let allow = format!("--allow test={FAILS}");
    let plan = workspace.nmplan(&format!("plan -C @bad --project acme {allow}"));
    assert_eq!(plan.exit, 0, "{}", plan.all());
    assert!(plan.stdout.contains(&format!(" {allow}\n")), "{}", plan.stdout);
    let apply = workspace.nmplan(&format!("apply -C @bad --project acme -y {allow}"));
    assert_eq!(apply.exit, 0, "{}", apply.all());
    let shown = workspace.nmplan("show 1").stdout;
    assert!(shown.contains(&format!("let through the rule test={FAILS}\n")), "{shown}");

    // Nothing is left to refuse, but the test fails all the same.
    let again = workspace.nmplan("apply -C @bad --project acme -y");
    assert_eq!(again.exit, 0, "{}", again.all());
    assert_eq!(workspace.nmplan("plan -C @bad --project acme").exit, 3);
    // The next change of the network is judged again.
    workspace.write("bad/more.kdl", "network \"corp\" { dns \"x\" a=\"10.40.9.9\" }\n");
    assert_eq!(workspace.nmplan("apply -C @bad --project acme -y").exit, 3);
    workspace.write("bad/more.kdl", "network \"lab\" ipv4=\"10.50.0.0/16\"\n");
    assert_eq!(workspace.nmplan("apply -C @bad --project acme -y").exit, 0, "another network");

    let needless = workspace.nmplan(&format!("apply -C @good --project acme -y {allow}"));
    let line = format!("--allow test={FAILS} is not needed: the plan does not break that rule.\n");
    assert!(needless.exit == 0 && needless.stderr.contains(&line), "{}", needless.all());
}

#[test]
fn a_plan_is_judged_with_what_has_joined_when_it_is_applied() {
    let workspace = workspace();
    workspace.write(
        "good/corp.kdl",
        &CORP.replace("from=\"tag:web\" to=\"tag:db\" proto", "from=\"tag:web\" to=\"*\" proto"),
    );
    assert_eq!(workspace.nmplan("apply -C @good --project acme -y").exit, 3, "the laptop is reached");
    let files = CORP.replace(
        "test \"laptop\" { no-reach from=\"tag:web\" to=\"laptop\" }",
        "test \"lab\" { no-reach from=\"tag:lab\" to=\"*\" }",
    );
    workspace.write("good/corp.kdl", &files);
    let first = workspace.nmplan("apply -C @good --project acme -y");
    assert_eq!(first.exit, 0, "{}", first.all());
    workspace.write(
        "good/corp.kdl",
        &files
            .replace("from=\"tag:web\" to=\"tag:db\" proto", "from=\"tag:lab\" to=\"tag:db\" proto")
            .replace("reach from=\"tag:web\" to=\"tag:db\" port=5432\n        ", ""),
    );
    let saved = workspace.nmplan("plan -C @good --project acme --out @plan.json");
    assert_eq!(saved.exit, 0, "nobody has the tag: {}", saved.all());
    assert!(saved.stderr.contains("test::of_nobody"), "it is a warning: {}", saved.stderr);
    let tags = ["lab".parse().unwrap()].into();
    let id = NodeId::of(&"corp".parse().unwrap(), &"guest".parse().unwrap());
    workspace
        .server
        .change_elsewhere(|world| world.inventory.put_node(id, Joined { tags, claimed: false, ..joined(9) }));
    let refused = workspace.nmplan("apply @plan.json -y");
    assert_eq!(refused.exit, 3, "{}", refused.all());
    assert!(refused.stderr.contains("guest may open tcp 5432 at db-1"), "{}", refused.stderr);
}

#[test]
fn explain_says_by_which_rules_one_reaches_another_or_why_not() {
    let mut workspace = workspace();
    let asked = [
        "explain web-1 db-1 -C @bad",
        "explain web-1 corp/db-1 --port 5432 -C @bad",
        "explain web-1 db-1 --port 22 -C @bad",
        "explain db-1 web-1 --proto udp -C @bad",
        "explain laptop web-1 -C @bad",
        "explain * tag:db --proto icmp -C @bad",
        "explain * tag:db --port 5432 -C @bad",
        "explain db-1 db-1 -C @bad",
        "explain web-1 192.168.7.1 -C @bad",
    ];
    let mut shown = String::new();
    for line in asked {
        let ran = workspace.nmplan(line);
        assert_eq!(ran.exit, 0, "{line}: {}", ran.all());
        shown += &format!("$ {line}\n{}\n", ran.all());
    }
    workspace.write(
        "bad/lab.kdl",
        "network \"lab\" ipv4=\"10.50.0.0/16\" { node \"db-1\"; node \"web-1\"; node \"x\" }",
    );
    for (line, exit) in [
        ("explain web-1 db-1 -C @bad", 1),
        ("explain web-1 db-1 -C @bad --network lab", 0),
        ("explain laptop x -C @bad", 0),
        ("explain laptpo db-1 -C @bad", 1),
        ("explain Laptop db-1 -C @bad", 1),
        ("explain laptop db-1 --proto icmp --port 5 -C @bad", 1),
    ] {
        let ran = workspace.nmplan(line);
        assert_eq!(ran.exit, exit, "{line}: {}", ran.all());
        shown += &format!("$ {line}\n{}\n", ran.all());
    }
    let json = workspace.nmplan("explain web-1 db-1 --port 5432 --json -C @bad --network corp").events();
    let [answer] = &*json else { panic!("{json:#?}") };
    assert_eq!((&answer["answer"], &answer["because"]), (&"yes".into(), &"rules".into()), "{answer:#}");
    assert_eq!(answer["rules"][0]["line"], 5, "{answer:#}");
    assert_eq!(answer["with_joined_nodes"], false);

    // What has joined is asked of a server that is set.
    workspace.environment.push(("NMPLAN_SERVER".into(), "https://nm.example.net".into()));
    let ran =
        workspace.nmplan("explain laptop db-1 --proto icmp --json -C @bad --project acme --network corp");
    assert_eq!(ran.events()[0]["with_joined_nodes"], true, "{}", ran.all());
    insta::assert_snapshot!(shown);
}

#[test]
fn a_command_that_prints_one_document_shows_problems_as_text_beside_it() {
    let workspace = workspace();
    workspace.write("warned/corp.kdl", &CORP.replace("to=\"tag:db\" proto", "to=\"tag:dbs\" proto"));
    let line = "explain web-1 db-1 -C @warned --json";
    let ran = workspace.nmplan(line);
    let [answer] = &*ran.events() else { panic!("{}", ran.all()) };
    assert_eq!(answer["answer"], "no", "{answer:#}");
    assert!(
        ran.stderr.contains("schema::selects_nothing") && ran.stderr.contains("corp.kdl:5"),
        "{}",
        ran.all()
    );
    workspace.write("warned/corp.kdl", &CORP.replace("ipv4=", "ipv5="));
    let ran = workspace.nmplan(line);
    let [failure] = &*ran.events() else { panic!("{}", ran.all()) };
    assert_eq!((ran.exit, &failure["type"]), (1, &"failure".into()), "{}", ran.all());
    assert!(ran.stderr.contains("schema::unknown_field"), "{}", ran.all());
}
