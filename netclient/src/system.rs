//! The host around a device: links, and what else the agent sets on a machine. Each part takes the whole wanted state
//! and may be applied twice.

pub mod link;
