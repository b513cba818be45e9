//! The reconciler against a real server: plans, applies, and how they end.

use std::path::{Path, PathBuf};

use end_to_end::{Mesh, in_runtime, text_of};
use nmplan::lab::enter_test;

fn example(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).display().to_string()
}

/// Runs nmplan and requires an exit code; returns what it printed, on standard output and standard error.
async fn ends(mesh: &Mesh, code: i32, arguments: &[&str]) -> String {
    let output = mesh.nmplan(&[&["--project", "test"], arguments].concat()).await;
    let printed = format!("{}{}", text_of(&output.stdout), text_of(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "nmplan {arguments:?}: {printed}");
    printed
}

fn write(path: &Path, text: &str) -> String {
    std::fs::write(path, text).expect("a file is written");
    path.display().to_string()
}

#[test]
fn both_languages_declare_the_same() {
    if !enter_test("both_languages_declare_the_same") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let keys = mesh.file("keys.json").display().to_string();
        let [kdl, yaml] = ["quickstart", "quickstart-yaml"].map(example);
        ends(&mesh, 2, &["-C", &kdl, "plan", "--detailed-exitcode"]).await;
        ends(&mesh, 0, &["-C", &kdl, "apply", "-y", "--keys-to", &keys]).await;
        for project in [&kdl, &yaml] {
            let printed = ends(&mesh, 0, &["-C", project, "plan", "--detailed-exitcode"]).await;
            assert!(printed.contains("No changes"), "{printed}");
        }
    });
}

#[test]
fn an_apply_carries_out_what_was_reviewed_or_nothing() {
    if !enter_test("an_apply_carries_out_what_was_reviewed_or_nothing") {
        return;
    }
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let network =
            |node: &str| format!("network \"corp\" {{ ipv4 \"10.40.0.0/16\"; node \"a\"; {node} }}");
        let file = write(&mesh.file("mesh.kdl"), &network(""));
        let saved = mesh.file("plan.json").display().to_string();
        ends(&mesh, 0, &["-f", &file, "plan", "--out", &saved]).await;
        ends(&mesh, 0, &["apply", &saved, "-y"]).await;
        let again = ends(&mesh, 0, &["apply", &saved, "-y"]).await;
        assert!(again.contains("Nothing to do"), "{again}");

        // Somebody else applies between plan and apply, and changes the same object.
        write(&mesh.file("mesh.kdl"), &network("dns \"x\" a=\"10.40.9.9\""));
        ends(&mesh, 0, &["-f", &file, "plan", "--out", &saved]).await;
        let other = write(&mesh.file("other.kdl"), &network("dns \"x\" a=\"10.40.9.8\""));
        ends(&mesh, 0, &["-f", &other, "apply", "-y"]).await;
        let printed = ends(&mesh, 4, &["apply", &saved, "-y"]).await;
        assert!(printed.contains("corp/dns/x") && printed.contains("revision 2"), "{printed}");
        let printed =
            ends(&mesh, 4, &["-f", &file, "apply", "--expect", &"0123456789abcdef".repeat(4)]).await;
        assert!(printed.contains("0123456789abcdef"), "{printed}");
        ends(&mesh, 1, &["-f", &file, "apply"]).await;

        // A key is never made without a place for its token.
        write(&mesh.file("mesh.kdl"), &network("access-key \"k\""));
        let printed = ends(&mesh, 1, &["-f", &file, "apply", "-y"]).await;
        assert!(printed.contains("--keys-to"), "{printed}");
        ends(&mesh, 2, &["-f", &file, "plan", "--detailed-exitcode"]).await;

        mesh.server.kill().await.expect("it is killed");
        let printed = ends(&mesh, 1, &["-f", &file, "plan"]).await;
        assert!(printed.contains(&mesh.server.url()), "{printed}");
        mesh.server.serve().await.expect("it serves again");
        let status = ends(&mesh, 0, &["status", "--json"]).await;
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        assert_eq!(
            (&status["revision"], &status["nodes"][0]["state"]),
            (&2.into(), &"awaiting".into()),
            "{status}"
        );
    });
}

#[test]
fn a_change_that_breaks_a_test_needs_an_admin_who_lets_it_through_once() {
    if !enter_test("a_change_that_breaks_a_test_needs_an_admin_who_lets_it_through_once") {
        return;
    }
    in_runtime(async {
        let mesh = Mesh::start().await;
        let network = |rules: &str| {
            let nodes = r#"node "web" { tags "web" }; node "db"; node "laptop""#;
            let test =
                r#"test "db" { reach from="web" to="db" port=5432; no-reach from="*" to="db" except="web" }"#;
            format!(r#"network "corp" ipv4="10.40.0.0/16" acl="deny" {{ {nodes}; {rules}; {test} }}"#)
        };
        let file = write(
            &mesh.file("mesh.kdl"),
            &network(r#"allow "web" from="tag:web" to="db" proto="tcp" ports="5432""#),
        );
        ends(&mesh, 0, &["-f", &file, "test"]).await;
        ends(&mesh, 0, &["-f", &file, "apply", "-y"]).await;

        // Somebody opens everything, to get on with it.
        write(&mesh.file("mesh.kdl"), &network("allow \"all\" from=\"*\" to=\"*\""));
        for command in [&["test"][..], &["validate"], &["plan", "--detailed-exitcode"], &["apply", "-y"]] {
            let printed = ends(&mesh, 3, &[&["-f", &*file], command].concat()).await;
            let words = printed.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
            assert!(words.contains("laptop may open everything at db, by corp/allow/all"), "{printed}");
        }
        let allow = ["--allow", "test=corp/test/db"];
        let past = [&["-f", &*file, "apply", "-y"], &allow[..]].concat();
        // The server judges by itself, and an applier lets nothing through.
        let host = mesh.server.host();
        let mut create = host.command(&mesh.programs.nmserver);
        create.args(["token", "create", "--role", "applier"]).env("DATA_DIR", mesh.server.data());
        let token = host.run(create).await.expect("it runs");
        let token = text_of(&token.stdout).trim().to_owned();
        let mut applier = std::process::Command::new(&mesh.programs.nmplan);
        applier.args(["--project", "test"]).args(&past).envs(mesh.server.environment());
        applier.env_remove("NMPLAN_TOKEN_FILE").env("NMPLAN_TOKEN", token);
        let output = tokio::process::Command::from(applier).output().await.expect("it runs");
        let printed = text_of(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.contains("admin"), "{printed}");

        ends(&mesh, 0, &past).await;
        let shown = ends(&mesh, 0, &["show", "2"]).await;
        assert!(shown.contains("let through the rule test=corp/test/db"), "{shown}");
        let explained = ends(&mesh, 0, &["-f", &file, "explain", "laptop", "db", "--port", "22"]).await;
        assert!(explained.contains("corp/allow/all"), "{explained}");
        // Once: the next change of the network is refused again.
        write(&mesh.file("mesh.kdl"), &network("allow \"everything\" from=\"*\" to=\"*\""));
        ends(&mesh, 3, &["-f", &file, "apply", "-y"]).await;
    });
}
