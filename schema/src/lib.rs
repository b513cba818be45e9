//! The model: what a network is, what changes between two of them, and what each node is sent.
//!
//! Everything here is pure: no input or output, no clock, no random numbers. Text becomes
//! [documents](document::Document) ([`syntax`]), documents become a [`snapshot`] ([`decode`]), two snapshots
//! become changes ([`diff`]), and a snapshot with an [`inventory`] of what has joined becomes a [`view`] for
//! each node ([`compile`]). The server, `nmplan plan` and the lab call these same functions; nothing else
//! defines what a network means. The documents that programs exchange are described once, by their types
//! ([`published`]).
#![forbid(unsafe_code)]

// The derives name this crate from outside as well as from inside.
extern crate self as schema;

pub mod access;
pub mod advice;
pub mod api;
pub mod attribute;
pub mod chain;
pub mod client;
pub mod compile;
pub mod decode;
pub mod descriptor;
pub mod details;
pub mod diff;
pub mod document;
pub mod guard;
pub mod impact;
pub mod inventory;
pub mod judge;
pub mod kinds;
pub mod limits;
pub mod lookup;
pub mod plan;
pub mod project;
pub mod published;
pub mod reference;
pub mod report;
pub mod rules;
pub mod scalars;
pub mod server_info;
pub mod settings;
pub mod snapshot;
pub mod subject;
pub mod syntax;
pub mod text;
pub mod value;
pub mod view;
pub mod world;
pub mod zone;

pub use rules::source_map;
