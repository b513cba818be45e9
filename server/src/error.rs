//! The one mapping from failures to HTTP status, problem+json and gRPC code.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use proto::sign::Invalid;
use schema::report::Report;
use schema::snapshot::{ResourceId, Revision};
use serde::Serialize;
use tonic::{Code, Status};

use crate::core::authorize::Denied;
use crate::core::enrol::Refused;
use crate::store::StoreError;

/// Why an operation was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller showed no credential, or one that is not valid.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The caller may not do this.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The request is not what it should be.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such thing.
    #[error("there is no {0}")]
    NotFound(String),
    /// A condition that the caller made does not hold.
    #[error("{0}")]
    Precondition(String),
    /// What a plan touches has moved since it was made.
    #[error("the plan is stale: {} moved since it was made", .0.iter().map(|moved| moved.id.to_string()).collect::<Vec<_>>().join(", "))]
    Stale(Vec<Moved>),
    /// The result would break a rule.
    #[error("the result would break a rule: {}", first_message(.0))]
    Rules(Report),
    /// The machine may not join.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A signature does not hold.
    #[error(transparent)]
    Signature(#[from] Invalid),
    /// The database failed.
    #[error("the server cannot use its database")]
    Store(#[from] Arc<StoreError>),
    /// The server is about to end.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// A resource that a plan touches and that has moved, with what is known of how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moved {
    /// The resource.
    pub id: ResourceId,
    /// The revision that it is at; 0: it is gone.
    pub revision: Revision,
    /// Who moved it last.
    pub actor: Option<String>,
    /// When.
    pub time: Option<jiff::Timestamp>,
}

fn first_message(report: &Report) -> String {
    report.problems().next().map(|problem| problem.message.clone()).unwrap_or_default()
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// An error as RFC 9457 tells it.
#[derive(Serialize)]
struct ProblemJson {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    moved: Vec<Moved>,
}

#[derive(Serialize)]
struct Finding {
    code: &'static str,
    id: Option<String>,
    message: String,
    help: Option<String>,
}

impl Error {
    const fn facts(&self) -> (StatusCode, &'static str, &'static str, Code) {
        match self {
            Self::Unauthenticated(_) => {
                (StatusCode::UNAUTHORIZED, "unauthenticated", "not authenticated", Code::Unauthenticated)
            }
            Self::Denied(_) => (StatusCode::FORBIDDEN, "denied", "not allowed", Code::PermissionDenied),
            Self::BadRequest(_) => {
                (StatusCode::BAD_REQUEST, "bad_request", "request not understood", Code::InvalidArgument)
            }
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found", "not found", Code::NotFound),
            Self::Precondition(_) => {
                (StatusCode::PRECONDITION_FAILED, "precondition", "condition not met", Code::FailedPrecondition)
            }
            Self::Stale(_) => (StatusCode::PRECONDITION_FAILED, "stale", "plan is stale", Code::FailedPrecondition),
            Self::Rules(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "rules", "a rule forbids it", Code::FailedPrecondition)
            }
            Self::Refused(_) => (StatusCode::FORBIDDEN, "refused", "join refused", Code::PermissionDenied),
            Self::Signature(_) => (StatusCode::FORBIDDEN, "signature", "signature not valid", Code::PermissionDenied),
            Self::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "database", "database not usable", Code::Unavailable),
            Self::ShuttingDown => {
                (StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "shutting down", Code::Unavailable)
            }
        }
    }

    /// Tells the log what the caller is not told.
    fn note(&self) {
        if let Self::Store(error) = self {
            let cause = std::error::Error::source(&**error).map(ToString::to_string);
            tracing::error!(error = %error, cause, "the database failed");
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.note();
        let (status, code, title, _) = self.facts();
        let detail = self.to_string();
        let (mut problems, mut moved) = (Vec::new(), Vec::new());
        match self {
            Self::Rules(report) => problems.extend(report.problems().map(|problem| Finding {
                code: problem.code.name(),
                id: problem.id.clone(),
                message: problem.message.clone(),
                help: problem.help.clone(),
            })),
            Self::Stale(stale) => moved = stale,
            _ => {}
        }
        let body = ProblemJson { kind: "about:blank", title, status: status.as_u16(), code, detail, problems, moved };
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.note();
        let (_, _, _, code) = error.facts();
        Status::new(code, error.to_string())
    }
}
