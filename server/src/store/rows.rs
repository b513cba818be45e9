//! The world as rows: every object is one, whatever its kind.
//!
//! Pure. What a change writes is the difference of two worlds, so no operation has code of its own for
//! storing.

use std::net::IpAddr;

use imbl::ordmap::DiffItem;
use imbl::ordset::DiffItem as SetItem;
use schema::inventory::{
    Away, Barred, ClientStatus, FormerKey, Inventory, Joined, KeyStatus, NodeId, PendingNode, Quarantined,
};
use schema::limits::{Guards, Limits, StoredGuard};
use schema::scalars::NetworkName;
use schema::snapshot::{Entry, Owner, ResourceId, Revision, Snapshot};
use schema::value::Value;
use schema::world::{ResourceDocument, World};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;

/// The format of the bodies; raised with a migration, also where a default changes, since bodies leave out
/// what equals it.
pub const FORMAT: u32 = 1;

/// Words for what is not of a declared kind; no kind's word starts like this.
const JOINED: &str = "@joined";
const KEY: &str = "@key";
const FORMER_KEY: &str = "@former-key";
const QUARANTINED: &str = "@quarantine";
const BARRED: &str = "@barred";
const PENDING: &str = "@pending";
const CLIENT: &str = "@client";
const AWAY: &str = "@away";
const CARRIED: &str = "@carried";
/// Of no network.
const RESOLVERS: &str = "@resolvers";
/// Of no network; its name is that of a project and env.
const GUARD: &str = "@guard";

/// The key of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    /// The network.
    pub network: String,
    /// The word of a kind, or one of the server's own.
    pub kind: String,
    /// The name.
    pub name: String,
}

/// One object as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its id.
    pub key: RowKey,
    /// The revision that wrote it.
    pub revision: Revision,
    /// The format of its body.
    pub format: u32,
    /// JSON.
    pub body: String,
}

#[derive(Serialize, Deserialize)]
struct Declared {
    owner: Option<Owner>,
    body: Value,
}

/// The changes from the rows of one world to those of another.
pub fn between(before: &World, after: &World) -> (Vec<Row>, Vec<RowKey>) {
    let mut writes = Writes { revision: after.revision, puts: Vec::new(), deletes: Vec::new() };
    writes.declarations(&before.snapshot, &after.snapshot);
    writes.inventory(&before.inventory, &after.inventory);
    writes.guards(&before.guards, &after.guards);
    (writes.puts, writes.deletes)
}

struct Writes {
    revision: Revision,
    puts: Vec<Row>,
    deletes: Vec<RowKey>,
}

impl Writes {
    fn declarations(&mut self, before: &Snapshot, after: &Snapshot) {
        for (id, _, after) in before.differences(after) {
            let key = key(&id.network, id.kind.descriptor().word, &id.name.to_string());
            match after {
                Some(Entry { object, owner, revision }) => {
                    let declared = Declared { owner: owner.clone(), body: object.body() };
                    self.puts.push(Row { revision: *revision, ..self.row(key, &declared) });
                }
                None => self.deletes.push(key),
            }
        }
    }

    fn guards(&mut self, before: &Guards, after: &Guards) {
        for (owner, _, after) in before.differences(after) {
            let key = RowKey { name: owner.to_string(), ..own_key(GUARD) };
            match after {
                Some(StoredGuard { revision, limits }) => {
                    self.puts.push(Row { revision: *revision, ..self.row(key, limits) });
                }
                None => self.deletes.push(key),
            }
        }
    }

    fn inventory(&mut self, before: &Inventory, after: &Inventory) {
        let changes = before.differences(after);
        for item in changes.nodes {
            self.item(item, |id| key(&id.network, JOINED, id.name.as_str()));
        }
        for item in changes.keys {
            self.item(item, |id| key(&id.network, KEY, &id.name.to_string()));
        }
        for item in changes.former_keys {
            self.item(item, |id| key(&id.network, FORMER_KEY, &id.name.to_string()));
        }
        for item in changes.quarantine {
            self.item(item, |(network, address)| key(network, QUARANTINED, &address.to_string()));
        }
        for item in changes.barred {
            self.item(item, |(network, identity)| key(network, BARRED, &identity.to_string()));
        }
        for item in changes.pending {
            self.item(item, |(network, identity)| key(network, PENDING, &identity.to_string()));
        }
        for item in changes.clients {
            self.item(item, |id| key(&id.network, CLIENT, id.name.as_str()));
        }
        for item in changes.away {
            self.item(item, |id| key(&id.network, AWAY, id.name.as_str()));
        }
        for item in changes.carried {
            match item {
                SetItem::Add(id) => {
                    let row = self.row(key(&id.network, CARRIED, id.name.as_str()), &());
                    self.puts.push(row);
                }
                SetItem::Remove(id) => self.deletes.push(key(&id.network, CARRIED, id.name.as_str())),
            }
        }
        if let Some(resolvers) = changes.resolvers {
            let row = self.row(own_key(RESOLVERS), resolvers);
            self.puts.push(row);
        }
    }

    fn item<K, V: Serialize>(&mut self, item: DiffItem<'_, '_, K, V>, key: impl Fn(&K) -> RowKey) {
        match item {
            DiffItem::Add(id, value) | DiffItem::Update { new: (id, value), .. } => {
                let row = self.row(key(id), value);
                self.puts.push(row);
            }
            DiffItem::Remove(id, _) => self.deletes.push(key(id)),
        }
    }

    fn row(&self, key: RowKey, body: &impl Serialize) -> Row {
        let body = serde_json::to_string(body).expect("what is kept can be written as JSON");
        Row { key, revision: self.revision, format: FORMAT, body }
    }
}

fn key(network: &NetworkName, kind: &str, name: &str) -> RowKey {
    RowKey { network: network.to_string(), kind: kind.into(), name: name.into() }
}

/// The key of what is of no network.
fn own_key(kind: &str) -> RowKey {
    RowKey { network: String::new(), kind: kind.into(), name: String::new() }
}

/// Puts one row back into a world.
pub fn restore(row: &Row, world: &mut World) -> Result<(), StoreError> {
    let RowKey { network, kind, name } = &row.key;
    if row.format != FORMAT {
        return Err(unreadable(
            row,
            format!("its format is {}, but this version reads {FORMAT}", row.format),
        ));
    }
    if kind == RESOLVERS {
        world.inventory.set_resolvers(json(row)?);
        return Ok(());
    }
    if kind == GUARD {
        let owner: Owner = name.parse().map_err(|why| unreadable(row, why))?;
        let limits: Limits = json(row)?;
        world.guards.put(owner, StoredGuard { revision: row.revision, limits });
        return Ok(());
    }
    let network: NetworkName = network.parse().map_err(|why| unreadable(row, why))?;
    match kind.as_str() {
        JOINED => {
            let joined: Joined = json(row)?;
            world.inventory.put_node(node_id(row)?, joined);
        }
        KEY => {
            let status: KeyStatus = json(row)?;
            world.inventory.put_key(key_id(row)?, status);
        }
        FORMER_KEY => {
            let former: FormerKey = json(row)?;
            world.inventory.put_former_key(key_id(row)?, former);
        }
        QUARANTINED => {
            let quarantined: Quarantined = json(row)?;
            let address: IpAddr =
                name.parse().map_err(|_| unreadable(row, "its name is not an IP address".into()))?;
            world.inventory.put_quarantined(network, address, quarantined);
        }
        BARRED => {
            let barred: Barred = json(row)?;
            let identity = name.parse().map_err(|why| unreadable(row, why))?;
            world.inventory.bar(network, identity, barred);
        }
        PENDING => {
            let pending: PendingNode = json(row)?;
            let identity = name.parse().map_err(|why| unreadable(row, why))?;
            world.inventory.put_pending(network, identity, pending);
        }
        CLIENT => {
            let status: ClientStatus = json(row)?;
            let created = status.created;
            world.inventory.put_client(node_id(row)?, status, created);
        }
        AWAY => {
            let away: Away = json(row)?;
            world.inventory.set_away(node_id(row)?, away);
        }
        CARRIED => world.inventory.set_carried(node_id(row)?, true),
        kind => {
            let id = if kind == "network" { name.clone() } else { format!("{network}/{kind}/{name}") };
            let id: ResourceId = id.parse().map_err(|why| unreadable(row, why))?;
            let Declared { owner, body } = json(row)?;
            let document = ResourceDocument { id: id.clone(), revision: row.revision, owner, body };
            let why = |report: schema::report::Report| {
                report.problems().next().map(|problem| problem.message.clone()).unwrap_or_default()
            };
            world.snapshot.put(id, document.entry().map_err(|report| unreadable(row, why(report)))?);
        }
    }
    Ok(())
}

/// The node that a row is about, or what else has its name in the network.
fn node_id(row: &Row) -> Result<NodeId, StoreError> {
    let RowKey { network, name, kind: _ } = &row.key;
    let network = network.parse().map_err(|why| unreadable(row, why))?;
    Ok(NodeId { network, name: name.parse().map_err(|why| unreadable(row, why))? })
}

/// The access key that a row is about.
fn key_id(row: &Row) -> Result<ResourceId, StoreError> {
    let RowKey { network, name, kind: _ } = &row.key;
    format!("{network}/access-key/{name}").parse().map_err(|why| unreadable(row, why))
}

fn json<T: DeserializeOwned>(row: &Row) -> Result<T, StoreError> {
    serde_json::from_str(&row.body).map_err(|error| unreadable(row, error.to_string()))
}

fn unreadable(row: &Row, why: String) -> StoreError {
    let RowKey { network, kind, name } = &row.key;
    StoreError::Unreadable { what: "row", key: format!("{network}/{kind}/{name}"), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        let mut world = World { epoch: 1, revision: Revision(7), ..World::default() };
        let json = r#"{"id":"corp","revision":7,"owner":"acme/prod","body":{"ipv4":"10.0.0.0/24"}}"#;
        let document: ResourceDocument = serde_json::from_str(json).expect("good");
        world.snapshot.put(document.id.clone(), document.entry().expect("good"));
        let joined = r#"{"public_key":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
            "identity":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","addresses":["10.0.0.1"],
            "endpoints":{"configured":null,"seen":null,"local":null},
            "listen_port":51821,"tags":[],"key":null,"claimed":false,"joined":"2026-01-01T00:00:00Z","os":"linux"}"#;
        let joined = serde_json::from_str(joined).expect("good");
        world.inventory.put_node(node(), joined);
        world
    }

    fn node() -> NodeId {
        NodeId { network: "corp".parse().expect("good"), name: "a".parse().expect("good") }
    }

    #[test]
    fn a_world_reads_back_from_its_rows() {
        let (puts, deletes) = between(&World { epoch: 1, ..World::default() }, &world());
        assert_eq!((puts.len(), deletes.len()), (2, 0));
        let mut again = World { epoch: 1, revision: Revision(7), ..World::default() };
        puts.iter().for_each(|row| restore(row, &mut again).expect("it reads back"));
        assert_eq!(again, world());
    }

    #[test]
    fn only_what_differs_is_written() {
        let mut later = world();
        assert_eq!(between(&world(), &later), (vec![], vec![]));
        later.inventory.remove_node(&node(), jiff::Timestamp::UNIX_EPOCH);
        let (puts, deletes) = between(&world(), &later);
        assert_eq!(puts.iter().map(|row| &*row.key.kind).collect::<Vec<_>>(), [QUARANTINED]);
        assert_eq!(deletes.iter().map(|key| &*key.kind).collect::<Vec<_>>(), [JOINED]);
    }

    #[test]
    fn a_barred_identity_is_stored_and_read_back() {
        let mut later = world();
        let barred = Barred { since: jiff::Timestamp::UNIX_EPOCH, node: "n".parse().expect("good") };
        let identity = schema::scalars::Identity([255; 32]);
        later.inventory.bar("corp".parse().expect("good"), identity, barred);
        let (puts, _) = between(&world(), &later);
        assert_eq!(puts.len(), 1);
        let mut read = world();
        restore(&puts[0], &mut read).expect("it can be read");
        assert_eq!(read, later);
        let (puts, deletes) = between(&later, &world());
        assert_eq!((puts.len(), deletes.len()), (0, 1));
    }

    #[test]
    fn a_host_that_waits_is_stored_and_read_back_and_is_gone_once_it_is_in() {
        let identity = schema::scalars::Identity([9; 32]);
        let pending = PendingNode {
            name: "new".parse().expect("good"),
            public_key: schema::scalars::WireGuardKey([9; 32]),
            endpoints: Default::default(),
            listen_port: Some(51_821),
            since: jiff::Timestamp::UNIX_EPOCH,
            seen: Some(IpAddr::from([192, 0, 2, 9])),
            os: "linux".into(),
        };
        let mut later = world();
        later.inventory.put_pending("corp".parse().expect("good"), identity, pending);
        let (puts, deletes) = between(&world(), &later);
        assert_eq!((puts.len(), deletes.len()), (1, 0));
        let mut read = world();
        restore(&puts[0], &mut read).expect("it can be read");
        assert_eq!(read, later);
        let joined = later.inventory.node(&node()).expect("it is there").clone();
        let id = NodeId { name: "new".parse().expect("good"), ..node() };
        let public_key = schema::scalars::WireGuardKey([9; 32]);
        let mut admitted = later.clone();
        let joined = Joined { identity, public_key, addresses: Default::default(), ..(*joined).clone() };
        admitted.inventory.put_node(id, joined);
        let (puts, deletes) = between(&later, &admitted);
        let deleted: Vec<_> = deletes.iter().map(|key| &*key.kind).collect();
        assert_eq!((puts.len(), deleted), (1, vec![PENDING]));
    }

    #[test]
    fn clients_and_who_carries_what_are_stored_and_read_back() {
        let id =
            |name: &str| NodeId { network: "corp".parse().expect("good"), name: name.parse().expect("good") };
        let created = jiff::Timestamp::UNIX_EPOCH;
        let client = |addresses: &[&str], expired| ClientStatus {
            addresses: addresses.iter().map(|address| address.parse().expect("good")).collect(),
            created,
            expired,
        };
        let mut later = world();
        later.inventory.put_client(id("phone"), client(&["10.0.0.9"], false), created);
        later.inventory.put_client(id("old"), client(&[], true), created);
        later.inventory.set_away(id("a"), Away { everything: true, egress: [id("office").name].into() });
        later.inventory.set_carried(id("exit"), true);
        later.inventory.set_resolvers(["10.0.0.53".parse().expect("good")].into());
        let (puts, deletes) = between(&world(), &later);
        assert_eq!((puts.len(), deletes.len()), (5, 0));
        let mut read = world();
        puts.iter().for_each(|row| restore(row, &mut read).expect("it can be read"));
        assert_eq!(read, later);
        let (puts, deletes) = between(&later, &world());
        assert_eq!((puts.len(), deletes.len()), (1, 4), "{deletes:?}");
        puts.iter().for_each(|row| restore(row, &mut read).expect("it can be read"));
        assert!(read.inventory.resolvers().is_empty());
    }

    #[test]
    fn the_guard_of_a_project_is_stored_with_its_revision_and_read_back() {
        let owner: Owner = "acme/prod".parse().expect("good");
        let limits = serde_json::from_str(r#"{"max-delete":"5% or 3"}"#).expect("good");
        let mut later = world();
        later.guards.put(owner.clone(), StoredGuard { revision: Revision(5), limits });
        let (puts, deletes) = between(&world(), &later);
        assert_eq!((puts.len(), deletes.len(), puts[0].revision), (1, 0, Revision(5)));
        let mut read = world();
        restore(&puts[0], &mut read).expect("it can be read");
        assert_eq!(read, later);
        let (puts, deletes) = between(&later, &world());
        let deleted: Vec<_> = deletes.iter().map(|key| (&*key.kind, &*key.name)).collect();
        assert_eq!((puts.len(), deleted), (0, vec![(GUARD, "acme/prod")]));
    }

    #[test]
    fn the_secrets_of_a_deleted_key_are_stored_and_read_back() {
        let id: ResourceId = "corp/access-key/k".parse().expect("good");
        let at = |second| jiff::Timestamp::from_second(second).expect("a time");
        let mut later = world();
        for number in 1..=6 {
            let verifier = schema::scalars::Verifier([number; 32]);
            later.inventory.put_key(id.clone(), KeyStatus { verifier, created: at(0), used: 0 });
            later.inventory.remove_key(&id, at(number.into()));
        }
        let former = later.inventory.former_key(&id).expect("it is remembered");
        assert_eq!(former.verifiers.iter().map(|it| it.0[0]).collect::<Vec<_>>(), [6, 5, 4, 3], "the newest");
        let (puts, _) = between(&world(), &later);
        let mut read = world();
        puts.iter().for_each(|row| restore(row, &mut read).expect("it can be read"));
        assert_eq!((puts.len(), read), (1, later));
    }

    #[test]
    fn a_damaged_row_is_named() {
        let (mut puts, _) = between(&World::default(), &world());
        puts[0].body = "{".into();
        let error = restore(&puts[0], &mut World::default()).expect_err("it is damaged");
        assert!(error.to_string().contains("corp/network/corp"), "{error}");
    }
}
