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
                Selector::Name(name) => world.named::<ExternalClient>(network, name).map(|_| name.to_string()),
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
    let all = relay.r#for.contains(&Selector::All);
    let selected = Selected::by(relay.r#for.iter(), network, world);
    let nodes = selected::nodes(network, world).filter(|(id, node, tags)| {
        let reserved: BTreeSet<_> = node.reserved().map(|(_, address)| address).collect();
        all || selected.holds(&id.name, tags, &reserved)
    });
    let keys = world.all_in::<AccessKey>(network).filter(|(_, key)| key.r#for.is_empty());
    let keys = keys.filter(|(_, key)| all || !key.tags.is_disjoint(&selected.tags));
    let nodes = nodes.map(|(id, ..)| (id.name.to_string(), Some(&id.name)));
    nodes.chain(keys.map(|(id, _)| (format!("who joins with {id}"), None))).collect()
}

fn report(id: &ResourceId, why: Refused<'_>, subjects: &[Subject], findings: &mut Findings<'_>) {
    let [first, more @ ..] = subjects else { return };
    let who = if more.is_empty() { first.clone() } else { format!("{first} and {} more", more.len()) };
    let others = "select the others, by name or by a tag of theirs; what carries everybody is the `hub` of a network";
    let (why, place, help) = match why {
        Refused::Relays(relay) => {
            let place = (relay.clone(), "via", "it relays here");
            (format!("{relay} has in `via`: a node that relays is relayed by nobody"), Some(place), others)
        }
        Refused::Hub => {
            let place = (ResourceId::of_network(id.network.clone()), "hub", "it is the hub");
            ("is the hub of the network, which nobody relays".to_owned(), Some(place), others)
        }
        Refused::Client => {
            ("is an external client, which its ingress carries".to_owned(), None, "select nodes alone")
        }
        Refused::Twice(relay) => {
            let place = (relay.clone(), "for", "relayed here first");
            let help = "let one of the two select it; several nodes in `via` of one relay take over from each other";
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
