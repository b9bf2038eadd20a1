//! Pods and connections of unusual shape: a pod that calls itself, two Services in front of one pod, a pod behind a bridge
//! of its own, a reader that comes late.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{Action, ConnReport, Peer, Step};
use kumiko_lab::wire::Capture;
use kumiko_lab::{Family, LabSpec, Net, PodSpec, ServiceSpec, Stage, topology};
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS, Path, Side};
use libtest_mimic::Arguments;

const NETS: [Net; 2] = [Net::Routed, Net::Bridged];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// A pod with a second Service in front of it beside `server-2`.
const TWIN: &str = "twin-2";
/// Pods whose eth0 is a port of a bridge of theirs.
const BEHIND: [&str; 2] = ["behind-1", "behind-2"];

type Check = fn(&Side, Family) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("a_pod_calls_itself_through_its_service", itself),
    ("two_services_in_front_of_one_pod_and_one_source_port", two_services),
    ("a_pod_whose_eth0_is_a_bridge_port", bridge_port),
    ("all_of_a_mebibyte_for_a_reader_that_comes_ten_seconds_later", late_reader),
];

fn main() -> ExitCode {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    harness::main(&names, run)
}

fn name(net: Net, family: Family, check: &str) -> String {
    format!("{net}::{family}::{check}")
}

fn names() -> Vec<String> {
    let of_net = |net| FAMILIES.iter().flat_map(move |f| CHECKS.iter().map(move |(check, _)| name(net, *f, check)));
    NETS.into_iter().flat_map(of_net).collect()
}

fn run(args: &Arguments) -> Result<bool> {
    let mesh = !harness::without_mesh();
    let (mut sides, mut captures) = (Vec::new(), Vec::new());
    for net in NETS {
        let side = Arc::new(side(net, mesh)?);
        let watched = side.lab.pods.iter().flat_map(|pod| pod.ips).collect();
        captures.push((net, Capture::start(&side.lab.node(1)?.netns, topology::WIRE, watched)?));
        sides.push((net, side));
    }
    let mut trials = Vec::new();
    for (net, side) in &sides {
        for family in FAMILIES {
            for (check, run) in CHECKS {
                let side = Arc::clone(side);
                trials.push(harness::trial(name(*net, family, check), move || run(&side, family)));
            }
        }
    }
    let mut well = harness::run_trials(args, trials);
    let on_wire = captures.into_iter().map(|(net, capture)| {
        harness::trial(format!("{net}::nothing_of_it_in_the_clear_between_the_nodes"), move || {
            let report = capture.finish()?;
            if mesh { report.check() } else { Ok(()) }
        })
    });
    well &= harness::run_afterwards(on_wire.collect());
    if !well {
        for (_, side) in &sides {
            eprintln!("{}", side.lab.evidence(40));
        }
    }
    Ok(well)
}

fn side(net: Net, mesh: bool) -> Result<Side> {
    let name = format!("shapes-{net}-{}", std::process::id());
    let mut spec = LabSpec::standard(&name, 2, net, if mesh { Stage::Strict } else { Stage::Off });
    spec.services.push(ServiceSpec {
        name: TWIN.into(),
        namespace: "demo".into(),
        pods: vec!["server-2".into()],
        ports: vec![(80, 8080)],
    });
    for (node, pod) in (1..).zip(BEHIND) {
        spec = spec.with_pod(PodSpec::new(pod, "demo", node));
    }
    let spec = spec.with_ports(FIRST_PORT, PORTS);
    let side = Side::of(&spec, mesh)?;
    for (node, pod) in (1..).zip(BEHIND) {
        put_behind_bridge(&side, net, node, pod)?;
    }
    Ok(side)
}

/// Makes eth0 of a pod a port of a bridge in the pod, which takes over its addresses and routes. The bridge has a MAC of
/// its own.
fn put_behind_bridge(side: &Side, net: Net, node: u8, pod: &str) -> Result<()> {
    let pod = side.lab.pod(pod)?;
    let [v4, v6] = pod.ips;
    let routes = match net {
        Net::Routed => "route add 169.254.1.1 dev br0 scope link\nroute replace default via 169.254.1.1 dev br0\n\
             route replace default via fe80::1 dev br0"
            .to_owned(),
        Net::Bridged => format!(
            "route replace default via 10.244.{node}.1 dev br0\nroute replace default via fd00:244:{node}::1 dev br0"
        ),
    };
    let (long4, long6) = if net == Net::Routed { (32, 128) } else { (24, 64) };
    pod.netns.ip(&format!(
        "addr flush dev eth0\nlink add br0 address 02:00:00:00:be:0{node} type bridge stp_state 0 forward_delay 0\n\
         link set eth0 master br0\nlink set br0 up\naddr add {v4}/{long4} dev br0\naddr add {v6}/{long6} dev br0 nodad\n\
         {routes}"
    ))
}

fn pattern(tag: u64) -> Pattern {
    Pattern::new(CAPTURED, tag)
}

fn well(report: &ConnReport) -> Result<()> {
    let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact);
    ensure!(report.connect.is_none() && !broken, "{report:?}");
    Ok(())
}

/// A connection from a peer, perhaps from a port of its choice: both ends' reports.
fn exchange(
    (client, from): (&Peer, Option<SocketAddr>),
    to: SocketAddr,
    (server, at): (&Peer, SocketAddr),
) -> Result<[ConnReport; 2]> {
    server.listen(at)?;
    let serving = server.serve(at.port(), 1, vec![Step::Echo { bytes: 10_000 }, Step::Close])?;
    let ask = Step::Ask { times: 5, bytes: 10_000, pattern: pattern(1) };
    let action = Action::Connect { to, from, within_ms: None, count: 1, script: vec![ask, Step::Close] };
    let client = client.begin(action)?.report()?;
    well(&client)?;
    let reports = [client, serving.report()?];
    reports.iter().try_for_each(well)?;
    server.unlisten(at.port())?;
    Ok(reports)
}

fn itself(side: &Side, family: Family) -> Result<()> {
    for (name, peer) in [("server-1", &side.near), ("server-2", &side.far)] {
        let port = side.port();
        let at = SocketAddr::new(side.lab.pod(name)?.ip(family), port);
        let to = SocketAddr::new(side.lab.service_ip(name, family)?, port);
        let [client, server] = exchange((peer, None), to, (peer, at)).context(name)?;
        ensure!(client.peer == Some(to), "{client:?}");
        // Its own address would never be answered: it sees kumiko's, or the node's without the mesh.
        ensure!(server.peer.is_some_and(|peer| peer.ip() != at.ip()), "{server:?}");
        if !harness::without_mesh() {
            let own: IpAddr = match family {
                Family::V4 => "169.254.107.1".parse()?,
                Family::V6 => "fd6b:756d:696b::1".parse()?,
            };
            ensure!(server.peer.map(|peer| peer.ip()) == Some(own), "{server:?}");
        }
    }
    Ok(())
}

fn two_services(side: &Side, family: Family) -> Result<()> {
    let (pod, client) = (side.lab.pod("server-2")?.ip(family), side.lab.pod("client-1")?.ip(family));
    let at = SocketAddr::new(pod, side.port());
    let from = SocketAddr::new(client, if family == Family::V4 { 31_200 } else { 31_201 });
    side.far.listen(at)?;
    let serving = side.far.serve(at.port(), 2, vec![Step::Echo { bytes: 1_000 }, Step::Close])?;
    let gate = format!("both-{family}");
    let ask = || Step::Ask { times: 3, bytes: 1_000, pattern: pattern(2) };
    let mut clients = Vec::new();
    for service in ["server-2", TWIN] {
        let to = SocketAddr::new(side.lab.service_ip(service, family)?, at.port());
        let here = format!("{service}-{family}");
        let script =
            vec![ask(), Step::Open { name: here.clone() }, Step::Gate { name: gate.clone() }, ask(), Step::Close];
        clients.push(side.client.begin(Action::Connect { to, from: Some(from), within_ms: None, count: 1, script })?);
        side.client.await_gate(&here).with_context(|| format!("through {service}"))?;
    }
    side.client.open_gate(&gate)?;
    for client in clients {
        well(&client.report()?)?;
    }
    let servers = serving.reports()?;
    servers.iter().try_for_each(well)?;
    let ports: Vec<u16> = servers.iter().filter_map(|server| Some(server.peer?.port())).collect();
    // One of both has another port, in the mesh as with kube-proxy's translation.
    ensure!(ports.len() == 2 && ports.contains(&from.port()) && ports.first() != ports.get(1), "{ports:?}");
    ensure!(servers.iter().all(|server| server.peer.is_some_and(|peer| peer.ip() == client)), "{servers:?}");
    side.far.unlisten(at.port())
}

fn bridge_port(side: &Side, family: Family) -> Result<()> {
    for name in BEHIND {
        let behind = side.lab.peer(name)?;
        let pod = side.lab.pod(name)?.ip(family);
        // As a server, for pods of both nodes.
        for (client, peer) in [("client-1", &side.client), ("client-2", &side.lab.peer("client-2")?)] {
            let at = SocketAddr::new(pod, side.port());
            let [client_report, server] =
                exchange((peer, None), at, (&behind, at)).with_context(|| format!("{client} to {name}"))?;
            ensure!(server.peer == client_report.local, "{server:?}");
        }
        // As a client.
        for path in Path::ALL {
            let port = side.port();
            let to = SocketAddr::new(side.address(path, family)?, port);
            let at = SocketAddr::new(side.lab.pod(path.server())?.ip(family), port);
            exchange((&behind, None), to, (side.server(path), at))
                .with_context(|| format!("{name} to {}", path.server()))?;
        }
    }
    Ok(())
}

fn late_reader(side: &Side, family: Family) -> Result<()> {
    const BYTES: u64 = 1 << 20;
    let mut readers = Vec::new();
    for path in Path::ALL {
        let server = side.server(path);
        for upwards in [true, false] {
            let port = side.port();
            let at = SocketAddr::new(side.lab.pod(path.server())?.ip(family), port);
            let to = SocketAddr::new(side.address(path, family)?, port);
            let gate = format!("late-{port}");
            server.listen(at)?;
            let writer = vec![Step::Send { bytes: BYTES, pattern: pattern(3) }, Step::Close];
            let reader = vec![Step::Gate { name: gate.clone() }, Step::RecvToEnd { pattern: pattern(3) }, Step::Close];
            let (up, down) = if upwards { (writer, reader) } else { (reader, writer) };
            let serving = server.serve(port, 1, down)?;
            let client = side.client.connect(to, 1, up)?;
            let (writing, reading) = if upwards { (client, serving) } else { (serving, client) };
            let peer = if upwards { server } else { &side.client };
            readers.push((peer, gate, writing, reading, path, server, port));
        }
    }
    // That they come so late is what is tried.
    std::thread::sleep(Duration::from_secs(10));
    for (peer, gate, writing, reading, path, server, port) in readers {
        peer.open_gate(&gate)?;
        // Through the agents it has written and closed long ago; from veth to veth the sockets' buffers are too small.
        well(&writing.report()?).with_context(|| format!("the writer, {}", path.name()))?;
        let report = reading.report()?;
        let read = report.steps.get(1).context("no step")?;
        let whole = read.bytes == BYTES && read.eof && read.intact && read.error.is_none();
        ensure!(whole, "{}: {report:?}", path.name());
        server.unlisten(port)?;
    }
    Ok(())
}
