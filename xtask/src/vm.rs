//! `cargo xtask vm`: the kernel programs on other kernels than this machine's, in qemu.

mod cpio;
mod fetch;
mod machine;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{output, root, target};
use crate::{build, setup};

/// Debian releases and the kernels they carry.
const RELEASES: &[(&str, &str)] = &[("bookworm", "6.1"), ("trixie", "6.12")];
/// What the lab and the agent need where Debian builds it as modules; what is built in is skipped.
const MODULES: &[&str] = &["veth", "bridge", "sch_ingress", "cls_bpf", "af_packet", "inet_diag", "tcp_diag"];
/// Programs that run in the machine.
const PROGRAMS: &[&str] = &["kumiko-vm-init", "kumiko-agent", "kumiko", "kumiko-peer"];

/// Arguments of `vm`.
#[derive(Args, Default)]
pub(crate) struct VmArgs {
    /// Only this kernel, such as 6.1.
    #[arg(long)]
    kernel: Option<String>,
    /// With the binaries that are there.
    #[arg(long)]
    no_build: bool,
    /// Show the machine's console.
    #[arg(long)]
    verbose: bool,
}

/// Runs it.
pub(crate) fn run(args: &VmArgs) -> Result<()> {
    setup::run(false)?;
    if !args.no_build {
        build::all(false)?;
        build::vm_init()?;
    }
    let mut failed = Vec::new();
    for (release, version) in RELEASES.iter().filter(|(_, v)| args.kernel.as_ref().is_none_or(|only| only == v)) {
        match one(release, version, args.verbose) {
            Ok(said) => println!("vm: {version}: ok\n{said}"),
            Err(cause) => {
                println!("vm: {version}: {cause:#}");
                failed.push(*version);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("kernels that failed: {}", failed.join(", ")) }
}

/// Boots one kernel; what its `/init` said.
fn one(release: &str, version: &str, verbose: bool) -> Result<String> {
    let dir = root().join("target/vm");
    let kernel = fetch::kernel(&dir, release, version)?;
    let initrd = dir.join(format!("{release}.cpio"));
    fs::write(&initrd, image(&kernel)?).with_context(|| format!("writing {}", initrd.display()))?;
    machine::boot(&kernel.vmlinuz, &initrd, &dir.join(format!("{release}.log")), verbose)
}

/// The initial file system: our programs, `ip`, their libraries, and the kernel's modules in order.
fn image(kernel: &fetch::Kernel) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::default();
    let ip = PathBuf::from(output("sh", &["-c", "command -v ip"]).context("no `ip` on this machine")?.trim());
    let mut files: Vec<(PathBuf, String)> = vec![(ip, "bin/ip".to_owned())];
    for name in PROGRAMS {
        files.push((stripped(name)?, format!("bin/{name}")));
    }
    let mut libraries = Vec::new();
    for (path, _) in &files {
        let text = output("ldd", &[&path.to_string_lossy()]).with_context(|| format!("ldd {}", path.display()))?;
        libraries.extend(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    for library in libraries {
        let inside = library.strip_prefix("/")?.to_string_lossy().into_owned();
        if !files.iter().any(|(_, there)| *there == inside) {
            files.push((library, inside));
        }
    }
    for (path, inside) in &files {
        archive.file(inside, &fs::read(path).with_context(|| format!("reading {}", path.display()))?, 0o755);
    }
    let mut order = String::new();
    for module in modules::in_order(&kernel.modules, MODULES)? {
        archive.file(&format!("modules/{}", module.file), &module.content, 0o644);
        order += &format!("{}\n", module.file);
    }
    archive.file("modules/order", order.as_bytes(), 0o644);
    archive.symlink("init", "bin/kumiko-vm-init");
    Ok(archive.finish())
}

/// A binary without its debug information, which would fill the machine's memory.
fn stripped(name: &str) -> Result<PathBuf> {
    let from = target().join("debug").join(name);
    let to = root().join("target/vm").join(name);
    let (from_text, to_text) = (from.to_string_lossy(), to.to_string_lossy());
    output("strip", &["-o", &to_text, &from_text]).with_context(|| format!("stripping {}", from.display()))?;
    Ok(to)
}

/// Makes a directory with its parents.
fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))
}
