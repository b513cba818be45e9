//! `nmplan node`: lets hosts in that wait, removes nodes that have joined, and bars their hosts; the declarations
//! stay as they are.
//!
//! As after an apply, what was done is said on standard error, whatever becomes of standard output.

use jiff::Timestamp;
use schema::api::{Approved, Committed, Removed};
use schema::compile::admission::approved_as;
use schema::inventory::{Joined, NodeId, PendingNode};
use schema::kinds::{AccessKey, Node};
use schema::scalars::Fingerprint;
use schema::snapshot::{ResourceId, Revision};
use schema::text::{moment, plain};
use schema::world::{BarredDocument, ServerInfo, World};
use serde::Serialize;

use super::{Run, command, networks};
use crate::args::{ApproveNode, NodeArg, NodeVerb, RemoveNode};
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::project;
use crate::render;

/// Does what was typed.
pub async fn run<C: ControlPlane>(verb: &NodeVerb, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    match verb {
        NodeVerb::List => list(run).await,
        NodeVerb::Approve(args) => approve_host(args, run).await,
        NodeVerb::Remove(args) => remove(args, run).await,
        NodeVerb::Unban { node } => unban(node, run).await,
        NodeVerb::Bans => bans(run).await,
    }
}

/// What `--json` prints of a change: the node, and the server's answer.
#[derive(Serialize)]
struct Done<T> {
    id: ResourceId,
    #[serde(flatten)]
    answer: T,
}

async fn list<C: ControlPlane>(run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let server = (run.connect)(project::server(&run.place)?.as_deref())?;
    let what = format!("asking {}", server.name());
    let mut nodes = run.console.waiting(&what, server.status()).await?.nodes;
    if let Some(only) = &run.only {
        nodes.retain(|node| node.id.split('/').next() == Some(only.as_str()));
        // A network without nodes and an unknown network look the same in a status.
        if nodes.is_empty() {
            let (_, world) = run.observe(&server).await?;
            run.check_network(networks(&world.snapshot).collect())?;
        }
    }
    if run.console.json {
        return print(&nodes, run);
    }
    run.console.stdout(&render::nodes(&nodes, server.name(), Timestamp::now(), run.console.columns))?;
    Ok(Exit::Done)
}

/// The host that waits under a name, by its fingerprint where one is given.
fn waiting<'a>(
    node: &NodeId,
    identity: Option<Fingerprint>,
    world: &'a World,
) -> Result<(Fingerprint, &'a PendingNode), Error> {
    let pending = world.inventory.pending_in(&node.network);
    let asks = pending.filter(|(_, pending)| pending.name == node.name);
    let asks = asks.map(|(identity, pending)| (identity.fingerprint(), &**pending));
    let found: Vec<_> = asks.filter(|(it, _)| identity.is_none_or(|identity| identity == *it)).collect();
    let asked = format!("{}/{}", node.network, node.name);
    match *found {
        [one] => Ok(one),
        [] => {
            let known = world.inventory.pending();
            let known = known.map(|((network, _), pending)| format!("{network}/{}", pending.name)).collect();
            Err(Error::NobodyWaits { asked, known })
        }
        _ => {
            let fingerprints = found.iter().map(|(fingerprint, _)| fingerprint.to_string()).collect();
            Err(Error::SeveralWait { asked, fingerprints })
        }
    }
}

async fn approve_host<C: ControlPlane>(args: &ApproveNode, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let node = named(&args.node, run)?;
    let server = (run.connect)(project::server(&run.place)?.as_deref())?;
    let (_, world) = run.observe(&server).await?;
    let (fingerprint, pending) = waiting(&node, args.identity, &world)?;
    let approved = approved_as(&world.snapshot, &node.network, fingerprint);
    let becomes = args.becomes.as_ref().or(approved).unwrap_or(&node.name).clone();
    let unseen = run.console.json || run.console.quiet && args.auto_approve;
    run.console.must_arrive = true;
    if !unseen {
        let id = ResourceId::of::<Node>(&node.network, &becomes);
        let mut text = format!("To be let in as {id}:\n{}\n", host(fingerprint, pending));
        if world.snapshot.entry(&id).is_some() {
            text += &format!("{id} is declared: the host gets what is reserved for it there.\n\n");
        }
        run.console.stdout(&text)?;
    }
    // A name is no proof: whoever is not asked says by the fingerprint which host is meant.
    if !(args.auto_approve && args.identity.is_some()) {
        if args.auto_approve || !run.console.asks() {
            let (typed, fingerprint) = (format!("{}/{}", node.network, node.name), fingerprint.to_string());
            let verb = ["node", "approve", &*typed, "--identity", &fingerprint];
            let other = args.becomes.iter().flat_map(|name| ["--as", name.as_str()]);
            let verb: Vec<_> = verb.into_iter().chain(other).chain(["-y"]).collect();
            return Err(Error::NotLetIn { command: Some(command(&run.place, None, &verb)) });
        }
        let question =
            "Is that the fingerprint that netclient printed on the host? Type `yes` to let it in: ";
        if run.console.ask(question)? != "yes" {
            return Err(Error::NotLetIn { command: None });
        }
    }
    let what = format!("waiting for {} to let it in", server.name());
    let asked = server.approve(&node.network, fingerprint, &becomes);
    let answer = run.console.waiting(&what, asked).await?;
    let Approved { revision, name, addresses, .. } = &answer;
    let id = ResourceId::of::<Node>(&node.network, name);
    let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    run.console.stderr(&format!("Let in {id} as revision {revision}: {addresses}.\n"));
    report(&Done { id, answer: &answer }, *revision, run)
}

/// What is known of a host that waits.
fn host(fingerprint: Fingerprint, pending: &PendingNode) -> String {
    let PendingNode { name, since, seen, os, .. } = pending;
    let seen = seen.map_or_else(|| "an unknown address".to_owned(), |seen| seen.to_string());
    format!(
        "  asked for    {name}\n  fingerprint  {fingerprint}\n  seen at      {seen}\n  runs         {}\n  asked on     {}\n",
        plain(os),
        moment(*since)
    )
}

/// Drops a host that waits.
async fn drop_host<C: ControlPlane>(
    args: &RemoveNode,
    node: &NodeId,
    server: &C,
    (fingerprint, pending): (Fingerprint, &PendingNode),
    run: &mut Run<'_, C>,
) -> Result<Exit, Error> {
    let id = resource_id(node);
    run.console.must_arrive = true;
    if !(run.console.json || run.console.quiet && args.auto_approve) {
        let barred = if args.ban {
            format!(
                "Its identity is barred from {}, so that it cannot ask again.\n\
                 A host whose state is deleted, as by `netclient leave`, is another one, and asks with another fingerprint.\n",
                node.network
            )
        } else {
            "It can ask again; --ban bars its identity as well.\n".into()
        };
        let host = host(fingerprint, pending);
        run.console.stdout(&format!("To be dropped: a host that waits to be {id}\n{host}\n{barred}\n"))?;
    }
    approve(args, node, run)?;
    let what = format!("waiting for {} to drop it", server.name());
    let asked = server.drop_pending(&node.network, fingerprint, args.ban);
    let answer = run.console.waiting(&what, asked).await?;
    let Committed { revision } = &answer;
    run.console.stderr(&format!("Dropped the host that waited to be {id} as revision {revision}.\n"));
    report(&Done { id, answer: &answer }, *revision, run)
}

async fn remove<C: ControlPlane>(args: &RemoveNode, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let node = named(&args.node, run)?;
    let server = (run.connect)(project::server(&run.place)?.as_deref())?;
    let (info, world) = run.observe(&server).await?;
    let meant = |joined: &Joined| args.identity.is_none_or(|it| it == joined.identity.fingerprint());
    let Some(joined) = world.inventory.node(&node).filter(|joined| meant(joined)) else {
        return match waiting(&node, args.identity, &world) {
            Ok(host) => drop_host(args, &node, &server, host, run).await,
            Err(Error::NobodyWaits { .. }) => Err(unknown(&node, &world)),
            Err(error) => Err(error),
        };
    };
    let others = world.inventory.pending_in(&node.network).filter(|(_, pending)| pending.name == node.name);
    let others: Vec<_> = others.map(|(identity, _)| identity.fingerprint().to_string()).collect();
    if args.identity.is_none() && !others.is_empty() {
        let asked = format!("{}/{}", node.network, node.name);
        return Err(Error::AlsoWaits {
            asked,
            node: joined.identity.fingerprint().to_string(),
            waiting: others,
        });
    }
    let unseen = run.console.json || run.console.quiet && args.auto_approve;
    // As with a plan: what nobody can see is not done.
    run.console.must_arrive = true;
    if !unseen {
        run.console.stdout(&description(&node, joined, args.ban, &info, &world))?;
    }
    approve(args, &node, run)?;
    let what = format!("waiting for {} to remove it", server.name());
    let asked = server.remove_node(&node, args.ban, &joined.identity);
    let removed = run.console.waiting(&what, asked).await?;
    let id = resource_id(&node);
    let Removed { revision, next, .. } = &removed;
    run.console.stderr(&format!("Removed {id} as revision {revision}.\n"));
    if let Some(next) = next {
        run.console.note(&format!("Note: {next}.\n"));
    }
    report(&Done { id, answer: &removed }, *revision, run)
}

/// Prints the document of a change that was made, if one is asked for. Its reader may have gone.
fn report<C>(done: &impl Serialize, revision: Revision, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    run.console.must_arrive = false;
    if !run.console.json {
        return Ok(Exit::Done);
    }
    match print(done, run) {
        Err(Error::Output(source)) => Err(Error::Unreported { revision, source }),
        printed => printed,
    }
}

/// The node that was typed.
fn named<C>(typed: &NodeArg, run: &Run<'_, C>) -> Result<NodeId, Error> {
    let NodeArg { network, name } = typed;
    match (network, &run.only) {
        (Some(network), Some(only)) if network != only => {
            Err(Error::Usage("the node is of another network than --network says; leave out one of them"))
        }
        (Some(network), _) | (None, Some(network)) => Ok(NodeId::of(network, name)),
        (None, None) => {
            Err(Error::Usage("name the network as well: NETWORK/NAME, such as corp/db-1, or --network corp"))
        }
    }
}

fn resource_id(node: &NodeId) -> ResourceId {
    ResourceId::of::<Node>(&node.network, &node.name)
}

/// Why there is nothing to remove.
fn unknown(node: &NodeId, world: &World) -> Error {
    let known = world.inventory.nodes().map(|(id, _)| format!("{}/{}", id.network, id.name)).collect();
    let declared = world.snapshot.entry(&resource_id(node)).is_some();
    Error::NotJoined { asked: format!("{}/{}", node.network, node.name), declared, known }
}

/// What the removal will do, and what it will not.
fn description(node: &NodeId, joined: &Joined, ban: bool, info: &ServerInfo, world: &World) -> String {
    let NodeId { network, name } = node;
    let key = joined.key.as_ref().map(|key| ResourceId::of::<AccessKey>(network, key));
    let with = key.as_ref().map(|key| format!(" with {key}")).unwrap_or_default();
    let addresses: Vec<_> = joined.addresses.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "To be removed: {}\n  addresses  {}\n  identity   {}\n  joined     {}{with}\n\n\
         The other nodes of {network} drop it at once, and its agent removes what it set up on its host.\n",
        resource_id(node),
        addresses.join(" "),
        joined.identity,
        moment(joined.joined),
    );
    if world.snapshot.entry(&resource_id(node)).is_some() {
        text += "Its declaration stays, and another host can join as it.\n";
    }
    // Of a key that was made anew since, it does not have the token.
    let has_token =
        |key: &ResourceId| world.inventory.key(key).is_some_and(|status| status.created <= joined.joined);
    let (key, over) = match key {
        Some(key) if has_token(&key) => (Some(key), None),
        over => (None, over),
    };
    text += &match (ban, key, over) {
        _ if info.own_node.as_ref() == Some(name) => {
            "It is the server's own host, which joins again by itself; to keep it out, delete its declaration.\n".into()
        }
        (true, ..) => format!(
            "The identity of its host is barred from {network} until: nmplan node unban {network}/{name}\n\
             A host whose state is deleted is another one, and joins with any valid token.\n"
        ),
        (false, Some(key), _) => format!(
            "Its host still has the token of {key}, and can join again with it while the key has uses left. To close \
             that, bar the host's identity (--ban), or delete the key from the files and apply.\n"
        ),
        (false, None, Some(over)) => format!(
            "The key that it joined with, {over}, was replaced or deleted since, so its host needs another token to join \
             again.\n"
        ),
        (false, None, None)
            if approved_as(&world.snapshot, network, joined.identity.fingerprint()).is_some() =>
        {
            "Its declaration approves its host, which can join again without a key. To close that, delete `approved` \
             from the files and apply, or bar the host's identity (--ban).\n"
                .into()
        }
        (false, None, None) => {
            "It joined without an access key, and its host needs a token, or somebody who lets it in, to join again.\n"
                .into()
        }
    };
    text + "\n"
}

/// Continues only if the removal is approved.
fn approve<C>(args: &RemoveNode, node: &NodeId, run: &mut Run<'_, C>) -> Result<(), Error> {
    if args.auto_approve {
        return Ok(());
    }
    if !run.console.asks() {
        let typed = format!("{}/{}", node.network, node.name);
        let identity = args.identity.map(|identity| identity.to_string());
        let identity = identity.iter().flat_map(|identity| ["--identity", identity]);
        let verb = ["node", "remove", &*typed].into_iter().chain(identity);
        let verb = verb.chain(args.ban.then_some("--ban")).chain(["-y"]);
        let command = command(&run.place, None, &verb.collect::<Vec<_>>());
        return Err(Error::RemovalNotApproved { command: Some(command) });
    }
    let answer = run.console.ask("Remove this node? Type `yes` to confirm: ")?;
    if answer == "yes" { Ok(()) } else { Err(Error::RemovalNotApproved { command: None }) }
}

async fn unban<C: ControlPlane>(typed: &NodeArg, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let node = named(typed, run)?;
    let server = (run.connect)(project::server(&run.place)?.as_deref())?;
    let what = format!("waiting for {}", server.name());
    let answer = run.console.waiting(&what, server.lift_ban(&node)).await?;
    let id = resource_id(&node);
    let (Committed { revision }, NodeId { network, .. }) = (&answer, &node);
    run.console.stderr(&format!(
        "Lifted the ban of {id} as revision {revision}: its host can ask for {network} or join it again.\n"
    ));
    report(&Done { id, answer: &answer }, *revision, run)
}

async fn bans<C: ControlPlane>(run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let server = (run.connect)(project::server(&run.place)?.as_deref())?;
    let (_, world) = run.observe(&server).await?;
    let barred = world.inventory.barred().map(|((network, identity), barred)| BarredDocument {
        network: network.clone(),
        identity: *identity,
        barred: barred.clone(),
    });
    let barred: Vec<_> =
        barred.filter(|it| run.only.as_ref().is_none_or(|only| *only == it.network)).collect();
    if run.console.json {
        return print(&barred, run);
    }
    run.console.stdout(&render::bans(&barred, server.name(), run.console.columns))?;
    Ok(Exit::Done)
}

fn print<C>(document: &impl Serialize, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    let text = serde_json::to_string(document).expect("a document can be written as JSON");
    run.console.stdout(&(text + "\n"))?;
    Ok(Exit::Done)
}
