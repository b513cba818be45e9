//! `netclient`: the agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    netclient::commands::main()
}
