//! The guard of a project and protected networks, as `plan` and `apply` judge by them.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use nmplan::control::Fault;
use schema::scalars::NetworkName;
use schema::snapshot::Revision;
use schema::world::World;
use workspace::{Ran, Workspace, join};

/// A project file with a guard, or none.
fn project(guard: &str) -> String {
    format!(
        "project \"acme\" schema=1\n{guard}\nenv \"prod\" {{ server \"https://nm.example.net\"; use \"mesh/\"; }}\n"
    )
}

/// A network with four nodes, as many as joined, and as many entries.
fn corp(settings: &str, entries: &str) -> String {
    let nodes = ["a", "b", "c", "d"].map(|name| format!("    node \"node-{name}\"\n")).concat();
    let entry = |name: char| format!("    dns \"www-{name}\" node=\"node-a\"\n");
    let entries: String = entries.chars().map(entry).collect();
    format!("network \"corp\" {{\n    ipv4 \"10.40.0.0/24\"\n    {settings}\n{nodes}{entries}}}\n")
}

/// A project that was applied with a guard; its nodes have joined.
fn guarded(guard: &str) -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    workspace.write("nmplan.kdl", &project(guard));
    workspace.write("mesh/corp.kdl", &corp("", "abcdefghij"));
    let first = workspace.nmplan("apply -C @. -y");
    assert_eq!(first.exit, 0, "{}", first.all());
    join(&workspace.server, &[("node-a", 1), ("node-b", 2), ("node-c", 3), ("node-d", 4)]);
    workspace
}

fn revision(workspace: &Workspace) -> u64 {
    workspace.server.state().revision.0
}

/// The codes of the problems among the events of a run.
fn codes(ran: &Ran) -> Vec<String> {
    let events = ran.events();
    let codes = events.iter().filter(|event| event["type"] == "diagnostic");
    codes.map(|event| event["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn more_deletions_than_the_guard_allows_are_refused_until_they_are_let_through_once() {
    let workspace = guarded("guard max-delete=\"5% or 3\"");
    workspace.write("mesh/corp.kdl", &corp("", "abcdef"));
    let refused = workspace.nmplan("plan -C @. --detailed-exitcode");
    assert_eq!(refused.exit, 3, "{}", refused.all());
    insta::assert_snapshot!(refused.all());
    let refused = workspace.nmplan("apply -C @. -y");
    assert_eq!((refused.exit, revision(&workspace)), (3, 2), "{}", refused.all());
    assert_eq!(codes(&workspace.nmplan("plan -C @. --json")), ["plan::max_delete"]);
    let failure = workspace.nmplan("apply -C @. -y --json").events().pop().unwrap();
    assert_eq!(
        (&failure["code"], &failure["exit"], &failure["applied"]),
        (&"guarded".into(), &3.into(), &false.into())
    );

    let plan = workspace.nmplan("plan -C @. --allow max-delete");
    assert_eq!(plan.exit, 0, "{}", plan.all());
    assert!(plan.stdout.contains(" --allow max-delete\n"), "{}", plan.stdout);
    assert!(plan.stderr.starts_with("Let through: the plan deletes 4 of the 15 objects"), "{}", plan.stderr);
    let applied = workspace.nmplan("apply -C @. -y --allow max-delete");
    assert_eq!(applied.exit, 0, "{}", applied.all());
    assert!(workspace.nmplan("show 3").stdout.contains("let through the rule max-delete\n"));
    workspace.write("mesh/corp.kdl", &corp("", "ab"));
    assert_eq!(workspace.nmplan("apply -C @. -y").exit, 3, "it was let through once");
    workspace.write("mesh/corp.kdl", &corp("", "abc"));
    let three = workspace.nmplan("apply -C @. -y --allow max-delete");
    assert_eq!(three.exit, 0, "{}", three.all());
    assert!(three.stderr.contains("--allow max-delete is not needed"), "{}", three.stderr);
    assert_eq!(workspace.nmplan("plan -C @. --detailed-exitcode").exit, 0, "nothing is left to do");
}

#[test]
fn a_change_cannot_loosen_its_own_guard_and_the_one_after_it_can() {
    for looser in ["guard max-delete=100", "", "guard"] {
        let workspace = guarded("guard max-delete=3");
        workspace.write("nmplan.kdl", &project(looser));
        workspace.write("mesh/corp.kdl", &corp("", ""));
        let both = workspace.nmplan("apply -C @. -y");
        assert_eq!((both.exit, revision(&workspace)), (3, 2), "{looser}: {}", both.all());

        workspace.write("mesh/corp.kdl", &corp("", "abcdefghij"));
        let guard_alone = workspace.nmplan("plan -C @. --detailed-exitcode");
        assert_eq!(guard_alone.exit, 2, "{looser}: {}", guard_alone.all());
        let is = if looser.ends_with("100") { "100" } else { "(any number)" };
        assert!(guard_alone.stdout.contains(&format!("~ max-delete  3 -> {is}\n")), "{}", guard_alone.stdout);
        let events = workspace.nmplan("plan -C @. --json").events();
        let change = events.iter().find(|event| event["type"] == "guard_change").unwrap();
        assert_eq!(change["before"]["max-delete"], 3);
        assert_eq!(workspace.nmplan("apply -C @. -y").exit, 0);
        assert_eq!(workspace.nmplan("plan -C @. --detailed-exitcode").exit, 0, "nothing is left to do");

        workspace.write("mesh/corp.kdl", &corp("", ""));
        let later = workspace.nmplan("apply -C @. -y");
        assert_eq!((later.exit, revision(&workspace)), (0, 4), "{looser}: {}", later.all());
    }
}

#[test]
fn a_guard_that_changes_alone_is_a_plan_that_says_so() {
    let workspace = guarded("guard max-delete=3");
    workspace.write("nmplan.kdl", &project("guard max-delete=\"5% or 3\" max-reach-lost=0"));
    let plan = workspace.nmplan("plan -C @.");
    assert_eq!(plan.exit, 0, "{}", plan.all());
    insta::assert_snapshot!(plan.stdout);
    workspace.write("nmplan.yaml", "project: { acme: { schema: 1 } }\nguard: { max-delete: 3 or 5%, max-reach-lost: 0 }\nenv: { prod: { server: \"https://nm.example.net\", use: mesh/ } }\n");
    std::fs::remove_file(workspace.path("nmplan.kdl")).unwrap();
    let digest = |text: &str| text.split("digest ").nth(1).unwrap().split('\n').next().unwrap().to_owned();
    assert_eq!(
        digest(&workspace.nmplan("plan -C @.").stdout),
        digest(&plan.stdout),
        "it is the same in YAML"
    );
    let applied = workspace.nmplan(&format!("apply -C @. --expect {}", digest(&plan.stdout)));
    assert_eq!(applied.exit, 0, "{}", applied.all());
    insta::assert_snapshot!("a_guard_in_the_log_and_what_is_stored", {
        let [revision, now] = ["show 3", "show"].map(|line| workspace.nmplan(line).stdout);
        format!("{revision}\n{now}")
    });
    let stored: serde_json::Value = serde_json::from_str(&workspace.nmplan("show --json").stdout).unwrap();
    let expected = serde_json::json!([
        { "owner": "acme/prod", "revision": 3, "limits": { "max-delete": "5% or 3", "max-reach-lost": 0 } }
    ]);
    assert_eq!(stored["guards"], expected);
    let again = workspace.nmplan(&format!("apply -C @. --expect {}", digest(&plan.stdout)));
    assert!(again.exit == 0 && again.stderr.contains("Nothing to do"), "{}", again.all());
}

#[test]
fn a_first_apply_and_joins_never_trip() {
    let none = "guard max-delete=0 max-nodes-changed=0 max-reach-lost=0";
    let workspace = guarded(none);
    assert_eq!(revision(&workspace), 2, "it was applied, and the joins are another revision");
    workspace.write("mesh/corp.kdl", &corp("node \"new\"; group \"all\" { nodes \"new\"; }", "abcdefghij"));
    let adds = workspace.nmplan("apply -C @. -y");
    assert_eq!(adds.exit, 0, "what is made is not limited: {}", adds.all());

    // A project that had no guard gets one: that apply is judged by none.
    let workspace = guarded("");
    workspace.write("nmplan.kdl", &project(none));
    workspace.write("mesh/corp.kdl", &corp("acl \"deny\"", ""));
    let apply = workspace.nmplan("apply -C @. -y");
    assert_eq!(apply.exit, 0, "{}", apply.all());
}

#[test]
fn nodes_and_pairs_are_limited_by_what_the_plan_does_to_them() {
    // Every node is reconfigured by another port of the network.
    for (limit, exit) in [("50%", 3), ("3", 3), ("50% or 4", 0), ("100%", 0)] {
        let workspace = guarded(&format!("guard max-nodes-changed=\"{limit}\""));
        workspace.write("mesh/corp.kdl", &corp("mtu 1380", "abcdefghij"));
        let apply = workspace.nmplan("apply -C @. -y");
        assert_eq!(apply.exit, exit, "{limit}: {}", apply.all());
        assert_eq!(apply.stderr.contains("the plan affects 4 nodes"), exit == 3, "{}", apply.stderr);
    }
    // Nobody reaches anybody any more.
    for (limit, exit) in [("0", 3), ("99%", 3), ("12", 0), ("100%", 0)] {
        let workspace = guarded(&format!("guard max-reach-lost=\"{limit}\""));
        workspace.write("mesh/corp.kdl", &corp("acl \"deny\"", "abcdefghij"));
        let apply = workspace.nmplan("apply -C @. -y");
        assert_eq!(apply.exit, exit, "{limit}: {}", apply.all());
        assert_eq!(apply.stderr.contains("12 pairs would lose reachability"), exit == 3, "{}", apply.stderr);
        assert_eq!(workspace.nmplan("apply -C @. -y --allow max-reach-lost").exit, 0);
    }
    let workspace = guarded("guard max-delete=0 max-nodes-changed=0 max-reach-lost=0");
    workspace.write("mesh/corp.kdl", &corp("acl \"deny\"; mtu 1380", ""));
    let all = workspace.nmplan("apply -C @. -y --json");
    let refused = ["plan::max_delete", "plan::max_nodes_changed", "plan::max_reach_lost"];
    assert_eq!(codes(&all), [&["plan::isolated_node"], &refused[..]].concat());
    let one = workspace.nmplan("apply -C @. -y --allow max-delete --allow max-reach-lost");
    assert_eq!(one.exit, 3, "each is let through by its own name: {}", one.all());
    assert!(one.stderr.contains("refused by the rule max-nodes-changed\n"), "{}", one.stderr);
    assert!(
        one.stderr.contains("you can let it through once, with --allow max-nodes-changed"),
        "{}",
        one.stderr
    );
}

#[test]
fn a_saved_plan_is_judged_by_what_it_does_when_it_is_applied() {
    let workspace = guarded("guard max-nodes-changed=4");
    workspace.write("mesh/corp.kdl", &corp("mtu 1380", "abcdefghij"));
    let saved = workspace.nmplan("plan -C @. --out @plan.json");
    assert_eq!(saved.exit, 0, "{}", saved.all());
    join(&workspace.server, &[("guest", 5)]);
    let refused = workspace.nmplan("apply -C @. @plan.json -y");
    assert_eq!((refused.exit, revision(&workspace)), (3, 3), "{}", refused.all());
    assert!(refused.stderr.contains("the plan affects 5 nodes"), "{}", refused.stderr);
    let applied = workspace.nmplan("apply -C @. @plan.json -y --allow max-nodes-changed");
    assert_eq!(applied.exit, 0, "{}", applied.all());
}

#[test]
fn what_a_guard_of_which_the_plan_knew_nothing_refuses_ends_with_the_same_exit_code_and_says_what_to_type() {
    let workspace = guarded("");
    workspace.write("mesh/corp.kdl", &corp("mtu 1380", "abc"));
    workspace.server.fail(&[Fault::Limited]);
    let refused = workspace.nmplan("apply -C @. -y");
    assert_eq!((refused.exit, revision(&workspace)), (3, 2), "{}", refused.all());
    for rule in ["max-delete", "max-nodes-changed"] {
        assert!(refused.stderr.contains(&format!("--allow {rule};")), "{}", refused.stderr);
    }
    assert!(refused.stderr.ends_with("Nothing was applied.\n"), "{}", refused.stderr);
}

#[test]
fn a_plan_that_changes_a_guard_is_stale_once_somebody_else_has() {
    let workspace = guarded("guard max-delete=3");
    workspace.write("nmplan.kdl", &project("guard max-delete=4"));
    assert_eq!(workspace.nmplan("plan -C @. --out @plan.json").exit, 0);
    workspace.write("nmplan.kdl", &project("guard max-delete=5"));
    assert_eq!(workspace.nmplan("apply -C @. -y").exit, 0);
    let stale = workspace.nmplan("apply -C @. @plan.json -y");
    assert_eq!((stale.exit, revision(&workspace)), (4, 3), "{}", stale.all());
    assert!(stale.stderr.contains("guard of acme/prod changed in revision 3"), "{}", stale.stderr);
    let shown = workspace.nmplan("show -C @. @plan.json");
    assert!(shown.stderr.contains("guard of acme/prod, now at revision 3"), "{}", shown.all());

    workspace.write("nmplan.kdl", &project("guard max-delete=6"));
    assert_eq!(workspace.nmplan("plan -C @. --out @plan.json").exit, 0);
    assert_eq!(workspace.nmplan("apply -C @. @plan.json -y").exit, 0);
    let again = workspace.nmplan("apply -C @. @plan.json -y");
    assert!(again.exit == 0 && again.stderr.contains("Nothing to do"), "{}", again.all());
}

#[test]
fn without_a_project_file_or_for_one_network_the_stored_guard_stays_and_holds() {
    let workspace = guarded("guard max-delete=3");
    let stored = workspace.server.state().guards;
    workspace.write("nmplan.kdl", &project("guard max-delete=100"));
    for place in [
        "-C @. --network corp",
        "-C @mesh --project acme --env prod",
        "-f @mesh/corp.kdl -C @mesh --project acme --env prod",
    ] {
        workspace.write("mesh/corp.kdl", &corp("", "abcdefghij"));
        let same = workspace.nmplan(&format!("plan {place} --detailed-exitcode"));
        assert_eq!(same.exit, 0, "{place}: {}", same.all());
        workspace.write("mesh/corp.kdl", &corp("", ""));
        let over = workspace.nmplan(&format!("apply {place} -y"));
        assert_eq!(over.exit, 3, "{place}: {}", over.all());
        assert_eq!(workspace.server.state().guards, stored, "{place}");
    }
}

#[test]
fn a_project_that_is_deleted_network_by_network_takes_its_guard_along() {
    let workspace = guarded("guard max-delete=100");
    workspace.write("mesh/corp.kdl", "");
    let plan = workspace.nmplan("plan -C @. --network corp --allow-empty --format json").stdout;
    assert!(!plan.contains("\"guard\""), "it says nothing of a guard, which is about all networks: {plan}");
    let deleted = workspace.nmplan("apply -C @. --network corp --allow-empty -y");
    assert_eq!(deleted.exit, 0, "{}", deleted.all());
    assert_eq!(workspace.server.state().guards.iter().count(), 0);
    let all = workspace.nmplan("plan -C @. --allow-empty --detailed-exitcode");
    assert_eq!(all.exit, 0, "nothing is left to do: {}", all.all());
}

#[test]
fn a_protected_network_is_deleted_only_once_it_is_not_protected_any_more_or_let_through() {
    for left in ["", "network \"lab\" { ipv4 \"10.50.0.0/24\"; }\n"] {
        let workspace = guarded("");
        workspace.write("mesh/corp.kdl", &corp("protect", "abcdefghij"));
        let protects = workspace.nmplan("apply -C @. -y");
        assert_eq!(protects.exit, 0, "{}", protects.all());
        assert!(protects.stdout.contains("protect false -> true"), "{}", protects.stdout);
        assert!(protects.stdout.contains("No joined node is sent anything new"), "{}", protects.stdout);

        // With its block, or with its file.
        let place = if left.is_empty() { "-C @. --allow-empty" } else { "-C @." };
        workspace.write("mesh/lab.kdl", left);
        std::fs::remove_file(workspace.path("mesh/corp.kdl")).unwrap();
        let refused = workspace.nmplan(&format!("plan {place}"));
        assert_eq!(refused.exit, 3, "{}", refused.all());
        assert!(
            refused.stderr.contains("network corp is protected, so it is not deleted"),
            "{}",
            refused.stderr
        );
        assert!(refused.stderr.contains("--allow protect=corp"), "{}", refused.stderr);
        let refused = workspace.nmplan(&format!("apply {place} -y --allow protect=lab"));
        assert_eq!((refused.exit, revision(&workspace)), (3, 3), "{}", refused.all());
        assert_eq!(codes(&workspace.nmplan(&format!("plan {place} --json"))), ["plan::protected"]);

        workspace.write("mesh/corp.kdl", &corp("", "abcdefghij"));
        let update = workspace.nmplan("apply -C @. -y");
        assert_eq!(update.exit, 0, "{}", update.all());
        assert!(update.stdout.contains("protect true -> false"), "{}", update.stdout);
        std::fs::remove_file(workspace.path("mesh/corp.kdl")).unwrap();
        let deleted = workspace.nmplan(&format!("apply {place} -y"));
        assert_eq!((deleted.exit, revision(&workspace)), (0, 5), "{}", deleted.all());
    }
    let workspace = guarded("");
    workspace.write("mesh/corp.kdl", &corp("protect", "abcdefghij"));
    assert_eq!(workspace.nmplan("apply -C @. -y").exit, 0);
    std::fs::remove_file(workspace.path("mesh/corp.kdl")).unwrap();
    let deleted = workspace.nmplan("apply -C @. --allow-empty -y --allow protect=corp");
    assert_eq!(deleted.exit, 0, "{}", deleted.all());
    let corp: NetworkName = "corp".parse().unwrap();
    assert!(workspace.server.state().snapshot.network(&corp).is_none());
    assert!(workspace.nmplan("show 4").stdout.contains("let through the rule protect=corp\n"));
}

#[test]
fn nothing_found_to_read_is_an_error_whatever_guards_say_and_what_manages_nothing_has_no_guard() {
    for guard in ["guard max-delete=0", "guard max-delete=\"100%\""] {
        let workspace = guarded(guard);
        std::fs::remove_file(workspace.path("mesh/corp.kdl")).unwrap();
        for line in [
            "plan -C @.",
            "apply -C @. -y",
            "apply -C @. -y --allow max-delete",
            "plan -C @. --detailed-exitcode",
        ] {
            let ran = workspace.nmplan(line);
            assert_eq!((ran.exit, revision(&workspace)), (1, 2), "{line}: {}", ran.all());
            assert!(ran.stderr.contains("project::nothing_declared"), "{line}: {}", ran.stderr);
        }
        let meant = workspace.nmplan("apply -C @. -y --allow-empty");
        assert_eq!(meant.exit, if guard.contains('%') { 0 } else { 3 }, "{guard}: {}", meant.all());
        let let_through = workspace.nmplan("apply -C @. -y --allow-empty --allow max-delete");
        assert_eq!(let_through.exit, 0, "{}", let_through.all());
        let state = workspace.server.state();
        assert_eq!((state.guards.iter().count(), state.revision), (0, Revision(3)), "it went with the rest");
        let empty = workspace.nmplan("plan -C @. --allow-empty --detailed-exitcode");
        assert_eq!(empty.exit, 0, "nothing is left to do: {}", empty.all());
    }
}
