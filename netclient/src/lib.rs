//! The agent.
pub mod device;
