//! (filled in below)

use anyhow::{Result, bail};
use clap::Args;

/// Arguments.
#[derive(Args)]
pub(crate) struct VmArgs {}

/// Runs it.
pub(crate) fn run(_args: &VmArgs) -> Result<()> {
    bail!("not yet")
}
