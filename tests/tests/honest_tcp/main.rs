//! Every way in which a TCP connection can begin and end, with the mesh and without: same errno at the same call, same
//! end at each side, same bytes, same addresses. A capture between the nodes watches all of it.

mod cut;
mod idle;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use kumiko_lab::wire::Capture;
use kumiko_lab::{Family, Net, Stage};
use kumiko_tests::twins::{self, Path, Side};
use kumiko_tests::{cases, harness};
use libtest_mimic::Arguments;

const NETS: [Net; 2] = [Net::Routed, Net::Bridged];

fn main() -> ExitCode {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).chain([cut::NAME]).collect();
    harness::main(&names, run)
}

type Sides = Vec<(Net, Arc<Side>, Arc<Side>)>;

fn run(args: &Arguments) -> Result<bool> {
    let mesh = (!harness::without_mesh()).then_some(Stage::Strict);
    let wanted = |name: &str| args.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let cut = if mesh.is_some() && wanted(cut::NAME) { Some(cut::begin()?) } else { None };
    let alone = !names().iter().any(|name| wanted(name));
    if alone {
        return Ok(harness::run_afterwards(cut.into_iter().map(cut::Cut::trial).collect()));
    }
    let mut sides = Sides::new();
    for net in NETS {
        let direct = Arc::new(Side::with_failures(&format!("direct-{net}"), net, None)?);
        sides.push((net, direct, Arc::new(Side::with_failures(&format!("mesh-{net}"), net, mesh)?)));
    }
    let mut captures = Vec::new();
    for (net, _, side) in &sides {
        let watched = side.lab.pods.iter().flat_map(|pod| pod.ips).collect();
        captures.push((*net, Capture::start(&side.lab.node(1)?.netns, kumiko_lab::topology::WIRE, watched)?));
    }

    let mut trials = Vec::new();
    for (net, direct, mesh) in &sides {
        for (path, family, case) in matrix() {
            let (direct, mesh) = (Arc::clone(direct), Arc::clone(mesh));
            let name = name(*net, path, family, case.name);
            trials.push(harness::trial(name, move || twins::check(&direct, &mesh, &case, path, family)));
        }
    }
    let whole = args.filter.is_none();
    // They are silent while everything else runs.
    let idle = if whole { idle::begin(&sides)? } else { Vec::new() };
    let mut well = harness::run_trials(args, trials);
    let waited = idle.into_iter().map(idle::Idle::trial).chain(cut.map(cut::Cut::trial));
    well &= harness::run_afterwards(waited.collect());

    let on_wire = captures.into_iter().map(|(net, capture)| {
        harness::trial(format!("{net}::nothing_of_it_in_the_clear_between_the_nodes"), move || {
            let report = capture.finish()?;
            if mesh.is_some() {
                report.check()?;
                // An empty capture proves nothing.
                ensure!(!whole || report.tls13 > 0 && report.tunnel_bytes > 1 << 20, "hardly any tunnel: {report:#?}");
            }
            Ok(())
        })
    });
    well &= harness::run_afterwards(on_wire.collect());
    if !well {
        for (_, _, mesh) in &sides {
            eprintln!("{}", mesh.lab.evidence(40));
        }
    }
    Ok(well)
}

fn matrix() -> Vec<(Path, Family, cases::Case)> {
    let mut all = Vec::new();
    for path in Path::ALL {
        for family in [Family::V4, Family::V6] {
            let cases = cases::all().into_iter().chain(cases::failing());
            all.extend(cases.map(|case| (path, family, case)));
        }
    }
    all
}

fn name(net: Net, path: Path, family: Family, case: &str) -> String {
    format!("{net}::{}::{family}::{case}", path.name())
}

fn names() -> Vec<String> {
    NETS.iter()
        .flat_map(|net| matrix().into_iter().map(|(path, family, case)| name(*net, path, family, case.name)))
        .collect()
}
