//! The clock is set while agents and server run, and before they start anew: a year ahead, and a day back.
//!
//! There is one clock for a whole computer, so these tests run in a guest, where `kernel.rs` starts them; the
//! kernel's parameters say that it is one.
//!
//! ```text
//! nmserver ==== underlay ==== a, b, and one more host after each time that the clock is set
//! ```

#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use end_to_end::{Mesh, addresses, all_ping_all, eventually, guest, in_runtime, text_of};
use jiff::Timestamp;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nmplan::lab::{Agent, enter_test};

const DAY: Duration = Duration::from_hours(24);
/// What the clock is set to in turn, from what is right.
const TIMES: [(&str, Set); 4] = [
    ("a year ahead", Set::Ahead(365)),
    ("right again", Set::Ahead(0)),
    ("a day back", Set::Back(1)),
    ("right once more", Set::Ahead(0)),
];

/// A distance from what is right, in days.
#[derive(Clone, Copy)]
enum Set {
    Ahead(u32),
    Back(u32),
}

/// The clock of a guest, which goes right again when this is dropped.
struct Clock {
    right: SystemTime,
    since: Instant,
}

impl Clock {
    /// # Panics
    ///
    /// Outside of a guest, whose clock others read as well.
    fn of_guest() -> Self {
        assert!(guest::inside(), "this sets the clock, so it only runs in a guest: make guest");
        Self { right: SystemTime::now(), since: Instant::now() }
    }

    fn set(&self, to: Set) {
        let right = self.right + self.since.elapsed();
        let time = match to {
            Set::Ahead(days) => right + days * DAY,
            Set::Back(days) => right - days * DAY,
        };
        let time = time.duration_since(UNIX_EPOCH).expect("it is later");
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)).expect("root may");
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.set(Set::Ahead(0));
    }
}

fn text(entry: u32) -> String {
    format!(
        r#"network "corp" {{
            ipv4 "10.40.0.0/24"; ipv6 "fd40:40::/64"; check-in "1s"
            access-key "k" uses="unlimited"
            access-key "day" uses="unlimited" expires="1d"
            dns "api" a="10.40.9.{entry}"
        }}"#
    )
}

async fn joined(mesh: &Mesh, name: &str, token: &str) -> Agent {
    let mut agent = mesh.agent(name).await;
    agent.join(token, &[]).await.expect("it joins");
    agent.start_daemon(&[]).expect("the agent starts");
    agent
}

/// Asserts that a change arrives everywhere, and that every node checks in and is seen to.
async fn all_are_current(mesh: &Mesh, agents: &[Agent], entry: u32) {
    mesh.apply(&text(entry)).await;
    for agent in agents {
        let what = format!("the change arrives at {}", agent.host().name());
        eventually(&what, Duration::from_secs(20), async || {
            agent.host().read("/etc/hosts").expect("it is there").contains(&format!("10.40.9.{entry}\t"))
        })
        .await;
    }
    eventually("the server has heard of all by its clock", Duration::from_secs(20), async || {
        let output = mesh.nmplan(&["status", "--json"]).await;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a document");
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let now = Timestamp::now();
        nodes.len() == agents.len()
            && nodes.iter().all(|node| {
                let seen = node["last_check_in"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
                let away = seen.map(|seen| now.duration_since(seen).abs());
                node["state"] == "online" && away.is_some_and(|away| away.as_secs() < 60)
            })
    })
    .await;
}

#[test]
#[ignore = "sets the clock; kernel.rs runs it in a guest"]
fn agents_and_server_go_on_whatever_the_clock_is_set_to() {
    if !enter_test("agents_and_server_go_on_whatever_the_clock_is_set_to") {
        return;
    }
    let clock = Clock::of_guest();
    in_runtime(async {
        let mut mesh = Mesh::start().await;
        let key = mesh.apply(&text(1)).await["corp/access-key/k"].clone();
        let mut agents = vec![joined(&mesh, "a", &key).await, joined(&mesh, "b", &key).await];
        all_ping_all(&agents, "corp").await;
        let mut entry = 1;
        for (number, (what, to)) in TIMES.into_iter().enumerate() {
            let other = addresses(&agents[1], "corp").await[0];
            let pinger = agents[0].host().pinger(other, Duration::from_millis(50)).expect("sockets");
            clock.set(to);
            eprintln!("the clock is {what}: {}", Timestamp::now());
            entry += 1;
            all_are_current(&mesh, &agents, entry).await;
            let count = pinger.stop().await;
            assert_eq!(count.lost, 0, "{what}: no tunnel is lost: {count:?}");
            agents.push(joined(&mesh, &format!("later-{number}"), &key).await);
            all_ping_all(&agents, "corp").await;
            // Both start anew with what they stored by the other time.
            mesh.server.kill().await.expect("it is killed");
            for agent in &mut agents {
                agent.kill_daemon().await.expect("it is killed");
                if matches!(to, Set::Back(_)) {
                    // The kernel's refuses handshakes until they are later than those of before.
                    end_to_end::kill_device(agent.host(), "nm-corp");
                }
                agent.start_daemon(&[]).expect("the agent starts");
            }
            mesh.server.serve().await.expect("it serves again");
            entry += 1;
            all_are_current(&mesh, &agents, entry).await;
        }
    });
}

#[test]
#[ignore = "sets the clock; kernel.rs runs it in a guest"]
fn a_key_has_expired_for_as_long_as_the_clock_says_so() {
    if !enter_test("a_key_has_expired_for_as_long_as_the_clock_says_so") {
        return;
    }
    let clock = Clock::of_guest();
    in_runtime(async {
        let mesh = Mesh::start().await;
        let key = mesh.apply(&text(1)).await["corp/access-key/day"].clone();
        clock.set(Set::Ahead(365));
        let late = mesh.agent("late").await;
        let refused = late.netclient(&["join", "--daemon", "off", "-t", &key]).await.expect("it runs");
        let said = text_of(&refused.stderr);
        assert!(!refused.status.success() && said.contains("expired"), "{said}");
        clock.set(Set::Ahead(0));
        joined(&mesh, "timely", &key).await;
        // The server takes the moment when the key was made for wrong, and moves it to now: it expires earlier.
        clock.set(Set::Back(1));
        joined(&mesh, "early", &key).await;
    });
}
