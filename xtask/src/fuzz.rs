//! `cargo xtask fuzz`: every fuzz target, for some seconds or a number of executions.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{cargo, root, target as target_dir};
use crate::setup;

/// How long, and what.
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Seconds for each target.
    #[arg(default_value_t = 60)]
    seconds: u64,
    /// Executions of each target, however long they take, instead of seconds.
    #[arg(long, conflicts_with = "seconds")]
    runs: Option<u64>,
    /// Without the address sanitizer, several times as fast: what is fuzzed has no `unsafe` of its own.
    #[arg(long)]
    fast: bool,
    /// Only this target; may be given several times.
    #[arg(long, value_name = "TARGET")]
    only: Vec<String>,
}

/// What libFuzzer said of one target.
#[derive(Default, Debug, PartialEq, Eq)]
struct Said {
    executions: u64,
    per_second: u64,
    /// The input that crashed it.
    artifact: Option<String>,
}

impl Said {
    fn line(&mut self, line: &str) {
        let number = |name: &str| line.strip_prefix(name).and_then(|rest| rest.trim().parse().ok());
        if let Some(executions) = number("stat::number_of_executed_units:") {
            self.executions = executions;
        } else if let Some(per_second) = number("stat::average_exec_per_sec:") {
            self.per_second = per_second;
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.artifact = Some(path.trim().to_owned());
        }
    }
}

/// Longest input, where libFuzzer's 4,096 bytes would only make each execution slower: everything that a target does can
/// be said in so many.
fn longest(target: &str) -> u32 {
    match target {
        "segment" => 64,
        "admin" | "token" => 128,
        "machines" | "schedule" | "syn" => 256,
        "frame" | "open" => 512,
        "manifest" => 2048,
        _ => 4096,
    }
}

fn run_target(target: &str, args: &FuzzArgs) -> Result<Said> {
    // What is found goes into the first folder; the second one is read, and changed by people only.
    let found = target_dir().join("fuzz-corpus").join(target);
    fs::create_dir_all(&found).with_context(|| format!("making {}", found.display()))?;
    let mut command = cargo();
    // The sanitizer's flags are unstable; the compiler of this checkout has them, so no other one is needed.
    command.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "run"]);
    if args.fast {
        // A folder of its own: other flags would build everything anew in the usual one.
        command.args(["--sanitizer", "none", "--target-dir"]).arg(target_dir().join("fuzz-fast"));
    }
    command.arg(target).arg(found);
    command.arg(root().join("fuzz/corpus").join(target)).args(["--", "-print_final_stats=1"]);
    command.arg(format!("-max_len={}", longest(target)));
    command.arg(match args.runs {
        Some(runs) => format!("-runs={runs}"),
        None => format!("-max_total_time={}", args.seconds),
    });
    let mut child = command.stderr(Stdio::piped()).spawn().context("cannot start `cargo fuzz`")?;
    let mut said = Said::default();
    for line in BufReader::new(child.stderr.take().context("no standard error")?).split(b'\n') {
        let line = line.context("reading what `cargo fuzz` says")?;
        let line = String::from_utf8_lossy(&line);
        eprintln!("{line}");
        said.line(&line);
    }
    let status = child.wait().context("waiting for `cargo fuzz`")?;
    match &said.artifact {
        Some(path) => bail!("{target} crashed: the input is {path}"),
        None if !status.success() => bail!("`cargo fuzz run {target}` failed ({status})"),
        None => Ok(said),
    }
}

/// Finds the targets and runs them, one after the other, up to the first crash.
pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    let dir = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut targets: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    targets.sort();
    if let Some(unknown) = args.only.iter().find(|only| !targets.contains(only)) {
        bail!("no target {unknown}: there are {}", targets.join(", "));
    }
    setup::fuzzer()?;
    targets.retain(|target| args.only.is_empty() || args.only.contains(target));
    let mut all = Vec::new();
    for target in targets {
        match args.runs {
            Some(runs) => eprintln!("fuzz: {target}, {runs} executions"),
            None => eprintln!("fuzz: {target}, {} s", args.seconds),
        }
        let said = run_target(&target, args)?;
        all.push((target, said));
    }
    println!("{:<16} {:>12} {:>10}", "target", "executions", "a second");
    for (target, said) in all {
        println!("{target:<16} {:>12} {:>10}", said.executions, said.per_second);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_and_artifacts_are_read() {
        let mut said = Said::default();
        for line in [
            "Done 1000 runs in 1 second(s)",
            "stat::number_of_executed_units: 1000",
            "stat::average_exec_per_sec:     500",
        ] {
            said.line(line);
        }
        assert_eq!(said, Said { executions: 1000, per_second: 500, artifact: None });
        said.line("artifact_prefix='fuzz/artifacts/x/'; Test unit written to fuzz/artifacts/x/crash-1");
        assert_eq!(said.artifact.as_deref(), Some("fuzz/artifacts/x/crash-1"));
    }
}
