//! What must packets show of a network, given what is declared?
//!
//! Pure. A [`Claim`] says of a service of one member whether another may open it. Those of a declared test are
//! what the test demands; besides, some are sampled of pairs that no test names, and there the compiler says what
//! must hold. So that limits of rules are seen, ports are the first and the last of each range that a rule
//! names, and the next one that it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use schema::access::{Access, Protocol};
use schema::compile::Mesh;
use schema::compile::policy::{Policy, Selected};
use schema::inventory::{Endpoints, Inventory, Joined};
use schema::kinds::{Allow, NoReach, Reach, Test};
use schema::scalars::{Identity, Name, NetworkName, Selector, WireGuardKey};
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

/// A member of a network, as the rules see it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub name: Name,
    /// Its tags, of its key and of its declaration.
    pub tags: BTreeSet<Name>,
    /// Its addresses in the network.
    pub addresses: BTreeSet<IpAddr>,
}

/// Whether one member may open a service of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Who opens it.
    pub from: Name,
    /// Whose service it is.
    pub to: Name,
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
    /// The pairs of which the first may ping the other, by the compiler.
    pub pings: BTreeSet<(Name, Name)>,
    /// The names that must resolve on each member, by the compiler.
    pub names: BTreeMap<Name, BTreeSet<String>>,
}

/// What packets must show of a network in which these members are.
pub fn claims(network: &NetworkName, declared: &Snapshot, members: &[Member]) -> Claims {
    let Some(settings) = declared.network(network) else { return Claims::default() };
    let policy = Policy::compile(network, settings, declared);
    let rules: Vec<Access> = declared.all_in::<Allow>(network).map(|(_, allow)| allow.access()).collect();
    let scope = Scope { network, declared, members, ports: ports(&rules) };
    let tests: BTreeMap<Name, BTreeSet<Claim>> =
        declared.all_in::<Test>(network).map(|(id, test)| (id.name.clone(), scope.of_test(test))).collect();
    let named: BTreeSet<_> =
        tests.values().flatten().map(|claim| (&claim.from, &claim.to, claim.service)).collect();
    let (mut sample, mut pings) = (Vec::new(), BTreeSet::new());
    for (from, to) in scope.pairs() {
        let class = |member: &Member| policy.class(&member.name, &member.tags, &member.addresses);
        let access = policy.access(&class(from), &class(to));
        for service in scope.services(None, None) {
            let allowed = match service {
                Service::Tcp(port) => access.tcp.contains(port),
                Service::Udp(port) => access.udp.contains(port),
                Service::Icmp => {
                    pings.extend(access.icmp.then(|| (from.name.clone(), to.name.clone())));
                    continue;
                }
            };
            if policy.is_restricted() && !named.contains(&(&from.name, &to.name, service)) {
                sample.push(scope.claim(from, to, service, allowed));
            }
        }
    }
    let sample = spread(sample, SAMPLE).collect();
    Claims { tests, sample, pings, names: names(network, declared, members) }
}

/// The names that must resolve on each member: those that it is sent with addresses.
fn names(network: &NetworkName, declared: &Snapshot, members: &[Member]) -> BTreeMap<Name, BTreeSet<String>> {
    let mut inventory = Inventory::default();
    for Member { name, tags, addresses } in members {
        inventory.put_node(NodeId::of(network, name), joined(tags, addresses));
    }
    let Some(mesh) = Mesh::compile(network, declared, &inventory) else { return BTreeMap::new() };
    let views = members.iter().filter_map(|member| mesh.view(&member.name));
    let resolving = views.map(|view| {
        let all = view.resolutions().into_iter();
        let with_addresses = all.filter(|(_, resolution)| matches!(resolution, Resolution::Addresses(_)));
        let names = with_addresses.map(|(name, _)| format!("{name}.{network}")).collect();
        (view.node.clone(), names)
    });
    resolving.collect()
}

/// A node of which only tags and addresses matter.
fn joined(tags: &BTreeSet<Name>, addresses: &BTreeSet<IpAddr>) -> Joined {
    Joined {
        public_key: WireGuardKey([0; 32]),
        identity: Identity([0; 32]),
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
    members: &'a [Member],
    ports: BTreeMap<Protocol, Vec<u16>>,
}

impl Scope<'_> {
    fn pairs(&self) -> impl Iterator<Item = (&Member, &Member)> {
        let all = self.members.iter().flat_map(|from| self.members.iter().map(move |to| (from, to)));
        all.filter(|(from, to)| from.name != to.name)
    }

    fn claim(&self, from: &Member, to: &Member, service: Service, allowed: bool) -> Claim {
        Claim { from: from.name.clone(), to: to.name.clone(), service, allowed }
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
            from.contains(&one.name) && !except.contains(&one.name) && to.contains(&other.name)
        });
        pairs
            .flat_map(|(one, other)| services.iter().map(|it| self.claim(one, other, *it, allowed)))
            .collect()
    }

    fn selected(&self, selectors: &BTreeSet<Selector>) -> BTreeSet<&Name> {
        let everybody = selectors.contains(&Selector::All);
        let selected = Selected::by(selectors, self.network, self.declared);
        let holds =
            |member: &&Member| everybody || selected.holds(&member.name, &member.tags, &member.addresses);
        self.members.iter().filter(holds).map(|member| &member.name).collect()
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

#[cfg(test)]
mod tests {
    use super::super::declared;
    use super::*;

    fn member(name: &str, tags: &[&str], address: &str) -> Member {
        Member {
            name: name.parse().expect("a name"),
            tags: tags.iter().map(|tag| tag.parse().expect("a name")).collect(),
            addresses: BTreeSet::from([address.parse().expect("an address")]),
        }
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

    fn three() -> [Member; 3] {
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
        assert_eq!(of(text).names[&name("a")], BTreeSet::from(all));
        let restricted = of(&format!("{text}; acl \"deny\"; allow \"one\" from=\"b\" to=\"c\""));
        assert_eq!(restricted.names[&name("a")], BTreeSet::from(["a.n".to_owned()]));
        let known = ["api.n", "b.n", "c.n"].map(str::to_owned);
        assert_eq!(restricted.names[&name("c")], BTreeSet::from(known));
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
