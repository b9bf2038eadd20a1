//! Running trials in libtest's format, with labs that outlive the single trial.

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

/// A trial that fails with the whole chain of causes.
pub fn trial(name: impl Into<String>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(|cause| Failed::from(format!("{cause:#}"))))
}

/// Command line of a test binary, as libtest takes it.
pub fn arguments() -> Arguments {
    Arguments::from_args()
}

/// Whether this run only lists tests, or filters all of these out: then no lab is needed.
pub fn only_lists(args: &Arguments) -> bool {
    args.list
}

/// Runs trials; whether all went well. Two at once unless told otherwise: each drives several processes.
pub fn run(args: &Arguments, trials: Vec<Trial>) -> bool {
    let threads = args.test_threads.or(Some(4));
    let args = Arguments { test_threads: threads, ..args.clone() };
    !libtest_mimic::run(&args, trials).has_failed()
}

/// Why tests on namespaces cannot run here, if they cannot.
pub fn cannot_run() -> Option<&'static str> {
    let root = std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
    if root { None } else { Some("needs root: it makes network namespaces") }
}

/// Ends a test binary's `main`.
pub fn exit(well: bool) -> std::process::ExitCode {
    // 101 is what libtest ends with.
    if well { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::from(101) }
}
