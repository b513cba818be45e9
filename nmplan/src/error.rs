//! What a run ends with: the one mapping from failures to exit codes, and how they are told.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

use jiff::Timestamp;
use owo_colors::OwoColorize;
use schema::api::{LogEntry, Moved};
use schema::plan::FORMAT;
use schema::report::{Code, did_you_mean};
use schema::scalars::{Name, NetworkName, Seconds};
use schema::snapshot::Revision;

use crate::control::ControlError;
use crate::keys::KeysError;
use crate::lab::EnterError;
use crate::project::LoadError;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Any error.
    Failed,
    /// There are changes, and `--detailed-exitcode` asks.
    Changes,
    /// A rule refuses.
    Refused,
    /// What the plan touches has moved.
    Stale,
    /// An unconfirmed apply holds the network.
    Busy,
    /// Applied, then rolled back.
    RolledBack,
    /// Committed, but not acknowledged by every node in time.
    NotAcknowledged,
}

impl Exit {
    /// What the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Changes => 2,
            Self::Refused => 3,
            Self::Stale => 4,
            Self::Busy => 5,
            Self::RolledBack => 6,
            Self::NotAcknowledged => 7,
        }
    }
}

/// Why a run did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files cannot be looked at.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The files have problems, which were shown already.
    #[error("{}{}", problems(*.count), undone.map(|undone| format!(", so nothing was {undone}")).unwrap_or_default())]
    Problems {
        /// How many.
        count: usize,
        /// What was not done, where that was asked for.
        undone: Option<&'static str>,
    },
    /// The server did not do what it was asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The server has something that this version cannot read.
    #[error("the server has what this nmplan cannot read: {0}")]
    Version(String),
    /// A secret could not be made or kept.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// It was applied, and a secret was not kept.
    #[error("applied as revision {revision}, but {source}")]
    AfterCommit {
        /// The revision.
        revision: Revision,
        /// What went wrong.
        source: KeysError,
    },
    /// What the plan touches has moved.
    #[error("the plan is stale: what it touches has moved since it was made{}", moves(.0))]
    Stale(Vec<Moved>),
    /// The plan was carried out before.
    #[error("the plan was applied already, as revision {revision}, by {actor} on {}", crate::render::moment(*time))]
    AppliedBefore {
        /// The revision.
        revision: Revision,
        /// Who did.
        actor: String,
        /// When.
        time: Timestamp,
    },
    /// The plan is another than was expected.
    #[error("the plan is not the one that was expected\n  expected {expected}\n  it is    {found}{}", latest(.since))]
    Unexpected {
        /// The digest that was asked for.
        expected: String,
        /// The digest of the plan.
        found: String,
        /// The newest revisions.
        since: Vec<LogEntry>,
    },
    /// It is unknown whether the plan was carried out.
    #[error("it is unknown whether the server has applied the plan{}", tokens.as_ref().map(in_doubt).unwrap_or_default())]
    Unknown {
        /// The last failure.
        source: Box<ControlError>,
        /// What became of the tokens, where there are any.
        tokens: Option<Result<String, KeysError>>,
    },
    /// The server refused, and the tokens that were written for it could not be removed.
    #[error("{refusal}; the tokens that were written for it are worthless, but could not be removed")]
    NotTakenBack {
        /// Why the server refused.
        refusal: String,
        /// Why they are still there.
        source: KeysError,
    },
    /// Nobody can be asked.
    #[error("nobody can be asked whether to apply: this is no terminal")]
    NobodyToAsk {
        /// What would apply this plan.
        command: String,
    },
    /// Somebody was asked, and did not say yes.
    #[error("not applied")]
    Declined,
    /// The project has no name.
    #[error("the directory has no project file, so nothing says who manages what is applied")]
    NoProject,
    /// A saved plan cannot be used.
    #[error("{path} cannot be used as a saved plan: {why}")]
    PlanFile {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A saved plan is of another project or env than a flag says.
    #[error("{path} is of {flag} {is}, but --{flag} says {asked}")]
    OtherPlan {
        /// The file.
        path: String,
        /// The flag, without its hyphens.
        flag: &'static str,
        /// What the plan says.
        is: Name,
        /// What the flag says.
        asked: Name,
    },
    /// Two things were asked for that exclude each other.
    #[error("{0}")]
    Usage(&'static str),
    /// A file cannot be read or written.
    #[error("cannot {attempt} {path}")]
    File {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Nodes did not acknowledge in time.
    #[error("applied as revision {revision}, but within {wait} it was not acknowledged by {}", names(.nodes))]
    NotAcknowledged {
        /// The revision.
        revision: Revision,
        /// How long was waited.
        wait: Seconds,
        /// The nodes.
        nodes: Vec<String>,
    },
    /// There is no such network.
    #[error("no network is called {asked}")]
    UnknownNetwork {
        /// What was asked for.
        asked: NetworkName,
        /// The networks that there are.
        known: Vec<NetworkName>,
    },
    /// There is no such revision.
    #[error("the server has no revision {0}")]
    NoRevision(Revision),
    /// There is no such code.
    #[error("there is no problem code {0:?}")]
    NoCode(String),
    /// A file that would be made is there already.
    #[error("{0} is there already, and init overwrites nothing")]
    Exists(String),
    /// The lab could not be entered.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// The lab could not be built.
    #[error(transparent)]
    Lab(#[from] crate::lab::Error),
    /// No machine takes part.
    #[error("there is nothing to bring up: no network declares a node or an access key")]
    NothingToBringUp,
    /// Standard output did not take what was asked for.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

fn problems(count: usize) -> String {
    if count == 1 { "there is an error in the files".into() } else { format!("there are {count} errors in the files") }
}

/// What to think of tokens whose keys the server may have made.
fn in_doubt(delivered: &Result<String, KeysError>) -> String {
    match delivered {
        Ok(done) => format!("; the new tokens were {done}, and are worthless if it has not"),
        Err(error) => format!("; if it has, {error}"),
    }
}

fn moves(moved: &[Moved]) -> String {
    moved.iter().fold(String::new(), |mut text, Moved { id, revision, actor, time }| {
        let now = if revision.0 == 0 { "is gone".to_owned() } else { format!("is at revision {revision}") };
        let _ = write!(text, "\n  {id} {now}");
        if let (Some(actor), Some(time)) = (actor, time) {
            let _ = write!(text, ", by {actor} on {}", crate::render::moment(*time));
        }
        text
    })
}

fn latest(log: &[LogEntry]) -> String {
    let head = if log.is_empty() { "" } else { "\n  the newest revisions of the server:" };
    log.iter().fold(head.to_owned(), |mut text, entry| {
        let LogEntry { revision, time, actor, action, .. } = entry;
        let _ = write!(text, "\n    {revision}  {}  {action} by {actor}", crate::render::moment(*time));
        text
    })
}

fn names(nodes: &[String]) -> String {
    let shown = nodes.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
    if nodes.len() > 10 { format!("{shown} and {} more", nodes.len() - 10) } else { shown }
}

impl Error {
    /// How the run ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Stale(_) | Self::AppliedBefore { .. } | Self::Unexpected { .. } => Exit::Stale,
            Self::NotAcknowledged { .. } => Exit::NotAcknowledged,
            Self::Control(ControlError::Refused { failure, .. }) => match failure.code.as_str() {
                "stale" => Exit::Stale,
                "busy" => Exit::Busy,
                _ => Exit::Failed,
            },
            Self::Control(_)
            | Self::Load(_)
            | Self::Problems { .. }
            | Self::Version(_)
            | Self::Keys(_)
            | Self::AfterCommit { .. }
            | Self::Unknown { .. }
            | Self::NotTakenBack { .. }
            | Self::NobodyToAsk { .. }
            | Self::Declined
            | Self::NoProject
            | Self::PlanFile { .. }
            | Self::OtherPlan { .. }
            | Self::Usage(_)
            | Self::File { .. }
            | Self::UnknownNetwork { .. }
            | Self::NoRevision(_)
            | Self::NoCode(_)
            | Self::Exists(_)
            | Self::Enter(_)
            | Self::Lab(_)
            | Self::NothingToBringUp
            | Self::Output(_) => Exit::Failed,
        }
    }

    /// What to type next.
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::Load(error) => return error.help(),
            Self::Control(error) => return error.help(),
            Self::Keys(error) | Self::AfterCommit { source: error, .. } => return error.help(),
            Self::Stale(_) | Self::Unexpected { .. } => "look at a new plan:\n\n    nmplan plan".into(),
            Self::Unknown { tokens, .. } => {
                let lost = tokens.as_ref().and_then(|tokens| tokens.as_ref().err()?.help());
                let lost = lost.map(|help| format!("\n\n  If they are, {help}")).unwrap_or_default();
                format!("see whether the changes are there:\n\n    nmplan plan{lost}")
            }
            Self::NobodyToAsk { command } => format!("name the plan that was reviewed, or say -y:\n\n    {command}"),
            Self::NoProject => {
                "give the project a name with --project NAME, or make a project file with `nmplan init`".into()
            }
            Self::PlanFile { .. } => "make a new one:\n\n    nmplan plan --out FILE".into(),
            Self::OtherPlan { flag, .. } => format!("leave --{flag} away, or name another plan"),
            Self::Version(_) => "use the nmplan of the server's version".into(),
            Self::NotAcknowledged { .. } => "the change holds; see how the nodes are:\n\n    nmplan status".into(),
            Self::UnknownNetwork { known, .. } if known.is_empty() => "there is none yet".into(),
            Self::UnknownNetwork { asked, known } => {
                let names = || known.iter().map(NetworkName::as_str);
                let all = || format!("there are: {}", names().collect::<Vec<_>>().join(", "));
                did_you_mean(asked.as_str(), names()).unwrap_or_else(all)
            }
            Self::NoRevision(_) => "`nmplan status` tells the newest".into(),
            Self::NoCode(asked) => {
                let near = did_you_mean(asked, Code::ALL.iter().map(|code| code.name()));
                near.unwrap_or_else(|| "`nmplan explain` lists them".into())
            }
            Self::Enter(error) => return error.help().map(str::to_owned),
            Self::NothingToBringUp => "declare one: node \"db-1\" in a network".into(),
            Self::AppliedBefore { revision, .. } => format!("see what it changed:\n\n    nmplan show {revision}"),
            Self::Problems { .. } => "`nmplan explain CODE` tells more about a code".into(),
            Self::NotTakenBack { .. }
            | Self::Declined
            | Self::Usage(_)
            | Self::File { .. }
            | Self::Exists(_)
            | Self::Lab(_)
            | Self::Output(_) => return None,
        };
        Some(text)
    }

    /// The error with what it comes from and what to do, for people.
    pub fn tell(&self) -> String {
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return String::new();
        }
        let mut text = format!("{} {self}\n", "error:".red().bold());
        if let Self::Control(ControlError::Refused { failure, .. }) = self {
            for problem in &failure.problems {
                let _ = writeln!(text, "  {} ({})", problem.message, problem.code);
            }
        }
        let mut root = self.source();
        while let Some(deeper) = root.and_then(|cause| cause.source()) {
            root = Some(deeper);
        }
        let root = root.map(ToString::to_string);
        if let Some(root) = root.filter(|root| !self.to_string().contains(root)) {
            let _ = writeln!(text, "  {} {root}", "because:".bold());
        }
        if let Some(help) = self.help() {
            let _ = writeln!(text, "  {} {help}", "help:".cyan().bold());
        }
        text
    }
}

/// Why a text is no saved plan of this version.
pub fn wrong_format(format: &str) -> String {
    format!("it is of format {format}, and this nmplan reads {FORMAT}")
}

#[cfg(test)]
mod tests {
    use schema::api::Failure;

    use super::*;

    fn refused(code: &str, status: u16) -> Error {
        let (kind, title, detail) = ("about:blank".into(), code.into(), "no".into());
        let failure = Failure { kind, title, status, code: code.into(), detail, problems: vec![], moved: vec![] };
        Error::Control(ControlError::Refused { server: "https://nm.example.net".into(), failure: Box::new(failure) })
    }

    #[test]
    fn exit_codes_are_those_of_the_reference() {
        let table = [
            (Exit::Done, 0),
            (Exit::Failed, 1),
            (Exit::Changes, 2),
            (Exit::Refused, 3),
            (Exit::Stale, 4),
            (Exit::Busy, 5),
            (Exit::RolledBack, 6),
            (Exit::NotAcknowledged, 7),
        ];
        for (exit, code) in table {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }

    #[test]
    fn each_failure_ends_with_its_exit_code() {
        let unexpected = Error::Unexpected { expected: "a".into(), found: "b".into(), since: vec![] };
        let late = Error::NotAcknowledged { revision: Revision(1), wait: Seconds(60), nodes: vec!["a/node/b".into()] };
        let table = [
            (Error::Problems { count: 1, undone: Some("applied") }, 1),
            (Error::Control(ControlError::NoServer), 1),
            (Error::Keys(KeysError::NoSink(vec![])), 1),
            (Error::NobodyToAsk { command: "nmplan apply -y".into() }, 1),
            (Error::Declined, 1),
            (refused("unauthenticated", 401), 1),
            (refused("denied", 403), 1),
            (refused("rules", 422), 1),
            (refused("stale", 412), 4),
            (Error::Stale(vec![]), 4),
            (unexpected, 4),
            (refused("busy", 409), 5),
            (late, 7),
        ];
        for (error, code) in table {
            assert_eq!(error.exit().code(), code, "{error}");
        }
    }
}
