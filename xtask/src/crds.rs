//! `cargo xtask crds`: deploy/crds from the Rust types that are their source.

use anyhow::Result;

use crate::process::{cargo, root, run as show};

/// Writes the definitions.
pub(crate) fn run() -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--locked", "-p", "kumiko-core", "--example", "crds", "--"]);
    show(command.arg(root().join("deploy/crds")))
}
