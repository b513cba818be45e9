//! `nmplan init`: writes a new project.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use schema::scalars::{Name, NetworkName};
use schema::text::path as shown;

use super::command;
use crate::args;
use crate::console::Console;
use crate::error::{Error, Exit};
use crate::project::{PROJECT_FILES, Where};

/// The server's URL, unless a flag or the environment names another.
const SERVER: &str = "https://127.0.0.1:8081";

/// Writes the files.
pub fn run(args: &args::Init, place: &Where, console: &mut Console) -> Result<Exit, Error> {
    let directory = place.directory.as_deref().unwrap_or(Path::new("."));
    let project = args.name.clone().or_else(|| of_directory(directory)).unwrap_or_else(|| good("mesh"));
    let network = network_of(&project);
    let server = place.server.as_deref().or(place.environment.get("SERVER")).unwrap_or(SERVER);
    // A link that leads nowhere is there as well.
    let is_there = |path: &PathBuf| path.symlink_metadata().is_ok();
    if let Some(there) = PROJECT_FILES.iter().map(|name| directory.join(name)).find(is_there) {
        return Err(Error::Exists(shown(&there)));
    }
    let mesh = directory.join("mesh").join(format!("{network}.kdl"));
    let failed = |attempt, path: &Path| {
        let path = shown(path);
        move |source| Error::File { attempt, path, source }
    };
    fs::create_dir_all(directory.join("mesh")).map_err(failed("make", &directory.join("mesh")))?;
    write_new(&mesh, &mesh_file(&network))?;
    let file = directory.join(PROJECT_FILES[0]);
    write_new(&file, &project_file(&project, server))?;
    console.stdout(&format!("{}\n{}\n", shown(&file), shown(&mesh)))?;
    let next = command(&Where { directory: place.directory.clone(), ..Where::default() }, None, &["plan"]);
    console.note(&format!(
        "\nThe project is ready. Declare your nodes in {}, then:\n\n    {next}\n",
        shown(&mesh)
    ));
    Ok(Exit::Done)
}

fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    let written = fs::File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| match source.kind() == ErrorKind::AlreadyExists {
        true => Error::Exists(shown(path)),
        false => Error::File { attempt: "write", path: shown(path), source },
    })
}

fn good(name: &str) -> Name {
    name.parse().expect("it is a good name")
}

/// The name of the directory, if a project may have it.
fn of_directory(directory: &Path) -> Option<Name> {
    directory
        .canonicalize()
        .ok()?
        .file_name()?
        .to_str()?
        .to_lowercase()
        .replace(['_', ' ', '.'], "-")
        .parse()
        .ok()
}

/// A network with the project's name, shortened to what a network may be called.
fn network_of(project: &Name) -> NetworkName {
    let short: String = project.as_str().chars().take(12).collect();
    let network = short.trim_end_matches('-').parse();
    network.unwrap_or_else(|_| "mesh".parse().expect("it is a good name"))
}

fn project_file(project: &Name, server: &str) -> String {
    format!(
        "\
// The project: its name, and for each env the server and the files.
project \"{project}\" schema=1

// How much one apply may do, unless --allow lets it through once; it counts from the next apply on.
// guard max-delete=\"10% or 3\" max-nodes-changed=\"50%\" max-reach-lost=\"10%\"

env \"default\" {{
    server {server:?}
    use \"mesh/\"
}}
"
    )
}

fn mesh_file(network: &NetworkName) -> String {
    format!(
        "\
// One mesh. `nmplan schema` prints which fields there are, `nmplan explain CODE` what a problem means.
network \"{network}\" {{
    ipv4 \"10.40.0.0/16\"

    // These nodes join with the token of this key; `nmplan apply --keys-to keys.json` writes the token.
    access-key \"servers\" {{ for \"gateway\" \"server-1\" }}

    node \"gateway\" ipv4=\"10.40.0.1\" {{ tags \"gateway\" }}
    node \"server-1\"

    // Resolves on every node of the mesh as www.{network}.
    dns \"www\" node=\"server-1\"
}}
"
    )
}
