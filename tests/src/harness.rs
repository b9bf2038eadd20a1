//! Running trials in libtest's format, with labs that outlive the single trial.

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// A trial that fails with the whole chain of causes.
pub fn trial(name: impl Into<String>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(|cause| Failed::from(format!("{cause:#}"))))
}

/// One test binary: a name, the names of its trials, and how they are run.
///
/// `run` gets the command line, makes its labs, and says whether all went well. It is not called when trials are only
/// listed, or when tests on namespaces cannot run here.
pub fn main(names: &[&str], run: impl FnOnce(&Arguments) -> Result<bool>) -> ExitCode {
    let args = Arguments::from_args();
    let skipped = cannot_run();
    if args.list || skipped.is_some() {
        if let Some(reason) = skipped.filter(|_| !args.list) {
            eprintln!("skipped: {reason}");
        }
        let trials = names.iter().map(|name| Trial::test(*name, || Ok(())).with_ignored_flag(skipped.is_some()));
        return exit(run_trials(&args, trials.collect()));
    }
    let wanted = |name: &&str| match &args.filter {
        Some(filter) if args.exact => name == filter,
        Some(filter) => name.contains(filter.as_str()),
        None => true,
    };
    if !names.iter().any(wanted) {
        return exit(run_trials(&args, Vec::new()));
    }
    match run(&args) {
        Ok(well) => exit(well),
        Err(cause) => {
            eprintln!("error: {cause:#}");
            exit(false)
        }
    }
}

/// Runs trials; whether all went well. Four at once unless told otherwise.
pub fn run_trials(args: &Arguments, trials: Vec<Trial>) -> bool {
    let threads = args.test_threads.or(Some(4));
    let args = Arguments { test_threads: threads, ..args.clone() };
    !libtest_mimic::run(&args, trials).has_failed()
}

/// Runs trials that judge what the others left behind, whatever the command line selects.
pub fn run_afterwards(trials: Vec<Trial>) -> bool {
    !libtest_mimic::run(&Arguments { test_threads: Some(1), ..Arguments::default() }, trials).has_failed()
}

/// Whether labs are built without agents (`KUMIKO_TEST_DIRECT` set): shows that a test's own expectations hold for plain
/// TCP.
pub fn without_mesh() -> bool {
    std::env::var_os("KUMIKO_TEST_DIRECT").is_some()
}

/// Why tests on namespaces cannot run here, if they cannot.
fn cannot_run() -> Option<&'static str> {
    let root = std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
    if root { None } else { Some("needs root: it makes network namespaces") }
}

/// Ends a test binary's `main`.
fn exit(well: bool) -> ExitCode {
    // 101 is what libtest ends with.
    if well { ExitCode::SUCCESS } else { ExitCode::from(101) }
}
