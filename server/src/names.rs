//! Files for a name server, in a folder of the data directory (`DNS_MODE`): a thin shell around
//! [`core::name_files`](crate::core::name_files), which decides what they hold.
//!
//! A pass reads the folder and does what is left to do, each file whole or not at all. There is one at the
//! start, so that a CoreDNS can start, one after each change of the world, at most one a second, and one each
//! minute, since others may have removed a file. Whatever fails is logged once, keeps nothing else from being
//! done, and is tried again by the next pass: the server goes on without.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use netclient::agent::error_chain;
use netclient::files::{self, Exposed};
use schema::text::word;
use tokio::sync::watch;

use crate::config::Settings;
use crate::core::name_files::{self, COREFILE, Forward, Found, Pass, Step, Wanted};
use crate::state::State;

/// The folder of the files.
pub const FOLDER: &str = "dns";
/// The mode of the folder, and of the data directory around it: a name server is a user of its own.
const FOLDER_MODE: u32 = 0o755;
const PASSED_THROUGH: u32 = 0o711;
/// What others may do in the folder.
const READ: u32 = 0o055;
/// The mode of the files.
const FILE_MODE: u32 = 0o644;
/// The least time between two passes: serials are seconds, so that they keep up with the clock.
const PACE: Duration = Duration::from_secs(1);
/// How long nothing may change before the folder is looked at all the same.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The files for a name server.
#[derive(Debug)]
pub struct NameFiles {
    data_dir: PathBuf,
    folder: PathBuf,
    forward: Forward,
    /// What went wrong in the last pass, by file.
    failures: BTreeMap<PathBuf, String>,
}

impl NameFiles {
    /// The files of a server with these settings; absent: it writes none, which is logged.
    pub fn of(settings: &Settings) -> Option<Self> {
        if !settings.dns_mode {
            let folder = settings.data_dir.join(FOLDER);
            tracing::info!(
                folder = %folder.display(),
                "DNS_MODE is off: no files for a name server are written; what is in the folder stays as it is"
            );
            return None;
        }
        // Where CoreDNS looks for them does not depend on where it is started.
        let data_dir = std::path::absolute(&settings.data_dir).unwrap_or_else(|_| settings.data_dir.clone());
        let folder = data_dir.join(FOLDER);
        Some(Self { data_dir, folder, forward: settings.dns_forward.clone(), failures: BTreeMap::new() })
    }

    /// Makes the files say what holds now. Blocks the caller.
    pub fn pass(&mut self, state: &State, now: Timestamp) {
        let mut failures = BTreeMap::new();
        if let Err((path, why)) = self.try_pass(state, now, &mut failures) {
            failures.insert(path, why);
        }
        for (path, why) in &failures {
            if self.failures.get(path) != Some(why) {
                tracing::warn!(path = %path.display(), why, "names for a name server are not as they should be");
            }
        }
        if failures.is_empty() && !self.failures.is_empty() {
            tracing::info!(folder = %self.folder.display(), "the files for a name server are as they should be");
        }
        self.failures = failures;
    }

    fn try_pass(
        &self,
        state: &State,
        now: Timestamp,
        failures: &mut BTreeMap<PathBuf, String>,
    ) -> Result<(), (PathBuf, String)> {
        let failed = |path: &Path, why: String| (path.to_owned(), why);
        self.prepare().map_err(|error| failed(&self.folder, format!("cannot make the folder: {error}")))?;
        files::check_folder(&self.folder, READ).map_err(|error| failed(&self.folder, exposed(&error)))?;
        let found = self.found().map_err(|error| failed(&self.folder, format!("cannot read it: {error}")))?;
        let forward = self.forward.names(|path| fs::read_to_string(path).ok()).unwrap_or_else(|why| {
            failures.insert(self.folder.join(COREFILE), why);
            Vec::new()
        });
        let meshes: Vec<_> = state.meshes().map(|mesh| &**mesh).collect();
        let declared = &state.world.snapshot;
        let wanted = Wanted { declared, meshes: &meshes, folder: &self.folder, forward: &forward };
        let Pass { steps, foreign } = name_files::pass(&found, &wanted, now);
        failures.extend(foreign.into_iter().map(|(file, why)| (self.folder.join(file), why)));
        let mut complete = true;
        for step in steps {
            let (file, done) = match step {
                Step::Write(file, text) => {
                    let path = self.folder.join(file);
                    let written = files::write_whole(&path, text.as_bytes(), FILE_MODE);
                    (path, written.map_err(|error| format!("cannot write it: {error}")))
                }
                // A Corefile that could not be written may name it.
                Step::Remove(_) if !complete => continue,
                Step::Remove(file) => {
                    let path = self.folder.join(file);
                    let removed = files::remove(&path);
                    (path, removed.map_err(|error| format!("cannot remove it: {error}")))
                }
            };
            if let Err(why) = done {
                complete = false;
                failures.insert(file, why);
            }
        }
        Ok(())
    }

    /// Makes the folder if there is none, and lets others pass through to it. Modes that somebody set later stay.
    /// It has its name once all is done, so that whatever is interrupted is done again.
    fn prepare(&self) -> io::Result<()> {
        if fs::symlink_metadata(&self.folder).is_ok() {
            return Ok(());
        }
        fs::set_permissions(&self.data_dir, Permissions::from_mode(PASSED_THROUGH))?;
        let unfinished = self.folder.with_extension(files::NEW);
        match DirBuilder::new().mode(FOLDER_MODE).create(&unfinished) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        // Whatever the umask of this process leaves of it.
        fs::set_permissions(&unfinished, Permissions::from_mode(FOLDER_MODE))?;
        fs::rename(&unfinished, &self.folder)
    }

    /// The files in the folder that may be nmserver's.
    fn found(&self) -> io::Result<BTreeMap<String, Found>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name_files::is_unfinished(&name) {
                found.insert(name, Found::Unfinished);
                continue;
            }
            if !name_files::is_name_of_one(&name) {
                continue;
            }
            match files::read(&entry.path(), true) {
                Ok(Some(bytes)) => drop(found.insert(name, name_files::read(&bytes))),
                // It went meanwhile.
                Ok(None) => {}
                Err(why) => drop(found.insert(name, Found::Foreign(error_chain(&why)))),
            }
        }
        Ok(found)
    }
}

/// Why the folder is not safe to write in.
fn exposed(error: &Exposed) -> String {
    match error {
        Exposed::Open { path, mode, wanted: _ } => {
            let path = word(&path.display().to_string());
            format!("other users may write in it (mode {mode:04o}); close it: chmod {FOLDER_MODE:04o} {path}")
        }
        Exposed::Foreign { .. } | Exposed::NotRegular(_) | Exposed::Unreadable { .. } => error_chain(error),
    }
}

/// Keeps the files as they should be until `shutdown` becomes true.
pub async fn run(
    mut files: NameFiles,
    mut states: watch::Receiver<Arc<State>>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        let end = tokio::select! {
            _ = shutdown.wait_for(|end| *end) => true,
            _ = states.changed() => false,
            () = tokio::time::sleep(LOOK_AGAIN) => false,
        };
        // What was committed last is written at the end as well.
        let state = states.borrow_and_update().clone();
        let pass = move || {
            files.pass(&state, Timestamp::now());
            files
        };
        match tokio::task::spawn_blocking(pass).await {
            Ok(back) if !end => files = back,
            // It is the end, or the pass panicked, which the log says.
            Ok(_) | Err(_) => return,
        }
        let _ = tokio::time::timeout(PACE, shutdown.wait_for(|end| *end)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::name_files::HOSTS;

    #[test]
    fn what_is_lost_damaged_or_half_written_is_as_it_should_be_after_the_next_pass() {
        let directory = tempfile::tempdir().expect("a directory");
        let data_dir = directory.path().to_owned();
        let folder = data_dir.join(FOLDER);
        let mut files = NameFiles {
            data_dir,
            folder: folder.clone(),
            forward: Forward::Nobody,
            failures: BTreeMap::new(),
        };
        let mut pass = || {
            files.pass(&State::default(), Timestamp::now());
            files.failures.clone()
        };
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        let read = |file: &str| fs::read_to_string(folder.join(file)).expect("it is there");
        // One that was killed before it had made the folder.
        fs::create_dir(folder.with_extension(files::NEW)).expect("made");
        assert_eq!(pass(), BTreeMap::new());
        let corefile = read(COREFILE);
        assert_eq!((mode(&folder), mode(&folder.join(COREFILE))), (FOLDER_MODE, FILE_MODE));
        assert_eq!(mode(directory.path()), PASSED_THROUGH);
        fs::remove_file(folder.join(HOSTS)).expect("removed");
        let first = corefile.lines().next().expect("it has lines");
        fs::write(folder.join(COREFILE), format!("{first}\n. {{")).expect("written");
        let half = folder.join(format!("corp.zone.{}", files::NEW));
        fs::write(&half, "$ORIGIN").expect("written");
        assert_eq!(pass(), BTreeMap::new());
        assert!(read(COREFILE) == corefile && !half.exists() && folder.join(HOSTS).exists());
        fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(pass(), BTreeMap::new());
        assert_eq!(read(COREFILE), corefile);
        // A link that somebody left there is neither followed nor replaced.
        fs::remove_file(folder.join(HOSTS)).expect("removed");
        std::os::unix::fs::symlink("/etc/hosts", folder.join(HOSTS)).expect("linked");
        let failures = pass();
        assert!(failures[&folder.join(HOSTS)].contains("not a regular file"), "{failures:?}");
        assert!(fs::symlink_metadata(folder.join(HOSTS)).expect("it is there").is_symlink());
    }
}
