//! How nodes join and leave: pure changes of the world.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use schema::compile::admission::{self, Newcomer};
use schema::compile::allocate::{Exhausted, ReservedAddresses};
use schema::compile::reconcile::joined_and_awaited;
use schema::inventory::{Admission, Inventory, Joined, KeyStatus, NodeId, PendingNode};
use schema::kinds::{AccessKey, Kind, Node};
use schema::scalars::{Identity, Name, NetworkName, Verifier, WireGuardKey};
use schema::snapshot::ResourceId;
use schema::text::{count, moment};
use schema::world::{ServerInfo, World};

use super::facts::Facts;

/// A host that wants to join, its signatures checked.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The network.
    pub network: NetworkName,
    /// The name that it wants.
    pub name: Name,
    /// Its identity.
    pub identity: Identity,
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// What it reports about itself.
    pub facts: Facts,
    /// What it runs.
    pub os: Box<str>,
}

/// Why a host may not join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such key or network, or the request is not signed with its secret: one error for all, so
    /// that whoever has no token cannot search for keys.
    #[error(
        "the token is not valid: the access key {0} does not exist, or has another secret; ask for a new token"
    )]
    UnknownKey(ResourceId),
    /// The request is signed with a secret that the key had before it was made anew.
    #[error(
        "the access key {0} was replaced, so this token is no longer valid; ask for the token of the new one"
    )]
    ReplacedKey(ResourceId),
    /// The request is signed with the secret of a key that was deleted.
    #[error(
        "the access key {0} was deleted, so this token is no longer valid; ask for a token of another key"
    )]
    DeletedKey(ResourceId),
    /// The identity was barred.
    #[error(
        "this host was removed from {network} as {node} and barred; whoever may remove nodes can lift that: \
         nmplan node unban {network}/{node}"
    )]
    Barred {
        /// The network.
        network: NetworkName,
        /// The node that it was.
        node: Name,
    },
    /// The key has expired.
    #[error("the access key {} expired on {}; ask for a new token", .0, moment(*.1))]
    Expired(ResourceId, Timestamp),
    /// The key has been used as often as it may.
    #[error(
        "the access key {} has been used {}, which is its limit; raise its `uses`, or ask for another token",
        .0, count(*.1, "time")
    )]
    Spent(ResourceId, u32),
    /// The key is for certain names.
    #[error("the access key {key} lets only {names} join, not {name}; join with --name and one of these")]
    NotFor {
        /// The key.
        key: ResourceId,
        /// Its names, joined by commas.
        names: String,
        /// The name that was asked for.
        name: Name,
    },
    /// The name is declared, and the key does not claim it.
    #[error("{0} is declared, and only a key whose `for` names it may claim it; join with another --name")]
    Declared(ResourceId),
    /// The name is that of the server's own host.
    #[error("{0} is the server's own host, so no key can claim it; join with another --name")]
    OwnNode(ResourceId),
    /// The name that the server's own host would have is not declared.
    #[error("{0} is not declared, so the server's own host is not a node of that network")]
    Undeclared(ResourceId),
    /// Another host has the name.
    #[error(
        "another host has joined {network} as {name}; join with another --name, or have that node removed first: nmplan \
         node remove {network}/{name}"
    )]
    NameTaken {
        /// The network.
        network: NetworkName,
        /// The name.
        name: Name,
    },
    /// Another object, such as a DNS entry, has the name.
    #[error("{0} has that name already; join with another --name")]
    NameInUse(ResourceId),
    /// Another host has the WireGuard key.
    #[error("another member of {0} has this WireGuard key; remove the key file of this host and join again")]
    PublicKeyTaken(NetworkName),
    /// The host is connected to the network's range by another interface.
    #[error(
        "the interface {interface} of this host is connected to {range}, the range of {network}, so the host would reach \
         no other node; change one of the two ranges"
    )]
    RangeConnected {
        /// The network.
        network: NetworkName,
        /// The range.
        range: IpNet,
        /// The interface.
        interface: String,
    },
    /// The network has as many nodes as its limit allows.
    #[error("the network {0} has {1} nodes, as many as its node-limit allows")]
    Full(NetworkName, usize),
    /// The network lets nobody wait, or does not exist: one error for both, so that strangers cannot search for
    /// networks.
    #[error(
        "there is no network {0} that hosts may ask to join without an access key: check its name, join with a token, or \
         have `manual-approval` of the network set to true"
    )]
    KeyNeeded(NetworkName),
    /// As many hosts wait as may.
    #[error(
        "{most} hosts wait for {0} already, which is the limit; have some of them approved or dropped, or join with a token",
        most = PendingNode::MOST
    )]
    ManyWait(NetworkName),
    /// As many hosts wait that asked from the same address as may.
    #[error(
        "{most} hosts that asked from this address wait for {0} already, which is the limit; have some of them approved \
         or dropped, or join with a token",
        most = PendingNode::MOST_FROM_ONE
    )]
    ManyWaitThere(NetworkName),
    /// More hosts have asked within a short time than may.
    #[error(
        "many hosts have asked to join {0} without an access key just now; try again later, or join with a token"
    )]
    ManyAsk(NetworkName),
    /// A declaration approves the host, under another name.
    #[error("{0} approves this host, so it cannot be let in under another name")]
    ApprovedAs(ResourceId),
    /// A declaration approves another host under that name.
    #[error(
        "{0} approves another host, so this one needs another name, or `approved` of that node its fingerprint"
    )]
    ApprovesAnother(ResourceId),
    /// The range has no address left.
    #[error("the range {range} of {network} has no free address", range = .0.range, network = .0.network)]
    Exhausted(Exhausted),
}

/// A node that has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Its name.
    pub name: Name,
    /// Whether anything changed.
    pub changed: bool,
}

/// Lets a host join by a key: one key use, one address of each family, one name, or none of these. The
/// `server` keeps a name for its own host, and the addresses by which it is reached.
///
/// A host that has joined already, by its identity, keeps its name and addresses and spends nothing.
pub fn join(
    world: &mut World,
    candidate: Candidate,
    key: &Name,
    server: &ServerInfo,
    now: Timestamp,
) -> Result<Admitted, Refused> {
    let id = ResourceId::of::<AccessKey>(&candidate.network, key);
    let unknown = || Refused::UnknownKey(id.clone());
    let key = world.snapshot.named::<AccessKey>(&candidate.network, key).ok_or_else(unknown)?.clone();
    let status = world.inventory.key(&id).ok_or_else(unknown)?.clone();
    if let Some(name) = world.inventory.name_of(&candidate.network, &candidate.identity).cloned() {
        return rejoin(world, candidate, name);
    }
    if let Some(barred) = world.inventory.barred_from(&candidate.network, &candidate.identity) {
        return Err(Refused::Barred { network: candidate.network, node: barred.node.clone() });
    }
    check_key(&id, &key, &status, now)?;
    let claimed = check_name(world, &id, &key, server.own_node.as_ref(), &candidate)?;
    let admitted = admit(world, candidate, Some((&id.name, &key)), claimed, &server.addresses, now)?;
    // A name is claimed by one host at a time: that is the limit there, not a count.
    if !claimed {
        world.inventory.put_key(id, KeyStatus { used: status.used + 1, ..(*status).clone() });
    }
    Ok(admitted)
}

/// Lets the server's own host join without a key, if the name that it wants is declared. Otherwise like
/// [`join`].
pub fn claim(
    world: &mut World,
    candidate: Candidate,
    server: &ServerInfo,
    now: Timestamp,
) -> Result<Admitted, Refused> {
    let declared = ResourceId::of::<Node>(&candidate.network, &candidate.name);
    if world.snapshot.entry(&declared).is_none() {
        return Err(Refused::Undeclared(declared));
    }
    match world.inventory.name_of(&candidate.network, &candidate.identity).cloned() {
        Some(name) => rejoin(world, candidate, name),
        None => admit(world, candidate, None, true, &server.addresses, now),
    }
}

/// Makes a node of a host that may be one, if there is room for it; `key` is the one that it joined with. It
/// is given none of the addresses of the `server`.
pub(super) fn admit(
    world: &mut World,
    candidate: Candidate,
    key: Option<(&Name, &AccessKey)>,
    claimed: bool,
    server: &[IpAddr],
    now: Timestamp,
) -> Result<Admitted, Refused> {
    check_free(world, &candidate)?;
    check_room(world, &candidate)?;
    check_connected(world, &candidate)?;
    check_public_key(world, &candidate, &candidate.name)?;
    let Candidate { network, name, identity, public_key, facts, os } = candidate;
    let Facts { endpoints, listen_port, problems, connected: _ } = facts;
    let key = key.map(|(name, key)| (name.clone(), key.tags.clone()));
    let newcomer = Newcomer { identity, public_key, endpoints, listen_port, problems, os, key, claimed };
    let reserved = ReservedAddresses::of(&network, &world.snapshot, server);
    let id = NodeId { network, name: name.clone() };
    admission::admit(&mut world.inventory, id, newcomer, &world.snapshot, &reserved, now)
        .map_err(Refused::Exhausted)?;
    Ok(Admitted { name, changed: true })
}

/// A host that joins again, perhaps because the first answer was lost, perhaps with a new WireGuard key.
pub(super) fn rejoin(world: &mut World, candidate: Candidate, name: Name) -> Result<Admitted, Refused> {
    check_public_key(world, &candidate, &name)?;
    let Candidate { network, name: _, identity: _, public_key, facts, os } = candidate;
    let id = NodeId { network, name: name.clone() };
    let Some(joined) = world.inventory.node(&id).cloned() else {
        return Ok(Admitted { name, changed: false });
    };
    let again = with_facts(&joined, facts);
    let again = Joined { public_key, os, ..again };
    let changed = again != *joined;
    if changed {
        world.inventory.put_node(id, again);
    }
    Ok(Admitted { name, changed })
}

/// A node with what its agent reports; a port that it has not chosen stays as it was.
pub fn with_facts(joined: &Joined, facts: Facts) -> Joined {
    let Facts { endpoints, listen_port, problems, connected: _ } = facts;
    Joined { endpoints, listen_port: listen_port.unwrap_or(joined.listen_port), problems, ..joined.clone() }
}

/// Who signed a request that names a key: a holder of its current secret, by what verifies that; `signed`
/// says whether the request is signed with a secret. `stranger` verifies nothing, and takes as long to.
pub fn holder(
    inventory: &Inventory,
    id: &ResourceId,
    stranger: Verifier,
    signed: impl Fn(&Verifier) -> bool,
) -> Result<Verifier, Refused> {
    let current = inventory.key(id).map(|status| status.verifier);
    if signed(&current.unwrap_or(stranger))
        && let Some(current) = current
    {
        return Ok(current);
    }
    let former = inventory.former_key(id).map(|former| &*former.verifiers).unwrap_or_default();
    Err(match (former.iter().any(signed), current) {
        (false, _) => Refused::UnknownKey(id.clone()),
        (true, Some(_)) => Refused::ReplacedKey(id.clone()),
        (true, None) => Refused::DeletedKey(id.clone()),
    })
}

/// Whether a host could join by a key, so that one which shows it may register.
pub fn may_register(world: &World, id: &ResourceId, now: Timestamp) -> Result<(), Refused> {
    let unknown = || Refused::UnknownKey(id.clone());
    let key = world.snapshot.named::<AccessKey>(&id.network, &id.name).ok_or_else(unknown)?;
    let status = world.inventory.key(id).ok_or_else(unknown)?;
    check_key(id, key, status, now)?;
    let claimable = |name: &Name| world.inventory.node(&NodeId::of(&id.network, name)).is_none();
    if !key.r#for.is_empty() && !key.r#for.iter().any(|node| claimable(&node.name)) {
        return Err(Refused::Spent(id.clone(), u32::try_from(key.r#for.len()).unwrap_or(u32::MAX)));
    }
    Ok(())
}

/// Whether no other member has the WireGuard key.
pub(super) fn check_public_key(world: &World, candidate: &Candidate, name: &Name) -> Result<(), Refused> {
    let Candidate { network, public_key, .. } = candidate;
    if admission::is_key_taken(world.parts(), network, name, public_key) {
        return Err(Refused::PublicKeyTaken(network.clone()));
    }
    Ok(())
}

fn check_key(id: &ResourceId, key: &AccessKey, status: &KeyStatus, now: Timestamp) -> Result<(), Refused> {
    match status.admission(key, now) {
        Admission::Open => Ok(()),
        Admission::Expired(end) => Err(Refused::Expired(id.clone(), end)),
        Admission::Spent(used) => Err(Refused::Spent(id.clone(), used)),
    }
}

/// Whether a key lets the host have the name, and claims a declared one by it.
fn check_name(
    world: &World,
    id: &ResourceId,
    key: &AccessKey,
    own_node: Option<&Name>,
    candidate: &Candidate,
) -> Result<bool, Refused> {
    let Candidate { network, name, .. } = candidate;
    let node = ResourceId::of::<Node>(network, name);
    if own_node == Some(name) {
        return Err(Refused::OwnNode(node));
    }
    if key.r#for.is_empty() {
        return if world.snapshot.entry(&node).is_some() { Err(Refused::Declared(node)) } else { Ok(false) };
    }
    if key.r#for.iter().any(|node| node.name == *name) {
        return Ok(true);
    }
    let names = key.r#for.iter().map(|node| node.name.to_string()).collect::<Vec<_>>().join(", ");
    Err(Refused::NotFor { key: id.clone(), names, name: name.clone() })
}

/// Whether no other node or object has the name.
fn check_free(world: &World, candidate: &Candidate) -> Result<(), Refused> {
    is_free(world, &candidate.network, &candidate.name)
}

/// Whether nobody and nothing has a name.
pub(super) fn is_free(world: &World, network: &NetworkName, name: &Name) -> Result<(), Refused> {
    if world.inventory.node(&NodeId::of(network, name)).is_some() {
        return Err(Refused::NameTaken { network: network.clone(), name: name.clone() });
    }
    let others = Kind::Node.namesakes().filter(|kind| *kind != Kind::Node);
    let mut others = others.map(|kind| ResourceId { network: network.clone(), kind, name: name.clone() });
    match others.find(|id| world.snapshot.entry(id).is_some()) {
        Some(other) => Err(Refused::NameInUse(other)),
        None => Ok(()),
    }
}

/// Whether no other interface of the host is connected to all of a range of the network: the host would keep
/// that for itself, and reach nobody.
pub(super) fn check_connected(world: &World, candidate: &Candidate) -> Result<(), Refused> {
    let Some(network) = world.snapshot.network(&candidate.network) else { return Ok(()) };
    let taken = candidate.facts.connected.iter().find(|(_, range)| network.ranges().any(|own| own == *range));
    match taken {
        Some((interface, range)) => Err(Refused::RangeConnected {
            network: candidate.network.clone(),
            range: *range,
            interface: interface.clone(),
        }),
        None => Ok(()),
    }
}

/// Whether the network has room: declared nodes that have not joined count as well.
fn check_room(world: &World, candidate: &Candidate) -> Result<(), Refused> {
    let network = &candidate.network;
    let Some(limit) = world.snapshot.network(network).and_then(|network| network.node_limit) else {
        return Ok(());
    };
    // If the candidate is declared, it is counted already.
    let itself = usize::from(world.snapshot.named::<Node>(network, &candidate.name).is_some());
    let count = joined_and_awaited(network, &world.snapshot, &world.inventory) - itself;
    if count as i64 >= limit.number() { Err(Refused::Full(network.clone(), count)) } else { Ok(()) }
}

/// Removes a node from a network, and returns it; nothing if it was not in. A name that it claimed can be
/// claimed again, by the same token too.
pub fn remove(world: &mut World, network: &NetworkName, name: &Name, now: Timestamp) -> Option<Arc<Joined>> {
    world.inventory.remove_node(&NodeId::of(network, name), now)
}

/// The access key with which a host that was removed could join again: not one that was made anew since it
/// joined, whose token it does not have.
pub fn admits(world: &World, network: &NetworkName, removed: &Joined, now: Timestamp) -> Option<ResourceId> {
    if world.inventory.barred_from(network, &removed.identity).is_some() {
        return None;
    }
    let id = ResourceId::of::<AccessKey>(network, removed.key.as_ref()?);
    let has_token = world.inventory.key(&id).is_some_and(|status| status.created <= removed.joined);
    (has_token && may_register(world, &id, now).is_ok()).then_some(id)
}

/// Lets the hosts join again that were removed as a node and barred; whether there were any.
pub fn lift_ban(world: &mut World, network: &NetworkName, name: &Name) -> bool {
    let barred = world.inventory.barred().filter(|((of, _), barred)| of == network && barred.node == *name);
    let identities: Vec<Identity> = barred.map(|((_, identity), _)| *identity).collect();
    identities.iter().for_each(|identity| world.inventory.end_bar(network, identity));
    !identities.is_empty()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use jiff::SignedDuration;
    use schema::world::ResourceDocument;

    fn world(key: &str) -> World {
        let mut world = World::default();
        for (id, body) in [
            ("corp", r#"{"ipv4":"10.0.0.0/29"}"#),
            ("corp/node/db", "{}"),
            ("corp/dns/api", r#"{"a":["10.0.0.2"]}"#),
            ("corp/access-key/k", key),
        ] {
            let json = format!(r#"{{"id":"{id}","body":{body}}}"#);
            let document: ResourceDocument = serde_json::from_str(&json).expect("good");
            world.snapshot.put(document.id.clone(), document.entry().expect("good"));
        }
        let status = KeyStatus { verifier: Verifier([0; 32]), created: Timestamp::UNIX_EPOCH, used: 0 };
        world.inventory.put_key("corp/access-key/k".parse().expect("good"), status);
        world
    }

    fn id(name: &str) -> NodeId {
        NodeId { network: "corp".parse().expect("good"), name: name.parse().expect("good") }
    }

    fn candidate(name: &str, number: u8) -> Candidate {
        Candidate {
            network: "corp".parse().expect("good"),
            name: name.parse().expect("good"),
            identity: Identity([number; 32]),
            public_key: WireGuardKey([100 + number; 32]),
            facts: Facts::default(),
            os: "linux".into(),
        }
    }

    fn enter(world: &mut World, name: &str, number: u8) -> Result<String, Refused> {
        by_key(world, candidate(name, number), Timestamp::UNIX_EPOCH)
            .map(|admitted| admitted.name.to_string())
    }

    /// Joins with the key `k`, where the server's own host is `netmaker`.
    fn by_key(world: &mut World, candidate: Candidate, now: Timestamp) -> Result<Admitted, Refused> {
        join(world, candidate, &"k".parse().expect("good"), &server(Some("netmaker"), &[]), now)
    }

    /// A server with this name for its own host, which is reached at these addresses.
    pub(crate) fn server(own_node: Option<&str>, addresses: &[&str]) -> ServerInfo {
        ServerInfo {
            id: "s".into(),
            epoch: 1,
            agent_addresses: Vec::new(),
            signing_key: schema::scalars::SigningKey([0; 32]),
            ca_pin: None,
            version: String::new(),
            comms_range: None,
            own_node: own_node.map(|name| name.parse().expect("good")),
            addresses: addresses.iter().map(|address| address.parse().expect("good")).collect(),
        }
    }

    #[test]
    fn no_node_is_given_an_address_of_the_server() {
        let mut world = world(r#"{"uses":9}"#);
        let server = server(None, &["10.0.0.1", "10.0.0.3"]);
        let addresses: Vec<_> = [("a", 1), ("b", 2)]
            .map(|(name, number)| {
                let key = "k".parse().expect("good");
                join(&mut world, candidate(name, number), &key, &server, Timestamp::UNIX_EPOCH)
                    .expect("it may join");
                world.inventory.node(&id(name)).expect("joined").addresses.first().expect("one").to_string()
            })
            .into();
        assert_eq!(addresses, ["10.0.0.4", "10.0.0.5"], "10.0.0.2 is an entry's");
    }

    #[test]
    fn a_removed_host_may_join_again_with_the_key_that_it_has_not_with_one_made_anew_since() {
        let mut world = world(r#"{"uses":3}"#);
        enter(&mut world, "a", 1).expect("it may join");
        let corp = id("a").network;
        let removed = remove(&mut world, &corp, &id("a").name, Timestamp::UNIX_EPOCH).expect("it was in");
        let key: ResourceId = "corp/access-key/k".parse().expect("good");
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_mins(1);
        assert_eq!(admits(&world, &corp, &removed, now), Some(key.clone()));
        world.inventory.put_key(key, KeyStatus { verifier: Verifier([1; 32]), created: now, used: 0 });
        assert_eq!(admits(&world, &corp, &removed, now), None, "it does not have that token");
    }

    #[test]
    fn a_key_of_three_uses_lets_three_in() {
        let mut world = world(r#"{"uses":3}"#);
        for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
            assert_eq!(enter(&mut world, name, number).as_deref(), Ok(name));
        }
        let before = world.clone();
        assert!(matches!(enter(&mut world, "d", 4), Err(Refused::Spent(_, 3))));
        assert_eq!(world, before, "a refused host leaves nothing");
    }

    #[test]
    fn a_port_that_is_not_chosen_is_the_declared_one_else_the_networks_until_it_is() {
        let mut world = world(r#"{"uses":3}"#);
        enter(&mut world, "a", 1).expect("it may join");
        let joined = world.inventory.node(&id("a")).expect("joined").clone();
        assert_eq!(joined.listen_port, 51_821);
        let chosen = with_facts(&joined, Facts { listen_port: Some(4_000), ..Facts::default() });
        assert_eq!(chosen.listen_port, 4_000);
        assert_eq!(with_facts(&chosen, Facts::default()).listen_port, 4_000);
    }

    #[test]
    fn a_wireguard_key_is_one_nodes_also_when_it_joins_again() {
        let mut world = world(r#"{"uses":3}"#);
        enter(&mut world, "a", 1).expect("it may join");
        enter(&mut world, "b", 2).expect("it may join");
        let stolen = Candidate { public_key: WireGuardKey([101; 32]), ..candidate("b", 2) };
        let again = by_key(&mut world, stolen, Timestamp::UNIX_EPOCH);
        assert!(matches!(again, Err(Refused::PublicKeyTaken(_))), "{again:?}");
    }

    #[test]
    fn nobody_joins_with_the_name_or_the_wireguard_key_of_an_external_client() {
        let mut world = world(r#"{"uses":3}"#);
        let (id, key) = ("corp/external-client/phone", WireGuardKey([101; 32]));
        let json = format!(r#"{{"id":"{id}","body":{{"via":"front","public-key":"{key}"}}}}"#);
        let document: ResourceDocument = serde_json::from_str(&json).expect("good");
        world.snapshot.put(document.id.clone(), document.entry().expect("good"));
        let before = world.clone();
        assert!(matches!(enter(&mut world, "a", 1), Err(Refused::PublicKeyTaken(_))));
        assert!(matches!(enter(&mut world, "phone", 2), Err(Refused::NameInUse(_))));
        assert_eq!(world, before);
        assert_eq!(enter(&mut world, "b", 2).as_deref(), Ok("b"));
    }

    #[test]
    fn joining_again_spends_nothing() {
        let mut world = world(r#"{"uses":1}"#);
        assert_eq!(enter(&mut world, "a", 1).as_deref(), Ok("a"));
        let before = world.clone();
        assert_eq!(enter(&mut world, "other", 1).as_deref(), Ok("a"));
        assert_eq!(world, before);
    }

    #[test]
    fn entries_and_declared_names_keep_their_addresses_and_names() {
        let mut world = world(r#"{"uses":9}"#);
        assert_eq!(enter(&mut world, "a", 1).as_deref(), Ok("a"));
        assert_eq!(enter(&mut world, "b", 2).as_deref(), Ok("b"));
        let b = world.inventory.node(&id("b")).expect("joined");
        assert_eq!(b.addresses, std::collections::BTreeSet::from(["10.0.0.3".parse().expect("good")]));
        assert!(matches!(enter(&mut world, "db", 3), Err(Refused::Declared(_))));
        assert!(matches!(enter(&mut world, "api", 3), Err(Refused::NameInUse(_))));
        assert!(matches!(enter(&mut world, "a", 3), Err(Refused::NameTaken { .. })));
    }

    #[test]
    fn a_key_for_a_name_claims_that_name_once_and_gets_its_use_back() {
        let mut world = world(r#"{"for":["db"]}"#);
        assert!(matches!(enter(&mut world, "a", 1), Err(Refused::NotFor { .. })));
        assert_eq!(enter(&mut world, "db", 1).as_deref(), Ok("db"));
        assert!(matches!(enter(&mut world, "db", 2), Err(Refused::NameTaken { .. })));
        let network = "corp".parse().expect("good");
        let name = "db".parse().expect("good");
        assert!(remove(&mut world, &network, &name, Timestamp::UNIX_EPOCH).is_some());
        assert_eq!(enter(&mut world, "db", 2).as_deref(), Ok("db"));
    }

    #[test]
    fn no_key_lets_another_host_be_the_servers_own_declared_or_not() {
        for key in [r#"{"uses":9}"#, r#"{"for":["db","netmaker"]}"#] {
            let mut world = world(key);
            let before = world.clone();
            let refused = enter(&mut world, "netmaker", 1).expect_err("it is the server's own").to_string();
            assert!(refused.contains("corp/node/netmaker is the server's own host"), "{refused}");
            assert_eq!(world, before);
        }
        let mut world = world(r#"{"for":["db","netmaker"]}"#);
        let key = "k".parse().expect("good");
        let elsewhere =
            join(&mut world, candidate("netmaker", 1), &key, &server(None, &[]), Timestamp::UNIX_EPOCH);
        assert!(
            elsewhere.is_ok(),
            "where the server's host is not a node, the name is like any other: {elsewhere:?}"
        );
    }

    #[test]
    fn the_servers_own_host_claims_a_declared_name_without_a_key() {
        let mut world = world(r#"{"uses":1}"#);
        let (now, server) = (Timestamp::UNIX_EPOCH, server(Some("netmaker"), &[]));
        let refused = claim(&mut world, candidate("netmaker", 1), &server, now);
        assert!(matches!(refused, Err(Refused::Undeclared(_))), "{refused:?}");
        let admitted = claim(&mut world, candidate("db", 1), &server, now).expect("db is declared");
        assert_eq!((admitted.name.as_str(), admitted.changed), ("db", true));
        let node = |world: &World| world.inventory.node(&id("db")).expect("joined").clone();
        assert_eq!((node(&world).claimed, &node(&world).key, node(&world).addresses.len()), (true, &None, 1));
        assert_eq!(enter(&mut world, "a", 2).as_deref(), Ok("a"), "it has spent no use of the key");
        let before = world.clone();
        let other = claim(&mut world, candidate("db", 3), &server, now);
        assert!(
            matches!(other, Err(Refused::NameTaken { .. })),
            "another server's host was first: {other:?}"
        );
        let again = claim(&mut world, candidate("db", 1), &server, now).expect("it is in");
        assert!(!again.changed);
        assert_eq!(world, before);
        let new_key = Candidate { public_key: WireGuardKey([7; 32]), ..candidate("db", 1) };
        assert!(claim(&mut world, new_key, &server, now).expect("it is in").changed);
        assert_eq!(node(&world).public_key, WireGuardKey([7; 32]));
    }

    #[test]
    fn only_whoever_had_a_token_is_sent_what_became_of_its_key() {
        let id: ResourceId = "corp/access-key/k".parse().expect("good");
        let [first, second, stranger] = [1, 2, 9].map(|number| Verifier([number; 32]));
        let mut world = world(r#"{"uses":1}"#);
        let key = |verifier| KeyStatus { verifier, created: Timestamp::UNIX_EPOCH, used: 0 };
        let by = |world: &World, secret: Verifier| {
            holder(&world.inventory, &id, stranger, |verifier| *verifier == secret)
        };
        let unknown = Err(Refused::UnknownKey(id.clone()));
        world.inventory.put_key(id.clone(), key(first));
        assert_eq!((by(&world, first), by(&world, second)), (Ok(first), unknown.clone()));
        world.inventory.remove_key(&id, Timestamp::UNIX_EPOCH);
        assert_eq!(by(&world, first), Err(Refused::DeletedKey(id.clone())));
        world.inventory.put_key(id.clone(), key(second));
        assert_eq!(
            (by(&world, first), by(&world, second)),
            (Err(Refused::ReplacedKey(id.clone())), Ok(second))
        );
        for world in [&World::default(), &world] {
            assert_eq!(
                by(world, Verifier([3; 32])),
                unknown,
                "whoever guesses is sent the same of every key"
            );
            assert_eq!(by(world, stranger), unknown, "and this one is nobody's");
        }
    }

    #[test]
    fn nobody_joins_by_an_expired_key() {
        let mut world = world(r#"{"expires":"1h"}"#);
        let later: Timestamp = "1970-01-01T01:00:00Z".parse().expect("good");
        assert!(matches!(by_key(&mut world, candidate("a", 1), later), Err(Refused::Expired(..))));
    }

    #[test]
    fn a_full_range_is_reported() {
        let mut world = world(r#"{"uses":"unlimited"}"#);
        for number in 1..=5 {
            enter(&mut world, &format!("n{number}"), number).expect("there is room");
        }
        assert!(matches!(enter(&mut world, "n6", 6), Err(Refused::Exhausted(_))));
    }
}
