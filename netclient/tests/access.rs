//! Access rules from a file to what each host enforces: real agents and the real server, hosts in memory.

#[expect(dead_code, reason = "the suite of the whole agent uses the rest")]
mod support;

use std::time::Duration;

use netclient::agent::Down;
use netclient::daemon::{DaemonRequest, DaemonResponse};
use netclient::filter::Filter;
use support::{INTERFACE, Mesh, Node, eventually, pass};

/// A network in which `a` may open SSH at `b`, and nobody anything else.
const SSH: &str = r#"network "corp" {
    ipv4 "10.0.0.0/24"; acl "deny"; access-key "k" { for "a" "b" "c"; }
    allow "ssh" { from "a"; to "b"; proto "tcp"; ports 22; }
    node "a"
    node "b"
    node "c"
}"#;
/// The same, in which anybody may open anything.
const OPEN: &str = r#"network "corp" {
    ipv4 "10.0.0.0/24"; access-key "k" { for "a" "b" "c"; }
    node "a"
    node "b"
    node "c"
}"#;
/// Within this time a change is enforced, and what others took away is back.
const ENFORCED: Duration = Duration::from_secs(1);

async fn three(text: &str) -> (Mesh, [Node; 3]) {
    let mesh = Mesh::new(text).await;
    let nodes =
        [Node::joined(&mesh, "a").await, Node::joined(&mesh, "b").await, Node::joined(&mesh, "c").await];
    (mesh, nodes)
}

/// What members may open at a node, each said in words; absent: there is no table.
fn allowed(node: &Node) -> Option<Vec<String>> {
    let filter: Filter = node.host.access(INTERFACE)?;
    let access = filter.members().values().filter_map(|class| filter.access(class));
    Some(access.map(ToString::to_string).collect())
}

fn texts(texts: &[&str]) -> Option<Vec<String>> {
    Some(texts.iter().map(|text| (*text).to_owned()).collect())
}

#[tokio::test(start_paused = true)]
async fn a_node_enforces_what_the_rules_say_and_knows_nobody_else() {
    let (mesh, [a, b, c]) = three(SSH).await;
    eventually("b enforces the rule", || allowed(&b) == texts(&["tcp 22"])).await;
    eventually("a and b are peers", || (a.peers(), b.peers(), c.peers()) == (1, 1, 0)).await;
    assert_eq!((allowed(&a), allowed(&c)), (texts(&[]), texts(&[])), "nothing may be opened at them");
    pass(ENFORCED).await;

    // A rule changes: no peer does.
    b.device().take_applied();
    mesh.declare(&SSH.replace("ports 22", "ports 443")).await;
    let took = eventually("b enforces the other rule", || allowed(&b) == texts(&["tcp 443"])).await;
    assert!(took < ENFORCED, "{took:?}");
    assert_eq!(b.device().take_applied(), []);

    // It goes, and they do not know each other any more.
    mesh.declare(&SSH.replace(r#"from "a"; to "b""#, r#"from "a"; to "c""#)).await;
    let took = eventually("b lets nobody in", || allowed(&b) == texts(&[]) && b.peers() == 0).await;
    assert!(took < ENFORCED, "{took:?}");
    eventually("c enforces it", || allowed(&c) == texts(&["tcp 22"]) && c.peers() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_network_is_restricted_and_opened_again() {
    let (mesh, nodes) = three(OPEN).await;
    eventually("all are peers", || nodes.iter().all(|node| node.peers() == 2)).await;
    assert!(nodes.iter().all(|node| allowed(node).is_none()), "there is no table");
    mesh.declare(SSH).await;
    let [a, b, c] = &nodes;
    eventually("it is restricted", || {
        (a.peers(), b.peers(), c.peers()) == (1, 1, 0) && allowed(b) == texts(&["tcp 22"])
    })
    .await;
    mesh.declare(OPEN).await;
    eventually("it is open", || nodes.iter().all(|node| node.peers() == 2 && allowed(node).is_none())).await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_others_remove_is_back_within_a_second_whenever_they_do() {
    let (_mesh, [_a, b, _c]) = three(SSH).await;
    eventually("b enforces the rule", || allowed(&b) == texts(&["tcp 22"])).await;
    for after in [3_000, 0, 50, 450, 900] {
        pass(Duration::from_millis(after)).await;
        b.host.flush();
        let took = eventually("it is back", || allowed(&b) == texts(&["tcp 22"])).await;
        assert!(took < ENFORCED, "{took:?} after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_enforces_what_it_had_without_a_server() {
    let (_mesh, [_a, mut b, _c]) = three(SSH).await;
    eventually("b enforces the rule", || allowed(&b) == texts(&["tcp 22"])).await;
    b.connect(false);
    b.stop().await;
    b.host.flush();
    b.device().end();
    b.host.take_journal();
    b.start().await;
    eventually("a is a peer", || b.peers() == 1).await;
    let journal = b.host.take_journal();
    assert_eq!(journal.first().map(String::as_str), Some("set the table"), "{journal:?}");
    assert_eq!(allowed(&b), texts(&["tcp 22"]));
}

#[tokio::test(start_paused = true)]
async fn a_node_without_nftables_has_no_peer_that_it_would_have_to_restrict_and_everybody_knows() {
    let mesh = Mesh::new(SSH).await;
    let a = Node::joined(&mesh, "a").await;
    let mut b = Node::new(&mesh, "b");
    b.host.lack_nftables(true);
    b.join(&mesh).await.expect("it joins");
    b.start().await;
    eventually("the server knows", || mesh.problems("b") == ["no-filter", "rules-not-enforced"]).await;
    assert_eq!((a.peers(), b.peers()), (1, 0));
    let status = async || b.problems().await.iter().any(|it| it.contains("rules-not-enforced"));
    for _ in 0..50 {
        if status().await {
            break;
        }
        pass(Duration::from_millis(100)).await;
    }
    assert!(status().await, "its status says so");
    // Whom it need not restrict, it has.
    mesh.declare(&SSH.replace(r#"proto "tcp"; ports 22;"#, "")).await;
    eventually("a is a peer", || b.peers() == 1).await;
    b.host.lack_nftables(false);
    mesh.declare(SSH).await;
    eventually("it enforces", || allowed(&b) == texts(&["tcp 22"]) && mesh.problems("b").is_empty()).await;
    assert_eq!(b.peers(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_refused_is_a_problem_and_whoever_it_would_restrict_is_no_peer() {
    let (mesh, [_a, b, _c]) = three(SSH).await;
    eventually("b enforces the rule", || allowed(&b) == texts(&["tcp 22"]) && b.peers() == 1).await;
    b.host.refuse_access(true);
    b.host.flush();
    eventually("a is no peer", || b.peers() == 0).await;
    eventually("the server knows", || mesh.problems("b") == ["rules-not-enforced"]).await;
    let message = mesh.problem_messages("b").concat();
    for part in ["access rules of corp", "nftables refused the table nm-access-nm-corp", "modprobe nf_tables"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    b.host.refuse_access(false);
    eventually("all is well", || mesh.problems("b").is_empty() && b.peers() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_taken_off_its_host_takes_the_table_along_and_says_so() {
    let (_mesh, [_a, mut b, _c]) = three(SSH).await;
    eventually("b enforces the rule", || allowed(&b) == texts(&["tcp 22"])).await;
    b.stop().await;
    let mut down = Down::default();
    b.agent.down(&mut down).await.expect("everything can be removed");
    assert_eq!(allowed(&b), None);
    let said = "the table inet nm-access-nm-corp of nftables";
    assert!(down.removed.iter().any(|it| it == said), "{down:?}");
    b.start().await;
    eventually("b enforces the rule again", || allowed(&b) == texts(&["tcp 22"])).await;
}

#[tokio::test(start_paused = true)]
async fn leaving_removes_the_table_after_the_device() {
    let (_mesh, [_a, mut b, _c]) = three(SSH).await;
    eventually("b enforces the rule", || allowed(&b) == texts(&["tcp 22"])).await;
    let left = b.ask(DaemonRequest::Leave { network: "corp".parse().expect("a name"), force: false }).await;
    assert!(matches!(left, DaemonResponse::Done(_)), "{left:?}");
    assert_eq!((allowed(&b), b.host.device(INTERFACE).is_none()), (None, true));
    b.stop().await;
}
