//! `cargo xtask`: the one entry to every chore of this repository.

mod bench;
mod build;
mod crds;
mod demo;
mod fuzz;
mod lab;
mod lint;
mod process;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Every chore of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what building, testing and the demo need (Debian 12, as root). Does nothing when all is there.
    Setup,
    /// Build the kernel programs into target/bpf/kumiko.o.
    BuildEbpf,
    /// Build the kernel programs, the agent, the CLI and the lab's peer.
    Build {
        /// Optimised.
        #[arg(long)]
        release: bool,
    },
    /// A lab that stays: nodes and pods as network namespaces, with agents.
    Lab(lab::LabArgs),
    /// Run all tests.
    Test(test::TestArgs),
    /// Watch kumiko encrypt real programs' traffic, in two minutes.
    Demo(demo::DemoArgs),
    /// Measure, beside the direct way and beside a plain relay.
    Bench(bench::BenchArgs),
    /// Load and attach every program on Debian's other kernels, in qemu.
    Vm(vm::VmArgs),
    /// Run the fuzz targets.
    Fuzz(fuzz::FuzzArgs),
    /// Write deploy/crds from the types.
    Crds,
    /// Formatting, clippy with warnings denied, and this repository's own rules.
    Lint,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("error: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    match chore {
        Chore::Setup => setup::run(true),
        Chore::BuildEbpf => build::ebpf(),
        Chore::Build { release } => build::all(release),
        Chore::Lab(args) => lab::run(args),
        Chore::Test(args) => test::run(&args),
        Chore::Demo(args) => demo::run(&args),
        Chore::Bench(args) => bench::run(&args),
        Chore::Vm(args) => vm::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::Crds => crds::run(),
        Chore::Lint => lint::run(),
    }
}
