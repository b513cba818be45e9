//! How is a host of a lab entered that stays?
//!
//! A lab that stays keeps a list of its hosts on its own `/run`, so nothing outlives it. From outside, [`find`] reads
//! such lists through the processes of labs (`/proc/PID/root`), which whoever started a lab may. Which host is meant
//! is decided by [`choose`], which is pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use schema::report::did_you_mean;
use serde::{Deserialize, Serialize};

use super::{DIRECTORY, Error, Host, outside_pid, system};

/// The list's name in the lab's directory.
const FILE: &str = "kept.json";

/// A lab that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The number, outside, of the process that keeps it.
    pub pid: u32,
    /// The directory of the files that it was made of.
    pub directory: PathBuf,
    /// Its hosts.
    pub hosts: Vec<KeptHost>,
}

/// A host of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptHost {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The command that runs another inside, less that other one: words without blanks.
    pub command: String,
}

/// Why no host can be entered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// There is no lab.
    #[error("there is no lab to enter{}", place(.0.as_deref()))]
    NoLab(Option<PathBuf>),
    /// There are several.
    #[error("there are several labs to enter, with the files in {}", list(.0))]
    Several(Vec<String>),
    /// It has no such host.
    #[error("the lab has no host {asked:?}; it has {}", list(.known))]
    NoHost {
        /// What was asked for.
        asked: String,
        /// The names of its hosts.
        known: Vec<String>,
    },
}

impl NotKept {
    /// What to type next.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoLab(_) => Some("start one, as the same user: nmplan lab DIR --keep".into()),
            Self::Several(_) => {
                Some("name the directory, nmplan lab DIR --enter HOST, or end the others with Ctrl-C".into())
            }
            Self::NoHost { asked, known } => did_you_mean(asked, known.iter().map(String::as_str)),
        }
    }
}

fn place(directory: Option<&Path>) -> String {
    directory.map(|it| format!(" with the files in {}", it.display())).unwrap_or_default()
}

fn list(words: &[String]) -> String {
    words.join(", ")
}

impl Kept {
    /// The lab of this process.
    pub fn new(directory: &Path, hosts: &[(&Host, Vec<IpAddr>)]) -> Self {
        let host = |(host, addresses): &(&Host, Vec<IpAddr>)| KeptHost {
            name: host.name().to_owned(),
            addresses: addresses.clone(),
            command: host.how_to_enter(),
        };
        let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        Self { pid: outside_pid().unwrap_or(0), directory, hosts: hosts.iter().map(host).collect() }
    }

    /// Makes it known to [`find`], until the lab ends.
    ///
    /// # Errors
    ///
    /// When the list cannot be written.
    pub fn announce(&self) -> Result<(), Error> {
        let text = serde_json::to_string(self).expect("a list can be written as JSON");
        // Under its name it is whole.
        let (new, file) = (Path::new(DIRECTORY).join("kept.new"), Path::new(DIRECTORY).join(FILE));
        let failed = || system("write the list of its hosts");
        std::fs::write(&new, text).map_err(failed())?;
        std::fs::rename(&new, &file).map_err(failed())
    }
}

/// The labs that stay and that this process may enter.
pub fn find() -> Vec<Kept> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let labs = numbers.filter_map(|pid| {
        let path = format!("/proc/{pid}/root{DIRECTORY}/{FILE}");
        let kept: Kept = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        // Every process of a lab sees the list.
        (kept.pid == pid).then_some(kept)
    });
    labs.collect()
}

/// The command that enters a host, named by its name or one of its addresses: of the lab with the files in
/// `directory`; absent: of the one that has `here`, or else of the only one.
///
/// # Errors
///
/// When there is none, or not only one.
pub fn choose<'a>(
    labs: &'a [Kept],
    directory: Option<&Path>,
    here: &Path,
    host: &str,
) -> Result<&'a str, NotKept> {
    let of = |wanted: &Path| labs.iter().filter(|lab| lab.directory == wanted).collect::<Vec<_>>();
    let meant = match directory {
        Some(directory) => of(directory),
        None => Some(of(here)).filter(|labs| !labs.is_empty()).unwrap_or_else(|| labs.iter().collect()),
    };
    let lab = match &*meant {
        [] => return Err(NotKept::NoLab(directory.map(Path::to_owned))),
        [lab] => lab,
        several => {
            let directories: BTreeSet<_> =
                several.iter().map(|lab| lab.directory.display().to_string()).collect();
            return Err(NotKept::Several(directories.into_iter().collect()));
        }
    };
    let is_meant =
        |it: &&KeptHost| it.name == host || it.addresses.iter().any(|address| address.to_string() == host);
    let found = lab.hosts.iter().find(is_meant).map(|it| &*it.command);
    let known = || lab.hosts.iter().map(|it| it.name.clone()).collect();
    found.ok_or_else(|| NotKept::NoHost { asked: host.to_owned(), known: known() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(directory: &str, hosts: &[&str]) -> Kept {
        let host = |name: &&str| KeptHost {
            name: (*name).to_owned(),
            addresses: vec!["10.0.0.7".parse().expect("an address")],
            command: format!("nsenter {directory} {name}"),
        };
        Kept { pid: 7, directory: directory.into(), hosts: hosts.iter().map(host).collect() }
    }

    fn chosen(labs: &[Kept], directory: Option<&str>, here: &str, host: &str) -> Result<String, String> {
        let chosen = choose(labs, directory.map(Path::new), Path::new(here), host);
        chosen.map(ToOwned::to_owned).map_err(|error| error.to_string())
    }

    #[test]
    fn a_host_is_found_by_name_or_address_in_the_lab_that_is_meant() {
        let labs = [lab("/a", &["db-1", "web-1"]), lab("/b", &["db-1"])];
        assert_eq!(chosen(&labs, Some("/a"), "/", "web-1"), Ok("nsenter /a web-1".into()));
        assert_eq!(chosen(&labs, None, "/b", "db-1"), Ok("nsenter /b db-1".into()));
        assert_eq!(chosen(&labs[1..], None, "/elsewhere", "10.0.0.7"), Ok("nsenter /b db-1".into()));
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        let labs = [lab("/a", &["db-1", "web-1"]), lab("/b", &["db-1"])];
        let refused = |directory, host| chosen(&labs, directory, "/", host).expect_err("there is none");
        assert_eq!(refused(Some("/c"), "db-1"), "there is no lab to enter with the files in /c");
        assert_eq!(refused(None, "db-1"), "there are several labs to enter, with the files in /a, /b");
        assert_eq!(refused(Some("/a"), "web-2"), "the lab has no host \"web-2\"; it has db-1, web-1");
        let error = choose(&labs, Some(Path::new("/a")), Path::new("/"), "web-2").expect_err("there is none");
        assert!(error.help().is_some_and(|help| help.contains("web-1")));
    }
}
