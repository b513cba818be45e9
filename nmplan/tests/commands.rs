//! The commands as they are typed, against a server in memory: what they print, their exit codes, what they
//! leave.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use std::collections::BTreeMap;

use nmplan::args;
use nmplan::control::Fault;
use proto::token::Token;
use schema::api::{Control, NodeStatus, Presence};
use schema::inventory::{Joined, KeyStatus, NodeProblem};
use schema::snapshot::{Entry, Owner, ResourceId, Revision};
use schema::world::World;
use serde_json::Value;
use workspace::{Workspace, example, join, online};

const BEFORE: &str = r#"
network "corp" {
    ipv4 "10.40.0.0/16"
    node "gw" ipv4="10.40.0.1"
    node "old"
    node "web"
    dns "api" a="10.40.9.9"
    access-key "ci" uses=5 { tags "a" "b" }
}
"#;

const AFTER: &str = r#"
network "corp" {
    ipv4 "10.40.0.0/16"
    keepalive "25s"
    node "gw" ipv4="10.40.0.7" { tags "fra" "gateway" }
    node "web"
    node "laptop"
    dns "api" a="10.40.9.8" ttl="5m"
    dns "www" node="web"
    access-key "ci" uses=5 { tags "b" "c" }
}
"#;

fn workspace() -> Workspace {
    Workspace::new(World { epoch: 7, ..World::default() })
}

/// A workspace whose server has what `BEFORE` declares, with joined nodes.
fn in_use() -> Workspace {
    let workspace = workspace();
    workspace.write("before/corp.kdl", BEFORE);
    workspace.write("after/corp.kdl", AFTER);
    let applied = workspace.nmplan("apply -C @before --project acme -y --keys-to @keys.json");
    assert_eq!(applied.exit, 0, "{}", applied.all());
    join(&workspace.server, &[("gw", 1), ("old", 2), ("web", 3), ("laptop", 4)]);
    workspace
}

/// `BEFORE`, in which there is nothing to warn of.
fn with_a_key_for_one() -> String {
    BEFORE.replace("uses=5", "uses=1")
}

fn keys(workspace: &Workspace) -> BTreeMap<ResourceId, String> {
    serde_json::from_str(&workspace.read("keys.json")).unwrap()
}

#[test]
fn a_first_plan_shows_what_will_be_created_and_how_to_apply_it() {
    let plan = workspace().nmplan(&format!("plan -C {} --project acme", example("quickstart")));
    insta::assert_snapshot!(plan.all().replace(&example("quickstart"), "examples/quickstart"));
}

#[test]
fn a_plan_shows_which_nodes_are_affected_and_who_reaches_whom() {
    insta::assert_snapshot!(in_use().nmplan("plan -C @after --project acme").all());
}

#[test]
fn a_plan_that_cuts_nodes_off_from_the_server_says_so() {
    let workspace = in_use();
    workspace.write(
        "moved/corp.kdl",
        "network \"corp\" {\n ipv4 \"192.0.2.0/24\"\n node \"gw\"\n node \"old\"\n node \"web\"\n}\n",
    );
    insta::assert_snapshot!(workspace.nmplan("plan -C @moved --project acme").stdout);
}

/// A workspace whose server has the address 192.0.2.11, and a range around it in `lan/`.
fn near_the_server() -> Workspace {
    let workspace = workspace();
    workspace.server.set_info(|info| info.addresses = vec!["192.0.2.11".parse().unwrap()]);
    workspace.write("lan/lan.kdl", "network \"lan\" {\n    ipv4 \"192.0.2.8/29\"\n}\n");
    workspace
}

#[test]
fn a_range_that_holds_an_address_of_the_server_is_refused_unless_it_is_let_through() {
    let workspace = near_the_server();
    let refused = workspace.nmplan("plan -C @lan --project acme --detailed-exitcode");
    assert_eq!(refused.exit, 3, "{}", refused.all());
    assert!(
        refused.stdout.contains("+ network") && !refused.stdout.contains("To carry it out"),
        "{}",
        refused.stdout
    );
    insta::assert_snapshot!(refused.stderr);
    let apply = workspace.nmplan("apply -C @lan --project acme -y");
    assert_eq!((apply.exit, workspace.server.state().revision), (3, Revision(0)), "{}", apply.all());
    let events = workspace.nmplan("plan -C @lan --project acme --json").events();
    assert!(events.iter().any(|event| event["code"] == "plan::cut_off" && event["line"] == 2), "{events:#?}");

    let plan = workspace.nmplan("plan -C @lan --project acme --allow cut-off");
    assert_eq!(plan.exit, 0, "{}", plan.all());
    assert!(plan.stdout.contains(" --allow cut-off\n"), "{}", plan.stdout);
    assert!(plan.stderr.starts_with("Let through: 192.0.2.8/29 of lan holds 192.0.2.11"), "{}", plan.stderr);
    let apply = workspace.nmplan("apply -C @lan --project acme -y --allow cut-off");
    assert_eq!(apply.exit, 0, "{}", apply.all());
    let shown = workspace.nmplan("show 1").stdout;
    assert!(shown.contains("let through the rule cut-off\n"), "{shown}");
}

#[test]
fn a_saved_plan_is_judged_when_it_is_applied() {
    let workspace = near_the_server();
    assert_eq!(workspace.nmplan("plan -C @lan --project acme --out @plan.json").exit, 3);
    let refused = workspace.nmplan("apply @plan.json -y");
    assert_eq!((refused.exit, workspace.server.state().revision), (3, Revision(0)), "{}", refused.all());
    assert_eq!(workspace.nmplan("apply @plan.json -y --allow cut-off").exit, 0);
}

#[test]
fn what_the_server_alone_knows_is_refused_at_the_commit_with_the_same_exit_code() {
    let workspace = near_the_server();
    workspace.server.set_info(|info| info.addresses = vec![]);
    workspace.nmplan("plan -C @lan --project acme --out @plan.json");
    let server = workspace.server.clone();
    server.fail(&[Fault::Moved]);
    let refused = workspace.nmplan("apply @plan.json -y");
    assert_eq!((refused.exit, server.state().revision), (3, Revision(0)), "{}", refused.all());
    assert!(refused.stderr.contains("(plan::cut_off)"), "{}", refused.stderr);
}

#[test]
fn the_address_that_nmplan_calls_counts_as_one_of_the_server() {
    let workspace = near_the_server();
    workspace.server.set_info(|info| info.addresses = vec![]);
    assert_eq!(workspace.nmplan("plan -C @lan --project acme").exit, 0);
    workspace.server.set_called_at(&["127.0.0.1".parse().unwrap(), "192.0.2.9".parse().unwrap()]);
    let refused = workspace.nmplan("plan -C @lan --project acme");
    assert_eq!(refused.exit, 3, "{}", refused.all());
    assert!(refused.stderr.contains("holds 192.0.2.9, by which"), "{}", refused.stderr);
}

#[test]
fn a_rule_that_need_not_be_let_through_is_accepted_and_said_so() {
    let workspace = in_use();
    let line = "--allow cut-off is not needed: the plan does not break that rule.\n";
    for command in ["plan", "apply -y"] {
        let ran = workspace.nmplan(&format!("{command} -C @after --project acme --allow cut-off"));
        assert_eq!(ran.exit, 0, "{}", ran.all());
        assert!(ran.stderr.contains(line), "{}", ran.stderr);
    }
    assert!(!workspace.nmplan("show 2").stdout.contains("let through"));
}

#[test]
fn the_server_of_the_env_overrides_the_one_of_the_environment_and_a_note_says_so() {
    let mut workspace = workspace();
    workspace.write(
        "nmplan.kdl",
        "project \"acme\" schema=1\nenv \"prod\" { server \"https://a.example\"; use \"mesh/\" }\n",
    );
    workspace.write("mesh/corp.kdl", &with_a_key_for_one());
    workspace.environment = vec![("NMPLAN_SERVER".into(), "https://b.example".into())];
    let plan = workspace.nmplan("plan -C @.");
    assert_eq!(plan.stderr, "The env prod names https://a.example, so NMPLAN_SERVER is not used.\n\n");
    assert_eq!(workspace.nmplan("plan -C @. --server https://c.example").stderr, "");
}

#[test]
fn a_plan_of_many_objects_is_folded_unless_verbose() {
    let workspace = workspace();
    let nodes: String = (0..60).map(|number| format!("    node \"n{number:02}\"\n")).collect();
    workspace.write("corp.kdl", &format!("network \"corp\" {{\n    ipv4 \"10.40.0.0/16\"\n{nodes}}}\n"));
    insta::assert_snapshot!(workspace.nmplan("plan -C @. --project acme").all());
    assert!(workspace.nmplan("plan -C @. --project acme -v").stdout.contains("n59"));
}

#[test]
fn after_an_apply_a_plan_is_empty_in_either_language() {
    let workspace = workspace();
    let apply = format!("apply -C {} --project acme -y --keys-to @keys.json", example("quickstart"));
    insta::assert_snapshot!(workspace.nmplan(&apply).stderr);
    assert_eq!(workspace.server.state().revision, Revision(1));
    for folder in ["quickstart", "quickstart-yaml"] {
        let plan =
            workspace.nmplan(&format!("plan -C {} --project acme --detailed-exitcode", example(folder)));
        assert_eq!(plan.exit, 0, "{}", plan.all());
        assert!(plan.stdout.contains("No changes"), "{}", plan.all());
    }
    let again = workspace.nmplan(&apply);
    assert_eq!((again.exit, workspace.server.state().revision), (0, Revision(1)), "{}", again.all());
}

#[test]
fn the_history_shows_the_log_newest_first() {
    let workspace = in_use();
    let again = workspace.nmplan("apply -C @after --project acme -y --keys-to @keys.json");
    assert_eq!(again.exit, 0, "{}", again.all());
    insta::assert_snapshot!(workspace.nmplan("history").all());
    let limited = workspace.nmplan("history --limit 1");
    assert!(limited.stdout.contains("--limit NUMBER shows more"), "{}", limited.all());
    let lines = |text: &str| text.lines().filter(|line| line.contains("UTC")).count();
    assert_eq!(lines(&limited.stdout), 1);
    let printed = workspace.nmplan("history --json");
    let all: Vec<Value> = serde_json::from_str(&printed.stdout).unwrap();
    let log = workspace.server.log();
    assert_eq!(all.len(), log.len(), "a program is given everything");
    for (shown, entry) in all.iter().zip(log.iter().rev()) {
        assert_eq!(shown["revision"], entry.revision.0);
        assert_eq!(shown["actor"], *entry.actor);
    }
    let keys: Vec<_> = all[0].as_object().unwrap().keys().map(String::as_str).collect();
    let published =
        ["action", "actor", "commit", "env", "hash", "message", "project", "revision", "state", "time"];
    assert_eq!(keys.iter().copied().collect::<std::collections::BTreeSet<_>>(), published.into());
    assert_eq!((&all[0]["state"], &all[1]["state"]), (&"current".into(), &"superseded".into()));
    assert_eq!((&all[0]["project"], &all[0]["env"]), (&"acme".into(), &"default".into()));
    let other = workspace.nmplan("history --network lab --json").stdout;
    let other: Vec<Value> = serde_json::from_str(&other).unwrap();
    assert!(other.iter().all(|entry| entry["action"] != "apply"), "{other:?}");
}

#[test]
fn what_others_wrote_into_a_log_reaches_no_terminal_as_it_is() {
    let workspace = in_use();
    workspace.server.change_log(|entry| {
        let message = Some("red \u{1b}[31m alert".into());
        entry.provenance = Some(schema::snapshot::Provenance { message, ..Default::default() });
    });
    let shown = workspace.nmplan("history").stdout;
    assert!(shown.contains("red \u{fffd}[31m alert") && !shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn a_server_that_cannot_store_refuses_at_once_and_the_tokens_are_taken_back() {
    let workspace = workspace();
    workspace.write("corp.kdl", BEFORE);
    workspace.server.fail(&[Fault::FullDisk]);
    let refused = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
    assert_eq!(refused.exit, 1, "{}", refused.all());
    assert!(refused.stderr.contains("nothing was changed"), "{}", refused.all());
    assert!(!refused.stderr.contains("unknown") && !refused.stderr.contains("retrying"), "{}", refused.all());
    assert!(!workspace.path("keys.json").exists(), "no useless token is left");
    workspace.server.fail(&[Fault::LostAnswer, Fault::FullDisk]);
    let unknown = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
    assert!(
        unknown.stderr.contains("it is unknown whether"),
        "an earlier attempt was carried out: {}",
        unknown.all()
    );
    assert!(workspace.path("keys.json").exists(), "and its tokens are kept");
}

#[test]
fn a_plan_exits_2_only_where_that_is_asked_for_and_there_are_changes() {
    let workspace = in_use();
    assert_eq!(workspace.nmplan("plan -C @after --project acme").exit, 0);
    assert_eq!(workspace.nmplan("plan -C @after --project acme --detailed-exitcode").exit, 2);
    assert_eq!(workspace.nmplan("plan -C @before --project acme --detailed-exitcode").exit, 0);
}

#[test]
fn a_saved_plan_is_applied_once() {
    let workspace = in_use();
    let saved = workspace.nmplan("plan -C @after --project acme --out @plan.json");
    assert_eq!(saved.exit, 0, "{}", saved.all());
    assert_eq!(
        workspace.read("plan.json"),
        workspace.nmplan("plan -C @after --project acme --format json").stdout
    );
    let digest: Value = serde_json::from_str(&workspace.read("plan.json")).unwrap();
    let digest = digest["digest"].as_str().unwrap();
    let applied = workspace.nmplan(&format!("apply @plan.json --expect {digest}"));
    assert_eq!(applied.exit, 0, "{}", applied.all());
    assert_eq!(workspace.server.log().last().unwrap().digest.as_deref(), Some(digest));
    let again = workspace.nmplan("apply @plan.json -y");
    assert_eq!((again.exit, workspace.server.state().revision), (0, Revision(3)), "{}", again.all());
    insta::assert_snapshot!(again.stderr);
    let event = workspace.nmplan("apply @plan.json -y --json").events().pop().unwrap();
    assert_eq!(
        (&event["type"], &event["already"], &event["revision"]),
        (&"revision".into(), &true.into(), &3.into())
    );
}

#[test]
fn a_saved_plan_is_stale_once_its_resources_have_changed_and_says_who_changed_them() {
    let workspace = in_use();
    workspace.nmplan("plan -C @after --project acme --out @plan.json");
    let api: ResourceId = "corp/dns/api".parse().unwrap();
    workspace.server.change_elsewhere(|world| {
        let entry = world.snapshot.entry(&api).unwrap().clone();
        world.snapshot.put(api.clone(), Entry { revision: world.revision, ..entry });
    });
    let before = workspace.server.state();
    let stale = workspace.nmplan("apply @plan.json -y");
    insta::assert_snapshot!(stale.all());
    assert_eq!(workspace.server.state(), before);
    insta::assert_snapshot!("show_of_a_stale_plan", workspace.nmplan("show @plan.json").stderr);
}

#[test]
fn a_saved_plan_that_was_changed_is_refused() {
    let workspace = in_use();
    workspace.nmplan("plan -C @after --project acme --out @plan.json");
    workspace.write("plan.json", &workspace.read("plan.json").replace("10.40.9.8", "10.40.9.7"));
    let refused = workspace.nmplan("apply @plan.json -y");
    assert_eq!(refused.exit, 1);
    assert!(refused.stderr.contains("its digest does not match"), "{}", refused.stderr);
}

#[test]
fn a_saved_plan_names_its_env_so_that_only_the_server_has_to_be_found() {
    let mut workspace = workspace();
    let project = |name: &str| {
        format!(
            "project \"{name}\" schema=1\nenv \"dev\" {{ server \"https://dev.example\"; use \"mesh/\" }}\nenv \"prod\" {{ server \"https://prod.example\"; use \"mesh/\" }}\n"
        )
    };
    workspace.write("nmplan.kdl", &project("acme"));
    workspace.write("mesh/corp.kdl", "network \"corp\" ipv4=\"10.40.0.0/16\"");
    workspace.environment = vec![("NMPLAN_SERVER".into(), "https://other.example".into())];
    let planned = workspace.nmplan("plan -C @. --env prod --out @plan.json");
    assert!(planned.stdout.contains("    nmplan apply -C DIR/. DIR/plan.json -y\n"), "{}", planned.stdout);
    let asked = |workspace: &Workspace, line: &str| {
        let shown = workspace.nmplan(line);
        assert!(shown.stdout.contains("acme/prod"), "{}", shown.all());
        workspace.asked.borrow().clone().unwrap()
    };
    assert_eq!(asked(&workspace, "apply -C @. @plan.json"), "https://prod.example");
    assert_eq!(asked(&workspace, "show -C @. @plan.json"), "https://prod.example");
    assert_eq!(
        asked(&workspace, "apply -C @. @plan.json --server https://flag.example"),
        "https://flag.example"
    );
    assert_eq!(asked(&workspace, "apply -C @mesh @plan.json"), "https://other.example");
    let contradicted = workspace.nmplan("apply -C @. @plan.json -y --env dev");
    assert_eq!(
        (contradicted.exit, workspace.server.state().revision),
        (1, Revision(0)),
        "{}",
        contradicted.all()
    );
    assert!(
        contradicted.stderr.contains("DIR/plan.json belongs to env prod, but --env is dev"),
        "{}",
        contradicted.stderr
    );
    workspace.write("nmplan.kdl", &project("elsewhere"));
    assert_eq!(
        asked(&workspace, "apply -C @. @plan.json"),
        "https://other.example",
        "the env belongs to another project"
    );
    assert_eq!(workspace.nmplan("apply -C @. @plan.json -y").exit, 0);
}

/// Makes a repository of a folder of the workspace, with its files in one commit of that message.
fn commit(workspace: &Workspace, folder: &str, files: &[&str], message: &str) {
    let repository = git2::Repository::init(workspace.path(folder)).unwrap();
    let mut index = repository.index().unwrap();
    files.iter().for_each(|file| index.add_path(std::path::Path::new(file)).unwrap());
    let tree = repository.find_tree(index.write_tree().unwrap()).unwrap();
    index.write().unwrap();
    let author = git2::Signature::new("Ann", "ann@example.org", &git2::Time::new(0, 0)).unwrap();
    repository.commit(Some("HEAD"), &author, &author, message, &tree, &[]).unwrap();
}

#[test]
fn a_saved_plan_keeps_the_provenance_of_its_files_wherever_it_is_applied() {
    let workspace = workspace();
    workspace.write("mesh/corp.kdl", "network \"corp\" ipv4=\"10.40.0.0/16\"");
    commit(&workspace, "mesh", &["corp.kdl"], "declare corp");
    workspace.write("ops/README.md", "");
    commit(&workspace, "ops", &["README.md"], "something else");
    let plan = workspace.nmplan("plan -C @mesh --project acme --out @mesh/plan.json");
    assert_eq!(plan.exit, 0, "{}", plan.all());
    assert_eq!(workspace.nmplan("apply -C @ops @mesh/plan.json -y").exit, 0);
    let last = || workspace.server.log().last().unwrap().provenance.clone();
    let provenance = last().unwrap();
    assert_eq!((provenance.message.as_deref(), provenance.dirty), (Some("declare corp"), false));

    workspace.write("mesh/corp.kdl", "network \"corp\" ipv4=\"10.40.0.0/16\" keepalive=\"25s\"");
    assert_eq!(workspace.nmplan("apply -C @mesh --project acme -y").exit, 0);
    assert!(last().unwrap().dirty, "the file is not what was committed");

    workspace.write("bare/corp.kdl", "network \"corp\" ipv4=\"10.40.0.0/16\"");
    workspace.nmplan("plan -C @bare --project acme --out @plan.json");
    assert_eq!(workspace.nmplan("apply -C @ops @plan.json -y").exit, 0);
    assert_eq!(last(), None, "no commit, rather than that of another directory");
}

#[test]
fn another_digest_than_the_expected_one_is_refused_with_what_happened_since() {
    let workspace = in_use();
    let before = workspace.server.state();
    let refused = workspace.nmplan(
        "apply -C @after --project acme --expect 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    );
    assert_eq!((refused.exit, workspace.server.state() == before), (4, true));
    insta::assert_snapshot!(refused.stderr);
}

#[test]
fn no_part_of_a_digest_stands_for_a_plan() {
    let workspace = in_use();
    let plan = workspace.nmplan("plan -C @after --project acme --format json");
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let digest = plan["digest"].as_str().unwrap();
    let printed = workspace.nmplan("plan -C @after --project acme").stdout;
    assert!(printed.contains(&format!("--expect {digest}")), "the command to copy has all of it: {printed}");
    let typed = |digest: &str| args::parse(["nmplan", "apply", "--expect", digest]);
    assert!(typed(digest).is_ok());
    for part in [&digest[..8], &digest[..16], &digest[..63], &format!("{digest}0"), &"g".repeat(64)] {
        let refused = typed(part).expect_err("it is not a whole digest").to_string();
        assert!(refused.contains("64"), "{part}: {refused}");
    }
    assert!(
        typed(&digest[..16]).expect_err("it is a part").to_string().contains("the whole digest is needed")
    );
    let other = format!("{}{}", &digest[..63], if digest.ends_with('0') { '1' } else { '0' });
    let refused = workspace.nmplan(&format!("apply -C @after --project acme --expect {other}"));
    assert_eq!(refused.exit, 4, "the last digit counts as well: {}", refused.all());
}

#[test]
fn an_expected_plan_that_was_applied_before_is_reported_as_that() {
    let workspace = in_use();
    let plan = workspace.nmplan("plan -C @after --project acme --format json");
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let apply = format!("apply -C @after --project acme --expect {}", plan["digest"].as_str().unwrap());
    assert_eq!(workspace.nmplan(&apply).exit, 0);
    let again = workspace.nmplan(&apply);
    assert_eq!((again.exit, workspace.server.state().revision), (0, Revision(3)));
    assert!(again.stderr.contains("has already been applied, as revision 3"), "{}", again.stderr);
}

#[test]
fn a_plan_that_was_applied_and_then_undone_by_somebody_is_not_done() {
    let api: ResourceId = "corp/dns/api".parse().unwrap();
    let laptop: ResourceId = "corp/node/laptop".parse().unwrap();
    let old: ResourceId = "corp/node/old".parse().unwrap();
    // What somebody does after the apply: a change is reverted, what was made is deleted, what was deleted is
    // made again, and another project takes a resource over.
    type Undo = Box<dyn Fn(&World, &mut World)>;
    let undone: [(&ResourceId, Undo); 4] = [
        (&api, Box::new(|before, now| put(before, "corp/dns/api", now))),
        (&laptop, Box::new(|_, now| drop(now.snapshot.delete(&"corp/node/laptop".parse().unwrap())))),
        (&old, Box::new(|before, now| put(before, "corp/node/old", now))),
        (
            &api,
            Box::new(|_, now| {
                let id: ResourceId = "corp/dns/api".parse().unwrap();
                let entry = now.snapshot.entry(&id).unwrap().clone();
                let owner =
                    entry.owner.clone().map(|owner| Owner { project: "other".parse().unwrap(), ..owner });
                now.snapshot.put(id, Entry { owner, revision: now.revision, ..entry });
            }),
        ),
    ];
    for (id, undo) in undone {
        let workspace = in_use();
        let before = workspace.server.state();
        let plan = workspace.nmplan("plan -C @after --project acme --format json --out @plan.json");
        let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
        let digest = plan["digest"].as_str().unwrap();
        assert_eq!(workspace.nmplan("apply @plan.json -y").exit, 0);
        workspace.server.change_elsewhere(|now| undo(&before, now));
        let undone = workspace.server.state();
        for line in ["apply @plan.json -y", &format!("apply -C @after --project acme --expect {digest}")] {
            let refused = workspace.nmplan(line);
            assert!(!refused.stderr.contains("Nothing to do"), "{id}: {line}: {}", refused.all());
            // What another project has is a problem of the files, which no plan is made of.
            let exit = if refused.stderr.contains("error in the files") { 1 } else { 4 };
            assert_eq!(refused.exit, exit, "{id}: {line}: {}", refused.all());
            assert_eq!(workspace.server.state(), undone);
        }
    }
}

#[test]
fn a_saved_plan_that_only_makes_is_not_carried_out_again_after_somebody_deleted_what_it_made() {
    let workspace = in_use();
    assert_eq!(workspace.nmplan("apply -C @after --project acme -y").exit, 0);
    let text = workspace.read("after/corp.kdl");
    let end = text.rfind('}').unwrap();
    workspace.write("after/corp.kdl", &format!("{}    dns \"made\" a=\"192.0.2.1\"\n}}\n", &text[..end]));
    assert_eq!(workspace.nmplan("plan -C @after --project acme --out @plan.json").exit, 0);
    assert_eq!(workspace.nmplan("apply @plan.json -y").exit, 0);
    workspace.server.change_elsewhere(|now| drop(now.snapshot.delete(&"corp/dns/made".parse().unwrap())));
    let undone = workspace.server.state();
    let refused = workspace.nmplan("apply @plan.json -y");
    assert_eq!(refused.exit, 4, "{}", refused.all());
    assert!(refused.stderr.contains("what it did has been undone since"), "{}", refused.stderr);
    assert_eq!(workspace.server.state(), undone);
}

/// Puts a resource back as it was.
fn put(before: &World, id: &str, now: &mut World) {
    let id: ResourceId = id.parse().unwrap();
    let entry = before.snapshot.entry(&id).unwrap().clone();
    now.snapshot.put(id, Entry { revision: now.revision, ..entry });
}

#[test]
fn only_yes_applies() {
    let mut workspace = in_use();
    for (typed, exit) in [(Some("y\n"), 1), (Some("\n"), 1), (Some(""), 1), (None, 1), (Some("yes\n"), 0)] {
        workspace.typed = typed;
        let before = workspace.server.state().revision;
        let applied = workspace.nmplan("apply -C @after --project acme");
        assert_eq!(applied.exit, exit, "{typed:?}: {}", applied.all());
        assert_eq!(workspace.server.state().revision > before, exit == 0, "{typed:?}");
    }
}

#[test]
fn without_a_terminal_the_command_that_applies_is_named() {
    let refused = in_use().nmplan("apply -C @after --project acme");
    insta::assert_snapshot!(refused.stderr);
}

#[test]
fn an_apply_that_creates_a_key_needs_a_sink_for_its_token() {
    let workspace = workspace();
    workspace.write("corp.kdl", &with_a_key_for_one());
    let refused = workspace.nmplan("apply -C @. --project acme -y");
    assert_eq!((refused.exit, workspace.server.state().revision), (1, Revision(0)));
    insta::assert_snapshot!(refused.stderr);
}

#[test]
fn a_directory_without_a_project_can_be_planned_but_not_applied() {
    let workspace = workspace();
    workspace.write("corp.kdl", BEFORE);
    assert_eq!(workspace.nmplan("plan -C @.").exit, 0);
    let refused = workspace.nmplan("apply -C @. -y --keys-to @keys.json");
    assert_eq!((refused.exit, workspace.server.state().revision), (1, Revision(0)));
    assert!(refused.stderr.contains("--project NAME"), "{}", refused.stderr);
}

#[test]
fn after_a_lost_answer_the_apply_is_retried_and_nothing_is_applied_twice() {
    for faults in [
        &[Fault::LostRequest][..],
        &[Fault::LostAnswer],
        &[Fault::LostAnswer, Fault::LostRequest, Fault::LostAnswer],
    ] {
        let workspace = workspace();
        workspace.write("corp.kdl", BEFORE);
        workspace.server.fail(faults);
        let applied = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
        assert_eq!(
            (applied.exit, workspace.server.state().revision),
            (0, Revision(1)),
            "{faults:?}: {}",
            applied.all()
        );
        assert_eq!((workspace.server.log().len(), keys(&workspace).len()), (1, 1), "{faults:?}");
    }
}

#[test]
fn a_plan_that_went_stale_before_the_commit_is_refused_and_leaves_no_token() {
    for faults in [&[Fault::Race][..], &[Fault::LostRequest, Fault::Race]] {
        let workspace = workspace();
        workspace.write("corp.kdl", BEFORE);
        workspace.server.fail(faults);
        let stale = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
        assert_eq!(stale.exit, 4, "{}", stale.all());
        assert!(
            stale.stderr.contains("corp changed in revision 1, by mallory on 1970-01-01"),
            "{}",
            stale.stderr
        );
        assert!(!workspace.path("keys.json").exists(), "{faults:?}");
    }
}

#[test]
fn tokens_are_kept_if_a_refusal_proves_nothing_about_an_earlier_attempt() {
    let workspace = workspace();
    workspace.write("corp.kdl", BEFORE);
    workspace.server.fail(&[Fault::LostAnswer, Fault::Refusal]);
    let unknown = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
    assert_eq!((unknown.exit, keys(&workspace).len()), (1, 1), "{}", unknown.all());
}

#[test]
fn tokens_are_kept_as_long_as_the_server_may_have_created_their_keys() {
    let workspace = workspace();
    workspace.write("corp.kdl", &with_a_key_for_one());
    workspace.server.fail(&NO_ANSWER);
    let unknown = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
    assert_eq!((unknown.exit, workspace.server.state().revision), (1, Revision(1)));
    insta::assert_snapshot!(unknown.stderr);
    let (id, token) = keys(&workspace).pop_first().unwrap();
    let token: Token = token.parse().unwrap();
    let verifier = proto::sign::public_key(&proto::sign::from_seed(token.seed.expose()));
    assert_eq!(workspace.server.state().inventory.key(&id).unwrap().verifier, verifier);
}

/// Faults after which it is unknown whether the plan was applied.
const NO_ANSWER: [Fault; 5] =
    [Fault::LostAnswer, Fault::LostRequest, Fault::LostRequest, Fault::LostRequest, Fault::LostRequest];

#[test]
fn tokens_reach_their_sink_if_it_is_unknown_whether_the_plan_was_applied() {
    let mut workspace = workspace();
    workspace.write("corp.kdl", &with_a_key_for_one());
    workspace.server.fail(&NO_ANSWER);
    let printed = workspace.nmplan("apply -C @. --project acme -y --keys-to -");
    assert_eq!((printed.exit, workspace.server.state().revision), (1, Revision(1)), "{}", printed.all());
    let tokens: BTreeMap<ResourceId, String> = serde_json::from_str(&printed.stdout).unwrap();
    let verifier = |token: &str| {
        let token: Token = token.parse().unwrap();
        proto::sign::public_key(&proto::sign::from_seed(token.seed.expose()))
    };
    let (id, token) = tokens.first_key_value().unwrap();
    assert_eq!(workspace.server.state().inventory.key(id).unwrap().verifier, verifier(token));
    assert!(
        printed.stderr.contains("written to standard output, and are valid only if it did"),
        "{}",
        printed.stderr
    );

    workspace.server = nmplan::control::Memory::of(World { epoch: 7, ..World::default() });
    workspace.server.fail(&NO_ANSWER);
    let file = workspace.path("vault").display().to_string();
    workspace.environment = vec![("NMPLAN_SINK_VAULT".into(), format!("cat > '{file}'"))];
    let taken = workspace.nmplan("apply -C @. --project acme -y --keys-to :vault");
    assert_eq!(taken.exit, 1);
    assert_eq!(
        workspace.server.state().inventory.key(id).unwrap().verifier,
        verifier(workspace.read("vault").trim())
    );

    workspace.server = nmplan::control::Memory::of(World { epoch: 7, ..World::default() });
    workspace.server.fail(&NO_ANSWER);
    workspace.environment = vec![("NMPLAN_SINK_VAULT".into(), "cat > /dev/null; exit 9".into())];
    insta::assert_snapshot!(workspace.nmplan("apply -C @. --project acme -y --keys-to :vault").stderr);
}

#[test]
fn a_plan_warns_where_rules_keep_members_from_the_name_server() {
    let workspace = workspace();
    let text = |rule: &str| {
        format!(
            "network \"corp\" {{\n ipv4 \"10.40.0.0/24\"; acl \"deny\"\n node \"ns\" ipv4=\"10.40.0.53\"\n node \"a\"\n {rule}\n}}\n"
        )
    };
    workspace.server.change_elsewhere(|world| {
        world.inventory.set_resolvers(["10.40.0.53".parse().unwrap()].into());
    });
    workspace.write("corp.kdl", &text(""));
    let printed = workspace.nmplan("plan -C @. --project acme");
    let stderr = printed.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        printed.exit == 0 && stderr.contains("a of network corp may not open udp 53"),
        "{}",
        printed.all()
    );
    assert!(stderr.contains("10.40.0.53 (COREDNS_ADDR)") && stderr.contains("corp.kdl:1"), "{stderr}");
    workspace.write("corp.kdl", &text("allow \"dns\" from=\"*\" to=\"ns\""));
    let printed = workspace.nmplan("plan -C @. --project acme");
    assert!(printed.exit == 0 && !printed.stderr.contains("COREDNS_ADDR"), "{}", printed.all());
}

#[test]
fn a_refused_apply_leaves_the_file_of_tokens_as_it_was() {
    let workspace = workspace();
    workspace.write("corp.kdl", BEFORE);
    let other = "{\"corp/access-key/ci\": \"nmj_older\", \"other/access-key/x\": \"nmj_other\"}";
    workspace.write("keys.json", other);
    workspace.server.fail(&[Fault::Refusal]);
    let refused = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
    assert_eq!((refused.exit, workspace.server.state().revision), (1, Revision(0)), "{}", refused.all());
    let same = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(same(&workspace.read("keys.json")), same(other));
    std::fs::remove_file(workspace.path("keys.json")).unwrap();
    workspace.server.fail(&[Fault::Refusal]);
    workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
    assert!(!workspace.path("keys.json").exists(), "a file that was made for it is gone");
}

#[test]
fn tokens_on_standard_output_are_alone_there() {
    let workspace = workspace();
    workspace.write("corp.kdl", BEFORE);
    let applied = workspace.nmplan("apply -C @. --project acme -y --keys-to -");
    let tokens: BTreeMap<ResourceId, String> = serde_json::from_str(&applied.stdout).unwrap();
    assert!(tokens.values().all(|token| token.parse::<Token>().is_ok()) && tokens.len() == 1);
    assert!(applied.stderr.contains("Applied as revision 1"), "{}", applied.stderr);
    let both = workspace.nmplan("apply -C @. --project acme -y --keys-to - --json");
    assert_eq!(both.exit, 1);
}

#[test]
fn a_token_goes_to_a_command_after_the_commit_and_its_failure_says_what_to_do() {
    let mut workspace = workspace();
    workspace.write("corp.kdl", &with_a_key_for_one());
    let apply = "apply -C @. --project acme -y --keys-to :vault";
    let missing = workspace.nmplan(apply);
    assert_eq!((missing.exit, workspace.server.state().revision), (1, Revision(0)), "{}", missing.all());
    assert!(missing.stderr.contains("NMPLAN_SINK_VAULT"), "{}", missing.stderr);
    workspace.environment = vec![("NMPLAN_SINK_VAULT".into(), "cat > /dev/null; exit 9".into())];
    let lost = workspace.nmplan(apply);
    assert_eq!((lost.exit, workspace.server.state().revision), (1, Revision(1)));
    insta::assert_snapshot!(lost.stderr);
}

#[test]
fn no_secret_is_in_any_output() {
    let mut workspace = workspace();
    workspace.write("corp.kdl", BEFORE);
    let mistyped = self::workspace();
    mistyped.write("corp.kdl", "network \"corp\" {\n access-key \"k\" secret=\"x\"\n}\n");
    workspace.write("held.json", "{\"corp/access-key/old\": \"nmj_old\", nmj_marked}");
    let marked = [("NMPLAN_TOKEN", "nma_marked"), ("NMPLAN_SINK_VAULT", "cat > /dev/null; exit 9; : marked")];
    workspace.environment = marked.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut printed = mistyped.nmplan("validate -C @. --json").all();
    for line in [
        "validate -C @.",
        "apply -C @. --project acme -y --keys-to @held.json",
        "apply -C @. --project acme -y --keys-to :nothing",
        "plan -C @. --project acme --out @plan.json",
        "plan -C @. --project acme --json",
        "apply -C @. --project acme -y --keys-to @keys.json",
        "plan -C @. --project acme",
        "show",
        "show --json",
        "show 1",
        "show 1 --json",
        "show @plan.json",
        "status",
        "status --json",
    ] {
        printed += &workspace.nmplan(line).all();
    }
    workspace.write("more.kdl", "network \"lab\" { ipv4 \"10.41.0.0/16\"; access-key \"k\"; }");
    for faults in [&[Fault::Refusal][..], &NO_ANSWER] {
        workspace.server.fail(faults);
        printed += &workspace.nmplan("apply -C @. --project acme -y --keys-to :vault").all();
    }
    printed += &workspace.read("plan.json");
    printed += &format!("{:?}", workspace.server.log());
    let (_, text) = keys(&workspace).pop_first().unwrap();
    let token: Token = text.parse().unwrap();
    let hex: String = token.seed.expose().iter().map(|byte| format!("{byte:02x}")).collect();
    for secret in [text.as_str(), &hex, &format!("{:?}", token.seed.expose()), "nmj_", "nma_", "marked"] {
        assert!(!printed.contains(secret), "{secret} is printed");
    }
}

#[test]
fn variables_come_from_defaults_the_env_the_environment_and_the_command_line_in_that_order() {
    let mut workspace = workspace();
    workspace.write("nmplan.kdl", "project \"acme\" schema=1\nvar \"the-ttl\" default=\"7m\"\nenv \"dev\" { use \"mesh/\"; }\nenv \"prod\" { use \"mesh/\"; set the-ttl=\"2m\" }\n");
    workspace.write(
        "mesh/corp.kdl",
        "network \"corp\" {\n ipv4 \"10.40.0.0/16\"\n dns \"api\" a=\"10.40.0.9\" ttl=\"${the-ttl}\"\n}\n",
    );
    let ttl = |workspace: &Workspace, flags: &str| {
        let plan = workspace.nmplan(&format!("plan -C @. --format json {flags}"));
        let plan: Value = serde_json::from_str(&plan.stdout).unwrap_or_else(|_| panic!("{}", plan.all()));
        plan["changes"][1]["after"]["ttl"].as_str().unwrap().to_owned()
    };
    assert_eq!(ttl(&workspace, "--env dev"), "7m");
    assert_eq!(ttl(&workspace, "--env prod"), "2m");
    workspace.environment =
        vec![("NMPLAN_VAR_the_ttl".into(), "3m".into()), ("NMPLAN_ENV".into(), "prod".into())];
    assert_eq!(ttl(&workspace, ""), "3m");
    assert_eq!(ttl(&workspace, "--var the-ttl=4m"), "4m");
    let unknown = workspace.nmplan("plan -C @. --var the-tll=4m");
    assert_eq!(unknown.exit, 1);
    assert!(unknown.stderr.contains("did you mean \"the-ttl\"?"), "{}", unknown.stderr);
    workspace.environment.clear();
    insta::assert_snapshot!(workspace.nmplan("plan -C @.").stderr);
}

#[test]
fn a_variable_must_be_set_in_the_env_that_is_chosen_by_the_env_the_environment_or_the_command_line() {
    let mut workspace = workspace();
    workspace.write("nmplan.kdl", "project \"acme\" schema=1\nvar \"the-ttl\"\nenv \"dev\" { use \"mesh/\"; }\nenv \"prod\" { use \"mesh/\"; set the-ttl=\"2m\" }\n");
    workspace.write(
        "mesh/corp.kdl",
        "network \"corp\" {\n ipv4 \"10.40.0.0/16\"\n dns \"api\" a=\"10.40.0.9\" ttl=\"${the-ttl}\"\n}\n",
    );
    assert_eq!(
        workspace.nmplan("plan -C @. --env prod").exit,
        0,
        "a variable that is missing in dev does not matter"
    );
    assert_eq!(workspace.nmplan("plan -C @. --env dev --var the-ttl=4m").exit, 0);
    assert_eq!(workspace.nmplan("validate -C @. --var the-ttl=4m").exit, 0);
    let each = workspace.nmplan("validate -C @.");
    assert_eq!(
        (each.exit, &*each.stdout),
        (1, "env prod: 2 resources in 2 files: valid.\n"),
        "{}",
        each.all()
    );
    insta::assert_snapshot!(workspace.nmplan("plan -C @. --env dev").stderr);
    workspace.environment = vec![("NMPLAN_VAR_the_ttl".into(), "3m".into())];
    assert_eq!(workspace.nmplan("plan -C @. --env dev").exit, 0);
}

#[test]
fn validate_checks_every_env_unless_one_is_chosen() {
    let workspace = workspace();
    let project = "project \"acme\" schema=1\nenv \"dev\" { use \"dev/\" }\nenv \"prod\" { use \"prod/\" }\n";
    workspace.write("nmplan.kdl", project);
    workspace.write("dev/corp.kdl", BEFORE);
    workspace.write("prod/corp.kdl", "network \"corp\" {}");
    assert_eq!(workspace.nmplan("validate -C @. --env dev").exit, 0);
    let both = workspace.nmplan("validate -C @.");
    assert_eq!((both.exit, &*both.stdout), (1, "env dev: 6 resources in 2 files: valid.\n"));
    assert!(both.stderr.contains("schema::no_range"), "{}", both.stderr);
    workspace.write("prod/corp.kdl", BEFORE);
    assert_eq!(workspace.nmplan("validate -C @.").exit, 0);
}

#[test]
fn paths_outside_of_the_project_are_problems_and_files_are_read_in_order() {
    let workspace = workspace();
    let project = "project \"acme\" schema=1\nenv \"dev\" {\n    use \"mesh\" \"../elsewhere\" \"/etc\" \"missing/\" \"notes.txt\"\n}\n";
    workspace.write("p/nmplan.kdl", project);
    workspace.write("p/notes.txt", "");
    workspace.write("elsewhere/x.kdl", "network \"x\" ipv4=\"10.1.0.0/16\"");
    workspace.write("p/mesh/b/corp.kdl", "network \"corp\" ipv4=\"10.40.0.0/16\"");
    workspace.write("p/mesh/a.yml", "networks: { other: { ipv4: 10.41.0.0/16 } }");
    workspace.write("p/mesh/.hidden/x.kdl", "nonsense {");
    std::os::unix::fs::symlink("../mesh", workspace.path("p/mesh/loop")).unwrap();
    insta::assert_snapshot!(workspace.nmplan("validate -C @p").all());
    workspace.write("p/nmplan.kdl", "project \"acme\" schema=1\nenv \"dev\" { use \"mesh\" }\n");
    assert_eq!(workspace.nmplan("validate -C @p").stdout, "2 resources in 3 files: valid.\n");
}

#[test]
fn a_file_is_read_once_however_many_paths_lead_to_it() {
    let workspace = workspace();
    let project = "project \"acme\" schema=1\nenv \"dev\" { use \"mesh/\" \"mesh\" \"./mesh/corp.kdl\" \"same\" \"link.kdl\" }\n";
    workspace.write("nmplan.kdl", project);
    workspace.write("mesh/corp.kdl", "network \"corp\" ipv4=\"10.40.0.0/16\"");
    std::os::unix::fs::symlink("mesh", workspace.path("same")).unwrap();
    std::os::unix::fs::symlink("mesh/corp.kdl", workspace.path("link.kdl")).unwrap();
    assert_eq!(workspace.nmplan("validate -C @.").stdout, "1 resource in 2 files: valid.\n");
    workspace.write("nmplan.kdl", "project \"acme\" schema=1\nenv \"dev\"\n");
    assert_eq!(workspace.nmplan("validate -C @.").stdout, "1 resource in 2 files: valid.\n");
    workspace.write("nmplan.kdl", "project \"acme\" schema=1\nenv \"dev\" { use \"mesh/..\" }\n");
    assert_eq!(
        workspace.nmplan("validate -C @.").stdout,
        "1 resource in 2 files: valid.\n",
        "the project file declares nothing"
    );
}

#[test]
fn an_extension_may_be_upper_case_and_a_name_that_is_not_utf_8_is_a_problem() {
    use std::os::unix::ffi::OsStrExt;
    let workspace = workspace();
    workspace.write("CORP.KDL", "network \"corp\" ipv4=\"10.40.0.0/16\"");
    workspace.write("Other.Yaml", "networks: { other: { ipv4: 10.41.0.0/16 } }");
    assert_eq!(workspace.nmplan("validate -C @.").stdout, "2 resources in 2 files: valid.\n");
    assert_eq!(workspace.nmplan("validate -f @CORP.KDL").stdout, "1 resource in 1 file: valid.\n");
    for name in [&b"b\xfc.kdl"[..], b"b\xfc/x.kdl", b"b\xfc.txt"] {
        let path = workspace.directory.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let problems = workspace.nmplan("validate -C @.");
    assert_eq!(problems.exit, 1);
    assert_eq!(problems.stderr.matches("its name is not UTF-8").count(), 2, "{}", problems.stderr);
    assert!(problems.stderr.contains("project::path"), "{}", problems.stderr);
}

#[test]
fn the_name_of_a_file_turns_nothing_around_on_a_terminal() {
    let workspace = workspace();
    let broken = "p\u{202e}ldk.kdl";
    workspace.write(&format!("bad/{broken}"), "network \"corp\" ipv4=\"10.40.0.0/16\" size=1");
    std::fs::write(workspace.path("bad/q\u{202e}.kdl"), b"\xff").unwrap();
    workspace.write("none/x\u{202e}.txt", "");
    let rules = "network \"corp\" ipv4=\"10.40.0.0/16\" acl=\"deny\" { node \"a\"; node \"b\"; allow \"ab\" from=\"a\" to=\"b\" }";
    workspace.write(&format!("good/{broken}"), rules);
    for (line, said) in [
        ("validate -C @bad", "p\u{fffd}ldk.kdl:1:"),
        ("validate -C @bad", "q\u{fffd}.kdl is not UTF-8"),
        ("validate -C @none", "x\u{fffd}.txt"),
        ("plan -C @good --project acme", "p\u{fffd}ldk.kdl:1"),
        ("explain a b -C @good", "p\u{fffd}ldk.kdl:1"),
        ("plan -f @missing\u{202e}.kdl --project acme", "missing\u{fffd}.kdl"),
        ("show @good/p\u{202e}ldk.kdl", "p\u{fffd}ldk.kdl"),
    ] {
        let text = workspace.nmplan(line).all();
        assert!(text.contains(said) && !text.contains('\u{202e}'), "{line}: {text:?}");
    }
    // Programs are told the name by which the file can be found.
    let events = workspace.nmplan("validate -C @bad --json").events();
    let files = events.iter().filter_map(|event| event["file"].as_str());
    assert!(files.clone().any(|file| file.ends_with(broken)), "{events:?}");
}

#[test]
fn what_a_file_hides_is_not_hidden_where_its_lines_are_shown() {
    let workspace = workspace();
    let file =
        "# \u{ad}\u{202e}\u{e0041}\nnetworks: { corp: { ipv4: 10.40.0.0/16, size: 1 } } # \u{2066}\u{200b}\n";
    workspace.write("bad/corp.yaml", file);
    let text = workspace.nmplan("validate -C @bad").stderr;
    assert!(text.contains("schema::unknown_word"), "{text}");
    assert!(text.contains("# \u{bf}\u{fffd}\u{1f7e6}"), "{text:?}");
    assert!(text.contains("# \u{fffd}\u{fffd}") && text.contains("corp.yaml:2:41"), "{text:?}");
    assert!(text.chars().all(|c| schema::text::is_shown(c) || c == '\n'), "{text:?}");
}

#[test]
fn a_file_that_is_not_text_is_a_problem_and_the_others_are_read() {
    let workspace = workspace();
    std::fs::write(workspace.path("a.kdl"), b"network \"corp\" { ipv4 \"\xff\" }").unwrap();
    workspace.write("b.yaml", "networks: { x: { ipv4: 10.1.0.0/16, nodes: { a: { size: 1 } } } }");
    let problems = workspace.nmplan("validate -C @. --json");
    let events = problems.events();
    let found = events.iter().filter(|event| event["type"] == "diagnostic");
    let codes: Vec<_> = found.map(|event| event["code"].clone()).collect();
    assert_eq!(codes, ["syntax::not_text", "schema::unknown_field"], "{}", problems.all());
}

#[test]
fn the_files_of_a_flag_are_the_whole_desired_state_in_any_language() {
    let workspace = in_use();
    workspace.write("nmplan.kdl", "project \"acme\" schema=1\nenv \"default\" { use \"after/\" }\n");
    workspace.write("same", BEFORE);
    for (flags, exit) in [("-f @before/corp.kdl", 0), ("-f @same", 0), ("-f @after/corp.kdl", 2), ("", 2)] {
        let plan = workspace.nmplan(&format!("plan -C @. --detailed-exitcode {flags}"));
        assert_eq!(plan.exit, exit, "{flags}: {}", plan.all());
    }
    assert_eq!(workspace.nmplan("plan -C @. -f @missing.kdl").exit, 1);
}

#[test]
fn a_problem_in_two_files_shows_both_locations() {
    let workspace = workspace();
    workspace.write("a.kdl", "network \"corp\" {\n    ipv4 \"10.40.0.0/16\"\n    node \"db-1\"\n}\n");
    workspace.write("b.yaml", "networks:\n  corp:\n    nodes:\n      db-1: { tags: [db] }\n");
    insta::assert_snapshot!(workspace.nmplan("validate -C @.").all());
}

#[test]
fn every_problem_is_drawn_at_its_location() {
    let folder = example("problems");
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, expected) = text.lines().next().unwrap().split_once(" expect ").unwrap();
        if name.starts_with("project.") || text.contains("in a project file") {
            continue;
        }
        let position = expected.split_whitespace().next().unwrap();
        let shown = workspace().nmplan(&format!("validate -f {folder}/{name} --var gw-endpoint=192.0.2.10"));
        assert!(
            shown.stderr.contains(&format!("{name}:{position}]")),
            "{name} at {position}: {}",
            shown.stderr
        );
        assert!(!shown.stderr.contains("Failed to read"), "{name}: {}", shown.stderr);
    }
}

#[test]
fn a_problem_in_a_very_long_line_shows_only_its_surroundings() {
    let workspace = workspace();
    let nodes =
        |from: usize| (from..from + 500).map(|number| format!("\"n-{number}\": {{}}, ")).collect::<String>();
    let before = nodes(0);
    let text = format!(
        "{{\"networks\": {{\"corp\": {{\"ipv4\": \"10.40.0.0/16\", \"nodes\": {{{before}\"bäd\": {{}}, {}\"n-3\": {{}}}}}}}}}}",
        nodes(500)
    );
    workspace.write("one-line.yaml", &text);
    insta::assert_snapshot!(workspace.nmplan("validate -f @one-line.yaml").stderr);
}

#[test]
fn what_another_project_manages_is_a_problem_of_the_plan() {
    let workspace = in_use();
    insta::assert_snapshot!(workspace.nmplan("plan -C @after --project other").stderr);
}

/// A network with addresses that servers reserve by default, and a key that lets a node claim the name of a
/// server's host.
const RESERVED: &str = "network \"corp\" {\n    ipv4 \"10.101.8.0/24\"\n    node \"netmaker\"\n    node \"gw\"\n    access-key \"named\" { for \"gw\" \"netmaker\" }\n}\n";

#[test]
fn without_a_server_the_range_that_servers_reserve_is_a_warning() {
    let workspace = workspace();
    workspace.write("reserved/corp.kdl", RESERVED);
    insta::assert_snapshot!(workspace.nmplan("validate -C @reserved").all());
    let events = workspace.nmplan("validate -C @reserved --json").events();
    let found: Vec<_> = events.iter().filter(|event| event["type"] == "diagnostic").collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (&found[0]["code"], &found[0]["severity"]),
        (&"schema::default_comms_range".into(), &"warning".into())
    );
}

/// Who may open what, with a tag that nobody has in the place of TAG.
const ACCESS: &str = r#"
network "corp" {
    ipv4 "10.40.0.0/16"
    acl "deny"
    node "bastion" { tags "ops"; }
    node "db-1" { tags "db"; }
    access-key "web" uses=50 { tags "web"; }
    group "ops" nodes="bastion" tags="ops"
    allow "ops" from="ops" to="*"
    allow "web-to-db" from="TAG" to="tag:db" proto="tcp" {
        ports 5432 "6000-6009"
    }
    test "db" {
        reach from="tag:web" to="db-1" port=5432
        no-reach from="*" to="tag:db" {
            except "tag:web" "ops"
        }
        path from="bastion" to="db-1"
    }
}
"#;

/// The same with `tag:web`.
const ACCESS_YAML: &str = r#"
networks:
  corp:
    ipv4: 10.40.0.0/16
    acl: deny
    nodes: { bastion: { tags: ops }, db-1: { tags: db } }
    access-keys: { web: { uses: 50, tags: web } }
    groups: { ops: { nodes: [bastion], tags: [ops] } }
    allow:
      ops: { from: [ops], to: "*" }
      web-to-db: { from: "tag:web", to: "tag:db", proto: tcp, ports: [6000-6009, 5432] }
    tests:
      db:
        reach: [{ from: "tag:web", to: db-1, port: 5432 }]
        no-reach: { from: "*", to: "tag:db", except: [ops, "tag:web"] }
        path: { from: bastion, to: db-1 }
"#;

#[test]
fn a_selector_that_selects_nothing_is_a_warning_to_whoever_reads_the_files() {
    let workspace = workspace();
    // What tests say of the mistake is not the matter here.
    let files = ACCESS
        .replace("TAG", "tag:wbe")
        .replace("        reach from=\"tag:web\" to=\"db-1\" port=5432\n", "");
    workspace.write("access/corp.kdl", &files);
    insta::assert_snapshot!(workspace.nmplan("validate -C @access").all());
    for command in
        ["plan -C @access --project acme", "apply -C @access --project acme -y --keys-to @keys.json"]
    {
        let run = workspace.nmplan(command);
        assert_eq!(run.exit, 0, "{}", run.all());
        assert!(run.stderr.contains("schema::selects_nothing"), "{}", run.all());
    }
    let events = workspace.nmplan("validate -C @access --json").events();
    let found: Vec<_> = events.iter().filter(|event| event["type"] == "diagnostic").collect();
    let [found] = &*found else { panic!("one warning: {found:?}") };
    assert_eq!(
        (&found["code"], &found["severity"], &found["line"], &found["id"]),
        (&"schema::selects_nothing".into(), &"warning".into(), &10.into(), &"corp/allow/web-to-db".into())
    );
}

#[test]
fn who_may_open_what_is_planned_applied_and_shown_and_the_same_in_either_language() {
    let workspace = workspace();
    workspace.write("kdl/corp.kdl", &ACCESS.replace("TAG", "tag:web"));
    workspace.write("yaml/corp.yaml", ACCESS_YAML);
    let plan = workspace.nmplan("plan -C @kdl --project acme -v").stdout;
    let (changes, _) = plan.split_once("Who can reach whom").unwrap();
    insta::assert_snapshot!(changes);
    let applied = workspace.nmplan("apply -C @kdl --project acme -y --keys-to @keys.json");
    assert_eq!(applied.exit, 0, "{}", applied.all());
    let same = workspace.nmplan("plan -C @yaml --project acme --detailed-exitcode");
    assert_eq!(same.exit, 0, "{}", same.all());
    let shown = workspace.nmplan("show").stdout;
    for kind in ["group", "allow", "test"] {
        assert!(shown.lines().any(|line| line.contains(kind)), "{kind}: {shown}");
    }
}

#[test]
fn a_plan_is_refused_for_what_its_own_server_reserves_not_for_the_default() {
    let workspace = workspace();
    workspace.write("reserved/corp.kdl", RESERVED);
    let plan = workspace.nmplan("plan -C @reserved --project acme --out @plan.json");
    assert_eq!(
        (plan.exit, &*plan.stderr),
        (
            0,
            "\nThe plan is saved in DIR/plan.json.\nNo commit is recorded with this plan: DIR/reserved is in no git repository.\n"
        ),
        "this server reserves nothing"
    );
    workspace.server.set_info(|info| {
        info.comms_range = Some(schema::world::ServerInfo::DEFAULT_COMMS_RANGE);
        info.own_node = Some("netmaker".parse().unwrap());
    });
    insta::assert_snapshot!(workspace.nmplan("plan -C @reserved --project acme").all());
    let late = workspace.nmplan("apply @plan.json -y --keys-to @keys.json");
    assert_eq!((late.exit, workspace.server.state().revision), (1, Revision(0)), "{}", late.all());
    insta::assert_snapshot!("what_a_server_reserves_is_refused_at_the_commit_too", late.stderr);
}

#[test]
fn no_declarations_are_an_error_unless_that_is_meant() {
    let workspace = in_use();
    workspace.write("empty/notes.txt", "network \"corp\"");
    for command in ["plan", "plan --detailed-exitcode", "apply -y", "validate"] {
        let refused = workspace.nmplan(&format!("{command} -C @empty --project acme"));
        assert_eq!((refused.exit, workspace.server.state().revision), (1, Revision(2)), "{}", refused.all());
        assert!(refused.stderr.contains("project::nothing_declared"), "{}", refused.stderr);
        assert!(refused.stderr.contains("DIR/empty/notes.txt"), "{}", refused.stderr);
    }
    let plan = workspace.nmplan("plan -C @empty --project acme --allow-empty");
    assert_eq!((plan.exit, &*plan.stderr), (0, ""));
    assert!(plan.stdout.contains(" --allow-empty"), "{}", plan.stdout);
    let verdict = "6 changes: 6 to delete; everything that acme/default manages would be deleted.";
    assert!(plan.stdout.contains(verdict), "{}", plan.stdout);
    let apply = workspace.nmplan("apply -C @empty --project acme --allow-empty");
    assert!(apply.stdout.contains(verdict), "{}", apply.stdout);
    workspace.nmplan("plan -C @empty --project acme --allow-empty --out @plan.json");
    let saved = workspace.nmplan("show @plan.json");
    assert!(saved.stdout.contains(verdict), "{}", saved.stdout);
    let some = workspace.nmplan("plan -C @after --project acme");
    assert!(!some.stdout.contains("everything"), "{}", some.stdout);
}

#[test]
fn a_mistake_inside_an_env_is_shown_and_not_that_there_is_no_env() {
    let workspace = workspace();
    workspace.write(
        "nmplan.kdl",
        "project \"acme\" schema=1\nenv \"prod\" {\n    servr \"https://a.example\"\n}\n",
    );
    workspace.write("mesh/corp.kdl", BEFORE);
    for command in ["validate", "plan", "apply -y", "plan --env prod"] {
        let refused = workspace.nmplan(&format!("{command} -C @."));
        assert_eq!(refused.exit, 1, "{}", refused.all());
        let stderr = &refused.stderr;
        assert!(stderr.contains("nmplan.kdl:3:5") && stderr.contains("did you mean \"server\"?"), "{stderr}");
        assert!(!stderr.contains("no env"), "{stderr}");
    }
    for command in ["status", "show"] {
        let refused = workspace.nmplan(&format!("{command} -C @.")).stderr;
        assert!(refused.contains("nmplan.kdl has an error in line 3"), "{refused}");
    }
}

#[test]
fn an_unknown_network_is_refused_with_a_suggestion() {
    let workspace = in_use();
    let lines = [
        "plan -C @after --project acme",
        "apply -C @after --project acme -y",
        "validate -C @after",
        "status",
    ];
    for line in lines {
        assert_eq!(workspace.nmplan(&format!("{line} --network corp")).exit, 0, "{line}");
        let refused = workspace.nmplan(&format!("{line} --network crop"));
        assert_eq!(refused.exit, 1, "{line}: {}", refused.all());
        assert!(refused.stderr.contains("there is no network crop"), "{line}: {}", refused.stderr);
        assert!(refused.stderr.contains("did you mean \"corp\"?"), "{line}: {}", refused.stderr);
    }
    std::fs::create_dir(workspace.path("empty")).unwrap();
    let gone = workspace.nmplan("plan -C @empty --project acme --network corp --allow-empty");
    assert_eq!(gone.exit, 0, "the server knows it: {}", gone.all());
}

#[test]
fn a_node_whose_declaration_is_deleted_is_removed_or_stays_and_the_plan_says_which() {
    let workspace = in_use();
    let old = "corp/node/old".parse::<ResourceId>().unwrap();
    for (claimed, shown) in
        [(true, "the joined node is removed from the network"), (false, "the joined node stays, undeclared")]
    {
        workspace.server.change_elsewhere(|world| {
            world.inventory.put_node(old.node(), Joined { claimed, ..workspace::joined(2) });
        });
        let plan = workspace.nmplan("plan -C @after --project acme");
        assert!(plan.stdout.contains(&format!("  - node        old\n        {shown}\n")), "{}", plan.stdout);
    }
    let nothing = "network \"corp\" {\n ipv4 \"10.40.0.0/16\"\n node \"gw\"\n}\n";
    workspace.write("nothing/corp.kdl", nothing);
    let plan = workspace.nmplan("plan -C @nothing --project acme");
    assert_eq!(
        plan.stdout.matches("the joined node").count(),
        2,
        "of old and web, not of key and entry: {}",
        plan.stdout
    );
}

#[test]
fn deletions_and_which_node_a_declaration_binds_to_are_never_folded() {
    let workspace = workspace();
    let nodes = |letter: char| {
        (0..60).map(|number| format!("    node \"{letter}{number:02}\"\n")).collect::<String>()
    };
    let corp = |nodes: &str| format!("network \"corp\" {{\n    ipv4 \"10.40.0.0/16\"\n{nodes}}}\n");
    workspace.write("before/corp.kdl", &corp(&nodes('a')));
    workspace.write("after/corp.kdl", &corp(&nodes('b')));
    assert_eq!(workspace.nmplan("apply -C @before --project acme -y").exit, 0);
    join(&workspace.server, &[("b55", 1)]);
    let plan = workspace.nmplan("plan -C @after --project acme");
    for number in 0..60 {
        assert!(plan.stdout.contains(&format!("  - node  a{number:02}\n")), "a{number:02}: {}", plan.stdout);
    }
    assert!(plan.stdout.contains("  + node  b55\n        binds to the node"), "{}", plan.stdout);
    assert!(plan.stdout.contains("  + node  b19\n") && !plan.stdout.contains("b20"), "{}", plan.stdout);
    assert!(plan.stdout.contains("... and 39 more; -v shows all"), "{}", plan.stdout);
}

#[test]
fn the_worst_affected_nodes_come_first() {
    let workspace = in_use();
    let plan = workspace.nmplan("plan -C @after --project acme");
    let (_, impact) = plan.stdout.split_once("Nodes that are reconfigured\n").unwrap();
    let names: Vec<_> = impact.lines().map_while(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["corp/old", "corp/gw", "corp/laptop,"], "removed, broken, the rest: laptop and web");
}

fn node(name: &str, state: Presence, acknowledged: u64) -> NodeStatus {
    NodeStatus {
        tags: ["db".parse().unwrap()].into(),
        addresses: ["10.40.0.1".parse().unwrap()].into(),
        state,
        control: match state {
            Presence::Online => Control::Tunnel,
            Presence::Silent => Control::Tls,
            Presence::Awaiting | Presence::Pending => Control::None,
        },
        problems: match state {
            Presence::Silent => vec![NodeProblem::new(NodeProblem::NO_IPV6, "IPv6 is off on this host")],
            Presence::Online | Presence::Awaiting | Presence::Pending => Vec::new(),
        },
        ..online(name, Some(Revision(acknowledged)))
    }
}

#[test]
fn an_apply_that_waits_exits_7_for_nodes_that_were_online_and_did_not_acknowledge() {
    let table: [(&[NodeStatus], u8); 4] = [
        (&[], 0),
        (&[node("gw", Presence::Online, 99), node("web", Presence::Silent, 1)], 0),
        (&[node("gw", Presence::Awaiting, 0)], 0),
        (&[node("gw", Presence::Online, 99), node("web", Presence::Online, 1)], 7),
    ];
    for (nodes, exit) in table {
        let workspace = in_use();
        workspace.server.set_nodes(nodes.to_vec());
        let applied = workspace.nmplan("apply -C @after --project acme -y --wait=0s");
        assert_eq!(applied.exit, exit, "{}", applied.all());
        assert_eq!(applied.stderr.contains("corp/node/web"), exit == 7, "{}", applied.all());
        assert!(!applied.stderr.contains("corp/node/gw"), "{}", applied.all());
    }
}

#[test]
fn status_is_a_table_or_the_document() {
    let workspace = in_use();
    let online = node("gw", Presence::Online, 2);
    workspace.server.set_nodes(vec![
        online,
        node("old", Presence::Silent, 1),
        node("web", Presence::Awaiting, 0),
    ]);
    insta::assert_snapshot!(workspace.nmplan("status").all());
    let document: schema::api::StatusDocument =
        serde_json::from_str(&workspace.nmplan("status --json").stdout).unwrap();
    assert_eq!(document.nodes.len(), 3);
}

#[test]
fn a_revision_is_shown_with_who_and_what() {
    let workspace = in_use();
    workspace.nmplan("apply -C @after --project acme -y");
    insta::assert_snapshot!(workspace.nmplan("show 3").all());
    insta::assert_snapshot!("show_of_the_newest", workspace.nmplan("show").all());
    assert_eq!(workspace.nmplan("show 9").exit, 1);
}

#[test]
fn init_creates_a_valid_project_and_overwrites_nothing() {
    let workspace = workspace();
    let made = workspace.nmplan("init my-long-project-name -C @new");
    insta::assert_snapshot!(made.all());
    assert_eq!(workspace.nmplan("validate -C @new").stdout, "5 resources in 2 files: valid.\n");
    let before = workspace.read("new/nmplan.kdl");
    assert_eq!(workspace.nmplan("init other -C @new").exit, 1);
    assert_eq!(workspace.read("new/nmplan.kdl"), before);
}

#[test]
fn a_code_is_explained() {
    let workspace = workspace();
    assert!(workspace.nmplan("explain").stdout.contains("schema::unknown_field"));
    assert!(workspace.nmplan("explain schema::no_range").stdout.contains("A network needs an IPv4 range"));
    for (asked, meant) in [("schema::no_rang", "schema::no_range"), ("no_rang", "no_range")] {
        let unknown = workspace.nmplan(&format!("explain {asked}"));
        assert_eq!(unknown.exit, 1);
        assert!(unknown.stderr.contains(&format!("did you mean {meant:?}?")), "{}", unknown.stderr);
    }
    for code in schema::report::Code::ALL {
        let (_, name) = code.name().split_once("::").unwrap();
        let explained = workspace.nmplan(&format!("explain {name}"));
        assert!(explained.stdout.contains(code.explanation()), "{name}: {}", explained.all());
    }
}

#[test]
fn a_key_that_would_be_over_before_it_is_made_is_refused_at_its_line() {
    let workspace = workspace();
    workspace.write(
        "corp.kdl",
        "network \"corp\" {\n    ipv4 \"10.40.0.0/16\"\n    access-key \"old\" expires=\"2020-01-01\"\n}\n",
    );
    assert_eq!(workspace.nmplan("validate -C @.").exit, 0, "whether the key exists is not known");
    for command in ["plan", "apply -y --keys-to @keys.json"] {
        let refused = workspace.nmplan(&format!("{command} -C @. --project acme"));
        assert_eq!((refused.exit, workspace.server.state().revision), (1, Revision(0)), "{}", refused.all());
        let stderr = &refused.stderr;
        assert!(stderr.contains("plan::key_over") && stderr.contains("corp.kdl:3:30"), "{stderr}");
    }
    insta::assert_snapshot!(workspace.nmplan("plan -C @. --project acme").stderr);
}

#[test]
fn a_saved_plan_whose_key_is_over_by_now_is_refused_at_the_commit() {
    let workspace = workspace();
    workspace.write(
        "corp.kdl",
        "network \"corp\" {\n ipv4 \"10.40.0.0/16\"\n access-key \"k\" expires=\"2999-01-01\"\n}\n",
    );
    workspace.nmplan("plan -C @. --project acme --out @plan.json");
    let mut plan: schema::plan::Plan = serde_json::from_str(&workspace.read("plan.json")).unwrap();
    let text = serde_json::to_string(&plan.changes).unwrap().replace("2999", "2020");
    plan.changes = serde_json::from_str(&text).unwrap();
    plan.digest = plan.digest_now();
    workspace.write("plan.json", &serde_json::to_string(&plan).unwrap());
    let refused = workspace.nmplan("apply @plan.json -y --keys-to @keys.json");
    assert_eq!((refused.exit, workspace.server.state().revision), (1, Revision(0)), "{}", refused.all());
    assert!(refused.stderr.contains("(plan::key_over)"), "{}", refused.stderr);
    assert!(!workspace.path("keys.json").exists());
}

#[test]
fn keys_that_let_nobody_join_are_seen_in_plan_show_and_status() {
    let workspace = in_use();
    let open = "Access keys that let nobody join";
    for line in ["plan -C @before --project acme", "show", "status"] {
        assert!(!workspace.nmplan(line).stdout.contains(open), "{line}: all keys are open");
    }
    let ci: ResourceId = "corp/access-key/ci".parse().unwrap();
    workspace.server.change_elsewhere(|world| {
        let status = world.inventory.key(&ci).unwrap();
        let spent = KeyStatus { used: 5, ..(**status).clone() };
        world.inventory.put_key(ci.clone(), spent);
    });
    for line in ["plan -C @before --project acme", "show", "status"] {
        let shown = workspace.nmplan(line).stdout;
        let said = match line {
            "status" => "corp     ci          spent  0 of 5     never\n",
            _ => "  corp/access-key/ci  used up: 5 uses\n",
        };
        assert!(shown.contains(said), "{line}: {shown}");
        assert!(shown.contains("raise `uses`"), "{line}: {shown}");
    }
    // A key that exists may get a day that has begun: that ends it.
    workspace.write("ended/corp.kdl", &BEFORE.replace("uses=5", "uses=5 expires=\"2020-01-01\""));
    let plan = workspace.nmplan("plan -C @ended --project acme");
    assert_eq!(plan.exit, 0, "{}", plan.all());
    assert!(
        plan.stdout.contains("corp/access-key/ci  expired on 2020-01-01 00:00:00 UTC"),
        "{}",
        plan.stdout
    );
    assert_eq!(workspace.nmplan("apply -C @ended --project acme -y").exit, 0);
    let status: Value = serde_json::from_str(&workspace.nmplan("status --json").stdout).unwrap();
    let key = &status["keys"][0];
    assert_eq!(
        (&key["id"], &key["state"], &key["used"]),
        (&"corp/access-key/ci".into(), &"expired".into(), &5.into())
    );
}

#[test]
fn an_apply_prints_how_a_host_joins_with_each_new_key() {
    let workspace = workspace();
    let keys = "access-key \"any\" uses=9 expires=\"30d\"\n access-key \"one\" { for \"gw\" }\n access-key \"two\" { for \"gw\" \"db\" }";
    workspace.write(
        "corp.kdl",
        &format!("network \"corp\" {{\n ipv4 \"10.40.0.0/16\"\n node \"gw\"; node \"db\"\n {keys}\n}}\n"),
    );
    let applied = workspace.nmplan("apply -C @. --project acme -y --keys-to @keys.json");
    insta::assert_snapshot!(applied.stderr);
    let file = workspace.read("keys.json");
    for line in
        applied.stderr.lines().filter_map(|line| line.trim().strip_prefix("netclient join -t @DIR/keys.json"))
    {
        let key = line.split_whitespace().nth(1).unwrap();
        assert_eq!(
            proto::token::choose(&file, Some(key)).unwrap().id(),
            key,
            "the printed command finds its token"
        );
    }
}

#[test]
fn columns_hold_for_the_longest_names_and_tables_fold_on_a_narrow_terminal() {
    let mut workspace = workspace();
    let long = "n".repeat(63);
    let network = format!(
        "network \"corp\" {{\n ipv4 \"10.40.0.0/16\"\n node \"{long}\" ipv4=\"10.40.0.9\"\n node \"db\" ipv4=\"10.40.0.8\"\n}}\n"
    );
    workspace.write("corp.kdl", &network);
    let plan = workspace.nmplan("plan -C @. --project acme").stdout;
    let columns: std::collections::BTreeSet<_> =
        plan.lines().filter(|line| line.starts_with("  + node")).map(|line| line.find("ipv4=")).collect();
    assert_eq!(columns.len(), 1, "{plan}");
    workspace.nmplan("apply -C @. --project acme -y");
    let long_node = NodeStatus {
        name: long.parse().unwrap(),
        id: format!("corp/node/{long}"),
        ..node("db", Presence::Online, 1)
    };
    workspace.server.set_nodes(vec![node("db", Presence::Awaiting, 0), long_node]);
    for line in ["status", "show", "history"] {
        workspace.columns = None;
        let piped = workspace.nmplan(line).stdout;
        assert!(
            piped.lines().any(|line| line.starts_with("NETWORK  ") || line.starts_with("REVISION  ")),
            "{piped}"
        );
        workspace.columns = Some(60);
        let narrow = workspace.nmplan(line).stdout;
        // The first line says what is shown.
        let lines = narrow.lines().skip(1);
        let wide: Vec<_> = lines.filter(|line| line.len() > 60 && !line.contains(&long)).collect();
        assert!(wide.is_empty(), "{line}: {wide:?}");
        assert!(!narrow.contains(&long[..62]) || narrow.contains(&long), "no name is torn apart: {narrow}");
    }
    insta::assert_snapshot!(workspace.nmplan("status").stdout.replace(&long, "LONG"));
}

#[test]
fn it_is_said_once_that_no_commit_is_recorded() {
    let workspace = workspace();
    workspace.write("corp.kdl", "network \"corp\" ipv4=\"10.40.0.0/16\"");
    let note = "No commit is recorded with this plan: DIR is in no git repository.\n";
    assert!(!workspace.nmplan("plan -C @. --project acme").stderr.contains("commit"), "nothing is recorded");
    let saved = workspace.nmplan("plan -C @. --project acme --out @plan.json");
    assert_eq!(saved.stderr.matches(note).count(), 1, "{}", saved.stderr);
    let applied = workspace.nmplan("apply -C @. --project acme -y");
    assert_eq!((applied.exit, applied.stderr.matches(note).count()), (0, 1), "{}", applied.stderr);
    let nothing = workspace.nmplan("apply -C @. --project acme -y");
    assert!(!nothing.stderr.contains("commit"), "nothing is applied: {}", nothing.stderr);
    commit(&workspace, ".", &["corp.kdl"], "declare corp");
    workspace.write("corp.kdl", "network \"corp\" ipv4=\"10.41.0.0/16\"");
    let recorded = workspace.nmplan("apply -C @. --project acme -y");
    assert!(!recorded.stderr.contains("No commit"), "{}", recorded.stderr);
}

#[test]
fn a_project_file_that_cannot_be_looked_at_is_not_one_that_is_missing() {
    let workspace = workspace();
    workspace.write("corp.kdl", BEFORE);
    // A link to itself fails like a folder without permission, for root too.
    std::os::unix::fs::symlink("nmplan.kdl", workspace.path("nmplan.kdl")).unwrap();
    for line in ["plan -C @. --project acme", "validate -C @.", "status -C @."] {
        let refused = workspace.nmplan(line);
        assert_eq!(refused.exit, 1, "{line}: {}", refused.all());
        assert!(refused.stderr.contains("cannot read DIR/nmplan.kdl"), "{line}: {}", refused.stderr);
    }
    assert_eq!(workspace.nmplan("init -C @.").exit, 1);
}

#[test]
fn help_has_what_every_command_takes_once() {
    let mut program = args::command();
    let whole = program.render_long_help().to_string();
    let shared: Vec<String> = program
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .map(|argument| argument.get_long().unwrap().to_owned())
        .collect();
    assert!(shared.len() > 10, "{shared:?}");
    for flag in &shared {
        assert_eq!(
            whole.matches(&format!("      --{flag} ")).count()
                + whole.matches(&format!(", --{flag}\n")).count()
                + whole.matches(&format!(", --{flag} ")).count()
                + whole.matches(&format!("      --{flag}\n")).count(),
            1,
            "--{flag}: {whole}"
        );
    }
    program.build();
    for verb in program.get_subcommands_mut() {
        let help = verb.render_long_help().to_string();
        assert!(help.lines().count() < 45, "{}: {help}", verb.get_name());
        assert!(help.contains("`nmplan --help`"), "{help}");
        for flag in ["color", "quiet", "verbose", "allow-empty", "var"] {
            assert!(!help.contains(&format!("      --{flag}")), "{}: {help}", verb.get_name());
        }
    }
    let after = args::parse(["nmplan", "plan", "-C", "here", "--json", "-v"]).unwrap().global;
    let before = args::parse(["nmplan", "-C", "here", "--json", "-v", "plan"]).unwrap().global;
    assert!(after.json && after.verbose && before.json && before.verbose);
    assert_eq!((after.directory, before.directory), (Some("here".into()), Some("here".into())));
    let plan = program.find_subcommand_mut("plan").unwrap();
    insta::assert_snapshot!(plan.render_long_help());
}

#[test]
fn a_node_is_removed_after_it_was_shown_what_that_does_and_does_not() {
    let mut workspace = in_use();
    workspace.server.change_elsewhere(|world| {
        let web: ResourceId = "corp/node/web".parse().unwrap();
        let joined = (**world.inventory.node(&web.node()).unwrap()).clone();
        // It joined after the key was made, so it has its token.
        let key: ResourceId = "corp/access-key/ci".parse().unwrap();
        let status = KeyStatus::clone(world.inventory.key(&key).unwrap());
        world.inventory.put_key(key, KeyStatus { created: joined.joined, ..status });
        world.inventory.put_node(web.node(), Joined { key: "ci".parse().ok(), ..joined });
    });
    let nobody = workspace.nmplan("node remove corp/web");
    assert_eq!(nobody.exit, 1);
    insta::assert_snapshot!(nobody.all());
    workspace.typed = Some("no\n");
    let declined = workspace.nmplan("node remove corp/web");
    assert!(declined.stderr.contains("nothing was removed: the answer was not `yes`"), "{}", declined.all());
    let has = |workspace: &Workspace, name: &str| {
        workspace.server.state().inventory.nodes().any(|(id, _)| id.name.as_str() == name)
    };
    assert!(has(&workspace, "web"));
    workspace.typed = Some("yes\n");
    let removed = workspace.nmplan("node remove web --network corp");
    assert_eq!((removed.exit, has(&workspace, "web")), (0, false), "{}", removed.all());
    let log = workspace.server.log();
    assert_eq!((&*log.last().unwrap().action, log.last().unwrap().nodes[0].name.as_str()), ("remove", "web"));
    let again = workspace.nmplan("node remove corp/web -y");
    assert!(again.stderr.contains("no host has joined as it"), "{}", again.all());
    let unknown = workspace.nmplan("node remove corp/lapto -y");
    assert!(unknown.stderr.contains("did you mean \"corp/laptop\"?"), "{}", unknown.all());
}

#[test]
fn the_removal_of_a_node_whose_key_was_replaced_does_not_warn_of_the_old_token() {
    let workspace = in_use();
    let web: ResourceId = "corp/node/web".parse().unwrap();
    let key: ResourceId = "corp/access-key/ci".parse().unwrap();
    let joined = (**workspace.server.state().inventory.node(&web.node()).unwrap()).clone();
    let second = jiff::SignedDuration::from_secs(1);
    for (created, lets_in) in [(joined.joined, true), (joined.joined + second, false)] {
        workspace.server.change_elsewhere(|world| {
            let status = KeyStatus::clone(world.inventory.key(&key).unwrap());
            world.inventory.put_key(key.clone(), KeyStatus { created, ..status });
            world.inventory.put_node(web.node(), Joined { key: "ci".parse().ok(), ..joined.clone() });
        });
        let shown = workspace.nmplan("node remove corp/web").all();
        assert!(shown.contains("2026-11-24 12:00:00 UTC with corp/access-key/ci\n"), "{shown}");
        let has = shown.contains("Its host still has the token of corp/access-key/ci");
        let has_none = shown.contains(
            "The key that it joined with, corp/access-key/ci, was replaced or deleted since, so its host needs another \
             token to join again.\n",
        );
        assert_eq!((has, has_none), (lets_in, !lets_in), "{shown}");
    }
}

#[test]
fn a_host_that_is_barred_is_listed_until_the_ban_is_lifted() {
    let workspace = in_use();
    let none = workspace.nmplan("node bans");
    assert!(none.stdout.contains("no host is barred"), "{}", none.all());
    let banned = workspace.nmplan("node remove corp/node/old --ban -y");
    insta::assert_snapshot!(banned.all());
    insta::assert_snapshot!("the_bans", workspace.nmplan("node bans").all());
    let listed: Value = serde_json::from_str(&workspace.nmplan("node bans --json").stdout).unwrap();
    assert_eq!((&listed[0]["network"], &listed[0]["node"]), (&"corp".into(), &"old".into()));
    let lifted: Value = serde_json::from_str(&workspace.nmplan("node unban corp/old --json").stdout).unwrap();
    assert_eq!(lifted["id"], "corp/node/old");
    assert_eq!(lifted["revision"], workspace.server.state().revision.0);
    let again = workspace.nmplan("node unban corp/old");
    assert_eq!(again.exit, 1, "{}", again.all());
    let json = workspace.nmplan("node remove corp/web --ban -y --json");
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (&json["id"], &json["barred"], &json["next"]),
        (&"corp/node/web".into(), &true.into(), &Value::Null)
    );
}

/// A workspace in which these hosts wait for the network corp, each with keys of its number.
fn with_waiting(hosts: &[(u8, &str)]) -> Workspace {
    let workspace = in_use();
    workspace.server.change_elsewhere(|world| {
        let corp: ResourceId = "corp".parse().unwrap();
        let document =
            serde_json::json!({"id": "corp", "body": {"ipv4": "10.40.0.0/16", "manual-approval": true}});
        let document: schema::world::ResourceDocument = serde_json::from_value(document).unwrap();
        let before = world.snapshot.entry(&corp).unwrap().clone();
        world.snapshot.put(corp, Entry { owner: before.owner, ..document.entry().unwrap() });
        for (number, name) in hosts {
            let (identity, pending) = workspace::pending(*number, name);
            world.inventory.put_pending("corp".parse().unwrap(), identity, pending);
        }
    });
    workspace
}

fn host(number: u8) -> schema::scalars::Fingerprint {
    schema::scalars::Identity([number; 32]).fingerprint()
}

#[test]
fn a_host_that_waits_is_let_in_by_its_fingerprint_or_by_somebody_who_has_compared_it() {
    let mut workspace = with_waiting(&[(1, "new"), (2, "twice"), (3, "twice")]);
    let nobody = workspace.nmplan("node approve corp/new");
    assert_eq!(nobody.exit, 1);
    insta::assert_snapshot!(nobody.all());
    let by_name = workspace.nmplan("node approve corp/new -y");
    assert!(by_name.stderr.contains(&format!("--identity {} -y", host(1))), "{}", by_name.all());
    workspace.typed = Some("no\n");
    assert!(workspace.nmplan("node approve corp/new").stderr.contains("nobody was let in"));
    workspace.typed = Some("yes\n");
    let done = workspace.nmplan("node approve new --network corp");
    assert!(done.stderr.contains("Let in corp/node/new as revision"), "{}", done.all());
    workspace.typed = None;
    let again = workspace.nmplan("node approve corp/new");
    assert!(again.stderr.contains("no host waits to be let in as corp/new"), "{}", again.all());
    let several = workspace.nmplan("node approve corp/twice");
    assert!(several.stderr.contains("2 hosts wait"), "{}", several.all());
    for number in [2, 3] {
        assert!(several.stderr.contains(&host(number).to_string()), "{}", several.all());
    }
    let line = format!("node approve corp/twice --identity {} --as other -y --json", host(3));
    let done: Value = serde_json::from_str(&workspace.nmplan(&line).stdout).unwrap();
    assert_eq!((&done["id"], &done["name"]), (&"corp/node/other".into(), &"other".into()));
    let waits = workspace.server.state().inventory.pending().count();
    assert_eq!(waits, 1);
}

#[test]
fn a_host_that_waits_is_dropped_or_barred_and_a_node_of_its_name_is_told_from_it_by_its_fingerprint() {
    let workspace = with_waiting(&[(1, "new"), (2, "web"), (3, "bad")]);
    let shown = workspace.nmplan("node remove corp/new");
    insta::assert_snapshot!(shown.all());
    let dropped = workspace.nmplan("node remove corp/new -y");
    assert!(dropped.stderr.contains("Dropped the host that waited to be corp/node/new"), "{}", dropped.all());
    let web = workspace
        .server
        .state()
        .inventory
        .nodes()
        .find(|(id, _)| id.name.as_str() == "web")
        .unwrap()
        .1
        .clone();
    let either = workspace.nmplan("node remove corp/web -y");
    assert_eq!(either.exit, 1, "what a stranger asks for decides nothing: {}", either.all());
    for which in [web.identity.fingerprint(), host(2)] {
        assert!(either.stderr.contains(&format!("--identity {which}")), "{}", either.all());
    }
    let node = workspace.nmplan(&format!("node remove corp/web --identity {}", web.identity.fingerprint()));
    assert!(node.stdout.contains("To be removed: corp/node/web"), "{}", node.all());
    let meant = workspace.nmplan(&format!("node remove corp/web --identity {}", host(2)));
    assert!(meant.stdout.contains("To be dropped: a host that waits to be corp/node/web"), "{}", meant.all());
    assert!(meant.stderr.contains(&format!("--identity {} -y", host(2))), "{}", meant.all());
    assert_eq!(workspace.nmplan("node remove corp/bad --ban -y").exit, 0);
    assert!(workspace.nmplan("node bans").stdout.contains("bad"));
    let near = workspace.nmplan("node remove corp/ne -y");
    assert!(near.stderr.contains("there is no node corp/ne"), "{}", near.all());
}

#[test]
fn nodes_are_listed_with_who_waits_and_what_identifies_each_host() {
    let workspace = in_use();
    let mut joined = node("gw", Presence::Online, 2);
    joined.fingerprint = Some(host(9));
    let mut waits = online("new", None);
    (waits.state, waits.control, waits.os) =
        (Presence::Pending, Control::None, Some("Debian 12 x86_64".into()));
    waits.fingerprint = Some(host(1));
    let since: jiff::Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
    let until = since + jiff::SignedDuration::from_hours(24);
    let seen = "192.0.2.7".parse().ok();
    waits.pending = Some(schema::api::PendingState { since, until, seen, obstacle: None });
    let mut taken = waits.clone();
    taken.name = "gw".parse().unwrap();
    (taken.id, taken.fingerprint) = ("corp/node/gw".into(), Some(host(2)));
    taken.pending.as_mut().unwrap().obstacle = Some("another host has joined corp as gw".into());
    workspace.server.set_nodes(vec![joined, node("web", Presence::Awaiting, 0), waits, taken]);
    let list = workspace.nmplan("node list").all();
    for part in [
        "2 nodes (1 online, 0 silent, 1 awaiting a join); 2 hosts wait",
        "(at 192.0.2.7)",
        "Debian 12 x86_64",
    ] {
        assert!(list.contains(part), "{part}: {list}");
    }
    assert!([9, 1, 2].iter().all(|number| list.contains(&host(*number).to_string())), "{list}");
    let status = workspace.nmplan("status").all();
    let (_, waits) = status.split_once("Hosts that wait to be let in\n").unwrap();
    for part in [
        "  corp/new from 192.0.2.7, Debian 12 x86_64: asked ",
        "dropped on 2026-11-25 12:00:00 UTC\n",
        &format!("    fingerprint {}\n    nmplan node approve corp/new\n", host(1)),
        "    not under that name: another host has joined corp as gw\n",
    ] {
        assert!(waits.contains(part), "{part}: {status}");
    }
    let listed: Value = serde_json::from_str(&workspace.nmplan("node list --json").stdout).unwrap();
    let states: Vec<_> =
        listed.as_array().unwrap().iter().map(|node| node["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["online", "awaiting", "pending", "pending"]);
    assert_eq!(workspace.nmplan("node list --network elsewhere").exit, 1);
}

#[test]
fn a_plan_says_who_is_let_in_who_is_dropped_and_whom_a_declaration_waits_for() {
    let workspace = with_waiting(&[(1, "new"), (2, "other")]);
    let text = |more: &str| {
        format!(
            "network \"corp\" {{\n ipv4 \"10.40.0.0/16\"\n{more}\n node \"gw\"\n node \"old\"\n node \"web\"\n access-key \"ci\" uses=5\n}}\n"
        )
    };
    let plan_of = |more: &str| {
        workspace.write("let-in/corp.kdl", &text(more));
        workspace.nmplan("plan -C @let-in --project acme")
    };
    let plan = plan_of(&format!(" manual-approval\n node \"db\" approved=\"{}\"", host(1)));
    for part in [
        "lets in the host that has waited since 2026-11-24 12:00:00 UTC",
        &format!("identity {}", host(1)),
        "Hosts that wait to be let in\n  corp/new is let in as db",
    ] {
        assert!(plan.stdout.contains(part), "{part}: {}", plan.all());
    }
    assert!(!plan.stdout.contains("not joined yet"), "{}", plan.all());
    let closed = plan_of("");
    for name in ["new", "other"] {
        assert!(closed.stdout.contains(&format!("corp/{name} is dropped")), "{}", closed.all());
    }
    let taken = plan_of(&format!(" manual-approval\n node \"extra\" approved=\"{}\"", host(9)));
    assert!(!taken.stdout.contains("Hosts that wait"), "{}", taken.all());
    let update =
        text(" manual-approval").replace("node \"web\"", &format!("node \"web\" approved=\"{}\"", host(1)));
    workspace.write("let-in/corp.kdl", &update);
    let update = workspace.nmplan("plan -C @let-in --project acme");
    assert!(update.stdout.contains("nmplan node remove corp/web"), "{}", update.all());
    let in_use = workspace::joined(4).identity.fingerprint();
    let elsewhere = plan_of(&format!(" manual-approval\n node \"db\" approved=\"{in_use}\""));
    assert!(
        elsewhere.stdout.contains("the host that db approves has joined as laptop"),
        "{}",
        elsewhere.all()
    );
    // What the plan was made for is what it is applied to.
    plan_of(&format!(" manual-approval\n node \"db\" approved=\"{}\"", host(1)));
    let saved = workspace.nmplan("plan -C @let-in --project acme --out @plan.json");
    assert_eq!(saved.exit, 0, "{}", saved.all());
    workspace.server.change_elsewhere(|world| {
        world.inventory.end_pending(&"corp".parse().unwrap(), &schema::scalars::Identity([1; 32]));
    });
    let stale = workspace.nmplan("apply @plan.json -C @let-in -y");
    assert_eq!(stale.exit, 4, "{}", stale.all());
}
