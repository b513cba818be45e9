//! The wire between agents and the server: typed messages, what is signed in them, the access token.
//!
//! The messages are generated from `proto/agent.proto` and stay inside the adapters; the rest of the programs
//! uses the model's types, to which [`convert`] translates. [`sign`] says exactly which bytes a signature
//! covers. [`token`] is what a host joins with, [`position`] names the state of the server that a View is of,
//! and [`secret`] is what all programs keep a secret in.

pub mod convert;
pub mod position;
pub mod secret;
pub mod sign;
pub mod token;

/// The messages and services, generated from `proto/agent.proto`, which documents them.
#[expect(missing_docs, reason = "generated; documented in the .proto file")]
#[expect(clippy::derive_partial_eq_without_eq, clippy::allow_attributes, reason = "generated")]
#[allow(unused_qualifications, clippy::all)]
pub mod wire {
    tonic::include_proto!("netmaker.agent.v1");
}
