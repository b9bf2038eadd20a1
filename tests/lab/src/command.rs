//! Running the system's tools (`ip`, `nft`, ...) with errors that say what was run and what it answered.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many times longer everything may take on a machine that is busy with something else.
const PATIENCE: u32 = 5;

/// Runs `program` and returns its standard output; a non-zero exit is an error with its standard error.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    checked(&format!("{program} {}", args.join(" ")), output)
}

/// Runs `program` with `input` on its standard input.
pub fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<String> {
    let what = format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{what}`; run `cargo xtask setup`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("writing to `{what}`"))?;
    }
    checked(&what, child.wait_with_output()).with_context(|| format!("its input was:\n{input}"))
}

fn checked(what: &str, output: std::io::Result<Output>) -> Result<String> {
    let output = output.with_context(|| format!("cannot run `{what}`; run `cargo xtask setup`"))?;
    if !output.status.success() {
        bail!("`{what}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is waited for cannot come any more.
#[derive(Debug)]
pub struct Never(pub String);

impl std::fmt::Display for Never {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Never {}

/// Asks `probe` again and again until it gives a value; after `limit` the last cause is the error, and a
/// [`Never`] is at once.
///
/// Limits are what an idle machine needs at the very most; a busy one gets [`PATIENCE`] times as long. They tell what
/// comes late from what never comes, nothing else. `KUMIKO_LAB_PATIENCE` says how often where processors are emulated.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let patience = std::env::var("KUMIKO_LAB_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(PATIENCE);
    let limit = limit * patience;
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(cause) if cause.is::<Never>() => return Err(cause.context(what.to_owned())),
            Err(cause) if Instant::now() >= deadline => {
                return Err(cause.context(format!("{what}: not so after {} s", limit.as_secs_f32())));
            }
            // Between two looks at what nobody tells of.
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
