//! Ports and addresses that come again: at once, after a connection that was given up or reset; for two addresses of one pod; and on a
//! pod that closes many connections a second. And the tunnel port when strangers sit on it.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{ConnReport, Step};
use kumiko_lab::spec::node_ips;
use kumiko_lab::wire::TUNNEL_PORT;
use kumiko_lab::{Family, LabSpec, Net, PodSpec, Stage};
use kumiko_tests::echo::Echo;
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS, Path, Side};
use libtest_mimic::Arguments;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

type Check = fn(&Side) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("a_tuple_is_used_again_at_once", at_once),
    ("a_port_lent_to_one_flow_is_its_owners_for_another", |side| lent(side, Family::V4)),
    ("a_port_lent_to_one_flow_is_its_owners_for_another_v6", |side| lent(side, Family::V6)),
    ("a_port_comes_again_to_a_server_without_timestamps", without_timestamps),
    ("strangers_at_the_tunnel_port_do_not_keep_nodes_apart", strangers),
    // The last one: afterwards the address is another workload's.
    ("an_address_passes_to_another_workload", passes_on),
];
/// Longer than any step of these tests takes on a busy machine; shorter than a SYN that is sent again a third time.
const LIMIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let mesh = !harness::without_mesh();
    let name = format!("reuse-{}", std::process::id());
    let spec = LabSpec::standard(&name, 2, Net::Routed, if mesh { Stage::Strict } else { Stage::Off })
        .with_ports(FIRST_PORT, PORTS)
        .with_pod(PodSpec { workload: false, ..PodSpec::new("outsider-1", "outside", 1) });
    let side = Arc::new(Side::of(&spec, mesh)?);
    // One after another: the last one wants its tunnels cold.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let trials = CHECKS.iter().map(|(name, check)| {
        let side = Arc::clone(&side);
        harness::trial(*name, move || check(&side))
    });
    let well = harness::run_trials(&args, trials.collect());
    if !well {
        eprintln!("{}", side.lab.evidence(40));
    }
    Ok(well)
}

/// A socket with an address and port of its own choice.
fn bound(from: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(from)).with_context(|| format!("binding {from}"))?;
    Ok(socket)
}

fn at_once(side: &Side) -> Result<()> {
    const ROUNDS: u32 = 250;
    let port = side.port();
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    let from = SocketAddr::new(side.lab.pod("client-1")?.ip(Family::V4), 31_000);
    side.far.listen(to)?;
    side.lab.pod("client-1")?.netns.within(|| {
        for round in 0..ROUNDS {
            let early = bound(from)?;
            early.set_linger(Some(Duration::ZERO))?;
            early.set_nonblocking(true)?;
            let _ = early.connect(&SockAddr::from(to));
            // Given up at every moment: before the far pod is asked, while it is, when it has just said yes.
            std::thread::sleep(Duration::from_micros(u64::from(round % 9) * 150));
            drop(early);
            let late = bound(from)?;
            late.set_linger(Some(Duration::ZERO))?;
            late.connect_timeout(&SockAddr::from(to), LIMIT).with_context(|| format!("round {round}"))?;
        }
        Ok(())
    })?;
    side.far.unlisten(port)
}

/// An echo through `client` to what `listener` accepts.
fn talk(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    for byte in [1, 2] {
        client.write_all(&[byte])?;
        let mut read = [0];
        server.read_exact(&mut read)?;
        server.write_all(&read)?;
        client.read_exact(&mut read)?;
        ensure!(read == [byte], "{read:?} came instead of {byte}");
    }
    Ok(())
}

fn lent(side: &Side, family: Family) -> Result<()> {
    let port = side.port();
    let pod = SocketAddr::new(side.address(Path::CrossNode, family)?, port);
    let service = SocketAddr::new(side.address(Path::ServiceCrossNode, family)?, port);
    let listener = side.lab.pod("server-2")?.netns.within(|| TcpListener::bind(pod).context("listening"))?;
    let client: IpAddr = side.lab.pod("client-1")?.ip(family);
    let connect = |from: u16, to: SocketAddr| -> Result<(TcpStream, TcpStream, u16)> {
        let near = side.lab.pod("client-1")?.netns.within(|| {
            let socket = bound(SocketAddr::new(client, from))?;
            socket.connect_timeout(&SockAddr::from(to), LIMIT).with_context(|| format!("port {from} to {to}"))?;
            Ok(TcpStream::from(socket))
        })?;
        let (far, peer) = listener.accept().context("accepting")?;
        ensure!(peer.ip() == client, "the server sees {peer}");
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(LIMIT))?;
        }
        Ok((near, far, peer.port()))
    };
    let mut first = connect(31_100, service)?;
    let mut second = connect(31_100, pod)?;
    ensure!(first.2 == 31_100 && second.2 != 31_100, "ports {} and {}: nothing was lent", first.2, second.2);
    let mut owner = connect(second.2, pod)?;
    for (name, flow) in [("first", &mut first), ("second, on a lent port", &mut second), ("owner", &mut owner)] {
        talk(&mut flow.0, &mut flow.1).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// What the mesh calls the workload that gets server-2's address.
const HEIR: &str = "heir-2";

/// server-2's address becomes another workload's, with another identity. Warm tunnels of the old one stand; nothing is
/// delivered in its name any more.
fn passes_on(side: &Side) -> Result<()> {
    let pod = side.lab.pod("server-2")?.clone();
    // Of its own time and of its heir's.
    let [to, later] = [(); 2].map(|()| SocketAddr::new(pod.ip(Family::V4), side.port()));
    let _echoes = [Echo::start(&pod.netns, to)?, Echo::start(&pod.netns, later)?];
    let ask = || Step::Ask { times: 2, bytes: 64, pattern: Pattern::new(CAPTURED, 1) };
    let once = |to| side.client.connect(to, 1, vec![ask(), Step::Close])?.report();
    let well =
        |report: &ConnReport| report.connect.is_none() && report.steps.iter().all(|s| s.error.is_none() && !s.eof);
    for _ in 0..20 {
        let report = once(to)?;
        ensure!(well(&report), "before: {report:?}");
    }
    let older = vec![
        ask(),
        Step::Open { name: "older".into() },
        Step::AskUntil { gate: "older-end".into(), bytes: 64, pattern: Pattern::new(CAPTURED, 1) },
    ];
    let older = side.client.connect(to, 1, older)?;
    side.client.await_gate("older")?;

    let file = side.lab.manifests().join("workload-server-2.yaml");
    let text = std::fs::read_to_string(&file)?;
    let heir = text
        .replace("name: server-2", &format!("name: {HEIR}"))
        .replace("uid: 0000", "uid: 1111")
        .replace("serviceAccount: server", "serviceAccount: heir");
    ensure!(heir != text && heir.contains("serviceAccount: heir"), "{heir}");
    kumiko_lab::state::replace(&file, heir.as_bytes())?;
    wait_for("both nodes know the heir", Duration::from_secs(10), || {
        for node in 1..=2 {
            let workloads = side.lab.admin(node, "/v1/workloads")?;
            let known = workloads.as_array().into_iter().flatten();
            let heir = known.filter(|w| w.get("name").and_then(Value::as_str) == Some(HEIR)).count();
            ensure!(heir == 1, "{workloads}");
        }
        Ok(())
    })?;
    // The connection to the pod that was: told of its end by a reset.
    let older = older.report()?;
    let end = older.steps.get(2).context("no step")?;
    ensure!(end.error.as_deref() == Some("ECONNRESET") && !end.eof, "{older:?}");
    // At once: the heir's certificate may be on its way, the client's connect waits for it.
    for _ in 0..20 {
        let report = once(later)?;
        ensure!(well(&report), "afterwards: {report:?}");
    }
    (1..=2).try_for_each(|node| {
        wait_for(&format!("n{node} records them"), Duration::from_secs(10), || {
            let flows = side.lab.admin(node, "/v1/flows?limit=20000")?;
            let its = flows.as_array().into_iter().flatten().filter(|flow| {
                flow.get("destination").and_then(|d| d.get("port")?.as_u64()) == Some(u64::from(later.port()))
            });
            let names: Vec<_> = its.filter_map(|f| f.get("destination")?.get("principal")?.as_str()).collect();
            let right = names.iter().all(|name| name.ends_with("/sa/heir"));
            ensure!(names.len() >= 20 && right, "{names:?} in {flows}");
            Ok(())
        })
    })
}

/// The connection before is in TIME_WAIT at the agent, which cannot take it over without timestamps. The client forgets its
/// own at once, so that only the agent's can be in the way.
fn without_timestamps(side: &Side) -> Result<()> {
    let (client, server) = (side.lab.pod("client-2")?, side.lab.pod("server-1")?);
    client.netns.sysctl("net.ipv4.tcp_max_tw_buckets", "0")?;
    server.netns.sysctl("net.ipv4.tcp_timestamps", "0")?;
    for family in [Family::V4, Family::V6] {
        let (from, to) = (SocketAddr::new(client.ip(family), 31_200), SocketAddr::new(server.ip(family), side.port()));
        let listener = server.netns.within(|| TcpListener::bind(to).context("listening"))?;
        for round in 0..4 {
            let mut near = client.netns.within(|| {
                let socket = bound(from)?;
                socket
                    .connect_timeout(&SockAddr::from(to), LIMIT)
                    .with_context(|| format!("{family}, round {round}"))?;
                Ok(TcpStream::from(socket))
            })?;
            let (mut far, peer) = listener.accept().context("accepting")?;
            ensure!(peer == from, "the server sees {peer}");
            near.shutdown(Shutdown::Write)?;
            ensure!(far.read(&mut [0])? == 0, "bytes instead of the end");
            drop(far);
            ensure!(near.read(&mut [0])? == 0, "bytes instead of the end");
        }
    }
    Ok(())
}

fn strangers(side: &Side) -> Result<()> {
    const COUNT: usize = 1_200;
    let port = side.port();
    let [node, _] = node_ips(1);
    let to = SocketAddr::new(side.lab.pod("server-1")?.ip(Family::V4), port);
    side.near.listen(to)?;
    let silent = side.lab.pod("outsider-1")?.netns.within(|| {
        (0..COUNT)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                let _ = socket.connect(&SockAddr::from(SocketAddr::new(node, TUNNEL_PORT)));
                Ok(socket)
            })
            .collect::<Result<Vec<Socket>>>()
    })?;
    // Behind them it would wait until two rounds of them are given up, after five seconds each.
    let connected =
        side.lab.pod("client-2")?.netns.within(|| TcpStream::connect_timeout(&to, LIMIT).context("connecting"));
    drop(silent);
    connected.with_context(|| format!("behind {COUNT} silent strangers"))?;
    side.near.unlisten(port)
}
