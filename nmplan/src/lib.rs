//! The reconciler: plans and applies declared WireGuard meshes; and the lab that tests them with packets.
//!
//! A [command](commands) gathers input, calls `schema`, and renders the result: the files come from
//! [`project`], the server's world from a [`ControlPlane`](control::ControlPlane), the plan from
//! [`schema::plan`], its text from [`render`]. The secrets of access keys are created in [`keys`] and go to
//! their sink and nowhere else; those of external clients are made in [`client`]. [`error`] maps failures to exit codes.
#![deny(unsafe_code)]

pub mod args;
pub mod client;
pub mod commands;
pub mod console;
pub mod control;
pub mod environment;
pub mod error;
pub mod events;
pub mod git;
pub mod interrupt;
pub mod keys;
pub mod lab;
pub mod project;
pub mod render;
