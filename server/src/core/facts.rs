//! What an agent reports about its host, checked: pure.

use std::net::IpAddr;

use ipnet::IpNet;
use proto::convert::to_prefix;
use proto::wire;
use schema::inventory::{Endpoints, NodeProblem};
use schema::rules::endpoints::{Meshes, Refused, refused_everywhere};
use schema::scalars::{Endpoint, EndpointHost, Port, Scalar};

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
    #[error("the endpoint {given:?} is not valid: {why}; set one like {like}, or none")]
    Endpoint {
        /// What was given, shortened.
        given: String,
        /// What is wrong with it.
        why: String,
        /// What may be meant, else an example.
        like: String,
    },
    /// No other node could reach it.
    #[error("other nodes cannot use the endpoint {0}: {1}; set a public address or name, or none")]
    Unreachable(Endpoint, Refused),
    /// The local address is not an address.
    #[error("the local address {0:?} is not a valid IP address")]
    LocalAddress(String),
    /// The port is not a port.
    #[error("{port} is not a UDP port: {means}", port = .0, means = Port::MEANS)]
    ListenPort(u32),
}

/// Reads what a node reports, in the light of the address that it was seen at. What it and the server only
/// found out themselves is ignored if it is of no use to others; what its operator set must be valid.
///
/// `before` is what is recorded of the node; absent: nothing. It stays valid when a mesh takes a range around
/// it later.
pub fn read(
    facts: &wire::Facts,
    seen: Option<IpAddr>,
    meshes: Meshes<'_>,
    before: Option<&Endpoints>,
) -> Result<Facts, Unusable> {
    let wire::Facts { listen_port, endpoint, local_address, problems, connected } = facts;
    let port = u16::try_from(*listen_port).map_err(|_| Unusable::ListenPort(*listen_port))?;
    let local: Option<IpAddr> = match &**local_address {
        "" => None,
        text => Some(text.parse().map_err(|_| Unusable::LocalAddress(shortened(text)))?),
    };
    let usable = |address: Option<IpAddr>, before: Option<IpAddr>| {
        address.map(|address| address.to_canonical()).filter(|address| match before == Some(*address) {
            true => refused_everywhere(*address).is_none(),
            false => meshes.refuses(&EndpointHost::Address(*address)).is_none(),
        })
    };
    let endpoints = Endpoints {
        configured: configured(endpoint, meshes, before.and_then(|before| before.configured.as_ref()))?,
        seen: usable(seen, before.and_then(|before| before.seen)),
        local: usable(local, before.and_then(|before| before.local)),
    };
    let problem = |wire::Problem { code, message, egress }: &wire::Problem| NodeProblem {
        egress: egress.parse().ok(),
        ..NodeProblem::new(&shortened(code), cut(message, LONGEST))
    };
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
fn configured(
    text: &str,
    meshes: Meshes<'_>,
    before: Option<&Endpoint>,
) -> Result<Option<Endpoint>, Unusable> {
    if text.is_empty() {
        return Ok(None);
    }
    let endpoint: Endpoint = text.parse().map_err(|why| {
        let like = Endpoint::meant(text).unwrap_or_else(|| Endpoint::GOOD[0].to_owned());
        Unusable::Endpoint { given: shortened(text), why, like }
    })?;
    let refused = meshes.refuses(&endpoint.host);
    let stays = before.is_some_and(|before| before.host == endpoint.host);
    match refused.filter(|why| !stays || matches!(why, Refused::Everywhere(_))) {
        Some(why) => Err(Unusable::Unreachable(endpoint, why)),
        None => Ok(Some(endpoint)),
    }
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
    use schema::inventory::Inventory;
    use schema::world::ResourceDocument;

    /// Reads facts where the network `corp` has the range 10.0.0.0/24, and where the server has these
    /// addresses.
    fn read_at(
        server: &[IpAddr],
        (endpoint, local, seen): (&str, &str, Option<&str>),
        before: Option<&Endpoints>,
    ) -> Result<Endpoints, Unusable> {
        let json = r#"{"id":"corp","body":{"ipv4":"10.0.0.0/24"}}"#;
        let document: ResourceDocument = serde_json::from_str(json).expect("good");
        let mut declared = schema::snapshot::Snapshot::default();
        declared.put(document.id.clone(), document.entry().expect("good"));
        let (inventory, comms_range) = (Inventory::default(), "10.101.0.0/16".parse().ok());
        let meshes = Meshes { declared: &declared, members: &inventory, comms_range, server };
        let facts = wire::Facts {
            listen_port: 0,
            endpoint: endpoint.into(),
            local_address: local.into(),
            ..wire::Facts::default()
        };
        let seen = seen.map(|address| address.parse().expect("good"));
        read(&facts, seen, meshes, before).map(|facts| facts.endpoints)
    }

    fn read_in_corp(endpoint: &str, local: &str, seen: Option<&str>) -> Result<Endpoints, Unusable> {
        read_at(&[], (endpoint, local, seen), None)
    }

    #[test]
    fn addresses_that_others_cannot_use_are_ignored() {
        let read = |endpoint: &str, local: &str, seen: Option<&str>| {
            let endpoints = read_in_corp(endpoint, local, seen).expect("it is valid");
            let text =
                |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
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
        assert_eq!(read("", "169.254.1.1", Some("255.255.255.255")), ["", "", ""]);
        assert_eq!(read("", "10.101.0.9", Some("::ffff:10.0.0.8")), ["", "", ""]);
        assert_eq!(read("", "", None), ["", "", ""]);
    }

    #[test]
    fn an_invalid_value_is_reported() {
        let long = "a".repeat(70_000);
        for endpoint in [
            "127.0.0.1",
            "[::1]:5",
            "[::ffff:127.0.0.1]:5",
            "[::ffff:10.0.0.9]:5",
            "0.0.0.0:1",
            "239.0.0.1",
            "169.254.1.1:5",
            "255.255.255.255:5",
            "10.0.0.9:51821",
            "10.101.0.9:51821",
            "gw.corp:51821",
            "localhost",
            "2001:db8::7:51821",
            "a b",
            "x:0",
            &long,
        ] {
            let error =
                read_in_corp(endpoint, "", Some("192.0.2.1")).expect_err("it is of no use").to_string();
            assert!(error.contains("endpoint") && error.len() < 400, "{error}");
        }
        assert!(matches!(read_in_corp("", "here", None), Err(Unusable::LocalAddress(_))));
        let error = read_in_corp("2001:db8::7:51821", "", None).expect_err("it has no brackets").to_string();
        assert!(error.contains("set one like [2001:db8::7]:51821"), "{error}");
    }

    #[test]
    fn what_was_reported_before_stays_when_a_mesh_takes_a_range_around_it() {
        let before = Endpoints {
            configured: "10.0.0.9:51821".parse().ok(),
            seen: "10.0.0.8".parse().ok(),
            local: "10.0.0.7".parse().ok(),
        };
        let again = ("10.0.0.9:51821", "10.0.0.7", Some("10.0.0.8"));
        assert_eq!(read_at(&[], again, Some(&before)), Ok(before.clone()));
        let other_port = read_at(&[], ("10.0.0.9:4000", "", None), Some(&before)).expect("the address stays");
        assert_eq!(other_port.configured, "10.0.0.9:4000".parse().ok());
        let moved = ("", "10.0.0.8", Some("10.0.0.7"));
        assert_eq!(read_at(&[], moved, Some(&before)), Ok(Endpoints::default()), "the others are new");
        let loopback = Endpoints { seen: "127.0.0.1".parse().ok(), ..Endpoints::default() };
        let seen = read_at(&[], ("", "", Some("127.0.0.1")), Some(&loopback)).expect("it is valid");
        assert_eq!(seen, Endpoints::default(), "what never was an endpoint does not stay");
    }

    #[test]
    fn hosts_in_a_range_that_was_let_through_are_reached_there() {
        let server = ["10.0.0.1".parse().expect("good")];
        let there = ("10.0.0.9:51821", "10.0.0.7", Some("10.0.0.8"));
        assert!(read_at(&server, there, None).is_ok_and(|endpoints| endpoints.seen.is_some()));
        assert!(read_at(&[], there, None).is_err());
    }
}
