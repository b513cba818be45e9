//! `nmplan validate`: checks the files, without a server.

use std::collections::BTreeSet;

use schema::scalars::{Name, NetworkName};
use schema::text::count;

use super::{Run, networks};
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::events;
use crate::project::LoadError;

/// Checks the files of the chosen env, or of every env if none is chosen.
pub fn run<C: ControlPlane>(run: &mut Run<'_, C>) -> Result<Exit, Error> {
    if run.console.json {
        run.console.event(&events::version())?;
    }
    let known = match one(run, None) {
        Err(Error::Load(LoadError::WhichEnv(envs))) => each(run, envs)?,
        other => other?,
    };
    run.check_network(known)?;
    Ok(Exit::Done)
}

fn each<C: ControlPlane>(run: &mut Run<'_, C>, envs: Vec<Name>) -> Result<BTreeSet<NetworkName>, Error> {
    let mut errors = 0;
    let mut known = BTreeSet::new();
    for env in envs {
        run.place.env = Some(env.clone());
        match one(run, Some(&env)) {
            Err(Error::Problems { count, .. }) => errors += count,
            other => known.extend(other?),
        }
    }
    if errors > 0 { Err(Error::Problems { count: errors, undone: None }) } else { Ok(known) }
}

/// Checks one env; returns the networks that it declares.
fn one<C: ControlPlane>(run: &mut Run<'_, C>, env: Option<&Name>) -> Result<BTreeSet<NetworkName>, Error> {
    let loaded = run.load_without_server(None)?;
    if !run.console.json && !run.console.quiet {
        let resources = count(loaded.declared.snapshot.len() as u64, "resource");
        let files = count(loaded.sources.len() as u64, "file");
        let verdict = if loaded.report.is_empty() { "valid" } else { "valid, with warnings" };
        let env = env.map(|env| format!("env {env}: ")).unwrap_or_default();
        run.console.stdout(&format!("{env}{resources} in {files}: {verdict}.\n"))?;
    }
    Ok(networks(&loaded.declared.snapshot).collect())
}
