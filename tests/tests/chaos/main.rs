//! Mixed load while the agents fail, stop and die at points drawn at random: no byte is wrong, nothing is in the clear,
//! every flow gets its final record, and afterwards everything is as it was.
//!
//! `KUMIKO_CHAOS_SECONDS` sets how long (60 by default), `KUMIKO_CHAOS_SEED` draws what another run drew.

mod faults;
mod load;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::wire::Capture;
use kumiko_lab::{Family, Lab, LabSpec, Net, Netns, PodSpec, Stage, topology};
use kumiko_tests::echo::Echo;
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS};
use libtest_mimic::Arguments;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

use load::{Load, Mix, Tally, Targets};

const NAMES: &[&str] = &["faults_at_random_under_mixed_load"];
/// Clients in each of both client pods.
const THREADS: u64 = 6;
/// Load before the first level is taken, and failures without deaths at the end, when every record has to be there.
const WARM_UP: Duration = Duration::from_secs(5);
const RECORDED: Duration = Duration::from_secs(5);
/// Entries that are over stay for 60 s, idle tunnels for 90.
const SETTLED_WITHIN: Duration = Duration::from_secs(150);
/// For as many brief connections as an agent keeps records of.
const FILLED_WITHIN: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    harness::main(NAMES, run)
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there is no agent to fail");
        return Ok(true);
    }
    let trials = NAMES.iter().map(|name| harness::trial(*name, chaos));
    Ok(harness::run_trials(args, trials.collect()))
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

fn chaos() -> Result<()> {
    let seed = setting("KUMIKO_CHAOS_SEED", rand::random::<u64>() >> 1)?;
    let time = Duration::from_secs(setting("KUMIKO_CHAOS_SECONDS", 60)?);
    eprintln!("chaos: seed {seed}, {} s", time.as_secs());
    let mut random = StdRng::seed_from_u64(seed);
    let name = format!("chaos-{}", std::process::id());
    let mut spec = LabSpec::standard(&name, 2, Net::Routed, Stage::Strict)
        .with_pod(PodSpec::new("spare-1", "spare", 1))
        .with_pod(PodSpec::new("spare-2", "spare", 2))
        .with_ports(FIRST_PORT, PORTS);
    spec.faults = true;
    spec.agent_args = ["--idle-check", "5"].map(str::to_owned).to_vec();
    let mut lab = Lab::up(&spec)?;
    let meshed = lab.pods.iter().filter(|pod| !pod.name.starts_with("spare")).flat_map(|pod| pod.ips).collect();
    let capture = Capture::start(&lab.node(1)?.netns, topology::WIRE, meshed)?;
    let result = under_faults(&mut lab, &mut random, seed, time);
    let wire = capture.finish()?;
    result.with_context(|| format!("KUMIKO_CHAOS_SEED={seed}\n{}", lab.evidence(60)))?;
    wire.check()
}

fn under_faults(lab: &mut Lab, random: &mut StdRng, seed: u64, time: Duration) -> Result<()> {
    let (clients, _echoes) = places(lab)?;
    (1..=2).try_for_each(|node| faults::prepare(lab, node))?;
    filled(lab, Load::start(&clients, THREADS, Mix::Brief, seed))?;
    let warm = Load::start(&clients, THREADS, Mix::All, seed);
    // How long the load runs; nothing is waited for.
    std::thread::sleep(WARM_UP);
    let warm = warm.end()?;
    faultless(&warm)?;
    // It lists all records: what that takes is part of the level, too.
    recorded(lab, &warm)?;
    let before = [settled(lab, 1, None)?, settled(lab, 2, None)?];

    let load = Load::start(&clients, THREADS, Mix::All, seed.wrapping_add(1));
    let drawn = faults::draw(lab, random, time, true)?;
    let tally = load.end()?;
    eprintln!("chaos: {} connections went well, told: {:?}\nchaos: faults:{drawn}", tally.well, tally.told);
    right(&tally)?;
    ensure!(tally.well > drawn.counts().1, "hardly any connection went well: {tally:?}");

    let load = Load::start(&clients, THREADS, Mix::All, seed.wrapping_add(2));
    let drawn = faults::draw(lab, random, RECORDED, false)?;
    let tally = load.end()?;
    eprintln!("chaos: without deaths: {} connections went well, told: {:?}, faults:{drawn}", tally.well, tally.told);
    right(&tally)?;
    recorded(lab, &tally)?;

    lab.set_stage("spare", Stage::Off)?;
    for (node, before) in (1..).zip(before) {
        settled(lab, node, Some(before))?;
    }
    Ok(())
}

/// Lets a load run until both agents keep as many records as they ever do: what is resident then is their level.
fn filled(lab: &Lab, load: Load) -> Result<()> {
    let full = wait_for("the agents keep all the records that they can", FILLED_WITHIN, || {
        for node in 1..=2 {
            let status = lab.admin(node, "/v1/status")?;
            let dropped = status.pointer("/flows/recordsDropped").and_then(Value::as_u64);
            ensure!(dropped.context("no flows.recordsDropped")? > 0, "n{node} has room");
        }
        Ok(())
    });
    let tally = load.end()?;
    eprintln!("chaos: {} brief connections", tally.well);
    full.and_then(|()| faultless(&tally))
}

fn faultless(tally: &Tally) -> Result<()> {
    ensure!(tally.told.is_empty() && tally.wrong.is_empty(), "without any fault: {:?} {:?}", tally.told, tally.wrong);
    Ok(())
}

type Clients = Vec<(Netns, Targets)>;

/// Clients with where they go, and the servers there.
fn places(lab: &Lab) -> Result<(Clients, Vec<Echo>)> {
    let (mut targets, mut echoes) = (Vec::new(), Vec::new());
    for server in ["server-1", "server-2"] {
        let pod = lab.pod(server)?;
        for (family, port) in [(Family::V4, FIRST_PORT), (Family::V6, FIRST_PORT + 1)] {
            echoes.push(Echo::start(&pod.netns, SocketAddr::new(pod.ip(family), port))?);
            for service in ["server", server] {
                targets.push(SocketAddr::new(lab.service_ip(service, family)?, port));
            }
            targets.push(SocketAddr::new(pod.ip(family), port));
        }
    }
    let clients = ["client-1", "client-2"]
        .iter()
        .map(|client| Ok((lab.pod(client)?.netns.clone(), Targets(targets.clone()))))
        .collect::<Result<_>>()?;
    Ok((clients, echoes))
}

fn right(tally: &Tally) -> Result<()> {
    ensure!(tally.wrong.is_empty(), "{} wrong: {:#?}", tally.wrong.len(), tally.wrong);
    // ENOTCONN is what `shutdown` says of a connection that was reset.
    const TOLD: &[&str] = &["ECONNREFUSED", "ECONNRESET", "EPIPE", "ENOTCONN", "ETIMEDOUT", "EHOSTUNREACH", "TimedOut"];
    let other: Vec<_> = tally.told.keys().filter(|told| !TOLD.iter().any(|known| told.ends_with(known))).collect();
    ensure!(other.is_empty(), "failures of another kind: {other:?}");
    Ok(())
}

/// Each connection that opened has its final record at the client's node.
fn recorded(lab: &Lab, tally: &Tally) -> Result<()> {
    wait_for("every flow has its final record", Duration::from_secs(30), || {
        let mut closed = HashSet::new();
        for node in 1..=2 {
            let flows = lab.admin(node, "/v1/flows?limit=20000")?;
            for flow in flows.as_array().into_iter().flatten() {
                let source = flow.get("source").context("a flow without a source")?;
                let text = |field: &str| source.get(field).and_then(Value::as_str);
                let port = source.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
                if flow.get("state").and_then(Value::as_str) == Some("closed")
                    && text("node") == Some(&format!("n{node}"))
                    && let (Some(ip), Some(port)) = (text("ip"), port)
                {
                    closed.insert(SocketAddr::new(ip.parse()?, port));
                }
            }
        }
        let missing: Vec<_> = tally.opened.iter().filter(|local| !closed.contains(local)).collect();
        ensure!(missing.is_empty(), "{} of {} without: {missing:?}", missing.len(), tally.opened.len());
        Ok(())
    })
}

/// What a node holds.
#[derive(Clone, Copy, Debug)]
struct Level {
    open: u64,
    entries: u64,
    tunnels: u64,
    descriptors: u64,
    resident_kib: u64,
}

fn level(lab: &Lab, node: u8) -> Result<Level> {
    let status = lab.admin(node, "/v1/status")?;
    let count = |group: &str, name: &str| {
        status.get(group).and_then(|g| g.get(name)?.as_u64()).with_context(|| format!("no {group}.{name}"))
    };
    let pid = lab.agent_pid(node)?;
    let proc = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the agent's memory")?;
    let resident = proc.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    Ok(Level {
        open: count("flows", "open")? + count("flows", "pending")? + count("tunnels", "busy")?,
        entries: count("flows", "entries")?,
        tunnels: count("tunnels", "idle")?,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).context("the agent's descriptors")?.count() as u64,
        resident_kib: resident.context("no VmRSS")?,
    })
}

/// Waits until nothing of the load is left on a node; as little as `before`, if that is known.
fn settled(lab: &Lab, node: u8, before: Option<Level>) -> Result<Level> {
    let level = wait_for(&format!("n{node} is as it was"), SETTLED_WITHIN, || {
        let now = level(lab, node)?;
        ensure!(now.open == 0 && now.entries == 0 && now.tunnels == 0, "{now:?}");
        if let Some(before) = before {
            ensure!(now.descriptors <= before.descriptors + 4, "{before:?} before, {now:?} now");
            ensure!(now.resident_kib <= before.resident_kib * 9 / 8, "{before:?} before, {now:?} now");
        }
        Ok(now)
    })?;
    eprintln!("chaos: n{node}: {level:?}");
    Ok(level)
}
