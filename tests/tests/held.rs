//! Agents that stand still while their pods go on: what they find when they wake, and what the ones after them find.

use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Net, Netns, Stage};
use kumiko_tests::harness;
use kumiko_tests::twins::{Path, Side};
use libtest_mimic::Arguments;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

type Check = fn(&mut Side) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("a_syn_that_a_killed_agent_left_is_judged_anew", left),
    ("a_client_that_gave_up_cancels_its_dial", gave_up),
    ("without_a_tunnel_permissive_goes_once_in_the_clear", downgraded),
    ("pods_that_call_each_other_at_once_are_told_so", both_ends),
];
/// Longer than a client that sends its SYN five times waits.
const LIMIT: Duration = Duration::from_secs(40);

fn main() -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        return Ok(harness::run_trials(args, Vec::new()));
    }
    let side = Arc::new(Mutex::new(Side::new("held", Net::Routed, Some(Stage::Strict))?));
    // They share the agents: one at a time.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let trials = CHECKS.iter().map(|(name, check)| {
        let side = Arc::clone(&side);
        harness::trial(*name, move || check(&mut side.lock().unwrap_or_else(PoisonError::into_inner)))
    });
    let well = harness::run_trials(&args, trials.collect());
    if !well {
        eprintln!("{}", side.lock().unwrap_or_else(PoisonError::into_inner).lab.evidence(60));
    }
    Ok(well)
}

/// Connects from an address and port of one's own choice, on another thread.
fn connecting(ns: &Netns, from: SocketAddr, to: SocketAddr) -> thread::JoinHandle<Result<TcpStream>> {
    let ns = ns.clone();
    thread::spawn(move || {
        ns.within(|| {
            let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(from)).with_context(|| format!("binding {from}"))?;
            socket.connect_timeout(&SockAddr::from(to), LIMIT).context("connecting")?;
            Ok(socket.into())
        })
    })
}

fn joined(handle: thread::JoinHandle<Result<TcpStream>>) -> Result<TcpStream> {
    handle.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the connecting thread panicked")))
}

/// How often a namespace has sent a SYN again.
fn sent_again(ns: &Netns) -> Result<u64> {
    ns.tcp_counter("TCPSynRetrans")
}

/// What lies in the ring belongs to an agent that is no more: the next one must not dial it, nor refuse it, under an entry
/// that it does not own. The client's next SYN begins anew.
fn left(side: &mut Side) -> Result<()> {
    let port = side.port();
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    let client = side.lab.pod("client-1")?.clone();
    side.far.listen(to)?;
    // Since Linux 6.5 the first four go every second, and an agent would have to be there within one.
    let linear = "net.ipv4.tcp_syn_linear_timeouts";
    if std::path::Path::new("/proc/sys").join(linear.replace('.', "/")).exists() {
        client.netns.sysctl(linear, "0")?;
    }
    for from in 31_400..31_405 {
        side.lab.signal_agent(1, Signal::SIGSTOP)?;
        let before = sent_again(&client.netns)?;
        let waiting = connecting(&client.netns, SocketAddr::new(client.ip(Family::V4), from), to);
        // The next one comes eight seconds later: time enough to change the agent between the two.
        wait_for("the SYN was sent again three times", LIMIT, || {
            ensure!(sent_again(&client.netns)? >= before + 3, "not yet");
            Ok(())
        })?;
        side.lab.kill_agent(1)?;
        side.lab.start_agent(1)?;
        let in_time = sent_again(&client.netns)? == before + 3;
        let answer = joined(waiting);
        if in_time {
            answer.context("with the next agent")?;
            return side.far.unlisten(port);
        }
        // The client asked while no agent was there, and was refused for that: it says nothing.
    }
    bail!("this machine is too busy to start an agent within seconds")
}

/// Both SYNs are parked before either agent can ask the other one.
fn both_ends(side: &mut Side) -> Result<()> {
    let (one, other) = (side.lab.pod("client-1")?.clone(), side.lab.pod("server-2")?.clone());
    let [near, far] = [(&one, 31_500), (&other, 31_501)].map(|(pod, port)| SocketAddr::new(pod.ip(Family::V4), port));
    let before = [(&one, sent_again(&one.netns)?), (&other, sent_again(&other.netns)?)];
    for node in 1..=2 {
        side.lab.signal_agent(node, Signal::SIGSTOP)?;
    }
    let calls = [connecting(&one.netns, near, far), connecting(&other.netns, far, near)];
    // A socket shows itself before its first SYN is out; at the second one the first is parked for sure.
    let sent = before.iter().try_for_each(|(pod, before)| {
        wait_for("both have called", LIMIT, || {
            ensure!(sent_again(&pod.netns)? > *before, "{} has not sent its SYN again yet", pod.name);
            Ok(())
        })
    });
    for node in 1..=2 {
        side.lab.signal_agent(node, Signal::SIGCONT)?;
    }
    sent?;
    for call in calls {
        let said = joined(call).err().context("connected to one who was connecting")?;
        let refused = said.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).next();
        ensure!(refused.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused), "{said:#}");
    }
    wait_for("it is said why", Duration::from_secs(10), || {
        let flows = [side.lab.admin(1, "/v1/flows")?, side.lab.admin(2, "/v1/flows")?];
        let told = flows
            .iter()
            .filter_map(|flows| flows.as_array())
            .flatten()
            .any(|f| f.get("reason").is_some_and(|reason| reason == "tuple_busy"));
        ensure!(told, "{flows:?}");
        Ok(())
    })
}

/// The record of the flow from a port of client-1, when there is one.
fn flow(side: &Side, port: u16) -> Result<Value> {
    let flows = side.lab.admin(1, "/v1/flows")?;
    let found = flows.as_array().into_iter().flatten().find(|flow| flow.pointer("/source/port") == Some(&port.into()));
    found.cloned().with_context(|| format!("no flow from port {port} in {flows}"))
}

/// The far agent stands still, so its answer does not end the dial.
fn gave_up(side: &mut Side) -> Result<()> {
    let (port, client) = (side.port(), side.lab.pod("client-1")?.clone());
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    let from = SocketAddr::new(client.ip(Family::V4), 31_600);
    side.far.listen(to)?;
    // The same tuple has the same shard, whose tunnel is warm then: nothing but the answer is waited for.
    let warm = Socket::from(joined(connecting(&client.netns, from, to))?);
    warm.set_linger(Some(Duration::ZERO))?;
    drop(warm);
    wait_for("the tunnel is idle", LIMIT, || {
        let flow = flow(side, from.port())?;
        ensure!(flow.get("state").is_some_and(|state| state == "closed"), "{flow}");
        Ok(())
    })?;
    side.lab.signal_agent(2, Signal::SIGSTOP)?;
    let given_up = gives_up(side, &client.netns, from, to);
    side.lab.signal_agent(2, Signal::SIGCONT)?;
    given_up?;
    side.far.unlisten(port)
}

fn gives_up(side: &Side, ns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<()> {
    let early = ns.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(from))?;
        socket.set_nonblocking(true)?;
        let _ = socket.connect(&SockAddr::from(to));
        Ok(socket)
    })?;
    wait_for("it is dialled", LIMIT, || dials(side, 1))?;
    drop(early);
    wait_for("it is given up", LIMIT, || {
        dials(side, 0)?;
        let flows = side.lab.admin(1, "/v1/flows")?;
        let told = flows
            .as_array()
            .into_iter()
            .flatten()
            .any(|f| f.get("reason").is_some_and(|reason| reason == "client_gone"));
        ensure!(told, "{flows}");
        Ok(())
    })
}

/// Whether n1 has so many pending flows.
fn dials(side: &Side, count: u64) -> Result<()> {
    let status = side.lab.admin(1, "/v1/status")?;
    ensure!(status.pointer("/flows/pending") == Some(&count.into()), "{status}");
    Ok(())
}

/// Waits until the record of the flow from a port of client-1 says all this.
fn is_told(side: &Side, port: u16, wanted: &Value) -> Result<()> {
    wait_for("it is told", LIMIT, || {
        let flow = flow(side, port)?;
        let differs =
            wanted.as_object().into_iter().flatten().find(|(name, value)| flow.get(name.as_str()) != Some(value));
        ensure!(differs.is_none(), "{differs:?} in {flow}");
        Ok(())
    })
}

fn downgraded(side: &mut Side) -> Result<()> {
    let (port, client) = (side.port(), side.lab.pod("client-1")?.clone());
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    let from = |port| SocketAddr::new(client.ip(Family::V4), port);
    side.far.listen(to)?;
    side.lab.set_stage("demo", Stage::Permissive)?;
    side.lab.wait_stage("demo", Stage::Permissive)?;
    side.lab.kill_agent(2)?;
    let clear = joined(connecting(&client.netns, from(31_700), to)).context("without the far agent");
    side.lab.start_agent(2)?;
    let clear = clear?;
    is_told(
        side,
        clear.local_addr()?.port(),
        &json!({"downgraded": true, "encrypted": false, "reason": "downgraded"}),
    )?;
    drop(joined(connecting(&client.netns, from(31_701), to)).context("with it again")?);
    is_told(side, 31_701, &json!({"downgraded": false, "encrypted": true}))?;
    side.lab.set_stage("demo", Stage::Strict)?;
    side.lab.wait_stage("demo", Stage::Strict)?;
    side.far.unlisten(port)
}
