//! (filled in below)

use anyhow::{Result, bail};
use clap::Args;

/// Arguments.
#[derive(Args)]
pub(crate) struct DemoArgs {}

/// Runs it.
pub(crate) fn run(_args: &DemoArgs) -> Result<()> {
    bail!("not yet")
}
