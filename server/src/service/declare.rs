//! The world after a change of the declarations.

use std::collections::BTreeSet;

use jiff::Timestamp;
use schema::api::{Applied, ApplyRequest, Moved};
use schema::decode::decode_body;
use schema::diff::{Action, Change};
use schema::guard::{self, Finding, Guard, Judgement};
use schema::inventory::KeyStatus;
use schema::kinds::Kind;
use schema::plan::{self, Plan};
use schema::snapshot::{Entry, Provenance, ResourceId, Revision};
use schema::source_map::SourceMap;
use schema::subject::Subject;
use schema::value::Value;
use schema::world::{ServerInfo, World};

use super::Caller;
use crate::committer::{AuditInfo, CommitContext, Proposal};
use crate::core::authorize::{Denied, Grant, Role};
use crate::error::Error;
use crate::store::LogEntry;

/// The longest id of an apply, in bytes.
const LONGEST_ID: usize = 128;

/// Checks that a request is complete, and its plan was made for this server.
pub(super) fn check_origin(request: &ApplyRequest, server: &ServerInfo) -> Result<(), Error> {
    let ApplyRequest { apply_id, plan, keys: _, allow: _ } = request;
    if apply_id.is_empty() || apply_id.len() > LONGEST_ID {
        return Err(Error::BadRequest(format!(
            "apply_id must have 1 to {LONGEST_ID} characters, chosen at random"
        )));
    }
    check_form(request)?;
    if plan.format != plan::FORMAT {
        let message = format!(
            "the plan has format {}, but this server reads {}; use the nmplan of the server's version",
            plan.format,
            plan::FORMAT
        );
        return Err(Error::BadRequest(message));
    }
    if plan.digest != plan.digest_now() {
        return Err(Error::BadRequest(
            "the plan was changed after it was made: its digest does not match; plan again".into(),
        ));
    }
    if plan.server.id != server.id || plan.server.epoch != server.epoch {
        let message = "the plan was made for another server, or before a restore; plan again";
        return Err(Error::Precondition(message.into()));
    }
    Ok(())
}

/// Every resource that a request names: whoever sends it must be allowed to know of each.
pub(super) fn named(request: &ApplyRequest) -> impl Iterator<Item = &ResourceId> {
    let ApplyRequest { apply_id: _, plan, keys, allow: _ } = request;
    let changed = plan.changes.iter().map(|change| &change.id);
    changed.chain(plan.base_revisions.keys()).chain(plan.binds.iter().map(|bind| &bind.id)).chain(keys.keys())
}

/// Checks that a request says each thing once, and nothing besides the plan.
fn check_form(request: &ApplyRequest) -> Result<(), Error> {
    let ApplyRequest { apply_id: _, plan, keys, allow: _ } = request;
    let mut changed = BTreeSet::new();
    if let Some(twice) = plan.changes.iter().find(|change| !changed.insert(&change.id)) {
        return Err(Error::BadRequest(format!("the plan changes {} twice; plan again", twice.id)));
    }
    if plan.guard.as_ref().is_some_and(|guard| guard.before == guard.after) {
        return Err(Error::BadRequest("the plan changes the guard to what it is; plan again".into()));
    }
    let new: BTreeSet<&ResourceId> = plan.new_keys().collect();
    if let Some(other) = keys.keys().find(|id| !new.contains(id)) {
        let message =
            format!("there is a verifier for {other}, but the plan does not create that key; plan again");
        return Err(Error::BadRequest(message));
    }
    let Provenance { commit, author, message, dirty: _ } = plan.provenance.as_ref().unwrap_or(&NOWHERE);
    for (what, text) in [("commit", commit), ("author", author), ("message", message)] {
        if text.as_ref().is_some_and(|text| text.len() > Provenance::LONGEST) {
            let longest = Provenance::LONGEST;
            return Err(Error::BadRequest(format!(
                "the {what} of the plan is longer than {longest} bytes; shorten it"
            )));
        }
    }
    Ok(())
}

/// What is known of files outside of any repository.
static NOWHERE: Provenance = Provenance { commit: None, author: None, message: None, dirty: false };

/// Applies a plan.
pub(super) fn apply(
    world: &World,
    context: &mut CommitContext<'_>,
    request: ApplyRequest,
    server: &ServerInfo,
    caller: &Caller,
) -> Result<Proposal<Applied>, Error> {
    let ApplyRequest { apply_id, plan, keys, allow } = request;
    if let Some(revision) = context.applied(&apply_id)? {
        check_same(&plan, context.entry(revision)?, &apply_id)?;
        return Ok(Proposal::unchanged(Applied { revision, already: true }));
    }
    let stale = plan.stale(world);
    if !stale.is_empty() {
        let moved =
            stale.into_iter().map(|(id, revision)| moved(context, id, revision)).collect::<Result<_, _>>()?;
        return Err(Error::Stale(moved));
    }
    check_changes(&plan, world)?;
    check_guard(&plan, world, &caller.grant)?;
    let now = Timestamp::now();
    let outcome = plan.apply(world, server, now).map_err(Error::Rules)?;
    // What the plan says of its effects is not believed.
    let effect = || plan::effect(world, &outcome, server);
    let over = guard::over_limits(&plan.owner(), world, &outcome.snapshot, effect);
    let mut next = World { snapshot: outcome.snapshot, inventory: outcome.inventory, ..world.clone() };
    let allowed = let_through(world, &next, over, server, &allow, &caller.grant)?;
    next.settle_guards(plan.owner(), plan.guard.as_ref(), context.revision());
    check_guard_change(&plan, &next)?;
    for id in plan.new_keys() {
        let missing = || Error::BadRequest(format!("the verifier of the access key {id} is missing"));
        let verifier = *keys.get(id).ok_or_else(missing)?;
        next.inventory.put_key(id.clone(), KeyStatus { verifier, created: now, used: 0 });
    }
    if plan.changes.is_empty() && plan.guard.is_none() {
        return Ok(Proposal::unchanged(Applied { revision: world.revision, already: false }));
    }
    let owner = Some(plan.owner());
    let Plan { digest, provenance, .. } = plan;
    let digest = Some(digest);
    let actor = caller.actor.clone();
    let audit =
        AuditInfo { actor, action: "apply", owner, apply_id: Some(apply_id), digest, provenance, allowed };
    Ok(Proposal::changed(Applied { revision: context.revision(), already: false }, next, audit))
}

/// The rules that a change breaks and is let through, `over` among them; an error if there is one that it is not.
fn let_through(
    world: &World,
    after: &World,
    over: Vec<Finding>,
    server: &ServerInfo,
    allow: &BTreeSet<Guard>,
    grant: &Grant,
) -> Result<BTreeSet<Guard>, Error> {
    let mut findings = guard::check(&world.snapshot, after.parts(), &server.addresses, &SourceMap::default());
    findings.extend(over);
    let Judgement { refused, used, .. } = guard::judge(findings, allow);
    if !refused.is_empty() {
        return Err(Error::Guarded(refused));
    }
    if used.iter().any(Guard::needs_admin) {
        grant.holds_role(Role::Admin)?;
    }
    Ok(used)
}

/// An id that was used belongs to one plan for good.
fn check_same(plan: &Plan, entry: Option<LogEntry>, apply_id: &str) -> Result<(), Error> {
    match entry.and_then(|entry| entry.digest) {
        Some(digest) if digest == plan.digest => Ok(()),
        Some(_) | None => {
            Err(Error::BadRequest(format!("the apply_id {apply_id:?} was used for another plan")))
        }
    }
}

/// Checks that a plan names the revision of whatever it changes, is right about what it does to it, and
/// changes only what its project and env manage. Plans of nmplan do; the digest alone would not stop another
/// program.
fn check_changes(plan: &Plan, world: &World) -> Result<(), Error> {
    for Change { id, action, after, .. } in &plan.changes {
        let there = world.snapshot.entry(id);
        let does = match action {
            Action::Create => there.is_none() && after.is_some(),
            Action::Update => there.is_some() && after.is_some(),
            Action::Delete => there.is_some() && after.is_none(),
        };
        if !does || !plan.base_revisions.contains_key(id) {
            return Err(Error::BadRequest(format!(
                "the plan does not describe its change of {id} correctly; plan again"
            )));
        }
        if there.is_some_and(|entry| entry.owner.as_ref() != Some(&plan.owner())) {
            return Err(Error::BadRequest(format!("{id} is not managed by {}", plan.owner())));
        }
    }
    Ok(())
}

/// Checks that the caller may change the guard of the plan's project, if the plan does: it is about all that the
/// project manages.
fn check_guard(plan: &Plan, world: &World, grant: &Grant) -> Result<(), Error> {
    let owner = plan.owner();
    let all = || world.snapshot.managed_by(&owner).all(|(id, _)| grant.holds_in(&id.network).is_ok());
    if plan.guard.is_none() || grant.networks.is_none() || all() {
        Ok(())
    } else {
        Err(Denied::Guard(owner).into())
    }
}

/// Checks that a plan is right about what becomes of the guard: a project that manages nothing afterwards has none,
/// so that a plan of one would make a revision in which nothing changes.
fn check_guard_change(plan: &Plan, next: &World) -> Result<(), Error> {
    let Some(change) = &plan.guard else { return Ok(()) };
    let owner = plan.owner();
    if next.guards.of(&owner).map(|guard| &guard.limits) == change.after.as_ref() {
        return Ok(());
    }
    Err(Error::BadRequest(format!(
        "the plan does not describe its change of the guard of {owner} correctly: a project that manages nothing has none; plan again"
    )))
}

fn moved(context: &mut CommitContext<'_>, id: Subject, revision: Revision) -> Result<Moved, Error> {
    // A node is bound to what is newest, which may be a change of something else that is no business of the
    // caller.
    let concerns = |entry: &LogEntry| match &id {
        Subject::Resource(id) => {
            entry.changes.iter().any(|change| change.id == *id) || entry.nodes.contains(&id.node())
        }
        Subject::Guard(owner) => entry.guards.contains_key(owner),
    };
    let entry = context.entry(revision)?.filter(concerns);
    let (actor, time) = entry.map(|entry| (entry.actor, entry.time)).unzip();
    Ok(Moved { id, revision, actor, time })
}

/// Creates or replaces a resource, or deletes it if there is no body, provided that it is at the expected
/// revision.
pub(super) fn put(
    world: &World,
    context: &CommitContext<'_>,
    id: &ResourceId,
    body: Option<&Value>,
    expected: Option<Revision>,
    server: &ServerInfo,
    actor: String,
) -> Result<Proposal<Revision>, Error> {
    let there = world.snapshot.entry(id).cloned();
    let at = there.as_ref().map(|entry| entry.revision);
    if at != expected {
        let now = at.map_or("does not exist".to_owned(), |at| format!("is at revision {at}"));
        return Err(Error::Precondition(format!("{id} {now}; read it again")));
    }
    let mut snapshot = world.snapshot.clone();
    match body {
        Some(_) if id.kind == Kind::AccessKey && expected.is_none() => {
            return Err(Error::BadRequest(
                "access keys can be created only by nmplan, which generates their secrets".into(),
            ));
        }
        Some(body) => {
            let entry = decode_body(id, body).map_err(Error::Rules)?;
            let owner = there.and_then(|entry| entry.owner);
            snapshot.put(id.clone(), Entry { revision: context.revision(), owner, ..entry });
        }
        None => drop(snapshot.delete(id)),
    }
    let inventory = plan::check_and_reconcile(
        &snapshot,
        &world.inventory,
        &SourceMap::default(),
        server,
        Timestamp::now(),
    );
    let inventory = inventory.map_err(Error::Rules)?;
    let mut next = World { snapshot, inventory, ..world.clone() };
    let_through(world, &next, Vec::new(), server, &BTreeSet::new(), &Grant::admin())?;
    next.guards.settle(&next.snapshot);
    let action = if body.is_some() { "put" } else { "delete" };
    let audit = AuditInfo { actor, action, ..AuditInfo::default() };
    Ok(Proposal::changed(context.revision(), next, audit))
}
