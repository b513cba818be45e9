//! `nmplan`: plans and applies declared WireGuard meshes.

use std::process::ExitCode;

fn main() -> ExitCode {
    nmplan::commands::main()
}
