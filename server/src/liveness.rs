//! When and how nodes last called: status, which makes no revision and is stored in batches.
//!
//! A node is silent only while the server serves: time in which the server is down, or its host sleeps, does
//! not count. What a node was sent and has not acknowledged is remembered: it may have it or not.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use schema::api::Control;
use schema::inventory::{Inventory, NodeId};
use schema::scalars::{Name, NetworkName};
use schema::snapshot::Revision;
use tokio::time::Instant;

use crate::core::carriers::Calls;
use crate::core::clones::Clones;
use crate::store::Seen;

/// When and how every node last called.
#[derive(Debug, Default)]
pub struct LastSeen {
    calls: Mutex<AllCalls>,
    /// The node that is the server's own host, if there is one: its calls say nothing about the way to others.
    own_node: Option<Name>,
}

#[derive(Debug, Default)]
struct AllCalls {
    nodes: BTreeMap<NodeId, Contact>,
    /// When any other node than the server's own last called.
    networks: BTreeMap<NetworkName, Instant>,
}

#[derive(Debug)]
struct Contact {
    seen: Seen,
    /// Since when it has been silent in this process of the server. The clock stands still while the host
    /// sleeps.
    since: Instant,
    /// How long it had been silent before that.
    before: Duration,
    /// The transport of its last call to this process of the server.
    transport: Control,
    /// Every stream holds a copy.
    streams: Arc<()>,
    clones: Clones,
    /// The newest position that it was sent since it last reported one that is not older.
    sent: Option<(u64, Revision)>,
    stored: bool,
}

/// When and how a node last called.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    /// When it last called, and its revision then.
    pub seen: Seen,
    /// How long it has been silent while the server served.
    pub silence: Duration,
    /// The transport of its last call; none: it has not called since this process of the server started.
    pub transport: Control,
    /// Whether it has a stream open.
    pub streams: bool,
    /// Whether two hosts use its identity.
    pub cloned: bool,
    /// Whether it was sent something later than what it reported: then what it has is not known.
    pub in_doubt: bool,
}

/// A stream of a node, for as long as it is held.
#[derive(Debug)]
pub struct Stream {
    _held: Arc<()>,
}

/// What is to be stored.
#[derive(Debug, Default)]
pub struct Unstored {
    /// Nodes that called since the last time.
    pub fresh: Vec<(NodeId, Seen)>,
    /// Nodes that are gone.
    pub gone: Vec<NodeId>,
}

impl LastSeen {
    /// Starts with what was stored by a server that served until `served`. A node of which nothing was stored
    /// was last seen when it joined. `own_node` is what the server's own host is called.
    pub fn new(
        stored: Vec<(NodeId, Seen)>,
        served: Option<Timestamp>,
        inventory: &Inventory,
        own_node: Option<Name>,
    ) -> Self {
        let since = Instant::now();
        let contact = |(id, seen): (NodeId, Seen)| {
            let before =
                served.map(|until| until.duration_since(seen.time)).and_then(|it| it.try_into().ok());
            let before = before.unwrap_or_default();
            let (transport, streams, clones) = (Control::None, Arc::default(), Clones::default());
            (id, Contact { seen, since, before, transport, streams, clones, sent: None, stored: true })
        };
        let joined = inventory.nodes().map(|(id, joined)| {
            let seen = Seen { time: joined.joined, epoch: 0, revision: Revision(0) };
            (id.clone(), seen)
        });
        let nodes = joined.chain(stored).map(contact).collect();
        Self { calls: Mutex::new(AllCalls { nodes, networks: BTreeMap::new() }), own_node }
    }

    /// Records a call of a node: the epoch and revision that it has, the transport of the call, and the
    /// address that it comes from, if that is known. Returns whether it has just become evident that two
    /// hosts use the identity of the node.
    pub fn record(&self, id: &NodeId, at: (u64, Revision), transport: Control, from: Option<IpAddr>) -> bool {
        let (epoch, revision) = at;
        let seen = Seen { time: Timestamp::now(), epoch, revision };
        let since = Instant::now();
        let mut calls = self.calls();
        let AllCalls { nodes, networks } = &mut *calls;
        let (streams, mut clones, sent) = match nodes.get_mut(id) {
            Some(Contact { streams, clones, sent, .. }) => {
                (std::mem::take(streams), std::mem::take(clones), *sent)
            }
            None => Default::default(),
        };
        let moment = since.into_std();
        let before = clones.evident(moment);
        clones.heard(from, Arc::strong_count(&streams) - 1, moment);
        let evident = clones.evident(moment);
        let before_that = Duration::ZERO;
        let sent = sent.filter(|sent| *sent > at);
        let heard =
            Contact { seen, since, before: before_that, transport, streams, clones, sent, stored: false };
        nodes.insert(id.clone(), heard);
        if self.own_node.as_ref() != Some(&id.name) {
            networks.insert(id.network.clone(), since);
        }
        evident && !before
    }

    /// Records that a node was sent the View of an epoch and revision.
    pub fn sent(&self, id: &NodeId, position: (u64, Revision)) {
        if let Some(contact) = self.calls().nodes.get_mut(id) {
            contact.sent = contact.sent.max(Some(position));
        }
    }

    /// Notes that a node is there, and counts a stream of it until that is dropped. The revision stays:
    /// a node may not have applied what the stream sent it.
    pub fn stream(&self, id: &NodeId, transport: Control) -> Option<Stream> {
        let Seen { epoch, revision, .. } = self.of(id)?.seen;
        self.record(id, (epoch, revision), transport, None);
        self.calls().nodes.get(id).map(|contact| Stream { _held: Arc::clone(&contact.streams) })
    }

    /// When and how a node last called; nothing if never.
    pub fn of(&self, id: &NodeId) -> Option<Liveness> {
        let calls = self.calls();
        let contact = calls.nodes.get(id)?;
        let Contact { seen, since: _, before: _, transport, streams, clones, sent, stored: _ } = contact;
        let silence = contact.silence();
        let streams = Arc::strong_count(streams) > 1;
        let cloned = clones.evident(Instant::now().into_std());
        let in_doubt = sent.is_some();
        Some(Liveness { seen: *seen, silence, transport: *transport, streams, cloned, in_doubt })
    }

    /// What is to be stored now; nodes that are gone from the inventory are forgotten.
    pub fn take_unstored(&self, inventory: &Inventory) -> Unstored {
        let mut unstored = Unstored::default();
        let mut calls = self.calls();
        calls.networks.retain(|network, _| inventory.nodes_in(network).next().is_some());
        calls.nodes.retain(|id, contact| {
            let there = inventory.node(id).is_some();
            if !there {
                unstored.gone.push(id.clone());
            } else if !std::mem::replace(&mut contact.stored, true) {
                unstored.fresh.push((id.clone(), contact.seen));
            }
            there
        });
        unstored
    }

    /// Takes back what could not be stored.
    pub fn put_back(&self, unstored: &Unstored) {
        let mut calls = self.calls();
        for (id, _) in &unstored.fresh {
            if let Some(contact) = calls.nodes.get_mut(id) {
                contact.stored = false;
            }
        }
    }

    fn calls(&self) -> MutexGuard<'_, AllCalls> {
        // A panic elsewhere leaves the maps consistent: every change of one is one insertion.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contact {
    fn silence(&self) -> Duration {
        self.before + self.since.elapsed()
    }
}

impl Calls for LastSeen {
    fn silence(&self, node: &NodeId) -> Option<Duration> {
        self.calls().nodes.get(node).map(Contact::silence)
    }

    fn latest(&self, network: &NetworkName) -> Option<Duration> {
        self.calls().networks.get(network).map(Instant::elapsed)
    }
}

#[cfg(test)]
mod tests {
    use schema::inventory::Joined;
    use schema::scalars::{Identity, WireGuardKey};

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId { network: "corp".parse().expect("good"), name: name.parse().expect("good") }
    }

    fn seen(seconds: i64) -> Seen {
        Seen { time: Timestamp::from_second(seconds).expect("a time"), epoch: 1, revision: Revision(1) }
    }

    fn node(joined: &str) -> Joined {
        Joined {
            public_key: WireGuardKey([1; 32]),
            identity: Identity([1; 32]),
            addresses: Default::default(),
            endpoints: Default::default(),
            listen_port: 1,
            tags: Default::default(),
            key: None,
            claimed: false,
            joined: joined.parse().expect("a time"),
            problems: Vec::new(),
            os: "test".into(),
        }
    }

    #[test]
    fn silence_before_a_start_counts_only_while_the_server_served() {
        let served = Timestamp::from_second(1_000).expect("a time");
        let stored = vec![(id("late"), seen(990)), (id("silent"), seen(400))];
        let mut inventory = Inventory::default();
        inventory.put_node(id("new"), node("1970-01-01T00:16:00Z"));
        inventory.put_node(id("silent"), node("1970-01-01T00:00:00Z"));
        let last_seen = LastSeen::new(stored, Some(served), &inventory, None);
        let silence = |name| last_seen.of(&id(name)).expect("it has called").silence.as_secs();
        assert_eq!((silence("late"), silence("silent")), (10, 600), "whatever the time is now");
        assert_eq!(silence("new"), 40, "it was last seen when it joined");
        last_seen.record(&id("silent"), (1, Revision(2)), Control::Tls, None);
        assert_eq!(silence("silent"), 0);
    }

    #[test]
    fn a_stream_counts_while_it_is_held() {
        let last_seen = LastSeen::default();
        assert!(last_seen.stream(&id("a"), Control::Tls).is_none());
        last_seen.record(&id("a"), (1, Revision(1)), Control::Tls, None);
        let streams = || last_seen.of(&id("a")).expect("it has called").streams;
        let stream = last_seen.stream(&id("a"), Control::Tls);
        assert!(streams());
        last_seen.record(&id("a"), (1, Revision(2)), Control::Tls, None);
        assert!(streams(), "a check-in does not end a stream");
        drop(stream);
        assert!(!streams());
    }

    #[test]
    fn calls_of_the_servers_own_host_say_nothing_about_the_way_to_others() {
        let own = "netmaker".parse().ok();
        let last_seen = LastSeen::new(vec![(id("a"), seen(990))], None, &Inventory::default(), own);
        let heard = || last_seen.latest(&id("a").network);
        assert_eq!(heard(), None, "it called another process of the server");
        last_seen.record(&id("netmaker"), (1, Revision(1)), Control::Tls, None);
        assert_eq!(heard(), None);
        assert!(last_seen.silence(&id("netmaker")).is_some());
        last_seen.record(&id("a"), (1, Revision(1)), Control::Tls, None);
        assert!(heard().is_some());
        last_seen.take_unstored(&Inventory::default());
        assert_eq!(heard(), None, "nobody is in the network any more");
    }

    #[test]
    fn two_hosts_with_one_identity_are_noticed_once() {
        let last_seen = LastSeen::default();
        let from = |number: u8| Some(IpAddr::from([192, 0, 2, number % 2]));
        let noticed = (0..20)
            .filter(|number| last_seen.record(&id("a"), (1, Revision(1)), Control::Tls, from(*number)));
        assert_eq!(noticed.count(), 1, "the log has one line");
        assert!(last_seen.of(&id("a")).expect("it has called").cloned);
        last_seen.record(&id("b"), (1, Revision(1)), Control::Tls, from(1));
        assert!(!last_seen.of(&id("b")).expect("it has called").cloned);
    }

    #[test]
    fn the_transport_is_that_of_the_last_call_and_a_start_knows_none() {
        let last_seen = LastSeen::new(vec![(id("a"), seen(990))], None, &Inventory::default(), None);
        let transport = || last_seen.of(&id("a")).expect("it has called").transport;
        assert_eq!(transport(), Control::None, "it called another process of the server");
        last_seen.record(&id("a"), (1, Revision(1)), Control::Tls, None);
        assert_eq!(transport(), Control::Tls);
        let stream = last_seen.stream(&id("a"), Control::Tunnel);
        assert_eq!(transport(), Control::Tunnel);
        drop(stream);
        assert_eq!(transport(), Control::Tunnel, "the end of a stream changes nothing");
    }

    #[test]
    fn what_was_sent_is_in_doubt_until_it_is_acknowledged() {
        let last_seen = LastSeen::default();
        let in_doubt = || last_seen.of(&id("a")).expect("it has called").in_doubt;
        let reports = |epoch, revision| {
            last_seen.record(&id("a"), (epoch, Revision(revision)), Control::Tls, None);
        };
        reports(1, 2);
        assert!(!in_doubt());
        last_seen.sent(&id("a"), (1, Revision(4)));
        last_seen.sent(&id("a"), (1, Revision(3)));
        reports(1, 3);
        assert!(in_doubt(), "it may have the later one as well");
        let _stream = last_seen.stream(&id("a"), Control::Tls);
        assert!(in_doubt(), "a stream acknowledges nothing");
        reports(1, 4);
        assert!(!in_doubt());
        last_seen.sent(&id("a"), (2, Revision(1)));
        reports(1, 9);
        assert!(in_doubt(), "of a later epoch");
    }

    #[test]
    fn what_was_not_stored_is_offered_again_and_what_is_gone_is_forgotten() {
        let last_seen = LastSeen::default();
        let mut inventory = Inventory::default();
        inventory.put_node(id("a"), node("2026-01-01T00:00:00Z"));
        last_seen.record(&id("a"), (1, Revision(1)), Control::Tls, None);
        last_seen.record(&id("gone"), (1, Revision(1)), Control::Tls, None);
        let unstored = last_seen.take_unstored(&inventory);
        assert_eq!(unstored.gone, [id("gone")]);
        assert_eq!(unstored.fresh.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&id("a")]);
        assert!(last_seen.take_unstored(&inventory).fresh.is_empty());
        last_seen.put_back(&unstored);
        assert_eq!(last_seen.take_unstored(&inventory).fresh.len(), 1);
    }
}
