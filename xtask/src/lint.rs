//! `cargo xtask lint`: formatting, clippy with warnings denied, and rules that no tool knows.

mod specification;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, root, run as show};
use crate::{build, setup};

/// The only places that may use `unsafe`.
const UNSAFE_PLACES: &[&str] = &["agent/kernel", "ebpf"];

/// Runs all checks.
pub(crate) fn run() -> Result<()> {
    setup::run(false)?;
    build::ebpf()?;
    eprintln!("lint: formatting");
    show(cargo().args(["fmt", "--all", "--check"]))?;
    show(cargo().args(["fmt", "--all", "--check"]).current_dir(root().join("ebpf")))?;
    eprintln!("lint: clippy");
    show(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    let features = ["--features", "kumiko-agent/fault-points"];
    show(cargo().args(["clippy", "-p", "kumiko-agent", "--locked"]).args(features).args(["--", "-D", "warnings"]))?;
    eprintln!("lint: clippy of the kernel programs");
    ebpf_clippy()?;
    eprintln!("lint: Go");
    go()?;
    eprintln!("lint: this repository's rules");
    rules()?;
    eprintln!("lint: all well");
    Ok(())
}

/// The kernel programs are checked by the compiler of this checkout: only types and lints, nothing is linked.
fn ebpf_clippy() -> Result<()> {
    let mut command = cargo();
    command
        .current_dir(root().join("ebpf"))
        .args(["clippy", "--locked", "--target-dir"])
        .arg(root().join("target/ebpf-clippy"))
        .args(["--", "-D", "warnings"]);
    show(&mut command)
}

/// The Go programs of the tests.
fn go() -> Result<()> {
    let dir = root().join("tests/programs");
    let unformatted = Command::new("gofmt").args(["-l", "."]).current_dir(&dir).output().context("running gofmt")?;
    if !unformatted.stdout.is_empty() {
        bail!("gofmt would change, in {}:\n{}", dir.display(), String::from_utf8_lossy(&unformatted.stdout));
    }
    show(Command::new("go").args(["vet", "./..."]).current_dir(&dir))
}

fn rules() -> Result<()> {
    let mut broken = specification::check(&root())?;
    for path in tracked(".rs")? {
        let text = fs::read_to_string(root().join(&path)).with_context(|| format!("reading {}", path.display()))?;
        if !UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) && uses_unsafe(&text) {
            broken.push(format!("{}: `unsafe` outside {}", path.display(), UNSAFE_PLACES.join(" and ")));
        }
        if path.file_name().is_some_and(|name| name == "mod.rs" || name == "utils.rs") {
            broken.push(format!("{}: modules are area.rs beside area/, named after one idea", path.display()));
        }
    }
    for path in tracked("Cargo.toml")? {
        let text = fs::read_to_string(root().join(&path)).with_context(|| format!("reading {}", path.display()))?;
        let member = path.components().count() > 1 && !path.starts_with("fuzz") && !path.starts_with("ebpf");
        let own = path.starts_with("agent/kernel");
        if member && !own && !text.contains("[lints]\nworkspace = true") {
            broken.push(format!("{}: does not take the workspace's lints", path.display()));
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("rules broken:\n  {}", broken.join("\n  ")) }
}

fn uses_unsafe(text: &str) -> bool {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).any(|code| {
        code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe") && !code.contains('"')
    })
}

fn tracked(suffix: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().context("running git")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split('\0').filter(|name| name.ends_with(suffix)).map(|name| Path::new(name).to_owned()).collect())
}
