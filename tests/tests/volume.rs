//! Many bytes, many connections, readers that do not read: byte-exact, bounded, and nothing of it in the clear.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::pattern::{CAPTURED, CLEAR, Pattern};
use kumiko_lab::peer::{ConnReport, Peer, Step};
use kumiko_lab::wire::Capture;
use kumiko_lab::{Family, LabSpec, Net, PodSpec, Stage, topology};
use kumiko_tests::harness;
use kumiko_tests::twins::{FIRST_PORT, PORTS, Path, Side};
use libtest_mimic::Arguments;

const GIB: u64 = 1 << 30;
/// More than all socket buffers and the relays' together.
const MORE_THAN_BUFFERS: u64 = 256 << 20;

type Check = fn(&Side) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("every_size_both_ways_cross_node", |side| sizes(side, Path::CrossNode, Family::V4)),
    ("every_size_both_ways_cross_node_v6", |side| sizes(side, Path::ServiceCrossNode, Family::V6)),
    ("every_size_both_ways_same_node", |side| sizes(side, Path::SameNode, Family::V6)),
    ("a_gibibyte_both_ways_at_once_cross_node", |side| both_ways(side, Path::CrossNode, Family::V4, GIB)),
    ("a_gibibyte_both_ways_at_once_same_node", |side| both_ways(side, Path::SameNode, Family::V4, GIB)),
    ("a_gibibyte_both_ways_at_once_same_node_by_service", |side| {
        both_ways(side, Path::ServiceSameNode, Family::V6, GIB)
    }),
    ("a_thousand_connections_at_once", a_thousand),
    ("a_stalled_reader_stalls_its_writer_only", stalled_reader),
    ("clear_connections_stay_clear", clear),
];

fn main() -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let mesh = !harness::without_mesh();
    let name = format!("volume-{}", std::process::id());
    let spec = LabSpec::standard(&name, 2, Net::Routed, if mesh { Stage::Strict } else { Stage::Off })
        .with_ports(FIRST_PORT, PORTS)
        .with_pod(PodSpec { workload: false, ..PodSpec::new("outsider-1", "outside", 1) })
        .with_pod(PodSpec { workload: false, ..PodSpec::new("outsider-2", "outside", 2) });
    let side = Arc::new(Side::of(&spec, mesh)?);
    let meshed = side.lab.pods.iter().filter(|pod| !pod.name.starts_with("outsider"));
    let capture = Capture::start(&side.lab.node(1)?.netns, topology::WIRE, meshed.flat_map(|pod| pod.ips).collect())?;

    // One after another: each of them fills both cores.
    let args = Arguments { test_threads: args.test_threads.or(Some(1)), ..args.clone() };
    let trials = CHECKS.iter().map(|(name, check)| {
        let side = Arc::clone(&side);
        harness::trial(*name, move || check(&side))
    });
    let mut well = harness::run_trials(&args, trials.collect());
    let all = args.filter.is_none();
    well &= harness::run_afterwards(vec![harness::trial("wire", move || {
        let report = capture.finish()?;
        if mesh {
            report.check()?;
            ensure!(!all || report.tunnel_bytes > 2 * GIB, "the tunnels carried too little: {report:#?}");
            ensure!(!all || report.tls13 > 100, "too few tunnels were seen from their first byte: {report:#?}");
        }
        ensure!(!all || report.clear_canary > 0, "the capture does not see clear connections: {report:#?}");
        Ok(())
    })]);
    if !well {
        eprintln!("{}", side.lab.evidence(40));
    }
    Ok(well)
}

fn pattern(tag: u64) -> Pattern {
    Pattern::new(CAPTURED, tag)
}

/// A connection that went as it should: every step without an error, every byte right.
fn well(report: &ConnReport) -> Result<()> {
    let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact);
    if report.connect.is_some() || broken {
        bail!("a connection did not go well: {report:?}");
    }
    Ok(())
}

fn both_ways(side: &Side, path: Path, family: Family, bytes: u64) -> Result<()> {
    let port = side.port();
    let to = SocketAddr::new(side.address(path, family)?, port);
    let server = side.server(path);
    server.listen(SocketAddr::new(side.lab.pod(path.server())?.ip(family), port))?;
    let duplex = |sent, received| {
        vec![Step::Duplex { send: bytes, sent: pattern(sent), received: pattern(received) }, Step::Close]
    };
    let serving = server.serve(port, 1, duplex(2, 1))?;
    let client = side.client.connect(to, 1, duplex(1, 2))?.report()?;
    well(&client).with_context(|| format!("{bytes} bytes, client"))?;
    let server_report = serving.report()?;
    well(&server_report).with_context(|| format!("{bytes} bytes, server"))?;
    for end in [&client, &server_report] {
        let read = end.steps.first().map_or(0, |step| step.bytes);
        ensure!(read == bytes, "{read} of {bytes} bytes arrived: {end:?}");
    }
    server.unlisten(port)
}

fn sizes(side: &Side, path: Path, family: Family) -> Result<()> {
    // Around the sizes of records, buffers and segments.
    let sizes = [1, 2, 100, 1_447, 1_448, 16_383, 16_384, 16_385, 65_535, 65_536, 262_144, 1_000_003, 33_554_433];
    sizes.iter().try_for_each(|bytes| both_ways(side, path, family, *bytes))
}

fn a_thousand(side: &Side) -> Result<()> {
    const COUNT: usize = 1_000;
    let port = side.port();
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    side.far.listen(SocketAddr::new(side.lab.pod("server-2")?.ip(Family::V4), port))?;
    let serving = side.far.serve(port, COUNT, vec![Step::Echo { bytes: 1_000 }, Step::Close])?;
    let ask = || Step::Ask { times: 3, bytes: 1_000, pattern: pattern(9) };
    let reports = side.client.connect(to, COUNT, vec![ask(), Step::Meet, ask(), Step::Close])?.reports()?;
    ensure!(reports.len() == COUNT, "{} of {COUNT} connections", reports.len());
    reports.iter().try_for_each(well)?;
    serving.reports()?.iter().try_for_each(well)?;
    side.far.unlisten(port)
}

fn stalled_reader(side: &Side) -> Result<()> {
    let port = side.port();
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V6)?, port);
    side.far.listen(SocketAddr::new(side.lab.pod("server-2")?.ip(Family::V6), port))?;
    for upwards in [true, false] {
        let name = |what: &str| format!("{what}-{upwards}");
        let writer = vec![
            Step::Fill { limit: MORE_THAN_BUFFERS, pattern: pattern(5) },
            Step::Open { name: name("full") },
            Step::ShutdownWrite,
            Step::RecvToEnd { pattern: pattern(6) },
        ];
        let reader = vec![Step::Gate { name: name("read") }, Step::RecvToEnd { pattern: pattern(5) }, Step::Close];
        let (client, server) = if upwards { (writer, reader) } else { (reader, writer) };
        let serving = side.far.serve(port, 1, server)?;
        let asking = side.client.connect(to, 1, client)?;
        let (writing, reading) = if upwards { (&side.client, &side.far) } else { (&side.far, &side.client) };
        writing.await_gate(&name("full"))?;
        // Meanwhile another connection between the same two pods is not held up.
        both_ways(side, Path::CrossNode, Family::V6, 1 << 20).context("beside a stalled connection")?;
        reading.open_gate(&name("read"))?;
        let (client, server) = (asking.report()?, serving.report()?);
        let (writer, reader) = if upwards { (client, server) } else { (server, client) };
        let (wrote, read) = (writer.steps.first().context("no step")?, reader.steps.get(1).context("no step")?);
        ensure!(wrote.error.as_deref() == Some("timed out"), "the writer was never stalled: {writer:?}");
        ensure!(wrote.bytes == read.bytes && read.intact && read.eof, "{wrote:?} {read:?}");
    }
    side.far.unlisten(port)
}

fn clear(side: &Side) -> Result<()> {
    let (from, to): (Peer, Peer) = (side.lab.peer("outsider-1")?, side.lab.peer("outsider-2")?);
    let addr = SocketAddr::new(side.lab.pod("outsider-2")?.ip(Family::V4), 8080);
    to.listen(addr)?;
    let pattern = Pattern::new(CLEAR, 1);
    let serving = to.serve(8080, 1, vec![Step::RecvToEnd { pattern: pattern.clone() }, Step::Close])?;
    let sending = vec![Step::Send { bytes: 100_000, pattern }, Step::Close];
    well(&from.connect(addr, 1, sending)?.report()?)?;
    well(&serving.report()?)
}
