//! Draws faults: which agent, where, what, when.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kumiko_fault::Point;
use kumiko_lab::command::wait_for;
use kumiko_lab::{Lab, Stage};
use nix::sys::signal::Signal;
use rand::Rng;
use rand::rngs::StdRng;

/// How long an armed point is waited for; then another one is drawn.
const MET_WITHIN: Duration = Duration::from_millis(1_500);
/// For an agent that goes on to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The stages that the namespace of the spare pods moves through: no client of the load depends on them.
const STAGES: [Stage; 4] = [Stage::Strict, Stage::Off, Stage::Permissive, Stage::Observe];
/// Records to a key in tunnels of this test: keys change all the time.
const RECORDS_PER_KEY: u64 = 200;

/// How often each kind of fault came about.
#[derive(Debug, Default)]
pub(super) struct Drawn(BTreeMap<String, u64>);

impl Drawn {
    /// Kinds that came about, and how often all of them did.
    pub(super) fn counts(&self) -> (usize, u64) {
        (self.0.len(), self.0.values().sum())
    }
}

impl std::fmt::Display for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(kind, times)| write!(f, "\n  {times:>4} x {kind}"))
    }
}

/// Lets tunnels of a node change their keys often.
pub(super) fn prepare(lab: &Lab, node: u8) -> Result<()> {
    lab.fault(node, &format!("records-per-key {RECORDS_PER_KEY}")).map(drop)
}

/// Makes sure that a node's agent runs and nothing is armed: one that was to die may do so a moment too late.
fn stand(lab: &mut Lab, node: u8) -> Result<()> {
    wait_for("the agent stands", Duration::from_secs(20), || {
        lab.revive_agent(node)?;
        lab.fault(node, "disarm")?;
        prepare(lab, node)
    })
}

/// Draws faults for so long. `deadly`: also those that end or stop an agent.
pub(super) fn draw(lab: &mut Lab, random: &mut StdRng, time: Duration, deadly: bool) -> Result<Drawn> {
    let (began, mut drawn) = (Instant::now(), Drawn::default());
    while began.elapsed() < time {
        let node = random.random_range(1..=2);
        let point = Point::ALL.get(random.random_range(0..Point::ALL.len())).copied().context("no points")?;
        let action = match random.random_range(0..if deadly { 10 } else { 6 }) {
            0..=3 => "fail".to_owned(),
            4..=5 => format!("delay:{}", random.random_range(1..200)),
            6 => "stop".to_owned(),
            7..=8 => "kill".to_owned(),
            _ => "panic".to_owned(),
        };
        let skip = random.random_range(0..8);
        if once(lab, random, node, point, &action, skip)? {
            let kind = action.split(':').next().unwrap_or_default();
            *drawn.0.entry(format!("{kind} at {}", point.name())).or_default() += 1;
        }
        stand(lab, node)?;
    }
    Ok(drawn)
}

/// One fault; says whether it came about.
fn once(lab: &mut Lab, random: &mut StdRng, node: u8, point: Point, action: &str, skip: u64) -> Result<bool> {
    let of_stages = matches!(point, Point::Hook | Point::StageLearning | Point::StagePhase | Point::MapWrite);
    // What happens at a stage change only happens once or twice in it.
    let skip = if of_stages { skip % 2 } else { skip };
    lab.fault(node, &format!("arm {} {action} {skip} 1", point.name()))?;
    if of_stages {
        let stage = STAGES.get(random.random_range(0..STAGES.len())).copied().unwrap_or(Stage::Off);
        lab.set_stage("spare", stage)?;
    }
    let began = Instant::now();
    while began.elapsed() < MET_WITHIN {
        // Between two looks: whether a point was met shows in the agent only.
        std::thread::sleep(Duration::from_millis(20));
        match action {
            "kill" | "panic" => {
                if lab.agent_has_ended(node)? {
                    // Its clients try meanwhile.
                    std::thread::sleep(Duration::from_millis(random.random_range(0..800)));
                    return Ok(true);
                }
            }
            "stop" => {
                if lab.agent_state(node)? == 'T' {
                    // Its tunnels and clients stand meanwhile.
                    std::thread::sleep(Duration::from_millis(random.random_range(0..600)));
                    lab.signal_agent(node, Signal::SIGCONT)?;
                    return Ok(true);
                }
            }
            _ => {
                let hits = lab.fault(node, "hits")?;
                let acted = hits.split(';').find_map(|line| {
                    let mut words = line.split_whitespace();
                    (words.next() == Some(point.name())).then(|| words.nth(1) != Some("0"))
                });
                // Counted since the agent's start: an older one of this point counts too, and costs no wait.
                if acted == Some(true) {
                    return Ok(true);
                }
            }
        }
    }
    if action == "stop" {
        // Without a point to stop at the socket answers; it may have stopped a moment ago.
        // Or does so before it is told not to: then its answer waits for another signal.
        wait_for("it is told not to stop", PATIENCE, || {
            lab.signal_agent(node, Signal::SIGCONT)?;
            lab.fault(node, "disarm")
        })?;
        lab.signal_agent(node, Signal::SIGCONT)?;
    }
    Ok(false)
}
