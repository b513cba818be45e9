//! `nmplan validate`: checks the files, without a server.

use schema::scalars::Name;

use super::Run;
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::events;
use crate::project::LoadError;
use crate::render::count;

/// Checks the files: of the env that is chosen, or else of each.
pub fn run<C: ControlPlane>(run: &mut Run<'_, C>) -> Result<Exit, Error> {
    if run.console.json {
        run.console.event(&events::version())?;
    }
    match one(run, None) {
        Err(Error::Load(LoadError::WhichEnv(envs))) => each(run, envs),
        other => other.map(|()| Exit::Done),
    }
}

fn each<C: ControlPlane>(run: &mut Run<'_, C>, envs: Vec<Name>) -> Result<Exit, Error> {
    let mut errors = 0;
    for env in envs {
        run.place.env = Some(env.clone());
        match one(run, Some(&env)) {
            Err(Error::Problems { count, .. }) => errors += count,
            other => other?,
        }
    }
    if errors > 0 { Err(Error::Problems { count: errors, undone: None }) } else { Ok(Exit::Done) }
}

fn one<C: ControlPlane>(run: &mut Run<'_, C>, env: Option<&Name>) -> Result<(), Error> {
    let loaded = run.load(None)?;
    if !run.console.json && !run.console.quiet {
        let resources = count(loaded.declared.snapshot.len() as u64, "resource");
        let files = count(loaded.sources.len() as u64, "file");
        let verdict = if loaded.report.is_empty() { "valid" } else { "valid, with warnings" };
        let env = env.map(|env| format!("env {env}: ")).unwrap_or_default();
        run.console.data(&format!("{env}{resources} in {files}: {verdict}.\n"))?;
    }
    Ok(())
}
