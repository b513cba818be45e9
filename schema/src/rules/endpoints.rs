//! One law for endpoints: at which addresses and by which names others may be sent to reach a node, be they
//! nodes or the clients of an ingress.
//!
//! Everybody who takes an endpoint asks here: the rules for files ([`check_file`], [`check`]), the server for
//! what agents report ([`Meshes::refuses`]), and an agent for what the name of a peer resolves to
//! ([`refused_everywhere`]). Addresses are judged in their canonical form: `::ffff:127.0.0.1` is `127.0.0.1`.
//!
//! Some addresses no other host can reach, whatever is declared. Others belong to a mesh: an endpoint there
//! would send the tunnel through itself. A range that holds an address of the server was let through with
//! `--allow cut-off`, or it could not be declared: hosts live in it, so that only what members have there is
//! refused.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Claim, Findings};
use crate::kinds::Network;
use crate::report::{Code, Problem, Report};
use crate::rules::source_map::SourceMap;
use crate::scalars::{EndpointHost, Name, NetworkName};
use crate::server_info::ServerInfo;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Why other hosts cannot reach a node at an endpoint. The text is the end of the sentence "other nodes
/// cannot use X: ...".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No host reaches another there (RFC 6890).
    #[error("{0}")]
    Everywhere(&'static str),
    /// A name that resolves into a mesh.
    #[error("it is a name of network {0}, which resolves to an address inside of the mesh")]
    MeshName(NetworkName),
    /// The address is a member's.
    #[error("{name} has that address in network {network}, so the tunnel would run through itself")]
    Member {
        /// The network.
        network: NetworkName,
        /// The member that has the address, or for which it is reserved.
        name: Name,
    },
    /// The address lies in a range of a network.
    #[error("it lies in {range} of network {network}, so the tunnel would run through itself")]
    Inside {
        /// The network.
        network: NetworkName,
        /// Its range.
        range: IpNet,
    },
    /// The address lies in the range of the server's tunnels.
    #[error("it lies in {0}, the range of the server's tunnels to agents")]
    Comms(Ipv4Net),
}

/// The addresses at which no host reaches another, with the reason; the first that holds counts.
const NOWHERE: &[(IpNet, &str)] = &[
    // RFC 1122, section 3.2.1.3; RFC 791, section 3.2.
    (v4([0, 0, 0, 0], 32), "it is not the address of a host"),
    (v4([0, 0, 0, 0], 8), "its range is reserved (RFC 6890)"),
    (v4([127, 0, 0, 0], 8), "it is each host's own"),
    // RFC 3927.
    (v4([169, 254, 0, 0], 16), "it is valid on one link only"),
    // RFC 5771.
    (v4([224, 0, 0, 0], 4), "it is a multicast address"),
    // RFC 919, section 7; RFC 1112, section 4.
    (v4([255, 255, 255, 255], 32), "it is the broadcast address"),
    (v4([240, 0, 0, 0], 4), "its range is reserved (RFC 6890)"),
    // RFC 4291, sections 2.5.2, 2.5.3, 2.5.5.1.
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "it is not the address of a host"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "it is each host's own"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 16), "its range is reserved (RFC 4291)"),
    // RFC 6666.
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "its packets are discarded (RFC 6666)"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "it is valid on one link only"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "it is a multicast address"),
];

const fn v4(address: [u8; 4], prefix: u8) -> IpNet {
    let [a, b, c, d] = address;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(address: [u16; 8], prefix: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = address;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix))
}

/// Why no host reaches another at an address, whatever the networks are; nothing if one may.
pub fn refused_everywhere(address: IpAddr) -> Option<Refused> {
    let address = address.to_canonical();
    let found = NOWHERE.iter().find(|(range, _)| range.contains(&address));
    found.map(|(_, why)| Refused::Everywhere(why))
}

/// Why a name or an address is no endpoint, whatever the networks are; nothing if it may be one.
pub fn host_refused_everywhere(host: &EndpointHost) -> Option<Refused> {
    match host {
        EndpointHost::Address(address) => refused_everywhere(*address),
        EndpointHost::Domain(name) => {
            // RFC 6761, section 6.3.
            let last = name.as_str().rsplit('.').next();
            (last == Some("localhost")).then_some(Refused::Everywhere("it is each host's own"))
        }
    }
}

/// Who has which address.
pub trait Members: fmt::Debug {
    /// The member that has an address in a network.
    fn holder(&self, network: &NetworkName, address: IpAddr) -> Option<&Name>;
}

/// Nobody has joined.
#[derive(Debug)]
struct Nobody;

impl Members for Nobody {
    fn holder(&self, _network: &NetworkName, _address: IpAddr) -> Option<&Name> {
        None
    }
}

/// The networks around an endpoint: what is declared, who has joined, and what the server keeps.
#[derive(Clone, Copy, Debug)]
pub struct Meshes<'a> {
    /// The networks.
    pub declared: &'a Snapshot,
    /// Who has which address.
    pub members: &'a dyn Members,
    /// The range of the server's tunnels; absent: it has none.
    pub comms_range: Option<Ipv4Net>,
    /// The addresses of the server, by which ranges that were let through are known.
    pub server: &'a [IpAddr],
}

impl<'a> Meshes<'a> {
    /// The networks of a server.
    pub fn of(declared: &'a Snapshot, members: &'a dyn Members, server: &'a ServerInfo) -> Self {
        Self { declared, members, comms_range: server.comms_range, server: &server.addresses }
    }

    /// Why other nodes cannot reach a node at an address or by a name; nothing if they may.
    pub fn refuses(&self, host: &EndpointHost) -> Option<Refused> {
        host_refused_everywhere(host).or_else(|| match host {
            EndpointHost::Address(address) => self.holds(address.to_canonical(), self.declared.networks()),
            EndpointHost::Domain(_) => mesh_name(self.declared, host),
        })
    }

    /// Why an address belongs to one of these meshes.
    fn holds<'n>(
        &self,
        address: IpAddr,
        mut networks: impl Iterator<Item = (&'n NetworkName, &'n Arc<Network>)>,
    ) -> Option<Refused> {
        if let Some(range) = self.comms_range.filter(|range| IpNet::from(*range).contains(&address)) {
            return Some(Refused::Comms(range));
        }
        networks.find_map(|(network, settings)| {
            let range = settings.range_of(address).filter(|range| range.contains(&address))?;
            if !self.let_through(range) {
                return Some(Refused::Inside { network: network.clone(), range });
            }
            let name = self.members.holder(network, address).or_else(|| self.reserving(network, address))?;
            Some(Refused::Member { network: network.clone(), name: name.clone() })
        })
    }

    /// Whether hosts live in a range all the same: it holds an address of the server.
    fn let_through(&self, range: IpNet) -> bool {
        self.server.iter().any(|address| range.contains(address))
    }

    fn reserving(&self, network: &NetworkName, address: IpAddr) -> Option<&'a Name> {
        let reserves = |(_, claim)| claim == Claim::Reserved(address);
        let mut reserving = self.declared.entries_in(network);
        reserving.find(|(_, entry)| entry.object.claims().into_iter().any(reserves)).map(|(id, _)| &id.name)
    }
}

/// Why a name leads into a mesh: agents let the names of a network resolve, as NAME.NETWORK.
fn mesh_name(declared: &Snapshot, host: &EndpointHost) -> Option<Refused> {
    let EndpointHost::Domain(name) = host else { return None };
    let (_, suffix) = name.in_network()?;
    let mut networks = declared.networks().filter(|(_, network)| network.name_service);
    networks
        .find(|(network, _)| network.as_str() == suffix)
        .map(|(network, _)| Refused::MeshName(network.clone()))
}

/// Reports an endpoint in a file that is none on any server.
pub(super) fn check_file(
    (id, field, host): (&ResourceId, &str, &EndpointHost),
    world: &Snapshot,
    findings: &mut Findings<'_>,
) {
    if let Some(why) = host_refused_everywhere(host).or_else(|| mesh_name(world, host)) {
        let at = findings.location(id, &[Step::Field(field)]);
        findings.report.push(problem(Code::UnusableEndpoint, (id, host), &why).at(at));
    }
}

/// Checks the endpoints of files against the networks of a server, where [`rules::check`](super::check) has
/// found nothing.
pub fn check(meshes: Meshes<'_>, source_map: &SourceMap) -> Report {
    check_as(Code::EndpointInMesh, meshes, source_map)
}

/// The same where no server is known, so that a range may have been let through: all that this finds are
/// warnings.
pub(super) fn check_by_default(declared: &Snapshot, source_map: &SourceMap) -> Report {
    let comms_range = Some(ServerInfo::DEFAULT_COMMS_RANGE);
    let meshes = Meshes { declared, members: &Nobody, comms_range, server: &[] };
    check_as(Code::EndpointInRange, meshes, source_map)
}

fn check_as(code: Code, meshes: Meshes<'_>, source_map: &SourceMap) -> Report {
    let mut report = Report::default();
    let networks: Vec<_> = meshes.declared.networks().collect();
    for (id, entry) in meshes.declared.entries() {
        for (field, claim) in entry.object.claims() {
            let Claim::Endpoint(host @ EndpointHost::Address(address)) = &claim else { continue };
            if let Some(why) = meshes.holds(*address, networks.iter().copied()) {
                let at = source_map.location(id, &[Step::Field(field)]);
                report.push(problem(code, (id, host), &why).at(at));
            }
        }
    }
    report
}

/// Warns of ranges outside of networks that hold a declared endpoint: where a host cannot keep WireGuard's own
/// packets out of the mesh, the route leads them astray. Default routes hold every one, and are no reason.
pub(super) fn check_hidden(declared: &Snapshot, source_map: &SourceMap) -> Report {
    let (mut endpoints, mut routes) = (Vec::new(), Vec::new());
    for (id, entry) in declared.entries() {
        for (field, claim) in entry.object.claims() {
            match claim {
                Claim::Endpoint(EndpointHost::Address(address)) => {
                    endpoints.push((address.to_canonical(), id, field));
                }
                Claim::Route(range) if range.prefix_len() > 0 => routes.push((range, id, field)),
                Claim::Endpoint(EndpointHost::Domain(_)) | Claim::Route(_) => {}
                Claim::Range(_) | Claim::Pool(_) | Claim::Reserved(_) | Claim::Meant(_) => {}
            }
        }
    }
    let mut report = Report::default();
    for (range, id, field) in routes {
        let hidden: Vec<_> = endpoints.iter().filter(|(address, ..)| range.contains(address)).collect();
        let [(address, first, its_field), more @ ..] = &hidden[..] else { continue };
        let more = if more.is_empty() { String::new() } else { format!(", and {} more", more.len()) };
        let message = format!(
            "{range} of {id} holds {address}, the endpoint of {first}{more}: hosts without nftables that get the route do not reach it"
        );
        let at = source_map.element_or_field(id, &[Step::Field(field)], &range.to_string());
        let see = source_map.location(first, &[Step::Field(its_field)]);
        let problem = Problem::new(Code::EndpointHidden, message).at(at).about(id).see(see, "this endpoint");
        let help = "forward to ranges without it, or declare an endpoint outside of them";
        report.push(problem.help(help.to_owned()));
    }
    report
}

fn problem(code: Code, (id, host): (&ResourceId, &EndpointHost), why: &Refused) -> Problem {
    let message = format!("other hosts cannot reach {id} at {host}: {why}");
    let help = "give an address or a name that it has outside of the mesh, or remove the endpoint";
    Problem::new(code, message).about(id).help(help.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;
    use crate::scalars::Endpoint;
    use crate::world::ResourceDocument;

    fn host(text: &str) -> EndpointHost {
        text.parse::<Endpoint>().expect("it is well-formed").host
    }

    fn declared(bodies: &[(&str, &str)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (id, body) in bodies {
            let json = format!(r#"{{"id":"{id}","body":{body}}}"#);
            let document: ResourceDocument = serde_json::from_str(&json).expect("good");
            snapshot.put(document.id.clone(), document.entry().expect("good"));
        }
        snapshot
    }

    #[test]
    fn an_address_that_no_other_host_reaches_is_refused_however_it_is_written() {
        for (bad, why) in [
            ("127.0.0.1", "each host's own"),
            ("127.255.0.9", "each host's own"),
            ("::1", "each host's own"),
            ("::ffff:127.0.0.1", "each host's own"),
            ("localhost", "each host's own"),
            ("gw.LOCALHOST", "each host's own"),
            ("0.0.0.0", "not the address of a host"),
            ("::", "not the address of a host"),
            ("0.1.2.3", "reserved"),
            ("240.0.0.1", "reserved"),
            ("::ffff:240.0.0.1", "reserved"),
            ("::192.0.2.1", "reserved"),
            ("239.1.2.3", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("169.254.1.1", "one link"),
            ("fe80::1", "one link"),
            ("100::1", "discarded"),
        ] {
            let refused = host_refused_everywhere(&host(bad)).unwrap_or_else(|| panic!("{bad} is refused"));
            assert!(refused.to_string().contains(why), "{bad}: {refused}");
        }
        for good in
            ["192.0.2.7", "10.0.0.1", "100.64.0.1", "::ffff:192.0.2.7", "2001:db8::1", "64:ff9b::c000:201"]
        {
            assert_eq!(host_refused_everywhere(&host(good)), None, "{good}");
        }
        assert_eq!(host_refused_everywhere(&host("localhost.example.net")), None);
    }

    #[test]
    fn what_belongs_to_a_mesh_is_refused_in_all_of_them() {
        let snapshot = declared(&[
            ("corp", r#"{"ipv4":"10.40.0.0/24","ipv6":"fd40::/64"}"#),
            ("lab", r#"{"ipv4":"10.50.0.0/24","name-service":false}"#),
        ]);
        let meshes = Meshes {
            declared: &snapshot,
            members: &Nobody,
            comms_range: Some(ServerInfo::DEFAULT_COMMS_RANGE),
            server: &[],
        };
        for (bad, why) in [
            ("10.40.0.9", "10.40.0.0/24 of network corp"),
            ("::ffff:10.40.0.9", "10.40.0.0/24 of network corp"),
            ("fd40::9", "fd40::/64 of network corp"),
            ("10.50.0.0", "10.50.0.0/24 of network lab"),
            ("10.101.3.4", "the server's tunnels"),
            ("gw.corp", "a name of network corp"),
            ("127.0.0.1", "each host's own"),
        ] {
            let refused = meshes.refuses(&host(bad)).unwrap_or_else(|| panic!("{bad} is refused"));
            assert!(refused.to_string().contains(why), "{bad}: {refused}");
        }
        for good in ["10.40.1.9", "fd41::9", "gw.lab", "gw.corp.example.net", "10.102.0.1"] {
            assert_eq!(meshes.refuses(&host(good)), None, "{good}");
        }
    }

    #[test]
    fn in_a_range_that_was_let_through_only_what_members_have_is_refused() {
        let snapshot =
            declared(&[("corp", r#"{"ipv4":"10.40.0.0/24"}"#), ("corp/node/db", r#"{"ipv4":"10.40.0.7"}"#)]);
        let server = ["10.40.0.1".parse().expect("good")];
        let mut inventory = Inventory::default();
        let id: ResourceId = "corp/node/a".parse().expect("good");
        inventory.put_node(id.node(), crate::inventory::tests::joined(1, "10.40.0.2"));
        let refused = |server, endpoint: &str| {
            let meshes = Meshes { declared: &snapshot, members: &inventory, comms_range: None, server };
            meshes.refuses(&host(endpoint)).map(|refused| refused.to_string()).unwrap_or_default()
        };
        assert!(refused(&server, "10.40.0.2").starts_with("a has that address in network corp"));
        assert!(refused(&server, "10.40.0.7").starts_with("db has that address in network corp"));
        assert_eq!(refused(&server, "10.40.0.9"), "");
        assert!(refused(&[], "10.40.0.9").starts_with("it lies in 10.40.0.0/24"));
    }
}
