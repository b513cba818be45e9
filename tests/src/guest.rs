//! Jobs for a guest: our programs, and what runs with them.

use std::path::PathBuf;
use std::time::Duration;

use nmplan::lab::Programs;
use vm::Job;

/// Where the programs are in the guest; tests and benchmarks are one directory below them, where they look for
/// them.
pub const PROGRAMS: &str = "/usr/lib/nm";

/// Whether this process runs in a guest.
pub fn inside() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|parameters| vm::is_guest(&parameters))
}

/// Returns a job that has the programs, the examples and further files. Environment variables are passed on by
/// their names, as far as they are set.
///
/// # Panics
///
/// When the programs have not been built.
pub fn job(
    command: Vec<String>,
    further: Vec<(PathBuf, PathBuf)>,
    passed_on: &[&str],
    limit: Duration,
) -> Job {
    let found = Programs::find().expect("the programs are built");
    let programs = [found.nmserver, found.netclient, found.nmplan].into_iter().map(|program| {
        let name = program.file_name().expect("a program has a name").to_owned();
        (program, PathBuf::from(PROGRAMS).join(name))
    });
    // Tests find the examples by the path of this crate.
    let crate_folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let same = [crate_folder.with_file_name("examples"), crate_folder.join("Cargo.toml")];
    let same = same.into_iter().map(|path| (path.clone(), path));
    let environment = passed_on.iter().filter_map(|&name| Some((name.to_owned(), std::env::var(name).ok()?)));
    Job {
        command,
        environment: environment.collect(),
        files: programs.chain(same).chain(further).collect(),
        limit,
    }
}
