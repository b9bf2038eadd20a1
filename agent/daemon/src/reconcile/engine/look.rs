//! What changes without a word to anybody.

use std::time::Instant;

use kumiko_core::stage::Phase;
use tracing::{info, warn};

use super::super::edge::Edge;
use super::super::local::Local;
use super::Engine;

impl<E: Edge> Engine<E> {
    /// Finds hooks that somebody else took off, so that the next pass puts them back, and limits that came or went.
    pub fn look(&mut self, now: Instant) {
        self.look_for_hooks(now);
        self.look_for_limits();
    }

    fn look_for_hooks(&mut self, now: Instant) {
        match self.edge.restore_way() {
            Ok(false) => {}
            Ok(true) => warn!(
                "the hook on the veth into the agent's namespace was taken off by somebody else: what is carried stood \
                 still; it is put back"
            ),
            Err(error) => warn!(%error, "the hook on the veth into the agent's namespace cannot be put back"),
        }
        match self.edge.restore_lookup() {
            Ok(false) => {}
            Ok(true) => warn!(
                "the socket lookup of the agent's namespace was taken off by somebody else: new connections were refused; it \
                 is put back"
            ),
            Err(error) => warn!(%error, "the socket lookup of the agent's namespace cannot be put back"),
        }
        let hooked = match self.edge.hooked() {
            Ok(hooked) => hooked,
            Err(error) => return warn!(%error, "cannot tell whether the hooks are still there"),
        };
        let bare = |local: &Local| local.ifindex().is_some_and(|ifindex| !hooked.contains(&ifindex));
        for local in self.locals.values_mut().filter(|local| local.phase != Phase::Detached && bare(local)) {
            let (ifindex, attachment) = (local.ifindex(), local.workload.attachment.as_ref());
            let now_there = attachment.and_then(|attachment| self.edge.resolve(attachment).ok());
            if now_there.is_none_or(|veth| Some(veth.ifindex) != ifindex) {
                // They went with their interface: the link watch tells, and its flows end.
                continue;
            }
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
