//! Which nodes and external clients take part in the lab, and with which keys do nodes join?
//!
//! Pure. Each declared node takes part; each access key without `for` lets some sample nodes take part, as
//! far as the network has room. A declared node without a key gets one that exists in the lab only. The node
//! of the server's own host ([`OWN_NODE`]) is joined by the server itself, so it needs no key. Each external client
//! that is enabled takes part, with a key of its own that the lab makes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schema::attribute::Ref;
use schema::document::{Document, Spanned};
use schema::kinds::{AccessKey, Egress, ExternalClient, Ingress, Kind, Network, Node, Object, Resource as _};
use schema::scalars::{Name, NetworkName, WireGuardKey};
use schema::snapshot::{Entry, NodeId, ResourceId, Revision, Snapshot};
use schema::syntax::{Language, print};
use schema::value::SourceId;

/// How many sample nodes join with a key without `for`.
const SAMPLES: u32 = 2;
/// The name under which the server's own host is a node of the networks that declare it: `CLIENT_NAME` of the
/// lab's server.
pub const OWN_NODE: &str = schema::world::ServerInfo::DEFAULT_OWN_NODE;

/// The participants, and what has to be declared for them.
#[derive(Clone, Debug)]
pub struct Roster {
    /// What is declared, with the keys that the lab adds.
    pub declared: Snapshot,
    /// The participants, by network and name.
    pub participants: Vec<Participant>,
    /// The external clients, by network and name.
    pub clients: Vec<ClientParticipant>,
}

/// An external client that takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientParticipant {
    /// The client.
    pub id: ResourceId,
    /// The name of its host, as a node's.
    pub host: String,
}

/// A node that takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    /// The network.
    pub network: NetworkName,
    /// The name that it joins under.
    pub name: Name,
    /// The key that it joins with.
    pub key: ResourceId,
    /// The name of its host: the node's, with the network's if another network has the same node name.
    pub host: String,
}

/// The roster for what is declared.
pub fn roster(declared: &Snapshot) -> Roster {
    let mut roster = Roster { declared: fit(declared), participants: Vec::new(), clients: Vec::new() };
    for (network, settings) in declared.networks() {
        roster.nodes(network, declared);
        roster.samples(network, settings, declared);
        let clients = declared.all_in::<ExternalClient>(network).filter(|(_, client)| client.enabled);
        let clients = clients.map(|(id, _)| ClientParticipant { id: id.clone(), host: String::new() });
        roster.clients.extend(clients);
    }
    let mut names: BTreeMap<Name, u32> = BTreeMap::new();
    let nodes = roster.participants.iter().map(|participant| &participant.name);
    for name in nodes.chain(roster.clients.iter().map(|client| &client.id.name)) {
        *names.entry(name.clone()).or_default() += 1;
    }
    let host = |network: &NetworkName, name: &Name| {
        let twice = names.get(name).is_some_and(|count| *count > 1);
        if twice { format!("{name}.{network}") } else { name.to_string() }
    };
    for participant in &mut roster.participants {
        participant.host = host(&participant.network, &participant.name);
    }
    for client in &mut roster.clients {
        client.host = host(&client.id.network, &client.id.name);
    }
    roster
}

/// What is declared, without what is true only outside the lab: the endpoints of nodes and ingress, the interfaces
/// of gateways, and the expiry of keys and clients.
fn fit(declared: &Snapshot) -> Snapshot {
    let mut fit = declared.clone();
    for (id, entry) in declared.entries() {
        put(&mut fit, id, fitted(&entry.object).unwrap_or_else(|| entry.object.clone()));
    }
    fit
}

/// An object without that; absent: it has none of it.
fn fitted(object: &Object) -> Option<Object> {
    if let Some(node) = Node::of(object) {
        return Some(Object::Node(Arc::new(Node { endpoint: None, ..(**node).clone() })));
    }
    if let Some(key) = AccessKey::of(object) {
        return Some(Object::AccessKey(Arc::new(AccessKey { expires: None, ..(**key).clone() })));
    }
    if let Some(ingress) = Ingress::of(object) {
        return Some(Object::Ingress(Arc::new(Ingress { endpoint: None, ..(**ingress).clone() })));
    }
    if let Some(egress) = Egress::of(object) {
        return Some(Object::Egress(Arc::new(Egress { interface: None, ..(**egress).clone() })));
    }
    let client = ExternalClient::of(object)?;
    Some(Object::ExternalClient(Arc::new(ExternalClient { expires: None, ..(**client).clone() })))
}

fn put(snapshot: &mut Snapshot, id: &ResourceId, object: Object) {
    snapshot.put(id.clone(), Entry { object, revision: Revision(0), owner: None });
}

impl Roster {
    /// Gives each client its key.
    pub fn set_keys<'a>(&mut self, keys: impl Iterator<Item = (&'a ResourceId, WireGuardKey)>) {
        for (id, key) in keys {
            let Some(client) = self.declared.named::<ExternalClient>(&id.network, &id.name) else { continue };
            let client = ExternalClient { public_key: Some(key), ..(**client).clone() };
            put(&mut self.declared, id, Object::ExternalClient(Arc::new(client)));
        }
    }

    pub(super) fn put_network(&mut self, name: &NetworkName, network: Object) {
        put(&mut self.declared, &ResourceId::of_network(name.clone()), network);
    }

    /// The nodes that take part, each with its tags: those of the key that it joins with and of its declaration.
    pub fn tags(&self) -> BTreeMap<NodeId, BTreeSet<Name>> {
        let of_key = |key: &ResourceId| self.declared.named::<AccessKey>(&key.network, &key.name);
        let joining = self.participants.iter().map(move |it| (&it.network, &it.name, of_key(&it.key)));
        let own = self
            .declared
            .networks()
            .filter_map(|(network, _)| Some((network, Self::own_node(&self.declared, network)?, None)));
        let with_tags = joining.chain(own).map(|(network, name, key)| {
            let declaration = self.declared.named::<Node>(network, name);
            let tags = key.into_iter().flat_map(|key| &key.tags);
            let tags = tags.chain(declaration.into_iter().flat_map(|node| &node.tags));
            (NodeId::of(network, name), tags.cloned().collect())
        });
        with_tags.collect()
    }

    /// What is declared, as a file in KDL.
    pub fn text(&self) -> String {
        let documents: Vec<_> = self.declared.entries().map(document).collect();
        print(&documents, Language::Kdl)
    }

    fn nodes(&mut self, network: &NetworkName, declared: &Snapshot) {
        let mut keyless = BTreeSet::new();
        for (id, _) in declared.all_in::<Node>(network).filter(|(id, _)| id.name.as_str() != OWN_NODE) {
            let holds =
                |(_, key): &(&ResourceId, &Arc<AccessKey>)| key.r#for.iter().any(|node| node.name == id.name);
            match declared.all_in::<AccessKey>(network).find(holds) {
                Some((key, _)) => self.participant(network, &id.name, key.clone()),
                None => drop(keyless.insert(id.name.clone())),
            }
        }
        if keyless.is_empty() {
            return;
        }
        let free = |name: &Name| declared.named::<AccessKey>(network, name).is_none();
        let Some(name) = numbered("lab").find(free) else { return };
        let key = ResourceId::of::<AccessKey>(network, &name);
        let r#for = keyless.iter().cloned().map(Ref::new).collect();
        let object = Object::AccessKey(Arc::new(AccessKey {
            uses: None,
            expires: None,
            tags: BTreeSet::new(),
            r#for,
        }));
        put(&mut self.declared, &key, object);
        keyless.iter().for_each(|node| self.participant(network, node, key.clone()));
    }

    fn samples(&mut self, network: &NetworkName, settings: &Network, declared: &Snapshot) {
        let mut room = room(network, settings, declared);
        let taken = Kind::Node.namesakes().flat_map(|kind| declared.ids_of(network, kind));
        let mut taken: BTreeSet<Name> = taken.map(|id| id.name.clone()).collect();
        for (id, key) in declared.all_in::<AccessKey>(network).filter(|(_, key)| key.r#for.is_empty()) {
            let wanted = key.uses().left(0).map_or(SAMPLES, |uses| uses.min(SAMPLES)).min(room);
            let names = numbered(id.name.as_str()).filter(|name| !taken.contains(name)).take(wanted as usize);
            for name in names.collect::<Vec<_>>() {
                self.participant(network, &name, id.clone());
                taken.insert(name);
                room -= 1;
            }
        }
    }

    /// The name of the server's own host in a network, if the network declares it.
    pub fn own_node<'a>(declared: &'a Snapshot, network: &NetworkName) -> Option<&'a Name> {
        declared.all_in::<Node>(network).map(|(id, _)| &id.name).find(|name| name.as_str() == OWN_NODE)
    }

    fn participant(&mut self, network: &NetworkName, name: &Name, key: ResourceId) {
        self.participants.push(Participant {
            network: network.clone(),
            name: name.clone(),
            key,
            host: String::new(),
        });
    }
}

/// How many nodes a network has room for in addition to the declared ones.
fn room(network: &NetworkName, settings: &Network, declared: &Snapshot) -> u32 {
    let nodes = declared.all_in::<Node>(network).count() as u64;
    let clients = declared.all_in::<ExternalClient>(network).count() as u64;
    let limit = settings.node_limit.map_or(u64::MAX, |limit| limit.number().unsigned_abs());
    let hosts = settings.ranges().map(|range| {
        let bits = range.max_prefix_len() - range.prefix_len();
        // Less the network and broadcast addresses, and those of DNS entries, which may be in the range.
        1u64.checked_shl(bits.into()).map_or(u64::MAX, |all| all.saturating_sub(2))
    });
    let entries: usize =
        declared.all_in::<schema::kinds::Dns>(network).map(|(_, dns)| dns.a.len() + dns.aaaa.len()).sum();
    let addresses = hosts.min().unwrap_or(0).saturating_sub(entries as u64 + clients);
    u32::try_from(limit.min(addresses).saturating_sub(nodes)).unwrap_or(u32::MAX)
}

/// Names that begin with a word: `word-1`, `word-2`, and so on; the word is cut if the name would be too
/// long.
fn numbered(word: &str) -> impl Iterator<Item = Name> + use<> {
    let word: String = word.chars().take(56).collect();
    let word = word.trim_end_matches('-').to_owned();
    (1..1_000_000u32).filter_map(move |number| format!("{word}-{number}").parse().ok())
}

fn document((id, entry): (&ResourceId, &Entry)) -> Document {
    let descriptor = id.kind.descriptor();
    let spanned = |text: &str| Spanned { text: text.into(), span: Default::default() };
    let parent = descriptor.within.map(|_| spanned(id.network.as_str()));
    let fields = entry.object.body().as_record().cloned().unwrap_or_default();
    Document { descriptor, source: SourceId(0), name: spanned(id.name.as_str()), parent, fields, whole: true }
}

#[cfg(test)]
mod tests {
    use super::super::declared;
    use super::*;

    fn listed(roster: &Roster) -> Vec<String> {
        roster
            .participants
            .iter()
            .map(|participant| {
                format!("{} as {} with {}", participant.host, participant.name, participant.key)
            })
            .collect()
    }

    #[test]
    fn every_declared_node_and_some_of_each_key_take_part() {
        let roster = roster(&declared(
            r#"network "one" {
                ipv4 "10.0.0.0/24"
                access-key "named" { for "a" }
                access-key "many" uses="unlimited"
                access-key "once"
                node "a"; node "b"; node "many-1"
            }
            network "two" { ipv4 "10.1.0.0/24"; node "a" }"#,
        ));
        assert_eq!(
            listed(&roster),
            [
                "a.one as a with one/access-key/named",
                "b as b with one/access-key/lab-1",
                "many-1 as many-1 with one/access-key/lab-1",
                "many-2 as many-2 with one/access-key/many",
                "many-3 as many-3 with one/access-key/many",
                "once-1 as once-1 with one/access-key/once",
                "a.two as a with two/access-key/lab-1",
            ]
        );
    }

    #[test]
    fn the_servers_own_host_needs_no_participant_and_no_key() {
        let text = r#"network "one" { ipv4 "10.0.0.0/24"; node "netmaker"; node "a" }
            network "two" { ipv4 "10.1.0.0/24"; node "netmaker"; access-key "k" }
            network "three" { ipv4 "10.2.0.0/24"; node "netmaker" }"#;
        let roster = roster(&declared(text));
        let declared = declared(text);
        assert_eq!(listed(&roster), ["a as a with one/access-key/lab-1", "k-1 as k-1 with two/access-key/k"]);
        let key = roster
            .declared
            .named::<AccessKey>(&"one".parse().expect("good"), &"lab-1".parse().expect("good"));
        let names: Vec<_> =
            key.expect("it was made").r#for.iter().map(|node| node.name.to_string()).collect();
        assert_eq!(names, ["a"]);
        assert_eq!(roster.declared.len(), declared.len() + 1);
        let own_node = |network: &str| Roster::own_node(&roster.declared, &network.parse().expect("good"));
        assert_eq!(own_node("three").map(Name::as_str), Some(OWN_NODE));
    }

    #[test]
    fn the_text_reads_back_with_the_keys_that_were_added() {
        let text = r#"network "one" { ipv4 "10.0.0.0/24"; node "a" { tags "x" }; dns "d" node="a" }"#;
        let roster = roster(&declared(text));
        let again = declared(&roster.text());
        assert_eq!(again, roster.declared);
        assert_eq!(again.len(), 4);
    }

    #[test]
    fn what_is_true_only_outside_the_lab_is_left_out() {
        let text = r#"network "one" {
            ipv4 "10.0.0.0/24"
            node "a" endpoint="gw.example.net:51821"
            access-key "k" expires="2001-01-01"
        }"#;
        let text = roster(&declared(text)).text();
        assert!(!text.contains("endpoint") && !text.contains("expires"), "{text}");
    }

    #[test]
    fn clients_take_part_with_keys_of_the_lab() {
        let text = r#"network "one" {
            ipv4 "10.0.0.0/24"
            node "gw" { tags "front" }
            access-key "k" { tags "away" }
            ingress "in" via="gw" endpoint="gw.example.net:51821"
            egress "out" via="gw" interface="eth1" { ranges "192.168.1.0/24" }
            external-client "phone" via="in" expires="2001-01-01"
            external-client "lost" via="in" enabled=#false
        }
        network "two" { ipv4 "10.1.0.0/24"; node "phone" }"#;
        let mut roster = roster(&declared(text));
        let hosts: Vec<_> = roster.clients.iter().map(|it| (it.id.to_string(), it.host.as_str())).collect();
        assert_eq!(hosts, [("one/external-client/phone".to_owned(), "phone.one")]);
        let id = roster.clients[0].id.clone();
        roster.set_keys([(&id, WireGuardKey([1; 32]))].into_iter());
        let text = roster.text();
        assert!(!["endpoint", "expires", "interface"].iter().any(|field| text.contains(field)), "{text}");
        let phone = roster.declared.named::<ExternalClient>(&id.network, &id.name).expect("it is there");
        assert_eq!(phone.public_key, Some(WireGuardKey([1; 32])));
        let tags: Vec<_> =
            roster.tags().iter().map(|(node, tags)| (node.name.to_string(), tags.len())).collect();
        assert_eq!(tags, [("gw".to_owned(), 1), ("k-1".to_owned(), 1), ("phone".to_owned(), 0)]);
    }

    #[test]
    fn a_network_gets_no_more_participants_than_it_has_room_for() {
        let limited = r#"network "n" { ipv4 "10.0.0.0/24"; node-limit 2; node "a"; access-key "k" uses=9 }"#;
        assert_eq!(roster(&declared(limited)).participants.len(), 2);
        let small = r#"network "n" { ipv4 "10.0.0.0/30"; node "a"; access-key "k" uses=9 }"#;
        assert_eq!(roster(&declared(small)).participants.len(), 2);
    }
}
