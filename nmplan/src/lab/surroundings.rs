//! What is around the nodes of a lab, given what is declared: hosts behind gateways, and nodes that cannot be
//! reached directly?
//!
//! Pure. Behind each range of an egress there is one host, at its last but one address, on a [`Lan`] with the
//! nodes of `via`, which have the first addresses in their order. What a rule or a test names of a range has an
//! address too. Behind `0.0.0.0/0` and `::/0` there is one host, [`INTERNET`], that only gateways to them reach. A
//! node in the `for` of a relay, [`Relayed`], exchanges no datagrams with other nodes than its relays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use schema::compile::policy::Selected;
use schema::kinds::{Allow, Egress, NoReach, Path, Reach, Relay, Test};
use schema::scalars::{Name, NetworkName, Selector, is_default};
use schema::snapshot::{NodeId, Snapshot};

/// The name of the host beyond all gateways to the internet; no node can have it.
pub const INTERNET: &str = "the_internet";

/// What is around the nodes of all networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// What is behind egress, without default routes.
    pub lans: Vec<Lan>,
    /// The egress to the internet.
    pub exits: Vec<Exit>,
    /// The nodes that cannot be reached directly.
    pub relayed: Vec<Relayed>,
}

/// What is behind one range of an egress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// The network whose egress it is.
    pub network: NetworkName,
    /// The range.
    pub range: IpNet,
    /// The name of the host; no node can have it.
    pub host: String,
    /// The addresses of the host: in the range itself first, then in each part of it that is named.
    pub addresses: Vec<IpAddr>,
    /// The ranges of other egress in it, which hosts reach through the gateways all the same.
    pub inner: Vec<IpNet>,
    /// The gateways in order of preference, each with its address in the range; absent: there is none left.
    pub gateways: Vec<(NodeId, Option<IpAddr>)>,
}

/// An egress to the internet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The network.
    pub network: NetworkName,
    /// The gateways, in order of preference.
    pub gateways: Vec<NodeId>,
    /// What leads there: one of the default routes, or both.
    pub ranges: BTreeSet<IpNet>,
}

/// A node that cannot be reached directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// The node.
    pub node: NodeId,
    /// The other nodes of the network but its relays: it exchanges no datagrams with them.
    pub apart: Vec<NodeId>,
}

/// Derives the surroundings of nodes with these tags.
pub fn surroundings(declared: &Snapshot, nodes: &BTreeMap<NodeId, BTreeSet<Name>>) -> Surroundings {
    let mut all = Surroundings::default();
    for (network, _) in declared.networks() {
        let node = |name: &Name| NodeId::of(network, name);
        for (_, egress) in declared.all_in::<Egress>(network) {
            let gateways: Vec<_> = egress.via.iter().map(|via| node(&via.name)).collect();
            let ranges = || egress.ranges.iter().map(|range| range.net());
            let exits: BTreeSet<_> = ranges().filter(is_default).collect();
            for range in ranges().filter(|range| !is_default(range)) {
                let number = all.lans.len() + 1;
                all.lans.push(lan(network, range, number, &gateways, declared));
            }
            if !exits.is_empty() {
                all.exits.push(Exit { network: network.clone(), gateways, ranges: exits });
            }
        }
        for (_, relay) in declared.all_in::<Relay>(network) {
            let relays: Vec<_> = relay.via.iter().map(|via| node(&via.name)).collect();
            let selected = Selected::by(relay.r#for.iter(), network, declared);
            let others: Vec<_> =
                nodes.iter().filter(|(id, _)| id.network == *network && !relays.contains(id)).collect();
            let relayed = others.iter().filter(|(id, tags)| selected.holds(&id.name, tags, &BTreeSet::new()));
            all.relayed.extend(relayed.map(|(node, _)| {
                let apart = others.iter().map(|(other, _)| *other).filter(|other| other != node);
                Relayed { node: (*node).clone(), apart: apart.cloned().collect() }
            }));
        }
    }
    all
}

fn lan(network: &NetworkName, range: IpNet, number: usize, gateways: &[NodeId], declared: &Snapshot) -> Lan {
    let own = last_but_one(range);
    let first = first_of(range).take_while(|address| *address != own).map(Some);
    let gateways = gateways.iter().cloned().zip(first.chain(std::iter::repeat(None)));
    let gateways: Vec<_> = gateways.collect();
    let mut addresses = vec![own];
    let others = declared.all_in::<Egress>(network).flat_map(|(_, egress)| egress.ranges.iter());
    let others = others.map(|other| other.net());
    let inner: Vec<_> = others.filter(|other| *other != range && range.contains(other)).collect();
    for part in named(network, declared).into_iter().filter(|part| range.contains(part)) {
        let address = last_but_one(part);
        let is_taken = addresses.contains(&address)
            || gateways.iter().any(|(_, taken)| *taken == Some(address))
            || inner.iter().any(|other| other.contains(&address));
        if !is_taken {
            addresses.push(address);
        }
    }
    Lan { network: network.clone(), range, host: format!("lan_{number}"), addresses, inner, gateways }
}

/// The ranges that rules and tests name.
fn named(network: &NetworkName, declared: &Snapshot) -> BTreeSet<IpNet> {
    let rules =
        declared.all_in::<Allow>(network).flat_map(|(_, rule)| rule.from.iter().chain(rule.to.iter()));
    let tests = declared.all_in::<Test>(network).flat_map(|(_, test)| {
        let Test { reach, no_reach, path } = &**test;
        let reach = reach
            .iter()
            .flat_map(|Reach { from, to, except, .. }| from.iter().chain(to.iter()).chain(except));
        let not = no_reach
            .iter()
            .flat_map(|NoReach { from, to, except, .. }| from.iter().chain(to.iter()).chain(except));
        let path = path.iter().flat_map(|Path { from, to, via: _ }| [from, to]);
        reach.chain(not).chain(path)
    });
    let range = |selector: &Selector| match selector {
        Selector::Range(range) => Some(*range),
        Selector::All | Selector::Name(_) | Selector::Tag(_) => None,
    };
    rules.chain(tests).filter_map(range).collect()
}

/// The last address of a range before its last one, which in IPv4 is no host's; of one or two addresses the last.
fn last_but_one(range: IpNet) -> IpAddr {
    let back = u8::from(range.max_prefix_len() - range.prefix_len() > 1);
    match range {
        IpNet::V4(range) => Ipv4Addr::from(u32::from(range.broadcast()) - u32::from(back)).into(),
        IpNet::V6(range) => Ipv6Addr::from(u128::from(range.broadcast()) - u128::from(back)).into(),
    }
}

/// The addresses of a range in order, without its first one, which is no host's; of two addresses both.
fn first_of(range: IpNet) -> impl Iterator<Item = IpAddr> {
    let skipped = u8::from(range.max_prefix_len() - range.prefix_len() > 1);
    (u32::from(skipped)..).map_while(move |number| {
        let address: IpAddr = match range {
            IpNet::V4(range) => Ipv4Addr::from(u32::from(range.network()).checked_add(number)?).into(),
            IpNet::V6(range) => {
                Ipv6Addr::from(u128::from(range.network()).checked_add(number.into())?).into()
            }
        };
        range.contains(&address).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::super::declared;
    use super::*;

    fn of(text: &str) -> Surroundings {
        let declared = declared(&format!("network \"n\" {{ ipv4 \"10.0.0.0/24\"\n{text} }}"));
        let network: NetworkName = "n".parse().expect("good");
        let nodes = ["a", "b", "c"].map(|name| {
            let tags = if name == "c" { ["away".parse().expect("good")].into() } else { BTreeSet::new() };
            (NodeId::of(&network, &name.parse().expect("good")), tags)
        });
        surroundings(&declared, &nodes.into())
    }

    fn names(nodes: &[NodeId]) -> Vec<&str> {
        nodes.iter().map(|node| node.name.as_str()).collect()
    }

    const NODES: &str = "node \"a\"; node \"b\"; node \"c\"";

    #[test]
    fn each_range_has_a_host_at_its_last_address_but_one_and_gateways_at_the_first() {
        for (range, host, gateways) in [
            ("192.168.1.0/24", "192.168.1.254", ["192.168.1.1", "192.168.1.2"]),
            ("192.168.1.0/30", "192.168.1.2", ["192.168.1.1", "-"]),
            ("192.168.1.4/31", "192.168.1.5", ["192.168.1.4", "-"]),
            ("192.168.1.4/32", "192.168.1.4", ["-", "-"]),
            ("fd00::/64", "fd00::ffff:ffff:ffff:fffe", ["fd00::1", "fd00::2"]),
            ("fd00::8/128", "fd00::8", ["-", "-"]),
        ] {
            let all = of(&format!("{NODES}; egress \"e\" {{ via \"b\" \"a\"; ranges \"{range}\" }}"));
            let [lan] = &*all.lans else { panic!("{all:?}") };
            assert_eq!(lan.addresses, [host.parse::<IpAddr>().expect("good")], "{range}");
            let of_gateways = lan.gateways.iter().map(|(node, address)| {
                (node.name.as_str(), address.map_or("-".to_owned(), |address| address.to_string()))
            });
            let expected = ["b", "a"].into_iter().zip(gateways.map(str::to_owned));
            assert!(of_gateways.eq(expected), "{lan:?}");
        }
    }

    #[test]
    fn parts_of_a_range_that_rules_and_tests_name_have_an_address_unless_a_longer_range_holds_it() {
        let all = of(&format!(
            r#"acl "deny"; {NODES}
            egress "e" via="a" {{ ranges "192.168.0.0/16" }}
            egress "f" via="b" {{ ranges "192.168.7.0/24" }}
            allow "r" from="a" to="192.168.2.0/24"
            allow "s" from="192.168.7.9/32" to="a"
            test "t" {{ no-reach from="192.168.3.1/32" to="192.168.255.0/24" }}"#
        ));
        let addresses: Vec<_> =
            all.lans.iter().map(|lan| (lan.host.as_str(), lan.addresses.clone())).collect();
        let expected =
            |texts: &[&str]| texts.iter().map(|text| text.parse().expect("good")).collect::<Vec<IpAddr>>();
        assert_eq!(
            addresses,
            [
                ("lan_1", expected(&["192.168.255.254", "192.168.2.254", "192.168.3.1"])),
                ("lan_2", expected(&["192.168.7.254", "192.168.7.9"])),
            ]
        );
        let inner: Vec<_> = all.lans.iter().map(|lan| lan.inner.len()).collect();
        assert_eq!(inner, [1, 0]);
    }

    #[test]
    fn gateways_to_the_internet_have_no_range_and_of_nodes_some_reach_their_relays_alone() {
        let all = of(&format!(
            r#"{NODES}
            egress "e" {{ via "b" "a"; ranges "0.0.0.0/0" "::/0" "192.168.1.0/24" }}
            relay "r" {{ via "a"; for "tag:away" }}"#
        ));
        assert_eq!((all.lans.len(), names(&all.exits[0].gateways)), (1, vec!["b", "a"]));
        let exits: Vec<_> = all.exits[0].ranges.iter().map(ToString::to_string).collect();
        assert_eq!(exits, ["0.0.0.0/0", "::/0"]);
        let relayed: Vec<_> =
            all.relayed.iter().map(|it| (it.node.name.as_str(), names(&it.apart))).collect();
        assert_eq!(relayed, [("c", vec!["b"])]);
    }
}
