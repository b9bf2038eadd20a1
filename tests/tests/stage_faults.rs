//! The agent dies, or its kernel refuses a step, in the middle of a stage change: older connections go on, and the change
//! is finished by whoever comes after.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CLEAR, Pattern};
use kumiko_lab::peer::{ConnReport, Pending, Step};
use kumiko_lab::{Family, LabSpec, Net, Stage};
use kumiko_tests::echo::Echo;
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS, Path, Side};
use libtest_mimic::Arguments;

const RAISING: &[&str] = &["stage-learning", "stage-phase", "map-write"];
const LOWERING: &[&str] = &["stage-phase", "map-write"];
const ACTIONS: &[&str] = &["fail", "kill", "panic"];
const PATHS: [(Path, Family); 3] =
    [(Path::CrossNode, Family::V4), (Path::SameNode, Family::V6), (Path::ServiceCrossNode, Family::V4)];

fn main() -> ExitCode {
    let names: Vec<String> = trials().map(|(point, action, way)| name(point, action, way)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness::main(&names, run)
}

/// Where, what, and to which stage.
fn trials() -> impl Iterator<Item = (&'static str, &'static str, Stage)> {
    let raising = RAISING.iter().flat_map(|point| ACTIONS.iter().map(|action| (*point, *action, Stage::Strict)));
    let lowering = LOWERING.iter().flat_map(|point| ACTIONS.iter().map(|action| (*point, *action, Stage::Off)));
    // Hooks stay for half a minute after a lowering: this one waits for it, so it is done once.
    std::iter::once(("hook", "kill", Stage::Strict)).chain(raising).chain(lowering)
}

fn name(point: &str, action: &str, way: Stage) -> String {
    format!("to_{way}::{action}_at_{}", point.replace('-', "_"))
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there is no agent to fail");
        return Ok(true);
    }
    let lab = format!("stage-faults-{}", std::process::id());
    let mut spec = LabSpec::standard(&lab, 2, Net::Routed, Stage::Off).with_ports(FIRST_PORT, PORTS);
    spec.faults = true;
    let side = Arc::new(Mutex::new(Side::of(&spec, true)?));
    // Connections from before the first change: they have to outlive all of them.
    let loads = keep_alive(&side.lock().unwrap_or_else(PoisonError::into_inner))?;
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let trials = trials().map(|(point, action, way)| {
        let side = Arc::clone(&side);
        harness::trial(name(point, action, way), move || {
            change(&mut side.lock().unwrap_or_else(PoisonError::into_inner), point, action, way)
        })
    });
    let mut well = harness::run_trials(&args, trials.collect());
    let ended = Arc::clone(&side);
    well &= harness::run_afterwards(vec![harness::trial("connections_from_before_all_of_it_go_on", move || {
        let side = ended.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in [&side.client, &side.near, &side.far] {
            peer.open_gate("end")?;
        }
        for (what, client, server) in loads {
            for report in [client.report()?, server.report()?] {
                went_well(&report).with_context(|| what.clone())?;
            }
        }
        Ok(())
    })]);
    if !well {
        eprintln!("{}", side.lock().unwrap_or_else(PoisonError::into_inner).lab.evidence(60));
    }
    Ok(well)
}

fn pattern() -> Pattern {
    Pattern::new(CLEAR, 1)
}

fn went_well(report: &ConnReport) -> Result<()> {
    let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact);
    ensure!(report.connect.is_none() && !broken, "{report:?}");
    Ok(())
}

/// Connections that ask now and again until the end: what, client, server.
fn keep_alive(side: &Side) -> Result<Vec<(String, Pending, Pending)>> {
    let mut loads = Vec::new();
    for (path, family) in PATHS {
        let port = side.port();
        let server = side.server(path);
        server.listen(SocketAddr::new(side.lab.pod(path.server())?.ip(family), port))?;
        let serving = server.serve(port, 1, vec![Step::Echo { bytes: 64 }, Step::Close])?;
        let asking = vec![
            Step::Ask { times: 1, bytes: 64, pattern: pattern() },
            Step::Open { name: format!("alive-{port}") },
            Step::AskUntil { gate: "end".into(), bytes: 64, pattern: pattern() },
            Step::Close,
        ];
        let client = side.client.connect(SocketAddr::new(side.address(path, family)?, port), 1, asking)?;
        side.client.await_gate(&format!("alive-{port}"))?;
        loads.push((format!("{} {family}", path.name()), client, serving));
    }
    Ok(loads)
}

fn change(side: &mut Side, point: &str, action: &str, way: Stage) -> Result<()> {
    side.lab.fault(1, "disarm")?;
    let before = if way == Stage::Off { Stage::Strict } else { Stage::Off };
    side.lab.set_stage("demo", before)?;
    side.lab.wait_stage("demo", before)?;
    if point == "hook" {
        wait_for("the hooks of before are gone", Duration::from_secs(40), || {
            let workloads = side.lab.admin(1, "/v1/workloads")?;
            let attached = workloads.as_array().into_iter().flatten().any(|workload| {
                matches!(workload.get("attachment").and_then(|a| a.as_str()), Some("attached" | "moving" | "learning"))
            });
            ensure!(!attached, "{workloads}");
            Ok(())
        })?;
    }
    side.lab.fault(1, &format!("arm {point} {action} 0 1"))?;
    side.lab.set_stage("demo", way)?;
    if action != "fail" {
        side.lab.await_end(1)?;
        side.lab.start_agent(1)?;
    }
    side.lab.wait_stage("demo", way)?;
    if action == "fail" {
        let hits = side.lab.fault(1, "hits")?;
        ensure!(hits.split(';').any(|line| line.starts_with(point) && line.ends_with(" 1")), "not met: {hits}");
        side.lab.kill_agent(1)?;
        side.lab.start_agent(1)?;
    }
    for (path, family) in PATHS {
        let port = side.port();
        let pod = side.lab.pod(path.server())?.clone();
        let _echo = Echo::start(&pod.netns, SocketAddr::new(pod.ip(family), port))?;
        let to = SocketAddr::new(side.address(path, family)?, port);
        let ask = Step::Ask { times: 3, bytes: 64, pattern: pattern() };
        let report = side.client.connect(to, 1, vec![ask, Step::Close])?.report()?;
        went_well(&report).with_context(|| format!("a new connection, {} at {way}", path.name()))?;
    }
    Ok(())
}
