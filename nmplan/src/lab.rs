//! How are the declared networks brought up for real, on one computer, without changing it?
//!
//! The foundation of `nmplan lab` and of the end-to-end tests: private namespaces, virtual hosts, the network
//! between them, processes inside them, and pings; on top of these a [`Server`] and [`Agent`]s. It never
//! changes an interface, route, mount or file of the real machine.
//!
//! Start at [`enter`] (or [`enter_test`] in a test), which runs a program in namespaces of its own. In there:
//!
//! 1. [`Underlay::new`] makes the network that connects the hosts,
//! 2. [`Underlay::host`] makes a [`Host`]: network, mounts, files and name of its own,
//! 3. [`Host::start`] runs a [`Process`] inside it, [`Host::within`] a closure, [`Host::ping`] and
//!    [`Host::pinger`] send packets from it,
//! 4. [`Host::listen`] opens [`Service`]s at it, [`Host::probe`] tries whether another host may open one, and
//!    [`Host::flow`] keeps traffic going while something changes.
//!
//! `nmplan lab` derives the participants from the declarations ([`roster`]), what is around them
//! ([`surroundings`]), and what packets between them must show ([`claims`]). It brings them up ([`run`]), sends
//! packets, also while nodes join, leave and are lost ([`running`], [`scenario`]), and says what they showed
//! ([`verdict`], as text: [`report`]).
//!
//! Invariant: whichever process dies, by whichever signal, the end of the program that was entered is the end
//! of every process, interface, mount and file made here.

mod agent;
mod cable;
pub mod claims;
mod client;
mod enter;
mod flow;
mod host;
mod judge;
pub mod kept;
mod listeners;
pub mod matrix;
mod ping;
mod probe;
mod process;
mod programs;
pub mod report;
pub mod roster;
pub mod run;
pub mod running;
pub mod scenario;
mod server;
pub mod surroundings;
mod trace;
mod underlay;
pub mod verdict;
mod wiring;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use agent::Agent;
pub use cable::Impairment;
pub use client::Client;
pub use enter::{DIRECTORY, EnterError, Step, enter, enter_test, inside, outside_pid};
pub use flow::{Flow, PACE, Pattern, Timeline};
pub use host::Host;
pub use listeners::{Heard, Listeners, Service};
pub use ping::{PingCount, Pinger};
pub use probe::{Outcome, Probe};
pub use process::Process;
pub use programs::Programs;
pub use server::Server;
pub use underlay::Underlay;
pub use wiring::Around;

/// Why something could not be made in the lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process was not started by [`enter`], so it would change the real machine.
    #[error("networks can only be made inside a lab, and this process runs outside of one")]
    Outside,
    /// The name is not valid for a host and its directory: it needs 1 to 63 of `a-z A-Z 0-9 . - _`, and must
    /// begin with a letter or digit.
    #[error("`{0}` is not a valid host name")]
    Name(String),
    /// The lab has a host of this name.
    #[error("the lab already has a host `{0}`")]
    Taken(String),
    /// The underlay's range of addresses is used up.
    #[error("the lab has no address left for another host")]
    Full,
    /// One of our programs was not found.
    #[error("`{0}` is neither next to this program nor in PATH; build it with `cargo build --workspace`")]
    Program(&'static str),
    /// The server did not start.
    #[error("nmserver did not start; it printed:\n{0}")]
    NotServing(String),
    /// A program failed; its error output.
    #[error("{0}")]
    Refused(String),
    /// The operating system refused an operation.
    #[error("the lab could not {attempt}")]
    System {
        /// What was attempted.
        attempt: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel refused a change of interfaces, addresses or routes.
    #[error("the lab could not {attempt}")]
    Network {
        /// What was attempted.
        attempt: String,
        /// What the kernel answered.
        source: rtnetlink::Error,
    },
}

fn system(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let attempt = attempt.into();
    move |source| Error::System { attempt, source }
}

fn network(attempt: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let attempt = attempt.into();
    move |source| Error::Network { attempt, source }
}

/// What a lock protects; a thread that panicked with it has left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a text in KDL declares, which has no error.
#[cfg(test)]
fn declared(text: &str) -> schema::snapshot::Snapshot {
    use schema::syntax::{Language, Source, parse};

    let source = Source { name: "mesh.kdl".into(), text: text.into(), language: Language::Kdl };
    let (documents, report) = parse(&source, schema::value::SourceId(0), schema::kinds::Kind::DESCRIPTORS);
    assert!(report.is_empty(), "{report:?}");
    let (declared, mut report) = schema::decode::decode(documents);
    report.append(schema::rules::check(&declared.snapshot, &declared.source_map));
    assert!(!report.has_errors(), "{report:?}");
    declared.snapshot
}

#[cfg(test)]
mod tests;
