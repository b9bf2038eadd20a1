//! Rules that change all the time, and under many connections: nobody is ever judged by a mixture of two versions, and
//! exactly those lose their connection that lost their right.

mod callers;
mod crowd;
mod mixtures;
mod versions;

use std::process::ExitCode;

use anyhow::Result;
use kumiko_tests::harness;
use libtest_mimic::Arguments;

const NAMES: &[&str] =
    &["a_thousand_versions_and_never_a_mixture_of_two", "thousands_are_open_and_exactly_those_without_a_right_are_cut"];

fn main() -> ExitCode {
    harness::main(NAMES, run)
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there are no rules");
        return Ok(true);
    }
    // One after another: each of them fills both cores.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let tests: [fn() -> Result<()>; 2] = [mixtures::never, crowd::cut];
    let trials = NAMES.iter().zip(tests).map(|(name, test)| harness::trial(*name, test));
    Ok(harness::run_trials(&args, trials.collect()))
}
