//! A server in memory: it carries out plans as nmserver does, without a network, and fails on request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use schema::api::{
    Applied, ApplyRequest, Approved, Committed, Failure, Finding, LogEntry, Moved, NodeStatus, Removed,
    StatusDocument, egress_states, key_states, relay_states,
};
use schema::compile::admission::{self, Newcomer};
use schema::compile::allocate::ReservedAddresses;
use schema::decode::decode_body;
use schema::guard::{self, Judgement};
use schema::inventory::{Barred, KeyStatus, NodeId};
use schema::kinds::AccessKey;
use schema::limits::{Limits, StoredGuard};
use schema::report::Report;
use schema::scalars::{CaPin, Fingerprint, Identity, Limit, Name, NetworkName, SigningKey, Verifier};
use schema::snapshot::{Entry, ResourceId, Revision};
use schema::source_map::SourceMap;
use schema::subject::Subject;
use schema::world::{ServerInfo, World, WorldDocument};

use super::{ControlError, ControlPlane};
use crate::interrupt::Interrupts;

/// A server in memory. Clones are the same server.
#[derive(Clone, Default)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    info: ServerInfo,
    world: World,
    log: Vec<LogEntry>,
    faults: Vec<Fault>,
    nodes: Vec<NodeStatus>,
    called_at: Vec<IpAddr>,
    interrupts: Interrupts,
}

/// A failure of the next apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is lost.
    LostRequest,
    /// It is carried out, and the answer is lost.
    LostAnswer,
    /// It is carried out, and the run is interrupted before the answer arrives.
    Interrupted,
    /// It is carried out and answered, and the run is interrupted then.
    InterruptedLater,
    /// It arrives, and the server refuses it.
    Refusal,
    /// It arrives, and the server cannot store anything.
    FullDisk,
    /// Somebody else changes one of its resources a moment before.
    Race,
    /// The server gets the address 192.0.2.11 a moment before.
    Moved,
    /// Somebody else stores a guard of its project that allows nothing a moment before.
    Limited,
}

impl Memory {
    /// A server that has this world.
    pub fn of(world: World) -> Self {
        let memory = Self::default();
        memory.inner().world = world;
        memory
    }

    /// What it has.
    pub fn state(&self) -> World {
        self.inner().world.clone()
    }

    /// Changes its world as if another client had.
    pub fn change_elsewhere(&self, change: impl FnOnce(&mut World)) {
        let mut inner = self.inner();
        inner.world.revision.0 += 1;
        change(&mut inner.world);
        let entry = LogEntry { actor: "mallory".into(), action: "put".into(), ..entry(inner.world.revision) };
        inner.log.push(entry);
    }

    /// Changes every entry of its log.
    pub fn change_log(&self, change: impl FnMut(&mut LogEntry)) {
        self.inner().log.iter_mut().for_each(change);
    }

    /// Changes what it reports of itself.
    pub fn set_info(&self, change: impl FnOnce(&mut ServerInfo)) {
        change(&mut self.inner().info);
    }

    /// Makes the next applies fail, in this order.
    pub fn fail(&self, faults: &[Fault]) {
        self.inner().faults = faults.iter().rev().copied().collect();
    }

    /// Changes the addresses by which it is called.
    pub fn set_called_at(&self, addresses: &[IpAddr]) {
        self.inner().called_at = addresses.to_vec();
    }

    /// Sets what a fault interrupts.
    pub fn set_interrupts(&self, interrupts: &Interrupts) {
        self.inner().interrupts = interrupts.clone();
    }

    /// Sets the state of the nodes.
    pub fn set_nodes(&self, nodes: Vec<NodeStatus>) {
        self.inner().nodes = nodes;
    }

    /// What was done, oldest first.
    pub fn log(&self) -> Vec<LogEntry> {
        self.inner().log.clone()
    }

    fn apply_and_interrupt(&self, request: &ApplyRequest) -> Result<(), ControlError> {
        let mut inner = self.inner();
        inner.apply(request)?;
        inner.interrupts.interrupt();
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The description of the server in memory, unless a test changes it.
fn info() -> ServerInfo {
    ServerInfo {
        id: "server-in-memory".into(),
        epoch: 0,
        agent_addresses: vec!["192.0.2.1:50051".into()],
        signing_key: SigningKey([1; 32]),
        ca_pin: Some(CaPin([2; 32])),
        version: env!("CARGO_PKG_VERSION").into(),
        comms_range: None,
        own_node: None,
        addresses: Vec::new(),
    }
}

fn entry(revision: Revision) -> LogEntry {
    LogEntry {
        revision,
        time: Timestamp::UNIX_EPOCH,
        actor: "tester".into(),
        action: "apply".into(),
        owner: None,
        apply_id: None,
        digest: None,
        provenance: None,
        allowed: BTreeSet::new(),
        changes: Vec::new(),
        guards: BTreeMap::new(),
        nodes: Vec::new(),
        hash: None,
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            info: info(),
            world: World::default(),
            log: Vec::new(),
            faults: Vec::new(),
            nodes: Vec::new(),
            called_at: Vec::new(),
            interrupts: Interrupts::default(),
        }
    }
}

impl Inner {
    /// The server's description, in the epoch of its world.
    fn info(&self) -> ServerInfo {
        ServerInfo { epoch: self.world.epoch, ..self.info.clone() }
    }

    fn apply(&mut self, request: &ApplyRequest) -> Result<Applied, ControlError> {
        let ApplyRequest { apply_id, plan, keys, allow } = request;
        if let Some(done) = self.log.iter().find(|entry| entry.apply_id.as_ref() == Some(apply_id)) {
            return Ok(Applied { revision: done.revision, already: true });
        }
        let stale = plan.stale(&self.world);
        if !stale.is_empty() {
            let failure = failure(412, "stale", "the plan is stale");
            return Err(refused(Failure {
                moved: stale.into_iter().map(|moved| self.moved(moved)).collect(),
                ..failure
            }));
        }
        let outcome = plan.apply(&self.world, &self.info, Timestamp::now());
        let outcome = outcome.map_err(|report| broken_rule("rules", &report))?;
        let mut findings = guard::check(
            &self.world.snapshot,
            (&outcome.snapshot, &outcome.inventory),
            &self.info.addresses,
            &SourceMap::default(),
        );
        let effect = || schema::plan::effect(&self.world, &outcome, &self.info);
        findings.extend(guard::over_limits(&plan.owner(), &self.world, &outcome.snapshot, effect));
        let Judgement { refused: broken, used: allowed, .. } = guard::judge(findings, allow);
        if !broken.is_empty() {
            return Err(broken_rule("guarded", &broken));
        }
        self.world.revision.0 += 1;
        let before = self.world.guards.clone();
        (self.world.snapshot, self.world.inventory) = (outcome.snapshot, outcome.inventory);
        self.world.settle_guards(plan.owner(), plan.guard.as_ref(), self.world.revision);
        self.keep(plan.new_keys(), keys)?;
        let owner = Some(plan.owner());
        let digest = Some(plan.digest.clone());
        let apply_id = Some(apply_id.clone());
        let changes = plan.changes.clone();
        let provenance = plan.provenance.clone();
        self.log.push(LogEntry {
            owner,
            digest,
            apply_id,
            changes,
            guards: before.changes(&self.world.guards),
            provenance,
            allowed,
            ..entry(self.world.revision)
        });
        Ok(Applied { revision: self.world.revision, already: false })
    }

    /// Makes a revision of a change of one node.
    fn record(&mut self, action: &str, node: &NodeId) -> Revision {
        self.world.revision.0 += 1;
        let revision = self.world.revision;
        self.log.push(LogEntry { action: action.into(), nodes: vec![node.clone()], ..entry(revision) });
        revision
    }

    /// Changes the first resource that a plan changes.
    fn race(&mut self, request: &ApplyRequest) {
        let Some(change) = request.plan.changes.first() else { return };
        self.world.revision.0 += 1;
        let revision = self.world.revision;
        self.log.push(LogEntry { actor: "mallory".into(), action: "put".into(), ..entry(revision) });
        let made = change.after.as_ref().and_then(|body| decode_body(&change.id, body).ok());
        if let Some(found) = self.world.snapshot.entry(&change.id).cloned().or(made) {
            self.world.snapshot.put(change.id.clone(), Entry { revision, ..found });
        }
    }

    fn keep<'a>(
        &mut self,
        made: impl Iterator<Item = &'a ResourceId>,
        keys: &BTreeMap<ResourceId, Verifier>,
    ) -> Result<(), ControlError> {
        for id in made {
            let missing = || refused(failure(400, "bad_request", "the verifier of a key is missing"));
            let verifier = *keys.get(id).ok_or_else(missing)?;
            let status = KeyStatus { verifier, created: Timestamp::now(), used: 0 };
            self.world.inventory.put_key(id.clone(), status);
        }
        Ok(())
    }

    fn moved(&self, (id, revision): (Subject, Revision)) -> Moved {
        let entry = self.log.iter().find(|entry| entry.revision == revision);
        let (actor, time) = entry.map(|entry| (entry.actor.clone(), entry.time)).unzip();
        Moved { id, revision, actor, time }
    }
}

fn failure(status: u16, code: &str, detail: &str) -> Failure {
    Failure {
        kind: "about:blank".into(),
        title: code.into(),
        status,
        code: code.into(),
        detail: detail.into(),
        problems: Vec::new(),
        moved: Vec::new(),
    }
}

fn broken_rule(code: &str, report: &Report) -> ControlError {
    let finding = |problem: &schema::report::Problem| Finding {
        code: problem.code.name().into(),
        id: problem.id.clone(),
        message: problem.message.clone(),
        help: problem.help.clone(),
    };
    let problems = report.problems().map(finding).collect();
    refused(Failure { problems, ..failure(422, code, "the result would break a rule") })
}

fn refused(failure: Failure) -> ControlError {
    ControlError::Refused { server: "memory".into(), failure: Box::new(failure) }
}

fn broken() -> ControlError {
    ControlError::Broken { server: "memory".into(), proxy: None, source: None }
}

impl ControlPlane for Memory {
    fn name(&self) -> &str {
        "https://nm.example.net"
    }

    fn backoff(&self) -> &[Duration] {
        &[Duration::ZERO; 4]
    }

    async fn addresses(&self) -> Vec<IpAddr> {
        self.inner().called_at.clone()
    }

    async fn world(&self) -> Result<WorldDocument, ControlError> {
        let inner = self.inner();
        Ok(inner.world.document(inner.info()))
    }

    async fn apply(&self, request: &ApplyRequest) -> Result<Applied, ControlError> {
        let fault = self.inner().faults.pop();
        if fault == Some(Fault::Interrupted) {
            self.apply_and_interrupt(request)?;
            return std::future::pending().await;
        }
        let mut inner = self.inner();
        match fault {
            None => inner.apply(request),
            Some(Fault::LostRequest) => Err(broken()),
            Some(Fault::Interrupted) => unreachable!("it is handled above"),
            Some(Fault::InterruptedLater) => {
                inner.interrupts.interrupt();
                inner.apply(request)
            }
            Some(Fault::LostAnswer) => inner.apply(request).and(Err(broken())),
            Some(Fault::Race) => {
                inner.race(request);
                inner.apply(request)
            }
            Some(Fault::Moved) => {
                inner.info.addresses = vec![IpAddr::from([192, 0, 2, 11])];
                inner.apply(request)
            }
            Some(Fault::Limited) => {
                let nothing: Option<Limit> = "0".parse().ok();
                let limits =
                    Limits { max_delete: nothing, max_nodes_changed: nothing, max_reach_lost: nothing };
                let revision = inner.world.revision;
                inner.world.guards.put(request.plan.owner(), StoredGuard { revision, limits });
                inner.apply(request)
            }
            Some(Fault::FullDisk) => {
                let detail = "the server cannot use its database, so nothing was changed; its disk is full: free some space";
                Err(refused(failure(503, "database", detail)))
            }
            Some(Fault::Refusal) => Err(refused(failure(403, "denied", "this needs the role applier"))),
        }
    }

    async fn status(&self) -> Result<StatusDocument, ControlError> {
        let inner = self.inner();
        Ok(StatusDocument {
            epoch: inner.world.epoch,
            revision: inner.world.revision,
            nodes: inner.nodes.clone(),
            keys: key_states(&inner.world.snapshot, &inner.world.inventory, Timestamp::now()),
            egress: egress_states(&inner.world.snapshot, &inner.world.inventory),
            relays: relay_states(&inner.world.snapshot, &inner.world.inventory),
        })
    }

    async fn remove_node(
        &self,
        node: &NodeId,
        ban: bool,
        identity: &Identity,
    ) -> Result<Removed, ControlError> {
        let mut inner = self.inner();
        let joined = inner.world.inventory.node(node).cloned().filter(|joined| joined.identity == *identity);
        let joined =
            joined.ok_or_else(|| refused(failure(412, "precondition", "another host has joined since")))?;
        inner.world.inventory.remove_node(node, Timestamp::UNIX_EPOCH);
        if ban {
            let barred = Barred { since: Timestamp::UNIX_EPOCH, node: node.name.clone() };
            inner.world.inventory.bar(node.network.clone(), *identity, barred);
        }
        let key = joined.key.as_ref().filter(|_| !ban);
        let admits = key.map(|key| ResourceId::of::<AccessKey>(&node.network, key));
        let next = admits.as_ref().map(|key| format!("the host can join again with the token of {key}"));
        let revision = inner.record(if ban { "ban" } else { "remove" }, node);
        Ok(Removed { revision, identity: *identity, barred: ban, admits, next })
    }

    async fn lift_ban(&self, node: &NodeId) -> Result<Committed, ControlError> {
        let mut inner = self.inner();
        let barred = inner.world.inventory.barred();
        let found =
            barred.filter(|((network, _), barred)| *network == node.network && barred.node == node.name);
        let found: Vec<_> = found.map(|(place, _)| place.clone()).collect();
        if found.is_empty() {
            return Err(refused(failure(404, "not_found", "there is no host that was barred as that node")));
        }
        found.iter().for_each(|(network, identity)| inner.world.inventory.end_bar(network, identity));
        Ok(Committed { revision: inner.record("lift-ban", node) })
    }

    async fn approve(
        &self,
        network: &NetworkName,
        fingerprint: Fingerprint,
        name: &Name,
    ) -> Result<Approved, ControlError> {
        let mut inner = self.inner();
        let World { snapshot, inventory, .. } = &mut inner.world;
        let nobody = || refused(failure(404, "not_found", "there is no host that waits"));
        let (identity, pending) =
            admission::pending_by(inventory, network, fingerprint).ok_or_else(nobody)?;
        let (identity, newcomer) = (*identity, Newcomer::of_pending(*identity, pending, false));
        let node = NodeId::of(network, name);
        if inventory.node(&node).is_some() {
            return Err(refused(failure(403, "refused", "another host has joined")));
        }
        let reserved = ReservedAddresses::of(network, snapshot, &[]);
        let full = |_| refused(failure(403, "refused", "the range has no free address"));
        admission::admit(inventory, node.clone(), newcomer, snapshot, &reserved, Timestamp::UNIX_EPOCH)
            .map_err(full)?;
        let addresses = inventory.node(&node).map(|joined| joined.addresses.clone()).unwrap_or_default();
        let revision = inner.record("approve", &node);
        Ok(Approved { revision, name: name.clone(), addresses, identity })
    }

    async fn drop_pending(
        &self,
        network: &NetworkName,
        fingerprint: Fingerprint,
        ban: bool,
    ) -> Result<Committed, ControlError> {
        let mut inner = self.inner();
        let inventory = &mut inner.world.inventory;
        let nobody = || refused(failure(404, "not_found", "there is no host that waits"));
        let (identity, pending) =
            admission::pending_by(inventory, network, fingerprint).ok_or_else(nobody)?;
        let (identity, name) = (*identity, pending.name.clone());
        inventory.end_pending(network, &identity);
        if ban {
            inventory.bar(
                network.clone(),
                identity,
                Barred { since: Timestamp::UNIX_EPOCH, node: name.clone() },
            );
        }
        let action = if ban { "ban" } else { "drop" };
        Ok(Committed { revision: inner.record(action, &NodeId::of(network, &name)) })
    }

    async fn revisions(&self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, ControlError> {
        Ok(self.inner().log.iter().filter(|entry| entry.revision > after).take(limit).cloned().collect())
    }
}
