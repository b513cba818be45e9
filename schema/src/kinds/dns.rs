//! A DNS entry: a name of the network that is no node.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use schema_derive::Describe;

use super::Node;
use crate::descriptor::Ref;
use crate::report::{Code, Problem, did_you_mean};
use crate::rules::{Findings, Rules};
use crate::scalars::{DomainName, Name, NetworkName, Seconds};
use crate::snapshot::{ResourceId, Snapshot};

/// A name that resolves in the network, as NAME.NETWORK: to addresses, to a node, or to another name.
#[derive(Clone, Debug, PartialEq, Describe)]
#[describe(word = "dns", plural = "dns", within = "network", resolves)]
pub struct Dns {
    /// The IPv4 addresses that it stands for.
    pub a: BTreeSet<Ipv4Addr>,
    /// The IPv6 addresses that it stands for.
    pub aaaa: BTreeSet<Ipv6Addr>,
    /// The node whose addresses it stands for, whatever they are; until that has joined it resolves to nothing.
    pub node: Option<Ref<Node>>,
    /// The name that it stands for: one of this network, written NAME.NETWORK, or any other.
    pub cname: Option<DomainName>,
    /// How long resolvers may remember it.
    #[field(default = Seconds(60))]
    pub ttl: Seconds,
}

impl Dns {
    /// The name inside the network that its `cname` ends at, if it does.
    pub fn inner_cname(&self, network: &NetworkName) -> Option<Name> {
        let (name, suffix) = self.cname.as_ref()?.as_str().rsplit_once('.')?;
        (suffix == network.as_str()).then(|| name.parse().ok())?
    }
}

impl Rules for Dns {
    fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
        let addresses = !self.a.is_empty() || !self.aaaa.is_empty();
        match usize::from(addresses) + usize::from(self.node.is_some()) + usize::from(self.cname.is_some()) {
            1 => {}
            0 => {
                let problem = Problem::new(Code::DnsTarget, format!("{id} leads nowhere"));
                findings.push(problem.help("give it `a`, `aaaa`, `node` or `cname`".to_owned()), None);
            }
            _ => {
                let problem = Problem::new(Code::DnsTarget, format!("{id} has several targets, which exclude each other"));
                findings.push(problem.help("keep the addresses, or node, or cname".to_owned()), None);
            }
        }
        if let Some(target) = self.inner_cname(&id.network) {
            check_cname(id, &target, world, findings);
        }
    }
}

fn check_cname(id: &ResourceId, target: &Name, world: &Snapshot, findings: &mut Findings<'_>) {
    let network = &id.network;
    let entry = |name: &Name| world.named::<Dns>(network, name);
    if world.named::<Node>(network, target).is_none() && entry(target).is_none() {
        let nodes = world.all_in::<Node>(network).map(|(id, _)| id.name.as_str());
        let known: Vec<_> = nodes.chain(world.all_in::<Dns>(network).map(|(id, _)| id.name.as_str())).collect();
        let problem = Problem::new(Code::DnsUnknownName, format!("network {network} has no name {:?}", target.as_str()));
        findings.push(problem.help(did_you_mean(target.as_str(), known)), Some("cname"));
        return;
    }
    let (mut at, mut seen) = (target.clone(), BTreeSet::from([id.name.clone()]));
    while let Some(next) = entry(&at).and_then(|dns| dns.inner_cname(network)) {
        if at == id.name || !seen.insert(at.clone()) {
            break;
        }
        at = next;
    }
    if at == id.name {
        let problem = Problem::new(Code::DnsLoop, format!("{id} leads back to itself"));
        findings.push(problem.help("let one of the entries of the circle end at a node or an address".to_owned()), Some("cname"));
    }
}
