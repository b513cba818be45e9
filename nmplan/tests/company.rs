//! The company of `examples/company`: what a reviewer reads of it before anything is applied.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use schema::world::World;
use workspace::{Workspace, example};

fn company() -> Workspace {
    let workspace = Workspace::new(World { epoch: 7, ..World::default() });
    let from = std::path::PathBuf::from(example("company"));
    for name in [
        "nmplan.kdl",
        "mesh/members.kdl",
        "mesh/ways.kdl",
        "mesh/access.kdl",
        "mesh/names.kdl",
        "mesh/promises.kdl",
    ] {
        workspace.write(&format!("company/{name}"), &std::fs::read_to_string(from.join(name)).unwrap());
    }
    workspace
}

/// What a command says, with paths as they are from the directory of the company.
fn said(workspace: &Workspace, line: &str) -> String {
    workspace.nmplan(line).all().replace("DIR/company/", "")
}

#[test]
fn the_company_is_valid_keeps_its_promises_and_its_plan_is_on_record() {
    let workspace = company();
    let valid = said(&workspace, "validate -C @company");
    assert!(
        valid.ends_with("[exit 0]") && !valid.contains("warning"),
        "without problems and warnings: {valid}"
    );
    insta::assert_snapshot!("company_tests", said(&workspace, "test -C @company"));
    insta::assert_snapshot!("company_plan", said(&workspace, "plan -C @company"));
    let applied = workspace.nmplan("apply -C @company -y --keys-to @keys.json");
    assert_eq!(applied.exit, 0, "{}", applied.all());
    let again = workspace.nmplan("plan -C @company --detailed-exitcode");
    assert_eq!(again.exit, 0, "a plan after the apply is empty: {}", again.all());
}

#[test]
fn a_change_that_breaks_a_promise_is_refused_with_the_rule_and_the_line() {
    let workspace = company();
    assert_eq!(workspace.nmplan("apply -C @company -y --keys-to @keys.json").exit, 0);
    let ways = workspace.read("company/mesh/ways.kdl");
    workspace
        .write("company/mesh/ways.kdl", &ways.replacen("via \"exit-1\" \"exit-2\"", "via \"exit-1\"", 1));
    let access = workspace.read("company/mesh/access.kdl");
    let everybody = "allow \"database\" from=\"*\"";
    workspace
        .write("company/mesh/access.kdl", &access.replace("allow \"database\" from=\"tag:web\"", everybody));
    insta::assert_snapshot!("company_broken", said(&workspace, "plan -C @company"));
}
