//! The agent's program. What it does stands in `commands`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(vectorlay::commands::main(std::env::args_os().skip(1).collect()))
}
