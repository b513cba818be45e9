//! What an external client has to be configured with, given what is declared and what has joined.
//!
//! A client runs no agent, so nothing changes its [`Configuration`] but people who hand it out: one that differs
//! from what was handed out has to be handed out anew. It holds everything but the private key, which only
//! [`Configuration::text`] is given.

mod changes;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::compile;
use crate::compile::policy::Selected;
use crate::inventory::{Inventory, NodeId};
use crate::kinds::{Egress, ExternalClient, Ingress, Network, Node};
use crate::scalars::{Endpoint, Name, Seconds, WireGuardKey};
use crate::snapshot::{ResourceId, Snapshot};

pub use changes::{ClientChange, ClientOutcome, FieldChange, between};

/// The configuration of an external client, without its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The client's addresses in the network: at most one of each family.
    pub addresses: BTreeSet<IpAddr>,
    /// The nameservers that it is given; empty: it keeps its own.
    pub dns: BTreeSet<IpAddr>,
    /// The largest packet, in bytes, that its interface takes; absent: it derives that itself.
    pub mtu: Option<u16>,
    /// The key of the node that it is connected to.
    pub public_key: WireGuardKey,
    /// Where it reaches that node, with a port.
    pub endpoint: Endpoint,
    /// What it sends to that node: the network's ranges, and those of each egress that it gets the route to.
    pub allowed_ips: BTreeSet<IpNet>,
    /// How often it sends a packet that keeps mappings open; 0: never.
    pub keepalive: Seconds,
}

/// Why a client has no configuration at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The server does not have it, or not its ingress.
    #[error("{0} is not applied yet")]
    NotApplied(ResourceId),
    /// It is disabled.
    #[error("{0} is disabled")]
    Disabled(ResourceId),
    /// It has expired.
    #[error("{0} has expired")]
    Expired(ResourceId),
    /// It has no address.
    #[error("{0} has no address")]
    NoAddress(ResourceId),
    /// The node of its ingress has not joined.
    #[error("{node}, which {ingress} is at, has not joined")]
    NotJoined {
        /// The ingress.
        ingress: ResourceId,
        /// The node.
        node: ResourceId,
    },
    /// It is unknown where that node is reached.
    #[error("it is unknown where clients reach {node}, which {ingress} is at")]
    NoEndpoint {
        /// The ingress.
        ingress: ResourceId,
        /// The node.
        node: ResourceId,
    },
}

impl Unavailable {
    /// What to do.
    pub fn help(&self) -> String {
        match self {
            Self::NotApplied(_) => "apply the files first:\n\n    nmplan apply".into(),
            Self::Disabled(_) => "remove `enabled` from its declaration, and apply".into(),
            Self::Expired(_) => "set another `expires` in its declaration, or remove it, and apply".into(),
            Self::NoAddress(_) => {
                "the range that clients get their addresses from is used up: extend it, and apply".into()
            }
            Self::NotJoined { .. } => {
                "join it first, with a key that admits its name: netclient join -t TOKEN".into()
            }
            Self::NoEndpoint { .. } => {
                "give the ingress an `endpoint`, such as gw.example.net:51821, and apply".into()
            }
        }
    }
}

impl Configuration {
    /// The configuration of a client of that network and name.
    ///
    /// # Errors
    ///
    /// The first thing that is missing.
    pub fn of(client: &NodeId, declared: &Snapshot, inventory: &Inventory) -> Result<Self, Unavailable> {
        let NodeId { network, name } = client;
        let id = || ResourceId::of::<ExternalClient>(network, name);
        let settings = declared.network(network).ok_or_else(|| Unavailable::NotApplied(id()))?;
        let declaration =
            declared.named::<ExternalClient>(network, name).ok_or_else(|| Unavailable::NotApplied(id()))?;
        let status = inventory.client(client).ok_or_else(|| Unavailable::NotApplied(id()))?;
        if !declaration.enabled {
            return Err(Unavailable::Disabled(id()));
        }
        if status.expired {
            return Err(Unavailable::Expired(id()));
        }
        if status.addresses.is_empty() {
            return Err(Unavailable::NoAddress(id()));
        }
        let ingress = ResourceId::of::<Ingress>(network, &declaration.via.name);
        let Some(Ingress { via, endpoint, pool: _, dns }) =
            declared.named::<Ingress>(network, &ingress.name).map(|ingress| &**ingress)
        else {
            return Err(Unavailable::NotApplied(ingress));
        };
        let node = ResourceId::of::<Node>(network, &via.name);
        let Some(joined) = inventory.node(&node.node()) else {
            return Err(Unavailable::NotJoined { ingress, node });
        };
        let own = declared.named::<Node>(network, &via.name).and_then(|node| node.endpoint.as_ref());
        let Some(endpoint) = compile::endpoint(endpoint.as_ref().or(own), joined) else {
            return Err(Unavailable::NoEndpoint { ingress, node });
        };
        let Network { mtu, keepalive, name_service, .. } = &**settings;
        let gets = |egress: &Egress| is_for(egress, client, (&declaration.tags, &status.addresses), declared);
        let behind = declared.all_in::<Egress>(network).filter(|(_, egress)| gets(egress));
        let behind = behind.flat_map(|(_, egress)| egress.ranges.iter().map(|range| range.net()));
        Ok(Self {
            addresses: status.addresses.clone(),
            dns: match dns.is_empty() && *name_service {
                true => inventory.resolvers().clone(),
                false => dns.clone(),
            },
            mtu: mtu.and_then(|mtu| u16::try_from(mtu.number()).ok()),
            public_key: joined.public_key,
            endpoint,
            allowed_ips: settings.ranges().chain(behind).collect(),
            keepalive: *keepalive,
        })
    }

    /// The configuration as wg-quick(8) reads it; the private key is written as `wg genkey` prints it.
    pub fn text(&self, private_key: &str) -> String {
        let line = |(field, values): (&str, Vec<String>)| format!("{field} = {}\n", values.join(", "));
        let key = ("PrivateKey", vec![private_key.to_owned()]);
        let own: String = [key].into_iter().chain(self.own()).map(line).collect();
        let peer: String = self.peer().into_iter().map(line).collect();
        format!("[Interface]\n{own}\n[Peer]\n{peer}")
    }

    /// What stands in it of the client itself, by the fields of wg-quick(8), without its private key.
    fn own(&self) -> Vec<(&'static str, Vec<String>)> {
        let Self { addresses, dns, mtu, .. } = self;
        let own = [
            ("Address", list(addresses.iter().copied().map(IpNet::from))),
            ("DNS", list(dns.iter())),
            ("MTU", list(mtu.iter())),
        ];
        own.into_iter().filter(|(_, values)| !values.is_empty()).collect()
    }

    /// What stands in it of the node that it is connected to, likewise.
    fn peer(&self) -> Vec<(&'static str, Vec<String>)> {
        let Self { public_key, endpoint, allowed_ips, keepalive, .. } = self;
        let keepalive = Some(keepalive.0).filter(|seconds| *seconds > 0);
        let peer = [
            ("PublicKey", vec![public_key.to_string()]),
            ("Endpoint", vec![endpoint.to_string()]),
            ("AllowedIPs", list(allowed_ips.iter())),
            ("PersistentKeepalive", list(keepalive.iter())),
        ];
        peer.into_iter().filter(|(_, values)| !values.is_empty()).collect()
    }
}

/// Whether a client gets the route to what is behind an egress.
fn is_for(
    egress: &Egress,
    client: &NodeId,
    (tags, addresses): (&BTreeSet<Name>, &BTreeSet<IpAddr>),
    declared: &Snapshot,
) -> bool {
    let Some(selectors) = &egress.r#for else { return true };
    Selected::by(selectors.iter(), &client.network, declared).holds(&client.name, tags, addresses)
}

fn list(items: impl Iterator<Item = impl Display>) -> Vec<String> {
    items.map(|item| item.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::decode::decode;
    use crate::inventory::tests::joined;
    use crate::inventory::{ClientStatus, Endpoints, Joined};
    use crate::kinds::Kind;
    use crate::syntax::{Language, Source, parse};
    use crate::value::SourceId;

    const NETWORK: &str = r#"
        ipv4 "10.40.0.0/16"
        node "gw"
        external-client "alice" via="front" { tags "staff" }
        egress "office" via="gw" { ranges "192.168.10.0/24"; for "tag:staff" }
        egress "lab" via="gw" { ranges "192.168.20.0/24"; for "gw" }
        egress "all" via="gw" { ranges "192.168.30.0/24" }
        "#;

    /// What a network of these parts is, with its node joined and its client given addresses.
    fn world(more: &str, client: &ClientStatus) -> (Snapshot, Inventory) {
        let text = format!("network \"corp\" {{ {NETWORK} {more} }}");
        let source = Source { name: "mesh.kdl".into(), text: text.into(), language: Language::Kdl };
        let (documents, report) = parse(&source, SourceId(0), Kind::DESCRIPTORS);
        let (declared, problems) = decode(documents);
        assert!(report.is_empty() && problems.is_empty(), "{report:?} {problems:?}");
        let mut inventory = Inventory::default();
        let endpoints = Endpoints { seen: "192.0.2.9".parse().ok(), ..Endpoints::default() };
        inventory.put_node(id("gw"), Joined { endpoints, ..joined(1, "10.40.0.1") });
        inventory.put_client(id("alice"), client.clone(), Timestamp::UNIX_EPOCH);
        (declared.snapshot, inventory)
    }

    fn id(name: &str) -> NodeId {
        NodeId::of(&"corp".parse().expect("good"), &name.parse().expect("good"))
    }

    fn let_in() -> ClientStatus {
        let addresses = ["10.40.0.7", "fd40::7"].map(|address| address.parse().expect("good"));
        ClientStatus { addresses: addresses.into(), created: Timestamp::UNIX_EPOCH, expired: false }
    }

    fn of(more: &str, client: &ClientStatus) -> Result<Configuration, Unavailable> {
        let (declared, inventory) = world(more, client);
        Configuration::of(&id("alice"), &declared, &inventory)
    }

    #[test]
    fn a_configuration_has_what_wg_quick_reads() {
        let ingress = r#"ingress "front" via="gw" endpoint="gw.example.net" { dns "10.40.0.53" "9.9.9.9" }
            mtu 1380; keepalive "25s"; ipv6 "fd40::/64""#;
        let text = of(ingress, &let_in()).expect("it has one").text("PRIVATE");
        insta::assert_snapshot!(text, @r"
        [Interface]
        PrivateKey = PRIVATE
        Address = 10.40.0.7/32, fd40::7/128
        DNS = 9.9.9.9, 10.40.0.53
        MTU = 1380

        [Peer]
        PublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
        Endpoint = gw.example.net:51821
        AllowedIPs = 10.40.0.0/16, 192.168.10.0/24, 192.168.30.0/24, fd40::/64
        PersistentKeepalive = 25
        ");
    }

    #[test]
    fn what_is_not_set_is_not_written_and_the_endpoint_is_where_the_node_is_reached() {
        let text =
            of("ingress \"front\" via=\"gw\"; keepalive \"0s\"", &let_in()).expect("it has one").text("P");
        assert!(!["DNS", "MTU", "PersistentKeepalive"].iter().any(|field| text.contains(field)), "{text}");
        assert!(text.contains("Endpoint = 192.0.2.9:51821\n"), "{text}");
    }

    #[test]
    fn a_client_asks_the_name_servers_of_its_ingress_or_else_of_the_server() {
        let asked = |more: &str| {
            let (declared, mut inventory) = world(more, &let_in());
            inventory.set_resolvers(["10.40.0.1".parse().expect("good")].into());
            let text = Configuration::of(&id("alice"), &declared, &inventory).expect("it has one").text("P");
            text.lines().find(|line| line.starts_with("DNS")).unwrap_or_default().to_owned()
        };
        assert_eq!(asked("ingress \"front\" via=\"gw\""), "DNS = 10.40.0.1");
        assert_eq!(asked("ingress \"front\" via=\"gw\" { dns \"9.9.9.9\" }"), "DNS = 9.9.9.9");
        assert_eq!(asked("ingress \"front\" via=\"gw\"; name-service #false"), "");
    }

    #[test]
    fn what_a_client_lacks_is_said() {
        let front = "ingress \"front\" via=\"gw\"";
        let error =
            |more: &str, client: &ClientStatus| of(more, client).expect_err("it lacks something").to_string();
        assert_eq!(error("", &let_in()), "corp/ingress/front is not applied yet");
        let expired = ClientStatus { expired: true, ..let_in() };
        assert_eq!(error(front, &expired), "corp/external-client/alice has expired");
        let without = ClientStatus { addresses: BTreeSet::new(), ..let_in() };
        assert_eq!(error(front, &without), "corp/external-client/alice has no address");
        let elsewhere = "node \"other\"; ingress \"front\" via=\"other\"";
        let not_joined = "corp/node/other, which corp/ingress/front is at, has not joined";
        assert_eq!(error(elsewhere, &let_in()), not_joined);
        let (declared, mut inventory) = world(front, &let_in());
        inventory.put_node(id("gw"), joined(1, "10.40.0.1"));
        let nowhere = "it is unknown where clients reach corp/node/gw, which corp/ingress/front is at";
        let of = |name: &str, inventory: &Inventory| Configuration::of(&id(name), &declared, inventory);
        assert_eq!(of("alice", &inventory).expect_err("no endpoint").to_string(), nowhere);
        let unknown = of("bob", &inventory).expect_err("it is not there").to_string();
        assert_eq!(unknown, "corp/external-client/bob is not applied yet");
        inventory.remove_client(&id("alice"), Timestamp::UNIX_EPOCH);
        assert_eq!(
            of("alice", &inventory),
            Err(Unavailable::NotApplied("corp/external-client/alice".parse().expect("good")))
        );
    }
}
