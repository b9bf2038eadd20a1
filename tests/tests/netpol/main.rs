//! NetworkPolicy as Kubernetes means it: every TCP and UDP case of upstream's suite `[sig-network] Netpol` under its own
//! name, and the recipes of the documentation, on real sockets.
//!
//! A case says documents, and which pods reach which. Looked at are all pairs of the nine pods of upstream's model, over
//! both families, by the pods' addresses and by their Services'; like upstream, what a pod says to itself is left out.
//! Upstream's cases of SCTP are not here, but for those that say what it must not be taken for.

mod egress;
mod ingress;
mod peers;
mod recipes;
mod table;
mod udp;
mod world;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use kumiko_tests::harness;
use libtest_mimic::Arguments;

use table::Case;
use world::World;

/// All cases with their names.
fn cases() -> impl Iterator<Item = (String, &'static Case)> {
    let tables: [(&str, &[Case]); 5] = [
        ("NetworkPolicy between server and client", peers::CASES),
        ("NetworkPolicy between server and client", ingress::CASES),
        ("NetworkPolicy between server and client", egress::CASES),
        ("NetworkPolicy between server and client using UDP", udp::CASES),
        ("Recipe:", recipes::CASES),
    ];
    tables.into_iter().flat_map(|(of, cases)| cases.iter().map(move |case| (format!("{of} {}", case.name), case)))
}

fn main() -> ExitCode {
    let names: Vec<String> = cases().map(|(name, _)| name).collect();
    harness::main(&names.iter().map(String::as_str).collect::<Vec<_>>(), run)
}

/// One after another in the same lab.
fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        eprintln!("skipped: without a mesh there are no rules");
        return Ok(true);
    }
    let world = Arc::new(Mutex::new(World::up()?));
    let trial = |(name, case): (String, &'static Case)| {
        let world = Arc::clone(&world);
        harness::trial(name, move || world.lock().unwrap_or_else(PoisonError::into_inner).run(case))
    };
    let trials = cases().map(trial).collect();
    Ok(harness::run_trials(&Arguments { test_threads: Some(1), ..args.clone() }, trials))
}
