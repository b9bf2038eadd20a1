//! Endpoints of Services that the programs have chosen, and that are ready no more.

use std::collections::HashSet;

use kumiko_abi::Backend;
use tracing::warn;

use super::super::edge::Edge;
use super::Engine;

impl<E: Edge> Engine<E> {
    /// Lets exchanges go to another endpoint when theirs was in the maps `before` and is no more. A client that goes on
    /// asking would keep to it for ever: its exchange never falls silent.
    pub(super) fn forget_backends(&mut self, before: &HashSet<Backend>) {
        let now: HashSet<Backend> = self.written.backends.values().copied().collect();
        self.gone_backends.extend(before.difference(&now));
        self.gone_backends.retain(|backend| !now.contains(backend));
        if self.gone_backends.is_empty() {
            return;
        }
        match self.edge.forget_backends(&self.gone_backends) {
            Ok(()) => self.gone_backends.clear(),
            Err(error) => {
                warn!(%error, "exchanges still go to endpoints that are ready no more: tried again");
                self.unfinished = true;
            }
        }
    }
}
