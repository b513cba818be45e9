//! How a run ends: the one mapping from failures to exit codes, and their text for people.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

use jiff::Timestamp;
use owo_colors::OwoColorize;
use schema::api::{LogEntry, Moved};
use schema::guard::Guard;
use schema::judge::explain::Unresolved;
use schema::lookup::Unfound;
use schema::plan::FORMAT;
use schema::report::{Code, did_you_mean};
use schema::scalars::{Name, NetworkName, Seconds};
use schema::snapshot::{ResourceId, Revision};

use crate::client::ClientError;
use crate::control::ControlError;
use crate::keys::KeysError;
use crate::lab::EnterError;
use crate::lab::kept::NotKept;
use crate::project::LoadError;

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Any error.
    Failed,
    /// There are changes, and `--detailed-exitcode` is set.
    Changes,
    /// Refused by a rule.
    Refused,
    /// Resources that the plan depends on have changed since it was made.
    Stale,
    /// An unconfirmed apply holds the network.
    Busy,
    /// Applied, then rolled back.
    RolledBack,
    /// Committed, but not acknowledged by every node in time.
    NotAcknowledged,
}

impl Exit {
    /// The exit code of the process.
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

/// What to type if it is unknown whether a plan was applied.
#[derive(Debug)]
pub struct Next {
    /// The command that shows what was applied.
    pub history: String,
    /// The command that applies the plan, if it was not.
    pub again: String,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The files have problems, which have been shown.
    #[error("{}{}", problems(*.count), undone.map(|undone| format!(", so nothing was {undone}")).unwrap_or_default())]
    Problems {
        /// How many.
        count: usize,
        /// What was not done because of them, if anything was asked for.
        undone: Option<&'static str>,
    },
    /// Rules refuse the plan; what they refuse has been shown.
    #[error("refused by the rule {}", .by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Guarded {
        /// The rules.
        by: BTreeSet<Guard>,
    },
    /// Tests in the files fail, which has been shown.
    #[error("{}", tests_fail(*.0))]
    TestsFail(u64),
    /// There is no such test.
    #[error("there is no test {asked}")]
    NoTest {
        /// What was asked for.
        asked: String,
        /// The tests that there are.
        known: Vec<String>,
    },
    /// Who is asked for cannot be understood.
    #[error("{asked:?} is neither a member nor a range: {why}")]
    NotAsked {
        /// What was asked for.
        asked: String,
        /// What is wrong with it.
        why: String,
    },
    /// Who is asked for is in no network, or in several.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// A call to the server failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The server has something that this version cannot read.
    #[error("the server has data that this nmplan cannot read: {0}")]
    Version(String),
    /// A secret could not be created or stored.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The plan was applied, and a secret was not stored.
    #[error("applied as revision {revision}, but {source}")]
    AfterCommit {
        /// The revision.
        revision: Revision,
        /// What went wrong.
        source: KeysError,
    },
    /// Resources that the plan depends on have changed.
    #[error("the plan is stale: resources that it depends on have changed since it was made{}", moves(.0))]
    Stale(Vec<Moved>),
    /// The plan was carried out before, and the server has its result. `apply` ends well with it.
    #[error("the plan has already been applied, as revision {revision}, by {actor} on {}", schema::text::moment(*time))]
    AppliedBefore {
        /// The revision.
        revision: Revision,
        /// Who applied it.
        actor: String,
        /// When.
        time: Timestamp,
    },
    /// The plan was carried out before, and what it did is no longer there.
    #[error(
        "the plan was applied as revision {revision}, by {actor} on {}, and what it did has been undone since; a plan is \
         carried out once",
        schema::text::moment(*time)
    )]
    Undone {
        /// The revision.
        revision: Revision,
        /// Who applied it.
        actor: String,
        /// When.
        time: Timestamp,
    },
    /// The plan is not the expected one.
    #[error("the plan is not the expected one\n  expected {expected}\n  actual   {found}{}", latest(.since))]
    Unexpected {
        /// The digest that was asked for.
        expected: String,
        /// The digest of the plan.
        found: String,
        /// The newest revisions.
        since: Vec<LogEntry>,
    },
    /// It is unknown whether the plan was carried out.
    #[error("it is unknown whether the server applied the plan{}", tokens.as_ref().map(in_doubt).unwrap_or_default())]
    Unknown {
        /// The last failure.
        source: Box<ControlError>,
        /// Whether the tokens were delivered, if there are any.
        tokens: Option<Result<String, KeysError>>,
        /// What to type next.
        next: Box<Next>,
    },
    /// The run was interrupted before anything was sent.
    #[error("interrupted")]
    Interrupted,
    /// The plan was applied, or a node removed or let in again, and what happened could not be printed.
    #[error("applied as revision {revision}, but standard output cannot be written")]
    Unreported {
        /// The revision.
        revision: Revision,
        /// Why.
        source: io::Error,
    },
    /// The plan was applied, and the server no longer reports the state of the nodes.
    #[error("applied as revision {revision}, but it is unknown which nodes have acknowledged it")]
    Unwatched {
        /// The revision.
        revision: Revision,
        /// Why.
        source: ControlError,
    },
    /// The plan was applied, and the run was interrupted while it waited for nodes.
    #[error("applied as revision {revision}, but interrupted before it was acknowledged by {}", names(.nodes))]
    NotAwaited {
        /// The revision.
        revision: Revision,
        /// The nodes.
        nodes: Vec<String>,
    },
    /// The server refused, and the tokens that were written for it could not be removed.
    #[error("{refusal}; the tokens that were written for it are not valid, but could not be removed")]
    NotTakenBack {
        /// Why the server refused.
        refusal: String,
        /// Why they are still there.
        source: KeysError,
    },
    /// There is no terminal to ask on.
    #[error("the plan needs approval, and there is no terminal to ask on")]
    NobodyToAsk {
        /// What would apply this plan.
        command: String,
    },
    /// The answer was not `yes`.
    #[error("the answer was not `yes`")]
    Declined,
    /// The removal of a node was not approved.
    #[error(
        "nothing was removed: {}",
        if command.is_some() { "that needs approval, and there is no terminal to ask on" } else { "the answer was not `yes`" }
    )]
    RemovalNotApproved {
        /// What would remove it, if nobody could be asked.
        command: Option<String>,
    },
    /// Letting a host in was not approved.
    #[error(
        "nobody was let in: {}",
        if command.is_some() { "that needs the fingerprint of the host and -y where there is no terminal to ask on" }
        else { "the answer was not `yes`" }
    )]
    NotLetIn {
        /// What would let it in, if nobody could be asked.
        command: Option<String>,
    },
    /// No host waits under that name.
    #[error("no host waits to be let in as {asked}")]
    NobodyWaits {
        /// The node, as network/name.
        asked: String,
        /// The nodes that hosts wait to be.
        known: Vec<String>,
    },
    /// Several hosts wait under that name.
    #[error("{} hosts wait to be let in as {asked}", .fingerprints.len())]
    SeveralWait {
        /// The node, as network/name.
        asked: String,
        /// The fingerprint of each.
        fingerprints: Vec<String>,
    },
    /// A host has joined as that node, and others wait under its name.
    #[error("{asked} is a node, and a host that waits asks for the same name")]
    AlsoWaits {
        /// The node, as network/name.
        asked: String,
        /// The fingerprint of the node.
        node: String,
        /// The fingerprint of each that waits.
        waiting: Vec<String>,
    },
    /// No host has joined as that node.
    #[error(
        "{}",
        if *declared { format!("{asked} is declared, but no host has joined as it, so there is nothing to remove") }
        else { format!("there is no node {asked}") }
    )]
    NotJoined {
        /// The node, as network/name.
        asked: String,
        /// Whether it is declared.
        declared: bool,
        /// The nodes that have joined.
        known: Vec<String>,
    },
    /// The configuration of an external client could not be written.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The project has no name.
    #[error(
        "the directory has no project file, and an apply needs the name of the project that manages the resources"
    )]
    NoProject,
    /// A saved plan cannot be used.
    #[error("{path} is not a usable saved plan: {why}")]
    PlanFile {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A saved plan belongs to another project or env than a flag names.
    #[error("{path} belongs to {flag} {is}, but --{flag} is {asked}")]
    OtherPlan {
        /// The file.
        path: String,
        /// The flag, without its hyphens.
        flag: &'static str,
        /// The plan's.
        is: Name,
        /// The flag's.
        asked: Name,
    },
    /// Flags exclude each other.
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
    #[error("applied as revision {revision}, but not acknowledged within {wait} by {}", names(.nodes))]
    NotAcknowledged {
        /// The revision.
        revision: Revision,
        /// How long was waited.
        wait: Seconds,
        /// The nodes.
        nodes: Vec<String>,
    },
    /// There is no such network.
    #[error("there is no network {asked}")]
    UnknownNetwork {
        /// What was asked for.
        asked: NetworkName,
        /// The networks that there are.
        known: Vec<NetworkName>,
    },
    /// Nothing on the server, or several things, are called what was typed.
    #[error("{}", unfound_text(asked, *file, unfound))]
    Unfound {
        /// What was typed.
        asked: String,
        /// Whether it might have been a file.
        file: bool,
        /// What became of it.
        unfound: Unfound,
    },
    /// A resource has no state.
    #[error("{0} has no state: it is what is declared")]
    NoStatus(ResourceId),
    /// What was typed is in another network than the one that was chosen, or in several others.
    #[error("network {only} has nothing of the name {asked:?}: it is {}", named(meant))]
    Elsewhere {
        /// What was typed.
        asked: String,
        /// The network of `--network`.
        only: NetworkName,
        /// What is called that.
        meant: Vec<ResourceId>,
    },
    /// There is no such revision, or it is none of the networks of the token.
    #[error("the server has no revision {asked}: the newest is {newest}")]
    NoRevision {
        /// What was asked for.
        asked: Revision,
        /// The newest revision of the server.
        newest: Revision,
    },
    /// There is no such code.
    #[error("there is no problem code {0:?}")]
    NoCode(String),
    /// A file that would be created exists.
    #[error("{0} exists, and init overwrites nothing")]
    Exists(String),
    /// The lab could not be entered.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// The lab could not be built.
    #[error(transparent)]
    Lab(#[from] crate::lab::Error),
    /// No host of a lab can be entered.
    #[error(transparent)]
    NotKept(#[from] NotKept),
    /// There are no nodes to bring up.
    #[error("there is nothing to bring up: no network declares a node or an access key")]
    NothingToBringUp,
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

fn unfound_text(asked: &str, file: bool, unfound: &Unfound) -> String {
    match unfound {
        Unfound::Unknown { .. } if file => {
            format!("there is no file {asked:?}, and the server has nothing of that name")
        }
        Unfound::Unknown { .. } => format!("the server has nothing of the name {asked:?}"),
        Unfound::Ambiguous { meant } => {
            format!("{asked:?} may be several: {}", named(meant))
        }
    }
}

fn named(ids: &[ResourceId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn problems(count: usize) -> String {
    match count {
        1 => "there is 1 error in the files".into(),
        count => format!("there are {count} errors in the files"),
    }
}

fn tests_fail(count: u64) -> String {
    match count {
        1 => "1 test fails".into(),
        count => format!("{count} tests fail"),
    }
}

/// The state of tokens whose keys the server may have created.
fn in_doubt(delivered: &Result<String, KeysError>) -> String {
    match delivered {
        Ok(done) => format!("; the new tokens were {done}, and are valid only if it did"),
        Err(error) => format!("; if it did, {error}"),
    }
}

fn moves(moved: &[Moved]) -> String {
    moved.iter().fold(String::new(), |mut text, Moved { id, revision, actor, time }| {
        let now = if revision.0 == 0 {
            "was deleted".to_owned()
        } else {
            format!("changed in revision {revision}")
        };
        let _ = write!(text, "\n  {id} {now}");
        if let (Some(actor), Some(time)) = (actor, time) {
            let _ = write!(text, ", by {actor} on {}", schema::text::moment(*time));
        }
        text
    })
}

fn latest(log: &[LogEntry]) -> String {
    let head = if log.is_empty() { "" } else { "\n  the server's newest revisions:" };
    log.iter().fold(head.to_owned(), |mut text, entry| {
        let LogEntry { revision, time, actor, action, .. } = entry;
        let _ = write!(text, "\n    {revision}  {}  {action} by {actor}", schema::text::moment(*time));
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
        self.outcome().0
    }

    /// Whether an apply that ended with it was carried out; nothing: that is unknown.
    pub fn applied(&self) -> Option<bool> {
        self.outcome().1
    }

    fn outcome(&self) -> (Exit, Option<bool>) {
        match self {
            Self::Unknown { .. } => (Exit::Failed, None),
            Self::AppliedBefore { .. } => (Exit::Done, Some(true)),
            Self::AfterCommit { .. } | Self::Unreported { .. } => (Exit::Failed, Some(true)),
            Self::NotAcknowledged { .. } | Self::Unwatched { .. } | Self::NotAwaited { .. } => {
                (Exit::NotAcknowledged, Some(true))
            }
            Self::Stale(_) | Self::Undone { .. } | Self::Unexpected { .. } => (Exit::Stale, Some(false)),
            Self::Guarded { .. } | Self::TestsFail(_) => (Exit::Refused, Some(false)),
            Self::Control(ControlError::Refused { failure, .. }) => {
                let exit = match failure.code.as_str() {
                    "stale" => Exit::Stale,
                    "busy" => Exit::Busy,
                    "guarded" => Exit::Refused,
                    _ => Exit::Failed,
                };
                (exit, Some(false))
            }
            Self::Control(_)
            | Self::Load(_)
            | Self::Problems { .. }
            | Self::Version(_)
            | Self::Keys(_)
            | Self::NotTakenBack { .. }
            | Self::Interrupted
            | Self::NobodyToAsk { .. }
            | Self::Declined
            | Self::RemovalNotApproved { .. }
            | Self::NotLetIn { .. }
            | Self::NobodyWaits { .. }
            | Self::SeveralWait { .. }
            | Self::AlsoWaits { .. }
            | Self::NotJoined { .. }
            | Self::Client(_)
            | Self::NoProject
            | Self::PlanFile { .. }
            | Self::OtherPlan { .. }
            | Self::Usage(_)
            | Self::File { .. }
            | Self::UnknownNetwork { .. }
            | Self::NoRevision { .. }
            | Self::Elsewhere { .. }
            | Self::Unfound { .. }
            | Self::NoStatus(_)
            | Self::NoCode(_)
            | Self::NoTest { .. }
            | Self::NotAsked { .. }
            | Self::Unresolved(_)
            | Self::Exists(_)
            | Self::Enter(_)
            | Self::Lab(_)
            | Self::NotKept(_)
            | Self::NothingToBringUp
            | Self::Output(_) => (Exit::Failed, Some(false)),
        }
    }

    /// A stable name of the failure, for programs: that of a refusal of the server, or one of nmplan's own.
    pub fn code(&self) -> &str {
        match self {
            Self::Load(_) | Self::NoProject => "project",
            Self::Problems { .. } => "problems",
            Self::Guarded { .. } => "guarded",
            Self::TestsFail(_) => "tests",
            Self::NoTest { .. } | Self::NotAsked { .. } | Self::Unresolved(_) => "usage",
            Self::Unfound { .. } | Self::Elsewhere { .. } | Self::NoStatus(_) => "usage",
            Self::Control(error) => error.code(),
            Self::Version(_) => "version",
            Self::Keys(_) | Self::AfterCommit { .. } | Self::NotTakenBack { .. } => "keys",
            Self::Stale(_) | Self::Undone { .. } => "stale",
            Self::AppliedBefore { .. } => "applied",
            Self::Unexpected { .. } => "unexpected_plan",
            Self::Unknown { .. } => "unknown",
            Self::Interrupted => "interrupted",
            Self::NobodyToAsk { .. }
            | Self::Declined
            | Self::RemovalNotApproved { .. }
            | Self::NotLetIn { .. } => "not_approved",
            Self::NobodyWaits { .. } | Self::SeveralWait { .. } | Self::AlsoWaits { .. } => "not_waiting",
            Self::PlanFile { .. } | Self::OtherPlan { .. } => "plan_file",
            Self::Usage(_) | Self::UnknownNetwork { .. } | Self::NoRevision { .. } | Self::NoCode(_) => {
                "usage"
            }
            Self::File { .. } | Self::Exists(_) => "file",
            Self::NotAcknowledged { .. } | Self::Unwatched { .. } | Self::NotAwaited { .. } => {
                "not_acknowledged"
            }
            Self::NotJoined { .. } => "not_joined",
            Self::Client(_) => "client",
            Self::Enter(_) | Self::Lab(_) | Self::NotKept(_) | Self::NothingToBringUp => "lab",
            Self::Output(_) | Self::Unreported { .. } => "output",
        }
    }

    /// What to type next.
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::Load(error) => return error.help(),
            Self::NotKept(error) => return error.help(),
            Self::Control(error) => return error.help(),
            Self::Keys(error) | Self::AfterCommit { source: error, .. } => return error.help(),
            Self::Client(error) => return error.help(),
            Self::Stale(_) | Self::Undone { .. } | Self::Unexpected { .. } => {
                "review a new plan:\n\n    nmplan plan".into()
            }
            Self::Unknown { tokens, next, .. } => {
                let Next { history, again } = &**next;
                let lost = tokens.as_ref().and_then(|tokens| tokens.as_ref().err()?.help());
                let lost = lost.map(|help| format!("\n\n  If it did, {help}")).unwrap_or_default();
                format!(
                    "see whether there is a revision of it:\n\n    {history}\n\n  Applying it again is safe, unless \
                     somebody has undone it since:\n\n    {again}{lost}"
                )
            }
            Self::NobodyToAsk { command } => {
                format!("give the digest of the plan that was reviewed, or -y:\n\n    {command}")
            }
            Self::RemovalNotApproved { command: Some(command) } => {
                format!("-y does without:\n\n    {command}")
            }
            Self::NotLetIn { command: Some(command) } => {
                format!("compare the fingerprint with what netclient printed on the host:\n\n    {command}")
            }
            Self::NobodyWaits { asked, known } if known.contains(asked) => {
                "who waits as that has another fingerprint: `nmplan node list` shows it".into()
            }
            Self::NobodyWaits { asked, known } => {
                let near = did_you_mean(asked, known.iter().map(String::as_str));
                near.unwrap_or_else(|| "`nmplan node list` shows who waits".into())
            }
            Self::SeveralWait { fingerprints, .. } => format!(
                "choose the one that the host itself shows: --identity {}",
                fingerprints.join(", or --identity ")
            ),
            Self::AlsoWaits { node, waiting, .. } => format!(
                "say which: the node with --identity {node}, or the one that waits with --identity {}",
                waiting.join(", or --identity ")
            ),
            Self::NotJoined { declared: true, .. } => {
                "to delete the declaration, delete it from the files and apply".into()
            }
            Self::NotJoined { asked, known, .. } => {
                let near = did_you_mean(asked, known.iter().map(String::as_str));
                near.unwrap_or_else(|| "`nmplan status` shows the nodes".into())
            }
            Self::NoProject => {
                "name the project with --project NAME, or create a project file with `nmplan init`".into()
            }
            Self::PlanFile { .. } => "make a new one:\n\n    nmplan plan --out FILE".into(),
            Self::OtherPlan { flag, .. } => format!("omit --{flag}, or give another plan"),
            Self::Version(_) => "use an nmplan of the server's version".into(),
            Self::NotAcknowledged { .. } | Self::Unwatched { .. } | Self::NotAwaited { .. } => {
                "the change is applied; check the nodes:\n\n    nmplan status".into()
            }
            Self::UnknownNetwork { known, .. } if known.is_empty() => "there are no networks yet".into(),
            Self::UnknownNetwork { asked, known } => {
                let names = || known.iter().map(NetworkName::as_str);
                let all = || format!("the networks are: {}", names().collect::<Vec<_>>().join(", "));
                did_you_mean(asked.as_str(), names()).unwrap_or_else(all)
            }
            Self::NoRevision { .. } => "`nmplan history` lists them".into(),
            Self::Elsewhere { meant, .. } => match &**meant {
                [only] => format!("ask in that network, with --network {}", only.network),
                _ => "ask for one of these, without --network".into(),
            },
            Self::NoCode(asked) => {
                let whole = || Code::ALL.iter().map(|code| code.name());
                let without = || whole().filter_map(|name| name.rsplit("::").next());
                let near = did_you_mean(asked, whole()).or_else(|| did_you_mean(asked, without()));
                near.unwrap_or_else(|| "`nmplan explain` lists them".into())
            }
            Self::TestsFail(_) => {
                "`nmplan explain FROM TO` says by which rules one member reaches another".into()
            }
            Self::NoTest { known, .. } if known.is_empty() => "the files declare no test".into(),
            Self::NoTest { asked, known } => {
                let all = || format!("the tests are: {}", known.join(", "));
                let short = known.iter().filter_map(|id| id.rsplit('/').next());
                did_you_mean(asked, known.iter().map(String::as_str).chain(short)).unwrap_or_else(all)
            }
            Self::NotAsked { .. } => {
                "give a node, a group, tag:TAG, an address, a range or *, perhaps as NETWORK/NAME".into()
            }
            Self::Unresolved(Unresolved::Unknown { asked, known }) => {
                let near = did_you_mean(asked, known.iter().map(String::as_str));
                near.unwrap_or_else(|| "`nmplan show` lists what the server has".into())
            }
            Self::Unresolved(Unresolved::Ambiguous { .. }) => "name one of these".into(),
            Self::Unfound { asked, unfound: Unfound::Unknown { known }, .. } => {
                let near = did_you_mean(asked, known.iter().map(String::as_str));
                near.unwrap_or_else(|| "`nmplan show` lists what the server has".into())
            }
            Self::Unfound { unfound: Unfound::Ambiguous { .. }, .. } => "name one of these".into(),
            Self::NoStatus(id) => format!("see its declaration:\n\n    nmplan show {id}"),
            Self::Unresolved(Unresolved::Apart { .. }) => return None,
            Self::Enter(error) => return error.help().map(str::to_owned),
            Self::NothingToBringUp => "declare a node in a network: node \"db-1\"".into(),
            Self::AppliedBefore { revision, .. } => {
                format!("see what it changed:\n\n    nmplan show {revision}")
            }
            Self::Problems { .. } => "`nmplan explain CODE` explains a code".into(),
            Self::Guarded { by } => {
                let flags = by.iter().map(|guard| format!(" --allow {guard}")).collect::<String>();
                let who = if by.iter().any(Guard::needs_admin) { "an admin can" } else { "you can" };
                format!("change the files; {who} let it through once, with{flags}")
            }
            Self::NotTakenBack { .. }
            | Self::Interrupted
            | Self::Unreported { .. }
            | Self::Declined
            | Self::RemovalNotApproved { command: None }
            | Self::NotLetIn { command: None }
            | Self::Usage(_)
            | Self::File { .. }
            | Self::Exists(_)
            | Self::Lab(_)
            | Self::Output(_) => return None,
        };
        Some(text)
    }

    /// The cause at the bottom of it, unless its own text has it.
    pub fn because(&self) -> Option<String> {
        let mut root = self.source();
        while let Some(deeper) = root.and_then(|cause| cause.source()) {
            root = Some(deeper);
        }
        root.map(ToString::to_string).filter(|root| !self.to_string().contains(root))
    }

    /// The error with its cause and what to do, for people.
    pub fn render(&self) -> String {
        let mut text = format!("{} {self}\n", "error:".red().bold());
        if let Self::Control(ControlError::Refused { failure, .. }) = self {
            for problem in &failure.problems {
                let _ = writeln!(text, "  {} ({})", problem.message, problem.code);
            }
        }
        if let Some(root) = self.because() {
            let _ = writeln!(text, "  {} {root}", "because:".bold());
        }
        if let Some(help) = self.help() {
            let _ = writeln!(text, "  {} {help}", "help:".cyan().bold());
        }
        text
    }
}

/// Why this version cannot read a saved plan of a format.
pub fn wrong_format(format: &str) -> String {
    format!("it has format {format}, and this nmplan reads format {FORMAT}")
}

#[cfg(test)]
mod tests {
    use schema::api::Failure;

    use super::*;

    fn refused(code: &str, status: u16) -> Error {
        let failure = Failure {
            kind: "about:blank".into(),
            title: code.into(),
            status,
            code: code.into(),
            detail: "no".into(),
            problems: vec![],
            moved: vec![],
        };
        Error::Control(ControlError::Refused {
            server: "https://nm.example.net".into(),
            failure: Box::new(failure),
        })
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
        let late = Error::NotAcknowledged {
            revision: Revision(1),
            wait: Seconds(60),
            nodes: vec!["a/node/b".into()],
        };
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
