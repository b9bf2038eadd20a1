//! `kumiko-agent`: the node agent, the issuer, and their chores.

use std::process::ExitCode;

fn main() -> ExitCode {
    kumiko_agent::program::main()
}
