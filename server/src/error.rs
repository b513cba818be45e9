//! The one mapping from failures to HTTP status, problem+json and gRPC code.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use proto::sign::Invalid;
use schema::api::{Failure, Finding, Moved};
use schema::report::{Problem, Report};
use tonic::{Code, Status};

use crate::core::authorize::Denied;
use crate::core::enrol::Refused;
use crate::core::facts::Unusable;
use crate::core::registry::Unregistered;
use crate::store::StoreError;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller sent no credential, or one that is not valid.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The caller's session was valid, and is no longer.
    #[error("the session has expired; open a new one")]
    SessionEnded,
    /// The caller may not do this.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The request is not valid.
    #[error("{0}")]
    BadRequest(String),
    /// The object does not exist.
    #[error("there is no {0}")]
    NotFound(String),
    /// The path exists, but not with this method.
    #[error("this path does not support that method; see /api/v1/openapi.json")]
    Method,
    /// The body of a request is larger than is read.
    #[error("the body is larger than the server reads ({0} MiB); split the plan, or raise MAX_BODY there")]
    TooLarge(usize),
    /// The body of a request does not arrive.
    #[error("{0}; send it again")]
    Slow(String),
    /// The caller asks for more than it may at once.
    #[error("{0}")]
    Busy(String),
    /// A condition that the caller made does not hold.
    #[error("{0}")]
    Precondition(String),
    /// Resources that the plan changes have changed since it was made.
    #[error("the plan is stale: {} changed since it was made", .0.iter().map(|moved| moved.id.to_string()).collect::<Vec<_>>().join(", "))]
    Stale(Vec<Moved>),
    /// The result would break a rule.
    #[error("the result would break a rule: {}", first_message(.0))]
    Rules(Report),
    /// A rule refuses the change, unless it is let through.
    #[error("a rule refuses this change: {}", first_message(.0))]
    Guarded(Report),
    /// The host may not join.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The host may not register.
    #[error(transparent)]
    Unregistered(#[from] Unregistered),
    /// The host could not be registered; what failed concerns the server's operator only, and is in the log.
    #[error("{0}")]
    Tunnel(&'static str),
    /// A signature is not valid.
    #[error(transparent)]
    Signature(#[from] Invalid),
    /// What a host reports about itself is not valid.
    #[error(transparent)]
    Facts(#[from] Unusable),
    /// The database failed.
    #[error("the server cannot use its database{}; {}", consequence(.0), .0.why())]
    Store(#[from] Arc<StoreError>),
    /// A change or the writer itself panicked.
    #[error("this is a bug in the server, and nothing was changed; its log says more")]
    Bug,
}

/// What a failure of the database means for the change that was asked for.
fn consequence(error: &StoreError) -> &'static str {
    if error.is_harmless() { ", so nothing was changed" } else { " any more, and the change may be lost" }
}

fn first_message(report: &Report) -> String {
    report.problems().next().map(|problem| problem.message.clone()).unwrap_or_default()
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl Error {
    fn mapping(&self) -> (StatusCode, &'static str, &'static str, Code) {
        match self {
            Self::Unauthenticated(_) | Self::SessionEnded => {
                (StatusCode::UNAUTHORIZED, "unauthenticated", "not authenticated", Code::Unauthenticated)
            }
            Self::Denied(_) => (StatusCode::FORBIDDEN, "denied", "not allowed", Code::PermissionDenied),
            Self::BadRequest(_) | Self::Facts(_) => {
                (StatusCode::BAD_REQUEST, "bad_request", "request not understood", Code::InvalidArgument)
            }
            Self::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "method", "method not allowed", Code::Unimplemented)
            }
            Self::TooLarge(_) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "body too large", Code::OutOfRange)
            }
            Self::Slow(_) => {
                (StatusCode::REQUEST_TIMEOUT, "slow", "body did not arrive", Code::DeadlineExceeded)
            }
            Self::Busy(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "busy", "too many requests at once", Code::ResourceExhausted)
            }
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found", "not found", Code::NotFound),
            Self::Precondition(_) => (
                StatusCode::PRECONDITION_FAILED,
                "precondition",
                "condition not met",
                Code::FailedPrecondition,
            ),
            Self::Stale(_) => {
                (StatusCode::PRECONDITION_FAILED, "stale", "plan is stale", Code::FailedPrecondition)
            }
            Self::Rules(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "rules", "a rule forbids it", Code::FailedPrecondition)
            }
            Self::Guarded(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "guarded", "a rule refuses it", Code::FailedPrecondition)
            }
            Self::Refused(_) => (StatusCode::FORBIDDEN, "refused", "join refused", Code::PermissionDenied),
            Self::Unregistered(_) => {
                (StatusCode::FORBIDDEN, "unregistered", "registration refused", Code::PermissionDenied)
            }
            Self::Tunnel(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "tunnel", "tunnel not usable", Code::Unavailable)
            }
            // The caller may sign once more, with another nonce.
            Self::Signature(Invalid::NonceUsed | Invalid::NonceExpired) => {
                (StatusCode::CONFLICT, "nonce", "nonce not valid", Code::Aborted)
            }
            Self::Signature(Invalid::Part(_)) => {
                (StatusCode::FORBIDDEN, "signature", "signature not valid", Code::PermissionDenied)
            }
            Self::Store(error) if !error.is_harmless() => {
                (StatusCode::SERVICE_UNAVAILABLE, "database_lost", "database lost", Code::Unavailable)
            }
            Self::Store(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "database", "database not usable", Code::Unavailable)
            }
            Self::Bug => (StatusCode::INTERNAL_SERVER_ERROR, "bug", "a bug in the server", Code::Internal),
        }
    }

    /// Whether it refuses what strangers may send: a token, a session or a signature that was never valid, or one
    /// more request to join without an access key.
    pub fn is_of_guess(&self) -> bool {
        matches!(
            self,
            Self::Unauthenticated(_)
                | Self::Signature(Invalid::Part(_))
                | Self::Refused(Refused::UnknownKey(_) | Refused::KeyNeeded(_))
                | Self::Refused(Refused::ManyWait(_) | Refused::ManyWaitThere(_) | Refused::ManyAsk(_))
        )
    }

    /// Logs what the caller is not sent.
    fn log(&self) {
        if let Self::Store(error) = self {
            let cause = std::error::Error::source(&**error).map(ToString::to_string);
            tracing::error!(error = %error, cause, "the database failed");
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.log();
        let (status, code, title, _) = self.mapping();
        let detail = shortened(&self.to_string());
        let problems = if let Self::Rules(report) | Self::Guarded(report) = &self {
            findings(report)
        } else {
            Vec::new()
        };
        let moved = if let Self::Stale(moved) = self { moved } else { Vec::new() };
        let body = Failure {
            kind: "about:blank".into(),
            title: title.into(),
            status: status.as_u16(),
            code: code.into(),
            detail,
            problems,
            moved,
        };
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
    }
}

fn findings(report: &Report) -> Vec<Finding> {
    let finding = |problem: &Problem| Finding {
        code: problem.code.name().into(),
        id: problem.id.as_deref().map(shortened),
        message: shortened(&problem.message),
        help: problem.help.as_deref().map(shortened),
    };
    report.problems().take(MOST_PROBLEMS).map(finding).collect()
}

/// The most problems that an answer has: nobody reads more, and nmplan finds all of them itself.
const MOST_PROBLEMS: usize = 100;
/// How many characters of the beginning and the end of a text are kept: what was sent stands in its middle.
const BEGINNING: usize = 500;
const END: usize = 300;

/// A text without most of what the caller sent itself: what was wrong, and why, is at its ends.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= BEGINNING + END {
        return text.into();
    }
    let beginning: String = text.chars().take(BEGINNING).collect();
    let end: String = text.chars().skip(count - END).collect();
    format!("{beginning} [... {} characters ...] {end}", count - BEGINNING - END)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.log();
        let (_, _, _, code) = error.mapping();
        Status::new(code, shortened(&error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::LostFile;

    #[test]
    fn a_failure_of_the_database_says_whether_anything_was_changed() {
        let lost = || LostFile { path: "nmserver.db".into(), what: "was deleted or moved" };
        for (error, expected, words) in [
            (
                StoreError::Lost(lost()),
                "database",
                "so nothing was changed; a file of the database was deleted",
            ),
            (
                StoreError::LostAfterCommit(lost()),
                "database_lost",
                "the change may be lost; a file of the database",
            ),
        ] {
            let error = Error::from(error);
            let (status, code, _, _) = error.mapping();
            assert_eq!((status, code), (StatusCode::SERVICE_UNAVAILABLE, expected));
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
