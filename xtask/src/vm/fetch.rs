//! Debian's kernels, by apt with lists and caches of its own: nothing of the machine's changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::make_dir;
use crate::process::{output, run_logged};

/// Name of the package that depends on a release's newest cloud kernel.
const NEWEST: &str = "linux-image-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel.
pub(super) struct Kernel {
    /// Its image.
    pub vmlinuz: PathBuf,
    /// The directory that holds its modules.
    pub modules: PathBuf,
}

/// The newest kernel of a release; what was fetched once is used again.
pub(super) fn kernel(dir: &Path, release: &str, version: &str) -> Result<Kernel> {
    let unpacked = dir.join(format!("{release}-root"));
    if find(&unpacked).is_err() {
        eprintln!("vm: fetching Debian's {version} kernel ({release})");
        fetch(dir, release, version, &unpacked)?;
    }
    find(&unpacked)
}

fn find(unpacked: &Path) -> Result<Kernel> {
    let boot = unpacked.join("boot");
    let entries = fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))?;
    let vmlinuz = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .with_context(|| format!("no kernel in {}", boot.display()))?;
    let modules = ["usr/lib/modules", "lib/modules"].map(|place| unpacked.join(place));
    let modules = modules.into_iter().find(|place| place.is_dir()).context("the kernel came without modules")?;
    Ok(Kernel { vmlinuz, modules })
}

fn fetch(dir: &Path, release: &str, version: &str, unpacked: &Path) -> Result<()> {
    let apt = Apt::new(&dir.join(format!("{release}-apt")), release)?;
    let log = dir.join("apt.log");
    run_logged("reading its package lists", apt.command("apt-get").args(["-q", "update"]), &log)?;
    let depends = apt.command("apt-cache").args(["depends", NEWEST]).output().context("running apt-cache")?;
    let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
    let wanted = format!("linux-image-{version}.");
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(&wanted))
        .with_context(|| format!("{NEWEST} of {release} depends on no {version} kernel:\n{depends}"))?;
    let packages = dir.join(format!("{release}-deb"));
    let _ = fs::remove_dir_all(&packages);
    make_dir(&packages)?;
    let mut download = apt.command("apt-get");
    download.args(["-q", "download", package]).current_dir(&packages);
    run_logged(&format!("downloading {package}"), &mut download, &log)?;
    let mut debs = fs::read_dir(&packages).context("reading what was downloaded")?.flatten();
    let Some(deb) = debs.next() else { bail!("apt-get downloaded nothing") };
    let (from, to) = (deb.path(), unpacked.to_string_lossy().into_owned());
    let _ = fs::remove_dir_all(unpacked);
    make_dir(unpacked)?;
    output("dpkg-deb", &["-x", &from.to_string_lossy(), &to]).context("unpacking the kernel's package")?;
    Ok(())
}

/// apt, with its state in a directory of ours.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path, release: &str) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            make_dir(&dir.join(sub))?;
        }
        let mut sources = String::new();
        for (mirror, suffix) in mirrors()? {
            sources += &format!("deb [signed-by={KEYRING}] {mirror} {release}{suffix} main\n");
        }
        fs::write(dir.join("sources.list"), sources).context("writing the list of sources")?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let place = |name: &str, sub: &str| format!("{name}={}", self.dir.join(sub).display());
        for option in [
            place("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            place("Dir::State::Lists", "lists"),
            place("Dir::Cache", "cache"),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// The mirrors that this machine's own apt uses for Debian and for its security updates.
fn mirrors() -> Result<Vec<(String, &'static str)>> {
    let text = output("apt-get", &["indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"])
        .context("asking apt for its mirrors")?;
    let mut mirrors = Vec::new();
    for line in text.lines() {
        let Some((uri, codename)) = line.split_once(' ') else { continue };
        let suffix = match codename {
            "bookworm" | "trixie" => "",
            "bookworm-security" | "trixie-security" => "-security",
            _ => continue,
        };
        if !mirrors.contains(&(uri.to_owned(), suffix)) {
            mirrors.push((uri.to_owned(), suffix));
        }
    }
    if mirrors.is_empty() {
        bail!("apt knows no mirror of Debian; run `apt-get update`")
    }
    Ok(mirrors)
}
