//! The suites that depend on a kernel, once more in a guest whose kernel has WireGuard.
//!
//! The tests are those of the other files, unchanged; here stands which of them run in the guest. `GUEST=all`
//! runs all of them, as `make soak` does: emulated, they take long. `GUEST=access,attacks` runs these two alone,
//! and `GUEST=access/NAME` that test of a suite; the suite `systemd` has a guest of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use end_to_end::{cargo, guest, text_of};
use vm::System;

/// A suite, and those of its tests that run; none named: all.
type Suite = (&'static str, &'static [&'static str]);

/// What runs in the guest: of each story its last state.
const SUITES: &[Suite] = &[
    ("lab", &["the_last_state_of_every_story_comes_up"]),
    (
        "devices",
        &[
            "the_kernel_keeps_the_contract_of_a_device",
            "a_device_keeps_its_kind_while_wireguard_comes_and_goes_and_a_new_one_is_chosen_anew",
        ],
    ),
    ("changes", &["every_setting_changes_in_place_and_costs_no_session"]),
    ("faults", &["killing_agent_and_server_loses_no_ping"]),
    ("register", &["without_tun_both_ends_of_the_tunnel_are_the_kernels"]),
    (
        "access",
        &[
            "an_established_connection_ends_with_its_permission_and_others_lose_nothing",
            "where_no_more_connections_are_tracked_nothing_new_passes_and_what_stands_goes_on",
        ],
    ),
    ("clients", &[]),
    ("gateways", &["a_lan_behind_a_gateway_is_reached_and_reaches_back_and_nothing_of_it_stays"]),
    ("outside", &["an_ipv6_range_that_holds_the_server_and_every_endpoint_cuts_nobody_off"]),
    ("netem", &["under_loss_and_delay_changes_arrive_and_hosts_join"]),
    ("clock", &["a_key_has_expired_for_as_long_as_the_clock_says_so"]),
];

/// The same under systemd: devices that are processes are the ones that it could end.
const SERVICES: &[Suite] = &[(
    "systemd",
    &[
        "device_processes_outlive_their_service",
        "names_of_a_network_are_asked_of_its_name_servers_through_resolved_and_no_others",
        "the_journal_has_levels_and_no_colours",
    ],
)];

/// What runs with `GUEST=all`. Who carries when is decided by seconds in which an emulated host may not call, so
/// that `failover` runs in namespaces alone.
const ALL: &[Suite] = &[
    ("lab", &[]),
    ("devices", &[]),
    ("joins", &[]),
    ("changes", &[]),
    ("faults", &[]),
    ("outside", &[]),
    ("gateways", &[]),
    ("stories", &[]),
    ("company", &[]),
    ("access", &[]),
    ("clients", &[]),
    ("attacks", &[]),
    ("worlds", &[]),
    ("register", &[]),
    ("client_mode", &[]),
    ("netem", &[]),
    ("clock", &[]),
];

/// The test programs of this crate, by their names. Cargo has just built them, and says where they are: if it is
/// asked for what it was asked for before, and not for some of it, which may have other features.
fn programs() -> BTreeMap<String, PathBuf> {
    let arguments = ["test", "--workspace", "--no-run", "--quiet", "--message-format=json"];
    let output = cargo().args(arguments).output().expect("Cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = output.stdout.split(|&byte| byte == b'\n');
    let built = messages.filter_map(|message| serde_json::from_slice::<serde_json::Value>(message).ok());
    built
        // Programs of other crates have the same names.
        .filter(|message| message["manifest_path"] == concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

/// What `GUEST` asks for instead of [`SUITES`]; absent: nothing.
fn asked() -> Option<Vec<Suite>> {
    let names = std::env::var("GUEST").ok()?;
    if names == "all" {
        return Some(ALL.to_vec());
    }
    let named = |name: &str| {
        let (name, test) = name.split_once('/').map_or((name, None), |(name, test)| (name, Some(test)));
        let found = ALL.iter().find(|(suite, _)| *suite == name);
        let (suite, _) = *found.expect("GUEST names suites that run there");
        let tests: Vec<&'static str> = test.map(|test| &*test.to_owned().leak()).into_iter().collect();
        (suite, &*tests.leak())
    };
    Some(names.split(',').map(named).collect())
}

/// Runs suites in a guest, one after the other.
fn run(system: System, suites: &[Suite], limit: Duration) {
    let tests = programs();
    let mut files = Vec::new();
    if matches!(system, System::Systemd) {
        let named = PathBuf::from("/usr/sbin/named");
        files.push((named.clone(), named));
    }
    let mut script = vec!["failed=0".to_owned()];
    for &(suite, names) in suites {
        let program = PathBuf::from(guest::PROGRAMS).join("tests").join(suite);
        script.push(format!(
            "{} --test-threads=1 --include-ignored --exact {} || failed=1",
            program.display(),
            names.join(" ")
        ));
        // A name that no test has would be zero tests that pass.
        let list = Command::new(&tests[suite]).args(["--list", "--exact"]).args(names).output();
        let list = text_of(&list.expect("it runs").stdout);
        for name in names {
            assert!(list.contains(&format!("{name}: test")), "{suite} has no test {name}");
        }
        files.push((tests[suite].clone(), program));
    }
    script.push("exit $failed".to_owned());
    let command = ["/bin/sh", "-c", &script.join("\n")].map(str::to_owned).to_vec();
    let mut job = guest::job(command, files, &["ROUNDS", "DRAWS", "SEED", "RUST_BACKTRACE"], limit);
    // A guest has all that a test needs: none is skipped there.
    let own = [("CI", "true"), ("PATIENCE", "5"), ("NETCLIENT_DEVICE", "kernel")];
    job.environment.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    if let Err(error) = vm::run(system, &job) {
        panic!("{error}");
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "there are guests for x86-64 only")]
fn services_run_under_systemd() {
    const LIMIT: Duration = Duration::from_secs(60 * 10);
    let asked = std::env::var("GUEST").unwrap_or_default();
    match asked.strip_prefix("systemd/") {
        Some(test) => run(System::Systemd, &[("systemd", vec![&*test.to_owned().leak()].leak())], LIMIT),
        None if asked == "all" => run(System::Systemd, &[("systemd", &[])], LIMIT),
        None => run(System::Systemd, SERVICES, LIMIT),
    }
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "there are guests for x86-64 only")]
fn suites_pass_on_the_kernels_wireguard() {
    match asked() {
        Some(suites) => run(System::Small, &suites, Duration::from_secs(60 * 120)),
        None => run(System::Small, SUITES, Duration::from_secs(60 * 20)),
    }
}
