//! An agent that is gone: nothing in the clear, everybody is told at once, and a new agent goes on.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::command;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{ConnReport, Pending, Step};
use kumiko_lab::wire::Capture;
use kumiko_lab::{Family, Net, Stage, topology};
use kumiko_tests::echo::Echo;
use kumiko_tests::harness;
use kumiko_tests::twins::{Path, Side};
use libtest_mimic::Arguments;
use nix::sys::signal::Signal;
use serde_json::Value;

const SENDERS: usize = 20;
/// What each sender has got across before the agent goes.
const BEFORE: u64 = 1 << 20;

type Check = fn(&mut Side) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("ten_kills_of_the_clients_agent_under_twenty_senders", |side| (0..10).try_for_each(|_| killed(side, 1))),
    ("ten_kills_of_the_servers_agent_under_twenty_senders", |side| (0..10).try_for_each(|_| killed(side, 2))),
    ("a_connect_that_waits_is_refused_at_its_next_syn", waiting),
    ("what_is_pinned_is_adopted_and_same_node_flows_go_on", adopted),
    ("lowering_to_off_under_twenty_senders", lowered),
    ("a_restarted_agent_serves_again", restarted),
    ("cleanup_under_twenty_senders_leaves_no_trace", cleaned),
    ("sigterm_ends_in_order_and_the_kernel_goes_on_judging", stopped),
];

fn main() -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let side = Arc::new(Mutex::new(Side::new("loss", Net::Routed, Some(Stage::Strict))?));
    let capture = {
        let side = side.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = side.lab.pods.iter().flat_map(|pod| pod.ips).collect();
        Capture::start(&side.lab.node(1)?.netns, topology::WIRE, watched)?
    };
    // They share the agents: one at a time.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let trials = CHECKS.iter().map(|(name, check)| {
        let side = Arc::clone(&side);
        harness::trial(*name, move || check(&mut side.lock().unwrap_or_else(PoisonError::into_inner)))
    });
    let mut well = harness::run_trials(&args, trials.collect());
    well &= harness::run_afterwards(vec![harness::trial("nothing_of_it_in_the_clear_between_the_nodes", move || {
        capture.finish()?.check()
    })]);
    if !well {
        eprintln!("{}", side.lock().unwrap_or_else(PoisonError::into_inner).lab.evidence(60));
    }
    Ok(well)
}

fn pattern(tag: u64) -> Pattern {
    Pattern::new(CAPTURED, tag)
}

/// Twenty connections that send without end; returns when each has got its first bytes across.
fn senders(side: &Side, port: u16) -> Result<(Pending, Pending)> {
    let server = SocketAddr::new(side.lab.pod("server-2")?.ip(Family::V4), port);
    side.far.listen(server)?;
    let gate = format!("flowing-{port}");
    let reading = vec![
        Step::Recv { bytes: BEFORE, pattern: pattern(1) },
        Step::Send { bytes: 1, pattern: pattern(2) },
        Step::RecvToEnd { pattern: pattern(3) },
        Step::Close,
    ];
    let serving = side.far.serve(port, SENDERS, reading)?;
    let sending = vec![
        Step::Send { bytes: BEFORE, pattern: pattern(1) },
        Step::Recv { bytes: 1, pattern: pattern(2) },
        Step::Meet,
        Step::Open { name: gate.clone() },
        Step::Send { bytes: u64::MAX, pattern: pattern(3) },
        Step::Close,
    ];
    let clients = side.client.connect(server, SENDERS, sending)?;
    side.client.await_gate(&gate)?;
    Ok((clients, serving))
}

fn killed(side: &mut Side, node: u8) -> Result<()> {
    let port = side.port();
    let (clients, servers) = senders(side, port)?;
    side.lab.kill_agent(node)?;

    let (clients, servers) = (clients.reports()?, servers.reports()?);
    ensure!(clients.len() == SENDERS && servers.len() == SENDERS, "{} and {}", clients.len(), servers.len());
    for client in &clients {
        let end = client.steps.get(4).context("the endless send")?;
        ensure!(end.error.as_deref() == Some("ECONNRESET"), "a client saw something else than an RST: {client:?}");
    }
    for server in &servers {
        let end = server.steps.get(2).context("the reading")?;
        ensure!(end.error.as_deref() == Some("ECONNRESET"), "a server saw something else than an RST: {server:?}");
        ensure!(end.intact, "a server read wrong bytes: {server:?}");
    }
    // The listener still stands: with an agent, connecting would work.
    for _ in 0..3 {
        refused_at_once(side, port)?;
    }
    side.lab.start_agent(node)?;
    served(side, port).context("after the restart")?;
    side.far.unlisten(port)
}

fn try_once(side: &Side, port: u16) -> Result<ConnReport> {
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    let ask = Step::Ask { times: 1, bytes: 100, pattern: pattern(4) };
    side.client.connect(to, 1, vec![ask, Step::Close])?.report()
}

/// Refused before the SYN was sent again, so by an RST to the first one.
fn refused_at_once(side: &Side, port: u16) -> Result<()> {
    let client = &side.lab.pod("client-1")?.netns;
    // Where the other agent has to say it, a busy machine may take a second for it now and then.
    for _ in 0..5 {
        let before = client.tcp_counter("TCPSynRetrans")?;
        let report = try_once(side, port)?;
        ensure!(report.connect.as_deref() == Some("ECONNREFUSED"), "a new connect was not refused: {report:?}");
        if client.tcp_counter("TCPSynRetrans")? == before {
            return Ok(());
        }
    }
    bail!("new connects are refused, but not at their first SYN")
}

fn served(side: &Side, port: u16) -> Result<()> {
    let serving = side.far.serve(port, 1, vec![Step::Echo { bytes: 100 }, Step::Close])?;
    echoed(side, port)?;
    serving.reports().map(drop)
}

fn echoed(side: &Side, port: u16) -> Result<()> {
    command::wait_for("a connection is served", Duration::from_secs(10), || {
        let report = try_once(side, port)?;
        ensure!(report.connect.is_none() && report.steps.iter().all(|step| step.error.is_none()), "{report:?}");
        Ok(())
    })
}

/// The far agent stands still, so that the connect waits; then the near one dies.
fn waiting(side: &mut Side) -> Result<()> {
    let port = side.port();
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    // Answers whoever comes: the far agent, once it goes on, may still connect for the one that gave up.
    let _echo = Echo::start(&side.lab.pod("server-2")?.netns, to)?;
    echoed(side, port)?;
    side.lab.signal_agent(2, Signal::SIGSTOP)?;
    let asking = side.client.connect(to, 1, vec![Step::Close])?;
    command::wait_for("the connect waits", Duration::from_secs(10), || {
        let status = side.lab.admin(1, "/v1/status")?;
        let pending = status.get("flows").and_then(|flows| flows.get("pending")?.as_u64());
        ensure!(pending == Some(1), "{pending:?}");
        Ok(())
    })?;
    side.lab.kill_agent(1)?;
    let report = asking.report()?;
    side.lab.signal_agent(2, Signal::SIGCONT)?;
    side.lab.start_agent(1)?;
    ensure!(report.connect.as_deref() == Some("ECONNREFUSED"), "{report:?}");
    echoed(side, port)
}

fn adopted(side: &mut Side) -> Result<()> {
    let port = side.port();
    let to = SocketAddr::new(side.address(Path::SameNode, Family::V4)?, port);
    side.near.listen(to)?;
    let serving = side.near.serve(port, 1, vec![Step::Echo { bytes: 64 }, Step::Close])?;
    let asking = vec![
        Step::Ask { times: 1, bytes: 64, pattern: pattern(5) },
        Step::Open { name: "same-node".into() },
        Step::AskUntil { gate: "same-node-end".into(), bytes: 64, pattern: pattern(5) },
        Step::Close,
    ];
    let client = side.client.connect(to, 1, asking)?;
    side.client.await_gate("same-node")?;
    let mut before = links(&side.lab.node(1)?.files.bpffs)?;
    let generation = |side: &Side| -> Result<Option<u64>> {
        Ok(side.lab.admin(1, "/v1/status")?.get("generation").and_then(Value::as_u64))
    };
    let old = generation(side)?;
    side.lab.kill_agent(1)?;
    side.lab.start_agent(1)?;
    let mut after = links(&side.lab.node(1)?.files.bpffs)?;
    before.sort();
    after.sort();
    ensure!(before == after, "links {before:?} before, {after:?} after");
    ensure!(generation(side)? == old.map(|old| old + 1), "generations {old:?} and {:?}", generation(side)?);
    command::wait_for("the new agent knows the flow that goes on", Duration::from_secs(10), || {
        let flows = side.lab.admin(1, "/v1/flows")?;
        let known = flows.as_array().into_iter().flatten().any(|flow| {
            flow.get("state").and_then(Value::as_str) == Some("open")
                && flow.get("destination").and_then(|d| d.get("port")?.as_u64()) == Some(u64::from(port))
        });
        ensure!(known, "{flows}");
        Ok(())
    })?;
    side.client.open_gate("same-node-end")?;
    for report in [client.report()?, serving.report()?] {
        ensure!(report.steps.iter().all(|step| step.error.is_none() && step.intact), "{report:?}");
    }
    side.near.unlisten(port)
}

/// Flows that are captured stay so: the hooks go when they have ended.
fn lowered(side: &mut Side) -> Result<()> {
    let port = side.port();
    let server = SocketAddr::new(side.lab.pod("server-2")?.ip(Family::V4), port);
    side.far.listen(server)?;
    let serving = side.far.serve(port, SENDERS, vec![Step::RecvToEnd { pattern: pattern(6) }, Step::Close])?;
    let sending = vec![
        Step::Meet,
        Step::Open { name: "lowering".into() },
        Step::SendUntil { gate: "lowered".into(), pattern: pattern(6) },
        Step::Close,
    ];
    let clients = side.client.connect(server, SENDERS, sending)?;
    side.client.await_gate("lowering")?;
    side.lab.set_stage("demo", Stage::Off)?;
    side.lab.wait_stage("demo", Stage::Off)?;
    let sent = |side: &Side| -> Result<u64> {
        let tunnels = side.lab.admin(1, "/v1/tunnels")?;
        Ok(tunnels.as_array().into_iter().flatten().filter_map(|tunnel| tunnel.get("bytesSent")?.as_u64()).sum())
    };
    let then = sent(side)?;
    command::wait_for("the senders go on in their tunnels", Duration::from_secs(20), || {
        let now = sent(side)?;
        ensure!(now > then + (64 << 20), "{then} bytes before, {now} now");
        Ok(())
    })?;
    side.client.open_gate("lowered")?;
    let (clients, servers) = (clients.reports()?, serving.reports()?);
    ensure!(clients.len() == SENDERS && servers.len() == SENDERS, "{} and {}", clients.len(), servers.len());
    for (client, server) in clients.iter().zip(&servers) {
        ensure!(client.steps.iter().all(|step| step.error.is_none()), "{client:?}");
        let read = server.steps.first().context("no step")?;
        ensure!(read.eof && read.intact && read.error.is_none(), "{server:?}");
    }
    let total = |reports: &[ConnReport], step: usize| -> u64 {
        reports.iter().filter_map(|report| report.steps.get(step)).map(|step| step.bytes).sum()
    };
    ensure!(total(&clients, 2) == total(&servers, 0), "{} sent, {} read", total(&clients, 2), total(&servers, 0));
    side.lab.set_stage("demo", Stage::Strict)?;
    side.lab.wait_stage("demo", Stage::Strict)?;
    served(side, port)?;
    side.far.unlisten(port)
}

fn restarted(side: &mut Side) -> Result<()> {
    let port = side.port();
    side.far.listen(SocketAddr::new(side.lab.pod("server-2")?.ip(Family::V4), port))?;
    // The best of five is what the agent needs, the rest is what a busy machine adds. Told, not asserted.
    let mut best = Duration::MAX;
    for _ in 0..5 {
        side.lab.kill_agent(1)?;
        let began = Instant::now();
        side.lab.spawn_agent(1)?;
        served(side, port)?;
        best = best.min(began.elapsed());
        side.lab.wait_agent(1)?;
    }
    side.far.unlisten(port)?;
    eprintln!("a killed agent that is started again serves after {} ms", best.as_millis());
    Ok(())
}

fn stopped(side: &mut Side) -> Result<()> {
    let port = side.port();
    side.far.listen(SocketAddr::new(side.lab.pod("server-2")?.ip(Family::V4), port))?;
    served(side, port)?;
    let status = side.lab.stop_agent(1)?;
    ensure!(status.success(), "SIGTERM: the agent ended with {status}");
    refused_at_once(side, port)?;
    side.lab.start_agent(1)?;
    served(side, port)?;
    side.far.unlisten(port)
}

/// Ids of the links that an agent has pinned.
fn links(bpffs: &std::path::Path) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for layout in std::fs::read_dir(bpffs.join("kumiko"))? {
        for pin in std::fs::read_dir(layout?.path().join("links"))? {
            let pin = pin?.path();
            let shown = command::run("bpftool", &["-j", "link", "show", "pinned", &pin.to_string_lossy()])?;
            let shown: Value = serde_json::from_str(&shown)?;
            ids.push(shown.get("id").context("a link without an id")?.to_string());
        }
    }
    Ok(ids)
}

/// The agent is killed, so that all flows are still in the kernel's table, and what is left is cleaned up.
fn cleaned(side: &mut Side) -> Result<()> {
    let port = side.port();
    let (clients, servers) = senders(side, port)?;
    let hooks = links(&side.lab.node(1)?.files.bpffs)?;
    // Both of each pod, the agent's veth, the lookup.
    ensure!(hooks.len() == 2 * 2 + 2, "links {hooks:?}");
    side.lab.kill_agent(1)?;
    side.lab.cleanup(1)?;
    for client in &clients.reports()? {
        let end = client.steps.get(4).context("the endless send")?;
        ensure!(end.error.as_deref() == Some("ECONNRESET"), "a client saw something else than an RST: {client:?}");
    }
    ensure!(servers.reports()?.len() == SENDERS, "a server's connection is missing");

    let node = side.lab.node(1)?;
    let pins: Vec<_> = std::fs::read_dir(&node.files.bpffs)?.flatten().map(|entry| entry.file_name()).collect();
    // The kernel's own (CONFIG_BPF_PRELOAD) stand in every new bpffs.
    let ours = pins.iter().filter(|name| !name.to_string_lossy().ends_with(".debug"));
    ensure!(ours.count() == 0, "left in the bpffs: {pins:?}");
    let links = node.netns.run("ip", &["-br", "link"])?;
    ensure!(!links.contains("kumiko"), "left among the links:\n{links}");
    // The kernel lets go of a link some time after its pin.
    command::wait_for("the links are gone", Duration::from_secs(10), || {
        let left: Vec<_> =
            hooks.iter().filter(|id| command::run("bpftool", &["link", "show", "id", id.as_str()]).is_ok()).collect();
        ensure!(left.is_empty(), "links {left:?} are left");
        Ok(())
    })?;
    ensure!(!node.files.run_dir.exists(), "the run directory is left");

    side.lab.start_agent(1)?;
    served(side, port).context("after a new start")?;
    side.far.unlisten(port)
}
