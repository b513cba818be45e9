//! `nmplan client`: writes what external clients are configured with.
//!
//! Standard output is the configuration and nothing else. Its private key is in no other output, but in the file
//! of `--key`, and in the picture.

use std::path::Path;

use proto::secret::Secret;
use schema::client::Configuration;
use schema::kinds::ExternalClient;
use schema::scalars::WireGuardKey;
use schema::snapshot::{ResourceId, Snapshot};
use schema::text::path as shown;
use schema::value::{Location, Step};
use schema::world::World;
use serde_json::json;

use super::{Run, command, networks};
use crate::args::{ClientArg, ClientConf, ClientVerb};
use crate::client::{ClientError, Edit, Picture, PrivateKey, check_replaceable};
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::project::Loaded;
use crate::render::Lines;

/// Does what was typed.
pub async fn run<C: ControlPlane>(verb: &ClientVerb, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    match verb {
        ClientVerb::Conf(args) => conf(args, run).await,
    }
}

async fn conf<C: ControlPlane>(args: &ClientConf, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    if args.qr && run.console.json {
        return Err(Error::Usage("--json has the configuration as a text: omit --qr, or --json"));
    }
    let loaded = run.load("written")?;
    run.check_network(networks(&loaded.declared.snapshot).collect())?;
    let declared = &loaded.declared.snapshot;
    let id = chosen(&args.client, declared, run)?;
    let server = (run.connect)(loaded.server.as_deref())?;
    let (_, world) = run.observe(&server).await?;
    let configuration =
        Configuration::of(&id.node(), &world.snapshot, &world.inventory).map_err(ClientError::from)?;
    let client = declared.named::<ExternalClient>(&id.network, &id.name).expect("it was chosen of these");
    let (key, is_new) = private_key(args.key.as_deref(), &id, client.public_key, &loaded)?;
    let public_key = key.public();
    let edit = match client.public_key {
        Some(_) => None,
        None => Some(edit(&id, &loaded, &run.place.files, &public_key)?),
    };
    let text = Secret::new(configuration.text(key.text().expose()));
    let picture = if args.qr || args.png.is_some() { Some(Picture::of(&text)?) } else { None };
    args.png.iter().try_for_each(|path| check_replaceable(path))?;
    mention_changes(&id, &loaded, &world, run);
    if let Some(path) = args.key.as_deref().filter(|_| is_new) {
        key.store(path)?;
        run.console
            .stderr(&format!("Made a private key in {}, which only its owner may read.\n", shown(path)));
    }
    print(&id, &text, picture.as_ref().filter(|_| args.qr), run)?;
    if let (Some(path), Some(picture)) = (&args.png, &picture) {
        picture.store(path)?;
    }
    if let Some(edit) = edit {
        edit.carry_out()?;
        let place = place(&loaded, loaded.declared.source_map.location(&id, &[]));
        run.console.stderr(&format!("Wrote the public key of {id} into {place}.\n"));
    }
    let known =
        world.snapshot.named::<ExternalClient>(&id.network, &id.name).and_then(|client| client.public_key);
    if known != Some(public_key) {
        let command = command(&run.place, run.only.as_ref(), &["apply"]);
        run.console.note(&format!("It is let in once that is applied:\n\n    {command}\n"));
    }
    Ok(Exit::Done)
}

/// The client that was typed, of those that the files declare.
fn chosen<C>(typed: &ClientArg, declared: &Snapshot, run: &Run<'_, C>) -> Result<ResourceId, Error> {
    let network = typed.network.as_ref().or(run.only.as_ref());
    if network.is_some_and(|network| run.only.as_ref().is_some_and(|only| only != network)) {
        return Err(Error::Usage(
            "the client is of another network than --network says; leave out one of them",
        ));
    }
    let networks = declared.networks().map(|(name, _)| name);
    let networks = networks.filter(|name| network.is_none_or(|network| network == *name));
    let clients: Vec<_> =
        networks.flat_map(|name| declared.all_in::<ExternalClient>(name)).map(|(id, _)| id.clone()).collect();
    let found: Vec<_> = clients.iter().filter(|id| id.name == typed.name).collect();
    let named = |id: &ResourceId| format!("{}/{}", id.network, id.name);
    match *found {
        [one] => Ok(one.clone()),
        [] => {
            let asked = network.map_or(typed.name.to_string(), |network| format!("{network}/{}", typed.name));
            Err(ClientError::Unknown { asked, known: clients.iter().map(named).collect() }.into())
        }
        [..] => {
            let known = found.into_iter().map(named).collect();
            Err(ClientError::Ambiguous { asked: typed.name.to_string(), known }.into())
        }
    }
}

/// The private key of a client that has this public key declared, and whether it was made here.
fn private_key(
    file: Option<&Path>,
    id: &ResourceId,
    declared: Option<WireGuardKey>,
    loaded: &Loaded,
) -> Result<(PrivateKey, bool), ClientError> {
    let field = || {
        let path = [Step::Field("public-key")];
        place(loaded, loaded.declared.source_map.location(id, &path))
    };
    let read = match file {
        Some(file) => PrivateKey::of_file(file)?.map(|key| (file, key)),
        None => None,
    };
    match (read, declared) {
        (Some((file, key)), Some(declared)) if key.public() != declared => {
            Err(ClientError::OtherKey { id: id.clone(), place: field(), key: file.to_owned() })
        }
        (Some((_, key)), _) => Ok((key, false)),
        (None, Some(_)) => {
            Err(ClientError::HasKey { id: id.clone(), place: field(), key: file.map(Path::to_owned) })
        }
        (None, None) => Ok((PrivateKey::make()?, true)),
    }
}

/// The edit that writes the public key where the client is declared.
fn edit(
    id: &ResourceId,
    loaded: &Loaded,
    given: &[std::path::PathBuf],
    key: &WireGuardKey,
) -> Result<Edit, ClientError> {
    let at = loaded.declared.source_map.location(id, &[]).expect("the files declare it");
    let source = &loaded.sources[at.source.0 as usize];
    let is_input = &*source.name == "standard input" && given.iter().any(|file| file.as_os_str() == "-");
    let path = Path::new(&*source.name);
    Edit::prepare(id, (source, at.span), (!is_input).then_some(path), key)
}

/// A place in the files: `mesh/corp.kdl, line 3`.
fn place(loaded: &Loaded, at: Option<Location>) -> String {
    let Some(Location { source: id, span }) = at else { return "the files".into() };
    let source = &loaded.sources[id.0 as usize];
    let (line, _) = Lines::default().position(id, &source.text, span.start);
    format!("{}, line {line}", source.name)
}

/// Says that the files declare the client otherwise than it was applied, since what was applied counts.
fn mention_changes<C>(id: &ResourceId, loaded: &Loaded, world: &World, run: &mut Run<'_, C>) {
    let of = |snapshot: &Snapshot| {
        let client = snapshot.named::<ExternalClient>(&id.network, &id.name)?;
        Some(ExternalClient { public_key: None, ..(**client).clone() })
    };
    if of(&loaded.declared.snapshot) != of(&world.snapshot) {
        let text = format!(
            "Note: the files declare {id} otherwise than it was applied. This is what was applied; after the next apply, \
             write it again.\n"
        );
        run.console.note(&text);
    }
}

/// Prints the configuration, or its code.
fn print<C>(
    id: &ResourceId,
    text: &Secret<String>,
    picture: Option<&Picture>,
    run: &mut Run<'_, C>,
) -> Result<(), Error> {
    // What nobody got is not declared.
    run.console.must_arrive = true;
    let printed = match picture {
        _ if run.console.json => {
            let document =
                Secret::new(json!({ "id": id, "configuration": text.expose() }).to_string() + "\n");
            run.console.stdout(document.expose())
        }
        Some(picture) => run.console.stdout(picture.text().expose()),
        None => run.console.stdout(text.expose()),
    };
    run.console.must_arrive = false;
    Ok(printed?)
}
