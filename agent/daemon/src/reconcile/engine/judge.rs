//! A new policy, or new workloads under it: tables of verdicts, the epoch from which they hold, and what becomes of the flows
//! that they refuse.

mod older;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kumiko_abi::flow::{TCP, UDP, flags};
use kumiko_abi::{Flow, FlowKey, FlowState, Reason};
use kumiko_core::addr;
use kumiko_core::api::PolicyStatus;
use kumiko_core::compile::diff;
use kumiko_core::model::World;
use kumiko_core::policy::compile::{Compiled, Compiler, Image, Layout, TooComplex};
use kumiko_core::policy::history::History;
use kumiko_core::policy::revoke::Graces;
use kumiko_core::policy::verdict::Evaluator;
use kumiko_core::stage::legacy;
use thiserror::Error;
use tracing::{info, warn};

use super::super::edge::{Edge, EdgeError, Ended};
use super::super::judged::{Between, Carried};
use super::super::state::NodeState;
use super::Engine;
use crate::clock;

/// What the engine knows of verdicts.
#[derive(Debug)]
pub(super) struct Judging {
    /// Flows that the agent carries.
    carried: Box<dyn Carried>,
    /// What was made before, from which the next tables follow.
    compiler: Compiler,
    layout: Layout,
    /// The tables in force, if this agent made them, and the model that they were made of.
    pub(super) image: Option<(Arc<Image>, Arc<World>)>,
    /// When the next exception ends, in seconds since 1970.
    lapses: Option<i64>,
    /// There are exceptions, be they over or not.
    timed: bool,
    /// When the machine was booted, in seconds since 1970, as the ends in the tables take it.
    booted: Option<i64>,
    /// What is in force, for new flows and for those that were open.
    pub(super) status: PolicyStatus,
    /// What is in force for new flows, while those that are open are yet to be looked at.
    coming: Option<PolicyStatus>,
    /// Tables are yet to be made.
    due: bool,
    graces: Graces,
    /// When those that are older than their pods' enrolment are to be looked at again, in seconds of the boot.
    older_at: Option<i64>,
    /// What verdicts were made of.
    history: Arc<Mutex<History>>,
}

impl Judging {
    /// From what an agent before us left in force.
    pub(super) fn new(carried: Box<dyn Carried>, node: &str, epoch: u32, history: Arc<Mutex<History>>) -> Self {
        let status = PolicyStatus { enforced: true, epoch, ..PolicyStatus::default() };
        Self {
            carried,
            compiler: Compiler::new(node),
            layout: Layout::default(),
            image: None,
            lapses: None,
            timed: false,
            booted: None,
            status,
            coming: None,
            due: false,
            graces: Graces::default(),
            older_at: None,
            history,
        }
    }

    fn epoch(&self) -> u32 {
        self.coming.as_ref().unwrap_or(&self.status).epoch
    }

    /// Tables of a model; where they would not fit, of the same model with policies of teams held back. What the platform says
    /// is never held back.
    fn make(&mut self, world: &Arc<World>, node: &str, now: i64, epoch: u32) -> Result<Made, TooComplex> {
        let error = match self.tables(world, now, epoch) {
            Ok((compiled, image)) => {
                let (judged, problem, held) = (world.clone(), String::new(), Vec::new());
                return Ok(Made { judged, compiled, image, problem, held });
            }
            Err(error) => error,
        };
        let here: BTreeSet<&str> = world.workloads_on(node).map(|workload| workload.namespace.as_str()).collect();
        let before = self.image.as_ref().map(|(_, judged)| judged.policy().clone());
        for held in world.policy().held_back(&here, before.as_ref()) {
            let judged = Arc::new(world.under(held.policy));
            if let Ok((compiled, image)) = self.tables(&judged, now, epoch) {
                let instead = if held.before {
                    "those before stay in force, and what is new there allows nothing"
                } else {
                    "whom they select is refused what no policy allows"
                };
                let names = held.namespaces.join(", ");
                let problem = format!("{error}; policies of teams in {names} are held back: {instead}");
                return Ok(Made { judged, compiled, image, problem, held: held.namespaces });
            }
        }
        Err(error)
    }

    fn tables(&mut self, world: &World, now: i64, epoch: u32) -> Result<(Compiled, Image), TooComplex> {
        let compiled = self.compiler.compile(&Evaluator::of(world), now)?;
        let image = self.layout.image(&compiled, self.booted.unwrap_or_default(), epoch)?;
        Ok((compiled, image))
    }
}

/// Tables, and the model that they are made of.
struct Made {
    judged: Arc<World>,
    compiled: Compiled,
    image: Image,
    /// Why it is not the whole model.
    problem: String,
    /// Namespaces whose teams' policies it lacks.
    held: Vec<String>,
}

#[derive(Debug, Error)]
enum JudgeError {
    #[error("{0}")]
    TooComplex(#[from] TooComplex),
    #[error("verdicts could not be written: {0}")]
    Edge(#[from] EdgeError),
    #[error("not everybody has a class in the maps yet")]
    Unwritten,
}

impl<E: Edge> Engine<E> {
    /// Whether a flow has a while left that ends without a word from anybody.
    pub(super) fn graces(&self) -> bool {
        self.judging.as_ref().is_some_and(|judging| judging.graces.waits())
    }

    /// Whether tables have to be made though the model is the same.
    pub(super) fn judges_again(&self) -> bool {
        let Some(judging) = &self.judging else { return false };
        // The tables' ends are of the clock that counts from the boot; exceptions' are of the one that people set.
        let stepped = || judging.timed && clock::booted(judging.booted).is_some();
        judging.due || judging.lapses.is_some_and(|at| at <= clock::unix_seconds()) || stepped()
    }

    /// How long it is until the next exception ends. One that has ended is of every pass, and calls for none of its own: that its
    /// end could not be brought into force must not keep the loop awake.
    pub fn lapses_in(&self) -> Option<Duration> {
        let at = u64::try_from(self.judging.as_ref()?.lapses?).ok()?.saturating_mul(1_000_000_000);
        at.checked_sub(clock::unix_ns()).filter(|left| *left > 0).map(Duration::from_nanos)
    }

    /// Makes the tables of the model in force, and lets them hold. What cannot be made or written leaves those before in
    /// force; who is not in them is denied.
    pub(super) fn judge(&mut self) {
        let Some(judging) = &self.judging else { return };
        let made = self.judge_anew(judging.epoch());
        let passing = matches!(made, Err(JudgeError::Edge(_) | JudgeError::Unwritten));
        self.unfinished |= passing;
        let Some(judging) = &mut self.judging else { return };
        judging.due = passing;
        let Err(error) = made else {
            if let Some(coming) = &judging.coming
                && !coming.held.is_empty()
                && judging.status.problem != coming.problem
            {
                warn!(problem = coming.problem, namespaces = ?coming.held, "policies of teams are held back");
            }
            judging.status.problem.clear();
            return;
        };
        let problem = error.to_string();
        if judging.status.problem != problem {
            warn!(problem, "the policy before stays in force");
        }
        (judging.status.problem, judging.status.held) = (problem, Vec::new());
    }

    fn judge_anew(&mut self, before: u32) -> Result<(), JudgeError> {
        let (now, epoch) = (clock::unix_seconds(), before.wrapping_add(1));
        let Some(judging) = &mut self.judging else { return Ok(()) };
        judging.booted = Some(clock::booted(judging.booted).or(judging.booted).unwrap_or_default());
        let Made { judged, compiled, image, problem, held } = judging.make(&self.world, &self.node, now, epoch)?;
        self.edge.set_verdicts(&image)?;
        let mut prepared = self.written.clone();
        prepared.prepare(&image, &self.world, &self.judged_ends());
        self.write_all(diff(&self.written, &prepared));
        if self.written != prepared {
            return Err(JudgeError::Unwritten);
        }
        self.edge.set_epoch(&image)?;
        let policies = &judged.policy().policies;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let status = PolicyStatus {
            enforced: true,
            epoch,
            source_epoch: self.world.epoch(),
            objects: number(policies.objects().len() + policies.exceptions().len()),
            sets: number(compiled.sets.len()),
            classes: compiled.classes,
            problem,
            held,
        };
        info!(epoch, sets = status.sets, classes = status.classes, "verdicts came into force");
        let ends = policies.exceptions().iter().map(|exception| exception.expires.as_second());
        let lapses = ends.filter(|at| *at > now).min();
        if let Some(judging) = &mut self.judging {
            judging.history.lock().unwrap_or_else(PoisonError::into_inner).record(epoch, judged.clone());
            judging.timed = !policies.exceptions().is_empty();
            (judging.image, judging.lapses, judging.coming) = (Some((Arc::new(image), judged)), lapses, Some(status));
        }
        Ok(())
    }

    /// Looks at the flows that are open, after the snapshot with new verdicts was published: whoever begins one now asks
    /// these.
    pub(super) fn sweep(&mut self) {
        let Some(judging) = &mut self.judging else { return };
        let now = clock::boot_seconds();
        let older_due = judging.older_at.is_some_and(|at| at <= now);
        if judging.coming.is_none() && !judging.graces.waits() && !older_due {
            return;
        }
        let state = self.shared.load_full();
        let mut older = older::Looking::new(&state, now);
        let epoch = judging.epoch();
        let Judging { carried, graces, .. } = judging;
        carried.end_those(epoch, &mut |id, between| graces.fate(id, state.refusal(between), now));
        let mut denied = Vec::new();
        let scanned = self.edge.scan(&mut |key, flow| {
            if flow.flags & flags::REVOKED != 0 && key.proto == TCP {
                // Its last sender knows; the other end may be silent.
                denied.push((*key, *flow, Reason::from_u16(flow.reason).unwrap_or(Reason::PolicyMissing)));
            } else if let Some(reason) = older.has_to_end(key, flow) {
                denied.push((*key, *flow, reason));
            } else if let Some(between) = between(&state, key, flow)
                && let Some(reason) = graces.fate(flow.id, state.refusal(&between), now)
            {
                denied.push((*key, *flow, reason));
            }
        });
        judging.older_at = older.again();
        let mut swept = scanned;
        for (key, flow, reason) in &denied {
            let (client, server) = addr::ends(key, flow.flags);
            let netns = |ifindex| {
                if key.proto != TCP {
                    return None;
                }
                let local = self.locals.values().find(|local| local.ifindex() == Some(ifindex))?;
                local.veth.as_ref()?.netns.clone()
            };
            let ended = Ended { client, server, epoch, netns: [flow.src_ifindex, flow.dst_ifindex].map(netns) };
            swept = swept.and(self.edge.cut(key, flow, *reason, &ended));
        }
        if !denied.is_empty() {
            info!(flows = denied.len(), "flows that the rules allow no more were cut");
        }
        let Some(judging) = &mut self.judging else { return };
        judging.graces.looked(swept.is_ok());
        match swept {
            Ok(()) => judging.status = judging.coming.take().unwrap_or_else(|| judging.status.clone()),
            Err(error) => {
                self.unfinished = true;
                judging.older_at = Some(now);
                warn!(%error, "open flows could not all be looked at: tried again");
            }
        }
    }
}

/// Between whom a flow is that passes without the agent, and that rules are asked about, as far as its ends were seen on
/// this node: not one that is older than its pod's enrolment or stage (it is to be marked so in this pass), nor one to a
/// Service's address, whose pod was chosen elsewhere.
fn between(state: &NodeState, key: &FlowKey, flow: &Flow) -> Option<Between> {
    let passes = matches!(FlowState::from_u8(flow.state), Some(FlowState::Direct | FlowState::Fast));
    let unasked = flags::OVER | flags::LEGACY | flags::OBSERVED;
    // The pod behind a Service's address was chosen elsewhere, unless the programs chose it.
    let chosen = matches!(key.proto, TCP | UDP);
    let elsewhere = flow.service != 0 && flow.flags & flags::TURNED == 0 && chosen;
    if !passes || flow.flags & unasked != 0 || elsewhere || legacy::outlived(&state.world, key, flow) {
        return None;
    }
    Some(ends(state, key, flow))
}

/// Between whom a flow is that passes, whatever is asked of it.
fn ends(state: &NodeState, key: &FlowKey, flow: &Flow) -> Between {
    let (client, server) = addr::ends(key, flow.flags);
    let uid = |ip, ifindex| {
        let workload = state.world.workload_at(ip).filter(|_| ifindex != 0);
        workload.map_or(String::new(), |workload| workload.uid.clone())
    };
    // Between two veths of this node, or from the kubelet to a port for probes.
    let veths = flow.src_ifindex != 0 && flow.dst_ifindex != 0;
    let proved = veths || flow.flags & (flags::VETH_PROVED | flags::PROBE) != 0;
    Between {
        source_uid: uid(client.ip(), flow.src_ifindex),
        target_uid: uid(server.ip(), flow.dst_ifindex),
        client: client.ip(),
        to: server,
        proto: key.proto,
        host: flow.flags & (flags::HOST | flags::PROBE) != 0,
        proved,
    }
}
