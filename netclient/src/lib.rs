//! The agent: keeps a machine's WireGuard interfaces as the server says.
pub mod device;
pub mod system;
