//! The agent: keeps a host's WireGuard interfaces up to date with what the server sends.
//!
//! [`agent`] is what commands and other programs hold; [`driver`] keeps one network current continuously.
//! Decisions are pure: [`agent_state`] (when to call), [`membership`] (what to accept), [`tunnels`] and
//! [`reconcile`] (what to change), [`filter`] (who may open what here), [`outside`] (what stays out of the mesh),
//! [`gateways`] and [`forwarding`] (what the host forwards), [`backoff`] (when to try again).
//! What acts is thin: [`control`] (the server), [`tunnel`] (device, links, names), [`host`] (the host),
//! [`directory`] (the disk).
#![deny(unsafe_code)]

pub mod addresses;
pub mod agent;
pub mod agent_state;
pub mod args;
pub mod backoff;
pub mod clock;
pub mod commands;
pub mod comms;
pub mod control;
pub mod daemon;
pub mod device;
pub mod directory;
pub mod driver;
mod errors;
pub mod files;
pub mod filter;
pub mod forwarding;
pub mod gateways;
pub mod host;
mod journal;
pub mod membership;
pub mod outside;
pub mod ranges;
pub mod reconcile;
pub mod registration;
pub mod server_names;
pub mod settings;
pub mod system;
pub mod systemd;
pub mod tunnel;
pub mod tunnels;
pub mod waiting;
