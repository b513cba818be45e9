//! Access rules on a host: in which order what enforces them comes and goes, what a change costs, and what is
//! left where they cannot be enforced.

use schema::access::{Access, ClassId, Ports, Protocol};

use super::*;

fn class(name: &str) -> ClassId {
    ClassId::of(name.as_bytes())
}

fn tcp(port: u16) -> Access {
    Access::of(Some(Protocol::Tcp), Some(Ports::from_iter([port..=port])))
}

fn put_of(view: &mut View, number: u32, of: &str) {
    let peer = Peer { class: class(of), ..(*peer(number, 0)).clone() };
    view.peers.insert(name(number), Arc::new(peer));
}

/// A View with access rules in which so many peers are of the class `web`, which may open TCP port 80, and
/// the next one is of `admin`, which may open everything.
fn restricted(web: u32) -> View {
    let mut view = view(std::iter::empty());
    view.interface.restricted = true;
    (1..=web).for_each(|number| put_of(&mut view, number, "web"));
    put_of(&mut view, web + 1, "admin");
    view.access.insert(class("web"), Arc::new(tcp(80)));
    view.access.insert(class("admin"), Arc::new(Access::everything()));
    view
}

/// A member with this View, which was not applied yet.
fn member(folder: &Path, host: &FakeHost, view: &View) -> Member {
    member_with(folder, host, view, Settings::default())
}

fn member_with(folder: &Path, host: &FakeHost, view: &View, settings: Settings) -> Member {
    let agent = Agent { settings, ..agent(folder, Arc::new(RealDisk), host.clone()) };
    let start = membership(view.clone());
    agent.directory.keep_identity(&start.server.signing_key, &sign::from_seed(&[8; 32])).expect("kept");
    let journal = agent.directory.save(&start).expect("kept");
    Member::new(agent, start, journal).expect("it has an identity")
}

/// Has a member follow from one View to the next, and returns what became of the host by it, in order.
async fn follow(member: &mut Member, host: &FakeHost, after: &View) -> Vec<String> {
    host.take_journal();
    let before = member.membership.view.clone();
    let from = member.membership.position.revision.0;
    member.take(&delta(&before, after, from)).expect("it fits");
    member.apply().await.expect("it is applied");
    host.take_journal()
}

/// The addresses that the host's device takes packets from, and those that its table knows.
fn peers_and_members(host: &FakeHost) -> (Vec<String>, Vec<String>) {
    let peers = host.device("nm-corp").expect("there is one").state().peers;
    let mut allowed: Vec<_> = peers
        .values()
        .flat_map(|it| &it.settings.allowed_ips)
        .map(|range| range.addr().to_string())
        .collect();
    allowed.sort();
    let filter = host.access("nm-corp");
    let members = filter.iter().flat_map(|filter| filter.members().keys()).map(ToString::to_string);
    (allowed, members.collect())
}

fn put_peer(number: u32) -> String {
    format!("put a peer with 10.9.0.{number}/32")
}

#[tokio::test]
async fn the_table_comes_before_the_first_peer_and_goes_after_the_last() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut member = member(folder.path(), &host, &restricted(1));
    member.reconcile().await.expect("it is applied");
    let mut first = host.take_journal();
    first[1..3].sort();
    assert_eq!(first, ["set the table".to_owned(), put_peer(1), put_peer(2), "link up".to_owned()]);
    assert_eq!(codes(&member), Vec::<&str>::new());
    member.reconcile().await.expect("it is as it should be");
    assert_eq!(host.take_journal(), Vec::<String>::new());
    let device = host.device("nm-corp").expect("there is one");
    device.refuse_removal(true);
    member.take_down().await.expect_err("the device stays");
    assert!(host.access("nm-corp").is_some(), "and so does what judges its packets");
    device.refuse_removal(false);
    member.take_down().await.expect("it is removed");
    assert_eq!((host.take_journal(), host.access("nm-corp")), (vec!["remove the table".to_owned()], None));
}

#[tokio::test]
async fn who_gains_is_judged_before_being_a_peer_and_who_loses_is_no_peer_before() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut member = member(folder.path(), &host, &restricted(2));
    member.reconcile().await.expect("it is applied");
    let mut more = restricted(2);
    put_of(&mut more, 9, "web");
    let gained = follow(&mut member, &host, &more).await;
    assert_eq!(gained, ["elements: 0 gone, 1 new".to_owned(), put_peer(9)]);
    let lost = follow(&mut member, &host, &restricted(2)).await;
    assert_eq!(lost, ["remove a peer", "elements: 1 gone, 0 new"]);
    // Another host has the address of one that is gone, and is of another class.
    let mut other = restricted(2);
    let mut replaced = (*peer(1, 7)).clone();
    replaced.class = class("admin");
    other.peers.remove(&name(1));
    other.peers.insert(name(8), Arc::new(replaced));
    let moved = follow(&mut member, &host, &other).await;
    assert_eq!(moved, ["remove a peer".to_owned(), "elements: 1 gone, 1 new".to_owned(), put_peer(1)]);
}

#[tokio::test]
async fn a_rule_that_comes_or_goes_touches_no_peer() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut member = member(folder.path(), &host, &restricted(3));
    member.reconcile().await.expect("it is applied");
    let mut changed = restricted(3);
    changed.access.insert(class("web"), Arc::new(tcp(443)));
    assert_eq!(follow(&mut member, &host, &changed).await, ["change classes"]);
    changed.access.remove(&class("web"));
    let ends = follow(&mut member, &host, &changed).await;
    assert_eq!(ends, ["change classes"]);
    let (peers, members) = peers_and_members(&host);
    assert_eq!(
        (peers.len(), &members[..]),
        (4, &["10.9.0.4".to_owned()][..]),
        "this host may open things there"
    );
    assert_eq!(host.access("nm-corp"), Filter::of("nm-corp", &changed), "what was followed is what was sent");
}

#[tokio::test]
async fn one_more_peer_is_one_element_in_a_mesh_of_any_size() {
    for web in [10, 10_000] {
        let (folder, host) = (private_folder(), FakeHost::default());
        let before = restricted(web);
        let mut member = member(folder.path(), &host, &before);
        member.reconcile().await.expect("it is applied");
        let observed = host.device("nm-corp").expect("there is one").observations();
        let mut after = before.clone();
        put_of(&mut after, web + 2, "web");
        let done = follow(&mut member, &host, &after).await;
        assert_eq!(done.len(), 2, "{done:?}");
        assert_eq!(done[0], "elements: 0 gone, 1 new");
        let device = host.device("nm-corp").expect("there is one");
        assert_eq!(device.observations(), observed, "the device is not asked");
    }
}

#[tokio::test]
async fn a_restarted_agent_and_one_whose_table_was_removed_set_it_before_anything_else() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut first = member(folder.path(), &host, &restricted(2));
    first.reconcile().await.expect("it is applied");
    drop(first);
    host.flush();
    host.take_journal();
    // Meanwhile one peer has gone and another one has come.
    let mut later = restricted(2);
    later.peers.remove(&name(1));
    put_of(&mut later, 9, "web");
    let mut second = member(folder.path(), &host, &later);
    second.reconcile().await.expect("it is applied");
    assert_eq!(host.take_journal(), ["remove a peer".to_owned(), "set the table".to_owned(), put_peer(9)]);
    host.flush();
    let mut more = later.clone();
    put_of(&mut more, 10, "web");
    let repaired = follow(&mut second, &host, &more).await;
    assert_eq!(repaired, ["set the table".to_owned(), put_peer(10)], "what does not fit is set anew");
    assert_eq!(host.access("nm-corp"), Filter::of("nm-corp", &more));
}

#[tokio::test]
async fn a_network_that_gets_access_rules_has_the_table_at_once_and_loses_it_last() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut open = restricted(2);
    open.interface.restricted = false;
    open.access = Default::default();
    let mut member = member(folder.path(), &host, &open);
    member.reconcile().await.expect("it is applied");
    assert_eq!(host.access("nm-corp"), None);
    // With the rules one peer is no longer known.
    let mut closed = restricted(2);
    closed.peers.remove(&name(1));
    assert_eq!(follow(&mut member, &host, &closed).await, ["remove a peer", "set the table"]);
    let opened = follow(&mut member, &host, &open).await;
    assert_eq!(opened, [put_peer(1), "remove the table".to_owned()]);
    assert_eq!(host.access("nm-corp"), None);
}

#[tokio::test]
async fn without_nftables_only_who_may_open_everything_is_a_peer_and_a_problem_says_so() {
    let lacking: fn(&FakeHost, bool) = FakeHost::lack_nftables;
    for (fail, why) in [
        (lacking, "apt install nftables"),
        (FakeHost::refuse_access, "Operation not supported; have the kernel load nf_tables"),
        (FakeHost::refuse_filter, "Operation not supported; have the kernel load nf_tables"),
    ] {
        let (folder, host) = (private_folder(), FakeHost::default());
        fail(&host, true);
        let mut member = member(folder.path(), &host, &restricted(2));
        member.reconcile().await.expect("it is applied");
        assert_eq!(peers_and_members(&host).0, ["10.9.0.3"], "{why}");
        let said = member.problems().iter().find(|it| &*it.code == NodeProblem::RULES_NOT_ENFORCED);
        let said = &said.expect("it is a problem").message;
        assert!(said.contains(why) && said.contains("corp"), "{said}");
        let facts = member.facts().problems;
        assert!(facts.iter().any(|it| it.code == NodeProblem::RULES_NOT_ENFORCED), "the server is sent it");
        // Neither does a change make anybody else a peer.
        let mut more = restricted(2);
        put_of(&mut more, 8, "admin");
        put_of(&mut more, 9, "web");
        follow(&mut member, &host, &more).await;
        assert_eq!(peers_and_members(&host).0, ["10.9.0.3", "10.9.0.8"], "{why}");
        // Nor one that does not concern the rules.
        let mut moved = more.clone();
        let elsewhere = Some("198.18.7.7:51821".parse().expect("good"));
        let peer = Peer { endpoint: elsewhere, ..(*more.peers[&name(9)]).clone() };
        moved.peers.insert(name(9), Arc::new(peer));
        follow(&mut member, &host, &moved).await;
        assert_eq!(peers_and_members(&host).0, ["10.9.0.3", "10.9.0.8"], "{why}");
        fail(&host, false);
        member.reconcile().await.expect("it is applied");
        assert_eq!(peers_and_members(&host).0.len(), 5, "{why}");
        assert_eq!(codes(&member), Vec::<&str>::new());
    }
}

#[tokio::test]
async fn a_table_that_cannot_be_set_any_more_takes_its_peers_along() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut member = member(folder.path(), &host, &restricted(2));
    member.reconcile().await.expect("it is applied");
    assert_eq!(peers_and_members(&host).0.len(), 3);
    host.flush();
    host.refuse_access(true);
    host.take_journal();
    member.reconcile().await.expect("it is applied");
    assert_eq!(host.take_journal(), ["remove a peer", "remove a peer"]);
    assert_eq!(peers_and_members(&host).0, ["10.9.0.3"]);
}

#[tokio::test]
async fn without_connection_tracking_rules_are_not_enforced_and_the_table_goes_last() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut tracking = member(folder.path(), &host, &restricted(2));
    tracking.reconcile().await.expect("it is applied");
    drop(tracking);
    host.take_journal();
    let settings = Settings { connection_tracking: false, ..Settings::default() };
    let mut member = member_with(folder.path(), &host, &restricted(2), settings);
    member.reconcile().await.expect("it is applied");
    assert_eq!(host.take_journal(), ["remove a peer", "remove a peer", "remove the table"]);
    assert_eq!(peers_and_members(&host), (vec!["10.9.0.3".to_owned()], Vec::new()));
    assert_eq!(codes(&member), [NodeProblem::RULES_NOT_ENFORCED]);
    let said = &member.problems()[0].message;
    assert!(said.contains("connection_tracking = false"), "{said}");
}
