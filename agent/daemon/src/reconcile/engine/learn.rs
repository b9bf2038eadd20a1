//! The pods' own connections become legacy entries before their endpoints are enforced.

use std::time::Instant;

use kumiko_abi::flow::flags;
use kumiko_abi::{CommandResult, Flow, FlowKey, FlowState};
use kumiko_core::stage::Phase;
use kumiko_core::stage::legacy::{self, End, Older};
use kumiko_fault::Point;
use tracing::{debug, info, warn};

use super::super::edge::Edge;
use super::super::local::LEARN_BLIND;
use super::Engine;

impl<E: Edge> Engine<E> {
    /// Lists the sockets of every endpoint in `learn` and enforces those that are done; says whether any is.
    pub(super) fn learn(&mut self, now: Instant) -> bool {
        let learning = |phase: Phase| matches!(phase, Phase::Learning(_));
        let uids: Vec<String> =
            self.locals.iter().filter(|(_, l)| learning(l.phase)).map(|(uid, _)| uid.clone()).collect();
        // All are known before the first is enforced: two pods of this node may be each other's peers.
        for uid in &uids {
            let learnt = self.learn_one(uid, now);
            if let Some(local) = self.locals.get_mut(uid) {
                local.learnt = learnt;
            }
        }
        let mut any = false;
        for uid in &uids {
            any |= self.step(uid, None, now);
        }
        any
    }

    fn learn_one(&mut self, uid: &str, now: Instant) -> bool {
        let Some(local) = self.locals.get(uid) else { return false };
        let Some(veth) = local.veth.clone() else { return false };
        let waited = local.learning.is_none_or(|since| now.saturating_duration_since(since) >= LEARN_BLIND);
        if kumiko_fault::hit(Point::StageLearning).is_err() {
            return false;
        }
        let sockets = match self.edge.sockets(&veth) {
            Ok(Some(sockets)) => sockets,
            // Nobody can list them: what its packets show until then is what is known.
            Ok(None) => return waited,
            Err(error) => {
                if waited {
                    warn!(workload = local.name(), %error, "its sockets cannot be listed: idle ones from before will be reset");
                }
                return waited;
            }
        };
        let name = local.name();
        let (workload, pod) = (local.workload.clone(), End { handle: local.handle, ifindex: veth.ifindex });
        let judged = local.judged;
        let mut made = 0;
        for older in sockets.iter().filter(|older| legacy::crosses_veth(older, &workload)) {
            let peer = self.end_of(older);
            let (key, flow) = legacy::entry(older, &workload, pod, peer);
            if judged && older.pod_began == Some(true) && self.edge.flow(&key).is_none() {
                // Its SYN was dropped a moment ago and comes again. As legacy it would go in the clear then.
                continue;
            }
            made += usize::from(self.admit(&key, &flow));
        }
        info!(workload = name, sockets = sockets.len(), legacy = made, "older connections learnt");
        true
    }

    /// Handle and interface of an older connection's other end.
    fn end_of(&self, older: &Older) -> End {
        let Some(peer) = self.world.workload_at(older.peer.ip().to_canonical()) else { return End::default() };
        let handle = self.handles.workload(&peer.uid).unwrap_or_default();
        let here = self.locals.get(&peer.uid).filter(|local| local.phase != Phase::Detached);
        End { handle, ifindex: here.and_then(|local| local.ifindex()).unwrap_or_default() }
    }

    /// Makes the entry, or marks the one that is there if it is in the clear and would not be now.
    fn admit(&self, key: &FlowKey, flow: &Flow) -> bool {
        // The entry may come or go between the two looks; the third look finds it settled.
        for _ in 0..3 {
            let there = self.edge.flow(key).filter(|there| there.flags & flags::OVER == 0);
            let done = match there {
                Some(there) if FlowState::from_u8(there.state) != Some(FlowState::Direct) => return false,
                Some(there) => {
                    let outlived = there.flags & flags::OBSERVED != 0 || legacy::outlived(&self.world, key, &there);
                    if !outlived || there.flags & flags::LEGACY != 0 {
                        return false;
                    }
                    self.edge.flag(key, &there, flags::LEGACY)
                }
                None => self.edge.create(key, flow),
            };
            match done {
                Ok(CommandResult::Done) => return true,
                Ok(CommandResult::Exists | CommandResult::Missing | CommandResult::Differs) => {}
                Ok(result) => {
                    warn!(?result, "no room for an older connection: it will be reset");
                    return false;
                }
                Err(error) => {
                    warn!(%error, "an older connection could not be entered: it will be reset");
                    return false;
                }
            }
        }
        debug!("an older connection came and went while it was learnt");
        false
    }
}
