//! What an agent reports about its host, checked: pure.

use std::net::IpAddr;

use ipnet::IpNet;
use proto::convert::to_prefix;
use proto::wire;
use schema::inventory::{Endpoints, NodeProblem};
use schema::kinds::Network;
use schema::scalars::{Endpoint, EndpointHost};

/// How many characters of a text that a node sent are repeated in a message.
const SHORT: usize = 80;
/// How long the message of a problem may be, in characters; the rest is cut off.
const LONGEST: usize = 300;
/// How many connected networks of a host are looked at.
const MOST_CONNECTED: usize = 1_000;

/// What an agent reports, and what the server saw of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where the node may be reached.
    pub endpoints: Endpoints,
    /// The UDP port that it listens on; absent: it has not chosen one yet.
    pub listen_port: Option<u16>,
    /// What is not as it should be on its host, by code.
    pub problems: Vec<NodeProblem>,
    /// What the host's other interfaces are connected to, where it asks to join.
    pub connected: Vec<(String, IpNet)>,
}

/// Why what a node reports about itself is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The endpoint is not well-formed.
    #[error("the endpoint {0:?} is not valid: {1}; set one like gw.example.net:51821, or none")]
    Endpoint(String, String),
    /// No other node could reach it.
    #[error("other nodes cannot use the endpoint {0}: {1}; set a public address or name, or none")]
    Unreachable(Endpoint, &'static str),
    /// The local address is not an address.
    #[error("the local address {0:?} is not a valid IP address")]
    LocalAddress(String),
    /// The port is not a port.
    #[error("{0} is not a valid UDP port: ports are numbers up to 65535")]
    ListenPort(u32),
}

/// Reads what a node reports, in the light of the address that it was seen at. What it and the server only found out
/// themselves is ignored if it is of no use to others; what its operator set must be valid.
pub fn read(facts: &wire::Facts, seen: Option<IpAddr>, network: &Network) -> Result<Facts, Unusable> {
    let wire::Facts { listen_port, endpoint, local_address, problems, connected } = facts;
    let port = u16::try_from(*listen_port).map_err(|_| Unusable::ListenPort(*listen_port))?;
    let local: Option<IpAddr> = match &**local_address {
        "" => None,
        text => Some(text.parse().map_err(|_| Unusable::LocalAddress(shortened(text)))?),
    };
    let usable = |address: Option<IpAddr>| {
        address.map(|address| address.to_canonical()).filter(|address| unusable(*address, network).is_none())
    };
    let endpoints = Endpoints { configured: configured(endpoint, network)?, seen: usable(seen), local: usable(local) };
    let problem = |problem: &wire::Problem| NodeProblem::new(&shortened(&problem.code), cut(&problem.message, LONGEST));
    let mut problems: Vec<_> = problems.iter().take(NodeProblem::MOST).map(problem).collect();
    problems.sort();
    // What cannot be read is passed over: all that this does is to spare a host a join that leads to nothing.
    let connected = connected.iter().take(MOST_CONNECTED).filter_map(|it| {
        let range = to_prefix(it.range.as_ref()?).ok()?;
        Some((shortened(&it.interface), range.trunc()))
    });
    let connected = connected.collect();
    Ok(Facts { endpoints, listen_port: Some(port).filter(|port| *port > 0), problems, connected })
}

/// What the operator configured.
fn configured(text: &str, network: &Network) -> Result<Option<Endpoint>, Unusable> {
    if text.is_empty() {
        return Ok(None);
    }
    let endpoint: Endpoint = text.parse().map_err(|why| Unusable::Endpoint(shortened(text), why))?;
    let why = match &endpoint.host {
        EndpointHost::Address(address) => unusable(*address, network),
        EndpointHost::Domain(name) => (name.to_string() == "localhost").then_some("it is each host's own"),
    };
    match why {
        Some(why) => Err(Unusable::Unreachable(endpoint, why)),
        None => Ok(Some(endpoint)),
    }
}

/// Why the others cannot reach a node at an address; nothing if they may.
fn unusable(address: IpAddr, network: &Network) -> Option<&'static str> {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let inside = network.range_of(address).is_some_and(|range| range.contains(&address));
    let reasons = [
        (address.is_loopback(), "it is each host's own"),
        (address.is_unspecified(), "it is not the address of a host"),
        (address.is_multicast(), "it is a multicast address"),
        (link_local, "it is valid on one link only"),
        (inside, "it lies in the network itself, so the tunnel would run through itself"),
    ];
    reasons.into_iter().find_map(|(holds, why)| holds.then_some(why))
}

/// The text, cut to a length for messages.
fn shortened(text: &str) -> String {
    cut(text, SHORT)
}

fn cut(text: &str, length: usize) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::kinds::Kind;
    use schema::world::ResourceDocument;

    fn read_in_corp(endpoint: &str, local: &str, seen: Option<&str>) -> Result<Endpoints, Unusable> {
        let json = r#"{"id":"corp","body":{"ipv4":"10.0.0.0/24"}}"#;
        let document: ResourceDocument = serde_json::from_str(json).expect("good");
        let mut world = schema::snapshot::Snapshot::default();
        world.put(document.id.clone(), document.entry().expect("good"));
        assert_eq!(document.id.kind, Kind::Network);
        let network = world.network(&"corp".parse().expect("good")).expect("there").clone();
        let facts = wire::Facts {
            listen_port: 0,
            endpoint: endpoint.into(),
            local_address: local.into(),
            ..wire::Facts::default()
        };
        let seen = seen.map(|address| address.parse().expect("good"));
        read(&facts, seen, &network).map(|facts| facts.endpoints)
    }

    #[test]
    fn addresses_that_others_cannot_use_are_ignored() {
        let read = |endpoint: &str, local: &str, seen: Option<&str>| {
            let endpoints = read_in_corp(endpoint, local, seen).expect("it is valid");
            let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
            [
                endpoints.configured.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
                text(endpoints.seen),
                text(endpoints.local),
            ]
        };
        let all = ["gw.example.net:4000", "192.0.2.1", "192.0.2.2"];
        assert_eq!(read("gw.example.net:4000", "192.0.2.2", Some("192.0.2.1")), all);
        assert_eq!(read("", "192.0.2.2", Some("::ffff:192.0.2.1")), ["", "192.0.2.1", "192.0.2.2"]);
        assert_eq!(read("", "192.0.2.2", Some("127.0.0.1")), ["", "", "192.0.2.2"]);
        assert_eq!(read("", "10.0.0.7", Some("::1")), ["", "", ""]);
        assert_eq!(read("", "fe80::1", None), ["", "", ""]);
        assert_eq!(read("", "", None), ["", "", ""]);
    }

    #[test]
    fn an_invalid_value_is_reported() {
        let long = "a".repeat(70_000);
        for endpoint in
            ["127.0.0.1", "[::1]:5", "0.0.0.0:1", "239.0.0.1", "10.0.0.9:51821", "localhost", "a b", "x:0", &long]
        {
            let error = read_in_corp(endpoint, "", Some("192.0.2.1")).expect_err("it is of no use").to_string();
            assert!(error.contains("endpoint") && error.len() < 400, "{error}");
        }
        assert!(matches!(read_in_corp("", "here", None), Err(Unusable::LocalAddress(_))));
    }
}
