//! How a change affects each node: its peers, the ways to them, routes, names, addresses, what it carries, and
//! whether connections survive.
//!
//! Pure, on two moments of a network, from what nodes are sent at each: [`of_network`]. Nodes of one
//! [`Audience`](crate::compile::audience::Audience) that are of one audience afterwards are affected alike, but for what is about themselves, so
//! that the rest is found once for all of them.

mod nodes;
mod paths;
mod shared;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compile::carrying::Part;
use crate::scalars::{Name, NetworkName};
use crate::snapshot::ResourceId;

pub use nodes::of_network;

/// How many entries each list of an impact has at most; more are only counted.
pub const LISTED: usize = 50;

/// How a plan affects one node. Each list has at most 50 entries, names in natural order (`host-2` before `host-10`);
/// `more` counts the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct NodeImpact {
    /// The network.
    pub network: NetworkName,
    /// The node.
    pub node: Name,
    /// Whether the plan removes it from the network.
    pub removed: bool,
    /// The peers that it gains: whom WireGuard has a tunnel to.
    pub peers_added: Vec<Name>,
    /// The peers that it loses.
    pub peers_removed: Vec<Name>,
    /// The peers that stay, with another endpoint or other allowed IPs.
    pub peers_changed: Vec<Name>,
    /// The peers that stay, with another key.
    #[serde(default)]
    pub peers_rekeyed: Vec<Name>,
    /// How the allowed IPs of peers that stay change: what is sent to them, and may come from them.
    #[serde(default)]
    pub allowed_ips: Vec<AllowedIps>,
    /// The members that its packets reach by other nodes than before, put together where these are the same.
    #[serde(default)]
    pub paths: Vec<PathChange>,
    /// Ranges that it gains a route to.
    #[schemars(with = "Vec<String>")]
    pub routes_added: Vec<IpNet>,
    /// Ranges that it loses the route to.
    #[schemars(with = "Vec<String>")]
    pub routes_removed: Vec<IpNet>,
    /// Ranges that it sends nothing to any more: they lie in a wider range that it reaches through others, and are not
    /// for it.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub routes_refused: Vec<IpNet>,
    /// Ranges that it reaches through another node than before.
    #[serde(default)]
    pub routes_changed: Vec<RouteChange>,
    /// Where what it sends to the internet goes, by family, where that changes.
    #[serde(default)]
    pub internet: Vec<InternetChange>,
    /// The names of the network that begin to resolve on it.
    #[serde(default)]
    pub names_added: Vec<Name>,
    /// The names that no longer resolve on it.
    #[serde(default)]
    pub names_removed: Vec<Name>,
    /// The names that resolve to something else than before.
    #[serde(default)]
    pub names_changed: Vec<Name>,
    /// What it begins or ceases to carry for others.
    #[serde(default)]
    pub carries: Vec<PartChange>,
    /// Whether what may be opened at it changes, by nodes that it knows before and afterwards.
    #[serde(default)]
    pub filter: bool,
    /// What else of its interface changes, or of what it forwards to.
    #[serde(default)]
    pub settings: Vec<SettingChange>,
    /// Its addresses that change, one entry for each family.
    pub readdressed: Vec<Readdressed>,
    /// How many entries are left out of each list that is too long, by the name of the list.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<String, u64>,
    /// Whether connections of it break: it loses an address, its port changes, what it reaches behind NAT is reached
    /// through another node, or what it sends to the internet goes another way. Those that it is no longer allowed, and
    /// those with a node that breaks its own, are not counted.
    pub sessions_break: bool,
    /// Whether its path to the server stays outside of the mesh.
    pub keeps_server: bool,
}

/// How the allowed IPs of a peer change (AllowedIPs in wg(8)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct AllowedIps {
    /// The peer.
    pub peer: Name,
    /// The ranges that are added, at most 50.
    #[schemars(with = "Vec<String>")]
    pub added: Vec<IpNet>,
    /// The ranges that are removed, at most 50.
    #[schemars(with = "Vec<String>")]
    pub removed: Vec<IpNet>,
    /// How many ranges are left out of the two lists.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// A node's packets to others take another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct PathChange {
    /// The members that it reaches so, at most 50.
    pub to: Vec<Name>,
    /// How many members are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
    /// The nodes that its packets passed, in order; empty: none, it reached them directly.
    pub before: Vec<Name>,
    /// The nodes that they pass.
    pub after: Vec<Name>,
}

/// A range is reached through another node than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct RouteChange {
    /// The range.
    #[schemars(with = "String")]
    pub range: IpNet,
    /// The node that it was reached through; null: what was sent there was refused.
    pub before: Option<Name>,
    /// The node that it is reached through; null: what is sent there is refused.
    pub after: Option<Name>,
    /// Whether connections to it break: one of the two puts its own address in place of the source (NAT).
    pub breaks: bool,
}

/// A field of a node's interface that changes, as the files call it, or what it forwards to for an egress that it is
/// at before and afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct SettingChange {
    /// Its name: `listen-port`, `mtu`, `keepalive`, `check-in`, `name-servers`; `egress office`, of what it forwards to;
    /// `refuses`, of a range that it sends nothing to.
    pub name: String,
    /// What it was; null: nothing.
    pub before: Option<String>,
    /// What it is; null: nothing.
    pub after: Option<String>,
}

/// The address of a node in one family changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Readdressed {
    /// The address that it had; null: none of this family.
    pub before: Option<IpAddr>,
    /// The address that it gets; null: none of this family.
    pub after: Option<IpAddr>,
    /// Why it cannot stay as it was: the node, entry or client that the address is reserved for, the network whose
    /// range changes, or the declaration of the node itself.
    pub because: Option<ResourceId>,
}

/// What a node sends to the internet goes another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct InternetChange {
    /// The family: `0.0.0.0/0` or `::/0`.
    #[schemars(with = "String")]
    pub range: IpNet,
    /// Where it went.
    pub before: Internet,
    /// Where it goes.
    pub after: Internet,
}

/// Where what a node sends to the internet goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Internet {
    /// Where the host itself routes it, outside of the network.
    Own,
    /// Through this node.
    Through(Name),
    /// Nowhere: the nodes that would carry it are away.
    Refused,
}

/// A node does something else for what is carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct PartChange {
    /// The egress, ingress or relay; the network, of its hub.
    pub id: ResourceId,
    /// What it did; null: nothing.
    pub before: Option<Part>,
    /// What it does; null: nothing.
    pub after: Option<Part>,
}

impl NodeImpact {
    /// Sets a list, and how many entries are left out of it.
    fn put<T>(&mut self, name: &str, (list, more): (Vec<T>, u64), field: impl Fn(&mut Self) -> &mut Vec<T>) {
        *field(self) = list;
        if more > 0 {
            self.more.insert(name.to_owned(), more);
        }
    }

    /// How many entries a list has, with those that are left out.
    pub fn all_of<T>(&self, name: &str, list: &[T]) -> u64 {
        list.len() as u64 + self.more.get(name).copied().unwrap_or_default()
    }

    /// Whether none of its lists has anything.
    fn is_nothing(&self) -> bool {
        !self.changes_more_than_its_filter() && !self.filter && self.keeps_server
    }

    /// Whether anything but what may be opened at it changes.
    fn changes_more_than_its_filter(&self) -> bool {
        let Self {
            network: _,
            node: _,
            removed,
            peers_added,
            peers_removed,
            peers_changed,
            peers_rekeyed,
            allowed_ips: _,
            paths,
            routes_added,
            routes_removed,
            routes_refused,
            routes_changed,
            internet,
            names_added,
            names_removed,
            names_changed,
            carries,
            filter: _,
            settings,
            readdressed,
            more: _,
            sessions_break,
            keeps_server: _,
        } = self;
        let peers = [peers_added, peers_removed, peers_changed, peers_rekeyed];
        let names = [names_added, names_removed, names_changed];
        *removed
            || *sessions_break
            || peers.into_iter().chain(names).any(|list| !list.is_empty())
            || [routes_added, routes_removed, routes_refused].into_iter().any(|list| !list.is_empty())
            || !(paths.is_empty() && routes_changed.is_empty() && internet.is_empty())
            || !(carries.is_empty() && settings.is_empty() && readdressed.is_empty())
    }

    /// Whether nothing changes for it but what may be opened at it.
    pub fn is_filter_alone(&self) -> bool {
        self.filter && !self.changes_more_than_its_filter() && self.keeps_server
    }

    /// Whether it has another address than before, and not only one more.
    pub fn loses_an_address(&self) -> bool {
        self.readdressed.iter().any(|it| it.before.is_some())
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
