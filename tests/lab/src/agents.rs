//! Agents and the issuer of a lab, as real processes.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::admin;
use crate::command::{Never, wait_for};
use crate::netns::Netns;
use crate::spec::node_ips;
use crate::state::{LabState, kubelet_cgroup, replace};
use crate::topology::ISSUER_HOST;

/// Port of the issuer.
pub const ISSUER_PORT: u16 = 15010;
/// Trust domain of every lab.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// How long a process of the lab may take to serve.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Directory of the binaries that belong to the running program: its own (tests live one deeper).
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    let mut dir = own.parent().context("a program is in a directory")?.to_owned();
    if dir.file_name().is_some_and(|last| last == "deps") {
        dir.pop();
    }
    let path = dir.join(name);
    if !path.exists() {
        bail!("{} is not built; `cargo xtask build` builds it", path.display());
    }
    Ok(path)
}

/// Address of the issuer.
pub fn issuer_address() -> SocketAddr {
    let [v4, _] = node_ips(ISSUER_HOST);
    SocketAddr::new(v4, ISSUER_PORT)
}

/// Files of one node.
#[derive(Clone, Debug)]
pub struct NodeFiles {
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// The node's own bpffs.
    pub bpffs: PathBuf,
    /// The folder that its agent watches, when it is its own.
    pub manifests: PathBuf,
    /// Its join token.
    pub token: PathBuf,
    /// The agent's log.
    pub log: PathBuf,
}

impl NodeFiles {
    /// Those of a node of the lab in `dir`.
    pub fn new(dir: &Path, node: u8) -> Self {
        let dir = dir.join(format!("n{node}"));
        Self {
            run_dir: dir.join("run"),
            bpffs: dir.join("bpf"),
            manifests: dir.join("manifests"),
            token: dir.join("token"),
            log: dir.join("agent.log"),
        }
    }

    /// The admin socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }

    /// Where the fault points of an agent that has them are armed.
    pub fn faults(&self) -> PathBuf {
        self.run_dir.join("faults.sock")
    }

    /// Makes directories, a bpffs of its own, and the cgroup that plays kubelet's.
    pub fn prepare(&self, id: &str, node: u8) -> Result<()> {
        for dir in [&self.run_dir, &self.bpffs] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        mount(Some("bpf"), &self.bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting a bpffs on {}", self.bpffs.display()))?;
        let cgroup = kubelet_cgroup(id, node)?;
        fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))
    }
}

/// Name of the agent's namespace on a node.
pub fn agent_netns_name(id: &str, node: u8) -> String {
    format!("k{id}-agent{node}")
}

/// Starts the issuer and waits until it serves.
pub fn start_issuer(dir: &Path, ns: &Netns, svid_ttl: &str) -> Result<Child> {
    let state = dir.join("issuer");
    let log = dir.join("issuer.log");
    let mut command = Command::new(binary("kumiko-agent")?);
    command
        .arg("issuer")
        .args(["--listen", &issuer_address().to_string()])
        .arg("--state")
        .arg(&state)
        .args(["--source", &format!("dir:{}", dir.join("manifests").display())])
        .args(["--trust-domain", TRUST_DOMAIN, "--svid-ttl", svid_ttl]);
    let mut child = ns.spawn(with_log(&mut command, &log)?)?;
    let serving = wait_for("the issuer serves", START_LIMIT, || {
        running(&mut child)?;
        if !state.join("root.pem").exists() {
            bail!("no root.pem in {}", state.display());
        }
        ns.within(|| std::net::TcpStream::connect(issuer_address()).map(drop).context("connecting to the issuer"))
    });
    with_tail(serving, &log)?;
    Ok(child)
}

/// Asks the issuer's state for a join token and writes it where the agent reads it.
pub fn write_token(dir: &Path, files: &NodeFiles, node: u8) -> Result<()> {
    let agent = binary("kumiko-agent")?;
    let state = dir.join("issuer");
    let token = crate::command::run(
        &agent.to_string_lossy(),
        &["token", "--state", &state.to_string_lossy(), "--node", &format!("n{node}")],
    )?;
    replace(&files.token, token.as_bytes())?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&files.token, mode).context("protecting the join token")
}

/// Starts the agent of a node, without waiting for it.
pub fn start_agent(dir: &Path, state: &LabState, node: u8, ns: &Netns) -> Result<Child> {
    let (id, files) = (&state.id, NodeFiles::new(dir, node));
    let program = if state.spec.faults { "kumiko-agent-faults" } else { "kumiko-agent" };
    let manifests = if state.spec.own_folders { files.manifests.clone() } else { dir.join("manifests") };
    let mut command = Command::new(binary(program)?);
    command
        .args(["run", "--node", &format!("n{node}")])
        .args(["--source", &format!("dir:{}", manifests.display())])
        .args(["--issuer", &issuer_address().to_string(), "--trust-domain", TRUST_DOMAIN])
        .arg("--issuer-root")
        .arg(dir.join("issuer/root.pem"))
        .arg("--join-token")
        .arg(&files.token)
        .arg("--run-dir")
        .arg(&files.run_dir)
        .arg("--bpffs")
        .arg(&files.bpffs)
        .args(["--netns-name", &agent_netns_name(id, node)])
        .arg("--kubelet-cgroup")
        .arg(kubelet_cgroup(id, node)?)
        .args(&state.spec.agent_args);
    ns.spawn(with_log(&mut command, &files.log)?)
}

/// Removes what the agent of a node has left in the kernel and on disk.
pub fn cleanup(dir: &Path, id: &str, node: u8, ns: &Netns) -> Result<()> {
    let files = NodeFiles::new(dir, node);
    let mut command = Command::new(binary("kumiko-agent")?);
    command.args(["cleanup", "--netns-name", &agent_netns_name(id, node)]);
    command.arg("--run-dir").arg(&files.run_dir).arg("--bpffs").arg(&files.bpffs);
    let status = ns.spawn(with_log(&mut command, &files.log)?)?.wait().context("waiting for cleanup")?;
    if !status.success() {
        bail!("cleanup ended with {status}; end of {}:\n{}", files.log.display(), tail(&files.log, 30));
    }
    Ok(())
}

/// Waits until an agent says that it is ready.
pub fn wait_ready(child: &mut Child, files: &NodeFiles) -> Result<()> {
    let ready = wait_for("the agent is ready", START_LIMIT, || {
        running(child)?;
        let status = admin::get_json(&files.socket(), "/v1/status")?;
        match status.get("ready").and_then(serde_json::Value::as_bool) {
            Some(true) => Ok(()),
            _ => bail!("its status says: {status}"),
        }
    });
    with_tail(ready, &files.log)
}

/// Lets a process of the lab write to its log, with a process group of its own: Ctrl-C is for the one who asked.
fn with_log<'a>(command: &'a mut Command, log: &Path) -> Result<&'a mut Command> {
    let file =
        File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    let copy = file.try_clone().context("sharing a log")?;
    Ok(command.stdin(Stdio::null()).stdout(file).stderr(copy).process_group(0))
}

fn running(child: &mut Child) -> Result<()> {
    match child.try_wait().context("asking for a process")? {
        Some(status) => Err(Never(format!("it ended: {status}")).into()),
        None => Ok(()),
    }
}

/// Adds the end of a log to an error.
fn with_tail<T>(result: Result<T>, log: &Path) -> Result<T> {
    result.with_context(|| format!("end of {}:\n{}", log.display(), tail(log, 30)))
}

/// The last lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
