//! `cargo xtask test`: set-up when needed, build, all tests.

use anyhow::{Result, bail};
use clap::Args;

use crate::process::{cargo, run as show};
use crate::{build, setup, vm};

/// Arguments of `test`.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Only integration tests of this name (as `cargo test --test NAME`).
    #[arg(long)]
    only: Option<String>,
    /// Without the kernels in qemu.
    #[arg(long)]
    without_vm: bool,
    /// Passed on to the test runners.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs all tests; the kernels in qemu first.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    setup::run(false)?;
    build::all(false)?;
    build::faults()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("the tests make network namespaces and load eBPF programs: run as root");
    }
    if let Some(name) = &args.only {
        return show(cargo().args(["test", "--quiet", "-p", "kumiko-tests", "--test", name, "--"]).args(&args.rest));
    }
    // All of them run even when some fail; the runners' own lines come last.
    let kernels = if args.without_vm { Ok(()) } else { vm::run(&vm::VmArgs::default()) };
    let tests = show(cargo().args(["test", "--workspace", "--locked", "--no-fail-fast", "--"]).args(&args.rest));
    match (kernels, tests) {
        (Ok(()), tests) => tests,
        (Err(cause), Ok(())) => Err(cause),
        (Err(cause), Err(tests)) => bail!("{tests:#}\n{cause:#}"),
    }
}
