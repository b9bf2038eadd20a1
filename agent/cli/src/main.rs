//! `kumiko`: asks this node's agent and shows what it answers.

use std::process::ExitCode;

use clap::Parser as _;
use kumiko::options::Cli;

fn main() -> ExitCode {
    // Wrong usage ends here, with code 2.
    let cli = Cli::parse();
    match kumiko::run(&cli) {
        Ok(answer) => answer.into(),
        Err(error) => {
            eprintln!("kumiko: {}", kumiko::on_a_terminal(&error.to_string()));
            error.code()
        }
    }
}
