//! The company of `examples/company` with packets: everybody there, and then everything that happens to it.
//!
//! ```text
//!  192.168.10.0/24 == gw-fra-1, gw-fra-2 ==+                       +== exit-1, exit-2 == the internet
//!                     (phones, an auditor) |                       |
//!  192.168.20.0/24 == gw-muc-1, gw-muc-2 ==+== underlay, nmserver ==+== web-1, web-2, db-1, mon-1, runners
//!                                          |                       |
//!                              laptops ====+                       +== till-1, which relays alone reach
//! ```

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use end_to_end::text_of;
use nmplan::lab::Programs;
use serde_json::Value;

/// The field of each item of a list.
fn each<'a>(list: &'a Value, field: &'a str) -> impl Iterator<Item = &'a Value> {
    list.as_array().into_iter().flatten().map(move |item| &item[field])
}

fn texts<'a>(list: &'a Value, field: &'a str) -> Vec<&'a str> {
    each(list, field).filter_map(Value::as_str).collect()
}

#[test]
fn the_company_keeps_its_promises_while_nodes_leave_join_and_are_lost() {
    let programs = Programs::find().expect("the programs are built");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/company");
    let mut lab = Command::new(programs.nmplan);
    let output = lab.args(["lab", example, "--scenario", "--json"]).stdin(Stdio::null()).output();
    let output = output.expect("it runs");
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let schema = nmplan::commands::schema::lab();
    let schema = jsonschema::draft202012::new(&schema).expect("a schema");
    let misfits: Vec<_> = schema.iter_errors(&verdict).map(|error| error.to_string()).collect();
    assert!(misfits.is_empty(), "{misfits:#?}");
    let network = &verdict["networks"][0];
    // In a guest with the kernel's WireGuard every device is to be the kernel's.
    if let Ok(wanted) = std::env::var("NETCLIENT_DEVICE") {
        assert!(each(&network["nodes"], "device").all(|device| *device == wanted.as_str()), "{network}");
    }
    everything_is_proven(network);
    everything_happens(&verdict["scenario"]);
}

/// Every test was tried with packets, also of the ways that it names, and every way there is was taken.
fn everything_is_proven(network: &Value) {
    let tests = network["tests"].as_object().cloned().unwrap_or_default();
    assert_eq!(tests.len(), 10, "{network}");
    assert!(tests.values().all(|test| test["tried"].as_u64() > Some(0)), "{tests:#?}");
    let traced: BTreeSet<_> = each(&network["ways"], "test").filter_map(|test| test["id"].as_str()).collect();
    let with_ways = [
        "corp/test/files-are-reached",
        "corp/test/munich-prints-in-frankfurt",
        "corp/test/tills-take-payments",
        "corp/test/the-database-is-kept",
        "corp/test/the-internet-is-reached-by-us",
    ];
    assert_eq!(traced, BTreeSet::from(with_ways));
    let seen: BTreeSet<_> = each(&network["ways"], "seen").map(ToString::to_string).collect();
    for way in ["[]", r#"["gw-muc-1","gw-fra-1"]"#, r#"["exit-1"]"#] {
        assert!(seen.contains(way), "{way} of {seen:#?}");
    }
    assert_eq!(texts(&network["clients"], "name"), ["auditor", "phone-ana", "phone-ben"]);
    assert!(each(&network["nodes"], "names").all(|names| names.as_u64() > Some(0)), "{network}");
    let groups = texts(&network["matrix"]["groups"], "name");
    assert!(
        groups.contains(&"tag:gateway, tag:exit") && groups.contains(&"tag:staff but laptop-ana"),
        "{groups:#?}"
    );
}

/// Every step was played; what follows is known, and something cannot be reached only where one node alone carries.
fn everything_happens(scenario: &Value) {
    let both = |name: &str, acts: [&str; 2]| acts.map(|act| format!("corp/{name} {act}"));
    let expected: Vec<_> = ["db-1", "runners-1"]
        .into_iter()
        .flat_map(|name| both(name, ["leaves", "joins again"]))
        .chain(
            ["exit-1", "exit-2", "gw-fra-1", "gw-fra-2", "gw-muc-1", "gw-muc-2"]
                .into_iter()
                .flat_map(|name| both(name, ["is lost", "is back"])),
        )
        .collect();
    assert_eq!(texts(scenario, "step"), expected);
    for step in scenario.as_array().into_iter().flatten() {
        let lost: BTreeSet<_> = step["networks"][0]["pairs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pair| pair["lost"] == true)
            .filter_map(|pair| pair["from"].as_str())
            .collect();
        let (name, follows) = (step["step"].as_str().unwrap_or_default(), step["follows"].to_string());
        let (of_phones, carries) = match name {
            // The node of the ingress is one alone.
            "corp/gw-fra-1 is lost" => (true, "gw-fra-2 carries corp/egress/frankfurt"),
            "corp/gw-fra-1 is back" => (false, "gw-fra-1 carries corp/egress/frankfurt"),
            "corp/exit-1 is lost" => (false, "exit-2 carries corp/relay/shop"),
            _ => (false, ""),
        };
        assert!(follows.contains(carries), "{name}: {follows}");
        assert_eq!(lost.contains("phone-ana"), of_phones, "{name}: {lost:#?}");
        assert!(of_phones || lost.is_empty(), "{name}: {lost:#?}");
    }
}
