//! Every resource at one moment, with typed lookup.
//!
//! A snapshot is a value: clones share what they have in common, and a change of one does not affect the
//! others.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use imbl::OrdMap;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::descriptor::with_article;
use crate::kinds::{Kind, Network, Object, Resource};
use crate::scalars::{Name, NetworkName};

/// The number of a transaction; the server counts them without gaps. 0 is before the first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// What a resource is called everywhere: `corp/dns/api`; a network by its name alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId {
    /// The network that it belongs to.
    pub network: NetworkName,
    /// Its kind.
    pub kind: Kind,
    /// Its name; for a network, its own name again.
    pub name: Name,
}

/// Who manages a resource, written `project/env`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The project.
    pub project: Name,
    /// The env of it.
    pub env: Name,
}

/// Where declarations came from, as far as their sender knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provenance {
    /// The git commit.
    pub commit: Option<String>,
    /// Its author.
    pub author: Option<String>,
    /// The first line of its message.
    pub message: Option<String>,
    /// Whether the files differed from it.
    pub dirty: bool,
}

impl Provenance {
    /// The most bytes that each of the texts may have: a server stores them for good, with each revision.
    pub const LONGEST: usize = 1_024;

    /// Cuts a text to what a server takes.
    pub fn cut(mut text: String) -> String {
        text.truncate(text.floor_char_boundary(Self::LONGEST));
        text
    }
}

/// A resource and what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its fields.
    pub object: Object,
    /// The revision that wrote it; 0 for what no server has seen.
    pub revision: Revision,
    /// Who manages it; absent: no project, it was made by hand.
    pub owner: Option<Owner>,
}

/// Every resource at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    entries: OrdMap<ResourceId, Entry>,
}

impl Snapshot {
    /// Adds or replaces a resource.
    pub fn put(&mut self, id: ResourceId, entry: Entry) {
        self.entries.insert(id, entry);
    }

    /// Removes a resource.
    pub fn delete(&mut self, id: &ResourceId) -> Option<Entry> {
        self.entries.remove(id)
    }

    /// The resource of that id.
    pub fn entry(&self, id: &ResourceId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// Every resource, by id.
    pub fn entries(&self) -> impl Iterator<Item = (&ResourceId, &Entry)> {
        self.entries.iter()
    }

    /// The resources that a project manages, by id.
    pub fn managed_by<'a>(&'a self, owner: &'a Owner) -> impl Iterator<Item = (&'a ResourceId, &'a Entry)> {
        self.entries.iter().filter(move |(_, entry)| entry.owner.as_ref() == Some(owner))
    }

    /// Whether a project manages anything.
    pub fn manages(&self, owner: &Owner) -> bool {
        self.managed_by(owner).next().is_some()
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The network of that name.
    pub fn network(&self, name: &NetworkName) -> Option<&Arc<Network>> {
        self.named(name, name.name())
    }

    /// Every network, at the cost of these alone: what they hold is passed over.
    pub fn networks(&self) -> impl Iterator<Item = (&NetworkName, &Arc<Network>)> {
        let next = |(id, _): &(&ResourceId, &Entry)| {
            let [.., kind] = *Kind::ALL else { return None };
            let last = ResourceId { network: id.network.clone(), kind, name: Name::highest() };
            self.entries.range(last..).next()
        };
        let firsts = std::iter::successors(self.entries.iter().next(), next);
        firsts.filter_map(|(id, entry)| Some((&id.network, Network::of(&entry.object)?)))
    }

    /// The resource of that kind and name in a network.
    pub fn named<T: Resource>(&self, network: &NetworkName, name: &Name) -> Option<&Arc<T>> {
        let id = ResourceId { network: network.clone(), kind: T::KIND, name: name.clone() };
        self.entries.get(&id).and_then(|entry| T::of(&entry.object))
    }

    /// Every resource of a network, the network first, by kind and name.
    pub fn entries_in(&self, network: &NetworkName) -> impl Iterator<Item = (&ResourceId, &Entry)> {
        let network = network.clone();
        let first = ResourceId { network: network.clone(), kind: Kind::ALL[0], name: Name::lowest() };
        self.entries.range(first..).take_while(move |(id, _)| id.network == network)
    }

    /// The ids of a kind in a network, by name.
    pub fn ids_of(&self, network: &NetworkName, kind: Kind) -> impl Iterator<Item = &ResourceId> {
        let from = ResourceId { network: network.clone(), kind, name: Name::lowest() };
        let network = network.clone();
        let ids = self.entries.range(from..).map(|(id, _)| id);
        ids.take_while(move |id| id.network == network && id.kind == kind)
    }

    /// Every resource of a kind in a network, by name.
    pub fn all_in<T: Resource>(&self, network: &NetworkName) -> impl Iterator<Item = (&ResourceId, &Arc<T>)> {
        let from = ResourceId { network: network.clone(), kind: T::KIND, name: Name::lowest() };
        let network = network.clone();
        self.entries
            .range(from..)
            .take_while(move |(id, _)| id.network == network && id.kind == T::KIND)
            .filter_map(|(id, entry)| Some((id, T::of(&entry.object)?)))
    }

    /// What differs between this snapshot and a later one: the ids, each with what it was and is.
    pub fn differences<'a>(&'a self, later: &'a Self) -> impl Iterator<Item = Difference<'a>> {
        self.entries.diff(&later.entries).map(|item| match item {
            imbl::ordmap::DiffItem::Add(id, after) => (id, None, Some(after)),
            imbl::ordmap::DiffItem::Update { old: (id, before), new: (_, after) } => {
                (id, Some(before), Some(after))
            }
            imbl::ordmap::DiffItem::Remove(id, before) => (id, Some(before), None),
        })
    }
}

/// A resource that differs, before and after.
pub type Difference<'a> = (&'a ResourceId, Option<&'a Entry>, Option<&'a Entry>);

/// What a node is called. In JSON it is written as `["network", "name"]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "(NetworkName, Name)", into = "(NetworkName, Name)")]
pub struct NodeId {
    /// Its network.
    pub network: NetworkName,
    /// Its name there.
    pub name: Name,
}

impl NodeId {
    /// The id of a name in a network.
    pub fn of(network: &NetworkName, name: &Name) -> Self {
        Self { network: network.clone(), name: name.clone() }
    }
}

impl From<(NetworkName, Name)> for NodeId {
    fn from((network, name): (NetworkName, Name)) -> Self {
        Self { network, name }
    }
}

impl From<NodeId> for (NetworkName, Name) {
    fn from(NodeId { network, name }: NodeId) -> Self {
        (network, name)
    }
}

impl ResourceId {
    /// The id of a network itself.
    pub fn of_network(network: NetworkName) -> Self {
        let name = network.name().clone();
        Self { network, kind: Kind::Network, name }
    }

    /// The id of a resource of a kind in a network.
    pub fn of<T: Resource>(network: &NetworkName, name: &Name) -> Self {
        Self { network: network.clone(), kind: T::KIND, name: name.clone() }
    }
}

impl ResourceId {
    /// The joined node of that name, where this is a node.
    pub fn node(&self) -> NodeId {
        NodeId::of(&self.network, &self.name)
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.descriptor().within {
            None => self.network.fmt(f),
            Some(_) => write!(f, "{}/{}/{}", self.network, self.kind, self.name),
        }
    }
}

impl fmt::Debug for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ResourceId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, '/');
        let network = parts.next().unwrap_or_default().parse()?;
        match (parts.next(), parts.next()) {
            (None, _) => Ok(Self::of_network(network)),
            (Some(kind), Some(name)) => {
                let kind: Kind = kind.parse()?;
                match kind.descriptor().within {
                    Some(_) => Ok(Self { network, kind, name: name.parse()? }),
                    None => {
                        Err(format!("the id of {} is its name alone", with_article(kind.descriptor().word)))
                    }
                }
            }
            (Some(_), None) => Err("it is not written like corp/dns/api".into()),
        }
    }
}

impl Serialize for ResourceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResourceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse()
            .map_err(|why| serde::de::Error::custom(format!("{text:?} is not a valid resource id: {why}")))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.env)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (project, env) =
            text.split_once('/').ok_or_else(|| format!("{text:?} is not written like acme/prod"))?;
        Ok(Self { project: project.parse()?, env: env.parse()? })
    }
}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_called_by_its_name_alone() {
        for good in ["corp", "corp/dns/api", "corp/access-key/k"] {
            assert_eq!(good.parse::<ResourceId>().map(|id| id.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", "corp/network/corp", "corp/network/x", "corp/dns", "corp/thing/x", "corp/dns/a/b"] {
            assert!(bad.parse::<ResourceId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn networks_are_found_whatever_they_hold() {
        let mut snapshot = Snapshot::default();
        let long = "z".repeat(63);
        for id in ["a", "a/node/z", "b", "b/test/z", "c"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("b/test/{long}")])
        {
            let id: ResourceId = id.parse().expect("an id");
            let body = match id.to_string().split('/').nth(1) {
                None => r#"{"ipv4":"10.40.0.0/24"}"#,
                Some("node") => "{}",
                Some(_) => r#"{"reach":[{"from":"z","to":"z"}]}"#,
            };
            let body = serde_json::from_str(body).expect("JSON");
            let entry = crate::decode::decode_body(&id, &body).expect("it is valid");
            snapshot.put(id, entry);
        }
        let names: Vec<_> = snapshot.networks().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(Snapshot::default().networks().count(), 0);
    }
}
