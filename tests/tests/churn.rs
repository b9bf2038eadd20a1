//! Many new connections a second from one client with few ports, in every form in which a port can come again: as many
//! failures as the same connections have without the mesh, which run beside them.
//!
//! `KUMIKO_CHURN_SECONDS` says how long each form runs.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_core::api::Status;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::Step;
use kumiko_lab::{Family, Net, Stage};
use kumiko_tests::harness;
use kumiko_tests::load::{Form, Load, Report};
use kumiko_tests::twins::{Path, Side};
use libtest_mimic::Arguments;

/// New connections a second.
const RATE: u32 = 1_500;
/// The client's: with [`TARGETS`] each pair of ports comes again after 10.7 s at that rate.
const PORTS: &str = "30000 31999";
const TARGETS: usize = 8;
/// Of each form, unless told otherwise.
const SECONDS: u64 = 15;

type Check = (&'static str, Form, Family);

const CHECKS: &[Check] = &[
    ("server_closes_first", Form::ServerFirst, Family::V4),
    ("client_resets", Form::ClientReset, Family::V6),
    ("client_closes_first_with_tw_reuse", Form::ClientFirst, Family::V4),
];

/// While no tunnel is there yet: each goes another way between the two nodes.
const COLD: &[(&str, &str, &str, Family)] = &[
    ("a_thousand_cold_flows_at_once", "client-1", "server-2", Family::V4),
    ("a_thousand_cold_flows_at_once_v6", "client-2", "server-1", Family::V6),
];

fn main() -> ExitCode {
    let names: Vec<&str> = COLD.iter().map(|(name, ..)| *name).chain(CHECKS.iter().map(|(name, ..)| *name)).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let direct = Arc::new(Side::new("churn-direct", Net::Routed, None)?);
    let mesh = (!harness::without_mesh()).then_some(Stage::Strict);
    let mesh = Arc::new(Side::new("churn-mesh", Net::Routed, mesh)?);
    for side in [&direct, &mesh] {
        let client = &side.lab.pod("client-1")?.netns;
        client.sysctl("net.ipv4.ip_local_port_range", PORTS)?;
        client.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    }
    let capture = mesh.capture()?;
    // One after another: each of them fills both cores.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let cold_ones = COLD.iter().map(|(name, client, server, family)| {
        let mesh = Arc::clone(&mesh);
        harness::trial(*name, move || cold(&mesh, client, server, *family))
    });
    let churns = CHECKS.iter().map(|(name, form, family)| {
        let (direct, mesh) = (Arc::clone(&direct), Arc::clone(&mesh));
        harness::trial(*name, move || churn(name, &direct, &mesh, *form, *family))
    });
    let mut well = harness::run_trials(&args, cold_ones.chain(churns).collect());
    well &= harness::run_afterwards(vec![harness::trial("wire", move || {
        let report = capture.finish()?;
        if harness::without_mesh() { Ok(()) } else { report.check() }
    })]);
    if !well {
        eprintln!("{}", mesh.lab.evidence(40));
    }
    Ok(well)
}

fn seconds() -> Result<u64> {
    match std::env::var("KUMIKO_CHURN_SECONDS") {
        Ok(text) => text.parse().context("KUMIKO_CHURN_SECONDS"),
        Err(_) => Ok(SECONDS),
    }
}

fn load(side: &Side, form: Form, family: Family) -> Result<Load> {
    let ports: Vec<u16> = (0..TARGETS).map(|_| side.port()).collect();
    let at = |address| ports.iter().map(|port| SocketAddr::new(address, *port)).collect();
    Ok(Load {
        form,
        to: at(side.address(Path::CrossNode, family)?),
        at: at(side.lab.pod("server-2")?.ip(family)),
        rate: RATE,
        count: u64::from(RATE) * seconds()?,
    })
}

fn churn(name: &str, direct: &Side, mesh: &Side, form: Form, family: Family) -> Result<()> {
    let run = |side: &Side| -> Result<Report> {
        let (client, server) = (side.lab.pod("client-1")?, side.lab.pod("server-2")?);
        load(side, form, family)?.run(&client.netns, &server.netns)
    };
    let (without, with) = std::thread::scope(|scope| {
        let without = scope.spawn(|| run(direct).context("without the mesh"));
        let with = run(mesh).context("with the mesh");
        (without.join(), with)
    });
    let Ok(without) = without else { bail!("a thread panicked") };
    let (without, with) = (without?, with?);
    eprintln!("{name}, without the mesh: {without}\n{name}, with the mesh: {with}");
    let paced = |report: &Report| report.took < Duration::from_secs(seconds().unwrap_or(SECONDS)) * 11 / 10;
    if !paced(&with) || !paced(&without) {
        eprintln!("{name}: this machine does not keep {RATE} a second now; what was compared is slower");
    }
    let client = with.client.worse_than(&without.client).map(|what| format!("client: {what}"));
    let server = with.server.worse_than(&without.server).map(|what| format!("server: {what}"));
    let worse: Vec<String> = client.chain(server).collect();
    ensure!(worse.is_empty(), "{}", worse.join("\n"));
    Ok(())
}

/// As many connects at the same instant, between two identities that never spoke.
fn cold(side: &Side, client: &str, server: &str, family: Family) -> Result<()> {
    const COUNT: usize = 1_000;
    let (port, number) = (side.port(), if client.ends_with('1') { 1 } else { 2 });
    let to = SocketAddr::new(side.lab.pod(server)?.ip(family), port);
    let (client, server) = (side.lab.peer(client)?, side.lab.peer(server)?);
    let warm = || -> Result<u64> {
        if harness::without_mesh() {
            return Ok(0);
        }
        let tunnels = serde_json::from_value::<Status>(side.lab.admin(number, "/v1/status")?)?.tunnels;
        Ok(tunnels.handshakes)
    };
    let before = warm()?;
    server.listen(to)?;
    let serving = server.serve(port, COUNT, vec![Step::Echo { bytes: 10_000 }, Step::Close])?;
    let pattern = Pattern::new(CAPTURED, 9);
    let ask = Step::Ask { times: 3, bytes: 10_000, pattern };
    let reports = client.connect(to, COUNT, vec![ask.clone(), Step::Meet, ask, Step::Close])?.reports()?;
    let made = warm()? - before;
    let served = serving.reports()?;
    ensure!(reports.len() == COUNT && served.len() == COUNT, "{} and {} connections", reports.len(), served.len());
    for report in reports.iter().chain(&served) {
        let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact);
        ensure!(report.connect.is_none() && !broken, "a connection did not go well: {report:?}");
    }
    // All of them at once need a tunnel each.
    ensure!(harness::without_mesh() || made >= COUNT as u64, "{made} handshakes for {COUNT} flows: they were not cold");
    Ok(())
}
