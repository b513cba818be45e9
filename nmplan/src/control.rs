//! The server from nmplan's side: [`Rest`] over the network, [`Memory`] for tests.

mod memory;
mod rest;

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use schema::api::{Applied, ApplyRequest, Approved, Committed, Failure, LogEntry, Removed, StatusDocument};
use schema::inventory::NodeId;
use schema::scalars::{Fingerprint, Identity, Name, NetworkName};
use schema::snapshot::Revision;
use schema::text::word;
use schema::world::WorldDocument;

pub use memory::{Fault, Memory};
pub use rest::{Rest, without_secrets};

const BACKOFF: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];

/// What a server does for nmplan.
pub trait ControlPlane {
    /// Its name in messages.
    fn name(&self) -> &str;
    /// How long to wait before each retry of an apply that was not answered.
    fn backoff(&self) -> &[Duration] {
        &BACKOFF
    }
    /// The addresses by which it is called; empty: they are not known.
    fn addresses(&self) -> impl Future<Output = Vec<IpAddr>>;
    /// Everything that it has, at its newest revision.
    fn world(&self) -> impl Future<Output = Result<WorldDocument, ControlError>>;
    /// Carries out a plan. The same apply id is carried out once, however often it is sent.
    fn apply(&self, request: &ApplyRequest) -> impl Future<Output = Result<Applied, ControlError>>;
    /// The state of the nodes.
    fn status(&self) -> impl Future<Output = Result<StatusDocument, ControlError>>;
    /// Removes a node, provided that its host has this identity; `ban`: bars that from the network as well.
    fn remove_node(
        &self,
        node: &NodeId,
        ban: bool,
        identity: &Identity,
    ) -> impl Future<Output = Result<Removed, ControlError>>;
    /// Lets the hosts join again that were removed as a node and barred.
    fn lift_ban(&self, node: &NodeId) -> impl Future<Output = Result<Committed, ControlError>>;
    /// Lets a host in that waits, as the node of a name.
    fn approve(
        &self,
        network: &NetworkName,
        fingerprint: Fingerprint,
        name: &Name,
    ) -> impl Future<Output = Result<Approved, ControlError>>;
    /// Drops a host that waits; `ban`: bars it from the network as well.
    fn drop_pending(
        &self,
        network: &NetworkName,
        fingerprint: Fingerprint,
        ban: bool,
    ) -> impl Future<Output = Result<Committed, ControlError>>;
    /// The log after a revision, oldest first.
    fn revisions(
        &self,
        after: Revision,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<LogEntry>, ControlError>>;
}

/// Why a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nothing names a server.
    #[error("no server is given")]
    NoServer,
    /// The URL is not valid.
    #[error("{url:?} is not a valid server URL: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no token to authenticate with.
    #[error("no token is set, and {server} requires one")]
    NoToken {
        /// The server.
        server: String,
    },
    /// The token cannot be sent.
    #[error("{from} does not hold a valid token: it contains characters that a token cannot have")]
    Token {
        /// The variable that it comes from.
        from: &'static str,
    },
    /// A file that a variable names cannot be read.
    #[error("cannot read {path}, which {variable} is set to")]
    File {
        /// The variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no certificate.
    #[error("{path}, which NMPLAN_CA is set to, holds no certificate in PEM format")]
    Ca {
        /// The file.
        path: PathBuf,
    },
    /// The client cannot be set up.
    #[error("cannot set up TLS")]
    Client(#[source] reqwest::Error),
    /// There was no connection, so nothing was sent.
    #[error("cannot connect to {server}{}", through(*proxy))]
    Unreachable {
        /// The server.
        server: String,
        /// The variable that names the proxy to it; absent: it is called directly.
        proxy: Option<&'static str>,
        /// Why.
        source: reqwest::Error,
    },
    /// The connection broke before the answer arrived, so it is unknown whether the request was carried out.
    #[error("the connection to {server}{} broke before it answered", through(*proxy))]
    Broken {
        /// The server.
        server: String,
        /// The variable that names the proxy to it; absent: it is called directly.
        proxy: Option<&'static str>,
        /// Why; absent in tests.
        source: Option<reqwest::Error>,
    },
    /// The run was interrupted before the answer arrived.
    #[error("interrupted before {server} answered")]
    Interrupted {
        /// The server.
        server: String,
    },
    /// The server refused.
    #[error("{}", .failure.detail)]
    Refused {
        /// The server.
        server: String,
        /// Its answer.
        failure: Box<Failure>,
    },
    /// The answer is not an nmserver's, or that of another version.
    #[error("{server}{} answered {what}, which is not a response of nmserver", through(*proxy))]
    Foreign {
        /// The server.
        server: String,
        /// The variable that names the proxy to it; absent: it is called directly.
        proxy: Option<&'static str>,
        /// The HTTP status.
        status: u16,
        /// What it answered.
        what: String,
    },
}

/// Through what a server is called.
fn through(proxy: Option<&'static str>) -> String {
    proxy.map(|variable| format!(" (through the proxy of {variable})")).unwrap_or_default()
}

impl ControlError {
    /// Whether the request cannot have been carried out.
    pub fn is_harmless(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Foreign { .. } | Self::Interrupted { .. } => false,
            Self::Refused { failure, .. } => failure.status < 500 || nothing_was_stored(failure),
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

    /// Whether the server has checked the plan and refused it, so that no earlier attempt of the same apply
    /// was carried out.
    pub fn is_refused_plan(&self) -> bool {
        matches!(self, Self::Refused { failure, .. } if matches!(failure.code.as_str(), "stale" | "rules" | "guarded"))
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !rest::is_tls(source),
            Self::Broken { .. } => true,
            Self::Refused { failure, .. } => is_unavailable(failure.status) && !nothing_was_stored(failure),
            Self::Foreign { status, .. } => is_unavailable(*status),
            Self::NoServer
            | Self::Url { .. }
            | Self::NoToken { .. }
            | Self::Token { .. }
            | Self::File { .. }
            | Self::Ca { .. }
            | Self::Interrupted { .. }
            | Self::Client(_) => false,
        }
    }

    /// A stable name of the failure, for programs: that of the server's refusal, or one of nmplan's own.
    pub fn code(&self) -> &str {
        match self {
            Self::NoServer | Self::Url { .. } => "server_url",
            Self::NoToken { .. } | Self::Token { .. } => "token",
            Self::File { .. } | Self::Ca { .. } | Self::Client(_) => "client",
            Self::Unreachable { .. } => "unreachable",
            Self::Broken { .. } => "broken_connection",
            Self::Interrupted { .. } => "interrupted",
            Self::Refused { failure, .. } => &failure.code,
            Self::Foreign { .. } => "foreign_answer",
        }
    }

    /// What to type next.
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::NoServer => "set it in the env (`server \"https://...\"`), with --server, or in NMPLAN_SERVER".into(),
            Self::Url { .. } => "use a URL such as https://nm.example.net".into(),
            Self::NoToken { .. } => {
                "set NMPLAN_TOKEN_FILE to a file that holds a token; an admin creates one with `nmserver token create`".into()
            }
            Self::Token { from } => format!("check {from}"),
            Self::File { variable, .. } => format!("check {variable}"),
            Self::Ca { .. } => "set it to the server's ca.pem, which is in its DATA_DIR".into(),
            Self::Unreachable { source, .. } if rest::is_tls(source) => {
                "set NMPLAN_CA to the server's ca.pem (in its DATA_DIR), and check that the host name of the URL is in its certificate".into()
            }
            Self::Unreachable { server, proxy: Some(variable), .. }
            | Self::Broken { server, proxy: Some(variable), .. }
            | Self::Foreign { server, proxy: Some(variable), .. } => {
                let host = rest::host(server).unwrap_or_default();
                format!("check {variable}, or call the server directly:\n\n    export NO_PROXY={}", word(&host))
            }
            Self::Broken { server, .. } if server.starts_with("http://") => "if the server uses TLS, the URL must begin with https://".into(),
            Self::Client(_) | Self::Broken { .. } | Self::Interrupted { .. } => return None,
            Self::Unreachable { server, .. } => format!("check that nmserver is running there: curl -k {server}/readyz"),
            Self::Refused { failure, .. } => return help_for(failure),
            Self::Foreign { .. } => "check the URL, and what else answers there".into(),
        };
        Some(text)
    }
}

/// Whether a server could not use its database and says that nothing was changed: a refusal like any other,
/// and not one that passes by itself.
fn nothing_was_stored(failure: &Failure) -> bool {
    failure.code == "database"
}

/// Whether a status means that the server, or a proxy in front of it, cannot answer at the moment.
fn is_unavailable(status: u16) -> bool {
    matches!(status, 502..=504)
}

fn help_for(failure: &Failure) -> Option<String> {
    let mut helps = failure.problems.iter().filter_map(|problem| problem.help.clone());
    if let Some(first) = helps.next() {
        // Each rule is let through by its own name.
        let more = helps.filter(|_| failure.code == "guarded").map(|help| format!("\n  {help}"));
        return Some(first + &more.collect::<String>());
    }
    let text = match failure.code.as_str() {
        "unauthenticated" => "an admin creates a token with `nmserver token create`",
        "denied" => "use a token with the required role; an admin creates one with `nmserver token create`",
        "stale" | "precondition" => "make a new plan",
        "database" | "shutting_down" => "retry; if the problem persists, check the server's log",
        "database_lost" => "put the database back, restart nmserver, and check whether the changes are there",
        _ => return None,
    };
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_whether_a_request_was_carried_out_and_whether_to_try_again() {
        let refused = |status, code: &str| {
            let failure = Failure {
                kind: "about:blank".into(),
                title: code.into(),
                status,
                code: code.into(),
                detail: String::new(),
                problems: Vec::new(),
                moved: Vec::new(),
            };
            ControlError::Refused { server: String::new(), failure: Box::new(failure) }
        };
        // By status and code: whether nothing was changed, and whether the same call may succeed a moment
        // later.
        for (status, code, harmless, transient) in [
            (403, "denied", true, false),
            (412, "stale", true, false),
            (500, "bug", false, false),
            (503, "shutting_down", false, true),
            (503, "database", true, false),
            (503, "database_lost", false, true),
        ] {
            let error = refused(status, code);
            assert_eq!((error.is_harmless(), error.is_transient()), (harmless, transient), "{code}");
        }
    }
}
