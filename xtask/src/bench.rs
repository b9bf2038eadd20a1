//! `cargo xtask bench`: optimised binaries, three forms side by side.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::process::{run as show, target};
use crate::{build, setup};

/// Arguments of `bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Rounds; each goes through all forms.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// How pods are joined to their node: routed or bridged.
    #[arg(long, default_value = "routed")]
    net: String,
    /// Only one part: `flows` or `policy`.
    #[arg(long)]
    only: Option<Part>,
}

/// Parts of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The mesh beside the direct way and a plain relay.
    Flows,
    /// Compiling policy, and asking it in the kernel.
    Policy,
}

/// Runs it.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    setup::run(false)?;
    build::all(true)?;
    if args.only != Some(Part::Policy) {
        flows(args)?;
    }
    if args.only != Some(Part::Flows) {
        let mut command = Command::new(target().join("release/kumiko-bench"));
        show(command.args(["policy", "--command", "cargo xtask bench --only policy"]))?;
    }
    Ok(())
}

fn flows(args: &BenchArgs) -> Result<()> {
    let json = target().join("bench.json");
    let typed = format!("cargo xtask bench --rounds {} --seconds {} --net {}", args.rounds, args.seconds, args.net);
    let mut command = Command::new(target().join("release/kumiko-bench"));
    command.args(["run", "--rounds", &args.rounds.to_string(), "--seconds", &args.seconds.to_string()]);
    command.args(["--net", &args.net, "--command", &typed, "--json"]).arg(&json);
    show(&mut command)?;
    eprintln!("bench: all figures are in {}", json.display());
    Ok(())
}
