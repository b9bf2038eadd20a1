//! Endpoints go their way: hooks on, stages up and down, hooks off.

use std::collections::HashSet;
use std::time::Instant;

use kumiko_abi::Stage;
use kumiko_core::compile::{self, Op};
use kumiko_core::stage::{self, Action, Phase};
use kumiko_fault::Point;
use tracing::info;

use super::super::edge::{Edge, EdgeError};
use super::super::local::Local;
use super::Engine;

impl<E: Edge> Engine<E> {
    /// Takes every endpoint as far as it can go without learning.
    pub(super) fn progress(&mut self, now: Instant) {
        let drains = |phase: Phase| phase == Phase::Enforcing(Stage::Off);
        let any = self.locals.values().any(|local| drains(local.phase)) || self.leaving.values().any(|l| l.begun);
        // Unknown counts as everything: nothing is detached.
        let carried = if any { self.carried() } else { Some(HashSet::new()) };
        self.drain_leaving(carried.as_ref());
        let uids: Vec<String> = self.locals.keys().cloned().collect();
        for uid in uids {
            // A way has three steps at most; four is a mistake, and the next pass goes on.
            for _ in 0..4 {
                if !self.step(&uid, carried.as_ref(), now) {
                    break;
                }
            }
        }
    }

    /// One step of one endpoint; false when there is none to be done now.
    pub(super) fn step(&mut self, uid: &str, carried: Option<&HashSet<u32>>, now: Instant) -> bool {
        let Some(local) = self.locals.get_mut(uid) else { return false };
        let Some(ifindex) = local.ifindex() else { return false };
        let busy = carried.is_none_or(|carried| carried.contains(&ifindex));
        let facts = local.facts(busy, &self.lowered, now);
        match stage::next(local.phase, local.workload.stage, facts) {
            Action::Wait | Action::Learn => false,
            Action::Attach(phase) => self.attach(uid, ifindex, phase, now),
            Action::Set { phase, .. } => {
                if phase == Phase::Learning(Stage::Strict) {
                    // What went in the clear until now would count as a leak from the next packet on.
                    self.mark_outlived();
                }
                if kumiko_fault::hit(Point::StagePhase).is_err() {
                    self.unfinished = true;
                    return false;
                }
                let Some(local) = self.locals.get_mut(uid) else { return false };
                local.enter(phase, now);
                info!(workload = local.name(), ?phase, "endpoint");
                self.write_endpoint(uid);
                true
            }
            Action::Detach => self.detach(uid, ifindex, now),
        }
    }

    fn name(&self, uid: &str) -> String {
        self.locals.get(uid).map_or_else(|| uid.to_owned(), Local::name)
    }

    fn write_endpoint(&mut self, uid: &str) -> bool {
        let Some(local) = self.locals.get(uid) else { return false };
        let Some(endpoint) = local.endpoint() else { return false };
        let mut entry = compile::endpoint(local.handle, &endpoint);
        if let Some(judging) = &self.judging {
            let before = self.written.endpoints.get(&endpoint.ifindex).map(|before| before.set);
            entry.set =
                compile::sets_of(judging.image.as_ref().map(|(image, _)| image.as_ref()), &self.world, uid, before);
        }
        self.write(Op::SetEndpoint(endpoint.ifindex, entry))
    }

    fn hook(&mut self, ifindex: u32) -> Result<(), EdgeError> {
        kumiko_fault::hit(Point::Hook)?;
        self.edge.hook(ifindex)
    }

    fn attach(&mut self, uid: &str, ifindex: u32, phase: Phase, now: Instant) -> bool {
        if let Some(local) = self.locals.get_mut(uid) {
            local.enter(phase, now);
        }
        // The endpoint first: hooks without one would judge nothing, and then meet packets they know nothing about.
        let hooked = match self.edge.init_use(ifindex) {
            Ok(()) if self.write_endpoint(uid) => self.hook(ifindex).map_err(|error| error.to_string()),
            Ok(()) => Err("its endpoint could not be written".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let Err(problem) = hooked else {
            info!(workload = self.name(uid), ifindex, ?phase, "attached");
            return true;
        };
        if let Some(local) = self.locals.get_mut(uid) {
            local.enter(Phase::Detached, now);
        }
        if self.written.endpoints.contains_key(&ifindex) {
            self.write(Op::RemoveEndpoint(ifindex));
        }
        self.problem(uid, &problem, true);
        // The interface may be another one by now.
        if let Some(local) = self.locals.get_mut(uid) {
            local.veth = None;
        }
        false
    }

    fn detach(&mut self, uid: &str, ifindex: u32, now: Instant) -> bool {
        if let Err(error) = self.edge.unhook(ifindex) {
            self.problem(uid, &error.to_string(), true);
            return false;
        }
        info!(workload = self.name(uid), ifindex, "detached");
        self.write(Op::RemoveEndpoint(ifindex));
        if let Some(local) = self.locals.get_mut(uid) {
            local.enter(Phase::Detached, now);
            // Looked up afresh when it is enrolled again.
            local.veth = None;
            local.problem.clear();
            local.retry = false;
        }
        true
    }

    /// Takes the hooks of endpoints without a workload off, once they carry nothing.
    fn drain_leaving(&mut self, carried: Option<&HashSet<u32>>) {
        let Some(carried) = carried else { return };
        let done = |ifindex: &u32| !carried.contains(ifindex);
        let idle: Vec<u32> = self.leaving.iter().filter(|(i, l)| l.begun && done(i)).map(|(i, _)| *i).collect();
        for ifindex in idle {
            match self.edge.unhook(ifindex) {
                Ok(()) => {
                    info!(ifindex, "detached: its workload is gone");
                    self.leaving.remove(&ifindex);
                    if self.written.endpoints.contains_key(&ifindex) {
                        self.write(Op::RemoveEndpoint(ifindex));
                    }
                }
                Err(error) => tracing::warn!(%error, ifindex, "hooks could not be taken off: tried again"),
            }
        }
    }
}
