//! What the stories with gateways leave on their hosts: nothing. Each host is compared with what it was before the
//! first agent started, with what belongs to others there throughout.
//!
//! The hosts are those of `nmplan lab`, which follow from what a state of a story declares.

use std::path::PathBuf;
use std::time::Duration;

use end_to_end::host_state::HostState;
use end_to_end::{addresses_are_its_own, in_runtime, run_all, text_of};
use futures_util::future::join_all;
use nmplan::lab::roster::{Roster, roster};
use nmplan::lab::run::prepare;
use nmplan::lab::{Agent, enter_test};
use schema::decode::decode;
use schema::kinds::Kind;
use schema::syntax::{Language, Source, parse};
use schema::value::SourceId;

/// Within this time after an agent has left, its host is as it was.
const REMOVED: Duration = Duration::from_secs(5);

/// What belongs to others on each host.
const THEIRS: [&str; 9] = [
    "nft add table inet theirs",
    "nft add chain inet theirs forward { type filter hook forward priority 5 ; }",
    "nft add rule inet theirs forward ip daddr 203.0.113.7 drop",
    "nft add chain inet theirs source { type nat hook postrouting priority 90 ; }",
    "nft add rule inet theirs source ip daddr 203.0.113.7 masquerade",
    "ip route add 203.0.113.0/24 dev eth0",
    "ip rule add pref 20000 to 203.0.113.0/24 lookup main",
    "ip -6 route add 2001:db8:7::/48 dev eth0",
    "ip -6 rule add pref 20000 to 2001:db8:7::/48 lookup main",
];

/// Who takes part in a state of a story.
fn participants(state: &str) -> Roster {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).with_file_name("examples");
    let text = std::fs::read_to_string(examples.join("stories").join(state)).expect("there is such a state");
    let source = Source { name: state.into(), text: text.into(), language: Language::Kdl };
    let (documents, _) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
    roster(&decode(documents).0.snapshot)
}

async fn leave(agent: &Agent) {
    let output = agent.netclient(&["leave", "--network", "corp"]).await.expect("it runs");
    assert!(output.status.success(), "{}", text_of(&output.stderr));
}

/// Brings up a state of a story, sends its packets, has every agent leave, and compares.
async fn assert_nothing_stays(state: &str, killed: bool) {
    let prepared = prepare(&participants(state), &mut |_| {}).await.expect("it is prepared");
    let (mut before, mut theirs) = (Vec::new(), Vec::new());
    for host in prepared.hosts() {
        // Routes to them come with that.
        addresses_are_its_own(host).await;
        let bare = HostState::of(host).await;
        run_all(host, &THEIRS).await;
        before.push(HostState::of(host).await);
        theirs.push(before[before.len() - 1].without(&bare));
    }
    let mut running = prepared.join(&mut |_| {}).await.expect("all join");
    if killed {
        for (_, agent) in &mut running.agents {
            agent.kill_daemon().await.expect("it is killed");
            agent.start_daemon(&[]).expect("it starts");
        }
    }
    let verdict = running.judge().await.expect("the agents answer");
    assert!(verdict.is_good(), "{}", nmplan::lab::report::text(&verdict, 80));
    for ((host, theirs), before) in running.hosts().zip(&theirs).zip(&before) {
        let now = HostState::of(host).await;
        let missing: Vec<_> = before.without(&now).into_iter().filter(|it| theirs.contains(it)).collect();
        assert!(theirs.len() > THEIRS.len() && missing.is_empty(), "{} lacks {missing:#?}", host.name());
    }
    join_all(running.agents.iter().map(|(_, agent)| leave(agent))).await;
    for (host, before) in running.hosts().zip(&before) {
        before.returns(host, REMOVED).await;
    }
}

/// Tests of states of stories: of the last but one agents leave as they run, and of the last one after they were
/// killed and started anew.
macro_rules! nothing_stays {
    ($($name:ident: $state:literal, $killed:literal;)*) => {$(
        #[test]
        fn $name() {
            if enter_test(stringify!($name)) {
                in_runtime(assert_nothing_stays($state, $killed));
            }
        }
    )*};
}

nothing_stays! {
    nothing_stays_of_two_offices: "two-offices/3-a-second-gateway.kdl", false;
    nothing_stays_of_two_offices_after_a_kill: "two-offices/4-rules-for-parts.kdl", true;
    nothing_stays_of_road_warriors: "road-warriors/3-keys-and-a-supplier.kdl", false;
    nothing_stays_of_road_warriors_after_a_kill: "road-warriors/4-least-privilege.kdl", true;
    nothing_stays_of_an_exit: "exit/3-two-exits.kdl", false;
    nothing_stays_of_an_exit_after_a_kill: "exit/4-pages-alone.kdl", true;
    nothing_stays_of_relays: "behind-nat/3-a-second-relay.kdl", false;
    nothing_stays_of_relays_after_a_kill: "behind-nat/4-tills-apart.kdl", true;
}
