//! `nmplan status`: shows the state of the nodes and the access keys, or of one of them.

use jiff::Timestamp;
use schema::api::{NodeStatus, Presence, StatusDocument};
use schema::details::admitting;
use schema::kinds::{Kind, Node};
use schema::lookup::{Unfound, find};
use schema::scalars::NetworkName;
use schema::snapshot::ResourceId;
use schema::text::natural;
use schema::world::World;

use super::{Run, networks};
use crate::args;
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::project;
use crate::render;

/// Shows everything, or what was asked for.
pub async fn run<C: ControlPlane>(args: &args::Status, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let server = (run.connect)(project::server(&run.place)?.as_deref())?;
    let what = format!("asking {}", server.name());
    let mut status = run.console.waiting(&what, server.status()).await?;
    status.nodes.sort_by(|one, other| {
        let network = |node: &NodeStatus| node.id.split('/').next().map(str::to_owned);
        network(one).cmp(&network(other)).then_with(|| natural(one.name.as_str(), other.name.as_str()))
    });
    status.keys.sort_by(|one, other| {
        one.id
            .network
            .cmp(&other.id.network)
            .then_with(|| natural(one.id.name.as_str(), other.id.name.as_str()))
    });
    if let Some(only) = &run.only {
        keep_network(&mut status, only);
    }
    // A network without nodes and an unknown network look the same in a status.
    if run.only.is_some() && status.nodes.is_empty() {
        let (_, world) = run.observe(&server).await?;
        run.check_network(networks(&world.snapshot).collect())?;
    }
    let mut asked = None;
    if let Some(what) = &args.what {
        let (_, world) = run.observe(&server).await?;
        let id = found(what, false, run.only.as_ref(), &world)?;
        keep(&mut status, &id, &world)?;
        asked = Some(id).filter(|id| id.kind != Kind::Network);
    }
    let (now, columns) = (Timestamp::now(), run.console.columns);
    let text = match &asked {
        _ if run.console.json => {
            serde_json::to_string(&status).expect("a status can be written as JSON") + "\n"
        }
        Some(id) => render::status_of(id, &status, server.name(), now, columns),
        None => render::status(&status, server.name(), now, columns),
    };
    run.console.stdout(&text)?;
    Ok(Exit::Done)
}

/// Finds what was typed, in the network of `--network` if that is given; `file`: it might have been a file.
pub(super) fn found(
    what: &str,
    file: bool,
    only: Option<&NetworkName>,
    world: &World,
) -> Result<ResourceId, Error> {
    let unfound = |unfound| Error::Unfound { asked: what.to_owned(), file, unfound };
    let id = match only {
        // The id of a network, or of what is in it, has its network; a name may be in several.
        Some(only) if !what.contains('/') && what != only.as_str() => {
            find(&format!("{only}/{what}"), &world.snapshot, &world.inventory)
        }
        Some(_) | None => find(what, &world.snapshot, &world.inventory),
    };
    let id = match (id, only) {
        (Ok(id), _) => id,
        (Err(nothing @ Unfound::Unknown { .. }), Some(only)) => {
            let meant = match find(what, &world.snapshot, &world.inventory) {
                Ok(id) => vec![id],
                Err(Unfound::Ambiguous { meant }) => meant,
                Err(Unfound::Unknown { .. }) => return Err(unfound(nothing)),
            };
            return Err(Error::Elsewhere { asked: what.to_owned(), only: only.clone(), meant });
        }
        (Err(reason), _) => return Err(unfound(reason)),
    };
    match only {
        Some(only) if id.network != *only => Err(Error::Usage(
            "what is asked for is in another network than --network says; leave out one of them",
        )),
        Some(_) | None => Ok(id),
    }
}

fn keep_network(status: &mut StatusDocument, only: &NetworkName) {
    status.nodes.retain(|node| node.id.split('/').next() == Some(only.as_str()));
    status.keys.retain(|key| key.id.network == *only);
    status.egress.retain(|egress| egress.id.network == *only);
    status.relays.retain(|relay| relay.id.network == *only);
}

/// Keeps what a status has of one thing: of a node what it carries as well, and if it is awaited the access keys
/// that let a host join as it.
fn keep(status: &mut StatusDocument, id: &ResourceId, world: &World) -> Result<(), Error> {
    keep_network(status, &id.network);
    if id.kind == Kind::Network {
        return Ok(());
    }
    if id.kind == Kind::Node {
        let node = id.to_string();
        // Hosts that wait have ids under the name that they asked for.
        status.nodes.retain(|it| it.id == node || is_waiting_as(it, id));
        let awaited = status.nodes.iter().any(|it| it.state == Presence::Awaiting);
        let keys = admitting(&id.node(), &world.snapshot, &world.inventory, Timestamp::now());
        status.keys.retain(|key| awaited && keys.iter().any(|it| it.id == key.id));
        status.egress.retain(|egress| egress.candidates.contains(&id.name));
        status.relays.retain(|relay| relay.candidates.contains(&id.name));
        return Ok(());
    }
    let StatusDocument { epoch: _, revision: _, nodes, keys, egress, relays } = status;
    nodes.clear();
    keys.retain(|key| key.id == *id);
    egress.retain(|egress| egress.id == *id);
    relays.retain(|relay| relay.id == *id);
    if keys.is_empty() && egress.is_empty() && relays.is_empty() {
        return Err(Error::NoStatus(id.clone()));
    }
    Ok(())
}

fn is_waiting_as(node: &NodeStatus, id: &ResourceId) -> bool {
    node.pending.is_some() && ResourceId::of::<Node>(&id.network, &node.name) == *id
}
