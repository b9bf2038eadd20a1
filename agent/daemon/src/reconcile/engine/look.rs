//! What changes without a word to anybody.

use std::time::Instant;

use kumiko_core::stage::Phase;
use tracing::{info, warn};

use super::super::edge::Edge;
use super::Engine;

impl<E: Edge> Engine<E> {
    /// Finds hooks that somebody else took off, so that the next pass puts them back, and limits that came or went.
    pub fn look(&mut self, now: Instant) {
        self.look_for_hooks(now);
        self.look_for_limits();
    }

    fn look_for_hooks(&mut self, now: Instant) {
        let hooked = match self.edge.hooked() {
            Ok(hooked) => hooked,
            Err(error) => return warn!(%error, "cannot tell whether the hooks are still there"),
        };
        for local in self.locals.values_mut().filter(|local| local.phase != Phase::Detached) {
            let Some(ifindex) = local.ifindex().filter(|ifindex| !hooked.contains(ifindex)) else { continue };
            warn!(
                workload = local.name(),
                ifindex,
                "its hooks were taken off by somebody else: what it sent since then was not judged; they are put back"
            );
            local.enter(Phase::Detached, now);
        }
    }

    pub(super) fn look_for_limits(&mut self) {
        let shaped = match self.edge.shaped() {
            Ok(shaped) => shaped,
            Err(error) => return warn!(%error, "cannot tell which veths have a limit"),
        };
        for local in self.locals.values_mut() {
            let Some(ifindex) = local.ifindex() else { continue };
            let now = shaped.contains(&ifindex);
            if std::mem::replace(&mut local.shaped, now) != now {
                info!(workload = local.name(), ifindex, limited = now, "the fast path keeps to limits on the veth");
            }
        }
    }
}
