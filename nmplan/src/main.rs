//! `nmplan`: plans and applies declared WireGuard meshes.

use std::process::ExitCode;

/// Nearly all of what a plan of many objects costs is spent by the parser of KDL, and much of that on memory.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    nmplan::commands::main()
}
