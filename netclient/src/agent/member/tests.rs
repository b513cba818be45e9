//! The cost of changes to a membership, and its state after a crash.

mod access;
mod gateways;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proto::convert::{Malformed, encode_delta, encode_view};
use proto::position::Stamp;
use proto::sign::{self, SignedBody};
use schema::chain::ChainHash;
use schema::scalars::{Identity, Name, WireGuardKey};
use schema::snapshot::Revision;
use schema::view::{Peer, View, ViewDelta};

use super::*;
use crate::addresses::Addresses;
use crate::control::Opener;
use crate::device::PrivateKey;
use crate::directory::{Directory, NamesOf};
use crate::files::{Disk, RealDisk};
use crate::filter::Filter;
use crate::host::fake::FakeHost;
use crate::membership::ServerAddress;
use crate::outside::Routing;
use crate::settings::Settings;

const SERVER: [u8; 32] = [6; 32];

fn network() -> NetworkName {
    "corp".parse().expect("good")
}

fn name(number: u32) -> Name {
    format!("n{number}").parse().expect("good")
}

fn peer(number: u32, version: u8) -> Arc<Peer> {
    let mut key = [version; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let [_, _, high, low] = number.to_be_bytes();
    let addresses = [format!("10.9.{high}.{low}").parse().expect("good")].into();
    let endpoint = Some(format!("198.18.{high}.{low}:51821").parse().expect("good"));
    let public_key = Some(WireGuardKey(key));
    let (via, class) = Default::default();
    Arc::new(Peer { public_key, endpoint, addresses, via, class, carries: false, named: true })
}

/// A View with the peers of these numbers, each with its name.
fn view(peers: impl Iterator<Item = u32>) -> View {
    let mut view = View { node: name(0), ..crate::tunnels::tests::view("corp", "10.9.255.1/16") };
    peers.for_each(|number| put(&mut view, number, 0));
    view
}

fn put(view: &mut View, number: u32, version: u8) {
    view.peers.insert(name(number), peer(number, version));
}

fn at(revision: u64) -> Position {
    let hash = ChainHash::start("server").next(&revision.to_string());
    Position { epoch: 1, revision: Revision(revision), stamp: Stamp::new(&hash, &[0; 32]) }
}

fn signed(from: u64, to: u64, body: SignedBody) -> Update {
    signed_from(if from == 0 { Position::default() } else { at(from) }, at(to), body)
}

fn signed_from(from: Position, to: Position, body: SignedBody) -> Update {
    let network = network();
    let node = name(0);
    body.sign(sign::Header { network: &network, node: &node, from, to }, &sign::from_seed(&SERVER))
}

/// The delta from a View, at a revision, to the next.
fn delta(before: &View, after: &View, from: u64) -> Update {
    let body = encode_delta(&ViewDelta::between(before, after), after.counts());
    signed(from, from + 1, SignedBody::delta(body))
}

fn membership(view: View) -> Membership {
    let signing_key = sign::public_key(&sign::from_seed(&SERVER));
    Membership {
        network: network(),
        node: name(0),
        server: ServerAddress { addresses: vec!["server:1".into()], signing_key, ca_pin: None },
        interface: "nm-corp".into(),
        private_key: PrivateKey([3; 32]),
        port: None,
        endpoint: None,
        port_fallback: None,
        position: at(1),
        view,
    }
}

/// An agent that never reaches a server.
fn agent(folder: &Path, disk: Arc<dyn Disk>, host: FakeHost) -> Agent {
    let settings = Settings::default();
    let directory = Directory::open(folder).expect("it opens").on(disk);
    let nobody: Opener = Arc::new(|| tokio::io::duplex(1).0);
    Agent::new(directory, settings, Arc::new(host)).within(nobody)
}

fn private_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    // In memory, where there is such a folder: a kill loses nothing that was written, synced or not, and this
    // is faster.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a directory");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).expect("set");
    folder
}

/// A disk that counts what is written.
#[derive(Debug, Default)]
struct Metered(AtomicU64);

impl Disk for Metered {
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.0.fetch_add(content.len() as u64, Ordering::Relaxed);
        RealDisk.replace(path, content)
    }

    fn write_from(&self, path: &Path, at: u64, content: &[u8]) -> io::Result<()> {
        self.0.fetch_add(content.len() as u64, Ordering::Relaxed);
        RealDisk.write_from(path, at, content)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
}

/// A process that is killed: within its act of this number, after so many bytes; one more than all is after
/// the act.
#[derive(Debug)]
struct Killed {
    act: usize,
    after: usize,
    acts: AtomicUsize,
    /// How many bytes each act had.
    sizes: Mutex<Vec<usize>>,
}

impl Killed {
    fn new(act: usize, after: usize) -> Arc<Self> {
        Arc::new(Self { act, after, acts: AtomicUsize::new(0), sizes: Mutex::default() })
    }

    /// How many bytes of an act are done; absent: all of it. An error: none, since the process is dead.
    fn lives(&self, size: usize) -> io::Result<Option<usize>> {
        let act = self.acts.fetch_add(1, Ordering::Relaxed);
        self.sizes.lock().expect("no thread panicked").push(size);
        match act.cmp(&self.act) {
            std::cmp::Ordering::Less => Ok(None),
            std::cmp::Ordering::Equal if self.after > size => Ok(None),
            std::cmp::Ordering::Equal => Ok(Some(self.after)),
            std::cmp::Ordering::Greater => Err(dead()),
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the process was killed")
}

impl Disk for Killed {
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        match self.lives(content.len())? {
            None => RealDisk.replace(path, content),
            Some(bytes) => {
                // The new file, until it takes the old one's place.
                let new = format!("{}.nm-new", path.display());
                std::fs::write(new, &content[..bytes]).expect("written");
                Err(dead())
            }
        }
    }

    fn write_from(&self, path: &Path, at: u64, content: &[u8]) -> io::Result<()> {
        match self.lives(content.len())? {
            None => RealDisk.write_from(path, at, content),
            Some(bytes) => {
                RealDisk.write_from(path, at, &content[..bytes]).expect("written");
                Err(dead())
            }
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.lives(0)? {
            None => RealDisk.remove(path),
            Some(_) => Err(dead()),
        }
    }
}

/// What a server sends, and the Views in between, by revision.
struct Story {
    start: Membership,
    updates: Vec<Update>,
    views: BTreeMap<u64, View>,
}

/// A story in which each step adds this many peers, and sometimes removes one.
fn story(steps: u64, peers_at_once: u32) -> Story {
    let mut now = view(1..4);
    let start = membership(now.clone());
    let mut views = BTreeMap::from([(1, now.clone())]);
    let mut updates = Vec::new();
    for revision in 1..=steps {
        let before = now.clone();
        let step = u32::try_from(revision).expect("few");
        (0..peers_at_once).for_each(|number| put(&mut now, 10 + number, step as u8));
        if step % 3 == 0 {
            now.peers.remove(&name(10));
        }
        // A whole View may come in between.
        updates.push(match step % 5 {
            4 => signed(0, revision + 1, SignedBody::whole(encode_view(&now))),
            _ => delta(&before, &now, revision),
        });
        views.insert(revision + 1, now.clone());
    }
    Story { start, updates, views }
}

/// Runs a story until the process is killed; returns the last revision that was known to be stored, if any.
fn live(story: &Story, folder: &Path, disk: &Arc<Killed>) -> Option<u64> {
    let agent = agent(folder, Arc::clone(disk) as Arc<dyn Disk>, FakeHost::default());
    let signing_key = story.start.server.signing_key;
    let seed = sign::from_seed(&[8; 32]);
    agent.directory.keep_identity(&signing_key, &seed).ok()?;
    let journal = agent.directory.save(&story.start).ok()?;
    let mut member = Member::new(agent, story.start.clone(), journal).expect("it has an identity");
    let mut kept = 1;
    for update in &story.updates {
        member.take(update).expect("it fits");
        if member.journal.is_none() {
            break;
        }
        kept = member.membership.position.revision.0;
    }
    Some(kept)
}

/// Checks that a process that starts after a kill has a View that was sent, not older than what was known to
/// be stored, and that it continues from there as if nothing had happened.
fn check(story: &Story, folder: &Path, kept: Option<u64>, why: &str) {
    let agent = agent(folder, Arc::new(RealDisk), FakeHost::default());
    let Some(found) = agent.directory.membership(&network()).expect("nothing is damaged") else {
        return assert_eq!(kept, None, "{why}");
    };
    let revision = found.position.revision.0;
    assert!(kept.is_none_or(|kept| revision >= kept), "{why}: {revision} of {kept:?}");
    assert!(story.views.get(&revision) == Some(&found.view), "{why}: a View that was never sent");
    let mut member = Member::open(agent.clone(), &network()).expect("it opens");
    for update in story.updates.iter().skip(usize::try_from(revision - 1).expect("few")) {
        assert_eq!(member.take(update).expect("it fits"), Accepted::Changed, "{why}");
    }
    let last = agent.directory.membership(&network()).expect("nothing is damaged").expect("it is there");
    assert!(last == member.membership, "{why}: what came after the kill is kept");
    assert_eq!(Some(&last.view), story.views.values().last(), "{why}");
}

/// How many bytes each act on the disk has in a story in which nobody is killed.
fn acts(story: &Story) -> Vec<usize> {
    let folder = private_folder();
    let disk = Killed::new(usize::MAX, 0);
    let kept = live(story, folder.path(), &disk);
    assert_eq!(kept, story.views.keys().last().copied());
    check(story, folder.path(), kept, "nobody was killed");
    disk.sizes.lock().expect("no thread panicked").clone()
}

#[tokio::test]
async fn a_process_that_is_killed_after_any_byte_leaves_a_view_that_was_sent() {
    let story = story(5, 1);
    for (act, size) in acts(&story).into_iter().enumerate() {
        // Of the base any byte is like any other: it is not where anybody looks until it is whole.
        let step = if size > 1_000 { 97 } else { 1 };
        for after in (0..=size).step_by(step).chain([size + 1]) {
            let folder = private_folder();
            let kept = live(&story, folder.path(), &Killed::new(act, after));
            check(&story, folder.path(), kept, &format!("act {act}, byte {after} of {size}"));
        }
    }
}

#[tokio::test]
async fn a_process_that_is_killed_while_the_log_becomes_a_new_base_leaves_a_view_that_was_sent() {
    let story = story(30, 90);
    let acts = acts(&story);
    let bases = acts.iter().filter(|size| **size > 10_000).count();
    assert!(bases > 0, "the log has become a base: {acts:?}");
    for (act, size) in acts.into_iter().enumerate() {
        for after in [0, size / 2, size, size + 1] {
            let folder = private_folder();
            let kept = live(&story, folder.path(), &Killed::new(act, after));
            check(&story, folder.path(), kept, &format!("act {act}, byte {after} of {size}"));
        }
    }
}

#[tokio::test]
async fn a_log_that_was_damaged_ends_where_it_is() {
    let story = story(3, 1);
    let folder = private_folder();
    live(&story, folder.path(), &Killed::new(usize::MAX, 0));
    let log = folder.path().join("network-corp.log");
    let sound = std::fs::read(&log).expect("there is a log");
    for byte in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[byte] ^= 1;
        RealDisk.replace(&log, &damaged).expect("written");
        check(&story, folder.path(), None, &format!("byte {byte}"));
        // The check went on from there: the log and the base are those of the last revision.
        std::fs::remove_file(&log).expect("there is a log");
    }
}

/// What an agent does at a join in a mesh of so many: steps on the device, observations of it as a whole, and
/// bytes that it writes to keep the change.
async fn cost_of_a_join(peers: u32) -> (usize, usize, u64) {
    let folder = private_folder();
    let disk = Arc::new(Metered::default());
    let host = FakeHost::default();
    let agent = agent(folder.path(), Arc::clone(&disk) as Arc<dyn Disk>, host.clone());
    let before = view(1..peers);
    let start = membership(before.clone());
    agent.directory.keep_identity(&start.server.signing_key, &sign::from_seed(&[8; 32])).expect("kept");
    let journal = agent.directory.save(&start).expect("kept");
    let mut member = Member::new(agent, start, journal).expect("it has an identity");
    member.apply().await.expect("it is applied");
    let device = host.device("nm-corp").expect("there is one");
    assert_eq!(
        device.take_applied().len(),
        usize::try_from(peers).expect("fits") + 2,
        "mark, key, port and the other peers"
    );
    let observed = device.observations();
    let written = disk.0.load(Ordering::Relaxed);
    let mut after = before.clone();
    put(&mut after, peers, 0);
    member.take(&delta(&before, &after, 1)).expect("it fits");
    member.apply().await.expect("it is applied");
    assert_eq!(device.state().peers.len(), after.peers.len());
    assert_eq!(member.applied(), at(2));
    let kept = member.agent.directory.membership(&network()).expect("it can be read").expect("it is there");
    assert!(kept.view == after);
    let written = disk.0.load(Ordering::Relaxed) - written;
    (device.take_applied().len(), device.observations() - observed, written)
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "figures of a run")]
async fn a_join_costs_the_same_in_every_mesh() {
    let small = cost_of_a_join(100).await;
    let large = cost_of_a_join(5_000).await;
    let (steps, observations, written) = large;
    let whole = serde_json::to_vec(&membership(view(1..5_000))).expect("it can be written").len();
    eprintln!(
        "a join in a mesh of 5,000: {steps} step, {written} bytes written; written whole: {whole} bytes"
    );
    assert_eq!((steps, observations), (1, 0), "one peer is put, and the device is not asked");
    assert!(written < 300, "{written} bytes are written at a join");
    assert_eq!(small.0, steps);
    assert!(small.2.abs_diff(written) < 16, "{small:?} {large:?}");
}

#[tokio::test]
async fn what_does_not_apply_alone_is_applied_with_everything_else() {
    let folder = private_folder();
    let host = FakeHost::default();
    let agent = agent(folder.path(), Arc::new(RealDisk), host.clone());
    let before = view(1..4);
    let start = membership(before.clone());
    agent.directory.keep_identity(&start.server.signing_key, &sign::from_seed(&[8; 32])).expect("kept");
    let journal = agent.directory.save(&start).expect("kept");
    let mut member = Member::new(agent, start, journal).expect("it has an identity");
    member.apply().await.expect("it is applied");
    let first = host.device("nm-corp").expect("there is one");
    first.end();
    let mut after = before.clone();
    put(&mut after, 4, 0);
    member.take(&delta(&before, &after, 1)).expect("it fits");
    member.apply().await.expect("it is applied");
    let second = host.device("nm-corp").expect("a new one was made");
    assert_eq!(second.state().peers.len(), 4);
    // The second change meets a device that refuses once, and what came with it is not forgotten.
    second.refuse_next(crate::device::Refusal::KeyMissing);
    let mut last = after.clone();
    put(&mut last, 5, 0);
    member.take(&delta(&after, &last, 2)).expect("it fits");
    member.apply().await.expect("it is applied");
    assert_eq!(second.state().peers.len(), 5);
}

#[tokio::test]
async fn what_changes_before_it_is_applied_is_applied_once() {
    let folder = private_folder();
    let host = FakeHost::default();
    let agent = agent(folder.path(), Arc::new(RealDisk), host.clone());
    let story = story(3, 2);
    agent.directory.keep_identity(&story.start.server.signing_key, &sign::from_seed(&[8; 32])).expect("kept");
    let journal = agent.directory.save(&story.start).expect("kept");
    let mut member = Member::new(agent, story.start.clone(), journal).expect("it has an identity");
    member.apply().await.expect("it is applied");
    for update in &story.updates {
        member.take(update).expect("it fits");
    }
    let device = host.device("nm-corp").expect("there is one");
    let observed = device.observations();
    member.apply().await.expect("it is applied");
    let last = story.views.values().last().expect("there is one");
    let wanted: Vec<_> = last.peers.values().filter_map(|peer| peer.public_key).collect();
    let mut found: Vec<_> = device.state().peers.into_keys().collect();
    found.sort_by_key(|key| wanted.iter().position(|it| it == key));
    assert_eq!(found, wanted);
    assert_eq!(device.observations(), observed);
    assert_eq!(host.names("nm-corp").len(), last.resolutions().len());
}

/// A revision of another history with the same numbers.
fn elsewhere(revision: u64) -> Position {
    let hash = ChainHash::start("copy").next(&revision.to_string());
    Position { stamp: Stamp::new(&hash, &[0; 32]), ..at(revision) }
}

/// A member whose network's range holds its server, which is known by this name.
fn member_whose_range_holds_its_server(folder: &Path, host: &FakeHost, server: &str) -> Member {
    let agent = agent(folder, Arc::new(RealDisk), host.clone());
    let mut start = membership(view(1..3));
    start.server.addresses = vec![server.to_owned()];
    agent.directory.keep_identity(&start.server.signing_key, &sign::from_seed(&[8; 32])).expect("kept");
    let journal = agent.directory.save(&start).expect("kept");
    Member::new(agent, start, journal).expect("it has an identity")
}

fn codes(member: &Member) -> Vec<&str> {
    member.problems().iter().map(|problem| &*problem.code).collect()
}

#[tokio::test]
async fn where_marks_are_not_heeded_there_are_no_rules_and_no_range_over_the_server() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut member = member_whose_range_holds_its_server(folder.path(), &host, "10.9.0.77:1");
    host.ignore_marks(true);
    member.reconcile().await.expect("it is applied");
    assert_eq!(host.routing(), Routing::default(), "rules would lose the server's answers");
    assert_eq!(codes(&member), ["marks-unheeded", "range-holds-server"]);
    let said = &member.problems()[1].message;
    assert!(said.contains("src_valid_mark") && !said.contains("nftables"), "{said}");
    assert!(host.filter().is_some(), "what it drops and lets through does not depend on marks");
    host.ignore_marks(false);
    member.reconcile().await.expect("it is applied");
    assert_eq!((host.routing().routes.len(), host.routing().rules.len()), (1, 3));
    assert_eq!(codes(&member), Vec::<&str>::new());
}

#[tokio::test]
async fn a_server_whose_name_does_not_resolve_is_spared_at_its_last_addresses() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let name = "server.invalid:1";
    let mut member = member_whose_range_holds_its_server(folder.path(), &host, name);
    let mut known = Addresses::default();
    known.learn(name, &["10.9.0.77:1".parse().expect("good")]);
    let server = member.membership.server.signing_key;
    member.agent.directory.remember(NamesOf::Server(&server), &known);
    host.ignore_marks(true);
    member.reconcile().await.expect("it is applied");
    assert_eq!(host.routing(), Routing::default(), "a new process knows it from the disk");
}

#[tokio::test]
async fn names_are_asked_of_the_name_servers_where_resolved_runs_and_are_in_the_file_otherwise() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut member = member_whose_range_holds_its_server(folder.path(), &host, "192.0.2.7:1");
    let known = member.membership.view.peers.values().next().expect("it has peers");
    let resolver = *known.addresses.first().expect("it has an address");
    // Another one is not reached through the network.
    let all = [resolver, "192.0.2.53".parse().expect("good")];
    member.membership.view.interface.resolvers = Arc::new(all.into());
    member.reconcile().await.expect("it is applied");
    let lines = host.names("nm-corp");
    assert!(!lines.is_empty() && host.resolvers("nm-corp").is_none(), "nobody asks resolved: {lines:?}");
    host.ask_resolved(true);
    member.reconcile().await.expect("it is applied");
    let sent = host.resolvers("nm-corp").expect("resolved knows them");
    assert_eq!((sent.servers, sent.network.as_str()), ([resolver].into(), "corp"));
    assert_eq!(host.names("nm-corp"), Vec::<String>::new(), "not in two places");
    host.ask_resolved(false);
    member.reconcile().await.expect("it is applied");
    assert_eq!(host.names("nm-corp"), lines, "one that refuses leaves names where they resolve");
    assert_eq!(codes(&member), ["names"]);
    let said = &member.problems()[0].message;
    assert!(said.contains("systemd-resolved") && said.contains("/etc/hosts"), "{said}");
    host.ask_resolved(true);
    member.reconcile().await.expect("it is applied");
    assert!(host.names("nm-corp").is_empty() && codes(&member).is_empty());
    Arc::make_mut(&mut member.membership.view.interface.resolvers).remove(&resolver);
    member.reconcile().await.expect("it is applied");
    assert_eq!((host.names("nm-corp"), host.resolvers("nm-corp")), (lines, None));
}

#[tokio::test]
async fn a_device_that_stays_keeps_its_packet_filter() {
    let (folder, host) = (private_folder(), FakeHost::default());
    let mut member = member_whose_range_holds_its_server(folder.path(), &host, "10.9.0.77:1");
    member.reconcile().await.expect("it is applied");
    let device = host.device("nm-corp").expect("there is one");
    device.refuse_removal(true);
    member.take_down().await.expect_err("the device stays");
    assert!(
        host.filter().is_some_and(|filter| filter.closed.contains("nm-corp")),
        "it forwards nothing still"
    );
    device.refuse_removal(false);
    member.take_down().await.expect("it is removed");
    assert_eq!(host.filter(), None);
}

const NOBODY: Identity = Identity([0; 32]);

#[test]
fn a_delta_of_another_history_does_not_apply_and_a_whole_view_of_it_does() {
    let (before, after) = (view(1..4), view(1..5));
    let change = || SignedBody::delta(encode_delta(&ViewDelta::between(&before, &after), after.counts()));
    let whole = |view: &View| SignedBody::whole(encode_view(view));
    let mut member = membership(before.clone());
    let foreign = signed_from(elsewhere(1), elsewhere(2), change());
    let refused = member.accept(&foreign, &NOBODY);
    assert_eq!(refused, Err(Malformed::OtherBase { from: elsewhere(1), at: at(1) }));
    assert_eq!((&member.view, member.position), (&before, at(1)), "nothing has changed");
    let here = signed_from(at(1), at(2), change());
    assert_eq!(member.accept(&here, &NOBODY), Ok(Accepted::Changed));
    assert_eq!(member.accept(&here, &NOBODY), Ok(Accepted::Same), "late, not wrong");
    let forged = Update { signature: vec![0; 64].into(), ..here };
    assert!(
        matches!(member.accept(&forged, &NOBODY), Err(Malformed::Signature(_))),
        "late or not, it must be signed"
    );
    // The server's history goes on from the same revision.
    let current = signed_from(Position::default(), elsewhere(2), whole(&before));
    assert_eq!(member.accept(&current, &NOBODY), Ok(Accepted::Changed));
    assert_eq!((&member.view, member.position), (&before, elsewhere(2)));
    // What was recorded cannot be replayed, unless another epoch has begun.
    let old = signed_from(Position::default(), at(1), whole(&after));
    assert_eq!(member.accept(&old, &NOBODY), Ok(Accepted::Same));
    assert_eq!(member.view, before);
    let later = Position { epoch: 2, ..at(1) };
    assert_eq!(
        member.accept(&signed_from(Position::default(), later, whole(&after)), &NOBODY),
        Ok(Accepted::Changed)
    );
    assert_eq!((&member.view, member.position), (&after, later));
}

#[test]
fn a_membership_of_an_earlier_version_is_one_whose_history_is_not_known() {
    let mut member = membership(view(1..3));
    let text = serde_json::to_value(&member).expect("JSON");
    assert_eq!(serde_json::from_value::<Membership>(text.clone()).expect("it reads back"), member);
    let mut old = text;
    old["position"].as_object_mut().expect("an object").remove("stamp").expect("it is there");
    member.position.stamp = Stamp::default();
    assert_eq!(serde_json::from_value::<Membership>(old).expect("it reads"), member);
}

#[tokio::test]
async fn the_same_view_at_a_later_position_is_applied_without_applying_it_again() {
    let folder = private_folder();
    let agent = agent(folder.path(), Arc::new(RealDisk), FakeHost::default());
    let start = membership(view(1..4));
    agent.directory.keep_identity(&start.server.signing_key, &sign::from_seed(&[8; 32])).expect("kept");
    let journal = agent.directory.save(&start).expect("kept");
    let mut member = Member::new(agent, start.clone(), journal).expect("it has an identity");
    let whole = |revision| signed(0, revision, SignedBody::whole(encode_view(&start.view)));
    assert_eq!(member.take(&whole(2)).expect("it fits"), Accepted::Same);
    assert_eq!(member.applied(), Position::default(), "nothing was applied yet");
    member.reconcile().await.expect("it is applied");
    assert_eq!(member.take(&whole(3)).expect("it fits"), Accepted::Same);
    assert_eq!(member.applied(), at(3), "or the server would send it again and again");
}
