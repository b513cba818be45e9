//! Where are the programs that the lab runs?

use std::path::{Path, PathBuf};

use super::{Error, system};

/// The programs that the lab runs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The control plane.
    pub nmserver: PathBuf,
    /// The agent.
    pub netclient: PathBuf,
    /// The reconciler.
    pub nmplan: PathBuf,
}

impl Programs {
    /// Finds them next to the running program (a test is one directory below them), then in `PATH`.
    ///
    /// # Errors
    ///
    /// [`Error::Program`] for the first that is missing.
    pub fn find() -> Result<Self, Error> {
        let own = std::env::current_exe().map_err(system("find its own program"))?;
        let nearby = own.ancestors().skip(1).take(2).map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = nearby.chain(std::env::split_paths(&path)).collect();
        let find = |name: &'static str| {
            let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
            found.ok_or(Error::Program(name))
        };
        Ok(Self { nmserver: find("nmserver")?, netclient: find("netclient")?, nmplan: find("nmplan")? })
    }
}
