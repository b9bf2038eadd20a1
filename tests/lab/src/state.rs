//! What is known of a lab on disk, so that it can be found and taken down by anybody, also after a crash.

use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::command;
use crate::netns::{NETNS_DIR, Netns};
use crate::spec::LabSpec;

/// Where the labs of this machine keep their files.
pub const LABS_DIR: &str = "/run/kumiko-lab";

/// A process by what cannot be reused: its id and when it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// Start time in clock ticks after boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
        // The second field, the command's name, may hold spaces; it ends with the last parenthesis.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let started = rest.split_whitespace().nth(19).and_then(|field| field.parse().ok());
        Ok(Self { pid, started: started.with_context(|| format!("/proc/{pid}/stat has no start time"))? })
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }
}

/// The state file of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabState {
    /// Prefix of its namespaces, after the `k`.
    pub id: String,
    /// Its name in its checkout.
    pub name: String,
    /// The checkout that it was made from.
    pub checkout: PathBuf,
    /// Who it belongs to; none for one that is whole and stays.
    pub owner: Option<ProcessId>,
    /// What it is made of.
    pub spec: LabSpec,
}

/// The lock that makes starting and sweeping labs one at a time.
pub fn lock() -> Result<Flock<fs::File>> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(LABS_DIR).with_context(|| format!("making {LABS_DIR}"))?;
    let file = fs::File::create(Path::new(LABS_DIR).join(".lock")).context("opening the lock of the labs")?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("locking the labs")
}

/// Directory of the lab `id`.
pub fn dir(id: &str) -> PathBuf {
    Path::new(LABS_DIR).join(id)
}

impl LabState {
    /// Makes a directory and a state file for a new lab.
    pub fn create(spec: &LabSpec) -> Result<Self> {
        let _lock = lock()?;
        sweep();
        let checkout = checkout();
        if let Some(other) = all().into_iter().find(|lab| lab.name == spec.name && lab.checkout == checkout) {
            bail!("lab {:?} of this checkout stands already; take it down first (`cargo xtask lab down`)", other.name);
        }
        let owner = Some(ProcessId::of(nix::unistd::getpid().as_raw())?);
        loop {
            let id = format!("{:04x}", rand::random::<u16>());
            match fs::create_dir(dir(&id)) {
                Ok(()) => {
                    let state = Self { id, name: spec.name.clone(), checkout, owner, spec: spec.clone() };
                    state.write()?;
                    return Ok(state);
                }
                Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(cause).with_context(|| format!("making {}", dir(&id).display())),
            }
        }
    }

    /// Writes the state file.
    pub fn write(&self) -> Result<()> {
        replace(&dir(&self.id).join("state.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// Reads that of lab `id`.
    pub fn read(id: &str) -> Result<Self> {
        let path = dir(id).join("state.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("in {}", path.display()))
    }

    /// The standing lab of this checkout with this name.
    pub fn find(name: &str) -> Result<Self> {
        let checkout = checkout();
        all()
            .into_iter()
            .find(|lab| lab.name == name && lab.checkout == checkout)
            .with_context(|| format!("no lab {name:?} of this checkout stands; make one with `cargo xtask lab up`"))
    }
}

/// Every lab on this machine.
pub fn all() -> Vec<LabState> {
    let entries = fs::read_dir(LABS_DIR).into_iter().flatten().flatten();
    entries.filter_map(|entry| LabState::read(entry.file_name().to_str()?).ok()).collect()
}

/// The root of this checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap_or_default()
}

/// Takes down labs whose owner is gone.
fn sweep() {
    for lab in all().into_iter().filter(|lab| lab.owner.is_some_and(|owner| !owner.alive())) {
        eprintln!("lab: removing what is left of lab {} ({})", lab.id, lab.name);
        if let Err(cause) = remove(&lab.id) {
            eprintln!("lab: {cause:#}");
        }
    }
}

/// Removes every trace of the lab `id`: processes, namespaces, mounts, cgroups, files.
pub fn remove(id: &str) -> Result<()> {
    if id.is_empty() || !id.chars().all(|c| c.is_ascii_hexdigit()) {
        bail!("{id:?} is not the id of a lab");
    }
    let prefix = format!("k{id}-");
    let namespaces: Vec<Netns> = fs::read_dir(NETNS_DIR)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .map(Netns::named)
        .collect();
    kill_all(&namespaces)?;
    for ns in &namespaces {
        ns.delete()?;
    }
    let dir = dir(id);
    unmount_below(&dir)?;
    remove_cgroups(id);
    match fs::remove_dir_all(&dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(cause).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Ends everything that runs in the lab's namespaces: nothing but the lab's own processes is in them.
fn kill_all(namespaces: &[Netns]) -> Result<()> {
    command::wait_for("the lab's processes end", std::time::Duration::from_secs(10), || {
        let pids: Vec<i32> = namespaces.iter().flat_map(Netns::pids).collect();
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if pids.is_empty() { Ok(()) } else { bail!("still running: {pids:?}") }
    })
}

/// Mount points below `dir`, the deepest first.
fn unmount_below(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|p| p.starts_with(dir))
        .collect();
    points.sort();
    for point in points.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {}", point.display()))?;
    }
    Ok(())
}

/// Where the unified cgroup hierarchy is mounted.
pub fn cgroup_root() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    table
        .lines()
        .find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .context("no cgroup2 is mounted; `mount -t cgroup2 none /sys/fs/cgroup/unified` makes one")
}

/// The cgroup that plays kubelet's on a node.
pub fn kubelet_cgroup(id: &str, node: u8) -> Result<PathBuf> {
    Ok(cgroup_root()?.join(format!("kumiko-lab-{id}-n{node}")))
}

fn remove_cgroups(id: &str) {
    for node in 1..=9 {
        if let Ok(path) = kubelet_cgroup(id, node) {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Writes a file in one step: a reader (or a watcher) sees the old one or the new one.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).context("a file has a name")?;
    let temporary = path.with_file_name(format!(".{name}.new"));
    let written = fs::File::create(&temporary).and_then(|mut file| file.write_all(content));
    written.and_then(|()| fs::rename(&temporary, path)).with_context(|| format!("writing {}", path.display()))
}
