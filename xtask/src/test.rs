//! `cargo xtask test`: set-up when needed, build, all tests.

use anyhow::{Result, bail};
use clap::Args;

use crate::process::{cargo, run as show};
use crate::{build, setup};

/// Arguments of `test`.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Only integration tests of this name (as `cargo test --test NAME`).
    #[arg(long)]
    only: Option<String>,
    /// Passed on to the test runners.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs all tests; the kernels in qemu last.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    setup::run(false)?;
    build::all(false)?;
    if !nix::unistd::geteuid().is_root() {
        bail!("the tests make network namespaces and load eBPF programs: run as root");
    }
    if let Some(name) = &args.only {
        return show(cargo().args(["test", "--quiet", "-p", "kumiko-tests", "--test", name, "--"]).args(&args.rest));
    }
    // All crates' tests run even when some fail; the exit code says so.
    show(cargo().args(["test", "--workspace", "--locked", "--no-fail-fast", "--"]).args(&args.rest))
}
