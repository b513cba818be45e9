//! What the server changes by itself as time passes: which nodes are away or back, which external clients have
//! expired, and which hosts have waited to be let in for too long.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use jiff::Timestamp;
use netclient::agent::error_chain;
use schema::compile::reconcile::reconcile;
use schema::inventory::{ClientStatus, NodeId, PendingNode};
use schema::kinds::ExternalClient;
use schema::snapshot::Revision;
use schema::text::count;
use schema::world::World;
use tokio::time::Instant;

use super::Service;
use crate::committer::{AuditInfo, CommitContext, Proposal};
use crate::core::carriers::Carriers;
use crate::core::pending;
use crate::error::Error;
use crate::store::{DROP, EXPIRE, FAILOVER, Provenance, SERVER};

/// What has to be remembered from one look to the next.
#[derive(Debug, Default)]
pub struct Upkeep {
    carriers: Carriers,
    /// When the next external client expires, if one does, at an epoch and revision.
    expiry: Option<((u64, Revision), Option<Timestamp>)>,
    /// When the next host has waited for too long, if one waits, at an epoch and revision.
    over: Option<((u64, Revision), Option<Timestamp>)>,
    /// Whether changes could not be stored at the last look.
    failing: bool,
}

impl Service {
    /// Looks whether time has changed anything, and makes a revision of each change. What cannot be stored is
    /// tried again at the next look.
    pub async fn keep_up(&self, upkeep: &mut Upkeep) {
        let state = self.state();
        let world = &*state.world;
        let changes = upkeep.carriers.look(world, &self.inner.last_seen, Instant::now().into_std());
        let changes = changes.into_iter().map(|change| {
            let carry_out = move |world: &World, _: &mut CommitContext<'_>| {
                let next = change.carry_out(world);
                Ok(next.map_or(Proposal::unchanged(()), |(next, why)| by_itself(next, FAILOVER, why)))
            };
            self.change(carry_out)
        });
        let mut outcomes = join_all(changes).await;
        let at = (world.epoch, world.revision);
        let next = match upkeep.expiry {
            Some((known, next)) if known == at => next,
            Some(_) | None => upkeep.expiry.insert((at, next_expiry(world))).1,
        };
        let now = Timestamp::now();
        if next.is_some_and(|next| next <= now) {
            outcomes.push(self.expire_clients(now).await);
        }
        let over = match upkeep.over {
            Some((known, over)) if known == at => over,
            Some(_) | None => upkeep.over.insert((at, pending::next_over(world))).1,
        };
        if over.is_some_and(|over| over <= now) {
            outcomes.push(self.drop_over(now).await);
        }
        let failed = outcomes.into_iter().find_map(Result::err);
        if let Some(error) = failed.as_ref().filter(|_| !upkeep.failing) {
            let why = error_chain(error);
            tracing::warn!(
                why,
                "cannot store what nodes carry, who has expired or who is dropped; trying on"
            );
        }
        upkeep.failing = failed.is_some();
    }

    /// Drops all hosts that have waited for too long by then.
    async fn drop_over(&self, now: Timestamp) -> Result<(), Error> {
        let drop = move |world: &World, _: &mut CommitContext<'_>| {
            let mut next = world.clone();
            let dropped = pending::drop_over(&mut next, now);
            if dropped.is_empty() {
                return Ok(Proposal::unchanged(()));
            }
            let hosts = count(dropped.len() as u64, "host");
            let why =
                format!("{hosts} waited for {} hours, and nobody approved", PendingNode::LIFE.as_hours());
            Ok(by_itself(next, DROP, why))
        };
        self.change(drop).await
    }

    /// Cuts off all external clients that have expired by then.
    async fn expire_clients(&self, now: Timestamp) -> Result<(), Error> {
        let server = self.plan_info().addresses;
        let expire = move |world: &World, _: &mut CommitContext<'_>| {
            let inventory = reconcile(&world.inventory, &world.snapshot, &server, now);
            let inventory = inventory.map_err(|full| {
                let range = full.range;
                Error::Precondition(format!("range {range} of {} has too few addresses", full.network))
            })?;
            let is_new = |(id, status): &(&NodeId, &std::sync::Arc<ClientStatus>)| {
                status.expired && world.inventory.client(id).is_none_or(|before| !before.expired)
            };
            let expired: Vec<NodeId> = inventory.clients().filter(is_new).map(|(id, _)| id.clone()).collect();
            if expired.is_empty() {
                return Ok(Proposal::unchanged(()));
            }
            Ok(by_itself(World { inventory, ..world.clone() }, EXPIRE, expiry_of(&expired)))
        };
        self.change(expire).await
    }
}

/// A change that the server makes by itself, and why, which history shows.
fn by_itself(next: World, action: &'static str, why: String) -> Proposal<()> {
    tracing::info!(action, "the server has made a revision by itself; `nmplan history` shows why");
    tracing::debug!("{why}");
    let provenance = Some(Provenance { message: Some(Provenance::cut(why)), ..Provenance::default() });
    Proposal::changed(
        (),
        next,
        AuditInfo { actor: SERVER.into(), action, provenance, ..AuditInfo::default() },
    )
}

/// When the next external client expires; nothing: none does.
fn next_expiry(World { snapshot, inventory, .. }: &World) -> Option<Timestamp> {
    let moments = inventory
        .clients()
        .filter(|(_, status)| !status.expired)
        .filter_map(|(id, status)| status.expires(snapshot.named::<ExternalClient>(&id.network, &id.name)?));
    moments.min()
}

/// That external clients have expired, in words: not by name where whoever may know of one may not know of
/// another.
fn expiry_of(clients: &[NodeId]) -> String {
    let networks: BTreeSet<_> = clients.iter().map(|id| &id.network).collect();
    let have = if clients.len() == 1 { "has" } else { "have" };
    if networks.len() > 1 {
        return format!("{} {have} expired", count(clients.len() as u64, "external client"));
    }
    let names: Vec<_> = clients.iter().map(|id| id.name.as_str()).collect();
    format!("{} {have} expired", names.join(", "))
}
