//! By which interfaces of its host a node forwards to what is outside of its networks, and what keeps it from
//! that.
//!
//! Pure. An egress names an interface, or its ranges are behind the one that the host routes them to, past every
//! network. A default route is such a route for everything and for public ranges only: a private range that
//! nothing else leads to is not behind it, but its own interface is down, say, and packets for it would leave for
//! the internet. Who knows better names the interface.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use schema::inventory::NodeProblem;
use schema::scalars::{Name, NetworkName, is_default};
use schema::view::Forward;

use crate::forwarding::Needs;
use crate::outside::addresses_in;

/// Ranges that are nobody's in the internet (RFC 1918, RFC 6598, RFC 4193).
const PRIVATE: [IpNet; 5] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7)),
];

/// The route by which packets to an address leave a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The interface.
    pub interface: String,
    /// What the route leads to.
    pub range: IpNet,
    /// Whether it leads to other hosts, and not to an address of this one or to all at once.
    pub forwards: bool,
}

/// What a host is connected to, as far as its networks forward to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Its interfaces, each with whether it is up and has a carrier.
    pub carriers: BTreeMap<String, bool>,
    /// The routes to some addresses, past every network; absent: packets to them are refused.
    pub exits: BTreeMap<IpAddr, Option<Exit>>,
}

/// The addresses of which [`ways`] needs to know the route.
pub fn questions(forward: &Forward) -> impl Iterator<Item = IpAddr> {
    let derived = forward.ranges.keys().filter(|_| forward.interface.is_none());
    derived.flat_map(addresses_in)
}

/// The interfaces by which an egress is forwarded to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Those of IPv4 ranges.
    pub ipv4: BTreeSet<String>,
    /// Those of IPv6 ranges.
    pub ipv6: BTreeSet<String>,
    /// Of both, those of default routes.
    pub everything: BTreeSet<String>,
    /// The ranges that are behind one of them.
    pub ranges: BTreeSet<IpNet>,
}

impl Ways {
    /// Adds those from which packets have to be forwarded.
    pub fn add_to(&self, needs: &mut Needs) {
        needs.ipv4.extend(self.ipv4.iter().cloned());
        needs.ipv6.extend(self.ipv6.iter().cloned());
    }
}

/// The interfaces by which a host forwards to an egress of a network, and what is wrong. An egress of which one
/// range has no way is not carried, so that another gateway does; but one to everything is, if one family has a
/// way: a host without IPv6 is common, and programs then take IPv4 at once.
pub fn ways(
    network: &NetworkName,
    egress: &Name,
    forward: &Forward,
    host: &Surroundings,
) -> (Ways, Option<NodeProblem>) {
    let mut ways = Ways::default();
    let mut lacking = Vec::new();
    for range in forward.ranges.keys() {
        match way(range, forward, host) {
            Ok(interface) => {
                ways.ranges.insert(*range);
                if is_default(range) {
                    ways.everything.insert(interface.clone());
                }
                let of_family = if range.addr().is_ipv4() { &mut ways.ipv4 } else { &mut ways.ipv6 };
                of_family.insert(interface);
            }
            Err(why) => lacking.push((range, why)),
        }
    }
    let Some((range, why)) = lacking.first() else { return (ways, None) };
    let half = lacking.len() < forward.ranges.len() && lacking.iter().all(|(range, _)| is_default(range));
    let what = if half {
        format!("{range} of {network}/egress/{egress}")
    } else {
        format!("{network}/egress/{egress}")
    };
    let problem = NodeProblem::new(NodeProblem::EGRESS, format!("this host does not carry {what}: {why}"));
    (ways, Some(if half { problem } else { problem.of_egress(egress.clone()) }))
}

/// What is wrong where nothing rewrites sources, or judges who may reach what: why, and what to do.
pub fn unfiltered(network: &NetworkName, egress: &Name, remedy: &str) -> NodeProblem {
    let message = format!(
        "this host does not carry {network}/egress/{egress}: what is forwarded to outside of a network is judged, and \
         rewritten, by nftables; {remedy}"
    );
    NodeProblem::new(NodeProblem::EGRESS, message).of_egress(egress.clone())
}

/// The interface that a range is behind; or why it is behind none, and what to do.
fn way(range: &IpNet, forward: &Forward, host: &Surroundings) -> Result<String, String> {
    if let Some(named) = &forward.interface {
        return match host.carriers.get(named.as_str()) {
            Some(true) => Ok(named.to_string()),
            Some(false) => Err(format!(
                "its interface {named} is down, or has no carrier; plug it in (ip link set {named} up), or declare another \
                 interface"
            )),
            None => Err(format!("there is no interface {named} here; add it, or declare another interface")),
        };
    }
    let answers = addresses_in(range).into_iter().filter_map(|address| host.exits.get(&address)?.as_ref());
    // It may be connected to a part of it alone.
    let exit = answers.filter(|exit| exit.forwards).max_by_key(|exit| exit.range.prefix_len());
    let private = PRIVATE.iter().any(|private| private.contains(range));
    match exit {
        None => Err(format!(
            "it has no route to {range}; connect it to that network, add a route, or declare the interface"
        )),
        Some(exit) if is_default(&exit.range) && private => Err(format!(
            "only its default route leads to {range}, by {}, and that is a private range; connect it to that network, add a \
             route, or, if it is there, declare the interface",
            exit.interface
        )),
        Some(Exit { interface, .. }) if host.carriers.get(interface) != Some(&true) => Err(format!(
            "the interface {interface}, which leads to {range}, is down, or has no carrier; plug it in"
        )),
        Some(exit) => Ok(exit.interface.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(ranges: &[&str], interface: Option<&str>) -> Forward {
        let range = |text: &&str| (text.parse().expect("a range"), Default::default());
        Forward {
            ranges: ranges.iter().map(range).collect(),
            interface: interface.map(|name| name.parse().expect("a name")),
            nat: true,
        }
    }

    /// A host with default routes of IPv4 by eth0, and these routes.
    fn host(forward: &Forward, routes: &[(&str, &str)], carriers: &[(&str, bool)]) -> Surroundings {
        let routes: Vec<(IpNet, &str)> = [("0.0.0.0/0", "eth0")]
            .iter()
            .chain(routes)
            .map(|(range, by)| (range.parse().expect("a range"), *by))
            .collect();
        let exit = |to: IpAddr| {
            let leading = routes.iter().filter(|(range, _)| range.contains(&to));
            leading.max_by_key(|(range, _)| range.prefix_len()).map(|(range, by)| Exit {
                interface: (*by).to_owned(),
                range: *range,
                forwards: *by != "lo",
            })
        };
        Surroundings {
            carriers: carriers.iter().map(|(name, carrier)| ((*name).to_owned(), *carrier)).collect(),
            exits: questions(forward).map(|to| (to, exit(to))).collect(),
        }
    }

    #[test]
    fn a_range_is_behind_what_the_host_routes_it_to_or_what_is_declared() {
        let up = [("eth0", true), ("eth1", true), ("eth2", false)];
        let lan = ("192.168.10.0/24", "eth1");
        // A range, the interface declared, the route: the interface, or what the problem says.
        for (range, declared, route, expected) in [
            ("192.168.10.0/24", None, Some(lan), Ok("eth1")),
            ("192.168.10.0/24", None, Some(("192.168.10.0/25", "eth1")), Ok("eth1")),
            ("192.168.10.0/24", None, Some(("192.168.0.0/16", "eth1")), Ok("eth1")),
            (
                "192.168.10.254/32",
                None,
                Some(("192.168.10.254/32", "lo")),
                Err("no route to 192.168.10.254/32"),
            ),
            ("192.168.10.0/24", None, None, Err("only its default route leads to 192.168.10.0/24, by eth0")),
            ("192.168.10.0/24", Some("eth0"), None, Ok("eth0")),
            (
                "192.168.10.0/24",
                None,
                Some(("192.168.10.0/24", "eth2")),
                Err("eth2, which leads to 192.168.10.0/24, is down"),
            ),
            ("192.168.10.0/24", Some("eth2"), Some(lan), Err("eth2 is down")),
            ("192.168.10.0/24", Some("eth9"), Some(lan), Err("no interface eth9")),
            ("203.0.113.0/24", None, None, Ok("eth0")),
            ("0.0.0.0/0", None, None, Ok("eth0")),
            ("fd10::/64", None, Some(("fd10::/64", "eth1")), Ok("eth1")),
            ("fd10::/64", None, Some(("::/0", "eth0")), Err("default route")),
            ("2001:db8::/32", None, None, Err("no route to 2001:db8::/32")),
        ] {
            let forward = forward(&[range], declared);
            let host = host(&forward, route.as_slice(), &up);
            let (ways, problem) =
                ways(&"corp".parse().expect("good"), &"office".parse().expect("good"), &forward, &host);
            match expected {
                Ok(interface) => {
                    assert_eq!(problem, None, "{range}");
                    assert!(ways.ipv4.iter().chain(&ways.ipv6).eq([interface]), "{range}: {ways:?}");
                }
                Err(why) => {
                    let problem = problem.expect(why);
                    assert!(problem.message.contains(why), "{why}: {}", problem.message);
                    assert!(problem.message.contains("corp/egress/office"), "{}", problem.message);
                    assert_eq!(problem.egress.as_ref().map(Name::as_str), Some("office"));
                }
            }
        }
    }

    #[test]
    fn an_egress_to_everything_is_carried_by_one_family_and_every_other_one_as_a_whole() {
        let named = |ranges: &[&str]| {
            let forward = forward(ranges, None);
            let host = host(&forward, &[("192.168.10.0/24", "eth1")], &[("eth0", true), ("eth1", true)]);
            ways(&"corp".parse().expect("good"), &"out".parse().expect("good"), &forward, &host)
        };
        let (ways, problem) = named(&["0.0.0.0/0", "::/0"]);
        let problem = problem.expect("there is no way for IPv6");
        assert_eq!((ways.everything.len(), problem.egress), (1, None));
        assert!(problem.message.contains("::/0 of corp/egress/out"), "{}", problem.message);
        assert!(named(&["::/0"]).1.is_some_and(|problem| problem.egress.is_some()));
        assert!(named(&["192.168.10.0/24", "fd10::/64"]).1.is_some_and(|problem| problem.egress.is_some()));
    }
}
