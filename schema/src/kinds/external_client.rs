//! An external client: a host with WireGuard and without an agent.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schema_derive::Describe;

use super::Ingress;
use crate::attribute::Ref;
use crate::rules::{Claim, Findings, Rules};
use crate::scalars::{Expiry, Name, Selector, WireGuardKey};
use crate::snapshot::{ResourceId, Snapshot};

/// A host with WireGuard and without an agent, such as a phone, that is connected to an ingress. `nmplan
/// client conf` writes its configuration.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(
    word = "external-client",
    plural = "external-clients",
    within = "network",
    namespace = "names",
    named_by("selector")
)]
pub struct ExternalClient {
    /// The ingress that it is connected to.
    pub via: Ref<Ingress>,
    /// Its WireGuard key, which `nmplan client conf` writes here. Absent: the client is awaited.
    pub public_key: Option<WireGuardKey>,
    /// The IPv4 address that is reserved for it, in the pool of its ingress or elsewhere in the network. Absent:
    /// it gets the lowest free one, of the pool if there is one, when it is created.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address that is reserved for it, likewise. Absent: it gets the lowest free one, of the pool if
    /// there is one, when it is created.
    pub ipv6: Option<Ipv6Addr>,
    /// Words that selectors find it by, as `tag:WORD`.
    pub tags: BTreeSet<Name>,
    /// All that it may open, whatever rules say of it; empty: nothing. Absent: what the network's rules let
    /// it.
    pub allow_to: Option<BTreeSet<Selector>>,
    /// When it is cut off: a duration after it was created, or a day. Absent: never.
    pub expires: Option<Expiry>,
    /// Whether it is let in. While it is not, its addresses are in quarantine, and it gets them back afterwards
    /// unless they were needed.
    #[field(default = true)]
    pub enabled: bool,
}

impl ExternalClient {
    /// The addresses that are reserved for it.
    pub fn reserved(&self) -> impl Iterator<Item = (&'static str, IpAddr)> {
        let ipv4 = self.ipv4.map(|address| ("ipv4", address.into()));
        ipv4.into_iter().chain(self.ipv6.map(|address| ("ipv6", address.into())))
    }
}

impl Rules for ExternalClient {
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        if let Some(network) = world.network(&id.network) {
            network.check_reserved(id, self.reserved(), findings);
        }
    }

    fn claims(&self) -> Vec<(&'static str, Claim)> {
        self.reserved().map(|(field, address)| (field, Claim::Reserved(address))).collect()
    }

    fn tags_given(&self) -> Option<&BTreeSet<Name>> {
        Some(&self.tags)
    }
}
