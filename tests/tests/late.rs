//! Nodes read their objects at different moments: a flow comes to a node whose model does not know one of its ends yet. It
//! waits; when the model learns of the end in time, nobody notices, and when it does not, the flow is refused.

use std::fs;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_abi::Reason;
use kumiko_fault::Point;
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{ConnReport, Pending, Step};
use kumiko_lab::{Family, LabSpec, Net, PodSpec, Stage, manifests};
use kumiko_tests::echo::Echo;
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS, Path, Side};
use libtest_mimic::Arguments;
use serde_json::Value;

/// The node whose model is late; the other one dials.
const NODE: u8 = 2;
/// A port that pods of the lab declare.
const PORT: u16 = 8080;
/// Until a model has learned what its folder says.
const LIMIT: Duration = Duration::from_secs(30);

/// What the node does not know, and how a flow about it is refused.
struct Unknown {
    what: &'static str,
    /// The pod that it does not know.
    pod: &'static str,
    client: &'static str,
    server: &'static str,
    reason: Reason,
    told: &'static str,
    /// What it thinks instead: parts of the pod's document as they are, and as they were.
    was: Option<[&'static str; 2]>,
}

const UNKNOWN: &[Unknown] = &[
    Unknown {
        what: "source",
        pod: "client-3",
        client: "client-3",
        server: "server-2",
        reason: Reason::UnknownSource,
        told: "ECONNREFUSED",
        was: None,
    },
    // Its service account has another pod here: the handshake finds a certificate, OPEN no pod.
    Unknown {
        what: "destination",
        pod: "server-3",
        client: "client-1",
        server: "server-3",
        reason: Reason::DestinationGone,
        told: "EHOSTUNREACH",
        was: None,
    },
    // The first of its service account here: the handshake finds no certificate.
    Unknown {
        what: "name",
        pod: "fresh-1",
        client: "client-1",
        server: "fresh-1",
        reason: Reason::UnrecognizedName,
        told: "ECONNREFUSED",
        was: None,
    },
    // It would be judged by what it was.
    Unknown {
        what: "label",
        pod: "client-5",
        client: "client-5",
        server: "server-2",
        reason: Reason::StaleIdentity,
        told: "ECONNREFUSED",
        was: Some(["app: client", "app: other"]),
    },
    // The address and the account are those of a pod that is gone.
    Unknown {
        what: "successor",
        pod: "client-6",
        client: "client-6",
        server: "server-2",
        reason: Reason::StaleIdentity,
        told: "ECONNREFUSED",
        was: Some(["uid: 0000", "uid: before-"]),
    },
];
/// Nodes compare the labels that rules choose by.
const POLICY: &str = "apiVersion: kumiko.dev/v1alpha1
kind: MeshPolicy
metadata: {name: nobody, namespace: demo}
spec: {subject: {labels: {app: nobody}}, ingress: []}
";
/// A pod of n2 that is attached slowly.
const SLOW: &str = "server-4";
const ATTACHED_SLOWLY: &str = "a_pod_that_is_being_attached_is_waited_for";

type Check = fn(&Side, &Unknown) -> Result<()>;

/// In this order: who has come late is known.
const CHECKS: &[(&str, Check)] = &[("that_never_comes_is_refused", never), ("that_comes_late_is_served", late)];

fn main() -> ExitCode {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness::main(&names, run)
}

fn names() -> Vec<String> {
    let of =
        |unknown: &Unknown| CHECKS.iter().map(|(name, _)| format!("a_{}_{name}", unknown.what)).collect::<Vec<_>>();
    UNKNOWN.iter().flat_map(of).chain([ATTACHED_SLOWLY.to_owned()]).collect()
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there is no model to be late");
        return Ok(true);
    }
    let side = Arc::new(stand()?);
    let unharmed = keep_alive(&side)?;
    // They share the agents: one at a time.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let mut names = names().into_iter();
    let mut trials = Vec::new();
    for (unknown, (_, check)) in UNKNOWN.iter().flat_map(|unknown| CHECKS.iter().map(move |check| (unknown, check))) {
        let side = Arc::clone(&side);
        trials.push(harness::trial(names.next().unwrap_or_default(), move || check(&side, unknown)));
    }
    let slow = Arc::clone(&side);
    trials.push(harness::trial(ATTACHED_SLOWLY, move || attached_slowly(&slow)));
    let mut well = harness::run_trials(&args, trials);
    let last = Arc::clone(&side);
    well &= harness::run_afterwards(vec![harness::trial("other_flows_are_unharmed", move || {
        last.client.open_gate("end")?;
        served(&unharmed.report()?)
    })]);
    if !well {
        eprintln!("{}", side.lab.evidence(60));
    }
    Ok(well)
}

/// A lab with pods that the issuer and n1 know, and n2 does not.
fn stand() -> Result<Side> {
    let name = format!("late-{}", std::process::id());
    let mut spec = LabSpec::standard(&name, 2, Net::Routed, Stage::Strict).with_ports(FIRST_PORT, PORTS);
    for unknown in UNKNOWN {
        let node = if unknown.pod == unknown.client { 1 } else { NODE };
        spec = spec.with_pod(PodSpec { workload: false, ..PodSpec::new(unknown.pod, "demo", node) });
    }
    spec = spec.with_pod(PodSpec { workload: false, ..PodSpec::new(SLOW, "demo", NODE) });
    spec.faults = true;
    spec.own_folders = true;
    let side = Side::of(&spec, true)?;
    let pods = || UNKNOWN.iter().map(|unknown| unknown.pod).chain([SLOW]);
    for pod in pods() {
        write(&side, &side.lab.manifests(), pod)?;
        write(&side, &side.lab.node(1)?.files.manifests, pod)?;
    }
    for node in [1, NODE] {
        fs::write(side.lab.node(node)?.files.manifests.join("policy.yaml"), POLICY).context("the policy")?;
    }
    for unknown in UNKNOWN.iter().filter(|unknown| unknown.was.is_some()) {
        write_as_was(&side, unknown)?;
    }
    wait_for("n2 knows what was", LIMIT, || {
        let workloads = side.lab.admin(NODE, "/v1/workloads")?.to_string();
        for unknown in UNKNOWN.iter().filter(|unknown| unknown.was.is_some()) {
            ensure!(workloads.contains(&format!("{:?}", unknown.pod)), "{workloads}");
        }
        let status = side.lab.admin(NODE, "/v1/status")?;
        let number = |at: &str| status.pointer(at).and_then(Value::as_u64).context("no such number");
        ensure!(number("/source/epoch")? == number("/policy/sourceEpoch")?, "{status}");
        Ok(())
    })?;
    wait_for("n1 knows all pods", LIMIT, || {
        let workloads = side.lab.admin(1, "/v1/workloads")?;
        for pod in pods() {
            let named = |one: &&Value| one.get("name").and_then(Value::as_str) == Some(pod);
            let found = workloads.as_array().into_iter().flatten().find(named).context(pod)?;
            let hooked = found.get("attachment").and_then(Value::as_str) == Some("attached");
            ensure!(hooked || found.get("local") != Some(&Value::Bool(true)), "{found}");
        }
        Ok(())
    })?;
    Ok(side)
}

/// Tells one folder of a pod.
fn write(side: &Side, folder: &FilePath, pod: &str) -> Result<()> {
    let mut spec = side.lab.state.spec.clone();
    spec.pods.iter_mut().for_each(|pod| pod.workload = true);
    let index = spec.pods.iter().position(|one| one.name == pod).context("no such pod")?;
    manifests::write_workload(folder, &side.lab.state.id, &spec, index)
}

/// Tells n2 of a pod as it was.
fn write_as_was(side: &Side, unknown: &Unknown) -> Result<()> {
    let Some([is, was]) = unknown.was else { return Ok(()) };
    let aside = side.lab.dir().join("was");
    fs::create_dir_all(&aside).context("a folder aside")?;
    write(side, &aside, unknown.pod)?;
    let file = format!("workload-{}.yaml", unknown.pod);
    let text = fs::read_to_string(aside.join(&file)).context("the pod's file")?;
    ensure!(text.contains(is), "{text}");
    let folder = &side.lab.node(NODE)?.files.manifests;
    fs::write(folder.join(file), text.replace(is, was)).context("the pod's file")
}

fn asking(gate: Option<&str>) -> Vec<Step> {
    let pattern = Pattern::new(CAPTURED, 1);
    let ask = Step::Ask { times: 3, bytes: 640, pattern: pattern.clone() };
    let on = gate.map(|gate| {
        [Step::Open { name: "begun".into() }, Step::AskUntil { gate: gate.to_owned(), bytes: 64, pattern }]
    });
    [ask].into_iter().chain(on.into_iter().flatten()).chain([Step::Close]).collect()
}

/// A connection between the same nodes that asks all the time.
fn keep_alive(side: &Side) -> Result<Pending> {
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V6)?, side.port());
    side.far.listen(to)?;
    drop(side.far.serve(to.port(), 1, vec![Step::Echo { bytes: 64 }])?);
    let client = side.client.connect(to, 1, asking(Some("end")))?;
    side.client.await_gate("begun")?;
    Ok(client)
}

fn served(report: &ConnReport) -> Result<()> {
    let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact || step.eof);
    ensure!(report.connect.is_none() && !broken, "{report:?}");
    Ok(())
}

/// How often the node has begun to wait for its model.
fn waits(side: &Side) -> Result<u64> {
    let hits = side.lab.fault(NODE, "hits")?;
    let line = hits.split(';').find_map(|line| line.strip_prefix(Point::ModelAwaited.name()));
    let passed = line.and_then(|counts| counts.split_whitespace().next()).context("no such point")?;
    Ok(passed.parse()?)
}

/// How often the node has refused somebody for a reason.
fn refused(side: &Side, reason: Reason) -> Result<u64> {
    let status = side.lab.admin(NODE, "/v1/status")?;
    let refusals = status.get("refused").and_then(Value::as_array).context("a status without refusals")?;
    let found = refusals.iter().find(|one| one.get("reason").and_then(Value::as_str) == Some(reason.name()));
    Ok(found.and_then(|one| one.get("count")?.as_u64()).unwrap_or(0))
}

/// Connects while the node does not know the pod, lets `meanwhile` run once the flow waits there, and reports.
fn connect(side: &Side, unknown: &Unknown, meanwhile: impl FnOnce() -> Result<()>) -> Result<ConnReport> {
    let server = side.lab.pod(unknown.server)?;
    let to = SocketAddr::new(server.ip(Family::V4), PORT);
    let _echo = Echo::start(&server.netns, to)?;
    let before = waits(side)?;
    let client = side.lab.peer(unknown.client)?;
    let asking = client.connect(to, 1, asking(None))?;
    wait_for("the flow waits for the model", LIMIT, || {
        ensure!(waits(side)? > before, "it does not: {:?}", side.lab.admin(NODE, "/v1/status")?.get("refused"));
        Ok(())
    })?;
    meanwhile()?;
    asking.report()
}

fn never(side: &Side, unknown: &Unknown) -> Result<()> {
    let before = refused(side, unknown.reason)?;
    let report = connect(side, unknown, || Ok(()))?;
    ensure!(report.connect.as_deref() == Some(unknown.told), "{report:?}");
    // A handshake is counted after the alert that tells of it.
    wait_for("the refusal is counted", LIMIT, || {
        let now = refused(side, unknown.reason)?;
        ensure!(now == before + 1, "{}: {before} before, {now} now", unknown.reason.name());
        Ok(())
    })
}

/// The node's time is made long: how fast this machine reads a folder is not what is tried.
fn late(side: &Side, unknown: &Unknown) -> Result<()> {
    let before = refused(side, unknown.reason)?;
    side.lab.fault(NODE, "model-within 60000")?;
    let folder = &side.lab.node(NODE)?.files.manifests;
    let report = connect(side, unknown, || write(side, folder, unknown.pod));
    side.lab.fault(NODE, "model-within 0")?;
    served(&report?)?;
    let now = refused(side, unknown.reason)?;
    ensure!(now == before, "{}: {before} before, {now} now", unknown.reason.name());
    Ok(())
}

/// The model knows the pod and its hooks are not on yet: they go on while the flow waits.
fn attached_slowly(side: &Side) -> Result<()> {
    let server = side.lab.pod(SLOW)?;
    let to = SocketAddr::new(server.ip(Family::V4), PORT);
    let _echo = Echo::start(&server.netns, to)?;
    side.lab.fault(NODE, "model-within 60000")?;
    side.lab.fault(NODE, &format!("arm {} delay:2000 0 1", Point::Hook.name()))?;
    write(side, &side.lab.node(NODE)?.files.manifests, SLOW)?;
    wait_for("the model knows the pod", LIMIT, || {
        let workloads = side.lab.admin(NODE, "/v1/workloads")?;
        let named = |one: &Value| one.get("name").and_then(Value::as_str) == Some(SLOW);
        ensure!(workloads.as_array().into_iter().flatten().any(named), "{workloads}");
        Ok(())
    })?;
    let report = side.client.connect(to, 1, asking(None))?.report();
    side.lab.fault(NODE, "model-within 0")?;
    served(&report?)
}
