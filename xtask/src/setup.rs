//! What this repository needs of a Debian 12 machine, and how it gets there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, cargo_bin, output, run_logged, target};

/// LLVM that bpf-linker is built with: never older than the one inside the compiler of the kernel programs.
const LLVM: &str = "22";
const LINKER_VERSION: &str = "0.13.0";
const FUZZ_VERSION: &str = "0.13.2";

/// Debian packages and what they are for.
const PACKAGES: &[(&str, &str)] = &[
    ("build-essential", "C compiler and linker, for crates with C parts"),
    ("pkg-config", "crates with C parts"),
    ("rustc-web", "compiler of the kernel programs"),
    ("cargo-web", "compiler of the kernel programs"),
    ("rust-web-src", "compiler of the kernel programs (builds core)"),
    ("llvm-22-dev", "bpf-linker"),
    ("libpolly-22-dev", "bpf-linker"),
    ("libzstd-dev", "bpf-linker"),
    ("zlib1g-dev", "bpf-linker"),
    ("iproute2", "lab"),
    ("nftables", "lab: Service translation"),
    ("procps", "lab: sysctl"),
    ("tcpdump", "tests and demo: captures"),
    ("nginx-light", "demo"),
    ("redis-server", "demo"),
    ("redis-tools", "demo"),
    ("iperf3", "demo and bench"),
    ("curl", "demo"),
    ("ncat", "demo"),
    ("ethtool", "tests"),
    ("strace", "tests"),
    ("apache2-utils", "tests: ordinary programs"),
    ("git", "tests: ordinary programs"),
    ("golang-go", "tests: ordinary programs (WebSocket, gRPC, a proxy)"),
    ("haproxy", "tests: ordinary programs, health checks"),
    ("netcat-openbsd", "tests: health checks"),
    ("openssh-client", "tests: ordinary programs"),
    ("openssh-server", "tests: ordinary programs"),
    ("postgresql", "tests: ordinary programs"),
    ("postgresql-client", "tests: ordinary programs"),
    ("rsync", "tests: ordinary programs"),
    ("vsftpd", "tests: ordinary programs"),
    ("wrk", "tests: ordinary programs"),
    ("bpftool", "tests: looking at programs and maps"),
    ("qemu-system-x86", "vm"),
    ("xz-utils", "vm: compressed modules"),
];

/// Installs what is missing. `loud` says so too when nothing is.
pub(crate) fn run(loud: bool) -> Result<()> {
    fs::create_dir_all(target()).context("making the target directory")?;
    let log = target().join("setup.log");
    let missing = missing_packages();
    let linker = linker_missing();
    if missing.is_empty() && !linker {
        if loud {
            eprintln!("setup: everything is there ({} packages, bpf-linker {LINKER_VERSION})", PACKAGES.len());
        }
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("set-up installs packages and the lab makes network namespaces: run as root");
    }
    if !missing.is_empty() {
        install_packages(&missing, &log)?;
    }
    if linker {
        install_linker(&log)?;
    }
    eprintln!("setup: done; what the tools said is in {}", log.display());
    Ok(())
}

fn missing_packages() -> Vec<&'static str> {
    let names: Vec<&str> = PACKAGES.iter().map(|(name, _)| *name).collect();
    // dpkg-query fails when one of them is unknown, and still prints the others.
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"]).args(&names);
    let text = query.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let installed = |name: &str| text.lines().any(|line| line == format!("{name} installed"));
    // Any Go will do, also one that Debian does not know of.
    let has_go = output("go", &["version"]).is_some();
    names.into_iter().filter(|name| !installed(name) && (*name != "golang-go" || !has_go)).collect()
}

/// Installs cargo-fuzz if it is missing.
pub(crate) fn fuzzer() -> Result<()> {
    if output(cargo_bin().join("cargo-fuzz"), &["fuzz", "--version"]).is_some() {
        return Ok(());
    }
    fs::create_dir_all(target()).context("making the target directory")?;
    eprintln!("setup: building cargo-fuzz {FUZZ_VERSION} into {}", cargo_bin().display());
    let mut command = cargo();
    command.args(["install", "cargo-fuzz", "--version", FUZZ_VERSION, "--locked", "--target-dir"]);
    command.arg(target().join("cargo-fuzz")).current_dir(std::env::temp_dir());
    run_logged("building cargo-fuzz", &mut command, &target().join("setup.log"))
}

fn linker_missing() -> bool {
    !output(cargo_bin().join("bpf-linker"), &["--version"]).is_some_and(|text| text.contains(LINKER_VERSION))
}

fn install_packages(missing: &[&str], log: &Path) -> Result<()> {
    eprintln!("setup: installing {} Debian packages:", missing.len());
    for (name, reason) in PACKAGES.iter().filter(|(name, _)| missing.contains(name)) {
        eprintln!("  {name:<18} {reason}");
    }
    let _no_services = NoServices::new()?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run_logged("reading the package lists", apt().args(["-q", "update"]), log)?;
    run_logged("installing", apt().args(["-q", "install", "-y", "--no-install-recommends"]).args(missing), log)
}

fn install_linker(log: &Path) -> Result<()> {
    eprintln!("setup: building bpf-linker {LINKER_VERSION} into {}", cargo_bin().display());
    let mut path = std::ffi::OsString::from(format!("/usr/lib/llvm-{LLVM}/bin:"));
    // Without that directory first it asks another llvm-config, and `-lLLVM` is not found.
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = cargo();
    command.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"]);
    command.args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]);
    // In its own directory: the caller's may belong to a build that runs.
    command.arg("--target-dir").arg(target().join("bpf-linker")).current_dir(std::env::temp_dir());
    run_logged("building bpf-linker", command.env("PATH", path).env_remove("RUSTFLAGS"), log)
}

/// While it lives, installing a package starts no service.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn new() -> Result<Self> {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        fs::write(&path, "#!/bin/sh\nexit 101\n").with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .context("making it executable")?;
        eprintln!("  ({} keeps the new packages from starting services meanwhile)", path.display());
        Ok(Self(Some(path)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// A compiler for the kernel programs.
pub(crate) struct BpfToolchain {
    /// Its cargo.
    pub cargo: PathBuf,
    /// Its rustc.
    pub rustc: PathBuf,
    /// Whether it must be told that unstable features are welcome.
    pub bootstrap: bool,
}

/// A nightly with rust-src whose LLVM bpf-linker can read, else Debian's compiler.
pub(crate) fn bpf_toolchain() -> Result<BpfToolchain> {
    if let Some(found) = nightly() {
        return Ok(found);
    }
    let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    if !cargo.exists() || !rustc.exists() {
        bail!("no compiler for the kernel programs; run `cargo xtask setup`");
    }
    Ok(BpfToolchain { cargo, rustc, bootstrap: true })
}

fn nightly() -> Option<BpfToolchain> {
    let sysroot = PathBuf::from(output("rustup", &["run", "nightly", "rustc", "--print", "sysroot"])?.trim());
    let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
    let has_source = sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").exists();
    let llvm =
        output(&rustc, &["-vV"])?.lines().find_map(|line| line.strip_prefix("LLVM version: ").map(str::to_owned))?;
    // A newer LLVM writes bitcode that bpf-linker's cannot read.
    let readable = llvm.split('.').next() == Some(LLVM);
    (has_source && readable && cargo.exists()).then_some(BpfToolchain { cargo, rustc, bootstrap: false })
}
