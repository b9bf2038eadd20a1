//! `cargo xtask fuzz`: every fuzz target for some seconds.

use std::fs;

use anyhow::{Context, Result};

use crate::process::{cargo, root, run as show, target as target_dir};
use crate::setup;

/// Runs each target of fuzz/ for `seconds`.
fn run_targets(seconds: u64, targets: &[String]) -> Result<()> {
    for target in targets {
        eprintln!("fuzz: {target}, {seconds} s");
        // What is found goes into the first folder; the second one is read, and changed by people only.
        let found = target_dir().join("fuzz-corpus").join(target);
        fs::create_dir_all(&found).with_context(|| format!("making {}", found.display()))?;
        let mut command = cargo();
        // The sanitizer's flags are unstable; the compiler of this checkout has them, so no other one is needed.
        command.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "run", target]).arg(found);
        command.arg(root().join("fuzz/corpus").join(target)).arg("--");
        show(command.arg(format!("-max_total_time={seconds}")))?;
    }
    Ok(())
}

/// Finds the targets and runs them.
pub(crate) fn run(seconds: u64) -> Result<()> {
    setup::fuzzer()?;
    let dir = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut targets: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    targets.sort();
    run_targets(seconds, &targets)
}
