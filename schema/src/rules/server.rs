//! Rules that depend on the server: what it keeps for itself may not be declared.
//!
//! Run where the server is known: by `plan`, and by the server itself on what a change would leave
//! ([`check`]). Where none is known, what a server refuses by default is a warning ([`check_by_default`]). A
//! run uses one of the two. Endpoints are checked apart, once it is known who has joined
//! ([`endpoints::check`]).

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::{Claim, endpoints};
use crate::kinds::{AccessKey, Node};
use crate::report::{Code, Problem, Report};
use crate::rules::source_map::SourceMap;
use crate::scalars::{Name, NetworkName, overlap};
use crate::server_info::ServerInfo;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Checks the declarations against what a server keeps; `source_map` has the places of what is in files.
pub fn check(world: &Snapshot, source_map: &SourceMap, server: &ServerInfo) -> Report {
    let mut report = Report::default();
    if let Some(kept) = server.comms_range {
        for (network, range) in overlaps(world, kept) {
            let message = format!(
                "{range} of network {network} overlaps {kept}, which the server reserves for its tunnels to agents"
            );
            report.push(at_range(Problem::new(Code::CommsOverlap, message), network, source_map));
        }
        for (id, field, range) in routes_inside(world, kept) {
            let message = format!(
                "{range} of {id} is inside of {kept}, which the server reserves for its tunnels to agents"
            );
            report.push(at_route(Problem::new(Code::CommsOverlap, message), (id, field, range), source_map));
        }
    }
    for (id, field, address) in reserved(world).filter(|(.., address)| server.addresses.contains(address)) {
        let message = format!("{address} cannot be reserved for {id}: the server is reached there");
        let at = source_map.location(id, &[Step::Field(field)]);
        let help = "reserve another address".to_owned();
        report.push(Problem::new(Code::ServerAddress, message).at(at).about(id).help(help));
    }
    for (key, name) in server.own_node.iter().flat_map(|name| claims(world, name).map(move |key| (key, name)))
    {
        report.push(claimed(key, name, source_map));
    }
    for id in server.own_node.iter().flat_map(|name| approved(world, name)) {
        let message = format!("the server itself joins as {}, so {id} cannot approve another host", id.name);
        let at = source_map.location(id, &[Step::Field("approved")]);
        let help =
            "remove `approved`, or set CLIENT_MODE=off or another CLIENT_NAME on the server".to_owned();
        report.push(Problem::new(Code::OwnNode, message).at(at).about(id).help(help));
    }
    report
}

/// Checks the declarations against what a server keeps by default: all that this finds are warnings.
pub fn check_by_default(world: &Snapshot, source_map: &SourceMap) -> Report {
    let mut report = Report::default();
    let kept = ServerInfo::DEFAULT_COMMS_RANGE;
    for (network, range) in overlaps(world, kept) {
        let message = format!(
            "{range} of network {network} overlaps {kept}, which servers reserve for their tunnels to agents by default"
        );
        report.push(at_range(Problem::new(Code::DefaultCommsRange, message), network, source_map));
    }
    for (id, field, range) in routes_inside(world, kept) {
        let message = format!(
            "{range} of {id} is inside of {kept}, which servers reserve for their tunnels to agents by default"
        );
        report.push(at_route(Problem::new(Code::DefaultCommsRange, message), (id, field, range), source_map));
    }
    report.append(endpoints::check_by_default(world, source_map));
    report
}

/// The networks with IPv4 addresses of a range.
fn overlaps(world: &Snapshot, kept: Ipv4Net) -> impl Iterator<Item = (&NetworkName, Ipv4Net)> {
    let ranges = world.networks().filter_map(|(name, network)| Some((name, network.ipv4?.net())));
    ranges.filter(move |(_, range)| overlap(&(*range).into(), &kept.into()))
}

/// What is forwarded to inside of a range: a wider one leaves the range's own addresses where they are.
fn routes_inside(
    world: &Snapshot,
    kept: Ipv4Net,
) -> impl Iterator<Item = (&ResourceId, &'static str, IpNet)> {
    world.entries().flat_map(move |(id, entry)| {
        let claims = entry.object.claims().into_iter();
        claims.filter_map(move |(field, claim)| match claim {
            Claim::Route(range) if IpNet::from(kept).contains(&range) => Some((id, field, range)),
            Claim::Range(_) | Claim::Route(_) | Claim::Pool(_) => None,
            Claim::Reserved(_) | Claim::Meant(_) | Claim::Endpoint(_) => None,
        })
    })
}

/// The addresses that the declarations reserve.
fn reserved(world: &Snapshot) -> impl Iterator<Item = (&ResourceId, &'static str, IpAddr)> {
    world.entries().flat_map(|(id, entry)| {
        let claims = entry.object.claims().into_iter();
        claims.filter_map(move |(field, claim)| match claim {
            Claim::Reserved(address) => Some((id, field, address)),
            Claim::Range(_) | Claim::Route(_) | Claim::Pool(_) | Claim::Meant(_) | Claim::Endpoint(_) => None,
        })
    })
}

fn at_range(problem: Problem, network: &NetworkName, source_map: &SourceMap) -> Problem {
    let id = ResourceId::of_network(network.clone());
    let at = source_map.location(&id, &[Step::Field("ipv4")]);
    problem.at(at).about(id).help("choose another range, or set COMMS_RANGE on the server".to_owned())
}

fn at_route(
    problem: Problem,
    (id, field, range): (&ResourceId, &str, IpNet),
    source_map: &SourceMap,
) -> Problem {
    let at = source_map.element_or_field(id, &[Step::Field(field)], &range.to_string());
    problem.at(at).about(id).help("forward to other ranges, or set COMMS_RANGE on the server".to_owned())
}

/// The access keys that let a host claim a name.
fn claims<'a>(world: &'a Snapshot, name: &'a Name) -> impl Iterator<Item = &'a ResourceId> {
    let keys = world.networks().flat_map(|(network, _)| world.all_in::<AccessKey>(network));
    keys.filter(move |(_, key)| key.r#for.iter().any(|node| node.name == *name)).map(|(id, _)| id)
}

/// The nodes of a name that approve a host.
fn approved<'a>(world: &'a Snapshot, name: &'a Name) -> impl Iterator<Item = &'a ResourceId> {
    let nodes = world.networks().flat_map(|(network, _)| world.all_in::<Node>(network));
    nodes.filter(move |(id, node)| id.name == *name && node.approved.is_some()).map(|(id, _)| id)
}

fn claimed(key: &ResourceId, name: &Name, source_map: &SourceMap) -> Problem {
    let message =
        format!("the server itself joins as {name}, so {key} cannot let another host claim that name");
    let path = [Step::Field("for")];
    let at = source_map.element(key, &path, name.as_str()).or(source_map.location(key, &path));
    let help = format!(
        "remove {:?} from its `for`, or set CLIENT_MODE=off or another CLIENT_NAME on the server",
        name.as_str()
    );
    Problem::new(Code::OwnNode, message).at(at).about(key).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Declared, decode};
    use crate::kinds::Kind;
    use crate::report::Severity;
    use crate::rules;
    use crate::scalars::SigningKey;
    use crate::syntax::{Language, Source, parse};
    use crate::value::SourceId;

    const LAB: &str = "network \"lab\" {\n ipv4 \"10.101.7.0/24\"\n ipv6 \"fd40::/64\"\n}\n";
    const KEYS: &str = "network \"corp\" {\n ipv4 \"10.40.0.0/16\"\n node \"netmaker\"; node \"gw\"\n access-key \"all\" { for \"gw\" \"netmaker\" }\n access-key \"own\" for=\"netmaker\"\n access-key \"others\"\n}\n";

    fn declared(text: &str) -> Declared {
        let source = Source { name: "a.kdl".into(), text: text.into(), language: Language::Kdl };
        let (declared, mut report) = decode(parse(&source, SourceId(0), Kind::DESCRIPTORS).0);
        report.append(rules::check(&declared.snapshot, &declared.source_map));
        assert!(report.is_empty(), "no other rule is broken: {report:#?}");
        declared
    }

    fn server(comms_range: Option<&str>, own_node: Option<&str>) -> ServerInfo {
        ServerInfo {
            id: "s".into(),
            epoch: 1,
            agent_addresses: Vec::new(),
            signing_key: SigningKey([0; 32]),
            ca_pin: None,
            version: String::new(),
            comms_range: comms_range.map(|range| range.parse().expect("good")),
            own_node: own_node.map(|name| name.parse().expect("good")),
            addresses: Vec::new(),
        }
    }

    /// The code of each problem, and the text at its place.
    fn at_texts(text: &str, report: &Report) -> Vec<(Code, String)> {
        let marked = |problem: &Problem| {
            let span = problem.at.expect("it is in the file").span;
            text[span.start as usize..span.end as usize].to_owned()
        };
        report.problems().map(|problem| (problem.code, marked(problem))).collect()
    }

    fn found(text: &str, server: &ServerInfo) -> Vec<(Code, String)> {
        let Declared { snapshot, source_map } = declared(text);
        at_texts(text, &check(&snapshot, &source_map, server))
    }

    #[test]
    fn a_network_may_not_overlap_the_range_that_the_server_keeps() {
        let refused = [(Code::CommsOverlap, "\"10.101.7.0/24\"".to_owned())];
        for (kept, expected) in [
            (Some("10.101.0.0/16"), &refused[..]),
            (Some("10.101.7.128/25"), &refused[..]),
            (Some("10.101.7.0/24"), &refused[..]),
            (Some("10.101.8.0/24"), &[]),
            (None, &[]),
        ] {
            assert_eq!(found(LAB, &server(kept, Some("netmaker"))), expected, "{kept:?}");
        }
        assert_eq!(found("network \"six\" ipv6=\"fd40::/64\"", &server(Some("10.0.0.0/8"), None)), []);
    }

    #[test]
    fn no_egress_forwards_to_a_part_of_the_range_that_the_server_keeps() {
        let text = "network \"corp\" ipv4=\"10.40.0.0/16\" {\n node \"gw\"\n egress \"e\" via=\"gw\" { ranges \"10.0.0.0/8\" \"10.101.0.0/16\" \"10.101.7.0/24\" \"0.0.0.0/0\"; }\n}\n";
        let at = |code, range: &str| (code, format!("{range:?}"));
        let both = |code| [at(code, "10.101.0.0/16"), at(code, "10.101.7.0/24")];
        assert_eq!(found(text, &server(Some("10.101.0.0/16"), None)), both(Code::CommsOverlap));
        assert_eq!(found(text, &server(Some("10.102.0.0/16"), None)), []);
        assert_eq!(found(text, &server(None, None)), []);
        let Declared { snapshot, source_map } = declared(text);
        assert_eq!(at_texts(text, &check_by_default(&snapshot, &source_map)), both(Code::DefaultCommsRange));
    }

    #[test]
    fn no_key_may_claim_the_name_of_the_servers_own_host() {
        let own = || (Code::OwnNode, "\"netmaker\"".to_owned());
        let kept = Some("10.101.0.0/16");
        assert_eq!(found(KEYS, &server(kept, Some("netmaker"))), [own(), own()]);
        assert_eq!(found(KEYS, &server(kept, Some("control"))), []);
        assert_eq!(found(KEYS, &server(kept, None)), [], "its host is no node");
    }

    #[test]
    fn no_host_is_approved_as_the_servers_own() {
        let fingerprint = crate::scalars::Identity([1; 32]).fingerprint();
        let text = format!(
            "network \"corp\" {{\n ipv4 \"10.40.0.0/16\"\n node \"netmaker\" approved=\"{fingerprint}\"; node \"gw\"\n}}\n"
        );
        let own = (Code::OwnNode, format!("\"{fingerprint}\""));
        assert_eq!(found(&text, &server(None, Some("netmaker"))), [own]);
        assert_eq!(found(&text, &server(None, Some("gw"))), []);
        assert_eq!(found(&text, &server(None, None)), []);
    }

    #[test]
    fn no_address_of_the_server_is_reserved_for_a_node() {
        let text = "network \"corp\" {\n ipv4 \"10.40.0.0/16\"\n node \"a\" ipv4=\"10.40.0.1\"; node \"b\" ipv4=\"10.40.0.2\"\n}\n";
        let at = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().expect("good")).collect();
            ServerInfo { addresses, ..server(None, None) }
        };
        assert_eq!(found(text, &at(&["10.40.0.2"])), [(Code::ServerAddress, "\"10.40.0.2\"".to_owned())]);
        assert_eq!(found(text, &at(&["10.40.0.3", "192.0.2.1"])), []);
    }

    #[test]
    fn without_a_server_the_default_range_is_a_warning_once_for_each_network() {
        let text = format!("{LAB}{KEYS}network \"all\" ipv4=\"10.101.64.0/18\"\n");
        let Declared { snapshot, source_map } = declared(&text);
        let report = check_by_default(&snapshot, &source_map);
        let at = |range: &str| (Code::DefaultCommsRange, range.to_owned());
        assert_eq!(at_texts(&text, &report), [at("\"10.101.7.0/24\""), at("\"10.101.64.0/18\"")]);
        assert!(report.problems().all(|problem| problem.code.severity() == Severity::Warning));
    }

    #[test]
    fn a_change_is_refused_for_what_the_server_keeps() {
        for (text, code) in [(LAB, Code::CommsOverlap), (KEYS, Code::OwnNode)] {
            let Declared { snapshot, source_map } = declared(text);
            let reconcile = |server: &ServerInfo| {
                crate::plan::check_and_reconcile(
                    &snapshot,
                    &Default::default(),
                    &source_map,
                    server,
                    jiff::Timestamp::UNIX_EPOCH,
                )
            };
            let report =
                reconcile(&server(Some("10.101.0.0/16"), Some("netmaker"))).expect_err("it is refused");
            assert!(report.problems().all(|problem| problem.code == code), "{report:#?}");
            assert!(reconcile(&server(None, None)).is_ok());
        }
    }
}
