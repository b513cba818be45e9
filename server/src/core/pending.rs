//! Hosts that ask to join without an access key: they wait until somebody lets them in. Pure changes of the
//! world.
//!
//! A host that waits is no member. It is let in once: by a declaration whose `approved` has its fingerprint,
//! at the apply or when it asks, or by hand ([`approve`]). It is dropped by hand, after
//! [`PendingNode::LIFE`], and with what it waits for.

use std::net::{IpAddr, Ipv6Addr};

use jiff::Timestamp;
use schema::compile::admission::{approved_as, pending_by};
use schema::inventory::{NodeId, PendingNode};
use schema::kinds::Node;
use schema::scalars::{Fingerprint, Identity, Name, NetworkName};
use schema::snapshot::ResourceId;
use schema::world::{ServerInfo, World};

use super::enrol::{self, Admitted, Candidate, Refused};
use super::facts::Facts;

/// A host that asks, without an access key.
#[derive(Clone, Debug)]
pub struct Applicant {
    /// The host, and the name that it asks for.
    pub candidate: Candidate,
    /// The address that it asks from.
    pub seen: Option<IpAddr>,
    /// Whether it has asked before and waits: it does not begin anew.
    pub waits: bool,
}

/// What became of a host that asks without an access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is a node.
    In(Admitted),
    /// It waits until then, unless it is let in before.
    Waits(Timestamp),
    /// It does not wait any more: it was dropped.
    Dropped,
}

/// Lets a host in that a declaration approves; makes any other wait, if its network lets hosts wait. A host that
/// asks again waits for as long as before; `may_begin` says whether one more may begin to.
pub fn ask(
    world: &mut World,
    applicant: Applicant,
    server: &ServerInfo,
    may_begin: impl FnOnce() -> bool,
    now: Timestamp,
) -> Result<Standing, Refused> {
    let Applicant { candidate, seen, waits } = applicant;
    let Candidate { network, name: _, identity, .. } = &candidate;
    if let Some(name) = world.inventory.name_of(network, identity).cloned() {
        return enrol::rejoin(world, candidate, name).map(Standing::In);
    }
    if let Some(barred) = world.inventory.barred_from(network, identity) {
        let refused = Refused::Barred { network: network.clone(), node: barred.node.clone() };
        return if waits { Ok(Standing::Dropped) } else { Err(refused) };
    }
    if let Some(name) = approved_as(&world.snapshot, network, identity.fingerprint()).cloned()
        && server.own_node.as_ref() != Some(&name)
        && enrol::is_free(world, network, &name).is_ok()
    {
        let approved = Candidate { name, ..candidate };
        return enrol::admit(world, approved, None, true, &server.addresses, now).map(Standing::In);
    }
    let open = world.snapshot.network(network).is_some_and(|network| network.manual_approval);
    let before = world.inventory.pending_of(network, identity).cloned();
    match (&before, waits) {
        (_, true) if !open => return Ok(Standing::Dropped),
        (None, true) => return Ok(Standing::Dropped),
        (Some(before), true) => return Ok(Standing::Waits(before.until())),
        (_, false) if !open => return Err(Refused::KeyNeeded(network.clone())),
        (_, false) => {}
    }
    enrol::check_public_key(world, &candidate, &candidate.name)?;
    enrol::check_connected(world, &candidate)?;
    let Candidate { network, name, identity, public_key, facts, os } = candidate;
    let Facts { endpoints, listen_port, problems: _, connected: _ } = facts;
    let since = before.as_ref().map_or(now, |before| before.since);
    let pending = PendingNode { name, public_key, endpoints, listen_port, since, seen, os };
    let until = pending.until();
    let same = |before: &PendingNode| {
        (&before.name, before.public_key, &before.os) == (&pending.name, pending.public_key, &pending.os)
    };
    match &before {
        // Where it is seen is shown as it was first, and reported anew once it is in.
        Some(before) if same(before) => return Ok(Standing::Waits(until)),
        Some(_) => {}
        None if world.inventory.pending_in(&network).count() >= PendingNode::MOST => {
            return Err(Refused::ManyWait(network));
        }
        None if from_there(world, &network, seen) >= PendingNode::MOST_FROM_ONE => {
            return Err(Refused::ManyWaitThere(network));
        }
        None => {}
    }
    if !may_begin() {
        return Err(Refused::ManyAsk(network));
    }
    world.inventory.put_pending(network, identity, pending);
    Ok(Standing::Waits(until))
}

/// How many wait that asked from the same address as this one, or the same /64 of IPv6; none of those whose
/// address is not known, or is that of a proxy on the server's own host.
fn from_there(world: &World, network: &NetworkName, seen: Option<IpAddr>) -> usize {
    let source = |seen: IpAddr| match seen {
        IpAddr::V4(_) => seen,
        IpAddr::V6(seen) => (seen & Ipv6Addr::from(!0u128 << 64)).into(),
    };
    let Some(there) = seen.filter(|seen| !seen.is_loopback()).map(source) else { return 0 };
    let waiting = world.inventory.pending_in(network);
    waiting.filter(|(_, pending)| pending.seen.map(source) == Some(there)).count()
}

/// Lets a host in by hand that waits, as the node of a name; nothing if it does not wait.
pub fn approve(
    world: &mut World,
    network: &NetworkName,
    fingerprint: Fingerprint,
    name: &Name,
    server: &ServerInfo,
    now: Timestamp,
) -> Option<Result<Admitted, Refused>> {
    let (identity, pending) = pending_by(&world.inventory, network, fingerprint)?;
    let PendingNode { name: _, public_key, endpoints, listen_port, since: _, seen: _, os } = pending.clone();
    let facts = Facts { endpoints, listen_port, ..Facts::default() };
    let (network, name, identity) = (network.clone(), name.clone(), *identity);
    Some(obstacle(world, &network, fingerprint, &name, server).map_or_else(
        || {
            let candidate = Candidate { network, name, identity, public_key, facts, os };
            enrol::admit(world, candidate, None, false, &server.addresses, now)
        },
        Err,
    ))
}

/// Why a host that waits cannot be let in by hand under a name; nothing if it can, as far as names go.
pub fn obstacle(
    world: &World,
    network: &NetworkName,
    fingerprint: Fingerprint,
    name: &Name,
    server: &ServerInfo,
) -> Option<Refused> {
    let id = |name: &Name| ResourceId::of::<Node>(network, name);
    if server.own_node.as_ref() == Some(name) {
        return Some(Refused::OwnNode(id(name)));
    }
    if let Err(taken) = enrol::is_free(world, network, name) {
        return Some(taken);
    }
    if let Some(other) = approved_as(&world.snapshot, network, fingerprint).filter(|other| *other != name) {
        return Some(Refused::ApprovedAs(id(other)));
    }
    let declared = world.snapshot.named::<Node>(network, name);
    let another = declared.and_then(|node| node.approved).is_some_and(|approved| approved != fingerprint);
    another.then(|| Refused::ApprovesAnother(id(name)))
}

/// Ends the waiting of a host; returns its identity, and what it was.
pub fn drop_by(
    world: &mut World,
    network: &NetworkName,
    fingerprint: Fingerprint,
) -> Option<(Identity, PendingNode)> {
    let (identity, pending) = pending_by(&world.inventory, network, fingerprint)?;
    let (identity, pending) = (*identity, pending.clone());
    world.inventory.end_pending(network, &identity);
    Some((identity, pending))
}

/// Drops the hosts that have waited for too long; returns them.
pub fn drop_over(world: &mut World, now: Timestamp) -> Vec<NodeId> {
    let over = world.inventory.pending().filter(|(_, pending)| pending.until() <= now);
    let over: Vec<_> = over.map(|(place, pending)| (place.clone(), pending.name.clone())).collect();
    let drop = |((network, identity), name)| {
        world.inventory.end_pending(&network, &identity);
        NodeId { network, name }
    };
    over.into_iter().map(drop).collect()
}

/// When the next host has waited for too long; nothing: none waits.
pub fn next_over(world: &World) -> Option<Timestamp> {
    world.inventory.pending().map(|(_, pending)| pending.until()).min()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::SignedDuration;
    use proptest::prelude::*;
    use schema::compile::reconcile::reconcile;
    use schema::scalars::WireGuardKey;
    use schema::world::ResourceDocument;

    use super::*;
    use crate::core::enrol::tests::server;

    const OPEN: &str = r#"{"ipv4":"10.0.0.0/24","manual-approval":true}"#;
    const CLOSED: &str = r#"{"ipv4":"10.0.0.0/24"}"#;
    const START: Timestamp = Timestamp::UNIX_EPOCH;

    fn world(resources: &[(&str, &str)]) -> World {
        let mut world = World::default();
        for (id, body) in resources {
            let json = format!(r#"{{"id":"{id}","body":{body}}}"#);
            let document: ResourceDocument = serde_json::from_str(&json).expect("good");
            world.snapshot.put(document.id.clone(), document.entry().expect("good"));
        }
        world
    }

    fn corp() -> NetworkName {
        "corp".parse().expect("good")
    }

    fn name(text: &str) -> Name {
        text.parse().expect("good")
    }

    fn fingerprint(number: u8) -> Fingerprint {
        Identity([number; 32]).fingerprint()
    }

    fn approves(number: u8) -> String {
        format!(r#"{{"approved":"{}"}}"#, fingerprint(number))
    }

    fn applicant(asked: &str, number: u8, waits: bool) -> Applicant {
        let candidate = Candidate {
            network: corp(),
            name: name(asked),
            identity: Identity([number; 32]),
            public_key: WireGuardKey([number; 32]),
            facts: Facts::default(),
            os: "linux".into(),
        };
        Applicant { candidate, seen: None, waits }
    }

    fn asks(world: &mut World, asked: &str, number: u8, now: Timestamp) -> Result<Standing, Refused> {
        ask(world, applicant(asked, number, false), &server(Some("netmaker"), &[]), || true, now)
    }

    fn asks_on(world: &mut World, asked: &str, number: u8) -> Result<Standing, Refused> {
        ask(world, applicant(asked, number, true), &server(None, &[]), || false, START)
    }

    fn approved(world: &mut World, number: u8, as_node: &str) -> Option<Result<Admitted, Refused>> {
        approve(world, &corp(), fingerprint(number), &name(as_node), &server(Some("netmaker"), &[]), START)
    }

    #[test]
    fn a_host_that_asks_again_is_the_same_and_waits_no_longer_for_it() {
        let mut world = world(&[("corp", OPEN)]);
        let until = START + PendingNode::LIFE;
        assert_eq!(asks(&mut world, "web", 1, START), Ok(Standing::Waits(until)));
        let before = world.clone();
        let later = START + SignedDuration::from_hours(3);
        assert_eq!(asks(&mut world, "web", 1, later), Ok(Standing::Waits(until)));
        assert_eq!(asks_on(&mut world, "web", 1), Ok(Standing::Waits(until)));
        assert_eq!(world, before);
        assert_eq!(
            asks(&mut world, "web-2", 1, later),
            Ok(Standing::Waits(until)),
            "another name, the same time"
        );
        assert_eq!(world.inventory.pending().count(), 1);
        assert_eq!(
            asks(&mut world, "web-2", 2, later),
            Ok(Standing::Waits(later + PendingNode::LIFE)),
            "a name is nobody's yet"
        );
        assert_eq!(world.inventory.nodes().count(), 0);
    }

    #[test]
    fn a_network_that_lets_nobody_wait_and_one_that_does_not_exist_are_the_same_to_a_stranger() {
        let mut closed = world(&[("corp", CLOSED)]);
        let refused = asks(&mut closed, "web", 1, START).expect_err("a key is needed");
        assert_eq!(asks(&mut world(&[]), "web", 1, START), Err(refused.clone()));
        assert!(refused.to_string().contains("manual-approval"), "{refused}");
        assert_eq!(asks_on(&mut closed, "web", 1), Ok(Standing::Dropped));
        assert_eq!(closed, world(&[("corp", CLOSED)]));
    }

    #[test]
    fn a_hundred_wait_at_most_and_one_more_only_if_it_may_begin() {
        let mut world = world(&[("corp", OPEN)]);
        for number in 1..=100 {
            asks(&mut world, &format!("h{number}"), number, START).expect("it may wait");
        }
        let before = world.clone();
        assert_eq!(asks(&mut world, "more", 101, START), Err(Refused::ManyWait(corp())));
        assert!(asks(&mut world, "h7", 7, START).is_ok(), "who waits already is not one more");
        assert_eq!(world, before);
        drop_by(&mut world, &corp(), fingerprint(7)).expect("it waits");
        let refused = ask(&mut world, applicant("more", 101, false), &server(None, &[]), || false, START);
        assert_eq!(refused, Err(Refused::ManyAsk(corp())));
        assert!(asks(&mut world, "more", 101, START).is_ok());
    }

    #[test]
    fn twenty_wait_at_most_that_asked_from_one_address_or_one_network_of_ipv6() {
        for (there, also_there, elsewhere) in
            [("192.0.2.1", "192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1")]
        {
            let mut world = world(&[("corp", OPEN)]);
            let mut asks_from = |number: u8, seen: &str| {
                let seen = Some(seen.parse().expect("good"));
                let applicant = Applicant { seen, ..applicant(&format!("h{number}"), number, false) };
                ask(&mut world, applicant, &server(None, &[]), || true, START)
            };
            for number in 1..=20 {
                asks_from(number, there).expect("it may wait");
            }
            assert_eq!(asks_from(21, also_there), Err(Refused::ManyWaitThere(corp())));
            assert!(asks_from(21, elsewhere).is_ok() && asks_from(7, also_there).is_ok());
        }
    }

    #[test]
    fn who_was_dropped_is_told_and_begins_anew_only_when_a_person_asks() {
        let mut world = world(&[("corp", OPEN)]);
        asks(&mut world, "web", 1, START).expect("it may wait");
        let almost = START + PendingNode::LIFE - SignedDuration::from_secs(1);
        assert_eq!(next_over(&world), Some(START + PendingNode::LIFE));
        assert_eq!(drop_over(&mut world, almost), []);
        let dropped = drop_over(&mut world, START + PendingNode::LIFE);
        assert_eq!(dropped, [NodeId::of(&corp(), &name("web"))]);
        assert_eq!((next_over(&world), asks_on(&mut world, "web", 1)), (None, Ok(Standing::Dropped)));
        assert!(matches!(asks(&mut world, "web", 1, START), Ok(Standing::Waits(_))));
    }

    #[test]
    fn who_is_approved_by_hand_is_in_once_and_knows_it_when_it_asks() {
        let mut world = world(&[("corp", OPEN)]);
        asks(&mut world, "web", 1, START).expect("it may wait");
        let admitted = approved(&mut world, 1, "web").expect("it waits").expect("the name is free");
        assert_eq!(admitted.name, name("web"));
        let node = world.inventory.node(&NodeId::of(&corp(), &name("web"))).expect("it is in").clone();
        assert_eq!((node.claimed, node.addresses.len()), (false, 1));
        assert_eq!(world.inventory.pending().count(), 0);
        let before = world.clone();
        assert_eq!(approved(&mut world, 1, "web"), None, "once");
        let known = Standing::In(Admitted { name: name("web"), changed: false });
        assert_eq!(asks_on(&mut world, "web", 1), Ok(known.clone()));
        assert_eq!(asks(&mut world, "other", 1, START), Ok(known));
        assert_eq!(world, before);
    }

    #[test]
    fn a_declaration_lets_its_host_in_when_it_asks_whatever_name_it_asks_for() {
        for network in [OPEN, CLOSED] {
            let mut world = world(&[("corp", network), ("corp/node/db", &approves(1))]);
            let admitted = asks(&mut world, "web", 1, START);
            assert_eq!(admitted, Ok(Standing::In(Admitted { name: name("db"), changed: true })));
            let node = world.inventory.node(&NodeId::of(&corp(), &name("db"))).expect("it is in");
            assert!(node.claimed, "it leaves with its declaration");
        }
    }

    #[test]
    fn while_another_host_is_the_approved_node_its_host_waits_and_then_it_is_let_in() {
        let mut world = world(&[("corp", OPEN), ("corp/node/db", &approves(2)), ("corp/node/free", "{}")]);
        asks(&mut world, "old", 1, START).expect("it may wait");
        assert_eq!(
            approved(&mut world, 1, "db"),
            Some(Err(Refused::ApprovesAnother("corp/node/db".parse().expect("good"))))
        );
        assert!(
            matches!(approved(&mut world, 1, "free"), Some(Ok(_))),
            "a declared node that approves nobody"
        );
        let old = enrol::remove(&mut world, &corp(), &name("free"), START).expect("it was in");
        world.inventory.put_node(NodeId::of(&corp(), &name("db")), (*old).clone());
        assert!(matches!(asks(&mut world, "new", 2, START), Ok(Standing::Waits(_))));
        assert_eq!(
            approved(&mut world, 2, "new"),
            Some(Err(Refused::ApprovedAs("corp/node/db".parse().expect("good"))))
        );
        enrol::remove(&mut world, &corp(), &name("db"), START).expect("it was in");
        assert!(matches!(asks_on(&mut world, "new", 2), Ok(Standing::In(_))));
    }

    #[test]
    fn a_name_that_is_taken_is_told_to_whoever_approves_and_not_to_who_asks() {
        let mut world = world(&[("corp", OPEN), ("corp/dns/api", r#"{"a":["10.0.0.9"]}"#)]);
        for (number, asked) in [(1, "api"), (2, "netmaker"), (3, "web"), (4, "web")] {
            assert!(matches!(asks(&mut world, asked, number, START), Ok(Standing::Waits(_))), "{asked}");
        }
        assert!(matches!(approved(&mut world, 1, "api"), Some(Err(Refused::NameInUse(_)))));
        assert!(matches!(approved(&mut world, 2, "netmaker"), Some(Err(Refused::OwnNode(_)))));
        assert!(matches!(approved(&mut world, 3, "web"), Some(Ok(_))));
        assert!(matches!(approved(&mut world, 4, "web"), Some(Err(Refused::NameTaken { .. }))));
        assert!(
            matches!(approved(&mut world, 4, "web-2"), Some(Ok(_))),
            "whoever approves may give another name"
        );
    }

    /// Something that a host, an admin or a file does; hosts and names by number.
    #[derive(Clone, Debug)]
    enum Act {
        Ask {
            host: u8,
            name: u8,
            waits: bool,
        },
        Approve {
            host: u8,
            name: u8,
        },
        Drop {
            host: u8,
        },
        Remove {
            name: u8,
        },
        /// Which host each declared node approves; whether the network lets hosts wait.
        Declare {
            approved: Vec<Option<u8>>,
            open: bool,
        },
    }

    fn act() -> impl Strategy<Value = Act> {
        let (host, name) = (1..5u8, 0..4u8);
        prop_oneof![
            (host.clone(), name.clone(), any::<bool>()).prop_map(|(host, name, waits)| Act::Ask {
                host,
                name,
                waits
            }),
            (host.clone(), name.clone()).prop_map(|(host, name)| Act::Approve { host, name }),
            host.clone().prop_map(|host| Act::Drop { host }),
            name.prop_map(|name| Act::Remove { name }),
            (proptest::collection::vec(proptest::option::of(host), 0..3), any::<bool>())
                .prop_map(|(approved, open)| Act::Declare { approved, open }),
        ]
    }

    fn carry_out(now: &mut World, act: Act) {
        let named = |number: u8| format!("n{number}");
        match act {
            Act::Ask { host, name, waits } => {
                let asked = applicant(&named(name), host, waits);
                drop(ask(now, asked, &server(None, &[]), || true, START));
            }
            Act::Approve { host, name } => drop(approved(now, host, &named(name))),
            Act::Drop { host } => drop(drop_by(now, &corp(), fingerprint(host))),
            Act::Remove { name: number } => {
                drop(enrol::remove(now, &corp(), &name(&named(number)), START));
            }
            Act::Declare { approved, open } => {
                let network = if open { OPEN } else { CLOSED }.to_owned();
                let mut resources = vec![("corp".to_owned(), network)];
                // A host is approved once; rules say so.
                let hosts = approved.iter().enumerate().filter(|(at, host)| !approved[..*at].contains(host));
                resources.extend(hosts.map(|(number, host)| {
                    (format!("corp/node/n{number}"), host.map_or("{}".to_owned(), approves))
                }));
                let resources: Vec<_> = resources.iter().map(|(id, body)| (&**id, &**body)).collect();
                now.snapshot = world(&resources).snapshot;
                let reconciled = reconcile(&now.inventory, &now.snapshot, &[], START);
                now.inventory = reconciled.expect("there is room");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_hosts_files_and_admins_do_a_host_is_in_once_or_waits_or_neither(
            acts in proptest::collection::vec(act(), 1..40)
        ) {
            let mut world = world(&[("corp", OPEN)]);
            for act in acts {
                let before = world.clone();
                carry_out(&mut world, act.clone());
                let World { snapshot, inventory, .. } = &world;
                let hosts: BTreeSet<_> = inventory.nodes().map(|(_, joined)| joined.identity).collect();
                prop_assert_eq!(hosts.len(), inventory.nodes().count(), "one node each, after {:?}", act);
                let waits = |identity: &Identity| inventory.pending_of(&corp(), identity).is_some();
                prop_assert!(!hosts.iter().any(waits), "who is in does not wait: {:?}", act);
                let open = snapshot.network(&corp()).is_some_and(|network| network.manual_approval);
                prop_assert!(open || inventory.pending().count() == 0, "nobody waits there: {:?}", act);
                let addresses: BTreeSet<_> =
                    inventory.nodes().flat_map(|(_, joined)| joined.addresses.clone()).collect();
                prop_assert_eq!(addresses.len(), hosts.len(), "an address is one node's");
                for (id, joined) in inventory.nodes() {
                    let is_new = before.inventory.node(id).is_none();
                    let node = snapshot.named::<Node>(&id.network, &id.name);
                    let approves = node.and_then(|node| node.approved);
                    let fits = approves.is_none_or(|host| host == joined.identity.fingerprint());
                    prop_assert!(!is_new || fits, "nobody is let in where another is approved: {:?}", act);
                }
            }
        }
    }

    #[test]
    fn who_is_barred_does_not_wait() {
        let mut world = world(&[("corp", OPEN)]);
        let barred = schema::inventory::Barred { since: START, node: name("web") };
        world.inventory.bar(corp(), Identity([1; 32]), barred);
        assert!(matches!(asks(&mut world, "web", 1, START), Err(Refused::Barred { .. })));
        assert_eq!(asks_on(&mut world, "web", 1), Ok(Standing::Dropped), "it asks no more");
    }
}
