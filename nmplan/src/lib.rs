//! The reconciler: plans and applies declared WireGuard meshes, and the lab that proves them.
#![deny(unsafe_code)]

pub mod lab;
