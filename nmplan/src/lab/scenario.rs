//! What does the scenario play?
//!
//! Pure. In each network a node of a key with `for` leaves and joins again, and so does one of a key that lets more
//! nodes join; then each node that carries traffic for others (the hub, gateways, relays, the nodes of ingress) is
//! lost and returns. What must hold after each step is not part of it: the server's world says so
//! ([`super::claims`]).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use schema::api::{CarrierState, egress_states, relay_states};
use schema::kinds::{AccessKey, Egress, Ingress, Network, Object, Relay};
use schema::scalars::{Name, NetworkName, Seconds};
use schema::snapshot::NodeId;
use schema::world::World;

use super::roster::{Participant, Roster};

/// A step of the scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What happens.
    pub act: Act,
    /// To which node.
    pub node: NodeId,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It leaves its network.
    Leave,
    /// It joins again, with the same token.
    Join,
    /// It loses power: its cables are out, and its agent is killed.
    Lose,
    /// It is plugged in and started again.
    Return,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { act, node: NodeId { network, name } } = self;
        let does = match act {
            Act::Leave => "leaves",
            Act::Join => "joins again",
            Act::Lose => "is lost",
            Act::Return => "is back",
        };
        write!(f, "{network}/{name} {does}")
    }
}

/// The steps, in order.
pub fn steps(roster: &Roster) -> Vec<Step> {
    let mut steps = Vec::new();
    for (network, settings) in roster.declared.networks() {
        let carriers = carriers(network, settings, roster);
        let of_network = || roster.participants.iter().filter(|it| it.network == *network);
        let mut both = |name: &Name, acts: [Act; 2]| {
            steps.extend(acts.map(|act| Step { act, node: NodeId::of(network, name) }));
        };
        let others = || of_network().filter(|it| !carriers.contains(&it.name));
        let claiming = others().find(|it| claims(it, roster));
        let sample = others().find(|it| !claims(it, roster) && admits_one_more(it, roster));
        for leaving in claiming.into_iter().chain(sample) {
            both(&leaving.name, [Act::Leave, Act::Join]);
        }
        // The server misses a node only while it hears others.
        if of_network().count() > 1 {
            let is_there = |name: &&Name| of_network().any(|it| it.name == **name);
            carriers.iter().filter(is_there).for_each(|name| both(name, [Act::Lose, Act::Return]));
        }
    }
    steps
}

/// Which nodes carry what after a step that others carried before, in words.
pub fn follows(before: &World, after: &World) -> Vec<String> {
    let states = |World { snapshot, inventory, .. }: &World| {
        let egress = egress_states(snapshot, inventory);
        egress.into_iter().chain(relay_states(snapshot, inventory)).collect::<Vec<_>>()
    };
    let earlier = states(before);
    let carrier = |state: &CarrierState| state.carrier.clone();
    let moved = states(after).into_iter().filter(|state| {
        let was = earlier.iter().find(|it| it.id == state.id);
        was.is_some_and(|was| carrier(was) != carrier(state))
    });
    let words = moved.map(|CarrierState { id, carrier, .. }| match carrier {
        Some(carrier) => format!("{carrier} carries {id}"),
        None => format!("nobody carries {id}"),
    });
    words.collect()
}

/// The nodes that carry traffic for others, or may.
fn carriers(network: &NetworkName, settings: &Network, roster: &Roster) -> BTreeSet<Name> {
    let declared = &roster.declared;
    let egress = declared.all_in::<Egress>(network).flat_map(|(_, it)| it.via.iter());
    let relays = declared.all_in::<Relay>(network).flat_map(|(_, it)| it.via.iter());
    let ingress = declared.all_in::<Ingress>(network).map(|(_, it)| &it.via);
    let all = egress.chain(relays).chain(ingress).chain(&settings.hub);
    all.map(|node| node.name.clone()).collect()
}

fn key<'a>(participant: &Participant, roster: &'a Roster) -> Option<&'a Arc<AccessKey>> {
    roster.declared.named::<AccessKey>(&participant.key.network, &participant.key.name)
}

/// Whether a node claims a name that its key is for, which it may again after it left.
fn claims(participant: &Participant, roster: &Roster) -> bool {
    key(participant, roster).is_some_and(|key| !key.r#for.is_empty())
}

/// Whether the key of a node lets one more join than take part.
fn admits_one_more(participant: &Participant, roster: &Roster) -> bool {
    let joining = roster.participants.iter().filter(|it| it.key == participant.key).count();
    let left = |key: &Arc<AccessKey>| key.uses().left(0).is_none_or(|uses| uses as usize > joining);
    key(participant, roster).is_some_and(left)
}

impl Roster {
    /// Has nodes check in each second, so that the server misses one within seconds.
    pub fn hurry(&mut self) {
        let networks: Vec<_> =
            self.declared.networks().map(|(name, network)| (name.clone(), network.clone())).collect();
        for (name, network) in networks {
            self.put_network(
                &name,
                Object::Network(Arc::new(Network { check_in: Seconds(1), ..(*network).clone() })),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::declared;
    use super::super::roster::roster;
    use super::*;

    fn played(text: &str) -> Vec<String> {
        steps(&roster(&declared(text))).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nodes_leave_and_join_again_and_each_that_carries_is_lost_and_returns() {
        let played = played(
            r#"network "n" {
                ipv4 "10.0.0.0/24"
                hub "hub"
                access-key "named" { for "a" "gw" }
                access-key "many" uses="unlimited"
                node "a"; node "gw"; node "hub"; node "relay"; node "front"
                egress "office" via="gw" { ranges "192.168.1.0/24" }
                relay "r" via="relay" for="a"
                ingress "i" via="front"
            }
            network "alone" { ipv4 "10.1.0.0/24"; node "b"; egress "e" via="b" { ranges "192.168.2.0/24" } }"#,
        );
        let both = |name: &str, acts: [&str; 2]| acts.map(|act| format!("n/{name} {act}"));
        let (leaves, is_lost) = (["leaves", "joins again"], ["is lost", "is back"]);
        let expected = [
            both("a", leaves),
            both("many-1", leaves),
            both("front", is_lost),
            both("gw", is_lost),
            both("hub", is_lost),
            both("relay", is_lost),
        ];
        assert_eq!(played, expected.concat(), "a network of one node has none that would miss it");
    }

    #[test]
    fn a_node_of_a_key_that_is_used_up_does_not_leave() {
        let once = r#"network "n" { ipv4 "10.0.0.0/24"; access-key "k" uses=2; access-key "once" }"#;
        assert_eq!(played(once), Vec::<String>::new());
        let more = r#"network "n" { ipv4 "10.0.0.0/24"; access-key "k" uses=3 }"#;
        assert_eq!(played(more), ["n/k-1 leaves", "n/k-1 joins again"]);
    }

    #[test]
    fn nodes_check_in_each_second_and_nothing_else_changes() {
        let text = r#"network "n" { ipv4 "10.0.0.0/24"; check-in "1h"; node "a" }"#;
        let mut hurried = roster(&declared(text));
        hurried.hurry();
        assert_eq!(hurried.declared, roster(&declared(&text.replace("1h", "1s"))).declared);
    }
}
