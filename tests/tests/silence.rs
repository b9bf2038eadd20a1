//! Flows of which no packet is seen for long, while one end has forgotten its socket and the other has not.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kumiko_lab::{Family, LabSpec, Net, PodSpec, ServiceSpec, Stage};
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS, Path, Side};
use libtest_mimic::Arguments;

type Check = fn(&Side) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("who_writes_late_is_reset_cross_node", |side| late(side, Path::CrossNode, Family::V4)),
    ("who_writes_late_is_reset_same_node", |side| late(side, Path::SameNode, Family::V6)),
    ("who_writes_late_is_reset_service_cross_node", |side| late(side, Path::ServiceCrossNode, Family::V6)),
    ("who_writes_late_is_reset_service_same_node", |side| late(side, Path::ServiceSameNode, Family::V4)),
    ("who_is_silent_through_a_service_in_the_clear_stays_v4", |side| stays(side, Family::V4)),
    ("who_is_silent_through_a_service_in_the_clear_stays_v6", |side| stays(side, Family::V6)),
];
/// A pod that is not in the mesh, its namespace and its Service.
const CLEAR: &str = "clear";
const CLEAR_PORT: u16 = 20_000;
/// Of the agents' `--idle-check`.
const IDLE_CHECK: Duration = Duration::from_secs(2);
/// A pod's kernel forgets a closed socket whose peer goes on after a second; then the agents look, once a second.
const SILENCE: Duration = IDLE_CHECK.saturating_mul(4);
/// Until a write to a pod that has forgotten must have failed; without the mesh it is the second one.
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let mesh = !harness::without_mesh();
    let name = format!("silence-{}", std::process::id());
    let mut spec = LabSpec::standard(&name, 2, Net::Routed, if mesh { Stage::Strict } else { Stage::Off })
        .with_pod(PodSpec::new(CLEAR, CLEAR, 2))
        .with_ports(FIRST_PORT, PORTS);
    spec.services.push(ServiceSpec {
        name: CLEAR.into(),
        namespace: CLEAR.into(),
        pods: vec![CLEAR.into()],
        ports: vec![(CLEAR_PORT, CLEAR_PORT)],
    });
    spec.agent_args = vec!["--idle-check".into(), IDLE_CHECK.as_secs().to_string()];
    let side = Arc::new(Side::of(&spec, mesh)?);
    if mesh {
        side.lab.set_stage(CLEAR, Stage::Off)?;
        side.lab.wait_stage(CLEAR, Stage::Off)?;
    }
    for pod in &side.lab.pods {
        let forget = || Ok(std::fs::write("/proc/sys/net/ipv4/tcp_fin_timeout", "1")?);
        pod.netns.within(forget).context("setting tcp_fin_timeout")?;
    }
    let trials = CHECKS.iter().map(|(name, check)| {
        let side = Arc::clone(&side);
        harness::trial(*name, move || check(&side))
    });
    let well = harness::run_trials(args, trials.collect());
    if !well {
        eprintln!("{}", side.lab.evidence(40));
    }
    Ok(well)
}

/// One end closes, the other goes on in silence, and writes only when the first end's kernel has forgotten the socket.
fn late(side: &Side, path: Path, family: Family) -> Result<()> {
    let port = side.port();
    let to = SocketAddr::new(side.address(path, family)?, port);
    let at = SocketAddr::new(side.lab.pod(path.server())?.ip(family), port);
    let listener = side.lab.pod(path.server())?.netns.within(|| TcpListener::bind(at).context("listening"))?;
    let connect = || -> Result<(TcpStream, TcpStream)> {
        let client = side.lab.pod("client-1")?.netns.within(|| TcpStream::connect(to).context("connecting"))?;
        Ok((client, listener.accept().context("accepting")?.0))
    };
    let (client_gone, mut server) = connect()?;
    let (mut client, server_gone) = connect()?;
    drop((client_gone, server_gone));
    for stays in [&mut server, &mut client] {
        stays.set_read_timeout(Some(LIMIT))?;
        ensure!(stays.read(&mut [0])? == 0, "bytes instead of the end");
    }
    std::thread::sleep(SILENCE);
    for (name, stays) in [("server", &mut server), ("client", &mut client)] {
        let began = Instant::now();
        while stays.write_all(b"late").is_ok() {
            ensure!(began.elapsed() < LIMIT, "the {name} writes on to nobody");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// A connection in the clear whose endpoint the programs chose: the client's socket knows the Service only.
fn stays(side: &Side, family: Family) -> Result<()> {
    let server = side.lab.pod(CLEAR)?;
    let (at, to) = (server.ip(family), side.lab.service_ip(CLEAR, family)?);
    let listener = server.netns.within(|| TcpListener::bind(SocketAddr::new(at, CLEAR_PORT)).context("listening"))?;
    let client = &side.lab.pod("client-1")?.netns;
    let client = client.within(|| TcpStream::connect(SocketAddr::new(to, CLEAR_PORT)).context("connecting"))?;
    let server = listener.accept().context("accepting")?.0;
    for (mut from, mut to) in [(&client, &server), (&server, &client), (&client, &server)] {
        std::thread::sleep(SILENCE);
        let mut byte = [0];
        to.set_read_timeout(Some(LIMIT))?;
        from.write_all(&[7]).and_then(|()| to.read_exact(&mut byte)).context("after a silence")?;
        ensure!(byte == [7], "{byte:?}");
    }
    Ok(())
}
