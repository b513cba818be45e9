//! Whether what tests assert holds, and why members reach each other or not. Pure: from the declarations and
//! what has joined.
//!
//! Tests are judged on [`members`], which have joined or are taken to have, and on ranges behind gateways. Those
//! that no rule, no test and no [way](Paths) distinguishes are alike, and pairs of these are judged, never pairs
//! of members: only a counterexample names two. Start at [`judge`]; [`explain`] answers for two members or ranges,
//! [`present`] for those that are there at present, and [`unused`] names whom no rule is about.

pub mod explain;
pub mod present;
pub mod unused;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{Access, Protocol};
use crate::attribute::Ref;
use crate::compile::members::{Member, members};
use crate::compile::paths::{Party, Paths, Place};
use crate::compile::policy::{Class, Policy, Side, Standing};
use crate::compile::reach::families;
use crate::compile::ways::{Through, Ways, through};
use crate::inventory::Inventory;
use crate::kinds::{ExternalClient, NoReach, Node, Path, Reach, Test};
use crate::report::{Code, Problem};
use crate::rules::source_map::SourceMap;
use crate::scalars::{Name, NetworkName, Selector};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::{Location, Step};

/// What became of one assertion of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// The test.
    pub id: ResourceId,
    /// What is asserted.
    pub word: Word,
    /// Which of the test's assertions of that word, from 0.
    pub place: usize,
    /// The assertion in words.
    pub name: String,
    /// Whether it holds.
    pub outcome: Outcome,
    /// Why it does not hold, or proves nothing; null if it holds.
    pub message: Option<String>,
    /// Two members for which it does not hold; null if it holds, or there are none.
    pub counterexample: Option<Counterexample>,
    /// How many ordered pairs of members it does not hold for.
    pub pairs: u64,
    /// The rules by which those two reach each other.
    pub because: Vec<ResourceId>,
}

/// What an assertion is about, as files say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// Every pair is reached.
    Reach,
    /// No pair is reached.
    NoReach,
    /// Packets take this way.
    Path,
}

impl Word {
    /// The word of it in files.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reach => "reach",
            Self::NoReach => "no-reach",
            Self::Path => "path",
        }
    }
}

/// Whether an assertion holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It holds.
    Holds,
    /// It holds, since it is about nobody.
    Warns,
    /// It does not hold.
    Fails,
}

/// Two members for which an assertion does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counterexample {
    /// Who opens connections: a member, or in words one that joins later.
    pub from: String,
    /// To whom.
    pub to: String,
}

/// What may be opened where a test or a question names a protocol or a port: a port alone is one of TCP, and
/// without both it is everything.
pub fn access_of(proto: Option<Protocol>, port: Option<u16>) -> Access {
    let proto = proto.or(port.map(|_| Protocol::Tcp));
    Access::of(proto, port.map(|port| [port..=port].into_iter().collect()))
}

/// The same without port 0, which nobody listens on and no rule names.
fn usable(access: &Access) -> Access {
    let zero = |protocol| Access::of(Some(protocol), Some([0..=0].into_iter().collect()));
    access.without(&zero(Protocol::Tcp)).without(&zero(Protocol::Udp))
}

/// Judges the tests of a network: each assertion, in the order of tests and fields; none if the network is
/// not declared.
pub fn judge(network: &NetworkName, declared: &Snapshot, inventory: &Inventory) -> Vec<Verdict> {
    let tests = declared.all_in::<Test>(network);
    let assertions: Vec<_> = tests.flat_map(|(id, test)| assertions(id, test)).collect();
    if assertions.is_empty() {
        return Vec::new();
    }
    let sides = assertions.iter().flat_map(|it| [&it.from, &it.to, &it.except]);
    let Some(court) = Distinguished::of(network, declared, inventory, sides) else { return Vec::new() };
    assertions.into_iter().zip(court.sides.chunks(3)).map(|(it, sides)| court.judge(it, sides)).collect()
}

/// Whether every member of a network, less `except`, may open something at these; nothing if the network is not
/// declared.
pub fn everybody_reaches(
    network: &NetworkName,
    (to, except): (BTreeSet<Selector>, BTreeSet<Selector>),
    access: Access,
    declared: &Snapshot,
    inventory: &Inventory,
) -> Option<Verdict> {
    let test = &ResourceId::of_network(network.clone());
    let (from, asks) = ([Selector::All].into(), Asks::Reach { access, without_any_gateway: false });
    let assertion = Assertion { test, word: Word::Reach, place: 0, from, to, except, asks };
    let sides = [&assertion.from, &assertion.to, &assertion.except];
    let court = Distinguished::of(network, declared, inventory, sides.into_iter())?;
    let sides = court.sides.clone();
    Some(court.judge(assertion, &sides))
}

/// The tests of several networks.
pub fn judge_all<'a>(
    networks: impl IntoIterator<Item = &'a NetworkName>,
    declared: &Snapshot,
    inventory: &Inventory,
) -> Vec<Verdict> {
    networks.into_iter().flat_map(|network| judge(network, declared, inventory)).collect()
}

/// How many of the tests that verdicts are about hold, and how many there are.
pub fn tally(verdicts: &[Verdict]) -> (u64, u64) {
    let tests = verdicts.chunk_by(|one, other| one.id == other.id);
    tests.fold((0, 0), |(hold, all), test| (hold + u64::from(!test.iter().any(Verdict::fails)), all + 1))
}

impl Verdict {
    /// What is wrong, at the assertion's place, and where the rules are that let it through; nothing if it
    /// holds.
    pub fn problem(&self, source_map: &SourceMap) -> Option<Problem> {
        let Self { id, name, message, because, .. } = self;
        let why = message.as_deref()?;
        let (code, says, help) = match self.outcome {
            Outcome::Holds => return None,
            Outcome::Warns => (Code::TestOfNobody, "proves nothing", "name members that exist, or remove it"),
            Outcome::Fails => (
                Code::TestFails,
                "does not hold",
                "change the rules, or the test if it asks for the wrong thing",
            ),
        };
        let at = self.at(source_map);
        let problem = Problem::new(code, format!("`{name}` of {id} {says}: {why}"));
        let problem = problem.at(at).about(id).help(help.to_owned());
        Some(because.iter().fold(problem, |problem, rule| {
            problem.see(source_map.location(rule, &[]), "this rule lets it through")
        }))
    }

    /// The place of the assertion.
    pub fn at(&self, source_map: &SourceMap) -> Option<Location> {
        source_map.location(&self.id, &[Step::Field(self.word.word()), Step::Index(self.place)])
    }

    /// Whether it fails.
    pub fn fails(&self) -> bool {
        self.outcome == Outcome::Fails
    }
}

/// One assertion of a test.
struct Assertion<'a> {
    test: &'a ResourceId,
    word: Word,
    place: usize,
    from: BTreeSet<Selector>,
    to: BTreeSet<Selector>,
    except: BTreeSet<Selector>,
    asks: Asks<'a>,
}

/// What is asserted of two sides.
enum Asks<'a> {
    Reach { access: Access, without_any_gateway: bool },
    NoReach { access: Access },
    Path { via: &'a [Ref<Node>] },
}

fn assertions<'a>(test: &'a ResourceId, of: &'a Test) -> Vec<Assertion<'a>> {
    let Test { reach, no_reach, path } = of;
    let port = |port: &Option<crate::attribute::Bounded<1, 65_535>>| {
        port.and_then(|port| u16::try_from(port.number()).ok())
    };
    let reach = reach.iter().enumerate().map(|(place, it)| {
        let Reach { from, to, except, proto, port: at, without_any_gateway } = it;
        let access = access_of(*proto, port(at));
        let asks = Asks::Reach { access, without_any_gateway: *without_any_gateway };
        let (from, to, except) = ((**from).clone(), (**to).clone(), except.clone());
        Assertion { test, word: Word::Reach, place, from, to, except, asks }
    });
    let no_reach = no_reach.iter().enumerate().map(|(place, it)| {
        let NoReach { from, to, except, proto, port: at } = it;
        let asks = Asks::NoReach { access: access_of(*proto, port(at)) };
        let (from, to, except) = ((**from).clone(), (**to).clone(), except.clone());
        Assertion { test, word: Word::NoReach, place, from, to, except, asks }
    });
    let path = path.iter().enumerate().map(|(place, it)| {
        let Path { from, to, via } = it;
        let (from, to) = ([from.clone()].into(), [to.clone()].into());
        Assertion {
            test,
            word: Word::Path,
            place,
            from,
            to,
            except: BTreeSet::new(),
            asks: Asks::Path { via },
        }
    });
    reach.chain(no_reach).chain(path).collect()
}

/// As a file says it: `no-reach from * to tag:db on tcp 5432 except ops`.
impl fmt::Display for Assertion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { word, from, to, except, asks, .. } = self;
        write!(f, "{} from {} to {}", word.word(), listed(from), listed(to))?;
        match asks {
            Asks::Reach { access, .. } | Asks::NoReach { access } if !access.is_everything() => {
                write!(f, " on {access}")?;
            }
            Asks::Path { via: [] } => f.write_str(" directly")?,
            Asks::Path { via } => write!(f, " via {}", listed(via.iter().map(|node| &node.name)))?,
            Asks::Reach { .. } | Asks::NoReach { .. } => {}
        }
        if !except.is_empty() {
            write!(f, " except {}", listed(except))?;
        }
        match asks {
            Asks::Reach { without_any_gateway: true, .. } => f.write_str(" without any gateway"),
            Asks::Reach { .. } | Asks::NoReach { .. } | Asks::Path { .. } => Ok(()),
        }
    }
}

fn listed<T: fmt::Display>(of: impl IntoIterator<Item = T>) -> String {
    of.into_iter().map(|it| it.to_string()).collect::<Vec<_>>().join(", ")
}

/// The members of a network and the ranges behind its gateways, as some sides of tests distinguish them.
struct Distinguished<'a> {
    network: &'a NetworkName,
    policy: Policy,
    ways: Ways,
    hub: Option<Name>,
    members: BTreeMap<Name, Member>,
    /// The class of each node that carries traffic of others, and what carries its own.
    carriers: BTreeMap<Name, (Class, Option<Through>)>,
    /// None is empty.
    classes: Vec<Alike>,
    /// The sides that were asked for, in that order; absent: that of every member.
    sides: Vec<Option<Side>>,
}

/// Members or ranges that are judged alike: those that have joined or are declared first, then by name.
struct Alike {
    class: Class,
    standing: Standing,
    at: At,
    parties: Vec<Party>,
}

/// What decides which way packets take.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    place: Place,
    /// Whether there are IPv4 and IPv6 addresses.
    families: [bool; 2],
    /// The egress that a range is behind; absent: they are members.
    behind: Option<Name>,
    /// Whether it is what a way to the internet leads to.
    internet: bool,
}

/// Pairs that something is not true of: the two of such a pair with their classes, and how many there are.
struct Broken<'a> {
    from: (&'a Party, &'a Alike),
    to: (&'a Party, &'a Alike),
    pairs: u64,
}

impl<'a> Distinguished<'a> {
    fn of<'s>(
        network: &'a NetworkName,
        declared: &Snapshot,
        inventory: &Inventory,
        sides: impl Iterator<Item = &'s BTreeSet<Selector>>,
    ) -> Option<Self> {
        let settings = declared.network(network)?;
        let members = members(network, declared, inventory);
        let mut policy = Policy::compile(network, settings, declared);
        let sides = sides.map(|side| policy.put_side(side, network, declared)).collect();
        let ways = Ways::compile(network, settings, &policy, declared, inventory);
        let through = |name: &Name, member: &Member| match declared.named::<ExternalClient>(network, name) {
            Some(client) => Some(through(client)),
            None => ways.relay_of(name, &member.tags, &member.addresses).cloned().map(Through::Relay),
        };
        let mut alike: BTreeMap<(Class, At), Vec<Party>> = BTreeMap::new();
        let mut carriers = BTreeMap::new();
        for (name, member) in &members {
            let class = policy.class(name, &member.tags, &member.addresses);
            let carrier = Some(name).filter(|name| ways.carries(name)).cloned();
            let place = Place { carrier: carrier.clone(), through: through(name, member) };
            carriers.extend(carrier.map(|name| (name, (class.clone(), place.through.clone()))));
            let families = families(member.addresses.iter());
            let at = At { place, families, behind: None, internet: false };
            alike.entry((class, at)).or_default().push(Party::Member(name.clone()));
        }
        for (range, way) in ways.ranges() {
            let place = Place { carrier: None, through: Some(Through::Egress(way.egress.clone())) };
            let families = families([range.addr()].iter());
            let (behind, internet) = (Some(way.egress.clone()), way.is_internet());
            let at = At { place, families, behind, internet };
            alike.entry((way.class.clone(), at)).or_default().push(Party::Range(*range));
        }
        let class = |((class, at), mut parties): ((Class, At), Vec<Party>)| {
            parties.sort_by(|one, other| rank(one, &members).cmp(&rank(other, &members)));
            Alike { standing: policy.standing(&class), class, at, parties }
        };
        let classes = alike.into_iter().map(class).collect();
        let hub = settings.hub.as_ref().map(|hub| hub.name.clone());
        Some(Self { network, policy, ways, hub, members, carriers, classes, sides })
    }

    /// The ways while one node is away, or while all are there that will have joined.
    fn paths<'s>(&'s self, away: Option<&'s Name>) -> Paths<'s> {
        self.paths_with(move |node, _| self.members.contains_key(node) && Some(node) != away)
    }

    /// The ways while those are there of whom that is true.
    fn paths_with<'s>(&'s self, is_there: impl Fn(&Name, Option<&Name>) -> bool + 's) -> Paths<'s> {
        let carriers = self.carriers.iter().map(|(name, (_, through))| (name.clone(), through.clone()));
        Paths::new(&self.ways, self.hub.as_ref(), carriers.collect(), is_there)
    }

    /// The classes on a side; none for the side of no selector.
    fn on(&self, selectors: &BTreeSet<Selector>, side: Option<Side>) -> impl Iterator<Item = &Alike> {
        let any = !selectors.is_empty();
        self.classes.iter().filter(move |it| any && it.class.is_on(side))
    }

    /// Why packets do not get from one to another, whatever the rules say, in words that follow their names;
    /// nothing if they do.
    fn obstacle(&self, from: &Alike, to: &Alike, paths: &Paths<'_>) -> Option<String> {
        if (0..2).all(|family| !from.at.families[family] || !to.at.families[family]) {
            return Some("since they have no addresses of the same family".into());
        }
        for (member, outer) in [(from, to), (to, from)] {
            let Some(egress) = &outer.at.behind else { continue };
            let way = self.ways.ranges().find(|(_, way)| way.egress == *egress)?.1;
            // What is behind a gateway itself goes by what is for that gateway, if one is there.
            let class = match &member.at.behind {
                None => Some(&member.class),
                Some(other) => {
                    let gateway = paths.carrier_of(&Through::Egress(other.clone()));
                    gateway.and_then(|node| Some(&self.carriers.get(node)?.0))
                }
            };
            if class.is_some_and(|class| !class.is_on(way.side)) {
                return Some(format!("since {egress} is not for {}", member.parties[0]));
            }
        }
        if from.at.internet {
            return Some("since a way to the internet lets nobody in".into());
        }
        paths
            .between(&from.at.place, &to.at.place)
            .is_none()
            .then(|| "since no node carries them there".into())
    }

    /// What rules let those of one class open at those of another.
    fn opens(&self, from: &Alike, to: &Alike) -> Access {
        self.policy.between(&from.standing, &to.standing)
    }

    /// How many pairs there are of two classes. Nobody is paired with himself, nor with what he reaches outside of
    /// the network.
    fn pairs(&self, from: &Alike, to: &Alike) -> u64 {
        if from.at.place.is_local_to(&to.at.place, &self.ways) {
            return 0;
        }
        let (ours, theirs) = (from.parties.len() as u64, to.parties.len() as u64);
        ours * (theirs - u64::from(std::ptr::eq(from, to)))
    }

    /// The pairs of two sides that something breaks.
    fn broken<'s>(
        &'s self,
        (from, to): (&[&'s Alike], &[&'s Alike]),
        breaks: impl Fn(&Alike, &Alike) -> bool,
    ) -> Option<Broken<'s>> {
        let mut first: Option<Broken<'s>> = None;
        let mut total = 0;
        for one in from {
            for other in to {
                let pairs = self.pairs(one, other);
                if pairs == 0 || !breaks(one, other) {
                    continue;
                }
                total += pairs;
                let same = std::ptr::eq(*one, *other);
                let pair = ((&one.parties[0], *one), (&other.parties[usize::from(same)], *other));
                let rank = |from, to| (rank(from, &self.members), rank(to, &self.members));
                if first.as_ref().is_none_or(|it| rank(pair.0.0, pair.1.0) < rank(it.from.0, it.to.0)) {
                    first = Some(Broken { from: pair.0, to: pair.1, pairs: 0 });
                }
            }
        }
        first.map(|first| Broken { pairs: total, ..first })
    }

    fn judge(&self, assertion: Assertion<'_>, sides: &[Option<Side>]) -> Verdict {
        let [from_side, to_side, except_side] = *sides else {
            unreachable!("each assertion has three sides")
        };
        let except: BTreeSet<_> = self.on(&assertion.except, except_side).map(|it| &it.class).collect();
        let from: Vec<_> =
            self.on(&assertion.from, from_side).filter(|it| !except.contains(&it.class)).collect();
        let to: Vec<_> = self.on(&assertion.to, to_side).collect();
        let nobody = if from.is_empty() {
            Some((
                "from",
                listed(&assertion.from),
                if assertion.except.is_empty() { "" } else { " less except" },
            ))
        } else {
            to.is_empty().then(|| ("to", listed(&assertion.to), ""))
        };
        if let Some((field, selectors, less)) = nobody {
            let outcome = match assertion.word {
                Word::NoReach => Outcome::Warns,
                Word::Reach | Word::Path => Outcome::Fails,
            };
            let why = format!("nobody is selected by {field} {selectors}{less}");
            return Verdict { outcome, message: Some(why), ..assertion.holds() };
        }
        match &assertion.asks {
            Asks::Reach { access, without_any_gateway } => {
                self.judge_reach(&assertion, (&from, &to), access, *without_any_gateway)
            }
            Asks::NoReach { access } => self.judge_no_reach(&assertion, (&from, &to), access),
            Asks::Path { via } => self.judge_path(&assertion, (&from, &to), via),
        }
    }

    fn judge_reach(
        &self,
        assertion: &Assertion<'_>,
        sides: (&[&Alike], &[&Alike]),
        access: &Access,
        without_any_gateway: bool,
    ) -> Verdict {
        let giving = self.policy.giving(&usable(access));
        let refused =
            |from: &Alike, to: &Alike| !self.policy.gives_all(&giving, &from.standing, &to.standing);
        if let Some(broken) = self.broken(sides, refused) {
            let open = self.policy.access(&broken.from.1.class, &broken.to.1.class);
            let only = if open.is_nothing() { "nothing".to_owned() } else { format!("only {open}") };
            return self.fails(assertion, &broken, |from, to| format!("{from} may open {only} at {to}"));
        }
        if let Some(verdict) = self.without_way(assertion, sides) {
            return verdict;
        }
        let all = without_any_gateway.then_some(self.carriers.keys()).into_iter().flatten();
        for away in all {
            let paths = self.paths(Some(away));
            let is = |side: &Alike| side.at.place.carrier.as_ref() == Some(away);
            let lost =
                |from: &Alike, to: &Alike| !is(from) && !is(to) && self.obstacle(from, to, &paths).is_some();
            if let Some(broken) = self.broken(sides, lost) {
                let what = if self.hub.as_ref() == Some(away) { "the hub " } else { "" };
                return self.fails(assertion, &broken, |from, to| {
                    format!("{from} does not reach {to} while {what}{away} is away")
                });
            }
        }
        assertion.holds()
    }

    /// The verdict that packets of some pair, which rules let pass, have no way; nothing if all have.
    fn without_way(&self, assertion: &Assertion<'_>, sides: (&[&Alike], &[&Alike])) -> Option<Verdict> {
        let paths = self.paths(None);
        let broken = self.broken(sides, |from, to| self.obstacle(from, to, &paths).is_some())?;
        let why = self.obstacle(broken.from.1, broken.to.1, &paths).unwrap_or_default();
        Some(self.fails(assertion, &broken, |from, to| format!("{from} does not reach {to}, {why}")))
    }

    fn judge_no_reach(
        &self,
        assertion: &Assertion<'_>,
        sides: (&[&Alike], &[&Alike]),
        access: &Access,
    ) -> Verdict {
        let giving = self.policy.giving(access);
        let paths = self.paths(None);
        let given = |from: &Alike, to: &Alike| {
            self.policy.gives_any(&giving, &from.standing, &to.standing)
                && self.obstacle(from, to, &paths).is_none()
        };
        let Some(broken) = self.broken(sides, given) else { return assertion.holds() };
        let because = self.rules(broken.from.1, broken.to.1, access);
        let opens = self.policy.access(&broken.from.1.class, &broken.to.1.class).and(access);
        let by = if because.is_empty() {
            format!("since the acl of network {} is allow", self.network)
        } else {
            format!("by {}", listed(&because))
        };
        let verdict =
            self.fails(assertion, &broken, |from, to| format!("{from} may open {opens} at {to}, {by}"));
        Verdict { because, ..verdict }
    }

    fn judge_path(
        &self,
        assertion: &Assertion<'_>,
        sides: (&[&Alike], &[&Alike]),
        via: &[Ref<Node>],
    ) -> Verdict {
        let giving = self.policy.giving(&Access::everything());
        let refused =
            |from: &Alike, to: &Alike| !self.policy.gives_any(&giving, &from.standing, &to.standing);
        if let Some(broken) = self.broken(sides, refused) {
            return self.fails(assertion, &broken, |from, to| format!("{from} may open nothing at {to}"));
        }
        if let Some(verdict) = self.without_way(assertion, sides) {
            return verdict;
        }
        let other =
            |from: &Alike, to: &Alike| !self.path(from, to).iter().eq(via.iter().map(|node| &node.name));
        let Some(broken) = self.broken(sides, other) else { return assertion.holds() };
        let path = match &*self.path(broken.from.1, broken.to.1) {
            [] => "directly".to_owned(),
            nodes => format!("via {}", listed(nodes)),
        };
        self.fails(assertion, &broken, |from, to| format!("packets go from {from} to {to} {path}"))
    }

    /// The nodes that pass packets on between two classes; none: they go directly.
    fn path(&self, from: &Alike, to: &Alike) -> Vec<Name> {
        self.paths(None).between(&from.at.place, &to.at.place).unwrap_or_default()
    }

    /// The rules by which members of a class may open any of an access at members of another.
    fn rules(&self, from: &Alike, to: &Alike, access: &Access) -> Vec<ResourceId> {
        let reasons = self.policy.applying(&from.standing, &to.standing);
        let giving = reasons.filter(|(_, gives)| !gives.and(access).is_nothing());
        giving.map(|(rule, _)| rule.clone()).collect()
    }

    fn fails(
        &self,
        assertion: &Assertion<'_>,
        broken: &Broken<'_>,
        why: impl FnOnce(&str, &str) -> String,
    ) -> Verdict {
        let (from, to) = self.in_words(broken.from.0, broken.to.0);
        let more = match broken.pairs - 1 {
            0 => String::new(),
            1 => " (and 1 more pair)".to_owned(),
            more => format!(" (and {more} more pairs)"),
        };
        Verdict {
            outcome: Outcome::Fails,
            message: Some(why(&from, &to) + &more),
            counterexample: Some(Counterexample { from, to }),
            pairs: broken.pairs,
            ..assertion.holds()
        }
    }

    /// Two members or ranges, each of which may be one that joins later.
    fn in_words(&self, from: &Party, to: &Party) -> (String, String) {
        let key = |party: &Party| match party {
            Party::Member(name) => self.members.get(name).and_then(|member| member.key.as_ref()),
            Party::Range(_) | Party::Joins(..) => None,
        };
        let words = |party: &Party| match key(party) {
            Some(key) => format!("a node that joins with the key {key}"),
            None => party.to_string(),
        };
        let to =
            if key(from).is_some() && key(from) == key(to) { "another one".to_owned() } else { words(to) };
        (words(from), to)
    }
}

/// Which members are named first.
fn rank<'n>(party: &'n Party, members: &BTreeMap<Name, Member>) -> (bool, &'n Party) {
    let is_awaited = match party {
        Party::Member(name) => members.get(name).is_some_and(|member| member.key.is_some()),
        Party::Range(_) | Party::Joins(..) => false,
    };
    (is_awaited, party)
}

impl Assertion<'_> {
    /// The verdict that it holds.
    fn holds(&self) -> Verdict {
        Verdict {
            id: self.test.clone(),
            word: self.word,
            place: self.place,
            name: self.to_string(),
            outcome: Outcome::Holds,
            message: None,
            counterexample: None,
            pairs: 0,
            because: Vec::new(),
        }
    }
}
