//! (filled in below)

use anyhow::{Result, bail};
use clap::Args;

/// Arguments.
#[derive(Args)]
pub(crate) struct BenchArgs {}

/// Runs it.
pub(crate) fn run(_args: &BenchArgs) -> Result<()> {
    bail!("not yet")
}
