//! A DNS entry: a name of the network that is not a node's.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use schema_derive::Describe;

use super::{Egress, Node};
use super::network::within;
use crate::attribute::Ref;
use crate::report::{Code, Problem};
use crate::rules::{Claim, Findings, Rules};
use crate::scalars::{DomainName, Name, NetworkName, Seconds};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// How many entries an alias may lead through: resolvers follow no more (RFC 1034, section 3.6.2, has them
/// follow chains and detect loops).
const LONGEST_CHAIN: usize = 16;

/// A name that resolves in the network, as NAME.NETWORK: to addresses, to a node, or to another name.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "dns", plural = "dns", within = "network", namespace = "names", named_by("alias"))]
pub struct Dns {
    /// The IPv4 addresses that it resolves to.
    pub a: BTreeSet<Ipv4Addr>,
    /// The IPv6 addresses that it resolves to.
    pub aaaa: BTreeSet<Ipv6Addr>,
    /// The node whose addresses it resolves to, whatever they are; it resolves to nothing until that node has
    /// joined.
    pub node: Option<Ref<Node>>,
    /// The name that it is an alias of: one of this network, written NAME.NETWORK, or any other.
    pub cname: Option<DomainName>,
    /// How long resolvers may cache it, at most `365d`. Names in /etc/hosts are replaced when they change, and
    /// have no TTL.
    #[field(default = Dns::TTL)]
    pub ttl: Seconds,
}

impl Dns {
    /// How long resolvers may cache a name of which nothing else is said; also the names of members.
    pub const TTL: Seconds = Seconds(60);
    /// The longest that they may: much less than the DNS could express (RFC 2181, section 8).
    const LONGEST_TTL: Seconds = Seconds::hours(365 * 24);

    /// The name inside the network that its `cname` ends at, if it does.
    pub fn inner_cname(&self, network: &NetworkName) -> Option<Name> {
        let (name, suffix) = self.cname.as_ref()?.in_network()?;
        (suffix == network.as_str()).then(|| name.parse().ok())?
    }
}

impl Rules for Dns {
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        let addresses = !self.a.is_empty() || !self.aaaa.is_empty();
        match usize::from(addresses) + usize::from(self.node.is_some()) + usize::from(self.cname.is_some()) {
            1 => {}
            0 => {
                let problem = Problem::new(Code::DnsTarget, format!("{id} has no target"));
                findings.push(problem.help("give it `a`, `aaaa`, `node` or `cname`".to_owned()), &[]);
            }
            _ => {
                let message = format!("{id} has several targets, which exclude each other");
                let problem = Problem::new(Code::DnsTarget, message);
                findings.push(problem.help("keep the addresses, or node, or cname".to_owned()), &[]);
            }
        }
        within(findings, "ttl", self.ttl, Seconds(0), Self::LONGEST_TTL);
        if leads_too_far(self, id, world) {
            let message = format!("{id} leads through more than {LONGEST_CHAIN} other entries");
            let help = "let it refer directly to the target of the last entry".to_owned();
            findings.push(Problem::new(Code::DnsChain, message).help(help), &[Step::Field("cname")]);
        }
    }

    fn doubt(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        let Some(network) = world.network(&id.network) else { return };
        let forwarded = world.all_in::<Egress>(&id.network).flat_map(|(_, egress)| egress.ranges.iter());
        // A default route holds every address.
        let forwarded = forwarded.map(|range| range.net()).filter(|range| range.prefix_len() > 0);
        let inside: Vec<IpNet> = network.ranges().chain(forwarded).collect();
        for (field, claim) in self.claims() {
            let Claim::Meant(address) = claim else { continue };
            if !inside.iter().any(|range| range.contains(&address)) {
                let message = format!(
                    "{address} of {id} is in no range of network {} and in none that its gateways forward to, so members reach \
                     it outside of the mesh, if at all",
                    id.network
                );
                let help = "give an address of the network, or `node`; where it is meant, nothing is wrong".to_owned();
                findings.push_at(Problem::new(Code::OutsideEntry, message).help(help), field, &address.to_string());
            }
        }
    }

    fn claims(&self) -> Vec<(&'static str, Claim)> {
        let a = self.a.iter().map(|address| ("a", Claim::Meant(IpAddr::V4(*address))));
        let aaaa = self.aaaa.iter().map(|address| ("aaaa", Claim::Meant(IpAddr::V6(*address))));
        a.chain(aaaa).collect()
    }
}

/// Whether the aliases that begin at an entry lead through more entries than resolvers follow. Cycles are
/// reported by the rules for references.
fn leads_too_far(first: &Dns, id: &ResourceId, world: &Snapshot) -> bool {
    let mut passed = vec![id.name.clone()];
    let mut next = first.inner_cname(&id.network);
    while let Some(name) = next {
        if passed.contains(&name) {
            return false;
        }
        next = world.named::<Dns>(&id.network, &name).and_then(|entry| entry.inner_cname(&id.network));
        passed.push(name);
        if next.is_some() && passed.len() > LONGEST_CHAIN + 1 {
            return true;
        }
    }
    false
}
