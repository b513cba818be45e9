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
