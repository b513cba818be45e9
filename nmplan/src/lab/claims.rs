//! What must packets show of a network, given what is declared?
//!
//! Pure. A [`Claim`] says of a service of one [`Party`], a member or a host behind gateways, whether another may open
//! it. Those of a declared test are what the test demands; besides, some are sampled of pairs that no test names, and
//! there the compiler says what must hold. So that limits of rules are seen, ports are the first and the last of each range that a rule
//! names, and the next one that it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use schema::access::{Access, Protocol};
use schema::compile::Mesh;
use schema::compile::policy::{Policy, Selected};
use schema::inventory::{ClientStatus, Endpoints, Inventory, Joined};
use schema::judge::explain::explain;
use schema::kinds::{Allow, ExternalClient, NoReach, Reach, Test};
use schema::scalars::{Identity, Name, NetworkName, Selector, WireGuardKey, is_default};
use schema::snapshot::{NodeId, Snapshot};
use schema::view::Resolution;

use super::Service;

/// How many claims are sampled of a network at most, beside those of its tests.
const SAMPLE: usize = 400;
/// How many ports of a protocol are tried where every port is meant.
const PORTS: usize = 6;
/// The port that is tried where no rule names any, of both protocols: discard (RFC 863), which is in use on no
/// host of the lab.
const SOME_PORT: u16 = 9;

/// Who sends or receives packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A member, by its name.
    Member(Name),
    /// A host behind gateways, by its address.
    Behind(IpAddr),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(name) => name.fmt(f),
            Self::Behind(address) => address.fmt(f),
        }
    }
}

/// A party of a network, as the rules see it.
#[derive(Clone, Debug)]
pub struct End {
    /// Who it is.
    pub party: Party,
    /// Its tags, of its key and of its declaration.
    pub tags: BTreeSet<Name>,
    /// Its addresses: of a member those in the network.
    pub addresses: BTreeSet<IpAddr>,
    /// Where it is, if it is no member.
    pub behind: Option<Behind>,
}

/// Where a host is that is no member.
#[derive(Clone, Debug)]
pub struct Behind {
    /// The range of the egress that it is in.
    pub range: IpNet,
    /// The gateways of that egress.
    pub gateways: BTreeSet<Name>,
    /// Whether what it sends has this address, so that it is tried from there.
    pub opens: bool,
}

/// Whether one party may open a service of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Who opens it.
    pub from: Party,
    /// Whose service it is.
    pub to: Party,
    /// The service.
    pub service: Service,
    /// Whether it may.
    pub allowed: bool,
}

/// What packets must show of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// What each declared test demands.
    pub tests: BTreeMap<Name, BTreeSet<Claim>>,
    /// What the compiler says of pairs and services that no test names, without ICMP; none in a network without
    /// rules.
    pub sample: BTreeSet<Claim>,
    /// The pairs of members of which the first may ping the other, by the compiler.
    pub pings: BTreeSet<(Party, Party)>,
    /// The names that must resolve on each node, by the compiler.
    pub names: BTreeMap<Party, BTreeSet<String>>,
}

/// What packets must show of a network in which these parties are.
pub fn claims(network: &NetworkName, declared: &Snapshot, ends: &[End]) -> Claims {
    let Some(settings) = declared.network(network) else { return Claims::default() };
    let rules: Vec<Access> = declared.all_in::<Allow>(network).map(|(_, allow)| allow.access()).collect();
    let inventory = inventory(network, declared, ends);
    let policy = Policy::compile(network, settings, declared);
    let scope = Scope { network, declared, ends, ports: ports(&rules), policy, inventory };
    let tests: BTreeMap<Name, BTreeSet<Claim>> =
        declared.all_in::<Test>(network).map(|(id, test)| (id.name.clone(), scope.of_test(test))).collect();
    let named: BTreeSet<_> =
        tests.values().flatten().map(|claim| (&claim.from, &claim.to, claim.service)).collect();
    let (mut sample, mut pings) = (Vec::new(), BTreeSet::new());
    for (from, to) in scope.pairs() {
        let access = scope.access(from, to);
        let is_outside = from.behind.is_some() || to.behind.is_some();
        for service in scope.services(None, None) {
            let allowed = match service {
                Service::Tcp(port) => access.tcp.contains(port),
                Service::Udp(port) => access.udp.contains(port),
                Service::Icmp if is_outside => access.icmp,
                Service::Icmp => {
                    pings.extend(access.icmp.then(|| (from.party.clone(), to.party.clone())));
                    continue;
                }
            };
            let is_sampled = is_outside || scope.policy.is_restricted();
            if is_sampled && !named.contains(&(&from.party, &to.party, service)) {
                sample.push(scope.claim(from, to, service, allowed));
            }
        }
    }
    let sample = spread(sample, SAMPLE).collect();
    Claims { tests, sample, pings, names: names(network, declared, &scope.inventory) }
}

/// The names that must resolve on each node: those that it is sent with addresses.
fn names(
    network: &NetworkName,
    declared: &Snapshot,
    inventory: &Inventory,
) -> BTreeMap<Party, BTreeSet<String>> {
    let Some(mesh) = Mesh::compile(network, declared, inventory) else { return BTreeMap::new() };
    let views = inventory.nodes_in(network).filter_map(|(name, _)| mesh.view(name));
    let resolving = views.map(|view| {
        let all = view.resolutions().into_iter();
        let with_addresses = all.filter(|(_, resolution)| matches!(resolution, Resolution::Addresses(_)));
        let names = with_addresses.map(|(name, _)| format!("{name}.{network}")).collect();
        (Party::Member(view.node.clone()), names)
    });
    resolving.collect()
}

/// What the server knows of the members, as far as it matters.
fn inventory(network: &NetworkName, declared: &Snapshot, ends: &[End]) -> Inventory {
    let mut inventory = Inventory::default();
    for End { party, tags, addresses, behind: _ } in ends {
        let Party::Member(name) = party else { continue };
        let id = NodeId::of(network, name);
        if declared.named::<ExternalClient>(network, name).is_some() {
            let (addresses, created) = (addresses.clone(), Timestamp::UNIX_EPOCH);
            inventory.put_client(id, ClientStatus { addresses, created, expired: false }, created);
        } else {
            inventory.put_node(id, joined(name, tags, addresses));
        }
    }
    inventory
}

/// A node of which only tags and addresses matter, with keys of its own.
fn joined(name: &Name, tags: &BTreeSet<Name>, addresses: &BTreeSet<IpAddr>) -> Joined {
    let mut key = [0; 32];
    key.iter_mut().zip(name.as_str().bytes()).for_each(|(key, byte)| *key = byte);
    Joined {
        public_key: WireGuardKey(key),
        identity: Identity(key),
        addresses: addresses.clone(),
        endpoints: Endpoints::default(),
        listen_port: 0,
        tags: tags.clone(),
        key: None,
        claimed: false,
        joined: Timestamp::UNIX_EPOCH,
        problems: Vec::new(),
        os: Box::default(),
    }
}

/// At most so many of a list, at equal distances.
fn spread<T>(all: Vec<T>, most: usize) -> impl Iterator<Item = T> {
    let step = all.len().div_ceil(most).max(1);
    all.into_iter().step_by(step)
}

/// The ports at the limits of what rules name, of each protocol; at most [`PORTS`], and one at least.
fn ports(rules: &[Access]) -> BTreeMap<Protocol, Vec<u16>> {
    let of = |chosen: fn(&Access) -> &schema::access::Ports| {
        let ranges = rules.iter().map(chosen).filter(|ports| !ports.is_every()).flat_map(|it| it.ranges());
        let limits = ranges.flat_map(|range| [*range.start(), *range.end(), range.end().saturating_add(1)]);
        let ports: BTreeSet<u16> = limits.filter(|port| *port > 0).chain([SOME_PORT]).collect();
        spread(ports.into_iter().collect(), PORTS).collect()
    };
    BTreeMap::from([(Protocol::Tcp, of(|access| &access.tcp)), (Protocol::Udp, of(|access| &access.udp))])
}

struct Scope<'a> {
    network: &'a NetworkName,
    declared: &'a Snapshot,
    ends: &'a [End],
    ports: BTreeMap<Protocol, Vec<u16>>,
    policy: Policy,
    inventory: Inventory,
}

impl Scope<'_> {
    /// The pairs of which the lab can show something. A gateway reaches what is behind it without the mesh, and a
    /// host there does not reach its own gateway by the mesh.
    fn pairs(&self) -> impl Iterator<Item = (&End, &End)> {
        let all = self.ends.iter().flat_map(|from| self.ends.iter().map(move |to| (from, to)));
        let is_apart = |one: &End, other: &End| match (&one.behind, &other.behind) {
            (None, None) => one.party != other.party,
            (Some(behind), None) => !is_gateway(behind, other),
            (None, Some(behind)) => !is_gateway(behind, one),
            (Some(one), Some(other)) => one.gateways.is_disjoint(&other.gateways),
        };
        let opens = |from: &End| from.behind.as_ref().is_none_or(|behind| behind.opens);
        all.filter(move |(from, to)| is_apart(from, to) && opens(from) && share_a_family(from, to))
    }

    /// What one may open at another, by the compiler.
    fn access(&self, from: &End, to: &End) -> Access {
        if let (Party::Member(one), Party::Member(other)) = (&from.party, &to.party) {
            let class = |name: &Name, end: &End| self.policy.class(name, &end.tags, &end.addresses);
            return self.policy.access(&class(one, from), &class(other, to));
        }
        // Rules are not all: whoever has no route to a range reaches nothing there.
        let (from, to, all) = (selector(from), selector(to), Access::everything());
        let explained = explain(self.network, (&from, &to), &all, self.declared, &self.inventory);
        explained.map(|explained| explained.opens).unwrap_or_default()
    }

    fn claim(&self, from: &End, to: &End, service: Service, allowed: bool) -> Claim {
        Claim { from: from.party.clone(), to: to.party.clone(), service, allowed }
    }

    fn of_test(&self, test: &Test) -> BTreeSet<Claim> {
        // Which way packets take is not seen at their ends.
        let Test { reach, no_reach, path: _ } = test;
        let mut claims = BTreeSet::new();
        for Reach { from, to, except, proto, port, without_any_gateway: _ } in reach {
            let services = self.services(*proto, port.map(|port| port.number()));
            claims.extend(self.of_record((from, except, to), &services, true));
        }
        for NoReach { from, to, except, proto, port } in no_reach {
            let services = self.services(*proto, port.map(|port| port.number()));
            claims.extend(self.of_record((from, except, to), &services, false));
        }
        claims
    }

    fn of_record(
        &self,
        (from, except, to): (&BTreeSet<Selector>, &BTreeSet<Selector>, &BTreeSet<Selector>),
        services: &[Service],
        allowed: bool,
    ) -> Vec<Claim> {
        let [from, except, to] = [from, except, to].map(|selectors| self.selected(selectors));
        let pairs = self.pairs().filter(|(one, other)| {
            from.contains(&one.party) && !except.contains(&one.party) && to.contains(&other.party)
        });
        pairs
            .flat_map(|(one, other)| services.iter().map(|it| self.claim(one, other, *it, allowed)))
            .collect()
    }

    fn selected(&self, selectors: &BTreeSet<Selector>) -> BTreeSet<&Party> {
        let (defaults, others): (BTreeSet<_>, BTreeSet<_>) = selectors
            .iter()
            .partition(|selector| matches!(selector, Selector::Range(range) if is_default(range)));
        let ranges = |selectors: &BTreeSet<&Selector>, at: IpAddr| {
            let holds =
                |selector: &&Selector| matches!(selector, Selector::Range(range) if range.contains(&at));
            selectors.iter().any(holds)
        };
        let selected = Selected::by(others.iter().copied(), self.network, self.declared);
        let holds = |end: &&End| match (&end.party, &end.behind) {
            (Party::Member(name), _) => selected.holds(name, &end.tags, &end.addresses),
            (Party::Behind(at), Some(behind)) if is_default(&behind.range) => ranges(&defaults, *at),
            (Party::Behind(at), _) => ranges(&others, *at),
        };
        self.ends.iter().filter(holds).map(|end| &end.party).collect()
    }

    /// The services to try for a protocol and a port, as a test names them.
    fn services(&self, proto: Option<Protocol>, port: Option<i64>) -> Vec<Service> {
        let port = port.and_then(|port| u16::try_from(port).ok());
        let all = |protocol: Protocol| {
            let ports = self.ports.get(&protocol).cloned().unwrap_or_default();
            port.map_or(ports, |port| vec![port])
        };
        let tcp = || all(Protocol::Tcp).into_iter().map(Service::Tcp);
        let udp = || all(Protocol::Udp).into_iter().map(Service::Udp);
        match (proto, port) {
            (Some(Protocol::Tcp), _) | (None, Some(_)) => tcp().collect(),
            (Some(Protocol::Udp), _) => udp().collect(),
            (Some(Protocol::Icmp), _) => vec![Service::Icmp],
            (None, None) => tcp().chain(udp()).chain([Service::Icmp]).collect(),
        }
    }
}

fn is_gateway(behind: &Behind, end: &End) -> bool {
    matches!(&end.party, Party::Member(name) if behind.gateways.contains(name))
}

/// The selector that means exactly this party.
fn selector(end: &End) -> Selector {
    match (&end.party, &end.behind) {
        (Party::Member(name), _) => Selector::Name(name.clone()),
        (Party::Behind(_), Some(Behind { range, .. })) if is_default(range) => Selector::Range(*range),
        (Party::Behind(at), _) => Selector::Range(IpNet::from(*at)),
    }
}

/// Whether two have addresses of one family.
fn share_a_family(one: &End, other: &End) -> bool {
    let mut addresses = one.addresses.iter();
    addresses.any(|one| other.addresses.iter().any(|other| one.is_ipv4() == other.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use super::super::declared;
    use super::*;

    fn member(name: &str, tags: &[&str], address: &str) -> End {
        End {
            party: party(name),
            tags: tags.iter().map(|tag| tag.parse().expect("a name")).collect(),
            addresses: BTreeSet::from([address.parse().expect("an address")]),
            behind: None,
        }
    }

    fn party(text: &str) -> Party {
        text.parse().map_or_else(|_| Party::Member(name(text)), Party::Behind)
    }

    fn shown(claims: &BTreeSet<Claim>) -> Vec<String> {
        let word = |claim: &Claim| if claim.allowed { "reaches" } else { "does not reach" };
        claims
            .iter()
            .map(|claim| format!("{} {} {} by {}", claim.from, word(claim), claim.to, claim.service))
            .collect()
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn three() -> [End; 3] {
        [
            member("a", &["web"], "10.0.0.1"),
            member("b", &["db"], "10.0.0.2"),
            member("c", &["web", "db"], "10.0.0.3"),
        ]
    }

    fn of(text: &str) -> Claims {
        let text =
            format!("network \"n\" {{ ipv4 \"10.0.0.0/24\"; node \"a\"; node \"b\"; node \"c\"\n{text} }}");
        claims(&"n".parse().expect("a name"), &declared(&text), &three())
    }

    #[test]
    fn a_test_is_about_each_pair_that_it_names_and_nobody_against_himself() {
        let claims = of(r#"acl "deny"
            allow "web" from="tag:web" to="tag:db" proto="tcp" ports=5432
            test "t" {
                reach from="tag:web" to="tag:db" port=5432
                no-reach from="*" to="a" proto="icmp" { except "c" }
            }"#);
        assert_eq!(
            shown(claims.tests.values().next().expect("there is one")),
            [
                "a reaches b by tcp 5432",
                "a reaches c by tcp 5432",
                "b does not reach a by icmp",
                "c reaches b by tcp 5432",
            ]
        );
        let sample = shown(&claims.sample);
        assert!(sample.contains(&"a does not reach b by tcp 5433".to_owned()), "{sample:#?}");
        assert!(sample.contains(&"b does not reach a by tcp 5432".to_owned()), "{sample:#?}");
        assert!(!sample.iter().any(|line| line.contains("a reaches b by tcp 5432")), "a test names it");
    }

    #[test]
    fn every_port_is_tried_at_the_limits_of_rules() {
        let claims = of(r#"acl "deny"
            allow "one" from="a" to="b" proto="udp" ports="8000-8999"
            allow "all" from="b" to="c"
            test "t" { reach from="b" to="c" }"#);
        let demanded = shown(&claims.tests[&name("t")]);
        assert_eq!(
            demanded,
            [
                "b reaches c by tcp 9",
                "b reaches c by udp 9",
                "b reaches c by udp 8000",
                "b reaches c by udp 8999",
                "b reaches c by udp 9000",
                "b reaches c by icmp",
            ]
        );
        assert!(shown(&claims.sample).contains(&"a does not reach b by udp 9000".to_owned()));
        assert!(shown(&claims.sample).contains(&"a reaches b by udp 8999".to_owned()));
    }

    #[test]
    fn names_resolve_where_the_node_that_they_lead_to_is_known() {
        let text = "dns \"api\" node=\"b\"";
        let all = ["a.n", "api.n", "b.n", "c.n"].map(str::to_owned);
        assert_eq!(of(text).names[&party("a")], BTreeSet::from(all));
        let restricted = of(&format!("{text}; acl \"deny\"; allow \"one\" from=\"b\" to=\"c\""));
        assert_eq!(restricted.names[&party("a")], BTreeSet::from(["a.n".to_owned()]));
        let known = ["api.n", "b.n", "c.n"].map(str::to_owned);
        assert_eq!(restricted.names[&party("c")], BTreeSet::from(known));
    }

    #[test]
    fn what_is_behind_gateways_is_reached_by_rules_and_routes_from_where_it_can_be_shown() {
        let behind = |at: &str, range: &str, gateway: &str, opens| End {
            party: party(at),
            tags: BTreeSet::new(),
            addresses: BTreeSet::from([at.parse().expect("an address")]),
            behind: Some(Behind {
                range: range.parse().expect("a range"),
                gateways: BTreeSet::from([name(gateway)]),
                opens,
            }),
        };
        let mut ends = three().to_vec();
        ends.push(behind("192.168.1.254", "192.168.1.0/24", "a", true));
        ends.push(behind("192.168.1.7", "192.168.1.0/24", "a", false));
        ends.push(behind("192.168.2.254", "192.168.2.0/24", "b", true));
        ends.push(behind("198.18.0.9", "0.0.0.0/0", "b", false));
        let text = r#"network "n" { ipv4 "10.0.0.0/24"; acl "deny"; node "a"; node "b"; node "c"
            egress "office" via="a" { ranges "192.168.1.0/24" }
            egress "plant" via="b" for="a" { ranges "192.168.2.0/24" }
            egress "exit" via="b" { ranges "0.0.0.0/0" }
            allow "part" from="c" to="192.168.1.0/28" proto="tcp" ports=22
            allow "plant" from="*" to="192.168.2.0/24" proto="tcp" ports=22
            allow "sites" from="192.168.1.0/24" to="192.168.2.0/24" proto="tcp" ports=22
            allow "web" from="c" to="0.0.0.0/0" proto="tcp" ports=22
            test "t" { no-reach from="*" to="0.0.0.0/0" port=25; reach from="192.168.1.0/24" to="192.168.2.0/24" port=22 } }"#;
        let claims = claims(&name("n").as_str().parse().expect("a name"), &declared(text), &ends);
        let of_test = shown(&claims.tests[&name("t")]);
        let expected = [
            "a does not reach 198.18.0.9 by tcp 25",
            "c does not reach 198.18.0.9 by tcp 25",
            "192.168.1.254 reaches 192.168.2.254 by tcp 22",
        ];
        assert_eq!(of_test, expected);
        let sample = shown(&claims.sample);
        let open: Vec<_> =
            sample.iter().filter(|line| line.contains(" reaches ") && line.ends_with("tcp 22")).collect();
        let expected = [
            "a reaches 192.168.2.254 by tcp 22",
            "c reaches 192.168.1.7 by tcp 22",
            "c reaches 198.18.0.9 by tcp 22",
        ];
        assert_eq!(open, expected, "c has no route to the plant: {sample:#?}");
        let from = |who: &str| sample.iter().any(|line| line.starts_with(&format!("{who} ")));
        assert!(from("192.168.1.254") && !from("192.168.1.7"), "a host sends with its first address");
        assert!(
            !sample.iter().any(|line| line.starts_with("a ") && line.contains(" 192.168.1.")),
            "it is a gateway"
        );
    }

    #[test]
    fn what_the_node_of_an_ingress_opens_at_its_clients_is_judged_too() {
        let text = r#"network "n" { ipv4 "10.0.0.0/24"; acl "deny"; node "a"; node "b"
            ingress "in" via="a"; external-client "c" via="in"
            allow "one" from="b" to="c" proto="tcp" ports=22
            test "t" { no-reach from="*" to="c" port=80 } }"#;
        let claims = claims(&"n".parse().expect("a name"), &declared(text), &three());
        assert_eq!(
            shown(&claims.tests[&name("t")]),
            ["a does not reach c by tcp 80", "b does not reach c by tcp 80"]
        );
        let sample = shown(&claims.sample);
        let to_client: Vec<_> = sample.iter().filter(|line| line.contains(" reaches ")).collect();
        let open = |line: &str| to_client.iter().any(|it| *it == line);
        assert!(open("b reaches c by tcp 22") && !open("b reaches c by tcp 23"));
        assert!(
            !to_client.iter().any(|line| line.starts_with("a ") || line.starts_with("c ")),
            "the node of the ingress is judged like others: {to_client:?}"
        );
        assert!(claims.pings.is_empty());
    }

    #[test]
    fn a_network_without_rules_is_pinged_and_of_many_pairs_a_few_are_sampled() {
        let claims = of("test \"t\" { reach from=\"a\" to=\"b\" proto=\"udp\" port=53 }");
        assert_eq!(shown(&claims.tests[&name("t")]), ["a reaches b by udp 53"]);
        assert_eq!((claims.sample.len(), claims.pings.len()), (0, 6));
        let many: Vec<_> = (0..60).map(|number| member(&format!("n-{number}"), &[], "10.0.0.9")).collect();
        let text = "network \"n\" { ipv4 \"10.0.0.0/24\"; acl \"deny\" }";
        let claims = super::claims(&"n".parse().expect("a name"), &declared(text), &many);
        assert!(claims.pings.is_empty() && claims.sample.iter().all(|claim| !claim.allowed));
        assert!((SAMPLE / 2..=SAMPLE).contains(&claims.sample.len()), "{}", claims.sample.len());
    }
}
