//! Certificates are renewed under load: flows do not notice, and no tunnel carries another flow with an old one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{Pending, Step};
use kumiko_lab::spec::LabSpec;
use kumiko_lab::{Family, Net, Stage};
use kumiko_tests::harness;
use kumiko_tests::twins::{Path, Side};
use libtest_mimic::Arguments;
use serde_json::Value;

const NAME: &str = "flows_outlive_a_renewal_and_their_tunnels_do_not";
/// Flows at once: enough that each shard has some.
const FLOWS: usize = 12;
/// Renewed at its half; the other half is what a busy machine may be late by.
const SVID_TTL: &str = "30s";
/// Until old flows have been opened under one certificate.
const ATTEMPTS: u16 = 5;

fn main() -> ExitCode {
    harness::main(&[NAME], run)
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        return Ok(true);
    }
    Ok(harness::run_trials(args, vec![harness::trial(NAME, renewed)]))
}

fn renewed() -> Result<()> {
    let name = format!("renewal-{}", std::process::id());
    let mut spec = LabSpec::standard(&name, 2, Net::Routed, Stage::Strict).with_ports(7000, 1 + ATTEMPTS);
    spec.svid_ttl = SVID_TTL.into();
    let side = Side::of(&spec, true)?;
    for attempt in 1..=ATTEMPTS {
        let (before, name) = (serial(&side)?, format!("old-{attempt}"));
        let old = flows(&side, 7000 + attempt, &name)?;
        let tunnels = carrying(&side)?;
        ensure!(tunnels.len() == FLOWS, "{tunnels:?}");
        if serial(&side)? == before {
            return outlived(&side, &before, (old, &name), &tunnels);
        }
        // Renewed meanwhile: nobody knows which of them are of the old certificate.
        end(&side, old, &name)?;
    }
    bail!("this machine is too busy to open {FLOWS} connections between two renewals")
}

/// Waits for the renewal while connections `old` go on in their tunnels, and looks which tunnels later ones have.
fn outlived(side: &Side, before: &str, (old, name): ((Pending, Pending), &str), tunnels: &BTreeSet<u64>) -> Result<()> {
    wait_for("the client's certificate is renewed", Duration::from_secs(30), || {
        let now = serial(side)?;
        ensure!(now != before, "still {now}");
        Ok(())
    })?;
    end(side, old, name)?;
    let new = flows(side, 7000, "new")?;
    let reused: Vec<u64> = carrying(side)?.intersection(tunnels).copied().collect();
    end(side, new, "new")?;
    ensure!(reused.is_empty(), "tunnels of the old certificate carry new flows: {reused:?}");
    Ok(())
}

/// Connections that ask all the time.
fn flows(side: &Side, port: u16, name: &str) -> Result<(Pending, Pending)> {
    let to = SocketAddr::new(side.address(Path::CrossNode, Family::V4)?, port);
    side.far.listen(to)?;
    let serving = side.far.serve(port, FLOWS, vec![Step::Echo { bytes: 64 }, Step::Close])?;
    let pattern = Pattern::new(CAPTURED, 1);
    let asking = vec![
        Step::Ask { times: 1, bytes: 64, pattern: pattern.clone() },
        Step::Meet,
        Step::Open { name: name.into() },
        Step::AskUntil { gate: format!("end-{name}"), bytes: 64, pattern },
        Step::Close,
    ];
    let clients = side.client.connect(to, FLOWS, asking)?;
    side.client.await_gate(name)?;
    Ok((clients, serving))
}

fn end(side: &Side, (clients, servers): (Pending, Pending), name: &str) -> Result<()> {
    side.client.open_gate(&format!("end-{name}"))?;
    for report in clients.reports()?.iter().chain(&servers.reports()?) {
        let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact);
        ensure!(report.connect.is_none() && !broken, "{report:?}");
    }
    Ok(())
}

/// Serial of the client's certificate on n1.
fn serial(side: &Side) -> Result<String> {
    let certs = side.lab.admin(1, "/v1/certs")?;
    let of_client = |cert: &&Value| {
        cert.get("principal").and_then(Value::as_str).is_some_and(|principal| principal.ends_with("/sa/client"))
    };
    let cert = certs.as_array().context("no list")?.iter().find(of_client).context("no certificate")?;
    Ok(cert.get("serial").and_then(Value::as_str).context("no serial")?.to_owned())
}

/// Numbers of the tunnels that n1 dialled and that carry a flow.
fn carrying(side: &Side) -> Result<BTreeSet<u64>> {
    let tunnels = side.lab.admin(1, "/v1/tunnels")?;
    let busy = |tunnel: &&Value| {
        let flag = |name| tunnel.get(name).and_then(Value::as_bool) == Some(true);
        flag("dialled") && tunnel.get("flow").and_then(Value::as_str).is_some_and(|flow| !flow.is_empty())
    };
    let tunnels = tunnels.as_array().context("no list")?;
    Ok(tunnels.iter().filter(busy).filter_map(|tunnel| tunnel.get("number")?.as_u64()).collect())
}
