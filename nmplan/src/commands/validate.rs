//! `nmplan validate`: checks the files, without a server.

use std::collections::BTreeSet;

use schema::judge::{self, Outcome};
use schema::scalars::{Name, NetworkName};
use schema::text::count;

use super::{Run, networks};
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::events;
use crate::project::LoadError;
use crate::render;

/// Checks the files of the chosen env, or of every env if none is chosen.
pub fn run<C: ControlPlane>(run: &mut Run<'_, C>) -> Result<Exit, Error> {
    if run.console.json {
        run.console.event(&events::version())?;
    }
    let Checked { networks, failing } = match one(run, None) {
        Err(Error::Load(LoadError::WhichEnv(envs))) => each(run, envs)?,
        other => other?,
    };
    run.check_network(networks)?;
    if failing > 0 { Err(Error::TestsFail(failing)) } else { Ok(Exit::Done) }
}

/// What was found to be valid.
#[derive(Default)]
struct Checked {
    /// The networks that are declared.
    networks: BTreeSet<NetworkName>,
    /// How many tests fail.
    failing: u64,
}

fn each<C: ControlPlane>(run: &mut Run<'_, C>, envs: Vec<Name>) -> Result<Checked, Error> {
    let mut errors = 0;
    let mut all = Checked::default();
    for env in envs {
        run.place.env = Some(env.clone());
        match one(run, Some(&env)) {
            Err(Error::Problems { count, .. }) => errors += count,
            other => {
                let Checked { networks, failing } = other?;
                all.networks.extend(networks);
                all.failing += failing;
            }
        }
    }
    if errors > 0 { Err(Error::Problems { count: errors, undone: None }) } else { Ok(all) }
}

/// Checks one env.
fn one<C: ControlPlane>(run: &mut Run<'_, C>, env: Option<&Name>) -> Result<Checked, Error> {
    let loaded = run.load_without_server(None)?;
    let verdicts = run.judge_files(&loaded, |_| true)?;
    let (hold, tests) = judge::tally(&verdicts);
    if !run.console.json && !run.console.quiet {
        let resources = count(loaded.declared.snapshot.len() as u64, "resource");
        let files = count(loaded.sources.len() as u64, "file");
        let warnings = !loaded.report.is_empty() || verdicts.iter().any(|it| it.outcome == Outcome::Warns);
        let verdict = if warnings { "valid, with warnings" } else { "valid" };
        let held = match tests {
            0 => String::new(),
            _ => format!("; {}", render::tests_hold(hold, tests)),
        };
        let env = env.map(|env| format!("env {env}: ")).unwrap_or_default();
        run.console.stdout(&format!("{env}{resources} in {files}: {verdict}{held}.\n"))?;
    }
    Ok(Checked { networks: networks(&loaded.declared.snapshot).collect(), failing: tests - hold })
}
