//! The reconciler: plans and applies declared WireGuard meshes, and the lab that proves them.
//!
//! A [command](commands) gathers, calls `schema`, and renders: the files come from [`project`], the server's world from a
//! [`ControlPlane`](control::ControlPlane), the plan from [`schema::plan`], its text from [`render`]. The secrets of
//! access keys are made in [`keys`] and go to their sink and nowhere else. What a run ends with, [`error`] decides.
#![deny(unsafe_code)]

pub mod args;
pub mod commands;
pub mod console;
pub mod control;
pub mod environment;
pub mod error;
pub mod events;
pub mod git;
pub mod keys;
pub mod lab;
pub mod project;
pub mod render;
