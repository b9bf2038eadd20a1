//! `cargo xtask fuzz`: every fuzz target for some seconds.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo_bin, root, run as show};

/// Runs each target of fuzz/ for `seconds`.
fn run_targets(seconds: u64, targets: &[String]) -> Result<()> {
    for target in targets {
        eprintln!("fuzz: {target}, {seconds} s");
        let mut command = Command::new(cargo_bin().join("cargo"));
        command.current_dir(root()).args(["+nightly", "fuzz", "run", target, "--"]);
        // The environment of the cargo that runs us names its own toolchain.
        for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC"] {
            command.env_remove(name);
        }
        show(command.arg(format!("-max_total_time={seconds}")))?;
    }
    Ok(())
}

/// Finds the targets and runs them.
pub(crate) fn run(seconds: u64) -> Result<()> {
    if !cargo_bin().join("cargo-fuzz").exists() {
        bail!("fuzzing needs cargo-fuzz and a nightly: `cargo install cargo-fuzz`, `rustup toolchain install nightly`");
    }
    let dir = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut targets: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    targets.sort();
    run_targets(seconds, &targets)
}
