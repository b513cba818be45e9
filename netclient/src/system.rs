//! The host around a device: links, forwarding, firewall, names. Each part takes the whole wanted state, may be applied
//! twice, and changes nothing that is not the agent's own.

pub mod firewall;
pub mod forwarding;
pub mod hosts;
pub mod link;
pub mod rp_filter;
