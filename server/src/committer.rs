//! The one writer: runs changes on the world, one after the other, and stores all that wait together as one transaction.
//!
//! A change is a closure over the world that it leaves as it should be; what is written is the difference. Nobody is
//! answered before what they were told is on the disk, and nothing is published before: where the disk fails, nothing has
//! happened. It runs on a thread of its own, because stores block, and outlives a change that panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use jiff::Timestamp;
use schema::compile::Touched;
use schema::diff::diff;
use schema::snapshot::{Owner, Revision};
use schema::world::World;
use tokio::sync::{oneshot, watch};

use crate::error::Error;
use crate::state::State;
use crate::store::{Batch, LogEntry, Provenance, Store, StoreError, rows};

/// The most changes that become one transaction.
const GROUP: usize = 256;

/// Who changes the world, and why: what the log keeps of a change besides the change itself.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Who.
    pub actor: String,
    /// What is done.
    pub action: &'static str,
    /// The project and env that declare.
    pub owner: Option<Owner>,
    /// The client's id of an apply.
    pub apply_id: Option<String>,
    /// The digest of a plan.
    pub digest: Option<String>,
    /// Where the files came from.
    pub provenance: Option<Provenance>,
}

/// The writer's end that everybody else holds.
#[derive(Clone, Debug)]
pub struct Committer {
    jobs: mpsc::Sender<Job>,
}

enum Job {
    Change(Change),
    Read(Read),
}

type Read = Box<dyn FnOnce(&mut dyn Store) + Send>;

type Change = Box<dyn FnOnce(&World, &mut Past<'_>) -> Attempt + Send>;

/// What was committed before a change, together with what will be before it.
pub struct Past<'a> {
    store: &'a mut dyn Store,
    pending: &'a [Batch],
}

impl Past<'_> {
    /// The revision that an apply of this id made.
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

/// What a change comes to before it is stored.
struct Attempt {
    /// The world afterwards, and the note for its log entry; absent: nothing changes.
    next: Option<(World, Note)>,
    /// Answers whoever asked for it.
    answer: Box<dyn FnOnce(Result<(), Arc<StoreError>>) + Send>,
}

impl Committer {
    /// Starts the writer on a store, with the state that it holds; gives the states that it publishes.
    pub fn start(store: Box<dyn Store>, state: State) -> (Self, watch::Receiver<Arc<State>>) {
        let (jobs, queue) = mpsc::channel();
        let (publish, states) = watch::channel(Arc::new(state));
        thread::Builder::new()
            .name("committer".into())
            .spawn(move || Writer { store, publish }.run(&queue))
            .expect("a thread can be started");
        (Self { jobs }, states)
    }

    /// Changes the world: `change` gets it with the number of the revision that it will make, and says what to tell the
    /// caller and, if it changed anything, what to note in the log.
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut World, &mut Past<'_>) -> Result<(T, Option<Note>), Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (send, receive) = oneshot::channel();
        let job = move |world: &World, past: &mut Past<'_>| {
            let mut next = World { revision: Revision(world.revision.0 + 1), ..world.clone() };
            let (result, next) = match change(&mut next, past) {
                Ok((told, note)) => (Ok(told), note.map(|note| (next, note))),
                Err(error) => (Err(error), None),
            };
            let answer = move |stored: Result<(), Arc<StoreError>>| {
                // Whoever asked may have gone; what was changed stays changed.
                let _ = send.send(result.and_then(|told| stored.map(|()| told).map_err(Error::Store)));
            };
            Attempt { next, answer: Box::new(answer) }
        };
        self.jobs.send(Job::Change(Box::new(job))).map_err(|_| Error::Bug)?;
        receive.await.map_err(|_| Error::Bug)?
    }

    /// Asks the store something that is not in the world.
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
        let mut world = (*state.world).clone();
        let (mut batches, mut answers) = (Vec::new(), Vec::new());
        for change in group {
            let mut past = Past { store: &mut *self.store, pending: &batches };
            // A change works on a copy of the world: one that panics has changed nothing, and its caller is told.
            let attempt = catch_unwind(AssertUnwindSafe(|| change(&world, &mut past)));
            let Ok(Attempt { next, answer }) = attempt else { continue };
            answers.push(answer);
            if let Some((next, note)) = next {
                batches.push(batch(&world, &next, note));
                world = next;
            }
        }
        let stored = if batches.is_empty() { Ok(()) } else { self.store.commit(&batches).map_err(Arc::new) };
        if stored.is_ok() && !batches.is_empty() {
            self.publish.send_replace(Arc::new(state.follow(world)));
        }
        for answer in answers {
            answer(stored.clone());
        }
    }
}

fn batch(before: &World, after: &World, note: Note) -> Batch {
    let (puts, deletes) = rows::between(before, after);
    let nodes = Touched::between((&before.snapshot, &before.inventory), (&after.snapshot, &after.inventory)).nodes;
    let Note { actor, action, owner, apply_id, digest, provenance } = note;
    let entry = LogEntry {
        revision: after.revision,
        time: Timestamp::now(),
        actor,
        action: action.into(),
        owner,
        apply_id,
        digest,
        provenance,
        changes: diff(&before.snapshot, &after.snapshot),
        nodes: nodes.into_iter().collect(),
    };
    Batch { entry, puts, deletes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;

    fn note(action: &'static str) -> Option<Note> {
        Some(Note { action, ..Note::default() })
    }

    #[tokio::test]
    async fn a_change_that_panics_is_told_and_the_next_is_carried_out() {
        let (committer, states) = Committer::start(Box::new(Memory::default()), State::default());
        let panics = committer.change::<()>(|_, _| panic!("a bug, on purpose")).await;
        assert!(matches!(panics, Err(Error::Bug)), "{panics:?}");
        let revision = committer.change(|world, _| Ok((world.revision, note("test")))).await.expect("it goes on");
        assert_eq!((revision, states.borrow().world.revision), (Revision(1), Revision(1)));
    }

    #[tokio::test]
    async fn what_the_disk_refuses_has_not_happened() {
        let store = Memory::default();
        let levers = store.levers();
        let (committer, states) = Committer::start(Box::new(store), State::default());
        let change = || committer.change(|world, _| Ok((world.revision, note("test"))));
        levers.full.store(true, std::sync::atomic::Ordering::SeqCst);
        let error = change().await.expect_err("the disk is full").to_string();
        assert!(error.contains("disk is full") && error.contains("nothing was changed"), "{error}");
        assert_eq!(states.borrow().world.revision, Revision(0), "nothing is published");
        levers.full.store(false, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(change().await.expect("there is room again"), Revision(1), "without a gap");
    }

    #[tokio::test]
    async fn changes_that_wait_together_see_each_other() {
        let (committer, _states) = Committer::start(Box::new(Memory::default()), State::default());
        let apply = || {
            committer.change(|world, past| match past.applied("x")? {
                Some(revision) => Ok((revision, None)),
                None => Ok((world.revision, Some(Note { apply_id: Some("x".into()), ..Note::default() }))),
            })
        };
        // The first holds the writer up until the others wait together.
        let (release, held) = mpsc::channel();
        let hold = committer.change(move |_, _| {
            held.recv().expect("it is released");
            Ok(((), None))
        });
        let (first, second, third, ()) =
            tokio::join!(hold, apply(), apply(), async { release.send(()).expect("it is held") });
        first.expect("done");
        assert_eq!((second.expect("done"), third.expect("done")), (Revision(1), Revision(1)));
    }
}
