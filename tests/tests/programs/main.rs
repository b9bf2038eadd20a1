//! Ordinary programs through the mesh, unchanged: what their clients see is what they see without it.
//!
//! Each program's server runs in a pod of one node and its clients in a pod of the other, which call it by its own
//! address and by its Service's. The same is done in a lab without the mesh, and both must give the same answer.

mod files;
mod ftp;
mod postgres;
mod proxies;
mod redis;
mod run;
mod ssh;
mod streams;
mod web;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kumiko_lab::wire::Capture;
use kumiko_lab::{Family, Net, Stage, topology};
use kumiko_tests::harness;
use kumiko_tests::twins::Side;
use libtest_mimic::Arguments;

use run::Run;

type Program = fn(&Run<'_>) -> Result<String>;

const PROGRAMS: &[(&str, Program)] = &[
    ("nginx_with_200_keep_alive_clients", web::nginx),
    ("http_1_0_bodies_that_end_with_the_connection", web::close_delimited),
    ("redis_pipelines", redis::pipelines),
    ("redis_pub_sub", redis::pub_sub),
    ("postgres_copy_and_cancel", postgres::copy_and_cancel),
    ("git_clone_and_push", files::git_protocol),
    ("rsync_both_ways", files::rsync),
    ("ftp_passive_and_active", ftp::transfers),
    ("ssh_interactive_and_scp", ssh::sessions),
    ("websocket", streams::websocket),
    ("grpc_streams", streams::grpc),
    ("go_proxy_in_a_pod", proxies::go),
    ("splice_proxy_in_a_pod", proxies::splice),
];

/// In which network and by which family the programs whose names begin so run; an empty name is all of them.
const WAYS: &[(Net, Family, &[&str])] = &[
    (Net::Routed, Family::V4, &[""]),
    (Net::Routed, Family::V6, &["nginx", "postgres", "ftp", "grpc"]),
    (Net::Bridged, Family::V4, &["nginx", "ssh"]),
    (Net::Bridged, Family::V6, &["redis", "splice"]),
];

/// One program in one network, by one family.
struct Check {
    name: String,
    net: Net,
    family: Family,
    program: Program,
}

fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    for (net, family, chosen) in WAYS {
        for (name, program) in PROGRAMS.iter().filter(|(name, _)| chosen.iter().any(|chosen| name.starts_with(chosen)))
        {
            let name = format!("{net}::{family}::{name}");
            checks.push(Check { name, net: *net, family: *family, program: *program });
        }
    }
    checks
}

fn main() -> ExitCode {
    let checks = checks();
    let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    let mut well = true;
    for net in [Net::Routed, Net::Bridged] {
        well &= in_net(args, net)?;
    }
    Ok(well)
}

/// Runs the checks of one network, with a capture between the nodes.
fn in_net(args: &Arguments, net: Net) -> Result<bool> {
    let wanted = |check: &Check| match &args.filter {
        Some(filter) if args.exact => check.name == *filter,
        Some(filter) => check.name.contains(filter.as_str()),
        None => true,
    };
    let checks: Vec<Check> = checks().into_iter().filter(|check| check.net == net && wanted(check)).collect();
    if checks.is_empty() {
        return Ok(true);
    }
    let stage = (!harness::without_mesh()).then_some(Stage::Strict);
    let sides = Arc::new(Sides {
        direct: Side::new(&format!("programs-{net}-direct"), net, None)?,
        mesh: Side::new(&format!("programs-{net}-mesh"), net, stage)?,
    });
    let pods = sides.mesh.lab.pods.iter().flat_map(|pod| pod.ips).collect();
    let capture = Capture::start(&sides.mesh.lab.node(1)?.netns, topology::WIRE, pods)?;

    let trials = checks.into_iter().map(|check| {
        let sides = Arc::clone(&sides);
        harness::trial(check.name, move || sides.compare(check.program, check.family))
    });
    let mut well = harness::run_trials(args, trials.collect());
    well &= harness::run_afterwards(vec![harness::trial(format!("{net}::wire"), move || {
        let report = capture.finish()?;
        if stage.is_some() {
            report.check()?;
            ensure!(report.tunnel_bytes > 1 << 20, "the tunnels carried too little: {report:#?}");
        }
        Ok(())
    })]);
    if !well {
        eprintln!("{}", sides.mesh.lab.evidence(40));
    }
    Ok(well)
}

/// The two labs of a network.
struct Sides {
    direct: Side,
    mesh: Side,
}

impl Sides {
    fn compare(&self, program: Program, family: Family) -> Result<()> {
        let direct = program(&Run::new(&self.direct, family)).context("without the mesh")?;
        let mesh = program(&Run::new(&self.mesh, family)).context("with the mesh")?;
        ensure!(!direct.is_empty(), "the program's answer is empty");
        ensure!(direct == mesh, "without the mesh:\n{direct}\nwith it:\n{mesh}");
        Ok(())
    }
}
