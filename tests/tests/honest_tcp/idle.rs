//! Connections that are silent for a minute, with the collector's looks at idle flows two seconds apart: nothing ends
//! them, and they go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use kumiko_lab::pattern::{CAPTURED, Pattern};
use kumiko_lab::peer::{Pending, Step};
use kumiko_lab::{Family, Net};
use kumiko_tests::cases::{Aim, Case};
use kumiko_tests::harness;
use kumiko_tests::twins::{self, Path, Side};
use libtest_mimic::Trial;

use super::Sides;

const SILENCE: Duration = Duration::from_secs(60);
/// Opened when the silence is over.
const GATE: &str = "idle";

/// One connection in both labs.
pub(super) struct Idle {
    name: String,
    case: Case,
    sides: [Arc<Side>; 2],
    ends: Vec<(Pending, Pending)>,
    since: Instant,
}

fn case(opened: &str) -> Case {
    let (ask, answer) = (Pattern::new(CAPTURED, 1), Pattern::new(CAPTURED, 2));
    Case {
        name: "idle_for_a_minute",
        aim: Aim::Server,
        connect: &[],
        within: None,
        client: vec![
            Step::Send { bytes: 1_000, pattern: ask.clone() },
            Step::Recv { bytes: 1_000, pattern: answer.clone() },
            Step::Open { name: opened.into() },
            Step::Gate { name: GATE.into() },
            Step::Send { bytes: 70_000, pattern: ask.clone() },
            Step::Recv { bytes: 70_000, pattern: answer.clone() },
            Step::Close,
        ],
        server: Some(vec![
            Step::Recv { bytes: 1_000, pattern: ask.clone() },
            Step::Send { bytes: 1_000, pattern: answer.clone() },
            // A read would give up before the silence is over.
            Step::Gate { name: GATE.into() },
            Step::Recv { bytes: 70_000, pattern: ask.clone() },
            Step::Send { bytes: 70_000, pattern: answer },
            Step::RecvToEnd { pattern: ask },
            Step::Close,
        ]),
        prefix: false,
        first_error_lost: false,
    }
}

/// Opens all of them.
pub(super) fn begin(sides: &Sides) -> Result<Vec<Idle>> {
    let mut all = Vec::new();
    for (net, direct, mesh) in sides {
        for path in Path::ALL {
            for family in [Family::V4, Family::V6] {
                all.push(open(*net, direct, mesh, path, family)?);
            }
        }
    }
    Ok(all)
}

fn open(net: Net, direct: &Arc<Side>, mesh: &Arc<Side>, path: Path, family: Family) -> Result<Idle> {
    let opened = format!("{}-{family}-open", path.name());
    let case = case(&opened);
    let name = super::name(net, path, family, case.name);
    let port = direct.kept_port();
    let mut ends = Vec::new();
    for side in [direct, mesh] {
        let server = side.server(path);
        let at = SocketAddr::new(side.lab.pod(path.server())?.ip(family), port);
        server.listen(at)?;
        let serving = server.serve(port, 1, case.server.clone().unwrap_or_default())?;
        let to = SocketAddr::new(side.address(path, family)?, port);
        let connecting = side.client.connect(to, 1, case.client.clone())?;
        side.client.await_gate(&opened)?;
        server.unlisten(port)?;
        ends.push((connecting, serving));
    }
    let sides = [Arc::clone(direct), Arc::clone(mesh)];
    Ok(Idle { name, case, sides, ends, since: Instant::now() })
}

impl Idle {
    /// What is to be looked at when the minute is over.
    pub(super) fn trial(self) -> Trial {
        let Self { name, case, sides, ends, since } = self;
        harness::trial(name, move || {
            std::thread::sleep(SILENCE.saturating_sub(since.elapsed()));
            for side in &sides {
                [&side.client, &side.near, &side.far].iter().try_for_each(|peer| peer.open_gate(GATE))?;
            }
            let mut reports = Vec::new();
            for (client, server) in ends {
                reports.push((client.report()?, Some(server.report()?)));
            }
            let [direct, mesh] = reports.as_slice() else { bail!("{} reports", reports.len()) };
            // Both alike is not enough: that nothing ends them is what is to be seen.
            for end in [&direct.0].into_iter().chain(&direct.1) {
                let broken = end.steps.iter().any(|step| step.error.is_some() || !step.intact);
                ensure!(end.connect.is_none() && !broken, "without the mesh: {end:?}");
            }
            twins::compare(&case, direct, mesh)
        })
    }
}
