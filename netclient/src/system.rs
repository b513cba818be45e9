//! The host around a device: links, routes, forwarding, firewall, names. Each part takes the whole wanted
//! state, may be applied twice, and changes nothing that is not the agent's own.

pub mod elements;
pub mod firewall;
pub mod forwarding;
pub mod hosts;
pub mod link;
mod netlink;
pub mod own_tables;
pub mod resolved;
pub mod routing;
pub mod rp_filter;
pub mod slots;
pub mod watch;
