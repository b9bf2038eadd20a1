//! The agent with fault points, for tests only: they stop, kill or fail it at named places.

use std::process::ExitCode;

fn main() -> ExitCode {
    kumiko_agent::program::main()
}
