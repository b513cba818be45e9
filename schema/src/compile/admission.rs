//! How a host becomes a node: by an access key, by hand, or since a declaration approves it. Pure, so that a
//! plan shows what an apply will do.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::allocate::{Allocator, Exhausted, ReservedAddresses};
use crate::inventory::{Endpoints, Inventory, Joined, NodeId, NodeProblem, PendingNode};
use crate::kinds::{ExternalClient, Node};
use crate::scalars::{Fingerprint, Identity, Name, NetworkName, WireGuardKey};
use crate::snapshot::Snapshot;

/// A host that is let into a network: what its node will be, but for the addresses.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Its identity.
    pub identity: Identity,
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// Where the others may reach it, by source.
    pub endpoints: Endpoints,
    /// The UDP port that it listens on; absent: it has not chosen one.
    pub listen_port: Option<u16>,
    /// What is not as it should be on it.
    pub problems: Vec<NodeProblem>,
    /// What it runs.
    pub os: Box<str>,
    /// The access key that lets it in, with the tags that it gives; absent: none does.
    pub key: Option<(Name, std::collections::BTreeSet<Name>)>,
    /// Whether it is let in as a declared node that it may be, and leaves with the declaration.
    pub claimed: bool,
}

impl Newcomer {
    /// A host that waited.
    pub fn of_pending(identity: Identity, pending: &PendingNode, claimed: bool) -> Self {
        let PendingNode { name: _, public_key, endpoints, listen_port, since: _, seen: _, os } =
            pending.clone();
        Self { identity, public_key, endpoints, listen_port, problems: Vec::new(), os, key: None, claimed }
    }
}

/// Makes a node of a host, with an address of each range. The caller makes sure that nobody else has its name
/// or its WireGuard key.
pub fn admit(
    inventory: &mut Inventory,
    NodeId { network, name }: NodeId,
    newcomer: Newcomer,
    declared: &Snapshot,
    reserved: &ReservedAddresses,
    now: Timestamp,
) -> Result<(), Exhausted> {
    let Newcomer { identity, public_key, endpoints, listen_port, problems, os, key, claimed } = newcomer;
    let listen_port = listen_port.unwrap_or_else(|| wanted_port(declared, &network, &name));
    let mut allocator = Allocator::new(&network, declared, reserved, inventory, now);
    let addresses = allocator.addresses(&name, &Default::default(), inventory)?;
    let (key, tags) = key.unzip();
    let tags = tags.unwrap_or_default();
    let joined = Joined {
        public_key,
        identity,
        addresses,
        endpoints,
        listen_port,
        tags,
        key,
        claimed,
        joined: now,
        problems,
        os,
    };
    inventory.put_node(NodeId { network, name }, joined);
    Ok(())
}

/// The port that a node will most likely listen on: its declared one, else the network's.
fn wanted_port(declared: &Snapshot, network: &NetworkName, name: &Name) -> u16 {
    let declaration = declared.named::<Node>(network, name);
    let settings = declared.network(network);
    settings.map(|network| network.listen_port_of(declaration.map(|node| &**node))).unwrap_or_default()
}

/// The declared node that a host may be without an access key; nothing: no declaration approves it.
pub fn approved_as<'a>(
    declared: &'a Snapshot,
    network: &NetworkName,
    fingerprint: Fingerprint,
) -> Option<&'a Name> {
    let mut nodes = declared.all_in::<Node>(network);
    nodes.find(|(_, node)| node.approved == Some(fingerprint)).map(|(id, _)| &id.name)
}

/// The host that waits for a network, by its fingerprint.
pub fn pending_by<'a>(
    inventory: &'a Inventory,
    network: &NetworkName,
    fingerprint: Fingerprint,
) -> Option<(&'a Identity, &'a PendingNode)> {
    let mut pending = inventory.pending_in(network);
    pending.find(|(identity, _)| identity.fingerprint() == fingerprint).map(|(id, pending)| (id, &**pending))
}

/// Whether another member of the network has a WireGuard key: a node of another name, or a client.
pub fn is_key_taken(
    (declared, inventory): (&Snapshot, &Inventory),
    network: &NetworkName,
    name: &Name,
    key: &WireGuardKey,
) -> bool {
    let mut clients = declared.all_in::<ExternalClient>(network);
    inventory.holder_of_key(network, key).is_some_and(|holder| holder != name)
        || clients.any(|(_, client)| client.public_key == Some(*key))
}

/// Lets in each host that waits and that a declaration approves, unless another one is that node already; in
/// the order of names. Then nobody waits for a network that lets nobody wait.
pub(super) fn let_in_approved(
    inventory: &mut Inventory,
    declared: &Snapshot,
    reserved: &BTreeMap<NetworkName, ReservedAddresses>,
    now: Timestamp,
) -> Result<(), Exhausted> {
    let before = inventory.clone();
    for (network, reserved) in reserved {
        let waiting: BTreeMap<_, _> = before
            .pending_in(network)
            .map(|(identity, it)| (identity.fingerprint(), (*identity, it)))
            .collect();
        if waiting.is_empty() {
            continue;
        }
        for (id, node) in declared.all_in::<Node>(network) {
            let Some((identity, pending)) = node.approved.and_then(|host| waiting.get(&host)) else {
                continue;
            };
            let taken = is_key_taken((declared, inventory), network, &id.name, &pending.public_key);
            if inventory.node(&id.node()).is_none() && !taken {
                let newcomer = Newcomer::of_pending(*identity, pending, true);
                admit(inventory, id.node(), newcomer, declared, reserved, now)?;
            }
        }
    }
    let takes = |network: &NetworkName| declared.network(network).is_some_and(|it| it.manual_approval);
    for ((network, identity), _) in before.pending().filter(|((network, _), _)| !takes(network)) {
        inventory.end_pending(network, identity);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::reconcile::reconcile;
    use crate::inventory::tests::joined;
    use crate::world::ResourceDocument;

    fn declared(resources: &[(&str, &str)]) -> Snapshot {
        let mut declared = Snapshot::default();
        for (id, body) in resources {
            let json = format!(r#"{{"id":"{id}","body":{body}}}"#);
            let document: ResourceDocument = serde_json::from_str(&json).expect("good");
            declared.put(document.id.clone(), document.entry().expect("good"));
        }
        declared
    }

    fn corp() -> NetworkName {
        "corp".parse().expect("good")
    }

    fn id(name: &str) -> NodeId {
        NodeId::of(&corp(), &name.parse().expect("good"))
    }

    /// A network in which these hosts wait, each with keys of its number.
    fn waiting(numbers: &[u8]) -> Inventory {
        let mut inventory = Inventory::default();
        for number in numbers {
            let pending = PendingNode {
                name: format!("host-{number}").parse().expect("good"),
                public_key: WireGuardKey([*number; 32]),
                endpoints: Endpoints::default(),
                listen_port: None,
                since: Timestamp::UNIX_EPOCH,
                seen: None,
                os: "linux".into(),
            };
            inventory.put_pending(corp(), Identity([*number; 32]), pending);
        }
        inventory
    }

    fn approves(number: u8) -> String {
        format!(r#"{{"approved":"{}"}}"#, Identity([number; 32]).fingerprint())
    }

    fn reconciled(inventory: &Inventory, declared: &Snapshot) -> Inventory {
        reconcile(inventory, declared, &[], Timestamp::UNIX_EPOCH).expect("there is room")
    }

    const OPEN: &str = r#"{"ipv4":"10.0.0.0/24","manual-approval":true}"#;
    const CLOSED: &str = r#"{"ipv4":"10.0.0.0/24"}"#;

    #[test]
    fn who_waits_is_let_in_as_the_node_that_approves_it_once() {
        let files = declared(&[("corp", OPEN), ("corp/node/db", &approves(1)), ("corp/node/other", "{}")]);
        let after = reconciled(&waiting(&[1, 2]), &files);
        let db = after.node(&id("db")).expect("it is in");
        assert_eq!((db.identity, db.claimed, &db.key), (Identity([1; 32]), true, &None));
        assert_eq!((db.addresses.len(), db.listen_port), (1, 51_821));
        assert_eq!(after.nodes().count(), 1);
        assert_eq!(after.pending().map(|((_, identity), _)| identity.0[0]).collect::<Vec<_>>(), [2]);
        assert_eq!(reconciled(&after, &files), after, "what was done once is not done again");
        let left = reconciled(&after, &declared(&[("corp", OPEN), ("corp/node/other", "{}")]));
        assert_eq!(left.nodes().count(), 0, "it leaves with its declaration");
    }

    #[test]
    fn a_node_that_another_host_is_lets_nobody_in_until_that_one_is_gone() {
        let files = declared(&[("corp", OPEN), ("corp/node/db", &approves(1))]);
        let mut taken = waiting(&[1]);
        taken.put_node(id("db"), joined(9, "10.0.0.7"));
        assert_eq!(reconciled(&taken, &files), taken, "it waits on");
        taken.remove_node(&id("db"), Timestamp::UNIX_EPOCH);
        assert_eq!(reconciled(&taken, &files).node(&id("db")).map(|db| db.identity.0[0]), Some(1));
        let mut same_key = waiting(&[1]);
        same_key.put_node(id("elsewhere"), Joined { identity: Identity([9; 32]), ..joined(1, "10.0.0.7") });
        assert_eq!(reconciled(&same_key, &files), same_key, "a WireGuard key is one node's");
    }

    #[test]
    fn who_is_in_by_hand_is_not_let_in_again_by_a_declaration() {
        let mut inventory = waiting(&[]);
        inventory.put_node(id("laptop"), joined(1, "10.0.0.7"));
        for name in ["laptop", "db"] {
            let node = format!("corp/node/{name}");
            let files = declared(&[("corp", OPEN), (&node, &approves(1))]);
            assert_eq!(reconciled(&inventory, &files), inventory, "{name}");
        }
        inventory.put_pending(
            corp(),
            Identity([1; 32]),
            waiting(&[1]).pending().next().map(|(_, it)| (**it).clone()).expect("one"),
        );
        assert_eq!(inventory.pending().count(), 0, "who is in does not wait");
    }

    #[test]
    fn nobody_waits_for_a_network_that_is_gone_or_lets_nobody_wait_any_more() {
        let files = declared(&[("corp", CLOSED), ("corp/node/db", &approves(1))]);
        let after = reconciled(&waiting(&[1, 2]), &files);
        assert!(after.node(&id("db")).is_some(), "what a declaration approves needs no waiting");
        assert_eq!(after.pending().count(), 0);
        assert_eq!(reconciled(&waiting(&[1]), &Snapshot::default()), Inventory::default());
    }
}
