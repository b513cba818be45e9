//! A DNS entry: a name of the network that is no node.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use schema_derive::Describe;

use super::Node;
use crate::attribute::Ref;
use crate::report::{Code, Problem, did_you_mean};
use crate::rules::{Findings, Rules};
use crate::scalars::{DomainName, Name, NetworkName, Seconds};
use crate::snapshot::{ResourceId, Snapshot};

/// How many entries an alias may lead through: resolvers follow no more (RFC 1034, section 3.6.2, has them follow chains and tell loops).
const LONGEST_CHAIN: usize = 16;

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
    /// How long resolvers may remember it. Names in /etc/hosts are replaced as they change, and have no such time.
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
        let suggest = findings.may_suggest();
        let nodes = world.all_in::<Node>(network).map(|(id, _)| &id.name);
        let names = nodes.chain(world.all_in::<Dns>(network).map(|(id, _)| &id.name)).filter(|name| **name != id.name);
        let names = names.filter(|_| suggest);
        let known: Vec<_> = names.map(|name| format!("{name}.{network}")).collect();
        let message = format!("{id} leads to {target}.{network}, but network {network} has no name {:?}", target.as_str());
        let help = did_you_mean(&format!("{target}.{network}"), known.iter().map(String::as_str));
        let help = help.unwrap_or_else(|| format!("declare a node or a dns entry {:?}", target.as_str()));
        findings.push(Problem::new(Code::DnsUnknownName, message).help(help), Some("cname"));
        return;
    }
    match follow(id, target, world) {
        Way::Ends => {}
        Way::Long => {
            let message = format!("{id} leads through more than {LONGEST_CHAIN} other entries");
            let help = "let it lead to where the last of them leads".to_owned();
            findings.push(Problem::new(Code::DnsChain, message).help(help), Some("cname"));
        }
        // Each circle is told once, at the first of its entries.
        Way::Back(circle) if circle.iter().min() == Some(&id.name) => tell_circle(id, &circle, findings),
        Way::Back(_) => {}
    }
}

fn tell_circle(id: &ResourceId, circle: &[Name], findings: &mut Findings<'_>) {
    let way: Vec<_> = circle.iter().chain([&id.name]).map(Name::as_str).collect();
    let mut problem = Problem::new(Code::DnsLoop, format!("{id} leads back to itself: {}", way.join(" -> ")));
    for name in &circle[1..] {
        let at = findings.location(&ResourceId::of::<Dns>(&id.network, name), Some("cname"));
        problem = problem.see(at, "and on from here");
    }
    let help = "let one of them end at a node, an address or a name outside of the network";
    findings.push(problem.help(help.to_owned()), Some("cname"));
}

/// Where the aliases lead that begin at an entry.
enum Way {
    /// To something that is no alias inside the network; or into a circle that others form, who are told of it.
    Ends,
    /// Through these entries back to the first.
    Back(Vec<Name>),
    /// Through more entries than resolvers follow.
    Long,
}

fn follow(id: &ResourceId, target: &Name, world: &Snapshot) -> Way {
    let (mut way, mut at) = (vec![id.name.clone()], target.clone());
    while at != id.name {
        let next = world.named::<Dns>(&id.network, &at).and_then(|dns| dns.inner_cname(&id.network));
        let Some(next) = next.filter(|_| !way.contains(&at)) else { return Way::Ends };
        if way.len() > LONGEST_CHAIN {
            return Way::Long;
        }
        way.push(std::mem::replace(&mut at, next));
    }
    Way::Back(way)
}
