//! `nmplan test`: judges what tests assert, from the files alone.

use schema::judge;
use schema::kinds;
use schema::snapshot::{ResourceId, Snapshot};

use super::Run;
use crate::args;
use crate::control::ControlPlane;
use crate::error::{Error, Exit};
use crate::events;
use crate::render;

/// Judges the tests, or those of one name.
pub fn run<C: ControlPlane>(args: &args::Test, run: &mut Run<'_, C>) -> Result<Exit, Error> {
    if run.console.json {
        run.console.event(&events::version())?;
    }
    let loaded = run.load_without_server(Some("judged"))?;
    run.check_network(super::networks(&loaded.declared.snapshot).collect())?;
    if let Some(asked) = &args.test {
        check_name(asked, &loaded.declared.snapshot)?;
    }
    let verdicts =
        run.judge_files(&loaded, |id| args.test.as_ref().is_none_or(|asked| is_called(id, asked)))?;
    let (hold, tests) = judge::tally(&verdicts);
    if !run.console.json {
        let text = render::verdicts(&verdicts) + &format!("{}.\n", render::tests_hold(hold, tests));
        run.console.stdout(&text)?;
    }
    if hold < tests { Err(Error::TestsFail(tests - hold)) } else { Ok(Exit::Done) }
}

/// Whether a test is called so: by its name, with its network, or by its id.
fn is_called(id: &ResourceId, asked: &str) -> bool {
    asked == id.name.as_str() || asked == id.to_string() || asked == format!("{}/{}", id.network, id.name)
}

fn check_name(asked: &str, declared: &Snapshot) -> Result<(), Error> {
    let networks = declared.networks().map(|(network, _)| network);
    let tests = networks.flat_map(|network| declared.all_in::<kinds::Test>(network)).map(|(id, _)| id);
    let tests: Vec<_> = tests.collect();
    if tests.iter().any(|id| is_called(id, asked)) {
        return Ok(());
    }
    Err(Error::NoTest { asked: asked.to_owned(), known: tests.iter().map(ToString::to_string).collect() })
}
