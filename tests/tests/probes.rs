//! Who of a node may speak to a strict pod: sockets in kubelet's cgroup, to the ports that the pod declares for probes,
//! and nobody else. In permissive everybody may, and the flow says who it was.

use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CLEAR, Pattern};
use kumiko_lab::peer::{Peer, Step};
use kumiko_lab::{Family, Net, Stage, state};
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, Side};
use libtest_mimic::Arguments;
use serde_json::Value;

const NETS: [Net; 2] = [Net::Routed, Net::Bridged];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The port that the pod declares for probes.
const PROBED: u16 = 8080;
/// One that it declares for its clients only.
const SERVED: u16 = FIRST_PORT;

fn main() -> ExitCode {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness::main(&names, run)
}

fn names() -> Vec<String> {
    NETS.iter().map(|net| format!("{net}::a_strict_pod_takes_kubelets_probes_only")).collect()
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        return Ok(true);
    }
    let trials = names().into_iter().zip(NETS).map(|(name, net)| {
        harness::trial(name, move || {
            let side = Arc::new(Side::new(&format!("probes-{net}"), net, Some(Stage::Strict))?);
            probes(&side).map_err(|cause| cause.context(side.lab.evidence(40)))
        })
    });
    Ok(harness::run_trials(args, trials.collect()))
}

/// Processes of node n1, where server-1 runs.
struct Callers {
    kubelet: Peer,
    other: Peer,
}

impl Callers {
    fn new(side: &Side) -> Result<Self> {
        let node = &side.lab.node(1)?.netns;
        let start = |name: &str| Peer::start(node, &side.lab.dir().join(format!("peer-{name}.log")));
        let (kubelet, other) = (start("kubelet")?, start("other")?);
        let group = state::kubelet_cgroup(&side.lab.state.id, 1)?.join("cgroup.procs");
        fs::write(&group, kubelet.pid().to_string()).with_context(|| format!("writing {}", group.display()))?;
        Ok(Self { kubelet, other })
    }
}

fn probes(side: &Side) -> Result<()> {
    let callers = Callers::new(side)?;
    for family in FAMILIES {
        ask(side, &callers.kubelet, family, PROBED, None)?;
        ask(side, &callers.kubelet, family, SERVED, Some("ECONNREFUSED"))?;
        ask(side, &callers.other, family, PROBED, Some("ECONNREFUSED"))?;
    }
    said(side, "probe", "allow", FAMILIES.len())?;
    said(side, "host_refused", "deny", 2 * FAMILIES.len())?;
    side.lab.set_stage("demo", Stage::Permissive)?;
    side.lab.wait_stage("demo", Stage::Permissive)?;
    for family in FAMILIES {
        ask(side, &callers.kubelet, family, SERVED, None)?;
        ask(side, &callers.other, family, PROBED, None)?;
    }
    said(side, "plaintext_accepted", "allow", 2 * FAMILIES.len())
}

/// One question and its answer, or a connect that fails although the pod listens.
fn ask(side: &Side, caller: &Peer, family: Family, port: u16, refused: Option<&str>) -> Result<()> {
    let to = SocketAddr::new(side.lab.pod("server-1")?.ip(family), port);
    let pattern = Pattern::new(CLEAR, 1);
    side.near.listen(to)?;
    let serving = match refused {
        None => Some(side.near.serve(port, 1, vec![Step::Echo { bytes: 64 }, Step::Close])?),
        Some(_) => None,
    };
    let report = caller.connect(to, 1, vec![Step::Ask { times: 1, bytes: 64, pattern }, Step::Close])?.report()?;
    ensure!(report.connect.as_deref() == refused, "{to}: {report:?}");
    if let Some(serving) = serving {
        ensure!(report.steps.iter().all(|step| step.error.is_none() && step.intact), "{to}: {report:?}");
        serving.report()?;
    }
    side.near.unlisten(port)
}

/// Waits until so many flows to the pod are recorded with this reason, all with this verdict.
fn said(side: &Side, reason: &str, verdict: &str, count: usize) -> Result<()> {
    wait_for(&format!("{count} flows are {reason}"), Duration::from_secs(10), || {
        let flows = side.lab.admin(1, "/v1/flows")?;
        let found: Vec<&Value> = flows.as_array().into_iter().flatten().filter(|f| f["reason"] == reason).collect();
        ensure!(found.len() == count && found.iter().all(|f| f["verdict"] == verdict), "{found:?} in {flows}");
        Ok(())
    })
}
