//! Why a call failed, in words that a user can do something about: from the status that tonic makes of everything.

use tonic::{Code, Status};

/// Why the server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It could not be reached, or gave no answer.
    #[error("cannot reach the server at {at}: {why}; check that it runs, and that this host may connect to it")]
    Unreachable {
        /// Where it was sought.
        at: String,
        /// The cause that lies deepest.
        why: String,
    },
    /// It was reached, and gave no answer.
    #[error("the server at {at} gave no answer in time; check the server's load and log, then retry")]
    Slow {
        /// Where it was reached.
        at: String,
    },
    /// It answered under another name: its certificate is not of the CA that was expected.
    #[error(
        "the certificate at {at} is not from the expected server ({why}); if the server was set up anew, leave with \
         --force and join with a new token"
    )]
    Stranger {
        /// Where it was sought.
        at: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// It said no.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The session that it was called in has ended.
    #[error("the server does not take this host's session; check in again")]
    SessionEnded,
    /// It answered what no server of ours would.
    #[error("the server's answer is invalid: {0}")]
    Answer(String),
}

/// Why a call failed to a server that was sought `at` these addresses.
pub(super) fn failed(at: String, status: &Status) -> ControlError {
    if let Some(why) = certificate_error(status) {
        return ControlError::Stranger { at, why };
    }
    let lost = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
    if lost && causes(status).next().is_some() {
        return ControlError::Unreachable { at, why: deepest(status) };
    }
    if status.code() == Code::Unauthenticated {
        return ControlError::SessionEnded;
    }
    if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) {
        return ControlError::Slow { at };
    }
    // Whatever has no cause on this side was said by the server.
    ControlError::Refused(status.message().chars().filter(|c| !c.is_control()).collect())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

/// The message of the cause that lies deepest, which is the one that a user can do something about.
fn deepest(status: &Status) -> String {
    causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// What is wrong with the server's certificate, if that is why the call failed.
fn certificate_error(status: &Status) -> Option<String> {
    // An I/O error hides what it was made of from the chain of causes.
    let of_tls = |error: &(dyn std::error::Error + 'static)| {
        let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
        inner.downcast_ref::<rustls::Error>().cloned()
    };
    let error = causes(status).find_map(of_tls)?;
    matches!(error, rustls::Error::InvalidCertificate(_)).then(|| error.to_string())
}
