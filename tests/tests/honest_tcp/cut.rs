//! A node whose wire is cut: it does not answer any more, and nobody says so. Its flows end with a reset at both ends,
//! those of one node go on. That takes most of a minute and is waited for while everything else runs, in a lab of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kumiko_lab::command::wait_for;
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{ConnReport, Pending, Step};
use kumiko_lab::{Family, Net, Netns, Stage, topology};
use kumiko_tests::harness;
use kumiko_tests::twins::{Path, Side};
use libtest_mimic::Trial;
use serde_json::Value;

/// Its trial.
pub(super) const NAME: &str = "a_node_that_does_not_answer";
/// The port of the switch that is cut.
const PORT: &str = "p-n2";
/// Entries of what is over are kept for a minute.
const REAPED_WITHIN: Duration = Duration::from_secs(100);
/// The collector hears of an end a moment after the pod.
const RECORDED_WITHIN: Duration = Duration::from_secs(10);
const END: &str = "end";

/// What a connection does while the wire is cut, and by what each node knows that the other one is gone: its own bytes
/// that are not answered, or probes of a connection on which it has sent nothing.
struct Kind {
    name: &'static str,
    path: Path,
    family: Family,
    client: fn() -> Vec<Step>,
    server: fn() -> Vec<Step>,
    reasons: [&'static [&'static str]; 2],
}

const BYTES: &[&str] = &["node_unreachable"];
const PROBES: &[&str] = &["tunnel_lost"];
/// The last message may be lost on its way there, or the answer on its way back, or its acknowledgement.
const EITHER: &[&str] = &["node_unreachable", "tunnel_lost"];

const KINDS: &[Kind] = &[
    Kind {
        name: "upload",
        path: Path::CrossNode,
        family: Family::V4,
        client: || vec![moved(true), Step::SendUntil { gate: END.into(), pattern: pattern() }, Step::Close],
        server: || vec![moved(false), begun("upload"), to_end(), Step::Close],
        reasons: [BYTES, PROBES],
    },
    Kind {
        name: "download",
        path: Path::ServiceCrossNode,
        family: Family::V6,
        client: || vec![moved(false), begun("download"), to_end(), Step::Close],
        server: || vec![moved(true), Step::SendUntil { gate: END.into(), pattern: pattern() }, Step::Close],
        reasons: [PROBES, BYTES],
    },
    Kind {
        name: "idle",
        path: Path::CrossNode,
        family: Family::V6,
        client: || vec![ask(), begun("idle"), to_end(), Step::Close],
        server: || vec![Step::Echo { bytes: 64 }, Step::Close],
        reasons: [PROBES, EITHER],
    },
    Kind {
        name: "asking",
        path: Path::ServiceCrossNode,
        family: Family::V4,
        client: || vec![ask(), begun("asking"), ask_on(), Step::Close],
        server: || vec![Step::Echo { bytes: 64 }, Step::Close],
        reasons: [EITHER, EITHER],
    },
];

fn pattern() -> Pattern {
    Pattern::new(CAPTURED, 1)
}

/// The begin of a transfer, which must have arrived before the cut.
fn moved(send: bool) -> Step {
    let (bytes, pattern) = (1 << 20, pattern());
    if send { Step::Send { bytes, pattern } } else { Step::Recv { bytes, pattern } }
}

fn begun(name: &str) -> Step {
    Step::Open { name: name.into() }
}

fn to_end() -> Step {
    Step::RecvToEnd { pattern: pattern() }
}

fn ask() -> Step {
    Step::Ask { times: 3, bytes: 64, pattern: pattern() }
}

fn ask_on() -> Step {
    Step::AskUntil { gate: END.into(), bytes: 64, pattern: pattern() }
}

/// A lab whose wire is cut.
pub(super) struct Cut {
    side: Side,
    ends: Vec<(&'static Kind, [Pending; 2])>,
    unharmed: Pending,
}

/// Opens the connections and cuts the wire beneath them.
pub(super) fn begin() -> Result<Cut> {
    let side = Side::new("cut", Net::Routed, Some(Stage::Strict))?;
    let mut ends = Vec::new();
    for kind in KINDS {
        let client = open(&side, kind.path, kind.family, &(kind.client)(), &(kind.server)())?;
        ends.push((kind, client));
    }
    for kind in KINDS {
        // Whose script says that it has begun is the one that reads.
        if kind.name == "upload" { &side.far } else { &side.client }.await_gate(kind.name)?;
    }
    let [unharmed, _] =
        open(&side, Path::SameNode, Family::V4, &[ask(), ask_on(), Step::Close], &[Step::Echo { bytes: 64 }])?;
    switch(&side).ip(&format!("link set {PORT} nomaster"))?;
    Ok(Cut { side, ends, unharmed })
}

/// The node's own link stays up: neither it nor the other one sees that anything has happened.
fn switch(side: &Side) -> Netns {
    Netns::named(topology::netns_name(&side.lab.state.id, "switch"))
}

fn open(side: &Side, path: Path, family: Family, client: &[Step], server: &[Step]) -> Result<[Pending; 2]> {
    let port = side.port();
    let peer = side.server(path);
    peer.listen(SocketAddr::new(side.lab.pod(path.server())?.ip(family), port))?;
    let serving = peer.serve(port, 1, server.to_vec())?;
    let to = SocketAddr::new(side.address(path, family)?, port);
    Ok([side.client.connect(to, 1, client.to_vec())?, serving])
}

impl Cut {
    pub(super) fn trial(self) -> Trial {
        harness::trial(NAME, move || {
            let (judged, side) = self.judge();
            judged.with_context(|| side.lab.evidence(40))
        })
    }

    fn judge(self) -> (Result<()>, Side) {
        let Self { side, ends, unharmed } = self;
        (judge(&side, ends, unharmed), side)
    }
}

fn judge(side: &Side, ends: Vec<(&'static Kind, [Pending; 2])>, unharmed: Pending) -> Result<()> {
    let mut clients = BTreeMap::new();
    for (kind, [client, server]) in ends {
        let (client, server) = (client.report()?, server.report()?);
        for report in [&client, &server] {
            reset(report).with_context(|| format!("{}: {report:?}", kind.name))?;
        }
        clients.insert(client.local.context("no port")?.port(), kind);
    }
    // n1 has the one between its own pods, still.
    for (at, (node, lives)) in [(1, 1), (2, 0)].into_iter().enumerate() {
        wait_for(&format!("the records of n{node} are final"), RECORDED_WITHIN, || recorded(side, node, &clients, at))?;
        wait_for(&format!("no other entry is left on n{node}"), REAPED_WITHIN, || {
            let status = side.lab.admin(node, "/v1/status")?;
            let names = ["flows/open", "flows/pending", "flows/entries", "tunnels/busy"];
            let counts = names.map(|name| status.pointer(&format!("/{name}"))?.as_u64());
            ensure!(counts == [Some(lives), Some(0), Some(lives), Some(0)], "{status}");
            Ok(())
        })?;
    }
    side.client.open_gate(END)?;
    well(&unharmed.report()?).context("on one node")?;
    switch(side).ip(&format!("link set {PORT} master br0"))?;
    let [client, _] = open(side, Path::CrossNode, Family::V4, &[ask(), Step::Close], &[Step::Echo { bytes: 64 }])?;
    well(&client.report()?).context("after the wire is mended")
}

/// The application was told by an error, behind bytes that are right; an end of stream would be a lie.
fn reset(report: &ConnReport) -> Result<()> {
    let steps = &report.steps;
    ensure!(report.connect.is_none() && steps.iter().all(|step| step.intact && !step.eof), "a clean end");
    let first = steps.iter().find_map(|step| step.error.as_deref());
    ensure!(matches!(first, Some("ECONNRESET" | "EPIPE")), "not a reset: {first:?}");
    Ok(())
}

fn well(report: &ConnReport) -> Result<()> {
    let broken = report.steps.iter().any(|step| step.error.is_some() || !step.intact || step.eof);
    ensure!(report.connect.is_none() && !broken, "{report:?}");
    Ok(())
}

/// Every flow has its final record on a node, with the end that it had there.
fn recorded(side: &Side, node: u8, clients: &BTreeMap<u16, &'static Kind>, at: usize) -> Result<()> {
    let flows = side.lab.admin(node, "/v1/flows?limit=20000")?;
    for (port, kind) in clients {
        let source = |flow: &&Value| flow.pointer("/source/port").and_then(Value::as_u64) == Some(u64::from(*port));
        let flow = flows.as_array().into_iter().flatten().find(source);
        let flow = flow.with_context(|| format!("{}: no record on n{node}", kind.name))?;
        let text = |field: &str| flow.get(field).and_then(Value::as_str).unwrap_or_default();
        let reasons = kind.reasons.get(at).copied().unwrap_or_default();
        let fits = text("state") == "closed" && text("close") == "tunnelLost" && reasons.contains(&text("reason"));
        ensure!(fits, "{} on n{node}: {flow}", kind.name);
    }
    Ok(())
}
