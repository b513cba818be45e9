//! The server as nmplan sees it: [`Rest`] over the network, [`Memory`] for tests.

mod memory;
mod rest;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use schema::api::{Applied, ApplyRequest, Failure, LogEntry, StatusDocument};
use schema::snapshot::Revision;
use schema::world::WorldDocument;

pub use memory::{Fault, Memory};
pub use rest::Rest;

const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];

/// What a server does for nmplan.
pub trait ControlPlane {
    /// How messages call it.
    fn name(&self) -> &str;
    /// How long to wait before each new try of an apply whose answer did not come.
    fn pauses(&self) -> &[Duration] {
        &PAUSES
    }
    /// Everything that it knows, at its newest revision.
    fn world(&self) -> impl Future<Output = Result<WorldDocument, ControlError>>;
    /// Carries out a plan. The same apply id is carried out once, however often it is sent.
    fn apply(&self, request: &ApplyRequest) -> impl Future<Output = Result<Applied, ControlError>>;
    /// How the nodes are.
    fn status(&self) -> impl Future<Output = Result<StatusDocument, ControlError>>;
    /// The log above a revision, oldest first.
    fn revisions(&self, after: Revision, limit: usize) -> impl Future<Output = Result<Vec<LogEntry>, ControlError>>;
}

/// Why a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nothing says which server.
    #[error("no server is named")]
    NoServer,
    /// The URL is none.
    #[error("{url:?} cannot be the URL of a server: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no token to show.
    #[error("no token is set, and {server} lets nobody in without one")]
    NoToken {
        /// The server.
        server: String,
    },
    /// The token cannot be sent.
    #[error("{from} does not hold a valid token: it has characters that no token has")]
    Token {
        /// The variable that it comes from.
        from: &'static str,
    },
    /// A file that a variable names cannot be read.
    #[error("cannot read {path}, which {variable} names")]
    File {
        /// The variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no certificate.
    #[error("{path}, which NMPLAN_CA names, holds no certificate in PEM form")]
    Ca {
        /// The file.
        path: PathBuf,
    },
    /// The client cannot be set up.
    #[error("cannot set up TLS")]
    Client(#[source] reqwest::Error),
    /// There was no connection, so nothing was sent.
    #[error("cannot connect to {server}")]
    Unreachable {
        /// The server.
        server: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The connection broke before the answer was there, so it is unknown what was done.
    #[error("the connection to {server} broke before it answered")]
    Broken {
        /// The server.
        server: String,
        /// Why; absent in tests.
        source: Option<reqwest::Error>,
    },
    /// The server said no.
    #[error("{}", .failure.detail)]
    Refused {
        /// The server.
        server: String,
        /// What it said.
        failure: Box<Failure>,
    },
    /// What answered is no nmserver, or one of another version.
    #[error("{server} answered {what}, which is not how nmserver answers")]
    Foreign {
        /// The server.
        server: String,
        /// The HTTP status.
        status: u16,
        /// What it answered.
        what: String,
    },
}

impl ControlError {
    /// Whether nothing can have been done.
    pub fn is_harmless(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Foreign { .. } => false,
            Self::Refused { failure, .. } => failure.status < 500,
            Self::NoServer
            | Self::Url { .. }
            | Self::NoToken { .. }
            | Self::Token { .. }
            | Self::File { .. }
            | Self::Ca { .. }
            | Self::Client(_)
            | Self::Unreachable { .. } => true,
        }
    }

    /// Whether the server has looked at the plan and refused it, so that no earlier try of the same apply was carried out.
    pub fn is_verdict(&self) -> bool {
        matches!(self, Self::Refused { failure, .. } if matches!(failure.code.as_str(), "stale" | "rules"))
    }

    /// Whether the same call may do better a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !rest::is_tls(source),
            Self::Broken { .. } => true,
            Self::Refused { failure, .. } => is_away(failure.status),
            Self::Foreign { status, .. } => is_away(*status),
            Self::NoServer
            | Self::Url { .. }
            | Self::NoToken { .. }
            | Self::Token { .. }
            | Self::File { .. }
            | Self::Ca { .. }
            | Self::Client(_) => false,
        }
    }

    /// What to type next.
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::NoServer => "name it in the env (`server \"https://...\"`), with --server, or in NMPLAN_SERVER".into(),
            Self::Url { .. } => "write it like https://nm.example.net".into(),
            Self::NoToken { .. } => {
                "set NMPLAN_TOKEN_FILE to a file that holds a token; an admin makes one with `nmserver token create`".into()
            }
            Self::Token { from } => format!("check {from}"),
            Self::File { variable, .. } => format!("check {variable}"),
            Self::Ca { .. } => "set it to the server's ca.pem, which lies in its DATA_DIR".into(),
            Self::Broken { server, .. } if server.starts_with("http://") => "where the server ends TLS, write https://".into(),
            Self::Client(_) | Self::Broken { .. } => return None,
            Self::Unreachable { source, .. } if rest::is_tls(source) => {
                "set NMPLAN_CA to the server's ca.pem (it lies in its DATA_DIR), and check that the URL names the server as its certificate does".into()
            }
            Self::Unreachable { server, .. } => format!("check that nmserver runs there: curl -k {server}/readyz"),
            Self::Refused { failure, .. } => return help_for(failure),
            Self::Foreign { .. } => "check the URL, and what stands between here and there".into(),
        };
        Some(text)
    }
}

/// Whether a status says that the server, or what stands before it, cannot answer at the moment.
fn is_away(status: u16) -> bool {
    matches!(status, 502..=504)
}

fn help_for(failure: &Failure) -> Option<String> {
    if let Some(help) = failure.problems.iter().find_map(|problem| problem.help.clone()) {
        return Some(help);
    }
    let text = match failure.code.as_str() {
        "unauthenticated" => "an admin makes a token with `nmserver token create`",
        "denied" => "use a token with that right; an admin makes one with `nmserver token create`",
        "stale" | "precondition" => "plan again",
        "database" | "shutting_down" => "try again; if it stays so, look at the server's log",
        _ => return None,
    };
    Some(text.into())
}
