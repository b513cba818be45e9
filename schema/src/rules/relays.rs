//! Who is relayed: each node by one relay at most, and neither a node that relays nor the hub by any.
//!
//! As far as files say: by names, groups, reserved addresses, and tags of declarations and of keys. What a join
//! brings about is for the compiler, which lets the first relay count, and leaves out who relays.

use std::collections::{BTreeMap, BTreeSet};

use super::Findings;
use super::selected::{self, Selected};
use crate::kinds::{AccessKey, ExternalClient, Relay};
use crate::report::{Code, Problem};
use crate::scalars::{Name, NetworkName, Selector};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::Step;

/// Why a relay cannot be for somebody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Refused<'a> {
    /// It relays, as this relay says.
    Relays(&'a ResourceId),
    /// It is the hub.
    Hub,
    /// Its ingress carries it.
    Client,
    /// This relay is for it as well.
    Twice(&'a ResourceId),
}

/// Who may be relayed, in the words of a message.
type Subject = String;

/// Checks the relays of every network.
pub(super) fn check(world: &Snapshot, findings: &mut Findings<'_>) {
    for (network, settings) in world.networks() {
        let mut via: BTreeMap<&Name, &ResourceId> = BTreeMap::new();
        for (id, relay) in world.all_in::<Relay>(network) {
            for node in relay.via.iter() {
                via.entry(&node.name).or_insert(id);
            }
        }
        let hub = settings.hub.as_ref().map(|hub| &hub.name);
        let mut relayed: BTreeMap<Subject, &ResourceId> = BTreeMap::new();
        for (id, relay) in world.all_in::<Relay>(network) {
            let mut refused: BTreeMap<Refused<'_>, Vec<Subject>> = BTreeMap::new();
            for (subject, node) in subjects(network, relay, world) {
                let carries = node.and_then(|node| via.get(node)).map(|relay| Refused::Relays(relay));
                let is_hub = (node.is_some() && node == hub).then_some(Refused::Hub);
                let twice = || relayed.get(&subject).map(|other| Refused::Twice(other));
                match carries.or(is_hub).or_else(twice) {
                    Some(why) => refused.entry(why).or_default().push(subject),
                    None => drop(relayed.insert(subject, id)),
                }
            }
            let clients = relay.r#for.iter().filter_map(|selector| match selector {
                Selector::Name(name) => {
                    world.named::<ExternalClient>(network, name).map(|_| name.to_string())
                }
                Selector::Tag(_) | Selector::Range(_) | Selector::All => None,
            });
            for client in clients {
                refused.entry(Refused::Client).or_default().push(client);
            }
            for (why, subjects) in refused {
                report(id, why, &subjects, findings);
            }
        }
    }
}

/// Whom a relay is for: declared nodes, with their names, and those that join with a key under any name.
fn subjects<'a>(
    network: &'a NetworkName,
    relay: &Relay,
    world: &'a Snapshot,
) -> Vec<(Subject, Option<&'a Name>)> {
    let selected = Selected::by(relay.r#for.iter(), network, world);
    let nodes = selected::nodes(network, world).filter(|(id, node, tags)| {
        let reserved: BTreeSet<_> = node.reserved().map(|(_, address)| address).collect();
        selected.holds(&id.name, tags, &reserved)
    });
    let keys = world.all_in::<AccessKey>(network).filter(|(_, key)| key.r#for.is_empty());
    let keys = keys.filter(|(_, key)| selected.everybody || !key.tags.is_disjoint(&selected.tags));
    let nodes = nodes.map(|(id, ..)| (id.name.to_string(), Some(&id.name)));
    nodes.chain(keys.map(|(id, _)| (format!("who joins with {id}"), None))).collect()
}

fn report(id: &ResourceId, why: Refused<'_>, subjects: &[Subject], findings: &mut Findings<'_>) {
    let [first, more @ ..] = subjects else { return };
    let who = if more.is_empty() { first.clone() } else { format!("{first} and {} more", more.len()) };
    let others =
        "select the others, by name or by a tag of theirs; what carries everybody is the `hub` of a network";
    let (why, place, help) = match why {
        Refused::Relays(relay) => {
            let place = (relay.clone(), "via", "it relays here");
            (format!("{relay} has in `via`: a node that relays is relayed by nobody"), Some(place), others)
        }
        Refused::Hub => {
            let place = (ResourceId::of_network(id.network.clone()), "hub", "it is the hub");
            ("is the hub of the network: nobody relays it".to_owned(), Some(place), others)
        }
        Refused::Client => {
            ("is an external client: its ingress carries it".to_owned(), None, "select nodes alone")
        }
        Refused::Twice(relay) => {
            let place = (relay.clone(), "for", "relayed here first");
            let help =
                "let one of the two select it; several nodes in `via` of one relay take over from each other";
            (format!("{relay} is for as well: a node has one relay"), Some(place), help)
        }
    };
    let message = format!("`for` of {id} selects {who}, which {why}");
    let mut problem = Problem::new(Code::Relayed, message).about(id).help(help.to_owned());
    problem = problem.at(findings.location(id, &[Step::Field("for")]));
    if let Some((other, field, label)) = place.filter(|(other, field, _)| other != id || *field != "for") {
        problem = problem.see(findings.location(&other, &[Step::Field(field)]), label);
    }
    findings.report.push(problem);
}

#[cfg(test)]
mod tests {
    use crate::decode::decode;
    use crate::kinds::Kind;
    use crate::rules;
    use crate::syntax::{Language, Source, parse};
    use crate::value::SourceId;

    /// What is wrong with relays in a network with a hub, four nodes and two keys.
    fn found(relays: &str) -> Vec<String> {
        let text = format!(
            r#"network "n" ipv4="10.40.0.0/16" hub="hub" {{
                node "hub"; node "r1" ipv4="10.40.1.1"; node "r2" {{ tags "of-r2"; }}
                node "a" {{ tags "x"; }}; node "b" ipv4="10.40.8.1"
                access-key "open" {{ tags "y" "z"; }}; access-key "of-b" for="b" tags="w"
                group "g" nodes="a" groups="h" external-clients="c"; group "h" tags="y"
                ingress "in" via="r1"; external-client "c" via="in" {{ tags "x"; }}
                {relays}
            }}"#
        );
        let source = Source { name: "a.kdl".into(), text: text.into(), language: Language::Kdl };
        let (declared, mut report) = decode(parse(&source, SourceId(0), Kind::DESCRIPTORS).0);
        assert!(report.is_empty(), "{report:#?}");
        report.append(rules::check(&declared.snapshot, &declared.source_map));
        let who = |message: &str| message.split_once("selects ").expect("whom it selects").1.to_owned();
        report.problems().map(|problem| who(&problem.message)).collect()
    }

    #[test]
    fn one_relay_is_for_each_node_and_none_for_those_who_carry() {
        let two = |one: &str, other: &str| {
            found(&format!(
                "relay \"p\" via=\"r1\" {{ for {one}; }}; relay \"q\" via=\"r2\" {{ for {other}; }}"
            ))
        };
        let twice = |who: &str| [format!("{who}, which n/relay/p is for as well: a node has one relay")];
        for (one, other) in
            [("\"a\"", "\"b\""), ("\"tag:x\"", "\"tag:w\""), ("\"g\"", "\"b\""), ("\"tag:v\"", "\"tag:v\"")]
        {
            assert_eq!(two(one, other), [""; 0], "{one} {other}");
        }
        for (one, other, who) in [
            ("\"a\"", "\"tag:x\"", "a"),
            ("\"b\"", "\"tag:w\"", "b"),
            ("\"10.40.8.0/24\"", "\"b\"", "b"),
            ("\"tag:y\"", "\"tag:z\"", "who joins with n/access-key/open"),
            ("\"tag:y\"", "\"g\"", "who joins with n/access-key/open"),
            ("\"a\" \"b\"", "\"tag:x\" \"tag:w\"", "a and 1 more"),
        ] {
            assert_eq!(two(one, other), twice(who), "{one} {other}");
        }
        let relays = |relay: &str| {
            format!("which n/relay/{relay} has in `via`: a node that relays is relayed by nobody")
        };
        assert_eq!(two("\"r1\"", "\"b\""), [format!("r1, {}", relays("p"))]);
        assert_eq!(two("\"tag:of-r2\" \"b\"", "\"a\""), [format!("r2, {}", relays("q"))]);
        assert_eq!(two("\"10.40.1.0/24\"", "\"a\""), [format!("r1, {}", relays("p"))]);
        assert_eq!(two("\"hub\"", "\"a\""), ["hub, which is the hub of the network: nobody relays it"]);
        assert_eq!(two("\"c\"", "\"a\""), ["c, which is an external client: its ingress carries it"]);
        assert_eq!(
            found("relay \"p\" via=\"r1\" for=\"*\""),
            [
                format!("r1, {}", relays("p")),
                "hub, which is the hub of the network: nobody relays it".to_owned()
            ]
        );
    }
}
