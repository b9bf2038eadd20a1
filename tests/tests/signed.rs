//! Connections that are signed (TCP-MD5, TCP-AO) cannot be carried over a tunnel. A strict workload's are refused at once,
//! in the one way that their sockets believe: by an ICMP error.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_core::api::Status;
use kumiko_lab::command::wait_for;
use kumiko_lab::{Family, Net, Stage};
use kumiko_tests::forge::{Ears, Forged, flags, send};
use kumiko_tests::harness;
use kumiko_tests::twins::{Path, Side};
use libtest_mimic::Arguments;

/// Name, option (kind, length, digest, padded), path, family.
type Case = (&'static str, u8, Path, Family);

const CASES: &[Case] = &[
    ("md5_cross_node", 19, Path::CrossNode, Family::V4),
    ("md5_cross_node_v6", 19, Path::CrossNode, Family::V6),
    ("md5_by_service", 19, Path::ServiceSameNode, Family::V4),
    ("ao_cross_node", 29, Path::CrossNode, Family::V4),
    ("ao_by_service_v6", 29, Path::ServiceCrossNode, Family::V6),
];
/// The longest until the answer; the next SYN of a real client would come after a second.
const LIMIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let names: Vec<&str> = CASES.iter().map(|(name, ..)| *name).collect();
    harness::main(&names, run)
}

fn run(args: &Arguments) -> Result<bool> {
    if harness::without_mesh() {
        return Ok(true);
    }
    let side = Arc::new(Side::new("signed", Net::Routed, Some(Stage::Strict))?);
    // They look at the same counter.
    let args = Arguments { test_threads: Some(1), ..args.clone() };
    let trials = CASES.iter().map(|case| {
        let side = Arc::clone(&side);
        harness::trial(case.0, move || refused(&side, case))
    });
    let well = harness::run_trials(&args, trials.collect());
    if !well {
        eprintln!("{}", side.lab.evidence(20));
    }
    Ok(well)
}

fn count(side: &Side) -> Result<u64> {
    let status: Status = serde_json::from_value(side.lab.admin(1, "/v1/status")?)?;
    Ok(status.refused.iter().filter(|one| one.reason == "option_refused").map(|one| one.count).sum())
}

fn refused(side: &Side, (_, kind, path, family): &Case) -> Result<()> {
    let port = side.port();
    // There is a server: what refuses is the mesh.
    side.server(*path).listen(SocketAddr::new(side.lab.pod(path.server())?.ip(*family), port))?;
    let client = side.lab.pod("client-1")?;
    let (from, to) = (SocketAddr::new(client.ip(*family), port), SocketAddr::new(side.address(*path, *family)?, port));
    let options = [&[1, 1, *kind, 18][..], &[7; 16]].concat();
    let syn = Forged { from, to, seq: 1_000, ack: 0, flags: flags::SYN, options: &options, payload: &[] };
    let before = count(side)?;
    let mut ears = Ears::open(&client.netns)?;
    send(&client.netns, to.ip(), &syn.packet()?)?;
    wait_for("the client is told", LIMIT, || {
        let told = ears.frames()?.iter().any(|frame| unreachable(frame, from, to));
        ensure!(told, "no ICMP error about {from} to {to}");
        Ok(())
    })?;
    wait_for("it is counted", LIMIT, || {
        let now = count(side)?;
        ensure!(now == before + 1, "{before} refusals before, {now} now");
        Ok(())
    })?;
    side.server(*path).unlisten(port).context("closing the listener")
}

/// Whether a frame says "port unreachable" about a segment from one address to another.
fn unreachable(frame: &[u8], from: SocketAddr, to: SocketAddr) -> bool {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (icmp, ports, code) = if from.is_ipv4() { (14 + 20, 20, [3, 3]) } else { (14 + 40, 40, [1, 4]) };
    let quote = icmp + 8;
    let addresses = [octets(from.ip()), octets(to.ip())].concat();
    let between = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let at = |from: usize, what: &[u8]| frame.get(from..from + what.len()) == Some(what);
    at(icmp, &code) && at(quote + ports - addresses.len(), &addresses) && at(quote + ports, &between)
}
