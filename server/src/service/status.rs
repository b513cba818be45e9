//! The state of nodes, as status reports it.

use std::collections::BTreeSet;
use std::time::Duration;

use schema::api::{Control, NodeStatus, PendingState, Presence};
use schema::compile::tags;
use schema::inventory::{NodeId, NodeProblem, PendingNode};
use schema::kinds::Node;
use schema::scalars::{Identity, NetworkName, Seconds};
use schema::snapshot::{ResourceId, Revision};
use schema::world::{ServerInfo, World};

use crate::core::carriers::MISSED;
use crate::core::pending::obstacle;
use crate::liveness::Liveness;
use crate::state::{Pending, State};
use crate::store::Seen;

const CLONED: &str =
    "two hosts use the identity of this node; delete /etc/netclient on the copy, and join there with a token";

/// The state of one node.
pub(super) fn of(state: &State, id: &NodeId, heard: Option<Liveness>) -> NodeStatus {
    let World { snapshot, inventory, .. } = &*state.world;
    let declared = snapshot.named::<Node>(&id.network, &id.name);
    let joined = inventory.node(id);
    let heard = heard.filter(|_| joined.is_some());
    let interval = snapshot.network(&id.network).map_or(Seconds(15), |network| network.check_in);
    let patience = Duration::from_secs(u64::from(interval.0)) * MISSED;
    let online = heard.is_some_and(|heard| heard.silence <= patience);
    let reserved = || declared.iter().flat_map(|node| node.reserved().map(|(_, address)| address)).collect();
    let cloned = heard.filter(|heard| heard.cloned).map(|_| NodeProblem::new(NodeProblem::CLONED, CLONED));
    NodeStatus {
        id: ResourceId::of::<Node>(&id.network, &id.name).to_string(),
        name: id.name.clone(),
        tags: tags(joined.map(|joined| &**joined), declared.map(|node| &**node)),
        addresses: joined.map_or_else(reserved, |joined| joined.addresses.clone()),
        public_key: joined.map(|joined| joined.public_key),
        state: match (joined, online) {
            (None, _) => Presence::Awaiting,
            (Some(_), true) => Presence::Online,
            (Some(_), false) => Presence::Silent,
        },
        last_check_in: heard.map(|heard| heard.seen.time),
        acknowledged: heard.and_then(|heard| acknowledged(state, id, &heard)),
        fingerprint: joined.map(|joined| joined.identity.fingerprint()),
        os: joined.map(|joined| joined.os.clone()),
        pending: None,
        problems: joined.iter().flat_map(|joined| joined.problems.clone()).chain(cloned).collect(),
        control: heard.filter(|heard| online || heard.streams).map_or(Control::None, |heard| heard.transport),
    }
}

/// The state of a host that waits.
pub(super) fn of_pending(
    world: &World,
    server: &ServerInfo,
    network: &NetworkName,
    (identity, pending): (&Identity, &PendingNode),
) -> NodeStatus {
    let PendingNode { name, public_key, since, seen, os, .. } = pending;
    let fingerprint = identity.fingerprint();
    let obstacle = obstacle(world, network, fingerprint, name, server);
    let (since, until, seen) = (*since, pending.until(), *seen);
    NodeStatus {
        id: ResourceId::of::<Node>(network, name).to_string(),
        name: name.clone(),
        tags: BTreeSet::new(),
        addresses: BTreeSet::new(),
        public_key: Some(*public_key),
        state: Presence::Pending,
        last_check_in: None,
        acknowledged: None,
        control: Control::None,
        problems: Vec::new(),
        fingerprint: Some(fingerprint),
        os: Some(os.clone()),
        pending: Some(PendingState { since, until, seen, obstacle: obstacle.map(|why| why.to_string()) }),
    }
}

/// The newest revision of which a node has everything that concerns it: the current one, if nothing since the
/// one that it reported concerns it, and it was sent nothing since. Nothing while it has not reported any in
/// this epoch.
fn acknowledged(state: &State, id: &NodeId, heard: &Liveness) -> Option<Revision> {
    let World { epoch, revision, .. } = &*state.world;
    let Seen { epoch: of, revision: reported, .. } = heard.seen;
    let up_to_date =
        || matches!(state.pending(&id.network, &id.name, Some(reported)), Some(Pending::UpToDate));
    let reported_here = of == *epoch && reported > Revision(0);
    reported_here.then(|| if !heard.in_doubt && up_to_date() { *revision } else { reported })
}
