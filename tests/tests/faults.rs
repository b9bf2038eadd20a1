//! The agent is stopped, killed or failed at named points of its work (crate `kumiko-fault`): nobody takes half an answer
//! for a whole one, nothing of it is seen between the nodes, and the next connection works.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{ConnReport, Step};
use kumiko_lab::wire::Capture;
use kumiko_lab::{Family, LabSpec, Net, Stage, topology};
use kumiko_tests::echo::Echo;
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS, Path, Side};
use libtest_mimic::Arguments;
use nix::sys::signal::Signal;

/// Where, on which node, and whether the connection may go well all the same: by another tunnel, or because the point
/// comes after its end.
const POINTS: &[(&str, u8, Path, Fate)] = &[
    ("handshake", 1, Path::CrossNode, Fate::TriedAgain),
    ("dialler-opened", 1, Path::CrossNode, Fate::Broken),
    ("dialler-captured", 1, Path::CrossNode, Fate::Broken),
    ("dialler-injected", 1, Path::ServiceCrossNode, Fate::Broken),
    ("dialler-accepted", 1, Path::CrossNode, Fate::Broken),
    ("acceptor-asked", 2, Path::CrossNode, Fate::Broken),
    ("acceptor-entered", 2, Path::CrossNode, Fate::Broken),
    ("acceptor-connected", 2, Path::ServiceCrossNode, Fate::Broken),
    ("acceptor-opened", 2, Path::CrossNode, Fate::Broken),
    ("hand-back", 1, Path::CrossNode, Fate::Well),
    ("dialler-opened", 1, Path::ServiceSameNode, Fate::Broken),
    ("dialler-injected", 1, Path::ServiceSameNode, Fate::Broken),
    ("acceptor-entered", 1, Path::ServiceSameNode, Fate::Broken),
];
const ACTIONS: &[&str] = &["fail", "stop", "kill", "panic"];

/// What becomes of a connection when the step after the point fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    Broken,
    /// A failure, not a death, is mended by another try.
    TriedAgain,
}

fn main() -> ExitCode {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness::main(&names, run)
}

fn names() -> Vec<String> {
    let at_points = POINTS.iter().flat_map(|(point, _, path, _)| {
        ACTIONS.iter().map(move |action| format!("{}::{action}_at_{}", path.name(), point.replace('-', "_")))
    });
    let keys = KEYS.iter().map(|(name, _)| (*name).to_owned());
    at_points.chain(keys).collect()
}

type Check = fn(&mut Side) -> Result<()>;

const KEYS: &[(&str, Check)] = &[
    ("a_hundred_key_updates_each_way_byte_exact", key_updates),
    ("kill_in_the_middle_of_a_key_update", |side| key_update_fails(side, "key-update", "kill")),
    ("fail_in_the_middle_of_a_key_update", |side| key_update_fails(side, "key-update", "fail")),
    ("kill_in_the_middle_of_the_peers_key_update", |side| key_update_fails(side, "peer-key-update", "kill")),
    ("fail_in_the_middle_of_the_peers_key_update", |side| key_update_fails(side, "peer-key-update", "fail")),
];

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there is no agent to fail");
        return Ok(true);
    }
    let name = format!("faults-{}", std::process::id());
    let mut spec = LabSpec::standard(&name, 2, Net::Routed, Stage::Strict).with_ports(FIRST_PORT, PORTS);
    spec.faults = true;
    spec.agent_args = ["--idle-check", "5"].map(str::to_owned).to_vec();
    let side = Arc::new(Mutex::new(Side::of(&spec, true)?));
    let capture = {
        let side = side.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = side.lab.pods.iter().flat_map(|pod| pod.ips).collect();
        Capture::start(&side.lab.node(1)?.netns, topology::WIRE, watched)?
    };
    // They share the agents: one at a time.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let mut trials = Vec::new();
    let at_points = POINTS.iter().flat_map(|point| ACTIONS.iter().map(move |action| (point, *action)));
    let mut names = names().into_iter();
    for ((point, node, path, fate), action) in at_points {
        let side = Arc::clone(&side);
        let run = move || {
            at_point(&mut side.lock().unwrap_or_else(PoisonError::into_inner), point, action, *node, *path, *fate)
        };
        trials.push(harness::trial(names.next().unwrap_or_default(), run));
    }
    for (name, check) in KEYS {
        let side = Arc::clone(&side);
        trials.push(harness::trial(*name, move || check(&mut side.lock().unwrap_or_else(PoisonError::into_inner))));
    }
    let mut well = harness::run_trials(&args, trials);
    let left = Arc::clone(&side);
    well &= harness::run_afterwards(vec![
        harness::trial("no_flow_is_left_open", move || {
            let side = left.lock().unwrap_or_else(PoisonError::into_inner);
            (1..=2).try_for_each(|node| quiet(&side, node))
        }),
        harness::trial("nothing_of_it_in_the_clear_between_the_nodes", move || capture.finish()?.check()),
    ]);
    if !well {
        eprintln!("{}", side.lock().unwrap_or_else(PoisonError::into_inner).lab.evidence(60));
    }
    Ok(well)
}

fn pattern(tag: u64) -> Pattern {
    Pattern::new(CAPTURED, tag)
}

/// A few questions on one connection.
fn ask(side: &Side, to: SocketAddr) -> Result<ConnReport> {
    let ask = Step::Ask { times: 3, bytes: 1_000, pattern: pattern(1) };
    side.client.connect(to, 1, vec![ask, Step::Close])?.report()
}

fn well(report: &ConnReport) -> Result<()> {
    let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact || step.eof);
    ensure!(report.connect.is_none() && !broken, "{report:?}");
    Ok(())
}

/// The client was told that it did not work: by `connect`, or by a reset. Never by an end of stream.
fn told(report: &ConnReport) -> Result<()> {
    const ERRORS: &[&str] = &["ECONNREFUSED", "ECONNRESET", "EPIPE"];
    let first = report.connect.as_deref().or(report.steps.first().and_then(|step| step.error.as_deref()));
    let clean_end = report.steps.iter().any(|step| step.eof || !step.intact);
    ensure!(first.is_some_and(|error| ERRORS.contains(&error)) && !clean_end, "{report:?}");
    Ok(())
}

/// No flow lives on a node, and no tunnel carries one.
fn quiet(side: &Side, node: u8) -> Result<()> {
    wait_for(&format!("no flow is left on n{node}"), Duration::from_secs(40), || {
        let status = side.lab.admin(node, "/v1/status")?;
        let count = |group: &str, name: &str| status.get(group).and_then(|g| g.get(name)?.as_u64());
        let left = [count("flows", "open"), count("flows", "pending"), count("tunnels", "busy")];
        ensure!(left == [Some(0); 3], "open, pending, busy: {left:?}: {}", side.lab.admin(node, "/v1/flows")?);
        Ok(())
    })
}

fn at_point(side: &mut Side, point: &str, action: &str, node: u8, path: Path, fate: Fate) -> Result<()> {
    // What failed before is not this one's failure.
    (1..=2).try_for_each(|node| side.lab.revive_agent(node))?;
    let port = side.port();
    let pod = side.lab.pod(path.server())?.clone();
    let _echo = Echo::start(&pod.netns, SocketAddr::new(pod.ip(Family::V4), port))?;
    let to = SocketAddr::new(side.address(path, Family::V4)?, port);
    if point == "handshake" {
        // No tunnel may be left in the pools.
        for node in 1..=2 {
            side.lab.kill_agent(node)?;
            side.lab.start_agent(node)?;
        }
    } else {
        well(&ask(side, to)?).context("before")?;
        quiet(side, node)?;
    }
    side.lab.fault(node, &format!("arm {point} {action} 0 1"))?;
    let report = match action {
        "stop" => stopped(side, node, to)?,
        _ => ask(side, to)?,
    };
    let dies = matches!(action, "kill" | "panic");
    if dies {
        let status = side.lab.await_end(node)?;
        ensure!(!status.success(), "{action}: the agent ended with {status}");
    }
    match (fate, action) {
        (Fate::Well, _) | (_, "stop") => well(&report)?,
        (Fate::TriedAgain, "fail") => well(&report)?,
        // A warm tunnel that dies is tried again by another one; one that was made for this flow is not.
        (Fate::Broken, "fail") if point == "acceptor-connected" => well(&report).or_else(|_| told(&report))?,
        _ => told(&report)?,
    }
    if dies {
        side.lab.start_agent(node)?;
    } else {
        wait_for("the point is met", Duration::from_secs(5), || {
            let hits = side.lab.fault(node, "hits")?;
            let acted = hits.split(';').find_map(|line| line.strip_prefix(point)?.split_whitespace().nth(1));
            ensure!(acted.is_some_and(|acted| acted != "0"), "{hits}");
            Ok(())
        })?;
    }
    wait_for("the next connection works", Duration::from_secs(10), || well(&ask(side, to)?))
}

/// The agent is stopped at the point, as a paused machine would be, and goes on.
fn stopped(side: &mut Side, node: u8, to: SocketAddr) -> Result<ConnReport> {
    let ask = Step::Ask { times: 3, bytes: 1_000, pattern: pattern(1) };
    let asking = side.client.connect(to, 1, vec![ask, Step::Close])?;
    wait_for("the agent stands still", Duration::from_secs(10), || {
        ensure!(side.lab.agent_state(node)? == 'T', "it runs");
        Ok(())
    })?;
    side.lab.signal_agent(node, Signal::SIGCONT)?;
    asking.report()
}

/// Bytes of one way; with 64 records of 16 KiB to a key, more than a hundred keys.
const BYTES: u64 = 192 << 20;
const RECORDS_PER_KEY: u64 = 64;

/// Lets tunnels that are made from now on change their keys often, and makes sure that new ones are made.
fn often(side: &mut Side) -> Result<()> {
    for node in 1..=2 {
        side.lab.revive_agent(node)?;
        side.lab.kill_agent(node)?;
        side.lab.start_agent(node)?;
        side.lab.fault(node, &format!("records-per-key {RECORDS_PER_KEY}"))?;
    }
    Ok(())
}

fn duplex(side: &Side, port: u16) -> Result<[ConnReport; 2]> {
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    side.far.listen(to)?;
    let script = |sent, received| {
        vec![Step::Duplex { send: BYTES, sent: pattern(sent), received: pattern(received) }, Step::Close]
    };
    let serving = side.far.serve(port, 1, script(2, 3))?;
    let client = side.client.connect(to, 1, script(3, 2))?.report()?;
    let server = serving.report()?;
    side.far.unlisten(port)?;
    Ok([client, server])
}

fn key_updates(side: &mut Side) -> Result<()> {
    often(side)?;
    let port = side.port();
    for report in duplex(side, port)? {
        let step = report.steps.first().context("no step")?;
        let whole = step.error.is_none() && step.intact && step.eof && step.bytes == BYTES;
        ensure!(report.connect.is_none() && whole, "{report:?}");
    }
    // Each node lists the tunnel with what it has sent under new keys and what its peer has.
    for node in 1..=2 {
        let tunnels = side.lab.admin(node, "/v1/tunnels")?;
        let most = |field: &str| {
            let counts = tunnels.as_array().into_iter().flatten().filter_map(|tunnel| tunnel.get(field)?.as_u64());
            counts.max().unwrap_or(0)
        };
        let counts = [most("keyUpdatesSent"), most("keyUpdatesReceived")];
        ensure!(counts.iter().all(|count| *count >= 100), "n{node}: key updates {counts:?}: {tunnels}");
    }
    Ok(())
}

fn key_update_fails(side: &mut Side, point: &str, action: &str) -> Result<()> {
    often(side)?;
    let port = side.port();
    side.lab.fault(1, &format!("arm {point} {action} 20 1"))?;
    for report in duplex(side, port)? {
        let step = report.steps.first().context("no step")?;
        // A prefix, and a reset. One call is told of it, the writing or the reading one; the other may see an end.
        ensure!(step.intact && step.bytes < BYTES, "{report:?}");
        if !matches!(step.error.as_deref(), Some("ECONNRESET" | "EPIPE")) {
            bail!("something else than a reset: {report:?}");
        }
    }
    if action == "kill" {
        side.lab.await_end(1)?;
        side.lab.start_agent(1)?;
    }
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    let _echo = Echo::start(&side.lab.pod("server-2")?.netns, to)?;
    wait_for("the next connection works", Duration::from_secs(10), || well(&ask(side, to)?))
}
