//! Building the kernel programs and everything that the lab runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::process::{cargo, cargo_bin, root, run};
use crate::setup;

/// The object that agent/kernel's build script embeds.
pub(crate) fn object() -> PathBuf {
    root().join("target/bpf/kumiko.o")
}

/// Builds the kernel programs if anything of them changed.
pub(crate) fn ebpf() -> Result<()> {
    let object = object();
    if fresh(&object)? {
        return Ok(());
    }
    eprintln!("build-ebpf: {}", object.display());
    let began = SystemTime::now();
    let toolchain = setup::bpf_toolchain()?;
    let work = root().join("target/ebpf");
    let mut path = cargo_bin().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(&toolchain.cargo);
    command
        .current_dir(root().join("ebpf"))
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Zbuild-std=core", "--target-dir"])
        .arg(&work)
        .env("PATH", path)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTFLAGS", rustflags());
    // What cargo set for us is meant for the other compiler.
    for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTDOC", "RUSTC_WRAPPER", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"]
    {
        command.env_remove(name);
    }
    if toolchain.bootstrap {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    run(&mut command).context("building the kernel programs")?;
    install(&work.join("bpfel-unknown-none/release/kumiko"), &object)?;
    // A source that changed while they were built is newer than the stamp.
    let stamp = fs::File::create(stamp_path(&object)).and_then(|stamp| stamp.set_modified(began));
    stamp.context("writing the stamp of the kernel programs")
}

fn rustflags() -> String {
    let arch = std::env::consts::ARCH;
    format!("--cfg bpf_target_arch=\"{arch}\" -Cdebuginfo=2 -Clinker=bpf-linker -Clink-arg=--btf -Ctarget-cpu=v3")
}

/// Moves the object to its place; an equal one keeps its time, so nothing else is built again.
fn install(built: &Path, object: &Path) -> Result<()> {
    let new = fs::read(built).with_context(|| format!("reading {}", built.display()))?;
    if let Some(dir) = object.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    kumiko_lab::state::replace(object, &new)
}

fn stamp_path(object: &Path) -> PathBuf {
    object.with_extension("stamp")
}

/// Whether the object is there and no source of it is newer than its stamp.
fn fresh(object: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(stamp_path(object)).and_then(|meta| meta.modified()) else { return Ok(false) };
    Ok(object.exists() && newest(&root().join("ebpf"))? <= built)
}

fn newest(dir: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != "target" {
            newest = newest.max(self::newest(&entry.path())?);
        } else if kind.is_file() {
            newest = newest.max(entry.metadata()?.modified()?);
        }
    }
    Ok(newest)
}

/// What the lab starts. Always built together: else cargo would build what they share for each of them.
const PACKAGES: &[&str] = &["-p", "kumiko-agent", "-p", "kumiko", "-p", "kumiko-lab", "-p", "kumiko-bench"];

/// Builds the agent with fault points, beside the ordinary one.
pub(crate) fn faults() -> Result<()> {
    let features = ["--features", "kumiko-agent/fault-points", "--bin", "kumiko-agent-faults"];
    run(cargo().arg("build").args(PACKAGES).args(features))
}

/// Builds the kernel programs, then all that the lab starts.
pub(crate) fn all(release: bool) -> Result<()> {
    ebpf()?;
    let mut command = cargo();
    command.arg("build").args(PACKAGES).arg("--bins");
    if release {
        command.arg("--release");
    }
    run(&mut command)
}

/// Builds what runs as `/init` in the virtual machines.
pub(crate) fn vm_init() -> Result<()> {
    run(cargo().args(["build", "-p", "kumiko-tests", "--bin", "kumiko-vm-init"]))
}
