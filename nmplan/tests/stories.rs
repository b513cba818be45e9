//! The stories of `examples/stories`: each is a folder of desired states, applied one after the other.
//!
//! Each state is valid, its plan equals the recorded one (so that a review shows what users read), it
//! applies, and a second plan is empty. Nodes have joined before the second state, so that plans show how
//! they are affected.
#![expect(clippy::unwrap_used, reason = "a test")]

mod workspace;

use std::path::PathBuf;

use schema::world::World;
use workspace::{Workspace, example, join};

fn sorted(folder: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn stem(path: &std::path::Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn every_story_is_planned_and_applied_state_by_state() {
    let stories = sorted(&example("stories"));
    assert!(!stories.is_empty());
    for story in stories {
        let workspace = Workspace::new(World { epoch: 7, ..World::default() });
        let mut plans = String::new();
        for (index, state) in sorted(&story.display().to_string()).iter().enumerate() {
            if index == 1 {
                join(&workspace.server, &[("gw", 1), ("db", 2), ("laptop", 3)]);
            }
            let file = state.display().to_string();
            let run = |verb: &str| workspace.nmplan(&format!("{verb} --project acme -f {file}"));
            assert_eq!(run("validate").exit, 0, "{file}");
            let plan = run("plan").all().replace(&file, "FILE");
            plans.push_str(&format!("=== {}\n\n{plan}\n\n", stem(state)));
            let applied = run("apply -y --keys-to @keys.json");
            assert_eq!(applied.exit, 0, "{file}: {}", applied.all());
            let again = run("plan --detailed-exitcode");
            assert_eq!(again.exit, 0, "{file}: a plan after the apply is empty: {}", again.all());
        }
        insta::assert_snapshot!(format!("story_{}", stem(&story)), plans);
    }
}
