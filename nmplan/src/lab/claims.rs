//! What must packets show of a network, given what is declared?
//!
//! Pure. A [`Claim`] says of a service of one [`Party`], a member or a host behind gateways, whether another may open
//! it. Those of a declared test are what the test demands. Besides, the compiler says of every pair what must hold: of
//! one service each ([`Pair`]), and of others some are sampled. So that limits of rules are seen, ports are the first
//! and the last of each range that a rule names, and the next one that it does not. While somebody is away, what has
//! no way because of that must not be reached ([`Passage::is_lost`]), whatever tests demand of a network in which
//! everybody is there; but for those that demand it also then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use schema::access::{Access, Ports, Protocol};
use schema::compile::policy::Selected;
use schema::compile::{Mesh, paths};
use schema::inventory::Inventory;
use schema::judge::present::{Passage, Present};
use schema::kinds::{Allow, ExternalClient, Ingress, NoReach, Path, Reach, Test};
use schema::scalars::{Name, NetworkName, Selector, is_default};
use schema::snapshot::{ResourceId, Snapshot};
use schema::view::Resolution;

use super::Service;
use super::matrix::{self, Together};
use super::verdict::Carrier;

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
    /// Its addresses: of a member those in the network.
    pub addresses: BTreeSet<IpAddr>,
    /// Where it is, if it is no member.
    pub behind: Option<Behind>,
}

impl End {
    /// Whether it is tried what may be opened from there.
    fn opens(&self) -> bool {
        self.behind.as_ref().is_none_or(|behind| behind.opens)
    }
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
    /// Whether it may not only because somebody is not there who would carry the packets.
    pub lost: bool,
}

/// What must hold of one party and another, by the compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What it may open, and how packets get there.
    pub passage: Passage,
    /// A service that it may open, or one that it must not; absent: what it may open cannot be tried.
    pub service: Option<Service>,
    /// What the nodes are that pass packets on.
    pub by: BTreeSet<Carrier>,
}

impl Pair {
    /// Whether anything may be opened, and packets find a way.
    pub fn is_allowed(&self) -> bool {
        self.passage.via.is_some() && !self.passage.opens.is_nothing()
    }

    /// Whether nothing can be opened only because somebody is not there.
    pub fn is_lost(&self) -> bool {
        self.passage.is_lost() && !self.passage.opens.is_nothing()
    }

    /// The rules that let a service be opened.
    pub fn rules(&self, service: Service) -> impl Iterator<Item = &ResourceId> {
        self.passage.rules.iter().filter(move |(_, gives)| opens(gives, service)).map(|(rule, _)| rule)
    }
}

/// The way that packets must take.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Who sends them.
    pub from: Party,
    /// Who receives them.
    pub to: Party,
    /// The nodes that pass them on, in order.
    pub via: Vec<Name>,
}

/// What packets must show of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// What each declared test demands of services.
    pub tests: BTreeMap<Name, BTreeSet<Claim>>,
    /// What each demands of the way that packets take.
    pub paths: BTreeMap<Name, BTreeSet<Way>>,
    /// What the compiler says of the pairs of which the lab can show something.
    pub pairs: BTreeMap<(Party, Party), Pair>,
    /// What it says of more of their services, which no test names; none of members in a network without rules.
    pub sample: BTreeSet<Claim>,
    /// The names that must resolve on each node, by the compiler.
    pub names: BTreeMap<Party, BTreeSet<String>>,
    /// The parties by groups.
    pub groups: Vec<Together>,
}

/// What packets must show of a network in which these parties are, and of which the server knows this.
pub fn claims(network: &NetworkName, declared: &Snapshot, inventory: &Inventory, ends: &[End]) -> Claims {
    let Some(present) = Present::of(network, declared, inventory) else { return Claims::default() };
    let rules: Vec<Access> = declared.all_in::<Allow>(network).map(|(_, allow)| allow.access()).collect();
    let is_restricted = present.is_restricted();
    let mut scope = Scope { network, declared, ends, ports: ports(&rules), present, pairs: BTreeMap::new() };
    scope.pairs = scope.all_pairs();
    let all = || declared.all_in::<Test>(network).map(|(id, test)| (id.name.clone(), test));
    let tests: BTreeMap<Name, BTreeSet<Claim>> =
        all().map(|(name, test)| (name, scope.of_test(test))).collect();
    let paths = all().map(|(name, test)| (name, scope.ways(test))).filter(|(_, ways)| !ways.is_empty());
    let paths = paths.collect();
    let named: BTreeSet<_> =
        tests.values().flatten().map(|claim| (&claim.from, &claim.to, claim.service)).collect();
    let outside = |party: &Party| matches!(party, Party::Behind(_));
    let mut sample = Vec::new();
    for ((from, to), pair) in &scope.pairs {
        if !is_restricted && !outside(from) && !outside(to) {
            continue;
        }
        let others = scope.services(None, None).into_iter().filter(|it| Some(*it) != pair.service);
        let unnamed = others.filter(|service| !named.contains(&(from, to, *service)));
        sample.extend(unnamed.map(|service| {
            let allowed = pair.is_allowed() && opens(&pair.passage.opens, service);
            scope.claim(from, to, service, allowed)
        }));
    }
    let sample = spread(sample, SAMPLE).collect();
    let groups = matrix::groups(network, declared, &scope.present, ends, &scope.alike());
    Claims { tests, paths, pairs: scope.pairs, sample, names: names(network, declared, inventory), groups }
}

/// Whether a service is among those that may be opened.
fn opens(access: &Access, service: Service) -> bool {
    match service {
        Service::Tcp(port) => access.tcp.contains(port),
        Service::Udp(port) => access.udp.contains(port),
        Service::Icmp => access.icmp,
    }
}

/// A service that may be opened; absent: none of those that the lab can open.
fn one_of(access: &Access) -> Option<Service> {
    let port = |ports: &Ports| match ports.contains(SOME_PORT) {
        true => Some(SOME_PORT),
        false => ports.ranges().next().map(|range| *range.start()).filter(|port| *port > 0),
    };
    let tcp = || port(&access.tcp).map(Service::Tcp);
    let udp = || port(&access.udp).map(Service::Udp);
    access.icmp.then_some(Service::Icmp).or_else(tcp).or_else(udp)
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

/// At most so many of a list, at equal distances.
fn spread<T>(all: Vec<T>, most: usize) -> impl Iterator<Item = T> {
    let step = all.len().div_ceil(most).max(1);
    all.into_iter().step_by(step)
}

/// The ports at the limits of what rules name, of each protocol; at most [`PORTS`], and one at least.
fn ports(rules: &[Access]) -> BTreeMap<Protocol, Vec<u16>> {
    let of = |chosen: fn(&Access) -> &Ports| {
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
    present: Present<'a>,
    pairs: BTreeMap<(Party, Party), Pair>,
}

impl Scope<'_> {
    /// A party as the compiler knows it; absent: no range holds its address.
    fn party(&self, end: &End) -> Option<paths::Party> {
        match (&end.party, &end.behind) {
            (Party::Member(name), _) => Some(paths::Party::Member(name.clone())),
            // Whatever address the host beyond has, it stands for all that no other egress has.
            (Party::Behind(_), Some(Behind { range, .. })) if is_default(range) => {
                Some(paths::Party::Range(*range))
            }
            (Party::Behind(at), _) => self.present.range_of(*at).map(paths::Party::Range),
        }
    }

    /// The pairs of which the lab can show something, each with what must hold.
    fn all_pairs(&self) -> BTreeMap<(Party, Party), Pair> {
        let parties = self.ends.iter().filter_map(|end| Some((end, self.party(end)?)));
        let parties: Vec<_> = parties.collect();
        let mut pairs = BTreeMap::new();
        for (from, one) in parties.iter().filter(|(end, _)| end.opens()) {
            for (to, other) in parties.iter().filter(|(to, _)| share_a_family(from, to)) {
                let Some(passage) = self.present.between(one, other) else { continue };
                let service = match passage.opens.is_nothing() {
                    true => Some(Service::Icmp),
                    false => one_of(&passage.opens),
                };
                let by = passage.via.iter().flatten().map(|node| self.carries(node, [from, to])).collect();
                pairs.insert((from.party.clone(), to.party.clone()), Pair { passage, service, by });
            }
        }
        pairs
    }

    /// What a node is that passes packets of two parties on.
    fn carries(&self, node: &Name, ends: [&End; 2]) -> Carrier {
        let ingress = |end: &End| match &end.party {
            Party::Member(name) => {
                let client = self.declared.named::<ExternalClient>(self.network, name)?;
                self.declared.named::<Ingress>(self.network, &client.via.name)
            }
            Party::Behind(_) => None,
        };
        let hub = self.declared.network(self.network).and_then(|settings| settings.hub.as_ref());
        let is_gateway = |end: &End| end.behind.as_ref().is_some_and(|behind| behind.gateways.contains(node));
        if ends.into_iter().any(is_gateway) {
            Carrier::Gateway
        } else if ends.into_iter().filter_map(ingress).any(|ingress| ingress.via.name == *node) {
            Carrier::Ingress
        } else if hub.is_some_and(|hub| hub.name == *node) {
            Carrier::Hub
        } else {
            Carrier::Relay
        }
    }

    /// The parties, those together that rules and ways do not distinguish, in the order of their first.
    fn alike(&self) -> Vec<Vec<Party>> {
        let mut alike: Vec<(_, Vec<Party>)> = Vec::new();
        for end in self.ends {
            let Some(party) = self.party(end) else { continue };
            let standing =
                self.present.standing(&party).map(|(class, through)| (class.id(), through.cloned()));
            match alike.iter_mut().find(|(other, _)| *other == standing) {
                Some((_, parties)) => parties.push(end.party.clone()),
                None => alike.push((standing, vec![end.party.clone()])),
            }
        }
        alike.into_iter().map(|(_, parties)| parties).collect()
    }

    /// What must hold of a service, given what is demanded of it in a network in which everybody is there.
    fn claim(&self, from: &Party, to: &Party, service: Service, demanded: bool) -> Claim {
        let lost = self
            .pairs
            .get(&(from.clone(), to.clone()))
            .is_some_and(|pair| pair.passage.is_lost() && opens(&pair.passage.opens, service));
        Claim { from: from.clone(), to: to.clone(), service, allowed: demanded && !lost, lost }
    }

    fn of_test(&self, test: &Test) -> BTreeSet<Claim> {
        let Test { reach, no_reach, path: _ } = test;
        let mut claims = BTreeSet::new();
        for Reach { from, to, except, proto, port, without_any_gateway } in reach {
            let services = self.services(*proto, port.map(|port| port.number()));
            let of_record = self.of_record((from, except, to), &services, true);
            claims.extend(of_record.into_iter().map(|claim| match without_any_gateway {
                true => Claim { allowed: true, lost: false, ..claim },
                false => claim,
            }));
        }
        for NoReach { from, to, except, proto, port } in no_reach {
            let services = self.services(*proto, port.map(|port| port.number()));
            let of_record = self.of_record((from, except, to), &services, false);
            claims.extend(of_record.into_iter().map(|claim| Claim { lost: false, ..claim }));
        }
        claims
    }

    /// The ways that a test demands; where somebody is not there who would carry the packets, those by which they
    /// go meanwhile.
    fn ways(&self, test: &Test) -> BTreeSet<Way> {
        let mut ways = BTreeSet::new();
        for Path { from, to, via } in &test.path {
            let [from, to] = [from, to].map(|selector| self.selected(&[selector.clone()].into()));
            for ((one, other), pair) in &self.pairs {
                let Some(meanwhile) = &pair.passage.via else { continue };
                if !from.contains(one) || !to.contains(other) || !pair.is_allowed() {
                    continue;
                }
                let is_usual = pair.passage.via == pair.passage.once_all;
                let via =
                    if is_usual { via.iter().map(|it| it.name.clone()).collect() } else { meanwhile.clone() };
                ways.insert(Way { from: one.clone(), to: other.clone(), via });
            }
        }
        ways
    }

    fn of_record(
        &self,
        (from, except, to): (&BTreeSet<Selector>, &BTreeSet<Selector>, &BTreeSet<Selector>),
        services: &[Service],
        demanded: bool,
    ) -> Vec<Claim> {
        let [from, except, to] = [from, except, to].map(|selectors| self.selected(selectors));
        let pairs = self
            .pairs
            .keys()
            .filter(|(one, other)| from.contains(one) && !except.contains(one) && to.contains(other));
        pairs
            .flat_map(|(one, other)| services.iter().map(|it| self.claim(one, other, *it, demanded)))
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
        let none = BTreeSet::new();
        let holds = |end: &&End| match (&end.party, &end.behind) {
            (Party::Member(name), _) => {
                let tags = self.present.member(name).map_or(&none, |member| &member.tags);
                selected.holds(name, tags, &end.addresses)
            }
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

/// Whether two have addresses of one family.
fn share_a_family(one: &End, other: &End) -> bool {
    let mut addresses = one.addresses.iter();
    addresses.any(|one| other.addresses.iter().any(|other| one.is_ipv4() == other.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use schema::inventory::{Away, ClientStatus, Endpoints, Joined};
    use schema::scalars::{Identity, WireGuardKey};
    use schema::snapshot::NodeId;

    use super::super::declared;
    use super::*;

    /// A member that has joined, with these tags.
    struct Known(End, BTreeSet<Name>);

    fn member(name: &str, tags: &[&str], address: &str) -> Known {
        let end = End {
            party: party(name),
            addresses: BTreeSet::from([address.parse().expect("an address")]),
            behind: None,
        };
        Known(end, tags.iter().map(|tag| tag.parse().expect("a name")).collect())
    }

    /// What the server knows of them.
    fn inventory(declared: &Snapshot, members: &[Known]) -> Inventory {
        let mut inventory = Inventory::default();
        for (number, Known(End { party, addresses, .. }, tags)) in (1..).zip(members) {
            let Party::Member(name) = party else { continue };
            let id = NodeId::of(&network(), name);
            if declared.named::<ExternalClient>(&network(), name).is_some() {
                let (addresses, created) = (addresses.clone(), Timestamp::UNIX_EPOCH);
                inventory.put_client(id, ClientStatus { addresses, created, expired: false }, created);
                continue;
            }
            let joined = Joined {
                public_key: WireGuardKey([number; 32]),
                identity: Identity([number; 32]),
                addresses: addresses.clone(),
                endpoints: Endpoints::default(),
                listen_port: 0,
                tags: tags.clone(),
                key: None,
                claimed: false,
                joined: Timestamp::UNIX_EPOCH,
                problems: Vec::new(),
                os: Box::default(),
            };
            inventory.put_node(id, joined);
        }
        inventory
    }

    fn network() -> NetworkName {
        "n".parse().expect("a name")
    }

    /// The claims about members and what is behind gateways, while some nodes are away.
    fn claimed(text: &str, members: &[Known], behind: &[End], away: &[&str]) -> Claims {
        let declared = declared(text);
        let mut inventory = inventory(&declared, members);
        for node in away {
            let everything = Away { everything: true, ..Away::default() };
            inventory.set_away(NodeId::of(&network(), &name(node)), everything);
        }
        let is_there = |end: &&End| !away.contains(&&*end.party.to_string());
        let ends = members.iter().map(|Known(end, _)| end).filter(is_there).chain(behind);
        claims(&network(), &declared, &inventory, &ends.cloned().collect::<Vec<_>>())
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

    /// What is tried of pairs and sampled of other services, without pings.
    fn untested(claims: &Claims) -> Vec<String> {
        let pairs = claims.pairs.iter().filter_map(|((from, to), pair)| {
            let service = pair.service.filter(|service| *service != Service::Icmp)?;
            let (from, to, allowed) = (from.clone(), to.clone(), pair.is_allowed());
            Some(Claim { from, to, service, allowed, lost: pair.is_lost() })
        });
        shown(&pairs.chain(claims.sample.iter().cloned()).collect())
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn three() -> [Known; 3] {
        [
            member("a", &["web"], "10.0.0.1"),
            member("b", &["db"], "10.0.0.2"),
            member("c", &["web", "db"], "10.0.0.3"),
        ]
    }

    fn of(text: &str) -> Claims {
        let text =
            format!("network \"n\" {{ ipv4 \"10.0.0.0/24\"; node \"a\"; node \"b\"; node \"c\"\n{text} }}");
        claimed(&text, &three(), &[], &[])
    }

    /// The pairs of members of which the one may ping the other.
    fn pings(claims: &Claims) -> usize {
        claims.pairs.values().filter(|pair| pair.is_allowed() && pair.passage.opens.icmp).count()
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
            addresses: BTreeSet::from([at.parse().expect("an address")]),
            behind: Some(Behind {
                range: range.parse().expect("a range"),
                gateways: BTreeSet::from([name(gateway)]),
                opens,
            }),
        };
        let ends = [
            behind("192.168.1.254", "192.168.1.0/24", "a", true),
            behind("192.168.1.7", "192.168.1.0/24", "a", false),
            behind("192.168.2.254", "192.168.2.0/24", "b", true),
            behind("198.18.0.9", "0.0.0.0/0", "b", false),
        ];
        let text = r#"network "n" { ipv4 "10.0.0.0/24"; acl "deny"; node "a"; node "b"; node "c"
            egress "office" via="a" { ranges "192.168.1.0/24" }
            egress "plant" via="b" for="a" { ranges "192.168.2.0/24" }
            egress "exit" via="b" { ranges "0.0.0.0/0" }
            allow "part" from="c" to="192.168.1.0/28" proto="tcp" ports=22
            allow "plant" from="*" to="192.168.2.0/24" proto="tcp" ports=22
            allow "sites" from="192.168.1.0/24" to="192.168.2.0/24" proto="tcp" ports=22
            allow "web" from="c" to="0.0.0.0/0" proto="tcp" ports=22
            test "t" { no-reach from="*" to="0.0.0.0/0" port=25; reach from="192.168.1.0/24" to="192.168.2.0/24" port=22 } }"#;
        let claims = claimed(text, &three(), &ends, &[]);
        let of_test = shown(&claims.tests[&name("t")]);
        let expected = [
            "a does not reach 198.18.0.9 by tcp 25",
            "c does not reach 198.18.0.9 by tcp 25",
            "192.168.1.254 reaches 192.168.2.254 by tcp 22",
        ];
        assert_eq!(of_test, expected);
        let sample = untested(&claims);
        let open: Vec<_> =
            sample.iter().filter(|line| line.contains(" reaches ") && line.ends_with("tcp 22")).collect();
        let expected = [
            "a reaches 192.168.2.254 by tcp 22",
            "c reaches 192.168.1.7 by tcp 22",
            "c reaches 198.18.0.9 by tcp 22",
            "192.168.1.254 reaches 192.168.2.254 by tcp 22",
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
        let claims = claimed(text, &three(), &[], &[]);
        assert_eq!(
            shown(&claims.tests[&name("t")]),
            ["a does not reach c by tcp 80", "b does not reach c by tcp 80"]
        );
        let sample = untested(&claims);
        let to_client: Vec<_> = sample.iter().filter(|line| line.contains(" reaches ")).collect();
        let open = |line: &str| to_client.iter().any(|it| *it == line);
        assert!(open("b reaches c by tcp 22") && !open("b reaches c by tcp 23"));
        assert!(
            !to_client.iter().any(|line| line.starts_with("a ") || line.starts_with("c ")),
            "the node of the ingress is judged like others: {to_client:?}"
        );
        assert_eq!(pings(&claims), 0);
    }

    #[test]
    fn a_network_without_rules_is_pinged_and_of_many_pairs_a_few_are_sampled() {
        let claims = of("test \"t\" { reach from=\"a\" to=\"b\" proto=\"udp\" port=53 }");
        assert_eq!(shown(&claims.tests[&name("t")]), ["a reaches b by udp 53"]);
        assert_eq!((claims.sample.len(), pings(&claims)), (0, 6));
        let many: Vec<_> = (0..60).map(|number| member(&format!("n-{number}"), &[], "10.0.0.9")).collect();
        let text = "network \"n\" { ipv4 \"10.0.0.0/24\"; acl \"deny\" }";
        let claims = claimed(text, &many, &[], &[]);
        assert!(pings(&claims) == 0 && claims.sample.iter().all(|claim| !claim.allowed));
        assert!((SAMPLE / 2..=SAMPLE).contains(&claims.sample.len()), "{}", claims.sample.len());
    }

    #[test]
    fn while_a_gateway_is_away_what_only_it_carries_must_not_be_reached_and_the_rest_goes_by_the_next() {
        let behind = |at: &str, range: &str, gateways: &[&str]| End {
            party: party(at),
            addresses: BTreeSet::from([at.parse().expect("an address")]),
            behind: Some(Behind {
                range: range.parse().expect("a range"),
                gateways: gateways.iter().map(|gateway| name(gateway)).collect(),
                opens: false,
            }),
        };
        let ends = [
            behind("192.168.1.254", "192.168.1.0/24", &["a", "b"]),
            behind("192.168.2.254", "192.168.2.0/24", &["a"]),
        ];
        let text = r#"network "n" { ipv4 "10.0.0.0/24"; acl "deny"; node "a"; node "b"; node "c"
            egress "one" { via "a" "b"; ranges "192.168.1.0/24" }
            egress "other" via="a" { ranges "192.168.2.0/24" }
            allow "both" from="c" proto="tcp" ports=22 { to "192.168.1.0/24" "192.168.2.0/24" "b" }
            test "t" {
                reach from="c" port=22 { to "192.168.1.0/24" "192.168.2.0/24" "b" }
                reach from="c" to="192.168.1.0/24" port=22 without-any-gateway=#true
                path from="c" to="192.168.1.0/24" via="a"
            } }"#;
        let of_test = |claims: &Claims| shown(&claims.tests[&name("t")]);
        let via = |claims: &Claims| {
            let ways = claims.paths[&name("t")].iter().map(|way| way.via.clone());
            ways.flatten().map(|node| node.to_string()).collect::<Vec<_>>()
        };
        let all = claimed(text, &three(), &ends, &[]);
        let reached = [
            "c reaches b by tcp 22",
            "c reaches 192.168.1.254 by tcp 22",
            "c reaches 192.168.2.254 by tcp 22",
        ];
        assert_eq!((of_test(&all), via(&all)), (reached.map(str::to_owned).to_vec(), vec!["a".to_owned()]));
        let some = claimed(text, &three(), &ends, &["a"]);
        let left = [
            "c reaches b by tcp 22",
            "c reaches 192.168.1.254 by tcp 22",
            "c does not reach 192.168.2.254 by tcp 22",
        ];
        assert_eq!((of_test(&some), via(&some)), (left.map(str::to_owned).to_vec(), vec!["b".to_owned()]));
        let lost: Vec<_> = some.tests[&name("t")].iter().filter(|claim| claim.lost).collect();
        assert_eq!(lost.len(), 1);
        let pair = |claims: &Claims| claims.pairs[&(party("c"), party("192.168.2.254"))].clone();
        assert!(pair(&all).is_allowed() && !pair(&some).is_allowed() && pair(&some).is_lost());
        assert_eq!(pair(&all).by, BTreeSet::from([Carrier::Gateway]));
    }
}
