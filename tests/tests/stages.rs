//! A namespace moves up and down the stages under load: nothing that may go on is cut.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::command;
use kumiko_lab::pattern::{CLEAR, Pattern};
use kumiko_lab::peer::{ConnReport, Pending, Step};
use kumiko_lab::{Family, Net, Stage};
use kumiko_tests::harness;
use kumiko_tests::twins::{Path, Side};
use libtest_mimic::Arguments;
use serde_json::Value;

/// Up and down. Between permissive and strict there is no shortcut: while one node is at strict already (or still), the
/// other may send in the clear what it then refuses.
const WAY: &[Stage] = &[
    Stage::Observe,
    Stage::Permissive,
    Stage::Strict,
    Stage::Permissive,
    Stage::Observe,
    Stage::Off,
    Stage::Permissive,
    Stage::Strict,
    Stage::Permissive,
    Stage::Off,
];
/// New connections at every stage, one after another, on each path.
const NEW: usize = 20;

const NAMES: &[&str] = &["routed::up_and_down_under_load", "bridged::up_and_down_under_load"];

fn main() -> ExitCode {
    harness::main(NAMES, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let trials = NAMES.iter().zip([Net::Routed, Net::Bridged]).map(|(name, net)| {
        harness::trial(*name, move || {
            let mesh = (!harness::without_mesh()).then_some(Stage::Off);
            let side = Arc::new(Side::new(&format!("stages-{net}"), net, mesh)?);
            up_and_down(&side, mesh.is_some()).map_err(|cause| cause.context(side.lab.evidence(40)))
        })
    });
    Ok(harness::run_trials(args, trials.collect()))
}

fn pattern(tag: u64) -> Pattern {
    Pattern::new(CLEAR, tag)
}

/// Connections that live from one stage to the end: their servers' and clients' reports.
struct Load {
    what: String,
    client: Pending,
    server: Pending,
}

fn up_and_down(side: &Side, mesh: bool) -> Result<()> {
    let mut loads = vec![download(side)?];
    loads.extend(keep_alive(side, Stage::Off)?);
    let older = loads.len();
    for stage in WAY {
        let late = Late::begin(side)?;
        side.lab.set_stage("demo", *stage)?;
        // While the move is under way, and when it is done.
        new_connections(side, *stage).with_context(|| format!("while moving to {stage}"))?;
        if mesh {
            side.lab.wait_stage("demo", *stage)?;
        }
        late.end(side).with_context(|| format!("a SYN that was sent again over the move to {stage}"))?;
        new_connections(side, *stage).with_context(|| format!("at {stage}"))?;
        if mesh && *stage == Stage::Strict && loads.len() < 2 * older + 8 {
            ensure!(legacy(side)? >= older, "at strict, {} legacy connections are listed", legacy(side)?);
        }
        loads.extend(keep_alive(side, *stage)?);
    }
    for peer in [&side.client, &side.near, &side.far] {
        peer.open_gate("end")?;
    }
    for load in loads {
        for (end, reports) in [("client", load.client.reports()?), ("server", load.server.reports()?)] {
            for report in reports {
                went_well(&report).with_context(|| format!("{}, {end}", load.what))?;
            }
        }
    }
    Ok(())
}

fn went_well(report: &ConnReport) -> Result<()> {
    if report.connect.is_some() || report.steps.iter().any(|step| step.error.is_some() || !step.intact) {
        bail!("{report:?}");
    }
    Ok(())
}

/// A download that runs all the time.
fn download(side: &Side) -> Result<Load> {
    let port = side.port();
    let server = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    side.far.listen(server)?;
    let sending = vec![Step::SendUntil { gate: "end".into(), pattern: pattern(1) }, Step::Close];
    let serving = side.far.serve(port, 1, sending)?;
    let client = side.client.connect(server, 1, vec![Step::RecvToEnd { pattern: pattern(1) }, Step::Close])?;
    Ok(Load { what: "the download".into(), client, server: serving })
}

/// Keep-alive connections on every path, which ask now and again until the end.
fn keep_alive(side: &Side, since: Stage) -> Result<Vec<Load>> {
    let paths = [(Path::CrossNode, Family::V6), (Path::SameNode, Family::V4), (Path::ServiceCrossNode, Family::V4)];
    let mut loads = Vec::new();
    for (path, family) in paths {
        let port = side.port();
        let server = side.server(path);
        server.listen(SocketAddr::new(side.lab.pod(path.server())?.ip(family), port))?;
        let serving = server.serve(port, 1, vec![Step::Echo { bytes: 64 }, Step::Close])?;
        let asking = vec![
            Step::Ask { times: 1, bytes: 64, pattern: pattern(2) },
            Step::Open { name: format!("alive-{port}") },
            Step::AskUntil { gate: "end".into(), bytes: 64, pattern: pattern(2) },
            Step::Close,
        ];
        let client = side.client.connect(SocketAddr::new(side.address(path, family)?, port), 1, asking)?;
        side.client.await_gate(&format!("alive-{port}")).with_context(|| format!("{} at {since}", path.name()))?;
        loads.push(Load { what: format!("{} {family} since {since}", path.name()), client, server: serving });
    }
    Ok(loads)
}

fn new_connections(side: &Side, stage: Stage) -> Result<()> {
    for (path, family) in
        [(Path::CrossNode, Family::V4), (Path::SameNode, Family::V6), (Path::ServiceCrossNode, Family::V6)]
    {
        let port = side.port();
        let server = side.server(path);
        server.listen(SocketAddr::new(side.lab.pod(path.server())?.ip(family), port))?;
        let serving = server.serve(port, NEW, vec![Step::Echo { bytes: 64 }, Step::Close])?;
        let to = SocketAddr::new(side.address(path, family)?, port);
        for number in 0..NEW {
            let script = vec![Step::Ask { times: 3, bytes: 64, pattern: pattern(3) }, Step::Close];
            let report = side.client.connect(to, 1, script)?.report()?;
            went_well(&report).with_context(|| format!("new connection {number}, {} at {stage}", path.name()))?;
        }
        for report in serving.reports()? {
            went_well(&report).with_context(|| format!("server of {} at {stage}", path.name()))?;
        }
        server.unlisten(port)?;
    }
    Ok(())
}

/// Connections whose SYN the server pod drops until the move is done.
struct Late(Vec<(Path, u16, Pending, Pending)>);

const LATE: [(Path, Family); 2] = [(Path::CrossNode, Family::V4), (Path::SameNode, Family::V6)];

impl Late {
    fn begin(side: &Side) -> Result<Self> {
        let mut all = Vec::new();
        for (path, family) in LATE {
            let (port, server) = (side.port(), side.server(path));
            let pod = side.lab.pod(path.server())?;
            server.listen(SocketAddr::new(pod.ip(family), port))?;
            let hole = format!(
                "table inet late {{\n chain input {{\n  type filter hook input priority 0;\n  \
                 tcp dport {port} tcp flags syn counter drop\n }}\n}}\n"
            );
            pod.netns.within(|| command::run_with_input("nft", &["-f", "-"], &hole))?;
            let serving = server.serve(port, 1, vec![Step::Echo { bytes: 64 }, Step::Close])?;
            let ask = Step::Ask { times: 3, bytes: 64, pattern: pattern(4) };
            let to = SocketAddr::new(side.address(path, family)?, port);
            let client = side.client.connect(to, 1, vec![ask, Step::Close])?;
            command::wait_for("a SYN is dropped", Duration::from_secs(10), || {
                let rules = pod.netns.run("nft", &["list", "table", "inet", "late"])?;
                ensure!(!rules.contains("packets 0 "), "{rules}");
                Ok(())
            })?;
            all.push((path, port, client, serving));
        }
        Ok(Self(all))
    }

    fn end(self, side: &Side) -> Result<()> {
        for (path, ..) in &self.0 {
            side.lab.pod(path.server())?.netns.run("nft", &["delete", "table", "inet", "late"])?;
        }
        for (path, port, client, server) in self.0 {
            went_well(&client.report()?).with_context(|| format!("client, {}", path.name()))?;
            went_well(&server.report()?).with_context(|| format!("server, {}", path.name()))?;
            side.server(path).unlisten(port)?;
        }
        Ok(())
    }
}

/// Legacy flows that the client's node lists.
fn legacy(side: &Side) -> Result<usize> {
    let flows = side.lab.admin(1, "/v1/flows")?;
    let open = flows.as_array().into_iter().flatten().filter(|flow| is_open_legacy(flow));
    Ok(open.count())
}

fn is_open_legacy(flow: &Value) -> bool {
    flow.get("legacy") == Some(&Value::Bool(true)) && flow.get("state").and_then(Value::as_str) == Some("open")
}
