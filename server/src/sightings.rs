//! When and how nodes were last heard of: status, which makes no revision and is stored in batches.
//!
//! A node is silent only for time in which the server served: what passes while the server is down, or while its machine
//! sleeps, is nobody's silence.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use schema::inventory::{Inventory, NodeId};
use schema::snapshot::Revision;

use crate::store::Seen;

/// When and how every node was last heard of.
#[derive(Debug, Default)]
pub struct Sightings {
    all: Mutex<BTreeMap<NodeId, Sighting>>,
}

#[derive(Debug)]
struct Sighting {
    seen: Seen,
    /// Since when it has been silent in this life of the server. The clock stands while the machine sleeps.
    since: Instant,
    /// How long it had been silent before.
    before: Duration,
    /// Every stream holds a copy.
    streams: Arc<()>,
    stored: bool,
}

/// How a node was last heard of.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// When it last said where it is.
    pub seen: Seen,
    /// How long it has been silent, in time that the server served.
    pub silence: Duration,
    /// Whether it has a stream open.
    pub streams: bool,
}

/// A stream of a node, for as long as it is held.
#[derive(Debug)]
pub struct Stream {
    _held: Arc<()>,
}

/// What is to be stored.
#[derive(Debug, Default)]
pub struct Unstored {
    /// Nodes that were heard of since the last time.
    pub fresh: Vec<(NodeId, Seen)>,
    /// Nodes that are gone.
    pub gone: Vec<NodeId>,
}

impl Sightings {
    /// What was stored by a server that served until then. A machine of which nothing was stored was heard of when it
    /// joined.
    pub fn new(stored: Vec<(NodeId, Seen)>, served: Option<Timestamp>, inventory: &Inventory) -> Self {
        let since = Instant::now();
        let sighting = |(id, seen): (NodeId, Seen)| {
            let before = served.map(|until| until.duration_since(seen.time)).and_then(|it| it.try_into().ok());
            let before = before.unwrap_or_default();
            (id, Sighting { seen, since, before, streams: Arc::default(), stored: true })
        };
        let joined = inventory.nodes().map(|(id, joined)| {
            let seen = Seen { time: joined.joined, revision: Revision(0) };
            (id.clone(), seen)
        });
        Self { all: Mutex::new(joined.chain(stored).map(sighting).collect()) }
    }

    /// Notes that a node is there, and how far it has come.
    pub fn note(&self, id: &NodeId, revision: Revision) {
        let (seen, since) = (Seen { time: Timestamp::now(), revision }, Instant::now());
        let mut all = self.all();
        match all.get_mut(id) {
            Some(sighting) => {
                let streams = std::mem::take(&mut sighting.streams);
                *sighting = Sighting { seen, since, before: Duration::ZERO, streams, stored: false };
            }
            None => {
                let streams = Arc::default();
                all.insert(id.clone(), Sighting { seen, since, before: Duration::ZERO, streams, stored: false });
            }
        }
    }

    /// Notes that a node is there, and counts a stream of it until that is dropped. How far the node has come, a stream
    /// does not tell: what it was sent it may not be set by.
    pub fn stream(&self, id: &NodeId) -> Option<Stream> {
        let revision = self.of(id)?.seen.revision;
        self.note(id, revision);
        self.all().get(id).map(|sighting| Stream { _held: Arc::clone(&sighting.streams) })
    }

    /// How a node was last heard of; nothing if never.
    pub fn of(&self, id: &NodeId) -> Option<Heard> {
        let all = self.all();
        let Sighting { seen, since, before, streams, stored: _ } = all.get(id)?;
        Some(Heard { seen: *seen, silence: *before + since.elapsed(), streams: Arc::strong_count(streams) > 1 })
    }

    /// What is to be stored now; what is gone from the inventory is forgotten.
    pub fn take_unstored(&self, inventory: &Inventory) -> Unstored {
        let mut unstored = Unstored::default();
        self.all().retain(|id, sighting| {
            let there = inventory.node(id).is_some();
            if !there {
                unstored.gone.push(id.clone());
            } else if !std::mem::replace(&mut sighting.stored, true) {
                unstored.fresh.push((id.clone(), sighting.seen));
            }
            there
        });
        unstored
    }

    /// Takes back what could not be stored.
    pub fn put_back(&self, unstored: &Unstored) {
        let mut all = self.all();
        for (id, _) in &unstored.fresh {
            if let Some(sighting) = all.get_mut(id) {
                sighting.stored = false;
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<NodeId, Sighting>> {
        // A panic elsewhere leaves the map whole: every change of it is one insertion.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use schema::inventory::Joined;
    use schema::scalars::PublicKey;

    use super::*;

    fn id(name: &str) -> NodeId {
        ("corp".parse().expect("good"), name.parse().expect("good"))
    }

    fn seen(seconds: i64) -> Seen {
        Seen { time: Timestamp::from_second(seconds).expect("a time"), revision: Revision(1) }
    }

    fn machine(joined: &str) -> Joined {
        let key = PublicKey([1; 32]);
        Joined {
            public_key: key,
            identity: key,
            addresses: Default::default(),
            endpoint: None,
            listen_port: 1,
            tags: Default::default(),
            key: None,
            claimed: false,
            joined: joined.parse().expect("a time"),
            os: "test".into(),
        }
    }

    #[test]
    fn silence_before_a_start_counts_only_while_the_server_served() {
        let served = Timestamp::from_second(1_000).expect("a time");
        let stored = vec![(id("late"), seen(990)), (id("silent"), seen(400))];
        let mut inventory = Inventory::default();
        inventory.put_node(id("new"), machine("1970-01-01T00:16:00Z"));
        inventory.put_node(id("silent"), machine("1970-01-01T00:00:00Z"));
        let sightings = Sightings::new(stored, Some(served), &inventory);
        let silence = |name| sightings.of(&id(name)).expect("it was heard of").silence.as_secs();
        assert_eq!((silence("late"), silence("silent")), (10, 600), "whatever the time is now");
        assert_eq!(silence("new"), 40, "it was heard of when it joined");
        sightings.note(&id("silent"), Revision(2));
        assert_eq!(silence("silent"), 0);
    }

    #[test]
    fn a_stream_counts_while_it_is_held() {
        let sightings = Sightings::default();
        assert!(sightings.stream(&id("a")).is_none());
        sightings.note(&id("a"), Revision(1));
        let streams = || sightings.of(&id("a")).expect("it was heard of").streams;
        let stream = sightings.stream(&id("a"));
        assert!(streams());
        sightings.note(&id("a"), Revision(2));
        assert!(streams(), "a check-in ends no stream");
        drop(stream);
        assert!(!streams());
    }

    #[test]
    fn what_was_not_stored_is_offered_again_and_what_is_gone_is_forgotten() {
        let sightings = Sightings::default();
        let mut inventory = Inventory::default();
        inventory.put_node(id("a"), machine("2026-01-01T00:00:00Z"));
        sightings.note(&id("a"), Revision(1));
        sightings.note(&id("gone"), Revision(1));
        let unstored = sightings.take_unstored(&inventory);
        assert_eq!(unstored.gone, [id("gone")]);
        assert_eq!(unstored.fresh.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&id("a")]);
        assert!(sightings.take_unstored(&inventory).fresh.is_empty());
        sightings.put_back(&unstored);
        assert_eq!(sightings.take_unstored(&inventory).fresh.len(), 1);
    }
}
