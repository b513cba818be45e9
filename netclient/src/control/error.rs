//! Why a call failed, as an error that a user can do something about: made from tonic's status.

use proto::sign::Unidentified;
use tonic::{Code, Status};

/// Why a call to the server failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It could not be reached.
    #[error(
        "cannot reach the server at {at}: {why}; check that it runs, and that this host may connect to it"
    )]
    Unreachable {
        /// The addresses that were tried.
        at: String,
        /// The root cause.
        why: String,
    },
    /// It was reached, but did not answer in time.
    #[error("the server at {at} did not answer in time; check the server's load and log, then retry")]
    Slow {
        /// The addresses that were tried.
        at: String,
    },
    /// Its certificate is not from the CA that was expected.
    #[error(
        "the certificate at {at} is not from the expected server ({why}); if the server was set up anew, leave with \
         --force and join with a new token"
    )]
    Stranger {
        /// The addresses that were tried.
        at: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// It is not the server that was meant.
    #[error(
        "the server at {at} is not the one of that pin: {why}; nothing was sent to it; check --server and --pin with the \
         line that `nmserver config` prints on the server"
    )]
    OtherServer {
        /// The address that was tried.
        at: String,
        /// What is wrong.
        why: Unidentified,
    },
    /// Something else listens there.
    #[error(
        "what answers at {at} is not the agents' service of nmserver: that has port 50051, unless GRPC_PORT or \
         PUBLIC_GRPC of the server says otherwise; the REST API has another"
    )]
    NotAgents {
        /// The addresses that were tried.
        at: String,
    },
    /// It refused.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server takes the nonce no longer that the request was signed with: it may have received the
    /// request before.
    #[error("the server takes each signed request once, and this one came too late or twice; try again")]
    NonceUsed,
    /// The session of the call has expired.
    #[error("the server does not accept this host's session; check in again")]
    SessionEnded,
    /// Its answer is not valid.
    #[error("the server's answer is not valid: {0}")]
    Answer(String),
}

/// Why a call failed to a server `at` these addresses.
pub(super) fn failed(at: String, status: &Status) -> CallError {
    if let Some(why) = certificate_error(status) {
        return CallError::Stranger { at, why };
    }
    let lost = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
    if lost && causes(status).next().is_some() {
        return CallError::Unreachable { at, why: deepest(status) };
    }
    if status.code() == Code::Aborted {
        return CallError::NonceUsed;
    }
    if status.code() == Code::Unauthenticated {
        return CallError::SessionEnded;
    }
    if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) {
        return CallError::Slow { at };
    }
    // What does not speak gRPC, such as the REST API: tonic says so in these words alone.
    let foreign = ["invalid compression flag", "grpc-status header missing", "invalid content-type"];
    if foreign.iter().any(|said| status.message().contains(said)) {
        return CallError::NotAgents { at };
    }
    // An error without a cause on this side came from the server.
    CallError::Refused(status.message().chars().filter(|c| !c.is_control()).collect())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

/// The message of the root cause, which is the one that a user can do something about.
fn deepest(status: &Status) -> String {
    causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// What is wrong with the server's certificate, if that is why the call failed.
fn certificate_error(status: &Status) -> Option<String> {
    // An I/O error does not show the error inside it as its source.
    let of_tls = |error: &(dyn std::error::Error + 'static)| {
        let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
        inner.downcast_ref::<rustls::Error>().cloned()
    };
    let error = causes(status).find_map(of_tls)?;
    matches!(error, rustls::Error::InvalidCertificate(_)).then(|| error.to_string())
}
