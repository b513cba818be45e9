//! Name servers that members are given and may not ask. Said with every plan: until it is mended, names do not
//! resolve.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Planned;
use crate::access::Protocol;
use crate::inventory::Inventory;
use crate::judge::{access_of, everybody_reaches};
use crate::kinds::{Egress, ExternalClient, Ingress, Network};
use crate::report::{Code, Problem, Report};
use crate::scalars::{NetworkName, Selector};
use crate::snapshot::{ResourceId, Snapshot};
use crate::text::count;

/// The port of name servers (RFC 1035, section 4.2).
const DNS: u16 = 53;

/// Checks the name servers of a network.
pub(super) fn check(planned: &Planned<'_>, report: &mut Report) {
    let Planned { network, after: (declared, inventory), source_map, .. } = *planned;
    let Some(settings) = declared.network(network).filter(|settings| settings.name_service) else { return };
    let resolvers = inventory.resolvers().iter();
    let closed = resolvers.filter_map(|address| closed(*address, network, settings, declared, inventory));
    for message in closed {
        let id = ResourceId::of_network(network.clone());
        let problem = Problem::new(Code::ResolverClosed, message).at(source_map.location(&id, &[]));
        report.push(problem.about(id).help(format!(
            "allow every member udp and tcp {DNS} there, or give the server another COREDNS_ADDR"
        )));
    }
}

/// Whom rules keep from a name server that members are given, in words; nothing if they keep nobody, or it is not
/// reached through the network.
fn closed(
    address: IpAddr,
    network: &NetworkName,
    settings: &Network,
    declared: &Snapshot,
    inventory: &Inventory,
) -> Option<String> {
    let mut egress = declared.all_in::<Egress>(network).flat_map(|(_, egress)| egress.ranges.iter());
    let inside = settings.ranges().any(|range| range.contains(&address))
        || egress.any(|range| range.net().prefix_len() > 0 && range.net().contains(&address));
    if !inside {
        return None;
    }
    let to = BTreeSet::from([Selector::Range(IpNet::from(address))]);
    // They are given others.
    let own_dns = |client: &ExternalClient| {
        let ingress = declared.named::<Ingress>(network, &client.via.name);
        ingress.is_some_and(|ingress| !ingress.dns.is_empty())
    };
    let clients = declared.all_in::<ExternalClient>(network).filter(|(_, client)| own_dns(client));
    let except: BTreeSet<_> = clients.map(|(id, _)| Selector::Name(id.name.clone())).collect();
    [Protocol::Udp, Protocol::Tcp].into_iter().find_map(|protocol| {
        let access = access_of(Some(protocol), Some(DNS));
        let sides = (to.clone(), except.clone());
        let verdict = everybody_reaches(network, sides, access, declared, inventory).filter(|it| it.fails())?;
        let given = format!("the name server {address} (COREDNS_ADDR)");
        Some(match verdict.counterexample {
            None => format!("members of network {network} are given {given}, an address that nobody there has"),
            Some(pair) => {
                let more = match verdict.pairs.saturating_sub(1) {
                    0 => String::new(),
                    more => format!(" and {}", count(more, "more member")),
                };
                format!(
                    "{}{more} of network {network} may not open {protocol} {DNS} at {given}: they do not resolve names of the network by it",
                    pair.from
                )
            }
        })
    })
}
