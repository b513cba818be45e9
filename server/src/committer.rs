//! The one writer: runs changes on the world, one after the other, and stores all that wait together as one
//! transaction.
//!
//! A change is a closure from the world before it to the one after it; what is written is the difference,
//! which is computed once and passed on to those that need it. No caller is answered, and nothing is
//! published, before the transaction is on the disk: if the disk fails, nothing has happened. It runs on a
//! thread of its own, because stores block, and outlives a change that panics.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use jiff::Timestamp;
use schema::chain::ChainHash;
use schema::compile::Changed;
use schema::diff::diff;
use schema::guard::Guard;
use schema::snapshot::{Owner, Revision};
use schema::world::World;
use tokio::sync::{oneshot, watch};

use crate::core::carriers;
use crate::error::Error;
use crate::mark::{Mark, Served};
use crate::state::State;
use crate::store::files::DatabaseFiles;
use crate::store::{Batch, CLOCK, LogEntry, Provenance, SERVER, Store, StoreError, rows};

/// The most changes that become one transaction.
const GROUP: usize = 256;

/// Who changes the world, and why: what the log keeps of a change besides the change itself.
#[derive(Clone, Debug, Default)]
pub struct AuditInfo {
    /// Who.
    pub actor: String,
    /// What is done.
    pub action: &'static str,
    /// The project and env of the declarations.
    pub owner: Option<Owner>,
    /// The client's id of an apply.
    pub apply_id: Option<String>,
    /// The digest of a plan.
    pub digest: Option<String>,
    /// Where the files came from.
    pub provenance: Option<Provenance>,
    /// The rules that the change breaks, and is let through.
    pub allowed: BTreeSet<Guard>,
}

/// The handle of the writer.
#[derive(Clone, Debug)]
pub struct Committer {
    jobs: mpsc::Sender<Job>,
    files: Option<Arc<DatabaseFiles>>,
}

enum Job {
    Change(Change),
    Read(Read),
}

type Read = Box<dyn FnOnce(&mut dyn Store) + Send>;

type Change = Box<dyn FnOnce(&World, &mut CommitContext<'_>) -> Outcome + Send>;

/// What a change may read besides the world: what is committed, and what will be committed before it.
pub struct CommitContext<'a> {
    revision: Revision,
    store: &'a mut dyn Store,
    pending: &'a [Batch],
}

impl CommitContext<'_> {
    /// The revision that the change creates, if it changes anything.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision that an apply of this id created.
    pub fn applied(&mut self, apply_id: &str) -> Result<Option<Revision>, StoreError> {
        let pending = self.pending.iter().find(|batch| batch.entry.apply_id.as_deref() == Some(apply_id));
        match pending {
            Some(batch) => Ok(Some(batch.entry.revision)),
            None => self.store.applied(apply_id),
        }
    }

    /// The log entry of a revision.
    pub fn entry(&mut self, revision: Revision) -> Result<Option<LogEntry>, StoreError> {
        match self.pending.iter().find(|batch| batch.entry.revision == revision) {
            Some(batch) => Ok(Some(batch.entry.clone())),
            None => {
                let before = Revision(revision.0.saturating_sub(1));
                Ok(self.store.log(before, 1)?.into_iter().find(|entry| entry.revision == revision))
            }
        }
    }
}

/// The world after a change, and the answer to its caller once that is stored.
#[derive(Debug)]
pub struct Proposal<T> {
    answer: T,
    next: Option<(World, AuditInfo)>,
}

impl<T> Proposal<T> {
    /// Nothing changes.
    pub fn unchanged(answer: T) -> Self {
        Self { answer, next: None }
    }

    /// The world afterwards; nothing if it does not change.
    pub fn world(&self) -> Option<&World> {
        self.next.as_ref().map(|(world, _)| world)
    }

    /// The world becomes `next`; its revision is filled in.
    pub fn changed(answer: T, next: World, audit: AuditInfo) -> Self {
        Self { answer, next: Some((next, audit)) }
    }
}

/// The outcome of a change before it is stored.
struct Outcome {
    /// The world afterwards, and who made it so; absent: nothing changes.
    next: Option<(World, AuditInfo)>,
    /// Answers the caller.
    answer: Box<dyn FnOnce(Result<(), Arc<StoreError>>) + Send>,
}

impl Committer {
    /// Starts the writer on a store, with the state that it holds, and records in the mark, if there is one,
    /// what it publishes. Returns the states that it publishes as well.
    pub fn start(
        store: Box<dyn Store>,
        state: State,
        mark: Option<Mark>,
    ) -> (Self, watch::Receiver<Arc<State>>) {
        let files = store.files();
        let (jobs, queue) = mpsc::channel();
        let (publish, states) = watch::channel(Arc::new(state));
        thread::Builder::new()
            .name("committer".into())
            .spawn(move || Writer { store, publish, mark, latest: Timestamp::MAX }.run(&queue))
            .expect("a thread can be started");
        (Self { jobs, files }, states)
    }

    /// Whether changes can be stored, as far as that is known without trying.
    pub fn ready(&self) -> Result<(), StoreError> {
        self.files.as_ref().map_or(Ok(()), |files| files.check())
    }

    /// Changes the world: `change` is given the world before it, and returns the one after it.
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&World, &mut CommitContext<'_>) -> Result<Proposal<T>, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (send, receive) = oneshot::channel();
        let job = move |world: &World, context: &mut CommitContext<'_>| {
            let (result, next) = match change(world, context) {
                Ok(Proposal { answer, next }) => (Ok(answer), next),
                Err(error) => (Err(error), None),
            };
            let answer = move |stored: Result<(), Arc<StoreError>>| {
                // The caller may be gone; the change stays.
                let _ = send.send(result.and_then(|answer| stored.map(|()| answer).map_err(Error::Store)));
            };
            Outcome { next, answer: Box::new(answer) }
        };
        self.jobs.send(Job::Change(Box::new(job))).map_err(|_| Error::Bug)?;
        receive.await.map_err(|_| Error::Bug)?
    }

    /// Reads something from the store that is not in the world.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let (send, receive) = oneshot::channel();
        let job = move |store: &mut dyn Store| drop(send.send(read(store)));
        self.jobs.send(Job::Read(Box::new(job))).map_err(|_| Error::Bug)?;
        Ok(receive.await.map_err(|_| Error::Bug)??)
    }
}

struct Writer {
    store: Box<dyn Store>,
    publish: watch::Sender<Arc<State>>,
    mark: Option<Mark>,
    /// When it last stored something; at the start as late as can be. If it is earlier now, the clock was set
    /// back.
    latest: Timestamp,
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut group = Vec::new();
            for job in std::iter::once(first).chain(queue.try_iter().take(GROUP - 1)) {
                match job {
                    Job::Change(change) => group.push(change),
                    Job::Read(read) => read(&mut *self.store),
                }
            }
            if !group.is_empty() {
                self.commit(group);
            }
        }
    }

    fn commit(&mut self, group: Vec<Change>) {
        let state = self.publish.borrow().clone();
        let now = Timestamp::now();
        let clock = (now < self.latest).then(|| correct_clock(&state.world, now)).flatten();
        let mut world = (*state.world).clone();
        let mut changed = Changed::default();
        let mut batches = Vec::new();
        let mut answers = Vec::new();
        for change in clock.into_iter().chain(group) {
            let revision = Revision(world.revision.0 + 1);
            let mut context = CommitContext { revision, store: &mut *self.store, pending: &batches };
            // A change returns a new world: one that panics has changed nothing, and its caller gets an
            // error.
            let outcome = catch_unwind(AssertUnwindSafe(|| change(&world, &mut context)));
            let Ok(Outcome { next, answer }) = outcome else { continue };
            answers.push(answer);
            if let Some((next, audit)) = next {
                let mut next = World { revision, ..next };
                let mut here = Changed::between(world.parts(), next.parts());
                if carriers::settle(&mut next, &here.networks()) {
                    here = Changed::between(world.parts(), next.parts());
                }
                let before = batches.last().map_or(state.chain.head(), |batch: &Batch| &batch.hash);
                let batch = batch(before, &world, &next, &here, audit);
                batches.push(batch);
                changed.extend(here);
                world = next;
            }
        }
        let stored = if batches.is_empty() { Ok(()) } else { self.store.commit(&batches).map_err(Arc::new) };
        if stored.is_ok() {
            self.latest = now;
        }
        if let (Ok(()), Some(newest)) = (&stored, batches.last()) {
            if let Some(mark) = &mut self.mark {
                mark.record(&Served {
                    epoch: newest.epoch,
                    revision: newest.entry.revision,
                    hash: newest.hash,
                });
            }
            let hashes = batches.iter().map(|batch| batch.hash);
            self.publish.send_replace(Arc::new(state.follow(world, hashes, &changed)));
        }
        for answer in answers {
            answer(stored.clone());
        }
    }
}

/// A change that makes what lies in the future count as now; nothing if nothing does. The moments were stored
/// while the clock was wrong, and would otherwise hold for as long as it was ahead.
fn correct_clock(world: &World, now: Timestamp) -> Option<Change> {
    let inventory = world.inventory.without_future(now)?;
    let why = "the clock was ahead when moments were stored that now lie in the future: they count as now";
    tracing::warn!("{why}");
    let provenance = Some(Provenance { message: Some(why.into()), ..Provenance::default() });
    let audit = AuditInfo { actor: SERVER.into(), action: CLOCK, provenance, ..AuditInfo::default() };
    let next = World { inventory, ..world.clone() };
    Some(Box::new(|_, _| Outcome { next: Some((next, audit)), answer: Box::new(drop) }))
}

fn batch(hash: &ChainHash, before: &World, after: &World, changed: &Changed, audit: AuditInfo) -> Batch {
    let (puts, deletes) = rows::between(before, after);
    let AuditInfo { actor, action, owner, apply_id, digest, provenance, allowed } = audit;
    let entry = LogEntry {
        revision: after.revision,
        time: Timestamp::now(),
        actor,
        action: action.into(),
        owner,
        apply_id,
        digest,
        provenance,
        allowed,
        changes: diff(&before.snapshot, &after.snapshot),
        guards: before.guards.changes(&after.guards),
        nodes: [
            before.inventory.changed_bars(&after.inventory),
            before.inventory.changed_away(&after.inventory),
            before.inventory.changed_pending(&after.inventory),
        ]
        .iter()
        .fold(changed.nodes.clone(), |all, more| &all | more)
        .into_iter()
        .collect(),
        hash: None,
    };
    Batch::new(hash, after.epoch, entry, puts, deletes)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use schema::inventory::Quarantined;
    use schema::scalars::NetworkName;

    use super::*;
    use crate::state::Chain;
    use crate::store::Stored;
    use crate::store::memory::Memory;

    /// A committer on a store that is empty.
    fn started(mut store: Memory) -> (Committer, watch::Receiver<Arc<State>>) {
        let Stored { world, hash, .. } = store.load().expect("it loads");
        let chain = Chain::new(world.revision, hash);
        Committer::start(Box::new(store), State::new(world, chain, |_| Revision(0)), None)
    }

    /// A change of nothing that is kept, which still creates a revision.
    fn empty(world: &World, context: &mut CommitContext<'_>) -> Result<Proposal<Revision>, Error> {
        let audit = AuditInfo { action: "test", ..AuditInfo::default() };
        Ok(Proposal::changed(context.revision(), world.clone(), audit))
    }

    #[tokio::test]
    async fn a_change_that_panics_is_an_error_and_the_next_is_carried_out() {
        let (committer, states) = started(Memory::default());
        let panics = committer.change::<()>(|_, _| panic!("a bug, on purpose")).await;
        assert!(matches!(panics, Err(Error::Bug)), "{panics:?}");
        let revision = committer.change(empty).await.expect("it goes on");
        assert_eq!((revision, states.borrow().world.revision), (Revision(1), Revision(1)));
    }

    #[tokio::test]
    async fn what_the_disk_refuses_has_not_happened() {
        let store = Memory::default();
        let levers = store.levers();
        let (committer, states) = started(store);
        let change = || committer.change(empty);
        levers.full.store(true, std::sync::atomic::Ordering::SeqCst);
        let error = change().await.expect_err("the disk is full").to_string();
        assert!(error.contains("disk is full") && error.contains("nothing was changed"), "{error}");
        assert_eq!(states.borrow().world.revision, Revision(0), "nothing is published");
        levers.full.store(false, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(change().await.expect("there is room again"), Revision(1), "without a gap");
    }

    #[tokio::test]
    async fn every_revision_leads_to_the_next_by_its_hash() {
        let (committer, states) = started(Memory::default());
        let start = *states.borrow().chain.head();
        let (one, two) = tokio::join!(committer.change(empty), committer.change(empty));
        assert_eq!((one.expect("done"), two.expect("done")), (Revision(1), Revision(2)));
        let log = committer.read(|store| store.log(Revision(0), 10)).await.expect("it reads");
        let texts = log.iter().map(|entry| serde_json::to_string(&LogEntry { hash: None, ..entry.clone() }));
        let mut hash = start;
        for (entry, text) in log.iter().zip(texts) {
            hash = hash.next(&text.expect("JSON"));
            assert_eq!(entry.hash, Some(hash));
            assert_eq!(states.borrow().chain.at(entry.revision), Some(&hash));
        }
        assert_eq!(states.borrow().chain.head(), &hash);
    }

    #[tokio::test]
    async fn a_clock_that_was_ahead_and_is_set_right_leaves_no_moment_in_the_future() {
        let mut store = Memory::default();
        let Stored { mut world, hash, .. } = store.load().expect("it loads");
        let since = Timestamp::now() + jiff::SignedDuration::from_hours(24 * 3_650);
        let network: NetworkName = "corp".parse().expect("good");
        let address = IpAddr::from([10, 0, 0, 2]);
        let quarantined = Quarantined { since, node: "a".parse().expect("good") };
        world.inventory.put_quarantined(network.clone(), address, quarantined);
        let chain = Chain::new(world.revision, hash);
        let (committer, states) =
            Committer::start(Box::new(store), State::new(world, chain, |_| Revision(0)), None);
        let revision = committer.change(empty).await.expect("it is stored");
        assert_eq!(revision, Revision(2), "the correction is a revision of its own, before the change");
        let since =
            states.borrow().world.inventory.quarantine_of(&network, address).expect("it is there").since;
        assert!(since <= Timestamp::now(), "{since}");
        let log = committer.read(|store| store.log(Revision(0), 9)).await.expect("it reads");
        assert_eq!(log.iter().map(|entry| &*entry.action).collect::<Vec<_>>(), [CLOCK, "test"]);
        assert_eq!(committer.change(empty).await.expect("it is stored"), Revision(3), "and it is made once");
    }

    #[tokio::test]
    async fn changes_that_wait_together_see_each_other() {
        let (committer, _states) = started(Memory::default());
        let apply = || {
            committer.change(|world, context| match context.applied("x")? {
                Some(revision) => Ok(Proposal::unchanged(revision)),
                None => {
                    let audit = AuditInfo { apply_id: Some("x".into()), ..AuditInfo::default() };
                    Ok(Proposal::changed(context.revision(), world.clone(), audit))
                }
            })
        };
        // The first blocks the writer until the others wait together.
        let (release, held) = mpsc::channel();
        let hold = committer.change(move |_, _| {
            held.recv().expect("it is released");
            Ok(Proposal::unchanged(()))
        });
        let (first, second, third, ()) =
            tokio::join!(hold, apply(), apply(), async { release.send(()).expect("it is held") });
        first.expect("done");
        assert_eq!((second.expect("done"), third.expect("done")), (Revision(1), Revision(1)));
    }
}
