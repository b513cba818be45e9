//! What the host forwards for its networks: found out, turned on, and put back.
//!
//! It belongs to all networks of the agent, like routes and rules (see [`outside`](super::outside)), and
//! changes under the same lock. What was there before is stored before it is changed, so that a process that
//! starts after another one was killed puts it back as well.

use std::collections::BTreeMap;

use schema::inventory::NodeProblem;
use schema::scalars::NetworkName;
use schema::view::View;

use super::{Agent, error_chain};
use crate::directory::DirectoryError;
use crate::forwarding::{Changed, Key, Needs, Plan, plan};
use crate::gateways::{self, Surroundings};
use crate::membership::Membership;
use crate::outside::Outside;
use crate::system::forwarding::{ForwardingError, lifetime};
use crate::system::rp_filter::MarksUnheeded;
use crate::tunnel::TunnelError;

/// What the agent's networks need of the host besides their tunnels.
pub(super) struct Needed {
    /// What they need outside of them.
    pub(super) outside: Outside,
    /// From where the host has to forward.
    pub(super) needs: Needs,
    /// What is wrong with what the network in hand forwards to.
    pub(super) problems: Vec<NodeProblem>,
}

impl Agent {
    /// What the agent's networks need: those on the disk, with one as it is in hand, and without one. Of a
    /// network that cannot be read, what stands for it is needed still.
    pub(super) async fn needed(
        &self,
        own: Option<&Membership>,
        without: Option<&NetworkName>,
    ) -> Result<Needed, TunnelError> {
        let (others, unread) = self.others(own, without)?;
        let mut all: Vec<&Membership> = others.iter().chain(own).collect();
        all.sort_by(|one, other| one.network.cmp(&other.network));
        let mut outside =
            Outside::of(all.iter().map(|membership| (&*membership.interface, &membership.view)));
        outside.unread = unread;
        let marks = !outside.interfaces.is_empty();
        let mut needs = Needs { networks: outside.interfaces.clone(), marks, ..Needs::default() };
        let mut problems = Vec::new();
        for membership in all {
            let View { network, interface, forwards, .. } = &membership.view;
            let has_ipv6 = interface.addresses.iter().any(|address| address.addr().is_ipv6());
            needs.ipv6_of_networks |= interface.forward && has_ipv6;
            needs.connections_return |= !forwards.is_empty();
            for (egress, forward) in forwards {
                let (ways, problem) =
                    gateways::ways(network, egress, forward, &self.surroundings(forward).await?);
                ways.add_to(&mut needs);
                outside.exits.extend(ways.everything);
                outside.reached.extend(ways.ranges);
                problems.extend(problem.filter(|_| own.is_some_and(|own| own.network == *network)));
            }
        }
        let changed = self.directory.forwarding(&lifetime())?;
        if unread {
            needs.keep(&changed);
        }
        if !needs.is_nothing() || !changed.is_empty() {
            let found = self.host.switches();
            outside.opened = plan(&needs, &found, &changed).before.opened(&found);
        }
        Ok(Needed { outside, needs, problems })
    }

    /// What the host is connected to, as far as an egress depends on it.
    async fn surroundings(&self, forward: &schema::view::Forward) -> Result<Surroundings, TunnelError> {
        let mark = self.settings.mark;
        let mut exits = BTreeMap::new();
        for to in gateways::questions(forward) {
            exits.insert(to, self.host.way_out(to, mark).await?);
        }
        Ok(Surroundings { carriers: self.host.carriers().await?, exits })
    }

    /// Has the host forward from where it has to, and puts back what was turned on and need not be. Returns what
    /// is wrong then.
    pub(super) fn forward(&self, needs: &Needs) -> Option<NodeProblem> {
        match self.try_forward(needs) {
            // The host carries nothing.
            Err(error) => Some(NodeProblem::new(NodeProblem::FORWARDING, error_chain(&error))),
            Ok(strict) => strict.map(|error| {
                let message = format!(
                    "TCP connections that went on through another gateway break when this one carries again: {}",
                    error_chain(&error)
                );
                NodeProblem::new(NodeProblem::STRICT_CONNECTIONS, message)
            }),
        }
    }

    /// Has the kernel look at marks. Returns why it does not, where that matters; what it did before need not be
    /// stored, since that it goes on doing so harms nothing.
    pub(super) fn heed_marks(&self) -> Result<Option<MarksUnheeded>, DirectoryError> {
        let (lifetime, found) = (lifetime(), self.host.switches());
        let changed = self.directory.forwarding(&lifetime)?;
        let mut needs = Needs { marks: true, ..Needs::default() };
        needs.keep(&changed);
        let before = plan(&needs, &found, &changed).before;
        let keep = |now: &Changed| {
            if let Err(error) = self.directory.keep_forwarding(&lifetime, now) {
                tracing::warn!(
                    error = error_chain(&error),
                    "src_valid_mark is not put back after the last network"
                );
            }
        };
        if before != changed {
            keep(&before);
        }
        let unheeded = self.host.heed_marks().err();
        // What could not be set is set by the operator, and stays.
        if before != changed && self.host.switches() == found {
            keep(&changed);
        }
        Ok(unheeded)
    }

    /// What is needed once the agent's rules are gone: marks are looked at while a rule of others asks for one.
    pub(super) async fn without_rules(&self, needs: Needs) -> Result<Needs, TunnelError> {
        let marks = needs.marks || self.host.asks_for_marks().await?;
        Ok(Needs { marks, ..needs })
    }

    /// The same; returns why connections that return are not let through, which nothing else depends on.
    pub(super) fn try_forward(&self, needs: &Needs) -> Result<Option<ForwardingError>, TunnelError> {
        let lifetime = lifetime();
        let changed = self.directory.forwarding(&lifetime)?;
        if needs.is_nothing() && changed.is_empty() {
            return Ok(None);
        }
        let Plan { before, sets, after } = plan(needs, &self.host.switches(), &changed);
        let keep = |was: &Changed, now: &Changed| {
            if was == now { Ok(()) } else { self.directory.keep_forwarding(&lifetime, now) }
        };
        keep(&changed, &before)?;
        let mut strict = None;
        for (switch, value) in &sets {
            tracing::info!(%switch, value, "forwarding of the host");
            match self.host.set_switch(switch, *value) {
                Err(error) if switch.key == Key::Liberal => strict = Some(error),
                outcome => outcome?,
            }
        }
        keep(&before, &after)?;
        Ok(strict)
    }
}
