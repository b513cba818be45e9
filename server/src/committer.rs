//! The one writer: runs changes on the world, one after the other, and stores all that wait together as one transaction.
//!
//! A change is a closure over the world that it leaves as it should be; what is written is the difference. Nobody is
//! answered before what they were told is on the disk, and nothing is published before. It runs on a thread of its own,
//! because stores block.

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
    Change(Box<dyn FnOnce(&World, &mut dyn Store) -> Attempt + Send>),
    Read(Box<dyn FnOnce(&mut dyn Store) + Send>),
}

/// What a change comes to before it is stored.
struct Attempt {
    /// The world afterwards, and the note for its log entry; absent: nothing changes.
    next: Option<(World, Note)>,
    /// Answers whoever asked for it.
    answer: Box<dyn FnOnce(Result<(), Arc<StoreError>>) + Send>,
}

impl Committer {
    /// Starts the writer on a store; gives the states that it publishes.
    pub fn start(store: Box<dyn Store>, world: World) -> (Self, watch::Receiver<Arc<State>>) {
        let (jobs, queue) = mpsc::channel();
        let (publish, states) = watch::channel(Arc::new(State::new(world)));
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
        change: impl FnOnce(&mut World, &mut dyn Store) -> Result<(T, Option<Note>), Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (send, receive) = oneshot::channel();
        let job = move |world: &World, store: &mut dyn Store| {
            let mut next = World { revision: Revision(world.revision.0 + 1), ..world.clone() };
            let (result, next) = match change(&mut next, store) {
                Ok((told, note)) => (Ok(told), note.map(|note| (next, note))),
                Err(error) => (Err(error), None),
            };
            let answer = move |stored: Result<(), Arc<StoreError>>| {
                // Whoever asked may have gone; what was changed stays changed.
                let _ = send.send(result.and_then(|told| stored.map(|()| told).map_err(Error::Store)));
            };
            Attempt { next, answer: Box::new(answer) }
        };
        self.jobs.send(Job::Change(Box::new(job))).map_err(|_| Error::ShuttingDown)?;
        receive.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Asks the store something that is not in the world.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let (send, receive) = oneshot::channel();
        let job = move |store: &mut dyn Store| drop(send.send(read(store)));
        self.jobs.send(Job::Read(Box::new(job))).map_err(|_| Error::ShuttingDown)?;
        Ok(receive.await.map_err(|_| Error::ShuttingDown)??)
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

    fn commit(&mut self, group: Vec<Box<dyn FnOnce(&World, &mut dyn Store) -> Attempt + Send>>) {
        let state = self.publish.borrow().clone();
        let mut world = (*state.world).clone();
        let (mut batches, mut answers) = (Vec::new(), Vec::new());
        for change in group {
            let Attempt { next, answer } = change(&world, &mut *self.store);
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
