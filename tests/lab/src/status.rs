//! `lab status`: where everything of a standing lab is.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use crate::agents::NodeFiles;
use crate::state::{LabState, dir};
use crate::topology::{WIRE, netns_name};

/// A lab as `lab status -o json` prints it.
#[derive(Serialize, Debug)]
pub struct LabStatus {
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// The watched folder of manifests.
    pub source: PathBuf,
}

/// A node.
#[derive(Serialize, Debug)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its namespace, as `ip netns exec` takes it.
    pub netns: String,
    /// Its agent's pid; none when the agent does not run.
    pub pid: Option<i32>,
    /// Its agent's admin socket, as `kumiko --socket` takes it.
    pub socket: PathBuf,
    /// The interface in its namespace that faces the other nodes.
    pub wire: String,
    /// Its pods.
    pub pods: Vec<PodStatus>,
}

/// A pod.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Its network namespace, as `ip netns exec` takes it.
    pub netns: String,
    /// Its addresses, IPv4 first.
    pub ips: Vec<String>,
}

/// The agent that has a run directory: also one that somebody started by hand in the place of the lab's own.
fn agent_on(run_dir: &Path) -> Option<i32> {
    let path = run_dir.join("lock");
    match Flock::lock(File::open(&path).ok()?, FlockArg::LockSharedNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => fs::read_to_string(&path).ok()?.trim().parse().ok(),
        _ => None,
    }
}

/// The status of a lab: its parts from the state file, its agents as they are now.
pub fn of(state: &LabState) -> LabStatus {
    let lab_dir = dir(&state.id);
    let nodes = (1..=state.spec.nodes)
        .map(|node| NodeStatus {
            name: format!("n{node}"),
            netns: netns_name(&state.id, &format!("n{node}")),
            pid: agent_on(&NodeFiles::new(&lab_dir, node).run_dir),
            socket: NodeFiles::new(&lab_dir, node).socket(),
            wire: WIRE.to_owned(),
            pods: pods(state, node),
        })
        .collect();
    LabStatus { nodes, source: lab_dir.join("manifests") }
}

fn pods(state: &LabState, node: u8) -> Vec<PodStatus> {
    let spec = &state.spec;
    let here = spec.pods.iter().enumerate().filter(|(_, pod)| pod.node == node);
    here.map(|(index, pod)| PodStatus {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        netns: netns_name(&state.id, &pod.name),
        ips: spec.pod_ips(index).iter().map(ToString::to_string).collect(),
    })
    .collect()
}

/// The status for people.
pub fn table(state: &LabState) -> String {
    let status = of(state);
    let mut text = format!("lab {} ({}, manifests in {})\n", state.name, state.spec.net, status.source.display());
    for node in &status.nodes {
        let agent = node.pid.map_or("no agent".to_owned(), |pid| format!("agent {pid}"));
        let _ = writeln!(text, "\n{}  netns {}  {agent}  socket {}", node.name, node.netns, node.socket.display());
        for pod in &node.pods {
            let _ = writeln!(
                text,
                "  {:<14} {:<10} netns {:<16} {}",
                pod.name,
                pod.namespace,
                pod.netns,
                pod.ips.join("  ")
            );
        }
    }
    text
}
