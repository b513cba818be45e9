//! What people mean when they type a name: a resource by its id, by its network and name, or by its name alone.
//! Pure, over what is declared, what has joined and who waits. Start at [`find`].

use std::collections::BTreeSet;

use crate::inventory::Inventory;
use crate::kinds::Node;
use crate::snapshot::{ResourceId, Snapshot};

/// Why a name leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfound {
    /// Nothing is called that.
    Unknown {
        /// What there is, as it may be typed.
        known: Vec<String>,
    },
    /// Several are.
    Ambiguous {
        /// Their ids.
        meant: Vec<ResourceId>,
    },
}

/// Finds what is called `corp/dns/api` (of a network: `corp`), `corp/api` or `api`: among what is declared, the
/// nodes that have joined without, and the hosts that wait to be let in, under the name that they asked for. An id
/// is never ambiguous; what is the id of a network is that network.
pub fn find(asked: &str, declared: &Snapshot, inventory: &Inventory) -> Result<ResourceId, Unfound> {
    let all = all(declared, inventory);
    if let Some(id) = asked.parse::<ResourceId>().ok().filter(|id| all.contains(id)) {
        return Ok(id);
    }
    let (network, name) =
        asked.split_once('/').map_or((None, asked), |(network, name)| (Some(network), name));
    let is_meant = |id: &&ResourceId| {
        let inside = id.kind.descriptor().within.is_some();
        inside && id.name.as_str() == name && network.is_none_or(|network| id.network.as_str() == network)
    };
    let mut meant: Vec<ResourceId> = all.iter().filter(is_meant).cloned().collect();
    match meant.pop() {
        None => Err(Unfound::Unknown { known: all.iter().flat_map(names).collect() }),
        Some(only) if meant.is_empty() => Ok(only),
        Some(last) => {
            meant.push(last);
            Err(Unfound::Ambiguous { meant })
        }
    }
}

fn all(declared: &Snapshot, inventory: &Inventory) -> BTreeSet<ResourceId> {
    let joined = inventory.nodes().map(|(id, _)| ResourceId::of::<Node>(&id.network, &id.name));
    let waits = inventory.pending().map(|((network, _), host)| ResourceId::of::<Node>(network, &host.name));
    declared.entries().map(|(id, _)| id.clone()).chain(joined).chain(waits).collect()
}

/// How a resource may be typed.
fn names(id: &ResourceId) -> Vec<String> {
    match id.kind.descriptor().within {
        None => vec![id.to_string()],
        Some(_) => vec![id.to_string(), format!("{}/{}", id.network, id.name), id.name.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;
    use crate::inventory::NodeId;
    use crate::inventory::tests::joined;
    use crate::kinds::Kind;
    use crate::syntax::{Language, Source, parse};
    use crate::value::SourceId;

    fn found(asked: &str) -> Result<String, Unfound> {
        let text = r#"network "corp" ipv4="10.40.0.0/24" {
                node "web"; node "corp"; access-key "first" uses=2; allow "first" from="web" to="*"; dns "api" node="web"
            }
            network "lab" ipv4="10.41.0.0/24" { node "web"; node "only"; }"#;
        let source = Source { name: "a.kdl".into(), text: text.into(), language: Language::Kdl };
        let declared = decode(parse(&source, SourceId(0), Kind::DESCRIPTORS).0).0.snapshot;
        let mut inventory = Inventory::default();
        let late = NodeId { network: "lab".parse().expect("good"), name: "late".parse().expect("good") };
        inventory.put_node(late, joined(1, "10.41.0.9"));
        find(asked, &declared, &inventory).map(|id| id.to_string())
    }

    #[test]
    fn what_is_typed_is_an_id_or_a_name_with_its_network_or_alone() {
        for (asked, id) in [
            ("corp/node/web", "corp/node/web"),
            ("corp/web", "corp/node/web"),
            ("only", "lab/node/only"),
            ("late", "lab/node/late"),
            ("lab/late", "lab/node/late"),
            ("corp/access-key/first", "corp/access-key/first"),
            ("api", "corp/dns/api"),
            ("corp", "corp"),
            ("corp/corp", "corp/node/corp"),
        ] {
            assert_eq!(found(asked).as_deref(), Ok(id), "{asked}");
        }
    }

    #[test]
    fn what_may_be_several_is_not_guessed_and_what_is_unknown_comes_with_what_there_is() {
        let meant = |asked: &str| match found(asked) {
            Err(Unfound::Ambiguous { meant }) => meant.iter().map(ToString::to_string).collect::<Vec<_>>(),
            other => panic!("{asked}: {other:?}"),
        };
        assert_eq!(meant("web"), ["corp/node/web", "lab/node/web"]);
        assert_eq!(meant("corp/first"), ["corp/access-key/first", "corp/allow/first"]);
        for unknown in ["wep", "corp/only", "corp/dns/web", "nowhere/web", "", "/", "corp/"] {
            let known = match found(unknown) {
                Err(Unfound::Unknown { known }) => known,
                other => panic!("{unknown}: {other:?}"),
            };
            assert!(known.contains(&"corp/web".to_owned()) && known.contains(&"lab".to_owned()), "{known:?}");
        }
    }
}
