//! Running programs: with their output shown, or kept in a log while a line says that it goes on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The root of this checkout.
pub(crate) fn root() -> PathBuf {
    kumiko_lab::state::checkout()
}

/// Cargo's target directory of this checkout.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The home directory of cargo's binaries.
pub(crate) fn cargo_bin() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    home.unwrap_or_default().join("bin")
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs to the end with its output shown.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let what = shown(command);
    let status = command.status().with_context(|| format!("cannot start `{what}`"))?;
    if !status.success() {
        bail!("`{what}` failed ({status})");
    }
    Ok(())
}

/// Runs to the end with its output in a log; every 10 s a line says how long it takes already.
pub(crate) fn run_logged(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    let shown = shown(command);
    let file =
        File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    let copy = file.try_clone().context("sharing a log")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let began = Instant::now();
    let mut said = began;
    eprintln!("  {what} ...");
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("waiting for `{shown}`"))? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            let tail = kumiko_lab::agents::tail(log, 1);
            eprintln!("  {what} ... {} s ({})", began.elapsed().as_secs(), tail.trim());
        }
    };
    if !status.success() {
        let tail = kumiko_lab::agents::tail(log, 30);
        bail!("`{shown}` failed ({status}); the end of {}:\n{tail}", log.display());
    }
    eprintln!("  {what}: done in {} s", began.elapsed().as_secs());
    Ok(())
}

/// Standard output of a program that must succeed; none when it cannot be run or fails.
pub(crate) fn output(program: impl AsRef<Path>, args: &[&str]) -> Option<String> {
    let output = Command::new(program.as_ref()).args(args).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
