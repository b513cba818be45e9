//! What does a plan of many objects cost, compared with `terraform plan` of as many of its built-in
//! `terraform_data`?
//!
//! Whole programs, several runs, the median. The mix is fixed: for each 10,000 objects 20 networks, 100
//! access keys, 4,880 nodes and 5,000 DNS entries, one KDL file for each network. `OBJECTS` (10000) and
//! `RUNS` (5) change the size; `TERRAFORM=off` leaves terraform out, as does its absence; the output then
//! says so.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use end_to_end::cost::{Cost, Costs, measure, median};
use end_to_end::loopback::Server;
use nmplan::lab::Programs;
use serde_json::json;

fn main() {
    let number = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(default)
    };
    let objects = number("OBJECTS", 10_000);
    let runs = number("RUNS", 5);
    let folder = tempfile::tempdir().expect("a folder");
    let programs = Programs::find().expect("the release build of the programs");
    declare(folder.path(), objects);
    let server = Server::start(&programs.nmserver, folder.path());
    let nmplan = |arguments: &[&str]| {
        let mut command = Command::new(&programs.nmplan);
        command.arg("-C").arg(folder.path().join("project")).args(arguments).envs(server.environment.clone());
        command
    };
    let keys = folder.path().join("keys.json").display().to_string();
    let first = measure(nmplan(&["apply", "-y", "-q", "--keys-to", &keys]));
    // The system reports the largest memory of all children so far, so the small ones come first.
    let validate = repeat(runs, || nmplan(&["validate"]));
    let plan = repeat(runs, || nmplan(&["plan", "--detailed-exitcode"]));
    println!("{objects} objects, {runs} runs each, medians\n");
    println!("| | wall | CPU | peak memory |\n| --- | --- | --- | --- |");
    row("`nmplan apply`, the first, in one transaction", &first);
    row("`nmplan validate`", &validate);
    row("`nmplan plan`, empty", &plan);
    drop(server);
    if std::env::var("TERRAFORM").as_deref() == Ok("off")
        || Command::new("terraform").arg("version").output().is_err()
    {
        println!("\nterraform was not measured: it is not installed, or TERRAFORM=off");
        return;
    }
    let terraform = folder.path().join("terraform");
    terraform_project(&terraform, objects);
    let run = |arguments: &[&str]| {
        let mut command = Command::new("terraform");
        command
            .current_dir(&terraform)
            .env("CHECKPOINT_DISABLE", "1")
            .env_remove("TF_CLI_CONFIG_FILE")
            .args(arguments);
        command
    };
    measure(run(&["init", "-no-color"]));
    let peer_validate = repeat(runs.min(3), || run(&["validate", "-no-color"]));
    let peer_plan = repeat(runs.min(3), || run(&["plan", "-detailed-exitcode", "-no-color"]));
    row("`terraform validate`", &peer_validate);
    row("`terraform plan`, empty", &peer_plan);
    println!("\nvalidate: {:.1} times less wall time", ratio(peer_validate.wall, validate.wall));
    println!("plan: {:.1} times less wall time", ratio(peer_plan.wall, plan.wall));
    println!("plan: {:.2} of the memory", plan.memory as f64 / peer_plan.memory as f64);
}

fn ratio(peer: Duration, ours: Duration) -> f64 {
    peer.as_secs_f64() / ours.as_secs_f64()
}

fn row(name: &str, cost: &Cost) {
    let Cost { wall, cpu, memory } = cost;
    println!("| {name} | {:.2} s | {:.2} s | {} MiB |", wall.as_secs_f64(), cpu.as_secs_f64(), memory >> 20);
}

fn repeat(runs: usize, command: impl Fn() -> Command) -> Cost {
    let costs: Costs = (0..=runs).map(|_| measure(command())).collect();
    // The first one warms the caches.
    median(&costs[1..])
}

/// Writes a project: a file for each network.
fn declare(folder: &Path, objects: usize) {
    let project = folder.join("project");
    std::fs::create_dir_all(project.join("mesh")).expect("a folder");
    let file = "project \"bench\" schema=1\nenv \"prod\" { use \"mesh/\" }\n";
    std::fs::write(project.join("nmplan.kdl"), file).expect("written");
    let nodes = 244;
    let keys = 5;
    let entries = 250;
    let networks = objects / 500;
    for network in 0..networks {
        let (high, low) = (network / 256, network % 256);
        let mut text = format!("network \"n{network}\" {{\n    ipv4 \"10.{low}.{}.0/21\"\n", high * 8);
        for key in 0..keys {
            let _ = writeln!(
                text,
                "    access-key \"key-{key}\" uses=50 expires=\"30d\" {{ tags \"web\" \"tier-{key}\" }}"
            );
        }
        for node in 0..nodes {
            let address = format!("10.{low}.{}.{}", high * 8 + 1 + node / 200, 1 + node % 200);
            let _ = writeln!(
                text,
                "    node \"node-{node}\" ipv4=\"{address}\" endpoint=\"192.0.2.{}:51821\" keepalive=\"25s\" {{ tags \
                 \"web\" \"rack-{}\" }}",
                1 + node % 250,
                node % 16
            );
        }
        for entry in 0..entries {
            let _ = writeln!(text, "    dns \"entry-{entry}\" node=\"node-{}\" ttl=\"5m\"", entry % nodes);
        }
        text.push_str("}\n");
        std::fs::write(project.join(format!("mesh/n{network}.kdl")), text).expect("written");
    }
}

/// Writes a configuration, and the state as an apply of it leaves it: terraform's own apply takes far longer
/// than all else here. The plan's exit code shows that the state fits.
fn terraform_project(folder: &Path, objects: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    let mut text = String::new();
    let mut resources = Vec::new();
    for object in 0..objects {
        let rack = format!("rack-{}", object % 16);
        let _ = writeln!(
            text,
            "resource \"terraform_data\" \"r{object}\" {{\n  input = {{ ipv4 = \"10.0.0.1\", endpoint = \
             \"192.0.2.1:51821\", keepalive = \"25s\", tags = [\"web\", \"{rack}\"] }}\n}}"
        );
        let of = |kind: &str| json!({ "ipv4": kind, "endpoint": kind, "keepalive": kind });
        let mut value = json!({ "ipv4": "10.0.0.1", "endpoint": "192.0.2.1:51821", "keepalive": "25s" });
        value["tags"] = json!(["web", rack]);
        let mut fields = of("string");
        fields["tags"] = json!(["tuple", ["string", "string"]]);
        let typed = json!({ "value": value, "type": ["object", fields] });
        let id = format!("00000000-0000-4000-8000-{object:012x}");
        let attributes = json!({ "id": id, "input": typed, "output": typed, "triggers_replace": null });
        resources.push(json!({
            "mode": "managed", "type": "terraform_data", "name": format!("r{object}"),
            "provider": "provider[\"terraform.io/builtin/terraform\"]",
            "instances": [{ "schema_version": 0, "attributes": attributes, "sensitive_attributes": [] }],
        }));
    }
    std::fs::write(folder.join("main.tf"), text).expect("written");
    let state = json!({
        "version": 4, "terraform_version": "1.11.4", "serial": 1, "lineage": "931ab038-6031-ed22-2822-259c631eff1d",
        "outputs": {}, "resources": resources, "check_results": null,
    });
    std::fs::write(folder.join("terraform.tfstate"), state.to_string()).expect("written");
}
