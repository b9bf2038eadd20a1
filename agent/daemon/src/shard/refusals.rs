//! Tunnels and OPENs that this node refused as acceptor, by reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kumiko_abi::Reason;

/// Counters, one a reason.
#[derive(Debug, Clone)]
pub struct Refusals {
    counts: Arc<[(Reason, AtomicU64)]>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { counts: Reason::ALL.iter().map(|reason| (*reason, AtomicU64::new(0))).collect() }
    }
}

impl Refusals {
    /// Counts one.
    pub fn count(&self, reason: Reason) {
        if let Some((_, count)) = self.counts.iter().find(|(known, _)| *known == reason) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Those that happened.
    pub fn counts(&self) -> Vec<(Reason, u64)> {
        let read = |(reason, count): &(Reason, AtomicU64)| (*reason, count.load(Ordering::Relaxed));
        self.counts.iter().map(read).filter(|(_, count)| *count > 0).collect()
    }
}
