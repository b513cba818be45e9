//! Who carries what for others. Pure, from the declarations and from who is there.

use crate::attribute::Ref;
use crate::inventory::{Inventory, NodeId};
use crate::kinds::Node;
use crate::scalars::{Name, NetworkName};

/// The node that carries an egress (its name given), or a relay: the first of `via` that has joined and carries
/// what it should; absent: none does.
pub fn carrier<'a>(
    network: &NetworkName,
    via: &'a [Ref<Node>],
    egress: Option<&Name>,
    inventory: &Inventory,
) -> Option<&'a Name> {
    let is_there = |node: &&Name| {
        let id = NodeId::of(network, node);
        inventory.node(&id).is_some() && !inventory.is_away(&id, egress)
    };
    via.iter().map(|node| &node.name).find(is_there)
}
