//! The operations about hosts that ask to join without an access key: they wait until somebody lets them in.

use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Instant;

use jiff::Timestamp;
use netclient::device::boottime;
use proto::sign;
use proto::wire;
use schema::api::{Approved, Control};
use schema::inventory::{Barred, NodeId};
use schema::kinds::Node;
use schema::scalars::{Fingerprint, Name, NetworkName};
use schema::snapshot::{ResourceId, Revision};
use schema::world::{ServerInfo, World};

use super::agents::name_of;
use super::{Caller, Service, owner};
use crate::committer::{AuditInfo, CommitContext, Proposal};
use crate::core::pending::{self, Applicant, Standing};
use crate::error::Error;
use crate::store::{ASK, DROP};

impl Service {
    /// Who the server is, for a host that knows the fingerprint of its signing key.
    pub fn identify(&self, request: &wire::IdentifyRequest) -> wire::IdentifyResponse {
        sign::sign_identify(request, self.inner.info.ca_pin.as_ref(), self.inner.secrets.signing_key())
    }

    /// Lets a host without an access key in, if a declaration approves it or somebody has; otherwise it waits.
    pub(super) async fn ask(
        &self,
        request: wire::JoinRequest,
        from: Option<IpAddr>,
        transport: Control,
    ) -> Result<wire::JoinResponse, Error> {
        let nonce = self.inner.secrets.nonce(&request.nonce)?;
        let ephemeral = self.inner.secrets.ephemeral(&nonce);
        let bad = |why: String| Error::BadRequest(format!("the network is not valid: {why}"));
        let network: NetworkName = request.network.parse().map_err(bad)?;
        let name = name_of(&request)?;
        sign::verify_join(&request, &self.inner.info.signing_key, &ephemeral, None)?;
        let made = nonce.made;
        self.nonces().spend(nonce, boottime())?;
        let state = self.state();
        let candidate = self.read_candidate(&state.world, &request, (network.clone(), name), from)?;
        let identity = candidate.identity;
        let seen = from.map(|from| from.to_canonical());
        let applicant = Applicant { candidate, seen, waits: request.waits };
        let standing = self.stand(&state.world, applicant, made).await?;
        Ok(match standing {
            Standing::In(admitted) => {
                let update = self.welcome(network, &admitted.name, &identity, transport)?;
                wire::JoinResponse { name: admitted.name.to_string(), update: Some(update), waiting: None }
            }
            Standing::Waits(until) => {
                let left = until.duration_since(Timestamp::now()).as_secs().max(1);
                self.waiting(u32::try_from(left).unwrap_or(u32::MAX), &request)
            }
            Standing::Dropped => self.waiting(0, &request),
        })
    }

    /// What becomes of a host that asks; `made`: a time before which it has not signed that.
    async fn stand(
        &self,
        world: &World,
        applicant: Applicant,
        made: std::time::Duration,
    ) -> Result<Standing, Error> {
        let server = self.plan_info();
        // Whoever waits asks again and again: that needs no turn at the one writer.
        let mut next = world.clone();
        let standing = pending::ask(&mut next, applicant.clone(), &server, || true, Timestamp::now())?;
        if next.inventory == world.inventory {
            return Ok(standing);
        }
        let service = self.clone();
        let ask = move |world: &World, _: &mut CommitContext<'_>| {
            let (network, identity) = (&applicant.candidate.network, applicant.candidate.identity);
            service.nonces().may_join(network, identity, made)?;
            service.carry_out(world, applicant, &server)
        };
        self.change(ask).await
    }

    fn carry_out(
        &self,
        world: &World,
        applicant: Applicant,
        server: &ServerInfo,
    ) -> Result<Proposal<Standing>, Error> {
        let (network, asked) = (applicant.candidate.network.clone(), applicant.candidate.name.clone());
        let may_begin = || {
            let mut begun = self.inner.asked.lock().unwrap_or_else(PoisonError::into_inner);
            begun.may_begin(&network, Instant::now())
        };
        let mut next = world.clone();
        let standing = pending::ask(&mut next, applicant, server, may_begin, Timestamp::now())?;
        if next.inventory == world.inventory {
            return Ok(Proposal::unchanged(standing));
        }
        let (actor, action) = match &standing {
            Standing::In(admitted) => (format!("node {}", admitted.name), "join"),
            Standing::Waits(_) | Standing::Dropped => (format!("host {asked}"), ASK),
        };
        Ok(Proposal::changed(standing, next, AuditInfo { actor, action, ..AuditInfo::default() }))
    }

    fn waiting(&self, left: u32, request: &wire::JoinRequest) -> wire::JoinResponse {
        let waiting = sign::sign_waiting(left, request, self.inner.secrets.signing_key());
        wire::JoinResponse { waiting: Some(waiting), ..wire::JoinResponse::default() }
    }

    /// Lets a host in that waits, as the node of a name.
    pub async fn approve(
        &self,
        caller: &Caller,
        network: NetworkName,
        fingerprint: Fingerprint,
        name: Name,
    ) -> Result<Approved, Error> {
        caller.grant.holds_in(&network)?;
        self.list_own_addresses().await;
        let (Caller { actor, grant }, server) = (caller.clone(), self.plan_info());
        let approve = move |world: &World, context: &mut CommitContext<'_>| {
            let declaration = ResourceId::of::<Node>(&network, &name);
            grant.holds_over(&declaration, owner(world, &declaration))?;
            let mut next = world.clone();
            let admitted =
                pending::approve(&mut next, &network, fingerprint, &name, &server, Timestamp::now());
            admitted.ok_or_else(|| nobody(world, &network, fingerprint))??;
            let joined = next.inventory.node(&NodeId::of(&network, &name)).ok_or(Error::Bug)?;
            let (addresses, identity) = (joined.addresses.clone(), joined.identity);
            let answer = Approved { revision: context.revision(), name, addresses, identity };
            let audit = AuditInfo { actor, action: "approve", ..AuditInfo::default() };
            Ok(Proposal::changed(answer, next, audit))
        };
        self.change(approve).await
    }

    /// Drops a host that waits; `ban`: it may not ask again either.
    pub async fn drop_pending(
        &self,
        caller: &Caller,
        network: NetworkName,
        fingerprint: Fingerprint,
        ban: bool,
    ) -> Result<Revision, Error> {
        caller.grant.holds_in(&network)?;
        let Caller { actor, grant } = caller.clone();
        let drop = move |world: &World, context: &mut CommitContext<'_>| {
            let mut next = world.clone();
            let (identity, pending) = pending::drop_by(&mut next, &network, fingerprint)
                .ok_or_else(|| nobody(world, &network, fingerprint))?;
            let declaration = ResourceId::of::<Node>(&network, &pending.name);
            grant.holds_over(&declaration, owner(world, &declaration))?;
            if ban {
                let barred = Barred { since: Timestamp::now(), node: pending.name };
                next.inventory.bar(network, identity, barred);
            }
            let action = if ban { "ban" } else { DROP };
            let audit = AuditInfo { actor, action, ..AuditInfo::default() };
            Ok(Proposal::changed(context.revision(), next, audit))
        };
        self.change(drop).await
    }
}

/// Why there is nobody to let in or drop.
fn nobody(world: &World, network: &NetworkName, fingerprint: Fingerprint) -> Error {
    let mut nodes = world.inventory.nodes_in(network);
    match nodes.find(|(_, joined)| joined.identity.fingerprint() == fingerprint) {
        Some((name, _)) => {
            let message = format!("the host {fingerprint} has joined {network} as {name} already");
            Error::Precondition(message)
        }
        None => Error::NotFound(format!("host with the fingerprint {fingerprint} that waits for {network}")),
    }
}
