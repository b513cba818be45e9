//! `nmplan plan`: shows what an apply would do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use schema::guard::Guard;
use schema::plan::Plan;
use schema::snapshot::ResourceId;
use schema::text::{path as shown, plain};
use schema::world::World;

use super::{Run, awaiting, command, elsewhere};
use crate::args::{self, Format};
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::events;
use crate::keys::Sink;
use crate::project::Loaded;
use crate::render::{self, Lines, Shown};

/// Plans, shows the plan, and saves it if asked to.
pub async fn run<C: ControlPlane>(args: &args::Plan, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    if run.console.json {
        run.console.event(&events::version())?;
    }
    let loaded = run.load_to_plan("planned")?;
    let server = (run.connect)(loaded.server.as_deref())?;
    let (info, world) = run.observe(&server).await?;
    let plan = run.plan(&loaded, &info, &world)?;
    let (judgement, keys) = Run::<C>::judge(
        &plan,
        (Some(&loaded), run.after.as_ref()),
        &info,
        &world,
        &args.allowed.rules(),
        true,
    );
    if let Some(path) = &args.out {
        save(&plan, path)?;
    }
    match (run.console.json, args.format) {
        (true, _) => show_events(run, &plan, Some(&loaded))?,
        (false, Format::Json) => run.console.stdout(&document(&plan))?,
        (false, Format::Text) => {
            let shown = Shown {
                server: Some(server.name().to_owned()),
                awaiting: awaiting(&loaded, run.only.as_ref(), &world),
                elsewhere: elsewhere(&loaded, run.only.as_ref(), &world),
                keys,
                next: judgement
                    .refused
                    .is_empty()
                    .then(|| next(run, &loaded, &plan, &judgement.used, args.out.as_deref(), None)),
                empties: empties(&plan, &world),
                places: places(&plan, Some(&loaded)),
                full: run.console.verbose,
                columns: run.console.columns,
                warnings: run.warned.clone(),
            };
            run.console.stdout(&render::plan(&plan, &shown))?;
        }
    }
    if let Some(path) = &args.out {
        run.console.note(&format!("\nThe plan is saved in {}.\n", shown(path)));
        run.mention_commit();
    }
    run.report_judgement(&judgement, Some(&loaded))?;
    Ok(if args.detailed_exitcode && plan.applyable { Exit::Changes } else { Exit::Done })
}

/// Where the resources are declared that a plan's reachability names.
pub(super) fn places(plan: &Plan, loaded: Option<&Loaded>) -> BTreeMap<ResourceId, String> {
    let lines = Lines::default();
    let declared = loaded.map(|loaded| (&loaded.declared.source_map, &*loaded.sources, &lines));
    let place = |rule: &ResourceId| {
        let at = events::because(rule, declared);
        Some((rule.clone(), format!("{}:{}", plain(at.file?), at.line?)))
    };
    let named: BTreeSet<&ResourceId> =
        plan.reach.iter().flat_map(|change| change.rule.iter().chain(&change.because)).collect();
    named.into_iter().filter_map(place).collect()
}

/// Whether the plan deletes everything that the project and env manage.
pub(super) fn empties(plan: &Plan, world: &World) -> bool {
    let managed =
        world.snapshot.entries().filter(|(_, entry)| entry.owner.as_ref() == Some(&plan.owner())).count();
    managed > 0 && plan.summary().delete == managed as u64
}

/// The saved form of a plan.
pub fn document(plan: &Plan) -> String {
    serde_json::to_string_pretty(plan).expect("a plan can be written as JSON") + "\n"
}

fn save(plan: &Plan, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { attempt: "write", path: shown(path), source };
    std::fs::write(path, document(plan)).map_err(failed)
}

/// Prints the events of a plan.
pub(super) fn show_events<C>(
    run: &mut Run<'_, C>,
    plan: &Plan,
    loaded: Option<&Loaded>,
) -> Result<(), Error> {
    let lines = Lines::default();
    let summary = plan.summary();
    let declared = loaded.map(|loaded| (&loaded.declared.source_map, &*loaded.sources, &lines));
    events::plan(plan, &summary, declared).iter().try_for_each(|event| run.console.event(event))?;
    Ok(())
}

/// Where the tokens of a plan go in a printed command; nothing if it makes no key.
pub(super) fn keys_to(plan: &Plan, sink: Option<&Sink>) -> Option<String> {
    plan.new_keys().next()?;
    Some(sink.map_or_else(|| "keys.json".to_owned(), ToString::to_string))
}

/// The command line that carries this plan out.
pub(super) fn next<C>(
    run: &Run<'_, C>,
    loaded: &Loaded,
    plan: &Plan,
    allow: &BTreeSet<Guard>,
    saved: Option<&Path>,
    sink: Option<&Sink>,
) -> String {
    let digest = plan.digest.as_str();
    let file = saved.map(|path| path.display().to_string());
    let sink = keys_to(plan, sink);
    let mut verb = match &file {
        Some(file) => vec!["apply", file.as_str(), "-y"],
        None => vec!["apply", "--expect", digest],
    };
    verb.extend(sink.iter().flat_map(|sink| ["--keys-to", sink.as_str()]));
    let allow: Vec<_> = allow.iter().map(Guard::to_string).collect();
    verb.extend(allow.iter().flat_map(|guard| ["--allow", guard.as_str()]));
    let mut place = run.place.clone();
    if saved.is_some() {
        // A saved plan names its project and env; only the server has to be found.
        place.files = Vec::new();
        place.variables = Default::default();
        place.allow_empty = false;
        place.project = None;
        place.env = None;
        return command(&place, None, &verb);
    }
    place.project = place.project.or_else(|| match loaded.project {
        Some(_) => None,
        None => Some(loaded.owner().project),
    });
    command(&place, run.only.as_ref(), &verb)
}
